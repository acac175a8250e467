"""Interpolation: five frames before a gap and five after it are given, the five between them are made.

    python examples/interpolate.py

It is the same checkpoint as in predict.py: in its training both sides were masked at random. The numbers stand beside blending
the last frame before the gap into the first one after it, and beside the same network without the frames after it.
"""

import argparse
from pathlib import Path

import torch

from mcvd_diffusers import MCVDPipeline
from mcvd_diffusers.atomic import numbered_folder
from mcvd_diffusers.data import MovingDigits, load_digits
from mcvd_diffusers.metrics import blend_linearly, psnr_of_mse, video_mse
from mcvd_diffusers.visualization import contact_sheet, save_comparison_gif


ROOT = Path(__file__).resolve().parents[1]
NUM_CLIPS, NUM_PAST, NUM_FRAMES, NUM_FUTURE = 16, 5, 5, 5

parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
parser.add_argument("--output", default="runs/examples/interpolate", help="folder to make; PATH-2, ... if it is there")
output = numbered_folder(parser.parse_args().output)

pipe = MCVDPipeline.from_pretrained(ROOT / "checkpoints/moving-digits")
pipe.set_progress_bar_config(disable=True)

# Clips (B, T, C, H, W) in [0, 1] of digits that are kept out of the training. Put your frames here.
digits = load_digits("mnist-10k", split="validation", size=32)
clips = MovingDigits(digits, num_frames=NUM_PAST + NUM_FRAMES + NUM_FUTURE, num_clips=NUM_CLIPS, max_speed=1, seed=2)
video = (torch.stack([clips[i]["video"] for i in range(NUM_CLIPS)]) + 1) / 2
past, truth, future = video.split([NUM_PAST, NUM_FRAMES, NUM_FUTURE], dim=1)

options = {"num_frames": NUM_FRAMES, "output_type": "pt"}
between = pipe(past_frames=past, future_frames=future, generator=torch.Generator().manual_seed(0), **options).frames
predicted = pipe(past_frames=past, generator=torch.Generator().manual_seed(0), **options).frames
blended = blend_linearly(past, future, NUM_FRAMES)

versions = {"truth": truth, "interpolated": between, "blended": blended}
columns = {name: torch.cat([past, frames, future], dim=1)[:4] for name, frames in versions.items()}
is_given = [True] * NUM_PAST + [False] * NUM_FRAMES + [True] * NUM_FUTURE
save_comparison_gif(output / "interpolation.gif", columns, is_given)
contact_sheet(columns, is_given).save(output / "interpolation.png")

print(f"PSNR of the mean squared error over {NUM_CLIPS} held-out clips, in dB (more is better)\n")
for name, frames in {
    "interpolated, both sides given": between,
    "predicted, only the past given": predicted,
    "blending the two ends": blended,
}.items():
    print(f"{name:32}{psnr_of_mse(video_mse(frames, truth).mean()):6.2f}")
print(f"\nLook at {output}/interpolation.gif: green frames were given, orange ones made.")
