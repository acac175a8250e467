"""How a long video drifts: the error of each of 60 predicted frames, with and without training on own predictions.

    python benchmarks/drift.py train runs/drift      # LGC-VD for prediction alone, and two ways on from it
    python benchmarks/drift.py measure runs/drift --output runs/drift_table

A handwritten digit moves over a torus of 16 x 16 pixels, always by the same step: after two frames all others are known, so that the
error of a predicted frame is its squared distance to the true one, and errors that pile up from window to window are all there is to
see. A model is trained first whose second window of an update is given true frames and a true memory, and from it two models with as
many updates on the same clips in the same order: one by `--own_predictions True`, as LGC-VD is, so that the second window is given
frames and a memory of the network's own making; the other goes on by true ones. (Trained so from the start, and for so short a time, it
was the worse model throughout.)

A model's loss a frame is the slope of a straight line through the 60 errors of a clip, by least squares; means over held-out clips,
whose digits no model has seen, with 95 % intervals, and the interval of the difference between the models clip by clip.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path


ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import torch  # noqa: E402

from mcvd_diffusers import MCVDPipeline  # noqa: E402
from mcvd_diffusers.data import load_digits  # noqa: E402
from mcvd_diffusers.metrics import mean_interval  # noqa: E402
from mcvd_diffusers.visualization import contact_sheet  # noqa: E402


SIZE, DIGIT_SIZE, NUM_GIVEN, NUM_MADE, NUM_TRAIN_CLIPS, NUM_WINDOW_FRAMES = 16, 8, 2, 60, 6000, 8
MODELS = {"own_predictions": "True", "true_frames": "False"}
COMMON = "--axes NTHW --task_shares 1 0 0 0 --train_batch_size 8 --logging_steps 200 --num_validation_videos 16 --report_to none"
NEW = f"""
    --method lgcvd --max_frames {NUM_WINDOW_FRAMES} --block_out_channels 32 48 64 --attention_levels 2
    --prediction_type v_prediction --beta_schedule squaredcos_cap_v2 --learning_rate 1e-3 --own_predictions False
"""


def torus_clips(split: str, num_clips: int, num_frames: int, seed: int) -> np.ndarray:
    """Clips (N, T, H, W), uint8, of one digit that moves by 1 pixel across, along or aslant, and comes back on the other side."""
    digits, numbers = load_digits("sklearn", split=split, size=DIGIT_SIZE), np.random.default_rng(seed)
    steps = [(down, right) for down in (-1, 0, 1) for right in (-1, 0, 1) if down or right]
    clips = np.zeros((num_clips, num_frames, SIZE, SIZE), np.float32)
    for clip in clips:
        clip[:, :DIGIT_SIZE, :DIGIT_SIZE] = digits[numbers.integers(len(digits))]
        start, step = numbers.integers(SIZE, size=2), steps[numbers.integers(len(steps))]
        for time, frame in enumerate(clip):
            frame[:] = np.roll(frame, start + time * np.array(step), (0, 1))
    return (255 * clips).round().astype(np.uint8)


def train(folder: Path, num_updates: int, num_more: int) -> None:
    """The model that both begin with, and both, on clips of two windows."""
    folder.mkdir(parents=True)
    data = folder / "train.npy"
    np.save(data, torus_clips("train", NUM_TRAIN_CLIPS, 2 * NUM_WINDOW_FRAMES - NUM_GIVEN, seed=0))

    def run(name: str, updates: int, *flags: str) -> None:
        command = [sys.executable, str(ROOT / "train_mcvd.py"), "--train_data_dir", str(data), *COMMON.split(), *flags]
        command += ["--max_train_steps", str(updates), "--output_dir", str(folder / name)]
        subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, cwd=ROOT)

    run("begin", num_updates, *NEW.split())
    for name, is_own in MODELS.items():
        begun = ("--pretrained_model_name_or_path", str(folder / "begin"), "--variant", "ema", "--seed", "1")
        run(name, num_more, *begun, "--learning_rate", "5e-4", "--own_predictions", is_own)


def measure(folder: Path, output: Path, num_clips: int, num_steps: int) -> None:
    """The table, the plot, and a picture."""
    torch.set_num_threads(1)
    clips = torch.from_numpy(torus_clips("validation", num_clips, NUM_GIVEN + NUM_MADE, seed=1))[:, :, None] / 255
    output.mkdir(parents=True)
    videos, errors, slopes = {"truth": clips}, {}, {}
    time = np.arange(1, NUM_MADE + 1) - (NUM_MADE + 1) / 2
    for name in MODELS:
        pipe = MCVDPipeline.from_pretrained(folder / name, variant="ema")
        pipe.set_progress_bar_config(disable=True)
        videos[name] = pipe(
            past_frames=clips[:, :NUM_GIVEN],
            num_frames=NUM_MADE,
            num_inference_steps=num_steps,
            generator=torch.Generator().manual_seed(0),
            return_given_frames=True,
            output_type="pt",
        ).frames
        errors[name] = (videos[name] - clips)[:, NUM_GIVEN:].square().flatten(2).mean(2).numpy()
        slopes[name] = errors[name] @ time / (time @ time)
    repeated = (clips[:, NUM_GIVEN - 1 : NUM_GIVEN] - clips)[:, NUM_GIVEN:].square().mean().item()

    def cell(values: np.ndarray) -> str:
        interval = mean_interval(1000 * values, None)
        return f"{1000 * values.mean():.2f} ({interval.low:.2f} to {interval.high:.2f})"

    lines = ["| squared error x 1000 | first window | last window | lost a frame |", "| --- |" + " --- |" * 3]
    for name, values in errors.items():
        lines.append(
            f"| {name} | {cell(values[:, :6].mean(1))} | {cell(values[:, -6:].mean(1))} | {cell(slopes[name])} |"
        )
    own, true = slopes.values()
    lines += [
        "",
        f"{' and '.join(reversed(MODELS))}: the former loses {cell(true - own)} more a frame, clip by clip. Repeating the last given frame has an error"
        f" of {1000 * repeated:.1f}.",
        "",
        f"Mean squared error of pixels in [0, 1] against the true frames; {num_clips} held-out clips of {SIZE} x {SIZE} pixels, {NUM_GIVEN}"
        f" frames given, {NUM_MADE} predicted, one sample each, {num_steps} steps of DDIM, EMA weights; means and 95 % intervals over clips.",
    ]
    (output / "table.md").write_text("\n".join(lines) + "\n", "utf-8")
    (output / "errors.json").write_text(json.dumps({name: x.tolist() for name, x in errors.items()}))
    shown = {name: video[:4, ::6] for name, video in videos.items()}
    contact_sheet(shown, [True] + [False] * (shown["truth"].shape[1] - 1)).save(output / "drift.png")
    plot(errors, output / "drift_plot.png")
    print("\n".join(lines))


def plot(errors: dict[str, np.ndarray], path: Path) -> None:
    """Mean error of each frame, and twice its standard error."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.5), layout="constrained")
    axes = figure.add_subplot()
    frames = np.arange(1, NUM_MADE + 1)
    for name, values in errors.items():
        mean, error = values.mean(0), 2 * values.std(0, ddof=1) / len(values) ** 0.5
        axes.plot(frames, mean, label=name)
        axes.fill_between(frames, mean - error, mean + error, alpha=0.2)
    axes.set(xlabel="predicted frame", ylabel="squared error", ylim=(0, None))
    axes.legend()
    figure.savefig(path, dpi=120)


def main(arguments: list[str] | None = None) -> None:
    """Train the two models, or measure them."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=("train", "measure"))
    parser.add_argument("folder", type=Path, help="of the two runs")
    parser.add_argument("--output", type=Path, help="new folder for table, plot and picture")
    parser.add_argument("--updates", type=int, default=4500, help="of the first model")
    parser.add_argument("--more", type=int, default=2200, help="updates of each of the two")
    parser.add_argument("--num_clips", type=int, default=256)
    parser.add_argument("--steps", type=int, default=25)
    options = parser.parse_args(arguments)
    target = options.folder if options.what == "train" else options.output
    if target is None or target.exists():
        name = "the folder of the runs" if options.what == "train" else "--output"
        raise SystemExit(f"{name} must be a new one, got {target}.")
    if options.what == "train":
        train(options.folder, options.updates, options.more)
    else:
        measure(options.folder, options.output, options.num_clips, options.steps)


if __name__ == "__main__":
    main()
