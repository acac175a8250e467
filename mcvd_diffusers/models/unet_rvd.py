# Copyright 2026 The mcvd-diffusers authors. Licensed under the Apache License, Version 2.0.
r"""The networks of RVD: a 2D UNet that denoises one frame, and the recurrent encoder that tells it of all frames before.

Source: Yang, Srivastava, Mandt, "Diffusion Probabilistic Modeling for Video Generation" (RVD,
https://huggingface.co/papers/2203.09481). Its residual: the next frame is predicted, and what diffusion makes is
`(frame - prediction) / scale`. The convolutional recurrent unit is that of Ballas et al. (1511.06432), attention at linear
cost that of Shen et al. (1812.01243).

The two networks are told of one another by values only: what the encoder returns as `features` is the denoiser's `context`.

Letters in shape comments: `B` videos, `T` frames of a window, `n` frames that are read, `k` frames to be made, `C` channels of a
frame, `H, W` its height and width, `h, w` those at some level, `D` channels there, `E` width of the time embedding.
"""

import inspect
import math
from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.attention import AttentionMixin, AttentionModuleMixin
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils import BaseOutput

from .context import ContextOutput


# The value of `mcvd_diffusers.FrameRole`, repeated because networks import nothing else of the package.
ABSENT = 0

SLOPE = 0.2  # of the activation below zero

# What a network may have been trained to predict, as `mcvd_diffusers.objectives` defines it.
PREDICTION_TYPES = ("epsilon", "v_prediction", "sample", "flow_prediction", "edm")

MOST_CHANNELS = 65_536
MOST_PIXELS = 65_536


@dataclass
class RVDUNet2DOutput(BaseOutput):
    """
    The output of [`RVDUNet2DModel`].

    Args:
        sample (`torch.Tensor` of shape `(B, T, C, H, W)`):
            The prediction (noise, velocity or clean residuals, as the noise scheduler's `prediction_type` says). It means
            something at LATENT frames; at ABSENT ones it is zero.
    """

    sample: torch.Tensor


# --------------------------------------------------------------------------------------------------------------------
# The denoiser


class RVDUNet2DModel(ModelMixin, AttentionMixin, ConfigMixin):
    r"""
    A 2D UNet that denoises single frames, each with a context of its own.

    Windows may be of any length: no frame of a window sees another. What a frame follows, the network knows from `context`
    alone, feature maps that [`RVDContextEncoder`] makes of the frames before. It does not read OBSERVED frames: given frames
    reach it through that encoder.

    Height and width may be any: frames are padded inside the network to a multiple of `2 ** (levels - 1)`, by repeating their
    last row and column, and the output is cut.

    Args:
        sample_size (`int` or `tuple[int, int]`, *optional*, defaults to `64`):
            Height and width, in pixels, of the frames the network was made for. A pipeline generates this size when nothing
            else tells it; the network itself does not read it.
        in_channels (`int`, *optional*, defaults to `3`): Channels of *one* frame, in and out.
        max_frames (`int`, *optional*, defaults to `1`):
            Frames that are made at once when sampling, always 1. A pipeline reads it; the network takes any number.
        block_out_channels (`tuple[int]`, *optional*, defaults to `(48, 96, 192, 384)`):
            Channels of each level, finest first. The first is the width of the time embedding, too.
        context_channels (`tuple[int]`, *optional*):
            Channels of the context at each level, finest first; an empty list: no context is read. `None`: those of
            `block_out_channels`.
        norm_num_groups (`int`, *optional*, defaults to `8`): Groups of group normalisation; divides the channels of all levels.
        num_attention_heads (`int`, *optional*, defaults to `4`): Heads of the linear attention.
        attention_head_dim (`int`, *optional*, defaults to `16`): Channels of a head.
        num_train_timesteps (`int`, *optional*, defaults to `1600`): Number of timesteps of the noise schedule.
        prediction_type (`str`, *optional*):
            What the network was trained to predict: `"epsilon"`, `"v_prediction"`, `"sample"`, `"flow_prediction"` or
            `"edm"`. With `None` the pipeline trusts its scheduler, which must then be one with a `beta_schedule`.
        drop_observed (`float`, *optional*, defaults to `0.0`):
            Probability with which no frame was given in training. A statement about the weights, as is the following.
        has_frame_gaps (`bool`, *optional*, defaults to `False`):
            Whether there were gaps between frames in training. If not, the pipeline gives consecutive ones.
        num_context_frames (`int`, *optional*, defaults to `0`):
            Given frames that the network is shown beside those it makes: none, since the encoder reads them.
        residual (`bool`, *optional*, defaults to `True`):
            Whether the network makes what the encoder's predictor leaves over, or whole frames. A statement, too.

    Raises:
        ValueError: If an argument is outside what is stated above.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["RVDResnetBlock2D", "RVDDownBlock2D", "RVDMidBlock2D", "RVDUpBlock2D"]
    _repeated_blocks = ["RVDDownBlock2D", "RVDMidBlock2D", "RVDUpBlock2D"]
    _skip_layerwise_casting_patterns = ["norm", "time_embedding", "time_emb_proj"]

    @register_to_config
    def __init__(
        self,
        sample_size: int | tuple[int, int] = 64,
        in_channels: int = 3,
        max_frames: int = 1,
        block_out_channels: tuple[int, ...] = (48, 96, 192, 384),
        context_channels: tuple[int, ...] | None = None,
        norm_num_groups: int = 8,
        num_attention_heads: int = 4,
        attention_head_dim: int = 16,
        num_train_timesteps: int = 1600,
        prediction_type: str | None = None,
        drop_observed: float = 0.0,
        has_frame_gaps: bool = False,
        num_context_frames: int = 0,
        residual: bool = True,
    ) -> None:
        super().__init__()
        _check_denoiser_config(self.config)
        width, levels = block_out_channels[0], len(block_out_channels)
        args = {
            "emb_channels": width,
            "num_groups": norm_num_groups,
            "heads": num_attention_heads,
            "head_dim": attention_head_dim,
        }
        self.time_embedding = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

        self.down_blocks, channels = nn.ModuleList(), in_channels
        for level, (out_channels, extra) in enumerate(zip(block_out_channels, self.context_widths or [0] * levels)):
            has_downsample = level < levels - 1
            self.down_blocks.append(
                RVDDownBlock2D(channels, out_channels, extra, has_downsample=has_downsample, **args)
            )
            channels = out_channels
        self.mid_block = RVDMidBlock2D(channels, **args)
        # Each level on the way up ends at the size of the next finer one, so that there is one fewer than down; what the finest
        # one made on the way down is not read again.
        self.up_blocks = nn.ModuleList()
        for level in reversed(range(1, levels)):
            out_channels = block_out_channels[level - 1]
            self.up_blocks.append(RVDUpBlock2D(channels + block_out_channels[level], out_channels, **args))
            channels = out_channels
        self.block_out = RVDConvBlock(channels, channels, norm_num_groups)
        self.conv_out = nn.Conv2d(channels, in_channels, 1)
        self.gradient_checkpointing = False

    @property
    def context_widths(self) -> tuple[int, ...]:
        """Channels of each map of the context, finest first."""
        given = self.config.context_channels
        return tuple(self.config.block_out_channels if given is None else given)

    @property
    def size_multiple(self) -> int:
        """Frames whose height or width is no multiple of this are padded inside the network, and its output is cut."""
        return 2 ** (len(self.config.block_out_channels) - 1)

    @property
    def keeps_segments_apart(self) -> bool:
        """Whether windows may hold several segments: always, since no frame sees another."""
        return True

    def compile_repeated_blocks(self, *args, **kwargs) -> None:
        """
        Compile the levels one by one; the arguments are those of [`~ModelMixin.compile_repeated_blocks`].

        Levels are of one class and of different widths: where torch.compile can, it is told to keep them apart
        (`isolate_recompiles`).
        """
        if "isolate_recompiles" in inspect.signature(torch.compile).parameters:
            kwargs.setdefault("isolate_recompiles", True)
        super().compile_repeated_blocks(*args, **kwargs)

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | float | int,
        roles: torch.Tensor,
        frame_indices: torch.Tensor | None = None,
        segment_ids: torch.Tensor | None = None,
        context: tuple[torch.Tensor, ...] | None = None,
        return_dict: bool = True,
    ) -> RVDUNet2DOutput | tuple[torch.Tensor]:
        """
        Predict the noise (or velocity, or clean residual) of the LATENT frames of a window.

        Args:
            sample (`torch.Tensor` of shape `(B, T, C, H, W)`):
                The window: noisy residuals where LATENT. What stands at an OBSERVED frame matters to no other, and what is
                returned there means nothing. Whatever stands at an ABSENT frame, NaN included, does not matter.
            timestep (`torch.Tensor`, `float` or `int`):
                Noise level in Diffusers' convention, `0` (clean) to `num_train_timesteps - 1`, as the scheduler tells it (for
                flow matching up to `num_train_timesteps`, for EDM a quarter of the noise level's logarithm): a number, or a
                tensor of shape `()`, `(1,)` or `(B,)`. The frames of a window share it.
            roles (`torch.Tensor` of shape `(B, T)`): [`FrameRole`] of each frame: 0 ABSENT, 1 OBSERVED, 2 LATENT.
            frame_indices (`torch.Tensor` of shape `(B, T)`, *optional*): Not read: positions change nothing.
            segment_ids (`torch.Tensor` of shape `(B, T)`, *optional*): Not read: no frame sees another.
            context (`tuple[torch.Tensor]`):
                What is known of the frames before each frame: the `features` of [`RVDContextEncoder`], one tensor
                `(B, T, D, h, w)` for each level, finest first. `h, w` are the padded height and width divided by
                `2 ** level`. `None` only for a network with empty `context_channels`.
            return_dict (`bool`, *optional*, defaults to `True`): Whether to return a [`RVDUNet2DOutput`].

        Returns:
            [`RVDUNet2DOutput`] or `tuple`: The prediction of shape `(B, T, C, H, W)`.

        Raises:
            ValueError: If shapes do not fit one another, or the context is missing.
        """
        self._check_inputs(sample, timestep, roles, frame_indices, segment_ids, context)
        batch_size, num_frames, _, height, width = sample.shape
        is_absent = (roles.to(sample.device) == ABSENT)[:, :, None, None, None]
        hidden_states = torch.where(is_absent, 0, sample).flatten(0, 1)  # (B*T, C, H, W)
        hidden_states = _pad(hidden_states, self.size_multiple)
        # Zero, too: a NaN that is cut out of the output would still reach the gradients.
        maps = [torch.where(is_absent, 0, each.to(sample)).flatten(0, 1) for each in context or ()]
        maps = maps or [None] * len(self.down_blocks)
        emb = self._embed(timestep, batch_size, sample).repeat_interleave(num_frames, dim=0)  # (B*T, E)

        skips = []
        for block, each in zip(self.down_blocks, maps):
            hidden_states, skip = self._run(block, hidden_states, emb, each)
            skips.append(skip)
        hidden_states = self._run(self.mid_block, hidden_states, emb)
        for block in self.up_blocks:
            hidden_states = self._run(block, hidden_states, emb, skips.pop())
        output = self.conv_out(self.block_out(hidden_states))

        output = output.unflatten(0, (batch_size, num_frames))[..., :height, :width]
        output = torch.where(is_absent.to(output.device), 0, output)
        if not return_dict:
            return (output,)
        return RVDUNet2DOutput(sample=output)

    def _embed(self, timestep, batch_size: int, sample: torch.Tensor) -> torch.Tensor:
        """The timestep as one vector for each window, `(B, E)`, on the sample's device."""
        # Not the weights' device, who may be elsewhere until their layer's turn comes.
        device = sample.device
        if not torch.is_tensor(timestep):
            timestep = torch.tensor([timestep], dtype=torch.float32, device=device)
        timestep = timestep.to(device).reshape(-1).expand(batch_size)
        waves = _sinusoids(timestep, self.config.block_out_channels[0])
        return self.time_embedding(waves.to(sample.dtype)).to(device)

    def _run(self, block: nn.Module, *args):
        if torch.is_grad_enabled() and self.gradient_checkpointing:
            return self._gradient_checkpointing_func(block, *args)
        return block(*args)

    def _check_inputs(self, sample, timestep, roles, frame_indices, segment_ids, context) -> None:
        if sample.ndim != 5 or 0 in sample.shape[:2]:
            raise ValueError(
                f"`sample` must have shape (B, T, C, H, W) with a frame at least, got {tuple(sample.shape)}."
            )
        if sample.shape[2] != self.config.in_channels:
            raise ValueError(f"`sample` must have {self.config.in_channels} channels a frame, got {sample.shape[2]}.")
        if torch.is_tensor(timestep) and tuple(timestep.shape) not in ((), (1,), sample.shape[:1]):
            raise ValueError(
                f"`timestep` must be a number or have shape (), (1,) or ({sample.shape[0]},), got {tuple(timestep.shape)}."
            )
        for name, value in (("roles", roles), ("frame_indices", frame_indices), ("segment_ids", segment_ids)):
            if value is None and name != "roles":
                continue
            if value.is_floating_point() or value.dtype == torch.bool:
                raise ValueError(f"`{name}` must be integers, got {value.dtype}.")
            if value.shape != sample.shape[:2]:
                raise ValueError(f"`{name}` must have shape {tuple(sample.shape[:2])}, got {tuple(value.shape)}.")
        if not self.context_widths and not context:
            return
        shapes = [
            (*sample.shape[:2], channels, *_map_size(sample.shape[-2:], level, self.size_multiple))
            for level, channels in enumerate(self.context_widths)
        ]
        got = context
        if isinstance(context, (tuple, list)) and all(torch.is_tensor(each) for each in context):
            got = [tuple(each.shape) for each in context]
        elif context is not None:
            got = type(context).__name__
        if got != shapes:
            raise ValueError(
                f"`context` must be a tuple of {len(shapes)} tensors, one for each level of `context_channels`, of shapes"
                f" {shapes}, got {got}. `RVDContextEncoder` makes it of the frames before: give its `features`."
            )


class RVDDownBlock2D(nn.Module):
    """A level on the way down: residual block, a second one that reads the context, attention, downsampling."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        context_channels: int,
        *,
        has_downsample: bool,
        emb_channels: int,
        num_groups: int,
        heads: int,
        head_dim: int,
    ) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(
            [
                RVDResnetBlock2D(in_channels, out_channels, num_groups, emb_channels),
                RVDResnetBlock2D(out_channels + context_channels, out_channels, num_groups, emb_channels),
            ]
        )
        self.attention = RVDLinearAttention(out_channels, heads, head_dim)
        self.downsampler = nn.Conv2d(out_channels, out_channels, 3, stride=2, padding=1) if has_downsample else None

    def forward(
        self, hidden_states: torch.Tensor, emb: torch.Tensor, context: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        hidden_states = self.resnets[0](hidden_states, emb)
        if context is not None:
            hidden_states = torch.cat([hidden_states, context], dim=1)
        skip = self.attention(self.resnets[1](hidden_states, emb))
        return skip if self.downsampler is None else self.downsampler(skip), skip


class RVDMidBlock2D(nn.Module):
    """The coarsest level: residual block, attention, residual block."""

    def __init__(self, channels: int, *, emb_channels: int, num_groups: int, heads: int, head_dim: int) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(RVDResnetBlock2D(channels, channels, num_groups, emb_channels) for _ in range(2))
        self.attention = RVDLinearAttention(channels, heads, head_dim)

    def forward(self, hidden_states: torch.Tensor, emb: torch.Tensor) -> torch.Tensor:
        hidden_states = self.attention(self.resnets[0](hidden_states, emb))
        return self.resnets[1](hidden_states, emb)


class RVDUpBlock2D(nn.Module):
    """A level on the way up: two residual blocks, the first of which takes a skip, attention, upsampling."""

    def __init__(
        self, in_channels: int, out_channels: int, *, emb_channels: int, num_groups: int, heads: int, head_dim: int
    ) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(
            [
                RVDResnetBlock2D(in_channels, out_channels, num_groups, emb_channels),
                RVDResnetBlock2D(out_channels, out_channels, num_groups, emb_channels),
            ]
        )
        self.attention = RVDLinearAttention(out_channels, heads, head_dim)
        self.upsampler = nn.ConvTranspose2d(out_channels, out_channels, 4, stride=2, padding=1)

    def forward(self, hidden_states: torch.Tensor, emb: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        hidden_states = self.resnets[0](torch.cat([hidden_states, skip], dim=1), emb)
        return self.upsampler(self.attention(self.resnets[1](hidden_states, emb)))


# --------------------------------------------------------------------------------------------------------------------
# The encoder


class RVDContextEncoder(ModelMixin, ConfigMixin):
    r"""
    What is known of the next frame, from all frames before it: a context for the denoiser, and a prediction.

    Two recurrent networks of one form read frames one after the other. The maps of the one are the denoiser's context; of those
    of the other a decoder makes the mean of the next frame. Either may be left out. What they remember is the value `state`, of
    which nothing is kept in the module: videos may be read in turns, and the rows of a state may be chosen, reordered and
    repeated.

    Height and width may be any: each network pads frames to a multiple of `2 ** (levels - 1)`, by repeating their last row and
    column; the mean is cut, the maps are not, as the denoiser pads in the same way.

    Args:
        sample_size (`int` or `tuple[int, int]`, *optional*, defaults to `64`):
            Height and width, in pixels, of the frames the networks were made for. They do not read it.
        in_channels (`int`, *optional*, defaults to `3`): Channels of *one* frame.
        context_block_out_channels (`tuple[int]`, *optional*, defaults to `(48, 96, 192, 384)`):
            Channels of each level of the context network, finest first: the denoiser's `context_channels`. `None` or empty:
            there is none, and `features` are empty.
        predictor_block_out_channels (`tuple[int]`, *optional*, defaults to `(48, 96, 96, 192)`):
            The same for the predictor. `None` or empty: no residual, `mean` is `None` and the scale 1.
        scale (`float`, *optional*, defaults to `1.0`):
            By which the residual is divided, above 0. Not read without predictor.
        clip_range (`float`, *optional*, defaults to `1.0`):
            Frames that are read, and the prediction, are clamped to `[-clip_range, clip_range]`; `None`: they are not.
        norm_num_groups (`int`, *optional*, defaults to `8`): Groups of group normalisation; divides the channels of all levels.

    Raises:
        ValueError: If an argument is outside what is stated above, or there is neither network.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["RVDResnetBlock2D", "RVDRecurrentBlock2D", "RVDPredictionBlock2D"]
    _repeated_blocks = ["RVDRecurrentBlock2D", "RVDPredictionBlock2D"]
    _skip_layerwise_casting_patterns = ["norm"]

    @register_to_config
    def __init__(
        self,
        sample_size: int | tuple[int, int] = 64,
        in_channels: int = 3,
        context_block_out_channels: tuple[int, ...] | None = (48, 96, 192, 384),
        predictor_block_out_channels: tuple[int, ...] | None = (48, 96, 96, 192),
        scale: float = 1.0,
        clip_range: float | None = 1.0,
        norm_num_groups: int = 8,
    ) -> None:
        super().__init__()
        _check_encoder_config(self.config)
        self.context_network = self.predictor = self.prediction_head = None
        if context_block_out_channels:
            self.context_network = RVDRecurrentNetwork(in_channels, context_block_out_channels, norm_num_groups)
        if predictor_block_out_channels:
            self.predictor = RVDRecurrentNetwork(in_channels, predictor_block_out_channels, norm_num_groups)
            self.prediction_head = RVDPredictionHead(in_channels, predictor_block_out_channels, norm_num_groups)

    @property
    def clip_frames(self) -> None:
        """`None`: every frame is read, once and in order."""
        return None

    @property
    def feature_channels(self) -> tuple[int, ...]:
        """Channels of each map of the features, finest first."""
        return tuple(self.config.context_block_out_channels or ())

    @property
    def predicts_frames(self) -> bool:
        """Whether it has a predictor, so that there is a mean."""
        return self.predictor is not None

    def compile_repeated_blocks(self, *args, **kwargs) -> None:
        """
        Compile the levels one by one; the arguments are those of [`~ModelMixin.compile_repeated_blocks`].

        See [`~RVDUNet2DModel.compile_repeated_blocks`].
        """
        if "isolate_recompiles" in inspect.signature(torch.compile).parameters:
            kwargs.setdefault("isolate_recompiles", True)
        super().compile_repeated_blocks(*args, **kwargs)

    def forward(
        self,
        frames: torch.Tensor,
        state: tuple[torch.Tensor, ...] | None = None,
        num_frames: int = 1,
        each_frame: bool = False,
        return_dict: bool = True,
    ) -> ContextOutput | tuple:
        """
        Read frames, and say what is known of the next ones.

        Args:
            frames (`torch.Tensor` of shape `(B, n, C, H, W)`, about `[-1, 1]`):
                The frames after those of `state`, in order; with a state there may be none.
            state (`tuple[torch.Tensor]`, *optional*): What an earlier call returned; `None` or empty: nothing was read before.
            num_frames (`int`, *optional*, defaults to `1`):
                Frames `k` to be made. For those after the next one, the predictor's own predictions are read.
            each_frame (`bool`, *optional*, defaults to `False`):
                Whether to say what is known of the next frame after each of the `n` frames, as training needs it: `k` is `n`
                then, and `num_frames` must be 1.
            return_dict (`bool`, *optional*, defaults to `True`): Whether to return a [`ContextOutput`].

        Returns:
            [`ContextOutput`] or `tuple`: `features`, one tensor `(B, k, D, h, w)` for each level; `state`, what to pass on, after
            the `n` frames; `mean` of shape `(B, k, C, H, W)`, or `None` without predictor; `scale`.

        Raises:
            ValueError: If nothing was read, shapes do not fit one another, or further frames are asked for without predictor.
        """
        self._check_inputs(frames, state, num_frames, each_frame)
        maps = self._read(frames, state) if frames.shape[1] else [each[:, None] for each in state]
        # Not a view, which would keep the maps of all frames that were read.
        state = tuple(each[:, -1].clone() for each in maps)
        if not each_frame:
            maps = [each[:, -1:] for each in maps]
        features, mean = self._features(maps), self._mean(maps, frames.shape[-2:])
        if num_frames > 1:
            steps, last = [(features, mean)], state
            for _ in range(num_frames - 1):
                maps = self._read(steps[-1][1], last)
                last = [each[:, -1] for each in maps]
                steps.append((self._features(maps), self._mean(maps, frames.shape[-2:])))
            features = tuple(torch.cat(level, dim=1) for level in zip(*(step[0] for step in steps)))
            mean = torch.cat([step[1] for step in steps], dim=1)
        scale = 1.0 if self.predictor is None else float(self.config.scale)
        if not return_dict:
            return (features, state, mean, scale)
        return ContextOutput(features=features, state=state, mean=mean, scale=scale)

    def _read(self, frames: torch.Tensor, state: tuple[torch.Tensor, ...] | None) -> list[torch.Tensor]:
        """The maps of both networks after each frame, `(B, n, D, h, w)`: the context's, then the predictor's."""
        frames, maps, start = self._clip(frames), [], 0
        for network in (self.context_network, self.predictor):
            if network is not None:
                stop = start + len(network.down_blocks)
                maps += network(frames, state[start:stop] if state else None)
                start = stop
        return maps

    def _features(self, maps: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        return tuple(maps[: len(self.config.context_block_out_channels or ())])

    def _mean(self, maps: list[torch.Tensor], size: tuple[int, int]) -> torch.Tensor | None:
        """What is predicted from the predictor's maps, `(B, n, C, H, W)`."""
        if self.predictor is None:
            return None
        maps = maps[len(self.config.context_block_out_channels or ()) :]
        return self._clip(self.prediction_head(maps)[..., : size[0], : size[1]])

    def _clip(self, frames: torch.Tensor) -> torch.Tensor:
        bound = self.config.clip_range
        return frames if bound is None else frames.clamp(-bound, bound)

    def _check_inputs(self, frames, state, num_frames, each_frame) -> None:
        channels = self.config.in_channels
        if frames.ndim != 5 or frames.shape[0] == 0 or 0 in frames.shape[-2:]:
            raise ValueError(f"`frames` must have shape (B, n, C, H, W), got {tuple(frames.shape)}.")
        if frames.shape[2] != channels:
            raise ValueError(f"`frames` must have {channels} channels a frame, got {frames.shape[2]}.")
        if frames.shape[1] == 0 and (each_frame or not state):
            raise ValueError(
                "`frames` must hold a frame at least, got none"
                + (", after which nothing can be said." if each_frame else " and no `state`: nothing is known yet.")
            )
        if not isinstance(num_frames, int) or isinstance(num_frames, bool) or num_frames < 1:
            raise ValueError(f"`num_frames` must be an integer of at least 1, got {num_frames!r}.")
        if num_frames > 1 and each_frame:
            raise ValueError(f"`num_frames` must be 1 with `each_frame=True`, got {num_frames}.")
        if num_frames > 1 and self.predictor is None:
            raise ValueError(
                f"`num_frames` must be 1 without a predictor, which makes the frames in between, got {num_frames}. Make"
                " frames one by one, and read each."
            )
        if not state:
            return
        shapes = []
        for network in (self.context_network, self.predictor):
            if network is not None:
                shapes += network.state_shapes(frames.shape[0], frames.shape[-2:])
        is_tuple = isinstance(state, (tuple, list)) and all(torch.is_tensor(each) for each in state)
        got = [tuple(each.shape) for each in state] if is_tuple else type(state).__name__
        if got != shapes:
            raise ValueError(
                f"`state` must be what this encoder returned for frames of this size, of shapes {shapes}, got {got}."
            )


class RVDRecurrentNetwork(nn.Module):
    """
    Levels of residual blocks, each with a recurrent unit that remembers the frames before.

    Args:
        in_channels (`int`): Channels of a frame.
        block_out_channels (`tuple[int]`): Channels of each level, finest first.
        num_groups (`int`): Groups of group normalisation.
    """

    def __init__(self, in_channels: int, block_out_channels: tuple[int, ...], num_groups: int) -> None:
        super().__init__()
        self.channels, self.down_blocks = tuple(block_out_channels), nn.ModuleList()
        for level, out_channels in enumerate(block_out_channels):
            has_downsample = level < len(block_out_channels) - 1
            block = RVDRecurrentBlock2D(in_channels, out_channels, num_groups, has_downsample=has_downsample)
            self.down_blocks.append(block)
            in_channels = out_channels
        self.gradient_checkpointing = False

    @property
    def size_multiple(self) -> int:
        return 2 ** (len(self.channels) - 1)

    def state_shapes(self, batch_size: int, size: tuple[int, int]) -> list[tuple[int, ...]]:
        """Of the state for frames of a size, level by level."""
        multiple = self.size_multiple
        return [(batch_size, width, *_map_size(size, level, multiple)) for level, width in enumerate(self.channels)]

    def forward(self, frames: torch.Tensor, state: tuple[torch.Tensor, ...] | None) -> list[torch.Tensor]:
        """The map of each level after each frame, `(B, n, D, h, w)`."""
        batch_size, num_frames = frames.shape[:2]
        hidden_states = _pad(frames.flatten(0, 1), self.size_multiple)
        if state is None:
            shapes = self.state_shapes(batch_size, frames.shape[-2:])
            state = [frames.new_zeros(shape) for shape in shapes]
        maps = []
        # Level by level, not frame by frame: all but the recurrence is done for all frames at once.
        for block, before in zip(self.down_blocks, state):
            args = (hidden_states, before.to(frames), num_frames)
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                hidden_states, each = self._gradient_checkpointing_func(block, *args)
            else:
                hidden_states, each = block(*args)
            maps.append(each)
        return maps


class RVDRecurrentBlock2D(nn.Module):
    """A level of [`RVDRecurrentNetwork`]: residual block, recurrent unit, downsampling."""

    def __init__(self, in_channels: int, out_channels: int, num_groups: int, *, has_downsample: bool) -> None:
        super().__init__()
        self.resnet = RVDResnetBlock2D(in_channels, out_channels, num_groups)
        self.recurrence = RVDConvGRU(out_channels)
        self.downsampler = nn.Conv2d(out_channels, out_channels, 3, stride=2, padding=1) if has_downsample else None

    def forward(
        self, hidden_states: torch.Tensor, state: torch.Tensor, num_frames: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """`(B*n, C, h, w)` and `(B, D, h, w)` to the next level's input, `(B*n, D, h/2, w/2)`, and `(B, n, D, h, w)`."""
        maps = self.recurrence(self.resnet(hidden_states), state, num_frames)
        hidden_states = maps.flatten(0, 1)
        return hidden_states if self.downsampler is None else self.downsampler(hidden_states), maps


class RVDConvGRU(nn.Module):
    """
    A gated recurrent unit of 3x3 convolutions (Ballas et al., 1511.06432).

    The convolutions over the new frame and the memory together are written as sums of one over each, so that those over the new
    frames are computed for all frames at once.

    Args:
        channels (`int`): Channels of frames and memory.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv_input = nn.Conv2d(channels, 3 * channels, 3, padding=1)  # for reset gate, update gate, candidate
        self.conv_gates = nn.Conv2d(channels, 2 * channels, 3, padding=1, bias=False)
        self.conv_candidate = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        # Two halves of one convolution: the fan of the whole.
        bound = (2 * channels * 9) ** -0.5
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    def forward(self, hidden_states: torch.Tensor, memory: torch.Tensor, num_frames: int) -> torch.Tensor:
        """`(B*n, D, h, w)` and the memory before, `(B, D, h, w)`, to the memory after each frame, `(B, n, D, h, w)`."""
        channels = memory.shape[1]
        inputs = self.conv_input(hidden_states).unflatten(0, (-1, num_frames))
        memories = []
        for of_gates, of_candidate in zip(*(part.unbind(1) for part in inputs.split([2 * channels, channels], dim=2))):
            reset, update = torch.sigmoid(of_gates + self.conv_gates(memory)).chunk(2, dim=1)
            candidate = torch.tanh(of_candidate + self.conv_candidate(reset * memory))
            memory = (1 - update) * memory + update * candidate
            memories.append(memory)
        return torch.stack(memories, dim=1)


class RVDPredictionHead(nn.Module):
    """
    The next frame, from the maps of a [`RVDRecurrentNetwork`].

    The finest map is not read, so that there is one level fewer than on the way down.

    Args:
        in_channels (`int`): Channels of a frame.
        block_out_channels (`tuple[int]`): Channels of the maps, finest first.
        num_groups (`int`): Groups of group normalisation.
    """

    def __init__(self, in_channels: int, block_out_channels: tuple[int, ...], num_groups: int) -> None:
        super().__init__()
        self.up_blocks, channels = nn.ModuleList(), 0
        for level in reversed(range(1, len(block_out_channels))):
            before, channels = channels + block_out_channels[level], block_out_channels[level - 1]
            self.up_blocks.append(RVDPredictionBlock2D(before, channels, num_groups))
        self.conv_out = nn.Conv2d(block_out_channels[0], in_channels, 3, padding=1)
        self.gradient_checkpointing = False

    def forward(self, maps: list[torch.Tensor]) -> torch.Tensor:
        """`(B, n, D, h, w)` of each level to `(B, n, C, H, W)`, padded as the maps are."""
        folded, hidden_states = [each.flatten(0, 1) for each in maps], None
        for block in self.up_blocks:
            args = (folded.pop(), hidden_states)
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                hidden_states = self._gradient_checkpointing_func(block, *args)
            else:
                hidden_states = block(*args)
        # With a single level there is nothing else to read.
        hidden_states = folded.pop() if hidden_states is None else hidden_states
        return self.conv_out(hidden_states).unflatten(0, maps[0].shape[:2])


class RVDPredictionBlock2D(nn.Module):
    """A level of [`RVDPredictionHead`]: residual block, upsampling."""

    def __init__(self, in_channels: int, out_channels: int, num_groups: int) -> None:
        super().__init__()
        self.resnet = RVDResnetBlock2D(in_channels, out_channels, num_groups)
        self.upsampler = nn.ConvTranspose2d(out_channels, out_channels, 4, stride=2, padding=1)

    def forward(self, skip: torch.Tensor, hidden_states: torch.Tensor | None) -> torch.Tensor:
        if hidden_states is not None:
            skip = torch.cat([hidden_states, skip], dim=1)
        return self.upsampler(self.resnet(skip))


# --------------------------------------------------------------------------------------------------------------------
# Layers of both


class RVDConvBlock(nn.Module):
    """Convolution, group normalisation, activation."""

    def __init__(self, in_channels: int, out_channels: int, num_groups: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm = nn.GroupNorm(num_groups, out_channels, eps=1e-5)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return F.leaky_relu(self.norm(self.conv(hidden_states)), SLOPE)


class RVDResnetBlock2D(nn.Module):
    """
    A residual block; the time embedding, if there is one, is added between the convolutions.

    Args:
        in_channels, out_channels (`int`): Channels.
        num_groups (`int`): Groups of group normalisation.
        emb_channels (`int`, *optional*): Width of the time embedding; `None`: there is none.
    """

    def __init__(self, in_channels: int, out_channels: int, num_groups: int, emb_channels: int | None = None) -> None:
        super().__init__()
        self.block1 = RVDConvBlock(in_channels, out_channels, num_groups)
        self.time_emb_proj = nn.Linear(emb_channels, out_channels) if emb_channels else None
        self.block2 = RVDConvBlock(out_channels, out_channels, num_groups)
        self.conv_shortcut = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else None

    def forward(self, hidden_states: torch.Tensor, emb: torch.Tensor | None = None) -> torch.Tensor:
        shortcut = hidden_states if self.conv_shortcut is None else self.conv_shortcut(hidden_states)
        hidden_states = self.block1(hidden_states)
        if self.time_emb_proj is not None:
            hidden_states = hidden_states + self.time_emb_proj(F.leaky_relu(emb, SLOPE))[:, :, None, None]
        return shortcut + self.block2(hidden_states)


class RVDLinearAttnProcessor:
    """Attention at linear cost, which none of Diffusers' backends computes: `set_attention_backend` changes nothing."""

    _attention_backend = None
    _parallel_config = None

    def __call__(self, attn: "RVDLinearAttention", hidden_states: torch.Tensor) -> torch.Tensor:
        tokens = attn.norm(hidden_states.flatten(2).transpose(1, 2))  # (B, h*w, D)
        if attn.fused_projections:
            query, key, value = attn.to_qkv(tokens).chunk(3, dim=-1)
        else:
            query, key, value = attn.to_q(tokens), attn.to_k(tokens), attn.to_v(tokens)
        query, key, value = (x.unflatten(-1, (attn.heads, -1)) for x in (query, key, value))  # (B, h*w, heads, dim)
        summary = torch.einsum("bpnd,bpne->bnde", key.softmax(dim=1), value)
        attended = torch.einsum("bpnd,bnde->bpne", query * query.shape[-1] ** -0.5, summary)
        attended = attn.to_out[0](attended.flatten(2))  # (B, h*w, D)
        return hidden_states + attended.transpose(1, 2).unflatten(2, hidden_states.shape[2:])


class RVDLinearAttention(nn.Module, AttentionModuleMixin):
    """
    Self-attention among the pixels of a feature map at a cost linear in their number (Shen et al., 1812.01243), added to it.

    Keys are normalised over pixels; queries are scaled, and not normalised as in the source.

    Args:
        channels (`int`): Channels of the feature map.
        heads (`int`): Heads.
        head_dim (`int`): Channels of a head.
    """

    _default_processor_cls = RVDLinearAttnProcessor
    _available_processors = [RVDLinearAttnProcessor]

    def __init__(self, channels: int, heads: int, head_dim: int) -> None:
        super().__init__()
        self.heads = heads
        self.use_bias = False
        self.is_cross_attention = False
        inner = heads * head_dim
        self.norm = nn.LayerNorm(channels, eps=1e-5)  # over the channels of each pixel
        self.to_q = nn.Linear(channels, inner, bias=False)
        self.to_k = nn.Linear(channels, inner, bias=False)
        self.to_v = nn.Linear(channels, inner, bias=False)
        self.to_out = nn.ModuleList([nn.Linear(inner, channels)])
        self.set_processor(self._default_processor_cls())

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.processor(self, hidden_states)


def _sinusoids(timestep: torch.Tensor, width: int) -> torch.Tensor:
    """The timestep as waves, `(B,)` -> `(B, width)`: sines before cosines, of which the slowest is 1 / 10000."""
    half = width // 2
    exponents = torch.arange(half, device=timestep.device).float() / max(half - 1, 1)
    angles = timestep.float()[:, None] * torch.exp(-math.log(10_000) * exponents)
    return F.pad(torch.cat([angles.sin(), angles.cos()], dim=1), (0, width % 2))


def _pad(frames: torch.Tensor, multiple: int) -> torch.Tensor:
    """Frames `(N, C, H, W)` up to multiples of a size, by repeating the last row and column, so that any size will do."""
    down, right = (-size % multiple for size in frames.shape[-2:])
    return F.pad(frames, (0, right, 0, down), mode="replicate") if down or right else frames


def _map_size(size: tuple[int, int], level: int, multiple: int) -> tuple[int, ...]:
    """Height and width at a level, of frames that were padded to multiples of a size."""
    return tuple((length + -length % multiple) >> level for length in size)


# --------------------------------------------------------------------------------------------------------------------
# Configs, which may come from anywhere


def _is_count(value, least: int, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _is_number(value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _check_counts(config, **bounds: tuple[int, int]) -> None:
    # Far above all use, the upper bounds keep a network from taking hours to be built.
    for name, (least, most) in bounds.items():
        if not _is_count(config[name], least, most):
            expected = f"an integer from {least} to {most:,}" if least < most else least
            raise ValueError(f"`{name}` must be {expected}, got {config[name]!r}.")


def _check_widths(config, name: str, least: int) -> None:
    widths = config[name]
    is_list = isinstance(widths, (list, tuple)) and len(widths) <= 16
    if not is_list or not widths or not all(_is_count(width, least, MOST_CHANNELS) for width in widths):
        raise ValueError(
            f"`{name}` must be a list of 1 to 16 integers from {least} to {MOST_CHANNELS:,}, got {widths!r}."
        )
    if name != "context_channels" and any(width % config.norm_num_groups for width in widths):
        raise ValueError(f"`norm_num_groups` ({config.norm_num_groups}) must divide all of `{name}`, {widths!r}.")


def _check_sample_size(config) -> None:
    sizes = config.sample_size if isinstance(config.sample_size, (list, tuple)) else [config.sample_size]
    if len(sizes) not in (1, 2) or not all(_is_count(size, 1, MOST_PIXELS) for size in sizes):
        raise ValueError(
            f"`sample_size` must be an integer from 1 to {MOST_PIXELS:,}, or (height, width), got {config.sample_size!r}."
        )


def _check_denoiser_config(config) -> None:
    _check_counts(
        config,
        in_channels=(1, MOST_CHANNELS),
        max_frames=(1, 1),
        num_context_frames=(0, 0),
        norm_num_groups=(1, MOST_CHANNELS),
        num_attention_heads=(1, 1024),
        attention_head_dim=(1, MOST_CHANNELS),
        num_train_timesteps=(1, 1_000_000),
    )
    if not _is_number(config.drop_observed) or not 0 <= config.drop_observed <= 1:
        raise ValueError(f"`drop_observed` is a probability, got {config.drop_observed!r}.")
    for name in ("has_frame_gaps", "residual"):
        if not isinstance(config[name], bool):
            raise ValueError(f"`{name}` must be one of (False, True), got {config[name]!r}.")
    if config.prediction_type not in (None, *PREDICTION_TYPES):
        raise ValueError(
            f"`prediction_type` must be one of {(None, *PREDICTION_TYPES)}, got {config.prediction_type!r}."
        )
    _check_widths(config, "block_out_channels", 4)
    given, levels = config.context_channels, len(config.block_out_channels)
    if given is not None and (not isinstance(given, (list, tuple)) or given):
        _check_widths(config, "context_channels", 1)
        if len(given) != levels:
            raise ValueError(
                f"`context_channels` must have one entry for each of the {levels} levels, or none, got {given!r}."
            )
    _check_sample_size(config)


def _check_encoder_config(config) -> None:
    _check_counts(config, in_channels=(1, MOST_CHANNELS), norm_num_groups=(1, MOST_CHANNELS))
    names = ("context_block_out_channels", "predictor_block_out_channels")
    for name in names:
        if config[name] is not None and (not isinstance(config[name], (list, tuple)) or config[name]):
            _check_widths(config, name, 1)
    if not any(config[name] for name in names):
        raise ValueError(f"`{names[0]}` and `{names[1]}` are both empty: there must be a network at least.")
    if not _is_number(config.scale) or config.scale <= 0:
        raise ValueError(f"`scale` must be a number above 0, got {config.scale!r}.")
    if config.clip_range is not None and (not _is_number(config.clip_range) or config.clip_range <= 0):
        raise ValueError(f"`clip_range` must be a number above 0 or None, got {config.clip_range!r}.")
    _check_sample_size(config)
