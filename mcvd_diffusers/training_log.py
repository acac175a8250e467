"""What a training run tells while it runs: its losses, and the trackers that they are sent to."""

import logging
import time
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker, get_available_trackers
from PIL import Image

from mcvd_diffusers.masking import FrameRole


logger = logging.getLogger("train_mcvd")

# Task of a clip by where frames are given: 1 before some that are not, plus 2 after some.
TASKS = ("generation", "prediction", "past_prediction", "interpolation")

# Before a tracker's file is opened anew after a failure: each attempt on a full disk leaves an empty file.
REOPEN_SECONDS = 60


class LossMeter:
    """
    Mean losses of many micro-steps and of all processes: over all clips, by noise level and by task.

    Sums are kept on the device. Nothing there is waited for until they are asked for.

    Args:
        num_train_timesteps (`int`): Timesteps of the noise schedule.
        device (`torch.device`): Where the losses are.
        num_buckets (`int`, *optional*, defaults to 10):
            Ranges of timesteps, as equal as they can be; at most one for each timestep.
    """

    def __init__(
        self,
        *,
        num_train_timesteps: int,
        device: torch.device | str,
        num_buckets: int = 10,
    ) -> None:
        self._num_timesteps, self._num_buckets = num_train_timesteps, min(num_buckets, num_train_timesteps)
        # Timestep t lies in bucket t * buckets // timesteps, so bucket b begins at the first t with that quotient.
        starts = [-(-b * num_train_timesteps // self._num_buckets) for b in range(self._num_buckets + 1)]
        self._names = [
            "loss",
            *(f"loss_by_timestep/{start}-{end - 1}" for start, end in zip(starts, starts[1:])),
            *(f"loss_by_task/{task}" for task in TASKS),
        ]
        # In float32 many small losses would be lost beside a large sum; MPS has nothing better.
        dtype = torch.float32 if torch.device(device).type == "mps" else torch.float64
        self._totals = torch.zeros(
            2, len(self._names), dtype=dtype, device=device
        )  # sums of losses, and their numbers

    def add(
        self,
        losses: torch.Tensor,
        timesteps: torch.Tensor,
        roles: torch.Tensor,
        segment_ids: torch.Tensor | None = None,
    ) -> None:
        """
        Count a micro-batch.

        Frames that are given before all that are predicted make it prediction, after all past prediction, and anything else
        interpolation.

        Clips without LATENT frames have no loss. One that is not finite belongs to an update that is skipped: both are
        left out.

        Args:
            losses (`torch.Tensor` of shape `(B,)`): The loss of each clip.
            timesteps (`torch.Tensor` of shape `(B,)`): Its timestep.
            roles (`torch.Tensor` of shape `(B, T)`): [`FrameRole`] of each of its frames, in the order of time.
            segment_ids (`torch.Tensor` of shape `(B, T)`, *optional*): What is not in segment 0 is no frame of the clip.
        """
        device, dtype = self._totals.device, self._totals.dtype
        losses, timesteps, roles = (x.detach().to(device) for x in (losses, timesteps, roles))
        is_counted = (roles == FrameRole.LATENT).any(dim=1) & losses.isfinite()  # (B,)
        is_latent, is_given = roles == FrameRole.LATENT, roles == FrameRole.OBSERVED
        if segment_ids is not None:
            is_latent = is_latent & (segment_ids.to(device) == 0)
        is_after_all = is_latent.flip(1).cumsum(dim=1).flip(1) == 0  # no frame from here on is predicted
        is_past_given = (is_given & ~is_after_all).any(dim=1)
        is_future_given = (is_given & (is_latent.cumsum(dim=1) > 0)).any(dim=1)
        buckets = timesteps.long() * self._num_buckets // self._num_timesteps
        tasks = is_past_given.long() + 2 * is_future_given.long()
        # Comparisons and sums: indexing would wait for the device, and scattering adds in any order on a GPU.
        membership = torch.cat(
            [
                torch.ones_like(is_counted)[:, None],
                buckets[:, None] == torch.arange(self._num_buckets, device=device),
                tasks[:, None] == torch.arange(len(TASKS), device=device),
            ],
            dim=1,
        )  # (B, names)
        membership = (membership & is_counted[:, None]).to(dtype)
        losses = torch.where(is_counted, losses, 0).to(dtype)
        self._totals += torch.stack([(losses[:, None] * membership).sum(dim=0), membership.sum(dim=0)])

    def mean(self, accelerator: Accelerator) -> dict[str, float]:
        """
        The means since the last call, over all processes; all of them must call it. Then the meter is empty again.

        Args:
            accelerator (`Accelerator`): Knows the processes.

        Returns:
            `dict[str, float]`:
                `"loss"`, `"loss_by_timestep/0-99"` (first and last timestep) and so on, `"loss_by_task/prediction"` and so
                on. What no clip was counted for is not there.
        """
        sums, counts = accelerator.reduce(self._totals, "sum").tolist()
        self._totals.zero_()
        return {name: total / count for name, total, count in zip(self._names, sums, counts) if count}


class Trackers:
    """
    Accelerate's trackers (TensorBoard, Weights & Biases, Trackio, ...), whose failures never stop a run.

    Whatever a tracker raises becomes a warning, one for a series of failures. One that cannot be started is left out.
    (One that blocks does block.) Made and called on all processes; the main process does the work.

    Args:
        accelerator (`Accelerator`): Its `logging_dir` is where trackers that write files write them.
        names (`list[str]`): Names of trackers as Accelerate knows them; `"all"` is all that are installed.
        project (`str`): The project in which the run appears.
        config (`dict`): The run's settings, flat. Values that are no number, string or truth value become strings.
        run_id (`str`): Names the run. A tracker that has a run of this name goes on with it, if it can.
    """

    def __init__(self, accelerator: Accelerator, *, names: list[str], project: str, config: dict, run_id: str) -> None:
        self._trackers: list[_Guarded] = []
        if not accelerator.is_main_process:
            return
        if "all" in names:
            names = [*names, *(tracker.value for tracker in get_available_trackers())]
        config = {name: x if isinstance(x, (int, float, str, bool)) else str(x) for name, x in config.items()}
        options = {"wandb": {"id": run_id, "resume": "allow"}, "trackio": {"name": run_id, "resume": "allow"}}
        for name in dict.fromkeys(names):
            if name == "all":
                continue
            try:
                kind = LOGGER_TYPE_TO_CLASS[name]
                places = [accelerator.logging_dir] if kind.requires_logging_directory else []
                tracker = kind(project, *places, **options.get(name, {}))
                tracker.start()
            except Exception as error:  # of any package
                logger.warning(f"warning: tracker {name} cannot be started, the run goes on without it: {_say(error)}")
                continue
            self._trackers.append(_Guarded(tracker))
        self._each("values", lambda tracker: tracker.store_init_configuration(config))

    def log(self, values: dict[str, float], step: int) -> None:
        """
        Send numbers.

        Args:
            values (`dict[str, float]`): By name.
            step (`int`): The update that they belong to.
        """
        self._each("values", lambda tracker: tracker.log(values, step=step))

    def log_videos(self, files: dict[str, Path], step: int) -> None:
        """
        Send animations to those trackers that show them. (For the others, the files are on disk.)

        Args:
            files (`dict[str, Path]`): GIF files by name.
            step (`int`): The update that they belong to.
        """
        self._each("videos", lambda tracker: _log_videos(tracker, files, step))

    def finish(self) -> None:
        """End the run at all trackers; nothing can be sent any more."""
        self._each("values", lambda tracker: tracker.finish())
        self._trackers = []

    def _each(self, what: str, send: Callable[[GeneralTracker], None]) -> None:
        for tracker in self._trackers:
            tracker.call(what, send)


class _Guarded:
    """A started tracker; what it raises becomes a warning."""

    def __init__(self, tracker: GeneralTracker) -> None:
        self._tracker = tracker
        self._failing: set[str] = set()
        self._opened = time.monotonic()

    def call(self, what: str, send: Callable[[GeneralTracker], None]) -> None:
        name = self._tracker.name
        try:
            if what in self._failing:
                self._reopen()
            send(self._tracker)
        except Exception as error:  # of any package
            if what not in self._failing:
                logger.warning(f"warning: tracker {name} failed, the run goes on without its {what}: {_say(error)}")
            self._failing.add(what)
            return
        if what in self._failing:
            self._failing.remove(what)
            logger.info(f"tracker {name} works again: it gets {what}")

    def _reopen(self) -> None:
        """TensorBoard's writer is broken for good by one failure, such as a full disk; others help themselves."""
        if self._tracker.name == "tensorboard" and time.monotonic() - self._opened > REOPEN_SECONDS:
            self._opened = time.monotonic()
            self._tracker.start()


def _log_videos(tracker: GeneralTracker, files: dict[str, Path], step: int) -> None:
    """GIFs as they are: encoding them anew would need packages that the trackers do not bring along."""
    if tracker.name == "wandb":
        import wandb

        tracker.log({name: wandb.Video(str(file), format="gif") for name, file in files.items()}, step=step)
    elif tracker.name == "trackio":
        import trackio

        tracker.log({name: trackio.Video(str(file)) for name, file in files.items()}, step=step)
    elif tracker.name == "tensorboard":
        from tensorboard.compat.proto.summary_pb2 import Summary

        images = []
        for name, file in files.items():
            with Image.open(file) as picture:
                width, height = picture.size
            image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=file.read_bytes())
            images.append(Summary.Value(tag=name, image=image))
        tracker.tracker.file_writer.add_summary(Summary(value=images), step)
        tracker.tracker.flush()


def _say(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
