"""What VDM's public port saves, and LGC-VD, whose code grew out of the port's: the form of the file, and the diffusion's buffers.

`model-<milestone>.pt` is a dictionary of `step`, `model`, `ema` and `scaler`. `model` and `ema` each hold the diffusion whole: its
networks, each under a prefix, and beside them numbers that all follow from the cosine betas.
"""

import math
from collections.abc import Mapping

import torch
from diffusers import DDPMScheduler

from .components import bound
from .original_config import MAX_NOISE_LEVELS
from .original_weights import without_module_prefix
from .untrusted import CheckpointError, TensorRecord


DENOISER = "denoise_fn."
BUFFERS = {
    "betas",
    "alphas_cumprod",
    "alphas_cumprod_prev",
    "sqrt_alphas_cumprod",
    "sqrt_one_minus_alphas_cumprod",
    "log_one_minus_alphas_cumprod",
    "sqrt_recip_alphas_cumprod",
    "sqrt_recipm1_alphas_cumprod",
    "posterior_variance",
    "posterior_log_variance_clipped",
    "posterior_mean_coef1",
    "posterior_mean_coef2",
}


def find_weights(content: Mapping, weights: str | None, name: str) -> tuple[str, int | None]:
    """
    Which weights of a file to take.

    Args:
        content (`Mapping`): The dictionary in the file.
        weights (`str`, *optional*): `"ema"` or `"model"`, if the caller says it. By default the average, if there is one.
        name (`str`): Of the file, for messages.

    Returns:
        `tuple[str, int | None]`: The key, which is also the kind, and the number of updates.

    Raises:
        CheckpointError: If they are not there, or the number is none.
    """
    here = [key for key in ("ema", "model") if isinstance(content.get(key), dict)]
    chosen = weights or next(iter(here), None)
    if chosen not in here:
        raise CheckpointError(
            f"{name} has no {'average of the weights' if chosen == 'ema' else 'state dict'} as `{chosen}`; it has"
            f" {', '.join(here) or 'neither `ema` nor `model`'}."
        )
    return chosen, checked_step(content.get("step"), name)


def checked_step(step: object, name: str) -> int | None:
    """A number of updates that a file states, or `None`."""
    if step is not None and (type(step) is not int or step < 0):
        raise CheckpointError(f"{name}: `step` must be a number of updates, got {str(step)[:80]!r}.")
    return step


def split_state(state: dict, what: str, *, prefixes: tuple[str, ...], title: str) -> tuple[dict[str, dict], dict]:
    """
    The tensors of the networks by the names that each alone has, and those of the diffusion around them.

    Args:
        state (`dict`): As in the file.
        what (`str`): What is read, for messages.
        prefixes (`tuple[str, ...]`): Of the networks. A state dict without any is that of the first network alone.
        title (`str`): Whose diffusion it is, for messages.

    Returns:
        `tuple[dict[str, dict], dict]`: Prefix -> tensors of that network, if there are any; the buffers.

    Raises:
        CheckpointError: If something else is there.
    """
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, (TensorRecord, torch.Tensor)):
            raise CheckpointError(f"{what} must map names to tensors; {str(name)[:80]!r} is a {type(value).__name__}.")
        if not value.dtype.is_floating_point:
            raise CheckpointError(f"{what}: {name[:80]} holds {value.dtype}, but weights are floating point numbers.")
    state = without_module_prefix(state, what)
    if not any(name.startswith(prefixes) for name in state):
        return {prefixes[0]: state}, {}
    networks, buffers = {}, {}
    for name, value in state.items():
        prefix = next((prefix for prefix in prefixes if name.startswith(prefix)), None)
        if prefix is None:
            buffers[name] = value
        else:
            networks.setdefault(prefix, {})[name.removeprefix(prefix)] = value
    unknown = sorted(buffers.keys() - BUFFERS)
    if unknown:
        names = ", ".join(repr(name[:80]) for name in unknown[:5])
        raise CheckpointError(f"{what} has names that are not of {title}'s diffusion: {names}.")
    return networks, buffers


def num_noise_levels(buffers: Mapping, stated: int, what: str) -> int:
    """
    Of the buffers, or as stated if there are none.

    Raises:
        CheckpointError: If there cannot be so many.
    """
    number = stated
    if "betas" in buffers:
        shape = tuple(buffers["betas"].shape)
        if len(shape) != 1:
            raise CheckpointError(f"{what}: betas must be a list of numbers, got shape {shape}.")
        number = shape[0]
    if not 1 <= number <= MAX_NOISE_LEVELS:
        raise CheckpointError(
            f"{what}: there are {number:,} noise levels, where 1 to {MAX_NOISE_LEVELS:,} are possible."
        )
    return number


def make_cosine_scheduler(num_timesteps: int, prediction_type: str) -> DDPMScheduler:
    """The ancestral sampler of both. Fewer steps are spread from the noisiest to the least noisy, both included."""
    return DDPMScheduler(
        num_train_timesteps=num_timesteps,
        # Diffusers' own cosine betas end at 0.999, these at 0.9999.
        beta_schedule="squaredcos_cap_v2",
        trained_betas=_cosine_betas(num_timesteps),
        variance_type="fixed_small",
        clip_sample=True,
        prediction_type=prediction_type,
        timestep_spacing="linspace",
    )


def _cosine_betas(count: int) -> list[float]:
    """Nichol and Dhariwal (2102.09672), equation 17, with offset 0.008, at most 0.9999."""
    kept = [math.cos((step / count + 0.008) / 1.008 * math.pi / 2) ** 2 for step in range(count + 1)]
    return [min(max(1 - after / before, 0.0), 0.9999) for before, after in zip(kept, kept[1:])]


def check_betas(betas: torch.Tensor, scheduler: DDPMScheduler, title: str, what: str) -> str:
    """
    Compare the buffer `betas` with the scheduler's.

    Returns:
        `str`: A sentence that says so.

    Raises:
        CheckpointError: If it is another noise schedule.
    """
    difference = float((betas - scheduler.betas.double()).abs().max())
    if not difference <= 1e-6:
        raise CheckpointError(
            f"{what}: its betas, from {float(betas[0]):.6g} to {float(betas[-1]):.6g}, are not the cosine schedule of {title},"
            f" from {float(scheduler.betas[0]):.6g} to {float(scheduler.betas[-1]):.6g}. It is not converted."
        )
    equal = "equals" if difference == 0 else f"is within {bound(difference)} of"
    return f"The noise schedule {equal} the buffer `betas` in the file, {len(betas)} values."
