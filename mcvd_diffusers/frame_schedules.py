"""Frame schedules: how a long video is cut into windows. Pure Python; frames are numbers, no tensors.

A schedule is a function that yields [`Window`]s in the order in which they are generated. Positions count from 0, the
first frame of the whole video, given frames included.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Window:
    """
    One call of the sampler: which frames it reads and which it makes.

    Args:
        observed (`tuple[int, ...]`): Positions of the frames that are read, in increasing order.
        latent (`tuple[int, ...]`): Positions of the frames that are generated, in increasing order.
    """

    observed: tuple[int, ...]
    latent: tuple[int, ...]


def blocks(
    num_frames: int | None,
    *,
    observed: Collection[int],
    step: int,
    num_past_frames: int,
    num_future_frames: int = 0,
) -> Iterator[Window]:
    """
    MCVD's windows: blocks of consecutive frames, each given the frames next to it (paper, section 3.3).

    * Frames given at the start, or none: forwards, block after block, each reading the `num_past_frames` before it.
    * Frames given at the end only: backwards, each block reading the `num_future_frames` after it.
    * Both: forwards; the block that reaches the frames at the end reads both sides. It is always a full block, so
      when the gap is no multiple of `step`, the first block is the shorter one.

    The original's prediction, interpolation and generation are special cases; going backwards over several blocks and
    interpolating over several are ours.

    Args:
        num_frames (`int` or `None`):
            Frames of the whole video, given ones included. `None`: no end, which only works forwards.
        observed (`Collection[int]`):
            Positions of the given frames: a run from position 0, a run that ends at `num_frames - 1`, both, or none.
        step (`int`): Frames of a block.
        num_past_frames (`int`): Frames that a block reads before it, at most.
        num_future_frames (`int`, *optional*, defaults to 0): Frames that a block reads after it, at most.

    Yields:
        [`Window`]: Every frame that is not given is latent exactly once.

    Raises:
        ValueError: If the frames are not such runs, or the gap between two runs is smaller than a block.

    Example:
        >>> for window in blocks(9, observed=range(2), step=3, num_past_frames=2):
        ...     print(window)
        Window(observed=(0, 1), latent=(2, 3, 4))
        Window(observed=(3, 4), latent=(5, 6, 7))
        Window(observed=(6, 7), latent=(8,))
    """
    given = set(observed)
    start = _run_length(given)
    if num_frames is None:
        if len(given) > start:
            raise ValueError("`num_frames` must be a number when frames are given at the end of the video.")
        while True:
            yield Window(tuple(range(max(0, start - num_past_frames), start)), tuple(range(start, start + step)))
            start += step

    end = num_frames - _run_length({num_frames - 1 - position for position in given}) if start < num_frames else start
    if given != set(range(start)) | set(range(end, num_frames)):
        raise ValueError(
            "`observed` must be frames at the start of the video, at its end, or both, without gaps:"
            f" got {sorted(given)} of {num_frames} frames."
        )
    has_past, has_future = start > 0, end < num_frames

    if has_future and not has_past:
        while end > 0:
            first = max(0, end - step)
            yield Window(tuple(range(end, min(end + num_future_frames, num_frames))), tuple(range(first, end)))
            end = first
        return

    if has_future and 0 < end - start < step:
        raise ValueError(
            f"Interpolation makes at least one block of {step} frames between the given ones, got a gap of"
            f" {end - start} frames."
        )
    # With an end to meet, the remainder comes first.
    length = (end - start) % step or step if has_future else step
    while start < end:
        stop = min(start + length, end)
        past = range(max(0, start - num_past_frames), start)
        future = range(end, min(end + num_future_frames, num_frames)) if stop == end else ()
        yield Window((*past, *future), tuple(range(start, stop)))
        start, length = stop, step


def _run_length(positions: set[int]) -> int:
    """How many of the positions 0, 1, 2, ... are there before the first that is not."""
    length = 0
    while length in positions:
        length += 1
    return length
