# Copyright 2026 The mcvd-diffusers authors. Licensed under the Apache License, Version 2.0.
"""Train a masked conditional video diffusion model, and save it as a pipeline.

    accelerate launch train_mcvd.py --output_dir runs/digits                        # moving digits, all defaults
    accelerate launch train_mcvd.py --preset smmnist-concat-p5k5f5-general --digits mnist --output_dir runs/smmnist
    accelerate launch train_mcvd.py --train_data_dir videos/ --in_channels 3 --resolution 64 --output_dir runs/mine
    accelerate launch train_mcvd.py --train_data_dir radar.zarr --normalization min_max --output_dir runs/radar
    accelerate launch train_mcvd.py settings.yaml --learning_rate 1e-4              # a file, and flags on top of it
    accelerate launch train_mcvd.py settings.yaml --estimate                        # what it would cost; nothing is kept
    accelerate launch --multi_gpu --num_processes 8 train_mcvd.py ...               # several GPUs
    accelerate launch --config_file cluster.yaml train_mcvd.py ...                  # several machines

`--help` explains each flag (they are in `mcvd_diffusers/train_settings.py`); the training loop is `main`, below.

All randomness is keyed: clip i of epoch e by (seed, e, i); masks, timesteps and noise of training sample n by
(seed, n); dropout by (seed, step, process), which alone depends on the batch size and the number of processes. Nothing is
drawn from a global stream that outlives a step.
"""

import contextlib
import functools
import itertools
import logging
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import diffusers
import numpy as np
import torch
import yaml
from accelerate import Accelerator, PartialState
from accelerate.logging import get_logger
from accelerate.utils import GradientAccumulationPlugin, ProjectConfiguration
from diffusers import DDPMScheduler
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from torch.utils.data import DataLoader, Dataset

from mcvd_diffusers import FrameRole, MCVDPipeline, MCVDUNet2DModel, denoising_loss, mcvd_roles, sample_generators
from mcvd_diffusers.cost import NUM_TIMED, CostEstimate, Spread, UpdateTimer, measure_sampling, peak_memory
from mcvd_diffusers.data import (
    ClipDataset,
    ClipReader,
    EpochBatches,
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
from mcvd_diffusers.masking import trained_tasks
from mcvd_diffusers.metrics import blend_linearly, psnr_of_mse, repeat_last_frame, video_mse
from mcvd_diffusers.normalization import FrameNormalizer, measure_normalizer
from mcvd_diffusers.randomness import keyed_seed
from mcvd_diffusers.train_settings import (
    FOR_FILES,
    FROM_PRETRAINED_UNET,
    DataArguments,
    Settings,
    parse_args,
    stated_normalizer,
)
from mcvd_diffusers.training import DROPOUT_STREAM
from mcvd_diffusers.visualization import contact_sheet, save_comparison_gif


logger = get_logger("train_mcvd", log_level="INFO")

BASELINES = {
    "prediction": "repeating the last frame",
    "past_prediction": "repeating the first frame",
    "interpolation": "blending the given frames",
}
NO_PADDING = torch.zeros(1, dtype=torch.bool)

# Seconds after which a worker that gives no batch is given up: a file system that hangs must not hang the run for ever.
WORKER_TIMEOUT = 1800


class SetupError(ValueError):
    """Something about the settings or the data that shows before the first step."""


@contextlib.contextmanager
def setup_errors():
    """Errors of the set-up end the script with a message; others show where they happened."""
    try:
        yield
    except (ValueError, OSError, ImportError) as error:
        raise SetupError(f"{error}{way_out_of(str(error))}") from error


def way_out_of(message: str) -> str:
    """What a message of the library, which names its own arguments, means here."""
    flags = {
        "whose range is not known": "--normalization range, min_max or mean_std",
        "but images must be uint8 or in [0, 1]": "--normalization range, min_max or mean_std",
        "has missing values (NaN)": "--nan_fill, and --nan_mask_channel if the network is to know where they are",
        "`frame_size` must be given": "--resolution",
        "`num_channels` must be given": "--in_channels",
        "`axes` must": "--axes",
        "`variables` must": "--variables",
        "`column` must": "--video_column",
        "too short": "--num_past_frames, --num_frames, --num_future_frames and --frame_stride make a clip's length;"
        " --pad_short_videos",
        "`max_bad_share`": "--max_bad_share",
    }
    found = [flag for words, flag in flags.items() if words in message]
    return f" (Flags: {'; '.join(found)}.)" if found else ""


class DataError(RuntimeError):
    """The data can not be read any more; what was trained has been saved."""


# --------------------------------------------------------------------------------------------------------------------
# What is trained, and on what


def make_datasets(settings: Settings, num_frames: int) -> tuple[Dataset, Dataset]:
    """Training and held-out clips of `num_frames` frames: `{"video": (T, C, H, W) in [-1, 1]}`, no video in both."""
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
    data, source = settings.data, settings.model.pretrained_model_name_or_path
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


def make_unet(settings: Settings) -> MCVDUNet2DModel:
    """The network: new from the settings, or a saved one to go on with."""
    training, source = settings.training, settings.model.pretrained_model_name_or_path
    statements = {name: getattr(training, name) for name in ("drop_past", "drop_future", "prediction_type")}
    if source is not None:
        unet = MCVDUNet2DModel.from_pretrained(source, subfolder="unet")
        unet.register_to_config(sample_size=list(settings.size), **statements)
        return unet
    shape = {name: getattr(settings.model, name) for name in FROM_PRETRAINED_UNET}
    shape["in_channels"] += settings.data.nan_mask_channel
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(training.seed)
        return MCVDUNet2DModel(
            sample_size=list(settings.size), num_train_timesteps=training.num_train_timesteps, **shape, **statements
        )


def make_noise_scheduler(settings: Settings) -> DDPMScheduler:
    """The noise of training; a saved pipeline's, if training goes on with one."""
    training, source = settings.training, settings.model.pretrained_model_name_or_path
    if source is not None:
        return DDPMScheduler.from_pretrained(source, subfolder="scheduler", variance_type="fixed_small")
    return DDPMScheduler(
        num_train_timesteps=training.num_train_timesteps,
        beta_schedule=training.beta_schedule,
        prediction_type=training.prediction_type,
        variance_type="fixed_small",
    )


def make_pipeline(
    settings: Settings, unet: MCVDUNet2DModel, noise_scheduler: DDPMScheduler, normalizer: FrameNormalizer
) -> MCVDPipeline:
    """The network, its units, and the scheduler it is sampled with: from pure noise, within the range of the data."""
    scheduler_class = getattr(diffusers, settings.training.sampling_scheduler)
    scheduler = scheduler_class.from_config(
        noise_scheduler.config,
        timestep_spacing="trailing",
        clip_sample=True,
        clip_sample_range=normalizer.largest_value,
    )
    source = settings.model.pretrained_model_name_or_path
    final_denoise = source is not None and MCVDPipeline.load_config(source).get("final_denoise", False)
    return MCVDPipeline(
        unet=unet, scheduler=scheduler, final_denoise=final_denoise, normalization=normalizer.to_config()
    )


# --------------------------------------------------------------------------------------------------------------------
# Training


def main(settings: Settings, is_stop_asked: Callable[[], bool] = lambda: False) -> Path | None:
    """
    Train, until the end or until `is_stop_asked()`. Returns the folder of the saved pipeline; `None` with `estimate`,
    which ends when the cost was measured.
    """
    training = settings.training
    output_dir = Path(training.output_dir)
    accelerator = Accelerator(
        mixed_precision=training.mixed_precision,
        log_with=None if training.report_to == "none" else training.report_to.split(","),
        project_config=ProjectConfiguration(project_dir=output_dir, logging_dir=output_dir / "logs"),
        # Windows of accumulation run across the end of an epoch, so that each has the same number of samples.
        gradient_accumulation_plugin=GradientAccumulationPlugin(
            num_steps=training.gradient_accumulation_steps, sync_with_dataloader=False
        ),
    )
    rank, world_size, device = accelerator.process_index, accelerator.num_processes, accelerator.device

    with setup_errors():
        train_set, held_out = make_datasets(settings, settings.num_window_frames)
        validation_clips = whole_clips(held_out, training.num_validation_videos)
        unet, noise_scheduler = make_unet(settings), make_noise_scheduler(settings)
        config, normalizer = unet.config, train_set.normalizer
        make_pipeline(settings, unet, noise_scheduler, normalizer)  # whatever does not fit shows now
    if training.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    is_stream = isinstance(train_set, StreamingClips)  # has no length, and splits itself among the processes
    if not is_stream and len(train_set) < training.train_batch_size * world_size:
        raise SetupError(
            f"--train_batch_size: {training.train_batch_size} clips on each of {world_size} processes are more than the"
            f" {len(train_set)} training clips of an epoch. Choose at most {len(train_set) // world_size}, or take more than"
            " one clip of each video: --clip_step."
        )
    loader = make_loader(settings, train_set, accelerator)
    ema = None
    if training.use_ema:
        # Diffusers' average copies the weights at its first step and lets the decay grow; with a constant decay from
        # the very first update, it is the original's.
        constant = {} if training.ema_warmup else {"min_decay": training.ema_decay, "update_after_step": -1}
        ema = EMAModel(unet.parameters(), decay=training.ema_decay, foreach=True, **constant)
        ema.to(device)
    optimizer = torch.optim.AdamW(
        unet.parameters(),
        lr=training.learning_rate,
        betas=(training.adam_beta1, training.adam_beta2),
        eps=training.adam_epsilon,
        weight_decay=training.adam_weight_decay,
    )
    # Not prepared by Accelerate, which would step it once for each process: here a step is an update.
    lr_scheduler = get_scheduler(
        training.lr_scheduler,
        optimizer,
        num_warmup_steps=training.lr_warmup_steps,
        num_training_steps=training.max_train_steps,
    )
    unet, optimizer = accelerator.prepare(unet, optimizer)

    if accelerator.is_main_process and not training.estimate:
        try:  # mode "x": of two runs that were started into one folder, only one goes on
            output_dir.mkdir(parents=True, exist_ok=True)
            with open(output_dir / "training_settings.yaml", "x", encoding="utf-8") as file:
                yaml.safe_dump(settings.as_dict(), file, sort_keys=False)
        except FileExistsError as error:
            raise SetupError(f"--output_dir {output_dir} was taken by another run in the meantime.") from error
        except OSError as error:
            raise SetupError(f"--output_dir {output_dir} cannot be written to: {error}") from error
    if training.report_to != "none":
        flat = {
            name: x if isinstance(x, (int, float, str, bool)) else str(x) for name, x in settings.as_dict().items()
        }
        accelerator.init_trackers(training.tracker_project_name, config=flat)
    unet_window = accelerator.unwrap_model(unet).num_window_frames
    num_parameters = sum(parameter.numel() for parameter in accelerator.unwrap_model(unet).parameters())
    if training.max_train_minutes is not None and training.lr_scheduler in ("cosine", "linear"):
        log(
            accelerator,
            f"warning: --lr_scheduler {training.lr_scheduler} falls over all --max_train_steps; if --max_train_minutes"
            " ends training before, the learning rate is still high then",
        )
    log(
        accelerator,
        f"{settings.data.train_data_dir or settings.data.dataset_name or 'moving digits'}: clips of {unet_window} frames, {settings.size[0]}x"
        f"{settings.size[1]} pixels, {config.in_channels} channel(s), {'streamed' if is_stream else f'{len(train_set):,} an epoch'},"
        f" {len(held_out):,} held out",
    )
    if normalizer != FrameNormalizer():
        log(accelerator, f"values: {normalizer}")
    log(
        accelerator,
        f"{num_parameters:,} parameters, {training.max_train_steps:,} updates of"
        f" {training.train_batch_size * world_size * training.gradient_accumulation_steps} clips"
        f" on {world_size} x {device.type}",
    )

    # Workers fill their queues first: what follows shows whether they keep up.
    num_timed = max(NUM_TIMED, 4 * settings.data.dataloader_num_workers)
    timer, seconds_per_video, is_estimated = UpdateTimer(device, num_timed), None, False
    if accelerator.is_main_process:
        with averaged_weights(accelerator, unet, ema) as model:
            pipeline = make_pipeline(settings, model, noise_scheduler, normalizer).to(device)
            pipeline.set_progress_bar_config(disable=True)
            seconds_per_video = measure_sampling(
                pipeline,
                num_inference_steps=training.validation_inference_steps,
                height=settings.size[0],
                width=settings.size[1],
            )
    accelerator.wait_for_everyone()

    update, data_errors = 0, []
    total_loss, num_losses = torch.zeros((), device=device), 0
    started = last_time = time.perf_counter()
    unet.train()
    for step, batch in enumerate(batches_forever(loader, train_set, device, data_errors)):
        # The numbers of these samples in the run, over all processes.
        first = (step * world_size + rank) * training.train_batch_size
        numbers = range(first, first + training.train_batch_size)
        generators = sample_generators(training.seed, numbers, device)
        torch.manual_seed(keyed_seed(training.seed, DROPOUT_STREAM, step, rank))

        with accelerator.accumulate(unet):
            roles = mcvd_roles(
                len(numbers),
                num_past_frames=config.num_past_frames,
                num_frames=config.num_frames,
                num_future_frames=config.num_future_frames,
                drop_past=training.drop_past,
                drop_future=training.drop_future,
                generator=generators,
            )
            if "is_padding" in batch:  # of a video that is too short: neither given nor learned
                roles = roles.masked_fill(batch["is_padding"].to(roles.device), FrameRole.ABSENT)
            losses = denoising_loss(
                unet,
                noise_scheduler,
                train_set.encode(batch["video"]),
                roles,
                generator=generators,
                loss_type=training.loss_type,
                reduction=training.loss_reduction,
            )
            num_clips = (roles == FrameRole.LATENT).any(dim=1).sum()  # all, unless a whole block is padding
            loss = losses.sum() / num_clips.clamp(min=1)
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                grad_norm = accelerator.clip_grad_norm_(unet.parameters(), training.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()
        total_loss, num_losses = total_loss + loss.detach(), num_losses + 1
        if not accelerator.sync_gradients:
            continue
        if not accelerator.optimizer_step_was_skipped:  # by fp16's loss scaling
            lr_scheduler.step()
            if ema is not None:
                ema.step(unet.parameters())
        update += 1
        timer.update()
        is_late = time.perf_counter() - started > 60 * (training.max_train_minutes or math.inf) or is_stop_asked()
        is_late = is_late or (training.estimate and timer.is_done)
        if (training.max_train_minutes is not None or training.estimate) and world_size > 1:
            if rank == 0 and is_late:  # the first process decides for all
                accelerator.set_trigger()
            is_late = accelerator.check_trigger()
        is_end = is_late or (update == training.max_train_steps and not training.estimate)
        if accelerator.is_main_process and not is_estimated and (timer.is_done or (is_end and timer.has_measured)):
            is_estimated = True
            for line in make_estimate(settings, accelerator, unet, timer, seconds_per_video).lines():
                log(accelerator, f"estimate  {line}")

        if update % training.logging_steps == 0 or is_end:
            mean_loss = accelerator.reduce(total_loss / num_losses, "mean").item()
            if not math.isfinite(mean_loss):
                raise RuntimeError(
                    f"The loss is {mean_loss} at update {update}: training has diverged. Nothing was saved. Lower"
                    " --learning_rate, lengthen --lr_warmup_steps, or use --mixed_precision bf16 instead of fp16."
                )
            now = time.perf_counter()
            num_updates = (update - 1) % training.logging_steps + 1
            values = {
                "loss": mean_loss,
                "grad_norm": float(grad_norm),
                "learning_rate": lr_scheduler.get_last_lr()[0],
                "steps_per_second": num_updates / (now - last_time),
            }
            log(accelerator, f"step {update:>6}  " + "  ".join(f"{name} {x:.4g}" for name, x in values.items()))
            accelerator.log(values, step=update)
            if train_set.num_broken:
                log(accelerator, f"warning: {train_set.num_broken} videos are broken inside; other clips stand in")
            total_loss, num_losses, last_time = torch.zeros((), device=device), 0, now
        if is_end:
            break
        is_validated = bool(training.validation_steps) and update % training.validation_steps == 0
        if validation_clips and is_validated and not training.estimate:
            paused = time.perf_counter()
            with averaged_weights(accelerator, unet, ema) as model:
                if accelerator.is_main_process:
                    pipeline = make_pipeline(settings, model, noise_scheduler, normalizer).to(device)
                    validate(settings, accelerator, pipeline, validation_clips, update)
            accelerator.wait_for_everyone()
            timer.skip()
            last_time += time.perf_counter() - paused
            started += time.perf_counter() - paused

    if training.estimate:
        accelerator.end_training()
        return None
    if data_errors and update == 0:
        raise DataError(f"No batch could be read: {data_errors[0]}") from data_errors[0]
    seconds = time.perf_counter() - started
    log(accelerator, f"trained {update:,} updates in {seconds:.0f} s, {update / seconds:.2f} steps/s")
    with averaged_weights(accelerator, unet, ema) as model:
        if accelerator.is_main_process:
            pipeline = make_pipeline(settings, model, noise_scheduler, normalizer)
            pipeline.save_pretrained(output_dir)  # before anything else can go wrong
            log(accelerator, f"saved to {output_dir}" + (" (averaged weights)" if ema is not None else ""))
            if validation_clips:
                validate(settings, accelerator, pipeline.to(device), validation_clips, update)
    accelerator.wait_for_everyone()
    accelerator.end_training()
    if data_errors:
        raise DataError(
            f"Training stopped after {update:,} of {training.max_train_steps:,} updates, which are saved in {output_dir},"
            f" because the data can not be read any more: {data_errors[0]}"
        ) from data_errors[0]
    return output_dir


def whole_clips(held_out: Dataset, count: int) -> list[dict[str, torch.Tensor]]:
    """The first held-out clips, without padding, to make videos of."""
    clips = (held_out[number] for number in range(len(held_out)))
    return list(itertools.islice((clip for clip in clips if not clip.get("is_padding", NO_PADDING).any()), count))


def make_estimate(
    settings: Settings, accelerator: Accelerator, unet: torch.nn.Module, timer: UpdateTimer, seconds_per_video: Spread
) -> CostEstimate:
    """What the run will cost, from what was measured so far."""
    training, unet = settings.training, accelerator.unwrap_model(unet)
    num_validations = (
        1 + (training.max_train_steps - 1) // training.validation_steps if training.validation_steps else 1
    )
    names = ("num_past_frames", "num_future_frames", "drop_past", "drop_future")
    num_tasks = len(trained_tasks(**{name: unet.config[name] for name in names}))
    return CostEstimate(
        num_parameters=sum(parameter.numel() for parameter in unet.parameters()),
        num_updates=training.max_train_steps,
        seconds_per_update=timer.seconds_per_update,
        seconds_per_video=seconds_per_video,
        sampler=f"{training.validation_inference_steps} steps of {training.sampling_scheduler}",
        num_validation_videos=num_validations * num_tasks * training.num_validation_videos,
        pipeline_bytes=sum(tensor.numel() * tensor.element_size() for tensor in unet.state_dict().values()),
        memory_bytes=peak_memory(accelerator.device),
        device=accelerator.device,
        num_processes=accelerator.num_processes,
        max_seconds=60 * (training.max_train_minutes or math.inf),
    )


def make_loader(settings: Settings, train_set: Dataset, accelerator: Accelerator) -> DataLoader:
    """Batches for this process; it is not prepared by Accelerate, since it divides the clips itself."""
    num_workers, batch_size = settings.data.dataloader_num_workers, settings.training.train_batch_size
    how = {"batch_size": batch_size, "drop_last": True}
    if not isinstance(train_set, StreamingClips):
        world = {"rank": accelerator.process_index, "world_size": accelerator.num_processes}
        batches = EpochBatches(len(train_set), batch_size, seed=settings.training.seed, **world)
        how = {"sampler": batches, "batch_size": None}  # `train_set[samples]` is a batch already
    return DataLoader(
        train_set,
        **how,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        pin_memory=accelerator.device.type == "cuda",
        timeout=WORKER_TIMEOUT if num_workers else 0,
    )


def batches_forever(loader: DataLoader, dataset: Dataset, device: torch.device, errors: list[Exception]):
    """
    One batch after the other, on the device. When the data can not be read any more, it ends and says why in `errors`, so
    that a run that trains alone is saved; of several processes none can go on without the others.
    """
    for epoch in itertools.count():  # of a stream; all other data are one pass without end
        dataset.set_epoch(epoch)
        is_empty = True
        try:
            for batch in loader:
                is_empty = False
                yield {name: values.to(device, non_blocking=True) for name, values in batch.items()}
            if is_empty:
                raise ValueError("The stream has fewer clips than a batch on this process: lower --train_batch_size.")
        except (OSError, ValueError, RuntimeError) as error:  # the last: a worker that was killed, or hangs
            if PartialState().num_processes > 1:
                raise
            errors.append(error)
            return


@contextlib.contextmanager
def averaged_weights(accelerator: Accelerator, unet: torch.nn.Module, ema: EMAModel | None):
    """The bare network in evaluation mode, with the averaged weights if there are any; afterwards all is as before."""
    model = accelerator.unwrap_model(unet)
    if ema is not None:
        ema.store(model.parameters())
        ema.copy_to(model.parameters())
    model.eval()
    try:
        yield model
    finally:
        model.train()
        if ema is not None:
            ema.restore(model.parameters())


@torch.no_grad()
def validate(
    settings: Settings, accelerator: Accelerator, pipeline: MCVDPipeline, clips: list[dict], update: int
) -> dict[str, float]:
    """
    Make videos of held-out clips for each task that the network was trained for, with the same noise every time.

    Writes GIFs under samples/, and logs PSNRs beside those of the baselines; returns the latter.
    """
    training, config = settings.training, pipeline.unet.config
    num_videos = len(clips)
    units = pipeline.normalizer
    given = units.decode(torch.stack([clip["video"] for clip in clips]))  # in the user's units
    video = units.to_display(given)  # in [0, 1], for pictures and PSNR
    past_units, _, future_units = given.split(
        [config.num_past_frames, config.num_frames, config.num_future_frames], dim=1
    )
    past, block, future = video.split([config.num_past_frames, config.num_frames, config.num_future_frames], dim=1)
    no_past, no_future, size = past[:, :0], future[:, :0], config.num_frames
    names = ("num_past_frames", "num_future_frames", "drop_past", "drop_future")
    possible = {  # task: (given frames before the block, after it, baseline)
        "prediction": lambda: (past, no_future, repeat_last_frame(past, size)),
        "past prediction": lambda: (no_past, future, repeat_last_frame(future.flip(1), size)),
        "interpolation": lambda: (past, future, blend_linearly(past, future, size)),
        "generation": lambda: (no_past, no_future, None),
    }
    tasks = {
        task.replace(" ", "_"): possible[task]() for task in trained_tasks(**{name: config[name] for name in names})
    }

    pipeline.set_progress_bar_config(disable=True)
    values, sheets = {}, {}
    for task, (before, after, baseline) in tasks.items():
        samples = pipeline(
            past_frames=past_units if before.shape[1] else None,
            future_frames=future_units if after.shape[1] else None,
            batch_size=num_videos,
            height=video.shape[-2],
            width=video.shape[-1],
            num_inference_steps=training.validation_inference_steps,
            generator=[torch.Generator().manual_seed(i) for i in range(num_videos)],
            output_type="pt",
        ).frames
        samples = units.to_display(samples).cpu()
        columns = (
            {"sample": samples} if baseline is None else {"truth": block, "sample": samples, "baseline": baseline}
        )
        columns = {name: torch.cat([before, x, after], dim=1) for name, x in columns.items()}
        is_given = [True] * before.shape[1] + [False] * config.num_frames + [True] * after.shape[1]
        folder = Path(training.output_dir) / "samples" / f"step-{update}"
        save_comparison_gif(folder / f"{task}.gif", columns, is_given)
        sheets[f"validation/{task}"] = contact_sheet(columns, is_given)
        if baseline is None:
            continue
        # Of the mean error over all clips: a clip in which nothing moves would make the baseline's mean PSNR infinite.
        psnr, baseline_psnr = (float(psnr_of_mse(video_mse(x, block).mean())) for x in (samples, baseline))
        values |= {f"validation/{task}_psnr": psnr, f"validation/{task}_psnr_of_baseline": baseline_psnr}
        log(
            accelerator,
            f"step {update:>6}  {task}: PSNR {psnr:.2f} dB, {BASELINES[task]} {baseline_psnr:.2f} dB (of the mean squared error"
            f" over {num_videos} held-out clips, one sample each; higher is better)",
        )
    accelerator.log(values, step=update)
    for tracker in accelerator.trackers:  # the others have the files under samples/
        if tracker.name == "tensorboard":
            arrays = {name: np.asarray(sheet)[None] for name, sheet in sheets.items()}
            tracker.log_images(arrays, step=update, dataformats="NHWC")
        elif tracker.name == "wandb":
            tracker.log_images({name: [sheet] for name, sheet in sheets.items()}, step=update)
    return values


def log(accelerator: Accelerator, message: str) -> None:
    logger.info(message, main_process_only=True)


if __name__ == "__main__":
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S", level=logging.INFO)
    settings, stop = parse_args(), threading.Event()

    def ask_to_stop(*_):
        logging.info("stopping after this update and saving; once more to stop at once")
        signal.signal(signal.SIGINT, signal.default_int_handler)
        stop.set()

    if int(os.environ.get("WORLD_SIZE", 1)) == 1:  # several processes would have to agree
        signal.signal(signal.SIGINT, ask_to_stop)
    try:
        main(settings, stop.is_set)
    except (SetupError, DataError) as error:
        sys.exit(f"train_mcvd.py: error: {error}")
