"""Roles of frames, and how each method draws them for a training clip.

One function per method, all with one signature: a batch size, what the method needs by keyword, a generator, and a
`(B, T)` tensor of [`FrameRole`]s as the result.
"""

import math
import numbers
import random
from collections.abc import Mapping, Sequence
from enum import IntEnum

import torch

from mcvd_diffusers.randomness import Generators, rand_tensor


LGCVD_TASK_SHARES = (0.45, 0.4, 0.05, 0.1)


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
    _check_probability("drop_past", drop_past)
    _check_probability("drop_future", drop_future)
    _check_counts(
        ("num_past_frames", num_past_frames, 0),
        ("num_frames", num_frames, 1),
        ("num_future_frames", num_future_frames, 0),
    )
    draws = rand_tensor((batch_size, 2), generator)
    return block_roles(
        batch_size,
        num_past_frames=num_past_frames,
        num_frames=num_frames,
        num_future_frames=num_future_frames,
        is_past_kept=draws[:, 0] >= drop_past,
        is_future_kept=draws[:, 1] >= drop_future,
    )


def ramvid_roles(
    batch_size: int,
    *,
    num_frames: int,
    max_observed: int = 4,
    drop_observed: float = 0.25,
    observed_range: tuple[int, int] | None = None,
    generator: Generators = None,
) -> torch.Tensor:
    """
    RaMViD's masks (Höppe et al., "Diffusion Models for Video Prediction and Infilling", 2206.07696): a few frames anywhere
    in the clip are given, or none; all others are predicted.

    One network then learns prediction, infilling of any kind, and generation. The defaults are the paper's for BAIR and
    Kinetics-600; for UCF-101 it leaves out the given frames with probability 0.75.

    Args:
        batch_size (`int`): Number of clips `B`.
        num_frames (`int`): Frames of a clip `T`.
        max_observed (`int`, *optional*, defaults to 4): Most OBSERVED frames, less than `num_frames`: each number from 1 has
            the same chance.
        drop_observed (`float`, *optional*, defaults to 0.25): Probability that no frame is OBSERVED, in `[0, 1]`.
        observed_range (`tuple[int, int]`, *optional*):
            Frames that may be OBSERVED: from the first of the two numbers up to the second, that not included. By default all.
        generator (`torch.Generator` or a list of them, *optional*):
            The source of randomness. Clip `i` takes `2 + num_frames` numbers, and does not depend on the batch size.

    Returns:
        `torch.Tensor` of shape `(B, T)`, integer: The [`FrameRole`] of each frame, OBSERVED or LATENT.

    Raises:
        ValueError: If a number is out of range, or a list of generators does not have one for each clip.
    """
    _check_probability("drop_observed", drop_observed)
    if not 1 <= max_observed < num_frames:
        raise ValueError(
            f"`max_observed` must be from 1 to `num_frames` - 1 ({num_frames - 1}), so that a frame is left to be predicted,"
            f" got {max_observed}."
        )
    ends = (0, num_frames) if observed_range is None else observed_range
    is_pair = isinstance(ends, (tuple, list)) and len(ends) == 2 and all(isinstance(x, numbers.Integral) for x in ends)
    if not is_pair or not 0 <= ends[0] <= ends[1] - max_observed or ends[1] > num_frames:
        raise ValueError(
            f"`observed_range` must be two numbers from 0 to {num_frames}, with `max_observed` ({max_observed}) frames between"
            f" them at least, got {observed_range}."
        )
    draws = rand_tensor((batch_size, 2 + num_frames), generator)
    num_observed = 1 + (draws[:, 1] * max_observed).long()
    num_observed = torch.where(draws[:, 0] < drop_observed, 0, num_observed)  # (B,)
    order = draws[:, 2:].clone()
    order[:, : ends[0]] = order[:, ends[1] :] = 2  # behind all others
    place = order.argsort(dim=1).argsort(dim=1)  # of each frame in a random order, (B, T)
    return torch.where(place < num_observed[:, None], int(FrameRole.OBSERVED), int(FrameRole.LATENT))


def fdm_roles(batch_size: int, *, num_frames: int, max_frames: int, generator: Generators = None) -> torch.Tensor:
    """
    FDM's masks (Harvey et al., "Flexible Diffusion Modeling of Long Videos", 2205.11495, section 3.1): a few frames from
    anywhere in a long clip, evenly spaced in groups, some given and some to be predicted; all others are ABSENT.

    A first group is LATENT. Then groups are added, OBSERVED or LATENT by the toss of a coin, until one does not fit any
    more. A group of `s` frames, `s` from 1 to `max_frames` with the same chance, has a spacing whose logarithm is uniform
    between that of 1 and the widest that fits the clip, and starts anywhere. [`training.gather_window`] makes windows of these
    roles.

    Args:
        batch_size (`int`): Number of clips `B`.
        num_frames (`int`): Frames of a clip `T`.
        max_frames (`int`): Most frames that are not ABSENT, from 1 to `num_frames`.
        generator (`torch.Generator` or a list of them, *optional*):
            The source of randomness. Clip `i` takes two numbers, and does not depend on the batch size.

    Returns:
        `torch.Tensor` of shape `(B, T)`, integer: The [`FrameRole`] of each frame.

    Raises:
        ValueError: If a number is out of range, or a list of generators does not have one for each clip.
    """
    if not 1 <= max_frames <= num_frames:
        raise ValueError(f"`max_frames` must be from 1 to `num_frames` ({num_frames}), got {max_frames}.")
    # How many numbers a clip needs is not known beforehand, and on a GPU each would be waited for: two of them are the seed
    # of a stream of its own. (Python promises that this stream never changes.)
    seeds = (rand_tensor((batch_size, 2), generator) * 2**24).long().tolist()  # float32 has 24 bits
    return torch.stack([_fdm_clip(random.Random(high << 24 | low), num_frames, max_frames) for high, low in seeds])


def _fdm_clip(source: random.Random, num_frames: int, max_frames: int) -> torch.Tensor:
    """Roles of one clip, (T,)."""
    roles = torch.full((num_frames,), FrameRole.ABSENT, dtype=torch.long)
    is_used: set[int] = set()
    group, role = _fdm_group(source, num_frames, max_frames), FrameRole.LATENT
    while len(is_used) + len(group) <= max_frames:
        roles[list(group)] = role
        is_used |= group
        if len(is_used) == num_frames:  # no group could add anything
            break
        role = FrameRole.OBSERVED if source.random() < 0.5 else FrameRole.LATENT
        group = _fdm_group(source, num_frames, max_frames) - is_used
    return roles


def _fdm_group(source: random.Random, num_frames: int, max_frames: int) -> set[int]:
    """Evenly spaced frames."""
    size = 1 + int(source.random() * max_frames)
    while True:
        spacing = math.exp(source.random() * math.log(num_frames / (size - 0.999)))
        start = source.random() * (num_frames - spacing * (size - 1))
        last = start + spacing * (size - 1)
        if start >= 0 and last < num_frames:
            return {int(start + i * spacing) for i in range(size)}


def vdm_roles(batch_size: int, *, num_frames: int, num_images: int = 0) -> torch.Tensor:
    """
    VDM's masks (Ho et al., "Video Diffusion Models", 2204.03458): there are none, all frames of the clip, and the images
    beside it (section 2.1), are predicted. Frames are given at sampling time only, by replacement and guidance.

    Args:
        batch_size (`int`): Number of clips `B`.
        num_frames (`int`): Frames of a clip.
        num_images (`int`, *optional*, defaults to 0): Images beside it; the paper has 4 or 8.

    Returns:
        `torch.Tensor` of shape `(B, num_frames + num_images)`, integer: [`FrameRole`] LATENT everywhere.

    Raises:
        ValueError: If a number is out of range.
    """
    _check_counts(("num_frames", num_frames, 1), ("num_images", num_images, 0))
    return torch.full((batch_size, num_frames + num_images), FrameRole.LATENT, dtype=torch.long)


def joint_segments(batch_size: int, *, num_frames: int, num_images: int) -> torch.Tensor:
    """
    Which frames of a window of a clip and images beside it see which (VDM, 2204.03458, section 2.1): those of the clip one
    another, each image itself.

    Args:
        batch_size (`int`): Number of clips `B`.
        num_frames (`int`): Frames of a clip.
        num_images (`int`): Images beside it.

    Returns:
        `torch.Tensor` of shape `(B, num_frames + num_images)`, integer: 0 for the clip, 1, 2, ... for the images.

    Raises:
        ValueError: If a number is out of range.
    """
    _check_counts(("num_frames", num_frames, 1), ("num_images", num_images, 0))
    segments = torch.cat([torch.zeros(num_frames, dtype=torch.long), torch.arange(1, num_images + 1)])
    return segments.expand(batch_size, -1)


def lgcvd_positions(
    batch_size: int,
    *,
    num_frames: int = 8,
    task_shares: Sequence[float] = LGCVD_TASK_SHARES,
    generator: Generators = None,
) -> torch.Tensor:
    """
    Where the two frames that LGC-VD's network is given lie in the window that it makes (2306.02562; the shares are those of its
    code): the first two, for prediction; none, for generation; the first and the last, for interpolation; or any two, or one.

    The original draws for a whole batch; here each clip draws for itself.

    Args:
        batch_size (`int`): Number of clips `B`.
        num_frames (`int`, *optional*, defaults to 8): Frames of a window `F`, 3 or more.
        task_shares (`Sequence[float]`, *optional*, defaults to `(0.45, 0.4, 0.05, 0.1)`):
            Probabilities of prediction, generation, interpolation, and of two different ones of -1, 0, ..., `F - 2`; their sum
            is 1.
        generator (`torch.Generator` or a list of them, *optional*):
            The source of randomness. Clip `i` takes three numbers, and does not depend on the batch size.

    Returns:
        `torch.Tensor` of shape `(B, 2)`, integer: Positions from 0 to `F - 1`, or -1: not given.

    Raises:
        ValueError: If a number is out of range, or a list of generators does not have one for each clip.
    """
    _check_counts(("num_frames", num_frames, 3))
    if len(task_shares) != 4 or min(task_shares) < 0 or not math.isclose(sum(task_shares), 1, abs_tol=1e-6):
        raise ValueError(f"`task_shares` must be four probabilities whose sum is 1, got {tuple(task_shares)}.")
    draws = rand_tensor((batch_size, 3), generator)
    first = (draws[:, 1] * num_frames).long()
    second = (draws[:, 2] * (num_frames - 1)).long()
    pair = torch.stack([first, second + (second >= first)], dim=1) - 1  # two different ones
    _, generation, interpolation, anywhere = task_shares
    positions = torch.tensor([0, 1]).expand(batch_size, 2)
    # As in the original, from the rarest up.
    for limit, task in (
        (anywhere + interpolation + generation, torch.tensor([-1, -1])),
        (anywhere + interpolation, torch.tensor([0, num_frames - 1])),
        (anywhere, pair),
    ):
        positions = torch.where((draws[:, :1] < limit).to(positions.device), task.to(positions.device), positions)
    return positions


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
        config (`Mapping`):
            Of [`MCVDUNet2DModel`], with `num_past_frames`, `num_future_frames`, `drop_past` and `drop_future`; or of
            [`SpaceTimeUNetModel`], with `drop_observed`, the probability that nothing was given; of [`LGCVDUNet2DModel`], with
            `task_shares`; or of [`RVDUNet2DModel`], with `num_context_frames` of 0.

    Returns:
        `list[str]`: As [`trained_tasks`].
    """
    if config.get("num_context_frames") == 0:  # frames before are all that is known
        return ["prediction"]
    if "task_shares" in config and config["drop_observed"] < 1:
        prediction, generation, interpolation, anywhere = config["task_shares"]
        shares = {
            "prediction": prediction + anywhere,
            "past prediction": anywhere,
            # Which takes two frames.
            "interpolation": (interpolation + anywhere) * (config["num_context_frames"] > 1),
            "generation": generation,
        }
        return [task for task, share in shares.items() if share > 0]
    if "drop_observed" in config:  # any frames were given, on any side of those to be predicted
        given = ["prediction", "past prediction", "interpolation"] if config["drop_observed"] < 1 else []
        if config.get("num_context_frames") == 1:  # never one on each side
            given = given[:2]
        return given + ["generation"] * (config["drop_observed"] > 0)
    names = ("num_past_frames", "num_future_frames", "drop_past", "drop_future")
    return trained_tasks(**{name: config[name] for name in names})


def _check_probability(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"`{name}` is a probability, got {value}.")


def _check_counts(*counts: tuple[str, int, int]) -> None:
    """Name, value and the least that it may be, of each."""
    for name, value, least in counts:
        if value < least:
            raise ValueError(f"`{name}` must be at least {least}, got {value}.")
