"""Is a model what its card says? Everything in it that can be computed again is, and compared.

Nothing that a folder or a repository brings is run: the example is written anew from checked numbers, and the card must be
word for word what the facts beside it give.
"""

import hashlib
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mcvd_diffusers._version import __version__
from mcvd_diffusers.model_card import (
    CARD,
    EVALUATIONS,
    FACTS,
    CardError,
    CardFacts,
    count_parameters,
    differences,
    measure_files,
    pipeline_paths,
    read_facts,
    tensors_digest,
    usage_example,
    weight_files,
)
from mcvd_diffusers.weights import check_weights


# Largest difference of an evaluation that is made again, relative to the number: other machines round otherwise.
TOLERANCE = 1e-3
MAX_EXAMPLE_SECONDS = 3600
# What Diffusers, or torch, would load from a component's folder, and no card knows: a pickle in the place of weights, code.
OTHER_LOADABLE = (".bin", ".ckpt", ".flashpack", ".pkl", ".pt", ".pth", ".py")


@dataclass
class Check:
    """
    One thing that was looked at.

    Args:
        name (`str`): What.
        found (`str`): What was found, or what is wrong.
        is_right (`bool`): Whether it is what the card says.
    """

    name: str
    found: str
    is_right: bool


def verify_model(folder: Path, *, run_example: bool = True) -> list[Check]:
    """
    Compute again what the card of a model claims.

    Args:
        folder (`Path`): The pipeline's folder.
        run_example (`bool`, *optional*, defaults to `True`): Whether to run the card's example, in a process of its own.

    Returns:
        `list[Check]`: What was looked at; the model is what its card says if all of it `is_right`.
    """
    folder = Path(folder)
    try:
        pipeline_paths(folder)  # nothing but regular files is opened below
        facts = read_facts(folder)
    except (CardError, OSError) as error:
        return [Check(FACTS, str(error), False)]
    checks = [check_that(CARD, lambda: _check_card(folder, facts))]
    checks.append(check_that("files", lambda: _check_files(folder, facts)))
    checks.append(check_that("weights", lambda: _check_weights(folder)))
    checks.append(check_that("parameters", lambda: _check_parameters(folder, facts)))
    for path in sorted((folder / EVALUATIONS).glob("*/results.json")):
        name = f"{EVALUATIONS}/{path.parent.name}"
        checks.append(check_that(name, lambda path=path: check_evaluation(folder, path.parent)))
    if run_example and all(check.is_right for check in checks):
        checks.append(check_that("example", lambda: _check_example(folder, facts)))
    return checks


def check_that(name: str, look: Callable[[], str]) -> Check:
    """
    Look at something.

    Args:
        name (`str`): What.
        look (`Callable`): Returns what was found, or raises what is wrong.

    Returns:
        [`Check`]: Either.
    """
    try:
        return Check(name, look(), True)
    except (ValueError, OSError) as error:
        return Check(name, str(error) or repr(error), False)
    except Exception as error:  # whatever the files of a stranger lead to
        return Check(name, f"it cannot be checked, having another form than it should: {error!r}", False)


def _check_card(folder: Path, facts: CardFacts) -> str:
    if wrong := differences(folder, facts):
        more = f" And {len(wrong) - 1} more lines." if len(wrong) > 1 else ""
        other = ""
        if facts.written_by != __version__:
            other = (
                f" (It was written by version {facts.written_by}, and this is {__version__}, which may word it otherwise:"
                " `mcvd-diffusers card` writes it again.)"
            )
        raise CardError(f"{wrong[0]}.{more}{other}")
    if hashlib.sha256((folder / CARD).read_bytes()).hexdigest() != facts.card_sha256:
        raise CardError(f"{CARD} has other ends of lines than it was written with.")
    return "word for word what its facts, configs and evaluations say"


def _check_files(folder: Path, facts: CardFacts) -> str:
    there = measure_files(folder, facts.samples)
    for component in sorted({name.split("/")[0] for name in there if re.fullmatch(r"\w+/[^/]+\.json", name)}):
        for path in sorted((folder / component).iterdir()):
            if path.suffix in OTHER_LOADABLE:
                raise CardError(f"{component}/{path.name} could be loaded, and the card does not know it.")
    for name in sorted(there.keys() | facts.files.keys()):
        if name not in there:
            raise CardError(f"{name} is missing, and the card says it is there.")
        if name not in facts.files:
            raise CardError(f"{name} is there, and the card does not know it.")
        if there[name] != facts.files[name]:
            raise CardError(
                f"{name} has {there[name]['bytes']:,} bytes and SHA-256 {there[name]['sha256']}, and the card says"
                f" {facts.files[name].get('bytes'):,} and {facts.files[name].get('sha256')}."
            )
    return f"{len(there)} files with the sizes and SHA-256 that the card says"


def _check_weights(folder: Path) -> str:
    files = [path for paths in weight_files(folder).values() for path in paths]
    sealed = [check_weights(path) for path in files]
    without = sealed.count(None)
    return f"{len(files)} file{'s' if len(files) != 1 else ''} whose tensors have the digest in their header" + (
        f", but {without} that ha{'s' if without == 1 else 've'} none" if without else ""
    )


def _check_parameters(folder: Path, facts: CardFacts) -> str:
    found = count_parameters(folder, facts.variant)
    if found != facts.num_parameters:
        raise CardError(f"the weights hold {found:,} numbers, and the card says {facts.num_parameters:,}.")
    return f"{found:,} in the weights"


def check_evaluation(folder: Path, evaluation: Path) -> str:
    """
    Compute the numbers of an evaluation again from its rows, and look whether they are of this model.

    Args:
        folder (`Path`): The pipeline's folder.
        evaluation (`Path`): The evaluation's.

    Returns:
        `str`: What was found.

    Raises:
        ValueError: If a number, or the model, is another one.
    """
    from mcvd_diffusers.evaluation import Results, check_report

    results = Results.read(evaluation)
    check_report(results, evaluation)
    digest = results.settings["model"]["weights_sha256"]
    variants = [variant for variant in weight_files(folder) if tensors_digest(folder, variant) == digest]
    if not variants:
        raise CardError(f"it is of other weights ({digest[:12]}) than those that lie here.")
    which = f"the variant {variants[0]!r}" if variants[0] else "the weights without variant"
    return f"{len(results.numbers())} numbers computed again from {len(results.table)} rows, of {which}"


def compare_numbers(stated: Path, again: Path) -> str:
    """
    Compare an evaluation with the same one, made again.

    Args:
        stated (`Path`): The evaluation that lies beside the model.
        again (`Path`): The one that was made just now.

    Returns:
        `str`: What was found.

    Raises:
        ValueError: If clips, protocol or sampler differ, or a number by more than rounding explains.
    """
    from mcvd_diffusers.evaluation import Results

    old, new = Results.read(stated), Results.read(again)
    for name, value in (("protocol", old.protocol.digest), ("clips", old.settings["data"]["clips_sha256"])):
        now = new.protocol.digest if name == "protocol" else new.settings["data"]["clips_sha256"]
        if value != now:
            raise CardError(f"the {name} are not those of the card's numbers: other data, or another protocol.")
    largest = 0.0
    for before, now in zip(old.numbers(), new.numbers(), strict=True):
        if before.value is None or now.value is None:
            if before.value != now.value:
                raise CardError(
                    f"{before.metric} of {before.made_by} is {now.shown_value()}, the card says {before.shown_value()}."
                )
            continue
        # A number near zero is compared with the width of its interval.
        width = 0.0 if before.low is None or before.high is None else before.high - before.low
        difference = abs(before.value - now.value) / max(abs(before.value), width, 1e-12)
        largest = max(largest, difference)
        if difference > TOLERANCE:
            raise CardError(
                f"{before.metric} of {before.made_by}, {before.samples}, is {now.shown_value()}, and the card says"
                f" {before.shown_value()}."
            )
    return f"{len(new.numbers())} numbers made again from the data; the largest relative difference is {largest:.1e}"


def _check_example(folder: Path, facts: CardFacts) -> str:
    """Run the example as the card has it, on this folder."""
    code = usage_example(folder, facts)
    code = code.replace(f'from_pretrained("{facts.repo_id or "."}"', f"from_pretrained({str(folder.resolve())!r}", 1)
    # It needs no secrets, and must not go on for ever, whatever sizes and steps a card asks for.
    environment = {name: value for name, value in os.environ.items() if "TOKEN" not in name}
    with tempfile.TemporaryDirectory() as elsewhere:
        try:
            done = subprocess.run(
                [sys.executable, "-c", code],
                cwd=elsewhere,
                env=environment,
                capture_output=True,
                text=True,
                check=False,
                timeout=MAX_EXAMPLE_SECONDS,
            )
        except subprocess.TimeoutExpired as error:
            raise CardError(
                f"it had not ended after {MAX_EXAMPLE_SECONDS} s. Run it where there is a GPU, or leave it out: --skip_example."
            ) from error
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"it ended with status {done.returncode}"])[-1]
        raise CardError(f"it does not run: {last}")
    return "runs as it stands"
