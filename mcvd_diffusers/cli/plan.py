"""`mcvd-diffusers plan`: the windows of a long video, and what they cost, before anything is computed."""

import argparse
import difflib
import sys
from pathlib import Path

from mcvd_diffusers.frame_plans import FramePlan
from mcvd_diffusers.frame_schedules import (
    ADAPTIVE_FRAME_SCHEDULES,
    FRAME_SCHEDULES,
    MOST_PLANNED_FRAMES,
    frame_schedule,
    schedule_name,
)

from .printing import integer_from, printable


PLANNED = [name for name in FRAME_SCHEDULES if name not in ADAPTIVE_FRAME_SCHEDULES]


def add_plan(commands) -> None:
    """Adds the command to those of a parser."""
    parser = commands.add_parser(
        "plan",
        allow_abbrev=False,
        help="the windows of a long video, and what they cost",
        description="Show how a frame schedule cuts a long video into windows: which frames each window reads and makes,"
        " which windows may run at once, how many frames must be held.",
        epilog="schedules:\n  "
        + "\n  ".join(PLANNED)
        + "\n\nAdaptive schedules look at finished frames, so they cannot be planned.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", metavar="NAME", help="a schedule; listed below")
    parser.add_argument(
        "--num_frames", type=integer_from(1), required=True, metavar="N", help="frames of the whole video"
    )
    parser.add_argument(
        "--observed",
        type=_positions,
        nargs="+",
        default=[],
        metavar="A:B",
        help="the given frames: from A up to, but without, B, or single positions, such as 0:36 60 99 (default: none)",
    )
    parser.add_argument(
        "--max_frames", type=integer_from(1), required=True, metavar="K", help="frames of a window, at most"
    )
    parser.add_argument(
        "--step", type=integer_from(1), metavar="N", help="frames that a window makes (default: half of --max_frames)"
    )
    parser.add_argument(
        "--num_inference_steps", type=integer_from(1), metavar="N", help="count the calls of the network too"
    )
    parser.add_argument("--output", metavar="FILE.png", help="a picture of the plan; nothing is overwritten")
    parser.set_defaults(run=_plan)


def _plan(arguments: argparse.Namespace) -> int:
    last = max((positions[-1] for positions in arguments.observed if positions), default=0)
    try:
        if schedule_name(arguments.name) in ADAPTIVE_FRAME_SCHEDULES:
            raise ValueError(
                f"{arguments.name} cannot be planned ahead: it looks at finished frames to choose those it reads."
                f" {arguments.name.removeprefix('adaptive-')} makes the same frames in windows that can be planned."
            )
        if schedule_name(arguments.name) not in PLANNED:
            close = difflib.get_close_matches(arguments.name, PLANNED, n=1)
            hint = f"Did you mean {close[0]}? " if close else ""
            raise ValueError(f"{hint}NAME must be one of {', '.join(PLANNED)}, got {arguments.name!r}.")
        if max(arguments.num_frames, last) > MOST_PLANNED_FRAMES:
            raise ValueError(
                f"--num_frames and --observed must be at most {MOST_PLANNED_FRAMES:,}: longer videos are not planned ahead,"
                " but made in parts."
            )
        observed = {position for positions in arguments.observed for position in positions}
        file = None if arguments.output is None else _picture_file(arguments.output)
        windows = frame_schedule(
            arguments.name,
            arguments.num_frames,
            observed=observed,
            max_frames=arguments.max_frames,
            step=arguments.step,
        )
        plan = FramePlan.of(windows, arguments.num_frames, observed=observed)
        picture = None if file is None else _picture(plan, file)
    except (ValueError, OSError) as error:
        print(f"mcvd-diffusers plan: {printable(str(error))}", file=sys.stderr)
        return 2
    print(plan.describe())
    if arguments.num_inference_steps is not None:
        single, batched = (
            plan.num_network_calls(arguments.num_inference_steps, is_batched=is_batched)
            for is_batched in (False, True)
        )
        print(f"calls of the network: {single:,}" + (f", or {batched:,} with batches" if batched < single else ""))
    if plan.windows:
        print(f"\n{_table(plan)}")
    if file is not None:
        try:
            with file.open("xb") as stream:
                picture.save(stream, format="PNG")
        except OSError as error:
            print(f"mcvd-diffusers plan: {printable(str(error))}", file=sys.stderr)
            return 1
        print(printable(f"\npicture: {file}"))
    return 0


def _picture_file(output: str) -> Path:
    """Where the picture goes; found out before anything is printed."""
    file = Path(output).expanduser()
    if file.suffix.lower() != ".png":
        raise ValueError(f"--output must end in .png, got {file}.")
    if not file.absolute().parent.is_dir():
        raise FileNotFoundError(f"--output {file} lies in a folder that does not exist: make it, or name another.")
    if file.exists() or file.is_symlink():
        raise FileExistsError(f"--output {file} exists, and nothing is overwritten: name another.")
    return file


def _picture(plan: FramePlan, file: Path):
    """The picture, drawn before anything is printed, since not every plan has one."""
    from mcvd_diffusers.visualization import draw_plan  # slow to import

    try:
        return draw_plan(plan)
    except ValueError as error:
        raise ValueError(f"--output {file}: {error} Or leave out --output.") from error


def _table(plan: FramePlan) -> str:
    """A line for each window."""
    wave_of = {number: wave for wave, numbers in enumerate(plan.waves()) for number in numbers}
    rows = [("window", "wave", "observed", "latent")]
    rows += [
        (str(number), str(wave_of[number]), _runs(window.observed) or "-", _runs(window.latent))
        for number, window in enumerate(plan.windows)
    ]
    width = max(len(row[2]) for row in rows)
    return "\n".join(
        f"{number:>6} {wave:>5}  {observed:<{width}}  {latent}" for number, wave, observed, latent in rows
    )


def _runs(positions: tuple[int, ...]) -> str:
    """Positions as `--observed` takes them: `"0:3 7"` for 0, 1, 2 and 7."""
    runs: list[list[int]] = []
    for position in positions:
        if runs and runs[-1][1] == position:
            runs[-1][1] += 1
        else:
            runs.append([position, position + 1])
    return " ".join(f"{first}:{end}" if end - first > 1 else str(first) for first, end in runs)


def _positions(text: str) -> range:
    """A range such as `0:36`, or one position."""
    first, colon, end = text.partition(":")
    try:
        positions = range(int(first), int(end)) if colon else range(int(first), int(first) + 1)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be like 0:36 or 60, got {text!r}") from None
    if not positions or positions[0] < 0:
        raise argparse.ArgumentTypeError(f"must be positions from 0 on, the first before the end, got {text!r}")
    return positions
