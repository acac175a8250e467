"""What the tests need to know of the original MCVD code: its parameter names and the rule of the golden numbers.

The numbers in `tests/reference/mcvd/` were made by running the original code (voletiv/mcvd-pytorch@451da2e) on a CPU in
float32. Weights, noise and inputs follow a rule (seeded by the CRC-32 of a name), so that only results are stored.
"""

import json
import zlib
from pathlib import Path

import numpy as np
import torch

from mcvd_diffusers import MCVDUNet2DModel


REFERENCE = Path(__file__).parent / "reference" / "mcvd"
CASES = json.loads((REFERENCE / "cases.json").read_text())


def _random_state(key):
    return np.random.RandomState(zlib.crc32(key.encode()) & 0x7FFFFFFF)


def rule_normal(key, shape):
    return torch.from_numpy(_random_state(key).standard_normal(tuple(shape)).astype(np.float32))


def rule_uniform(key, shape):
    """Uniform in [-1, 1)."""
    return torch.from_numpy(_random_state(key).uniform(-1, 1, size=tuple(shape)).astype(np.float32))


def rule_weight(name, shape, tag=""):
    """The weight of the original's parameter `name`; tag "/ema" gives the averaged one."""
    weight = (_random_state(name + tag).standard_normal(tuple(shape)) * 0.05).astype(np.float32)
    is_norm_scale = name.endswith("Norm_0.weight") and len(shape) == 1
    return torch.from_numpy((1 + weight).astype(np.float32) if is_norm_scale else weight)


def load_reference(name):
    return {key: torch.from_numpy(value) for key, value in np.load(REFERENCE / f"{name}.npz").items()}


def build_unet(config, **overrides):
    """Our network for the original's config (its sections `data` and `model`)."""
    data, model = config["data"], config["model"]
    widths = [model["ngf"] * mult for mult in model["ch_mult"]]
    resolutions = [data["image_size"] // 2**level for level in range(len(widths))]
    arguments = {
        "sample_size": data["image_size"],
        "in_channels": data["channels"],
        "num_past_frames": data["num_frames_cond"],
        "num_frames": data["num_frames"],
        "num_future_frames": data["num_frames_future"],
        "conditioning": "spatin" if model["spade"] else "concat",
        "spatin_channels": model["spade_dim"],
        "down_block_types": [
            "AttnDownBlock2D" if size in model["attn_resolutions"] else "DownBlock2D" for size in resolutions
        ],
        "block_out_channels": widths,
        "layers_per_block": model["num_res_blocks"],
        "attention_head_dim": None if model["n_head_channels"] == -1 else model["n_head_channels"],
        "dropout": model["dropout"],
        "embed_past_kept": model["cond_emb"],
        "drop_past": data["prob_mask_cond"],
        "drop_future": data["prob_mask_future"],
    }
    return MCVDUNet2DModel(**{**arguments, **overrides})


def original_names(unet):
    """Pairs (our module, original's index in `all_modules`) in the original's order."""
    modules = [unet.time_embedding.linear_1, unet.time_embedding.linear_2]
    if unet.past_embedding is not None:
        modules.append(unet.past_embedding)
    modules.append(unet.conv_in)
    for block in unet.down_blocks:
        for i, resnet in enumerate(block.resnets):
            modules.append(resnet)
            if block.attentions is not None:
                modules.append(block.attentions[i])
        if block.downsampler is not None:
            modules.append(block.downsampler)
    modules += [unet.mid_block.resnets[0], unet.mid_block.attention, unet.mid_block.resnets[1]]
    for block in unet.up_blocks:
        modules += [*block.resnets]
        if block.attention is not None:
            modules.append(block.attention)
        if block.upsampler is not None:
            modules.append(block.upsampler)
    modules += [unet.conv_norm_out, unet.conv_out]
    return [(module, f"unet.all_modules.{i}") for i, module in enumerate(modules)]


def original_state_dict(unet):
    """Views of our parameters under the original's names and in its shapes, where they differ by a transposition.

    The input convolution of a concat network is two parameters here and one there; it is left out and returned as the
    second value, `(name, [ours for the block, ours for the given frames])`.
    """
    resnet_parts = {
        "actnorm0.Dense_0": "time_emb_proj1",
        "actnorm1.Dense_0": "time_emb_proj2",
        "Conv_0": "conv1",
        "Conv_1": "conv2",
        "Conv_2": "conv_shortcut",
        "actnorm0.Norm_0.mlp_shared.0": "norm1.conv_shared",
        "actnorm0.Norm_0.mlp_gamma": "norm1.conv_gamma",
        "actnorm0.Norm_0.mlp_beta": "norm1.conv_beta",
        "actnorm1.Norm_0.mlp_shared.0": "norm2.conv_shared",
        "actnorm1.Norm_0.mlp_gamma": "norm2.conv_gamma",
        "actnorm1.Norm_0.mlp_beta": "norm2.conv_beta",
    }
    attention_parts = {"NIN_0": "to_q", "NIN_1": "to_k", "NIN_2": "to_v", "NIN_3": "to_out.0"}
    spatin_parts = {
        f"Norm_0.mlp_{a}": f"conv_{b}" for a, b in (("shared.0", "shared"), ("gamma", "gamma"), ("beta", "beta"))
    }
    state, split = {}, None
    for module, name in original_names(unet):
        kind = type(module).__name__
        if kind == "MCVDResnetBlock2D":
            ours = dict(module.named_parameters())
            for theirs, part in resnet_parts.items():
                for leaf in ("weight", "bias"):
                    if f"{part}.{leaf}" in ours:
                        state[f"{name}.{theirs}.{leaf}"] = ours[f"{part}.{leaf}"]
        elif kind == "MCVDAttention":
            for leaf in ("weight", "bias"):
                state[f"{name}.GroupNorm_0.{leaf}"] = getattr(module.norm, leaf)
            for theirs, part in attention_parts.items():
                linear = module.get_submodule(part)
                state[f"{name}.{theirs}.W"], state[f"{name}.{theirs}.b"] = linear.weight.T, linear.bias
        elif kind == "MCVDSpatinNorm":
            for theirs, part in spatin_parts.items():
                for leaf in ("weight", "bias"):
                    state[f"{name}.{theirs}.{leaf}"] = getattr(module.get_submodule(part), leaf)
        elif module is unet.conv_norm_out:
            for leaf in ("weight", "bias"):
                state[f"{name}.Norm_0.{leaf}"] = getattr(module, leaf)
        elif module is unet.conv_in and unet.conv_cond is not None:
            split = (f"{name}.weight", [module.weight, unet.conv_cond.weight])
            state[f"{name}.bias"] = module.bias
        else:
            for leaf, parameter in module.named_parameters():
                state[f"{name}.{leaf}"] = parameter
    return state, split


@torch.no_grad()
def load_rule_weights(unet, tag=""):
    """Fill the network with the weights of the golden runs, by the original's parameter names."""
    state, split = original_state_dict(unet)
    for name, parameter in state.items():
        parameter.copy_(rule_weight(name, parameter.shape, tag))
    num_filled = sum(parameter.numel() for parameter in state.values())
    if split is not None:
        name, (block, given) = split
        shape = (block.shape[0], block.shape[1] + given.shape[1], 3, 3)
        weight = rule_weight(name, shape, tag)
        block.copy_(weight[:, : block.shape[1]])
        given.copy_(weight[:, block.shape[1] :])
        num_filled += weight.numel()
    assert num_filled == sum(parameter.numel() for parameter in unet.parameters())
    return unet


def window(unet, block, given):
    """The original's inputs, x (B, k*C, H, W) and cond (B, (p+f)*C, H, W), as one window (B, T, C, H, W)."""
    config = unet.config
    block = block.unflatten(1, (config.num_frames, config.in_channels))
    given = given.unflatten(1, (config.num_past_frames + config.num_future_frames, config.in_channels))
    past = config.num_past_frames
    return torch.cat([given[:, :past], block, given[:, past:]], dim=1)


def block_of(unet, sample):
    """The block of a window, as the original's channels: (B, T, C, H, W) -> (B, k*C, H, W)."""
    past, current = unet.config.num_past_frames, unet.config.num_frames
    return sample[:, past : past + current].flatten(1, 2)
