"""What noise on given frames, of which the network is told, does against drift in long videos.

    python benchmarks/observed_noise.py train runs/observed_noise [--updates 10000] [--pairs 3]
    python benchmarks/observed_noise.py measure runs/observed_noise --output runs/observed_noise_table [--steps 5 15]

MCVD's network on the digits of `drift.py`, which move on a torus, so that the one right future is known: trained with noise up to a half
on given frames, or with none, otherwise alike; pairs differ by their seed. Each predicts 60 frames, block by block. The first is also
sampled with several shares of noise on the frames it is given, its own included. The table has the error of the first and the last block,
and what is lost a frame. It has a row for each share: to take the best one from it is to choose it on the clips that it is measured on.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path


ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import numpy as np  # noqa: E402
import torch  # noqa: E402
from drift import NUM_GIVEN, NUM_MADE, NUM_TRAIN_CLIPS, SIZE, interval_cell, slopes, torus_clips  # noqa: E402

from mcvd_diffusers import MCVDPipeline  # noqa: E402


BLOCK = 6
MODELS = {"noise": 0.5, "none": 0.0}
SHARES = (0.0, 0.05, 0.1, 0.2, 0.3)
FLAGS = f"""
    --axes NTHW --method mcvd --num_past_frames {NUM_GIVEN} --num_frames {BLOCK} --num_future_frames 0 --drop_past 0
    --block_out_channels 32 48 64 --prediction_type v_prediction --train_batch_size 8 --learning_rate 1e-3
    --logging_steps 500 --num_validation_videos 4 --report_to none --resume_from_checkpoint latest
"""


def train(folder: Path, num_updates: int, num_pairs: int) -> None:
    """The pairs; started again, what is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    data, partial = folder / "train.npy", folder / "partial.npy"
    if not data.exists():
        np.save(partial, torus_clips("train", NUM_TRAIN_CLIPS, NUM_GIVEN + BLOCK, seed=0))
        partial.replace(data)
    for pair in range(1, num_pairs + 1):
        for name, share in MODELS.items():
            command = [sys.executable, str(ROOT / "train_mcvd.py"), "--train_data_dir", str(data), *FLAGS.split()]
            command += ["--observed_noise", str(share), "--seed", str(pair), "--max_train_steps", str(num_updates)]
            command += ["--output_dir", str(folder / f"{name}_{pair}")]
            subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, cwd=ROOT)


def errors_of(run: Path, clips: torch.Tensor, num_steps: int, share: float) -> np.ndarray:
    """Squared errors (clips, frames) of predictions."""
    print(f"{run.name}, {num_steps} steps, noise {share}", file=sys.stderr)
    pipe = MCVDPipeline.from_pretrained(run, variant="ema")
    pipe.set_progress_bar_config(disable=True)
    made = pipe(
        past_frames=clips[:, :NUM_GIVEN],
        num_frames=NUM_MADE,
        num_inference_steps=num_steps,
        observed_noise=share,
        generator=torch.Generator().manual_seed(0),
        output_type="pt",
    ).frames
    return (made - clips[:, NUM_GIVEN:]).square().flatten(2).mean(2).numpy()


def measure(folder: Path, output: Path, num_clips: int, numbers_of_steps: list[int]) -> None:
    """The table."""
    torch.set_num_threads(1)
    done = {name: len(list(folder.glob(f"{name}_*/model_index.json"))) for name in MODELS}
    num_pairs = min(done.values())
    if not num_pairs:
        raise SystemExit(f"{folder} holds no pair of models: train it first.")
    clips = torch.from_numpy(torus_clips("validation", num_clips, NUM_GIVEN + NUM_MADE, seed=4))[:, :, None] / 255
    output.mkdir(parents=True)
    lines = [
        "| steps | trained with noise | sampled with | first block | last block | lost a frame |",
        "| --- |" + " --- |" * 5,
    ]
    for num_steps in numbers_of_steps:
        for name, share in [("none", 0.0), *(("noise", share) for share in SHARES)]:
            errors = np.mean(
                [errors_of(folder / f"{name}_{i}", clips, num_steps, share) for i in range(1, num_pairs + 1)], axis=0
            )
            cells = [num_steps, f"up to {MODELS[name]}" if MODELS[name] else "no", share]
            cells += [interval_cell(errors[:, :BLOCK].mean(1)), interval_cell(errors[:, -BLOCK:].mean(1))]
            lines.append(f"| {' | '.join(map(str, [*cells, interval_cell(slopes(errors))]))} |")
    lines += [
        "",
        f"Mean squared error x 1000 of pixels in [0, 1] against the true frames, averaged over {num_pairs} pair(s) of trainings; {num_clips}"
        f" held-out clips of {SIZE} x {SIZE} pixels, {NUM_GIVEN} frames given, {NUM_MADE} predicted in blocks of {BLOCK}, one sample each,"
        " EMA weights; means and 95 % intervals over clips; lost a frame: the slope of a straight line through the errors.",
    ]
    (output / "table.md").write_text("\n".join(lines) + "\n", "utf-8")
    print("\n".join(lines))


def main(arguments: list[str] | None = None) -> None:
    """Train the models, or measure them."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=("train", "measure"))
    parser.add_argument("folder", type=Path, help="of the runs")
    parser.add_argument("--output", type=Path, help="new folder for the table")
    parser.add_argument("--updates", type=int, default=10_000)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--num_clips", type=int, default=256)
    parser.add_argument("--steps", type=int, nargs="+", default=[5, 15])
    options = parser.parse_args(arguments)
    folder = options.folder.resolve()  # trainings run in another one
    if options.what == "train":
        train(folder, options.updates, options.pairs)
    elif options.output is None or options.output.exists():
        raise SystemExit(f"--output must be a new folder, got {options.output}.")
    else:
        measure(folder, options.output, options.num_clips, options.steps)


if __name__ == "__main__":
    main()
