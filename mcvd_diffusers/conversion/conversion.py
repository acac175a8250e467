"""What a conversion did, and what all conversions have in common: the record, a file's digest, the comparison of outputs."""

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from diffusers import SchedulerMixin
from safetensors import SafetensorError

from mcvd_diffusers.model_card import plain_text
from mcvd_diffusers.pipelines import MCVDPipeline
from mcvd_diffusers.samplers import make_sampler, num_steps_of

from .components import bound
from .untrusted import CheckpointError


# Largest difference between two float32 implementations, relative to the largest output. Rounding gives 1e-6 to 1e-5 on
# all shapes of the tests.
VERIFY_TOLERANCE = 1e-4

MOST_PIXELS = 65_536

# What a converted pipeline samples with, the default first.
SAMPLERS = ("few_steps", "original")


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
        num_parameters (`int`): Of the network, and its encoder if it has one.
        tasks (`list[str]`): What the network was trained for.
        system (`str`): `"mcvd"`, `"ramvid"`, `"fdm"`, `"vdm"` or `"lgcvd"`.
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


def check_none_empty(shapes: Mapping[str, tuple[int, ...]], what: str) -> None:
    """
    Whether all tensors of a state dict hold something: what follows divides by their sizes.

    Args:
        shapes (`Mapping[str, tuple[int, ...]]`): Name -> shape.
        what (`str`): What is read, for messages.

    Raises:
        CheckpointError: Naming one that is empty.
    """
    for name, shape in shapes.items():
        if 0 in shape:
            raise CheckpointError(f"{what}: {name} is empty, of shape {shape}.")


def check_table(
    shapes: Mapping[str, tuple[int, ...]], known: set[str], config: Mapping, first: int, what: str, kind: str
) -> None:
    """
    Whether a state dict that was recognised by some of its names has all of them, and no others.

    Args:
        shapes (`Mapping[str, tuple[int, ...]]`): Name -> shape.
        known (`set[str]`): The names of the table of keys.
        config (`Mapping`): Of the network that was recognised.
        first (`int`): Channels that its first layer makes, which must be those of its first level.
        what (`str`), kind (`str`): What is read, and what it was taken for, for messages.

    Raises:
        CheckpointError: If not.
    """
    width = config["block_out_channels"][0]
    if first != width:
        raise CheckpointError(
            f"{what}: its first level has {width} channels, after a first layer of {first}. Networks are converted whose first"
            " channel multiplier is 1, as that of all that are published."
        )
    differences = {"missing": known - shapes.keys(), "left over": shapes.keys() - known}
    found = [f"{sorted(names)[:3]} ({len(names)} in all) are {how}" for how, names in differences.items() if names]
    if found:
        raise CheckpointError(
            f"{what} looks like {kind}, but {' and '.join(found)}. It is another network, or one with options that are not published."
        )


def check_count(name: str, value: int | None, most: int) -> None:
    """
    Refuse an option that is no count.

    Raises:
        CheckpointError: If it is neither `None` nor an integer from 1 to `most`.
    """
    if value is not None and (type(value) is not int or not 1 <= value <= most):
        raise CheckpointError(f"`{name}` must be an integer from 1 to {most:,}, got {value!r}.")


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


def sampling_settings(
    result: Conversion, sampler: str, scheduler: SchedulerMixin, num_steps: int, *, final_denoise: bool = False
) -> dict:
    """
    How a converted pipeline samples; what the reader should know of it is added to the notes.

    Args:
        result ([`Conversion`]): Its `notes` are added to.
        sampler (`str`): One of `SAMPLERS`.
        scheduler ([`SchedulerMixin`]), num_steps (`int`), final_denoise (`bool`): The original's.

    Returns:
        `dict`: Arguments of [`MCVDPipeline`].
    """
    name = type(scheduler).__name__.removesuffix("Scheduler")
    original = f"the original's sampler, {name} in {num_steps} steps"
    if final_denoise:
        original += " and a last call of the network"
    if sampler == "original":
        return {"scheduler": scheduler, "num_inference_steps": num_steps, "final_denoise": final_denoise}
    ours = make_sampler(scheduler)
    few = num_steps_of(type(ours).__name__, most=scheduler.config.num_train_timesteps)
    result.notes.append(
        f"It is saved with {type(ours).__name__} and {few} steps. On small networks that was as good as a hundred steps"
        " (`benchmarks/RESULTS.md` of mcvd-diffusers); on this one it was not measured."
        f" `--sampler original` keeps {original}, which published numbers were made with."
    )
    return {"scheduler": ours, "num_inference_steps": few}


def save_pipeline(pipeline: MCVDPipeline, folder: Path, output: Path) -> None:
    """
    Write a pipeline into the folder that is to become the output.

    Raises:
        OSError: If it cannot be written.
    """
    try:
        pipeline.save_pretrained(folder)
    except SafetensorError as error:
        raise OSError(f"{output} cannot be written: {error}") from error


def run_comparison(compare: Callable[..., tuple[float, str]], *source) -> tuple[float, str]:
    """`compare(*source)`, with an error that says what to do if there is not memory enough."""
    try:
        return compare(*source)
    except (MemoryError, RuntimeError) as error:  # torch's allocator raises the latter
        raise CheckpointError(f"The verification does not run here: {error}. Convert without `--verify`.") from error


def compare_outputs(
    pairs: Iterable[tuple[torch.Tensor, torch.Tensor]], how: str, network: str = "network"
) -> tuple[float, str]:
    """
    Hold a converted network's outputs against those of the second implementation.

    Args:
        pairs (iterable of pairs of `torch.Tensor`): Ours and theirs; each pair is computed when its turn comes.
        how (`str`): On what they were compared, for the sentence.
        network (`str`, *optional*, defaults to `"network"`): What it is called, where there are several.

    Returns:
        `tuple[float, str]`: The largest difference, and a sentence that says what was done.

    Raises:
        CheckpointError: If they differ, or there is nothing to compare.
    """
    largest, scale = 0.0, 0.0
    for ours, theirs in pairs:
        if not (ours.isfinite().all() and theirs.isfinite().all()):
            raise CheckpointError(
                f"The converted {network}'s output is NaN or infinite: these weights are too large. Nothing was written."
            )
        largest = max(largest, float((ours - theirs).abs().max()))
        scale = max(scale, float(theirs.abs().max()))
    if scale == 0:
        raise CheckpointError(
            f"The {network}'s output is zero everywhere, so there is nothing to compare. Nothing was written."
        )
    if not largest <= VERIFY_TOLERANCE * scale:
        raise CheckpointError(
            f"The converted {network} differs from the second implementation by {largest:.2e}, where the largest output is"
            f" {scale:.2e}: the conversion is wrong. Nothing was written. Please report the config and this message."
        )
    return largest, (
        f"The folder was loaded again, and its {network} compared with a second, independent implementation that runs on the"
        f" source file's own state dict, {how}: the largest difference is below {bound(largest)}, the largest output"
        f" {scale:.2g}."
    )


def card_source(result: Conversion, of: str, config: str) -> str:
    """
    Where weights come from, for the model card. No dates and no paths: the same conversion gives the same card.

    Args:
        result ([`Conversion`]): What was done.
        of (`str`): Whose checkpoint it was, in Markdown.
        config (`str`): Where settings come from, in Markdown.

    Returns:
        `str`: In Markdown.
    """
    source = [
        f"Converted from a checkpoint of {of} by `mcvd-diffusers convert`.",
        "",
        "| | |",
        "| --- | --- |",
        f"| file | `{plain_text(result.checkpoint.name)}` |",
        f"| its SHA-256 | `{result.sha256}` |",
        f"| config | {config} |",
        f"| weights | {'their moving average (EMA)' if result.weights == 'ema' else 'the raw ones'} |",
    ]
    if result.stray:
        source += [
            "",
            "Options of the config that are not known and were ignored: "
            + ", ".join(f"`{plain_text(name)}`" for name in result.stray[:50])
            + ".",
        ]
    if result.notes:
        source += ["", *(f"- {note}" for note in result.notes)]
    return "\n".join(source)


def card_verification(result: Conversion) -> str:
    """What was checked and what was not, for the model card, in Markdown."""
    not_verified = [*result.not_verified, "The original code itself was not run on this checkpoint."]
    sections = [*(f"- {sentence}" for sentence in result.verified), "", "Not verified:", ""]
    return "\n".join([*sections, *(f"- {sentence}" for sentence in not_verified)])
