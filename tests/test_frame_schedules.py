"""Frame schedules: every frame once, only known frames read, never more than the network holds.

`reference/fdm_schedules.json.gz` holds index lists that FDM's original code gave for 697 settings: what they are and what
is odd about some of them stands in the file.
"""

import doctest
import gzip
import itertools
import json
import math
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mcvd_diffusers import Window, blocks, frame_plans, frame_schedules
from mcvd_diffusers.frame_plans import FramePlan
from mcvd_diffusers.frame_schedules import (
    ADAPTIVE_FRAME_SCHEDULES,
    FRAME_SCHEDULES,
    adaptive_autoregressive,
    autoregressive,
    consecutive,
    frame_schedule,
    hierarchy,
)


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


# ----------------------------------------------------------------------------------------------------------------------
# FDM's and VDM's schedules: the original's numbers

ENTRIES = json.loads(gzip.decompress((Path(__file__).parent / "reference/fdm_schedules.json.gz").read_bytes()))[
    "entries"
]
SCHEMES = sorted({entry["scheme"] for entry in ENTRIES})


def embedding(position):
    """Of the recorded adaptive schedules: the position alone says how a frame looks."""
    return (
        math.sin(0.7 * position),
        math.cos(1.3 * position),
        2 * math.sin(0.05 * position),
        3 * math.cos(0.013 * position),
    )


EMBEDDINGS = [embedding(position) for position in range(1000)]


def distance(one, other):
    return math.dist(EMBEDDINGS[one], EMBEDDINGS[other]) ** 2


def made_by(name, num_frames, *, distance=distance, **arguments):
    return frame_schedule(
        name, num_frames, distance=distance if name in ADAPTIVE_FRAME_SCHEDULES else None, **arguments
    )


def made_as(entry):
    return made_by(
        entry["scheme"],
        entry["video_length"],
        observed=range(entry["num_obs"]),
        max_frames=entry["max_frames"],
        step=entry["step_size"],
    )


def as_sets(windows):
    return [(set(observed), set(latent)) for observed, latent in windows]


def check_windows(windows, num_frames, observed, max_frames):
    """Every missing frame once, from finished ones, in windows that fit."""
    done = set(observed)
    for window in windows:
        for positions in (window.observed, window.latent):
            assert positions == tuple(sorted(set(positions)))
        assert set(window.observed) <= done
        assert window.latent and not done & set(window.latent)
        assert len(window.observed) + len(window.latent) <= max_frames
        done |= set(window.latent)
    assert done == set(range(num_frames))


def check_against_the_original(entry):
    windows = list(made_as(entry))
    check_windows(windows, entry["video_length"], range(entry["num_obs"]), entry["max_frames"])
    ours, theirs = as_sets((window.observed, window.latent) for window in windows), as_sets(entry["steps"])
    if "exceeds_K" not in entry.get("anomalies", {}):
        assert ours == theirs, entry
        return
    # Where the original's window is too large, ours has its latent frames and a part of what it reads.
    assert len(ours) == len(theirs)
    for (observed, latent), (their_observed, their_latent) in zip(ours, theirs):
        assert latent == their_latent and observed <= their_observed, entry
        if len(their_observed) + len(their_latent) <= entry["max_frames"]:
            assert observed == their_observed, entry


def test_fdm_1_all_697_settings_are_there():
    assert len(ENTRIES) == 697 and len(SCHEMES) == 15
    for scheme in SCHEMES:
        frame_schedule(scheme, 64, observed=(), max_frames=16, distance=distance if "adaptive" in scheme else None)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_fdm_1_schedules_equal_the_originals_as_sets_per_window(scheme):
    for entry in ENTRIES:
        if entry["scheme"] == scheme and "error" not in entry:
            check_against_the_original(entry)


def test_fdm_1_a_hierarchy_of_the_papers_size_has_the_known_windows():
    windows = list(hierarchy(300, observed=range(36), max_frames=20, step=10))
    assert len(windows) == 27
    assert windows[:2] == [
        Window((0, 3, 7, 11, 15, 19, 23, 27, 31, 35), (36, 65, 94, 123, 153, 182, 211, 241, 270, 299)),
        Window((32, 33, 34, 35, 36, 65, 94, 123, 153, 182), tuple(range(37, 47))),
    ]


@pytest.mark.parametrize(
    "name", [name for name in FRAME_SCHEDULES if name not in ("google", *ADAPTIVE_FRAME_SCHEDULES)]
)
def test_fdm_2_plans_hold_over_lengths_sizes_and_given_frames(name):
    for num_frames, max_frames, num_given in itertools.product((10, 47, 160), (2, 3, 5, 8, 12), (0, 1, 2, 7, 40)):
        for step in {1, max_frames // 2, max_frames - 1, max_frames}:
            arguments = dict(observed=range(min(num_given, num_frames)), max_frames=max_frames, step=step)
            try:
                windows = list(frame_schedule(name, num_frames, **arguments))
            except ValueError as error:
                assert "hierarchy" in name and step == 1 and "`step` must be at least 2" in str(error)
                continue
            check_windows(windows, num_frames, arguments["observed"], max_frames)


def stated_hierarchy(num_levels, num_frames, *, num_given, max_frames, step):
    """The rule of hierarchy-n as the paper's supplement and code have it, word by word; `None` where that has no answer."""
    done, windows = set(range(num_given)), []
    if not done:
        latent = {int(position) for position in np.linspace(0, num_frames - 1, max_frames)}
        windows.append((set(), latent))
        done |= latent
    first, level, cursor = set(done), None, None
    while len(done) < num_frames:
        missing = [position for position in range(num_frames) if position not in done]
        size = step
        while size > 1:

            def stride(level, size=size):
                return int(((num_frames - len(first)) / (size - 1)) ** ((num_levels - level) / (num_levels - 1)))

            if done == first:  # asked each time that a window is planned, a smaller one too
                level, cursor = 1, max(first)
            start = cursor + stride(level)
            if start > missing[-1]:
                level, cursor = level + 1, 0
                if level > num_levels:
                    return None
                start = missing[0] - 1 + stride(level)
            if level == 1:
                latent = [int(position) for position in np.linspace(max(first) + 1, num_frames - 0.001, size)]
            else:
                if stride(level) < 1:
                    return None
                latent, position = [], start
                while len(latent) < size and position < num_frames:
                    is_missing = position not in done
                    latent += [position] * is_missing
                    position += stride(level) if is_missing else 1
            if not latent or len(set(latent)) < len(latent):
                return None
            between = {position for position in done if latent[0] < position < latent[-1]}
            room = max_frames - size - len(between)
            if room >= 2:
                break
            size -= 1
        else:
            return None
        after = sorted(position for position in done if position > latent[-1])[: room // 2]
        num_before = room - len(after)
        before = sorted((position for position in done if position < latent[0]), reverse=True)[:num_before]
        if level == 1:
            before = [int(position) for position in np.linspace(0, max(first) + 0.999, num_before)]
        windows.append((between | set(after) | set(before), set(latent)))
        done |= set(latent)
        cursor = latent[-1]
    return windows


@settings(max_examples=600, deadline=None)
@given(
    num_levels=st.integers(2, 5),
    num_frames=st.integers(6, 80),
    num_given=st.sampled_from([0, 0, 1, 2, 5, 10]),
    max_frames=st.integers(4, 20),
    step=st.integers(2, 19),
)
@example(num_levels=4, num_frames=10, num_given=0, max_frames=6, step=3)
@example(num_levels=3, num_frames=10, num_given=0, max_frames=6, step=3)
@example(num_levels=5, num_frames=11, num_given=0, max_frames=7, step=4)
@example(num_levels=3, num_frames=60, num_given=10, max_frames=20, step=10)
def test_fdm_2_a_hierarchy_is_what_the_rule_says(num_levels, num_frames, num_given, max_frames, step):
    if step > max_frames or num_frames <= max(max_frames, num_given):
        return
    sizes = {"max_frames": max_frames, "step": step}
    stated = stated_hierarchy(num_levels, num_frames, num_given=num_given, **sizes)
    windows = hierarchy(num_frames, observed=range(num_given), num_levels=num_levels, **sizes)
    if stated is not None:
        assert as_sets((window.observed, window.latent) for window in windows) == stated


@pytest.mark.parametrize("num_given", [0, 1, 6])
def test_fdm_2_autoregressive_is_mcvds_blocks(num_given):
    """The simplest scheme, against another implementation: MCVD's blocks after the first."""
    first = [] if num_given else [Window((), tuple(range(9)))]
    known = range(num_given or 9)
    rest = blocks(50, observed=known, step=4, num_past_frames=5)
    assert list(autoregressive(50, observed=range(num_given), max_frames=9, step=4)) == [*first, *rest]


def test_fdm_3_the_embedding_of_the_recorded_schedules_is_injective():
    assert len(set(EMBEDDINGS)) == len(EMBEDDINGS)
    assert min(distance(one, other) for one, other in itertools.combinations(range(300), 2)) > 1e-9


@pytest.mark.parametrize("scheme", ["adaptive-autoreg", "adaptive-hierarchy-2", "adaptive-hierarchy-3"])
def test_fdm_3_adaptive_schedules_choose_what_the_original_chooses(scheme):
    entries = [entry for entry in ENTRIES if entry["scheme"] == scheme and "error" not in entry]
    assert len(entries) > 25
    for entry in entries:
        check_against_the_original(entry)


@pytest.mark.parametrize("name", ADAPTIVE_FRAME_SCHEDULES)
@pytest.mark.parametrize("observed", [range(3), range(40, 43), (), (5, 20, 21)], ids=str)
def test_fdm_3_distances_are_asked_of_finished_frames_only(name, observed):
    done = set(observed)

    def distance_of_finished(one, other):
        assert {one, other} <= done
        return distance(one, other)

    arguments = dict(observed=observed, max_frames=8, step=4, distance=distance_of_finished)
    for window in made_by(name, 43, **arguments):
        done |= set(window.latent)
    assert done == set(range(43))


def test_fdm_3_the_frame_that_differs_most_is_read_before_a_nearer_one():
    changed = {2}  # everything else looks the same
    windows = adaptive_autoregressive(
        12, observed=range(8), max_frames=4, step=2, distance=lambda one, other: len({one, other} & changed)
    )
    assert next(windows) == Window((2, 7), (8, 9))


def test_fdm_4_settings_that_break_the_original_are_planned_or_refused():
    entries = [entry for entry in ENTRIES if "error" in entry]
    assert len(entries) == 79
    for entry in entries:
        try:
            windows = list(made_as(entry))
        except ValueError as error:
            assert entry["step_size"] == 1 and "`step` must be at least 2" in str(error)
            continue
        check_windows(windows, entry["video_length"], range(entry["num_obs"]), entry["max_frames"])


@pytest.mark.parametrize("num_given", [0, 1])
def test_fdm_4_an_adaptive_hierarchy_ends_when_few_frames_are_given(num_given):
    windows = list(made_by("adaptive-hierarchy-2", 60, observed=range(num_given), max_frames=10))
    check_windows(windows, 60, range(num_given), 10)


@pytest.mark.parametrize(
    "name, arguments, message",
    [
        ("hierarchy-3", dict(step=1), "`step` must be at least 2 in a hierarchy"),
        ("adaptive-hierarchy-2", dict(step=1, distance=distance), "`step` must be at least 2 in a hierarchy"),
        ("autoreg", dict(step=0), "`step` must be between 1 and `max_frames`, 10, got 0"),
        ("autoreg", dict(step=11), "`step` must be between 1 and `max_frames`, 10, got 11"),
        ("autoreg", dict(max_frames=0), "`max_frames` must be at least 1"),
        ("autoreg", dict(num_frames=0), "`num_frames` must be at least 1"),
        ("autoreg", dict(observed=[-1, 3, 30]), r"`observed` must be positions from 0 to 29 .* got \[-1, 30\]"),
        ("google", dict(), "`max_frames` and `step` must be 16 and 8 .* 'like-google' takes any"),
        ("adaptive-autoreg", dict(), "`distance` must be a function"),
        ("autoreg", dict(distance=distance), "`distance` has no use"),
        ("hierarchy-9", dict(), "`name` must be one of autoreg, long-range, .*, got 'hierarchy-9'"),
        (
            "hierachy-2",
            dict(),
            "^Did you mean hierarchy-2\\? `name` must be one of autoreg, [^']*like-google, got 'hier",
        ),
        ("sideways", dict(), "^`name` must be one of autoreg, "),
    ],
)
def test_fdm_4_wrong_settings_are_named_when_the_schedule_is_called(name, arguments, message):
    with pytest.raises(ValueError, match=message):
        frame_schedule(name, **{"num_frames": 30, "observed": range(3), "max_frames": 10, **arguments})


def test_fdm_4_one_level_is_no_hierarchy():
    with pytest.raises(ValueError, match="`num_levels` must be at least 2, got 1"):
        hierarchy(30, observed=range(3), max_frames=10, step=5, num_levels=1)


# ----------------------------------------------------------------------------------------------------------------------
# FDM's and VDM's schedules: any given frames


@st.composite
def videos(draw):
    """(name, arguments) of a schedule for any given frames: a prefix, a suffix, scattered ones, all, none."""
    num_frames = draw(st.integers(1, 70))
    kind = draw(st.sampled_from(["prefix", "suffix", "both", "scattered"]))
    first, last = (draw(st.integers(0, num_frames)) for _ in range(2))
    observed = {
        "prefix": lambda: set(range(first)),
        "suffix": lambda: set(range(num_frames - first, num_frames)),
        "both": lambda: set(range(first)) | set(range(num_frames - last, num_frames)),
        "scattered": lambda: draw(st.sets(st.integers(0, num_frames - 1))),
    }[kind]()
    name = draw(st.sampled_from(FRAME_SCHEDULES))
    max_frames = draw(st.integers(1, 20))
    step = draw(st.integers(min(2, max_frames) if "hierarchy" in name else 1, max_frames))
    if name == "google":
        max_frames, step = 16, 8
    elif "hierarchy" in name and max_frames == 1:
        max_frames = step = 2
    return name, dict(num_frames=num_frames, observed=observed, max_frames=max_frames, step=step)


@settings(max_examples=600, deadline=None)
@given(videos())
def test_fdm_5_every_missing_frame_is_generated_once_from_finished_ones(video):
    name, arguments = video
    windows = list(made_by(name, **arguments))
    check_windows(windows, arguments["num_frames"], arguments["observed"], arguments["max_frames"])


@settings(max_examples=300, deadline=None)
@given(videos())
def test_consecutive_windows_are_within_reach_and_autoregressive_where_nothing_else_is_given(video):
    arguments = video[1]
    num_frames, observed, max_frames = (arguments[name] for name in ("num_frames", "observed", "max_frames"))
    windows = list(consecutive(**arguments))
    check_windows(windows, num_frames, observed, max_frames)
    for window in windows:
        frames = window.observed + window.latent
        assert max(frames) - min(frames) < max_frames and len(window.latent) <= (
            arguments["step"] if window.observed or observed else max_frames
        )
        if arguments["step"] < max_frames and windows[0].observed:
            assert window.observed
    is_run = set(observed) in (set(range(len(observed))), set(range(num_frames - len(observed), num_frames)))
    if is_run:
        assert windows == list(autoregressive(**arguments))


@settings(max_examples=200, deadline=None)
@given(videos())
def test_fdm_5_a_video_given_at_its_end_is_made_backwards(video):
    name, arguments = video
    if name in ("independent", "really-independent") or not arguments["observed"]:
        return
    last = arguments["num_frames"] - 1
    arguments["observed"] = set(range(len(arguments["observed"])))
    forwards = list(made_by(name, **arguments))
    arguments["observed"] = {last - position for position in arguments["observed"]}
    backwards = list(made_by(name, **arguments, distance=lambda one, other: distance(last - one, last - other)))
    mirrored = [tuple(tuple(last - p for p in reversed(x)) for x in (w.observed, w.latent)) for w in backwards]
    assert mirrored == [(window.observed, window.latent) for window in forwards]


@settings(max_examples=200, deadline=None)
@given(videos(), st.randoms(use_true_random=False))
def test_fdm_5_windows_of_a_wave_may_run_in_any_order(video, random: random.Random):
    name, arguments = video
    plan = FramePlan.of(made_by(name, **arguments), arguments["num_frames"], observed=arguments["observed"])
    waves, batches = plan.waves(), plan.batches()
    numbers = list(range(len(plan.windows)))
    assert sorted(itertools.chain(*waves)) == sorted(itertools.chain(*batches)) == numbers
    done = set(plan.given)
    for wave in waves:
        before = frozenset(done)
        for number in random.sample(wave, len(wave)):
            assert set(plan.windows[number].observed) <= before
            done |= set(plan.windows[number].latent)
    assert done == set(range(plan.num_frames))
    wave_of = {number: wave for wave, numbers in enumerate(waves) for number in numbers}
    for batch in batches:
        assert len({wave_of[number] for number in batch}) == 1 and batch == sorted(batch)
        assert len({(len(plan.windows[n].observed), len(plan.windows[n].latent)) for n in batch}) == 1
    # No window could run earlier: it reads what one of the wave before makes.
    for wave, later in itertools.pairwise(waves):
        made = set(itertools.chain(*(plan.windows[number].latent for number in wave)))
        assert all(made & set(plan.windows[number].observed) for number in later)


def test_fdm_5_a_goal_is_in_the_first_window_of_a_hierarchy_and_in_all_long_range_ones():
    start, goal = range(5), range(55, 60)
    observed = {*start, *goal}
    assert set(next(hierarchy(60, observed=observed, max_frames=10, step=5)).observed) & set(goal)
    for window in frame_schedule("long-range", 60, observed=observed, max_frames=12, step=4):
        assert set(window.observed) & set(start) and set(window.observed) & set(goal)


@pytest.mark.parametrize("name", FRAME_SCHEDULES)
def test_fdm_5_nothing_to_do_is_no_window(name):
    assert list(made_by(name, 20, observed=range(20), max_frames=16, step=8)) == []


def test_fdm_5_given_frames_that_are_not_the_first_are_read_when_they_are_near():
    windows = list(autoregressive(12, observed=[4, 5, 10], max_frames=6, step=3))
    assert windows == [
        Window((4, 5, 10), (6, 7, 8)),
        Window((7, 8, 10), (9, 11)),
        Window((4, 5, 6), (1, 2, 3)),
        Window((1, 2, 3), (0,)),
    ]


def test_vdm_6_two_rates_equal_the_originals_as_sets_per_window():
    entries = [entry for entry in ENTRIES if entry["scheme"] in ("google", "like-google") and "error" not in entry]
    assert len(entries) == 42
    for entry in entries:
        check_against_the_original(entry)


def rates(plan):
    """(numbers of the windows of every fourth frame, numbers of those between): the second kind spans few frames."""
    first = [
        number
        for number, window in enumerate(plan.windows)
        if all(b - a == 4 for a, b in itertools.pairwise((*window.observed, *window.latent)))
        and len(window.observed + window.latent) > 1
    ]
    return first, [number for number in range(len(plan.windows)) if number not in first]


@pytest.mark.parametrize("num_frames", [68, 100, 164])
def test_vdm_6_windows_of_the_second_rate_do_not_wait_for_each_other(num_frames):
    plan = FramePlan.of(
        frame_schedule("google", num_frames, observed=range(36), max_frames=16), num_frames, observed=range(36)
    )
    first, second = rates(plan)
    assert len(second) == (num_frames - 36) // 8 and second == list(range(len(first), len(plan.windows)))
    made = set(itertools.chain(*(plan.windows[number].latent for number in second)))
    assert not any(made & set(plan.windows[number].observed) for number in second)
    # They are of one shape, so those that read the last window of the first rate are one batch.
    assert {len(plan.windows[number].observed) for number in second} == {3}
    assert {len(plan.windows[number].latent) for number in second} == {6}
    assert len(plan.waves()) == len(first) + 1
    assert len(plan.batches()) <= 2 * len(first) + 1


@settings(max_examples=200, deadline=None)
@given(st.integers(5, 90), st.integers(2, 20), st.sets(st.integers(0, 89)))
def test_vdm_6_like_google_never_reads_what_the_second_rate_made(num_frames, max_frames, observed):
    observed = {0, *(position for position in observed if position < num_frames)}
    windows = list(frame_schedule("like-google", num_frames, observed=observed, max_frames=max_frames))
    start = next((p for p in range(num_frames) if p not in observed), num_frames) - 1
    is_second = [any((position - start) % 4 for position in window.latent) for window in windows]
    assert is_second == sorted(is_second)
    made = {p for window, second in zip(windows, is_second) if second for p in window.latent}
    assert not any(made & set(window.observed) for window in windows)


# ----------------------------------------------------------------------------------------------------------------------
# Plans


def plan_of(name="hierarchy-3", num_frames=60, observed=range(4), max_frames=10, step=5):
    windows = frame_schedule(name, num_frames, observed=observed, max_frames=max_frames, step=step)
    return FramePlan.of(windows, num_frames, observed=observed)


def test_a_plan_counts_calls_of_the_network():
    plan = plan_of("like-google", 40, range(1), 10)
    assert plan.waves() == [[0], [1, 2, 3], [4, 5, 6]]
    assert plan.batches() == [[0], [1], [2, 3], [4, 5], [6]]
    assert plan.num_network_calls(100) == 700
    assert plan.num_network_calls(100, is_batched=True) == 500
    assert plan.num_network_calls(10, num_resamples=5, calls_per_step=2) == 700


def test_a_plan_without_windows_costs_nothing():
    plan = FramePlan.of([], 3, observed=range(3))
    assert plan.waves() == plan.batches() == []
    assert plan.num_network_calls(100) == plan.num_kept() == plan.num_kept(is_in_time_order=True) == 0
    assert plan.describe() == "3 frames: 3 given, 0 made by 0 windows"


def kept_at_once(plan, runs, is_in_time_order):
    """The same by going through it: forget what is not needed any more, look at how much is there."""
    held, finished, most = set(plan.given), set(plan.given), 0

    def forget(run):
        needed = {p for later in runs[run + 1 :] for number in later for p in plan.windows[number].observed}
        if is_in_time_order:
            beginning = next((p for p in range(plan.num_frames) if p not in finished), plan.num_frames)
            needed |= {p for p in held if p >= beginning}
        return held & needed

    held = forget(-1)
    for run, numbers in enumerate(runs):
        latent = {p for number in numbers for p in plan.windows[number].latent}
        held, finished = held | latent, finished | latent
        most = max(most, len(held))
        held = forget(run)
    return most


@settings(max_examples=100, deadline=None)
@given(videos(), st.booleans(), st.booleans())
def test_a_plan_holds_as_many_frames_as_running_it_shows(video, is_in_time_order, is_batched):
    name, arguments = video
    plan = FramePlan.of(made_by(name, **arguments), arguments["num_frames"], observed=arguments["observed"])
    runs = plan.batches() if is_batched else [[number] for number in range(len(plan.windows))]
    expected = kept_at_once(plan, runs, is_in_time_order)
    assert plan.num_kept(is_in_time_order=is_in_time_order, is_batched=is_batched) == expected


def test_autoregression_holds_one_window_and_a_hierarchy_given_out_in_order_little_more():
    assert plan_of("autoreg", 300, range(36), 20, 10).num_kept(is_in_time_order=True) == 20
    assert plan_of("hierarchy-2", 300, range(36), 20, 10).num_kept(is_in_time_order=True) == 24


def test_a_plan_describes_itself_in_a_few_lines():
    text = plan_of("hierarchy-2", 300, range(36), 20, 10).describe()
    assert text.splitlines() == [
        "300 frames: 36 given, 264 made by 27 windows",
        "windows of at most 20 frames: up to 10 observed, up to 10 latent",
        "longest chain: 27 windows, each of which waits for the one before",
        "windows that can run at once: 1 at most; 27 batches of equal shape",
        "frames held at once: 24",
    ]
    held = plan_of("autoreg", 60, [*range(6), *range(50, 60)], 20, 10).describe().splitlines()[-1]
    assert held == "frames held at once: 25, or 30 to give them out in time order"


@pytest.mark.parametrize(
    "windows, message",
    [
        ([Window((0, 3), (1,)), Window((), (2, 3))], r"Window 0 reads frames \[3\], which are neither given nor made"),
        ([Window((0,), (0, 1)), Window((), (2, 3))], r"Window 0 makes frames \[0\], which are there already"),
        ([Window((0,), (1, 1)), Window((), (2, 3))], r"Window 0 makes frames \[1\], which are there already"),
        ([Window((0,), (1, 2)), Window((), (2, 3))], r"Window 1 makes frames \[2\], which are there already"),
        ([Window((0,), (1, 2))], r"No window makes frames \[3\], and they are not given"),
        ([Window((0,), (1, 2)), Window((), (3, 4))], r"`num_frames` .*: 4 frames have no \[4\]"),
        ([Window((0,), ()), Window((), (1, 2, 3))], "Window 0 makes no frame"),
    ],
)
def test_a_plan_that_does_not_make_the_video_is_refused(windows, message):
    with pytest.raises(ValueError, match=message):
        FramePlan.of(windows, 4, observed=[0])


def test_mcvds_blocks_are_planned_too():
    plan = FramePlan.of(blocks(9, observed=range(2), step=3, num_past_frames=2), 9, observed=range(2))
    assert plan.waves() == [[0], [1], [2]]


def test_examples_of_the_docstrings_are_true():
    for module, least in ((frame_schedules, 3), (frame_plans, 3)):
        results = doctest.testmod(module, extraglobs={"frame_schedule": frame_schedules.frame_schedule})
        assert results.attempted >= least and results.failed == 0
