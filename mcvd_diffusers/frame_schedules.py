"""Frame schedules: how a long video is cut into windows. Pure Python; frames are numbers, no tensors.

A schedule is a function that yields [`Window`]s in the order in which they are generated. Positions count from 0, the
first frame of the whole video, given frames included. Ask for a window when the one before is finished.

* MCVD's: `blocks` ("Masked Conditional Video Diffusion", 2205.09853).
* LGC-VD's and RVD's: `local_windows`, beside which a context encoder remembers what lies before.
* FDM's and VDM's, all with one signature, and `frame_schedule` that finds them by name: `autoregressive`, `long_range`,
  `hierarchy`, ... (Harvey et al., "Flexible Diffusion Modeling of Long Videos", 2205.11495; Ho et al., "Video Diffusion
  Models", 2204.03458).
"""

import difflib
import functools
import itertools
import math
from collections.abc import Callable, Collection, Container, Iterable, Iterator
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


# ----------------------------------------------------------------------------------------------------------------------
# The schedules of FDM and VDM, for networks that read any frames
#
# One signature. What holds for all of them:
#
# * The first window of a video without given frames makes `max_frames` at once; they then count as given.
# * The frames before the first given one come last, backwards: they are the future of the reversed video.


def autoregressive(num_frames: int, *, observed: Collection[int], max_frames: int, step: int) -> Iterator[Window]:
    """
    The next `step` missing frames from the finished frames nearest to them (FDM: "Autoreg").

    From Harvey et al., "Flexible Diffusion Modeling of Long Videos", 2205.11495.

    Args:
        num_frames (`int`): Frames of the whole video, given ones included; at least 1.
        observed (`Collection[int]`):
            Positions of the given frames, any set of them. From frame 0 on without gaps, the windows are those of the
            original. Frames that are given elsewhere are skipped by the latent ones and read when they are near. When
            frame 0 is not given, the video is made forwards from the first given frame on, then backwards from it.
        max_frames (`int`): Frames of a window, observed and latent ones together, at most.
        step (`int`): Latent frames of a window, at most; `1` to `max_frames`. The paper takes half of `max_frames`.

    Returns:
        `Iterator[Window]`: Every frame that is not given is latent exactly once, after those that its window reads.

    Raises:
        ValueError: If an argument is out of its range; when called, not at the first window.

    Example:
        >>> for window in autoregressive(8, observed=range(2), max_frames=5, step=3):
        ...     print(window)
        Window(observed=(0, 1), latent=(2, 3, 4))
        Window(observed=(3, 4), latent=(5, 6, 7))
    """

    def reads(video: "_Video", latent: list[int]) -> list[int]:
        return _first(max_frames - step, video.nearest(latent))

    return _schedule(_flat, num_frames, observed, max_frames, step, reads=reads)


def consecutive(num_frames: int, *, observed: Collection[int], max_frames: int, step: int) -> Iterator[Window]:
    """
    As [`autoregressive`], for networks that take neighbouring frames only: a window reads what is finished within its reach.

    All frames of a window, observed and latent ones, lie within `max_frames` neighbouring positions. Frames given at the start,
    or at the end, or none: the windows are those of [`autoregressive`]. A window that reaches frames given further on reads
    them, too; one that does not reads only those before it.

    Args:
        num_frames, observed, max_frames, step: As in [`autoregressive`].

    Returns:
        `Iterator[Window]`: As of [`autoregressive`].

    Raises:
        ValueError: As in [`autoregressive`].

    Example:
        >>> for window in consecutive(10, observed=[0, 9], max_frames=5, step=4):
        ...     print(window)
        Window(observed=(0,), latent=(1, 2, 3, 4))
        Window(observed=(4,), latent=(5, 6, 7, 8))
    """
    return _schedule(_neighbours, num_frames, observed, max_frames, step)


def local_windows(
    num_frames: int | None, *, observed: Collection[int], max_frames: int, num_context_frames: int
) -> Iterator[Window]:
    """
    LGC-VD's windows (Yang et al., "Video Diffusion Models with Local-Global Context Guidance", 2306.02562): consecutive frames,
    of which a few are given, whatever lies before them being left to a memory. With none given and one frame a window, RVD's.

    * Forwards, each window begins with the last `num_context_frames` before those that it makes. The last window is shifted
      back, so that it ends with the video, unless it is the first after given frames, of which it reads the newest.
    * A window that reaches a frame given further on reads that, too, in place of the farthest before, and makes those between.
    * Frames before the first given one are made backwards.

    Args:
        num_frames (`int` or `None`): Frames of the whole video, given ones included. `None`: no end, which only works forwards.
        observed (`Collection[int]`): Positions of the given frames, anywhere.
        max_frames (`int`): Neighbouring frames of a window, given and made.
        num_context_frames (`int`): Frames that a window is given, at most; less than `max_frames`.

    Yields:
        [`Window`]: Every frame that is not given is latent exactly once.

    Raises:
        ValueError: If a number is out of range, or there is no end and frames are given elsewhere than at the start.

    Example:
        >>> for window in local_windows(16, observed=range(2), max_frames=8, num_context_frames=2):
        ...     print(window)
        Window(observed=(0, 1), latent=(2, 3, 4, 5, 6, 7))
        Window(observed=(6, 7), latent=(8, 9, 10, 11, 12, 13))
        Window(observed=(8, 9), latent=(14, 15))
    """
    if not 0 <= num_context_frames < max_frames:
        raise ValueError(
            f"`num_context_frames` must be from 0 to `max_frames` - 1 ({max_frames - 1}), got {num_context_frames}."
        )
    given = set(observed)
    if num_frames is None and len(given) > _run_length(given):
        raise ValueError("`num_frames` must be a number when frames are given elsewhere than at the start.")
    start = 0
    if num_context_frames and given and 0 not in given:
        # In training, pairs of given frames lay anywhere but at a window's end.
        reach, start = max(1, max_frames - num_context_frames - 1), min(given)
        known, end = given | set(range(start)), start
        while end > 0:
            first = max(0, end - reach)
            context = [position for position in range(end, first + max_frames) if position in known]
            yield Window(tuple(context[:num_context_frames]), tuple(range(first, end)))
            end = first
    is_first = True
    while True:
        while start in given:
            start, is_first = start + 1, True
        if num_frames is not None and start >= num_frames:
            return
        first = start - min(start, num_context_frames)
        goal = min((position for position in given if position > start), default=None)
        if goal is not None and num_context_frames > 1 and goal - start + 1 < max_frames:
            nearest = range(max(0, start - num_context_frames + 1, goal + 1 - max_frames), start)
            context, end = (*nearest, goal), goal
        else:
            end = first + max_frames
            if goal is not None:
                end = min(end, goal)
            elif num_frames is not None and end > num_frames:
                end = num_frames
                if not is_first:  # or the newest given frames would not be read
                    first = max(0, num_frames - max_frames)
            context = range(first, min(first + num_context_frames, start))
        yield Window(tuple(context), tuple(range(start, end)))
        start, is_first = end, False


def long_range(num_frames: int, *, observed: Collection[int], max_frames: int, step: int) -> Iterator[Window]:
    """
    As [`autoregressive`], but half of the observed frames are given ones, however far away (FDM: "Long-range").

    The given frames nearest to the window are read, in turns from before and after it: with a goal given at the end,
    every window reads the start and the goal. With less than two frames to observe (`max_frames - step`), as many
    finished frames as the window has room for, nearest first; the original then reads all there are.

    Args:
        num_frames, observed, max_frames, step: As in [`autoregressive`].

    Returns:
        `Iterator[Window]`: As of [`autoregressive`].

    Raises:
        ValueError: As in [`autoregressive`].
    """
    num_observed = max_frames - step

    def reads(video: "_Video", latent: list[int]) -> Iterable[int]:
        if num_observed < 2:
            return video.nearest(latent)
        recent = _first(num_observed // 2, video.nearest(latent))
        before = sorted((position for position in video.given if position < latent[0]), reverse=True)
        after = sorted(position for position in video.given if position > latent[0])
        in_turns = itertools.chain.from_iterable(itertools.zip_longest(before, after))
        return _first(num_observed, _distinct(recent, (position for position in in_turns if position is not None)))

    return _schedule(_flat, num_frames, observed, max_frames, step, reads=reads)


def exponential_past(num_frames: int, *, observed: Collection[int], max_frames: int, step: int) -> Iterator[Window]:
    """
    As [`autoregressive`], reading 1, 2, 4, 8, ... frames into the past (original code of FDM: "exp-past").

    Distances go up to half the frames before the window; places that are left are for the frames nearest to it. When
    there are more distances than places, the longest are left out; the original's window is then too large.

    Args:
        num_frames, observed, max_frames, step: As in [`autoregressive`].

    Returns:
        `Iterator[Window]`: As of [`autoregressive`].

    Raises:
        ValueError: As in [`autoregressive`].
    """

    def reads(video: "_Video", latent: list[int]) -> list[int]:
        distances = (2**power for power in range(latent[0].bit_length() - 1))
        past = (latent[0] - distance for distance in distances if latent[0] - distance in video.done)
        return _first(max_frames - step, _distinct(past, video.nearest(latent)))

    return _schedule(_flat, num_frames, observed, max_frames, step, reads=reads)


def independent(num_frames: int, *, observed: Collection[int], max_frames: int, step: int) -> Iterator[Window]:
    """
    The next `step` missing frames from the given frames nearest to them, never from made ones (FDM's code).

    All windows may run at once, or after the first one when nothing is given. The video is made from frame 0 on,
    whatever is given.

    Args:
        num_frames, max_frames, step: As in [`autoregressive`].
        observed (`Collection[int]`): Positions of the given frames, any set of them.

    Returns:
        `Iterator[Window]`: As of [`autoregressive`].

    Raises:
        ValueError: As in [`autoregressive`].
    """

    def reads(video: "_Video", latent: list[int]) -> list[int]:
        return _first(max_frames - step, video.nearest(latent, among=video.given))

    return _schedule(_flat, num_frames, observed, max_frames, step, is_from_given=False, reads=reads)


def unconditional_blocks(
    num_frames: int, *, observed: Collection[int], max_frames: int, step: int
) -> Iterator[Window]:
    """
    The next `max_frames` missing frames from nothing (FDM's code: "really-independent"): how bad no memory is.

    Args:
        num_frames, max_frames: As in [`autoregressive`].
        observed (`Collection[int]`): Positions of the given frames, any set of them; they are not made, nor read.
        step (`int`): As in [`autoregressive`]; it changes nothing.

    Returns:
        `Iterator[Window]`: As of [`autoregressive`].

    Raises:
        ValueError: As in [`autoregressive`].
    """
    return _schedule(
        _flat,
        num_frames,
        observed,
        max_frames,
        step,
        is_from_given=False,
        reads=lambda video, latent: (),
        num_latent=max_frames,
    )


def hierarchy(
    num_frames: int, *, observed: Collection[int], max_frames: int, step: int, num_levels: int = 2
) -> Iterator[Window]:
    """
    Frames that are spread over the video first, then those between them, level by level (FDM: "Hierarchy-n").

    The first window spreads `step` frames evenly over the missing ones, from given frames that are spread as evenly;
    without given frames it is `max_frames` over the video. Level `l` then takes missing frames with the stride
    `((num_frames - given) / (step - 1)) ** ((n - l) / (n - 1))`, rounded down, so the last level makes all that are
    left. From the second level on a window reads the finished frames between its own, and half of the rest after,
    half before them. A window that has no place for two frames outside is made with fewer latent ones.

    Where a stride is 0, which is when fewer than `step - 1` frames are missing, windows have one latent frame, as in
    the original; windows that it fails to make are made smaller.

    Args:
        num_frames, observed, max_frames: As in [`autoregressive`].
        step (`int`): As there, but at least 2: one frame has no stride.
        num_levels (`int`, *optional*, defaults to 2): Levels `n`, at least 2.

    Returns:
        `Iterator[Window]`: As of [`autoregressive`].

    Raises:
        ValueError: As in [`autoregressive`].
    """
    return _schedule(_hierarchical, num_frames, observed, max_frames, step, num_levels=num_levels)


def adaptive_autoregressive(
    num_frames: int,
    *,
    observed: Collection[int],
    max_frames: int,
    step: int,
    distance: Callable[[int, int], float],
) -> Iterator[Window]:
    """
    As [`autoregressive`], from finished frames that differ most (FDM: "Ad. autoreg").

    The nearest finished frame is observed, then again and again the one that is farthest from all chosen ones.

    Args:
        num_frames, observed, max_frames, step: As in [`autoregressive`].
        distance (`Callable[[int, int], float]`):
            How much two frames differ, given their positions; larger is more. The paper takes LPIPS. It is asked for
            frames only that are given or were latent in a window before: finish a window, then ask for the next.

    Returns:
        `Iterator[Window]`: As of [`autoregressive`].

    Raises:
        ValueError: As in [`autoregressive`].
    """

    def reads(video: "_Video", latent: list[int]) -> list[int]:
        candidates = list(video.nearest(latent))
        return _most_different(video, distance, candidates[:1], candidates, max_frames - step)

    return _schedule(_flat, num_frames, observed, max_frames, step, reads=reads)


def adaptive_hierarchy(
    num_frames: int,
    *,
    observed: Collection[int],
    max_frames: int,
    step: int,
    distance: Callable[[int, int], float],
    num_levels: int = 2,
) -> Iterator[Window]:
    """
    As [`hierarchy`], but most observed frames are those that differ most (FDM: "Ad. hierarchy-n").

    Always observed: the finished frames between the latent ones, the two nearest before them (or as many as there
    are) and the nearest after them. The others are chosen as in [`adaptive_autoregressive`].

    Args:
        num_frames, observed, max_frames, step, num_levels: As in [`hierarchy`].
        distance (`Callable[[int, int], float]`): As in [`adaptive_autoregressive`].

    Returns:
        `Iterator[Window]`: As of [`autoregressive`].

    Raises:
        ValueError: As in [`hierarchy`].
    """
    return _schedule(_hierarchical, num_frames, observed, max_frames, step, num_levels=num_levels, distance=distance)


def two_rate(num_frames: int, *, observed: Collection[int], max_frames: int = 16, step: int = 8) -> Iterator[Window]:
    """
    VDM's long videos: every fourth frame first, then those between them, nine at a time ("google" in FDM's code).

    From Ho et al., "Video Diffusion Models", 2204.03458. Windows of every fourth frame have 16: the next
    8, from those before. Those of neighbouring frames have 9: 6 latent between 3 that are finished. At the end of the
    video, where fewer are missing, the frames before make up the 9; such a window is the only one of its kind that
    waits for another. Lengths that the original refuses are made too.

    Args:
        num_frames, observed: As in [`autoregressive`]. Given frames that are not the fourth are read at the second rate.
        max_frames (`int`, *optional*, defaults to 16): 16; [`like_two_rate`] takes others.
        step (`int`, *optional*, defaults to 8): 8.

    Returns:
        `Iterator[Window]`: As of [`autoregressive`].

    Raises:
        ValueError: As in [`autoregressive`], and for another `max_frames` or `step`.
    """
    if (max_frames, step) != (16, 8):
        raise ValueError(
            "`max_frames` and `step` must be 16 and 8 for the schedule 'google', which is that of one network, got"
            f" {max_frames} and {step}. 'like-google' takes any."
        )
    return _schedule(_two_rates, num_frames, observed, max_frames, step, num_fine=9, is_filled=True)


def like_two_rate(num_frames: int, *, observed: Collection[int], max_frames: int, step: int) -> Iterator[Window]:
    """
    The idea of [`two_rate`] for windows of any size ("like-google" in FDM's code).

    Every fourth frame first: the next `step` of them, from as many before as there are and there is room for. Then
    those between them, as many as fit together with the finished ones between; no two of these windows wait for each
    other, so they may run as one batch.

    Args:
        num_frames, observed, max_frames, step: As in [`autoregressive`].

    Returns:
        `Iterator[Window]`: As of [`autoregressive`].

    Raises:
        ValueError: As in [`autoregressive`].
    """
    # Some whole fours and one more; in a window of less than five frames, all frames.
    num_fine = max_frames if max_frames < 5 else (max_frames - 1) // SKIP * SKIP + 1
    return _schedule(_two_rates, num_frames, observed, max_frames, step, num_fine=num_fine, is_filled=False)


_BY_NAME: dict[str, Callable[..., Iterator[Window]]] = {
    "autoreg": autoregressive,
    "long-range": long_range,
    **{f"hierarchy-{number}": functools.partial(hierarchy, num_levels=number) for number in range(2, 6)},
    "adaptive-autoreg": adaptive_autoregressive,
    **{
        f"adaptive-hierarchy-{number}": functools.partial(adaptive_hierarchy, num_levels=number)
        for number in range(2, 6)
    },
    "independent": independent,
    "really-independent": unconditional_blocks,
    "exp-past": exponential_past,
    "google": two_rate,
    "like-google": like_two_rate,
}
_ALIASES = {
    "autoregressive": "autoreg",
    "mixed": "long-range",
    "mixed-autoreg-independent": "long-range",
    "adaptive-autoregressive": "adaptive-autoreg",
    "unconditional-blocks": "really-independent",
    "exponential-past": "exp-past",
    "two-rate": "google",
    "like-two-rate": "like-google",
}
# Some schedules take the square of a video's length to be planned.
MOST_PLANNED_FRAMES = 20_000
FRAME_SCHEDULES = tuple(_BY_NAME)  # what `frame_schedule` knows, other names for the same left out
ADAPTIVE_FRAME_SCHEDULES = tuple(name for name in FRAME_SCHEDULES if name.startswith("adaptive-"))


def schedule_name(name: str) -> str:
    """
    The name of a schedule in `FRAME_SCHEDULES`, of any name for it.

    Args:
        name (`str`): A name.

    Returns:
        `str`: The usual one; the same if it is none.
    """
    return _ALIASES.get(name, name)


def frame_schedule(
    name: str,
    num_frames: int,
    *,
    observed: Collection[int],
    max_frames: int,
    step: int | None = None,
    distance: Callable[[int, int], float] | None = None,
) -> Iterator[Window]:
    """
    A schedule by the name that it has in FDM's paper or code.

    The schedules that are called goal-directed there are these, with the last frames among the given ones.

    Args:
        name (`str`):
            One of `FRAME_SCHEDULES`. "mixed" and "mixed-autoreg-independent" are "long-range"; "autoregressive",
            "adaptive-autoregressive", "exponential-past", "unconditional-blocks", "two-rate" and "like-two-rate" are
            understood too.
        num_frames, observed, max_frames: As in [`autoregressive`].
        step (`int`, *optional*, defaults to `max_frames // 2`): As in [`autoregressive`].
        distance (`Callable[[int, int], float]`, *optional*):
            As in [`adaptive_autoregressive`]; for adaptive schedules, and only for them.

    Returns:
        `Iterator[Window]`: As of [`autoregressive`].

    Raises:
        ValueError: If the name is not known, `distance` is missing or has no use, or the schedule refuses an argument.

    Example:
        >>> next(frame_schedule("hierarchy-2", 300, observed=range(36), max_frames=20)).latent
        (36, 65, 94, 123, 153, 182, 211, 241, 270, 299)
    """
    name = schedule_name(name)
    if name not in _BY_NAME:
        close = difflib.get_close_matches(str(name), [*FRAME_SCHEDULES, *_ALIASES], n=1)
        hint = f"Did you mean {close[0]}? " if close else ""
        raise ValueError(f"{hint}`name` must be one of {', '.join(FRAME_SCHEDULES)}, got {name!r}.")
    is_adaptive = name in ADAPTIVE_FRAME_SCHEDULES
    if is_adaptive and distance is None:
        raise ValueError(
            f"`distance` must be a function of the positions of two finished frames for the schedule {name!r}, which"
            " chooses by what is in them; got None."
        )
    if not is_adaptive and distance is not None:
        raise ValueError(
            f"`distance` has no use in the schedule {name!r}: leave it out, or take an adaptive schedule."
        )
    return _BY_NAME[name](
        num_frames,
        observed=observed,
        max_frames=max_frames,
        step=max(1, max_frames // 2) if step is None else step,
        **({"distance": distance} if is_adaptive else {}),
    )


# ----------------------------------------------------------------------------------------------------------------------
# How they are made

SKIP = 4  # frames from one to the next at the first of two rates


class _Video:
    """
    What is finished of a video, in the direction in which it is made.

    Frame 0 of it is finished, or nothing is. `place` says which position of the user's video a frame is.
    """

    def __init__(self, num_frames: int, given: Iterable[int], done: Iterable[int], place: Callable[[int], int]):
        self.num_frames, self.given, self.done, self.place = num_frames, set(given), set(done), place

    def window(self, observed: Iterable[int], latent: Collection[int]) -> Window:
        """The window in the user's positions; its frames count as finished from now on."""
        observed = set(observed)
        self.done.update(latent)
        self.given = self.given or set(latent)
        return Window(*(tuple(sorted(map(self.place, positions))) for positions in (observed, latent)))

    def missing(self) -> list[int]:
        """The frames that are not finished."""
        return [position for position in range(self.num_frames) if position not in self.done]

    def before(self, position: int) -> Iterator[int]:
        """The finished frames before one, nearest first."""
        return (other for other in range(position - 1, -1, -1) if other in self.done)

    def after(self, position: int) -> Iterator[int]:
        """The finished frames after one, nearest first."""
        return (other for other in range(position + 1, self.num_frames) if other in self.done)

    def nearest(self, latent: list[int], among: Container[int] | None = None) -> Iterator[int]:
        """The finished frames, those between the latent ones first, then nearest first; in doubt the one before."""
        among = self.done if among is None else among
        first, last = latent[0], latent[-1]
        yield from (position for position in range(last, first, -1) if position in among)
        for distance in range(1, self.num_frames):
            for position in (first - distance, last + distance):
                if position in among:
                    yield position


def _schedule(
    windows: Callable[..., Iterator[Window]],
    num_frames: int,
    observed: Collection[int],
    max_frames: int,
    step: int,
    *,
    is_from_given: bool = True,
    **settings,
) -> Iterator[Window]:
    """Checks the arguments, then plays a schedule forwards from the first given frame and backwards from it."""
    given = set(observed)
    if num_frames < 1:
        raise ValueError(f"`num_frames` must be at least 1, the length of the whole video, got {num_frames}.")
    if max_frames < 1:
        raise ValueError(f"`max_frames` must be at least 1, the frames that the network takes, got {max_frames}.")
    if not 1 <= step <= max_frames:
        raise ValueError(f"`step` must be between 1 and `max_frames`, {max_frames}, got {step}.")
    outside = sorted(position for position in given if not 0 <= position < num_frames)
    if outside:
        raise ValueError(
            f"`observed` must be positions from 0 to {num_frames - 1} in a video of {num_frames} frames, got {outside}."
        )
    num_levels = settings.get("num_levels")
    if num_levels is not None:
        if num_levels < 2:
            raise ValueError(
                f"`num_levels` must be at least 2, got {num_levels}. One level is the schedule 'autoreg'."
            )
        # A video that is there at once has no stride, and so no such need.
        if step < 2 and num_frames - len(given) > (0 if given else max_frames):
            raise ValueError(
                f"`step` must be at least 2 in a hierarchy: {step} frame has no stride. 'autoreg' takes 1."
            )

    def play() -> Iterator[Window]:
        first = min(given, default=0) if is_from_given else 0
        shifted = {position - first for position in given}
        forwards = _Video(num_frames - first, shifted, shifted, lambda position: position + first)
        yield from windows(forwards, max_frames, step, **settings)
        if first:
            last = num_frames - 1
            done = range(num_frames - first)
            backwards = _Video(num_frames, {last - p for p in given}, done, lambda position: last - position)
            yield from windows(backwards, max_frames, step, **settings)

    return play()


def _flat(
    video: _Video,
    max_frames: int,
    step: int,
    *,
    reads: Callable[[_Video, list[int]], Iterable[int]],
    num_latent: int | None = None,
) -> Iterator[Window]:
    """The missing frames one after the other; `reads` says which finished ones to read, the most important first."""
    missing = video.missing()
    while missing:
        size = num_latent or (step if video.done else max_frames)
        latent, missing = missing[:size], missing[size:]
        yield video.window(_first(max_frames - len(latent), reads(video, latent)), latent)


def _neighbours(video: _Video, max_frames: int, step: int) -> Iterator[Window]:
    """The missing frames one after the other, from all that is finished within `max_frames` positions."""
    missing, number = video.missing(), 0
    while number < len(missing):
        size = step if video.done else max_frames
        start = max(0, missing[number] - (max_frames - size))
        reach = range(start, min(start + max_frames, video.num_frames))
        latent = [position for position in missing[number : number + size] if position in reach]
        number += len(latent)
        yield video.window([position for position in reach if position in video.done], latent)


def _hierarchical(
    video: _Video,
    max_frames: int,
    step: int,
    *,
    num_levels: int,
    distance: Callable[[int, int], float] | None = None,
) -> Iterator[Window]:
    """Level by level; with a `distance`, what is read is chosen by it."""

    def differing(latent: list[int], between: list[int], num_observed: int) -> list[int]:
        forced = [*between, *_first(2, video.before(latent[0])), *_first(1, video.after(latent[-1]))]
        return _most_different(video, distance, forced, sorted(video.done, reverse=True), num_observed)

    def around(latent: list[int], between: list[int], num_observed: int) -> list[int]:
        room = num_observed - len(between)
        after = _first(room // 2, video.after(latent[-1]))
        return [*between, *after, *_first(room - len(after), video.before(latent[0]))]

    choose = around if distance is None else differing
    if not video.done:
        yield video.window((), {math.floor(number) for number in _spread(0, video.num_frames - 1, max_frames)})
        num_missing = len(video.missing())
    else:
        given, missing = sorted(video.done), video.missing()
        num_missing = len(missing)
        if missing:
            size = max(1, min(step, max_frames - 2))
            latent, num_observed = _spread_over(missing, size), max_frames - size
            far = _spread_over(given, num_observed) if distance is None else differing(latent, [], num_observed)
            yield video.window(far, latent)

    def stride(level: int, size: int) -> int:
        return int((num_missing / max(1, size - 1)) ** ((num_levels - level) / (num_levels - 1)))

    level, cursor = 1, video.num_frames  # the first level is behind us
    while missing := video.missing():
        size = step
        while True:
            start = cursor + stride(level, size)
            while start > missing[-1]:
                level, cursor = min(level + 1, num_levels), 0
                start = missing[0] - 1 + stride(level, size)
            latent = _every(stride(level, size), start, video, size)
            between = [position for position in range(latent[0], latent[-1]) if position in video.done]
            if size == 1 or max_frames - size - len(between) >= 2:
                break
            # A smaller window is planned anew, as in the original: the level that has been reached stays, and its cursor with
            # it, at 0; but as long as only given frames are finished, levels are counted from the first.
            if video.done == video.given:
                level, cursor = 1, video.num_frames
            size -= 1
        yield video.window(choose(latent, between, max_frames - size), latent)
        cursor = latent[-1]


def _every(stride: int, start: int, video: _Video, num_latent: int) -> list[int]:
    """Missing frames from a position on, at least a stride apart."""
    latent, position = [], start
    while position < video.num_frames and len(latent) < num_latent:
        if position in video.done:
            position += 1
            continue
        latent.append(position)
        if stride == 0:
            break
        position += stride
    return latent


def _most_different(
    video: _Video,
    distance: Callable[[int, int], float],
    chosen: list[int],
    candidates: Iterable[int],
    num_observed: int,
) -> list[int]:
    """Adds to the chosen frames, one by one, the candidate whose least distance to them is the largest."""
    chosen = chosen[:num_observed]
    if len(chosen) == num_observed:
        return chosen

    def between(one: int, other: int) -> float:
        return distance(video.place(one), video.place(other))

    left = {
        one: min((between(one, other) for other in chosen), default=math.inf)
        for one in candidates
        if one not in chosen
    }
    while left and len(chosen) < num_observed:
        farthest = max(left, key=left.get)  # the first of equal ones
        del left[farthest]
        chosen.append(farthest)
        if len(chosen) < num_observed:
            left = {one: min(gap, between(one, farthest)) for one, gap in left.items()}
    return chosen


def _two_rates(video: _Video, max_frames: int, step: int, *, num_fine: int, is_filled: bool) -> Iterator[Window]:
    """Every fourth frame; then the others, in windows over `num_fine` neighbours that begin with a finished one."""
    if not video.done:
        yield video.window((), range(min(max_frames, video.num_frames)))
    newest = next(iter(video.missing()), video.num_frames) - 1
    while latent := [p for p in range(newest + SKIP, video.num_frames, SKIP) if p not in video.done][:step]:
        newest = latent[-1]
        past = (position for position in range(newest, -1, -SKIP) if position in video.done)
        yield video.window(_first(max_frames - len(latent), past), latent)
    fixed = frozenset(video.done)  # windows that read only these do not wait for each other
    while missing := video.missing():
        start = next(position for position in video.before(missing[0]) if position in fixed)
        neighbours = range(start, min(max(start + num_fine, missing[0] + 1), video.num_frames))
        latent = [position for position in neighbours if position not in video.done]
        observed = [position for position in neighbours if position in fixed]
        if is_filled:
            observed += _first(num_fine - len(neighbours), video.before(start))
        yield video.window(_first(max_frames - len(latent), observed), latent)


def _distinct(*groups: Iterable[int]) -> Iterator[int]:
    """The numbers of all groups in turn, each once."""
    seen = set()
    for number in itertools.chain(*groups):
        if number not in seen:
            seen.add(number)
            yield number


def _first(num: int, positions: Iterable[int]) -> list[int]:
    """The first so many of them, or all."""
    return list(itertools.islice(positions, num))


def _spread_over(positions: list[int], num: int) -> list[int]:
    """Evenly spaced ones of some positions, each once; fewer than `num` if there are fewer."""
    return sorted({positions[math.floor(index)] for index in _spread(0, len(positions) - 0.001, num)})


def _spread(first: float, last: float, num: int) -> list[float]:
    """`num` evenly spaced numbers, rounded as numpy.linspace rounds them: a schedule hangs on the last bit."""
    if num == 1:
        return [float(first)]
    gap = (last - first) / (num - 1)
    return [index * gap + first for index in range(num - 1)] + [float(last)] if num else []
