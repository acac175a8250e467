# Copyright 2026 The mcvd-diffusers authors. Licensed under the Apache License, Version 2.0.
r"""The networks of LGC-VD: a 2D UNet that denoises a clip, and an encoder that remembers all clips before it.

Source: Yang et al., "Video Diffusion Models with Local-Global Context Guidance", IJCAI 2023
(https://huggingface.co/papers/2306.02562). The residual blocks are those of DDPM++ in Song et al., "Score-Based Generative
Modeling through SDEs" (2011.13456).

Local context is a few frames that stand beside the noisy ones on the channels, each with a plane that says where it belongs.
Global context is a feature map, made by the way down of a UNet of the same form, that cross-attention reads in the middle.

Letters in shape comments: `B` videos, `T = n + F` frames of a window (`n` of context, `F` of the clip), `C` channels of a
frame, `H, W` its height and width, `h, w` the height and width at some level of the UNet, `D` width of the embedding or of
the memory.
"""

import inspect
import math
from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.attention import AttentionMixin, AttentionModuleMixin
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.embeddings import TimestepEmbedding
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils import BaseOutput

from .context import ContextOutput


# The values of `mcvd_diffusers.FrameRole`, repeated because networks import nothing else of the package.
ABSENT, OBSERVED = 0, 1

SQRT2 = 2**0.5

# DDPM++ begins the last layer of every residual branch at nearly zero, and queries, keys and values with a variance scale of
# 0.1. Not zero itself: then nothing before that layer would learn from the first update.
GAIN_OUT = 1e-5
GAIN_QKV = 0.1**0.5

# What a network may have been trained to predict, as `mcvd_diffusers.objectives` defines it.
PREDICTION_TYPES = ("epsilon", "v_prediction", "sample", "flow_prediction", "edm")

MOST_CHANNELS = 65_536
MOST_PIXELS = 65_536


@dataclass
class LGCVDUNet2DOutput(BaseOutput):
    """
    The output of [`LGCVDUNet2DModel`].

    Args:
        sample (`torch.Tensor` of shape `(B, T, C, H, W)`):
            The prediction (noise, velocity or clean frames, as the noise scheduler's `prediction_type` says) at all frames
            of the clip; zero at the context frames before it.
    """

    sample: torch.Tensor


class LGCVDUNet2DModel(ModelMixin, AttentionMixin, ConfigMixin):
    r"""
    A 2D UNet that denoises a clip of consecutive frames, given a few of them and a memory of all clips before.

    A window holds `T = num_context_frames + max_frames` frames: first those of the local context, then the clip. A context
    frame is a clean copy of a frame of the clip, any one; the clip is denoised whole, that frame included.

    Height and width may differ from `sample_size` and from one another. They may be any: frames are padded inside the
    network to a multiple of `2 ** (levels - 1)`, by repeating their last row and column, and the output is cut.

    Args:
        sample_size (`int` or `tuple[int, int]`, *optional*, defaults to `64`):
            Height and width, in pixels, of the frames the network was made for. A pipeline generates this size when nothing
            else tells it; the network itself does not read it.
        in_channels (`int`, *optional*, defaults to `3`): Channels of *one* frame, in and out.
        num_context_frames (`int`, *optional*, defaults to `2`): Frames of local context, 0 or more.
        max_frames (`int`, *optional*, defaults to `8`): Frames of a clip, 1 or more. The network takes exactly so many.
        block_out_channels (`tuple[int]`, *optional*, defaults to `(128, 256, 384, 512)`):
            Channels of each level, finest first, 4 or more each. On the way up a level ends with those of the next finer one.
        layers_per_block (`int`, *optional*, defaults to `2`): Residual blocks of a level on the way down; one more up.
        attention_levels (`tuple[int]`, *optional*, defaults to `(2,)`):
            Levels with self-attention, 0 the finest. The middle always has it.
        up_attention_levels (`tuple[int]`, *optional*):
            Levels with self-attention on the way up; `None`: the same. The original's code counts them from the wrong end
            there, and so converted checkpoints have others.
        attention_head_dim (`int`, *optional*, defaults to `128`):
            Channels of one attention head. Where there are fewer channels there is one head; elsewhere it must divide them.
            `None` is one head everywhere.
        context_channels (`int`, *optional*):
            Channels of the memory; `None`: those of the coarsest level. Others are brought to that number by a convolution
            of one pixel.
        num_train_timesteps (`int`, *optional*, defaults to `1000`): Number of timesteps of the noise schedule.
        prediction_type (`str`, *optional*):
            What the network was trained to predict: `"epsilon"`, `"v_prediction"`, `"sample"`, `"flow_prediction"` or
            `"edm"`. With `None` the pipeline trusts its scheduler, which must then be one with a `beta_schedule`. A statement about the weights, as are the following.
        drop_observed (`float`, *optional*, defaults to `0.4`):
            Probability with which no frame of a window was OBSERVED in training, the second of `task_shares`. At 0 the network
            cannot generate from nothing.
        task_shares (`tuple[float]`, *optional*, defaults to `(0.45, 0.4, 0.05, 0.1)`):
            Probabilities with which, in training, the first two frames were given (prediction), none (generation), the first and
            the last (interpolation), or any two.
        has_frame_gaps (`bool`, *optional*, defaults to `False`):
            Whether the frames of a clip had gaps between them in training. They are stacked on channels, so it must be
            `False`.
        original_quirks (`bool`, *optional*, defaults to `False`):
            For converted checkpoints: the number of groups of a residual block's second normalisation divides the channels
            before its first convolution, too, as in the original's code. With the published widths it is the same.

    Raises:
        ValueError: If an argument is outside what is stated above.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = [
        "LGCVDResnetBlock2D",
        "LGCVDAttention",
        "LGCVDDownBlock2D",
        "LGCVDMidBlock2D",
        "LGCVDUpBlock2D",
    ]
    _repeated_blocks = ["LGCVDDownBlock2D", "LGCVDMidBlock2D", "LGCVDUpBlock2D"]
    _skip_layerwise_casting_patterns = ["norm", "time_embedding", "time_emb_proj"]

    @register_to_config
    def __init__(
        self,
        sample_size: int | tuple[int, int] = 64,
        in_channels: int = 3,
        num_context_frames: int = 2,
        max_frames: int = 8,
        block_out_channels: tuple[int, ...] = (128, 256, 384, 512),
        layers_per_block: int = 2,
        attention_levels: tuple[int, ...] = (2,),
        up_attention_levels: tuple[int, ...] | None = None,
        attention_head_dim: int | None = 128,
        context_channels: int | None = None,
        num_train_timesteps: int = 1000,
        prediction_type: str | None = None,
        drop_observed: float = 0.4,
        task_shares: tuple[float, ...] = (0.45, 0.4, 0.05, 0.1),
        has_frame_gaps: bool = False,
        original_quirks: bool = False,
    ) -> None:
        super().__init__()
        _check_config(self.config)
        width, levels = block_out_channels[0], len(block_out_channels)
        up_attention_levels = attention_levels if up_attention_levels is None else up_attention_levels

        self.time_embedding = TimestepEmbedding(width, 4 * width, act_fn="gelu")
        # Of a context frame: its channels, and the plane of its position.
        num_in = num_context_frames * (in_channels + 1) + max_frames * in_channels
        self.conv_in = nn.Conv2d(num_in, width, 3, padding=1)
        block_args = {
            "num_layers": layers_per_block,
            "head_dim": attention_head_dim,
            "embedding_dim": 4 * width,
            "has_quirk": original_quirks,
        }

        self.down_blocks, channels = _down_blocks(block_out_channels, attention_levels, **block_args)
        self.mid_block = LGCVDMidBlock2D(
            channels,
            head_dim=attention_head_dim,
            embedding_dim=4 * width,
            has_quirk=original_quirks,
            add_cross_attention=True,
        )
        self.conv_context = None
        if context_channels not in (None, channels):
            self.conv_context = nn.Conv2d(context_channels, channels, 1)

        self.up_blocks = nn.ModuleList()
        for level in reversed(range(levels)):
            block = LGCVDUpBlock2D(
                2 * block_out_channels[level],  # what comes from below, and the level's one skip
                block_out_channels[max(level - 1, 0)],
                add_attention=level in up_attention_levels,
                add_upsample=level > 0,
                **block_args,
            )
            self.up_blocks.append(block)
        self.conv_out = nn.Conv2d(width, max_frames * in_channels, 3, padding=1)

        self.gradient_checkpointing = False
        _init_weights(self)

    @property
    def context_widths(self) -> tuple[int, ...]:
        """Channels of the memory, of which there is one map."""
        return (self.config.context_channels or self.config.block_out_channels[-1],)

    @property
    def num_window_frames(self) -> int:
        """`T`, the number of frames of a window: local context and clip."""
        return self.config.num_context_frames + self.config.max_frames

    @property
    def size_multiple(self) -> int:
        """Frames whose height or width is no multiple of this are padded inside the network, and its output is cut."""
        return 2 ** (len(self.config.block_out_channels) - 1)

    def compile_repeated_blocks(self, *args, **kwargs) -> None:
        """
        Compile the levels one by one; the arguments are those of [`~ModelMixin.compile_repeated_blocks`].

        Levels are of one class and of different widths: where torch.compile can, it is told to keep them apart
        (`isolate_recompiles`).
        """
        super().compile_repeated_blocks(*args, **_isolated(kwargs))

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | float | int,
        roles: torch.Tensor,
        frame_indices: torch.Tensor | None = None,
        segment_ids: torch.Tensor | None = None,
        context: tuple[torch.Tensor, ...] | None = None,
        return_dict: bool = True,
    ) -> LGCVDUNet2DOutput | tuple[torch.Tensor]:
        """
        Predict the noise (or velocity, or clean frames) of a clip.

        Args:
            sample (`torch.Tensor` of shape `(B, T, C, H, W)`):
                The window: `num_context_frames` clean frames in `[-1, 1]`, then the `max_frames` noisy frames of the clip in
                time order. Whatever stands at an ABSENT frame, NaN included, does not matter: the network gets -1 for one of
                the context, and 0 for one of the clip.
            timestep (`torch.Tensor`, `float` or `int`):
                Noise level in Diffusers' convention, `0` (clean) to `num_train_timesteps - 1`, as the scheduler tells it (for
                flow matching up to `num_train_timesteps`, for EDM a quarter of the noise level's logarithm): a number, or a
                tensor of shape `()`, `(1,)` or `(B,)`.
            roles (`torch.Tensor` of shape `(B, T)`):
                [`FrameRole`] of each frame: 0 ABSENT, 1 OBSERVED, 2 LATENT. Context frames are OBSERVED or ABSENT, and count
                as ABSENT if LATENT; those of the clip are LATENT (or ABSENT).
            frame_indices (`torch.Tensor` of shape `(B, T)`, *optional*):
                Positions in the video. Of a context frame it is read how far it is from the first frame of the clip: 0 to
                `max_frames - 1`. That is not checked, since the device would have to be waited for; the network was trained on
                no other distance. `None`: context frames are the first ones of the clip, in order.
            segment_ids (`torch.Tensor` of shape `(B, T)`, *optional*):
                Must be `None`: frames that are stacked on channels cannot be kept apart.
            context (`tuple[torch.Tensor]`):
                The memory: one map of shape `(B, D, h, w)`, or of `(1, D, h, w)` for all videos. `features` of what
                [`LGCVDContextEncoder`] returns.
            return_dict (`bool`, *optional*, defaults to `True`): Whether to return an [`LGCVDUNet2DOutput`].

        Returns:
            [`LGCVDUNet2DOutput`] or `tuple`: The prediction of shape `(B, T, C, H, W)`, zero at the context frames.

        Raises:
            ValueError: If shapes do not fit one another, `context` is missing, or `segment_ids` is given.
        """
        self._check_inputs(sample, timestep, roles, frame_indices, segment_ids, context)
        batch_size, _, _, height, width = sample.shape
        hidden_states = _pad(self._stack(sample, roles, frame_indices), self.size_multiple)

        # On the sample's device, not on that of the weights, who may be elsewhere until their layer's turn comes.
        if not torch.is_tensor(timestep):
            timestep = torch.tensor([timestep], dtype=torch.float32, device=sample.device)
        timestep = timestep.to(sample.device).reshape(-1).expand(batch_size)
        waves = _sinusoids(timestep, self.config.block_out_channels[0]).to(sample.dtype)
        emb = F.silu(self.time_embedding(waves))  # (B, D)
        memory = context[0].expand(batch_size, -1, -1, -1)
        if self.conv_context is not None:
            memory = self.conv_context(memory)

        hidden_states = self.conv_in(hidden_states)  # (B, width, H, W)
        skips = []
        for block in self.down_blocks:
            hidden_states, skip = _run(self, block, hidden_states, emb)
            skips.append(skip)
        hidden_states = _run(self, self.mid_block, hidden_states, emb, memory)
        for block in self.up_blocks:
            hidden_states = _run(self, block, hidden_states, emb, skips.pop())
        hidden_states = self.conv_out(F.silu(hidden_states))[..., :height, :width]  # (B, F*C, H, W)

        hidden_states = hidden_states.unflatten(1, (self.config.max_frames, -1))
        output = F.pad(hidden_states, (0, 0, 0, 0, 0, 0, self.config.num_context_frames, 0))  # (B, T, C, H, W)
        if not return_dict:
            return (output,)
        return LGCVDUNet2DOutput(sample=output)

    def _stack(self, sample: torch.Tensor, roles: torch.Tensor, frame_indices: torch.Tensor | None) -> torch.Tensor:
        """The window on channels: each context frame with the plane of its position, then the clip."""
        num_context, num_frames = self.config.num_context_frames, self.config.max_frames
        batch_size, _, _, height, width = sample.shape
        roles = roles.to(sample.device)
        if frame_indices is None:
            places = torch.arange(num_context, device=sample.device).expand(batch_size, -1)
        else:
            frame_indices = frame_indices.to(sample.device)
            places = frame_indices[:, :num_context] - frame_indices[:, num_context : num_context + 1]

        # A frame that is not there is black and stands just before the clip, which is -1 for both.
        is_observed = roles[:, :num_context] == OBSERVED
        planes = 2 * (torch.where(is_observed, places, -1).float() + 1) / (num_frames + 1) - 1
        planes = planes.to(sample.dtype)[:, :, None, None, None].expand(-1, -1, 1, height, width)
        given = torch.where(is_observed[:, :, None, None, None], sample[:, :num_context], -1)
        is_present = (roles[:, num_context:] != ABSENT)[:, :, None, None, None]
        clip = torch.where(is_present, sample[:, num_context:], 0)
        return torch.cat([torch.cat([given, planes], dim=2).flatten(1, 2), clip.flatten(1, 2)], dim=1)

    def _check_inputs(self, sample, timestep, roles, frame_indices, segment_ids, context) -> None:
        if sample.ndim != 5 or not len(sample):
            raise ValueError(
                f"`sample` must have shape (B, T, C, H, W) with a video at least, got {tuple(sample.shape)}."
            )
        if sample.shape[1] != self.num_window_frames:
            raise ValueError(
                f"`sample` must hold {self.num_window_frames} frames ({self.config.num_context_frames} of local context,"
                f" {self.config.max_frames} of the clip), got {sample.shape[1]}. Frames that are not there keep their place,"
                " with the role ABSENT."
            )
        if sample.shape[2] != self.config.in_channels:
            raise ValueError(f"`sample` must have {self.config.in_channels} channels a frame, got {sample.shape[2]}.")
        if torch.is_tensor(timestep) and tuple(timestep.shape) not in ((), (1,), sample.shape[:1]):
            raise ValueError(
                f"`timestep` must be a number or have shape (), (1,) or ({sample.shape[0]},), got {tuple(timestep.shape)}."
            )
        for name, value in (("roles", roles), ("frame_indices", frame_indices)):
            if value is None and name != "roles":
                continue
            if value.is_floating_point() or value.dtype == torch.bool:
                raise ValueError(f"`{name}` must be integers, got {value.dtype}.")
            if value.shape != sample.shape[:2]:
                raise ValueError(f"`{name}` must have shape {tuple(sample.shape[:2])}, got {tuple(value.shape)}.")
        if segment_ids is not None:
            raise ValueError(
                "`segment_ids` must be None for LGCVDUNet2DModel: its frames are stacked on channels, so it cannot keep"
                " segments apart. Pass one video per batch item."
            )
        height, width = (math.ceil(size / self.size_multiple) for size in sample.shape[-2:])
        shape = (sample.shape[0], *self.context_widths, height, width)
        way_out = "It is the memory: `features` of what the pipeline's LGCVDContextEncoder returns."
        if not isinstance(context, (tuple, list)) or len(context) != 1 or not torch.is_tensor(context[0]):
            got = f"{len(context)} entries" if isinstance(context, (tuple, list)) else type(context).__name__
            raise ValueError(f"`context` must be a tuple of one tensor of shape {shape}, got {got}. {way_out}")
        if tuple(context[0].shape) not in (shape, (1, *shape[1:])):
            raise ValueError(
                f"`context` must hold a tensor of shape {shape}, got {tuple(context[0].shape)}. {way_out}"
            )


class LGCVDContextEncoder(ModelMixin, AttentionMixin, ConfigMixin):
    r"""
    The memory of LGC-VD: a feature map of all clips of a video so far, of which each counts half as much as the next.

    `g_0 = E(grey)` and `g_n = (E(clip) + g_{n-1}) / 2`, with `E` the way down and the middle of [`LGCVDUNet2DModel`], without
    time. Nothing is remembered in the module: the state is a value that is passed in and out.

    Height and width may be any, padded as in [`LGCVDUNet2DModel`].

    Args:
        sample_size (`int` or `tuple[int, int]`, *optional*, defaults to `64`):
            Height and width, in pixels, of the frames the network was made for; not read.
        in_channels (`int`, *optional*, defaults to `3`): Channels of *one* frame.
        max_frames (`int`, *optional*, defaults to `8`): Frames of a clip, 1 or more.
        block_out_channels (`tuple[int]`, *optional*, defaults to `(128, 256, 384, 512)`):
            Channels of each level, finest first, 4 or more each. The last are the channels of the memory.
        layers_per_block (`int`, *optional*, defaults to `2`): Residual blocks of a level.
        attention_levels (`tuple[int]`, *optional*, defaults to `(2,)`):
            Levels with self-attention, 0 the finest. The middle always has it.
        attention_head_dim (`int`, *optional*, defaults to `128`): As of [`LGCVDUNet2DModel`].
        original_quirks (`bool`, *optional*, defaults to `False`): As of [`LGCVDUNet2DModel`].

    Raises:
        ValueError: If an argument is outside what is stated above.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["LGCVDResnetBlock2D", "LGCVDAttention", "LGCVDDownBlock2D", "LGCVDMidBlock2D"]
    _repeated_blocks = ["LGCVDDownBlock2D", "LGCVDMidBlock2D"]
    _skip_layerwise_casting_patterns = ["norm"]

    @register_to_config
    def __init__(
        self,
        sample_size: int | tuple[int, int] = 64,
        in_channels: int = 3,
        max_frames: int = 8,
        block_out_channels: tuple[int, ...] = (128, 256, 384, 512),
        layers_per_block: int = 2,
        attention_levels: tuple[int, ...] = (2,),
        attention_head_dim: int | None = 128,
        original_quirks: bool = False,
    ) -> None:
        super().__init__()
        _check_config(self.config)
        self.conv_in = nn.Conv2d(max_frames * in_channels, block_out_channels[0], 3, padding=1)
        block_args = {"head_dim": attention_head_dim, "embedding_dim": None, "has_quirk": original_quirks}
        self.down_blocks, channels = _down_blocks(
            block_out_channels, attention_levels, num_layers=layers_per_block, **block_args
        )
        self.mid_block = LGCVDMidBlock2D(channels, add_cross_attention=False, **block_args)
        self.gradient_checkpointing = False
        _init_weights(self)

    @property
    def clip_frames(self) -> int:
        """It reads clips of so many frames, the last ones before each window."""
        return self.config.max_frames

    @property
    def feature_channels(self) -> tuple[int, ...]:
        """`D`, the channels of the memory, of which there is one map."""
        return (self.config.block_out_channels[-1],)

    @property
    def predicts_frames(self) -> bool:
        """It does not: there is no mean."""
        return False

    @property
    def size_multiple(self) -> int:
        """Frames are padded to a multiple of this; the memory's height and width are a frame's, divided by it."""
        return 2 ** (len(self.config.block_out_channels) - 1)

    def compile_repeated_blocks(self, *args, **kwargs) -> None:
        """Compile the levels one by one, as [`LGCVDUNet2DModel`] does."""
        super().compile_repeated_blocks(*args, **_isolated(kwargs))

    def forward(
        self,
        frames: torch.Tensor,
        state: tuple[torch.Tensor, ...] | None = None,
        num_frames: int | None = None,
        averages: bool = True,
        return_dict: bool = True,
    ) -> ContextOutput | tuple:
        """
        Take a clip into the memory, or begin one.

        Args:
            frames (`torch.Tensor` of shape `(B, n, C, H, W)`, in `[-1, 1]`):
                The clip, in time order: `n` is `max_frames`; or 0 frames, which change nothing, or begin a memory.
            state (`tuple[torch.Tensor]`, *optional*):
                The memory so far: `state` of what an earlier call returned. `None` or empty: a new video, whose memory is
                that of a grey clip.
            num_frames (`int`, *optional*): Not read: this memory is the same for any number of frames to be made.
            averages (`bool`, *optional*, defaults to `True`):
                Whether what was there before counts. `False`: the memory is that of the clip alone, as in LGC-VD's training.
            return_dict (`bool`, *optional*, defaults to `True`): Whether to return a [`ContextOutput`].

        Returns:
            [`ContextOutput`] or `tuple`: `features` and `state`, each a tuple of the one map `(B, D, h, w)`; the mean, which is
            `None`, and the scale, 1.

        Raises:
            ValueError: If shapes do not fit one another.
        """
        self._check_inputs(frames, state)
        batch_size, num_read, _, height, width = frames.shape
        is_alone = num_read > 0 and not averages
        if state is not None and len(state):
            memory = state[0]
        elif not is_alone:
            grey = frames.new_zeros(1, self.config.max_frames, *frames.shape[2:])
            memory = self.encode(grey).expand(batch_size, -1, -1, -1)  # the same for all videos
        if num_read:
            clip = self.encode(frames)
            memory = clip if is_alone else (clip + memory) / 2
        if not return_dict:
            return ((memory,), (memory,), None, 1.0)
        return ContextOutput(features=(memory,), state=(memory,))

    def encode(self, clip: torch.Tensor) -> torch.Tensor:
        """
        `E`, the feature map of one clip by itself.

        Args:
            clip (`torch.Tensor` of shape `(B, max_frames, C, H, W)`, in `[-1, 1]`): The clip.

        Returns:
            `torch.Tensor` of shape `(B, D, h, w)`.
        """
        hidden_states = self.conv_in(_pad(clip.flatten(1, 2), self.size_multiple))
        for block in self.down_blocks:
            hidden_states, _ = _run(self, block, hidden_states, None)
        return _run(self, self.mid_block, hidden_states, None)

    def _check_inputs(self, frames: torch.Tensor, state: tuple[torch.Tensor, ...] | None) -> None:
        config = self.config
        if frames.ndim != 5 or not len(frames) or frames.shape[1] not in (0, config.max_frames):
            raise ValueError(
                f"`frames` must have shape (B, {config.max_frames}, C, H, W), a clip, or (B, 0, C, H, W), got"
                f" {tuple(frames.shape)}."
            )
        if frames.shape[2] != config.in_channels:
            raise ValueError(f"`frames` must have {config.in_channels} channels a frame, got {frames.shape[2]}.")
        if state is None or isinstance(state, (tuple, list)) and not state:
            return
        height, width = (math.ceil(size / self.size_multiple) for size in frames.shape[-2:])
        shape = (frames.shape[0], *self.feature_channels, height, width)
        if not isinstance(state, (tuple, list)) or len(state) != 1 or tuple(state[0].shape) != shape:
            got = [tuple(each.shape) for each in state] if isinstance(state, (tuple, list)) else type(state).__name__
            raise ValueError(
                f"`state` must be a tuple of one tensor of shape {shape}, as an earlier call for these videos returned it, got"
                f" {got}. For a new video pass None."
            )


class LGCVDDownBlock2D(nn.Module):
    """A level on the way down: residual blocks, each followed by attention if the level has it, then a strided convolution."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        num_layers: int,
        add_attention: bool,
        add_downsample: bool,
        head_dim: int | None,
        embedding_dim: int | None,
        has_quirk: bool,
    ) -> None:
        super().__init__()
        args = {"embedding_dim": embedding_dim, "has_quirk": has_quirk}
        self.resnets = nn.ModuleList(
            [LGCVDResnetBlock2D(out_channels if i else in_channels, out_channels, **args) for i in range(num_layers)]
        )
        self.attentions = None
        if add_attention:
            self.attentions = nn.ModuleList([LGCVDAttention(out_channels, head_dim) for _ in range(num_layers)])
        self.downsampler = None
        if add_downsample:
            self.downsampler = nn.Conv2d(out_channels, out_channels, 3, stride=2, padding=1)

    def forward(self, hidden_states: torch.Tensor, emb: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        for i, resnet in enumerate(self.resnets):
            hidden_states = resnet(hidden_states, emb)
            if self.attentions is not None:
                hidden_states = self.attentions[i](hidden_states)
        skip = hidden_states
        if self.downsampler is not None:
            hidden_states = self.downsampler(hidden_states)  # (B, C, h/2, w/2)
        return hidden_states, skip


class LGCVDMidBlock2D(nn.Module):
    """The coarsest level: residual block, self-attention, residual block; then what reads the memory, if anything does."""

    def __init__(
        self,
        channels: int,
        *,
        head_dim: int | None,
        embedding_dim: int | None,
        has_quirk: bool,
        add_cross_attention: bool,
    ) -> None:
        super().__init__()
        args = {"embedding_dim": embedding_dim, "has_quirk": has_quirk}
        self.resnets = nn.ModuleList([LGCVDResnetBlock2D(channels, channels, **args) for _ in range(2)])
        self.attention = LGCVDAttention(channels, head_dim)
        self.cross_attention = None
        if add_cross_attention:
            self.cross_attention = LGCVDAttention(channels, head_dim, is_cross_attention=True)

    def forward(
        self, hidden_states: torch.Tensor, emb: torch.Tensor | None, memory: torch.Tensor | None = None
    ) -> torch.Tensor:
        hidden_states = self.resnets[0](hidden_states, emb)
        hidden_states = self.attention(hidden_states)
        hidden_states = self.resnets[1](hidden_states, emb)
        if self.cross_attention is not None:
            hidden_states = self.cross_attention(hidden_states, memory)
        return hidden_states


class LGCVDUpBlock2D(nn.Module):
    """A level on the way up: the level's skip, residual blocks, attention between them if the level has it, upsampling."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        num_layers: int,
        add_attention: bool,
        add_upsample: bool,
        head_dim: int | None,
        embedding_dim: int | None,
        has_quirk: bool,
    ) -> None:
        super().__init__()
        args = {"embedding_dim": embedding_dim, "has_quirk": has_quirk}
        widths = [in_channels] + [out_channels] * num_layers
        self.resnets = nn.ModuleList([LGCVDResnetBlock2D(channels, out_channels, **args) for channels in widths])
        self.attentions = None
        if add_attention:
            self.attentions = nn.ModuleList([LGCVDAttention(out_channels, head_dim) for _ in range(num_layers)])
        self.upsampler = None
        if add_upsample:
            self.upsampler = nn.ConvTranspose2d(out_channels, out_channels, 3, stride=2, padding=1, output_padding=1)

    def forward(self, hidden_states: torch.Tensor, emb: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        hidden_states = torch.cat([hidden_states, skip], dim=1)
        for i, resnet in enumerate(self.resnets):
            hidden_states = resnet(hidden_states, emb)
            if self.attentions is not None and i < len(self.attentions):  # the last residual block has none
                hidden_states = self.attentions[i](hidden_states)
        if self.upsampler is not None:
            hidden_states = self.upsampler(hidden_states)  # (B, C, 2h, 2w)
        return hidden_states


class LGCVDResnetBlock2D(nn.Module):
    """
    DDPM++'s residual block: the embedding of time is added after the first convolution, and the sum with the shortcut, a
    convolution of 3x3 if the width changes, is divided by the square root of two.

    Args:
        in_channels (`int`): Channels before.
        out_channels (`int`): Channels after.
        embedding_dim (`int` or `None`): Width of the embedding of time; `None`: there is none.
        has_quirk (`bool`): Whether the groups of the second normalisation divide `in_channels`, too.
    """

    def __init__(self, in_channels: int, out_channels: int, *, embedding_dim: int | None, has_quirk: bool) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(_num_groups(in_channels), in_channels, eps=1e-6)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.time_emb_proj = nn.Linear(embedding_dim, out_channels) if embedding_dim is not None else None
        num_groups = _num_groups(out_channels, in_channels if has_quirk else out_channels)
        self.norm2 = nn.GroupNorm(num_groups, out_channels, eps=1e-6)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.conv_shortcut = None
        if in_channels != out_channels:
            self.conv_shortcut = nn.Conv2d(in_channels, out_channels, 3, padding=1)

    def forward(self, hidden_states: torch.Tensor, emb: torch.Tensor | None) -> torch.Tensor:
        shortcut = hidden_states
        hidden_states = self.conv1(F.silu(self.norm1(hidden_states)))
        if self.time_emb_proj is not None:
            hidden_states = hidden_states + self.time_emb_proj(emb)[:, :, None, None]
        hidden_states = self.conv2(F.silu(self.norm2(hidden_states)))
        if self.conv_shortcut is not None:
            shortcut = self.conv_shortcut(shortcut)
        return (shortcut + hidden_states) / SQRT2


class LGCVDAttnProcessor:
    """Attention through Diffusers' dispatcher, so that `set_attention_backend` takes effect."""

    _attention_backend = None
    _parallel_config = None

    def __call__(
        self, attn: "LGCVDAttention", hidden_states: torch.Tensor, memory: torch.Tensor | None = None
    ) -> torch.Tensor:
        residual = hidden_states  # (B, C, h, w)
        if attn.is_cross_attention:
            # One normalisation for both, by itself for each. Stacked, it is one call of one layer.
            both = attn.norm(torch.cat([hidden_states, memory.to(hidden_states.dtype)]))
            tokens, read = both.flatten(2).transpose(1, 2).chunk(2)  # (B, h*w, C) each
        else:
            tokens = read = attn.norm(hidden_states).flatten(2).transpose(1, 2)
        if not attn.fused_projections:
            query, key, value = attn.to_q(tokens), attn.to_k(read), attn.to_v(read)
        elif attn.is_cross_attention:
            query, (key, value) = attn.to_q(tokens), attn.to_kv(read).chunk(2, dim=-1)
        else:
            query, key, value = attn.to_qkv(tokens).chunk(3, dim=-1)
        query, key, value = (x.unflatten(2, (attn.heads, -1)) for x in (query, key, value))  # (B, h*w, heads, dim)
        hidden_states = dispatch_attention_fn(
            query, key, value, backend=self._attention_backend, parallel_config=self._parallel_config
        )
        hidden_states = attn.to_out[0](hidden_states.flatten(2))  # (B, h*w, C)
        return (residual + hidden_states.transpose(1, 2).reshape(residual.shape)) / SQRT2


class LGCVDAttention(nn.Module, AttentionModuleMixin):
    """
    Attention of the pixels of a feature map to one another, or to those of the memory. The input is added, and the sum divided
    by the square root of 2.

    Args:
        channels (`int`): Channels of the feature map, and of the memory.
        head_dim (`int` or `None`): Channels of one head; one head if `None` or if there are fewer channels.
        is_cross_attention (`bool`, *optional*, defaults to `False`): Whether it reads the memory.
    """

    _default_processor_cls = LGCVDAttnProcessor
    _available_processors = [LGCVDAttnProcessor]

    def __init__(self, channels: int, head_dim: int | None, *, is_cross_attention: bool = False) -> None:
        super().__init__()
        self.heads = 1 if head_dim is None or channels < head_dim else channels // head_dim
        self.use_bias = True
        self.is_cross_attention = is_cross_attention
        self.norm = nn.GroupNorm(_num_groups(channels), channels, eps=1e-6)
        self.to_q = nn.Linear(channels, channels)
        self.to_k = nn.Linear(channels, channels)
        self.to_v = nn.Linear(channels, channels)
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])
        self.set_processor(self._default_processor_cls())

    def forward(self, hidden_states: torch.Tensor, memory: torch.Tensor | None = None) -> torch.Tensor:
        return self.processor(self, hidden_states, memory)


def _down_blocks(widths: tuple[int, ...], attention_levels: tuple[int, ...], **args) -> tuple[nn.ModuleList, int]:
    """The way down, and the channels in which it ends."""
    blocks, channels = nn.ModuleList(), widths[0]
    for level, out_channels in enumerate(widths):
        block = LGCVDDownBlock2D(
            channels,
            out_channels,
            add_attention=level in attention_levels,
            add_downsample=level < len(widths) - 1,
            **args,
        )
        blocks.append(block)
        channels = out_channels
    return blocks, channels


def _init_weights(network: nn.Module) -> None:
    """DDPM++'s initialisation of residual blocks and attention: uniform, by the average of fan-in and fan-out."""
    for block in network.modules():
        if not isinstance(block, (LGCVDResnetBlock2D, LGCVDAttention)):
            continue
        for module in block.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        if isinstance(block, LGCVDResnetBlock2D):
            nn.init.xavier_uniform_(block.conv2.weight, gain=GAIN_OUT)
        else:
            for linear in (block.to_q, block.to_k, block.to_v):
                nn.init.xavier_uniform_(linear.weight, gain=GAIN_QKV)
            nn.init.xavier_uniform_(block.to_out[0].weight, gain=GAIN_OUT)


def _run(network: ModelMixin, block: nn.Module, *args):
    if torch.is_grad_enabled() and network.gradient_checkpointing:
        return network._gradient_checkpointing_func(block, *args)
    return block(*args)


def _isolated(options: dict) -> dict:
    """Options of torch.compile, with those that keep what it compiles apart."""
    if "isolate_recompiles" in inspect.signature(torch.compile).parameters:
        return {"isolate_recompiles": True} | options
    return options


def _pad(frames: torch.Tensor, multiple: int) -> torch.Tensor:
    """Frames up to multiples of `multiple`, by repeating the last row and column, so that any size will do."""
    down, right = (-size % multiple for size in frames.shape[-2:])
    return F.pad(frames, (0, right, 0, down), mode="replicate") if down or right else frames


def _sinusoids(timestep: torch.Tensor, width: int) -> torch.Tensor:
    """Sines before cosines of the timestep, of which the slowest is `timestep / 10000`: `(B,)` -> `(B, width)`."""
    half = width // 2
    frequencies = torch.exp(torch.arange(half, device=timestep.device).float() * -(math.log(10_000) / (half - 1)))
    angles = timestep.float()[:, None] * frequencies  # (B, half)
    return F.pad(torch.cat([angles.sin(), angles.cos()], dim=1), (0, width % 2))


def _num_groups(channels: int, divisible: int | None = None) -> int:
    """Groups of a normalisation: at most 32 of at least 4 channels, a divisor of their number, and of `divisible`."""
    num_groups = min(channels // 4, 32)
    while channels % num_groups or (divisible or channels) % num_groups:
        num_groups -= 1
    return num_groups


def _check_config(config) -> None:
    """Both networks' settings: those that a config has."""

    def is_count(value, least: int, most: int) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most

    # A config may come from anywhere. Far above all use, the upper bounds keep a network from taking hours to be built.
    for name, least, most in (
        ("in_channels", 1, MOST_CHANNELS),
        ("num_context_frames", 0, MOST_CHANNELS),
        ("max_frames", 1, MOST_CHANNELS),
        ("layers_per_block", 1, 64),
        ("num_train_timesteps", 1, 1_000_000),
    ):
        if name in config and not is_count(config[name], least, most):
            raise ValueError(f"`{name}` must be an integer from {least} to {most:,}, got {config[name]!r}.")
    if "drop_observed" in config:
        value = config.drop_observed
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value <= 1:
            raise ValueError(f"`drop_observed` is a probability, got {value!r}.")
        shares = config.task_shares
        is_list = isinstance(shares, (list, tuple)) and len(shares) == 4
        if (
            not is_list
            or not all(type(x) in (int, float) and 0 <= x <= 1 for x in shares)
            or abs(sum(shares) - 1) > 1e-6
        ):
            raise ValueError(f"`task_shares` must be four probabilities whose sum is 1, got {shares!r}.")
        if config.num_context_frames and abs(value - shares[1]) > 1e-6:
            raise ValueError(
                f"`drop_observed` must be the second of `task_shares`, {shares[1]}: how often no frame was given, got {value!r}."
            )
    for name, allowed in (
        ("has_frame_gaps", (False,)),
        ("original_quirks", (False, True)),
        ("prediction_type", (None, *PREDICTION_TYPES)),
    ):
        # 1 equals True and 0 False; in a config they are something else.
        if name in config and (config[name] not in allowed or type(config[name]) not in map(type, allowed)):
            raise ValueError(f"`{name}` must be one of {allowed}, got {config[name]!r}.")
    widths = config.block_out_channels
    if (
        not isinstance(widths, (list, tuple))
        or not 1 <= len(widths) <= 16
        or not all(is_count(width, 4, MOST_CHANNELS) for width in widths)
    ):
        raise ValueError(
            f"`block_out_channels` must be a list of 1 to 16 integers from 4 to {MOST_CHANNELS:,}, got {widths!r}."
        )
    attended = [widths[-1]]  # widths that attention has to divide into heads
    for name in ("attention_levels", "up_attention_levels"):
        levels = config.get(name)
        if name == "up_attention_levels":
            if name not in config:
                continue
            levels = config.attention_levels if levels is None else levels
        if not isinstance(levels, (list, tuple)) or not all(is_count(level, 0, len(widths) - 1) for level in levels):
            raise ValueError(
                f"`{name}` must be a list of levels from 0, the finest, to {len(widths) - 1}, got {levels!r}."
            )
        narrower = name == "up_attention_levels"  # there a level has the width of the next finer one
        attended += [widths[max(level - narrower, 0)] for level in levels]
    head_dim = config.attention_head_dim
    if head_dim is not None:
        if not is_count(head_dim, 1, MOST_CHANNELS):
            raise ValueError(
                f"`attention_head_dim` must be an integer from 1 to {MOST_CHANNELS:,} or None, got {head_dim!r}."
            )
        for width in attended:
            if width >= head_dim and width % head_dim:
                raise ValueError(
                    f"`attention_head_dim` ({head_dim}) must divide the channels of every level with attention, which the"
                    f" middle is too; {width} channels do not divide. (On the way up a level has the channels of the next"
                    " finer one.)"
                )
    context_channels = config.get("context_channels")
    if context_channels is not None and not is_count(context_channels, 1, MOST_CHANNELS):
        raise ValueError(
            f"`context_channels` must be an integer from 1 to {MOST_CHANNELS:,} or None, got {context_channels!r}."
        )
    sizes = config.sample_size if isinstance(config.sample_size, (list, tuple)) else [config.sample_size]
    if len(sizes) not in (1, 2) or not all(is_count(size, 1, MOST_PIXELS) for size in sizes):
        raise ValueError(
            f"`sample_size` must be an integer from 1 to {MOST_PIXELS:,}, or (height, width), got {config.sample_size!r}."
        )
