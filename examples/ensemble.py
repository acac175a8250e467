"""Uncertainty: sixteen futures of each clip, where they differ, and whether they differ as much as they should.

    python examples/ensemble.py

The picture shows the truth, the mean of the futures, three of them, and their spread at each pixel. CRPS is the error of a whole
ensemble, in units of the frames; for one single future it is the absolute error, so both stand in one column.
"""

import argparse
from pathlib import Path

import torch

from mcvd_diffusers import MCVDPipeline
from mcvd_diffusers.atomic import numbered_folder
from mcvd_diffusers.data import MovingDigits, load_digits
from mcvd_diffusers.metrics import crps, repeat_last_frame, spread_and_error, spread_skill_ratio
from mcvd_diffusers.visualization import contact_sheet, save_comparison_gif


ROOT = Path(__file__).resolve().parents[1]
NUM_CLIPS, NUM_PAST, NUM_FRAMES, NUM_FUTURES = 6, 5, 10, 16

parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
parser.add_argument("--output", default="runs/examples/ensemble", help="folder to make; PATH-2, ... if it is there")
output = numbered_folder(parser.parse_args().output)

pipe = MCVDPipeline.from_pretrained(ROOT / "checkpoints/moving-digits")
pipe.set_progress_bar_config(disable=True)

digits = load_digits("mnist-10k", split="validation", size=32)
clips = MovingDigits(digits, num_frames=NUM_PAST + NUM_FRAMES, num_clips=NUM_CLIPS, max_speed=1, seed=5)
video = (torch.stack([clips[i]["video"] for i in range(NUM_CLIPS)]) + 1) / 2
past, truth = video[:, :NUM_PAST], video[:, NUM_PAST:]

out = pipe(
    past_frames=past,
    num_frames=NUM_FRAMES,
    ensemble_size=NUM_FUTURES,
    output_uncertainty=True,
    generator=torch.Generator().manual_seed(0),
    output_type="pt",
)
futures = out.frames.unflatten(0, (NUM_CLIPS, NUM_FUTURES))  # (B, M, T, C, H, W)
spread = out.uncertainty  # (B, T, C, H, W): standard deviation of the futures

blank = torch.zeros_like(past)  # nothing is uncertain in what is given
shown = {"truth": truth, "mean": futures.mean(dim=1)} | {f"future {i + 1}": futures[:, i] for i in range(3)}
columns = {name: torch.cat([past, frames], dim=1)[:3] for name, frames in shown.items()}
columns["uncertainty"] = torch.cat([blank, 2 * spread], dim=1).clamp(0, 1)[:3]  # half the range is white
is_given = [True] * NUM_PAST + [False] * NUM_FRAMES
save_comparison_gif(output / "ensemble.gif", columns, is_given)
contact_sheet(columns, is_given).save(output / "ensemble.png")

ensemble, observed = futures.numpy(), truth.numpy()
repeated = repeat_last_frame(past, NUM_FRAMES).numpy()[:, None]  # an ensemble of one
variance, error = spread_and_error(ensemble, observed)
print(f"{NUM_CLIPS} held-out clips, {NUM_FUTURES} futures of each; frames have values from 0 to 1\n")
print("           CRPS (less is better)                                           spread / error")
print("frames     16 futures     a single future     repeating the last frame     (1 is right)")
for first in range(0, NUM_FRAMES, 5):
    block = slice(first, first + 5)
    scores = [
        crps(members[:, :, block], observed[:, block]).mean() for members in (ensemble, ensemble[:, :1], repeated)
    ]
    ratio = spread_skill_ratio(variance[:, block], error[:, block], num_members=NUM_FUTURES)
    print("{:2} to {:2}   {:12.4f}   {:17.4f}   {:26.4f}   {:14.2f}".format(first + 1, first + 5, *scores, ratio))
print(f"\nLook at {output}/ensemble.png: uncertainty is bright where the futures differ.")
