"""What the tests need to know of the original RVD code: names, shapes, and the rule of the golden numbers.

The numbers in `tests/reference/memory/rvd_*.npz` were made by running the public code (buggyyang/RVD@309fbe0) on a CPU in
float32. That code has no licence: there is none of it here, and what it computes was rebuilt from the paper and these numbers.
Weights follow a rule (seeded by the CRC-32 of a parameter's name and its network's tag), so that only inputs and results are
stored; `rvd_cases.json` has what the networks were made with, the names and shapes of their state dicts, and the norms of their
gradients. There is no public checkpoint, so that the map of names is here and not in `conversion/`.
"""

import json
import re
import zlib
from pathlib import Path

import numpy as np
import torch

from mcvd_diffusers.models import RVDContextEncoder, RVDUNet2DModel


REFERENCE = Path(__file__).parent / "reference" / "memory"
CASES = json.loads((REFERENCE / "rvd_cases.json").read_text())
TAGS = {"denoiser": "", "context": "/context", "predictor": "/predictor"}

# The scales of normalisations, to which the rule adds 1.
NORM_SCALES = re.compile(r"(.*\.)?(block\.1\.weight|norm\.g)")

# The original's names, in parts from the left, and ours. What is not here is called the same.
RENAMES = (
    (r"^time_mlp\.1\.", "time_embedding.0."),
    (r"^time_mlp\.3\.", "time_embedding.2."),
    (r"^mid_block([12])\.", lambda found: f"mid_block.resnets.{int(found[1]) - 1}."),
    (r"\.fn(?=\.)", ""),
    (r"^mid_attn\.", "mid_block.attention."),
    (r"^final_conv\.0\.block\.", "block_out."),
    (r"^final_conv\.1\.", "conv_out."),
    (r"^mu\.", "conv_out."),
    (r"^(downs|ups)\.(\d+)\.", lambda found: f"{found[1][:-1]}_blocks.{found[2]}."),
    (r"\.mlp\.1\.", ".time_emb_proj."),
    (r"\.(block[12])\.block\.", r".\1."),
    (r"(block[12]|block_out)\.0\.", r"\1.conv."),
    (r"(block[12]|block_out)\.1\.", r"\1.norm."),
    (r"\.res_conv\.", ".conv_shortcut."),
    (r"\.to_out\.", ".to_out.0."),
    (r"\.norm\.g$", ".norm.weight"),
    (r"\.norm\.b$", ".norm.bias"),
)
# The third part of a name in a level.
PARTS = {
    "denoiser": {
        "down_blocks": ("resnets.0", "resnets.1", "attention", "downsampler"),
        "up_blocks": ("resnets.0", "resnets.1", "attention", "upsampler"),
    },
    "context": {"down_blocks": ("resnet", "recurrence", "downsampler")},
    "predictor": {"down_blocks": ("resnet", "recurrence", "downsampler"), "up_blocks": ("resnet", "upsampler")},
}


def rule_weight(name, shape, scale, tag):
    """The weight of the original's parameter `name` of the network with a tag."""
    random = np.random.RandomState(zlib.crc32((name + tag).encode()) & 0x7FFFFFFF)
    weight = (random.standard_normal(tuple(shape)) * scale).astype(np.float32)
    return torch.from_numpy((1 + weight).astype(np.float32) if NORM_SCALES.fullmatch(name) else weight)


def rule_state_dict(case, network):
    """The original's state dict of one of the three networks of a golden run."""
    scale = CASES[case]["weight_scale"]
    return {
        name: rule_weight(name, shape, scale, TAGS[network])
        for name, shape in CASES[case]["state_dict"][network].items()
    }


def our_weights(state, network):
    """A state dict of the original in our names."""
    ours = {}
    for original, value in state.items():
        name = original
        for pattern, replacement in RENAMES:
            name = re.sub(pattern, replacement, name)

        def part(found):
            return f"{found[1]}.{found[2]}.{PARTS[network][found[1]][int(found[3])]}."

        name = re.sub(r"^(down_blocks|up_blocks)\.(\d+)\.(\d+)\.", part, name)
        name = name.replace("sampler.conv.", "sampler.")
        if ".to_qkv." in name:  # convolutions of one pixel are matrices
            for letter, rows in zip("qkv", value[:, :, 0, 0].chunk(3)):
                ours[name.replace("to_qkv", f"to_{letter}")] = rows
        elif ".to_out.0.weight" in name:
            ours[name] = value[:, :, 0, 0]
        elif ".attention.norm." in name:
            ours[name] = value.flatten()
        elif ".recurrence." not in name:
            ours[name] = value
    for original in state:
        if original.endswith("conv_gates.0.weight"):
            level = original.split(".")[1]
            ours |= _recurrence(state, original.removesuffix("conv_gates.0.weight"), f"down_blocks.{level}.recurrence")
    if network == "denoiser":
        return ours
    if network == "context":
        return {f"context_network.{name}": value for name, value in ours.items()}
    return {
        f"{'predictor' if name.startswith('down') else 'prediction_head'}.{name}": value
        for name, value in ours.items()
    }


def _recurrence(state, original, name):
    """Convolutions over the frame and the memory together, as one over each."""
    gates, candidates = (state[f"{original}{part}.0.weight"].chunk(2, dim=1) for part in ("conv_gates", "conv_cans"))
    biases = [state[f"{original}{part}.0.bias"] for part in ("conv_gates", "conv_cans")]
    return {
        f"{name}.conv_input.weight": torch.cat([gates[0], candidates[0]]),
        f"{name}.conv_input.bias": torch.cat(biases),
        f"{name}.conv_gates.weight": gates[1],
        f"{name}.conv_candidate.weight": candidates[1],
    }


def our_configs(sizes):
    """Configs of denoiser and encoder, of the original's arguments."""

    def widths(network):
        return tuple(sizes[network]["dim"] * multiple for multiple in sizes[network]["dim_mults"])

    denoiser = {"in_channels": sizes["denoiser"]["channels"], "block_out_channels": widths("denoiser")}
    encoder = {
        "in_channels": sizes["context"]["channels"],
        "context_block_out_channels": widths("context"),
        "predictor_block_out_channels": widths("predictor"),
    }
    return denoiser, encoder


def load_reference(case):
    return {name: torch.from_numpy(value) for name, value in np.load(REFERENCE / f"{case}.npz").items()}


def load_networks(case, **overrides):
    """Our denoiser and encoder with the weights of a golden run; `overrides` are of the encoder's config."""
    denoiser_config, encoder_config = our_configs(CASES[case]["config"])
    denoiser = RVDUNet2DModel(**denoiser_config).eval()
    denoiser.load_state_dict(our_weights(rule_state_dict(case, "denoiser"), "denoiser"))
    encoder = RVDContextEncoder(**encoder_config | overrides).eval()
    weights = {}
    for network in ("context", "predictor"):
        weights |= our_weights(rule_state_dict(case, network), network)
    encoder.load_state_dict({name: weights.pop(name) for name in encoder.state_dict()})
    return denoiser, encoder
