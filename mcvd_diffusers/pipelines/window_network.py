"""The network before one window: what stays the same from step to step is put before it once."""

from dataclasses import dataclass

import torch
from diffusers.hooks.group_offloading import _is_group_offload_enabled

from mcvd_diffusers.masking import FrameRole

from .layouts import shows_beside, takes_windows


@dataclass
class _Call:
    """One call of the network, for one or several views of the window."""

    # What it is shown, (n * B, t, C, H, W) in its type; noisy frames are written into it.
    window: torch.Tensor
    roles: torch.Tensor  # (n * B, t)
    frame_indices: torch.Tensor  # (n * B, t)
    seen: torch.Tensor  # (t,): which frames of the window these are
    slots: torch.Tensor  # (k,): where among them the frames to be made stand
    noised_slots: torch.Tensor  # (n,): and the given ones that are put in
    options: dict


class WindowNetwork:
    """
    The network for one window, of which it may be shown several views: with all given frames, with some, with none.

    Args:
        unet (`torch.nn.Module`): The network.
        sample (`torch.Tensor` of shape `(B, T, C, H, W)`): The window with its given frames.
        views (`list[torch.Tensor]`, on the CPU): Roles `(B, T)`, in which the same frames are LATENT.
        frame_indices (`torch.Tensor` of shape `(B, T)`, on the CPU): Positions in the video.
        slots (`torch.Tensor` of shape `(k,)`, on the CPU): Where the frames to be made stand.
        noised_slots (`torch.Tensor` of shape `(n,)`, on the CPU): Where given frames stand that are put in as noisy as the others.
        cache_conditioning (`bool`): Whether what depends on given frames only is computed once.
        context (`tuple[torch.Tensor, ...]`, *optional*): What a context encoder tells it, each with the batch first.
        observed_noise (`float`, *optional*, defaults to 0.0): How much noise is in the given frames, which it is told.
    """

    def __init__(
        self,
        unet: torch.nn.Module,
        sample: torch.Tensor,
        views: list[torch.Tensor],
        *,
        frame_indices: torch.Tensor,
        slots: torch.Tensor,
        noised_slots: torch.Tensor,
        cache_conditioning: bool,
        context: tuple[torch.Tensor, ...] = (),
        observed_noise: float = 0.0,
    ) -> None:
        self._unet, self._sample, self._views = unet, sample, views
        device = sample.device
        self._slots, self._noised_slots = slots.to(device), noised_slots.to(device)
        every = torch.arange(sample.shape[1])
        are_there = [roles != FrameRole.ABSENT for roles in views]
        # A network of windows need not see frames that are not there, if it knows where the others are, or these are neighbours;
        # views are then of different lengths.
        drops = takes_windows(unet.config) and not shows_beside(unet.config)
        drops = drops and all(bool((x == x[:1]).all()) for x in are_there)
        drops = drops and (unet.config.has_frame_gaps or all(_is_run(x[0]) for x in are_there))
        self._calls = []
        for group in [[roles] for roles in views] if drops else [views]:
            seen = every[group[0][0] != FrameRole.ABSENT] if drops else every
            roles = torch.cat(group)[:, seen]
            window = sample.repeat(len(group), 1, 1, 1, 1)[:, seen.to(device)].to(unet.dtype)
            options = {}
            if "backbone" in unet.config:  # a space-time network would ask the device, and wait for it
                options["has_absent"] = bool((roles == FrameRole.ABSENT).any())
            roles = roles.to(device)
            # Group offloading moves weights when a block's `forward` is called, which encoding does not do.
            if cache_conditioning and hasattr(unet, "encode_conditioning") and not _is_group_offload_enabled(unet):
                options["conditioning"] = unet.encode_conditioning(window, roles)
            if observed_noise:
                options["observed_noise"] = torch.full((len(window),), observed_noise, device=device)
            if context:
                copies = (x.to(device=window.device, dtype=unet.dtype) for x in context)
                options["context"] = tuple(x.repeat(len(group), *[1] * (x.ndim - 1)) for x in copies)
            indices = frame_indices.repeat(len(group), 1)[:, seen]
            places = torch.searchsorted(seen, slots), torch.searchsorted(seen, noised_slots)
            self._calls.append(_Call(window, roles, *(x.to(device) for x in (indices, seen, *places)), options))

    def predict(
        self, noisy: torch.Tensor, timestep: torch.Tensor, noised: torch.Tensor | None = None
    ) -> list[torch.Tensor]:
        """
        What the network says of the frames to be made.

        Args:
            noisy (`torch.Tensor` of shape `(B, k, C, H, W)`): These frames.
            timestep (`torch.Tensor`): Their noise level.
            noised (`torch.Tensor` of shape `(B, n, C, H, W)`, *optional*): The given frames that are put in.

        Returns:
            `list[torch.Tensor]`: For each view `(B, k, C, H, W)`, float32.
        """
        predictions = []
        for call in self._calls:
            copies = call.window.unflatten(0, (-1, len(noisy)))
            copies[:, :, call.slots] = noisy.to(copies.dtype)
            if noised is not None:
                copies[:, :, call.noised_slots] = noised.to(copies.dtype)
            made = self._run(call, call.window, timestep)[:, call.slots].float()
            predictions += made.chunk(len(copies))
        return predictions

    def predict_window(
        self, noisy: torch.Tensor, timestep: torch.Tensor, noised: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """
        As [`WindowNetwork.predict`], of the whole window, and such that gradients go through: the window that the network was
        shown, `(B, T, C, H, W)`, and what it says of it for each view, the same shape.
        """
        window = self._sample if noised is None else self._sample.index_copy(1, self._noised_slots, noised)
        window, predictions = window.index_copy(1, self._slots, noisy), []
        for call in self._calls:
            num_views = len(call.window) // len(noisy)
            shown = window.repeat(num_views, 1, 1, 1, 1)[:, call.seen].to(call.window.dtype)
            made = self._run(call, shown, timestep).float()
            whole = made.new_zeros(len(made), *window.shape[1:]).index_copy(1, call.seen, made)
            predictions += whole.chunk(num_views)
        return window, predictions

    def _run(self, call: _Call, window: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        arguments = {"frame_indices": call.frame_indices, **call.options}
        return self._unet(window, timestep, call.roles, **arguments, return_dict=False)[0]


def _is_run(is_there: torch.Tensor) -> bool:
    """Whether the frames that are there are neighbours, without a hole between them."""
    slots = is_there.nonzero().flatten().tolist()
    return not slots or slots[-1] - slots[0] + 1 == len(slots)
