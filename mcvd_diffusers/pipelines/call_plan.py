"""The windows of a call: by a schedule that is named, that is given, that the pipeline carries, or that its network implies."""

import itertools
import numbers
import reprlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from mcvd_diffusers.frame_plans import FramePlan
from mcvd_diffusers.frame_schedules import (
    ADAPTIVE_FRAME_SCHEDULES,
    FRAME_SCHEDULES,
    MOST_PLANNED_FRAMES,
    Window,
    blocks,
    consecutive,
    frame_schedule,
    local_windows,
    schedule_name,
)

from .layouts import Layout, lay_out, num_made, shows_beside, takes_windows


# A frame schedule whose windows depend on finished frames: of a distance between two of them, it makes windows.
AdaptiveSchedule = Callable[[Callable[[int, int], float]], Iterator[Window]]


@dataclass
class CallPlan:
    """
    The windows of a call.

    Args:
        windows (`list[Window]`, `Iterator[Window]` or `None`):
            They, if they are known before: a list, or one after the other where there may be very many. `None`: adaptive.
        lay_out (`Callable`): Of a window it makes its [`Layout`] for the network.
        num_windows (`int`, *optional*): How many; `None`: no end, or not known.
        adaptive (`Callable`, *optional*): Of a distance between two finished frames it makes the windows.
        memory (`int`, *optional*): Newest frames that later windows read, where the windows are no list.
        is_in_time_order (`bool`): Whether a stream waits for frames before those that are finished.
        reads_nothing (`bool`): Whether windows read no frame on purpose.
    """

    windows: list[Window] | Iterator[Window] | None
    lay_out: Callable[[Window], Layout]
    num_windows: int | None = None
    adaptive: AdaptiveSchedule | None = None
    memory: int | None = None
    is_in_time_order: bool = False
    reads_nothing: bool = False

    @classmethod
    def of(cls, windows: list[Window], lay_out: Callable[[Window], Layout], **options) -> "CallPlan":
        """A plan of windows that are all known; frames of a stream then wait for those before them."""
        return cls(windows, lay_out, len(windows), is_in_time_order=True, **options)

    @property
    def is_open(self) -> bool:
        """Whether windows follow that are not known yet, which read what those before them make."""
        return not isinstance(self.windows, list) and self.num_windows != 1

    def known_windows(self) -> list[Window]:
        """
        Those that can be looked at before any work: all, the first, or none if they are adaptive. (The first of an iterator is
        put back; the windows are still all to be made.)
        """
        if self.windows is None or isinstance(self.windows, list):
            return self.windows or []
        first = next(self.windows)
        self.windows = itertools.chain([first], self.windows)
        return [first]

    def batches(self, total: int, given: list[int], most: int) -> list[list[int]] | None:
        """Windows of a list that do not depend on one another, and look alike to the network, at most so many together."""
        if most == 1 or not isinstance(self.windows, list):
            return None
        batches = []
        for batch in FramePlan.of(self.windows, total, observed=given).batches():
            alike: dict[tuple, list[int]] = {}
            for number in batch:
                layout = self.lay_out(self.windows[number])
                alike.setdefault((layout.roles, layout.sides), []).append(number)
            for same in alike.values():
                batches += [same[i : i + most] for i in range(0, len(same), most)]
        return batches


def plan_windows(
    pipe,
    total: int | None,
    positions: list[int],
    *,
    schedule: str | list[Window] | Iterator[Window] | FramePlan | None,
    max_frames: int | None,
    step: int | None,
    may_replace: bool,
    overwrites_given: bool = False,
) -> CallPlan:
    """
    The frame schedule that was asked for, that the pipeline carries, or that its network implies. A network of past, block and
    future takes blocks; one of windows takes all frames at once if it can, and goes on autoregressively if not.

    Args:
        pipe ([`MCVDPipeline`]): It carries a schedule, or none.
        total (`int` or `None`): Frames of the whole video; `None`: no end.
        positions (`list[int]`): Of the given frames, in increasing order.
        schedule, max_frames, step: As in the pipeline's call.
        may_replace (`bool`): Whether given frames may stand where the network makes frames.
        overwrites_given (`bool`): Whether windows of a network that makes what it is shown write these frames, too.

    Returns:
        [`CallPlan`]: The windows.

    Raises:
        ValueError: If the schedule cannot serve, or the network cannot read it.
    """
    config, is_endless = pipe.unet.config, total is None
    schedule = None if is_endless else schedule
    layout = partial(lay_out, config=config, may_replace=may_replace)
    has_blocks, is_beside = not takes_windows(config), shows_beside(config)
    capacity = pipe.unet.num_window_frames if has_blocks else config.max_frames
    if max_frames is not None and max_frames > capacity:
        raise ValueError(f"`max_frames` is {max_frames}, but this network takes at most {capacity} frames at once.")
    max_frames_asked, max_frames = max_frames, max_frames or capacity
    is_whole = not has_blocks and not is_beside and step is None and not is_endless and total <= max_frames
    if schedule is None and not is_endless and not is_whole:
        schedule = pipe.config.frame_schedule
    if (
        (max_frames_asked is not None or step is not None)
        and (schedule is None or is_beside)
        and (has_blocks or is_beside)
    ):
        if is_beside:
            raise ValueError(
                f"`max_frames` and `step` must be left out: windows of this network are {capacity} frames, of which"
                f" {num_made(config)} are new."
            )
        raise ValueError("`max_frames` and `step` belong to a `frame_schedule`: name one, or leave them out.")
    # Only windows that go forwards, from frames given at the start, can be made one after the other.
    is_forwards = positions == list(range(len(positions)))
    is_planned = schedule is not None or not (has_blocks or is_beside) or not is_forwards
    if not is_endless and total > MOST_PLANNED_FRAMES and is_planned:
        raise ValueError(
            f"`num_frames`: a video of {total:,} frames is not planned ahead, at most {MOST_PLANNED_FRAMES:,}. Make it in parts,"
            " each given the end of the one before, or call `stream` without `num_frames`."
        )
    if isinstance(schedule, Iterator):  # as `frame_schedule` makes it
        schedule = list(itertools.islice(schedule, MOST_PLANNED_FRAMES + 1))
        if not 0 < len(schedule) <= MOST_PLANNED_FRAMES:
            raise ValueError(
                f"`frame_schedule` is an iterator of {'no' if not schedule else 'too many'} windows:"
                + (
                    " it is used up; make it anew, or pass a list."
                    if not schedule
                    else " it has no end, or nearly none."
                )
            )
    if isinstance(schedule, FramePlan):
        schedule = list(schedule.windows) if isinstance(schedule.windows, (list, tuple)) else [schedule.windows]
    if isinstance(schedule, (list, tuple)):
        return CallPlan.of(_own_windows(schedule, total, positions), layout)
    is_plain = isinstance(schedule, str) and schedule_name(schedule) == "autoreg" and step is max_frames_asked is None
    if has_blocks and (schedule is None or is_plain):
        return _plan_blocks(config, total, positions, layout)
    if is_beside:
        if schedule is not None and not is_plain:
            raise ValueError(
                f"`frame_schedule`: windows of this network follow one another, got {reprlib.repr(schedule)}. Leave it out, name"
                ' "autoreg", or pass a list of Windows.'
            )
        return _plan_beside(config, total, positions, layout, overwrites_given=overwrites_given)
    if schedule is None and is_whole:
        missing = sorted(set(range(total)) - set(positions))
        return CallPlan.of([Window(tuple(positions), tuple(missing))], layout)

    if step is None and pipe.config.step is not None:
        step = min(pipe.config.step, max_frames)
    if step is None:
        step = config.num_frames if has_blocks else max(1, max_frames // 2)
    if step > max_frames and schedule is None:
        raise ValueError(f"`step` is {step}, but a window has at most {max_frames} frames: choose at most that many.")
    if is_endless:
        past = max_frames - step
        return CallPlan(blocks(None, observed=positions, step=step, num_past_frames=past), layout, memory=past)
    if schedule is not None and not isinstance(schedule, str):
        raise ValueError(
            f"`frame_schedule` must be a name, or a list or an iterator of Windows, got {reprlib.repr(schedule)}."
        )
    name, sizes = schedule_name(schedule or "autoreg"), {"max_frames": max_frames, "step": step}
    takes_gaps = not has_blocks and config.has_frame_gaps
    if name == "autoreg" and not has_blocks and not takes_gaps:
        return CallPlan.of(list(consecutive(total, observed=positions, **sizes)), layout)
    make = partial(frame_schedule, name, total, observed=positions, **sizes)
    if name in ADAPTIVE_FRAME_SCHEDULES:
        if not takes_gaps:
            raise ValueError(
                f"`frame_schedule` {name!r} reads frames from anywhere, and this network only takes consecutive ones."
            )
        return CallPlan(None, layout, adaptive=lambda distance: make(distance=distance))
    try:
        windows = list(make())
    except ValueError as error:
        if name not in FRAME_SCHEDULES:  # which it calls `name`
            raise ValueError(str(error).replace("`name`", "`frame_schedule`")) from error
        raise
    return CallPlan.of(windows, layout, reads_nothing=name == "really-independent")


def _plan_blocks(config, total: int | None, positions: list[int], layout: Callable[[Window], Layout]) -> CallPlan:
    """What a network of past, block and future implies."""
    size, num_frames = config.num_frames, None if total is None else total - len(positions)
    has_future = bool(positions) and total is not None and positions[-1] == total - 1
    past, future = config.num_past_frames, config.num_future_frames
    given = set(positions)
    gaps = [start for start in (0, *(p + 1 for p in positions)) if start not in given and start != total]
    if len(gaps) > 1:
        raise ValueError(
            f"`observed_positions`: this network reads {past} frames before a block and {future} after it, so that frames must be"
            f" given at the start of the video, at its end, or both, got {reprlib.repr(positions)} of {total}. A"
            " SpaceTimeUNetModel takes frames from anywhere."
        )
    if has_future and positions[0] == 0 and num_frames < size:
        raise ValueError(
            f"`num_frames` must be at least {size}, one block of this network, to interpolate; got {num_frames}."
        )
    windows = blocks(total, observed=positions, step=size, num_past_frames=past, num_future_frames=future)
    num_windows = None if num_frames is None else -(-num_frames // size)
    # Forwards, it may be very long.
    return CallPlan(list(windows) if has_future else windows, layout, num_windows, memory=past)


def _plan_beside(
    config,
    total: int | None,
    positions: list[int],
    layout: Callable[[Window], Layout],
    *,
    overwrites_given: bool,
) -> CallPlan:
    """What a network implies that is shown frames beside its window."""
    size, num_context = config.max_frames, config.num_context_frames
    windows = local_windows(total, observed=positions, max_frames=size, num_context_frames=num_context)
    if overwrites_given:  # a window that was shifted back writes its new frames only
        windows = (
            x
            if x.observed and x.observed[-1] + 1 < x.latent[0]
            else Window(x.observed, tuple(sorted({*x.observed, *x.latent})))
            for x in windows
        )
    is_forwards = positions == list(range(len(positions)))
    if not is_forwards:
        return CallPlan.of(list(windows), layout)
    num_windows = None
    if total is not None:
        num_beyond = total - len(positions) - size + min(num_context, len(positions))
        num_windows = 1 + max(0, -(-num_beyond // num_made(config)))
    # Forwards, it may be very long.
    return CallPlan(windows, layout, num_windows, memory=size)


def _own_windows(schedule: list, total: int | None, positions: list[int]) -> list[Window]:
    """A caller's windows, checked; positions in increasing order, which is what numbers of observed frames count by."""
    if not all(isinstance(window, Window) and _has_positions(window) for window in schedule):
        raise ValueError(
            "`frame_schedule` must be a name, or a list or an iterator of Windows, each with two tuples of positions from 0, got"
            f" {reprlib.repr(schedule)}."
        )
    FramePlan.of(schedule, total, observed=positions)  # raises if they do not make the video
    return [Window(*(tuple(sorted(map(int, side))) for side in (x.observed, x.latent))) for x in schedule]


def _has_positions(window: Window) -> bool:
    """Whether a window is what it should be: two tuples of positions."""
    sides = (window.observed, window.latent)
    return all(isinstance(side, (tuple, list, range)) for side in sides) and all(
        isinstance(x, numbers.Integral) and not isinstance(x, bool) and x >= 0 for side in sides for x in side
    )
