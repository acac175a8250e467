"""What the tests need to know of the original RaMViD, FDM and VDM code: names, shapes, and the rule of the golden numbers.

The numbers in `tests/reference/space_time/` were made by running the original code (Tobi-r9/RaMViD@d048025,
plai-group/flexible-video-diffusion-modeling@4c3d78b, and lucidrains/video-diffusion-pytorch@2b0b75f, the public port of VDM)
on a CPU in float32. Weights follow a rule (seeded by the CRC-32 of a parameter's name), so that only inputs and results are
stored; `cases.json` has what the networks were made with, and the names and shapes of their state dicts.
"""

import json
import re
import zlib
from pathlib import Path

import numpy as np
import torch

from mcvd_diffusers.conversion.space_time_weights import convert_space_time_weights, recognise
from mcvd_diffusers.models import SpaceTimeUNetModel


REFERENCE = Path(__file__).parent / "reference" / "space_time"
CASES = json.loads((REFERENCE / "cases.json").read_text())
ROLES = {"o": 1, "l": 2, "x": 2, "p": 0}  # x: padding that the original's loader flagged as latent

# The scales of normalisations, to which the rule adds 1.
_ADM_NORMS = re.compile(r"(.*\.)?(in_layers\.0|out_layers\.0|norm)\.weight|out\.0\.weight")
NORM_SCALES = {"ramvid": _ADM_NORMS, "fdm": _ADM_NORMS, "vdm": re.compile(r".*\.norm\.gamma")}


def rule_weight(name, shape, system, scale):
    """The weight of the original's parameter `name`."""
    if name.endswith("rotary_emb.freqs"):  # not drawn: they follow from their number
        return 10_000 ** -(torch.arange(shape[0]) / shape[0])
    random = np.random.RandomState(zlib.crc32(name.encode()) & 0x7FFFFFFF)
    weight = (random.standard_normal(tuple(shape)) * scale).astype(np.float32)
    is_norm_scale = NORM_SCALES[system].fullmatch(name) is not None
    return torch.from_numpy((1 + weight).astype(np.float32) if is_norm_scale else weight)


def rule_state_dict(case):
    """The original's state dict of a golden run."""
    system, scale = CASES[case]["system"], CASES[case]["weight_scale"]
    return {name: rule_weight(name, shape, system, scale) for name, shape in CASES[case]["state_dict"].items()}


def load_reference(case):
    return {name: torch.from_numpy(value) for name, value in np.load(REFERENCE / f"{case}.npz").items()}


def load_network(case, **overrides):
    """Our network with the weights of a golden run."""
    state = rule_state_dict(case)
    found = recognise(state, case)
    network = SpaceTimeUNetModel(**found.config | overrides).eval()
    network.load_state_dict(convert_space_time_weights(state, found.rows, network, case))
    return network


def roles_of(case):
    """The roles of FDM's slots, `(B, T)`."""
    return torch.tensor([[ROLES[letter] for letter in clip] for clip in CASES[case]["roles"]])


# --------------------------------------------------------------------------------------------------------------------
# Names and shapes of any size, without our network and without the table of keys


class _Listing(dict):
    """Name -> shape; `affine` adds a weight and its bias."""

    def affine(self, name, *shape, bias=True):
        self[f"{name}.weight"] = tuple(shape)
        if bias:
            self[f"{name}.bias"] = (shape[0],)


def adm_listing(system, *, multiples, num_blocks, attention_levels, channels=3, width=128):
    """The state dict of RaMViD's or FDM's network (that of improved-diffusion), in its words: name -> shape."""
    kernel = (3, 3, 3) if system == "ramvid" else (3, 3)
    emb, state = 4 * width, _Listing()

    def resnet(name, before, after):
        state.affine(f"{name}.in_layers.0", before)
        state.affine(f"{name}.in_layers.2", after, before, *kernel)
        state.affine(f"{name}.emb_layers.1", 2 * after, emb)
        state.affine(f"{name}.out_layers.0", after)
        state.affine(f"{name}.out_layers.3", after, after, *kernel)
        if before != after:
            state.affine(f"{name}.skip_connection", after, before, *[1] * len(kernel))

    def attention(name, count):
        one = [1] if system == "ramvid" else []  # there a convolution of one token, here a matrix
        for part in [name] if system == "ramvid" else [f"{name}.spatial_attention", f"{name}.temporal_attention"]:
            state.affine(f"{part}.norm", count)
            state.affine(f"{part}.qkv", 3 * count, count, *one)
            state.affine(f"{part}.proj_out", count, count, *one)
        if system == "fdm":
            for letter in "qkv":
                net = f"{name}.temporal_attention.rpe_{letter}.rpe_net"
                state.affine(f"{net}.embed_distances", count, 3)
                state.affine(f"{net}.embed_diffusion_time", count, emb)
                state.affine(f"{net}.out", count, count)

    state.affine("time_embed.0", emb, width)
    state.affine("time_embed.2", emb, emb)
    state.affine("input_blocks.0.0", width, channels + (system == "fdm"), *kernel)
    current, skips, number = width, [width], 1
    for level, multiple in enumerate(multiples):
        for _ in range(num_blocks):
            resnet(f"input_blocks.{number}.0", current, multiple * width)
            current = multiple * width
            if level in attention_levels:
                attention(f"input_blocks.{number}.1", current)
            skips.append(current)
            number += 1
        if level < len(multiples) - 1:
            state.affine(f"input_blocks.{number}.0.op", current, current, *kernel)
            skips.append(current)
            number += 1
    resnet("middle_block.0", current, current)
    attention("middle_block.1", current)
    resnet("middle_block.2", current, current)
    number = 0
    for level, multiple in reversed(list(enumerate(multiples))):
        for i in range(num_blocks + 1):
            resnet(f"output_blocks.{number}.0", current + skips.pop(), multiple * width)
            current, parts = multiple * width, 1
            if level in attention_levels:
                attention(f"output_blocks.{number}.1", current)
                parts += 1
            if level > 0 and i == num_blocks:
                state.affine(f"output_blocks.{number}.{parts}.conv", current, current, *kernel)
            number += 1
    state.affine("out.0", current)
    state.affine("out.2", channels, width, *kernel)
    return dict(state)


def port_listing(*, dim, multiples=(1, 2, 4, 8), channels=3, heads=8, head_dim=32, condition=0):
    """The state dict of the port's `Unet3D`, in its words: name -> shape."""
    state, inner, pixel_inner = _Listing(), heads * head_dim, heads * 32
    widths = [dim * multiple for multiple in multiples]

    def resnet(name, before, after, has_time=True):
        if has_time:
            state.affine(f"{name}.mlp.1", 2 * after, 4 * dim + condition)
        for block, count in (("block1", before), ("block2", after)):
            state.affine(f"{name}.{block}.proj", after, count, 1, 3, 3)
            state[f"{name}.{block}.norm.gamma"] = (after, 1, 1, 1)
        if before != after:
            state.affine(f"{name}.res_conv", after, before, 1, 1, 1)

    def attention(name, count, inner, is_temporal):
        state[f"{name}.norm.gamma"] = (1, count, 1, 1, 1)
        if is_temporal:
            state[f"{name}.fn.fn.rotary_emb.freqs"] = (min(32, head_dim) // 2,)
        state[f"{name}.fn.fn.to_qkv.weight"] = (3 * inner, count)
        state[f"{name}.fn.fn.to_out.weight"] = (count, inner)

    def linear_attention(name, count):
        state[f"{name}.norm.gamma"] = (1, count, 1, 1, 1)
        state[f"{name}.fn.to_qkv.weight"] = (3 * pixel_inner, count, 1, 1)
        state.affine(f"{name}.fn.to_out", count, pixel_inner, 1, 1)

    state["time_rel_pos_bias.relative_attention_bias.weight"] = (32, heads)
    state.affine("init_conv", dim, channels, 1, 7, 7)
    attention("init_temporal_attn.fn", dim, inner, True)
    state.affine("time_mlp.1", 4 * dim, dim)
    state.affine("time_mlp.3", 4 * dim, 4 * dim)
    if condition:
        state["null_cond_emb"] = (1, condition)
    ways = {"downs": list(zip([dim, *widths], widths)), "ups": list(zip(widths, [dim, *widths]))[::-1]}
    for way, pairs in ways.items():
        for level, (before, after) in enumerate(pairs):
            block = f"{way}.{level}"
            resnet(f"{block}.0", before * (2 if way == "ups" else 1), after)
            resnet(f"{block}.1", after, after)
            linear_attention(f"{block}.2.fn", after)
            attention(f"{block}.3.fn", after, inner, True)
            if level < len(pairs) - 1:
                state.affine(f"{block}.4", after, after, 1, 4, 4)
    for name in ("mid_block1", "mid_block2"):
        resnet(name, widths[-1], widths[-1])
    attention("mid_spatial_attn.fn", widths[-1], pixel_inner, False)
    attention("mid_temporal_attn.fn", widths[-1], inner, True)
    resnet("final_conv.0", 2 * dim, dim, has_time=False)
    state.affine("final_conv.1", channels, dim, 1, 1, 1)
    return dict(state)
