"""Roles and loss in training: parity with the original's steps, and what keyed randomness promises."""

import pytest
import torch
from diffusers import DDPMScheduler, EDMEulerScheduler
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from hypothesis import given
from hypothesis import strategies as st

from mcvd_diffusers import FrameRole, MCVDUNet2DModel, denoising_loss, mcvd_roles, sample_generators
from mcvd_diffusers.masking import block_roles, fdm_roles, ramvid_roles
from mcvd_diffusers.randomness import keyed_seed, rand_tensor
from mcvd_diffusers.training import DROPOUT_STREAM, SAMPLE_STREAM, gather_window
from original_mcvd import (
    CASES,
    build_unet,
    load_reference,
    load_rule_weights,
    original_state_dict,
    rule_normal,
    rule_uniform,
)
from original_space_time import load_network, roles_of
from original_space_time import load_reference as load_space_time


PARTS = {"num_past_frames": 2, "num_frames": 3, "num_future_frames": 1}


def generators(count, start=0):
    return [torch.Generator().manual_seed(start + i) for i in range(count)]


# --------------------------------------------------------------------------------------------------------------------
# Parity


def test_against_mcvd_training_steps():
    """Four updates of the original: loss, gradient norm, parameters and their average."""
    case, golden = CASES["train_steps"], load_reference("train_steps")
    unet = load_rule_weights(build_unet(case["config"])).train()
    scheduler = DDPMScheduler(1000, beta_start=1e-4, beta_end=0.02, beta_schedule="linear")
    optimizer = torch.optim.AdamW(unet.parameters(), lr=2e-4, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)
    warmup = get_scheduler("constant_with_warmup", optimizer, num_warmup_steps=2)
    ema = EMAModel(unet.parameters(), decay=0.999, min_decay=0.999, update_after_step=-1, foreach=True)

    for number, step in enumerate(case["steps"]):
        video = rule_uniform(f"train/video{number}", (4, 5, 1, 16, 16))
        kept = [(rule_uniform(f"train/mask{number}_{j}", (4,)) + 1) / 2 > 0.5 for j in range(2)]
        assert [k.int().tolist() for k in kept] == [step["keep_past"], step["keep_future"]]
        roles = block_roles(
            4, num_past_frames=2, num_frames=2, num_future_frames=1, is_past_kept=kept[0], is_future_kept=kept[1]
        )
        noise = torch.zeros_like(video)
        noise[:, 2:4] = rule_normal(f"train/z{number}", (4, 2, 16, 16))[:, :, None]
        if number == 0:
            torch.testing.assert_close(video[:, 2:4, 0], golden["x0"], atol=1e-6, rtol=0)
        timesteps = 999 - torch.tensor(step["labels"])
        loss = denoising_loss(unet, scheduler, video, roles, timesteps=timesteps, noise=noise, reduction="sum").mean()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(step["lr_used"])
        optimizer.step()
        optimizer.zero_grad()
        warmup.step()
        ema.step(unet.parameters())
        assert loss.item() == pytest.approx(step["loss"], rel=2e-6)
        assert norm.item() == pytest.approx(step["grad_norm"], rel=1e-5)

    def check(prefix):
        state = original_state_dict(unet)
        for name in golden:
            if name.startswith(prefix):
                # Adam divides by the root of the squared gradient: where that is tiny, rounding shows in the update,
                # but never by more than a hundredth of the learning rate of 2e-4.
                torch.testing.assert_close(state[name.removeprefix(prefix)].detach(), golden[name], atol=2e-6, rtol=0)

    check("param__")
    ema.copy_to(unet.parameters())
    check("ema__")


LINEAR = {"beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"}


def gradient_norm(network, losses):
    losses.mean().backward()
    return torch.cat([x.grad.flatten() for x in network.parameters() if x.grad is not None]).double().norm().item()


@pytest.mark.parametrize("case", ["ramvid_gray", "ramvid_rgb"])
def test_against_ramvid_loss(case):
    """The mean over the frames that were not given."""
    network, golden = load_network(case), load_space_time(case)
    roles = torch.where(golden["loss_observed"] > 0, FrameRole.OBSERVED, FrameRole.LATENT)
    video, noise = golden["loss_x0"].transpose(1, 2), golden["loss_noise"].transpose(1, 2)
    given = {"timesteps": golden["loss_t"], "noise": noise}
    losses = denoising_loss(network, DDPMScheduler(1000, **LINEAR), video, roles, **given)
    torch.testing.assert_close(losses, golden["loss"], atol=5e-6, rtol=0)
    assert gradient_norm(network, losses) == pytest.approx(golden["loss_grad_norm"].item(), rel=1e-5)
    nothing = torch.full_like(roles, FrameRole.LATENT)
    losses = denoising_loss(network, DDPMScheduler(1000, **LINEAR), video, nothing, **given)
    torch.testing.assert_close(losses, golden["loss_no_observed"], atol=5e-6, rtol=0)
    losses = denoising_loss(network, DDPMScheduler(1000, **LINEAR), video, roles, **given, learns_observed=True)
    torch.testing.assert_close(losses, golden["loss_not_excluded"], atol=5e-6, rtol=0)
    with pytest.raises(ValueError, match="must be 'epsilon', got 'v_prediction'"):
        scheduler = DDPMScheduler(1000, prediction_type="v_prediction")
        denoising_loss(network, scheduler, video, roles, **given, learns_observed=True)


@pytest.mark.parametrize("case", ["fdm_nopad", "fdm_pad"])
def test_against_fdm_loss(case):
    """The sum over the frames that were not given, divided by all; of padding, which its network reads, without what it adds."""
    network, golden, scheduler = load_network(case), load_space_time(case), DDPMScheduler(1000, **LINEAR)
    roles, video = roles_of(case), golden["x0"]
    is_absent = (roles == FrameRole.ABSENT)[:, :, None, None, None]
    video = torch.where(is_absent, scheduler.add_noise(video, golden["loss_noise"], golden["loss_t"]), video)
    losses = denoising_loss(
        network,
        scheduler,
        video,
        roles,
        timesteps=golden["loss_t"],
        noise=golden["loss_noise"],
        frame_indices=golden["frame_indices"],
        reduction="window_mean",
    )
    expected = golden["loss" if case == "fdm_nopad" else "loss_latent_only"]
    torch.testing.assert_close(losses, expected, atol=5e-6, rtol=0)
    if case == "fdm_nopad":
        assert gradient_norm(network, losses) == pytest.approx(golden["loss_grad_norm"].item(), rel=1e-5)


@pytest.mark.parametrize("case", ["vdm_rgb", "vdm_gray_long"])
@pytest.mark.parametrize("loss_type", ["l1", "l2"])
def test_against_the_loss_of_vdms_port(case, loss_type):
    """All frames, and clips whose frames are images each by itself."""
    network, golden = load_network(case), load_space_time(case)
    video, noise = 2 * golden["loss_video"].transpose(1, 2) - 1, golden["loss_noise"].transpose(1, 2)
    roles = torch.full(video.shape[:2], FrameRole.LATENT)
    scheduler = DDPMScheduler(1000, beta_schedule="squaredcos_cap_v2")

    def loss(**options):
        return denoising_loss(
            network, scheduler, video, roles, timesteps=golden["loss_t"], noise=noise, loss_type=loss_type, **options
        )

    losses = loss()
    assert losses.mean().item() == pytest.approx(golden[f"loss_{loss_type}"].item(), abs=5e-6)
    assert gradient_norm(network, losses) == pytest.approx(golden[f"loss_{loss_type}_grad_norm"].item(), rel=1e-5)
    numbers = torch.arange(video.shape[1])
    segment_ids = torch.where(golden["focus_mixed"][:, None].bool(), numbers, 0)
    expected = golden[f"loss_{loss_type}_focus_mixed"].item()
    assert loss(segment_ids=segment_ids).mean().item() == pytest.approx(expected, abs=5e-6)


# --------------------------------------------------------------------------------------------------------------------
# Roles


@given(
    past=st.integers(0, 3),
    current=st.integers(1, 3),
    future=st.integers(0, 3),
    drop=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    batch_size=st.integers(1, 5),
)
def test_past_and_future_are_there_or_not_as_a_whole(past, current, future, drop, batch_size):
    roles = mcvd_roles(
        batch_size,
        num_past_frames=past,
        num_frames=current,
        num_future_frames=future,
        drop_past=drop[0],
        drop_future=drop[1],
    )
    assert roles.shape == (batch_size, past + current + future) and roles.dtype == torch.long
    assert (roles[:, past : past + current] == FrameRole.LATENT).all()
    for side, probability in ((roles[:, :past], drop[0]), (roles[:, past + current :], drop[1])):
        assert (side == side[:, :1]).all() and not (side == FrameRole.LATENT).any()
        if probability in (0, 1):
            assert (side == (FrameRole.ABSENT if probability else FrameRole.OBSERVED)).all()


def test_past_and_future_are_dropped_independently_and_as_often_as_asked():
    generator = torch.Generator().manual_seed(0)
    roles = mcvd_roles(20_000, **PARTS, drop_past=0.3, drop_future=0.6, generator=generator)
    past, future = roles[:, 0] == FrameRole.ABSENT, roles[:, -1] == FrameRole.ABSENT
    for share, expected in ((past, 0.3), (future, 0.6), (past & future, 0.18)):
        assert share.float().mean() == pytest.approx(expected, abs=0.015)  # 4 standard errors


def test_role_of_a_sample_does_not_depend_on_the_batch():
    def draw(count, generator):
        return mcvd_roles(count, **PARTS, drop_past=0.5, drop_future=0.5, generator=generator)

    assert torch.equal(draw(64, generators(64))[:10], draw(10, generators(10)))
    one = torch.Generator()
    assert torch.equal(draw(64, one.manual_seed(0))[:10], draw(10, one.manual_seed(0)))


@pytest.mark.parametrize("name", ["drop_past", "drop_future"])
@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan")])
def test_bad_probability_is_refused(name, value):
    with pytest.raises(ValueError, match=f"`{name}` is a probability"):
        mcvd_roles(2, **PARTS, **{"drop_past": 0.5, "drop_future": 0.5, name: value})


def test_list_of_generators_must_fit_the_batch():
    with pytest.raises(ValueError, match="`generator` has 2 entries for a batch of 3"):
        rand_tensor((3, 2), generators(2))


# --------------------------------------------------------------------------------------------------------------------
# Loss


def tiny_unet():
    torch.manual_seed(0)
    unet = MCVDUNet2DModel(
        sample_size=8,
        in_channels=1,
        **PARTS,
        block_out_channels=(8, 8),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        layers_per_block=1,
    )
    with torch.no_grad():
        for parameter in unet.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return unet


def batch(count=3):
    video = torch.rand(count, 6, 1, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1
    return video, mcvd_roles(count, **PARTS, drop_past=0.5, drop_future=0.5, generator=generators(count))


class Exact(torch.nn.Module):
    """A network that knows the answer, off by one at LATENT frames and by a million elsewhere."""

    def __init__(self, answer, roles):
        super().__init__()
        self.answer = answer + torch.where((roles == FrameRole.LATENT)[:, :, None, None, None], 1.0, 1e6)

    def forward(self, sample, timestep, roles, return_dict=True):
        return (self.answer,)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize(
    "loss_type, reduction, expected",
    [("l2", "mean", 1), ("l1", "mean", 1), ("l2", "sum", 96), ("l1", "sum", 192), ("l2", "window_mean", 0.5)],
)
def test_loss_is_the_error_at_latent_frames(prediction_type, loss_type, reduction, expected):
    scheduler = DDPMScheduler(prediction_type=prediction_type)
    video, roles = batch()
    noise, timesteps = torch.randn_like(video), torch.tensor([0, 500, 999])
    answer = {
        "epsilon": noise,
        "v_prediction": scheduler.get_velocity(video, noise, timesteps),
        "sample": video,
    }[prediction_type]
    loss = denoising_loss(
        Exact(answer, roles),
        scheduler,
        video,
        roles,
        noise=noise,
        timesteps=timesteps,
        loss_type=loss_type,
        reduction=reduction,
    )
    torch.testing.assert_close(loss, torch.full((3,), float(expected)), atol=1e-3, rtol=1e-5)


def test_ram_2_given_frames_have_no_part_in_the_loss_and_their_number_does_not_scale_it():
    video = torch.rand(2, 8, 1, 4, 4, generator=torch.Generator().manual_seed(1)) * 2 - 1
    roles = ramvid_roles(2, num_frames=8, max_observed=4, drop_observed=0, generator=generators(2))
    scheduler, noise = DDPMScheduler(), torch.randn_like(video)
    answer = (noise + 0.5).requires_grad_()

    class Fixed(torch.nn.Module):
        def forward(self, sample, timestep, roles, return_dict=True):
            return (answer,)

    def loss(roles):
        return denoising_loss(
            Fixed(), scheduler, video, roles, noise=noise, timesteps=torch.tensor([10, 900]), generator=generators(2)
        )

    losses = loss(roles)
    losses.sum().backward()
    is_given = roles == FrameRole.OBSERVED
    assert is_given.any() and (answer.grad[is_given] == 0).all() and (answer.grad[~is_given] != 0).all()
    for num_given in range(8):
        roles = torch.full((2, 8), FrameRole.LATENT)
        roles[:, :num_given] = FrameRole.OBSERVED
        torch.testing.assert_close(loss(roles).detach(), torch.full((2,), 0.25))


def test_places_are_passed_on_only_if_there_are_any():
    seen = []

    class Spy(torch.nn.Module):
        def forward(self, sample, timestep, roles, return_dict=True, **places):
            seen.append(places)
            return (torch.zeros_like(sample),)

    video, roles = batch()
    denoising_loss(Spy(), DDPMScheduler(), video, roles)
    denoising_loss(Spy(), DDPMScheduler(), video, roles, frame_indices=roles + 7, segment_ids=roles)
    assert seen[0] == {} and set(seen[1]) == {"frame_indices", "segment_ids"}
    assert torch.equal(seen[1]["frame_indices"], roles + 7) and torch.equal(seen[1]["segment_ids"], roles)


def test_network_gets_clean_observed_and_noisy_latent_frames():
    video, roles = batch()
    scheduler = DDPMScheduler()
    seen = []

    class Spy(torch.nn.Module):
        def forward(self, sample, timestep, roles, return_dict=True):
            seen.append((sample, timestep))
            return (torch.zeros_like(sample),)

    noise, timesteps = torch.randn_like(video), torch.tensor([10, 500, 999])
    denoising_loss(Spy(), scheduler, video, roles, noise=noise, timesteps=timesteps)
    sample, timestep = seen[0]
    is_latent = roles == FrameRole.LATENT
    assert torch.equal(sample[~is_latent], video[~is_latent]) and torch.equal(timestep, timesteps)
    assert torch.equal(sample[is_latent], scheduler.add_noise(video, noise, timesteps)[is_latent])


def test_loss_of_a_sample_does_not_depend_on_the_batch():
    unet, scheduler = tiny_unet(), DDPMScheduler()
    video, roles = batch(4)
    both = denoising_loss(unet, scheduler, video, roles, generator=generators(4))
    for i in range(4):
        single = denoising_loss(unet, scheduler, video[i : i + 1], roles[i : i + 1], generator=generators(1, start=i))
        torch.testing.assert_close(both[i : i + 1], single, atol=1e-6, rtol=1e-5)


def test_timesteps_are_drawn_from_the_whole_range():
    seen = []

    class Spy(torch.nn.Module):
        def forward(self, sample, timestep, roles, return_dict=True):
            seen.append(timestep)
            return (torch.zeros_like(sample),)

    video, roles = torch.zeros(4000, 6, 1, 1, 1), torch.full((4000, 6), FrameRole.LATENT)
    denoising_loss(Spy(), DDPMScheduler(20), video, roles, generator=torch.Generator().manual_seed(0))
    counts = torch.bincount(seen[0], minlength=20)
    assert len(counts) == 20 and counts.min() > 140 and counts.max() < 260  # 200 expected, 4 standard errors


def test_clip_without_latent_frames_has_no_loss():
    video, roles = batch()
    roles[1] = FrameRole.OBSERVED
    loss = denoising_loss(tiny_unet(), DDPMScheduler(), video, roles, generator=generators(3))
    assert loss[1] == 0 and loss[0] > 0


@pytest.mark.parametrize(
    "arguments, scheduler, message",
    [
        ({"loss_type": "huber"}, {}, '`loss_type` must be "l2" or "l1"'),
        ({"reduction": "none"}, {}, '`reduction` must be "mean", "sum" or "window_mean"'),
    ],
)
def test_unknown_loss_is_refused(arguments, scheduler, message):
    video, roles = batch()
    with pytest.raises(ValueError, match=message):
        denoising_loss(tiny_unet(), DDPMScheduler(**scheduler), video, roles, **arguments)


def test_scheduler_that_training_does_not_know_is_refused():
    video, roles = batch()
    scheduler = EDMEulerScheduler(prediction_type="v_prediction")
    with pytest.raises(ValueError, match="`noise_scheduler`: EDMEulerScheduler with prediction_type='v_prediction'"):
        denoising_loss(tiny_unet(), scheduler, video, roles)


# --------------------------------------------------------------------------------------------------------------------
# Windows of long clips


def numbered_clips(count, num_frames):
    """Each pixel says which clip and frame it is of: 100 * clip + frame."""
    numbers = 100 * torch.arange(count)[:, None] + torch.arange(num_frames)
    return numbers[:, :, None, None, None].expand(-1, -1, 1, 2, 2).float()


@pytest.mark.parametrize("is_filled", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_a_window_has_the_frames_with_a_role_in_order_and_nothing_else_of_the_clip(is_filled, seed):
    roles = fdm_roles(6, num_frames=30, max_frames=8, generator=generators(6, start=10 * seed))
    is_padding = torch.zeros(6, 30, dtype=torch.bool)
    is_padding[2, 12:] = True
    roles = roles.masked_fill(is_padding, FrameRole.ABSENT)
    drawn = gather_window(
        numbered_clips(6, 30),
        roles,
        8,
        fill_with_other_clips=is_filled,
        is_padding=is_padding,
        generator=generators(6),
    )
    assert drawn.video.shape == (6, 8, 1, 2, 2) and drawn.roles.shape == drawn.frame_indices.shape == (6, 8)
    for clip in range(6):
        used = (roles[clip] != FrameRole.ABSENT).nonzero()[:, 0]
        count = len(used)
        assert torch.equal(drawn.frame_indices[clip, :count], used)
        assert torch.equal(drawn.roles[clip, :count], roles[clip, used])
        assert torch.equal(drawn.video[clip, :count, 0, 0, 0], 100.0 * clip + used)
        rest = drawn.video[clip, count:, 0, 0, 0]
        if not is_filled:
            assert (drawn.roles[clip, count:] == FrameRole.ABSENT).all() and drawn.segment_ids is None
            continue
        # Frames of the next clip: never given, never of the first segment, in order, none twice, and no padding.
        assert (drawn.roles[clip, count:] == FrameRole.LATENT).all()
        assert drawn.segment_ids[clip].tolist() == [0] * count + [1] * (8 - count)
        other = (clip + 1) % 6
        assert torch.equal(rest, 100.0 * other + drawn.frame_indices[clip, count:])
        assert (drawn.frame_indices[clip, count:].diff() > 0).all()
        assert other != 2 or (drawn.frame_indices[clip, count:] < 12).all()


def test_frames_of_a_shorter_clip_do_not_fill_what_they_are_too_few_for():
    roles = torch.zeros(2, 6, dtype=torch.long)
    roles[:, 0] = FrameRole.LATENT
    is_padding = torch.tensor([[False] * 6, [False, False] + [True] * 4])
    drawn = gather_window(
        numbered_clips(2, 6), roles, 5, fill_with_other_clips=True, is_padding=is_padding, generator=generators(2)
    )
    assert drawn.roles.tolist() == [[2, 2, 2, 0, 0], [2, 2, 2, 2, 2]]
    assert drawn.segment_ids.tolist() == [[0, 1, 1, 0, 0], [0, 1, 1, 1, 1]]


def test_more_frames_than_slots_are_refused():
    roles = torch.full((1, 6), FrameRole.LATENT)
    with pytest.raises(ValueError, match=r"`roles` must leave all but `max_frames` \(4\) frames ABSENT, got 6"):
        gather_window(numbered_clips(1, 6), roles, 4)
    with pytest.raises(ValueError, match=r"`max_frames` must be from 1 to the frames of the clips \(6\), got 7"):
        gather_window(numbered_clips(1, 6), roles, 7)


# --------------------------------------------------------------------------------------------------------------------
# Keyed randomness


def test_random_stream_of_a_sample_is_its_own():
    first = [torch.randn(4, generator=g) for g in sample_generators(7, range(5))]
    again = [torch.randn(4, generator=g) for g in sample_generators(7, range(3, 5))]
    other = [torch.randn(4, generator=g) for g in sample_generators(8, range(5))]
    assert torch.equal(first[3], again[0]) and torch.equal(first[4], again[1])
    assert not torch.equal(first[0], first[1]) and not torch.equal(first[0], other[0])


def test_keys_of_different_purpose_or_length_are_different_streams():
    keys = [
        (SAMPLE_STREAM, 5),
        (DROPOUT_STREAM, 5),
        (DROPOUT_STREAM, 5, 0),
        (DROPOUT_STREAM, 5, 1),
        (SAMPLE_STREAM, 5, 0),
    ]
    assert len({keyed_seed(7, *key) for key in keys}) == len(keys)
    # A generator on the CPU reads 32 bits of its seed.
    assert len({keyed_seed(7, *key) % 2**32 for key in keys}) == len(keys)
    assert keyed_seed(7, 1, 2) == keyed_seed(7, 1, 2) != keyed_seed(8, 1, 2)
