"""A folder that one process at a time may write to."""

import errno
import fcntl
import json
import logging
import os
import socket
from datetime import datetime
from pathlib import Path


logger = logging.getLogger("train_mcvd")

LOCK_NAME = ".mcvd_diffusers.lock"


class FolderInUseError(OSError):
    """Another process that is alive writes to the folder."""


class FolderLock:
    """
    The right to write to a folder.

    It is a lock of the operating system on a hidden file, which also says who holds it. The system gives it back when the
    process ends, however that happens, also on another machine that shares the file system; so a dead process holds
    nothing, and the file is left where it is. It is the process's: within one process it refuses nothing.

    Args:
        folder (`Path`): An existing folder.

    Raises:
        [`FolderInUseError`]: If another process holds it: which one, and on which host.
        `OSError`: If the file can not be made.
    """

    @staticmethod
    def check(folder: Path) -> None:
        """
        Refuse a folder that another process writes to, without taking it.

        Args:
            folder (`Path`): The folder; need not exist.

        Raises:
            [`FolderInUseError`]: As the constructor.
        """
        path = folder / LOCK_NAME
        if not path.is_file():
            return
        with open(path, encoding="utf-8") as file:
            try:
                fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared: several may ask at once
            except OSError as error:
                if error.errno in (errno.EACCES, errno.EAGAIN):
                    raise _in_use(folder, file.read()) from error

    def __init__(self, folder: Path) -> None:
        path = folder / LOCK_NAME
        # A lock of `lockf`, not of `flock`: the latter passes to worker processes, and so outlives the one that took it.
        try:  # not through a link: what it points to would be written over
            self._file = open(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666), "r+", encoding="utf-8")
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.EISDIR):
                raise OSError(f"{path} is a link or folder where the lock file belongs: move it away.") from error
            raise
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                self._file.seek(0)
                holder = self._file.read()
                self._file.close()
                raise _in_use(folder, holder) from error
            logger.warning(f"warning: the file system of {folder} has no locks: nothing else must be started there")
        self._file.seek(0)
        self._file.truncate(0)
        now = datetime.now().astimezone().isoformat(timespec="seconds")
        json.dump({"process": os.getpid(), "host": socket.gethostname(), "since": now}, self._file)
        self._file.flush()

    def release(self) -> None:
        """Give the folder back."""
        if not self._file.closed:
            self._file.truncate(0)
            self._file.close()


def _in_use(folder: Path, holder: str) -> FolderInUseError:
    try:
        holder = "process {process} on {host}, since {since}".format(**json.loads(holder))
    except (ValueError, KeyError):
        holder = "another process"
    return FolderInUseError(f"{folder} is in use by {holder}. Wait for it, stop it, or choose another folder.")
