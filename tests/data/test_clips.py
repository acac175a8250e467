"""Readers return the frames that are there; clips are drawn from them without bias and without surprises."""

import struct
import sys
import unicodedata
import warnings
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader

from mcvd_diffusers.data import (
    ClipDataset,
    FrameFolderReader,
    SubsetReader,
    VideoFileReader,
    num_clip_starts,
    open_reader,
    split_by_name,
)


torch.set_num_threads(1)

NUM_FRAMES = 13

# Short groups of pictures and B-frames, the cases in which seeking goes wrong; without `b-adapt=0` and `scenecut=0`
# x264 finds no use for either in frames as plain as these.
X264 = {"x264-params": "keyint=5:bframes=2:b-adapt=0:scenecut=0"}
ENCODINGS = {
    "h264.mp4": ("libx264", X264),
    "open-gop.mp4": ("libx264", {"x264-params": X264["x264-params"] + ":open-gop=1"}),
    "mpeg4.mov": ("mpeg4", {"g": "5", "bf": "2"}),
    "h264.mkv": ("libx264", X264),
    "vp9.webm": ("libvpx-vp9", {"g": "5"}),
    "h264.avi": ("libx264", X264),
    "mpeg4.avi": ("mpeg4", {"g": "5", "bf": "2"}),
}


def grey_level(frame: int) -> int:
    return 20 + 15 * frame


def level_frames(num_frames: int = NUM_FRAMES, size: tuple[int, int] = (32, 48)) -> np.ndarray:
    """Frames (T, H, W, 3) of one grey level each, so that a decoded frame tells its number."""
    return np.stack([np.full((*size, 3), grey_level(frame), np.uint8) for frame in range(num_frames)])


def write_video(
    file: Path,
    frames: np.ndarray,
    codec: str = "libx264",
    options: dict | None = None,
    container_options: dict | None = None,
    title: str = "",
) -> Path:
    with av.open(str(file), "w", options=container_options or {}) as container:
        container.metadata["title"] = title
        stream = container.add_stream(codec, rate=10, options=options or {})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return file


def write_gif(file: Path, frames: np.ndarray) -> Path:
    first, *others = map(Image.fromarray, frames)
    first.save(file, save_all=True, append_images=others, duration=100)
    return file


def write_frames(folder: Path, frames: np.ndarray, pattern: str = "frame_{}.png") -> Path:
    folder.mkdir(parents=True)
    for number, frame in enumerate(frames):
        Image.fromarray(frame).save(folder / pattern.format(number))
    return folder


def write_audio(file: Path) -> Path:
    with av.open(str(file), "w") as container:
        stream = container.add_stream("aac", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return file


def frame_numbers(frames: np.ndarray) -> list[int]:
    """Which frames of `level_frames` these are; codecs may be off by a few grey levels."""
    return [round((float(frame.mean()) - 20) / 15) for frame in frames]


class ArrayReader:
    """A source of one's own, as small as the interface allows: arrays (T, C, H, W) by name."""

    def __init__(self, **videos: np.ndarray):
        self.videos = list(videos.items())

    def __len__(self):
        return len(self.videos)

    def name(self, video):
        return self.videos[video][0]

    def num_frames(self, video):
        return len(self.videos[video][1])

    def read(self, video, start, count, stride=1):
        return self.videos[video][1][start : start + count * stride : stride]


class NameReader:
    """Only names: all that a split looks at."""

    def __init__(self, names):
        self.names = list(names)

    def __len__(self):
        return len(self.names)

    def name(self, video):
        return self.names[video]


def counting_video(num_frames: int, num_channels: int = 3, size: tuple[int, int] = (4, 6)) -> np.ndarray:
    return np.stack([np.full((num_channels, *size), frame, np.uint8) for frame in range(num_frames)])


def noise_video(num_frames: int = 6, num_channels: int = 3, size: tuple[int, int] = (8, 10), seed: int = 0):
    return np.random.RandomState(seed).randint(256, size=(num_frames, num_channels, *size)).astype(np.uint8)


def drawn_frames(dataset: ClipDataset, num_epochs: int) -> list[tuple[int, ...]]:
    """The frames of `counting_video` in the first clip of every epoch."""
    clips = []
    for epoch in range(num_epochs):
        dataset.set_epoch(epoch)
        clips.append(tuple(((dataset[0]["video"][:, 0, 0, 0] + 1) * 127.5).round().int().tolist()))
    return clips


# Video files


@pytest.mark.parametrize("name", ENCODINGS)
def test_every_frame_of_a_video_file_is_found_from_every_start(tmp_path, name):
    codec, options = ENCODINGS[name]
    write_video(tmp_path / name, level_frames(), codec, options)
    reader = VideoFileReader(tmp_path)
    assert reader.num_frames(0) == NUM_FRAMES
    everything = reader.read(0, 0, NUM_FRAMES)
    assert everything.shape == (NUM_FRAMES, 3, 32, 48) and everything.dtype == np.uint8
    assert frame_numbers(everything) == list(range(NUM_FRAMES))
    for start in range(NUM_FRAMES):
        np.testing.assert_array_equal(reader.read(0, start, NUM_FRAMES - start), everything[start:])
    np.testing.assert_array_equal(reader.read(0, 2, 3, 5), everything[2::5])


def test_a_gif_is_read_exactly_and_without_pyav(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    frames = level_frames()
    write_gif(tmp_path / "levels.gif", frames)
    reader = VideoFileReader(tmp_path)
    assert reader.num_frames(0) == NUM_FRAMES
    np.testing.assert_array_equal(reader.read(0, 0, NUM_FRAMES), frames.transpose(0, 3, 1, 2))
    np.testing.assert_array_equal(reader.read(0, 3, 4, 3), frames[3::3].transpose(0, 3, 1, 2))


def test_missing_pyav_names_the_extra_instead_of_skipping_every_video(tmp_path, monkeypatch):
    (tmp_path / "clip.mp4").touch()
    reader = VideoFileReader(tmp_path)
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ImportError, match=r'pip install "mcvd-diffusers\[video\]"'):
        ClipDataset(reader, num_frames=2)


@pytest.mark.parametrize("name, container_options", [("clip.mp4", {"movflags": "faststart"}), ("clip.mkv", {})])
def test_a_video_that_was_cut_off_ends_at_its_last_whole_frame(tmp_path, name, container_options):
    noise = np.random.RandomState(0).randint(256, size=(12, 32, 48, 3), dtype=np.uint8)
    file = write_video(tmp_path / name, noise, "mpeg4", container_options=container_options)
    whole = VideoFileReader(file).read(0, 0, 12)
    file.write_bytes(file.read_bytes()[: file.stat().st_size * 6 // 10])
    reader = VideoFileReader(file)
    num_frames = reader.num_frames(0)
    assert 1 < num_frames < 12
    np.testing.assert_array_equal(reader.read(0, 0, num_frames), whole[:num_frames])


def test_a_video_that_shrinks_after_it_was_counted_is_named(tmp_path):
    file = write_video(tmp_path / "clip.mkv", level_frames(), "mpeg4")
    reader = VideoFileReader(file)
    assert reader.num_frames(0) == NUM_FRAMES
    write_video(file, level_frames(5), "mpeg4")
    with pytest.raises(
        ValueError, match=r"clip\.mkv is broken: only 2 of 6 frames could be decoded from frame 3 to 8"
    ):
        reader.read(0, 3, 6)


def test_frames_before_the_cut_of_an_edit_list_are_not_counted(tmp_path):
    # What trimming without encoding leaves behind: the first 4 frames are there to be decoded but not to be shown.
    file = write_video(
        tmp_path / "clip.mp4", level_frames(), options={"x264-params": "scenecut=0:bframes=0:keyint=20"}
    )
    with av.open(str(file)) as container:
        frame_duration = next(container.demux(video=0)).duration
    data = bytearray(file.read_bytes())
    media_time = data.index(b"elst") + 16
    assert struct.unpack_from(">i", data, media_time) == (0,)
    struct.pack_into(">i", data, media_time, 4 * frame_duration)
    file.write_bytes(data)
    reader = VideoFileReader(file)
    assert reader.num_frames(0) == NUM_FRAMES - 4
    for start in range(NUM_FRAMES - 4):
        assert frame_numbers(reader.read(0, start, 1)) == [4 + start]


def test_a_title_in_a_foreign_encoding_does_not_cost_the_video(tmp_path):
    file = write_video(tmp_path / "clip.mkv", level_frames(3), title="TITLE")
    file.write_bytes(file.read_bytes().replace(b"TITLE", b"T\xe9TL\xe9"))
    assert frame_numbers(VideoFileReader(file).read(0, 0, 3)) == [0, 1, 2]


def test_a_video_that_is_broken_inside_the_window_is_named(tmp_path):
    file = write_video(tmp_path / "clip.mp4", level_frames(), "libvpx-vp9", {"g": "4"})
    with av.open(str(file)) as container:
        packets = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    data = bytearray(file.read_bytes())
    for position, size in packets[-5:]:
        data[position : position + size] = b"\xff" * size
    file.write_bytes(data)
    reader = VideoFileReader(tmp_path)
    assert frame_numbers(reader.read(0, 0, 8)) == list(range(8))
    with pytest.raises(ValueError, match=r"clip\.mp4"):
        reader.read(0, 6, 6)


def test_video_files_are_found_in_sub_folders_in_natural_order(tmp_path):
    for name in (
        "b/clip 10.gif",
        "b/clip 9.GIF",
        "a/日本 é.gif",
        "clip_1.gif",
        "b/._clip 9.gif",
        ".cache/x.gif",
        "b/a.txt",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_gif(tmp_path / "new.gif", level_frames(2)).rename(tmp_path / name)
    reader = VideoFileReader(tmp_path)
    assert [reader.name(video) for video in range(len(reader))] == [
        "a/日本 é.gif",
        "b/clip 9.GIF",
        "b/clip 10.gif",
        "clip_1.gif",
    ]
    assert [reader.num_frames(video) for video in range(len(reader))] == [2, 2, 2, 2]


def test_paths_with_spaces_unicode_and_colons_are_read(tmp_path, monkeypatch):
    folder = tmp_path / "Vidéos de tëst 日本"
    folder.mkdir()
    write_video(folder / "clip:ü 1.mp4", level_frames(4))
    monkeypatch.chdir(folder)
    for reader in (VideoFileReader(folder), open_reader(str(folder)), open_reader("clip:ü 1.mp4")):
        assert reader.name(0) == "clip:ü 1.mp4"
        assert frame_numbers(reader.read(0, 1, 3)) == [1, 2, 3]


# Folders of frames


def test_frames_are_read_in_natural_order(tmp_path):
    frames = level_frames()
    for folder in ("clip 10", "clip 9", "nested/ä"):
        write_frames(tmp_path / folder, frames)
    (tmp_path / "clip 9" / "notes.txt").write_text("no frame")
    (tmp_path / "clip 9" / "._frame_0.png").touch()
    (tmp_path / "empty").mkdir()
    reader = FrameFolderReader(tmp_path)
    assert [reader.name(video) for video in range(len(reader))] == ["clip 9", "clip 10", "nested/ä"]
    assert reader.num_frames(0) == NUM_FRAMES
    np.testing.assert_array_equal(reader.read(0, 0, NUM_FRAMES), frames.transpose(0, 3, 1, 2))
    np.testing.assert_array_equal(reader.read(2, 1, 3, 4), frames[[1, 5, 9]].transpose(0, 3, 1, 2))


def test_images_keep_their_channels_and_depth(tmp_path):
    rng = np.random.RandomState(0)
    grey, rgba = rng.randint(256, size=(4, 5)).astype(np.uint8), rng.randint(256, size=(4, 5, 4)).astype(np.uint8)
    deep = rng.randint(65536, size=(4, 5)).astype(np.uint16)
    for folder, pixels in (("1 grey", grey), ("2 rgba", rgba), ("3 deep", deep)):
        write_frames(tmp_path / folder, pixels[None])
    reader = FrameFolderReader(tmp_path)
    np.testing.assert_array_equal(reader.read(0, 0, 1), grey[None, None])
    np.testing.assert_array_equal(reader.read(1, 0, 1), rgba[None, ..., :3].transpose(0, 3, 1, 2))
    assert reader.read(2, 0, 1).dtype == np.float32
    np.testing.assert_allclose(reader.read(2, 0, 1)[0, 0] * 65535, deep, rtol=1e-6)


def test_jpeg_frames_are_read(tmp_path):
    write_frames(tmp_path / "clip", level_frames(3), "{}.JPEG")
    assert frame_numbers(open_reader(tmp_path).read(0, 0, 3)) == [0, 1, 2]


def test_images_that_make_no_video_are_named(tmp_path):
    write_frames(tmp_path / "sizes", level_frames(2))
    Image.new("RGB", (3, 3)).save(tmp_path / "sizes" / "frame_2.png")
    write_frames(tmp_path / "torn", level_frames(2))
    (tmp_path / "torn" / "frame_1.png").write_bytes((tmp_path / "torn" / "frame_1.png").read_bytes()[:-30])
    write_frames(tmp_path / "unscaled", np.zeros((1, 4, 4), np.float32), "{}.tiff")
    reader = FrameFolderReader(tmp_path)
    with pytest.raises(ValueError, match=r"sizes holds frames of different shapes"):
        reader.read(0, 0, 3)
    with pytest.raises(ValueError, match=r"torn.frame_1\.png can not be read"):
        reader.read(1, 0, 2)
    with pytest.raises(ValueError, match=r"unscaled.0\.tiff can not be read: mode 'F' has no fixed value range"):
        reader.read(2, 0, 1)


# Choosing a reader


def test_open_reader_chooses_by_what_the_path_holds(tmp_path):
    write_gif(tmp_path / "clip.gif", level_frames(2))
    assert isinstance(open_reader(tmp_path), VideoFileReader)
    assert isinstance(open_reader(tmp_path / "clip.gif"), VideoFileReader)
    write_frames(tmp_path / "frames" / "clip", level_frames(2))
    assert isinstance(open_reader(tmp_path / "frames"), FrameFolderReader)


@pytest.mark.parametrize("open_path", [open_reader, VideoFileReader, FrameFolderReader])
def test_a_path_without_videos_says_what_it_holds(tmp_path, open_path):
    with pytest.raises(ValueError, match=r"must exist but .*nowhere does not"):
        open_path(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"holds no files"):
        open_path(tmp_path)
    (tmp_path / "readme.txt").touch()
    (tmp_path / "data.npy").touch()
    with pytest.raises(ValueError, match=r"holds only files of other kinds \(1 \.npy, 1 \.txt\)|1 \.txt, 1 \.npy"):
        open_path(tmp_path)
    with pytest.raises(ValueError, match=r"readme\.txt"):
        open_path(tmp_path / "readme.txt")


def test_a_mixture_of_videos_and_images_asks_which_is_meant(tmp_path):
    write_gif(tmp_path / "clip.gif", level_frames(2))
    write_frames(tmp_path / "clip", level_frames(3))
    with pytest.raises(ValueError, match=r"holds 1 video files and 3 images.*`VideoFileReader\(path\)`"):
        open_reader(tmp_path)
    assert len(VideoFileReader(tmp_path)) == len(FrameFolderReader(tmp_path)) == 1


def test_images_outside_of_a_sub_folder_are_refused(tmp_path):
    folder = write_frames(tmp_path / "clip", level_frames(2))
    with pytest.raises(ValueError, match=r"one sub-folder per video but .*clip has images outside"):
        open_reader(folder)
    with pytest.raises(ValueError, match=r"a folder or a video file .* but got .*frame_0\.png.*folder above"):
        open_reader(folder / "frame_0.png")


@pytest.mark.parametrize("window", [(-1, 1, 1), (0, 0, 1), (0, 1, 0), (0, 14, 1), (13, 1, 1), (1, 5, 3)])
def test_a_window_that_leaves_the_video_is_refused(tmp_path, window):
    write_frames(tmp_path / "clip", level_frames())
    with pytest.raises(ValueError, match=r"frames of clip, which has 13, but got start"):
        FrameFolderReader(tmp_path).read(0, *window)


# Windows


@given(num_video_frames=st.integers(0, 60), num_frames=st.integers(1, 20), stride=st.integers(1, 6))
def test_clip_starts_are_exactly_those_whose_frames_exist(num_video_frames, num_frames, stride):
    video = range(num_video_frames)
    starts = [start for start in video if all(start + step * stride in video for step in range(num_frames))]
    assert starts == list(range(num_clip_starts(num_video_frames, num_frames=num_frames, stride=stride)))


def test_every_start_is_drawn_including_the_last():
    dataset = ClipDataset(ArrayReader(video=counting_video(7)), num_frames=3, stride=2)
    counts = dict.fromkeys([(0, 2, 4), (1, 3, 5), (2, 4, 6)], 0)
    for clip in drawn_frames(dataset, 300):
        counts[clip] += 1
    # 100 each on average; 50 is six standard deviations away.
    assert all(count > 50 for count in counts.values())


def test_a_video_as_long_as_the_clip_has_one_start():
    dataset = ClipDataset(ArrayReader(video=counting_video(5)), num_frames=3, stride=2)
    assert set(drawn_frames(dataset, 5)) == {(0, 2, 4)}


def test_without_random_start_clips_begin_at_the_first_frame():
    dataset = ClipDataset(ArrayReader(video=counting_video(9)), num_frames=2, random_start=False)
    assert set(drawn_frames(dataset, 9)) == {(0, 1)}


def test_random_flip_mirrors_whole_clips_and_half_of_them():
    video = noise_video(3)
    plain = ClipDataset(ArrayReader(video=video), num_frames=3)[0]["video"]
    dataset = ClipDataset(ArrayReader(video=video), num_frames=3, random_flip=True)
    num_flipped = 0
    for epoch in range(100):
        dataset.set_epoch(epoch)
        clip = dataset[0]["video"]
        is_flipped = torch.equal(clip, plain.flip(-1))
        assert is_flipped or torch.equal(clip, plain)
        num_flipped += is_flipped
    assert 25 < num_flipped < 75


# Values


def test_clips_lie_in_minus_one_to_one_whatever_the_reader_returns():
    video = noise_video()
    video[0, 0, 0, :2] = 0, 255
    expected = torch.from_numpy(video).float() / 127.5 - 1
    read_only = video.copy()
    read_only.flags.writeable = False
    sources = (video, read_only, video / 255, (video / 255).astype(np.float32), torch.from_numpy(video) / 255)
    for source in sources:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            clip = ClipDataset(ArrayReader(video=source), num_frames=6)[0]["video"]
        assert clip.dtype == torch.float32 and clip.min() == -1 and clip.max() == 1
        torch.testing.assert_close(clip, expected, rtol=0, atol=2e-7)


def test_colour_becomes_grey_as_in_pillow():
    video = noise_video()
    clip = ClipDataset(ArrayReader(video=video), num_frames=6, num_channels=1)[0]["video"]
    assert clip.shape == (6, 1, 8, 10)
    pillow = np.stack([np.asarray(Image.fromarray(frame).convert("L")) for frame in video.transpose(0, 2, 3, 1)])
    # Pillow rounds to 8 bits and its weights to 16; we do neither.
    assert np.abs((clip[:, 0].numpy() + 1) * 127.5 - pillow).max() < 0.51


def test_grey_becomes_colour_by_repetition():
    clip = ClipDataset(ArrayReader(video=noise_video(num_channels=1)), num_frames=6)[0]["video"]
    assert clip.shape == (6, 3, 8, 10) and clip.is_contiguous()
    assert torch.equal(clip, clip[:, :1].repeat(1, 3, 1, 1))
    assert clip.std() > 0.1


@pytest.mark.parametrize("frame_size", [(4, 5), (3, 10), (16, 7)])
def test_resizing_is_bilinear_with_antialias_as_in_pillow(frame_size):
    video = noise_video(2, size=(12, 16))
    clip = ClipDataset(ArrayReader(video=video), num_frames=2, frame_size=frame_size)[0]["video"]
    assert clip.shape == (2, 3, *frame_size) and clip.abs().max() <= 1
    height, width = frame_size
    pillow = np.stack(
        [
            np.asarray(Image.fromarray(frame).resize((width, height), Image.Resampling.BILINEAR))
            for frame in video.transpose(0, 2, 3, 1)
        ]
    ).transpose(0, 3, 1, 2)
    # Pillow rounds after each of its two passes.
    assert np.abs((clip.numpy() + 1) * 127.5 - pillow).max() < 1.1


def test_rounding_does_not_push_resized_clips_out_of_range():
    white = np.full((1, 3, 37, 41), 255, np.uint8)
    for size in range(1, 20):
        assert ClipDataset(ArrayReader(video=white), num_frames=1, frame_size=(size, size))[0]["video"].max() <= 1


def test_frames_of_the_right_size_are_not_touched():
    reader = ArrayReader(video=noise_video())
    kept, resized = ClipDataset(reader, num_frames=6), ClipDataset(reader, num_frames=6, frame_size=[8, 10])
    assert torch.equal(kept[0]["video"], resized[0]["video"])


# Items


def clip_dataset_on_disk(folder: Path) -> ClipDataset:
    for number in range(4):
        write_video(folder / f"{number}.mp4", np.roll(level_frames(), number, axis=0), options={"g": "4"})
    return ClipDataset(open_reader(folder), num_frames=4, frame_size=(16, 16), random_flip=True, seed=3)


def test_clips_do_not_depend_on_workers_or_order(tmp_path):
    dataset = clip_dataset_on_disk(tmp_path)
    loader = DataLoader(dataset, batch_size=2, num_workers=2, persistent_workers=True)
    epochs = []
    for epoch in (0, 1):
        dataset.set_epoch(epoch)
        expected = torch.stack([dataset[index]["video"] for index in reversed(range(len(dataset)))]).flip(0)
        epochs.append(torch.cat([batch["video"] for batch in loader]))
        torch.testing.assert_close(epochs[-1], expected, rtol=0, atol=0)
    assert not torch.equal(epochs[0], epochs[1])


def test_clips_differ_by_seed_and_index():
    reader = ArrayReader(a=counting_video(200), b=counting_video(200))
    starts = {
        (seed, index): int(
            (ClipDataset(reader, num_frames=1, seed=seed)[index]["video"][0, 0, 0, 0] + 1) * 127.5 + 0.5
        )
        for seed in range(3)
        for index in range(2)
    }
    assert len(set(starts.values())) > 4


def test_indices_count_from_either_end():
    dataset = ClipDataset(ArrayReader(a=counting_video(3), b=counting_video(4)), num_frames=2)
    assert torch.equal(dataset[-1]["video"], dataset[1]["video"])
    assert len(list(dataset)) == len(dataset) == 2
    with pytest.raises(IndexError):
        dataset[2]


# Videos that can not be used


def test_unusable_videos_are_skipped_with_one_warning_that_names_them(tmp_path):
    write_video(tmp_path / "good.mp4", level_frames())
    write_video(tmp_path / "short.mp4", level_frames(4))
    write_audio(tmp_path / "sound.mp4")
    (tmp_path / "zero bytes.mp4").touch()
    (tmp_path / "text.mp4").write_text("this is no video " * 100)
    (tmp_path / "text.gif").write_text("this is no video " * 100)
    with pytest.warns(
        UserWarning, match=r"Skipped 5 of 6 videos that can not be used: .*short\.mp4 \(too short: 4 fr"
    ) as caught:
        dataset = ClipDataset(open_reader(tmp_path), num_frames=3, stride=2)
    assert len(caught) == 1
    bad = {"short.mp4", "sound.mp4", "zero bytes.mp4", "text.mp4", "text.gif"}
    assert all(name in str(caught[0].message) for name in bad)
    assert set(dataset.skipped) == bad and "no video stream" in dataset.skipped["sound.mp4"]
    assert len(dataset) == 1 and dataset[0]["video"].shape == (3, 3, 32, 48)


def test_a_long_list_of_unusable_videos_is_cut_in_the_warning_only():
    videos = {f"short{number}": counting_video(1) for number in range(30)}
    with pytest.warns(UserWarning, match=r"Skipped 30 of 31 .*short9 .*; and 20 more\.$"):
        dataset = ClipDataset(ArrayReader(good=counting_video(2), **videos), num_frames=2)
    assert list(dataset.skipped) == list(videos)


def test_good_videos_give_no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ClipDataset(ArrayReader(video=counting_video(2)), num_frames=2)


def test_no_usable_video_says_why(tmp_path):
    (tmp_path / "empty.mp4").touch()
    write_gif(tmp_path / "short.gif", level_frames(3))
    with pytest.raises(
        ValueError, match=r"at least 5 frames .* none of its 2 videos is one: empty.*; short.*3 frames"
    ):
        ClipDataset(open_reader(tmp_path), num_frames=5)
    with pytest.raises(ValueError, match=r"none of its 0 videos is one: it is empty"):
        ClipDataset(ArrayReader(), num_frames=5)


def test_videos_of_several_sizes_need_a_frame_size():
    reader = ArrayReader(a=counting_video(3), b=counting_video(3, size=(5, 5)))
    with pytest.raises(ValueError, match=r"`frame_size` must be given .*: 4 x 6 \(a\); 5 x 5 \(b\)"):
        ClipDataset(reader, num_frames=2)
    clips = next(iter(DataLoader(ClipDataset(reader, num_frames=2, frame_size=(4, 4)), batch_size=2)))
    assert clips["video"].shape == (2, 2, 3, 4, 4)


@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({"num_frames": 0}, r"`num_frames` must be an integer of at least 1 but got 0"),
        ({"stride": 0}, r"`stride` must be an integer of at least 1 but got 0"),
        ({"seed": -1}, r"`seed` must be an integer of at least 0 but got -1"),
        ({"num_channels": 4}, r"`num_channels` must be 1 \(grey\) or 3 \(RGB\) but got 4"),
        ({"frame_size": 64}, r"`frame_size` must be a pair of positive integers \(height, width\) but got 64"),
        ({"frame_size": (64, 0)}, r"`frame_size` must be a pair of positive integers .* but got \(64, 0\)"),
    ],
)
def test_bad_arguments_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        ClipDataset(ArrayReader(video=counting_video(3)), **({"num_frames": 2} | kwargs))


@pytest.mark.parametrize(
    "video, message",
    [
        (counting_video(3).transpose(0, 2, 3, 1), r"\(count, C, H, W\) .* but returned uint8 of shape \(1, 4, 6, 3\)"),
        (counting_video(3).astype(np.int64), r"uint8 or floating point .* but returned int64"),
    ],
)
def test_a_reader_that_breaks_its_promise_is_refused(video, message):
    with pytest.raises(ValueError, match=message):
        ClipDataset(ArrayReader(video=video), num_frames=2)


def test_floating_point_frames_out_of_range_are_refused():
    for wrong in (counting_video(3) * 1.0, counting_video(3) * np.nan):
        dataset = ClipDataset(ArrayReader(video=wrong), num_frames=3)
        with pytest.raises(ValueError, match=r"floating point in \[0, 1\] but returned float64 in .* for video"):
            dataset[0]


# Splitting


NAMES = [f"class {number % 7}/v_{number:03d}.mp4" for number in range(400)]


def split_names(names, fraction=0.25, **kwargs) -> tuple[list[str], list[str]]:
    sides = split_by_name(NameReader(names), fraction, **kwargs)
    return tuple([side.name(video) for video in range(len(side))] for side in sides)


def test_every_video_is_on_exactly_one_side_of_a_split():
    train, validation = split_names(NAMES)
    assert sorted(train + validation) == sorted(NAMES)
    # 100 expected, standard deviation 9.
    assert 60 < len(validation) < 140


def test_a_video_stays_on_its_side_when_others_come_and_go():
    train, validation = split_names(NAMES)
    fewer_train, fewer_validation = split_names(NAMES[250::-1])
    assert set(fewer_train) <= set(train) and set(fewer_validation) <= set(validation)
    assert set(split_names(NAMES, 0.5)[1]) > set(validation)


def test_a_split_is_the_same_on_every_machine():
    # Written down once: a change of this list would move videos between the sides of everybody's split.
    assert split_names([f"{number}.mp4" for number in range(12)])[1] == [
        "1.mp4",
        "3.mp4",
        "6.mp4",
        "7.mp4",
        "9.mp4",
    ]
    names = [f"é{number}.mp4" for number in range(50)]
    decomposed = [unicodedata.normalize("NFD", name) for name in names]
    assert [unicodedata.normalize("NFC", name) for name in split_names(decomposed)[1]] == split_names(names)[1]


def test_another_seed_gives_another_split():
    assert split_names(NAMES, seed=1) != split_names(NAMES)


def test_a_group_stays_together():
    train, validation = split_names(NAMES, 0.4, group=lambda name: name.split("/")[0])
    assert not {name.split("/")[0] for name in train} & {name.split("/")[0] for name in validation}


def test_the_sides_of_a_split_read_their_own_videos():
    reader = ArrayReader(**{f"v{number}": counting_video(number + 1) for number in range(20)})
    for side in split_by_name(reader, 0.5):
        for video in range(len(side)):
            number = int(side.name(video)[1:])
            assert side.num_frames(video) == number + 1
            assert side.read(video, number, 1)[0, 0, 0, 0] == number
        assert len(ClipDataset(side, num_frames=1)) == len(side)


@pytest.mark.parametrize("fraction", [0, 1, -0.5, 1.5])
def test_a_validation_fraction_out_of_range_is_refused(fraction):
    with pytest.raises(ValueError, match=r"`validation_fraction` must lie between 0 and 1, both excluded, but got"):
        split_names(NAMES, fraction)


def test_an_empty_side_is_refused():
    with pytest.raises(
        ValueError, match=r"split 1 videos into . for training and . for validation: one side is empty"
    ):
        split_names(NAMES[:1])


def test_a_subset_of_videos_that_do_not_exist_is_refused():
    with pytest.raises(ValueError, match=r"`videos` must lie in 0\.\.1, .* but got \[2, -1\]"):
        SubsetReader(NameReader("ab"), [0, 2, -1])


def test_links_to_folders_are_followed_once(tmp_path):
    (tmp_path / "elsewhere" / "video").mkdir(parents=True)
    (tmp_path / "data").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "elsewhere" / "video" / "0.png")
    (tmp_path / "data" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "data")  # a circle
    reader = open_reader(tmp_path / "data")
    assert len(reader) == 1 and reader.num_frames(0) == 1


def test_a_slice_is_no_index(tmp_path):
    (tmp_path / "video").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "video" / "0.png")
    with pytest.raises(TypeError):
        ClipDataset(open_reader(tmp_path), num_frames=1)[0:1]
