"""Clips of fixed length from videos of any source.

Two halves meet in one narrow interface. A [`ClipReader`] knows where videos lie and how to decode a few frames of one
of them; it knows nothing of training. [`ClipDataset`] draws the window, converts colour, size and value range, and
knows nothing of files. A new source of videos is one class with four methods.

| reader | one video is | frames come back as |
| --- | --- | --- |
| [`VideoFileReader`] | a video file (mp4, avi, webm, mov, mkv, m4v, gif), in any sub-folder | RGB |
| [`FrameFolderReader`] | a sub-folder of image files (png, jpg, ...), in natural order of their names | grey or RGB |
| [`HDF5Reader`] | a group in HDF5 files (hdf5, h5) as the original MCVD code's converters write them | grey or RGB |
| [`SubsetReader`] | a video of another reader: one side of [`split_by_name`] | as they were |

[`open_reader`] chooses by what a path holds:

```python
train_reader, validation_reader = split_by_name(open_reader("videos"), validation_fraction=0.1)
train = ClipDataset(train_reader, num_frames=20, frame_size=(64, 64), num_channels=1, random_flip=True)
validation = ClipDataset(validation_reader, num_frames=20, frame_size=(64, 64), num_channels=1, random_start=False)
```

A window of `num_frames=3` at `stride=2` covers 5 frames of the video, so a video of 7 frames has three starts, the
last one included:

| frame of the video | 0 | 1 | 2 | 3 | 4 | 5 | 6 |
| --- | --- | --- | --- | --- | --- | --- | --- |
| start 0 | x | | x | | x | | |
| start 1 | | x | | x | | x | |
| start 2 | | | x | | x | | x |

(The original MCVD code drew from `randint(video_length - num_frames)` and so never used the last start.
[`OriginalClips`] chooses clips as it did.)

Shapes: T frames, C channels (1 grey, 3 RGB), H height, W width.
"""

import hashlib
import operator
import os
import re
import unicodedata
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from numbers import Integral
from os import PathLike
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch.utils.data import Dataset


if TYPE_CHECKING:
    from .original import HDF5Reader


VIDEO_SUFFIXES = (".mp4", ".avi", ".webm", ".mov", ".mkv", ".m4v", ".gif")
FRAME_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff")
HDF5_SUFFIXES = (".hdf5", ".h5")

# ITU-R 601-2 luma of R, G, B: the weights of Pillow's "L".
LUMA_WEIGHTS = (0.299, 0.587, 0.114)

# A warning about a thousand broken files should still be readable; `ClipDataset.skipped` names them all.
MAX_NAMES_IN_MESSAGE = 10


class ClipReader(Protocol):
    """
    What a source of videos has to offer. Any object with these four methods will do; there is nothing to inherit.

    Videos are numbered from 0. A reader is copied into the workers of a `DataLoader`, so it keeps no file open between
    calls.
    """

    def __len__(self) -> int:
        """Number of videos."""

    def num_frames(self, video: int) -> int:
        """
        Number of frames of a video.

        Raises:
            `OSError` or `ValueError`: If the video can not be read. [`ClipDataset`] skips it then.
        """

    def read(self, video: int, start: int, count: int, stride: int = 1) -> np.ndarray | torch.Tensor:
        """
        Frames `start`, `start + stride`, ..., `start + (count - 1) * stride` of a video.

        Returns:
            `np.ndarray` or `torch.Tensor` of shape `(count, C, H, W)`: C is 1 (grey) or 3 (RGB); `uint8` in
            `[0, 255]`, or floating point in `[0, 1]`.

        Raises:
            `OSError` or `ValueError`: If the frames do not exist or can not be read.
        """

    def name(self, video: int) -> str:
        """A name that is unique in this reader and stays the same when other videos come or go."""


class VideoFileReader:
    """
    Reads the video files of a folder and its sub-folders.

    mp4, avi, webm, mov, mkv and m4v are decoded with PyAV (`pip install "mcvd-diffusers[video]"`), gif with Pillow.
    Files are taken in natural order of their path (`clip_9` before `clip_10`); hidden files are left out. Frames are
    found by their time stamps, so `start` and `stride` count frames as they are displayed, and every start gives the
    frames that decoding the whole file would give. A read decodes from the key frame before `start`; in avi, whose
    time stamps can not be relied on, from the beginning of the file. Frames are returned as they are stored: a
    rotation or a pixel aspect ratio noted beside them is not applied.

    Args:
        folder (`str` or `os.PathLike`):
            The folder, or one video file.

    Raises:
        `ValueError`: If `folder` does not exist or holds no video file.
    """

    def __init__(self, folder: str | PathLike):
        folder = _existing_path("folder", folder)
        files = [folder] if folder.is_file() else _find_files(folder)
        self.folder = folder.parent if folder.is_file() else folder
        self._files = [file for file in files if file.suffix.lower() in VIDEO_SUFFIXES]
        if not self._files:
            raise ValueError(
                f"`folder` must hold video files ({', '.join(VIDEO_SUFFIXES)}) but {folder} holds "
                f"{_describe_files(files)}. Convert them, or use `FrameFolderReader` for folders of images."
            )
        # Number of frames and, where they can be trusted, the time stamps in display order; filled at first use.
        self._frame_tables: dict[int, tuple[int, np.ndarray | None]] = {}

    def __len__(self) -> int:
        """Number of video files, readable or not."""
        return len(self._files)

    def name(self, video: int) -> str:
        """
        Name of a video.

        Args:
            video (`int`): Number of the video.

        Returns:
            `str`: The path of its file below the folder, with forward slashes.
        """
        return self._files[video].relative_to(self.folder).as_posix()

    def num_frames(self, video: int) -> int:
        """
        Number of frames of a video.

        The file's packets are counted (the header's number can be wrong or missing) but not decoded; the result is
        kept.

        Args:
            video (`int`): Number of the video.

        Returns:
            `int`: The number of frames, at least 1.

        Raises:
            `ValueError`: If the file is no video, is broken at its beginning, or holds no frame.
            `ImportError`: If the file needs PyAV and it is not installed.
        """
        if video not in self._frame_tables:
            file = self._files[video]
            table = _gif_frame_table(file) if file.suffix.lower() == ".gif" else _container_frame_table(file)
            if table[0] == 0:
                raise ValueError(f"{file} holds no video frame.")
            self._frame_tables[video] = table
        return self._frame_tables[video][0]

    def read(self, video: int, start: int, count: int, stride: int = 1) -> np.ndarray:
        """
        Decodes frames of a video.

        Args:
            video (`int`): Number of the video.
            start (`int`): First frame, from 0.
            count (`int`): Number of frames to return.
            stride (`int`, *optional*, defaults to 1): Frames from one returned frame to the next.

        Returns:
            `np.ndarray` of shape `(count, 3, H, W)`, uint8: RGB frames.

        Raises:
            `ValueError`: If the window leaves the video, or the file is broken inside the window.
        """
        indices = _window_indices(self.name(video), self.num_frames(video), start=start, count=count, stride=stride)
        file = self._files[video]
        if file.suffix.lower() == ".gif":
            return _stack_frames(_read_gif(file, indices), file)
        return _stack_frames(_read_container(file, indices, timestamps=self._frame_tables[video][1]), file)


class FrameFolderReader:
    """
    Reads videos that lie as folders of image files: each folder below `folder` that holds images is one video.

    Frames are taken in natural order of their file names: `frame_10.png` follows `frame_9.png`. Files that are no
    image and hidden files are left out. Grey images give one channel and all others three (alpha is dropped); 16-bit
    grey images give floating point in `[0, 1]` instead of uint8, so nothing of their depth is lost.

    Args:
        folder (`str` or `os.PathLike`):
            The folder with one sub-folder per video; sub-folders may be nested (`walking/person_01/0001.png`).

    Raises:
        `ValueError`: If `folder` does not exist, no sub-folder holds images, or images lie in `folder` itself.
    """

    def __init__(self, folder: str | PathLike):
        self.folder = _existing_path("folder", folder)
        files = _find_files(self.folder) if self.folder.is_dir() else [self.folder]
        # Naturally sorted paths are sorted by folder first, so both the videos and the frames in them are in order.
        frames: dict[Path, list[str]] = {}
        for file in files:
            if file.suffix.lower() in FRAME_SUFFIXES:
                frames.setdefault(file.parent, []).append(file.name)
        if not frames:
            raise ValueError(
                f"`folder` must hold sub-folders of images ({', '.join(FRAME_SUFFIXES)}) but {self.folder} holds "
                f"{_describe_files(files)}. Convert them, or use `VideoFileReader` for video files."
            )
        if self.folder in frames or not self.folder.is_dir():
            raise ValueError(
                f"`folder` must hold one sub-folder per video but {self.folder} has images outside of any sub-folder. "
                "If they are the frames of one video, move them into a sub-folder; otherwise move them away."
            )
        self._videos = list(frames.items())

    def __len__(self) -> int:
        """Number of folders that hold images."""
        return len(self._videos)

    def name(self, video: int) -> str:
        """
        Name of a video.

        Args:
            video (`int`): Number of the video.

        Returns:
            `str`: The path of its folder below the reader's, with forward slashes.
        """
        return self._videos[video][0].relative_to(self.folder).as_posix()

    def num_frames(self, video: int) -> int:
        """
        Number of frames of a video.

        Args:
            video (`int`): Number of the video.

        Returns:
            `int`: The number of image files in its folder, at least 1.
        """
        return len(self._videos[video][1])

    def read(self, video: int, start: int, count: int, stride: int = 1) -> np.ndarray:
        """
        Reads frames of a video.

        Args:
            video (`int`): Number of the video.
            start (`int`): First frame, from 0.
            count (`int`): Number of frames to return.
            stride (`int`, *optional*, defaults to 1): Frames from one returned frame to the next.

        Returns:
            `np.ndarray` of shape `(count, C, H, W)`: C is 1 for grey images and 3 otherwise; uint8, or float32 in
            `[0, 1]` for 16-bit grey images.

        Raises:
            `ValueError`: If the window leaves the video, an image can not be read, or they differ in size or kind.
        """
        indices = _window_indices(self.name(video), self.num_frames(video), start=start, count=count, stride=stride)
        folder, names = self._videos[video]
        return _stack_frames([_read_image(folder / names[index]) for index in indices], folder)


class SubsetReader:
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
        """Number of videos in the subset."""
        return len(self.videos)

    def name(self, video: int) -> str:
        """
        Name of a video.

        Args:
            video (`int`): Number of the video in the subset.

        Returns:
            `str`: Its name in the reader below.
        """
        return self.reader.name(self.videos[video])

    def num_frames(self, video: int) -> int:
        """
        Number of frames of a video.

        Args:
            video (`int`): Number of the video in the subset.

        Returns:
            `int`: What the reader below says.
        """
        return self.reader.num_frames(self.videos[video])

    def read(self, video: int, start: int, count: int, stride: int = 1) -> np.ndarray | torch.Tensor:
        """
        Reads frames of a video.

        Args:
            video (`int`): Number of the video in the subset.
            start (`int`): First frame, from 0.
            count (`int`): Number of frames to return.
            stride (`int`, *optional*, defaults to 1): Frames from one returned frame to the next.

        Returns:
            `np.ndarray` or `torch.Tensor` of shape `(count, C, H, W)`: What the reader below returns.
        """
        return self.reader.read(self.videos[video], start, count, stride)


def open_reader(path: str | PathLike) -> "VideoFileReader | FrameFolderReader | HDF5Reader":
    """
    Opens the videos at a path with the reader that fits what lies there.

    Args:
        path (`str` or `os.PathLike`):
            A folder of video files, a folder of frame folders, a folder of HDF5 files in the layout of the original
            MCVD code, or one video file or HDF5 file.

    Returns:
        [`VideoFileReader`], [`FrameFolderReader`] or [`HDF5Reader`]: The reader.

    Raises:
        `ValueError`: If the path does not exist, holds none of these, or holds several kinds of them.
        `ImportError`: If it holds HDF5 files and h5py is not installed.
    """
    # HDF5Reader is built from the parts of this file.
    from .original import HDF5Reader

    path = _existing_path("path", path)
    if path.is_file():
        if path.suffix.lower() in HDF5_SUFFIXES:
            return HDF5Reader(path)
        if path.suffix.lower() not in VIDEO_SUFFIXES:
            raise ValueError(
                f"`path` must be a folder or a video file ({', '.join(VIDEO_SUFFIXES + HDF5_SUFFIXES)}) but got "
                f"{path}. For a video that lies as images, pass the folder above the folder of its frames."
            )
        return VideoFileReader(path)
    files = _find_files(path)
    kinds = (
        ("video files", VIDEO_SUFFIXES, VideoFileReader),
        ("images", FRAME_SUFFIXES, FrameFolderReader),
        ("HDF5 files", HDF5_SUFFIXES, HDF5Reader),
    )
    found = []
    for kind, suffixes, reader in kinds:
        count = sum(file.suffix.lower() in suffixes for file in files)
        if count:
            found.append((f"{count} {kind}", reader))
    if not found:
        raise ValueError(
            f"`path` must hold video files ({', '.join(VIDEO_SUFFIXES)}), folders of images "
            f"({', '.join(FRAME_SUFFIXES)}) or HDF5 files ({', '.join(HDF5_SUFFIXES)}) but {path} holds "
            f"{_describe_files(files)}."
        )
    if len(found) > 1:
        raise ValueError(
            f"`path` must hold either video files or folders of images or HDF5 files but {path} holds "
            f"{' and '.join(count for count, _ in found)}. Move one kind away, or say which is meant: "
            f"{' or '.join(f'`{reader.__name__}(path)`' for _, reader in found)}."
        )
    return found[0][1](path)


def split_by_name(
    reader: ClipReader,
    validation_fraction: float,
    *,
    group: Callable[[str], str] | None = None,
    seed: int = 0,
) -> tuple[SubsetReader, SubsetReader]:
    """
    Splits videos into training and validation by a hash of each video's name.

    A video's side depends on its name alone: it stays where it is when videos are added, removed or listed in another
    order, so a run that is resumed on a grown data set does not train on what it validated on. The price is that the
    fraction is only met on average.

    Args:
        reader ([`ClipReader`]):
            The videos.
        validation_fraction (`float`):
            Chance of a video to become validation, in `(0, 1)`.
        group (`Callable[[str], str]`, *optional*):
            Maps a video's name to what is hashed; videos with the same result stay on one side. Use it when several
            clips come from one recording or one person, e.g. `lambda name: name.split("_c")[0]` for UCF-101. By
            default each video is its own group.
        seed (`int`, *optional*, defaults to 0):
            Another seed gives another split.

    Returns:
        `tuple[SubsetReader, SubsetReader]`: Training and validation videos, each in the order of `reader`.

    Raises:
        `ValueError`: If `validation_fraction` is out of range, or one side would be empty.
    """
    if not 0 < validation_fraction < 1:
        raise ValueError(
            f"`validation_fraction` must lie between 0 and 1, both excluded, but got {validation_fraction}."
        )
    sides: tuple[list[int], list[int]] = ([], [])
    for video in range(len(reader)):
        name = reader.name(video)
        # macOS stores file names decomposed and Linux composed: one normal form makes the split the same on both.
        key = unicodedata.normalize("NFC", f"{seed}/{name if group is None else group(name)}")
        digest = hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
        is_validation = int.from_bytes(digest[:8], "big") < validation_fraction * 2**64
        sides[is_validation].append(video)
    if not sides[0] or not sides[1]:
        raise ValueError(
            f"`validation_fraction` {validation_fraction} and `seed` {seed} split {len(reader)} videos into "
            f"{len(sides[0])} for training and {len(sides[1])} for validation: one side is empty. "
            "Pass another `seed`, a fraction nearer to 0.5, or a finer `group`."
        )
    return SubsetReader(reader, sides[0]), SubsetReader(reader, sides[1])


class SeededDataset(Dataset):
    """
    Base of data sets whose items are random, yet a function of `(seed, epoch, index)` and of nothing else.

    The number of workers, the order in which items are drawn and what was drawn before do not matter, and an
    interrupted epoch can be resumed at any item. The epoch lies in shared memory: [`~SeededDataset.set_epoch`] reaches
    the workers of a `DataLoader` with `persistent_workers=True` as well. Call it between two passes over the loader;
    during a pass, items already being prefetched keep the old epoch.

    The data loaders that Accelerate prepares call `set_epoch` themselves at the start of every pass, with their own
    count of passes. For validation clips that stay the same from pass to pass, keep that loader out of
    `accelerator.prepare` and leave its epoch alone.

    Args:
        seed (`int`, *optional*, defaults to 0):
            Non-negative seed of all items.

    Raises:
        `ValueError`: If `seed` is negative or no integer.
    """

    def __init__(self, seed: int = 0):
        self.seed = check_integer("seed", seed, minimum=0)
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def __setstate__(self, state: dict) -> None:
        # Unpickling in a worker keeps shared memory shared; a plain copy (copy.deepcopy, pickle) gets its own.
        self.__dict__.update(state)
        self._epoch.share_memory_()

    @property
    def epoch(self) -> int:
        """The epoch that items are drawn for, from 0."""
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """
        Sets the epoch that items are drawn for, here and in all workers.

        Args:
            epoch (`int`): Non-negative number of the epoch.

        Raises:
            `ValueError`: If `epoch` is negative or no integer.
        """
        self._epoch.fill_(check_integer("epoch", epoch, minimum=0))

    def item_rng(self, index: int) -> np.random.RandomState:
        """
        The random numbers of one item.

        Args:
            index (`int`): Index of the item, from 0.

        Returns:
            `np.random.RandomState`: A fresh generator. (NumPy promises that the streams of `RandomState`, unlike those
            of `Generator`, never change.)
        """
        key = np.random.SeedSequence(self.seed, spawn_key=(self.epoch, index))
        return np.random.RandomState(np.random.MT19937(key))

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """
        Draws one clip.

        Args:
            index (`int`): Number of the clip; negative ones count from the end.

        Returns:
            `dict[str, torch.Tensor]`: `"video"`, float32 of shape `(T, C, H, W)` in `[-1, 1]`.

        Raises:
            `IndexError`: If there is no such clip.
            `ValueError`: If a video turns out to be broken, which the constructor can not see.
        """
        index = range(len(self))[operator.index(index)]
        return self._draw(index, self.item_rng(index))

    def in_sequence(self, indices: Iterable[int], rng: np.random.RandomState) -> Iterator[dict[str, torch.Tensor]]:
        """
        Draws clips one after the other from one random stream, as a process of the original does.

        Args:
            indices (`Iterable[int]`):
                Numbers of the clips, in the order in which the original asks for them.
            rng (`np.random.RandomState`):
                The stream. The original's is NumPy's global one, which it seeds at its start; its moving digits seed it
                once more, with the index of the first clip of a process.

        Yields:
            `dict[str, torch.Tensor]`: Items as `dataset[index]` gives them, but drawn from `rng`.

        Raises:
            `IndexError`: If there is no such clip.
            `ValueError`: If a video turns out to be broken.
        """
        for index in indices:
            yield self._draw(range(len(self))[operator.index(index)], rng)

    def _draw(self, index: int, rng: np.random.RandomState) -> dict[str, torch.Tensor]:
        """The item at an index that exists, from the next numbers of a stream."""
        raise NotImplementedError


class ClipDataset(SeededDataset):
    """
    Training clips from the videos of a reader: one clip of `num_frames` frames per video and epoch.

    The constructor opens every video, counts its frames and reads the first one. Videos that can not be read or are
    too short are named in one warning and left out (all of them, with the reason, are in the attribute `skipped`), so
    a broken file is found before the first step of training.

    Items are a function of `(seed, epoch, index)`: see [`SeededDataset`].

    Args:
        reader ([`ClipReader`]):
            The videos.
        num_frames (`int`):
            Frames of a clip.
        frame_size (`tuple[int, int]`, *optional*):
            Height and width of the clips, in pixels. Frames of another size are resized to it, bilinearly and with
            antialiasing. Height and width are scaled independently: the aspect ratio is kept only if `frame_size` has
            that of the video. By default frames keep their size, which must then be the same in all videos.
        num_channels (`int`, *optional*, defaults to 3):
            3 for RGB, 1 for grey. Colour becomes grey by the ITU-R 601 luma (Pillow's `"L"`, without its rounding);
            grey becomes colour by repetition.
        stride (`int`, *optional*, defaults to 1):
            Frames of the video from one frame of the clip to the next.
        random_start (`bool`, *optional*, defaults to `True`):
            Whether a clip starts anywhere in the video, each possible start with the same chance, the last one
            included. Otherwise it starts at frame 0.
        random_flip (`bool`, *optional*, defaults to `False`):
            Whether half of the clips are mirrored left to right, all frames of a clip alike.
        seed (`int`, *optional*, defaults to 0):
            Seed of all clips.

    Raises:
        `ValueError`: If an argument is out of range, no video can be used, or `frame_size` is not given and the videos
            differ in size.
    """

    def __init__(
        self,
        reader: ClipReader,
        *,
        num_frames: int,
        frame_size: tuple[int, int] | None = None,
        num_channels: int = 3,
        stride: int = 1,
        random_start: bool = True,
        random_flip: bool = False,
        seed: int = 0,
    ):
        super().__init__(seed)
        self.reader = reader
        self.num_frames = check_integer("num_frames", num_frames, minimum=1)
        self.stride = check_integer("stride", stride, minimum=1)
        self.frame_size = None if frame_size is None else check_size("frame_size", frame_size)
        if num_channels not in (1, 3):
            raise ValueError(f"`num_channels` must be 1 (grey) or 3 (RGB) but got {num_channels!r}.")
        self.num_channels = num_channels
        self.random_start = random_start
        self.random_flip = random_flip

        self.skipped: dict[str, str] = {}
        self._videos: list[int] = []
        size_examples: dict[tuple[int, int], str] = {}
        for video in range(len(reader)):
            name = reader.name(video)
            try:
                num_video_frames = reader.num_frames(video)
                first_frame = reader.read(video, 0, 1)
            except (OSError, ValueError) as error:
                self.skipped[name] = str(error)
                continue
            if num_clip_starts(num_video_frames, num_frames=num_frames, stride=stride) == 0:
                needed = (num_frames - 1) * stride + 1
                self.skipped[name] = f"too short: {num_video_frames} frames where a clip covers {needed}"
                continue
            _check_frames(first_frame, name, count=1)
            size_examples.setdefault(tuple(first_frame.shape[-2:]), name)
            self._videos.append(video)

        reasons = [f"{name} ({reason})" for name, reason in self.skipped.items()]
        listing = "; ".join(reasons[:MAX_NAMES_IN_MESSAGE])
        if len(reasons) > MAX_NAMES_IN_MESSAGE:
            listing += f"; and {len(reasons) - MAX_NAMES_IN_MESSAGE} more"
        if not self._videos:
            raise ValueError(
                f"`reader` must hold a readable video of at least {(num_frames - 1) * stride + 1} frames "
                f"(`num_frames` {num_frames}, `stride` {stride}) but none of its {len(reader)} videos is one: "
                f"{listing or 'it is empty'}. Repair the files, or ask for shorter clips."
            )
        if self.frame_size is None and len(size_examples) > 1:
            sizes = "; ".join(
                f"{height} x {width} ({name})"
                for (height, width), name in list(size_examples.items())[:MAX_NAMES_IN_MESSAGE]
            )
            raise ValueError(
                f"`frame_size` must be given when videos differ in size, which these do (height x width): {sizes}."
            )
        if reasons:
            warnings.warn(
                f"Skipped {len(reasons)} of {len(reader)} videos that can not be used: {listing}.", stacklevel=2
            )

    def __len__(self) -> int:
        """Number of clips in an epoch, which is the number of usable videos."""
        return len(self._videos)

    def _draw(self, index: int, rng: np.random.RandomState) -> dict[str, torch.Tensor]:
        video = self._videos[index]
        num_starts = num_clip_starts(self.reader.num_frames(video), num_frames=self.num_frames, stride=self.stride)
        start = rng.randint(num_starts) if self.random_start else 0
        is_flipped = self.random_flip and rng.randint(2) == 1

        frames = self.reader.read(video, start, self.num_frames, self.stride)
        clip = _frames_to_clip(
            frames, self.reader.name(video), num_channels=self.num_channels, frame_size=self.frame_size
        )
        return {"video": clip.flip(-1) if is_flipped else clip}


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


def _frames_to_clip(
    frames: np.ndarray | torch.Tensor, name: str, *, num_channels: int, frame_size: tuple[int, int] | None
) -> torch.Tensor:
    """A reader's frames `(T, C, H, W)` as a float32 clip in `[-1, 1]` with the wanted channels and size."""
    frames = np.asarray(frames)
    scale = 255 if frames.dtype == np.uint8 else 1
    # The cast copies, so what a reader hands out (a read-only memory map, say) is neither kept nor written to.
    clip = torch.from_numpy(frames.astype(np.float32)).div_(scale)
    low, high = clip.aminmax()
    if not (low >= 0 and high <= 1):  # NaN fails as well
        raise ValueError(
            f"`reader` must return uint8 in [0, 255] or floating point in [0, 1] but returned {frames.dtype} in "
            f"[{low:g}, {high:g}] for {name}."
        )
    if clip.shape[1] == 3 and num_channels == 1:
        luma = clip.new_tensor(LUMA_WEIGHTS).view(3, 1, 1)
        clip = (clip * luma).sum(dim=1, keepdim=True)  # (T, 1, H, W)
    if frame_size is not None and clip.shape[-2:] != frame_size:
        clip = F.interpolate(clip, size=frame_size, mode="bilinear", antialias=True)  # (T, C, *frame_size)
    # Weights that sum to 1 only up to rounding can leave [0, 1] by a few units in the last place.
    clip = clip.clamp_(0, 1).mul_(2).sub_(1)
    return clip.repeat(1, num_channels // clip.shape[1], 1, 1)  # (T, num_channels, H, W)


def _check_frames(frames: np.ndarray | torch.Tensor, name: str, *, count: int) -> None:
    """Holds a reader to the shape and type it promises."""
    is_clip = frames.ndim == 4 and frames.shape[0] == count and frames.shape[1] in (1, 3)
    dtype = np.asarray(frames).dtype
    if not is_clip or not (dtype == np.uint8 or np.issubdtype(dtype, np.floating)):
        raise ValueError(
            "`reader` must return uint8 or floating point frames of shape (count, C, H, W) with C 1 or 3 but returned "
            f"{dtype} of shape {tuple(frames.shape)} for {name} and count {count}."
        )


def _window_indices(name: str, num_video_frames: int, *, start: int, count: int, stride: int) -> range:
    """The frames of a window, after a check that they exist."""
    if count < 1 or stride < 1 or not 0 <= start < num_clip_starts(num_video_frames, num_frames=count, stride=stride):
        raise ValueError(
            f"`start`, `count` and `stride` must describe frames of {name}, which has {num_video_frames}, but got "
            f"start {start}, count {count}, stride {stride}."
        )
    return range(start, start + count * stride, stride)


def _stack_frames(frames: list[np.ndarray], source: Path) -> np.ndarray:
    """Frames `(H, W, C)` as one array `(T, C, H, W)`."""
    kinds = sorted({(frame.shape, frame.dtype.name) for frame in frames})
    if len(kinds) > 1:
        raise ValueError(f"{source} holds frames of different shapes (H, W, C) or types: {kinds}.")
    return np.stack(frames).transpose(0, 3, 1, 2)  # (T, C, H, W)


def _existing_path(name: str, path: str | PathLike) -> Path:
    """An absolute path (FFmpeg takes a relative `clip:1.mp4` for a protocol) that exists."""
    absolute = Path(path).expanduser().absolute()
    if not absolute.exists():
        raise ValueError(f"`{name}` must exist but {absolute} does not. Check the spelling and the working directory.")
    return absolute


def _find_files(folder: Path) -> list[Path]:
    """
    All files below a folder in natural order, without hidden ones (macOS leaves a `._clip.mp4` beside a clip).

    Links to folders are followed, each folder once.
    """
    files, seen = [], set()
    for parent, subfolders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        if real in seen:  # a link back to where we have been
            subfolders.clear()
            continue
        seen.add(real)
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        files += [Path(parent, name) for name in names if not name.startswith(".")]
    files = [file for file in files if file.is_file()]
    return sorted(files, key=lambda file: [_natural_key(part) for part in file.relative_to(folder).parts])


def _natural_key(name: str) -> tuple[list[str | int], str]:
    """Sorts `frame_10` after `frame_9`; the name itself settles `frame_1` against `frame_01`."""
    # Odd places hold the digits, even ones what stands between them, so keys compare like with like.
    parts = re.split("([0-9]+)", name.casefold())
    return [int(part) if place % 2 else part for place, part in enumerate(parts)], name


def _describe_files(files: Iterable[Path]) -> str:
    """What lies in a folder, for an error message."""
    counts: dict[str, int] = {}
    for file in files:
        suffix = file.suffix.lower() or "without a suffix"
        counts[suffix] = counts.get(suffix, 0) + 1
    common = sorted(counts.items(), key=lambda item: -item[1])[:MAX_NAMES_IN_MESSAGE]
    return f"only files of other kinds ({', '.join(f'{n} {s}' for s, n in common)})" if counts else "no files"


@contextmanager
def _errors_naming(file: Path, *errors: type[Exception]):
    """Turns a decoder's own errors into the `ValueError` that readers promise, with the file in it."""
    try:
        yield
    except errors as error:
        raise ValueError(f"{file} can not be read: {error}") from error


def _read_image(file: Path) -> np.ndarray:
    """An image file as `(H, W, C)`, uint8, or float32 in `[0, 1]` for 16-bit grey."""
    # Pillow reports broken image data as SyntaxError or ValueError as well as OSError, depending on the format.
    with _errors_naming(file, OSError, SyntaxError, ValueError), Image.open(file) as image:
        if image.mode.startswith("I;16"):
            # Pillow's own conversion to 8 bits saturates instead of scaling.
            return (np.asarray(image).astype(np.float32) / 65535)[..., None]  # (H, W, 1)
        if image.mode in ("I", "F"):
            raise ValueError(f"mode {image.mode!r} has no fixed value range; convert it to 8 or 16 bits")
        if image.mode in ("1", "L", "LA"):
            return np.asarray(image.convert("L"))[..., None]  # (H, W, 1)
        return np.asarray(image.convert("RGB"))  # (H, W, 3)


def _gif_frame_table(file: Path) -> tuple[int, None]:
    """Number of frames of a gif; it has no time stamps to seek by."""
    with _errors_naming(file, OSError, SyntaxError, EOFError), Image.open(file, formats=["GIF"]) as image:
        return image.n_frames, None


def _read_gif(file: Path, indices: range) -> list[np.ndarray]:
    """Frames `(H, W, 3)` of a gif, RGB, uint8."""
    frames = []
    with _errors_naming(file, OSError, SyntaxError, EOFError), Image.open(file, formats=["GIF"]) as image:
        for index in indices:
            image.seek(index)
            frames.append(np.asarray(image.convert("RGB")))
    return frames


def _import_av() -> ModuleType:
    """PyAV, which only video files need."""
    try:
        import av
    except ImportError as error:
        raise ImportError(
            'Reading video files needs PyAV, which is not installed: `pip install "mcvd-diffusers[video]"`. '
            "Gif files and folders of images are read without it."
        ) from error
    return av


@contextmanager
def _open_video_stream(file: Path):
    """The container and its first video stream."""
    av = _import_av()
    # Tags in a foreign encoding are no reason to lose the frames.
    with _errors_naming(file, av.FFmpegError), av.open(str(file), metadata_errors="replace") as container:
        if not container.streams.video:
            raise ValueError(f"{file} holds no video stream.")
        stream = container.streams.video[0]
        # The workers of a DataLoader are the parallelism; a pool of decoder threads in each of them is slower.
        stream.codec_context.thread_count = 1
        yield container, stream


def _container_frame_table(file: Path) -> tuple[int, np.ndarray | None]:
    """Number of frames of a video file and their time stamps in display order, or `None` where those are no use."""
    with _open_video_stream(file) as (container, stream):
        # A packet without data only flushes the decoder; a discarded one lies before the cut of an edit list; a
        # corrupt one is where a truncated download ends.
        timestamps = [
            packet.pts
            for packet in container.demux(stream)
            if packet.size and not packet.is_discard and not packet.is_corrupt
        ]
        has_timestamps = None not in timestamps and len(set(timestamps)) == len(timestamps)
        # avi stores no presentation times: FFmpeg's guess is wrong for H.264 with B-frames.
        if container.format.name == "avi" or not has_timestamps:
            return len(timestamps), None
        return len(timestamps), np.sort(np.array(timestamps, dtype=np.int64))


def _read_container(file: Path, indices: range, *, timestamps: np.ndarray | None) -> list[np.ndarray]:
    """Frames `(H, W, 3)` of a video file, RGB, uint8."""
    if timestamps is None:
        frames = _decode_frames(file, list(indices), is_position=True, seek=False)
    else:
        wanted = timestamps[list(indices)].tolist()
        frames = _decode_frames(file, wanted, is_position=False, seek=True)
        if len(frames) < len(wanted):
            # Containers seek by decoding order, so a seek can land behind a frame that is shown before its key frame.
            frames = _decode_frames(file, wanted, is_position=False, seek=False)
    if len(frames) < len(indices):
        raise ValueError(
            f"{file} is broken: only {len(frames)} of {len(indices)} frames could be decoded from frame {indices[0]} "
            f"to {indices[-1]}. Encode it again or remove it."
        )
    return frames


def _decode_frames(file: Path, wanted: list[int], *, is_position: bool, seek: bool) -> list[np.ndarray]:
    """The frames whose position from the start, or time stamp, is wanted; fewer if the file does not give them."""
    frames = []
    remaining = set(wanted)
    with _open_video_stream(file) as (container, stream):
        if seek:
            container.seek(wanted[0], stream=stream)
        for position, frame in enumerate(container.decode(stream)):
            key = position if is_position else frame.pts
            if key in remaining:
                remaining.remove(key)
                frames.append(frame.to_ndarray(format="rgb24"))
            if key is not None and key >= wanted[-1]:
                break
    return frames
