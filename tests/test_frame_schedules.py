"""Frame schedules: every frame once, only known frames read, never more than the network holds."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcvd_diffusers import Window, blocks


@given(
    num_past=st.integers(0, 6),
    num_future=st.integers(0, 6),
    gap=st.integers(1, 40),
    step=st.integers(1, 7),
    past=st.integers(0, 5),
    future=st.integers(0, 5),
)
def test_every_frame_is_generated_once_from_known_ones(num_past, num_future, gap, step, past, future):
    if num_past and num_future and gap < step:
        return
    total = num_past + gap + num_future
    known = {*range(num_past), *range(total - num_future, total)}
    windows = list(blocks(total, observed=known, step=step, num_past_frames=past, num_future_frames=future))
    for window in windows:
        assert window.observed == tuple(sorted(set(window.observed))) and set(window.observed) <= known
        assert 1 <= len(window.latent) <= step and not known & set(window.latent)
        assert window.latent == tuple(range(window.latent[0], window.latent[-1] + 1))
        before = [position for position in window.observed if position < window.latent[0]]
        assert len(before) <= past and len(window.observed) - len(before) <= future
        known |= set(window.latent)
    assert known == set(range(total))
    assert len(windows) == -(-gap // step)


def test_blocks_go_forwards_from_the_past():
    assert list(blocks(9, observed=range(2), step=3, num_past_frames=2)) == [
        Window((0, 1), (2, 3, 4)),
        Window((3, 4), (5, 6, 7)),
        Window((6, 7), (8,)),
    ]


def test_blocks_go_backwards_from_the_future():
    assert list(blocks(6, observed=range(4, 6), step=3, num_past_frames=2, num_future_frames=2)) == [
        Window((4, 5), (1, 2, 3)),
        Window((1, 2), (0,)),
    ]


def test_the_last_of_several_blocks_between_meets_both_ends():
    windows = list(blocks(11, observed=[0, 1, 9, 10], step=3, num_past_frames=2, num_future_frames=2))
    assert windows == [
        Window((0, 1), (2,)),
        Window((1, 2), (3, 4, 5)),
        Window((4, 5, 9, 10), (6, 7, 8)),
    ]


def test_generation_starts_from_nothing():
    assert list(blocks(5, observed=(), step=2, num_past_frames=3)) == [
        Window((), (0, 1)),
        Window((0, 1), (2, 3)),
        Window((1, 2, 3), (4,)),
    ]


def test_a_schedule_without_an_end_is_the_beginning_of_every_finite_one():
    endless = list(itertools.islice(blocks(None, observed=range(3), step=2, num_past_frames=2), 10))
    assert endless == list(blocks(23, observed=range(3), step=2, num_past_frames=2))


def test_nothing_to_do_is_no_window():
    assert list(blocks(3, observed=range(3), step=2, num_past_frames=2)) == []


@pytest.mark.parametrize(
    "num_frames, observed, message",
    [
        (9, [0, 1, 4], "frames at the start of the video, at its end, or both"),
        (9, [0, 1, 9], "frames at the start"),
        (6, [0, 1, 4, 5], "at least one block of 3 frames between the given ones, got a gap of 2"),
        (None, [0, 1, 5], "`num_frames` must be a number when frames are given at the end"),
    ],
)
def test_what_is_no_run_is_refused(num_frames, observed, message):
    with pytest.raises(ValueError, match=message):
        next(blocks(num_frames, observed=observed, step=3, num_past_frames=2, num_future_frames=2))
