"""Whether a training survives being killed: SIGKILL, again and again, at random moments of one run.

    python benchmarks/chaos.py [--kills 200] [--seed 0] [--workers 0] [--folder FOLDER]

A tiny network with dropout is trained twice: once without interruption, keeping all checkpoints, and once with
`--checkpoints_total_limit 1` by a process that is killed, started again with `--resume_from_checkpoint latest`, killed, ...
and left alone in the end. Three of five kills wait for the hidden folder of a save, or of the removal after it, and strike
a random moment later; the others strike at any moment of a life, also while it is set up. After each kill:

    corrupt loads   the newest checkpoint must verify, load with `MCVDPipeline.from_pretrained`, raw and `variant="ema"`, and
                    hold, bit for bit, the tensors that the uninterrupted run had after the same update
    lost runs       it must not be older than the one after the kill before; once there was one, there always is, and the
                    next life must go on from it

At the end weights, averaged weights and the optimizer's state must be equal, as by
`torch.equal`, to those of the uninterrupted run. The exit code is 1 if anything of this fails.

A process imports everything once, and forks itself for each life, which thus begins as a fresh process does, without its
eight seconds of imports. Choices depend on the seed alone; what they meet depends on the machine, too.

Measured on 2 CPU cores that four other jobs used, too (where there were fewer, it took 422 s with half as many updates again):

    kills                              200
      in set-up                         39
      in training                       17
      in a save                         95
      in a removal                      49
    updates, with those made anew     1064
    updates of the run                 800
    lost runs                            0
    corrupt loads                        0
    equal to the uninterrupted run     yes
    seconds                            556
"""

import argparse
import logging
import mmap
import os
import random
import re
import shutil
import signal
import statistics
import struct
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path


os.environ["OMP_NUM_THREADS"] = "1"  # threads do not survive a fork
os.environ["HF_HUB_OFFLINE"] = "1"
sys.path.insert(0, str(Path(__file__).parents[1]))

import diffusers  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from torch.optim.optimizer import register_optimizer_step_post_hook  # noqa: E402

import train_mcvd  # noqa: E402
from mcvd_diffusers import MCVDPipeline  # noqa: E402
from mcvd_diffusers.checkpointing import (  # noqa: E402
    AVERAGED_WEIGHTS,
    OPTIMIZER,
    WEIGHTS,
    list_checkpoints,
    update_of,
    verify_checkpoint,
)


TENSOR_FILES = (WEIGHTS, AVERAGED_WEIGHTS, OPTIMIZER)
UPDATES_PER_KILL = 4  # a life gets on by two or three
SETTINGS = {
    "axes": "NTCHW",
    "random_flip": True,
    "clip_step": 1,
    "validation_fraction": 0.3,
    "num_past_frames": 1,
    "num_frames": 1,
    "num_future_frames": 1,
    "block_out_channels": [8],
    "dropout": 0.1,
    "train_batch_size": 2,
    "lr_warmup_steps": 4,
    "checkpointing_steps": 2,
    "num_validation_videos": 0,
    "validation_inference_steps": 1,
    "logging_steps": 10**6,
    "report_to": "none",
}
PHASES = ("set-up", "training", "a save", "a removal")
REMOVAL = 0.002  # seconds that the removal of such a checkpoint takes
LONGEST_WAIT = 120  # seconds for the next save

# What an unfinished save or removal leaves. The names are those of `checkpointing.py` and `atomic.py`.
_SAVING = re.compile(r"\.checkpoint-\d+\.partial-.*")
_REMOVING = re.compile(r"\.checkpoint-\d+\.removed")
_DONE = re.compile(r"checkpoint-\d+")


class Life:
    """
    One process that trains, forked from this one.

    Args:
        flags (`list[str]`): Of `train_mcvd.py`.
        log (`Path`): What it says goes to the end of this file.
    """

    _updates = mmap.mmap(-1, 8)  # shared with the process that is forked

    def __init__(self, flags: list[str], log: Path) -> None:
        self._updates[:] = bytes(8)
        self.started, self.exit_code = time.monotonic(), None
        self.process = fork(lambda: self._train(flags), log)

    @property
    def num_updates(self) -> int:
        """Updates that it has made."""
        return struct.unpack("q", self._updates)[0]

    def _train(self, flags: list[str]) -> None:
        def count(*_) -> None:
            self._updates[:] = struct.pack("q", self.num_updates + 1)

        register_optimizer_step_post_hook(count)
        train_mcvd.main(train_mcvd.parse_args(flags))

    @property
    def seconds(self) -> float:
        """Since its start."""
        return time.monotonic() - self.started

    @property
    def is_alive(self) -> bool:
        """Whether it has not ended."""
        if self.exit_code is None:
            process, status = os.waitpid(self.process, os.WNOHANG)
            if process:
                self.exit_code = os.waitstatus_to_exitcode(status)
        return self.exit_code is None

    def kill(self) -> bool:
        """End it as the operating system does when memory runs out. Whether it was still there."""
        if not self.is_alive:
            return False
        os.kill(self.process, signal.SIGKILL)
        self.exit_code = os.waitstatus_to_exitcode(os.waitpid(self.process, 0)[1])
        return self.exit_code == -signal.SIGKILL


def fork(work: Callable[[], None], log: Path) -> int:
    """A process that does this, and ends with 1 if it raises; its number."""
    assert threading.active_count() == 1, "a fork would lose threads"
    sys.stdout.flush()
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        work()
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def names_in(folder: Path) -> list[str]:
    """What is in a folder; nothing before there is one."""
    try:
        return os.listdir(folder)
    except FileNotFoundError:
        return []


def phase_of(life: Life, folder: Path, names_before: set[str]) -> str:
    """In what a life was interrupted, by what it left: an unfinished save or removal, or an older checkpoint."""
    names = set(names_in(folder))
    new = names - names_before
    if any(_SAVING.fullmatch(name) for name in new):
        return "a save"
    has_older = any(_DONE.fullmatch(name) for name in new) and sum(bool(_DONE.fullmatch(name)) for name in names) > 1
    if has_older or any(_REMOVING.fullmatch(name) for name in new):
        return "a removal"
    return "training" if life.num_updates else "set-up"


# --------------------------------------------------------------------------------------------------------------------
# The two runs


def flags(output_dir: Path, options: argparse.Namespace, **settings) -> list[str]:
    """The command line of a run."""
    common = {"max_train_steps": UPDATES_PER_KILL * options.kills, "dataloader_num_workers": options.workers}
    common["train_data_dir"] = output_dir.parent / "videos.npy"
    result = []
    for name, value in {**SETTINGS, **common, **settings, "output_dir": output_dir}.items():
        result += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    return result


def watch(life: Life, folder: Path) -> dict[str, float]:
    """Follow a run to its end; seconds until its first update, of an update, and of a save with its removal."""
    first = since = None
    saves = []
    while life.is_alive:
        is_saving = any(_SAVING.fullmatch(name) or _REMOVING.fullmatch(name) for name in names_in(folder))
        now = life.seconds
        if first is None and life.num_updates:
            first = now
        if is_saving and since is None:
            since = now
        elif not is_saving and since is not None:
            saves.append(now - since)
            since = None
        time.sleep(0.001)
    if life.exit_code != 0 or first is None:
        raise RuntimeError(f"the uninterrupted run ended with {life.exit_code}")
    return {
        "setup": first,
        "update": (life.seconds - first) / max(1, life.num_updates - 1),
        "save": statistics.median(saves),
    }


def strike(life: Life, folder: Path, choice: random.Random, usual: dict[str, float], is_hurried: bool) -> bool:
    """Kill a life at a moment that is drawn. Whether it was still there."""
    kind = choice.random()
    if kind < 0.4:
        return _strike_after(life, folder, choice, 1 if is_hurried else choice.randint(1, 3), _SAVING, usual["save"])
    if kind < 0.6:
        return _strike_after(life, folder, choice, 1 if is_hurried else choice.randint(1, 3), _REMOVING, REMOVAL)
    moment = choice.uniform(0, 1.2 * usual["setup"] + (2 if is_hurried else 8) * usual["update"])
    while life.is_alive and life.seconds < moment:
        time.sleep(min(0.001, max(0, moment - life.seconds)))
    return life.kill()


def _strike_after(
    life: Life, folder: Path, choice: random.Random, number: int, kind: re.Pattern, longest_delay: float
) -> bool:
    """Kill a life a moment after the n-th hidden folder of a kind has appeared."""
    delay = choice.uniform(0, longest_delay)
    met = {name for name in names_in(folder) if kind.fullmatch(name)}  # left by the life before
    while life.is_alive:
        if life.seconds > LONGEST_WAIT:
            life.kill()
            raise RuntimeError(f"no save for {LONGEST_WAIT} s: the run hangs")
        new = {name for name in names_in(folder) if kind.fullmatch(name)} - met
        met |= new
        number -= len(new)
        if number <= 0:
            until = time.monotonic() + delay
            while time.monotonic() < until:
                pass
            break
    return life.kill()


# --------------------------------------------------------------------------------------------------------------------
# What is checked


def check_checkpoint(checkpoint: Path, expected: dict[int, dict[str, str]]) -> None:
    """Raises if a checkpoint can not be used, or is not what the uninterrupted run had."""
    files = verify_checkpoint(checkpoint)["files"]
    for variant in (None, "ema"):
        MCVDPipeline.from_pretrained(checkpoint, variant=variant)
    for name in TENSOR_FILES:
        if files[name]["sha256"] != expected[update_of(checkpoint)][name]:
            raise AssertionError(f"{checkpoint / name} is not what the uninterrupted run had after this update")


def differences(folder: Path, other: Path) -> list[str]:
    """Tensors that are not equal at the end of two runs, in the pipelines and in the last checkpoints."""
    last, other_last = list_checkpoints(folder)[0], list_checkpoints(other)[0]
    pairs = [(folder / name, other / name) for name in (WEIGHTS, AVERAGED_WEIGHTS)]
    pairs += [(last / name, other_last / name) for name in TENSOR_FILES]
    found = [] if update_of(last) == update_of(other_last) else [f"{last.name} and {other_last.name}"]
    for path, other_path in pairs:
        ours, theirs = load_file(path), load_file(other_path)
        keys = ours.keys() | theirs.keys()
        found += [
            f"{path}: {key}"
            for key in sorted(keys)
            if key not in ours or key not in theirs or not torch.equal(ours[key], theirs[key])
        ]
    return found


# --------------------------------------------------------------------------------------------------------------------


def run(options: argparse.Namespace, folder: Path) -> bool:
    """Train, kill, check, and print the table; whether all was well."""
    began = time.monotonic()
    whole, killed, log = folder / "whole", folder / "killed", folder / "log"
    failures, lost, corrupt = [], 0, 0
    usual = watch(Life(flags(whole, options, checkpoints_total_limit=0), log), whole)
    expected = {
        update_of(path): {name: facts["sha256"] for name, facts in verify_checkpoint(path)["files"].items()}
        for path in list_checkpoints(whole)
    }
    last = max(expected)
    print(
        f"uninterrupted: {last} updates in {time.monotonic() - began:.0f} s; set up in {usual['setup']:.2f} s, an update in"
        f" {1e3 * usual['update']:.0f} ms, saved in {1e3 * usual['save']:.0f} ms",
        flush=True,
    )

    phases, num_kills, num_updates, newest, life_number = Counter(), 0, 0, -1, 0
    arguments = flags(killed, options, checkpoints_total_limit=1, resume_from_checkpoint="latest")
    is_over = False
    while not is_over:
        life_number += 1
        choice = random.Random(f"{options.seed}, life {life_number}")
        names_before = set(names_in(killed))
        log_size = log.stat().st_size
        life = Life(arguments, log)
        if num_kills < options.kills:
            # Killed early, lives do not come to the end before there were enough of them.
            is_hurried = last - newest < 4 * (options.kills - num_kills)
            was_killed = strike(life, killed, choice, usual, is_hurried)
        else:
            was_killed = False
            while life.is_alive:
                time.sleep(0.01)
        num_updates += life.num_updates
        if was_killed:
            num_kills += 1
            phases[phase_of(life, killed, names_before)] += 1
        else:
            is_over = True
            if life.exit_code != 0:
                lost += 1
                failures.append(f"life {life_number} ended by itself with {life.exit_code}")
            elif num_kills < options.kills:
                failures.append(f"training was over after {num_kills} kills")
        with open(log, "rb") as file:
            file.seek(log_size)
            said = file.read().decode()
        if life.num_updates and newest >= 0 and f"going on from {killed / f'checkpoint-{newest}'}:" not in said:
            lost += 1
            failures.append(f"life {life_number} did not go on from update {newest}")
        found = list_checkpoints(killed)
        now = update_of(found[0]) if found else -1
        if now < newest:
            lost += 1
            failures.append(f"life {life_number}: update {newest} had been saved, the newest checkpoint is of {now}")
        newest = now
        if found:
            checking = fork(lambda: check_checkpoint(found[0], expected), log)
            if os.waitpid(checking, 0)[1]:
                corrupt += 1
                failures.append(f"life {life_number}: {found[0]} is corrupt")
        if num_kills % 25 == 0 and was_killed:
            print(f"{num_kills:4} kills, update {newest:5}, {time.monotonic() - began:4.0f} s", flush=True)

    is_done = (killed / "model_index.json").is_file()
    unequal = differences(killed, whole) if is_done else ["the run has not ended"]
    failures += unequal
    rows = {
        "kills": num_kills,
        **{f"  in {phase}": phases[phase] for phase in PHASES},
        "updates, with those made anew": num_updates,
        "updates of the run": last,
        "lost runs": lost,
        "corrupt loads": corrupt,
        "equal to the uninterrupted run": "no" if unequal else "yes",
        "seconds": round(time.monotonic() - began),
    }
    print("\n".join(f"    {name:32}{value:>6}" for name, value in rows.items()))
    if failures:
        print("\n".join(f"failed: {failure}" for failure in failures[:20]))
        print("The last lines of the log:", *log.read_text().splitlines()[-30:], sep="\n    ")
    return not failures


def main(args: list[str] | None = None) -> int:
    """Run the script; its exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=0, help="processes that load data, of each life")
    parser.add_argument("--folder", type=Path, help="where the runs are; a temporary folder if not given")
    options = parser.parse_args(args)
    torch.set_num_threads(1)
    transformers.HfArgumentParser  # slow to import; done here, once
    diffusers.utils.logging.disable_progress_bar()
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S", level=logging.INFO)
    folder = Path(tempfile.mkdtemp(prefix="chaos-")) if options.folder is None else options.folder
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "videos.npy", np.random.RandomState(0).randint(0, 256, (16, 6, 1, 8, 8)).astype(np.uint8))
    is_well = run(options, folder)
    if options.folder is None and is_well:
        shutil.rmtree(folder)
    elif not is_well:
        print(f"All of it is in {folder}")
    return 0 if is_well else 1


if __name__ == "__main__":
    sys.exit(main())
