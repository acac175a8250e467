"""What context encoders return: what is known of all frames before a window, carried from window to window as a value."""

from dataclasses import dataclass

import torch
from diffusers.utils import BaseOutput


@dataclass
class ContextOutput(BaseOutput):
    """
    What a context encoder knows of the frames that it has read.

    Args:
        features (`tuple[torch.Tensor, ...]`):
            What the denoiser is told, its argument `context`. Of a clip memory one map `(B, D, h, w)`; of a recurrent encoder one
            `(B, k, D, h, w)` for each level of the denoiser, of which the i-th is for the i-th frame to be made. Empty if nothing
            is told.
        state (`tuple[torch.Tensor, ...]`):
            What to pass on to the next call, each with the batch on its first axis: rows may be chosen, reordered and repeated.
            Nothing else is remembered.
        mean (`torch.Tensor` of shape `(B, k, C, H, W)`, *optional*):
            What is predicted of the frames to be made, about `[-1, 1]`. The denoiser makes `(frame - mean) / scale`; `None`: 0.
        scale (`float`): See there.
    """

    features: tuple[torch.Tensor, ...] = ()
    state: tuple[torch.Tensor, ...] = ()
    mean: torch.Tensor | None = None
    scale: float = 1.0

    def __post_init__(self) -> None:
        # Accelerate rebuilds an output from a dictionary when it moves or casts it. Diffusers knows that by all other fields
        # being `None`, which is not what they are here.
        if isinstance(self.features, dict):
            self.__init__(**self.features)
        else:
            super().__post_init__()

    def rows(self, rows: slice) -> "ContextOutput":
        """
        What is known of some of the videos.

        Args:
            rows (`slice`): Which.

        Returns:
            [`ContextOutput`]: Of these.
        """
        features, state = (tuple(x[rows] for x in group) for group in (self.features, self.state))
        return ContextOutput(features, state, None if self.mean is None else self.mean[rows], self.scale)

    @staticmethod
    def joined(parts: list["ContextOutput"]) -> "ContextOutput":
        """
        What is known of all videos.

        Args:
            parts (`list[ContextOutput]`): What is known of some of them, by the same encoder, in order.

        Returns:
            [`ContextOutput`]: Of all.
        """
        if len(parts) == 1:
            return parts[0]
        features, state = (
            tuple(map(torch.cat, zip(*groups))) for groups in zip(*((part.features, part.state) for part in parts))
        )
        mean = None if parts[0].mean is None else torch.cat([part.mean for part in parts])
        return ContextOutput(features, state, mean, parts[0].scale)
