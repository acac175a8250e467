"""The whole story in a few minutes on a CPU: train, save, load, predict, interpolate, look, compare.

    make demo

A small network learns to move handwritten digits. It is trained with masks, so one checkpoint predicts, interpolates
and generates. The videos are of digits that it has not seen; the numbers stand beside what needs no network.
"""

import itertools
import os
import subprocess
import sys
import time
from pathlib import Path

import torch
import yaml

from mcvd_diffusers import MCVDPipeline
from mcvd_diffusers.data import MovingDigits, load_digits
from mcvd_diffusers.metrics import blend_linearly, psnr_of_mse, repeat_last_frame, video_mse
from mcvd_diffusers.model_card import read_facts, write_card
from mcvd_diffusers.visualization import contact_sheet, save_comparison_gif


ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / "examples" / "configs" / "demo.yaml"
NUM_CLIPS, NUM_PREDICTED, NUM_STEPS = 64, 8, 10


def new_folder() -> Path:
    """runs/demo, or the first of runs/demo-2, runs/demo-3, ... that does not exist: nothing is overwritten."""
    names = itertools.chain(["demo"], (f"demo-{i}" for i in itertools.count(2)))
    return next(folder for folder in (ROOT / "runs" / name for name in names) if not folder.exists())


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
    """Train with the same script and launcher as any other run."""
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes=1", "--num_machines=1"]
    launch += ["--mixed_precision=no", "--dynamo_backend=no", f"--num_cpu_threads_per_process={threads}"]
    subprocess.run([*launch, ROOT / "train_mcvd.py", CONFIG, "--output_dir", folder], check=True)


@torch.no_grad()
def main() -> None:
    started = time.perf_counter()
    threads = fastest_number_of_threads()
    torch.set_num_threads(threads)
    folder = new_folder()
    print(
        f"training with {threads} thread(s) for a few minutes; everything goes to {folder.relative_to(ROOT)}/",
        flush=True,
    )
    train(folder, threads)

    pipe = MCVDPipeline.from_pretrained(folder, variant="ema")
    pipe.set_progress_bar_config(disable=True)
    num_past, block = pipe.unet.config.num_past_frames, pipe.unet.config.num_frames
    num_future = pipe.unet.config.num_future_frames

    settings = yaml.safe_load(CONFIG.read_text())
    digits = load_digits("sklearn", split="validation", size=settings["digit_size"])  # not used in training
    clips = MovingDigits(
        digits,
        num_frames=num_past + NUM_PREDICTED + num_future,
        num_clips=NUM_CLIPS,
        canvas_size=tuple(pipe.unet.config.sample_size),
        num_digits=settings["num_digits"],
        max_speed=settings["max_speed"],
        seed=2024,
    )
    video = torch.stack([clips[i]["video"] for i in range(NUM_CLIPS)])  # (B, T, 1, H, W) in [-1, 1]
    video = (video + 1) / 2
    past = video[:, :num_past]
    generator = torch.Generator().manual_seed(0)

    # Prediction: two samples of each clip, two blocks each.
    truth = video[:, num_past : num_past + NUM_PREDICTED]
    before = time.perf_counter()
    samples = pipe(
        past_frames=past,
        num_frames=NUM_PREDICTED,
        ensemble_size=2,
        num_inference_steps=NUM_STEPS,
        generator=generator,
        output_type="pt",
    ).frames.unflatten(0, (NUM_CLIPS, 2))
    seconds_per_video = (time.perf_counter() - before) / (2 * NUM_CLIPS)
    baseline = repeat_last_frame(past, NUM_PREDICTED)
    columns = {"truth": truth, "sample 1": samples[:, 0], "sample 2": samples[:, 1], "repeat last": baseline}
    columns = {name: torch.cat([past, x], dim=1)[:4] for name, x in columns.items()}
    is_given = [True] * num_past + [False] * NUM_PREDICTED
    save_comparison_gif(folder / "prediction.gif", columns, is_given)
    contact_sheet(columns, is_given).save(folder / "prediction.png")

    # Interpolation: one block between the past and the future.
    gap, future = video[:, num_past : num_past + block], video[:, num_past + block :][:, :num_future]
    between = pipe(
        past_frames=past,
        future_frames=future,
        num_inference_steps=NUM_STEPS,
        generator=generator,
        output_type="pt",
    ).frames
    blend = blend_linearly(past, future, block)
    columns = {"truth": gap, "sample": between, "blend": blend}
    columns = {name: torch.cat([past, x, future], dim=1)[:4] for name, x in columns.items()}
    is_given = [True] * num_past + [False] * block + [True] * num_future
    save_comparison_gif(folder / "interpolation.gif", columns, is_given)
    contact_sheet(columns, is_given).save(folder / "interpolation.png")

    # Generation from nothing.
    made = pipe(
        num_frames=12, batch_size=4, num_inference_steps=NUM_STEPS, generator=generator, output_type="pt"
    ).frames
    save_comparison_gif(folder / "generation.gif", {"generated": made}, [False] * 12)

    # The model's card shows them.
    facts = read_facts(folder)
    shown = {"prediction": "prediction of held-out digits", "interpolation": "interpolation of held-out digits"}
    shown["generation"] = "generation from nothing"
    facts.samples = {f"{task}.gif": f"{text}, {NUM_STEPS} steps a block" for task, text in shown.items()}
    write_card(folder, facts)

    def psnr(prediction: torch.Tensor, target: torch.Tensor) -> str:
        return f"{float(psnr_of_mse(video_mse(prediction, target).mean())):5.2f} dB"

    first, sampler = slice(0, block), type(pipe.scheduler).__name__
    print(f"""
PSNR of the mean squared error over {NUM_CLIPS} held-out clips, one sample a clip ({sampler}, {NUM_STEPS} steps a block)

                                                 model     baseline
prediction, {num_past} given -> {block} frames             {psnr(samples[:, 0, first], truth[:, first])}     {psnr(baseline[:, first], truth[:, first])}  (repeating the last frame)
prediction, {num_past} given -> {NUM_PREDICTED} frames             {psnr(samples[:, 0], truth)}     {psnr(baseline, truth)}  (repeating the last frame)
interpolation, {num_past} + {num_future} given -> {block} frames      {psnr(between, gap)}     {psnr(blend, gap)}  (blending the two ends)

{seconds_per_video:.2f} s a video of {NUM_PREDICTED} frames ({2 * NUM_CLIPS} at once); {time.perf_counter() - started:.0f} s in all without set-up.
So short a training teaches where a digit goes, not yet how to keep its shape: that takes much longer.
Look at {folder.relative_to(ROOT)}/prediction.gif, interpolation.gif and generation.gif: green frames were given, orange
ones made. The model is in the same folder: MCVDPipeline.from_pretrained("{folder.relative_to(ROOT)}", variant="ema").""")


if __name__ == "__main__":
    main()
