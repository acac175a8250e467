"""Guidance: what is made of a network's predictions before the noise scheduler gets them.

Over absent frames: the predictions of several calls become one, here or by a guider of Diffusers. Towards what is known
of the video: the prediction is moved so that the network's own idea of the given frames, or of the video seen small, fits
what was given (reconstruction guidance, VDM). With these belong the arithmetic of noise levels and of going back one step.
"""

import copy
from collections.abc import Callable, Hashable, Mapping, Sequence

import torch
from diffusers.guiders import BaseGuidance

from mcvd_diffusers.objectives import Objective


def needed_views(histories: Sequence[tuple[Hashable, float]], nothing: Hashable) -> list[Hashable]:
    """
    What the network must be called with for a guidance over histories: each history once, and nothing unless it cancels out.

    Args:
        histories (`Sequence` of pairs): What the network is given, and its weight.
        nothing (`Hashable`): What it is to be given nothing.

    Returns:
        `list`: Distinct views, histories first.
    """
    views = list(dict.fromkeys(history for history, _ in histories))
    is_needed = sum(weight for history, weight in histories if history != nothing) != 1
    return views if nothing in views or not is_needed else [*views, nothing]


def compose_histories(
    predictions: Mapping[Hashable, torch.Tensor], histories: Sequence[tuple[Hashable, float]], nothing: Hashable
) -> torch.Tensor:
    """
    Guidance over histories (History-Guided Video Diffusion, 2502.06764, section 4): each history pulls, with its weight, away
    from what the network says when it is given nothing.

    Args:
        predictions (`Mapping`): View -> the network's prediction, for [`needed_views`].
        histories (`Sequence` of pairs): What the network is given, and its weight `w_i`. One with a weight above 1 is
            classifier-free guidance.
        nothing (`Hashable`): What it is to be given nothing.

    Returns:
        `torch.Tensor`: `f(nothing) + sum of w_i (f(history_i) - f(nothing))`.
    """
    if nothing not in predictions:
        return sum(weight * predictions[history] for history, weight in histories)
    absent = predictions[nothing]
    return absent + sum(weight * (predictions[history] - absent) for history, weight in histories)


# --------------------------------------------------------------------------------------------------------------------
# One step back


def one_step_back(
    latents: torch.Tensor,
    noise: torch.Tensor,
    *,
    level: tuple[float, float],
    noisier: tuple[float, float],
) -> torch.Tensor:
    """
    One step of the forward process, to repeat a denoising step with (RePaint, 2201.09865, equation 8; RaMViD).

    Args:
        latents (`torch.Tensor`): Frames at a noise level.
        noise (`torch.Tensor` of the same shape): N(0, 1).
        level (`tuple[float, float]`): Their `alpha` and `sigma`; `(1, 0)` for clean ones.
        noisier (`tuple[float, float]`): Those of the result.

    Returns:
        `torch.Tensor` of the same shape: Frames at the noisier level.
    """
    ratio = noisier[0] / level[0]
    return ratio * latents + max(noisier[1] ** 2 - (ratio * level[1]) ** 2, 0.0) ** 0.5 * noise


# --------------------------------------------------------------------------------------------------------------------
# Reconstruction guidance


def guide_by_reconstruction(
    predict: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]],
    noisy: torch.Tensor,
    error: Callable[[torch.Tensor], torch.Tensor],
    *,
    slots: torch.Tensor,
    level: tuple[float, float],
    objective: Objective,
) -> torch.Tensor:
    r"""
    Move a prediction so that what the network thinks of the whole window agrees with what is known of it (VDM,
    2204.03458, equation 7): `x~ = x^ - (alpha / 2) grad_z error(x^(z))`, where `x^` are the clean frames that the network
    predicts from the noisy ones `z`. The gradient goes through the network.

    Args:
        predict (`Callable`):
            The network: of the noisy frames to be made, `(B, k, C, H, W)`, it returns the whole noisy window that it was
            shown and its prediction of it, both `(B, T, C, H, W)`.
        noisy (`torch.Tensor` of shape `(B, k, C, H, W)`): The frames to be made, as the network gets them.
        error (`Callable`):
            How far a clean window `(B, T, C, H, W)` is from what is known, `(B,)`: weighted sums of squares.
        slots (`torch.Tensor` of shape `(k,)`): Where the frames to be made stand in the window.
        level (`tuple[float, float]`): `alpha` and `sigma`.
        objective ([`Objective`]): What the network predicts.

    Returns:
        `torch.Tensor` of shape `(B, k, C, H, W)`: The guided prediction of the frames to be made.
    """
    with torch.enable_grad():
        noisy = noisy.detach().requires_grad_()
        window, prediction = predict(noisy)
        clean = objective.to_clean(prediction, window, level)
        gradient = torch.autograd.grad(error(clean).sum(), noisy)[0]
    moved = clean.detach()[:, slots] - level[0] / 2 * gradient
    return objective.from_clean(moved, noisy.detach(), level)


def reconstruction_error(
    clean: torch.Tensor,
    *,
    given: torch.Tensor,
    slots: torch.Tensor,
    weight: float,
    low_resolution: torch.Tensor | None = None,
    low_resolution_weight: float = 0.0,
) -> torch.Tensor:
    """
    How far a window is from what is known of it: sums of squares over given frames, and over frames that are known small.

    Args:
        clean (`torch.Tensor` of shape `(B, T, C, H, W)`): The window as the network predicts it.
        given (`torch.Tensor` of shape `(B, n, C, H, W)`): The given frames.
        slots (`torch.Tensor` of shape `(n,)`): Where they stand in the window.
        weight (`float`): Of their error.
        low_resolution (`torch.Tensor` of shape `(B, T, C, h, w)`, *optional*):
            What frames look like when averaged over `(H / h, W / w)` pixels, NaN where that is not known.
        low_resolution_weight (`float`): Of their error.

    Returns:
        `torch.Tensor` of shape `(B,)`.
    """
    error = clean.new_zeros(len(clean))
    if weight and len(slots):
        error = error + weight * (given - clean[:, slots]).square().flatten(1).sum(dim=1)
    if low_resolution is not None and low_resolution_weight:
        difference = low_resolution - downsample(clean, low_resolution.shape[-2:])
        error = error + low_resolution_weight * difference.nan_to_num(0.0).square().flatten(1).sum(dim=1)
    return error


def downsample(frames: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Frames `(B, T, C, H, W)` averaged to a smaller height and width that divide theirs, `(B, T, C, h, w)`."""
    return torch.nn.functional.adaptive_avg_pool2d(frames.flatten(0, 1), tuple(size)).unflatten(0, frames.shape[:2])


# --------------------------------------------------------------------------------------------------------------------
# Guiders of Diffusers


def guider_prediction(
    guider: BaseGuidance,
    denoiser: torch.nn.Module,
    given: Callable[[], torch.Tensor],
    absent: Callable[[], torch.Tensor],
    *,
    step: int,
    num_inference_steps: int,
    timestep: torch.Tensor,
) -> torch.Tensor:
    """
    One denoising step of a guider of Diffusers, over absent frames.

    Args:
        guider ([`~diffusers.guiders.BaseGuidance`]): It decides which predictions it needs at this step.
        denoiser (`torch.nn.Module`): The network, which a guider may change for one prediction; it is changed back.
        given (`Callable`): Calls the network with the given frames OBSERVED; returns `(B, k, C, H, W)`.
        absent (`Callable`): The same with these frames ABSENT.
        step (`int`): Number of the step, from 0.
        num_inference_steps (`int`): How many there are.
        timestep (`torch.Tensor`): The step's timestep.

    Returns:
        `torch.Tensor` of shape `(B, k, C, H, W)`: The guided prediction.
    """
    guider.set_state(step=step, num_inference_steps=num_inference_steps, timestep=timestep)
    batches = guider.prepare_inputs({"network": (given, absent)})
    for batch in batches:
        try:
            guider.prepare_models(denoiser)
            prediction = batch.network()
        finally:  # the call may run out of memory, and is then tried again
            guider.cleanup_models(denoiser)
        # Guiders are made for images. To the network, too, a block is an image with its frames on the channels.
        batch.noise_pred = prediction.flatten(1, 2)
    return guider(batches)[0].unflatten(1, prediction.shape[1:3])


def check_guider(
    guider: BaseGuidance, denoiser: torch.nn.Module, frames_shape: tuple[int, ...], num_inference_steps: int
) -> None:
    """
    Whether a guider can serve a network, found out by trying all its steps on copies, without calling the network.

    Args:
        guider ([`~diffusers.guiders.BaseGuidance`]): It is not changed.
        denoiser (`torch.nn.Module`): A network that `from_config` makes; it is not changed.
        frames_shape (`tuple[int, ...]`): Shape `(k, C, H, W)` of a prediction.
        num_inference_steps (`int`): How many steps there are.

    Raises:
        ValueError: If it cannot, and why.
    """
    if not isinstance(guider, BaseGuidance):
        raise ValueError(f"`guider` must be one of Diffusers' guiders, an object, or None, got {guider!r}.")
    trial, network = copy.deepcopy(guider), None
    changes_network = type(guider).prepare_models is not BaseGuidance.prepare_models
    if changes_network:  # a network without memory can be changed at no cost
        plain = getattr(denoiser, "_orig_mod", denoiser)  # in case it is compiled
        with torch.device("meta"):
            network = type(plain).from_config(plain.config)
    # Predictions that a changed network must make. The others are its own, with the given frames and without.
    needed = set(trial._input_predictions) - {"pred_cond", "pred_uncond"}
    needed = needed or ({"pred_uncond"} if changes_network else set())
    draws = torch.Generator().manual_seed(0)
    tried = set()
    try:
        for step in range(num_inference_steps):
            trial.set_state(step=step, num_inference_steps=num_inference_steps, timestep=torch.tensor(0))
            batches = trial.prepare_inputs({"network": (0, 1)})
            names = tuple(getattr(batch, trial._identifier_key) for batch in batches)
            if names in tried:
                continue
            tried.add(names)
            for name, batch in zip(names, batches):
                trial.prepare_models(network)
                hooked = network is not None and any(
                    module._diffusers_hook.hooks for module in network.modules() if hasattr(module, "_diffusers_hook")
                )
                trial.cleanup_models(network)
                if name in needed and not hooked:
                    raise ValueError(f"it would change nothing in this network for its prediction {name!r}")
                batch.noise_pred = torch.randn(1, *frames_shape, generator=draws).flatten(1, 2)
            shape = tuple(trial(batches)[0].shape)
            if shape != tuple(batches[0].noise_pred.shape):
                raise ValueError(f"it makes {shape} of predictions {tuple(batches[0].noise_pred.shape)}")
    except Exception as error:  # whatever the guider's own code raises, it does not serve
        reason = str(error).rstrip(".") or type(error).__name__
        raise ValueError(
            f"`guider`: {type(guider).__name__} cannot serve {type(denoiser).__name__}: {reason}. Use one that only"
            " combines predictions, such as ClassifierFreeGuidance, or none: `pipe.guider = None`."
        ) from error
