"""The command `mcvd-diffusers`: parse, call, print."""

import argparse
import signal
import sys
import threading

from mcvd_diffusers._version import __version__

from .convert import add_convert
from .data import add_data
from .evaluate import add_evaluate
from .model import add_model
from .plan import add_plan
from .sample import add_sample


def main(args: list[str] | None = None) -> int:
    """
    Run a command.

    Args:
        args (`list[str]`, *optional*): The command line; that of the process by default.

    Returns:
        `int`: The exit status: 0, 1 if it did not work (with a message), 2 if the command line is wrong.
    """
    arguments = make_parser().parse_args(args)
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


def make_parser() -> argparse.ArgumentParser:
    """
    The command line.

    Returns:
        `argparse.ArgumentParser`: With all commands.
    """
    parser = argparse.ArgumentParser(prog="mcvd-diffusers", description="Masked conditional video diffusion.")
    parser.add_argument("--version", action="version", version=f"mcvd-diffusers {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    add_sample(commands)
    add_convert(commands)
    add_data(commands)
    add_evaluate(commands)
    add_model(commands)
    add_plan(commands)
    return parser
