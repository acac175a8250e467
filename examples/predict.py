"""Prediction: five frames of two moving digits are given, the fifteen that follow are made.

    python examples/predict.py

The network makes five frames at a time, so these are three blocks, each given the end of the one before. The table has the
error beside that of repeating the last given frame, which needs no network.
"""

import argparse
from pathlib import Path

import torch

from mcvd_diffusers import MCVDPipeline
from mcvd_diffusers.atomic import numbered_folder
from mcvd_diffusers.data import MovingDigits, load_digits
from mcvd_diffusers.metrics import frame_mse, psnr_of_mse, repeat_last_frame
from mcvd_diffusers.visualization import contact_sheet, save_comparison_gif


ROOT = Path(__file__).resolve().parents[1]
NUM_CLIPS, NUM_PAST, NUM_FRAMES = 16, 5, 15

parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
parser.add_argument("--output", default="runs/examples/predict", help="folder to make; PATH-2, ... if it is there")
output = numbered_folder(parser.parse_args().output)

pipe = MCVDPipeline.from_pretrained(ROOT / "checkpoints/moving-digits")
pipe.set_progress_bar_config(disable=True)

# Clips (B, T, C, H, W) in [0, 1] of digits that are kept out of the training. Put your frames here.
digits = load_digits("mnist-10k", split="validation", size=32)
clips = MovingDigits(digits, num_frames=NUM_PAST + NUM_FRAMES, num_clips=NUM_CLIPS, max_speed=1, seed=1)
video = (torch.stack([clips[i]["video"] for i in range(NUM_CLIPS)]) + 1) / 2
past, truth = video[:, :NUM_PAST], video[:, NUM_PAST:]

generator = torch.Generator().manual_seed(0)  # the same seed, the same videos
made = pipe(past_frames=past, num_frames=NUM_FRAMES, generator=generator, output_type="pt").frames
repeated = repeat_last_frame(past, NUM_FRAMES)

versions = {"truth": truth, "predicted": made, "repeat last": repeated}
columns = {name: torch.cat([past, frames], dim=1)[:4] for name, frames in versions.items()}
is_given = [True] * NUM_PAST + [False] * NUM_FRAMES
save_comparison_gif(output / "prediction.gif", columns, is_given)
contact_sheet(columns, is_given).save(output / "prediction.png")

print(f"PSNR of the mean squared error over {NUM_CLIPS} held-out clips, in dB (more is better)\n")
print("frames     predicted   repeating the last frame")
for first in range(0, NUM_FRAMES, 5):
    block = slice(first, first + 5)
    of_model, of_baseline = (psnr_of_mse(frame_mse(x, truth)[:, block].mean()) for x in (made, repeated))
    print(f"{first + 1:2} to {first + 5:2}   {of_model:9.2f}   {of_baseline:24.2f}")
print(f"\nLook at {output}/prediction.gif: green frames were given, orange ones made.")
