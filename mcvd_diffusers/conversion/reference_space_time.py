"""The networks of RaMViD, FDM and VDM's public port once more, as functions over the originals' state dicts, in their order.

They share no code with `models/` and do not use the tables of keys, so that a converted network can be held against them
(`mcvd-diffusers convert --verify`), as the tests hold both against numbers of the originals' code.

Letters in shape comments: `B` windows, `T` frames, `C` channels, `H, W` height and width, `P = H*W` pixels, `N` heads.
"""

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F


def ramvid(state: Mapping[str, torch.Tensor], x: torch.Tensor, t: torch.Tensor, *, heads: int) -> torch.Tensor:
    """
    RaMViD's output.

    Args:
        state (`Mapping[str, torch.Tensor]`): The original's parameters by its names.
        x (`torch.Tensor` of shape `(B, C, T, H, W)`): Noisy frames, and given ones without noise.
        t (`torch.Tensor` of shape `(B,)`): Timesteps, 0 is clean.
        heads (`int`): Of its attention.

    Returns:
        `torch.Tensor` of shape `(B, C, T, H, W)`: The predicted noise.
    """

    def attention(name: str, h: torch.Tensor) -> torch.Tensor:
        tokens = h.flatten(2)  # (B, C, T*P)
        normed = F.group_norm(tokens, 32, state[f"{name}.norm.weight"], state[f"{name}.norm.bias"])
        qkv = F.conv1d(normed, state[f"{name}.qkv.weight"].flatten(1)[..., None], state[f"{name}.qkv.bias"])
        q, k, v = qkv.unflatten(1, (heads, 3, -1)).unbind(2)  # head by head: (B, N, C/N, T*P)
        weights = torch.einsum("bnci,bncj->bnij", q, k).mul(q.shape[2] ** -0.5).softmax(-1)
        mixed = torch.einsum("bnij,bncj->bnci", weights, v).flatten(1, 2)
        out = F.conv1d(mixed, state[f"{name}.proj_out.weight"].flatten(1)[..., None], state[f"{name}.proj_out.bias"])
        return (tokens + out).reshape(h.shape)

    return _adm(state, x, _adm_embedding(state, t), attention)


def fdm(
    state: Mapping[str, torch.Tensor],
    x: torch.Tensor,
    t: torch.Tensor,
    *,
    is_observed: torch.Tensor,
    is_there: torch.Tensor,
    frame_indices: torch.Tensor,
    heads: int,
) -> torch.Tensor:
    """
    FDM's output, with its leak: contents of frames that are not there are read.

    Args:
        state (`Mapping[str, torch.Tensor]`): The original's parameters by its names.
        x (`torch.Tensor` of shape `(B, T, C, H, W)`): Noisy frames, and given ones without noise.
        t (`torch.Tensor` of shape `(B,)`): Timesteps, 0 is clean.
        is_observed, is_there (`torch.Tensor` of shape `(B, T)`): Whether a frame is given; whether it is no padding.
        frame_indices (`torch.Tensor` of shape `(B, T)`): Positions in the video.
        heads (`int`): Of its attention.

    Returns:
        `torch.Tensor` of shape `(B, T, C, H, W)`: The predicted noise.
    """
    batch, frames = x.shape[:2]
    emb = _adm_embedding(state, t)
    distance = (frame_indices[:, :, None] - frame_indices[:, None, :]).to(x.dtype)
    features = torch.stack(
        [(1 + distance.clamp(min=0)).log(), (1 - distance.clamp(max=0)).log(), (distance == 0).to(x.dtype)], -1
    )
    sees = is_there[:, :, None] == is_there[:, None, :]

    def linear(name: str, h: torch.Tensor) -> torch.Tensor:
        return F.linear(h, state[f"{name}.weight"], state[f"{name}.bias"])

    def relative(name: str) -> torch.Tensor:
        """(B, T, T, N, C/N), for each frame i and j."""
        hidden = (
            linear(f"{name}.embed_distances", features) + linear(f"{name}.embed_diffusion_time", emb)[:, None, None]
        )
        return linear(f"{name}.out", F.silu(hidden)).unflatten(-1, (heads, -1))

    def attention(name: str, h: torch.Tensor) -> torch.Tensor:
        size = h.shape[-2:]

        def attend(part: str, sequences: torch.Tensor, is_temporal: bool) -> torch.Tensor:
            """(B, R, C, L): R sequences of a window, each of L tokens, which see one another."""
            norm = (state[f"{part}.norm.weight"], state[f"{part}.norm.bias"])
            normed = F.group_norm(sequences.flatten(0, 1), 32, *norm).unflatten(0, sequences.shape[:2]).mT
            q, k, v = linear(f"{part}.qkv", normed).unflatten(-1, (3, heads, -1)).unbind(3)  # (B, R, L, N, C/N)
            scale = q.shape[-1] ** -0.5
            logits = torch.einsum("brine,brjne->brnij", q * scale, k)
            if is_temporal:
                logits = logits + torch.einsum("brine,bijne->brnij", q * scale, relative(f"{part}.rpe_k.rpe_net"))
                from_key = torch.einsum("brjne,bjine->brnji", k * scale, relative(f"{part}.rpe_q.rpe_net"))
                logits = (logits + from_key.mT).masked_fill(~sees[:, None, None], -math.inf)
            weights = logits.softmax(-1)
            mixed = torch.einsum("brnij,brjne->brine", weights, v)
            if is_temporal:
                mixed = mixed + torch.einsum("brnij,bijne->brine", weights, relative(f"{part}.rpe_v.rpe_net"))
            return (normed + linear(f"{part}.proj_out", mixed.flatten(-2))).mT

        by_pixel = h.unflatten(0, (batch, frames)).flatten(3).permute(0, 3, 2, 1)  # (B, P, C, T)
        by_pixel = attend(f"{name}.temporal_attention", by_pixel, True)
        by_frame = attend(f"{name}.spatial_attention", by_pixel.permute(0, 3, 2, 1), False)  # (B, T, C, P)
        return by_frame.flatten(0, 1).unflatten(2, size)

    indicator = is_observed[:, :, None, None, None].to(x.dtype).expand(-1, -1, 1, *x.shape[-2:])
    h = torch.cat([x, indicator], 2).flatten(0, 1)  # (B*T, C+1, H, W)
    return _adm(state, h, emb.repeat_interleave(frames, 0), attention).unflatten(0, (batch, frames))


def _adm_embedding(state, t):
    half = state["time_embed.0.weight"].shape[1] // 2
    angles = t.float()[:, None] * torch.exp(-math.log(10_000) * torch.arange(half).float() / half)
    waves = torch.cat([angles.cos(), angles.sin()], 1).to(state["time_embed.0.weight"])
    hidden = F.silu(F.linear(waves, state["time_embed.0.weight"], state["time_embed.0.bias"]))
    return F.linear(hidden, state["time_embed.2.weight"], state["time_embed.2.bias"])


def _adm(state, h, emb, attention):
    """The UNet of improved-diffusion, over frames `(B*T, C, H, W)` or volumes `(B, C, T, H, W)`."""

    def has(name):
        return f"{name}.weight" in state

    def norm(name, h):
        return F.group_norm(h, 32, state[f"{name}.weight"], state[f"{name}.bias"])

    def conv(name, h, stride=1):
        weight, is_volume = state[f"{name}.weight"], h.ndim == 5
        strides = (1, stride, stride) if is_volume else stride
        function = F.conv3d if is_volume else F.conv2d
        return function(h, weight, state[f"{name}.bias"], stride=strides, padding=weight.shape[-1] // 2)

    def resnet(name, x):
        h = conv(f"{name}.in_layers.2", F.silu(norm(f"{name}.in_layers.0", x)))
        modulation = F.linear(F.silu(emb), state[f"{name}.emb_layers.1.weight"], state[f"{name}.emb_layers.1.bias"])
        scale, shift = modulation.reshape(*modulation.shape, *[1] * (h.ndim - 2)).chunk(2, 1)
        h = conv(f"{name}.out_layers.3", F.silu(norm(f"{name}.out_layers.0", h) * (1 + scale) + shift))
        return h + (conv(f"{name}.skip_connection", x) if has(f"{name}.skip_connection") else x)

    def block(name, h):
        """Whatever stands in it, one after the other."""
        for number in range(3):
            part = f"{name}.{number}"
            if has(f"{part}.in_layers.0"):
                h = resnet(part, h)
            elif has(f"{part}.qkv") or has(f"{part}.temporal_attention.qkv"):
                h = attention(part, h)
            elif has(f"{part}.op"):
                h = conv(f"{part}.op", h, stride=2)
            elif has(f"{part}.conv"):
                h = conv(f"{part}.conv", h.repeat_interleave(2, -1).repeat_interleave(2, -2))
            elif has(part):
                h = conv(part, h)
        return h

    def num_blocks(way):
        return 1 + max(int(name.split(".")[1]) for name in state if name.startswith(f"{way}."))

    skips = []
    for number in range(num_blocks("input_blocks")):
        h = block(f"input_blocks.{number}", h)
        skips.append(h)
    h = block("middle_block", h)
    for number in range(num_blocks("output_blocks")):
        h = block(f"output_blocks.{number}", torch.cat([h, skips.pop()], 1))
    return conv("out.2", F.silu(norm("out.0", h)))


def vdm_port(
    state: Mapping[str, torch.Tensor], x: torch.Tensor, t: torch.Tensor, *, is_alone: torch.Tensor
) -> torch.Tensor:
    """
    The output of VDM's public port, told of nothing if it can be told of something.

    Args:
        state (`Mapping[str, torch.Tensor]`): The original's parameters by its names.
        x (`torch.Tensor` of shape `(B, C, T, H, W)`): Noisy frames.
        t (`torch.Tensor` of shape `(B,)`): Timesteps, 0 is clean.
        is_alone (`torch.Tensor` of shape `(B,)`): Whether each frame of a clip sees itself only, but for the first attention.

    Returns:
        `torch.Tensor` of shape `(B, C, T, H, W)`: The predicted noise.
    """
    table = state["time_rel_pos_bias.relative_attention_bias.weight"]  # (32, N)
    heads, frames = table.shape[1], x.shape[2]
    dim = state["time_mlp.1.weight"].shape[1]
    half = dim // 2
    angles = t.float()[:, None] * torch.exp(torch.arange(half).float() * (-math.log(10_000) / (half - 1)))
    emb = F.pad(torch.cat([angles.sin(), angles.cos()], 1), (0, dim % 2)).to(x)
    emb = F.gelu(F.linear(emb, state["time_mlp.1.weight"], state["time_mlp.1.bias"]))
    emb = F.linear(emb, state["time_mlp.3.weight"], state["time_mlp.3.bias"])
    if "null_cond_emb" in state:
        emb = torch.cat([emb, state["null_cond_emb"].expand(len(emb), -1)], 1)

    # How far the query is behind the key, as a bucket: 8 of one frame each, 8 that grow up to 32 frames, on each side.
    behind = torch.arange(frames)[:, None] - torch.arange(frames)
    logarithm = torch.log(behind.abs().clamp(min=1).float() / 8) / math.log(4)
    far = (8 + (logarithm * 8).long()).clamp(max=15)
    bucket = torch.where(behind.abs() < 8, behind.abs(), far) + 16 * (behind < 0)
    bias = table[bucket].permute(2, 0, 1)  # (N, T, T)

    def conv(name, h, stride=1, padding=None):
        weight = state[f"{name}.weight"]
        pad = weight.shape[-1] // 2 if padding is None else padding
        return F.conv3d(h, weight, state[f"{name}.bias"], stride=(1, stride, stride), padding=(0, pad, pad))

    def resnet(name, x):
        h, scale, shift = x, 0, 0
        if f"{name}.mlp.1.weight" in state:
            made = F.linear(F.silu(emb), state[f"{name}.mlp.1.weight"], state[f"{name}.mlp.1.bias"])
            scale, shift = made[:, :, None, None, None].chunk(2, 1)
        for block, modulation in (("block1", (scale, shift)), ("block2", (0, 0))):
            h = conv(f"{name}.{block}.proj", h)
            h = h / h.norm(dim=1, keepdim=True).clamp(min=1e-12) * math.sqrt(h.shape[1])
            h = F.silu(h * state[f"{name}.{block}.norm.gamma"] * (1 + modulation[0]) + modulation[1])
        return h + (conv(f"{name}.res_conv", x) if f"{name}.res_conv.weight" in state else x)

    def normalised(name, h):
        variance, mean = torch.var_mean(h, 1, correction=0, keepdim=True)
        return (h - mean) / (variance + 1e-5).sqrt() * state[f"{name}.norm.gamma"]

    def turned(q):
        """Rotary positions on (..., T, E), pairs of neighbours."""
        count = min(32, q.shape[-1])
        angle = torch.arange(frames)[:, None] * 10_000.0 ** (-torch.arange(0, count, 2) / count)
        pairs = torch.view_as_complex(q[..., :count].float().unflatten(-1, (-1, 2)).contiguous())
        pairs = torch.view_as_real(pairs * torch.polar(torch.ones_like(angle), angle)).flatten(-2)
        return torch.cat([pairs.to(q), q[..., count:]], -1)

    def softmax_attention(name, sequences, is_temporal, mask=None):
        """Of (B, R, L, C) tokens."""
        q, k, v = F.linear(sequences, state[f"{name}.to_qkv.weight"]).chunk(3, -1)
        q, k, v = (part.unflatten(-1, (heads, -1)).transpose(2, 3) for part in (q, k, v))  # (B, R, N, L, E)
        q = q * q.shape[-1] ** -0.5
        logits = turned(q) @ turned(k).mT + bias if is_temporal else q @ k.mT
        if mask is not None:
            logits = logits.masked_fill(~mask[:, None, None], -math.inf)
        return F.linear((logits.softmax(-1) @ v).transpose(2, 3).flatten(-2), state[f"{name}.to_out.weight"])

    def among_frames(name, h, mask):
        tokens = normalised(name, h).permute(0, 3, 4, 2, 1).flatten(1, 2)  # (B, P, T, C)
        out = softmax_attention(f"{name}.fn.fn", tokens, True, mask)
        return h + out.unflatten(1, h.shape[3:]).permute(0, 4, 3, 1, 2)

    def among_pixels(name, h):
        tokens = normalised(name, h).permute(0, 2, 3, 4, 1).flatten(2, 3)  # (B, T, P, C)
        return h + softmax_attention(f"{name}.fn.fn", tokens, False).unflatten(2, h.shape[3:]).permute(0, 4, 1, 2, 3)

    def linear_attention(name, h):
        pixels = normalised(name, h).transpose(1, 2).flatten(3)  # (B, T, C, P)
        qkv = torch.einsum("oc,btcp->btop", state[f"{name}.fn.to_qkv.weight"].flatten(1), pixels)
        q, k, v = qkv.unflatten(2, (3, heads, -1)).unbind(2)  # (B, T, N, E, P)
        summary = k.softmax(-1) @ v.mT
        mixed = (summary.mT @ (q.softmax(-2) * q.shape[-2] ** -0.5)).flatten(2, 3)
        out = torch.einsum("oc,btcp->btop", state[f"{name}.fn.to_out.weight"].flatten(1), mixed)
        out = out + state[f"{name}.fn.to_out.bias"][:, None]
        return h + out.unflatten(3, h.shape[3:]).transpose(1, 2)

    mask = torch.eye(frames, dtype=torch.bool) | ~is_alone[:, None, None]
    h = among_frames("init_temporal_attn.fn", conv("init_conv", x), None)
    first, skips = h, []
    levels = range(len({name.split(".")[1] for name in state if name.startswith("downs.")}))
    for level in levels:
        h = resnet(f"downs.{level}.1", resnet(f"downs.{level}.0", h))
        h = among_frames(f"downs.{level}.3.fn", linear_attention(f"downs.{level}.2.fn", h), mask)
        skips.append(h)
        if f"downs.{level}.4.weight" in state:
            h = conv(f"downs.{level}.4", h, stride=2, padding=1)
    h = among_pixels("mid_spatial_attn.fn", resnet("mid_block1", h))
    h = resnet("mid_block2", among_frames("mid_temporal_attn.fn", h, mask))
    for level in levels:
        h = resnet(f"ups.{level}.1", resnet(f"ups.{level}.0", torch.cat([h, skips.pop()], 1)))
        h = among_frames(f"ups.{level}.3.fn", linear_attention(f"ups.{level}.2.fn", h), mask)
        if f"ups.{level}.4.weight" in state:
            weight, offset = state[f"ups.{level}.4.weight"], state[f"ups.{level}.4.bias"]
            h = F.conv_transpose3d(h, weight, offset, stride=(1, 2, 2), padding=(0, 1, 1))
    return conv("final_conv.1", resnet("final_conv.0", torch.cat([h, first], 1)))
