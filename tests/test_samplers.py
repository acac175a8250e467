"""What checkpoints are sampled with, if nothing is said."""

import inspect
import json

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EDMDPMSolverMultistepScheduler,
    EDMEulerScheduler,
    FlowMatchEulerDiscreteScheduler,
)

from mcvd_diffusers import MCVDPipeline, MCVDUNet2DModel
from mcvd_diffusers.noise_schedules import cosine_logsnr_betas
from mcvd_diffusers.objectives import PREDICTION_TYPES, Objective, starts_blind
from mcvd_diffusers.samplers import DISTILLED, FROM_BETAS, NUM_STEPS, SAMPLERS, WITHOUT_ZERO_SNR, make_sampler
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
    sampler = make_sampler(noise)
    assert type(sampler) is DDPMScheduler and (noisy_frames(sampler, clean) - clean).square().mean() < 0.01
    unkept = DPMSolverMultistepScheduler.from_config(noise.config, timestep_spacing="trailing")
    assert (noisy_frames(unkept, clean) - clean).square().mean() > 1
    for name in SAMPLERS["epsilon"]:
        if name in ("DDPMScheduler", "DDIMScheduler"):
            config = make_sampler(noise, name, largest_value=2.0).config
            assert (config.clip_sample, config.clip_sample_range) == (True, 2.0)
        else:
            with pytest.raises(ValueError, match=f"{name} cannot keep frames within their range .* use DDPMScheduler"):
                make_sampler(noise, name)


@pytest.mark.parametrize("num_timesteps, is_blind", [(200, False), (500, False), (1000, False), (1600, True)])
def test_what_is_blind_is_the_end_of_the_betas_not_their_name(num_timesteps, is_blind):
    noise = DDPMScheduler(num_timesteps, prediction_type="epsilon")
    assert starts_blind(noise) is is_blind
    assert starts_blind(noise, Objective("v_prediction")) is False
    assert starts_blind(DDPMScheduler(num_timesteps, prediction_type="sample"), Objective("epsilon")) is is_blind


def test_schedulers_that_are_made_from_the_saved_one_know_the_range():
    """Diffusers would clip at 1, where nothing says otherwise."""
    sampler = make_sampler(NOISE["v_prediction"], largest_value=5.0)
    for kind in (DDIMScheduler, DDPMScheduler):
        config = kind.from_config(sampler.config).config
        assert (config.clip_sample, config.clip_sample_range) == (False, 5.0)
    sampler = make_sampler(
        DDPMScheduler(prediction_type="epsilon", beta_schedule="squaredcos_cap_v2"), largest_value=5.0
    )
    config = DDIMScheduler.from_config(sampler.config).config
    assert (config.clip_sample, config.clip_sample_range) == (True, 5.0)


@pytest.mark.parametrize("name", [name for name in (*FROM_BETAS, *DISTILLED) if name not in WITHOUT_ZERO_SNR])
def test_pipelines_whose_noise_leaves_nothing_are_saved_loaded_and_sampled(name, tmp_path):
    """Some of Diffusers' solvers put 2**-24 there, which is more than what is left before."""
    noise = DDPMScheduler(prediction_type="v_prediction", rescale_betas_zero_snr=True)
    unet = MCVDUNet2DModel(
        sample_size=8,
        in_channels=1,
        num_past_frames=1,
        num_frames=1,
        block_out_channels=(8,),
        down_block_types=("DownBlock2D",),
    )
    MCVDPipeline(unet, make_sampler(noise, name)).save_pretrained(tmp_path)
    pipe = MCVDPipeline.from_pretrained(tmp_path)
    frames = pipe(past_frames=torch.rand(1, 1, 1, 8, 8), num_frames=1, num_inference_steps=3, output_type="pt").frames
    assert type(pipe.scheduler).__name__ == name and frames.isfinite().all()


def test_distilled_networks_clip():
    config = make_sampler(NOISE["v_prediction"], "LCMScheduler", largest_value=2.0, original_inference_steps=20).config
    assert (config.clip_sample, config.clip_sample_range, config.original_inference_steps) == (True, 2.0, 20)


LEVELS = {"block_out_channels": (8, 8), "down_block_types": ("DownBlock2D", "DownBlock2D")}


def pipeline_of(scheduler, prediction_type):
    torch.manual_seed(0)
    shape = {"sample_size": 8, "in_channels": 1, "num_past_frames": 1, "num_frames": 1, "num_future_frames": 0}
    pipe = MCVDPipeline(MCVDUNet2DModel(**shape, **LEVELS, prediction_type=prediction_type), scheduler)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def sampled(pipe, **options):
    return pipe(past_frames=torch.zeros(1, 1, 1, 8, 8), num_frames=1, output_type="pt", **options).frames


COSINE = DDPMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction")
EDM = EDMEulerScheduler(sigma_data=0.5)


@pytest.mark.parametrize(
    ("trained", "scheduler", "reason"),
    [
        (COSINE, DDIMScheduler(prediction_type="v_prediction"), "another noise schedule than the pipeline was made"),
        (COSINE, DDPMScheduler(prediction_type="v_prediction", trained_betas=[1e-4] * 1000), "another noise schedule"),
        (
            COSINE,
            DDIMScheduler.from_config(COSINE.config, beta_schedule="squaredcos_cap_v2", rescale_betas_zero_snr=True),
            None,  # as good as none is left before
        ),
        (
            NOISE["v_prediction"],
            DDIMScheduler.from_config(NOISE["v_prediction"].config, timestep_spacing="trailing"),
            None,
        ),
        (
            COSINE,
            DPMSolverMultistepScheduler.from_config(COSINE.config, use_flow_sigmas=True),
            "it is for another kind of model.*goes the way of flow matching",
        ),
        (
            EDM,
            EDMDPMSolverMultistepScheduler(sigma_data=0.1),
            "has sigma_data=0.1, and the network was trained with 0.5",
        ),
        (EDM, EDMDPMSolverMultistepScheduler(sigma_data=0.5, sigma_max=50.0), None),
    ],
)
@pytest.mark.parametrize("is_saved", [False, True])
def test_another_noise_than_that_of_training_is_refused(tmp_path, trained, scheduler, reason, is_saved):
    pipe = pipeline_of(trained, "edm" if trained is EDM else "v_prediction")
    if is_saved:
        pipe.save_pretrained(tmp_path)
        pipe = MCVDPipeline.from_pretrained(tmp_path, scheduler=scheduler)
        pipe.set_progress_bar_config(disable=True)
    else:
        pipe.scheduler = scheduler
    if reason is None:
        assert sampled(pipe, num_inference_steps=2).isfinite().all()
    else:
        with pytest.raises(ValueError, match=f"`scheduler`: .*{reason}"):
            sampled(pipe, num_inference_steps=2)


def test_what_was_distilled_is_sampled_along_its_way(tmp_path, caplog):
    pipe = pipeline_of(make_sampler(COSINE, "LCMScheduler", original_inference_steps=10), "v_prediction")
    pipe.save_pretrained(tmp_path)
    pipe = MCVDPipeline.from_pretrained(tmp_path)
    pipe.set_progress_bar_config(disable=True)
    assert pipe.config.trained_noise["distillation_steps"] == 10
    assert torch.equal(
        sampled(pipe, num_inference_steps=1, generator=torch.Generator().manual_seed(0)),
        sampled(pipe, timesteps=[999], generator=torch.Generator().manual_seed(0)),
    )
    assert "distilled" not in caplog.text
    for wrong in (5, "abc", [[999]], []):
        with pytest.raises(ValueError, match="`timesteps` must be a list of integers that fall"):
            sampled(pipe, timesteps=wrong)
    for options in ({"timesteps": torch.tensor([998])}, {"timesteps": list(range(999, -1, -1))}):
        with pytest.raises(ValueError, match=r"`timesteps` must be some of \[999, 899, .* distilled along 10 steps"):
            sampled(pipe, **options)
    with pytest.raises(ValueError, match="must be at most 10 for a network that was distilled"):
        sampled(pipe, num_inference_steps=11)
    own = pipe.scheduler
    for num_steps in (50, None):
        pipe.scheduler = type(own).from_config(own.config, original_inference_steps=num_steps)
        with pytest.raises(
            ValueError, match=f"distilled along 10 steps, and .* has original_inference_steps={num_steps}"
        ):
            sampled(pipe, num_inference_steps=2)
    pipe.scheduler = DDIMScheduler.from_config(own.config)
    sampled(pipe, num_inference_steps=2)
    assert "was distilled for LCMScheduler, with which it was saved: DDIMScheduler makes worse" in caplog.text
    teacher = pipeline_of(COSINE, "v_prediction")
    teacher.scheduler = type(own).from_config(teacher.scheduler.config)
    sampled(teacher, num_inference_steps=2)
    assert "LCMScheduler is for distilled networks, and this one is not" in caplog.text


def test_a_scheduler_that_never_could_serve_is_not_taken_for_that_of_training(tmp_path):
    pipe = pipeline_of(DDPMScheduler(500, prediction_type="v_prediction"), "v_prediction")
    assert pipe.config.trained_noise is None
    pipe.scheduler = COSINE
    assert sampled(pipe, num_inference_steps=2).isfinite().all()


@pytest.mark.parametrize(
    "noise",
    [[], {"betas": 1}, {"signal": [1, 0]}, {"signal": [1.5] * 5}, {"sigma_data": 0}, {"distillation_steps": True}],
)
def test_a_noise_that_none_can_have_said_is_refused(noise, tmp_path):
    pipe = pipeline_of(COSINE, "v_prediction")
    with pytest.raises(ValueError, match="`trained_noise` must be None, or what is known of the scheduler"):
        MCVDPipeline(pipe.unet, COSINE, trained_noise=noise)
    pipe.save_pretrained(tmp_path)
    index = tmp_path / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"trained_noise": noise}))
    with pytest.raises(ValueError, match="trained_noise"):
        MCVDPipeline.from_pretrained(tmp_path)


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
        ("--prediction_type epsilon", ("DPMSolverMultistepScheduler", NUM_STEPS)),  # by linear betas
        (
            "--prediction_type epsilon --beta_schedule squaredcos_cap_v2",
            ("DDPMScheduler", 25),
        ),  # where it starts blind
        ("--prediction_type epsilon --num_train_timesteps 1600", ("DDPMScheduler", 25)),
        (
            "--prediction_type epsilon --beta_schedule squaredcos_cap_v2 --sampling_scheduler DDIMScheduler",
            ("DDIMScheduler", 25),
        ),
        ("--method rvd", ("DPMSolverMultistepScheduler", NUM_STEPS)),
        ("--preset fdm-minerl --train_data_dir .", ("DPMSolverMultistepScheduler", NUM_STEPS)),
        ("--preset vdm-64 --train_data_dir .", ("DDPMScheduler", 25)),
        ("--preset bair-concat-p2k5 --train_data_dir .", ("DPMSolverMultistepScheduler", NUM_STEPS)),
        ("--method vdm", ("DDPMScheduler", 25)),  # whose resampling needs a scheduler without a memory
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


def test_what_fails_for_a_network_is_refused_before_anything_else(capsys, tmp_path):
    flags = ["--output_dir", str(tmp_path / "new"), "--prediction_type", "epsilon"]
    flags += ["--beta_schedule", "squaredcos_cap_v2"]
    with pytest.raises(SystemExit):
        parse_args([*flags, "--sampling_scheduler", "EulerDiscreteScheduler"])
    said = " ".join(capsys.readouterr().err.split())
    assert "--sampling_scheduler EulerDiscreteScheduler cannot keep frames within their range" in said
    assert "pass --sampling_scheduler DDPMScheduler or DDIMScheduler" in said


def test_a_student_is_sampled_in_no_more_steps_than_it_has(tmp_path):
    (tmp_path / "teacher").mkdir()
    unet = MCVDUNet2DModel(sample_size=8, in_channels=1, block_out_channels=(8,), down_block_types=("DownBlock2D",))
    MCVDPipeline(unet, make_sampler(NOISE["v_prediction"])).save_pretrained(tmp_path / "teacher")
    flags = ["--output_dir", str(tmp_path / "new"), "--pretrained_model_name_or_path", str(tmp_path / "teacher")]
    for steps, expected in (("2", 2), ("50", 4)):
        training = parse_args([*flags, "--distill", "True", "--distillation_steps", steps]).training
        assert (training.sampling_scheduler, training.validation_inference_steps) == ("LCMScheduler", expected)
