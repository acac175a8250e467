"""What goes wrong around a training run, each as a whole run: disks, data, processes, signals, memory."""

import contextlib
import json
import logging
import multiprocessing
import os
import re
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from accelerate.tracking import TensorBoardTracker
from safetensors.torch import load_file

import train_mcvd
from mcvd_diffusers import MCVDPipeline, training_data
from mcvd_diffusers.checkpointing import list_checkpoints, read_state, verify_checkpoint
from mcvd_diffusers.data import MovingDigits
from mcvd_diffusers.folder_lock import LOCK_NAME, FolderLock


ROOT = Path(__file__).parents[1]
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="faults are made with Linux's means")
NUM_UPDATES = 6
SETTINGS = {
    "resolution": 16,
    "num_past_frames": 2,
    "num_frames": 2,
    "num_future_frames": 1,
    "block_out_channels": [8, 8],
    "dropout": 0.1,
    "train_batch_size": 2,
    "num_train_clips": 20,
    "max_train_steps": NUM_UPDATES,
    "lr_warmup_steps": 2,
    "logging_steps": 1,
    "checkpointing_steps": 2,
    "checkpoints_total_limit": 0,
    "num_validation_videos": 0,
    "report_to": "none",
}


@pytest.fixture(autouse=True)
def forget_accelerator():
    """Accelerate's state is one for the process; each test starts without."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def flags(output_dir, **settings):
    settings = {**SETTINGS, **settings, "output_dir": output_dir}
    return [
        word
        for name, value in settings.items()
        for word in (f"--{name}", *map(str, value if isinstance(value, list) else [value]))
    ]


def train(output_dir, **settings):
    """Train in this process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    return train_mcvd.main(train_mcvd.parse_args(flags(output_dir, **settings)))


def resume(output_dir, **settings):
    return train(output_dir, resume_from_checkpoint="latest", **settings)


def state_of(checkpoint):
    """Weights, average, moments and place in the data of a checkpoint that verifies, to the last bit."""
    manifest = verify_checkpoint(checkpoint)
    tensors = {name: facts["sha256"] for name, facts in manifest["files"].items() if name.endswith(".safetensors")}
    assert len(tensors) == 3
    return tensors, manifest["update"], manifest["num_samples"]


def assert_finished_alike(folder, other, num_updates=NUM_UPDATES):
    name = f"checkpoint-{num_updates}"
    assert state_of(folder / name) == state_of(other / name)
    for variant in (None, "ema"):
        pipelines = [MCVDPipeline.from_pretrained(path, variant=variant) for path in (folder, other)]
        ours, theirs = (pipeline.unet.state_dict() for pipeline in pipelines)
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def assert_only_whole_checkpoints(folder):
    """Nothing half-written is left that could be taken for a checkpoint; returns the newest one."""
    found = list_checkpoints(folder)
    for checkpoint in found:
        verify_checkpoint(checkpoint)
    return found[0] if found else None


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """The run that all others must equal."""
    return train(tmp_path_factory.mktemp("uninterrupted") / "out")


class At(logging.Handler):
    """Does something when the log says certain words, once."""

    def __init__(self, words, action):
        super().__init__()
        self.words, self.action = words, action

    def emit(self, record):
        if self.words is not None and self.words in record.getMessage():
            self.words = None
            self.action()


@contextlib.contextmanager
def at(words, action):
    handler = At(words, action)
    logging.getLogger("train_mcvd").addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger("train_mcvd").removeHandler(handler)
    assert handler.words is None, f"the log never said {words}"


# --------------------------------------------------------------------------------------------------------------------
# Runs in processes of their own

SCRIPT = """
import logging, os, runpy, signal, sys, time
from pathlib import Path
here = Path({folder!r})
log = os.open(here / {log!r}, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
os.dup2(log, 1), os.dup2(log, 2)
sys.path[:0] = [{root!r}, {tests!r}]
sys.argv = ["train_mcvd.py", *{arguments!r}]

def wait_for(name):
    while not (here / name).exists():
        time.sleep(0.01)

def pause(name="paused"):
    (here / name).touch()
    wait_for("go")

class At(logging.Handler):
    def __init__(self, words, action):
        super().__init__()
        self.words, self.action = words, action
        logging.getLogger("train_mcvd").addHandler(self)

    def emit(self, record):
        if self.words is not None and self.words in record.getMessage():
            self.words = None
            self.action()

{before}
runpy.run_path({script!r}, run_name="__main__")
"""


class Run:
    """
    A training in a process of its own, leader of a group of its own.

    Args:
        folder: Where the run's folder `out`, its log and its script go.
        before: What the process does first, to bring the fault about. It knows `At(words, action)`, which acts when the log
            says so, and `pause()`, which waits for `go`.
        launcher: Words of a command that starts the script. Without, it is forked off a process that has imported everything
            already, which saves ten seconds.
    """

    def __init__(self, folder, before="", launcher=None, log="log", **settings):
        folder.mkdir(exist_ok=True)
        self.here, self.out, self.log = folder, folder / "out", folder / log
        for name in ("paused", "go"):
            (folder / name).unlink(missing_ok=True)
        text = SCRIPT.format(
            folder=str(folder),
            log=log,
            root=str(ROOT),
            tests=str(ROOT / "tests"),
            arguments=flags(self.out, **settings),
            before=before,
            script=str(ROOT / "train_mcvd.py"),
        )
        script = folder / f"{log}.py"
        self.log.unlink(missing_ok=True)
        if launcher is None:
            script.write_text(f"import os\nos.setsid()\n{text}")
            context = multiprocessing.get_context("forkserver")
            context.set_forkserver_preload(["train_mcvd"])
            self._process = context.Process(target=runpy.run_path, args=(str(script),))
            self._process.start()
        else:
            script.write_text(text)
            environment = {**os.environ, "ACCELERATE_USE_CPU": "true"}
            self._process = subprocess.Popen([*launcher, script], env=environment, start_new_session=True, cwd=ROOT)
        self.pid = self._process.pid

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self._code() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)

    def _code(self):
        return self._process.exitcode if hasattr(self._process, "exitcode") else self._process.poll()

    def text(self):
        return self.log.read_text() if self.log.exists() else ""

    def wait_until(self, is_so, seconds=90):
        end = time.monotonic() + seconds
        while not is_so():
            assert self._code() is None, f"it ended with {self._code()}:\n{self.text()}"
            assert time.monotonic() < end, f"not within {seconds} s:\n{self.text()}"
            time.sleep(0.02)

    def wait_until_log_says(self, words):
        self.wait_until(lambda: words in self.text())

    def wait_until_paused(self):
        self.wait_until((self.here / "paused").exists)

    def go(self):
        (self.here / "go").touch()

    def kill(self, number=signal.SIGTERM):
        os.kill(self.pid, number)

    def wait(self, seconds=90):
        """The exit code."""
        self._process.join(seconds) if hasattr(self._process, "join") else self._process.wait(seconds)
        assert self._code() is not None, f"still there after {seconds} s:\n{self.text()}"
        return self._code()
