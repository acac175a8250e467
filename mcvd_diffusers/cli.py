"""The command `mcvd-diffusers`: parse, call, print."""

import argparse
import signal
import sys
import textwrap
import threading

from diffusers.utils import logging as diffusers_logging

from mcvd_diffusers._version import __version__
from mcvd_diffusers.conversion import CheckpointError, Conversion, convert_checkpoint
from mcvd_diffusers.presets import ORIGINAL_NAMES


def main(args: list[str] | None = None) -> int:
    """
    Run a command.

    Args:
        args (`list[str]`, *optional*): The command line; that of the process by default.

    Returns:
        `int`: The exit status: 0, 1 if it did not work (with a message), 2 if the command line is wrong.
    """
    parser = argparse.ArgumentParser(prog="mcvd-diffusers", description="Masked conditional video diffusion.")
    parser.add_argument("--version", action="version", version=f"mcvd-diffusers {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_convert(commands)
    arguments = parser.parse_args(args)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # names that the terminal cannot show
    is_main_thread = threading.current_thread() is threading.main_thread()  # elsewhere signals cannot be caught
    if is_main_thread:
        # Being asked to stop ends in the same clean-up as Ctrl-C, and so does a terminal that is closed.
        numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
        former = [signal.signal(number, lambda number, _: sys.exit(128 + number)) for number in numbers]
    try:
        return arguments.run(arguments)
    except KeyboardInterrupt:
        print("Stopped.", file=sys.stderr)
        return 130
    finally:
        if is_main_thread:
            for number, handler in zip(numbers, former):
                signal.signal(number, handler)


def _add_convert(commands) -> None:
    parser = commands.add_parser(
        "convert",
        allow_abbrev=False,
        help="a checkpoint of the original code -> a pipeline folder",
        description="Convert a checkpoint of the original MCVD code into a folder for MCVDPipeline.from_pretrained.",
        epilog="The checkpoint is read as untrusted: whatever it holds, no code of it is run.\n\npresets:\n  "
        + "\n  ".join(ORIGINAL_NAMES),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "checkpoint", metavar="CHECKPOINT", help="a .pt file, or the folder of the experiment, or its logs"
    )
    parser.add_argument("output", metavar="OUT", help="the folder to write; it appears when it is complete")
    parser.add_argument("--config", help="the run's config.yml, if it does not lie beside the checkpoint")
    parser.add_argument(
        "--preset",
        metavar="NAME",
        help="a published model instead of a lost config; listed below",
    )
    parser.add_argument(
        "--weights",
        choices=("ema", "model"),
        help="averaged or raw weights; if not given, those that the original samples with",
    )
    parser.add_argument(
        "--verify",
        action="store_true",
        help="compare the converted network's output with a second implementation on the original's state dict",
    )
    parser.set_defaults(run=_convert)


def _convert(arguments: argparse.Namespace) -> int:
    diffusers_logging.set_verbosity_error()
    diffusers_logging.disable_progress_bar()
    try:
        result = convert_checkpoint(
            arguments.checkpoint,
            arguments.output,
            config=arguments.config,
            preset=arguments.preset,
            weights=arguments.weights,
            verify=arguments.verify,
        )
    except (CheckpointError, OSError) as error:
        print(f"mcvd-diffusers convert: {_printable(str(error))}", file=sys.stderr)
        return 1
    print(_printable(_report(result)))
    return 0


def _printable(text: str) -> str:
    """Names come from files that nobody vouches for: no control characters reach the terminal."""
    return "".join(character if character.isprintable() or character == "\n" else "?" for character in text)


def _report(result: Conversion) -> str:
    weights = "moving average (EMA)" if result.weights == "ema" else "raw"
    lines = [
        ("from", f"{result.checkpoint}, with {result.config}"),
        ("sha256", result.sha256),
        ("weights", f"{weights}, {result.num_parameters:,} parameters, after {result.step:,} updates"),
        ("tasks", ", ".join(result.tasks) or "none"),
    ]
    if result.stray:
        lines.append(("ignored", f"options of the config that are not known: {', '.join(result.stray)}"))
    lines += [("note", note) for note in result.notes]
    lines += [("verified", sentence) for sentence in result.verified]
    if result.max_difference is not None:
        lines.append(("", f"(To be exact: {result.max_difference:.2e}.)"))
    lines += [("not", f"verified: {sentence}") for sentence in result.not_verified]
    lines.append(("written", f"{result.output}"))
    lines.append(("use", f'MCVDPipeline.from_pretrained("{result.output}")'))
    return "\n".join(
        textwrap.fill(
            text,
            100,
            initial_indent=f"{label:9}",
            subsequent_indent=" " * 9,
            break_long_words=False,
            break_on_hyphens=False,
        )
        for label, text in lines
    )


if __name__ == "__main__":
    sys.exit(main())
