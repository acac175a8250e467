"""What is in a source of videos, before training finds out: lengths, sizes, values, and what is broken.

[`inspect_videos`] asks every video for its header, decodes its first and its last frame, and measures values on frames
that are spread over all of them. What it finds is turned into the flags of `train_mcvd.py` that fit.

Shapes: T frames, C channels, H height, W width.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
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

# Of train_mcvd.py's defaults: frames of a clip, 4 past + 4 made + 2 future, and clips of a batch. An epoch must have as
# many clips as a batch.
DEFAULT_NUM_FRAMES = 10
BATCH_SIZE = 16
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

    @property
    def is_color(self) -> bool:
        """Whether the channels can be shown as red, green and blue."""
        return self.num_channels == 3 and self.is_image

    @property
    def empty(self) -> list[int]:
        """Channels without a finite value."""
        return [channel for channel, low in enumerate(self.low) if np.isnan(low)]

    @property
    def constant(self) -> list[int]:
        """Channels of which all values are the same."""
        return [channel for channel, (low, high) in enumerate(zip(self.low, self.high)) if low == high]

    @property
    def is_dim(self) -> bool:
        """Whether these are images that fill less than half of the range that images have."""
        finite = [value for value in (*self.low, *self.high) if np.isfinite(value)]
        white = 255 if self.dtype == "uint8" else 1
        return self.is_image and bool(finite) and 0 < max(finite) - min(finite) < white / 2


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
        vectors (`dict[str, int]`): Name -> numbers a frame of what was asked for beside the frames.
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
    vectors: dict[str, int] = field(default_factory=dict)

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
    vectors: Sequence[str] = (),
    progress: Callable[[Iterable, str], Iterable] | None = None,
) -> Inspection:
    """
    Looks at every video of a source.

    A video whose header or first frame, or what is asked for beside the frames, can not be read is *unreadable*:
    [`ClipDataset`] leaves it out. One of which
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
        vectors (`Sequence[str]`, *optional*):
            What must be there beside the frames; the rows of the first and the last frame are read.
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
            _check_vectors(reader, video, info, vectors, found.vectors)
        except (OSError, ValueError) as error:
            found.unreadable[name] = short_reason(name, str(error))
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
    lengths = [info.num_frames for info in found.readable]
    if not lengths:
        return TrainingFlags(None, ["No video can be read.", *_hints_for_unreadable(found)])
    _note_odd_shapes(found, notes)
    notes += _hints_for_unreadable(found)
    if max(lengths) < found.clip_length:
        longest = -(-max(lengths) // found.stride)
        notes.append(
            f"No video is long enough for clips of {found.num_frames} frames: the longest gives {longest}. Train on "
            "shorter clips (fewer past, made and future frames), or repeat last frames with --pad_short_videos."
        )
        return TrainingFlags(None, notes)
    if found.stride > 1:
        flags += ["--frame_stride", str(found.stride)]
    if found.vectors:
        flags += ["--vectors", *found.vectors]
    is_usable = _suggest_geometry(found, flags, notes)
    can_be_trained_on = _suggest_values(found, flags, notes) and suggest_clips(reader, found, is_usable, flags, notes)
    return TrainingFlags(flags if can_be_trained_on else None, notes)


def flags_of_clip_length(num_frames: int, notes: list[str]) -> list[str]:
    """
    The flags of `train_mcvd.py` for clips of a length.

    Args:
        num_frames (`int`): Frames of a clip.
        notes (`list[str]`): Where a note is added, if there are any flags.

    Returns:
        `list[str]`: None for the default.
    """
    if num_frames == DEFAULT_NUM_FRAMES:
        return []
    third = num_frames // 3
    parts = {"past": third, "": num_frames - 2 * third, "future": third}
    notes.append(
        f"Clips of {num_frames} frames are divided in thirds here, {third} past + {parts['']} made + {third} future: any"
        f" other numbers that add up to {num_frames} will do."
    )
    return [x for part, n in parts.items() for x in (f"--num_{part}{'_' * bool(part)}frames", str(n))]


def short_reason(name: str, reason: str) -> str:
    """
    Why a video can not be read, without what stands beside it anyway.

    Args:
        name (`str`): Of the video.
        reason (`str`): The message of an error.

    Returns:
        `str`: Without the path at its beginning, and with FFmpeg's error in words.
    """
    stem = re.escape(name.split("[")[0])
    path = re.compile(rf"(?:/.*?/)?{stem}(?:\.\w{{1,5}})?(?=[\s:/])[:/\s]*(?:can not be read: )?", re.DOTALL)
    while (match := path.match(reason)) and match.end() < len(reason):
        reason = reason[match.end() :]
    reason = re.sub(r"(cannot identify image file) '.*'", r"\1", reason, flags=re.DOTALL)
    invalid = r"\[Errno \d+\] (Invalid data found when processing input)(?:: '.*')?"
    return re.sub(invalid, r"damaged or cut off (\1)", reason, flags=re.DOTALL)


# ----------------------------------------------------------------------------------------------------------------------
# Frames


class _Values:
    """What is gathered of the values of one number of channels and one type."""

    def __init__(self) -> None:
        self.statistics = ValueStatistics()
        self.num_values = self.num_nan = self.num_infinite = 0

    def update(self, frames: np.ndarray) -> None:
        num_at_once = max(1, MAX_VALUES_AT_ONCE // frames[0].size)
        with np.errstate(all="ignore"):  # squares of huge values overflow
            for first in range(0, len(frames), num_at_once):
                self.statistics.update(frames[first : first + num_at_once])
        self.num_values += frames.size
        if frames.dtype.kind == "f":
            self.num_nan += int(np.isnan(frames).sum())
            self.num_infinite += int(np.isinf(frames).sum())

    def summary(self, num_channels: int, dtype: str) -> ValueSummary:
        measured = self.statistics
        is_empty = [not np.isfinite(low) for low in measured.low]
        with np.errstate(all="ignore"):
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
                    broken.append(f"frame {frame}: {short_reason(reader.name(video), str(error))}")


def _check_vectors(
    reader: ClipReader, video: int, info: VideoInfo, vectors: Sequence[str], widths: dict[str, int]
) -> None:
    """Refuses a video without what was asked for beside its frames, or of another width than those before it."""
    found = {}
    for vector in vectors:
        for frame in {0, info.num_frames - 1}:
            found[vector] = reader.read_vector(video, vector, frame, 1).shape[1]
        if found[vector] != widths.get(vector, found[vector]):
            raise ValueError(
                f"`{vector}` has {found[vector]} numbers a frame where videos before have {widths[vector]}"
            )
    widths.update(found)


# ----------------------------------------------------------------------------------------------------------------------
# Flags


def _hints_for_unreadable(found: Inspection) -> list[str]:
    unknown = "cannot identify image file"
    is_tiff = any(
        unknown in reason and ".tif" in f"{name} {reason}".lower() for name, reason in found.unreadable.items()
    )
    return ["Pillow reads no 16-bit images of several channels: convert to npy."] if is_tiff else []


def _note_odd_shapes(found: Inspection, notes: list[str]) -> None:
    smallest = min(min(info.height, info.width) for info in found.readable)
    most = max(info.num_channels for info in found.readable)
    if smallest < 4:
        notes.append(f"Frames are {smallest} pixel{'s' * (smallest > 1)} high or wide: is --axes right?")
    if most > 64:
        notes.append(f"Frames have {most:,} channels: is --axes right?")


def _suggest_geometry(found: Inspection, flags: list[str], notes: list[str]) -> list[bool]:
    """Flags of channels and sizes; for each video, whether it can be used with them."""
    is_usable = [info is not None and info.num_frames >= found.clip_length for info in found.infos]
    usable = [info for info, ok in zip(found.infos, is_usable) if ok]
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
            is_usable = [ok and info.num_channels not in skipped for info, ok in zip(found.infos, is_usable)]
    sizes = Counter((info.height, info.width) for info in usable)
    if len(sizes) > 1:
        height, width = max(sizes, key=lambda size: (sizes[size], -size[0] * size[1]))
        flags += ["--resolution", str(height), str(width), "--resize", "cover"]
    return is_usable


def _is_grey(summary: ValueSummary) -> bool:
    rows = (summary.low, summary.high, summary.mean, summary.std)
    return summary.dtype == "uint8" and all(len(set(row)) == 1 for row in rows)


def _suggest_values(found: Inspection, flags: list[str], notes: list[str]) -> bool:
    """Flags of units and missing values; whether there are any."""
    finite = [x for s in found.values for x in (*s.low, *s.high) if np.isfinite(x)]
    if not finite:
        notes.append("There is no finite value in the frames that were looked at.")
        return False
    low, high = min(finite), max(finite)
    if low == high:
        notes.append(f"All values that were looked at are {low:g}: there is nothing to learn.")
        return False
    if max(-low, high) > float(np.finfo(np.float32).max):  # as numpy floats, 1e300 would be cast
        notes.append(
            f"Values go from {low:g} to {high:g}, but a network computes in single precision, which ends at"
            f" {np.finfo(np.float32).max:.2g}: are some of them a mark for missing ones (make them NaN), or the file damaged?"
        )
        return False
    can_be_measured = True
    is_mixed = len({summary.num_channels for summary in found.values}) > 1
    for summary in found.values:
        if summary.empty:
            notes.append(f"Channels {summary.empty} have no value in the frames that were looked at: leave them out.")
            can_be_measured = False
    is_image = all(summary.is_image for summary in found.values)
    if not is_image:
        if is_mixed or "--in_channels" in flags:
            # Channels are measured one by one, and here they are not always the same.
            flags += ["--normalization", "range", f"--value_low={low:.6g}", f"--value_high={high:.6g}"]
            notes.append("The range is that of the frames that were looked at; values beyond it are clipped.")
        else:
            flags += ["--normalization", "min_max"]
            for summary in found.values:
                if summary.constant:
                    notes.append(
                        f"Channels {summary.constant} are constant in the frames that were looked at, which can not be"
                        " measured: state a range (--normalization range --value_low A --value_high B), or leave them out."
                    )
                    can_be_measured = False
        if not is_mixed and len(found.values) > 1:
            notes.append(f"Types differ ({', '.join(s.dtype for s in found.values)}): are the units the same?")
    elif all(summary.is_dim for summary in found.values):
        white = 255 if found.values[0].dtype == "uint8" else 1
        text = f"Values go from {low:g} to {high:g}, less than half of the 0 to {white} that images have"
        is_measurable = len(found.values) == 1 and not found.values[0].constant and "--in_channels" not in flags
        if is_measurable and can_be_measured:
            flags += ["--normalization", "min_max"]
            text += ": --normalization min_max makes use of the whole range"
        notes.append(f"{text}.")
    _suggest_fill(found, is_mixed or "--in_channels" in flags, flags, notes)
    if any(summary.num_infinite for summary in found.values):
        notes.append("Infinite values are refused: repair them, or make them NaN if they are missing.")
    return can_be_measured


def _suggest_fill(found: Inspection, is_one_for_all: bool, flags: list[str], notes: list[str]) -> None:
    """What missing values become: 0 where that is the lowest (no rain), else the mean."""
    summary = next((summary for summary in found.values if summary.nan_share), None)
    if summary is None:
        return
    fills = ["0" if low == 0 or np.isnan(low) else f"{mean:.4g}" for low, mean in zip(summary.low, summary.mean)]
    are_alike = len(set(zip(summary.low, summary.high))) == 1
    if is_one_for_all or are_alike or len(set(fills)) == 1:
        fills = fills[:1]
    flags += ["--nan_fill", *fills, "--nan_mask_channel"]
    kinds = [words for words, is_there in (("0", "0" in fills), ("the mean", set(fills) != {"0"})) if is_there]
    notes.append(
        f"--nan_fill is {' or '.join(kinds)} here{', channel by channel' if len(fills) > 1 else ''}; another value may say"
        " more. --nan_mask_channel lets the network see where values are missing."
    )


def suggest_clips(
    reader: ClipReader, found: Inspection, is_usable: list[bool], flags: list[str], notes: list[str]
) -> bool:
    """
    Adds the flags that hold out some videos and make at least a batch of clips of the others.

    Args:
        reader ([`ClipReader`]): The videos.
        found ([`Inspection`]): What was found in them.
        is_usable (`list[bool]`): For each video, whether clips can be taken from it.
        flags (`list[str]`): Where flags are added.
        notes (`list[str]`): Where notes are added.

    Returns:
        `bool`: Whether it can be trained on that.
    """
    usable = [info.num_frames for info, ok in zip(found.infos, is_usable) if ok]
    is_cut, num_bad = len(usable) == 1, len(is_usable) - len(usable)
    if is_cut:
        if usable[0] < 2 * found.clip_length:
            notes.append(
                "Only one video can be used, and it is too short to hold out a part of it: choose shorter clips, or add"
                " videos."
            )
            return False
        # A piece of a clip's length has one start only: twice as long, if some pieces can still be held out.
        shortest = found.clip_length * (2 if usable[0] >= 4 * found.clip_length else 1)
        length = max(shortest, usable[0] // NUM_PIECES)
        flags += ["--split_frames", str(length)]
        name = found.names[is_usable.index(True)]
        reader = PieceReader(reader, length)
        is_usable = _usable_pieces(reader, found.clip_length, name)
    held_out, sides = _held_out(reader, is_usable)
    if sides is None:
        notes.append(f"{len(usable)} videos are too few to hold some out: add videos, or pass --validation_names.")
        return False
    num_starts = [reader.num_frames(video) - found.clip_length + 1 for video in sides[0] if is_usable[video]]

    def num_clips(step: int | None) -> int:
        return len(num_starts) if step is None else sum(-(-count // step) for count in num_starts)

    step = found.clip_step
    if step is None and (is_cut or num_clips(None) < BATCH_SIZE):
        # Clips side by side, or overlapping if these are too few.
        step = found.clip_length
        while num_clips(step) < BATCH_SIZE and step > 1:
            step //= 2
        step = step if num_clips(step) > num_clips(None) else None
    if step is not None:
        flags += ["--clip_step", str(step)]
    flags += held_out
    if num_clips(step) < BATCH_SIZE:
        flags += ["--train_batch_size", str(num_clips(step))]
    bad_share = max(sum(not is_usable[video] for video in side) / len(side) for side in sides)
    if bad_share > MAX_BAD_SHARE:
        flags += ["--max_bad_share", f"{min(1, np.ceil(bad_share * 100) / 100):g}"]
        notes.append(
            f"{num_bad} of {len(found.infos)} videos can not be used, unreadable or too short, and train_mcvd.py stops at more than {MAX_BAD_SHARE:.0%} of those to train on"
            " or to hold out: --max_bad_share allows more, --pad_short_videos uses short ones."
        )
    return True


def _usable_pieces(reader: PieceReader, clip_length: int, name: str) -> list[bool]:
    """For each piece, whether it is of this video, and a clip fits in it."""
    is_usable = []
    for piece in range(len(reader)):
        try:
            is_long = reader.num_frames(piece) >= clip_length
        except (OSError, ValueError):
            is_long = False
        is_usable.append(is_long and reader.name(piece).rpartition("[")[0] == name)
    return is_usable


def _held_out(reader: ClipReader, is_usable: list[bool]) -> tuple[list[str], tuple[list[int], list[int]] | None]:
    """
    Flags that leave a usable video on both sides, and the videos of both: the first fraction that does, as names fall, or
    else the last usable video by its name.
    """
    names = [reader.name(video) for video, ok in enumerate(is_usable) if ok][-1:]
    for validation in (*VALIDATION_FRACTIONS, names):
        try:
            split = split_videos(reader, validation=validation)
        except ValueError:  # one side is empty
            continue
        sides = split.train.videos, split.validation.videos
        if all(any(is_usable[video] for video in side) for side in sides):
            if validation == VALIDATION_FRACTIONS[0]:
                return [], sides
            if validation is names:
                return ["--validation_names", *names], sides
            return ["--validation_fraction", f"{validation:g}"], sides
    return [], None
