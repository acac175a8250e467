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
    autoregressive,
    blocks,
    frame_schedule,
    schedule_name,
)

from .layouts import Layout, lay_out


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
        memory (`int`, *optional*): Newest frames that later windows read, if the windows are no list.
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

    @property
    def is_open(self) -> bool:
        """Whether windows follow that are not known yet, which read what those before them make."""
        return not isinstance(self.windows, list) and self.num_windows != 1

    def known_windows(self) -> list[Window]:
        """Those that can be looked at before any work: all, the first, or none if they are adaptive."""
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
    schedule: str | list[Window] | FramePlan | None,
    max_frames: int | None,
    step: int | None,
    may_replace: bool,
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

    Returns:
        [`CallPlan`]: The windows.

    Raises:
        ValueError: If the schedule cannot serve, or the network cannot read it.
    """
    config = pipe.unet.config
    layout = partial(lay_out, config=config, may_replace=may_replace)
    is_blocks = "max_frames" not in config
    capacity = config.get("max_frames") or pipe.unet.num_window_frames
    is_whole = not is_blocks and step is None and total is not None and total <= (max_frames or capacity)
    if schedule is None and total is not None and not is_whole:
        schedule = pipe.config.frame_schedule
    if step is None and not is_whole and (schedule is not None or not is_blocks):
        step = None if pipe.config.step is None else min(pipe.config.step, max_frames or capacity)
    if max_frames is not None and max_frames > capacity:
        raise ValueError(f"`max_frames` is {max_frames}, but this network takes at most {capacity} frames at once.")
    if (max_frames is not None or step is not None) and schedule is None and is_blocks:
        raise ValueError("`max_frames` and `step` belong to a `frame_schedule`: name one, or leave them out.")
    if total is not None and total > MOST_PLANNED_FRAMES and (schedule is not None or not is_blocks):
        raise ValueError(
            f"`num_frames`: a video of {total:,} frames is not planned ahead, at most {MOST_PLANNED_FRAMES:,}. Make it in parts, each given"
            " the end of the one before, or call `stream` without `num_frames`."
        )
    if isinstance(schedule, FramePlan):
        schedule = list(schedule.windows) if isinstance(schedule.windows, (list, tuple)) else [schedule.windows]
    if isinstance(schedule, (list, tuple)):
        if not all(isinstance(window, Window) and _has_positions(window) for window in schedule):
            raise ValueError(
                "`frame_schedule` must be a name or a list of Windows, each with two tuples of positions from 0, got"
                f" {reprlib.repr(schedule)}."
            )
        FramePlan.of(schedule, total, observed=positions)  # raises if they do not make the video
        return CallPlan(list(schedule), layout, len(schedule), is_in_time_order=True)

    max_frames = capacity if max_frames is None else int(max_frames)
    if schedule is not None:
        if not isinstance(schedule, str):
            raise ValueError(f"`frame_schedule` must be a name or a list of Windows, got {reprlib.repr(schedule)}.")
        schedule = schedule_name(schedule)
        step = config.num_frames if is_blocks and step is None else step
        make = partial(frame_schedule, schedule, total, observed=positions, max_frames=max_frames, step=step)
        if schedule in ADAPTIVE_FRAME_SCHEDULES:
            if is_blocks or not config.has_frame_gaps:
                raise ValueError(
                    f"`frame_schedule` {schedule!r} reads frames from anywhere, and this network only takes consecutive ones."
                )
            return CallPlan(None, layout, adaptive=lambda distance: make(distance=distance))
        try:
            windows = list(make())
        except ValueError as error:
            if schedule not in FRAME_SCHEDULES and "`name`" in str(error):
                raise ValueError(str(error).replace("`name`", "`frame_schedule`")) from error
            raise
        nothing = schedule == "really-independent"
        return CallPlan(windows, layout, len(windows), is_in_time_order=True, reads_nothing=nothing)

    if not is_blocks:
        if is_whole:
            windows = [Window(tuple(positions), tuple(x for x in range(total) if x not in set(positions)))]
            return CallPlan(windows, layout, 1, is_in_time_order=True)
        step = step or max(1, max_frames // 2)
        if step > max_frames:
            raise ValueError(
                f"`step` is {step}, but a window has at most {max_frames} frames: choose at most that many."
            )
        if total is not None:
            windows = list(autoregressive(total, observed=positions, max_frames=max_frames, step=step))
            return CallPlan(windows, layout, len(windows), is_in_time_order=True)
        past = max_frames - step
        return CallPlan(blocks(None, observed=positions, step=step, num_past_frames=past), layout, memory=past)

    size, num_frames = config.num_frames, None if total is None else total - len(positions)
    has_future = bool(positions) and total is not None and positions[-1] == total - 1
    if has_future and positions[0] == 0 and num_frames < size:
        raise ValueError(
            f"`num_frames` must be at least {size}, one block of this network, to interpolate; got {num_frames}."
        )
    past, future = config.num_past_frames, config.num_future_frames
    windows = blocks(total, observed=positions, step=size, num_past_frames=past, num_future_frames=future)
    num_windows = None if num_frames is None else -(-num_frames // size)
    # Forwards, it may be very long.
    return CallPlan(list(windows) if has_future else windows, layout, num_windows, memory=past)


def _has_positions(window: Window) -> bool:
    """Whether a window is what it should be: two tuples of positions."""
    sides = (window.observed, window.latent)
    return all(isinstance(side, (tuple, list, range)) for side in sides) and all(
        isinstance(x, numbers.Integral) and not isinstance(x, bool) and x >= 0 for side in sides for x in side
    )
