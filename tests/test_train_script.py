"""train_mcvd.py: settings, presets, and training runs in processes of their own."""

import itertools
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
import yaml
from accelerate.state import AcceleratorState
from diffusers import DDPMScheduler, DPMSolverMultistepScheduler
from PIL import Image
from safetensors.torch import load_file
from torch.utils.data import DataLoader

import train_mcvd
from mcvd_diffusers import MCVDPipeline, MCVDUNet2DModel, denoising_loss, mcvd_roles, sample_generators
from mcvd_diffusers.checkpointing import read_state
from mcvd_diffusers.conversion import convert_checkpoint
from mcvd_diffusers.data import ClipDataset, EpochBatches
from mcvd_diffusers.interruption import StopSignals
from mcvd_diffusers.metrics import video_mse
from mcvd_diffusers.presets import ORIGINAL_NAMES, preset
from mcvd_diffusers.training_data import whole_clips
from mcvd_diffusers.validation import make_validation_videos
from original_mcvd import CASES, save_original


ROOT = Path(__file__).parents[1]
TINY = {
    "resolution": [16],
    "num_past_frames": 2,
    "num_frames": 2,
    "num_future_frames": 1,
    "block_out_channels": [8, 8],
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "train_batch_size": 4,
    "num_train_clips": 64,
    "max_train_steps": 4,
    "lr_warmup_steps": 2,
    "logging_steps": 2,
    "num_validation_videos": 2,
    "validation_inference_steps": 2,
    "report_to": "none",
}


def flags(output_dir, only=TINY, **settings):
    """The flags of a tiny run; `only` says which of the tiny settings are used."""
    arguments = []
    tiny = {name: value for name, value in TINY.items() if name in only}
    if {"train_data_dir", "dataset_name"} & set(settings):
        tiny.pop("num_train_clips", None)  # of moving digits
    for name, value in {**tiny, **settings, "output_dir": str(output_dir)}.items():
        arguments += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    return arguments


def run(output_dir, only=TINY, **settings):
    """Train in this process."""
    return train_mcvd.main(train_mcvd.parse_args(flags(output_dir, only, **settings)))


def weights(folder, variant=None):
    return MCVDUNet2DModel.from_pretrained(folder, subfolder="unet", variant=variant).state_dict()


# --------------------------------------------------------------------------------------------------------------------
# Settings

PARAMETERS = {  # counted by instantiating the original
    "smmnist-concat-p5k5": 27_941_765,
    "smmnist-spatin-p5k5": 53_953_989,
    "smmnist-spatin-p5k5f5-general": 54_282_309,
    "smmnist-spatin-p5k10f5-interpolation": 54_288_074,
    "smmnist-concat-p5k5f5-general": 27_944_645,
    "kth-concat-p10k5": 62_831_141,
    "kth-spatin-p10k5": 367_650_437,
    "kth-spatin-p10k10f5-futuremask": 102_342_634,
    "kth-spatin-p5k5f5-futuremask": 102_005_669,
    "kth-concat-p5k5f5-general": 62_831_141,
    "bair-concat-p1k5": 251_169_807,
    "bair-concat-p2k5": 251_174_991,
    "bair-spatin-p1k5": 328_407_375,
    "bair-spatin-p2k5": 328_604_367,
    "bair-concat-p1k5f2-general": 251_180_175,
    "bair-concat-p2k5f2-general": 251_185_359,
    "cityscapes-concat-p2k5": 262_133_775,
    "cityscapes-spatin-p2k5": 579_159_695,
    "cityscapes-spatin-p2k5f2-general": 579_650_447,
    "ucf101-concat-p4k4": 564_990_060,
    "ucf101-spatin-p4k4": 739_438_572,
    "ucf101-spatin-p4k4f4-general": 740_620_524,
}


@pytest.mark.parametrize("name", ORIGINAL_NAMES)
def test_preset_has_the_size_of_the_published_model(name, tmp_path):
    (tmp_path / "data").mkdir()
    arguments = ["--preset", name, "--output_dir", str(tmp_path / "out"), "--train_data_dir", str(tmp_path / "data")]
    settings = train_mcvd.parse_args(arguments)
    for key, value in preset(name).items():
        expected = [value[0], value[-1]] if key == "resolution" else value
        assert settings.as_dict()[key] == expected
    with torch.device("meta"):
        unet = train_mcvd.make_unet(settings)
    digits = settings.data
    assert not name.startswith("smmnist") or (digits.digits, digits.num_digits, digits.digit_size) == ("mnist", 2, 32)
    without_mask = name.removesuffix("-pastmask").removesuffix("-futuremask").removesuffix("-interpolation")
    expected = {**PARAMETERS, "smmnist-spatin-p5k5f5-interpolation": 54_282_309}
    expected |= {"smmnist-spatin-p5k5f5-futuremask": 54_282_309}
    count = sum(parameter.numel() for parameter in unet.parameters())
    assert count == expected.get(name, expected.get(without_mask))


def test_flags_beat_the_file_which_beats_the_preset(tmp_path):
    file = tmp_path / "settings.yaml"
    file.write_text(yaml.safe_dump({"preset": "smmnist-concat-p5k5", "dropout": 0.3, "seed": 5}))
    settings = train_mcvd.parse_args([str(file), "--seed", "6", "--output_dir", str(tmp_path / "out")])
    values = settings.as_dict()
    assert (values["seed"], values["dropout"], values["loss_reduction"], values["num_frames"]) == (6, 0.3, "sum", 5)


def test_numbers_in_a_file_may_be_written_as_people_write_them(tmp_path):
    file = tmp_path / "settings.yaml"
    file.write_text("learning_rate: 2e-4\nblock_out_channels: [8, 16, 24]\n")
    settings = train_mcvd.parse_args([str(file), "--output_dir", str(tmp_path / "out")])
    assert settings.training.learning_rate == 2e-4 and settings.model.block_out_channels == [8, 16, 24]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--max_train_steps", "0"], "--max_train_steps must be at least 1, got 0"),
        (["--num_frames", "-1"], "--num_frames must be at least 1, got -1"),
        (["--num_past_frames", "-1"], "--num_past_frames must not be negative"),
        (["--max_train_minutes", "0"], "--max_train_minutes must be positive, got 0.0"),
        (["--learning_rate", "nan"], "--learning_rate must be a positive number, got nan"),
        (["--drop_past", "2"], r"--drop_past must be in [0, 1], got 2.0"),
        (["--resolution", "0", "32"], "--resolution must be one or two positive numbers, got [0, 32]"),
        (["--axes", "THWC"], "--axes is for your own data: pass --train_data_dir, or leave it out"),
        (["--streaming", "True"], "--streaming is for your own data"),
        (["--resolution", "8", "8", "8"], "--resolution must be one or two positive numbers"),
        (["--in_channels", "3"], "--in_channels is 3, but moving digits have 1"),
        (["--train_data_dir", "does/not/exist"], "--train_data_dir does/not/exist does not exist"),
        (["--preset", "kth-concat-p10k5"], "--preset kth-concat-p10k5 is for your copy of its data"),
        (["--preset", "mnist"], "There is no preset 'mnist'. There are: smmnist-concat-p5k5"),
        (["--conditioning", "spade"], "invalid choice: 'spade'"),
        (["--no_such_flag", "1"], "unrecognized arguments: --no_such_flag 1"),
        (["--seed", "1", "settings.yaml"], "unrecognized arguments: settings.yaml"),
        (["--down_block_types", "DownBlock2D"], "must have one entry for each level"),
        (["--report_to", "wandb,nothing"], "is no tracker that is installed here"),
        (["--digit_size", "0"], "--digit_size must be at least 1, got 0"),
        (["--max_speed", "-1"], "--max_speed must be at least 0, got -1"),
        (["--train_data_dir", ""], "--train_data_dir is empty"),
        (["--validation_inference_steps", "2000"], "must not exceed --num_train_timesteps"),
    ],
)
def test_bad_setting_is_refused_before_anything_is_made(arguments, message, tmp_path, capsys):
    with pytest.raises((SystemExit, ValueError)) as error:
        train_mcvd.parse_args([*arguments, "--output_dir", str(tmp_path / "out")])
    assert message in capsys.readouterr().err + str(error.value)
    assert not (tmp_path / "out").exists()


def test_output_folder_is_required(capsys):
    with pytest.raises(SystemExit):
        train_mcvd.parse_args([])
    assert "--output_dir is required" in capsys.readouterr().err


def test_output_folder_that_holds_something_is_refused_and_left_alone(tmp_path, capsys):
    (tmp_path / "weights").write_text("three weeks of work")
    with pytest.raises(SystemExit):
        train_mcvd.parse_args(["--output_dir", str(tmp_path)])
    assert "exists and is not empty. Nothing is overwritten" in capsys.readouterr().err
    assert (tmp_path / "weights").read_text() == "three weeks of work"


def test_unknown_setting_in_a_file_is_named(tmp_path, capsys):
    file = tmp_path / "settings.yaml"
    file.write_text("lerning_rate: 1\n")
    with pytest.raises(SystemExit):
        train_mcvd.parse_args([str(file), "--output_dir", str(tmp_path / "out")])
    assert "settings that do not exist: ['lerning_rate']" in capsys.readouterr().err


@pytest.mark.parametrize(
    "content, message",
    [
        ("max_train_steps: 2.5", "--max-train-steps: invalid int value: '2.5'"),
        (
            "sampling_scheduler: DDIM",
            "--sampling_scheduler must be one of DPMSolverMultistepScheduler, UniPCMultistepScheduler",
        ),
        ("loss_type: L1", "--loss-type: invalid choice: 'L1'"),
        ("learning_rate: [1, 2]", "unrecognized arguments: 2"),
        ("learning_rate: {a: 1}", "`learning_rate` must be a value or a list of values, got {'a': 1}"),
        ("block_out_channels: ['8', x]", "--block-out-channels: invalid int value: 'x'"),
        ("seed: 1\nseed: 2", "says ['seed'] more than once"),
        ("- seed", "must hold lines of `name: value`, got a list"),
        ("seed: [", "is no YAML in UTF-8"),
        (b"tracker_project_name: \xe9", "is no YAML in UTF-8"),
        ("preset: nothing", "There is no preset 'nothing'"),
    ],
)
def test_bad_settings_file_is_refused(content, message, tmp_path, capsys):
    file = tmp_path / "settings.yaml"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(SystemExit):
        train_mcvd.parse_args([str(file), "--output_dir", str(tmp_path / "out")])
    assert message in capsys.readouterr().err


def test_a_bare_no_is_a_word_here(tmp_path):
    file = tmp_path / "settings.yaml"
    file.write_text("mixed_precision: no\nreport_to: no\n")
    settings = train_mcvd.parse_args([str(file), "--output_dir", str(tmp_path / "out")])
    assert settings.training.mixed_precision == "no" and settings.training.report_to == "none"


def test_value_for_a_list_and_null_may_stand_in_a_file(tmp_path):
    file = tmp_path / "settings.yaml"
    file.write_text("resolution: 64\nattention_head_dim: null\nuse_ema: false\n")
    settings = train_mcvd.parse_args([str(file), "--output_dir", str(tmp_path / "out")])
    assert settings.model.resolution == [64, 64] and settings.model.attention_head_dim is None
    assert settings.training.use_ema is False


def test_missing_settings_file_is_named(tmp_path, capsys):
    with pytest.raises(SystemExit):
        train_mcvd.parse_args([str(tmp_path / "no.yaml"), "--output_dir", str(tmp_path / "out")])
    assert "no.yaml" in capsys.readouterr().err


@pytest.mark.parametrize("output", ["data", "data/out"])
def test_output_inside_the_training_data_is_refused(output, tmp_path, capsys):
    (tmp_path / "data").mkdir()
    with pytest.raises(SystemExit):
        train_mcvd.parse_args(["--train_data_dir", str(tmp_path / "data"), "--output_dir", str(tmp_path / output)])
    assert "lies inside --train_data_dir" in capsys.readouterr().err


def test_output_folder_that_is_or_lies_under_a_file_is_refused(tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    for name in ("file", "file/out"):
        with pytest.raises(SystemExit):
            train_mcvd.parse_args(["--output_dir", str(tmp_path / name)])
        assert "is a file" in capsys.readouterr().err


def test_second_run_into_one_folder_is_refused(tmp_path):
    first, second = (train_mcvd.parse_args(flags(tmp_path / "out")) for _ in range(2))
    folder = train_mcvd.main(first)
    before = weights(folder)
    AcceleratorState._reset_state(reset_partial_state=True)
    with pytest.raises(ValueError, match="was taken by another run"):
        train_mcvd.main(second)
    assert all(torch.equal(before[name], weight) for name, weight in weights(folder).items())


def test_too_few_videos_are_named(tmp_path):
    for count, message in (
        (1, "holds 1 video"),
        (2, "--validation_fraction 0.01 leaves one side of the 2 videos empty"),
    ):
        (tmp_path / "data" / str(count)).mkdir(parents=True)
        Image.new("RGB", (16, 16)).save(tmp_path / "data" / str(count) / "0.png")
        with pytest.raises(ValueError, match=message):
            run(tmp_path / "out", train_data_dir=str(tmp_path / "data"), validation_fraction=0.01)
    assert not (tmp_path / "out").exists()


def test_fewer_clips_than_a_batch_is_refused(tmp_path):
    with pytest.raises(ValueError, match="--train_batch_size: 4 clips on each of 1 processes are more than the 3"):
        run(tmp_path / "out", num_train_clips=3)


# --------------------------------------------------------------------------------------------------------------------
# Runs


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("conditioning", ["concat", "spatin"])
def test_training_saves_a_pipeline_that_does_every_task(conditioning, prediction_type, tmp_path):
    folder = run(tmp_path / "out", conditioning=conditioning, prediction_type=prediction_type, spatin_channels=8)
    pipe = MCVDPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    assert pipe.scheduler.config.prediction_type == prediction_type
    assert pipe.unet.config.prediction_type == prediction_type
    assert pipe.unet.config.drop_past == 0.5 and pipe.unet.config.sample_size == [16, 16]
    past, future = torch.rand(1, 2, 1, 16, 16), torch.rand(1, 1, 1, 16, 16)
    for given in (
        {"past_frames": past},
        {"future_frames": future},
        {"past_frames": past, "future_frames": future},
        {},
    ):
        assert pipe(**given, num_inference_steps=2, output_type="pt").frames.shape == (1, 2, 1, 16, 16)
    for task in ("prediction", "past_prediction", "interpolation", "generation"):
        assert (folder / "samples" / "step-4" / f"{task}.gif").is_file()
    assert yaml.safe_load((folder / "training_settings.yaml").read_text())["conditioning"] == conditioning


def test_training_stops_when_its_time_is_over_and_saves(tmp_path, caplog):
    with caplog.at_level("INFO"):
        folder = run(tmp_path / "out", max_train_minutes=1e-6, max_train_steps=100_000)
    assert "trained 1 updates" in caplog.text
    assert MCVDPipeline.from_pretrained(folder).unet.config.num_frames == 2


class AfterLine(logging.Handler):
    """Sends this process a signal when a line of the log says something."""

    def __init__(self, words, number):
        super().__init__()
        self.words, self.number = words, number

    def emit(self, record):
        if self.words in record.getMessage():
            self.words = "\0"
            os.kill(os.getpid(), self.number)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_training_that_is_signalled_saves_a_checkpoint_and_ends(number, tmp_path, caplog):
    settings = train_mcvd.parse_args(flags(tmp_path / "out", max_train_steps=100_000))
    handler = AfterLine("step      2", number)
    logging.getLogger("train_mcvd").addHandler(handler)
    try:
        with caplog.at_level("INFO"), StopSignals() as stop:
            assert train_mcvd.main(settings, stop) is None
    finally:
        logging.getLogger("train_mcvd").removeHandler(handler)
    assert stop.exit_code == 128 + number
    (checkpoint,) = (tmp_path / "out").glob("checkpoint-*")
    assert f"All of it is in {checkpoint}. Go on with: --output_dir {tmp_path / 'out'}" in caplog.text
    for variant in (None, "ema"):
        assert MCVDPipeline.from_pretrained(checkpoint, variant=variant).unet.config.num_frames == 2
    assert not (tmp_path / "out" / "model_index.json").exists()


@pytest.mark.slow
def test_errors_of_the_set_up_are_messages_not_tracebacks(tmp_path):
    command = [sys.executable, "train_mcvd.py", *flags(tmp_path / "out", num_train_clips=2)]
    out = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert out.returncode == 1 and "Traceback" not in out.stderr
    assert "error: --train_batch_size: 4 clips" in out.stderr and "Choose at most 2" in out.stderr


def test_training_that_diverges_stops_and_keeps_what_was_good(tmp_path):
    """After so many updates in a row that were skipped; the clips are saved, too."""
    diverging = {"learning_rate": 1e30, "lr_warmup_steps": 0, "max_grad_norm": 1e30, "max_train_steps": 50}
    with pytest.raises(
        train_mcvd.NotFiniteError, match="not finite.*Lower --learning_rate.*The clips are in .*latest"
    ):
        run(tmp_path / "out", max_skipped_updates=3, **diverging)
    assert not (tmp_path / "out" / "model_index.json").exists()
    (checkpoint,) = (tmp_path / "out").glob("checkpoint-*")
    assert read_state(checkpoint)["progress"]["num_skipped"] == 3
    (file,) = (tmp_path / "out").glob("not-finite-*.safetensors")
    clips = load_file(file)
    assert clips["video"].shape == (4, 5, 1, 16, 16) and not clips["losses"].isfinite().any()


def test_same_seed_gives_the_same_weights_and_another_does_not(tmp_path):
    first, again, other = (
        weights(run(tmp_path / name, seed=seed, dropout=0.1)) for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_validation_does_not_touch_training(tmp_path):
    with_validation = weights(run(tmp_path / "a", validation_steps=1, dropout=0.1))
    without = weights(run(tmp_path / "b", num_validation_videos=0, dropout=0.1))
    assert all(torch.equal(without[name], with_validation[name]) for name in without)


def test_one_batch_of_eight_equals_eight_batches_of_one(tmp_path):
    """The samples, their masks, timesteps and noise are the same, so the update is, but for rounding."""
    common = {"num_train_clips": 24, "max_train_steps": 5, "use_ema": False, "num_validation_videos": 0}
    # A gradient near zero has a sign that rounding decides, and Adam moves by the sign; a large epsilon makes it smooth.
    common |= {"adam_epsilon": 1e-2, "learning_rate": 1e-2}
    together = weights(run(tmp_path / "a", train_batch_size=8, **common))
    apart = weights(run(tmp_path / "b", train_batch_size=1, gradient_accumulation_steps=8, **common))
    for name in together:
        torch.testing.assert_close(together[name], apart[name], atol=1e-6, rtol=1e-4)


def test_averaged_weights_are_saved_unless_not_wanted(tmp_path):
    raw = weights(run(tmp_path / "raw", use_ema=False))
    folder = run(tmp_path / "averaged")
    assert all(torch.equal(raw[name], x) for name, x in weights(folder).items())
    assert not all(torch.equal(raw[name], x) for name, x in weights(folder, variant="ema").items())
    assert not list((tmp_path / "raw").rglob("*.ema.*"))


def test_gradient_checkpointing_changes_only_rounding(tmp_path):
    plain = weights(run(tmp_path / "a", adam_epsilon=1e-2))
    checkpointed = weights(run(tmp_path / "b", adam_epsilon=1e-2, gradient_checkpointing=True))
    for name in plain:
        torch.testing.assert_close(plain[name], checkpointed[name], atol=1e-6, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["blocks", "whole"])
def test_compiling_changes_only_rounding(how, tmp_path):
    torch.compiler.reset()
    options = {"max_train_steps": 3, "adam_epsilon": 1e-2}
    eager = weights(run(tmp_path / "eager", **options))
    compiled = weights(run(tmp_path / how, **options, compile=how))
    assert compiled.keys() == eager.keys()
    for name in eager:
        torch.testing.assert_close(compiled[name], eager[name], atol=1e-5, rtol=1e-3)


def test_log_says_how_much_of_the_time_was_spent_waiting_for_data(tmp_path, caplog):
    with caplog.at_level("INFO"):
        run(tmp_path / "out", max_train_steps=3, logging_steps=1)
    shares = [float(x) for x in re.findall(r"waiting_for_data ([0-9.e-]+)", caplog.text)]
    assert len(shares) == 3 and all(0 < share < 1 for share in shares)


def test_training_goes_on_from_a_saved_pipeline(tmp_path):
    target = {"prediction_type": "epsilon", "beta_schedule": "linear", "num_train_timesteps": 200}
    first = run(tmp_path / "first", conditioning="spatin", spatin_channels=8, drop_future=0.7, **target)
    second = run(
        tmp_path / "second", only=["train_batch_size", "num_train_clips", "num_validation_videos"],
        pretrained_model_name_or_path=str(first), learning_rate=1e-9, lr_warmup_steps=0, max_train_steps=2, drop_past=0.1,
    )  # fmt: skip
    before, after = weights(first), weights(second)
    for name in before:
        torch.testing.assert_close(before[name], after[name], atol=1e-6, rtol=0)
    pipes = [MCVDPipeline.from_pretrained(folder) for folder in (first, second)]
    for name, value in target.items():
        assert pipes[1].scheduler.config[name] == value
    assert pipes[1].unet.config.num_train_timesteps == 200 and pipes[1].unet.config.prediction_type == "epsilon"
    assert pipes[1].unet.config.drop_past == 0.1 and pipes[1].unet.config.drop_future == 0.7
    assert pipes[1].unet.config.sample_size == [16, 16]
    written = yaml.safe_load((second / "training_settings.yaml").read_text())
    assert written["conditioning"] == "spatin" and written["prediction_type"] == "epsilon"


@pytest.mark.slow
def test_training_goes_on_from_a_converted_checkpoint(tmp_path, capsys):
    """What is saved is sampled as what went in was; the checkpoint itself is pointed to its converter."""
    config = {name: dict(section) for name, section in CASES["train_steps"]["config"].items()}
    original = save_original(tmp_path / "original", config)
    for sampler, kind in (("original", DDPMScheduler), ("few_steps", DPMSolverMultistepScheduler)):
        convert_checkpoint(original, tmp_path / f"{sampler}_pipeline", sampler=sampler)
        folder = run(
            tmp_path / f"{sampler}_out", only=["train_batch_size", "num_train_clips", "num_validation_videos"],
            pretrained_model_name_or_path=str(tmp_path / f"{sampler}_pipeline"), max_train_steps=1,
        )  # fmt: skip
        before, after = (MCVDPipeline.from_pretrained(path) for path in (tmp_path / f"{sampler}_pipeline", folder))
        assert type(after.scheduler) is type(before.scheduler) is kind
        assert after.config.final_denoise is before.config.final_denoise is (sampler == "original")
        assert after.default_num_inference_steps == before.default_num_inference_steps
    for source in (original, original / "checkpoint_4.pt"):
        with pytest.raises(SystemExit):
            train_mcvd.parse_args(
                ["--pretrained_model_name_or_path", str(source), "--output_dir", str(tmp_path / "b")]
            )
        assert f"mcvd-diffusers convert {source}" in capsys.readouterr().err


def test_another_sampler_than_the_pretrained_pipelines_has_its_own_steps(tmp_path):
    """And no last call, which belongs to the sampler that it was made for."""
    only = ["train_batch_size", "num_train_clips", "num_validation_videos"]
    noise = {"prediction_type": "epsilon", "beta_schedule": "linear"}
    first = run(tmp_path / "first", num_validation_videos=0, validation_inference_steps=7, **noise)
    pipe = MCVDPipeline.from_pretrained(first)
    pipe.register_to_config(final_denoise=True)
    pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, solver_order=3)
    pipe.save_pretrained(tmp_path / "changed")
    source = {"pretrained_model_name_or_path": str(tmp_path / "changed"), "max_train_steps": 1}
    same = MCVDPipeline.from_pretrained(run(tmp_path / "same", only=only, **source))
    assert (same.default_num_inference_steps, same.config.final_denoise) == (7, True)
    assert same.scheduler.config.solver_order == 3
    for name, steps in (("DDPMScheduler", 25), ("UniPCMultistepScheduler", 15)):
        folder = run(tmp_path / name, only=only, **source, sampling_scheduler=name)
        other = MCVDPipeline.from_pretrained(folder)
        assert type(other.scheduler).__name__ == name and other.scheduler.config.get("solver_order", 2) == 2
        assert (other.default_num_inference_steps, other.config.final_denoise) == (steps, False)


def test_setting_that_contradicts_the_pretrained_pipeline_is_refused(tmp_path, capsys):
    first = run(tmp_path / "first", num_validation_videos=0)
    for name, value in (("conditioning", "spatin"), ("prediction_type", "epsilon"), ("num_frames", "3")):
        with pytest.raises(SystemExit):
            train_mcvd.parse_args(
                [
                    "--pretrained_model_name_or_path",
                    str(first),
                    f"--{name}",
                    value,
                    "--output_dir",
                    str(tmp_path / "b"),
                ]
            )
        assert f"--{name} is {value}, but {first} was made with" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("nowhere", "is no folder here, and no id on the Hub, which would be owner/name"),
        ("./no/where", "is no folder here, and no id on the Hub"),
        ("/no/where", "is no folder here, and no id on the Hub"),
        ("a/b/c", "is no folder here, and no id on the Hub"),
        ("", "is empty"),
        ("nobody/nothing", "cannot be read: there is no such folder here, nor could the Hub be asked for it"),
        ("runs/damaged", "cannot be read: it is damaged"),
        (
            "runs/nothing",
            "is no folder here. (It is not looked for on the Hub, since there is a folder runs: if it is there",
        ),
        (
            "runs",
            "holds no pipeline: there is no model_index.json in it. Pass the folder that training, conversion or",
        ),
        ("runs/unfinished", "The run is not finished: wait, or pass a copy of runs/unfinished/checkpoint-1"),
        ("runs/unfinished/checkpoint-1/unet", "holds no pipeline"),
        ("runs/unfinished/checkpoint-1/model_index.json", "is a file: pass the folder that it is in"),
    ],
)
def test_pretrained_pipeline_that_is_none_is_named(tmp_path, capsys, monkeypatch, name, reason):
    monkeypatch.chdir(tmp_path)
    if name.startswith("runs"):
        run("runs/first", num_validation_videos=0, max_train_steps=1, checkpointing_steps=1)
        shutil.copytree("runs/first/checkpoint-1", "runs/unfinished/checkpoint-1")
        shutil.copytree("runs/first", "runs/damaged")
        shutil.rmtree("runs/damaged/unet")
    with pytest.raises(SystemExit):
        train_mcvd.parse_args(["--pretrained_model_name_or_path", name, "--output_dir", "new"])
    said = capsys.readouterr().err
    shown = str(tmp_path / name) if name == "runs/damaged" else name
    assert f"--pretrained_model_name_or_path {shown!r} " in said and reason in said


def test_pretrained_weights_that_are_not_finite_are_refused(tmp_path):
    first = run(tmp_path / "first", num_validation_videos=0, max_train_steps=1)
    pipe = MCVDPipeline.from_pretrained(first)
    with torch.no_grad():
        pipe.unet.conv_out.bias[0] = torch.nan
    pipe.save_pretrained(tmp_path / "bad")
    with pytest.raises(train_mcvd.SetupError, match="bad has weights that are NaN or infinite, in unet.conv_out.bias"):
        run(tmp_path / "second", only=["train_batch_size"], pretrained_model_name_or_path=str(tmp_path / "bad"))
    assert not (tmp_path / "second").exists()


def test_training_goes_on_when_what_it_began_with_is_gone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first = run("first", num_validation_videos=0, max_train_steps=1)
    only = ["train_batch_size", "num_train_clips", "num_validation_videos"]
    options = {"lr_scheduler": "constant", "pretrained_model_name_or_path": str(first), "checkpointing_steps": 1}
    whole = run("whole", only=only, max_train_steps=3, **options)
    part = run("part", only=only, max_train_steps=2, **options)
    shutil.rmtree(first)
    # The same command again, as it is to be started always; another source would not be what it says.
    parse = train_mcvd.parse_args
    assert (
        parse(flags("part", only, **options, max_train_steps=2, resume_from_checkpoint="latest")).checkpoint
        is not None
    )
    for other in ("some/model", "", str(whole)):
        with pytest.raises(SystemExit):
            parse(flags("more", [], pretrained_model_name_or_path=other, resume_from_checkpoint=str(part)))
    rest = run("rest", only=[], max_train_steps=3, resume_from_checkpoint=str(part))
    ours, theirs = weights(rest), weights(whole)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    card = (rest / "README.md").read_text()
    assert str(tmp_path) not in card and "base_model" not in card


@pytest.mark.parametrize("sampling_scheduler", ["DPMSolverMultistepScheduler", "DDIMScheduler", "DDPMScheduler"])
@pytest.mark.parametrize("num_train_timesteps", [1000, 500])
def test_saved_scheduler_starts_at_pure_noise(sampling_scheduler, num_train_timesteps, tmp_path):
    options = {"sampling_scheduler": sampling_scheduler, "num_train_timesteps": num_train_timesteps}
    if sampling_scheduler == "DPMSolverMultistepScheduler":
        del options["sampling_scheduler"]  # it is the default
    pipe = MCVDPipeline.from_pretrained(run(tmp_path / "out", beta_schedule="linear", **options))
    assert type(pipe.scheduler).__name__ == sampling_scheduler
    pipe.scheduler.set_timesteps(10)
    step = num_train_timesteps // 10
    assert pipe.scheduler.timesteps.tolist() == list(range(num_train_timesteps - 1, 0, -step))
    config = pipe.scheduler.config
    assert config.beta_schedule == "linear" and config.get("clip_sample", False) == (
        sampling_scheduler == "DDPMScheduler"
    )
    assert config.num_train_timesteps == num_train_timesteps == pipe.unet.config.num_train_timesteps


def test_script_trains_as_a_plain_loop_does(tmp_path):
    """Roles, learning rate, clipping and average, against a loop that is written out."""
    options = {
        "max_train_steps": 6,
        "drop_past": 0.3,
        "drop_future": 0.8,
        "max_grad_norm": 0.05,
        "learning_rate": 1e-2,
    }
    options |= {"lr_warmup_steps": 3, "lr_scheduler": "constant_with_warmup", "ema_decay": 0.7, "ema_warmup": False}
    options |= {"adam_epsilon": 1e-3, "num_validation_videos": 0, "seed": 3}
    folder = run(tmp_path / "out", **options)
    raw, averaged = weights(folder), weights(folder, variant="ema")

    settings = train_mcvd.parse_args(flags(tmp_path / "again", **options))
    unet, noise_scheduler = train_mcvd.make_unet(settings), train_mcvd.make_noise_scheduler(settings)
    dataset, _ = train_mcvd.make_datasets(settings, 5)
    order = [item for batch in itertools.islice(EpochBatches(64, 1, seed=3), 64) for item in batch]
    assert sorted(order) == [(0, index) for index in range(64)]
    optimizer = torch.optim.Adam(unet.parameters(), lr=1e-2, eps=1e-3)
    average = {name: parameter.detach().clone() for name, parameter in unet.named_parameters()}
    for update in range(6):
        video = torch.stack([dataset[i]["video"] for i in order[4 * update : 4 * update + 4]])
        streams = sample_generators(3, range(4 * update, 4 * update + 4))
        parts = {"num_past_frames": 2, "num_frames": 2, "num_future_frames": 1}
        roles = mcvd_roles(4, **parts, drop_past=0.3, drop_future=0.8, generator=streams)
        denoising_loss(unet, noise_scheduler, video, roles, generator=streams).mean().backward()
        assert torch.nn.utils.clip_grad_norm_(unet.parameters(), 0.05) > 0.05
        optimizer.param_groups[0]["lr"] = 1e-2 * min(update / 3, 1)
        optimizer.step()
        optimizer.zero_grad()
        for name, parameter in unet.named_parameters():
            average[name] += 0.3 * (parameter.detach() - average[name])
    for name, parameter in unet.named_parameters():
        torch.testing.assert_close(raw[name], parameter.detach(), atol=1e-6, rtol=1e-4)
        torch.testing.assert_close(averaged[name], average[name], atol=1e-6, rtol=1e-4)


def test_trains_on_a_folder_of_frame_folders(tmp_path):
    random = np.random.RandomState(0)
    for video in range(8):
        (tmp_path / "data" / f"video {video}").mkdir(parents=True)
        for frame in range(7):
            pixels = random.randint(0, 256, (20, 28, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "data" / f"video {video}" / f"{frame}.png")
    folder = run(
        tmp_path / "out",
        train_data_dir=str(tmp_path / "data"),
        in_channels=3,
        resolution=[8, 12],
        validation_fraction=0.3,
        train_batch_size=2,
    )
    out = MCVDPipeline.from_pretrained(folder)(num_inference_steps=2, output_type="pt").frames
    assert out.shape == (1, 2, 3, 8, 12)


def write_hdf5(file, num_videos, shape=(16, 21, 3), **numbers):
    """A file as the original's converters write it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    random = np.random.RandomState(0)
    with h5py.File(file, "w") as root:
        for video in range(num_videos):
            root[f"len/{video}"] = 7
            for frame in range(7):
                root[f"{video}/{frame}"] = random.randint(0, 256, shape, dtype=np.uint8)
        for name, value in numbers.items():
            root[name] = value
    return str(file.parent)


def test_trains_on_the_original_codes_files_in_their_published_split(tmp_path):
    data = write_hdf5(tmp_path / "data" / "shard_0001.hdf5", 26, num_train=6, num_test=20)
    options = {"train_data_dir": data, "in_channels": 3, "random_flip": True}
    out = MCVDPipeline.from_pretrained(run(tmp_path / "out", **options))(
        num_inference_steps=2, output_type="pt"
    ).frames
    assert out.shape == (1, 2, 3, 16, 16)  # cut, not squeezed
    train, held_out = train_mcvd.make_datasets(train_mcvd.parse_args(flags(tmp_path / "again", **options)), 5)
    assert len(train) == 6 and [held_out.reader.name(video) for video in range(2)] == ["shard_0001/6", "shard_0001/16"]
    assert train.random_flip and train.random_crop and not held_out.random_flip and not held_out.random_crop
    # All flags stand in the settings of a run, at their defaults, too, and start another.
    again = [str(tmp_path / "out" / "training_settings.yaml"), "--output_dir", str(tmp_path / "again")]
    replayed, _ = train_mcvd.make_datasets(train_mcvd.parse_args(again), 5)
    assert torch.equal(replayed[3]["video"], train[3]["video"])


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"in_channels": 1}, "3 channel.*16x21 pixels.*Pass --in_channels 3 --resolution 16 16"),
        ({"in_channels": 3, "resolution": [8, 8]}, "Pass --in_channels 3 --resolution 16 16"),
        ({"in_channels": 3, "resolution": [16, 24]}, "Pass --in_channels 3 --resolution 16 16"),
        ({"in_channels": 3, "frame_stride": 2}, "--frame_stride must be 1 for .*, which is split as published, got 2"),
        ({"in_channels": 3, "num_frames": 5}, "`num_frames` must not exceed the frames of any video but 8 does"),
    ],
)
def test_settings_that_do_not_fit_a_published_split_are_named(settings, message, tmp_path):
    for side in ("train", "test"):
        write_hdf5(tmp_path / "data" / side / "shard_0001.hdf5", 4)
    with pytest.raises(ValueError, match=message):
        run(tmp_path / "out", train_data_dir=str(tmp_path / "data"), **settings)
    assert not (tmp_path / "out").exists()


def test_hdf5_files_without_a_published_split_are_split_by_name_and_resized(tmp_path):
    data = write_hdf5(tmp_path / "data" / "own.h5", 12)
    settings = train_mcvd.parse_args(flags(tmp_path / "out", train_data_dir=data, frame_stride=2, num_frames=1))
    train, held_out = train_mcvd.make_datasets(settings, 4)
    assert len(train) + len(held_out) == 12 and train[0]["video"].shape == (4, 3, 16, 16)


def test_estimate_says_what_a_run_costs_and_keeps_nothing(tmp_path, caplog, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = [argument for argument in flags("unused", max_train_steps=100_000) if argument != "unused"]
    arguments.remove("--output_dir")
    assert train_mcvd.main(train_mcvd.parse_args([*arguments, "--estimate"])) is None
    assert not list(tmp_path.iterdir())
    text = caplog.text
    for quantity in ("parameters", "peak memory", "steps/s", "to the end", "for 100,000 updates", "saved pipeline"):
        assert quantity in text
    assert "a video" in text and "with 2 steps of DPMSolverMultistepScheduler" in text
    assert "saved to" not in text


def test_every_run_says_at_its_start_what_it_will_cost(tmp_path, caplog):
    run(tmp_path / "out", max_train_steps=14)
    lines = [record.getMessage() for record in caplog.records]
    estimate = next(i for i, line in enumerate(lines) if "estimate  parameters" in line)
    measuring = next(i for i, line in enumerate(lines) if "measuring the time of" in line)
    assert next(i for i, line in enumerate(lines) if "14 updates of 4 clips" in line) < measuring < estimate
    assert estimate < next(i for i, line in enumerate(lines) if "trained 14 updates" in line)


def test_a_learning_rate_that_time_will_not_let_fall_is_warned_of_only_then(tmp_path, caplog):
    short = {"lr_scheduler": "cosine", "num_validation_videos": 0}
    run(tmp_path / "in time", max_train_steps=14, max_train_minutes=60, **short)
    assert "to the end" in caplog.text and "is still high then" not in caplog.text
    run(tmp_path / "late", max_train_steps=100_000, max_train_minutes=0.01, **short)
    assert "stopped before its 100,000 updates" in caplog.text
    steps = re.search(r"cosine falls over .*is still high then\. --max_train_steps (\d+) would do", caplog.text)
    assert steps and 1 <= int(steps[1]) < 100_000


def write_fields(path, num_frames=60, share_missing=0.0):
    """A field in kelvin, 10 x 12, that moves."""
    time, row, column = np.ogrid[:num_frames, :10, :12]
    field = 280 + 20 * np.sin(0.5 * time + 0.6 * column + 0.2 * row)
    field[np.random.RandomState(0).rand(*field.shape) < share_missing] = np.nan
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, field)
    return str(path)


@pytest.mark.parametrize("normalization", ["range", "min_max", "mean_std"])
def test_trains_on_kelvin_with_missing_values_and_predicts_kelvin(normalization, tmp_path):
    options = {"train_data_dir": write_fields(tmp_path / "data" / "t2m.npy", share_missing=0.1), "axes": "THW"}
    options |= {"split_frames": 12, "clip_step": 2, "validation_names": ["t2m[[]0000048:]"], "nan_fill": 280}
    options |= {"normalization": normalization, "nan_mask_channel": True}
    options |= {"value_low": 255, "value_high": 305} if normalization == "range" else {}
    only = {name: value for name, value in TINY.items() if name not in ("resolution", "num_train_clips")}
    folder = run(tmp_path / "out", only, **options)
    pipe = MCVDPipeline.from_pretrained(folder)
    assert pipe.unet.config.in_channels == 2 and pipe.unet.config.sample_size == [10, 12]
    assert pipe.normalizer.kind == normalization
    assert pipe.scheduler.config.clip_sample_range == pipe.normalizer.largest_value
    past = np.load(tmp_path / "data" / "t2m.npy")[:2, None]
    out = pipe(past_frames=past, num_frames=2, num_inference_steps=2, output_type="np").frames
    assert out.shape == (1, 2, 10, 12, 1)
    valid = out[~np.isnan(out)]
    assert valid.size and valid.min() >= 255 and valid.max() <= 305
    # Training goes on in the same units.
    again = {**options, "pretrained_model_name_or_path": str(folder)}
    for name in ("normalization", "value_low", "value_high", "nan_fill", "nan_mask_channel"):
        again.pop(name, None)
    more = train_mcvd.main(
        train_mcvd.parse_args(
            flags(tmp_path / "more", ["max_train_steps"], **again, num_validation_videos=0, train_batch_size=4)
        )
    )
    assert MCVDPipeline.from_pretrained(more).normalizer == pipe.normalizer
    # Published splits are images.
    images = write_hdf5(tmp_path / "images" / "shard_0001.hdf5", 26, num_train=6, num_test=20)
    options = {"train_data_dir": images, "pretrained_model_name_or_path": str(folder)}
    settings = train_mcvd.parse_args(flags(tmp_path / "other", ["max_train_steps"], **options))
    with pytest.raises(ValueError, match="in other units than the images of --train_data_dir"):
        train_mcvd.make_datasets(settings, 5)


def write_parquet(folder, num_videos=12):
    """A Hugging Face data set of two parquet shards: grey videos as arrays, and actions beside them."""
    import datasets

    rng = np.random.RandomState(0)
    rows = {
        "frames": [rng.randint(256, size=(8, 16, 16)).astype(np.uint8) for _ in range(num_videos)],
        "action": [rng.randn(8, 3).tolist() for _ in range(num_videos)],
    }
    features = datasets.Features(
        {
            "frames": datasets.Array3D((8, 16, 16), "uint8"),
            "action": datasets.List(datasets.List(datasets.Value("float32"))),
        }
    )
    whole = datasets.Dataset.from_dict(rows, features=features)
    folder.mkdir()
    for shard in range(2):
        whole.shard(2, shard).to_parquet(folder / f"train-{shard}.parquet")
    return str(folder)


@pytest.mark.parametrize("streaming", [False, True])
def test_trains_on_a_hugging_face_data_set(streaming, tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    options = {"dataset_name": write_parquet(tmp_path / "data"), "axes": "THW", "vectors": "action", "seed": 3}
    options |= {"validation_fraction": 0.3, "max_train_steps": 3}
    options |= {"streaming": True, "shuffle_buffer": 3} if streaming else {}
    only = {name: value for name, value in TINY.items() if name not in ("resolution", "num_train_clips")}
    settings = train_mcvd.parse_args(flags(tmp_path / "x", only, **options))
    train, held_out = train_mcvd.make_datasets(settings, 5)
    item = next(iter(train))
    assert item["video"].shape == (5, 1, 16, 16) and item["action"].shape == (5, 3)
    assert len(held_out) > 0 and held_out[0]["video"].dtype == torch.float32
    folder = run(tmp_path / "out", only, **options)
    assert MCVDPipeline.from_pretrained(folder).unet.config.sample_size == [16, 16]


def test_padding_of_short_videos_is_not_learned(tmp_path, monkeypatch):
    """Whatever stands in padded frames, the trained weights are the same."""
    (tmp_path / "a").mkdir()
    for video in range(6):
        frames = np.random.RandomState(video).randint(256, size=(3, 1, 16, 16)).astype(np.uint8)
        np.save(tmp_path / "a" / f"{video}.npy", frames)
    options = {"axes": "TCHW", "pad_short_videos": True, "validation_names": ["5"], "num_validation_videos": 0}
    settings = train_mcvd.parse_args(flags(tmp_path / "x", train_data_dir=tmp_path / "a", **options))
    train, _ = train_mcvd.make_datasets(settings, 5)
    item = train[0]
    assert item["is_padding"].tolist() == [False] * 3 + [True] * 2
    plain = weights(run(tmp_path / "plain", train_data_dir=tmp_path / "a", **options))
    original = ClipDataset.__getitem__

    def with_other_padding(self, *args):
        item = original(self, *args)
        item["video"][item["is_padding"]] = 255
        return item

    monkeypatch.setattr(ClipDataset, "__getitem__", with_other_padding)
    other = weights(run(tmp_path / "other", train_data_dir=tmp_path / "a", **options))
    assert all(torch.equal(plain[name], other[name]) for name in plain)


def test_videos_that_break_during_training_are_counted_in_the_log(tmp_path, caplog):
    for video in range(8):
        (tmp_path / "data" / f"{video}").mkdir(parents=True)
        for frame in range(5):
            Image.fromarray(np.full((16, 16), 20 * frame, np.uint8)).save(tmp_path / "data" / f"{video}/{frame}.png")
    (tmp_path / "data" / "3" / "4.png").write_bytes(b"torn off")
    with pytest.warns(UserWarning, match="3 is broken, other clips take its place"):
        run(tmp_path / "out", train_data_dir=tmp_path / "data", validation_names=["0"], max_train_steps=4)
    assert "1 videos are broken inside" in caplog.text
    with pytest.raises(train_mcvd.DataError, match="stopped after .*can not be read any more.*3/4.png"):
        run(tmp_path / "strict", train_data_dir=tmp_path / "data", validation_names=["0"], strict=True)


def test_estimate_writes_nothing_whatever_else_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = flags("unused", validation_steps=1, max_train_minutes=1e-6, num_validation_videos=1)
    place = arguments.index("--output_dir")
    settings = train_mcvd.parse_args([*arguments[:place], *arguments[place + 2 :], "--estimate"])
    assert train_mcvd.main(settings) is None
    stop = StopSignals()
    stop.ask()
    assert train_mcvd.main(settings, stop) is None
    assert not list(tmp_path.iterdir())


def test_a_run_of_few_updates_says_its_cost_too(tmp_path, caplog):
    run(tmp_path / "out", max_train_steps=3)
    assert "estimate  speed" in caplog.text


def test_settings_that_a_run_saved_start_another(tmp_path):
    run(tmp_path / "first", max_train_steps=1)
    again = [str(tmp_path / "first" / "training_settings.yaml"), "--output_dir", str(tmp_path / "second")]
    train_mcvd.main(train_mcvd.parse_args(again))
    first, second = weights(tmp_path / "first"), weights(tmp_path / "second")
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--test_names", "a", "--streaming"], "--test_names means nothing with --streaming"),
        (["--validation_list", "x.txt", "--streaming"], "--validation_list means nothing with --streaming"),
        (["--clip_step", "3", "--streaming"], "--clip_step means nothing with --streaming"),
        (["--num_digits", "3"], "--num_digits is for moving digits, and your data have none"),
        (["--shuffle_buffer", "3"], "--shuffle_buffer means nothing without --streaming"),
        (["--normalization_frames", "3"], "--normalization_frames is for what is measured"),
        (["--resize", "crop"], "--resize means nothing without --resolution"),
        (["--normalization", "range"], "must go with --value_low and --value_high"),
        (["--normalization", "min_max", "--streaming"], "must be measured before training, which --streaming cannot"),
        (["--normalization", "range", "--value_low", "5", "--value_high", "1"], "make no range: .low. must be below"),
        (["--nan_mask_channel"], "--nan_mask_channel must go with --nan_fill"),
        (["--test_fraction", "0.1", "--test_names", "a"], "--test_fraction and --test_names both say"),
        (["--adam_beta1", "2"], "--adam_beta1 must be in .0, 1., got 2.0"),
        (["--adam_weight_decay", "nan"], "--adam_weight_decay must be a number of at least 0, got nan"),
        (["--output_dir", "  "], "--output_dir is required"),
    ],
)
def test_settings_that_would_be_ignored_or_contradict_are_refused(arguments, message, tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        train_mcvd.parse_args(["--dataset_name", "user/data", "--output_dir", str(tmp_path / "out"), *arguments])
    assert re.search(message, capsys.readouterr().err)


def test_numbers_with_a_minus_and_an_exponent_are_no_flags(tmp_path):
    (tmp_path / "settings.yaml").write_text("value_low: [-1.0e-3, -2]\nvalue_high: 1e-20\nnormalization: range\n")
    common = [
        "--train_data_dir",
        str(tmp_path),
        "--output_dir",
        str(tmp_path.parent / "elsewhere"),
        "--nan_fill",
        "-1e-4",
    ]
    settings = train_mcvd.parse_args([str(tmp_path / "settings.yaml"), *common])
    assert settings.data.value_low == [-1e-3, -2] and settings.data.nan_fill == [-1e-4]


def test_videos_of_several_sizes_and_kinds_train_as_one(tmp_path):
    """Bytes and floats in one batch would make white of the one or black of the other."""
    rng = np.random.RandomState(0)
    for video, shape in enumerate([(16, 16), (32, 24), (16, 16, 3), (20, 20, 3)] * 2):
        (tmp_path / "data" / f"{video}").mkdir(parents=True)
        for frame in range(6):
            pixels = (100 + 20 * rng.rand(*shape)).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "data" / f"{video}" / f"{frame}.png")
    options = {"train_data_dir": str(tmp_path / "data"), "validation_names": ["7"], "in_channels": 1}
    settings = train_mcvd.parse_args(flags(tmp_path / "x", **options))
    train, _ = train_mcvd.make_datasets(settings, 5)
    for num_workers in (0, 1):
        batch = next(iter(DataLoader(train, batch_size=len(train), num_workers=num_workers)))["video"]
        means = train.encode(batch).mean(dim=(1, 2, 3, 4))
        torch.testing.assert_close(means, torch.full((7,), 110 / 127.5 - 1), atol=0.02, rtol=0)


def test_units_of_a_pretrained_pipeline_do_not_fit_moving_digits(tmp_path, capsys):
    options = {"train_data_dir": write_fields(tmp_path / "data" / "t2m.npy"), "axes": "THW", "split_frames": 12}
    options |= {"clip_step": 2, "validation_names": ["t2m[[]0000048:]"], "normalization": "min_max"}
    run(tmp_path / "out", max_train_steps=1, **options)
    with pytest.raises(SystemExit):
        train_mcvd.parse_args(
            ["--pretrained_model_name_or_path", str(tmp_path / "out"), "--output_dir", str(tmp_path / "more")]
        )
    assert "was trained on data in other units than moving digits have" in capsys.readouterr().err


def test_units_that_do_not_fit_the_data_leave_no_folder_behind(tmp_path):
    options = {"train_data_dir": write_fields(tmp_path / "data" / "t2m.npy"), "axes": "THW", "split_frames": 12}
    options |= {"normalization": "range", "value_low": [0, 0], "value_high": [300, 300]}
    options |= {"clip_step": 2, "validation_names": ["t2m[[]0000048:]"]}
    with pytest.raises(train_mcvd.SetupError, match="is for 2 channel"):
        run(tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_mixed_precision_trains(tmp_path):
    folder = run(tmp_path / "out", mixed_precision="bf16")
    assert all(parameter.dtype == torch.float32 for parameter in weights(folder).values())
    assert all(torch.isfinite(parameter).all() for parameter in weights(folder).values())


def launch(*command, **environment):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", **environment}
    return subprocess.run(
        [sys.executable, "-m", *command], check=True, cwd=ROOT, env=environment, capture_output=True, text=True
    )


@pytest.mark.slow
def test_accelerate_launch_trains(tmp_path):
    options = ["--num_processes=1", "--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no"]
    out = launch("accelerate.commands.launch", *options, "train_mcvd.py", *flags(tmp_path / "out"))
    assert "saved to" in out.stderr + out.stdout
    assert MCVDPipeline.from_pretrained(tmp_path / "out").unet.config.num_frames == 2


@pytest.mark.slow
def test_two_processes_equal_one_with_the_double_batch(tmp_path):
    common = {"adam_epsilon": 1e-2, "learning_rate": 1e-2, "num_train_clips": 40}
    arguments = flags(tmp_path / "two", train_batch_size=4, **common)
    out = launch("torch.distributed.run", "--nproc_per_node=2", "--master_port=29617", "train_mcvd.py", *arguments)
    assert "on 2 x cpu" in out.stderr + out.stdout  # a launch on the CPU can silently become one process
    run(tmp_path / "one", train_batch_size=8, **common)
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    for name in one:
        torch.testing.assert_close(one[name], two[name], atol=1e-6, rtol=1e-4)


TWO_RANKS = """
import itertools, sys, torch
from accelerate import Accelerator
import train_mcvd
settings = train_mcvd.parse_args(sys.argv[2:])
accelerator = Accelerator(cpu=True)
assert accelerator.num_processes == 2
train, _ = train_mcvd.make_datasets(settings, settings.num_window_frames)
loader = train_mcvd.make_loader(settings, train, accelerator)
clips = [batch["video"].flatten(1).double().sum(dim=1) for batch in itertools.islice(loader, 2 * len(train))]
torch.save(torch.stack(clips), f"{sys.argv[1]}/{accelerator.process_index}.pt")
"""


@pytest.mark.slow
def test_two_ranks_and_two_workers_see_each_clip_exactly_once_an_epoch(tmp_path):
    """11 clips do not divide into batches of 2 on 2 ranks, and yet none is missed or met twice."""
    rng = np.random.RandomState(0)
    np.save(tmp_path / "data.npy", rng.randint(256, size=(12, 9, 1, 8, 8)).astype(np.uint8))
    (tmp_path / "two_ranks.py").write_text(TWO_RANKS)
    common = {"train_data_dir": tmp_path / "data.npy", "axes": "NTCHW", "train_batch_size": 2, "split_frames": None}
    common |= {"validation_names": ["data/3"], "dataloader_num_workers": 2}
    arguments = flags(tmp_path / "out", **{name: x for name, x in common.items() if x is not None})
    script = [str(tmp_path / "two_ranks.py"), str(tmp_path), *arguments]
    launch("torch.distributed.run", "--nproc_per_node=2", "--master_port=29618", *script, PYTHONPATH=str(ROOT))
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]  # (22 batches, 2)
    met = torch.stack(ranks, dim=1).flatten()  # in the order of the samples' numbers: 8 epochs
    train, _ = train_mcvd.make_datasets(train_mcvd.parse_args(arguments), 5)
    assert len(train) == 11 and len(met) == 8 * 11
    for epoch in range(8):
        expected = torch.stack([train[epoch, i]["video"].double().sum() for i in range(11)])
        assert torch.equal(met[11 * epoch : 11 * epoch + 11].sort().values, expected.sort().values)


@pytest.mark.slow
def test_tracker_gets_losses_and_validation(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = run(tmp_path / "out", report_to="tensorboard", validation_steps=2)
    events = EventAccumulator(str(folder / "logs" / "train_mcvd")).Reload()
    assert {"loss", "grad_norm", "learning_rate", "validation/prediction_psnr"} <= set(events.Tags()["scalars"])
    assert [event.step for event in events.Scalars("loss")] == [2, 4]
    assert {"validation/prediction", "validation/interpolation"} <= set(events.Tags()["images"])


@pytest.mark.slow
def test_training_learns_to_predict(tmp_path):
    """A block that bounces: after a short training the prediction beats repeating the last frame."""
    random = np.random.RandomState(0)
    for video in range(40):
        (tmp_path / "data" / f"{video}").mkdir(parents=True)
        (y, x), (dy, dx) = random.randint(0, 12, 2), random.choice([-1, 1], 2)
        for frame in range(20):
            canvas = np.zeros((16, 16), np.uint8)
            canvas[y : y + 5, x : x + 5] = 255
            Image.fromarray(canvas).save(tmp_path / "data" / f"{video}" / f"{frame}.png")
            dy, dx = (-v if not 0 <= p + v <= 11 else v for p, v in ((y, dy), (x, dx)))
            y, x = y + dy, x + dx
    settings = {"train_data_dir": str(tmp_path / "data"), "max_train_steps": 900, "learning_rate": 2e-3}
    settings |= {"block_out_channels": [16, 32], "train_batch_size": 16, "validation_fraction": 0.2}
    settings |= {"logging_steps": 100, "num_validation_videos": 4, "validation_inference_steps": 20}
    settings = train_mcvd.parse_args(flags(tmp_path / "out", **settings))
    folder = train_mcvd.main(settings)
    pipe = MCVDPipeline.from_pretrained(folder, variant="ema")
    _, held_out = train_mcvd.make_datasets(settings, pipe.unet.num_window_frames)
    values = make_validation_videos(
        pipe, whole_clips(held_out, 4), num_inference_steps=20, folder=tmp_path / "samples"
    ).values
    assert values["validation/prediction_psnr"] > values["validation/prediction_psnr_of_baseline"] + 3

    # The same checkpoint does all four tasks, and what is given decides what is made.
    pipe.set_progress_bar_config(disable=True)
    videos = (torch.stack([held_out[i]["video"] for i in range(4)]) + 1) / 2
    past, future = videos[:, :2], videos[:, -1:]

    def make(**given):
        generator = torch.Generator().manual_seed(0)
        return pipe(**given, num_inference_steps=20, generator=generator, output_type="pt").frames

    prediction = make(past_frames=past)
    tasks = [prediction, make(future_frames=future), make(past_frames=past, future_frames=future), make(batch_size=4)]
    for i, j in itertools.combinations(range(4), 2):
        assert (tasks[i] - tasks[j]).abs().mean() > 1e-3
    assert video_mse(make(past_frames=past.flip(0)), prediction).mean() > 0.01  # another past, another prediction
