"""What is in a source of videos, before training finds out: lengths, sizes, values, and what is broken.

[`inspect_videos`] asks every video for its header, decodes its first and its last frame, and measures values on frames
that are spread over all of them. What it finds is turned into the flags of `train_mcvd.py` that fit.

Shapes: T frames, C channels, H height, W width.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np

from mcvd_diffusers.normalization import ValueStatistics

from .reader import ClipReader, PieceReader, VideoInfo, check_integer, num_clip_starts, spread_over
from .splits import split_videos


# Frames of a video are decoded together as far as they fit in here: a video may have to be decoded from its beginning
# for each call.
MAX_BYTES_AT_ONCE = 64 * 2**20
# ... and measured as far as they fit in here: sums are float64, and take several copies.
MAX_VALUES_AT_ONCE = 2**21

# Fewer clips than this make an epoch that is over before it is worth it.
FEW_CLIPS = 16
# A single long video is cut into about as many pieces.
NUM_PIECES = 20
# train_mcvd.py holds out the first of these by default.
VALIDATION_FRACTIONS = (0.1, 0.2, 0.3, 0.4, 0.5)
# Its default.
MAX_BAD_SHARE = 0.5

KINDS = {
    "ArrayReader": "arrays",
    "DatasetsReader": "a Hugging Face data set",
    "FieldReader": "Zarr or NetCDF fields",
    "FrameFolderReader": "folders of images",
    "HDF5Reader": "HDF5 files of the original MCVD code",
    "LeRobotReader": "a LeRobotDataset",
    "TarReader": "tar shards",
    "VideoFileReader": "video files",
}


@dataclass(frozen=True)
class ValueSummary:
    """
    The values of all frames of one number of channels and one type.

    Args:
        num_channels (`int`): Channels of these frames.
        dtype (`str`): Type of their values.
        num_frames (`int`): How many frames were looked at.
        low, high, mean, std (`list[float]`): Of each channel, in the units of the source; NaN if it has no finite value.
        nan_share (`float`): Share of the values that are NaN, 0 to 1.
        num_infinite (`int`): Values that are infinite.
    """

    num_channels: int
    dtype: str
    num_frames: int
    low: list[float]
    high: list[float]
    mean: list[float]
    std: list[float]
    nan_share: float
    num_infinite: int

    @property
    def is_image(self) -> bool:
        """Whether training takes the values as they are: uint8, or floating point in `[0, 1]`."""
        finite = [value for value in (*self.low, *self.high) if np.isfinite(value)]
        is_float = np.dtype(self.dtype).kind == "f"
        return self.dtype == "uint8" or (is_float and all(0 <= value <= 1 for value in finite))


@dataclass
class Inspection:
    """
    What was found in a source of videos.

    Args:
        reader (`str`): Class of the reader.
        kind (`str`): What it reads, in words; empty if it is not one of this package.
        num_frames, stride (`int`): The clips that were asked about.
        clip_step (`int`, *optional*): Starts of a video for which an epoch has one clip, if that was asked about.
        names (`list[str]`): Of all videos, in order.
        infos (`list[VideoInfo | None]`): Of all videos; `None` for those that can not be read.
        unreadable (`dict[str, str]`): Name -> reason of videos whose header or first frame can not be read.
        damaged (`dict[str, str]`): Name -> reason of others, of whose frames some that were looked at can not be read.
        values (`list[ValueSummary]`): One for each number of channels and type that occurs, most frames first.
    """

    reader: str
    kind: str
    num_frames: int
    stride: int
    clip_step: int | None
    names: list[str] = field(default_factory=list)
    infos: list[VideoInfo | None] = field(default_factory=list)
    unreadable: dict[str, str] = field(default_factory=dict)
    damaged: dict[str, str] = field(default_factory=dict)
    values: list[ValueSummary] = field(default_factory=list)

    @property
    def readable(self) -> list[VideoInfo]:
        """What is known of the videos that training would use, if they are long enough."""
        return [info for info in self.infos if info is not None]

    @property
    def clip_length(self) -> int:
        """Frames of a video that a clip covers."""
        return (self.num_frames - 1) * self.stride + 1

    @property
    def num_starts(self) -> list[int]:
        """For each readable video, at how many frames a clip can start: 0 if it is too short."""
        return [
            num_clip_starts(info.num_frames, num_frames=self.num_frames, stride=self.stride) for info in self.readable
        ]

    @property
    def num_values_frames(self) -> int:
        """Frames that the values were measured on."""
        return sum(summary.num_frames for summary in self.values)

    def clips_per_epoch(self, clip_step: int | None = None) -> int:
        """
        Clips that [`ClipDataset`] would make of these videos.

        Args:
            clip_step (`int`, *optional*): One for each so many starts; one for each video by default.

        Returns:
            `int`: Clips in an epoch.
        """
        long_enough = [count for count in self.num_starts if count]
        return len(long_enough) if clip_step is None else sum(-(-count // clip_step) for count in long_enough)

    def values_of(self, info: VideoInfo) -> ValueSummary | None:
        """
        The values of videos like one.

        Args:
            info ([`VideoInfo`]): Of the video.

        Returns:
            [`ValueSummary`] or `None`: Of its number of channels and type; `None` if no such frame was looked at.
        """
        kind = (info.num_channels, info.dtype)
        return next((summary for summary in self.values if (summary.num_channels, summary.dtype) == kind), None)


class TrainingFlags(NamedTuple):
    """
    How to train on what was found.

    Args:
        flags (`list[str]` or `None`): Flags of `train_mcvd.py` with their values, as words of a command line; `None` if
            there is nothing that it could be trained on.
        notes (`list[str]`): What no flag can say, in sentences.
    """

    flags: list[str] | None
    notes: list[str]


class SampledClip(NamedTuple):
    """
    Frames of a video to look at.

    Args:
        name (`str`): Of the video.
        info ([`VideoInfo`]): Of the video.
        numbers (`list[int]`): Numbers of the frames in the video.
        frames (`np.ndarray` of shape `(T, C, H, W)`): As the reader gives them.
    """

    name: str
    info: VideoInfo
    numbers: list[int]
    frames: np.ndarray


def inspect_videos(
    reader: ClipReader,
    *,
    num_frames: int,
    stride: int = 1,
    clip_step: int | None = None,
    max_value_frames: int = 1000,
    progress: Callable[[Iterable, str], Iterable] | None = None,
) -> Inspection:
    """
    Looks at every video of a source.

    A video whose header or first frame can not be read is *unreadable*: [`ClipDataset`] leaves it out. One of which
    another frame that was looked at can not be read, or has another shape or type than the first, is *damaged*:
    [`ClipDataset`] would find out when it draws a clip from there. Frames that are not looked at can be damaged, too.

    Args:
        reader ([`ClipReader`]):
            The videos.
        num_frames (`int`):
            Frames of the clips that are to be drawn.
        stride (`int`, *optional*, defaults to 1):
            Frames of a video from one frame of a clip to the next.
        clip_step (`int`, *optional*):
            An epoch has one clip for each so many starts of a video; only carried along.
        max_value_frames (`int`, *optional*, defaults to 1000):
            Frames on which values are measured, spread evenly over all videos; 0: all.
        progress (`Callable[[Iterable, str], Iterable]`, *optional*):
            Wraps what is gone through, under a label, to show how far it is.

    Returns:
        [`Inspection`]: What was found.

    Raises:
        `ValueError`: If a number is out of range.
        `ImportError`: If a package is missing that reads such videos.
    """
    check_integer("num_frames", num_frames, minimum=1)
    check_integer("stride", stride, minimum=1)
    if clip_step is not None:
        check_integer("clip_step", clip_step, minimum=1)
    check_integer("max_value_frames", max_value_frames, minimum=0)
    progress = progress or _without_progress

    class_name = type(reader).__name__
    found = Inspection(class_name, KINDS.get(class_name, ""), num_frames, stride, clip_step)
    for video in progress(range(len(reader)), "headers"):
        name, info = reader.name(video), None
        try:
            info = reader.info(video)
            first = _read_frames(reader, video, info, range(1))
            info = replace(info, dtype=first.dtype.name)
        except (OSError, ValueError) as error:
            found.unreadable[name] = str(error)
            info = None
        found.names.append(name)
        found.infos.append(info)

    measured: dict[tuple[int, str], _Values] = defaultdict(_Values)
    wanted = spread_over([info.num_frames if info else 0 for info in found.infos], max_value_frames)
    for video in progress(range(len(reader)), "frames"):
        info = found.infos[video]
        if info is None:
            continue
        broken = []
        values = measured[info.num_channels, info.dtype]
        for frames in _read_one_by_one_if_broken(reader, video, info, wanted[video], broken):
            values.update(frames)
        last = range(info.num_frames - 1, info.num_frames)
        if last[0] not in wanted[video]:
            for _ in _read_one_by_one_if_broken(reader, video, info, last, broken):
                pass
        if broken:
            more = f" (and {len(broken) - 1} more of the frames that were looked at)" if len(broken) > 1 else ""
            found.damaged[found.names[video]] = broken[0] + more
    summaries = [values.summary(*kind) for kind, values in measured.items() if values.statistics.num_frames]
    found.values = sorted(summaries, key=lambda summary: -summary.num_frames)
    return found


def sample_clips(
    reader: ClipReader, found: Inspection, *, num_videos: int = 8, num_frames: int = 8
) -> Iterator[SampledClip]:
    """
    Frames to look at: of videos that are spread over the source, those of their first clip.

    Args:
        reader ([`ClipReader`]): The videos.
        found ([`Inspection`]): What was found in them.
        num_videos (`int`, *optional*, defaults to 8): How many videos, at most.
        num_frames (`int`, *optional*, defaults to 8): How many frames of each, spread over the clip, at most.

    Yields:
        [`SampledClip`]: One video at a time. Frames that can not be read are left out, and videos without any.
    """
    readable = [video for video, info in enumerate(found.infos) if info is not None]
    for place in _evenly(len(readable), num_videos):
        video = readable[place]
        info = found.infos[video]
        length = min(found.num_frames, -(-info.num_frames // found.stride))  # of a clip, where the video is too short
        numbers, frames = [], []
        for number in (position * found.stride for position in _evenly(length, num_frames)):
            with suppress(OSError, ValueError):
                frames.append(_read_frames(reader, video, info, range(number, number + 1)))
                numbers.append(number)
        if frames:
            yield SampledClip(found.names[video], info, numbers, np.concatenate(frames))  # (T, C, H, W)


def training_flags(reader: ClipReader, found: Inspection) -> TrainingFlags:
    """
    The flags of `train_mcvd.py` that suit what was found, but for those that say where it is.

    Args:
        reader ([`ClipReader`]): The videos.
        found ([`Inspection`]): What was found in them.

    Returns:
        [`TrainingFlags`]: Flags, and what they can not say.
    """
    flags, notes = [], []
    num_bad = len(found.infos) - sum(count > 0 for count in found.num_starts)
    if num_bad > MAX_BAD_SHARE * len(found.infos):
        notes.append(
            f"{num_bad} of {len(found.infos)} videos can not be used, unreadable or too short, and train_mcvd.py stops at"
            f" more than {MAX_BAD_SHARE:.0%}: --max_bad_share allows more, --pad_short_videos uses short ones."
        )
    lengths = [info.num_frames for info in found.readable]
    if not lengths:
        return TrainingFlags(None, ["No video can be read."])
    if max(lengths) < found.clip_length:
        longest = -(-max(lengths) // found.stride)
        return TrainingFlags(
            None,
            [
                f"No video is long enough for clips of {found.num_frames} frames: the longest gives {longest}. Train on "
                "shorter clips (fewer past, made and future frames), or repeat last frames with --pad_short_videos."
            ],
        )
    if found.stride > 1:
        flags += ["--frame_stride", str(found.stride)]
    _suggest_geometry(found, flags, notes)
    _suggest_values(found, flags, notes)
    _suggest_clips(reader, found, flags, notes)
    return TrainingFlags(flags, notes)


# ----------------------------------------------------------------------------------------------------------------------
# Frames


class _Values:
    """What is gathered of the values of one number of channels and one type."""

    def __init__(self) -> None:
        self.statistics = ValueStatistics()
        self.num_values = self.num_nan = self.num_infinite = 0

    def update(self, frames: np.ndarray) -> None:
        num_at_once = max(1, MAX_VALUES_AT_ONCE // frames[0].size)
        for first in range(0, len(frames), num_at_once):
            self.statistics.update(frames[first : first + num_at_once])
        self.num_values += frames.size
        if frames.dtype.kind == "f":
            self.num_nan += int(np.isnan(frames).sum())
            self.num_infinite += int(np.isinf(frames).sum())

    def summary(self, num_channels: int, dtype: str) -> ValueSummary:
        measured = self.statistics
        is_empty = [not np.isfinite(low) for low in measured.low]
        low, high, mean, std = (
            [np.nan if empty else value for value, empty in zip(values, is_empty)]
            for values in (measured.low, measured.high, measured.mean, measured.std)
        )
        nan_share = self.num_nan / max(1, self.num_values)
        return ValueSummary(
            num_channels, dtype, measured.num_frames, low, high, mean, std, nan_share, self.num_infinite
        )


def _without_progress(items: Iterable, label: str) -> Iterable:
    return items


def _evenly(length: int, count: int) -> list[int]:
    """Up to `count` different places in `0..length - 1`, the first and the last among them."""
    return sorted(set(np.linspace(0, length - 1, min(length, count)).round().astype(int).tolist())) if length else []


def _read_frames(reader: ClipReader, video: int, info: VideoInfo, frames: range) -> np.ndarray:
    """Frames `(T, C, H, W)`, after a check that they are what the header promises."""
    values = reader.read(video, frames.start, len(frames), frames.step)
    expected = (len(frames), info.num_channels, info.height, info.width)
    is_number = values.dtype.kind in "iuf"
    # The header's word for the type is not binding, but the first frame's is.
    if values.shape != expected or not is_number or (frames.start > 0 and values.dtype != info.dtype):
        raise ValueError(
            f"frames (C, H, W) must be {info.dtype} of {expected[1:]} throughout but got {values.dtype} of "
            f"{values.shape[1:]}"
        )
    return values


def _read_one_by_one_if_broken(
    reader: ClipReader, video: int, info: VideoInfo, frames: range, broken: list[str]
) -> Iterator[np.ndarray]:
    """Frames in large windows; of a window that can not be read, each frame that can. The others go to `broken`."""
    frame_bytes = info.num_channels * info.height * info.width * np.dtype(info.dtype).itemsize
    num_at_once = max(1, MAX_BYTES_AT_ONCE // max(1, frame_bytes))
    for first in range(0, len(frames), num_at_once):
        window = frames[first : first + num_at_once]
        try:
            yield _read_frames(reader, video, info, window)
        except (OSError, ValueError):
            for frame in window:
                try:
                    yield _read_frames(reader, video, info, range(frame, frame + 1))
                except (OSError, ValueError) as error:
                    broken.append(f"frame {frame}: {error}")


# ----------------------------------------------------------------------------------------------------------------------
# Flags


def _suggest_geometry(found: Inspection, flags: list[str], notes: list[str]) -> None:
    usable = [info for info in found.readable if info.num_frames >= found.clip_length]
    channels = Counter(info.num_channels for info in usable)
    if set(channels) == {3} and all(s.num_channels != 3 or _is_grey(s) for s in found.values):
        flags += ["--in_channels", "1"]
        notes.append("The three channels look the same: --in_channels 1 takes them for grey.")
    if len(channels) > 1:
        # Grey becomes any number of channels, three become grey; others are left out.
        most = 3 if set(channels) == {1, 3} else max(channels, key=lambda count: (channels[count], count))
        flags += ["--in_channels", str(most)]
        skipped = sorted(count for count in channels if count not in (1, most) and (count, most) != (3, 1))
        if skipped:
            notes.append(f"Videos of {skipped} channels do not fit those of {most}, which are most, and are skipped.")
    sizes = Counter((info.height, info.width) for info in usable)
    if len(sizes) > 1:
        height, width = max(sizes, key=lambda size: (sizes[size], -size[0] * size[1]))
        flags += ["--resolution", str(height), str(width), "--resize", "cover"]


def _is_grey(summary: ValueSummary) -> bool:
    rows = (summary.low, summary.high, summary.mean, summary.std)
    return summary.dtype == "uint8" and all(len(set(row)) == 1 for row in rows)


def _suggest_values(found: Inspection, flags: list[str], notes: list[str]) -> None:
    if not all(summary.is_image for summary in found.values):
        flags += ["--normalization", "min_max"]
        if len({summary.num_channels for summary in found.values}) > 1:
            notes.append(
                "--normalization min_max measures each channel, so all videos must have the same: state a range for all of"
                " them instead (--normalization range --value_low A --value_high B)."
            )
        elif len(found.values) > 1:
            notes.append(f"Types differ ({', '.join(s.dtype for s in found.values)}): are the units the same?")
        for summary in found.values:
            constant = [c for c, (low, high) in enumerate(zip(summary.low, summary.high)) if low == high]
            if constant:
                notes.append(
                    f"Channels {constant} are constant in the frames that were looked at, which can not be measured: state"
                    " a range (--normalization range --value_low A --value_high B), or leave them out."
                )
    for summary in found.values:
        empty = [channel for channel, low in enumerate(summary.low) if np.isnan(low)]
        if empty:
            notes.append(f"Channels {empty} have no value in the frames that were looked at: leave them out.")
    with_nan = [summary for summary in found.values if summary.nan_share]
    if with_nan:
        means = [mean for mean in with_nan[0].mean if np.isfinite(mean)]
        if means:
            fill = f"{means[0]:.4g}"
            # In one word, a number such as -1e-05 is not taken for a flag.
            flags += [f"--nan_fill={fill}"] if means[0] < 0 else ["--nan_fill", fill]
        notes.append(
            "--nan_fill is the mean here"
            + (", of the first channel" if len(means) > 1 else "")
            + "; another value may say more (0 for rain). --nan_mask_channel lets the network see where values are missing."
        )
    if any(summary.num_infinite for summary in found.values):
        notes.append("Infinite values are refused: repair them, or make them NaN if they are missing.")


def _suggest_clips(reader: ClipReader, found: Inspection, flags: list[str], notes: list[str]) -> None:
    is_usable = [info is not None and info.num_frames >= found.clip_length for info in found.infos]
    usable = [info.num_frames for info, ok in zip(found.infos, is_usable) if ok]
    is_cut = False
    if len(usable) == 1:
        if usable[0] < 2 * found.clip_length:
            notes.append(
                "Only one video can be used, and it is too short to hold out a part of it: choose shorter clips, or add"
                " videos."
            )
            return
        # A piece of a clip's length has one start only: twice as long, if some pieces can still be held out.
        shortest = found.clip_length * (2 if usable[0] >= 8 * found.clip_length else 1)
        length = max(shortest, usable[0] // NUM_PIECES)
        flags += ["--split_frames", str(length)]
        reader = PieceReader(reader, length)
        is_usable, is_cut = _usable_pieces(reader, found.clip_length), True
        usable = [reader.num_frames(piece) for piece, ok in enumerate(is_usable) if ok]
    num_starts = [length - found.clip_length + 1 for length in usable]
    if found.clip_step is not None:
        flags += ["--clip_step", str(found.clip_step)]
    elif is_cut or len(usable) < FEW_CLIPS:
        # Clips side by side, or overlapping if these are too few.
        step = found.clip_length
        while (num_clips := sum(-(-count // step) for count in num_starts)) < FEW_CLIPS and step > 1:
            step //= 2
        if num_clips > len(usable):
            flags += ["--clip_step", str(step)]
    fraction = _validation_fraction(reader, is_usable)
    if fraction is None:
        notes.append(
            f"{len(usable)} videos are too few to hold some out by a hash of their names: name those to hold out"
            " (--validation_names)."
        )
    elif fraction != VALIDATION_FRACTIONS[0]:
        flags += ["--validation_fraction", f"{fraction:g}"]


def _usable_pieces(reader: PieceReader, clip_length: int) -> list[bool]:
    """For each piece, whether a clip fits in it."""
    is_usable = []
    for piece in range(len(reader)):
        try:
            is_usable.append(reader.num_frames(piece) >= clip_length)
        except (OSError, ValueError):
            is_usable.append(False)
    return is_usable


def _validation_fraction(reader: ClipReader, is_usable: list[bool]) -> float | None:
    """The first fraction that leaves a usable video on both sides, as names fall; `None` if none does."""
    for fraction in VALIDATION_FRACTIONS:
        try:
            split = split_videos(reader, validation=fraction)
        except ValueError:  # one side is empty
            continue
        if all(any(is_usable[video] for video in side.videos) for side in (split.train, split.validation)):
            return fraction
    return None
