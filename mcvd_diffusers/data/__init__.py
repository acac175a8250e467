"""Clips `{"video": (T, C, H, W) float32 in [-1, 1]}` of any source: video files, folders of frames, moving digits."""

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


__all__ = [
    "ClipDataset",
    "ClipReader",
    "FrameFolderReader",
    "MovingDigits",
    "SeededDataset",
    "SubsetReader",
    "VideoFileReader",
    "draw_moving_digits",
    "draw_trajectory",
    "load_digits",
    "num_clip_starts",
    "open_reader",
    "split_by_name",
]
