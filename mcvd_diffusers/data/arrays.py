"""Videos stored as plain arrays: `.npy`, `.npz` and HDF5 files of any layout.

An array does not say which of its axes is time, so the user does: `axes="NTHWC"` names each axis of the stored array.

```python
reader = ArrayReader("rain.h5", axes="NTHW", variables=["radar"])
reader.name(7)  # "rain/7"
reader.read(7, start=3, count=16)  # (16, 1, H, W), in the units and the type of the file
```

Files are not trusted: nothing in them is executed (no pickles), nothing outside of them is opened (links), and what they
declare is compared with the bytes that are there before memory is taken for it.

[`StoredArrayReader`] is what this reader and the one of fields (`fields.py`) share: which arrays make a video, and the
way from stored axes to frames.

Shapes: N videos, T frames, C channels, H height, W width, D entries of a vector.
"""

import io
import lzma
import math
import mmap
import warnings
import zipfile
import zlib
from abc import abstractmethod
from bisect import bisect_right
from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from os import PathLike
from pathlib import Path, PurePosixPath

import numpy as np

from .original import _bad_file, _import_h5py, _open_hdf5, _open_member
from .reader import (
    NPY_ERRORS,
    ClipReader,
    VideoInfo,
    _natural_key,
    check_not_shrunk,
    check_regular_file,
    describe_files,
    errors_naming,
    existing_path,
    find_files,
    shorten,
    sidecar_file,
)


ARRAY_SUFFIXES = {".npy": "npy", ".npz": "npz", ".hdf5": "hdf5", ".h5": "hdf5", ".hdf": "hdf5"}

# A chunk is unpacked as a whole, however little of it is wanted, and a frame is the least that can be wanted.
MAX_CHUNK_BYTES = 2**30
MAX_NPZ_MEMBER_BYTES = 4 * 2**30
MAX_CACHED_BYTES = 256 * 2**20
MAX_OPEN_FILES = 64
# numpy itself reads no header of more than 10 000 characters from files that it does not trust.
MAX_NPY_HEADER_BYTES = 12 * 2**10
# Reasons can be long.
MAX_REASONS_IN_MESSAGE = 3

_ZIP_ERRORS = (OSError, EOFError, KeyError, ValueError, RuntimeError, zipfile.BadZipFile, zlib.error, lzma.LZMAError)


# ----------------------------------------------------------------------------------------------------------------------
# Axes


def check_axes(axes: str) -> str:
    """
    Checks an argument that must name the axes of a stored array.

    Args:
        axes (`str`): What the caller passed.

    Returns:
        `str`: The letters.

    Raises:
        `ValueError`: If a letter is unknown or occurs twice, or T, H or W is missing.
    """
    is_valid = isinstance(axes, str) and set("THW") <= set(axes) <= set("NTCHW") and len(set(axes)) == len(axes)
    if not is_valid:
        raise ValueError(
            "`axes` must name each axis of the stored array by a letter, N (videos), T (frames), C (channels), H "
            f'(height) or W (width), each at most once and T, H and W among them, such as "TCHW", but got {axes!r}.'
        )
    return axes


def suggest_axes(shape: Sequence[int]) -> str:
    """
    What the axes of an array may be, as an example for a message.

    Args:
        shape (`Sequence[int]`): Shape of the array.

    Returns:
        `str`: Letters, as many as axes if these are 3, 4 or 5.
    """
    is_channels = [length <= 4 for length in shape]  # grey, RGB, RGBA
    if len(shape) == 5:
        return "NTHWC" if is_channels[4] and not is_channels[2] else "NTCHW"
    if len(shape) == 4:
        # Moving MNIST is stored as 20 frames of 10 000 videos.
        long = "TNHW" if shape[1] > 8 * shape[0] else "NTHW"
        return "TCHW" if is_channels[1] else "THWC" if is_channels[3] else long
    return "THW"


def window_index(axes: str, number: int | None, frames: range) -> tuple[int | slice, ...]:
    """
    The index of a window in a stored array.

    Args:
        axes (`str`): Letters of the axes.
        number (`int`, *optional*): Place on the axis N.
        frames (`range`): Frames of the window.

    Returns:
        `tuple[int | slice, ...]`: An index for each axis.
    """
    # The range's own stop can lie behind the last frame.
    index = {"N": number, "T": slice(frames[0], frames[-1] + 1, frames.step)}
    return tuple(index.get(letter, slice(None)) for letter in axes)


def as_frames(window: np.ndarray, axes: str) -> np.ndarray:
    """
    A window with its axes in the order of frames.

    Args:
        window (`np.ndarray`): The window, without an axis N.
        axes (`str`): Letters of the stored axes; an N is passed over.

    Returns:
        `np.ndarray` of shape `(T, C, H, W)`: A view.
    """
    letters = axes.replace("N", "")
    if "C" not in letters:
        window, letters = window[..., None], letters + "C"
    return window.transpose([letters.index(letter) for letter in "TCHW"])  # (T, C, H, W)


def check_variables(variables: Sequence[str] | None) -> tuple[str, ...] | None:
    """
    Checks an argument that must name arrays.

    Args:
        variables (`Sequence[str]`, *optional*): What the caller passed.

    Returns:
        `tuple[str, ...]` or `None`: The names.

    Raises:
        `ValueError`: If they are no list of different names.
    """
    if variables is None:
        return None
    is_list = isinstance(variables, (list, tuple)) and len(variables) > 0
    if not is_list or not all(isinstance(name, str) and name for name in variables):
        raise ValueError(f'`variables` must be a list of names, such as ["t2m", "msl"], but got {variables!r}.')
    if len(set(variables)) < len(variables):
        raise ValueError(f"`variables` must name each array once but got {list(variables)}.")
    return tuple(variables)


# ----------------------------------------------------------------------------------------------------------------------
# Arrays and the videos in them


@dataclass(frozen=True)
class StoredArray:
    """
    What the header of an array says.

    Args:
        name (`str`): Its name in the file; empty if the file is the array.
        shape (`tuple[int, ...]`): Its shape.
        dtype (`np.dtype`): Type of the values as they are read, in the byte order of the file.
        axes (`str`, *optional*): Letters of its axes, once they are known.
        problem (`str`, *optional*): Why it can not be read. It may still stand beside one that can.
        offset (`int`, *optional*): `.npy`: where the values begin.
        is_fortran (`bool`, *optional*): `.npy`: whether the first axis varies fastest.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    axes: str = ""
    problem: str | None = None
    offset: int = 0
    is_fortran: bool = False

    @property
    def returned_dtype(self) -> np.dtype:
        """Type of the values as a reader returns them: in native order, and floating-point 0 and 1 for truth values."""
        if self.dtype.kind == "b":
            # As uint8, which is read as levels from 0 to 255, a mask would be nearly black.
            return np.dtype(np.float32)
        return np.dtype(f"{self.dtype.kind}{self.dtype.itemsize}")

    def length(self, letter: str) -> int | None:
        """Length of the axis of a letter; 1 for no axis C, `None` for no other."""
        if letter in self.axes:
            return self.shape[self.axes.index(letter)]
        return 1 if letter == "C" else None

    def check(self, file: Path) -> None:
        """Raises a `ValueError` that names the file if the values can not be read, are no numbers, or are none."""
        label = f"{file}: `{self.name}`" if self.name else str(file)
        if self.problem is not None:
            raise ValueError(f"{label} {self.problem}")
        if self.dtype.hasobject:
            raise ValueError(
                f"{label} holds Python objects, which only pickles can store, and these are never loaded: they can run "
                "code. Save numbers."
            )
        if self.dtype.kind not in "biuf" or self.dtype.itemsize > 8:
            raise ValueError(f"{label} must hold integers or floating point of at most 64 bits but has {self.dtype}.")
        if 0 in self.shape:
            raise ValueError(f"{label} is empty: its shape is {self.shape}.")


@dataclass(frozen=True)
class VideoSource:
    """
    A file, or a part of it, that holds a video or, with an axis N, several.

    Args:
        file (`Path`): The file.
        arrays (`tuple[StoredArray, ...]`, *optional*): What is put together on the channel axis, in this order.
        info ([`VideoInfo`], *optional*): Length and geometry of each video.
        num_videos (`int`, *optional*): Length of the axis N; `None` if there is none.
        member (`str`, *optional*): Name of the array, where each array of the file is a video.
        error (`str`, *optional*): Why the file can not be read; it counts as one video then.
    """

    file: Path
    arrays: tuple[StoredArray, ...] = ()
    info: VideoInfo | None = None
    num_videos: int | None = None
    member: str = ""
    error: str | None = None


def video_source(file: Path, arrays: Sequence[StoredArray], *, member: str = "") -> VideoSource:
    """
    Puts arrays of a file together to videos.

    Args:
        file (`Path`): The file.
        arrays (`Sequence[StoredArray]`): The arrays, with their axes.
        member (`str`, *optional*): Name of the array, where each array of the file is a video.

    Returns:
        [`VideoSource`]: The videos.

    Raises:
        `ValueError`: If an array can not be read, or they differ in another axis than the channels.
    """
    for array in arrays:
        array.check(file)
    first = arrays[0]
    if len({tuple(array.length(letter) for letter in "NTHW") for array in arrays}) > 1:
        raise ValueError(
            f"`variables` must name arrays that differ in their channels only but {file} holds "
            f"{describe_arrays(arrays)}."
        )
    num_channels = sum(array.length("C") for array in arrays)
    dtype = np.result_type(*(array.returned_dtype for array in arrays))
    frame_bytes = num_channels * first.length("H") * first.length("W") * dtype.itemsize
    if frame_bytes > MAX_CHUNK_BYTES:
        raise ValueError(
            f"{file} states frames of {frame_bytes} bytes ({describe_arrays(arrays)}), more than the {MAX_CHUNK_BYTES} "
            "that are read. Check `axes`."
        )
    info = VideoInfo(
        num_frames=first.length("T"),
        num_channels=num_channels,
        height=first.length("H"),
        width=first.length("W"),
        dtype=dtype.name,
    )
    return VideoSource(file, tuple(arrays), info=info, num_videos=first.length("N"), member=member)


def check_vector(array: StoredArray, file: Path, lengths: tuple[int, ...]) -> None:
    """
    Checks that an array has a row for each frame.

    Args:
        array ([`StoredArray`]): The array.
        file (`Path`): Where it is.
        lengths (`tuple[int, ...]`): Lengths that its first axes must have, those of the frames.

    Raises:
        `ValueError`: If it can not be read, or has other axes.
    """
    array.check(file)
    if array.shape[: len(lengths)] != lengths:
        raise ValueError(
            f"A vector must begin with the axes of the frames that it goes with, {lengths}, but {file} holds "
            f"{describe_arrays([array])}."
        )
    row_bytes = math.prod(array.shape[len(lengths) :]) * array.dtype.itemsize
    if row_bytes > MAX_CHUNK_BYTES:
        raise ValueError(
            f"{file} states a vector of {row_bytes} bytes for each frame ({describe_arrays([array])}); at most "
            f"{MAX_CHUNK_BYTES} are read."
        )


def describe_arrays(arrays: Iterable[StoredArray]) -> str:
    """
    Arrays for a message.

    Args:
        arrays (`Iterable[StoredArray]`): What is listed.

    Returns:
        `str`: Names, shapes and types.
    """
    listed = [f"{f'`{a.name}`' if a.name else 'an array'} of shape {a.shape}, {a.dtype}" for a in arrays]
    return shorten(listed) or "no array"


class MappedFiles:
    """
    Arrays in files as read-only memory; the files used last stay open. A copy in another process begins with none open.

    A file that changes is opened again: as long as its header says what it said, its new values are as good as the old.
    """

    def __init__(self):
        self._maps: OrderedDict[Path, tuple[tuple[int, ...], mmap.mmap]] = OrderedDict()
        # By which a change is noticed, inode, size and time: of the file when the header at a place was right.
        self._stamps: dict[tuple[Path, int], tuple[int, ...]] = {}

    def __len__(self) -> int:
        return len(self._maps)

    def __getstate__(self) -> dict:
        return {"_maps": OrderedDict(), "_stamps": self._stamps}

    def array(self, file: Path, array: StoredArray, start: int = 0) -> np.ndarray:
        """
        An array that lies in a file as it does in memory.

        Args:
            file (`Path`): The file.
            array ([`StoredArray`]): What its header says.
            start (`int`, *optional*, defaults to 0): First byte of the array's own file within this one.

        Returns:
            `np.ndarray`: A view, to be copied at once.

        Raises:
            `OSError` or `ValueError`: If the file is gone or has become too short, or holds another array now.
        """
        offset = start + array.offset
        num_bytes = math.prod(array.shape) * array.dtype.itemsize
        try:
            status = check_not_shrunk(file, offset + num_bytes)
        except ValueError:
            self._maps.pop(file, None)
            raise
        stamp = status.st_ino, status.st_size, status.st_mtime_ns
        if self._stamps.get((file, start)) != stamp:
            if (file, start) in self._stamps:
                with errors_naming(file, ValueError), file.open("rb") as stream:
                    stream.seek(start)
                    head = stream.read(min(MAX_NPY_HEADER_BYTES, array.offset))
                    found = _parse_npy(head, array.offset + num_bytes, name="", label="it has changed, and now")
                    check_same_array(found, array)
            self._stamps[file, start] = stamp
        if file not in self._maps or self._maps[file][0] != stamp:
            with errors_naming(file, ValueError), file.open("rb") as stream:
                self._maps[file] = stamp, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
            if len(self._maps) > MAX_OPEN_FILES:
                self._maps.popitem(last=False)  # closed when the last view of it goes
        self._maps.move_to_end(file)
        order = "F" if array.is_fortran else "C"
        try:
            return np.ndarray(array.shape, array.dtype, self._maps[file][1], offset, order=order)
        except TypeError as error:
            raise ValueError(f"{file} has shrunk while it was opened: {error}. Copy it again.") from error


def check_same_array(found, array: StoredArray) -> None:
    """
    Checks that what is found in a file is what was found there at first.

    Args:
        found: What has a `shape` and a `dtype`, and perhaps an `offset` and an order, as a [`StoredArray`] has.
        array ([`StoredArray`]): What its header said at first.

    Raises:
        `ValueError`: If they differ.
    """
    is_moved = isinstance(found, StoredArray) and (found.offset, found.is_fortran) != (array.offset, array.is_fortran)
    if found.shape != array.shape or found.dtype != array.dtype or is_moved:
        where = f"`{array.name}` has" if array.name else "it has"
        raise ValueError(
            f"{where} changed since the file was first opened, from {array.dtype} of shape {array.shape} to {found.dtype} of "
            f"shape {found.shape}. Start again, and do not write to files that are being read."
        )


class StoredArrayReader(ClipReader):
    """
    What readers of stored arrays share: videos that are windows of arrays, in files of which some may be broken.

    To be written by a source: `_scan(file)`, which finds the videos of a file, `_read_windows(file, windows)`, and
    `_read_vector`. Its constructor calls `_set_files`.
    """

    @abstractmethod
    def _scan(self, file: Path) -> list[VideoSource]:
        """The videos of a file; a `ValueError` that names it if there are none to be read."""

    @abstractmethod
    def _read_windows(
        self, file: Path, windows: list[tuple[StoredArray, tuple[int | slice, ...]]]
    ) -> list[np.ndarray]:
        """Windows of arrays of one file."""

    def _set_files(self, folder: Path, files: list[Path]) -> None:
        """Scans the files; their paths below `folder` become the names of videos."""
        self._sources: list[VideoSource] = []
        for file in files:
            try:
                self._sources += self._scan(file)
            except (OSError, ValueError) as error:
                if len(files) == 1:
                    raise
                # One broken file of many is a video that can not be read, which `ClipDataset` counts and skips.
                self._sources.append(VideoSource(file, error=str(error)))
        reasons = [source.error for source in self._sources if source.error is not None]
        if len(reasons) == len(self._sources):
            more = (
                f" (and {len(reasons) - MAX_REASONS_IN_MESSAGE} more)" if len(reasons) > MAX_REASONS_IN_MESSAGE else ""
            )
            raise ValueError(
                f"`path` must hold files that can be read but none of the {len(files)} in {folder} can:\n"
                + "\n".join(reasons[:MAX_REASONS_IN_MESSAGE])
                + more
            )
        # Video i is of the first source that ends behind i.
        self._ends = list(accumulate(source.num_videos or 1 for source in self._sources))

        relative = {file: PurePosixPath(file.relative_to(folder).as_posix()) for file in files}
        stems = {file: path.with_suffix("") for file, path in relative.items()}
        counts = Counter(stems.values())
        folders = {parent for stem in stems.values() for parent in stem.parents}
        # Without its suffix a file can have the name of another, or of a folder: `a.npy`'s video 0 and `a/0.npy`.
        self._names = {
            file: str(relative[file] if counts[stem] > 1 or stem in folders else stem) for file, stem in stems.items()
        }

    def _locate(self, video: int) -> tuple[VideoSource, int | None]:
        """The source of a video, and its place on the axis N."""
        place = bisect_right(self._ends, video)
        source = self._sources[place]
        if source.num_videos is None:
            return source, None
        return source, video - (self._ends[place - 1] if place else 0)

    def __len__(self) -> int:
        return self._ends[-1]

    def name(self, video: int) -> str:
        """Name of a video: see [`ClipReader`]."""
        source, number = self._locate(video)
        parts = [self._names[source.file], source.member, "" if number is None else str(number)]
        return "/".join(part for part in parts if part)

    def info(self, video: int) -> VideoInfo:
        """Length and geometry of a video: see [`ClipReader`]."""
        source, _ = self._locate(video)
        if source.error is not None:
            raise ValueError(source.error)
        return source.info

    def _read(self, video: int, frames: range) -> np.ndarray:
        source, number = self._locate(video)
        windows = [(array, window_index(array.axes, number, frames)) for array in source.arrays]
        parts = [
            as_frames(window, array.axes).astype(array.returned_dtype, copy=False)
            for array, window in zip(source.arrays, self._read_windows(source.file, windows))
        ]
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)  # (T, C, H, W)


class ArrayReader(StoredArrayReader):
    """
    Reads videos that are stored as arrays in `.npy`, `.npz` or HDF5 files.

    HDF5 needs h5py (`pip install "mcvd-diffusers[hdf5]"`). Of `.npy` and HDF5 files only the frames that are asked for
    are read; an array in an `.npz` is unpacked as a whole, and kept up to 256 MiB. Big-endian values are converted,
    truth values become 0. and 1., float32. Pickled objects are refused, and so are links and storage outside of an HDF5 file.
    If one of several files is broken, it counts as a video that can not be read.

    Vectors are arrays of the same file whose axes are T, or N and T in the order of `axes`, and then any; if each
    array of the file is a video, `action/3` is the vector `action` of video `3` (and of `videos/3`). Those of
    `jump.npy` lie beside it, in `jump.action.npy`.

    Args:
        path (`str` or `os.PathLike`):
            A file, or a folder of files of one of the three kinds; sub-folders are searched too. HDF5 files in the
            layout of the original MCVD code are for [`HDF5Reader`].
        axes (`str`):
            A letter for each axis of the stored arrays: N (videos), T (frames), C (channels), H (height), W (width).
            N and C may be missing.
        variables (`Sequence[str]`, *optional*):
            Names of the arrays that are put together on the channel axis, in this order; in HDF5 also
            `"group/frames"`. By default the only one with as many axes as `axes`; if there are several of one C, H and
            W in one group, and `axes` has no N, each of them is a video.

    Raises:
        `ValueError`: If `path` does not exist or holds no such file, `axes` or `variables` do not fit what it holds, or
            none of its files can be read.
        `ImportError`: If `path` holds HDF5 files and h5py is not installed.
    """

    def __init__(self, path: str | PathLike, *, axes: str | None, variables: Sequence[str] | None = None):
        path = existing_path("path", path)
        files = _array_files(path)
        self.variables = check_variables(variables)
        self._open_files = MappedFiles()
        self._unpacked: OrderedDict[tuple[Path, str], np.ndarray] = OrderedDict()
        self._slow_files: set[Path] = set()  # that have been warned of
        if axes is None:
            self._ask_for_axes(files)
        self.axes = check_axes(axes)
        self._set_files(path if path.is_dir() else path.parent, files)

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_unpacked": OrderedDict()}

    def info(self, video: int) -> VideoInfo:
        """Length and geometry of a video, with a warning once if its file is slow to read: see [`ClipReader`]."""
        source, _ = self._locate(video)
        if source.file.suffix.lower() == ".npz" and source.file not in self._slow_files:
            num_bytes = sum(math.prod(array.shape) * array.dtype.itemsize for array in source.arrays)
            if num_bytes > MAX_CACHED_BYTES:
                self._slow_files.add(source.file)
                warnings.warn(
                    f"{source.file} is slow to read: {num_bytes} bytes are unpacked anew for each clip, as at most "
                    f"{MAX_CACHED_BYTES} are kept. Save the array as .npy, of which only the wanted frames are read.",
                    stacklevel=2,
                )
        return super().info(video)

    def _ask_for_axes(self, files: list[Path]) -> None:
        errors = []
        for file in files:
            try:
                arrays = _list_arrays(file, self.variables)
            except (OSError, ValueError) as error:
                errors.append(error)
                continue
            largest = max(arrays, key=lambda array: (len(array.shape) <= 5, math.prod(array.shape)), default=None)
            example = "TCHW" if largest is None else suggest_axes(largest.shape)
            raise ValueError(
                f"`axes` must name each axis of the stored arrays, which do not say it themselves, but got none. {file} "
                f"holds {describe_arrays(arrays)}. Pass a letter for each axis, N (videos), T (frames), C (channels), H "
                f'(height) or W (width), such as "{example}".'
            )
        raise errors[0]

    def _scan(self, file: Path) -> list[VideoSource]:
        listed = _list_arrays(file, self.variables)
        fitting = [replace(array, axes=self.axes) for array in listed if len(array.shape) == len(self.axes)]
        if not fitting or self.variables is not None and len(fitting) < len(listed):
            shapes = [array.shape for array in listed if 3 <= len(array.shape) <= 5]
            raise ValueError(
                f'`axes` must have a letter for each axis of the stored array but "{self.axes}" has {len(self.axes)} and '
                f"{file} holds {describe_arrays(listed)}."
                + (f' Pass others, such as "{suggest_axes(max(shapes, key=math.prod))}".' if shapes else "")
            )
        if self.variables is not None or len(fitting) == 1:
            return [video_source(file, fitting)]

        groups = {PurePosixPath(array.name).parent for array in fitting}
        kinds = {tuple(array.length(letter) for letter in "CHW") for array in fitting}
        if "N" in self.axes or len(groups) > 1 or len(kinds) > 1:
            raise ValueError(
                f'`variables` must name the arrays to read, since several in {file} have the axes "{self.axes}": '
                f"{describe_arrays(fitting)}. (Without an axis N each would be a video, if all lay in one group and had "
                "the same channels, height and width.)"
            )
        fitting.sort(key=lambda array: _natural_key(array.name))
        return [video_source(file, [array], member=array.name) for array in fitting]

    def _read_windows(
        self, file: Path, windows: list[tuple[StoredArray, tuple[int | slice, ...]]]
    ) -> list[np.ndarray]:
        kind = ARRAY_SUFFIXES[file.suffix.lower()]
        if kind == "npy":
            return [self._open_files.array(file, array)[index] for array, index in windows]
        if kind == "npz":
            return [self._unpack(file, array)[index] for array, index in windows]
        check_regular_file(file)
        with _open_hdf5(file) as root:
            datasets = [_open_dataset(root, array.name, file) for array, _ in windows]
            for dataset, (array, _) in zip(datasets, windows):
                check_same_array(dataset, array)
            return [dataset[index] for dataset, (_, index) in zip(datasets, windows)]

    def _unpack(self, file: Path, array: StoredArray) -> np.ndarray:
        """An array of an `.npz`; the last ones are kept, since the next clip is often of the same."""
        key = file, array.name
        if key in self._unpacked:
            self._unpacked.move_to_end(key)
            return self._unpacked[key]
        check_regular_file(file)
        with errors_naming(file, *_ZIP_ERRORS), zipfile.ZipFile(file) as archive:
            with archive.open(f"{array.name}.npy") as stream:
                values = np.lib.format.read_array(stream, allow_pickle=False)
            check_same_array(values, array)
        values.flags.writeable = False
        if values.nbytes <= MAX_CACHED_BYTES:
            self._unpacked[key] = values
            while sum(kept.nbytes for kept in self._unpacked.values()) > MAX_CACHED_BYTES:
                self._unpacked.popitem(last=False)
        return values

    def _read_vector(self, video: int, name: str, frames: range) -> np.ndarray:
        source, number = self._locate(video)
        file = source.file
        if ARRAY_SUFFIXES[file.suffix.lower()] == "npy":
            file, stored_name = sidecar_file(file, name), ""
            (array,) = _list_arrays(file, None)
        else:
            # A video of its own has a vector of its own, and the videos of an axis N share one.
            stored_name = f"{name}/{PurePosixPath(source.member).name}" if source.member else name
            (array,) = _list_arrays(file, (stored_name,))
        letters = "".join(letter for letter in self.axes if letter in "NT")
        check_vector(array, file, tuple(source.arrays[0].length(letter) for letter in letters))
        (rows,) = self._read_windows(file, [(array, window_index(letters, number, frames))])
        return rows.reshape(len(frames), -1)  # (T, D)


# ----------------------------------------------------------------------------------------------------------------------
# Files


def _array_files(path: Path) -> list[Path]:
    """The file itself, or the files of a folder, without what lies beside them as vectors; of one kind."""
    below = find_files(path) if path.is_dir() else [path]
    files = [file for file in below if file.suffix.lower() in ARRAY_SUFFIXES]
    if path.is_dir():
        stems = {(file.parent, file.stem) for file in below}
        files = [file for file in files if file.suffix.lower() != ".npy" or not _is_sidecar(file, stems)]
    kinds = sorted({ARRAY_SUFFIXES[file.suffix.lower()] for file in files})
    if len(kinds) != 1:
        holds = f"files of several kinds ({', '.join(kinds)})" if kinds else describe_files(below)
        raise ValueError(
            f"`path` must be a file, or a folder of files of one kind, npy, npz or hdf5 ({', '.join(ARRAY_SUFFIXES)}), "
            f"but {path} holds {holds}."
        )
    return files


def _is_sidecar(file: Path, stems: set[tuple[Path, str]]) -> bool:
    """Whether a file is `jump.action.npy` beside a `jump.npy`."""
    parts = file.stem.split(".")
    return any((file.parent, ".".join(parts[:end])) in stems for end in range(1, len(parts)))


def _list_arrays(file: Path, variables: tuple[str, ...] | None) -> list[StoredArray]:
    """The named arrays of a file, or all of them."""
    kind = ARRAY_SUFFIXES[file.suffix.lower()]
    if check_regular_file(file).st_size == 0:
        raise ValueError(f"{file} is empty: it has 0 bytes. Copy the file again.")
    if kind == "hdf5":
        return _list_hdf5(file, variables)
    arrays = [_npy_array(file)] if kind == "npy" else _list_npz(file)
    if variables is None:
        return arrays
    if kind == "npy":
        raise ValueError(
            f"`variables` must be left out for .npy files, whose one array has no name, but got {list(variables)} for {file}."
        )
    by_name = {array.name: array for array in arrays}
    missing = [name for name in variables if name not in by_name]
    if missing:
        raise ValueError(f"{file} must hold {', '.join(f'`{n}`' for n in missing)} but has {describe_arrays(arrays)}.")
    return [by_name[name] for name in variables]


def _npy_array(file: Path) -> StoredArray:
    with file.open("rb") as stream:
        head = stream.read(MAX_NPY_HEADER_BYTES)
    return _parse_npy(head, file.stat().st_size, name="", label=str(file))


def _list_npz(file: Path) -> list[StoredArray]:
    heads = []
    with errors_naming(file, *_ZIP_ERRORS), zipfile.ZipFile(file) as archive:
        for path in dict.fromkeys(archive.namelist()):
            if path.endswith(".npy"):
                member = archive.getinfo(path)
                with archive.open(member) as stream:
                    heads.append((path.removesuffix(".npy"), stream.read(MAX_NPY_HEADER_BYTES), member.file_size))
    arrays = []
    for name, head, num_bytes in heads:
        array = _parse_npy(head, num_bytes, name=name, label=f"{file}: `{name}`")
        if num_bytes > MAX_NPZ_MEMBER_BYTES:
            problem = (
                f"has {num_bytes} bytes, which an .npz has to unpack as a whole; at most {MAX_NPZ_MEMBER_BYTES} are. Save "
                "it as .npy, which is read in place."
            )
            array = replace(array, problem=problem)
        arrays.append(array)
    return arrays


def _parse_npy(head: bytes, num_bytes: int, *, name: str, label: str) -> StoredArray:
    """The header of an array of `num_bytes` in all, once what it states has been compared with them."""
    if not head.startswith(np.lib.format.MAGIC_PREFIX):
        # Pickles of protocol 2 and later begin with this byte.
        kind = "a pickle, which is never loaded: it can run code" if head[:1] == b"\x80" else "something else"
        raise ValueError(f"{label} must be an array in numpy's format but is {kind}: it begins with {head[:8]!r}.")
    stream = io.BytesIO(head)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    with errors_naming(label, *NPY_ERRORS):
        version = np.lib.format.read_magic(stream)
        if version not in readers:
            raise ValueError(f"its format {version} is none of those that hold numbers, {list(readers)}")
        shape, is_fortran, dtype = readers[version](stream)
    if min(shape, default=0) < 0:
        raise ValueError(f"{label} can not be read: its shape is {shape}.")
    array = StoredArray(name, tuple(map(int, shape)), dtype, offset=stream.tell(), is_fortran=is_fortran)
    stated = array.offset + math.prod(array.shape) * dtype.itemsize
    if stated != num_bytes and not dtype.hasobject:  # pickles have any length
        trouble = "is truncated" if stated > num_bytes else "holds more than its array"
        raise ValueError(
            f"{label} {trouble}: shape {array.shape} of {dtype} makes {stated} bytes with the header, but it has "
            f"{num_bytes}. Copy or save it again."
        )
    return array


# What is raised within `_open_hdf5` counts as damage, so what is found there is judged after it.


def _list_hdf5(file: Path, variables: tuple[str, ...] | None) -> list[StoredArray]:
    h5py = _import_h5py()
    with _open_hdf5(file) as root:
        # `links.exists` does not open what a link leads to.
        is_original = (
            root.id.links.exists(b"len")
            and root.id.links.get_info(b"len").type == h5py.h5l.TYPE_HARD
            and isinstance(root["len"], h5py.Group)
        )
        if is_original:
            arrays = []
        elif variables is None:
            arrays = [_hdf5_array(dataset, name) for name, dataset in walk_hdf5(root, file)]
        else:
            arrays = [_hdf5_array(_open_dataset(root, name, file), name) for name in variables]
    if is_original:
        raise ValueError(
            f"{file} is in the layout of the original MCVD code: it has a group `len`. Read it with `HDF5Reader`, which "
            "needs no `axes`."
        )
    return arrays


def _open_dataset(root, name: str, file: Path):
    """The data set at a path, no part of which leads out of the file."""
    *groups, last = [part for part in name.split("/") if part] or [name]
    for group in groups:
        root = _open_member(root, group, "group", file)
    return _open_member(root, last, "data set", file)


def walk_hdf5(root, file: Path) -> Iterator[tuple[str, object]]:
    """
    All data sets of an HDF5 file, none of which lies anywhere else.

    Args:
        root (`h5py.File`): The open file.
        file (`Path`): Its path, for the message.

    Yields:
        `tuple[str, h5py.Dataset]`: Path in the file, without a leading slash, and data set.

    Raises:
        `ValueError`: If the file holds a link that is not hard, or a data set that is stored elsewhere or is virtual.
    """
    h5py = _import_h5py()
    groups, seen = [root], {h5py.h5o.get_info(root.id).addr}
    while groups:
        group = groups.pop()
        for name in group:
            if group.id.links.get_info(name.encode("utf-8", "surrogateescape")).type != h5py.h5l.TYPE_HARD:
                path = f"{group.name.rstrip('/')}/{name}".lstrip("/")
                raise _bad_file(
                    file, f"`{path}`", "a member of this file", "a link to another place, which is not followed"
                )
            member = group[name]
            if isinstance(member, h5py.Dataset):
                member = _open_member(group, name, "data set", file)
                yield member.name.lstrip("/"), member
            elif isinstance(member, h5py.Group):
                address = h5py.h5o.get_info(member.id).addr
                if address not in seen:  # hard links can make a circle
                    seen.add(address)
                    groups.append(member)


def _hdf5_array(dataset, name: str) -> StoredArray:
    problem = hdf5_chunk_problem(dataset)
    if dataset.shape is None or dataset.id.get_storage_size() == 0 and 0 not in dataset.shape:
        problem = "is empty: it was made, but never written."
    return StoredArray(name.strip("/"), dataset.shape or (), dataset.dtype, problem=problem)


def hdf5_chunk_problem(dataset) -> str | None:
    """
    Why the chunks of a data set can not be read.

    Args:
        dataset (`h5py.Dataset`): The data set.

    Returns:
        `str` or `None`: For a message; `None` if they can.
    """
    num_bytes = math.prod(dataset.chunks or (0,)) * dataset.id.get_type().get_size()
    if num_bytes <= MAX_CHUNK_BYTES:
        return None
    return (
        f"is stored in chunks of {num_bytes} bytes ({dataset.chunks}), which have to be unpacked as a whole; at most "
        f"{MAX_CHUNK_BYTES} are. Save it in smaller ones."
    )
