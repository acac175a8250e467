"""Distillation: its loss where all is known, its grid, and a student that the training script makes."""

import json
import shutil
import warnings

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from diffusers import DDPMScheduler, DPMSolverMultistepScheduler, EDMEulerScheduler, LCMScheduler

import train_mcvd
from mcvd_diffusers import FrameRole, MCVDPipeline
from mcvd_diffusers.distillation import HUBER, distillation_loss, draw_steps, relative_cost
from mcvd_diffusers.objectives import Objective, training_level


MEAN, STD = 0.3, 0.2


def scheduler_of(prediction_type):
    return DDPMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type=prediction_type)


def network_of(scheduler, prediction_type, clean_frames):
    """A network that takes noisy frames for what a formula says, and predicts accordingly."""

    def network(sample, timestep, roles, return_dict):
        level = alpha, sigma = training_level(scheduler, timestep)
        clean = clean_frames(sample, alpha, sigma)
        return (Objective(prediction_type).of(clean, (sample - alpha * clean) / sigma, level),)

    return network


def expected_frames(sample, alpha, sigma):
    """The best denoiser of normal pixels."""
    return MEAN + alpha * STD**2 / (alpha**2 * STD**2 + sigma**2) * (sample - alpha * MEAN)


def end_of_the_way(sample, alpha, sigma):
    """Where the way without noise leads from there."""
    return MEAN + STD * (sample - alpha * MEAN) / (alpha**2 * STD**2 + sigma**2).sqrt()


def loss_of(student, *, prediction_type="v_prediction", num_steps=50, **options):
    scheduler = scheduler_of(prediction_type)
    generator = torch.Generator().manual_seed(0)
    video = MEAN + STD * torch.randn(64, 2, 1, 4, 4, generator=generator)
    timesteps = draw_steps(scheduler, 64, num_steps=num_steps, generator=generator)
    teacher = network_of(scheduler, "epsilon", expected_frames)
    return distillation_loss(
        network_of(scheduler, prediction_type, student),
        teacher,
        Objective("epsilon"),
        scheduler,
        video,
        torch.full((64, 2), FrameRole.LATENT),
        timesteps=timesteps,
        num_steps=num_steps,
        generator=generator,
        largest_value=9.0,
        **options,
    )


@pytest.mark.parametrize("prediction_type", ["v_prediction", "sample"])
def test_the_end_of_the_teachers_way_has_the_least_loss(prediction_type):
    """And the less, the finer the way; a denoiser, which is no consistent function, has more."""
    coarse, fine = (loss_of(end_of_the_way, prediction_type=prediction_type, num_steps=n).mean() for n in (10, 100))
    assert fine < 1e-3 < coarse < 0.06
    assert loss_of(expected_frames, prediction_type=prediction_type, num_steps=100).mean() > 100 * fine


@pytest.mark.parametrize("rescale_betas_zero_snr", [False, True])
def test_the_way_is_the_one_that_diffusers_sampler_goes(rescale_betas_zero_snr):
    """From each of its timesteps, those of fewer steps beside those of more, and from no signal at all."""
    noise_settings = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": rescale_betas_zero_snr}
    scheduler = DDPMScheduler(**noise_settings)
    sampler = DPMSolverMultistepScheduler.from_config(scheduler.config, timestep_spacing="trailing")

    def teacher(sample, timestep, roles, return_dict):
        return (torch.sin(3 * sample) * (1 + timestep[:, None, None, None, None] / 1000),)

    def student(sample, timestep, roles, return_dict):
        """Takes all frames for grey ones, which are 0."""
        alpha, sigma = training_level(scheduler, timestep)
        return (Objective("v_prediction").of(torch.zeros_like(sample), sample / sigma, (alpha, sigma)),)

    ends = []
    generator = torch.Generator().manual_seed(0)
    video, noise = (torch.randn(10, 2, 1, 3, 3, generator=generator) for _ in range(2))
    timesteps = torch.arange(99, 1000, 100)
    losses = distillation_loss(
        student,
        teacher,
        Objective("v_prediction"),
        scheduler,
        video,
        torch.full((10, 2), FrameRole.LATENT),
        timesteps=timesteps,
        noise=noise,
    )
    alpha, sigma = training_level(scheduler, timesteps)
    for index, clip in enumerate(alpha * video + sigma * noise):
        sampler.set_timesteps(10)
        sampler.set_begin_index(9 - index)
        frames = clip[None]
        for timestep in sampler.timesteps[9 - index :]:
            frames = sampler.step(teacher(frames, timestep[None], None, False)[0], timestep, frames)[0]
        ends.append((frames.square().mean() + HUBER**2).sqrt() - HUBER)
    torch.testing.assert_close(losses, torch.stack(ends), rtol=1e-4, atol=1e-5)


def test_loss_is_about_the_root_mean_squared_error_of_latent_frames():
    scheduler, video = scheduler_of("sample"), torch.zeros(3, 2, 1, 4, 4)
    roles = torch.tensor([[1, 2], [2, 2], [0, 2]])
    calls = []

    def student(sample, timestep, roles, return_dict):
        assert torch.equal(timestep, torch.tensor([19, 39, 59])) and len(roles) == 3
        return (torch.full_like(sample, 0.25),)

    def teacher(sample, timestep, roles, return_dict):
        calls.append((sample, timestep.tolist(), roles))
        return (torch.full_like(sample, 0.75),)

    losses = distillation_loss(
        student,
        teacher,
        Objective("sample"),
        scheduler,
        video,
        roles,
        timesteps=torch.tensor([19, 39, 59]),
        num_steps=50,
    )
    torch.testing.assert_close(losses, torch.full((3,), (0.5**2 + HUBER**2) ** 0.5 - HUBER))
    assert [timesteps for _, timesteps, _ in calls] == [[19, 39, 59], [19, 39], [19]]  # none goes on after its end
    assert torch.equal(calls[1][2], roles[1:]) and torch.equal(calls[2][2], roles[2:])
    assert torch.equal(calls[0][0][0, 0], video[0, 0])  # given frames are shown as they are


def test_only_the_student_has_a_gradient():
    scheduler = scheduler_of("sample")
    weight = torch.tensor(0.5, requires_grad=True)
    frozen = torch.tensor(0.25, requires_grad=True)

    def student(sample, timestep, roles, return_dict):
        return (weight * sample,)

    def teacher(sample, timestep, roles, return_dict):
        return (frozen * sample,)

    video, noise = torch.randn(2, 4, 1, 1, 4, 4)
    roles, timesteps = torch.full((4, 1), FrameRole.LATENT), torch.full((4,), 19)
    losses = distillation_loss(
        student,
        teacher,
        Objective("sample"),
        scheduler,
        video,
        roles,
        timesteps=timesteps,
        noise=noise,
        num_steps=50,
    )
    losses.sum().backward()
    alpha, sigma = training_level(scheduler, timesteps)
    noisy = alpha * video + sigma * noise
    other = torch.tensor(0.5, requires_grad=True)
    error = ((other * noisy - 0.25 * noisy) ** 2).flatten(1).mean(dim=1)
    ((error + HUBER**2).sqrt() - HUBER).sum().backward()
    torch.testing.assert_close(weight.grad, other.grad)
    assert frozen.grad is None


def test_a_teacher_that_starts_blind_is_kept_within_the_range():
    """At the end of cosine betas its smallest error would be a large one in the frames."""
    scheduler, video = scheduler_of("v_prediction"), torch.zeros(1, 1, 1, 4, 4)
    options = {"timesteps": torch.tensor([999]), "generator": torch.Generator().manual_seed(0)}

    def teacher(sample, timestep, roles, return_dict):
        return (0.9 * sample,)

    def student(sample, timestep, roles, return_dict):
        return (0 * sample,)

    roles, losses = torch.full((1, 1), FrameRole.LATENT), []
    for most in (1.0, 3.0):
        options["generator"].manual_seed(0)
        losses.append(
            distillation_loss(
                student, teacher, Objective("epsilon"), scheduler, video, roles, largest_value=most, **options
            )
        )
        assert 0 < losses[-1] <= most
    assert losses[1] > 1.2 * losses[0]


def test_clips_of_a_batch_do_not_know_of_one_another():
    """Whichever of them are on the way still, each has its own roles, places and segments."""
    scheduler = scheduler_of("v_prediction")

    def network(sample, timestep, roles, frame_indices, segment_ids, return_dict):
        told = roles + 0.1 * frame_indices + 0.3 * segment_ids + timestep[:, None] / 1000
        return (torch.tanh(sample) * told[:, :, None, None, None],)

    generator = torch.Generator().manual_seed(0)
    clips = {
        "video": torch.randn(5, 3, 1, 2, 2, generator=generator),
        "noise": torch.randn(5, 3, 1, 2, 2, generator=generator),
        "roles": torch.tensor([[1, 2, 2], [2, 2, 0], [2, 2, 2], [0, 1, 2], [2, 0, 1]]),
        "frame_indices": torch.arange(15).reshape(5, 3),
        "segment_ids": torch.arange(15).reshape(5, 3) % 2,
        "timesteps": torch.tensor([99, 999, 499, 299, 899]),
    }

    def loss_of_clips(rows):
        own = {name: x[rows] for name, x in clips.items()}
        return distillation_loss(network, network, Objective("v_prediction"), scheduler, **own)

    together = loss_of_clips(slice(None))
    torch.testing.assert_close(together, torch.cat([loss_of_clips(slice(i, i + 1)) for i in range(5)]))
    assert len(together.unique()) == 5


@pytest.mark.parametrize("num_steps", [2, 10])
def test_an_update_costs_what_is_said(num_steps):
    """In forward passes of a clip, of which an ordinary update has three."""
    scheduler, num_passes = scheduler_of("v_prediction"), []

    def network(sample, timestep, roles, return_dict):
        num_passes.append(len(sample))
        return (sample,)

    stride = 1000 // num_steps
    distillation_loss(
        network,
        network,
        Objective("v_prediction"),
        scheduler,
        torch.zeros(num_steps, 1, 1, 2, 2),
        torch.full((num_steps, 1), FrameRole.LATENT),
        timesteps=torch.arange(stride - 1, 1000, stride),
        num_steps=num_steps,
    )
    of_student, of_teacher = num_passes.pop(), sum(num_passes)
    assert relative_cost(num_steps) == pytest.approx((3 * of_student + of_teacher) / (3 * num_steps))


def test_students_of_noise_are_refused_where_no_signal_is_left():
    video, roles = torch.zeros(1, 1, 1, 2, 2), torch.full((1, 1), FrameRole.LATENT)
    with pytest.raises(ValueError, match="must not be one of epsilon where no signal is left"):
        distillation_loss(
            None, None, Objective("epsilon"), scheduler_of("epsilon"), video, roles, timesteps=torch.tensor([99])
        )


def test_timesteps_are_those_of_the_scheduler_that_samples():
    drawn = draw_steps(DDPMScheduler(), 2000, num_steps=50, generator=torch.Generator().manual_seed(0)).unique()
    scheduler = LCMScheduler(original_inference_steps=50)
    scheduler.set_timesteps(50)
    assert drawn.tolist() == scheduler.timesteps.sort().values.tolist()


@pytest.mark.parametrize("num_steps", [1, 7, 1000, 2000])
def test_a_way_that_does_not_divide_the_timesteps_is_refused(num_steps):
    with pytest.raises(ValueError, match="`num_steps` must be at least 2, divide 1000 timesteps and be fewer"):
        draw_steps(DDPMScheduler(), 2, num_steps=num_steps)


def test_networks_of_other_noise_levels_are_refused():
    video, roles = torch.zeros(1, 1, 1, 2, 2), torch.full((1, 1), FrameRole.LATENT)
    with pytest.raises(ValueError, match="must be one with a `beta_schedule`, got one for 'edm'"):
        distillation_loss(
            None, None, Objective("epsilon"), EDMEulerScheduler(), video, roles, timesteps=torch.tensor([19])
        )


# --------------------------------------------------------------------------------------------------------------------
# The script


TINY = "--resolution 8 --num_digits 1 --digit_size 4 --max_speed 1 --num_train_clips 32 --train_batch_size 4 --seed 3"
TINY += (
    " --num_validation_videos 1 --max_train_steps 3 --report_to none --lr_warmup_steps 0 --dataloader_num_workers 0"
)
NETWORK = "--drop_past 0 --attention_head_dim 8 --num_past_frames 1 --num_frames 2 --num_future_frames 1 --block_out_channels 8 8"


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher") / "run"
    arguments = f"{TINY} {NETWORK} --prediction_type epsilon --beta_schedule linear --output_dir {folder}"
    return train_mcvd.main(train_mcvd.parse_args(arguments.split()))


def distil(teacher, folder, *flags):
    arguments = f"{TINY} --pretrained_model_name_or_path {teacher} --variant ema --distill True --output_dir {folder}"
    return train_mcvd.main(train_mcvd.parse_args([*arguments.split(), *flags]))


@pytest.mark.parametrize("flags", [[], ["--prediction_type", "v_prediction"]])
def test_script_makes_a_student_that_is_sampled_in_four_steps(teacher, tmp_path, flags):
    folder = distil(teacher, tmp_path / "student", *flags)
    pipe = MCVDPipeline.from_pretrained(folder, variant="ema")
    assert type(pipe.scheduler) is LCMScheduler and pipe.default_num_inference_steps == 4
    assert "| distilled | from run, along 10 steps of its way" in (folder / "README.md").read_text()
    assert pipe.unet.config.prediction_type == pipe.scheduler.config.prediction_type == (flags or ["epsilon"])[-1]
    assert pipe.scheduler.config.beta_schedule == "linear" and pipe.scheduler.config.original_inference_steps == 10
    calls = []
    pipe.unet.register_forward_hook(lambda *_: calls.append(1))
    video = pipe(past_frames=torch.rand(1, 1, 1, 8, 8), num_frames=2, output_type="pt").frames
    assert video.shape == (1, 2, 1, 8, 8) and len(calls) == 4
    for num_steps in (1, 2):
        pipe(past_frames=torch.rand(1, 1, 1, 8, 8), num_frames=2, num_inference_steps=num_steps, output_type="pt")
    with pytest.raises(
        ValueError, match="`num_inference_steps` must be at most 10 for a network that was distilled .* got 11"
    ):
        pipe(past_frames=torch.rand(1, 1, 1, 8, 8), num_frames=2, num_inference_steps=11)
    before = MCVDPipeline.from_pretrained(teacher, variant="ema").unet.state_dict()
    after = MCVDPipeline.from_pretrained(folder).unet.state_dict()
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_a_distillation_that_was_stopped_goes_on_to_the_last_bit(teacher, tmp_path):
    whole = distil(teacher, tmp_path / "whole", "--lr_scheduler", "constant")
    distil(
        teacher,
        tmp_path / "part",
        "--lr_scheduler",
        "constant",
        "--max_train_steps",
        "2",
        "--checkpointing_steps",
        "1",
    )
    again = f"--output_dir {tmp_path / 'rest'} --resume_from_checkpoint {tmp_path / 'part'} --max_train_steps 3"
    rest = train_mcvd.main(train_mcvd.parse_args(again.split()))
    first, second = (MCVDPipeline.from_pretrained(folder).unet.state_dict() for folder in (whole, rest))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_distillation_does_not_go_on_with_another_teacher(teacher, tmp_path):
    other = tmp_path / "teacher"
    shutil.copytree(teacher, other)
    distil(
        other, tmp_path / "part", "--lr_scheduler", "constant", "--max_train_steps", "2", "--checkpointing_steps", "1"
    )
    pipe = MCVDPipeline.from_pretrained(other, variant="ema")
    with torch.no_grad():
        pipe.unet.conv_out.bias += 0.1
    pipe.unet.save_pretrained(other / "unet", variant="ema")
    again = f"--output_dir {tmp_path / 'rest'} --resume_from_checkpoint {tmp_path / 'part'} --max_train_steps 3"
    with pytest.raises(train_mcvd.SetupError, match="the training data, or the teacher"):
        train_mcvd.main(train_mcvd.parse_args(again.split()))


def test_a_teacher_that_has_moved_is_named_anew(teacher, tmp_path, capsys, monkeypatch):
    shutil.copytree(teacher, tmp_path / "teacher")
    monkeypatch.chdir(tmp_path)
    flags = ["--lr_scheduler", "constant", "--checkpointing_steps", "1", "--max_train_steps", "2"]
    distil("teacher", tmp_path / "part", *flags)  # noted down as it is from anywhere
    shutil.move(tmp_path / "teacher", tmp_path / "elsewhere")
    again = (
        f"--output_dir {tmp_path / 'rest'} --resume_from_checkpoint {tmp_path / 'part'} --max_train_steps 3".split()
    )
    with pytest.raises(SystemExit):
        train_mcvd.parse_args(again)
    assert f"--pretrained_model_name_or_path '{tmp_path / 'teacher'}' is no folder here" in capsys.readouterr().err
    monkeypatch.chdir("/")
    again += ["--pretrained_model_name_or_path", str(tmp_path / "elsewhere")]
    assert train_mcvd.main(train_mcvd.parse_args(again)) == tmp_path / "rest"


def test_a_student_takes_its_data_as_its_teacher_did(teacher, tmp_path):
    """Or it is told of it, since what was held out would be learned."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        flags = f"{TINY} --pretrained_model_name_or_path {teacher} --distill True --output_dir {tmp_path / 'new'}"
        train_mcvd.parse_args(flags.split())
        settings = train_mcvd.parse_args([str(teacher / "training_settings.yaml"), *flags.removeprefix(TINY).split()])
    assert (settings.data.digit_size, settings.training.sampling_scheduler) == (4, "LCMScheduler")
    assert settings.training.validation_inference_steps == 4
    with pytest.warns(UserWarning, match=r"taken otherwise: --digit_size \(was 4, is 3\). To repeat"):
        train_mcvd.parse_args([*flags.split(), "--digit_size", "3"])
    with pytest.warns(
        UserWarning, match=r"--digits \(was sklearn, is mnist\). What was held out there may be learned here"
    ):
        train_mcvd.parse_args([*flags.split(), "--digits", "mnist"])
    with warnings.catch_warnings():  # of other data it is nobody's business
        warnings.simplefilter("error")
        (tmp_path / "videos").mkdir()
        own = f"--pretrained_model_name_or_path {teacher} --train_data_dir {tmp_path / 'videos'} --validation_names a"
        train_mcvd.parse_args([*own.split(), "--output_dir", str(tmp_path / "new")])


def test_a_teachers_own_settings_say_nothing_of_its_students_loss_and_sampler(tmp_path, capsys):
    """Nor does what it went on from."""
    flags = f"{TINY} {NETWORK} --min_snr_gamma 5 --lr_scheduler constant"
    train_mcvd.main(
        train_mcvd.parse_args([*flags.split(), "--output_dir", str(tmp_path / "first"), "--checkpointing_steps", "1"])
    )
    again = f"--output_dir {tmp_path / 'teacher'} --resume_from_checkpoint {tmp_path / 'first'} --max_train_steps 4"
    teacher = train_mcvd.main(train_mcvd.parse_args(again.split()))
    flags = f"{teacher}/training_settings.yaml --pretrained_model_name_or_path {teacher} --distill True --output_dir {tmp_path / 'new'}"
    settings = train_mcvd.parse_args([*flags.split(), "--validation_inference_steps", "2"])
    own = tmp_path / "own.yaml"  # which is of no run, and means what it says
    own.write_text(f"pretrained_model_name_or_path: {teacher}\nmin_snr_gamma: 5\noutput_dir: {tmp_path / 'new'}\n")
    with pytest.raises(SystemExit):
        train_mcvd.parse_args([str(own), "--distill", "True"])
    assert "--min_snr_gamma does not go with --distill" in capsys.readouterr().err
    assert settings.training.min_snr_gamma is None and settings.data.digit_size == 4 and settings.checkpoint is None
    assert (settings.training.sampling_scheduler, settings.training.validation_inference_steps) == ("LCMScheduler", 2)


@pytest.mark.parametrize("is_student", [True, False])
def test_whether_it_is_a_distillation_does_not_change(teacher, tmp_path, capsys, is_student):
    if is_student:
        begun = distil(teacher, tmp_path / "part", "--checkpointing_steps", "1")
    else:
        flags = f"{TINY} {NETWORK} --checkpointing_steps 1 --output_dir {tmp_path / 'part'}"
        begun = train_mcvd.main(train_mcvd.parse_args(flags.split()))
    again = f"--output_dir {tmp_path / 'rest'} --resume_from_checkpoint {begun} --distill {not is_student}".split()
    with pytest.raises(SystemExit):
        train_mcvd.parse_args(again)
    assert f"--distill was {is_student}, is {not is_student}, but" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        ("--distill True", "--distill needs a teacher"),
        ("--distillation_steps 20", "--distillation_steps means nothing without --distill"),
        (
            "TEACHER --distill True --distillation_steps 7",
            "divide the 1000 timesteps of the noise and be fewer than they, got 7",
        ),
        ("TEACHER --distill True --distillation_steps 0", "--distillation_steps must be at least 2"),
        ("TEACHER --distill True --distillation_steps 1000", "and be fewer than they, got 1000"),
        (
            "TEACHER --distill True --min_snr_gamma 5",
            "--min_snr_gamma does not go with --distill, which has a loss of its own",
        ),
        ("TEACHER --distill True --loss_type l1", "--loss_type does not go with --distill"),
        ("TEACHER --distill True --drop_past 0.5", "was trained with --drop_past 0. Leave it out."),
        ("TEACHER --distill True --validation_inference_steps 60", "must not exceed --distillation_steps (10)"),
        ("TEACHER --distill True --prediction_type edm", "--distill is for networks of noise, velocity or frames"),
        (
            "TEACHER --distill True --sampling_scheduler DDIMScheduler",
            "--sampling_scheduler must be one of LCMScheduler with --distill, got DDIMScheduler",
        ),
    ],
)
def test_distillations_that_cannot_be_are_refused(teacher, tmp_path, capsys, flags, reason):
    flags = flags.replace("TEACHER", f"--pretrained_model_name_or_path {teacher}")
    with pytest.raises(SystemExit):
        train_mcvd.parse_args([*f"{TINY} {flags} --output_dir {tmp_path / 'new'}".split()])
    assert reason in capsys.readouterr().err


def test_what_a_preset_says_of_the_loss_is_told_as_its(teacher, tmp_path, capsys):
    config = json.loads((teacher / "unet/config.json").read_text())
    names = ("num_past_frames", "num_frames", "num_future_frames", "block_out_channels", "down_block_types")
    names += ("layers_per_block", "attention_head_dim", "spatin_channels", "dropout", "embed_past_kept", "in_channels")
    flags = [
        "--preset",
        "smmnist-concat-p5k5f5-general",
        "--pretrained_model_name_or_path",
        str(teacher),
        "--distill",
        "True",
    ]
    for name in names:
        values = config[name] if isinstance(config[name], list) else [config[name]]
        flags += [f"--{name}", *map(str, values)]
    flags += ["--drop_past", "0", "--output_dir", str(tmp_path / "new")]
    with pytest.raises(SystemExit):
        train_mcvd.parse_args(flags)
    assert "it is --preset smmnist-concat-p5k5f5-general's: pass --loss_reduction mean." in capsys.readouterr().err


def test_a_student_is_no_teacher(teacher, tmp_path, capsys):
    student = distil(teacher, tmp_path / "student", "--prediction_type", "v_prediction")
    with pytest.raises(SystemExit):
        distil(student, tmp_path / "new")
    assert f"{student} was distilled itself: pass the pipeline that it was made from" in capsys.readouterr().err
    flags = f"{TINY} --pretrained_model_name_or_path {student} --output_dir {tmp_path / 'new'}"
    with pytest.warns(UserWarning, match="makes it forget how to be sampled in a few steps"):
        settings = train_mcvd.parse_args(flags.split())
    assert settings.training.sampling_scheduler == "DPMSolverMultistepScheduler"


def test_a_student_of_noise_is_refused_where_its_teacher_starts_blind(tmp_path, capsys):
    noise = "--prediction_type epsilon --beta_schedule squaredcos_cap_v2"
    arguments = f"{TINY} {NETWORK} {noise} --output_dir {tmp_path / 'teacher'}"
    blind = train_mcvd.main(train_mcvd.parse_args(arguments.split()))
    with pytest.raises(SystemExit):
        distil(blind, tmp_path / "new")
    assert "Pass --prediction_type v_prediction." in capsys.readouterr().err
    folder = distil(blind, tmp_path / "new", "--prediction_type", "v_prediction")
    assert MCVDPipeline.from_pretrained(folder).unet.config.prediction_type == "v_prediction"


def test_the_teacher_is_of_the_precision_that_its_student_is(teacher, tmp_path):
    arguments = f"{TINY} --pretrained_model_name_or_path {teacher} --variant ema --distill True --output_dir {tmp_path / 'new'}"
    settings = train_mcvd.parse_args(arguments.split())
    AcceleratorState._reset_state(reset_partial_state=True)
    for precision, dtype in (("bf16", torch.bfloat16), ("no", torch.float32)):
        network = train_mcvd.make_teacher(
            train_mcvd.make_method(settings), Accelerator(mixed_precision=precision)
        ).network
        made = network(torch.zeros(1, 4, 1, 8, 8), torch.tensor([9]), torch.tensor([[1, 2, 2, 1]]), return_dict=False)[
            0
        ]
        assert made.dtype == dtype and not any(x.requires_grad for x in network.parameters())
        AcceleratorState._reset_state(reset_partial_state=True)


def test_batches_that_may_fit_are_tried_with_the_teacher(teacher, tmp_path):
    flags = f"{TINY} --pretrained_model_name_or_path {teacher} --variant ema --distill True --output_dir {tmp_path / 'new'}"
    settings = train_mcvd.parse_args(flags.split())
    accelerator, method = Accelerator(cpu=True), train_mcvd.make_method(settings)
    train_set, _ = train_mcvd.make_datasets(settings, method.num_clip_frames)
    taught = train_mcvd.make_teacher(method, accelerator)
    components = method.make_components(train_set.normalizer.largest_value)
    learner = train_mcvd.Learner(
        method,
        accelerator,
        components,
        train_mcvd.make_noise_scheduler(settings),
        train_set,
        train_mcvd.Progress(),
        taught,
    )
    batch_sizes = []
    taught.network.register_forward_pre_hook(lambda _, inputs: batch_sizes.append(len(inputs[0])))
    batch = {"video": torch.stack([train_set[i]["video"] for i in range(4)])}
    hint = train_mcvd.what_would_fit(MemoryError("none left"), learner, [train_mcvd.Part(0, batch, range(4), [])])
    assert "Tried: --train_batch_size 4" in hint and "This fits: --train_batch_size 4" in hint
    assert batch_sizes and max(batch_sizes) <= 4


@pytest.mark.parametrize("prediction_type", ["edm", "flow_prediction"])
def test_a_teacher_of_other_noise_levels_is_refused(tmp_path, capsys, prediction_type):
    arguments = f"{TINY} {NETWORK} --prediction_type {prediction_type} --output_dir {tmp_path / 'teacher'}"
    other = train_mcvd.main(train_mcvd.parse_args(arguments.split()))
    for flags in ([], ["--prediction_type", "v_prediction"]):
        with pytest.raises(SystemExit):
            distil(other, tmp_path / "new", *flags)
        assert (
            f"--distill is for networks of noise, velocity or frames, got one of {prediction_type}"
            in capsys.readouterr().err
        )


def test_a_teacher_with_final_denoising_makes_a_student_without(teacher, tmp_path):
    pipe = MCVDPipeline.from_pretrained(teacher)
    pipe.register_to_config(final_denoise=True, num_inference_steps=50)
    pipe.save_pretrained(tmp_path / "converted", variant="ema")
    folder = distil(tmp_path / "converted", tmp_path / "student", "--prediction_type", "v_prediction")
    pipe = MCVDPipeline.from_pretrained(folder)
    assert not pipe.config.final_denoise and pipe.default_num_inference_steps == 4
