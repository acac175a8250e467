"""Hugging Face data sets: rows of every kind give their frames, and a stream gives each example once."""

import copy
import hashlib
import io
import json
import os
import pickle
import tarfile
import warnings
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Array3D, Array4D, Dataset, DatasetDict, Features, Image, List, Value, Video
from PIL import Image as PILImage
from torch.utils.data import DataLoader

from mcvd_diffusers.data.hf_datasets import (
    DatasetsReader,
    StreamingClips,
    is_saved_dataset,
    load_datasets_reader,
    load_split,
)
from video_fixtures import NUM_FRAMES, frame_numbers, grey_level, level_frames, write_gif, write_video


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory):
    """`load_dataset` keeps copies of what it reads; and after each shuffled pass over parquet, it sleeps for 5 seconds."""
    patch = pytest.MonkeyPatch()
    patch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0.02)
    patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    datasets.disable_progress_bars()
    yield
    patch.undo()


@pytest.fixture(scope="module")
def mp4(tmp_path_factory) -> Path:
    return write_video(tmp_path_factory.mktemp("videos") / "clip.mp4", level_frames())


def encoded_image(level: int, size: tuple[int, int] = (6, 8)) -> bytes:
    buffer = io.BytesIO()
    PILImage.fromarray(np.full((*size, 3), level, np.uint8)).save(buffer, "png")
    return buffer.getvalue()


def assert_every_window(reader: DatasetsReader, video: int = 0) -> None:
    for stride in (1, 3):
        for count in (1, 4):
            for start in range(NUM_FRAMES - (count - 1) * stride):
                expected = list(range(start, start + count * stride, stride))
                assert frame_numbers(reader.read(video, start, count, stride)) == expected


# ----------------------------------------------------------------------------------------------------------------------
# Random access


@pytest.mark.parametrize("kind", ["path", "bytes", "binary", "gif"])
def test_encoded_videos_are_read_from_every_start(tmp_path, mp4, kind):
    features = Features({"clip": Video(), "label": Value("int64")})
    if kind == "path":
        dataset = Dataset.from_dict({"clip": [str(mp4)], "label": [3]}, features=features)
    elif kind == "bytes":
        rows = {"clip": [{"bytes": mp4.read_bytes(), "path": "x.mp4"}], "label": [3]}
        dataset = Dataset.from_dict(rows, features=features)
    elif kind == "gif":
        gif = write_gif(tmp_path / "x.gif", level_frames())
        dataset = Dataset.from_dict(
            {"clip": [{"bytes": gif.read_bytes(), "path": None}], "label": [3]}, features=features
        )
    else:
        dataset = Dataset.from_dict({"clip": [mp4.read_bytes()], "label": [3]})
    reader = DatasetsReader(dataset)
    assert reader.column == "clip" and len(reader) == 1
    info = reader.info(0)
    assert (info.num_frames, info.num_channels, info.height, info.width, info.dtype) == (13, 3, 32, 48, "uint8")
    assert_every_window(reader)


def test_of_a_list_of_images_the_wanted_ones_alone_are_decoded():
    images = [{"bytes": encoded_image(grey_level(frame)), "path": f"{frame}.png"} for frame in range(NUM_FRAMES)]
    images[5]["bytes"] = b"no image"
    dataset = Dataset.from_dict(
        {"frames": [images], "thumbnail": [images[0]]},
        features=Features({"frames": List(Image()), "thumbnail": Image()}),
    )
    reader = DatasetsReader(dataset)
    assert reader.column == "frames"  # a single image is no video
    assert reader.info(0).num_frames == NUM_FRAMES and reader.info(0).height == 6
    assert frame_numbers(reader.read(0, 6, 3, 2)) == [6, 8, 10]
    with pytest.raises(ValueError, match="row-00000 can not be read"):
        reader.read(0, 4, 2)
    encoded = DatasetsReader(Dataset.from_dict({"frames": [[encoded_image(grey_level(4))] * 3]}))
    assert frame_numbers(encoded.read(0, 0, 2)) == [4, 4]


@pytest.mark.parametrize("axes", ["TCHW", "THWC", "CTHW", "THW"])
@pytest.mark.parametrize("storage", ["array", "open", "nested", "fixed"])
def test_arrays_of_any_axes_are_read_from_every_start(axes, storage):
    frames = np.arange(2 * 7 * 3 * 4 * 5, dtype=np.uint8).reshape(2, 7, 3, 4, 5)
    if "C" not in axes:
        frames = frames[:, :, :1]
    videos = [video[:, 0] if "C" not in axes else video.transpose(["TCHW".index(a) for a in axes]) for video in frames]
    shape = videos[0].shape
    array = Array4D if len(axes) == 4 else Array3D
    feature = Value("uint8")
    for length in reversed(shape):
        feature = List(feature, length=length if storage == "fixed" else -1)
    if storage in ("array", "open"):
        feature = array((None, *shape[1:]) if storage == "open" and axes[0] == "T" else shape, "uint8")
    dataset = Dataset.from_dict({"x": [video.tolist() for video in videos]}, features=Features({"x": feature}))
    reader = DatasetsReader(dataset.select([1, 0]), axes=axes)
    info = reader.info(0)
    assert (info.num_frames, info.num_channels, info.height, info.width) == (7, *frames.shape[2:])
    for start in range(4):
        np.testing.assert_array_equal(reader.read(0, start, 2, 3), frames[1, start : start + 4 : 3])
    np.testing.assert_array_equal(reader.read(1, 0, 7), frames[0])


def test_floats_stay_floats_and_lengths_may_differ():
    videos = [np.random.RandomState(n).rand(n, 3, 4).astype(np.float32) for n in (2, 5)]
    reader = DatasetsReader(
        Dataset.from_dict({"x": videos}, features=Features({"x": Array3D((None, 3, 4), "float32")})), axes="THW"
    )
    assert [reader.info(video).num_frames for video in (0, 1)] == [2, 5]
    assert reader.info(1).dtype == "float32"
    np.testing.assert_array_equal(reader.read(1, 1, 3)[:, 0], videos[1][1:4])


def test_ragged_and_missing_rows_are_errors_of_their_own():
    good = [[[1, 2], [3, 4]]] * 3
    dataset = Dataset.from_dict({"x": [good, [[[1, 2], [3]]] * 3, None, [], [[[1, None], [3, 4]]]]})
    reader = DatasetsReader(dataset, axes="THW")
    assert reader.info(0).num_frames == 3
    for video, message in ((1, "different lengths"), (2, "must be a list"), (3, "is empty"), (4, "missing numbers")):
        with pytest.raises(ValueError, match=message):
            reader.info(video)


def test_a_missing_or_broken_video_is_an_error_of_its_own(tmp_path, mp4):
    rows = [{"bytes": b"junk junk", "path": "a"}, {"bytes": None, "path": str(tmp_path / "gone.mp4")}]
    rows += [{"bytes": None, "path": None}, None, {"bytes": None, "path": "https://a.b/c.mp4"}]
    rows += [{"bytes": mp4.read_bytes(), "path": "f"}]
    # `Video` itself takes no row without bytes and path; a table by others can have one.
    features = Features({"x": {"bytes": Value("binary"), "path": Value("string")}})
    reader = DatasetsReader(Dataset.from_dict({"x": rows}, features=features))
    for video in range(5):
        with pytest.raises((OSError, ValueError)):
            reader.info(video)
    assert reader.info(5).num_frames == NUM_FRAMES


def test_vectors_are_read_with_their_frames(mp4):
    actions = [[[10.0 * video + frame, -frame] for frame in range(NUM_FRAMES)] for video in range(2)]
    dataset = Dataset.from_dict(
        {
            "clip": [mp4.read_bytes()] * 2,
            "action": actions,
            "time": [list(range(NUM_FRAMES))] * 2,
            "short": [[1, 2]] * 2,
            "text": [["a"] * NUM_FRAMES] * 2,
        }
    )
    reader = DatasetsReader(dataset)
    np.testing.assert_array_equal(reader.read_vector(1, "action", 2, 3, 4), [[12, -2], [16, -6], [20, -10]])
    np.testing.assert_array_equal(reader.read_vector(0, "time", 11, 2), [[11], [12]])
    for name, message in (
        ("short", "but has 2"),
        ("text", "must be numbers"),
        ("lost", "must be one of the columns clip"),
    ):
        with pytest.raises(ValueError, match=message):
            reader.read_vector(0, name, 0, 1)


def test_the_column_is_the_only_one_that_can_be_or_must_be_named(mp4):
    clip = mp4.read_bytes()
    dataset = Dataset.from_dict({"a": [clip], "b": [clip], "action": [[[1.0]]]})
    with pytest.raises(
        ValueError, match="`column` must name .* 2 of them may.*`a`: Value\\('binary'\\); `b`.*`action`: List"
    ):
        DatasetsReader(dataset)
    assert DatasetsReader(dataset, column="b").info(0).num_frames == NUM_FRAMES
    with pytest.raises(ValueError, match="none of them may"):
        DatasetsReader(dataset.select_columns(["action"]))
    for column in ("action", "lost"):
        with pytest.raises(ValueError, match=f"but got '{column}'"):
            DatasetsReader(dataset, column=column)
    with pytest.raises(ValueError, match="`axes` must be left out"):
        DatasetsReader(dataset, column="a", axes="TCHW")
    array = Dataset.from_dict(
        {"x": [np.zeros((2, 5, 5, 1), np.uint8)]}, features=Features({"x": Array4D((2, 5, 5, 1), "uint8")})
    )
    for axes in (None, "THW", "NTHW", "TTHW"):
        with pytest.raises(ValueError, match='`axes` must have a letter .* such as "THWC"|must name each axis'):
            DatasetsReader(array, axes=axes)
    with pytest.raises(ValueError, match="choose `dataset\\[split\\]` of train"):
        DatasetsReader(DatasetDict(train=dataset))
    with pytest.raises(ValueError, match="`StreamingClips`"):
        DatasetsReader(dataset.to_iterable_dataset())


def test_names_are_those_of_files_where_these_are_unique():
    def names(*paths):
        rows = [{"bytes": b"x", "path": path} for path in paths]
        dataset = Dataset.from_dict({"x": rows}, features=Features({"x": Video()}))
        reader = DatasetsReader(dataset.select(range(len(rows) - 1, -1, -1)))
        return [reader.name(video) for video in range(len(reader))]

    assert names("/a/1.mp4", "/a/2.mp4") == ["2.mp4", "1.mp4"]
    assert names("a/1.mp4", "b\\1.mp4") == ["b/1.mp4", "a/1.mp4"]
    assert names("1.mp4", "1.mp4") == ["row-00000", "row-00001"]
    assert names("1.mp4", None) == ["row-00000", "row-00001"]


def test_a_reader_works_in_workers(mp4):
    rows = {"clip": [{"bytes": mp4.read_bytes(), "path": f"{n}.mp4"} for n in range(4)]}
    reader = DatasetsReader(Dataset.from_dict(rows, features=Features({"clip": Video()})))
    reader.info(0)  # what is known travels

    class Clips:
        def __len__(self):
            return len(reader)

        def __getitem__(self, video):
            return frame_numbers(reader.read(video, video, 2))

    found = list(DataLoader(Clips(), num_workers=2, batch_size=None))
    assert found == [[video, video + 1] for video in range(4)]
    assert frame_numbers(pickle.loads(pickle.dumps(reader)).read(3, 5, 1)) == [5]


# ----------------------------------------------------------------------------------------------------------------------
# Loading


@pytest.fixture(scope="module")
def small() -> Dataset:
    frames = [[encoded_image(grey_level(frame)) for frame in range(video, video + 4)] for video in range(3)]
    return Dataset.from_dict({"frames": frames, "action": [[0.0, 1.0, 2.0, 3.0]] * 3})


def test_saved_data_sets_and_parquet_are_loaded(tmp_path, small):
    DatasetDict(train=small, val=small.select([2])).save_to_disk(tmp_path / "dict")
    small.save_to_disk(tmp_path / "single")
    (tmp_path / "parquet").mkdir()
    small.to_parquet(tmp_path / "parquet/train-00000-of-00001.parquet")
    small.select([1]).to_parquet(tmp_path / "parquet/test-00000-of-00001.parquet")
    assert [is_saved_dataset(tmp_path / name) for name in ("dict", "single", "parquet")] == [True, True, False]

    for name, split, video in (
        ("dict", "train", 0),
        ("dict", "val", 2),
        ("single", "train", 0),
        ("parquet", "train", 0),
        ("parquet", "test", 1),
        ("parquet/test-00000-of-00001.parquet", "train", 1),
    ):
        reader = load_datasets_reader(tmp_path / name, split=split)
        assert frame_numbers(reader.read(0, 1, 3)) == [video + 1, video + 2, video + 3], name
        assert reader.read_vector(0, "action", 2, 1) == [[2]]
        stream = load_split(str(tmp_path / name), split=split, streaming=True)
        assert isinstance(stream, datasets.IterableDataset) and len(list(stream)) == len(reader)


def test_a_folder_of_videos_is_loaded(tmp_path, mp4):
    for name in ("run/1.mp4", "walk/2.mp4"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(mp4.read_bytes())
    reader = load_datasets_reader(tmp_path)
    assert {reader.name(video) for video in range(2)} == {"1.mp4", "2.mp4"}
    assert frame_numbers(reader.read(1, 8, 2)) == [8, 9]


def test_rows_name_regular_files_of_their_own_data_set_only(tmp_path, mp4):
    os.mkfifo(tmp_path / "pipe.png")
    folder = tmp_path / "set"
    folder.mkdir()
    for name in ("own.mp4", "other.mp4"):
        (folder / name).write_bytes(mp4.read_bytes())
    (tmp_path / "link").symlink_to(folder)
    paths = [str(folder / "own.mp4"), str(mp4), f"{folder}/../{mp4.name}", "/etc/passwd", f"zip://x.mp4::{mp4}"]
    rows = pa.table({"clip": [{"bytes": None, "path": path} for path in paths]})
    pq.write_table(rows, folder / "rows.parquet")
    for path in (folder / "rows.parquet", tmp_path / "link" / "rows.parquet"):
        reader = load_datasets_reader(path)
        assert frame_numbers(reader.read(0, 8, 2)) == [8, 9]
        stream = load_split(path, streaming=True)
        clips = StreamingClips(
            stream, make_clip=lambda reader, video, key: reader.read(video, 8, 2), validation_fraction=0
        )
        with pytest.warns(UserWarning, match="a row may name files below .*set.* only"):
            assert [frame_numbers(clip) for clip in clips] == [[8, 9]] and clips.num_broken == 4
        for row in range(1, len(paths)):
            with pytest.raises(
                ValueError, match="must lie in this data set but names .* may name files below .*set.* only"
            ):
                reader.info(row)

    # What the caller made may name any regular file.
    images = Dataset.from_dict(
        {"x": [[{"bytes": None, "path": str(tmp_path / "pipe.png")}]]}, Features({"x": List(Image())})
    )
    with pytest.raises(ValueError, match=r"pipe\.png must be a file but .* a pipe"):
        DatasetsReader(images).info(0)


def test_of_what_the_hub_gives_rows_name_files_in_the_caches_only(tmp_path, mp4, monkeypatch):
    cached = Path(datasets.config.HF_DATASETS_CACHE) / "downloads" / "clip.mp4"
    cached.parent.mkdir(exist_ok=True)
    cached.write_bytes(mp4.read_bytes())
    made = Dataset.from_dict({"clip": [str(cached), str(mp4)]}, features=Features({"clip": Video()}))
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **kwargs: made)
    reader = load_datasets_reader("somebody/clips")
    assert frame_numbers(reader.read(0, 8, 2)) == [8, 9]
    with pytest.raises(ValueError, match="a row may name files below .* only"):
        reader.info(1)


def test_masks_are_floating_point_0_and_1():
    masks = np.random.RandomState(0).randint(2, size=(1, 4, 5, 6)).astype(bool)
    reader = DatasetsReader(Dataset.from_dict({"x": masks.tolist()}), axes="THW")
    assert reader.info(0).dtype == "float32" and reader.read(0, 0, 4).dtype == np.float32
    np.testing.assert_array_equal(reader.read(0, 0, 4)[:, 0], masks[0])


def test_what_can_not_be_loaded_is_named_with_what_exists(tmp_path, small):
    DatasetDict(train=small, val=small).save_to_disk(tmp_path / "dict")
    small.to_parquet(tmp_path / "parquet/train.parquet")
    (tmp_path / "empty").mkdir()
    (tmp_path / "junk").mkdir()
    (tmp_path / "junk/train.parquet").write_bytes(b"junk")
    (tmp_path / "x.csv").write_text("a,b\n")
    for name, arguments, error, message in (
        ("dict", {"split": "test"}, ValueError, "`split` must be one of train, val, which .* has, but got 'test'"),
        ("parquet", {"split": "test"}, ValueError, "`split` 'test'.*'train'"),
        ("parquet", {"config_name": "big"}, ValueError, "`config_name` 'big'.*Available: \\['default'\\]"),
        ("dict", {"config_name": "big"}, ValueError, "`config_name` must be left out"),
        ("parquet", {"revision": "main"}, ValueError, "`revision` must be left out"),
        ("empty", {}, OSError, "empty can not be loaded.*Check that it holds data files"),
        ("junk", {}, ValueError, "junk can not be loaded"),
        ("x.csv", {}, ValueError, "must be a folder, a .parquet file or a name on the Hub"),
        ("parquet", {"column": "lost"}, ValueError, "but got 'lost'"),
    ):
        with pytest.raises(error, match=message):
            load_datasets_reader(tmp_path / name, **arguments)
    # Without a network, which the Hub needs.
    with pytest.raises(
        OSError, match="nobody/nothing can not be loaded: .*There is no such file or folder here.*connection"
    ):
        load_datasets_reader("nobody/nothing", revision="main")


# ----------------------------------------------------------------------------------------------------------------------
# Streams

NUM_EXAMPLES = 30


def array_row(number: int) -> dict:
    return {"x": np.full((5, 3, 4), number, np.uint8), "time": list(range(5))}


ARRAY_FEATURES = Features({"x": Array3D((5, 3, 4), "uint8"), "time": List(Value("int64"))})


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> list[str]:
    folder, files = tmp_path_factory.mktemp("shards"), []
    for shard in range(5):
        rows = [array_row(number) for number in range(shard * 6, shard * 6 + 6)]
        files.append(str(folder / f"{shard}.parquet"))
        Dataset.from_list(rows, features=ARRAY_FEATURES).to_parquet(files[-1], batch_size=2)
    return files


def stream_of(files: list[str]) -> datasets.IterableDataset:
    return datasets.load_dataset("parquet", data_files=files, split="train", streaming=True)


def make_clip(reader, video, key):
    """An item that tells which example it is, and what its random numbers are."""
    start = np.random.RandomState(key % 2**32).randint(1000)
    assert len(reader) == 1
    frames = reader.read(video, 1, 2, 2)
    assert frames.shape == (2, 1, 3, 4) and reader.read_vector(video, "time", 1, 2, 2).tolist() == [[1], [3]]
    return {"number": int(frames[0, 0, 0, 0]), "start": start, "key": key, "name": reader.name(video)}


def clips(stream, **arguments) -> StreamingClips:
    return StreamingClips(stream, **{"make_clip": make_clip, "validation_fraction": 0.0, "axes": "THW", **arguments})


def items(dataset: StreamingClips, num_workers: int = 0) -> list[dict]:
    return list(DataLoader(dataset, batch_size=None, num_workers=num_workers))


def numbers(found: list[dict]) -> list[int]:
    return [item["number"] for item in found]


@pytest.mark.parametrize("num_shards", [1, 3, 4, 5])
@pytest.mark.parametrize(("world_size", "num_workers"), [(2, 2), (1, 2), (3, 0), (2, 0)])
def test_each_example_is_seen_once_over_ranks_and_workers(shards, num_shards, world_size, num_workers):
    for epoch in (0, 1):
        found = []
        for rank in range(world_size):
            dataset = clips(stream_of(shards[:num_shards]), rank=rank, world_size=world_size, shuffle_buffer=4)
            dataset.set_epoch(epoch)
            found += numbers(items(dataset, num_workers))
        assert sorted(found) == list(range(6 * num_shards))


@pytest.mark.parametrize("features", [None, ARRAY_FEATURES], ids=["unknown", "known"])
def test_a_generator_is_seen_once_too(features):
    def generate():
        yield from map(array_row, range(7))

    for num_workers in (0, 2):
        found = []
        for rank in (0, 1):
            stream = datasets.IterableDataset.from_generator(generate, features=features)
            found += numbers(items(clips(stream, column="x", rank=rank, world_size=2), num_workers))
        assert sorted(found) == list(range(7))


def test_the_set_of_clips_does_not_depend_on_workers_or_ranks(shards):
    def found(num_workers, world_size=1, epoch=0, seed=0):
        result = []
        for rank in range(world_size):
            dataset = clips(stream_of(shards), seed=seed, rank=rank, world_size=world_size)
            dataset.set_epoch(epoch)
            result += items(dataset, num_workers)
        return sorted((item["name"], item["number"], item["start"], item["key"]) for item in result)

    expected = found(0)
    assert found(1) == found(2) == found(2, world_size=2) == expected
    assert len({key for *_, key in expected}) == NUM_EXAMPLES and all(0 <= key < 2**63 for *_, key in expected)
    for other in (found(0, epoch=1), found(0, seed=1)):
        assert [item[:2] for item in other] == [item[:2] for item in expected]
        assert {item[-1] for item in other}.isdisjoint(item[-1] for item in expected)


def test_epochs_differ_in_order_and_reach_persistent_workers(shards):
    dataset = clips(stream_of(shards), shuffle_buffer=10)
    loader = DataLoader(dataset, batch_size=None, num_workers=2, persistent_workers=True)
    passes = []
    for epoch in (0, 1, 0):
        dataset.set_epoch(epoch)
        passes.append([(item["number"], item["key"]) for item in loader])
    assert passes[0] == passes[2] and passes[0] != passes[1]
    assert sorted(n for n, _ in passes[0]) == sorted(n for n, _ in passes[1]) == list(range(NUM_EXAMPLES))
    assert {key for _, key in passes[0]}.isdisjoint(key for _, key in passes[1])
    assert dataset.epoch == 0 and dataset.num_seen == 3 * NUM_EXAMPLES and dataset.num_broken == 0


def test_shards_are_shuffled_in_each_epoch(shards):
    dataset = clips(stream_of(shards), shuffle_buffer=1)
    first_shards = set()
    for epoch in range(8):
        dataset.set_epoch(epoch)
        first_shards.add(next(iter(dataset))["number"] // 6)
    assert len(first_shards) > 2  # a buffer of 1 alone would leave it at the first two


def test_a_larger_buffer_mixes_more(shards):
    wide = numbers(items(clips(stream_of(shards), shuffle_buffer=100)))
    assert wide != sorted(wide)
    # From a buffer that holds all, the first can be any.
    firsts = {numbers(items(clips(stream_of(shards), shuffle_buffer=100, seed=seed)))[0] for seed in range(8)}
    assert len(firsts) > 4


def test_sides_are_disjoint_and_do_not_depend_on_order_or_seed(shards):
    arguments = {"validation_fraction": 0.4}
    validation = numbers(items(clips(stream_of(shards), side="validation", **arguments)))
    train = numbers(items(clips(stream_of(shards), **arguments), 2))
    assert sorted(validation + train) == list(range(NUM_EXAMPLES))
    assert 4 < len(validation) < 20
    assert validation == sorted(validation)  # as stored
    other = clips(stream_of(shards[::-1]), side="validation", seed=5, **arguments)
    assert sorted(numbers(items(other, 2))) == validation
    ranks = [clips(stream_of(shards), side="validation", rank=r, world_size=2, **arguments) for r in (0, 1)]
    assert sorted(numbers(items(ranks[0])) + numbers(items(ranks[1]))) == validation


def test_validation_clips_are_the_same_in_all_epochs_and_ranks(shards):
    dataset = clips(stream_of(shards), side="validation", validation_fraction=0.4)
    first = items(dataset)
    dataset.set_epoch(3)
    assert items(dataset) == first
    for rank in (0, 1):
        for side in ("train", "validation"):
            other = clips(stream_of(shards), side=side, rank=rank, world_size=2, validation_fraction=0.4)
            assert other.held_out(3) == first[:3]
    assert dataset.held_out(1000) == first
    with pytest.raises(ValueError, match="holds out no usable example"):
        clips(stream_of(shards)).held_out(1)


def only(*bad: int):
    def make(reader, video, key):
        item = make_clip(reader, video, key)
        if item["number"] in bad:
            raise ValueError(f"bad {item['number']}")
        return item

    return make


@pytest.mark.parametrize("num_workers", [0, 2])
def test_bad_examples_are_counted_and_left_out(shards, num_workers):
    dataset = clips(stream_of(shards), make_clip=only(3, 11, 12))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = numbers(items(dataset, num_workers))
    assert sorted(found) == [n for n in range(NUM_EXAMPLES) if n not in (3, 11, 12)]
    assert (dataset.num_broken, dataset.num_seen) == (3, NUM_EXAMPLES)
    if num_workers == 0:
        messages = [str(warning.message) for warning in caught if "can not be used" in str(warning.message)]
        assert len(messages) == 3 and any("bad 11" in message for message in messages)


def test_no_more_than_ten_warnings_are_given(shards):
    dataset = clips(stream_of(shards), make_clip=only(*range(12)))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        items(dataset)
    assert sum("can not be used" in str(warning.message) for warning in caught) == 10
    assert dataset.num_broken == 12


@pytest.mark.filterwarnings("ignore:Skipped")
def test_strict_streams_and_streams_of_bad_videos_stop(shards):
    with pytest.raises(ValueError, match="bad 7"):
        items(clips(stream_of(shards), make_clip=only(7), strict=True))
    with pytest.raises(ValueError, match="videos of the stream can not be used, more than `max_bad_share` 0.1"):
        items(clips(stream_of(shards), make_clip=only(1, 2, 3, 4), max_bad_share=0.1))
    # Of less than 20, all may be bad until the pass is over.
    with pytest.raises(ValueError, match="gave no clip for train .* 12 videos tried so far, 12 of them bad"):
        items(clips(stream_of(shards[:2]), make_clip=only(*range(12)), max_bad_share=0.5))


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.filterwarnings("ignore:Skipped")
def test_a_pass_that_gives_nothing_is_an_error_and_an_idle_worker_is_none(shards, num_workers):
    dataset = clips(stream_of(shards[:1]), make_clip=only(*range(6)))
    with pytest.raises(ValueError, match="The stream gave no clip for train on rank 0 of 1"):
        items(dataset, num_workers)
    assert len(items(clips(stream_of(shards[:1])), num_workers)) == 6  # one shard: a worker has none
    with pytest.raises(ValueError, match="on rank 6 of 7"):
        items(clips(stream_of(shards[:1]), rank=6, world_size=7))


@pytest.mark.filterwarnings("ignore:Skipped")
def test_a_later_pass_that_gives_nothing_is_an_error_too(shards):
    numbers_that_are_bad = []
    dataset = clips(
        stream_of(shards[:1]), make_clip=lambda *arguments: only(*numbers_that_are_bad)(*arguments), max_bad_share=1
    )
    assert len(items(dataset)) == 6
    numbers_that_are_bad += range(6)
    with pytest.raises(ValueError, match="gave no clip"):
        items(dataset)


def test_names_are_paths_or_hashes_of_what_is_stored(mp4):
    stored = mp4.read_bytes()
    digest = hashlib.sha256(stored).hexdigest()[:16]
    commit = "0123456789" * 4
    rows = [
        {"bytes": stored, "path": "a.mp4"},
        {"bytes": stored, "path": None},
        {"bytes": None, "path": str(mp4)},
        {"bytes": None, "path": f"hf://datasets/a/b@{commit}/c.mp4"},
    ]
    stream = Dataset.from_dict({"v": rows}, features=Features({"v": Video()})).to_iterable_dataset()
    found = items(
        clips(stream, axes=None, make_clip=lambda reader, video, key: {"name": reader.name(video)}, shuffle_buffer=1)
    )
    names = {f"a.mp4#{digest}", f"#{digest}", str(mp4), "hf://datasets/a/b@/c.mp4"}
    assert {item["name"] for item in found} == names

    images = [[encoded_image(1), encoded_image(2)], [encoded_image(1), encoded_image(3)]]
    stream = Dataset.from_dict({"frames": images}).to_iterable_dataset()
    found = items(clips(stream, axes=None, make_clip=lambda reader, video, key: {"name": reader.name(video)}))
    assert len({item["name"] for item in found}) == 2


def test_encoded_videos_stream_from_parquet_tar_and_folders(tmp_path, mp4):
    stored = mp4.read_bytes()
    rows = [{"bytes": stored, "path": f"{n}.mp4"} for n in range(4)]
    parquet = str(tmp_path / "x.parquet")
    Dataset.from_dict({"mp4": rows}, features=Features({"mp4": Video()})).to_parquet(parquet)
    (tmp_path / "folder").mkdir()
    for shard in (0, 1):
        with tarfile.open(tmp_path / f"{shard}.tar", "w") as tar:
            for n in (2 * shard, 2 * shard + 1):
                (tmp_path / f"folder/{n}.mp4").write_bytes(stored)
                tar.add(mp4, f"{n}.mp4")
                text = json.dumps({"n": n}).encode()
                member = tarfile.TarInfo(f"{n}.json")
                member.size = len(text)
                tar.addfile(member, io.BytesIO(text))
    tars = [str(tmp_path / f"{shard}.tar") for shard in (0, 1)]
    streams = {
        "parquet": datasets.load_dataset("parquet", data_files=parquet, split="train", streaming=True),
        "tar": datasets.load_dataset("webdataset", data_files=tars, split="train", streaming=True),
        "folder": datasets.load_dataset(
            "videofolder", data_dir=str(tmp_path / "folder"), split="train", streaming=True
        ),
    }

    def make(reader, video, key):
        return {"name": reader.name(video), "frames": frame_numbers(reader.read(video, 3, 2, 4))}

    for kind, stream in streams.items():
        for num_workers in (0, 2):
            found = items(clips(stream, axes=None, make_clip=make), num_workers)
            assert [item["frames"] for item in found] == [[3, 7]] * 4, kind
            assert len({item["name"] for item in found}) == 4


def test_a_bad_video_of_a_stream_is_skipped(mp4):
    rows = [{"bytes": mp4.read_bytes() if n % 3 else b"junk", "path": f"{n}.mp4"} for n in range(6)]
    rows.append(None)
    stream = Dataset.from_dict({"v": rows}, features=Features({"v": Video()})).to_iterable_dataset()
    dataset = clips(stream, axes=None, make_clip=lambda reader, video, key: {"n": reader.info(video).num_frames})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert items(dataset) == [{"n": NUM_FRAMES}] * 4
    assert {str(warning.message).split("#")[0] for warning in caught} == {"Skipped 0.mp4", "Skipped 3.mp4", "Skipped "}
    assert dataset.num_broken == 3


def test_the_buffer_holds_rows_and_not_the_tables_they_came_in(tmp_path):
    rows = [{"x": np.full((10, 60, 100), number, np.uint8)} for number in range(20)]
    features = Features({"x": Array3D((10, 60, 100), "uint8")})
    Dataset.from_list(rows, features=features).to_parquet(tmp_path / "x.parquet", batch_size=20)
    make = lambda reader, video, key: {"bytes": reader._row.get_total_buffer_size()}  # noqa: E731
    sizes = [item["bytes"] for item in items(clips(stream_of([str(tmp_path / "x.parquet")]), make_clip=make))]
    assert len(sizes) == 20 and max(sizes) < 2 * 60_000


def test_a_copy_has_counts_of_its_own(shards):
    dataset = clips(stream_of(shards))
    other = copy.deepcopy(dataset)
    other.set_epoch(4)
    items(other)
    assert dataset.epoch == 0 and dataset.num_seen == 0 and other.num_seen == NUM_EXAMPLES


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"side": "test"}, "`side` must be"),
        ({"validation_fraction": 1.0}, "`validation_fraction` must lie in"),
        ({"side": "validation"}, "above 0 for validation"),
        ({"max_bad_share": 2}, "`max_bad_share` must lie in"),
        ({"rank": 1}, "`rank` must be less than `world_size`, 1, but got 1"),
        ({"world_size": 0}, "`world_size` must be an integer of at least 1"),
        ({"shuffle_buffer": 0}, "`shuffle_buffer` must be"),
        ({"seed": -1}, "`seed` must be"),
        ({"column": "time"}, "`column` must name"),
        ({"axes": None}, "`axes` must have a letter"),
    ],
)
def test_bad_arguments_are_refused(shards, arguments, message):
    with pytest.raises(ValueError, match=message):
        clips(stream_of(shards), **arguments)


def test_a_stream_must_be_a_stream_with_examples(small):
    with pytest.raises(ValueError, match="A `Dataset` is read by `DatasetsReader`"):
        clips(small)
    with pytest.raises(ValueError, match="the stream is empty"):
        clips(datasets.IterableDataset.from_generator(lambda: iter(())))
    with pytest.raises(ValueError, match="`epoch` must be"):
        clips(small.to_iterable_dataset(), axes=None).set_epoch(-1)
