# Copyright 2026 The mcvd-diffusers authors. Licensed under the Apache License, Version 2.0.
"""Train a masked conditional video diffusion model, and save it as a pipeline.

    accelerate launch train_mcvd.py --output_dir runs/digits                        # moving digits, all defaults
    accelerate launch train_mcvd.py --method fdm --output_dir runs/long             # or ramvid, vdm, lgcvd, rvd
    accelerate launch train_mcvd.py --preset smmnist-concat-p5k5f5-general --digits mnist --output_dir runs/smmnist
    accelerate launch train_mcvd.py --train_data_dir videos/ --in_channels 3 --resolution 64 --output_dir runs/mine
    accelerate launch train_mcvd.py --train_data_dir radar.zarr --normalization min_max --output_dir runs/radar
    accelerate launch train_mcvd.py settings.yaml --learning_rate 1e-4              # a file, and flags on top of it
    accelerate launch train_mcvd.py settings.yaml --estimate                        # what it would cost; nothing is kept
    accelerate launch train_mcvd.py --output_dir runs/mine --resume_from_checkpoint latest        # go on, to the last bit
    accelerate launch --multi_gpu --num_processes 8 train_mcvd.py ...               # several GPUs
    accelerate launch --config_file cluster.yaml train_mcvd.py ...                  # several machines

`--help` explains each flag (they are in `mcvd_diffusers/train_settings.py`); the training loop is in `train`, below, and what an
update does in `Learner`. What differs from method to method is in `mcvd_diffusers/methods.py`.

All randomness is keyed: clip i of epoch e by (seed, e, i); masks, timesteps and noise of training sample n by
(seed, n); dropout by (seed, step, process), which depends on the batch size and the number of processes, as does a window that
takes frames of other clips of its batch (--fill_with_other_clips, images without --image_data_dir), and nothing else. Nothing is
drawn from a global stream that outlives a step. So the state of a training is its weights, their average, the optimizer's
moments and a few numbers, the same on all processes, and a run that goes on from it is the run that was never stopped.

SIGTERM, SIGINT (Ctrl-C) and SIGUSR1 save a checkpoint and end the process with 128 + the signal's number.
"""

import contextlib
import copy
import hashlib
import logging
import math
import shlex
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

import diffusers
import torch
from accelerate import Accelerator, PartialState
from accelerate.logging import get_logger
from accelerate.utils import (
    DistributedType,
    GradientAccumulationPlugin,
    InitProcessGroupKwargs,
    ProjectConfiguration,
    gather_object,
)
from diffusers import DDPMScheduler
from diffusers.optimization import get_scheduler
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.training_utils import EMAModel
from safetensors.torch import save_file

from mcvd_diffusers import FrameRole, MCVDPipeline, denoising_loss, sample_generators
from mcvd_diffusers.checkpointing import load_training_tensors, version_changes
from mcvd_diffusers.cost import (
    NUM_TIMED,
    CostEstimate,
    Spread,
    UpdateTimer,
    is_out_of_memory,
    largest_batch_that_fits,
    measure_sampling,
    peak_flops,
    peak_memory,
    training_flops,
)
from mcvd_diffusers.data import StreamingClips
from mcvd_diffusers.distillation import distillation_loss, draw_steps, relative_cost
from mcvd_diffusers.interruption import StopSignals
from mcvd_diffusers.methods import Method, make_method
from mcvd_diffusers.model_card import CARD
from mcvd_diffusers.normalization import FrameNormalizer
from mcvd_diffusers.objectives import Objective, noise_positions, objective_of
from mcvd_diffusers.publishing import PushError, check_repository, push_folder
from mcvd_diffusers.randomness import Generators, keyed_seed
from mcvd_diffusers.run_folder import Progress, RunFolder, SaveError, read_progress
from mcvd_diffusers.samplers import make_sampler
from mcvd_diffusers.train_settings import Settings, noise_scheduler_of, parse_args
from mcvd_diffusers.training import DROPOUT_STREAM, TrainingWindow, draw_timesteps
from mcvd_diffusers.training_data import Batches, DataError, make_datasets, make_loader, whole_clips
from mcvd_diffusers.training_log import LossMeter, Trackers
from mcvd_diffusers.validation import make_validation_videos, validation_tasks
from mcvd_diffusers.weights import weights_digest


__all__ = ["DataError", "SetupError", "Settings", "main", "make_datasets", "make_loader", "make_unet", "parse_args"]

logger = get_logger("train_mcvd", log_level="INFO")

SPARE_BYTES = 48 << 20  # memory that a batch must leave free to be said to fit


class SetupError(ValueError):
    """Something about the settings or the data that shows before the first step."""


class NotFiniteError(RuntimeError):
    """Too many updates in a row had a loss or a gradient that was not finite."""


class TooLittleMemoryError(RuntimeError):
    """Memory has run out; what would fit was tried."""


@contextlib.contextmanager
def setup_errors(settings: Settings):
    """Errors of the set-up end the script with a message; others show where they happened."""
    try:
        yield
    except (ValueError, OSError, ImportError) as error:
        raise SetupError(f"{error}{way_out_of(str(error), settings)}") from error
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise SetupError(
            f"memory has run out before the first update of this start ({first_line(error)}). Free what other"
            " processes hold, or begin a training with a smaller network (--block_out_channels) or smaller"
            " frames (--resolution)."
        ) from error


def first_line(error: BaseException) -> str:
    """What an error says, without what torch tells about it over many lines."""
    return str(error).strip().split("\n")[0]


def way_out_of(message: str, settings: Settings) -> str:
    """What a message of the library, which names its own arguments, means here."""
    flags = {
        "`frame_size` must be given": "--resolution",
        "`num_channels` must be given": "--in_channels",
        "`axes` must": "--axes",
        "`variables` must": "--variables",
        "`column` must": "--video_column",
        "too short": f"{make_method(settings).clip_flags} and --frame_stride make a clip's length; --pad_short_videos",
        "`max_bad_share`": "--max_bad_share",
    }
    found = [flag for words, flag in flags.items() if words in message]
    return f" (Flags: {'; '.join(found)}.)" if found else ""


# --------------------------------------------------------------------------------------------------------------------
# What is trained


def make_unet(settings: Settings) -> torch.nn.Module:
    """The network: new from the settings, or a saved one to go on with."""
    return make_method(settings).make_network()


def make_noise_scheduler(settings: Settings) -> SchedulerMixin:
    """The noise of training; a saved pipeline's, if training goes on with one."""
    return noise_scheduler_of(settings, variance_type=make_method(settings).variance_type)


def make_pipeline(
    settings: Settings, components: torch.nn.ModuleDict, noise_scheduler: SchedulerMixin, normalizer: FrameNormalizer
) -> MCVDPipeline:
    """What was trained, its units, and the scheduler it is sampled with: from pure noise, within the range of the data."""
    method = make_method(settings)
    # What a prediction leaves over may be as large as twice that.
    largest = normalizer.largest_value * (2 / settings.model.residual_scale if method.makes_residuals else 1)
    changes = {"original_inference_steps": settings.model.distillation_steps} if settings.model.distill else {}
    name, (source, _) = settings.training.sampling_scheduler, settings.pretrained
    theirs = {} if source is None else MCVDPipeline.load_config(source)
    is_theirs = not settings.model.distill and theirs.get("scheduler", [None, None])[1] == name
    if is_theirs:
        scheduler = getattr(diffusers, name).from_pretrained(source, subfolder="scheduler")
    else:
        scheduler = make_sampler(noise_scheduler, name, largest_value=largest, **changes)
    sampling = method.pipeline_settings()
    sampling |= {name: theirs[name] for name in sampling if theirs.get(name) is not None}
    return MCVDPipeline(
        **components,
        scheduler=scheduler,
        final_denoise=is_theirs and theirs.get("final_denoise", False),
        normalization=normalizer.to_config(),
        num_inference_steps=settings.training.validation_inference_steps,
        **sampling,
    )


# --------------------------------------------------------------------------------------------------------------------
# Training


def main(settings: Settings, stop: StopSignals | None = None) -> Path | None:
    """
    Train to the end, or until `stop` is asked. Returns the folder of the saved pipeline; `None` if training was stopped and
    can be gone on with, and with `estimate`, which ends when the cost was measured.
    """
    training, output_dir = settings.training, Path(settings.training.output_dir)
    stop = stop or StopSignals()
    accelerator = Accelerator(
        mixed_precision=training.mixed_precision,
        project_config=ProjectConfiguration(project_dir=output_dir, logging_dir=output_dir / "logs"),
        # Windows of accumulation run across the end of an epoch, so that each has the same number of samples.
        gradient_accumulation_plugin=GradientAccumulationPlugin(
            num_steps=training.gradient_accumulation_steps, sync_with_dataloader=False
        ),
        # The others wait while the first process makes validation videos.
        kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(hours=2))],
    )
    with contextlib.ExitStack() as at_the_end:
        pipeline_folder = train(settings, accelerator, stop, at_the_end)
    if not stop.is_asked:  # or the others may not come to that
        # The wrapped network must go before its process group, or gloo's thread and this one may wait for each other for ever.
        accelerator.free_memory()
        accelerator.end_training()
    return pipeline_folder


def train(
    settings: Settings, accelerator: Accelerator, stop: StopSignals, at_the_end: contextlib.ExitStack
) -> Path | None:
    """All of it, top to bottom, but for an update, which is [`Learner`]'s; `at_the_end` takes what is to be closed however it ends."""
    training, output_dir = settings.training, Path(settings.training.output_dir)
    rank, world_size, device = accelerator.process_index, accelerator.num_processes, accelerator.device
    is_main, batch_size = accelerator.is_main_process, training.train_batch_size

    # What is trained, on what, and how far it is.
    with setup_errors(settings):
        check_launch(settings, accelerator)
        method = make_method(settings)
        train_set, held_out = make_datasets(settings, method.num_clip_frames)
        validation_clips = whole_clips(held_out, training.num_validation_videos)
        normalizer = train_set.normalizer
        components = method.make_components(normalizer.largest_value)
        noise_scheduler = make_noise_scheduler(settings)
        make_pipeline(settings, components, noise_scheduler, normalizer)  # whatever does not fit shows now
        num_clips = count_clips(settings, train_set, world_size)
        teacher = make_teacher(method, accelerator) if settings.model.distill else None
        fingerprint = train_set.fingerprint + (f" and teacher {teacher.digest[:16]}" if teacher else "")
        progress = read_progress(
            settings,
            fingerprint=fingerprint,
            num_clips=num_clips,
            world_size=world_size,
            precision=accelerator.mixed_precision,
            depends_on_batch=method.depends_on_batch,
        )
        learner = Learner(method, accelerator, components, noise_scheduler, train_set, progress, teacher)
    pipeline = make_pipeline(settings, learner.sampled, noise_scheduler, normalizer)

    # Where it is saved, and told. From here on a signal leaves a checkpoint. (A refused push leaves no folder in the way.)
    with setup_errors(settings):
        on_all_or_none(accelerator, lambda: is_main and training.push_to_hub and check_hub(settings))
        folder = on_all_or_none(accelerator, lambda: RunFolder(settings, is_main_process=is_main))
    at_the_end.callback(folder.close)
    folder.keep(
        components=components,
        averaged=learner.averaged,
        optimizer=learner.optimizer,
        scaler=accelerator.scaler,
        pipeline=pipeline,
        progress=progress,
        fingerprint=fingerprint,
        num_clips=num_clips,
        world_size=world_size,
        precision=accelerator.mixed_precision,
    )
    if folder.is_finished:
        log(f"{output_dir} holds the finished pipeline: there is nothing left to do")
        if not (output_dir / CARD).exists():
            folder.write_card({}, None)
        return output_dir
    stop.watch(folder.save_now, is_first_process=is_main, deadline_seconds=training.max_stop_seconds - 2)
    trackers = Trackers(
        accelerator,
        names=[] if training.report_to == "none" else training.report_to.split(","),
        project=training.tracker_project_name,
        config=settings.as_dict(),
        run_id=f"{output_dir.name}-{hashlib.sha256(str(output_dir.resolve()).encode()).hexdigest()[:8]}",
    )
    at_the_end.callback(trackers.finish)
    announce(method, components, normalizer, num_clips, len(held_out), accelerator, progress)
    # Workers fill their queues first: what follows shows whether they keep up.
    timer = UpdateTimer(device, max(NUM_TIMED, 4 * settings.data.dataloader_num_workers))
    seconds_per_video, is_estimated = None, False
    if is_main:
        learner.sampled.eval()
        pipeline.to(device).set_progress_bar_config(disable=True)
        height, width = settings.size
        steps = training.validation_inference_steps
        log("measuring the time of a video, then of the first updates; the estimate follows")
        with setup_errors(settings):
            seconds_per_video = measure_sampling(pipeline, num_inference_steps=steps, height=height, width=width)
    accelerator.wait_for_everyone()

    step = progress.num_samples // (world_size * batch_size)
    batches = Batches(
        settings, train_set, accelerator, first_batch=step, stream_position=progress.stream_positions[rank]
    )
    at_the_end.callback(batches.close)
    failure, num_skipped_in_a_row = None, 0
    is_end = progress.update >= training.max_train_steps and not training.estimate  # only the pipeline is to be saved
    window: list[Part] = []  # what the next update is made of
    components.train()
    learner.meter.start()
    seconds_before, started = progress.seconds, time.perf_counter()

    def seconds() -> float:
        """Spent on training, in all starts together."""
        return seconds_before + time.perf_counter() - started

    def news() -> tuple[int, ...]:
        """What this process tells the others of an update: whether time is over, a signal, where its stream is."""
        is_late = seconds() > 60 * (training.max_train_minutes or math.inf) or (training.estimate and timer.is_done)
        return int(is_late), stop.number or 0, *batches.stream_position

    try:
        for step, batch in enumerate(() if is_end else learner.meter.wait(batches), step):
            # The numbers of these samples in the run, over all processes.
            first = (step * world_size + rank) * batch_size
            numbers = range(first, first + batch_size)
            window.append(Part(step, batch, numbers, sample_generators(training.seed, numbers, device)))
            learner.learn(window[-1])
            if not accelerator.sync_gradients:
                if stop.is_asked and world_size == 1:  # the update that was begun is made anew when training goes on
                    break
                continue

            num_samples = (step + 1) * world_size * batch_size
            update = learner.update(window, num_samples, seconds, news, changing=folder.changing())
            is_end = update.is_late
            if update.signals:
                stop.ask(max(update.signals))
            num_skipped_in_a_row = num_skipped_in_a_row + 1 if update.is_skipped else 0
            if update.is_skipped:
                which = f"stage {update.stage + 1} of " if update.stage else ""
                log(
                    f"warning: {which}update {progress.update + (not update.is_made)} skipped, since the {update.reason} is not"
                    f" finite: {num_skipped_in_a_row} in a row"
                )
            if num_skipped_in_a_row == training.max_skipped_updates:
                raise NotFiniteError(save_window(output_dir, window, progress.update + 1, rank))
            window = []
            timer.update()

            is_end = is_end or (progress.update >= training.max_train_steps and not training.estimate)
            is_last = is_end or bool(update.signals) or (stop.is_asked and world_size == 1)  # alike on all processes
            if is_main and not is_estimated and (timer.is_done or (is_last and timer.has_measured)):
                is_estimated = True
                estimate = make_estimate(settings, accelerator, pipeline, timer, seconds_per_video)
                for line in estimate.lines():
                    log(f"estimate  {line}")
                if estimate.is_cut_short and training.lr_scheduler in ("cosine", "linear"):
                    log(
                        f"warning: --lr_scheduler {training.lr_scheduler} falls over all --max_train_steps, and"
                        f" --max_train_minutes {training.max_train_minutes:g} ends training before: the learning rate is still"
                        f" high then. --max_train_steps {estimate.updates_in_time} would do"
                    )
            if update.is_made and (progress.update % training.logging_steps == 0 or is_end):
                values = learner.read_values(update)
                shown = {name: x for name, x in values.items() if "/" not in name}
                log(f"step {progress.update:>6}  " + "  ".join(f"{name} {x:.4g}" for name, x in shown.items()))
                trackers.log(values, progress.update)
                if train_set.num_broken:
                    log(f"warning: {train_set.num_broken} videos are broken inside; other clips stand in")
            if is_last:
                break
            if update.is_made and training.checkpointing_steps and progress.update % training.checkpointing_steps == 0:
                folder.save()
            if update.is_made and training.validation_steps and progress.update % training.validation_steps == 0:
                paused = time.perf_counter()
                if is_main and not training.estimate:
                    validate(settings, pipeline, validation_clips, progress.update, trackers, stop)
                accelerator.wait_for_everyone()
                timer.skip()
                learner.meter.skip(time.perf_counter() - paused)
                started += time.perf_counter() - paused
    except Exception as error:  # of the data, the memory, another process: what the last update left is still there
        failure = error

    stop.take_over()
    batches.close()  # a worker that dies from here on is of no interest
    stage = f"after {progress.update:,} of {training.max_train_steps:,} updates"
    if failure is not None and is_out_of_memory(failure):  # what was computed is in the way of saving
        batch = None
        traceback.clear_frames(failure.__traceback__)
        failure.__traceback__ = None
        components.zero_grad(set_to_none=True)
        window = [part.without_tensors() for part in window]
        folder.use_less_memory()
    if failure is not None or not is_end:  # interrupted
        where = folder.save_now() if progress.update or failure is None else "Nothing was trained."
        if failure is None:
            accelerator.wait_for_everyone()  # until the first has saved, or a launcher would end it with the others
        if failure is None or stop.is_asked:  # a signal that others followed at once looks like a failure here
            log(f"stopped {stage}. {where}")
            return None
        if is_out_of_memory(failure):
            hint = what_would_fit(failure, learner, window)
            raise TooLittleMemoryError(f"Memory has run out {stage}. {hint} {where}") from None
        if isinstance(failure, (DataError, NotFiniteError)):
            raise type(failure)(f"Training stopped {stage}: {failure} {where}") from failure
        log(f"training failed {stage}. {where}", is_for_all=True)
        raise failure

    if training.estimate:
        return None
    log(
        f"trained {progress.update:,} updates in {progress.seconds:.0f} s, {progress.update / progress.seconds:.2f} steps/s"
    )
    if is_main:
        folder.finish()  # before anything else can go wrong
        log(
            f"saved to {output_dir}: the averaged weights are"
            f' MCVDPipeline.from_pretrained("{output_dir}", variant="ema"), the raw ones those without variant'
            if learner.averaged is not None
            else f"saved to {output_dir}"
        )
        pictures = validate(settings, pipeline, validation_clips, progress.update, trackers, stop)
        folder.write_card(pictures, seconds_per_video and seconds_per_video.mean)
    accelerator.wait_for_everyone()
    return output_dir


@dataclass
class Part:
    """A batch of an update, and what came of it."""

    step: int
    batch: dict
    numbers: range
    generators: list[torch.Generator]
    drawn: TrainingWindow | None = None
    timesteps: torch.Tensor | None = None
    losses: torch.Tensor | None = None
    estimate: torch.Tensor | None = None

    def without_tensors(self) -> "Part":
        """The batch alone."""
        return replace(self, drawn=None, timesteps=None, losses=None, estimate=None)


@dataclass
class Update:
    """What came of an update."""

    stage: int  # the last one that was tried
    grad_norm: torch.Tensor
    reports: list[list[int]]  # of each process: are losses, is the gradient finite, is it late, a signal, its stream

    @property
    def is_skipped(self) -> bool:
        """Whether its last stage is."""
        return not all(report[0] and report[1] for report in self.reports)

    @property
    def is_made(self) -> bool:
        """Whether the optimizer has made a step."""
        return self.stage > 0 or not self.is_skipped

    @property
    def reason(self) -> str:
        """What is not finite."""
        bad = [str(process) for process, report in enumerate(self.reports) if not report[0]]
        return f"loss of process {', '.join(bad)}" if bad else "gradient"

    @property
    def is_late(self) -> bool:
        """Whether time is over: the first process's clock decides."""
        return bool(self.reports[0][2])

    @property
    def signals(self) -> list[int]:
        """Those that have come, to any process."""
        return [report[3] for report in self.reports if report[3]]

    @property
    def stream_positions(self) -> list[list[int]]:
        """Of each process: the pass of its stream, and batches in it."""
        return [report[4:] for report in self.reports]


class Learner:
    """
    What is trained: networks, their average, the optimizer, and how far they are. `learn` is forward and backward, `update` the steps
    of the optimizer.

    Args:
        method (`Method`): What the networks are, and which frames they are given.
        accelerator (`Accelerator`): Where they are trained.
        components (`torch.nn.ModuleDict`): The networks, by the names that they have in a pipeline; the denoiser comes first.
        noise_scheduler (`SchedulerMixin`): The noise of training.
        train_set (`Dataset`): What knows how clips are encoded.
        progress (`Progress`): How far it is; each update changes it.
        teacher (`Teacher`, *optional*): What is distilled.
    """

    def __init__(
        self,
        method: Method,
        accelerator: Accelerator,
        components: torch.nn.ModuleDict,
        noise_scheduler: SchedulerMixin,
        train_set: torch.utils.data.Dataset,
        progress: Progress,
        teacher: "Teacher | None" = None,
    ) -> None:
        settings = method.settings
        self.method, self.accelerator = method, accelerator
        self.noise_scheduler, self.train_set = noise_scheduler, train_set
        self.progress, self.components = progress, components.to(accelerator.device)
        self._teacher = teacher
        self.averaged, self._ema = make_average(settings, components)
        if settings.training.gradient_checkpointing:
            checkpoint_gradients(components)
        compile_networks(settings, components)
        self.optimizer = make_optimizer(settings, components)
        if settings.checkpoint is not None:
            load_training_tensors(settings.checkpoint, components, self.averaged, self.optimizer)
            if self._ema is not None:
                self._ema.optimization_step = progress.update
        self._lr_scheduler = make_lr_scheduler(settings, self.optimizer, progress.update)
        *self._wrapped, self._wrapped_optimizer = accelerator.prepare(*components.values(), self.optimizer)
        if accelerator.scaler is not None and progress.scaler:
            accelerator.scaler.load_state_dict(progress.scaler)
        self.meter = RunMeter(method, accelerator, components, noise_scheduler)

    @property
    def sampled(self) -> torch.nn.ModuleDict:
        """The networks that videos are made with: the average, if there is one."""
        return self.components if self.averaged is None else self.averaged

    def learn(self, part: Part, stage: int = 0) -> None:
        """Forward and backward: the gradient of a batch in one stage of an update."""
        method, accelerator, training = self.method, self.accelerator, self.method.settings.training
        unet, encoder = self._wrapped if len(self._wrapped) > 1 else (*self._wrapped, None)
        later = (stage,) if stage else ()  # which the first one's key has never had
        torch.manual_seed(keyed_seed(training.seed, DROPOUT_STREAM, part.step, accelerator.process_index, *later))
        video = self.train_set.encode(part.batch["video"].to(accelerator.device, non_blocking=True))
        clips = {**part.batch, "video": video}
        if stage == 0:  # which frames are given, and which learned
            drawn = method.draw(clips, part.generators)
        else:
            drawn = method.draw_next(part.drawn, clips, part.estimate)
        timesteps = self.draw_timesteps(len(video), part.generators)
        part.drawn, part.timesteps, part.losses, part.estimate = drawn, timesteps, None, None
        has_next = stage + 1 < method.num_stages
        with accelerator.accumulate(*self._wrapped):
            losses, part.estimate = self.losses(
                unet, encoder, drawn, timesteps, part.generators, with_estimate=has_next
            )
            num_learned = (drawn.roles == FrameRole.LATENT).any(dim=1).sum()  # all, unless a whole block is padding
            accelerator.backward(losses.sum() / num_learned.clamp(min=1))
        part.losses = losses.detach()
        self.meter.add(
            part.losses,
            noise_positions(self.noise_scheduler, timesteps),
            method.roles_in_time(drawn),
            drawn.segment_ids,
        )

    def draw_timesteps(self, batch_size: int, generators: Generators) -> torch.Tensor:
        """Noise levels of training, or of what is learned of a teacher."""
        model, training = self.method.settings.model, self.method.settings.training
        if self._teacher is not None:
            return draw_steps(
                self.noise_scheduler, batch_size, num_steps=model.distillation_steps, generator=generators
            )
        chances = {"mean": training.noise_level_mean, "std": training.noise_level_std}
        return draw_timesteps(self.noise_scheduler, batch_size, generator=generators, **chances)

    def losses(
        self,
        unet: torch.nn.Module,
        encoder: torch.nn.Module | None,
        drawn: TrainingWindow,
        timesteps: torch.Tensor,
        generators: Generators,
        *,
        with_estimate: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The loss of each clip, and, where a further stage learns from it, what the network takes the clips for."""
        model, training = self.method.settings.model, self.method.settings.training
        clip = {
            "video": drawn.video,
            "roles": drawn.roles,
            "timesteps": timesteps,
            "generator": generators,
            "frame_indices": drawn.frame_indices,
            "segment_ids": drawn.segment_ids,
        }
        if self._teacher is not None:
            losses = distillation_loss(
                unet,
                self._teacher.network,
                self._teacher.objective,
                self.noise_scheduler,
                **clip,
                num_steps=model.distillation_steps,
                largest_value=self.train_set.normalizer.largest_value,
            )
            return losses, None
        found = denoising_loss(
            unet,
            self.noise_scheduler,
            **clip,
            context=self.method.encode(encoder, drawn),
            loss_type=training.loss_type,
            reduction=training.loss_reduction,
            min_snr_gamma=training.min_snr_gamma,
            observed_noise=model.observed_noise,
            return_estimate=with_estimate,
        )
        return found if with_estimate else (found, None)

    def update(
        self,
        window: list[Part],
        num_samples: int,
        seconds: Callable[[], float],
        news: Callable[[], tuple[int, ...]],
        *,
        changing: contextlib.AbstractContextManager,
    ) -> Update:
        """
        The steps of the optimizer that batches of which the first stage was learned make: one for each stage, on all processes or on
        none. Further stages learn from what the network made in those before; what was made stays if one of them is skipped.

        Args:
            window (`list[Part]`): The batches.
            num_samples (`int`): Samples of the run, with these.
            seconds (`Callable`): Time that the run has taken.
            news (`Callable`): What this process tells the others in each stage, in the order of `Update.reports`.
            changing (`AbstractContextManager`): Entered as long as the state is that of no update.
        """
        accelerator, progress = self.accelerator, self.progress
        with contextlib.ExitStack() as until_changed:
            for stage in range(self.method.num_stages):
                for part in window if stage else ():
                    self.learn(part, stage)
                max_grad_norm = self.method.settings.training.max_grad_norm
                grad_norm = accelerator.clip_grad_norm_(self.components.parameters(), max_grad_norm)
                are_losses_finite = torch.stack([part.losses.isfinite().all() for part in window]).all()
                reports = exchange(accelerator, are_losses_finite, grad_norm.isfinite(), *news())
                update = Update(stage, grad_norm, reports)
                if stage == 0:  # from here on the state is that of no update
                    until_changed.enter_context(changing)
                if not update.is_skipped:
                    self._wrapped_optimizer.step()
                elif accelerator.scaler is not None:
                    accelerator.scaler.update()  # to a smaller scale
                self._wrapped_optimizer.zero_grad()
                if update.is_skipped:
                    break
            if update.is_made:
                self._lr_scheduler.step()
                if self._ema is not None:
                    move_average(self._ema, self.averaged, self.components)
                progress.update += 1
            progress.num_skipped += update.is_skipped
            progress.num_samples, progress.seconds = num_samples, seconds()
            progress.stream_positions = update.stream_positions
        return update

    def read_values(self, update: Update) -> dict[str, float]:
        """What the log says after an update; the meter begins anew."""
        values = self.meter.read() | {
            "grad_norm": float(update.grad_norm),
            "learning_rate": self._lr_scheduler.get_last_lr()[0],
            "skipped_updates": self.progress.num_skipped,
        }
        return values if self._ema is None else values | {"ema_decay": self._ema.cur_decay_value}


class RunMeter(LossMeter):
    """Losses and speed since the last line of the log."""

    def __init__(
        self, method: Method, accelerator: Accelerator, components: torch.nn.ModuleDict, noise_scheduler
    ) -> None:
        super().__init__(num_train_timesteps=noise_scheduler.config.num_train_timesteps, device=accelerator.device)
        self._accelerator, self._components, self._method = accelerator, components, method
        self._flops_per_window = self._flops_at_most = None
        self.start()

    def start(self) -> None:
        """Speed is measured from here on."""
        self._num_windows, self._seconds_waited, self._since = 0, 0.0, time.perf_counter()

    def wait(self, batches: Iterable) -> Iterator:
        """The batches; how long each was waited for is measured."""
        batches = iter(batches)
        while True:
            begun = time.perf_counter()
            try:
                batch = next(batches)
            except StopIteration:
                return
            self._seconds_waited += time.perf_counter() - begun
            yield batch

    def add(self, losses: torch.Tensor, *args) -> None:
        super().add(losses, *args)
        self._num_windows += len(losses) * self._accelerator.num_processes

    def skip(self, seconds: float) -> None:
        """So much time was not training."""
        self._since += seconds

    def read(self) -> dict[str, float]:
        """The values, on all processes; then all begins anew."""
        seconds = time.perf_counter() - self._since
        windows_per_second = self._num_windows / seconds
        if self._flops_per_window is None:
            types = {"bf16": torch.bfloat16, "fp16": torch.float16}
            kind = types.get(self._accelerator.mixed_precision, torch.float32)
            height, width = self._method.settings.size
            num_frames = self._method.num_seen_frames
            unet, encoder = (dict(self._components.items()).get(name) for name in ("unet", "context_encoder"))
            self._flops_per_window = training_flops(
                unet, height=height, width=width, num_frames=num_frames, context_encoder=encoder
            )
            model = self._method.settings.model
            if model.distill:
                self._flops_per_window *= relative_cost(model.distillation_steps)
            self._flops_at_most = peak_flops(self._accelerator.device, kind) * self._accelerator.num_processes
        values = self.mean(self._accelerator) | {
            "clips_per_second": windows_per_second / self._method.num_stages,
            "waiting_for_data": self._seconds_waited / seconds,
            "flops_utilisation": windows_per_second * self._flops_per_window / self._flops_at_most,
        }
        self.start()
        return values


def check_launch(settings: Settings, accelerator: Accelerator) -> None:
    """Refuse ways of distributing the state that cannot be saved here, and processes that would go on from different ones."""
    kind = accelerator.distributed_type
    if kind in (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM):
        raise ValueError(
            f"{kind.value} divides the state of the training among processes, and neither its checkpoints nor its average of the"
            " weights have been verified here: launch with --multi_gpu, which keeps a copy in each process (16 bytes a"
            " parameter with the average: 12 GB for the largest published model)."
        )
    found = gather_object([str(settings.checkpoint)]) if accelerator.num_processes > 1 else []
    if len(set(found)) > 1:
        raise ValueError(f"--resume_from_checkpoint: the processes found different checkpoints, {sorted(set(found))}.")


def count_clips(settings: Settings, train_set: torch.utils.data.Dataset, world_size: int) -> int | None:
    """Clips of an epoch, `None` for a stream. Each process must get a batch."""
    if isinstance(train_set, StreamingClips):
        return None
    batch_size = settings.training.train_batch_size
    if len(train_set) < batch_size * world_size:
        raise ValueError(
            f"--train_batch_size: {batch_size} clips on each of {world_size} processes are more than the {len(train_set)}"
            f" training clips of an epoch. Choose at most {len(train_set) // world_size}, or take more than one clip of each"
            " video: --clip_step."
        )
    return len(train_set)


@dataclass
class Teacher:
    """A network that is distilled, what it predicts, and a digest of its weights, by which a run knows it again."""

    network: torch.nn.Module
    objective: Objective
    digest: str


def make_teacher(method: Method, accelerator: Accelerator) -> Teacher:
    """The pretrained network; in the precision in which Accelerate runs the student."""
    source = method.settings.model.pretrained_model_name_or_path
    network = method.network_class.from_pretrained(source, subfolder="unet", variant=method.settings.model.variant)
    objective, digest = (
        objective_of(DDPMScheduler.from_pretrained(source, subfolder="scheduler")),
        weights_digest(network.state_dict()),
    )
    network = network.to(accelerator.device).requires_grad_(False).eval()
    # Its batch is what is still on the way to clean frames: None lets torch find that out.
    compile_networks(method.settings, torch.nn.ModuleDict({"unet": network}), dynamic=None)
    network.forward = accelerator.autocast()(network.forward)
    return Teacher(network, objective, digest)


def make_optimizer(settings: Settings, components: torch.nn.ModuleDict) -> torch.optim.Optimizer:
    """The optimizer of the parameters of all that is trained."""
    training = settings.training
    return torch.optim.AdamW(
        components.parameters(),
        lr=training.learning_rate,
        betas=(training.adam_beta1, training.adam_beta2),
        eps=training.adam_epsilon,
        weight_decay=training.adam_weight_decay,
        fused=True,  # one pass over weights, gradients and moments
    )


def compile_networks(settings: Settings, components: torch.nn.ModuleDict, *, dynamic: bool | None = False) -> None:
    """As the settings say; in place, so that the names of the weights stay. The shapes of what is trained never change."""
    for module in components.values():
        if settings.training.compile == "blocks":
            module.compile_repeated_blocks(dynamic=dynamic)
        elif settings.training.compile == "whole":
            module.compile(dynamic=dynamic)


def checkpoint_gradients(components: torch.nn.ModuleDict) -> None:
    """Trade time for memory."""
    for module in components.values():
        module.enable_gradient_checkpointing()


def make_average(
    settings: Settings, components: torch.nn.ModuleDict
) -> tuple[torch.nn.ModuleDict | None, EMAModel | None]:
    """Networks that hold the moving average of others' weights, and what moves it."""
    training = settings.training
    if not training.use_ema:
        return None, None
    # Diffusers' average copies the weights at its first step and lets the decay grow; with a constant decay from
    # the very first update, it is the original's. Its rule is taken, for the decay; the weights are moved below.
    constant = {} if training.ema_warmup else {"min_decay": training.ema_decay, "update_after_step": -1}
    ema = EMAModel([], decay=training.ema_decay, **constant)
    return copy.deepcopy(components).requires_grad_(False).eval(), ema


@torch.no_grad()
def move_average(ema: EMAModel, averaged: torch.nn.ModuleDict, components: torch.nn.ModuleDict) -> None:
    """A step of the average, in one pass over the weights, where `EMAModel.step` makes two and a copy of them all."""
    ema.optimization_step += 1
    ema.cur_decay_value = ema.get_decay(ema.optimization_step)
    torch._foreach_lerp_(list(averaged.parameters()), list(components.parameters()), 1 - ema.cur_decay_value)


def make_lr_scheduler(
    settings: Settings, optimizer: torch.optim.Optimizer, num_updates: int
) -> torch.optim.lr_scheduler.LRScheduler:
    """
    The learning rate after so many updates, and from then on. Not to be prepared by Accelerate, which would step it once for
    each process: here a step is an update.
    """
    training = settings.training
    for group in optimizer.param_groups:
        group["initial_lr"] = training.learning_rate
    return get_scheduler(
        training.lr_scheduler,
        optimizer,
        num_warmup_steps=training.lr_warmup_steps,
        num_training_steps=training.max_train_steps,
        last_epoch=num_updates - 1,
    )


def on_all_or_none(accelerator: Accelerator, make: Callable):
    """What `make` returns; if it fails on one process, it does on all, instead of leaving them waiting for each other."""
    made = error = None
    try:
        made = make()
    except (ValueError, OSError) as caught:
        error = caught
    if any(failed for (failed,) in exchange(accelerator, error is not None)):
        raise error or ValueError("another process could not begin: its message says why")
    return made


def exchange(accelerator: Accelerator, *numbers: int | bool | torch.Tensor) -> list[list[int]]:
    """What each process has to say, on all of them."""
    row = torch.tensor([[int(number) for number in numbers]], device=accelerator.device)
    return accelerator.gather(row).tolist()


def announce(
    method: Method,
    components: torch.nn.ModuleDict,
    normalizer: FrameNormalizer,
    num_clips: int | None,
    num_held_out: int,
    accelerator: Accelerator,
    progress: Progress,
) -> None:
    """The first lines of the log: what is trained on what."""
    settings = method.settings
    training, data, world_size = settings.training, settings.data, accelerator.num_processes
    clips = "streamed" if num_clips is None else f"{num_clips:,} an epoch"
    windows = ""
    if method.num_seen_frames < method.num_clip_frames:
        windows = f" of which the network sees {method.num_seen_frames} at a time,"
    elif method.num_seen_frames > method.num_clip_frames:
        windows = f" with {method.num_seen_frames - method.num_clip_frames} images beside each,"
    log(
        f"{data.train_data_dir or data.dataset_name or 'moving digits'}: clips of {method.num_clip_frames} frames,{windows}"
        f" {settings.size[0]}x{settings.size[1]} pixels, {components['unet'].config.in_channels} channel(s), {clips},"
        f" {num_held_out:,} held out"
    )
    if normalizer != FrameNormalizer():
        log(f"values: {normalizer}")
    log(
        f"{sum(parameter.numel() for parameter in components.parameters()):,} parameters, {training.max_train_steps:,} updates of"
        f" {training.train_batch_size * world_size * training.gradient_accumulation_steps} clips"
        f" on {world_size} x {accelerator.device.type}"
    )
    if settings.checkpoint is not None:
        log(f"going on from {settings.checkpoint}: {progress.update:,} updates, {progress.num_samples:,} clips")
        if changes := version_changes(settings.checkpoint):
            log(f"warning: not with what it was made with, so that rounding may differ: {', '.join(changes)}")
    elif training.resume_from_checkpoint is not None:
        log(f"there is no checkpoint in {training.output_dir} yet: beginning")


def save_window(output_dir: Path, window: list[Part], update: int, rank: int) -> str:
    """Saves the clips whose loss is not finite, or all of an update whose gradient is not; says where."""
    names = (
        f"not-finite-update-{update}-process-{rank}{end}.safetensors"
        for end in ("", *map("-{}".format, range(2, 10**6)))
    )
    path = next(output_dir / name for name in names if not (output_dir / name).exists())
    rows = [
        {
            "video": part.batch["video"],
            "roles": part.drawn.roles,
            "timesteps": part.timesteps,
            "samples": part.numbers,
            "losses": part.losses,
        }
        for part in window
    ]
    tensors = {name: torch.cat([torch.as_tensor(row[name]).cpu() for row in rows]) for name in rows[0]}
    is_bad = ~tensors["losses"].isfinite()
    if is_bad.any():
        tensors = {name: x[is_bad] for name, x in tensors.items()}
    try:
        save_file({name: x.contiguous() for name, x in tensors.items()}, path)
        saved = f"The clips are in {path}."
    except Exception as error:  # what matters more is said all the same
        saved = f"The clips could not be saved: {error}."
    return (
        "its last updates had losses or gradients that are not finite: it has diverged, or the data are damaged. Lower"
        " --learning_rate, lengthen --lr_warmup_steps, or use --mixed_precision bf16 instead of fp16"
        f" (--max_skipped_updates says how many in a row are put up with). {saved}"
    )


def what_would_fit(failure: Exception, learner: Learner, window: list[Part]) -> str:
    """What memory has run out for, and the largest batch that it suffices for, which is tried."""
    method, accelerator, components = learner.method, learner.accelerator, learner.components
    settings, training, device = method.settings, method.settings.training, accelerator.device
    reason = first_line(failure)
    has_moments = bool(learner.optimizer.state)
    tried = (
        f"--train_batch_size {training.train_batch_size} clips of {method.num_seen_frames} frames of"
        f" {settings.size[0]}x{settings.size[1]} pixels"
    )
    if not window:
        return f"Tried: {tried} ({reason})."
    batch = window[-1].batch
    components.zero_grad(set_to_none=True)
    parameters = list(components.parameters())
    encoder = components["context_encoder"] if "context_encoder" in components else None

    def attempt(num_clips: int) -> None:
        moments = [] if has_moments else [torch.empty_like(x) for x in parameters for _ in range(2)]
        spare = torch.empty(SPARE_BYTES, dtype=torch.uint8, device=device)  # a run needs a little more than one try
        generator, estimate, drawn = torch.Generator(device).manual_seed(0), None, None
        clips = {name: x[:num_clips] for name, x in batch.items()}
        clips["video"] = learner.train_set.encode(clips["video"].to(device))
        for stage in range(method.num_stages):
            drawn = method.draw(clips, generator) if stage == 0 else method.draw_next(drawn, clips, estimate)
            timesteps, has_next = learner.draw_timesteps(num_clips, generator), stage + 1 < method.num_stages
            with accelerator.autocast():
                losses, estimate = learner.losses(
                    components["unet"], encoder, drawn, timesteps, generator, with_estimate=has_next
                )
            torch.autograd.grad(losses.sum(), parameters, allow_unused=True)
        del clips, drawn, moments, spare

    ways = []
    for more in ("",) if training.gradient_checkpointing else ("", "--gradient_checkpointing True "):
        if more:
            checkpoint_gradients(components)
        if fits := largest_batch_that_fits(attempt, training.train_batch_size):
            steps = training.train_batch_size // fits * training.gradient_accumulation_steps
            ways.append(f"{more}--train_batch_size {fits} --gradient_accumulation_steps {steps}")
    found = (
        f"This fits: {'; or '.join(ways)}." if ways else "Not even one clip fits: choose a smaller network or frames."
    )
    return f"Tried: {tried} ({reason}). {found}"


def make_estimate(
    settings: Settings, accelerator: Accelerator, pipeline: MCVDPipeline, timer: UpdateTimer, seconds_per_video: Spread
) -> CostEstimate:
    """What the run will cost, from what was measured so far."""
    training, unet = settings.training, pipeline.unet
    num_validations = (
        1 + (training.max_train_steps - 1) // training.validation_steps if training.validation_steps else 1
    )
    num_tasks = len(validation_tasks(pipeline))
    trained = torch.nn.ModuleList([x for x in (unet, pipeline.context_encoder) if x is not None])
    network_bytes = sum(tensor.numel() * tensor.element_size() for tensor in trained.state_dict().values())
    pipeline_bytes = network_bytes * (1 + training.use_ema)
    return CostEstimate(
        num_parameters=sum(parameter.numel() for parameter in trained.parameters()),
        num_updates=training.max_train_steps,
        seconds_per_update=timer.seconds_per_update,
        seconds_per_video=seconds_per_video,
        sampler=f"{training.validation_inference_steps} steps of {training.sampling_scheduler}",
        num_validation_videos=num_validations * num_tasks * training.num_validation_videos,
        pipeline_bytes=pipeline_bytes,
        checkpoint_bytes=pipeline_bytes + 2 * network_bytes,  # Adam's two moments
        memory_bytes=peak_memory(accelerator.device),
        device=accelerator.device,
        num_processes=accelerator.num_processes,
        max_seconds=60 * (training.max_train_minutes or math.inf),
    )


def validate(
    settings: Settings, pipeline: MCVDPipeline, clips: list[dict], update: int, trackers: Trackers, stop: StopSignals
) -> dict[str, Path]:
    """Make videos of held-out clips, and tell how good they are: what they show -> file. If that fails, training goes on."""
    training = settings.training
    if not clips:
        return {}
    try:
        result = make_validation_videos(
            pipeline,
            clips,
            num_inference_steps=training.validation_inference_steps,
            folder=Path(training.output_dir) / "samples" / f"step-{update}",
            is_stop_asked=lambda: stop.is_asked,
        )
    except Exception as error:  # a full disk, or no memory
        log(f"warning: there are no validation videos of update {update}: {type(error).__name__}: {error}")
        return {}
    for line in result.lines:
        log(f"step {update:>6}  {line}")
    trackers.log(result.values, update)
    trackers.log_videos(result.files, update)
    return {f"{name.split('/')[-1].replace('_', ' ')} of held-out clips": path for name, path in result.files.items()}


def check_hub(settings: Settings) -> None:
    """
    Whether what is trained could be pushed, before long work starts. A Hub that cannot be reached is no reason not to train;
    nor is anything else once there is a checkpoint: a run that goes on must not end on a token that has expired since.
    """
    refusals = (PushError,) if settings.checkpoint is None else (PushError, ValueError)
    try:
        check_repository(settings.hub_model_id, private=settings.training.hub_private_repo or None, waits=())
    except refusals as error:
        log(f"warning: {error} It will be tried again when training is over.")


def push(settings: Settings, folder: Path) -> None:
    """Push a finished pipeline. If that fails, it is told how to do it later."""
    try:
        url = push_folder(folder, settings.hub_model_id, private=settings.training.hub_private_repo or None)
        log(f"pushed to {url}")
    except Exception as error:  # whatever the network does: what was trained is there
        private = ["--private"] if settings.training.hub_private_repo else []
        command = shlex.join(["mcvd-diffusers", "push", str(folder), settings.hub_model_id, *private])
        log(f"warning: not pushed: {first_line(error)} All of it is in {folder}. Push it with: {command}")


def log(message: str, is_for_all: bool = False) -> None:
    """A line of the log, by the first process, or by all."""
    logger.info(message, main_process_only=not is_for_all)


if __name__ == "__main__":
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S", level=logging.INFO)
    # These log addresses of uploads, which are signed: whoever reads one could write there.
    for library in ("httpx", "httpx2", "httpcore", "huggingface_hub"):
        logging.getLogger(library).setLevel(logging.WARNING)
    with StopSignals() as stop:
        try:
            settings = parse_args()
            folder = main(settings, stop)
        except (SetupError, DataError, NotFiniteError, TooLittleMemoryError, SaveError) as error:
            sys.exit(f"train_mcvd.py: error: {error}")
    if folder is None:
        sys.exit(stop.exit_code)
    if settings.training.push_to_hub and PartialState().is_main_process:  # signals have their usual meaning again
        push(settings, folder)
