"""What checkpoints are sampled with, if nothing is said."""

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, EDMEulerScheduler, FlowMatchEulerDiscreteScheduler

from mcvd_diffusers.objectives import PREDICTION_TYPES
from mcvd_diffusers.samplers import NUM_STEPS, SAMPLERS, make_sampler
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


def test_only_what_uses_the_clipped_frames_clips():
    for name in SAMPLERS["v_prediction"]:
        config = make_sampler(NOISE["v_prediction"], name, largest_value=3.0).config
        assert bool(config.get("clip_sample")) == (name == "DDPMScheduler"), name
    assert make_sampler(NOISE["v_prediction"], "DDPMScheduler", largest_value=3.0).config.clip_sample_range == 3.0


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
