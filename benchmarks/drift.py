"""How a long video drifts: the quality of each of 60 predicted frames, with and without training on own predictions.

    python benchmarks/drift.py train runs/drift        # twice LGC-VD for prediction alone, a quarter of an hour of a core each
    python benchmarks/drift.py measure runs/drift/own_predictions runs/drift/true_frames --output runs/drift_table

`train` makes `examples/configs/lgcvd_digits.yaml` with `--task_shares 1 0 0 0`, once as it is and once with `--own_predictions False`:
as many updates on the same clips in the same order. `measure` takes any runs on the same digits.

Where a digit is after 60 frames, nobody can know: it bounces at random. What can be told of a frame is how far it is from what the
data could show: its squared distance to the nearest of all pictures of one handwritten digit of the data set at any place; and
from what this clip could show, the digit that it began with. Those of a true frame are 0, those of an empty one about 2 and 4. A
model's loss a frame is the slope of a straight line through the 60 distances of a clip, by least squares; means over clips with
95 % intervals, and the interval of the difference between models clip by clip. A digit that stands still would lose nothing: how far
its centre moves in a frame is told, too.
"""

import argparse
import json
import sys
from pathlib import Path


ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks"), str(ROOT / "examples")]

import numpy as np  # noqa: E402
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from methods import load, train_run  # noqa: E402
from six_tasks import held_out_clips  # noqa: E402

from mcvd_diffusers.data import load_digits  # noqa: E402
from mcvd_diffusers.metrics import mean_interval  # noqa: E402
from mcvd_diffusers.visualization import contact_sheet  # noqa: E402


NUM_GIVEN, NUM_MADE, DIGIT_SIZE = 2, 60, 6


def all_digits() -> torch.Tensor:
    """Every picture of a digit that a clip may show, (K, 1, h, w) in [0, 1]."""
    splits = (load_digits("sklearn", split=split, size=DIGIT_SIZE) for split in ("train", "validation"))
    return torch.from_numpy(np.concatenate(list(splits)))[:, None]


def distances(frames: torch.Tensor, digits: torch.Tensor) -> torch.Tensor:
    """Squared distance of each frame (N, 1, H, W) to an empty one with a digit of (K, 1, h, w) at its best place, (N, K)."""
    energy = digits.square().flatten(1).sum(1)[:, None, None]
    # |x - d|^2 = |x|^2 - 2 <x, d> + |d|^2, for all digits at all places.
    others = [(energy - 2 * F.conv2d(part, digits)).flatten(2).amin(2) for part in frames.split(16)]
    return (frames.square().flatten(1).sum(1)[:, None] + torch.cat(others)).clamp(min=0)


def distance_to_any(videos: torch.Tensor, digits: torch.Tensor) -> np.ndarray:
    """That of each frame of videos (N, T, 1, H, W) to the nearest digit, (N, T)."""
    return torch.stack([distances(video, digits).amin(1) for video in videos]).numpy()


def distance_to_own(videos: torch.Tensor, digits: torch.Tensor, clips: torch.Tensor) -> np.ndarray:
    """That to the digit that the first frame of the true clip shows, (N, T)."""
    own = [distances(clip[:1], digits).argmin() for clip in clips]
    return torch.stack([distances(video, digits[k][None])[:, 0] for video, k in zip(videos, own)]).numpy()


def motion(video: torch.Tensor) -> np.ndarray:
    """Pixels that the centre of brightness moves from frame to frame, the mean for each video (N, T, 1, H, W), (N,)."""
    weights = video[:, :, 0].clamp(min=1e-6)
    total = weights.sum((2, 3))
    rows, columns = torch.arange(video.shape[-2]), torch.arange(video.shape[-1])
    centre = torch.stack([(weights.sum(3) @ rows.float()) / total, (weights.sum(2) @ columns.float()) / total], dim=2)
    return centre.diff(dim=1).norm(dim=2).mean(1).numpy()


def measure(runs: list[Path], output: Path, num_clips: int, num_steps: int) -> None:
    """The table, the plot, and a picture."""
    torch.set_num_threads(1)
    clips, digits = held_out_clips(runs[0], num_frames=NUM_GIVEN + NUM_MADE, num_clips=num_clips), all_digits()
    output.mkdir(parents=True)
    videos = {"truth": clips}
    for run in runs:
        videos[run.name] = load(run)(
            past_frames=clips[:, :NUM_GIVEN],
            num_frames=NUM_MADE,
            num_inference_steps=num_steps,
            generator=torch.Generator().manual_seed(0),
            return_given_frames=True,
            output_type="pt",
        ).frames
    made = {name: video[:, NUM_GIVEN:] for name, video in videos.items()}
    time = np.arange(1, NUM_MADE + 1) - (NUM_MADE + 1) / 2

    def cell(values: np.ndarray, places: int) -> str:
        interval = mean_interval(values, None)
        return f"{values.mean():.{places}f} ({interval.low:.{places}f} to {interval.high:.{places}f})"

    heads = ["", "quality", "first 10 frames", "last 10 frames", "lost a frame", "moves, pixels a frame"]
    lines, said, kept = [f"| {' | '.join(heads)} |", "| --- |" + " --- |" * (len(heads) - 1)], [], {}
    for quality in ("any digit", "its own digit"):
        slopes = {}
        for name, video in made.items():
            if quality == "any digit":
                values = distance_to_any(video, digits)
            else:
                values = distance_to_own(video, digits, clips)
            kept[f"{name}, {quality}"], slopes[name] = values, values @ time / (time @ time)
            parts = cell(values[:, :10].mean(1), 2), cell(values[:, -10:].mean(1), 2), cell(slopes[name], 5)
            lines.append(f"| {name} | {quality} | {' | '.join(parts)} | {cell(motion(videos[name]), 2)} |")
        for run in runs[1:]:
            more = slopes[run.name] - slopes[runs[0].name]
            said.append(f"By distance to {quality} {run.name} loses {cell(more, 5)} more a frame than {runs[0].name}.")
    lines += [
        "",
        *said,
        "",
        "Squared distance of a frame to the nearest picture of one digit of the data, or of the digit that the clip began with, at any"
        f" place, 16 x 16 pixels in [0, 1]; {num_clips} held-out clips, {NUM_GIVEN} frames given, {NUM_MADE} predicted, one sample each,"
        f" {num_steps} steps of DDIM, EMA weights; means and 95 % intervals over clips, of differences clip by clip.",
    ]
    (output / "table.md").write_text("\n".join(lines) + "\n", "utf-8")
    (output / "distances.json").write_text(json.dumps({name: x.mean(0).tolist() for name, x in kept.items()}))
    shown = {name: video[:4, ::6] for name, video in videos.items()}
    contact_sheet(shown, [True] + [False] * (shown["truth"].shape[1] - 1)).save(output / "drift.png")
    plot({name: {q: kept[f"{name}, {q}"] for q in ("any digit", "its own digit")} for name in made}, output)
    print("\n".join(lines))


def plot(models: dict[str, dict[str, np.ndarray]], output: Path) -> None:
    """Mean distance of each frame (thin), and of each window of six with twice its standard error (thick)."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.5), layout="constrained")
    frames = np.arange(1, NUM_MADE + 1)
    for axes, quality in zip(figure.subplots(1, 2), ("any digit", "its own digit")):
        for number, (name, values) in enumerate(models.items()):
            windows = values[quality].reshape(len(values[quality]), -1, 6).mean(2)
            error = 2 * windows.std(0, ddof=1) / len(windows) ** 0.5
            axes.plot(frames, values[quality].mean(0), color=f"C{number}", linewidth=0.6, alpha=0.5)
            middle = frames.reshape(-1, 6).mean(1)
            axes.errorbar(middle, windows.mean(0), error, color=f"C{number}", linewidth=2, capsize=2, label=name)
        axes.set(xlabel="predicted frame", ylabel=f"squared distance to {quality}", ylim=(0, None))
    axes.legend()
    figure.savefig(output / "drift_plot.png", dpi=120)


def main(arguments: list[str] | None = None) -> None:
    """Train the two models, or measure some."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=("train", "measure"))
    parser.add_argument(
        "runs", type=Path, nargs="+", help="folder of the runs; of each run, the first with own predictions"
    )
    parser.add_argument("--output", type=Path, help="new folder for table, plot and picture")
    parser.add_argument("--updates", type=int, default=7000, help="of each training")
    parser.add_argument("--num_clips", type=int, default=64)
    parser.add_argument("--steps", type=int, default=25)
    options = parser.parse_args(arguments)
    if options.what == "train":
        (folder,) = options.runs
        if folder.exists():
            raise SystemExit(f"{folder} exists, and nothing is overwritten: name a new folder.")
        for name, is_own in (("own_predictions", "True"), ("true_frames", "False")):
            flags = ("--task_shares", "1", "0", "0", "0", "--own_predictions", is_own)
            train_run("lgcvd", folder / name, options.updates, *flags)
    elif options.output is None or options.output.exists():
        raise SystemExit(f"--output must be a new folder, got {options.output}.")
    else:
        measure(options.runs, options.output, options.num_clips, options.steps)


if __name__ == "__main__":
    main()
