"""Frame bookkeeping over a frame schedule: which frames a window reads, which may be forgotten."""

from collections.abc import Callable, Iterable, Iterator

import torch

from mcvd_diffusers.frame_schedules import Window


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
