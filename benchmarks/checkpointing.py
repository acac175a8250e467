"""How long a checkpoint stalls training: written by the training itself, as scripts usually do, and beside it.

    python benchmarks/checkpointing.py [--channels 208 416 608] [--batch_size 1] [--repetitions 5] [--threads 1] [--folder FOLDER]

A network of about 100 million parameters is trained in the way of `train_mcvd.py`, with AdamW and a moving average of the
weights. In turns a checkpoint is saved

    in place    by `accelerator.save_state` and `save_pretrained` of the average, on the training's thread, not flushed to the disk
    beside      by `CheckpointWriter.save`, and the wait of the next optimizer step until the state is copied

and for each it is measured, after so many updates without a save and with nothing left to be written from before:

    save        how long the call took
    wait        how long the next update's optimizer step had to wait
    stall       how much longer call and next update took than the median update without a save
    for a core  how much of that the training's thread was ready to compute, and others had the cores (Linux only)
    slow-down   how much longer the updates after that one took together, while the checkpoint was still being written
    durable     after how long the checkpoint was on the disk, with its checksums; in place: by an additional `os.sync`

"at once" is the worst case: a save and the wait for its copy, without a forward and backward pass between.

Measured with `--repetitions 4` on 2 CPU cores, torch 2.13 with one thread, a disk of 150 MB/s, 100,628,740 parameters; an
update took 1.7 s (1.5 to 2.1). Medians, least and greatest; ratios are those of a repetition, their median and greatest:

    seconds                    in place                   beside                  ratio
    save          2.99 (2.78 to 3.60)     0.011 (0.009 to 0.015)    0.003 (max 0.005)
    wait          0                       0.000 (0.000 to 0.000)
    stall         3.11 (2.75 to 3.44)      0.02 (-0.37 to 1.56)     0.009 (max 0.493)
    for a core    0.02 (0.01 to 0.11)      0.01 (0.00 to 1.46)
    slow-down    -0.26 (-0.51 to 0.13)     0.12 (-1.28 to 2.66)
    at once                                0.23 (0.20 to 0.24)
    durable      11.63 (11.19 to 12.45)    6.05 (5.89 to 7.30)      0.514 (max 0.652)
    bytes       1,610,266,236            1,610,164,772

The state is copied while the next update is computed, which is longer, so that its optimizer step need not wait; even without
a computation between, the copy takes a thirteenth of a save in place. The first save, which takes the memory for copies, had its
update wait 0.6 s. What the thread that writes does need is a core. Where other jobs took both cores (`--repetitions 8`), the
stall was 1.24 s (-2.32 to 2.54), against 3.51 s (2.66 to 8.33) in place, and the ratio 0.321: all of it waiting for a core.
"""

import argparse
import gc
import os
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import NamedTuple


sys.path.insert(0, str(Path(__file__).parents[1]))

import torch  # noqa: E402
from accelerate import Accelerator  # noqa: E402

import train_mcvd  # noqa: E402
from mcvd_diffusers import denoising_loss, mcvd_roles, sample_generators  # noqa: E402
from mcvd_diffusers.checkpointing import CheckpointWriter, training_tensors, verify_checkpoint  # noqa: E402


NUM_PLAIN = 4  # updates without a save before each save


class Update(NamedTuple):
    """Seconds of an update; those of them that it waited for a copy, and for a core."""

    seconds: float
    copy: float
    core: float


def seconds_without_core() -> float:
    """How long this thread has been ready to compute while others had the cores."""
    try:
        return int(Path(f"/proc/self/task/{threading.get_native_id()}/schedstat").read_text().split()[1]) / 1e9
    except OSError:
        return 0.0


class Training:
    """The loop of `train_mcvd.py`, an update at a time, on one batch."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        flags = {
            "resolution": [options.size],
            "block_out_channels": options.channels,
            "train_batch_size": [options.batch_size],
            "output_dir": [folder / "run"],
        }
        self.settings = train_mcvd.parse_args([str(x) for name in flags for x in (f"--{name}", *flags[name])])
        self.accelerator = Accelerator()
        device = self.accelerator.device
        self.network = train_mcvd.make_unet(self.settings).to(device)
        self.noise_scheduler = train_mcvd.make_noise_scheduler(self.settings)
        self.averaged, self.ema = train_mcvd.make_average(self.settings, self.network)
        self.plain_optimizer = train_mcvd.make_optimizer(self.settings, self.network)
        self.unet, self.optimizer = self.accelerator.prepare(self.network, self.plain_optimizer)
        self.writer = CheckpointWriter(folder / "run", 1)
        Path(folder / "run").mkdir()
        config, self.num_updates = self.network.config, 0
        generators = sample_generators(0, range(options.batch_size), device)
        shape = (options.batch_size, self.network.num_window_frames, config.in_channels, options.size, options.size)
        self.video = torch.rand(shape, device=device) * 2 - 1
        self.roles = mcvd_roles(
            options.batch_size,
            num_past_frames=config.num_past_frames,
            num_frames=config.num_frames,
            num_future_frames=config.num_future_frames,
            drop_past=0.5,
            drop_future=0.5,
            generator=generators,
        )

    def update(self) -> Update:
        """Make an update; what it took."""
        started, core = time.perf_counter(), seconds_without_core()
        generators = sample_generators(0, range(len(self.video)), self.video.device)
        losses = denoising_loss(self.unet, self.noise_scheduler, self.video, self.roles, generator=generators)
        self.accelerator.backward(losses.mean())
        norm = self.accelerator.clip_grad_norm_(self.unet.parameters(), 1.0)
        assert (
            norm.isfinite()
        )  # as the script looks at it before it changes anything: what the device has to do is done
        reached = time.perf_counter()
        self.writer.wait_until_copied()
        waited = time.perf_counter() - reached
        self.optimizer.step()
        self.ema.step(self.network.parameters())
        self.writer.mark_changed()
        self.optimizer.zero_grad()
        if self.video.is_cuda:
            torch.cuda.synchronize()
        self.num_updates += 1
        return Update(time.perf_counter() - started, waited, seconds_without_core() - core)

    def save_in_place(self, folder: Path) -> None:
        """What is usual. (Removing the older checkpoint, which is usual, too, is left out of the measurement.)"""
        self.accelerator.save_state(str(folder))
        self.averaged.save_pretrained(folder / "unet_ema")

    def save_beside(self) -> Path:
        """What `RunFolder` does."""
        return self.writer.save(
            self.num_updates,
            tensors=training_tensors(
                *(torch.nn.ModuleDict({"unet": network}) for network in (self.network, self.averaged)),
                self.plain_optimizer,
            ),
            texts={},
            facts={},
        )


def settle() -> None:
    """Nothing of before is left to be written, or to be collected."""
    gc.collect()
    os.sync()
    time.sleep(0.2)


def in_place(training: Training, folder: Path, number: int) -> dict[str, float]:
    """Save in place; what it took."""
    before = [training.update() for _ in range(NUM_PLAIN)]
    started, core = time.perf_counter(), seconds_without_core()
    training.save_in_place(folder / f"in-place-{number}")
    saved, core = time.perf_counter() - started, seconds_without_core() - core
    first = training.update()
    result = costs(before, saved, core, first, [training.update() for _ in range(NUM_PLAIN)])
    os.sync()
    return result | {"durable": time.perf_counter() - started}


def beside(training: Training) -> tuple[dict[str, float], Path]:
    """Save beside the training; what it took."""
    before = [training.update() for _ in range(NUM_PLAIN)]
    started, core = time.perf_counter(), seconds_without_core()
    checkpoint = training.save_beside()
    saved, core = time.perf_counter() - started, seconds_without_core() - core
    first, after = training.update(), []
    while not checkpoint.exists():
        after.append(training.update())
    training.writer.finish()
    result = costs(before, saved, core, first, after)
    # Once more, without training, which keeps a core busy, and whose update would end later than the checkpoint.
    settle()
    training.update()
    started = time.perf_counter()
    checkpoint = training.save_beside()
    training.writer.wait_until_copied()
    result["at once"] = time.perf_counter() - started
    training.writer.finish()
    return result | {"durable": time.perf_counter() - started}, checkpoint


def costs(before: list[Update], saved: float, core: float, first: Update, after: list[Update]) -> dict[str, float]:
    """What a save cost, which took so long, by the updates before it, the first one after it, and those that followed."""
    usual = statistics.median(update.seconds for update in before)
    return {
        "update": usual,
        "save": saved,
        "wait": first.copy,
        "stall": saved + first.seconds - usual,
        "for a core": core + first.core - statistics.median(update.core for update in before),
        "slow-down": sum(update.seconds - usual for update in after),
    }


def spread(values: list[float]) -> str:
    """Median, least and greatest."""
    return f"{statistics.median(values):8.3f} ({min(values):.3f} to {max(values):.3f})"


def measure(options: argparse.Namespace, folder: Path) -> None:
    """Measure, and print the table."""
    training = Training(options, folder)
    num_parameters = sum(parameter.numel() for parameter in training.network.parameters())
    print(
        f"{num_parameters:,} parameters, {options.batch_size} clips of {options.size}x{options.size} pixels an update"
    )
    first = [training.update().seconds for _ in range(2)]
    print(f"first updates {first[0]:.2f} and {first[1]:.2f} s", flush=True)
    rows: dict[str, list[dict[str, float]]] = {"in place": [], "beside": []}
    num_bytes = {}
    for number in range(options.repetitions + 1):
        settle()
        rows["in place"].append(in_place(training, folder, number))
        saved = folder / f"in-place-{number}"
        num_bytes["in place"] = sum(path.stat().st_size for path in saved.rglob("*") if path.is_file())
        for path in sorted(saved.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        settle()
        result, checkpoint = beside(training)
        rows["beside"].append(result)
        files = verify_checkpoint(checkpoint)["files"]
        num_bytes["beside"] = sum(facts["bytes"] for facts in files.values())
        both = {name: {key: round(x, 2) for key, x in values[-1].items()} for name, values in rows.items()}
        print(f"{'first, not counted' if number == 0 else number}: {both}", flush=True)
    counted = {name: values[1:] for name, values in rows.items()}
    usual = [row["update"] for values in counted.values() for row in values]
    print(f"\nan update without a save: {spread(usual)} s\n")
    print(f"{'seconds':12}{'in place':>32}{'beside':>32}{'ratio':>16}")
    for name in ("save", "wait", "stall", "for a core", "slow-down", "at once", "durable"):
        columns = [[row[name] for row in values if name in row] for values in counted.values()]
        cells = "".join(f"{spread(column) if column else '':>32}" for column in columns)
        ratio = ""
        if all(columns) and name not in ("wait", "for a core", "slow-down"):
            ratios = sorted(ours / theirs for theirs, ours in zip(*columns, strict=True))
            ratio = f"{statistics.median(ratios):8.3f} (max {ratios[-1]:.3f})"
        print(f"{name:12}{cells}{ratio:>20}")
    print(f"{'bytes':12}{num_bytes['in place']:>32,}{num_bytes['beside']:>32,}")
    late = {key: round(rows["beside"][0][key], 2) for key in ("save", "wait", "stall", "for a core", "at once")}
    print(f"\nThe first save beside, which takes the memory for copies: {late}")


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--channels", type=int, nargs="+", default=[208, 416, 608])
    parser.add_argument("--size", type=int, default=16, help="height and width in pixels")
    parser.add_argument("--batch_size", type=int, default=1)
    parser.add_argument("--repetitions", type=int, default=5, help="after a first one, which is not counted")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument("--folder", type=Path, help="on the disk to measure; a temporary folder if not given")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"torch {torch.__version__}, {os.cpu_count()} CPU cores, {options.threads} thread(s)")
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        measure(options, Path(folder))


if __name__ == "__main__":
    main()
