"""The evaluation, top to bottom: clips -> samples -> rows, part by part -> one file -> numbers, pictures.

A *part* is a batch of clips. Each is sampled and measured by one process and written as a file of its own, so that an
evaluation which was killed goes on after the last part; and since a part always holds the same clips, and each sample's
noise is keyed by its clip and number, it ends with the same file, bit for bit, on the same machine.
"""

import hashlib
import json
import os
import platform
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import torch
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from mcvd_diffusers._version import __version__
from mcvd_diffusers.folder_lock import FolderLock
from mcvd_diffusers.metrics import (
    LPIPS,
    FeatureNetwork,
    I3DFeatures,
    VJEPA2Features,
    blend_linearly,
    repeat_first_frame,
    repeat_last_frame,
)
from mcvd_diffusers.pipelines import MCVDPipeline
from mcvd_diffusers.protocols import Protocol
from mcvd_diffusers.randomness import keyed_seed

from .clips import EvaluationClip, EvaluationClips, fill_missing
from .report import save_report, save_videos
from .results import METADATA_KEY, Results, ResultsError, make_table, write_results
from .scoring import Scorer


VERSIONS = ("torch", "diffusers", "transformers", "numpy", "pyarrow")
SETTINGS_FILE, PARTS, RESULTS_FILE = "evaluation.json", "parts", "results.parquet"


@dataclass(frozen=True)
class Sampler:
    """
    How samples are drawn; no part of a protocol, but of each result.

    Args:
        num_inference_steps (`int`, *optional*, defaults to 100): Denoising steps a block.
        eta (`float`, *optional*, defaults to 0.0): DDIM's stochasticity.
        guidance_scale (`float`, *optional*, defaults to 1.0): Classifier-free guidance over absent frames.
        final_denoise (`bool`, *optional*): The original's last call; by default as the pipeline has it.
    """

    num_inference_steps: int = 100
    eta: float = 0.0
    guidance_scale: float = 1.0
    final_denoise: bool | None = None


def evaluate(
    pipeline: MCVDPipeline,
    clips: EvaluationClips,
    protocol: Protocol,
    output: Path,
    *,
    model: str,
    sampler: Sampler = Sampler(),
    networks: Iterable[FeatureNetwork] = (),
    lpips: LPIPS | None = None,
    seed: int = 0,
    batch_size: int = 16,
    process_index: int = 0,
    num_processes: int = 1,
    wait_for_everyone: Callable[[], None] = lambda: None,
    progress: Callable[[Iterable, str], Iterable] = lambda items, label: items,
) -> Results | None:
    """
    Evaluate a model by a protocol, or go on with an evaluation that was interrupted.

    Args:
        pipeline ([`MCVDPipeline`]): The model, on its device.
        clips ([`EvaluationClips`]): What the protocol takes from the data.
        protocol ([`Protocol`]): What is made and measured.
        output (`Path`):
            A folder: new, empty, or of the same evaluation. Gets `results.parquet`, `results.json`, `results.md`, plots and
            videos.
        model (`str`): What the model is called in the results.
        sampler ([`Sampler`], *optional*): How samples are drawn.
        networks (`Iterable[FeatureNetwork]`, *optional*): One for each of the protocol's `feature_networks`.
        lpips ([`LPIPS`], *optional*): If the protocol asks for it.
        seed (`int`, *optional*, defaults to 0): Of the samples.
        batch_size (`int`, *optional*, defaults to 16): Videos that go through the network together.
        process_index, num_processes (`int`, *optional*): Which of how many processes this is; they share `output`.
        wait_for_everyone (`Callable`, *optional*): Returns when all processes have called it.
        progress (`Callable`, *optional*): Wraps the parts of this process, to show how far they are.

    Returns:
        [`Results`] or `None`: On the first process; `None` on the others.

    Raises:
        ValueError: If model, clips and protocol do not fit each other, before anything is sampled.
        [`ResultsError`]: If the folder holds another evaluation.
        OSError: If the folder is in use, or cannot be written to.
    """
    networks = list(networks)
    _check(pipeline, protocol, networks, lpips)
    for index in range(process_index, len(clips), num_processes):
        clips[index]  # raises: a clip that is broken, or has missing values, is told before hours of sampling
    settings = _settings(pipeline, clips, protocol, model, sampler, networks, lpips, seed, batch_size)
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    is_first = process_index == 0
    lock = _open_folder(output, settings) if is_first else None
    wait_for_everyone()  # the others write into the folder
    try:
        scorer = Scorer(protocol, pipeline.normalizer, networks, lpips, seed)
        clips_per_part = max(1, batch_size // protocol.samples_per_clip)
        num_parts = -(-len(clips) // clips_per_part)
        mine = [] if (output / RESULTS_FILE).exists() else range(process_index, num_parts, num_processes)
        for part in progress(mine, "parts"):
            if _read_part(output, part, digest) is not None:
                continue
            started = time.perf_counter()
            first = part * clips_per_part
            batch = [clips[index] for index in range(first, min(first + clips_per_part, len(clips)))]
            truth, given, samples, baselines = make_videos(pipeline, batch, protocol, sampler, seed, batch_size)
            seconds = time.perf_counter() - started
            rows = scorer.rows(batch, truth, samples, baselines, given)
            record = {"settings": digest, "seconds": seconds, "num_videos": samples.shape[0] * samples.shape[1]}
            _write_part(output, part, make_table(rows, num_networks=len(networks)), record)
        wait_for_everyone()
        if not is_first:
            return None
        if not (output / RESULTS_FILE).exists():
            parts = [_read_part(output, part, digest) for part in range(num_parts)]
            missing = [number for number, part in enumerate(parts) if part is None]
            if missing:
                raise ResultsError(
                    f"{output / PARTS} has lost {len(missing)} of {num_parts} parts, the first of them {missing[0]}. The same"
                    " command makes them again."
                )
            write_results(output / RESULTS_FILE, [table for table, _ in parts], settings)
        results = Results.read(output / RESULTS_FILE)
        cost = _cost(output, [_read_part(output, part, digest) for part in range(num_parts)], num_processes, settings)
        save_videos(output, results, lambda clip: _columns(pipeline, clips[clip], protocol, sampler, seed, batch_size))
        save_report(output, results, cost=cost)
        for part in range(num_parts):
            _part_file(output, part).unlink(missing_ok=True)
        (output / PARTS).rmdir()
        return results
    finally:
        if lock is not None:
            lock.release()


def make_videos(
    pipeline: MCVDPipeline,
    batch: list[EvaluationClip],
    protocol: Protocol,
    sampler: Sampler,
    seed: int,
    batch_size: int,
) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor], torch.Tensor, dict[str, torch.Tensor]]:
    """
    The true videos of some clips, what is given of them, and what the model and the baselines make of that.

    Sample `j` of clip `i` depends on the seed, `i` and `j`; not on the batch, but for rounding.

    Args:
        pipeline ([`MCVDPipeline`]): The model.
        batch (`list[EvaluationClip]`): `K` clips.
        protocol ([`Protocol`]): What is given, and how many samples are made.
        sampler ([`Sampler`]): How.
        seed (`int`): Of the samples.
        batch_size (`int`): Videos that go through the network together.

    Returns:
        `tuple`: Truth `(K, T, C, H, W)`; given frames before and after; samples `(K, S, T, C, H, W)`; baselines, name ->
        `(K, T, C, H, W)`. All in the model's units.
    """
    config = pipeline.unet.config
    video = torch.stack([clip.frames for clip in batch])
    sides = [protocol.num_past_frames, protocol.num_frames, protocol.num_future_frames]
    past, truth, future = video.split(sides, dim=1)
    # The model reads the given frames that are next to those to be made, as many as it was built for.
    seen_past, seen_future = past[:, -config.num_past_frames :], future[:, : config.num_future_frames]
    samples = pipeline(
        past_frames=seen_past if seen_past.numel() else None,
        future_frames=seen_future if seen_future.numel() else None,
        num_frames=protocol.num_frames,
        batch_size=len(batch),
        height=video.shape[-2],
        width=video.shape[-1],
        num_inference_steps=sampler.num_inference_steps,
        eta=sampler.eta,
        guidance_scale=sampler.guidance_scale,
        final_denoise=sampler.final_denoise,
        ensemble_size=protocol.samples_per_clip,
        generator=[torch.Generator().manual_seed(keyed_seed(seed, clip.index)) for clip in batch],
        max_batch_size=batch_size,
        output_type="pt",
    ).frames
    if protocol.missing_values == "fill":
        samples = fill_missing(samples, pipeline.normalizer)
    samples = samples.unflatten(0, (len(batch), protocol.samples_per_clip)).cpu()
    baselines = {}
    if protocol.task == "prediction":
        baselines["repeat_last_frame"] = repeat_last_frame(past, protocol.num_frames)
    elif protocol.task == "past_prediction":
        baselines["repeat_first_frame"] = repeat_first_frame(future, protocol.num_frames)
    elif protocol.task == "interpolation":
        baselines["blend_linearly"] = blend_linearly(past, future, protocol.num_frames)
    return truth, (past, future), samples, baselines


def _columns(
    pipeline: MCVDPipeline, clip: EvaluationClip, protocol: Protocol, sampler: Sampler, seed: int, batch_size: int
) -> tuple[dict[str, torch.Tensor], list[bool]]:
    """A clip's videos for a picture: label -> (S, T, C, H, W) in [0, 1], and which frames were given."""
    truth, (past, future), samples, baselines = make_videos(pipeline, [clip], protocol, sampler, seed, batch_size)
    columns = {"sample": samples[0]}
    if protocol.task != "generation":
        columns = {"truth": truth, **columns, **{name.replace("_", " "): x for name, x in baselines.items()}}
    whole = {}
    for name, video in columns.items():
        before, after = (frames.expand(len(video), -1, -1, -1, -1) for frames in (past, future))
        whole[name] = pipeline.normalizer.to_display(torch.cat([before, video, after], dim=1))
    return whole, [True] * past.shape[1] + [False] * protocol.num_frames + [True] * future.shape[1]


def _check(pipeline: MCVDPipeline, protocol: Protocol, networks: list[FeatureNetwork], lpips: LPIPS | None) -> None:
    """What would fail after hours fails now."""
    config = pipeline.unet.config
    for side in ("past", "future"):
        if getattr(protocol, f"num_{side}_frames") and not config[f"num_{side}_frames"]:
            raise ValueError(
                f"{protocol.label} is {protocol.task.replace('_', ' ')}, which gives {side} frames, and this model reads none"
                f" (`unet.config.num_{side}_frames` is 0): choose another protocol, or another model."
            )
    if len(networks) != len(protocol.feature_networks):
        raise ValueError(
            f"{protocol.label} asks for the feature networks {', '.join(protocol.feature_networks) or 'none'}, got"
            f" {len(networks)} of them."
        )
    if ("lpips" in protocol.metrics) != (lpips is not None):
        raise ValueError(f"{protocol.label} {'asks' if lpips is None else 'does not ask'} for LPIPS.")
    channels = pipeline.normalizer.num_channels(config.in_channels)
    num_frames = protocol.num_clip_frames if protocol.given_frames_in_distances else protocol.num_frames
    for network in networks:
        if channels not in (1, 3):
            raise ValueError(
                f"{network.name} looks at grey or colour videos, and the model's have {channels} channels: leave it out"
                " (--leave_out, or a protocol of one's own)."
            )
        if num_frames < network.min_frames:
            raise ValueError(
                f"{network.name} needs videos of at least {network.min_frames} frames, and {protocol.label} has {num_frames}:"
                " leave it out (--leave_out, or a protocol of one's own)."
            )
    if channels not in (1, 3) and "lpips" in protocol.metrics:
        raise ValueError(
            f"LPIPS looks at grey or colour frames, and the model's have {channels} channels: leave it out."
        )
    if channels not in (1, 3) and "ssim" in protocol.metrics and protocol.ssim_color == "luma":
        raise ValueError(
            f"{protocol.label} takes SSIM of the luma, and the model's frames have {channels} channels: a protocol of one's own"
            " can say `ssim_color: channels`."
        )


def _settings(pipeline, clips, protocol, model, sampler, networks, lpips, seed, batch_size) -> dict:
    """All that the rows depend on, as plain JSON."""
    scheduler: SchedulerMixin = pipeline.scheduler
    config = {name: value for name, value in scheduler.config.items() if not name.startswith("_")}
    sampling = asdict(sampler)
    if sampling["final_denoise"] is None:
        sampling["final_denoise"] = bool(pipeline.config.final_denoise)
    num_blocks = -(-protocol.num_frames // pipeline.unet.config.num_frames)
    settings = {
        "protocol": protocol.to_dict(),
        "model": {
            "name": model,
            "weights_sha256": _weights_digest(pipeline.unet),
            "num_parameters": sum(parameter.numel() for parameter in pipeline.unet.parameters()),
            "dtype": str(pipeline.unet.dtype).removeprefix("torch."),
            "units": str(pipeline.normalizer),
        },
        "data": {
            "description": clips.description,
            "num_clips": len(clips),
            "num_videos": clips.num_videos,
            "num_short_videos_skipped": clips.num_skipped,
        },
        "sampler": {"scheduler": type(scheduler).__name__, **sampling, "scheduler_config": config},
        "seed": seed,
        "batch_size": batch_size,
        "network_calls_per_video": num_blocks * (sampler.num_inference_steps + sampling["final_denoise"]),
        "networks": [_describe_network(network) for network in networks],
        "lpips": None if lpips is None else lpips.name,
        "versions": {
            "mcvd_diffusers": __version__,
            "python": platform.python_version(),
            **{name: version(name) for name in VERSIONS},
        },
        "device": _device_name(pipeline.device),
    }
    return json.loads(json.dumps(settings, default=str))


def _describe_network(network: FeatureNetwork) -> dict:
    """What stands beside a distance: only over I3D it is called FVD, and over V-JEPA's kind it is JEDi's form."""
    return {
        "name": network.name,
        "is_i3d": isinstance(network, I3DFeatures) and network.is_i3d,
        "distance": "mmd" if isinstance(network, VJEPA2Features) else "frechet",
    }


def _weights_digest(unet: torch.nn.Module) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(unet.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _open_folder(output: Path, settings: dict) -> FolderLock:
    """Takes the folder for this evaluation; refuses one that holds anything else."""
    record = output / SETTINGS_FILE
    if output.exists() and not output.is_dir():
        raise ResultsError(f"{output} is a file: name a folder for the results.")
    if output.is_dir() and any(output.iterdir()) and not record.is_file():
        raise ResultsError(f"{output} holds something else. Nothing is overwritten: choose another folder.")
    output.mkdir(parents=True, exist_ok=True)
    lock = FolderLock(output)
    try:
        has_work = (output / RESULTS_FILE).exists() or any((output / PARTS).glob("part-*"))
        if record.is_file() and has_work:
            _check_same(output, json.loads(record.read_text()), settings)
        else:  # also of one that has failed before it made anything
            _write_text(record, json.dumps(settings, indent=2, sort_keys=True) + "\n")
        (output / PARTS).mkdir(exist_ok=True)
    except (OSError, ValueError):
        lock.release()
        raise
    return lock


def _check_same(output: Path, former: dict, settings: dict) -> None:
    """An evaluation goes on only as what it was."""
    different = []

    def walk(path: str, one, other) -> None:
        if isinstance(one, dict) and isinstance(other, dict):
            for name in sorted({*one, *other}):
                walk(f"{path}{'.' * bool(path)}{name}", one.get(name), other.get(name))
        elif one != other:
            different.append(f"{path}: {one!r} then, {other!r} now")

    walk("", former, settings)
    if different:
        more = f"; and {len(different) - 4} more" if len(different) > 4 else ""
        raise ResultsError(
            f"{output} holds another evaluation ({'; '.join(different[:4])}{more}). Choose another folder, or evaluate as then."
        )


def _part_file(output: Path, part: int) -> Path:
    return output / PARTS / f"part-{part:06d}.parquet"


def _write_part(output: Path, part: int, table, record: dict) -> None:
    import pyarrow.parquet as pq

    table = table.replace_schema_metadata({METADATA_KEY: json.dumps(record).encode()})
    path = _part_file(output, part)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        pq.write_table(table, partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _read_part(output: Path, part: int, digest: str):
    """Table and record; `None` if the part is not there, not whole (a machine that lost power), or of other settings."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(_part_file(output, part), partitioning=None)
        record = json.loads(table.schema.metadata[METADATA_KEY])
    except (OSError, pa.ArrowInvalid, KeyError, TypeError, ValueError):
        return None
    return (table, record) if record.get("settings") == digest else None


def _cost(output: Path, parts: list, num_processes: int, settings: dict) -> dict | None:
    """What sampling took, by the parts; once they are gone, as it was stated."""
    if None in parts:
        try:
            return json.loads((output / "results.json").read_text()).get("cost")
        except (OSError, ValueError):
            return None
    seconds, videos = (sum(record[name] for _, record in parts) for name in ("seconds", "num_videos"))
    return {
        "num_videos": videos,
        "network_calls": videos * settings["network_calls_per_video"],
        "seconds_of_sampling": round(seconds, 2),
        "seconds_per_video": round(seconds / videos, 4),
        "num_processes": num_processes,
        "device": settings["device"],
    }


def _write_text(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)
