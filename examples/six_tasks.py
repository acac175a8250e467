"""Six tasks of one network each: what RaMViD, FDM and VDM make of moving digits that they have not seen.

    accelerate launch train_mcvd.py examples/configs/ramvid_digits.yaml --output_dir runs/ramvid
    accelerate launch train_mcvd.py examples/configs/fdm_digits.yaml --output_dir runs/fdm
    accelerate launch train_mcvd.py examples/configs/vdm_digits.yaml --output_dir runs/vdm
    python examples/six_tasks.py runs/ramvid runs/fdm runs/vdm --output runs/six_tasks

The table has the mean squared error of each task's frames, beside that of repeating the last given frame (for spatial
super-resolution: of enlarging the small frames). Beside it lies a picture of each task. Networks that were trained
without given frames, as VDM's, take them in by replacement and guidance, as their pipelines say. With 64 clips, one core of a
CPU takes about half an hour; `--num_clips 8` shows the same in minutes.
"""

import argparse
import json
from pathlib import Path

import torch
import yaml
from diffusers import DDIMScheduler

from mcvd_diffusers import MCVDPipeline
from mcvd_diffusers.data import MovingDigits, load_digits
from mcvd_diffusers.guidance import downsample
from mcvd_diffusers.objectives import starts_blind
from mcvd_diffusers.visualization import contact_sheet


NUM_SHOWN = 4
# What is known enters by a gradient: each step is made four times, with new noise in between, until all fits together.
BY_GUIDANCE = {"num_resamples": 4, "eta": 1.0}


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


def held_out_clips(run: Path, *, num_frames: int, num_clips: int) -> torch.Tensor:
    """Clips (N, T, C, H, W) in [0, 1] of digits that a run has not seen, which move as those of its training did."""
    settings = yaml.safe_load((run / "training_settings.yaml").read_text())
    if settings["train_data_dir"] or settings["dataset_name"]:
        raise SystemExit(
            f"{run} was not trained on moving digits, but on {settings['train_data_dir'] or 'a dataset'}."
        )
    size = settings["resolution"]
    digits = load_digits(settings["digits"], split="validation", size=settings["digit_size"] or min(size) // 2)
    clips = MovingDigits(
        digits,
        num_frames=num_frames,
        num_clips=num_clips,
        canvas_size=tuple(size),
        num_digits=settings["num_digits"],
        max_speed=settings["max_speed"] or max(1, min(size) // 16),
        seed=1,
    )
    return (torch.stack([clips[i]["video"] for i in range(num_clips)]) + 1) / 2


def set_ddim(pipe: MCVDPipeline) -> None:
    """The same sampler for all, one that remembers no former steps, as resampling demands."""
    if not hasattr(pipe.scheduler, "betas"):
        raise SystemExit(
            "Runs of flow_prediction and edm have no sampler in common with the others: they are not compared here."
        )
    settings = {"timestep_spacing": "trailing", "clip_sample": starts_blind(pipe.scheduler)}
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, **settings)


def num_window_frames(run: Path) -> int:
    """Frames of the windows that a run's network was trained for."""
    config = run / "unet" / "config.json"
    for file in (run / "training_settings.yaml", config):
        if not file.is_file():
            raise SystemExit(f"{run} is no run of train_mcvd.py that has come to its end: there is no {file}.")
    shape = json.loads(config.read_text())
    max_frames = shape.get("max_frames")
    if max_frames is None or shape.get("num_context_frames") == 0:
        method, part = ("mcvd", "blocks of") if max_frames is None else ("rvd", "single")
        raise SystemExit(
            f"{run} is a run of --method {method}, whose {part} frames do not fit the six tasks. Pass runs of --method ramvid, fdm,"
            " vdm or lgcvd."
        )
    return max_frames


def main(arguments: list[str] | None = None) -> None:
    """Measure all runs on the same clips, and write table and pictures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("runs", nargs="+", type=Path, help="folders that train_mcvd.py has written")
    parser.add_argument("--output", type=Path, required=True, help="new folder for the table and the pictures")
    parser.add_argument("--num_clips", type=int, default=64)
    parser.add_argument("--num_inference_steps", type=int, default=25)
    arguments = parser.parse_args(arguments)
    if arguments.output.exists():
        raise SystemExit(f"--output {arguments.output} exists, and nothing is overwritten: name a new folder.")
    num_frames = min(map(num_window_frames, arguments.runs))
    names = [run.name for run in arguments.runs]
    if len({*names, "truth"}) <= len(names):
        raise SystemExit(
            f"Runs must have names of their own, other than truth, got {' '.join(names)}: rename a folder."
        )
    pipes, weights = {}, []
    for run in arguments.runs:
        variant = "ema" if list(run.glob("unet/*.ema.*")) else None
        pipes[run.name] = MCVDPipeline.from_pretrained(run, variant=variant)
        pipes[run.name].set_progress_bar_config(disable=True)
        set_ddim(pipes[run.name])
        weights.append("EMA" if variant else "raw")
    torch.set_num_threads(1)

    of_runs = [held_out_clips(run, num_frames=num_frames, num_clips=arguments.num_clips) for run in arguments.runs]
    clips, size = of_runs[0], of_runs[0].shape[-2:]
    for run, others in zip(arguments.runs, of_runs):
        if not torch.equal(others, clips):
            raise SystemExit(f"{run} was trained on other digits than {arguments.runs[0]}: they cannot be compared.")
    arguments.output.mkdir(parents=True)
    errors, pictures = {}, {}
    for task, given in given_frames(num_frames).items():
        missing = [position for position in range(num_frames) if position not in given]
        options = {"num_frames": len(missing), "output_type": "pt"}
        if given:
            options |= {"observed_frames": clips[:, given], "observed_positions": given}
            baseline = repeat_last(clips, given, missing)
        else:
            small = downsample(clips, (size[0] // 2, size[1] // 2))
            options |= {"low_resolution_frames": small, "super_resolution_guidance": 5.0}
            options |= BY_GUIDANCE
            baseline = small.repeat_interleave(2, dim=-1).repeat_interleave(2, dim=-2)
        truth = clips[:, missing]
        errors[task], pictures[task] = {}, {"truth": clips}
        for name, pipe in pipes.items():
            own = BY_GUIDANCE if pipe.config.replacement is not None else {}
            generator = torch.Generator().manual_seed(0)
            steps = arguments.num_inference_steps
            made = pipe(num_inference_steps=steps, generator=generator, **options | own).frames
            errors[task][name] = (made - truth).square().mean().item()
            pictures[task][name] = clips.clone()
            pictures[task][name][:, missing] = made
        errors[task]["repeating the last frame"] = (baseline - truth).square().mean().item()

    for task, videos in pictures.items():
        is_given = [position in given_frames(num_frames)[task] for position in range(num_frames)]
        shown = {name: video[:NUM_SHOWN] for name, video in videos.items()}
        contact_sheet(shown, is_given).save(arguments.output / f"{task.replace(' ', '_')}.png")
    names = list(errors["prediction"])
    lines = [f"| mean squared error x 1000 | {' | '.join(names)} |", "| --- |" + " --- |" * len(names)]
    for task, row in errors.items():
        lines.append(f"| {task} | " + " | ".join(f"{1000 * row[name]:.1f}" for name in names) + " |")
    schedulers = sorted({type(pipe.scheduler).__name__ for pipe in pipes.values()})
    lines += [
        "",
        f"{len(clips)} held-out clips of {num_frames} frames, {size[0]} x {size[1]} pixels in [0, 1]; one sample each,"
        f" {arguments.num_inference_steps} steps of {', '.join(schedulers)}, {', '.join(sorted(set(weights)))} weights; the error is the mean over all pixels that"
        " are made. Spatial super-resolution is compared with enlarging the small frames. It, and what is made by networks that were"
        f" trained without given frames, takes num_resamples={BY_GUIDANCE['num_resamples']}, eta={BY_GUIDANCE['eta']:g}.",
    ]
    (arguments.output / "table.md").write_text("\n".join(lines) + "\n", "utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
