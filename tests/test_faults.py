"""What goes wrong around a training run, each as a whole run: disks, data, processes, signals, memory."""

import contextlib
import itertools
import logging
import multiprocessing
import multiprocessing.connection
import os
import re
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from accelerate.tracking import TensorBoardTracker
from safetensors.torch import load_file
from torch.optim.optimizer import register_optimizer_step_post_hook

import train_mcvd
from mcvd_diffusers import MCVDPipeline, training_data
from mcvd_diffusers.checkpointing import WEIGHTS, list_checkpoints, read_state, verify_checkpoint
from mcvd_diffusers.data import EpochBatches, MovingDigits
from mcvd_diffusers.folder_lock import LOCK_NAME, FolderLock
from mcvd_diffusers.interruption import StopSignals


ROOT = Path(__file__).parents[1]
LAUNCHER = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--monitor_interval=0.1"]
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
    "validation_inference_steps": 1,
    "report_to": "none",
}
# Which clip the samples of the first epoch are.
CLIPS = [clip for batch in itertools.islice(EpochBatches(20, 2, seed=0), 10) for _, clip in batch]


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

    def createLock(self):
        self.lock = None  # other threads may log while it acts

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
import logging, os, resource, runpy, signal, sys, time
from pathlib import Path
here = Path({folder!r})
log = os.open(here / {log!r}, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
os.dup2(log, 1), os.dup2(log, 2)
sys.path[:0] = [{root!r}, {tests!r}]
sys.argv = ["train_mcvd.py", *{arguments!r}]

def wait_until(is_so):
    while not is_so():
        time.sleep(0.01)

def wait_until_log_says(words):
    wait_until(lambda: words in (here / {log!r}).read_text())

def wait_for_checkpoint(update):
    wait_until((here / "out" / f"checkpoint-{{update}}" / "manifest.json").exists)

def pause():
    (here / "paused").touch()
    wait_until((here / "go").exists)

class At(logging.Handler):
    def __init__(self, words, action):
        super().__init__()
        self.words, self.action = words, action
        logging.getLogger("train_mcvd").addHandler(self)

    def createLock(self):
        self.lock = None  # other threads may log while it acts

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
            arguments=flags(**{"output_dir": self.out, **settings}),
            before=before,
            script=str(ROOT / "train_mcvd.py"),
        )
        script = folder / f"{log}.py"
        self.log.unlink(missing_ok=True)
        if launcher is None:
            # Its workers are forked, too, as they usually are.
            alone = "import multiprocessing, os\nos.setsid()\nmultiprocessing.set_start_method('fork', force=True)\n"
            script.write_text(alone + text)
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


# --------------------------------------------------------------------------------------------------------------------
# A disk that is full or may not be written to

# From update 3 on no file may grow beyond that. Of a checkpoint, the optimizer's moments do not fit; then nothing does.
FULL = """
def fill():
    wait_for_checkpoint(2)
    resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, resource.RLIM_INFINITY))

At("step      3", fill)
"""
FULL_FOR_A_WHILE = (
    FULL.format(limit=150_000)
    + """
def free():
    wait_until_log_says("could not be written")
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)

At("step      5", free)
"""
)
# Rights bind root, too, once it has given up what makes it root.
POWERLESS = """
import ctypes
assert ctypes.CDLL(None).capset((ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()) == 0
"""
READ_ONLY_FOR_A_WHILE = (
    POWERLESS
    + """
def forbid():
    wait_for_checkpoint(2)
    (here / "out").chmod(0o555)

At("step      3", forbid)

def permit():
    wait_until_log_says("could not be written")
    (here / "out").chmod(0o755)

At("step      5", permit)
"""
)
TAKEN = 'At("step      3", lambda: (here / "out" / "checkpoint-4").write_text("something else"))'


@LINUX
@pytest.mark.parametrize(
    "before, reason",
    [
        pytest.param(FULL_FOR_A_WHILE, "File too large", id="full"),
        pytest.param(TAKEN, "taken by a file", id="taken", marks=pytest.mark.slow),
        pytest.param(READ_ONLY_FOR_A_WHILE, "Permission denied", id="read-only", marks=pytest.mark.slow),
    ],
)
def test_checkpoint_that_can_not_be_written_does_not_stop_training(before, reason, tmp_path, uninterrupted):
    with Run(tmp_path / "run", before) as process:
        assert process.wait() == 0, process.text()
    (line,) = [line for line in process.text().splitlines() if "error: " in line]
    # The state is four numbers for each parameter: itself, its average, two moments. Adam counts its steps, too.
    parameters = load_file(uninterrupted / WEIGHTS)
    num_bytes = 4 * 4 * sum(x.numel() for x in parameters.values()) + 4 * len(parameters)
    assert "checkpoint-4 could not be written" in line and reason in line
    assert f"It needs {num_bytes:,} bytes" in line and "are there are untouched" in line
    names = {path.name for path in process.out.iterdir() if "checkpoint" in path.name}
    assert names - {"checkpoint-4"} == {"checkpoint-2", "checkpoint-6"} and ("checkpoint-4" in names) == (
        before == TAKEN
    )
    assert before != TAKEN or (process.out / "checkpoint-4").read_text() == "something else"
    verify_checkpoint(process.out / "checkpoint-2")
    assert_finished_alike(process.out, uninterrupted)


@LINUX
def test_full_disk_at_the_very_end_leaves_a_run_that_can_be_finished(tmp_path, uninterrupted):
    with Run(tmp_path / "run", FULL.format(limit=50_000)) as process:
        assert process.wait() == 1
    out, text = process.out, process.text()
    assert "checkpoint-6 could not be written" in text
    assert "--resume_from_checkpoint latest" in text.splitlines()[-1] and "Traceback" not in text
    assert [path.name for path in list_checkpoints(out)] == ["checkpoint-2"] and not (
        out / "model_index.json"
    ).exists()
    assert not list(out.glob(".checkpoint*"))
    assert resume(out) == out
    assert_finished_alike(out, uninterrupted)


@LINUX
@pytest.mark.slow
def test_full_file_system_is_survived(tmp_path, uninterrupted):
    """A real one, where mounting is permitted: there is room for one checkpoint, and not for two."""
    place = tmp_path / "run"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=800k", "none", place], capture_output=True).returncode:
        pytest.skip("mounting is not permitted")
    try:
        with Run(place) as process:
            assert process.wait() == 1
        text = process.text()
        assert (
            "checkpoint-4 could not be written: No space left on device. It needs 4" in text
            and "Traceback" not in text
        )
        newest = assert_only_whole_checkpoints(process.out)
        assert newest.name == "checkpoint-2" and not (process.out / "model_index.json").exists()
        subprocess.run(["mount", "-o", "remount,size=9m", place], check=True)
        resume(process.out)
        assert_finished_alike(process.out, uninterrupted)
    finally:
        subprocess.run(["umount", place], check=True)


@LINUX
@pytest.mark.parametrize("is_there", [True, False])
def test_folder_that_may_not_be_written_to_is_refused_before_work(is_there, tmp_path):
    folder = tmp_path / "run" / "out" if is_there else tmp_path / "run"
    folder.mkdir(parents=True)
    # Its log and script have to go somewhere.
    with Run(
        tmp_path / "elsewhere", f"{POWERLESS}\nos.chmod({str(folder)!r}, 0o555)", output_dir=tmp_path / "run" / "out"
    ) as process:
        assert process.wait() == 2
    assert "cannot be made: you may not write there" in process.text() and "Traceback" not in process.text()
    assert not list(folder.iterdir())


# --------------------------------------------------------------------------------------------------------------------
# Checkpoints that were damaged


def flip_a_byte(checkpoint):
    file = checkpoint / "training" / "optimizer.safetensors"
    content = bytearray(file.read_bytes())
    content[-100] ^= 1
    file.write_bytes(content)
    return file


def truncate(checkpoint):
    file = checkpoint / "unet" / "diffusion_pytorch_model.ema.safetensors"
    os.truncate(file, file.stat().st_size - 1)
    return file


def remove_a_file(checkpoint):
    file = checkpoint / "scheduler" / "scheduler_config.json"
    file.unlink()
    return file


def remove_the_manifest(checkpoint):
    (checkpoint / "manifest.json").unlink()
    return "no manifest.json"


def edit_the_manifest(checkpoint):
    file = checkpoint / "manifest.json"
    file.write_text(file.read_text().replace('"world_size": 1', '"world_size": 2'))
    return file


def put_another_in_its_place(checkpoint):
    shutil.rmtree(checkpoint)
    shutil.copytree(checkpoint.with_name("checkpoint-2"), checkpoint)
    return f"{checkpoint} was made after update 2: it has been renamed"


DAMAGES = [flip_a_byte, truncate, remove_a_file, remove_the_manifest, edit_the_manifest, put_another_in_its_place]


@pytest.fixture
def interrupted(uninterrupted, tmp_path):
    """The same run, as it would be left by a power failure in update 5."""
    for name in ("checkpoint-2", "checkpoint-4"):
        shutil.copytree(uninterrupted / name, tmp_path / "out" / name)
    shutil.copy(uninterrupted / "training_settings.yaml", tmp_path / "out")
    return tmp_path / "out"


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "damage", [DAMAGES[0], *(pytest.param(damage, marks=pytest.mark.slow) for damage in DAMAGES[1:])]
)
def test_damaged_checkpoint_is_named_and_set_aside_and_the_older_one_gone_on_from(
    damage, interrupted, uninterrupted, caplog, capsys
):
    """The run ends as if nothing had happened, and nothing that was there is lost."""
    newer, older = interrupted / "checkpoint-4", interrupted / "checkpoint-2"
    words, before = damage(newer), contents(newer)
    assert resume(interrupted) == interrupted
    assert re.search(f"warning: {newer} can not be used: .*{re.escape(str(words))}", caplog.text)
    assert f"going on from {older}: 2 updates" in caplog.text
    assert contents(interrupted / "checkpoint-4.damaged") == before
    verify_checkpoint(older)
    assert_finished_alike(interrupted, uninterrupted)


@pytest.mark.parametrize("damage", DAMAGES[::3])
def test_damaged_checkpoint_that_is_asked_for_is_refused(damage, interrupted, capsys):
    words, before = damage(interrupted / "checkpoint-4"), contents(interrupted)
    with pytest.raises(SystemExit, match="2"):
        train(interrupted, resume_from_checkpoint=interrupted / "checkpoint-4")
    assert str(words) in capsys.readouterr().err and contents(interrupted) == before


def test_run_does_not_begin_anew_when_no_checkpoint_can_be_used(interrupted, capsys):
    file = flip_a_byte(interrupted / "checkpoint-4")
    truncate(interrupted / "checkpoint-2")
    before = contents(interrupted)
    with pytest.raises(SystemExit, match="2"):
        resume(interrupted)
    message = capsys.readouterr().err
    assert "has 2 checkpoint(s), and none can be used" in message and str(file) in message
    assert contents(interrupted) == before


@pytest.mark.slow
def test_second_damaged_checkpoint_of_a_name_is_set_aside_beside_the_first(interrupted, uninterrupted):
    truncate(interrupted / "checkpoint-4")
    shutil.copytree(interrupted / "checkpoint-2", interrupted / "checkpoint-4.damaged")
    resume(interrupted)
    assert contents(interrupted / "checkpoint-4.damaged") == contents(interrupted / "checkpoint-2")
    assert (interrupted / "checkpoint-4.damaged2").is_dir()
    assert_finished_alike(interrupted, uninterrupted)


# --------------------------------------------------------------------------------------------------------------------
# Data that are not finite


def spoil(monkeypatch, *clips):
    """Moving digits some of which are not finite: files with such values are refused when they are read."""

    class Spoiled(MovingDigits):
        def _draw(self, index, rng):
            item = super()._draw(index, rng)
            if len(self) == SETTINGS["num_train_clips"] and index in clips:
                item["video"][2, 0, 3, 4] = torch.inf  # in the block, which is never masked
            return item

    monkeypatch.setattr(training_data, "MovingDigits", Spoiled)


def train_until(words, output_dir, **settings):
    """Train until the log says so, and be stopped as soon as it can be."""
    stop = StopSignals()
    AcceleratorState._reset_state(reset_partial_state=True)
    with at(words, stop.ask):
        assert train_mcvd.main(train_mcvd.parse_args(flags(output_dir, **settings)), stop) is None
    (checkpoint,) = list_checkpoints(output_dir)
    return checkpoint


def test_update_that_is_not_finite_changes_nothing(tmp_path, monkeypatch, caplog):
    """Weights, average and moments are, to the last bit, what they were before; so is the learning rate."""
    before = train_until("step      1", tmp_path / "before", checkpointing_steps=0)
    spoil(monkeypatch, CLIPS[5])  # of update 3
    after = train_until("update 3 skipped", tmp_path / "after", checkpointing_steps=0)
    (tensors, *_, num_before), (same, *_, num_after) = state_of(before), state_of(after)
    assert tensors == same and (num_before, num_after) == (4, 6)
    assert read_state(before)["progress"]["num_skipped"] == 0 and read_state(after)["progress"]["num_skipped"] == 1
    assert "update 3 skipped, since the loss of process 0 is not finite: 1 in a row" in caplog.text


@pytest.mark.slow
def test_run_with_updates_that_are_not_finite_goes_on_as_if_it_had_not_been_stopped(tmp_path, monkeypatch, caplog):
    """Its schedule does not move with updates that are not made, and clips that were skipped have their numbers, too."""
    spoil(monkeypatch, CLIPS[5])
    folder = train(tmp_path / "out", lr_scheduler="linear")
    assert read_state(folder / "checkpoint-6")["progress"]["num_skipped"] == 1
    rates = [float(x) for x in re.findall(r"learning_rate ([\d.e-]+)", caplog.text)]
    skipped = [int(x) for x in re.findall(r"skipped_updates (\d)", caplog.text)]
    assert rates == [0.0005, 0.001, 0.00075, 0.0005, 0.00025, 0] and skipped == [0, 0, 1, 1, 1, 1]
    for words in ("update 3 skipped", "step      3"):
        out = tmp_path / words.replace(" ", "")
        train_until(words, out, lr_scheduler="linear", checkpointing_steps=0)
        resume(out, checkpointing_steps=2)
        assert_finished_alike(out, folder)


@pytest.mark.slow
def test_updates_in_a_row_that_are_not_finite_stop_training_with_their_clips(tmp_path, monkeypatch):
    spoil(monkeypatch, *CLIPS[4:10])  # of three updates
    with pytest.raises(train_mcvd.NotFiniteError, match="stopped after 2 of 6 updates: its last updates.*latest"):
        train(tmp_path / "out", max_skipped_updates=3)
    verify_checkpoint(tmp_path / "out" / "checkpoint-2")
    (file,) = (tmp_path / "out").glob("not-finite-*.safetensors")
    saved = load_file(file)
    assert saved["samples"].tolist() == [8, 9]
    settings = train_mcvd.parse_args(flags(tmp_path / "again"))
    clips, _ = train_mcvd.make_datasets(settings, settings.num_window_frames)
    for video, sample in zip(saved["video"], saved["samples"], strict=True):
        assert torch.equal(video, clips[0, CLIPS[sample]]["video"])


# --------------------------------------------------------------------------------------------------------------------
# A worker that dies


def kill_a_worker():
    (worker,) = [child for child in multiprocessing.active_children() if child.daemon]
    os.kill(worker.pid, signal.SIGKILL)


def assert_stopped_and_goes_on(out, uninterrupted, error, text):
    # Whichever comes first: the signal, the worker's silence, or the end of a connection to it.
    assert re.search("is killed by signal|exited unexpectedly|can not be read any more", str(error.value))
    newest = assert_only_whole_checkpoints(out)
    assert f"All of it is in {newest}. Go on with: --output_dir {out}" in f"{error.value} {text}"
    resume(out, dataloader_num_workers=1)
    assert_finished_alike(out, uninterrupted)
    return newest.name


@pytest.mark.slow
def test_killed_worker_stops_training_with_a_checkpoint(tmp_path, uninterrupted, caplog):
    with at("step      3", kill_a_worker), pytest.raises(RuntimeError) as error:
        train(tmp_path / "out", dataloader_num_workers=1)
    assert_stopped_and_goes_on(tmp_path / "out", uninterrupted, error, caplog.text)


@LINUX
def test_end_of_a_workers_connection_stops_training_with_a_checkpoint(tmp_path, uninterrupted, monkeypatch, caplog):
    """A worker that is killed while a batch is fetched from it."""
    answer, num_calls = multiprocessing.connection.answer_challenge, itertools.count(1)

    def end_in_the_fourth(*arguments):
        if next(num_calls) == 4:
            raise EOFError
        return answer(*arguments)

    monkeypatch.setattr(multiprocessing.connection, "answer_challenge", end_in_the_fourth)
    with pytest.raises(train_mcvd.DataError, match="can not be read any more: a process that loads them") as error:
        train(tmp_path / "out", dataloader_num_workers=1)
    monkeypatch.undo()
    assert_stopped_and_goes_on(tmp_path / "out", uninterrupted, error, caplog.text)


def test_worker_killed_in_an_optimizers_step_does_not_tear_the_state(tmp_path, uninterrupted, caplog):
    """torch raises in the main thread when a worker dies, wherever that is."""
    num_steps = 0

    def kill_in_the_third(*_):
        nonlocal num_steps
        num_steps += 1
        if num_steps == 3:
            kill_a_worker()
            time.sleep(0.5)  # until the signal has come

    hook = register_optimizer_step_post_hook(kill_in_the_third)
    try:
        with pytest.raises(RuntimeError) as error:
            train(tmp_path / "out", dataloader_num_workers=1)
    finally:
        hook.remove()
    assert assert_stopped_and_goes_on(tmp_path / "out", uninterrupted, error, caplog.text) == "checkpoint-3"


@pytest.mark.slow
def test_worker_killed_when_a_save_begins_does_not_cost_the_save(tmp_path, uninterrupted, monkeypatch, caplog):
    """The error comes as a signal that arrives while the thread that writes is started."""
    start, is_killed = threading.Thread.start, []

    def kill_and_start(thread):
        if not is_killed and (tmp_path / "out" / "checkpoint-2").exists() and type(thread) is threading.Thread:
            is_killed.append(True)
            kill_a_worker()
            time.sleep(0.5)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", kill_and_start)
    with pytest.raises(RuntimeError) as error:
        train(tmp_path / "out", dataloader_num_workers=1)
    monkeypatch.undo()
    assert is_killed
    assert assert_stopped_and_goes_on(tmp_path / "out", uninterrupted, error, caplog.text) == "checkpoint-4"


# --------------------------------------------------------------------------------------------------------------------
# Two runs, one folder


@LINUX
def test_folder_of_a_run_that_is_alive_is_refused_and_of_a_dead_one_taken_over(tmp_path, uninterrupted, capsys):
    with Run(tmp_path / "run", 'At("step      5", pause)') as process:
        process.wait_until_paused()
        process.wait_until((process.out / "checkpoint-4").exists)
        before = contents(process.out)
        # Found when its checkpoints are looked for, or when it is to be taken.
        with pytest.raises((SystemExit, train_mcvd.SetupError)) as error:
            resume(process.out)
        message = f"{error.value} {capsys.readouterr().err}"
        assert f"{process.out} is in use by process {process.pid} on {socket.gethostname()}, since " in message
        assert contents(process.out) == before
        process.kill(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    resume(process.out)
    assert_finished_alike(process.out, uninterrupted)


@LINUX
def test_second_run_into_a_folder_where_one_begins_is_refused(tmp_path):
    """Nothing is in it yet but the lock."""
    out = tmp_path / "out"
    out.mkdir()
    holder = multiprocessing.get_context("fork").Process(
        target=lambda: (FolderLock(out), time.sleep(100)), daemon=True
    )
    holder.start()
    while not (out / LOCK_NAME).exists() or not (out / LOCK_NAME).read_text():
        time.sleep(0.01)
    with pytest.raises(train_mcvd.SetupError, match=f"in use by process {holder.pid} on {socket.gethostname()}"):
        train(out)
    assert [path.name for path in out.iterdir()] == [LOCK_NAME]
    holder.kill()
    holder.join()
    train(out, max_train_steps=1)


# --------------------------------------------------------------------------------------------------------------------
# Trackers


@pytest.mark.parametrize(
    "method", ["log", pytest.param("start", marks=pytest.mark.slow), pytest.param("finish", marks=pytest.mark.slow)]
)
def test_tracker_that_fails_changes_nothing(method, tmp_path, monkeypatch, uninterrupted, caplog):
    pytest.importorskip("tensorboard")

    def fail(*_, **__):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(TensorBoardTracker, method, fail)
    folder = train(tmp_path / "out", report_to="tensorboard")
    assert len(re.findall("warning: tracker tensorboard .*ConnectionError: no route to host", caplog.text)) == 1
    assert_finished_alike(folder, uninterrupted)


# --------------------------------------------------------------------------------------------------------------------
# Signals

# A clip that takes for ever to load.
HANGING_CLIP = """
from mcvd_diffusers import training_data

class MovingDigits(training_data.MovingDigits):
    def _draw(self, index, rng):
        if len(self) == {num_clips} and index == {clip}:
            (here / "waiting").touch()
            time.sleep(1000)
        return super()._draw(index, rng)

training_data.MovingDigits = MovingDigits
"""
# Flushing a file takes so many seconds; a checkpoint has nine files and four folders.
SLOW_DISK = """
fsync = os.fsync

def slow_fsync(descriptor):
    time.sleep({seconds})
    fsync(descriptor)

os.fsync = slow_fsync
"""


def assert_saved(process, number=signal.SIGTERM, update=None, seconds=30):
    """It ends in time, and everything that was trained is in a checkpoint that verifies."""
    started = time.monotonic()
    code = process.wait()
    assert time.monotonic() - started < seconds, process.text()
    assert code == 128 + number, process.text()
    newest = assert_only_whole_checkpoints(process.out)
    assert f"All of it is in {newest}. Go on with: --output_dir {process.out}" in process.text()
    assert not (process.out / "model_index.json").exists() and "Traceback" not in process.text()
    if update is not None:
        assert newest.name == f"checkpoint-{update}"


def assert_goes_on(process, uninterrupted, **settings):
    resume(process.out, **settings)
    assert_finished_alike(process.out, uninterrupted)


@LINUX
@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_signal_in_an_update_saves_and_ends(number, tmp_path, uninterrupted):
    with Run(tmp_path / "run", 'At("step      3", pause)') as process:
        process.wait_until_paused()
        process.kill(number)
        process.wait_until_log_says(f"{number.name}: stopping")
        process.go()
        assert_saved(process, number, update=4, seconds=8)  # before the thread would act
    assert_goes_on(process, uninterrupted)


@LINUX
@pytest.mark.slow
def test_signal_to_a_script_of_its_own_saves_and_ends(tmp_path, uninterrupted):
    """As users start it: nothing is forked, and nothing waits."""
    with Run(tmp_path / "run", launcher=[sys.executable], max_train_steps=10_000) as process:
        process.wait_until_log_says("step      7")
        process.kill()
        assert_saved(process)


@LINUX
@pytest.mark.slow
def test_signal_in_the_set_up_ends_at_once_and_leaves_nothing(tmp_path):
    with Run(tmp_path / "run", HANGING_CLIP.format(num_clips=256, clip=0), num_validation_videos=1) as process:
        process.wait_until((process.here / "waiting").exists)
        started = time.monotonic()
        process.kill(signal.SIGUSR1)
        assert process.wait() == 128 + signal.SIGUSR1 and time.monotonic() - started < 2
        assert not process.out.exists()


@LINUX
@pytest.mark.slow
def test_signal_while_waiting_for_data_saves_what_was_trained(tmp_path, uninterrupted):
    """Nothing can be asked of the main thread then. Also before the first update, and however the data are loaded."""
    cases = [(3, 0), (3, 1), (0, 0), (0, 1)]
    with contextlib.ExitStack() as stack:
        runs = [
            stack.enter_context(
                Run(
                    tmp_path / f"{update} {num_workers}",
                    HANGING_CLIP.format(num_clips=SETTINGS["num_train_clips"], clip=CLIPS[2 * update + 1]),
                    dataloader_num_workers=num_workers,
                )
            )
            for update, num_workers in cases
        ]
        for run, (update, _) in zip(runs, cases, strict=True):
            run.wait_until_log_says(f"step      {update}" if update else "updates of")
            run.wait_until((run.here / "waiting").exists)
            run.kill()
        for run, (update, _) in zip(runs, cases, strict=True):
            assert_saved(run, update=update)
            assert "did not come to a stop" in run.text()
    for run, (_, num_workers) in zip(runs, cases, strict=True):
        assert_goes_on(run, uninterrupted, dataloader_num_workers=num_workers)


@LINUX
@pytest.mark.slow
def test_worker_that_hangs_does_not_hold_up_the_end(tmp_path, uninterrupted):
    """It is ahead of the training, which does not wait for it yet; like all workers, it ignores signals."""
    before = HANGING_CLIP.format(num_clips=SETTINGS["num_train_clips"], clip=CLIPS[7])
    before += 'At("step      2", pause)'
    with Run(tmp_path / "run", before, dataloader_num_workers=1) as process:
        process.wait_until_paused()
        process.wait_until((process.here / "waiting").exists)
        process.kill()
        process.wait_until_log_says("SIGTERM: stopping")
        process.go()
        assert_saved(process, update=3)
    assert_goes_on(process, uninterrupted)


@LINUX
@pytest.mark.slow
def test_signal_while_validation_videos_are_made_gives_them_up(tmp_path, uninterrupted):
    settings = {"num_validation_videos": 4, "validation_steps": 2, "validation_inference_steps": 1000}
    with Run(tmp_path / "run", **settings) as process:
        process.wait_until_log_says("step      2")
        time.sleep(1)
        process.kill()
        assert_saved(process, seconds=8)
        assert not (process.out / "samples").exists()
    assert_goes_on(process, uninterrupted, num_validation_videos=0)


@LINUX
@pytest.mark.slow
def test_signal_in_a_long_window_of_accumulation_gives_it_up(tmp_path):
    with Run(tmp_path / "run", gradient_accumulation_steps=1000) as process:
        # Before its first log line, a training with so long windows has done nothing for a while.
        process.wait_until_log_says("updates of 2000 clips")
        time.sleep(3)
        process.kill()
        assert_saved(process, update=0, seconds=8)


@LINUX
@pytest.mark.slow
def test_signal_in_a_save_waits_for_it_and_saves_once_more(tmp_path, uninterrupted):
    with Run(tmp_path / "run", SLOW_DISK.format(seconds=0.2)) as process:
        process.wait_until(lambda: list(process.out.glob(".checkpoint-2.partial-*")))
        process.kill()
        assert_saved(process)
        assert len(list_checkpoints(process.out)) == 2
    assert_goes_on(process, uninterrupted)


@LINUX
@pytest.mark.slow
def test_save_that_takes_too_long_is_given_up_and_the_older_checkpoint_stays(tmp_path, uninterrupted):
    """Whatever is slow or stuck, the process is gone when it is said to be."""
    slow = SLOW_DISK.format(seconds="4 if list((here / 'out').glob('checkpoint-2')) else 0")
    with contextlib.ExitStack() as stack:
        # It comes to the end of its update, and saves; or a thread has to, beside it.
        befores = {"stops": slow, "is stuck": f'{slow}\nAt("step      5", pause)'}
        runs = [
            stack.enter_context(Run(tmp_path / name, before, max_stop_seconds=13)) for name, before in befores.items()
        ]
        for run in runs:
            run.wait_until_log_says("step      5" if run is runs[0] else "step      4")
        started = time.monotonic()
        for run in runs:
            run.kill()
        for run in runs:
            assert run.wait() == 128 + signal.SIGTERM, run.text()
        assert time.monotonic() - started < 13
    for run in runs:
        assert assert_only_whole_checkpoints(run.out).name == "checkpoint-2"
        assert_goes_on(run, uninterrupted)


@LINUX
@pytest.mark.slow
def test_signal_to_a_run_whose_log_nobody_reads_any_more_saves_and_ends(tmp_path, uninterrupted):
    """A pipe that is full blocks whoever writes to it, in the middle of a line."""
    before = """
def clog():
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    try:
        while os.write(writer, bytes(2**16)):
            pass
    except BlockingIOError:
        os.set_blocking(writer, True)
    os.dup2(writer, 2)
    (here / "paused").touch()

At("step      3", clog)
"""
    with Run(tmp_path / "run", before) as process:
        process.wait_until_paused()
        process.kill()
        started = time.monotonic()
        assert process.wait() == 128 + signal.SIGTERM and time.monotonic() - started < 30
        assert assert_only_whole_checkpoints(process.out).name == "checkpoint-3"
    assert_goes_on(process, uninterrupted)


@LINUX
@pytest.mark.slow
def test_second_signal_ends_at_once_and_leaves_whole_checkpoints_only(tmp_path, uninterrupted):
    """In the middle of the save that the first one has begun."""
    slow = SLOW_DISK.format(seconds="4 if list((here / 'out').glob('checkpoint-2')) else 0")
    with Run(tmp_path / "run", slow) as process:
        process.wait_until((process.out / "checkpoint-2").exists)
        process.kill(signal.SIGINT)
        process.wait_until(lambda: list(process.out.glob(".checkpoint-*.partial-*")))
        time.sleep(1.2)
        started = time.monotonic()
        process.kill(signal.SIGTERM)
        assert process.wait() == 128 + signal.SIGINT and time.monotonic() - started < 1
        assert assert_only_whole_checkpoints(process.out).name == "checkpoint-2"
    assert_goes_on(process, uninterrupted)
    assert not list(process.out.glob(".checkpoint-*"))  # what the save had left


@LINUX
@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_to_a_whole_group_of_processes_saves_and_ends(number, tmp_path, uninterrupted):
    """As a terminal does on Ctrl-C, and Slurm at the end of the time."""
    with Run(tmp_path / "run", 'At("step      3", pause)', dataloader_num_workers=2) as process:
        process.wait_until_paused()
        os.killpg(process.pid, number)
        process.wait_until_log_says("stopping")
        process.go()
        assert_saved(process, number, update=4, seconds=8)
    assert_goes_on(process, uninterrupted, dataloader_num_workers=2)


@LINUX
@pytest.mark.slow
def test_signal_while_compiling_saves_what_was_there(tmp_path):
    with Run(tmp_path / "run", 'os.environ["ACCELERATE_DYNAMO_BACKEND"] = "inductor"') as process:
        process.wait_until_log_says("updates of")
        time.sleep(3)
        process.kill()
        assert_saved(process, update=0)
    resume(process.out)
    assert (process.out / "model_index.json").exists()


# --------------------------------------------------------------------------------------------------------------------
# Several processes

RANK = """
os.environ |= {{"RANK": "{rank}", "LOCAL_RANK": "{rank}", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}}
os.environ |= {{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "{port}", "ACCELERATE_USE_CPU": "true"}}
"""


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def train_on_two(folder, before="", **settings):
    """Train in two processes, without a launcher; returns the exit codes and the log of the first."""
    port = free_port()
    with contextlib.ExitStack() as stack:
        ranks = [
            stack.enter_context(Run(folder, RANK.format(rank=i, port=port) + before, log=f"rank {i}", **settings))
            for i in range(2)
        ]
        codes = [rank.wait() for rank in ranks]
    assert "on 2 x cpu" in ranks[0].text()
    return codes, ranks[0].text()


@pytest.fixture(scope="module")
def uninterrupted_on_two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted on two")
    codes, text = train_on_two(folder)
    assert codes == [0, 0], text
    return folder / "out"


@LINUX
@pytest.mark.slow
def test_update_that_is_not_finite_on_one_process_is_skipped_on_all(tmp_path):
    """The weights of two that did not agree would not be those of the first any more, or they would wait for ever."""
    spoiled = f"""
from mcvd_diffusers import training_data

class MovingDigits(training_data.MovingDigits):
    def _draw(self, index, rng):
        item = super()._draw(index, rng)
        if len(self) == 20 and index == {CLIPS[11]}:  # of update 3, on the second process
            assert os.environ["RANK"] == "1"
            item["video"][2] = float("nan")
        return item

training_data.MovingDigits = MovingDigits

def digest(optimizer, *_):
    (here / ("weights of " + os.environ["RANK"])).write_text(
        str([float(x.double().sum()) for group in optimizer.param_groups for x in group["params"]])
    )

from torch.optim.optimizer import register_optimizer_step_post_hook
register_optimizer_step_post_hook(digest)
"""
    codes, text = train_on_two(tmp_path / "run", spoiled)
    assert codes == [0, 0], text
    assert "update 3 skipped, since the loss of process 1 is not finite: 1 in a row" in text
    assert text.count("skipped, since") == 1
    state = read_state(tmp_path / "run" / "out" / "checkpoint-6")["progress"]
    assert (state["num_skipped"], state["num_samples"]) == (1, 7 * 4)
    first, second = ((tmp_path / "run" / f"weights of {rank}").read_text() for rank in range(2))
    assert first == second and "nan" not in first


@LINUX
@pytest.mark.slow
def test_dead_process_ends_the_run_with_a_checkpoint_of_the_others(tmp_path, uninterrupted_on_two):
    """Killed in its third update, which the first process completes, and can not go beyond."""
    before = """
if os.environ["RANK"] == "1":
    from torch.optim.optimizer import register_optimizer_step_post_hook
    steps = []

    def die(*_):
        steps.append(1)
        if len(steps) == 3:
            os.kill(os.getpid(), signal.SIGKILL)

    register_optimizer_step_post_hook(die)
"""
    with Run(tmp_path / "run", before, launcher=[*LAUNCHER, f"--master_port={free_port()}"]) as process:
        process.wait_until_log_says("step      2")
        started = time.monotonic()
        assert process.wait() == 1 and time.monotonic() - started < 35
    assert "on 2 x cpu" in process.text()
    newest = assert_only_whole_checkpoints(process.out)
    assert newest.name == "checkpoint-3" and f"All of it is in {newest}" in process.text()
    codes, text = train_on_two(tmp_path / "run", resume_from_checkpoint="latest")
    assert codes == [0, 0] and f"going on from {newest}" in text
    assert_finished_alike(process.out, uninterrupted_on_two)


@LINUX
@pytest.mark.slow
def test_signal_to_a_launcher_saves_and_ends_all_processes(tmp_path, uninterrupted_on_two):
    before = 'At("step      3", pause)'
    with Run(tmp_path / "run", before, launcher=[*LAUNCHER, f"--master_port={free_port()}"]) as process:
        process.wait_until_paused()
        process.kill()
        process.wait_until_log_says("SIGTERM: stopping")
        process.go()
        started = time.monotonic()
        assert process.wait() != 0 and time.monotonic() - started < 30
    assert "on 2 x cpu" in process.text()
    newest = assert_only_whole_checkpoints(process.out)
    assert f"All of it is in {newest}. Go on with" in process.text()
    codes, text = train_on_two(tmp_path / "run", resume_from_checkpoint="latest")
    assert codes == [0, 0] and f"going on from {newest}" in text
    assert_finished_alike(process.out, uninterrupted_on_two)


# --------------------------------------------------------------------------------------------------------------------
# Memory

# Large blocks are given back to the system at once, so that what is left is what is free.
LITTLE_MEMORY = """
import ctypes
assert ctypes.CDLL(None).mallopt(-3, 1 << 20) == 1

def limit(spare):
    used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (used + spare, resource.RLIM_INFINITY))
"""
LARGE = {
    "resolution": 64,
    "down_block_types": ["DownBlock2D", "DownBlock2D"],
    "train_batch_size": 64,
    "num_train_clips": 200,
    "max_train_steps": 2,
}


@LINUX
@pytest.mark.slow
def test_too_large_batch_is_told_what_fits_and_that_does(tmp_path):
    before = f"{LITTLE_MEMORY}\nlimit(600_000_000)"
    with Run(tmp_path / "run", before, **LARGE) as process:
        assert process.wait() == 1
    text = process.text()
    found = re.search(
        r"Memory has run out after 0 of 2 updates. Tried: --train_batch_size 64 clips of 5 frames of 64x64 pixels \(.*\)."
        r" This fits: (--train_batch_size (\d+) --gradient_accumulation_steps (\d+)); or (--gradient_checkpointing True"
        r" --train_batch_size (\d+) --gradient_accumulation_steps (\d+))\.",
        text,
    )
    assert found and "Traceback" not in text, text
    fits, steps, fits_with_checkpointing, fewer_steps = (int(found[group]) for group in (2, 3, 5, 6))
    assert fits * steps == fits_with_checkpointing * fewer_steps == 64 and fits <= fits_with_checkpointing
    for number, group in enumerate((1, 4)):
        words = found[group].split()
        way_out = {name.removeprefix("--"): value for name, value in zip(words[::2], words[1::2], strict=True)}
        with Run(tmp_path / f"way {number}", before, **{**LARGE, **way_out}) as process:
            assert process.wait() == 0, process.text()


@LINUX
@pytest.mark.slow
def test_memory_that_does_not_suffice_for_a_first_sampling_is_told(tmp_path):
    before = f'{LITTLE_MEMORY}\nAt("29,522 parameters", lambda: limit(20_000_000))'
    with Run(tmp_path / "run", before, **{**LARGE, "resolution": 256}) as process:
        assert process.wait() == 1, process.text()
    text = process.text()
    assert "memory has run out before the first update" in text and "--block_out_channels" in text, text
    assert "Traceback" not in text and not (process.out / "model_index.json").exists()


@LINUX
@pytest.mark.slow
@pytest.mark.parametrize(
    "spare", [2_000_000, 12_000_000, 25_000_000], ids=["nothing", "a thread", "a thread and a little"]
)
def test_memory_that_runs_out_later_costs_nothing_that_was_trained(spare, tmp_path):
    """What is left might do for a thread that saves, but then not for what the thread does: that would end the process."""
    before = f'{LITTLE_MEMORY}\nAt("step      2", lambda: limit({spare}))'
    settings = {**LARGE, "train_batch_size": 16, "max_train_steps": 3, "checkpointing_steps": 0}
    with Run(tmp_path / "run", before, **settings) as process:
        assert process.wait() == 1, process.text()
    text = process.text()
    assert "Memory has run out after 2 of 3 updates. Tried: --train_batch_size 16" in text and "Traceback" not in text
    newest = assert_only_whole_checkpoints(process.out)
    assert newest.name == "checkpoint-2" and f"All of it is in {newest}" in text
    resume(process.out, **settings)
    assert (process.out / "model_index.json").exists()
