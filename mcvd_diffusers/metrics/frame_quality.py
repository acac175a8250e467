"""Distances between a predicted and a true video, pixel by pixel."""

import torch


def video_mse(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """
    Squared error of each video, averaged over its pixels and frames.

    Args:
        prediction (`torch.Tensor` of shape `(B, T, C, H, W)`, in `[0, 1]`): Predicted frames.
        target (`torch.Tensor` of the same shape, in `[0, 1]`): True frames.

    Returns:
        `torch.Tensor` of shape `(B,)`, float64: The errors.

    Raises:
        ValueError: If the shapes differ or a value is not finite.
    """
    if prediction.shape != target.shape or prediction.ndim != 5:
        raise ValueError(
            "`prediction` and `target` must both have shape (B, T, C, H, W), got"
            f" {tuple(prediction.shape)} and {tuple(target.shape)}."
        )
    error = ((prediction.double() - target.double()) ** 2).flatten(1).mean(dim=1)
    if not torch.isfinite(error).all():
        raise ValueError("`prediction` or `target` holds NaN or infinite values, so there is no error to tell.")
    return error


def psnr_of_mse(mse: torch.Tensor) -> torch.Tensor:
    """
    Peak signal-to-noise ratio of a squared error, for values in `[0, 1]`.

    Which error goes in makes the number: of each video's ([`video_mse`], as MCVD reports it; then infinite for a video
    that is met exactly), or of the mean over all videos. Neither is the mean of the frames' PSNRs.

    Args:
        mse (`torch.Tensor`): Squared errors, 0 or more, any shape.

    Returns:
        `torch.Tensor`: Decibels, same shape.
    """
    return -10 * torch.log10(mse)
