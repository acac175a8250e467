"""All six methods on the same moving digits, each trained for the same time: one table.

    python benchmarks/methods.py train runs/methods [--minutes 12] [--only lgcvd ...]
    python benchmarks/methods.py measure runs/methods --output runs/methods_table [--num_clips 64] [--steps 25]

`train` trains `examples/configs/NAME_digits.yaml` of each method, one after the other, each with one thread for so many minutes
of a core: how many updates that is, is measured first, in two short runs, by the time that the processor worked, not by the clock,
so that other jobs on the machine do not matter much. Started again, it trains what is missing. `measure` makes the tasks of 64
held-out clips of 8 frames, one sample each, and of the prediction also ensembles of 5; and the mean squared error and the CRPS of the
frames that are made, beside those of repeating the nearest given frame. A method that cannot do a task has a dash there.
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path


ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import torch  # noqa: E402
import yaml  # noqa: E402

from mcvd_diffusers import MCVDPipeline  # noqa: E402
from mcvd_diffusers.data import MovingDigits, load_digits  # noqa: E402
from mcvd_diffusers.metrics import crps, mean_interval  # noqa: E402
from mcvd_diffusers.visualization import contact_sheet  # noqa: E402


METHODS = {"mcvd": "MCVD", "ramvid": "RaMViD", "fdm": "FDM", "vdm": "VDM", "lgcvd": "LGC-VD", "rvd": "RVD"}
NUM_FRAMES, NUM_MEMBERS, NUM_SHOWN = 8, 5, 4
# Task -> positions of the given frames.
TASKS = {
    "prediction": [0, 1],
    "past prediction": [6, 7],
    "interpolation": [0, 1, 6, 7],
    "infilling": [1, 4, 6],
    "generation": [],
}
# What a network cannot do: MCVD's takes frames before and after a block, RVD's those before.
CANNOT = {"mcvd": ["infilling"], "rvd": ["past prediction", "interpolation", "infilling", "generation"]}
# What is given to a network that never was given any enters by a gradient: each step is made four times.
BY_GUIDANCE = {"num_resamples": 4, "eta": 1.0}


def child_seconds() -> float:
    """Seconds that the processor worked for processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def train_run(name: str, folder: Path, num_updates: int, *flags: str) -> float:
    """One run of the training script with one thread; seconds of a core that it took."""
    before = child_seconds()
    command = [sys.executable, str(ROOT / "train_mcvd.py"), str(ROOT / f"examples/configs/{name}_digits.yaml")]
    command += ["--output_dir", str(folder), "--max_train_steps", str(num_updates), "--report_to", "none", *flags]
    subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, cwd=ROOT)
    return child_seconds() - before


def seconds_per_update(name: str, *flags: str) -> float:
    """Of a core: what 400 further updates take."""
    short = ("--num_validation_videos", "0", "--checkpointing_steps", "0", *flags)
    with tempfile.TemporaryDirectory() as folder:
        few, many = (train_run(name, Path(folder) / str(count), count, *short) for count in (20, 420))
    return max(1e-3, (many - few) / 400)


def train(folder: Path, name: str, minutes: float, *flags: str, run: str | None = None) -> None:
    """Train one run of a method for so many minutes of a core, unless it is there."""
    target = folder / (run or name)
    if (target / "budget.json").exists():
        return
    if target.exists():
        shutil.rmtree(target)  # of this script, and not finished
    cost = seconds_per_update(name, *flags)
    num_updates = max(100, round(60 * minutes / cost))
    seconds = train_run(name, target, num_updates, *flags)
    budget = {"method": name, "updates": num_updates, "seconds of a core": seconds, "flags": list(flags)}
    (target / "budget.json").write_text(json.dumps(budget, indent=1) + "\n")


def held_out_clips(num_clips: int, num_frames: int) -> torch.Tensor:
    """Clips (N, T, 1, 16, 16) in [0, 1] of digits that no run has seen, which move as those of the training did."""
    settings = yaml.safe_load((ROOT / "examples/configs/mcvd_digits.yaml").read_text())
    clips = MovingDigits(
        load_digits("sklearn", split="validation", size=settings["digit_size"]),
        num_frames=num_frames,
        num_clips=num_clips,
        canvas_size=(settings["resolution"],) * 2,
        num_digits=settings["num_digits"],
        max_speed=settings["max_speed"],
        seed=1,
    )
    return (torch.stack([clips[i]["video"] for i in range(num_clips)]) + 1) / 2


def load(run: Path) -> MCVDPipeline:
    """The pipeline of a run, with the averaged weights."""
    pipe = MCVDPipeline.from_pretrained(run, variant="ema")
    pipe.set_progress_bar_config(disable=True)
    return pipe


def sample(pipe: MCVDPipeline, clips: torch.Tensor, given: list[int], num_steps: int, num_members: int = 1):
    """The frames that are not given, (N * members, n, 1, H, W)."""
    num_made = clips.shape[1] - len(given)
    arguments = {"batch_size": len(clips)}
    if given:
        arguments = {"observed_frames": clips[:, given], "observed_positions": given}
    own = BY_GUIDANCE if given and pipe.config.replacement is not None else {}
    return pipe(
        **arguments,
        num_frames=num_made,
        num_inference_steps=num_steps,
        ensemble_size=num_members,
        generator=torch.Generator().manual_seed(0),
        output_type="pt",
        **own,
    ).frames


def nearest_given(clips: torch.Tensor, given: list[int], missing: list[int]) -> torch.Tensor:
    """The nearest given frame in the place of each missing one, the one before if two are as near."""
    nearest = [min(given, key=lambda p: (abs(p - position), p)) for position in missing]
    return clips[:, nearest]


def with_interval(values: np.ndarray) -> str:
    """Mean over clips x 1000, and its 95 % interval."""
    interval = mean_interval(values * 1000, None)
    return f"{values.mean() * 1000:.1f} ({interval.low:.1f} to {interval.high:.1f})"


def measure(folder: Path, output: Path, num_clips: int, num_steps: int) -> None:
    """The table, and a picture of each task."""
    torch.set_num_threads(1)
    clips = held_out_clips(num_clips, NUM_FRAMES)
    pipes = {name: load(folder / name) for name in METHODS}
    output.mkdir(parents=True)
    rows, pictures = [], {}
    budgets = {name: json.loads((folder / name / "budget.json").read_text()) for name in METHODS}
    networks = {name: [x for x in (pipe.unet, pipe.context_encoder) if x is not None] for name, pipe in pipes.items()}
    counts = {name: sum(p.numel() for x in parts for p in x.parameters()) for name, parts in networks.items()}
    rows.append(["parameters", *(f"{counts[name]:,}" for name in METHODS), ""])
    rows.append(["training, minutes of a core", *(f"{budgets[x]['seconds of a core'] / 60:.1f}" for x in METHODS), ""])
    rows.append(["updates", *(f"{budgets[name]['updates']:,}" for name in METHODS), ""])
    seconds = []
    for name, pipe in pipes.items():
        sample(pipe, clips[:1], TASKS["prediction"], 2)
        started = time.process_time()
        sample(pipe, clips[:1], TASKS["prediction"], num_steps)
        seconds.append(f"{time.process_time() - started:.2f}")
    rows.append(["seconds for a video (prediction)", *seconds, ""])
    for task, given in TASKS.items():
        missing = [position for position in range(NUM_FRAMES) if position not in given]
        truth, pictures[task], cells = clips[:, missing], {"truth": clips}, []
        for name, pipe in pipes.items():
            if task in CANNOT.get(name, ()):
                cells.append("-")
                continue
            made = sample(pipe, clips, given, num_steps)
            pictures[task][METHODS[name]] = clips.clone()
            pictures[task][METHODS[name]][:, missing] = made
            cells.append(with_interval((made - truth).square().flatten(1).mean(1).numpy()) if given else "shown")
        if given:
            repeated = nearest_given(clips, given, missing)
            cells.append(with_interval((repeated - truth).square().flatten(1).mean(1).numpy()))
            rows.append([f"{task}, squared error x 1000", *cells])
    given, missing = TASKS["prediction"], list(range(2, NUM_FRAMES))
    truth, cells = clips[:, missing].numpy(), []
    for pipe in pipes.values():
        made = sample(pipe, clips, given, num_steps, NUM_MEMBERS).unflatten(0, (len(clips), NUM_MEMBERS)).numpy()
        cells.append(with_interval(crps(made, truth, fair=True).reshape(len(clips), -1).mean(1)))
    repeated = nearest_given(clips, given, missing).numpy()[:, None]
    cells.append(with_interval(crps(repeated, truth).reshape(len(clips), -1).mean(1)))
    rows.append(["prediction, CRPS x 1000", *cells])
    for task, videos in pictures.items():
        is_given = [position in TASKS[task] for position in range(NUM_FRAMES)]
        shown = {name: video[:NUM_SHOWN] for name, video in videos.items() if task != "generation" or name != "truth"}
        contact_sheet(shown, is_given).save(output / f"{task.replace(' ', '_')}.png")
    names = ["", *METHODS.values(), "repeating the nearest given frame"]
    lines = [f"| {' | '.join(names)} |", "| --- |" + " --- |" * (len(names) - 1)]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    lines += [
        "",
        f"{num_clips} held-out clips of {NUM_FRAMES} frames, 16 x 16 pixels in [0, 1], whose digits no run has seen; EMA weights,"
        f" {num_steps} steps of DDIM, one sample each, for the CRPS (the fair one) {NUM_MEMBERS}; means over the pixels that are made,"
        " and their 95 % interval over clips. Given frames, counted from 0: prediction 0 and 1; past prediction 6 and 7;"
        " interpolation 0, 1, 6 and 7; infilling 1, 4 and 6. VDM, which never was given any, is guided"
        f" (num_resamples={BY_GUIDANCE['num_resamples']}, eta={BY_GUIDANCE['eta']:g}). Seconds are of a core, for one video of 6 frames.",
    ]
    (output / "table.md").write_text("\n".join(lines) + "\n", "utf-8")
    print("\n".join(lines))


def main(arguments: list[str] | None = None) -> None:
    """Train, or measure."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=("train", "measure"))
    parser.add_argument("folder", type=Path, help="of the runs")
    parser.add_argument("--minutes", type=float, default=12.0, help="of a core, for each training")
    parser.add_argument("--only", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--output", type=Path, help="new folder for the table and the pictures")
    parser.add_argument("--num_clips", type=int, default=64)
    parser.add_argument("--steps", type=int, default=25)
    options = parser.parse_args(arguments)
    if options.what == "train":
        for name in options.only:
            train(options.folder, name, options.minutes)
    elif options.output is None or options.output.exists():
        raise SystemExit(f"--output must be a new folder, got {options.output}.")
    else:
        measure(options.folder, options.output, options.num_clips, options.steps)


if __name__ == "__main__":
    main()
