"""The whole story: first what a trained checkpoint makes of videos that it has not seen, then a training of one's own.

    make demo

The checkpoint comes with the repository and answers within a minute on a CPU. Then a small network learns, for about five
minutes, to move handwritten digits. Both are trained with masks, so that one network predicts, interpolates and generates; their
numbers stand beside what needs no network.
"""

import argparse
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

import torch
import yaml

from mcvd_diffusers import MCVDPipeline
from mcvd_diffusers.atomic import numbered_folder
from mcvd_diffusers.data import MovingDigits, load_digits
from mcvd_diffusers.metrics import blend_linearly, psnr_of_mse, repeat_last_frame, video_mse
from mcvd_diffusers.model_card import read_facts, write_card
from mcvd_diffusers.visualization import contact_sheet, save_comparison_gif


ROOT = Path(__file__).resolve().parents[1]
CHECKPOINT, ITS_CONFIG = (
    ROOT / "checkpoints" / "moving-digits",
    ROOT / "examples" / "configs" / "moving_digits_64.yaml",
)
CONFIG = ROOT / "examples" / "configs" / "demo.yaml"
NUM_SHOWN = 4


def fastest_number_of_threads() -> int:
    """Two threads are faster than one on an idle machine, and far slower on a busy one: measure."""
    convolution, seconds = torch.nn.Conv2d(64, 64, 3, padding=1), {}
    image = torch.rand(16, 64, 32, 32)
    for threads in range(1, min(4, os.cpu_count() or 1) + 1):
        torch.set_num_threads(threads)
        convolution(image)
        before = time.perf_counter()
        for _ in range(40):
            convolution(image)
        seconds[threads] = time.perf_counter() - before
    return min(seconds, key=seconds.get)


def train(folder: Path, threads: int) -> None:
    """Train with the same script as any other run; if that stops, end with its exit status and the way to go on."""
    command = [sys.executable, ROOT / "train_mcvd.py", CONFIG, "--output_dir", folder]
    child = subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": str(threads)})
    is_stopped = False
    while True:
        try:
            status = child.wait()
            break
        except (
            KeyboardInterrupt
        ):  # the training has had Ctrl-C, too: it saves a checkpoint, and ends; by a second one at once
            is_stopped = True
    if status == 0:
        return
    words = [*(os.path.relpath(word) for word in command[1:3]), "--output_dir", os.path.relpath(folder)]
    go_on = shlex.join(["python", *words, "--resume_from_checkpoint", "latest"])
    what = "The training was stopped" if is_stopped or status in (130, 143) else f"The training has failed ({status})"
    print(f"{what}. Go on, in the same environment, with: {go_on}", file=sys.stderr)
    sys.exit(status if status > 0 else 128 - status)


@torch.no_grad()
def show(pipe: MCVDPipeline, config: Path, folder: Path, *, num_clips: int, num_predicted: int) -> None:
    """Predict, interpolate and generate held-out digits; write pictures into `folder`, print how good it is."""
    started = time.perf_counter()
    pipe.set_progress_bar_config(disable=True)
    settings, unet = yaml.safe_load(config.read_text()), pipe.unet.config
    num_past, block, num_future = unet.num_past_frames, unet.num_frames, unet.num_future_frames
    digits = load_digits(settings.get("digits", "sklearn"), split="validation", size=settings["digit_size"])
    clips = MovingDigits(
        digits,  # not used in training
        num_frames=num_past + max(num_predicted, block + num_future),
        num_clips=num_clips,
        canvas_size=tuple(unet.sample_size),
        num_digits=settings["num_digits"],
        max_speed=settings["max_speed"],
        seed=2024,
    )
    video = torch.stack([clips[i]["video"] for i in range(num_clips)])  # (B, T, 1, H, W) in [-1, 1]
    video = (video + 1) / 2
    past = video[:, :num_past]
    options = {"generator": torch.Generator().manual_seed(0), "output_type": "pt"}

    # Prediction: two samples of each clip, block by block.
    truth = video[:, num_past : num_past + num_predicted]
    before = time.perf_counter()
    samples = pipe(past_frames=past, num_frames=num_predicted, ensemble_size=2, **options).frames
    samples = samples.unflatten(0, (num_clips, 2))
    seconds = time.perf_counter() - before
    baseline = repeat_last_frame(past, num_predicted)
    columns = {"truth": truth, "sample 1": samples[:, 0], "sample 2": samples[:, 1], "repeat last": baseline}
    columns = {name: torch.cat([past, x], dim=1)[:NUM_SHOWN] for name, x in columns.items()}
    is_given = [True] * num_past + [False] * num_predicted
    save_comparison_gif(folder / "prediction.gif", columns, is_given)
    contact_sheet(columns, is_given).save(folder / "prediction.png")

    # Interpolation: one block between the past and the future.
    gap, future = video[:, num_past : num_past + block], video[:, num_past + block :][:, :num_future]
    between = pipe(past_frames=past, future_frames=future, **options).frames
    blend = blend_linearly(past, future, block)
    columns = {"truth": gap, "sample": between, "blend": blend}
    columns = {name: torch.cat([past, x, future], dim=1)[:NUM_SHOWN] for name, x in columns.items()}
    is_given = [True] * num_past + [False] * block + [True] * num_future
    save_comparison_gif(folder / "interpolation.gif", columns, is_given)
    contact_sheet(columns, is_given).save(folder / "interpolation.png")

    # Generation from nothing.
    made = pipe(num_frames=num_predicted, batch_size=NUM_SHOWN, **options).frames
    save_comparison_gif(folder / "generation.gif", {"generated": made}, [False] * num_predicted)

    def psnr(prediction: torch.Tensor, target: torch.Tensor) -> str:
        return f"{float(psnr_of_mse(video_mse(prediction, target).mean())):5.2f} dB"

    first, sampler = (
        slice(0, block),
        f"{type(pipe.scheduler).__name__}, {pipe.config.num_inference_steps} steps a block",
    )
    rows = [
        (f"prediction, {num_past} given -> {block} frames", samples[:, 0, first], truth[:, first], baseline[:, first]),
        (f"prediction, {num_past} given -> {num_predicted} frames", samples[:, 0], truth, baseline),
        (f"interpolation, {num_past} + {num_future} given -> {block} frames", between, gap, blend),
    ]
    remarks = ["repeating the last frame", "repeating the last frame", "blending the two ends"]
    print(f"\nPSNR of the mean squared error over {num_clips} held-out clips, one sample a clip ({sampler})\n")
    print(f"{'':46}    model     baseline")
    for (name, prediction, target, other), remark in zip(rows, remarks):
        print(f"{name:46} {psnr(prediction, target)}     {psnr(other, target)}  ({remark})")
    print(
        f"\n{seconds / (2 * num_clips):.2f} s a video of {num_predicted} frames ({2 * num_clips} at once);"
        f" {time.perf_counter() - started:.0f} s for all of this"
    )
    where = os.path.relpath(folder)
    print(
        f"Look at {where}/prediction.gif, interpolation.gif and generation.gif: green frames were given, orange ones made."
    )


def main() -> None:
    """The checkpoint first, a training second."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output", default=ROOT / "runs" / "demo", help="folder to make; PATH-2, ... if it is there")
    parser.add_argument("--no_training", action="store_true", help="the checkpoint only")
    arguments = parser.parse_args()
    folder = numbered_folder(arguments.output)
    threads = fastest_number_of_threads()
    torch.set_num_threads(threads)

    print("1. the checkpoint that comes with this repository: two digits, 64 x 64 pixels", flush=True)
    pipe = MCVDPipeline.from_pretrained(CHECKPOINT)
    show(pipe, ITS_CONFIG, folder, num_clips=8, num_predicted=20)
    if arguments.no_training:
        return

    trained = folder / "trained"
    print(
        f"\n2. training a small network with {threads} thread(s) for a few minutes: one digit, 32 x 32 pixels",
        flush=True,
    )
    train(trained, threads)
    pipe = MCVDPipeline.from_pretrained(trained, variant="ema")
    show(pipe, CONFIG, trained, num_clips=64, num_predicted=8)
    facts = read_facts(trained)  # its card shows them
    shown = {"prediction": "prediction of held-out digits", "interpolation": "interpolation of held-out digits"}
    shown["generation"] = "generation from nothing"
    facts.samples = {f"{task}.gif": text for task, text in shown.items()}
    write_card(trained, facts)
    print(f"""
So short a training teaches where a digit goes, not yet how to keep its shape: the checkpoint above has learned for hours.
This model is in a folder of its own: MCVDPipeline.from_pretrained("{os.path.relpath(trained)}", variant="ema").""")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("Stopped. What was made is in the folder of this demo; begin anew with: make demo")
