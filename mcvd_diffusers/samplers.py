"""The noise schedulers that checkpoints are saved with: which of Diffusers' fit what a network predicts, and how they are set.

The first of each list is the default. Where noise and signal come from betas it is DPM-Solver++ of order 2 (2211.01095), whose
`NUM_STEPS` calls of the network come as near to where a thousand lead as DDIM's hundred: `benchmarks/RESULTS.md`.
"""

import inspect

import diffusers
from diffusers import SchedulerMixin

from .objectives import VARIANCE_PRESERVING, objective_of


# Denoising steps by default.
NUM_STEPS = 15
DISTILLED = ("LCMScheduler",)
FROM_BETAS = ("DPMSolverMultistepScheduler", "UniPCMultistepScheduler", "DDIMScheduler", "DDPMScheduler") + (
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "HeunDiscreteScheduler",
)
WITHOUT_ZERO_SNR = ("HeunDiscreteScheduler",)
# Those of order 1 need more steps.
NUM_STEPS_OF = dict.fromkeys(DISTILLED, 4) | dict.fromkeys(
    ("DDIMScheduler", "DDPMScheduler", "EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler"), 25
)
# By what the network predicts.
SAMPLERS = {
    **dict.fromkeys(VARIANCE_PRESERVING, FROM_BETAS),
    "flow_prediction": ("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler"),
    "edm": ("EDMDPMSolverMultistepScheduler", "EDMEulerScheduler"),
}


def make_sampler(
    noise_scheduler: SchedulerMixin, name: str | None = None, *, largest_value: float = 1.0, **changes
) -> SchedulerMixin:
    """
    The noise scheduler that a checkpoint is sampled with, of the noise that its network was trained on.

    It starts at the noisiest timestep of training and ends without noise. Frames are not kept within their range on the way: where the
    noise that a prediction amounts to stays as it was, as in DDIM, that adds an error to each step, which costs more quality than
    anything that it cures (measured: `benchmarks/RESULTS.md`). Only what makes the next frames of the clipped ones, DDPM and the
    sampler of distilled networks, does it. (The pipeline keeps frames within the range of the data at the end, with any scheduler.)

    Args:
        noise_scheduler ([`SchedulerMixin`]): Of training.
        name (`str`, *optional*): One of `SAMPLERS` for what the network predicts; the first, if not given.
        largest_value (`float`, *optional*, defaults to 1.0): Of frames as the network sees them, where they are clipped.
        changes: Of the scheduler's settings.

    Returns:
        [`SchedulerMixin`]
    """
    kind = getattr(diffusers, name or SAMPLERS[objective_of(noise_scheduler).prediction_type][0])
    config = noise_scheduler.config
    # Said aloud: what was left at its default there, Diffusers would set to the default of the other class.
    noise = {
        key: config[key] for key in ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule") if key in config
    }
    own = noise | {
        "timestep_spacing": "trailing",
        "clip_sample": kind.__name__ in ("DDPMScheduler", *DISTILLED),
        "clip_sample_range": largest_value,
    }
    takes = inspect.signature(kind).parameters
    settings = {key: value for key, value in (own | changes).items() if key in takes}
    return kind.from_config(config, **settings)
