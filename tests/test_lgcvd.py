"""LGC-VD (2306.02562) as a system: its tasks, its two windows an update, its memory over a long video, what it makes and returns.

Its networks against the original's numbers: `tests/models/test_unet_lgcvd.py`.
"""

import logging
import math
import re
import time

import pytest
import torch
from accelerate import Accelerator
from diffusers import DDIMScheduler, DDPMScheduler

import train_mcvd
from mcvd_diffusers import FrameRole, MCVDPipeline, NoiseSequence, denoising_loss, sample_generators
from mcvd_diffusers import methods as methods_module
from mcvd_diffusers.frame_plans import FramePlan
from mcvd_diffusers.frame_schedules import Window, local_windows
from mcvd_diffusers.masking import lgcvd_positions
from mcvd_diffusers.methods import make_method
from mcvd_diffusers.models import LGCVDContextEncoder, LGCVDUNet2DModel
from mcvd_diffusers.train_settings import parse_args
from mcvd_diffusers.training import draw_timesteps
from original_lgcvd import CASES, NUM_FRAMES, as_frames, drawn, load_network, load_reference


ABSENT, OBSERVED, LATENT = FrameRole
TASKS = {"prediction": (0, 1), "generation": (-1, -1), "interpolation": (0, 7)}
SMALL = {"sample_size": 8, "in_channels": 1, "block_out_channels": (8, 16), "layers_per_block": 1} | {
    "attention_levels": (1,),
    "attention_head_dim": 8,
}


def make_pipeline(**config):
    """A pipeline with weights that are always the same, away from zero."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        unet, encoder = LGCVDUNet2DModel(**SMALL, **config), LGCVDContextEncoder(**SMALL)
        with torch.no_grad():
            for parameter in [*unet.parameters(), *encoder.parameters()]:
                parameter.add_(0.1 * torch.randn(parameter.shape))
    scheduler = DDIMScheduler(prediction_type="v_prediction", clip_sample=True)
    pipe = MCVDPipeline(unet.eval(), scheduler, context_encoder=encoder.eval())
    pipe.set_progress_bar_config(disable=True)
    return pipe


def sample(pipe, seed=0, **arguments):
    arguments = {"num_inference_steps": 2, "output_type": "pt", **arguments}
    return pipe(generator=torch.Generator().manual_seed(seed), **arguments).frames


def frames(*shape, seed=1):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def method_of(**settings):
    flags = [word for name, value in settings.items() for word in (f"--{name}", *str(value).split())]
    return make_method(parse_args(["--output_dir", "unused", "--method", "lgcvd", *flags]))


# --------------------------------------------------------------------------------------------------------------------
# Tasks


def test_lgc_1_tasks_are_drawn_with_the_published_frequencies():
    positions = lgcvd_positions(100_000, generator=torch.Generator().manual_seed(0)).tolist()
    counts = {task: sum(tuple(pair) == place for pair in positions) for task, place in TASKS.items()}
    others = [tuple(pair) for pair in positions if tuple(pair) not in TASKS.values()]
    # Of the 56 pairs of two different ones of -1, 0, ..., 6 one is that of prediction.
    expected = {"prediction": 0.45 + 0.1 / 56, "generation": 0.4, "interpolation": 0.05}
    for task, share in expected.items():
        assert abs(counts[task] / 100_000 - share) < 4 * math.sqrt(share * (1 - share) / 100_000), task
    assert len(set(others)) == 55 and all(a != b and -1 <= min(a, b) and max(a, b) <= 6 for a, b in others)
    assert max(others.count(pair) for pair in set(others)) < 1.4 * len(others) / 55


def test_lgc_1_tasks_of_a_clip_do_not_depend_on_its_batch():
    alone = [lgcvd_positions(1, generator=[generator]) for generator in sample_generators(3, range(6))]
    assert torch.equal(lgcvd_positions(6, generator=sample_generators(3, range(6))), torch.cat(alone))


@pytest.mark.parametrize(
    ("shares", "num_frames", "says"),
    [((0.5, 0.5, 0.5, -0.5), 8, "task_shares"), ((1.0,), 8, "task_shares"), ((0.3,) * 4, 8, "task_shares")]
    + [((0.45, 0.4, 0.05, 0.1), 2, "num_frames")],
)
def test_lgc_1_impossible_tasks_are_refused(shares, num_frames, says):
    with pytest.raises(ValueError, match=f"`{says}` must"):
        lgcvd_positions(2, num_frames=num_frames, task_shares=shares)


# --------------------------------------------------------------------------------------------------------------------
# Training


def test_lgc_3_velocity_and_clean_frames_are_each_others_inverse():
    """The estimate of a network that knows the velocity is the clip, and that of the other targets, too."""
    video = 2 * frames(3, 4, 1, 8, 8) - 1
    noise = torch.randn(video.shape, generator=torch.Generator().manual_seed(0))
    timesteps, roles = torch.tensor([0, 400, 998]), torch.full((3, 4), LATENT)
    for kind in ("v_prediction", "epsilon", "sample"):
        scheduler = DDPMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type=kind)
        target = {"epsilon": noise, "sample": video, "v_prediction": scheduler.get_velocity(video, noise, timesteps)}
        losses, estimate = denoising_loss(
            lambda *_, **__: (target[kind],),
            scheduler,
            video,
            roles,
            timesteps=timesteps,
            noise=noise,
            loss_type="l1",
            return_estimate=True,
        )
        assert torch.equal(losses, torch.zeros(3))
        worst = 1e-6 if kind != "epsilon" else 2e-3  # there noise is divided by a signal of 1 / 400
        torch.testing.assert_close(estimate, video, atol=worst, rtol=0)


def iteration(case, task, monkeypatch, **settings):
    """One update of the original's trainer by ours, its noise injected: the method's windows, losses and estimates."""
    golden, known = load_reference(case), CASES[case]["train"][task]
    method = method_of(**settings)
    unet, encoder = load_network(case, "denoiser"), load_network(case, "encoder")
    optimizer = torch.optim.Adam([*unet.parameters(), *encoder.parameters()], lr=1e-4)
    scheduler = DDPMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction")
    video = 2 * as_frames(golden["train_video"]) - 1
    positions = torch.tensor([known["pos"]] * len(video))
    monkeypatch.setattr(methods_module, "lgcvd_positions", lambda *_, **__: positions)
    batch, windows, losses, estimates = {"video": video}, [], [], []
    assert method.num_stages == 2 and method.num_clip_frames == video.shape[1]
    for stage in range(2):
        window = method.draw_next(windows[0], batch, estimates[0]) if stage else method.draw(batch, None)
        shape = (len(video), NUM_FRAMES * 3, *video.shape[-2:])
        noise = as_frames(torch.from_numpy(drawn(f"{case}/train_noise{stage}", shape)))
        loss, estimate = denoising_loss(
            unet,
            scheduler,
            window.video,
            window.roles,
            noise=torch.cat([torch.zeros_like(noise[:, :2]), noise], dim=1),
            timesteps=golden[f"train_t_stage{stage + 1}"],
            frame_indices=window.frame_indices,
            context=method.encode(encoder, window),
            loss_type="l1",
            return_estimate=True,
        )
        windows, losses, estimates = [*windows, window], [*losses, loss.mean()], [*estimates, estimate]
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    return golden, known, windows, losses, estimates, (unet, encoder)


@pytest.mark.parametrize(
    ("case", "task"),
    [("lgcvd_rgb", "prediction")]
    + [("lgcvd_rgb_small", task) for task in ("prediction", "unconditional", "interpolation", "random")],
)
def test_lgc_4_two_stages_are_those_of_the_originals_trainer(case, task, monkeypatch):
    golden, known, windows, losses, estimates, (unet, encoder) = iteration(case, task, monkeypatch)
    for stage, (loss, expected) in enumerate(zip(losses, known["loss"]), 1):  # the second after the first step of Adam
        assert abs(loss.item() - expected) < 1e-6  # LGC-3, too
        estimate = (estimates[stage - 1][:, 2:].flatten(1, 2) + 1) / 2
        expected = golden[f"train_{task}_stage{stage}_x0_estimate01"]
        torch.testing.assert_close(estimate, expected, atol=1e-5, rtol=0)
    for name, ours in (
        ("init_conv", unet.conv_in),
        ("final_conv", unet.conv_out),
        ("enc_init_conv", encoder.conv_in),
    ):
        torch.testing.assert_close(ours.bias, golden[f"train_{task}_after_{name}_bias"], atol=1e-6, rtol=0)
    assert not estimates[0].requires_grad  # nothing of the second stage reaches the first


def first_update(flags, num_stages):
    """What the script should make of the first batch, written out: both networks after so many stages."""
    settings = parse_args(["--output_dir", "unused", *flags])
    method, training = make_method(settings), settings.training
    train_set, _ = train_mcvd.make_datasets(settings, method.num_clip_frames)
    components = method.make_components()
    unet, encoder = components["unet"], components["context_encoder"]
    optimizer = train_mcvd.make_optimizer(settings, components)
    scheduler = train_mcvd.make_noise_scheduler(settings)
    batch = next(iter(train_mcvd.make_loader(settings, train_set, Accelerator())))
    batch = {**batch, "video": train_set.encode(batch["video"])}
    generators = sample_generators(training.seed, range(training.train_batch_size))
    window = estimate = None
    for stage in range(num_stages):
        window = method.draw_next(window, batch, estimate) if stage else method.draw(batch, generators)
        losses, estimate = denoising_loss(
            unet,
            scheduler,
            window.video,
            window.roles,
            timesteps=draw_timesteps(scheduler, len(window.video), generator=generators),
            generator=generators,
            frame_indices=window.frame_indices,
            context=encoder(window.before, averages=False),
            loss_type="l1",
            return_estimate=True,
        )
        optimizer.zero_grad()
        losses.mean().backward()
        torch.nn.utils.clip_grad_norm_(components.parameters(), training.max_grad_norm)
        optimizer.step()
    return components


@pytest.mark.parametrize("fails", [False, True])
def test_lgc_4_the_training_script_makes_both_stages(fails, tmp_path, monkeypatch, caplog):
    """Each with a step of the optimizer; and if the second cannot be learned from, the first one stays."""
    flags = "--method lgcvd --resolution 8 --block_out_channels 8 16".split()
    flags += "--max_train_steps 1 --lr_scheduler constant --train_batch_size 4 --report_to none".split()
    flags += "--num_validation_videos 0 --num_train_clips 8 --max_frames 5 --num_digits 1 --digit_size 4".split()
    stages = []

    def loss(*args, **options):
        losses = denoising_loss(*args, **options)
        stages.append(losses[0] if isinstance(losses, tuple) else losses)
        time.sleep(2 * (len(stages) == 2))
        return stages[-1] * math.nan if fails and len(stages) == 2 else losses

    monkeypatch.setattr(train_mcvd, "denoising_loss", loss)
    if fails:  # the update counts, by its first stage
        flags += ["--max_skipped_updates", "5"]
    with caplog.at_level(logging.INFO):
        folder = train_mcvd.main(parse_args(["--output_dir", str(tmp_path / "run"), *flags]))
    seconds = float(re.search(r"trained 1 updates in (\d+) s", caplog.text)[1])
    assert seconds >= 2  # the time of both
    assert len(stages) == 2 and ("stage 2 of update 1 skipped, since the loss of process 0" in caplog.text) == fails
    for num_stages in (1, 2):
        expected = first_update(flags, num_stages)
        saved = MCVDPipeline.from_pretrained(folder)
        same = []
        for name, network in expected.items():
            ours = getattr(saved, name).state_dict()
            same += [torch.allclose(x, ours[key], atol=1e-7, rtol=0) for key, x in network.state_dict().items()]
        assert all(same) == (num_stages == (1 if fails else 2))


def test_lgc_4_second_window_begins_with_the_last_two_frames_that_were_made(monkeypatch):
    _, _, (first, second), _, estimates, _ = iteration("lgcvd_rgb_small", "prediction", monkeypatch)
    assert torch.equal(second.video[:, :2], estimates[0][:, -2:])
    assert torch.equal(second.before, estimates[0][:, 2:]) and first.before.shape[1] == 0
    assert torch.equal(second.video[:, 2:4], first.video[:, -2:])  # and learns the true ones
    assert torch.equal(second.frame_indices, first.frame_indices)
    # Of other tasks, only the memory is of its own making.
    _, _, (first, second), _, estimates, _ = iteration("lgcvd_rgb_small", "random", monkeypatch)
    assert torch.equal(second.before, estimates[0][:, 2:])
    assert torch.equal(second.video[:, 0], second.video[:, 2 + 3])
    # And without own predictions, nothing.
    settings = {"own_predictions": False}
    _, _, (first, second), _, _, _ = iteration("lgcvd_rgb_small", "prediction", monkeypatch, **settings)
    assert torch.equal(second.before, first.video[:, 2:]) and torch.equal(second.video[:, :2], first.video[:, -2:])


def test_frames_of_videos_that_are_too_short_are_neither_given_nor_learned(monkeypatch):
    method = method_of()
    is_padding = torch.zeros(3, 14, dtype=torch.bool)
    is_padding[0, 10:] = is_padding[1, 5:] = True
    batch = {"video": torch.randn(3, 14, 1, 8, 8), "is_padding": is_padding}
    monkeypatch.setattr(methods_module, "lgcvd_positions", lambda *_, **__: torch.tensor([[0, 7]] * 3))
    window = method.draw(batch, None)
    shown, made = [OBSERVED, OBSERVED], [LATENT] * 8
    assert window.roles.tolist() == [
        shown + made,
        [OBSERVED, ABSENT] + [LATENT] * 5 + [ABSENT] * 3,
        shown + made,
    ]
    window = method.draw_next(window, batch, window.video)
    assert window.roles.tolist() == [[OBSERVED, ABSENT] + [LATENT] * 4 + [ABSENT] * 4, [ABSENT] * 10, shown + made]


# --------------------------------------------------------------------------------------------------------------------
# Memory


def test_lgc_5_a_call_begins_without_memory_and_reads_each_window_once():
    pipe, read = make_pipeline(), []
    encode = pipe.context_encoder.forward

    def spy(frames, state=None, **options):
        read.append((frames.shape[1], state is None))
        return encode(frames, state, **options)

    pipe.context_encoder.forward = spy
    first = sample(pipe, past_frames=frames(2, 2, 1, 8, 8), num_frames=28)
    assert read == [(0, True)] + [(8, False)] * 4
    sample(pipe, seed=5, past_frames=frames(2, 2, 1, 8, 8, seed=9), num_frames=28)
    assert read[5] == (0, True)
    assert torch.equal(sample(pipe, past_frames=frames(2, 2, 1, 8, 8), num_frames=28), first)


def test_lgc_5_frames_given_before_a_window_are_remembered():
    pipe, given = make_pipeline(), frames(1, 20, 1, 8, 8)
    made = sample(pipe, past_frames=given, num_frames=3)
    forgetful = sample(pipe, past_frames=given[:, -2:], num_frames=3)  # the same two beside the window
    changed = given.clone()
    changed[:, 7] = 1 - changed[:, 7]
    assert not torch.allclose(made, forgetful, atol=1e-3)
    assert not torch.allclose(made, sample(pipe, past_frames=changed, num_frames=3), atol=1e-3)


def test_lgc_5_streams_remember_and_videos_do_not_disturb_each_other():
    pipe, given = make_pipeline(), frames(2, 2, 1, 8, 8)
    options = {"num_inference_steps": 2, "output_type": "pt"}
    expected = [sample(pipe, seed=seed, past_frames=given[seed : seed + 1], num_frames=18) for seed in range(2)]
    streams = [
        pipe.stream(past_frames=given[seed : seed + 1], generator=torch.Generator().manual_seed(seed), **options)
        for seed in range(2)
    ]
    blocks = [[next(stream) for stream in streams] for _ in range(3)]  # in turns
    for seed in range(2):
        assert torch.equal(torch.cat([pair[seed] for pair in blocks], dim=1), expected[seed])
    generators = [torch.Generator().manual_seed(seed) for seed in range(2)]
    together = pipe(past_frames=given, num_frames=18, generator=generators, max_batch_size=1, **options).frames
    torch.testing.assert_close(together, torch.cat(expected), atol=1e-5, rtol=0)


@pytest.mark.parametrize("num_frames", [3, 7, 12])
def test_lgc_8_a_stream_of_frames_before_those_given_is_in_the_order_of_time(num_frames):
    pipe, given = make_pipeline(), frames(1, 2, 1, 8, 8)
    whole = sample(pipe, future_frames=given, num_frames=num_frames)
    options = {"num_inference_steps": 2, "output_type": "pt", "generator": torch.Generator().manual_seed(0)}
    streamed = list(pipe.stream(future_frames=given, num_frames=num_frames, **options))
    assert torch.equal(torch.cat(streamed, dim=1), whole)


def textured_videos(batch_size, generator, *, num_hidden):
    """
    Stripes of one of two directions in the first six frames; then so many grey frames, and the stripes once more in the last six:
    who does not remember them must guess. (B, 12 + num_hidden, 1, 8, 8)
    """
    is_across = torch.rand(batch_size, generator=generator) < 0.5
    stripes = (torch.arange(8) % 4 < 2).float() * 2 - 1
    pattern = torch.where(is_across[:, None, None], stripes[:, None].expand(8, 8), stripes.expand(8, 8))
    video = torch.zeros(batch_size, 12 + num_hidden, 1, 8, 8)
    video[:, :6, 0] = video[:, -6:, 0] = pattern[:, None]
    return video


@pytest.mark.slow
def test_lgc_6_memory_is_used():
    """
    Trained by the method on two windows, the memory of the first tells what comes in the second; and, after a window in which
    nothing is seen, in the third. With a grey memory nobody knows.
    """
    method = method_of(block_out_channels="16 32", task_shares="1 0 0 0", own_predictions=True)
    method.settings.model.in_channels, method.settings.model.resolution = 1, [8, 8]
    components = method.make_components()
    unet, encoder = components["unet"], components["context_encoder"]
    noise = DDPMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction")
    optimizer = torch.optim.AdamW(components.parameters(), lr=2e-3)
    generator, num_updates = torch.Generator().manual_seed(0), 400
    for update in range(num_updates):
        optimizer.param_groups[0]["lr"] = 2e-3 * min(1, (update + 1) / 50) * (1 - update / num_updates)
        clips = {"video": textured_videos(16, generator, num_hidden=2)}
        window, estimate = None, None
        for stage in range(method.num_stages):
            window = method.draw_next(window, clips, estimate) if stage else method.draw(clips, generator)
            losses, estimate = denoising_loss(
                unet,
                noise,
                window.video,
                window.roles,
                frame_indices=window.frame_indices,
                context=method.encode(encoder, window),
                generator=generator,
                return_estimate=True,
            )
            optimizer.zero_grad()
            losses.mean().backward()
            torch.nn.utils.clip_grad_norm_(components.parameters(), 1.0)
            optimizer.step()
    pipe = MCVDPipeline(
        unet.eval(),
        DDIMScheduler.from_config(noise.config, timestep_spacing="trailing", clip_sample=True),
        context_encoder=encoder.eval(),
    )
    pipe.set_progress_bar_config(disable=True)
    for num_hidden in (2, 8):  # the stripes come back in the second window, or in the third
        video = (textured_videos(64, generator, num_hidden=num_hidden) + 1) / 2
        errors = {}
        for name, given in (("remembering", video[:, :-6]), ("forgetting", video[:, -8:-6])):
            made = sample(pipe, past_frames=given, num_frames=6, num_inference_steps=10)
            errors[name] = (made - video[:, -6:]).square().mean().item()
        print(num_hidden, errors)
        assert errors["forgetting"] > 1.2 * errors["remembering"]


# --------------------------------------------------------------------------------------------------------------------
# Windows


def test_lgc_7_thirty_frames_are_five_windows():
    windows = list(local_windows(30, observed=range(2), max_frames=8, num_context_frames=2))
    starts = [0, 6, 12, 18, 22]
    assert [window.observed for window in windows] == [(start, start + 1) for start in starts]
    assert [window.latent[-1] for window in windows] == [7, 13, 19, 25, 29]
    pipe = make_pipeline()
    layouts = []
    denoise = pipe.denoise

    def spy(sample, roles, *, frame_indices, **options):
        layouts.append((roles[0].tolist(), frame_indices[0].tolist()))
        return denoise(sample, roles, frame_indices=frame_indices, **options)

    pipe.denoise = spy
    sample(pipe, past_frames=frames(1, 2, 1, 8, 8), num_frames=28)
    assert layouts == [
        ([OBSERVED] * 2 + [LATENT] * 8, [start, start + 1, *range(start, start + 8)]) for start in starts
    ]


def test_lgc_7_given_frames_are_returned_bit_exactly_unless_they_are_to_be_overwritten():
    pipe, given = make_pipeline(), frames(2, 2, 1, 8, 8)
    options = {"past_frames": given, "num_frames": 28}
    whole = sample(pipe, **options, return_given_frames=True)
    assert torch.equal(whole[:, :2], given) and torch.equal(whole[:, 2:], sample(pipe, **options))
    over = sample(pipe, **options, return_given_frames=True, overwrite_given=True)
    assert over.shape == whole.shape and not torch.allclose(over[:, :2], given, atol=1e-2)
    # The first window is the same but for these; what follows begins with other frames.
    assert torch.equal(over[:, 2:6], whole[:, 2:6]) and not torch.equal(over[:, 6:8], whole[:, 6:8])
    assert torch.equal(sample(pipe, **options, overwrite_given=True), over[:, 2:])
    with pytest.raises(ValueError, match="`overwrite_given=True` changes frames that a stream has given away"):
        pipe.stream(past_frames=given, num_frames=28, overwrite_given=True)


@pytest.mark.parametrize("run", ["sample_prediction_20", "sample_prediction_18", "sample_generation_20"])
def test_lgc_7_long_videos_are_the_originals(run):
    """Three windows of the original's sampler with its noise: memory, local context, overwriting, and the rest of a window."""
    case, num_frames = "lgcvd_rgb_small", int(run[-2:])
    golden = load_reference(case)
    scheduler = DDPMScheduler(
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
        variance_type="fixed_small",
        clip_sample=True,
    )
    torch.testing.assert_close(scheduler.alphas_cumprod, golden["sched1000_alphas_cumprod"], atol=2e-6, rtol=0)
    scheduler.alphas_cumprod[-1] = 0  # 2.4e-9, which the original's float32 rounds away over four steps
    pipe = MCVDPipeline(load_network(case, "denoiser"), scheduler, context_encoder=load_network(case, "encoder"))
    pipe.set_progress_bar_config(disable=True)
    # For each clip one draw to begin with, and one for each of the four steps, of which the last is not used.
    noise = [
        torch.from_numpy(drawn(f"{case}/{run}/noise{5 * clip + i}", (2, 24, 8, 8)))
        for clip in range(3)
        for i in range(4)
    ]
    task = {"num_frames": num_frames, "batch_size": 1, "height": 8, "width": 8}
    if "prediction" in run:
        task = {"past_frames": as_frames(golden[f"{run}_video"])[:, :2], "num_frames": num_frames - 2}
    made = pipe(
        **task,
        ensemble_size=2,
        timesteps=golden["sched4_timesteps"].tolist(),
        generator=NoiseSequence(noise),
        overwrite_given=True,
        return_given_frames=True,
        output_type="latent",
    ).frames
    expected = 2 * golden[f"{run}_result"].transpose(1, 2) - 1  # (2, T, C, H, W)
    torch.testing.assert_close(made, expected, atol=2e-5, rtol=0)


def test_lgc_7_windows_are_neighbouring_frames_that_make_any_video():
    generator = torch.Generator().manual_seed(0)

    def integer(high):
        return int(torch.randint(high, (), generator=generator))

    for _ in range(2000):
        size, total = 1 + integer(9), 1 + integer(30)
        num_context = integer(size)
        observed = sorted({integer(total) for _ in range(integer(min(total, 6)))} - {total - 1})
        windows = list(local_windows(total, observed=observed, max_frames=size, num_context_frames=num_context))
        FramePlan.of(windows, total, observed=observed)  # raises if they do not make it
        for window in windows:
            positions = {*window.observed, *window.latent}
            assert len(window.observed) <= num_context and max(positions) - min(positions) < size


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"num_frames": None, "observed": [0, 5], "num_context_frames": 2}, "`num_frames` must be a number"),
        ({"num_frames": 9, "observed": [0], "num_context_frames": 8}, "`num_context_frames` must be from 0 to"),
    ],
)
def test_lgc_7_impossible_windows_are_refused(arguments, says):
    with pytest.raises(ValueError, match=says):
        list(local_windows(max_frames=8, **arguments))


# --------------------------------------------------------------------------------------------------------------------
# Tasks of one checkpoint


@pytest.mark.parametrize(
    ("task", "num_frames", "windows"),
    [
        ("prediction", 13, [((0, 1), range(2, 8)), ((6, 7), range(8, 14)), ((7, 8), range(14, 15))]),
        ("generation", 9, [((), range(8)), ((1, 2), range(8, 9))]),
        ("interpolation", 6, [((0, 7), range(1, 7))]),
        ("long interpolation", 15, [((0,), range(1, 8)), ((6, 7), range(8, 14)), ((13, 16), range(14, 16))]),
        ("single image", 9, [((0,), range(1, 8)), ((2, 3), range(8, 10))]),
        ("past prediction", 7, [((7, 8), range(2, 7)), ((2, 3), range(2))]),
        ("infilling", 7, [((0, 4), range(1, 4)), ((4, 9), range(5, 9))]),
    ],
)
def test_lgc_8_all_tasks_from_one_checkpoint(task, num_frames, windows, tmp_path):
    pipe = make_pipeline()
    pipe.save_pretrained(tmp_path)
    pipe = MCVDPipeline.from_pretrained(tmp_path)
    pipe.set_progress_bar_config(disable=True)
    given = frames(1, 3, 1, 8, 8)
    arguments = {
        "prediction": {"past_frames": given[:, :2]},
        "single image": {"past_frames": given[:, :1]},
        "interpolation": {"past_frames": given[:, :1], "future_frames": given[:, 1:2]},
        "past prediction": {"future_frames": given[:, :2]},
        "infilling": {"observed_frames": given, "observed_positions": [0, 4, 9]},
    }.get(task.removeprefix("long "), {})
    seen = []

    def spy(sample, roles, *, frame_indices, **options):
        shown = [p for p, role in zip(frame_indices[0].tolist(), roles[0].tolist()) if role == OBSERVED]
        seen.append((tuple(shown), frame_indices[0, 2:].tolist()))
        return denoise(sample, roles, frame_indices=frame_indices, **options)

    denoise, pipe.denoise = pipe.denoise, spy
    made = sample(pipe, num_frames=num_frames, **arguments)
    assert made.shape == (1, num_frames, 1, 8, 8) and made.isfinite().all()
    assert [shown for shown, _ in seen] == [observed for observed, _ in windows]
    for (shown, positions), (_, latent) in zip(seen, windows):
        assert {*latent, *shown} <= set(positions) and len(positions) == 8


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"step": 2}, "`max_frames` and `step` must be left out: windows of this network are 8 frames"),
        ({"frame_schedule": "hierarchy-2"}, "`frame_schedule`: windows of this network follow one another"),
        ({"frame_schedule": "adaptive-autoreg"}, "`frame_schedule`"),
        ({"replacement": "noised"}, "`replacement` must be None for this network"),
        ({"overwrite_given": 1}, "`overwrite_given` must be True or False"),
        (
            {"frame_schedule": [Window((0, 1), (4, 5)), Window((0, 1), (2, 3))], "num_frames": 4},
            "reads frames in the order of time, and the windows go back",
        ),
        (
            {"frame_schedule": [Window((0, 1), (2, 3, 4, 5, 6, 7, 8))], "num_frames": 7},
            "makes 8 neighbouring frames, of which it is given at most 2",
        ),
    ],
)
def test_lgc_8_what_the_network_cannot_do_is_refused_by_name(arguments, says):
    with pytest.raises(ValueError, match=says):
        sample(make_pipeline(), past_frames=frames(1, 2, 1, 8, 8), **{"num_frames": 9, **arguments})


def test_lgc_8_networks_and_encoders_must_belong_together():
    pipe = make_pipeline()
    with pytest.raises(ValueError, match="`context_encoder` must be given: this network was trained with one"):
        MCVDPipeline(pipe.unet, pipe.scheduler)
    other = LGCVDContextEncoder(**SMALL | {"block_out_channels": (8, 24)})
    with pytest.raises(ValueError, match=r"`context_encoder` reads 1 channels and tells maps of \(24,\)"):
        MCVDPipeline(pipe.unet, pipe.scheduler, context_encoder=other)
    with pytest.raises(ValueError, match="`context_encoder` must be a context encoder, got a Linear"):
        MCVDPipeline(pipe.unet, pipe.scheduler, context_encoder=torch.nn.Linear(1, 1))
    with pytest.raises(ValueError, match="`context_encoder` must be an object"):
        MCVDPipeline(pipe.unet, pipe.scheduler, context_encoder="memory")


WAYS = {  # to give frames of a window -> share of training, by the first of which it was learned
    "prediction": ({"past_frames": frames(1, 2, 1, 8, 8), "num_frames": 6}, (0, 3)),
    "long prediction": ({"past_frames": frames(1, 2, 1, 8, 8), "num_frames": 20}, (0, 3)),
    "generation": ({"num_frames": 8}, (1,)),
    "interpolation": (
        {"past_frames": frames(1, 1, 1, 8, 8), "future_frames": frames(1, 1, 1, 8, 8), "num_frames": 6},
        (2, 3),
    ),
    "a single image": ({"past_frames": frames(1, 1, 1, 8, 8), "num_frames": 7}, (3,)),
    "past prediction": ({"future_frames": frames(1, 2, 1, 8, 8), "num_frames": 6}, (3,)),
}


@pytest.mark.parametrize("way", WAYS)
def test_lgc_8_what_was_never_trained_is_refused(way):
    arguments, learned_by = WAYS[way]
    for task in range(4):
        shares = [float(task == other) for other in range(4)]
        pipe = make_pipeline(task_shares=shares, drop_observed=shares[1])
        if task in learned_by:
            assert sample(pipe, **arguments).isfinite().all()
            continue
        with pytest.raises(ValueError, match="never trained|in training|generates one window"):
            sample(pipe, **arguments)


def test_lgc_8_networks_without_past_and_with_guidance():
    never = make_pipeline(drop_observed=1.0, task_shares=(0.0, 1.0, 0.0, 0.0))
    with pytest.raises(ValueError, match="generates one window of 8 frames"):
        sample(never, num_frames=9)
    assert sample(never, num_frames=8).shape[1] == 8
    with pytest.raises(ValueError, match="always had given frames in training"):
        sample(make_pipeline(drop_observed=0.0, task_shares=(1.0, 0.0, 0.0, 0.0)), num_frames=8)
    pipe, given = make_pipeline(), frames(1, 2, 1, 8, 8)
    with pytest.raises(ValueError, match=r"names frames \[5\], but windows read at most 2 given frames"):
        sample(pipe, past_frames=given, num_frames=6, history_guidance=[([5], 1.0)])
    plain = sample(pipe, past_frames=given, num_frames=9)
    guided = sample(pipe, past_frames=given, num_frames=9, guidance_scale=3.0)
    assert not torch.allclose(plain, guided, atol=1e-3) and guided.isfinite().all()
