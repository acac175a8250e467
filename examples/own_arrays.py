"""Arrays of your own, in their own units: temperature in kelvin and rain in mm/h, not square, with gaps.

    python examples/own_arrays.py

The fields are made up: two smooth patterns on a grid of 24 x 40 points that drift with a wind of their own in each video, and
are unknown over the sea and where a sensor failed. Nothing is converted by hand: train_mcvd.py measures mean and standard
deviation of each channel, fills gaps, shows the network where they are, and the pipeline takes and returns kelvin and mm/h.
"""

import argparse
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

from mcvd_diffusers import MCVDPipeline
from mcvd_diffusers.atomic import numbered_folder
from mcvd_diffusers.visualization import data_sheet


ROOT = Path(__file__).resolve().parents[1]
NUM_VIDEOS, NUM_HELD_OUT, NUM_PAST, NUM_FRAMES, HEIGHT, WIDTH = 220, 20, 4, 4, 24, 40

parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
parser.add_argument("--num_updates", type=int, default=250, help="of the training (default: 250, about a minute)")
parser.add_argument("--output", default="runs/examples/own_arrays", help="folder to make; PATH-2, ... if it is there")
arguments = parser.parse_args()
output = numbered_folder(arguments.output)

# One array (N, T, C, H, W). Your own may be npy, npz, HDF5, Zarr or NetCDF; `mcvd-diffusers data inspect` says what is in it.
rng = np.random.default_rng(0)
frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(HEIGHT), np.fft.rfftfreq(WIDTH), indexing="ij"))
spectrum = np.exp(-((frequency / 0.06) ** 2)) * (frequency > 0)
noise = np.fft.rfft2(rng.standard_normal((NUM_VIDEOS, 2, HEIGHT, WIDTH)))
patterns = np.fft.irfft2(spectrum * noise, s=(HEIGHT, WIDTH))  # (N, C, H, W), smooth and periodic
patterns /= patterns.std(axis=(2, 3), keepdims=True)
wind = rng.integers(-2, 3, size=(NUM_VIDEOS, 2))  # grid points from one frame to the next
fields = np.stack(
    [
        [np.roll(pattern, tuple(t * speed), axis=(1, 2)) for t in range(NUM_PAST + NUM_FRAMES)]
        for pattern, speed in zip(patterns, wind)
    ]
)  # (N, T, C, H, W)
fields[:, :, 0] = 285 + 8 * fields[:, :, 0]  # kelvin
fields[:, :, 1] = np.maximum(fields[:, :, 1] - 0.5, 0) * 6  # mm/h, none in most places
fields[..., 17:, :9] = np.nan  # the sea
fields[rng.random(fields.shape) < 0.01] = np.nan  # sensors
np.save(output / "fields.npy", fields[:-NUM_HELD_OUT].astype(np.float32))

flags = """--axes NTCHW --normalization mean_std --nan_fill 285 0 --nan_mask_channel True --prediction_type sample
    --num_future_frames 0 --drop_past 0 --patch_size 2 --block_out_channels 32 64 --train_batch_size 16
    --learning_rate 2e-3 --lr_warmup_steps 20 --num_validation_videos 0 --report_to none""".split()
flags += ["--num_past_frames", str(NUM_PAST), "--num_frames", str(NUM_FRAMES)]
flags += ["--max_train_steps", str(arguments.num_updates)]
flags += ["--train_data_dir", output / "fields.npy", "--output_dir", output / "run"]
subprocess.run([sys.executable, ROOT / "train_mcvd.py", *flags], check=True)

pipe = MCVDPipeline.from_pretrained(output / "run", variant="ema")
pipe.set_progress_bar_config(disable=True)
print(f"\n{pipe.normalizer}\n")

video = torch.from_numpy(fields[-NUM_HELD_OUT:].astype(np.float32))
past, truth = video[:, :NUM_PAST], video[:, NUM_PAST:]
futures = pipe(
    past_frames=past,
    num_frames=NUM_FRAMES,
    ensemble_size=4,
    generator=torch.Generator().manual_seed(0),
    output_type="pt",
).frames.unflatten(0, (NUM_HELD_OUT, 4))
mean = futures.nanmean(dim=1)  # the best guess: kelvin and mm/h, NaN where the network says that nothing is known
last = past[:, -1:].expand_as(truth)

print(f"root mean squared error over {NUM_HELD_OUT} held-out videos, where truth and prediction are known\n")
print("               predicted   persistence (the last field stays)")
is_known = ~(mean.isnan() | truth.isnan() | last.isnan())
for channel, name in enumerate(["temperature, K", "rain, mm/h"]):
    errors = [(x - truth)[:, :, channel][is_known[:, :, channel]].square().mean().sqrt() for x in (mean, last)]
    print(f"{name:14}{errors[0]:10.2f}{errors[1]:14.2f}")
sea = mean[..., 18:, :8].isnan().float().mean()
land = mean[..., :16, 10:].isnan().float().mean()
print(f"\nsaid to be unknown: {sea:.0%} of the sea, {land:.0%} of the land")

rows = [("truth, kelvin: the first four are given", video[0].numpy(), [265, 0], [305, 20])]
rows += [("predicted, kelvin", torch.cat([past, mean], dim=1)[0].numpy(), [265, 0], [305, 20])]
caption = "265 K is black, 305 K white; unknown is magenta"
data_sheet(rows, caption=caption).save(output / "temperature.png")
print(f'\nLook at {output}/temperature.png. The model is MCVDPipeline.from_pretrained("{output}/run", variant="ema").')
