"""Whether one of Diffusers' noise schedulers can do what a call asks of it, found out on copies before any work."""

import copy
import functools
import inspect
import itertools
import math
import numbers
import reprlib
from collections.abc import Mapping

import numpy as np
import torch
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils import logging

from mcvd_diffusers.objectives import VARIANCE_PRESERVING, objective_of
from mcvd_diffusers.samplers import DISTILLED, trained_noise


logger = logging.get_logger(__name__)

# Of the signal's share in a frame's variance: solvers leave a trace of it where none is left.
SIGNAL_TOLERANCE = 1e-3


def check_scheduler(
    scheduler: SchedulerMixin,
    network_config: Mapping,
    options: Mapping,
    *,
    noise: Mapping | None,
    final_denoise: bool,
) -> torch.Tensor:
    """
    Whether a scheduler can serve a network, found out by trying all its steps on a copy.

    Args:
        scheduler ([`SchedulerMixin`]): It is not changed.
        network_config (`Mapping`): Of the network.
        options (`Mapping`): What of a call says which steps are taken: `num_inference_steps`, `timesteps`, `sigmas`.
        noise (`Mapping`, *optional*): The noise that the network was trained for, as [`~samplers.trained_noise`] says it.
        final_denoise (`bool`): Whether the original's last network call is to follow.

    Returns:
        `torch.Tensor`: Its timesteps.

    Raises:
        ValueError: If it cannot, and why.
    """
    if not isinstance(scheduler, SchedulerMixin):
        raise ValueError(f"`scheduler` must be one of Diffusers' schedulers, an object, got {scheduler!r}.")
    name, config = type(scheduler).__name__, scheduler.config
    trained = network_config["prediction_type"]
    way_out = f"Use {_way_out(trained, name)}."
    try:
        prediction_type = objective_of(scheduler).prediction_type
        is_known = trained is not None or prediction_type in VARIANCE_PRESERVING
        reason = ""
    except ValueError as error:
        is_known, reason = False, f" ({error})"
    if not is_known:
        raise ValueError(
            f"`scheduler`: {name} cannot serve this network: it is for another kind of model, with other noise levels. {way_out}{reason}"
        )
    if trained not in (None, prediction_type):
        raise ValueError(
            f"`scheduler`: {name} cannot serve this network: it was trained with prediction_type={trained!r}, the"
            f" scheduler has {prediction_type!r}. {way_out}"
        )
    takes = inspect.signature(type(scheduler).__init__).parameters
    if config.get("rescale_betas_zero_snr") and "rescale_betas_zero_snr" not in takes:
        raise ValueError(
            f"`scheduler`: {name} cannot serve this network: its noise ends in pure noise (`rescale_betas_zero_snr`), which {name}"
            f" does not know. {way_out}"
        )
    num_train_timesteps = network_config["num_train_timesteps"]
    if config.get("num_train_timesteps", num_train_timesteps) != num_train_timesteps:
        raise ValueError(
            f"`scheduler` has {config.num_train_timesteps} training timesteps, the network {num_train_timesteps}."
        )
    if noise is not None:
        _check_noise(scheduler, noise)
    # What the network may be told, and how noisy its frames may be.
    told, largest_sigma = (0.0, num_train_timesteps - 1.0), _largest_sigma(scheduler)
    if prediction_type == "flow_prediction":
        told, largest_sigma = (0.0, float(num_train_timesteps)), 1.0
    elif prediction_type == "edm":
        told = tuple(0.25 * math.log(x) for x in (config.sigma_min, config.sigma_max))
    is_from_betas = prediction_type in VARIANCE_PRESERVING
    for argument, least, most in (("timesteps", 0, num_train_timesteps - 1), ("sigmas", 0.0, largest_sigma)):
        if options[argument] is None:
            continue
        is_taken = argument in inspect.signature(scheduler.set_timesteps).parameters
        # Diffusers' EDM schedulers take sigmas for shares of the way between theirs.
        if not is_taken or prediction_type == "edm" or (argument == "timesteps" and not is_from_betas):
            raise ValueError(
                f"`{argument}`: {name} does not take own {argument}. Leave them out"
                + (", or use a scheduler that does, such as" * is_from_betas)
                + f" {'DDPM' if argument == 'timesteps' else 'EulerDiscrete'}Scheduler.from_config(pipe.scheduler.config)"
                * is_from_betas
                + "."
            )
        _check_steps(argument, options[argument], least, most)
    if noise is not None:
        _check_distilled(scheduler, noise, options)
    # Try the whole way on a copy, with a network that always answers the same: it takes milliseconds.
    trial = copy.deepcopy(scheduler)
    try:
        steps = set_timesteps(trial, options, torch.device("cpu"))
        probe = answer = torch.full((1, 1, network_config["in_channels"], 2, 2), 0.5)
        probe = probe * getattr(trial, "init_noise_sigma", 1.0)
        takes_generator = "generator" in inspect.signature(trial.step).parameters  # spare the global stream
        kwargs = {"generator": torch.Generator().manual_seed(0)} if takes_generator else {}
        for step in steps:
            if hasattr(trial, "scale_model_input"):
                trial.scale_model_input(probe, step)
            probe = trial.step(answer, step, probe, **kwargs, return_dict=False)[0]
    except Exception as error:  # whatever the scheduler's own code raises, it does not serve
        own = [key for key in ("timesteps", "sigmas") if options[key] is not None]
        asked = own[0] if own else "num_inference_steps"
        raise ValueError(
            f"`scheduler`: {name} cannot serve prediction_type={prediction_type!r} with"
            f" {asked}={reprlib.repr(options[asked])}: {error} {way_out}"
        ) from error
    if len(steps) == 0 or steps.min() < told[0] - 1e-3 or steps.max() >= told[1] + 1 or steps[-1] > steps[0]:
        way = f"from {float(steps[0]):.4g} to {float(steps[-1]):.4g}" if len(steps) else "nowhere"
        raise ValueError(
            f"`scheduler`: {name} cannot serve this network with these settings: it would go {way}, and the network"
            f" goes down from {told[1]:.4g} to {told[0]:.4g} at most. {way_out}"
        )
    if not torch.isfinite(probe).all():
        raise ValueError(
            f"`scheduler`: {name} cannot serve this noise schedule in {len(steps)} steps: its own arithmetic gives NaN,"
            f" whatever the network says. {way_out}"
        )
    if final_denoise and (prediction_type != "epsilon" or not hasattr(scheduler, "alphas_cumprod")):
        raise ValueError(
            "`final_denoise=True` subtracts predicted noise: it needs prediction_type='epsilon' and a scheduler"
            f" with `alphas_cumprod`, got {prediction_type!r} and {name}."
        )
    return steps


def serves(scheduler: SchedulerMixin, network_config: Mapping) -> bool:
    """Whether a scheduler is for what a network predicts, at as many timesteps; so it may be the one of its training."""
    try:
        prediction_type = objective_of(scheduler).prediction_type
    except ValueError:
        return False
    num_timesteps = network_config.get("num_train_timesteps")
    return (
        network_config.get("prediction_type") in (None, prediction_type)
        and scheduler.config.get("num_train_timesteps", num_timesteps) == num_timesteps
    )


def check_trained_noise(trained: Mapping | None) -> None:
    """Refuse a pipeline's `trained_noise` that [`~samplers.trained_noise`] cannot have said."""
    is_known = {
        "signal": lambda x: isinstance(x, (list, tuple)) and len(x) == 5 and all(_is_share(share) for share in x),
        "sigma_data": lambda x: isinstance(x, numbers.Real) and not isinstance(x, bool) and 0 < x < math.inf,
        "distillation_steps": lambda x: isinstance(x, int) and not isinstance(x, bool) and x >= 1,
    }
    if trained is None:
        return
    is_map = isinstance(trained, Mapping) and set(trained) <= set(is_known)
    if not is_map or not all(is_known[name](value) for name, value in trained.items()):
        raise ValueError(
            "`trained_noise` must be None, or what is known of the scheduler of training: signal (five numbers from 0 to 1),"
            f" sigma_data (positive), distillation_steps (an integer), got {reprlib.repr(trained)}. Leave it out: it is then taken from"
            " `scheduler`."
        )


def _is_share(value) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool) and 0 <= value <= 1


def _check_noise(scheduler: SchedulerMixin, trained: Mapping) -> None:
    """Frames must be as noisy at each timestep as they were in training."""
    saved = "from_config(saved.config), where `saved` is the scheduler that the pipeline was saved with"
    name, now = type(scheduler).__name__, trained_noise(scheduler)
    ours, theirs = trained.get("signal"), now.get("signal")
    is_other = ours and theirs and max(abs(x - y) for x, y in zip(ours, theirs)) > SIGNAL_TOLERANCE
    if is_other:
        shown = [", ".join(f"{x:.3g}" for x in values) for values in (theirs, ours)]
        raise ValueError(
            f"`scheduler`: {name} cannot serve this network: it has another noise schedule than the pipeline was made with: at the first timestep,"
            f" a quarter, half and three quarters of the way, and the last, the signal's share is {shown[0]}, not {shown[1]}."
            f" Use another, such as {'DDPM' if name == 'DDIMScheduler' else 'DDIM'}Scheduler.{saved}."
        )
    ours, theirs = trained.get("sigma_data"), now.get("sigma_data")
    if ours and theirs != ours:
        raise ValueError(
            f"`scheduler`: {name} cannot serve this network: it has sigma_data={theirs}, and the network was trained with {ours}: pass sigma_data={ours}, or"
            f" {name}.{saved}."
        )


def _check_distilled(scheduler: SchedulerMixin, trained: Mapping, options: Mapping) -> None:
    """What was distilled is sampled along the way of its distillation; other ways work after a fashion, and so do other networks there."""
    name, num_steps = type(scheduler).__name__, trained.get("distillation_steps")
    if (name in DISTILLED) != (num_steps is not None):
        _warn_once(
            f"{name} is for distilled networks, and this one is not: few steps of another scheduler may be better."
            if num_steps is None
            else f"This network was distilled for {' or '.join(DISTILLED)}, with which it was saved: {name} makes worse videos of it."
        )
    if name not in DISTILLED or num_steps is None:
        return
    own = scheduler.config.original_inference_steps
    if own != num_steps:
        raise ValueError(
            f"`scheduler`: this network was distilled along {num_steps} steps, and {name} has original_inference_steps={own}: make it"
            f" with {num_steps}, or keep the scheduler that was saved with the network."
        )
    asked, timesteps = options["num_inference_steps"], options["timesteps"]
    if timesteps is None and asked is not None and asked > num_steps:
        raise ValueError(
            f"`num_inference_steps` must be at most {num_steps} for a network that was distilled along so many steps, got {asked}: it is"
            " made for 1 to 4, and its teacher for more."
        )
    stride = max(1, scheduler.config.num_train_timesteps // num_steps)
    known = range(stride - 1, scheduler.config.num_train_timesteps, stride)
    if timesteps is not None and not all(int(x) in known for x in timesteps):
        raise ValueError(
            f"`timesteps` must be some of {list(known)[::-1]} for a network that was distilled along {num_steps} steps, got"
            f" {reprlib.repr(timesteps)}."
        )


@functools.lru_cache
def _warn_once(message: str) -> None:
    """Not in each of the calls of an evaluation."""
    logger.warning(message)


def _way_out(prediction_type: str | None, name: str) -> str:
    """A scheduler that serves, which is not the one of this name."""
    if prediction_type == "flow_prediction":
        return "FlowMatchEulerDiscreteScheduler()"
    if prediction_type == "edm":
        return "EDMDPMSolverMultistepScheduler(), with the sigma_min, sigma_max and sigma_data of the training"
    other = "DDPMScheduler" if name == "DDIMScheduler" else "DDIMScheduler"
    if prediction_type is None:
        return f"another, such as {other}.from_config(pipe.scheduler.config)"
    return (
        f"another, such as {other}.from_config(pipe.scheduler.config) with the scheduler that was saved with the network, or"
        f" prediction_type={prediction_type!r} and the noise schedule of the training"
    )


def set_timesteps(scheduler: SchedulerMixin, options: Mapping, device: torch.device) -> torch.Tensor:
    """Reset a scheduler to its first step; returns its timesteps. `options`: what of a call says which these are."""
    for name in ("timesteps", "sigmas"):
        if options[name] is not None:
            if name not in inspect.signature(scheduler.set_timesteps).parameters:
                raise ValueError(f"`{name}`: {type(scheduler).__name__} does not take own {name}.")
            scheduler.set_timesteps(device=device, **{name: options[name]})
            return scheduler.timesteps
    scheduler.set_timesteps(options["num_inference_steps"], device=device)
    return scheduler.timesteps


def check_no_memory(scheduler: SchedulerMixin, options: Mapping, num_resamples: int) -> None:
    """
    Whether a scheduler's step depends on the steps before it, found out by trying two ways to the same place. Such a one cannot
    go back and repeat a step.
    """
    timesteps = set_timesteps(copy.deepcopy(scheduler), options, torch.device("cpu"))[:12]
    ways = []
    # Two ways differ in sample and answer of every second step; what is made at the others must not. Once with numbers as large
    # as at the start, beside which others would be lost, and once with those of frames.
    for size in {1.0, float(getattr(scheduler, "init_noise_sigma", 1.0))}:
        for other in (0.25, 0.75):
            trial, made = copy.deepcopy(scheduler), []
            set_timesteps(trial, options, torch.device("cpu"))
            takes_generator = "generator" in inspect.signature(trial.step).parameters
            for number, step in enumerate(timesteps):
                sample = answer = torch.full((1, 1, 1, 2, 2), size * (0.5 if number % 2 else other))
                kwargs = {"generator": torch.Generator().manual_seed(0)} if takes_generator else {}
                if hasattr(trial, "scale_model_input"):
                    trial.scale_model_input(sample, step)
                result = trial.step(answer, step, sample, **kwargs, return_dict=False)[0]
                made += [result] if number % 2 else []
            ways.append(made)
    ways = [sum(ways[::2], []), sum(ways[1::2], [])]
    if not all(torch.equal(*results) for results in zip(*ways)):
        raise ValueError(
            f"`num_resamples` is {num_resamples}, but {type(scheduler).__name__} remembers former steps, so that a step"
            f" cannot be gone back and made again: leave it at 1, or use {_without_memory(scheduler)}.from_config"
            "(pipe.scheduler.config)."
        )


def _without_memory(scheduler: SchedulerMixin) -> str:
    """Of the same noise."""
    others = {"flow_prediction": "FlowMatchEulerDiscreteScheduler", "edm": "EDMEulerScheduler"}
    return others.get(objective_of(scheduler).prediction_type, "DDPMScheduler or DDIMScheduler")


def _largest_sigma(scheduler: SchedulerMixin) -> float:
    """The highest noise level of the noise schedule, as noise over signal; a little more, since it is known in digits."""
    alphas_cumprod = getattr(scheduler, "alphas_cumprod", None)
    if not torch.is_tensor(alphas_cumprod):
        return math.inf
    smallest = float(alphas_cumprod.min())
    return 1.01 * ((1 - smallest) / smallest) ** 0.5 if smallest > 0 else math.inf


def _check_steps(name: str, values, least: float, most: float) -> None:
    """Own timesteps or noise levels: numbers that fall, within what the network was trained on."""
    kind = numbers.Integral if name == "timesteps" else numbers.Real
    values = values.tolist() if isinstance(values, (torch.Tensor, np.ndarray)) else values
    is_list = isinstance(values, (list, tuple, range)) and len(values) > 0
    if (
        not is_list
        or not all(isinstance(x, kind) and not isinstance(x, bool) and least <= x <= most for x in values)
        or not all(x > y for x, y in itertools.pairwise(values))
    ):
        raise ValueError(
            f"`{name}` must be a list of {'integers' if name == 'timesteps' else 'numbers'} that fall, from at most"
            f" {most:.6g} to at least {least:.6g}, got {reprlib.repr(values)}."
        )
    if name == "sigmas" and len(values) < 2:
        raise ValueError(
            f"`sigmas` must be at least two, the last being the one to end with, usually 0, got {values}."
        )
