# Copyright 2026 The mcvd-diffusers authors. Licensed under the Apache License, Version 2.0.
r"""Layers of networks that see a window frame by frame: convolutions, normalisations, attention among pixels and frames.

Two layouts of feature maps occur. Without convolution in time the frames are folded into the batch, `(B*T, C, h, w)`: whatever
is computed then belongs to one frame. With it they are volumes, `(B, C, T, h, w)`. Only attention mixes frames in the
first, and [`WindowContext`] says which frames see which; in the second, convolutions and normalisations have to leave out the
frames that are not there, too.

Letters in shape comments: `B` windows, `T` frames of a window, `C` channels, `h, w` height and width at some level, `P = h*w`
pixels, `D` width of the time embedding, `N` heads, `E` channels of a head.
"""

import math
from dataclasses import dataclass, fields

import torch
import torch.nn as nn
import torch.nn.functional as F
from diffusers.models.attention import AttentionModuleMixin
from diffusers.models.attention_dispatch import dispatch_attention_fn


@dataclass
class WindowContext:
    """
    What layers need to know of a window beside its feature maps; made once a call.

    Args:
        num_frames (`int`): Frames `T`.
        mask (`torch.Tensor` of shape `(B, T, T)`, *optional*): Whether frame i sees frame j; `None`: all see all.
        presence (`torch.Tensor` of shape `(B, T)`, *optional*):
            Whether the frame is there, for volumes; `None`: all are. (Folded frames that are not there harm nobody.)
        distances (`torch.Tensor` of shape `(B, T, T)`): Frame index of i minus that of j.
        emb (`torch.Tensor` of shape `(B, D)`): The time embedding.
        bias (`torch.Tensor` of shape `(B, N, T, T)`, *optional*): Added to the attention of frame i to frame j.
        rotary (`tuple` of two `torch.Tensor`s of shape `(B, T, R)`, *optional*): Cosine and sine of the angles by which the
            first `R` channels of a query or key are turned.
    """

    num_frames: int
    mask: torch.Tensor | None
    presence: torch.Tensor | None
    distances: torch.Tensor
    emb: torch.Tensor
    bias: torch.Tensor | None = None
    rotary: tuple[torch.Tensor, torch.Tensor] | None = None

    def to_tokens(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """A feature map of either layout as `(B, T, P, C)`."""
        if hidden_states.ndim == 5:  # (B, C, T, h, w)
            return hidden_states.flatten(3).permute(0, 2, 3, 1)
        return hidden_states.flatten(2).transpose(1, 2).unflatten(0, (-1, self.num_frames))

    def from_tokens(self, tokens: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        """`(B, T, P, C)` in the layout and size of another feature map."""
        if like.ndim == 5:
            return tokens.permute(0, 3, 1, 2).unflatten(3, like.shape[3:])
        return tokens.flatten(0, 1).transpose(1, 2).unflatten(2, like.shape[2:])

    def each_frame(self, emb: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        """A vector for each window, `(B, C)`, in a shape that goes with its feature maps."""
        if like.ndim == 5:
            return emb[:, :, None, None, None]
        return emb.repeat_interleave(self.num_frames, dim=0)[:, :, None, None]

    def pair_mask(self, dtype: torch.dtype) -> torch.Tensor | None:
        """Mask and bias of attention among frames as one, `(B, 1 or N, T, T)`: whether they see, or what is added."""
        if self.bias is None:
            return None if self.mask is None else self.mask[:, None]
        bias = self.bias.to(dtype)
        return bias if self.mask is None else bias.masked_fill(~self.mask[:, None], float("-inf"))

    def to(self, device, non_blocking: bool = False) -> "WindowContext":
        """On another device: where the layers of a network are on several, Accelerate moves what they are handed."""

        def move(value):
            if isinstance(value, tuple):
                return tuple(map(move, value))
            return value.to(device, non_blocking=non_blocking) if torch.is_tensor(value) else value

        return WindowContext(**{entry.name: move(getattr(self, entry.name)) for entry in fields(self)})

    def without_absent(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Zero where a frame is not there, for volumes."""
        if self.presence is None:
            return hidden_states
        return torch.where(self.presence[:, None, :, None, None], hidden_states, 0)


def num_groups(channels: int) -> int:
    """Groups of a normalisation: the largest divisor of the channels that is at most 32."""
    return max(count for count in range(1, min(32, channels) + 1) if channels % count == 0)


class FrameGroupNorm(nn.GroupNorm):
    """
    Group normalisation: over each frame if frames are folded, over all frames of the clip in a volume, of which those that are
    not there are left out.

    Args:
        channels (`int`): Channels.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(num_groups(channels), channels, eps=1e-5)

    def forward(self, hidden_states: torch.Tensor, context: WindowContext) -> torch.Tensor:
        if hidden_states.ndim == 4 or context.presence is None:
            return super().forward(hidden_states)
        shape, dtype = hidden_states.shape, hidden_states.dtype
        # Sums are too large for half precision.
        hidden_states = hidden_states.to(torch.promote_types(dtype, torch.float32))
        is_there = context.presence[:, None, :, None, None].to(hidden_states.dtype)  # (B, 1, T, 1, 1)
        groups = hidden_states.unflatten(1, (self.num_groups, -1)) * is_there[:, None]  # (B, G, C/G, T, h, w)
        count = is_there.sum(dim=(1, 2, 3, 4)).clamp(min=1) * groups[0, 0, :, 0].numel()  # numbers of a group
        count = count[:, None, None, None, None, None]
        mean = groups.sum(dim=(2, 3, 4, 5), keepdim=True) / count
        centred = (groups - mean) * is_there[:, None]
        variance = centred.square().sum(dim=(2, 3, 4, 5), keepdim=True) / count
        normed = (centred * torch.rsqrt(variance + self.eps)).reshape(shape).to(dtype)
        return normed * self.weight[:, None, None, None] + self.bias[:, None, None, None]


class FrameConv(nn.Module):
    """
    A convolution of `kernel x kernel` pixels of each frame, or of `3 x 3 x 3` of a volume.

    Args:
        in_channels, out_channels (`int`): Channels.
        kernel (`int`): 1, 3 or another odd number.
        is_volume (`bool`): Whether time is convolved, too.
        stride (`int`): In space.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int, *, is_volume: bool, stride: int = 1, padding=None
    ) -> None:
        super().__init__()
        padding = kernel // 2 if padding is None else padding
        if is_volume:
            strides = (1, stride, stride)
            self.conv = nn.Conv3d(in_channels, out_channels, kernel, stride=strides, padding=padding)
        else:
            self.conv = nn.Conv2d(in_channels, out_channels, kernel, stride=stride, padding=padding)

    def forward(self, hidden_states: torch.Tensor, context: WindowContext) -> torch.Tensor:
        return self.conv(context.without_absent(hidden_states))


# --------------------------------------------------------------------------------------------------------------------
# Residual blocks and resampling


class AdmResnetBlock(nn.Module):
    """
    The residual block of Dhariwal and Nichol's UNet (ADM, 2105.05233): normalisation, SiLU, convolution; a second time
    with scale and shift from the embedding of time.

    Args:
        in_channels, out_channels (`int`): Channels.
        emb_channels (`int`): Width of the embedding.
        dropout (`float`): Before the second convolution.
        is_volume (`bool`): Whether time is convolved, too.
    """

    def __init__(self, in_channels: int, out_channels: int, *, emb_channels: int, dropout: float, is_volume: bool):
        super().__init__()
        self.norm1 = FrameGroupNorm(in_channels)
        self.conv1 = FrameConv(in_channels, out_channels, 3, is_volume=is_volume)
        self.time_emb_proj = nn.Linear(emb_channels, 2 * out_channels)
        self.norm2 = FrameGroupNorm(out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = FrameConv(out_channels, out_channels, 3, is_volume=is_volume)
        self.conv_shortcut = None
        if in_channels != out_channels:
            self.conv_shortcut = FrameConv(in_channels, out_channels, 1, is_volume=is_volume)
        nn.init.zeros_(self.conv2.conv.weight)
        nn.init.zeros_(self.conv2.conv.bias)

    def forward(self, hidden_states: torch.Tensor, context: WindowContext) -> torch.Tensor:
        shortcut = hidden_states
        hidden_states = self.conv1(F.silu(self.norm1(hidden_states, context)), context)
        scale, shift = self.time_emb_proj(F.silu(context.emb)).chunk(2, dim=1)
        hidden_states = self.norm2(hidden_states, context)
        hidden_states = hidden_states * (1 + context.each_frame(scale, hidden_states))
        hidden_states = F.silu(hidden_states + context.each_frame(shift, hidden_states))
        hidden_states = self.conv2(self.dropout(hidden_states), context)
        if self.conv_shortcut is not None:
            shortcut = self.conv_shortcut(shortcut, context)
        return shortcut + hidden_states


class PixelRmsNorm(nn.Module):
    """The channels of each pixel of each frame, divided by the root of their mean square."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:  # (B*T, C, h, w)
        scale = self.weight.numel() ** 0.5
        eps = max(1e-12, torch.finfo(hidden_states.dtype).tiny)  # in float16, 1e-12 is 0
        return F.normalize(hidden_states, dim=1, eps=eps) * scale * self.weight[:, None, None]


class Unet3dResnetBlock(nn.Module):
    """
    A residual block whose two convolutions are normalised after them, each pixel by itself; scale and shift from the
    embedding of time after the first.

    Args:
        in_channels, out_channels (`int`): Channels.
        emb_channels (`int`): Width of the embedding; 0: it is not read.
        dropout (`float`): Before the second convolution.
    """

    def __init__(self, in_channels: int, out_channels: int, *, emb_channels: int, dropout: float) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm1 = PixelRmsNorm(out_channels)
        self.time_emb_proj = nn.Linear(emb_channels, 2 * out_channels) if emb_channels else None
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.norm2 = PixelRmsNorm(out_channels)
        self.conv_shortcut = None
        if in_channels != out_channels:
            self.conv_shortcut = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, hidden_states: torch.Tensor, context: WindowContext) -> torch.Tensor:
        shortcut = hidden_states if self.conv_shortcut is None else self.conv_shortcut(hidden_states)
        hidden_states = self.norm1(self.conv1(hidden_states))
        if self.time_emb_proj is not None:
            scale, shift = self.time_emb_proj(F.silu(context.emb)).chunk(2, dim=1)
            hidden_states = hidden_states * (1 + context.each_frame(scale, hidden_states))
            hidden_states = hidden_states + context.each_frame(shift, hidden_states)
        hidden_states = self.dropout(F.silu(hidden_states))
        return shortcut + F.silu(self.norm2(self.conv2(hidden_states)))


class Upsample(nn.Module):
    """Twice the height and width: each pixel four times, then a convolution."""

    def __init__(self, channels: int, *, is_volume: bool) -> None:
        super().__init__()
        self.conv = FrameConv(channels, channels, 3, is_volume=is_volume)

    def forward(self, hidden_states: torch.Tensor, context: WindowContext) -> torch.Tensor:
        factor = (1.0, 2.0, 2.0) if hidden_states.ndim == 5 else 2.0
        return self.conv(F.interpolate(hidden_states, scale_factor=factor, mode="nearest"), context)


class TransposedUpsample(nn.Module):
    """Twice the height and width by a transposed convolution of 4x4 pixels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.ConvTranspose2d(channels, channels, 4, stride=2, padding=1)

    def forward(self, hidden_states: torch.Tensor, context: WindowContext) -> torch.Tensor:
        return self.conv(hidden_states)


# --------------------------------------------------------------------------------------------------------------------
# Attention


class RelativePositionNetwork(nn.Module):
    """
    A vector for each pair of frames from the distance between them and the noise level (Harvey et al., 2205.11495,
    section 4.1): a small network reads `log(1 + d)` of how far one is after the other, the same for before, and whether
    they are one.

    Args:
        channels (`int`): Channels of all heads together.
        emb_channels (`int`): Width of the time embedding.
        heads (`int`): Heads.
    """

    def __init__(self, channels: int, emb_channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.distance_proj = nn.Linear(3, channels)
        self.time_emb_proj = nn.Linear(emb_channels, channels)
        self.out = nn.Linear(channels, channels)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, context: WindowContext) -> torch.Tensor:
        """`(B, T, T, N, E)`: for each frame i and j."""
        dtype = context.emb.dtype
        distances = context.distances.to(torch.promote_types(dtype, torch.float32))  # half precision ends at 65504
        after, before = torch.log1p(distances.clamp(min=0)), torch.log1p((-distances).clamp(min=0))
        features = torch.stack([after, before, (distances == 0).to(distances)], dim=-1).to(dtype)
        hidden_states = self.distance_proj(features)  # (B, T, T, C)
        hidden_states = hidden_states + self.time_emb_proj(context.emb)[:, None, None]
        return self.out(F.silu(hidden_states)).unflatten(-1, (self.heads, -1))


class RelativePositionBias(nn.Module):
    """
    A number for each pair of frames and each head from the distance between them (T5, 1910.10683, section 2.1): distances fall
    into buckets that grow with them.

    Args:
        heads (`int`): Heads.
        num_buckets (`int`): Half of them for frames after, half for those before.
        max_distance (`int`): From here on, all distances share a bucket.
    """

    def __init__(self, heads: int, num_buckets: int = 32, max_distance: int = 32) -> None:
        super().__init__()
        self.num_buckets, self.max_distance = num_buckets, max_distance
        self.embedding = nn.Embedding(num_buckets, heads)

    def forward(self, distances: torch.Tensor) -> torch.Tensor:
        """`(B, T, T)` distances of i to j, to `(B, N, T, T)`."""
        return self.embedding(self.buckets(distances)).permute(0, 3, 1, 2)

    def buckets(self, distances: torch.Tensor) -> torch.Tensor:
        """The bucket of each distance, same shape."""
        half = self.num_buckets // 2
        exact = half // 2  # so many distances have a bucket of their own
        far = distances.abs().float()
        ratio = torch.log(far.clamp(min=1) / exact) / math.log(self.max_distance / exact)
        large = (exact + (ratio * (half - exact)).long()).clamp(max=half - 1)
        return torch.where(far < exact, far.long(), large) + torch.where(distances < 0, half, 0)


def rotary_angles(frame_indices: torch.Tensor, channels: int) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Rotary position embedding of frames (RoFormer, 2104.09864): cosine and sine of the angles of `channels` channels, two
    neighbours of which share one.

    Args:
        frame_indices (`torch.Tensor` of shape `(B, T)`): Positions in the video.
        channels (`int`): Channels that are turned, an even number.

    Returns:
        Two `torch.Tensor`s of shape `(B, T, channels)`, float32.
    """
    exponents = torch.arange(0, channels, 2, device=frame_indices.device).float() / channels
    angles = (frame_indices[..., None].float() * 10_000**-exponents).repeat_interleave(2, dim=-1)
    return angles.cos(), angles.sin()


def turn(x: torch.Tensor, rotary: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Turn the first channels of queries or keys, `(B, P, T, N, E)`, by the angles of their frames."""
    cos, sin = (part[:, None, :, None].to(x.dtype) for part in rotary)  # (B, 1, T, 1, R)
    turned, rest = x.split([cos.shape[-1], x.shape[-1] - cos.shape[-1]], dim=-1)
    even, odd = turned[..., ::2], turned[..., 1::2]
    turned = turned * cos + torch.stack([-odd, even], dim=-1).flatten(-2) * sin
    return torch.cat([turned, rest], dim=-1) if rest.shape[-1] else turned


class SpaceTimeAttnProcessor:
    """
    Self-attention, through Diffusers' dispatcher (`set_attention_backend`): but for linear attention, and that with networks for
    relative positions, which change the values, too.
    """

    _attention_backend = None
    _parallel_config = None

    def __call__(
        self, attn: "SpaceTimeAttention", hidden_states: torch.Tensor, context: WindowContext
    ) -> torch.Tensor:
        normed = attn.normalise(hidden_states, context)
        tokens = context.to_tokens(normed)  # (B, T, P, C)
        if attn.fused_projections:
            query, key, value = attn.to_qkv(tokens).chunk(3, dim=-1)
        else:
            query, key, value = attn.to_q(tokens), attn.to_k(tokens), attn.to_v(tokens)
        query, key, value = (x.unflatten(-1, (attn.heads, -1)) for x in (query, key, value))  # (B, T, P, N, E)
        if attn.kind == "frames":
            attended = self._among_frames(attn, query, key, value, context)
        elif attn.kind == "linear":
            attended = linear_attention(query, key, value)
        else:
            attended = self._among_pixels(attn, query, key, value, context)
        attended = attn.to_out[0](attended.flatten(-2))  # (B, T, P, C)
        residual = normed if attn.adds_to_normalised else hidden_states
        return residual + context.from_tokens(attended, hidden_states)

    def _among_pixels(self, attn, query, key, value, context: WindowContext) -> torch.Tensor:
        """Each pixel sees those of its frame, or of all frames that its frame sees."""
        shape, mask = query.shape, None
        if attn.kind == "window":
            query, key, value = (x.flatten(1, 2) for x in (query, key, value))  # (B, T*P, N, E)
            if context.mask is not None:
                pixels = shape[2]
                mask = context.mask.repeat_interleave(pixels, 1).repeat_interleave(pixels, 2)[:, None]
        else:
            query, key, value = (x.flatten(0, 1) for x in (query, key, value))  # (B*T, P, N, E)
        attended = dispatch_attention_fn(
            query, key, value, attn_mask=mask, backend=self._attention_backend, parallel_config=self._parallel_config
        )
        return attended.reshape(shape)

    def _among_frames(self, attn, query, key, value, context: WindowContext) -> torch.Tensor:
        """Each pixel sees the same pixel of the frames that its frame sees."""
        query, key, value = (x.transpose(1, 2) for x in (query, key, value))  # (B, P, T, N, E)
        if context.rotary is not None:
            query, key = turn(query, context.rotary), turn(key, context.rotary)
        if attn.relative_query is None:
            mask = context.pair_mask(query.dtype)
            if mask is not None:  # the same for all pixels
                mask = mask[:, None].expand(-1, query.shape[1], -1, -1, -1).flatten(0, 1)  # (B*P, 1 or N, T, T)
            batch = query.shape[:2]
            query, key, value = (x.flatten(0, 1) for x in (query, key, value))  # (B*P, T, N, E)
            attended = dispatch_attention_fn(
                query,
                key,
                value,
                attn_mask=mask,
                backend=self._attention_backend,
                parallel_config=self._parallel_config,
            )
            return attended.unflatten(0, batch).transpose(1, 2)

        # What the pair adds to the key is read by the query, and the other way round.
        scale = query.shape[-1] ** -0.5
        query, scaled_key = query * scale, key * scale
        logits = torch.einsum("bpine,bpjne->bpnij", query, key)
        logits = logits + torch.einsum("bpine,bijne->bpnij", query, attn.relative_key(context))
        logits = logits + torch.einsum("bpjne,bjine->bpnij", scaled_key, attn.relative_query(context))
        if context.mask is not None:
            logits = logits.masked_fill(~context.mask[:, None, None], float("-inf"))
        weights = logits.softmax(dim=-1)  # (B, P, N, T, T)
        attended = torch.einsum("bpnij,bpjne->bpine", weights, value)
        attended = attended + torch.einsum("bpnij,bijne->bpine", weights, attn.relative_value(context))
        return attended.transpose(1, 2)


def linear_attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """
    Attention among the pixels of a frame at a cost linear in their number (Shen et al., 1812.01243): keys are normalised over
    pixels, queries over channels.

    Args:
        query, key, value (`torch.Tensor` of shape `(B, T, P, N, E)`): Of each pixel and head.

    Returns:
        `torch.Tensor` of the same shape.
    """
    query = query.softmax(dim=-1) * query.shape[-1] ** -0.5
    summary = torch.einsum("btpnd,btpne->btnde", key.softmax(dim=2), value)
    return torch.einsum("btpnd,btnde->btpne", query, summary)


class SpaceTimeAttention(nn.Module, AttentionModuleMixin):
    """
    Self-attention of a feature map, added to it.

    Args:
        channels (`int`): Channels of the feature map.
        heads (`int`): Heads.
        head_dim (`int`): Channels of a head.
        kind (`str`):
            What a pixel sees: `"pixels"` of its frame, `"linear"`, the same at linear cost, `"frames"`, the same pixel of other
            frames, or the whole `"window"`.
        norm (`str`):
            `"group"`: group normalisation; `"pixel"`: over the channels of each pixel, which lets no frame see another;
            `"frames"`: over groups of channels and all frames of a pixel, present or not, as FDM's code does.
        emb_channels (`int`, *optional*): With it, queries, keys and values know the distance of frames by three
            [`RelativePositionNetwork`]s.
        use_bias (`bool`): Whether the projections have biases; `"output"`: only the one to the output.
        adds_to_normalised (`bool`): Whether the result is added to the normalised feature map, as in FDM's code.
    """

    _default_processor_cls = SpaceTimeAttnProcessor
    _available_processors = [SpaceTimeAttnProcessor]

    def __init__(
        self,
        channels: int,
        *,
        heads: int,
        head_dim: int,
        kind: str,
        norm: str,
        emb_channels: int | None = None,
        use_bias: bool | str = True,
        adds_to_normalised: bool = False,
    ) -> None:
        super().__init__()
        self.heads, self.kind, self.norm_kind, self.adds_to_normalised = heads, kind, norm, adds_to_normalised
        self.use_bias = use_bias is True
        self.is_cross_attention = False
        if norm == "pixel":
            self.norm = nn.LayerNorm(channels, eps=1e-5, bias=use_bias is True)
        else:
            self.norm = FrameGroupNorm(channels)
        inner = heads * head_dim
        self.to_q = nn.Linear(channels, inner, bias=use_bias is True)
        self.to_k = nn.Linear(channels, inner, bias=use_bias is True)
        self.to_v = nn.Linear(channels, inner, bias=use_bias is True)
        self.to_out = nn.ModuleList([nn.Linear(inner, channels, bias=bool(use_bias))])
        self.relative_query = self.relative_key = self.relative_value = None
        if emb_channels is not None:
            self.relative_query = RelativePositionNetwork(inner, emb_channels, heads)
            self.relative_key = RelativePositionNetwork(inner, emb_channels, heads)
            self.relative_value = RelativePositionNetwork(inner, emb_channels, heads)
        if use_bias is True:
            nn.init.zeros_(self.to_out[0].weight)
            nn.init.zeros_(self.to_out[0].bias)
        self.set_processor(self._default_processor_cls())

    def normalise(self, hidden_states: torch.Tensor, context: WindowContext) -> torch.Tensor:
        """The normalised feature map, in its layout."""
        if self.norm_kind == "group":
            return self.norm(hidden_states, context)
        tokens = context.to_tokens(hidden_states)
        if self.norm_kind == "pixel":
            return context.from_tokens(self.norm(tokens), hidden_states)
        by_pixel = tokens.permute(0, 2, 3, 1)  # (B, P, C, T)
        normed = F.group_norm(
            by_pixel.flatten(0, 1), self.norm.num_groups, self.norm.weight, self.norm.bias, self.norm.eps
        )
        return context.from_tokens(normed.unflatten(0, by_pixel.shape[:2]).permute(0, 3, 1, 2), hidden_states)

    def forward(self, hidden_states: torch.Tensor, context: WindowContext) -> torch.Tensor:
        return self.processor(self, hidden_states, context)
