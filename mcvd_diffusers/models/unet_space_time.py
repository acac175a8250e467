# Copyright 2026 The mcvd-diffusers authors. Licensed under the Apache License, Version 2.0.
r"""A UNet that sees a window frame by frame: the networks of FDM, RaMViD and VDM, chosen by its config.

Sources: Harvey et al., "Flexible Diffusion Modeling of Long Videos" (FDM, 2205.11495); Höppe et al., "Diffusion Models for
Video Prediction and Infilling" (RaMViD, 2206.07696); Ho et al., "Video Diffusion Models" (VDM, 2204.03458), in the form of
the public port video-diffusion-pytorch. Their layers are in `space_time_layers`.

Letters in shape comments: `B` windows, `T` frames of a window, `C` channels of a frame, `H, W` its height and width, `D` width
of the time embedding.
"""

import inspect
import math
from dataclasses import dataclass, replace

import torch
import torch.nn as nn
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.attention import AttentionMixin
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils import BaseOutput

from .space_time_layers import (
    AdmResnetBlock,
    FrameConv,
    FrameGroupNorm,
    RelativePositionBias,
    SpaceTimeAttention,
    TransposedUpsample,
    Unet3dResnetBlock,
    Upsample,
    WindowContext,
    rotary_angles,
)


# The values of `mcvd_diffusers.FrameRole`, repeated because networks import nothing else of the package.
ABSENT, OBSERVED, LATENT = 0, 1, 2

POSITIONS = ("relative_network", "bias", "rotary", "bias_and_rotary", "none")
ROTARY_CHANNELS = 32  # of a head, at most
PIXEL_HEAD_DIM = 32  # of the attention among pixels of the backbone "unet3d"

# What a network may have been trained to predict, as `mcvd_diffusers.objectives` defines it.
PREDICTION_TYPES = ("epsilon", "v_prediction", "sample", "flow_prediction", "edm")

MOST_CHANNELS = 65_536
MOST_PIXELS = 65_536


@dataclass
class SpaceTimeUNetOutput(BaseOutput):
    """
    The output of [`SpaceTimeUNetModel`].

    Args:
        sample (`torch.Tensor` of shape `(B, T, C, H, W)`):
            The prediction (noise, velocity or clean frames, as the noise scheduler's `prediction_type` says). It means
            something at LATENT frames; at ABSENT ones it is zero.
    """

    sample: torch.Tensor


class SpaceTimeUNetModel(ModelMixin, AttentionMixin, ConfigMixin):
    r"""
    A UNet that denoises any frames of a window, given any others.

    Windows may be of any length. Frames are told apart by their roles; frames of other segments, and frames that are ABSENT, do
    not change what the network says of a frame.

    | system | backbone | convolution | attention | position | indicator |
    | --- | --- | --- | --- | --- | --- |
    | FDM | `"adm"` | `"2d"` | `"factorised"` | `"relative_network"` | yes |
    | RaMViD | `"adm"` | `"3d"` | `"joint"` | `"none"` | no |
    | VDM | `"unet3d"` | `"2d"` | `"factorised"` | `"bias_and_rotary"` | no |

    Height and width may be any: frames are padded inside the network to a multiple of `2 ** (levels - 1)`, by repeating their
    last row and column, and the output is cut.

    Args:
        sample_size (`int` or `tuple[int, int]`, *optional*, defaults to `64`):
            Height and width, in pixels, of the frames the network was made for. A pipeline generates this size when nothing
            else tells it; the network itself does not read it.
        in_channels (`int`, *optional*, defaults to `3`): Channels of *one* frame, in and out.
        max_frames (`int`, *optional*, defaults to `16`):
            Frames of a training window, and so the most that the pipeline puts into one. A statement about the weights: the
            network takes any number.
        backbone (`str`, *optional*, defaults to `"adm"`):
            `"adm"`: the UNet of Dhariwal and Nichol (2105.05233), attention at `attention_levels`. `"unet3d"`: the UNet of
            VDM's public port, two residual blocks a layer that are normalised after their convolutions, linear attention
            among pixels and attention among frames at every level.
        convolution (`str`, *optional*, defaults to `"2d"`):
            `"2d"`: each frame by itself. `"3d"`: over three frames, too; then the network cannot keep segments apart, nor see
            gaps between frames. For the backbone `"adm"`.
        attention (`str`, *optional*, defaults to `"factorised"`):
            `"factorised"`: among the same pixels of all frames, then among the pixels of each frame. `"joint"`: among all
            pixels of all frames.
        temporal_position (`str`, *optional*, defaults to `"relative_network"`):
            How attention among frames knows which frame is where: `"relative_network"` (FDM's, which knows the noise level,
            too), `"bias"` (T5's buckets), `"rotary"`, `"bias_and_rotary"`, `"none"`.
        mark_observed (`bool`, *optional*, defaults to `True`):
            Whether a plane of ones beside the channels marks OBSERVED frames. Without, the network tells them by their lack of
            noise.
        block_out_channels (`tuple[int]`, *optional*, defaults to `(128, 256, 384, 512)`): Channels of each level, finest first.
        layers_per_block (`int`, *optional*, defaults to `2`): Layers of a level on the way down; one more up for `"adm"`.
        attention_levels (`tuple[int]`, *optional*, defaults to `(2, 3)`):
            Levels with attention, 0 the finest; the middle always has it. Not read for `"unet3d"`.
        num_attention_heads (`int`, *optional*, defaults to `4`): Heads of all attention.
        attention_head_dim (`int`, *optional*): Channels of a head; `None`: those of the level divided by the heads.
        condition_dim (`int`, *optional*, defaults to `0`):
            Numbers of a vector that says what the video is about (a text, a class), beside the time embedding. For `"unet3d"`.
        dropout (`float`, *optional*, defaults to `0.0`): Dropout in the residual blocks, in `[0, 1)`.
        drop_observed (`float`, *optional*, defaults to `0.5`):
            Probability with which no frame of a window was OBSERVED in training. At 0 the network cannot generate from
            nothing; at 1 it never saw a clean frame, and given frames enter by replacement and guidance only. A statement
            about the weights, as are the following.
        has_frame_gaps (`bool`, *optional*, defaults to `False`):
            Whether the frames of a window had gaps between them in training. If not, the pipeline gives it consecutive ones.
        num_train_timesteps (`int`, *optional*, defaults to `1000`): Number of timesteps of the noise schedule.
        prediction_type (`str`, *optional*):
            What the network was trained to predict: `"epsilon"`, `"v_prediction"`, `"sample"`, `"flow_prediction"` or
            `"edm"`. With `None` the pipeline trusts its scheduler, which must then be one with a `beta_schedule`.
        original_quirks (`bool`, *optional*, defaults to `False`):
            For converted checkpoints. `"adm"` with factorised attention: attention is normalised over all frames of a pixel,
            ABSENT ones included, whose contents are then read, and added to the normalised feature map, as in FDM's code.
            `"unet3d"`: the first attention sees frames of other segments, as in the port.

    Raises:
        ValueError: If an argument is outside what is stated above.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = [
        "SpaceTimeLayer",
        "SpaceTimeDownBlock",
        "SpaceTimeMidBlock",
        "SpaceTimeUpBlock",
        "SpaceTimeAttention",
        "Unet3dResnetBlock",
    ]
    _repeated_blocks = ["SpaceTimeDownBlock", "SpaceTimeMidBlock", "SpaceTimeUpBlock"]
    _skip_layerwise_casting_patterns = ["norm", "time_embedding", "time_emb_proj", "relative_", "position_bias"]

    @register_to_config
    def __init__(
        self,
        sample_size: int | tuple[int, int] = 64,
        in_channels: int = 3,
        max_frames: int = 16,
        backbone: str = "adm",
        convolution: str = "2d",
        attention: str = "factorised",
        temporal_position: str = "relative_network",
        mark_observed: bool = True,
        block_out_channels: tuple[int, ...] = (128, 256, 384, 512),
        layers_per_block: int = 2,
        attention_levels: tuple[int, ...] = (2, 3),
        num_attention_heads: int = 4,
        attention_head_dim: int | None = None,
        condition_dim: int = 0,
        dropout: float = 0.0,
        drop_observed: float = 0.5,
        has_frame_gaps: bool = False,
        num_train_timesteps: int = 1000,
        prediction_type: str | None = None,
        original_quirks: bool = False,
    ) -> None:
        super().__init__()
        _check_config(self.config)
        is_adm, is_volume = backbone == "adm", convolution == "3d"
        width, levels = block_out_channels[0], len(block_out_channels)

        # What all layers are told: time, position, and a condition.
        self.time_embedding = nn.Sequential(
            nn.Linear(width, 4 * width), nn.SiLU() if is_adm else nn.GELU(), nn.Linear(4 * width, 4 * width)
        )
        emb_channels = 4 * width + condition_dim
        self.no_condition = nn.Parameter(torch.randn(1, condition_dim)) if condition_dim else None
        self.position_bias = None
        if temporal_position in ("bias", "bias_and_rotary"):
            self.position_bias = RelativePositionBias(num_attention_heads)

        # Layers, as the backbone has them.
        def resnet(channels: int, out_channels: int) -> nn.Module:
            if is_adm:
                sizes = {"emb_channels": emb_channels, "dropout": dropout, "is_volume": is_volume}
                return AdmResnetBlock(channels, out_channels, **sizes)
            return Unet3dResnetBlock(channels, out_channels, emb_channels=emb_channels, dropout=dropout)

        def among_frames(channels: int) -> SpaceTimeAttention:
            norm = "frames" if is_adm and original_quirks else "pixel"
            return SpaceTimeAttention(
                channels,
                heads=num_attention_heads,
                head_dim=self._head_dim(channels),
                kind="frames",
                norm=norm,
                emb_channels=emb_channels if temporal_position == "relative_network" else None,
                use_bias=is_adm,
                adds_to_normalised=is_adm and original_quirks,
            )

        def attentions(channels: int, level: int | None) -> list[nn.Module]:
            """Of a level; `None`: of the middle."""
            if not is_adm:
                sizes = {"heads": num_attention_heads, "head_dim": PIXEL_HEAD_DIM, "norm": "pixel"}
                kind, use_bias = ("pixels", False) if level is None else ("linear", "output")
                among_pixels = SpaceTimeAttention(channels, kind=kind, use_bias=use_bias, **sizes)
                return [among_pixels, among_frames(channels)]
            if level is not None and level not in attention_levels:
                return []
            sizes = {"heads": num_attention_heads, "head_dim": self._head_dim(channels), "norm": "group"}
            if attention == "joint":
                return [SpaceTimeAttention(channels, kind="window", **sizes)]
            quirk = {"adds_to_normalised": original_quirks}
            return [among_frames(channels), SpaceTimeAttention(channels, kind="pixels", **sizes, **quirk)]

        def layer(channels: int, out_channels: int, level: int) -> SpaceTimeLayer:
            resnets = [resnet(channels, out_channels)]
            if not is_adm:
                resnets.append(resnet(out_channels, out_channels))
            return SpaceTimeLayer(resnets, attentions(out_channels, level))

        # Down, middle, up. Skips are counted as they are pushed, and taken back from the last.
        num_in = in_channels + mark_observed
        self.conv_in = FrameConv(num_in, width, 3 if is_adm else 7, is_volume=is_volume)
        self.attention_in = None if is_adm else among_frames(width)
        self.down_blocks, skips, channels = nn.ModuleList(), [width], width
        for level, out_channels in enumerate(block_out_channels):
            layers = [layer(out_channels if i else channels, out_channels, level) for i in range(layers_per_block)]
            skips += [out_channels] * layers_per_block
            downsampler = None
            if level < levels - 1:
                kernel = {} if is_adm else {"kernel": 4, "padding": 1}
                sizes = {"kernel": 3, "stride": 2, "is_volume": is_volume} | kernel
                downsampler = FrameConv(out_channels, out_channels, **sizes)
                skips += [out_channels] * is_adm
            self.down_blocks.append(SpaceTimeDownBlock(layers, downsampler, is_skip=is_adm))
            channels = out_channels
        self.mid_block = SpaceTimeMidBlock(
            resnet(channels, channels), attentions(channels, None), resnet(channels, channels)
        )
        self.up_blocks = nn.ModuleList()
        for level in reversed(range(levels)):
            # The backbone "unet3d" narrows to the next finer level before it is reached.
            out_channels = block_out_channels[level if is_adm else max(level - 1, 0)]
            layers = []
            for _ in range(layers_per_block + is_adm):
                layers.append(layer(channels + skips.pop(), out_channels, level))
                channels = out_channels
            upsampler = None
            if level > 0:
                upsampler = Upsample(channels, is_volume=is_volume) if is_adm else TransposedUpsample(channels)
            self.up_blocks.append(SpaceTimeUpBlock(layers, upsampler))

        self.norm_out = FrameGroupNorm(channels) if is_adm else None
        self.resnet_out = None
        if not is_adm:
            self.resnet_out = Unet3dResnetBlock(channels + skips.pop(), width, emb_channels=0, dropout=dropout)
        self.conv_out = FrameConv(width, in_channels, 3 if is_adm else 1, is_volume=is_volume)
        if is_adm:
            nn.init.zeros_(self.conv_out.conv.weight)
            nn.init.zeros_(self.conv_out.conv.bias)
        self.gradient_checkpointing = False

    def _head_dim(self, channels: int) -> int:
        return self.config.attention_head_dim or channels // self.config.num_attention_heads

    @property
    def size_multiple(self) -> int:
        """Frames whose height or width is no multiple of this are padded inside the network, and its output is cut."""
        return 2 ** (len(self.config.block_out_channels) - 1)

    @property
    def keeps_segments_apart(self) -> bool:
        """Whether windows may hold several segments."""
        return self.config.convolution == "2d" and self.config.attention == "factorised"

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
        condition: torch.Tensor | None = None,
        has_absent: bool | None = None,
        return_dict: bool = True,
    ) -> SpaceTimeUNetOutput | tuple[torch.Tensor]:
        """
        Predict the noise (or velocity, or clean frames) of the LATENT frames of a window.

        Args:
            sample (`torch.Tensor` of shape `(B, T, C, H, W)`):
                The window: clean frames in `[-1, 1]` where OBSERVED, noisy ones where LATENT. Whatever stands at an ABSENT
                frame, NaN included, does not matter.
            timestep (`torch.Tensor`, `float` or `int`):
                Noise level in Diffusers' convention, `0` (clean) to `num_train_timesteps - 1`, as the scheduler tells it (for
                flow matching up to `num_train_timesteps`, for EDM a quarter of the noise level's logarithm): a number, or a
                tensor of shape `()`, `(1,)` or `(B,)`. It is told to all frames, OBSERVED ones included.
            roles (`torch.Tensor` of shape `(B, T)`): [`FrameRole`] of each frame: 0 ABSENT, 1 OBSERVED, 2 LATENT.
            frame_indices (`torch.Tensor` of shape `(B, T)`, *optional*):
                Positions in the video, in any order; only their differences matter. `None`: 0, 1, 2, ... With
                `temporal_position="none"` they are not read.
            segment_ids (`torch.Tensor` of shape `(B, T)`, *optional*):
                Frames see only those of their own segment: independent images beside a clip, several clips in one window.
                `None`: all are one.
            condition (`torch.Tensor` of shape `(B, condition_dim)`, *optional*):
                What the video is about; `None`: the learned vector for nothing.
            has_absent (`bool`, *optional*):
                Whether any frame is ABSENT, for callers who know it: otherwise the roles are asked, and their device waited for.
            return_dict (`bool`, *optional*, defaults to `True`): Whether to return a [`SpaceTimeUNetOutput`].

        Returns:
            [`SpaceTimeUNetOutput`] or `tuple`: The prediction of shape `(B, T, C, H, W)`.

        Raises:
            ValueError: If shapes do not fit one another, or the network cannot keep segments apart.
        """
        self._check_inputs(sample, timestep, roles, frame_indices, segment_ids, condition)
        batch_size, num_frames, _, height, width = sample.shape
        dtype, device = sample.dtype, sample.device
        # Whether all frames are there is worth knowing, since attention is faster then; compiled, it cannot depend on it.
        if torch.compiler.is_compiling():
            has_absent = True
        elif has_absent is None:
            has_absent = bool((roles == ABSENT).any())
        roles = roles.to(device)
        is_absent = (roles == ABSENT)[:, :, None, None, None]
        reads_absent = self.config.original_quirks and self.config.backbone == "adm"
        if not reads_absent:
            sample = torch.where(is_absent, 0, sample)
        if self.config.mark_observed:
            plane = (roles == OBSERVED).to(dtype)[:, :, None, None, None].expand(-1, -1, 1, height, width)
            sample = torch.cat([sample, plane], dim=2)

        emb = self._embed(timestep, condition, batch_size, sample)
        context = self._context(roles, frame_indices, segment_ids, emb, has_absent=has_absent)
        hidden_states = self._pad(sample.flatten(0, 1)).to(dtype)  # (B*T, C, H, W)
        if self.config.convolution == "3d":
            hidden_states = hidden_states.unflatten(0, (batch_size, num_frames)).transpose(1, 2)  # (B, C, T, H, W)

        hidden_states = self.conv_in(hidden_states, context)
        if self.attention_in is not None:
            seen = replace(context, mask=None) if self.config.original_quirks else context
            hidden_states = self.attention_in(hidden_states, seen)
        skips = [hidden_states]
        for block in self.down_blocks:
            hidden_states, new_skips = self._run(block, hidden_states, context)
            skips += new_skips
        hidden_states = self._run(self.mid_block, hidden_states, context)
        for block in self.up_blocks:
            block_skips = [skips.pop() for _ in block.layers]
            hidden_states = self._run(block, hidden_states, context, block_skips)
        if self.resnet_out is not None:
            # Layers may be on several devices, between which blocks move their inputs.
            skip = skips.pop().to(hidden_states.device)
            hidden_states = self.resnet_out(torch.cat([hidden_states, skip], dim=1), context)
        else:
            hidden_states = F.silu(self.norm_out(hidden_states, context))
        output = self.conv_out(hidden_states, context)

        if output.ndim == 5:
            output = output.transpose(1, 2)
        output = output.reshape(batch_size, num_frames, *output.shape[-3:])[..., :height, :width]
        if not reads_absent:
            output = torch.where(is_absent.to(output.device), 0, output)
        if not return_dict:
            return (output,)
        return SpaceTimeUNetOutput(sample=output)

    def _embed(self, timestep, condition: torch.Tensor | None, batch_size: int, sample: torch.Tensor) -> torch.Tensor:
        """Timestep and condition as one vector for each window, `(B, D)`, on the sample's device."""
        # Not the weights' device, who may be elsewhere until their layer's turn comes.
        device, width = sample.device, self.config.block_out_channels[0]
        if not torch.is_tensor(timestep):
            timestep = torch.tensor([timestep], dtype=torch.float32, device=device)
        timestep = timestep.to(device).reshape(-1).expand(batch_size)
        is_adm = self.config.backbone == "adm"
        emb = self.time_embedding(_sinusoids(timestep, width, is_cosine_first=is_adm).to(sample.dtype)).to(device)
        if self.no_condition is not None:
            condition = self.no_condition.expand(batch_size, -1) if condition is None else condition
            emb = torch.cat([emb, condition.to(emb)], dim=1)
        return emb

    def _context(self, roles, frame_indices, segment_ids, emb: torch.Tensor, *, has_absent: bool) -> WindowContext:
        """Which frames see which, and where they are."""
        device = emb.device
        if frame_indices is None:
            frame_indices = torch.arange(roles.shape[1], device=device).expand_as(roles)
        frame_indices, is_absent = frame_indices.to(device), roles == ABSENT
        distances = frame_indices[:, :, None] - frame_indices[:, None, :]
        mask = None
        if has_absent or segment_ids is not None:
            groups = torch.zeros_like(roles) if segment_ids is None else segment_ids.to(device)
            # Frames that are not there see one another, so that nothing is divided by zero, and nobody sees them.
            mask = (groups[:, :, None] == groups[:, None, :]) & (is_absent[:, :, None] == is_absent[:, None, :])
        context = WindowContext(
            num_frames=roles.shape[1],
            mask=mask,
            presence=~is_absent if has_absent and self.config.convolution == "3d" else None,
            distances=distances,
            emb=emb,
        )
        if self.position_bias is not None:
            context.bias = self.position_bias(distances).to(device)
        if self.config.temporal_position in ("rotary", "bias_and_rotary"):
            head_dim = self._head_dim(min(self.config.block_out_channels))
            # Counted from the first frame: far into a video, float32 has no digits left for the angle between neighbours.
            places = frame_indices - frame_indices[:, :1]
            context.rotary = rotary_angles(places, min(ROTARY_CHANNELS, head_dim // 2 * 2))
        return context

    def _run(self, block: nn.Module, *args):
        if torch.is_grad_enabled() and self.gradient_checkpointing:
            return self._gradient_checkpointing_func(block, *args)
        return block(*args)

    def _pad(self, frames: torch.Tensor) -> torch.Tensor:
        """Frames up to multiples of `size_multiple`, by repeating the last row and column, so that any size will do."""
        down, right = (-size % self.size_multiple for size in frames.shape[-2:])
        return F.pad(frames, (0, right, 0, down), mode="replicate") if down or right else frames

    def _check_inputs(self, sample, timestep, roles, frame_indices, segment_ids, condition) -> None:
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
        if segment_ids is not None and not self.keeps_segments_apart:
            raise ValueError(
                "`segment_ids` must be None for this network: its convolutions or its attention see all frames of a window"
                ' at once. One with `convolution="2d"` and `attention="factorised"` keeps segments apart.'
            )
        shape = (sample.shape[0], self.config.condition_dim)
        if condition is not None and (not self.config.condition_dim or tuple(condition.shape) != shape):
            raise ValueError(
                f"`condition` must have shape {shape}, got {tuple(condition.shape)}."
                if self.config.condition_dim
                else "`condition` must be None: this network takes none (its `condition_dim` is 0)."
            )


class SpaceTimeLayer(nn.Module):
    """Residual blocks, then attention, if any."""

    def __init__(self, resnets: list[nn.Module], attentions: list[nn.Module]) -> None:
        super().__init__()
        self.resnets, self.attentions = nn.ModuleList(resnets), nn.ModuleList(attentions)

    def forward(self, hidden_states: torch.Tensor, context: WindowContext) -> torch.Tensor:
        for module in (*self.resnets, *self.attentions):
            hidden_states = module(hidden_states, context)
        return hidden_states


class SpaceTimeDownBlock(nn.Module):
    """A level on the way down: layers, each of which leaves a skip, then downsampling, which may leave one."""

    def __init__(self, layers: list[SpaceTimeLayer], downsampler: nn.Module | None, *, is_skip: bool) -> None:
        super().__init__()
        self.layers, self.downsampler, self.is_skip = nn.ModuleList(layers), downsampler, is_skip

    def forward(self, hidden_states: torch.Tensor, context: WindowContext) -> tuple[torch.Tensor, list[torch.Tensor]]:
        skips = []
        for layer in self.layers:
            hidden_states = layer(hidden_states, context)
            skips.append(hidden_states)
        if self.downsampler is not None:
            hidden_states = self.downsampler(hidden_states, context)
            skips += [hidden_states] if self.is_skip else []
        return hidden_states, skips


class SpaceTimeMidBlock(nn.Module):
    """The coarsest level: residual block, attention, residual block."""

    def __init__(self, first: nn.Module, attentions: list[nn.Module], last: nn.Module) -> None:
        super().__init__()
        self.resnets, self.attentions = nn.ModuleList([first, last]), nn.ModuleList(attentions)

    def forward(self, hidden_states: torch.Tensor, context: WindowContext) -> torch.Tensor:
        for module in (self.resnets[0], *self.attentions, self.resnets[1]):
            hidden_states = module(hidden_states, context)
        return hidden_states


class SpaceTimeUpBlock(nn.Module):
    """A level on the way up: layers, each of which takes a skip, then upsampling."""

    def __init__(self, layers: list[SpaceTimeLayer], upsampler: nn.Module | None) -> None:
        super().__init__()
        self.layers, self.upsampler = nn.ModuleList(layers), upsampler

    def forward(self, hidden_states: torch.Tensor, context: WindowContext, skips: list[torch.Tensor]) -> torch.Tensor:
        for layer, skip in zip(self.layers, skips):
            hidden_states = layer(torch.cat([hidden_states, skip], dim=1), context)
        if self.upsampler is not None:
            hidden_states = self.upsampler(hidden_states, context)
        return hidden_states


def _sinusoids(timestep: torch.Tensor, width: int, *, is_cosine_first: bool) -> torch.Tensor:
    """
    The timestep as waves, `(B,)` -> `(B, width)`: cosines before sines, of which the slowest is just above 1 / 10000; or sines
    before cosines, of which the slowest is 1 / 10000.
    """
    half = width // 2
    steps = half if is_cosine_first else half - 1
    frequencies = torch.exp(-math.log(10_000) * torch.arange(half, device=timestep.device).float() / max(steps, 1))
    angles = timestep.float()[:, None] * frequencies
    waves = [angles.cos(), angles.sin()] if is_cosine_first else [angles.sin(), angles.cos()]
    return F.pad(torch.cat(waves, dim=1), (0, width % 2))


def _check_config(config) -> None:
    def is_count(value, least: int) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and value >= least

    # A config may come from anywhere. Far above all use, the upper bounds keep a network from taking hours to be built.
    for name, least, most in (
        ("in_channels", 1, MOST_CHANNELS),
        ("max_frames", 1, 1_000_000),
        ("layers_per_block", 1, 64),
        ("num_attention_heads", 1, 1024),
        ("condition_dim", 0, MOST_CHANNELS),
        ("num_train_timesteps", 1, 1_000_000),
    ):
        if not is_count(config[name], least) or config[name] > most:
            raise ValueError(f"`{name}` must be an integer from {least} to {most:,}, got {config[name]!r}.")
    for name in ("dropout", "drop_observed"):
        value = config[name]
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not is_number or not 0 <= value <= 1 or (name == "dropout" and value == 1):
            raise ValueError(f"`{name}` is a probability, got {value!r}.")
    for name, allowed in (
        ("backbone", ("adm", "unet3d")),
        ("convolution", ("2d", "3d")),
        ("attention", ("factorised", "joint")),
        ("temporal_position", POSITIONS),
        ("mark_observed", (False, True)),
        ("has_frame_gaps", (False, True)),
        ("original_quirks", (False, True)),
        ("prediction_type", (None, *PREDICTION_TYPES)),
    ):
        # 1 equals True and 0 False; in a config they are something else.
        if config[name] not in allowed or type(config[name]) not in map(type, allowed):
            raise ValueError(f"`{name}` must be one of {allowed}, got {config[name]!r}.")
    if config.backbone == "unet3d" and (config.convolution != "2d" or config.attention != "factorised"):
        raise ValueError('`backbone="unet3d"` has `convolution="2d"` and `attention="factorised"` only.')
    if config.attention == "joint" and config.temporal_position != "none":
        raise ValueError(
            '`attention="joint"` is among pixels, which have no position: `temporal_position` must be "none", got'
            f" {config.temporal_position!r}."
        )
    if config.backbone == "adm" and config.condition_dim:
        raise ValueError(
            f'`condition_dim` is for `backbone="unet3d"`; for "adm" it must be 0, got {config.condition_dim}.'
        )
    widths = config.block_out_channels
    if (
        not isinstance(widths, (list, tuple))
        or not 1 <= len(widths) <= 16
        or not all(is_count(width, 4) and width <= MOST_CHANNELS for width in widths)
    ):
        raise ValueError(
            f"`block_out_channels` must be a list of 1 to 16 integers from 4 to {MOST_CHANNELS:,}, got {widths!r}."
        )
    levels = config.attention_levels
    if not isinstance(levels, (list, tuple)) or not all(
        is_count(level, 0) and level < len(widths) for level in levels
    ):
        raise ValueError(
            f"`attention_levels` must be a list of levels from 0, the finest, to {len(widths) - 1}, got {levels!r}."
        )
    heads, head_dim = config.num_attention_heads, config.attention_head_dim
    if head_dim is not None and (not is_count(head_dim, 1) or head_dim > MOST_CHANNELS):
        raise ValueError(f"`attention_head_dim` must be a positive integer or None, got {head_dim!r}.")
    if head_dim is None:
        attended = [widths[level] for level in range(len(widths)) if config.backbone == "unet3d" or level in levels]
        for width in [*attended, widths[-1]]:
            if width % heads:
                raise ValueError(
                    f"`num_attention_heads` ({heads}) must divide the channels of every level with attention, which the"
                    f" middle is too; {width} channels do not divide. Or give `attention_head_dim`."
                )
    if config.temporal_position in ("rotary", "bias_and_rotary") and (head_dim or min(widths) // heads) < 2:
        raise ValueError("`temporal_position`: a head must have two channels at least to be turned.")
    sizes = config.sample_size if isinstance(config.sample_size, (list, tuple)) else [config.sample_size]
    if len(sizes) not in (1, 2) or not all(is_count(size, 1) and size <= MOST_PIXELS for size in sizes):
        raise ValueError(
            f"`sample_size` must be an integer from 1 to {MOST_PIXELS:,}, or (height, width), got {config.sample_size!r}."
        )
