"""Zarr and NetCDF fields are read in their units, and nothing in their files is trusted."""

import errno
import json
import os
import pickle
import re
import shutil
import struct
import sys
import zipfile
from multiprocessing import get_context
from pathlib import Path

import h5py
import numcodecs
import numpy as np
import pytest
import xarray as xr

from mcvd_diffusers.data import fields as fields_module
from mcvd_diffusers.data.fields import FieldReader, check_zarr


pytestmark = pytest.mark.filterwarnings("ignore:Consolidated metadata is currently not part")

KINDS = ["zarr2", "zarr3", "netcdf3", "netcdf4"]
DIMS = ("time", "lat", "lon")


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.RandomState(seed).uniform(250, 310, size=shape)


def save(dataset: xr.Dataset, path: Path, kind: str, encoding: dict | None = None) -> Path:
    """A data set as a store or a file of a kind; the suffix is added."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind.startswith("zarr"):
        path = path.with_name(f"{path.name}.zarr")
        dataset.to_zarr(path, zarr_format=int(kind[-1]), encoding=encoding)
    else:
        path = path.with_name(f"{path.name}.nc")
        dataset.to_netcdf(path, engine="scipy" if kind == "netcdf3" else "h5netcdf", encoding=encoding)
    return path


def field(num_frames: int = 7, *, seed: int = 0) -> xr.Dataset:
    """A field in kelvin, with gaps."""
    values = noise(num_frames, 4, 5, seed=seed)
    values[1, 2] = np.nan
    coordinates = {"time": 6 * np.arange(num_frames), "lat": np.linspace(50, 47, 4)}
    return xr.Dataset({"t2m": (DIMS, values)}, coords=coordinates)


@pytest.mark.parametrize("kind", KINDS)
def test_windows_of_a_field_are_what_was_written(tmp_path, kind):
    dataset = field()
    reader = FieldReader(save(dataset, tmp_path / "era5", kind))
    info = reader.info(0)
    assert (len(reader), reader.name(0), reader.num_frames(0)) == (1, "era5", 7)
    assert (info.num_channels, info.height, info.width, info.dtype) == (1, 4, 5, "float64")
    for start, count, stride in [(0, 7, 1), (1, 3, 2), (2, 2, 4), (6, 1, 3)]:
        frames = reader.read(0, start, count, stride)
        np.testing.assert_array_equal(frames[:, 0], dataset["t2m"].values[start::stride][:count])
        assert frames.dtype == info.dtype and frames.dtype.isnative
    with pytest.raises(ValueError, match="must describe frames"):
        reader.read(0, 0, 8)


@pytest.mark.parametrize("kind", KINDS)
def test_packed_integers_come_in_their_units_and_fill_values_as_nan(tmp_path, kind):
    dataset = field()
    packing = {"t2m": {"dtype": "int16", "scale_factor": 0.01, "add_offset": 280.0, "_FillValue": -9999}}
    reader = FieldReader(save(dataset, tmp_path / "a", kind, packing))
    frames = reader.read(0, 0, 7)
    assert frames.dtype == reader.info(0).dtype and frames.dtype.kind == "f"
    np.testing.assert_allclose(frames[:, 0], dataset["t2m"].values, atol=0.0051)  # half a step; NaN where NaN is
    assert np.isnan(frames).sum() == 5


@pytest.mark.parametrize("kind", KINDS)
def test_variables_levels_and_samples(tmp_path, kind):
    levels, ground = noise(2, 6, 4, 5, 3), noise(6, 2, 4, 5, seed=1).astype("float32")
    dataset = xr.Dataset(
        {
            "q": (("sample", "valid_time", "latitude", "longitude", "level"), levels),
            "msl": (("valid_time", "sample", "latitude", "longitude"), ground),
            "station": (("sample", "valid_time", "place"), noise(2, 6, 3)),
        }
    )
    file = save(dataset, tmp_path / "a", kind)
    reader = FieldReader(file, variables=["msl", "q"])
    assert [reader.name(video) for video in range(len(reader))] == ["a/0", "a/1"]
    assert (reader.info(0).num_channels, reader.info(0).dtype) == (4, "float64")
    expected = np.concatenate([ground[:, 1, None], levels[1].transpose(0, 3, 1, 2)], axis=1)
    np.testing.assert_array_equal(reader.read(1, 1, 2, 3), expected[1::3])
    with pytest.raises(ValueError, match=r"`variables` must name those.*`msl` \(valid_time, sample.*\(6, 2, 4, 5\)"):
        FieldReader(file)
    with pytest.raises(ValueError, match=r"\['z'\] are none.*`msl`"):
        FieldReader(file, variables=["z"])
    with pytest.raises(ValueError, match=r"`axes` must be passed, since not all dimensions of \['station'\]"):
        FieldReader(file, variables=["station"])


@pytest.mark.parametrize("kind", KINDS)
def test_axes_by_position_if_the_names_are_not_known(tmp_path, kind):
    values = noise(3, 5, 4, 2)
    file = save(xr.Dataset({"rain": (("b0", "a0", "c0", "d0"), values), "o": ("e", [1.0])}), tmp_path / "a", kind)
    with pytest.raises(ValueError, match=r"`axes` must be passed.*`rain` \(b0, a0, c0, d0\) of shape \(3, 5, 4, 2\)"):
        FieldReader(file)
    with pytest.raises(ValueError, match=r'`axes` must have as many letters.*"THW" has 3'):
        FieldReader(file, axes="THW")
    reader = FieldReader(file, axes="HTWC")
    np.testing.assert_array_equal(reader.read(0, 1, 2, 2), values.transpose(1, 3, 0, 2)[1:4:2])


@pytest.mark.parametrize(
    "dims, axes",
    [
        (("t", "y", "x"), "THW"),
        (("Time", "south_north", "west_east"), "THW"),
        (("frames", "rows", "cols", "bands"), "THWC"),
        (("member", "step", "nlat", "nlon"), "NTHW"),
        (("time", "lev", "lat_0", "lon_0"), "TCHW"),
        (("lon", "lat", "valid_time"), "WHT"),
        (("time", "step", "lat", "lon"), ""),  # two times
        (("time", "height", "lat", "lon"), ""),  # two heights
        (("time", "cell"), ""),
    ],
)
def test_dimensions_are_recognised_by_name(dims, axes):
    reader = FieldReader.__new__(FieldReader)
    reader.axes = None
    assert reader._axes_of(dims) == axes


@pytest.mark.parametrize("kind", KINDS)
def test_vectors_are_variables_with_the_time_of_the_frames(tmp_path, kind):
    wind, tide, flags = noise(2, 6, 3), noise(6, 2, seed=1), noise(4, 3)
    dataset = xr.Dataset(
        {
            "rain": (("case", "time", "y", "x"), noise(2, 6, 4, 5)),
            "wind": (("case", "time", "uvw"), wind),
            "tide": (("time", "case"), tide),
            "flags": (("y", "uvw"), flags),
        },
        coords={"time": 6.0 * np.arange(6)},
    )
    reader = FieldReader(save(dataset, tmp_path / "a", kind))
    np.testing.assert_array_equal(reader.read_vector(1, "wind", 1, 2, 3), wind[1, 1::3].astype("float32"))
    np.testing.assert_array_equal(reader.read_vector(1, "tide", 1, 2), tide[1:3, 1:].astype("float32"))
    assert reader.read_vector(1, "time", 1, 3).tolist() == [[6], [12], [18]]  # of all cases
    with pytest.raises(ValueError, match="must have the dimension `time`"):
        reader.read_vector(0, "flags", 0, 1)
    with pytest.raises(ValueError, match="must hold the vector `nothing` but has"):
        reader.read_vector(0, "nothing", 0, 1)


def test_a_folder_holds_files_and_stores_in_natural_order(tmp_path):
    for number, kind in [(10, "zarr2"), (9, "netcdf4"), (2, "zarr3"), (1, "netcdf3")]:
        save(field(3 + number), tmp_path / f"run_{number}", kind)
    save(field(3), tmp_path / "sub" / "run_1", "zarr3").rename(tmp_path / "sub" / "plain")  # known by what it holds
    save(field(3), tmp_path / "run_1", "zarr3")
    reader = FieldReader(tmp_path)
    names = [reader.name(video) for video in range(len(reader))]
    assert names == ["run_1.nc", "run_1.zarr", "run_2", "run_9", "run_10", "sub/plain"]
    assert [reader.num_frames(video) for video in range(6)] == [4, 3, 5, 12, 13, 3]


def test_the_format_is_found_by_first_bytes(tmp_path):
    for kind in ("netcdf3", "netcdf4"):
        file = save(field(), tmp_path / kind, kind)
        assert FieldReader(file.rename(file.with_suffix(".cdf"))).num_frames(0) == 7


def test_only_some_files_stay_open(tmp_path, monkeypatch):
    monkeypatch.setattr(fields_module, "MAX_OPEN_DATASETS", 2)
    for number in range(4):
        save(field(seed=number), tmp_path / str(number), KINDS[number])
    reader = FieldReader(tmp_path)
    assert not reader._datasets  # the constructor closes what it opens
    for video in (0, 1, 2, 3, 0, 2):
        np.testing.assert_array_equal(reader.read(video, 0, 7)[:, 0], field(seed=video)["t2m"])
        assert len(reader._datasets) <= 2
    copy = pickle.loads(pickle.dumps(reader))
    assert not copy._datasets
    np.testing.assert_array_equal(copy.read(3, 0, 7), reader.read(3, 0, 7))


READER = None


def read_sums(start: int) -> list[float]:
    return [float(np.nansum(READER.read(video, start, 3))) for video in (0, 1, 2, 3)]


def test_forked_and_pickled_workers_read_the_same(tmp_path):
    global READER
    for number, kind in enumerate(KINDS):
        packed = {"t2m": {"dtype": "int16", "scale_factor": 0.01, "_FillValue": -1}}
        save(field(40, seed=number), tmp_path / str(number), kind, packed)
    READER = FieldReader(tmp_path)
    starts = [start for _ in range(3) for start in range(30)]
    expected = [read_sums(start) for start in starts]
    assert len(READER._datasets) == 4  # open at the fork
    # As a DataLoader does: the reader is inherited, and the parent reads on.
    with get_context("fork").Pool(2) as pool:
        result = pool.map_async(read_sums, starts, chunksize=5)
        assert [read_sums(start) for start in starts] == expected
        assert result.get(60) == expected
    assert len(READER._datasets) == 4 and not READER._inherited


# ----------------------------------------------------------------------------------------------------------------------
# What can be wrong with a file


def test_paths_that_hold_no_field_are_refused(tmp_path):
    for url in ("s3://bucket/a.zarr", "https://host/a.nc", "reference://"):
        with pytest.raises(ValueError, match="`path` must lie on this machine"):
            FieldReader(url)
    with pytest.raises(ValueError, match="`path` must exist"):
        FieldReader(tmp_path / "nothing")
    store = save(field(), tmp_path / "in" / "a", "zarr3")
    archive = shutil.make_archive(str(tmp_path / "zip" / "a.zarr"), "zip", store)
    for path in (archive, tmp_path / "zip"):
        with pytest.raises(ValueError, match="zip.* not opened: unpack"):
            FieldReader(path)
    for content, message in {
        b"": "is empty: it has 0 bytes",
        b"no field": "must be a NetCDF file or the folder of a Zarr store but begins with b'no field'",
        b"CDF\x05" + bytes(50): "CDF-5, which is not read",
    }.items():
        (tmp_path / "a.nc").write_bytes(content)
        with pytest.raises(ValueError, match=f"a.nc.*{message}"):
            FieldReader(tmp_path / "a.nc")
    (tmp_path / "empty.zarr").mkdir()
    with pytest.raises(ValueError, match="empty.zarr is no Zarr store"):
        FieldReader(tmp_path / "empty.zarr")


@pytest.mark.parametrize("names", [["../t2m"], ["/t2m"], ["a/../../t2m"]])
def test_variables_that_lead_outside_are_refused(tmp_path, names):
    with pytest.raises(ValueError, match="`variables` must be names, without"):
        FieldReader(save(field(), tmp_path / "a", "zarr3"), variables=names)


@pytest.mark.parametrize("kind", KINDS)
def test_a_truncated_file_is_refused_with_its_name_and_does_not_stop_others(tmp_path, kind):
    bad = save(field(200), tmp_path / "bad", kind)
    if bad.is_dir():
        metadata = bad / "t2m" / (".zarray" if kind == "zarr2" else "zarr.json")
        metadata.write_bytes(metadata.read_bytes()[:-50])
    else:
        bad.write_bytes(bad.read_bytes()[:3000])
    with pytest.raises(ValueError, match=f"(?s){bad}.*can not be read"):
        FieldReader(bad).read(0, 0, 200)
    good = save(field(), tmp_path / "good", kind)
    reader = FieldReader(tmp_path)
    assert [reader.name(0), reader.name(1)] == ["bad", "good"]
    with pytest.raises(ValueError, match=f"(?s){bad}.*can not be read"):
        reader.info(0)
    assert reader.num_frames(1) == 7
    shutil.copytree(bad, good, dirs_exist_ok=True) if bad.is_dir() else shutil.copy(bad, good)
    with pytest.raises(ValueError, match="none of the 2 in"):
        FieldReader(tmp_path)


def test_a_chunk_that_is_no_chunk_is_an_error_of_its_file(tmp_path):
    store = save(field(), tmp_path / "a", "zarr2")
    (store / "t2m" / "0.0.0").write_bytes(b"no chunk")
    reader = FieldReader(store)
    with pytest.raises(ValueError, match=f"{store} can not be read"):
        reader.read(0, 0, 3)


def test_netcdf4_with_anything_outside_is_refused_and_nothing_is_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.h5")  # whoever opens it waits for ever
    pipe = str(tmp_path / "pipe.h5")

    def virtual(root):
        layout = h5py.VirtualLayout((3,), "f8")
        layout[:] = h5py.VirtualSource(pipe, "x", (3,))
        root.create_virtual_dataset("deep/x", layout)

    spoils = {
        "an external link": lambda root: root.__setitem__("deep/x", h5py.ExternalLink(pipe, "x")),
        "a soft link": lambda root: root.__setitem__("deep/x", h5py.SoftLink("/t2m")),
        "external storage": lambda root: root.create_dataset("deep/x", (3,), "f8", external=[(pipe, 0, 24)]),
        "a virtual data set": virtual,
    }
    for case, spoil in spoils.items():
        file = save(field(), tmp_path / "a", "netcdf4")
        with h5py.File(file, "r+") as root:
            spoil(root)
        with pytest.raises(ValueError, match=f"{file}: `deep/x` must be .*(link|stored in others)"):
            FieldReader(file)
        assert case
    file = save(field(), tmp_path / "a", "netcdf4")
    with h5py.File(file, "r+") as root:
        root["group/hard"] = root["t2m"]
    assert FieldReader(file).num_frames(0) == 7


def test_netcdf4_with_a_large_chunk_is_refused(tmp_path):
    file = save(field(), tmp_path / "a", "netcdf4")
    with h5py.File(file, "r+") as root:
        root.create_dataset("deep/x", (2**11, 2**10, 2**10), "u1", chunks=(2**11, 2**10, 2**10))
    with pytest.raises(ValueError, match=f"{file}: `deep/x` is stored in chunks of 2147483648 bytes"):
        FieldReader(file)


class Payload:
    """Leaves a folder behind when it is unpickled."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def change_json(file: Path, change) -> Path:
    document = json.loads(file.read_text())
    change(document)
    file.write_text(json.dumps(document))
    return file


def test_the_pickle_codec_of_format_2_is_not_executed(tmp_path, monkeypatch):
    # Older versions have no such switch, and unpickle whatever comes.
    monkeypatch.setattr("numcodecs.pickles.ALLOW_UNSAFE_PICKLE_DECODE", True, raising=False)
    proof = tmp_path / "proof"
    store = save(field(), tmp_path / "a", "zarr2")
    change_json(store / "t2m" / ".zarray", lambda array: array.update(compressor={"id": "pickle"}))
    chunk = store / "t2m" / "0.0.0"
    chunk.write_bytes(pickle.dumps(Payload(proof)))
    # What an older zarr does with the chunk; later ones happen to refuse the codec beside numbers.
    numcodecs.get_codec({"id": "pickle"}).decode(chunk.read_bytes())
    assert proof.exists()
    proof.rmdir()
    with pytest.raises(ValueError, match=r"a\.zarr/t2m/\.zarray can not be read: the codec 'pickle' is not among"):
        FieldReader(store).read(0, 0, 3)
    assert not proof.exists()


def shards(array: dict) -> None:
    """The codecs as they stand within shards."""
    inner = [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "numcodecs.pickle"}]
    settings = {"chunk_shape": [1, 4, 5], "codecs": inner, "index_codecs": ["bytes"]}
    array["codecs"] = [{"name": "sharding_indexed", "configuration": settings}]


def nested_index(array: dict) -> None:
    shards(array)
    settings = array["codecs"][0]["configuration"]
    settings["codecs"], settings["index_codecs"] = ["bytes"], [{"name": "numcodecs.pickle"}]


BAD_ZARR3 = {
    "pickle": (
        lambda a: a["codecs"].append({"name": "numcodecs.pickle"}),
        "the codec 'numcodecs.pickle' is not among",
    ),
    "pickle by its name alone": (lambda a: a["codecs"].append("numcodecs.pickle"), "the codec 'numcodecs.pickle'"),
    "pickle in shards": (shards, "the codec 'numcodecs.pickle' is not among"),
    "pickle in the index of shards": (nested_index, "the codec 'numcodecs.pickle' is not among"),
    "unknown codec": (lambda a: a["codecs"].append({"name": "json2"}), "the codec 'json2' is not among"),
    "objects": (lambda a: a.update(data_type="object"), "its type 'object' is not known"),
    "objects by a codec": (
        lambda a: a["codecs"].insert(0, {"name": "numcodecs.astype", "configuration": {"decode_dtype": "O"}}),
        "makes Python objects",
    ),
    "large chunks": (
        lambda a: a["chunk_grid"]["configuration"].update(chunk_shape=[2**20, 2**20, 5]),
        "its chunks .* have 43980465111040 bytes",
    ),
    "no chunks": (lambda a: a["chunk_grid"]["configuration"].update(chunk_shape=["a", 1, 1]), "its chunks are"),
    "another grid": (lambda a: a["chunk_grid"].update(name="rectilinear"), "'rectilinear'"),
    "another key": (
        lambda a: a.update(chunk_key_encoding={"name": "default", "configuration": {"separator": "/../"}}),
        "'/../'",
    ),
    "transformers": (lambda a: a.update(storage_transformers=[{"name": "x"}]), "storage transformers"),
    "no codecs": (lambda a: a.pop("codecs"), "'codecs'"),
    "a list": (lambda a: a.update(codecs=3), "not iterable"),
}
BAD_ZARR2 = {
    "pickle as a filter": (lambda a: a.update(filters=[{"id": "pickle"}]), "the codec 'pickle' is not among"),
    "unknown codec": (lambda a: a.update(compressor={"id": "json2"}), "the codec 'json2' is not among"),
    "objects": (lambda a: a.update(dtype="|O"), r"its type '\|O' is of Python objects"),
    "objects in records": (lambda a: a.update(dtype=[["a", "<f4"], ["b", [["c", "|O"]]]]), "is of Python objects"),
    "no type": (lambda a: a.update(dtype="what"), "data type"),
    "large chunks": (lambda a: a.update(chunks=[2**20, 2**20, 5]), "its chunks .* have 43980465111040 bytes"),
    "another key": (lambda a: a.update(dimension_separator="/../"), "'/../'"),
}


@pytest.mark.parametrize(
    "kind, case", [*(("zarr3", case) for case in BAD_ZARR3), *(("zarr2", case) for case in BAD_ZARR2)]
)
@pytest.mark.parametrize("is_consolidated", [False, True])
def test_bad_metadata_are_refused_with_their_file(tmp_path, kind, case, is_consolidated):
    change, message = (BAD_ZARR3 if kind == "zarr3" else BAD_ZARR2)[case]
    store = save(field(), tmp_path / "a", kind)
    check_zarr(store)
    if not is_consolidated:
        file = change_json(store / "t2m" / ("zarr.json" if kind == "zarr3" else ".zarray"), change)
    elif kind == "zarr3":
        file = change_json(store / "zarr.json", lambda root: change(root["consolidated_metadata"]["metadata"]["t2m"]))
    else:
        file = change_json(store / ".zmetadata", lambda root: change(root["metadata"]["t2m/.zarray"]))
    with pytest.raises(ValueError, match=f"{re.escape(str(file))} can not be read: .*{message}"):
        FieldReader(store)


@pytest.mark.parametrize("key", ["../other/t2m", "/etc", "a/../../b"])
def test_keys_that_lead_out_of_the_store_are_refused(tmp_path, key):
    store = save(field(), tmp_path / "two", "zarr2")
    change_json(store / ".zmetadata", lambda root: root["metadata"].update({f"{key}/.zarray": {}}))
    with pytest.raises(ValueError, match="keys that lead out of the store"):
        FieldReader(store)
    store = save(field(), tmp_path / "three", "zarr3")
    change_json(store / "zarr.json", lambda root: root["consolidated_metadata"]["metadata"].update({key: {}}))
    with pytest.raises(ValueError, match="keys that lead out of the store"):
        FieldReader(store)


@pytest.mark.parametrize("content", [b"[" * 100_000, b"[]", b"{", b"\xff\xfe", b'{"metadata": 3}', b"null"])
def test_broken_json_is_refused_with_its_file(tmp_path, content):
    store = save(field(), tmp_path / "a", "zarr2")
    (store / ".zmetadata").write_bytes(content)
    with pytest.raises(ValueError, match=r"\.zmetadata can not be read"):
        FieldReader(store)


def test_large_metadata_are_not_read(tmp_path):
    store = save(field(), tmp_path / "a", "zarr2")
    with (store / "t2m" / ".zattrs").open("wb") as file:
        file.truncate(2**40)  # a hole
    with pytest.raises(ValueError, match=r"\.zattrs has 1099511627776 bytes"):
        FieldReader(store)


@pytest.mark.parametrize("kind", ["zarr2", "zarr3"])
def test_links_out_of_a_store_are_refused(tmp_path, kind):
    other = save(field(seed=1), tmp_path / "other", kind)
    store = save(field(), tmp_path / "a", kind)
    # Links within the store are its own business.
    (store / "again").symlink_to(store / "t2m")
    assert FieldReader(store, variables=["again"]).num_frames(0) == 7
    (store / "again").unlink()
    chunk = store / "t2m" / "0.0.0" if kind == "zarr2" else store / "t2m" / "c" / "0" / "0" / "0"
    assert chunk.is_file()
    for path, target in [
        (chunk, Path("/etc/hostname")),
        (store / "t2m", other / "t2m"),
        (store / "loop", Path("loop")),
    ]:
        if path.is_dir():
            shutil.rmtree(path)
        path.unlink(missing_ok=True)
        path.symlink_to(target)
        with pytest.raises(ValueError, match=f"{path} (is a link that leads out of the store|is neither a file)"):
            FieldReader(store)
        path.unlink()


def test_a_linked_store_is_read(tmp_path):
    (tmp_path / "data.zarr").symlink_to(save(field(), tmp_path / "elsewhere" / "a", "zarr3"))
    assert FieldReader(tmp_path / "data.zarr").num_frames(0) == 7


def test_a_dangling_link_to_a_store_or_file_is_a_video_that_can_not_be_read(tmp_path):
    save(field(), tmp_path / "a", "zarr3")
    (tmp_path / "b.zarr").symlink_to(tmp_path / "gone.zarr")
    (tmp_path / "c.nc").symlink_to(tmp_path / "gone.nc")
    os.mkfifo(tmp_path / "d.nc")
    reader = FieldReader(tmp_path)
    assert len(reader) == 4 and reader.num_frames(0) == 7
    for video, message in ((1, r"b\.zarr is a link to a place"), (2, r"c\.nc is a link to a place"), (3, "a pipe")):
        with pytest.raises(ValueError, match=message):
            reader.info(video)


def test_a_folder_that_can_not_be_read_is_named(tmp_path, monkeypatch):
    store = save(field(), tmp_path / "a", "zarr3")
    (tmp_path / "closed").mkdir()
    scandir = os.scandir

    def refuse(folder):  # as if without the permission, which root needs not
        if Path(folder).name in ("closed", "t2m"):
            raise PermissionError(errno.EACCES, "Permission denied", str(folder))
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(ValueError, match="The folder .*closed can not be read: Permission denied"):
        FieldReader(tmp_path)
    with pytest.raises(ValueError, match="The folder .*t2m can not be read: Permission denied"):
        FieldReader(store)


@pytest.mark.parametrize("kind", ["netcdf3", "netcdf4"])
def test_a_file_that_shrinks_after_it_was_opened_is_named(tmp_path, kind):
    file = save(field(), tmp_path / "a", kind)
    reader = FieldReader(file)
    reader.read(0, 0, 2)
    os.truncate(file, file.stat().st_size - 100)
    with pytest.raises(ValueError, match=r"a\.nc has shrunk since it was opened"):
        reader.read(0, 5, 2)


def test_pipes_in_a_store_are_not_opened(tmp_path):
    store = save(field(), tmp_path / "a", "zarr2")
    os.mkfifo(store / "zarr.json")
    with pytest.raises(ValueError, match="zarr.json is neither a file nor a folder"):
        FieldReader(store)


@pytest.mark.parametrize("codec", ["blosc", "zlib", "gzip", "zstd", "bz2", "lzma", "lz4"])
def test_harmless_codecs_are_read(tmp_path, codec):
    encoding = {"t2m": {"compressors": [numcodecs.get_codec({"id": codec})], "chunks": (2, 4, 5)}}
    store = save(field(), tmp_path / "a", "zarr2", encoding)
    assert json.loads((store / "t2m" / ".zarray").read_text())["compressor"]["id"] == codec
    np.testing.assert_array_equal(FieldReader(store).read(0, 1, 3, 2)[:, 0], field()["t2m"].values[1:6:2])


def test_shards_are_read_and_only_their_chunks_have_to_be_small(tmp_path, monkeypatch):
    encoding = {"t2m": {"shards": (6, 4, 5), "chunks": (2, 4, 5)}}
    store = save(field(), tmp_path / "a", "zarr3", encoding)
    monkeypatch.setattr(fields_module, "MAX_CHUNK_BYTES", 2 * 4 * 5 * 8)
    np.testing.assert_array_equal(FieldReader(store).read(0, 1, 3, 2)[:, 0], field()["t2m"].values[1:6:2])
    monkeypatch.setattr(fields_module, "MAX_CHUNK_BYTES", 2 * 4 * 5 * 8 - 1)
    with pytest.raises(ValueError, match=r"its chunks \[2, 4, 5\] have 320 bytes"):
        FieldReader(store)


def test_huge_coordinates_and_frames_take_no_memory(tmp_path):
    store = save(field(), tmp_path / "a", "zarr3")
    change_json(store / "time" / "zarr.json", lambda array: array.update(shape=[2**50]))
    change_json(
        store / "t2m" / "zarr.json",
        lambda array: array.update(shape=[2**50, 2**20, 2**20]),
    )
    with pytest.raises(ValueError, match="states frames of 8796093022208 bytes|can not be read"):
        FieldReader(store)


@pytest.mark.filterwarnings("ignore:The data type")
def test_text_is_no_field(tmp_path):
    store = save(xr.Dataset({"t2m": (DIMS, np.full((3, 4, 5), "text"))}), tmp_path / "a", "zarr3")
    with pytest.raises(ValueError, match="`t2m` must hold integers or floating point|`t2m` holds Python objects"):
        FieldReader(store)


@pytest.mark.parametrize(
    "kind, package", [("netcdf3", "scipy"), ("netcdf4", "h5netcdf"), ("zarr3", "zarr"), ("zarr2", "xarray")]
)
def test_a_missing_package_is_named_with_the_extra(tmp_path, monkeypatch, kind, package):
    for number in range(2):  # several: it is no broken file, which would be skipped
        save(field(), tmp_path / str(number), kind)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf'needs {package}, .*: `pip install "mcvd-diffusers\[fields\]"`'):
        FieldReader(tmp_path)


def test_no_bytes_of_a_netcdf3_that_lies_take_memory(tmp_path):
    file = save(field(), tmp_path / "a", "netcdf3")
    content = bytearray(file.read_bytes())
    place = content.index(struct.pack(">i4s", 4, b"time")) + 8
    assert struct.unpack_from(">i", content, place) == (7,)
    struct.pack_into(">i", content, place, 2**30)
    file.write_bytes(content)
    with pytest.raises(ValueError, match=f"{file} can not be read"):
        FieldReader(file).read(0, 0, 3)


def test_a_zip_file_of_another_name_is_no_netcdf(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.nc", "w") as archive:
        archive.writestr("a", "b")
    with pytest.raises(ValueError, match="zip file"):
        FieldReader(tmp_path / "a.nc")
