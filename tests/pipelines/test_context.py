"""Pipelines with a context encoder: what it reads and in which order, what fits together, and what is refused before any work."""

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler

from contract_rows import PIPELINES, clip_memory
from mcvd_diffusers import MCVDPipeline
from mcvd_diffusers.frame_schedules import Window
from mcvd_diffusers.models.context import ContextOutput
from mcvd_diffusers.pipelines.carried_context import CarriedContext


ROWS = {row.network.name: row for row in PIPELINES if row.make().context_encoder is not None}
each_kind = pytest.mark.parametrize("kind", ROWS)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def frames(*shape, seed=1):
    return torch.rand(*shape, generator=seeded(seed))


def sample(pipe, **arguments):
    return pipe(**{"num_inference_steps": 2, "output_type": "pt", "generator": seeded(), **arguments}).frames


def refused(pipe, says, **arguments):
    """A call is refused by name, and neither network was asked for anything."""
    calls = []
    for network in (pipe.unet, pipe.context_encoder):
        if isinstance(network, torch.nn.Module):
            network.register_forward_pre_hook(lambda *args: calls.append(1))
    with pytest.raises(ValueError, match=says) as error:
        sample(pipe, **arguments)
    assert not calls and len(str(error.value)) < 400


def read_by(pipe):
    """How many frames each call of the encoder reads, of how many videos, from now on."""
    read, forward = [], pipe.context_encoder.forward

    def spy(frames, state=None, **options):
        read.append(tuple(frames.shape[:2]))
        return forward(frames, state, **options)

    pipe.context_encoder.forward = spy
    return read


# --------------------------------------------------------------------------------------------------------------------
# Network and encoder


@each_kind
def test_an_encoder_that_was_taken_away_or_swapped_is_noticed_before_any_work(kind):
    past = frames(1, 2, 1, 8, 8)
    pipe = ROWS[kind].make()
    pipe.context_encoder = None
    refused(pipe, "`context_encoder` must be given: this network was trained with one", past_frames=past)
    for other in set(ROWS) - {kind}:
        pipe = ROWS[kind].make()
        pipe.context_encoder = ROWS[other].make().context_encoder
        refused(pipe, "`context_encoder` .*they were not trained together", past_frames=past)
    pipe = ROWS[kind].make()
    pipe.context_encoder = torch.nn.Linear(1, 1)
    refused(pipe, "`context_encoder` must be a context encoder, got a Linear", past_frames=past)
    plain = PIPELINES[0].make()
    plain.context_encoder = ROWS[kind].make().context_encoder
    refused(plain, "`context_encoder` .*they were not trained together", past_frames=past)


def test_a_memory_of_other_clips_than_those_of_the_network_is_refused():
    for kind, num_frames in (("lgcvd", 4), ("mcvd-memory", 4)):
        pipe = ROWS[kind].make()
        assert pipe.context_encoder.clip_frames == num_frames
        pipe.context_encoder.register_to_config(max_frames=num_frames + 1)
        refused(
            pipe,
            f"`context_encoder` reads clips of 5 frames, and those of this network have {num_frames}",
            num_frames=2,
        )


def test_a_residual_that_a_scheduler_would_clip_is_told(caplog):
    pipe = ROWS["mcvd-residual"].make()
    for options, is_told in (
        ({"clip_sample": True, "clip_sample_range": 1.0}, True),
        ({"clip_sample": True, "clip_sample_range": 2.0}, False),
        ({"clip_sample": False}, False),
    ):
        pipe.scheduler = type(pipe.scheduler).from_config({**pipe.scheduler.config, **options})
        caplog.clear()
        sample(pipe, past_frames=frames(1, 2, 1, 8, 8), num_frames=2)
        assert ("`from_config(pipe.scheduler.config, clip_sample_range=2)`" in caplog.text) == is_told
    # A scheduler that does not clip carries what a former one did.
    config = {**pipe.scheduler.config, "clip_sample": True, "clip_sample_range": 1.0}
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(config)
    sample(pipe, past_frames=frames(1, 2, 1, 8, 8), num_frames=2)
    assert pipe.scheduler.config.clip_sample is True and "clip_sample_range" not in caplog.text


def test_a_network_that_starts_blind_is_told_of_a_scheduler_that_keeps_nothing_within_range(caplog):
    pipe = ROWS["mcvd-residual"].make()
    pipe.unet.register_to_config(prediction_type="epsilon")
    noise = {"prediction_type": "epsilon", "beta_schedule": "squaredcos_cap_v2"}
    for scheduler, is_told in (
        (DPMSolverMultistepScheduler(**noise), True),
        (DPMSolverMultistepScheduler(**noise, lambda_min_clipped=-5.1), False),
        (DPMSolverMultistepScheduler(**noise, thresholding=True), False),
        (DPMSolverMultistepScheduler(prediction_type="epsilon"), False),
    ):
        pipe = MCVDPipeline(pipe.unet, scheduler, context_encoder=pipe.context_encoder)
        caplog.clear()
        sample(pipe, past_frames=frames(1, 2, 1, 8, 8), num_frames=2)
        assert ("errors there grow out of all bounds" in caplog.text) == is_told


def test_a_memory_of_another_depth_than_the_network_that_stands_beside_it_is_refused():
    pipe = ROWS["lgcvd"].make()
    deeper = clip_memory(block_out_channels=(8, 8, 16))
    with pytest.raises(
        ValueError, match="`context_encoder` makes maps of frames by 4 smaller, and the network reads 2"
    ):
        MCVDPipeline(pipe.unet, pipe.scheduler, context_encoder=deeper)
    # A network of blocks looks at maps of any size.
    memory = ROWS["mcvd-memory"].make()
    deeper = clip_memory(block_out_channels=(8, 8, 12), attention_head_dim=4)
    pipe = MCVDPipeline(memory.unet, memory.scheduler, context_encoder=deeper)
    assert sample(pipe, past_frames=frames(1, 2, 1, 8, 8), num_frames=3).isfinite().all()


@each_kind
@pytest.mark.parametrize("part", ["unet", "context_encoder"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_network_and_encoder_may_differ_in_precision(kind, part, dtype):
    pipe, past = ROWS[kind].make(), frames(2, 2, 1, 8, 8)
    expected = sample(pipe, past_frames=past, num_frames=3)
    getattr(pipe, part).to(dtype)
    torch.testing.assert_close(sample(pipe, past_frames=past, num_frames=3), expected, atol=0.05, rtol=0)


@each_kind
def test_an_encoder_whose_weights_are_broken_makes_no_video(kind):
    pipe = ROWS[kind].make()
    with torch.no_grad():
        for parameter in pipe.context_encoder.parameters():
            parameter.fill_(torch.nan)
    with pytest.raises(
        RuntimeError, match="values that are NaN or infinite: the weights of network or context encoder"
    ):
        sample(pipe, past_frames=frames(1, 2, 1, 8, 8))


# --------------------------------------------------------------------------------------------------------------------
# What is read


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"past_frames": [0], "future_frames": [1]}, "future_frames"),
        ({"future_frames": [0]}, "future_frames"),
        ({"observed_frames": [0, 1], "observed_positions": [0, 4]}, "observed_positions"),
        ({"observed_frames": [0, 1], "observed_positions": [2, 3]}, "observed_positions"),
    ],
    ids=["both sides", "after", "gap", "middle"],
)
def test_rvd_reads_what_was_and_says_so_of_anything_later(arguments, name):
    given = frames(2, 2, 1, 8, 8)
    arguments = {key: given[:, x] if "frames" in key else x for key, x in arguments.items()}
    says = f"`{name}`: this network knows of a frame what lies before it, so that given frames must be the first"
    refused(ROWS["rvd"].make(), says, **arguments, num_frames=4)


@pytest.mark.parametrize("num_given", [1, 2, 7, 40])
def test_rvd_reads_any_number_of_frames_before(num_given):
    pipe, given = ROWS["rvd"].make(), frames(1, num_given, 1, 8, 8)
    made = sample(pipe, past_frames=given, num_frames=2)
    order = torch.randperm(num_given, generator=seeded(3))
    scattered = {"observed_frames": given[:, order], "observed_positions": order.tolist()}
    assert torch.equal(sample(pipe, **scattered, num_frames=2), made)
    changed = given.clone()
    changed[:, 0] = 1 - changed[:, 0]
    assert not torch.equal(sample(pipe, past_frames=changed, num_frames=2), made)


def test_many_given_frames_are_read_in_parts():
    """What a recurrent network keeps of frames grows with their number, unless they are read a few at a time."""
    pipe, given = ROWS["rvd"].make(), frames(1, 150, 1, 8, 8)
    read = read_by(pipe)
    made = sample(pipe, past_frames=given, num_frames=1)
    assert [n for _, n in read] == [64, 64, 22]
    with torch.no_grad():
        whole = pipe.context_encoder(2 * given - 1).mean
        pipe.unet.register_forward_hook(lambda module, args, output: (torch.zeros_like(output[0]),))
    zero = sample(pipe, past_frames=given, num_frames=1, latents=torch.zeros(1, 1, 1, 8, 8))
    assert not torch.equal(made, zero)
    torch.testing.assert_close(2 * zero - 1, whole, atol=1e-5, rtol=0)


def test_mcvds_predictor_reads_the_past_of_a_block_alone():
    """As in training, however many frames are given."""
    pipe, given = ROWS["mcvd-residual"].make(), frames(1, 20, 1, 8, 8)
    read = read_by(pipe)
    made = sample(pipe, observed_frames=given, observed_positions=range(20), num_frames=5)
    assert [n for _, n in read] == [2] * 3
    assert torch.equal(sample(pipe, past_frames=given[:, -2:], num_frames=5), made)
    refused(pipe, "`past_frames` has 20 frames, this network reads at most 2", past_frames=given, num_frames=5)


@each_kind
@pytest.mark.parametrize("most", [1, 2])
def test_no_more_videos_than_asked_go_through_the_encoder_together(kind, most):
    pipe, past = ROWS[kind].make(), frames(2, 2 if kind == "mcvd-residual" else 6, 1, 8, 8)
    arguments = {"past_frames": past, "num_frames": 5, "ensemble_size": 2}
    expected = sample(pipe, **arguments)
    read = read_by(pipe)
    torch.testing.assert_close(sample(pipe, **arguments, max_batch_size=most), expected, atol=1e-5, rtol=0)
    assert read and {videos for videos, _ in read} == {most}


@each_kind
def test_an_encoder_for_which_memory_does_not_suffice_reads_fewer_videos(kind):
    pipe, past = ROWS[kind].make(), frames(5, 2 if kind == "mcvd-residual" else 6, 1, 8, 8)
    expected, forward = sample(pipe, past_frames=past, num_frames=5), pipe.context_encoder.forward

    def small(frames, state=None, **options):
        if len(frames) > 2:
            raise torch.OutOfMemoryError("a small device")
        return forward(frames, state, **options)

    pipe.context_encoder.forward = small
    torch.testing.assert_close(sample(pipe, past_frames=past, num_frames=5), expected, atol=1e-5, rtol=0)


def test_without_a_past_nothing_is_predicted_and_the_scale_stays():
    """As in the training of a network of blocks: the mean is 0 then, and what is left over is as large as ever."""
    made = {}
    for scale in (1.0, 0.5):
        pipe = ROWS["mcvd-residual"].make()
        pipe.context_encoder.register_to_config(scale=scale)
        made[scale] = sample(pipe, num_frames=2, output_type="latent")
    torch.testing.assert_close(made[0.5], made[1.0] / 2)


@each_kind
def test_members_of_an_ensemble_remember_their_own_frames(kind):
    pipe, past = ROWS[kind].make(), frames(2, 2, 1, 8, 8)
    generators = [seeded(0), seeded(1)]
    alone = sample(pipe, past_frames=past, num_frames=5, generator=generators)
    generators = [seeded(0), seeded(1)]
    made = sample(pipe, past_frames=past, num_frames=5, ensemble_size=3, generator=generators)
    torch.testing.assert_close(made[::3], alone, atol=1e-5, rtol=0)
    assert (made[0] - made[1]).abs().max() > 1e-2


@each_kind
def test_a_stream_of_any_length_keeps_a_few_frames(kind, monkeypatch):
    pipe, kept, before = ROWS[kind].make(), [], CarriedContext.before
    past, options = frames(1, 2, 1, 8, 8), {"num_inference_steps": 1, "output_type": "pt"}

    def spy(carried, *args):
        context = before(carried, *args)
        kept.append(len(carried._frames))
        return context

    monkeypatch.setattr(CarriedContext, "before", spy)
    stream = pipe.stream(past_frames=past, num_frames=10**12, generator=seeded(), **options)
    blocks = [next(stream) for _ in range(12)]
    assert max(kept[4:]) <= max(kept[:4]) <= 8
    whole = sample(pipe, past_frames=past, num_frames=sum(x.shape[1] for x in blocks), **options)
    torch.testing.assert_close(torch.cat(blocks, dim=1), whole, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["mcvd-concat", "lgcvd", "mcvd-memory", "mcvd-residual"])
@pytest.mark.parametrize("past", [0, 1])
def test_a_video_that_is_too_long_to_plan_is_refused_at_once(kind, past):
    """Windows that end at a given frame, or go backwards, are all known before the first."""
    row = {row.network.name: row for row in PIPELINES}[kind]
    given = {"past_frames": frames(1, 1, 1, 8, 8)} if past else {}
    says = "`num_frames`: a video of 1,000,000,00. frames is not planned ahead"
    refused(row.make(), says, **given, future_frames=frames(1, 1, 1, 8, 8), num_frames=10**9)


@each_kind
def test_windows_are_made_one_after_the_other_whatever_is_asked(kind):
    pipe, past = ROWS[kind].make(), frames(1, 2, 1, 8, 8)
    expected = sample(pipe, past_frames=past, num_frames=7)
    assert torch.equal(sample(pipe, past_frames=past, num_frames=7, max_parallel_windows=4), expected)


# --------------------------------------------------------------------------------------------------------------------
# A caller's own windows

ORDERED = {
    "lgcvd": [Window((0, 1), (2, 3)), Window((2, 3), (4, 5))],
    "rvd": [Window((), (x,)) for x in range(2, 6)],
    "mcvd-memory": [Window((0, 1), (2, 3)), Window((2, 3), (4, 5))],
    "mcvd-residual": [Window((0, 1), (2, 3)), Window((2, 3), (4, 5))],
}
BACK = {
    "lgcvd": [Window((0, 1), (2,)), Window((2,), (4, 5)), Window((2, 4), (3,))],
    "rvd": [Window((), (2,)), Window((), (4,)), Window((), (3,)), Window((), (5,))],
    "mcvd-memory": [Window((0, 1), (2,)), Window((2,), (4, 5)), Window((1, 2), (3,))],
    "mcvd-residual": [Window((0, 1), (2,)), Window((2,), (4, 5)), Window((1, 2), (3,))],
}


@each_kind
def test_own_windows_in_the_order_of_time_are_the_pipelines_own(kind):
    pipe, past = ROWS[kind].make(), frames(1, 2, 1, 8, 8)
    made = sample(pipe, past_frames=past, num_frames=4, frame_schedule=ORDERED[kind])
    torch.testing.assert_close(made, sample(pipe, past_frames=past, num_frames=4), atol=1e-6, rtol=0)


@each_kind
def test_own_windows_that_leap_ahead_and_go_back_are_refused(kind):
    past = frames(1, 2, 1, 8, 8)
    says = "`frame_schedule`: this pipeline's `context_encoder` reads frames in the order of time, and "
    refused(ROWS[kind].make(), says, past_frames=past, num_frames=4, frame_schedule=BACK[kind])


@pytest.mark.parametrize("kind", ["lgcvd", "mcvd-memory", "mcvd-residual"])
def test_own_windows_that_go_back_to_frames_that_were_made_are_refused(kind):
    """Also where nothing was given at the start."""
    windows = [Window((), (0, 1)), Window((), (4, 5)), Window((0, 1), (2, 3)), Window((4, 5), (6, 7))]
    says = "reads frames in the order of time, and "
    refused(ROWS[kind].make(), says, num_frames=8, frame_schedule=windows)


def test_own_windows_that_leave_a_recurrent_network_a_hole_are_refused():
    """It would know nothing of the frames before the hole."""
    says = "reads frames in the order of time, and .*before .* would be missing"
    refused(
        ROWS["mcvd-residual"].make(),
        says,
        past_frames=frames(1, 1, 1, 8, 8),
        num_frames=7,
        frame_schedule=[Window((), (4, 5)), Window((0,), (1,)), Window((0, 1), (2, 3)), Window((4, 5), (6, 7))],
    )
    # Backwards, it never knew any.
    windows = [Window((6, 7), (4, 5)), Window((4, 5), (2, 3)), Window((2, 3), (0, 1))]
    windows = [Window(x.observed[:1], x.latent) for x in windows]
    future = frames(1, 1, 1, 8, 8)
    pipe = ROWS["mcvd-residual"].make()
    made = sample(pipe, future_frames=future, num_frames=6, frame_schedule=windows)
    torch.testing.assert_close(made, sample(pipe, future_frames=future, num_frames=6), atol=1e-6, rtol=0)


# --------------------------------------------------------------------------------------------------------------------
# `denoise`


@each_kind
def test_denoise_needs_the_context_of_its_window(kind):
    pipe = ROWS[kind].make()
    window = ROWS[kind].window(pipe, 2)
    context = window.pop("context")
    with pytest.raises(ValueError, match="`context` must be given: what `pipe.context_encoder` knows"):
        pipe.denoise(**window, num_inference_steps=2)
    if context.mean is not None:
        wrong = ContextOutput(context.features, mean=context.mean[:, :, :, :4])
        with pytest.raises(ValueError, match=r"`context` must have a `mean` of shape \(2, \d, 1, 8, 8\)"):
            pipe.denoise(**window, context=wrong, num_inference_steps=2)


def test_denoise_knows_where_frames_beside_a_window_belong():
    """Without positions, they are its first ones, as the network says."""
    pipe = ROWS["lgcvd"].make()
    window, options = ROWS["lgcvd"].window(pipe, 2), {"num_inference_steps": 2}
    latents = torch.randn(2, 4, 1, 8, 8, generator=seeded())
    positions = torch.tensor([[0, 1, 0, 1, 2, 3]]).repeat(2, 1)
    expected = pipe.denoise(**window, frame_indices=positions, latents=latents, **options)
    assert torch.equal(pipe.denoise(**window, latents=latents, **options), expected)
