"""Which reader reads what: a path is given the one that fits what lies there.

| what lies there | one video is | reader |
| --- | --- | --- |
| video files: mp4, avi, webm, mov, mkv, m4v, gif | a file | [`VideoFileReader`] |
| folders of images: png, jpg, tif, ... | a folder | [`FrameFolderReader`] |
| arrays: npy, npz, hdf5, h5 | a file, an entry along the axis N, or an HDF5 data set | [`ArrayReader`] |
| HDF5 files of the original MCVD code | a group | [`HDF5Reader`] |
| fields: zarr, nc | a file or store, or an entry along N | [`FieldReader`] |
| webdataset shards: tar | a sample | [`TarReader`] |
| a Hugging Face data set: written by `save_to_disk`, or parquet | a row | [`DatasetsReader`] |
| a LeRobotDataset | an episode | [`LeRobotReader`] |
"""

import os
from os import PathLike
from pathlib import Path

from .arrays import ArrayReader
from .fields import NETCDF_SUFFIXES, FieldReader, _find_fields, _is_store
from .frame_folders import FRAME_SUFFIXES, FrameFolderReader
from .hf_datasets import is_saved_dataset, load_datasets_reader
from .lerobot import LeRobotReader, is_lerobot_folder
from .original import HDF5_SUFFIXES, HDF5Reader, has_original_layout
from .reader import (
    ClipReader,
    SubsetReader,
    check_regular_file,
    describe_files,
    existing_path,
    find_files,
    shorten,
)
from .splits import find_videos
from .tar_shards import TAR_SUFFIXES, TarReader
from .video_files import VIDEO_SUFFIXES, VideoFileReader


PARQUET_SUFFIXES = (".parquet",)

# Kind of files, their suffixes, and the options that it takes.
KINDS = {
    "video files": (VIDEO_SUFFIXES, ()),
    "images": (FRAME_SUFFIXES, ()),
    "numpy arrays": ((".npy", ".npz"), ("axes", "variables")),
    "HDF5 files": ((".hdf5", ".h5", ".hdf"), ("axes", "variables")),
    "Zarr or NetCDF fields": (NETCDF_SUFFIXES, ("axes", "variables")),
    "tar shards": (TAR_SUFFIXES, ("axes",)),
    "a Hugging Face data set": (PARQUET_SUFFIXES, ("axes", "column", "split")),
    "a LeRobotDataset": ((), ("column",)),
}


def open_reader(
    path: str | PathLike,
    *,
    axes: str | None = None,
    variables: list[str] | None = None,
    column: str | None = None,
    split: str | None = None,
) -> ClipReader:
    """
    Opens the videos at a path with the reader that fits what lies there: see the table above.

    Args:
        path (`str` or `os.PathLike`):
            A file, or a folder of files of one kind.
        axes (`str`, *optional*):
            For arrays, what each axis is: letters of N (videos), T, C, H and W, such as `"THWC"`. Needed but where the
            names of a field's dimensions tell.
        variables (`list[str]`, *optional*):
            For files of several arrays, those that become the channels, one after the other.
        column (`str`, *optional*):
            For Hugging Face data sets and LeRobotDatasets, the column that holds the videos.
        split (`str`, *optional*):
            For Hugging Face data sets, which split is read; `"train"` by default.

    Returns:
        [`ClipReader`]: The reader.

    Raises:
        `ValueError`: If the path does not exist, holds none of these or several kinds of them, or an option is given
            that its kind does not know.
        `ImportError`: If a package is missing that reads such files; the message names the extra that brings it.
    """
    path = existing_path("path", path)
    kind = _kind_of(path)
    options = {"axes": axes, "variables": variables, "column": column, "split": split}
    useless = [name for name, value in options.items() if value is not None and name not in KINDS[kind][1]]
    if useless:
        raise ValueError(f"`{useless[0]}` means nothing for {kind}, which {path} holds: leave it out.")
    match kind:
        case "video files":
            return VideoFileReader(path)
        case "images":
            return FrameFolderReader(path)
        case "HDF5 files" if axes is None and variables is None and _is_original(path):
            return HDF5Reader(path)
        case "numpy arrays" | "HDF5 files":
            return ArrayReader(path, axes=axes, variables=variables)
        case "Zarr or NetCDF fields":
            return FieldReader(path, axes=axes, variables=variables)
        case "tar shards":
            return TarReader(path, axes=axes)
        case "a LeRobotDataset":
            return LeRobotReader(path, column=column)
        case _:
            return load_datasets_reader(path, split=split or "train", column=column, axes=axes)


def open_video(
    path: str | PathLike,
    *,
    name: str | None = None,
    axes: str | None = None,
    variables: list[str] | None = None,
    column: str | None = None,
    split: str | None = None,
) -> ClipReader:
    """
    Opens one video: a file, a folder of its frames, or one of several at a path.

    Args:
        path (`str` or `os.PathLike`):
            As in [`open_reader`], or a folder that holds the images of one video.
        name (`str`, *optional*):
            Which, if there are several: its name, or a pattern that fits no other.
        axes, variables, column, split (*optional*): As in [`open_reader`].

    Returns:
        [`ClipReader`]: A reader of just this video.

    Raises:
        `ValueError`: As [`open_reader`], or if there are several videos and `name` does not tell which.
        `ImportError`: As [`open_reader`].
    """
    path = existing_path("path", path)
    has_options = any(value is not None for value in (axes, variables, column, split))
    if path.is_dir() and not has_options and _kind_of(path) == "images":
        if any(file.parent == path for file in find_files(path) if file.suffix.lower() in FRAME_SUFFIXES):
            reader = FrameFolderReader(path, is_one_video=True)
        else:
            reader = FrameFolderReader(path)
    else:
        reader = open_reader(path, axes=axes, variables=variables, column=column, split=split)
    videos = list(range(len(reader))) if name is None else find_videos(reader, [name])
    if len(videos) != 1:
        names = shorten([reader.name(video) for video in videos])
        fitting = "" if name is None else f" that {name} fits"
        raise ValueError(f"`name` must say which of the {len(videos)} videos{fitting} in {path} is meant: {names}.")
    return SubsetReader(reader, videos)


def _is_original(path: Path) -> bool:
    """Whether HDF5 files are the original's. HDF5 would wait for a pipe for ever, so none is passed on."""
    files = find_files(path) if path.is_dir() else [path]
    candidates = [file for file in files if file.suffix.lower() in HDF5_SUFFIXES]
    irregular = [file for file in candidates if not os.path.isfile(file)]
    if not irregular:
        return has_original_layout(path)
    is_original = any(has_original_layout(file) for file in candidates if file not in irregular)
    if is_original:
        check_regular_file(irregular[0])  # `HDF5Reader` would leave it out without a word
    return is_original


def _kind_of(path: Path) -> str:
    """What lies at a path."""
    if path.is_dir():
        if is_lerobot_folder(path):
            return "a LeRobotDataset"
        if is_saved_dataset(path):
            return "a Hugging Face data set"
        # Stores are folders of files without a meaning of their own.
        if _is_store(path) or _find_fields(path):
            return "Zarr or NetCDF fields"
    files = find_files(path) if path.is_dir() else [path]
    counts = {kind: sum(file.suffix.lower() in suffixes for file in files) for kind, (suffixes, _) in KINDS.items()}
    # Arrays beside videos are what was recorded with each frame: `jump.action.npy` goes with `jump.gif`.
    if counts["video files"] or counts["images"]:
        counts["numpy arrays"] -= sum(file.suffix == ".npy" and "." in file.stem for file in files)
    found = [kind for kind, count in counts.items() if count]
    if not found:
        known = ", ".join(suffix for suffixes, _ in KINDS.values() for suffix in suffixes)
        hint = (
            " For a video that lies as images, pass the folder above the folder of its frames."
            if files == [path]
            else ""
        )
        raise ValueError(
            f"`path` must hold files of these kinds: {known}, but {path} holds {describe_files(files)}.{hint}"
        )
    if len(found) > 1:
        listing = " and ".join(f"{counts[kind]} {kind}" for kind in found)
        raise ValueError(f"`path` must hold one kind of data but {path} holds {listing}. Move one kind away.")
    if found == ["images"] and path.is_file():
        raise ValueError(
            f"`path` must be a folder for images but is {path}: pass the folder above that of its frames."
        )
    return found[0]
