"""Tiny pipelines with a context encoder, for tests of what is saved beside a network: folders, cards, pushes, evaluations."""

import torch
from diffusers import DDIMScheduler

from contract_rows import shaken
from mcvd_diffusers import MCVDPipeline, MCVDUNet2DModel
from mcvd_diffusers.models import LGCVDContextEncoder, LGCVDUNet2DModel, RVDContextEncoder, RVDUNet2DModel


SIZE = {"sample_size": 8, "in_channels": 1}
LEVELS = {"block_out_channels": (8, 16), "layers_per_block": 1, "attention_levels": (1,), "attention_head_dim": 8}
BLOCKS = {
    "num_past_frames": 2,
    "num_frames": 2,
    "num_future_frames": 1,
    "drop_past": 0.5,
    "drop_future": 0.5,
    "block_out_channels": (8, 16),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "attention_head_dim": 8,
    "layers_per_block": 1,
}
CONTEXTS = ("lgcvd", "rvd", "memory", "residual")


def context_pipeline(kind: str, **unet) -> MCVDPipeline:
    """
    A pipeline that is always the same.

    Args:
        kind (`str`): `"lgcvd"` and `"rvd"`: the systems; `"memory"` and `"residual"`: MCVD's network with what is theirs.
        unet: Further settings of the network.
    """
    recurrent = {"context_block_out_channels": (8, 16), "predictor_block_out_channels": (8, 16), "norm_num_groups": 4}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if kind == "lgcvd":
            network = LGCVDUNet2DModel(**SIZE, **LEVELS, **{"max_frames": 4, **unet})
        elif kind == "rvd":
            unet = {"block_out_channels": (8, 16), "norm_num_groups": 4, "num_train_timesteps": 1000, **unet}
            network = RVDUNet2DModel(**SIZE, **unet)
        elif kind == "memory":
            network = MCVDUNet2DModel(**SIZE, **BLOCKS, **{"context_channels": 16, **unet})
        else:
            network = MCVDUNet2DModel(**SIZE, **BLOCKS, **{"residual": True, **unet})
            recurrent["context_block_out_channels"] = None
        if kind in ("lgcvd", "memory"):
            encoder = LGCVDContextEncoder(**SIZE, **LEVELS, max_frames=4)
        else:
            encoder = RVDContextEncoder(**SIZE, **recurrent)
    scheduler = DDIMScheduler(prediction_type="v_prediction", clip_sample=True)
    pipe = MCVDPipeline(shaken(network), scheduler, context_encoder=shaken(encoder))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def move(network: torch.nn.Module) -> None:
    """Other weights."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(0.9)
