"""Clips of fixed length from videos of any source.

A [`ClipReader`] knows where videos lie; [`ClipDataset`] draws windows from them, brings size, channels and values into
the form that training asks for, and knows nothing of files.

```python
split = split_videos(open_reader("videos"), validation=0.1)
train = ClipDataset(split.train, num_frames=20, frame_size=(64, 64), num_channels=1, random_flip=True)
validation = ClipDataset(split.validation, num_frames=20, frame_size=(64, 64), num_channels=1, random_start=False)
```

A window of `num_frames=3` at `stride=2` covers 5 frames of the video, so a video of 7 frames has three starts, the
last one included:

| frame of the video | 0 | 1 | 2 | 3 | 4 | 5 | 6 |
| --- | --- | --- | --- | --- | --- | --- | --- |
| start 0 | x | | x | | x | | |
| start 1 | | x | | x | | x | |
| start 2 | | | x | | x | | x |

An epoch has one clip of each video, or, with `clip_step=n`, one of each `n` successive starts (the last group of a video
may be smaller). Each clip draws its start from its group, so every start can come up, and none in two clips of an epoch.

(The original MCVD code drew from `randint(video_length - num_frames)` and so never used the last start.
[`OriginalClips`] chooses clips as it did.)

Shapes: T frames, C channels, H height, W width, D entries of a vector.
"""

import errno
import hashlib
import itertools
import math
import operator
import struct
import warnings
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.data import Dataset, Sampler, default_collate

from mcvd_diffusers.normalization import FrameNormalizer

from .reader import MAX_NAMES_IN_MESSAGE, ClipReader, VideoInfo, check_integer, check_size, num_clip_starts, shorten


# ITU-R 601-2 luma of R, G, B: the weights of Pillow's "L".
LUMA_WEIGHTS = (0.299, 0.587, 0.114)

# How often another clip is tried in the place of a broken one, before the data set is given up.
MAX_REPLACEMENTS = 100

# Open files and memory: what has run out is not the fault of the video that is read just then.
LACKS_OF_THE_MACHINE = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)

_KEY = struct.Struct("<3Q")

# The ways out for values that are no images: of someone who trains, and of someone who has a model of images.
OTHER_UNITS = (
    "scale them first, or train a model in these units: state the range of the values (--normalization range, in Python"
    " `FrameNormalizer.from_range`), or have it measured (--normalization min_max or mean_std, `measure_normalizer`)."
)


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

    Instead of setting an epoch for all, an item of any epoch can be asked for by `dataset[epoch, index]`, as
    [`EpochBatches`] does.

    The attribute `normalizer` says how the user's units became what items hold.

    Args:
        seed (`int`, *optional*, defaults to 0):
            Non-negative seed of all items.

    Raises:
        `ValueError`: If `seed` is negative or no integer.
    """

    def __init__(self, seed: int = 0):
        self.seed = check_integer("seed", seed, minimum=0)
        self.normalizer = FrameNormalizer()
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        self._epoch_view = self._epoch.numpy()  # reads in a third of the time

    def __setstate__(self, state: dict) -> None:
        # Unpickling in a worker keeps shared memory shared; a plain copy (copy.deepcopy, pickle) gets its own.
        self.__dict__.update(state)
        self._epoch.share_memory_()
        self._epoch_view = self._epoch.numpy()

    @property
    def epoch(self) -> int:
        """The epoch that items are drawn for, from 0."""
        return self._epoch_view.item()

    def set_epoch(self, epoch: int) -> None:
        """
        Sets the epoch that items are drawn for, here and in all workers.

        Args:
            epoch (`int`): Non-negative number of the epoch.

        Raises:
            `ValueError`: If `epoch` is negative or no integer.
        """
        self._epoch.fill_(check_integer("epoch", epoch, minimum=0))

    @property
    def num_broken(self) -> int:
        """Videos that turned out to be broken after the constructor, in any worker of this process."""
        return 0

    @property
    def fingerprint(self) -> str:
        """Which clips these are: a run that goes on must find the same under the same numbers."""
        return f"{type(self).__name__} of {len(self)} clips"

    def encode(self, video: torch.Tensor) -> torch.Tensor:
        """
        What items hold -> what the network sees.

        Args:
            video (`torch.Tensor` of shape `(..., T, C, H, W)`): `"video"` of an item or a batch, on any device.

        Returns:
            `torch.Tensor` of shape `(..., T, C, H, W)`, float32: The same, if items hold that already.
        """
        return video

    def item_rng(self, epoch: int, index: int) -> np.random.RandomState:
        """
        The random numbers of one item.

        Args:
            epoch (`int`): Its epoch, from 0.
            index (`int`): Index of the item, from 0.

        Returns:
            `np.random.RandomState`: A fresh generator. (NumPy promises that the streams of `RandomState`, unlike those
            of `Generator`, never change.)
        """
        key = np.random.SeedSequence(self.seed, spawn_key=(epoch, index))
        return np.random.RandomState(np.random.MT19937(key))

    def __getitem__(self, index: int | tuple[int, int] | list) -> dict[str, torch.Tensor]:
        """
        Draws one clip, or a batch of them.

        Args:
            index (`int`, `tuple[int, int]`, or a `list` of these):
                Number of the clip; negative ones count from the end. Or the epoch and this number. Or a list of either, for
                a batch: `DataLoader(dataset, sampler=EpochBatches(...), batch_size=None)` asks for those.

        Returns:
            `dict[str, torch.Tensor]`: `"video"`, float32 of shape `(T, C, H, W)` in `[-1, 1]`; for a list, the items of
            its entries, stacked.

        Raises:
            `IndexError`: If there is no such clip.
            `ValueError`: If `index` is none of these, or videos turn out to be broken, which the constructor can not see: one
                of them with `strict`, or too many.
        """
        if isinstance(index, list):
            if not index:
                raise ValueError("`index` must name at least one clip but got an empty list.")
            return self._draw_batch(self._resolve(index))
        ((epoch, index),) = self._resolve([index])
        return self._draw(index, self.item_rng(epoch, index))

    def _resolve(self, indices: list[int | tuple[int, int]]) -> list[tuple[int, int]]:
        """Epochs and numbers, from 0, of clips that exist."""
        now, numbers = self.epoch, range(len(self))
        samples = [index if isinstance(index, tuple) else (now, index) for index in indices]
        for sample in samples:
            if len(sample) != 2 or not 0 <= operator.index(sample[0]) < 2**63:
                raise ValueError(
                    f"`index` must be a number, or an epoch from 0 to 2^63 - 1 and a number, got {sample}."
                )
        return [(int(epoch), numbers[operator.index(index)]) for epoch, index in samples]

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

    def _draw_batch(self, samples: list[tuple[int, int]]) -> dict[str, torch.Tensor]:
        """The items of epochs and indices that exist, stacked."""
        return default_collate([self._draw(index, self.item_rng(epoch, index)) for epoch, index in samples])


class EpochBatches(Sampler[list[tuple[int, int]]]):
    """
    Batches of `(epoch, index)` without end, for a `DataLoader` over a [`SeededDataset`].

    ```python
    loader = DataLoader(dataset, sampler=EpochBatches(len(dataset), batch_size=16), batch_size=None)
    ```

    The loader hands each list to `dataset[...]`, which returns the batch: nothing is left to be stacked.

    Samples are numbered over the whole run and all processes: batch `b` of process `r` of `R` has the numbers
    `(b * R + r) * batch_size` and following. Sample `n` is in epoch `n // num_items`, and an epoch is a permutation that
    only depends on the seed and its number. So each item comes up exactly once in each epoch, whatever the batch size, the
    number of processes and of workers; batches run across the end of an epoch; and a run can begin anywhere.

    Args:
        num_items (`int`):
            Items in an epoch.
        batch_size (`int`):
            Samples of a batch.
        rank (`int`, *optional*, defaults to 0):
            Number of this process.
        world_size (`int`, *optional*, defaults to 1):
            How many there are.
        seed (`int`, *optional*, defaults to 0):
            Seed of the order.
        first_batch (`int`, *optional*, defaults to 0):
            Batch to begin with.

    Raises:
        `ValueError`: If a number is out of range.
    """

    def __init__(
        self,
        num_items: int,
        batch_size: int,
        *,
        rank: int = 0,
        world_size: int = 1,
        seed: int = 0,
        first_batch: int = 0,
    ):
        self.num_items = check_integer("num_items", num_items, minimum=1)
        self.batch_size = check_integer("batch_size", batch_size, minimum=1)
        self.world_size = check_integer("world_size", world_size, minimum=1)
        self.rank = check_integer("rank", rank, minimum=0)
        self.seed = check_integer("seed", seed, minimum=0)
        self.first_batch = check_integer("first_batch", first_batch, minimum=0)
        if rank >= world_size:
            raise ValueError(f"`rank` must be less than `world_size`, {world_size}, but got {rank}.")

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order_of, order = -1, None
        for batch in itertools.count(self.first_batch):
            first = (batch * self.world_size + self.rank) * self.batch_size
            samples = []
            for number in range(first, first + self.batch_size):
                epoch, place = divmod(number, self.num_items)
                if epoch != order_of:
                    key = np.random.SeedSequence(self.seed, spawn_key=(epoch,))
                    order_of, order = epoch, np.random.RandomState(np.random.MT19937(key)).permutation(self.num_items)
                samples.append((epoch, int(order[place])))
            yield samples


class KeyedDraws:
    """
    Random integers of one item, a function of `(seed, epoch, index)`: BLAKE2b in counter mode.

    NumPy's `RandomState` takes 100 microseconds to seed, far more than reading a clip from memory; this takes one and a
    half for each number.

    Args:
        seed (`int`): Seed of the data set.
        epoch (`int`): Epoch of the item.
        index (`int`): Number of the item.
    """

    __slots__ = ("_count", "_key")

    def __init__(self, seed: int, epoch: int, index: int):
        self._key = _KEY.pack(seed % 2**64, epoch % 2**64, index)
        self._count = 0

    def randint(self, stop: int) -> int:
        """
        The next number.

        Args:
            stop (`int`): Where the range ends, at least 1.

        Returns:
            `int`: In `0..stop - 1`, each with the same chance (up to 2^-64 times `stop`).
        """
        block = hashlib.blake2b(self._key + self._count.to_bytes(8, "little"), digest_size=8).digest()
        self._count += 1
        return int.from_bytes(block, "little") * stop >> 64


class ClipDataset(SeededDataset):
    """
    Training clips from the videos of a reader.

    The constructor asks every video for its length and geometry and reads its first frame. Videos that can not be read,
    are too short or do not fit are *bad*: they are left out, named in one warning (all of them, with the reason, are in
    the attribute `skipped`), or refused with `strict`. A video that turns out to be broken later, inside, is replaced by
    another clip, counted in `num_broken`, and named in a warning. When more than `max_bad_share` of the videos are bad,
    a `ValueError` ends the run.

    Items are a function of `(seed, epoch, index)` and the data: see [`SeededDataset`]. An item is a dictionary:

    | key | is |
    | --- | --- |
    | `"video"` | `(T, C, H, W)`, float32 as the network sees it (see [`FrameNormalizer`]); with `encoded=False` what the reader stores where nothing has to be computed, else float32 in its units |
    | a name in `vectors` | `(T, D)`, float32: what was recorded beside each frame |
    | `"is_padding"` | `(T,)`, bool, with `pad_short`: frames that repeat the last one |

    With `encoded=False`, `dataset.encode(batch["video"])` does the rest, on whatever device the batch lies: bytes travel
    instead of floats, and the conversion costs the workers nothing.

    Args:
        reader ([`ClipReader`]):
            The videos.
        num_frames (`int`):
            Frames of a clip.
        frame_size (`tuple[int, int]`, *optional*):
            Height and width of the clips, in pixels. By default frames keep their size, which must then be the same in
            all videos.
        resize (`str`, *optional*, defaults to `"stretch"`):
            How frames get that size. `"stretch"`: height and width are scaled independently. `"cover"`: both are scaled
            by the same factor, so that the frame covers `frame_size`, and the rest is cut off. `"crop"`: nothing is
            scaled, and the rest is cut off. Scaling is bilinear, with antialiasing. Missing values (NaN) are left out of
            the averages; a pixel is missing where at least half of what it is made of is.
        random_crop (`bool`, *optional*, defaults to `False`):
            Whether the part that `"cover"` and `"crop"` keep is anywhere, or in the middle.
        num_channels (`int`, *optional*):
            Channels of the clips before any mask. By default those of the videos, which must then agree. 1 is also made from
            3, by the ITU-R 601 luma (Pillow's `"L"`, without its rounding), and any number from 1, by repetition.
        stride (`int`, *optional*, defaults to 1):
            Frames of the video from one frame of the clip to the next.
        clip_step (`int`, *optional*):
            One clip an epoch for each so many starts of a video. By default one clip of each video.
        random_start (`bool`, *optional*, defaults to `True`):
            Whether a clip starts anywhere in its group of starts, each with the same chance. Otherwise it is the first.
        random_flip (`bool`, *optional*, defaults to `False`):
            Whether half of the clips are mirrored left to right, all frames of a clip alike.
        random_vertical_flip (`bool`, *optional*, defaults to `False`):
            The same, top to bottom.
        normalizer ([`FrameNormalizer`], *optional*):
            How values become what the network sees. By default images: uint8, uint16, or floating point in `[0, 1]`.
        encoded (`bool`, *optional*, defaults to `True`):
            Whether items are already what the network sees.
        vectors (`Sequence[str]`, *optional*):
            What to read beside the frames: see [`ClipReader.read_vector`].
        pad_short (`bool`, *optional*, defaults to `False`):
            Whether videos that are too short for a clip are padded by repeating their last frame, instead of skipped.
        strict (`bool`, *optional*, defaults to `False`):
            Whether one bad video is an error.
        max_bad_share (`float`, *optional*, defaults to 0.5):
            Share of bad videos, from 0 to 1, that is put up with.
        seed (`int`, *optional*, defaults to 0):
            Seed of all clips.

    Raises:
        `ValueError`: If an argument is out of range, no video can be used, too many can not, or `frame_size` is not given
            and the videos differ in size.
    """

    def __init__(
        self,
        reader: ClipReader,
        *,
        num_frames: int,
        frame_size: tuple[int, int] | None = None,
        resize: Literal["stretch", "cover", "crop"] = "stretch",
        random_crop: bool = False,
        num_channels: int | None = None,
        stride: int = 1,
        clip_step: int | None = None,
        random_start: bool = True,
        random_flip: bool = False,
        random_vertical_flip: bool = False,
        normalizer: FrameNormalizer | None = None,
        encoded: bool = True,
        vectors: Sequence[str] = (),
        pad_short: bool = False,
        strict: bool = False,
        max_bad_share: float = 0.5,
        seed: int = 0,
    ):
        super().__init__(seed)
        self.reader = reader
        self.num_frames = check_integer("num_frames", num_frames, minimum=1)
        self.stride = check_integer("stride", stride, minimum=1)
        self.frame_size = None if frame_size is None else check_size("frame_size", frame_size)
        self.clip_step = None if clip_step is None else check_integer("clip_step", clip_step, minimum=1)
        self.num_channels = None if num_channels is None else check_integer("num_channels", num_channels, minimum=1)
        if resize not in ("stretch", "cover", "crop"):
            raise ValueError(f'`resize` must be "stretch", "cover" or "crop" but got {resize!r}.')
        if random_crop and (resize == "stretch" or frame_size is None):
            raise ValueError('`random_crop` must go with a `frame_size` and `resize` "cover" or "crop".')
        if not 0 <= max_bad_share <= 1:
            raise ValueError(f"`max_bad_share` must be a share from 0 to 1 but got {max_bad_share!r}.")
        reserved = sorted({"video", "is_padding"} & set(vectors))
        if reserved or len(set(vectors)) < len(vectors):
            raise ValueError(
                f"`vectors` must be different names, none of them video or is_padding, got {list(vectors)}."
            )
        self.resize = resize
        self.random_crop = random_crop
        self.random_start = random_start
        self.random_flip = random_flip
        self.random_vertical_flip = random_vertical_flip
        if normalizer is not None:
            self.normalizer = normalizer
        self.encoded = encoded
        self.vectors = tuple(vectors)
        self.pad_short = pad_short
        self.strict = strict
        self.max_bad_share = max_bad_share

        self.skipped: dict[str, str] = {}
        self._videos: list[int] = []  # those that can be used
        self._infos: list[VideoInfo] = []
        # Shared with the workers, so that all of them, and the training loop, know of videos that broke.
        self._is_broken = torch.zeros(len(reader), dtype=torch.uint8).share_memory_()
        self._vector_widths: dict[str, int] = {}
        for video in range(len(reader)):
            try:
                info = reader.info(video)
                self._check_video(video, info, self.num_channels or info.num_channels)
            except (OSError, ValueError) as error:
                self.skipped[reader.name(video)] = str(error)
            else:
                self._videos.append(video)
                self._infos.append(info)
        self._check_skipped()
        self._check_alike()
        # Beside copying a clip from memory every microsecond counts, so what can be known before is looked up there.
        self._num_starts = [self._count_starts(info) for info in self._infos]  # 0: padded
        groups = [1 if self.clip_step is None else max(1, -(-count // self.clip_step)) for count in self._num_starts]
        self._group_size = self.clip_step or max(self._num_starts)
        self._first_clips = array("q", itertools.accumulate(groups, initial=0))  # of each video, and the end
        self._size = self.frame_size or (self._infos[0].height, self._infos[0].width)
        # Bytes only if all clips are: a batch cannot hold both, and in a mixture 1 would mean two things.
        self._are_bytes = all(map(self._stays_bytes, self._infos))
        # Nothing but a copy is left to be done then.
        self._is_copied = self._are_bytes and not (random_flip or random_vertical_flip or vectors or pad_short)

    def __setstate__(self, state: dict) -> None:
        super().__setstate__(state)
        self._is_broken.share_memory_()

    def __len__(self) -> int:
        """Number of clips in an epoch."""
        return self._first_clips[-1]

    @property
    def frame_shape(self) -> tuple[int, int, int]:
        """`(C, H, W)` of the clips as the network sees them, a mask included."""
        info = self._infos[0]
        height, width = self.frame_size or (info.height, info.width)
        return self.num_channels + self.normalizer.has_mask_channel, height, width

    @property
    def fingerprint(self) -> str:
        """Names, lengths and geometry of the videos that are used: see [`SeededDataset`]."""
        videos = [(self.reader.name(video), repr(info)) for video, info in zip(self._videos, self._infos)]
        return f"{super().fingerprint}, {hashlib.sha256(repr(videos).encode()).hexdigest()[:16]}"

    @property
    def num_broken(self) -> int:
        """Videos that turned out to be broken after the constructor: see [`SeededDataset`]."""
        return int(self._is_broken.sum())

    @property
    def broken(self) -> list[str]:
        """Names of these videos."""
        return [self.reader.name(int(video)) for video in self._is_broken.nonzero()]

    def encode(self, video: torch.Tensor) -> torch.Tensor:
        """What items hold -> what the network sees: see [`SeededDataset`]."""
        return video if self.encoded else self.normalizer.encode(video)

    def item_rng(self, epoch: int, index: int) -> KeyedDraws:
        """The random numbers of one item: see [`SeededDataset`]; cheaper here."""
        return KeyedDraws(self.seed, epoch, index)

    def _draw(self, index: int, rng: KeyedDraws | np.random.RandomState) -> dict[str, torch.Tensor]:
        arrays = self._allocate()
        video, window = self._choose(index, rng)
        self._fill(arrays, self._read(video, window), video, window, rng)
        return self._as_item(arrays)

    def _draw_batch(self, samples: list[tuple[int, int]]) -> dict[str, torch.Tensor]:
        # Each clip goes straight into the memory of the batch. All are chosen before any is read: what is copied drives
        # the interpreter out of the processor's caches, and between copies the same code takes twice as long.
        arrays = self._allocate(len(samples))
        streams = [self.item_rng(*sample) for sample in samples]
        windows = [self._choose(index, rng) for (_, index), rng in zip(samples, streams)]
        clips, is_copied = arrays["video"], self._is_copied
        shape = clips.shape[1:]
        for place, (video, window) in enumerate(windows):
            frames = self._read(video, window)
            if is_copied and type(frames) is np.ndarray and frames.dtype == np.uint8 and frames.shape == shape:
                clips[place] = frames  # what training data are most of the time, so that it is worth its own lines
            else:
                item = {name: array[place] for name, array in arrays.items()}
                self._fill(item, frames, video, window, streams[place])
        return self._as_item(arrays)

    def _read(self, video: int, window: range) -> np.ndarray | Exception:
        """The frames of a clip, or why there are none; perhaps a view, so they are copied before the next are read."""
        try:
            return self.reader._read(video, window)  # the window exists, so it is not checked once more
        except (OSError, ValueError) as error:
            return error

    def _choose(self, index: int, rng: KeyedDraws | np.random.RandomState) -> tuple[int, range]:
        """Video and frames of the clip with a number."""
        place = bisect_right(self._first_clips, index) - 1
        num_starts = self._num_starts[place]
        start = (index - self._first_clips[place]) * self._group_size
        if self.random_start and num_starts:
            start += int(rng.randint(min(self._group_size, num_starts - start)))
        count = self.num_frames if num_starts else -(-self._infos[place].num_frames // self.stride)
        return self._videos[place], range(start, start + count * self.stride, self.stride)

    def _allocate(self, *batch: int) -> dict[str, np.ndarray]:
        """Memory for an item, or a batch of them, before `encode`."""
        frames, values = (*batch, self.num_frames), np.uint8 if self._are_bytes else np.float32
        arrays = {"video": np.empty((*frames, self.num_channels, *self._size), values)}
        for vector in self.vectors:
            arrays[vector] = np.empty((*frames, self._vector_widths[vector]), np.float32)
        if self.pad_short:
            arrays["is_padding"] = np.empty(frames, np.bool_)
        return arrays

    def _as_item(self, arrays: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
        item = {name: torch.from_numpy(array) for name, array in arrays.items()}
        if self.encoded:
            item["video"] = self.normalizer.encode(item["video"])
        return item

    def _fill(
        self,
        item: dict[str, np.ndarray],
        frames: np.ndarray | Exception,
        video: int,
        window: range,
        rng: KeyedDraws | np.random.RandomState,
    ) -> None:
        """Writes the clip that was read, or one that stands in for it, into the memory of an item."""
        for attempt in range(MAX_REPLACEMENTS):
            try:
                if isinstance(frames, Exception):
                    raise frames
                return self._write_item(item, frames, video, window, rng)
            except (OSError, ValueError) as error:
                self._report_broken(video, error)
                if attempt == MAX_REPLACEMENTS - 1:
                    raise ValueError(
                        f"`reader` gave {MAX_REPLACEMENTS} broken clips in a row, the last of {self.reader.name(video)}: {error}"
                    ) from error
                # From the same stream, so the clip that stands in is a function of (seed, epoch, index), too.
                video, window = self._choose(rng.randint(len(self)), rng)
                frames = self._read(video, window)

    def _write_item(
        self,
        item: dict[str, np.ndarray],
        frames: np.ndarray,
        video: int,
        window: range,
        rng: KeyedDraws | np.random.RandomState,
    ) -> None:
        count = len(window)
        clip = item["video"][:count]
        self._convert(clip, frames, video, rng)
        if self.random_flip and rng.randint(2) == 1:
            _flip(clip, -1)
        if self.random_vertical_flip and rng.randint(2) == 1:
            _flip(clip, -2)
        for vector in self.vectors:
            rows = self.reader.read_vector(video, vector, window.start, count, self.stride)
            self._check_width(vector, rows)
            item[vector][:count] = rows
        if self.pad_short:
            for array in item.values():
                array[count:] = array[count - 1]
            item["is_padding"][:] = np.arange(self.num_frames) >= count

    def _convert(
        self, clip: np.ndarray, frames: np.ndarray, video: int, rng: KeyedDraws | np.random.RandomState
    ) -> None:
        """Writes frames of a reader in the size, the channels and the values of clips."""
        if (
            not isinstance(frames, np.ndarray)
            or isinstance(frames, np.ma.MaskedArray)
            or frames.dtype.kind not in "iuf"
        ):
            kind = frames.dtype if type(frames) is np.ndarray else type(frames).__name__
            raise ValueError(
                f"`reader` must return integers or floating point numbers as `np.ndarray`, missing ones as NaN, but returned"
                f" {kind} for {self.reader.name(video)}."
            )
        size = frames.shape[2:]
        if frames.ndim != 4 or len(frames) != len(clip) or size != self._size and self.frame_size is None:
            raise self._unlike_info(frames, video)
        scaled = size if size == self._size else self._scaled_size(*size)
        is_fitting = frames.shape[1] in (1, self.num_channels)  # one channel is repeated
        if is_fitting and (size == self._size or scaled == size and self._are_bytes):
            self._write(clip, self._cut(frames, video, rng), video)
        elif self._are_bytes or not _can_become(frames.shape[1], self.num_channels):
            raise self._unlike_info(frames, video)
        else:  # values are looked at before some of them are cut off: a video is broken or not, wherever it is cut
            values = self._values(frames, video, self.num_channels)
            clip[:] = self._cut(values if scaled == size else _scale(values, scaled), video, rng).numpy()

    def _scaled_size(self, height: int, width: int) -> tuple[int, int]:
        """The size that frames are scaled to, before they are cut."""
        size = self._size
        if self.resize == "stretch":
            return size
        if self.resize == "crop":
            return height, width
        factor = max(size[0] / height, size[1] / width)
        return tuple(max(end, round(side * factor)) for end, side in zip(size, (height, width)))

    def _write(self, clip: np.ndarray, frames: np.ndarray, video: int) -> None:
        """Copies frames: bytes as they are, if `clip` is bytes; else what they hold as float32 in the units."""
        kind, is_image = frames.dtype, self.normalizer.is_unit
        if clip.dtype == np.uint8:
            if kind != np.uint8:
                raise self._unlike_info(frames, video)
            clip[:] = frames
            return
        is_float = kind.kind == "f"
        if is_image and not is_float and kind != np.uint8 and kind != np.uint16:
            raise ValueError(
                f"{self.reader.name(video)} holds {kind}, whose range is not known, but images must be uint8 or in [0, 1]:"
                f" {OTHER_UNITS}"
            )
        clip[:] = frames
        if not is_float:
            if is_image:
                clip /= 255 if kind == np.uint8 else 65535
            return
        low, high = map(float, torch.from_numpy(clip).aminmax())
        if not math.isfinite(low) or not math.isfinite(high):  # NaN makes both NaN
            self._check_missing(clip, video)
            valid = clip[~np.isnan(clip)]
            low, high = (valid.min(), valid.max()) if valid.size else (0, 1)
        if is_image and not (low >= 0 and high <= 1):
            raise ValueError(
                f"{self.reader.name(video)} holds {kind} in [{low:g}, {high:g}], but images must be uint8 or in [0, 1]:"
                f" {OTHER_UNITS}"
            )

    def _unlike_info(self, frames: np.ndarray, video: int) -> ValueError:
        info = self.reader.info(video)
        return ValueError(
            f"{self.reader.name(video)} changes on the way: `reader` returned {frames.dtype} frames of shape {frames.shape},"
            f" but says that it holds {info.dtype}, {info.num_channels} x {info.height} x {info.width}."
        )

    def _check_missing(self, clip: np.ndarray, video: int) -> None:
        name = self.reader.name(video)
        if np.isinf(clip).any():
            raise ValueError(f"{name} holds infinite values. Repair them, or make them NaN if they are missing.")
        if self.normalizer.nan_fill is None:
            raise ValueError(
                f"{name} has missing values (NaN): fill them in first, or train a model that knows of them, with --nan_fill, what"
                " they are replaced with (in Python `nan_fill` of the FrameNormalizer), and, if it is to know where they are,"
                " --nan_mask_channel."
            )

    def _values(self, frames: np.ndarray, video: int, num_channels: int) -> torch.Tensor:
        """Frames as float32 in the units, with the right channels."""
        values = np.empty(frames.shape, np.float32)
        self._write(values, frames, video)
        return _to_channels(torch.from_numpy(values), num_channels)

    def _cut(self, frames: np.ndarray | torch.Tensor, video: int, rng: KeyedDraws | np.random.RandomState):
        """The part of frames that is kept, as a view."""
        (height, width), size = frames.shape[2:], self._size
        if (height, width) == size:
            return frames
        over = height - size[0], width - size[1]
        if min(over) < 0:
            name = self.reader.name(video)
            raise ValueError(f"{name} has frames of {height} x {width} where {size[0]} x {size[1]} are to be cut out.")
        top, left = (rng.randint(x + 1) if self.random_crop else x // 2 for x in over)
        return frames[..., top : top + size[0], left : left + size[1]]

    def _stays_bytes(self, info: VideoInfo) -> bool:
        """Whether nothing has to be computed for clips of a video."""
        is_scaled = (info.height, info.width) != self._size and self.resize != "crop"
        return info.dtype == "uint8" and not is_scaled and info.num_channels in (1, self.num_channels)

    # ------------------------------------------------------------------------------------------------------------
    # Bad videos

    def _count_starts(self, info: VideoInfo) -> int:
        return num_clip_starts(info.num_frames, num_frames=self.num_frames, stride=self.stride)

    def _check_video(self, video: int, info: VideoInfo, num_channels: int) -> None:
        """Refuses a video that no clip can be taken from, as far as its first frame shows it."""
        if self._count_starts(info) == 0 and not self.pad_short:
            needed = (self.num_frames - 1) * self.stride + 1
            raise ValueError(f"too short: {info.num_frames} frames where a clip covers {needed}")
        if not _can_become(info.num_channels, num_channels):
            raise ValueError(f"frames of {info.num_channels} channels where {num_channels} are asked for")
        if self.frame_size and self.resize == "crop":
            height, width = self.frame_size
            if info.height < height or info.width < width:
                raise ValueError(f"frames of {info.height} x {info.width} where {height} x {width} are to be cut out")
        frame = self.reader.read(video, 0, 1)
        if frame.shape != (1, info.num_channels, info.height, info.width) or frame.dtype.kind not in "iuf":
            raise ValueError(
                f"`reader` must return integer or floating point frames (count, C, H, W), (1, {info.num_channels},"
                f" {info.height}, {info.width}) here, but returned {frame.dtype} of shape {frame.shape}"
            )
        clip = self._values(frame, video, num_channels)
        if self.normalizer.is_unit and frame.dtype.kind == "f":
            # Rain begins with zeros: floats can pass for images at first. Arrays are cheap to look at further.
            for later in (info.num_frames // 2, info.num_frames - 1):
                self._values(self.reader.read(video, later, 1), video, num_channels)
        complaint = None if self.normalizer.is_unit else self.normalizer.find_other_units(clip)
        if complaint is not None:
            raise ValueError(complaint)
        for vector in self.vectors:
            rows = self.reader.read_vector(video, vector, 0, 1)
            self._vector_widths.setdefault(vector, rows.shape[1])
            self._check_width(vector, rows)

    def _check_width(self, vector: str, rows: np.ndarray) -> None:
        width = self._vector_widths[vector]
        if rows.shape[1] != width:
            raise ValueError(f"`{vector}` has {rows.shape[1]} entries where those before have {width}")

    def _check_skipped(self) -> None:
        """Names what was left out: a warning, or an error if it is too much."""
        total, noun, groups = len(self.reader), self.reader.noun, {}
        for name, reason in self.skipped.items():  # a reason that many share is said once
            groups.setdefault(reason.removeprefix(f"{name} "), []).append(name)
        reasons = [f"{_first_names(names)} ({reason})" for reason, names in groups.items()]
        if not self._videos and total == 1:
            name, reason = next(iter(self.skipped.items()))
            reason = f"it {reason.removeprefix(f'{name} ')}" if reason.startswith(f"{name} ") else reason
            way_out = " Ask for shorter clips." if reason.startswith("too short") else ""
            raise ValueError(
                f"{name} can not be used for clips of {self.num_frames} frames (stride {self.stride}):"
                f" {reason.rstrip('.')}.{way_out}"
            )
        if not self._videos:
            is_length = any(reason.startswith("too short") for reason in groups)
            raise ValueError(
                f"None of the {total} {noun} can be used for clips of {self.num_frames} frames (stride {self.stride}): "
                f"{shorten(reasons) or 'there is none'}.{' Ask for shorter clips.' if is_length else ''}"
            )
        if not reasons:
            return
        if self.strict:
            raise ValueError(f"`strict`: {len(self.skipped)} of {total} {noun} can not be used: {shorten(reasons)}.")
        if len(self.skipped) > self.max_bad_share * total:
            raise ValueError(
                f"{len(self.skipped)} of {total} {noun} can not be used, more than `max_bad_share` ({self.max_bad_share:g}) puts "
                f"up with: {shorten(reasons)}."
            )
        warnings.warn(
            f"Skipped {len(self.skipped)} of {total} {noun} that can not be used: {shorten(reasons)}.", stacklevel=3
        )

    def _check_alike(self) -> None:
        """Without a `frame_size` or `num_channels`, videos must agree in theirs."""
        examples: dict[tuple[int, int], str] = {}
        channels: dict[int, str] = {}
        for video, info in zip(self._videos, self._infos):
            examples.setdefault((info.height, info.width), self.reader.name(video))
            channels.setdefault(info.num_channels, self.reader.name(video))
        if self.num_channels is None and len(channels) > 1:
            kinds = [f"{count} ({name})" for count, name in channels.items()]
            raise ValueError(
                f"`num_channels` must be given when videos differ in channels, which these do: {shorten(kinds)}. From 1 any "
                "number can be made by repetition, and 1 from 3."
            )
        self.num_channels = self.num_channels or next(iter(channels))
        if self.frame_size is None and len(examples) > 1:
            sizes = [f"{height} x {width} ({name})" for (height, width), name in examples.items()]
            raise ValueError(
                "`frame_size` must be given when videos differ in size, which these do (height x width): "
                f"{shorten(sizes)}."
            )

    def _report_broken(self, video: int, error: Exception) -> None:
        """Counts a video that broke after it was checked; stops if it is one too many."""
        if self.strict or getattr(error, "errno", None) in LACKS_OF_THE_MACHINE:
            raise error
        is_new = not self._is_broken[video]
        self._is_broken[video] = 1
        num_bad, total = len(self.skipped) + self.num_broken, len(self.reader)
        if num_bad > self.max_bad_share * total:
            raise ValueError(
                f"{num_bad} of {total} {self.reader.noun} can not be used, more than `max_bad_share` ({self.max_bad_share:g}) puts up "
                f"with. The last one is {self.reader.name(video)}: {error}"
            ) from error
        if is_new:
            warnings.warn(f"{self.reader.name(video)} is broken, other clips take its place: {error}", stacklevel=2)


def _first_names(names: list[str]) -> str:
    """Some names, and how many more there are."""
    more = len(names) - MAX_NAMES_IN_MESSAGE
    return ", ".join(names[:MAX_NAMES_IN_MESSAGE]) + (f" and {more} more" if more > 0 else "")


def _flip(clip: np.ndarray, axis: int) -> None:
    """Mirrors a clip in place."""
    values = torch.from_numpy(clip)
    values.copy_(values.flip(axis))  # four times as fast as NumPy


def _can_become(num_channels: int, wanted: int) -> bool:
    """Whether frames of some channels can be made of those with others."""
    return num_channels in (1, wanted) or (num_channels, wanted) == (3, 1)


def _to_channels(clip: torch.Tensor, num_channels: int) -> torch.Tensor:
    """The clip in so many channels: its own, 1 made from 3, or any number made from 1."""
    if clip.shape[1] == 3 and num_channels == 1:
        return (clip * torch.tensor(LUMA_WEIGHTS).view(3, 1, 1)).sum(dim=1, keepdim=True)  # (T, 1, H, W)
    return clip.expand(-1, num_channels, -1, -1)  # (T, num_channels, H, W)


def _scale(clip: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Bilinear with antialiasing, over what is not missing."""
    is_missing = clip.isnan()
    if not is_missing.any():
        return F.interpolate(clip, size=size, mode="bilinear", antialias=True)  # (T, C, *size)
    values = F.interpolate(clip.masked_fill(is_missing, 0), size=size, mode="bilinear", antialias=True)
    share = F.interpolate((~is_missing).float(), size=size, mode="bilinear", antialias=True)  # what is there
    return torch.where(share > 0.5, values / share, torch.nan)
