"""What checkpoints are sampled with, if nothing is said."""

import inspect

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EDMEulerScheduler,
    FlowMatchEulerDiscreteScheduler,
)

from mcvd_diffusers.noise_schedules import cosine_logsnr_betas
from mcvd_diffusers.objectives import PREDICTION_TYPES
from mcvd_diffusers.samplers import NUM_STEPS, SAMPLERS, make_sampler, starts_blind
from mcvd_diffusers.train_settings import parse_args


NOISE = {
    "flow_prediction": FlowMatchEulerDiscreteScheduler(),
    "edm": EDMEulerScheduler(),
    **{name: DDPMScheduler(prediction_type=name) for name in ("epsilon", "v_prediction", "sample")},
}


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_the_sampler_has_the_noise_of_training_and_starts_at_its_last_level(prediction_type):
    noise = NOISE[prediction_type]
    for name in (None, *SAMPLERS[prediction_type]):
        sampler = make_sampler(noise, name)
        assert type(sampler).__name__ == (name or SAMPLERS[prediction_type][0])
        sampler.set_timesteps(5)
        assert float(sampler.timesteps[0]) == pytest.approx(float(noise.timesteps.max()), rel=0.01)
        if hasattr(noise, "betas"):
            assert torch.equal(sampler.betas, noise.betas)


@pytest.mark.parametrize("prediction_type", ["v_prediction", "epsilon"])
def test_only_ddpm_clips_where_something_of_the_frames_is_left(prediction_type):
    for name in SAMPLERS[prediction_type]:
        config = make_sampler(NOISE[prediction_type], name, largest_value=3.0).config
        assert bool(config.get("clip_sample")) == (name == "DDPMScheduler"), name
        assert not config.get("thresholding") and config.get("algorithm_type") in (None, "dpmsolver++"), name
    assert make_sampler(NOISE["v_prediction"], "DDPMScheduler", largest_value=3.0).config.clip_sample_range == 3.0


def noisy_frames(scheduler, clean):
    """From nothing to the end, by a network that is wrong by 2 % of the noise and never saw any noise beyond 5 standard deviations."""
    sampler, generator = scheduler, torch.Generator().manual_seed(0)
    sampler.set_timesteps(15)
    takes_noise = "generator" in inspect.signature(sampler.step).parameters
    sample = torch.randn(64, 1, 8, 8, generator=generator)
    for t in sampler.timesteps:
        alpha = sampler.alphas_cumprod[int(t)]
        epsilon = (sample - alpha.sqrt() * clean) / (1 - alpha).sqrt()
        epsilon = (epsilon + 0.02 * torch.randn(sample.shape, generator=generator)).clamp(-5, 5)
        sample = sampler.step(epsilon, t, sample, **({"generator": generator} if takes_noise else {})).prev_sample
    return sample


@pytest.mark.parametrize("schedule", ["squaredcos_cap_v2", "trained"])
def test_a_network_of_noise_that_starts_blind_is_kept_within_range(schedule):
    """Its errors at the first steps would be hundreds of times as large in the frames."""
    own = {"beta_schedule": schedule}
    if schedule == "trained":
        own = {"trained_betas": cosine_logsnr_betas(1000)}
    noise, clean = DDPMScheduler(prediction_type="epsilon", **own), 0.8
    assert starts_blind(noise) and not starts_blind(DDPMScheduler(prediction_type="epsilon"))
    assert not starts_blind(DDPMScheduler(prediction_type="v_prediction", **own))
    for name in (None, "UniPCMultistepScheduler", "DDPMScheduler"):
        made = noisy_frames(make_sampler(noise, name), clean)
        assert (made - clean).square().mean() < 0.01, name
    sampler = make_sampler(noise)
    assert type(sampler) is DPMSolverMultistepScheduler and sampler.config.algorithm_type == "sde-dpmsolver++"
    unkept = DPMSolverMultistepScheduler.from_config(noise.config, timestep_spacing="trailing")
    assert (noisy_frames(unkept, clean) - clean).square().mean() > 1
    # Beyond [-1, 1] only some can, of which one is the default.
    sampler = make_sampler(noise, largest_value=2.0)
    assert type(sampler) is DDPMScheduler and sampler.config.clip_sample_range == 2.0
    for name, largest in (("EulerDiscreteScheduler", 1.0), ("DPMSolverMultistepScheduler", 2.0)):
        with pytest.raises(ValueError, match=f"{name} cannot keep frames within .* use DDPMScheduler"):
            make_sampler(noise, name, largest_value=largest)


def test_ddims_noise_does_not_fit_what_it_clipped():
    """Why: a step of DDIM that clips ends elsewhere than one from the frames that it clipped to, noise and all."""
    noise, clean = torch.full((1,), 0.5), torch.full((1,), 1.5)
    ends = []
    for settings in ({"clip_sample": True}, {"clip_sample": False}):
        sampler = DDIMScheduler.from_config(NOISE["epsilon"].config, timestep_spacing="trailing", **settings)
        sampler.set_timesteps(10)
        alpha, later = sampler.alphas_cumprod[799], sampler.alphas_cumprod[699]
        noisy = alpha.sqrt() * clean + (1 - alpha).sqrt() * noise
        ends.append(float(sampler.step(noise, 799, noisy).prev_sample))
        frames = clean.clamp(-1, 1) if settings["clip_sample"] else clean
        consistent = (noisy - alpha.sqrt() * frames) / (1 - alpha).sqrt()
        consistent = float(later.sqrt() * frames + (1 - later).sqrt() * consistent)
        assert (abs(ends[-1] - consistent) < 1e-5) is not settings["clip_sample"]
    assert ends[0] < ends[1]


@pytest.mark.parametrize(
    "flags, expected",
    [
        ("", ("DPMSolverMultistepScheduler", NUM_STEPS)),
        ("--prediction_type epsilon", ("DPMSolverMultistepScheduler", NUM_STEPS)),
        ("--method rvd --prediction_type epsilon", ("DDPMScheduler", 25)),  # residuals lie in [-2, 2]
        ("--method rvd --prediction_type epsilon --beta_schedule linear", ("DPMSolverMultistepScheduler", NUM_STEPS)),
        ("--method rvd", ("DPMSolverMultistepScheduler", NUM_STEPS)),
        ("--preset bair-concat-p2k5 --train_data_dir .", ("DPMSolverMultistepScheduler", NUM_STEPS)),
        ("--method vdm", ("DDIMScheduler", 25)),  # whose resampling needs a scheduler without a memory
        ("--method vdm --prediction_type edm", ("EDMDPMSolverMultistepScheduler", NUM_STEPS)),
        ("--sampling_scheduler DDPMScheduler", ("DDPMScheduler", 25)),
        ("--sampling_scheduler DDPMScheduler --validation_inference_steps 100", ("DDPMScheduler", 100)),
        ("--num_train_timesteps 10", ("DPMSolverMultistepScheduler", 10)),
        ("--prediction_type flow_prediction", ("FlowMatchEulerDiscreteScheduler", NUM_STEPS)),
    ],
)
def test_defaults_follow_the_method_and_what_it_predicts(flags, expected, tmp_path):
    training = parse_args(["--output_dir", str(tmp_path / "new"), "--estimate", *flags.split()]).training
    assert (training.sampling_scheduler, training.validation_inference_steps) == expected
