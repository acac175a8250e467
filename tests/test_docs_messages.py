"""docs/troubleshooting.md quotes messages that the library really gives: some are provoked here, all are found in the sources."""

import ast
import contextlib
import functools
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler

import train_mcvd
from mcvd_diffusers import MCVDPipeline, MCVDUNet2DModel
from mcvd_diffusers.cli import main


ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text()
QUOTES = [" ".join(quote.split()) for quote in re.findall(r"^```text\n(.*?)^```", PAGE, re.M | re.S)]
SOURCES = [ROOT / "train_mcvd.py", *sorted((ROOT / "mcvd_diffusers").rglob("*.py"))]

# What stands in place of a value may be anything of so many words; more must be a message, too. Texts of fewer letters are none.
MOST_WORDS, LEAST_LETTERS = 4, 8


def parts_of(node: ast.AST) -> list[str]:
    """The text that a piece of source writes, cut where values stand."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return [node.value]
    if isinstance(node, ast.JoinedStr):
        pieces = node.values
    elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        pieces = [node.left, node.right]
    else:
        return ["", ""]
    parts = [""]
    for first, *rest in map(parts_of, pieces):
        parts = [*parts[:-1], parts[-1] + first, *rest]
    return parts


@functools.cache
def templates() -> set[tuple[str, ...]]:
    """All texts of the sources."""
    nodes = (node for path in SOURCES for node in ast.walk(ast.parse(path.read_text())))
    found = {tuple(re.sub(r"\s+", " ", part) for part in parts_of(node)) for node in nodes}
    return {parts for parts in found if len("".join(parts).strip()) >= LEAST_LETTERS}


def reads_as(
    text: str, parts: Sequence[str], *, is_cut: bool = False, is_value: Callable = lambda value: True
) -> bool:
    """Whether a text is these parts with values between them; one that is cut may end before they do."""

    @functools.cache
    def fits(start: int, number: int) -> bool:  # the rest of the text, and the part of this number with all after it
        part = parts[number]
        if is_cut and part.startswith(text[start:]):
            return True
        if not text.startswith(part, start):
            return False
        start += len(part)
        if number == len(parts) - 1:
            return start == len(text)
        ends = range(start, len(text) + 1)
        return any(fits(end, number + 1) and is_value(text[start:end]) for end in ends)

    return fits(0, 0)


@functools.cache
def is_message(text: str) -> bool:
    """Whether the sources write it, but for values and for what is left out in their place or at the end: `...`."""
    is_cut = text.endswith("...")
    text = text.removesuffix("...")
    return any(
        reads_as(text, parts, is_cut=is_cut, is_value=is_value)
        for parts in templates()
        if max(parts, key=len) in text or (is_cut and any(len(x) >= LEAST_LETTERS and x in text for x in parts))
    )


def is_value(text: str) -> bool:
    """Whether it may stand where the sources have a value."""
    if sum(bool(re.search("[a-zA-Z]", word)) for word in text.split()) <= MOST_WORDS:
        return True
    # Videos that were refused are listed, each with its message in brackets.
    return is_message(re.sub(r"^(\S+) \((.*)\)(; \.*)?$", r"\1 \2", text))


@pytest.mark.parametrize("quote", QUOTES, ids=[quote[:50] for quote in QUOTES])
def test_quoted_messages_stand_in_the_sources(quote):
    assert is_message(quote)


@pytest.mark.parametrize(
    ("said", "instead"),
    [
        ("which is not installed", "that could not be found"),
        ("Leave `frame_schedule` out", "Set `frame_schedule` to None"),
        ("pass the last 5 of each video", "pass the first 5 of each video or a mask"),
        ("Get the file again", "Get the file from somewhere else"),
        ("it has another noise schedule than", "it has not the noise schedule that"),
        ("state the range of the values", "divide the values by 255"),
    ],
)
def test_a_message_that_nobody_gives_is_noticed(said, instead):
    quote = next(quote for quote in QUOTES if said in quote)
    assert not is_message(quote.replace(said, instead))


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


def assert_quoted(message: str) -> None:
    """The page has it, but for what it leaves out."""
    message = " ".join(message.split())
    assert any(reads_as(message, [part.strip() for part in quote.split("...")]) for quote in QUOTES), message


@contextlib.contextmanager
def refused_as_quoted():
    """What is done here ends with an error that the page has."""
    with pytest.raises(ValueError) as caught:
        yield
    assert_quoted(str(caught.value))


@pytest.mark.parametrize("name", CALLS)
def test_provoked_messages_of_calls_are_quoted(name):
    with refused_as_quoted():
        raise_calling(**CALLS[name])


@pytest.mark.parametrize(
    "arguments", [{"num_frames": 2}, {"future_frames": PAST[..., :8, :8]}], ids=["generate", "past"]
)
def test_a_network_that_always_had_a_past_refuses_as_quoted(arguments):
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
    with refused_as_quoted():
        MCVDPipeline(unet, DDIMScheduler())(**arguments)


FLAGS = {
    "no data": ["--preset", "kth-concat-p10k5", "--output_dir", "run"],
    "a sampler that does not fit": [
        *["--prediction_type", "edm", "--sampling_scheduler", "DDIMScheduler", "--output_dir", "run"]
    ],
    "a stream": [
        *["--dataset_name", "a/b", "--streaming", "True", "--normalization", "min_max", "--output_dir", "run"]
    ],
    "a folder that is not empty": ["--output_dir", "runs/mine"],
}


@pytest.mark.parametrize("name", FLAGS)
def test_provoked_messages_of_flags_are_quoted(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    (tmp_path / "runs" / "mine" / "model_index.json").write_text("{}")
    with pytest.raises(SystemExit):
        train_mcvd.parse_args([*FLAGS[name], "--report_to", "none"])
    assert_quoted(capsys.readouterr().err.split(": error: ")[-1])


COMMANDS = {
    "more given than are read": ["predict", "long.npy", "--num_given", "8"],
    "a short clip": ["predict", "short.npy"],
    "a gap at the edge": ["interpolate", "long.npy", "--gap", "2"],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_provoked_messages_of_commands_are_quoted(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "checkpoints").symlink_to(ROOT / "checkpoints")
    for name_of, num_frames in (("short.npy", 4), ("long.npy", 20)):
        np.save(name_of, np.zeros((num_frames, 64, 64), dtype="float32"))
    command, clip, *flags = COMMANDS[name]
    words = [command, "checkpoints/moving-digits", clip, "--axes", "THW", "--output", "made.npy", *flags]
    assert main(words) == 1
    assert_quoted(capsys.readouterr().err.removeprefix(f"mcvd-diffusers {command}: ").replace(clip, "clip.npy"))


def test_stored_arrays_without_axes_are_refused_as_quoted(tmp_path):
    np.save(tmp_path / "mine.npy", np.zeros((6, 53, 1, 100, 100), dtype="float32"))
    settings = train_mcvd.parse_args(
        ["--train_data_dir", str(tmp_path / "mine.npy"), "--resolution", "32", "--output_dir", str(tmp_path / "run")]
    )
    with refused_as_quoted():
        train_mcvd.make_datasets(settings, 6)
