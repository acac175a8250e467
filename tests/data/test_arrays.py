"""Arrays of any axis order are read as numpy would transpose them, and nothing in their files is trusted."""

import io
import itertools
import os
import pickle
import re
import struct
import zipfile
from multiprocessing import get_context
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mcvd_diffusers.data import ClipDataset
from mcvd_diffusers.data import arrays as arrays_module
from mcvd_diffusers.data.arrays import ArrayReader, suggest_axes


LENGTHS = {"N": 2, "T": 7, "C": 3, "H": 4, "W": 5}


def noise(*shape: int, dtype: str = "uint8", seed: int = 0) -> np.ndarray:
    return np.random.RandomState(seed).randint(0, 256, size=shape).astype(dtype)


def write(file: Path, array: np.ndarray, **more: np.ndarray) -> Path:
    """An array (and more of them by name) in a file of the kind that its suffix says."""
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix == ".npy":
        np.save(file, array)
    elif file.suffix == ".npz":
        np.savez_compressed(file, frames=array, **more)
    else:
        with h5py.File(file, "w") as root:
            for name, values in {"frames": array, **more}.items():
                root.create_dataset(name, data=values, chunks=True if values.ndim else None)
    return file


def expected_frames(array: np.ndarray, axes: str, number: int) -> np.ndarray:
    """(T, C, H, W), the long way round."""
    for letter in "NC":
        if letter not in axes:
            array, axes = array[None], letter + axes
    return np.einsum(f"{axes.lower()}->ntchw", array)[number]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    axes=st.sampled_from(["THW", "TCHW", "NTHW", "NTCHW"]).flatmap(st.permutations).map("".join),
    lengths=st.fixed_dictionaries({letter: st.integers(1, 6) for letter in "NTCHW"}),
    suffix=st.sampled_from([".npy", ".npz", ".h5"]),
    is_fortran=st.booleans(),
    data=st.data(),
)
def test_every_window_in_every_order_of_axes_is_what_numpy_gives(tmp_path, axes, lengths, suffix, is_fortran, data):
    array = np.asarray(noise(*(lengths[letter] for letter in axes)), order="F" if is_fortran else "C")
    reader = ArrayReader(write(tmp_path / f"a{suffix}", array), axes=axes)
    assert len(reader) == (lengths["N"] if "N" in axes else 1)
    video = data.draw(st.integers(0, len(reader) - 1))
    info = reader.info(video)
    assert (info.num_frames, info.height, info.width) == tuple(lengths[letter] for letter in "THW")
    assert info.num_channels == (lengths["C"] if "C" in axes else 1)

    start = data.draw(st.integers(0, lengths["T"] - 1))
    stride = data.draw(st.integers(1, 3))
    count = data.draw(st.integers(1, (lengths["T"] - 1 - start) // stride + 1))
    expected = expected_frames(array, axes, video)[start::stride][:count]
    np.testing.assert_array_equal(reader.read(video, start, count, stride), expected)
    with pytest.raises(ValueError, match="must describe frames"):
        reader.read(video, start, lengths["T"] + 1, stride)


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".h5"])
@pytest.mark.parametrize("dtype", ["?", "u1", ">u2", ">i4", "<i8", "<f2", ">f4", "<f8"])
def test_values_keep_their_type_in_native_order_and_truth_values_are_0_and_1(tmp_path, suffix, dtype):
    array = (noise(3, 4, 5) % 3 - 1).astype(dtype)
    reader = ArrayReader(write(tmp_path / f"a{suffix}", array), axes="THW")
    frames = reader.read(0, 0, 3)
    assert frames.dtype.isnative and frames.dtype == reader.info(0).dtype
    assert frames.dtype == (np.float32 if dtype == "?" else np.dtype(dtype).newbyteorder("="))
    np.testing.assert_array_equal(frames[:, 0], array)


@pytest.mark.parametrize("size", [100, 700])
def test_a_file_that_shrinks_while_it_is_mapped_is_named_and_read_again_once_it_is_whole(tmp_path, size):
    # Within one page of memory the lost values read as zeros; in larger files a look at them kills the process.
    array = noise(3, 16, 16) | 1
    file = write(tmp_path / "a.npy", array)
    reader = ArrayReader(file, axes="THW")
    kept = reader.read(0, 0, 3)
    whole = file.read_bytes()
    os.truncate(file, size)
    with pytest.raises(ValueError, match=rf"a\.npy has shrunk since it was opened: 896 bytes .* it has {size}"):
        reader.read(0, 2, 1)
    np.testing.assert_array_equal(kept[:, 0], array)
    file.write_bytes(whole)
    np.testing.assert_array_equal(reader.read(0, 0, 3)[:, 0], array)


def test_what_is_no_regular_file_counts_as_a_video_that_can_not_be_read(tmp_path):
    write(tmp_path / "a.npy", noise(3, 4, 5))
    (tmp_path / "b.npy").symlink_to(tmp_path / "gone.npy")
    os.mkfifo(tmp_path / "c.npy")
    reader = ArrayReader(tmp_path, axes="THW")
    assert [reader.name(video) for video in range(len(reader))] == ["a", "b", "c"]
    with pytest.raises(ValueError, match=r"b\.npy is a link to a place that does not exist, .*gone\.npy"):
        reader.info(1)
    with pytest.raises(ValueError, match=r"c\.npy must be a file but is no regular file: it is a pipe"):
        reader.info(2)
    os.mkfifo(tmp_path / "a.action.npy")
    with pytest.raises(ValueError, match=r"a\.action\.npy must be a file"):
        reader.read_vector(0, "action", 0, 2)


def test_an_npz_that_is_unpacked_for_each_clip_is_warned_of_once(tmp_path, monkeypatch):
    monkeypatch.setattr(arrays_module, "MAX_CACHED_BYTES", 50)
    reader = ArrayReader(write(tmp_path / "a.npz", noise(3, 4, 5)), axes="THW")
    with pytest.warns(UserWarning, match=r"a\.npz is slow to read: 60 bytes .* Save the array as \.npy") as warned:
        reader.info(0), reader.read(0, 0, 1)
    assert len(warned) == 1


@pytest.mark.parametrize("suffix", [".npz", ".h5"])
def test_variables_are_put_together_on_the_channel_axis_in_their_order(tmp_path, suffix):
    grey, colour = noise(2, 5, 4, 4, 1), noise(2, 5, 4, 4, 3, dtype="float32", seed=1)
    file = write(tmp_path / f"a{suffix}", grey, colour=colour, other=noise(2, 6, 4, 4, 3))
    reader = ArrayReader(file, axes="NTHWC", variables=["colour", "frames"])
    assert reader.info(0).num_channels == 4 and reader.info(0).dtype == "float32"
    expected = np.concatenate([colour, grey], axis=-1).transpose(0, 1, 4, 2, 3)
    np.testing.assert_array_equal(reader.read(1, 1, 2, 3), expected[1, 1::3])
    with pytest.raises(ValueError, match=r"differ in their channels only.*`other` of shape \(2, 6, 4, 4, 3\)"):
        ArrayReader(file, axes="NTHWC", variables=["colour", "other"])
    with pytest.raises(
        ValueError, match=r"(?s)`variables` must name the arrays.*`frames`.*`colour`|`colour`.*`frames`"
    ):
        ArrayReader(file, axes="NTHWC")
    with pytest.raises(ValueError, match="missing"):
        ArrayReader(file, axes="NTHWC", variables=["missing"])


def test_hdf5_arrays_are_found_in_groups(tmp_path):
    frames = noise(5, 4, 4)
    with h5py.File(tmp_path / "a.h5", "w") as root:
        root["deep/er/frames"] = frames
        root["deep/time"] = np.arange(5)
        root["note"] = "a string"
        root["deep/again"] = root["deep"]  # a circle of hard links
    for reader in (
        ArrayReader(tmp_path / "a.h5", axes="THW"),
        ArrayReader(tmp_path / "a.h5", axes="THW", variables=["deep/er/frames"]),
        ArrayReader(tmp_path / "a.h5", axes="THW", variables=["/deep/er/frames"]),
    ):
        np.testing.assert_array_equal(reader.read(0, 0, 5)[:, 0], frames)
        assert reader.read_vector(0, "deep/time", 1, 3).tolist() == [[1], [2], [3]]


@pytest.mark.parametrize("suffix", [".npz", ".h5"])
def test_each_of_several_arrays_of_one_geometry_is_a_video(tmp_path, suffix):
    videos = {f"videos/{number}": noise(3 + number, 4, 5, seed=number) for number in range(11)}
    actions = {f"action/{number}": np.full((3 + number, 2), number) for number in range(11)}
    file = tmp_path / f"a{suffix}"
    if suffix == ".npz":
        np.savez(file, **videos, **actions)
    else:
        with h5py.File(file, "w") as root:
            for name, values in {**videos, **actions}.items():
                root[name] = values
    reader = ArrayReader(file, axes="THW")
    assert [reader.name(video) for video in range(11)] == [f"a/videos/{number}" for number in range(11)]
    for video in range(11):
        np.testing.assert_array_equal(reader.read(video, 1, 2, 1)[:, 0], videos[f"videos/{video}"][1:3])
        assert reader.num_frames(video) == 3 + video
        assert reader.read_vector(video, "action", 0, 2).tolist() == [[video, video]] * 2
    with pytest.raises(ValueError, match="frames of a/videos/0"):
        reader.read(0, 0, 4)


def test_arrays_of_several_geometries_or_groups_are_not_taken_for_videos(tmp_path):
    np.savez(tmp_path / "sizes.npz", a=noise(3, 4, 5), b=noise(3, 4, 6))
    with h5py.File(tmp_path / "groups.h5", "w") as root:
        root["a/x"], root["b/x"] = noise(3, 4, 5), noise(3, 4, 5)
    np.savez(tmp_path / "many.npz", a=noise(2, 3, 4, 5), b=noise(2, 3, 4, 5))
    for name, axes in [("sizes.npz", "THW"), ("groups.h5", "THW"), ("many.npz", "NTHW")]:
        with pytest.raises(ValueError, match=f"`variables` must name the arrays.*{name}"):
            ArrayReader(tmp_path / name, axes=axes)


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".h5"])
@pytest.mark.parametrize("axes", ["NTHW", "TNHW", "THW"])
def test_a_vector_has_its_rows_where_the_video_has_its_frames(tmp_path, suffix, axes):
    array = noise(*(LENGTHS[letter] for letter in axes))
    lead = tuple(LENGTHS[letter] for letter in axes if letter in "NT")
    action = np.random.RandomState(1).rand(*lead, 2, 3)
    file = write(tmp_path / f"a{suffix}", array, action=action, short=action[:-1], words=np.full(lead, b"no"))
    if suffix == ".npy":
        for name, rows in {"action": action, "short": action[:-1], "words": np.full(lead, b"no")}.items():
            np.save(tmp_path / f"a.{name}.npy", rows)
    reader = ArrayReader(file, axes=axes, variables=None if suffix == ".npy" else ["frames"])
    rows = np.einsum(f"{axes.lower().replace('h', '').replace('w', '')}de->{'ntde' if 'N' in axes else 'tde'}", action)
    rows = rows[-1] if "N" in axes else rows
    got = reader.read_vector(len(reader) - 1, "action", 1, 3, 2)
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, rows[1::2].reshape(3, 6).astype(np.float32))
    with pytest.raises(ValueError, match="must begin with the axes"):
        reader.read_vector(0, "short", 0, 1)
    with pytest.raises(ValueError, match="integers or floating point|Python objects"):
        reader.read_vector(0, "words", 0, 1)
    with pytest.raises((ValueError, OSError), match="nothing"):
        reader.read_vector(0, "nothing", 0, 1)


def test_a_folder_is_read_in_natural_order_without_sidecars(tmp_path):
    for name in ("clip_10", "clip_9", "sub/clip_1"):
        np.save(write(tmp_path / f"{name}.npy", noise(3, 4, 5)).with_suffix(".action.npy"), np.ones((3, 2)))
    reader = ArrayReader(tmp_path, axes="THW")
    names = [reader.name(video) for video in range(len(reader))]
    assert names == ["clip_9", "clip_10", "sub/clip_1"]
    assert reader.read_vector(2, "action", 0, 3).shape == (3, 2)

    write(tmp_path / "other.npz", noise(3, 4, 5))
    with pytest.raises(ValueError, match="files of one kind.*npy, npz"):
        ArrayReader(tmp_path, axes="THW")


def test_names_stay_unique(tmp_path):
    for name in ("a.h5", "a.hdf5", "b.h5", "b/0.h5", "c.h5"):
        write(tmp_path / name, noise(2, 3, 4, 5))
    reader = ArrayReader(tmp_path, axes="NTHW")
    names = [reader.name(video) for video in range(len(reader))]
    assert sorted(names) == sorted(
        f"{file}/{number}" for file in ("a.h5", "a.hdf5", "b.h5", "b/0", "c") for number in (0, 1)
    )


def test_files_are_opened_again_in_a_pickled_reader_and_the_oldest_are_closed(tmp_path, monkeypatch):
    monkeypatch.setattr(arrays_module, "MAX_OPEN_FILES", 2)
    arrays = [noise(3, 40, 50, seed=seed) for seed in range(4)]
    for number, array in enumerate(arrays):
        write(tmp_path / f"{number}.npy", array)
    reader = ArrayReader(tmp_path, axes="THW")
    kept = [reader.read(video, 0, 3) for video in (0, 1, 2, 3, 0)]
    assert len(reader._open_files) == 2
    copy = pickle.dumps(reader)
    assert len(copy) < 6000  # no file is in it
    for video, array in enumerate(arrays):
        np.testing.assert_array_equal(kept[video][:, 0], array)  # a closed file's frames stay
        np.testing.assert_array_equal(pickle.loads(copy).read(video, 0, 3)[:, 0], array)


@pytest.mark.filterwarnings("ignore:.*slow to read")
def test_unpacked_arrays_are_kept_up_to_a_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(arrays_module, "MAX_CACHED_BYTES", 130)
    np.savez(tmp_path / "a.npz", **{str(number): noise(3, 4, 5, seed=number) for number in range(4)})
    np.savez(tmp_path / "big.npz", noise(30, 4, 5))
    reader = ArrayReader(tmp_path, axes="THW")
    assert [reader.read(video, 0, 3).sum() for video in range(4)] == [
        noise(3, 4, 5, seed=number).sum() for number in range(4)
    ]
    assert [name for _, name in reader._unpacked] == ["2", "3"]  # of 60 bytes each
    reader.read(4, 0, 30)
    assert [name for _, name in reader._unpacked] == ["2", "3"]
    reader.read(3, 0, 3)[:] = 0  # the caller's own: the next clip is of the same array
    assert reader.read(3, 0, 3).sum() == noise(3, 4, 5, seed=3).sum()
    assert pickle.loads(pickle.dumps(reader))._unpacked == {}


def test_what_was_read_stays_when_the_file_changes(tmp_path):
    array = noise(4, 3, 4, 5)
    path = write(tmp_path / "a.npy", array)
    frames = ArrayReader(path, axes="TCHW").read(0, 1, 2)
    np.lib.format.open_memmap(path, mode="r+")[:] = 0
    assert np.array_equal(frames, array[1:3])


def test_a_file_that_was_too_short_is_read_once_it_is_whole(tmp_path):
    array = noise(40, 3, 64, 64)
    path = write(tmp_path / "a.npy", array)
    reader, content = ArrayReader(path, axes="TCHW"), path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="has shrunk since it was opened"):
        reader.read(0, 1, 2)
    path.write_bytes(content)
    assert np.array_equal(reader.read(0, 38, 2), array[38:])


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".h5"])
@pytest.mark.parametrize("is_in_place", [True, False])
def test_a_file_that_becomes_another_is_read_anew_or_refused(tmp_path, suffix, is_in_place):
    array = noise(6, 4, 5)
    path = write(tmp_path / f"a{suffix}", array)
    reader = ArrayReader(path, axes="THW")
    dataset = ClipDataset(reader, num_frames=6, encoded=False, strict=True)
    assert np.array_equal(reader.read(0, 0, 6)[:, 0], array)

    def replace(other):
        new = write(tmp_path / f"new{suffix}", other)
        if is_in_place:
            path.write_bytes(new.read_bytes())
        else:
            os.replace(new, path)
        os.utime(path, ns=(replace.time, replace.time))  # two changes within a tick of the clock would be one
        replace.time += 10**9
        reader._unpacked.clear()  # an archive that is kept is as it was

    replace.time = 10**18
    for other in (array / 255, array[:3], array.reshape(6, 5, 4), array[:, :, :, None]):
        replace(other)
        with pytest.raises(ValueError, match=rf"a\{suffix}.*(changed|shrunk)"):
            dataset[[0]]
    replace(255 - array)
    assert np.array_equal(dataset[[0]]["video"][0, :, 0], 255 - array)


def test_a_vector_that_is_replaced_is_read_anew(tmp_path):
    write(tmp_path / "v.npy", noise(8, 4, 4))
    write(tmp_path / "v.action.npy", np.arange(16.0).reshape(8, 2))
    reader = ArrayReader(tmp_path, axes="THW")
    assert reader.read_vector(0, "action", 0, 8).max() == 15
    write(tmp_path / "other.npy", -np.arange(16, dtype=np.float32).reshape(8, 2))
    os.replace(tmp_path / "other.npy", tmp_path / "v.action.npy")
    assert np.array_equal(reader.read_vector(0, "action", 0, 8), -np.arange(16.0).reshape(8, 2))


def read_sum(arguments) -> int:
    reader, video = arguments
    return int(reader.read(video, 1, 2, 2).sum())


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".h5"])
def test_workers_read_the_same(tmp_path, suffix):
    array = noise(8, 5, 4, 4)
    reader = ArrayReader(write(tmp_path / f"a{suffix}", array), axes="NTHW")
    expected = [read_sum((reader, video)) for video in range(8)]
    assert expected == array[:, 1:4:2].sum(axis=(1, 2, 3)).tolist()
    with get_context("fork").Pool(2) as pool:
        assert pool.map(read_sum, [(reader, video) for video in range(8)], chunksize=1) == expected


# ----------------------------------------------------------------------------------------------------------------------
# What the user has to say


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".h5"])
def test_without_axes_the_message_shows_the_shape_and_an_example(tmp_path, suffix):
    file = write(tmp_path / f"a{suffix}", noise(6, 53, 1, 10, 10), action=np.zeros((6, 53, 2)))
    with pytest.raises(ValueError, match=rf'`axes` must .*{file}.*\(6, 53, 1, 10, 10\).*such as "NTCHW"'):
        ArrayReader(file, axes=None)


@pytest.mark.parametrize("shape", [*itertools.chain(*(itertools.product([3, 20], repeat=ndim) for ndim in (3, 4, 5)))])
def test_the_example_has_a_letter_for_each_axis(tmp_path, shape):
    ArrayReader(write(tmp_path / "a.npy", noise(*shape)), axes=suggest_axes(shape))


@pytest.mark.parametrize(
    "shape, axes",
    [((20, 10000, 64, 64), "TNHW"), ((9, 30, 64, 64), "NTHW"), ((30, 64, 64, 3), "THWC"), ((30, 1, 64, 64), "TCHW")],
)
def test_the_example_is_plausible(shape, axes):
    assert suggest_axes(shape) == axes


@pytest.mark.parametrize("axes", ["", "TCH", "TTHW", "TCHWX", "tchw", ["T", "H", "W"], 3])
def test_axes_that_name_no_video_are_refused(tmp_path, axes):
    with pytest.raises(ValueError, match="`axes` must name each axis"):
        ArrayReader(write(tmp_path / "a.npy", noise(3, 4, 5)), axes=axes)


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".h5"])
def test_axes_of_another_number_are_refused_with_file_and_shape(tmp_path, suffix):
    file = write(tmp_path / f"a{suffix}", noise(3, 1, 4, 5))
    with pytest.raises(ValueError, match=rf'"THW" has 3 and {file} holds .*\(3, 1, 4, 5\).*"TCHW"'):
        ArrayReader(file, axes="THW")
    for number in range(3):  # all files of a folder alike
        write(tmp_path / "folder" / f"{number}{suffix}", noise(3, 1, 4, 5))
    with pytest.raises(ValueError, match=r'(?s)none of the 3.*"THW" has 3'):
        ArrayReader(tmp_path / "folder", axes="THW")


@pytest.mark.parametrize("variables", ["frames", [], ["frames", "frames"], [3], [""]])
def test_variables_must_be_a_list_of_different_names(tmp_path, variables):
    with pytest.raises(ValueError, match="`variables` must"):
        ArrayReader(write(tmp_path / "a.npz", noise(3, 4, 5)), axes="THW", variables=variables)


def test_npy_has_no_variables(tmp_path):
    with pytest.raises(ValueError, match="`variables` must be left out for .npy"):
        ArrayReader(write(tmp_path / "a.npy", noise(3, 4, 5)), axes="THW", variables=["frames"])


def test_other_paths_are_refused(tmp_path):
    with pytest.raises(ValueError, match="must exist"):
        ArrayReader(tmp_path / "nothing", axes="THW")
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(ValueError, match="1 .txt"):
        ArrayReader(tmp_path, axes="THW")


def test_the_originals_files_are_for_another_reader(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as root:
        root["len/0"], root["0/0"] = 1, noise(4, 4)
    with pytest.raises(ValueError, match="HDF5Reader"):
        ArrayReader(tmp_path / "a.h5", axes="THW")


# ----------------------------------------------------------------------------------------------------------------------
# What can be wrong with a file


class Payload:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, file: Path):
        self.file = file

    def __reduce__(self):
        return os.mkdir, (str(self.file),)


def npy_bytes(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def npy_header(shape: str, descr: str = "|u1") -> bytes:
    header = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}}}\n".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header


BAD_NPY = {
    "no bytes": (b"", "is empty: it has 0 bytes"),
    "text": (b"not an array", "must be an array in numpy's format but is something else"),
    "half a header": (npy_bytes(noise(3, 4, 5))[:40], "can not be read"),
    "truncated": (npy_bytes(noise(3, 4, 5))[:-1], "is truncated"),
    "two arrays": (npy_bytes(noise(3, 4, 5)) * 2, "holds more than its array"),
    "no frames": (npy_bytes(noise(0, 4, 5)), "is empty: its shape"),
    "complex": (npy_bytes(noise(3, 4, 5, dtype="complex64")), "complex64"),
    "text values": (npy_bytes(noise(3, 4, 5, dtype="U3")), "integers or floating point"),
    "dates": (npy_bytes(noise(3, 4, 5).astype("M8[s]")), "integers or floating point"),
    "records": (npy_bytes(np.zeros((3, 4, 5), [("a", "u1")])), "integers or floating point"),
    "huge": (npy_header("(1000000000, 1000000, 1000000)"), "is truncated"),
    "negative": (npy_header("(3, -4, 5)") + bytes(60), "can not be read"),
    "nested": (npy_header("(" * 3000), "can not be read"),
    "no literal": (npy_header("__import__('os')"), "can not be read"),
    "a long header": (b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**31) + b" " * 20000, "can not be read"),
    "a new format": (b"\x93NUMPY\x09\x00" + bytes(100), "can not be read"),
}


@pytest.mark.parametrize("case", BAD_NPY)
def test_a_bad_npy_is_refused_with_its_name_and_does_not_stop_others(tmp_path, case):
    content, message = BAD_NPY[case]
    bad = tmp_path / "bad.npy"
    bad.write_bytes(content)
    with pytest.raises(ValueError, match=f"(?s){bad}.*{message}"):
        ArrayReader(bad, axes="THW")
    write(tmp_path / "good.npy", noise(3, 4, 5))
    reader = ArrayReader(tmp_path, axes="THW")
    assert [reader.name(video) for video in range(len(reader))] == ["bad", "good"]
    for call in (lambda: reader.info(0), lambda: reader.num_frames(0), lambda: reader.read(0, 0, 1)):
        with pytest.raises(ValueError, match=f"(?s){bad}.*{message}"):
            call()
    assert reader.read(1, 0, 3).shape == (3, 1, 4, 5)


def test_if_every_file_is_bad_the_first_reasons_are_named(tmp_path):
    for number in range(5):
        (tmp_path / f"{number}.npy").write_bytes(b"")
    with pytest.raises(ValueError, match=r"(?s)none of the 5.*0\.npy.*1\.npy.*2\.npy.*and 2 more"):
        ArrayReader(tmp_path, axes="THW")
    with pytest.raises(ValueError, match=r"0\.npy is empty"):
        ArrayReader(tmp_path, axes=None)


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_pickled_objects_are_refused_by_name_and_not_executed(tmp_path, suffix):
    proof = tmp_path / "proof"
    objects = np.full((3, 4, 5), None)
    objects[0, 0, 0] = Payload(proof)
    file = write(tmp_path / f"a{suffix}", objects)
    loaded = np.load(file, allow_pickle=True)
    if suffix == ".npz":
        loaded["frames"]
    assert proof.exists()  # the payload works
    proof.rmdir()
    with pytest.raises(ValueError, match=f"{file}.*Python objects, which only pickles"):
        ArrayReader(file, axes="THW")
    raw = tmp_path / "raw.npy"
    raw.write_bytes(pickle.dumps(Payload(proof)))
    with pytest.raises(ValueError, match="is a pickle, which is never loaded"):
        ArrayReader(raw, axes="THW")
    assert not proof.exists()


def test_an_npz_may_hold_objects_beside_the_frames(tmp_path):
    file = write(tmp_path / "a.npz", noise(3, 4, 5), notes=np.array([{"a": 1}], dtype=object))
    reader = ArrayReader(file, axes="THW")
    assert reader.read(0, 0, 3).shape == (3, 1, 4, 5)
    with pytest.raises(ValueError, match="`notes` holds Python objects"):
        reader.read_vector(0, "notes", 0, 1)


def write_zip(file: Path, member: bytes, name: str = "frames.npy") -> Path:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, member)
    return file


def test_a_bad_npz_is_refused_with_its_name(tmp_path, monkeypatch):
    good = write(tmp_path / "good.npz", noise(3, 4, 5)).read_bytes()
    flipped = bytearray(good)
    flipped[60:80] = bytes(20)  # in the packed values
    cases = {
        "empty.npz": (b"", "is empty: it has 0 bytes"),
        "text.npz": (b"no zip", "can not be read"),
        "cut.npz": (good[:-30], "can not be read"),
        "values.npz": (bytes(flipped), "can not be read"),
    }
    for name, (content, message) in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"{name}.*{message}"):
            ArrayReader(tmp_path / name, axes="THW").read(0, 0, 3)
    # More stated than there is, as in a bomb; and more there than is stated.
    for member in (npy_header("(100000, 100000, 100000)"), npy_bytes(noise(3, 4, 5)) + b"more"):
        with pytest.raises(ValueError, match="`frames` (is truncated|holds more)"):
            ArrayReader(write_zip(tmp_path / "size.npz", member), axes="THW")
    with pytest.raises(ValueError, match="`frames` must be an array in numpy's format"):
        ArrayReader(write_zip(tmp_path / "text.npz", b"text"), axes="THW")
    with pytest.raises(ValueError, match="no array"):
        ArrayReader(write_zip(tmp_path / "other.npz", b"text", name="a.txt"), axes="THW")
    monkeypatch.setattr(arrays_module, "MAX_NPZ_MEMBER_BYTES", 100)
    with pytest.raises(ValueError, match="`frames` has 188 bytes.*Save it as .npy"):
        ArrayReader(tmp_path / "good.npz", axes="THW")


def link_outside(root, file: Path) -> None:
    root["frames"] = h5py.ExternalLink(str(file), "frames")


def soft_link(root, file: Path) -> None:
    root["there"] = noise(3, 4, 5)
    root["frames"] = h5py.SoftLink("/there")


def store_outside(root, file: Path) -> None:
    root.create_dataset("frames", (3, 4, 5), "u1", external=[(str(file), 0, 60)])


def virtual(root, file: Path) -> None:
    layout = h5py.VirtualLayout((3, 4, 5), "u1")
    layout[:] = h5py.VirtualSource(str(file), "frames", (3, 4, 5))
    root.create_virtual_dataset("frames", layout)


def never_written(root, file: Path) -> None:
    root.create_dataset("frames", (2**20, 2**20, 2**20), "u1", chunks=(1, 64, 64))


def huge_frame(root, file: Path) -> None:
    frames = root.create_dataset("frames", (3, 2**20, 2**20), "u1", chunks=(1, 64, 64))
    frames[0, 0, 0] = 1


def words(root, file: Path) -> None:
    root.create_dataset("frames", (3, 4, 5), h5py.string_dtype())[:] = "word"


def records(root, file: Path) -> None:
    root["frames"] = np.zeros((3, 4, 5), [("a", "u1"), ("b", "u1")])


def lists(root, file: Path) -> None:
    root.create_dataset("frames", (3, 4, 5), h5py.vlen_dtype(np.uint8))[0, 0, 0] = [1, 2]


def no_frames(root, file: Path) -> None:
    root["frames"] = noise(0, 4, 5)


def nothing(root, file: Path) -> None:
    root["frames"] = h5py.Empty("u1")


BAD_HDF5 = {
    link_outside: "`frames` must be .*a link to another place, which is not followed",
    soft_link: "`frames` must be .*a link to another place, which is not followed",
    store_outside: "`frames` must be stored in this file but is stored in others, which are not opened",
    virtual: "`frames` must be stored in this file but is stored in others, which are not opened",
    never_written: "`frames` is empty: it was made, but never written",
    huge_frame: "states frames of 1099511627776 bytes",
    words: "`frames` holds Python objects|integers or floating point",
    records: "integers or floating point",
    lists: "`frames` holds Python objects",
    no_frames: "`frames` is empty: its shape",
    nothing: "(?s)`axes` must|`frames` is empty",
}


@pytest.mark.parametrize("variables", [None, ["frames"]])
@pytest.mark.parametrize("spoil", BAD_HDF5)
def test_a_bad_hdf5_is_refused_with_its_name(tmp_path, spoil, variables):
    other = write(tmp_path / "other.h5", noise(3, 4, 5))
    file = tmp_path / "bad.h5"
    with h5py.File(file, "w") as root:
        spoil(root, other)
    with pytest.raises(ValueError, match=re.escape(str(file))) as caught:
        ArrayReader(file, axes="THW", variables=variables)
    assert re.search(BAD_HDF5[spoil], str(caught.value)), caught.value


def test_an_hdf5_link_is_not_even_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.h5")  # whoever opens it waits for ever
    with h5py.File(tmp_path / "bad.h5", "w") as root:
        root["frames"] = h5py.ExternalLink(str(tmp_path / "pipe.h5"), "frames")
        root["len"] = h5py.ExternalLink(str(tmp_path / "pipe.h5"), "len")
        root["group"] = h5py.ExternalLink(str(tmp_path / "pipe.h5"), "/")
    for variables in (None, ["frames"], ["group/frames"]):
        with pytest.raises(ValueError, match="a link to another place, which is not followed"):
            ArrayReader(tmp_path / "bad.h5", axes="THW", variables=variables)


def test_a_large_chunk_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(arrays_module, "MAX_CHUNK_BYTES", 50)
    with h5py.File(tmp_path / "a.h5", "w") as root:
        root.create_dataset("frames", data=noise(3, 4, 5), chunks=(3, 4, 5))
    with pytest.raises(ValueError, match=r"`frames` is stored in chunks of 60 bytes \(\(3, 4, 5\)\)"):
        ArrayReader(tmp_path / "a.h5", axes="THW")


def test_a_broken_hdf5_is_refused_with_its_name(tmp_path):
    good = write(tmp_path / "good.h5", noise(300, 4, 5)).read_bytes()
    for name, content in {"empty.h5": b"", "text.h5": b"no hdf5", "cut.h5": good[: len(good) // 2]}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"{name}.*(0 bytes|can not be read)"):
            ArrayReader(tmp_path / name, axes="THW")
    reader = ArrayReader(tmp_path, axes="THW")
    assert [reader.name(video) for video in range(4)] == ["cut", "empty", "good", "text"]
    assert reader.num_frames(2) == 300
