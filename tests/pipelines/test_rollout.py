"""Frame bookkeeping: what is read, fed back and forgotten, and where a window lies."""

import itertools
import weakref

import pytest
import torch

from mcvd_diffusers.frame_schedules import Window, blocks
from mcvd_diffusers.pipelines.layouts import lay_out
from mcvd_diffusers.pipelines.rollout import rollout


def count_up(jobs, frames):
    """A block's frames are the mean of what it read plus their own positions."""
    made = []
    for _, window in jobs:
        read = [frames[position] for position in window.observed]
        base = sum(read) / len(read) if read else torch.zeros(1, 1, 1, 1)
        made.append(torch.stack([base + position for position in window.latent], dim=1))
    return made


def test_generated_frames_are_read_by_later_windows():
    windows = [Window((0,), (1, 2)), Window((1, 2), (3,))]
    made = dict(rollout(windows, {0: torch.full((1, 1, 1, 1), 10.0)}, count_up))
    assert made[windows[0]].flatten().tolist() == [11, 12]
    assert made[windows[1]].flatten().tolist() == [11.5 + 3]


def test_frames_are_forgotten_after_the_last_window_that_reads_them():
    alive = []

    def generate(jobs, frames):
        made = torch.zeros(1, len(jobs[0][1].latent), 1, 1, 1)
        alive.append(weakref.ref(made))
        return [made]

    windows = list(blocks(2 + 3 * 30, observed=range(2), step=3, num_past_frames=2))
    for _ in rollout(windows, {0: torch.zeros(1, 1, 1, 1), 1: torch.zeros(1, 1, 1, 1)}, generate):
        assert sum(ref() is not None for ref in alive) <= 2


def test_a_schedule_without_an_end_has_flat_memory():
    alive = []

    def generate(jobs, frames):
        made = torch.zeros(1, 3, 1, 1, 1)
        alive.append(weakref.ref(made))
        return [made]

    schedule = blocks(None, observed=(), step=3, num_past_frames=4)
    for _ in itertools.islice(rollout(schedule, {}, generate, memory=4), 50):
        assert sum(ref() is not None for ref in alive) <= 3


def test_given_frames_are_not_modified():
    given = {0: torch.ones(1, 1, 1, 1)}
    list(rollout([Window((0,), (1,))], given, count_up))
    assert list(given) == [0] and given[0].item() == 1


SLOTS = {"num_past_frames": 2, "num_frames": 3, "num_future_frames": 2}


@pytest.mark.parametrize(
    "window, start",
    [
        (Window((0, 1), (2, 3, 4)), 0),
        (Window((0,), (1, 2, 3)), -1),
        (Window((), (0, 1, 2)), -2),
        (Window((5, 6), (7,)), 5),
        (Window((3, 4), (0, 1, 2)), -2),
        (Window((1, 2), (0,)), -4),
        (Window((0, 1, 5, 6), (2, 3, 4)), 0),
        (Window((0, 4), (2, 3)), -1),  # at the block's end, next to the future; frame 1 is made and thrown away
        (Window((0, 1, 6), (2, 3, 4)), 0),  # the first future frame is ABSENT
    ],
)
def test_window_lies_next_to_what_it_reads(window, start):
    assert lay_out(window, SLOTS).positions[0] == start


@pytest.mark.parametrize(
    "window",
    [
        Window((0, 1), (36, 65, 94)),
        Window((0, 1), (3, 4, 5)),
        Window((0, 6), (2, 3)),
        Window((0,), (1, 2, 3, 4)),
    ],
)
def test_window_that_the_network_cannot_take_is_refused(window):
    with pytest.raises(
        ValueError,
        match="this network only takes 2 frames before a block of 3 and 2 after it. Leave `frame_schedule` out",
    ):
        lay_out(window, SLOTS)
