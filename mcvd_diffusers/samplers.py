"""The noise schedulers that checkpoints are saved with: which of Diffusers' fit what a network predicts, and how they are set.

The first of each list is the default. Where noise and signal come from betas it is DPM-Solver++ of order 2 (2211.01095), whose
`NUM_STEPS` calls of the network come as near to where a thousand lead as DDIM's hundred: `benchmarks/RESULTS.md`.
"""

import inspect
import math

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


def starts_blind(noise_scheduler: SchedulerMixin) -> bool:
    """
    Whether a network of noise starts where next to nothing of the frames is left (cosine betas), so that its smallest error there becomes
    large in the frames that it amounts to.

    Args:
        noise_scheduler ([`SchedulerMixin`]): Of training.

    Returns:
        `bool`: `log(alpha / sigma) < -5.1` at the last timestep, where Diffusers advises to begin later; the linear betas end at -5.06.
    """
    if objective_of(noise_scheduler).prediction_type != "epsilon":
        return False
    kept = float(noise_scheduler.alphas_cumprod[-1])
    return kept < 1 / (1 + math.exp(2 * 5.1))


def make_sampler(
    noise_scheduler: SchedulerMixin, name: str | None = None, *, largest_value: float = 1.0, **changes
) -> SchedulerMixin:
    """
    The noise scheduler that a checkpoint is sampled with, of the noise that its network was trained on.

    It starts at the noisiest timestep of training and ends without noise. Frames are not kept within their range on the way: a step that
    does so and takes the noise for what it was, as DDIM's, or goes on without new noise, as DPM-Solver++, nearly always costs more quality
    than it saves (`benchmarks/RESULTS.md`, also where it does not). Two do it: DDPM, and the sampler of distilled networks. Where a network
    [`starts_blind`] there is no way without: it is sampled by the stochastic form of DPM-Solver++, which was the best there. (The pipeline
    keeps frames within the range of the data at the end, with any scheduler.)

    Args:
        noise_scheduler ([`SchedulerMixin`]): Of training.
        name (`str`, *optional*): One of `SAMPLERS` for what the network predicts; one that fits, if not given.
        largest_value (`float`, *optional*, defaults to 1.0): Of frames as the network sees them, where they are clipped.
        changes: Of the scheduler's settings.

    Returns:
        [`SchedulerMixin`]

    Raises:
        ValueError: If frames must be clipped, and this scheduler cannot.
    """
    config, must_clip = noise_scheduler.config, starts_blind(noise_scheduler)
    if name is None:
        known = SAMPLERS[objective_of(noise_scheduler).prediction_type]
        name = "DDPMScheduler" if must_clip and largest_value != 1 else known[0]
    kind = getattr(diffusers, name)
    takes = inspect.signature(kind).parameters
    # Said aloud: what was left at its default there, Diffusers would set to the default of the other class.
    noise = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule")
    own = {key: config[key] for key in noise if key in config} | {
        "timestep_spacing": "trailing",
        "clip_sample": must_clip or name in ("DDPMScheduler", *DISTILLED),
        "clip_sample_range": largest_value,
    }
    if must_clip and "clip_sample" not in takes:
        # "Dynamic thresholding" of all pixels at 1 clips; at other values it would scale.
        if "thresholding" not in takes or largest_value != 1:
            raise ValueError(
                f"{name} cannot keep frames within [-{largest_value:g}, {largest_value:g}] on the way, without which a network that"
                " predicts epsilon fails where noise leaves no signal (any beta_schedule but linear): use DDPMScheduler."
            )
        own |= {"thresholding": True, "dynamic_thresholding_ratio": 1.0, "sample_max_value": 1.0}
        own |= {"algorithm_type": "sde-dpmsolver++"} if name == "DPMSolverMultistepScheduler" else {}
    settings = {key: value for key, value in (own | changes).items() if key in takes}
    return kind.from_config(config, **settings)
