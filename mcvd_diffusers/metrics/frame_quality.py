"""Distances between a predicted and a true video, frame by frame.

Papers reduce the same errors in different ways, and the numbers differ: each reduction has its own name here.

| name | is |
| --- | --- |
| PSNR of the video's error | `psnr_of_mse(video_mse(...))`: decibels of the mean over all pixels of all frames (MCVD) |
| mean PSNR of the frames | `psnr_of_mse(frame_mse(...)).mean(dim=1)`; never smaller than the above, by Jensen's inequality |
| SSIM | [`frame_ssim`], mean over frames; what it sees (8 bits or floats, grey or channels) is part of its name |

Shapes: B videos, T frames, C channels, H height, W width.
"""

import math
from typing import Literal

import torch


# Wang et al., "Image quality assessment: from error visibility to structural similarity" (2004), section III-B, C.
SSIM_SIGMA = 1.5
SSIM_RADIUS = 5  # of the window of 11 pixels
SSIM_K1, SSIM_K2 = 0.01, 0.03

# ITU-R 601-2 luma in 16-bit fixed point, as Pillow makes "L" of RGB; together they are 65536.
LUMA_16BIT = (19595, 38470, 7471)

Quantisation = Literal["none", "floor_8bit", "round_8bit", "binary"]
Color = Literal["luma", "channels"]


def frame_mse(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """
    Squared error of each frame, averaged over its pixels and channels.

    Args:
        prediction (`torch.Tensor` of shape `(B, T, C, H, W)`, in `[0, 1]`): Predicted frames.
        target (`torch.Tensor` of the same shape, in `[0, 1]`): True frames.

    Returns:
        `torch.Tensor` of shape `(B, T)`, float64: The errors.

    Raises:
        ValueError: If the shapes differ or a value is not finite.
    """
    if prediction.shape != target.shape or prediction.ndim != 5:
        raise ValueError(
            "`prediction` and `target` must both have shape (B, T, C, H, W), got"
            f" {tuple(prediction.shape)} and {tuple(target.shape)}."
        )
    error = ((prediction.double() - target.double()) ** 2).flatten(2).mean(dim=2)
    if not torch.isfinite(error).all():
        raise ValueError("`prediction` or `target` holds NaN or infinite values, so there is no error to tell.")
    return error


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
    return frame_mse(prediction, target).mean(dim=1)


def psnr_of_mse(mse: torch.Tensor) -> torch.Tensor:
    """
    Peak signal-to-noise ratio of a squared error, for values in `[0, 1]`.

    Which error goes in makes the number: of each video ([`video_mse`], as MCVD reports it), of each frame
    ([`frame_mse`]), or of the mean over all videos. It is infinite where the error is 0.

    Args:
        mse (`torch.Tensor`): Squared errors, 0 or more, any shape.

    Returns:
        `torch.Tensor`: Decibels, same shape.
    """
    return -10 * torch.log10(mse)


def frame_ssim(
    prediction: torch.Tensor,
    target: torch.Tensor,
    *,
    quantisation: Quantisation = "none",
    color: Color = "channels",
) -> torch.Tensor:
    """
    Structural similarity of each frame (Wang et al. 2004): Gaussian window of 11 pixels (sigma 1.5), population
    covariance, mean over the pixels whose window lies inside of the frame.

    It equals scikit-image's `structural_similarity(..., gaussian_weights=True, use_sample_covariance=False)`. The MCVD
    code's numbers are `quantisation="floor_8bit", color="luma"`, and `quantisation="binary"` for moving digits.

    Args:
        prediction (`torch.Tensor` of shape `(B, T, C, H, W)`, in `[0, 1]`): Predicted frames.
        target (`torch.Tensor` of the same shape, in `[0, 1]`): True frames.
        quantisation (`str`, *optional*, defaults to `"none"`): What both become first: see [`quantise`].
        color (`str`, *optional*, defaults to `"channels"`):
            `"channels"`: mean over the channels, of which there may be any number. `"luma"`: 3 channels become one grey
            by the ITU-R 601-2 weights, in 8 bits as Pillow does if values have 8 bits; 1 channel stays.

    Returns:
        `torch.Tensor` of shape `(B, T)`, float64: In `[-1, 1]`, 1 for equal frames.

    Raises:
        ValueError: If the shapes differ, a value is not finite, frames are smaller than the window, or `"luma"` is asked of
            another number of channels than 1 and 3.
    """
    frame_mse(prediction, target)  # checks
    num_videos, num_frames, _, height, width = prediction.shape
    size = 2 * SSIM_RADIUS + 1
    if min(height, width) < size:
        raise ValueError(
            f"SSIM needs frames of at least {size} x {size} pixels, the size of its window, got {height} x {width}: leave it"
            " out."
        )
    frames_at_a_time = max(1, 2**16 // (height * width))  # so that what is computed stays in the processor's caches
    chunks = zip(prediction.flatten(0, 1).split(frames_at_a_time), target.flatten(0, 1).split(frames_at_a_time))
    similarities = [_ssim(*(_as_seen(frames, quantisation, color) for frames in pair)) for pair in chunks]
    return torch.cat(similarities).view(num_videos, num_frames)


def _as_seen(frames: torch.Tensor, quantisation: Quantisation, color: Color) -> torch.Tensor:
    """Frames (N, C, H, W) as SSIM sees them, float64."""
    frames = quantise(frames, quantisation)
    return (_luma(frames, quantisation.endswith("8bit")) if color == "luma" else frames).double()


def _ssim(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Similarity of each frame of (N, C, H, W), float64."""
    mean_x, mean_y = _blur(x), _blur(y)
    product, squares = mean_x * mean_y, mean_x**2 + mean_y**2
    covariance = _blur(x * y) - product
    variances = _blur(x * x + y * y) - squares  # of both together, which is all that is needed
    c1, c2 = SSIM_K1**2, SSIM_K2**2  # for values in [0, 1]
    # Wang et al., equation 13
    similarity = (2 * product + c1) * (2 * covariance + c2) / ((squares + c1) * (variances + c2))
    return similarity.flatten(1).mean(dim=1)  # all channels have as many pixels


def _blur(images: torch.Tensor) -> torch.Tensor:
    """Weighted means over the windows that lie inside: shifted additions, twice as fast as a convolution in float64."""
    weights = [math.exp(-0.5 * (offset / SSIM_SIGMA) ** 2) for offset in range(SSIM_RADIUS + 1)]
    total = weights[0] + 2 * sum(weights[1:])
    for dim in (-2, -1):
        size = images.shape[dim] - 2 * SSIM_RADIUS
        blurred = images.narrow(dim, SSIM_RADIUS, size) * (weights[0] / total)
        for offset in range(1, SSIM_RADIUS + 1):
            sides = (images.narrow(dim, SSIM_RADIUS + step, size) for step in (-offset, offset))
            blurred.add_(sum(sides), alpha=weights[offset] / total)
        images = blurred
    return images


def quantise(video: torch.Tensor, quantisation: Quantisation) -> torch.Tensor:
    """
    What is left of a video in an image file, or on a black and white screen.

    Args:
        video (`torch.Tensor`, in `[0, 1]`): Frames, any shape.
        quantisation (`str`):
            `"none"`; `"floor_8bit"`: the 256 levels, the next below, as torchvision's `ToPILImage` does; `"round_8bit"`: the
            nearest; `"binary"`: 0 up to 0.5, and 1 above.

    Returns:
        `torch.Tensor`: Same shape, float32 in `[0, 1]`; as it came for `"none"`.

    Raises:
        ValueError: If `quantisation` is none of these.
    """
    if quantisation == "none":
        return video
    video = video.float().clamp(0, 1)
    if quantisation == "floor_8bit":  # in float32: 63 of the 256 levels that went to [-1, 1] and back lose one here
        return (video * 255).floor() / 255
    if quantisation == "round_8bit":
        return (video * 255).round() / 255
    if quantisation == "binary":
        return video.round()  # halves to even: 0.5 is 0
    raise ValueError(f'`quantisation` must be "none", "floor_8bit", "round_8bit" or "binary", got {quantisation!r}.')


def _luma(frames: torch.Tensor, is_8bit: bool) -> torch.Tensor:
    """Grey (N, 1, H, W) of 1 or 3 channels."""
    if frames.shape[1] == 1:
        return frames
    if frames.shape[1] != 3:
        raise ValueError(
            f'`color="luma"` is for 1 or 3 channels, got {frames.shape[1]}: "channels" takes the mean over any number.'
        )
    weights = torch.tensor(LUMA_16BIT, dtype=torch.float64, device=frames.device).view(3, 1, 1)
    if not is_8bit:
        return (frames.double() * weights).sum(dim=1, keepdim=True) / 65536
    levels = (frames.double() * 255).round()
    return ((levels * weights).sum(dim=1, keepdim=True) + 32768).div(65536).floor() / 255
