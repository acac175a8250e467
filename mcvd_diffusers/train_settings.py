"""The settings of `train_mcvd.py`: its flags, where their values come from, and what they must be.

Flags go before the settings file, the file before the preset, the preset before the defaults. All three are read by one
parser, so that a value is checked alike wherever it stands.
"""

import argparse
import math
import os
import re
import sys
import warnings
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Literal

import yaml
from accelerate.tracking import get_available_trackers
from accelerate.utils import LoggerType
from diffusers import DDPMScheduler, EDMEulerScheduler, FlowMatchEulerDiscreteScheduler, SchedulerMixin
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from mcvd_diffusers.checkpointing import (
    MANIFEST,
    CheckpointError,
    find_checkpoint,
    list_checkpoints,
    read_state,
    update_of,
    verify_checkpoint,
)
from mcvd_diffusers.folder_lock import LOCK_NAME, FolderLock
from mcvd_diffusers.masking import LGCVD_TASK_SHARES
from mcvd_diffusers.models import (
    LGCVDContextEncoder,
    LGCVDUNet2DModel,
    MCVDUNet2DModel,
    RVDContextEncoder,
    RVDUNet2DModel,
    SpaceTimeUNetModel,
)
from mcvd_diffusers.normalization import FrameNormalizer
from mcvd_diffusers.objectives import VARIANCE_PRESERVING, starts_blind
from mcvd_diffusers.pipelines import MCVDPipeline
from mcvd_diffusers.presets import PRESETS, preset
from mcvd_diffusers.samplers import (
    CLIPPING,
    DISTILLED,
    FROM_BETAS,
    SAMPLERS,
    WITHOUT_ZERO_SNR,
    default_sampler,
    make_noise_scheduler,
    num_steps_of,
)


def _flag(default, help: str):
    """A setting with its default and what `--help` says of it."""
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata={"help": help})
    return field(default=default, metadata={"help": help})


@dataclass
class ModelArguments:
    """What is trained; each field is a flag."""

    method: Literal["mcvd", "ramvid", "fdm", "vdm", "lgcvd", "rvd"] = _flag(
        "mcvd",
        "What is trained, and which frames it is given: mcvd, blocks before and after; ramvid, a few frames anywhere in the"
        " window; fdm, frames from anywhere in a long clip; vdm, none, with single images beside the clip; lgcvd, two frames and"
        " a memory of the window before; rvd, all frames before, through recurrent networks. That of the pipeline that is gone on"
        " with, if one is.",
    )
    pretrained_model_name_or_path: str | None = _flag(
        None,
        "Pipeline (folder or Hub id) whose network to go on training. It brings its shape, resolution, masks, noise"
        " schedule, target and sampler along; only resolution, masks and sampler may be changed. Optimizer and learning"
        " rate are not in it: they are those of the flags, or of a `--preset`.",
    )
    variant: str | None = _flag(None, "Which of that pipeline's weights: ema, or the raw ones if not given.")
    conditioning: Literal["concat", "spatin"] = _flag("concat", "mcvd: how given frames enter the network.")
    in_channels: int | None = _flag(
        None, "Channels of a frame, without a mask; those of the data if not given. 1 makes colour grey."
    )
    resolution: list[int] | None = _flag(
        None,
        "Height and width of the frames in pixels, or one number for both; those of the data, or, for moving digits, 32"
        " (other methods than mcvd: 16), if not given. Any size will do.",
    )
    num_past_frames: int = _flag(4, "mcvd: frames before the block that the network reads.")
    num_frames: int = _flag(4, "mcvd: frames of the block that the network makes.")
    num_future_frames: int = _flag(2, "mcvd: frames after the block that the network reads.")
    max_frames: int | None = _flag(
        None, "ramvid, fdm, vdm, lgcvd: frames of a window, without what is beside it; 16 (lgcvd: 8) if not given."
    )
    clip_frames: int | None = _flag(
        None,
        "fdm: frames of the clip that a window's frames are taken from; twice --max_frames if not given. rvd: frames of a"
        " sequence, 8 if not given; the first two are never learned.",
    )
    block_out_channels: list[int] = _flag([32, 64, 96], "Channels of each level of the UNet, finest first.")
    down_block_types: list[str] | None = _flag(
        None,
        "mcvd: DownBlock2D or AttnDownBlock2D for each level; attention at the coarsest level only, if not given.",
    )
    attention_levels: list[int] | None = _flag(
        None,
        "ramvid, fdm, lgcvd: levels with attention, 0 the finest; the coarsest only, if not given. The middle always has it.",
    )
    num_attention_heads: int | None = _flag(None, "ramvid, fdm, vdm, rvd: heads of attention; 4 if not given.")
    temporal_position: Literal["relative_network", "bias", "rotary", "bias_and_rotary", "none"] | None = _flag(
        None,
        "fdm, vdm: how attention knows which frame is where; as published (relative_network, bias_and_rotary), if not"
        " given.",
    )
    layers_per_block: int = _flag(1, "Residual blocks of a level (rvd: always as published).")
    attention_head_dim: int | None = _flag(
        None,
        "Channels of an attention head. mcvd, lgcvd: one head if not given; rvd: 16; the others: those of the level, divided by"
        " the heads.",
    )
    spatin_channels: int = _flag(128, "mcvd: hidden channels of SPATIN's convolutions.")
    dropout: float = _flag(0.0, "Dropout in the residual blocks.")
    embed_past_kept: bool = _flag(False, "mcvd: tell the network in its time embedding whether the past is there.")
    distill: bool = _flag(
        False,
        "Distil the network of --pretrained_model_name_or_path to one that needs 1 to 4 denoising steps (sampled by"
        " LCMScheduler). With --prediction_type v_prediction also one of epsilon, which by itself is hard to distil.",
    )
    distillation_steps: int = _flag(
        10,
        "distill: steps of the teacher's way from noise to frames, on average half of them in each update. They are the noise levels"
        " that the student knows.",
    )
    patch_size: int = _flag(
        1,
        "mcvd: side of the squares of pixels that go to channels, so that all levels are so much smaller: 2 makes large frames"
        " about four times as cheap.",
    )
    observed_noise: float = _flag(
        0.0,
        "mcvd: noise on given frames, of which the network is told, against drift in long videos: the most, as a share; each clip"
        " draws its own.",
    )
    clip_memory: bool = _flag(
        False,
        "mcvd: give the network LGC-VD's memory of the windows before, trained with it; an update then learns two windows, one"
        " after the other. (lgcvd always has it.)",
    )
    residual: bool | None = _flag(
        None,
        "mcvd, rvd: let a recurrent network predict the frames, and make what it did not; True for rvd, if not given.",
    )
    predictor_channels: list[int] | None = _flag(
        None, "With --residual: channels of that network's levels; those of --block_out_channels if not given."
    )
    residual_scale: float | None = _flag(
        None, "With --residual: what is left is divided by this; 1, as published, if not given."
    )


@dataclass
class DataArguments:
    """What it is trained on; each field is a flag."""

    train_data_dir: str | None = _flag(
        None,
        "File or folder of videos, frame folders, arrays (npy, npz, HDF5), fields (Zarr, NetCDF), tar shards, a Hugging Face"
        " data set or a LeRobotDataset: what lies there decides. Of the original code's HDF5 files, BAIR, Cityscapes"
        " (folders train/ and test/), KTH and UCF-101 are split as published, and their clips chosen as the original does"
        " (UCF-101's 85 columns are cut to --resolution). Without it: moving digits, drawn as they are needed.",
    )
    axes: str | None = _flag(None, "Arrays: what each axis is, letters of N (videos), T, C, H, W, such as THWC.")
    variables: list[str] | None = _flag(None, "Arrays and fields: names of those that become the channels, in order.")
    dataset_name: str | None = _flag(None, "Data set on the Hugging Face Hub, instead of --train_data_dir.")
    dataset_config_name: str | None = _flag(None, "Its configuration, if it has several.")
    dataset_split: str = _flag("train", "Its split that is trained on, and held out from.")
    dataset_revision: str | None = _flag(None, "Its commit, branch or tag.")
    video_column: str | None = _flag(
        None, "Hugging Face and LeRobot data: the column or camera that holds the videos."
    )
    streaming: bool = _flag(False, "Read the Hugging Face data set as it is downloaded, shuffled in a buffer.")
    shuffle_buffer: int = _flag(100, "Videos in that buffer.")
    vectors: list[str] | None = _flag(
        None,
        "What else to read beside each frame, such as actions: arrays or columns of that name, or files clip.NAME.npy"
        " beside clip.mp4. It is in the batch; the network does not use it yet.",
    )
    digits: Literal["sklearn", "mnist-10k", "mnist"] = _flag(
        "sklearn",
        "Handwritten digits that move: scikit-learn's or 10,000 of MNIST's (no download), or all of MNIST (from the Hub).",
    )
    num_digits: int = _flag(1, "Digits in a clip.")
    digit_size: int | None = _flag(
        None, "Height and width of a digit in pixels; half the frame's shorter side if not given."
    )
    max_speed: int | None = _flag(
        None, "Largest speed of a digit in pixels a frame; a 16th of the shorter side if not given."
    )
    num_train_clips: int = _flag(10_000, "Moving digits: clips in an epoch.")
    image_data_dir: str | None = _flag(
        None,
        "vdm: folder of images, of any depth, for the --num_joint_images beside each clip. Without it they are single frames"
        " of the other clips of the batch.",
    )
    validation_fraction: float = _flag(
        0.1, "Share of the videos that is held out, by a hash of their names, unless they are split as published."
    )
    validation_names: list[str] | None = _flag(
        None, "Names of the videos to hold out instead; * stands for anything: 'val/*'."
    )
    validation_list: str | None = _flag(None, "File with such names, one a line.")
    test_fraction: float | None = _flag(None, "Share of the videos that is kept out of training and validation.")
    test_names: list[str] | None = _flag(None, "Names of such videos.")
    test_list: str | None = _flag(None, "File with such names, one a line.")
    split_frames: int | None = _flag(
        None,
        "Cut videos into pieces of so many frames (the last takes what is left), which then count as videos of their own: for a few long ones, so that"
        " some can be held out.",
    )
    frame_stride: int = _flag(1, "Take every n-th frame.")
    clip_step: int | None = _flag(
        None, "An epoch has one clip for each so many starts of a video; one of each video, if not given."
    )
    pad_short_videos: bool = _flag(
        False, "Repeat the last frame of videos that are too short, and do not learn from it; else they are skipped."
    )
    resize: Literal["stretch", "cover", "crop"] = _flag(
        "stretch",
        "How frames get the --resolution: scaled to it, scaled to cover it and cut, or only cut.",
    )
    random_crop: bool = _flag(False, "Cut anywhere instead of in the middle; held-out clips are cut in the middle.")
    random_flip: bool = _flag(False, "Mirror half of the clips left to right.")
    random_vertical_flip: bool = _flag(False, "Mirror half of the clips top to bottom.")
    normalization: Literal["unit", "range", "min_max", "mean_std"] = _flag(
        "unit",
        "How values become about [-1, 1], saved in the pipeline and undone at sampling: images (uint8, or floats in"
        " [0, 1]); a range that --value_low and --value_high state; lowest and highest, or mean and standard deviation of"
        " each channel, measured on the training videos.",
    )
    value_low: list[float] | None = _flag(
        None, "Lowest value, one for all channels or one each; beyond, they are clipped."
    )
    value_high: list[float] | None = _flag(None, "Highest value.")
    normalization_frames: int = _flag(
        10_000,
        "Frames to measure, spread over the training videos; 0: all. Values beyond what they show are clipped.",
    )
    nan_fill: list[float] | None = _flag(
        None, "What missing values (NaN) are replaced with, in the data's units, one for all channels or one each."
    )
    nan_mask_channel: bool = _flag(
        False, "Show the network in one more channel where values are missing, and let it say where they will be."
    )
    strict: bool = _flag(False, "Refuse to train if a single video cannot be used, instead of skipping it.")
    max_bad_share: float = _flag(0.5, "Stop if more than this share of the videos cannot be used, 0 to 1.")
    dataloader_num_workers: int = _flag(0, "Processes that load clips.")


@dataclass
class TrainingArguments:
    """How it is trained; each field is a flag."""

    output_dir: str = _flag(
        "", "Where to save; must not exist, or be empty, unless a run is gone on with. Required, but for --estimate."
    )
    resume_from_checkpoint: str | None = _flag(
        None,
        "Go on from a checkpoint, to the last bit: latest, for the newest in --output_dir that verifies (and to begin if there"
        " is none), or a folder. Settings are those of the checkpoint where no flag says otherwise.",
    )
    checkpointing_steps: int = _flag(
        500, "Save a checkpoint every so many updates, and at the end; 0: only when training is interrupted."
    )
    checkpoints_total_limit: int = _flag(
        2, "Checkpoints to keep: older ones are removed when a new one is on the disk; 0: keep all."
    )
    allow_changed_settings: bool = _flag(
        False, "Go on from a checkpoint though settings, data or the batch have changed: it will be another training."
    )
    estimate: bool = _flag(
        False, "Only measure a few updates and samples, and say what the run would cost; nothing is saved."
    )
    preset: str | None = _flag(None, f"Settings of a published checkpoint: {', '.join(PRESETS)}.")
    seed: int = _flag(0, "Key of all randomness.")

    drop_past: float = _flag(0.5, "mcvd: probability that all past frames of a sample are absent.")
    drop_future: float = _flag(0.5, "mcvd: probability that all future frames of a sample are absent.")
    max_observed: int | None = _flag(
        None, "ramvid: most frames of a window that are given; 4, or all but one, if not given."
    )
    drop_observed: float | None = _flag(None, "ramvid: probability that none is; 0.25 if not given.")
    num_joint_images: int | None = _flag(
        None,
        "vdm: single images beside each clip, from which the network learns, too. If not given, 4; or 0 with"
        " --train_batch_size 1 and no --image_data_dir, where there is none to take.",
    )
    fill_with_other_clips: bool = _flag(
        False,
        "fdm: fill what is left of a window with frames of the next clip of the batch, to be generated from nothing, as in"
        " the original's code.",
    )

    own_predictions: bool | None = _flag(
        None,
        "mcvd, lgcvd: learn two windows in an update, the second given what the network made of the first, noisy as it is,"
        " against the drift of long videos. True for lgcvd, if not given; without, its second window is given true frames.",
    )
    task_shares: list[float] | None = _flag(
        None,
        "lgcvd: shares of prediction, generation, interpolation, and two frames given anywhere; 0.45 0.4 0.05 0.1, as in the"
        " original's code, if not given.",
    )

    prediction_type: Literal["epsilon", "v_prediction", "sample", "flow_prediction", "edm"] = _flag(
        "v_prediction",
        "What the network predicts: the noise (the original's), the velocity, the clean frames; or by flow matching, or with EDM's"
        " preconditioning, which have noise levels of their own.",
    )
    beta_schedule: Literal["linear", "squaredcos_cap_v2", "cosine_logsnr"] | None = _flag(
        None,
        "Noise schedule of the first three: the original's linear one (for epsilon, if not given), cosine (squaredcos_cap_v2, for the other"
        " two), or VDM's cosine with log-SNR from 20 to -20.",
    )
    rescale_betas_zero_snr: bool = _flag(
        False, "Rescale that schedule so that its last timestep is pure noise (2305.08891); not for epsilon."
    )
    num_train_timesteps: int = _flag(1000, "Timesteps of the noise schedule.")
    noise_level_mean: float | None = _flag(
        None,
        "Where noise levels of training are drawn: for edm the mean of the logarithm of the noise level, -1.2 if not given; for"
        " flow_prediction that of the logit of the share of noise, all shares alike if neither this nor the next is given.",
    )
    noise_level_std: float | None = _flag(None, "Standard deviation of the same; edm 1.2, flow_prediction 1.")
    sigma_data: float | None = _flag(None, "edm: standard deviation of the data in [-1, 1], 0.5 if not given.")
    min_snr_gamma: float | None = _flag(
        None,
        "Weigh losses by min(SNR, gamma), counted on the clean frames, so that nearly clean clips count less (2303.09556: 5).",
    )
    loss_type: Literal["l2", "l1"] | None = _flag(
        None, "Squared or absolute error; l1 for lgcvd and rvd, l2 for the others, if not given."
    )
    loss_reduction: Literal["mean", "sum", "window_mean"] = _flag(
        "mean",
        "Over a clip's pixels. MCVD's original adds up, so that clipping its gradient to norm 1 always bites: another"
        " optimiser than the mean, whose value does not depend on the frames' size. window_mean, as FDM's original: the sum"
        " divided by the pixels of all frames, given ones included.",
    )

    train_batch_size: int = _flag(16, "Clips a process and step.")
    gradient_accumulation_steps: int = _flag(1, "Steps whose gradients make one update.")
    max_train_steps: int = _flag(5_000, "Updates.")
    max_train_minutes: float | None = _flag(
        None,
        "Stop and save after so many minutes of training, if the updates are not done by then. How far that is depends on"
        " the machine. Goes with a constant learning rate.",
    )
    learning_rate: float = _flag(1e-3, "Learning rate.")
    lr_scheduler: Literal["constant_with_warmup", "cosine", "linear", "constant"] = _flag(
        "cosine", "Learning rate over the updates."
    )
    lr_warmup_steps: int = _flag(100, "Updates until the learning rate is reached.")
    adam_beta1: float = _flag(0.9, "Adam.")
    adam_beta2: float = _flag(0.999, "Adam.")
    adam_epsilon: float = _flag(1e-8, "Adam.")
    adam_weight_decay: float = _flag(0.0, "AdamW's decoupled weight decay.")
    max_grad_norm: float = _flag(1.0, "Largest norm of the gradient.")
    max_stop_seconds: float = _flag(
        30.0,
        "After a signal the process ends within so many seconds, though a checkpoint be still on its way to the disk.",
    )
    max_skipped_updates: int = _flag(
        20,
        "Updates whose loss or gradient is not finite are skipped; stop after so many in a row.",
    )
    use_ema: bool = _flag(True, 'Keep a moving average of the weights as well, and save it as variant="ema".')
    ema_decay: float = _flag(0.999, "Decay of the average.")
    ema_warmup: bool = _flag(
        True, "Let the decay grow to its value, (1 + n) / (10 + n); else constant from the start."
    )
    mixed_precision: Literal["no", "fp16", "bf16"] | None = _flag(
        None, "Precision of the network's computations; if not given, what `accelerate launch` says."
    )
    gradient_checkpointing: bool = _flag(False, "Trade time for memory.")
    compile: Literal["no", "blocks", "whole"] = _flag(
        "no",
        "Compile the networks with torch.compile: level by level, which is ready sooner, or each as a whole. On a GPU it is worth"
        " the minutes it takes at the start.",
    )

    sampling_scheduler: str | None = _flag(
        None,
        "Noise scheduler of Diffusers that is saved in the pipeline. If not given: that of the pipeline that training goes on from; else"
        " DPMSolverMultistepScheduler, for vdm and for epsilon with cosine betas DDPMScheduler; FlowMatchEulerDiscreteScheduler,"
        " EDMDPMSolverMultistepScheduler, or LCMScheduler for what is distilled.",
    )
    validation_steps: int = _flag(0, "Make videos of held-out clips every so many updates; 0: only at the end.")
    num_validation_videos: int = _flag(4, "Held-out clips to make videos of; 0: none.")
    validation_inference_steps: int | None = _flag(
        None,
        "Denoising steps of a validation video, and of what the pipeline makes if it is not told how many; if not given, what the"
        " scheduler needs: 15; DDIM, DDPM and Euler of betas 25; distilled networks 4.",
    )
    logging_steps: int = _flag(100, "Updates between two lines of the log.")
    report_to: str = _flag(
        "tensorboard",
        "Trackers, separated by commas: none, tensorboard (if it is installed), wandb, trackio, all, ... None of them can stop"
        " a run.",
    )
    tracker_project_name: str = _flag("train_mcvd", "Project in the tracker.")

    push_to_hub: bool = _flag(
        False,
        "Push the finished pipeline with its card to the Hugging Face Hub, in one commit; no checkpoints, logs or settings. The"
        " token is that of `hf auth login`, or HF_TOKEN. Training does not depend on it: what could not be pushed is told.",
    )
    hub_model_id: str | None = _flag(None, "Where to: user/name, or name; the name of --output_dir if not given.")
    hub_private_repo: bool = _flag(False, "Make that repository private, and do not push if it is public.")
    model_license: str | None = _flag(
        None, "Licence of the weights, as the Hub names it (apache-2.0, cc-by-4.0, ...), for the card."
    )
    data_license: str | None = _flag(None, "Licence of the training data, for the card.")


# Settings that only mean something for data of one's own, for moving digits, and for what is not streamed.
FOR_FILES = (
    [
        "axes",
        "variables",
        "dataset_config_name",
        "dataset_split",
        "video_column",
        "streaming",
        "shuffle_buffer",
        "vectors",
    ]
    + ["validation_fraction", "validation_names", "validation_list", "test_fraction", "test_names", "test_list"]
    + ["split_frames", "frame_stride", "clip_step", "pad_short_videos", "resize", "random_crop", "random_flip"]
    + ["random_vertical_flip", "normalization", "value_low", "value_high", "normalization_frames", "nan_fill"]
    + ["nan_mask_channel", "strict", "max_bad_share"]
)
FOR_DIGITS = ["digits", "num_digits", "digit_size", "max_speed", "num_train_clips"]
NOT_FOR_STREAMS = [
    "validation_names",
    "validation_list",
    "test_fraction",
    "test_names",
    "test_list",
    "split_frames",
    "clip_step",
] + ["variables", "normalization_frames"]

# Which videos are held out, and how clips are taken from the others.
OF_THE_SPLIT = [
    "validation_fraction",
    "validation_names",
    "validation_list",
    "test_fraction",
    "test_names",
    "test_list",
]
OF_THE_SPLIT += ["dataset_split", "split_frames", "digits"]
OF_CLIPS = ["axes", "variables", "frame_stride", "resize", "num_digits", "digit_size", "max_speed"]
MOST_TIMESTEPS = 1_000_000
METHODS = ("mcvd", "ramvid", "fdm", "vdm", "lgcvd", "rvd")

# Settings that only mean something for some predictions.
FOR_PREDICTIONS = {
    "beta_schedule": VARIANCE_PRESERVING,
    "rescale_betas_zero_snr": ("v_prediction", "sample"),
    **dict.fromkeys(("noise_level_mean", "noise_level_std"), ("flow_prediction", "edm")),
    "sigma_data": ("edm",),
}

# Settings that only mean something for some methods.
FOR_METHODS = {
    **dict.fromkeys(
        ("conditioning", "num_past_frames", "num_frames", "num_future_frames", "down_block_types", "spatin_channels")
        + ("embed_past_kept", "drop_past", "drop_future", "clip_memory", "observed_noise", "patch_size"),
        ("mcvd",),
    ),
    "max_frames": ("ramvid", "fdm", "vdm", "lgcvd"),
    "num_attention_heads": ("ramvid", "fdm", "vdm", "rvd"),
    "clip_frames": ("fdm", "rvd"),
    "fill_with_other_clips": ("fdm",),
    "attention_levels": ("ramvid", "fdm", "lgcvd"),
    "temporal_position": ("fdm", "vdm"),
    **dict.fromkeys(("max_observed", "drop_observed"), ("ramvid",)),
    **dict.fromkeys(("num_joint_images", "image_data_dir"), ("vdm",)),
    "layers_per_block": ("mcvd", "ramvid", "fdm", "vdm", "lgcvd"),
    "dropout": ("mcvd", "ramvid", "fdm", "vdm"),
    **dict.fromkeys(("residual", "predictor_channels", "residual_scale"), ("mcvd", "rvd")),
    "own_predictions": ("mcvd", "lgcvd"),
    "task_shares": ("lgcvd",),
}

# What is filled in where neither a flag nor a saved pipeline says it: flag -> method -> value.
METHOD_DEFAULTS = {
    "max_frames": {"ramvid": 16, "fdm": 16, "vdm": 16, "lgcvd": 8},
    "clip_frames": {"rvd": 8},
    "num_attention_heads": {"ramvid": 4, "fdm": 4, "vdm": 4, "rvd": 4},
    "temporal_position": {"fdm": "relative_network", "vdm": "bias_and_rotary"},
    "drop_observed": {"ramvid": 0.25},
    "num_joint_images": {"vdm": 4},
    "residual": {"mcvd": False, "rvd": True},
    "own_predictions": {"mcvd": False, "lgcvd": True},
    "task_shares": {"lgcvd": list(LGCVD_TASK_SHARES)},
    "loss_type": {**dict.fromkeys(("mcvd", "ramvid", "fdm", "vdm"), "l2"), "lgcvd": "l1", "rvd": "l1"},
}

# What may be another when a run is gone on with: where it runs, what it shows, how a batch is divided (the product is
# compared by the training, which knows the number of processes). All else must be as it was, or be allowed to change.
MAY_CHANGE = frozenset(
    ["output_dir", "resume_from_checkpoint", "allow_changed_settings", "estimate", "preset", "train_data_dir"]
    + ["image_data_dir"]
    + [
        "checkpointing_steps",
        "checkpoints_total_limit",
        "max_train_minutes",
        "max_skipped_updates",
        "max_stop_seconds",
    ]
    + ["train_batch_size", "gradient_accumulation_steps", "gradient_checkpointing", "dataloader_num_workers"]
    + ["compile"]
    + ["validation_steps", "num_validation_videos", "validation_inference_steps", "sampling_scheduler"]
    + ["logging_steps", "report_to", "tracker_project_name"]
    + ["push_to_hub", "hub_model_id", "hub_private_repo", "model_license", "data_license"]
)

# The settings in a run's folder, and that file while it is being written.
SETTINGS_FILE, SETTINGS_PARTIAL = "training_settings.yaml", ".training_settings.partial"

# What a run does not hand on to the one that goes on with it.
ONLY_FOR_ONE_START = ("output_dir", "resume_from_checkpoint", "allow_changed_settings", "estimate")

# What the settings of a run say of it, and not of a student that is made from it.
OF_A_TEACHER = (*ONLY_FOR_ONE_START, "pretrained_model_name_or_path", "variant", "sampling_scheduler") + (
    "validation_inference_steps",
    "loss_type",
    "loss_reduction",
    "min_snr_gamma",
    "own_predictions",
)

# What a pretrained pipeline brings along: its network's shape, and the noise schedule and target of its training.
FROM_PRETRAINED_UNET = (
    *("conditioning", "in_channels", "num_past_frames", "num_frames", "num_future_frames", "block_out_channels"),
    *("down_block_types", "layers_per_block", "attention_head_dim", "spatin_channels", "dropout", "embed_past_kept"),
    *("observed_noise", "patch_size"),
)
FROM_PRETRAINED_SPACE_TIME = (
    *("in_channels", "max_frames", "block_out_channels", "attention_levels", "num_attention_heads"),
    *("temporal_position", "layers_per_block", "attention_head_dim", "dropout"),
)
FROM_PRETRAINED_LGCVD = ("in_channels", "max_frames", "block_out_channels", "attention_levels", "layers_per_block") + (
    "attention_head_dim",
)
FROM_PRETRAINED_RVD = ("in_channels", "block_out_channels", "num_attention_heads", "attention_head_dim", "residual")
FROM_PRETRAINED = {
    "mcvd": FROM_PRETRAINED_UNET,
    **dict.fromkeys(("ramvid", "fdm", "vdm"), FROM_PRETRAINED_SPACE_TIME),
    "lgcvd": FROM_PRETRAINED_LGCVD,
    "rvd": FROM_PRETRAINED_RVD,
}
FROM_PRETRAINED_SCHEDULER = ("prediction_type", "beta_schedule", "rescale_betas_zero_snr", "sigma_data") + (
    "num_train_timesteps",
)

# What a checkpoint is made with.
MUST_STAY = frozenset(sum(FROM_PRETRAINED.values(), FROM_PRETRAINED_SCHEDULER)) | {
    *("method", "clip_memory", "residual", "predictor_channels", "residual_scale", "distill", "distillation_steps"),
    *("resolution", "use_ema", "seed", "normalization", "value_low", "value_high", "nan_fill", "nan_mask_channel"),
}


@dataclass
class Settings:
    """
    All settings of a run.

    Args:
        model ([`ModelArguments`]): What is trained.
        data ([`DataArguments`]): What on.
        training ([`TrainingArguments`]): How.
        explicit (`frozenset[str]`, *optional*): Names that were given by flag, file or preset.
        checkpoint (`Path`, *optional*): What is gone on from; it verifies.
    """

    model: ModelArguments
    data: DataArguments
    training: TrainingArguments
    explicit: frozenset[str] = frozenset()
    checkpoint: Path | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the frames, in pixels."""
        return (self.model.resolution[0], self.model.resolution[-1])

    @property
    def num_window_frames(self) -> int:
        """Frames of a clip: mcvd's past, block and future, fdm's long clip, rvd's sequence, or a window."""
        if self.model.method != "mcvd":
            return self.model.clip_frames or self.model.max_frames
        return self.model.num_past_frames + self.model.num_frames + self.model.num_future_frames

    @property
    def pretrained(self) -> tuple[str | None, str | None]:
        """The pipeline that the networks are taken from, and its variant; once there is a checkpoint, that."""
        source, variant = self.model.pretrained_model_name_or_path, self.model.variant
        return (source, variant) if source is None or self.checkpoint is None else (str(self.checkpoint), None)

    @property
    def hub_model_id(self) -> str:
        """Where the pipeline is pushed to, if it is."""
        if self.training.hub_model_id is not None:
            return self.training.hub_model_id
        return Path(self.training.output_dir).expanduser().resolve().name

    @property
    def is_own_folder(self) -> bool:
        """Whether the output folder is that of the run that is gone on with, perhaps before its first checkpoint."""
        folder, source = Path(self.training.output_dir), self.training.resume_from_checkpoint
        if source is None or not (folder / SETTINGS_FILE).is_file():
            return False
        if source == "latest" or (self.checkpoint is not None and self.checkpoint.parent == folder):
            return True
        begun = _settings_of_a_run(folder)
        return begun.get("resume_from_checkpoint") == source and not list_checkpoints(folder)

    @property
    def changed(self) -> set[str]:
        """Names that were given, and whose values are not the defaults: a run's own settings file gives all of them."""
        groups = (ModelArguments(), DataArguments(), TrainingArguments())
        defaults = {name: value for group in groups for name, value in asdict(group).items()}
        now = self.as_dict()
        return {name for name in self.explicit if now[name] != defaults[name]}

    def as_dict(self) -> dict:
        """
        All settings under their flags' names.

        Returns:
            `dict`: As a settings file would have them.
        """
        return {**asdict(self.model), **asdict(self.data), **asdict(self.training)}


def parse_args(args: list[str] | None = None) -> Settings:
    """
    Read flags, settings file and preset. Exits with a message on anything unknown or out of range.

    Args:
        args (`list[str]`, *optional*): The command line; that of the process by default.

    Returns:
        [`Settings`]: Checked.
    """
    from transformers import HfArgumentParser  # slow to import

    args = list(sys.argv[1:] if args is None else args)
    groups = (ModelArguments, DataArguments, TrainingArguments)
    description = (
        "Train a masked conditional video diffusion model, and save it as a pipeline. The settings file, if any, comes"
        " first and ends in .yaml."
    )
    usage = "%(prog)s [settings.yaml] --output_dir FOLDER [--flag value ...]    (--help lists the flags)"
    parser = HfArgumentParser(groups, description=description, usage=usage, allow_abbrev=False)
    # The same flags once more, to learn which were given at all.
    given = HfArgumentParser(groups, usage=usage, add_help=False, allow_abbrev=False)
    for action in given._actions:
        action.default = argparse.SUPPRESS
    for each in (parser, given):  # argparse would take -1e-3 for a flag
        each._negative_number_matcher = re.compile(r"^-(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?$")
    try:
        if args and args[0].lower().endswith((".yaml", ".yml")):
            path, args = Path(args[0]), args[1:]
            file, is_of_a_run = _read_settings_file(path), path.name == SETTINGS_FILE
            is_student = getattr(given.parse_known_args(args)[0], "distill", False)
            if is_of_a_run and is_student and not file.get("distill"):
                file = {name: value for name, value in file.items() if name not in OF_A_TEACHER}
            args = _as_flags(file) + args
        known = given.parse_known_args(args)[0]
        name = getattr(known, "preset", None)
        if name is not None:
            args = _as_flags(preset(name)) + args
        saved, checkpoint = _settings_to_go_on_with(known)
        source = getattr(known, "resume_from_checkpoint", None)
        if source not in (None, "latest"):  # the same from wherever it is started again
            args = [*args, "--resume_from_checkpoint", str(Path(source).expanduser().resolve())]
        args = _as_flags({name: value for name, value in saved.items() if name not in ONLY_FOR_ONE_START}) + args
        values = vars(parser.parse_args(args))
        settings = Settings(
            *(group(**{f.name: values[f.name] for f in fields(group)}) for group in groups),
            explicit=frozenset(vars(given.parse_args(args))),
            checkpoint=checkpoint,
        )
        if checkpoint is None:  # which has taken it all over
            _adopt_pretrained(settings)
        _check_method(settings, saved)
        if checkpoint is not None:
            _find_pretrained_again(settings, saved)
        _fill_in_defaults(settings)
        _check_settings(settings)
        _check_unchanged(settings, saved)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    return settings


def _settings_to_go_on_with(flags: argparse.Namespace) -> tuple[dict, Path | None]:
    """
    The settings of the run that is gone on with, and its checkpoint, as far as there are any.

    Raises:
        ValueError: If there is no such checkpoint, it does not verify, or going on would overwrite something.
    """
    source, output_dir = getattr(flags, "resume_from_checkpoint", None), getattr(flags, "output_dir", "")
    if source is None:
        return {}, None
    if not source.strip():
        raise ValueError("--resume_from_checkpoint is empty: pass latest or a folder, or leave it out.")
    if getattr(flags, "estimate", False):
        raise ValueError("--estimate measures a run that begins: leave out --resume_from_checkpoint.")
    if not output_dir.strip():
        return {}, None  # which is refused elsewhere
    output_dir = Path(output_dir).expanduser()
    FolderLock.check(output_dir)  # what is read there must not change meanwhile
    checkpoint, begun = None, {}
    if source == "latest":
        checkpoint = find_checkpoint(output_dir)
        if checkpoint is None:  # it was stopped before its first one, or is yet to begin
            begun = _settings_of_a_run(output_dir)
            source = begun.get("resume_from_checkpoint") or "latest"
            if source == "latest":
                return begun, None
    if checkpoint is None:
        folder = Path(source).expanduser().resolve()
        if not folder.is_dir():
            where = f", which {output_dir / SETTINGS_FILE} names," if begun else ""
            raise ValueError(f"--resume_from_checkpoint {source}{where} is no folder. Pass one, or latest.")
        checkpoint = find_checkpoint(folder) or folder
        try:
            verify_checkpoint(checkpoint)
        except CheckpointError as error:
            raise ValueError(f"--resume_from_checkpoint {source}: {error} Pass another, or latest.") from error
    if checkpoint.parent.resolve() == output_dir.resolve():
        checkpoint = output_dir / checkpoint.name  # one spelling of it
        newer = [path for path in list_checkpoints(output_dir) if update_of(path) > update_of(checkpoint)]
        for path in newer:
            try:
                verify_checkpoint(path)
            except CheckpointError:
                continue
            raise ValueError(
                f"--resume_from_checkpoint {checkpoint}: {path} is newer and would have to be overwritten. Go on from that one,"
                " move it away, or choose another --output_dir."
            )
    saved = begun or read_state(checkpoint)["settings"]
    _check_names(saved, f"{checkpoint}, perhaps of another version of this library,")
    return saved, checkpoint


def _settings_of_a_run(folder: Path) -> dict:
    """What a run was started with; nothing if none was."""
    file = folder / SETTINGS_FILE
    if not file.is_file():
        return {}
    settings = _read_settings_file(file)
    if not {"output_dir", "max_train_steps", "seed"} <= set(settings):
        raise ValueError(f"{file} is incomplete, and there is no checkpoint: move it away to begin anew.")
    return settings


def _check_names(settings: dict, source: str) -> None:
    known = {f.name for group in (ModelArguments, DataArguments, TrainingArguments) for f in fields(group)}
    unknown = sorted(str(name) for name in settings if name not in known)
    if unknown:
        raise ValueError(f"{source} has settings that do not exist: {unknown}.")


def _check_unchanged(settings: Settings, saved: dict) -> None:
    """
    Refuse settings that would make another training of the one that is gone on with.

    Raises:
        ValueError: Naming each of them, before and now, and the flag that allows it.
    """
    training, now, free = settings.training, settings.as_dict(), set(MAY_CHANGE)
    if settings.is_own_folder and (Path(training.output_dir) / "model_index.json").exists():
        more = [name for name in ("max_train_steps", "max_train_minutes") if saved.get(name, now[name]) != now[name]]
        if more:
            raise ValueError(
                f"--output_dir {training.output_dir} holds the pipeline that its run ended with, and nothing is overwritten here."
                f" To go on with another --{more[0]}, choose another folder, and --resume_from_checkpoint"
                f" {settings.checkpoint or training.output_dir}."
            )
    if training.lr_scheduler in ("constant", "constant_with_warmup"):
        free.add("max_train_steps")  # the others fall over all of them
    if settings.model.distill:
        free.add("pretrained_model_name_or_path")  # the teacher is known by its weights
    changed = [name for name, value in saved.items() if name not in free and now.get(name) != value]
    fixed = [name for name in changed if name in MUST_STAY]
    if fixed:
        raise ValueError(
            f"--{fixed[0]} was {saved[fixed[0]]}, is {now.get(fixed[0])}, but {settings.checkpoint or training.output_dir} is made"
            " with it: leave it out, or begin another training."
        )
    if changed and not training.allow_changed_settings:
        lines = ", ".join(f"--{name} (was {saved[name]}, is {now.get(name)})" for name in changed)
        raise ValueError(
            f"--resume_from_checkpoint: this is not the training that {settings.checkpoint or training.output_dir} began:"
            f" {lines}. Leave these flags out to go on as it was, or pass --allow_changed_settings."
        )


def _read_settings_file(path: Path) -> dict:
    """A YAML file of settings, each once and by its flag's name."""

    class Loader(yaml.SafeLoader):
        def construct_mapping(self, node, deep=False):
            names = [key.value for key, _ in node.value]
            if not all(isinstance(name, str) for name in names):
                raise ValueError(f"{path} must hold lines of `name: value`, got a list or mapping as a name.")
            if len(names) > len(set(names)):
                raise ValueError(f"{path} says {sorted({n for n in names if names.count(n) > 1})} more than once.")
            return super().construct_mapping(node, deep)

    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ValueError(f"The settings file {path} does not exist.") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"The settings file {path} is no YAML in UTF-8: {error}") from error
    try:
        content = yaml.load(text, Loader) or {}
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"The settings file {path} is no YAML in UTF-8: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"The settings file {path} must hold lines of `name: value`, got a {type(content).__name__}.")
    _check_names(content, f"The settings file {path}")
    for name, value in content.items():
        if value == [] or any(isinstance(x, (dict, list)) for x in (value if isinstance(value, list) else [value])):
            raise ValueError(f"The settings file {path}: `{name}` must be a value or a list of values, got {value!r}.")
        if name in ("mixed_precision", "report_to") and value is False:
            content[name] = "no" if name == "mixed_precision" else "none"  # what YAML takes a bare `no` for
    return content


def _as_flags(settings: dict) -> list[str]:
    """Settings as they would be typed, so that one parser checks them all. `None` is left to its default."""
    flags = []
    for name, value in settings.items():
        if value is not None:
            values = list(map(str, value if isinstance(value, list) else [value]))
            # One with a leading minus could be taken for a flag.
            flags += [f"--{name}={values[0]}"] if len(values) == 1 else [f"--{name}", *values]
    return flags


def _adopt_pretrained(settings: Settings) -> None:
    """
    Take over what a pretrained pipeline decides, so that the settings say what is really trained.

    Raises:
        ValueError: If there is no such pipeline, it is damaged, or a setting was given that it contradicts.
    """
    if settings.model.pretrained_model_name_or_path is None:
        if settings.model.variant is not None:
            raise ValueError(
                "--variant is for a saved pipeline: pass --pretrained_model_name_or_path, or leave it out."
            )
        return
    source = settings.model.pretrained_model_name_or_path = _pretrained_source(settings)
    try:
        unet_config = MCVDUNet2DModel.load_config(source, subfolder="unet")  # of whatever network it is
        scheduler_config = DDPMScheduler.load_config(source, subfolder="scheduler")
        pipeline_config = MCVDPipeline.load_config(source)
    except OSError as error:
        where = (
            "it is damaged"
            if Path(source).is_dir()
            else "there is no such folder here, nor could the Hub be asked for it"
        )
        raise ValueError(
            f"--pretrained_model_name_or_path {source!r} cannot be read: {where}: {str(error).strip().splitlines()[0]}"
        ) from error
    try:
        _adopt_configs(settings, unet_config, scheduler_config, pipeline_config)
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(
            f"--pretrained_model_name_or_path {source} has a config that is damaged: {error!r}"
        ) from error


def _pretrained_source(settings: Settings) -> str:
    """
    The pipeline that is gone on with: a folder, the same from wherever training is started again, or what may be one on the Hub.

    Raises:
        ValueError: If it is neither.
    """
    name = settings.model.pretrained_model_name_or_path
    flag, folder = f"--pretrained_model_name_or_path {name!r}", Path(name).expanduser()
    if not name.strip():
        raise ValueError(f"{flag} is empty: pass a pipeline, or leave it out.")
    if folder.is_file() and folder.name == "model_index.json":
        raise ValueError(f"{flag} is a file: pass the folder that it is in, {folder.parent}.")
    if any(path.is_file() for path in (folder, *folder.glob("checkpoint*.pt"))):
        raise ValueError(
            f"{flag} is no pipeline folder. A checkpoint of the original becomes one by: mcvd-diffusers convert {name} FOLDER"
        )
    if folder.is_dir():
        if not (folder / "model_index.json").is_file():
            checkpoint = find_checkpoint(folder)
            raise ValueError(
                f"{flag} holds no pipeline: there is no model_index.json in it. "
                + (
                    f"The run is not finished: wait, or pass a copy of {checkpoint}, which the run may delete."
                    if checkpoint is not None
                    else "Pass the folder that training, conversion or save_pretrained wrote."
                )
            )
        return str(folder.absolute())
    try:
        validate_repo_id(name)
        is_id = name.count("/") == 1
    except HFValidationError:
        is_id = False
    if is_id and folder.parent.is_dir():
        raise ValueError(
            f"{flag} is no folder here. (It is not looked for on the Hub, since there is a folder {folder.parent}: if it is there, download"
            " it, and pass that folder.)"
        )
    if not is_id:
        raise ValueError(f"{flag} is no folder here, and no id on the Hub, which would be owner/name.")
    return name


def _find_pretrained_again(settings: Settings, saved: dict) -> None:
    """Of a training that goes on: the teacher, wherever it is now; another pipeline may be gone, since the checkpoint has its weights."""
    name, before = settings.model.pretrained_model_name_or_path, saved.get("pretrained_model_name_or_path")
    if settings.model.distill:
        settings.model.pretrained_model_name_or_path = _pretrained_source(settings)
    elif None not in (name, before) and str(Path(name).expanduser().absolute()) == before:
        settings.model.pretrained_model_name_or_path = before


def _adopt_configs(settings: Settings, unet_config: dict, scheduler_config: dict, pipeline_config: dict) -> None:
    """What the parts of a pretrained pipeline decide."""
    source = settings.model.pretrained_model_name_or_path
    _adopt_method(settings, unet_config)
    _adopt_normalization(settings, pipeline_config.get("normalization"))
    unet_config["in_channels"] -= settings.data.nan_mask_channel
    size = unet_config["sample_size"]
    brought_noise = _brought_noise(unet_config, scheduler_config)
    theirs = pipeline_config["scheduler"][1]
    if settings.model.distill:
        _check_teacher(settings, unet_config, brought_noise, theirs)
    elif theirs in DISTILLED:
        warnings.warn(
            f"{source} was distilled: training it without --distill makes it forget how to be sampled in a few steps.",
            stacklevel=2,
        )
    if settings.model.distill or theirs not in SAMPLERS[brought_noise["prediction_type"]]:
        sampling_scheduler = settings.training.sampling_scheduler
    else:
        sampling_scheduler = (
            settings.training.sampling_scheduler if "sampling_scheduler" in settings.explicit else theirs
        )
    masks = {"mcvd": ("drop_past", "drop_future"), "ramvid": ("drop_observed",)}.get(settings.model.method, ())
    for group, name, theirs in (  # these may be changed
        (settings.model, "resolution", size if isinstance(size, list) else [size]),
        (settings.training, "sampling_scheduler", sampling_scheduler),
        # Those of another sampler say nothing.
        *(
            [(settings.training, "validation_inference_steps", pipeline_config.get("num_inference_steps"))]
            if sampling_scheduler == theirs and not settings.model.distill
            else []
        ),
        *((settings.training, name, unet_config[name]) for name in masks),
    ):
        if name not in settings.explicit:
            setattr(group, name, theirs)
    brought = {
        "observed_noise": 0.0,
        "patch_size": 1,
        **unet_config,
        **_adopt_context_encoder(settings, pipeline_config, unet_config),
    }
    ablations = ("clip_memory", "residual", "predictor_channels", "residual_scale")
    shape = dict.fromkeys([*FROM_PRETRAINED[settings.model.method], *ablations])
    shape = [name for name in shape if settings.model.method in FOR_METHODS.get(name, METHODS)]
    for group, config, names in (  # and these not
        (settings.model, brought, shape),
        (settings.training, brought_noise, FROM_PRETRAINED_SCHEDULER),
    ):
        for name in names:
            ours, theirs = getattr(group, name), config[name]
            if name == "prediction_type" and settings.model.distill and name in settings.explicit:
                continue  # a student may predict another thing than its teacher
            if name in settings.explicit and ours != theirs:
                raise ValueError(
                    f"--{name} is {ours}, but {source} was made with {theirs}. Leave it out to go on with that pipeline,"
                    " or leave out --pretrained_model_name_or_path to train a new one."
                )
            setattr(group, name, theirs)
    _warn_of_other_data(settings)


def _warn_of_other_data(settings: Settings) -> None:
    """On the same videos as the run that a network is from, another split would train on what was held out there."""
    source, data = settings.model.pretrained_model_name_or_path, settings.data
    try:
        theirs = _read_settings_file(Path(source) / SETTINGS_FILE)
    except (ValueError, OSError):  # it is no run of this script, or of another version of it
        return
    places = [
        value and str(Path(value).expanduser().resolve())
        for value in (data.train_data_dir, theirs.get("train_data_dir"))
    ]
    if places[0] != places[1] or data.dataset_name != theirs.get("dataset_name"):
        return
    ours = asdict(data)
    for values, size in ((ours, settings.size), (theirs, theirs.get("resolution") or settings.size)):
        values["digit_size"] = values.get("digit_size") or min(size) // 2
        values["max_speed"] = values.get("max_speed") or max(1, min(size) // 16)
    is_own = data.train_data_dir is not None or data.dataset_name is not None
    names = [name for name in OF_THE_SPLIT + OF_CLIPS if name not in (FOR_DIGITS if is_own else FOR_FILES)]
    changed = [name for name in names if theirs.get(name, ours[name]) != ours[name]]
    if changed:
        shown = ", ".join(f"--{name} (was {theirs[name]}, is {ours[name]})" for name in changed)
        is_split = any(name in OF_THE_SPLIT for name in changed)
        warnings.warn(
            f"the data are those of {source}, but taken otherwise: {shown}."
            + " What was held out there may be learned here." * is_split
            + f" To repeat its settings, put the file first: train_mcvd.py {Path(source) / SETTINGS_FILE} ...",
            stacklevel=2,
        )


def _check_teacher(settings: Settings, unet_config: dict, brought_noise: dict, sampler: str) -> None:
    """
    What is distilled must have noise levels that a `beta_schedule` makes, and clean given frames, and go a way in many steps; and it
    must know the tasks that the student is to learn of it.
    """
    source = settings.model.pretrained_model_name_or_path
    for name in ("drop_past", "drop_future", "drop_observed"):
        is_absent = name in settings.explicit and getattr(settings.training, name)
        if is_absent and not unet_config.get(name, getattr(settings.training, name)):
            raise ValueError(
                f"--{name} {getattr(settings.training, name)} asks of the teacher what it never learned: {source} was trained with"
                f" --{name} 0. Leave it out."
            )
    if sampler in DISTILLED:
        raise ValueError(
            f"--distill needs a teacher that goes from noise to frames in many steps, and {source} was distilled itself: pass the pipeline"
            " that it was made from."
        )
    if brought_noise["prediction_type"] not in VARIANCE_PRESERVING:
        raise ValueError(
            f"--distill is for networks of noise, velocity or frames, got one of {brought_noise['prediction_type']} in {source}: its"
            " schedulers are others than LCMScheduler."
        )
    if unet_config.get("observed_noise"):
        raise ValueError(
            f"--distill does not know noise on given frames, of which the network in {source} is told: distil one that was trained"
            " with --observed_noise 0."
        )


def _brought_noise(unet_config: dict, scheduler_config: dict) -> dict:
    """What the network of a pretrained pipeline predicts, at which noise levels, under the names of the flags."""
    prediction_type = unet_config.get("prediction_type") or scheduler_config["prediction_type"]
    brought = {name: scheduler_config.get(name) for name in FROM_PRETRAINED_SCHEDULER}
    brought |= {
        "prediction_type": prediction_type,
        "rescale_betas_zero_snr": bool(brought["rescale_betas_zero_snr"]),
        "num_train_timesteps": scheduler_config["num_train_timesteps"],
    }
    return brought | {
        name: None for name in ("beta_schedule", "sigma_data") if prediction_type not in FOR_PREDICTIONS[name]
    }


def _adopt_context_encoder(settings: Settings, pipeline_config: dict, unet_config: dict) -> dict:
    """What a pretrained pipeline's context encoder is, under the names of the flags."""
    source, kind = (
        settings.model.pretrained_model_name_or_path,
        (pipeline_config.get("context_encoder") or [None] * 2)[1],
    )
    found = {
        "clip_memory": settings.model.method == "mcvd" and kind == LGCVDContextEncoder.__name__,
        "residual": unet_config.get("residual"),
        "predictor_channels": None,
        "residual_scale": None,
    }
    if found["residual"]:
        encoder = RVDContextEncoder.load_config(source, subfolder="context_encoder")
        found |= {
            "predictor_channels": encoder["predictor_block_out_channels"],
            "residual_scale": encoder["scale"],
        }
    return found


def _adopt_method(settings: Settings, unet_config: dict) -> None:
    """The method whose network a pretrained pipeline has."""
    source, given = settings.model.pretrained_model_name_or_path, settings.model.method
    others = {LGCVDUNet2DModel.__name__: "lgcvd", RVDUNet2DModel.__name__: "rvd"}
    if unet_config.get("_class_name") in others:
        method = others[unet_config["_class_name"]]
    elif unet_config.get("_class_name") != SpaceTimeUNetModel.__name__:
        method = "mcvd"
    elif unet_config["backbone"] == "unet3d":
        method = "vdm"
    else:
        method = "ramvid" if unet_config["convolution"] == "3d" else "fdm"
    if "method" in settings.explicit and given != method:
        raise ValueError(
            f"--method is {given}, but {source} has the network of {method}. Leave it out to go on with that pipeline, or"
            " leave out --pretrained_model_name_or_path to train a new one."
        )
    settings.model.method = method


def _check_method(settings: Settings, saved: dict) -> None:
    """
    Refuse settings that mean nothing for the method.

    Raises:
        ValueError: Naming the setting, and the methods that it is for.
    """
    method, name = settings.model.method, settings.training.preset
    for flag, now in (("method", method), ("distill", settings.model.distill)):
        if saved.get(flag, now) != now:
            raise ValueError(
                f"--{flag} was {saved[flag]}, is {now}, but {settings.checkpoint or settings.training.output_dir} is made with"
                " it: leave it out, or begin another training."
            )
    if name is not None and preset(name).get("method", "mcvd") != method:
        theirs = preset(name).get("method", "mcvd")
        raise ValueError(f"--preset {name} is of --method {theirs}, got --method {method}: leave one of them out.")
    for name, methods in FOR_METHODS.items():
        if name in settings.changed and method not in methods:
            raise ValueError(
                f"--{name} is for --method {' or '.join(methods)}, and means nothing for {method}: leave it out."
            )


def _fill_in_defaults(settings: Settings) -> None:
    """What the method, or the other settings, decide where nothing was given."""
    model, method = settings.model, settings.model.method
    if method == "mcvd" and model.down_block_types is None:
        plain = len(model.block_out_channels) - 1
        model.down_block_types = ["DownBlock2D"] * plain + ["AttnDownBlock2D"]
    if method == "vdm" and settings.training.num_joint_images is None and _has_no_images(settings):
        settings.training.num_joint_images = 0
    for name, values in METHOD_DEFAULTS.items():
        group = model if hasattr(model, name) else settings.training
        if getattr(group, name) is None:
            setattr(group, name, values.get(method))
    training = settings.training
    if training.beta_schedule is None and training.prediction_type in VARIANCE_PRESERVING:
        # Cosine betas end where no signal is left, from which a network of epsilon cannot tell the frames.
        training.beta_schedule = "linear" if training.prediction_type == "epsilon" else "squaredcos_cap_v2"
    if training.sigma_data is None and training.prediction_type == "edm":
        training.sigma_data = 0.5
    if model.residual and model.residual_scale is None:
        model.residual_scale = 1.0
    if method == "ramvid" and settings.training.max_observed is None:
        settings.training.max_observed = max(1, min(4, model.max_frames - 1))
    if method == "fdm" and model.clip_frames is None:
        model.clip_frames = 2 * model.max_frames
    if method in ("ramvid", "fdm", "lgcvd") and model.attention_levels is None:
        model.attention_levels = [len(model.block_out_channels) - 1]


def _has_no_images(settings: Settings) -> bool:
    """Whether nothing could stand beside a clip: neither images, nor frames of other clips of its batch."""
    return settings.data.image_data_dir is None and settings.training.train_batch_size < 2


def _adopt_normalization(settings: Settings, config: dict | None) -> None:
    """The units of a pretrained pipeline, under the names of the flags."""
    normalizer, source = FrameNormalizer.from_config(config), settings.model.pretrained_model_name_or_path
    theirs = {
        "normalization": normalizer.kind,
        "value_low": list(normalizer.low) if normalizer.kind == "range" else None,
        "value_high": list(normalizer.high) if normalizer.kind == "range" else None,
        "nan_fill": None if normalizer.nan_fill is None else list(normalizer.nan_fill),
        "nan_mask_channel": normalizer.has_mask_channel,
    }
    for name, value in theirs.items():
        ours = getattr(settings.data, name)
        if name in settings.explicit and ours != value:
            raise ValueError(f"--{name} is {ours}, but {source} was made with {value}. Leave it out to go on with it.")
        setattr(settings.data, name, value)


def _check_settings(settings: Settings) -> None:
    """
    Refuse settings that could not work, before anything is loaded.

    Raises:
        ValueError: Naming the setting, what was expected and what came.
    """
    model, data, training = settings.model, settings.data, settings.training
    if training.estimate:  # writes nothing, and ends when it has measured
        training.output_dir, training.report_to, training.max_train_minutes = "", "none", None
    elif not training.output_dir.strip():
        raise ValueError("--output_dir is required: the folder to save to.")
    for name in ("hub_model_id", "hub_private_repo"):
        if name in settings.changed and not training.push_to_hub:
            raise ValueError(f"--{name} means nothing without --push_to_hub: pass that, too, or leave it out.")
    if training.model_license is not None and not re.fullmatch(
        r"[A-Za-z0-9][A-Za-z0-9.+-]{0,63}", training.model_license
    ):
        raise ValueError(
            f"--model_license must be an identifier that the Hub knows, such as apache-2.0, got {training.model_license!r}."
        )
    if training.push_to_hub:
        try:
            validate_repo_id(settings.hub_model_id)
        except HFValidationError as error:
            raise ValueError(f"--hub_model_id {settings.hub_model_id!r} is no id on the Hub: {error}") from error
    output_dir = Path(training.output_dir).expanduser()
    if not training.estimate:
        training.output_dir = str(output_dir)
        _check_output_dir(settings, output_dir)
    _check_data_settings(settings, output_dir)
    for group, names in (
        (model, ["in_channels", "num_frames", "layers_per_block", "max_frames", "num_attention_heads"]),
        (data, ["num_digits", "num_train_clips", "frame_stride", "clip_step", "split_frames", "shuffle_buffer"]),
        (
            training,
            ["num_train_timesteps", "train_batch_size", "gradient_accumulation_steps", "max_train_steps"]
            + ["validation_inference_steps", "logging_steps", "max_skipped_updates"],
        ),
    ):
        for name in names:
            if getattr(group, name) is not None and getattr(group, name) < 1:
                raise ValueError(f"--{name} must be at least 1, got {getattr(group, name)}.")
    for group, names in (
        (model, ["num_past_frames", "num_future_frames"]),
        (data, ["dataloader_num_workers", "normalization_frames"]),
        (
            training,
            ["seed", "lr_warmup_steps", "validation_steps", "num_validation_videos", "checkpointing_steps"]
            + ["checkpoints_total_limit"],
        ),
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
    if not 5 <= training.max_stop_seconds <= 86_400:
        raise ValueError(f"--max_stop_seconds must be from 5 seconds to a day, got {training.max_stop_seconds}.")
    for name in ("adam_beta1", "adam_beta2"):
        if not 0 <= getattr(training, name) < 1:
            raise ValueError(f"--{name} must be in [0, 1), got {getattr(training, name)}.")
    if not 0 <= training.adam_weight_decay < math.inf:
        raise ValueError(f"--adam_weight_decay must be a number of at least 0, got {training.adam_weight_decay}.")
    if training.learning_rate > 1e38 or training.seed >= 2**63:
        raise ValueError("--learning_rate must be a float32, at most 1e38, and --seed less than 2^63.")
    for name in ("drop_past", "drop_future", "ema_decay"):
        if not 0 <= getattr(training, name) <= 1:
            raise ValueError(f"--{name} must be in [0, 1], got {getattr(training, name)}.")
    if training.num_train_timesteps > MOST_TIMESTEPS:
        raise ValueError(
            f"--num_train_timesteps must be at most {MOST_TIMESTEPS:,}, got {training.num_train_timesteps:,}."
        )
    _check_objective(settings)
    if training.validation_inference_steps > training.num_train_timesteps:
        raise ValueError(
            f"--validation_inference_steps ({training.validation_inference_steps}) must not exceed"
            f" --num_train_timesteps ({training.num_train_timesteps})."
        )
    _check_method_settings(settings)
    if model.down_block_types is not None and len(model.down_block_types) != len(model.block_out_channels):
        raise ValueError(
            f"--down_block_types ({len(model.down_block_types)} entries) and --block_out_channels"
            f" ({len(model.block_out_channels)} entries) must have one entry for each level."
        )
    if training.report_to == "tensorboard" and "report_to" not in settings.changed:
        training.report_to = "tensorboard" if LoggerType.TENSORBOARD in get_available_trackers() else "none"
    trackers = {} if training.report_to == "none" else set(training.report_to.split(","))
    available = {"all", *(tracker.value for tracker in LoggerType if tracker in get_available_trackers())}
    if set(trackers) - available:
        raise ValueError(
            f"--report_to {training.report_to}: {', '.join(sorted(set(trackers) - available))} is no tracker that is"
            f" installed here. There are: none, {', '.join(sorted(available))}. Others need their package, such as"
            " `pip install wandb`."
        )


def _check_method_settings(settings: Settings) -> None:
    model, data, training = settings.model, settings.data, settings.training
    for group, name, most in (
        (model, "max_frames", 10_000),
        (model, "clip_frames", 100_000),
        (training, "num_joint_images", 10_000),
    ):
        value = getattr(group, name)
        if value is not None and value > most:
            raise ValueError(f"--{name} must be at most {most:,}, got {value}: so many frames are in memory at once.")
    if model.method == "rvd" and model.clip_frames < 3:
        raise ValueError(
            f"--clip_frames must be at least 3 for --method rvd, which is given the first two frames, got {model.clip_frames}."
        )
    if model.method == "lgcvd" and model.max_frames < 3:
        raise ValueError(
            f"--max_frames must be at least 3 for --method lgcvd, which is given two frames of a window, got {model.max_frames}."
        )
    _check_ablations(settings)
    if model.method == "fdm" and model.clip_frames < model.max_frames:
        raise ValueError(
            f"--clip_frames ({model.clip_frames}) must be at least --max_frames ({model.max_frames}): a window's frames are"
            " taken from the clip."
        )
    if model.method == "ramvid" and model.max_frames < 2:
        raise ValueError(
            "--max_frames must be at least 2 for --method ramvid, which is given one frame of a window at least and makes"
            f" another, got {model.max_frames}."
        )
    if training.max_observed is not None and not 1 <= training.max_observed < model.max_frames:
        raise ValueError(
            f"--max_observed must be from 1 to --max_frames - 1 ({model.max_frames - 1}), so that a frame is left to be"
            f" predicted, got {training.max_observed}."
        )
    levels, num_levels = model.attention_levels, len(model.block_out_channels)
    if levels is not None and not all(0 <= level < num_levels for level in levels):
        is_of_preset = training.preset is not None and preset(training.preset).get("attention_levels") == levels
        raise ValueError(
            f"--attention_levels must be from 0, the finest, to {num_levels - 1}, since --block_out_channels has {num_levels}"
            f" entries, got {' '.join(map(str, levels))}"
            + (f", which is --preset {training.preset}'s: pass --attention_levels, too." if is_of_preset else ".")
        )
    if training.drop_observed is not None and not 0 <= training.drop_observed <= 1:
        raise ValueError(f"--drop_observed must be in [0, 1], got {training.drop_observed}.")
    if training.num_joint_images is not None and training.num_joint_images < 0:
        raise ValueError(f"--num_joint_images must not be negative, got {training.num_joint_images}.")
    if training.num_joint_images and _has_no_images(settings):
        raise ValueError(
            f"--num_joint_images {training.num_joint_images} takes single frames of the other clips of a batch, and"
            f" --train_batch_size {training.train_batch_size} has none: pass --image_data_dir, a --train_batch_size of at least"
            " 2, or --num_joint_images 0."
        )
    if data.image_data_dir is not None:
        if not training.num_joint_images:
            raise ValueError("--image_data_dir means nothing with --num_joint_images 0: leave it out.")
        if data.streaming:
            raise ValueError("--image_data_dir does not go with --streaming: download the data set, or leave it out.")
        folder = Path(data.image_data_dir).expanduser()
        if not data.image_data_dir.strip() or not folder.is_dir():
            raise ValueError(f"--image_data_dir {data.image_data_dir} is no folder: name one that holds images.")
        data.image_data_dir, output_dir = str(folder), Path(training.output_dir).resolve()
        if not training.estimate and folder.resolve() in [output_dir, *output_dir.parents]:
            raise ValueError(
                f"--output_dir {training.output_dir} lies inside --image_data_dir {folder}: its pictures would become training"
                " data of the next run. Choose a folder outside."
            )


def _check_objective(settings: Settings) -> None:
    """What the network predicts, and at which noise levels."""
    training = settings.training
    prediction_type = training.prediction_type
    for name, meant in FOR_PREDICTIONS.items():
        value = getattr(training, name)
        if name in settings.changed and value is not None and value is not False and prediction_type not in meant:
            reason = (
                "has a last timestep of pure noise, at which the noise says nothing of the frames"
                if name == "rescale_betas_zero_snr" and prediction_type == "epsilon"
                else f"is for --prediction_type {' or '.join(meant)}"
            )
            preset_name = training.preset
            is_presets = preset_name is not None and preset(preset_name).get(name) == value
            raise ValueError(
                f"--{name} {f'of --preset {preset_name} ' if is_presets else ''}{reason}, got --prediction_type"
                f" {prediction_type}: leave one of them out."
            )
    for name in ("noise_level_std", "sigma_data", "min_snr_gamma"):
        value = getattr(training, name)
        if value is not None and not 0 < value < math.inf:
            raise ValueError(f"--{name} must be a positive number, got {value}.")
    if training.rescale_betas_zero_snr and training.sampling_scheduler in WITHOUT_ZERO_SNR:
        raise ValueError(
            f"--sampling_scheduler {training.sampling_scheduler} does not know zero terminal SNR: leave it out, or"
            " --rescale_betas_zero_snr."
        )
    if training.rescale_betas_zero_snr and training.min_snr_gamma:
        raise ValueError(
            "--min_snr_gamma does not go with --rescale_betas_zero_snr: pure noise would have the weight 0, and never be learned."
            " Choose one."
        )
    model = settings.model
    if not 1 <= model.patch_size <= 64:
        raise ValueError(f"--patch_size must be an integer from 1 (every pixel) to 64, got {model.patch_size}.")
    if not 0 <= model.observed_noise < 1:
        raise ValueError(f"--observed_noise must be a share in [0, 1), got {model.observed_noise}.")
    if model.observed_noise and not model.num_past_frames + model.num_future_frames:
        raise ValueError(
            "--observed_noise is noise on given frames: --num_past_frames or --num_future_frames must be above 0."
        )
    if training.noise_level_mean is not None and not math.isfinite(training.noise_level_mean):
        raise ValueError(f"--noise_level_mean must be a finite number, got {training.noise_level_mean}.")
    if model.distill:
        _check_distillation(settings)
    _choose_sampler(settings)
    if model.distill and training.validation_inference_steps > model.distillation_steps:
        raise ValueError(
            f"--validation_inference_steps ({training.validation_inference_steps}) must not exceed --distillation_steps"
            f" ({model.distillation_steps}): the student is made for 1 to 4."
        )
    if not model.distill and "distillation_steps" in settings.changed:
        raise ValueError("--distillation_steps means nothing without --distill: pass that, too, or leave it out.")


def _known_schedulers(settings: Settings) -> tuple[str, ...]:
    """What the pipeline may be saved with, the default first."""
    return DISTILLED if settings.model.distill else SAMPLERS[settings.training.prediction_type]


def noise_scheduler_of(settings: Settings, **options) -> SchedulerMixin:
    """
    The noise of a training; that of a saved pipeline, if it goes on with one.

    Args:
        settings ([`Settings`]): Of the training.
        options: More settings of [`DDPMScheduler`], where noise comes from betas.

    Returns:
        [`SchedulerMixin`]
    """
    training, (source, _) = settings.training, settings.pretrained
    if source is None:
        names = ("prediction_type", "num_train_timesteps", "beta_schedule", "rescale_betas_zero_snr", "sigma_data")
        return make_noise_scheduler(**{name: getattr(training, name) for name in names}, **options)
    kinds = {"flow_prediction": FlowMatchEulerDiscreteScheduler, "edm": EDMEulerScheduler}
    if training.prediction_type in kinds:
        return kinds[training.prediction_type].from_pretrained(source, subfolder="scheduler")
    options["prediction_type"] = training.prediction_type  # a student's may be another one than its teacher's
    return DDPMScheduler.from_pretrained(source, subfolder="scheduler", **options)


def _choose_sampler(settings: Settings) -> None:
    """What the pipeline is saved with, and in how many steps it is sampled, if nothing is said."""
    model, training = settings.model, settings.training
    noise_scheduler, known = noise_scheduler_of(settings), _known_schedulers(settings)
    if training.sampling_scheduler is None:
        ours = default_sampler(noise_scheduler, resamples=model.method == "vdm")
        training.sampling_scheduler = known[0] if model.distill else ours
    if training.sampling_scheduler not in known:
        raise ValueError(
            f"--sampling_scheduler must be one of {', '.join(known)}"
            f" {'with --distill' if model.distill else f'for --prediction_type {training.prediction_type}'}, got"
            f" {training.sampling_scheduler}."
        )
    if known == FROM_BETAS and starts_blind(noise_scheduler) and training.sampling_scheduler not in CLIPPING:
        raise ValueError(
            f"--sampling_scheduler {training.sampling_scheduler} cannot keep frames within their range in each step, as it must be where a"
            " network predicts epsilon and noise leaves no signal (any --beta_schedule but linear, and more than 1000 timesteps): pass"
            f" --sampling_scheduler {' or '.join(CLIPPING)}."
        )
    if training.validation_inference_steps is None:
        most = model.distillation_steps if model.distill else training.num_train_timesteps
        training.validation_inference_steps = max(1, num_steps_of(training.sampling_scheduler, most))


def _check_distillation(settings: Settings) -> None:
    """What a student can learn of its teacher."""
    model, training = settings.model, settings.training
    if model.pretrained_model_name_or_path is None:
        raise ValueError("--distill needs a teacher: pass --pretrained_model_name_or_path.")
    if model.method in ("lgcvd", "rvd") or model.clip_memory or model.residual:
        raise ValueError("--distill is for networks without a context encoder, which would have to be distilled, too.")
    if training.prediction_type not in VARIANCE_PRESERVING:
        raise ValueError(
            f"--distill is for networks of noise, velocity or frames, got one of {training.prediction_type}: its schedulers are"
            " others than LCMScheduler."
        )
    of_losses = {"own_predictions": False, "min_snr_gamma": None, "loss_type": "l2", "loss_reduction": "mean"}
    for name, usual in of_losses.items():
        value = getattr(training, name)
        if value not in (usual, None):
            is_of_preset = training.preset is not None and preset(training.preset).get(name) == value
            way_out = f"it is --preset {training.preset}'s: pass --{name} {usual}" if is_of_preset else "leave it out"
            raise ValueError(f"--{name} does not go with --distill, which has a loss of its own: {way_out}.")
    if training.prediction_type == "epsilon" and starts_blind(noise_scheduler_of(settings)):
        raise ValueError(
            "--prediction_type epsilon does not go with --distill where the teacher's noise leaves no signal (any --beta_schedule but linear,"
            " zero terminal SNR, more than 1000 timesteps): there a student's smallest error would be a large one in the frames. Pass"
            " --prediction_type v_prediction."
        )
    num_steps, num_timesteps = model.distillation_steps, training.num_train_timesteps
    known = [n for n in range(2, num_timesteps // 2 + 1) if not num_timesteps % n]
    if num_steps not in known:
        raise ValueError(
            f"--distillation_steps must be at least 2, divide the {num_timesteps} timesteps of the noise and be fewer than they, got"
            f" {num_steps}: " + (f"such as {', '.join(map(str, known[:8]))}." if known else "there is no such number.")
        )


def _check_ablations(settings: Settings) -> None:
    """Memory, residuals, and training on own predictions."""
    model, training = settings.model, settings.training
    if model.clip_memory and model.residual:
        raise ValueError("--clip_memory and --residual both bring a context encoder, and there is one: choose.")
    if model.clip_memory and not model.num_past_frames:
        raise ValueError("--clip_memory is of frames before a block: --num_past_frames must be at least 1.")
    if model.method == "mcvd" and model.residual and not model.num_past_frames:
        raise ValueError("--residual predicts from past frames: --num_past_frames must be at least 1.")
    if model.method == "mcvd" and training.own_predictions and not model.num_past_frames:
        raise ValueError("--own_predictions become the past of a second window: --num_past_frames must be at least 1.")
    if not model.residual:
        for name in ("predictor_channels", "residual_scale"):
            if name in settings.changed:
                raise ValueError(f"--{name} means nothing without --residual: pass that, too, or leave it out.")
    if model.residual_scale is not None and not 0 < model.residual_scale < math.inf:
        raise ValueError(f"--residual_scale must be a positive number, got {model.residual_scale}.")
    if training.own_predictions and training.prediction_type == "epsilon":
        raise ValueError(
            "--own_predictions learn from what the network takes the frames for in one step, which for --prediction_type epsilon"
            " is noise made larger: choose v_prediction or sample, or leave it out (lgcvd: --own_predictions False)."
        )
    shares = training.task_shares
    if shares is not None and (len(shares) != 4 or min(shares) < 0 or not math.isclose(sum(shares), 1, abs_tol=1e-6)):
        raise ValueError(f"--task_shares must be four probabilities whose sum is 1, got {' '.join(map(str, shares))}.")


def _check_output_dir(settings: Settings, output_dir: Path) -> None:
    if output_dir.exists() and not output_dir.is_dir():
        raise ValueError(f"--output_dir {output_dir} is a file: choose another name.")
    for folder in (output_dir.resolve(), *output_dir.resolve().parents):
        if (folder / MANIFEST).is_file():
            raise ValueError(
                f"--output_dir {output_dir} lies in the checkpoint {folder}, which may be removed: choose another."
            )
    if settings.is_own_folder:
        return
    if output_dir.exists() and any(path.name not in (LOCK_NAME, SETTINGS_PARTIAL) for path in output_dir.iterdir()):
        has_run = (output_dir / SETTINGS_FILE).is_file() and not (output_dir / "model_index.json").exists()
        raise ValueError(
            f"--output_dir {output_dir} exists and is not empty. Nothing is overwritten here: choose another folder, or"
            " move that one away."
            + (" To go on with the run in it, pass --resume_from_checkpoint latest." if has_run else "")
        )
    blocked = next((parent for parent in output_dir.parents if parent.exists()), None)
    if blocked is not None and not blocked.is_dir():
        raise ValueError(f"--output_dir {output_dir} cannot be made: {blocked} is a file.")
    if blocked is not None and not os.access(output_dir if output_dir.exists() else blocked, os.W_OK):
        raise ValueError(f"--output_dir {output_dir} cannot be made: you may not write there.")


def _check_data_settings(settings: Settings, output_dir: Path) -> None:
    model, data, training = settings.model, settings.data, settings.training
    for name, least in (("digit_size", 1), ("max_speed", 0)):
        value = getattr(data, name)
        if value is not None and value < least:
            raise ValueError(f"--{name} must be at least {least}, got {value}.")
    is_digits = data.train_data_dir is None and data.dataset_name is None
    if data.train_data_dir is not None and data.dataset_name is not None:
        raise ValueError("--train_data_dir and --dataset_name both say what to train on: pass one of them.")
    if is_digits:
        # Nothing but moving digits is drawn here, so a flag for files would be ignored.
        for name in FOR_FILES:
            if name in settings.changed and not (name == "random_flip" and training.preset):
                raise ValueError(f"--{name} is for your own data: pass --train_data_dir, or leave it out.")
        if data.normalization != "unit" or data.nan_fill is not None:
            raise ValueError(
                f"--pretrained_model_name_or_path {model.pretrained_model_name_or_path} was trained on data in other units than"
                " moving digits have: pass --train_data_dir."
            )
        if training.preset and not training.preset.startswith("smmnist"):
            raise ValueError(f"--preset {training.preset} is for your copy of its data: pass --train_data_dir.")
        if model.in_channels not in (None, 1):
            raise ValueError(
                f"--in_channels is {model.in_channels}, but moving digits have 1. For own videos pass --train_data_dir."
            )
        model.in_channels, model.resolution = 1, model.resolution or [32 if model.method == "mcvd" else 16]
    if model.resolution is not None and (len(model.resolution) not in (1, 2) or min(model.resolution) < 1):
        raise ValueError(f"--resolution must be one or two positive numbers, got {model.resolution}.")
    if model.resolution is not None:
        model.resolution = [model.resolution[0], model.resolution[-1]]
    if data.train_data_dir is not None:
        if not data.train_data_dir.strip():
            raise ValueError("--train_data_dir is empty: name a folder, or leave it out for moving digits.")
        data_dir = Path(data.train_data_dir).expanduser()
        data.train_data_dir = str(data_dir)
        if not data_dir.exists():
            raise ValueError(f"--train_data_dir {data_dir} does not exist.")
        inside = [output_dir.resolve(), *output_dir.resolve().parents]
        if not training.estimate and data_dir.resolve() in inside:
            raise ValueError(
                f"--output_dir {output_dir} lies inside --train_data_dir {data_dir}: its pictures would become training"
                " data of the next run. Choose a folder outside."
            )
    from_preset = set() if training.preset is None else set(preset(training.preset))
    given = settings.changed - from_preset
    for names, is_useless, reason in (
        (FOR_DIGITS, not is_digits, "is for moving digits, and your data have none"),
        (NOT_FOR_STREAMS, data.streaming, "means nothing with --streaming, which meets each video once, as it comes"),
        (["shuffle_buffer"], not data.streaming, "means nothing without --streaming"),
        (["resize"], model.resolution is None, "means nothing without --resolution"),
        (
            ["normalization_frames"],
            data.normalization in ("unit", "range"),
            "is for what is measured: min_max, mean_std",
        ),
    ):
        useless = sorted(set(names) & given) if is_useless else []
        if useless:
            raise ValueError(f"--{useless[0]} {reason}: leave it out.")
    for name in ("dataset_config_name", "dataset_revision", "streaming"):
        if data.dataset_name is None and name in settings.changed:
            raise ValueError(f"--{name} is for a data set of the Hub: pass --dataset_name.")
    if data.random_crop and (data.resize == "stretch" or model.resolution is None):
        raise ValueError("--random_crop must go with --resolution and --resize cover or crop: nothing is cut without.")
    if not 0 < data.validation_fraction < 1:
        raise ValueError(f"--validation_fraction must be between 0 and 1, got {data.validation_fraction}.")
    if data.test_fraction is not None and not 0 < data.test_fraction < 1:
        raise ValueError(f"--test_fraction must be between 0 and 1, got {data.test_fraction}.")
    if not 0 <= data.max_bad_share <= 1:
        raise ValueError(f"--max_bad_share must be in [0, 1], got {data.max_bad_share}.")
    for side in ("validation", "test"):
        ways = [f"{side}_fraction", f"{side}_names", f"{side}_list"]
        given = [f"--{name}" for name in ways if name in settings.changed]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} both say which videos to hold out: pass one of them.")
    if data.normalization == "range" and (data.value_low is None or data.value_high is None):
        raise ValueError("--normalization range must go with --value_low and --value_high.")
    if data.normalization != "range" and {"value_low", "value_high"} & settings.changed:
        raise ValueError(
            f"--value_low and --value_high mean nothing with --normalization {data.normalization}: use range."
        )
    is_measured = data.normalization in ("min_max", "mean_std") and model.pretrained_model_name_or_path is None
    if is_measured and data.streaming:
        raise ValueError(
            f"--normalization {data.normalization} must be measured before training, which --streaming cannot: use range."
        )
    if data.normalization == "range":
        try:
            stated_normalizer(settings)
        except ValueError as error:
            raise ValueError(f"--value_low, --value_high and --nan_fill make no range: {error}") from error
    elif data.nan_mask_channel and data.nan_fill is None:
        raise ValueError("--nan_mask_channel must go with --nan_fill, what missing values are replaced with.")


def stated_normalizer(settings: Settings) -> FrameNormalizer:
    """
    The units that the settings state.

    Args:
        settings ([`Settings`]): With `normalization` `"unit"` or `"range"`.

    Returns:
        [`FrameNormalizer`]: The map.

    Raises:
        `ValueError`: If the numbers make none.
    """
    data = settings.data
    missing = {"nan_fill": data.nan_fill, "has_mask_channel": data.nan_mask_channel}
    if data.normalization == "unit":
        return FrameNormalizer(**missing)
    return FrameNormalizer.from_range(data.value_low, data.value_high, **missing)
