"""Calls of the network against quality: which noise scheduler for a network that is there, and which objective for a new one.

    python benchmarks/few_steps.py train runs/objectives [--only epsilon edm ...]
    python benchmarks/few_steps.py schedulers runs/objectives/epsilon --output runs/schedulers [--calls 5 10 15 20]
    python benchmarks/few_steps.py objectives runs/objectives --output runs/objectives_table [--calls 3 5 10 20] [--only ...]

`train` trains `examples/configs/mcvd_digits.yaml` once for each objective, with one thread, all for the same number of updates, and
then distils some of them; started again, it trains what is missing, and its other flags are those of `train_mcvd.py`. `schedulers` compares Diffusers' schedulers on one network of epsilon, v or clean frames, such as a
converted one: first blocks by their distance to those that DDIM makes of the same noise in 1000 steps, then videos of several blocks by
their error, CRPS and the in-house distance. `objectives` compares the networks that `train` made, each with its schedulers.

What is measured is kept in the output folder (JSON lines), so that a measurement that was stopped goes on.
"""

import argparse
import inspect
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path


ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "examples")]

import diffusers  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from six_tasks import held_out_clips  # noqa: E402

from mcvd_diffusers import MCVDPipeline  # noqa: E402
from mcvd_diffusers.metrics import (  # noqa: E402
    FeatureMoments,
    TransNetFeatures,
    crps,
    frechet_distance,
    mean_interval,
    spread_and_error,
    spread_skill_ratio,
)
from mcvd_diffusers.objectives import objective_of  # noqa: E402
from mcvd_diffusers.samplers import noise_settings  # noqa: E402
from mcvd_diffusers.weights import weights_digest  # noqa: E402


COSINE, LINEAR = "--beta_schedule squaredcos_cap_v2", "--beta_schedule linear"
OBJECTIVES = {
    "epsilon": f"--prediction_type epsilon {LINEAR}",
    "epsilon_cosine": f"--prediction_type epsilon {COSINE}",
    "epsilon_min_snr": f"--prediction_type epsilon {LINEAR} --min_snr_gamma 5",
    "velocity": f"--prediction_type v_prediction {COSINE}",
    "velocity_min_snr": f"--prediction_type v_prediction {COSINE} --min_snr_gamma 5",
    "velocity_zero_snr": f"--prediction_type v_prediction {LINEAR} --rescale_betas_zero_snr True",
    "sample": f"--prediction_type sample {COSINE}",
    "flow": "--prediction_type flow_prediction",
    "flow_logit_normal": "--prediction_type flow_prediction --noise_level_mean 0 --noise_level_std 1",
    "edm": "--prediction_type edm",
}

# Name -> the network that it is distilled from.
DISTILLED = {f"{name}_distilled": name for name in ("velocity", "sample", "velocity_zero_snr")}
DISTILLATION = "--variant ema --distill True --learning_rate 5e-4 --max_train_steps 3000"

DPM, UNIPC, DEIS = "DPMSolverMultistepScheduler", "UniPCMultistepScheduler", "DEISMultistepScheduler"
TRAILING = {"timestep_spacing": "trailing"}
LEADING, LINSPACE = {"timestep_spacing": "leading"}, {"timestep_spacing": "linspace"}
# With these, schedulers that have no setting for it keep what they take the frames for within [-1, 1] in each step.
CLIPPED = {"thresholding": True, "dynamic_thresholding_ratio": 1.0, "sample_max_value": 1.0}
# Name -> class and settings.
FROM_BETAS = {
    "DDIM, leading": ("DDIMScheduler", LEADING | {"clip_sample": False}),
    "DDIM, trailing": ("DDIMScheduler", TRAILING | {"clip_sample": False}),
    "DDIM, trailing, clipped": ("DDIMScheduler", TRAILING | {"clip_sample": True}),
    "DDPM, trailing, clipped": ("DDPMScheduler", TRAILING | {"clip_sample": True}),
    "Euler, trailing": ("EulerDiscreteScheduler", TRAILING),
    "Heun, trailing": ("HeunDiscreteScheduler", TRAILING),
    "DEIS 2, trailing": (DEIS, TRAILING),
    "DPM-Solver++ 2, linspace": (DPM, LINSPACE),
    "DPM-Solver++ 2, leading": (DPM, LEADING),
    "DPM-Solver++ 2, trailing": (DPM, TRAILING),
    "DPM-Solver++ 2, trailing, from half log-SNR -5.1": (DPM, TRAILING | {"lambda_min_clipped": -5.1}),
    "DPM-Solver++ 3, trailing": (DPM, TRAILING | {"solver_order": 3}),
    "DPM-Solver++ 2, Karras": (DPM, {"use_karras_sigmas": True}),
    "DPM-Solver++ 2, leading, clipped": (DPM, LEADING | CLIPPED),
    "DPM-Solver++ 2, trailing, clipped": (DPM, TRAILING | CLIPPED),
    "DPM-Solver++ 3, trailing, clipped": (DPM, TRAILING | CLIPPED | {"solver_order": 3}),
    "DPM-Solver++ 2, Karras, clipped": (DPM, CLIPPED | {"use_karras_sigmas": True}),
    "DPM-Solver++ 2, log-SNR, clipped": (DPM, CLIPPED | {"use_lu_lambdas": True}),
    "SDE-DPM-Solver++ 2, trailing": (DPM, TRAILING | {"algorithm_type": "sde-dpmsolver++"}),
    "SDE-DPM-Solver++ 2, trailing, clipped": (DPM, TRAILING | CLIPPED | {"algorithm_type": "sde-dpmsolver++"}),
    "UniPC 2, trailing": (UNIPC, TRAILING),
    "UniPC 3, trailing": (UNIPC, TRAILING | {"solver_order": 3}),
    "UniPC 2, leading, clipped": (UNIPC, LEADING | CLIPPED),
    "UniPC 2, trailing, clipped": (UNIPC, TRAILING | CLIPPED),
    "UniPC 3, trailing, clipped": (UNIPC, TRAILING | CLIPPED | {"solver_order": 3}),
}
DEFAULT = "DPM-Solver++ 2, trailing"
FROM_FLOW = {
    "Euler": ("FlowMatchEulerDiscreteScheduler", {}),
    "Heun": ("FlowMatchHeunDiscreteScheduler", {}),
    "DPM-Solver++ 2": (DPM, {"prediction_type": "flow_prediction", "use_flow_sigmas": True}),
}
FROM_EDM = {
    "EDM Euler": ("EDMEulerScheduler", {}),
    "EDM DPM-Solver++ 2": ("EDMDPMSolverMultistepScheduler", {}),
}
# Of the first, these are compared for each objective.
FOR_OBJECTIVES = {
    name: FROM_BETAS[name] for name in ("DDPM, trailing, clipped", DEFAULT, "SDE-DPM-Solver++ 2, trailing")
}
SCHEDULERS = {"flow_prediction": FROM_FLOW, "edm": FROM_EDM}
# With these, videos of several blocks are made, beside DDIM in 100 steps.
ALSO_FOR_VIDEOS = 4
# A video has so many frames that are given, and made.
NUM_GIVEN, NUM_MADE, NUM_MEMBERS = 2, 12, 4


def train(folder: Path, names: list[str], flags: list[str]) -> None:
    """The runs that are not there yet."""
    for name in names:
        if (folder / name / "model_index.json").exists():
            continue
        command = [sys.executable, str(ROOT / "train_mcvd.py"), str(ROOT / "examples/configs/mcvd_digits.yaml")]
        command += ["--output_dir", str(folder / name), "--report_to", "none", "--resume_from_checkpoint", "latest"]
        if name in DISTILLED:
            teacher = DISTILLED[name]
            command += ["--pretrained_model_name_or_path", str(folder / teacher), *DISTILLATION.split()]
            command += OBJECTIVES[teacher].split()[:2]  # the settings file says what networks predict, otherwise
        else:
            command += OBJECTIVES[name].split()
        command += flags
        subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, cwd=ROOT)


def load(run: Path) -> MCVDPipeline:
    """A run's pipeline, with the averaged weights."""
    pipe = MCVDPipeline.from_pretrained(run, variant="ema")
    pipe.set_progress_bar_config(disable=True)
    return pipe


def schedulers_of(pipe: MCVDPipeline) -> dict[str, tuple[str, dict] | None]:
    """Those that can serve a network; None is its own."""
    if isinstance(pipe.scheduler, diffusers.LCMScheduler):
        return {"LCM": None}
    return SCHEDULERS.get(objective_of(pipe.scheduler).prediction_type, FOR_OBJECTIVES)


def with_scheduler(run: Path, kind: tuple[str, dict] | None) -> MCVDPipeline:
    """A run's pipeline, with the averaged weights and another scheduler of the same noise, or its own."""
    pipe = load(run)
    if kind is None:
        return pipe
    name, settings = kind
    kind = getattr(diffusers, name)
    takes, known = inspect.signature(kind).parameters, noise_settings(pipe.scheduler)
    pipe.scheduler = kind(**{key: value for key, value in known.items() if key in takes} | settings)
    return pipe


def num_steps_of(name: str, num_calls: int) -> int:
    """Steps that make so many calls of the network; Heun calls it twice in each but the last."""
    return (num_calls + 1) // 2 if name.startswith("Heun") else num_calls


def predict(
    pipe: MCVDPipeline, clips: torch.Tensor, num_steps: int, num_frames: int, num_members: int = 1
) -> torch.Tensor:
    """What follows the first frames of clips, (N * members, T, 1, H, W) in [0, 1], always from the same noise."""
    return pipe(
        past_frames=clips[:, :NUM_GIVEN],
        num_frames=num_frames,
        num_inference_steps=num_steps,
        ensemble_size=num_members,
        generator=torch.Generator().manual_seed(0),
        output_type="pt",
        max_batch_size=64,
    ).frames


def remembered(path: Path, key: list, measure: Callable[[], dict]) -> dict:
    """What was measured under a key, or what is measured now."""
    if path.exists():
        for line in path.read_text("utf-8").splitlines():
            row = json.loads(line)
            if row["key"] == key:
                return row["values"]
    started = time.perf_counter()
    values = measure()
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"key": key, "values": values}) + "\n")
    print(f"{' '.join(map(str, key))}: {time.perf_counter() - started:.0f} s", file=sys.stderr)
    return values


def quality(pipe: MCVDPipeline, clips: torch.Tensor, num_steps: int, features: TransNetFeatures) -> dict:
    """Of videos of several blocks: one number for each clip, and the distance of all."""
    calls = []
    hook = pipe.unet.register_forward_hook(lambda *_: calls.append(1))
    members = predict(pipe, clips, num_steps, NUM_MADE, NUM_MEMBERS).unflatten(0, (len(clips), NUM_MEMBERS))
    hook.remove()
    num_batches = -(-len(clips) * NUM_MEMBERS // 64)
    truth = clips[:, NUM_GIVEN:]
    variance, error = spread_and_error(members.numpy(), truth.numpy())
    real, made = FeatureMoments(), FeatureMoments()
    for batch in clips.split(64):
        real.update(features.features(_in_unit(batch)).numpy())
    for batch, past in zip(members[:, 0].split(64), clips[:, :NUM_GIVEN].split(64)):
        made.update(features.features(_in_unit(torch.cat([past, batch], dim=1))).numpy())
    return {
        "calls of a block": len(calls) / num_batches / -(-NUM_MADE // pipe.unet.config.num_frames),
        "errors": (members[:, 0] - truth).square().flatten(1).mean(1).tolist(),
        "crps": crps(members.numpy(), truth.numpy(), fair=True).reshape(len(clips), -1).mean(1).tolist(),
        "spread": spread_skill_ratio(variance, error, num_members=NUM_MEMBERS),
        "distance": frechet_distance(real, made),
    }


def _in_unit(videos: torch.Tensor) -> torch.Tensor:
    return videos.clamp(0, 1)


def cell(values: list[float], scale: float = 1000) -> str:
    """Mean over clips, and its 95 % interval."""
    values = scale * np.array(values)
    interval = mean_interval(values, None)
    return f"{values.mean():.2f} ({interval.low:.2f} to {interval.high:.2f})"


def quality_row(cells: list[str], values: dict) -> str:
    """A line of a table of videos."""
    cells = [
        *cells,
        f"{values['calls of a block']:.0f}",
        cell(values["errors"]),
    ]
    cells += [cell(values["crps"]), f"{values['spread']:.2f}", f"{values['distance']:.1f}"]
    return f"| {' | '.join(cells)} |"


HEAD = "calls of a block | squared error x 1000 | CRPS x 1000 | spread / error | in-house distance"
NOTE = (
    "Prediction of {made} frames from {given} in blocks of {block}; {clips} held-out clips of {size} x {size} pixels in [0, 1], whose digits no"
    " run has seen; EMA weights; squared error of one sample, the fair CRPS and spread over error of {members} (1 is right, less too"
    " alike); 95 % intervals over clips. In-house distance: Fréchet over TransNet V2, of one sample a clip, given frames included; real"
    " clips against others of the same kind have {floor:.1f}."
)


def note(pipe: MCVDPipeline, clips: torch.Tensor, others: torch.Tensor, features: TransNetFeatures) -> str:
    """The protocol."""
    moments = [FeatureMoments(), FeatureMoments()]
    for which, videos in zip(moments, (clips, others)):
        for batch in videos.split(64):
            which.update(features.features(_in_unit(batch)).numpy())
    return NOTE.format(
        made=NUM_MADE,
        given=NUM_GIVEN,
        block=pipe.unet.config.num_frames,
        clips=len(clips),
        size=clips.shape[-1],
        members=NUM_MEMBERS,
        floor=frechet_distance(*moments),
    )


def compare_schedulers(run: Path, output: Path, calls: list[int], num_clips: int, num_reference_steps: int) -> None:
    """Two tables for one network."""
    output.mkdir(parents=True, exist_ok=True)
    pipe, known = load(run), output / "measured.jsonl"
    network = weights_digest(pipe.unet.state_dict())[:16]
    block = pipe.unet.config.num_frames
    clips = held_out_clips(run, num_frames=NUM_GIVEN + NUM_MADE, num_clips=3 * num_clips)
    clips, others = clips[:num_clips], clips[num_clips:]
    reference = None

    def distance(name: str, num_steps: int) -> dict:
        """Root of the mean squared difference to the reference, for each clip."""
        nonlocal reference
        if reference is None:
            reference = predict(with_scheduler(run, FROM_BETAS["DDIM, trailing"]), clips, num_reference_steps, block)
        made = predict(with_scheduler(run, FROM_BETAS[name]), clips, num_steps, block)
        return {"distances": (made - reference).square().flatten(1).mean(1).sqrt().tolist()}

    lines = [
        f"| scheduler | {' | '.join(f'{n} calls' for n in calls)} | 100 calls |",
        "| --- |" + " --- |" * (len(calls) + 1),
    ]
    means = {}
    for name in FROM_BETAS:
        is_random = name.startswith(("DDPM", "SDE"))
        if is_random:  # they go another way from the same noise
            continue
        row = []
        for n in [*calls, 100]:
            if n == 100 and not name.startswith("DDIM"):
                row.append("-")
                continue
            key = ["block", network, name, n, num_clips, num_reference_steps]
            values = remembered(known, key, lambda name=name, n=n: distance(name, num_steps_of(name, n)))["distances"]
            row.append(cell(values))
            means[name, n] = np.mean(values)
        lines.append(f"| {name} | {' | '.join(row)} |")
    lines += [
        "",
        f"Root mean squared difference x 1000 to DDIM in {num_reference_steps} steps from the same noise: the first {block} frames after"
        f" {NUM_GIVEN}, {num_clips} held-out clips, mean and 95 % interval over clips.",
        "",
    ]
    at = calls[len(calls) // 2]
    best = sorted((name for name, n in means if n == at), key=lambda name: means[name, at])[:ALSO_FOR_VIDEOS]
    always = [name for name in FROM_BETAS if name == DEFAULT or name.startswith(("DDPM", "SDE", "DDIM"))]
    best += [name for name in always if name not in best]
    features = TransNetFeatures.from_package()
    lines += [f"| scheduler | {HEAD} |", "| --- |" + " --- |" * 5]
    for name, n in [
        ("DDIM, trailing", 100),
        ("DDIM, trailing, clipped", 100),
        *((name, n) for n in calls for name in best),
    ]:
        key = ["video", network, name, n, 3 * num_clips]
        made, steps = with_scheduler(run, FROM_BETAS[name]), num_steps_of(name, n)
        values = remembered(known, key, lambda: quality(made, others, steps, features))  # noqa: B023
        lines.append(quality_row([name], values))
    lines += ["", note(pipe, others, clips, features)]
    finish(output, lines)


def compare_objectives(folder: Path, names: list[str], output: Path, calls: list[int], num_clips: int) -> None:
    """One table for those runs that are there: each with each of its schedulers."""
    output.mkdir(parents=True, exist_ok=True)
    known, features = output / "measured.jsonl", TransNetFeatures.from_package()
    names = [name for name in names if (folder / name / "model_index.json").exists()]
    if not names:
        raise SystemExit(f"{folder} holds none of the runs that were asked for: `train` makes them.")
    clips = held_out_clips(folder / names[0], num_frames=NUM_GIVEN + NUM_MADE, num_clips=2 * num_clips)
    clips, others = clips[:num_clips], clips[num_clips:]
    lines = [f"| objective | scheduler | {HEAD} |", "| --- | --- |" + " --- |" * 5]
    for n in calls:
        for name in names:
            pipe = load(folder / name)
            network = weights_digest(pipe.unet.state_dict())[:16]
            for scheduler, kind in schedulers_of(pipe).items():
                if kind is None and n > pipe.scheduler.config.original_inference_steps:
                    continue
                key = [name, network, scheduler, n, num_clips]
                made, steps = with_scheduler(folder / name, kind), num_steps_of(scheduler, n)
                values = remembered(known, key, lambda: quality(made, clips, steps, features))  # noqa: B023
                lines.append(quality_row([name, scheduler], values))
    lines += ["", note(load(folder / names[0]), clips, others, features)]
    finish(output, lines)


def finish(output: Path, lines: list[str]) -> None:
    """Write and show the table."""
    (output / "table.md").write_text("\n".join(lines) + "\n", "utf-8")
    print("\n".join(lines))


def main(arguments: list[str] | None = None) -> None:
    """Train, or measure."""
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0],
        epilog="`train` also takes the flags of train_mcvd.py, such as --max_train_steps.",
    )
    parser.add_argument("what", choices=("train", "schedulers", "objectives"))
    parser.add_argument("folder", type=Path, help="of the runs; for `schedulers` of a pipeline")
    parser.add_argument(
        "--only",
        nargs="+",
        choices=[*OBJECTIVES, *DISTILLED],
        default=[*OBJECTIVES, *DISTILLED],
        help="of `train` and `objectives`: which runs",
    )
    parser.add_argument("--output", type=Path, help="folder for the table")
    parser.add_argument("--calls", type=int, nargs="+", default=[3, 5, 10, 20], help="of the network, for a block")
    parser.add_argument("--num_clips", type=int, default=64, help="that are held out")
    parser.add_argument(
        "--reference_steps", type=int, default=1000, help="of `schedulers`: of DDIM, which blocks are compared with"
    )
    options, flags = parser.parse_known_args(arguments)
    folder = options.folder.resolve()  # trainings run in another one
    if options.what == "train":
        train(folder, options.only, flags)
        return
    if options.output is None:
        raise SystemExit("--output is required: the folder for the table.")
    if flags:
        raise SystemExit(f"Only `train` takes flags of train_mcvd.py, got {flags}.")
    torch.set_num_threads(1)
    diffusers.utils.logging.disable_progress_bar()
    if options.what == "schedulers":
        compare_schedulers(folder, options.output, options.calls, options.num_clips, options.reference_steps)
    else:
        compare_objectives(folder, options.only, options.output, options.calls, options.num_clips)


if __name__ == "__main__":
    main()
