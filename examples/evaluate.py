"""A number with its protocol: the checkpoint on Moving MNIST, with its own sampler and with another, compared clip by clip.

    python examples/evaluate.py

The protocol is MCVD's for 5 given and 10 predicted frames, changed so that nothing is downloaded and a minute is enough; its
label says so beside each number. The second sampler is DDIM with 5 steps instead of DPM-Solver++ with 15. On the command line the
same is `mcvd-diffusers evaluate` and `mcvd-diffusers compare`.
"""

import argparse
from pathlib import Path

from diffusers import DDIMScheduler

from mcvd_diffusers import MCVDPipeline
from mcvd_diffusers.atomic import numbered_folder
from mcvd_diffusers.evaluation import Sampler, compare, draw_digits, evaluate
from mcvd_diffusers.evaluation.report import as_comparison, as_table
from mcvd_diffusers.protocols import load_protocol


ROOT = Path(__file__).resolve().parents[1]

parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
parser.add_argument("--num_clips", type=int, default=12, help="of the protocol's 256 (default: 12, about a minute)")
parser.add_argument("--output", default="runs/examples/evaluate", help="folder to make; PATH-2, ... if it is there")
arguments = parser.parse_args()

protocol = load_protocol("mcvd-smmnist-5-10")  # all that it says: mcvd-diffusers protocols mcvd-smmnist-5-10
protocol = protocol.changed(
    moving_digits=protocol.moving_digits | {"source": "mnist-10k"},  # held-out digits that come with the package
    num_clips=arguments.num_clips,
    samples_per_clip=2,
    metrics=("psnr_of_video_mse", "psnr_frame_mean", "ssim", "mse"),
    feature_networks=(),
)
output = numbered_folder(arguments.output)

pipe = MCVDPipeline.from_pretrained(ROOT / "checkpoints/moving-digits")
pipe.set_progress_bar_config(disable=True)
clips = draw_digits(protocol, num_channels=pipe.unet.config.in_channels)

first = evaluate(pipe, clips, protocol, output / "own_sampler", model="moving-digits")
print(as_table(first))

pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
sampler = Sampler(num_inference_steps=5)
second = evaluate(pipe, clips, protocol, output / "ddim", model="moving-digits, DDIM", sampler=sampler)
print(f"\n{as_comparison(first, second, compare(first, second))}")
print(f"\nAll numbers, plots and videos: {output}/own_sampler and {output}/ddim.")
