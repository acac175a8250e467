"""Six tasks of one network each: what RaMViD, FDM and VDM make of moving digits that they have not seen.

    accelerate launch train_mcvd.py examples/configs/ramvid_digits.yaml --output_dir runs/ramvid
    accelerate launch train_mcvd.py examples/configs/fdm_digits.yaml --output_dir runs/fdm
    accelerate launch train_mcvd.py examples/configs/vdm_digits.yaml --output_dir runs/vdm
    python examples/six_tasks.py runs/ramvid runs/fdm runs/vdm --output runs/six_tasks

The table has the mean squared error of each task's frames, beside that of repeating the last given frame (for spatial
super-resolution: of enlarging the small frames). Beside it lies a picture of each task. Networks that were trained
without given frames, as VDM's, take them in by replacement and guidance, as their pipelines say.
"""

import argparse
from pathlib import Path

import torch

from mcvd_diffusers import MCVDPipeline
from mcvd_diffusers.data import MovingDigits, load_digits
from mcvd_diffusers.guidance import downsample
from mcvd_diffusers.visualization import contact_sheet


NUM_SHOWN = 4


def given_frames(num_frames: int) -> dict[str, list[int]]:
    """Task -> which frames of a clip are given."""
    every = list(range(num_frames))
    side = num_frames // 4
    return {
        "prediction": every[:side],
        "past prediction": every[-side:],
        "interpolation": [*every[:side], *every[-side:]],
        "infilling": [1, num_frames // 2, num_frames - 2],
        "temporal super-resolution": every[::2],
        "spatial super-resolution": [],
    }


def repeat_last(clips: torch.Tensor, given: list[int], missing: list[int]) -> torch.Tensor:
    """The last given frame before each missing one, or the first after it."""
    before = [max((x for x in given if x < position), default=given[0]) for position in missing]
    return clips[:, before]


def main() -> None:
    """Measure all runs on the same clips, and write table and pictures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("runs", nargs="+", type=Path, help="folders of trained pipelines")
    parser.add_argument("--output", type=Path, required=True, help="new folder for the table and the pictures")
    parser.add_argument("--num_clips", type=int, default=64)
    parser.add_argument("--num_inference_steps", type=int, default=25)
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True)
    torch.set_num_threads(1)

    errors, pictures = {}, {}
    for run in arguments.runs:
        variant = "ema" if list(run.glob("unet/*.ema.*")) else None
        pipe = MCVDPipeline.from_pretrained(run, variant=variant)
        pipe.set_progress_bar_config(disable=True)
        num_frames, size = pipe.unet.config.max_frames, pipe.unet.config.sample_size
        digits = load_digits("sklearn", split="validation", size=min(size) // 2)
        clips = MovingDigits(
            digits,
            num_frames=num_frames,
            num_clips=arguments.num_clips,
            canvas_size=tuple(size),
            num_digits=1,
            max_speed=max(1, min(size) // 16),
            seed=1,
        )
        clips = (torch.stack([clips[i]["video"] for i in range(len(clips))]) + 1) / 2
        for task, given in given_frames(num_frames).items():
            missing = [position for position in range(num_frames) if position not in given]
            options = {"num_frames": len(missing), "generator": torch.Generator().manual_seed(0), "output_type": "pt"}
            if given:
                options |= {"observed_frames": clips[:, given], "observed_positions": given}
                baseline = repeat_last(clips, given, missing)
            else:
                small = downsample(clips, (size[0] // 2, size[1] // 2))
                options |= {"low_resolution_frames": small, "super_resolution_guidance": 5.0}
                baseline = small.repeat_interleave(2, dim=-1).repeat_interleave(2, dim=-2)
            made = pipe(num_inference_steps=arguments.num_inference_steps, **options).frames
            truth = clips[:, missing]
            errors.setdefault(task, {})[run.name] = (made - truth).square().mean().item()
            errors[task]["repeat"] = (baseline - truth).square().mean().item()
            video = clips.clone()
            video[:, missing] = made
            pictures.setdefault(task, {"truth": clips})[run.name] = video

    for task, videos in pictures.items():
        is_given = [position in given_frames(num_frames)[task] for position in range(num_frames)]
        shown = {name: video[:NUM_SHOWN] for name, video in videos.items()}
        contact_sheet(shown, is_given).save(arguments.output / f"{task.replace(' ', '_')}.png")
    names = [run.name for run in arguments.runs]
    lines = [f"| mean squared error x 1000 | {' | '.join(names)} | repeating the last frame |"]
    lines.append("| --- |" + " --- |" * (len(names) + 1))
    for task, row in errors.items():
        lines.append(f"| {task} | " + " | ".join(f"{1000 * row[name]:.1f}" for name in [*names, "repeat"]) + " |")
    (arguments.output / "table.md").write_text("\n".join(lines) + "\n", "utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
