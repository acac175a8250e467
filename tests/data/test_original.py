"""The original's HDF5 files are read, split and cut into clips as the original did, and nothing in them is trusted."""

import os
import pickle
import sys
import tarfile
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
import torch.multiprocessing  # teaches ForkingPickler to share tensors, as a DataLoader does
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader

from mcvd_diffusers.data import (
    ClipDataset,
    HDF5Reader,
    OriginalClips,
    SubsetReader,
    VideoFileReader,
    open_reader,
    published_split,
    split_videos,
)


torch.set_num_threads(1)

# Small data sets that the original's own converters wrote, and the items that the original took from them.
GOLDEN = Path(__file__).parents[1] / "reference" / "mcvd" / "data"
CASES = {
    # name: (data set, its side, arguments)
    "bair_train": ("BAIR_h5", 0, {"num_frames": 10, "random_flip": True}),
    "bair_test": ("BAIR_h5", 1, {"num_frames": 30}),
    "bair_test_total8": ("BAIR_h5", 1, {"num_frames": 16, "num_clips": 8}),
    "kth_train": ("KTH64_h5", 0, {"num_frames": 10, "random_flip": True}),
    "kth_test": ("KTH64_h5", 1, {"num_frames": 10, "num_clips": 256}),
    "ucf_train": ("UCF101_h5", 0, {"num_frames": 8, "random_flip": True, "crop_width": 64, "random_crop": True}),
    "ucf_test": ("UCF101_h5", 1, {"num_frames": 8, "num_clips": 256, "crop_width": 64}),
}


@pytest.fixture(scope="module")
def golden_data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("golden")
    with tarfile.open(GOLDEN / "hdf5.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.fixture(scope="module")
def expected() -> dict[str, np.ndarray]:
    with np.load(GOLDEN / "expected.npz") as arrays:
        return dict(arrays)


def noise_video(num_frames: int, shape: tuple[int, ...] = (4, 6, 3), seed: int = 0) -> np.ndarray:
    return np.random.RandomState(seed).randint(256, size=(num_frames, *shape)).astype(np.uint8)


def counting_video(num_frames: int, shape: tuple[int, ...] = (2, 2)) -> np.ndarray:
    """Frames whose pixels are their number."""
    return np.stack([np.full(shape, frame, np.uint8) for frame in range(num_frames)])


def write_shard(file: Path, videos: list[np.ndarray], **more: int | list[int]) -> Path:
    """A file as the original's converters write it, with more numbers for the file or for each video."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(file, "w") as root:
        root.create_group("len")
        root.create_group("videos")
        for number, frames in enumerate(videos):
            root["len"].create_dataset(str(number), data=len(frames))
            root.create_group(str(number))
            for index, frame in enumerate(frames):
                root[str(number)].create_dataset(str(index), data=frame, compression="lzf")
        for name, values in more.items():
            if isinstance(values, int):
                root.create_dataset(name, data=values)
            else:
                for number, value in enumerate(values):
                    root.create_dataset(f"{name}/{number}", data=value, dtype=np.uint8)
    return file


def names(reader) -> list[str]:
    return [reader.name(video) for video in range(len(reader))]


def frame_numbers(video: torch.Tensor) -> list[int]:
    """Which frames of `counting_video` these are."""
    return ((video[:, 0, 0, 0] + 1) * 127.5).round().int().tolist()


def counting_clips(folder: Path, num_video_frames: int = 7, **kwargs) -> OriginalClips:
    file = write_shard(folder / "a.hdf5", [counting_video(num_video_frames)])
    return OriginalClips(HDF5Reader(file), **({"num_frames": 3} | kwargs))


# Parity with the original


@pytest.mark.parametrize("case", CASES)
def test_against_mcvd_clips(golden_data, expected, case):
    folder, side, kwargs = CASES[case]
    clips = OriginalClips(published_split(golden_data / folder)[side], **kwargs)
    items = list(clips.in_sequence(expected[f"{case}_idx"], np.random.RandomState(0)))
    # uint8 / 255 as ToTensor makes it, 2 x - 1 as the original's training and sampling make it.
    pixels = torch.from_numpy(expected[case]).float().div(255)
    assert torch.equal(torch.stack([item["video"] for item in items]), 2 * pixels - 1)
    assert items[0]["video"].dtype == torch.float32


@pytest.mark.parametrize("case", [case for case in CASES if not case.startswith("bair")])
def test_against_mcvd_classes_of_the_videos(golden_data, expected, case):
    folder, side, kwargs = CASES[case]
    clips = OriginalClips(published_split(golden_data / folder)[side], **kwargs)
    numbers = [clips.reader.name(clips.video_of(int(index))).split("/")[1] for index in expected[f"{case}_idx"]]
    with h5py.File(golden_data / folder / "shard_0001.hdf5") as root:
        assert [root["target"][number][()] for number in numbers] == expected[f"{case}_target"].tolist()


def test_every_golden_array_is_compared(expected):
    compared = {case + suffix for case in CASES for suffix in ("", "_idx", "_target")}
    assert set(expected) == compared
    for case in CASES:  # BAIR has no classes: the original returns 1 for all
        assert not case.startswith("bair") or set(expected[f"{case}_target"]) == {1}


def test_the_splits_are_those_of_the_original(golden_data):
    train, test = published_split(golden_data / "BAIR_h5")
    assert names(train) == [f"shard_0001/{i}" for i in range(3)] + ["shard_0002/0", "shard_0002/1"]
    assert names(test) == [f"shard_0001/{i}" for i in range(4)]
    train, test = published_split(golden_data / "KTH64_h5")
    assert names(train) == [f"shard_0001/{i}" for i in range(20)]
    assert names(test) == [f"shard_0001/{i}" for i in range(20, 25)]
    for path in ("UCF101_h5", "UCF101_h5/shard_0001.hdf5"):
        train, test = published_split(golden_data / path)
        assert names(train) == [f"shard_0001/{i}" for i in range(4)]
        assert names(test) == ["shard_0001/4", "shard_0001/14", "shard_0001/24"]


# Reading


@pytest.mark.parametrize("shape, channels", [((4, 6), 1), ((4, 6, 3), 3)])
def test_frames_are_read_as_they_were_written(tmp_path, shape, channels):
    videos = [noise_video(12, shape, seed) for seed in range(3)]
    write_shard(tmp_path / "shard_0001.hdf5", videos[:2])
    write_shard(tmp_path / "shard_0002.h5", videos[2:])
    reader = HDF5Reader(tmp_path)
    assert names(reader) == ["shard_0001/0", "shard_0001/1", "shard_0002/0"]
    for video, frames in enumerate(videos):
        frames = frames.reshape(12, 4, 6, channels).transpose(0, 3, 1, 2)
        assert reader.num_frames(video) == 12
        everything = reader.read(video, 0, 12)
        assert everything.dtype == np.uint8
        np.testing.assert_array_equal(everything, frames)
        np.testing.assert_array_equal(reader.read(video, 1, 4, 3), frames[1:12:3])


def test_files_are_sorted_as_text_as_the_original_does(tmp_path):
    for name in ("b10.h5", "b9.hdf5", "B1.HDF5", ".hidden.h5", "notes.txt", "sub/c.h5"):
        write_shard(tmp_path / name, [noise_video(1)])
    assert names(HDF5Reader(tmp_path)) == ["B1/0", "b10/0", "b9/0"]


def test_a_file_may_hold_no_videos(tmp_path):
    write_shard(tmp_path / "a.h5", [])
    assert len(HDF5Reader(tmp_path)) == 0
    with pytest.raises(ValueError, match=r"`reader` must hold a video but it is empty"):
        OriginalClips(HDF5Reader(tmp_path), num_frames=1)


@pytest.mark.parametrize("window", [(-1, 1, 1), (0, 0, 1), (0, 1, 0), (0, 8, 1), (7, 1, 1), (1, 4, 2), (0, 10**12, 1)])
def test_a_window_that_leaves_the_video_is_refused(tmp_path, window):
    reader = HDF5Reader(write_shard(tmp_path / "a.h5", [noise_video(7)]))
    with pytest.raises(ValueError, match=r"frames of a/0, which has 7, but got start"):
        reader.read(0, *window)


def test_no_file_stays_open(tmp_path):
    reader = HDF5Reader(write_shard(tmp_path / "a.h5", [noise_video(3)]))
    reader.read(0, 0, 1)
    with h5py.File(tmp_path / "a.h5", "r+") as root:  # HDF5 refuses to write to what is still open for reading
        del root["0/2"]
    with pytest.raises(ValueError, match=r"frames in `0`"):
        reader.read(0, 0, 1)


def test_a_reader_can_be_pickled(tmp_path):
    reader = HDF5Reader(write_shard(tmp_path / "a.h5", [noise_video(3), noise_video(4)]))
    copied = pickle.loads(pickle.dumps(reader))
    assert names(copied) == names(reader) and copied.num_frames(1) == 4
    np.testing.assert_array_equal(copied.read(1, 1, 2), reader.read(1, 1, 2))


def test_missing_h5py_names_the_extra(tmp_path, monkeypatch):
    write_shard(tmp_path / "train" / "a.h5", [noise_video(3)])
    write_shard(tmp_path / "test" / "a.h5", [noise_video(3)])
    monkeypatch.setitem(sys.modules, "h5py", None)
    for open_path, path in ((HDF5Reader, "train"), (open_reader, "train"), (published_split, ".")):
        with pytest.raises(ImportError, match=r'pip install "mcvd-diffusers\[hdf5\]"'):
            open_path(tmp_path / path)
    Image.new("L", (4, 4)).save(tmp_path / "clip.gif")
    assert published_split(tmp_path / "clip.gif") is None  # what is no HDF5 does not need it


# Choosing a reader


def test_open_reader_recognises_hdf5(tmp_path):
    file = write_shard(tmp_path / "shard_0001.hdf5", [noise_video(3)])
    (tmp_path / "persons.pkl").touch()
    for path in (file, tmp_path, str(tmp_path)):
        reader = open_reader(path)
        assert isinstance(reader, HDF5Reader) and names(reader) == ["shard_0001/0"]
    Image.new("L", (4, 4)).save(tmp_path / "clip.gif")
    with pytest.raises(ValueError, match=r"1 video files and 1 HDF5 files\. Move one"):
        open_reader(tmp_path)
    assert len(VideoFileReader(tmp_path)) == len(HDF5Reader(tmp_path)) == 1


def test_a_path_without_hdf5_says_what_it_holds(tmp_path):
    with pytest.raises(ValueError, match=r"must exist but .*nowhere does not"):
        HDF5Reader(tmp_path / "nowhere")
    (tmp_path / "notes.txt").touch()
    for path in (tmp_path, tmp_path / "notes.txt"):
        with pytest.raises(ValueError, match=r"a folder of HDF5 files \(\.hdf5, \.h5\).*holds only files .*1 \.txt"):
            HDF5Reader(path)
    write_shard(tmp_path / "train" / "a.h5", [noise_video(3)])
    for open_path in (HDF5Reader, open_reader):
        with pytest.raises(ValueError, match=r"them only in other folders: .*train\. Pass the .*`published_split`"):
            open_path(tmp_path)


def test_files_whose_videos_would_share_their_names_are_refused(tmp_path):
    for name in ("a.h5", "a.hdf5"):
        write_shard(tmp_path / name, [noise_video(3)])
    with pytest.raises(ValueError, match=r"differ in their suffix only but .* does: \['a'\]"):
        HDF5Reader(tmp_path)


# Splits


def test_kth_is_ordered_by_person_and_within_a_person_by_file(tmp_path):
    videos = [noise_video(2, (2, 2))] * 4
    write_shard(tmp_path / "a.h5", videos, person=[21, 3, 1, 3])
    write_shard(tmp_path / "b.h5", videos, person=[25, 1, 20, 21])
    train, test = published_split(tmp_path)
    assert names(train) == ["a/2", "b/1", "a/1", "a/3", "b/2"]
    assert names(test) == ["a/0", "b/3", "b/0"]


def test_pickles_beside_the_file_are_not_opened(tmp_path):
    class Payload:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "executed"),)

    write_shard(tmp_path / "shard_0001.hdf5", [noise_video(2, (2, 2))] * 2, person=[1, 21])
    (tmp_path / "persons.pkl").write_bytes(pickle.dumps(Payload()))
    (tmp_path / "targets.pkl").touch()  # empty, as users report of their persons.pkl
    assert [names(side) for side in published_split(tmp_path)] == [["shard_0001/0"], ["shard_0001/1"]]
    assert not (tmp_path / "executed").exists()


def test_every_tenth_test_video_of_ucf101_is_taken_and_the_remainder_dropped(tmp_path):
    write_shard(tmp_path / "a.h5", [noise_video(1, (2, 2))] * 30, num_train=2, num_test=27)
    train, test = published_split(tmp_path)
    assert names(train) == ["a/0", "a/1"] and names(test) == ["a/2", "a/12"]


def test_data_without_a_published_split_give_none(tmp_path):
    write_shard(tmp_path / "own" / "a.h5", [noise_video(2)] * 20)
    assert published_split(tmp_path / "own") is published_split(tmp_path / "own" / "a.h5") is None
    (tmp_path / "frames" / "train").mkdir(parents=True)
    Image.new("L", (4, 4)).save(tmp_path / "frames" / "train" / "0.png")
    assert published_split(tmp_path / "frames") is None
    with pytest.raises(ValueError, match=r"`path` must exist"):
        published_split(tmp_path / "nowhere")
    # What has no split gets one by name.
    assert sum(map(len, split_videos(open_reader(tmp_path / "own"), validation=0.5))) == 20


@pytest.mark.parametrize(
    "more, message",
    [
        ({"person": [1, 26]}, r"a\.h5: `person` must be KTH's persons 1 to 25 but is \[26\]"),
        ({"person": [1, 2]}, r"`person` must be persons of 1 to 20 .* but is 2 and 0 videos"),
        ({"person": [1]}, r"`person` must be a number for each of the 2 videos but is 1 of them"),
        ({"person": 1}, r"`person` must be a group but is a dataset"),
        ({"num_train": 1}, r"`num_test` must be a data set but is missing"),
        ({"num_train": 1, "num_test": 10}, r"at least 1 and 10 of the 2 videos but is 1 and 10"),
        ({"num_train": 1, "num_test": 1}, r"at least 1 and 10 of the 2 videos but is 1 and 1"),
        ({"num_train": 0, "num_test": 10}, r"at least 1 and 10 of the 2 videos but is 0 and 10"),
        ({"num_train": -5, "num_test": 1}, r"`num_train` must be one whole number from 0 on but is -5"),
    ],
)
def test_a_split_that_can_not_be_is_named(tmp_path, more, message):
    write_shard(tmp_path / "a.h5", [noise_video(2)] * 2, **more)
    with pytest.raises(ValueError, match=message):
        published_split(tmp_path)


# Clips


@given(num_videos=st.integers(1, 400), num_clips=st.integers(1, 400))
def test_clips_are_spread_over_the_videos_in_order(num_videos, num_clips):
    class Lengths:
        def __len__(self):
            return num_videos

        def num_frames(self, video):
            return 1

        def read(self, video, start, count, stride=1):
            return np.zeros((count, 1, 2, 2), np.uint8)

    clips = OriginalClips(Lengths(), num_frames=1, num_clips=num_clips)
    videos = [clips.video_of(index) for index in range(num_clips)]
    assert videos == sorted(videos) and videos[0] == 0
    if num_clips > 1:
        assert videos[-1] == num_videos - 1
    if num_clips == num_videos:
        assert videos == list(range(num_videos))


def test_halves_are_rounded_to_the_even_video(tmp_path):
    reader = HDF5Reader(write_shard(tmp_path / "a.h5", [counting_video(1)] * 3))
    clips = OriginalClips(reader, num_frames=1, num_clips=5)
    assert [clips.video_of(index) for index in range(5)] == [0, 0, 1, 2, 2]


def test_every_start_is_drawn_but_the_last(tmp_path):
    clips = counting_clips(tmp_path)  # 7 frames, clips of 3
    drawn = []
    for epoch in range(100):
        clips.set_epoch(epoch)
        drawn.append(tuple(frame_numbers(clips[0]["video"])))
    assert set(drawn) == {(0, 1, 2), (1, 2, 3), (2, 3, 4), (3, 4, 5)}
    # 25 each on average; 5 is more than four standard deviations away.
    assert all(drawn.count(clip) > 5 for clip in set(drawn))


def test_a_video_as_long_as_the_clip_costs_no_random_number(tmp_path):
    clips = counting_clips(tmp_path, 3)
    rng = np.random.RandomState(0)
    assert [frame_numbers(item["video"]) for item in clips.in_sequence([0, 0], rng)] == [[0, 1, 2]] * 2
    assert rng.randint(2**31) == np.random.RandomState(0).randint(2**31)


def test_whole_clips_are_mirrored_and_half_of_them(tmp_path):
    frames = noise_video(3)
    reader = HDF5Reader(write_shard(tmp_path / "a.h5", [frames]))
    plain = OriginalClips(reader, num_frames=3)[0]["video"]
    flipping = OriginalClips(reader, num_frames=3, random_flip=True)
    rng = np.random.RandomState(0)
    is_flipped = []
    for item in flipping.in_sequence([0] * 100, rng):
        is_flipped.append(torch.equal(item["video"], plain.flip(-1)))
        assert is_flipped[-1] or torch.equal(item["video"], plain)
    assert is_flipped == (np.random.RandomState(0).randint(2, size=100) == 0).tolist()


def test_columns_are_cut_anywhere_for_training_and_in_the_middle_for_testing(tmp_path):
    columns = np.broadcast_to(np.arange(85, dtype=np.uint8)[None, None, :, None], (1, 64, 85, 3))
    reader = HDF5Reader(write_shard(tmp_path / "a.h5", [columns]))

    def first_column(clips):
        video = clips[0]["video"]
        assert video.shape == (1, 3, 64, 64)
        return round((float(video[0, 0, 0, 0]) + 1) * 127.5)

    assert first_column(OriginalClips(reader, num_frames=1, crop_width=64)) == 10
    clips = OriginalClips(reader, num_frames=1, crop_width=64, random_crop=True)
    drawn = set()
    for epoch in range(200):
        clips.set_epoch(epoch)
        drawn.add(first_column(clips))
    assert drawn == set(range(21))  # as the first frame, the last first column is never used
    whole = OriginalClips(reader, num_frames=1)[0]["video"]
    assert torch.equal(OriginalClips(reader, num_frames=1, crop_width=85, random_crop=True)[0]["video"], whole)


def test_all_levels_of_grey_become_exactly_two_x_minus_one(tmp_path):
    levels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16)
    reader = HDF5Reader(write_shard(tmp_path / "a.h5", [levels]))
    video = OriginalClips(reader, num_frames=1)[0]["video"]
    assert torch.equal(video[0, 0], 2 * torch.from_numpy(levels[0]).float().div(255) - 1)
    assert video.min() == -1 and video.max() == 1


def test_items_are_a_function_of_seed_epoch_and_index(tmp_path):
    file = write_shard(tmp_path / "a.h5", [counting_video(200)] * 4)

    def items(seed, epoch):
        clips = OriginalClips(HDF5Reader(file), num_frames=2, seed=seed)
        clips.set_epoch(epoch)
        backwards = [clips[index]["video"] for index in reversed(range(4))]
        return torch.stack(backwards[::-1])

    assert torch.equal(items(0, 0), items(0, 0))
    starts = {tuple(items(*key)[:, 0, 0, 0, 0].tolist()) for key in ((0, 0), (0, 1), (1, 0))}
    assert len(starts) == 3 and all(len(set(of_one_epoch)) > 1 for of_one_epoch in starts)


def test_clips_do_not_depend_on_workers(golden_data):
    folder, side, kwargs = CASES["ucf_train"]
    clips = OriginalClips(published_split(golden_data / folder)[side], **kwargs)
    in_worker = pickle.loads(ForkingPickler.dumps(clips))  # what a worker that is started by "spawn" receives
    loader = DataLoader(clips, batch_size=2, num_workers=2, persistent_workers=True)
    epochs = []
    for epoch in (0, 1):
        clips.set_epoch(epoch)
        assert in_worker.epoch == epoch
        epochs.append(torch.cat([batch["video"] for batch in loader]))
        for other in (clips, in_worker):
            assert torch.equal(epochs[-1], torch.stack([item["video"] for item in other]))
    assert not torch.equal(*epochs)


def test_one_stream_runs_through_a_sequence(tmp_path):
    clips = counting_clips(tmp_path, 200, random_flip=True, num_clips=9)
    together = [item["video"] for item in clips.in_sequence([3, 1, 1], np.random.RandomState(5))]
    rng = np.random.RandomState(5)
    apart = [item["video"] for index in (3, 1, 1) for item in clips.in_sequence([index], rng)]
    assert torch.equal(torch.stack(together), torch.stack(apart)) and not torch.equal(together[1], together[2])
    with pytest.raises(IndexError):
        next(clips.in_sequence([9], rng))


def test_the_global_random_streams_are_left_alone(tmp_path):
    np.random.seed(3)
    before, torch_before = np.random.get_state()[1].copy(), torch.get_rng_state()
    clips = counting_clips(tmp_path, random_flip=True)
    list(clips), list(clips.in_sequence([0], np.random.RandomState(0)))
    np.testing.assert_array_equal(np.random.get_state()[1], before)
    assert torch.equal(torch.get_rng_state(), torch_before)


def test_videos_that_are_too_short_are_named_before_the_first_clip(tmp_path):
    videos = [counting_video(5), counting_video(3), counting_video(2)]
    reader = HDF5Reader(write_shard(tmp_path / "a.h5", videos))
    with pytest.raises(ValueError, match=r"4 does for 2 of 3 videos: a/1 \(3\); a/2 \(2\)\. .*`SubsetReader`"):
        OriginalClips(reader, num_frames=4)
    assert len(OriginalClips(SubsetReader(reader, [0]), num_frames=4)) == 1
    assert len(OriginalClips(reader, num_frames=4, num_clips=1)) == 1  # a video that is not used may be short


@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({"num_frames": 0}, r"`num_frames` must be an integer of at least 1 but got 0"),
        ({"num_clips": 0}, r"`num_clips` must be an integer of at least 1 but got 0"),
        ({"crop_width": 0}, r"`crop_width` must be an integer of at least 1 but got 0"),
        ({"crop_width": 3}, r"`crop_width` must not exceed .* is 3, and those of a/0 are 2 x 2"),
        ({"random_crop": True}, r"`random_crop` must go with a `crop_width`"),
        ({"seed": -1}, r"`seed` must be an integer of at least 0"),
    ],
)
def test_bad_arguments_are_named(tmp_path, kwargs, message):
    with pytest.raises(ValueError, match=message):
        counting_clips(tmp_path, **kwargs)


def test_videos_of_another_width_are_named(tmp_path):
    reader = HDF5Reader(write_shard(tmp_path / "a.h5", [noise_video(2, (4, 6)), noise_video(2, (4, 8))]))
    with pytest.raises(ValueError, match=r"of one width but those of a/1 have 8 columns and those of a/0 6"):
        OriginalClips(reader, num_frames=2)[1]


# Files that are not what they should be


@pytest.mark.parametrize("content", [b"", b"this is no HDF5 " * 100, b"\x89HDF\r\n\x1a\n" + bytes(500)])
def test_a_file_that_is_no_hdf5_is_named(tmp_path, content):
    (tmp_path / "shard_0001.hdf5").write_bytes(content)
    for open_path in (HDF5Reader, published_split):
        with pytest.raises(
            ValueError, match=r"shard_0001\.hdf5 can not be read: it must be an HDF5 file but is .*Copy"
        ):
            open_path(tmp_path)
    with pytest.raises(ValueError, match=r"shard_0001\.hdf5 .*Copy the file again"):
        open_reader(tmp_path)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.99])
def test_a_file_that_was_cut_off_is_named(tmp_path, golden_data, share):
    data = (golden_data / "KTH64_h5" / "shard_0001.hdf5").read_bytes()
    (tmp_path / "cut.hdf5").write_bytes(data[: int(len(data) * share)])
    with pytest.raises(ValueError, match=r"cut\.hdf5 can not be read.*cut off.*Copy the file again"):
        published_split(tmp_path)


def without_lengths(root):
    del root["len"]


def lengths_without_a_group(root):
    del root["len"]
    root["len"] = [3, 3]


def one_length_missing(root):
    del root["len/0"]


def fractional_length(root):
    del root["len/1"]
    root["len/1"] = 3.0


def lengths_in_a_row(root):
    del root["len/1"]
    root["len/1"] = [3, 3]


def worded_length(root):
    del root["len/1"]
    root["len/1"] = "3"


def negative_length(root):
    root["len/1"][()] = -3


def linked_length(root):
    del root["len/1"]
    root["len/1"] = h5py.SoftLink("/len/0")


@pytest.mark.parametrize(
    "damage, message",
    [
        (without_lengths, r"`len` must be a group but is missing"),
        (lengths_without_a_group, r"`len` must be a group but is a dataset"),
        (one_length_missing, r"`len/0` must be a data set but is missing"),
        (fractional_length, r"`len/1` must be one whole number from 0 on but is float64 of shape \(\)"),
        (lengths_in_a_row, r"`len/1` must be one whole number from 0 on but is int64 of shape \(2,\)"),
        (worded_length, r"`len/1` must be one whole number from 0 on but is object"),
        (negative_length, r"`len/1` must be one whole number from 0 on but is -3"),
        (linked_length, r"`len/1` must be a data set in this file but is a link to another place"),
    ],
)
def test_lengths_that_are_none_are_named_when_the_file_is_opened(tmp_path, damage, message):
    file = write_shard(tmp_path / "a.h5", [noise_video(3), noise_video(3)])
    with h5py.File(file, "r+") as root:
        damage(root)
    with pytest.raises(ValueError, match=rf"a\.h5: {message}.* Copy the file again, or convert the data set again"):
        HDF5Reader(file)


def too_few_frames(root):
    del root["1/2"]


def too_many_frames(root):
    root["1/3"] = root["1/2"][()]


def wrong_names_of_frames(root):
    root.move("1/2", "1/02")


def no_video(root):
    del root["1"]


def a_video_that_is_a_data_set(root):
    del root["1"]
    root["1"] = np.zeros((3, 4, 4), np.uint8)


def a_frame_that_is_a_group(root):
    del root["1/2"]
    root.create_group("1/2")


def replaced(**kwargs):
    def damage(root):
        del root["1/2"]
        root["1"].create_dataset("2", **kwargs)

    return damage


def virtual_frame(root):
    del root["1/2"]
    layout = h5py.VirtualLayout((4, 6, 3), np.uint8)
    layout[:] = h5py.VirtualSource("other.h5", "0/0", (4, 6, 3))
    root["1"].create_virtual_dataset("2", layout)


def linked(link):
    def damage(root):
        del root["1/2"]
        root["1/2"] = link

    return damage


@pytest.mark.parametrize(
    "damage, message",
    [
        (too_few_frames, r"`len/1` must be the number of frames in `1`, 2, but is 3"),
        (too_many_frames, r"`len/1` must be the number of frames in `1`, 4, but is 3"),
        (wrong_names_of_frames, r"`1/2` must be a data set but is missing"),
        (no_video, r"`1` must be a group but is missing"),
        (a_video_that_is_a_data_set, r"`1` must be a group but is a dataset"),
        (a_frame_that_is_a_group, r"`1/2` must be a data set but is a group"),
        (replaced(data=np.zeros((4, 6, 3))), r"`1/2` must be a frame .* of uint8 but is float64 of shape \(4, 6, 3\)"),
        (replaced(data=np.zeros((4, 6, 4), np.uint8)), r"must be a frame .* but is uint8 of shape \(4, 6, 4\)"),
        (replaced(data=np.zeros(72, np.uint8)), r"must be a frame .* but is uint8 of shape \(72,\)"),
        (replaced(data=np.zeros((0, 6, 3), np.uint8)), r"must be a frame .* but is uint8 of shape \(0, 6, 3\)"),
        (replaced(data=h5py.Empty(np.uint8)), r"must be a frame .* but is uint8 of shape None"),
        (replaced(data=np.zeros((4, 6), [("a", np.uint8)])), r"must be a frame .* but is \[\('a', 'u1'\)\] of shape"),
        (replaced(shape=(4, 6), dtype=h5py.vlen_dtype(np.uint8)), r"must be a frame .* but is object of shape"),
        # 1 TiB, of which not one byte is there.
        (
            replaced(shape=(2**20, 2**20), dtype=np.uint8),
            r"must be a frame of at most 67108864 bytes but is one of 1099",
        ),
        (
            replaced(shape=(4, 6), dtype=np.uint8, chunks=(2**15, 2**15), maxshape=(None, None)),
            r"must be a frame of at most 67108864 bytes but .* in pieces of \(32768, 32768\)",
        ),
        (replaced(shape=(4, 6, 3), dtype=np.uint8, chunks=True), r"must be a frame but is empty: .* never written"),
        (replaced(data=np.zeros((5, 6, 3), np.uint8)), r"a\.h5/1 holds frames of different shapes"),
        (
            replaced(shape=(4, 6, 3), dtype=np.uint8, external=[("other.h5", 0, 72)]),
            r"`1/2` must be stored in this file but is stored in others",
        ),
        (virtual_frame, r"`1/2` must be stored in this file but is stored in others"),
        (linked(h5py.ExternalLink("other.h5", "/0/0")), r"`1/2` must be a data set in this file but is a link to ano"),
        (linked(h5py.SoftLink("/1/0")), r"`1/2` must be a data set in this file but is a link to another place"),
    ],
)
def test_a_video_that_is_none_is_named_and_the_others_can_be_read(tmp_path, monkeypatch, damage, message):
    monkeypatch.chdir(tmp_path)  # so that other.h5 would be found
    write_shard(tmp_path / "other.h5", [noise_video(3, seed=2)])
    file = write_shard(tmp_path / "a.h5", [noise_video(3), noise_video(3, seed=1)])
    with h5py.File(file, "r+") as root:
        damage(root)
    reader = HDF5Reader(file)
    with pytest.raises(ValueError, match=message) as error:
        reader.read(1, 0, 3)
    assert str(file) in str(error.value)
    np.testing.assert_array_equal(reader.read(0, 0, 3), noise_video(3).transpose(0, 3, 1, 2))


def test_what_a_link_points_to_is_not_even_looked_at(tmp_path):
    # To open a pipe that nobody writes to would wait for ever.
    os.mkfifo(tmp_path / "pipe")
    file = write_shard(tmp_path / "a.h5", [noise_video(3)])
    with h5py.File(file, "r+") as root:
        del root["0/0"]
        root["0/0"] = root["person"] = h5py.ExternalLink(str(tmp_path / "pipe"), "/0")
    with pytest.raises(ValueError, match=r"`0/0` must be a data set in this file"):
        HDF5Reader(file).read(0, 0, 1)
    with pytest.raises(ValueError, match=r"`person` must be a group in this file"):
        published_split(file)


def test_damage_inside_a_frame_is_named(tmp_path):
    # Plain frames: noise can not be compressed, so it is stored as it is, and any bytes would do.
    file = write_shard(tmp_path / "a.h5", [counting_video(2, (32, 32))])
    with h5py.File(file) as root:
        chunk = root["0/1"].id.get_chunk_info(0)
    data = bytearray(file.read_bytes())
    data[chunk.byte_offset : chunk.byte_offset + chunk.size] = b"\xff" * chunk.size
    file.write_bytes(data)
    reader = HDF5Reader(file)
    assert reader.read(0, 0, 1).shape == (1, 1, 32, 32)
    with pytest.raises(ValueError, match=r"a\.h5 can not be read"):
        reader.read(0, 0, 2)


def test_broken_videos_are_skipped_with_a_warning_by_clip_dataset(tmp_path):
    file = write_shard(tmp_path / "a.h5", [noise_video(3), noise_video(3), noise_video(2)])
    with h5py.File(file, "r+") as root:
        no_video(root)
    with pytest.warns(UserWarning, match=r"Skipped 2 of 3 videos .*a/1 .*missing.*a/2 \(too short: 2 frames"):
        assert len(ClipDataset(open_reader(file), num_frames=3, max_bad_share=0.7)) == 1
