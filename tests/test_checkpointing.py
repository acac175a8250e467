"""checkpointing.py and folder_lock.py: what is on the disk after a save, a failure, a kill; and who may write there."""

import fcntl
import hashlib
import json
import logging
import os
import shutil
import signal
import socket
import sys
import threading
import time
from collections.abc import Mapping
from types import SimpleNamespace

import psutil
import pytest
import torch
from safetensors.torch import load_file

from mcvd_diffusers.checkpointing import (
    AVERAGED_WEIGHTS,
    MANIFEST,
    OPTIMIZER,
    STATE,
    WEIGHTS,
    CheckpointError,
    CheckpointWriter,
    clean_up,
    find_checkpoint,
    list_checkpoints,
    load_training_tensors,
    publish_pipeline,
    read_state,
    training_tensors,
    update_of,
    verify_checkpoint,
)
from mcvd_diffusers.folder_lock import LOCK_NAME, FolderInUseError, FolderLock


FORKS = pytest.mark.skipif(not hasattr(os, "fork"), reason="kills processes that are forked")
PROGRESS = {"update": 3, "num_samples": 12, "num_skipped": 0, "seconds": 1.5}
TRAINING = {"settings": {}, "progress": PROGRESS, "data": "clips", "division": {"processes": 1}, "precision": "no"}
TEXTS = {"model_index.json": '{"a": 1}', "unet/config.json": "{}", STATE: json.dumps(TRAINING)}


def make_tensors(value=0.0):
    """What is saved: all of it this value, so that a mixture shows."""
    return {
        WEIGHTS: {"weight": torch.full((40, 30), value), "bias": torch.full((7,), value)},
        AVERAGED_WEIGHTS: {"weight": torch.full((40, 30), value)},
        OPTIMIZER: {"weight.exp_avg": torch.full((40, 30), value), "weight.step": torch.tensor(value)},
    }


def save(folder, update, *, limit=0, tensors=None, writer=None):
    """Save a checkpoint, whose values are its update if nothing else is given, and wait for it."""
    writer = writer or CheckpointWriter(folder, limit)
    checkpoint = writer.save(update, tensors=tensors or make_tensors(float(update)), texts=TEXTS, facts={"epoch": 7})
    writer.finish()
    return checkpoint


def values(checkpoint):
    """All values in a checkpoint."""
    return {x for name in make_tensors() for t in load_file(checkpoint / name).values() for x in t.unique().tolist()}


def names(folder):
    return sorted(path.name for path in folder.iterdir())


class Held(Mapping):
    """Tensors whose last file is only given when the test says so: the copy is held in the middle."""

    def __init__(self, tensors):
        self._tensors, self.may_go_on = tensors, threading.Event()

    def __getitem__(self, name):
        return self._tensors[name]

    def __iter__(self):
        return iter(self._tensors)

    def __len__(self):
        return len(self._tensors)

    def items(self):
        *first, last = self._tensors.items()
        yield from first
        self.may_go_on.wait(10)
        yield last


@pytest.fixture
def no_memory(monkeypatch):
    """The machine says that it has no memory left."""
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=0))


# --------------------------------------------------------------------------------------------------------------------
# What a checkpoint is


def test_a_checkpoint_holds_what_was_saved_and_verifies(tmp_path):
    checkpoint = save(tmp_path, 12)
    manifest = verify_checkpoint(checkpoint)
    assert checkpoint == tmp_path / "checkpoint-12" and update_of(checkpoint) == 12
    assert names(tmp_path) == ["checkpoint-12"]
    assert (manifest["update"], manifest["epoch"]) == (12, 7) and manifest["versions"]["torch"]
    on_disk = {str(path.relative_to(checkpoint)) for path in checkpoint.rglob("*") if path.is_file()}
    assert set(manifest["files"]) == on_disk - {MANIFEST} == {*make_tensors(), *TEXTS}
    assert manifest["files"][WEIGHTS]["bytes"] == (checkpoint / WEIGHTS).stat().st_size
    assert values(checkpoint) == {12.0} and read_state(checkpoint) == TRAINING
    assert (checkpoint / "model_index.json").read_text() == TEXTS["model_index.json"]


def test_tensors_of_any_type_and_layout_are_saved_bit_for_bit(tmp_path):
    tensors = {
        WEIGHTS: {
            "channels_last": torch.randn(3, 4, 5, 6).to(memory_format=torch.channels_last),
            "transposed": torch.randn(4, 9).T,
            "half": torch.randn(5).to(torch.bfloat16),
            "not_finite": torch.tensor([float("nan"), float("inf"), -0.0]),
            "count": torch.tensor(3),
            "empty": torch.empty(0, 4),
        }
    }
    checkpoint = save(tmp_path, 1, tensors=tensors)
    for key, x in load_file(checkpoint / WEIGHTS).items():
        expected = tensors[WEIGHTS][key].contiguous()
        assert x.dtype == expected.dtype and x.shape == expected.shape
        assert x.flatten().view(torch.uint8).tolist() == expected.flatten().view(torch.uint8).tolist()


def cut_short(checkpoint):
    path = checkpoint / OPTIMIZER
    path.write_bytes(path.read_bytes()[:-1])


def change_a_bit(checkpoint):
    content = bytearray((checkpoint / WEIGHTS).read_bytes())
    content[-1] ^= 1
    (checkpoint / WEIGHTS).write_bytes(content)


def change_the_manifest(checkpoint):
    manifest = json.loads((checkpoint / MANIFEST).read_text())
    (checkpoint / MANIFEST).write_text(json.dumps(manifest | {"epoch": 8}))


def of_another_format(checkpoint):
    (checkpoint / MANIFEST).write_text('{"files": {}, "update": 3, "sha256": "0", "format": "another"}')


DAMAGES = {
    "cut_short": (cut_short, f"{OPTIMIZER} has .* bytes where"),
    "bit": (change_a_bit, f"{WEIGHTS} is damaged"),
    "file": (lambda checkpoint: (checkpoint / AVERAGED_WEIGHTS).unlink(), f"{AVERAGED_WEIGHTS} is missing"),
    "manifest": (lambda checkpoint: (checkpoint / MANIFEST).unlink(), f"has no {MANIFEST}"),
    "manifest_cut": (lambda checkpoint: (checkpoint / MANIFEST).write_text('{"files"'), f"{MANIFEST} is damaged"),
    "manifest_list": (lambda checkpoint: (checkpoint / MANIFEST).write_text("[1]"), f"{MANIFEST} is damaged"),
    "manifest_bytes": (lambda checkpoint: (checkpoint / MANIFEST).write_bytes(b"\xff\xfe"), f"{MANIFEST} is damaged"),
    "manifest_changed": (change_the_manifest, f"{MANIFEST} is damaged"),
    "format": (of_another_format, f"{MANIFEST} is damaged, or of another version"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_does_not_verify_and_the_one_before_is_taken(damage, tmp_path, caplog):
    do, words = DAMAGES[damage]
    older, newer = save(tmp_path, 2), save(tmp_path, 3)
    do(newer)
    with pytest.raises(CheckpointError, match=words):
        verify_checkpoint(newer)
    assert find_checkpoint(tmp_path) == older
    assert f"{newer} can not be used" in caplog.text


def test_a_renamed_checkpoint_does_not_verify_as_another(tmp_path):
    path = save(tmp_path, 3).rename(tmp_path / "checkpoint-4")
    with pytest.raises(CheckpointError, match="was made after update 3: it has been renamed"):
        verify_checkpoint(path)
    verify_checkpoint(path.rename(tmp_path / "best"))  # a name of one's own is none that says another update


def test_where_none_verifies_nothing_begins_anew(tmp_path):
    for update in (3, 4):
        cut_short(save(tmp_path, update))
    with pytest.raises(CheckpointError, match="2 checkpoint.s., and none can be used"):
        find_checkpoint(tmp_path)


def test_where_there_is_none_none_is_found(tmp_path):
    assert find_checkpoint(tmp_path) is None and find_checkpoint(tmp_path / "not-there") is None
    with pytest.raises(CheckpointError, match="is no folder"):
        verify_checkpoint(tmp_path / "checkpoint-1")


def test_the_newest_is_the_one_with_the_largest_number(tmp_path):
    for update in (100, 9, 10):
        save(tmp_path, update)
    assert [update_of(path) for path in list_checkpoints(tmp_path)] == [100, 10, 9]
    assert find_checkpoint(tmp_path).name == "checkpoint-100"


def test_other_names_are_no_checkpoints(tmp_path):
    kept = save(tmp_path, 5)
    others = ["checkpoint-final", "checkpoint-7.damaged", "checkpoint-", "checkpoint-7 ", ".checkpoint-8.partial-x"]
    for name in [*others, "checkpoint--9", "my-checkpoint-9"]:
        shutil.copytree(kept, tmp_path / name)
    (tmp_path / "checkpoint-11").write_text("a file")
    assert list_checkpoints(tmp_path) == [kept] and find_checkpoint(tmp_path) == kept


# --------------------------------------------------------------------------------------------------------------------
# The order of a save, and what is left when it does not come to its end


@pytest.mark.skipif(sys.platform != "linux", reason="reads names of open files from /proc")
def test_all_is_on_the_disk_before_it_is_renamed_and_older_ones_are_removed_last(tmp_path, monkeypatch):
    save(tmp_path, 1)
    events, fsync, replace, rename = [], os.fsync, os.replace, os.rename

    def shown(path):
        name = os.path.relpath(path, tmp_path)
        return name if not name.startswith(".checkpoint-2.partial") else "/".join(["partial", *name.split("/")[1:]])

    def note_fsync(descriptor):
        fsync(descriptor)
        events.append(("flush", shown(os.readlink(f"/proc/self/fd/{descriptor}"))))

    def note_rename(move):
        def note(source, target):
            move(source, target)
            events.append(("rename", shown(source), shown(target)))

        return note

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(os, "replace", note_rename(replace))
    monkeypatch.setattr(os, "rename", note_rename(rename))
    save(tmp_path, 2, limit=1)

    files = [f"partial/{name}" for name in (*make_tensors(), *TEXTS)]
    published = events.index(("rename", "partial", "checkpoint-2"))
    flushed = [event[1] for event in events[:published]]
    assert set(flushed[: len(files)]) == set(files)
    assert flushed[len(files)] == f"partial/{MANIFEST}"
    assert set(flushed[len(files) + 1 :]) == {"partial", "partial/unet", "partial/training"}
    assert events[published + 1 :] == [("flush", "."), ("rename", "checkpoint-1", ".checkpoint-1.removed")]
    assert names(tmp_path) == ["checkpoint-2"]


def in_a_fork(work):
    """Do it in a process of its own; its exit code."""
    process = os.fork()
    if not process:
        code = 99
        try:
            logging.disable()
            work()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def die_before_step(number, folder):
    """End this process, as a kill does, before it changes something in the folder for the n-th time."""
    count, folder = 0, str(folder)

    def hook(event, arguments):
        nonlocal count
        if event == "open":
            is_change = arguments[2] & (os.O_WRONLY | os.O_RDWR) and str(arguments[0]).startswith(folder)
        elif event in ("os.mkdir", "os.rename", "os.chmod"):
            is_change = str(arguments[0]).startswith(folder)
        else:  # by a name in a folder that is open
            is_change = event in ("os.remove", "os.rmdir")
        if is_change:
            count += 1
            if count == number:
                os._exit(9)

    sys.addaudithook(hook)


@FORKS
def test_a_kill_at_any_step_of_a_save_leaves_a_checkpoint_that_verifies(tmp_path):
    older_left = newer_left = 0
    for step in range(1, 200):
        folder = tmp_path / str(step)
        folder.mkdir()
        save(folder, 1)

        def killed_save():
            die_before_step(step, folder)
            save(folder, 2, limit=1)

        code = in_a_fork(killed_save)
        newest = find_checkpoint(folder)
        assert list_checkpoints(folder)[0] == newest, f"step {step}: {names(folder)}"  # what has the name is complete
        assert values(newest) == {float(update_of(newest))}
        older_left += newest.name == "checkpoint-1"
        newer_left += newest.name == "checkpoint-2"
        clean_up(folder, newest)
        assert names(folder) in ([newest.name], ["checkpoint-1", "checkpoint-2"])
        again = save(folder, 2, limit=1)  # where it goes on, the same save is made
        assert values(again) == {2.0}
        if newest != again:
            assert names(folder) == ["checkpoint-2"]
        if code == 0:
            break
        assert code == 9
    assert code == 0 and older_left > 15 and newer_left > 5


@pytest.mark.parametrize("what", ["fsync", "mkdir", "replace", "chmod", "write_text", "disk_usage"])
def test_a_save_that_fails_leaves_what_was_there_and_says_so(what, tmp_path, monkeypatch, caplog):
    owner = {"write_text": type(tmp_path), "disk_usage": shutil}.get(what, os)
    function, num_failed = getattr(owner, what), 0
    for step in range(1, 100):
        folder, count = tmp_path / str(step), 0
        folder.mkdir()
        writer = CheckpointWriter(folder, 1)
        older = save(folder, 1, writer=writer)

        def fail_at_step(*arguments, **options):
            nonlocal count
            count += 1
            if count == step:
                raise OSError(28, "No space left on device")
            return function(*arguments, **options)

        with monkeypatch.context() as patch:
            patch.setattr(owner, what, fail_at_step)
            writer.save(2, tensors=make_tensors(2.0), texts=TEXTS, facts={})
            writer.wait_until_copied()
            error = None
            try:
                writer.finish()
            except OSError as raised:
                error = raised
        if count < step:  # it has been made to fail everywhere
            break
        newest = find_checkpoint(folder)
        assert values(newest) == {float(update_of(newest))}
        if error is None:  # it did not need that
            assert names(folder) == ["checkpoint-2"]
            continue
        num_failed += 1
        assert "No space left on device" in str(error) and f"error: {error}" in caplog.text
        # Only the last flush is made after the rename: then the newer is there, too.
        assert names(folder) == (["checkpoint-1"] if newest == older else ["checkpoint-1", "checkpoint-2"])
        assert newest == older or what == "fsync"
        save(folder, 3, writer=writer)  # the writer goes on
        assert names(folder) == ["checkpoint-3"]
    assert num_failed and count < step


def test_a_disk_that_is_too_full_is_named_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10))
    needed = sum(x.numel() * 4 for group in make_tensors().values() for x in group.values())
    with pytest.raises(OSError, match=f"checkpoint-2 could not be written.*needs {needed:,} bytes; 10 are free in"):
        save(tmp_path, 2)
    assert names(tmp_path) == []


def test_any_error_of_the_thread_is_told_and_nobody_waits_for_ever(tmp_path, caplog):
    class Broken(Held):
        def items(self):
            raise RuntimeError("the device is lost")

        values = Held.values

    writer = CheckpointWriter(tmp_path, 1)
    writer.save(1, tensors=Broken(make_tensors()), texts=TEXTS, facts={})
    writer.wait_until_copied()
    with pytest.raises(OSError, match="checkpoint-1 could not be written.*the device is lost"):
        writer.finish()
    assert names(tmp_path) == [] and "the device is lost" in caplog.text


# --------------------------------------------------------------------------------------------------------------------
# Copies


def test_a_checkpoint_is_of_the_moment_that_it_was_asked_for(tmp_path):
    writer, tensors = CheckpointWriter(tmp_path, 0), make_tensors(1.0)
    held = Held(tensors)
    checkpoint = writer.save(1, tensors=held, texts=TEXTS, facts={})
    threading.Timer(0.3, held.may_go_on.set).start()
    before = time.monotonic()
    writer.wait_until_copied()
    assert time.monotonic() - before > 0.2  # it was held, and so were we
    for group in tensors.values():
        for x in group.values():
            x.fill_(2.0)
    writer.finish()
    assert values(checkpoint) == {1.0}


def test_without_waiting_a_checkpoint_would_be_a_mixture(tmp_path):
    # That the test before can fail.
    writer, tensors = CheckpointWriter(tmp_path, 0), make_tensors(1.0)
    held = Held(tensors)
    checkpoint = writer.save(1, tensors=held, texts=TEXTS, facts={})
    tensors[OPTIMIZER]["weight.step"].fill_(2.0)
    held.may_go_on.set()
    writer.finish()
    assert values(checkpoint) == {1.0, 2.0}


def test_saving_returns_before_anything_is_copied(tmp_path):
    writer, held = CheckpointWriter(tmp_path, 0), Held(make_tensors(1.0))
    checkpoint = writer.save(1, tensors=held, texts=TEXTS, facts={})
    assert not checkpoint.exists()
    held.may_go_on.set()
    writer.finish()
    assert checkpoint.exists()


def test_a_save_waits_for_the_one_before(tmp_path):
    writer, held = CheckpointWriter(tmp_path, 0), Held(make_tensors(1.0))
    writer.save(1, tensors=held, texts=TEXTS, facts={})
    threading.Timer(0.2, held.may_go_on.set).start()
    save(tmp_path, 2, writer=writer)
    assert [values(path) for path in list_checkpoints(tmp_path)] == [{2.0}, {1.0}]


def test_where_memory_does_not_suffice_the_tensors_themselves_are_written(tmp_path, no_memory, caplog):
    caplog.set_level(logging.INFO)
    writer, tensors = CheckpointWriter(tmp_path, 0), make_tensors(1.0)
    checkpoint = writer.save(1, tensors=tensors, texts=TEXTS, facts={})
    writer.wait_until_copied()
    assert checkpoint.exists()  # all of it is written by then
    for group in tensors.values():
        for x in group.values():
            x.fill_(2.0)
    writer.finish()
    assert verify_checkpoint(checkpoint) and values(checkpoint) == {1.0}
    assert "memory does not suffice" in caplog.text


def test_memory_for_copies_is_taken_once(tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    writer = CheckpointWriter(tmp_path, 0)
    save(tmp_path, 1, writer=writer)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=0))
    assert values(save(tmp_path, 2, writer=writer)) == {2.0}
    assert "memory does not suffice" not in caplog.text


# --------------------------------------------------------------------------------------------------------------------
# Which checkpoints stay


def test_a_checkpoint_that_is_there_is_left_alone(tmp_path):
    writer = CheckpointWriter(tmp_path, 1)
    checkpoint = save(tmp_path, 3, writer=writer)
    before = {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in checkpoint.rglob("*")}
    assert save(tmp_path, 3, writer=writer, tensors=make_tensors(9.0)) == checkpoint
    assert before == {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in checkpoint.rglob("*")}
    assert names(tmp_path) == ["checkpoint-3"]


@pytest.mark.parametrize("limit, left", [(0, [1, 8, 9, 10, 11]), (1, [11]), (3, [9, 10, 11])])
def test_as_many_as_the_limit_says_stay_and_zero_keeps_all(limit, left, tmp_path):
    writer = CheckpointWriter(tmp_path, limit)
    for update in (1, 8, 9, 10, 11):
        save(tmp_path, update, writer=writer)
    assert sorted(map(update_of, list_checkpoints(tmp_path))) == left == sorted(left)
    assert len(names(tmp_path)) == len(left)


def test_folders_without_a_manifest_are_never_removed(tmp_path):
    for name in ("checkpoint-1", "checkpoint-2.damaged", "checkpoint-final", "samples"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine").touch()
    for update in (3, 4, 5):
        save(tmp_path, update, limit=1)
    assert names(tmp_path) == ["checkpoint-1", "checkpoint-2.damaged", "checkpoint-5", "checkpoint-final", "samples"]
    assert (tmp_path / "checkpoint-1" / "mine").exists()


def test_newer_checkpoints_do_not_count(tmp_path):
    newer = save(tmp_path, 9)
    save(tmp_path, 3, limit=1)
    assert names(tmp_path) == ["checkpoint-3", "checkpoint-9"] and verify_checkpoint(newer)


def test_cleaning_up_removes_what_a_kill_has_left_and_nothing_else(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    resumed = save(tmp_path, 5)
    mine = [".checkpoint-x.partial-abc", ".checkpoint-5.partial", ".checkpoint-5.removed.bak", ".checkpoint.removed"]
    mine += ["checkpoint-4.partial-abc", ".other.partial-abc", "checkpoint-final", "checkpoint-7.damaged", "samples"]
    for name in (*mine, ".checkpoint-6.partial-abc_1", ".checkpoint-4.removed", "checkpoint-3"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").touch()
    clean_up(tmp_path, resumed)
    assert names(tmp_path) == sorted([*mine, "checkpoint-3", "checkpoint-5"])
    assert all((tmp_path / name / "file").exists() for name in mine)
    assert ".checkpoint-6.partial-abc_1" in caplog.text and ".checkpoint-4.removed" in caplog.text


def test_cleaning_up_renames_what_is_newer_than_what_is_gone_on_from(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    resumed = save(tmp_path, 5)
    for update in (10, 11):
        cut_short(save(tmp_path, update))
    clean_up(tmp_path, resumed)
    assert names(tmp_path) == ["checkpoint-10.damaged", "checkpoint-11.damaged", "checkpoint-5"]
    cut_short(save(tmp_path, 10))
    clean_up(tmp_path, resumed)
    assert names(tmp_path)[:2] == ["checkpoint-10.damaged", "checkpoint-10.damaged2"]
    assert caplog.text.count("renamed") == 3
    (tmp_path / "elsewhere").mkdir()
    with pytest.raises(CheckpointError, match="checkpoint-5 has been made by another run in the meantime"):
        clean_up(tmp_path, save(tmp_path / "elsewhere", 99))  # of another folder: here a run begins
    assert list_checkpoints(tmp_path) == [resumed]


@pytest.mark.parametrize(
    "change",
    [
        {"settings": None},
        {"division": {"processes": -1}},
        {"precision": 3},
        {"progress": PROGRESS | {"num_samples": "80"}},
        {"progress": PROGRESS | {"update": 5.5}},
        {"progress": PROGRESS | {"seconds": float("nan")}},
        {"progress": {}},
    ],
)
def test_state_that_no_training_can_have_is_refused(change, tmp_path):
    """Also where somebody has written a new manifest for it."""
    checkpoint = save(tmp_path, 3)
    (checkpoint / STATE).write_text(json.dumps(TRAINING | change))
    with pytest.raises(CheckpointError, match="state.json is no state of a training"):
        read_state(checkpoint)


@pytest.mark.parametrize("name", ["../outside.txt", "/etc/hostname", "link.txt"])
def test_manifest_that_names_what_lies_outside_is_refused(name, tmp_path):
    (tmp_path / "outside.txt").write_text("mine")
    checkpoint = save(tmp_path, 3)
    (checkpoint / "link.txt").symlink_to(tmp_path / "outside.txt")
    manifest = json.loads((checkpoint / MANIFEST).read_text())
    del manifest["sha256"]
    manifest["files"][name] = {"bytes": 4, "sha256": hashlib.sha256(b"mine").hexdigest()}
    digest = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    (checkpoint / MANIFEST).write_text(json.dumps(manifest | {"sha256": digest}))
    with pytest.raises(CheckpointError, match="which lies outside"):
        verify_checkpoint(checkpoint)


@pytest.mark.parametrize(
    "text", ["[1]", '{"update": 1e999}', "[" * 100_000, '{"sha256": "", "files": {"a": 3}, "update": 3}']
)
def test_manifest_that_is_none_is_refused_and_the_older_checkpoint_found(text, tmp_path):
    older, newer = save(tmp_path, 3), save(tmp_path, 4)
    (newer / MANIFEST).write_text(text)
    assert find_checkpoint(tmp_path) == older


# --------------------------------------------------------------------------------------------------------------------
# The state of a training, and the pipeline at its end


def make_training(width=6, has_average=True):
    """A network, its average and its optimizer after two updates."""
    torch.manual_seed(1)
    network = torch.nn.Sequential(torch.nn.Linear(4, width), torch.nn.Dropout(0.5), torch.nn.Linear(width, 1))
    averaged = torch.nn.Sequential(torch.nn.Linear(4, width), torch.nn.Dropout(0.5), torch.nn.Linear(width, 1))
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.1)
    for _ in range(2):
        network(torch.randn(3, 4)).sum().backward()
        optimizer.step()
    components, averaged = (torch.nn.ModuleDict({"unet": x}) for x in (network, averaged))
    return components, averaged if has_average else None, optimizer


def new_training(width=6, has_average=True):
    components, averaged, _ = make_training(width, has_average)
    for parameter in components.parameters():
        parameter.data.zero_()
    return components, averaged, torch.optim.AdamW(components.parameters(), lr=0.2)


@pytest.mark.parametrize("has_average", [True, False])
def test_a_training_comes_back_to_the_last_bit(has_average, tmp_path):
    training = make_training(has_average=has_average)
    checkpoint = save(tmp_path, 2, tensors=training_tensors(*training))
    other = new_training(has_average=has_average)
    load_training_tensors(checkpoint, *other)
    ours, theirs = training_tensors(*training), training_tensors(*other)
    assert ours.keys() == theirs.keys() and len(ours) == 2 + has_average
    for name, group in ours.items():
        assert group.keys() == theirs[name].keys() and group
        assert all(torch.equal(x, theirs[name][key]) for key, x in group.items())
    assert other[2].param_groups[0]["lr"] == 0.2
    for components, _, optimizer in (training, other):
        optimizer.zero_grad()
        components["unet"].eval()(torch.ones(3, 4)).sum().backward()
        for group in optimizer.param_groups:
            group["lr"] = 0.1
        optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(training[0].parameters(), other[0].parameters(), strict=True))


def test_a_checkpoint_of_another_network_is_refused(tmp_path):
    checkpoint = save(tmp_path, 2, tensors=training_tensors(*make_training()))
    with pytest.raises(CheckpointError, match="is of another network"):
        load_training_tensors(checkpoint, *new_training(width=7))
    with pytest.raises(CheckpointError, match="was made with --use_ema True"):
        load_training_tensors(checkpoint, *new_training(has_average=False))
    without = save(tmp_path, 3, tensors=training_tensors(*make_training(has_average=False)))
    with pytest.raises(CheckpointError, match="was made with --use_ema False"):
        load_training_tensors(without, *new_training())


def publish(folder, value=1.0):
    weights = {name: group for name, group in make_tensors(value).items() if name != OPTIMIZER}
    publish_pipeline(folder, weights, {"model_index.json": "{}", "unet/config.json": "{}", "README.md": "mine"})


def is_published(folder, value=1.0):
    files = (WEIGHTS, AVERAGED_WEIGHTS)
    found = {x for name in files for t in load_file(folder / name).values() for x in t.unique().tolist()}
    return found == {value} and (folder / "README.md").read_text() == "mine" and (folder / "unet/config.json").exists()


def test_a_pipeline_is_published_once(tmp_path):
    publish(tmp_path)
    assert is_published(tmp_path) and names(tmp_path) == ["README.md", "model_index.json", "unet"]
    with pytest.raises(FileExistsError, match="holds a pipeline already"):
        publish(tmp_path, 2.0)
    assert is_published(tmp_path)


def test_what_others_have_put_where_the_pipeline_goes_is_renamed(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "notes.txt").write_text("of a week")
    (tmp_path / "README.md").write_text("about my run")
    publish(tmp_path)
    assert is_published(tmp_path)
    assert (tmp_path / "unet.before" / "notes.txt").read_text() == "of a week"
    assert (tmp_path / "README.md.before").read_text() == "about my run"
    assert caplog.text.count("renamed") == 2


@FORKS
def test_a_kill_at_any_step_of_publishing_leaves_no_pipeline_or_all_of_it(tmp_path):
    num_unfinished = 0
    for step in range(1, 100):
        folder = tmp_path / str(step)
        folder.mkdir()

        def killed_publish():
            die_before_step(step, folder)
            publish(folder, 1.0)

        code = in_a_fork(killed_publish)
        if (folder / "model_index.json").exists():
            assert is_published(folder, 1.0), f"step {step}: {names(folder)}"
        else:
            num_unfinished += 1
            clean_up(folder, None)
            publish(folder, 1.0)  # where training goes on, it ends the same way
            assert is_published(folder, 1.0) and names(folder) == ["README.md", "model_index.json", "unet"]
        if code == 0:
            break
        assert code == 9
    assert code == 0 and num_unfinished > 10


# --------------------------------------------------------------------------------------------------------------------
# The lock


@FORKS
def test_a_second_process_is_refused_and_told_who_holds_the_folder(tmp_path):
    lock = FolderLock(tmp_path)
    told = tmp_path / "told"

    def second():
        try:
            FolderLock(tmp_path)
        except FolderInUseError as error:
            told.write_text(str(error))
            raise

    assert in_a_fork(second) == 99
    message = told.read_text()
    assert f"{tmp_path} is in use by process {os.getpid()} on {socket.gethostname()}, since 20" in message
    lock.release()
    lock.release()  # as often as one likes
    assert in_a_fork(lambda: FolderLock(tmp_path)) == 0
    assert (tmp_path / LOCK_NAME).exists()


@FORKS
def test_a_dead_process_holds_nothing_even_if_its_workers_live(tmp_path):
    ready, say = os.pipe()
    holder = os.fork()
    if not holder:
        try:
            lock = FolderLock(tmp_path)
            worker = os.fork()
            if not worker:
                time.sleep(30)
                os._exit(0)
            os.write(say, f"{worker}\n".encode())
            time.sleep(30)
            lock.release()
        finally:
            os._exit(0)
    worker = int(os.read(ready, 20))
    try:
        with pytest.raises(FolderInUseError, match=f"process {holder}"):
            FolderLock(tmp_path)
        os.kill(holder, signal.SIGKILL)
        os.waitpid(holder, 0)
        FolderLock(tmp_path).release()
    finally:
        os.kill(worker, signal.SIGKILL)
        os.close(ready)
        os.close(say)


@FORKS
def test_a_lock_file_of_unknown_content_is_no_obstacle(tmp_path):
    (tmp_path / LOCK_NAME).write_text("[not ours")
    lock = FolderLock(tmp_path)
    assert json.loads((tmp_path / LOCK_NAME).read_text())["process"] == os.getpid()
    lock.release()


def test_a_file_system_without_locks_is_named(tmp_path, monkeypatch, caplog):
    def lockf(*_):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", lockf)
    FolderLock(tmp_path).release()
    assert f"the file system of {tmp_path} has no locks" in caplog.text
