"""Clips `{"video": (T, C, H, W)}` of any source: videos, images, arrays, fields, shards, data sets, moving digits."""

from mcvd_diffusers.normalization import FrameNormalizer, measure_normalizer

from .arrays import ArrayReader
from .clips import ClipDataset, EpochBatches, SeededDataset
from .fields import FieldReader
from .frame_folders import FrameFolderReader
from .hf_datasets import DatasetsReader, StreamingClips, load_datasets_reader, load_split
from .images import ClipsWithImages, ImageReader
from .lerobot import LeRobotReader
from .moving_digits import MovingDigits, draw_moving_digits, draw_trajectory, load_digits
from .original import HDF5Reader, OriginalClips, published_split
from .reader import ClipReader, PieceReader, SubsetReader, VideoInfo, num_clip_starts, spread_frames
from .sources import open_reader, open_video
from .splits import Split, find_videos, hash_of_name, read_names, split_videos
from .tar_shards import TarReader
from .video_files import VideoFileReader


__all__ = [
    "ArrayReader",
    "ClipDataset",
    "ClipReader",
    "ClipsWithImages",
    "DatasetsReader",
    "EpochBatches",
    "FieldReader",
    "FrameFolderReader",
    "FrameNormalizer",
    "HDF5Reader",
    "ImageReader",
    "LeRobotReader",
    "MovingDigits",
    "OriginalClips",
    "PieceReader",
    "SeededDataset",
    "Split",
    "StreamingClips",
    "SubsetReader",
    "TarReader",
    "VideoFileReader",
    "VideoInfo",
    "draw_moving_digits",
    "draw_trajectory",
    "find_videos",
    "hash_of_name",
    "load_datasets_reader",
    "load_digits",
    "load_split",
    "measure_normalizer",
    "num_clip_starts",
    "open_reader",
    "open_video",
    "published_split",
    "read_names",
    "split_videos",
    "spread_frames",
]
