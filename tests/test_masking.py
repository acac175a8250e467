"""How each method draws the roles of frames: as often as published, and each clip by itself."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mcvd_diffusers.masking import (
    FrameRole,
    fdm_roles,
    joint_segments,
    ramvid_roles,
    tasks_of_config,
    vdm_roles,
)
from mcvd_diffusers.training import gather_window


ABSENT, OBSERVED, LATENT = FrameRole


def one(seed=0):
    return torch.Generator().manual_seed(seed)


def each(count, start=0):
    return [one(start + number) for number in range(count)]


# --------------------------------------------------------------------------------------------------------------------
# RaMViD


def test_ram_1_masks_are_as_often_and_as_large_as_published():
    roles = ramvid_roles(20_000, num_frames=20, max_observed=4, drop_observed=0.25, generator=one())
    assert roles.shape == (20_000, 20) and roles.dtype == torch.long
    assert ((roles == OBSERVED) | (roles == LATENT)).all()
    counts = torch.bincount((roles == OBSERVED).sum(dim=1), minlength=5)
    assert len(counts) == 5 and counts[0] / 20_000 == pytest.approx(0.25, abs=0.01)
    expected = counts[1:].sum() / 4
    chi_square = float(((counts[1:] - expected) ** 2 / expected).sum())
    assert chi_square < 16.27  # of 3 degrees of freedom: more has a probability of 0.001
    shares = (roles == OBSERVED).double().mean(dim=0)  # of each frame: 0.75 * 2.5 / 20
    assert ((shares - 0.09375).abs() < 4 * (0.09375 * 0.90625 / 20_000) ** 0.5).all()


@given(
    num_frames=st.integers(2, 9),
    most=st.integers(1, 8),
    drop=st.sampled_from([0.0, 0.4, 1.0]),
    seed=st.integers(0, 99),
)
def test_ramvid_gives_one_to_so_many_frames_or_none(num_frames, most, drop, seed):
    most = min(most, num_frames - 1)
    roles = ramvid_roles(16, num_frames=num_frames, max_observed=most, drop_observed=drop, generator=one(seed))
    num_given = (roles == OBSERVED).sum(dim=1)
    assert num_given.max() <= most
    if drop != 0.4:
        assert ((num_given == 0) == bool(drop)).all()


def test_ramvid_may_give_frames_of_a_range_only():
    options = {"num_frames": 9, "max_observed": 3, "drop_observed": 0.0}
    roles = ramvid_roles(512, **options, observed_range=(2, 6), generator=one())
    share = (roles == OBSERVED).double().mean(dim=0)
    assert (share[2:6] > 0.4).all() and share[:2].sum() == share[6:].sum() == 0  # 2 of 4 on average
    every = ramvid_roles(512, **options, observed_range=(0, 9), generator=one())
    assert torch.equal(every, ramvid_roles(512, **options, generator=one()))


def test_ramvid_defaults_are_the_papers():
    drawn = [
        ramvid_roles(8, num_frames=20, generator=one(), **options)
        for options in ({}, {"max_observed": 4, "drop_observed": 0.25})
    ]
    assert torch.equal(*drawn)


# --------------------------------------------------------------------------------------------------------------------
# FDM


def test_fdm_6_masks_are_as_large_as_the_originals():
    """Those of 20 of 300 frames. (3000 of the original's had 2.20, 12.69 and 0.71.)"""
    roles = fdm_roles(20_000, num_frames=300, max_frames=20, generator=one())
    assert roles.shape == (20_000, 300)
    num_observed, num_latent = ((roles == role).sum(dim=1).double() for role in (OBSERVED, LATENT))
    assert num_observed.mean() == pytest.approx(2.20, abs=0.15)
    assert num_latent.mean() == pytest.approx(12.7, abs=0.25)
    assert (num_observed == 0).double().mean() == pytest.approx(0.71, abs=0.02)
    assert (num_observed + num_latent).max() == 20 and num_latent.min() >= 1


@given(num_frames=st.integers(1, 40), most=st.integers(1, 40), seed=st.integers(0, 999))
def test_fdm_gives_roles_to_at_most_so_many_frames_and_always_learns_some(num_frames, most, seed):
    most = min(most, num_frames)
    roles = fdm_roles(8, num_frames=num_frames, max_frames=most, generator=one(seed))
    assert roles.shape == (8, num_frames)
    assert ((roles != ABSENT).sum(dim=1) <= most).all() and (roles == LATENT).any(dim=1).all()


def test_fdm_groups_are_near_and_far():
    roles = fdm_roles(4000, num_frames=300, max_frames=20, generator=one())
    spans = [int(where[-1] - where[0]) for where in ((clip != ABSENT).nonzero()[:, 0] for clip in roles)]
    shares = torch.tensor(spans).double().quantile(torch.tensor([0.1, 0.9]).double())
    assert shares[0] < 60 and shares[1] > 240


# --------------------------------------------------------------------------------------------------------------------
# VDM


def test_vdm_learns_from_all_frames():
    assert torch.equal(vdm_roles(3, num_frames=4, num_images=2), torch.full((3, 6), LATENT))
    assert vdm_roles(2, num_frames=5).shape == (2, 5)


def test_frames_of_the_clip_see_one_another_and_each_image_sees_itself():
    segments = joint_segments(2, num_frames=3, num_images=4)
    assert segments.tolist() == [[0, 0, 0, 1, 2, 3, 4]] * 2 and segments.dtype == torch.long
    assert joint_segments(1, num_frames=2, num_images=0).tolist() == [[0, 0]]


# --------------------------------------------------------------------------------------------------------------------
# All


DRAW = {
    "ramvid": lambda count, generator: ramvid_roles(count, num_frames=12, generator=generator),
    "fdm": lambda count, generator: fdm_roles(count, num_frames=40, max_frames=10, generator=generator),
}


@pytest.mark.parametrize("method", DRAW)
def test_roles_of_a_clip_do_not_depend_on_the_batch(method):
    draw = DRAW[method]
    assert torch.equal(draw(64, each(64))[:10], draw(10, each(10)))
    assert torch.equal(draw(64, each(64))[10:], draw(54, each(54, start=10)))
    assert torch.equal(draw(64, one())[:10], draw(10, one()))
    assert not torch.equal(draw(64, one()), draw(64, one(1)))
    state = torch.get_rng_state()
    draw(4, one())
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: ramvid_roles(1, num_frames=4, drop_observed=1.5), "`drop_observed` is a probability, got 1.5"),
        (lambda: ramvid_roles(1, num_frames=4), r"`max_observed` must be from 1 to `num_frames` - 1 \(3\).*got 4"),
        (lambda: ramvid_roles(1, num_frames=4, max_observed=0), "`max_observed` must be .* got 0"),
        (lambda: ramvid_roles(1, num_frames=9, observed_range=5), "`observed_range` must be two numbers.* got 5"),
        (lambda: ramvid_roles(1, num_frames=9, observed_range=(0.0, 6.0)), "`observed_range` must be two numbers"),
        (
            lambda: ramvid_roles(1, num_frames=9, observed_range=(3, 6)),
            r"`observed_range` must be two numbers from 0 to 9, with `max_observed` \(4\) .* got \(3, 6\)",
        ),
        (
            lambda: fdm_roles(1, num_frames=4, max_frames=5),
            r"`max_frames` must be from 1 to `num_frames` \(4\), got 5",
        ),
        (lambda: fdm_roles(1, num_frames=4, max_frames=0), "`max_frames` must be .* got 0"),
        (lambda: vdm_roles(1, num_frames=0), "`num_frames` must be at least 1, got 0"),
        (lambda: joint_segments(1, num_frames=1, num_images=-1), "`num_images` must be at least 0, got -1"),
    ],
)
def test_what_cannot_be_drawn_is_refused(draw, message):
    with pytest.raises(ValueError, match=message):
        draw()


@pytest.mark.parametrize(
    ("drop_observed", "tasks"),
    [
        (0.0, ["prediction", "past prediction", "interpolation"]),
        (0.25, ["prediction", "past prediction", "interpolation", "generation"]),
        (1.0, ["generation"]),
    ],
)
def test_a_network_of_any_frames_was_trained_for_what_it_was_given(drop_observed, tasks):
    assert tasks_of_config({"drop_observed": drop_observed, "max_frames": 8}) == tasks
    assert tasks_of_config({"drop_observed": drop_observed, "max_frames": 8, "num_context_frames": 2}) == tasks
    of_one = [task for task in tasks if task != "interpolation"]
    assert tasks_of_config({"drop_observed": drop_observed, "max_frames": 8, "num_context_frames": 1}) == of_one


def test_fdm_6_no_padding_frame_ever_bears_a_role_of_the_clip():
    """Each frame of a clip says whose it is, and which: 17 % of the windows of FDM's code take one for another."""
    generator, batch_size, length, slots = torch.Generator().manual_seed(0), 256, 40, 12
    video = (1000 * torch.arange(batch_size)[:, None] + torch.arange(length)).float()[..., None, None, None]
    roles = fdm_roles(batch_size, num_frames=length, max_frames=slots, generator=generator)
    for is_filled in (False, True):
        window = gather_window(video, roles, slots, fill_with_other_clips=is_filled, generator=generator)
        owner, position = window.video.flatten(1).long() // 1000, window.video.flatten(1).long() % 1000
        is_padding = window.segment_ids == 1 if is_filled else window.roles == ABSENT
        clips = torch.arange(batch_size)[:, None].expand_as(owner)
        assert (owner[~is_padding] == clips[~is_padding]).all()
        assert (position[~is_padding] == window.frame_indices[~is_padding]).all()
        assert torch.equal(is_padding.sum(dim=1), slots - (roles != ABSENT).sum(dim=1)) and is_padding.any()
        if is_filled:  # of another clip, and one more sample of generation: nothing in it is given
            assert (owner[is_padding] != clips[is_padding]).all() and (window.roles[is_padding] == LATENT).all()
