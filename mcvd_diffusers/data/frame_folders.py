"""Videos that lie as folders of image files.

Shapes: T frames, C channels, H height, W width.
"""

import struct
import warnings
from collections.abc import Sequence
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import BinaryIO

import numpy as np

from .reader import (
    ClipReader,
    VideoInfo,
    check_regular_file,
    describe_files,
    errors_naming,
    existing_path,
    find_files,
    read_sidecar,
    stack_frames,
)


FRAME_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff")


class FrameFolderReader(ClipReader):
    """
    Reads videos that lie as folders of image files: each folder below `folder` that holds images is one video.

    Frames are taken in natural order of their file names: `frame_10.png` follows `frame_9.png`. Files that are no
    image and hidden files are left out. Grey images give one channel and all others three (alpha is dropped). 8 bits
    give uint8; 16-bit grey gives uint16; grey of 32 bits gives float32 or int32 as stored, whose range the data set must be
    told.

    A vector such as `action` is read from the file `run_03.action.npy` beside the folder `run_03`: an array with a row
    for each frame.

    Args:
        folder (`str` or `os.PathLike`):
            The folder with one sub-folder per video; sub-folders may be nested (`walking/person_01/0001.png`).
        is_one_video (`bool`, *optional*, defaults to `False`):
            Whether `folder` itself is the one video: its images are the frames, and there are none in sub-folders.

    Raises:
        `ValueError`: If `folder` does not exist, no sub-folder holds images, or images lie in `folder` itself; for one video the
            other way round.
    """

    def __init__(self, folder: str | PathLike, *, is_one_video: bool = False):
        self.folder = existing_path("folder", folder)
        files = find_files(self.folder) if self.folder.is_dir() else [self.folder]
        # Naturally sorted paths are sorted by folder first, so both the videos and the frames in them are in order.
        frames: dict[Path, list[str]] = {}
        for file in files:
            if file.suffix.lower() in FRAME_SUFFIXES:
                frames.setdefault(file.parent, []).append(file.name)
        if not frames:
            raise ValueError(
                f"`folder` must hold sub-folders of images ({', '.join(FRAME_SUFFIXES)}) but {self.folder} holds "
                f"{describe_files(files)}. Convert them, or use `VideoFileReader` for video files."
            )
        if is_one_video and (set(frames) != {self.folder} or not self.folder.is_dir()):
            raise ValueError(
                f"`folder` must hold the images of one video, and none in sub-folders, but {self.folder} holds those of"
                f" {len(frames)} folders. Pass one of them."
            )
        if is_one_video:
            self.folder = self.folder.parent  # so that the video is called as its folder
        elif self.folder in frames or not self.folder.is_dir():
            raise ValueError(
                f"`folder` must hold one sub-folder per video but {self.folder} has images outside of any sub-folder. "
                "If they are the frames of one video, move them into a sub-folder; otherwise move them away."
            )
        self._videos = list(frames.items())
        self._infos: dict[int, VideoInfo] = {}

    def __len__(self) -> int:
        return len(self._videos)

    def name(self, video: int) -> str:
        """Name of a video, the path of its folder below the reader's: see [`ClipReader`]."""
        return self._videos[video][0].relative_to(self.folder).as_posix()

    def info(self, video: int) -> VideoInfo:
        """Length and geometry of a video, from the header of its first image: see [`ClipReader`]."""
        if video not in self._infos:
            folder, names = self._videos[video]
            self._infos[video] = images_info(folder / names[0], folder / names[0], num_frames=len(names))
        return self._infos[video]

    def num_frames(self, video: int) -> int:
        """Number of images of a video, none of which is opened for it: see [`ClipReader`]."""
        return len(self._videos[video][1])

    def _read(self, video: int, frames: range) -> np.ndarray:
        folder, names = self._videos[video]
        return stack_frames([read_image(folder / names[frame], folder / names[frame]) for frame in frames], folder)

    def _read_vector(self, video: int, name: str, frames: range) -> np.ndarray:
        return read_sidecar(self._videos[video][0], name, frames, num_frames=self.num_frames(video))


@contextmanager
def open_image(file: Path | BinaryIO, name: str | PathLike, *, formats: Sequence[str] | None = None):
    """
    Opens an image with Pillow, whose various errors become a `ValueError` that names the file.

    Args:
        file (`Path` or `BinaryIO`): The image.
        name (`str` or `os.PathLike`): What messages call it.
        formats (`Sequence[str]`, *optional*): What it may be; anything that Pillow knows by default.
    """
    from PIL import Image

    if isinstance(file, Path):
        check_regular_file(file)
    # What broken data raises depends on the format; a header that declares more pixels than Pillow holds for honest is
    # a warning up to a limit.
    broken = OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error
    bombs = Image.DecompressionBombError, Image.DecompressionBombWarning
    with errors_naming(name, *broken, *bombs), warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(file, formats=formats) as image:
            yield image


def images_info(first: Path | BinaryIO, name: str | PathLike, *, num_frames: int) -> VideoInfo:
    """
    What the header of its first image tells of a video.

    Args:
        first (`Path` or `BinaryIO`): The image.
        name (`str` or `os.PathLike`): What messages call it.
        num_frames (`int`): How many images there are.

    Returns:
        [`VideoInfo`]: What [`read_image`] will return for it.

    Raises:
        `ValueError`: If it is no image.
    """
    with open_image(first, name) as image:
        num_channels, dtype = _kind(image.mode)
        return VideoInfo(num_frames, num_channels, image.height, image.width, dtype)


def read_image(file: Path | BinaryIO, name: str | PathLike) -> np.ndarray:
    """
    Decodes an image.

    Args:
        file (`Path` or `BinaryIO`): The image.
        name (`str` or `os.PathLike`): What messages call it.

    Returns:
        `np.ndarray` of shape `(H, W, C)`: Grey or RGB, uint8; uint16 for 16-bit grey; int32 or float32 for 32-bit grey.

    Raises:
        `ValueError`: If it is no image or broken.
    """
    with open_image(file, name) as image:
        num_channels, dtype = _kind(image.mode)
        if dtype == "uint8":
            grey_or_rgb = np.asarray(image.convert("L" if num_channels == 1 else "RGB"))
            return grey_or_rgb.reshape(*grey_or_rgb.shape[:2], num_channels)  # (H, W, C)
        # Pillow's own conversion of 16 bits to 8 saturates instead of scaling.
        return np.asarray(image).astype(dtype)[..., None]  # (H, W, 1)


def _kind(mode: str) -> tuple[int, str]:
    """Number of channels and type of what an image of this mode of Pillow's is read as."""
    deep = {"I": "int32", "F": "float32"}
    if mode.startswith("I;16") or mode in deep:
        return 1, deep.get(mode, "uint16")
    return (1 if mode in ("1", "L", "LA") else 3), "uint8"
