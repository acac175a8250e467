"""Masked conditional video diffusion for Hugging Face Diffusers.

>>> from mcvd_diffusers import MCVDPipeline
>>> pipe = MCVDPipeline.from_pretrained("path/to/checkpoint")
>>> future = pipe(past_frames=past, num_frames=28).frames
"""

from diffusers import DiffusionPipeline, ModelMixin, SchedulerMixin  # looked up here by Diffusers' loader: see hub.py

from ._version import __version__
from .frame_schedules import Window, blocks
from .hub import register_with_diffusers
from .masking import FrameRole, mcvd_roles
from .models import MCVDUNet2DModel, MCVDUNet2DOutput
from .pipelines import MCVDPipeline, MCVDPipelineOutput
from .publishing import publishes_networks
from .randomness import NoiseSequence
from .training import denoising_loss, sample_generators


__all__ = [
    "DiffusionPipeline",
    "FrameRole",
    "MCVDPipeline",
    "MCVDPipelineOutput",
    "MCVDUNet2DModel",
    "MCVDUNet2DOutput",
    "ModelMixin",
    "NoiseSequence",
    "SchedulerMixin",
    "Window",
    "__version__",
    "blocks",
    "denoising_loss",
    "mcvd_roles",
    "sample_generators",
]

publishes_networks(MCVDUNet2DModel)
register_with_diffusers(MCVDUNet2DModel, MCVDPipeline)
