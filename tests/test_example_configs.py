"""examples/configs: each file trains on data that look like those it is for, without a line of code around it.

Data are synthetic, and networks 8 channels wide; layouts on disk, channels, units, frames and tasks are the real ones.
"""

import io
import json
import re
import runpy
import shutil
import tarfile
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
import yaml
from accelerate.state import AcceleratorState
from diffusers import DDIMScheduler
from PIL import Image

import train_mcvd
from contract_rows import shaken
from mcvd_diffusers import MCVDPipeline, cli
from mcvd_diffusers.methods import make_method
from mcvd_diffusers.metrics import mean_interval
from mcvd_diffusers.models import LGCVDContextEncoder, LGCVDUNet2DModel
from video_fixtures import write_gif, write_video


CONFIGS = Path(__file__).parents[1] / "examples" / "configs"
# Frames before, in and after the block; channels of the network.
NAMES = {
    "traffic": (12, 12, 0, 8),
    "himawari": (6, 6, 0, 8),
    "fmow": (3, 2, 2, 3),
    "driving_game": (4, 4, 0, 3),
    "robot_planning": (2, 4, 0, 3),
    "weather": (6, 6, 0, 3),  # t2m, tp, and where they are missing
}
# Of moving digits, which need no data: the method of each.
DIGITS = {f"{method}_digits": method for method in ("mcvd", "ramvid", "fdm", "vdm", "lgcvd", "rvd")}


def stated(name: str) -> dict:
    """What an example says."""
    return yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())


def parse(name: str, data: Path, output_dir: Path, **changes) -> train_mcvd.Settings:
    """The settings of an example, with a narrow network and a short run, and with changes."""
    num_levels = len(stated(name)["block_out_channels"])
    tiny = {
        "train_data_dir": data,
        "output_dir": output_dir,
        "block_out_channels": [8] * num_levels,
        "layers_per_block": 1,
        "train_batch_size": 2,
        "gradient_accumulation_steps": 1,
        "max_train_steps": 2,
        "lr_warmup_steps": 1,
        "num_validation_videos": 1,
        "validation_inference_steps": 2,
        "dataloader_num_workers": 0,
        "mixed_precision": "no",
    }
    flags = []
    for key, value in {**tiny, **changes}.items():
        flags += [f"--{key}", *map(str, value if isinstance(value, list) else [value])]
    return train_mcvd.parse_args([str(CONFIGS / f"{name}.yaml"), *flags])


def train(name: str, data: Path, tmp_path: Path, **changes) -> tuple[MCVDPipeline, torch.utils.data.Dataset]:
    """Looks at the data and trains, as the example says; the pipeline as a user loads it, and the training clips."""
    (command,) = re.findall(r"Check +mcvd-diffusers (data inspect) \S+ (.*)", (CONFIGS / f"{name}.yaml").read_text())
    assert cli.main([*command[0].split(), str(data), *command[1].split(), "--no_contact_sheet"]) == 0
    folder = train_mcvd.main(parse(name, data, tmp_path / "run", **changes))
    pipe = MCVDPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    settings = parse(name, data, tmp_path / "again", **changes)
    dataset = train_mcvd.make_datasets(settings, settings.num_window_frames)[0]
    config = pipe.unet.config
    past, block, future, channels = NAMES[name]
    assert (config.num_past_frames, config.num_frames, config.num_future_frames) == (past, block, future)
    assert config.in_channels == channels
    return pipe, dataset


def predict(pipe: MCVDPipeline, past: np.ndarray | torch.Tensor, **given) -> torch.Tensor:
    past = torch.as_tensor(past)
    options = {"num_inference_steps": 2, "generator": torch.Generator().manual_seed(0), "output_type": "pt"}
    return pipe(past_frames=past, **given, **options).frames


def drifting(num_frames: int, height: int, width: int, num_channels: int, seed: int = 0) -> np.ndarray:
    """Smooth fields (T, H, W, C) in [0, 1] that drift, each channel at its own pace."""
    random = np.random.RandomState(seed)
    y, x = np.arange(height)[:, None, None], np.arange(width)[None, :, None]
    phase, pace = random.rand(2, num_channels)
    frames = [
        0.5 + 0.25 * (np.sin(y / 9 + phase * 6 + t * pace) + np.cos(x / 7 - t * pace)) for t in range(num_frames)
    ]
    return np.stack(frames).astype(np.float32)


# --------------------------------------------------------------------------------------------------------------------
# What the files say


def test_each_example_is_tested():
    assert {file.stem for file in CONFIGS.glob("*.yaml")} == {
        "demo",
        "moving_digits_64",
        *NAMES,
        *DIGITS,
    }  # tests/test_checkpoint.py


@pytest.mark.parametrize("name", NAMES)
def test_settings_exist_and_the_number_of_parameters_is_true(name, tmp_path):
    file = CONFIGS / f"{name}.yaml"
    values = stated(name)
    (tmp_path / "data").mkdir()
    arguments = [str(file), "--train_data_dir", str(tmp_path / "data"), "--output_dir", str(tmp_path / "run")]
    settings = train_mcvd.parse_args(arguments)  # exits if a setting does not exist, or is out of range
    for key, value in values.items():
        said = settings.as_dict()[key]
        assert said == (type(said)(value) if isinstance(said, float) else value) or said == [value]
    assert values.keys() <= settings.explicit
    settings.model.resolution = settings.model.resolution or [64]  # else the data's; no parameter depends on it
    with torch.device("meta"):
        unet = train_mcvd.make_unet(settings)
    count = sum(parameter.numel() for parameter in unet.parameters())
    (in_words,) = re.findall(r"The network has ([\d,]+) parameters", file.read_text())
    assert in_words == f"{count:,}"
    assert (unet.config.num_past_frames, unet.config.num_frames, unet.config.num_future_frames) == NAMES[name][:3]
    assert unet.config.in_channels == NAMES[name][3]


@pytest.mark.parametrize("name", NAMES)
def test_comment_says_what_to_check_first_and_how_to_train(name):
    comment = (CONFIGS / f"{name}.yaml").read_text().partition("\n\n")[0]
    assert comment.startswith("# ") and f"train_mcvd.py examples/configs/{name}.yaml" in comment
    for word in ("On disk", "Check      mcvd-diffusers data inspect ", "--estimate", "Replaces a fork"):
        assert word in comment


@pytest.mark.parametrize("name", DIGITS)
def test_settings_of_moving_digits_are_a_methods(name, tmp_path):
    file = CONFIGS / f"{name}.yaml"
    settings = train_mcvd.parse_args([str(file), "--output_dir", str(tmp_path / "run")])
    assert settings.model.method == DIGITS[name] and stated(name).keys() <= settings.explicit
    assert settings.size == (16, 16) and settings.data.num_digits == 1
    with torch.device("meta"):
        components = make_method(settings).make_components()
    count = sum(parameter.numel() for parameter in components.parameters())
    (in_words,) = re.findall(r"The (?:network has|networks have) ([\d,]+) parameters", file.read_text())
    assert in_words == f"{count:,}" and count < 1_500_000
    assert f"train_mcvd.py examples/configs/{name}.yaml" in file.read_text()


# --------------------------------------------------------------------------------------------------------------------
# What they do


def train_on_digits(name: str, output_dir: Path, *flags: str) -> Path:
    """The folder of a run of an example on moving digits, of two updates."""
    short = ["--max_train_steps", "2", "--num_validation_videos", "1", "--validation_inference_steps", "2"]
    arguments = [str(CONFIGS / f"{name}.yaml"), "--output_dir", str(output_dir), *short, *flags]
    return train_mcvd.main(train_mcvd.parse_args(arguments))


@pytest.mark.parametrize("name", DIGITS)
def test_moving_digits_need_no_data(name, tmp_path):
    pipe = MCVDPipeline.from_pretrained(train_on_digits(name, tmp_path / "run"), variant="ema")
    pipe.set_progress_bar_config(disable=True)
    assert predict(pipe, torch.rand(1, 2, 1, 16, 16), num_frames=10).shape == (1, 10, 1, 16, 16)


@pytest.mark.slow
def test_all_methods_are_compared_on_the_same_clips(tmp_path):
    """The benchmark of all six, on runs of a few updates."""
    script = runpy.run_path(str(CONFIGS.parents[1] / "benchmarks" / "methods.py"))
    for name, method in DIGITS.items():
        train_on_digits(name, tmp_path / "runs" / method, "--train_batch_size", "2")
        AcceleratorState._reset_state(reset_partial_state=True)
        budget = {"updates": 2, "seconds of a core": 60.0}
        (tmp_path / "runs" / method / "budget.json").write_text(json.dumps(budget))
    output = tmp_path / "table"
    script["main"](["measure", str(tmp_path / "runs"), "--output", str(output), "--num_clips", "2", "--steps", "2"])
    head, _, *rows, empty, protocol = (output / "table.md").read_text().splitlines()
    names = ["MCVD", "RaMViD", "FDM", "VDM", "LGC-VD", "RVD", "black frames", "nearest given frame |"]
    assert head.split(" | ")[1:] == names and not empty
    cells = {row.split(" | ")[0].strip("| "): row.strip("| ").split(" | ")[1:] for row in rows}
    assert cells["training, minutes of a core"][0] == "1.0" and cells["updates"][:6] == ["2"] * 6
    errors = "{}, squared error x 1000"
    is_dash = {task: [cell == "-" for cell in cells[errors.format(task)]] for task in ("prediction", "infilling")}
    assert not any(is_dash["prediction"]) and is_dash["infilling"] == [True] + [False] * 4 + [True, False, False]
    assert all(
        cell == "-" for cell in (cells[errors.format("past prediction")][5], cells[errors.format("interpolation")][5])
    )
    calls = [int(x) for x in cells["calls of the network for it"][:6]]
    assert [calls[i] for i in (0, 1, 2, 4, 5)] == [4, 2, 2, 2, 12]  # two blocks, one window, six frames
    assert len(cells["prediction, CRPS x 1000"]) == 8 and protocol.startswith("2 held-out clips of 8 frames")
    for task in ("prediction", "past_prediction", "interpolation", "infilling", "generation"):
        assert (output / f"{task}.png").stat().st_size > 0
    with pytest.raises(SystemExit, match="--output must be a new folder"):
        script["main"](["measure", str(tmp_path / "runs"), "--output", str(output)])


@pytest.mark.slow
def test_pairs_of_models_are_trained_to_measure_drift(tmp_path):
    """The benchmark of drift, with two updates each."""
    script = runpy.run_path(str(CONFIGS.parents[1] / "benchmarks" / "drift.py"))
    folder, output = tmp_path / "drift", tmp_path / "table"
    measure = ["measure", str(folder), "--num_clips", "2", "--steps", "1"]
    with pytest.raises(SystemExit, match="holds no pair of models: train it first"):
        script["main"]([*measure, "--output", str(output)])
    train = ["train", str(folder), "--updates", "2", "--more", "2"]
    script["main"]([*train, "--pairs", "1"])
    first = (folder / "own_predictions_1" / "unet" / "diffusion_pytorch_model.safetensors").stat().st_mtime_ns
    script["main"]([*train, "--pairs", "2"])  # the second alone
    assert (folder / "own_predictions_1" / "unet" / "diffusion_pytorch_model.safetensors").stat().st_mtime_ns == first
    names = ["begin", "own_predictions_1", "true_frames_1", "own_predictions_2", "true_frames_2"]
    made = [yaml.safe_load((folder / name / "training_settings.yaml").read_text()) for name in names]
    assert [x["own_predictions"] for x in made] == [False, True, False, True, False]
    assert [x["seed"] for x in made[1:]] == [1, 1, 2, 2]
    assert {x["pretrained_model_name_or_path"] for x in made[1:]} == {str(folder / "begin")}
    script["main"]([*measure, "--output", str(output)])
    assert "after 2 updates by true frames and 2 more" in (output / "table.md").read_text()


def test_drift_of_pairs_of_models_is_measured_on_the_same_clips(tmp_path):
    """By models that differ: every number of the table is that of its model."""
    script = runpy.run_path(str(CONFIGS.parents[1] / "benchmarks" / "drift.py"))
    folder, output = tmp_path / "drift", tmp_path / "table"
    shape = {"sample_size": 16, "in_channels": 1, "block_out_channels": (8, 16), "layers_per_block": 1}
    shape |= {"attention_levels": (1,), "attention_head_dim": 8, "max_frames": 8}
    pipes = {}
    for seed, name in enumerate(["begin", "own_predictions_1", "true_frames_1", "own_predictions_2", "true_frames_2"]):
        torch.manual_seed(seed)
        pipes[name] = MCVDPipeline(
            shaken(LGCVDUNet2DModel(**shape)),
            DDIMScheduler(prediction_type="v_prediction", timestep_spacing="trailing", clip_sample=True),
            context_encoder=LGCVDContextEncoder(**shape),
        )
        pipes[name].set_progress_bar_config(disable=True)
        pipes[name].save_pretrained(folder / name, variant="ema")
        (folder / name / "training_settings.yaml").write_text("max_train_steps: 7\n")
    arguments = ["measure", str(folder), "--num_clips", "12", "--output", str(output)]
    script["main"]([*arguments, "--steps", "1", "2"])

    _, _, *rows, _, protocol, _, of_pairs = (output / "table.md").read_text().splitlines()
    assert "12 held-out clips" in protocol and "after 7 updates" in protocol and "2 pairs" in protocol
    clips = torch.from_numpy(script["torus_clips"]("validation", 12, 62, seed=2))[:, :, None] / 255
    cells = {tuple(row.strip("| ").split(" | ")[:2]): row.strip("| ").split(" | ")[2:] for row in rows}
    for steps in (1, 2):
        errors = {}
        for name, pipe in pipes.items():
            made = pipe(
                past_frames=clips[:, :2],
                num_frames=60,
                num_inference_steps=steps,
                generator=torch.Generator().manual_seed(0),
                output_type="pt",
            ).frames
            errors[name] = 1000 * (made - clips[:, 2:]).square().mean(dim=(2, 3, 4)).double().numpy()
        for pair in ("1", "2", "all"):
            own, true = (
                np.mean([errors[f"{model}_{i}"] for i in ((1, 2) if pair == "all" else (pair,))], axis=0)
                for model in ("own_predictions", "true_frames")
            )
            slopes = [np.polyfit(np.arange(60), x.T, 1)[0] for x in (own, true)]
            expected = [own[:, :6].mean(), true[:, :6].mean(), own[:, -6:].mean(), true[:, -6:].mean()]
            assert [float(x) for x in cells[str(steps), pair][:4]] == pytest.approx(expected, abs=0.051)
            for said, values in zip(cells[str(steps), pair][4:], (*slopes, slopes[1] - slopes[0])):
                interval = mean_interval(values, None)
                numbers = [float(x) for x in re.findall(r"-?[\d.]+", said)]
                assert numbers == pytest.approx([values.mean(), interval.low, interval.high], abs=0.002)
        differences = np.array([float(cells[str(steps), pair][6].split()[0]) for pair in ("1", "2")])
        interval = mean_interval(differences, None)
        said = [float(x) for x in re.findall(r"-?\d+\.\d+", of_pairs.split(":")[1].split(";")[steps - 1])]
        assert said == pytest.approx([differences.mean(), interval.low, interval.high], abs=0.02)
    assert len({tuple(row) for row in cells.values()}) == 6  # no two of them are alike
    pictures = ["drift_1_steps.png", "drift_2_steps.png", "drift_plot.png", "errors.npz"]
    assert all((output / name).stat().st_size > 0 for name in pictures)
    with pytest.raises(SystemExit, match="--output must be a new folder"):
        script["main"](arguments)
    with pytest.raises(SystemExit, match="--num_clips must be at least 2 for an interval, got 1"):
        script["main"](["measure", str(folder), "--num_clips", "1", "--output", str(tmp_path / "other")])
    assert not (tmp_path / "other").exists()
    # Each frame is the one before, moved over a torus by the same step.
    clips = script["torus_clips"]("train", 20, 6, seed=0).astype(int)
    for clip in clips:
        steps = [(down, right) for down in (-1, 0, 1) for right in (-1, 0, 1) if down or right]
        same = [all((np.roll(a, step, (0, 1)) == b).all() for a, b in zip(clip, clip[1:])) for step in steps]
        assert sum(same) == 1
    assert clips.max() > 200


@pytest.mark.slow
def test_six_tasks_are_compared_on_the_same_clips(tmp_path):
    script = runpy.run_path(str(CONFIGS.parent / "six_tasks.py"))
    runs = [train_on_digits(name, tmp_path / DIGITS[name]) for name in ("ramvid_digits", "vdm_digits")]
    short = ["--num_clips", "2", "--num_inference_steps", "2"]
    script["main"]([*map(str, runs), "--output", str(tmp_path / "tasks"), *short])
    head, _, *rows, empty, protocol = (tmp_path / "tasks" / "table.md").read_text().splitlines()
    assert head.split(" | ")[1:] == ["ramvid", "vdm", "repeating the last frame |"] and not empty
    for row in rows:
        task, *errors = row.strip("| ").split(" | ")
        assert (tmp_path / "tasks" / f"{task.replace(' ', '_')}.png").stat().st_size > 0
        assert all(0 < float(error) < 1000 for error in errors)
    assert len(rows) == 6 and protocol.startswith("2 held-out clips of 8 frames, 16 x 16 pixels")
    # The truth is what the training looks like: digits of 6 pixels, not of half the frame.
    clips = script["held_out_clips"](runs[0], num_frames=8, num_clips=2)
    settings = train_mcvd.parse_args([str(CONFIGS / "ramvid_digits.yaml"), "--output_dir", str(tmp_path / "unused")])
    held_out = train_mcvd.make_datasets(settings, 8)[1]
    assert settings.data.digit_size == 6 and clips.shape[1:] == held_out[0]["video"].shape
    widths = [(x > 0.1).any(dim=-2).sum(dim=-1).max() for x in (clips, (held_out[0]["video"] + 1) / 2)]
    assert max(widths) <= 6

    other = train_on_digits("fdm_digits", tmp_path / "other", "--digit_size", "8")
    with pytest.raises(SystemExit, match="other digits"):
        script["main"]([str(runs[0]), str(other), "--output", str(tmp_path / "none"), *short])
    with pytest.raises(SystemExit, match="--output .*tasks exists, and nothing is overwritten"):
        script["main"]([str(runs[0]), "--output", str(tmp_path / "tasks"), *short])


def test_six_tasks_refuse_runs_that_have_no_windows(tmp_path):
    script = runpy.run_path(str(CONFIGS.parent / "six_tasks.py"))
    flags = ["--block_out_channels", "8", "8", "--resolution", "16", "--output_dir", str(tmp_path / "mcvd")]
    train_mcvd.make_unet(train_mcvd.parse_args(flags)).save_pretrained(tmp_path / "mcvd" / "unet")
    (tmp_path / "mcvd" / "training_settings.yaml").write_text("method: mcvd\n")
    for name, message in (
        ("mcvd", "mcvd is a run of --method mcvd"),
        ("nothing", "nothing is no run of train_mcvd.py"),
    ):
        with pytest.raises(SystemExit, match=message):
            script["main"]([str(tmp_path / name), "--output", str(tmp_path / "none")])
    for names, message in (
        (["a/x", "b/x"], "Runs must have names of their own"),
        (["truth"], "other than truth, got truth"),
    ):
        for name in names:
            shutil.copytree(tmp_path / "mcvd", tmp_path / name)
            (tmp_path / name / "unet" / "config.json").write_text('{"max_frames": 8}')
        with pytest.raises(SystemExit, match=message):
            script["main"]([*(str(tmp_path / name) for name in names), "--output", str(tmp_path / "none")])
    assert not (tmp_path / "none").exists()


@pytest.mark.slow
def test_traffic_maps_keep_their_size_channels_and_scale(tmp_path):
    (tmp_path / "data").mkdir()
    days = [(255 * drifting(26, 495, 436, 8, seed)).astype(np.uint8) for seed in range(2)]
    for number, day in enumerate(days, start=1):
        with h5py.File(tmp_path / "data" / f"2020-03-0{number}_city.h5", "w") as file:
            file.create_dataset("array", data=day, chunks=(1, 495, 436, 8), compression="lzf")
    # One step of sampling, which is measured several times over: 495 x 436 pixels take their time.
    changes = {"train_batch_size": 1, "validation_names": ["2020-03-02*"], "validation_inference_steps": 1}
    pipe, dataset = train("traffic", tmp_path / "data", tmp_path, **changes)
    assert dataset[0]["video"].dtype == torch.uint8 and dataset[0]["video"].shape == (24, 8, 495, 436)
    past = days[1][:12].transpose(0, 3, 1, 2)[None]  # (1, 12, 8, 495, 436), bytes as they are stored
    video = predict(pipe, past, return_given_frames=True)
    assert video.shape == (1, 24, 8, 495, 436)
    assert torch.equal(video[:, :12], torch.from_numpy(past).float())  # given in 0..255, and given back
    made = video[:, 12:]
    assert made.min() >= 0 and made.max() <= 255 and made.max() > 2  # not [0, 1]


def test_satellite_channels_keep_their_units(tmp_path):
    (tmp_path / "data").mkdir()
    low = np.array([0, 0, 0, 0.1, 190, 200, 210, 220], np.float32)[:, None, None]  # reflectances, then kelvin
    high = np.array([1, 0.9, 0.8, 0.7, 330, 320, 310, 300], np.float32)[:, None, None]
    for month, (length, height, width) in enumerate([(70, 40, 56), (62, 48, 48), (45, 56, 40)], start=7):
        frames = low + (high - low) * drifting(length, height, width, 8, month).transpose(0, 3, 1, 2)
        np.save(tmp_path / "data" / f"2019-{month:02}.npy", frames)  # (T, 8, H, W)
    changes = {"resolution": [32, 32], "split_frames": 20, "validation_fraction": 0.3}
    pipe, dataset = train("himawari", tmp_path / "data", tmp_path, **changes)
    assert pipe.normalizer.kind == "min_max" and len(pipe.normalizer.low) == 8
    bounds = [torch.tensor(getattr(pipe.normalizer, side))[:, None, None] for side in ("low", "high")]
    # Measured on what is really there, and so never beyond it.
    assert (bounds[0] >= torch.from_numpy(low)).all() and (bounds[1] <= torch.from_numpy(high)).all()
    assert (bounds[1] - bounds[0] > 0.9 * torch.from_numpy(high - low)).all()
    clip = dataset[0]["video"]  # in units; encoded on the device
    assert clip.shape == (12, 8, 32, 32) and dataset.encode(clip).abs().max() <= 1
    made = predict(pipe, clip[None, :6])
    assert made.shape == (1, 6, 8, 32, 32)
    assert (made >= bounds[0] - 1e-3).all() and (made <= bounds[1] + 1e-3).all()
    assert made[:, :, 4:].min() > 180 and made[:, :, :4].max() <= 1  # kelvin in, kelvin out; reflectances beside them


def test_short_sequences_at_irregular_times_are_padded(tmp_path):
    (tmp_path / "data").mkdir()
    lengths, times = {}, {}
    random = np.random.RandomState(0)
    for shard in range(2):
        with tarfile.open(tmp_path / "data" / f"train-{shard:04}.tar", "w") as tar:
            for number, length in enumerate((4, 5, 9, 7, 4, 12)):
                place = f"airport_{6 * shard + number}"
                days = np.cumsum(random.randint(1, 400, length))
                lengths[f"train-{shard:04}/{place}"], times[f"train-{shard:04}/{place}"] = length, days
                members = {"metadata.json": json.dumps([[float(day), 0.5, 30.0] for day in days]).encode()}
                size = random.randint(40, 60, 2)  # one for a place, another for the next
                for frame, image in enumerate((255 * drifting(length, *size, 3, number)).astype(np.uint8)):
                    encoded = io.BytesIO()
                    Image.fromarray(image).save(encoded, "JPEG")
                    members[f"{frame:04}.jpg"] = encoded.getvalue()
                for kind, content in members.items():
                    member = tarfile.TarInfo(f"{place}.{kind}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    pipe, dataset = train("fmow", tmp_path / "data", tmp_path, resolution=[32, 32], validation_fraction=0.3)
    assert not dataset.skipped
    for i in range(len(dataset)):
        item, name = dataset[i], dataset.reader.name(i)
        length, days = lengths[name], times[name]
        assert item["video"].shape == (7, 3, 32, 32) and item["metadata"].shape == (7, 3)
        assert item["is_padding"].tolist() == [frame >= length for frame in range(7)]
        start = int(np.flatnonzero(days == item["metadata"][0, 0].item())[0])
        expected = days[np.minimum(np.arange(start, start + 7), length - 1)]
        assert item["metadata"][:, 0].tolist() == expected.tolist()
    images = dataset.normalizer.to_display(dataset.normalizer.decode(dataset.encode(dataset[0]["video"])))[None]
    past, future = images[:, :3], images[:, -2:]
    # One network for four tasks; and of the past, less than it reads will do.
    for made in (
        predict(pipe, past),
        predict(pipe, past, future_frames=future),
        predict(pipe, past[:, -1:], num_frames=2),
    ):
        assert made.shape == (1, 2, 3, 32, 32) and 0 <= made.min() and made.max() <= 1
    assert pipe(future_frames=future, num_inference_steps=2, output_type="pt").frames.shape == (1, 2, 3, 32, 32)
    assert pipe(num_inference_steps=2, output_type="pt").frames.shape == (1, 2, 3, 32, 32)


def test_actions_of_a_game_go_with_its_frames(tmp_path):
    presses = {}
    for number in range(8):
        frames = (255 * drifting(14, 96, 96, 3, number)).astype(np.uint8)
        frames[:, :8] = 15 * np.arange(14, dtype=np.uint8)[:, None, None, None]  # tells the frame
        folder = tmp_path / "data" / f"level_{number % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        write_gif(folder / f"drive_{number}.gif", frames)
        pressed = np.random.RandomState(number).randint(0, 5, 14)
        np.save(folder / f"drive_{number}.action.npy", np.eye(5, dtype=np.int64)[pressed])
        presses[f"level_{number % 2}/drive_{number}.gif"] = pressed
    pipe, dataset = train("driving_game", tmp_path / "data", tmp_path, validation_fraction=0.3)
    for i in range(len(dataset)):
        item = dataset[i]
        assert item["video"].shape == (8, 3, 96, 96) and item["video"].dtype == torch.uint8
        assert item["action"].shape == (8, 5) and (item["action"].sum(dim=1) == 1).all()
        numbers = (item["video"][:, 0, 2, 48].float() / 15).round().long()
        assert numbers.tolist() == list(range(numbers[0], numbers[0] + 8))
        assert item["action"].argmax(dim=1).tolist() == presses[dataset.reader.name(i)][numbers].tolist()
    past = np.random.RandomState(0).randint(0, 256, (2, 4, 3, 96, 96)).astype(np.uint8)
    made = predict(pipe, past, num_frames=10, guidance_scale=1.5)  # longer than a block
    assert made.shape == (2, 10, 3, 96, 96) and 0 <= made.min() and made.max() <= 1


def write_lerobot(folder: Path, num_episodes: int, num_frames: int, size: tuple[int, int]) -> None:
    """A LeRobotDataset of version 3.0: one mp4 and one file of rows for all episodes."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    camera = "observation.images.top"
    path = "chunk-{chunk_index:03d}/file-{file_index:03d}"
    total = num_episodes * num_frames
    info = {
        "codebase_version": "v3.0",
        "fps": 10,
        "chunks_size": 1000,
        "data_path": f"data/{path}.parquet",
        "video_path": f"videos/{{video_key}}/{path}.mp4",
        "features": {
            camera: {"dtype": "video", "shape": [*size, 3], "names": ["height", "width", "channels"]},
            "observation.state": {"dtype": "float32", "shape": [6]},
            "action": {"dtype": "float32", "shape": [6]},
        },
    }
    episodes = np.arange(num_episodes)
    place = {
        f"{kind}/{part}_index": 0 * episodes for kind in ("data", f"videos/{camera}") for part in ("chunk", "file")
    }
    meta = {
        "episode_index": episodes,
        "length": 0 * episodes + num_frames,
        **place,
        f"videos/{camera}/from_timestamp": episodes * num_frames / 10,
        f"videos/{camera}/to_timestamp": (episodes + 1) * num_frames / 10,
    }
    numbers = np.arange(total)
    vector = pa.array([[float(number), 0.0, 0.0, 0.0, 0.0, 1.0] for number in numbers])
    rows = {
        "episode_index": numbers // num_frames,
        "frame_index": numbers % num_frames,
        "timestamp": (numbers % num_frames / 10).astype(np.float32),
        "observation.state": vector,
        "action": vector,
    }
    (folder / "meta").mkdir(parents=True)
    (folder / "meta" / "info.json").write_text(json.dumps(info))
    for file, columns in (("meta/episodes/chunk-000/file-000", meta), ("data/chunk-000/file-000", rows)):
        (folder / file).parent.mkdir(parents=True)
        pq.write_table(pa.table(columns), folder / f"{file}.parquet")
    (folder / f"videos/{camera}/chunk-000").mkdir(parents=True)
    frames = (255 * drifting(total, *size, 3)).astype(np.uint8)
    write_video(folder / f"videos/{camera}/chunk-000/file-000.mp4", frames, options={"x264-params": "keyint=10"})


def test_robot_predicts_many_futures_from_two_frames(tmp_path):
    pytest.importorskip("pyarrow")
    pytest.importorskip("av")
    write_lerobot(tmp_path / "data", num_episodes=10, num_frames=20, size=(96, 128))
    pipe, dataset = train("robot_planning", tmp_path / "data", tmp_path, validation_fraction=0.3)
    item = dataset[0]
    assert item["video"].shape == (6, 3, 64, 64) and item["action"].shape == (6, 6)
    rows = item["action"][:, 0]
    assert rows.diff().tolist() == [3] * 5  # every third frame
    assert rows[0] // 20 == rows[-1] // 20  # of one episode
    past = torch.rand(1, 2, 3, 64, 64)
    made = predict(pipe, past, ensemble_size=5)
    assert made.shape == (5, 4, 3, 64, 64)
    assert (made[0] - made[1]).abs().max() > 0
    with pytest.raises(ValueError):  # it was never trained without a past
        pipe(num_inference_steps=2)


def write_weather(path: Path, num_steps: int) -> dict[str, np.ndarray]:
    xarray = pytest.importorskip("xarray")
    fields = drifting(num_steps, 21, 34, 2)
    is_sea = np.zeros((21, 34), bool)
    is_sea[:8, :10] = True
    t2m = np.where(is_sea, np.nan, 250 + 60 * fields[..., 0])  # kelvin
    tp = np.where(is_sea, np.nan, np.maximum(fields[..., 1] - 0.6, 0) / 100)  # metres
    tp[5, 15, 15] = np.nan  # and a gap that is not the sea
    dims = ("time", "latitude", "longitude")
    coordinates = {
        "time": 3600 * np.arange(num_steps),
        "latitude": np.linspace(55, 50, 21),
        "longitude": np.linspace(5, 13, 34),
    }
    variables = {name: (dims, values.astype(np.float32)) for name, values in (("t2m", t2m), ("tp", tp))}
    variables["orography"] = (dims[1:], np.zeros((21, 34), np.float32))  # further ones do no harm
    store = xarray.Dataset(variables, coordinates)
    if path.suffix == ".zarr":
        store.to_zarr(path, encoding={name: {"chunks": (8, 21, 34)} for name in ("t2m", "tp")})
    else:
        store.to_netcdf(path, engine="h5netcdf")
    return {"t2m": t2m, "tp": tp, "is_sea": is_sea}


@pytest.mark.parametrize("suffix, package", [(".zarr", "zarr"), (".nc", "h5netcdf")])
def test_weather_with_gaps_goes_in_and_comes_out_in_its_units(suffix, package, tmp_path):
    pytest.importorskip(package)
    fields = write_weather(tmp_path / f"weather{suffix}", num_steps=180)
    changes = {"split_frames": 18, "validation_fraction": 0.3}
    pipe, dataset = train("weather", tmp_path / f"weather{suffix}", tmp_path, **changes)
    assert pipe.normalizer.kind == "mean_std" and pipe.normalizer.has_mask_channel
    kelvin, metres = pipe.normalizer.center
    assert 250 < kelvin < 310 and 0 < metres < 0.005
    clip = dataset[0]["video"]
    assert clip.shape == (12, 2, 21, 34) and clip[:, :, :8, :10].isnan().all()
    seen = dataset.encode(clip)
    assert seen.shape == (12, 3, 21, 34) and seen.isfinite().all()
    assert (seen[:, 2, :8, :10] == -1).all() and (seen[:, 2, 10:, 10:] == 1).float().mean() > 0.99

    past = torch.from_numpy(np.stack([fields["t2m"][:6], fields["tp"][:6]], axis=1).astype(np.float32))[None]
    video = predict(pipe, past, return_given_frames=True)
    assert video.shape == (1, 12, 2, 21, 34)
    assert torch.equal(video[:, :6].nan_to_num(-1), past.nan_to_num(-1))
    made = video[:, 6:]
    # Missing in one variable, missing in both: the network has one mask for the two.
    assert torch.equal(made[:, :, 0].isnan(), made[:, :, 1].isnan())
    t2m, tp = (made[:, :, channel][~made[:, :, channel].isnan()] for channel in (0, 1))
    assert t2m.numel() and 249 < t2m.min() and t2m.max() < 311
    assert tp.min() >= 0 and tp.max() < 0.01
