# Copyright 2026 The mcvd-diffusers authors. Licensed under the Apache License, Version 2.0.
r"""The network of MCVD: a 2D UNet that sees a window of frames stacked on its channels.

Source: Voleti, Jolicoeur-Martineau, Pal, "MCVD: Masked Conditional Video Diffusion for Prediction, Generation, and
Interpolation", NeurIPS 2022 (https://huggingface.co/papers/2205.09853), section 3 and appendix A. The residual blocks
are those of BigGAN in the form of Song et al., "Score-Based Generative Modeling through SDEs" (2011.13456, appendix
H.1): finite-impulse-response resampling inside the block, every residual sum divided by the square root of two.

The file is self-contained (Diffusers' policy for model files) and depends on torch and Diffusers only.

Letters in shape comments: `B` videos, `T = p + k + f` frames of a window (past, current, future), `C` channels of a
frame, `H, W` its height and width, `h, w` the height and width at some level of the UNet, `D` width of the embedding.
"""

import contextlib
import inspect
import math
from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.hooks.group_offloading import _is_group_offload_enabled
from diffusers.models.attention import AttentionMixin, AttentionModuleMixin
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.embeddings import TimestepEmbedding
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils import BaseOutput
from diffusers.utils.accelerate_utils import apply_forward_hook


# The values of `mcvd_diffusers.FrameRole`, repeated because this file imports nothing of the package.
ABSENT, OBSERVED, LATENT = 0, 1, 2

SQRT2 = 2**0.5

# The original sets the last layer of every residual branch to nearly zero: a variance scale of 1e-10 (DDPM's 0, made
# positive), which is a gain of 1e-5. Queries, keys and values have a variance scale of 0.1.
GAIN_OUT = 1e-5
GAIN_QKV = 0.1**0.5

# Of attention, whose weights are kept at once on a CPU: 128 MB of them in half precision.
MOST_PAIRS = 1 << 26

# What a network may have been trained to predict, as `mcvd_diffusers.objectives` defines it.
PREDICTION_TYPES = ("epsilon", "v_prediction", "sample", "flow_prediction", "edm")

MOST_CHANNELS = 65_536
MOST_PIXELS = 65_536

# What `encode_conditioning` returns: `None`, a tensor, or nested tuples of tensors in the order of the blocks.
Conditioning = torch.Tensor | tuple | None


@dataclass
class MCVDUNet2DOutput(BaseOutput):
    """
    The output of [`MCVDUNet2DModel`].

    Args:
        sample (`torch.Tensor` of shape `(B, T, C, H, W)`):
            The prediction (noise, velocity or clean frames, as the noise scheduler's `prediction_type` says) at the
            frames that are LATENT; zero at all others.
    """

    sample: torch.Tensor


class MCVDUNet2DModel(ModelMixin, AttentionMixin, ConfigMixin):
    r"""
    A 2D UNet that denoises a block of consecutive frames, given past frames, future frames, both or neither.

    A window holds `T = num_past_frames + num_frames + num_future_frames` consecutive frames in time order. Its frames
    are stacked on the channels, so time costs no 3D convolution. How the past and the future enter is a choice:

    * `conditioning="concat"`: they are more input channels beside the noisy frames;
    * `conditioning="spatin"`: SPATIN, the paper's space-time adaptive normalisation. All normalisations of the
      residual blocks get their scale and shift, per pixel, from convolutions over the past and future frames.

    Height and width may differ from `sample_size` and from one another. They may be any: frames are padded inside the
    network to a multiple of `patch_size * 2 ** (levels - 1)`, by repeating their last row and column, and the output is cut.

    Args:
        sample_size (`int` or `tuple[int, int]`, *optional*, defaults to `64`):
            Height and width, in pixels, of the frames the network was made for. A pipeline generates this size when
            nothing else tells it; the network itself does not read it.
        in_channels (`int`, *optional*, defaults to `3`):
            Channels of *one* frame, in and out.
        num_past_frames (`int`, *optional*, defaults to `5`): Frames before the block, 0 or more.
        num_frames (`int`, *optional*, defaults to `5`): Frames of the block that is denoised, 1 or more.
        num_future_frames (`int`, *optional*, defaults to `0`): Frames after the block, 0 or more.
        conditioning (`str`, *optional*, defaults to `"concat"`): `"concat"` or `"spatin"`.
        spatin_channels (`int`, *optional*, defaults to `128`):
            Hidden channels of SPATIN's convolutions. Not read when `conditioning="concat"`.
        down_block_types (`tuple[str]`, *optional*, defaults to `("DownBlock2D",) + ("AttnDownBlock2D",) * 3`):
            One of `"DownBlock2D"` and `"AttnDownBlock2D"` for each level, finest first. The way up mirrors it.
        block_out_channels (`tuple[int]`, *optional*, defaults to `(64, 128, 192, 256)`):
            Channels of each level, finest first, 4 or more each.
        conv_in_channels (`int`, *optional*):
            Channels after the first convolution, 4 or more, which is also the width of the sinusoidal time embedding.
            `None`: those of the first level.
        layers_per_block (`int`, *optional*, defaults to `2`): Residual blocks of a level on the way down; one more up.
        attention_head_dim (`int`, *optional*):
            Channels of one attention head. Levels with fewer channels have one head; for the others it must divide
            the channels. `None` is one head everywhere.
        dropout (`float`, *optional*, defaults to `0.0`): Dropout in the residual blocks, in `[0, 1)`.
        embed_past_kept (`bool`, *optional*, defaults to `False`):
            Whether the network is told, in its time embedding, if the past is there: row 1 of an embedding when at
            least one past frame is OBSERVED, row 0 when none is. (The original's `cond_emb`. It says nothing of the
            future, as in the original.)
        drop_past (`float`, *optional*, defaults to `0.5`):
            Probability with which the whole past was ABSENT in training. At 0 the network knows no missing past
            frame, and the pipeline refuses tasks that would need it. A statement about the weights: it changes
            nothing in the network.
        drop_future (`float`, *optional*, defaults to `0.5`): The same for the future frames.
        num_train_timesteps (`int`, *optional*, defaults to `1000`): Number of timesteps of the noise schedule.
        prediction_type (`str`, *optional*):
            What the network was trained to predict: `"epsilon"`, `"v_prediction"`, `"sample"`, `"flow_prediction"` or
            `"edm"`. With `None` the pipeline trusts its scheduler, which must then be one with a `beta_schedule`. A statement about the weights, as `drop_past`.
        context_channels (`int`, *optional*, defaults to `0`):
            Channels of the feature map of a context encoder, such as [`LGCVDContextEncoder`], which the network then looks at in
            its middle and cannot do without (as LGC-VD's does, 2306.02562). 0: there is none.
        observed_noise (`float`, *optional*, defaults to `0.0`):
            Most noise that OBSERVED frames had in training, as a share of what they became, in `[0, 1)`. Above 0 the network is told,
            in its time embedding, how much there is.
        patch_size (`int`, *optional*, defaults to `1`):
            Side of the squares of pixels that go to channels before the first convolution, and come back after the last: all
            levels are so much smaller, and the network about its square times as cheap (as in "simple diffusion",
            2301.11093). 1: the paper's network, every pixel at the first level.
        residual (`bool`, *optional*, defaults to `False`):
            Whether the network makes what a context encoder, such as [`RVDContextEncoder`], did not predict of the frames (as
            RVD's does, 2203.09481). A statement about the weights, as `drop_past`.

    Raises:
        ValueError: If an argument is outside what is stated above.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["MCVDResnetBlock2D", "MCVDDownBlock2D", "MCVDMidBlock2D", "MCVDUpBlock2D"]
    _repeated_blocks = ["MCVDDownBlock2D", "MCVDMidBlock2D", "MCVDUpBlock2D"]
    _skip_layerwise_casting_patterns = ["norm", "time_embedding", "time_emb_proj", "past_embedding", "noise_embedding"]

    @register_to_config
    def __init__(
        self,
        sample_size: int | tuple[int, int] = 64,
        in_channels: int = 3,
        num_past_frames: int = 5,
        num_frames: int = 5,
        num_future_frames: int = 0,
        conditioning: str = "concat",
        spatin_channels: int = 128,
        down_block_types: tuple[str, ...] = ("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
        block_out_channels: tuple[int, ...] = (64, 128, 192, 256),
        conv_in_channels: int | None = None,
        layers_per_block: int = 2,
        attention_head_dim: int | None = None,
        dropout: float = 0.0,
        embed_past_kept: bool = False,
        drop_past: float = 0.5,
        drop_future: float = 0.5,
        num_train_timesteps: int = 1000,
        prediction_type: str | None = None,
        context_channels: int = 0,
        residual: bool = False,
        observed_noise: float = 0.0,
        patch_size: int = 1,
    ) -> None:
        super().__init__()
        _check_config(self.config)

        num_cond_frames = num_past_frames + num_future_frames
        patch_channels = in_channels * patch_size**2  # of a frame, when its squares have gone to channels
        cond_channels = num_cond_frames * patch_channels
        width = block_out_channels[0] if conv_in_channels is None else conv_in_channels
        has_attention = [kind == "AttnDownBlock2D" for kind in down_block_types]

        self.time_embedding = TimestepEmbedding(width, 4 * width)
        embedding_dim = 4 * width
        self.past_embedding = None
        if embed_past_kept:
            self.past_embedding = nn.Embedding(2, width // 2)
            embedding_dim += width // 2

        self.observed_noise_embedding = None
        if observed_noise > 0:
            self.observed_noise_embedding = TimestepEmbedding(width, 4 * width)

        # Input. The frames that stay the same from step to step have a convolution of their own, so that its output
        # can be computed once a window; the sum of the two is the convolution of all channels together.
        self.conv_in = nn.Conv2d(num_frames * patch_channels, width, 3, padding=1)
        self.conv_cond = None
        if conditioning == "concat" and num_cond_frames > 0:
            self.conv_cond = nn.Conv2d(cond_channels, width, 3, padding=1, bias=False)

        block_args = {
            "embedding_dim": embedding_dim,
            "dropout": dropout,
            # (channels read, hidden channels) of SPATIN; None: a plain normalisation
            "spatin": (cond_channels, spatin_channels) if conditioning == "spatin" else None,
        }

        self.down_blocks = nn.ModuleList()
        skip_channels = [width]  # channels of the tensors that the way up takes back, in the order they are pushed
        channels = width
        for level, out_channels in enumerate(block_out_channels):
            is_last = level == len(block_out_channels) - 1
            block = MCVDDownBlock2D(
                channels,
                out_channels,
                num_layers=layers_per_block,
                add_attention=has_attention[level],
                head_dim=attention_head_dim,
                add_downsample=not is_last,
                **block_args,
            )
            self.down_blocks.append(block)
            channels = out_channels
            skip_channels += [out_channels] * (layers_per_block + (not is_last))

        self.mid_block = MCVDMidBlock2D(
            channels, head_dim=attention_head_dim, context_channels=context_channels, **block_args
        )

        self.up_blocks = nn.ModuleList()
        for level, out_channels in reversed(list(enumerate(block_out_channels))):
            block = MCVDUpBlock2D(
                channels,
                out_channels,
                skip_channels=[skip_channels.pop() for _ in range(layers_per_block + 1)],
                add_attention=has_attention[level],
                head_dim=attention_head_dim,
                add_upsample=level > 0,
                **block_args,
            )
            self.up_blocks.append(block)
            channels = out_channels

        if conditioning == "spatin":
            self.conv_norm_out = MCVDSpatinNorm(channels, *block_args["spatin"])
        else:
            self.conv_norm_out = MCVDGroupNorm(_num_groups(channels), channels, eps=1e-5)
        self.conv_out = nn.Conv2d(channels, num_frames * patch_channels, 3, padding=1)

        self.gradient_checkpointing = False
        self._init_weights()

    def _init_weights(self) -> None:
        """The original's initialisation: uniform, variance scaling by the average of fan-in and fan-out."""
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for module in self.modules():
            if isinstance(module, MCVDResnetBlock2D):
                nn.init.xavier_uniform_(module.conv2.weight, gain=GAIN_OUT)
            elif isinstance(module, MCVDAttention):
                for linear in (module.to_q, module.to_k, module.to_v):
                    nn.init.xavier_uniform_(linear.weight, gain=GAIN_QKV)
                nn.init.xavier_uniform_(module.to_out[0].weight, gain=GAIN_OUT)
        if self.observed_noise_embedding is not None:  # until it has learned, it says nothing
            nn.init.zeros_(self.observed_noise_embedding.linear_2.weight)
        nn.init.xavier_uniform_(self.conv_out.weight, gain=GAIN_OUT)
        if self.conv_cond is not None:  # two halves of one convolution: the fans of the whole
            fan_out = self.conv_in.out_channels
            fan_in = self.conv_in.in_channels + self.conv_cond.in_channels
            for conv in (self.conv_in, self.conv_cond):
                gain = ((conv.in_channels + fan_out) / (fan_in + fan_out)) ** 0.5
                nn.init.xavier_uniform_(conv.weight, gain=gain)

    @property
    def num_window_frames(self) -> int:
        """`T`, the number of frames of a window: past, current and future."""
        return self.config.num_past_frames + self.config.num_frames + self.config.num_future_frames

    @property
    def context_widths(self) -> tuple[int, ...]:
        """Channels of each feature map of a context encoder that the network is told; none if it has none."""
        return (self.config.context_channels,) if self.config.context_channels else ()

    @property
    def size_multiple(self) -> int:
        """Frames whose height or width is no multiple of this are padded inside the network, and its output is cut."""
        return self.config.patch_size * 2 ** (len(self.config.block_out_channels) - 1)

    def compile_repeated_blocks(self, *args, **kwargs) -> None:
        """
        Compile the levels one by one; the arguments are those of [`~ModelMixin.compile_repeated_blocks`].

        Levels are of one class and of different widths, so that torch.compile would take the second for the first one
        recompiled. Where it can, it is told to keep them apart (`isolate_recompiles`): each is compiled once.
        """
        if "isolate_recompiles" in inspect.signature(torch.compile).parameters:
            kwargs.setdefault("isolate_recompiles", True)
        super().compile_repeated_blocks(*args, **kwargs)

    @apply_forward_hook
    def encode_conditioning(self, sample: torch.Tensor, roles: torch.Tensor) -> Conditioning:
        """
        Compute what depends on the observed frames only, once for all denoising steps of a window.

        For `"concat"` it is the conditioning half of the input convolution, for `"spatin"` the scale and shift of
        every normalisation. A result for one video can be used with a larger batch of samples of that video: it is
        broadcast.

        Args:
            sample (`torch.Tensor` of shape `(B, T, C, H, W)`, in `[-1, 1]`):
                The window. Only its OBSERVED past and future frames are read.
            roles (`torch.Tensor` of shape `(B, T)`): See [`~MCVDUNet2DModel.forward`].

        Returns:
            The value for `forward`'s argument `conditioning`. It is tied to the weights and to the frames' size.

        Raises:
            ValueError: If the shape of `sample` or `roles` is not that of a window.
            RuntimeError: With group offloading, which brings a block's weights when its `forward` is called, and not here.
        """
        if not torch.compiler.is_compiling() and _is_group_offload_enabled(self):
            raise RuntimeError(
                "`encode_conditioning` does not work with group offloading, which brings weights for `forward` only: call"
                " `forward` without `conditioning`."
            )
        self._check_inputs(sample, roles)
        frames = self._observed_frames(self._pad(sample), roles)
        if frames is None:
            return None
        if self.conv_cond is not None:
            return self.conv_cond(frames)
        height, width = frames.shape[-2:]
        sizes = [(height >> level, width >> level) for level in range(len(self.down_blocks))]
        return (
            tuple(block.encode_conditioning(frames, size) for block, size in zip(self.down_blocks, sizes)),
            self.mid_block.encode_conditioning(frames, sizes[-1]),
            tuple(block.encode_conditioning(frames, size) for block, size in zip(self.up_blocks, reversed(sizes))),
            self.conv_norm_out.encode_conditioning(frames, sizes[0]),
        )

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | float | int,
        roles: torch.Tensor,
        frame_indices: torch.Tensor | None = None,
        segment_ids: torch.Tensor | None = None,
        conditioning: Conditioning = None,
        context: tuple[torch.Tensor, ...] | None = None,
        observed_noise: torch.Tensor | None = None,
        return_dict: bool = True,
    ) -> MCVDUNet2DOutput | tuple[torch.Tensor]:
        """
        Predict the noise (or velocity, or clean frames) of the window's block of frames.

        Args:
            sample (`torch.Tensor` of shape `(B, T, C, H, W)`):
                The window in time order: clean frames in `[-1, 1]` where OBSERVED, noisy ones where LATENT. Whatever
                stands at an ABSENT frame, NaN included, does not matter: the network gets zero there.
            timestep (`torch.Tensor`, `float` or `int`):
                Noise level in Diffusers' convention, `0` (clean) to `num_train_timesteps - 1`, as the scheduler tells it (for
                flow matching up to `num_train_timesteps`, for EDM a quarter of the noise level's logarithm): a number, or a
                tensor of shape `()`, `(1,)` or `(B,)`.
            roles (`torch.Tensor` of shape `(B, T)`):
                [`FrameRole`] of each frame: 0 ABSENT, 1 OBSERVED, 2 LATENT. The `num_frames` frames of the block are
                LATENT (or ABSENT); past and future frames are OBSERVED or ABSENT, and count as ABSENT if LATENT.
            frame_indices (`torch.Tensor` of shape `(B, T)`, *optional*):
                Positions in the video. Part of the signature that all networks share; this one does not read it,
                because its frames are consecutive by construction.
            segment_ids (`torch.Tensor` of shape `(B, T)`, *optional*):
                Must be `None`: frames that are stacked on channels cannot be kept apart.
            conditioning (*optional*):
                The result of [`~MCVDUNet2DModel.encode_conditioning`] for the same observed frames. `None` computes
                it here. When given, the past and future frames of `sample` are not read.
            context (`tuple[torch.Tensor]`, *optional*):
                The `features` of a context encoder, one map `(B, context_channels, h, w)`, if the network has one.
            observed_noise (`torch.Tensor` of shape `(B,)`, *optional*):
                How much noise is in the OBSERVED frames, as a share, 0 to 1; by default none.
            return_dict (`bool`, *optional*, defaults to `True`): Whether to return an [`MCVDUNet2DOutput`].

        Returns:
            [`MCVDUNet2DOutput`] or `tuple`: The prediction of shape `(B, T, C, H, W)`, zero outside the block.

        Raises:
            ValueError: If the shape of `sample` or `roles` is not that of a window, `segment_ids` is given, or `context` or
                `observed_noise` is not what the network needs.
        """
        self._check_inputs(sample, roles)
        self._check_context(context, len(sample))
        if observed_noise is not None and self.observed_noise_embedding is None:
            raise ValueError(
                "`observed_noise` must be None: this network was not trained with noise on given frames (`observed_noise` of its"
                " config is 0)."
            )
        if segment_ids is not None:
            raise ValueError(
                "`segment_ids` must be None for MCVDUNet2DModel: its frames are stacked on channels, so it cannot keep"
                " segments apart. Pass one video per batch item."
            )
        past, current = self.config.num_past_frames, self.config.num_frames
        batch_size, num_window_frames, _, height, width = sample.shape
        sample = self._pad(sample)

        # Observed frames, unless their conditioning came with the call.
        if conditioning is None:
            conditioning = self._observed_frames(sample, roles)
            if self.conv_cond is not None:
                conditioning = self.conv_cond(conditioning)
        down_cond = mid_cond = up_cond = out_cond = None
        if self.config.conditioning == "spatin":
            # Either precomputed, block by block, or the frames themselves, from which each normalisation computes
            # its own: then nothing has to be stored, and gradient checkpointing covers it.
            is_encoded = isinstance(conditioning, tuple)
            down_cond, mid_cond, up_cond, out_cond = conditioning if is_encoded else (conditioning,) * 4

        # Time. The network counts from pure noise to clean (the original's labels), Diffusers the other way round.
        if not torch.is_tensor(timestep):
            timestep = torch.tensor([timestep], dtype=torch.float32, device=sample.device)
        timestep = timestep.to(sample.device).reshape(-1).expand(batch_size)
        label = (self.config.num_train_timesteps - 1) - timestep.float()
        num_waves = self.conv_in.out_channels
        emb = self.time_embedding(_sinusoids(label, num_waves).to(sample.dtype))  # (B, 4 * num_waves)
        if self.observed_noise_embedding is not None:
            share = label.new_zeros(batch_size) if observed_noise is None else observed_noise.to(label)
            waves = _sinusoids(share * (self.config.num_train_timesteps - 1), num_waves)
            emb = emb + self.observed_noise_embedding(waves.to(sample.dtype))
        if self.past_embedding is not None:
            is_past_kept = (roles[:, :past] == OBSERVED).any(dim=1)
            emb = torch.cat([emb, self.past_embedding(is_past_kept.long()).to(emb.dtype)], dim=1)  # (B, D)
        emb = F.silu(emb)

        # Input.
        is_present = (roles[:, past : past + current] != ABSENT)[:, :, None, None, None]
        hidden_states = torch.where(is_present, sample[:, past : past + current], 0)
        # Channels last, which a CPU keeps from here on: convolutions are faster so, and attention finds its tokens without a copy.
        hidden_states = self._to_patches(hidden_states.flatten(1, 2)).contiguous(memory_format=torch.channels_last)
        hidden_states = self.conv_in(hidden_states)  # (B, width, H, W)
        if self.conv_cond is not None:
            hidden_states = hidden_states + conditioning

        # Down, middle, up.
        skips = [hidden_states]
        for block, cond in zip(self.down_blocks, _split(down_cond, len(self.down_blocks))):
            hidden_states, new_skips = self._run(block, hidden_states, emb, cond)
            skips += new_skips
        hidden_states = self._run(self.mid_block, hidden_states, emb, mid_cond, context[0] if context else None)
        for block, cond in zip(self.up_blocks, _split(up_cond, len(self.up_blocks))):
            block_skips = [skips.pop() for _ in block.resnets]
            hidden_states = self._run(block, hidden_states, emb, cond, block_skips)

        # Output.
        if isinstance(self.conv_norm_out, MCVDSpatinNorm):
            hidden_states = self.conv_norm_out(hidden_states, out_cond)
        else:
            hidden_states = self.conv_norm_out(hidden_states)
        hidden_states = self.conv_out(F.silu(hidden_states))  # (B, k*C*s*s, H/s, W/s)
        if self.config.patch_size > 1:
            hidden_states = F.pixel_shuffle(hidden_states, self.config.patch_size)
        hidden_states = hidden_states.unflatten(1, (current, -1))[..., :height, :width]  # (B, k, C, H, W)
        future = num_window_frames - past - current
        output = F.pad(hidden_states, (0, 0, 0, 0, 0, 0, past, future))  # (B, T, C, H, W)

        if not return_dict:
            return (output,)
        return MCVDUNet2DOutput(sample=output)

    def _pad(self, sample: torch.Tensor) -> torch.Tensor:
        """Frames up to multiples of `size_multiple`, by repeating the last row and column, so that any size will do."""
        down, right = (-size % self.size_multiple for size in sample.shape[-2:])
        if not down and not right:
            return sample
        return F.pad(sample.flatten(1, 2), (0, right, 0, down), mode="replicate").unflatten(1, sample.shape[1:3])

    def _to_patches(self, frames: torch.Tensor) -> torch.Tensor:
        """Squares of pixels to channels: `(B, n, H, W)` to `(B, n * s * s, H / s, W / s)`, `s` being `patch_size`."""
        return frames if self.config.patch_size == 1 else F.pixel_unshuffle(frames, self.config.patch_size)

    def _run(self, block: nn.Module, *args):
        if torch.is_grad_enabled() and self.gradient_checkpointing:
            return self._gradient_checkpointing_func(block, *args)
        return block(*args)

    def _observed_frames(self, sample: torch.Tensor, roles: torch.Tensor) -> torch.Tensor | None:
        """Past and future frames on channels, frame by frame, zero where not OBSERVED: (B, (p + f) * C, H, W)."""
        past = self.config.num_past_frames
        future = past + self.config.num_frames  # index of the first future frame
        if past == 0 and self.config.num_future_frames == 0:
            return None
        frames = torch.cat([sample[:, :past], sample[:, future:]], dim=1)
        is_observed = torch.cat([roles[:, :past], roles[:, future:]], dim=1) == OBSERVED
        frames = self._to_patches(torch.where(is_observed[:, :, None, None, None], frames, 0).flatten(1, 2))
        return frames.contiguous(memory_format=torch.channels_last)

    def _check_context(self, context: tuple[torch.Tensor, ...] | None, batch_size: int) -> None:
        width = self.config.context_channels
        shapes = [tuple(x.shape) for x in context or ()]
        if len(shapes) == len(self.context_widths) and all(
            len(shape) == 4 and shape[:2] == (batch_size, width) for shape in shapes
        ):
            return
        raise ValueError(
            f"`context` must be the features of a context encoder, one map ({batch_size}, {width}, h, w), got shapes {shapes}."
            if width
            else f"`context` must be None: this network has no memory (`context_channels` is 0), got shapes {shapes}."
        )

    def _check_inputs(self, sample: torch.Tensor, roles: torch.Tensor) -> None:
        if sample.ndim != 5:
            raise ValueError(f"`sample` must have shape (B, T, C, H, W), got {tuple(sample.shape)}.")
        num_window_frames, channels = sample.shape[1:3]
        if num_window_frames != self.num_window_frames:
            raise ValueError(
                f"`sample` must hold {self.num_window_frames} frames ({self.config.num_past_frames} past,"
                f" {self.config.num_frames} current, {self.config.num_future_frames} future), got {num_window_frames}."
                " Frames that are not there keep their place, with the role ABSENT."
            )
        if channels != self.config.in_channels:
            raise ValueError(f"`sample` must have {self.config.in_channels} channels a frame, got {channels}.")
        if roles.is_floating_point() or roles.dtype == torch.bool:
            raise ValueError(f"`roles` must be integers, the values of FrameRole, got {roles.dtype}.")
        if roles.shape != sample.shape[:2]:
            raise ValueError(f"`roles` must have shape {tuple(sample.shape[:2])}, got {tuple(roles.shape)}.")


class MCVDDownBlock2D(nn.Module):
    """A level on the way down: residual blocks, each followed by attention if the level has it, then downsampling."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        num_layers: int,
        add_attention: bool,
        head_dim: int | None,
        add_downsample: bool,
        embedding_dim: int,
        dropout: float,
        spatin: tuple[int, int] | None,
    ) -> None:
        super().__init__()
        args = {"embedding_dim": embedding_dim, "dropout": dropout, "spatin": spatin}
        self.resnets = nn.ModuleList(
            [MCVDResnetBlock2D(out_channels if i else in_channels, out_channels, **args) for i in range(num_layers)]
        )
        self.attentions = None
        if add_attention:
            self.attentions = nn.ModuleList([MCVDAttention(out_channels, head_dim) for _ in range(num_layers)])
        self.downsampler = None
        if add_downsample:
            self.downsampler = MCVDResnetBlock2D(out_channels, out_channels, resample="down", **args)

    def encode_conditioning(self, frames: torch.Tensor, size: tuple[int, int]) -> tuple:
        encoded = tuple(resnet.encode_conditioning(frames, size) for resnet in self.resnets)
        if self.downsampler is not None:
            encoded += (self.downsampler.encode_conditioning(frames, size),)
        return encoded

    def forward(
        self, hidden_states: torch.Tensor, emb: torch.Tensor, cond: Conditioning
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        conds = _split(cond, len(self.resnets) + 1)
        skips = []
        for i, resnet in enumerate(self.resnets):
            hidden_states = resnet(hidden_states, emb, conds[i])
            if self.attentions is not None:
                hidden_states = self.attentions[i](hidden_states)
            skips.append(hidden_states)
        if self.downsampler is not None:
            hidden_states = self.downsampler(hidden_states, emb, conds[-1])  # (B, C, h/2, w/2)
            skips.append(hidden_states)
        return hidden_states, skips


class MCVDMidBlock2D(nn.Module):
    """The coarsest level: residual block, attention, residual block, and attention to a memory, if there is one."""

    def __init__(
        self,
        channels: int,
        *,
        head_dim: int | None,
        embedding_dim: int,
        dropout: float,
        spatin: tuple[int, int] | None,
        context_channels: int = 0,
    ) -> None:
        super().__init__()
        args = {"embedding_dim": embedding_dim, "dropout": dropout, "spatin": spatin}
        self.resnets = nn.ModuleList([MCVDResnetBlock2D(channels, channels, **args) for _ in range(2)])
        self.attention = MCVDAttention(channels, head_dim)
        self.memory_attention = None
        if context_channels:
            self.memory_attention = MCVDAttention(channels, head_dim, context_channels=context_channels)

    def encode_conditioning(self, frames: torch.Tensor, size: tuple[int, int]) -> tuple:
        return tuple(resnet.encode_conditioning(frames, size) for resnet in self.resnets)

    def forward(
        self, hidden_states: torch.Tensor, emb: torch.Tensor, cond: Conditioning, context: torch.Tensor | None = None
    ) -> torch.Tensor:
        first, second = _split(cond, 2)
        hidden_states = self.resnets[0](hidden_states, emb, first)
        hidden_states = self.attention(hidden_states)
        hidden_states = self.resnets[1](hidden_states, emb, second)
        if self.memory_attention is not None:
            hidden_states = self.memory_attention(hidden_states, context)
        return hidden_states


class MCVDUpBlock2D(nn.Module):
    """A level on the way up: residual blocks over skips, attention once if the level has it, then upsampling."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        skip_channels: list[int],
        add_attention: bool,
        head_dim: int | None,
        add_upsample: bool,
        embedding_dim: int,
        dropout: float,
        spatin: tuple[int, int] | None,
    ) -> None:
        super().__init__()
        args = {"embedding_dim": embedding_dim, "dropout": dropout, "spatin": spatin}
        self.resnets = nn.ModuleList(
            [
                MCVDResnetBlock2D((out_channels if i else in_channels) + skip, out_channels, **args)
                for i, skip in enumerate(skip_channels)
            ]
        )
        self.attention = MCVDAttention(out_channels, head_dim) if add_attention else None
        self.upsampler = None
        if add_upsample:
            self.upsampler = MCVDResnetBlock2D(out_channels, out_channels, resample="up", **args)

    def encode_conditioning(self, frames: torch.Tensor, size: tuple[int, int]) -> tuple:
        encoded = tuple(resnet.encode_conditioning(frames, size) for resnet in self.resnets)
        if self.upsampler is not None:
            encoded += (self.upsampler.encode_conditioning(frames, size),)
        return encoded

    def forward(
        self, hidden_states: torch.Tensor, emb: torch.Tensor, cond: Conditioning, skips: list[torch.Tensor]
    ) -> torch.Tensor:
        conds = _split(cond, len(self.resnets) + 1)
        for i, (resnet, skip) in enumerate(zip(self.resnets, skips)):
            hidden_states = resnet(torch.cat([hidden_states, skip], dim=1), emb, conds[i])
        if self.attention is not None:
            hidden_states = self.attention(hidden_states)
        if self.upsampler is not None:
            hidden_states = self.upsampler(hidden_states, emb, conds[-1])  # (B, C, 2h, 2w)
        return hidden_states


class MCVDResnetBlock2D(nn.Module):
    """
    BigGAN's residual block: both normalisations are scaled and shifted by the embedding of time, resampling (if any)
    comes after the first activation and on the shortcut, and the sum is divided by the square root of two.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        embedding_dim: int,
        dropout: float,
        spatin: tuple[int, int] | None,
        resample: str | None = None,
    ) -> None:
        super().__init__()
        self.norm1 = _make_norm(in_channels, spatin)
        self.time_emb_proj1 = nn.Linear(embedding_dim, 2 * in_channels)
        self.resample = MCVDFirResample2D(resample) if resample else None
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = _make_norm(out_channels, spatin)
        self.time_emb_proj2 = nn.Linear(embedding_dim, 2 * out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.conv_shortcut = None
        if in_channels != out_channels or resample:
            self.conv_shortcut = nn.Conv2d(in_channels, out_channels, 1)

    def encode_conditioning(self, frames: torch.Tensor, size: tuple[int, int]) -> tuple:
        """SPATIN's scale and shift of both normalisations; `size` is that of the block's input."""
        size2 = self.resample.output_size(size) if self.resample is not None else size
        return self.norm1.encode_conditioning(frames, size), self.norm2.encode_conditioning(frames, size2)

    def forward(self, hidden_states: torch.Tensor, emb: torch.Tensor, cond: Conditioning) -> torch.Tensor:
        cond1, cond2 = _split(cond, 2)
        shortcut = hidden_states
        hidden_states = self._modulate(hidden_states, self.norm1, self.time_emb_proj1, emb, cond1)
        if self.resample is not None:
            hidden_states, shortcut = self.resample(hidden_states), self.resample(shortcut)
        hidden_states = self.conv1(hidden_states)
        hidden_states = self._modulate(hidden_states, self.norm2, self.time_emb_proj2, emb, cond2)
        hidden_states = self.conv2(self.dropout(hidden_states))
        if self.conv_shortcut is not None:
            shortcut = self.conv_shortcut(shortcut)
        return (shortcut + hidden_states).div_(SQRT2)

    @staticmethod
    def _modulate(
        hidden_states: torch.Tensor, norm: nn.Module, proj: nn.Linear, emb: torch.Tensor, cond: Conditioning
    ) -> torch.Tensor:
        hidden_states = norm(hidden_states) if cond is None else norm(hidden_states, cond)
        scale, shift = proj(emb)[:, :, None, None].chunk(2, dim=1)
        return F.silu(torch.addcmul(shift, hidden_states, 1 + scale), inplace=not torch.is_grad_enabled())


class MCVDSpatinNorm(nn.Module):
    """
    SPATIN, space-time adaptive normalisation (MCVD, section 3.1; after SPADE, 1903.07291): a group normalisation
    whose scale and shift at each pixel are convolutions over the observed frames.

    Args:
        channels (`int`): Channels of the tensor that is normalised.
        cond_channels (`int`): Channels of the stacked observed frames.
        hidden_channels (`int`): Channels between the two convolutions.
    """

    def __init__(self, channels: int, cond_channels: int, hidden_channels: int) -> None:
        super().__init__()
        self.norm = MCVDGroupNorm(_num_groups(channels), channels, eps=1e-6, affine=False)
        self.conv_shared = nn.Conv2d(cond_channels, hidden_channels, 3, padding=1)
        self.conv_gamma = nn.Conv2d(hidden_channels, channels, 3, padding=1)
        self.conv_beta = nn.Conv2d(hidden_channels, channels, 3, padding=1)

    def encode_conditioning(self, frames: torch.Tensor, size: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
        """The factor and the summand of each pixel, `(B, channels, h, w)` each."""
        frames = F.interpolate(frames, size=size, mode="nearest")  # (B, cond_channels, h, w)
        hidden_states = F.silu(self.conv_shared(frames))
        return 1 + self.conv_gamma(hidden_states), self.conv_beta(hidden_states)

    def forward(
        self, hidden_states: torch.Tensor, cond: torch.Tensor | tuple[torch.Tensor, torch.Tensor]
    ) -> torch.Tensor:
        size = hidden_states.shape[-2:]
        factor, summand = cond if isinstance(cond, tuple) else self.encode_conditioning(cond, size)
        return torch.addcmul(summand, self.norm(hidden_states), factor)


class MCVDGroupNorm(nn.GroupNorm):
    """
    A group normalisation that a CPU computes in float32, as autocast does on CUDA: in half precision PyTorch's kernel
    for channels-last tensors takes five to nine times as long there, a seventh of an update.
    """

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        if hidden_states.device.type != "cpu" or hidden_states.dtype not in (torch.bfloat16, torch.float16):
            return super().forward(hidden_states)
        weight, bias = (None if x is None else x.float() for x in (self.weight, self.bias))
        normed = F.group_norm(hidden_states.float(), self.num_groups, weight, bias, self.eps)
        return normed.to(hidden_states.dtype)


class MCVDFirResample2D(nn.Module):
    """
    Resampling by a factor of two with the kernel `[1, 3, 3, 1]` (StyleGAN2, 1912.04958, appendix B), as one strided
    depthwise convolution.

    Args:
        direction (`str`): `"down"` or `"up"`.
    """

    def __init__(self, direction: str) -> None:
        super().__init__()
        self.direction = direction
        taps = torch.tensor([1.0, 3.0, 3.0, 1.0])
        kernel = torch.outer(taps, taps) / 64
        # Going up, each output pixel sees a quarter of the taps: four times the gain keeps the mean.
        self.register_buffer("kernel", kernel if direction == "down" else 4 * kernel, persistent=False)

    def output_size(self, size: tuple[int, int]) -> tuple[int, int]:
        height, width = size
        return (height // 2, width // 2) if self.direction == "down" else (height * 2, width * 2)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        channels, dtype = hidden_states.shape[1], hidden_states.dtype
        # A CPU takes up to fifty times as long for such a convolution in half precision as in float32.
        is_slow = hidden_states.device.type == "cpu" and dtype != torch.float64
        with torch.autocast("cpu", enabled=False) if is_slow else contextlib.nullcontext():
            hidden_states = hidden_states.float() if is_slow else hidden_states
            kernel = self.kernel.to(hidden_states.dtype).expand(channels, 1, 4, 4)
            convolve = F.conv2d if self.direction == "down" else F.conv_transpose2d
            return convolve(hidden_states, kernel, stride=2, padding=1, groups=channels).to(dtype)


class MCVDAttnProcessor:
    """Attention through Diffusers' dispatcher, so that `set_attention_backend` takes effect."""

    _attention_backend = None
    _parallel_config = None

    def __call__(
        self, attn: "MCVDAttention", hidden_states: torch.Tensor, context: torch.Tensor | None = None
    ) -> torch.Tensor:
        residual = hidden_states  # (B, C, h, w)
        hidden_states = attn.norm(hidden_states).flatten(2).transpose(1, 2)  # (B, h*w, C)
        if attn.is_cross_attention:
            context = attn.norm_context(context).flatten(2).transpose(1, 2)  # (B, n, D)
            query = attn.to_q(hidden_states)
            if attn.fused_projections:
                key, value = attn.to_kv(context).chunk(2, dim=-1)
            else:
                key, value = attn.to_k(context), attn.to_v(context)
        elif attn.fused_projections:
            query, key, value = attn.to_qkv(hidden_states).chunk(3, dim=-1)
        else:
            query, key, value = attn.to_q(hidden_states), attn.to_k(hidden_states), attn.to_v(hidden_states)
        query, key, value = (x.unflatten(2, (attn.heads, -1)) for x in (query, key, value))  # (B, h*w, heads, dim)
        if self._attention_backend is None and _multiplies_faster(query, key):
            hidden_states = _attend_by_products(query, key, value)
        else:
            hidden_states = dispatch_attention_fn(
                query, key, value, backend=self._attention_backend, parallel_config=self._parallel_config
            )
        hidden_states = attn.to_out[0](hidden_states.flatten(2))  # (B, h*w, C)
        return (residual + hidden_states.transpose(1, 2).reshape(residual.shape)).div_(SQRT2)


def _multiplies_faster(query: torch.Tensor, key: torch.Tensor) -> bool:
    """
    Whether two matrix products are faster than fused attention: in half precision on a CPU, whose fused one does not use the
    instructions for it, as long as the weights of all pairs are not too many to be kept.
    """
    is_half = torch.is_autocast_enabled("cpu") or query.dtype in (torch.bfloat16, torch.float16)
    num_pairs = query.shape[0] * query.shape[2] * query.shape[1] * key.shape[1]
    return query.device.type == "cpu" and is_half and num_pairs <= MOST_PAIRS


def _attend_by_products(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Attention `(B, n, heads, dim)` by matrix products; the softmax is computed in float32."""
    query, key, value = (x.transpose(1, 2) for x in (query, key, value))  # (B, heads, n, dim)
    weights = (query * query.shape[-1] ** -0.5) @ key.transpose(2, 3)
    return (weights.softmax(dim=-1) @ value).transpose(1, 2)


class MCVDAttention(nn.Module, AttentionModuleMixin):
    """
    Attention among the pixels of a feature map, or to those of another, with the input added and the sum divided by the square
    root of 2.

    Args:
        channels (`int`): Channels of the feature map.
        head_dim (`int` or `None`): Channels of one head; one head if `None` or if there are fewer channels.
        context_channels (`int`, *optional*): Channels of the other map; `None`: there is none.
    """

    _default_processor_cls = MCVDAttnProcessor
    _available_processors = [MCVDAttnProcessor]

    def __init__(self, channels: int, head_dim: int | None, context_channels: int | None = None) -> None:
        super().__init__()
        self.heads = 1 if head_dim is None or channels < head_dim else channels // head_dim
        self.use_bias = True
        self.is_cross_attention = context_channels is not None
        self.norm = MCVDGroupNorm(_num_groups(channels), channels, eps=1e-6)
        self.norm_context = None
        if self.is_cross_attention:
            self.norm_context = MCVDGroupNorm(_num_groups(context_channels), context_channels, eps=1e-6)
        self.to_q = nn.Linear(channels, channels)
        self.to_k = nn.Linear(context_channels or channels, channels)
        self.to_v = nn.Linear(context_channels or channels, channels)
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])
        self.set_processor(self._default_processor_cls())

    def forward(self, hidden_states: torch.Tensor, context: torch.Tensor | None = None) -> torch.Tensor:
        return self.processor(self, hidden_states, context)


def _sinusoids(label: torch.Tensor, width: int) -> torch.Tensor:
    """
    Sines before cosines of `label * 10000^(-j / (width/2 - 1))`, `(B,)` -> `(B, width)`.

    Diffusers' `get_timestep_embedding` rounds the exponents otherwise, which is 5e-5 at label 999; this is the
    original's order, so that its numbers are met to the last bit.
    """
    half = width // 2
    frequencies = torch.exp(torch.arange(half, device=label.device).float() * -(math.log(10_000) / (half - 1)))
    angles = label.float()[:, None] * frequencies  # (B, half)
    return F.pad(torch.cat([angles.sin(), angles.cos()], dim=1), (0, width % 2))


def _num_groups(channels: int) -> int:
    """Groups of a normalisation: at most 32 of at least 4 channels, and a divisor of the number of channels."""
    num_groups = min(channels // 4, 32)
    while channels % num_groups:
        num_groups -= 1
    return num_groups


def _make_norm(channels: int, spatin: tuple[int, int] | None) -> nn.Module:
    if spatin is not None:
        return MCVDSpatinNorm(channels, *spatin)
    return MCVDGroupNorm(_num_groups(channels), channels, eps=1e-5, affine=False)


def _split(conditioning: Conditioning, num_parts: int) -> tuple:
    """The conditioning of each part of a module: encoded ones are a tuple; frames and `None` are the same for all."""
    return conditioning if isinstance(conditioning, tuple) else (conditioning,) * num_parts


def _check_config(config) -> None:
    def is_count(value, least: int) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and value >= least

    # A config may come from anywhere. Far above all use, the upper bounds keep a network from taking hours to be built.
    for name, least, most in (
        ("in_channels", 1, MOST_CHANNELS),
        ("num_past_frames", 0, MOST_CHANNELS),
        ("num_frames", 1, MOST_CHANNELS),
        ("num_future_frames", 0, MOST_CHANNELS),
        ("spatin_channels", 1, MOST_CHANNELS),
        ("layers_per_block", 1, 64),
        ("num_train_timesteps", 1, 1_000_000),
        ("context_channels", 0, MOST_CHANNELS),
        ("patch_size", 1, 64),
    ):
        if not is_count(config[name], least):
            raise ValueError(f"`{name}` must be an integer of at least {least}, got {config[name]!r}.")
        if config[name] > most:
            raise ValueError(f"`{name}` must be at most {most:,}, got {config[name]}.")
    for name in ("dropout", "drop_past", "drop_future"):
        value = config[name]
        if not isinstance(value, (int, float)) or not 0 <= value <= 1 or (name == "dropout" and value == 1):
            raise ValueError(f"`{name}` is a probability, got {value!r}.")
    for name, allowed in (
        ("conditioning", ("concat", "spatin")),
        ("prediction_type", (None, *PREDICTION_TYPES)),
        ("embed_past_kept", (False, True)),
        ("residual", (False, True)),
    ):
        if config[name] not in allowed:
            raise ValueError(f"`{name}` must be one of {allowed}, got {config[name]!r}.")
    noise = config.observed_noise
    if not isinstance(noise, (int, float)) or isinstance(noise, bool) or not 0 <= noise < 1:
        raise ValueError(f"`observed_noise` must be a share in [0, 1), got {noise!r}.")
    if noise and config.num_past_frames + config.num_future_frames == 0:
        raise ValueError(
            "`observed_noise` is noise on given frames: `num_past_frames` and `num_future_frames` are both 0."
        )
    if config.conditioning == "spatin" and config.num_past_frames + config.num_future_frames == 0:
        raise ValueError(
            '`conditioning="spatin"` needs past or future frames to normalise by: `num_past_frames` and'
            ' `num_future_frames` are both 0. Use "concat" for a network without given frames.'
        )
    if 0 < config.context_channels < 4:
        raise ValueError(f"`context_channels` must be 0 or at least 4, got {config.context_channels}.")
    widths, kinds = config.block_out_channels, config.down_block_types
    if not isinstance(widths, (list, tuple)) or not widths or not all(is_count(width, 4) for width in widths):
        raise ValueError(f"`block_out_channels` must be a list of integers of at least 4, got {widths!r}.")
    if len(widths) > 16 or max(widths) > MOST_CHANNELS:
        raise ValueError(
            f"`block_out_channels` must be at most 16 levels of at most {MOST_CHANNELS:,}, got {widths!r}."
        )
    if not isinstance(kinds, (list, tuple)) or not all(kind in ("DownBlock2D", "AttnDownBlock2D") for kind in kinds):
        raise ValueError(f'`down_block_types` must be a list of "DownBlock2D" and "AttnDownBlock2D", got {kinds!r}.')
    if config.conv_in_channels is not None and not is_count(config.conv_in_channels, 4):
        raise ValueError(
            f"`conv_in_channels` must be an integer of at least 4 or None, got {config.conv_in_channels!r}."
        )
    if (config.conv_in_channels or 0) > MOST_CHANNELS:
        raise ValueError(f"`conv_in_channels` must be at most {MOST_CHANNELS:,}, got {config.conv_in_channels}.")
    if len(kinds) != len(widths):
        raise ValueError(
            f"`down_block_types` ({len(kinds)} entries) and `block_out_channels` ({len(widths)} entries) must have one"
            " entry for each level."
        )
    sizes = config.sample_size if isinstance(config.sample_size, (list, tuple)) else [config.sample_size]
    if len(sizes) not in (1, 2) or not all(is_count(size, 1) for size in sizes):
        raise ValueError(f"`sample_size` must be a positive integer or (height, width), got {config.sample_size!r}.")
    if max(sizes) > MOST_PIXELS:  # a video is made at this size if none is asked for
        raise ValueError(f"`sample_size` must be at most {MOST_PIXELS:,}, got {config.sample_size!r}.")
    head_dim = config.attention_head_dim
    if head_dim is not None:
        if not is_count(head_dim, 1):
            raise ValueError(f"`attention_head_dim` must be a positive integer or None, got {head_dim!r}.")
        attended = [width for width, kind in zip(widths, kinds) if kind == "AttnDownBlock2D"]
        for width in [*attended, widths[-1]]:
            if width >= head_dim and width % head_dim:
                raise ValueError(
                    f"`attention_head_dim` ({head_dim}) must divide the channels of every level with attention, which"
                    f" the middle is too; {width} channels do not divide."
                )
