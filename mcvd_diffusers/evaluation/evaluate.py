"""The evaluation, top to bottom: clips -> samples -> rows, part by part -> one file -> numbers, pictures.

A *part* is a batch of clips. Each is sampled and measured by one process and written as a file of its own, so that an
evaluation which was killed goes on after the last part; and since a part always holds the same clips, and each sample's
noise is keyed by its clip and number, it ends with the same file, bit for bit, on the same machine.
"""

import contextlib
import functools
import hashlib
import json
import platform
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path

import torch
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from mcvd_diffusers._version import __version__
from mcvd_diffusers.atomic import whole_file
from mcvd_diffusers.folder_lock import LOCK_NAME, FolderLock
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
from mcvd_diffusers.pipelines.carried_context import reads_before_past
from mcvd_diffusers.pipelines.layouts import num_made, shows_beside, takes_windows
from mcvd_diffusers.protocols import Protocol
from mcvd_diffusers.randomness import keyed_seed
from mcvd_diffusers.weights import networks_digest

from .clips import EvaluationClip, EvaluationClips, fill_missing
from .report import save_report, save_videos
from .results import METADATA_KEY, Results, ResultsError, digest_of, make_table, write_results
from .scoring import Scorer, ensemble_unit


VERSIONS = ("torch", "diffusers", "transformers", "numpy", "pyarrow")
SETTINGS_FILE, PARTS, RESULTS_FILE, COST_FILE = "evaluation.json", "parts", "results.parquet", "cost.json"
MADE_BY = "mcvd-diffusers evaluate"  # in the record of a folder: it is ours


@dataclass(frozen=True)
class Sampler:
    """
    How samples are drawn; no part of a protocol, but of each result.

    Args:
        num_inference_steps (`int`, *optional*): Denoising steps a block; by default the pipeline's.
        eta (`float`, *optional*, defaults to 0.0): DDIM's stochasticity.
        guidance_scale (`float`, *optional*, defaults to 1.0): Classifier-free guidance over absent frames.
        final_denoise (`bool`, *optional*): The original's last call; by default as the pipeline has it.
        seed (`int`, *optional*, defaults to 0): Of all samples.
        batch_size (`int`, *optional*, defaults to 16):
            Videos that go through the network together. It changes the last bits.
    """

    num_inference_steps: int | None = None
    eta: float = 0.0
    guidance_scale: float = 1.0
    final_denoise: bool | None = None
    seed: int = 0
    batch_size: int = 16


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
    if sampler.num_inference_steps is None:
        sampler = replace(sampler, num_inference_steps=pipeline.default_num_inference_steps)
    _check(pipeline, protocol, networks, lpips, num_pixels=clips[0].frames.shape[-2:])
    lock = None
    try:
        if process_index == 0:
            settings = _settings(pipeline, clips, protocol, model, sampler, networks, lpips)
            lock = _open_folder(output, settings)
        wait_for_everyone()  # the others write into the folder, too
        settings = _read_json(output / SETTINGS_FILE)
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
        scorer = Scorer(protocol, pipeline.normalizer, networks, lpips, sampler.seed)
        clips_per_part = max(1, sampler.batch_size // protocol.samples_per_clip)
        num_parts = -(-len(clips) // clips_per_part)
        mine = [] if (output / RESULTS_FILE).exists() else range(process_index, num_parts, num_processes)
        for part in progress(mine, "batches of clips"):
            if _read_part(output, part, digest) is not None:
                continue
            first = part * clips_per_part
            batch = [clips[index] for index in range(first, min(first + clips_per_part, len(clips)))]
            with _counting_calls(pipeline.unet) as calls:
                started = time.perf_counter()
                truth, given, samples, baselines = make_videos(pipeline, batch, protocol, sampler)
                cost = {"seconds": time.perf_counter() - started, "num_videos": samples.shape[0] * samples.shape[1]}
            rows = scorer.rows(batch, truth, samples, baselines, given)
            table = make_table(rows, num_networks=len(networks))
            _write_part(output, part, table, digest, cost | {"network_calls": calls[0]})
        wait_for_everyone()
        if process_index > 0:
            return None
        if not (output / RESULTS_FILE).exists():
            parts = [_read_part(output, part, digest) for part in range(num_parts)]
            missing = [number for number, part in enumerate(parts) if part is None]
            if missing:
                raise ResultsError(
                    f"{output / PARTS} has lost {len(missing)} of {num_parts} parts, the first of them {missing[0]}. The same"
                    " command makes them again."
                )
            cost = _total_cost([cost for _, cost in parts], num_processes, settings["device"])
            _write_json(output / COST_FILE, cost)
            write_results(output / RESULTS_FILE, [table for table, _ in parts], settings)
        results = Results.read(output / RESULTS_FILE)
        if results.settings != settings:
            raise ResultsError(
                f"{output / RESULTS_FILE} is of another evaluation than {output / SETTINGS_FILE} says: choose another folder."
            )
        videos_of = functools.partial(_columns, pipeline, clips, protocol, sampler)
        save_videos(output, results, videos_of)
        save_report(output, results, cost=_read_json(output / COST_FILE))
        for part in range(num_parts):
            _part_file(output, part).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # something of the user's is in it
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
    *,
    num_samples: int | None = None,
) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor], torch.Tensor, dict[str, torch.Tensor]]:
    """
    The true videos of some clips, what is given of them, and what the model and the baselines make of that.

    Sample `j` of clip `i` depends on the seed, `i` and `j`; not on the batch, but for rounding.

    Args:
        pipeline ([`MCVDPipeline`]): The model.
        batch (`list[EvaluationClip]`): `K` clips.
        protocol ([`Protocol`]): What is given, and how many samples are made.
        sampler ([`Sampler`]): How.
        num_samples (`int`, *optional*): `S`, the first so many samples; by default as the protocol says.

    Returns:
        `tuple`: Truth `(K, T, C, H, W)`; given frames before and after; samples `(K, S, T, C, H, W)`; baselines, name ->
        `(K, T, C, H, W)`. All in the model's units.
    """
    config, num_samples = pipeline.unet.config, num_samples or protocol.samples_per_clip
    video = torch.stack([clip.frames for clip in batch])
    sides = [protocol.num_past_frames, protocol.num_frames, protocol.num_future_frames]
    past, truth, future = video.split(sides, dim=1)
    # The model reads the given frames that are next to those to be made, as many as it was built for. (One of windows is given
    # all, and its frame schedule chooses; and a context encoder may read what lies before.)
    seen_past, seen_future = past, future
    if not takes_windows(config):
        seen_future = future[:, : config.num_future_frames]
        if not reads_before_past(pipeline.context_encoder, config):
            seen_past = past[:, -config.num_past_frames :]
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
        ensemble_size=num_samples,
        generator=[torch.Generator().manual_seed(keyed_seed(sampler.seed, clip.index)) for clip in batch],
        max_batch_size=sampler.batch_size,
        output_type="pt",
    ).frames
    if protocol.missing_values == "fill":
        samples = fill_missing(samples, pipeline.normalizer)
    samples = samples.unflatten(0, (len(batch), num_samples)).cpu()
    baselines = {}
    if protocol.task == "prediction":
        baselines["repeat_last_frame"] = repeat_last_frame(past, protocol.num_frames)
    elif protocol.task == "past_prediction":
        baselines["repeat_first_frame"] = repeat_first_frame(future, protocol.num_frames)
    elif protocol.task == "interpolation":
        baselines["blend_linearly"] = blend_linearly(past, future, protocol.num_frames)
    return truth, (past, future), samples, baselines


def _columns(
    pipeline: MCVDPipeline,
    clips: EvaluationClips,
    protocol: Protocol,
    sampler: Sampler,
    clip: int,
    sample: int,
) -> tuple[dict[str, torch.Tensor], list[bool]]:
    """A clip's videos for a picture: label -> (1, T, C, H, W) in [0, 1], and which frames were given."""
    truth, (past, future), samples, baselines = make_videos(
        pipeline, [clips[clip]], protocol, sampler, num_samples=sample + 1
    )
    columns = {"truth": truth, "sample": samples[0, sample:]}
    columns |= {name.replace("_", " "): video for name, video in baselines.items()}
    whole = {
        name: pipeline.normalizer.to_display(torch.cat([past, video, future], dim=1))
        for name, video in columns.items()
    }
    return whole, [True] * past.shape[1] + [False] * protocol.num_frames + [True] * future.shape[1]


def _check(
    pipeline: MCVDPipeline,
    protocol: Protocol,
    networks: list[FeatureNetwork],
    lpips: LPIPS | None,
    *,
    num_pixels: tuple[int, int],
) -> None:
    """What would fail after hours fails now."""
    config = pipeline.unet.config
    for side, num_read in zip(("past", "future"), _num_read(pipeline, protocol)):
        if getattr(protocol, f"num_{side}_frames") and not num_read:
            name = "num_context_frames" if shows_beside(config) else f"num_{side}_frames"
            raise ValueError(
                f"{protocol.label} is {protocol.task.replace('_', ' ')}, which gives {side} frames, and this model reads none"
                f" (`unet.config.{name}` is 0): choose another protocol, or another model."
            )
    if len(networks) != len(protocol.feature_networks):
        raise ValueError(
            f"{protocol.label} asks for the feature networks {', '.join(protocol.feature_networks) or 'none'}, got"
            f" {len(networks)} of them."
        )
    if ("lpips" in protocol.metrics) != (lpips is not None):
        raise ValueError(f"{protocol.label} {'asks' if lpips is None else 'does not ask'} for LPIPS.")
    if pipeline.normalizer.has_mask_channel and protocol.missing_values == "refuse":
        raise ValueError(
            f"The model says where values are missing, and errors of missing values cannot be computed: {protocol.label} must"
            " say `missing_values: fill`, which puts in what the model was trained to see there (a protocol of one's own)."
        )
    channels = pipeline.frame_shape[0]
    num_frames = protocol.num_clip_frames if protocol.given_frames_in_distances else protocol.num_frames
    for network in networks:
        if num_frames < network.min_frames:
            raise ValueError(
                f"{network.name} needs videos of at least {network.min_frames} frames, and {protocol.label} has {num_frames}:"
                " leave it out (--leave_out, or a protocol of one's own)."
            )
        try:
            trial = network.features(torch.rand(2, num_frames, channels, *num_pixels))
        except Exception as error:  # whatever a network of somebody else raises
            raise ValueError(f"{network.name} cannot read these videos: {error}. Leave it out.") from error
        if not torch.is_tensor(trial) or trial.ndim != 2 or len(trial) != 2 or trial.shape[1] == 0:
            got = tuple(trial.shape) if torch.is_tensor(trial) else type(trial).__name__
            raise ValueError(f"{network.name} must make a tensor (2, D) of features of 2 videos, got {got}.")
    if channels not in (1, 3) and "lpips" in protocol.metrics:
        raise ValueError(
            f"LPIPS looks at grey or colour frames, and the model's have {channels} channels: leave it out."
        )
    if channels not in (1, 3) and "ssim" in protocol.metrics and protocol.ssim_color == "luma":
        raise ValueError(
            f"{protocol.label} takes SSIM of the luma, and the model's frames have {channels} channels: a protocol of one's own"
            " can say `ssim_color: channels`."
        )


def _settings(
    pipeline: MCVDPipeline,
    clips: EvaluationClips,
    protocol: Protocol,
    model: str,
    sampler: Sampler,
    networks: list[FeatureNetwork],
    lpips: LPIPS | None,
) -> dict:
    """All that the rows depend on, as plain JSON."""
    scheduler: SchedulerMixin = pipeline.scheduler
    config = {name: value for name, value in scheduler.config.items() if not name.startswith("_")}
    sampling = asdict(sampler)
    if sampling["final_denoise"] is None:
        sampling["final_denoise"] = bool(pipeline.config.final_denoise)
    if pipeline.guider is not None:
        guider = {name: value for name, value in pipeline.guider.config.items() if not name.startswith("_")}
        sampling["guider"] = {"name": type(pipeline.guider).__name__, **guider}
    sampling |= {
        name: pipeline.config[name]
        for name in ("frame_schedule", "step", "replacement", "reconstruction_guidance")
        if pipeline.config[name]
    }
    unet, units = pipeline.unet.config, pipeline.normalizer
    num_past, num_future = _num_read(pipeline, protocol)
    size = num_made(unet)
    if takes_windows(unet):
        if protocol.num_clip_frames <= unet.max_frames:  # in one window
            size = protocol.num_frames
        elif not shows_beside(unet):
            size = pipeline.config.step or max(1, unet.max_frames // 2)
    components = {"unet": pipeline.unet, "context_encoder": pipeline.context_encoder}
    components = {component: network for component, network in components.items() if network is not None}
    settings = {
        "made_by": MADE_BY,
        "protocol": protocol.to_dict(),
        "model": {
            "name": model,
            "weights_sha256": networks_digest({component: x.state_dict() for component, x in components.items()}),
            "num_parameters": sum(parameter.numel() for x in components.values() for parameter in x.parameters()),
            "dtype": ", ".join(
                dict.fromkeys(str(network.dtype).removeprefix("torch.") for network in components.values())
            ),
            "units": str(units),
            "value_range": [list(units.low), list(units.high)],
            # What the network is given of the given frames, and how often it is called for a longer video.
            "num_past_frames_read": num_past,
            "num_future_frames_read": num_future,
            "num_frames_of_a_block": size,
        },
        "data": {
            "description": clips.description,
            "num_clips": len(clips),
            "num_videos": clips.num_videos,
            "num_short_videos_skipped": clips.num_skipped,
            **clips.facts(),
        },
        "sampler": {"scheduler": type(scheduler).__name__, **sampling, "scheduler_config": config},
        "networks": [_describe_network(network) for network in networks],
        "lpips": None if lpips is None else lpips.name,
        "ensemble_unit": ensemble_unit(units),
        "versions": {
            "mcvd_diffusers": __version__,
            "python": platform.python_version(),
            **{name: version(name) for name in VERSIONS},
        },
        "device": _device_name(pipeline.device),
    }
    # Schedulers have settings such as -inf, which is no JSON: they become text.
    return json.loads(json.dumps(settings, default=str), parse_constant=str)


def _num_read(pipeline: MCVDPipeline, protocol: Protocol) -> list[int]:
    """How many of the given frames before and after those to be made the model reads."""
    config, encoder = pipeline.unet.config, pipeline.context_encoder
    past, future = protocol.num_past_frames, protocol.num_future_frames
    if shows_beside(config):
        num_read = [min(count, config.num_context_frames) for count in (past, future)]
    elif takes_windows(config):
        num_read = [past, future]
    else:
        num_read = [min(past, config.num_past_frames), min(future, config.num_future_frames)]
    if not reads_before_past(encoder, config):
        return num_read
    if encoder.clip_frames is None:
        num_read[0] = past
    elif past >= encoder.clip_frames:  # clips as far apart as windows
        num_read[0] = past - (past - encoder.clip_frames) % num_made(config)
    return num_read


def _describe_network(network: FeatureNetwork) -> dict:
    """What stands beside a distance: only over I3D it is called FVD, and over V-JEPA's kind it is JEDi's form."""
    return {
        "name": network.name,
        "is_i3d": isinstance(network, I3DFeatures) and network.is_i3d,
        "distance": "mmd" if isinstance(network, VJEPA2Features) else "frechet",
    }


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def check_output(output: Path) -> None:
    """
    Refuse a folder that holds anything but an evaluation, without making or changing anything.

    Args:
        output (`Path`): The folder; need not exist.

    Raises:
        [`ResultsError`]: If it is something else.
    """
    try:
        if output.is_symlink() and not output.exists():
            raise ResultsError(f"{output} is a link to a place that does not exist: name a folder for the results.")
        if not output.exists():
            return
        if not output.is_dir():
            raise ResultsError(f"{output} is no folder: name a folder for the results.")
        names = {path.name for path in output.iterdir()}
    except (OSError, ValueError) as error:
        if isinstance(error, ResultsError):
            raise
        raise ResultsError(f"{output} cannot be a folder for the results: {error}") from error
    names -= {LOCK_NAME, *(name for name in names if name.startswith(".") and ".partial" in name)}
    record = output / SETTINGS_FILE
    is_ours = SETTINGS_FILE in names and _read_json(record).get("made_by") == MADE_BY
    if names and not is_ours:
        raise ResultsError(f"{output} holds something else. Nothing is overwritten: choose another folder.")
    if (output / PARTS).exists() and not (output / PARTS).is_dir():
        raise ResultsError(f"{output / PARTS} is no folder: move it away.")


def _open_folder(output: Path, settings: dict) -> FolderLock:
    """Takes the folder for this evaluation; refuses one that holds anything else."""
    check_output(output)
    output.mkdir(parents=True, exist_ok=True)
    lock = FolderLock(output)
    try:
        check_output(output)
        record, parts = output / SETTINGS_FILE, output / PARTS
        for partial in parts.glob(".part-*.partial.parquet"):  # of a process that was killed
            partial.unlink(missing_ok=True)
        has_work = any(parts.glob("part-*")) or any(
            (output / name).exists() for name in (RESULTS_FILE, "results.json")
        )
        if record.is_file() and has_work:
            _check_same(output, _read_json(record), settings)
        else:  # also of one that has failed before it made anything
            _write_json(record, settings)
        parts.mkdir(exist_ok=True)
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


def _write_part(output: Path, part: int, table, digest: str, cost: dict) -> None:
    import pyarrow.parquet as pq

    record = {"sha256": digest_of(table, {"settings": digest, "part": part}), "cost": cost}
    with whole_file(_part_file(output, part)) as partial:
        pq.write_table(table.replace_schema_metadata({METADATA_KEY: json.dumps(record).encode()}), partial)


def _read_part(output: Path, part: int, digest: str):
    """Table and cost; `None` if the part is not there, not whole (a machine that lost power), or another one."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(_part_file(output, part), partitioning=None)
        record = json.loads(table.schema.metadata[METADATA_KEY])
        if digest_of(table, {"settings": digest, "part": part}) == record["sha256"]:
            return table, record["cost"]
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError, NotImplementedError):
        pass
    return None


@contextlib.contextmanager
def _counting_calls(unet: torch.nn.Module):
    """How often the network is called, counting each video of a batch, while the context lasts."""
    calls = [0]

    def count(module: torch.nn.Module, arguments: tuple) -> None:
        calls[0] += len(arguments[0])

    handle = unet.register_forward_pre_hook(count)
    try:
        yield calls
    finally:
        handle.remove()


def _total_cost(costs: list[dict], num_processes: int, device: str) -> dict:
    seconds, videos, calls = (sum(cost[name] for cost in costs) for name in ("seconds", "num_videos", "network_calls"))
    return {
        "num_videos": videos,
        "network_calls": calls,
        "seconds_of_sampling": round(seconds, 2),
        "seconds_per_video": round(seconds / videos, 4),
        "num_processes": num_processes,
        "device": device,
    }


def _read_json(path: Path) -> dict:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ResultsError(f"{path} is no JSON any more ({error}): move the folder away.") from error
    if not isinstance(content, dict):
        raise ResultsError(f"{path} is not what an evaluation writes: move the folder away.")
    return content


def _write_json(path: Path, content: dict) -> None:
    with whole_file(path) as partial:
        partial.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
