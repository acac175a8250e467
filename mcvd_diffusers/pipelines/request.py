"""A call of the pipeline, checked whole before the first network call, and what is to be done."""

import copy
import inspect
import itertools
import math
import numbers
import reprlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils import logging

from mcvd_diffusers.frame_plans import FramePlan
from mcvd_diffusers.frame_schedules import (
    ADAPTIVE_FRAME_SCHEDULES,
    FRAME_SCHEDULES,
    MOST_PLANNED_FRAMES,
    Window,
    autoregressive,
    blocks,
    frame_schedule,
    schedule_name,
)
from mcvd_diffusers.guidance import check_guider
from mcvd_diffusers.masking import FrameRole
from mcvd_diffusers.randomness import NoiseSequence

from .frame_inputs import Frames, read_frames
from .rollout import Layout, lay_out


logger = logging.get_logger(__name__)

REPLACEMENTS = ("noised", "clean")
MOST_GUIDANCE = 1e6
CALLBACK_INPUTS = ["latents"]

# A frame schedule whose windows depend on finished frames: of a distance between two of them, it makes windows.
AdaptiveSchedule = Callable[[Callable[[int, int], float]], Iterator[Window]]


@dataclass
class Request:
    """One validated call of the pipeline."""

    windows: list[Window] | Iterator[Window] | None  # None: adaptive
    adaptive: AdaptiveSchedule | None
    num_windows: int | None  # None: no end, or not known before
    batches: list[list[int]] | None  # of a list: which windows are made together
    memory: int | None  # newest frames that are kept, if it is no list
    is_in_time_order: bool  # whether a stream waits for frames before those that are finished
    lay_out: Callable[[Window], Layout]
    # Where a window's noise begins in the caller's `latents`: window after window, or so many frames for each.
    offsets: list[int] | None
    num_latents: int
    given: dict[int, torch.Tensor]  # position -> (num_videos, C, H, W) in [-1, 1]
    as_given: dict[int, torch.Tensor]  # position -> (batch, C, H, W) in [0, 1] or the user's units
    low_resolution: dict[int, torch.Tensor]  # position -> (num_videos, C, h, w) in [-1, 1]
    batch_size: int  # input videos
    ensemble_size: int
    frame_shape: tuple[int, int, int]
    # (seed of the video, number of the ensemble member), one for each output video; or one stream for all of them
    seeds: list[tuple[int, int]] | NoiseSequence
    generator_device: torch.device
    latents: torch.Tensor | None
    max_batch_size: int | None
    frame_embedding: Callable | None
    step_options: dict = field(default_factory=dict)  # what `denoise` takes

    @property
    def num_videos(self) -> int:
        """Output videos: each input video, `ensemble_size` times."""
        return self.batch_size * self.ensemble_size

    def noise_of(self, number: int, rows: slice) -> torch.Tensor | None:
        """The caller's initial noise for a window, of some of its videos."""
        if self.latents is None:
            return None
        start = number * self.num_latents if self.offsets is None else self.offsets[number]
        stop = start + self.num_latents if self.offsets is None else self.offsets[number + 1]
        return self.latents[rows, start:stop]


def read_request(
    pipe,
    *,
    past_frames: Frames | None = None,
    future_frames: Frames | None = None,
    num_frames: int | None = None,
    observed_frames: Frames | None = None,
    observed_positions: Sequence[int] | None = None,
    batch_size: int | None = None,
    height: int | None = None,
    width: int | None = None,
    num_inference_steps: int = 100,
    timesteps: list[int] | None = None,
    sigmas: list[float] | None = None,
    eta: float = 0.0,
    guidance_scale: float = 1.0,
    history_guidance: list[tuple[list[int] | None, float]] | None = None,
    frame_schedule: str | list[Window] | FramePlan | None = None,
    max_frames: int | None = None,
    step: int | None = None,
    max_parallel_windows: int = 1,
    frame_embedding: Callable | None = None,
    replacement: str | dict[str, str] | None = None,
    num_resamples: int = 1,
    reconstruction_guidance: float | None = None,
    low_resolution_frames: Frames | None = None,
    super_resolution_guidance: float = 1.0,
    ensemble_size: int = 1,
    generator: torch.Generator | list[torch.Generator] | NoiseSequence | None = None,
    latents: torch.Tensor | None = None,
    final_denoise: bool | None = None,
    cache_conditioning: bool = True,
    max_batch_size: int | None = None,
    output_type: str = "pil",
    callback_on_step_end: Callable | PipelineCallback | MultiPipelineCallbacks | None = None,
    callback_on_step_end_tensor_inputs: list[str] = ["latents"],
    endless: bool = False,
) -> Request:
    """Check a call whole, and say what is to be done. The arguments are those of the pipeline's `__call__` and `stream`."""
    config = pipe.unet.config
    for name, value in (
        ("num_frames", num_frames),
        ("batch_size", batch_size),
        ("height", height),
        ("width", width),
        ("num_inference_steps", num_inference_steps),
        ("max_frames", max_frames),
        ("step", step),
        ("max_parallel_windows", max_parallel_windows),
        ("num_resamples", num_resamples),
        ("ensemble_size", ensemble_size),
        ("max_batch_size", max_batch_size),
    ):
        is_optional = name not in ("num_inference_steps", "ensemble_size", "max_parallel_windows", "num_resamples")
        if value is None and is_optional:
            continue
        if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or value < 1:
            raise ValueError(f"`{name}` must be a positive integer, got {value!r}.")
    num_frames, batch_size, height, width, max_frames, step, max_batch_size = (
        None if value is None else int(value)
        for value in (num_frames, batch_size, height, width, max_frames, step, max_batch_size)
    )
    ensemble_size, num_resamples, max_parallel_windows = map(int, (ensemble_size, num_resamples, max_parallel_windows))
    if num_resamples > 1000:
        raise ValueError(
            f"`num_resamples` must be at most 1000, got {num_resamples}: it is how often each step is made."
        )
    if frame_embedding is not None and not callable(frame_embedding):
        raise ValueError(f"`frame_embedding` must be a function of a frame, got {type(frame_embedding).__name__}.")
    if num_inference_steps > config.num_train_timesteps:
        raise ValueError(
            f"`num_inference_steps` must be at most {config.num_train_timesteps}, the timesteps of this network's"
            f" training, got {num_inference_steps}."
        )
    if output_type not in ("pil", "np", "pt", "latent"):
        raise ValueError(f'`output_type` must be "pil", "np", "pt" or "latent", got {output_type!r}.')
    num_channels = pipe.normalizer.num_channels(config.in_channels)
    if output_type == "pil" and num_channels not in (1, 3, 4):
        raise ValueError(f'`output_type="pil"`: frames of {num_channels} channels are no images; use "np" or "pt".')
    if isinstance(callback_on_step_end, (PipelineCallback, MultiPipelineCallbacks)):
        callback_on_step_end_tensor_inputs = callback_on_step_end.tensor_inputs
    is_list = isinstance(callback_on_step_end_tensor_inputs, (list, tuple))
    unknown = [x for x in callback_on_step_end_tensor_inputs if x not in CALLBACK_INPUTS] if is_list else []
    if unknown or not is_list:
        raise ValueError(
            f"`callback_on_step_end_tensor_inputs` has to be in {CALLBACK_INPUTS}, got"
            f" {callback_on_step_end_tensor_inputs!r}."
        )
    if callback_on_step_end is not None and not callable(callback_on_step_end):
        raise ValueError(
            "`callback_on_step_end` must be a function (pipe, step, timestep, kwargs), got"
            f" {type(callback_on_step_end).__name__}."
        )
    final_denoise = pipe.config.final_denoise if final_denoise is None else final_denoise
    if not isinstance(final_denoise, (bool, np.bool_)):
        raise ValueError(f"`final_denoise` must be True or False, got {final_denoise!r}.")

    # Frames that are given, and where.
    is_scattered = observed_frames is not None
    if is_scattered and (past_frames is not None or future_frames is not None):
        raise ValueError(
            "`observed_frames` are all frames that are given, wherever they are: leave out `past_frames` and `future_frames`."
        )
    if is_scattered == (observed_positions is None):
        raise ValueError("`observed_frames` and `observed_positions` go together: one position for each frame.")
    read = partial(read_frames, num_channels=num_channels, normalizer=pipe.normalizer)
    frames = {
        name: read(name, value, most=None if name == "observed_frames" else config.get(f"num_{name}"))
        for name, value in (
            ("past_frames", past_frames),
            ("future_frames", future_frames),
            ("observed_frames", observed_frames),
        )
        if value is not None
    }
    asked_batch_size = batch_size
    batch_size, height, width = _check_geometry(config, frames, batch_size, height, width)
    if is_scattered:
        positions = _check_positions(observed_positions, frames["observed_frames"].shape[1], num_frames)
        total = len(positions) + num_frames if num_frames is not None else positions[-1] + 1
        if total == len(positions):
            raise ValueError(
                f"`num_frames`: the {total} frames that are given are the first {total} of the video, so that none would be"
                " made; say how many."
            )
        as_given = dict(zip(map(int, observed_positions), frames["observed_frames"].unbind(dim=1)))
    else:
        num_past, num_future = (
            frames[name].shape[1] if name in frames else 0 for name in ("past_frames", "future_frames")
        )
        size = config.num_frames if "num_past_frames" in config else max(1, config.max_frames - num_past - num_future)
        num_frames = num_frames or size
        total = num_past + num_frames + num_future
        positions = [*range(num_past), *range(total - num_future, total)]
        as_given = dict(zip(positions, itertools.chain(*(x.unbind(dim=1) for x in frames.values()))))

    # How they enter the network.
    replacement = pipe.config.replacement if replacement is None else replacement
    _check_replacement(replacement)
    if reconstruction_guidance is None:
        reconstruction_guidance = pipe.config.reconstruction_guidance if positions else 0.0
    for name, value in (
        ("reconstruction_guidance", reconstruction_guidance),
        ("super_resolution_guidance", super_resolution_guidance),
    ):
        if not is_number(value) or not 0 <= value <= MOST_GUIDANCE:
            raise ValueError(f"`{name}` must be a number from 0 to {MOST_GUIDANCE:g}, got {reprlib.repr(value)}.")
    if final_denoise and (replacement is not None or low_resolution_frames is not None):
        raise ValueError(
            "`final_denoise` tells the network a noise level that is not that of the frames, so that given ones cannot be put in"
            " at it: leave it out with `replacement` or `low_resolution_frames`."
        )
    if reconstruction_guidance and (replacement is None or "clean" in _sides(replacement).values()):
        raise ValueError(
            f"`reconstruction_guidance` is {reconstruction_guidance}: it compares given frames with what the network takes"
            ' noisy ones for, so they must enter by `replacement="noised"`, or {"future": "noised"} for some of them; got'
            f" {replacement!r}."
        )
    low_resolution = None
    if low_resolution_frames is not None:
        low_resolution = _check_low_resolution(
            read("low_resolution_frames", low_resolution_frames, most=None),
            num_missing=total - len(positions),
            batch_size=batch_size if frames else asked_batch_size,
            size=(height, width),
        )
        batch_size = len(low_resolution)
    uses_gradient = bool(reconstruction_guidance) or low_resolution is not None
    if uses_gradient and pipe.guider is not None:
        raise ValueError(
            "`reconstruction_guidance` and `low_resolution_frames` do not go with the pipeline's `guider`."
        )

    if uses_gradient and torch.is_inference_mode_enabled():
        raise ValueError(
            "`reconstruction_guidance` or `low_resolution_frames` needs a gradient through the network, which"
            " torch.inference_mode() forbids: call the pipeline outside of it (it computes no other gradients)."
        )
    if uses_gradient and any(parameter.element_size() == 1 for parameter in pipe.unet.parameters()):
        raise ValueError(
            "`reconstruction_guidance` or `low_resolution_frames` needs a gradient through the network, whose weights are stored"
            " in 8 bits (`enable_layerwise_casting`) and gone by then: leave that out."
        )

    # Windows
    if endless and (is_scattered or frame_schedule is not None or low_resolution is not None):
        raise ValueError(
            "A stream without an end has neither a `frame_schedule` nor frames at positions: pass `num_frames`."
        )
    plan = _plan_windows(
        pipe,
        None if endless else total,
        positions,
        frame_schedule,
        max_frames,
        step,
        may_replace=replacement is not None,
    )
    # Schedules that go on without a list run forwards, and the first window reads least.
    checked = plan.windows if isinstance(plan.windows, list) else []
    if plan.windows is not None and not checked:
        checked = [next(plan.windows)]
        plan.windows = itertools.chain(checked, plan.windows)
    layouts = [plan.lay_out(window) for window in checked]
    is_open = not isinstance(plan.windows, list) and plan.num_windows != 1  # later windows read what the first made
    _check_guidance_scale(pipe, guidance_scale, history_guidance, replacement)
    if positions and checked and not any(window.observed for window in checked) and not plan.reads_nothing:
        raise ValueError(
            f"`step` and `max_frames` leave no place for given frames: windows make {max(len(x.latent) for x in checked)} frames"
            " each. Choose a smaller `step`."
        )
    is_guided = guidance_scale != 1 or pipe.guider is not None or bool(history_guidance)
    if "num_past_frames" in config:
        _check_masks(pipe, checked, layouts, as_given, is_guided, replacement, is_open=is_open)
    else:
        _check_observed(config, layouts, is_guided, replacement, is_open=is_open, is_given=bool(positions))
        if is_guided and not pipe.unet.keeps_segments_apart:
            _check_histories_of_volumes(layouts, history_guidance)
    if history_guidance is not None:
        most = config.get("max_frames") or config.num_past_frames + config.num_future_frames
        if isinstance(plan.windows, list):
            most = max((len(window.observed) for window in plan.windows), default=0)
        missing = [x for numbers, _ in history_guidance for x in numbers or () if not -most <= x < most]
        if missing:
            raise ValueError(
                f"`history_guidance` names frames {missing}, but windows read at most {most} given frames: numbers are from 0 to"
                f" {most - 1}, or from -1 to {-most} counted from the last."
            )
    batches = None
    if max_parallel_windows > 1:
        batches = _parallel_windows(plan, total, positions, max_parallel_windows)

    # Sampler
    if timesteps is not None and sigmas is not None:
        raise ValueError("`timesteps` and `sigmas` both say which steps to take: pass one of them.")
    if not is_number(eta) or not 0 <= eta <= 1:
        raise ValueError(f"`eta` must be a number in [0, 1], got {eta!r}.")
    if eta > 0 and "eta" not in inspect.signature(pipe.scheduler.step).parameters:
        raise ValueError(f"`eta` is {eta}, but {type(pipe.scheduler).__name__} does not know it: leave it at 0.")
    if pipe.unet.training and config.dropout > 0:
        logger.warning("The network is in training mode, so its dropout is active: call `pipe.unet.eval()`.")
    if guidance_scale != 1 and plan.num_windows == 1 and not positions:
        logger.warning("`guidance_scale` changes nothing here: no frames are given, and only one block is made.")
    options = {"num_inference_steps": int(num_inference_steps), "timesteps": timesteps, "sigmas": sigmas}
    steps = check_scheduler(pipe, options, final_denoise)
    if num_resamples > 1:
        _check_no_memory(pipe, options, num_resamples)
    num_latents = [sum(role == FrameRole.LATENT for role in layout.roles) for layout in layouts]
    frame_shape = (config.in_channels, height, width)
    if pipe.guider is not None:
        pipe.register_attention()
        check_guider(pipe.guider, pipe.unet, (num_latents[0] if layouts else 1, *frame_shape), len(steps))
    num_videos = batch_size * ensemble_size
    offsets = [0, *itertools.accumulate(num_latents)] if isinstance(plan.windows, list) else None
    if latents is not None:
        if plan.windows is None:
            raise ValueError("`latents` cannot be laid out for an adaptive `frame_schedule`: use a `generator`.")
        count = offsets[-1] if offsets else (plan.num_windows or 1) * num_latents[0]
        _check_latents(latents, (num_videos, count, *frame_shape))
    generator = _check_generator(generator, batch_size)
    if isinstance(generator, NoiseSequence) and max_parallel_windows > 1:
        raise ValueError(
            "`max_parallel_windows` must be 1 with a `NoiseSequence`, which draws window after window for the whole batch; pass a"
            " torch.Generator."
        )
    if isinstance(generator, NoiseSequence) and (max_batch_size or num_videos) < num_videos:
        raise ValueError(
            f"`max_batch_size` is {max_batch_size} for {num_videos} videos, but a `NoiseSequence` draws for all of them at"
            " once: leave it out, or pass a torch.Generator."
        )

    pipe._guidance_scale, pipe._num_timesteps, pipe._interrupt = guidance_scale, len(steps), False
    device = pipe._execution_device

    def inside(frame: torch.Tensor) -> torch.Tensor:
        """A frame of each input video as the network sees it, once for each output video."""
        return pipe.normalizer.encode(frame[:, None].to(device))[:, 0].repeat_interleave(ensemble_size, dim=0)

    small = {}
    if low_resolution is not None:
        missing = (position for position in range(total) if position not in as_given)
        small = dict(zip(missing, low_resolution.unbind(dim=1)))
    source = generator[0] if isinstance(generator, list) else generator
    return Request(
        windows=plan.windows,
        adaptive=plan.adaptive,
        num_windows=plan.num_windows,
        batches=batches,
        memory=plan.memory,
        is_in_time_order=plan.is_in_time_order,
        lay_out=plan.lay_out,
        num_latents=num_latents[0] if layouts else 0,
        offsets=offsets,
        given={position: inside(frame) for position, frame in as_given.items()},
        as_given=as_given,
        low_resolution={position: inside(frame) for position, frame in small.items()},
        batch_size=batch_size,
        ensemble_size=ensemble_size,
        frame_shape=frame_shape,
        seeds=generator if isinstance(generator, NoiseSequence) else _draw_seeds(generator, batch_size, ensemble_size),
        generator_device=source.device if isinstance(source, torch.Generator) else device,
        latents=latents,
        max_batch_size=max_batch_size,
        frame_embedding=frame_embedding,
        step_options={
            **options,
            "eta": eta,
            "guidance_scale": guidance_scale,
            "history_guidance": history_guidance,
            "replacement": replacement,
            "num_resamples": num_resamples,
            "reconstruction_guidance": reconstruction_guidance,
            "super_resolution_guidance": super_resolution_guidance,
            "final_denoise": final_denoise,
            "cache_conditioning": cache_conditioning,
            "callback_on_step_end": callback_on_step_end,
            "callback_on_step_end_tensor_inputs": callback_on_step_end_tensor_inputs,
        },
    )


# --------------------------------------------------------------------------------------------------------------------
# Frames


def _check_geometry(
    config, frames: Mapping[str, torch.Tensor], batch_size: int | None, height: int | None, width: int | None
) -> tuple[int, int, int]:
    """Batch size, height and width of the videos: of the given frames, else as asked for, else the network's."""
    given = list(frames.values())
    if len({x.shape[-2:] for x in given}) > 1 or len({len(x) for x in given}) > 1:
        raise ValueError(
            f"{' and '.join(f'`{name}`' for name in frames)} must agree in batch, height and width, got"
            f" {' and '.join(str(tuple(x.shape)) for x in given)}."
        )
    size = config.sample_size
    default = (1, *size) if isinstance(size, (list, tuple)) and len(size) == 2 else (1, *[np.ravel(size)[0]] * 2)
    if given:
        default = (len(given[0]), *given[0].shape[-2:])
    actual = []
    for name, asked, value in zip(("batch_size", "height", "width"), (batch_size, height, width), default):
        if given and asked is not None and asked != value:
            raise ValueError(f"`{name}` is {asked}, but the given frames have {value}; leave it out.")
        actual.append(int(asked or value))
    return tuple(actual)


def _check_positions(positions, num_given: int, num_frames: int | None) -> list[int]:
    """Positions of given frames, in increasing order."""
    values = positions.tolist() if isinstance(positions, (torch.Tensor, np.ndarray)) else positions
    is_list = isinstance(values, (list, tuple, range))
    if not is_list or not all(isinstance(x, numbers.Integral) and not isinstance(x, bool) and x >= 0 for x in values):
        raise ValueError(f"`observed_positions` must be a list of integers from 0, got {reprlib.repr(positions)}.")
    if len(values) != num_given or len(set(values)) < len(values):
        raise ValueError(
            f"`observed_positions` must be one position for each of the {num_given} `observed_frames`, none twice, got"
            f" {reprlib.repr(list(values))}."
        )
    if num_frames is not None and max(values) >= num_given + num_frames:
        raise ValueError(
            f"`observed_positions` go up to {max(values)}, but the video has {num_given + num_frames} frames: {num_given} are"
            f" given and `num_frames`, {num_frames}, are made."
        )
    return sorted(map(int, values))


def _check_low_resolution(
    frames: torch.Tensor, *, num_missing: int, batch_size: int | None, size: tuple[int, int]
) -> torch.Tensor:
    """Small frames, one for each that is made, whose size divides that of the video."""
    small = tuple(frames.shape[-2:])
    if frames.shape[1] != num_missing or batch_size not in (None, len(frames)):
        raise ValueError(
            f"`low_resolution_frames` must be one for each of the {num_missing} frames that are made"
            + (f", of {batch_size} video(s)" if batch_size else "")
            + f", got {frames.shape[1]} of {len(frames)}."
        )
    if any(large % little for large, little in zip(size, small)):
        raise ValueError(
            f"`low_resolution_frames` have {small[0]}x{small[1]} pixels, which do not divide the video's {size[0]}x{size[1]}:"
            " pass `height` and `width`, multiples of theirs."
        )
    return frames


# --------------------------------------------------------------------------------------------------------------------
# Windows


@dataclass
class _Plan:
    """The windows of a call."""

    windows: list[Window] | Iterator[Window] | None
    lay_out: Callable[[Window], Layout]
    num_windows: int | None = None
    adaptive: AdaptiveSchedule | None = None
    memory: int | None = None
    is_in_time_order: bool = False
    reads_nothing: bool = False  # on purpose


def _plan_windows(pipe, total, positions, schedule, max_frames, step, *, may_replace: bool) -> _Plan:
    """
    The frame schedule that was asked for, that the pipeline carries, or that its network implies. A network of past, block and
    future takes blocks; one of windows takes all frames at once if it can, and goes on autoregressively if not.
    """
    config = pipe.unet.config
    layout = partial(lay_out, config=config, may_replace=may_replace)
    is_blocks = "num_past_frames" in config
    capacity = config.get("max_frames") or pipe.unet.num_window_frames
    is_whole = not is_blocks and step is None and total is not None and total <= (max_frames or capacity)
    if schedule is None and total is not None and not is_whole:
        schedule = pipe.config.frame_schedule
    if step is None and not is_whole and (schedule is not None or not is_blocks):
        step = None if pipe.config.step is None else min(pipe.config.step, max_frames or capacity)
    if max_frames is not None and max_frames > capacity:
        raise ValueError(f"`max_frames` is {max_frames}, but this network takes at most {capacity} frames at once.")
    if (max_frames is not None or step is not None) and schedule is None and is_blocks:
        raise ValueError("`max_frames` and `step` belong to a `frame_schedule`: name one, or leave them out.")
    if total is not None and total > MOST_PLANNED_FRAMES and (schedule is not None or not is_blocks):
        raise ValueError(
            f"`num_frames`: a video of {total:,} frames is not planned ahead, at most {MOST_PLANNED_FRAMES:,}. Make it in parts, each given"
            " the end of the one before, or call `stream` without `num_frames`."
        )
    if isinstance(schedule, FramePlan):
        schedule = list(schedule.windows) if isinstance(schedule.windows, (list, tuple)) else [schedule.windows]
    if isinstance(schedule, (list, tuple)):
        if not all(isinstance(window, Window) and _has_positions(window) for window in schedule):
            raise ValueError(
                "`frame_schedule` must be a name or a list of Windows, each with two tuples of positions from 0, got"
                f" {reprlib.repr(schedule)}."
            )
        FramePlan.of(schedule, total, observed=positions)  # raises if they do not make the video
        return _Plan(list(schedule), layout, len(schedule), is_in_time_order=True)

    max_frames = capacity if max_frames is None else int(max_frames)
    if schedule is not None:
        if not isinstance(schedule, str):
            raise ValueError(f"`frame_schedule` must be a name or a list of Windows, got {reprlib.repr(schedule)}.")
        schedule = schedule_name(schedule)
        step = config.num_frames if is_blocks and step is None else step
        make = partial(frame_schedule, schedule, total, observed=positions, max_frames=max_frames, step=step)
        if schedule in ADAPTIVE_FRAME_SCHEDULES:
            if is_blocks or not config.has_frame_gaps:
                raise ValueError(
                    f"`frame_schedule` {schedule!r} reads frames from anywhere, and this network only takes consecutive ones."
                )
            return _Plan(None, layout, adaptive=lambda distance: make(distance=distance))
        try:
            windows = list(make())
        except ValueError as error:
            if schedule not in FRAME_SCHEDULES and "`name`" in str(error):
                raise ValueError(str(error).replace("`name`", "`frame_schedule`")) from error
            raise
        nothing = schedule == "really-independent"
        return _Plan(windows, layout, len(windows), is_in_time_order=True, reads_nothing=nothing)

    if not is_blocks:
        if is_whole:
            windows = [Window(tuple(positions), tuple(x for x in range(total) if x not in set(positions)))]
            return _Plan(windows, layout, 1, is_in_time_order=True)
        step = step or max(1, max_frames // 2)
        if step > max_frames:
            raise ValueError(
                f"`step` is {step}, but a window has at most {max_frames} frames: choose at most that many."
            )
        if total is not None:
            windows = list(autoregressive(total, observed=positions, max_frames=max_frames, step=step))
            return _Plan(windows, layout, len(windows), is_in_time_order=True)
        past = max_frames - step
        return _Plan(blocks(None, observed=positions, step=step, num_past_frames=past), layout, memory=past)

    size, num_frames = config.num_frames, None if total is None else total - len(positions)
    has_future = bool(positions) and total is not None and positions[-1] == total - 1
    if has_future and positions[0] == 0 and num_frames < size:
        raise ValueError(
            f"`num_frames` must be at least {size}, one block of this network, to interpolate; got {num_frames}."
        )
    past, future = config.num_past_frames, config.num_future_frames
    windows = blocks(total, observed=positions, step=size, num_past_frames=past, num_future_frames=future)
    num_windows = None if num_frames is None else -(-num_frames // size)
    # Forwards, it may be very long.
    return _Plan(list(windows) if has_future else windows, layout, num_windows, memory=past)


def _has_positions(window: Window) -> bool:
    """Whether a window is what it should be: two tuples of positions."""
    sides = (window.observed, window.latent)
    return all(isinstance(side, (tuple, list, range)) for side in sides) and all(
        isinstance(x, numbers.Integral) and not isinstance(x, bool) and x >= 0 for side in sides for x in side
    )


def _parallel_windows(plan: _Plan, total: int, positions: list[int], most: int) -> list[list[int]] | None:
    """Windows of a list that do not depend on one another, and look alike to the network, together."""
    if not isinstance(plan.windows, list):
        return None
    batches = []
    for batch in FramePlan.of(plan.windows, total, observed=positions).batches():
        alike: dict[tuple, list[int]] = {}
        for number in batch:
            layout = plan.lay_out(plan.windows[number])
            first = min(p for p, role in zip(layout.positions, layout.roles) if role == FrameRole.LATENT)
            sides = tuple(position < first for position in layout.positions)
            alike.setdefault((layout.roles, sides), []).append(number)
        for numbers_alike in alike.values():
            batches += [numbers_alike[i : i + most] for i in range(0, len(numbers_alike), most)]
    return batches


# --------------------------------------------------------------------------------------------------------------------
# What the network was trained for


def _sides(replacement: str | Mapping[str, str] | None) -> dict[str, str]:
    """How the given frames on each side of those to be made enter, as far as they are replaced."""
    if replacement is None:
        return {}
    return dict.fromkeys(("past", "future"), replacement) if isinstance(replacement, str) else dict(replacement)


def _check_replacement(replacement) -> None:
    is_map = isinstance(replacement, Mapping) and set(replacement) <= {"past", "future"} and len(replacement) > 0
    if replacement is not None and not isinstance(replacement, str) and not is_map:
        raise ValueError(
            f'`replacement` must be one of {REPLACEMENTS}, a map of "past" and "future" to one of them, or None, got'
            f" {reprlib.repr(replacement)}."
        )
    for how in _sides(replacement).values():
        if how not in REPLACEMENTS:
            raise ValueError(f"`replacement` must be one of {REPLACEMENTS}, got {how!r}.")


def _check_guidance_scale(pipe, guidance_scale, history_guidance, replacement) -> None:
    if not is_number(guidance_scale) or not 0 <= guidance_scale <= MOST_GUIDANCE:
        raise ValueError(
            f"`guidance_scale` must be a number of at least 0, {MOST_GUIDANCE:g} at most, got {reprlib.repr(guidance_scale)}."
        )
    if history_guidance is not None:
        is_list = isinstance(history_guidance, (list, tuple)) and len(history_guidance) > 0
        for pair in history_guidance if is_list else [None]:
            is_pair = isinstance(pair, (list, tuple)) and len(pair) == 2 and is_number(pair[1])
            frames = pair[0] if is_pair else ()
            is_frames = frames is None or (
                isinstance(frames, (list, tuple, range)) and all(isinstance(x, numbers.Integral) for x in frames)
            )
            if not is_pair or not abs(pair[1]) <= MOST_GUIDANCE or not is_frames:
                raise ValueError(
                    "`history_guidance` must be a list of pairs: which of a window's observed frames (a list of numbers in"
                    f" time order, -1 the last; None: all), and a weight. Got {reprlib.repr(history_guidance)}."
                )
        if guidance_scale != 1:
            raise ValueError(
                "`guidance_scale` and `history_guidance` both say how given frames weigh: pass one of them; [(None,"
                f" {guidance_scale})] is the former."
            )
    is_guided = guidance_scale != 1 or history_guidance is not None
    if pipe.guider is not None and is_guided:
        name = "guidance_scale" if guidance_scale != 1 else "history_guidance"
        raise ValueError(
            f"`{name}` is {guidance_scale if guidance_scale != 1 else history_guidance}, but the pipeline's `guider`, a"
            f" {type(pipe.guider).__name__}, guides already: leave it at 1 and give the guider its scale, or set"
            " `pipe.guider = None`."
        )
    if set(_sides(replacement)) == {"past", "future"} and (is_guided or pipe.guider is not None):
        raise ValueError(
            "`guidance_scale`, `history_guidance` and guiders compare with absent frames, but all given frames enter by"
            " `replacement`, so that the network sees none: use `reconstruction_guidance`."
        )


def _check_masks(pipe, windows, layouts, as_given, is_guided: bool, replacement, *, is_open: bool) -> None:
    """Whether a network of past, block and future was trained with the frames missing that these windows leave out."""
    config = pipe.unet.config
    made = [window.latent for window in windows]
    for side in ("past", "future"):
        if side in _sides(replacement):
            continue
        needed, dropped = config[f"num_{side}_frames"], config[f"drop_{side}"]
        given = sum(x < min(made[0]) if side == "past" else x > max(made[0]) for x in as_given) if made else 0
        if given and dropped == 1:
            raise ValueError(
                f"`{side}_frames`: this network never had them in training (`unet.config.drop_{side}` is 1); leave"
                " them out."
            )
        if side == "past" and dropped == 1 and needed and is_open:
            raise ValueError(
                f"`num_frames` must be at most {config.num_frames}, one block: this network never had past frames in training"
                " (`unet.config.drop_past` is 1), which further blocks would read."
            )
        if needed == 0 or dropped > 0:
            continue
        for window in windows:
            is_side = [position < min(window.latent) for position in window.observed]
            have = sum(is_side) if side == "past" else len(is_side) - sum(is_side)
            if have < needed:
                raise ValueError(
                    f"This network always had its {needed} {side} frames in training (`unet.config.drop_{side}` is"
                    f" 0), and frames {window.latent[0]} to {window.latent[-1]} would be made with {have} of them."
                    f" `{side}_frames` has {given}: pass {needed}, or use a network that was trained with"
                    f" `drop_{side}` > 0" + ("." if side == "past" else ", one block at a time otherwise.")
                )
        if is_guided:
            name, way_out = "guidance_scale", "leave it at 1"
            if pipe.guider is not None:
                name, way_out = "guider", "set `pipe.guider = None`"
            raise ValueError(
                f"`{name}` compares with absent frames, which this network never saw absent in training"
                f" (`unet.config.drop_{side}` is 0): {way_out}."
            )
    if replacement is None:
        return
    for window, layout in zip(windows, layouts):
        block = range(config.num_past_frames, config.num_past_frames + config.num_frames)
        for position, role, slot in zip(layout.positions, layout.roles, range(len(layout.roles))):
            side = "past" if position < min(window.latent) else "future"
            if role == FrameRole.OBSERVED and (slot in block) != (side in _sides(replacement)):
                raise ValueError(
                    f"`replacement`: this network makes a block of {config.num_frames} frames, and frame {position} of the"
                    f" window that makes {list(window.latent)} is {'in' if slot in block else 'not in'} it: only given frames"
                    ' in the block are replaced. Pass {"future": ...} and a list of Windows as `frame_schedule`.'
                )


def _check_observed(
    config, layouts: list[Layout], is_guided: bool, replacement, *, is_open: bool, is_given: bool
) -> None:
    """Whether a network of windows was trained with, or without, given frames, as these windows need it."""
    dropped, sides = config.drop_observed, _sides(replacement)
    way_out = 'pass `replacement="noised"`, with `reconstruction_guidance` of 1 or more.'
    if is_open and dropped == 1 and "past" not in sides:
        raise ValueError(
            "This network never had given frames in training (`unet.config.drop_observed` is 1), and later windows would read"
            f" what earlier ones make: {way_out}"
        )
    if not layouts and dropped == 0 and not is_given:
        raise ValueError(
            "This network always had given frames in training (`unet.config.drop_observed` is 0): pass `past_frames`,"
            " `future_frames` or `observed_frames`."
        )
    for layout in layouts:
        made = [p for p, role in zip(layout.positions, layout.roles) if role == FrameRole.LATENT]
        read = [p for p, role in zip(layout.positions, layout.roles) if role == FrameRole.OBSERVED]
        native = [p for p in read if ("past" if p < min(made) else "future") not in sides]
        if native and dropped == 1:
            raise ValueError(
                f"This network never had given frames in training (`unet.config.drop_observed` is 1), and frames {min(made)} to"
                f" {max(made)} would be made from {len(native)} of them: {way_out}"
            )
        if not native and dropped == 0:
            raise ValueError(
                f"This network always had given frames in training (`unet.config.drop_observed` is 0), and frames {min(made)}"
                f" to {max(made)} would be made from none: pass `past_frames`, `future_frames` or `observed_frames`."
            )
    if is_guided and dropped in (0, 1):
        raise ValueError(
            "`guidance_scale`, `history_guidance` and guiders compare given with absent frames, and this network never had"
            f" them {'given' if dropped == 1 else 'absent'} in training (`unet.config.drop_observed` is {dropped})."
        )


def _check_histories_of_volumes(layouts: list[Layout], history_guidance) -> None:
    """A network whose convolutions go through time is shown a shorter clip, never one with holes."""
    for layout in layouts:
        observed = [slot for slot, role in enumerate(layout.roles) if role == FrameRole.OBSERVED]
        latent = {slot for slot, role in enumerate(layout.roles) if role == FrameRole.LATENT}
        for chosen in [(), *(x for x, _ in history_guidance or () if x is not None)]:
            kept = latent | {observed[x] for x in chosen if -len(observed) <= x < len(observed)}
            if kept != set(range(min(kept), max(kept) + 1)):
                raise ValueError(
                    "`guidance_scale`, `history_guidance` and guiders leave frames out, and this network sees a window whole"
                    f" (its convolutions or attention go through time): without them frames"
                    f" {sorted(layout.positions[slot] for slot in kept)} would have holes between them. Give frames at the"
                    " ends only, and leave out those farthest away, or guide by nothing."
                )


# --------------------------------------------------------------------------------------------------------------------
# Sampler


def check_scheduler(pipe, options: dict, final_denoise: bool) -> torch.Tensor:
    """Try the scheduler's first step on a copy; returns its timesteps."""
    if not isinstance(pipe.scheduler, SchedulerMixin):
        raise ValueError(f"`scheduler` must be one of Diffusers' schedulers, an object, got {pipe.scheduler!r}.")
    name, config = type(pipe.scheduler).__name__, pipe.scheduler.config
    prediction_type = config.get("prediction_type")
    other = "DDPMScheduler" if name == "DDIMScheduler" else "DDIMScheduler"
    way_out = f"Use another, such as {other}.from_config(pipe.scheduler.config)."
    for needed in ("prediction_type", "beta_schedule"):
        if needed not in inspect.signature(type(pipe.scheduler).__init__).parameters:
            raise ValueError(
                f"`scheduler`: {name} cannot serve this network: it has no `{needed}`, so it is for another kind of"
                f" model, such as one trained by flow matching or with EDM's noise levels. {way_out}"
            )
    trained = pipe.unet.config.prediction_type
    if trained not in (None, prediction_type):
        raise ValueError(
            f"`scheduler`: {name} cannot serve this network: it was trained with prediction_type={trained!r}, the"
            f" scheduler has {prediction_type!r}. Make it with prediction_type={trained!r} and the noise schedule of"
            " the training, or from the scheduler that was saved with the network."
        )
    num_train_timesteps = pipe.unet.config.num_train_timesteps
    if config.get("num_train_timesteps", num_train_timesteps) != num_train_timesteps:
        raise ValueError(
            f"`scheduler` has {config.num_train_timesteps} training timesteps, the network {num_train_timesteps}."
        )
    for argument, least, most in (
        ("timesteps", 0, num_train_timesteps - 1),
        ("sigmas", 0.0, _largest_sigma(pipe.scheduler)),
    ):
        if options[argument] is None:
            continue
        if argument not in inspect.signature(pipe.scheduler.set_timesteps).parameters:
            raise ValueError(
                f"`{argument}`: {name} does not take own {argument}. Leave them out, or use a scheduler that does, such as"
                f" {'DDPMScheduler' if argument == 'timesteps' else 'EulerDiscreteScheduler'}.from_config(pipe.scheduler.config)."
            )
        _check_steps(argument, options[argument], least, most)
    # Try the whole way on a copy, with a network that always answers the same: it takes milliseconds.
    trial = copy.deepcopy(pipe.scheduler)
    try:
        steps = set_timesteps(trial, options, torch.device("cpu"))
        probe = answer = torch.full((1, 1, pipe.unet.config.in_channels, 2, 2), 0.5)
        probe = probe * getattr(trial, "init_noise_sigma", 1.0)
        takes_generator = "generator" in inspect.signature(trial.step).parameters  # spare the global stream
        kwargs = {"generator": torch.Generator().manual_seed(0)} if takes_generator else {}
        for step in steps:
            if hasattr(trial, "scale_model_input"):
                trial.scale_model_input(probe, step)
            probe = trial.step(answer, step, probe, **kwargs, return_dict=False)[0]
    except Exception as error:  # whatever the scheduler's own code raises, it does not serve
        own = [key for key in ("timesteps", "sigmas") if options[key] is not None]
        asked = own[0] if own else "num_inference_steps"
        raise ValueError(
            f"`scheduler`: {name} cannot serve prediction_type={prediction_type!r} with"
            f" {asked}={reprlib.repr(options[asked])}: {error} {way_out}"
        ) from error
    if len(steps) == 0 or steps.min() < 0 or steps.max() >= num_train_timesteps or steps[-1] > steps[0]:
        way = f"from {float(steps[0]):.4g} to {float(steps[-1]):.4g}" if len(steps) else "nowhere"
        raise ValueError(
            f"`scheduler`: {name} cannot serve this network with these settings: it would go {way}, and the network"
            f" goes down from {num_train_timesteps - 1} to 0 at most. {way_out}"
        )
    if not torch.isfinite(probe).all():
        raise ValueError(
            f"`scheduler`: {name} cannot serve this noise schedule in {len(steps)} steps: its own arithmetic gives NaN,"
            f" whatever the network says. {way_out}"
        )
    if final_denoise and (prediction_type != "epsilon" or not hasattr(pipe.scheduler, "alphas_cumprod")):
        raise ValueError(
            "`final_denoise=True` subtracts predicted noise: it needs prediction_type='epsilon' and a scheduler"
            f" with `alphas_cumprod`, got {prediction_type!r} and {name}."
        )
    return steps


def set_timesteps(scheduler: SchedulerMixin, options: Mapping, device: torch.device) -> torch.Tensor:
    """Reset a scheduler to its first step; returns its timesteps. `options`: what of a call says which these are."""
    for name in ("timesteps", "sigmas"):
        if options[name] is not None:
            if name not in inspect.signature(scheduler.set_timesteps).parameters:
                raise ValueError(f"`{name}`: {type(scheduler).__name__} does not take own {name}.")
            scheduler.set_timesteps(device=device, **{name: options[name]})
            return scheduler.timesteps
    scheduler.set_timesteps(options["num_inference_steps"], device=device)
    return scheduler.timesteps


def _check_no_memory(pipe, options: dict, num_resamples: int) -> None:
    """
    Whether a scheduler's step depends on the steps before it, found out by trying two ways to the same place. Such a one cannot
    go back and repeat a step.
    """
    ways = []
    for first_answer in (0.25, 0.75):
        trial, made = copy.deepcopy(pipe.scheduler), []
        takes_generator = "generator" in inspect.signature(trial.step).parameters
        for number, step in enumerate(set_timesteps(trial, options, torch.device("cpu"))[:12]):
            sample = torch.full((1, 1, 1, 2, 2), 0.5)
            answer = sample if number else torch.full_like(sample, first_answer)
            kwargs = {"generator": torch.Generator().manual_seed(0)} if takes_generator else {}
            if hasattr(trial, "scale_model_input"):
                trial.scale_model_input(sample, step)
            made.append(trial.step(answer, step, sample, **kwargs, return_dict=False)[0])
        ways.append(made[1:])  # that differ in the first answer only
    if not all(torch.equal(*results) for results in zip(*ways)):
        raise ValueError(
            f"`num_resamples` is {num_resamples}, but {type(pipe.scheduler).__name__} remembers former steps, so that a step"
            " cannot be gone back and made again: leave it at 1, or use DDPMScheduler or DDIMScheduler"
            ".from_config(pipe.scheduler.config)."
        )


def _largest_sigma(scheduler: SchedulerMixin) -> float:
    """The highest noise level of the noise schedule, as noise over signal; a little more, since it is known in digits."""
    alphas_cumprod = getattr(scheduler, "alphas_cumprod", None)
    if not torch.is_tensor(alphas_cumprod):
        return math.inf
    smallest = float(alphas_cumprod.min())
    return 1.01 * ((1 - smallest) / smallest) ** 0.5 if smallest > 0 else math.inf


def _check_steps(name: str, values, least: float, most: float) -> None:
    """Own timesteps or noise levels: numbers that fall, within what the network was trained on."""
    kind = numbers.Integral if name == "timesteps" else numbers.Real
    values = values.tolist() if isinstance(values, (torch.Tensor, np.ndarray)) else values
    is_list = isinstance(values, (list, tuple, range)) and len(values) > 0
    if (
        not is_list
        or not all(isinstance(x, kind) and not isinstance(x, bool) and least <= x <= most for x in values)
        or not all(x > y for x, y in itertools.pairwise(values))
    ):
        raise ValueError(
            f"`{name}` must be a list of {'integers' if name == 'timesteps' else 'numbers'} that fall, from at most"
            f" {most:.6g} to at least {least:.6g}, got {reprlib.repr(values)}."
        )
    if name == "sigmas" and len(values) < 2:
        raise ValueError(
            f"`sigmas` must be at least two, the last being the one to end with, usually 0, got {values}."
        )


def _check_latents(latents: torch.Tensor, shape: tuple[int, ...]) -> None:
    if not torch.is_tensor(latents) or tuple(latents.shape) != shape or not latents.is_floating_point():
        got = f"{tuple(latents.shape)}, {latents.dtype}" if torch.is_tensor(latents) else type(latents).__name__
        raise ValueError(f"`latents` must be a float tensor of shape {shape} for this call, got {got}.")
    if not torch.isfinite(latents).all():
        raise ValueError("`latents` has values that are NaN or infinite.")


def _check_generator(generator, batch_size: int) -> torch.Generator | list[torch.Generator] | NoiseSequence | None:
    if isinstance(generator, NoiseSequence):
        return generator
    generator = list(generator) if isinstance(generator, tuple) else generator
    for source in generator if isinstance(generator, list) else [generator]:
        if generator is not None and not isinstance(source, torch.Generator):
            raise ValueError(
                f"`generator` must be a torch.Generator or a list of them, got {type(source).__name__}. From a number:"
                " torch.Generator().manual_seed(number)."
            )
    if isinstance(generator, list) and len(generator) != batch_size:
        raise ValueError(f"`generator` is a list of {len(generator)} for {batch_size} videos: one each is needed.")
    return generator


def is_number(value) -> bool:
    """A real number, and no truth value."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _draw_seeds(
    generator: torch.Generator | list[torch.Generator] | None, batch_size: int, ensemble_size: int
) -> list[tuple[int, int]]:
    """(seed, member) of each video: one number drawn for each input video, one after the other."""
    generators = generator if isinstance(generator, list) else [generator] * batch_size
    seeds = [
        int(torch.randint(2**63 - 1, (), generator=g, device=g.device if g is not None else "cpu")) for g in generators
    ]
    return [(seed, member) for seed in seeds for member in range(ensemble_size)]
