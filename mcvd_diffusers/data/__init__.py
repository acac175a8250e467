"""Clips `{"video": (T, C, H, W) float32 in [-1, 1]}` of any source: videos, folders of frames, HDF5, moving digits."""

from .clips import (
    ClipDataset,
    ClipReader,
    FrameFolderReader,
    SeededDataset,
    SubsetReader,
    VideoFileReader,
    num_clip_starts,
    open_reader,
    split_by_name,
)
from .moving_digits import MovingDigits, draw_moving_digits, draw_trajectory, load_digits
from .original import HDF5Reader, OriginalClips, published_split


__all__ = [
    "ClipDataset",
    "ClipReader",
    "FrameFolderReader",
    "HDF5Reader",
    "MovingDigits",
    "OriginalClips",
    "SeededDataset",
    "SubsetReader",
    "VideoFileReader",
    "draw_moving_digits",
    "draw_trajectory",
    "load_digits",
    "num_clip_starts",
    "open_reader",
    "published_split",
    "split_by_name",
]
