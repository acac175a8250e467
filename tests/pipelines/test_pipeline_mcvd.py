"""MCVDPipeline: parity with the original's sampling, the four tasks, and what a call promises."""

import copy
import functools
import inspect
import itertools
from dataclasses import fields

import diffusers
import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EDMDPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    HeunDiscreteScheduler,
    LCMScheduler,
    UniPCMultistepScheduler,
)
from diffusers.guiders import AdaptiveProjectedGuidance, AutoGuidance, ClassifierFreeGuidance
from diffusers.hooks import LayerSkipConfig
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode

import contract_rows
from mcvd_diffusers import FrameRole, MCVDPipeline, MCVDUNet2DModel, NoiseSequence, SpaceTimeUNetModel
from mcvd_diffusers.conversion import convert_checkpoint
from mcvd_diffusers.normalization import FrameNormalizer
from mcvd_diffusers.pipelines.request import STEP_OPTIONS, Call
from original_mcvd import CASES, REFERENCE, block_of, load_reference, rule_normal, save_original, window


LINEAR = {
    "num_train_timesteps": 1000,
    "beta_start": 1e-4,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "clip_sample": True,
    "clip_sample_range": 1.0,
    "prediction_type": "epsilon",
    "timestep_spacing": "trailing",
}


def original_ddpm():
    return DDPMScheduler(**LINEAR, variance_type="fixed_small")


def original_ddim():
    return DDIMScheduler(**LINEAR, set_alpha_to_one=True, steps_offset=0)


def tiny_pipeline(scheduler=None, conditioning="concat", **config):
    torch.manual_seed(0)
    arguments = {
        "sample_size": 8,
        "in_channels": 1,
        "num_past_frames": 2,
        "num_frames": 3,
        "num_future_frames": 2,
        "block_out_channels": (8, 16),
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "layers_per_block": 1,
        "spatin_channels": 8,
    }
    unet = MCVDUNet2DModel(conditioning=conditioning, **{**arguments, **config})
    with torch.no_grad():
        for parameter in unet.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    pipe = MCVDPipeline(unet, scheduler or DDIMScheduler(**{**LINEAR, "prediction_type": "v_prediction"}))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def frames(count, batch=2, channels=1, size=(8, 8), seed=0):
    return torch.rand(batch, count, channels, *size, generator=torch.Generator().manual_seed(seed))


def call(pipe, *, seed=0, steps=3, output_type="pt", **kwargs):
    generator = kwargs.pop("generator", torch.Generator().manual_seed(seed))
    return pipe(num_inference_steps=steps, generator=generator, output_type=output_type, **kwargs).frames


# --------------------------------------------------------------------------------------------------------------------
# Parity


def test_noise_schedule_is_the_originals():
    golden = load_reference("schedule")
    for scheduler in (original_ddpm(), original_ddim()):
        assert torch.equal(scheduler.betas.flip(0), golden["betas"])
        assert torch.equal(scheduler.alphas_cumprod.flip(0), golden["alphas"])
        previous = torch.cat([torch.ones(1), scheduler.alphas_cumprod[:-1]]).flip(0)
        assert torch.equal(previous, golden["alphas_prev"])


def test_cosine_schedule_is_the_originals_but_for_the_clip():
    golden = load_reference("schedule")
    ours = DDPMScheduler(1000, beta_schedule="squaredcos_cap_v2").alphas_cumprod.flip(0)
    # Diffusers keeps beta at or below 0.999, the original does not; only the noisiest steps differ.
    torch.testing.assert_close(ours, golden["cosine_alphas"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("cached", [True, False], ids=["once_a_window", "every_step"])
@pytest.mark.parametrize("final_denoise", [False, True])
def test_against_mcvd_ddpm_trajectory(final_denoise, cached, tmp_path):
    golden = load_reference("trajectory_10steps")
    checkpoint = save_original(tmp_path / "original", CASES["concat_gray_p2k2"]["config"])
    convert_checkpoint(checkpoint, tmp_path / "converted", weights="model", sampler="original")  # as the golden run
    pipe = MCVDPipeline.from_pretrained(tmp_path / "converted")
    pipe.set_progress_bar_config(disable=True)
    unet = pipe.unet
    noise = NoiseSequence([golden["xT"], *golden["noise"]])
    calls = []
    unet.register_forward_pre_hook(
        lambda module, args, kwargs: calls.append((block_of(unet, args[0]).clone(), 999 - int(args[1]))),
        with_kwargs=True,
    )
    past = golden["cond"]
    sample = window(unet, torch.full_like(golden["xT"], torch.nan), past)
    roles = torch.tensor([[1, 1, 2, 2]] * 2)
    out = pipe.denoise(
        sample,
        roles,
        num_inference_steps=10,
        final_denoise=final_denoise,
        cache_conditioning=cached,
        generator=noise,
    ).flatten(1, 2)

    name = "ddpm_final" if final_denoise else "ddpm_final_nodenoise"
    torch.testing.assert_close(out, golden[name], atol=5e-5, rtol=0)
    for (x, label), x_golden, label_golden in zip(calls, golden["ddpm_x_in"], golden["ddpm_labels"]):
        torch.testing.assert_close(x, x_golden, atol=5e-5, rtol=0)
        assert label == label_golden
    assert len(calls) == (11 if final_denoise else 10)
    assert noise.num_draws == 10


@pytest.mark.parametrize("name, make", [("ddpm", original_ddpm), ("ddim", original_ddim)])
def test_against_each_mcvd_step(name, make, monkeypatch):
    golden = load_reference("trajectory_10steps")
    scheduler = make()
    scheduler.set_timesteps(10)
    assert [999 - int(t) for t in scheduler.timesteps] == golden[f"{name}_labels"][:10].tolist()
    steps = zip(scheduler.timesteps, golden[f"{name}_x_in"], golden[f"{name}_x_in"][1:], golden[f"{name}_eps"])
    for i, (t, x, x_next, epsilon) in enumerate(steps):
        noise = golden["noise"][i] if i < 9 else torch.zeros_like(x)
        monkeypatch.setattr("diffusers.schedulers.scheduling_ddpm.randn_tensor", lambda *a, noise=noise, **k: noise)
        out = scheduler.step(epsilon, t, x).prev_sample
        # Rounding is amplified by 1 / sqrt(alpha-bar), the factor of the network's output at this step.
        tolerance = 1e-5 / float(scheduler.alphas_cumprod[t]) ** 0.5
        torch.testing.assert_close(out, x_next, atol=tolerance, rtol=0)


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """The original's general checkpoint, genuine: 2 past, 2 current and 1 future frame, averaged weights."""
    folder = tmp_path_factory.mktemp("converted") / "pipeline"
    convert_checkpoint(REFERENCE / "checkpoint_concat", folder, sampler="original")
    pipe = MCVDPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def real_clips(count, num_frames, channels, size):
    b, t, c, y, x = np.meshgrid(*map(np.arange, (count, num_frames, channels, size, size)), indexing="ij")
    value = 0.5 + 0.5 * np.sin(2 * np.pi * (x + 2 * y + (b + 1) * t + 3 * c) / 16)
    return torch.from_numpy((np.floor(value * 255 + 0.5) / 255).astype(np.float32))


VIDEO_GEN = {
    "interp__pred": lambda clips: {"past_frames": clips[:, :2], "future_frames": clips[:, 4:5]},
    "pred__pred": lambda clips: {"past_frames": clips[:, :2], "num_frames": 8},
    "gen__gen": lambda clips: {"num_frames": 10},
}


def video_gen(pipe, run, num_samples=1):
    """(name, ours, the original runner's) for the tasks of a run, all from one sequence of noise."""
    golden = load_reference("video_gen")
    clips = real_clips(3, 11, 1, 16)  # 2 past, 8 to predict, 1 future
    noise = NoiseSequence(rule_normal(f"vg/{i}", (3 * num_samples, 2, 16, 16)) for i in itertools.count())
    for name, task in VIDEO_GEN.items():
        if f"{run}__{name}" in golden:
            given = task(clips)
            options = {"ensemble_size": num_samples} if "past_frames" in given else {"batch_size": 3 * num_samples}
            out = call(pipe, steps=10, generator=noise, **given, **options)
            yield name, out[:, :, 0], golden[f"{run}__{name}"]
    assert noise.num_draws == {"general_ddpm": 100, "general_ddim": 10, "predonly_ddim": 5}[run]  # as the original's


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_against_mcvd_video_gen(converted, dtype):
    """The original's runner, end to end: interpolation, prediction and generation, several blocks, in one stream."""
    pipe = MCVDPipeline(copy.deepcopy(converted.unet).to(dtype), converted.scheduler, converted.config.final_denoise)
    pipe.set_progress_bar_config(disable=True)
    # One frame far into the prediction doubles rounding tenfold: 1.2e-4 in float32, 5e-5 in float64. With torch's own convolutions,
    # not oneDNN's, the bound does not hang on the machine.
    with torch.backends.mkldnn.flags(enabled=False):
        for name, out, expected in video_gen(pipe, "general_ddpm"):
            for block, tolerance in ((slice(0, 2), 5e-5), (slice(2, None), 2e-4 if dtype == torch.float32 else 1e-4)):
                torch.testing.assert_close(
                    out[:, block], expected[:, block], atol=tolerance, rtol=0, msg=lambda m: f"{name}: {m}"
                )


@pytest.mark.parametrize("run, num_samples", [("general_ddim", 2), ("predonly_ddim", 1)])
def test_against_mcvd_video_gen_ddim(converted, run, num_samples):
    """DDIM amplifies rounding tenfold a block with these random weights: only the first block can be compared."""
    pipe = MCVDPipeline(converted.unet, original_ddim(), converted.config.final_denoise)
    pipe.set_progress_bar_config(disable=True)
    for name, out, expected in video_gen(pipe, run, num_samples):
        torch.testing.assert_close(out[:, :2], expected[:, :2], atol=5e-4, rtol=0, msg=lambda m: f"{name}: {m}")


def test_against_mcvd_past_prediction(converted):
    golden = load_reference("past_prediction")
    noise = NoiseSequence(rule_normal(f"past/{i}", (2, 2, 16, 16)) for i in itertools.count())
    future = (golden["cond"][:, 2:][:, :, None] + 1) / 2
    out = call(converted, steps=10, future_frames=future, output_type="latent", generator=noise)
    torch.testing.assert_close(out[:, :, 0], golden["out_m11"], atol=5e-5, rtol=0)


def test_noise_sequence_is_one_stream_in_the_originals_order(converted):
    """Whole batches, one after the other, none after a block's last step; the pipeline's own streams are others."""
    draws = [torch.randn(2, 2, 1, 16, 16, generator=g) for g in [torch.Generator().manual_seed(5)] for _ in range(8)]
    given = {"num_frames": 4, "batch_size": 2, "steps": 4}
    recorded, drawn = NoiseSequence(draws), NoiseSequence(torch.Generator().manual_seed(5))
    first = call(converted, generator=recorded, **given)
    assert recorded.num_draws == 8
    state = torch.get_rng_state()
    assert torch.equal(call(converted, generator=drawn, **given), first)
    assert torch.equal(torch.get_rng_state(), state)
    streamed = converted.stream(
        num_frames=4,
        batch_size=2,
        num_inference_steps=4,
        output_type="pt",
        generator=NoiseSequence(torch.Generator().manual_seed(5)),
    )
    assert torch.equal(torch.cat(list(streamed), dim=1), first)
    assert (call(converted, generator=torch.Generator().manual_seed(5), **given) - first).abs().max() > 0.1


def test_noise_sequence_says_what_does_not_fit(converted):
    with pytest.raises(ValueError, match="has ended: draw number 3"):
        call(converted, num_frames=2, generator=NoiseSequence(torch.randn(2, 1, 2, 16, 16)[i] for i in range(2)))
    with pytest.raises(ValueError, match=r"draw number 1 has shape \(1, 3, 16, 16\)"):
        call(converted, num_frames=2, generator=NoiseSequence([torch.randn(1, 3, 16, 16)]))
    with pytest.raises(ValueError, match="`max_batch_size` is 1 for 2 videos"):
        call(converted, batch_size=2, max_batch_size=1, generator=NoiseSequence([]))
    for draws in ("abc", [{}], [10**400], [torch.zeros(1, 2, 16, 16) * 1j], [torch.full((1, 2, 16, 16), torch.nan)]):
        with pytest.raises(ValueError, match="draw number 1 is no tensor of finite"):
            call(converted, num_frames=2, generator=NoiseSequence(draws))
    with pytest.raises(ValueError, match="`source` must be a torch.Generator"):
        NoiseSequence(3)


# --------------------------------------------------------------------------------------------------------------------
# Tasks

TASKS = {
    "prediction": lambda: {"past_frames": frames(2), "num_frames": 7},
    "past prediction": lambda: {"future_frames": frames(2, seed=1), "num_frames": 7},
    "interpolation": lambda: {"past_frames": frames(2), "future_frames": frames(2, seed=1), "num_frames": 7},
    "generation": lambda: {"num_frames": 7, "batch_size": 2},
}


@pytest.mark.parametrize("conditioning", ["concat", "spatin"])
@pytest.mark.parametrize("task", TASKS)
def test_one_network_does_every_task(task, conditioning):
    pipe = tiny_pipeline(conditioning=conditioning)
    out = call(pipe, **TASKS[task]())
    assert out.shape == (2, 7, 1, 8, 8) and out.min() >= 0 and out.max() <= 1 and out.std() > 0


@pytest.mark.parametrize("task", TASKS)
def test_given_frames_come_back_untouched(task):
    given = TASKS[task]()
    pipe = tiny_pipeline()
    whole = call(pipe, return_given_frames=True, ensemble_size=2, **given)
    made = call(pipe, ensemble_size=2, **given)
    past, future = given.get("past_frames", frames(0)), given.get("future_frames", frames(0))
    for i in range(4):
        assert torch.equal(whole[i, : past.shape[1]], past[i // 2])
        assert torch.equal(whole[i, past.shape[1] + 7 :], future[i // 2])
    assert torch.equal(whole[:, past.shape[1] : past.shape[1] + 7], made)


@pytest.mark.parametrize("changed", ["past_frames", "future_frames"])
def test_given_frames_change_what_is_made(changed):
    pipe = tiny_pipeline()
    given = {"past_frames": frames(2), "future_frames": frames(2, seed=1)}
    out = call(pipe, **given)
    given[changed] = frames(2, seed=2)
    assert (call(pipe, **given) - out).abs().max() > 1e-2


def test_fewer_given_frames_are_absent():
    pipe = tiny_pipeline()
    seen = record_roles(pipe)
    call(pipe, past_frames=frames(1))
    assert seen[0].tolist() == [[0, 1, 2, 2, 2, 0, 0]] * 2


def record_roles(pipe):
    seen = []
    pipe.unet.register_forward_pre_hook(lambda module, args: seen.append(args[2].clone()))
    return seen


@pytest.mark.parametrize(
    "task, expected",
    [
        ("prediction", ["1122200", "1122200", "1122200"]),
        ("past prediction", ["0022211", "0022211", "0022211"]),
        ("interpolation", ["1122200", "1122200", "1122211"]),
        ("generation", ["0022200", "1122200", "1122200"]),
    ],
)
def test_blocks_read_what_is_next_to_them(task, expected):
    pipe = tiny_pipeline()
    seen = record_roles(pipe)
    call(pipe, steps=1, **TASKS[task]())
    assert ["".join(str(int(role)) for role in roles[0]) for roles in seen] == expected


def test_generated_frames_are_fed_back():
    """Two calls with one block each, the second given what the first made, equal one call with two blocks."""
    pipe = tiny_pipeline()
    noise = torch.randn(1, 6, 1, 8, 8)
    past = frames(2, batch=1)
    both = call(pipe, past_frames=past, num_frames=6, latents=noise, output_type="latent")
    first = call(pipe, past_frames=past, latents=noise[:, :3], output_type="latent")
    assert torch.equal(both[:, :3], first)
    between = (first[:, 1:].clamp(-1, 1) + 1) / 2
    assert torch.equal(first.clamp(-1, 1), first)  # nothing is clamped away here, so the two are comparable
    second = call(pipe, past_frames=between, latents=noise[:, 3:], output_type="latent")
    torch.testing.assert_close(both[:, 3:], second, atol=1e-5, rtol=0)


# --------------------------------------------------------------------------------------------------------------------
# Randomness, batches, ensembles, streams


@pytest.mark.parametrize("scheduler", [DDIMScheduler, DDPMScheduler])
def test_a_past_does_not_depend_on_its_batch(scheduler):
    """The other tasks are in the contract of all pipelines."""
    pipe = tiny_pipeline(scheduler(**{**LINEAR, "prediction_type": "v_prediction"}))
    given = TASKS["past prediction"]()
    both = call(pipe, generator=[torch.Generator().manual_seed(i) for i in range(2)], **given)
    for i in range(2):
        alone = given | {"future_frames": given["future_frames"][i : i + 1]}
        single = call(pipe, generator=torch.Generator().manual_seed(i), **alone)
        torch.testing.assert_close(both[i : i + 1], single, atol=1e-4, rtol=0)  # other noise differs by 0.05 and more


def test_first_video_of_one_generator_does_not_depend_on_the_batch_size():
    pipe = tiny_pipeline(DDPMScheduler(**LINEAR))
    both, single = call(pipe, num_frames=7, batch_size=2), call(pipe, num_frames=7)
    torch.testing.assert_close(both[:1], single, atol=1e-5, rtol=0)
    assert (both[0] - both[1]).abs().max() > 0.05


def test_without_a_generator_torch_manual_seed_decides():
    pipe = tiny_pipeline()
    videos = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        videos.append(call(pipe, past_frames=frames(2), generator=None))
    assert torch.equal(videos[0], videos[1]) and not torch.equal(videos[0], videos[2])


@pytest.mark.parametrize("max_batch_size", [None, 1, 3])
def test_ensemble_members_are_different_futures_of_one_past(max_batch_size):
    pipe = tiny_pipeline(DDPMScheduler(**LINEAR))
    past = frames(2)
    four = call(pipe, past_frames=past, num_frames=4, ensemble_size=4, max_batch_size=max_batch_size)
    two = call(pipe, past_frames=past, num_frames=4, ensemble_size=2)
    assert four.shape == (8, 4, 1, 8, 8)
    torch.testing.assert_close(four.unflatten(0, (2, 4))[:, :2], two.unflatten(0, (2, 2)), atol=1e-5, rtol=0)
    for a, b in itertools.combinations(four[:4], 2):
        assert (a - b).abs().max() > 0.05


@pytest.mark.parametrize("output_type", ["pt", "np", "pil", "latent"])
def test_uncertainty_is_the_standard_deviation_of_the_ensemble(output_type):
    pipe = tiny_pipeline(DDPMScheduler(**LINEAR))
    arguments = {"past_frames": frames(2), "ensemble_size": 5, "num_inference_steps": 2, "output_type": output_type}
    out = pipe(**arguments, generator=torch.Generator().manual_seed(0), output_uncertainty=True)
    members = call(
        pipe,
        past_frames=frames(2),
        ensemble_size=5,
        steps=2,
        output_type="latent" if output_type == "latent" else "pt",
    )
    expected = members.unflatten(0, (2, 5)).std(dim=1)
    uncertainty = torch.as_tensor(out.uncertainty)
    if output_type in ("np", "pil"):
        uncertainty = uncertainty.movedim(-1, 2)
    torch.testing.assert_close(uncertainty, expected)
    assert uncertainty.shape == (2, 3, 1, 8, 8) and uncertainty.mean() > 0.01


def test_uncertainty_of_given_frames_is_zero():
    pipe = tiny_pipeline()
    out = pipe(
        past_frames=frames(2),
        future_frames=frames(1, seed=1),
        ensemble_size=2,
        num_inference_steps=2,
        output_type="pt",
        output_uncertainty=True,
        return_given_frames=True,
    )
    assert out.frames.shape == (4, 6, 1, 8, 8) and out.uncertainty.shape == (2, 6, 1, 8, 8)
    assert not out.uncertainty[:, :2].any() and not out.uncertainty[:, 5:].any() and out.uncertainty[:, 2:5].any()


def test_memory_that_does_not_suffice_halves_the_batch():
    pipe = tiny_pipeline()
    sizes = []

    def refuse(module, args):
        sizes.append(len(args[0]))
        if len(args[0]) > 2:
            raise torch.OutOfMemoryError("no memory left")

    expected = call(pipe, past_frames=frames(2), ensemble_size=4, num_frames=4)
    pipe.unet.register_forward_pre_hook(refuse)
    out = call(pipe, past_frames=frames(2), ensemble_size=4, num_frames=4)
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=0)
    assert sizes[:3] == [8, 4, 2] and max(sizes[3:]) == 2


def test_memory_that_does_not_suffice_for_one_video_is_an_error():
    pipe = tiny_pipeline()

    def refuse(module, args):
        raise torch.OutOfMemoryError("no memory left")

    pipe.unet.register_forward_pre_hook(refuse)
    with pytest.raises(torch.OutOfMemoryError):
        call(pipe, past_frames=frames(2))


@pytest.mark.parametrize("task", ["prediction", "past prediction", "generation", "interpolation"])
def test_stream_yields_the_blocks_of_the_call(task):
    pipe = tiny_pipeline(DDPMScheduler(**LINEAR))
    whole = call(pipe, **TASKS[task]())
    blocks = list(
        pipe.stream(
            **TASKS[task](), num_inference_steps=3, generator=torch.Generator().manual_seed(0), output_type="pt"
        )
    )
    if task == "past prediction":
        blocks = blocks[::-1]
    assert len(blocks) == 3 and torch.equal(torch.cat(blocks, dim=1), whole)


def test_stream_without_an_end_goes_on():
    stream = tiny_pipeline().stream(past_frames=frames(2), num_inference_steps=1, output_type="pt")
    made = [block.shape for block in itertools.islice(stream, 30)]
    assert made == [(2, 3, 1, 8, 8)] * 30


def test_streams_do_not_disturb_each_other():
    pipe = tiny_pipeline(DDPMScheduler(**LINEAR))

    def start(seed):
        generator = torch.Generator().manual_seed(seed)
        return pipe.stream(
            past_frames=frames(2, seed=seed), num_inference_steps=3, generator=generator, output_type="pt"
        )

    alone = [list(itertools.islice(start(seed), 3)) for seed in (0, 1)]
    a, b = start(0), start(1)
    for i in range(3):
        assert torch.equal(next(a), alone[0][i]) and torch.equal(next(b), alone[1][i])


def test_latents_are_the_initial_noise():
    pipe = tiny_pipeline()
    noise = torch.randn(2, 9, 1, 8, 8)
    first = call(pipe, past_frames=frames(2), num_frames=7, latents=noise)
    assert torch.equal(call(pipe, past_frames=frames(2), num_frames=7, latents=noise, seed=1), first)
    other = noise.clone()
    other[:, 6:] = 0
    changed = call(pipe, past_frames=frames(2), num_frames=7, latents=other)
    assert torch.equal(changed[:, :6], first[:, :6]) and not torch.equal(changed[:, 6:], first[:, 6:])


# --------------------------------------------------------------------------------------------------------------------
# Guidance, schedulers, callbacks


def test_guidance_of_one_is_none_and_more_moves_away_from_the_unconditional():
    pipe = tiny_pipeline()
    past, noise = frames(2), torch.randn(2, 3, 1, 8, 8)
    one = {"steps": 1, "latents": noise, "output_type": "latent"}
    pipe.scheduler.register_to_config(clip_sample=False)
    given = call(pipe, past_frames=past, **one)
    without = call(pipe, batch_size=2, **one)
    guided = call(pipe, past_frames=past, guidance_scale=3.0, **one)
    torch.testing.assert_close(guided, without + 3 * (given - without), atol=1e-4, rtol=0)
    assert torch.equal(call(pipe, past_frames=past, guidance_scale=1.0, **one), given)


@pytest.mark.parametrize("conditioning", ["concat", "spatin"])
@pytest.mark.parametrize("guidance_scale", [1.0, 2.0])
def test_cached_conditioning_changes_nothing(conditioning, guidance_scale):
    pipe = tiny_pipeline(conditioning=conditioning)
    a, b = (
        call(pipe, past_frames=frames(2), num_frames=7, guidance_scale=guidance_scale, cache_conditioning=cached)
        for cached in (True, False)
    )
    assert torch.equal(a, b)


def test_scheduler_of_another_prediction_type_is_refused():
    pipe = tiny_pipeline(DDIMScheduler(**LINEAR), prediction_type="v_prediction")
    with pytest.raises(ValueError, match="trained with prediction_type='v_prediction', the scheduler has 'epsilon'"):
        pipe()


def test_scheduler_that_is_a_class_is_refused():
    pipe = tiny_pipeline()
    pipe.scheduler = DDIMScheduler
    with pytest.raises(ValueError, match="`scheduler` must be one of Diffusers' schedulers, an object"):
        pipe()


@pytest.mark.parametrize("name", ["DDIMInverseScheduler", "DPMSolverMultistepInverseScheduler"])
def test_scheduler_that_goes_up_is_refused(name):
    pipe = tiny_pipeline(getattr(diffusers, name).from_config(DDPMScheduler(**LINEAR).config))
    with pytest.raises(ValueError, match="cannot serve this network with these settings: it would go from"):
        pipe()


def test_own_timesteps_that_go_up_are_refused():
    pipe = tiny_pipeline(diffusers.EulerDiscreteScheduler.from_config(DDPMScheduler(**LINEAR).config))
    with pytest.raises(ValueError, match="`timesteps` must be a list of integers that fall"):
        pipe(timesteps=[100, 900])
    assert call(pipe, timesteps=[900, 100], past_frames=frames(2)).shape == (2, 3, 1, 8, 8)


def test_scheduler_whose_arithmetic_breaks_is_refused():
    cosine = DDPMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction").config
    scheduler = diffusers.KDPM2AncestralDiscreteScheduler.from_config(cosine, timestep_spacing="trailing")
    with pytest.raises(ValueError, match="its own arithmetic gives NaN"):
        tiny_pipeline(scheduler)(num_inference_steps=4)


def test_block_that_is_not_finite_is_an_error_not_a_video():
    pipe = tiny_pipeline()
    with torch.no_grad():
        pipe.unet.conv_out.bias.fill_(torch.nan)
    with pytest.raises(RuntimeError, match="Block 1 has values that are NaN or infinite"):
        call(pipe, past_frames=frames(2))


@pytest.mark.parametrize("returned", [5, torch.zeros(1), {"latents": None}, {"latents": torch.zeros(1)}])
def test_callback_that_returns_nonsense_is_named(returned):
    with pytest.raises(ValueError, match="`callback_on_step_end` "):
        call(tiny_pipeline(), past_frames=frames(2), callback_on_step_end=lambda *args: returned)


def test_long_schedule_is_not_written_out():
    stream = tiny_pipeline().stream(
        past_frames=frames(2), num_frames=3 * 10**9, num_inference_steps=1, output_type="pt"
    )
    assert next(stream).shape == (2, 3, 1, 8, 8)


def test_streamed_latents_may_be_changed():
    pipe = tiny_pipeline()
    arguments = {"past_frames": frames(2), "num_frames": 6, "num_inference_steps": 2, "output_type": "latent"}
    streams = [pipe.stream(**arguments, generator=torch.Generator().manual_seed(0)) for _ in range(2)]
    next(streams[0]).fill_(100.0)
    next(streams[1])
    assert torch.equal(next(streams[0]), next(streams[1]))


def test_every_block_has_noise_of_its_own():
    pipe = tiny_pipeline(DDIMScheduler(**{**LINEAR, "prediction_type": "sample"}))
    noise = []

    pipe.unet.register_forward_pre_hook(lambda module, args: noise.append(args[0][:, 2:5].clone()))
    call(pipe, steps=1, num_frames=9, batch_size=2, ensemble_size=2)
    blocks = torch.cat(noise)  # (3 blocks x 4 videos, ...)
    assert len(blocks) == 12
    for a, b in itertools.combinations(blocks, 2):
        assert (a * b).mean().abs() < 0.5  # 1 if they were the same


@pytest.mark.parametrize("name", ["DPMSolverMultistepScheduler", "UniPCMultistepScheduler", "PNDMScheduler"])
def test_scheduler_state_is_reset_for_each_window(name):
    used, fresh = (
        tiny_pipeline(getattr(diffusers, name).from_config(DDPMScheduler(**LINEAR).config)) for _ in range(2)
    )
    call(used, steps=6, past_frames=frames(2), num_frames=6)
    window, noise = torch.randn(1, 7, 1, 8, 8), torch.randn(1, 3, 1, 8, 8)
    roles = torch.tensor([[1, 1, 2, 2, 2, 0, 0]])
    first, second = (pipe.denoise(window, roles, latents=noise, num_inference_steps=6) for pipe in (used, fresh))
    assert torch.equal(first, second)


def test_interrupt_ends_the_call_with_the_block_in_progress():
    pipe = tiny_pipeline()
    calls = []
    pipe.unet.register_forward_pre_hook(lambda *args: calls.append(1))
    whole = call(pipe, past_frames=frames(2), num_frames=9)

    def callback(pipeline, step, timestep, kwargs):
        pipeline._interrupt = pipeline.block_index == 1 and step == 1
        return kwargs

    calls.clear()
    out = call(pipe, past_frames=frames(2), num_frames=9, callback_on_step_end=callback)
    assert len(calls) == 5 and out.shape[1] == 6 and torch.equal(out[:, :3], whole[:, :3])
    assert call(pipe, past_frames=frames(2), num_frames=9).shape[1] == 9  # the next call is not interrupted


def test_interrupt_ends_a_stream_without_an_end():
    pipe = tiny_pipeline()
    blocks = []
    for block in pipe.stream(past_frames=frames(2), num_inference_steps=1, output_type="pt"):
        blocks.append(block)
        pipe._interrupt = len(blocks) == 4
    assert len(blocks) == 4


def test_callback_may_change_the_guidance_of_the_block():
    pipe = tiny_pipeline()

    def callback(pipeline, step, timestep, kwargs):
        assert pipeline.guidance_scale == (4.0 if step == 0 else 1.0)
        pipeline._guidance_scale = 1.0
        return {}

    arguments = {"past_frames": frames(2), "num_frames": 6, "guidance_scale": 4.0}
    changed = call(pipe, callback_on_step_end=callback, **arguments)
    assert not torch.equal(changed, call(pipe, **arguments))


def test_stream_that_is_left_early_ends_its_bar(capfd):
    pipe = tiny_pipeline()
    pipe.set_progress_bar_config(disable=False)
    stream = pipe.stream(past_frames=frames(2), num_inference_steps=1, output_type="pt")
    next(stream)
    stream.close()
    assert "block 1/?" in capfd.readouterr().err


def test_progress_runs_over_blocks_and_steps(capfd):
    pipe = tiny_pipeline()
    pipe.set_progress_bar_config(disable=False)
    call(pipe, past_frames=frames(2), num_frames=6, max_batch_size=1)
    err = capfd.readouterr().err
    assert "block 2/2" in err and "12/12" in err  # 2 blocks, 3 steps, 2 chunks


# --------------------------------------------------------------------------------------------------------------------
# Forms of input and output


def test_every_form_of_input_gives_the_same_video():
    pipe = tiny_pipeline(in_channels=3)
    pixels = torch.randint(0, 256, (2, 2, 3, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    as_float = pixels.float() / 255
    channels_last = pixels.movedim(2, -1).numpy()
    images = [[Image.fromarray(frame) for frame in video] for video in channels_last]
    expected = call(pipe, past_frames=as_float)
    for form in (
        pixels,
        pixels.numpy(),
        channels_last,
        as_float.numpy(),
        as_float.movedim(2, -1).numpy().astype(np.float64),
        images,
        list(as_float),
        list(channels_last),
    ):
        assert torch.equal(call(pipe, past_frames=form), expected)
    single = call(pipe, past_frames=as_float[:1])
    for form in (as_float[0], channels_last[0], images[0], [as_float[0]]):
        assert torch.equal(call(pipe, past_frames=form), single)


def test_images_of_16_bits_are_as_good_as_floats():
    pipe = tiny_pipeline()
    counts = np.random.RandomState(0).randint(65536, size=(1, 2, 1, 8, 8)).astype(np.uint16)
    expected = call(pipe, past_frames=torch.from_numpy(counts.astype(np.float32) / 65535))
    for given in (counts, torch.from_numpy(counts), [Image.fromarray(frame) for frame in counts[0, :, 0]]):
        assert torch.equal(call(pipe, past_frames=given), expected)


def test_every_form_of_output_holds_the_same_video_in_colour():
    channels = 3
    pipe = tiny_pipeline(in_channels=channels)
    given = {"past_frames": frames(2, channels=channels), "num_frames": 4}
    out = {kind: call(pipe, output_type=kind, **given) for kind in ("pt", "np", "pil", "latent")}
    assert out["pt"].shape == (2, 4, channels, 8, 8) and out["np"].shape == (2, 4, 8, 8, channels)
    torch.testing.assert_close(((out["latent"] + 1) / 2).clamp(0, 1), out["pt"])
    assert np.array_equal(out["np"], out["pt"].movedim(2, -1).numpy())
    assert len(out["pil"]) == 2 and len(out["pil"][0]) == 4
    pixels = np.asarray(out["pil"][1][3]).reshape(8, 8, channels)
    assert np.array_equal(pixels, (out["np"][1, 3] * 255).round().astype(np.uint8))


def test_output_can_be_given_again():
    pipe = tiny_pipeline(in_channels=3)
    for kind in ("pt", "np", "pil"):
        made = call(pipe, past_frames=frames(2, channels=3), output_type=kind)
        last = [video[-2:] for video in made]
        assert call(pipe, past_frames=last).shape == (2, 3, 3, 8, 8)


def test_eight_channels_and_frames_that_are_not_square():
    pipe = tiny_pipeline(in_channels=8, sample_size=(8, 12))
    out = call(pipe, past_frames=frames(2, channels=8, size=(8, 20)), num_frames=4)
    assert out.shape == (2, 4, 8, 8, 20)
    assert call(pipe).shape == (1, 3, 8, 8, 12)
    assert call(pipe, height=16, width=4).shape == (1, 3, 8, 16, 4)


@pytest.mark.parametrize("size", [(7, 9), (8, 5)])
def test_frames_of_any_size_come_back_in_it(size):
    pipe = tiny_pipeline()
    past = frames(2, size=size)
    assert call(pipe, past_frames=past, num_frames=4).shape == (2, 4, 1, *size)
    assert call(pipe, height=size[0], width=size[1], batch_size=1).shape == (1, 3, 1, *size)


# --------------------------------------------------------------------------------------------------------------------
# The user's units

KELVIN = FrameNormalizer.from_range((200.0, 0.0), (320.0, 1.0))


def in_kelvin(pipe, normalizer=KELVIN):
    pipe = MCVDPipeline(pipe.unet, pipe.scheduler, normalization=normalizer.to_config())
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_kelvin_go_in_and_kelvin_come_out_saved_and_loaded(tmp_path):
    plain = tiny_pipeline(in_channels=2)
    in_kelvin(plain).save_pretrained(tmp_path)
    pipe = MCVDPipeline.from_pretrained(tmp_path)
    pipe.set_progress_bar_config(disable=True)
    assert pipe.normalizer == KELVIN
    unit = frames(2, channels=2)
    low, high = (torch.tensor(x)[:, None, None] for x in (KELVIN.low, KELVIN.high))
    kelvin = (low + unit.double() * (high - low)).numpy()  # float64, as fields often are
    out = call(pipe, past_frames=kelvin, num_frames=4)
    expected = low + call(plain, past_frames=unit, num_frames=4) * (high - low)
    torch.testing.assert_close(out, expected, atol=2e-2, rtol=0)  # float32: 3e-5 K, and what the network makes of it
    assert out[:, :, 0].min() >= 200 and out[:, :, 0].max() <= 320 and out[:, :, 0].std() > 1
    whole = call(pipe, past_frames=kelvin, num_frames=4, return_given_frames=True)
    assert torch.equal(whole[:, :2], torch.from_numpy(kelvin).float())  # given frames as they came
    streamed = list(pipe.stream(kelvin, num_frames=3, num_inference_steps=3, output_type="np"))[0]
    assert streamed.shape == (2, 3, 8, 8, 2) and streamed[..., 0].max() > 1


def test_latents_are_what_the_network_sees():
    pipe = in_kelvin(tiny_pipeline(in_channels=2))
    kelvin = KELVIN.decode(2 * frames(2, channels=2) - 1)
    latent = call(pipe, past_frames=kelvin, output_type="latent", return_given_frames=True)
    assert torch.equal(latent[:, :2], KELVIN.encode(kelvin))
    assert torch.equal(KELVIN.decode(latent[:, 2:]), call(pipe, past_frames=kelvin))


def test_uncertainty_is_in_the_users_units():
    pipe = in_kelvin(tiny_pipeline(in_channels=2))
    out = pipe(
        past_frames=KELVIN.decode(2 * frames(2, channels=2) - 1),
        ensemble_size=3,
        output_uncertainty=True,
        output_type="pt",
        num_inference_steps=3,
    )
    torch.testing.assert_close(out.uncertainty, out.frames.unflatten(0, (2, 3)).std(dim=1))


def test_missing_values_go_in_with_a_mask_and_come_out_as_nan():
    normalizer = FrameNormalizer.from_range(200.0, 320.0, nan_fill=200.0, has_mask_channel=True)
    plain = tiny_pipeline(in_channels=2)
    pipe = in_kelvin(plain, normalizer)
    kelvin = 200 + 120 * frames(2)
    kelvin[0, 1, 0, 2:5] = torch.nan
    out = call(pipe, past_frames=kelvin)
    assert out.shape == (2, 3, 1, 8, 8)
    raw = call(plain, past_frames=(normalizer.encode(kelvin) + 1) / 2, output_type="latent")
    is_missing = raw[:, :, 1:] < 0
    assert 0 < is_missing.float().mean() < 1 and torch.equal(out.isnan(), is_missing)
    pictures = call(in_kelvin(plain, normalizer), past_frames=kelvin, output_type="pil")
    assert pictures[0][0].mode == "L" and pictures[0][0].size == (8, 8)


@pytest.mark.parametrize(
    "make, message",
    [
        (
            lambda: frames(2, channels=2),
            r"units of the training data: 100% of the values of channel 0 lie .*\[200, 320\]",
        ),
        (lambda: torch.full((1, 2, 2, 8, 8), torch.nan), "NaN or infinite.*Fill them"),
        (lambda: [Image.new("L", (8, 8))] * 2, "must be numbers in the units of the training data .range, 200 to 320"),
        (lambda: torch.zeros(1, 2, 2, 8, 8, dtype=torch.bool), "got torch.bool"),
    ],
)
def test_frames_in_other_units_are_refused(make, message):
    pipe = in_kelvin(tiny_pipeline(in_channels=2), FrameNormalizer.from_range((200.0, 0.0), (320.0, 1.0)))
    with pytest.raises(ValueError, match=message):
        call(pipe, past_frames=make())


def test_units_of_another_network_are_refused():
    with pytest.raises(ValueError, match="`normalization` is for 2 channel.*have 1 in all"):
        in_kelvin(tiny_pipeline())
    with pytest.raises(ValueError, match="`normalization` must be the config of a FrameNormalizer.*nonsense"):
        MCVDPipeline(tiny_pipeline().unet, original_ddim(), normalization={"nonsense": 1})


def test_a_tuple_holds_the_uncertainty_if_asked_for():
    pipe = tiny_pipeline()
    arguments = {"past_frames": frames(2), "num_inference_steps": 2, "output_type": "pt", "return_dict": False}
    assert len(pipe(**arguments, ensemble_size=2, output_uncertainty=True)) == 2


# --------------------------------------------------------------------------------------------------------------------
# Bad input: refused with a clear message, and before the network is called

BAD_CALLS = {
    "wrong channels": ({"past_frames": frames(2, channels=3)}, "`past_frames` must have 1 channel.s., got 3"),
    "past too long": (
        {"past_frames": frames(3)},
        r"has 3 frames, this network reads at most 2: pass the last 2 of each video",
    ),
    "future too long": ({"future_frames": frames(3)}, "`future_frames` has 3 frames.*the first 2"),
    "no frames": ({"past_frames": frames(0)}, "`past_frames` is empty"),
    "empty list": ({"past_frames": []}, "`past_frames` is an empty list"),
    "zero frames": ({"num_frames": 0}, "`num_frames` must be a positive integer, got 0"),
    "negative frames": (
        {"past_frames": frames(2), "num_frames": -4},
        "`num_frames` must be a positive integer, got -4",
    ),
    "half a frame": ({"num_frames": 2.5}, "`num_frames` must be a positive integer, got 2.5"),
    "zero steps": ({"num_inference_steps": 0}, "`num_inference_steps` must be a positive integer, got 0"),
    "zero batch": ({"batch_size": 0}, "`batch_size` must be a positive integer, got 0"),
    "zero ensemble": ({"ensemble_size": 0}, "`ensemble_size` must be a positive integer, got 0"),
    "too many steps": ({"num_inference_steps": 1001}, "`num_inference_steps` must be at most 1000.*got 1001"),
    "integers": ({"past_frames": torch.ones(1, 2, 1, 8, 8, dtype=torch.int64)}, "floats in .0, 1. or uint8.*int64"),
    "booleans": ({"past_frames": torch.ones(1, 2, 1, 8, 8, dtype=torch.bool)}, "floats in .0, 1. or uint8.*bool"),
    "objects": ({"past_frames": np.full((1, 2, 1, 8, 8), None)}, "must be an array of numbers, got dtype object"),
    "in [-1, 1]": (
        {"past_frames": 2 * frames(2) - 1},
        r"must be in \[0, 1\], got values from -.*pass \(frames \+ 1\) / 2",
    ),
    "in [0, 255]": ({"past_frames": 255 * frames(2)}, r"must be in \[0, 1\], got values.*divide by 255"),
    "NaN": (
        {"past_frames": torch.full((1, 2, 1, 8, 8), torch.nan)},
        "128 values that are NaN.*first in frame 0 of video 0",
    ),
    "a number": ({"past_frames": 3}, "must be a tensor, an array or a list, got int"),
    "a list of numbers": ({"past_frames": [1, 2]}, "must be a list of PIL images.*got a list of int"),
    "a list of lists of numbers": ({"past_frames": [[1, 2]]}, "must be a list of PIL images, got a list of int in it"),
    "a list of empty lists": ({"past_frames": [[], []]}, "`past_frames` is an empty list"),
    "one image": ({"past_frames": Image.new("L", (8, 8))}, r"is a single image: pass a list of frames, `\[image\]`"),
    "images of another mode": ({"past_frames": [Image.new("LAB", (8, 8))]}, "image of mode LAB: use image.convert"),
    "mixed modes": ({"past_frames": [Image.new("L", (8, 8)), Image.new("RGB", (8, 8))]}, "mixes shapes or types"),
    "mixed types": (
        {"past_frames": [torch.rand(2, 1, 8, 8), torch.zeros(2, 1, 8, 8, dtype=torch.uint8)]},
        "mixes shapes or types",
    ),
    "tensors and arrays": (
        {"past_frames": [torch.rand(2, 1, 8, 8), np.zeros((2, 1, 8, 8))]},
        "got a list of Tensor, ndarray",
    ),
    "long doubles": (
        {"past_frames": np.zeros((1, 2, 1, 8, 8), np.longdouble)},
        "which torch does not know: use float32",
    ),
    "sparse": ({"past_frames": torch.zeros(1, 2, 1, 8, 8).to_sparse()}, "must be an ordinary tensor"),
    "three axes": ({"past_frames": torch.rand(2, 8, 8)}, r"must have 5 axes \(B, T, C, H, W\)"),
    "mixed sizes": (
        {"past_frames": [torch.rand(2, 1, 8, 8), torch.rand(1, 1, 8, 8)]},
        "`past_frames` mixes shapes or types",
    ),
    "colour images": ({"past_frames": [Image.new("RGB", (8, 8))]}, "`past_frames` must have 1 channel.s., got 3"),
    "sizes disagree": (
        {"past_frames": frames(2), "future_frames": frames(2, size=(8, 10))},
        "`past_frames` and `future_frames` must agree",
    ),
    "batches disagree": (
        {"past_frames": frames(2), "future_frames": frames(2, batch=1)},
        "`past_frames` and `future_frames` must agree",
    ),
    "batch size disagrees": (
        {"past_frames": frames(2), "batch_size": 5},
        "`batch_size` is 5, but the given frames have 2",
    ),
    "short gap": (
        {"past_frames": frames(2), "future_frames": frames(2), "num_frames": 2},
        "`num_frames` must be at least 3, one block of this network, to interpolate; got 2",
    ),
    "output type": ({"output_type": "jpg"}, '`output_type` must be "pil", "np", "pt" or "latent"'),
    "generators": ({"generator": [torch.Generator()] * 3}, "`generator` is a list of 3 for 1 videos"),
    "latents": (
        {"latents": torch.zeros(1, 2, 1, 8, 8)},
        r"`latents` must be a float tensor of shape \(1, 3, 1, 8, 8\)",
    ),
    "callback": (
        {"callback_on_step_end_tensor_inputs": ["frames"]},
        "`callback_on_step_end_tensor_inputs` has to be in",
    ),
    "guidance": ({"guidance_scale": -1}, "`guidance_scale` must be a number of at least 0"),
    "guidance without end": ({"guidance_scale": float("inf")}, "`guidance_scale` must be a number of at least 0"),
    "eta": ({"eta": 2.0}, r"`eta` must be a number in \[0, 1\], got 2.0"),
    "eta that is no number": ({"eta": float("nan")}, r"`eta` must be a number in \[0, 1\], got nan"),
    "steps said twice": ({"timesteps": [9], "sigmas": [1.0]}, "`timesteps` and `sigmas` both say which steps to take"),
    "noise with NaN": ({"latents": torch.full((1, 3, 1, 8, 8), torch.nan)}, "`latents` has values that are NaN"),
    "uncertainty of one": ({"output_uncertainty": True}, "pass `ensemble_size` > 1"),
    "own timesteps": ({"timesteps": [900, 500]}, "DDIMScheduler does not take own timesteps"),
    "final denoise": ({"final_denoise": True}, "`final_denoise=True`.*needs prediction_type='epsilon'"),
}


@pytest.mark.parametrize("name", BAD_CALLS)
def test_bad_call_is_refused_before_any_work(name):
    arguments, message = BAD_CALLS[name]
    pipe = tiny_pipeline()
    calls = []
    pipe.unet.register_forward_pre_hook(lambda *args: calls.append(1))
    with pytest.raises(ValueError, match=message):
        pipe(**arguments)
    assert not calls


@pytest.mark.parametrize("name", ["past too long", "NaN", "zero frames"])
def test_bad_stream_is_refused_when_it_is_made(name):
    arguments, message = BAD_CALLS[name]
    with pytest.raises(ValueError, match=message):
        tiny_pipeline().stream(**arguments)


def test_stream_names_arguments_it_does_not_have():
    with pytest.raises(TypeError, match="`stream` has no arguments .'latents'"):
        tiny_pipeline().stream(latents=torch.zeros(1))


def test_ambiguous_array_is_refused():
    with pytest.raises(ValueError, match="could be .B, T, C, H, W. or .B, T, H, W, C."):
        tiny_pipeline(in_channels=8)(past_frames=np.zeros((1, 2, 8, 8, 8), np.float32), output_type="pt")


def test_images_of_eight_channels_are_refused():
    with pytest.raises(ValueError, match='`output_type="pil"`: frames of 8 channels are no images'):
        tiny_pipeline(in_channels=8)()


@pytest.mark.parametrize(
    "config, arguments, message",
    [
        ({"drop_past": 0.0}, {}, "always had its 2 past frames in training"),
        ({"drop_past": 0.0}, {"past_frames": frames(1)}, "always had its 2 past frames.*`past_frames` has 1: pass 2"),
        ({"drop_past": 0.0}, {"future_frames": frames(2)}, "always had its 2 past frames"),
        ({"drop_future": 0.0}, {"past_frames": frames(2)}, "always had its 2 future frames"),
        (
            {"drop_future": 0.0},
            {"past_frames": frames(2), "future_frames": frames(2), "num_frames": 6},
            "always had its 2 future frames",
        ),
        (
            {"drop_past": 0.0, "drop_future": 0.0},
            {"past_frames": frames(2), "future_frames": frames(2), "guidance_scale": 2.0},
            "never saw absent in training",
        ),
        ({"drop_past": 1.0}, {"past_frames": frames(2)}, "`past_frames`: this network never had them in training"),
        ({"num_future_frames": 0}, {"future_frames": frames(1)}, "`future_frames`: this network reads none"),
    ],
)
def test_task_that_was_never_trained_is_refused(config, arguments, message):
    with pytest.raises(ValueError, match=message):
        tiny_pipeline(**config)(**arguments)


def test_guider_for_a_network_without_masks_is_refused():
    pipe = tiny_pipeline(drop_past=0.0, drop_future=0.0)
    pipe.guider = ClassifierFreeGuidance(3.0)
    with pytest.raises(ValueError, match="`guider` compares with absent frames.*set `pipe.guider = None`"):
        pipe(past_frames=frames(2), future_frames=frames(2))


def test_guider_sees_each_block_from_its_first_step():
    """Frames that are there, then the same absent; a second call of the block's first step, for memory that ended, too."""
    pipe = tiny_pipeline()
    expected = call(pipe, past_frames=frames(2), num_frames=6, guidance_scale=2.0)
    pipe.guider = AdaptiveProjectedGuidance(2.0, adaptive_projected_guidance_momentum=0.9)
    whole = call(pipe, past_frames=frames(2), num_frames=6)
    assert (whole - expected).abs().max() > 1e-2
    seen = record_roles(pipe)
    divided = call(pipe, past_frames=frames(2), num_frames=6, max_batch_size=1)
    torch.testing.assert_close(divided, whole, atol=1e-4, rtol=0)
    assert [roles.tolist() for roles in seen[:2]] == [[[1, 1, 2, 2, 2, 0, 0]], [[0, 0, 2, 2, 2, 0, 0]]]
    streamed = pipe.stream(
        past_frames=frames(2),
        num_frames=6,
        num_inference_steps=3,
        generator=torch.Generator().manual_seed(0),
        output_type="pt",
    )
    assert torch.equal(torch.cat(list(streamed), dim=1), whole)


def test_guider_changes_the_network_back_when_memory_ends():
    pipe = tiny_pipeline()
    layers = LayerSkipConfig([1], fqn="down_blocks", skip_ff=False)
    pipe.guider = AutoGuidance(2.0, auto_guidance_config=layers)
    expected = call(pipe, past_frames=frames(2))
    calls = []

    def refuse(module, args):
        calls.append(len(args[0]))
        if len(calls) == 2:  # the one with the changed network
            raise torch.OutOfMemoryError("no memory left")

    pipe.unet.register_forward_pre_hook(refuse)
    torch.testing.assert_close(call(pipe, past_frames=frames(2)), expected, atol=1e-5, rtol=0)
    assert calls[:3] == [2, 2, 1]


def test_guider_and_the_last_network_call_go_together():
    pipe = tiny_pipeline(original_ddim())
    expected = call(pipe, past_frames=frames(2), guidance_scale=2.0, final_denoise=True)
    pipe.guider = ClassifierFreeGuidance(2.0)
    out = call(pipe, past_frames=frames(2), final_denoise=True)
    torch.testing.assert_close(out, expected, atol=1e-3, rtol=0)


def test_task_that_was_trained_without_masks_runs():
    pipe = tiny_pipeline(drop_past=0.0, drop_future=0.0)
    assert call(pipe, past_frames=frames(2), future_frames=frames(2)).shape == (2, 3, 1, 8, 8)
    pipe = tiny_pipeline(drop_past=0.0, num_future_frames=0)
    assert call(pipe, past_frames=frames(2), num_frames=7).shape == (2, 7, 1, 8, 8)


def test_eta_that_the_scheduler_does_not_know_is_refused():
    pipe = tiny_pipeline(diffusers.EulerDiscreteScheduler.from_config(DDPMScheduler(**LINEAR).config))
    with pytest.raises(ValueError, match="`eta` is 1.0, but EulerDiscreteScheduler does not know it"):
        pipe(eta=1.0)


def test_scheduler_of_another_length_is_refused():
    pipe = tiny_pipeline(DDIMScheduler(num_train_timesteps=100))
    with pytest.raises(ValueError, match="`scheduler` has 100 training timesteps, the network 1000"):
        pipe()


def test_roles_reach_the_network_as_integers_it_knows():
    pipe = tiny_pipeline()
    seen = record_roles(pipe)
    call(pipe, past_frames=frames(2), guidance_scale=2.0)
    assert set(seen[0].unique().tolist()) <= set(FrameRole)
    assert seen[0].tolist() == [[1, 1, 2, 2, 2, 0, 0]] * 2 + [[0, 0, 2, 2, 2, 0, 0]] * 2


# --------------------------------------------------------------------------------------------------------------------
# One list of arguments


def test_what_a_call_is_checked_for_are_the_arguments_of_the_pipeline():
    arguments = inspect.signature(MCVDPipeline.__call__).parameters
    only_of_the_output = {"self", "return_given_frames", "output_uncertainty", "return_dict"}
    assert [name for name in arguments if name not in only_of_the_output] == [field.name for field in fields(Call)]
    for field in fields(Call):
        default = arguments[field.name].default
        assert (tuple(default) if isinstance(default, list) else default) == field.default, field.name


def test_what_the_sampling_loop_takes_of_a_call():
    arguments = inspect.signature(MCVDPipeline.denoise).parameters
    of_the_window = {"self", "sample", "roles", "frame_indices", "low_resolution", "context", "generator", "latents"}
    of_the_window.add("bar")
    assert set(STEP_OPTIONS) == set(arguments) - of_the_window


# --------------------------------------------------------------------------------------------------------------------
# Speed: nothing waits, nothing is compiled twice


SCHEDULERS_BY_PREDICTION = {
    "v_prediction": [
        DDIMScheduler,
        DDPMScheduler,
        DPMSolverMultistepScheduler,
        EulerDiscreteScheduler,
        EulerAncestralDiscreteScheduler,
        HeunDiscreteScheduler,
        LCMScheduler,
        UniPCMultistepScheduler,
    ],
    "flow_prediction": [FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler],
    "edm": [EDMEulerScheduler, EDMDPMSolverMultistepScheduler],
}


@pytest.mark.parametrize("kind", ["mcvd", *contract_rows.SYSTEMS])
@pytest.mark.parametrize(
    ("prediction_type", "scheduler_class"),
    [(prediction_type, kind) for prediction_type, kinds in SCHEDULERS_BY_PREDICTION.items() for kind in kinds],
)
def test_no_step_waits_for_the_device(kind, prediction_type, scheduler_class):
    """A meta tensor has no values: whatever asks for one, as `item()` and a copy to the CPU do, fails."""
    if kind == "mcvd":
        shape = {"num_past_frames": 1, "num_frames": 2, "num_future_frames": 1, "block_out_channels": [8]}
        unet = MCVDUNet2DModel(
            in_channels=1, down_block_types=["AttnDownBlock2D"], prediction_type=prediction_type, **shape
        )
    else:
        config = contract_rows.SMALL_SPACE_TIME | contract_rows.SYSTEMS[kind]
        unet = SpaceTimeUNetModel(**config, prediction_type=prediction_type)
    own = {"prediction_type": prediction_type} if prediction_type == "v_prediction" else {}
    pipe = MCVDPipeline(unet.eval().to("meta"), scheduler_class(**own))
    options = {"latents": torch.zeros(2, 2, 1, 8, 8, device="meta"), "num_inference_steps": 3}
    if kind in ("mcvd", "fdm"):
        options["guidance_scale"] = 2.0
    if kind == "vdm":
        options |= {"replacement": "noised", "reconstruction_guidance": 1.0}
    roles = torch.tensor([[1, 2, 2, 1]] * 2)
    with NoCopies() as copies:
        for name in ("step", "scale_model_input"):  # what Diffusers' own code copies is its own
            if hasattr(pipe.scheduler, name):
                setattr(pipe.scheduler, name, copies.allowed_in(getattr(pipe.scheduler, name)))
        unet.register_forward_pre_hook(copies.forbid)  # from the first step on
        made = pipe.denoise(torch.zeros(2, 4, 1, 8, 8, device="meta"), roles, **options)
    assert made.shape == (2, 2, 1, 8, 8) and made.device.type == "meta"


class NoCopies(TorchDispatchMode):
    """Refuses copies from the CPU to the device, for which the device is waited for, too."""

    def __init__(self):
        super().__init__()
        self.is_forbidden = False

    def forbid(self, *_):
        self.is_forbidden = True

    def allowed_in(self, function):
        @functools.wraps(function)
        def run(*args, **kwargs):
            before, self.is_forbidden = self.is_forbidden, False
            result = function(*args, **kwargs)
            self.is_forbidden = before
            return result

        return run

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        sources = [x for x in args if torch.is_tensor(x)]
        is_copy = func.overloadpacket in (torch.ops.aten._to_copy, torch.ops.aten.copy_)
        if self.is_forbidden and is_copy and made.device.type == "meta" and sources[-1].device.type == "cpu":
            raise AssertionError(f"{func} of {tuple(made.shape)} waits for the device")
        return made


@pytest.mark.slow
@pytest.mark.parametrize("conditioning", ["concat", "spatin"])
def test_a_network_is_compiled_once_for_all_tasks_and_timesteps(conditioning):
    torch._dynamo.reset()
    unet = MCVDUNet2DModel(
        sample_size=8,
        in_channels=1,
        num_past_frames=1,
        num_frames=2,
        num_future_frames=1,
        block_out_channels=[8, 8],
        down_block_types=["DownBlock2D", "AttnDownBlock2D"],
        conditioning=conditioning,
        embed_past_kept=True,
        observed_noise=0.5,
    )
    frame, tasks = (
        torch.rand(1, 1, 1, 8, 8),
        [("past_frames",), ("future_frames",), ("past_frames", "future_frames"), ()],
    )

    def make_all(pipe):
        pipe.set_progress_bar_config(disable=True)
        made = []
        for given in tasks:
            for num_steps in (2, 3):
                options = dict.fromkeys(given, frame) | {"num_frames": 2, "num_inference_steps": num_steps}
                generator = torch.Generator().manual_seed(0)
                made.append(pipe(**options, generator=generator, output_type="latent").frames)
        return torch.stack(made)

    expected = make_all(MCVDPipeline(unet.eval(), DDIMScheduler()))
    compiled = torch.compile(unet, fullgraph=True, backend="aot_eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        torch.testing.assert_close(make_all(MCVDPipeline(compiled, DDIMScheduler())), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("conditioning", ["concat", "spatin"])
def test_half_precision_stays_within_its_bound(conditioning):
    """What docs/verified.md says of bfloat16: one call's output, as a share of its standard deviation."""
    torch.manual_seed(0)
    shape = {"num_past_frames": 2, "num_frames": 2, "block_out_channels": [32, 48, 64]}
    kinds = ["DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"]
    unet = MCVDUNet2DModel(in_channels=1, conditioning=conditioning, down_block_types=kinds, **shape)
    contract_rows.shaken(unet)
    sample, roles = torch.rand(2, 4, 1, 32, 32) * 2 - 1, torch.tensor([[1, 1, 2, 2]] * 2)
    with torch.no_grad():
        expected = unet(sample, 500, roles).sample[:, 2:]
        unet.to(torch.bfloat16)
        made = unet(sample.bfloat16(), 500, roles).sample[:, 2:].float()
    difference = (made - expected).square().mean().sqrt() / expected.std()
    assert 1e-5 < difference < 0.03
