"""What the tests need to know of the original LGC-VD code: names, shapes, and the rule of the golden numbers.

The numbers in `tests/reference/memory/lgcvd_*` were made by running the original code (exisas/LGC-VD@69e5fd7) on a CPU in
float32: its two networks, one iteration of its trainer for each task, and its sampler over three clips. Weights follow a rule
(seeded by the CRC-32 of a parameter's name; for the encoder followed by `/enc`), so that only inputs and results are stored;
`lgcvd_cases.json` has what the networks were made with, and the names and shapes of their state dicts.
"""

import json
import re
import zlib
from pathlib import Path

import numpy as np
import torch

from mcvd_diffusers.conversion.lgcvd_weights import convert_lgcvd_weights, recognise
from mcvd_diffusers.models import LGCVDContextEncoder, LGCVDUNet2DModel


REFERENCE = Path(__file__).parent / "reference" / "memory"
CASES = json.loads((REFERENCE / "lgcvd_cases.json").read_text())
NUM_FRAMES = 8  # of a clip

NETWORKS = {"denoiser": LGCVDUNet2DModel, "encoder": LGCVDContextEncoder}
STATE_DICTS = {"denoiser": "state_dict", "encoder": "state_dict_encoder"}
TAGS = {"denoiser": "", "encoder": "/enc"}
NORM_SCALE = re.compile(r".*\.GroupNorm_[01]\.weight")  # to which the rule adds 1


def drawn(key, shape, scale=1.0):
    """Gaussian numbers that belong to a key: weights, and the noise `<case>/...` of a golden run."""
    random = np.random.RandomState(zlib.crc32(key.encode()) & 0x7FFFFFFF)
    return (random.standard_normal(tuple(shape)) * scale).astype(np.float32)


def rule_state_dict(shapes, scale, kind):
    """The original's state dict, of a network with parameters of these names and shapes."""
    state = {}
    for name, shape in shapes.items():
        weight = drawn(name + TAGS[kind], shape, scale)
        state[name] = torch.from_numpy((1 + weight).astype(np.float32) if NORM_SCALE.fullmatch(name) else weight)
    return state


def load_reference(case):
    return {name: torch.from_numpy(value) for name, value in np.load(REFERENCE / f"{case}.npz").items()}


def load_network(case, kind, **overrides):
    """Our network with the weights of a golden run."""
    known = CASES[case]
    state = rule_state_dict(known[STATE_DICTS[kind]], known["weight_scale"], kind)
    found = recognise(state, case, head_dim=known["config"]["n_head_channels"])
    assert found.kind == kind
    network = NETWORKS[kind](**found.config | overrides).eval()
    network.load_state_dict(convert_lgcvd_weights(state, found.rows, network, case))
    return network


def as_frames(stacked, channels=3):
    """Frames on channels, frame by frame, `(B, n * C, H, W)` -> `(B, n, C, H, W)`."""
    return stacked.unflatten(1, (-1, channels))


# --------------------------------------------------------------------------------------------------------------------
# Names and shapes of any size, without our networks and without the table of keys


def lgcvd_listing(kind, *, dim=128, multiples=(1, 2, 3, 4), attention_level=2, channels=3):
    """The state dict of one of the two networks, in the original's words: name -> shape."""
    state, is_denoiser = {}, kind == "denoiser"
    widths = [dim * multiple for multiple in multiples]
    levels, stacked = len(widths), NUM_FRAMES * channels

    def affine(name, *shape):
        state[f"{name}.weight"], state[f"{name}.bias"] = list(shape), shape[:1]

    def resnet(name, before, after):
        affine(f"{name}.GroupNorm_0", before)
        affine(f"{name}.Conv_0", after, before, 3, 3)
        if is_denoiser:
            affine(f"{name}.Dense_0", after, 4 * dim)
        affine(f"{name}.GroupNorm_1", after)
        affine(f"{name}.Conv_1", after, after, 3, 3)
        if before != after:
            affine(f"{name}.Conv_2", after, before, 3, 3)

    def attention(name, width):
        affine(f"{name}.GroupNorm_0", width)
        for number in range(4):
            state[f"{name}.NIN_{number}.W"], state[f"{name}.NIN_{number}.b"] = [width, width], [width]

    affine("init_conv", dim, stacked + is_denoiser * 2 * (channels + 1), 3, 3)
    for level, (before, after) in enumerate(zip([dim, *widths], widths)):
        for number in (0, 2):
            resnet(f"downs.{level}.{number}", after if number else before, after)
            if level == attention_level:
                attention(f"downs.{level}.{number + 1}", after)
        if level < levels - 1:
            affine(f"downs.{level}.4", after, after, 3, 3)
    for number in (1, 3):
        resnet(f"midblock{number}", widths[-1], widths[-1])
    attention("midblock2", widths[-1])
    if is_denoiser:
        attention("midblock4", widths[-1])
        affine("time_mlp.1", 4 * dim, dim)
        affine("time_mlp.3", 4 * dim, 4 * dim)
        for index, level in enumerate(reversed(range(levels))):
            after = widths[max(level - 1, 0)]
            for number in (0, 2, 4):
                resnet(f"ups.{index}.{number}", after if number else 2 * widths[level], after)
                if index == attention_level and number < 4:  # counted from the wrong end
                    attention(f"ups.{index}.{number + 1}", after)
            if level > 0:
                affine(f"ups.{index}.5", after, after, 3, 3)
        affine("finial_conv", stacked, dim, 3, 3)
    return {name: list(shape) for name, shape in state.items()}
