"""Guidance: how the predictions of several network calls become one."""

import torch


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
