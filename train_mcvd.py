# Copyright 2026 The mcvd-diffusers authors. Licensed under the Apache License, Version 2.0.
"""Train a masked conditional video diffusion model, and save it as a pipeline.

    accelerate launch train_mcvd.py --output_dir runs/digits                        # moving digits, all defaults
    accelerate launch train_mcvd.py --preset smmnist-concat-p5k5f5-general --digits mnist --output_dir runs/smmnist
    accelerate launch train_mcvd.py --train_data_dir videos/ --in_channels 3 --resolution 64 --output_dir runs/mine
    accelerate launch train_mcvd.py settings.yaml --learning_rate 1e-4              # a file, and flags on top of it
    accelerate launch --multi_gpu --num_processes 8 train_mcvd.py ...               # several GPUs
    accelerate launch --config_file cluster.yaml train_mcvd.py ...                  # several machines

Flags go before the file, the file before the preset, the preset before the defaults. `--help` explains each flag; the
training loop is `main`, below.

All randomness is keyed: clip i of epoch e by (seed, e, i); masks, timesteps and noise of training sample n by
(seed, n); dropout by (seed, step, process), which alone depends on the batch size and the number of processes. Nothing is
drawn from a global stream that outlives a step.
"""

import argparse
import contextlib
import itertools
import logging
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Literal

import diffusers
import numpy as np
import torch
import yaml
from accelerate import Accelerator
from accelerate.logging import get_logger
from accelerate.tracking import get_available_trackers
from accelerate.utils import (
    DataLoaderConfiguration,
    GradientAccumulationPlugin,
    LoggerType,
    ProjectConfiguration,
)
from diffusers import DDPMScheduler
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from torch.utils.data import DataLoader, Dataset
from transformers import HfArgumentParser

from mcvd_diffusers import MCVDPipeline, MCVDUNet2DModel, denoising_loss, mcvd_roles, sample_generators
from mcvd_diffusers.data import (
    ClipDataset,
    MovingDigits,
    OriginalClips,
    load_digits,
    open_reader,
    published_split,
    split_by_name,
)
from mcvd_diffusers.metrics import blend_linearly, psnr_of_mse, repeat_last_frame, video_mse
from mcvd_diffusers.presets import ORIGINAL_NAMES, preset
from mcvd_diffusers.randomness import keyed_seed
from mcvd_diffusers.training import DROPOUT_STREAM
from mcvd_diffusers.visualization import contact_sheet, save_comparison_gif


logger = get_logger("train_mcvd", log_level="INFO")


# --------------------------------------------------------------------------------------------------------------------
# Settings


def flag(default, help: str):
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata={"help": help})
    return field(default=default, metadata={"help": help})


@dataclass
class ModelArguments:
    pretrained_model_name_or_path: str | None = flag(
        None,
        "Pipeline (folder or Hub id) whose network to go on training. It brings its shape, resolution, masks, noise"
        " schedule, target and sampler along; only resolution, masks and sampler may be changed. Optimizer and learning"
        " rate are not in it: they are those of the flags, or of a `--preset`.",
    )
    conditioning: Literal["concat", "spatin"] = flag("concat", "How given frames enter the network.")
    in_channels: int = flag(1, "Channels of a frame.")
    resolution: list[int] = flag([32], "Height and width of the frames in pixels, or one number for both.")
    num_past_frames: int = flag(4, "Frames before the block that the network reads.")
    num_frames: int = flag(4, "Frames of the block that the network makes.")
    num_future_frames: int = flag(2, "Frames after the block that the network reads.")
    block_out_channels: list[int] = flag([32, 64, 96], "Channels of each level of the UNet, finest first.")
    down_block_types: list[str] | None = flag(
        None, "DownBlock2D or AttnDownBlock2D for each level; attention at the coarsest level only, if not given."
    )
    layers_per_block: int = flag(1, "Residual blocks of a level.")
    attention_head_dim: int | None = flag(None, "Channels of an attention head; one head if not given.")
    spatin_channels: int = flag(128, "Hidden channels of SPATIN's convolutions.")
    dropout: float = flag(0.0, "Dropout in the residual blocks.")
    embed_past_kept: bool = flag(False, "Tell the network in its time embedding whether the past is there.")


@dataclass
class DataArguments:
    train_data_dir: str | None = flag(
        None,
        "Folder of videos, of folders of frames, or of the original code's HDF5 files. Of the latter, BAIR, Cityscapes"
        " (folders train/ and test/), KTH and UCF-101 are split as published, and their clips chosen as the original does"
        " (UCF-101's 85 columns are cut to --resolution). Without it: moving digits, drawn as they are needed.",
    )
    digits: Literal["sklearn", "mnist"] = flag(
        "sklearn", "Handwritten digits that move: scikit-learn's (no download) or MNIST (from the Hub)."
    )
    num_digits: int = flag(1, "Digits in a clip.")
    digit_size: int | None = flag(
        None, "Height and width of a digit in pixels; half the frame's shorter side if not given."
    )
    max_speed: int | None = flag(
        None, "Largest speed of a digit in pixels a frame; a 16th of the shorter side if not given."
    )
    num_train_clips: int = flag(10_000, "Moving digits: clips in an epoch.")
    validation_fraction: float = flag(
        0.1, "Folder: share of the videos that is held out, chosen by their names, unless they are split as published."
    )
    frame_stride: int = flag(1, "Folder: take every n-th frame.")
    random_flip: bool = flag(False, "Folder: mirror half of the clips.")
    dataloader_num_workers: int = flag(0, "Processes that load clips.")


@dataclass
class TrainingArguments:
    output_dir: str = flag("", "Where to save; must not exist, or be empty. Required.")
    preset: str | None = flag(None, f"Settings of a published checkpoint: {', '.join(ORIGINAL_NAMES)}.")
    seed: int = flag(0, "Key of all randomness.")

    drop_past: float = flag(0.5, "Probability that all past frames of a sample are absent.")
    drop_future: float = flag(0.5, "Probability that all future frames of a sample are absent.")

    prediction_type: Literal["epsilon", "v_prediction", "sample"] = flag(
        "v_prediction", "What the network predicts; the original's predicts epsilon."
    )
    beta_schedule: Literal["linear", "squaredcos_cap_v2"] = flag(
        "squaredcos_cap_v2", "Noise schedule: the original's linear one, or cosine."
    )
    num_train_timesteps: int = flag(1000, "Timesteps of the noise schedule.")
    loss_type: Literal["l2", "l1"] = flag("l2", "Squared or absolute error.")
    loss_reduction: Literal["mean", "sum"] = flag(
        "mean",
        "Over a clip's pixels. The original adds up, so that clipping its gradient to norm 1 always bites: another"
        " optimiser than the mean, whose value does not depend on the frames' size.",
    )

    train_batch_size: int = flag(16, "Clips a process and step.")
    gradient_accumulation_steps: int = flag(1, "Steps whose gradients make one update.")
    max_train_steps: int = flag(5_000, "Updates.")
    max_train_minutes: float | None = flag(
        None,
        "Stop and save after so many minutes of training, if the updates are not done by then. How far that is depends on"
        " the machine. Goes with a constant learning rate.",
    )
    learning_rate: float = flag(1e-3, "Learning rate.")
    lr_scheduler: Literal["constant_with_warmup", "cosine", "linear", "constant"] = flag(
        "cosine", "Learning rate over the updates."
    )
    lr_warmup_steps: int = flag(100, "Updates until the learning rate is reached.")
    adam_beta1: float = flag(0.9, "Adam.")
    adam_beta2: float = flag(0.999, "Adam.")
    adam_epsilon: float = flag(1e-8, "Adam.")
    adam_weight_decay: float = flag(0.0, "AdamW's decoupled weight decay.")
    max_grad_norm: float = flag(1.0, "Largest norm of the gradient.")
    use_ema: bool = flag(True, "Keep a moving average of the weights, and save that.")
    ema_decay: float = flag(0.999, "Decay of the average.")
    ema_warmup: bool = flag(True, "Let the decay grow to its value, (1 + n) / (10 + n); else constant from the start.")
    mixed_precision: Literal["no", "fp16", "bf16"] | None = flag(
        None, "Precision of the network's computations; if not given, what `accelerate launch` says."
    )
    gradient_checkpointing: bool = flag(False, "Trade time for memory.")

    sampling_scheduler: Literal["DDIMScheduler", "DDPMScheduler"] = flag(
        "DDIMScheduler", "Noise scheduler that is saved in the pipeline."
    )
    validation_steps: int = flag(0, "Make videos of held-out clips every so many updates; 0: only at the end.")
    num_validation_videos: int = flag(4, "Held-out clips to make videos of; 0: none.")
    validation_inference_steps: int = flag(25, "Denoising steps of a validation video.")
    logging_steps: int = flag(100, "Updates between two lines of the log.")
    report_to: str = flag("none", "Trackers, separated by commas: none, tensorboard, wandb, trackio, all, ...")
    tracker_project_name: str = flag("train_mcvd", "Project in the tracker.")


# What a pretrained pipeline brings along: its network's shape, and the noise schedule and target of its training.
FROM_PRETRAINED_UNET = tuple(
    f.name for f in fields(ModelArguments) if f.name not in ("pretrained_model_name_or_path", "resolution")
)
FROM_PRETRAINED_SCHEDULER = ("prediction_type", "beta_schedule", "num_train_timesteps")


@dataclass
class Settings:
    model: ModelArguments
    data: DataArguments
    training: TrainingArguments
    explicit: frozenset[str] = frozenset()  # names that were given by flag, file or preset

    @property
    def size(self) -> tuple[int, int]:
        return (self.model.resolution[0], self.model.resolution[-1])

    def as_dict(self) -> dict:
        return {**asdict(self.model), **asdict(self.data), **asdict(self.training)}


def parse_args(args: list[str] | None = None) -> Settings:
    """Read flags, settings file and preset. Exits with a message on anything unknown or out of range."""
    args = list(sys.argv[1:] if args is None else args)
    groups = (ModelArguments, DataArguments, TrainingArguments)
    description = __doc__.split("\n\n")[0] + " The settings file, if any, comes first and ends in .yaml."
    usage = "%(prog)s [settings.yaml] --output_dir FOLDER [--flag value ...]    (--help lists the flags)"
    parser = HfArgumentParser(groups, description=description, usage=usage, allow_abbrev=False)
    # The same flags once more, to learn which were given at all.
    given = HfArgumentParser(groups, usage=usage, add_help=False, allow_abbrev=False)
    for action in given._actions:
        action.default = argparse.SUPPRESS
    try:
        if args and args[0].lower().endswith((".yaml", ".yml")):
            args = as_flags(read_settings_file(Path(args[0]))) + args[1:]
        name = getattr(given.parse_known_args(args)[0], "preset", None)
        if name is not None:
            args = as_flags(preset(name)) + args
        values = vars(parser.parse_args(args))
        settings = Settings(
            *(group(**{f.name: values[f.name] for f in fields(group)}) for group in groups),
            explicit=frozenset(vars(given.parse_args(args))),
        )
        adopt_pretrained(settings)
        if settings.model.down_block_types is None:
            plain = len(settings.model.block_out_channels) - 1
            settings.model.down_block_types = ["DownBlock2D"] * plain + ["AttnDownBlock2D"]
        check_settings(settings)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    return settings


def read_settings_file(path: Path) -> dict:
    """A YAML file of settings, each once and by its flag's name."""

    class Loader(yaml.SafeLoader):
        def construct_mapping(self, node, deep=False):
            names = [key.value for key, _ in node.value]
            if len(names) > len(set(names)):
                raise ValueError(f"{path} says {sorted({n for n in names if names.count(n) > 1})} more than once.")
            return super().construct_mapping(node, deep)

    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"The settings file {path} is no YAML in UTF-8: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"The settings file {path} must hold lines of `name: value`, got a {type(content).__name__}.")
    known = {f.name for group in (ModelArguments, DataArguments, TrainingArguments) for f in fields(group)}
    unknown = sorted(str(name) for name in content if name not in known)
    if unknown:
        raise ValueError(f"The settings file {path} has settings that do not exist: {unknown}.")
    for name, value in content.items():
        if any(isinstance(x, (dict, list)) for x in (value if isinstance(value, list) else [value])):
            raise ValueError(f"The settings file {path}: `{name}` must be a value or a list of values, got {value!r}.")
    return content


def as_flags(settings: dict) -> list[str]:
    """Settings as they would be typed, so that one parser checks them all. `None` is left to its default."""
    flags = []
    for name, value in settings.items():
        if value is not None:
            flags += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    return flags


def adopt_pretrained(settings: Settings) -> None:
    """
    Take over what a pretrained pipeline decides, so that the settings say what is really trained.

    Raises:
        ValueError: If a setting was given that the pipeline contradicts.
        OSError: If there is no such pipeline.
    """
    source = settings.model.pretrained_model_name_or_path
    if source is None:
        return
    if any(path.is_file() for path in (Path(source), *Path(source).glob("checkpoint*.pt"))):
        raise ValueError(
            f"--pretrained_model_name_or_path {source} is no pipeline folder. A checkpoint of the original becomes one by:"
            f" mcvd-diffusers convert {source} FOLDER"
        )
    unet_config = MCVDUNet2DModel.load_config(source, subfolder="unet")
    scheduler_config = DDPMScheduler.load_config(source, subfolder="scheduler")
    size = unet_config["sample_size"]
    sampling_scheduler = MCVDPipeline.load_config(source)["scheduler"][1]
    if sampling_scheduler not in ("DDIMScheduler", "DDPMScheduler"):
        sampling_scheduler = settings.training.sampling_scheduler
    for group, name, theirs in (  # these may be changed
        (settings.model, "resolution", size if isinstance(size, list) else [size]),
        (settings.training, "sampling_scheduler", sampling_scheduler),
        (settings.training, "drop_past", unet_config["drop_past"]),
        (settings.training, "drop_future", unet_config["drop_future"]),
    ):
        if name not in settings.explicit:
            setattr(group, name, theirs)
    for group, config, names in (  # and these not
        (settings.model, unet_config, FROM_PRETRAINED_UNET),
        (settings.training, scheduler_config, FROM_PRETRAINED_SCHEDULER),
    ):
        for name in names:
            ours, theirs = getattr(group, name), config[name]
            if name in settings.explicit and ours != theirs:
                raise ValueError(
                    f"--{name} is {ours}, but {source} was made with {theirs}. Leave it out to go on with that pipeline,"
                    " or leave out --pretrained_model_name_or_path to train a new one."
                )
            setattr(group, name, theirs)


def check_settings(settings: Settings) -> None:
    """
    Refuse settings that could not work, before anything is loaded.

    Raises:
        ValueError: Naming the setting, what was expected and what came.
    """
    model, data, training = settings.model, settings.data, settings.training
    if not training.output_dir:
        raise ValueError("--output_dir is required: the folder to save to.")
    output_dir = Path(training.output_dir).expanduser()
    training.output_dir = str(output_dir)
    if output_dir.exists() and not output_dir.is_dir():
        raise ValueError(f"--output_dir {output_dir} is a file: choose another name.")
    if output_dir.exists() and any(output_dir.iterdir()):
        raise ValueError(
            f"--output_dir {output_dir} exists and is not empty. Nothing is overwritten here: choose another folder, or"
            " move that one away."
        )
    blocked = next((parent for parent in output_dir.parents if parent.exists()), None)
    if blocked is not None and not blocked.is_dir():
        raise ValueError(f"--output_dir {output_dir} cannot be made: {blocked} is a file.")
    for group, names in (
        (model, ["in_channels", "num_frames", "layers_per_block"]),
        (data, ["num_digits", "num_train_clips", "frame_stride"]),
        (
            training,
            ["num_train_timesteps", "train_batch_size", "gradient_accumulation_steps", "max_train_steps"]
            + ["validation_inference_steps", "logging_steps"],
        ),
    ):
        for name in names:
            if getattr(group, name) < 1:
                raise ValueError(f"--{name} must be at least 1, got {getattr(group, name)}.")
    for group, names in (
        (model, ["num_past_frames", "num_future_frames"]),
        (data, ["dataloader_num_workers"]),
        (training, ["seed", "lr_warmup_steps", "validation_steps", "num_validation_videos"]),
    ):
        for name in names:
            if getattr(group, name) < 0:
                raise ValueError(f"--{name} must not be negative, got {getattr(group, name)}.")
    for name in ("learning_rate", "max_grad_norm", "adam_epsilon"):
        value = getattr(training, name)
        if not (value > 0 and math.isfinite(value)):
            raise ValueError(f"--{name} must be a positive number, got {value}.")
    if training.max_train_minutes is not None and not training.max_train_minutes > 0:
        raise ValueError(f"--max_train_minutes must be positive, got {training.max_train_minutes}.")
    for name in ("drop_past", "drop_future", "ema_decay"):
        if not 0 <= getattr(training, name) <= 1:
            raise ValueError(f"--{name} must be in [0, 1], got {getattr(training, name)}.")
    if len(model.resolution) not in (1, 2) or min(model.resolution) < 1:
        raise ValueError(f"--resolution must be one or two positive numbers, got {model.resolution}.")
    multiple = 2 ** (len(model.block_out_channels) - 1)
    if any(size % multiple for size in model.resolution):
        raise ValueError(
            f"--resolution must be multiples of {multiple} for {len(model.block_out_channels)} levels, got"
            f" {model.resolution}."
        )
    if training.num_validation_videos and training.validation_inference_steps > training.num_train_timesteps:
        raise ValueError(
            f"--validation_inference_steps ({training.validation_inference_steps}) must not exceed"
            f" --num_train_timesteps ({training.num_train_timesteps})."
        )
    if len(model.down_block_types) != len(model.block_out_channels):
        raise ValueError(
            f"--down_block_types ({len(model.down_block_types)} entries) and --block_out_channels"
            f" ({len(model.block_out_channels)} entries) must have one entry for each level."
        )
    trackers = {} if training.report_to == "none" else set(training.report_to.split(","))
    available = {"all", *(tracker.value for tracker in LoggerType if tracker in get_available_trackers())}
    if set(trackers) - available:
        raise ValueError(
            f"--report_to {training.report_to}: {', '.join(sorted(set(trackers) - available))} is no tracker that is"
            f" installed here. There are: none, {', '.join(sorted(available))}. Others need their package, such as"
            " `pip install wandb`."
        )
    for name, least in (("digit_size", 1), ("max_speed", 0)):
        value = getattr(data, name)
        if value is not None and value < least:
            raise ValueError(f"--{name} must be at least {least}, got {value}.")
    if data.train_data_dir is not None:
        if not data.train_data_dir.strip():
            raise ValueError("--train_data_dir is empty: name a folder, or leave it out for moving digits.")
        data_dir = Path(data.train_data_dir).expanduser()
        data.train_data_dir = str(data_dir)
        if data_dir.resolve() in [output_dir.resolve(), *output_dir.resolve().parents]:
            raise ValueError(
                f"--output_dir {output_dir} lies inside --train_data_dir {data_dir}: its pictures would become training"
                " data of the next run. Choose a folder outside."
            )
    if data.train_data_dir is None:
        if training.preset and not training.preset.startswith("smmnist"):
            raise ValueError(f"--preset {training.preset} is for your copy of its data: pass --train_data_dir.")
        if model.in_channels != 1:
            raise ValueError(
                f"--in_channels is {model.in_channels}, but moving digits have 1. For own videos pass --train_data_dir."
            )
    elif not Path(data.train_data_dir).exists():
        raise ValueError(f"--train_data_dir {data.train_data_dir} does not exist.")
    elif model.in_channels not in (1, 3):
        raise ValueError(f"--in_channels must be 1 or 3 to read videos and images, got {model.in_channels}.")
    if not 0 < data.validation_fraction < 1:
        raise ValueError(f"--validation_fraction must be between 0 and 1, got {data.validation_fraction}.")


class SetupError(ValueError):
    """Something about the settings or the data that shows before the first step."""


@contextlib.contextmanager
def setup_errors():
    """Errors of the set-up end the script with a message; others show where they happened."""
    try:
        yield
    except ValueError as error:
        raise SetupError(str(error)) from error


# --------------------------------------------------------------------------------------------------------------------
# What is trained, and on what


def make_datasets(settings: Settings, num_frames: int) -> tuple[Dataset, Dataset]:
    """Training and held-out clips of `num_frames` frames: `{"video": (T, C, H, W) in [-1, 1]}`, no video in both."""
    data, seed = settings.data, settings.training.seed
    if data.train_data_dir is None:
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
    published = published_split(data.train_data_dir)
    if published is not None:
        if data.frame_stride != 1:
            raise ValueError(
                f"--frame_stride must be 1 for --train_data_dir {data.train_data_dir}, which is split as published, got"
                f" {data.frame_stride}: clips are chosen as the original does."
            )
        height, width = settings.size
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
    common = {
        "num_frames": num_frames,
        "frame_size": settings.size,
        "num_channels": settings.model.in_channels,
        "stride": data.frame_stride,
        "seed": seed,
    }
    reader = open_reader(data.train_data_dir)
    if len(reader) < 2:
        raise ValueError(
            f"--train_data_dir {data.train_data_dir} holds 1 video; at least one more is needed to hold out."
        )
    try:
        train, held_out = split_by_name(reader, data.validation_fraction)
    except ValueError as error:
        raise ValueError(
            f"--validation_fraction {data.validation_fraction} leaves one side of the {len(reader)} videos empty, since"
            " each is held out or not by a hash of its name: choose a fraction nearer to 0.5."
        ) from error
    return (
        ClipDataset(train, random_flip=data.random_flip, **common),
        ClipDataset(held_out, random_start=False, **common),
    )


def make_unet(settings: Settings) -> MCVDUNet2DModel:
    """The network: new from the settings, or a saved one to go on with."""
    training, source = settings.training, settings.model.pretrained_model_name_or_path
    statements = {name: getattr(training, name) for name in ("drop_past", "drop_future", "prediction_type")}
    if source is not None:
        unet = MCVDUNet2DModel.from_pretrained(source, subfolder="unet")
        unet.register_to_config(sample_size=list(settings.size), **statements)
        return unet
    shape = {name: getattr(settings.model, name) for name in FROM_PRETRAINED_UNET}
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


def make_pipeline(settings: Settings, unet: MCVDUNet2DModel, noise_scheduler: DDPMScheduler) -> MCVDPipeline:
    """The network with the scheduler it is sampled with: it starts at pure noise and keeps frames in [-1, 1]."""
    scheduler_class = getattr(diffusers, settings.training.sampling_scheduler)
    scheduler = scheduler_class.from_config(
        noise_scheduler.config, timestep_spacing="trailing", clip_sample=True, clip_sample_range=1.0
    )
    source = settings.model.pretrained_model_name_or_path
    final_denoise = source is not None and MCVDPipeline.load_config(source).get("final_denoise", False)
    return MCVDPipeline(unet=unet, scheduler=scheduler, final_denoise=final_denoise)


# --------------------------------------------------------------------------------------------------------------------
# Training


def main(settings: Settings, is_stop_asked: Callable[[], bool] = lambda: False) -> Path:
    """Train, until the end or until `is_stop_asked()`. Returns the folder of the saved pipeline."""
    training = settings.training
    output_dir = Path(training.output_dir)
    accelerator = Accelerator(
        mixed_precision=training.mixed_precision,
        log_with=None if training.report_to == "none" else training.report_to.split(","),
        project_config=ProjectConfiguration(project_dir=output_dir, logging_dir=output_dir / "logs"),
        dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True, data_seed=training.seed),
        # Windows of accumulation run across the end of an epoch, so that each has the same number of samples.
        gradient_accumulation_plugin=GradientAccumulationPlugin(
            num_steps=training.gradient_accumulation_steps, sync_with_dataloader=False
        ),
    )
    rank, world_size, device = accelerator.process_index, accelerator.num_processes, accelerator.device

    with setup_errors():
        unet, noise_scheduler = make_unet(settings), make_noise_scheduler(settings)
    config = unet.config
    if training.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    with setup_errors():
        train_set, held_out = make_datasets(settings, unet.num_window_frames)
    if len(train_set) < training.train_batch_size * world_size:
        raise SetupError(
            f"--train_batch_size: {training.train_batch_size} clips on each of {world_size} processes are more than the"
            f" {len(train_set)} training clips (one of each video). Choose at most {len(train_set) // world_size}."
        )
    loader = DataLoader(
        train_set,
        batch_size=training.train_batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=settings.data.dataloader_num_workers,
        persistent_workers=settings.data.dataloader_num_workers > 0,
    )
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
    unet, optimizer, loader = accelerator.prepare(unet, optimizer, loader)

    if accelerator.is_main_process:
        output_dir.mkdir(parents=True, exist_ok=True)
        try:  # mode "x": of two runs that were started into one folder, only one goes on
            with open(output_dir / "training_settings.yaml", "x", encoding="utf-8") as file:
                yaml.safe_dump(settings.as_dict(), file, sort_keys=False)
        except FileExistsError as error:
            raise SetupError(f"--output_dir {output_dir} was taken by another run in the meantime.") from error
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
        f"{settings.data.train_data_dir or 'moving digits'}: clips of {unet_window} frames, {settings.size[0]}x"
        f"{settings.size[1]} pixels, {config.in_channels} channel(s), {len(train_set):,} a round, {len(held_out):,} held out",
    )
    log(
        accelerator,
        f"{num_parameters:,} parameters, {training.max_train_steps:,} updates of"
        f" {training.train_batch_size * world_size * training.gradient_accumulation_steps} clips"
        f" on {world_size} x {device.type}",
    )

    update = 0
    total_loss, num_losses = torch.zeros((), device=device), 0
    started = last_time = time.perf_counter()
    unet.train()
    for step, batch in enumerate(batches_forever(loader, train_set)):
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
            loss = denoising_loss(
                unet,
                noise_scheduler,
                batch["video"],
                roles,
                generator=generators,
                loss_type=training.loss_type,
                reduction=training.loss_reduction,
            ).mean()
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
        is_late = time.perf_counter() - started > 60 * (training.max_train_minutes or math.inf) or is_stop_asked()
        if training.max_train_minutes is not None and world_size > 1:  # the first process decides for all
            if rank == 0 and is_late:
                accelerator.set_trigger()
            is_late = accelerator.check_trigger()
        is_end = is_late or update == training.max_train_steps

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
            total_loss, num_losses, last_time = torch.zeros((), device=device), 0, now
        if is_end:
            break
        if training.num_validation_videos and training.validation_steps and update % training.validation_steps == 0:
            paused = time.perf_counter()
            with averaged_weights(accelerator, unet, ema) as model:
                if accelerator.is_main_process:
                    pipeline = make_pipeline(settings, model, noise_scheduler).to(device)
                    validate(settings, accelerator, pipeline, held_out, update)
            accelerator.wait_for_everyone()
            last_time += time.perf_counter() - paused
            started += time.perf_counter() - paused

    seconds = time.perf_counter() - started
    log(accelerator, f"trained {update:,} updates in {seconds:.0f} s, {update / seconds:.2f} steps/s")
    with averaged_weights(accelerator, unet, ema) as model:
        if accelerator.is_main_process:
            pipeline = make_pipeline(settings, model, noise_scheduler)
            pipeline.save_pretrained(output_dir)  # before anything else can go wrong
            log(accelerator, f"saved to {output_dir}" + (" (averaged weights)" if ema is not None else ""))
            if training.num_validation_videos:
                validate(settings, accelerator, pipeline.to(device), held_out, update)
    accelerator.wait_for_everyone()
    accelerator.end_training()
    return output_dir


def batches_forever(loader: DataLoader, dataset: Dataset):
    """Epoch after epoch, each in an order and with clips of its own."""
    for epoch in itertools.count():
        dataset.set_epoch(epoch)
        loader.set_epoch(epoch)
        yield from loader


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
    settings: Settings, accelerator: Accelerator, pipeline: MCVDPipeline, held_out: Dataset, update: int
) -> dict[str, float]:
    """
    Make videos of held-out clips for each task that the network was trained for, with the same noise every time.

    Writes GIFs under samples/, and logs PSNRs beside those of the baselines; returns the latter.
    """
    training, config = settings.training, pipeline.unet.config
    num_videos = min(training.num_validation_videos, len(held_out))
    video = (torch.stack([held_out[i]["video"] for i in range(num_videos)]) + 1) / 2
    past, block, future = video.split([config.num_past_frames, config.num_frames, config.num_future_frames], dim=1)
    no_past, no_future = past[:, :0], future[:, :0]
    may_miss_past = config.drop_past > 0 or not config.num_past_frames
    may_miss_future = config.drop_future > 0 or not config.num_future_frames
    tasks = {}  # name: (given frames before the block, after it, baseline)
    if config.num_past_frames and may_miss_future:
        tasks["prediction"] = (past, no_future, repeat_last_frame(past, config.num_frames))
    if config.num_future_frames and may_miss_past:
        tasks["past_prediction"] = (no_past, future, repeat_last_frame(future.flip(1), config.num_frames))
    if config.num_past_frames and config.num_future_frames:
        tasks["interpolation"] = (past, future, blend_linearly(past, future, config.num_frames))
    if may_miss_past and may_miss_future:
        tasks["generation"] = (no_past, no_future, None)

    pipeline.set_progress_bar_config(disable=True)
    values, sheets = {}, {}
    for task, (before, after, baseline) in tasks.items():
        samples = pipeline(
            past_frames=before if before.shape[1] else None,
            future_frames=after if after.shape[1] else None,
            batch_size=num_videos,
            height=video.shape[-2],
            width=video.shape[-1],
            num_inference_steps=training.validation_inference_steps,
            generator=[torch.Generator().manual_seed(i) for i in range(num_videos)],
            output_type="pt",
        ).frames.cpu()
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
            f"step {update:>6}  {task}: PSNR {psnr:.2f} dB, baseline {baseline_psnr:.2f} dB (of the mean squared error,"
            f" {num_videos} held-out clips, one sample each)",
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
    except SetupError as error:
        sys.exit(f"train_mcvd.py: error: {error}")
