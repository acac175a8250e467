"""Frame bookkeeping over a frame schedule: which frames a window reads, where they stand, which may be forgotten."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch

from mcvd_diffusers.frame_schedules import Window
from mcvd_diffusers.masking import FrameRole


# A window and its number in the schedule.
Job = tuple[int, Window]


def rollout(
    windows: Iterable[Window],
    frames: dict[int, torch.Tensor],
    generate: Callable[[list[Job], dict[int, torch.Tensor]], list[torch.Tensor]],
    *,
    memory: int | None = None,
    batches: list[list[int]] | None = None,
) -> Iterator[tuple[Window, torch.Tensor]]:
    """
    Generate a video window by window, feeding generated frames back.

    Args:
        windows (`Iterable[Window]`):
            The frame schedule. For a list, a frame is forgotten after the last window that reads it; for an iterator,
            `memory` says how many frames are kept.
        frames (`dict[int, torch.Tensor]`): The given frames by position, each `(B, C, H, W)`. Not modified.
        generate (`Callable`):
            `generate(jobs, frames)` makes the latent frames of windows, `(B, len(window.latent), C, H, W)` each, from their
            observed ones; a job is a window and its number, from 0. It gets one at a time, or a batch.
        memory (`int`, *optional*): Newest frames to keep; for schedules that are not a list.
        batches (`list[list[int]]`, *optional*):
            Numbers of windows of a list that are made together, in the order in which that is done. By default each by
            itself, in the order of the schedule.

    Yields:
        `tuple[Window, torch.Tensor]`: Each window with its finished latent frames.
    """
    known = dict(frames)
    last_reader = {}
    if isinstance(windows, list):
        batches = [[number] for number in range(len(windows))] if batches is None else batches
        last_reader = {p: run for run, batch in enumerate(batches) for n in batch for p in windows[n].observed}
        runs = ([(number, windows[number]) for number in batch] for batch in batches)
    else:
        runs = ([job] for job in enumerate(windows))
    for run, jobs in enumerate(runs):
        read = {position for _, window in jobs for position in window.observed}
        made = generate(jobs, {position: known[position] for position in sorted(read)})
        for (_, window), block in zip(jobs, made):
            known.update(zip(window.latent, block.unbind(dim=1)))
        if isinstance(windows, list):
            known = {position: frame for position, frame in known.items() if last_reader.get(position, -1) > run}
        elif memory is not None:
            known = {position: known[position] for position in sorted(known)[-memory:]} if memory else {}
        yield from ((window, block) for (_, window), block in zip(jobs, made))


@dataclass(frozen=True)
class Layout:
    """
    A window as a network sees it.

    Args:
        positions (`tuple[int, ...]`): Position in the video of each of its frames; those before the video are negative.
        roles (`tuple[FrameRole, ...]`): Role of each. More frames may be LATENT than are asked for.
        made (`tuple[int, ...]`): Where the window's latent frames stand, in their order.
    """

    positions: tuple[int, ...]
    roles: tuple[FrameRole, ...]
    made: tuple[int, ...]


def lay_out(window: Window, config: Mapping, *, may_replace: bool = False) -> Layout:
    """
    Where a window's frames stand for a network, as its config says what it can read.

    * A network of past, block and future (`num_past_frames`, ...) reads consecutive frames. A window with fewer latent
      frames than its block lies at the block's start, or, if it reads frames after itself, at its end.
    * A network of windows (`max_frames`) reads any frames if it was trained with gaps between them (`has_frame_gaps`), observed
      ones first. Else it reads consecutive frames, too.

    Frames that have to be between others, but are not asked for, are made and thrown away.

    Args:
        window ([`Window`]): The window.
        config (`Mapping`): Of the network.
        may_replace (`bool`, *optional*, defaults to `False`):
            Whether observed frames may stand where the network makes frames, since they are put in their place.

    Returns:
        [`Layout`]: The window as the network sees it.

    Raises:
        ValueError: If the window's frames are not where the network could read or make them.
    """
    asked = f"The frame schedule asks for frames {_list(window.latent)} given {_list(window.observed)}; this network"
    if "max_frames" not in config:
        past, size, future = (config[f"num_{part}frames"] for part in ("past_", "", "future_"))
        reads_future = bool(window.observed) and max(window.observed) > max(window.latent)
        start = max(window.latent) + 1 - size if reads_future and not may_replace else min(window.latent)
        block = range(start, start + size)
        positions = range(start - past, start + size + future)
        readable = set(positions) if may_replace else set(positions) - set(block)
        if not set(window.latent) <= set(block) or not set(window.observed) <= readable:
            raise ValueError(
                f"{asked} only takes consecutive frames: {past} past, {size} of a block, {future} future."
            )
        otherwise = dict.fromkeys(block, FrameRole.LATENT)
    else:
        most, frames = config["max_frames"], sorted({*window.observed, *window.latent})
        if len(frames) > most:
            raise ValueError(f"{asked} takes at most {most} frames at once.")
        if config["has_frame_gaps"]:
            positions = (*window.observed, *window.latent)
        else:
            positions = range(frames[0], frames[-1] + 1)
            if len(positions) > most:
                raise ValueError(
                    f"{asked} only takes consecutive frames, at most {most} of them, as it was trained"
                    " (`unet.config.has_frame_gaps` is False)."
                )
        otherwise = dict.fromkeys(positions, FrameRole.LATENT)
    observed = set(window.observed)
    roles = tuple(FrameRole.OBSERVED if p in observed else otherwise.get(p, FrameRole.ABSENT) for p in positions)
    slots = {position: slot for slot, position in enumerate(positions)}
    return Layout(tuple(positions), roles, tuple(slots[position] for position in window.latent))


def _list(positions: tuple[int, ...]) -> str:
    """Positions, not all of many."""
    shown = ", ".join(map(str, positions[:6]))
    return f"[{shown}, ... {positions[-1]}]" if len(positions) > 7 else f"[{', '.join(map(str, positions))}]"
