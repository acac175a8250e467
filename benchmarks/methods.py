"""All six methods on the same moving digits, each trained for the same time: one table.

    python benchmarks/methods.py train runs/methods [--minutes 12] [--only lgcvd ...]
    python benchmarks/methods.py measure runs/methods --output runs/methods_table [--num_clips 64] [--steps 25]

`train` trains `examples/configs/NAME_digits.yaml` of each method, one after the other, each with one thread for so many minutes
of a core: how many updates that is, is measured first, in two short runs, by the time that the processor worked, not by the clock,
so that other jobs on the machine do not matter much. Started again, it trains what is missing. `measure` makes the six tasks of
`examples/six_tasks.py` of 64 held-out clips of 8 frames, one sample each, and of the prediction also ensembles of 5; and the mean squared
error and the CRPS of the frames that are made, beside those of black frames and of repeating the nearest given one (for spatial
super-resolution: of enlarging the small frames). A method that cannot do a task has a dash there. What was measured is kept with the
run: `measure runs/methods --only vdm` does a part of it beforehand, beside others. With 64 clips, VDM takes nearly an hour of a core.
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
sys.path[:0] = [str(ROOT), str(ROOT / "examples")]

import numpy as np  # noqa: E402
import torch  # noqa: E402
from six_tasks import BY_GUIDANCE, given_frames, held_out_clips, set_ddim  # noqa: E402

from mcvd_diffusers import MCVDPipeline  # noqa: E402
from mcvd_diffusers.guidance import downsample  # noqa: E402
from mcvd_diffusers.metrics import crps, mean_interval  # noqa: E402
from mcvd_diffusers.visualization import contact_sheet  # noqa: E402


METHODS = {"mcvd": "MCVD", "ramvid": "RaMViD", "fdm": "FDM", "vdm": "VDM", "lgcvd": "LGC-VD", "rvd": "RVD"}
NUM_FRAMES, NUM_MEMBERS, NUM_SHOWN = 8, 5, 4
# Task -> positions of the given frames.
TASKS = given_frames(NUM_FRAMES) | {"generation": []}
SPATIAL = "spatial super-resolution"
# What a network cannot do: MCVD's takes frames before and after a block, RVD's those before, and always some.
CANNOT = {"mcvd": {"infilling", "temporal super-resolution"}, "rvd": TASKS.keys() - {"prediction"}}


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


def load(run: Path) -> MCVDPipeline:
    """The pipeline of a run, with the averaged weights, sampled as all are here."""
    pipe = MCVDPipeline.from_pretrained(run, variant="ema")
    pipe.set_progress_bar_config(disable=True)
    set_ddim(pipe)
    return pipe


def sample(pipe: MCVDPipeline, clips: torch.Tensor, task: str, num_steps: int, num_members: int = 1) -> torch.Tensor:
    """The frames that a task does not give, (N * members, n, 1, H, W)."""
    given, arguments = TASKS[task], {"batch_size": len(clips)}
    if given:
        arguments = {"observed_frames": clips[:, given], "observed_positions": given}
    elif task == SPATIAL:
        arguments = {"low_resolution_frames": small_frames(clips), "super_resolution_guidance": 5.0}
    # What is known enters by a gradient, if the network never was given any.
    by_guidance = task == SPATIAL or (given and pipe.config.replacement is not None)
    return pipe(
        **arguments,
        **(BY_GUIDANCE if by_guidance else {}),
        num_frames=clips.shape[1] - len(given),
        num_inference_steps=num_steps,
        ensemble_size=num_members,
        generator=torch.Generator().manual_seed(0),
        output_type="pt",
    ).frames


def small_frames(clips: torch.Tensor) -> torch.Tensor:
    """Of half the height and width."""
    return downsample(clips, tuple(size // 2 for size in clips.shape[-2:]))


def baseline(clips: torch.Tensor, task: str) -> torch.Tensor:
    """The nearest given frame in the place of each missing one, the one before if two are as near; or small frames, enlarged."""
    if task == SPATIAL:
        return small_frames(clips).repeat_interleave(2, dim=-1).repeat_interleave(2, dim=-2)
    nearest = [min(TASKS[task], key=lambda p: (abs(p - position), p)) for position in missing_frames(task)]
    return clips[:, nearest]


def missing_frames(task: str) -> list[int]:
    """Positions of the frames that are made."""
    return [position for position in range(NUM_FRAMES) if position not in TASKS[task]]


def seconds_of(pipe: MCVDPipeline, clips: torch.Tensor, num_steps: int) -> float:
    """Seconds of a core that a prediction takes."""
    started = time.process_time()
    sample(pipe, clips, "prediction", num_steps)
    return time.process_time() - started


def num_calls(pipe: MCVDPipeline, clips: torch.Tensor, num_steps: int) -> int:
    """Calls of the network that a prediction takes."""
    calls = []
    hook = pipe.unet.register_forward_hook(lambda *_: calls.append(1))
    sample(pipe, clips, "prediction", num_steps)
    hook.remove()
    return len(calls)


def with_interval(values: np.ndarray) -> str:
    """Mean over clips x 1000, and its 95 % interval."""
    interval = mean_interval(values * 1000, None)
    return f"{values.mean() * 1000:.1f} ({interval.low:.1f} to {interval.high:.1f})"


def measured(folder: Path, name: str, num_clips: int, num_steps: int) -> dict:
    """
    What the table says of a method, and its frames of the first clips; kept in its run, so that it is measured once.

    Values of clips by task, squared errors and the CRPS, are one number for each clip.
    """
    path = folder / name / f"measured_{num_clips}_clips_{num_steps}_steps_unclipped.pt"
    if path.exists():
        return torch.load(path, weights_only=False)  # our own
    torch.set_num_threads(1)
    clips, pipe = held_out_clips(folder / name, num_frames=NUM_FRAMES, num_clips=num_clips), load(folder / name)
    networks = [x for x in (pipe.unet, pipe.context_encoder) if x is not None]
    sample(pipe, clips[:1], "prediction", 2)
    found = {
        "parameters": sum(x.numel() for network in networks for x in network.parameters()),
        "seconds": min(seconds_of(pipe, clips[:1], num_steps) for _ in range(5)),
        "calls": num_calls(pipe, clips[:1], num_steps),
        "errors": {},
        "shown": {},
    }
    for task in TASKS.keys() - CANNOT.get(name, set()):
        missing = missing_frames(task)
        made = sample(pipe, clips, task, num_steps)
        found["errors"][task] = (made - clips[:, missing]).square().flatten(1).mean(1).numpy()
        found["shown"][task] = clips[:NUM_SHOWN].clone()
        found["shown"][task][:, missing] = made[:NUM_SHOWN]
    members = sample(pipe, clips, "prediction", num_steps, NUM_MEMBERS).unflatten(0, (len(clips), NUM_MEMBERS))
    truth = clips[:, missing_frames("prediction")].numpy()
    found["crps"] = crps(members.numpy(), truth, fair=True).reshape(len(clips), -1).mean(1)
    torch.save(found, path)
    return found


def make_table(folder: Path, output: Path, num_clips: int, num_steps: int) -> None:
    """The table, and a picture of each task."""
    clips = held_out_clips(folder / "mcvd", num_frames=NUM_FRAMES, num_clips=num_clips)
    found = [measured(folder, name, num_clips, num_steps) for name in METHODS]
    budgets = [json.loads((folder / name / "budget.json").read_text()) for name in METHODS]
    output.mkdir(parents=True)
    rows = [
        ["parameters", *(f"{x['parameters']:,}" for x in found), "", ""],
        ["training, minutes of a core", *(f"{x['seconds of a core'] / 60:.1f}" for x in budgets), "", ""],
        ["updates", *(f"{x['updates']:,}" for x in budgets), "", ""],
        ["seconds for a video (prediction)", *(f"{x['seconds']:.2f}" for x in found), "", ""],
        ["calls of the network for it", *(str(x["calls"]) for x in found), "", ""],
    ]
    for task in TASKS:
        videos = {METHODS[name]: x["shown"][task] for name, x in zip(METHODS, found) if task in x["shown"]}
        if task != "generation":
            cells = [with_interval(x["errors"][task]) if task in x["errors"] else "-" for x in found]
            truth = clips[:, missing_frames(task)]
            for other in (torch.zeros_like(truth), baseline(clips, task)):
                cells.append(with_interval((other - truth).square().flatten(1).mean(1).numpy()))
            rows.append([f"{task}, squared error x 1000", *cells])
            videos = {"truth": clips[:NUM_SHOWN], **videos}
        is_given = [position in TASKS[task] for position in range(NUM_FRAMES)]
        contact_sheet(videos, is_given).save(output / f"{task.replace(' ', '_')}.png")
    cells, truth = [with_interval(x["crps"]) for x in found], clips[:, missing_frames("prediction")].numpy()
    for other in (np.zeros_like(truth), baseline(clips, "prediction").numpy()):
        cells.append(with_interval(crps(other[:, None], truth).reshape(len(clips), -1).mean(1)))
    rows.append(["prediction, CRPS x 1000", *cells])
    names = ["", *METHODS.values(), "black frames", "nearest given frame"]
    lines = [f"| {' | '.join(names)} |", "| --- |" + " --- |" * (len(names) - 1)]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    lines += [
        "",
        f"{num_clips} held-out clips of {NUM_FRAMES} frames, 16 x 16 pixels in [0, 1], whose digits no run has seen; EMA weights,"
        f" {num_steps} steps of DDIM without clipping, one sample each, for the CRPS (the fair one) {NUM_MEMBERS}; means over the pixels that are made,"
        " and their 95 % interval over clips. Given frames, counted from 0: prediction 0 and 1; past prediction 6 and 7;"
        " interpolation 0, 1, 6 and 7; infilling 1, 4 and 6; temporal super-resolution 0, 2, 4 and 6; spatial super-resolution all, at"
        " half the size, beside them enlarged. Small frames, and all frames given to VDM, enter by guidance"
        f" (num_resamples={BY_GUIDANCE['num_resamples']}, eta={BY_GUIDANCE['eta']:g}). Seconds are of a core, for one video"
        " of 6 frames, the least of five. One training of each method: how much others would differ is not in the intervals.",
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
    options.folder = options.folder.resolve()  # trainings run in another one
    if options.what == "train":
        for name in options.only:
            train(options.folder, name, options.minutes)
    elif options.only != list(METHODS) and options.output is None:
        for name in options.only:
            measured(options.folder, name, options.num_clips, options.steps)
    elif options.output is None or options.output.exists():
        raise SystemExit(f"--output must be a new folder, got {options.output}.")
    else:
        make_table(options.folder, options.output, options.num_clips, options.steps)


if __name__ == "__main__":
    main()
