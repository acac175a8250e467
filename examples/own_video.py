"""A video file of your own: read, made grey and small as the network wants it, and continued.

    python examples/own_video.py --video my.mp4

mp4, webm, avi, ..., a GIF, or a folder that holds a folder of images. The shipped network knows two white digits on black and nothing
else, so for other videos train or fine-tune one first. Without --video a coloured clip of digits is written, and then read.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from mcvd_diffusers import MCVDPipeline
from mcvd_diffusers.atomic import numbered_folder
from mcvd_diffusers.data import ClipDataset, MovingDigits, SubsetReader, load_digits, open_reader
from mcvd_diffusers.metrics import psnr_of_mse, repeat_last_frame, video_mse
from mcvd_diffusers.visualization import contact_sheet, save_comparison_gif


ROOT = Path(__file__).resolve().parents[1]
NUM_PAST, NUM_FRAMES = 5, 10

parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
parser.add_argument("--video", type=Path, help="a video file, or a folder that holds a folder of images")
parser.add_argument("--every", type=int, default=1, choices=range(1, 101), metavar="N", help="take every n-th frame")
parser.add_argument("--output", default="runs/examples/own_video", help="folder to make; PATH-2, ... if it is there")
arguments = parser.parse_args()

if arguments.video is not None:
    reader = open_reader(arguments.video)
    reader.info(0)  # before anything is written: says what is wrong with a file
output = numbered_folder(arguments.output)
if arguments.video is None:
    digits = load_digits("mnist-10k", split="validation", size=48)
    clip = MovingDigits(digits, num_frames=15, num_clips=1, canvas_size=(96, 128), max_speed=2, seed=6)[0]["video"]
    colour = np.array([255, 220, 120])
    images = [Image.fromarray((frame * colour).astype(np.uint8)) for frame in (clip.movedim(1, -1).numpy() + 1) / 2]
    images[0].save(output / "clip.gif", save_all=True, append_images=images[1:], duration=100, loop=0)
    reader = open_reader(output / "clip.gif")

info = reader.info(0)
count = min(-(-info.num_frames // arguments.every), NUM_PAST + NUM_FRAMES)
if count < NUM_PAST:
    raise SystemExit(f"{reader.name(0)} has {info.num_frames} frames: {NUM_PAST} are read, every {arguments.every}.")

pipe = MCVDPipeline.from_pretrained(ROOT / "checkpoints/moving-digits")
pipe.set_progress_bar_config(disable=True)

# As train_mcvd.py reads videos: any size and colours become the network's.
size = pipe.frame_shape[1:]
options = {"num_channels": 1, "frame_size": size, "stride": arguments.every, "random_start": False}
clip = ClipDataset(SubsetReader(reader, [0]), num_frames=count, **options)[0]["video"]
video = (clip[None] + 1) / 2  # (1, T, 1, H, W) in [0, 1]
past, truth = video[:, :NUM_PAST], video[:, NUM_PAST:]

generator = torch.Generator().manual_seed(0)
made = pipe(past_frames=past, num_frames=NUM_FRAMES, generator=generator, output_type="pt").frames

is_given = [True] * NUM_PAST + [False] * NUM_FRAMES
columns = {"predicted": torch.cat([past, made], dim=1)}
if count == NUM_PAST + NUM_FRAMES:
    columns = {"truth": video} | columns
save_comparison_gif(output / "prediction.gif", columns, is_given, frame_height=128)
contact_sheet(columns, is_given).save(output / "prediction.png")

print(f"{reader.name(0)}: {info.num_frames} frames, {info.num_channels} channels, {info.height} x {info.width}")
print(f"given: {NUM_PAST} frames, brought to 1 channel, {size[0]} x {size[1]}; made: {made.shape[1]}")
if known := truth.shape[1]:
    of_model, of_baseline = (
        float(psnr_of_mse(video_mse(x[:, :known], truth)[0])) for x in (made, repeat_last_frame(past, known))
    )
    print(
        f"PSNR of the {known} that the video has: {of_model:.2f} dB (repeating the last frame: {of_baseline:.2f} dB)"
    )
print(f"\nLook at {output}/prediction.gif: green frames were given, orange ones made.")
