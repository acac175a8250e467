"""Single images beside clips, for networks that learn from both.

Shapes: T frames, C channels, H height, W width, n images beside a clip.
"""

from os import PathLike

import numpy as np
import torch

from .clips import ClipDataset, KeyedDraws, SeededDataset
from .frame_folders import FRAME_SUFFIXES, images_info, read_image
from .reader import ClipReader, VideoInfo, check_integer, describe_files, existing_path, find_files, stack_frames


# Numbers of the random streams of images: clips of one data set have smaller ones.
IMAGE_STREAMS = 2**63


class ImageReader(ClipReader):
    """
    Reads single images: each image file in a folder, or in a folder below it, is a video of one frame.

    A [`ClipDataset`] over it with `num_frames=1` brings them into one size and form, and leaves out what is broken. Channels
    and types are as [`FrameFolderReader`] reads them.

    Args:
        folder (`str` or `os.PathLike`): The folder.

    Raises:
        `ValueError`: If it does not exist, or holds no images.
    """

    noun = "images"

    def __init__(self, folder: str | PathLike):
        self.folder = existing_path("folder", folder)
        files = find_files(self.folder)
        self._files = [file for file in files if file.suffix.lower() in FRAME_SUFFIXES]
        if not self._files:
            raise ValueError(
                f"`folder` must hold images ({', '.join(FRAME_SUFFIXES)}) but {self.folder} holds {describe_files(files)}."
            )

    def __len__(self) -> int:
        return len(self._files)

    def name(self, video: int) -> str:
        """Name of an image, its path below the folder: see [`ClipReader`]."""
        return self._files[video].relative_to(self.folder).as_posix()

    def info(self, video: int) -> VideoInfo:
        """Geometry of an image, from its header: see [`ClipReader`]."""
        return images_info(self._files[video], self._files[video], num_frames=1)

    def _read(self, video: int, frames: range) -> np.ndarray:
        file = self._files[video]
        return stack_frames([read_image(file, file)], file)


class ClipsWithImages(SeededDataset):
    """
    The clips of a data set, each with images beside it.

    Items are those of `clips`, and `"images"`, `(n, C, H, W)`, as the network sees them. Which images stand beside a clip is a
    function of `(seed, epoch, index)`, as the clip is; each has the same chance.

    Args:
        clips ([`SeededDataset`]): The clips.
        images ([`ClipDataset`]): The images, as clips of one frame, encoded.
        num_images (`int`): How many stand beside a clip, `n`.

    Raises:
        `ValueError`: If `num_images` is no number from 1, or `images` are not of one frame or not encoded.
    """

    def __init__(self, clips: SeededDataset, images: ClipDataset, *, num_images: int):
        super().__init__(clips.seed)
        if images.num_frames != 1 or not images.encoded:
            raise ValueError("`images` must be clips of 1 frame, made with `num_frames=1` and `encoded=True`.")
        self.clips, self.images = clips, images
        self.num_images = check_integer("num_images", num_images, minimum=1)
        self.normalizer = clips.normalizer

    def __len__(self) -> int:
        """Number of clips in an epoch."""
        return len(self.clips)

    @property
    def num_broken(self) -> int:
        """Videos and images that turned out to be broken after the constructor."""
        return self.clips.num_broken + self.images.num_broken

    @property
    def fingerprint(self) -> str:
        """Which clips and images these are."""
        return f"{self.clips.fingerprint}, with {self.num_images} of {self.images.fingerprint}"

    def encode(self, video: torch.Tensor) -> torch.Tensor:
        """What items hold -> what the network sees, of `"video"`; `"images"` are that already."""
        return self.clips.encode(video)

    def item_rng(self, epoch: int, index: int) -> np.random.RandomState | KeyedDraws:
        """The random numbers of a clip."""
        return self.clips.item_rng(epoch, index)

    def _draw_batch(self, samples: list[tuple[int, int]]) -> dict[str, torch.Tensor]:
        numbers = []
        for epoch, index in samples:
            source = KeyedDraws(self.seed, epoch, IMAGE_STREAMS + index)
            numbers += [(epoch, source.randint(len(self.images))) for _ in range(self.num_images)]
        images = self.images[numbers]["video"].flatten(0, 1)  # (B*n, C, H, W)
        return {**self.clips[samples], "images": images.unflatten(0, (len(samples), self.num_images))}

    def __getitem__(self, index: int | tuple[int, int] | list) -> dict[str, torch.Tensor]:
        """Draws one clip with its images, or a batch of them: see [`SeededDataset`]."""
        if isinstance(index, list):
            return super().__getitem__(index)
        return {name: x[0] for name, x in self._draw_batch(self._resolve([index])).items()}
