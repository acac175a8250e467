"""What `inspect_videos` finds, and that the flags it suggests are those that training needs."""

import warnings

import numpy as np
import pytest

from mcvd_diffusers.data import ClipDataset, FrameNormalizer, PieceReader, open_reader, split_videos
from mcvd_diffusers.data.inspection import inspect_videos, sample_clips, short_reason, training_flags
from mcvd_diffusers.data.reader import spread_over
from mcvd_diffusers.visualization import MISSING_COLOR, data_sheet
from memory_reader import BreakingReader, MemoryReader, counting_video, noise_video
from video_fixtures import level_frames, write_frames


def kelvin(num_frames=50, channels=1, missing=False, seed=0):
    field = np.random.RandomState(seed).normal(280, 10, (num_frames, channels, 6, 8)).astype(np.float32)
    if missing:
        field[:, :, :2, :2] = np.nan
    return field


def flags_of(reader, **options):
    flags, _ = training_flags(reader, inspect_videos(reader, **{"num_frames": 8, **options}))
    return " ".join(flags)


def test_lengths_sizes_and_values_are_those_of_the_videos():
    a, b = noise_video(9, 3, (8, 10), seed=0), noise_video(6, 3, (4, 6), seed=1)
    found = inspect_videos(MemoryReader(a=a, b=b), num_frames=4)
    assert [(info.num_frames, info.height, info.width) for info in found.infos] == [(9, 8, 10), (6, 4, 6)]
    (values,) = found.values
    pixels = [np.concatenate([a[:, c].ravel(), b[:, c].ravel()]).astype(float) for c in range(3)]
    assert values.num_frames == 15 and values.nan_share == 0
    assert values.low == [x.min() for x in pixels] and values.high == [x.max() for x in pixels]
    assert np.allclose(values.mean, [x.mean() for x in pixels]) and np.allclose(values.std, [x.std() for x in pixels])


def test_missing_and_infinite_values_are_counted_apart():
    video = kelvin(10, missing=True)
    video[3, 0, 5, 5] = np.inf
    reader = MemoryReader(a=video)
    found = inspect_videos(reader, num_frames=4)
    assert found.values[0].nan_share == pytest.approx(4 / 48) and found.values[0].num_infinite == 1
    assert any("Infinite values" in note for note in training_flags(reader, found).notes)


def test_kinds_of_frames_are_measured_apart():
    found = inspect_videos(MemoryReader(grey=noise_video(5, 1), field=kelvin(7), rgb=noise_video(4, 3)), num_frames=2)
    kinds = [(values.num_channels, values.dtype, values.num_frames) for values in found.values]
    assert kinds == [(1, "float32", 7), (1, "uint8", 5), (3, "uint8", 4)]
    assert found.values[1].high[0] <= 255 < found.values[0].high[0]


@pytest.mark.parametrize("lengths", [[30] * 100, [7, 0, 1, 400, 2], [1], [0, 0], [3] * 11])
@pytest.mark.parametrize("count", [0, 1, 10, 100, 10**6])
def test_as_many_frames_are_looked_at_as_asked_for_and_all_exist(lengths, count):
    ranges = spread_over(lengths, count)
    assert sum(map(len, ranges)) == min(count or 10**9, sum(lengths))
    assert all(0 <= frame < length for frames, length in zip(ranges, lengths) for frame in frames)


def test_frames_that_are_looked_at_are_not_all_first_frames():
    places = [frames[0] for frames in spread_over([30] * 100, 100)]
    assert np.histogram(places, bins=5, range=(0, 30))[0].min() >= 15  # 20 each, if they were perfectly even


def test_a_video_that_breaks_inside_is_damaged_and_one_that_does_not_open_is_unreadable():
    videos = {name: counting_video(20) for name in ("good", "first", "last", "middle")}

    class Reader(BreakingReader):
        def _read(self, video, frames):
            if self.name(video) == "middle" and 7 in frames:
                raise OSError("a hole")
            return super()._read(video, frames)

    reader = Reader({"first": 0, "last": 19}, **videos)
    found = inspect_videos(reader, num_frames=4, max_value_frames=5)  # sees the ends, whatever it measures
    assert list(found.unreadable) == ["first"] and "last" in found.damaged
    found = inspect_videos(reader, num_frames=4, max_value_frames=0)
    assert found.damaged["middle"] == "frame 7: a hole" and list(found.damaged) == ["last", "middle"]
    assert found.values[0].num_frames == 20 + 19 + 19  # what can be read is still measured
    assert found.infos[1] is None and len(found.readable) == 3


def test_a_frame_of_another_size_or_type_is_damage(tmp_path):
    write_frames(tmp_path / "whole", level_frames(6))
    folder = write_frames(tmp_path / "mixed", level_frames(6))
    write_frames(tmp_path / "small", level_frames(1, (8, 8)))
    (tmp_path / "small" / "frame_0.png").replace(folder / "frame_3.png")
    (tmp_path / "small").rmdir()
    found = inspect_videos(open_reader(tmp_path), num_frames=2)
    assert list(found.damaged) == ["mixed"] and "frame 3: frames (C, H, W) must be uint8 of" in found.damaged["mixed"]


@pytest.mark.parametrize("stride,clip_step", [(1, None), (1, 3), (2, 4), (3, 1)])
def test_clips_of_an_epoch_are_those_of_the_data_set(stride, clip_step):
    reader = MemoryReader(a=noise_video(9), b=noise_video(30), c=noise_video(2))
    found = inspect_videos(reader, num_frames=3, stride=stride)
    with warnings.catch_warnings(action="ignore"):
        dataset = ClipDataset(reader, num_frames=3, stride=stride, clip_step=clip_step)
    assert found.clips_per_epoch(clip_step) == len(dataset)
    assert sum(count == 0 for count in found.num_starts) == len(dataset.skipped) == 1


def test_images_need_no_flags():
    videos = {f"v{number:02}": noise_video(10, seed=number) for number in range(40)}
    assert flags_of(MemoryReader(**videos)) == ""


def test_flags_say_units_missing_values_and_sizes():
    videos = {f"v{number:02}": kelvin(10, seed=number, missing=True) for number in range(40)}
    mean = np.nanmean(np.stack(list(videos.values())))
    assert flags_of(MemoryReader(**videos)) == f"--normalization min_max --nan_fill {mean:.4g} --nan_mask_channel"
    cold = {name: video - 300 for name, video in videos.items()}
    assert "--nan_fill -2" in flags_of(MemoryReader(**cold))
    shares = {name: ((video - 240) / 80).clip(0.01, 1) for name, video in videos.items()}
    shares_mean = np.nanmean(np.stack(list(shares.values())))
    assert flags_of(MemoryReader(**shares)) == f"--nan_fill {shares_mean:.4g} --nan_mask_channel"
    rain = {name: (video - 280).clip(0) for name, video in videos.items()}
    assert flags_of(MemoryReader(**rain)) == "--normalization min_max --nan_fill 0 --nan_mask_channel"
    images = {f"v{number:02}": noise_video(10, size=(8, 10) if number % 3 else (6, 6)) for number in range(40)}
    assert flags_of(MemoryReader(**images)) == "--resolution 8 10 --resize cover"
    images |= {f"w{number:02}": noise_video(10, 1) for number in range(40)}
    assert flags_of(MemoryReader(**images), stride=1).startswith("--in_channels 3 --resolution 8 10")
    grey = {f"v{number:02}": noise_video(10, 1, seed=number).repeat(3, axis=1) for number in range(40)}
    assert flags_of(MemoryReader(**grey)) == "--in_channels 1"


def test_suggested_flags_make_a_data_set_of_one_long_field():
    reader = MemoryReader(field=kelvin(400, missing=True))
    with pytest.raises(ValueError):  # as it is, it cannot be trained on
        ClipDataset(reader, num_frames=8)
    words = flags_of(reader).replace(" --nan_mask_channel", "").split()
    given = {words[i].lstrip("-"): words[i + 1] for i in range(0, len(words), 2)}
    pieces = PieceReader(reader, int(given["split_frames"]))
    train, validation, _ = split_videos(pieces, validation=float(given.get("validation_fraction", 0.1)))
    normalizer = FrameNormalizer("min_max", (200.0,), (400.0,), nan_fill=float(given["nan_fill"]))
    common = {"num_frames": 8, "normalizer": normalizer}
    assert given["normalization"] == "min_max" and len(ClipDataset(validation, **common)) >= 1
    assert len(ClipDataset(train, clip_step=int(given["clip_step"]), **common)) > len(train)


def test_few_videos_can_be_split_with_the_suggested_fraction():
    for number in range(2, 12):
        reader = MemoryReader(**{f"clip_{n}": noise_video(40, seed=n) for n in range(number)})
        words = flags_of(reader).split()
        fraction = float(words[words.index("--validation_fraction") + 1]) if "--validation_fraction" in words else 0.1
        notes = training_flags(reader, inspect_videos(reader, num_frames=8)).notes
        if not any("--validation_names" in note for note in notes):
            split_videos(reader, validation=fraction)  # raises if a side is empty
        assert "--clip_step" in words


def test_what_cannot_be_trained_on_gets_no_flags():
    reader = MemoryReader(a=noise_video(5), b=noise_video(7))
    flags, notes = training_flags(reader, inspect_videos(reader, num_frames=8))
    assert flags is None and "the longest gives 7" in notes[0]
    reader = MemoryReader(a=noise_video(20), b=noise_video(7), c=noise_video(7))
    flags, notes = training_flags(reader, inspect_videos(reader, num_frames=8))
    assert "2 of 3 videos can not be used" in notes[0] and "--max_bad_share" in flags
    reader = BreakingReader({"a": 0}, a=noise_video(20))
    assert training_flags(reader, inspect_videos(reader, num_frames=8)).flags is None


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "value,note", [(7.0, "nothing to learn"), (np.nan, "no finite value"), (1e300, "single precision")]
)
def test_values_that_nothing_can_be_learnt_from_get_no_flags(value, note):
    video = np.full((40, 1, 6, 8), value)
    if value == 1e300:
        video[::2] = -1e300
    reader = MemoryReader(a=video, b=video)
    found = inspect_videos(reader, num_frames=8)
    flags, notes = training_flags(reader, found)
    assert flags is None and note in notes[0]
    data_sheet([("a", video[:2], found.values[0].low, found.values[0].high)])


def test_dim_images_and_odd_shapes_are_noted():
    videos = {f"v{number:02}": noise_video(20, 1, seed=number) // 4 for number in range(40)}
    reader = MemoryReader(**videos)
    flags, notes = training_flags(reader, inspect_videos(reader, num_frames=8))
    assert flags == ["--normalization", "min_max"] and "less than half of the 0 to 255" in notes[0]
    reader = MemoryReader(a=noise_video(40, 65, size=(2, 8)))
    notes = " ".join(training_flags(reader, inspect_videos(reader, num_frames=8)).notes)
    assert "2 pixels high or wide: is --axes right?" in notes and "65 channels: is --axes right?" in notes


def test_vectors_are_looked_for_in_every_video():
    videos = {name: noise_video(20, seed=number) for number, name in enumerate("abcd")}
    vectors = {"a": np.zeros((20, 5)), "b": np.zeros((20, 5)), "c": np.zeros((20, 4))}

    class Reader(MemoryReader):
        def _read_vector(self, video, name, frames):
            if self.name(video) not in self.vectors:
                raise ValueError(f"no {name}")
            return super()._read_vector(video, name, frames)

    found = inspect_videos(Reader(vectors, **videos), num_frames=8, vectors=["action"])
    assert found.vectors == {"action": 5} and list(found.unreadable) == ["c", "d"]
    assert "4 numbers a frame where videos before have 5" in found.unreadable["c"]
    assert training_flags(Reader(vectors, **videos), found).flags[:2] == ["--vectors", "action"]


def test_reasons_do_not_repeat_the_path():
    for name, reason, expected in (
        ("a.gif", "/d/a.gif can not be read: /d/a.gif can not be read: cut", "cut"),
        (
            "b.mp4",
            "/d/b.mp4 can not be read: [Errno 1094995529] Invalid data found when processing input: '/d/b.mp4'",
            "damaged or cut off (Invalid data found when processing input)",
        ),
        ("c", "/my d/c/frame_9.png can not be read: broken", "frame_9.png can not be read: broken"),
        ("e.gif", "e.gif", "e.gif"),
    ):
        assert short_reason(name, reason) == expected


def test_sampled_clips_are_spread_and_are_the_stored_frames():
    reader = BreakingReader({"v03": 2}, **{f"v{number:02}": counting_video(20 + number) for number in range(30)})
    found = inspect_videos(reader, num_frames=5, stride=2, max_value_frames=10)
    clips = list(sample_clips(reader, found, num_videos=4, num_frames=3))
    assert [clip.name for clip in clips] == ["v00", "v10", "v19", "v29"]
    assert all(clip.numbers == [0, 4, 8] and clip.frames[:, 0, 0, 0].tolist() == [0, 4, 8] for clip in clips)
    (_, _, _, broken) = list(sample_clips(reader, found, num_videos=30, num_frames=3))[:4]
    assert broken.numbers == [0]


def test_numbers_out_of_range_are_refused():
    for wrong in ({"num_frames": 0}, {"stride": 0}, {"clip_step": 0}, {"max_value_frames": -1}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            inspect_videos(MemoryReader(a=noise_video()), **{"num_frames": 2, **wrong})


def test_a_sheet_shows_the_scale_and_what_is_missing():
    frames = np.linspace(200, 300, 16 * 16, dtype=np.float32).reshape(1, 1, 16, 16)
    frames[0, 0, 8, 8] = np.nan
    # Larger than a frame is shown: the pixels can be counted.
    sheet = np.asarray(data_sheet([("field", frames, [200.0], [300.0])], frame_height=16))
    body = sheet[22 : 22 + 16, 6 : 6 + 16]
    assert tuple(body[0, 0]) == (0, 0, 0) and tuple(body[-1, -1]) == (255, 255, 255)
    assert tuple(body[8, 8]) == MISSING_COLOR and (body == MISSING_COLOR).all(axis=-1).sum() == 1
    colours = np.zeros((1, 3, 16, 16), np.uint8)
    colours[:, 2] = 255
    assert tuple(np.asarray(data_sheet([("blue", colours, [0] * 3, [255] * 3)]))[60, 60]) == (0, 0, 255)
    for wrong in ([], [("x", frames[0], [0], [1])]):
        with pytest.raises(ValueError, match="rows"):
            data_sheet(wrong)


def test_a_sheet_takes_any_sizes_names_and_values():
    rows = [
        ("x" * 1000, np.zeros((8, 3, 200, 500), np.uint8), [0] * 3, [255] * 3),
        ("\x1b\n東京", np.full((3, 5, 1, 1), np.inf), [np.nan] * 5, [np.nan] * 5),
        ("same", np.full((1, 1, 2, 300), 7), [7], [7]),
    ]
    sheet = data_sheet(rows, caption="units")
    assert sheet.mode == "RGB" and sheet.width < 8 * 220 and sheet.height < 500
