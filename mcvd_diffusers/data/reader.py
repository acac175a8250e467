"""The interface of a source of videos, and what all sources share.

A [`ClipReader`] knows where videos lie and how to decode a few frames of one of them; it knows nothing of training.
[`ClipDataset`] draws windows and knows nothing of files. A new source of videos is one class with four methods, and a
row in `sources.py`, where a path is given its reader.

Shapes: T frames, C channels, H height, W width, D entries of a vector.
"""

import os
import re
import stat
import tokenize
from abc import ABC, abstractmethod
from array import array as number_list
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from numbers import Integral
from os import PathLike
from pathlib import Path

import numpy as np


# A message about a thousand broken files should still be readable.
MAX_NAMES_IN_MESSAGE = 10

# What numpy's parser of headers, which are Python literals, raises for broken ones.
NPY_ERRORS = (
    *(ValueError, TypeError, KeyError, SyntaxError, RecursionError, MemoryError, OverflowError),
    tokenize.TokenError,
)

# A header of a few bytes can state any number of frames.
MAX_PIECES = 10**8


@dataclass(frozen=True)
class VideoInfo:
    """
    What is known of a video without decoding it.

    Args:
        num_frames (`int`): Frames of the video, at least 1.
        num_channels (`int`): Channels that its frames are returned with.
        height (`int`): Height of the frames, in pixels.
        width (`int`): Width of the frames, in pixels.
        dtype (`str`): Type of the values that are returned, such as `"uint8"`.
        frames_per_second (`float`, *optional*): The mean rate, where the source states one.
    """

    num_frames: int
    num_channels: int
    height: int
    width: int
    dtype: str
    frames_per_second: float | None = None


class ClipReader(ABC):
    """
    A source of videos, numbered from 0.

    A reader is copied into the workers of a `DataLoader` (forked or pickled), so it keeps no file open between calls,
    unless it opens it again after both.

    To be written by a source: `__len__`, [`~ClipReader.name`], [`~ClipReader.info`] and `_read(video, frames)`, which
    gets a `range` of frames that exist; and `_read_vector(video, name, frames)` if it has vectors. [`ClipDataset`] asks
    `_read` itself, whose result it copies before it asks again: a reader may hand out one buffer again and again.
    """

    noun = "videos"
    """What messages call them."""

    @abstractmethod
    def __len__(self) -> int:
        """Number of videos, readable or not."""

    @abstractmethod
    def name(self, video: int) -> str:
        """
        Name of a video.

        Args:
            video (`int`): Number of the video.

        Returns:
            `str`: Unique in this reader, and the same when other videos come or go; with forward slashes.
        """

    @abstractmethod
    def info(self, video: int) -> VideoInfo:
        """
        Length and geometry of a video, found without decoding all of it.

        Args:
            video (`int`): Number of the video.

        Returns:
            [`VideoInfo`]: What is known.

        Raises:
            `OSError` or `ValueError`: If the video can not be read. [`ClipDataset`] skips it then.
            `ImportError`: If a package is missing that reads such videos.
        """

    def num_frames(self, video: int) -> int:
        """
        Number of frames of a video.

        Args:
            video (`int`): Number of the video.

        Returns:
            `int`: At least 1.

        Raises:
            `OSError` or `ValueError`: If the video can not be read.
        """
        return self.info(video).num_frames

    def read(self, video: int, start: int, count: int, stride: int = 1) -> np.ndarray:
        """
        Reads frames of a video.

        Args:
            video (`int`): Number of the video.
            start (`int`): First frame, from 0.
            count (`int`): Number of frames to return.
            stride (`int`, *optional*, defaults to 1): Frames from one returned frame to the next.

        Returns:
            `np.ndarray` of shape `(count, C, H, W)`: The frames as they are stored, integers or floating point in the
            units of the source. They stay what they are when the file changes.

        Raises:
            `OSError` or `ValueError`: If the window leaves the video, or the frames can not be read.
        """
        frames = self._read(video, self._window(video, start, count, stride))
        if not isinstance(frames, np.ndarray):
            raise ValueError(
                f"{type(self).__name__} must return frames as `np.ndarray` but returned {type(frames).__name__} for"
                f" {self.name(video)}."
            )
        return frames if frames.flags.writeable else frames.copy()

    def read_vector(self, video: int, name: str, start: int, count: int, stride: int = 1) -> np.ndarray:
        """
        Reads what goes with each frame of a video, such as actions, poses or time stamps.

        Args:
            video (`int`): Number of the video.
            name (`str`): Which vector.
            start (`int`): First frame, from 0.
            count (`int`): Number of frames.
            stride (`int`, *optional*, defaults to 1): Frames from one returned row to the next.

        Returns:
            `np.ndarray` of shape `(count, D)`, float32: A row for each frame.

        Raises:
            `OSError` or `ValueError`: If there is no such vector, it has not a row for each frame of the video, or it
                is not numbers, all of them finite as float32.
        """
        rows = np.asarray(self._read_vector(video, name, self._window(video, start, count, stride)))
        if rows.ndim == 1:
            rows = rows[:, None]
        if rows.shape[0] != count or rows.ndim != 2 or rows.dtype.kind not in "biuf":
            raise ValueError(
                f"The vector `{name}` of {self.name(video)} must be numbers, a row for each frame, but {count} frames gave "
                f"{rows.dtype} of shape {rows.shape}."
            )
        with np.errstate(over="ignore"):  # what does not fit becomes infinite, and is told below
            values = rows.astype(np.float32)
        is_bad = ~np.isfinite(values).all(axis=1)  # (count,)
        if is_bad.any():
            # One of them among the conditions would make every weight of a network NaN.
            first = int(np.flatnonzero(is_bad)[0])
            raise ValueError(
                f"The vector `{name}` of {self.name(video)} must be finite as float32 but frame {start + first * stride} has "
                f"{shorten([str(value) for value in rows[first]])}. Repair it, or leave the video out."
            )
        return values  # (count, D)

    def _read(self, video: int, frames: range) -> np.ndarray:
        """Frames that exist; may be a read-only view of a file or a cache, which the caller has to copy at once."""
        raise NotImplementedError(f"{type(self).__name__} has no `_read`.")

    def _read_vector(self, video: int, name: str, frames: range) -> np.ndarray:
        raise ValueError(f"{type(self).__name__} reads no vectors, but `{name}` was asked for.")

    def _window(self, video: int, start: int, count: int, stride: int) -> range:
        """The frames of a window, after a check that they exist."""
        num_frames = self.num_frames(video)
        num_starts = num_clip_starts(num_frames, num_frames=count, stride=stride) if count > 0 and stride > 0 else 0
        if not 0 <= start < num_starts:
            raise ValueError(
                f"`start`, `count` and `stride` must describe frames of {self.name(video)}, which has {num_frames}, but "
                f"got start {start}, count {count}, stride {stride}."
            )
        return range(start, start + count * stride, stride)


class SubsetReader(ClipReader):
    """
    Some of the videos of another reader, renumbered from 0.

    Args:
        reader ([`ClipReader`]):
            The reader that reads.
        videos (`Sequence[int]`):
            Numbers of its videos, in the order they get here.

    Raises:
        `ValueError`: If `videos` names one that `reader` does not have.
    """

    def __init__(self, reader: ClipReader, videos: Sequence[int]):
        unknown = [video for video in videos if not 0 <= video < len(reader)]
        if unknown:
            raise ValueError(f"`videos` must lie in 0..{len(reader) - 1}, the videos of `reader`, but got {unknown}.")
        self.reader = reader
        self.videos = list(videos)

    def __len__(self) -> int:
        return len(self.videos)

    def name(self, video: int) -> str:
        """Name of a video: see [`ClipReader`]."""
        return self.reader.name(self.videos[video])

    def info(self, video: int) -> VideoInfo:
        """Length and geometry of a video: see [`ClipReader`]."""
        return self.reader.info(self.videos[video])

    def num_frames(self, video: int) -> int:
        """Number of frames of a video: see [`ClipReader`]."""
        return self.reader.num_frames(self.videos[video])

    def _read(self, video: int, frames: range) -> np.ndarray:
        return self.reader._read(self.videos[video], frames)

    def _read_vector(self, video: int, name: str, frames: range) -> np.ndarray:
        return self.reader._read_vector(self.videos[video], name, frames)


class PieceReader(ClipReader):
    """
    The videos of another reader, cut into pieces of a stated length that then count as videos of their own.

    For a source of few, long videos, such as a field over years: pieces can be split into training and validation, and
    no frame is in two of them.

    Args:
        reader ([`ClipReader`]):
            The reader that reads.
        num_frames (`int`):
            Frames of a piece. The last of each video takes what is left, so it can have nearly twice as many; a shorter
            video is one piece. Pieces are named after their first frame: `"field[0000480:]"`.

    Raises:
        `ValueError`: If `num_frames` is no positive integer, or there would be more than 10^8 pieces.
    """

    def __init__(self, reader: ClipReader, num_frames: int):
        self.reader = reader
        self._piece_length = check_integer("num_frames", num_frames, minimum=1)
        # Two numbers for each video, however many pieces it makes: its frames (0: unreadable), and the number of pieces
        # up to its end.
        self._lengths, self._ends = number_list("q"), number_list("q")
        total = 0
        if len(reader) > MAX_PIECES:
            raise ValueError(f"`reader` must have at most {MAX_PIECES} videos to be cut up but has {len(reader)}.")
        for video in range(len(reader)):
            try:
                length = reader.num_frames(video)
            except (OSError, ValueError):
                length = 0  # one piece, whose `info` will raise the same again, where it is counted
            total += max(1, length // num_frames)
            if total > MAX_PIECES:
                raise ValueError(
                    f"`num_frames` {num_frames} must make at most {MAX_PIECES} pieces but makes more up to "
                    f"{reader.name(video)}, which has {length} frames. Pass a larger one, and check that the video is as "
                    "long as it says."
                )
            self._lengths.append(length)
            self._ends.append(total)

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def _locate(self, piece: int) -> tuple[int, range | None]:
        """The video that a piece is of, and its frames there; `None` if that video can not be read."""
        if not 0 <= piece < len(self):
            raise IndexError(f"`video` must lie in 0..{len(self) - 1} but got {piece}.")
        video = bisect_right(self._ends, piece)
        start = (piece - (self._ends[video - 1] if video else 0)) * self._piece_length
        if self._lengths[video] == 0:
            return video, None
        is_last = piece + 1 == self._ends[video]
        return video, range(start, self._lengths[video] if is_last else start + self._piece_length)

    def name(self, video: int) -> str:
        """Name of a piece: see [`ClipReader`]."""
        whole, piece = self._locate(video)
        return self.reader.name(whole) + ("" if piece is None else f"[{piece.start:07}:]")

    def info(self, video: int) -> VideoInfo:
        """Length and geometry of a piece: see [`ClipReader`]."""
        whole, piece = self._locate(video)
        info = self.reader.info(whole)
        return info if piece is None else replace(info, num_frames=len(piece))

    def _read(self, video: int, frames: range) -> np.ndarray:
        whole, piece = self._locate(video)
        return self.reader._read(whole, range(frames.start + piece.start, frames.stop + piece.start, frames.step))

    def _read_vector(self, video: int, name: str, frames: range) -> np.ndarray:
        whole, piece = self._locate(video)
        frames = range(frames.start + piece.start, frames.stop + piece.start, frames.step)
        return self.reader._read_vector(whole, name, frames)


def num_clip_starts(num_video_frames: int, *, num_frames: int, stride: int = 1) -> int:
    """
    Number of places in a video at which a clip can start.

    Args:
        num_video_frames (`int`): Frames of the video.
        num_frames (`int`): Frames of the clip.
        stride (`int`, *optional*, defaults to 1): Frames of the video from one frame of the clip to the next.

    Returns:
        `int`: Clips may start at frames `0` to this number - 1; 0 if the video is too short.
    """
    return max(0, num_video_frames - (num_frames - 1) * stride)


def spread_frames(reader: ClipReader, count: int = 0, *, num_channels: int | None = None) -> Iterator[np.ndarray]:
    """
    Frames that are spread over all videos, to measure values on. What can not be read is left out.

    Args:
        reader ([`ClipReader`]): The videos.
        count (`int`, *optional*, defaults to 0): How many frames; 0: all of them.
        num_channels (`int`, *optional*):
            Channels that frames must have; others are left out. By default those that most videos have; if as many have
            others, those of the first video.

    Yields:
        `np.ndarray` of shape `(1, C, H, W)`: One frame at a time.
    """
    infos: list[VideoInfo | None] = [None] * len(reader)
    for video in range(len(reader)):
        with suppress(OSError, ValueError):
            infos[video] = reader.info(video)
    if num_channels is None:
        # Channels are measured one by one: a single grey video among coloured ones would end the run.
        counts = Counter(info.num_channels for info in infos if info is not None)
        num_channels = max(counts, key=counts.__getitem__, default=0)
    lengths = [info.num_frames if info is not None and info.num_channels == num_channels else 0 for info in infos]
    for video, frames in enumerate(spread_over(lengths, count)):
        for frame in frames:
            try:
                image = reader.read(video, frame, 1)  # (1, C, H, W)
            except (OSError, ValueError):
                continue
            if image.shape[1] == num_channels:  # a first frame does not speak for all
                yield image


def spread_over(lengths: Sequence[int], count: int) -> list[range]:
    """
    Frames to look at, `count` in all, as many of each video as its share of all frames.

    Within a video they are evenly spaced, so that one pass can decode them. Where there are few of each, what comes
    first in one video comes last in another: videos tend to begin alike, rain with a dry sky.

    Args:
        lengths (`Sequence[int]`): Frames of each video; 0 for one that can not be read.
        count (`int`): How many frames to look at; 0: all.

    Returns:
        `list[range]`: The frames of each video.
    """
    total = sum(lengths)
    count = min(count, total) if count else total
    ranges, seen = [], 0
    for video, length in enumerate(lengths):
        # Rounded so that the numbers add up to `count`.
        num_wanted = (seen + length) * count // max(1, total) - seen * count // max(1, total)
        seen += length
        if num_wanted == 0:
            ranges.append(range(0))
            continue
        step = length // num_wanted
        slack = length - (num_wanted - 1) * step
        # Multiples of the golden ratio, modulo 1: evenly spread for any number of videos, and the same each time.
        first = (video * 2654435769 % 2**32) * slack >> 32
        ranges.append(range(first, first + num_wanted * step, step))
    return ranges


def check_integer(name: str, value: int, *, minimum: int) -> int:
    """
    Checks an argument that must be an integer from a minimum on.

    Args:
        name (`str`): Name of the argument, for the message.
        value (`int`): What the caller passed.
        minimum (`int`): Smallest allowed value.

    Returns:
        `int`: The value.

    Raises:
        `ValueError`: If it is no integer or too small.
    """
    if not isinstance(value, Integral) or value < minimum:
        raise ValueError(f"`{name}` must be an integer of at least {minimum} but got {value!r}.")
    return int(value)


def check_size(name: str, size: tuple[int, int]) -> tuple[int, int]:
    """
    Checks an argument that must be a height and a width.

    Args:
        name (`str`): Name of the argument, for the message.
        size (`tuple[int, int]`): What the caller passed; a list will do.

    Returns:
        `tuple[int, int]`: Height and width.

    Raises:
        `ValueError`: If it is not a pair of positive integers.
    """
    is_pair = isinstance(size, (tuple, list)) and len(size) == 2
    if not is_pair or not all(isinstance(length, Integral) and length >= 1 for length in size):
        raise ValueError(f"`{name}` must be a pair of positive integers (height, width) but got {size!r}.")
    return int(size[0]), int(size[1])


# ----------------------------------------------------------------------------------------------------------------------
# What readers of files share


def stack_frames(frames: list[np.ndarray], source: str | PathLike) -> np.ndarray:
    """
    Frames of one video as one array.

    Args:
        frames (`list[np.ndarray]`): Frames `(H, W, C)`.
        source (`str` or `os.PathLike`): Where they come from, for the message.

    Returns:
        `np.ndarray` of shape `(T, C, H, W)`: The frames.

    Raises:
        `ValueError`: If they differ in shape or type.
    """
    kinds = sorted({(frame.shape, frame.dtype.name) for frame in frames})
    if len(kinds) > 1:
        raise ValueError(f"{source} holds frames of different shapes (H, W, C) or types: {kinds}.")
    return np.stack(frames).transpose(0, 3, 1, 2)  # (T, C, H, W)


def read_sidecar(path: Path, name: str, frames: range, *, num_frames: int) -> np.ndarray:
    """
    A vector that lies in a file of its own beside a video.

    Args:
        path (`Path`): The video, `jump.gif` or the folder `jump`.
        name (`str`): Which vector: `action` is in `jump.action.npy`.
        frames (`range`): The frames that are asked for.
        num_frames (`int`): Frames of the video.

    Returns:
        `np.ndarray` of shape `(len(frames), ...)`: Its rows of these frames.

    Raises:
        `ValueError`: If there is no such file, it is broken, or it has not a row for each frame.
    """
    file = sidecar_file(path, name)
    check_regular_file(file)
    # Not `np.load`, which takes a zip file for an `.npz`, whatever its name.
    with errors_naming(file, OSError, EOFError, *NPY_ERRORS):
        rows = np.lib.format.open_memmap(file, mode="r")
    if rows.ndim == 0 or len(rows) != num_frames:
        raise ValueError(
            f"{file} must have a row for each of the {num_frames} frames of {path.name} but has shape {rows.shape}."
        )
    return np.array(rows[frames.start : frames.stop : frames.step])


def sidecar_file(path: Path, name: str) -> Path:
    """
    The file beside a video that holds one of its vectors.

    Args:
        path (`Path`): The video.
        name (`str`): Which vector.

    Returns:
        `Path`: `jump.action.npy` for `jump.gif` or the folder `jump`, and `action`.
    """
    stem = path.name if path.is_dir() else path.stem
    return path.with_name(f"{stem}.{name}.npy")


def existing_path(name: str, path: str | PathLike) -> Path:
    """
    Checks an argument that must be a path.

    Args:
        name (`str`): Name of the argument, for the message.
        path (`str` or `os.PathLike`): What the caller passed.

    Returns:
        `Path`: The absolute path (FFmpeg takes a relative `clip:1.mp4` for a protocol).

    Raises:
        `ValueError`: If nothing is there.
    """
    absolute = Path(path).expanduser().absolute()
    try:
        exists = absolute.exists()
    except OSError as error:  # such as a folder above it that may not be entered
        raise ValueError(f"`{name}` must be a path that can be read but {absolute} can not: {error}") from error
    if not exists:
        raise ValueError(f"`{name}` must exist but {absolute} does not. Check the spelling and the working directory.")
    return absolute


def check_regular_file(path: str | PathLike) -> os.stat_result:
    """
    Checks that a path is a file that can be opened: a pipe would be waited for, and a device may never end.

    Args:
        path (`str` or `os.PathLike`): The path.

    Returns:
        `os.stat_result`: What is known of the file, such as its size.

    Raises:
        `ValueError`: If it is a dangling link, a pipe, a device, a folder, or not there.
    """
    try:
        status = os.stat(path)
    except (OSError, ValueError) as error:
        if isinstance(error, FileNotFoundError) and os.path.islink(path):
            raise ValueError(
                f"{path} is a link to a place that does not exist, {os.readlink(path)}. Bring back what it leads to, or "
                "remove the link."
            ) from error
        raise ValueError(f"{path} can not be read: {error}") from error
    if not stat.S_ISREG(status.st_mode):
        kind = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
        raise ValueError(
            f"{path} must be a file but is no regular file: it is {kind.get(stat.S_IFMT(status.st_mode), 'a device')}. "
            "Remove it."
        )
    return status


def check_not_shrunk(path: str | PathLike, num_bytes: int) -> os.stat_result:
    """
    Checks that a file is still as long as when it was opened, before its memory map is read.

    What lies behind the end of a file that has become shorter reads as zeros, or kills the process (signal 7).

    Args:
        path (`str` or `os.PathLike`): The file.
        num_bytes (`int`): Bytes that are needed of it, from its beginning.

    Returns:
        `os.stat_result`: What is known of the file.

    Raises:
        `ValueError`: If it has fewer.
    """
    status = check_regular_file(path)
    if status.st_size < num_bytes:
        raise ValueError(
            f"{path} has shrunk since it was opened: {num_bytes} bytes of it are needed but it has {status.st_size}. Copy it "
            "again, and do not write to files that are being read."
        )
    return status


def find_files(folder: Path) -> list[Path]:
    """
    All files below a folder in natural order, without hidden ones (macOS leaves a `._clip.mp4` beside a clip).

    Links to folders are followed, each folder once. What is neither a file nor a folder, such as a dangling link or a
    pipe, is listed too, so that it is not lost without a word: [`check_regular_file`] refuses it when it is to be read.

    Args:
        folder (`Path`): The folder.

    Returns:
        `list[Path]`: `frame_9.png` before `frame_10.png`.

    Raises:
        `ValueError`: If a folder can not be read.
    """
    files, seen = [], set()
    if not os.path.isdir(folder):
        return files
    for parent, subfolders, names in os.walk(folder, followlinks=True, onerror=refuse_folder):
        real = os.path.realpath(parent)
        if real in seen:  # a link back to where we have been
            subfolders.clear()
            continue
        seen.add(real)
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        files += [Path(parent, name) for name in names if not name.startswith(".")]
    return sorted(files, key=lambda file: [_natural_key(part) for part in file.relative_to(folder).parts])


def refuse_folder(error: OSError) -> None:
    """
    Refuses a folder that can not be listed, whose videos would be missing without a word.

    Args:
        error (`OSError`): What `os.walk` or `os.scandir` met.

    Raises:
        `ValueError`: Always; it names the folder.
    """
    raise ValueError(
        f"The folder {error.filename} can not be read: {error.strerror}. Allow it to be read, or move it away."
    ) from error


def _natural_key(name: str) -> tuple[list[str | int], str]:
    """Sorts `frame_10` after `frame_9`; the name itself settles `frame_1` against `frame_01`."""
    # Odd places hold the digits, even ones what stands between them, so keys compare like with like.
    parts = re.split("([0-9]+)", name.casefold())
    return [int(part) if place % 2 else part for place, part in enumerate(parts)], name


def describe_files(files: Iterable[Path]) -> str:
    """
    What lies in a folder, for an error message.

    Args:
        files (`Iterable[Path]`): Its files.

    Returns:
        `str`: Numbers of files by suffix.
    """
    counts: dict[str, int] = {}
    for file in files:
        suffix = file.suffix.lower() or "without a suffix"
        counts[suffix] = counts.get(suffix, 0) + 1
    common = sorted(counts.items(), key=lambda item: -item[1])[:MAX_NAMES_IN_MESSAGE]
    return f"only files of other kinds ({', '.join(f'{n} {s}' for s, n in common)})" if counts else "no files"


def shorten(names: Sequence[str]) -> str:
    """
    A list for a message, cut if it is long.

    Args:
        names (`Sequence[str]`): What is listed.

    Returns:
        `str`: The first ten, and how many more there are.
    """
    listing = "; ".join(names[:MAX_NAMES_IN_MESSAGE])
    more = len(names) - MAX_NAMES_IN_MESSAGE
    return f"{listing}; and {more} more" if more > 0 else listing


@contextmanager
def errors_naming(source: str | PathLike, *errors: type[Exception]):
    """
    Turns a decoder's own errors into the `ValueError` that readers promise, with the file in it.

    Args:
        source (`str` or `os.PathLike`): The file.
        *errors (`type[Exception]`): What its decoder raises.
    """
    try:
        yield
    except errors as error:
        raise ValueError(f"{source} can not be read: {error}") from error
