"""Roles of frames, and how each method draws them for a training clip.

One function per method, all with one signature: a batch size, what the method needs by keyword, a generator, and a
`(B, T)` tensor of [`FrameRole`]s as the result.
"""

from collections.abc import Mapping
from enum import IntEnum

import torch

from mcvd_diffusers.randomness import Generators, rand_tensor


class FrameRole(IntEnum):
    """What a frame of a window is to the network."""

    ABSENT = 0
    """Not there: masked out, or padding. The network gets zero."""
    OBSERVED = 1
    """Given and clean."""
    LATENT = 2
    """Noised, to be predicted."""


def block_roles(
    batch_size: int,
    *,
    num_past_frames: int,
    num_frames: int,
    num_future_frames: int,
    is_past_kept: torch.Tensor,
    is_future_kept: torch.Tensor,
) -> torch.Tensor:
    """
    Roles of a window of past, block and future, where each side is there or not as a whole.

    Args:
        batch_size (`int`): Number of clips `B`.
        num_past_frames, num_frames, num_future_frames (`int`): Frames of the three parts.
        is_past_kept, is_future_kept (`torch.Tensor` of shape `(B,)`): Whether the side is OBSERVED; else ABSENT.

    Returns:
        `torch.Tensor` of shape `(B, T)`, integer: The roles.
    """
    sides = [
        kept.to(torch.long)[:, None].expand(batch_size, count) * FrameRole.OBSERVED
        for kept, count in ((is_past_kept, num_past_frames), (is_future_kept, num_future_frames))
    ]
    block = torch.full((batch_size, num_frames), FrameRole.LATENT, dtype=torch.long, device=is_past_kept.device)
    return torch.cat([sides[0], block, sides[1]], dim=1)


def mcvd_roles(
    batch_size: int,
    *,
    num_past_frames: int,
    num_frames: int,
    num_future_frames: int,
    drop_past: float,
    drop_future: float,
    generator: Generators = None,
) -> torch.Tensor:
    """
    MCVD's masks (paper, section 3.2): all past frames together, and independently all future frames together, are
    left out with a probability; the block between them is always predicted.

    One network then learns four tasks: prediction (past only), past prediction (future only), interpolation (both)
    and generation (neither).

    Args:
        batch_size (`int`): Number of clips `B`.
        num_past_frames, num_frames, num_future_frames (`int`): Frames of the three parts of the window.
        drop_past (`float`): Probability that the past is ABSENT, in `[0, 1]`.
        drop_future (`float`): Probability that the future is ABSENT, in `[0, 1]`.
        generator (`torch.Generator` or a list of them, *optional*):
            The source of randomness. Clip `i` takes two numbers, past first, and does not depend on the batch size.

    Returns:
        `torch.Tensor` of shape `(B, T)`, integer: The [`FrameRole`] of each frame.

    Raises:
        ValueError: If a probability is outside `[0, 1]`, or a list of generators does not have one for each clip.
    """
    for name, value in (("drop_past", drop_past), ("drop_future", drop_future)):
        if not 0 <= value <= 1:
            raise ValueError(f"`{name}` is a probability, got {value}.")
    for name, value, least in (
        ("num_past_frames", num_past_frames, 0),
        ("num_frames", num_frames, 1),
        ("num_future_frames", num_future_frames, 0),
    ):
        if value < least:
            raise ValueError(f"`{name}` must be at least {least}, got {value}.")
    draws = rand_tensor((batch_size, 2), generator)
    return block_roles(
        batch_size,
        num_past_frames=num_past_frames,
        num_frames=num_frames,
        num_future_frames=num_future_frames,
        is_past_kept=draws[:, 0] >= drop_past,
        is_future_kept=draws[:, 1] >= drop_future,
    )


def trained_tasks(
    *,
    num_past_frames: int,
    num_future_frames: int,
    drop_past: float,
    drop_future: float,
    is_dropped_together: bool = False,
) -> list[str]:
    """
    The tasks that a network was trained for, which follows from the frames it reads and how they were masked.

    Args:
        num_past_frames, num_future_frames (`int`): Frames that the network reads before and after the block.
        drop_past, drop_future (`float`): Probability with which all of them were ABSENT in training.
        is_dropped_together (`bool`, *optional*, defaults to `False`): Whether both were always ABSENT at the same time.

    Returns:
        `list[str]`: Of `"prediction"`, `"past prediction"`, `"interpolation"` and `"generation"`.
    """
    sees = {"past": num_past_frames > 0 and drop_past < 1, "future": num_future_frames > 0 and drop_future < 1}
    lacks = {"past": num_past_frames == 0 or drop_past > 0, "future": num_future_frames == 0 or drop_future > 0}
    is_one_sided = num_past_frames == 0 or num_future_frames == 0 or not is_dropped_together
    tasks = {
        "prediction": sees["past"] and lacks["future"] and is_one_sided,
        "past prediction": sees["future"] and lacks["past"] and is_one_sided,
        "interpolation": sees["past"] and sees["future"],
        "generation": lacks["past"] and lacks["future"],
    }
    return [task for task, is_trained in tasks.items() if is_trained]


def tasks_of_config(config: Mapping) -> list[str]:
    """
    The tasks that a network was trained for, as its config states.

    Args:
        config (`Mapping`): With `num_past_frames`, `num_future_frames`, `drop_past` and `drop_future`.

    Returns:
        `list[str]`: As [`trained_tasks`].
    """
    names = ("num_past_frames", "num_future_frames", "drop_past", "drop_future")
    return trained_tasks(**{name: config[name] for name in names})
