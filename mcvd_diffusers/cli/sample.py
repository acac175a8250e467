"""`mcvd-diffusers predict`, `interpolate` and `generate`: videos from a model, from and to files."""

import argparse
import contextlib
import logging
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from .loading import (
    AVERAGED,
    AVERAGED_NOTE,
    add_model_options,
    add_reading_options,
    add_sampling_options,
    in_flags,
    load_pipeline,
    reading_options,
)
from .output import OUTPUT_HELP, Output, add_output_options
from .printing import in_columns, integer_from, named, number_of, one_line, printable


if TYPE_CHECKING:
    # The networks and data libraries are imported where they are needed: `--help` does without.
    import torch

    from mcvd_diffusers.data import ClipReader
    from mcvd_diffusers.pipelines import MCVDPipeline

DEFAULT_NUM_FRAMES = 20
MOST_FRAMES = 100_000  # of a video that is written: longer ones are streamed, by `MCVDPipeline.stream`
MOST_READ_BEFORE = 16  # frames that a network with a memory is given, if nobody says how many

PREDICT_HELP = f"""\
examples:
  mcvd-diffusers predict checkpoints/moving-digits clip.mp4 --output future.mp4
  mcvd-diffusers predict checkpoints/moving-digits clip.mp4 --start 0 --num_samples 4 --output futures.gif --scale 4
  mcvd-diffusers predict checkpoints/moving-digits clip.mp4 --backwards --output past.png
  mcvd-diffusers predict runs/rain radar.npy --axes THW --num_frames 10 --only_new --output forecast.npy
  mcvd-diffusers predict runs/mine frames/ --resize cover --num_inference_steps 5 --output future/

{OUTPUT_HELP}"""

INTERPOLATE_HELP = f"""\
examples:
  mcvd-diffusers interpolate checkpoints/moving-digits clip.mp4 --output between.mp4
  mcvd-diffusers interpolate checkpoints/moving-digits clip.mp4 --gap 8 --num_frames 10 --output filled.gif
  mcvd-diffusers interpolate checkpoints/moving-digits first.mp4 second.mp4 --output joined.mp4
  mcvd-diffusers interpolate runs/fdm clip.mp4 --every 2 --output twice_the_rate.mp4

{OUTPUT_HELP}"""

GENERATE_HELP = f"""\
examples:
  mcvd-diffusers generate checkpoints/moving-digits --output new.gif --scale 4
  mcvd-diffusers generate checkpoints/moving-digits --num_videos 1 --num_frames 40 --seed 7 --output long.mp4
  mcvd-diffusers generate checkpoints/moving-digits --size 64 96 --output wide.webp
  mcvd-diffusers generate checkpoints/moving-digits --num_videos 16 --num_frames 5 --output samples.npz

{OUTPUT_HELP}"""


def add_sample(commands) -> None:
    """Adds the commands to those of a parser."""
    parser = _add_command(
        commands,
        "predict",
        PREDICT_HELP,
        help="a model and a clip -> what comes after it, or came before",
        description="Predict how a clip goes on. Its last frames are given to the model, as many as that reads, which makes the"
        " frames after them, block by block.",
    )
    parser.add_argument(
        "clip", metavar="CLIP", type=named, help="a video file, a folder of frames, or an array: see --axes"
    )
    _add_num_frames(parser, f"frames to make (default: {DEFAULT_NUM_FRAMES})")
    parser.add_argument(
        "--start",
        type=integer_from(0),
        metavar="N",
        help="the first given frame, from 0 (default: so that the last of the clip is given)",
    )
    parser.add_argument(
        "--backwards",
        action="store_true",
        help="make what came before; then the first frames of the clip are given by default",
    )
    _add_num_samples(parser)
    _add_clip_options(parser)
    _add_other_options(parser)
    parser.set_defaults(run=_run, make_job=_prediction)

    parser = _add_command(
        commands,
        "interpolate",
        INTERPOLATE_HELP,
        help="a model and one or two clips -> the frames between",
        description="Make the frames between given ones: those of a gap in a clip, those between the end of a clip and the"
        " beginning of another, or, with --every, those between all frames of a clip.",
    )
    parser.add_argument(
        "clip", metavar="CLIP", type=named, help="a video file, a folder of frames, or an array: see --axes"
    )
    parser.add_argument(
        "clip2", metavar="CLIP2", nargs="?", help="another, which begins where the frames that are made end"
    )
    _add_num_frames(parser, "frames to make (default: one block of the model)")
    parser.add_argument(
        "--gap",
        type=integer_from(0),
        metavar="START",
        help="the first frame of the clip that is made anew; those before and after the gap are given (default: a gap in"
        " the middle)",
    )
    parser.add_argument(
        "--every",
        type=integer_from(2),
        metavar="N",
        help="the frames of the clip become every N-th of the video; for networks of windows (FDM, RaMViD, VDM)",
    )
    _add_num_samples(parser)
    _add_clip_options(parser)
    _add_other_options(parser)
    parser.set_defaults(run=_run, make_job=_interpolation)

    parser = _add_command(
        commands,
        "generate",
        GENERATE_HELP,
        help="a model -> new videos",
        description="Generate videos from nothing but noise.",
    )
    parser.add_argument("--num_videos", type=integer_from(1), default=4, metavar="N", help="default: 4")
    _add_num_frames(parser, f"frames of each (default: {DEFAULT_NUM_FRAMES})")
    parser.add_argument(
        "--size",
        type=integer_from(1),
        nargs="+",
        metavar="N",
        help="height and width, or one number for both (default: those of the model's training)",
    )
    _add_other_options(parser)
    parser.set_defaults(run=_run, make_job=_generation)


def _add_command(commands, name: str, epilog: str, **texts: str) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        name, allow_abbrev=False, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter, **texts
    )
    parser.add_argument(
        "model", metavar="MODEL", type=named, help="folder of a pipeline, such as that of a run, or its id on the Hub"
    )
    return parser


def _add_num_frames(parser: argparse.ArgumentParser, text: str) -> None:
    parser.add_argument("--num_frames", type=integer_from(1, MOST_FRAMES), metavar="N", help=text)


def _add_num_samples(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--num_samples", type=integer_from(1), default=1, metavar="N", help="different videos to make (default: 1)"
    )


def _add_clip_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("how the clip is read")
    add_reading_options(group)
    group.add_argument("--video", metavar="NAME", help="which, if CLIP holds several videos")
    group.add_argument(
        "--frame_stride", type=integer_from(1), default=1, metavar="N", help="take every N-th frame (default: 1)"
    )
    group.add_argument(
        "--num_given",
        type=integer_from(1),
        metavar="N",
        help="frames that are given on a side (default: as many as the model reads; of a network of windows half of one, or a"
        f" quarter on each side; for one with a memory {MOST_READ_BEFORE} at most)",
    )
    group.add_argument(
        "--resize",
        choices=("stretch", "cover", "crop", "none"),
        default="stretch",
        help="how frames get the size of the model's training: each side by itself (stretch, default, as in train_mcvd.py), both"
        " alike and the rest cut off (cover), cut out of the middle (crop); or none: they keep theirs, for which the model"
        " was not trained. Colour becomes grey, or grey colour, as the model needs it",
    )


def _add_other_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("sampling")
    add_sampling_options(group)
    group.add_argument(
        "--frame_schedule", metavar="NAME", help="networks of windows: how long videos are cut, such as hierarchy-2"
    )
    group = parser.add_argument_group("the model")
    add_model_options(group)
    group.add_argument(
        "--dtype", choices=("float32", "float16", "bfloat16"), default="float32", help="default: float32"
    )
    group.add_argument(
        "--device", metavar="NAME", help="such as cpu or cuda:1 (default: the accelerator if there is one)"
    )
    add_output_options(parser)


# --------------------------------------------------------------------------------------------------------------------
# A command, top to bottom


def _run(arguments: argparse.Namespace) -> int:
    try:
        # What is quick to find out first: where it goes, what is given, where it runs; then the model.
        output = Output.of(arguments)
        output.check_place(_paths(arguments))
        clips = [_Clip.open(path, arguments) for path in _paths(arguments)]
        pipe = _load_model(arguments)
        _make_and_write(pipe, arguments.make_job(arguments, pipe, clips), output, arguments)
    except (ValueError, OSError, ImportError) as error:
        message = str(error)
    except (RuntimeError, MemoryError) as error:
        if "memory" not in str(error):
            raise  # a mistake of the program, whose traceback is wanted
        message = f"{error} Out of memory: choose a smaller --batch_size, fewer frames, or --dtype bfloat16."
    else:
        return 0
    print(f"mcvd-diffusers {arguments.command}: {one_line(message)}", file=sys.stderr)
    return 1


def _paths(arguments: argparse.Namespace) -> list[str]:
    return [path for name in ("clip", "clip2") if (path := getattr(arguments, name, None)) is not None]


def _load_model(arguments: argparse.Namespace) -> "MCVDPipeline":
    import torch
    from diffusers.utils import logging as diffusers_logging

    accelerator = torch.accelerator.current_accelerator(check_available=True)
    device = arguments.device or str(accelerator or "cpu")
    try:
        torch.empty(0, device=device)
        is_there = torch.device(device).type in ("cpu", accelerator.type if accelerator else "cpu")
    except (RuntimeError, AssertionError):  # the latter: a build of torch without it
        is_there = False
    if not is_there:
        there = "cpu" if accelerator is None else f"cpu and {accelerator}"
        raise ValueError(f"--device {device} is not there: this machine has {there}.")
    diffusers_logging.disable_progress_bar()
    pipe, variant = load_pipeline(
        arguments.model,
        variant=arguments.variant,
        scheduler=arguments.scheduler,
        dtype=getattr(torch, arguments.dtype),
    )
    if variant == AVERAGED and arguments.variant is None:
        print(AVERAGED_NOTE)
    pipe.set_progress_bar_config(
        file=sys.stderr, disable=not sys.stderr.isatty(), leave=False, unit=" steps", dynamic_ncols=True
    )
    return pipe.to(device)


@dataclass
class _Job:
    """What is to be made: arguments of the pipeline, and what is said of it."""

    call: dict
    given: str  # such as "frames 15 to 19 of clip.mp4 are given"
    where: str  # such as "20 after them"
    num_videos: int
    rate: float | None = None  # frames per second, if a clip says it
    notes: list[str] = field(default_factory=list)


def _make_and_write(pipe: "MCVDPipeline", job: _Job, output: Output, arguments: argparse.Namespace) -> None:
    import torch

    from mcvd_diffusers.pipelines.layouts import takes_windows
    from mcvd_diffusers.pipelines.request import Call, read_request

    call = job.call | {
        "num_inference_steps": arguments.num_inference_steps,
        "guidance_scale": arguments.guidance_scale,
        "frame_schedule": arguments.frame_schedule,
        "max_batch_size": min(arguments.batch_size, job.num_videos),
        "output_type": "pt",
    }
    # Checked whole before anything is said. The generator is one more, since a check draws from it, too.
    try:
        request = read_request(pipe, Call(**call, generator=torch.Generator()))
    except ValueError as error:
        raise ValueError(f"MODEL {arguments.model} cannot do this: {error}") from error
    num_frames = job.call["num_frames"] + (0 if arguments.only_new else len(request.as_given))
    output.check_size(job.num_videos, num_frames, (pipe.frame_shape[0], *request.frame_shape[1:]))
    unit, count = "window" if takes_windows(pipe.unet.config) else "block", request.plan.num_windows
    blocks = (
        f"windows that --frame_schedule {arguments.frame_schedule} chooses"
        if count is None
        else number_of(count, unit)
    )
    times = f", {job.num_videos} times" if job.num_videos > 1 else ""
    are = "is" if job.call["num_frames"] == 1 else "are"
    steps = number_of(request.num_steps, "step")
    print(printable(f"{job.given}, {job.where} {are} made{times}, in {blocks} of {steps}"))
    for note in job.notes:
        print(printable(note))
    sys.stdout.flush()

    started = time.monotonic()
    with _quiet("diffusers", "mcvd_diffusers"):  # what there is to warn of was said in the check
        made = pipe(
            **call,
            generator=torch.Generator().manual_seed(arguments.seed),
            return_given_frames=not arguments.only_new,
        )
    seconds = time.monotonic() - started
    is_given = [position in request.as_given for position in made.positions]
    frames = made.frames.float().cpu()
    lines = output.write(frames, is_given, pipe.normalizer, job.rate)
    num_new = (len(is_given) - sum(is_given)) * len(frames)
    lines.append(("time", f"{seconds:.3g} s, {seconds / num_new:.3g} s a frame that was made ({pipe.device.type})"))
    print(printable(in_columns(lines, 12)))


@contextlib.contextmanager
def _quiet(*names: str):
    """Packages that warn of nothing meanwhile."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


# --------------------------------------------------------------------------------------------------------------------
# What is given


@dataclass(frozen=True)
class _Clip:
    """A clip that was named, opened."""

    name: str
    reader: "ClipReader"  # of one video
    num_frames: int
    height: int
    width: int
    num_channels: int
    rate: float | None
    stride: int
    resize: str

    @classmethod
    def open(cls, path: str, arguments: argparse.Namespace) -> "_Clip":
        from mcvd_diffusers.data import open_video

        try:
            reader = open_video(path, name=arguments.video, **reading_options(arguments))
            info = reader.info(0)
        except ValueError as error:
            raise ValueError(f"CLIP {path}: {in_flags(str(error), path='CLIP')}") from error
        rate = None if info.frames_per_second is None else info.frames_per_second / arguments.frame_stride
        name = Path(path).name if arguments.video is None else f"{reader.name(0)} in {Path(path).name}"
        geometry = (info.height, info.width, info.num_channels)
        return cls(name, reader, info.num_frames, *geometry, rate, arguments.frame_stride, arguments.resize)

    @property
    def length(self) -> int:
        """Frames that are there at the stride."""
        return -(-self.num_frames // self.stride)

    def described(self, start: int, count: int) -> str:
        """Which of its frames, for a message: `"frames 15 to 19 of clip.mp4"`."""
        last = start + (count - 1) * self.stride
        frames = f"frame {start}" if count == 1 else f"frames {start} to {last}"
        steps = f" in steps of {self.stride}" if count > 1 and self.stride > 1 else ""
        return f"{frames}{steps} of {self.name}"

    def read(self, pipe: "MCVDPipeline", start: int, count: int) -> "torch.Tensor":
        """Frames `(T, C, H, W)` in the size, the channels and the units of the model."""
        from mcvd_diffusers.data import ClipDataset

        last = start + (count - 1) * self.stride
        if last >= self.num_frames:
            raise ValueError(
                f"CLIP {self.name} has {number_of(self.num_frames, 'frame')}, 0 to {self.num_frames - 1}, and {start} to"
                f" {last} would be given: choose others, or fewer (--num_given)."
            )
        try:
            dataset = ClipDataset(
                self.reader,
                num_frames=count,
                frame_size=None if self.resize == "none" else pipe.frame_shape[1:],
                resize="stretch" if self.resize == "none" else self.resize,
                num_channels=pipe.frame_shape[0],
                stride=self.stride,
                clip_step=1,  # so that each start is a clip
                random_start=False,
                normalizer=pipe.normalizer,
                encoded=False,  # the pipeline wants the user's units
                strict=True,
            )
            return dataset[start]["video"]
        except ValueError as error:
            units = f" (The model takes {pipe.normalizer}.)" if not pipe.normalizer.is_unit else ""
            raise ValueError(f"CLIP {self.name} cannot be given to MODEL: {error}{units}") from error

    def notes(self, pipe: "MCVDPipeline") -> list[str]:
        """What is done to its frames."""
        notes, (height, width) = [], pipe.frame_shape[1:]
        if (self.height, self.width) != (height, width):
            sizes = f"{self.height} x {self.width}", f"{height} x {width}"
            if self.resize == "none":
                notes.append(f"note: frames of {sizes[0]}; the model was trained for {sizes[1]}")
            else:
                others = " or ".join(x for x in ("stretch", "cover", "crop", "none") if x != self.resize)
                notes.append(f"note: frames of {sizes[0]} become {sizes[1]} (--resize {self.resize}; else {others})")
        if self.num_channels != pipe.frame_shape[0]:
            notes.append(
                f"note: {number_of(self.num_channels, 'channel')} {'becomes' if self.num_channels == 1 else 'become'} {pipe.frame_shape[0]}, as the model needs it"
            )
        return notes


def _num_read(pipe: "MCVDPipeline", side: str, *, has_both_sides: bool, at_most: int) -> int:
    """How many frames of a side a model is given if nobody says it; of a clip that has so many at most."""
    from mcvd_diffusers.pipelines.carried_context import reads_before_past
    from mcvd_diffusers.pipelines.layouts import shows_beside, takes_windows

    config = pipe.unet.config
    if not takes_windows(config):
        if not config[f"num_{side}_frames"]:
            what = "predict without --backwards, or generate" if side == "future" else "generate"
            raise ValueError(
                f"MODEL reads no {side} frames (unet.config.num_{side}_frames is 0), so that it cannot do this: {what}, or use one"
                f" that was trained with --num_{side}_frames."
            )
        return config[f"num_{side}_frames"]
    if side == "past" and reads_before_past(pipe.context_encoder, config):
        return max(1, min(MOST_READ_BEFORE, at_most))
    if shows_beside(config):
        return max(1, config.num_context_frames // (2 if has_both_sides else 1))
    return max(1, config.max_frames // (4 if has_both_sides else 2))


def _check_length(clip: _Clip, needed: int, text: str) -> None:
    if clip.length < needed:
        stride = "" if clip.stride == 1 else f" at --frame_stride {clip.stride}"
        raise ValueError(
            f"CLIP {clip.name} has {number_of(clip.length, 'frame')}{stride}, and {needed} are needed: {text}. Pass a longer one,"
            " or give the model fewer frames by --num_given, if it was trained with masks."
        )


def _prediction(arguments: argparse.Namespace, pipe: "MCVDPipeline", clips: list[_Clip]) -> _Job:
    """`predict`: the frames after those that are given, or before."""
    (clip,), side = clips, "future" if arguments.backwards else "past"
    num_given = arguments.num_given or _num_read(pipe, side, has_both_sides=False, at_most=clip.length)
    _check_length(clip, num_given, f"{num_given} are given to the model")
    first = 0 if arguments.backwards else clip.num_frames - 1 - (num_given - 1) * clip.stride
    start = first if arguments.start is None else arguments.start
    num_frames = arguments.num_frames or DEFAULT_NUM_FRAMES
    return _Job(
        {
            f"{side}_frames": clip.read(pipe, start, num_given),
            "num_frames": num_frames,
            "ensemble_size": arguments.num_samples,
        },
        f"{clip.described(start, num_given)} {'is' if num_given == 1 else 'are'} given",
        f"{num_frames} {'before' if arguments.backwards else 'after'} {'it' if num_given == 1 else 'them'}",
        arguments.num_samples,
        clip.rate,
        clip.notes(pipe),
    )


def _interpolation(arguments: argparse.Namespace, pipe: "MCVDPipeline", clips: list[_Clip]) -> _Job:
    """`interpolate`: the frames between."""
    from mcvd_diffusers.pipelines.layouts import takes_windows

    if arguments.every is not None:
        return _every(arguments, pipe, clips)
    config, clip = pipe.unet.config, clips[0]
    num_past, num_future = (
        arguments.num_given or _num_read(pipe, side, has_both_sides=True, at_most=clip.length // 3)
        for side in ("past", "future")
    )
    if takes_windows(config):  # what a window reads of a long past is less, if frames are shown beside it
        room = max(1, config.max_frames - min(num_past, config.get("num_context_frames", num_past)) - num_future)
    else:
        room = config.num_frames
    num_frames = arguments.num_frames or room
    if len(clips) == 2:
        if arguments.gap is not None:
            raise ValueError("--gap is a gap in one clip, and CLIP2 is another clip: leave one of them out.")
        _check_length(clip, num_past, f"{num_past} are given to the model")
        _check_length(clips[1], num_future, f"{num_future} are given to the model")
        starts = clip.num_frames - 1 - (num_past - 1) * clip.stride, 0
    else:
        needed = num_past + num_frames + num_future
        parts = f"{num_past} before the gap, {num_frames} in it (--num_frames), {num_future} after it"
        _check_length(clip, needed, parts)
        gap = (
            num_past * clip.stride + (clip.length - needed) // 2 * clip.stride
            if arguments.gap is None
            else arguments.gap
        )
        starts = gap - num_past * clip.stride, gap + num_frames * clip.stride
        if starts[0] < 0 or starts[1] + (num_future - 1) * clip.stride >= clip.num_frames:
            last = clip.num_frames - 1 - (num_frames + num_future - 1) * clip.stride
            raise ValueError(
                f"--gap must be from {num_past * clip.stride} to {last}, so that CLIP {clip.name} has {parts}, got {gap}."
            )
    sides = [(clip, starts[0], num_past), (clips[-1], starts[1], num_future)]
    given = " and ".join(its.described(start, count) for its, start, count in sides)
    return _Job(
        {
            "past_frames": clip.read(pipe, starts[0], num_past),
            "future_frames": clips[-1].read(pipe, starts[1], num_future),
            "num_frames": num_frames,
            "ensemble_size": arguments.num_samples,
        },
        f"{given} are given",
        f"{num_frames} between them",
        arguments.num_samples,
        clip.rate,
        list(dict.fromkeys(note for its in clips for note in its.notes(pipe))),
    )


def _every(arguments: argparse.Namespace, pipe: "MCVDPipeline", clips: list[_Clip]) -> _Job:
    """`interpolate --every N`: a clip at N times its rate."""
    from mcvd_diffusers.pipelines.layouts import shows_beside, takes_windows

    useless = [name for name in ("clip2", "gap", "num_frames", "num_given") if getattr(arguments, name) is not None]
    if useless:
        name = "CLIP2" if useless[0] == "clip2" else f"--{useless[0]}"
        raise ValueError(
            f"{name} means nothing with --every, which is given all frames of one clip: leave one of them out."
        )
    config = pipe.unet.config
    if not takes_windows(config) or shows_beside(config):
        raise ValueError(
            "--every is for networks of windows, trained by train_mcvd.py --method fdm, ramvid or vdm: this one has places for"
            " given frames around those that it makes only. Leave it out, for one gap at a time."
        )
    (clip,) = clips
    _check_length(clip, 2, "frames are made between them")
    count, num_made = clip.length, (clip.length - 1) * (arguments.every - 1)
    return _Job(
        {
            "observed_frames": clip.read(pipe, 0, count),
            "observed_positions": range(0, count * arguments.every, arguments.every),
            "num_frames": num_made,
            "ensemble_size": arguments.num_samples,
        },
        f"{clip.described(0, count)} are given, {arguments.every} frames apart",
        f"{num_made} between them",
        arguments.num_samples,
        None if clip.rate is None else clip.rate * arguments.every,
        clip.notes(pipe),
    )


def _generation(arguments: argparse.Namespace, pipe: "MCVDPipeline", clips: list[_Clip]) -> _Job:
    """`generate`: videos from noise."""
    size = arguments.size or list(pipe.frame_shape[1:])
    if len(size) > 2:
        raise ValueError(f"--size takes a height and a width, or one number for both, got {size}.")
    num_frames = arguments.num_frames or DEFAULT_NUM_FRAMES
    call = {"batch_size": arguments.num_videos, "num_frames": num_frames, "height": size[0], "width": size[-1]}
    trained, notes = pipe.frame_shape[1:], []
    if (size[0], size[-1]) != trained:
        notes.append(f"note: frames of {size[0]} x {size[-1]}; the model was trained for {trained[0]} x {trained[1]}")
    return _Job(call, "nothing is given", number_of(num_frames, "frame"), arguments.num_videos, notes=notes)
