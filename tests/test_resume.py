"""A run that was stopped and goes on is the run that was never stopped: to the last bit, wherever it was stopped."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

import train_mcvd
from mcvd_diffusers.checkpointing import AVERAGED_WEIGHTS, OPTIMIZER, WEIGHTS, list_checkpoints, read_state, update_of
from mcvd_diffusers.folder_lock import LOCK_NAME
from mcvd_diffusers.interruption import StopSignals
from mcvd_diffusers.train_settings import SETTINGS_FILE
from mcvd_diffusers.training_log import Trackers


ROOT = Path(__file__).parents[1]
NETWORK = {
    "resolution": 16,
    "num_past_frames": 2,
    "num_frames": 2,
    "num_future_frames": 1,
    "block_out_channels": [8, 8],
    "report_to": "none",
    "logging_steps": 1,
}
# Six clips an epoch and four an update: epochs end within a batch, and, after updates 3 and 6, between two.
# Dropout has the only random numbers that depend on how a batch is divided.
BASE = {
    **NETWORK,
    "dropout": 0.1,
    "num_train_clips": 6,
    "train_batch_size": 4,
    "max_train_steps": 5,
    "lr_warmup_steps": 2,
    "checkpointing_steps": 2,
    "validation_steps": 2,
    "num_validation_videos": 1,
    "validation_inference_steps": 2,
}
# Clips divided in another way give gradients that differ by rounding. One near zero then has another sign, and Adam moves
# by the sign, so that weights drift apart; a large epsilon makes its step smooth.
SMOOTH = {
    **NETWORK,
    "num_train_clips": 20,
    "train_batch_size": 8,
    "max_train_steps": 6,
    "lr_warmup_steps": 2,
    "adam_epsilon": 1e-2,
    "learning_rate": 1e-2,
    "num_validation_videos": 0,
}

LOGGED: dict[Path, dict[int, dict[str, float]]] = {}
"""What each run in this process sent to its trackers: folder -> update -> values."""


class RecordingTrackers(Trackers):
    """Remembers the values, of which the log shows four digits."""

    folder: Path

    def log(self, values, step):
        super().log(values, step)
        if "loss" in values:
            assert step not in LOGGED.setdefault(self.folder, {}), "an update was made twice"
            LOGGED[self.folder][step] = values


def as_flags(settings):
    values = {name: x if isinstance(x, list) else [x] for name, x in settings.items()}
    return [str(x) for name, value in values.items() for x in (f"--{name}", *value)]


def parse(**settings):
    return train_mcvd.parse_args(as_flags(settings))


def train(output_dir, *, stop_in=None, stop_on_rank=0, stop=None, is_error=False, **settings):
    """
    Train in this process.

    `stop_in` is the micro-batch of this start, from 1, in which `stop_on_rank` is asked to stop; `"validation"` is in the
    middle of the first validation. With `is_error` something then goes wrong instead, which saves nothing.
    """
    stop, count = stop or StopSignals(), 0
    draw_timesteps, make_validation_videos = train_mcvd.draw_timesteps, train_mcvd.make_validation_videos

    def draw_and_ask(*args, **options):  # once for each micro-batch
        nonlocal count
        count += 1
        if count == stop_in and int(os.environ.get("RANK", 0)) == stop_on_rank:
            if is_error:
                raise KeyboardInterrupt
            stop.ask()
        return draw_timesteps(*args, **options)

    def make_videos_and_ask(*args, is_stop_asked, **options):
        num_asked = 0

        def ask_in_the_second_task():  # asked before each task, and after each of its two steps
            nonlocal num_asked
            num_asked += 1
            if stop_in == "validation" and num_asked == 5:
                stop.ask()
            return is_stop_asked()

        return make_validation_videos(*args, is_stop_asked=ask_in_the_second_task, **options)

    recording = type("Recording", (RecordingTrackers,), {"folder": Path(output_dir)})
    replaced = {"draw_timesteps": draw_and_ask, "make_validation_videos": make_videos_and_ask, "Trackers": recording}
    try:
        with mock.patch.multiple(train_mcvd, **replaced):
            return train_mcvd.main(parse(output_dir=output_dir, **settings), stop)
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)  # one for the process; a run begins without


def train_with_stops(output_dir, *stops, accumulation=1, again=None, **settings):
    """A run that is stopped so often, and goes on with nothing but its folder's name (and `again`)."""
    update = 0
    for stop in (*stops, None):
        settings["resume_from_checkpoint"] = "latest"
        is_finished = train(output_dir, stop_in=stop, **settings) is not None
        settings = dict(again or {})
        if stop is None:
            assert is_finished
            return output_dir
        # The update that a micro-batch belongs to is given up, unless it is complete by then.
        update += 2 if stop == "validation" else stop // accumulation
        assert not is_finished and update_of(list_checkpoints(output_dir)[0]) == update


def tensors(folder):
    """All tensors of the last checkpoint."""
    checkpoint = list_checkpoints(folder)[0]
    files = checkpoint.rglob("*.safetensors")
    return {(str(file.relative_to(checkpoint)), name): x for file in files for name, x in load_file(file).items()}


def assert_same_training(folder, other, has_average=True):
    """Equal to the last bit: raw and averaged weights, optimizer, what was logged, and the last videos."""
    first, second = tensors(folder), tensors(other)
    assert {file for file, _ in first} == {WEIGHTS, OPTIMIZER} | ({AVERAGED_WEIGHTS} if has_average else set())
    assert first.keys() == second.keys()
    assert {name for name in first if not torch.equal(first[name], second[name])} == set()
    last, other_last = (list_checkpoints(each)[0] for each in (folder, other))
    assert last.name == other_last.name
    progress, other_progress = (read_state(each)["progress"] for each in (last, other_last))
    assert progress | {"seconds": 0} == other_progress | {"seconds": 0}
    assert videos(folder, update_of(last)) == videos(other, update_of(last))
    for each in (folder, other):  # the pipeline that is left at the end
        for name in {file for file, _ in first} - {OPTIMIZER}:
            assert (each / name).read_bytes() == (last / name).read_bytes()
    if folder in LOGGED and other in LOGGED:
        for update, values in LOGGED[folder].items():
            for name in ("loss", "grad_norm", "learning_rate"):
                assert values[name] == LOGGED[other][update][name], (update, name)
        assert LOGGED[folder].keys() == LOGGED[other].keys()


def videos(folder, update):
    return {path.name: path.read_bytes() for path in (folder / "samples" / f"step-{update}").glob("*.gif")}


def assert_same_losses(log, other):
    """But for rounding, at every update."""
    assert log.keys() == other.keys() and len(log) == SMOOTH["max_train_steps"]
    for update in log:
        assert log[update]["loss"] == pytest.approx(other[update]["loss"], rel=1e-5), update


def contents(folder):
    """Bytes and time of change of every file; the lock's time is that of the last process that held it."""
    return {
        path.relative_to(folder): (path.read_bytes(), path.name == LOCK_NAME or path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file()
    }


@contextlib.contextmanager
def refused(capsys, *words):
    """As a setting is refused: a message, that says all of this."""
    with pytest.raises(SystemExit) as error:
        yield
    assert error.value.code == 2
    message = capsys.readouterr().err
    for word in words:
        assert word in message


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def uninterrupted(folder):
    """Runs that are never stopped, each made once."""
    made = {}

    def make(**settings):
        key = json.dumps(settings, sort_keys=True, default=str)
        if key not in made:
            made[key] = train(folder / f"uninterrupted-{len(made)}", **settings)
        return made[key]

    return make


@pytest.fixture(scope="module")
def stopped(folder):
    """A run that was stopped after update 3, not to be changed."""
    assert train(folder / "stopped", stop_in=3, **BASE) is None
    assert [path.name for path in list_checkpoints(folder / "stopped")] == ["checkpoint-3", "checkpoint-2"]
    return folder / "stopped"


# --------------------------------------------------------------------------------------------------------------------
# Wherever it was stopped

ACCUMULATION_4 = {"train_batch_size": 2, "gradient_accumulation_steps": 4, "max_train_steps": 4}


@pytest.mark.parametrize(
    "workers, accumulation, stops",
    [
        pytest.param(0, 1, [1], id="within-an-epoch"),
        pytest.param(0, 1, ["validation"], id="while-videos-are-made"),
        pytest.param(2, 1, [1, 3], id="twice-with-workers"),
        pytest.param(0, 4, [6], id="within-a-window"),
        pytest.param(2, 4, [3], id="before-the-first-update-with-workers"),
        pytest.param(2, 1, [3], id="at-an-epochs-edge-with-workers", marks=pytest.mark.slow),
        pytest.param(2, 1, ["validation", 1, 1], id="three-times-with-workers", marks=pytest.mark.slow),
        pytest.param(0, 4, [12], id="at-an-epochs-edge-and-a-windows", marks=pytest.mark.slow),
        pytest.param(0, 4, ["validation", 2, 5], id="thrice-within-a-window", marks=pytest.mark.slow),
        pytest.param(2, 4, [5, 7], id="twice-within-a-window-with-workers", marks=pytest.mark.slow),
    ],
)
def test_resume_equals_uninterrupted(workers, accumulation, stops, uninterrupted, tmp_path):
    """Also of a run without workers: they change nothing."""
    settings = BASE | (ACCUMULATION_4 if accumulation == 4 else {})
    whole = uninterrupted(**settings)
    train_with_stops(tmp_path / "out", *stops, accumulation=accumulation, **settings, dataloader_num_workers=workers)
    assert_same_training(tmp_path / "out", whole)
    if "validation" in stops:  # the task in which it was asked was given up
        assert len(videos(tmp_path / "out", 2)) == 1 < len(videos(whole, 2))


def test_resume_at_an_epochs_edge_takes_its_settings_from_the_checkpoint(stopped, uninterrupted, tmp_path):
    shutil.copytree(stopped, tmp_path / "out")
    manifest = json.loads((stopped / "checkpoint-3" / "manifest.json").read_text())
    assert (manifest["epoch"], manifest["position_in_epoch"]) == (2, 0)
    train(tmp_path / "out", resume_from_checkpoint="latest")
    whole = uninterrupted(**BASE)
    assert LOGGED[tmp_path / "out"] .keys() == {4, 5}
    for update, values in LOGGED[tmp_path / "out"].items():
        assert values["loss"] == LOGGED[whole][update]["loss"]
    del LOGGED[tmp_path / "out"]
    assert_same_training(tmp_path / "out", whole)
    settings, expected = (read_state(list_checkpoints(each)[0])["settings"] for each in (tmp_path / "out", whole))
    own = ("output_dir", "resume_from_checkpoint")
    assert {name: x for name, x in settings.items() if name not in own} == {
        name: x for name, x in expected.items() if name not in own
    }
