"""What a conversion did, and what all conversions have in common: the record, a file's digest, the comparison of outputs."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from .components import bound
from .untrusted import CheckpointError


# Largest difference between two float32 implementations, relative to the largest output. Rounding gives 1e-6 to 1e-5 on
# all shapes of the tests.
VERIFY_TOLERANCE = 1e-4


@dataclass
class Conversion:
    """
    What a conversion did.

    Args:
        output (`Path`): The pipeline folder.
        checkpoint (`Path`), config (`str`): Where it comes from.
        sha256 (`str`): Of the checkpoint's file.
        weights (`str`): `"ema"` or `"model"`.
        step, epoch (`int`, *optional*): Of the training, as the file says, if it does.
        num_parameters (`int`): Of the network.
        tasks (`list[str]`): What the network was trained for.
        system (`str`): `"mcvd"`, `"ramvid"`, `"fdm"` or `"vdm"`.
        stray (`list[str]`): Options of the config that are not known, and were ignored.
        notes (`list[str]`): What is converted in another way than to be expected.
        verified (`list[str]`): What was checked, in sentences.
        not_verified (`list[str]`): What was not, or cannot be.
        max_difference (`float`, *optional*): With `verify`: largest difference from the second implementation.
    """

    output: Path
    checkpoint: Path
    config: str
    sha256: str
    weights: str
    step: int | None
    epoch: int | None
    num_parameters: int
    tasks: list[str]
    system: str = "mcvd"
    stray: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    verified: list[str] = field(default_factory=list)
    not_verified: list[str] = field(default_factory=list)
    max_difference: float | None = None


def sha256_of(path: Path) -> str:
    """
    The digest of a file.

    Args:
        path (`Path`): The file.

    Returns:
        `str`: Its SHA-256.
    """
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def compare_outputs(pairs: Iterable[tuple[torch.Tensor, torch.Tensor]], how: str) -> tuple[float, str]:
    """
    Hold a converted network's outputs against those of the second implementation.

    Args:
        pairs (iterable of pairs of `torch.Tensor`): Ours and theirs; each pair is computed when its turn comes.
        how (`str`): On what they were compared, for the sentence.

    Returns:
        `tuple[float, str]`: The largest difference, and a sentence that says what was done.

    Raises:
        CheckpointError: If they differ, or there is nothing to compare.
    """
    largest, scale = 0.0, 0.0
    for ours, theirs in pairs:
        if not (ours.isfinite().all() and theirs.isfinite().all()):
            raise CheckpointError(
                "The converted network's output is NaN or infinite: these weights are too large. Nothing was written."
            )
        largest = max(largest, float((ours - theirs).abs().max()))
        scale = max(scale, float(theirs.abs().max()))
    if scale == 0:
        raise CheckpointError(
            "The network's output is zero everywhere, so there is nothing to compare. Nothing was written."
        )
    if not largest <= VERIFY_TOLERANCE * scale:
        raise CheckpointError(
            f"The converted network differs from the second implementation by {largest:.2e}, where the largest output is"
            f" {scale:.2e}: the conversion is wrong. Nothing was written. Please report the config and this message."
        )
    return largest, (
        "The folder was loaded again, and its network compared with a second, independent implementation that runs on the"
        f" source file's own state dict, {how}: the largest difference is below {bound(largest)}, the largest output"
        f" {scale:.2g}."
    )
