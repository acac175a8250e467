"""Videos stored as fields with named dimensions: Zarr stores and NetCDF files, as weather and climate data come.

```python
reader = FieldReader("era5.zarr", variables=["t2m", "msl"])  # t2m (time, latitude, longitude), in kelvin
reader.read(0, start=100, count=16)  # (16, 2, H, W)
```

xarray reads them, so fill values come out as NaN and packed integers in their units. Files are not trusted. xarray and
what it builds on follow links out of a file and load any codec that is installed, `pickle` too, which runs code; so what
a file or store declares is checked first, by [`check_zarr`] and with `arrays.walk_hdf5`, and what could lead outside is
refused.

Shapes: N samples, T frames, C channels, H height, W width, D entries of a vector.
"""

import json
import math
import os
import re
from collections import OrderedDict
from collections.abc import Sequence
from importlib import import_module
from os import PathLike
from pathlib import Path
from types import ModuleType

import numpy as np

from .arrays import (
    MAX_CHUNK_BYTES,
    StoredArray,
    StoredArrayReader,
    VideoSource,
    check_axes,
    check_variables,
    check_vector,
    hdf5_chunk_problem,
    suggest_axes,
    video_source,
    walk_hdf5,
)
from .original import _open_hdf5
from .reader import (
    _natural_key,
    check_not_shrunk,
    check_regular_file,
    describe_files,
    errors_naming,
    existing_path,
    find_files,
    refuse_folder,
    shorten,
)


NETCDF_SUFFIXES = (".nc", ".nc4", ".cdf", ".netcdf")
ZARR_SUFFIX = ".zarr"

# The dimensions that are recognised by their names, in small letters and without a number behind them.
DIMENSION_NAMES = {
    "N": "batch case clip ensemble episode event member n nsample number realization run sample sequence simulation "
    "trajectory video",
    "T": "date datetime day forecast_time frame hour lead_time month nt step t time time_step timestep valid_time year",
    "C": "band c channel component depth feature isobaric isobaricinhpa lev level nlev plev pressure pressure_level "
    "variable z",
    "H": "grid_latitude h height j lat latitude n_lat nj nlat northing ny projection_y_coordinate rlat row south_north y "
    "yc",
    "W": "col column easting grid_longitude i lon longitude n_lon ni nlon nx projection_x_coordinate rlon w west_east "
    "width x xc",
}
_LETTERS = {name: letter for letter, names in DIMENSION_NAMES.items() for name in names.split()}

MAX_METADATA_BYTES = 64 * 2**20
MAX_OPEN_DATASETS = 16

# Codecs that do nothing but arithmetic on bytes, as format 2 names them and, behind "numcodecs.", format 3.
NUMCODECS = frozenset(
    "adler32 astype bitround blosc bz2 crc32 crc32c delta fixedscaleoffset fletcher32 gzip jenkins_lookup3 lz4 lzma "
    "packbits pcodec quantize shuffle vlen-bytes vlen-utf8 zfpy zlib zstd".split()
)
ZARR3_CODECS = frozenset(
    "blosc bytes crc32c endian gzip sharding_indexed transpose vlen-bytes vlen-utf8 zstd".split()
) | {f"numcodecs.{name}" for name in NUMCODECS}
# Types of format 3 with no size in their name. Their values are at least pointers when they are in memory.
ZARR3_TYPES = frozenset(
    "bytes fixed_length_utf32 null_terminated_bytes numpy.datetime64 numpy.timedelta64 raw_bytes string "
    "variable_length_bytes variable_length_utf8".split()
)


class FieldReader(StoredArrayReader):
    """
    Reads videos from Zarr stores (formats 2 and 3) and NetCDF files (classic and NetCDF-4).

    Needs xarray and what it reads them with (`pip install "mcvd-diffusers[fields]"`). Values come in the units of the
    file: fill values become NaN, and packed integers are scaled. Dimensions must have names, as xarray writes them.
    Stores are folders on this machine; those in a zip file or behind a URL are not opened, nor groups within them. Refused are links and storage outside of the file or store, codecs that are
    not known to be harmless (`pickle` runs code), types of Python objects, and chunks of more than 1 GiB. If one of
    several files is broken, it counts as a video that can not be read.

    Vectors are variables of the same file with the dimension of time, and that of samples or not, and then any.

    Args:
        path (`str` or `os.PathLike`):
            A store, a NetCDF file, or a folder of such; sub-folders are searched too.
        axes (`str`, *optional*):
            A letter for each dimension of a variable: N (samples), T (frames), C (channels), H (height), W (width). N
            and C may be missing. By default the dimensions are recognised by their names, such as `time`, `lat` and
            `lon`.
        variables (`Sequence[str]`, *optional*):
            Names of the variables that are put together on the channel axis, in this order. By default the only one
            that has T, H and W.

    Raises:
        `ValueError`: If `path` does not exist or holds no such file, `axes` or `variables` do not fit what it holds, or
            none of its files can be read.
        `ImportError`: If a package is missing that reads such files.
    """

    def __init__(self, path: str | PathLike, *, axes: str | None = None, variables: Sequence[str] | None = None):
        if re.match("[a-z0-9+]+://", str(path)):
            raise ValueError(f"`path` must lie on this machine but got {str(path)!r}. Copy it here first.")
        path = existing_path("path", path)
        self.axes = None if axes is None else check_axes(axes)
        self.variables = check_variables(variables)
        outside = [name for name in self.variables or () if name.startswith("/") or ".." in name]
        if outside:
            raise ValueError(f'`variables` must be names, without ".." and a leading "/", but got {outside}.')
        self._datasets: OrderedDict = OrderedDict()
        self._sizes: dict[Path, int] = {}  # of NetCDF files, when they were opened
        self._pid = os.getpid()
        self._inherited: list = []
        files = _find_fields(path) if path.is_dir() and not _is_store(path) else [path]
        if not files:
            below = find_files(path)
            is_zip = any(file.suffix.lower() == ".zip" for file in below)
            raise ValueError(
                f"`path` must be a Zarr store ({ZARR_SUFFIX}), a NetCDF file ({', '.join(NETCDF_SUFFIXES)}) or a folder "
                f"of them, but {path} holds {describe_files(below)}."
                + (" Stores in zip files are not opened: unpack them." if is_zip else "")
            )
        self._set_files(path.parent if files == [path] else path, files)

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_datasets": OrderedDict(), "_inherited": []}

    def _scan(self, file: Path) -> list[VideoSource]:
        engine = _engine(file)
        _import_for(engine)
        if engine == "zarr":
            check_zarr(file)
        elif engine == "h5netcdf":
            _check_netcdf4(file)
        dataset = self._open(file)
        variables = dict(dataset.variables)
        names = list(dataset.data_vars) if self.variables is None else self.variables
        # What the parent holds open when it starts workers is of no use to them.
        dataset.close()
        held = _describe({name: variables[name] for name in dataset.data_vars})
        missing = [name for name in names if name not in variables]
        if missing:
            raise ValueError(f"`variables` must name variables of {file} but {missing} are none. It holds {held}.")
        arrays = [
            StoredArray(name, variables[name].shape, variables[name].dtype, axes=self._axes_of(variables[name].dims))
            for name in names
        ]
        fitting = [array for array in arrays if array.axes]
        if not fitting or self.variables is not None and len(fitting) < len(arrays):
            shapes = [array.shape for array in arrays if 3 <= len(array.shape) <= 5]
            example = suggest_axes(max(shapes, key=math.prod)) if shapes else "TCHW"
            expected = (
                f'have as many letters as a variable has dimensions but "{self.axes}" has {len(self.axes)}'
                if self.axes
                else "be passed, since no variable has dimensions that are known by name as T (frames), H (height) and W "
                "(width), each once"
                if self.variables is None
                else f"be passed, since not all dimensions of {list(self.variables)} are known by name"
            )
            raise ValueError(f'`axes` must {expected}. {file} holds {held}. Pass others, such as "{example}".')
        if self.variables is None and len(fitting) > 1:
            raise ValueError(
                f"`variables` must name those to read (they become channels), since {file} holds several: {held}."
            )
        return [video_source(file, fitting)]

    def _axes_of(self, dims: tuple) -> str:
        """A letter for each dimension; empty if they are not those of a video."""
        if self.axes is not None:
            return self.axes if len(self.axes) == len(dims) else ""
        letters = [_letter(str(dim)) for dim in dims]
        is_video = None not in letters and {"T", "H", "W"} <= set(letters) and len(set(letters)) == len(letters)
        return "".join(letters) if is_video else ""

    def _read_windows(
        self, file: Path, windows: list[tuple[StoredArray, tuple[int | slice, ...]]]
    ) -> list[np.ndarray]:
        dataset = self._dataset(file)
        with errors_naming(file, Exception):
            return [np.asarray(dataset.variables[array.name][index].values) for array, index in windows]

    def _read_vector(self, video: int, name: str, frames: range) -> np.ndarray:
        source, number = self._locate(video)
        dataset = self._dataset(source.file)
        if name not in dataset.variables:
            raise ValueError(
                f"{source.file} must hold the vector `{name}` but has {sorted(map(str, dataset.variables))}."
            )
        array = source.arrays[0]
        dim_of = dict(zip(array.axes, dataset.variables[array.name].dims))
        variable = dataset.variables[name]
        if dim_of["T"] not in variable.dims:
            raise ValueError(
                f"The vector `{name}` must have the dimension `{dim_of['T']}` of the frames but in {source.file} it has "
                f"{variable.dims}."
            )
        first = [dim_of[letter] for letter in "NT" if dim_of.get(letter) in variable.dims]
        variable = variable.transpose(*first, ...)  # (N, T, ...), lazily
        letters = "NT" if len(first) == 2 else "T"  # without an N it is the same for all samples
        stored = StoredArray(name, variable.shape, variable.dtype)
        check_vector(stored, source.file, tuple(array.length(letter) for letter in letters))
        index = {"N": number, "T": slice(frames[0], frames[-1] + 1, frames.step)}
        with errors_naming(source.file, Exception):
            rows = np.asarray(variable[tuple(index[letter] for letter in letters)].values)
        return rows.reshape(len(frames), -1)  # (T, D)

    def _dataset(self, file: Path):
        """The open file; opening takes as long as reading some clips, so the last ones stay open."""
        if self._pid != os.getpid():
            # After a fork. HDF5's handles and zarr's event loop belong to the parent: they are neither used nor closed.
            self._inherited.append(self._datasets)
            self._datasets, self._pid = OrderedDict(), os.getpid()
        if file not in self._datasets:
            self._datasets[file] = self._open(file)
            if len(self._datasets) > MAX_OPEN_DATASETS:
                self._datasets.popitem(last=False)[1].close()
        self._datasets.move_to_end(file)
        if file in self._sizes:
            # scipy maps NetCDF-3 into memory.
            try:
                check_not_shrunk(file, self._sizes[file])
            except ValueError:
                self._datasets.pop(file).close()
                raise
        return self._datasets[file]

    def _open(self, file: Path):
        xarray = _import("xarray")
        engine = _engine(file)
        options = {}
        if engine == "zarr":
            # Never through consolidated metadata, a second account of the same arrays.
            options = {"consolidated": False, "zarr_format": 3 if (file / "zarr.json").is_file() else 2}
        else:
            self._sizes[file] = check_regular_file(file).st_size
        # What is raised depends on where the damage is, and on which of five packages sees it.
        with errors_naming(file, Exception):
            return xarray.open_dataset(
                str(file),
                engine=engine,
                chunks=None,
                cache=False,
                mask_and_scale=True,
                decode_times=False,
                decode_timedelta=False,
                # An index would load the coordinates, however long they are said to be.
                create_default_indexes=False,
                **options,
            )


def _describe(variables: dict) -> str:
    """Variables for a message."""
    listed = [f"`{name}` ({', '.join(map(str, v.dims))}) of shape {v.shape}" for name, v in variables.items()]
    return shorten(listed) or "no variable"


def _letter(dim: str) -> str | None:
    """The axis that a dimension is by its name: `lat`, `Latitude`, `lat_0` and `lats` are H."""
    name = re.sub(r"_?[0-9]+$", "", dim.lower())
    return _LETTERS.get(name) or _LETTERS.get(name.removesuffix("s"))


def _import(package: str) -> ModuleType:
    """A package that only fields need."""
    try:
        return import_module(package)
    except ImportError as error:
        raise ImportError(
            f'Reading Zarr and NetCDF needs {package}, which is not installed: `pip install "mcvd-diffusers[fields]"`.'
        ) from error


def _import_for(engine: str) -> None:
    """Finds out now if something is missing: xarray would call it a broken file."""
    for package in {"zarr": ("zarr",), "h5netcdf": ("h5py", "h5netcdf"), "scipy": ("scipy",)}[engine]:
        _import(package)
    _import("xarray")


# ----------------------------------------------------------------------------------------------------------------------
# Files


def _is_store(folder: Path) -> bool:
    names = (".zgroup", ".zarray", ".zmetadata", "zarr.json")
    is_named = folder.suffix.lower() == ZARR_SUFFIX
    # Of a folder that may not be entered, these functions say no instead of raising.
    return os.path.isdir(folder) and (is_named or any(os.path.isfile(folder / name) for name in names))


def _find_fields(folder: Path) -> list[Path]:
    """All stores and NetCDF files below a folder in natural order; what is in a store is not looked at."""
    found, seen = [], set()
    for parent, subfolders, names in os.walk(folder, followlinks=True, onerror=refuse_folder):
        real = os.path.realpath(parent)
        if real in seen:  # a link back to where we have been
            subfolders.clear()
            continue
        seen.add(real)
        stores = [name for name in subfolders if _is_store(Path(parent, name))]
        subfolders[:] = [name for name in subfolders if name not in stores and not name.startswith(".")]
        # A dangling link to a store is kept: it counts as a video that can not be read.
        files = [
            name
            for name in names
            if Path(name).suffix.lower() in NETCDF_SUFFIXES
            or Path(name).suffix.lower() == ZARR_SUFFIX
            and not os.path.exists(Path(parent, name))
        ]
        found += [Path(parent, name) for name in stores + files if not name.startswith(".")]
    return sorted(found, key=lambda path: [_natural_key(part) for part in path.relative_to(folder).parts])


def _engine(file: Path) -> str:
    """What reads a file, by its first bytes."""
    if file.is_dir():
        return "zarr"
    check_regular_file(file)
    with file.open("rb") as stream:
        head = stream.read(8)
    if head == b"\x89HDF\r\n\x1a\n":
        return "h5netcdf"
    if head[:4] in (b"CDF\x01", b"CDF\x02"):
        return "scipy"
    if not head:
        raise ValueError(f"{file} is empty: it has 0 bytes. Copy the file again.")
    way_out = "Copy the file again."
    if head[:4] == b"CDF\x05":
        way_out = "It is NetCDF in the format CDF-5, which is not read: convert it (`nccopy -k nc4`)."
    elif head[:2] == b"PK":
        way_out = "It is a zip file; Zarr stores in zip files are not opened: unpack it."
    raise ValueError(f"{file} must be a NetCDF file or the folder of a Zarr store but begins with {head!r}. {way_out}")


def _check_netcdf4(file: Path) -> None:
    """Refuses an HDF5 file with anything that leads out of it, wherever in the file."""
    with _open_hdf5(file) as root:
        problems = [(name, hdf5_chunk_problem(dataset)) for name, dataset in walk_hdf5(root, file)]
    for name, problem in problems:
        if problem is not None:
            raise ValueError(f"{file}: `{name}` {problem}")


def check_zarr(store: Path) -> None:
    """
    Refuses a Zarr store that could run code, read outside of itself, or unpack to more than memory holds.

    Args:
        store (`Path`): Its folder.

    Raises:
        `ValueError`: If its metadata are broken or name a codec that is not known to be harmless, a type of Python
            objects, a chunk of more than 1 GiB or a key outside; or if a link in it leads outside.
    """
    inside = Path(os.path.realpath(store))
    checks = {
        ".zarray": _check_zarray,
        ".zgroup": _check_mapping,
        ".zattrs": _check_mapping,
        ".zmetadata": _check_zmetadata,
        "zarr.json": _check_zarr_json,
    }
    folders, num_found = [inside], 0
    while folders:
        try:
            entries = os.scandir(folders.pop())
        except OSError as error:
            refuse_folder(error)
        with entries:
            for entry in entries:
                is_link = entry.is_symlink()
                if is_link and not Path(os.path.realpath(entry.path)).is_relative_to(inside):
                    raise ValueError(f"{entry.path} is a link that leads out of the store, which is not followed.")
                # Only links are looked at twice: a store can have a million chunks.
                if os.path.isdir(entry.path) if is_link else entry.is_dir():
                    if not is_link:  # or it comes by itself
                        folders.append(entry.path)
                elif not (os.path.isfile(entry.path) if is_link else entry.is_file()):
                    raise ValueError(f"{entry.path} is neither a file nor a folder, as all in a store must be.")
                # Some file systems do not tell `ZARR.JSON` from `zarr.json`.
                elif (check := checks.get(entry.name.lower())) is not None:
                    num_found += 1
                    _check_metadata(Path(entry.path), check)
    if num_found == 0:
        raise ValueError(f"{store} is no Zarr store: it holds no .zgroup, .zarray or zarr.json.")


def _check_metadata(file: Path, check) -> None:
    num_bytes = check_regular_file(file).st_size
    if num_bytes > MAX_METADATA_BYTES:
        raise ValueError(
            f"{file} has {num_bytes} bytes, too many for metadata: at most {MAX_METADATA_BYTES} are read."
        )
    # Anything can stand where a list or a name is expected.
    with errors_naming(file, ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError):
        check(json.loads(file.read_bytes()))


def _check_mapping(document: dict) -> None:
    if not isinstance(document, dict):
        raise ValueError(f"it must be a JSON object but is {str(document)[:40]!r}")


def _check_keys(keys: Sequence[str]) -> None:
    outside = [key for key in keys if key.startswith(("/", "\\")) or ".." in re.split(r"[/\\]", key)]
    if outside:
        raise ValueError(f"it has keys that lead out of the store: {shorten(outside)}")


def _check_zmetadata(document: dict) -> None:
    nodes = document["metadata"]
    _check_keys(list(nodes))
    for key, node in nodes.items():
        if key.rpartition("/")[2].lower() == ".zarray":
            _check_zarray(node)


def _check_zarray(document: dict) -> None:
    dtype = np.dtype(_tuples(document["dtype"]))
    if dtype.hasobject:
        raise ValueError(
            f"its type {document['dtype']!r} is of Python objects (which text is in this format), which are not read. Write the "
            "store without it, or in format 3"
        )
    _check_chunk(document["chunks"], dtype.itemsize)
    if document.get("dimension_separator", ".") not in (".", "/"):
        raise ValueError(f"its dimension separator is {document['dimension_separator']!r}")
    for codec in [document.get("compressor"), *(document.get("filters") or [])]:
        if codec is not None:
            _check_codec(codec["id"], codec, NUMCODECS)


def _tuples(dtype: str | list) -> str | list:
    """A type as numpy takes it: in JSON the tuples of a record are lists."""
    if not isinstance(dtype, list):
        return dtype
    return [(field[0], _tuples(field[1]), *map(tuple, field[2:])) for field in dtype]


def _check_codec(name: str, settings: dict, allowed: frozenset[str]) -> None:
    if name not in allowed:
        raise ValueError(
            f"the codec {name!r} is not among those known to be harmless ({', '.join(sorted(allowed))}). If you trust the "
            "store, write it again with one of these"
        )
    for key in ("dtype", "astype", "encode_dtype", "decode_dtype"):
        if settings.get(key) is not None and np.dtype(settings[key]).hasobject:
            raise ValueError(f"the codec {name!r} makes Python objects")


def _check_chunk(shape: list[int], itemsize: int) -> None:
    if not all(isinstance(length, int) and length >= 0 for length in shape):
        raise ValueError(f"its chunks are {shape}")
    num_bytes = math.prod(shape) * itemsize
    if num_bytes > MAX_CHUNK_BYTES:
        raise ValueError(
            f"its chunks {shape} have {num_bytes} bytes and are unpacked as a whole; at most {MAX_CHUNK_BYTES} are. Store "
            "it in smaller ones"
        )


def _check_zarr_json(document: dict) -> None:
    consolidated = document.get("consolidated_metadata")
    if consolidated is not None:
        _check_keys(list(consolidated["metadata"]))
        for node in consolidated["metadata"].values():
            _check_zarr_json(node)
    if document["node_type"] == "group":
        return
    data_type = _named(document["data_type"])
    if data_type[0] in ZARR3_TYPES:
        itemsize = max(8, data_type[1].get("length_bytes", 0))
    elif re.fullmatch("bool|(u?int|float|complex)[0-9]+", data_type[0]):
        itemsize = np.dtype(data_type[0]).itemsize
    else:
        raise ValueError(f"its type {data_type[0]!r} is not known to hold no Python objects; numbers are read only")
    grid, grid_settings = _named(document["chunk_grid"])
    keys, keys_settings = _named(document["chunk_key_encoding"])
    if grid != "regular" or keys not in ("default", "v2") or keys_settings.get("separator", ".") not in (".", "/"):
        raise ValueError(f"its chunks are laid out as {grid!r} and {keys!r} {keys_settings}, which is not read")
    if document.get("storage_transformers"):
        raise ValueError("it has storage transformers, which are not read")
    _check_pipeline(document["codecs"], grid_settings["chunk_shape"], itemsize)


def _check_pipeline(codecs: list, chunk_shape: list[int], itemsize: int) -> None:
    """Checks codecs of format 3, and those within shards."""
    named = [_named(codec) for codec in codecs]
    for name, settings in named:
        _check_codec(name, settings, ZARR3_CODECS)
        if name == "sharding_indexed":
            _check_pipeline(settings["codecs"], settings["chunk_shape"], itemsize)
            # The index has two offsets for each chunk of the shard.
            num_chunks = [-(-whole // part) for whole, part in zip(chunk_shape, settings["chunk_shape"])]
            _check_pipeline(settings.get("index_codecs", []), num_chunks, 16)
    # Of a shard only the chunks are unpacked that are wanted, unless it has been packed once more.
    if [name for name, _ in named] != ["sharding_indexed"]:
        _check_chunk(chunk_shape, itemsize)


def _named(part: str | dict) -> tuple[str, dict]:
    """Name and settings of a part of the metadata, which may be given by its name alone."""
    return (part, {}) if isinstance(part, str) else (part["name"], part.get("configuration") or {})
