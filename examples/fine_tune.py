"""Fine-tuning: the shipped checkpoint goes on with clips of another kind, and is better at them than before.

    python examples/fine_tune.py --clips my_videos/

A tenth of the videos is held out; the numbers are of clips from these, before and after. The network keeps its shape: frames become
64 x 64 and grey, as train_mcvd.py says when it starts. Without --clips, 200 GIFs are written of digits that are smaller and far
faster than the ones the checkpoint was trained on.
"""

import argparse
import subprocess
import sys
from pathlib import Path

import torch

from mcvd_diffusers import MCVDPipeline
from mcvd_diffusers.atomic import numbered_folder
from mcvd_diffusers.data import ClipDataset, MovingDigits, load_digits, open_reader, split_videos
from mcvd_diffusers.data.digit_files import write_moving_digits
from mcvd_diffusers.metrics import psnr_of_mse, repeat_last_frame, video_mse
from mcvd_diffusers.visualization import contact_sheet, save_comparison_gif


ROOT = Path(__file__).resolve().parents[1]
CHECKPOINT = ROOT / "checkpoints/moving-digits"
NUM_PAST, NUM_FRAMES = 5, 5

parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
parser.add_argument("--clips", type=Path, help="videos of 15 frames or more: files, or folders of images")
parser.add_argument("--num_updates", type=int, default=100, help="of the training (default: 100, about a minute)")
parser.add_argument("--output", default="runs/examples/fine_tune", help="folder to make; PATH-2, ... if it is there")
arguments = parser.parse_args()

if arguments.clips is not None:
    open_reader(arguments.clips)  # before anything is made: it says what is wrong with a path
output = numbered_folder(arguments.output)
clips = arguments.clips
if clips is None:
    clips = output / "clips"
    digits = load_digits("mnist-10k", split="validation", size=20)  # not in the training of the checkpoint
    drawn = MovingDigits(digits, num_frames=30, num_clips=200, num_digits=1, max_speed=9, seed=7)
    write_moving_digits(drawn, clips, format="gif")

pipe = MCVDPipeline.from_pretrained(CHECKPOINT)
size = pipe.frame_shape[1:]
held_out = split_videos(open_reader(clips), validation=0.1).validation  # the same that train_mcvd.py holds out
dataset = ClipDataset(held_out, num_frames=NUM_PAST + NUM_FRAMES, frame_size=size, num_channels=1, random_start=False)
video = (torch.stack([dataset[i]["video"] for i in range(min(len(dataset), 32))]) + 1) / 2
past, truth = video[:, :NUM_PAST], video[:, NUM_PAST:]


def predict(pipe: MCVDPipeline) -> torch.Tensor:
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    return pipe(past_frames=past, num_frames=NUM_FRAMES, generator=generator, output_type="pt").frames


before = predict(pipe)
flags = """--clip_step 4 --validation_fraction 0.1 --learning_rate 5e-4 --lr_warmup_steps 20 --train_batch_size 8
    --num_validation_videos 0 --report_to none""".split()
flags += ["--pretrained_model_name_or_path", CHECKPOINT, "--train_data_dir", clips, "--output_dir", output / "run"]
flags += ["--max_train_steps", str(arguments.num_updates)]
subprocess.run([sys.executable, ROOT / "train_mcvd.py", *flags], check=True)
after = predict(MCVDPipeline.from_pretrained(output / "run", variant="ema"))

versions = {"truth": truth, "before": before, "after": after}
columns = {name: torch.cat([past, frames], dim=1)[:4] for name, frames in versions.items()}
is_given = [True] * NUM_PAST + [False] * NUM_FRAMES
save_comparison_gif(output / "prediction.gif", columns, is_given)
contact_sheet(columns, is_given).save(output / "prediction.png")

print(f"\nPSNR of the mean squared error over {len(video)} clips of held-out videos, in dB (more is better)\n")
for name, frames in (versions | {"repeating the last frame": repeat_last_frame(past, NUM_FRAMES)}).items():
    if name != "truth":
        print(f"{name:28}{psnr_of_mse(video_mse(frames, truth).mean()):6.2f}")
print(f'\nLook at {output}/prediction.gif. The model is MCVDPipeline.from_pretrained("{output}/run", variant="ema").')
