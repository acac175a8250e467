"""docs/troubleshooting.md quotes messages that the library really gives: some are provoked here, the others found in the sources."""

import ast
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler

import train_mcvd
from mcvd_diffusers import MCVDPipeline, MCVDUNet2DModel


ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text()
QUOTES = [" ".join(quote.split()) for quote in re.findall(r"^```text\n(.*?)^```", PAGE, re.M | re.S)]
SOURCES = [ROOT / "train_mcvd.py", *sorted((ROOT / "mcvd_diffusers").rglob("*.py"))]

# A quote is found if so much of it are words of the sources; the rest are values. Shorter pieces of messages say too little.
SHARE, LEAST = 0.5, 8


@pytest.fixture(scope="module")
def templates() -> list[list[str]]:
    """The texts of the sources, each as the parts between its values."""
    found = []
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = [""]
                for value in node.values:
                    if isinstance(value, ast.Constant):
                        parts[-1] += value.value
                    else:
                        parts.append("")
                found.append(parts)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append([node.value])
    cleaned = [[part for part in parts if len(part.strip()) >= LEAST] for parts in found]
    return [parts for parts in cleaned if sum(map(len, parts)) >= 2 * LEAST]


def known_share(quote: str, templates: list[list[str]]) -> float:
    """How much of a quote stands in the sources, in their order."""
    is_known = np.zeros(len(quote), dtype=bool)
    is_left_out = np.zeros(len(quote), dtype=bool)
    for match in re.finditer(r"\.\.\.", quote):
        is_left_out[slice(*match.span())] = True
    for parts in templates:
        start, spans = 0, []
        for part in parts:
            place = quote.find(part.strip(), start)
            if place >= 0:
                spans.append((place, place + len(part.strip())))
                start = spans[-1][1]
        if len(spans) == len(parts) or ("..." in quote and spans):
            for span in spans:
                is_known[slice(*span)] = True
    return float(is_known[~is_left_out].mean())


@pytest.mark.parametrize("quote", QUOTES, ids=[quote[:50] for quote in QUOTES])
def test_quoted_messages_stand_in_the_sources(quote, templates):
    assert known_share(quote, templates) >= SHARE


def test_a_message_that_nobody_gives_is_noticed(templates):
    assert len(QUOTES) > 30
    assert (
        known_share("`past_frames` is of the wrong kind: convert every one of them by hand before.", templates) < SHARE
    )
    changed = QUOTES[0].replace("which is not installed", "that could not be found")
    assert known_share(changed, templates) < known_share(QUOTES[0], templates)


# --------------------------------------------------------------------------------------------------------------------
# Provoked


def raise_calling(**arguments) -> None:
    """Call a pipeline of the checkpoint's kind, but for its width."""
    torch.manual_seed(0)
    unet = MCVDUNet2DModel(
        sample_size=64,
        in_channels=1,
        num_past_frames=5,
        num_frames=5,
        num_future_frames=5,
        drop_past=0.2,
        drop_future=0.5,
        block_out_channels=[8],
        down_block_types=["DownBlock2D"],
        layers_per_block=1,
        prediction_type="sample",
    )
    schedule = {"prediction_type": "sample", "beta_schedule": "squaredcos_cap_v2"}
    pipe = MCVDPipeline(unet, DPMSolverMultistepScheduler(**schedule))
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = arguments.pop("scheduler", pipe.scheduler)
    pipe(past_frames=arguments.pop("past_frames", torch.rand(1, 5, 1, 64, 64)), **arguments)


PAST = torch.rand(1, 5, 1, 64, 64, generator=torch.Generator().manual_seed(0))
CALLS = {
    "too many frames": {"past_frames": np.zeros((6, 53, 1, 100, 100), dtype="float32")},
    "an axis missing": {"past_frames": np.zeros((5, 64, 64))},
    "colour": {"past_frames": torch.rand(1, 5, 3, 64, 64)},
    "integers": {"past_frames": (PAST * 255).long()},
    "missing values": {"past_frames": PAST * float("nan")},
    "other sizes": {"past_frames": PAST, "future_frames": PAST[..., :32, :32]},
    "frames from anywhere": {
        "past_frames": None,
        "observed_frames": PAST,
        "observed_positions": [0, 3, 6, 9, 12],
        "num_frames": 8,
    },
    "a frame schedule": {"num_frames": 20, "frame_schedule": "hierarchy-2"},
    "another prediction": {"scheduler": DDIMScheduler(prediction_type="epsilon")},
    "other noise": {"scheduler": DDIMScheduler(prediction_type="sample")},
    "resampling": {"num_resamples": 4, "eta": 1.0},
    "a number as a generator": {"generator": 0},
}


def is_quoted(message: str) -> bool:
    """Whether the page has it, but for what it leaves out."""
    message = " ".join(message.split())
    return any(
        re.fullmatch(r"\s*.*?\s*".join(re.escape(part.strip()) for part in quote.split("...")), message)
        for quote in QUOTES
    )


@pytest.mark.parametrize("name", CALLS)
def test_provoked_messages_of_calls_are_quoted(name):
    with pytest.raises(ValueError) as caught:
        raise_calling(**CALLS[name])
    assert is_quoted(str(caught.value)), caught.value


def test_a_network_that_always_had_a_past_refuses_to_generate_as_quoted():
    unet = MCVDUNet2DModel(
        sample_size=8,
        in_channels=1,
        num_past_frames=2,
        num_frames=2,
        num_future_frames=0,
        drop_past=0.0,
        block_out_channels=[8],
        down_block_types=["DownBlock2D"],
    )
    pipe = MCVDPipeline(unet, DDIMScheduler())
    for arguments in ({"num_frames": 2}, {"future_frames": PAST[..., :8, :8]}):
        with pytest.raises(ValueError) as caught:
            pipe(**arguments)
        assert is_quoted(str(caught.value))


FLAGS = {
    "no data": ["--preset", "kth-concat-p10k5"],
    "a sampler that does not fit": ["--prediction_type", "edm", "--sampling_scheduler", "DDIMScheduler"],
    "a stream": ["--dataset_name", "a/b", "--streaming", "True", "--normalization", "min_max"],
}


@pytest.mark.parametrize("name", FLAGS)
def test_provoked_messages_of_flags_are_quoted(name, tmp_path, capsys):
    with pytest.raises(SystemExit):
        train_mcvd.parse_args([*FLAGS[name], "--output_dir", str(tmp_path / "run"), "--report_to", "none"])
    assert is_quoted(capsys.readouterr().err.split(": error: ")[-1].strip())


def test_a_folder_that_is_not_empty_is_refused_as_quoted(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    (tmp_path / "runs" / "mine" / "model_index.json").write_text("{}")
    with pytest.raises(SystemExit):
        train_mcvd.parse_args(["--output_dir", "runs/mine"])
    assert is_quoted(capsys.readouterr().err.split(": error: ")[-1].strip())


def test_stored_arrays_without_axes_are_refused_as_quoted(tmp_path):
    np.save(tmp_path / "mine.npy", np.zeros((6, 53, 1, 100, 100), dtype="float32"))
    settings = train_mcvd.parse_args(
        ["--train_data_dir", str(tmp_path / "mine.npy"), "--resolution", "32", "--output_dir", str(tmp_path / "run")]
    )
    with pytest.raises(ValueError) as caught:
        train_mcvd.make_datasets(settings, 6)
    assert is_quoted(str(caught.value))
