"""interruption.py: what a signal does, with real signals in processes of their own; and what it cannot interrupt."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from mcvd_diffusers.interruption import SAME_REQUEST_SECONDS, STOP_SIGNALS, StateGuard, StopSignals


pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")

# By path: the package would import torch, which takes longer than all that is tested here.
PRELUDE = f"""
import hashlib, importlib.util, logging, multiprocessing, os, signal, subprocess, sys, threading, time
spec = importlib.util.spec_from_file_location("interruption", {str(Path(__file__).parents[1])!r} + "/mcvd_diffusers/interruption.py")
interruption = importlib.util.module_from_spec(spec)
spec.loader.exec_module(interruption)
StopSignals, StateGuard = interruption.StopSignals, interruption.StateGuard
logging.basicConfig(format="%(message)s", level=logging.INFO, stream=sys.stdout)

def say(*words):
    print(*words, flush=True)

def save():
    say("saving in a thread")
    return "saved"

def compute():
    # One instruction of Python's, which takes minutes: no handler of Python's runs before it ends.
    hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)
"""

STOPS_BY_ITSELF = """
with StopSignals() as stop:
    stop.watch(save, is_first_process=True)
    say("ready")
    while not stop.is_asked:
        time.sleep(0.01)
    stop.take_over()
    time.sleep(0.5)
    say("saved by itself")
sys.exit(stop.exit_code)
"""


class Script:
    """A process that runs some code after the prelude."""

    def __init__(self, code):
        command = [sys.executable, "-c", PRELUDE + code]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self.lines = []

    def wait_for(self, words):
        """Read what it says up to a line with these words."""
        for line in self.process.stdout:
            self.lines.append(line.rstrip())
            if words in line:
                return line.rstrip()
        raise AssertionError(f"{words!r} was not said, but: {self.lines}")

    def send(self, number):
        self.process.send_signal(number)

    def end(self, timeout=20):
        """Its exit code and all that it said."""
        self.lines += self.process.communicate(timeout=timeout)[0].splitlines()
        return self.process.returncode, self.lines


@pytest.fixture
def start():
    """Starts scripts; none outlives its test."""
    scripts = []

    def start(code):
        scripts.append(Script(code))
        return scripts[-1]

    yield start
    for script in scripts:
        if script.process.poll() is None:
            script.process.kill()
            script.process.wait()
        script.process.stdout.close()


# --------------------------------------------------------------------------------------------------------------------
# Signals


@pytest.mark.parametrize("number", STOP_SIGNALS, ids=lambda number: number.name)
def test_a_signal_lets_training_stop_by_itself_and_exit_with_its_number(number, start):
    script = start(STOPS_BY_ITSELF)
    script.wait_for("ready")
    script.send(number)
    code, lines = script.end()
    assert code == 128 + number
    assert any(number.name in line for line in lines)
    assert "saved by itself" in lines and "saving in a thread" not in lines


def test_without_a_signal_the_exit_code_is_0(start):
    code, lines = start(
        "with StopSignals() as stop: stop.watch(save, is_first_process=True)\nsys.exit(stop.exit_code)"
    ).end()
    assert (code, lines) == (0, [])


def test_a_signal_before_there_is_anything_to_save_ends_at_once(start):
    script = start("with StopSignals():\n    say('ready')\n    compute()")
    script.wait_for("ready")
    script.send(signal.SIGTERM)
    code, lines = script.end(timeout=5)
    assert code == 128 + signal.SIGTERM
    assert "saved" not in lines


def test_signals_within_a_second_are_one_request(start):
    # As of a launcher, which sends its processes one more; it may be another one.
    script = start(STOPS_BY_ITSELF)
    script.wait_for("ready")
    script.send(signal.SIGUSR1)
    script.wait_for("SIGUSR1")
    for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT):
        script.send(number)
    code, lines = script.end()
    assert code == 128 + signal.SIGUSR1
    assert lines[-1] == "saved by itself" and "at once" not in "".join(lines[2:])


def test_a_second_signal_ends_at_once_with_the_number_of_the_first(start):
    script = start(STOPS_BY_ITSELF.replace("time.sleep(0.5)", "compute()"))
    script.wait_for("ready")
    script.send(signal.SIGUSR1)
    script.wait_for("SIGUSR1")
    time.sleep(SAME_REQUEST_SECONDS + 0.1)
    sent = time.monotonic()
    script.send(signal.SIGTERM)
    code, lines = script.end(timeout=5)
    assert time.monotonic() - sent < 3
    assert code == 128 + signal.SIGUSR1
    assert "SIGTERM" in lines[-1] and "at once" in lines[-1]
    assert "saving in a thread" not in lines


def test_a_thread_saves_and_ends_when_training_does_not_come_to_a_stop(start):
    script = start("""
with StopSignals(grace_seconds=0.5) as stop:
    stop.watch(save, is_first_process=True)
    say("ready")
    compute()
""")
    script.wait_for("ready")
    time.sleep(0.1)
    sent = time.monotonic()
    script.send(signal.SIGTERM)
    code, lines = script.end(timeout=10)
    assert time.monotonic() - sent >= 0.5
    assert code == 128 + signal.SIGTERM
    assert lines[-2:] == ["saving in a thread", "saved"]


def test_a_training_that_takes_over_and_is_not_done_at_the_deadline_is_ended(start):
    script = start("""
with StopSignals(grace_seconds=0.3, deadline_seconds=1.0) as stop:
    stop.watch(save, is_first_process=True)
    say("ready")
    while not stop.is_asked:
        time.sleep(0.01)
    stop.take_over()
    compute()
""")
    script.wait_for("ready")
    sent = time.monotonic()
    script.send(signal.SIGINT)
    code, lines = script.end(timeout=10)
    assert time.monotonic() - sent >= 0.6
    assert code == 128 + signal.SIGINT
    assert "1 s are over: stopping without what was still being saved" in lines[-1]
    assert "saving in a thread" not in lines


def test_a_training_that_is_done_before_the_deadline_is_left_alone(start):
    script = start("""
with StopSignals(grace_seconds=0.2, deadline_seconds=0.8) as stop:
    stop.watch(save, is_first_process=True)
    say("ready")
    while not stop.is_asked:
        time.sleep(0.01)
    stop.take_over()
time.sleep(1.5)
say("the end")
sys.exit(stop.exit_code)
""")
    script.wait_for("ready")
    script.send(signal.SIGTERM)
    code, lines = script.end()
    assert code == 128 + signal.SIGTERM
    assert lines[-1] == "the end" and "saving in a thread" not in lines


def test_a_save_that_fails_does_not_change_the_exit_code(start):
    script = start("""
def fail():
    raise OSError("the disk is full")

with StopSignals(grace_seconds=0.1) as stop:
    stop.watch(fail, is_first_process=True)
    say("ready")
    compute()
""")
    script.wait_for("ready")
    script.send(signal.SIGTERM)
    code, lines = script.end(timeout=10)
    assert code == 128 + signal.SIGTERM
    assert "nothing was saved" in lines and "OSError: the disk is full" in lines


def test_the_thread_waits_for_an_update_and_saves_what_it_left(start):
    script = start("""
state, guard = [0, 0], StateGuard()

def save():
    with guard.still() as is_whole:
        return f"saved {state}, {is_whole}"

with StopSignals(grace_seconds=0.3) as stop:
    stop.watch(save, is_first_process=True)
    with guard.changing():
        state[0] = 1
        say("ready")
        time.sleep(1)
        state[1] = 1
    compute()
""")
    script.wait_for("ready")
    script.send(signal.SIGTERM)
    code, lines = script.end(timeout=10)
    assert code == 128 + signal.SIGTERM
    assert lines[-1] == "saved [1, 1], True"


def test_workers_end_with_a_training_that_is_ended(start):
    script = start("""
with StopSignals(grace_seconds=0.2) as stop:
    stop.watch(save, is_first_process=True)
    worker = multiprocessing.get_context("fork").Process(
        target=lambda: (interruption.ignore_stop_signals(), say("worker", os.getpid()), time.sleep(60))
    )
    worker.start()
    compute()
""")
    worker = int(script.wait_for("worker").split()[1])
    os.kill(worker, signal.SIGTERM)
    time.sleep(0.3)
    os.kill(worker, 0)  # it ignores what ends others
    script.send(signal.SIGTERM)
    code, _ = script.end(timeout=10)
    assert code == 128 + signal.SIGTERM
    for _ in range(50):
        with contextlib.suppress(ProcessLookupError):
            os.kill(worker, 0)
            time.sleep(0.1)
            continue
        break
    else:
        os.kill(worker, signal.SIGKILL)
        raise AssertionError("the worker was still there")


def test_other_signals_ask_for_nothing(start):
    # The descriptor that Python writes signals to is told of all that have a handler, as a data loader's SIGCHLD has.
    code, lines = start("""
signal.signal(signal.SIGCHLD, lambda *_: say("a child ended"))
with StopSignals(grace_seconds=0.1) as stop:
    subprocess.run(["true"])
    time.sleep(0.5)
    say(stop.is_asked)
sys.exit(stop.exit_code)
""").end()
    assert (code, lines) == (0, ["a child ended", "False"])


def test_after_the_block_signals_do_what_they_did_before(start):
    code, lines = start("""
signal.signal(signal.SIGUSR1, lambda *_: say("mine"))
before = [signal.getsignal(number) for number in interruption.STOP_SIGNALS]
with StopSignals() as stop:
    assert not set(before) & {signal.getsignal(number) for number in interruption.STOP_SIGNALS}
assert [signal.getsignal(number) for number in interruption.STOP_SIGNALS] == before
assert signal.set_wakeup_fd(-1) == -1 and threading.active_count() == 1
os.kill(os.getpid(), signal.SIGUSR1)
say(stop.is_asked)
os.kill(os.getpid(), signal.SIGTERM)
""").end()
    assert (code, lines) == (-signal.SIGTERM, ["mine", "False"])


def test_asking_is_as_if_a_signal_had_come_and_the_first_one_counts():
    stop = StopSignals()
    assert (stop.is_asked, stop.exit_code) == (False, 0)
    stop.ask(signal.SIGUSR1)
    stop.ask(signal.SIGTERM)
    assert (stop.is_asked, stop.exit_code) == (True, 128 + signal.SIGUSR1)


def test_other_processes_wait_longer_than_the_one_that_saves():
    first, other = StopSignals(), StopSignals()
    first.watch(lambda: "", is_first_process=True)
    other.watch(lambda: "", is_first_process=False)
    assert first.grace_seconds < first.deadline_seconds == other.grace_seconds == other.deadline_seconds < 30


# --------------------------------------------------------------------------------------------------------------------
# What must not be interrupted


class WorkerDied(RuntimeError):
    """As a data loader's handler of SIGCHLD raises it."""


@pytest.fixture
def sigchld_raises():
    """SIGCHLD raises, as with a data loader whose worker has died; the list has an entry for each time."""
    calls = []

    def handler(number, frame):
        calls.append(number)
        raise WorkerDied

    former = signal.signal(signal.SIGCHLD, handler)
    yield calls
    assert signal.signal(signal.SIGCHLD, former) is handler  # it was put back


def test_a_signal_that_raises_does_so_after_the_change(sigchld_raises):
    guard, state = StateGuard(), []
    with pytest.raises(WorkerDied):
        with guard.changing():
            state.append("weights")
            for _ in range(3):
                os.kill(os.getpid(), signal.SIGCHLD)
            state.append("average")
    assert state == ["weights", "average"]
    assert guard.is_whole and len(sigchld_raises) == 1
    with pytest.raises(WorkerDied):  # and at once where nothing changes
        os.kill(os.getpid(), signal.SIGCHLD)


def test_a_change_in_another_thread_leaves_handlers_alone(sigchld_raises):
    guard, seen = StateGuard(), []

    def change():
        with guard.changing():
            seen.append(signal.getsignal(signal.SIGCHLD))

    thread = threading.Thread(target=change)
    thread.start()
    thread.join()
    assert seen == [signal.getsignal(signal.SIGCHLD)] and guard.is_whole


def test_still_waits_for_a_change_to_end():
    guard, state, has_begun = StateGuard(), [], threading.Event()

    def change():
        with guard.changing():
            has_begun.set()
            time.sleep(0.3)
            state.append("changed")

    thread = threading.Thread(target=change)
    thread.start()
    has_begun.wait()
    with guard.still() as is_whole:
        assert is_whole and state == ["changed"]
    thread.join()


def test_nothing_changes_while_it_is_still():
    guard, state, is_still, may_end = StateGuard(), [], threading.Event(), threading.Event()

    def save():
        with guard.still():
            is_still.set()
            may_end.wait()
            state.append("saved")

    thread = threading.Thread(target=save)
    thread.start()
    is_still.wait()
    threading.Timer(0.2, may_end.set).start()
    with guard.changing():
        state.append("changed")
    thread.join()
    assert state == ["saved", "changed"]


def test_a_change_that_failed_leaves_nothing_whole():
    guard = StateGuard()
    with pytest.raises(MemoryError):
        with guard.changing():
            raise MemoryError
    with guard.still() as is_whole:
        assert not is_whole


def test_a_state_is_not_whole_within_the_change_itself():
    # As when a handler of a signal wants to save in the middle of an update.
    guard = StateGuard()
    with guard.changing():
        with guard.still() as is_whole:
            assert not is_whole
    with guard.still() as is_whole:
        assert is_whole
