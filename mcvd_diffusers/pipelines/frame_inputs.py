"""Frames as callers have them: images, arrays, tensors, in any of the usual forms. One place checks and converts."""

import math

import numpy as np
import torch
from diffusers.utils import logging
from PIL import Image

from mcvd_diffusers.normalization import FrameNormalizer


logger = logging.get_logger(__name__)

Frames = torch.Tensor | np.ndarray | list


def read_frames(
    name: str, frames: Frames, *, num_channels: int, most: int | None, normalizer: FrameNormalizer
) -> torch.Tensor:
    """
    Check given frames and bring them into one form.

    Args:
        name (`str`): The caller's argument, for messages: `"past_frames"` or `"future_frames"`.
        frames (`torch.Tensor`, `np.ndarray` or `list`):
            A tensor `(B, T, C, H, W)` or `(T, C, H, W)`; an array of the same axes or with `C` last; a list of
            `PIL.Image`s, of lists of them, of tensors or of arrays. Floats in `[0, 1]`, `uint8` or `uint16`; if the normalizer is
            not for images, numbers in its units.
        num_channels (`int`): Channels of a frame in the caller's units.
        most (`int` or `None`): Frames that the network reads, at most; 0 if it reads none, `None` if any number.
        normalizer ([`FrameNormalizer`]): The caller's units.

    Returns:
        `torch.Tensor` of shape `(B, T, C, H, W)`, float32 in `[0, 1]` or the caller's units: The frames; float32 input
        keeps its bits.

    Raises:
        ValueError: If form, shape, type, range or number of the frames do not fit, or a value is not finite.
    """
    if not normalizer.is_unit and _has_images(frames):
        raise ValueError(
            f"`{name}` must be numbers in the units of the training data ({normalizer}), got images, whose values have other"
            " ones: pass an array or a tensor."
        )
    if most == 0:
        raise ValueError(f"`{name}`: this network reads none (`unet.config.num_{name}` is 0); leave it out.")
    frames = _to_tensor(name, frames, num_channels).detach()
    if 0 in frames.shape:
        raise ValueError(f"`{name}` is empty: its shape is {tuple(frames.shape)}.")
    if most is not None and frames.shape[1] > most:
        end = "last" if name == "past_frames" else "first"
        raise ValueError(
            f"`{name}` has {frames.shape[1]} frames, this network reads at most {most}: pass the {end} {most} of each"
            " video."
        )
    if frames.shape[2] != num_channels:
        raise ValueError(
            f"`{name}` must have {num_channels} channel(s), got {frames.shape[2]} (shape {tuple(frames.shape)}, read as"
            ' (B, T, C, H, W)). Convert them, such as with image.convert("L") or "RGB", or move the channel axis.'
        )
    depth = {torch.uint8: 255, torch.uint16: 65535}.get(frames.dtype)
    if normalizer.is_unit and depth is not None:
        return frames.float() / depth
    is_number = frames.is_floating_point() or (not normalizer.is_unit and not frames.is_complex())
    if not is_number or frames.dtype == torch.bool:
        raise ValueError(f"`{name}` must be floats in [0, 1] or uint8 in [0, 255], got {frames.dtype}.")
    frames = frames.float()
    is_bad = ~torch.isfinite(frames) if normalizer.nan_fill is None else torch.isinf(frames)
    if is_bad.any():
        first = is_bad.flatten(2).any(dim=2).nonzero()[0]
        way_out = "Fill them before." if normalizer.nan_fill is None else "Missing ones are NaN here."
        raise ValueError(
            f"`{name}` has {int(is_bad.sum())} values that are NaN or infinite, the first in frame {int(first[1])} of video"
            f" {int(first[0])}. {way_out}"
        )
    _check_range(name, frames, normalizer)
    return frames


def _has_images(frames: Frames) -> bool:
    while isinstance(frames, (list, tuple)) and frames:
        frames = frames[0]
    return isinstance(frames, Image.Image)


def _check_range(name: str, frames: torch.Tensor, normalizer: FrameNormalizer) -> None:
    """Refuse frames in other units than those of the training data."""
    if not normalizer.is_unit:
        complaint = normalizer.find_other_units(frames)
        if complaint is not None:
            raise ValueError(f"`{name}` must be in the units of the training data: {complaint} See `pipe.normalizer`.")
        share = normalizer.share_outside(frames)
        if share > 0.001:  # a range that was measured leaves some values out
            logger.warning(
                f"{share:.1%} of the values of `{name}` lie outside of the range of the training data ({normalizer}): the network"
                " is shown them clipped, and makes none beyond."
            )
        return
    low, high = map(float, frames.aminmax())
    if math.isnan(low):  # some are missing
        low, high = map(float, frames.nan_to_num(0.0).aminmax())
    if low < -1e-3 or high > 1 + 1e-3:
        hint = "If they are in [-1, 1], pass (frames + 1) / 2." if low >= -1.001 and high <= 1.001 else ""
        hint = "If they are in [0, 255], divide by 255." if low >= 0 and 2 < high <= 255 else hint
        raise ValueError(f"`{name}` must be in [0, 1], got values from {low:.4g} to {high:.4g}. {hint}".strip())


def _to_tensor(name: str, frames: Frames, num_channels: int) -> torch.Tensor:
    """Any accepted form of frames -> (B, T, C, H, W) tensor, values untouched."""
    if isinstance(frames, Image.Image):
        raise ValueError(f"`{name}` is a single image: pass a list of frames, `[image]`.")
    if isinstance(frames, (list, tuple)):
        if not frames or any(isinstance(video, (list, tuple)) and not video for video in frames):
            raise ValueError(f"`{name}` is an empty list.")
        if isinstance(frames[0], Image.Image):
            frames = [frames]
        videos = [_images_to_tensor(name, video) if isinstance(video, (list, tuple)) else video for video in frames]
        kinds = {type(video) for video in videos}
        if kinds not in ({torch.Tensor}, {np.ndarray}):
            raise ValueError(
                f"`{name}` must be a list of PIL images, of lists of PIL images, of tensors or of arrays, got a list of"
                f" {', '.join(sorted(kind.__name__ for kind in kinds))}."
            )
        _check_alike(name, videos)
        is_batch = videos[0].ndim == 5  # each with a batch axis already
        if kinds == {torch.Tensor}:
            frames = torch.cat(videos) if is_batch else torch.stack(videos)
        else:
            frames = np.concatenate(videos) if is_batch else np.stack(videos)
    if not isinstance(frames, (torch.Tensor, np.ndarray)):
        raise ValueError(f"`{name}` must be a tensor, an array or a list, got {type(frames).__name__}.")
    if frames.ndim == 4:
        frames = frames[None]
    if frames.ndim != 5:
        raise ValueError(
            f"`{name}` must have 5 axes (B, T, C, H, W), or 4 without B, got shape {tuple(frames.shape)}. A single"
            " frame or a channel axis may be missing: add it with `[:, None]`."
        )
    if isinstance(frames, np.ndarray):
        first, last = frames.shape[2] == num_channels, frames.shape[4] == num_channels
        if first and last:
            raise ValueError(
                f"`{name}`: an array of shape {frames.shape} could be (B, T, C, H, W) or (B, T, H, W, C); pass a"
                " tensor, which always is (B, T, C, H, W)."
            )
        if frames.dtype == object or not np.issubdtype(frames.dtype, np.number):
            raise ValueError(f"`{name}` must be an array of numbers, got dtype {frames.dtype}.")
        frames = np.moveaxis(frames, -1, 2) if last else frames
        try:
            frames = torch.from_numpy(np.array(frames))
        except (TypeError, ValueError) as error:  # the latter: of another byte order
            raise ValueError(f"`{name}` has dtype {frames.dtype}, which torch does not know: use float32.") from error
    if frames.layout != torch.strided or frames.device.type == "meta":
        raise ValueError(f"`{name}` must be an ordinary tensor, got one of {frames.layout} on {frames.device}.")
    return frames


def _images_to_tensor(name: str, images: list) -> torch.Tensor:
    """PIL images of one video -> (T, C, H, W), uint8, with the channels that their mode has."""
    frames = []
    for image in images:
        if not isinstance(image, Image.Image):
            raise ValueError(f"`{name}` must be a list of PIL images, got a list of {type(image).__name__} in it.")
        if image.mode in ("P", "1"):
            image = image.convert("RGB" if image.mode == "P" else "L")
        if image.mode not in ("L", "RGB", "RGBA") and not image.mode.startswith("I;16"):
            raise ValueError(f'`{name}` has an image of mode {image.mode}: use image.convert("RGB") or "L".')
        array = np.array(image)
        array = array.astype(array.dtype.newbyteorder("="))
        frames.append(torch.from_numpy(array[:, :, None] if array.ndim == 2 else array).movedim(-1, 0))
    _check_alike(name, frames)
    return torch.stack(frames)


def _check_alike(name: str, items: list) -> None:
    kinds = {f"{tuple(item.shape)} {item.dtype}" for item in items}
    if len(kinds) > 1:
        raise ValueError(f"`{name}` mixes shapes or types: {', '.join(sorted(kinds))}.")
