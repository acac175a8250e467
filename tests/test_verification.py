"""`mcvd-diffusers verify`: no number of a card can be changed without notice, and nothing of a stranger's is run."""

import ast
import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import re
import shutil

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from context_pipelines import context_pipeline, move
from contract_rows import PIPELINES
from mcvd_diffusers import MCVDPipeline
from mcvd_diffusers.cli import main
from mcvd_diffusers.evaluation import Results
from mcvd_diffusers.evaluation.report import save_report
from mcvd_diffusers.evaluation.results import write_results
from mcvd_diffusers.model_card import CardError, CardFacts, read_facts, render_card, usage_example, write_card
from mcvd_diffusers.model_card.facts import check_facts
from mcvd_diffusers.verification import verify_model


PROTOCOL = {
    "version": 1,
    "title": "2 given, 2 predicted",
    "source": "here",
    "task": "prediction",
    "num_past_frames": 2,
    "num_frames": 2,
    "num_channels": 1,
    "frame_size": [8, 8],
    "num_clips": 3,
    "clip_choice": "random",
    "samples_per_clip": 1,
    "metrics": ["mse"],
}
DIGITS = {"source": "sklearn", "num_digits": 1, "digit_size": 4, "max_speed": 1, "num_images": 0}
EMA, RAW = "unet/diffusion_pytorch_model.ema.safetensors", "unet/diffusion_pytorch_model.safetensors"


def save_videos(path, seed):
    videos = np.random.default_rng(seed).integers(0, 255, (4, 6, 8, 8), dtype=np.uint8)
    np.save(path, videos)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """
    A folder with `model`: raw weights and their average, pictures, an evaluation of each; `stored.npy`, `others.npy`: videos.
    """
    place = tmp_path_factory.mktemp("verification")
    folder, pipe = place / "model", PIPELINES[0].make()
    pipe.save_pretrained(folder)
    with torch.no_grad():
        for parameter in pipe.unet.parameters():
            parameter.mul_(0.9)
    pipe.unet.save_pretrained(folder / "unet", variant="ema")
    (folder / "samples").mkdir()
    frames = [Image.fromarray(np.full((8, 8), shade, np.uint8)) for shade in (0, 255)]
    frames[0].save(folder / "samples" / "prediction.gif", save_all=True, append_images=frames[1:])
    facts = CardFacts(
        name="tiny",
        tasks=["prediction", "generation"],
        variant="ema",
        num_inference_steps=2,
        dataset="squares",
        data={"clips": 12},
        training={"hours": "0.25", "updates": 1500, "hardware": "1 x cpu"},
        hyperparameters={"learning_rate": 0.0003, "value_low": [183.14999389648438], "seed": 7},
        command="accelerate launch train_mcvd.py \\\n  --seed 7",
        samples={"samples/prediction.gif": "two frames"},
    )
    write_card(folder, facts)
    save_videos(place / "stored.npy", 0)
    save_videos(place / "others.npy", 1)
    for name, more in (("digits", {"moving_digits": DIGITS}), ("stored", {})):
        (place / f"{name}.yaml").write_text(yaml.safe_dump({"name": name, **PROTOCOL, **more}))
    options = {
        "digits": ["--variant", "ema"],
        "stored": ["--variant", "raw", "--data", place / "stored.npy", "--axes", "NTHW"],
    }
    for name, more in options.items():
        words = ["evaluate", folder, "--protocol", place / f"{name}.yaml", "--output", place / name, *more]
        assert main([str(word) for word in [*words, "--num_inference_steps", 2]]) == 0
    assert main(["card", str(folder), "--evaluation", str(place / "digits"), str(place / "stored")]) == 0
    # Shorter names, which do not depend on the sampler.
    for name in ("digits-v1-ema", "stored-v1"):
        (path,) = (folder / "evaluation").glob(f"{name}-*")
        path.rename(path.with_name(name))
    write_card(folder, read_facts(folder))
    return place


@pytest.fixture
def model(made, tmp_path):
    """A copy to change."""
    shutil.copytree(made / "model", tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def command(capsys):
    def call(*words):
        status = main([str(word) for word in words])
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return status, out, err

    return call


def tensors(network):
    return {name: tensor.tolist() for name, tensor in network.state_dict().items()}


def wrong(folder):
    """What is not as the card says."""
    return [check for check in verify_model(folder, run_example=False) if not check.is_right]


# --------------------------------------------------------------------------------------------------------------------
# What is right, and what was changed


@pytest.mark.slow
def test_a_model_that_is_what_its_card_says_passes_with_its_example(model, command):
    status, out, err = command("verify", model)
    assert (status, err) == (0, "") and "is what its card says" in out
    names = (
        "README.md",
        "files",
        "weights",
        "parameters",
        "evaluation/digits-v1-ema",
        "evaluation/stored-v1",
        "example",
    )
    assert [line.split()[1].rstrip(":") for line in out.splitlines()[:-1]] == list(names)
    assert all(line.startswith("ok ") for line in out.splitlines()[:-1])


def test_a_model_that_is_what_its_card_says_passes(model, command):
    assert wrong(model) == []
    status, out, err = command("verify", model, "--skip_example")
    assert (status, err) == (0, "") and "of the variant 'ema'" in out and "of the weights without variant" in out


@pytest.mark.slow
def test_an_example_that_does_not_run_is_noticed(model):
    facts = read_facts(model)
    facts.timesteps = [5000, 4000, -100]  # which no scheduler takes
    write_card(model, facts)
    *others, last = verify_model(model)
    assert all(check.is_right for check in others)
    assert last.name == "example" and not last.is_right and "it does not run: ValueError" in last.found


def edits(path, pattern=r"\d+"):
    """Every number of a text file, with one digit changed."""
    text = path.read_text()
    for match in re.finditer(pattern, text):
        place = match.end() - 1
        yield match, text[:place] + str((int(text[place]) + 1) % 10) + text[place + 1 :]


# From how many numbers one is changed: all of them take minutes.
SHARES = [pytest.param(47, id="some"), pytest.param(2, id="more", marks=pytest.mark.slow)]
TEXTS = ("README.md", "model_card.json", "unet/config.json", "scheduler/scheduler_config.json", "model_index.json") + (
    "evaluation/digits-v1-ema/results.json",
    "evaluation/digits-v1-ema/results.md",
)


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("name", TEXTS)
def test_no_digit_can_be_changed_without_notice(name, share, model):
    path, text = model / name, (model / name).read_text()
    count = 0
    for number, (match, edited) in enumerate(edits(path)):
        if number % share:
            continue
        path.write_text(edited)
        assert wrong(model), f"{name}: {match[0]} at {match.start()}: {text[max(0, match.start() - 40) : match.end()]}"
        count += 1
    assert count > 0
    path.write_text(text)
    assert wrong(model) == []


def test_every_number_of_the_card_is_noticed_by_the_comparison_of_its_lines(model):
    """All of them, and nothing but the comparison, which is made in memory here."""
    right = (model / "README.md").read_text().splitlines()
    assert right == render_card(model, read_facts(model)).splitlines()
    for match, edited in edits(model / "README.md"):
        assert edited.splitlines() != right, match


def test_every_number_of_the_facts_is_noticed_by_their_hash(model):
    path = model / "model_card.json"
    count = 0
    for match, edited in list(edits(path)):
        path.write_text(edited)
        with pytest.raises(CardError):
            read_facts(model)
        count += 1
    assert count > 100


def test_a_fact_that_stands_twice_is_refused(model):
    path = model / "model_card.json"
    text = path.read_text()
    path.write_text(text.replace('"num_parameters"', '"num_parameters": 999,\n "num_parameters"', 1))
    assert json.loads(path.read_text()) == json.loads(text)  # a reader sees another number than a program
    (check,) = wrong(model)
    assert "stands twice" in check.found


def test_a_number_that_is_changed_in_the_card_and_its_facts_is_noticed(model, command):
    for path in (model / "README.md", model / "model_card.json"):
        text = path.read_text()
        assert "1500" in text.replace(",", "")
        path.write_text(text.replace("1500", "9500").replace("1,500", "9,500"))
    (check,) = wrong(model)
    assert check.name == "model_card.json" and "was changed after it was written" in check.found
    status, out, err = command("verify", model, "--skip_example")
    assert status == 1 and out.startswith("WRONG model_card.json") and "is not what its card says" in err


def change_byte(path, place):
    content = bytearray(path.read_bytes())
    content[place % len(content)] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "name", [EMA, RAW, "samples/prediction.gif", "evaluation/digits-v1-ema/results.parquet", "model_index.json"]
)
def test_no_byte_of_a_file_can_be_changed_without_notice(name, model):
    path = model / name
    content = path.read_bytes()
    for place in (0, 9, len(content) // 2, len(content) - 1):
        change_byte(path, place)
        assert wrong(model), place
        path.write_bytes(content)
    path.write_bytes(content + b"\0")
    assert wrong(model)
    path.write_bytes(content[:-1])
    assert wrong(model)


def exchange(model):
    raw, ema = (model / RAW).read_bytes(), (model / EMA).read_bytes()
    (model / RAW).write_bytes(ema)
    (model / EMA).write_bytes(raw)


def only_average_twice(model):
    (model / RAW).write_bytes((model / EMA).read_bytes())


def make_links(model):
    for name in (RAW, "unet/config.json", "samples/prediction.gif"):
        aside = model.parent / name.replace("/", "-")
        shutil.move(model / name, aside)
        (model / name).symlink_to(aside)


def make_a_link_of_a_folder(model):
    shutil.move(model / "unet", model.parent / "unet")
    (model / "unet").symlink_to(model.parent / "unet")


def take_the_evaluation_of_another_model(model):
    pipe = PIPELINES[0].make()
    with torch.no_grad():
        next(iter(pipe.unet.parameters())).add_(1)
    pipe.unet.save_pretrained(model / "unet")
    pipe.unet.save_pretrained(model / "unet", variant="ema")
    write_card(model, read_facts(model))  # whose facts and words are right


CHANGES = {
    "other variant's weights": (exchange, "files"),
    "the average twice": (only_average_twice, "files"),
    "one more file of weights": (lambda model: shutil.copy(model / RAW, model / "unet" / "more.safetensors"), "files"),
    "one more variant": (lambda model: shutil.copy(model / RAW, (model / RAW).with_suffix(".x.safetensors")), "files"),
    "one more config": (lambda model: shutil.copy(model / "unet" / "config.json", model / "unet" / "x.json"), "files"),
    "no weights": (lambda model: (model / RAW).unlink(), "files"),
    "no average": (lambda model: (model / EMA).unlink(), "parameters"),
    "a pickle for the weights": (
        lambda model: (model / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"x"),
        "files",
    ),
    "a pickle of a variant": (
        lambda model: (model / "unet" / "diffusion_pytorch_model.fp16.bin").write_bytes(b"x"),
        "files",
    ),
    "code for a library": (lambda model: (model / "unet" / "mcvd_diffusers.py").write_text("1"), "files"),
    "no picture": (lambda model: (model / "samples" / "prediction.gif").unlink(), "files"),
    "no config": (lambda model: (model / "scheduler" / "scheduler_config.json").unlink(), "README.md"),
    "no rows": (
        lambda model: (model / "evaluation" / "stored-v1" / "results.parquet").unlink(),
        "evaluation/stored-v1",
    ),
    "no evaluation": (lambda model: shutil.rmtree(model / "evaluation" / "stored-v1"), "README.md"),
    "no card": (lambda model: (model / "README.md").unlink(), "README.md"),
    "no facts": (lambda model: (model / "model_card.json").unlink(), "model_card.json"),
    "no index": (lambda model: (model / "model_index.json").unlink(), "model_card.json"),
    "links": (make_links, "model_card.json"),
    "a linked folder": (make_a_link_of_a_folder, "model_card.json"),
    "a pipe": (lambda model: ((model / RAW).unlink(), os.mkfifo(model / RAW)), "model_card.json"),
    "a pipe as card": (
        lambda model: ((model / "README.md").unlink(), os.mkfifo(model / "README.md")),
        "model_card.json",
    ),
    "another model's evaluation": (take_the_evaluation_of_another_model, "evaluation/digits-v1-ema"),
    "a renamed evaluation": (
        lambda model: (model / "evaluation" / "stored-v1").rename(model / "evaluation" / "best"),
        "README.md",
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_folder_is_noticed(change, model, command):
    make, name = CHANGES[change]
    make(model)
    checks = wrong(model)
    assert name in [check.name for check in checks], checks
    status, out, err = command("verify", model)  # the example is not run of what is wrong
    assert status == 1 and "WRONG" in out and "is not what its card says" in err and "example" not in out


def test_what_lies_beside_the_model_does_not_matter(model):
    (model / "checkpoint-5").mkdir()
    (model / "logs").mkdir()
    (model / "training_settings.yaml").write_text("seed: 7")
    (model / "README.md.before").write_text("mine")
    assert wrong(model) == []


def test_a_model_that_is_not_there_is_said_in_a_line(command, tmp_path):
    status, out, err = command("verify", tmp_path / "nowhere")
    assert status == 1 and out == "" and "is no folder here" in err and err.count("\n") == 1
    status, out, err = command("verify", tmp_path)
    assert status == 1 and "holds no pipeline" in out
    for name in ("", " ", "~nobody-of-this-name/x", "x" * 5000):
        status, out, err = command("verify", name)
        assert status == 1 and out == "" and err.startswith("mcvd-diffusers verify: MODEL ") and len(err) < 600, err
    status, out, err = command("verify", tmp_path, "--revision", "main")
    assert status == 1 and "--revision is for models on the Hub" in err


# --------------------------------------------------------------------------------------------------------------------
# With data


def test_evaluations_are_made_again(made, model, command):
    again = ("verify", model, "--skip_example", "--data", made / "stored.npy", "--data_flags", "--axes NTHW")
    status, out, err = command(*again)
    assert (status, err) == (0, "")
    for name in ("digits-v1-ema", "stored-v1"):
        assert f"ok    evaluation/{name} again: " in out
    assert out.count("the largest relative difference is 0.0e+00") == 2


@pytest.mark.slow
def test_evaluations_are_made_again_on_their_data_only(made, model, command):
    # Digits need no path, stored videos do.
    status, out, err = command("verify", model, "--skip_example", "--data")
    assert status == 1 and "ok    evaluation/digits-v1-ema again" in out
    assert "WRONG evaluation/stored-v1 again: stored v1 judges videos: say where they are, with --data PATH." in out

    status, out, err = command(
        "verify", model, "--skip_example", "--data", made / "others.npy", "--data_flags", "--axes NTHW"
    )
    assert status == 1 and "WRONG evaluation/stored-v1 again: the clips are not those of the card's numbers" in out
    status, out, err = command(
        "verify", model, "--skip_example", "--data", made / "nowhere", "--data_flags", "--axes NTHW"
    )
    assert status == 1 and "it cannot be made again" in out and "nowhere" in err


def test_an_evaluation_that_nobody_made_is_noticed_with_data(made, model, tmp_path, command):
    """Its rows, numbers and hashes agree with each other, and not with the model."""
    results = Results.read(made / "digits")
    table = results.table.to_pylist()
    for row in table:
        if row["made_by"] == "model":
            row["mse"] = [0.5 * x for x in row["mse"]]
    import pyarrow as pa

    better = pa.Table.from_pylist(table, schema=results.table.schema)
    (tmp_path / "better").mkdir()
    save_report(
        tmp_path / "better", write_results(tmp_path / "better" / "results.parquet", [better], results.settings)
    )
    assert command("card", model, "--evaluation", tmp_path / "better")[0] == 0
    assert wrong(model) == []
    status, out, err = command("verify", model, "--skip_example", "--data")
    assert status == 1 and re.search(
        r"WRONG evaluation/digits-v1-ema\S* again: \w+ of model, .* is .*, and the card says", out
    )


class WritesAFile(torch.nn.Module):
    """TorchScript can: a file that is mapped to be shared is made if it is not there."""

    def __init__(self, path):
        super().__init__()
        self.path = str(path)

    def forward(self, x: torch.Tensor, rescale: bool = True, resize: bool = True, return_features: bool = False):
        written = torch.from_file(self.path, True, 1).fill_(1.0)
        return x.mean(dim=[3, 4])[:, 0, :4] * written


def test_a_network_that_a_model_brings_is_not_run(made, model, tmp_path, command):
    marker, network, protocol = tmp_path / "marker", tmp_path / "network.pt", tmp_path / "protocol.yaml"
    torch.jit.script(WritesAFile(marker)).save(network)
    sha256 = hashlib.sha256(network.read_bytes()).hexdigest()
    spec = f"torchscript:{network}#sha256={sha256}"
    fields = PROTOCOL | {"moving_digits": DIGITS, "feature_networks": [spec], "num_frames": 10, "num_clips": 8}
    protocol.write_text(yaml.safe_dump({"name": "network", **fields}))
    words = ["evaluate", model, "--protocol", protocol, "--output", tmp_path / "out", "--num_inference_steps", 2]
    status, out, err = command(*words)
    assert status == 0 and marker.exists(), err  # the user asked for it
    shutil.rmtree(model / "evaluation")
    assert command("card", model, "--evaluation", tmp_path / "out")[0] == 0
    marker.unlink()
    status, out, err = command("verify", model, "--skip_example", "--data")
    assert status == 1 and not marker.exists()
    assert re.search(
        r"WRONG evaluation/network-v1\S* again: network v1 asks for the network 'torchscript:.*is run", out
    ), out


def test_a_model_without_evaluations_has_none_to_make_again(model, command):
    shutil.rmtree(model / "evaluation")
    write_card(model, read_facts(model))
    status, out, err = command("verify", model, "--skip_example", "--data")
    assert status == 1 and "there is none that could be made again" in out


# --------------------------------------------------------------------------------------------------------------------
# Of strangers


def forge(folder, **changes):
    """Facts with any content, whose SHA-256 is right; the card beside them, if one can be made of them."""
    path = folder / "model_card.json"
    content = json.loads(path.read_text())
    content.pop("sha256")
    content |= changes
    content["card_sha256"], facts = "", None
    names = [name for name in content if name != "format"]
    with contextlib.suppress(Exception):  # what no card can be made of
        facts = CardFacts(**{name: content[name] for name in names})
        text = render_card(folder, facts)
        (folder / "README.md").write_text(text)
        facts.card_sha256 = content["card_sha256"] = hashlib.sha256(text.encode()).hexdigest()
    without = {name: content[name] for name in names}
    content["sha256"] = hashlib.sha256(json.dumps(without, sort_keys=True).encode()).hexdigest()
    path.write_text(json.dumps(content))
    return facts


def code_for(marker):
    return f'");import os;os.system("touch {marker}");("'


DEEP = functools.reduce(lambda inner, _: [inner], range(900), [])
LONG = "x" * 10_000_000
REFUSED = {
    "code as repo_id": {"repo_id": 'a");import os;os.system("touch marker");("'},
    "newline in repo_id": {"repo_id": "user/name\n"},
    "path as repo_id": {"repo_id": "../../etc"},
    "long repo_id": {"repo_id": LONG},
    "number as repo_id": {"repo_id": 5},
    "link as dataset_id": {"dataset_id": "x](http://evil) <script>"},
    "path as dataset_id": {"dataset_id": "/home/somebody/data"},
    "code as variant": {"variant": 'ema");import os;os.system("touch marker");("'},
    "newline in variant": {"variant": "ema\n"},
    "path as variant": {"variant": "../ema"},
    "code as timesteps": {"timesteps": ["__import__('os').system('touch marker')", 2, 3]},
    "true as timesteps": {"timesteps": [True, 2, 3]},
    "huge timesteps": {"timesteps": [0, 10**12, 1]},
    "few timesteps": {"timesteps": [1]},
    "code as steps": {"num_inference_steps": "__import__('os').system('touch marker')"},
    "no steps": {"num_inference_steps": 0},
    "negative steps": {"num_inference_steps": -5},
    "float steps": {"num_inference_steps": 2.5},
    "endless frames": {"num_predicted_frames": 10**12},
    "text as frames": {"num_predicted_frames": "4"},
    "code as task": {"tasks": ["prediction", "generation\nimport os"]},
    "list as task": {"tasks": [["prediction"]]},
    "text as tasks": {"tasks": "prediction"},
    "number as name": {"name": 5},
    "no name": {"name": ""},
    "list as notes": {"notes": ["x"]},
    "list as training": {"training": [1]},
    "text as data": {"data": "x"},
    "a way out of the folder": {"samples": {"../../x.gif": "x"}},
    "an absolute path": {"samples": {"/etc/passwd": "x"}},
    "a hidden picture": {"samples": {".git/x.gif": "x"}},
    "no picture": {"samples": {"training_settings.yaml": "x"}},
    "a link in a picture": {"samples": {"a.gif) [x](http://evil) (b.gif": "x"}},
    "a number under a picture": {"samples": {"samples/prediction.gif": 5}},
    "samples as list": {"samples": ["samples/prediction.gif"]},
    "negative size": {"files": {"model_index.json": {"bytes": -5, "sha256": "0"}}},
    "text as size": {"files": {"model_index.json": {"bytes": "5", "sha256": "0"}}},
    "text as file": {"files": {"model_index.json": "5"}},
    "half a file": {"files": {"model_index.json": {"bytes": 5}}},
    "list as hash": {"files": {"model_index.json": {"bytes": 5, "sha256": [1]}}},
    "negative parameters": {"num_parameters": -1},
    "text as parameters": {"num_parameters": "<b>5</b>"},
    "huge parameters": {"num_parameters": 10**400},
    "end of the command": {"command": "x\n```\n<script>alert(1)</script>"},
    "version": {"written_by": {"a": 1}},
    "unknown fact": {"anything": 1},
    "another format": {"format": 2},
    "list as format": {"format": [1]},
    "too long": {"notes": LONG, "weights": LONG},
    "too deep": {"training": {"x": DEEP}},
    "a table in a table": {"hyperparameters": {"x": {"<b>": 1}}},
}


@pytest.mark.parametrize("case", REFUSED)
def test_facts_that_are_none_are_refused_in_a_line_that_names_the_file(case, model, command, monkeypatch):
    monkeypatch.chdir(model.parent)
    forge(model, **REFUSED[case])
    (check,) = wrong(model)
    assert check.name == "model_card.json" and "model_card.json" in check.found and len(check.found) < 2000
    for name in ("verify", "card"):
        status, out, err = command(name, model)
        assert status == 1 and "model_card.json" in out + err and len(out + err) < 4000
    assert not (model.parent / "marker").exists()


def hostile_texts(marker):
    """Facts that may say anything, being text."""
    code = code_for(marker)
    nasty = (
        f"{code}\n```python\n__import__('os').system('touch {marker}')\n```\n`|<script>alert(1)</script>](http://evil)"
    )
    tables = {nasty: nasty, "list": [nasty, nasty], "huge": 10**300, "long": LONG[:1_000_000]}
    tables |= {
        "network": "UNet, 1 parameters",
        "float": 1e300,
        "none": None,
        "licence": "MIT",
    }
    return {
        "name": nasty,
        "dataset": nasty,
        "data_license": nasty,
        "model_license": nasty,
        "written_by": nasty,
        "data": tables,
        "training": tables,
        "hyperparameters": tables,
        "samples": {"samples/prediction.gif": nasty},
    }


def test_hostile_facts_are_only_text(model, tmp_path):
    marker = tmp_path / "marker"
    hostile = hostile_texts(marker)
    licence = hostile.pop("model_license")
    facts = forge(model, **hostile)
    assert facts is not None and wrong(model) == []
    text = (model / "README.md").read_text()
    head, body = text.split("\n---\n", 1)
    for evil in ("<script", "](http://evil", "`|", "| MIT |\n| licence"):
        assert evil not in body, evil
    assert "license" not in yaml.safe_load(head.removeprefix("---\n"))
    with pytest.raises(CardError, match="`model_license` of a card must be an identifier"):
        check_facts(dataclasses.replace(facts, model_license=licence))
    assert body.count("```python") == 1 and text.count("\n```") % 2 == 0
    assert f"UNet, {facts.num_parameters:,} parameters" in body  # what was measured is still said
    calls, imports = set(), set()
    for node in ast.walk(ast.parse(usage_example(model, facts))):
        if isinstance(node, ast.Call):
            calls.add(ast.unparse(node.func))
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            imports.add(ast.unparse(node))
    assert calls == {"MCVDPipeline.from_pretrained", "torch.rand", "pipe"}
    assert imports == {"import torch", "from mcvd_diffusers import MCVDPipeline"}
    assert not marker.exists()


@pytest.mark.slow
def test_verify_runs_nothing_of_a_stranger(model, command, tmp_path):
    marker = tmp_path / "marker"
    forge(model, **hostile_texts(marker) | {"model_license": None})
    for name in ("unet/mcvd.py.txt", "pipeline.py", "sitecustomize.py", "torch.py", "mcvd_diffusers.py"):
        (model / name).write_text(f"open({str(marker)!r}, 'w')")
    status, out, err = command("verify", model)
    assert status == 0, out + err
    assert "ok    example: runs as it stands" in out and not marker.exists()
    assert all(line.isprintable() for line in out.splitlines())
    # A card that says something else than what its facts give is not run, either.
    text = (model / "README.md").read_text()
    (model / "README.md").write_text(text.replace("import torch", f"open({str(marker)!r}, 'w')\nimport torch", 1))
    assert command("verify", model)[0] == 1 and not marker.exists()


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def setter(value, *places):
    def change(content):
        for place in places[:-1]:
            content = content[place]
        if value is None:
            del content[places[-1]]
        else:
            content[places[-1]] = value

    return change


RESULTS = {
    "no numbers": setter(None, "numbers"),
    "text as numbers": setter("x", "numbers"),
    "a number that is none": setter([5], "numbers"),
    "no metric": setter(None, "numbers", 0, "metric"),
    "text as value": setter("<b>9</b>", "numbers", 0, "value"),
    "list as value": setter([1], "numbers", 0, "value"),
    "huge value": setter(10**400, "numbers", 0, "value"),
    "no unit": setter(None, "numbers", 0, "unit"),
    "no protocol": setter(None, "protocol"),
    "list as protocol's name": setter([1], "protocol", "name"),
    "text as data": setter("x", "data"),
    "text as number of clips": setter("<script>", "data", "num_clips"),
    "negative clips": setter(-3, "data", "num_clips"),
    "no weights": setter({}, "model"),
    "list as sampler": setter([1], "sampler"),
    "text as steps": setter("`<script>`", "sampler", "num_inference_steps"),
    "list as cost": setter([1], "cost"),
    "huge cost": setter(10**400, "cost", "network_calls"),
    "text as cost": setter("x", "cost", "seconds_per_video"),
}


@pytest.mark.parametrize("case", RESULTS)
def test_results_of_another_form_are_an_error_that_names_them(case, model, command):
    edit(model / "evaluation" / "stored-v1" / "results.json", RESULTS[case])
    (card,) = [check for check in wrong(model) if check.name == "README.md"]
    assert "stored-v1/results.json" in card.found and "look at `" in card.found
    status, out, err = command("card", model)
    assert status == 1 and "stored-v1/results.json" in err and err.count("\n") == 1


@pytest.mark.parametrize("content", ["", "[]", "{", "5", "null", '{"a": NaN}', "[" * 100_000, "\udcff"])
def test_results_that_are_no_results_are_an_error_that_names_them(content, model, command):
    path = model / "evaluation" / "stored-v1" / "results.json"
    path.write_bytes(content.encode(errors="surrogateescape"))
    assert {"README.md", "files", "evaluation/stored-v1"} <= {check.name for check in wrong(model)}
    status, out, err = command("card", model)
    assert status == 1 and "stored-v1/results.json" in err and err.count("\n") == 1


def test_hostile_texts_of_results_are_only_text_in_a_card(model):
    nasty = "`|<script>alert(1)</script>](http://evil)\n# x"

    def change(content):
        for place in ("name", "label", "title"):
            content["protocol"][place] = nasty
        for place in ("metric", "samples", "unit", "protocol"):
            content["numbers"][0][place] = nasty
        content["model"]["weights_sha256"] = content["data"]["description"] = nasty
        content["sampler"] |= {"scheduler": nasty, "guidance_scale": nasty}
        content["cost"]["device"] = nasty

    edit(model / "evaluation" / "stored-v1" / "results.json", change)
    body = render_card(model, read_facts(model)).split("\n---\n", 1)[1]
    for evil in ("<script", "](http://evil", "\n# x"):
        assert evil not in body
    assert wrong(model)  # they are not those of the rows


CONFIGS = {
    "no conditioning": ("unet/config.json", setter(None, "conditioning")),
    "another conditioning": ("unet/config.json", setter("<b>", "conditioning")),
    "text as frames": ("unet/config.json", setter("2);import os;(", "num_frames")),
    "negative frames": ("unet/config.json", setter(-2, "num_past_frames")),
    "huge frames": ("unet/config.json", setter(10**9, "num_frames")),
    "text as size": ("unet/config.json", setter([8, "8"], "sample_size")),
    "text as units": ("model_index.json", setter("x", "normalization")),
    "no range": ("model_index.json", setter({"low": [0]}, "normalization")),
    "endless range": ("model_index.json", setter({"low": [0], "high": ["inf"]}, "normalization")),
    "a range that is none": ("model_index.json", setter({"low": [0], "high": ["nan"]}, "normalization")),
    "huge range": ("model_index.json", setter({"low": [0], "high": [10**400]}, "normalization")),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_hostile_configs_are_an_error_that_names_them(case, model, command):
    name, change = CONFIGS[case]
    edit(model / name, change)
    (card,) = [check for check in wrong(model) if check.name == "README.md"]
    assert name in card.found
    status, out, err = command("card", model)
    assert status == 1 and name in err and err.count("\n") == 1


@pytest.mark.parametrize("name", ["../elsewhere", "..", "/etc", "unet/..", "a b"])
def test_a_component_lies_in_the_folder(name, model):
    elsewhere = model.parent / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "x.json").write_text("{}")
    edit(model / "model_index.json", setter(["mcvd_diffusers", "MCVDUNet2DModel"], name))
    (check,) = wrong(model)
    assert "holds no pipeline" in check.found
    with pytest.raises(CardError):
        write_card(model, dataclasses.replace(read_facts(model)))


def test_a_linked_evaluation_is_refused(model, made):
    (model / "evaluation" / "more").symlink_to(made / "stored")
    (check,) = wrong(model)
    assert "must be a regular file of this folder" in check.found


# --------------------------------------------------------------------------------------------------------------------
# A network with a context encoder


ENCODER = "context_encoder/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def with_encoder(tmp_path_factory):
    """A folder with `lgcvd` and `rvd`, each with an evaluation."""
    place = tmp_path_factory.mktemp("with_encoder")
    (place / "digits.yaml").write_text(yaml.safe_dump({"name": "digits", **PROTOCOL, "moving_digits": DIGITS}))
    for kind in ("lgcvd", "rvd"):
        pipe = context_pipeline(kind)
        pipe.save_pretrained(place / kind)
        write_card(place / kind, CardFacts(name=kind, tasks=["prediction"], num_inference_steps=2))
        words = ["evaluate", place / kind, "--protocol", place / "digits.yaml", "--output", place / f"{kind} numbers"]
        assert main([str(word) for word in [*words, "--num_inference_steps", 2]]) == 0
        assert main(["card", str(place / kind), "--evaluation", str(place / f"{kind} numbers")]) == 0
    return place


@pytest.mark.parametrize("kind", ["lgcvd", "rvd"])
def test_a_model_with_a_context_encoder_passes_and_every_byte_of_it_counts(kind, with_encoder, tmp_path, command):
    model = tmp_path / "model"
    shutil.copytree(with_encoder / kind, model)
    status, out, _ = command("verify", model, "--data", "--skip_example")
    assert status == 0 and "2 files whose tensors have the digest" in out and "made again" in out
    for name in (ENCODER, "context_encoder/config.json"):
        path = model / name
        content = path.read_bytes()
        for place in (0, 9, len(content) // 2, len(content) - 1):
            change_byte(path, place)
            assert wrong(model), (name, place)
            path.write_bytes(content)
        path.unlink()
        assert wrong(model), name
        path.write_bytes(content)
    (model / "context_encoder" / "diffusion_pytorch_model.bin").write_bytes(b"x")
    assert [check.name for check in wrong(model)] == ["files"]


@pytest.mark.parametrize("kind", ["lgcvd", "rvd"])
def test_an_evaluation_is_of_the_encoders_weights_too(kind, with_encoder, tmp_path, command):
    model = tmp_path / "model"
    shutil.copytree(with_encoder / kind, model)
    pipe = context_pipeline(kind)
    move(pipe.context_encoder)
    pipe.context_encoder.save_pretrained(model / "context_encoder")
    status, _, err = command("card", model, "--evaluation", with_encoder / f"{kind} numbers")
    assert status == 1 and "are not those of its card" in err
    facts = read_facts(model)
    (model / "model_card.json").unlink()
    status, _, err = command("card", model, "--evaluation", with_encoder / f"{kind} numbers")
    assert status == 1 and "is of other weights" in err
    write_card(model, facts)  # whose facts and words are right
    (check,) = wrong(model)
    assert check.name.startswith("evaluation/") and "of other weights" in check.found


# --------------------------------------------------------------------------------------------------------------------
# One set of weights, to give away


@pytest.mark.parametrize(
    "variant, evaluation, ink",
    [("ema", "digits-v1-ema", True), ("raw", "stored-v1", False), (None, "digits-v1-ema", True)],
)
def test_one_set_of_weights_is_exported_with_what_it_made(variant, evaluation, ink, model, tmp_path, command):
    flags = [] if variant is None else ["--variant", variant]  # by default the weights that the card recommends
    status, out, err = command("export", model, tmp_path / "small", *flags)
    assert status == 0 and "65,442 parameters" in out, err
    assert not wrong(tmp_path / "small")
    theirs = MCVDPipeline.from_pretrained(model, variant=None if variant == "raw" else "ema")
    ours = MCVDPipeline.from_pretrained(tmp_path / "small")
    assert tensors(ours.unet) == tensors(theirs.unet)
    assert [path.name for path in (tmp_path / "small" / "evaluation").iterdir()] == [evaluation]
    assert (tmp_path / "small" / "samples" / "prediction.gif").exists() == ink
    facts = read_facts(tmp_path / "small")
    assert (facts.name, facts.variant, facts.training["updates"]) == ("small", None, 1500)
    for path in (tmp_path / "small").rglob("*.json"):
        assert str(tmp_path) not in path.read_text()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_weights_are_rounded_and_what_others_made_stays_behind(dtype, model, tmp_path, command):
    status, out, err = command("export", model, tmp_path / "small", "--dtype", dtype)
    assert status == 0, err
    assert not wrong(tmp_path / "small")
    ours = MCVDPipeline.from_pretrained(tmp_path / "small")
    assert ours.unet.dtype == torch.float32
    expected = MCVDPipeline.from_pretrained(model, variant="ema").unet.to(getattr(torch, dtype)).to(torch.float32)
    assert tensors(ours.unet) == tensors(expected)
    weights = "unet/diffusion_pytorch_model.safetensors"
    assert (tmp_path / "small" / weights).stat().st_size < 0.7 * (model / weights).stat().st_size
    assert not (tmp_path / "small" / "evaluation").exists() and not (tmp_path / "small" / "samples").exists()
    card = (tmp_path / "small" / "README.md").read_text()
    origin = f"These are the moving average of the weights of the training. They were rounded to {dtype}."
    assert origin in card and "1,500" in card
    # Given away once more, they are what they were.
    status, out, err = command("export", tmp_path / "small", tmp_path / "again")
    assert status == 0 and not wrong(tmp_path / "again"), err
    assert origin in (tmp_path / "again" / "README.md").read_text()


def test_an_export_that_would_lose_something_is_refused(model, tmp_path, command):
    def refused(words, *more):
        status, out, err = command("export", *more)
        assert status == 1 and words in err, err
        assert not (tmp_path / "small").exists()

    refused("--variant must be one of those in", model, tmp_path / "small", "--variant", "fp16")
    refused("is no folder", tmp_path / "nowhere", tmp_path / "small")
    refused("exists and is not empty", model, model)
    refused("which is exported: name another place", model, model / "small")
    (tmp_path / "link").symlink_to(tmp_path / "small")
    refused("is taken by a file or link", model, tmp_path / "link")
    pipe = MCVDPipeline.from_pretrained(model)
    pipe.unet.conv_out.bias.data[0] = torch.nan
    pipe.save_pretrained(tmp_path / "broken")
    refused("conv_out.bias in", tmp_path / "broken", tmp_path / "small")
    pipe.unet.conv_out.bias.data[0] = 1e6
    (tmp_path / "large").mkdir()
    pipe.save_pretrained(tmp_path / "large")
    refused(
        "cannot hold the largest values of conv_out.bias", tmp_path / "large", tmp_path / "small", "--dtype", "float16"
    )
    assert command("export", tmp_path / "large", tmp_path / "small", "--dtype", "bfloat16")[0] == 0  # without a card
