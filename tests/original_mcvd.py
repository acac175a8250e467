"""What the tests need to know of the original MCVD code: its parameter names and the rule of the golden numbers.

The numbers in `tests/reference/mcvd/` were made by running the original code (voletiv/mcvd-pytorch@451da2e) on a CPU in
float32. Weights, noise and inputs follow a rule (seeded by the CRC-32 of a name), so that only results are stored.
"""

import json
import zlib
from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch
import yaml

from mcvd_diffusers import MCVDUNet2DModel
from mcvd_diffusers.conversion.original_weights import convert_state_dict, key_table, original_shapes


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
    widths = [int(model["ngf"] * mult) for mult in model["ch_mult"]]
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
        "conv_in_channels": None if model["ch_mult"][0] == 1 else model["ngf"],
        "layers_per_block": model["num_res_blocks"],
        "attention_head_dim": None if model["n_head_channels"] == -1 else model["n_head_channels"],
        "dropout": model["dropout"],
        "embed_past_kept": model["cond_emb"],
        "drop_past": data["prob_mask_cond"],
        "drop_future": data["prob_mask_future"],
    }
    return MCVDUNet2DModel(**{**arguments, **overrides})


def original_state_dict(unet):
    """Our parameters under the original's names and in its shapes."""
    ours = dict(unet.named_parameters())
    state = {}
    for row in key_table(unet):
        weight = torch.cat([ours[name] for name in row.ours], dim=1) if len(row.ours) > 1 else ours[row.ours[0]]
        state[row.theirs] = weight.T if row.is_transposed else weight
    return state


def rule_state_dict(unet, tag=""):
    """The weights of the golden runs for a network of this shape, by the original's names."""
    return {name: rule_weight(name, shape, tag) for name, shape in original_shapes(unet).items()}


def load_rule_weights(unet, tag=""):
    """Fill the network with the weights of the golden runs."""
    unet.load_state_dict(convert_state_dict(unet, rule_state_dict(unet, tag)))
    return unet


def original_checkpoint(config, num_classes=1000):
    """What the original saves for a config: `[model, optimizer, epoch, step, average]`, with the golden runs' weights."""
    with torch.device("meta"):
        unet = build_unet(config)
    raw, averaged = rule_state_dict(unet), rule_state_dict(unet, "/ema")
    betas = torch.linspace(0.02, 1e-4, num_classes)
    alphas = (1 - betas.flip(0)).cumprod(0).flip(0)
    buffers = {
        "betas": betas,
        "alphas": alphas,
        "alphas_prev": torch.cat([alphas[1:], torch.ones(1)]),
        "unet.sigmas": betas.clone(),
    }
    model = OrderedDict((f"module.{name}", value) for name, value in {**buffers, **raw}.items())
    state = {
        i: {"step": 4, "exp_avg": torch.zeros_like(value), "exp_avg_sq": torch.zeros_like(value)}
        for i, value in enumerate(raw.values())
    }
    group = {"lr": 2e-4, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0, "amsgrad": False}
    optimizer = {"state": state, "param_groups": [{**group, "params": list(state)}]}
    return [model, optimizer, 1, 4, averaged]


def save_original(folder, config, checkpoint=None, **options):
    """A folder as the original leaves it: `checkpoint_4.pt` and `config.yml`."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(
        original_checkpoint(config) if checkpoint is None else checkpoint, folder / "checkpoint_4.pt", **options
    )
    (folder / "config.yml").write_text(yaml.safe_dump(config))
    return folder


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
