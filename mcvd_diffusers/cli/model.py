"""`mcvd-diffusers card`, `verify` and `push`: what a model's card says, whether it is true, and to the Hub with it."""

import argparse
import atexit
import contextlib
import hashlib
import io
import json
import re
import reprlib
import shlex
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from .loading import in_flags
from .printing import one_line, printable


if TYPE_CHECKING:
    from mcvd_diffusers.evaluation import Results
    from mcvd_diffusers.model_card import CardFacts
    from mcvd_diffusers.verification import Check


MAX_NOTES = 100_000  # bytes: a section of a card, not a book


def add_model(commands) -> None:
    """Adds the commands to those of a parser."""
    parser = commands.add_parser(
        "card",
        allow_abbrev=False,
        help="write the card of a model again: with evaluations, licences, notes",
        description="Write README.md and model_card.json of a pipeline's folder again, from what is known of it. A card that was"
        " written by hand is kept as README.md.before.",
    )
    parser.add_argument("model", metavar="MODEL", help="folder of a pipeline")
    parser.add_argument(
        "--evaluation",
        nargs="+",
        default=[],
        metavar="DIR",
        help="outputs of `mcvd-diffusers evaluate` for this model",
    )
    parser.add_argument("--name", help="what the model is called")
    parser.add_argument(
        "--license", metavar="ID", help="of the weights, as the Hub names it: apache-2.0, cc-by-4.0, ..."
    )
    parser.add_argument("--data_license", metavar="TEXT", help="of the training data")
    parser.add_argument("--notes", metavar="FILE", help="Markdown of your own, which becomes a section")
    parser.set_defaults(run=_card)

    parser = commands.add_parser(
        "verify",
        allow_abbrev=False,
        help="whether a model is what its card says",
        description="Compute again what the card of a model claims: the card's words, the hashes of all files, the parameters, the"
        " numbers of its evaluations from their rows, the example; and with --data the evaluations. The exit status is 1 if"
        " anything is not as the card says.",
    )
    parser.add_argument("model", metavar="MODEL", help="folder of a pipeline, or its id on the Hub")
    parser.add_argument("--revision", metavar="NAME", help="on the Hub: branch, tag or commit")
    parser.add_argument(
        "--data",
        metavar="PATH",
        nargs="?",
        const="",
        help="make the evaluations again, on these test videos (no path is needed for moving digits, which are drawn)",
    )
    parser.add_argument(
        "--data_flags",
        metavar="TEXT",
        default="",
        help="flags of `evaluate` that choose among the test videos, in quotes: '--validation_fraction 0.1 --axes THWC'",
    )
    parser.add_argument(
        "--skip_example", action="store_true", help="do not run the card's example, which may take long"
    )
    parser.set_defaults(run=_verify)

    parser = commands.add_parser(
        "export",
        allow_abbrev=False,
        help="one set of a run's weights, in half precision if wanted, as a folder to give away",
        description="Write a folder with one set of a pipeline's weights, which then load without `variant`, and with the card of"
        " their training. Half precision has half the bytes.",
    )
    parser.add_argument("model", metavar="MODEL", help="folder of a pipeline, such as that of a run")
    parser.add_argument("output", metavar="OUT", help="folder to make")
    parser.add_argument(
        "--variant",
        metavar="NAME",
        help="which weights: ema, or raw (default: those that its card recommends)",
    )
    parser.add_argument(
        "--dtype", choices=("float32", "float16", "bfloat16"), default="float32", help="round to it (default: float32)"
    )
    parser.set_defaults(run=_export)

    parser = commands.add_parser(
        "push",
        allow_abbrev=False,
        help="a model to the Hugging Face Hub",
        description="Push a pipeline's folder in one commit: configs, weights, card, samples and evaluations; no checkpoints, logs or"
        " settings of a run. The token is that of `hf auth login`, or HF_TOKEN.",
    )
    parser.add_argument("model", metavar="MODEL", help="folder of a pipeline")
    parser.add_argument("repo_id", metavar="REPO", help="user/name, or name; made if it is not there")
    parser.add_argument(
        "--private", action="store_true", default=None, help="make it private; a public one is refused"
    )
    parser.add_argument("--revision", metavar="BRANCH", help="branch to commit to; made if it is not there")
    parser.add_argument("--create_pr", action="store_true", help="open a pull request instead of committing")
    parser.add_argument("--message", metavar="TEXT", help="of the commit")
    parser.set_defaults(run=_push)


def _card(arguments: argparse.Namespace) -> int:
    from mcvd_diffusers.evaluation import Results, check_report
    from mcvd_diffusers.model_card import CARD, add_evaluation, tensors_digest, weight_files, write_card

    try:
        folder = _folder(arguments.model)
        facts = _known_facts(folder)
        for name, value in (("name", arguments.name), ("model_license", arguments.license)):
            if value is not None:
                setattr(facts, name, value)
        if arguments.data_license is not None:
            facts.data_license = arguments.data_license
        if arguments.notes is not None:
            facts.notes = _read_notes(Path(arguments.notes))
        found = []
        for place in map(Path, arguments.evaluation):  # all are looked at before one is taken
            results = Results.read(place)
            digest = results.settings["model"]["weights_sha256"]
            variants = [variant for variant in weight_files(folder) if tensors_digest(folder, variant) == digest]
            if not variants:
                raise ValueError(f"--evaluation {place} is of other weights ({digest[:12]}) than those in {folder}.")
            if not check_report(results, place if place.is_dir() else place.parent):
                raise ValueError(
                    f"--evaluation {place} has no results.json beside its results.parquet: the evaluation has not finished."
                )
            found.append((place, _name_of(results, variants[0])))
        names = [name for _, name in found]
        if len(set(names)) < len(names):
            raise ValueError(
                "--evaluation: two of them are of the same weights, protocol and sampler: pass one of them."
            )
        for place, name in found:
            add_evaluation(folder, place if place.is_dir() else place.parent, name)
        write_card(folder, facts)
    except (ValueError, OSError, RuntimeError) as error:
        print(f"mcvd-diffusers card: {one_line(str(error))}", file=sys.stderr)
        return 1
    except (KeyError, TypeError, AttributeError) as error:  # of configs and records that somebody else wrote
        print(f"mcvd-diffusers card: a file has another form than it should: {one_line(repr(error))}", file=sys.stderr)
        return 1
    print(printable(f"written: {folder / CARD}; check it with: mcvd-diffusers verify {shlex.quote(str(folder))}"))
    return 0


def _read_notes(path: Path) -> str:
    if not path.is_file() or path.stat().st_size > MAX_NOTES:
        raise ValueError(f"--notes {path} must be a file of at most {MAX_NOTES:,} bytes.")
    try:
        return path.read_text("utf-8").strip()
    except UnicodeDecodeError as error:
        raise ValueError(f"--notes {path} must be text in UTF-8: {error}") from error


def _name_of(results: "Results", variant: str | None) -> str:
    """One for each protocol, set of weights and way to sample: evaluations that differ in these stand beside each other."""
    sampler = results.settings["sampler"]
    digest = hashlib.sha256(json.dumps(sampler, sort_keys=True).encode()).hexdigest()[:6]
    label = f"{results.protocol.label} {variant or ''} {sampler['num_inference_steps']} steps"
    return re.sub("[^a-z0-9]+", "-", label.lower()).strip("-")[:90] + f"-{digest}"


def _known_facts(folder: Path) -> "CardFacts":
    """The facts beside a model, if they are still of these weights; or what its configs say, if there are none."""
    from mcvd_diffusers.model_card import FACTS, check_same_weights, facts_of_configs, read_facts

    if not (folder / FACTS).exists():
        return facts_of_configs(folder)
    facts = read_facts(folder)
    check_same_weights(folder, facts)
    return facts


def _verify(arguments: argparse.Namespace) -> int:
    from mcvd_diffusers.verification import verify_model

    try:
        folder = _folder_or_download(arguments.model, arguments.revision)
        checks = verify_model(folder, run_example=not arguments.skip_example)
        if arguments.data is not None and all(check.is_right for check in checks):
            checks += _evaluate_again(folder, arguments.data, shlex.split(arguments.data_flags))
    except (ValueError, OSError, RuntimeError) as error:
        print(f"mcvd-diffusers verify: {one_line(str(error))}", file=sys.stderr)
        return 1
    for check in checks:
        print(f"{'ok   ' if check.is_right else 'WRONG'} {one_line(check.name)}: {one_line(check.found)}")
    wrong = sum(not check.is_right for check in checks)
    if wrong:
        print(f"mcvd-diffusers verify: {arguments.model} is not what its card says.", file=sys.stderr)
        return 1
    print(f"{printable(arguments.model)} is what its card says.")
    return 0


def _evaluate_again(folder: Path, data: str, flags: list[str]) -> list["Check"]:
    """Each evaluation beside a model once more."""
    from mcvd_diffusers.model_card import EVALUATIONS
    from mcvd_diffusers.verification import Check, check_that

    places = sorted(path.parent for path in (folder / EVALUATIONS).glob("*/results.parquet"))
    checks = [
        check_that(f"{EVALUATIONS}/{place.name} again", lambda place=place: _one_again(folder, place, data, flags))
        for place in places
    ]
    return checks or [Check(EVALUATIONS, "there is none that could be made again", False)]


def _one_again(folder: Path, stated: Path, data: str, flags: list[str]) -> str:
    """An evaluation once more, by the command that made it; what comes of it."""
    from mcvd_diffusers.evaluation import Results
    from mcvd_diffusers.model_card import tensors_digest, weight_files
    from mcvd_diffusers.verification import compare_numbers

    from . import make_parser

    results = Results.read(stated)
    elsewhere = [spec for spec in results.protocol.feature_networks if ":" in spec]
    if elsewhere:  # TorchScript is a program, which may write files
        raise ValueError(
            f"{results.protocol.label} asks for the network {elsewhere[0]!r}, which comes from a place that this model names, and"
            " nothing that a model names is run. If you trust it, run `mcvd-diffusers evaluate` yourself, with a protocol that"
            " names it."
        )
    sampler, digest = results.settings["sampler"], results.settings["model"]["weights_sha256"]
    variant = next(variant for variant in weight_files(folder) if tensors_digest(folder, variant) == digest)
    with tempfile.TemporaryDirectory() as place:
        again = Path(place) / "again"
        command = ["evaluate", str(folder), f"--protocol={results.protocol.name}", "--output", str(again)]
        command.append(f"--variant={variant or 'raw'}")
        if results.protocol.moving_digits is None:
            if not data:
                raise ValueError(f"{results.protocol.label} judges videos: say where they are, with --data PATH.")
            command += [f"--data={data}", *flags]
        for name in ("num_inference_steps", "eta", "guidance_scale", "seed", "batch_size", "scheduler"):
            command.append(f"--{name}={sampler[name]}")
        command.append("--final_denoise" if sampler["final_denoise"] else "--no-final_denoise")
        with contextlib.redirect_stdout(io.StringIO()):
            try:
                arguments = make_parser().parse_args(command)
            except SystemExit as error:
                raise ValueError(f"--data_flags {shlex.join(flags)!r} are no flags of `evaluate` for it.") from error
            arguments.protocol = results.protocol  # with its changes
            if arguments.run(arguments):
                raise ValueError("it cannot be made again: see above.")
        return compare_numbers(stated, again)


def _export(arguments: argparse.Namespace) -> int:
    from mcvd_diffusers.export import export_folder

    try:
        folder, output = _folder(arguments.model), arguments.output
        facts = export_folder(folder, output, variant=arguments.variant, dtype=arguments.dtype)
    except (ValueError, OSError) as error:
        print(f"mcvd-diffusers export: {one_line(in_flags(str(error)))}", file=sys.stderr)
        return 1
    size = sum(file["bytes"] for file in facts.files.values())
    print(f"written to {arguments.output}: {facts.num_parameters:,} parameters, {size / 1e6:.1f} MB")
    return 0


def _push(arguments: argparse.Namespace) -> int:
    from mcvd_diffusers.publishing import push_folder

    try:
        url = push_folder(
            _folder(arguments.model),
            arguments.repo_id,
            private=arguments.private,
            revision=arguments.revision,
            create_pr=arguments.create_pr,
            commit_message=arguments.message,
        )
    except (ValueError, OSError, RuntimeError) as error:
        print(f"mcvd-diffusers push: {one_line(str(error))}", file=sys.stderr)
        return 1
    except (KeyError, TypeError, AttributeError) as error:  # of what answers in the Hub's place
        print(
            f"mcvd-diffusers push: the Hub's answer is of another form than it should: {one_line(repr(error))}",
            file=sys.stderr,
        )
        return 1
    print(f"pushed to {url}")
    return 0


def _folder(text: str) -> Path:
    from mcvd_diffusers.model_card import check_regular

    folder = _as_folder(text)
    if folder is None:
        raise ValueError(f"MODEL {reprlib.repr(text)} is no folder.")
    check_regular(folder)
    return folder


def _as_folder(text: str) -> Path | None:
    if not text.strip():
        raise ValueError(f"MODEL must name a model, got {text!r}.")
    try:
        folder = Path(text).expanduser()
        return folder if folder.is_dir() else None
    except (RuntimeError, OSError) as error:  # no such user, too long a name
        why = getattr(error, "strerror", None) or error
        raise ValueError(f"MODEL {reprlib.repr(text)} is no folder: {why}.") from error


def _folder_or_download(text: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    from mcvd_diffusers.publishing import regular_files
    from mcvd_diffusers.verification import OTHER_LOADABLE

    folder = _as_folder(text)
    if folder is not None:
        if revision is not None:
            raise ValueError(f"--revision is for models on the Hub, and {text} is a folder here.")
        return folder
    try:
        # Of a stranger's repository only what a pipeline is made of.
        patterns = ["*.json", "*.md", "*.safetensors", "*.parquet", "*.gif", "*.png", "*.jpg", "*.webp", "LICENSE"]
        patterns += [f"*/*{suffix}" for suffix in OTHER_LOADABLE]  # which is not opened, and refused
        downloaded = Path(snapshot_download(text, revision=revision, allow_patterns=patterns))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise ValueError(
            f"MODEL {reprlib.repr(text)} is no folder here, and cannot be had from the Hub: {error}"
        ) from error
    place = Path(tempfile.mkdtemp(prefix="mcvd-diffusers-"))
    atexit.register(shutil.rmtree, place, ignore_errors=True)
    return regular_files(downloaded, place)
