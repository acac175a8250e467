"""Videos of validation: the same every time, nothing left behind, and an end when it is asked for."""

import sys

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from PIL import Image

from context_pipelines import context_pipeline
from mcvd_diffusers import MCVDPipeline, MCVDUNet2DModel
from mcvd_diffusers.metrics import psnr_of_mse, repeat_last_frame, video_mse
from mcvd_diffusers.models import SpaceTimeUNetModel
from mcvd_diffusers.validation import make_validation_videos, validation_tasks


TASKS = ["prediction", "past_prediction", "interpolation", "generation"]


def make_pipeline(scheduler=DDIMScheduler, **changes):
    torch.manual_seed(0)
    shape = {"num_past_frames": 2, "num_frames": 2, "num_future_frames": 1, "dropout": 0.3, **changes}
    unet = MCVDUNet2DModel(
        sample_size=8,
        in_channels=1,
        block_out_channels=(8, 8),
        down_block_types=("DownBlock2D", "DownBlock2D"),
        layers_per_block=1,
        **shape,
    )
    for parameter in unet.parameters():  # a new network answers zero
        torch.nn.init.normal_(parameter, std=0.1)
    return MCVDPipeline(unet, scheduler(prediction_type="v_prediction", clip_sample=True))


def make_clips(count=3, num_frames=5):
    return [{"video": torch.rand(num_frames, 1, 8, 8) * 2 - 1} for _ in range(count)]


def validate(pipeline, clips, folder, **options):
    return make_validation_videos(pipeline, clips, folder=folder, **{"num_inference_steps": 2, **options})


def test_psnrs_are_of_the_mean_error_over_all_clips_beside_those_of_the_baselines(tmp_path):
    pipe, clips = make_pipeline(), make_clips()
    made = validate(pipe, clips, tmp_path / "new" / "folder", save_mp4=False)
    video = (torch.stack([clip["video"] for clip in clips]) + 1) / 2
    pipe.unet.eval()
    samples = pipe(
        past_frames=video[:, :2],
        num_inference_steps=2,
        generator=[torch.Generator().manual_seed(i) for i in range(3)],
        output_type="pt",
    ).frames
    for name, frames in (("", samples), ("_of_baseline", repeat_last_frame(video[:, :2], 2))):
        psnr = psnr_of_mse(video_mse(frames, video[:, 2:4]).mean())
        assert made.values[f"validation/prediction_psnr{name}"] == pytest.approx(float(psnr))
        assert f"{float(psnr):.2f} dB" in made.lines[0]
    assert len(made.values) == 6 and len(made.lines) == 3  # generation has no truth
    assert made.files == {f"validation/{task}": tmp_path / "new" / "folder" / f"{task}.gif" for task in TASKS}
    assert sorted(made.files.values()) == sorted((tmp_path / "new" / "folder").iterdir())
    with Image.open(made.files["validation/interpolation"]) as picture:
        assert picture.n_frames == 5


def test_only_tasks_that_the_network_was_trained_for_are_done(tmp_path):
    pipe = make_pipeline(num_future_frames=0, drop_past=0)
    assert list(validate(pipe, make_clips(num_frames=4), tmp_path).files) == ["validation/prediction"]


@pytest.mark.parametrize("scheduler", [DDIMScheduler, DDPMScheduler])
def test_the_same_videos_every_time_without_the_global_random_stream(tmp_path, scheduler):
    pipe, clips = make_pipeline(scheduler), make_clips()
    state = torch.get_rng_state()
    first = validate(pipe, clips, tmp_path / "first")
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(7)
    second = validate(pipe, clips, tmp_path / "second")
    assert first.values == second.values
    for name in first.files:
        assert first.files[name].read_bytes() == second.files[name].read_bytes()


def test_each_part_of_the_network_keeps_its_mode_and_gradients_stay_as_they_were(tmp_path):
    pipe = make_pipeline().to("cpu")
    pipe.unet.train()
    pipe.unet.mid_block.eval()  # frozen, say
    modes = [module.training for module in pipe.unet.modules()]
    asked = []

    def fail():
        asked.append(pipe.unet.training)
        raise RuntimeError("asked once too often")

    validate(pipe, make_clips(), tmp_path)
    assert [module.training for module in pipe.unet.modules()] == modes and torch.is_grad_enabled()
    with pytest.raises(RuntimeError, match="too often"):
        validate(pipe, make_clips(), tmp_path, is_stop_asked=fail)
    assert [module.training for module in pipe.unet.modules()] == modes and asked == [False]
    assert all(parameter.grad is None for parameter in pipe.unet.parameters())


@pytest.mark.parametrize(("num_answers", "num_tasks"), [(0, 0), (1, 0), (3, 0), (4, 1), (5, 1), (8, 2), (99, 4)])
def test_a_stop_ends_it_within_a_step_and_leaves_whole_tasks(tmp_path, num_answers, num_tasks):
    """It is asked before each task, and after each of its three steps."""
    pipe, asked, calls = make_pipeline(), [], []
    pipe.unet.register_forward_pre_hook(lambda *_: calls.append(1))

    def is_stop_asked():
        asked.append(1)
        return len(asked) > num_answers

    made = validate(pipe, make_clips(), tmp_path, num_inference_steps=3, is_stop_asked=is_stop_asked)
    assert list(made.files) == [f"validation/{task}" for task in TASKS[:num_tasks]]
    assert sorted(path.stem for path in tmp_path.glob("*.gif")) == sorted(TASKS[:num_tasks])
    assert len(asked) == min(num_answers + 1, 16) and len(calls) <= num_answers
    whole = validate(pipe, make_clips(), tmp_path)  # the pipeline serves as before
    assert len(whole.files) == 4


def test_files_of_an_interrupted_validation_are_replaced_as_a_whole(tmp_path):
    (tmp_path / "prediction.gif").write_bytes(b"half a gif")
    (tmp_path / ".prediction.partial.gif").write_bytes(b"the other half")
    hard_link = tmp_path / "link.gif"
    hard_link.hardlink_to(tmp_path / "prediction.gif")
    made = validate(make_pipeline(), make_clips(), tmp_path, save_mp4=False)
    assert hard_link.read_bytes() == b"half a gif"  # nothing was written into the old file
    assert made.files["validation/prediction"].read_bytes().startswith(b"GIF")
    assert {path.name for path in tmp_path.iterdir()} == {*(f"{task}.gif" for task in TASKS), "link.gif"}


def test_mp4_stands_beside_each_gif_where_pyav_is_installed(tmp_path):
    av = pytest.importorskip("av")
    validate(make_pipeline(), make_clips(), tmp_path)
    for task, num_frames in zip(TASKS, (4, 3, 5, 2)):
        with av.open(str(tmp_path / f"{task}.mp4")) as container, Image.open(tmp_path / f"{task}.gif") as picture:
            frames = [frame.to_image() for frame in container.decode(video=0)]
            assert len(frames) == picture.n_frames == num_frames and float(container.streams.video[0].base_rate) == 5
            assert all(0 <= video - gif <= 1 for video, gif in zip(frames[0].size, picture.size))
            assert len(frames) / 5 == pytest.approx(num_frames * picture.info["duration"] / 1000)


def test_without_pyav_there_are_gifs_and_no_complaint(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    made = validate(make_pipeline(), make_clips(), tmp_path)
    assert len(made.lines) == 3 and {path.suffix for path in tmp_path.iterdir()} == {".gif"}


def test_an_mp4_that_cannot_be_written_is_a_line_of_the_report(tmp_path):
    pytest.importorskip("av")
    (tmp_path / "prediction.mp4" / "in the way").mkdir(parents=True)
    made = validate(make_pipeline(), make_clips(), tmp_path)
    assert len(made.files) == 4 and sum("prediction.mp4 was not written" in line for line in made.lines) == 1


# --------------------------------------------------------------------------------------------------------------------
# Networks that read any frames


def make_any_frames_pipeline(drop_observed=0.25, **sampling):
    torch.manual_seed(0)
    unet = SpaceTimeUNetModel(
        sample_size=8,
        in_channels=1,
        max_frames=6,
        block_out_channels=(8, 8),
        layers_per_block=1,
        attention_levels=(1,),
        num_attention_heads=2,
        drop_observed=drop_observed,
    )
    for parameter in unet.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return MCVDPipeline(unet, DDIMScheduler(prediction_type="v_prediction", clip_sample=True), **sampling)


@pytest.mark.parametrize(
    ("drop_observed", "sampling", "tasks"),
    [
        (0.25, {}, ["prediction", "interpolation", "generation"]),
        (0.0, {}, ["prediction", "interpolation"]),
        (1.0, {}, ["generation"]),
        (1.0, {"replacement": "noised"}, ["prediction", "interpolation", "generation"]),
    ],
)
def test_tasks_of_a_network_that_reads_any_frames(drop_observed, sampling, tasks, tmp_path):
    pipe = make_any_frames_pipeline(drop_observed, **sampling)
    assert validation_tasks(pipe) == tasks
    made = validate(pipe, make_clips(num_frames=6), tmp_path, save_mp4=False)
    assert list(made.files) == [f"validation/{task}" for task in tasks]
    for file in made.files.values():
        with Image.open(file) as picture:
            assert picture.n_frames == 6


@pytest.mark.parametrize(("sampling", "num_given"), [({}, 3), ({"frame_schedule": "autoreg", "step": 2}, 4)])
def test_a_window_is_predicted_from_its_first_frames_and_interpolated_between_its_ends(sampling, num_given, tmp_path):
    """Of longer clips, the first window."""
    pipe, clips = make_any_frames_pipeline(**sampling), make_clips(num_frames=9)
    made = validate(pipe, clips, tmp_path, save_mp4=False)
    video = (torch.stack([clip["video"] for clip in clips]) + 1) / 2
    options = {"num_inference_steps": 2, "output_type": "pt"}
    for task, past, future in (("prediction", num_given, 0), ("interpolation", 1, 1)):
        samples = pipe(
            past_frames=video[:, :past],
            future_frames=video[:, 5:6] if future else None,
            num_frames=6 - past - future,
            generator=[torch.Generator().manual_seed(i) for i in range(3)],
            **options,
        ).frames
        psnr = psnr_of_mse(video_mse(samples, video[:, past : 6 - future]).mean())
        assert made.values[f"validation/{task}_psnr"] == pytest.approx(float(psnr))
    baseline = repeat_last_frame(video[:, :num_given], 6 - num_given)
    psnr = psnr_of_mse(video_mse(baseline, video[:, num_given:6]).mean())
    assert made.values["validation/prediction_psnr_of_baseline"] == pytest.approx(float(psnr))


@pytest.mark.parametrize(
    ("kind", "lengths"),
    [
        ("lgcvd", {"prediction": 8, "interpolation": 4, "generation": 4}),
        ("rvd", {"prediction": 8}),
        ("memory", {"prediction": 8, "past_prediction": 3, "interpolation": 5, "generation": 2}),
    ],
)
def test_with_a_context_encoder_all_of_the_clip_is_predicted_and_both_networks_are_left_as_they_were(
    kind, lengths, tmp_path
):
    pipe = context_pipeline(kind)
    pipe.context_encoder.train()
    during = []
    pipe.context_encoder.register_forward_pre_hook(lambda module, _: during.append(module.training))
    made = validate(pipe, make_clips(num_frames=8), tmp_path, save_mp4=False)
    assert pipe.context_encoder.training and not pipe.unet.training and during and not any(during)
    assert {path.stem for path in made.files.values()} == set(lengths)
    for task, length in lengths.items():
        with Image.open(tmp_path / f"{task}.gif") as picture:
            assert picture.n_frames == length
