"""Training, validation and test videos: by name, by list or by a hash of the name; no video in two of them."""

import hashlib
import unicodedata
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from os import PathLike
from pathlib import Path
from typing import NamedTuple

from .reader import ClipReader, SubsetReader, check_regular_file, shorten


# All names are held in memory, and hashed.
MAX_VIDEOS = 10**7
MAX_LIST_BYTES = 64 * 2**20


class Split(NamedTuple):
    """
    The sides of a split, each in the order of the whole.

    Args:
        train ([`SubsetReader`]): What is in neither of the others.
        validation ([`SubsetReader`]): Held out, looked at during training.
        test ([`SubsetReader`]): Held out to the end; may be empty.
    """

    train: SubsetReader
    validation: SubsetReader
    test: SubsetReader


def split_videos(
    reader: ClipReader,
    *,
    validation: float | Sequence[str],
    test: float | Sequence[str] = (),
    group: Callable[[str], str] | None = None,
    seed: int = 0,
) -> Split:
    """
    Splits videos into training, validation and test.

    Each of the held-out sides is a share, or a list of names.

    - A share is of a hash of each video's name. A video's side depends on its name alone: it stays where it is when
      videos are added, removed or listed in another order, so a run that is resumed on a grown data set does not train on
      what it validated on. The price is that the share is only met on average.
    - A list has names, or patterns in which `*` stands for anything, slashes included: `"val/*"` is all that lies in the
      folder `val`. [`read_names`] reads them from a file.

    Args:
        reader ([`ClipReader`]):
            The videos.
        validation (`float` or `Sequence[str]`):
            Chance of a video to become validation, in `(0, 1)`, or names.
        test (`float` or `Sequence[str]`, *optional*, defaults to none):
            The same for testing.
        group (`Callable[[str], str]`, *optional*):
            Maps a video's name to what is hashed; videos with the same result stay on one side. Use it when several
            clips come from one recording or one person, e.g. `lambda name: name.split("_c")[0]` for UCF-101. By
            default each video is its own group.
        seed (`int`, *optional*, defaults to 0):
            Another seed gives another split by hash.

    Returns:
        [`Split`]: Readers of the sides.

    Raises:
        `ValueError`: If a share is out of range, a name or pattern fits no video, a video would be on both held-out
            sides, or a side that was asked for is empty; if there are more than 10^7 videos.
    """
    if len(reader) > MAX_VIDEOS:
        raise ValueError(
            f"`reader` must have at most {MAX_VIDEOS} videos to be split by their names but has {len(reader)}. If these are "
            "pieces of longer videos, cut longer ones; otherwise check that the files hold what they say."
        )
    shares = {}
    for key, side in (("validation", validation), ("test", test)):
        if isinstance(side, str):
            raise ValueError(f"`{key}` must be a share or a list of names but got {side!r}: pass a list, [{side!r}].")
        if isinstance(side, (int, float)):
            if not 0 < side < 1:
                raise ValueError(f"`{key}` must lie between 0 and 1, both excluded, but got {side}.")
            shares[key] = side
    if sum(shares.values()) >= 1:
        raise ValueError(
            f"`validation` and `test` must leave videos to train on but add up to {sum(shares.values())}."
        )

    names = [reader.name(video) for video in range(len(reader))]
    listed = {
        key: _matching(key, side, names)
        for key, side in (("validation", validation), ("test", test))
        if key not in shares
    }
    both = sorted(listed.get("validation", set()) & listed.get("test", set()))
    if both:
        raise ValueError(f"`validation` and `test` must be disjoint but both name {shorten(both)}.")

    sides: dict[str, list[int]] = {"train": [], "validation": [], "test": []}
    for video, name in enumerate(names):
        side = next((key for key, members in listed.items() if name in members), None)
        if side is None:
            place = hash_of_name(name if group is None else group(name), seed=seed)
            side = "validation" if place < shares.get("validation", 0) else "train"
            if side == "train" and place >= 1 - shares.get("test", 0):
                side = "test"
        sides[side].append(video)
    empty = [key for key, videos in sides.items() if not videos and (key != "test" or test != ())]
    if empty:
        raise ValueError(
            f"`validation` {_describe(validation)} and `test` {_describe(test)} split {len(reader)} videos so that there are"
            f" none for {' and '.join(empty)}. Pass another share or `seed`, a finer `group`, or names."
        )
    return Split(*(SubsetReader(reader, videos) for videos in sides.values()))


def hash_of_name(name: str, *, seed: int = 0) -> float:
    """
    Where a name falls between 0 and 1: the same on every machine, uniform over names.

    Args:
        name (`str`): The name of a video, or of the group it belongs to.
        seed (`int`, *optional*, defaults to 0): Another seed gives other places.

    Returns:
        `float`: In `[0, 1)`.
    """
    # macOS stores file names decomposed and Linux composed: one normal form makes the split the same on both.
    key = unicodedata.normalize("NFC", f"{seed}/{name}")
    digest = hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def read_names(path: str | PathLike) -> list[str]:
    """
    Names of videos from a text file.

    Args:
        path (`str` or `os.PathLike`): One name or pattern a line; empty lines and those that begin with `#` are left out.

    Returns:
        `list[str]`: The names, in order.

    Raises:
        `ValueError`: If the file does not exist, is no text, has more than 64 MiB or names nothing.
    """
    path = Path(path).expanduser()
    try:
        num_bytes = check_regular_file(path).st_size
        if num_bytes > MAX_LIST_BYTES:
            raise ValueError(f"it has {num_bytes} bytes, more than the {MAX_LIST_BYTES} that are read. Use patterns.")
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise ValueError(f"The list of names {path} can not be read: {error}") from error
    names = [line for line in lines if line and not line.startswith("#")]
    if not names:
        raise ValueError(f"The list of names {path} is empty: it must have the name of a video on each line.")
    return names


def find_videos(reader: ClipReader, names: Sequence[str]) -> list[int]:
    """
    The videos that a list of names means.

    Args:
        reader ([`ClipReader`]): The videos.
        names (`Sequence[str]`): Names, or patterns in which `*` stands for anything.

    Returns:
        `list[int]`: Their numbers, in the order of the reader.

    Raises:
        `ValueError`: If a name or pattern fits no video.
    """
    known = [reader.name(video) for video in range(len(reader))]
    found = _matching("names", names, known)
    return [video for video, name in enumerate(known) if name in found]


def _matching(side: str, patterns: Sequence[str], names: Sequence[str]) -> set[str]:
    """The names that a list means. A name that is there is meant as it stands, whatever it has of `*?[`."""
    known, found, lost = set(names), set(), []
    for pattern in patterns:
        matches = {pattern} if pattern in known else {name for name in names if fnmatchcase(name, pattern)}
        found |= matches
        if not matches:
            lost.append(pattern)
    if lost:
        raise ValueError(
            f"`{side}` names videos that are not there: {shorten(lost)}. Names are such as {shorten(list(names[:3]))}."
        )
    return found


def _describe(side: float | Sequence[str]) -> str:
    return f"{side}" if isinstance(side, (int, float)) else f"({len(side)} names)"
