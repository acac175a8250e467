"""Folders and files that appear when they are complete, or not at all; new ones never in the place of another."""

import contextlib
import itertools
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def new_folder(output: Path) -> Iterator[Path]:
    """
    A folder to fill beside `output`, which takes its place when the block is left; otherwise nothing is left.

    Errors and signals that become exceptions (Ctrl-C) clean up; after a kill a hidden `.OUTPUT.partial-*` stays.

    Args:
        output (`Path`): Absolute path of the folder to make; folders above it are made, too.

    Yields:
        `Path`: The hidden folder to fill.

    Raises:
        `OSError`: As [`check_new_folder`], if `output` has been taken in the meantime.
    """
    missing = [parent for parent in output.parents if not parent.exists()]  # nearest first
    partial = None
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=_partial_prefix(output.name), dir=output.parent))
        yield partial
        make_readable(partial)
        check_new_folder(output)
        os.replace(partial, output)  # onto an empty folder, or nothing
    except BaseException:
        with _uninterrupted():
            if partial is not None:
                shutil.rmtree(partial, ignore_errors=True)
            for parent in missing:
                with contextlib.suppress(OSError):  # somebody else may use it by now
                    parent.rmdir()
        raise


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """
    A file to write beside `path`, which takes its place when the block is left, if nothing is there by then; otherwise nothing
    is left. Several processes may try: one of them makes the file.

    Args:
        path (`Path`): The file, in an existing folder.

    Yields:
        `Path`: The hidden file to write, empty, with the same suffix; after a kill a `.PATH.partial-*` stays.

    Raises:
        `FileExistsError`: If there is something at `path` when the block is left.
        `OSError`: If nothing can be written there.
    """
    handle, name = tempfile.mkstemp(prefix=_partial_prefix(path.stem), suffix=path.suffix, dir=path.parent)
    os.close(handle)
    partial = Path(name)
    try:
        yield partial
        make_readable(partial)
        try:
            os.link(partial, path)  # unlike `replace`, it refuses what exists
        except OSError:  # that, or a file system without hard links
            check_new_file(path)
            os.replace(partial, path)
    finally:
        with _uninterrupted():
            partial.unlink(missing_ok=True)


def _partial_prefix(name: str) -> str:
    """The beginning of a hidden name, short enough for what is put behind it."""
    return f".{name.encode()[:100].decode(errors='ignore')}.partial-"


@contextlib.contextmanager
def whole_file(path: Path, *, is_flushed: bool = False) -> Iterator[Path]:
    """
    A file to write beside `path`, which takes its place when the block is left; otherwise nothing changes.

    Args:
        path (`Path`): The file, in an existing folder. What is there is replaced as a whole.
        is_flushed (`bool`, *optional*, defaults to `False`): Whether it is on the disk before it gets its name.

    Yields:
        `Path`: The hidden file to write, with the same suffix; after a kill it stays, until the next one takes its place.

    Raises:
        `OSError`: If it cannot take the place.
    """
    partial = path.with_name(f".{path.stem}.partial{path.suffix}")
    with contextlib.suppress(OSError):  # a link to somewhere else must not be written through
        partial.unlink()
    try:
        yield partial
        if is_flushed:
            with open(partial, "rb") as file:
                os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def check_new_folder(output: Path) -> None:
    """
    Refuse a path where no new folder could be made.

    Args:
        output (`Path`): Absolute path.

    Raises:
        `FileExistsError`: If there is something, other than an empty folder, or a file in the way.
        `OSError`: If the path is too deep.
    """
    if output.is_symlink() or (output.exists() and not output.is_dir()):
        raise FileExistsError(f"{output} is taken by a file or link: choose another folder.")
    if output.exists() and any(output.iterdir()):
        raise FileExistsError(
            f"{output} exists and is not empty. Nothing is overwritten here: choose another folder, or move it away."
        )
    blocked = next((parent for parent in output.parents if parent.exists() or parent.is_symlink()), None)
    if blocked is not None and not blocked.is_dir():
        raise FileExistsError(f"{output} cannot be made: {blocked} is no folder.")
    if len(output.parts) > 200:
        raise OSError(f"{output} lies in {len(output.parts)} folders: choose a shorter path.")


def check_new_file(path: Path) -> None:
    """
    Refuse a path where no new file could be written, before there is anything to write.

    Args:
        path (`Path`): Absolute path.

    Raises:
        `FileExistsError`: If there is something, a dangling link, too.
        `OSError`: If its folder does not exist or cannot be written to, or its name is too long.
    """
    try:
        path.lstat()
    except FileNotFoundError:
        pass
    else:
        raise FileExistsError(f"{path} exists, and nothing is overwritten: name another, or move it away.")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path} lies in a folder that does not exist: make it, or name another.")
    check_writable(path.parent)


def check_writable(folder: Path) -> None:
    """
    Refuse a folder in which nothing can be written; if it does not exist, that in which it would be made.

    Args:
        folder (`Path`): Absolute path.

    Raises:
        `OSError`: If a file cannot be made there.
    """
    folder = next(parent for parent in [folder, *folder.parents] if parent.exists())
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise type(error)(
            f"Nothing can be written in {folder}: {error.strerror or error}. Name another folder."
        ) from error


@contextlib.contextmanager
def _uninterrupted():
    """No further signal stops the cleaning up."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    former = [signal.signal(number, signal.SIG_IGN) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, former):
            signal.signal(number, handler)


def make_readable(path: Path) -> None:
    """
    Give a file, or a folder and all in it, the rights that new files have here: temporary files and weights are made private.

    Args:
        path (`Path`): The file or folder.
    """
    mask = os.umask(0)
    os.umask(mask)
    for path in [path, *path.rglob("*")]:
        path.chmod((0o777 if path.is_dir() else 0o666) & ~mask)


def numbered_folder(output: str | os.PathLike) -> Path:
    """
    Make a new folder by this name, or by the first of NAME-2, NAME-3, ... that is not there: for scripts that are run again.

    Args:
        output (`str` or `os.PathLike`): The folder; those above it are made, too.

    Returns:
        `Path`: The folder that was made. It is empty.

    Raises:
        `OSError`: If it cannot be made, or a file is where a folder above it would be.
    """
    output = Path(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    for number in itertools.count(1):
        folder = output if number == 1 else output.with_name(f"{output.name}-{number}")
        with contextlib.suppress(FileExistsError):
            folder.mkdir()
            return folder
