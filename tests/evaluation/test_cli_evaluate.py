"""The commands `evaluate`, `compare` and `protocols`: what they print, refuse, and say is the way out."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

from mcvd_diffusers.cli import main
from mcvd_diffusers.evaluation import Results


EXAMPLES = Path(__file__).parents[2] / "examples" / "protocols"


@pytest.fixture
def protocol_file(protocol, tmp_path):
    fields = {name: value for name, value in protocol.to_dict().items() if name != "changes"}
    path = tmp_path / "squares.yaml"
    path.write_text(yaml.safe_dump(fields))
    return path


@pytest.fixture
def evaluate(model_folder, videos, protocol_file, tmp_path, capsys):
    def call(
        *more,
        model=model_folder,
        data=("--data", videos, "--axes", "NTCHW"),
        protocol=protocol_file,
        output=tmp_path / "out",
    ):
        words = ["evaluate", model, *data, "--protocol", protocol, "--output", output]
        status = main([str(word) for word in [*words, "--num_inference_steps", 2, "--batch_size", 12, *more]])
        out, err = capsys.readouterr()
        return status, out, err

    return call


def test_evaluate_then_check_then_compare(evaluate, tmp_path, capsys):
    status, out, err = evaluate()
    assert status == 0, err
    assert out.startswith("squares v1: 36 videos of 12 clips") and "DDIMScheduler, 2 steps a block; seed 0" in out
    status = main(["evaluate", "--from", str(tmp_path / "out")])
    again = capsys.readouterr().out
    assert status == 0 and "results.json agrees" in again
    table = [line for line in out.splitlines() if line.startswith(("psnr", "ssim", "crps", "mse"))]
    assert len(table) == 3 * 4 + 1 and all(line in again for line in table)
    assert "against repeat_last_frame, clip by clip: " in out and "worse in" in out

    assert (
        main(["evaluate", "--from", str(tmp_path / "out" / "results.parquet"), "--output", str(tmp_path / "new")]) == 0
    )
    assert {path.name for path in (tmp_path / "new").iterdir()} >= {"results.json", "results.md", "rank_histogram.png"}
    assert main(["evaluate", "--from", str(tmp_path / "out"), "--output", str(tmp_path / "new")]) == 1
    assert "exists and is not empty" in capsys.readouterr().err

    assert evaluate("--seed", "3", output=tmp_path / "other")[0] == 0
    assert main(["compare", str(tmp_path / "out"), str(tmp_path / "other")]) == 0
    assert "its 95 % interval, clip by clip" in capsys.readouterr().out
    assert evaluate("--num_clips", "5", output=tmp_path / "five")[0] == 0
    assert main(["compare", str(tmp_path / "out"), str(tmp_path / "five")]) == 1
    assert "different protocols, squares v1 and squares v1 (num_clips=5)" in capsys.readouterr().err


def test_a_number_that_was_changed_in_the_json_is_noticed(evaluate, tmp_path, capsys):
    assert evaluate()[0] == 0
    path = tmp_path / "out" / "results.json"
    stated = json.loads(path.read_text())
    stated["numbers"][0]["value"] += 0.01
    path.write_text(json.dumps(stated))
    assert main(["evaluate", "--from", str(tmp_path / "out")]) == 1
    message = capsys.readouterr().err
    assert "does not say what the results are: numbers[0].value is" in message
    stated["numbers"][0]["value"] -= 0.01
    del stated["numbers"][1]
    path.write_text(json.dumps(stated))
    assert main(["evaluate", "--from", str(tmp_path / "out")]) == 1
    path.write_text("{")
    assert main(["evaluate", "--from", str(tmp_path / "out")]) == 1
    assert "it is no JSON" in capsys.readouterr().err
    path.unlink()
    assert main(["evaluate", "--from", str(tmp_path / "out")]) == 0


def test_networks_of_transformers_and_torchscript(evaluate, model_folder, videos, protocol, tmp_path):
    import hashlib

    import torch
    from transformers import VideoMAEConfig, VideoMAEModel, VJEPA2Config, VJEPA2Model

    small = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "patch_size": 8}
    torch.manual_seed(0)
    VideoMAEModel(VideoMAEConfig(image_size=16, num_frames=4, intermediate_size=16, **small)).save_pretrained(
        tmp_path / "videomae"
    )
    small |= {"pred_hidden_size": 12, "pred_num_attention_heads": 2, "pred_num_hidden_layers": 1}
    VJEPA2Model(
        VJEPA2Config(
            crop_size=16, frames_per_clip=4, hidden_size=24, **{k: v for k, v in small.items() if k != "hidden_size"}
        )
    ).save_pretrained(tmp_path / "vjepa2")

    class Network(torch.nn.Module):
        def forward(self, x: torch.Tensor, rescale: bool = True, resize: bool = True, return_features: bool = False):
            return x.mean(dim=[3, 4])[:, 0, :4]

    torch.jit.script(Network()).save(tmp_path / "network.pt")
    sha256 = hashlib.sha256((tmp_path / "network.pt").read_bytes()).hexdigest()
    fields = {name: value for name, value in protocol.to_dict().items() if name != "changes"}
    torchscript = f"torchscript:{tmp_path / 'network.pt'}#sha256={sha256}"
    fields |= {"feature_networks": ["videomae", "vjepa2", torchscript], "num_frames": 8, "ensemble_metrics": []}
    fields |= {"given_frames_in_distances": True, "metrics": ["mse"], "samples_per_clip": 1, "clip_choice": "first"}
    own = tmp_path / "networks.yaml"
    own.write_text(yaml.safe_dump(fields))
    places = ("--videomae", tmp_path / "videomae", "--vjepa2", tmp_path / "vjepa2")
    status, _, err = evaluate(*places, protocol=own)
    assert status == 0, err
    numbers = [n for n in Results.read(tmp_path / "out").numbers() if n.metric not in ("mse",)]
    # V-JEPA 2 is compared as JEDi compares V-JEPA, but its name says which it is; nothing here is I3D, so nothing is FVD.
    assert [(n.metric, n.definition.split("network: ")[1].split()[0]) for n in numbers] == [
        ("frechet over videomae videomae", "videomae"),
        ("frechet over videomae videomae", "videomae"),
        ("mmd over vjepa2 vjepa2", "vjepa2"),
        ("mmd over vjepa2 vjepa2", "vjepa2"),
        ("frechet over torchscript", "torchscript,"),
        ("frechet over torchscript", "torchscript,"),
    ]
    assert all(n.value > 0 and n.low <= n.value <= n.high for n in numbers)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--protocol", "mcvd-kth-10-30"], "256 clips|fewer than the 40 frames"),
        (["--protocol", "mcvd-bair-1-15"], r"frames of 1 channel\(s\), and mcvd-bair-1-15 v1 judges frames of 3"),
        (["--protocol", "mcvd-kth"], "There is no protocol 'mcvd-kth'"),
        (["--leave_out", "fid"], "--leave_out fid: squares v1 does not measure that, but psnr_of_video_mse"),
        (["--scheduler", "DDIM"], "--scheduler must be one of Diffusers' schedulers"),
        (["--names", "x*"], "--names: `names` names videos that are not there: x"),
        (["--names", "squares*", "--validation_fraction", "0.5"], "both say which videos: pass one of them"),
        (["--i3d", "file.pt"], "--i3d means nothing for squares v1, which does not ask for that network"),
        (["--digits", "sklearn"], "squares v1 judges videos, not digits that are drawn"),
        (["--variant", "ema"], "cannot be loaded as a pipeline with --variant ema"),
        (["--num_clips", "500"], "judges 500 clips, and the data have 48"),
        (["--from", "out"], "MODEL means nothing with --from"),
    ],
)
def test_bad_input_is_told_before_anything_is_made(evaluate, tmp_path, more, message):
    status, out, err = evaluate(*more)
    assert status == 1 and not (tmp_path / "out").exists()
    assert re.search(message, err), err
    assert "Traceback" not in err and len(err.splitlines()) == 1


def test_networks_that_are_not_here_name_the_way_out(evaluate, protocol, tmp_path, monkeypatch):
    import socket

    def no_network(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    fields = {name: value for name, value in protocol.to_dict().items() if name != "changes"}
    for name in ("i3d", "videomae", "vjepa2"):
        own = tmp_path / f"{name}.yaml"
        own.write_text(yaml.safe_dump(fields | {"feature_networks": [name], "given_frames_in_distances": True}))
        status, _, err = evaluate(protocol=own)
        assert status == 1 and f"(--{name} says where it is, --leave_out {name} does without)" in err
    own.write_text(yaml.safe_dump(fields | {"metrics": ["lpips"]}))
    status, _, err = evaluate(protocol=own)
    assert status == 1 and "mcvd-diffusers[lpips]" in err and "--leave_out lpips does without" in err
    assert not (tmp_path / "out").exists()


def test_leaving_out_and_taking_less_is_in_the_label(evaluate, tmp_path):
    status, out, _ = evaluate("--leave_out", "ssim", "crps", "--samples_per_clip", "2", "--num_clips", "4")
    assert status == 0
    results = Results.read(tmp_path / "out")
    assert results.protocol.label == "squares v1 (num_clips=4, samples_per_clip=2, without ssim, crps)"
    assert not {"ssim", "crps"} & {number.metric for number in results.numbers()}
    assert "these are no numbers of squares v1 itself" in out


def test_missing_values_end_it(evaluate, tmp_path, videos):
    broken = np.load(videos / "squares.npy").astype(np.float32) / 255
    broken[:, 6:] = np.nan
    np.save(tmp_path / "broken.npy", broken)
    status, _, err = evaluate(data=("--data", tmp_path / "broken.npy", "--axes", "NTCHW"))
    assert status == 1 and "NaN" in err


def test_protocols_are_listed_and_printed(capsys):
    assert main(["protocols"]) == 0
    assert "mcvd-kth-10-30" in capsys.readouterr().out
    assert main(["protocols", "mcvd-kth-10-30"]) == 0
    text = capsys.readouterr().out
    assert yaml.safe_load(text)["num_past_frames"] == 10 and "SHA-256 of what is measured" in text
    assert "resize: stretch" in text  # also what the file leaves unsaid
    assert main(["protocols", "nope"]) == 1
    assert main(["protocols", "--fields"]) == 0
    assert "each_metric" in capsys.readouterr().out


def test_results_that_are_none_are_refused(tmp_path, capsys):
    (tmp_path / "results.parquet").write_bytes(b"hello")
    for words in (
        ["evaluate", "--from", tmp_path],
        ["compare", tmp_path, tmp_path],
        ["evaluate", "--from", tmp_path / "no"],
    ):
        assert main([str(word) for word in words]) == 1
        assert re.search("cannot be read as results|does not exist", capsys.readouterr().err)


@pytest.fixture
def run_on(model_folder, videos, tmp_path):
    """The model's folder as a run on the videos leaves it."""

    def make(**settings):
        folder = tmp_path / "run"
        shutil.copytree(model_folder, folder, dirs_exist_ok=True)
        settings = {"train_data_dir": str(videos), "axes": "NTCHW", "validation_fraction": 0.4} | settings
        (folder / "training_settings.yaml").write_text(yaml.safe_dump(settings))
        return folder

    return make


def held_out_of(folder, *flags):
    """Which videos train_mcvd.py trains on, and which it holds out."""
    import train_mcvd

    words = ["--num_past_frames", "2", "--num_frames", "3", "--num_future_frames", "0", "--output_dir", "unused"]
    sets = train_mcvd.make_datasets(train_mcvd.parse_args(["--train_data_dir", str(folder), *flags, *words]), 5)
    return [{each.reader.name(video) for video in range(len(each.reader))} for each in sets]


def test_videos_of_the_training_are_told_with_the_flag_that_leaves_them_out(evaluate, run_on, videos, tmp_path):
    trained, held_out = held_out_of(videos, "--axes", "NTCHW", "--validation_fraction", "0.4")
    assert len(trained) > 2 and len(held_out) > 2
    model, few = run_on(), ("--num_clips", "2", "--samples_per_clip", "2")
    status, out, err = evaluate(*few, model=model)
    assert status == 0, err
    assert f"note: the model was trained on {len(trained)} of these 12 videos: --validation_fraction 0.4 takes" in out
    assert out.index("note: the model was trained") < out.index("metric ")
    fact = f"{len(trained)} of its 12 videos seen in training"
    assert fact in Results.read(tmp_path / "out").settings["data"]["description"]
    assert fact in (tmp_path / "out" / "results.md").read_text()

    status, out, err = evaluate(*few, "--validation_fraction", "0.4", model=model, output=tmp_path / "held out")
    assert status == 0 and "trained on" not in out and "seen in training" not in out, err
    assert set(Results.read(tmp_path / "held out").column("video", "model")) <= held_out
    # More than the run held out are not all held out.
    assert (
        "note: the model was trained on"
        in evaluate(*few, "--validation_fraction", "0.9", model=model, output=tmp_path / "more")[1]
    )


def test_the_flags_of_the_held_out_videos_are_those_of_the_run(evaluate, run_on, tmp_path):
    few = ("--num_clips", "2", "--samples_per_clip", "2")
    names = [f"squares/{number}" for number in (1, 4)]
    out = evaluate(*few, model=run_on(validation_names=names))[1]
    assert "trained on 10 of these 12 videos: --names squares/1 squares/4 takes" in out
    (tmp_path / "test.txt").write_text("\n".join(f"{name}[[]*" for name in names))  # of pieces
    listed = run_on(test_list=str(tmp_path / "test.txt"), split_frames=10)
    out = evaluate(*few, model=listed, output=tmp_path / "two")[1]
    assert re.search(r"on \d+ of these 12 videos: --names_list \S+/test.txt --split_frames 10 takes", out), out
    (tmp_path / "test.txt").unlink()
    out = evaluate(*few, model=listed, output=tmp_path / "three")[1]
    assert "which of its videos it has seen cannot be told: The list of names" in out


@pytest.mark.parametrize("settings", ["other data", "- no\n- settings", "{", "train_data_dir: 3"])
def test_other_data_and_files_that_say_nothing_are_passed_over(evaluate, run_on, tmp_path, settings):
    model = run_on(train_data_dir=str(tmp_path))
    if settings != "other data":
        (model / "training_settings.yaml").write_text(settings)
    status, out, err = evaluate("--num_clips", "2", "--samples_per_clip", "2", model=model)
    assert status == 0 and "trained on" not in out, err


@pytest.mark.slow
def test_the_example_for_stored_videos_runs_on_a_folder_of_videos(evaluate, tmp_path):
    from PIL import Image

    rng = np.random.default_rng(0)
    (tmp_path / "videos").mkdir()
    for number in range(16):
        frames = [Image.fromarray(x) for x in rng.integers(0, 255, (15, 20, 24), dtype=np.uint8)]
        frames[0].save(tmp_path / "videos" / f"{number}.gif", save_all=True, append_images=frames[1:], duration=100)
    status, out, err = evaluate(data=("--data", tmp_path / "videos"), protocol=EXAMPLES / "my-videos.yaml")
    assert status == 0, err
    assert out.startswith("my-videos v1: 48 videos of 16 clips")


def test_data_for_a_protocol_of_digits_are_refused_with_the_example_for_videos(evaluate):
    status, _, err = evaluate(protocol=EXAMPLES / "digits-4-8.yaml")
    assert status == 1 and "--data means nothing for digits-4-8 v1" in err
    assert (EXAMPLES / re.search(r"examples/protocols/(\S+\.yaml)", err)[1]).is_file()
