"""A call of the pipeline, checked whole before the first network call, and what is to be done."""

import inspect
import itertools
import math
import numbers
import reprlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.utils import logging

from mcvd_diffusers.frame_plans import FramePlan
from mcvd_diffusers.frame_schedules import ADAPTIVE_FRAME_SCHEDULES, Window, schedule_name
from mcvd_diffusers.guidance import check_guider
from mcvd_diffusers.masking import FrameRole
from mcvd_diffusers.objectives import starts_blind
from mcvd_diffusers.randomness import NoiseSequence

from .call_plan import CallPlan, plan_windows
from .carried_context import check_context_encoder, check_order, reads_before_past
from .frame_inputs import Frames, read_frames
from .layouts import (
    REPLACEMENTS,
    Layout,
    check_beside,
    check_blocks,
    check_holes,
    check_windows,
    replaced_sides,
    shows_beside,
    takes_windows,
)
from .scheduler_checks import check_no_memory, check_scheduler


logger = logging.get_logger(__name__)

MOST_GUIDANCE = 1e6
MOST_RESAMPLES = 1000
# Windows of all videos together that are made at a time on an accelerator, if the caller does not say.
MOST_PARALLEL_ROWS = 64
CALLBACK_INPUTS = ["latents"]


@dataclass(frozen=True, eq=False)
class Call:
    """What a caller asks for: those arguments of the pipeline's `__call__` that say what is to be made, as described there."""

    past_frames: Frames | None = None
    future_frames: Frames | None = None
    num_frames: int | None = None
    observed_frames: Frames | None = None
    observed_positions: Sequence[int] | None = None
    batch_size: int | None = None
    height: int | None = None
    width: int | None = None
    num_inference_steps: int | None = None
    timesteps: list[int] | None = None
    sigmas: list[float] | None = None
    eta: float = 0.0
    guidance_scale: float = 1.0
    history_guidance: list[tuple[list[int] | None, float]] | None = None
    frame_schedule: str | list[Window] | Iterator[Window] | FramePlan | None = None
    max_frames: int | None = None
    step: int | None = None
    max_parallel_windows: int | None = None
    frame_embedding: Callable[[torch.Tensor], torch.Tensor] | None = None
    replacement: str | Mapping[str, str] | None = None
    num_resamples: int = 1
    reconstruction_guidance: float | None = None
    low_resolution_frames: Frames | None = None
    super_resolution_guidance: float = 1.0
    overwrite_given: bool = False
    observed_noise: float = 0.0
    ensemble_size: int = 1
    generator: torch.Generator | list[torch.Generator] | NoiseSequence | None = None
    latents: torch.Tensor | None = None
    final_denoise: bool | None = None
    cache_conditioning: bool = True
    max_batch_size: int | None = None
    output_type: str = "pil"
    callback_on_step_end: Callable | PipelineCallback | MultiPipelineCallbacks | None = None
    callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",)


# Arguments of a call that go on to `denoise` as they are.
STEP_OPTIONS = (
    "num_inference_steps",
    "timesteps",
    "sigmas",
    "eta",
    "guidance_scale",
    "history_guidance",
    "replacement",
    "num_resamples",
    "reconstruction_guidance",
    "super_resolution_guidance",
    "observed_noise",
    "final_denoise",
    "cache_conditioning",
    "callback_on_step_end",
    "callback_on_step_end_tensor_inputs",
)


@dataclass(frozen=True, eq=False)
class Given:
    """The frames of a call."""

    frames: dict[int, torch.Tensor]  # position -> (batch_size, C, H, W) in [0, 1] or the user's units, as they came
    low_resolution: dict[int, torch.Tensor]  # position -> (batch_size, C, h, w), of frames to be made
    num_video_frames: int  # of the whole video
    batch_size: int
    height: int
    width: int

    @property
    def positions(self) -> list[int]:
        """Where frames are given, in time order."""
        return sorted(self.frames)


@dataclass
class Request:
    """One validated call of the pipeline."""

    plan: CallPlan
    batches: list[list[int]] | None  # of a plan that is a list: which windows are made together
    # Where a window's noise begins in the caller's `latents`: window after window, or so many frames for each.
    offsets: list[int] | None
    num_latents: int
    given: dict[int, torch.Tensor]  # position -> (num_videos, C, H, W) in [-1, 1]
    as_given: dict[int, torch.Tensor]  # position -> (batch_size, C, H, W) in [0, 1] or the user's units
    low_resolution: dict[int, torch.Tensor]  # position -> (num_videos, C, h, w) in [-1, 1]
    batch_size: int  # input videos
    ensemble_size: int
    frame_shape: tuple[int, int, int]
    # (seed of the video, number of the ensemble member), one for each output video; or one stream for all of them
    seeds: list[tuple[int, int]] | NoiseSequence
    generator_device: torch.device
    latents: torch.Tensor | None
    max_batch_size: int | None
    overwrites_given: bool
    frame_embedding: Callable | None
    num_steps: int  # of a window, each made `num_resamples` times
    step_options: dict  # what `denoise` takes

    @property
    def num_videos(self) -> int:
        """Output videos: each input video, `ensemble_size` times."""
        return self.batch_size * self.ensemble_size

    def noise_of(self, number: int, video: int) -> torch.Tensor:
        """The caller's initial noise for a window of one video, (k, C, H, W)."""
        start = number * self.num_latents if self.offsets is None else self.offsets[number]
        stop = start + self.num_latents if self.offsets is None else self.offsets[number + 1]
        return self.latents[video, start:stop]


def read_request(pipe, call: Call, *, endless: bool = False) -> Request:
    """
    Check a call whole, and say what is to be done.

    Args:
        pipe ([`MCVDPipeline`]): It is not changed.
        call ([`Call`]): What is asked for.
        endless (`bool`, *optional*, defaults to `False`): Whether frames are made as long as somebody takes them.

    Returns:
        [`Request`]: What is to be done.

    Raises:
        ValueError: If an argument does not fit the network, the scheduler or the others.
    """
    check_context_encoder(pipe.context_encoder, pipe.unet)  # either may have been replaced
    call = _check_values(pipe, call)
    given = _read_given(pipe, call)
    call = _check_conditioning(pipe, call)
    is_plain = isinstance(call.frame_schedule, str) and schedule_name(call.frame_schedule) == "autoreg"
    if endless and (not (call.frame_schedule is None or is_plain) or given.low_resolution):
        raise ValueError(
            'A stream without an end goes forwards, window after window, so that it has no `frame_schedule` but "autoreg", and no'
            " `low_resolution_frames`: pass `num_frames`."
        )
    plan = plan_windows(
        pipe,
        None if endless else given.num_video_frames,
        given.positions,
        schedule=call.frame_schedule,
        max_frames=call.max_frames,
        step=call.step,
        may_replace=call.replacement is not None,
        overwrites_given=call.overwrite_given,
    )
    named = call.frame_schedule or pipe.config.frame_schedule
    is_adaptive = isinstance(named, str) and schedule_name(named) in ADAPTIVE_FRAME_SCHEDULES
    if call.frame_embedding is not None and not is_adaptive:
        raise ValueError(
            '`frame_embedding` is read by an adaptive `frame_schedule` only, such as "adaptive-hierarchy-2": name one, or leave it'
            " out."
        )
    # Schedules that go on without a list run forwards, and the first window reads least.
    windows = plan.known_windows()
    layouts = [plan.lay_out(window) for window in windows]
    reads = plan.windows is None or plan.is_open or any(window.observed for window in windows)
    if given.low_resolution or (call.reconstruction_guidance and reads):
        _check_gradient(pipe)
    _check_windows(pipe, call, plan, windows, layouts, given=given.frames)
    num_latents = [len(layout.positions_of(FrameRole.LATENT)) for layout in layouts]
    frame_shape = (pipe.unet.config.in_channels, given.height, given.width)
    num_steps = _check_sampler(pipe, call, (num_latents[0] if layouts else 1, *frame_shape))
    if call.guidance_scale != 1 and plan.num_windows == 1 and not given.frames:
        logger.warning("`guidance_scale` changes nothing here: no frames are given, and only one block is made.")

    num_videos = given.batch_size * call.ensemble_size
    offsets = [0, *itertools.accumulate(num_latents)] if isinstance(plan.windows, list) else None
    if call.latents is not None:
        if plan.windows is None:
            raise ValueError("`latents` cannot be laid out for an adaptive `frame_schedule`: use a `generator`.")
        count = offsets[-1] if offsets else (plan.num_windows or 1) * num_latents[0]
        _check_latents(call.latents, (num_videos, count, *frame_shape))
    generator = _check_generator(call, given.batch_size)
    device = pipe._execution_device
    most = call.max_parallel_windows
    if most is None:  # a CPU is no faster for it, and its memory is not asked whether it suffices
        is_alone = device.type == "cpu" or isinstance(generator, NoiseSequence)
        most = 1 if is_alone else max(1, MOST_PARALLEL_ROWS // num_videos)

    def inside(frame: torch.Tensor) -> torch.Tensor:
        """A frame of each input video as the network sees it, once for each output video."""
        encoded = pipe.normalizer.encode(frame[:, None].to(device))[:, 0]
        return encoded.repeat_interleave(call.ensemble_size, dim=0)

    is_noise = isinstance(generator, NoiseSequence)
    source = generator[0] if isinstance(generator, list) else generator
    return Request(
        plan=plan,
        # A context encoder reads what one window makes before the next.
        batches=None
        if pipe.context_encoder is not None
        else plan.batches(given.num_video_frames, given.positions, most),
        offsets=offsets,
        num_latents=num_latents[0] if layouts else 0,
        given={position: inside(frame) for position, frame in given.frames.items()},
        as_given=given.frames,
        low_resolution={position: inside(frame) for position, frame in given.low_resolution.items()},
        batch_size=given.batch_size,
        ensemble_size=call.ensemble_size,
        frame_shape=frame_shape,
        seeds=generator if is_noise else _draw_seeds(generator, given.batch_size, call.ensemble_size),
        generator_device=source.device if isinstance(source, torch.Generator) else device,
        latents=call.latents,
        max_batch_size=call.max_batch_size,
        overwrites_given=call.overwrite_given,
        frame_embedding=call.frame_embedding,
        num_steps=num_steps,
        step_options={name: getattr(call, name) for name in STEP_OPTIONS},
    )


def _check_values(pipe, call: Call) -> Call:
    """Arguments that are right or wrong by themselves, or for this network; with whole numbers as Python's."""
    config, counts = pipe.unet.config, {}
    if call.num_inference_steps is None:
        call = replace(call, num_inference_steps=pipe.default_num_inference_steps)
    for name, is_optional in (
        ("num_frames", True),
        ("batch_size", True),
        ("height", True),
        ("width", True),
        ("num_inference_steps", False),
        ("max_frames", True),
        ("step", True),
        ("max_parallel_windows", True),
        ("num_resamples", False),
        ("ensemble_size", False),
        ("max_batch_size", True),
    ):
        value = getattr(call, name)
        if value is None and is_optional:
            continue
        if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or value < 1:
            raise ValueError(f"`{name}` must be a positive integer, got {value!r}.")
        counts[name] = int(value)
    if counts["num_resamples"] > MOST_RESAMPLES:
        raise ValueError(
            f"`num_resamples` must be at most {MOST_RESAMPLES}, got {call.num_resamples}: it is how often each step is made."
        )
    if counts["num_inference_steps"] > config.num_train_timesteps:
        raise ValueError(
            f"`num_inference_steps` must be at most {config.num_train_timesteps}, the timesteps of this network's"
            f" training, got {call.num_inference_steps}."
        )
    if call.frame_embedding is not None and not callable(call.frame_embedding):
        raise ValueError(
            f"`frame_embedding` must be a function of a frame, got {type(call.frame_embedding).__name__}."
        )
    if call.output_type not in ("pil", "np", "pt", "latent"):
        raise ValueError(f'`output_type` must be "pil", "np", "pt" or "latent", got {call.output_type!r}.')
    num_channels = pipe.frame_shape[0]
    if call.output_type == "pil" and num_channels not in (1, 3, 4):
        raise ValueError(f'`output_type="pil"`: frames of {num_channels} channels are no images; use "np" or "pt".')
    if not isinstance(call.overwrite_given, (bool, np.bool_)):
        raise ValueError(f"`overwrite_given` must be True or False, got {call.overwrite_given!r}.")
    if call.overwrite_given and not (shows_beside(config) and config.num_context_frames):
        raise ValueError(
            "`overwrite_given=True` is for networks that make given frames anew (LGCVDUNet2DModel); this one does not: leave it"
            " out."
        )
    most_noise = config.get("observed_noise", 0.0)
    if not is_number(call.observed_noise) or not 0 <= call.observed_noise <= most_noise:
        reason = (
            f"that of the network's training, {most_noise:g}" if most_noise else "0: this network was trained without"
        )
        raise ValueError(f"`observed_noise` must be a number from 0 to {reason}, got {call.observed_noise!r}.")
    tensor_inputs = call.callback_on_step_end_tensor_inputs
    if isinstance(call.callback_on_step_end, (PipelineCallback, MultiPipelineCallbacks)):
        tensor_inputs = call.callback_on_step_end.tensor_inputs
    if not isinstance(tensor_inputs, (list, tuple)) or any(x not in CALLBACK_INPUTS for x in tensor_inputs):
        raise ValueError(
            f"`callback_on_step_end_tensor_inputs` has to be in {CALLBACK_INPUTS}, got {tensor_inputs!r}."
        )
    if call.callback_on_step_end is not None and not callable(call.callback_on_step_end):
        raise ValueError(
            "`callback_on_step_end` must be a function (pipe, step, timestep, kwargs), got"
            f" {type(call.callback_on_step_end).__name__}."
        )
    final_denoise = pipe.config.final_denoise if call.final_denoise is None else call.final_denoise
    if not isinstance(final_denoise, (bool, np.bool_)):
        raise ValueError(f"`final_denoise` must be True or False, got {final_denoise!r}.")
    return replace(call, **counts, final_denoise=final_denoise, callback_on_step_end_tensor_inputs=list(tensor_inputs))


# --------------------------------------------------------------------------------------------------------------------
# Frames


def _read_given(pipe, call: Call) -> Given:
    """The frames that are given, and where; the video that they make with the others."""
    config = pipe.unet.config
    is_scattered = call.observed_frames is not None
    if is_scattered and (call.past_frames is not None or call.future_frames is not None):
        raise ValueError(
            "`observed_frames` are all frames that are given, wherever they are: leave out `past_frames` and `future_frames`."
        )
    if is_scattered == (call.observed_positions is None):
        raise ValueError("`observed_frames` and `observed_positions` go together: one position for each frame.")
    num_channels = pipe.frame_shape[0]
    read = partial(read_frames, num_channels=num_channels, normalizer=pipe.normalizer)
    reads_all = reads_before_past(pipe.context_encoder, config)
    more = ("observed_frames", "past_frames") if reads_all else ("observed_frames",)
    frames = {
        name: read(name, value, most=None if name in more else config.get(f"num_{name}"))
        for name in ("past_frames", "future_frames", "observed_frames")
        if (value := getattr(call, name)) is not None
    }
    batch_size, height, width = _check_geometry(pipe, frames, call)
    if is_scattered:
        observed = frames["observed_frames"]
        positions = _check_positions(call.observed_positions, observed.shape[1], call.num_frames)
        total = max(positions) + 1 if call.num_frames is None else len(positions) + call.num_frames
        if total == len(positions):
            raise ValueError(
                f"`num_frames`: the {total} frames that are given are the first {total} of the video, so that none would be"
                " made; say how many."
            )
        as_given = dict(zip(positions, observed.unbind(dim=1)))
    else:
        num_past, num_future = (
            frames[name].shape[1] if name in frames else 0 for name in ("past_frames", "future_frames")
        )
        room = config.max_frames - num_past - num_future if takes_windows(config) else config.num_frames
        room = config.max_frames - min(num_past, config.num_context_frames) if shows_beside(config) else room
        total = num_past + (call.num_frames or max(1, room)) + num_future
        positions = [*range(num_past), *range(total - num_future, total)]
        as_given = dict(zip(positions, itertools.chain(*(x.unbind(dim=1) for x in frames.values()))))

    if shows_beside(config) and not config.num_context_frames and set(positions) != set(range(len(positions))):
        name = "observed_positions" if is_scattered else "future_frames"
        raise ValueError(
            f"`{name}`: this network knows of a frame what lies before it, so that given frames must be the first of the video,"
            f" without a gap, got {reprlib.repr(sorted(positions))} of {total}. Pass those as `past_frames`, and leave out the others."
        )

    low_resolution = {}
    if call.low_resolution_frames is not None:
        small = _check_low_resolution(
            read("low_resolution_frames", call.low_resolution_frames, most=None),
            num_missing=total - len(positions),
            batch_size=batch_size if frames else call.batch_size,
            size=(height, width),
        )
        batch_size = len(small)
        missing = (position for position in range(total) if position not in as_given)
        low_resolution = dict(zip(missing, small.unbind(dim=1)))
    return Given(as_given, low_resolution, total, batch_size, height, width)


def _check_geometry(pipe, frames: Mapping[str, torch.Tensor], call: Call) -> tuple[int, int, int]:
    """Batch size, height and width of the videos: of the given frames, else as asked for, else the network's."""
    given = list(frames.values())
    if len({x.shape[-2:] for x in given}) > 1 or len({len(x) for x in given}) > 1:
        raise ValueError(
            f"{' and '.join(f'`{name}`' for name in frames)} must agree in batch, height and width, got"
            f" {' and '.join(str(tuple(x.shape)) for x in given)}."
        )
    default = (len(given[0]), *given[0].shape[-2:]) if given else (1, *pipe.frame_shape[1:])
    actual = []
    for name, value in zip(("batch_size", "height", "width"), default):
        asked = getattr(call, name)
        if given and asked is not None and asked != value:
            raise ValueError(f"`{name}` is {asked}, but the given frames have {value}; leave it out.")
        actual.append(int(asked or value))
    return tuple(actual)


def _check_positions(positions, num_given: int, num_frames: int | None) -> list[int]:
    """Positions of given frames, as they came."""
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
    return list(map(int, values))


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
# How given frames enter the network


def _check_conditioning(pipe, call: Call) -> Call:
    """Replacement and guidance, with what the pipeline carries for what the call leaves open."""
    replacement = pipe.config.replacement if call.replacement is None else call.replacement
    replacement = None if isinstance(replacement, str) and replacement == "none" else replacement
    check_replacement(replacement)
    weight = call.reconstruction_guidance
    if weight is None:
        is_noised = replacement is not None and "clean" not in replaced_sides(replacement).values()
        weight = pipe.config.reconstruction_guidance if is_noised else 0.0
    for name, value in (
        ("reconstruction_guidance", weight),
        ("super_resolution_guidance", call.super_resolution_guidance),
    ):
        if not is_number(value) or not 0 <= value <= MOST_GUIDANCE:
            raise ValueError(f"`{name}` must be a number from 0 to {MOST_GUIDANCE:g}, got {reprlib.repr(value)}.")
    if call.final_denoise and (replacement is not None or call.low_resolution_frames is not None):
        raise ValueError(
            "`final_denoise` tells the network a noise level that is not that of the frames, so that given ones cannot be put in"
            " at it: leave it out with `replacement` or `low_resolution_frames`."
        )
    if weight and (replacement is None or "clean" in replaced_sides(replacement).values()):
        raise ValueError(
            f"`reconstruction_guidance` is {weight}: it compares given frames with what the network takes noisy ones for, so they"
            ' must enter by `replacement="noised"`, or {"future": "noised"} for some of them; got'
            f" {replacement!r}."
        )
    call = replace(call, replacement=replacement, reconstruction_guidance=weight)
    _check_histories(pipe, call)
    return call


def check_replacement(replacement) -> None:
    """A `replacement` other than "none", which is None by now."""
    is_map = isinstance(replacement, Mapping) and set(replacement) <= {"past", "future"} and len(replacement) > 0
    if replacement is not None and not isinstance(replacement, str) and not is_map:
        raise ValueError(
            f'`replacement` must be one of {REPLACEMENTS}, a map of "past" and "future" to one of them, or "none", got'
            f" {reprlib.repr(replacement)}."
        )
    for how in replaced_sides(replacement).values():
        if how not in REPLACEMENTS:
            way_out = " Leave out the side that is not replaced." if how == "none" else ""
            raise ValueError(
                f'`replacement` must be one of {REPLACEMENTS}, or "none" for both sides, got {how!r}.{way_out}'
            )


def _check_gradient(pipe) -> None:
    """Whether a gradient through the network can be had."""
    both = "`reconstruction_guidance` or `low_resolution_frames` needs a gradient through the network, "
    if pipe.guider is not None:
        raise ValueError(
            "`reconstruction_guidance` and `low_resolution_frames` do not go with the pipeline's `guider`: set `pipe.guider ="
            f" None`, or pass `reconstruction_guidance=0` (by default the pipeline's, {pipe.config.reconstruction_guidance}) and"
            " leave `low_resolution_frames` out."
        )
    if torch.is_inference_mode_enabled():
        raise ValueError(
            both
            + "which torch.inference_mode() forbids: call the pipeline outside of it (it computes no other gradients)."
        )
    if any(parameter.element_size() == 1 for parameter in pipe.unet.parameters()):
        raise ValueError(
            both + "whose weights are stored in 8 bits (`enable_layerwise_casting`) and gone by then: leave that out."
        )


def _check_histories(pipe, call: Call) -> None:
    """Guidance by frames that the network is shown, against what it says without them."""
    scale, histories = call.guidance_scale, call.history_guidance
    if not is_number(scale) or not 0 <= scale <= MOST_GUIDANCE:
        raise ValueError(
            f"`guidance_scale` must be a number of at least 0, {MOST_GUIDANCE:g} at most, got {reprlib.repr(scale)}."
        )
    if histories is not None:
        is_list = isinstance(histories, (list, tuple)) and len(histories) > 0
        for pair in histories if is_list else [None]:
            is_pair = isinstance(pair, (list, tuple)) and len(pair) == 2 and is_number(pair[1])
            frames = pair[0] if is_pair else ()
            is_frames = frames is None or (
                isinstance(frames, (list, tuple, range)) and all(isinstance(x, numbers.Integral) for x in frames)
            )
            if not is_pair or not abs(pair[1]) <= MOST_GUIDANCE or not is_frames:
                raise ValueError(
                    "`history_guidance` must be a list of pairs: which of a window's observed frames (a list of numbers in"
                    f" time order, -1 the last; None: all), and a weight. Got {reprlib.repr(histories)}."
                )
        if scale != 1:
            raise ValueError(
                "`guidance_scale` and `history_guidance` both say how given frames weigh: pass one of them; [(None,"
                f" {scale})] is the former."
            )
    is_asked = scale != 1 or histories is not None
    if pipe.guider is not None and is_asked:
        name, value = ("guidance_scale", scale) if scale != 1 else ("history_guidance", histories)
        raise ValueError(
            f"`{name}` is {value}, but the pipeline's `guider`, a {type(pipe.guider).__name__}, guides already: leave it at 1"
            " and give the guider its scale, or set `pipe.guider = None`."
        )
    if set(replaced_sides(call.replacement)) == {"past", "future"} and (is_asked or pipe.guider is not None):
        raise ValueError(
            "`guidance_scale`, `history_guidance` and guiders compare what the network sees of given frames with none, but all"
            " given frames enter by `replacement`, so that it never sees any: leave them out, and use `reconstruction_guidance`."
        )


# --------------------------------------------------------------------------------------------------------------------
# Windows


def _check_windows(
    pipe, call: Call, plan: CallPlan, windows: list[Window], layouts: list[Layout], *, given: Mapping
) -> None:
    """Whether the network was trained for the windows that are known."""
    config = pipe.unet.config
    reads_nothing = plan.reads_nothing or (shows_beside(config) and not config.num_context_frames)
    if given and windows and not any(window.observed for window in windows) and not reads_nothing:
        raise ValueError(
            f"`step` and `max_frames` leave no place for given frames: windows make {max(len(x.latent) for x in windows)} frames"
            " each. Choose a smaller `step`."
        )
    guided_by = "guidance_scale" if call.guidance_scale != 1 else "history_guidance" if call.history_guidance else None
    guided_by = "guider" if pipe.guider is not None else guided_by
    needs = {"given": given, "guided_by": guided_by, "replacement": call.replacement, "is_open": plan.is_open}
    if pipe.context_encoder is not None:
        _check_context(pipe, call, plan, windows, layouts, given=given, guided_by=guided_by)
    if shows_beside(config):
        check_beside(config, layouts, **needs)
    elif takes_windows(config):
        check_windows(config, layouts, **needs)
        if guided_by is not None and not getattr(pipe.unet, "keeps_segments_apart", config.has_frame_gaps):
            check_holes(layouts, guided_by=guided_by, history_guidance=call.history_guidance)
    else:
        check_blocks(config, windows, layouts, **needs)
    if call.history_guidance is not None:
        most = config.max_frames if takes_windows(config) else config.num_past_frames + config.num_future_frames
        most = config.num_context_frames if shows_beside(config) else most
        if isinstance(plan.windows, list):
            most = max((len(window.observed) for window in plan.windows), default=0)
        missing = [x for numbers, _ in call.history_guidance for x in numbers or () if not -most <= x < most]
        if missing:
            raise ValueError(
                f"`history_guidance` names frames {missing}, but windows read at most {most} given frames: numbers are from 0 to"
                f" {most - 1}, or from -1 to {-most} counted from the last."
            )


def _check_context(
    pipe,
    call: Call,
    plan: CallPlan,
    windows: list[Window],
    layouts: list[Layout],
    *,
    given: Mapping,
    guided_by: str | None,
) -> None:
    """Whether a context encoder can read what it needs before each window."""
    if plan.windows is None:
        raise ValueError(
            "`frame_schedule`: this pipeline's `context_encoder` reads frames in the order of time, so that an adaptive schedule"
            " cannot be used: leave it out."
        )
    clip_frames = pipe.context_encoder.clip_frames
    if clip_frames is None and (guided_by is not None or call.replacement is not None):
        way_out = "set `pipe.guider = None`" if guided_by == "guider" else "leave it out"
        raise ValueError(
            f"`{guided_by or 'replacement'}`: this network makes what its `context_encoder` did not predict, so that predictions with and without given"
            f" frames, or frames that are put in, cannot be compared: {way_out}."
        )
    check_order(zip(windows, layouts), given, clip_frames)


# --------------------------------------------------------------------------------------------------------------------
# Sampler


def _check_sampler(pipe, call: Call, window_shape: tuple[int, ...]) -> int:
    """Whether the scheduler, and the guider if there is one, can do what is asked of them; in how many steps."""
    if call.timesteps is not None and call.sigmas is not None:
        raise ValueError("`timesteps` and `sigmas` both say which steps to take: pass one of them.")
    options = {name: getattr(call, name) for name in ("num_inference_steps", "timesteps", "sigmas")}
    if not is_number(call.eta) or not 0 <= call.eta <= 1:
        raise ValueError(f"`eta` must be a number in [0, 1], got {call.eta!r}.")
    if pipe.unet.training and pipe.unet.config.get("dropout", 0) > 0:
        logger.warning("The network is in training mode, so its dropout is active: call `pipe.unet.eval()`.")
    steps = check_scheduler(
        pipe.scheduler,
        pipe.unet.config,
        options,
        noise=pipe.config.trained_noise,
        final_denoise=call.final_denoise,
    )
    _warn_of_clipping(pipe)
    if call.num_resamples > 1:
        check_no_memory(pipe.scheduler, options, call.num_resamples)
    if call.eta > 0 and "eta" not in inspect.signature(pipe.scheduler.step).parameters:
        raise ValueError(f"`eta` is {call.eta}, but {type(pipe.scheduler).__name__} does not know it: leave it at 0.")
    if pipe.guider is not None:
        pipe.register_attention()
        check_guider(pipe.guider, pipe.unet, window_shape, len(steps))
    return len(steps)


def _warn_of_clipping(pipe) -> None:
    """Frames and residuals may be larger than what a scheduler clips at; and some networks fail if nothing is clipped."""
    config, takes = pipe.scheduler.config, inspect.signature(type(pipe.scheduler)).parameters
    clips = "clip_sample" in takes and config.clip_sample  # a config keeps what it was made from, too
    largest = pipe.normalizer.largest_value
    if pipe.unet.config.get("residual"):
        encoder = pipe.context_encoder.config
        largest = 2 * (encoder.clip_range or largest) / encoder.scale
    most = config.clip_sample_range if clips else math.inf
    if most < largest:
        logger.warning(
            f"The scheduler clips what the network makes at {most:g}, but it may be as large as {largest:g}: make it anew by"
            f" `from_config(pipe.scheduler.config, clip_sample_range={largest:g})`."
        )
    is_kept = (
        clips
        or ("thresholding" in takes and config.thresholding)
        or ("lambda_min_clipped" in takes and config.lambda_min_clipped > -math.inf)
    )
    if starts_blind(pipe.scheduler) and not is_kept:
        logger.warning(
            f"The network predicts noise, also where {type(pipe.scheduler).__name__} begins with nothing else: without clipping, its"
            " errors there grow out of all bounds. Use `DDPMScheduler.from_config(pipe.scheduler.config, clip_sample=True)`."
        )


def _check_latents(latents: torch.Tensor, shape: tuple[int, ...]) -> None:
    if not torch.is_tensor(latents) or tuple(latents.shape) != shape or not latents.is_floating_point():
        got = f"{tuple(latents.shape)}, {latents.dtype}" if torch.is_tensor(latents) else type(latents).__name__
        raise ValueError(f"`latents` must be a float tensor of shape {shape} for this call, got {got}.")
    if not torch.isfinite(latents).all():
        raise ValueError("`latents` has values that are NaN or infinite.")


def _check_generator(call: Call, batch_size: int) -> torch.Generator | list[torch.Generator] | NoiseSequence | None:
    generator = call.generator
    if isinstance(generator, NoiseSequence):
        if (call.max_parallel_windows or 1) > 1:
            raise ValueError(
                "`max_parallel_windows` must be 1 with a `NoiseSequence`, which draws window after window for the whole batch;"
                " pass a torch.Generator."
            )
        num_videos = batch_size * call.ensemble_size
        if call.max_batch_size is not None and call.max_batch_size < num_videos:
            raise ValueError(
                f"`max_batch_size` is {call.max_batch_size} for {num_videos} videos, but a `NoiseSequence` draws for all of them"
                " at once: leave it out, or pass a torch.Generator."
            )
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
