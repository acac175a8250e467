"""The card of a model: what it says of a run, that it is right, that it can be made again, and its command."""

import ast
import json
import os
import re
import shlex
import shutil
from dataclasses import asdict, fields
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from accelerate.state import AcceleratorState
from diffusers import ClassifierFreeGuidance, DDIMScheduler
from huggingface_hub import ModelCard
from PIL import Image

import train_mcvd
from context_pipelines import CONTEXTS, context_pipeline, move
from contract_rows import PIPELINES, SMALL_SPACE_TIME, SYSTEMS, mcvd_network
from mcvd_diffusers import MCVDPipeline, SpaceTimeUNetModel
from mcvd_diffusers.cli import main
from mcvd_diffusers.masking import tasks_of_config
from mcvd_diffusers.model_card import CardError, CardFacts, read_facts, render_card, tensors_digest, write_card
from mcvd_diffusers.normalization import FrameNormalizer
from mcvd_diffusers.protocols import list_protocols, load_protocol, published_results
from mcvd_diffusers.protocols import protocol as protocol_module
from mcvd_diffusers.run_folder import _PRIVATE
from mcvd_diffusers.train_settings import FOR_METHODS, DataArguments, ModelArguments, TrainingArguments
from mcvd_diffusers.weights import WeightsError, networks_digest, weights_digest


TINY = {
    "resolution": [8, 12],
    "num_past_frames": 2,
    "num_frames": 2,
    "num_future_frames": 1,
    "block_out_channels": [8, 8],
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "train_batch_size": 4,
    "max_train_steps": 2,
    "lr_warmup_steps": 1,
    "learning_rate": 0.00012345678,
    "num_validation_videos": 2,
    "validation_inference_steps": 2,
    "checkpointing_steps": 0,
    "report_to": "none",
}
DIGITS = {"num_train_clips": 16, "digit_size": 4}
PROTOCOL = {
    "name": "digits-of-8x12",
    "version": 1,
    "title": "small moving digits, 2 given, 4 predicted",
    "source": "here",
    "task": "prediction",
    "num_past_frames": 2,
    "num_frames": 4,
    "num_channels": 1,
    "frame_size": [8, 12],
    "num_clips": 3,
    "clip_choice": "random",
    "moving_digits": {"source": "sklearn", "num_digits": 1, "digit_size": 4, "max_speed": 1, "num_images": 0},
    "samples_per_clip": 2,
    "best_of": "each_metric",
    "metrics": ["psnr_of_video_mse", "mse"],
    "ensemble_metrics": ["crps", "rank_histogram"],
}
PLACEHOLDERS = ("More Information Needed", "TODO", "FIXME", "path/to", "[...]", "{{ ", "lorem", "XXX", "None |")


def train(folder, **settings):
    arguments = []
    for name, value in {**TINY, **settings, "output_dir": folder}.items():
        arguments += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    try:
        settings = train_mcvd.parse_args(arguments)
        train_mcvd.main(settings)
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
    return settings


def evaluate(model, protocol, output, *more):
    words = ["evaluate", model, "--protocol", protocol, "--output", output, "--num_inference_steps", 2, *more]
    assert main([str(word) for word in words]) == 0


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run, with the evaluations of both its weights beside it, and its settings."""
    place = tmp_path_factory.mktemp("card")
    settings = train(place / "run", **DIGITS)
    (place / "protocol.yaml").write_text(yaml.safe_dump(PROTOCOL))
    evaluate(place / "run", place / "protocol.yaml", place / "ema", "--variant", "ema")
    evaluate(place / "run", place / "protocol.yaml", place / "raw", "--variant", "raw")
    shutil.copytree(place / "run", place / "without_evaluation")
    words = ["card", place / "run", "--evaluation", place / "ema", place / "raw", "--license", "apache-2.0"]
    assert main([str(word) for word in words]) == 0
    return place, settings


@pytest.fixture
def run(trained, tmp_path):
    """A copy of the run to change; its evaluations are in `ema` and `raw` beside it."""
    shutil.copytree(trained[0], tmp_path / "copy")
    return tmp_path / "copy" / "run"


@pytest.mark.parametrize("variant", [None, "ema"])
def test_the_weights_of_a_run_know_their_config(run, variant):
    MCVDPipeline.from_pretrained(run, variant=variant)
    path = run / "unet" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"drop_past": 0.25}))
    with pytest.raises(WeightsError, match="is not the config that") as error:
        MCVDPipeline.from_pretrained(run, variant=variant)
    assert str(path) in str(error.value)


def words_of_the_command(text):
    """The command of a card as a shell takes it: a backslash at the end of a line joins it with the next."""
    return shlex.split(re.search(r"```bash\n(.*?)```", text, flags=re.DOTALL)[1].replace("\\\n", " "))


def card_command(*words):
    return main(["card", *map(str, words)])


def save(pipeline, folder, **facts):
    """A pipeline's folder with a card."""
    pipeline.save_pretrained(folder)
    facts = {"name": "tiny", "tasks": tasks_of_config(pipeline.unet.config)} | facts
    write_card(folder, CardFacts(num_inference_steps=2, **facts))
    return (folder / "README.md").read_text()


def tiny(conditioning="concat", normalization=None, **unet):
    shape = {"drop_past": 0.5, "drop_future": 0.5} | unet
    network = mcvd_network(conditioning)
    config = {**network.config, **shape}
    torch.manual_seed(0)
    units = None if normalization is None else normalization.to_config()
    return MCVDPipeline(network.network_class(**config), DDIMScheduler(clip_sample=True), normalization=units)


# --------------------------------------------------------------------------------------------------------------------
# The card of a run


def test_card_of_a_run_is_a_card_of_the_hub_with_all_of_its_metadata(trained):
    folder = trained[0] / "run"
    head = ModelCard.load(folder / "README.md").data
    wanted = {"library_name": "diffusers", "pipeline_tag": "video-to-video", "license": "apache-2.0"}
    assert head.to_dict().items() >= wanted.items()
    wanted = {"mcvd", "video-prediction", "frame-interpolation", "unconditional-video-generation"}
    assert wanted <= set(head.tags) and head.model_name == "run"
    assert [one["output"]["url"] for one in head.widget] == list(read_facts(folder).samples)
    stated = []
    for path in sorted(folder.glob("evaluation/*/results.json")):
        result = json.loads(path.read_text())
        numbers = [n for n in result["numbers"] if n["made_by"] == "model" and n["metric"] != "rank_histogram"]
        weights = "averaged weights (EMA)" if "-ema-" in path.parent.name else "raw weights"
        stated += [(n["metric"], n["samples"], n["value"], weights) for n in numbers]
    assert len(stated) == 2 * 5 == len(head.eval_results)
    for (metric, samples, value, weights), one in zip(stated, head.eval_results):
        assert (one.metric_type, one.metric_value) == (metric, value)
        assert one.dataset_config == f"digits-of-8x12 v1; {weights}; DPMSolverMultistep, 2 steps"
        assert (
            one.metric_name == f"{metric}, {samples}, {weights}; digits-of-8x12 v1"
        )  # no number without its protocol
        assert one.metric_args["weights"] == weights and one.metric_args["sampler"] == "DPMSolverMultistep, 2 steps"
        assert one.metric_args["clips"] == 3 and one.metric_args["low"] < value < one.metric_args["high"]


def test_card_of_a_run_says_what_the_model_does_and_how_it_was_made(trained):
    place, settings = trained
    folder = place / "run"
    text, facts = (folder / "README.md").read_text(), read_facts(folder)
    pipe = MCVDPipeline.from_pretrained(folder, variant="ema")
    count = sum(parameter.numel() for parameter in pipe.unet.parameters())
    sizes = [f"{path.stat().st_size:,}" for path in (folder / "unet").glob("*.safetensors")]
    for fact in (
        "| prediction | 2 past frames | the frames after them, any number, 2 at a time |",
        "| past prediction | 1 future frame | the frames before them |",
        "| interpolation | 2 past and 1 future frame | the 2 between them |",
        "| generation | nothing | videos of any length, 2 frames at a time |",
        "Frames have 1 channel of 8x12 pixels",
        "floats in [0, 1]",
        f"{count:,} parameters",
        "| name | `moving digits` |",
        "| licence | CC BY 4.0",
        "| updates | 2 |",
        "| clips met | 8 |",
        "| hours | ",
        f"| hardware | 1 x cpu with {os.cpu_count()} cores |",
        "| seconds for a video | ",
        f"| torch | {torch.__version__} |",
        '`variant="ema"` is the moving average (decay 0.999)',
        "Licence: apache-2.0.",
        *(f"| {size} |" for size in sizes),
        "## Limits",
        "A sample is one possible future, not the future.",
        "`mcvd-diffusers verify .`",
        "@inproceedings{voleti2022mcvd,",
        "| `learning_rate` | 0.00012345678 |",  # all of its digits
        "s a video on cpu",
        f"Tensors of ema: SHA-256 `{weights_digest(pipe.unet.state_dict())}`.",
        "### digits-of-8x12 v1: averaged weights (EMA), DPMSolverMultistep, 2 steps",
        "### digits-of-8x12 v1: raw weights, DPMSolverMultistep, 2 steps",
        "| mse | repeat_last_frame | 1 | ",
    ):
        assert fact in text, fact
    assert facts.num_parameters == count and float(facts.training["hours"]) < 1
    assert "knows of no evaluation" not in text


def test_every_picture_that_the_card_shows_is_there(trained):
    folder = trained[0] / "run"
    shown = re.findall(r"!\[[^\]]*\]\(([^)]*)\)", (folder / "README.md").read_text())
    assert [Path(path).stem for path in shown] == ["prediction", "past_prediction", "interpolation", "generation"]
    for path in shown:
        with Image.open(folder / path) as picture:
            assert picture.format == "GIF" and picture.n_frames > 1


def test_every_setting_of_the_training_that_has_a_value_is_in_the_card(trained):
    place, settings = trained
    text = (place / "run" / "README.md").read_text()
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", text, flags=re.MULTILINE))
    flags = {f.name for group in (ModelArguments, DataArguments, TrainingArguments) for f in fields(group)}
    values = {name: value for name, value in settings.as_dict().items() if value is not None}
    of_others = {name for name, methods in FOR_METHODS.items() if "mcvd" not in methods}
    assert set(rows) == (flags - set(_PRIVATE) - of_others) & set(values)
    for name in rows:
        assert read_facts(place / "run").hyperparameters[name] == values[name], name


def test_the_command_in_the_card_gives_the_same_settings(trained, tmp_path, monkeypatch):
    place, settings = trained
    words = words_of_the_command((place / "run" / "README.md").read_text())
    assert words[:3] == ["accelerate", "launch", "train_mcvd.py"]
    monkeypatch.chdir(tmp_path)
    again = train_mcvd.parse_args(words[3:]).as_dict()
    # What stays on a machine is not in a card.
    private = {name: again[name] for name in _PRIVATE}
    assert again == settings.as_dict() | private


def texts_of_a_card(folder):
    return "".join((folder / name).read_text() for name in ("README.md", "model_card.json"))


@pytest.fixture(scope="module")
def trained_on_files(tmp_path_factory):
    """A run whose settings name three places of this machine."""
    place = tmp_path_factory.mktemp("files")
    generator = np.random.default_rng(0)
    np.save(place / "kelvin data.npy", generator.uniform(200, 300, (8, 6, 8, 12)).astype(np.float32))
    (place / "held out.txt").write_text("*0\n*1\n")
    units = FrameNormalizer.from_range(180, 320)
    pipe = tiny(sample_size=[8, 12], normalization=units, embed_past_kept=False)
    pipe.save_pretrained(place / "earlier run")
    settings = {"train_data_dir": place / "kelvin data.npy", "axes": "NTHW"}
    settings |= {"validation_list": place / "held out.txt", "pretrained_model_name_or_path": place / "earlier run"}
    shape = {"resolution", "num_past_frames", "num_frames", "num_future_frames", "block_out_channels"}
    shape |= {"down_block_types"}
    only = {name: value for name, value in TINY.items() if name not in shape}
    words = [
        x for name, value in {**only, **settings, "output_dir": place / "run"}.items() for x in (f"--{name}", value)
    ]
    try:
        parsed = train_mcvd.parse_args([str(word) for word in words])
        train_mcvd.main(parsed)
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
    return place, parsed


@pytest.mark.parametrize("which", ["trained", "trained_on_files"])
def test_no_placeholder_and_nothing_of_the_machine_is_in_a_card(which, request):
    place, _ = request.getfixturevalue(which)
    text = texts_of_a_card(place / "run")
    for words in PLACEHOLDERS:
        assert words.lower() not in text.lower(), words
    home, user = str(Path.home()), os.environ.get("USER") or Path.home().name
    for secret in (str(place), str(place.parent), "/tmp", "/home/", "/Users/", os.uname().nodename, str(Path.cwd())):
        assert secret not in text, secret
    assert not re.search(rf"\b{re.escape(user)}\b", text) and f"{home}/" not in text
    assert not re.search(r"""(?<![\w.:/<])/(?!/)\w+/\w""", text.replace("it/s", ""))  # absolute paths of any kind


def test_a_run_on_files_names_them_and_goes_on_from_where_it_says(trained_on_files, tmp_path, monkeypatch):
    place, settings = trained_on_files
    text = (place / "run" / "README.md").read_text()
    for fact in ("| name | `kelvin data.npy` |", "not stated by who trained", "in the units of the data, 180 to 320"):
        assert fact in text, fact
    assert "low, high = torch.tensor([180.0]).view(-1, 1, 1), torch.tensor([320.0]).view(-1, 1, 1)" in text
    assert "past = low + (high - low) * torch.rand(1, 2, 1, 8, 12)" in text
    for path in place.iterdir():  # where the names in the command lie
        if path.name != "run":
            (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    words = words_of_the_command(text)
    again = train_mcvd.parse_args(words[3:]).as_dict()
    names = ("train_data_dir", "validation_list", "pretrained_model_name_or_path")
    assert [again[name] for name in names] == ["kelvin data.npy", "held out.txt", str(tmp_path / "earlier run")]
    machine = {name: again[name] for name in (*_PRIVATE, *names)}
    assert again == settings.as_dict() | machine


def test_the_same_facts_give_the_same_bytes(run):
    before = {path.name: path.read_bytes() for path in (run / "README.md", run / "model_card.json")}
    write_card(run, read_facts(run))
    assert card_command(run) == 0
    assert {name: (run / name).read_bytes() for name in before} == before
    facts = read_facts(run)
    assert render_card(run, facts) == (run / "README.md").read_text()
    assert asdict(read_facts(run)) == asdict(facts)


# --------------------------------------------------------------------------------------------------------------------
# The example


SHAPES = {
    "concat": {},
    "spatin": {"conditioning": "spatin"},
    "no future": {"num_future_frames": 0},
    "future only": {"num_past_frames": 0, "embed_past_kept": False},
    "never without past": {"drop_past": 0.0},
    "interpolation only": {"drop_past": 0.0, "drop_future": 0.0},
    "generation only": {"num_past_frames": 0, "num_future_frames": 0, "embed_past_kept": False},
    "not square": {"sample_size": [8, 16]},
    "colour": {"in_channels": 3},
    "kelvin": {"normalization": FrameNormalizer.from_range(180.12345678, 330.87654321)},
    "below zero": {"normalization": FrameNormalizer.from_range(-40.0, -2.5)},
    "both sides of zero": {"normalization": FrameNormalizer.from_range(-1e-7, 3e-7)},
    "lowest and highest": {
        "normalization": FrameNormalizer("min_max", (213.15,), (313.15,)),
        "conditioning": "spatin",
    },
    "mean and deviation": {"normalization": FrameNormalizer("mean_std", (0.0,), (90.0,), (12.5,), (7.5,))},
    "mask": {
        "in_channels": 2,
        "normalization": FrameNormalizer("min_max", (0.0,), (9.0,), nan_fill=(1.0,), has_mask_channel=True),
    },
    "several units": {
        "in_channels": 2,
        "normalization": FrameNormalizer.from_range([200.0, 190.0], [300.0, 310.0]),
    },
}


@pytest.mark.parametrize("variant", [None, "ema"])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_example_runs_as_it_stands(shape, variant, tmp_path, monkeypatch):
    pipe = tiny(**SHAPES[shape])
    text = save(pipe, tmp_path, variant=None)
    if variant is not None:
        for path in list((tmp_path / "unet").glob("*.safetensors")):
            path.unlink()
        pipe.save_pretrained(tmp_path, variant=variant)
        text = save_again(tmp_path, variant=variant)
    (example,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert ('variant="ema"' in example) == (variant == "ema")
    facts, shown = read_facts(tmp_path), {}
    assert example.count("pipe(") == len(facts.tasks) > 0
    monkeypatch.chdir(tmp_path)
    exec(example.replace("video = pipe", "shown[len(shown)] = pipe"), {"shown": shown})
    channels = pipe.normalizer.num_channels(pipe.unet.config.in_channels)
    size = pipe.unet.config.sample_size
    height, width = size if isinstance(size, (list, tuple)) else (size, size)
    for task, video in zip(facts.tasks, shown.values(), strict=True):
        assert video.shape[2:] == (channels, height, width), task
        assert shape == "mask" or video.isfinite().all(), task  # NaN is where it says that values are missing
    assert f"{channels} channel{'s' * (channels > 1)} of {height}x{width} pixels" in text


def save_again(folder, **changes):
    facts = read_facts(folder)
    for name, value in changes.items():
        setattr(facts, name, value)
    write_card(folder, facts)
    return (folder / "README.md").read_text()


def test_a_model_that_only_generates_is_called_that(tmp_path):
    save(tiny(**SHAPES["generation only"]), tmp_path)
    head = ModelCard.load(tmp_path / "README.md").data
    assert head.pipeline_tag == "unconditional-image-generation" and "unconditional-video-generation" in head.tags
    assert "past =" not in (tmp_path / "README.md").read_text()


def test_a_guider_stands_in_the_card(tmp_path):
    pipeline = tiny()
    assert "guided by" not in save(pipeline, tmp_path / "plain")
    pipeline.guider = ClassifierFreeGuidance(3.0)
    text = save(pipeline, tmp_path / "guided")
    assert "| sampler | DDIM, 2 steps a block, guided by ClassifierFreeGuidance of scale 3 |" in text
    assert main(["verify", str(tmp_path / "guided")]) == 0
    path = tmp_path / "guided" / "guider" / "guider_config.json"
    path.write_text(path.read_text().replace("3.0", "4.0"))
    assert main(["verify", str(tmp_path / "guided")]) == 1


def test_values_of_a_range_that_many_digits_have_lie_in_it(tmp_path):
    """What the example draws is within the range that it is for: rounding must not lead out of it by more than is passed."""
    low, high = 199.98765432, 200.0123456
    text = save(tiny(normalization=FrameNormalizer.from_range(low, high)), tmp_path)
    ends = re.search(r"torch\.tensor\(\[(.*)\]\)\.view.*torch\.tensor\(\[(.*)\]\)", text).groups()
    assert [float(end) for end in ends] == [low, high]


def test_each_channel_has_a_range_of_its_own(tmp_path):
    low, high = [200.0, 2e7], [320.0, 3.2e7]
    pipe = tiny(in_channels=2, normalization=FrameNormalizer.from_range(low, high))
    text = save(pipe, tmp_path)
    assert "channel by channel: 200 to 320; 2e+07 to 3.2e+07" in text
    (example,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    exec(example.replace('"."', repr(str(tmp_path))), {})  # raises if a channel is not in its range


def test_the_example_is_made_of_calls_of_this_library_only(trained):
    code = re.search(r"```python\n(.*?)```", (trained[0] / "run" / "README.md").read_text(), flags=re.DOTALL)[1]
    tree = ast.parse(code)
    calls = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    assert calls == {"MCVDPipeline.from_pretrained", "torch.rand", "pipe"}  # with units, torch.tensor and view, too


# --------------------------------------------------------------------------------------------------------------------
# Beside the paper's numbers


def test_published_numbers_belong_to_protocols_that_exist():
    content = json.loads((protocol_module.FOLDER / "published.json").read_text())
    assert set(content) - {"remark"} <= set(list_protocols()) and len(content) > 1
    for name in set(content) - {"remark"}:
        for row in published_results(name):
            assert set(row) == {"model", "metric", "samples", "value", "remark"} and row["remark"], name
            assert isinstance(row["value"], (int, float))
            family = {"fvd": "i3d", "psnr": "psnr_of_video_mse"}.get(row["metric"], row["metric"])
            measured = load_protocol(name)
            assert family in (*measured.metrics, *measured.feature_networks), (name, row)


def test_the_papers_numbers_stand_beside_the_models(run):
    (name,) = [path.parent for path in run.glob("evaluation/*-ema-*/results.json")]
    result = json.loads((name / "results.json").read_text())
    result["protocol"] |= {"name": "mcvd-kth-10-30", "label": "mcvd-kth-10-30 v1"}
    (name / "results.json").write_text(json.dumps(result))
    text = render_card(run, read_facts(run))
    section = text.split("### mcvd-kth-10-30 v1:")[1].split("## Training data")[0]
    assert "| mse | model | best of 2 | " in section
    for row in published_results("mcvd-kth-10-30"):
        line = f"| {row['metric']} | {row['model']} (paper) | {row['samples']} | {row['value']:g} | {row['remark']} |"
        assert line in section
    # They are nobody's evaluation of this model.
    assert "paper" not in ModelCard(text).data.to_yaml()


# --------------------------------------------------------------------------------------------------------------------
# The command


def test_card_takes_evaluations_of_both_weights_and_those_that_are_there_once_only(run):
    names = sorted(re.sub("-[0-9a-f]{6}$", "", path.name) for path in (run / "evaluation").iterdir())
    assert names == ["digits-of-8x12-v1-2-steps", "digits-of-8x12-v1-ema-2-steps"]
    before = (run / "README.md").read_bytes()
    assert card_command(run, "--evaluation", run.parent / "ema" / "results.parquet") == 0
    assert (run / "README.md").read_bytes() == before and len(list((run / "evaluation").iterdir())) == 2
    again = run.parent / "again"
    evaluate(run, run.parent / "protocol.yaml", again, "--variant", "ema", "--seed", 5)
    assert card_command(run, "--evaluation", again) == 0
    # Another seed is another evaluation, and stands beside the first.
    assert len(list((run / "evaluation").iterdir())) == 3 and (run / "README.md").read_bytes() != before
    found = [path.read_bytes() for path in run.glob("evaluation/*-ema-*/results.json")]
    assert len(found) == 2 and (again / "results.json").read_bytes() in found


def files_of(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refused(capsys, *words):
    """The one line that a command that does not work says."""
    assert main([str(word) for word in words]) == 1
    out, err = capsys.readouterr()
    assert "Traceback" not in err and err.count("\n") == 1 and err.startswith(f"mcvd-diffusers {words[0]}: ")
    return err


def test_an_evaluation_of_other_weights_is_refused_before_anything_is_written(trained, run, capsys):
    other = run.parent / "other"
    save(tiny(sample_size=[8, 12]), other)
    before = files_of(other)
    message = refused(capsys, "card", other, "--evaluation", trained[0] / "ema", trained[0] / "raw")
    assert "is of other weights" in message and files_of(other) == before
    plain = run.parent / "without_evaluation"
    before = files_of(plain)
    (run.parent / "half").mkdir()
    shutil.copy(run.parent / "raw" / "results.parquet", run.parent / "half")
    for place, words in (
        (run.parent / "nowhere", "does not exist"),
        (run, "without results.parquet"),
        (run.parent / "half", "the evaluation has not finished"),
    ):
        message = refused(capsys, "card", plain, "--evaluation", run.parent / "ema", place)
        assert words in message
    assert {name for name in files_of(plain) if "evaluation" not in name.parts} == set(before)
    assert all(files_of(plain)[name] == before[name] for name in before)


def test_card_takes_names_licences_and_notes(run, tmp_path):
    (tmp_path / "notes.md").write_text("Trained for *a test*.\n\nSee | this.\n")
    words = (
        "--name",
        "squares|<b>",
        "--license",
        "cc-by-4.0",
        "--data_license",
        "CC0",
        "--notes",
        tmp_path / "notes.md",
    )
    assert card_command(run, *words) == 0
    text = (run / "README.md").read_text()
    assert "## Notes\n\nTrained for *a test*.\n\nSee | this.\n" in text and "| licence | CC0 |" in text
    assert "# squares??b?: MCVD, " in text and ModelCard(text).data.license == "cc-by-4.0"
    assert "Licence: cc-by-4.0." in text
    assert card_command(run) == 0 and (run / "README.md").read_text() == text  # they stay


def test_a_card_that_somebody_wrote_is_kept(run):
    (run / "README.md").write_text("mine")
    assert card_command(run) == 0
    assert (run / "README.md.before").read_text() == "mine" and "MCVD" in (run / "README.md").read_text()
    assert card_command(run) == 0 and not (run / "README.md.before-2").exists()  # this one was ours
    (run / "README.md").write_text("mine, too")
    assert card_command(run) == 0
    assert (run / "README.md.before").read_text() == "mine"
    assert (run / "README.md.before-2").read_text() == "mine, too"


@pytest.mark.parametrize("variant", [None, "ema"])
def test_a_pipeline_without_a_card_gets_one(variant, tmp_path, capsys):
    PIPELINES[0].make().save_pretrained(tmp_path / "plain", variant=variant)
    assert card_command(tmp_path / "plain") == 0
    text = (tmp_path / "plain" / "README.md").read_text()
    assert "# plain: MCVD, 8x8" in text and "Not stated by who published this model." in text
    assert ('variant="ema"' in text) == (variant == "ema")
    assert "knows of no evaluation" in text and "No licence of the weights is stated." in text
    assert "mcvd-diffusers verify" in capsys.readouterr().out
    assert main(["verify", str(tmp_path / "plain"), "--skip_example"]) == 0


@pytest.mark.parametrize(
    ("system", "config", "paper", "sees"),
    [
        ("FDM", {"has_frame_gaps": True}, "2205.11495", "any of which may be given"),
        ("RaMViD", {}, "2206.07696", "any of which may be given"),
        ("VDM", {"drop_observed": 1.0}, "2204.03458", "was never given any in training: generation."),
    ],
)
def test_a_network_of_windows_is_described_as_its_systems(system, config, paper, sees, tmp_path):
    network = SpaceTimeUNetModel(**SMALL_SPACE_TIME, **SYSTEMS[system.lower()] | config)
    options = {"replacement": "noised", "reconstruction_guidance": 1.0} if system == "VDM" else {}
    MCVDPipeline(network, DDIMScheduler(), frame_schedule="autoreg", **options).save_pretrained(tmp_path / "mine")
    assert card_command(tmp_path / "mine") == 0
    text = (tmp_path / "mine" / "README.md").read_text()
    assert f"# mine: {system}, 8x8" in text and f"[{system}](https://arxiv.org/abs/{paper})" in text and sees in text
    assert text.count("| infilling, temporal super-resolution | `observed_frames`") == 1
    assert text.count("| spatial super-resolution |") == 1 and "window by window" in text
    by_guidance = text.partition("They are put in at sampling, by replacement and guidance")[2]
    assert ("| prediction | past frames |" in by_guidance) == (system == "VDM")
    assert ("Frames of a window are neighbours" in text) == (system != "FDM")
    assert main(["verify", str(tmp_path / "mine"), "--skip_example"]) == 0


def test_what_is_no_pipeline_gets_no_card(run, tmp_path, capsys):
    assert "is no folder" in refused(capsys, "card", tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    refused(capsys, "card", tmp_path / "empty")
    assert not list((tmp_path / "empty").iterdir())
    assert "notes.md" in refused(capsys, "card", run, "--notes", tmp_path / "notes.md")
    (run / "model_card.json").unlink()
    config = json.loads((run / "unet" / "config.json").read_text())
    del config["drop_past"]
    (run / "unet" / "config.json").write_text(json.dumps(config))
    assert "drop_past" in refused(capsys, "card", run)
    (run / "unet" / "config.json").write_text(json.dumps(config | {"drop_past": 0.5, "conditioning": "x"}))
    assert "conditioning" in refused(capsys, "card", run)
    (run / "model_index.json").unlink()
    assert "holds no pipeline" in refused(capsys, "card", run)


def test_facts_that_were_changed_are_not_taken_and_the_way_out_works(run, capsys):
    text = (run / "model_card.json").read_text()
    (run / "model_card.json").write_text(text.replace('"updates": 2', '"updates": 3'))
    message = refused(capsys, "card", run)
    assert "was changed after it was written" in message and "remove it" in message
    (run / "model_card.json").unlink()
    assert card_command(run) == 0 and (run / "README.md.before").exists()
    assert read_facts(run).training == {} and main(["verify", str(run), "--skip_example"]) == 0


def test_facts_that_make_no_card_are_refused_before_anything_is_written(run):
    before = files_of(run)
    facts = read_facts(run)
    facts.samples = {"../outside.gif": "what is not ours"}
    with pytest.raises(CardError, match="samples"):
        write_card(run, facts)
    facts.samples = {"samples/not-there.gif": "nothing"}
    with pytest.raises(CardError, match="must be a regular file"):
        write_card(run, facts)
    assert files_of(run) == before


def test_help_of_the_commands_names_every_option(capsys):
    for command, options in {
        "card": ("--evaluation", "--name", "--license", "--data_license", "--notes"),
        "verify": ("--revision", "--data", "--data_flags", "--skip_example"),
    }.items():
        with pytest.raises(SystemExit) as end:
            main([command, "--help"])
        assert end.value.code == 0 and all(option in capsys.readouterr().out for option in options[:1])


# --------------------------------------------------------------------------------------------------------------------
# A network with a context encoder


DESCRIPTIONS = {
    "lgcvd": (
        "# tiny: LGC-VD, 8x8",
        "[LGC-VD](https://arxiv.org/abs/2306.02562)",
        "It makes 4 neighbouring frames at a time, of which it is shown 2 at most, and has a memory of those before:"
        " prediction, past prediction, interpolation, generation.",
        "yang2023video",
    ),
    "rvd": (
        "# tiny: RVD, 8x8",
        "[RVD](https://arxiv.org/abs/2203.09481)",
        "It makes 1 frame at a time, of what recurrent networks know of all frames before, of each of which a recurrent"
        " network has predicted a part: prediction.",
        "yang2022diffusion",
    ),
    "memory": ("# tiny: MCVD, 8x8", "and has a memory of those before: prediction", "a memory", "yang2023video"),
    "residual": ("# tiny: MCVD, 8x8", "a recurrent network has predicted a part: prediction", "yang2022diffusion"),
}


@pytest.mark.parametrize("kind", CONTEXTS)
def test_a_network_with_a_context_encoder_is_described_with_both(kind, tmp_path):
    pipe = context_pipeline(kind)
    text = save(pipe, tmp_path)
    facts, networks = read_facts(tmp_path), (pipe.unet, pipe.context_encoder)
    for words in DESCRIPTIONS[kind]:
        assert words in text
    assert text.count("```bibtex") == 2 and "voleti2022mcvd" in text
    assert facts.num_parameters == sum(x.numel() for network in networks for x in network.parameters())
    assert f"| network | UNet and context encoder, {facts.num_parameters:,} parameters" in text
    assert "`context_encoder/diffusion_pytorch_model.safetensors`" in text
    assert main(["verify", str(tmp_path), "--skip_example"]) == 0


@pytest.mark.parametrize("kind", CONTEXTS)
def test_the_example_of_a_network_with_a_context_encoder_runs_as_it_stands(kind, tmp_path, monkeypatch):
    text = save(context_pipeline(kind), tmp_path)
    (example,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    shown = {}
    monkeypatch.chdir(tmp_path)
    exec(example.replace("video = pipe", "shown[len(shown)] = pipe"), {"shown": shown})
    lengths = {"lgcvd": [4, 2, 2, 4], "rvd": [8], "memory": [4, 2, 2, 4], "residual": [4, 2, 2, 4]}
    assert [video.shape[1] for video in shown.values()] == lengths[kind]
    assert all(video.isfinite().all() for video in shown.values())


def test_a_network_that_only_generates_one_window_promises_no_more(tmp_path, monkeypatch):
    text = save(context_pipeline("lgcvd", drop_observed=1.0, task_shares=(0.0, 1.0, 0.0, 0.0)), tmp_path)
    assert "| generation | nothing | videos of 4 frames |" in text and "any number" not in text
    assert "past =" not in text and "window by window" not in text and "num_frames=4, batch_size=4" in text
    assert ModelCard.load(tmp_path / "README.md").data.pipeline_tag == "unconditional-image-generation"
    (example,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(example, {})


def test_a_card_promises_the_tasks_of_training_only(tmp_path):
    text = save(
        context_pipeline("lgcvd", drop_observed=0.0, task_shares=(1.0, 0.0, 0.0, 0.0)), tmp_path / "prediction"
    )
    assert "| prediction | 2 past frames, or more | any number of frames after them |" in text
    assert "infilling" not in text and "a memory of those before" in text
    text = save(context_pipeline("lgcvd", drop_observed=0.0, task_shares=(0.5, 0.0, 0.5, 0.0)), tmp_path / "both")
    assert "| interpolation | a past and a future frame | the 2 between them |" in text and "infilling" not in text
    text = save(context_pipeline("lgcvd", drop_observed=1.0, task_shares=(0.0, 1.0, 0.0, 0.0)), tmp_path / "one")
    assert "a memory of those before" not in text
    assert "infilling" in save(context_pipeline("lgcvd"), tmp_path / "all")
    alone = tiny(num_past_frames=0, num_future_frames=0)
    text = save(alone, tmp_path / "generation")
    assert "blocks that know nothing of each other" in text and "given none" in text


def test_with_one_given_frame_there_is_no_interpolation(tmp_path):
    text = save(context_pipeline("lgcvd", num_context_frames=1), tmp_path)
    assert read_facts(tmp_path).tasks == ["prediction", "past prediction", "generation"]
    assert "interpolation" not in text.partition("## Use")[2].partition("## ")[0]


def test_a_digest_is_of_the_weights_of_both(tmp_path):
    pipe, digests = context_pipeline("lgcvd"), []
    alone = tiny()
    alone.save_pretrained(tmp_path / "alone")
    assert tensors_digest(tmp_path / "alone", None) == weights_digest(alone.unet.state_dict())
    for number, change in enumerate((lambda: None, lambda: move(pipe.context_encoder), lambda: move(pipe.unet))):
        change()
        pipe.save_pretrained(tmp_path / str(number), max_shard_size=["10GB", "20KB", "10GB"][number])
        digests.append(tensors_digest(tmp_path / str(number), None))
        state = {name: getattr(pipe, name).state_dict() for name in ("unet", "context_encoder")}
        assert digests[-1] == networks_digest(state)
    assert len(set(digests)) == 3 and len(list((tmp_path / "1" / "context_encoder").glob("*-of-*"))) > 1


def test_a_variant_of_one_network_goes_with_the_other_as_it_is_loaded(tmp_path):
    pipe = context_pipeline("lgcvd")
    pipe.save_pretrained(tmp_path)
    move(pipe.unet)
    pipe.unet.save_pretrained(tmp_path / "unet", variant="ema")
    loaded = MCVDPipeline.from_pretrained(tmp_path, variant="ema")
    state = {name: getattr(loaded, name).state_dict() for name in ("unet", "context_encoder")}
    assert tensors_digest(tmp_path, "ema") == networks_digest(state) != tensors_digest(tmp_path, None)
    write_card(tmp_path, CardFacts(name="tiny", tasks=["prediction"], variant="ema"))
    assert set(read_facts(tmp_path).tensors) == {"", "ema"}
    for path in (tmp_path / "context_encoder").glob("*.safetensors"):
        path.unlink()
    with pytest.raises(CardError, match="no weights of variant 'ema' in .*context_encoder"):
        tensors_digest(tmp_path, "ema")
    with pytest.raises(CardError, match="no weights.*context_encoder"):
        write_card(tmp_path, read_facts(tmp_path))


@pytest.mark.parametrize("name", ["max_frames", "num_context_frames"])
@pytest.mark.parametrize("value", ["1); evil(", 1.5, True, None, [4], -1, 10**9])
def test_numbers_that_become_code_are_numbers(name, value, tmp_path):
    save(context_pipeline("lgcvd"), tmp_path)
    config = json.loads((tmp_path / "unet" / "config.json").read_text())
    (tmp_path / "unet" / "config.json").write_text(json.dumps(config | {name: value}))
    with pytest.raises(ValueError, match=f"`{name}` must be a number"):
        render_card(tmp_path, read_facts(tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "seconds"),
    [("lgcvd", "(2 frames, 2 steps, one at a time)"), ("rvd", "(1 frame, 2 steps, one at a time)")],
)
def test_a_run_with_a_context_encoder_says_what_it_made(method, seconds, tmp_path):
    shape = {"resolution": 16, "block_out_channels": [8, 16], "num_train_clips": 8, "checkpointing_steps": 2}
    own = {"lgcvd": {"max_frames": 4, "attention_head_dim": 8}, "rvd": {"clip_frames": 5}}[method]
    settings = {
        "train_batch_size": 2,
        "max_train_steps": 4,
        "num_validation_videos": 2,
        "validation_inference_steps": 2,
    }
    words = [f"--method={method}", "--report_to=none", "--lr_warmup_steps=1", "--digit_size=6"]
    for name, value in (shape | own | settings).items():
        words += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    try:
        train_mcvd.main(train_mcvd.parse_args([*words, "--output_dir", str(tmp_path / "run")]))
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
    text = (tmp_path / "run" / "README.md").read_text()
    assert seconds in text and f"| `method` | {method} |" in text
    assert main(["verify", str(tmp_path / "run"), "--skip_example"]) == 0
