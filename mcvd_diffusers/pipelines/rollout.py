"""Frame bookkeeping over a frame schedule: which frames a window reads, where they go, which may be forgotten."""

from collections.abc import Callable, Iterable, Iterator

import torch

from mcvd_diffusers.frame_schedules import Window


def rollout(
    windows: Iterable[Window],
    frames: dict[int, torch.Tensor],
    generate: Callable[[int, Window, dict[int, torch.Tensor]], torch.Tensor],
    *,
    memory: int | None = None,
) -> Iterator[tuple[Window, torch.Tensor]]:
    """
    Generate a video window by window, feeding generated frames back.

    Args:
        windows (`Iterable[Window]`):
            The frame schedule. For a list, a frame is forgotten after the last window that reads it; for an iterator
            without end, `memory` says how many frames are kept.
        frames (`dict[int, torch.Tensor]`): The given frames by position, each `(B, C, H, W)`. Not modified.
        generate (`Callable`):
            `generate(number, window, frames)` makes the latent frames `(B, len(window.latent), C, H, W)` of a window
            from its observed ones; `number` counts the windows from 0.
        memory (`int`, *optional*): Newest frames to keep; for schedules without end, which only run forwards.

    Yields:
        `tuple[Window, torch.Tensor]`: Each window with its finished latent frames.
    """
    known = dict(frames)
    last_reader = {}
    if memory is None:
        windows = list(windows)
        last_reader = {position: number for number, window in enumerate(windows) for position in window.observed}
    for number, window in enumerate(windows):
        made = generate(number, window, {position: known[position] for position in window.observed})
        known.update(zip(window.latent, made.unbind(dim=1)))
        if memory is None:
            known = {position: frame for position, frame in known.items() if last_reader.get(position, -1) > number}
        else:
            known = {position: known[position] for position in sorted(known)[-memory:]} if memory else {}
        yield window, made


def first_slot(window: Window, *, num_past_frames: int, num_frames: int, num_future_frames: int) -> int:
    """
    Where a window lies for a network that sees past, block and future as consecutive frames.

    A window with fewer latent frames than the network's block lies at the block's start, or, if it reads frames after
    itself, at its end. The rest of the block is generated and thrown away.

    Args:
        window (`Window`): The window.
        num_past_frames, num_frames, num_future_frames (`int`): The network's frames.

    Returns:
        `int`: Position in the video of the network's first frame; may be negative, those frames are ABSENT.

    Raises:
        ValueError: If the window's frames are not where the network could read or make them.
    """
    reads_future = bool(window.observed) and max(window.observed) > max(window.latent)
    start = max(window.latent) + 1 - num_frames if reads_future else min(window.latent)
    readable = {*range(start - num_past_frames, start)}
    readable |= {*range(start + num_frames, start + num_frames + num_future_frames)}
    if not set(window.latent) <= {*range(start, start + num_frames)} or not set(window.observed) <= readable:
        raise ValueError(
            f"The frame schedule asks for frames {list(window.latent)} given {list(window.observed)}; this network only"
            f" takes consecutive frames: {num_past_frames} past, {num_frames} of a block, {num_future_frames} future."
        )
    return start - num_past_frames
