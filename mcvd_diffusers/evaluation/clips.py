"""Which clips a protocol judges: the videos of a reader, or moving digits, in an order that depends on nothing else."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import Dataset

from mcvd_diffusers.data import ClipDataset, ClipReader, MovingDigits, SubsetReader, load_digits, num_clip_starts
from mcvd_diffusers.normalization import FrameNormalizer
from mcvd_diffusers.protocols import Protocol


@dataclass(frozen=True)
class EvaluationClip:
    """
    One clip that is judged.

    Args:
        index (`int`): Its number, from 0.
        video (`str`): Name of its video. Clips of one video are not independent.
        start (`int`): First frame, in the video.
        frames (`torch.Tensor` of shape `(T, C, H, W)`, float32): In the units of the model: given and true frames.
        sha256 (`str`): Of the frames, shortened: whether two evaluations saw the same.
    """

    index: int
    video: str
    start: int
    frames: torch.Tensor
    sha256: str


class EvaluationClips:
    """
    The clips of a protocol, in order. Made by [`choose_clips`] or [`draw_digits`].

    Args:
        dataset (`Dataset`): Items `{"video": (T, C, H, W)}` as the network sees them.
        places (`list[tuple[int, str, int]]`): For each clip the item, the name of its video, and its first frame.
        normalizer ([`FrameNormalizer`]): Brings items into the units of the model.
        missing_values (`str`): Of the protocol.
        description (`str`): What the data are, for the result.
        num_skipped (`int`, *optional*, defaults to 0): Videos that are too short for a clip and were left out.
    """

    def __init__(
        self,
        dataset: Dataset,
        places: list[tuple[int, str, int]],
        *,
        normalizer: FrameNormalizer,
        missing_values: str,
        description: str,
        num_skipped: int = 0,
    ) -> None:
        self._dataset, self._places, self._normalizer = dataset, places, normalizer
        self._is_filled = missing_values == "fill"
        self.description, self.num_skipped = description, num_skipped

    def __len__(self) -> int:
        """Number of clips."""
        return len(self._places)

    @property
    def num_videos(self) -> int:
        """How many different videos they are of."""
        return len({video for _, video, _ in self._places})

    def facts(self) -> dict:
        """
        Reads all clips once: what is broken or missing is told before hours of sampling.

        Returns:
            `dict`: `"clips_sha256"`: of all clips with their places, in order: whether two evaluations saw the same.
            `"share_of_values_beyond_range"`: of values that the model's range cuts off, in truth and samples.

        Raises:
            ValueError: If a clip cannot be judged.
        """
        digest, num_beyond, num_values = hashlib.sha256(), 0, 0
        low, high = (torch.tensor(ends)[:, None, None] for ends in (self._normalizer.low, self._normalizer.high))
        for index in range(len(self)):
            stored = self._read(index)
            clip = self._make_clip(index, stored)
            digest.update(f"{clip.video}\n{clip.start}\n{clip.sha256}\n".encode("utf-8", "surrogateescape"))
            if stored.dtype == torch.float32 and not self._normalizer.is_unit:
                num_beyond += int(((stored < low) | (stored > high)).sum())
            num_values += stored.numel()
        return {"clips_sha256": digest.hexdigest(), "share_of_values_beyond_range": num_beyond / num_values}

    def __getitem__(self, index: int) -> EvaluationClip:
        """
        Reads one clip.

        Args:
            index (`int`): Its number.

        Returns:
            [`EvaluationClip`]: The clip.

        Raises:
            ValueError: If it cannot be read, or values are missing and the protocol refuses that.
        """
        return self._make_clip(index, self._read(index))

    def _read(self, index: int) -> torch.Tensor:
        """The frames of a clip as the data set holds them, (T, C, H, W)."""
        item, video, start = self._places[index]
        try:
            return self._dataset[item]["video"]
        except (OSError, ValueError) as error:
            raise ValueError(f"Clip {index}, of {video} from frame {start}, cannot be judged: {error}") from error

    def _make_clip(self, index: int, stored: torch.Tensor) -> EvaluationClip:
        _, video, start = self._places[index]
        frames = self._normalizer.decode(self._dataset.encode(stored))
        if not torch.isfinite(frames).all():
            if not self._is_filled:
                raise ValueError(
                    f"{video} has missing values (NaN) in frames {start} and following, and errors against them cannot be"
                    " computed: a protocol with `missing_values: fill` puts in what the model sees there."
                )
            frames = fill_missing(frames, self._normalizer)
        digest = hashlib.sha256(frames.numpy().tobytes()).hexdigest()[:16]
        return EvaluationClip(index, video, start, frames, digest)


def choose_clips(
    reader: ClipReader, protocol: Protocol, *, normalizer: FrameNormalizer, num_channels: int, description: str
) -> EvaluationClips:
    """
    The clips that a protocol takes from videos.

    Args:
        reader ([`ClipReader`]): The test videos.
        protocol ([`Protocol`]): Which clips.
        normalizer ([`FrameNormalizer`]): Of the model.
        num_channels (`int`): Of the model's frames, in its units.
        description (`str`): What the data are.

    Returns:
        [`EvaluationClips`]: The clips.

    Raises:
        ValueError: If there are fewer clips than the protocol asks for, videos are too short, broken or of another kind, or
            do not fit the model; the message says which.
    """
    if protocol.num_channels not in (None, num_channels):
        raise ValueError(
            f"The model makes frames of {num_channels} channel(s), and {protocol.label} judges frames of"
            f" {protocol.num_channels}: choose a protocol for such data, or a model for this one."
        )
    span = (protocol.num_clip_frames - 1) * protocol.frame_stride + 1
    lengths = [reader.num_frames(video) for video in range(len(reader))]
    short = [video for video, length in enumerate(lengths) if length < span]
    if short and (protocol.short_videos == "refuse" or len(short) == len(reader)):
        names = ", ".join(f"{reader.name(video)} ({lengths[video]})" for video in short[:5])
        raise ValueError(
            f"{len(short)} of {len(reader)} videos have fewer than the {span} frames of a clip of {protocol.label}: {names}"
            f"{' and more' if len(short) > 5 else ''}. Take them out (--names), or use a protocol of one's own with a shorter"
            " clip, or with `short_videos: skip`."
        )
    reader = SubsetReader(reader, [video for video in range(len(reader)) if lengths[video] >= span])
    lengths = [length for length in lengths if length >= span]
    num_starts = [
        num_clip_starts(length, num_frames=protocol.num_clip_frames, stride=protocol.frame_stride)
        for length in lengths
    ]
    chosen = _choose(protocol, num_starts)
    dataset = ClipDataset(
        reader,
        num_frames=protocol.num_clip_frames,
        frame_size=protocol.frame_size,
        resize=protocol.resize,
        num_channels=num_channels,
        stride=protocol.frame_stride,
        clip_step=1,  # so that each start is a clip
        random_start=False,
        normalizer=normalizer,
        encoded=False,  # so that values beyond the range can be seen
        strict=True,  # nothing takes the place of a clip that is broken
    )
    first_clips = np.cumsum([0, *num_starts])
    return EvaluationClips(
        dataset,
        [(int(first_clips[video]) + start, reader.name(video), start) for video, start in chosen],
        normalizer=normalizer,
        missing_values=protocol.missing_values,
        description=description,
        num_skipped=len(short),
    )


def draw_digits(protocol: Protocol, *, num_channels: int) -> EvaluationClips:
    """
    The moving digits that a protocol describes, of held-out images.

    Args:
        protocol ([`Protocol`]): With `moving_digits`.
        num_channels (`int`): Of the model's frames.

    Returns:
        [`EvaluationClips`]: The clips.

    Raises:
        ValueError: If the protocol has no `moving_digits`, or the model is not for grey frames.
        ImportError, OSError: If the digits are not there.
    """
    digits = protocol.moving_digits
    if digits is None:
        raise ValueError(f"{protocol.label} judges videos, not digits that are drawn: pass --data PATH.")
    if num_channels != 1:
        raise ValueError(
            f"The model makes frames of {num_channels} channels, and moving digits are grey: pass --data."
        )
    source = digits["source"]
    images = load_digits(source, split="validation", size=digits["digit_size"])
    if len(images) < digits["num_images"]:
        raise ValueError(f"{protocol.label} uses {digits['num_images']} images, and {source} has {len(images)}.")
    dataset = MovingDigits(
        images[: digits["num_images"]] if digits["num_images"] else images,
        num_frames=protocol.num_clip_frames,
        num_clips=protocol.num_clips,
        canvas_size=protocol.frame_size,
        num_digits=digits["num_digits"],
        max_speed=digits["max_speed"],
        seed=protocol.clip_seed,
    )
    return EvaluationClips(
        dataset,
        [(number, f"digits {number}", 0) for number in range(len(dataset))],
        normalizer=FrameNormalizer(),
        missing_values=protocol.missing_values,
        description=f"moving digits, drawn from held-out images of {source}",
    )


def fill_missing(frames: torch.Tensor, normalizer: FrameNormalizer) -> torch.Tensor:
    """
    Puts in what a model was trained to see where values are missing.

    Args:
        frames (`torch.Tensor` of shape `(..., C, H, W)`): In the model's units, NaN where missing.
        normalizer ([`FrameNormalizer`]): Of the model.

    Returns:
        `torch.Tensor` of the same shape: Without NaN, if the normalizer has a fill.
    """
    if normalizer.nan_fill is None:
        return frames
    fill = torch.tensor(normalizer.nan_fill, dtype=frames.dtype, device=frames.device)[:, None, None]
    return torch.where(frames.isnan(), fill, frames)


def _choose(protocol: Protocol, num_starts: Sequence[int]) -> list[tuple[int, int]]:
    """(video, start) of each clip; `num_starts` are those of each video."""
    num_videos = len(num_starts)
    num_clips = num_videos if protocol.num_clips is None else protocol.num_clips
    available = num_videos if protocol.clip_choice == "first" else sum(num_starts)
    if num_clips > available or num_clips < 2:
        what = "one a video" if protocol.clip_choice == "first" else "counting each start in a video"
        raise ValueError(
            f"{protocol.label} judges {max(2, num_clips)} clips, and the data have {available} ({what}). Fewer would be another"
            " protocol: pass more data, or --num_clips, which the numbers then say."
        )
    chosen = []
    for clip in range(num_clips):
        # Spread over all videos, in order; with more clips than videos some are taken several times. (MCVD's rule.)
        video = round(clip / (num_clips - 1) * (num_videos - 1))
        rng = np.random.RandomState(np.random.MT19937(np.random.SeedSequence(protocol.clip_seed, spawn_key=(clip,))))
        # The original draws from `choice(length - clip)`, and so never the last start.
        last = num_starts[video] - (1 if protocol.clip_choice == "mcvd" else 0)
        start = 0 if protocol.clip_choice == "first" or last < 1 else int(rng.randint(last))
        chosen.append((video, start))
    return chosen
