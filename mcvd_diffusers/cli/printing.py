"""What the commands print, and how their arguments are read."""

import argparse
import sys
import textwrap
import time
from collections.abc import Iterable


def printable(text: str) -> str:
    """Names come from files that nobody vouches for: no control characters reach the terminal."""
    return "".join(character if character.isprintable() or character == "\n" else "?" for character in text)


def one_line(text: str) -> str:
    """For what must not look like several lines, whatever the names in it."""
    return printable(" ".join(text.splitlines()))


def in_columns(lines: list[tuple[str, str]], label_width: int) -> str:
    """Labels, and what stands beside them, in lines of at most 100 characters."""
    return "\n".join(
        textwrap.fill(
            text,
            100,
            initial_indent=f"{label:{label_width}}",
            subsequent_indent=" " * label_width,
            break_long_words=False,
            break_on_hyphens=False,
        )
        for label, text in lines
    )


def number_of(number: int, noun: str) -> str:
    """So many of something: `"1 video"`, `"2 videos"`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def integer_from(minimum: int, maximum: int | None = None):
    """A type of arguments: integers from a minimum on, up to a maximum if there is one."""

    def integer(text: str) -> int:
        number = int(text)
        if number < minimum:
            raise argparse.ArgumentTypeError(f"must be at least {minimum}, got {text}")
        if maximum is not None and number > maximum:
            raise argparse.ArgumentTypeError(f"must be at most {maximum:,}, got {text}")
        return number

    return integer


def named(text: str) -> str:
    """A type of arguments: paths and ids, which an empty variable of a shell is not."""
    if not text.strip():
        raise argparse.ArgumentTypeError("must name something, got nothing")
    return text


def number_in(low: float, high: float):
    """A type of arguments: numbers from one to another, both included."""

    def number(text: str) -> float:
        if not low <= float(text) <= high:
            raise argparse.ArgumentTypeError(f"must be from {low:g} to {high:g}, got {text}")
        return float(text)

    return number


def show_progress(items: Iterable, label: str) -> Iterable:
    """The items, with a bar on the way if somebody looks at it."""
    from tqdm import tqdm

    return tqdm(items, desc=label, unit=" videos", file=sys.stderr, leave=False, disable=not sys.stderr.isatty())


def log_progress(items: Iterable, label: str, *, seconds: float = 60.0) -> Iterable:
    """The items; for what takes hours and is looked at in a log, a line about each minute."""
    items = list(items)
    started = said = time.monotonic()
    for count, item in enumerate(items):
        now = time.monotonic()
        if count and now - said >= seconds:
            said, left = now, (now - started) / count * (len(items) - count)
            left = f"{left:.0f} s" if left < 120 else f"{left / 60:.0f} min" if left < 7200 else f"{left / 3600:.1f} h"
            print(f"{label}: {count} of {len(items)}, about {left} left", flush=True)
        yield item
