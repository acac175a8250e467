"""The data of a training run: settings -> data sets, and data sets -> batches.

What the settings leave to the data (channels, size) is written into them here.
"""

import atexit
import functools
import itertools
import multiprocessing
from collections.abc import Iterator

import torch
from accelerate import Accelerator, PartialState
from torch.utils.data import DataLoader, Dataset

from mcvd_diffusers.data import (
    ClipDataset,
    ClipReader,
    ClipsWithImages,
    EpochBatches,
    ImageReader,
    MovingDigits,
    OriginalClips,
    PieceReader,
    StreamingClips,
    SubsetReader,
    load_datasets_reader,
    load_digits,
    load_split,
    open_reader,
    published_split,
    read_names,
    split_videos,
    spread_frames,
)
from mcvd_diffusers.interruption import end_workers, ignore_stop_signals
from mcvd_diffusers.normalization import FrameNormalizer, measure_normalizer
from mcvd_diffusers.pipelines import MCVDPipeline
from mcvd_diffusers.train_settings import FOR_FILES, DataArguments, Settings, stated_normalizer


NO_PADDING = torch.zeros(1, dtype=torch.bool)

# Seconds after which a worker that gives no batch is given up: a file system that hangs must not hang the run for ever.
WORKER_TIMEOUT = 1800


def make_datasets(settings: Settings, num_frames: int) -> tuple[Dataset, Dataset]:
    """
    Training and held-out clips of `num_frames` frames: `{"video": (T, C, H, W) in [-1, 1]}`, no video in both. The training
    clips have images beside them, if the settings name a folder of them.
    """
    train, held_out = make_clips(settings, num_frames)
    folder = settings.data.image_data_dir
    if folder is None:
        return train, held_out
    data = settings.data
    try:
        images = ClipDataset(
            ImageReader(folder),
            num_frames=1,
            frame_size=settings.size,
            resize=data.resize,
            num_channels=settings.model.in_channels,
            normalizer=train.normalizer,
            random_crop=data.random_crop,
            random_flip=data.random_flip,
            random_vertical_flip=data.random_vertical_flip,
            strict=data.strict,
            max_bad_share=data.max_bad_share,
            seed=settings.training.seed,
        )
    except ValueError as error:
        message = str(error).replace("`folder`", "the folder")  # the reader names its own argument
        raise ValueError(f"--image_data_dir {folder}: {message}") from error
    return ClipsWithImages(train, images, num_images=settings.training.num_joint_images), held_out


def make_clips(settings: Settings, num_frames: int) -> tuple[Dataset, Dataset]:
    """Training and held-out clips."""
    data, seed = settings.data, settings.training.seed
    if data.train_data_dir is None and data.dataset_name is None:
        shorter = min(settings.size)
        size = shorter // 2 if data.digit_size is None else data.digit_size
        speed = max(1, shorter // 16) if data.max_speed is None else data.max_speed
        common = {
            "num_frames": num_frames,
            "canvas_size": settings.size,
            "num_digits": data.num_digits,
            "max_speed": speed,
            "seed": seed,
        }
        train, held_out = (load_digits(data.digits, split=split, size=size) for split in ("train", "validation"))
        return (
            MovingDigits(train, num_clips=data.num_train_clips, **common),
            MovingDigits(held_out, num_clips=256, **common),
        )
    published = None
    if data.train_data_dir is not None and data.axes is None and data.variables is None:
        published = published_split(data.train_data_dir)
    if published is not None:
        if data.frame_stride != 1:
            raise ValueError(
                f"--frame_stride must be 1 for --train_data_dir {data.train_data_dir}, which is split as published, got"
                f" {data.frame_stride}: clips are chosen as the original does."
            )
        channels, *size = published[0].read(0, 0, 1).shape[1:]
        settings.model.in_channels = settings.model.in_channels or channels
        settings.model.resolution = settings.model.resolution or size
        height, width = settings.size
        useless = sorted(settings.changed & (set(FOR_FILES) - {"random_flip", "frame_stride"}))
        if useless:
            raise ValueError(
                f"--{useless[0]} means nothing for --train_data_dir {data.train_data_dir}, which is split, and its clips"
                " chosen, as published: leave it out, or pass --axes or --variables to read the files as arrays."
            )
        if data.normalization != "unit" or data.nan_fill is not None:
            raise ValueError(
                f"--pretrained_model_name_or_path {settings.model.pretrained_model_name_or_path} was trained on data in other"
                f" units than the images of --train_data_dir {data.train_data_dir}, which is split as published."
            )
        for reader in published:
            their_channels, their_height, their_width = reader.read(0, 0, 1).shape[1:]
            if (their_channels, their_height) != (settings.model.in_channels, height) or their_width < width:
                raise ValueError(
                    f"--in_channels {settings.model.in_channels} and --resolution {height} {width} do not fit"
                    f" --train_data_dir {data.train_data_dir}: its frames have {their_channels} channel(s) and {their_height}"
                    f"x{their_width} pixels. Data that are split as published are not resized, and only the width is cut."
                    f" Pass --in_channels {their_channels} --resolution {their_height} {min(their_height, their_width)}."
                )
        common = {"num_frames": num_frames, "crop_width": width, "seed": seed}
        return (
            OriginalClips(published[0], random_crop=True, random_flip=data.random_flip, **common),
            OriginalClips(published[1], **common),
        )
    return make_clip_datasets(settings, num_frames)


def make_clip_datasets(settings: Settings, num_frames: int) -> tuple[Dataset, Dataset]:
    """Clips of the user's own data, split, in the size and units that the settings say."""
    model, data, seed = settings.model, settings.data, settings.training.seed
    if data.streaming:
        return make_streams(settings, num_frames)
    reader = open_videos(data)
    if data.split_frames is not None:
        reader = PieceReader(reader, data.split_frames)
    if len(reader) < 2:
        raise ValueError(
            f"--train_data_dir {data.train_data_dir or data.dataset_name} holds 1 video; at least one more is needed to hold"
            " out. --split_frames cuts a long one into several."
        )
    sides = {}
    for side in ("validation", "test"):
        names, file, share = (getattr(data, f"{side}_{way}") for way in ("names", "list", "fraction"))
        sides[side] = names or (read_names(file) if file else share) or ()
    try:
        split = split_videos(reader, **sides)
    except ValueError as error:
        if sides != {"validation": data.validation_fraction, "test": ()}:
            raise
        raise ValueError(
            f"--validation_fraction {data.validation_fraction} leaves one side of the {len(reader)} videos empty, since"
            " each is held out or not by a hash of its name: choose a fraction nearer to 0.5, or --validation_names."
        ) from error
    common = {
        "num_frames": num_frames,
        "frame_size": settings.size if model.resolution else None,
        "resize": data.resize,
        "num_channels": model.in_channels,
        "stride": data.frame_stride,
        "clip_step": data.clip_step,
        "normalizer": make_normalizer(settings, split.train),
        "pad_short": data.pad_short_videos,
        "strict": data.strict,
        "max_bad_share": data.max_bad_share,
        "seed": seed,
    }
    train = ClipDataset(
        split.train,
        random_crop=data.random_crop,
        random_flip=data.random_flip,
        random_vertical_flip=data.random_vertical_flip,
        vectors=data.vectors or (),
        encoded=False,  # bytes travel to the device, and become floats there
        **common,
    )
    adopt_geometry(settings, train.frame_shape)
    common |= {"frame_size": settings.size, "num_channels": model.in_channels}
    return train, ClipDataset(split.validation, random_start=False, **common)


def make_streams(settings: Settings, num_frames: int) -> tuple[Dataset, Dataset]:
    """Clips of a data set of the Hub, as it is downloaded."""
    data, seed = settings.data, settings.training.seed
    dataset = load_split(
        data.dataset_name,
        config_name=data.dataset_config_name,
        split=data.dataset_split,
        revision=data.dataset_revision,
        streaming=True,
    )
    normalizer = make_normalizer(settings, None)
    common = {
        "num_frames": num_frames,
        "resize": data.resize,
        "stride": data.frame_stride,
        "normalizer": normalizer,
        "pad_short": data.pad_short_videos,
    }

    def stream(**options) -> StreamingClips:
        options = {**common, "frame_size": settings.size if settings.model.resolution else None, **options}
        options["num_channels"] = settings.model.in_channels
        return StreamingClips(
            dataset,
            make_clip=functools.partial(clip_of_one_video, options),
            validation_fraction=data.validation_fraction,
            normalizer=normalizer,
            shuffle_buffer=data.shuffle_buffer,
            rank=PartialState().process_index,
            world_size=PartialState().num_processes,
            seed=seed,
            column=data.video_column,
            axes=data.axes,
            strict=data.strict,
            max_bad_share=data.max_bad_share,
        )

    held_out = stream(random_start=False).held_out(max(1, settings.training.num_validation_videos))
    adopt_geometry(settings, held_out[0]["video"].shape[1:])
    flips = {name: getattr(data, name) for name in ("random_crop", "random_flip", "random_vertical_flip")}
    return stream(vectors=data.vectors or (), **flips), held_out


def clip_of_one_video(options: dict, reader: ClipReader, video: int, key: int) -> dict[str, torch.Tensor]:
    """The clip of a video in a stream; `key` is all its randomness."""
    return ClipDataset(SubsetReader(reader, [video]), strict=True, seed=key, **options)[0]


def open_videos(data: DataArguments) -> ClipReader:
    """The reader of the user's own data."""
    if data.dataset_name is not None:
        return load_datasets_reader(
            data.dataset_name,
            config_name=data.dataset_config_name,
            split=data.dataset_split,
            revision=data.dataset_revision,
            column=data.video_column,
            axes=data.axes,
        )
    return open_reader(
        data.train_data_dir,
        axes=data.axes,
        variables=data.variables,
        column=data.video_column,
        split=None if data.dataset_split == "train" else data.dataset_split,
    )


def make_normalizer(settings: Settings, reader: ClipReader | None) -> FrameNormalizer:
    """How values become what the network sees: of a saved pipeline, as stated, or measured on the training videos."""
    data, source = settings.data, settings.checkpoint or settings.model.pretrained_model_name_or_path
    if source is not None:
        return FrameNormalizer.from_config(MCVDPipeline.load_config(source).get("normalization"))
    if data.normalization in ("unit", "range"):
        return stated_normalizer(settings)
    normalizer = measure_normalizer(
        spread_frames(reader, data.normalization_frames),
        data.normalization,
        nan_fill=data.nan_fill,
        has_mask_channel=data.nan_mask_channel,
    )
    if settings.model.in_channels not in (None, len(normalizer.low)):
        raise ValueError(
            f"--in_channels {settings.model.in_channels} would mix the {len(normalizer.low)} channels of the data, which"
            f" --normalization {data.normalization} measures one by one: leave it out, or state a range."
        )
    return normalizer


def adopt_geometry(settings: Settings, frame_shape: tuple[int, int, int]) -> None:
    """What the settings left to the data. A mask is no channel of the data."""
    channels, height, width = frame_shape
    settings.model.in_channels = channels - settings.data.nan_mask_channel
    settings.model.resolution = [height, width]


def whole_clips(held_out: Dataset, count: int) -> list[dict[str, torch.Tensor]]:
    """The first held-out clips, without padding, to make videos of."""
    clips = (held_out[number] for number in range(len(held_out)))
    return list(itertools.islice((clip for clip in clips if not clip.get("is_padding", NO_PADDING).any()), count))


def make_loader(settings: Settings, train_set: Dataset, accelerator: Accelerator, first_batch: int = 0) -> DataLoader:
    """Batches for this process; it is not prepared by Accelerate, since it divides the clips itself."""
    num_workers, batch_size = settings.data.dataloader_num_workers, settings.training.train_batch_size
    how = {"batch_size": batch_size, "drop_last": True}
    if not isinstance(train_set, StreamingClips):
        world = {"rank": accelerator.process_index, "world_size": accelerator.num_processes}
        batches = EpochBatches(
            len(train_set), batch_size, seed=settings.training.seed, first_batch=first_batch, **world
        )
        how = {"sampler": batches, "batch_size": None}  # `train_set[samples]` is a batch already
    if num_workers:
        _plan_end_of_workers()
    return DataLoader(
        train_set,
        **how,
        num_workers=num_workers,
        worker_init_fn=ignore_stop_signals,
        persistent_workers=num_workers > 0,
        pin_memory=accelerator.device.type == "cuda",
        timeout=WORKER_TIMEOUT if num_workers else 0,
    )


@functools.cache  # once for all loaders of this process
def _plan_end_of_workers() -> None:
    """At exit they end before Python's own attempt, which asks by SIGTERM, and would wait for ever."""
    atexit.register(_end_workers_at_exit)


def _end_workers_at_exit() -> None:
    end_workers([process for process in multiprocessing.active_children() if process.daemon])


class DataError(RuntimeError):
    """The data can not be read any more."""


class Batches:
    """
    The batches of this process without end, from any place in the run.

    Data sets with a length are one pass without end. A stream is met pass after pass; to go on in the middle of one, its
    batches up to there are read once more and dropped.

    Args:
        settings ([`Settings`]): Of the run.
        train_set (`Dataset`): What to draw from.
        accelerator (`Accelerator`): Which process this is.
        first_batch (`int`): How many batches this process has had before.
        stream_position (`tuple[int, int]`, *optional*): Of a stream: its pass, and batches that were met in it.

    Raises:
        [`DataError`]: While it is iterated, whatever it is that can not be read.
    """

    def __init__(
        self,
        settings: Settings,
        train_set: Dataset,
        accelerator: Accelerator,
        *,
        first_batch: int = 0,
        stream_position: tuple[int, int] = (0, 0),
    ) -> None:
        self._dataset, self._is_stream = train_set, isinstance(train_set, StreamingClips)
        self._loader = make_loader(settings, train_set, accelerator, first_batch)
        self.stream_position = tuple(stream_position)
        """Pass, and batches in it, up to and with the one that was given last."""
        self._workers: list[multiprocessing.Process] = []

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        try:
            yield from self._forever()
        except (
            OSError,
            ValueError,
            RuntimeError,
            EOFError,
        ) as error:  # the last two: a worker that was killed, or hangs
            reason = str(error) or "a process that loads them has ended"
            raise DataError(f"the data can not be read any more: {reason}") from error

    def close(self) -> None:
        """End the processes that load, whatever they are at."""
        end_workers(self._workers)
        self._workers = []

    def _forever(self) -> Iterator[dict[str, torch.Tensor]]:
        others = multiprocessing.active_children()
        while True:
            number, num_met = self.stream_position
            if self._is_stream:
                self._dataset.set_epoch(number)
            batches = iter(self._loader)  # the first time this starts the workers, which live until the end
            self._workers = [process for process in multiprocessing.active_children() if process not in others]
            for count, batch in enumerate(batches, 1):
                if self._is_stream and count <= num_met:
                    continue
                if self._is_stream:
                    self.stream_position = (number, count)
                yield batch
            if self.stream_position == (number, 0):
                raise ValueError("The stream has fewer clips than a batch on this process: lower --train_batch_size.")
            self.stream_position = (number + 1, 0)
