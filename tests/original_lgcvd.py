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


def drawn(key, shape):
    """Gaussian numbers that belong to a key: weights, and the noise `<case>/...` of a golden run."""
    random = np.random.RandomState(zlib.crc32(key.encode()) & 0x7FFFFFFF)
    return random.standard_normal(tuple(shape)).astype(np.float32)


def rule_state_dict(shapes, scale, kind):
    """The original's state dict, of a network with parameters of these names and shapes."""
    state = {}
    for name, shape in shapes.items():
        random = np.random.RandomState(zlib.crc32((name + TAGS[kind]).encode()) & 0x7FFFFFFF)
        weight = (random.standard_normal(tuple(shape)) * scale).astype(np.float32)
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
