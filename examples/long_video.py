"""A long video: 300 frames after five given ones, taken from the stream as they are made.

    python examples/long_video.py

`pipe.stream` yields one block of five frames after the other and forgets what it does not need, so the length of a video costs
time and no memory. The table says whether the digits fade or freeze on the way (drift), beside a real clip of that length.
"""

import argparse
import itertools
import time
from pathlib import Path

import torch
from diffusers.utils import numpy_to_pil

from mcvd_diffusers import MCVDPipeline
from mcvd_diffusers.atomic import numbered_folder
from mcvd_diffusers.data import MovingDigits, load_digits


ROOT = Path(__file__).resolve().parents[1]
NUM_PAST, NUM_FRAMES, NUM_ROWS = 5, 300, 5

parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
parser.add_argument("--output", default="runs/examples/long_video", help="folder to make; PATH-2, ... if it is there")
output = numbered_folder(parser.parse_args().output)

pipe = MCVDPipeline.from_pretrained(ROOT / "checkpoints/moving-digits")
pipe.set_progress_bar_config(disable=True)

digits = load_digits("mnist-10k", split="validation", size=32)
clip = MovingDigits(digits, num_frames=NUM_PAST + NUM_FRAMES, num_clips=1, max_speed=1, seed=4)[0]["video"]
real = (clip + 1) / 2  # (T, C, H, W) in [0, 1]

ink, change = [], []


def frames(given):
    """One frame after the other, as they are made: none is kept but the last."""
    last, generator = given[-1], torch.Generator().manual_seed(0)
    for block in pipe.stream(past_frames=given, num_frames=NUM_FRAMES, generator=generator, output_type="pt"):
        for frame in block[0]:  # of the first and only video: (C, H, W)
            ink.append(float(frame.mean()))
            change.append(float((frame - last).abs().mean()))
            last = frame
            yield numpy_to_pil(frame.movedim(0, -1).numpy())[0].resize((192, 192))


started = time.perf_counter()
stream = frames(real[:NUM_PAST])
# Pillow takes the frames one by one, and writes them to the file.
next(stream).save(output / "long.gif", save_all=True, append_images=stream, duration=80, loop=0)
seconds = time.perf_counter() - started

print(f"{NUM_FRAMES} frames in {seconds:.0f} s, {NUM_FRAMES / seconds:.1f} a second\n")
print("                 made                   real")
print("frames           ink  change to next    ink  change to next")
real_change = (real[1:] - real[:-1]).abs().mean(dim=(1, 2, 3))[NUM_PAST - 1 :].tolist()
real_ink = real[NUM_PAST:].mean(dim=(1, 2, 3)).tolist()
for first, end in itertools.pairwise(range(0, NUM_FRAMES + 1, NUM_FRAMES // NUM_ROWS)):
    row = [sum(values[first:end]) / (end - first) for values in (ink, change, real_ink, real_change)]
    print("{:3} to {:3}     {:7.3f}  {:14.3f}  {:5.3f}  {:14.3f}".format(first + 1, end, *row))
print(f"\nLook at {output}/long.gif.")
