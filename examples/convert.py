"""A checkpoint of the original MCVD code becomes a pipeline: converted, checked, sampled.

    python examples/convert.py --checkpoint path/to/experiment

Also one of RaMViD, FDM, VDM's public port or LGC-VD; which of them it is, the file tells. Nothing in it is run. Without
--checkpoint it is a small genuine one of MCVD's code, four updates old, which lies in this repository for the tests.
"""

import argparse
from pathlib import Path

import torch

from mcvd_diffusers import MCVDPipeline
from mcvd_diffusers.atomic import numbered_folder
from mcvd_diffusers.conversion import CheckpointError, convert_checkpoint
from mcvd_diffusers.visualization import save_comparison_gif


ROOT = Path(__file__).resolve().parents[1]

parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
parser.add_argument(
    "--checkpoint",
    default=ROOT / "tests/reference/mcvd/checkpoint_concat",
    help="a .pt file with its config.yml beside it, or the folder of the experiment",
)
parser.add_argument("--output", default="runs/examples/convert", help="folder to make; PATH-2, ... if it is there")
arguments = parser.parse_args()
output = numbered_folder(arguments.output)

# `verify` compares the result with a second implementation, which runs on the original's own weights. If a config is lost,
# `preset` names the published model; `sampler="original"` keeps the original's scheduler and steps.
try:
    conversion = convert_checkpoint(arguments.checkpoint, output / "pipeline", verify=True)
except CheckpointError as error:
    raise SystemExit(f"{arguments.checkpoint} cannot be converted: {error}")

print(f"{conversion.num_parameters:,} parameters, {conversion.weights} weights after {conversion.step} updates")
print(f"tasks: {', '.join(conversion.tasks)}")
print(f"largest difference from the second implementation: {conversion.max_difference:.1e}")
for sentence in conversion.notes + conversion.not_verified:
    print(f"note: {sentence}")

# From here on it is a pipeline as any other.
pipe = MCVDPipeline.from_pretrained(output / "pipeline")
pipe.set_progress_bar_config(disable=True)
num_past = pipe.unet.config.get("num_past_frames", 2)  # MCVD's networks read so many, the others any number
past = torch.rand(2, num_past, *pipe.frame_shape)  # put your frames here
made = pipe(past_frames=past, num_frames=8, generator=torch.Generator().manual_seed(0), output_type="pt").frames
is_given = [True] * past.shape[1] + [False] * made.shape[1]
save_comparison_gif(output / "prediction.gif", {"predicted": torch.cat([past, made], dim=1)}, is_given)

print(
    f"\nmade {made.shape[1]} frames of {made.shape[-2]} x {made.shape[-1]}, from {past.shape[1]} of noise, which stands in for data"
)
print(f'The pipeline, with its card, is MCVDPipeline.from_pretrained("{output}/pipeline").')
