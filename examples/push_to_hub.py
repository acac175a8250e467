"""To the Hugging Face Hub: a model with its card, in one commit, and back from there.

    python examples/push_to_hub.py                          # what would be pushed; needs no network
    HF_TOKEN=... python examples/push_to_hub.py --repo_id user/name

Nothing is pushed without --repo_id, and then to a private repository. A run of train_mcvd.py has a card already and needs no more
than `mcvd-diffusers push runs/mine user/name`.
"""

import argparse
import shutil
from pathlib import Path

import torch

from mcvd_diffusers import MCVDPipeline
from mcvd_diffusers.atomic import numbered_folder
from mcvd_diffusers.model_card import facts_of_configs, pipeline_paths, read_facts, write_card
from mcvd_diffusers.publishing import PushError, push_folder


ROOT = Path(__file__).resolve().parents[1]

parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
parser.add_argument("--repo_id", help="user/name on the Hub; made if it is not there; without it nothing is pushed")
parser.add_argument("--model", type=Path, default=ROOT / "checkpoints/moving-digits", help="a pipeline's folder")
parser.add_argument("--output", default="runs/examples/push_to_hub", help="folder to make; PATH-2, ... if it is there")
arguments = parser.parse_args()

# A copy, since a card is written into it.
model = numbered_folder(arguments.output) / "pipeline"
shutil.copytree(arguments.model, model)

# What the configs and weights say is in the card by itself; what only you know, you say.
facts = read_facts(model) if (model / "model_card.json").exists() else facts_of_configs(model)
facts.notes = "Made to try out `examples/push_to_hub.py`."
write_card(model, facts)

print(f"{model}/README.md is the card. These files belong to the model:\n")
for path in pipeline_paths(model, facts.samples):
    print(f"{path.stat().st_size:12,}  {path.relative_to(model)}")
if arguments.repo_id is None:
    print("\nNothing was pushed: --repo_id user/name does it.")
    raise SystemExit

try:
    url = push_folder(model, arguments.repo_id, private=True)
except (ValueError, PushError) as error:
    raise SystemExit(f"\nNothing was pushed: {error}")
print(f"\npushed: {url}")

here, there = MCVDPipeline.from_pretrained(model), MCVDPipeline.from_pretrained(arguments.repo_id)
videos = []
for pipe in (here, there):
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    videos.append(pipe(num_frames=5, num_inference_steps=4, generator=generator, output_type="pt").frames)
print(f"loaded from the Hub, it makes the same video: {torch.equal(*videos)}")
