"""Predictions that need no network. A model that does not beat them has learnt nothing that matters."""

import torch


def repeat_last_frame(past_frames: torch.Tensor, num_frames: int) -> torch.Tensor:
    """
    Predict that nothing moves.

    Args:
        past_frames (`torch.Tensor` of shape `(B, T, C, H, W)`): Given frames.
        num_frames (`int`): Frames to predict.

    Returns:
        `torch.Tensor` of shape `(B, num_frames, C, H, W)`: The last given frame, again and again.
    """
    return past_frames[:, -1:].repeat(1, num_frames, 1, 1, 1)


def repeat_first_frame(future_frames: torch.Tensor, num_frames: int) -> torch.Tensor:
    """
    Predict, backwards, that nothing moved.

    Args:
        future_frames (`torch.Tensor` of shape `(B, T, C, H, W)`): Given frames, after those to be made.
        num_frames (`int`): Frames to make.

    Returns:
        `torch.Tensor` of shape `(B, num_frames, C, H, W)`: The first given frame, again and again.
    """
    return future_frames[:, :1].repeat(1, num_frames, 1, 1, 1)


def blend_linearly(past_frames: torch.Tensor, future_frames: torch.Tensor, num_frames: int) -> torch.Tensor:
    """
    Interpolate each pixel linearly between the last past frame and the first future frame.

    Args:
        past_frames (`torch.Tensor` of shape `(B, T, C, H, W)`): Frames before the gap.
        future_frames (`torch.Tensor` of shape `(B, T', C, H, W)`): Frames after the gap.
        num_frames (`int`): Frames of the gap.

    Returns:
        `torch.Tensor` of shape `(B, num_frames, C, H, W)`: The blend.
    """
    weight = torch.arange(1, num_frames + 1, dtype=past_frames.dtype, device=past_frames.device) / (num_frames + 1)
    weight = weight[:, None, None, None]
    return (1 - weight) * past_frames[:, -1:] + weight * future_frames[:, :1]
