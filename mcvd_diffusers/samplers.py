"""The noise schedulers that checkpoints are saved with: which of Diffusers' fit what a network predicts, and how they are set.

Where noise and signal come from betas, the default is DPM-Solver++ of order 2 (2211.01095): in `NUM_STEPS` calls of the network its videos
are as good as DDIM's in a hundred, where that was measured (`benchmarks/RESULTS.md`).
"""

import inspect

import diffusers
from diffusers import DDPMScheduler, EDMEulerScheduler, FlowMatchEulerDiscreteScheduler, SchedulerMixin

from .noise_schedules import cosine_logsnr_betas
from .objectives import VARIANCE_PRESERVING, objective_of, starts_blind


# Denoising steps by default, see [`num_steps_of`].
NUM_STEPS = 15
DISTILLED = ("LCMScheduler",)
FROM_BETAS = ("DPMSolverMultistepScheduler", "UniPCMultistepScheduler", "DDIMScheduler", "DDPMScheduler") + (
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "HeunDiscreteScheduler",
)
WITHOUT_ZERO_SNR = ("HeunDiscreteScheduler",)
# These keep frames within their range in each step, whatever that is.
CLIPPING = ("DDPMScheduler", "DDIMScheduler")
# Those of betas that are of order 1 need more steps.
_NUM_STEPS_OF = dict.fromkeys(DISTILLED, 4) | dict.fromkeys(
    ("DDIMScheduler", "DDPMScheduler", "EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler"), 25
)
# By what the network predicts.
SAMPLERS = {
    **dict.fromkeys(VARIANCE_PRESERVING, FROM_BETAS),
    "flow_prediction": ("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler"),
    "edm": ("EDMDPMSolverMultistepScheduler", "EDMEulerScheduler"),
}
# What of a scheduler with betas is the noise that a network was trained on, rather than a way of sampling.
_NOISE = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas")
_NOISE += ("rescale_betas_zero_snr", "prediction_type", "variance_type")


def make_noise_scheduler(
    prediction_type: str,
    *,
    num_train_timesteps: int = 1000,
    beta_schedule: str | None = None,
    rescale_betas_zero_snr: bool = False,
    sigma_data: float | None = None,
    variance_type: str = "fixed_small",
) -> SchedulerMixin:
    """
    The noise of a new training.

    Args:
        prediction_type (`str`): What the network predicts, one of `PREDICTION_TYPES`.
        num_train_timesteps (`int`, *optional*, defaults to 1000): How many.
        beta_schedule (`str`, *optional*): `"linear"`, `"squaredcos_cap_v2"` or `"cosine_logsnr"`, where noise comes from betas.
        rescale_betas_zero_snr (`bool`, *optional*, defaults to `False`): Make the last timestep pure noise (2305.08891).
        sigma_data (`float`, *optional*): EDM's.
        variance_type (`str`, *optional*, defaults to `"fixed_small"`): DDPM's, where noise comes from betas.

    Returns:
        [`SchedulerMixin`]: Of the class that training takes.
    """
    if prediction_type == "flow_prediction":
        return FlowMatchEulerDiscreteScheduler(num_train_timesteps=num_train_timesteps)
    if prediction_type == "edm":
        return EDMEulerScheduler(num_train_timesteps=num_train_timesteps, sigma_data=sigma_data)
    is_logsnr = beta_schedule == "cosine_logsnr"  # which Diffusers does not know by name
    return DDPMScheduler(
        num_train_timesteps=num_train_timesteps,
        beta_schedule="linear" if is_logsnr else beta_schedule,
        beta_start=1e-4,  # said aloud, or a scheduler that is made from this one would take its own
        beta_end=0.02,
        trained_betas=cosine_logsnr_betas(num_train_timesteps) if is_logsnr else None,
        prediction_type=prediction_type,
        rescale_betas_zero_snr=rescale_betas_zero_snr,
        variance_type=variance_type,
    )


def noise_settings(scheduler: SchedulerMixin) -> dict:
    """
    What of a scheduler is the noise that a network was trained on, rather than a way of sampling.

    Args:
        scheduler ([`SchedulerMixin`]): Of training or sampling.

    Returns:
        `dict`: Settings for another scheduler with the same noise: with betas some, else all.
    """
    config = {key: value for key, value in scheduler.config.items() if not key.startswith("_")}
    return {key: config[key] for key in _NOISE if key in config} if hasattr(scheduler, "betas") else config


def trained_noise(scheduler: SchedulerMixin) -> dict | None:
    """
    How to know a scheduler again that a network was trained, or distilled, for: what must be the same in another one that is to
    sample it.

    Args:
        scheduler ([`SchedulerMixin`]): Of training, or one that was made from it.

    Returns:
        `dict`, *optional*: For a pipeline's config. `"signal"`, where noise comes from betas: the signal's share of a frame's variance,
        `alphas_cumprod`, at the first timestep, the last and three between; `"sigma_data"`, EDM's; `"distillation_steps"`, of what
        was distilled: steps of the way that it was distilled along. `None` for kinds of schedulers that are not known here.
    """
    try:
        prediction_type = objective_of(scheduler).prediction_type
    except ValueError:
        return None
    if prediction_type not in VARIANCE_PRESERVING:
        return {"sigma_data": float(scheduler.config.sigma_data)} if prediction_type == "edm" else {}
    signal, last = scheduler.alphas_cumprod, len(scheduler.alphas_cumprod) - 1
    noise = {"signal": [round(float(signal[last * quarter // 4]), 6) for quarter in range(5)]}
    if type(scheduler).__name__ in DISTILLED and scheduler.config.original_inference_steps:
        noise["distillation_steps"] = scheduler.config.original_inference_steps
    return noise


def default_sampler(noise_scheduler: SchedulerMixin, *, resamples: bool = False) -> str:
    """
    What a checkpoint is sampled with if nothing is said.

    Args:
        noise_scheduler ([`SchedulerMixin`]): Of training.
        resamples (`bool`, *optional*, defaults to `False`):
            Whether what is put into windows is to be joined to the rest by resampling, which needs a scheduler without a memory.

    Returns:
        `str`: The name of a class of Diffusers.
    """
    known = SAMPLERS[objective_of(noise_scheduler).prediction_type]
    needs_ddpm = known == FROM_BETAS and (resamples or starts_blind(noise_scheduler))
    return "DDPMScheduler" if needs_ddpm else known[0]


def num_steps_of(name: str, most: int) -> int:
    """
    Denoising steps that a sampler takes if nothing is said.

    Args:
        name (`str`): The name of a class of Diffusers.
        most (`int`): As many as there are.

    Returns:
        `int`
    """
    return min(_NUM_STEPS_OF.get(name, NUM_STEPS), most)


def make_sampler(
    noise_scheduler: SchedulerMixin, name: str | None = None, *, largest_value: float = 1.0, **changes
) -> SchedulerMixin:
    """
    The noise scheduler that a checkpoint is sampled with, of the noise that its network was trained on.

    It starts at the noisiest timestep of training and ends without noise. Frames are not kept within their range on the way: a step that
    does so and takes the noise for what it was, as DDIM's, or goes on without new noise, as DPM-Solver++, nearly always costs more quality
    than it saves (`benchmarks/RESULTS.md`, also where it does not). DDPM and the sampler of distilled networks do it, whose new noise
    makes good for it. Where a network [`starts_blind`] there is no way without: DDPM samples it then. (The pipeline keeps frames within the
    range of the data at the end, with any scheduler.)

    Args:
        noise_scheduler ([`SchedulerMixin`]): Of training.
        name (`str`, *optional*): One of `SAMPLERS` for what the network predicts; [`default_sampler`], if not given.
        largest_value (`float`, *optional*, defaults to 1.0):
            Of frames as the network sees them, where they are clipped; also the config of a scheduler that does not clip knows it,
            for those that are made from it.
        changes: Of the scheduler's settings.

    Returns:
        [`SchedulerMixin`]

    Raises:
        ValueError: If frames must be clipped, and this scheduler cannot.
    """
    name = name or default_sampler(noise_scheduler)
    kind, noise = getattr(diffusers, name), noise_settings(noise_scheduler)
    has_betas = hasattr(noise_scheduler, "betas")
    must_clip = has_betas and starts_blind(noise_scheduler)
    if must_clip and name not in (*CLIPPING, *DISTILLED):
        raise ValueError(
            f"{name} cannot keep frames within their range on the way, without which a network that predicts epsilon fails where noise"
            f" leaves no signal, as at the end of cosine betas: use {CLIPPING[0]}."
        )
    if not has_betas:
        return kind.from_config(noise, **changes)
    clipping = {"clip_sample": must_clip or name in ("DDPMScheduler", *DISTILLED), "clip_sample_range": largest_value}
    takes = inspect.signature(kind).parameters
    own = noise | {"timestep_spacing": "trailing"} | clipping | changes
    scheduler = kind(**{key: value for key, value in own.items() if key in takes})
    # So that one that is made from it, `OtherScheduler.from_config(pipe.scheduler.config)`, clips where it should, or not at all.
    scheduler.register_to_config(**clipping)
    return scheduler
