"""What a noise scheduler is told in each step of a window: the network's prediction, as the call's guidance changes it."""

import copy
import functools
from collections.abc import Callable, Mapping, Sequence

import torch

from mcvd_diffusers.guidance import (
    compose_histories,
    guide_by_reconstruction,
    guider_prediction,
    needed_views,
    reconstruction_error,
)
from mcvd_diffusers.masking import FrameRole
from mcvd_diffusers.objectives import objective_of, sampling_level

from .layouts import replaced_sides
from .window_network import WindowNetwork


# The history without any frame.
NOTHING = ()


class GuidedPrediction:
    """
    The predictions for one window, step by step. Given frames are read by the network, or put in as noisy as the others; what it
    says is composed of several views of them, or guided by one of Diffusers' guiders, or towards what is known.

    Args:
        pipe ([`MCVDPipeline`]): Its network, scheduler (with its timesteps set) and guider; its guidance scale may change on the way.
        sample (`torch.Tensor` of shape `(B, T, C, H, W)`, in `[-1, 1]`): The window with its given frames.
        roles, frame_indices (`torch.Tensor` of shape `(B, T)`, on the CPU): [`FrameRole`] and position in the video of each.
        slots (`torch.Tensor` of shape `(k,)`, on the CPU): Where the frames to be made stand.
        low_resolution (`torch.Tensor` of shape `(B, T, C, h, w)`, *optional*): What frames look like small; NaN where not known.
        draw (`Callable`): Of a shape it makes noise.
        context (`tuple[torch.Tensor, ...]`): What a context encoder tells the network.
        observed_noise (`float`): How much noise is in the given frames.
        timesteps (`torch.Tensor`, on the CPU): Of the scheduler.
        history_guidance, replacement, reconstruction_guidance, super_resolution_guidance, cache_conditioning:
            As in the pipeline's call.
    """

    def __init__(
        self,
        pipe,
        sample: torch.Tensor,
        roles: torch.Tensor,
        frame_indices: torch.Tensor,
        *,
        slots: torch.Tensor,
        low_resolution: torch.Tensor | None,
        draw: Callable[[tuple[int, ...]], torch.Tensor],
        context: tuple[torch.Tensor, ...],
        observed_noise: float,
        timesteps: torch.Tensor,
        history_guidance: list[tuple[list[int] | None, float]] | None,
        replacement: str | Mapping[str, str] | None,
        reconstruction_guidance: float,
        super_resolution_guidance: float,
        cache_conditioning: bool,
    ) -> None:
        self._pipe, self._slots, self._draw, self._num_steps = pipe, slots.to(sample.device), draw, len(timesteps)
        self._told = timesteps.to(sample.device)  # all at once: to bring each there would wait for the device
        roles, noised_slots = _replaced_roles(roles, frame_indices, replacement)
        self._noised = sample[:, noised_slots]
        show = functools.partial(
            WindowNetwork,
            pipe.unet,
            sample,
            frame_indices=frame_indices,
            slots=slots,
            noised_slots=noised_slots,
            cache_conditioning=cache_conditioning,
            context=context,
            observed_noise=observed_noise,
        )
        self._history_guidance, self._is_scaled = history_guidance, pipe.guidance_scale != 1
        self._num_observed = len(_observed_slots(roles))
        self._guider = copy.deepcopy(pipe.guider)  # it remembers former steps, and no window sees another's
        if self._guider is not None:
            # One call after the other: a guider may leave one out, or change the network for it.
            pipe.register_attention()
            self._pair = show([roles]), show([_without(roles, ())])
        else:
            self._views = needed_views(self._histories(), NOTHING)
            self._network = show([_without(roles, view) for view in self._views])
        self._error = None
        is_known_small = low_resolution is not None and super_resolution_guidance > 0
        if is_known_small or (reconstruction_guidance and len(noised_slots)):
            self._error = functools.partial(
                reconstruction_error,
                given=self._noised,
                slots=noised_slots.to(sample.device),
                weight=reconstruction_guidance,
                low_resolution=low_resolution.to(sample) if is_known_small else None,
                low_resolution_weight=super_resolution_guidance,
            )

    def __call__(
        self, noisy: torch.Tensor, timestep: torch.Tensor, step: int, told: torch.Tensor | None = None
    ) -> torch.Tensor:
        """
        Predict.

        Args:
            noisy (`torch.Tensor` of shape `(B, k, C, H, W)`): The frames to be made.
            timestep (`torch.Tensor`, on the CPU): Their noise level.
            step (`int`): Number of the step, from 0.
            told (`torch.Tensor`, *optional*): What the network is told instead of it.

        Returns:
            `torch.Tensor` of shape `(B, k, C, H, W)`, float32: What the scheduler's `prediction_type` says.
        """
        level, noised = None, None
        told = self._told[step] if told is None else told
        if self._error is not None or self._noised.shape[1]:
            level = sampling_level(self._pipe.scheduler, timestep)
        if self._noised.shape[1]:
            noised = level[0] * self._noised + level[1] * self._draw(self._noised.shape)
        if self._guider is not None:
            calls = (functools.partial(x.predict, noisy, told, noised) for x in self._pair)
            calls = (lambda call=call: call()[0] for call in calls)
            at = {"step": step, "num_inference_steps": self._num_steps, "timestep": timestep}
            return guider_prediction(self._guider, self._pipe.unet, *calls, **at)
        if self._error is None:
            return self._composed(self._network.predict(noisy, told, noised))

        def predict_window(noisy: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            window, predictions = self._network.predict_window(noisy, told, noised)
            return window, self._composed(predictions)

        objective = objective_of(self._pipe.scheduler)
        return guide_by_reconstruction(
            predict_window, noisy, self._error, slots=self._slots, level=level, objective=objective
        )

    def _composed(self, predictions: list[torch.Tensor]) -> torch.Tensor:
        """One prediction of those for each view."""
        return compose_histories(dict(zip(self._views, predictions)), self._histories(), NOTHING)

    def _histories(self) -> list[tuple[tuple[int, ...], float]]:
        """Which of the window's observed frames the network is given, and with what weight; only those that the window has."""
        every = tuple(range(self._num_observed))
        if self._history_guidance is None:
            # A callback may change the scale.
            return [(every, self._pipe.guidance_scale if self._is_scaled and every else 1.0)]
        chosen = [(every if x is None else _chosen(x, every), weight) for x, weight in self._history_guidance]
        # A history of which the window has no frame says nothing.
        return [(x, weight) for x, weight in chosen if x] or [(every, 1.0)]


def _observed_slots(roles: torch.Tensor) -> torch.Tensor:
    """Slots that are OBSERVED in any row."""
    return (roles == FrameRole.OBSERVED).any(dim=0).nonzero().flatten()


def _chosen(numbers: Sequence[int], every: tuple[int, ...]) -> tuple[int, ...]:
    """Those of the numbers that there are, negative ones counted from the end, in order."""
    return tuple(sorted({every[x] for x in numbers if -len(every) <= x < len(every)}))


def _without(roles: torch.Tensor, keep: tuple[int, ...]) -> torch.Tensor:
    """Roles with observed frames ABSENT, but for some of those that are observed in any row, by their number."""
    is_kept = torch.zeros_like(roles[0], dtype=torch.bool)
    is_kept[_observed_slots(roles)[list(keep)]] = True
    return torch.where((roles == FrameRole.OBSERVED) & ~is_kept, FrameRole.ABSENT, roles)


def _replaced_roles(
    roles: torch.Tensor, frame_indices: torch.Tensor, replacement: str | Mapping[str, str] | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Roles with LATENT for observed frames that are put in step by step, and where those stand that are put in as noisy as the
    others; clean ones stand in the window as they are.
    """
    sides = replaced_sides(replacement)
    if not sides:
        return roles, roles.new_zeros(0)
    is_observed, is_latent = roles == FrameRole.OBSERVED, roles[0] == FrameRole.LATENT
    if not (is_observed == is_observed[:1]).all():
        raise ValueError("`roles` must have the same frames OBSERVED in all rows when they are replaced.")
    is_past = frame_indices[0] < frame_indices[0, is_latent].min()
    is_noised = torch.zeros_like(is_past)
    for side, how in sides.items():
        is_side = is_past if side == "past" else ~is_past
        roles = torch.where(is_observed & is_side, FrameRole.LATENT, roles)
        is_noised |= is_side & (how == "noised")
    return roles, (is_observed[0] & is_noised).nonzero().flatten()
