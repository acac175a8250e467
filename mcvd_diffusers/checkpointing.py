"""Training checkpoints: complete and verified, or not there.

A checkpoint is a folder `checkpoint-<update>` with a pipeline that `MCVDPipeline.from_pretrained` loads, what training
needs beside it under `training/`, and a manifest of every file's size and SHA-256. A save goes in this order, so that a
kill at any moment leaves a checkpoint that verifies, the older or the newer one:

1. a hidden folder beside it is filled, each file is flushed to the disk, the manifest is written last;
2. the folder is renamed, and the folder above is flushed;
3. only then are older checkpoints removed, if there is a limit.

Everything in it is safetensors, JSON and Markdown: nothing in a checkpoint is ever executed.
"""

import contextlib
import errno
import hashlib
import itertools
import json
import logging
import mmap
import os
import platform
import re
import shutil
import tempfile
import threading
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

import psutil
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from mcvd_diffusers.atomic import make_readable, new_folder
from mcvd_diffusers.weights import CONFIG_DIGEST, config_digest, save_weights


logger = logging.getLogger("train_mcvd")  # only one process writes; Accelerate's would need its set-up

MANIFEST = "manifest.json"
FORMAT = "mcvd-diffusers checkpoint 1"

# Where a checkpoint has what.
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
AVERAGED_WEIGHTS = "unet/diffusion_pytorch_model.ema.safetensors"
INDEX = "model_index.json"
OPTIMIZER = "training/optimizer.safetensors"
STATE = "training/state.json"

_NAME = re.compile(r"checkpoint-(0|[1-9][0-9]{0,17})")
_REMAINS = re.compile(r"\.checkpoint-\d+\.(partial-.*|removed)|\.pipeline\.partial-.*")

# So much of the memory that is free must stay free, or a save is made without a copy of the state.
_SPARE_MEMORY = 0.1

# What a save takes beside the tensors, generously. Where a process may have so many addresses and no more (`ulimit -v`), a
# library that gets no memory for a few bytes may end it on the spot.
_RESERVED_BYTES = 1 << 26


class CheckpointError(ValueError):
    """A checkpoint that is not there, not complete or not unchanged."""


# --------------------------------------------------------------------------------------------------------------------
# Finding and verifying


def list_checkpoints(folder: Path) -> list[Path]:
    """
    The checkpoints in a folder, whether they verify or not.

    Args:
        folder (`Path`): The run's folder; need not exist.

    Returns:
        `list[Path]`: Folders called `checkpoint-<number>`, newest first.
    """
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if _NAME.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=update_of, reverse=True)


def update_of(checkpoint: Path) -> int:
    """
    Which update a checkpoint was made after.

    Args:
        checkpoint (`Path`): A folder called `checkpoint-<number>`.

    Returns:
        `int`: The number.
    """
    return int(_NAME.fullmatch(checkpoint.name)[1])


def verify_checkpoint(checkpoint: Path) -> dict:
    """
    Compare a checkpoint with its manifest, to the last byte.

    Args:
        checkpoint (`Path`): The folder.

    Returns:
        `dict`: The manifest.

    Raises:
        [`CheckpointError`]: Naming the file that is missing, shorter, longer or changed.
    """
    if not checkpoint.is_dir():
        raise CheckpointError(f"{checkpoint} is no folder.")
    try:
        manifest = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))
        stated = manifest.pop("sha256")
        files = {str(name): (int(facts["bytes"]), str(facts["sha256"])) for name, facts in manifest["files"].items()}
        update = int(manifest["update"])
    except FileNotFoundError:
        raise CheckpointError(
            f"{checkpoint} has no {MANIFEST}: it is no complete checkpoint of this library."
        ) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise CheckpointError(f"{checkpoint / MANIFEST} is damaged: {error!r:.200}.") from error
    if stated != _digest_of(manifest) or manifest.get("format") != FORMAT:
        raise CheckpointError(f"{checkpoint / MANIFEST} is damaged, or of another version of this library.")
    if _NAME.fullmatch(checkpoint.name) and update_of(checkpoint) != update:
        raise CheckpointError(f"{checkpoint} was made after update {update}: it has been renamed.")
    if not files:
        raise CheckpointError(f"{checkpoint / MANIFEST} names no file.")
    for name, (num_bytes, digest) in files.items():
        path = checkpoint / name
        if not path.resolve().is_relative_to(checkpoint.resolve()):
            raise CheckpointError(f"{checkpoint / MANIFEST} names {name!r:.200}, which lies outside.")
        if not path.is_file():
            raise CheckpointError(f"{path} is missing.")
        if path.stat().st_size != num_bytes:
            raise CheckpointError(f"{path} has {path.stat().st_size:,} bytes where {num_bytes:,} were written.")
        if _sha256(path) != digest:
            raise CheckpointError(f"{path} is damaged: its SHA-256 is not that of what was written.")
    return manifest


def find_checkpoint(folder: Path) -> Path | None:
    """
    The newest checkpoint in a folder that verifies. Others are named in a warning.

    Args:
        folder (`Path`): The run's folder; need not exist.

    Returns:
        `Path`: The checkpoint, or `None` if there is none at all.

    Raises:
        [`CheckpointError`]: If there are some, and none verifies: a run must not begin anew because of that.
    """
    reasons = []
    for checkpoint in list_checkpoints(folder):
        try:
            verify_checkpoint(checkpoint)
            return checkpoint
        except (CheckpointError, OSError) as error:
            reasons.append(str(error))
            logger.warning(f"warning: {checkpoint} can not be used: {error}")
    if reasons:
        raise CheckpointError(
            f"{folder} has {len(reasons)} checkpoint(s), and none can be used. The newest: {reasons[0]} Move them away to begin"
            " anew."
        )
    return None


def read_state(checkpoint: Path) -> dict:
    """
    What a checkpoint knows of its run, beside tensors.

    Args:
        checkpoint (`Path`): A checkpoint that verifies.

    Returns:
        `dict`: With `"settings"`, `"progress"`, `"data"`, `"division"` and `"precision"`.

    Raises:
        [`CheckpointError`]: If that is not what is in it.
    """
    path = checkpoint / STATE
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
        kinds = {"settings": dict, "progress": dict, "data": str, "division": dict, "precision": str}
        wrong = [name for name, kind in kinds.items() if not isinstance(state[name], kind)]
        wrong += [name for name in ("update", "num_samples", "num_skipped") if not _is_count(state["progress"][name])]
        wrong += [name for name, number in state["division"].items() if not _is_count(number)]
        if not 0 <= state["progress"]["seconds"] < float("inf"):
            wrong.append("seconds")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path} is no state of a training: {error!r:.200}.") from error
    if wrong:
        raise CheckpointError(f"{path} is no state of a training: {', '.join(wrong)} can not be so.")
    return state


def clean_up(folder: Path, resumed: Path | None) -> None:
    """
    Make way for what a run will write: to be called by the one process that holds the folder's lock.

    What an interrupted save or removal left is removed; damaged checkpoints that are newer than the one that is gone on
    from are renamed to `checkpoint-<number>.damaged`. Both are said in the log.

    Args:
        folder (`Path`): The run's folder.
        resumed (`Path`, *optional*): The checkpoint that is gone on from.

    Raises:
        [`CheckpointError`]: If a newer one verifies, which another run must have made since that was chosen.
    """
    for path in folder.iterdir():
        if _REMAINS.fullmatch(path.name) and path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
            logger.info(f"removed {path}, which an interrupted save had left")
    least = -1 if resumed is None or resumed.parent != folder else update_of(resumed)
    for path in list_checkpoints(folder):
        if update_of(path) > least:
            try:
                verify_checkpoint(path)
            except CheckpointError as error:
                logger.info(f"renamed {path} to {_set_aside(path, 'damaged').name}: {error}")
            else:
                raise CheckpointError(f"{path} has been made by another run in the meantime: start again.")


# --------------------------------------------------------------------------------------------------------------------
# Writing


def write_files(
    folder: Path, tensors: Mapping[str, Mapping[str, torch.Tensor]], texts: Mapping[str, str]
) -> dict[str, dict]:
    """
    Fill a folder, and flush each file to the disk.

    Args:
        folder (`Path`): An existing folder.
        tensors (`Mapping[str, Mapping[str, torch.Tensor]]`): Name of a safetensors file in it -> its tensors.
        texts (`Mapping[str, str]`): Name of a file in it -> its content. A `config.json` is sealed with the weights beside it.

    Returns:
        `dict[str, dict]`: `"bytes"` and `"sha256"` of each file, as read back.

    Raises:
        `OSError`: If the disk is full, or something else is in the way.
    """
    files = {}
    for name in (*tensors, *texts):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name in texts:
            path.write_text(texts[name], encoding="utf-8")
        else:
            config = texts.get(f"{Path(name).parent}/config.json")  # a network's weights know whose they are
            metadata = None if config is None else {CONFIG_DIGEST: config_digest(json.loads(config))}
            save_weights({key: x.contiguous() for key, x in tensors[name].items()}, path, metadata)
        _flush(path)
        files[name] = {"bytes": path.stat().st_size, "sha256": _sha256(path)}
    return files


class CheckpointWriter:
    """
    Writes checkpoints beside the training: [`save`] returns at once.

    A thread first copies the tensors to memory that it keeps for this, then writes the copy. Tensors may be read but not
    changed until they are copied, so the optimizer's step has to [`wait_until_copied`]; forward and backward pass do
    not. Where memory does not suffice, the thread writes the tensors themselves, and that wait becomes longer.

    Args:
        folder (`Path`): The run's folder.
        total_limit (`int`): How many checkpoints are kept; 0: all.
    """

    def __init__(self, folder: Path, total_limit: int) -> None:
        self._folder, self._total_limit = folder, total_limit
        self._thread: threading.Thread | None = None
        self._is_copied = threading.Event()
        self._is_copied.set()
        self._error: OSError | None = None
        self._buffers: dict[tuple[str, str], torch.Tensor] = {}
        self._changed: torch.cuda.Event | None = None
        self._reserve: mmap.mmap | None = mmap.mmap(-1, _RESERVED_BYTES)  # never touched: only addresses

    def mark_changed(self) -> None:
        """
        The tensors have just been changed. On a GPU a copy then need not wait for more than that: the queue behind may never
        end, as when another process has died.
        """
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            self._changed = torch.cuda.current_stream().record_event()

    def save(
        self,
        update: int,
        *,
        tensors: Mapping[str, Mapping[str, torch.Tensor]],
        texts: Mapping[str, str],
        facts: Mapping[str, object],
    ) -> Path:
        """
        Begin to write a checkpoint. One that is there already is left alone.

        Waits for the one before. A failure is logged, and raised by [`finish`]; the checkpoints that are there stay.

        Args:
            update (`int`): Its number.
            tensors (`Mapping[str, Mapping[str, torch.Tensor]]`): Name of a safetensors file -> its tensors.
            texts (`Mapping[str, str]`): Name of a text file -> its content.
            facts (`Mapping[str, object]`): What else the manifest says.

        Returns:
            `Path`: The checkpoint that is being made.
        """
        checkpoint = self._folder / f"checkpoint-{update}"
        self._join()
        self._error = None
        if (checkpoint / MANIFEST).is_file():
            return checkpoint
        if self._changed is None:
            self.mark_changed()
        self._is_copied.clear()
        arguments = (checkpoint, tensors, dict(texts), dict(facts) | {"update": update})
        self._thread, thread = None, threading.Thread(target=self._save, args=arguments)
        if self._reserve is not None:
            with contextlib.suppress(RuntimeError):  # there may be no more threads
                thread.start()
                self._thread = thread
        if self._thread is None:
            self._save(*arguments)
        return checkpoint

    def use_less_memory(self) -> None:
        """
        Memory has run out: give back what is held, and take as little as can be from here on. [`save`] then returns when
        the checkpoint is on the disk.
        """
        self._join()
        self._buffers.clear()
        if self._reserve is not None:
            self._reserve.close()
            self._reserve = None

    def wait_until_copied(self) -> None:
        """Return when tensors of the last save may be changed."""
        self._is_copied.wait()

    def finish(self) -> None:
        """
        Return when the last checkpoint is on the disk.

        Raises:
            `OSError`: If it could not be written: what is needed, and what is there.
        """
        self._join()
        if self._error is not None:
            raise self._error

    def _join(self) -> None:
        thread = self._thread
        if thread is not None:
            thread.join()

    def _save(self, checkpoint: Path, tensors, texts, facts) -> None:
        try:
            num_bytes = _size(tensors)
            free = shutil.disk_usage(self._folder).free
            try:
                if free < num_bytes:
                    raise OSError("No space left on device")
                copies = self._copy(tensors, num_bytes)
                with new_folder(checkpoint) as partial:
                    files = write_files(partial, copies, texts)
                    manifest = {"format": FORMAT, **facts, "versions": _versions(), "files": files}
                    text = json.dumps(manifest | {"sha256": _digest_of(manifest)}, indent=1)
                    write_files(partial, {}, {MANIFEST: text})
                    for path in (partial, *(path for path in partial.rglob("*") if path.is_dir())):
                        _flush(path)
                _flush(self._folder)
            except OSError as error:
                raise OSError(
                    f"{checkpoint} could not be written: {error}. It needs {num_bytes:,} bytes; {free:,} are free in"
                    f" {self._folder}. The checkpoints that are there are untouched."
                ) from error
            try:
                self._remove_old(checkpoint)
            except OSError as error:  # the new one is there
                logger.warning(f"warning: an older checkpoint could not be removed: {error}")
        except OSError as error:
            self._error = error
            logger.error(f"error: {error}")
        except BaseException as error:  # a thread's errors reach nobody else
            self._error = OSError(f"{checkpoint} could not be written: {error!r}")
            logger.exception(f"error: {self._error}")
        finally:
            self._is_copied.set()

    def _copy(self, tensors, num_bytes: int) -> dict[str, dict[str, torch.Tensor]]:
        """The tensors in memory of their own, if there is enough; else themselves."""
        if self._reserve is None:
            return tensors
        if not self._buffers and num_bytes > (1 - _SPARE_MEMORY) * _free_memory():
            logger.info(
                f"memory does not suffice to copy the state ({num_bytes:,} bytes): training waits for its checkpoints"
            )
            return tensors
        stream = None
        if self._changed is not None:
            stream = torch.cuda.Stream(self._changed.device)
            stream.wait_event(self._changed)
        copies: dict[str, dict[str, torch.Tensor]] = {name: {} for name in tensors}  # one may be empty
        rows = [(name, key, x) for name, group in tensors.items() for key, x in group.items()]
        try:
            for name, key, x in rows:
                copies[name][key] = self._buffer(name, key, x, is_pinned=stream is not None)
        except (RuntimeError, MemoryError) as error:  # of pinned memory there may be less
            logger.warning(f"warning: no memory to copy the state, training waits for this checkpoint: {error}")
            self._buffers.clear()
            return tensors
        with torch.no_grad(), torch.cuda.stream(stream):
            for name, key, x in rows:
                copies[name][key].copy_(x, non_blocking=stream is not None)
        if stream is not None:
            stream.synchronize()
        self._is_copied.set()
        return copies

    def _buffer(self, name: str, key: str, x: torch.Tensor, is_pinned: bool) -> torch.Tensor:
        buffer = self._buffers.get((name, key))
        if buffer is None or buffer.shape != x.shape or buffer.dtype != x.dtype:
            buffer = self._buffers[name, key] = torch.empty(x.shape, dtype=x.dtype, pin_memory=is_pinned)
        return buffer

    def _remove_old(self, newest: Path) -> None:
        """Removes what the limit leaves no room for. Folders without a manifest are not ours."""
        if not self._total_limit:
            return
        older = [path for path in list_checkpoints(self._folder) if update_of(path) < update_of(newest)]
        for path in [path for path in older if (path / MANIFEST).is_file()][self._total_limit - 1 :]:
            hidden = path.with_name(f".{path.name}.removed")  # a kill in the middle leaves no half of a checkpoint
            path.rename(hidden)
            shutil.rmtree(hidden)
            logger.info(f"removed {path} (--checkpoints_total_limit {self._total_limit})")


def _flush(path: Path) -> None:
    """Returns when a file, or the entries of a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if not (path.is_dir() and error.errno in (errno.EINVAL, errno.ENOTSUP)):  # some file systems flush files only
            raise
    finally:
        os.close(descriptor)


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is_count(number: object) -> bool:
    return type(number) is int and 0 <= number < 2**63


def _set_aside(path: Path, why: str) -> Path:
    """Gives a file or folder another name, which nothing has: `NAME.why`, `NAME.why2`, ..."""
    names = (path.with_name(f"{path.name}.{why}{number if number > 1 else ''}") for number in itertools.count(1))
    return path.rename(next(name for name in names if not (name.exists() or name.is_symlink())))


def _digest_of(content: dict) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _size(tensors: Mapping[str, Mapping[str, torch.Tensor]]) -> int:
    return sum(x.numel() * x.element_size() for group in tensors.values() for x in group.values())


def _free_memory() -> int:
    """Bytes that may still be taken: of the machine, and of the share that a job or a container has of it."""
    free = psutil.virtual_memory().available
    group = Path("/sys/fs/cgroup")
    with contextlib.suppress(OSError, ValueError):
        most, now = ((group / f"memory.{name}").read_text() for name in ("max", "current"))
        free = min(free, int(most) - int(now))
    return free


def version_changes(checkpoint: Path) -> list[str]:
    """
    What has another version than when a checkpoint was made: results may then differ in rounding.

    Args:
        checkpoint (`Path`): A checkpoint that verifies.

    Returns:
        `list[str]`: Such as `"torch 2.12.0 -> 2.13.0"`.
    """
    before = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))["versions"]
    return [f"{name} {before.get(name)} -> {now}" for name, now in _versions().items() if before.get(name) != now]


def _versions() -> dict[str, str]:
    packages = ("mcvd-diffusers", "torch", "diffusers", "accelerate", "safetensors", "numpy")
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}


# --------------------------------------------------------------------------------------------------------------------
# What the state of a training is


def weights_file(component: str, *, is_average: bool = False) -> str:
    """
    Where the weights of a pipeline's component are, as Diffusers has it.

    Args:
        component (`str`): Its name in the pipeline.
        is_average (`bool`, *optional*, defaults to `False`): Whether it is their average.

    Returns:
        `str`: Path in the folder.
    """
    return f"{component}/{Path(AVERAGED_WEIGHTS if is_average else WEIGHTS).name}"


def training_tensors(
    components: torch.nn.ModuleDict, averaged: torch.nn.ModuleDict | None, optimizer: torch.optim.Optimizer
) -> dict[str, dict[str, torch.Tensor]]:
    """
    All tensors of a training, as files. They are not copied.

    Args:
        components (`torch.nn.ModuleDict`): What is trained, not wrapped, by the names that it has in the pipeline.
        averaged (`torch.nn.ModuleDict`, *optional*): Their moving averages.
        optimizer (`torch.optim.Optimizer`): The optimizer of their parameters, not wrapped.

    Returns:
        `dict[str, dict[str, torch.Tensor]]`: Name of a safetensors file -> its tensors.
    """
    tensors = {weights_file(name): module.state_dict() for name, module in components.items()}
    if averaged is not None:
        tensors |= {weights_file(name, is_average=True): module.state_dict() for name, module in averaged.items()}
    tensors[OPTIMIZER] = {
        f"{name}.{kind}": x
        for name, parameter in components.named_parameters()
        for kind, x in optimizer.state.get(parameter, {}).items()
    }
    return {name: {key: x.detach() for key, x in group.items()} for name, group in tensors.items()}


def load_training_tensors(
    checkpoint: Path,
    components: torch.nn.ModuleDict,
    averaged: torch.nn.ModuleDict | None,
    optimizer: torch.optim.Optimizer,
) -> None:
    """
    Bring a training to the state of a checkpoint, bit for bit.

    Args:
        checkpoint (`Path`): A checkpoint that verifies.
        components (`torch.nn.ModuleDict`): See [`training_tensors`].
        averaged (`torch.nn.ModuleDict`, *optional*): See there.
        optimizer (`torch.optim.Optimizer`): See there. Its hyper-parameters stay.

    Raises:
        [`CheckpointError`]: If the checkpoint is of another network, or keeps an average and this training does not.
    """
    if (averaged is not None) != (checkpoint / AVERAGED_WEIGHTS).is_file():
        raise CheckpointError(f"{checkpoint} was made with --use_ema {averaged is None}: leave that as it was.")
    for modules, is_average in ((components, False), (averaged or {}, True)):
        for component, module in modules.items():
            name = weights_file(component, is_average=is_average)
            try:
                module.load_state_dict(load_file(checkpoint / name))
            except (RuntimeError, OSError, SafetensorError) as error:
                raise CheckpointError(f"{checkpoint / name} is of another network: {error}") from error
    try:
        saved = load_file(checkpoint / OPTIMIZER)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{checkpoint / OPTIMIZER} can not be read: {error}") from error
    states: dict[int, dict[str, torch.Tensor]] = {}
    is_begun = bool(saved)
    for number, (name, parameter) in enumerate(components.named_parameters()):
        state = {key.removeprefix(f"{name}."): saved.pop(key) for key in [*saved] if key.rpartition(".")[0] == name}
        shapes = {kind: x.shape for kind, x in state.items()}
        if is_begun and shapes != {"step": (), "exp_avg": parameter.shape, "exp_avg_sq": parameter.shape}:
            raise CheckpointError(f"{checkpoint / OPTIMIZER} is of another network or optimizer: {name} does not fit.")
        if state:
            states[number] = state
    if saved:
        raise CheckpointError(
            f"{checkpoint / OPTIMIZER} is of another network: {sorted(saved)[0]} is not in this one."
        )
    optimizer.load_state_dict({"state": states, "param_groups": optimizer.state_dict()["param_groups"]})


def holds_pipeline(folder: Path) -> bool:
    """
    Whether a pipeline has been published in a folder.

    Args:
        folder (`Path`): The run's folder.

    Returns:
        `bool`: Whether its index and its weights are there.
    """
    return (folder / INDEX).is_file() and (folder / WEIGHTS).is_file()


def publish_pipeline(
    folder: Path, tensors: Mapping[str, Mapping[str, torch.Tensor]], texts: Mapping[str, str]
) -> None:
    """
    Put a pipeline beside a run's checkpoints, so that `folder` is one; `model_index.json` last.

    What has one of its names, and is not what a killed end of the same run has left there, is renamed to `NAME.before`.

    Args:
        folder (`Path`): The run's folder.
        tensors (`Mapping[str, Mapping[str, torch.Tensor]]`): As for [`write_files`].
        texts (`Mapping[str, str]`): As for [`write_files`], `model_index.json` among them.

    Raises:
        `FileExistsError`: If there is a pipeline.
        `OSError`: If it can not be written: what is needed, and what is there.
    """
    if holds_pipeline(folder):
        raise FileExistsError(f"{folder} holds a pipeline already.")
    partial = None
    try:
        partial = Path(tempfile.mkdtemp(prefix=".pipeline.partial-", dir=folder))
        write_files(partial, tensors, texts)
        make_readable(partial)
        for path in partial.rglob("*"):
            if path.is_dir():
                _flush(path)
        for path in sorted(partial.iterdir(), key=lambda path: path.name == INDEX):
            target = folder / path.name
            if target.exists() and _contents(target) == _contents(path):
                continue
            if target.exists():
                logger.info(f"renamed {target} to {_set_aside(target, 'before').name}, to save the pipeline")
            if path.name == INDEX:
                _flush(folder)
            os.replace(path, target)
        shutil.rmtree(partial)
        _flush(folder)
    except OSError as error:
        if partial is not None:
            shutil.rmtree(partial, ignore_errors=True)
        free = shutil.disk_usage(folder).free
        raise OSError(
            f"The pipeline could not be saved in {folder}: {error}. It needs {_size(tensors):,} bytes; {free:,} are free."
        ) from error


def _contents(path: Path) -> dict[str, str]:
    """What a file is, or a folder holds."""
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    return {str(file.relative_to(path)): _sha256(file) for file in files}
