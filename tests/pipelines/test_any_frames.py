"""Any frames given any frames: replacement, resampling, guidance towards what is known, histories, frame schedules."""

import gc
from dataclasses import replace

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    KDPM2DiscreteScheduler,
    LMSDiscreteScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)
from hypothesis import given, settings

import contract_rows
from gaussian_video import PLANS, SAMPLING, NoNoise, gaussian_pipeline
from mcvd_diffusers import (
    FramePlan,
    FrameRole,
    MCVDPipeline,
    MCVDUNet2DModel,
    NoiseSequence,
    SpaceTimeUNetModel,
    Window,
    blocks,
    frame_schedule,
)
from mcvd_diffusers.frame_schedules import ADAPTIVE_FRAME_SCHEDULES, FRAME_SCHEDULES
from mcvd_diffusers.guidance import (
    downsample,
    guide_by_reconstruction,
    reconstruction_error,
)
from mcvd_diffusers.objectives import Objective, sampling_level
from mcvd_diffusers.pipelines.request import Call, read_request
from original_space_time import load_network, load_reference, roles_of


NOISE_SCHEDULERS = [
    EulerDiscreteScheduler,
    EulerAncestralDiscreteScheduler,
    HeunDiscreteScheduler,
    KDPM2DiscreteScheduler,
    LMSDiscreteScheduler,
    DPMSolverMultistepScheduler,
    UniPCMultistepScheduler,
]
# One network of each system; VDM's has never been given a frame.
SYSTEMS = contract_rows.SYSTEMS | {
    "vdm": contract_rows.SYSTEMS["vdm"] | {"drop_observed": 1.0, "has_frame_gaps": True}
}
TINY = contract_rows.SMALL_SPACE_TIME | {"max_frames": 8}


def tiny_pipeline(system, scheduler=None, **options):
    """A pipeline with a small network of a system whose weights all matter."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = contract_rows.shaken(SpaceTimeUNetModel(**TINY, **SYSTEMS[system]))
    if system == "vdm":
        options = {"replacement": "noised", **options}
    scheduler = scheduler or DDIMScheduler(prediction_type="v_prediction", clip_sample=True)
    pipe = MCVDPipeline(network, scheduler, **options)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def frames(count, batch_size=1, size=8):
    return torch.rand(batch_size, count, 1, size, size, generator=torch.Generator().manual_seed(count))


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def record_inputs(pipe):
    """What the network is called with: a list that grows with each call."""
    calls = []
    pipe.unet.register_forward_pre_hook(
        lambda module, args, kwargs: calls.append((args[0].clone(), args[1], args[2].clone())), with_kwargs=True
    )
    return calls


# --------------------------------------------------------------------------------------------------------------------
# Closed forms


def run_oracle(entry):
    """The mean of what our sampler makes of an entry's given frames."""
    pipe, sample, roles = gaussian_pipeline(), torch.zeros(1, 8, 1, 1, 1), torch.full((1, 8), FrameRole.LATENT)
    for position, value in zip(entry["observed"], entry["observed_values"]):
        sample[0, position], roles[0, position] = value, FrameRole.OBSERVED
    options = {"native": {}, "noised": {"replacement": "noised"}, "clean": {"replacement": "clean"}}
    options["recon"] = {"replacement": "noised", "reconstruction_guidance": entry["weight"]}
    return pipe.denoise(
        sample,
        roles,
        generator=NoNoise(),
        num_inference_steps=1000,
        num_resamples=entry["resamples"],
        **options[entry["method"]],
    ).flatten()


def oracle_entries(*methods, most_resamples=5, least_resamples=1):
    return [
        pytest.param(x, id=f"{x['task']}-{x['method']}-w{x['weight']:g}-R{x['resamples']}")
        for x in SAMPLING
        if x["method"] in methods and least_resamples <= x["resamples"] <= most_resamples
    ]


@pytest.mark.parametrize("entry", oracle_entries("native", "noised", "clean"))
def test_ram_6_sampling_a_gaussian_video_gives_the_known_mean(entry):
    torch.testing.assert_close(run_oracle(entry), torch.tensor(entry["mean"]), atol=1e-4, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("entry", oracle_entries("noised", "clean", least_resamples=20, most_resamples=20))
def test_ram_6_sampling_a_gaussian_video_with_20_resamples_gives_the_known_mean(entry):
    # 20,000 steps of float32 leave 3e-4 (5,000 leave 4e-5).
    torch.testing.assert_close(run_oracle(entry), torch.tensor(entry["mean"]), atol=5e-4, rtol=0)


@pytest.mark.parametrize("entry", oracle_entries("recon"))
def test_vdm_2_guiding_a_gaussian_video_gives_the_known_mean(entry):
    torch.testing.assert_close(run_oracle(entry), torch.tensor(entry["mean"]), atol=1e-4, rtol=0)


@pytest.mark.slow
def test_vdm_2_guidance_comes_nearer_to_the_truth_than_replacement():
    def error(method, weight=0, resamples=1):
        entry = next(
            x
            for x in SAMPLING
            if (x["task"], x["method"], x["weight"], x["resamples"]) == ("prediction", method, weight, resamples)
        )
        return (run_oracle(entry) - torch.tensor(entry["exact_mean"])).square().mean().sqrt().item()

    errors = [error("noised"), error("recon", 1.0), error("recon", 2.0), error("recon", 5.0)]
    assert errors == pytest.approx([0.427, 0.281, 0.163, 0.105], abs=2e-3)
    assert error("recon", 1.0, 5) == pytest.approx(0.020, abs=2e-3)


@pytest.mark.slow
def test_vdm_2_guidance_makes_what_is_sampled_narrower():
    """The spread of the first new frame over that of the truth, as known in closed form; here of 4000 samples."""
    ratios = []
    for method, weight in (("noised", 0), ("recon", 1.0), ("recon", 2.0), ("recon", 5.0)):
        entry = next(
            x
            for x in SAMPLING
            if (x["task"], x["method"], x["weight"], x["resamples"]) == ("prediction", method, weight, 1)
        )
        sample, roles = torch.zeros(4000, 8, 1, 1, 1), torch.full((4000, 8), FrameRole.LATENT)
        sample[:, :2] = torch.tensor(entry["observed_values"])[:, None, None, None]
        roles[:, :2] = FrameRole.OBSERVED
        made = gaussian_pipeline().denoise(
            sample,
            roles,
            generator=NoiseSequence(seeded(1)),
            num_inference_steps=1000,
            replacement="noised",
            reconstruction_guidance=weight,
        )
        std = made.flatten(1).std(dim=0)
        # The standard deviation of a standard deviation of 4000 samples is 1.1 %.
        torch.testing.assert_close(std, torch.tensor(entry["std"]), rtol=0.05, atol=0)
        ratios.append(std[0].item() / entry["exact_std"][0])
    assert ratios == pytest.approx([1.32, 1.15, 1.02, 0.78], rel=0.05)
    assert ratios == sorted(ratios, reverse=True)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_vdm_1_guidance_of_a_linear_denoiser_is_the_closed_form(prediction_type):
    generator, objective = seeded(), Objective(prediction_type)
    for _ in range(20):
        signal = float(torch.rand((), generator=generator)) * 0.98 + 0.01
        level = alpha, sigma = signal**0.5, (1 - signal) ** 0.5
        root = torch.randn(6, 6, generator=generator, dtype=torch.float64)
        covariance = root @ root.T + 0.1 * torch.eye(6, dtype=torch.float64)
        gain = alpha * covariance @ torch.linalg.inv(alpha**2 * covariance + sigma**2 * torch.eye(6))
        z, x = (torch.randn(6, generator=generator, dtype=torch.float64) for _ in range(2))
        known, made, weight = torch.tensor([0, 3]), torch.tensor([1, 2, 4, 5]), 2.5
        window = z[None, :, None, None, None]

        def predict(noisy):
            shown = window.index_copy(1, made, noisy)
            clean = torch.einsum("ij,bjchw->bichw", gain, shown)
            return shown, objective.from_clean(clean, shown, level)

        def error(clean):
            given = x[known][None, :, None, None, None]
            return reconstruction_error(clean, given=given, slots=known, weight=weight)

        guided = guide_by_reconstruction(predict, window[:, made], error, slots=made, level=level, objective=objective)
        clean = objective.to_clean(guided, window[:, made], level).flatten()
        estimate = gain @ z
        # The gradient of a sum of squares of a linear function, written out.
        expected = estimate[made] + weight * alpha * gain[known][:, made].T @ (x - estimate)[known]
        torch.testing.assert_close(clean, expected, atol=1e-5, rtol=1e-5)


def test_vdm_1_guidance_through_a_network_agrees_with_finite_differences():
    pipe = tiny_pipeline("vdm")
    unet, generator = pipe.unet.double(), seeded()
    window = torch.randn(1, 4, 1, 8, 8, generator=generator, dtype=torch.float64)
    given = torch.randn(1, 1, 1, 8, 8, generator=generator, dtype=torch.float64)
    roles, slots, level = torch.full((1, 4), 2), torch.tensor([1, 2, 3]), (0.8, 0.6)
    objective = Objective("v_prediction")

    def predict(noisy):
        shown = window.index_copy(1, slots, noisy)
        return shown, unet(shown, 300, roles, return_dict=False)[0]

    def error(clean):
        return reconstruction_error(clean, given=given, slots=torch.tensor([0]), weight=3.0)

    def error_at(noisy):
        shown, prediction = predict(noisy)
        return error(objective.to_clean(prediction, shown, level)).item()

    noisy = window[:, slots]
    guided = guide_by_reconstruction(predict, noisy, error, slots=slots, level=level, objective=objective)
    guided = objective.to_clean(guided, noisy, level)
    plain = objective.to_clean(predict(noisy)[1][:, slots], noisy, level)
    gradient = (plain - guided) / (level[0] / 2)
    for _ in range(5):
        direction = torch.randn(noisy.shape, generator=generator, dtype=torch.float64)
        difference = (error_at(noisy + 1e-4 * direction) - error_at(noisy - 1e-4 * direction)) / 2e-4
        assert (gradient * direction).sum().item() == pytest.approx(difference, rel=1e-3)


def plan_rows():
    """Those of 100 frames; by default of windows of 10 frames, given 5; all in the long run."""
    rows = []
    for row in PLANS:
        if row["video_length"] == 100:
            marks = [pytest.mark.slow] if (row["max_frames"], row["num_obs"]) != (10, 5) else []
            rows.append(pytest.param(row, id=f"{row['scheme']}-{row['max_frames']}-{row['num_obs']}", marks=marks))
    return rows


def distance_of_positions(one, other):
    """The distance that the recorded adaptive schedules chose by: of positions, whatever is in the frames."""
    first, second = (
        np.array([np.sin(0.7 * i), np.cos(1.3 * i), 2 * np.sin(0.05 * i), 3 * np.cos(0.013 * i)]) for i in (one, other)
    )
    return float(((first - second) ** 2).sum())


@pytest.mark.parametrize("row", plan_rows())
def test_fdm_9_schedules_keep_what_they_can_of_a_long_gaussian_video(row):
    num_given, num_frames = row["num_obs"], row["video_length"]
    schedule = row["scheme"]
    if schedule in ADAPTIVE_FRAME_SCHEDULES:
        sizes = {"observed": range(num_given), "max_frames": row["max_frames"], "step": row["step_size"]}
        schedule = list(frame_schedule(schedule, num_frames, distance=distance_of_positions, **sizes))
    pipe = gaussian_pipeline(decay=0.95, shared=0.3, max_frames=row["max_frames"])
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, timestep_spacing="linspace")
    count, generator = 3000, seeded()
    past = {}
    if num_given:
        root = torch.linalg.cholesky(pipe.unet.covariance(torch.arange(num_given).double()))
        first = torch.randn(count, num_given, generator=generator, dtype=torch.float64) @ root.T
        past = {"past_frames": first.float()[..., None, None, None]}
    video = pipe(
        **past,
        batch_size=None if past else count,
        num_frames=num_frames - num_given,
        frame_schedule=schedule,
        step=None if isinstance(schedule, list) else row["step_size"],
        num_inference_steps=40,
        generator=NoiseSequence(generator),
        output_type="latent",
        return_given_frames=True,
    ).frames.flatten(1)
    first = video[:, max(num_given - 1, 0)]
    correlation = torch.corrcoef(torch.stack([first, video[:, -1]]))[0, 1].item()
    assert correlation == pytest.approx(row["corr_first_last"], abs=0.06)


# --------------------------------------------------------------------------------------------------------------------
# The originals' trajectories


def used_draws(noise, num_steps, num_resamples, slots):
    """The original also draws at the last step, and does not use it; we do not draw there."""
    noise = noise.transpose(2, 3)  # (draw, B, T, C, H, W)
    draws, number = [noise[0][:, slots]], 1
    for step in range(num_steps):
        for repetition in range(num_resamples):
            draws += [noise[number][:, slots]] if step < num_steps - 1 else []
            number += 1
            if repetition < num_resamples - 1:
                draws.append(noise[number][:, slots])
                number += 1
    assert number == len(noise)
    return draws


@pytest.mark.parametrize("num_resamples", [1, 3])
@pytest.mark.parametrize("replacement", ["clean", None])
def test_ram_5_sampling_with_ramvids_noise_gives_its_trajectory(num_resamples, replacement):
    golden, tag = load_reference("ramvid_gray"), f"traj_R{num_resamples}"
    scheduler = DDPMScheduler(1000, 1e-4, 0.02, "linear", variance_type="fixed_large", clip_sample=True)
    pipe = MCVDPipeline(load_network("ramvid_gray", drop_observed=0.25), scheduler)
    pipe.set_progress_bar_config(disable=True)
    sample, roles = torch.zeros(1, 5, 1, 8, 8), torch.full((1, 5), FrameRole.LATENT)
    sample[:, golden["traj_cond_frames"]] = golden["traj_cond"].transpose(1, 2)
    roles[:, golden["traj_cond_frames"]] = FrameRole.OBSERVED
    slots = torch.tensor([2, 3, 4])
    calls = record_inputs(pipe)
    made = pipe.denoise(
        sample,
        roles,
        generator=NoiseSequence(used_draws(golden[f"{tag}_noise"], 5, num_resamples, slots)),
        timesteps=golden["traj_timesteps"].sort(descending=True).values.tolist(),
        replacement=replacement,
        num_resamples=num_resamples,
    )
    assert len(calls) == len(golden[f"{tag}_x_in"]) == 5 * num_resamples
    for (shown, timestep, _), theirs, time in zip(calls, golden[f"{tag}_x_in"], golden[f"{tag}_t"]):
        assert float(timestep) == time.item()
        torch.testing.assert_close(shown, theirs.transpose(1, 2), atol=2e-4, rtol=0)
    torch.testing.assert_close(made, golden[f"{tag}_final"].transpose(1, 2)[:, slots], atol=1e-3, rtol=0)


@pytest.mark.parametrize("row", [0, 1])
def test_sampling_with_fdms_noise_gives_its_trajectory(row):
    """One of its two clips, without padding; the padding of the other case has contents, which ours has not."""
    golden = load_reference("fdm_nopad")
    roles = roles_of("fdm_nopad")[row : row + 1]
    scheduler = DDPMScheduler(1000, 1e-4, 0.02, "linear", variance_type="fixed_large", clip_sample=True)
    pipe = MCVDPipeline(load_network("fdm_nopad", drop_observed=0.7), scheduler)
    pipe.set_progress_bar_config(disable=True)
    slots = (roles[0] == FrameRole.LATENT).nonzero().flatten()
    noise = golden["traj_noise"][:, row : row + 1][:, :, slots]
    calls = record_inputs(pipe)
    made = pipe.denoise(
        golden["x0"][row : row + 1],
        roles,
        frame_indices=golden["frame_indices"][row : row + 1],
        generator=NoiseSequence([noise[i] for i in range(5)]),
        timesteps=golden["traj_timesteps"].sort(descending=True).values.tolist(),
    )
    for (shown, _, _), theirs in zip(calls, golden["traj_x_in"][:, row : row + 1], strict=True):
        torch.testing.assert_close(shown[:, slots], theirs[:, slots], atol=2e-4, rtol=0)
    torch.testing.assert_close(made, golden["traj_final"][row : row + 1][:, slots], atol=1e-3, rtol=0)


def test_sampling_with_the_vdm_ports_noise_gives_its_trajectory():
    golden = load_reference("vdm_gray_long")
    scheduler = DDPMScheduler(5, trained_betas=golden["traj_betas"].tolist(), clip_sample=True)
    pipe = MCVDPipeline(load_network("vdm_gray_long", num_train_timesteps=5, drop_observed=1.0), scheduler)
    pipe.set_progress_bar_config(disable=True)
    noise = golden["traj_noise"].transpose(2, 3)
    calls = record_inputs(pipe)
    made = pipe.denoise(
        torch.zeros_like(noise[0]),
        torch.full(noise.shape[1:3], FrameRole.LATENT),
        generator=NoiseSequence([noise[i] for i in range(5)]),
        num_inference_steps=5,
    )
    for (shown, _, _), theirs in zip(calls, golden["traj_x_in"], strict=True):
        torch.testing.assert_close(shown, theirs.transpose(1, 2), atol=2e-4, rtol=0)
    torch.testing.assert_close((made + 1) / 2, golden["traj_final01"].transpose(1, 2), atol=1e-3, rtol=0)


# --------------------------------------------------------------------------------------------------------------------
# How given frames enter


@pytest.mark.parametrize("system, options", [("ramvid", {}), ("fdm", {}), ("ramvid", {"replacement": "clean"})])
def test_ram_3_the_network_gets_given_frames_as_they_are_and_they_are_returned_so(system, options):
    pipe, past = tiny_pipeline(system), frames(2, batch_size=2)
    calls = record_inputs(pipe)
    video = pipe(
        past_frames=past,
        num_frames=4,
        num_inference_steps=3,
        output_type="pt",
        return_given_frames=True,
        generator=seeded(),
        **options,
    ).frames
    assert len(calls) == 3
    for shown, _, _ in calls:
        assert torch.equal(shown[:, :2], pipe.normalizer.encode(past))
    assert torch.equal(video[:, :2], past) and video.shape == (2, 6, 1, 8, 8)


@pytest.mark.parametrize("scheduler_class", [DDPMScheduler, DDIMScheduler])
@pytest.mark.parametrize("steps", [{"num_inference_steps": 4}, {"num_inference_steps": 7}])
@pytest.mark.parametrize("given", ["past", "nothing"])
def test_ram_8_ddim_and_respacing_work_with_and_without_given_frames(scheduler_class, steps, given):
    pipe = tiny_pipeline("ramvid", scheduler_class(prediction_type="v_prediction"))
    inputs = {"past_frames": frames(3)} if given == "past" else {}
    video = pipe(**inputs, num_frames=5, output_type="pt", **steps).frames
    assert video.shape == (1, 5, 1, 8, 8) and video.isfinite().all()


def test_noised_frames_are_as_noisy_as_the_others():
    pipe, past = tiny_pipeline("vdm"), frames(2)
    calls = record_inputs(pipe)
    pipe(past_frames=past, num_frames=6, num_inference_steps=4, output_type="pt", generator=seeded())
    clean, stds = pipe.normalizer.encode(past), []
    for shown, timestep, roles in calls:
        assert (roles == FrameRole.LATENT).all()
        signal = float(pipe.scheduler.alphas_cumprod[int(timestep)])
        noise = (shown[:, :2] - signal**0.5 * clean) / (1 - signal) ** 0.5
        stds.append(noise.std().item())
    assert stds == pytest.approx([1.0] * 4, abs=0.25)  # 128 numbers each, drawn anew
    assert len(set(stds)) == 4


def test_vdm_3_guidance_of_weight_0_is_replacement_and_without_given_frames_there_is_none():
    pipe, past = tiny_pipeline("vdm"), frames(2)
    options = {"num_frames": 6, "num_inference_steps": 3, "output_type": "pt"}
    plain = pipe(past_frames=past, generator=seeded(), **options).frames
    guided = pipe(past_frames=past, generator=seeded(), reconstruction_guidance=0.0, **options).frames
    assert torch.equal(plain, guided)
    moved = pipe(past_frames=past, generator=seeded(), reconstruction_guidance=3.0, **options).frames
    assert not torch.equal(plain, moved)
    free = pipe(generator=seeded(), **options).frames
    unguided = pipe(generator=seeded(), reconstruction_guidance=5.0, replacement="noised", **options).frames
    assert torch.equal(free, unguided)


def test_vdm_4_the_more_weight_the_better_a_video_fits_what_is_known_of_it_small():
    pipe = gaussian_pipeline(sample_size=4, max_frames=4)
    small = torch.randn(1, 4, 1, 2, 2, generator=seeded(1))
    errors = []
    for weight in (0.0, 1.0, 2.0, 5.0):
        video = pipe(
            num_frames=4,
            low_resolution_frames=small,
            super_resolution_guidance=weight,
            num_inference_steps=50,
            generator=seeded(),
            output_type="pt",
        ).frames
        errors.append((downsample(video, (2, 2)) - small).square().sum().item())
    assert errors == sorted(errors, reverse=True) and errors[-1] < errors[0] / 4


def test_super_resolution_goes_with_given_frames_and_with_a_network_that_reads_them():
    pipelines = [contract_rows.PIPELINES[0].make(), *map(tiny_pipeline, SYSTEMS)]  # MCVD's in two blocks
    for pipe in pipelines:
        past, small = frames(2), frames(4, size=4)
        options = {"past_frames": past, "num_frames": 4, "num_inference_steps": 2, "output_type": "pt"}
        plain = pipe(generator=seeded(), **options).frames
        video = pipe(generator=seeded(), low_resolution_frames=small, super_resolution_guidance=5.0, **options).frames
        assert (downsample(video, (4, 4)) - small).square().sum() < (downsample(plain, (4, 4)) - small).square().sum()


def test_guidance_towards_some_frames_goes_with_conditioning_on_others():
    pipe = gaussian_pipeline()
    sample, roles = torch.zeros(1, 8, 1, 1, 1), torch.full((1, 8), FrameRole.LATENT)
    sample[0, 0], sample[0, 7], roles[0, 0], roles[0, 7] = 1.5, -0.5, 1, 1
    covariance = pipe.unet.covariance(torch.arange(8, dtype=torch.float64))
    known, made = torch.tensor([0, 7]), torch.arange(1, 7)
    exact = (
        covariance[made][:, known] @ torch.linalg.inv(covariance[known][:, known]) @ torch.tensor([1.5, -0.5]).double()
    )

    def error_of(made, **options):
        video = pipe.denoise(sample, roles, generator=NoNoise(), num_inference_steps=200, **options)
        return (video.flatten() - exact)[made].square().mean().sqrt().item()

    def error(**options):
        return error_of(slice(None), **options)

    some = {"replacement": {"future": "noised"}}
    assert error() < 0.01
    assert error(**some, reconstruction_guidance=2.0) < 0.5 * error(**some)
    # What the network reads needs no guidance: all of it by guidance is worse on the side that it could have read.
    all_guided = {"replacement": "noised", "reconstruction_guidance": 2.0}
    assert error_of(slice(0, 2), **some, reconstruction_guidance=2.0) < error_of(slice(0, 2), **all_guided)


@pytest.mark.parametrize("scheduler_class", [EulerDiscreteScheduler, EulerAncestralDiscreteScheduler, DDIMScheduler])
def test_repeating_steps_brings_replaced_frames_together_with_any_scheduler_without_memory(scheduler_class):
    pipe = gaussian_pipeline(prediction_type="epsilon")
    pipe.scheduler.register_to_config(prediction_type="epsilon")
    pipe.scheduler = scheduler_class.from_config(pipe.scheduler.config, timestep_spacing="trailing")
    sample, roles = torch.zeros(1, 8, 1, 1, 1), torch.full((1, 8), FrameRole.LATENT)
    sample[0, 0], sample[0, 1], roles[0, :2] = 1.5, 1.2, FrameRole.OBSERVED
    exact = torch.tensor(SAMPLING[0]["exact_mean"])

    def error(num_resamples):
        options = {"replacement": "noised", "num_inference_steps": 100, "num_resamples": num_resamples}
        return (pipe.denoise(sample, roles, generator=NoNoise(), **options).flatten() - exact).abs().mean().item()

    once, often = error(1), error(20)
    assert often < 0.3 * once


@pytest.mark.parametrize(
    "scheduler_class",
    [
        PNDMScheduler,
        DPMSolverMultistepScheduler,
        UniPCMultistepScheduler,
        HeunDiscreteScheduler,
        KDPM2DiscreteScheduler,
    ]
    + [LMSDiscreteScheduler],
)
def test_schedulers_that_remember_steps_are_refused_for_resampling_and_serve_otherwise(scheduler_class):
    options = {"past_frames": frames(2), "num_frames": 10, "num_inference_steps": 4, "output_type": "pt"}
    for steps in (4, 25):
        for betas in ({}, {"beta_schedule": "squaredcos_cap_v2"}):  # whose largest noise is some thousands
            pipe = tiny_pipeline("fdm", scheduler_class(prediction_type="v_prediction", **betas))
            with pytest.raises(ValueError, match="`num_resamples` is 2, but .* remembers former steps"):
                pipe(num_resamples=2, eta=1.0, **options | {"num_inference_steps": steps})
    # Each window begins anew: the video is that of a scheduler that was never used.
    first, second = (pipe(generator=seeded(), **options).frames for _ in range(2))
    assert torch.equal(first, second)


# --------------------------------------------------------------------------------------------------------------------
# Histories


@pytest.mark.parametrize("system", ["fdm", "ramvid"])
def test_histories_are_composed_as_the_formula_says(system):
    spacing = {"timestep_spacing": "trailing"}  # so that a single step is the noisiest
    pipe = tiny_pipeline(system, DDIMScheduler(prediction_type="sample", clip_sample=False, **spacing))
    sample, roles = torch.zeros(1, 6, 1, 8, 8), torch.tensor([[1, 1, 1, 2, 2, 2]])
    sample[:, :3] = pipe.normalizer.encode(frames(3))
    noisy = torch.randn(1, 3, 1, 8, 8, generator=seeded())
    shown = sample.clone()
    shown[:, 3:] = noisy

    def clean(*keep):
        there = [x for x in range(3) if x in keep] + [3, 4, 5]  # what is left out is not shown at all
        seen = torch.tensor([[1] * len(keep) + [2, 2, 2]])
        with torch.no_grad():
            frame_indices = torch.tensor([there])
            return pipe.unet(shown[:, there], 999, seen, frame_indices, return_dict=False)[0][:, len(keep) :]

    calls = record_inputs(pipe)
    # A network of volumes is never shown a clip with holes.
    some = (0, 1) if system == "fdm" else (1, 2)
    histories = [(None, 1.5), ([-1], 0.5), ([2], 0.25), (list(some), -0.5)]
    # One step of DDIM to the end gives the clean frames that were predicted.
    made = pipe.denoise(sample, roles, latents=noisy, num_inference_steps=1, history_guidance=histories)
    assert sum(len(call[0]) for call in calls) == 4  # nothing, all, the last, some: equal ones once
    nothing = clean()
    expected = (
        nothing + 1.5 * (clean(0, 1, 2) - nothing) + 0.75 * (clean(2) - nothing) - 0.5 * (clean(*some) - nothing)
    )
    torch.testing.assert_close(made, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("system", ["fdm", "ramvid"])
def test_one_history_of_all_frames_is_the_guidance_scale(system):
    pipe = tiny_pipeline(system)
    options = {"past_frames": frames(3), "num_frames": 4, "num_inference_steps": 2, "output_type": "pt"}
    scaled = pipe(guidance_scale=2.0, generator=seeded(), **options).frames
    composed = pipe(history_guidance=[(None, 2.0)], generator=seeded(), **options).frames
    assert torch.equal(scaled, composed)
    plain = pipe(generator=seeded(), **options).frames
    assert torch.equal(plain, pipe(history_guidance=[(None, 1.0)], generator=seeded(), **options).frames)
    assert not torch.equal(plain, scaled)


# --------------------------------------------------------------------------------------------------------------------
# Frame schedules


@settings(max_examples=40, deadline=None)
@given(
    name=st.sampled_from(FRAME_SCHEDULES),
    num_frames=st.integers(2, 40),
    observed=st.sets(st.integers(0, 39), max_size=6),
    max_frames=st.integers(4, 10),
    data=st.data(),
)
def test_fdm_5_any_schedule_makes_each_missing_frame_once_from_known_ones(
    name, num_frames, observed, max_frames, data
):
    step = data.draw(st.integers(2, max_frames - 2) if max_frames > 4 else st.just(2))
    observed = sorted(x for x in observed if x < num_frames)
    if len(observed) == num_frames:
        observed = observed[1:]
    if name == "google":
        max_frames, step = 16, 8
    pipe = gaussian_pipeline(max_frames=max_frames, drop_observed=0.5)
    calls = record_inputs(pipe)
    given_frames = {}
    if observed:
        shape = (1, len(observed), 1, 1, 1)
        given_frames = {"observed_frames": torch.rand(shape), "observed_positions": observed}
    windows, fill = [], pipe._fill_windows

    def watch(layouts, known, request):  # each window, as it is put before the network
        windows.extend(layouts)
        return fill(layouts, known, request)

    pipe._fill_windows = watch
    video = pipe(
        **given_frames,
        num_frames=num_frames - len(observed),
        frame_schedule=name,
        step=step,
        num_inference_steps=1,
        output_type="latent",
        return_given_frames=True,
    ).frames
    known = set(observed)
    for layout in windows:
        made = {layout.positions[slot] for slot in layout.made}
        read = {p for p, role in zip(layout.positions, layout.roles) if role == FrameRole.OBSERVED}
        assert read <= known and not made & known
        known |= made
    assert known == set(range(num_frames))
    assert video.shape[1] == num_frames and video.isfinite().all()
    assert all(shown.shape[1] <= max_frames for shown, _, _ in calls)


@pytest.mark.parametrize("system, name", [("fdm", "like-google"), ("vdm", "like-google"), ("fdm", "independent")])
def test_the_result_does_not_depend_on_how_independent_windows_are_batched(system, name):
    pipe, past = tiny_pipeline(system), frames(3, batch_size=2)
    videos, num_calls = [], []
    for most in (1, 2, 100):
        calls = record_inputs(pipe)
        videos.append(
            pipe(
                past_frames=past,
                num_frames=37,
                frame_schedule=name,
                step=4,
                max_parallel_windows=most,
                num_inference_steps=2,
                generator=seeded(),
                output_type="pt",
            ).frames
        )
        num_calls.append(len(calls))
    assert num_calls[0] > num_calls[1] > num_calls[2]
    for video in videos[1:]:
        torch.testing.assert_close(video, videos[0], atol=1e-5, rtol=0)


def test_windows_are_made_together_where_that_is_faster():
    """On the CPU one by one; a pipeline on the meta device, which stands for an accelerator, plans them as one batch."""
    pipe, call = (
        tiny_pipeline("fdm"),
        Call(past_frames=frames(3, batch_size=2), num_frames=37, frame_schedule="independent", step=4),
    )
    assert read_request(pipe, call).batches is None
    pipe.unet.to("meta")
    assert max(map(len, read_request(pipe, call).batches)) > 4
    many = replace(call, ensemble_size=32)
    assert read_request(pipe, many).batches is None  # 64 videos are enough for a batch
    assert max(map(len, read_request(pipe, replace(many, max_parallel_windows=3)).batches)) == 3


def test_a_batch_of_windows_is_divided_when_it_is_too_large():
    pipe, past = tiny_pipeline("fdm"), frames(3, batch_size=2)
    options = {"past_frames": past, "num_frames": 37, "frame_schedule": "independent", "step": 4}
    options |= {"num_inference_steps": 2, "output_type": "pt", "max_parallel_windows": 4}
    whole = pipe(generator=seeded(), **options).frames
    calls = record_inputs(pipe)
    parts = pipe(generator=seeded(), max_batch_size=3, **options).frames
    assert max(len(shown) for shown, _, _ in calls) == 3
    torch.testing.assert_close(parts, whole, atol=1e-5, rtol=0)


def live_bytes():
    """Bytes of all tensors that hold frames of 32x32 pixels, each storage once."""
    tensors = [x for x in gc.get_objects() if type(x) is torch.Tensor]
    frames = [x for x in tensors if x.layout == torch.strided and x.ndim >= 3 and x.shape[-2:] == (32, 32)]
    return sum({x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in frames}.values())


def test_a_video_of_300_frames_by_hierarchy_2_streams_with_flat_memory():
    pipe = tiny_pipeline("fdm")
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    peaks = []
    for num_frames in (100, 300):
        count, peak, before = 0, 0, live_bytes()
        options = {"past_frames": frames(2, size=32), "num_frames": num_frames - 2, "num_inference_steps": 1}
        for block in pipe.stream(frame_schedule="hierarchy-2", step=4, output_type="pt", **options):
            count += block.shape[1]
            if count % 5 == 0 or count > num_frames - 20:
                peak = max(peak, live_bytes() - before)
        assert count == num_frames - 2
        peaks.append(peak)
    frame = 32 * 32 * 4
    assert peaks[1] < peaks[0] + 40 * frame and peaks[1] < 150 * frame


@pytest.mark.parametrize("name", ["autoreg", "hierarchy-2", "like-google"])
def test_a_stream_gives_the_frames_of_the_call_in_time_order(name):
    pipe, past = tiny_pipeline("fdm"), frames(3)
    options = {"past_frames": past, "num_frames": 21, "frame_schedule": name, "step": 4, "num_inference_steps": 2}
    whole = pipe(generator=seeded(), output_type="pt", **options).frames
    blocks = list(pipe.stream(generator=seeded(), output_type="pt", **options))
    assert torch.equal(torch.cat(blocks, dim=1), whole)


@pytest.mark.parametrize("name", ADAPTIVE_FRAME_SCHEDULES)
def test_adaptive_schedules_choose_for_each_video_by_an_embedding_that_sees_each_frame_once(name):
    pipe, past, seen = tiny_pipeline("fdm"), frames(4, batch_size=2), []

    def embed(frame):
        seen.append(frame)
        return frame.mean(dim=(1, 2))

    options = {"num_frames": 16, "frame_schedule": name, "step": 4, "num_inference_steps": 2, "output_type": "pt"}
    both = pipe(past_frames=past, generator=[seeded(1), seeded(2)], frame_embedding=embed, **options).frames
    assert 0 < len(seen) <= 2 * 20 and seen[0].shape == (1, 8, 8)
    for video, seed in ((0, 1), (1, 2)):
        alone = pipe(past_frames=past[video : video + 1], generator=seeded(seed), frame_embedding=embed, **options)
        torch.testing.assert_close(alone.frames[0], both[video], atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="`frame_schedule` is adaptive"):
        pipe.stream(past_frames=past, **options)


def test_own_windows_are_a_schedule_too():
    pipe, past = tiny_pipeline("fdm"), frames(2)
    plan = FramePlan.of(frame_schedule("hierarchy-2", 20, observed=range(2), max_frames=8), 20, observed=range(2))
    options = {"past_frames": past, "num_frames": 18, "num_inference_steps": 2, "output_type": "pt"}
    named = pipe(frame_schedule="hierarchy-2", generator=seeded(), **options).frames
    assert torch.equal(named, pipe(frame_schedule=plan, generator=seeded(), **options).frames)
    assert torch.equal(named, pipe(frame_schedule=list(plan.windows), generator=seeded(), **options).frames)
    with pytest.raises(ValueError, match="No window makes frames"):
        pipe(frame_schedule=[Window((0, 1), (2, 3))], **options)


def test_own_windows_mean_the_same_in_any_order_of_their_frames():
    pipe, given = tiny_pipeline("fdm"), frames(2)
    options = {"observed_frames": given, "observed_positions": [0, 3], "num_inference_steps": 2, "output_type": "pt"}
    options["history_guidance"] = [([-1], 2.0)]
    ordered = pipe(frame_schedule=[Window((0, 3), (1, 2))], generator=seeded(), **options).frames
    assert torch.equal(ordered, pipe(frame_schedule=[Window((3, 0), (1, 2))], generator=seeded(), **options).frames)


def test_histories_weigh_with_any_network_that_states_what_it_reads():
    """A denoiser with no more than the statements of its config."""
    pipe, given = gaussian_pipeline(), torch.full((1, 1, 1, 1, 1), 2.0)
    options = {"past_frames": given, "num_frames": 1, "num_inference_steps": 4, "output_type": "pt"}
    one, two = (pipe(generator=NoNoise(), guidance_scale=scale, **options).frames.item() for scale in (1.0, 2.0))
    assert one == pytest.approx(2 * 0.9, abs=0.05) and two > one + 0.2
    by_history = pipe(generator=NoNoise(), history_guidance=[([0], 1.0), ([-1], 1.0)], **options).frames.item()
    assert by_history == pytest.approx(two, abs=1e-6)


def test_a_schedule_may_be_what_frame_schedule_returns():
    pipe = tiny_pipeline("fdm")
    options = {"past_frames": frames(2), "num_frames": 18, "num_inference_steps": 1, "output_type": "pt"}
    windows = frame_schedule("hierarchy-2", 20, observed=range(2), max_frames=8)
    made = pipe(frame_schedule=windows, generator=seeded(), **options).frames
    assert torch.equal(made, pipe(frame_schedule="hierarchy-2", generator=seeded(), **options).frames)


def test_an_iterator_without_an_end_or_used_up_is_no_schedule():
    pipe, options = tiny_pipeline("fdm"), {"past_frames": frames(2), "num_frames": 4, "num_inference_steps": 1}
    with pytest.raises(ValueError, match="`frame_schedule` is an iterator of too many windows"):
        pipe(frame_schedule=blocks(None, observed=range(2), step=2, num_past_frames=2), **options)
    used = iter([])
    with pytest.raises(ValueError, match="it is used up; make it anew"):
        pipe(frame_schedule=used, **options)


def test_frames_that_were_made_guide_those_after_them_too():
    pipe, guided = tiny_pipeline("vdm", reconstruction_guidance=2.0), []
    pipe.unet.register_forward_pre_hook(lambda module, args: guided.append(torch.is_grad_enabled()))
    pipe(num_frames=14, num_inference_steps=2, output_type="pt")  # windows of 8 frames, then of 4 after 4
    assert guided == [False] * 2 + [True] * (len(guided) - 2) and len(guided) > 2
    guided.clear()
    pipe(num_frames=8, num_inference_steps=2, output_type="pt")
    assert guided == [False] * 2
    guided.clear()
    pipe(past_frames=frames(2), num_frames=4, replacement="clean", num_inference_steps=2, output_type="pt")
    assert guided == [False] * 2  # clean frames are not compared


def test_a_pipeline_that_carries_an_adaptive_schedule_takes_an_embedding_for_short_videos_too():
    pipe = tiny_pipeline("fdm", frame_schedule="adaptive-hierarchy-2")
    options = {"past_frames": frames(2), "num_inference_steps": 1, "output_type": "pt"}
    for num_frames in (3, 12):
        made = pipe(num_frames=num_frames, frame_embedding=lambda frame: frame.flatten(), **options).frames
        assert made.shape[1] == num_frames
    lengths = iter(range(1, 100))
    with pytest.raises(ValueError, match="`frame_embedding` must make vectors of one length, got"):
        embed = {"frame_embedding": lambda frame: torch.ones(next(lengths))}
        pipe(num_frames=20, frame_schedule="adaptive-autoreg", **embed, **options)


def test_a_network_of_blocks_says_where_frames_may_be_given():
    pipe = contract_rows.PIPELINES[0].make()  # two before a block of two, one after it
    options = {"num_inference_steps": 1, "output_type": "pt"}
    with pytest.raises(
        ValueError, match="`observed_positions`: this network reads 2 frames before a block and 1 after it"
    ):
        pipe(observed_frames=frames(3), observed_positions=[0, 2, 4], num_frames=2, **options)
    whole = {"observed_frames": frames(2), "observed_positions": [0, 1], "num_frames": 4, "generator": seeded()}
    made = pipe(frame_schedule="autoreg", **whole, **options).frames
    whole["generator"] = seeded()
    assert torch.equal(made, pipe(**whole, **options).frames)


def test_a_stream_without_an_end_goes_forwards_and_autoreg_is_its_name():
    pipe = tiny_pipeline("fdm", frame_schedule="hierarchy-2")
    options = {"past_frames": frames(2), "num_inference_steps": 1, "output_type": "pt"}
    for schedule in (None, "autoreg", "autoregressive"):
        stream = pipe.stream(frame_schedule=schedule, generator=seeded(), **options)
        made = torch.cat([block for _, block in zip(range(4), stream)], dim=1)
        whole = pipe(num_frames=16, frame_schedule="autoreg", generator=seeded(), **options).frames
        torch.testing.assert_close(made, whole, atol=1e-6, rtol=0)


def test_replacement_of_the_pipeline_can_be_switched_off():
    pipe = tiny_pipeline("fdm", replacement="noised", reconstruction_guidance=1.0)
    options = {"past_frames": frames(2), "num_inference_steps": 2, "output_type": "pt"}
    calls = record_inputs(pipe)
    made = pipe(replacement="none", generator=seeded(), **options).frames
    assert all((roles == FrameRole.OBSERVED).any() for _, _, roles in calls)
    assert torch.equal(made, tiny_pipeline("fdm")(generator=seeded(), **options).frames)


@pytest.mark.parametrize("system", ["ramvid", "vdm"])
@pytest.mark.parametrize("given", [[0, 1, 18, 19], [0, 4, 8, 12, 16], [3, 9], [19]])
def test_a_network_of_consecutive_frames_interpolates_and_fills_in_over_several_windows(system, given):
    pipe = tiny_pipeline(system)
    pipe.unet.register_to_config(has_frame_gaps=False)
    calls = record_inputs(pipe)
    known = frames(len(given))
    options = {"observed_frames": known, "observed_positions": given, "num_frames": 20 - len(given)}
    made = pipe(**options, num_inference_steps=1, output_type="pt", return_given_frames=True).frames
    assert made.shape[1] == 20 and torch.equal(made[:, given], known) and len(calls) > 2
    assert all(sample.shape[1] <= 8 for sample, _, _ in calls)


def test_a_view_without_frames_at_the_ends_of_a_volume_is_a_shorter_clip():
    pipe, past = tiny_pipeline("ramvid"), frames(3)
    calls = record_inputs(pipe)
    options = {"past_frames": past, "num_frames": 5, "num_inference_steps": 1, "output_type": "latent"}
    made = pipe(**options, guidance_scale=1.5, generator=seeded()).frames
    assert sorted(sample.shape[1] for sample, _, _ in calls) == [5, 8]
    # The same as a network that is shown the whole window, with frames ABSENT.
    sample, timestep, roles = next(call for call in calls if call[0].shape[1] == 8)
    with torch.no_grad():
        views = [roles, torch.where(roles == FrameRole.OBSERVED, FrameRole.ABSENT, roles)]
        whole, alone = (pipe.unet(sample, timestep, view).sample[:, 3:] for view in views)
    expected = pipe.scheduler.step(alone + 1.5 * (whole - alone), timestep, sample[:, 3:]).prev_sample
    torch.testing.assert_close(made, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("system", list(SYSTEMS))
def test_vdm_8_one_network_predicts_interpolates_fills_in_and_makes_large(system):
    pipe = tiny_pipeline(system, reconstruction_guidance=1.0 if system == "vdm" else 0.0)
    options = {"num_inference_steps": 2, "output_type": "pt"}
    assert pipe(past_frames=frames(2), num_frames=3, **options).frames.shape[1] == 3
    assert pipe(future_frames=frames(2), num_frames=3, **options).frames.shape[1] == 3
    assert pipe(past_frames=frames(2), future_frames=frames(1), num_frames=4, **options).frames.shape[1] == 4
    every_second = {"observed_frames": frames(4), "observed_positions": [0, 2, 4, 6]}
    assert pipe(**every_second, return_given_frames=True, **options).frames.shape[1] == 7
    assert pipe(num_frames=4, low_resolution_frames=frames(4, size=4), **options).frames.shape == (1, 4, 1, 8, 8)
    assert pipe(num_frames=30, batch_size=2, **options).frames.shape[:2] == (2, 30)
    for _ in zip(range(5), pipe.stream(past_frames=frames(2), **options)):
        pass


# --------------------------------------------------------------------------------------------------------------------
# Bad input


@pytest.mark.parametrize(
    "system, arguments, message",
    [
        ("ramvid", {"past_frames": 2, "num_frames": 30, "frame_schedule": "hierarchy-2"}, "asks for frames .* only takes consecutive frames, at most 8"),
        ("ramvid", {"past_frames": 2, "num_frames": 30, "frame_schedule": "adaptive-autoreg"}, "reads frames from anywhere"),
        ("fdm", {"frame_schedule": "hierarchy-9", "num_frames": 30}, "`frame_schedule` must be one of"),
        ("fdm", {"frame_schedule": 3, "num_frames": 30}, "`frame_schedule` must be a name, or a list or an iterator of Windows"),
        ("fdm", {"frame_schedule": "hierarchy-2", "step": 1, "num_frames": 30}, "`step`"),
        ("fdm", {"max_frames": 9, "num_frames": 30}, "`max_frames` is 9, but this network takes at most 8"),
        ("fdm", {"num_resamples": 0}, "`num_resamples` must be a positive integer"),
        ("fdm", {"max_parallel_windows": 0}, "`max_parallel_windows` must be a positive integer"),
        ("fdm", {"observed_frames": 2}, "`observed_frames` and `observed_positions` go together"),
        ("fdm", {"observed_frames": 2, "observed_positions": [0]}, "one position for each of the 2"),
        ("fdm", {"observed_frames": 2, "observed_positions": [3, 3]}, "none twice"),
        ("fdm", {"observed_frames": 2, "observed_positions": [-1, 3]}, "integers from 0"),
        ("fdm", {"observed_frames": 2, "observed_positions": [0, 9], "num_frames": 3}, "the video has 5 frames"),
        ("fdm", {"observed_frames": 2, "observed_positions": [0, 1]}, "none would be made"),
        ("fdm", {"observed_frames": 2, "observed_positions": [0, 4], "past_frames": 1}, "leave out `past_frames`"),
        ("fdm", {"replacement": "soft"}, "`replacement` must be one of"),
        ("fdm", {"past_frames": 2, "frame_embedding": abs}, "`frame_embedding` is read by an adaptive"),
        ("fdm", {"replacement": {"now": "clean"}}, "`replacement` must be one of"),
        ("fdm", {"replacement": {"future": "none"}}, "Leave out the side that is not replaced"),
        ("fdm", {"past_frames": 2, "reconstruction_guidance": 1.0}, "must enter by `replacement=\"noised\"`"),
        ("fdm", {"past_frames": 2, "reconstruction_guidance": -1.0, "replacement": "noised"}, "must be a number from 0"),
        ("fdm", {"past_frames": 2, "replacement": "noised", "guidance_scale": 2.0}, "all given frames enter by `replacement`"),
        ("fdm", {"past_frames": 2, "history_guidance": [(None, 1.0)], "guidance_scale": 2.0}, "pass one of them"),
        ("fdm", {"past_frames": 2, "history_guidance": [(1, 1.0)]}, "`history_guidance` must be a list of pairs"),
        ("fdm", {"low_resolution_frames": 2, "num_frames": 4}, "one for each of the 4 frames that are made"),
        ("fdm", {"low_resolution_frames": 4, "num_frames": 4, "height": 12, "width": 12}, "do not divide the video's"),
        ("vdm", {"past_frames": 2, "guidance_scale": 2.0}, "all given frames enter by `replacement`"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_by_name_before_the_network_is_called(system, arguments, message):
    pipe = tiny_pipeline(system)
    calls = record_inputs(pipe)
    arguments = {name: frames(x) if name.endswith("_frames") and name not in ("num_frames", "max_frames") else x for name, x in arguments.items()}  # fmt: skip
    with pytest.raises(ValueError, match=message):
        pipe(**arguments, num_inference_steps=2, output_type="pt")
    assert not calls


def test_a_network_that_never_had_given_frames_says_how_they_can_enter():
    pipe = tiny_pipeline("vdm", replacement=None)
    with pytest.raises(ValueError, match='never had given frames in training .* pass `replacement="noised"`'):
        pipe(past_frames=frames(2), num_frames=4)


def test_what_a_pipeline_carries_is_saved_and_is_the_default_of_a_call(tmp_path):
    carried = {"frame_schedule": "hierarchy-2", "step": 3}
    tiny_pipeline("fdm", **carried).save_pretrained(tmp_path)
    pipe = MCVDPipeline.from_pretrained(tmp_path)
    assert isinstance(pipe.unet, SpaceTimeUNetModel)
    pipe.set_progress_bar_config(disable=True)
    options = {"past_frames": frames(2), "num_frames": 20, "num_inference_steps": 2, "output_type": "pt"}
    explicit = tiny_pipeline("fdm")(**carried, generator=seeded(), **options).frames
    assert torch.equal(pipe(generator=seeded(), **options).frames, explicit)
    for name, value in (("frame_schedule", "hierarchy-9"), ("step", 0), ("replacement", "x")):
        with pytest.raises(ValueError, match=f"`{name}` must be"):
            tiny_pipeline("fdm", **{name: value})


# --------------------------------------------------------------------------------------------------------------------
# What went wrong before


@pytest.mark.parametrize("scheduler_class", [DDPMScheduler, DDIMScheduler, *NOISE_SCHEDULERS])
def test_given_frames_are_put_in_at_the_level_that_the_scheduler_is_at(scheduler_class):
    """What the network gets of a clean frame is `alpha` of it, by the scheduler's own arithmetic of noise."""
    betas = {"beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear", "prediction_type": "epsilon"}
    scheduler = scheduler_class(**betas)
    scheduler.set_timesteps(6)
    latents = torch.zeros(1, 1, 1, 1, 1) * getattr(scheduler, "init_noise_sigma", 1.0)
    reference = DDPMScheduler(**betas)
    for t in scheduler.timesteps:
        scaled = scheduler.scale_model_input(latents, t)
        alpha, sigma = sampling_level(scheduler, t)
        assert alpha**2 + sigma**2 == pytest.approx(1, abs=1e-5)
        lower, upper = int(t), min(int(t) + 1, 999)
        signals = [reference.alphas_cumprod[x].item() ** 0.5 for x in (lower, upper)]
        assert min(signals) - 0.02 <= alpha <= max(signals) + 0.02
        latents = scheduler.step(torch.zeros_like(scaled), t, latents, return_dict=False)[0]


def test_positions_may_be_of_any_kind_and_in_any_order():
    pipe, given_frames = tiny_pipeline("fdm"), frames(3)
    options = {"num_frames": 4, "num_inference_steps": 2, "output_type": "pt", "return_given_frames": True}
    expected = pipe(observed_frames=given_frames, observed_positions=[0, 3, 5], generator=seeded(), **options).frames
    for positions in (torch.tensor([0, 3, 5]), np.array([0, 3, 5], dtype=np.uint8), (0, 3, 5)):
        made = pipe(observed_frames=given_frames, observed_positions=positions, generator=seeded(), **options)
        assert torch.equal(made.frames, expected) and made.positions == list(range(7))
    turned = pipe(
        observed_frames=given_frames.flip(1), observed_positions=[5, 3, 0], generator=seeded(), **options
    ).frames
    assert torch.equal(turned, expected) and torch.equal(turned[:, [0, 3, 5]], given_frames)


def test_an_interrupted_call_says_which_frames_there_are():
    pipe = tiny_pipeline("fdm")

    def stop(pipe, step, timestep, kwargs):
        pipe._interrupt = pipe.block_index == 1
        return {}

    options = {"past_frames": frames(2), "num_frames": 30, "num_inference_steps": 2, "output_type": "pt"}
    made = pipe(frame_schedule="hierarchy-2", callback_on_step_end=stop, **options)
    assert made.frames.shape[1] == len(made.positions) < 30
    windows = list(frame_schedule("hierarchy-2", 32, observed=range(2), max_frames=8))[:2]
    assert made.positions == sorted(windows[0].latent + windows[1].latent)


def test_an_interrupted_adaptive_call_begins_no_further_video():
    pipe, calls = tiny_pipeline("fdm"), []

    def stop(pipe, step, timestep, kwargs):
        calls.append(step)
        pipe._interrupt = len(calls) == 16  # in the second of three videos, which have 7 windows of 2 steps
        return {}

    options = {"num_frames": 26, "frame_schedule": "adaptive-autoreg", "num_inference_steps": 2, "output_type": "pt"}
    made = pipe(past_frames=frames(2, batch_size=3), callback_on_step_end=stop, **options)
    assert made.frames.shape[:2] == (1, 26) and len(calls) == 16  # the first is whole, the third was not begun
    assert made.frames.std() < 0.5


def test_what_a_pipeline_carries_holds_for_streams_and_named_schedules_too():
    pipe = tiny_pipeline("fdm", step=2)
    calls = record_inputs(pipe)
    options = {"past_frames": frames(2), "num_inference_steps": 1, "output_type": "pt"}
    blocks = [block.shape[1] for block, _ in zip(pipe.stream(**options), range(3))]
    assert blocks == [2, 2, 2]
    calls.clear()
    pipe(num_frames=20, frame_schedule="autoreg", **options)
    assert (calls[-1][2] == FrameRole.LATENT).sum() == 2 and len(calls) == 10
    calls.clear()
    pipe(num_frames=6, max_frames=4, **options)
    assert all(shown.shape[1] <= 4 for shown, _, _ in calls)


def test_a_stream_of_very_many_frames_begins_at_once():
    unet = MCVDUNet2DModel(
        sample_size=8, in_channels=1, num_past_frames=2, num_frames=2, block_out_channels=(8,), down_block_types=("DownBlock2D",), layers_per_block=1
    )  # fmt: skip
    pipe = MCVDPipeline(unet, DDIMScheduler(prediction_type="v_prediction"))
    pipe.set_progress_bar_config(disable=True)
    stream = pipe.stream(past_frames=frames(2), num_frames=10**9, num_inference_steps=1, output_type="pt")
    assert next(stream).shape[1] == 2
    stream.close()


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"frame_schedule": "adaptive-autoreg", "num_frames": 20}, "never had given frames in training"),
        ({"frame_schedule": "autoreg", "num_frames": 20}, "never had given frames in training"),
    ],
)
def test_no_schedule_gives_a_network_frames_that_it_never_had(arguments, message):
    pipe = tiny_pipeline("vdm", replacement=None)
    with pytest.raises(ValueError, match=message):
        pipe(past_frames=frames(2), num_inference_steps=2, output_type="pt", **arguments)
    with pytest.raises(ValueError, match=message):
        pipe.stream(num_inference_steps=2, output_type="pt")


@pytest.mark.parametrize(
    "system, arguments, message",
    [
        ("fdm", {"num_frames": 10**6}, "is not planned ahead, at most 20,000"),
        ("fdm", {"observed_frames": 2, "observed_positions": [0, 10**9]}, "is not planned ahead"),
        ("fdm", {"past_frames": 2, "num_frames": 10, "max_frames": 1}, "leave no place for given frames"),
        ("fdm", {"past_frames": 2, "num_frames": 10, "history_guidance": [([7], 2.0)]}, "names frames \\[7\\], but windows read at most"),
        ("fdm", {"num_frames": 4, "batch_size": 3, "low_resolution_frames": 4}, "of 3 video"),
        ("fdm", {"past_frames": 2, "guidance_scale": 10**400}, "`guidance_scale` must be"),
        ("fdm", {"past_frames": 2, "num_resamples": 10**9}, "`num_resamples` must be at most 1000"),
        ("fdm", {"past_frames": 2, "replacement": "noised", "final_denoise": True}, "`final_denoise` tells the network"),
        ("fdm", {"past_frames": 2, "frame_embedding": 3}, "`frame_embedding` must be a function"),
        ("fdm", {"past_frames": 2, "num_frames": 20, "frame_schedule": "adaptive-autoreg", "frame_embedding": lambda frame: [1]}, "`frame_embedding` must make a tensor"),
        ("fdm", {"past_frames": 2, "num_frames": 20, "frame_schedule": "adaptive-autoreg", "frame_embedding": lambda frame: frame * float("nan")}, "`frame_embedding` made a vector with values that are NaN"),
        ("fdm", {"past_frames": 2, "num_frames": 2, "frame_schedule": [Window((0, 0, 1), (2, 3))]}, "reads frames \\[0\\] more than once"),
        ("fdm", {"past_frames": 2, "num_frames": 2, "frame_schedule": [Window(None, (2, 3))]}, "two tuples of positions"),
        ("ramvid", {"observed_frames": 2, "observed_positions": [0, 4], "num_frames": 4, "guidance_scale": 2.0}, "would have holes between them"),
    ],
)  # fmt: skip
def test_more_bad_input_is_refused_by_name(system, arguments, message):
    pipe = tiny_pipeline(system)
    arguments = {name: frames(x) if name.endswith("_frames") and name not in ("num_frames", "max_frames") and isinstance(x, int) else x for name, x in arguments.items()}  # fmt: skip
    if "low_resolution_frames" in arguments:
        arguments["low_resolution_frames"] = frames(4, size=4)
    with pytest.raises(ValueError, match=message):
        pipe(num_inference_steps=2, output_type="pt", **arguments)


def test_gradients_are_refused_where_there_are_none():
    pipe = tiny_pipeline("vdm")
    with torch.inference_mode(), pytest.raises(ValueError, match="inference_mode"):
        pipe(past_frames=frames(2), reconstruction_guidance=1.0, num_inference_steps=2, output_type="pt")
