"""Signals that ask a training to stop, and what must not be interrupted.

A handler of Python's runs in the main thread, between two of its instructions: not while that waits for data, compiles,
or computes for a minute. So a thread of its own is told of signals. It first leaves it to the main thread to stop where it
likes; if that does not come to it, the thread saves what the last update left, and ends the process.
"""

import contextlib
import logging
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator


logger = logging.getLogger("train_mcvd")

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)

# A launcher that is stopped sends its processes one more signal at once: that is no second request.
SAME_REQUEST_SECONDS = 1.0

# No signal's number: tells the thread that it is not needed any more.
_END = 0


class StopSignals:
    """
    Turns SIGTERM, SIGINT and SIGUSR1 into a request to stop, within the `with` block that it opens.

    The training asks [`is_asked`] where it can stop, and then calls [`take_over`]. If it has not within `grace_seconds` of
    the signal, what [`watch`] was given is called in a thread, and the process ends. It ends in any case after
    `deadline_seconds`; at a second signal, a second or more after the first; and at the first one as long as there is
    nothing to save. The exit code is 128 + the signal's number.

    Args:
        grace_seconds (`float`, *optional*, defaults to 8.0): Until the thread acts for the training.
        deadline_seconds (`float`, *optional*, defaults to 28.0): Until it ends whatever happens then.
    """

    def __init__(self, *, grace_seconds: float = 8.0, deadline_seconds: float = 28.0) -> None:
        self.grace_seconds, self.deadline_seconds = grace_seconds, deadline_seconds
        self._save: Callable[[], str] | None = None
        self.number: int | None = None
        """The signal that came first."""
        self._is_taken_over = threading.Event()
        self._is_over = threading.Event()

    @property
    def is_asked(self) -> bool:
        """Whether a signal has come."""
        return self.number is not None

    @property
    def exit_code(self) -> int:
        """What the process ends with: 0 without a signal."""
        return 0 if self.number is None else 128 + self.number

    def ask(self, number: int = signal.SIGTERM) -> None:
        """
        Ask to stop, as if a signal had come.

        Args:
            number (`int`, *optional*): The signal's.
        """
        if self.number is None:
            self.number = number
            logger.info(_stopping(number))

    def watch(self, save: Callable[[], str], *, is_first_process: bool, deadline_seconds: float | None = None) -> None:
        """
        There is something to save from now on.

        Args:
            save (`Callable[[], str]`): Saves it, from any thread, and says where it is.
            is_first_process (`bool`): Whether this process saves for all. Others must not leave it before it has.
            deadline_seconds (`float`, *optional*): Instead of that of the constructor.
        """
        if deadline_seconds is not None:
            self.deadline_seconds = deadline_seconds
            self.grace_seconds = min(self.grace_seconds, deadline_seconds / 3)
        self._save = save
        if not is_first_process:
            self.grace_seconds = self.deadline_seconds

    def take_over(self) -> None:
        """The training is about to save and to end by itself."""
        self._is_taken_over.set()

    def __enter__(self) -> "StopSignals":
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)
        self._former = {number: signal.signal(number, lambda *_: None) for number in STOP_SIGNALS}
        self._former_descriptor = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._is_over.set()
        signal.set_wakeup_fd(self._former_descriptor)
        for number, handler in self._former.items():
            signal.signal(number, handler)
        os.write(self._writer, bytes([_END]))  # closing it would not do: processes that were forked have it, too
        self._thread.join()
        os.close(self._writer)
        os.close(self._reader)

    def _watch(self) -> None:
        first = None
        while (number := os.read(self._reader, 1)[0]) != _END:
            if number not in STOP_SIGNALS:  # of a worker that ended, say
                continue
            now = time.monotonic()
            if first is None:
                first, self.number = now, self.number or number
                for act in (self._save_for_the_training, self._end_in_any_case):
                    threading.Thread(target=act, daemon=True).start()
                _say(_stopping(number))
                if self._save is None:  # nothing has begun
                    self._exit()
            elif now - first >= SAME_REQUEST_SECONDS:
                _say(f"{signal.Signals(number).name}: stopping at once")
                self._exit()

    def _save_for_the_training(self) -> None:
        if self._is_taken_over.wait(self.grace_seconds) or self._is_over.is_set():
            return
        _say(f"training did not come to a stop within {self.grace_seconds:g} s: saving what the last update left")
        try:
            if where := self._save():
                _say(where)
        except Exception:
            logger.exception("nothing was saved")
        self._exit()

    def _end_in_any_case(self) -> None:
        if not self._is_over.wait(self.deadline_seconds):
            _say(
                f"{self.deadline_seconds:g} s are over: stopping without what was still being saved; older checkpoints are"
                " complete"
            )
            self._exit()

    def _exit(self) -> None:
        for worker in multiprocessing.active_children():
            worker.kill()
        os._exit(self.exit_code)


def _stopping(number: int) -> str:
    """What is said of the first request."""
    return f"{signal.Signals(number).name}: stopping; a second signal stops at once"


def _say(message: str) -> None:
    """Whoever reads the log may have stopped reading: that must not hold up the end."""
    thread = threading.Thread(target=logger.info, args=(message,), daemon=True)
    thread.start()
    thread.join(1.0)


def ignore_stop_signals(*_) -> None:
    """For processes that load data: they end with the training, not before."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


class StateGuard:
    """
    Keeps the state of a training whole: while it changes nobody saves it, and nothing interrupts the change.

    The attribute `is_whole` is false once a change has failed half-way, as when memory runs out in it.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self.is_whole = True

    @contextlib.contextmanager
    def changing(self) -> Iterator[None]:
        """The state changes in this block."""
        with self._lock, _deferring(signal.SIGCHLD):
            was_whole, self.is_whole = self.is_whole, False
            yield
            self.is_whole = was_whole

    @contextlib.contextmanager
    def still(self) -> Iterator[bool]:
        """
        The state does not change in this block, which waits for a change to end.

        Yields:
            `bool`: Whether the state is whole.
        """
        with self._lock, _deferring(signal.SIGCHLD):  # a save that has half begun could not be waited for
            yield self.is_whole


def end_workers(workers: list[multiprocessing.Process]) -> None:
    """
    End processes that load data, also those that hang, without the error that a data loader raises when one dies.

    Args:
        workers (`list[multiprocessing.Process]`): Which.
    """
    if not workers:
        return
    is_main_thread = threading.current_thread() is threading.main_thread()
    handler = signal.signal(signal.SIGCHLD, lambda *_: None) if is_main_thread else None
    try:
        for worker in workers:
            worker.kill()
        for worker in workers:
            worker.join()
    finally:
        if handler is not None:
            signal.signal(signal.SIGCHLD, handler)


@contextlib.contextmanager
def _deferring(number: int) -> Iterator[None]:
    """The handler of a signal runs after this block. (That of a data loader raises when a worker dies.)"""
    handler = signal.getsignal(number)
    if threading.current_thread() is not threading.main_thread() or not callable(handler):
        yield
        return
    calls = []
    signal.signal(number, lambda *arguments: calls.append(arguments))
    try:
        yield
    finally:
        signal.signal(number, handler)
    for arguments in calls[:1]:
        handler(*arguments)
