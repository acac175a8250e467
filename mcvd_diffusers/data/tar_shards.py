"""Webdataset shards: tar files whose members are samples, by random access.

Webdataset streams its shards, so that clips come in their order. Here the headers of a shard are read once and what
they announce is read from its place, so that any frame of any sample is as near as in a folder. Nothing is ever
extracted: names in a shard, whatever they say, are names only.

Shapes: T frames, C channels, H height, W width, D entries of a vector.
"""

import io
import json
import re
import tarfile
from array import array as number_list
from functools import partial
from os import PathLike
from pathlib import Path
from typing import BinaryIO

import numpy as np

from .arrays import (
    MAX_NPY_HEADER_BYTES,
    MappedFiles,
    StoredArray,
    _parse_npy,
    as_frames,
    check_axes,
    suggest_axes,
    window_index,
)
from .frame_folders import FRAME_SUFFIXES, images_info, read_image
from .reader import (
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
    stack_frames,
)
from .video_files import VIDEO_SUFFIXES, VideoFile


TAR_SUFFIXES = (".tar",)
COMPRESSED_SUFFIXES = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst")

MAX_JSON_BYTES = 64 * 2**20

# Webdataset's rule: what stands before the first dot of the file name is the sample's, the rest the member's.
SAMPLE_AND_KIND = re.compile(r"((?:.*/|)[^./]+)[.]([^/]*)", re.DOTALL)


class TarReader(ClipReader):
    """
    Reads webdataset shards, of which each sample is one video.

    The members of a sample share their path up to the first dot of the file name. Of them

    - one is a video (`jump.mp4`; also avi, webm, mov, mkv, m4v, gif: see [`VideoFile`]),
    - or one is an array (`jump.npy`, whose axes `axes` names),
    - or some are images, the frames in natural order (`jump.0001.png`; a single `jump.png` is a video of one frame).

    A vector such as `action` is read from the member `jump.action.npy`; or `jump.action.json`, a list with a number or
    a list of numbers for each frame; or the entry `"action"` of the object in `jump.json`. Members of other kinds are
    passed over. Videos are named after shard and sample: `train-0007/jump`.

    Args:
        path (`str` or `os.PathLike`):
            A `.tar` file, or a folder with such files in it or its sub-folders.
        axes (`str`, *optional*):
            For arrays, what each axis is: letters of T, C, H and W, such as `"THWC"`.

    Raises:
        `ValueError`: If `path` does not exist or holds no `.tar` file; a file is compressed, no tar or damaged; there
            is no sample; or `axes` is missing, wrong or of no use.
    """

    def __init__(self, path: str | PathLike, *, axes: str | None = None):
        path = existing_path("path", path)
        files = find_files(path) if path.is_dir() else [path]
        for file in files:
            if file.name.lower().endswith(COMPRESSED_SUFFIXES):
                raise _compressed(file)
        self._shards = [file for file in files if file.suffix.lower() in TAR_SUFFIXES]
        if not self._shards:
            raise ValueError(f"`path` must hold .tar files but {path} holds {describe_files(files)}.")
        self.folder = path if path.is_dir() else path.parent
        self.axes = axes
        # Shards hold millions of members: three numbers for each, of which the first stands for what follows the dot.
        self._kinds: list[str] = []
        self._members = tuple(number_list("q") for _ in range(3))  # kind, offset, size
        self._samples: list[tuple[int, str, tuple[int, ...]]] = []  # shard, key, members
        self._shard_sizes = [check_regular_file(file).st_size for file in self._shards]
        self._scan_shards()
        self._headers: dict[int, StoredArray] = {}  # of members
        self._check_axes()
        self._open_shards = MappedFiles()
        self._found: dict[int, tuple[str, list[int]]] = {}  # what the frames of a sample are
        self._videos: dict[int, VideoFile] = {}
        self._infos: dict[int, VideoInfo] = {}

    def __len__(self) -> int:
        return len(self._samples)

    def name(self, video: int) -> str:
        """Name of a video, its shard without the suffix and its key: see [`ClipReader`]."""
        shard, key, _ = self._samples[video]
        return f"{self._shards[shard].relative_to(self.folder).with_suffix('').as_posix()}/{key}"

    def info(self, video: int) -> VideoInfo:
        """Length and geometry of a video: see [`ClipReader`]."""
        if video not in self._infos:
            kind, members = self._find_frames(video)
            if kind == "video":
                info = self._video_file(video, members[0]).info()
            elif kind == "images":
                with self._open(video, members[0]) as file:
                    info = images_info(file, self._label(video, members[0]), num_frames=len(members))
            else:
                info = self._array_info(video, members[0])
            self._infos[video] = info
        return self._infos[video]

    def _read(self, video: int, frames: range) -> np.ndarray:
        kind, members = self._find_frames(video)
        if kind == "video":
            return self._video_file(video, members[0]).read(frames)
        if kind == "array":
            array = self._array_header(video, members[0])
            window = self._array(video, members[0], array)[window_index(self.axes, None, frames)]
            return as_frames(window, self.axes).astype(array.returned_dtype, copy=False)
        images = []
        for member in members[frames.start : frames.stop : frames.step]:
            with self._open(video, member) as file:
                images.append(read_image(file, self._label(video, member)))
        return stack_frames(images, self._label(video))

    def _read_vector(self, video: int, name: str, frames: range) -> np.ndarray:
        members = {self._kind(member): member for member in self._samples[video][2]}
        num_frames = self.num_frames(video)
        if f"{name}.npy" in members:
            member = members[f"{name}.npy"]
            rows = self._array(video, member, self._array_header(video, member))
        elif f"{name}.json" in members or "json" in members:
            member = members.get(f"{name}.json", members.get("json"))
            rows = self._load_json(video, member)
            if self._kind(member) == "json":
                if not isinstance(rows, dict) or name not in rows:
                    holds = f"has {shorten(sorted(rows)) or 'none'}" if isinstance(rows, dict) else "is no object"
                    raise ValueError(f"{self._label(video, member)} must have an entry `{name}` but {holds}.")
                rows = rows[name]
            with errors_naming(f"{self._label(video, member)}: `{name}`", ValueError, OverflowError):
                rows = np.asarray(rows)  # a `ValueError` if the rows differ in length
        else:
            raise ValueError(
                f"{self._label(video)} must have a member .{name}.npy, .{name}.json or .json to give the vector "
                f"`{name}`, but has {self._describe(video)}."
            )
        if rows.ndim == 0 or len(rows) != num_frames:
            raise ValueError(
                f"{self._label(video, member)} must have a row for each of the {num_frames} frames but has shape "
                f"{rows.shape}."
            )
        return np.array(rows[frames.start : frames.stop : frames.step])

    # The index

    def _scan_shards(self) -> None:
        kind_numbers: dict[str, int] = {}
        for shard, file in enumerate(self._shards):
            samples: dict[str, list[int]] = {}
            for path, offset, size in _list_members(file):
                match = SAMPLE_AND_KIND.fullmatch(path.removeprefix("./"))
                if match is None:
                    continue
                key, kind = match[1], match[2].lower()
                samples.setdefault(key, []).append(len(self._members[0]))
                values = kind_numbers.setdefault(kind, len(kind_numbers)), offset, size
                for column, value in zip(self._members, values):
                    column.append(value)
            self._samples += [(shard, key, tuple(members)) for key, members in samples.items()]
        self._kinds = list(kind_numbers)
        if not self._samples:
            raise ValueError(
                f"`path` must hold samples, members such as jump.mp4, but no file in {shorten(list(map(str, self._shards)))} "
                "is one."
            )

    def _check_axes(self) -> None:
        video, member = next(
            (
                (video, member)
                for video, (_, _, members) in enumerate(self._samples if "npy" in self._kinds else ())
                for member in members
                if self._kind(member) == "npy"
            ),
            (None, None),
        )
        if self.axes is not None:
            check_axes(self.axes)
            if "N" in self.axes:
                raise ValueError(
                    f"`axes` must have no N for shards, where a sample is one video, but got {self.axes!r}."
                )
            if video is None:
                raise ValueError(
                    f"`axes` means nothing for shards without an array, a member such as jump.npy, but got {self.axes!r}. "
                    "Leave it out."
                )
        elif video is not None:
            shape = self._array_header(video, member).shape
            raise ValueError(
                "`axes` must name each axis of the stored arrays, which do not say it themselves, but got none. "
                f"{self._label(video, member)} has shape {shape}: pass a letter for each axis, T (frames), C (channels), "
                f'H (height) or W (width), such as "{suggest_axes(shape)}".'
            )

    def _kind(self, member: int) -> str:
        return self._kinds[self._members[0][member]]

    def _find_frames(self, video: int) -> tuple[str, list[int]]:
        """What the frames of a sample are stored as, and the members that hold them."""
        if video in self._found:
            return self._found[video]
        members = self._samples[video][2]
        kinds = [self._kind(member) for member in members]
        if len(set(kinds)) < len(kinds):
            raise ValueError(f"{self._label(video)} has two members of one name: {self._describe(video)}.")
        found = {"video": [], "images": [], "array": []}
        for kind, member in zip(kinds, members):
            suffix = "." + kind.rpartition(".")[2]
            if kind == "npy":
                found["array"].append(member)
            elif suffix in VIDEO_SUFFIXES:
                found["video"].append(member)
            elif suffix in FRAME_SUFFIXES:
                found["images"].append(member)
        found["images"].sort(key=lambda member: _natural_key(self._kind(member)))
        stored_as = [kind for kind, members in found.items() if members]
        if len(stored_as) != 1 or len(found["video"]) > 1:
            raise ValueError(
                f"{self._label(video)} must be one video, one array or images, but has {self._describe(video)}."
            )
        self._found[video] = stored_as[0], found[stored_as[0]]
        return self._found[video]

    def _describe(self, video: int) -> str:
        return shorten([f".{self._kind(member)}" for member in self._samples[video][2]])

    def _label(self, video: int, member: int | None = None) -> str:
        """How messages name a sample, or a member of it."""
        shard, key, _ = self._samples[video]
        return f"{self._shards[shard]}: {key}" + ("" if member is None else f".{self._kind(member)}")

    # Members

    def _place(self, video: int, member: int) -> tuple[Path, int, int]:
        """Shard, offset and size of a member that is entirely there."""
        shard = self._samples[video][0]
        offset, size = self._members[1][member], self._members[2][member]
        if offset + size > self._shard_sizes[shard]:
            raise ValueError(
                f"{self._label(video, member)} is cut off: the shard ends at byte {self._shard_sizes[shard]} of "
                f"{offset + size}. Copy it again."
            )
        check_not_shrunk(self._shards[shard], offset + size)
        return self._shards[shard], offset, size

    def _open(self, video: int, member: int) -> BinaryIO:
        return _open_part(*self._place(video, member))

    def _video_file(self, video: int, member: int) -> VideoFile:
        if video not in self._videos:
            source = partial(_open_part, *self._place(video, member))
            self._videos[video] = VideoFile(source, self._label(video, member))
        return self._videos[video]

    def _array_header(self, video: int, member: int) -> StoredArray:
        if member not in self._headers:
            shard, offset, size = self._place(video, member)
            with _open_part(shard, offset, size) as file:
                label = self._label(video, member)
                array = _parse_npy(file.read(MAX_NPY_HEADER_BYTES), size, name="", label=label)
            array.check(label)
            self._headers[member] = array
        return self._headers[member]

    def _array_info(self, video: int, member: int) -> VideoInfo:
        array = self._array_header(video, member)
        if len(array.shape) != len(self.axes):
            raise ValueError(
                f'`axes` must have a letter for each axis but "{self.axes}" has {len(self.axes)} and '
                f"{self._label(video, member)} has shape {array.shape}."
            )
        length = dict(zip(self.axes, array.shape))
        return VideoInfo(length["T"], length.get("C", 1), length["H"], length["W"], array.returned_dtype.name)

    def _array(self, video: int, member: int, array: StoredArray) -> np.ndarray:
        """An array as a view of its shard, to be copied at once."""
        shard = self._shards[self._samples[video][0]]
        return self._open_shards.array(shard, array, start=self._members[1][member])

    def _load_json(self, video: int, member: int) -> object:
        shard, offset, size = self._place(video, member)
        if size > MAX_JSON_BYTES:
            raise ValueError(
                f"{self._label(video, member)} has {size} bytes; at most {MAX_JSON_BYTES} are read. Save it as .npy."
            )
        with (
            _open_part(shard, offset, size) as file,
            errors_naming(self._label(video, member), ValueError, RecursionError),
        ):
            return json.loads(file.read())


class _FilePart(io.RawIOBase):
    """Some bytes of a file as a file of their own."""

    def __init__(self, path: Path, offset: int, size: int):
        self._file = path.open("rb", buffering=0)
        self._offset = offset
        self._size = size
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        if base + offset < 0:
            raise ValueError(f"`offset` must not lead before the beginning but got {offset}.")
        self._position = base + offset
        return self._position

    def readinto(self, buffer) -> int:
        wanted = max(0, min(len(buffer), self._size - self._position))
        self._file.seek(self._offset + self._position)
        count = self._file.readinto(memoryview(buffer)[:wanted])
        self._position += count
        return count

    def close(self) -> None:
        self._file.close()
        super().close()


def _open_part(path: Path, offset: int, size: int) -> BinaryIO:
    """A part of a file; made anew for each use, as the workers of a `DataLoader` may share no open file."""
    return io.BufferedReader(_FilePart(path, offset, size))


def _list_members(file: Path) -> list[tuple[str, int, int]]:
    """Name, offset and size of the regular files in a tar."""
    check_regular_file(file)
    with file.open("rb") as stream:
        beginning = stream.read(6)
    if not beginning:
        raise ValueError(f"{file} is empty: it has 0 bytes. Copy the file again.")
    if beginning.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00", b"\x28\xb5\x2f\xfd")):
        raise _compressed(file)
    members = []
    with errors_naming(file, tarfile.TarError), tarfile.open(file, "r:") as tar:
        while True:
            start = tar.offset
            try:
                member = tar.next()
            except tarfile.ReadError:
                if not members:
                    raise
                break  # the shard ends within the last member, which is found to be cut off when it is read
            if member is None:
                break
            tar.members.clear()  # tarfile would keep them all
            if tar.offset <= start and members:
                raise ValueError(f"{file} is damaged: a member at byte {start} has a size below 0.")
            if member.isreg() and not member.issparse():
                members.append((member.name, member.offset_data, member.size))
        end = tar.offset
    with file.open("rb") as stream:
        # tarfile takes a header that it can not read for the end.
        stream.seek(end)
        header = stream.read(tarfile.BLOCKSIZE)
    if len(header) == tarfile.BLOCKSIZE and any(header):
        raise ValueError(f"{file} is damaged: at byte {end} there is no header, so the rest can not be found.")
    return members


def _compressed(file: Path) -> ValueError:
    return ValueError(
        f"{file} must be a tar that is not compressed: frames in the middle of a compressed one can not be reached "
        "without unpacking all before. Unpack it once, such as with `gunzip`; videos and images gain nothing from it."
    )
