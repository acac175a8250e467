"""How a long video drifts: the quality of each of 60 predicted frames, of several trained models.

    python benchmarks/methods.py train runs/methods --only lgcvd
    python benchmarks/drift.py train runs/methods      # the same without --own_predictions, as many updates
    python benchmarks/drift.py measure runs/methods/lgcvd runs/methods/lgcvd_true --output runs/drift

Where a digit is after 60 frames, nobody can know: it bounces at random. What can be told of a frame is how far it is from what the
data could show: its squared distance, in pixels, to the nearest of all pictures of one handwritten digit of the data set at any
place. That of a true frame is about 0, that of an empty one the mean brightness of a digit. A model's loss a frame is the slope of
a straight line through the 60 distances of a clip, by least squares; means over clips with 95 % intervals, and the interval of the
difference between models clip by clip. A digit that stands still would lose nothing: how far its centre moves in a frame is told, too.
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
from mcvd_diffusers.metrics import mean_interval, paired_difference_interval  # noqa: E402
from mcvd_diffusers.visualization import contact_sheet  # noqa: E402


NUM_GIVEN, NUM_MADE, DIGIT_SIZE = 2, 60, 6


def distance_to_data(frames: torch.Tensor) -> np.ndarray:
    """Squared distance of frames (N, 1, H, W) in [0, 1] to the nearest picture of one digit at any place, (N,)."""
    splits = (load_digits("sklearn", split=split, size=DIGIT_SIZE) for split in ("train", "validation"))
    digits = torch.from_numpy(np.concatenate(list(splits)))[:, None]
    energy = digits.square().flatten(1).sum(1)[:, None, None]
    nearest = []
    for frame in frames.split(16):
        squared = frame.square().flatten(1).sum(1)
        # |x - d|^2 = |x|^2 - 2 <x, d> + |d|^2, for all digits at all places.
        others = (energy - 2 * F.conv2d(frame, digits)).flatten(1).amin(1)
        nearest.append((squared + others).clamp(min=0))
    return torch.cat(nearest).numpy()


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
    clips = held_out_clips(runs[0], num_frames=NUM_GIVEN + NUM_MADE, num_clips=num_clips)
    output.mkdir(parents=True)
    distances, shown = {}, {"truth": clips[:4, ::6]}
    moves = {"truth": motion(clips)}
    distances["truth"] = distance_to_data(clips[:, NUM_GIVEN:].flatten(0, 1)).reshape(num_clips, NUM_MADE)
    for run in runs:
        made = load(run)(
            past_frames=clips[:, :NUM_GIVEN],
            num_frames=NUM_MADE,
            num_inference_steps=num_steps,
            generator=torch.Generator().manual_seed(0),
            return_given_frames=True,
            output_type="pt",
        ).frames
        shown[run.name], moves[run.name] = made[:4, ::6], motion(made)
        distances[run.name] = distance_to_data(made[:, NUM_GIVEN:].flatten(0, 1)).reshape(num_clips, NUM_MADE)
    time = np.arange(1, NUM_MADE + 1) - (NUM_MADE + 1) / 2
    slopes = {name: values @ time / (time @ time) for name, values in distances.items()}

    def cell(values: np.ndarray, digits: int) -> str:
        interval = mean_interval(values, None)
        return f"{values.mean():.{digits}f} ({interval.low:.{digits}f} to {interval.high:.{digits}f})"

    lines = ["| | first 10 frames | last 10 frames | lost a frame | moves, pixels a frame |", "| --- |" + " --- |" * 4]
    for name, values in distances.items():
        parts = (values[:, :10].mean(1), values[:, -10:].mean(1))
        lines.append(
            f"| {name} | {cell(parts[0], 2)} | {cell(parts[1], 2)} | {cell(slopes[name], 4)} | {cell(moves[name], 2)} |"
        )
    lines.append("")
    for run in runs[1:]:
        interval = paired_difference_interval(slopes[run.name], slopes[runs[0].name], None)
        difference = (slopes[run.name] - slopes[runs[0].name]).mean()
        lines.append(
            f"{run.name} loses {difference:.4f} more a frame than {runs[0].name} ({interval.low:.4f} to"
            f" {interval.high:.4f}), clip by clip."
        )
    lines += [
        "",
        f"Squared distance of a frame to the nearest picture of one digit that the data could show, 16 x 16 pixels in [0, 1]; {num_clips}"
        f" held-out clips, {NUM_GIVEN} frames given, {NUM_MADE} predicted, one sample each, {num_steps} steps of DDIM, EMA weights;"
        " means and 95 % intervals over clips.",
    ]
    (output / "table.md").write_text("\n".join(lines) + "\n", "utf-8")
    (output / "distances.json").write_text(json.dumps({name: x.tolist() for name, x in distances.items()}))
    contact_sheet(shown, [True] + [False] * (shown["truth"].shape[1] - 1)).save(output / "drift.png")
    plot(distances, output / "drift_plot.png")
    print("\n".join(lines))


def plot(distances: dict[str, np.ndarray], path: Path) -> None:
    """Mean distance of each frame, and twice its standard error."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.5), layout="constrained")
    axes = figure.add_subplot()
    frames = np.arange(1, NUM_MADE + 1)
    for name, values in distances.items():
        mean, error = values.mean(0), 2 * values.std(0, ddof=1) / len(values) ** 0.5
        axes.plot(frames, mean, label=name)
        axes.fill_between(frames, mean - error, mean + error, alpha=0.2)
    axes.set(xlabel="predicted frame", ylabel="squared distance to the data", ylim=(0, None))
    axes.legend()
    figure.savefig(path, dpi=120)


def main(arguments: list[str] | None = None) -> None:
    """Train the model without own predictions, or measure."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=("train", "measure"))
    parser.add_argument(
        "runs", type=Path, nargs="+", help="folder of the runs; of each run, the first with own predictions"
    )
    parser.add_argument("--output", type=Path, help="new folder for table, plot and picture")
    parser.add_argument("--num_clips", type=int, default=64)
    parser.add_argument("--steps", type=int, default=25)
    options = parser.parse_args(arguments)
    if options.what == "train":
        (folder,) = options.runs
        budget = json.loads((folder / "lgcvd" / "budget.json").read_text())
        train_run("lgcvd", folder / "lgcvd_true", budget["updates"], "--own_predictions", "False")
    elif options.output is None or options.output.exists():
        raise SystemExit(f"--output must be a new folder, got {options.output}.")
    else:
        measure(options.runs, options.output, options.num_clips, options.steps)


if __name__ == "__main__":
    main()
