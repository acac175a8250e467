"""`mcvd-diffusers data`: look at videos before training on them; write moving digits."""

import argparse
import io
import itertools
import math
import shlex
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from .loading import add_reading_options, given_reading_options, reading_options
from .printing import in_columns, integer_from, number_of, one_line, printable, show_progress


if TYPE_CHECKING:
    # What the data need is imported where it is needed: `--help` and `convert` do without.
    from mcvd_diffusers.data import ClipReader
    from mcvd_diffusers.data.inspection import Inspection, ValueSummary

MAX_LINES = 10  # of files, sizes: a report should still be readable
MAX_CHANNELS = 8  # whose values it lists


def add_data(commands) -> None:
    """Adds the command, with commands of its own, to those of a parser."""
    parser = commands.add_parser(
        "data",
        help="look at videos before training on them; write moving digits",
        description="Look at videos before training on them, or write some to try things out with.",
    )
    data_commands = parser.add_subparsers(dest="data_command", required=True, metavar="COMMAND")
    _add_inspect(data_commands)
    _add_digits(data_commands)


def _add_inspect(commands) -> None:
    parser = commands.add_parser(
        "inspect",
        allow_abbrev=False,
        help="lengths, sizes, values, broken files; the flags of train_mcvd.py that fit; a picture",
        description="Look at all videos at a path: every header is read, the first and the last frame of each video are"
        " decoded, and values are measured on frames that are spread over all of them. Prints what was found and the flags"
        " of train_mcvd.py that fit, and makes a picture.",
        epilog="Exit status: 0; 1 if PATH or all videos in it cannot be read, or --strict and one of them cannot.",
    )
    parser.add_argument("path", metavar="PATH", help="a file or folder, as --train_data_dir of train_mcvd.py takes it")
    parser.add_argument(
        "--num_frames",
        type=integer_from(1),
        default=10,
        metavar="N",
        help="frames of a clip; for train_mcvd.py past, made and future frames together (default: 10, as there)",
    )
    parser.add_argument("--frame_stride", type=integer_from(1), default=1, metavar="N", help="take every n-th frame")
    parser.add_argument(
        "--clip_step",
        type=integer_from(1),
        metavar="N",
        help="an epoch has one clip for each so many starts of a video",
    )
    add_reading_options(parser)
    parser.add_argument(
        "--vectors",
        nargs="+",
        default=[],
        metavar="NAME",
        help="what must be there beside each frame, such as actions",
    )
    parser.add_argument(
        "--frames",
        type=integer_from(0),
        default=1000,
        metavar="K",
        help="frames to measure values on, spread over all videos; 0: all (default: 1000)",
    )
    parser.add_argument("--list", action="store_true", help="one line for each video, before the report")
    parser.add_argument(
        "--strict",
        action="store_true",
        help="exit with status 1 if a video is unreadable or damaged, after the report",
    )
    picture = parser.add_mutually_exclusive_group()
    picture.add_argument(
        "--contact_sheet",
        metavar="FILE.png",
        help="picture of frames of some videos; nothing is overwritten (default: NAME-contact-sheet.png here, after PATH)",
    )
    picture.add_argument("--no_contact_sheet", action="store_true", help="make no picture")
    parser.set_defaults(run=_inspect)


def _inspect(arguments: argparse.Namespace) -> int:
    from mcvd_diffusers.data import open_reader
    from mcvd_diffusers.data.inspection import inspect_videos
    from mcvd_diffusers.data.original import published_split

    try:
        sheet = None if arguments.no_contact_sheet else _sheet_file(arguments)
        reader = open_reader(arguments.path, **reading_options(arguments))
        found = inspect_videos(
            reader,
            num_frames=arguments.num_frames,
            stride=arguments.frame_stride,
            clip_step=arguments.clip_step,
            max_value_frames=arguments.frames,
            vectors=arguments.vectors,
            progress=show_progress,
        )
        is_as_arrays = arguments.axes is not None or arguments.variables is not None
        is_published = not is_as_arrays and published_split(arguments.path) is not None
        if arguments.list:
            print("\n".join(map(one_line, _listed(found))))
        print(printable(in_columns(_described(found, arguments), 12)))
        for line in _training_lines(reader, found, arguments, is_published):
            print(printable(line))
        if sheet is not None:
            print(printable(in_columns([("picture", _save_sheet(sheet, reader, found))], 12)))
    except (ValueError, OSError, ImportError) as error:
        print(f"mcvd-diffusers data inspect: {one_line(str(error))}", file=sys.stderr)
        return 1
    num_bad = len(found.unreadable) + len(found.damaged)
    if not found.readable:
        print("mcvd-diffusers data inspect: no video can be read.", file=sys.stderr)
        return 1
    if arguments.strict and num_bad:
        print(f"mcvd-diffusers data inspect: --strict: {number_of(num_bad, 'video')} cannot be read.", file=sys.stderr)
        return 1
    return 0


def _sheet_file(arguments: argparse.Namespace) -> Path:
    """Where the picture goes; found out before the work, which may take long."""
    name = Path(arguments.path).expanduser().resolve().name or "data"
    file = Path(arguments.contact_sheet or f"{name}-contact-sheet.png").expanduser()
    if file.suffix.lower() != ".png":
        raise ValueError(f"--contact_sheet must end in .png but is {file}.")
    if not file.absolute().parent.is_dir():
        raise FileNotFoundError(
            f"--contact_sheet {file} lies in a folder that does not exist: make it, or name another."
        )
    return file


def _save_sheet(file: Path, reader: "ClipReader", found: "Inspection") -> str:
    """Makes the picture of some videos; says what was done."""
    from mcvd_diffusers.data.inspection import sample_clips
    from mcvd_diffusers.visualization import data_sheet

    left_alone = f"{file} exists and was left alone; --contact_sheet NAME writes another"
    if file.exists() or file.is_symlink():
        return left_alone
    if not found.readable:
        return "none: there is nothing to show"
    num_videos = 0

    def rows():
        nonlocal num_videos
        for clip in sample_clips(reader, found):
            values, num_videos = found.values_of(clip.info), num_videos + 1
            # Colours keep their hue, so all channels have one scale; of other channels the first is shown.
            num_shown = 3 if values and values.is_color else 1
            low, high = ([min(values.low)], [max(values.high)]) if num_shown == 3 else ([0.0], [1.0])
            if values and num_shown == 1:
                low, high = values.low[:1], values.high[:1]
            numbers = ", ".join(map(str, clip.numbers))
            label = f"{clip.name}   [frame{'s' * (len(clip.numbers) > 1)} {numbers}]"
            yield label, clip.frames[:, :num_shown], low * num_shown, high * num_shown

    scales = []
    for v in found.values:
        shown = slice(None) if v.is_color else slice(1)
        which = f", channel 0 of {v.num_channels}" if v.num_channels > 1 and not v.is_color else ""
        scales.append(f"{v.dtype}{which}: black {min(v.low[shown]):.6g}, white {max(v.high[shown]):.6g}")
    if any(values.nan_share for values in found.values):
        scales.append("magenta: missing (NaN)")
    stream = io.BytesIO()
    data_sheet(rows(), caption=";  ".join(scales)).save(stream, format="png")
    try:
        with file.open("xb") as output:
            output.write(stream.getvalue())
    except FileExistsError:  # made in the meantime
        return left_alone
    return f"{file}: the first clip of {number_of(num_videos, 'video')}"


def _listed(found: "Inspection") -> Iterable[str]:
    for name, info in zip(found.names, found.infos):
        if info is None:
            yield f"{name}: unreadable: {found.unreadable[name]}"
            continue
        rate = "" if info.frames_per_second is None else f", {info.frames_per_second:.4g} frames per second"
        text = f"{name}: {number_of(info.num_frames, 'frame')}, {info.height} x {info.width}, "
        text += f"{number_of(info.num_channels, 'channel')}, {info.dtype}{rate}"
        yield text + (f"; damaged: {found.damaged[name]}" if name in found.damaged else "")


def _described(found: "Inspection", arguments: argparse.Namespace) -> list[tuple[str, str]]:
    """What was found: labels, and what stands beside them."""
    infos, num_bad = found.readable, len(found.unreadable)
    lines = [
        ("reader", f"{found.reader}{f', {found.kind}' if found.kind else ''}"),
        (
            "videos",
            f"{len(found.names):,}: {len(infos):,} readable, {num_bad:,} unreadable"
            + (f"; of the readable ones {len(found.damaged):,} damaged inside" if found.damaged else ""),
        ),
    ]
    if infos:
        lengths = sorted(info.num_frames for info in infos)
        median = (lengths[(len(lengths) - 1) // 2] + lengths[len(lengths) // 2]) / 2
        rates = [info.frames_per_second for info in infos if info.frames_per_second is not None]
        lines += [
            ("frames", f"{sum(lengths):,}: {lengths[0]:,} to {lengths[-1]:,} a video, median {median:,.6g}"),
            ("size", _counted(f"{info.height} x {info.width}" for info in infos) + " (height x width)"),
            ("channels", _counted(str(info.num_channels) for info in infos)),
            ("type", _counted(info.dtype for info in infos)),
        ]
        if rates:
            low, high = f"{min(rates):.4g}", f"{max(rates):.4g}"
            of = "" if len(rates) == len(infos) else f" ({len(rates):,} videos say so)"
            lines.append(("rate", f"{low if low == high else f'{low} to {high}'} frames per second{of}"))
        lines.append(
            (
                "looked at",
                f"the first and the last frame of each video; values of {found.num_values_frames:,} of {sum(lengths):,}"
                " frames",
            )
        )
        for summary in found.values:
            lines += _values_lines(summary, len(found.values) > 1, arguments.variables or [])
        lines += [("beside", f"{name}: {number_of(width, 'number')} a frame") for name, width in found.vectors.items()]
        lines += _clips_lines(found)
    too_short = {
        name: number_of(info.num_frames, "frame")
        for name, info in zip(found.names, found.infos)
        if info is not None and info.num_frames < found.clip_length
    }
    problems_by_label = {"damaged": found.damaged, "unreadable": found.unreadable, "too short": too_short}
    for label, problems in problems_by_label.items():
        listed = list(problems.items())
        lines += [(label, f"{name}: {reason}") for name, reason in listed[:MAX_LINES]]
        if len(listed) > MAX_LINES:
            lines.append((label, f"and {len(listed) - MAX_LINES:,} more (--list names all)"))
    return lines


def _values_lines(summary: "ValueSummary", is_one_of_several: bool, variables: list[str]) -> list[tuple[str, str]]:
    """The values of each channel; `variables` names them, if there is one for each."""
    lines = []
    kind = f"{summary.dtype}, {number_of(summary.num_channels, 'channel')}: " if is_one_of_several else ""
    for channel in range(min(summary.num_channels, MAX_CHANNELS)):
        name = f" ({variables[channel]})" if len(variables) == summary.num_channels else ""
        channel_name = f"channel {channel}{name}: " if summary.num_channels > 1 or name else ""
        low, high, mean, std = (x[channel] for x in (summary.low, summary.high, summary.mean, summary.std))
        text = f"{low:.6g} to {high:.6g}, mean {mean:.6g}, std {std:.4g}"
        lines.append(("values", kind + channel_name + ("none" if math.isnan(low) else text)))
    if summary.num_channels > MAX_CHANNELS:
        lines.append(("values", f"{kind}... and {summary.num_channels - MAX_CHANNELS:,} more"))
    if summary.nan_share:
        lines.append(("missing", f"{kind}{summary.nan_share:.3%} of the values are NaN"))
    if summary.num_infinite:
        lines.append(("infinite", f"{kind}{number_of(summary.num_infinite, 'value')}"))
    return lines


def _clips_lines(found: "Inspection") -> list[tuple[str, str]]:
    starts = found.num_starts
    num_long = sum(count > 0 for count in starts)
    step = found.clip_step or found.clip_length
    cover = "" if found.stride == 1 else f" at stride {found.stride}, which cover {found.clip_length}"
    return [
        (
            "clips",
            f"of {number_of(found.num_frames, 'frame')}{cover}: {number_of(num_long, 'video')} long enough,"
            f" {len(starts) - num_long:,} too short; {number_of(sum(starts), 'start')} in all",
        ),
        (
            "epoch",
            f"{number_of(found.clips_per_epoch(), 'clip')}, one a video; {found.clips_per_epoch(step):,} with"
            f" --clip_step {step}",
        ),
    ]


def _training_lines(
    reader: "ClipReader", found: "Inspection", arguments: argparse.Namespace, is_published: bool
) -> list[str]:
    """The hint: notes, and a command to be copied, which is not broken into lines."""
    from mcvd_diffusers.data.inspection import flags_of_clip_length, training_flags

    flags, notes = training_flags(reader, found)
    if is_published:
        flags, notes = [], ["train_mcvd.py splits these data as published, and chooses clips as the original does."]
    if flags is not None:
        flags = [*flags, *flags_of_clip_length(found.num_frames, notes), "--output_dir", _run_folder(arguments.path)]
    where = ["--train_data_dir", arguments.path]
    for name, value in given_reading_options(arguments).items():
        where += [f"--{name}", *([value] if isinstance(value, str) else value)]
    lines = [in_columns([("note", note)], 12) for note in notes]
    if flags is None:
        return lines
    return [*lines, f"{'train with':12}train_mcvd.py {shlex.join([*where, *flags])}"]


def _run_folder(path: str) -> str:
    """A folder for `--output_dir`, named after the data, that is not there yet and does not lie inside of them."""
    data = Path(path).expanduser().resolve()
    name = (data.name if data.is_dir() else data.stem) or "data"
    runs = Path("runs")
    if data.is_dir() and data in [parent.resolve() for parent in runs.absolute().parents]:
        runs = data.parent / "runs"
    names = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
    return str(next(runs / name for name in names if not (runs / name).exists()))


def _add_digits(commands) -> None:
    parser = commands.add_parser(
        "digits",
        allow_abbrev=False,
        help="write moving digits to files",
        description="Write moving digits, 8 bits deep, to files of a kind that train_mcvd.py reads. The same seed gives the"
        " same bytes, as long as the packages that write them stay the same.",
    )
    parser.add_argument("output", metavar="OUT", help="the folder to write; it appears when it is complete")
    parser.add_argument("--num_videos", type=integer_from(1), default=100, metavar="N", help="default: 100")
    parser.add_argument(
        "--num_frames", type=integer_from(1), default=30, metavar="N", help="frames of a video (default: 30)"
    )
    parser.add_argument(
        "--resolution",
        type=integer_from(1),
        nargs="+",
        default=[64],
        metavar="N",
        help="height and width in pixels, or one number for both (default: 64)",
    )
    parser.add_argument(
        "--num_digits", type=integer_from(1), default=2, metavar="N", help="digits in a video (default: 2)"
    )
    parser.add_argument(
        "--digit_size",
        type=integer_from(1),
        metavar="N",
        help="height and width of a digit in pixels (default: half the shorter side)",
    )
    parser.add_argument(
        "--max_speed",
        type=integer_from(0),
        metavar="N",
        help="largest speed in pixels a frame (default: a 16th of the shorter side)",
    )
    parser.add_argument(
        "--digits",
        choices=("sklearn", "mnist-10k", "mnist"),
        default="sklearn",
        help="scikit-learn's digits (default) or 10,000 of MNIST's (no download), or all of MNIST (from the Hub)",
    )
    parser.add_argument(
        "--split", choices=("train", "validation"), default="train", help="which of its images (default: train)"
    )
    parser.add_argument("--seed", type=integer_from(0), default=0, metavar="N", help="default: 0")
    parser.add_argument(
        "--format",
        choices=("npy", "npz", "png", "gif", "mp4", "hdf5", "zarr"),
        default="npy",
        help="one array (npy, default), folders of png, a file for each video (gif; mp4, which is lossy), ...",
    )
    parser.set_defaults(run=_write_digits)


def _write_digits(arguments: argparse.Namespace) -> int:
    from mcvd_diffusers.data import MovingDigits, load_digits
    from mcvd_diffusers.data.digit_files import flags_for_clips, write_moving_digits

    try:
        if len(arguments.resolution) > 2:
            raise ValueError(f"--resolution takes a height and a width, or one number, got {arguments.resolution}.")
        size = arguments.resolution[0], arguments.resolution[-1]
        digit_size = arguments.digit_size or max(1, min(size) // 2)
        max_speed = max(1, min(size) // 16) if arguments.max_speed is None else arguments.max_speed
        clips = MovingDigits(
            load_digits(arguments.digits, split=arguments.split, size=digit_size),
            num_frames=arguments.num_frames,
            num_clips=arguments.num_videos,
            canvas_size=size,
            num_digits=arguments.num_digits,
            max_speed=max_speed,
            seed=arguments.seed,
        )
        flags = write_moving_digits(clips, arguments.output, format=arguments.format, progress=show_progress)
        more, notes = flags_for_clips(clips, flags)
    except (ValueError, OSError, ImportError) as error:
        print(f"mcvd-diffusers data digits: {one_line(str(error))}", file=sys.stderr)
        return 1
    lossy = "; H.264 is lossy: a few grey levels off" if arguments.format == "mp4" else ""
    written = f"{arguments.output}: {number_of(arguments.num_videos, 'video')} of {number_of(arguments.num_frames, 'frame')},"
    written += f" {size[0]} x {size[1]}, {arguments.format}{lossy}"
    print(one_line(f"{'written':12}{written}"))
    if notes:
        print(printable(in_columns([("note", note) for note in notes], 12)))
    if more is not None:
        flags = [*flags, *more, "--output_dir", _run_folder(arguments.output)]
        print(one_line(f"{'train with':12}train_mcvd.py {shlex.join(flags)}"))
    return 0


def _counted(values: Iterable[str]) -> str:
    """What occurs, with how often if it is not always the same."""
    counts = Counter(values).most_common()
    if len(counts) == 1:
        return counts[0][0]
    more = f" and {len(counts) - MAX_LINES:,} more" if len(counts) > MAX_LINES else ""
    return ", ".join(f"{value} ({number_of(number, 'video')})" for value, number in counts[:MAX_LINES]) + more
