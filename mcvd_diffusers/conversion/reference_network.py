"""The original's network a second time: one function over the original's state dict, in its order of modules.

It shares no code with `models/unet_mcvd.py` and does not use the table of keys, so that a converted network can be held
against it (`mcvd-diffusers convert --verify`), as the tests hold both against numbers of the original code.
"""

import math
from collections.abc import Collection, Mapping

import torch
import torch.nn.functional as F


TAPS = torch.tensor([1.0, 3.0, 3.0, 1.0])
KERNEL = torch.outer(TAPS, TAPS) / 64


def _num_groups(channels):
    groups = min(channels // 4, 32)
    while channels % groups:
        groups -= 1
    return groups


def _fir_down(x):
    channels = x.shape[1]
    kernel = KERNEL.to(x)[None, None].expand(channels, 1, 4, 4)
    return F.conv2d(F.pad(x, (1, 1, 1, 1)), kernel, groups=channels)[..., ::2, ::2]


def _fir_up(x):
    batch, channels, height, width = x.shape
    zeros = x.new_zeros(batch, channels, 2 * height, 2 * width)
    zeros[..., ::2, ::2] = x
    kernel = 4 * KERNEL.to(x)[None, None].expand(channels, 1, 4, 4)
    return F.conv2d(F.pad(zeros, (2, 1, 2, 1)), kernel, groups=channels)


def forward(
    state: Mapping[str, torch.Tensor],
    x: torch.Tensor,
    label: torch.Tensor,
    cond: torch.Tensor,
    is_past_kept: torch.Tensor,
    *,
    ngf: int,
    num_levels: int,
    num_res_blocks: int,
    attn_levels: Collection[int],
    n_head_channels: int,
    spade: bool,
    cond_emb: bool,
) -> torch.Tensor:
    """
    The original's output.

    Args:
        state (`Mapping[str, torch.Tensor]`): The original's parameters by its names, without `module.`.
        x (`torch.Tensor` of shape `(B, k*C, S, S)`): The noisy block.
        label (`torch.Tensor` of shape `(B,)`): The original's label: 0 is noise.
        cond (`torch.Tensor` of shape `(B, (p+f)*C, S, S)`): Past and future frames; zero where masked.
        is_past_kept (`torch.Tensor` of shape `(B,)`): Read if `cond_emb`.
        num_levels (`int`), attn_levels (`Collection[int]`): Levels of the UNet, and those with attention, finest 0.
        ngf, num_res_blocks, n_head_channels, spade, cond_emb: The original's options.

    Returns:
        `torch.Tensor` of shape `(B, k*C, S, S)`: The predicted noise.
    """
    counter = iter(range(10_000))

    def get(i, name):
        return state[f"unet.all_modules.{i}.{name}"]

    def conv(i, name, h, padding=1):
        return F.conv2d(h, get(i, f"{name}weight"), get(i, f"{name}bias"), padding=padding)

    def linear(i, name, h):
        return F.linear(h, get(i, f"{name}weight"), get(i, f"{name}bias"))

    half = ngf // 2
    frequencies = torch.exp(-torch.arange(half, dtype=x.dtype, device=x.device) * math.log(10_000) / (half - 1))
    angles = label[:, None].to(x.dtype) * frequencies
    temb = F.pad(torch.cat([angles.sin(), angles.cos()], dim=1), (0, ngf % 2))
    temb = linear(next(counter), "", temb)
    temb = linear(next(counter), "", F.silu(temb))
    if cond_emb:
        temb = torch.cat([temb, get(next(counter), "weight")[is_past_kept.long()]], dim=1)

    def spatin(i, prefix, h):
        step = cond.shape[-1] // h.shape[-1]
        a = F.silu(conv(i, f"{prefix}mlp_shared.0.", cond[..., ::step, ::step]))
        normal = F.group_norm(h, _num_groups(h.shape[1]), eps=1e-6)
        return normal * (1 + conv(i, f"{prefix}mlp_gamma.", a)) + conv(i, f"{prefix}mlp_beta.", a)

    def resnet(x, resample=None):
        i = next(counter)

        def modulate(k, h):
            scale, shift = linear(i, f"actnorm{k}.Dense_0.", F.silu(temb))[:, :, None, None].chunk(2, dim=1)
            if spade:
                normal = spatin(i, f"actnorm{k}.Norm_0.", h)
            else:
                normal = F.group_norm(h, _num_groups(h.shape[1]), eps=1e-5)
            return F.silu(normal * (1 + scale) + shift)

        h = modulate(0, x)
        if resample:
            h, x = resample(h), resample(x)
        h = conv(i, "Conv_1.", modulate(1, conv(i, "Conv_0.", h)))
        if x.shape[1] != h.shape[1] or resample:
            x = conv(i, "Conv_2.", x, padding=0)
        return (x + h) / math.sqrt(2)

    def attention(h):
        i = next(counter)
        batch, channels, height, width = h.shape
        has_one_head = n_head_channels == -1 or channels < n_head_channels
        heads = 1 if has_one_head else channels // n_head_channels
        normal = F.group_norm(h, _num_groups(channels), get(i, "GroupNorm_0.weight"), get(i, "GroupNorm_0.bias"), 1e-6)

        def nin(k, h):
            return torch.einsum("bcn,cd->bdn", h.flatten(2), get(i, f"NIN_{k}.W")) + get(i, f"NIN_{k}.b")[:, None]

        q, k, v = (nin(j, normal).unflatten(1, (heads, -1)) for j in range(3))
        weight = torch.softmax(torch.einsum("bhci,bhcj->bhij", q, k) / math.sqrt(channels // heads), dim=-1)
        mixed = torch.einsum("bhij,bhcj->bhci", weight, v).flatten(1, 2)
        return (h + nin(3, mixed).reshape(h.shape)) / math.sqrt(2)

    h = conv(next(counter), "", x if spade else torch.cat([x, cond], dim=1))
    skips = [h]
    for level in range(num_levels):
        for _ in range(num_res_blocks):
            h = resnet(h)
            if level in attn_levels:
                h = attention(h)
            skips.append(h)
        if level < num_levels - 1:
            h = resnet(h, _fir_down)
            skips.append(h)
    h = resnet(attention(resnet(h)))
    for level in reversed(range(num_levels)):
        for _ in range(num_res_blocks + 1):
            h = resnet(torch.cat([h, skips.pop()], dim=1))
        if level in attn_levels:
            h = attention(h)
        if level > 0:
            h = resnet(h, _fir_up)
    i = next(counter)
    if spade:
        h = spatin(i, "Norm_0.", h)
    else:
        h = F.group_norm(h, _num_groups(h.shape[1]), get(i, "Norm_0.weight"), get(i, "Norm_0.bias"), 1e-5)
    return conv(next(counter), "", F.silu(h))
