"""Masked conditional video diffusion for Hugging Face Diffusers.

>>> from mcvd_diffusers import MCVDPipeline
>>> pipe = MCVDPipeline.from_pretrained("path/to/checkpoint")
>>> future = pipe(past_frames=past, num_frames=28).frames
"""

from diffusers import DiffusionPipeline, ModelMixin, SchedulerMixin  # looked up here by Diffusers' loader: see hub.py

from ._version import __version__
from .frame_plans import FramePlan
from .frame_schedules import Window, blocks, frame_schedule
from .hub import register_with_diffusers
from .masking import FrameRole, mcvd_roles
from .models import (
    LGCVDContextEncoder,
    LGCVDUNet2DModel,
    LGCVDUNet2DOutput,
    MCVDUNet2DModel,
    MCVDUNet2DOutput,
    RVDContextEncoder,
    RVDUNet2DModel,
    RVDUNet2DOutput,
    SpaceTimeUNetModel,
    SpaceTimeUNetOutput,
)
from .pipelines import MCVDPipeline, MCVDPipelineOutput
from .publishing import publishes_networks
from .randomness import NoiseSequence
from .training import denoising_loss, sample_generators


__all__ = [
    "DiffusionPipeline",
    "FramePlan",
    "FrameRole",
    "LGCVDContextEncoder",
    "LGCVDUNet2DModel",
    "LGCVDUNet2DOutput",
    "MCVDPipeline",
    "MCVDPipelineOutput",
    "MCVDUNet2DModel",
    "MCVDUNet2DOutput",
    "ModelMixin",
    "NoiseSequence",
    "RVDContextEncoder",
    "RVDUNet2DModel",
    "RVDUNet2DOutput",
    "SchedulerMixin",
    "SpaceTimeUNetModel",
    "SpaceTimeUNetOutput",
    "Window",
    "__version__",
    "blocks",
    "denoising_loss",
    "frame_schedule",
    "mcvd_roles",
    "sample_generators",
]

NETWORKS = (
    MCVDUNet2DModel,
    SpaceTimeUNetModel,
    LGCVDUNet2DModel,
    LGCVDContextEncoder,
    RVDUNet2DModel,
    RVDContextEncoder,
)
for network in NETWORKS:
    publishes_networks(network)
register_with_diffusers(*NETWORKS, MCVDPipeline)
