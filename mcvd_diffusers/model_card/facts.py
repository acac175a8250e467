"""What the card of a pipeline says, as data: `model_card.json` beside the card, and what is measured in the folder.

The card is made of these facts, the pipeline's configs and its evaluations, and of nothing else; so it can be made again, and
compared. What can be measured (files and their hashes, parameters) is measured whenever a card is written, and by
`mcvd-diffusers verify`; the file carries a SHA-256 of itself. (It tells accidents and edits, not forgery.)
"""

import hashlib
import json
import math
import os
import re
import reprlib
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from huggingface_hub.utils import HFValidationError, validate_repo_id

from mcvd_diffusers._version import __version__
from mcvd_diffusers.atomic import whole_file
from mcvd_diffusers.json_files import read_json
from mcvd_diffusers.masking import tasks_of_config
from mcvd_diffusers.weights import check_weights, config_digest, load_weights, networks_digest, tensor_shapes

from .card import render_card


CARD, FACTS, INDEX = "README.md", "model_card.json", "model_index.json"
FORMAT = 1
EVALUATIONS = "evaluation"
# The components of a pipeline that have weights.
NETWORKS = ("unet", "context_encoder")
# A network's weights as Diffusers names them: the variant, if there is one, is the first group.
WEIGHTS_FILE = re.compile(r"diffusion_pytorch_model(?:\.([A-Za-z0-9_-]+?))?(?:-\d+-of-\d+)?\.safetensors")
EVALUATION_FILES = ("results.json", "results.md", "results.parquet")
MAX_COUNT = 10_000  # steps and frames of an example that somebody may want to run

# Facts of one kind each.
_TEXTS = (
    "name",
    "dataset",
    "dataset_id",
    "repo_id",
    "model_license",
    "data_license",
    "variant",
    "weights",
    "command",
    "source",
    "verification",
    "notes",
    "written_by",
    "card_sha256",
    "base_model",
)
_TABLES = ("data", "training", "hyperparameters", "samples", "files", "tensors")

TASKS = ("prediction", "past prediction", "interpolation", "generation")


class CardError(ValueError):
    """A folder or facts of which no card can be made, or a card that is not what they say."""


@dataclass
class CardFacts:
    """
    What is known of a pipeline beside its configs. What is not known is left out of the card.

    Args:
        name (`str`): Of the model.
        tasks (`list[str]`): From [`masking.trained_tasks`].
        dataset (`str`, *optional*): Name of the training data.
        dataset_id (`str`, *optional*): The data set's id on the Hub.
        repo_id (`str`, *optional*): The model's id on the Hub; the example then loads that.
        model_license (`str`, *optional*): Licence of the weights, as the Hub names it: `"apache-2.0"`.
        data_license (`str`, *optional*): Licence of the training data.
        variant (`str`, *optional*): Which weights the example loads.
        num_inference_steps (`int`, *optional*, defaults to 100): Denoising steps a block.
        timesteps (`list[int]`, *optional*): Own timesteps in place of their number, as start, stop and step of a range.
        num_predicted_frames (`int`, *optional*): Frames of the example; two blocks by default.
        weights (`str`, *optional*): Which weights there are, in Markdown.
        data (`dict[str, object]`): More of the training data: name -> value.
        training (`dict[str, object]`): How it was trained: updates, hours, hardware; name -> value.
        hyperparameters (`dict[str, object]`): All flags of the training.
        command (`str`, *optional*): The command that trains it.
        source (`str`, *optional*): Where the weights come from, in Markdown; of converted ones.
        verification (`str`, *optional*): What was checked, in Markdown.
        notes (`str`, *optional*): What its author has to say, in Markdown.
        samples (`dict[str, str]`): Picture in the folder -> what it shows.
        written_by (`str`): Version of this library that wrote the card.
        card_sha256 (`str`): Of the card's text.
        num_parameters (`int`): Of the network, and of its context encoder, if it has one; measured.
        base_model (`str`, *optional*): Id on the Hub of the model that training began with.
        tensors (`dict[str, str]`): Variant, `""` for none -> digest of its tensors; measured.
        files (`dict[str, dict]`): File -> its `"bytes"` and `"sha256"`; measured.
    """

    name: str
    tasks: list[str]
    dataset: str | None = None
    dataset_id: str | None = None
    repo_id: str | None = None
    model_license: str | None = None
    data_license: str | None = None
    variant: str | None = None
    num_inference_steps: int = 100
    timesteps: list[int] | None = None
    num_predicted_frames: int | None = None
    weights: str | None = None
    data: dict = field(default_factory=dict)
    training: dict = field(default_factory=dict)
    hyperparameters: dict = field(default_factory=dict)
    command: str | None = None
    source: str | None = None
    verification: str | None = None
    notes: str | None = None
    samples: dict = field(default_factory=dict)
    written_by: str = ""
    card_sha256: str = ""
    num_parameters: int = 0
    base_model: str | None = None
    tensors: dict = field(default_factory=dict)
    files: dict = field(default_factory=dict)


def read_facts(folder: Path) -> CardFacts:
    """
    Read the facts of a folder. They may come from anywhere: what becomes code in the card is checked.

    Args:
        folder (`Path`): A pipeline's folder.

    Returns:
        [`CardFacts`]: As written.

    Raises:
        [`CardError`]: If there are none, or they were changed by hand, or are not what they must be.
    """
    path = Path(folder) / FACTS
    try:
        content = read_json(path, parse_float=_as_written)
        stated, version = content.pop("sha256"), content.pop("format")
        digest = _digest(content)
    except FileNotFoundError as error:
        raise CardError(f"{path} does not exist: this model has no card that could be checked.") from error
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise CardError(f"{path} cannot be read as the facts of a card: {error!r}.") from error
    if version != FORMAT:
        raise CardError(
            f"{path} has format {reprlib.repr(version)}, and this version reads {FORMAT}: use the version that wrote it."
        )
    if stated != digest:
        raise CardError(
            f"{path} was changed after it was written: it does not have the SHA-256 that it states. Take the original file, or"
            " remove it: `mcvd-diffusers card` then writes one of what the folder's configs say."
        )
    try:
        facts = CardFacts(**content)
    except TypeError as error:
        raise CardError(f"{path} is of another version: {reprlib.repr(str(error))}.") from error
    try:
        check_facts(facts)
    except CardError as error:
        raise CardError(f"{path}: {error}") from error
    return facts


def check_facts(facts: CardFacts) -> None:
    """
    Refuse facts that would be no card, or whose example would be something else than an example.

    Args:
        facts ([`CardFacts`]): The facts.

    Raises:
        [`CardError`]: Names the fact.
    """

    def refuse(name: str, expected: str) -> CardError:
        return CardError(f"`{name}` of a card must be {expected}, got {reprlib.repr(getattr(facts, name))}.")

    for name in _TEXTS:
        if not isinstance(getattr(facts, name), str | None) or (name == "name" and not facts.name):
            raise refuse(name, "text")
    for name in _TABLES:
        if not isinstance(getattr(facts, name), dict):
            raise refuse(name, "a dictionary")
    for name in ("data", "training", "hyperparameters"):
        values = [
            x for value in getattr(facts, name).values() for x in (value if isinstance(value, list) else [value])
        ]
        if not all(isinstance(x, str | int | float | None) for x in values):
            raise refuse(name, "a table of texts and numbers")
    if not isinstance(facts.tasks, list) or not all(task in TASKS for task in facts.tasks):
        raise refuse("tasks", f"a list of some of {', '.join(TASKS)}")
    if not all(isinstance(x, str) for x in facts.tensors.values()):
        raise refuse("tensors", "variants and the digests of their tensors")
    for name in ("repo_id", "dataset_id", "base_model"):
        try:
            if getattr(facts, name) is not None:
                validate_repo_id(getattr(facts, name))
        except HFValidationError as error:
            raise refuse(name, "a name on the Hub") from error
        if not (getattr(facts, name) or "").isprintable():  # a newline at the end is passed by the Hub's check
            raise refuse(name, "a name on the Hub")
    if facts.variant is not None and not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", facts.variant):
        raise refuse("variant", "a plain word")
    if "```" in (facts.command or ""):
        raise refuse("command", "a command")
    for name, least, most in (
        ("num_inference_steps", 1, MAX_COUNT),
        ("num_predicted_frames", 1, MAX_COUNT),
        ("num_parameters", 0, 10**15),
    ):
        value = getattr(facts, name)
        is_unknown = value is None and name == "num_predicted_frames"
        if not is_unknown and not (type(value) is int and least <= value <= most):
            raise refuse(name, f"an integer from {least} to {most:,}")
    for path, text in facts.samples.items():
        is_inside = re.fullmatch(r"(\w[\w.-]*/)*\w[\w.-]*\.(gif|png|jpg|webp)", path, re.ASCII)
        if not is_inside or len(path) > 1000 or not isinstance(text, str):
            raise refuse("samples", "pictures in the folder and what they show")
    for file in facts.files.values():
        is_measured = isinstance(file, dict) and set(file) == {"bytes", "sha256"}
        if not is_measured or type(file["bytes"]) is not int or file["bytes"] < 0 or type(file["sha256"]) is not str:
            raise refuse("files", "files with their size and SHA-256")
    if facts.model_license is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.+-]{0,63}", facts.model_license):
        raise refuse("model_license", "an identifier that the Hub knows, such as apache-2.0 or cc-by-4.0,")
    if not facts.name.strip():
        raise refuse("name", "a name")
    if facts.timesteps is not None and not (
        isinstance(facts.timesteps, list)
        and len(facts.timesteps) == 3
        and all(type(x) is int and abs(x) <= 10**6 for x in facts.timesteps)
        and facts.timesteps[2] != 0
        and 1 <= len(range(*facts.timesteps)) <= MAX_COUNT
    ):
        raise refuse("timesteps", "start, stop and step of a range")


def facts_of_configs(folder: Path) -> CardFacts:
    """
    What the configs of a pipeline say, of which nothing else is known.

    Args:
        folder (`Path`): The pipeline's folder.

    Returns:
        [`CardFacts`]: For its card.

    Raises:
        [`CardError`]: If the folder holds no pipeline.
    """
    folder = Path(folder)
    try:
        config = read_json(folder / "unet" / "config.json")
        tasks = tasks_of_config(config)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CardError(f"{folder / 'unet' / 'config.json'} is not the config of a network: {error!r}.") from error
    variants = list(weight_files(folder))
    variant = None if None in variants or not variants else variants[0]
    steps = read_json(folder / "model_index.json").get("num_inference_steps") or 100
    return CardFacts(name=folder.resolve().name, tasks=tasks, variant=variant, num_inference_steps=steps)


def write_card(folder: Path, facts: CardFacts) -> None:
    """
    Measure a folder, and write its facts and its card. A card that somebody wrote by hand is kept beside it.

    Args:
        folder (`Path`): A pipeline's folder, complete but for the card.
        facts ([`CardFacts`]): What is known; what is measured is filled in.

    Raises:
        [`CardError`]: If the folder holds no pipeline, or the facts are not what they must be.
        `OSError`: If it cannot be written.
    """
    folder = Path(folder)
    check_facts(facts)
    is_ours = True
    if (folder / CARD).exists():
        try:
            is_ours = _sha256(folder / CARD) == read_facts(folder).card_sha256
        except CardError:
            is_ours = False
    measure(folder, facts)
    facts.written_by = __version__
    text = render_card(folder, facts)
    facts.card_sha256 = hashlib.sha256(text.encode()).hexdigest()
    if not is_ours and _sha256(folder / CARD) != facts.card_sha256:
        names = (f"{CARD}.before{end}" for end in ("", *map("-{}".format, range(2, 10**6))))
        os.replace(folder / CARD, next(folder / name for name in names if not (folder / name).exists()))
    content = {"format": FORMAT, **asdict(facts)}
    content["sha256"] = _digest({name: value for name, value in content.items() if name != "format"})
    for name, new in ((FACTS, json.dumps(content, indent=1) + "\n"), (CARD, text)):
        with whole_file(folder / name) as partial:
            partial.write_text(new, encoding="utf-8")


def differences(folder: Path, facts: CardFacts) -> list[str]:
    """
    Where a folder's card is not what its facts, configs and evaluations say.

    Args:
        folder (`Path`): A pipeline's folder.
        facts ([`CardFacts`]): Its facts.

    Returns:
        `list[str]`: A sentence for each line that differs; empty if the card is as it was written.
    """
    try:
        there = (Path(folder) / CARD).read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        return [f"{CARD} cannot be read: {error}"]
    found = []
    right = render_card(Path(folder), facts).splitlines()
    for number in range(max(len(there), len(right))):
        ours = right[number] if number < len(right) else None
        theirs = there[number] if number < len(there) else None
        if ours != theirs:
            said, right_one = (None if x is None else x if len(x) <= 300 else f"{x[:300]}..." for x in (theirs, ours))
            found.append(f"{CARD}, line {number + 1}, says {said!r}, and should say {right_one!r}")
        if len(there) != len(right) and found:
            found[-1] += f" ({len(there)} lines instead of {len(right)})"
            break
    return found


def measure_files(folder: Path, samples: dict | list = ()) -> dict[str, dict]:
    """
    Size and hash of a pipeline's files, but of its card's.

    Args:
        folder (`Path`): A pipeline's folder.
        samples (`dict` or `list`, *optional*): Pictures that the card shows.

    Returns:
        `dict[str, dict]`: Path in the folder -> `"bytes"` and `"sha256"`.

    Raises:
        [`CardError`]: If the folder holds no pipeline.
    """
    folder = Path(folder)
    files = {path.relative_to(folder).as_posix(): path for path in pipeline_paths(folder, samples)}
    return {
        name: {"bytes": path.stat().st_size, "sha256": _sha256(path)}
        for name, path in files.items()
        if name not in (CARD, FACTS)
    }


def measure(folder: Path, facts: CardFacts) -> None:
    """
    Fill in what is measured in a folder: the files, and the networks' parameters.

    Args:
        folder (`Path`): A pipeline's folder.
        facts ([`CardFacts`]): Changed.

    Raises:
        [`CardError`]: If the folder holds no pipeline.
    """
    facts.files = measure_files(folder, facts.samples)
    for path in dict.fromkeys(path for paths in weight_files(folder).values() for path in paths):
        check_weights(path)  # no card of what is damaged
    facts.num_parameters = count_parameters(folder, facts.variant)
    facts.tensors = {variant or "": tensors_digest(folder, variant) for variant in weight_files(folder)}


def check_same_weights(folder: Path, facts: CardFacts) -> None:
    """
    Refuse facts that are of other weights than those that lie beside them.

    Args:
        folder (`Path`): A pipeline's folder.
        facts ([`CardFacts`]): Its facts, as read.

    Raises:
        [`CardError`]: If the weights were exchanged.
    """
    for variant in weight_files(folder):
        stated = facts.tensors.get(variant or "")
        if stated is not None and stated != tensors_digest(folder, variant):
            raise CardError(
                f"The weights in {folder} are not those of its card, whose training and samples are of others. Put them back; or"
                f" remove {folder / FACTS}, and the card will say what the configs say."
            )


def check_regular(folder: Path) -> None:
    """
    Refuse a folder in which something else lies in the place of a file: a pipe would be waited for without end.

    Args:
        folder (`Path`): A pipeline's folder.

    Raises:
        [`CardError`]: Names it.
    """
    names = [INDEX, FACTS, CARD, *(path.relative_to(folder) for path in folder.glob("*/*") if not path.is_dir())]
    for path in (folder / name for name in names):
        if path.exists() and not path.is_file():
            raise CardError(f"{path} must be a regular file.")


def weight_files(folder: Path) -> dict[str | None, list[Path]]:
    """
    The weights in a pipeline's folder, as Diffusers loads them: a component that has none of a variant has those without.

    Args:
        folder (`Path`): A pipeline's folder.

    Returns:
        `dict[str | None, list[Path]]`: Variant, or `None` for those without -> the files, or shards, of all networks.

    Raises:
        [`CardError`]: If the folder holds no pipeline.
    """
    there = _weight_files_of_networks(folder)
    files = {
        variant: [found.get(variant, found.get(None, [])) for found in there.values()]
        for variant in dict.fromkeys(variant for found in there.values() for variant in found)
    }
    return {variant: sum(parts, []) for variant, parts in files.items() if all(parts)}


def _weight_files_of_networks(folder: Path) -> dict[str, dict[str | None, list[Path]]]:
    """Component -> variant -> its files."""
    index = _read_index(folder)
    there: dict[str, dict[str | None, list[Path]]] = {}
    for component in NETWORKS:
        if any(index.get(component, [None])) or component == "unet":
            found = there[component] = {}
            for path in sorted((Path(folder) / component).glob("*.safetensors")):
                if match := WEIGHTS_FILE.fullmatch(path.name):
                    found.setdefault(match[1], []).append(path)
    return there


def _weights_of(folder: Path, variant: str | None) -> list[Path]:
    """The files of all networks; refuses a folder that lacks those of one."""
    if files := weight_files(folder).get(variant):
        return files
    lacking = [
        str(Path(folder) / component)
        for component, found in _weight_files_of_networks(folder).items()
        if not found.get(variant, found.get(None))
    ]
    where = " and ".join(lacking) or folder
    raise CardError(f"There are no weights{f' of variant {variant!r}' if variant else ''} in {where}.")


def network_configs(folder: Path) -> dict[str, str]:
    """
    What the networks of a pipeline are, to compare it with another.

    Args:
        folder (`Path`): A pipeline's folder.

    Returns:
        `dict[str, str]`: Component -> digest of its config.

    Raises:
        [`CardError`]: If the folder holds no pipeline.
        `OSError`: If a config is missing.
        `ValueError`: If a config cannot be read.
    """
    return {
        component: config_digest(read_json(Path(folder) / component / "config.json"))
        for component in _weight_files_of_networks(folder)
    }


def tensors_digest(folder: Path, variant: str | None) -> str:
    """
    A digest of a pipeline's weights, the same for one file, for shards and in memory ([`weights.networks_digest`]).

    Args:
        folder (`Path`): A pipeline's folder.
        variant (`str`, *optional*): Which weights.

    Returns:
        `str`: A SHA-256.

    Raises:
        [`CardError`]: If there are no such weights.
        [`weights.WeightsError`]: If a file is damaged.
    """
    networks: dict[str, dict] = {}
    for path in _weights_of(folder, variant):
        tensors = networks.setdefault(path.parent.name, {})
        tensors |= load_weights(path)
    return networks_digest(networks)


def count_parameters(folder: Path, variant: str | None) -> int:
    """
    Count what the files of a pipeline's networks hold.

    Args:
        folder (`Path`): A pipeline's folder.
        variant (`str`, *optional*): Which weights.

    Returns:
        `int`: Numbers in all tensors.

    Raises:
        [`CardError`]: If there are no such weights.
    """
    return sum(math.prod(shape) for path in _weights_of(folder, variant) for shape in tensor_shapes(path).values())


def pipeline_paths(folder: Path, samples: dict | list = ()) -> list[Path]:
    """
    The files of a pipeline, and nothing else that lies beside them: no checkpoints, logs or settings of a run.

    Args:
        folder (`Path`): A pipeline's folder.
        samples (`dict` or `list`, *optional*): Pictures that the card shows.

    Returns:
        `list[Path]`: Regular files, in order.

    Raises:
        [`CardError`]: If the folder holds no pipeline, or a file is none.
    """
    folder = Path(folder)
    components = list(_read_index(folder))
    found = []
    for path in _candidates(folder, components, samples):
        if path.is_symlink() or not path.is_file() or not path.resolve().is_relative_to(folder.resolve()):
            raise CardError(f"{path} must be a regular file of this folder.")
        found.append(path)
    return sorted(dict.fromkeys(found))


def _read_index(folder: Path) -> dict[str, list]:
    """The components that a pipeline's index names, also those that it says there are none of."""
    path = Path(folder) / INDEX
    if path.exists() and not path.is_file():
        raise CardError(f"{path} must be a regular file of this folder.")
    try:
        index = read_json(path)
        named = {name: x for name, x in index.items() if isinstance(x, list) and not name.startswith("_")}
        if not all(name.isidentifier() for name in named):
            raise ValueError("a component has a name that is none")
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise CardError(f"{folder} holds no pipeline: {path} cannot be read ({error}).") from error
    return named


def _candidates(folder: Path, components: list[str], samples) -> Iterator[Path]:
    for name in (INDEX, FACTS, CARD, "LICENSE"):
        if (folder / name).exists():
            yield folder / name
    for name in components:
        for path in (folder / name).glob("*"):
            if path.suffix in (".json", ".safetensors") and not path.name.startswith("."):
                yield path
    for name in samples:
        yield folder / name
    for path in (folder / EVALUATIONS).glob("*/*"):
        if path.name in EVALUATION_FILES:
            yield path


def add_evaluation(folder: Path, evaluation: Path, name: str) -> None:
    """
    Put an evaluation beside a model, so that its card tells the numbers. One of the same name is replaced.

    Args:
        folder (`Path`): A pipeline's folder.
        evaluation (`Path`): The output of `mcvd-diffusers evaluate`.
        name (`str`): Of the evaluation: letters, digits and hyphens.
    """
    for file in EVALUATION_FILES:
        if not (Path(evaluation) / file).is_file():
            raise CardError(f"{Path(evaluation) / file} does not exist: the evaluation has not finished.")
    target = Path(folder) / EVALUATIONS / name
    for place in (target, target.parent):
        if place.is_symlink() or (place.exists() and not place.is_dir()):
            raise CardError(f"{place} must be a folder: it is a link, or something else.")
    target.mkdir(parents=True, exist_ok=True)
    for file in EVALUATION_FILES:
        with whole_file(target / file) as partial:
            shutil.copyfile(Path(evaluation) / file, partial)


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _as_written(text: str) -> float:
    """A number of JSON, which must have the digits that Python gives it: further ones would say something else unnoticed."""
    if repr(float(text)) != text:
        raise ValueError(f"{text[:50]} is not how this number is written")
    return float(text)


def _digest(content: dict) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
