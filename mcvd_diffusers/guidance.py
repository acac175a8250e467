"""Guidance: how the predictions of several network calls become one."""

import copy
from collections.abc import Callable

import torch
from diffusers.guiders import BaseGuidance


def classifier_free_guidance(given: torch.Tensor, absent: torch.Tensor, scale: float) -> torch.Tensor:
    """
    Classifier-free guidance (Ho and Salimans, 2207.12598, equation 6) over absent frames.

    A network trained with masks predicts with its given frames and without them; the difference says what the given
    frames change, and is exaggerated.

    Args:
        given (`torch.Tensor`): The prediction with the given frames OBSERVED.
        absent (`torch.Tensor`): The prediction with the same frames ABSENT, same shape.
        scale (`float`): 1 is the plain conditional prediction, 0 the unconditional one, above 1 is guidance.

    Returns:
        `torch.Tensor`: The guided prediction, same shape.
    """
    return absent + scale * (given - absent)


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
