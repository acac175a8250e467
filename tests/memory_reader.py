"""A reader of arrays in memory, and arrays whose frames tell their number."""

import numpy as np

from mcvd_diffusers.data import ClipReader, VideoInfo


class MemoryReader(ClipReader):
    """A source of one's own, as small as the interface allows: arrays (T, C, H, W) by name, and vectors beside them."""

    def __init__(self, vectors: dict[str, np.ndarray] | None = None, /, **videos: np.ndarray):
        self.videos = list(videos.items())
        self.vectors = vectors or {}

    def __len__(self):
        return len(self.videos)

    def name(self, video):
        return self.videos[video][0]

    def info(self, video):
        array = self.videos[video][1]
        return VideoInfo(*array.shape, dtype=array.dtype.name)

    def _read(self, video, frames):
        return self.videos[video][1][frames.start : frames.stop : frames.step]

    def _read_vector(self, video, name, frames):
        return self.vectors[self.name(video)][frames.start : frames.stop : frames.step]


class BreakingReader(MemoryReader):
    """Some frames of some videos can not be decoded, which shows only when they are read."""

    def __init__(self, broken: dict[str, int], /, **videos: np.ndarray):
        super().__init__(**videos)
        self.broken = broken  # name: first frame that is broken

    def _read(self, video, frames):
        if frames[-1] >= self.broken.get(self.name(video), 10**9):
            raise ValueError(f"{self.name(video)} is damaged in frame {frames[-1]}")
        return super()._read(video, frames)


def counting_video(num_frames: int, num_channels: int = 3, size: tuple[int, int] = (4, 6)) -> np.ndarray:
    return np.stack([np.full((num_channels, *size), frame, np.uint8) for frame in range(num_frames)])


def noise_video(num_frames: int = 6, num_channels: int = 3, size: tuple[int, int] = (8, 10), seed: int = 0):
    return np.random.RandomState(seed).randint(256, size=(num_frames, num_channels, *size)).astype(np.uint8)
