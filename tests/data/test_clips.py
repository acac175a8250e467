"""Clips are drawn from videos without bias and without surprises, in the size, channels and values that were asked for."""

import errno
import itertools
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader, default_collate

from mcvd_diffusers.data import (
    ClipDataset,
    EpochBatches,
    FrameNormalizer,
    PieceReader,
    VideoInfo,
    num_clip_starts,
    open_reader,
    spread_frames,
)
from memory_reader import BreakingReader, MemoryReader, counting_video, noise_video
from video_fixtures import level_frames, write_audio, write_gif, write_video


torch.set_num_threads(1)


def drawn_frames(dataset: ClipDataset, num_epochs: int) -> list[tuple[int, ...]]:
    """The frames of `counting_video` in the first clip of every epoch."""
    clips = []
    for epoch in range(num_epochs):
        dataset.set_epoch(epoch)
        clips.append(tuple(((dataset[0]["video"][:, 0, 0, 0] + 1) * 127.5).round().int().tolist()))
    return clips


# Windows


@given(num_video_frames=st.integers(0, 60), num_frames=st.integers(1, 20), stride=st.integers(1, 6))
def test_clip_starts_are_exactly_those_whose_frames_exist(num_video_frames, num_frames, stride):
    video = range(num_video_frames)
    starts = [start for start in video if all(start + step * stride in video for step in range(num_frames))]
    assert starts == list(range(num_clip_starts(num_video_frames, num_frames=num_frames, stride=stride)))


def test_every_start_is_drawn_including_the_last():
    dataset = ClipDataset(MemoryReader(video=counting_video(7)), num_frames=3, stride=2)
    counts = dict.fromkeys([(0, 2, 4), (1, 3, 5), (2, 4, 6)], 0)
    for clip in drawn_frames(dataset, 300):
        counts[clip] += 1
    # 100 each on average; 50 is six standard deviations away.
    assert all(count > 50 for count in counts.values())


def test_a_video_as_long_as_the_clip_has_one_start():
    dataset = ClipDataset(MemoryReader(video=counting_video(5)), num_frames=3, stride=2)
    assert set(drawn_frames(dataset, 5)) == {(0, 2, 4)}


def test_without_random_start_clips_begin_at_the_first_frame():
    dataset = ClipDataset(MemoryReader(video=counting_video(9)), num_frames=2, random_start=False)
    assert set(drawn_frames(dataset, 9)) == {(0, 1)}


def test_random_flip_mirrors_whole_clips_and_half_of_them():
    video = noise_video(3)
    plain = ClipDataset(MemoryReader(video=video), num_frames=3)[0]["video"]
    dataset = ClipDataset(MemoryReader(video=video), num_frames=3, random_flip=True)
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
    sources = (
        video,
        read_only,
        video / 255,
        (video / 255).astype(np.float32),
        np.ascontiguousarray(video)[::-1][::-1],
    )
    for source in sources:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            clip = ClipDataset(MemoryReader(video=source), num_frames=6)[0]["video"]
        assert clip.dtype == torch.float32 and clip.min() == -1 and clip.max() == 1
        torch.testing.assert_close(clip, expected, rtol=0, atol=2e-7)


def test_colour_becomes_grey_as_in_pillow():
    video = noise_video()
    clip = ClipDataset(MemoryReader(video=video), num_frames=6, num_channels=1)[0]["video"]
    assert clip.shape == (6, 1, 8, 10)
    pillow = np.stack([np.asarray(Image.fromarray(frame).convert("L")) for frame in video.transpose(0, 2, 3, 1)])
    # Pillow rounds to 8 bits and its weights to 16; we do neither.
    assert np.abs((clip[:, 0].numpy() + 1) * 127.5 - pillow).max() < 0.51


def test_grey_becomes_colour_by_repetition():
    clip = ClipDataset(MemoryReader(video=noise_video(num_channels=1)), num_frames=6, num_channels=3)[0]["video"]
    assert clip.shape == (6, 3, 8, 10) and clip.is_contiguous()
    assert torch.equal(clip, clip[:, :1].repeat(1, 3, 1, 1))
    assert clip.std() > 0.1


@pytest.mark.parametrize("frame_size", [(4, 5), (3, 10), (16, 7)])
def test_resizing_is_bilinear_with_antialias_as_in_pillow(frame_size):
    video = noise_video(2, size=(12, 16))
    clip = ClipDataset(MemoryReader(video=video), num_frames=2, frame_size=frame_size)[0]["video"]
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
        assert ClipDataset(MemoryReader(video=white), num_frames=1, frame_size=(size, size))[0]["video"].max() <= 1


def test_frames_of_the_right_size_are_not_touched():
    reader = MemoryReader(video=noise_video())
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
    reader = MemoryReader(a=counting_video(200), b=counting_video(200))
    starts = {
        (seed, index): int(
            (ClipDataset(reader, num_frames=1, seed=seed)[index]["video"][0, 0, 0, 0] + 1) * 127.5 + 0.5
        )
        for seed in range(3)
        for index in range(2)
    }
    assert len(set(starts.values())) > 4


def test_indices_count_from_either_end():
    dataset = ClipDataset(MemoryReader(a=counting_video(3), b=counting_video(4)), num_frames=2)
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
        dataset = ClipDataset(open_reader(tmp_path), num_frames=3, stride=2, max_bad_share=0.9)
    assert len(caught) == 1
    bad = {"short.mp4", "sound.mp4", "zero bytes.mp4", "text.mp4", "text.gif"}
    assert all(name in str(caught[0].message) for name in bad)
    assert set(dataset.skipped) == bad and "no video stream" in dataset.skipped["sound.mp4"]
    assert len(dataset) == 1 and dataset[0]["video"].shape == (3, 3, 32, 48)


def test_a_long_list_of_unusable_videos_is_cut_in_the_warning_only():
    videos = {f"short{number}": counting_video(1) for number in range(30)}
    with pytest.warns(
        UserWarning, match=r"Skipped 30 of 31 .*short9 and 20 more \(too short: 1 frames where a clip covers 2\)\.$"
    ):
        dataset = ClipDataset(MemoryReader(good=counting_video(2), **videos), num_frames=2, max_bad_share=1)
    assert list(dataset.skipped) == list(videos)


def test_good_videos_give_no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ClipDataset(MemoryReader(video=counting_video(2)), num_frames=2)


def test_no_usable_video_says_why(tmp_path):
    (tmp_path / "empty.mp4").touch()
    write_gif(tmp_path / "short.gif", level_frames(3))
    with pytest.raises(
        ValueError, match=r"None of the 2 videos .* clips of 5 frames .*: empty.*; short.*3 frames.*shorter clips"
    ):
        ClipDataset(open_reader(tmp_path), num_frames=5)
    with pytest.raises(
        ValueError, match=r"^a can not be used .* \(stride 1\): too short: 3 .* covers 5\. Ask for shorter clips\.$"
    ):
        ClipDataset(MemoryReader(a=counting_video(3)), num_frames=5)
    with pytest.raises(ValueError, match=r"None of the 0 videos .*: there is none"):
        ClipDataset(MemoryReader(), num_frames=5)


def test_videos_of_several_sizes_need_a_frame_size():
    reader = MemoryReader(a=counting_video(3), b=counting_video(3, size=(5, 5)))
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
        ({"num_channels": 0}, r"`num_channels` must be an integer of at least 1 but got 0"),
        (
            {"num_channels": 2},
            r"^video can not be used for clips of 2 frames .*: frames of 3 channels where 2 are asked for\.$",
        ),
        ({"clip_step": 0}, r"`clip_step` must be an integer of at least 1 but got 0"),
        ({"resize": "squash"}, r"`resize` must be \"stretch\", \"cover\" or \"crop\" but got 'squash'"),
        ({"random_crop": True}, r"`random_crop` must go with a `frame_size` and `resize`"),
        ({"max_bad_share": 2}, r"`max_bad_share` must be a share from 0 to 1 but got 2"),
        ({"vectors": ["video"]}, r"`vectors` must be different names, none of them video"),
        ({"vectors": ["a", "a"]}, r"`vectors` must be different names"),
        ({"frame_size": (5, 6), "resize": "crop"}, r"frames of 4 x 6 where 5 x 6 are to be cut out"),
        ({"frame_size": 64}, r"`frame_size` must be a pair of positive integers \(height, width\) but got 64"),
        ({"frame_size": (64, 0)}, r"`frame_size` must be a pair of positive integers .* but got \(64, 0\)"),
    ],
)
def test_bad_arguments_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        ClipDataset(MemoryReader(video=counting_video(3)), **({"num_frames": 2} | kwargs))


@pytest.mark.parametrize(
    "video, message",
    [
        (
            counting_video(3).astype(np.int64),
            r"^video can not be .*: it holds int64, whose range is not known, .*: scale them first, or train .*--normalization.*`\)\.$",
        ),
        (
            counting_video(3) + 2.0,
            r"holds float64 in \[2, 2\], but images must be uint8 or in \[0, 1\]: scale them first, or train.*from_range",
        ),
        (counting_video(3) * 1.0, r"holds float64 in \[2, 2\]"),  # only its last frame shows it
        (
            counting_video(3) * np.nan,
            r"it has missing values \(NaN\): fill them in first, or train .*--nan_fill.*`nan_fill`",
        ),
        (np.full((3, 1, 4, 4), np.inf), "holds infinite values"),
    ],
)
def test_values_that_are_no_images_say_how_to_read_them(video, message):
    with pytest.raises(ValueError, match=message):
        ClipDataset(MemoryReader(video=video), num_frames=2)


def test_a_reader_that_breaks_its_promise_is_refused():
    class LyingReader(MemoryReader):
        def info(self, video):
            return VideoInfo(3, 3, 4, 6, "uint8")

    with pytest.raises(ValueError, match=r"\(1, 3, 4, 6\) here, but returned uint8 of shape \(1, 4, 6, 3\)"):
        ClipDataset(LyingReader(video=counting_video(3).transpose(0, 2, 3, 1)), num_frames=2)


def test_one_bad_video_is_an_error_if_so_wished():
    reader = MemoryReader(good=counting_video(3), short=counting_video(1))
    with pytest.raises(ValueError, match=r"`strict`: 1 of 2 videos can not be used: short \(too short"):
        ClipDataset(reader, num_frames=2, strict=True)


def test_too_many_bad_videos_stop_before_training():
    videos = {f"short{number}": counting_video(1) for number in range(3)}
    reader = MemoryReader(good=counting_video(3), **videos)
    with pytest.raises(ValueError, match=r"3 of 4 videos can not be used, more than `max_bad_share` \(0.7\)"):
        ClipDataset(reader, num_frames=2, max_bad_share=0.7)
    with pytest.warns(UserWarning, match="Skipped 3 of 4"):
        ClipDataset(reader, num_frames=2, max_bad_share=0.75)


def breaking_dataset(**kwargs) -> ClipDataset:
    videos = {name: counting_video(8) + 10 * number for number, name in enumerate("abcd")}
    return ClipDataset(BreakingReader({"b": 1}, **videos), num_frames=2, **kwargs)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_video_that_breaks_inside_is_replaced_counted_and_named(num_workers, recwarn):
    dataset = breaking_dataset()
    loader = DataLoader(dataset, batch_size=4, num_workers=num_workers)
    clips = next(iter(loader))["video"]
    firsts = ((clips[:, 0, 0, 0, 0] + 1) * 127.5).round().int() // 10
    assert firsts[0] == 0 and firsts[2] == 2 and firsts[3] == 3 and firsts[1] != 1
    assert dataset.num_broken == 1 and dataset.broken == ["b"]
    assert torch.equal(clips, torch.stack([breaking_dataset()[index]["video"] for index in range(4)]))


@pytest.mark.parametrize("num_workers", [0, 1])
def test_too_many_broken_videos_stop_the_run(num_workers):
    dataset = breaking_dataset(max_bad_share=0.2)
    with pytest.raises(
        ValueError, match=r"1 of 4 videos can not be used, more than `max_bad_share` \(0.2\).*b is dam"
    ):
        list(DataLoader(dataset, num_workers=num_workers))
    with pytest.raises(ValueError, match="b is damaged in frame"):
        breaking_dataset(strict=True)[1]


def test_when_nothing_can_be_read_any_more_the_run_stops():
    videos = {name: counting_video(8) for name in "ab"}
    dataset = ClipDataset(BreakingReader({"a": 1, "b": 1}, **videos), num_frames=2, max_bad_share=1)
    message = r"100 broken clips in a row, the last of ([ab]): \1 is damaged in frame"
    with pytest.raises(ValueError, match=message), pytest.warns(UserWarning):
        dataset[0]


def test_what_the_machine_lacks_is_not_the_fault_of_a_video():
    class HungryReader(MemoryReader):
        def _read(self, video, window):
            if len(window) > 1:
                raise OSError(errno.EMFILE, "Too many open files")
            return super()._read(video, window)

    dataset = ClipDataset(HungryReader(a=noise_video(), b=noise_video()), num_frames=2)
    with pytest.raises(OSError, match="Too many open files"):
        dataset[[0, 1]]
    assert dataset.num_broken == 0


# Which clips an epoch has


@given(
    num_video_frames=st.integers(1, 40),
    num_frames=st.integers(1, 8),
    stride=st.integers(1, 3),
    clip_step=st.integers(1, 12),
)
@settings(max_examples=60, deadline=None)
def test_groups_of_starts_cover_each_start_once_and_every_start_is_reachable(
    num_video_frames, num_frames, stride, clip_step
):
    starts = set(range(num_clip_starts(num_video_frames, num_frames=num_frames, stride=stride)))
    assume(starts)
    reader = MemoryReader(v=counting_video(num_video_frames, 1, (1, 1)))
    dataset = ClipDataset(reader, num_frames=num_frames, stride=stride, clip_step=clip_step)
    assert len(dataset) == -(-len(starts) // clip_step)
    seen = [set() for _ in range(len(dataset))]
    for epoch in range(25 * clip_step):
        dataset.set_epoch(epoch)
        for index in range(len(dataset)):
            seen[index].add(int(((dataset[index]["video"][0, 0, 0, 0] + 1) * 127.5).round()))
        if sum(map(len, seen)) == len(starts):
            break
    assert set().union(*seen) == starts and sum(map(len, seen)) == len(starts)  # the last one, and none in two groups
    fixed = ClipDataset(reader, num_frames=num_frames, stride=stride, clip_step=clip_step, random_start=False)
    firsts = [int(((item["video"][0, 0, 0, 0] + 1) * 127.5).round()) for item in fixed]
    assert firsts == sorted(starts)[::clip_step]


def test_clips_of_long_and_short_videos_stand_in_one_row():
    reader = MemoryReader(a=counting_video(7), b=counting_video(2), c=counting_video(4) + 100)
    dataset = ClipDataset(reader, num_frames=2, clip_step=2, random_start=False)
    firsts = [int(((item["video"][0, 0, 0, 0] + 1) * 127.5).round()) for item in dataset]
    assert firsts == [0, 2, 4, 0, 100, 102]


def test_pieces_of_a_video_share_no_frame_and_leave_none_out():
    videos = {"v": counting_video(23), "short": counting_video(4), "whole": counting_video(10)}
    reader = PieceReader(MemoryReader({"v": np.arange(23.0)[:, None]}, **videos), 10)
    names = ["v[0000000:]", "v[0000010:]", "short[0000000:]", "whole[0000000:]"]
    assert [reader.name(piece) for piece in range(4)] == names
    assert [reader.num_frames(piece) for piece in range(4)] == [10, 13, 4, 10]
    frames = np.concatenate([reader.read(piece, 0, reader.num_frames(piece)) for piece in range(2)])
    assert np.array_equal(frames, counting_video(23))
    assert reader.read(1, 1, 3, 4)[:, 0, 0, 0].tolist() == [11, 15, 19]
    assert reader.read_vector(1, "x", 1, 3, 4).tolist() == [[11], [15], [19]]
    with pytest.raises(ValueError, match=r"v\[0000010:\], which has 13"):
        reader.read(1, 2, 12)


def test_videos_that_are_too_short_are_padded_if_so_wished():
    reader = MemoryReader({"v": np.arange(3.0)}, v=counting_video(3))
    item = ClipDataset(reader, num_frames=5, pad_short=True, vectors=["x"])[0]
    assert ((item["video"][:, 0, 0, 0] + 1) * 127.5).round().int().tolist() == [0, 1, 2, 2, 2]
    assert item["is_padding"].tolist() == [False, False, False, True, True]
    assert item["x"].tolist() == [[0], [1], [2], [2], [2]]
    strided = ClipDataset(reader, num_frames=3, stride=2, pad_short=True)[0]
    assert ((strided["video"][:, 0, 0, 0] + 1) * 127.5).round().int().tolist() == [0, 2, 2]
    whole = ClipDataset(reader, num_frames=3, pad_short=True)[0]
    assert not whole["is_padding"].any()


# Sizes


@pytest.mark.parametrize("frame_size", [(6, 6), (12, 4), (5, 16)])
def test_cover_keeps_the_aspect_ratio_and_cuts_the_middle(frame_size):
    video = noise_video(2, size=(12, 16))
    clip = ClipDataset(MemoryReader(v=video), num_frames=2, frame_size=frame_size, resize="cover")[0]["video"]
    factor = max(frame_size[0] / 12, frame_size[1] / 16)
    scaled = (round(12 * factor), round(16 * factor))
    whole = ClipDataset(MemoryReader(v=video), num_frames=2, frame_size=scaled)[0]["video"]
    top, left = ((have - want) // 2 for have, want in zip(scaled, frame_size))
    assert torch.equal(clip, whole[..., top : top + frame_size[0], left : left + frame_size[1]])


def test_a_random_crop_is_anywhere_and_the_same_in_all_frames():
    video = np.broadcast_to(np.arange(30, dtype=np.uint8).reshape(5, 6), (2, 1, 5, 6)).copy()
    dataset = ClipDataset(MemoryReader(v=video), num_frames=2, frame_size=(3, 4), resize="crop", random_crop=True)
    corners = set()
    for epoch in range(200):
        dataset.set_epoch(epoch)
        clip = ((dataset[0]["video"] + 1) * 127.5).round().int()
        assert torch.equal(clip[0], clip[1])
        corner = int(clip[0, 0, 0, 0])
        assert clip[0, 0].tolist() == [[corner + 6 * row + column for column in range(4)] for row in range(3)]
        corners.add((corner // 6, corner % 6))
    assert corners == {(row, column) for row in range(3) for column in range(3)}
    middle = ClipDataset(MemoryReader(v=video), num_frames=2, frame_size=(3, 4), resize="crop")
    assert int(((middle[0]["video"][0, 0, 0, 0] + 1) * 127.5).round()) == 6 + 1


def test_flips_top_to_bottom_are_as_independent_as_left_to_right():
    video = noise_video(1)
    dataset = ClipDataset(MemoryReader(v=video), num_frames=1, random_flip=True, random_vertical_flip=True)
    plain = ClipDataset(MemoryReader(v=video), num_frames=1)[0]["video"]
    counts = dict.fromkeys([(), (-1,), (-2,), (-1, -2)], 0)
    for epoch in range(200):
        dataset.set_epoch(epoch)
        clip = dataset[0]["video"]
        counts[next(axes for axes in counts if torch.equal(clip, plain.flip(axes)))] += 1
    assert min(counts.values()) > 25


# The user's units


def kelvin_video(num_frames=4, size=(6, 8)):
    return 250 + 50 * np.random.RandomState(0).rand(num_frames, 1, *size)


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "int16", "uint16", ">f8"])
def test_values_of_any_type_come_in_their_units(dtype):
    normalizer = FrameNormalizer.from_range(200, 300)
    video = kelvin_video().astype(dtype)
    item = ClipDataset(MemoryReader(v=video), num_frames=4, normalizer=normalizer)[0]["video"]
    torch.testing.assert_close(
        item, torch.from_numpy((video.astype(np.float64) - 250) / 50).float(), atol=1e-6, rtol=0
    )


def test_what_is_not_encoded_is_as_stored_and_encoded_later_to_the_same_bits():
    for video, normalizer in (
        (noise_video(), FrameNormalizer()),
        (kelvin_video(), FrameNormalizer.from_range(200, 300)),
        (noise_video(), FrameNormalizer.from_range(0, 300)),
    ):
        common = {"num_frames": 3, "random_flip": True, "normalizer": normalizer}
        stored = ClipDataset(MemoryReader(v=video), encoded=False, **common)
        ready = ClipDataset(MemoryReader(v=video), **common)
        assert stored[0]["video"].dtype == (torch.uint8 if video.dtype == np.uint8 else torch.float32)
        assert torch.equal(stored.encode(stored[0]["video"]), ready[0]["video"])
        assert torch.equal(ready.encode(ready[0]["video"]), ready[0]["video"])
        small = {**common, "frame_size": (4, 4)}
        stored, ready = (ClipDataset(MemoryReader(v=video), encoded=x, **small) for x in (False, True))
        assert torch.equal(stored.encode(stored[0]["video"]), ready[0]["video"])


def test_missing_values_are_left_out_when_frames_are_scaled():
    video = np.full((1, 1, 4, 4), 280.0)
    video[..., :2] = np.nan  # the left half
    normalizer = FrameNormalizer.from_range(200, 300, nan_fill=200, has_mask_channel=True)
    dataset = ClipDataset(MemoryReader(v=video), num_frames=1, frame_size=(2, 2), normalizer=normalizer)
    assert dataset.frame_shape == (2, 2, 2)
    clip = dataset[0]["video"]
    assert clip[0, 1, :, 0].tolist() == [-1, -1] and clip[0, 1, :, 1].tolist() == [1, 1]
    torch.testing.assert_close(clip[0, 0, :, 1], torch.full((2,), 0.6))  # not pulled down by what is missing
    assert clip[0, 0, :, 0].tolist() == [-1, -1]
    with pytest.raises(ValueError, match="missing values"):
        ClipDataset(MemoryReader(v=video), num_frames=1, normalizer=FrameNormalizer.from_range(200, 300))


def test_images_of_16_bits_are_images_unless_a_range_is_stated():
    counts = np.random.RandomState(0).randint(500, 3500, size=(3, 1, 4, 4)).astype(np.uint16)
    image = ClipDataset(MemoryReader(v=counts), num_frames=3)[0]["video"]
    torch.testing.assert_close(image, torch.from_numpy(counts / 65535.0 * 2 - 1).float(), atol=1e-6, rtol=0)
    field = ClipDataset(MemoryReader(v=counts), num_frames=3, normalizer=FrameNormalizer.from_range(500, 3500))
    torch.testing.assert_close(
        field[0]["video"], torch.from_numpy((counts - 2000.0) / 1500).float(), atol=1e-6, rtol=0
    )


def test_another_unit_than_was_stated_is_noticed():
    with pytest.raises(ValueError, match=r"100% of the values .* outside of \[-50, 50\].*Is it another unit"):
        ClipDataset(MemoryReader(v=kelvin_video()), num_frames=2, normalizer=FrameNormalizer.from_range(-50, 50))


def test_spread_frames_are_as_many_as_asked_for_and_from_all_videos():
    reader = MemoryReader(**{f"v{number}": counting_video(7) + 20 * number for number in range(10)})
    frames = [int(frame[0, 0, 0, 0]) for frame in spread_frames(reader, 35)]
    assert len(frames) == 35 and {frame // 20 for frame in frames} == set(range(10))
    assert len(list(spread_frames(reader))) == 70
    one_each = [int(frame[0, 0, 0, 0]) % 20 for frame in spread_frames(reader, 10)]
    assert len(one_each) == 10 and len(set(one_each)) > 3  # not the first of each


# Vectors beside the frames


def test_vectors_follow_their_frames_into_the_batch():
    vectors = {name: np.arange(20)[:, None] * [1, 100] for name in "ab"}
    reader = MemoryReader(vectors, a=counting_video(20), b=counting_video(20))
    dataset = ClipDataset(reader, num_frames=4, stride=3, vectors=["action"], random_flip=True)
    batch = next(iter(DataLoader(dataset, batch_size=2)))
    frames = ((batch["video"][:, :, 0, 0, 0] + 1) * 127.5).round()
    assert batch["action"].shape == (2, 4, 2) and batch["action"].dtype == torch.float32
    assert torch.equal(batch["action"], torch.stack([frames, 100 * frames], dim=2))


def test_vectors_that_do_not_fit_make_a_video_bad():
    vectors = {"a": np.zeros((5, 2)), "b": np.zeros((5, 3)), "c": np.array([["x"]] * 5)}
    reader = MemoryReader(vectors, **{name: counting_video(5) for name in "abc"})
    with pytest.warns(
        UserWarning, match=r"b \(`action` has 3 entries where those before have 2\); c \(.*must be numbers"
    ):
        assert len(ClipDataset(reader, num_frames=2, vectors=["action"], max_bad_share=0.7)) == 1


# Batches

BATCH_OPTIONS = {
    "bytes": {"encoded": False},
    "images": {},
    "flipped": {"random_flip": True, "random_vertical_flip": True, "encoded": False},
    "cut": {"frame_size": (5, 6), "resize": "crop", "random_crop": True, "random_flip": True},
    "covered": {"frame_size": (5, 5), "resize": "cover", "random_crop": True},
    "stretched": {"frame_size": (4, 6)},
    "grey": {"num_channels": 1, "encoded": False},
    "kelvin": {"normalizer": FrameNormalizer.from_range(0, 300), "clip_step": 2},
    "missing": {
        "normalizer": FrameNormalizer.from_range(0, 300, nan_fill=0, has_mask_channel=True),
        "random_flip": True,
    },
    "vectors": {"vectors": ["x"], "stride": 2},
    "padded": {"num_frames": 9, "pad_short": True, "vectors": ["x"]},
}


@pytest.mark.parametrize("dtype", ["u1", "u2", "f2", "f4", "f8", ">f8"])
@pytest.mark.parametrize("name", BATCH_OPTIONS)
def test_a_batch_is_its_items_stacked_to_the_last_bit(name, dtype):
    vectors = {f"v{number}": np.random.RandomState(number).rand(7 + number, 2) for number in range(4)}
    videos = {video: noise_video(len(rows), seed=number) for number, (video, rows) in enumerate(vectors.items())}
    if dtype != "u1":
        videos = {video: (frames / (255 if "f" in dtype else 1)).astype(dtype) for video, frames in videos.items()}
    if name == "missing" and "f" in dtype:
        videos = {video: np.where(frames < 0.3, np.nan, frames).astype(dtype) for video, frames in videos.items()}
    dataset = ClipDataset(MemoryReader(vectors, **videos), **{"num_frames": 3, **BATCH_OPTIONS[name]})
    samples = [(5, 2), (5, 0), (6, 3), (6, 2)]
    batch, expected = dataset[samples], default_collate([dataset[sample] for sample in samples])
    assert batch.keys() == expected.keys()
    for key, values in expected.items():
        assert batch[key].dtype == values.dtype and torch.equal(batch[key], values)
    dataset.set_epoch(6)
    assert torch.equal(dataset[[np.int64(3), 2 - len(dataset)]]["video"], batch["video"][2:])
    assert torch.equal(dataset[np.uint8(6), np.int32(3)]["video"], batch["video"][2])
    with pytest.raises(IndexError):
        dataset[[0, len(dataset)]]
    with pytest.raises(ValueError, match="`index` must name at least one clip"):
        dataset[[]]


@pytest.mark.parametrize("num_workers", [0, 1, 2])
def test_a_loader_hands_on_whole_batches_of_all_epochs(num_workers):
    dataset = ClipDataset(MemoryReader(**{name: noise_video(9, seed=ord(name)) for name in "abc"}), num_frames=2)
    batches = EpochBatches(len(dataset), 2, seed=1)
    loader = DataLoader(dataset, sampler=batches, batch_size=None, num_workers=num_workers)
    for samples, batch in itertools.islice(zip(batches, loader), 6):
        assert torch.equal(batch["video"], torch.stack([dataset[sample]["video"] for sample in samples]))


def test_a_clip_in_a_batch_that_breaks_is_replaced_as_it_is_alone():
    with pytest.warns(UserWarning, match="b is broken"):
        batch = breaking_dataset(encoded=False)[[0, 1, 2, 3]]
    with pytest.warns(UserWarning, match="b is broken"):
        assert torch.equal(batch["video"][1], breaking_dataset(encoded=False)[1]["video"])


def test_what_fails_now_and_then_is_counted_in_a_batch_as_it_is_alone():
    class FlakyReader(MemoryReader):
        num_reads = 0

        def _read(self, video, window):
            self.num_reads += 1
            if video == 1 and len(window) == 2 and self.num_reads % 2 == 1:
                raise OSError("the server is busy")
            return super()._read(video, window)

    datasets = [ClipDataset(FlakyReader(a=noise_video(), b=noise_video(seed=1)), num_frames=2) for _ in range(2)]
    with pytest.warns(UserWarning, match="b is broken, other clips take its place: the server is busy"):
        for dataset in datasets:
            dataset.reader.num_reads = 0
        batch, alone = datasets[0][[1]]["video"][0], datasets[1][1]["video"]
    assert torch.equal(batch, alone) and [dataset.broken for dataset in datasets] == [["b"], ["b"]]
    assert [dataset.reader.num_reads for dataset in datasets] == [2, 2]


def test_values_that_are_cut_off_are_looked_at_as_well():
    video = noise_video(6) / 255
    video[3:, 0, 0, 0] = np.inf  # a corner, which no crop in the middle sees
    options = {"num_frames": 3, "frame_size": (4, 4), "resize": "crop", "random_start": False, "clip_step": 3}
    with pytest.warns(UserWarning, match="Skipped 1 of 2"):  # the frames that the constructor looks at
        ClipDataset(MemoryReader(a=video, b=noise_video(6) / 255), **options)
    video[5] = 0.5
    video[3] = 0.5
    dataset = ClipDataset(MemoryReader(a=video, b=noise_video(6) / 255), strict=True, **options)
    with pytest.raises(ValueError, match="a holds infinite values"):
        dataset[[1]]


@pytest.mark.parametrize(
    "frames",
    [
        noise_video(1),  # would be repeated
        noise_video(2, size=(4, 4)),  # would be scaled
        noise_video(2, num_channels=2),
        noise_video(2).astype(np.float32),  # would be cut to whole numbers
        noise_video(2)[0],
    ],
)
@pytest.mark.parametrize("options", [{}, {"frame_size": (8, 10)}])
def test_frames_that_are_not_what_the_video_began_with_are_not_bent_into_shape(frames, options):
    class ChangingReader(MemoryReader):
        def _read(self, video, window):
            return frames if len(window) > 1 and video == 1 else super()._read(video, window)

    dataset = ClipDataset(ChangingReader(a=noise_video(), b=noise_video()), num_frames=2, strict=True, **options)
    with pytest.raises(
        ValueError, match="b changes on the way: `reader` returned .* but says that it holds uint8, 3 x"
    ):
        dataset[1]


@pytest.mark.parametrize(
    "frames, kind",
    [
        (noise_video(2).tolist(), "list"),
        (np.ma.masked_greater(noise_video(2), 200), "MaskedArray"),
        (noise_video(2).astype(np.complex64), "complex64"),
        (noise_video(2).astype("U3"), "<U3"),
        (None, "NoneType"),
    ],
)
def test_what_is_no_array_of_numbers_is_named(frames, kind):
    class OddReader(MemoryReader):
        def _read(self, video, window):
            return frames if len(window) > 1 else super()._read(video, window)

    options = {"normalizer": FrameNormalizer.from_range(0, 300), "strict": True}
    dataset = ClipDataset(OddReader(v=noise_video()), num_frames=2, **options)
    for index in (0, [0]):
        with pytest.raises(ValueError, match=f"missing ones as NaN, but returned {kind} for v"):
            dataset[index]


def test_a_reader_may_use_one_buffer_again_and_must_return_arrays():
    class BufferReader(MemoryReader):
        buffer = np.empty((9, 3, 8, 10), np.uint8)

        def _read(self, video, window):
            self.buffer[: len(window)] = super()._read(video, window)
            return self.buffer[: len(window)]

    videos = {name: noise_video(seed=ord(name)) for name in "abc"}
    dataset = ClipDataset(BufferReader(**videos), num_frames=6, encoded=False)
    assert np.array_equal(dataset[[0, 1, 2]]["video"], np.stack(list(videos.values())))

    class ListReader(MemoryReader):
        def _read(self, video, window):
            return super()._read(video, window).tolist()

    with pytest.raises(ValueError, match="ListReader must return frames as `np.ndarray` but returned list for v"):
        ListReader(v=noise_video()).read(0, 0, 1)


def test_missing_values_do_not_hide_that_others_are_no_images():
    video = noise_video().astype(np.float32)
    video[:, :, 0, 0] = np.nan
    with pytest.raises(ValueError, match=r"float32 in \[0, 25\d\], but images must be uint8 or in \[0, 1\]"):
        ClipDataset(MemoryReader(v=video), num_frames=2, normalizer=FrameNormalizer(nan_fill=0.0))


def test_clips_do_not_share_memory_with_the_source():
    video = noise_video(4)
    dataset = ClipDataset(MemoryReader(v=video), num_frames=4, encoded=False)
    dataset[0]["video"].zero_()
    dataset[[0]]["video"].zero_()
    assert np.array_equal(video, noise_video(4))


def test_vectors_that_change_their_length_on_the_way_are_broken():
    class ChangingReader(MemoryReader):
        def _read_vector(self, video, name, window):
            return np.zeros((len(window), 1 if window.start and video else 2))

    dataset = ClipDataset(ChangingReader(a=noise_video(), b=noise_video()), num_frames=2, vectors=["x"], clip_step=2)
    with pytest.warns(UserWarning, match="`x` has 1 entries where those before have 2"):
        dataset[list(range(len(dataset)))]
    assert dataset.broken == ["b"]


# Every clip once


def test_two_workers_see_each_clip_once_an_epoch():
    reader = MemoryReader(**{f"v{number}": counting_video(9) + 10 * number for number in range(11)})
    dataset = ClipDataset(reader, num_frames=3, clip_step=2)
    expected = torch.stack([item["video"] for item in dataset])
    for num_workers in (0, 1, 2):
        batches = list(DataLoader(dataset, batch_size=3, num_workers=num_workers, shuffle=False))
        assert torch.equal(torch.cat([batch["video"] for batch in batches]), expected)
    shuffled = DataLoader(dataset, batch_size=3, num_workers=2, shuffle=True)
    seen = torch.cat([batch["video"] for batch in shuffled])[:, 0, 0, 0, 0].sort().values
    assert torch.equal(seen, expected[:, 0, 0, 0, 0].sort().values)


@pytest.mark.parametrize("index", [(-1, 0), (2**63, 0), (0, 1, 0), (0,)])
def test_an_index_is_an_epoch_and_a_number(index):
    dataset = ClipDataset(MemoryReader(v=noise_video()), num_frames=2)
    for bad in (index, [0, index]):
        with pytest.raises(
            ValueError, match=r"`index` must be a number, or an epoch from 0 to 2\^63 - 1 and a number"
        ):
            dataset[bad]
    with pytest.raises(TypeError):
        dataset[0.5, 0]


def test_a_slice_is_no_index(tmp_path):
    (tmp_path / "video").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "video" / "0.png")
    with pytest.raises(TypeError):
        ClipDataset(open_reader(tmp_path), num_frames=1)[0:1]


@pytest.mark.parametrize("world_size, batch_size", [(1, 3), (2, 2), (3, 4)])
def test_batches_of_all_ranks_go_through_each_epoch_once_and_can_begin_anywhere(world_size, batch_size):
    ranks = [EpochBatches(7, batch_size, rank=rank, world_size=world_size, seed=1) for rank in range(world_size)]
    batches = [list(itertools.islice(rank, 7)) for rank in ranks]  # 7 batches are whole epochs
    samples = [sample for step in zip(*batches) for batch in step for sample in batch]
    for epoch in range(world_size * batch_size):
        items = samples[7 * epoch : 7 * epoch + 7]
        assert sorted(items) == [(epoch, index) for index in range(7)]
    assert samples[:7] != sorted(samples[:7]) or samples[7:14] != sorted(samples[7:14])  # in an order of its own
    later = EpochBatches(7, batch_size, rank=world_size - 1, world_size=world_size, seed=1, first_batch=3)
    assert list(itertools.islice(later, 4)) == batches[-1][3:]
    with pytest.raises(ValueError, match="`rank` must be less than `world_size`"):
        EpochBatches(7, 2, rank=2, world_size=2)
