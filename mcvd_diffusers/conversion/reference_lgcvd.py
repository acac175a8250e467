"""LGC-VD's two networks once more, as functions over the original's state dicts, in their order.

They share no code with `models/` and do not use the tables of keys, so that converted networks can be held against them
(`mcvd-diffusers convert --verify`), as the tests hold both against numbers of the original's code.

Letters in shape comments: `B` videos, `C` channels of a feature map, `H, W` height and width, `F` frames of a clip, `c` channels
of a frame, `n` frames of context, `N` heads.
"""

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F


def denoiser(
    state: Mapping[str, torch.Tensor],
    x: torch.Tensor,
    t: torch.Tensor,
    *,
    cond: torch.Tensor,
    memory: torch.Tensor,
    head_dim: int,
) -> torch.Tensor:
    """
    What the denoiser predicts of a clip.

    Args:
        state (`Mapping[str, torch.Tensor]`): The original's parameters by its names.
        x (`torch.Tensor` of shape `(B, F*c, H, W)`): The noisy clip, frame by frame.
        t (`torch.Tensor` of shape `(B,)`): Timesteps, 0 is clean.
        cond (`torch.Tensor` of shape `(B, n*(c+1), H, W)`): Each frame of context, with the plane of its position.
        memory (`torch.Tensor` of shape `(B, C, H/8, W/8)`): What [`encoder`] makes of the clips before (8 for four levels).
        head_dim (`int`): Channels of an attention head.

    Returns:
        `torch.Tensor` of shape `(B, F*c, H, W)`: The velocity.
    """
    width = state["time_mlp.1.weight"].shape[1]
    slowness = torch.arange(width // 2) / (width // 2 - 1)
    angles = t[:, None].float() * torch.exp(-math.log(10_000) * slowness)
    emb = torch.cat([torch.sin(angles), torch.cos(angles)], 1).to(x)
    emb = F.gelu(F.linear(emb, state["time_mlp.1.weight"], state["time_mlp.1.bias"]))
    emb = F.silu(F.linear(emb, state["time_mlp.3.weight"], state["time_mlp.3.bias"]))

    h, skips = _way_down(state, torch.cat([cond, x], 1), emb, head_dim)
    h = _attention(state, "midblock4", h, memory, head_dim)
    for level, skip in enumerate(reversed(skips)):
        h = torch.cat([h, skip], 1)
        for number in range(5):
            h = _layer(state, f"ups.{level}.{number}", h, emb, head_dim)
        if f"ups.{level}.5.weight" in state:
            weight, offset = state[f"ups.{level}.5.weight"], state[f"ups.{level}.5.bias"]
            h = F.conv_transpose2d(h, weight, offset, stride=2, padding=1, output_padding=1)
    return _conv(state, "finial_conv", F.silu(h))


def encoder(state: Mapping[str, torch.Tensor], clip: torch.Tensor, *, head_dim: int) -> torch.Tensor:
    """
    The feature map of one clip.

    Args:
        state (`Mapping[str, torch.Tensor]`): The original's parameters by its names.
        clip (`torch.Tensor` of shape `(B, F*c, H, W)`): A clip in `[-1, 1]`, frame by frame.
        head_dim (`int`): Channels of an attention head.

    Returns:
        `torch.Tensor` of shape `(B, C, H/8, W/8)` (8 for four levels).
    """
    return _way_down(state, clip, None, head_dim)[0]


def _way_down(state, h, emb, head_dim):
    """Down and through the middle, up to what reads the memory; and the end of each level."""
    h = _conv(state, "init_conv", h)
    ends = []
    for level in range(len({name.split(".")[1] for name in state if name.startswith("downs.")})):
        for number in range(4):
            h = _layer(state, f"downs.{level}.{number}", h, emb, head_dim)
        ends.append(h)
        if f"downs.{level}.4.weight" in state:
            h = _conv(state, f"downs.{level}.4", h, stride=2)
    for number in (1, 2, 3):
        h = _layer(state, f"midblock{number}", h, emb, head_dim)
    return h, ends


def _layer(state, name, h, emb, head_dim):
    """A residual block, an attention, or nothing."""
    if f"{name}.NIN_0.W" in state:
        return _attention(state, name, h, None, head_dim)
    return _resnet(state, name, h, emb) if f"{name}.Conv_0.weight" in state else h


def _resnet(state, name, x, emb):
    h = _conv(state, f"{name}.Conv_0", F.silu(_norm(state, f"{name}.GroupNorm_0", x)))
    if emb is not None:
        h = h + F.linear(emb, state[f"{name}.Dense_0.weight"], state[f"{name}.Dense_0.bias"])[:, :, None, None]
    # The original looks for groups that divide what comes in, here too.
    h = _conv(state, f"{name}.Conv_1", F.silu(_norm(state, f"{name}.GroupNorm_1", h, divides=x.shape[1])))
    if f"{name}.Conv_2.weight" in state:
        x = _conv(state, f"{name}.Conv_2", x)
    return (x + h) * math.sqrt(0.5)


def _attention(state, name, h, memory, head_dim):
    """Each pixel of `h` to those of the memory, or to one another without one."""

    def project(number, tokens):
        weight, offset = state[f"{name}.NIN_{number}.W"], state[f"{name}.NIN_{number}.b"]
        return torch.einsum("bcp,cd->bdp", tokens, weight) + offset[:, None]

    tokens = _norm(state, f"{name}.GroupNorm_0", h).flatten(2)  # (B, C, H*W)
    read = tokens if memory is None else _norm(state, f"{name}.GroupNorm_0", memory).flatten(2)
    heads = max(1, h.shape[1] // head_dim)
    q, k, v = (project(i, of).unflatten(1, (heads, -1)) for i, of in enumerate((tokens, read, read)))  # (B, N, C/N, P)
    weights = (torch.einsum("bncp,bncr->bnpr", q, k) / math.sqrt(q.shape[2])).softmax(3)
    mixed = torch.einsum("bnpr,bncr->bncp", weights, v).flatten(1, 2)
    return (h + project(3, mixed).reshape(h.shape)) * math.sqrt(0.5)


def _conv(state, name, h, stride=1):
    return F.conv2d(h, state[f"{name}.weight"], state[f"{name}.bias"], stride=stride, padding=1)


def _norm(state, name, h, divides=None):
    width = h.shape[1]
    allowed = range(1, min(width // 4, 32) + 1)
    groups = max(count for count in allowed if width % count == 0 and (divides or width) % count == 0)
    return F.group_norm(h, groups, state[f"{name}.weight"], state[f"{name}.bias"], eps=1e-6)
