"""What a run will cost: measured on its first updates and a few samples, and extrapolated to its end.

Time and memory are not modelled. The updates that are timed are the run's own, with its data, so they cost nothing extra and change
nothing; memory is the process's peak when they are done. Spread is that of the single measurements.
"""

import functools
import gc
import math
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


# The first updates allocate, compile and fill caches; then so many are timed, or fewer if they take longer than a minute.
NUM_WARM_UP, NUM_TIMED, MIN_TIMED, MAX_SECONDS = 2, 10, 3, 60

# Denoising steps of the two short samplings, whose difference is the time of a step.
FEW_STEPS, MORE_STEPS, NUM_SAMPLINGS = 1, 4, 3

# Time and rows of the largest matrix multiplications that tell what a device can do.
PEAK_SECONDS, MAX_ROWS = 0.25, 8192

# Of `FrameRole`, for the network.
OBSERVED, LATENT = 1, 2


@dataclass
class Spread:
    """
    A measured quantity.

    Args:
        values (`list[float]`): Single measurements.
    """

    values: list[float]

    @property
    def mean(self) -> float:
        """The best guess for what many of them take together. (Workers deliver in bursts: a median would miss them.)"""
        return float(np.mean(self.values))

    @property
    def low(self) -> float:
        """Two standard errors below the mean, but not below the least."""
        return max(self.mean - self._two_errors, min(self.values))

    @property
    def high(self) -> float:
        """Two standard errors above the mean, but not above the greatest."""
        return min(self.mean + self._two_errors, max(self.values))

    @property
    def _two_errors(self) -> float:
        return 2 * float(np.std(self.values, ddof=1)) / len(self.values) ** 0.5 if len(self.values) > 1 else 0.0


class UpdateTimer:
    """
    Times the first updates of a training loop.

    Args:
        device (`torch.device`): Where the work is done; its queue is waited for while timing, and only then.
        num_timed (`int`, *optional*, defaults to `NUM_TIMED`): How many updates are timed, unless they take too long.
    """

    def __init__(self, device: torch.device, num_timed: int = NUM_TIMED) -> None:
        self._device, self._num_timed = device, num_timed
        self._last = None
        self._num_updates = 0
        self._seconds: list[float] = []

    @property
    def is_done(self) -> bool:
        """Whether enough was measured."""
        is_late = len(self._seconds) >= MIN_TIMED and sum(self._seconds) > MAX_SECONDS
        return is_late or len(self._seconds) >= self._num_timed

    @property
    def has_measured(self) -> bool:
        """Whether anything was measured."""
        return bool(self._seconds)

    def update(self) -> None:
        """To be called at the end of each update."""
        if self.is_done:
            return
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        now = time.perf_counter()
        self._num_updates += 1
        if self._num_updates > NUM_WARM_UP:
            self._seconds.append(now - self._last)
        self._last = now

    def skip(self) -> None:
        """What happened since the last update does not count: validation, say."""
        self._last = time.perf_counter()

    @property
    def seconds_per_update(self) -> Spread:
        """What was measured."""
        return Spread(self._seconds)


@dataclass
class CostEstimate:
    """
    The cost of a training run.

    Args:
        num_parameters (`int`): Of the network.
        num_updates (`int`): Updates of the whole run.
        seconds_per_update ([`Spread`]): As measured, loading of data included.
        seconds_per_video ([`Spread`]): Of one block of frames at the chosen sampler, one video at a time.
        sampler (`str`): The sampler and its number of steps, for the report.
        num_validation_videos (`int`): Videos that the whole run makes.
        pipeline_bytes (`int`): Size of the saved pipeline.
        memory_bytes (`int`): Peak memory of a process.
        device (`torch.device`): Where.
        num_processes (`int`, *optional*, defaults to 1): Processes that train together.
        max_seconds (`float`, *optional*): When training stops in any case.
        checkpoint_bytes (`int`, *optional*, defaults to 0): Size of a checkpoint, which is copied before it is written.
    """

    num_parameters: int
    num_updates: int
    seconds_per_update: Spread
    seconds_per_video: Spread
    sampler: str
    num_validation_videos: int
    pipeline_bytes: int
    memory_bytes: int
    device: torch.device
    num_processes: int = 1
    max_seconds: float = math.inf
    checkpoint_bytes: int = 0

    @property
    def is_cut_short(self) -> bool:
        """Whether time is over before all updates are done."""
        return self.num_updates * self.seconds_per_update.mean > self.max_seconds

    @property
    def updates_in_time(self) -> int:
        """Updates that are done until time is over, at least one."""
        return max(1, int(min(self.num_updates, self.max_seconds / self.seconds_per_update.mean)))

    def seconds_to_the_end(self, which: str = "mean") -> float:
        """
        Length of the whole run.

        Args:
            which (`str`, *optional*, defaults to `"mean"`): `"mean"`, `"low"` or `"high"`.

        Returns:
            `float`: Seconds, with the validation videos and without the set-up.
        """
        updates, videos = (getattr(x, which) for x in (self.seconds_per_update, self.seconds_per_video))
        return min(self.num_updates * updates, self.max_seconds) + self.num_validation_videos * videos

    def lines(self) -> list[str]:
        """
        The report.

        Returns:
            `list[str]`: Its lines.
        """
        update, video = self.seconds_per_update, self.seconds_per_video
        where = "GPU memory" if self.device.type == "cuda" else "memory of the process"
        return [
            f"parameters      {self.num_parameters:,}",
            f"peak memory     {_bytes(self.memory_bytes)} {where}"
            + (f", in each of {self.num_processes} processes" if self.num_processes > 1 else "")
            + ", without those that load data",
            f"speed           {1 / update.mean:.3g} steps/s ({1 / update.high:.3g} to {1 / update.low:.3g}: two standard errors"
            f" of {len(update.values)} measured updates, which took {min(update.values):.3g} to {max(update.values):.3g} s)",
            f"to the end      {_hours(self.seconds_to_the_end())}"
            f" ({_hours(self.seconds_to_the_end('low'))} to {_hours(self.seconds_to_the_end('high'))})"
            + (
                f": stopped before its {self.num_updates:,} updates are done"
                if self.is_cut_short
                else f" for {self.num_updates:,} updates"
            ),
            f"saved pipeline  {_bytes(self.pipeline_bytes)}"
            + (
                f"; a checkpoint {_bytes(self.checkpoint_bytes)}, and as much memory of the machine while it is written"
                if self.checkpoint_bytes
                else ""
            ),
            f"a video         {video.mean:.3g} s ({video.low:.3g} to {video.high:.3g}) for a block of frames with"
            f" {self.sampler}, one at a time",
        ]


def peak_memory(device: torch.device) -> int:
    """
    The most memory that this process has had so far.

    Args:
        device (`torch.device`): On a GPU, what torch has reserved there; otherwise the process's resident memory.

    Returns:
        `int`: Bytes.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def is_out_of_memory(error: BaseException) -> bool:
    """
    Whether memory has run out, on a GPU or in the process.

    Args:
        error (`BaseException`): What was raised.

    Returns:
        `bool`: Whether it says so. (On a CPU, torch raises a plain `RuntimeError`.)
    """
    words = (
        *("not enough memory", "can't allocate memory", "bad_alloc"),
        *("could not create a primitive", "could not create a memory object"),  # of oneDNN
    )
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
        isinstance(error, RuntimeError) and any(each in str(error) for each in words)
    )


def largest_batch_that_fits(attempt: Callable[[int], None], batch_size: int) -> int:
    """
    Try the divisors of a batch, the smallest first, until one does not fit.

    Args:
        attempt (`Callable[[int], None]`): Does the work with so many clips, and leaves nothing behind.
        batch_size (`int`): What to begin with.

    Returns:
        `int`: The last that fits; 0 if not even one clip does.

    Raises:
        Whatever `attempt` raises for another reason than memory.
    """
    fits = 0
    # In this order, since what has failed leaves something behind: gradient checkpointing does.
    for num_clips in (n for n in range(1, batch_size + 1) if batch_size % n == 0):
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        try:
            attempt(num_clips)
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            break
        fits = num_clips
    return fits


def measure_sampling(pipeline, *, num_inference_steps: int, height: int, width: int) -> Spread:
    """
    How long a pipeline takes for a video of one block, or for what is made of one window.

    A few short samplings of two lengths tell the time of a step and of what comes once; the rest is extrapolated.

    Args:
        pipeline ([`MCVDPipeline`]): Pipeline on its device; its network in evaluation mode.
        num_inference_steps (`int`): Denoising steps of the videos that are asked about.
        height, width (`int`): Their size.

    Returns:
        [`Spread`]: Seconds for one video.
    """
    config, device = pipeline.unet.config, pipeline.device
    if "max_frames" in config:  # any frames may be given: as many as when a long video goes on
        num_made = pipeline.config.step or config.max_frames - config.get("num_context_frames", 0)
        num_given = (config.max_frames - num_made, 0)
        prediction, generation, _, anywhere = config.get("task_shares", (1, 0, 0, 0))
        generates = "num_context_frames" in config and config.drop_observed == 1
        if generates or (not prediction + anywhere and generation):
            num_given = (0, 0)
        elif not prediction + anywhere:  # it interpolates
            num_given, num_made = (1, 1), config.max_frames - 2
        elif pipeline.context_encoder is not None:  # which reads more than the window
            num_given = (max(1, num_given[0]), 0)
    else:
        num_made = config.num_frames
        num_given = (config[f"num_{side}_frames"] * (config[f"drop_{side}"] < 1) for side in ("past", "future"))
    channels = pipeline.frame_shape[0]
    middle = pipeline.normalizer.decode(torch.zeros(1, 1, config.in_channels, height, width))
    past, future = (middle.expand(1, count, channels, height, width) if count else None for count in num_given)

    def seconds(num_steps: int) -> float:
        started = time.perf_counter()
        pipeline(
            past_frames=past,
            future_frames=future,
            num_frames=num_made,
            height=height,
            width=width,
            num_inference_steps=num_steps,
            generator=torch.Generator().manual_seed(0),
            output_type="pt",
        )
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - started

    most = min(MORE_STEPS, num_inference_steps)
    first = seconds(most)  # allocates
    few = min(FEW_STEPS, most)
    if most == few or first > MAX_SECONDS:
        return Spread([seconds(most) / most * num_inference_steps for _ in range(NUM_SAMPLINGS if most == few else 1)])
    videos = []
    for _ in range(NUM_SAMPLINGS):
        short, long = seconds(few), seconds(most)
        step = max((long - short) / (most - few), 0)
        videos.append(long + step * (num_inference_steps - most))
    return Spread(videos)


def training_flops(
    unet: torch.nn.Module,
    *,
    height: int,
    width: int,
    num_frames: int | None = None,
    context_encoder: torch.nn.Module | None = None,
) -> int:
    """
    Arithmetic of one clip in training: its forward and backward pass, without what is computed again to save memory.

    Counted are the matrix multiplications, convolutions and attention of the forward pass with all frames given; the
    backward pass is taken as twice that. What is counted is another network of the same configuration, on the meta device,
    where nothing is computed.

    Args:
        unet ([`MCVDUNet2DModel`] or [`SpaceTimeUNetModel`]): The network; neither called nor changed.
        height, width (`int`): Size of a frame.
        num_frames (`int`, *optional*): Frames of a clip, for a network of any length; those of its windows if not given.
        context_encoder (`torch.nn.Module`, *optional*): What reads a clip of its own, or as many frames, before the network.

    Returns:
        `int`: Floating point operations, two for a multiplication with an addition.
    """
    try:
        return 3 * _forward_flops(unet, "meta", height, width, num_frames, context_encoder)
    except RuntimeError:  # a network that looks at values can only be counted where there are some
        with torch.random.fork_rng(devices=[]):
            return 3 * _forward_flops(unet, "cpu", height, width, num_frames, context_encoder)


@functools.lru_cache
def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """
    What large matrix multiplications reach here: the measure of what a training run reaches.

    This is measured, with random numbers, in a few tenths of a second. It is not the number of the data sheet, which
    is higher, and what else the device is doing at the time makes it smaller. The matrices are made larger as long as
    there is time and memory for it, up to 8192 rows. In float32, matrix multiplications follow
    `torch.get_float32_matmul_precision()`, while cuDNN's convolutions use TF32 unless told otherwise, so that a network
    may reach more than this.

    Args:
        device (`torch.device`): Where.
        dtype (`torch.dtype`): The type that the network computes in: that of mixed precision, if it is used.

    Returns:
        `float`: Floating point operations a second, two for a multiplication with an addition.
    """
    generator = torch.Generator(device).manual_seed(0)
    best, rows, started = 0.0, 256, None
    while True:
        try:
            left, right = torch.randn(2, rows, rows, device=device, dtype=dtype, generator=generator)
            for _ in range(4):  # the very first loads libraries
                before = time.perf_counter()
                float((left @ right)[0, 0])  # reading a value waits for the device, of whatever kind
                now = time.perf_counter()
                best = max(best, 2 * rows**3 / (now - before))
                started = now if started is None else started
        except torch.OutOfMemoryError:  # beside a network that takes it all
            if not best:
                raise
            return best
        # Twice the rows take eight times as long.
        if rows == MAX_ROWS or now - started + 8 * 4 * (now - before) > PEAK_SECONDS:
            return best
        rows *= 2


def _forward_flops(
    unet: torch.nn.Module,
    device: str,
    height: int,
    width: int,
    num_frames: int | None,
    context_encoder: torch.nn.Module | None = None,
) -> int:
    """Floating point operations of one clip through a network like this one, made on that device."""
    config = unet.config
    if "max_frames" in config:
        past, size, future = 0, num_frames or config.max_frames + config.get("num_context_frames", 0), 0
    else:
        past, size, future = config.num_past_frames, config.num_frames, config.num_future_frames
    num_window_frames = past + size + future
    with torch.device(device), torch.no_grad():
        model = type(unet).from_config(config).eval()
        sample = torch.zeros(1, num_window_frames, config.in_channels, height, width)
        # On the CPU: a network may ask whether frames are ABSENT, which nobody can tell where there are no values.
        roles = torch.full((1, num_window_frames), OBSERVED, device="cpu")
        roles[:, past : past + size] = LATENT
        # The counter does not know the CPU's kernel of attention; written out it is plain matrix multiplications.
        encoder = None if context_encoder is None else type(context_encoder).from_config(context_encoder.config).eval()
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            told = {}
            if encoder is not None and encoder.clip_frames is None and past:
                encoder(sample[:, :past], num_frames=size)  # it predicts, and tells the network nothing
            elif encoder is not None and encoder.clip_frames is None:
                read = torch.zeros(1, num_window_frames + 1, *sample.shape[2:])  # the first is never made
                maps = encoder(read, each_frame=True).features
                told = {"context": tuple(x[:, 1:] for x in maps)}
            elif encoder is not None:
                clip = torch.zeros(1, encoder.clip_frames, *sample.shape[2:])
                told = {"context": encoder(clip, averages=False).features}
            model(sample, torch.zeros(1, dtype=torch.long), roles, **told, return_dict=False)
    return counter.get_total_flops()


def _bytes(number: int) -> str:
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if number >= size:
            break
    return f"{number / size:.3g} {unit}"


def _hours(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 72 * 3600 else f"{seconds / 86400:.1f} days"
