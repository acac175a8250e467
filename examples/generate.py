"""Generation: nothing is given, videos of two moving digits are made.

    python examples/generate.py

There is no truth to compare with. The table says how much ink is in a frame and how much changes from one frame to the next,
beside real clips: videos that fade, freeze or flicker show there.
"""

import argparse
from pathlib import Path

import torch

from mcvd_diffusers import MCVDPipeline
from mcvd_diffusers.atomic import numbered_folder
from mcvd_diffusers.data import MovingDigits, load_digits
from mcvd_diffusers.visualization import contact_sheet, save_comparison_gif


ROOT = Path(__file__).resolve().parents[1]
NUM_VIDEOS, NUM_FRAMES = 16, 20

parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
parser.add_argument("--output", default="runs/examples/generate", help="folder to make; PATH-2, ... if it is there")
output = numbered_folder(parser.parse_args().output)

pipe = MCVDPipeline.from_pretrained(ROOT / "checkpoints/moving-digits")
pipe.set_progress_bar_config(disable=True)

generator = torch.Generator().manual_seed(0)
made = pipe(num_frames=NUM_FRAMES, batch_size=NUM_VIDEOS, generator=generator, output_type="pt").frames

digits = load_digits("mnist-10k", split="validation", size=32)
clips = MovingDigits(digits, num_frames=NUM_FRAMES, num_clips=NUM_VIDEOS, max_speed=1, seed=3)
real = (torch.stack([clips[i]["video"] for i in range(NUM_VIDEOS)]) + 1) / 2

save_comparison_gif(output / "generated.gif", {"made": made[:8], "real": real[:8]}, [False] * NUM_FRAMES)
contact_sheet({"made": made[:8]}, [False] * NUM_FRAMES).save(output / "generated.png")

print(f"mean over {NUM_VIDEOS} videos; frames have values from 0 to 1\n")
print("             made                   real")
print("frames       ink  change to next    ink  change to next")
for first in range(0, NUM_FRAMES, 5):
    row = []
    for videos in (made, real):
        change = (videos[:, 1:] - videos[:, :-1]).abs().mean(dim=(0, 2, 3, 4))
        row += [float(videos[:, first : first + 5].mean()), float(change[first : first + 5].mean())]
    print("{:2} to {:2}   {:7.3f}  {:14.3f}  {:5.3f}  {:14.3f}".format(first + 1, first + 5, *row))
print(f"\nLook at {output}/generated.gif.")
