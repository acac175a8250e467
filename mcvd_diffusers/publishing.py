"""
To the Hugging Face Hub: what belongs to a pipeline or network and its card, in one commit, again until it is there.

A commit states the one that it follows, and each attempt compares anew what is there with what is to be: so an answer that was
lost makes no second commit, a push that was interrupted is gone on with by repeating it, and there is never half of one.
`HfApi.upload_folder` is not used, since it makes several commits of a slow upload.
"""

import contextlib
import hashlib
import json
import logging
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Container
from functools import wraps
from pathlib import Path, PurePosixPath

from diffusers import ModelMixin
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token, snapshot_download
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
)
from huggingface_hub.utils import validate_repo_id

from mcvd_diffusers.json_files import read_json
from mcvd_diffusers.masking import tasks_of_config
from mcvd_diffusers.model_card import (
    CARD,
    CITATION,
    CITATIONS,
    EVALUATION_FILES,
    EVALUATIONS,
    FACTS,
    NETWORKS,
    SYSTEMS,
    WEIGHTS_FILE,
    CardError,
    CardFacts,
    check_regular,
    check_same_weights,
    facts_of_configs,
    measure,
    network_configs,
    pipeline_paths,
    plain_text,
    read_facts,
    render_card,
    tensors_digest,
    weight_files,
    write_card,
)


logger = logging.getLogger(__name__)

# Seconds between the attempts of a push: a minute in all, besides those of the client; as long as a Hub that restarts may take.
WAITS = (1, 2, 4, 8, 16, 32)
# Of a Hub to which there is no connection at all: that seldom changes within a minute.
MOST_ATTEMPTS_TO_CONNECT = 4

INDEX = "model_index.json"
WEIGHTS = re.compile(rf"(?:{'|'.join(NETWORKS)})/{WEIGHTS_FILE.pattern}")
COMPONENT_FILE = re.compile(
    r"config\.json|\w+_config\.json|diffusion_pytorch_model([.-][\w.-]+)?\.safetensors(\.index(\.[\w-]+)?\.json)?"
)
NOT_LOADED = ["*.bin", "*.ckpt", "*.pt", "*.py"]


class PushError(RuntimeError):
    """What could not be pushed, and why; nothing that was there is lost."""


def check_repository(
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | None = None,
    create_pr: bool = False,
    waits: tuple[float, ...] | None = None,
) -> str:
    """
    Make sure that a repository is there and can be written to, before long work starts.

    Args:
        repo_id (`str`): `"user/name"`, or `"name"` in one's own namespace. Made if it is not there.
        private (`bool`, *optional*): Whether nobody else may see it; by default as the namespace has it.
        token (`str`, *optional*): For the Hub; by default that of `hf auth login` or `HF_TOKEN`.
        create_pr (`bool`, *optional*, defaults to `False`): Whether it is enough that a pull request can be opened.
        waits (`tuple[float, ...]`, *optional*): Seconds between attempts, if the Hub does not answer; by default a minute in all.

    Returns:
        `str`: Its whole id.

    Raises:
        ValueError: If the id is none, there is no token, it may not write there, or `private` is asked for and the
            repository is public.
        [`PushError`]: If the Hub cannot be reached.
    """
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ValueError(f"{repo_id!r} is no id of a repository on the Hub: {error}") from error
    given = token if isinstance(token, str) else get_token()
    if not given:
        raise ValueError("There is no token for the Hub: log in with `hf auth login`, or set HF_TOKEN.")
    if not given.isascii() or not given.isprintable() or " " in given:
        # HTTP refuses it, too, in a message that shows it.
        raise ValueError(
            "The token for the Hub has a space, a line break or a letter that no token has: get it again from"
            " https://huggingface.co/settings/tokens."
        )
    api = HfApi(token=token)
    repo_id = _try_again(
        lambda: api.create_repo(repo_id, private=private, exist_ok=True).repo_id, f"the repository {repo_id}", waits
    )
    if private and not _try_again(lambda: api.repo_info(repo_id).private, repo_id, waits):
        raise ValueError(
            f"{repo_id} is public, and private was asked for: nothing is pushed. Make it private in its settings on the Hub, or"
            " choose another name."
        )
    # A repository that is there is readable, which is all that is known so far. The first step of an upload says more, and
    # for a small file is nothing but a question.
    _try_again(
        lambda: api.preupload_lfs_files(repo_id, [CommitOperationAdd(CARD, b"-")], create_pr=create_pr), repo_id, waits
    )
    return repo_id


def push_folder(
    folder: str | os.PathLike,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | None = None,
    commit_message: str | None = None,
    create_pr: bool = False,
    revision: str | None = None,
) -> str:
    """
    Push a pipeline's folder: its configs, weights, card, samples and evaluations, in one commit, and nothing else that lies
    in it. What the Hub has already is not sent again, so a push that was interrupted is gone on with by repeating it.

    The pipeline in the repository becomes this one: what belonged to another, such as shards, samples and evaluations, is
    removed in the same commit; files of other kinds stay. A folder with nothing but a variant of the weights adds it to those
    that are there, if they are of the same network; the card there then stays, and names both.

    Args:
        folder (`str` or `os.PathLike`): The pipeline's folder. The card in it is not changed: that of the Hub is made for its id.
        repo_id (`str`): Where to: see [`check_repository`].
        private (`bool`, *optional*): See there.
        token (`str`, *optional*): See there. It is never logged.
        commit_message (`str`, *optional*): Of the commit.
        create_pr (`bool`, *optional*, defaults to `False`): Open a pull request to the main branch instead of committing.
        revision (`str`, *optional*):
            Branch to commit to, made if it is not there; or a pull request, `"refs/pr/1"`. The main one by default.

    Returns:
        `str`: URL of the commit, or of the pull request.

    Raises:
        ValueError: See [`check_repository`]; or the folder holds no pipeline.
        [`PushError`]: If the Hub does not answer, also not after a minute of attempts.
    """
    if create_pr and revision is not None:
        raise ValueError(
            f"`create_pr` opens a pull request to the main branch, and `revision` is {revision!r}: leave one of the two out."
        )
    if revision is not None and not revision.strip():
        raise ValueError(f"`revision` must be the name of a branch, or a pull request, got {revision!r}.")
    folder = Path(folder)
    facts = _facts_to_push(folder)
    repo_id = check_repository(repo_id, private=private, token=token, create_pr=create_pr)
    api = HfApi(token=token)
    with tempfile.TemporaryDirectory() as staged:
        staged = Path(staged)
        for path in pipeline_paths(folder, facts.samples):
            if path.parent != folder or path.name not in (CARD, FACTS):
                _copy(path, staged / path.relative_to(folder))
        for path in (*staged.glob("*/*.json"), staged / INDEX):
            forget_origin(path)
        if revision is not None and not revision.startswith("refs/pr/"):
            _try_again(lambda: api.create_branch(repo_id, branch=revision, exist_ok=True), f"the branch {revision}")
        facts = _try_again(lambda: _join_what_is_there(api, repo_id, revision, staged, facts), repo_id)
        facts.repo_id = repo_id
        write_card(staged, facts)
        message = commit_message or "Upload pipeline"
        # A pull request whose answer was lost would be opened twice.
        waits = () if create_pr else None
        return _try_again(
            lambda: _commit(api, repo_id, staged, message, revision, create_pr, _replaced),
            f"{folder} to {repo_id}",
            waits,
        )


def push_network(
    network: ModelMixin,
    repo_id: str,
    *,
    folder: Path,
    subfolder: str | None = None,
    variant: str | None = None,
    private: bool | None = None,
    token: str | None = None,
    commit_message: str | None = None,
    create_pr: bool = False,
) -> str:
    """
    Push a saved network alone, in one commit, with a short card, unless there is another card already.

    Args:
        network (`ModelMixin`): The network.
        repo_id (`str`): Where to: see [`check_repository`].
        folder (`Path`): Where it is saved.
        subfolder (`str`, *optional*): Folder of the repository to push to; there it gets no card.
        variant (`str`, *optional*): Which weights; those of others stay as they are.
        private (`bool`, *optional*): See [`check_repository`].
        token (`str`, *optional*): See there.
        commit_message (`str`, *optional*): Of the commit.
        create_pr (`bool`, *optional*, defaults to `False`): Open a pull request instead of committing.

    Returns:
        `str`: URL of the commit, or of the pull request.

    Raises:
        ValueError: See [`check_repository`].
        [`PushError`]: See [`push_folder`].
    """
    repo_id = check_repository(repo_id, private=private, token=token, create_pr=create_pr)
    api = HfApi(token=token)
    of_variant = f".{variant}" if variant else ""
    weights = re.compile(
        rf"diffusion_pytorch_model(\.safetensors\.index{of_variant}\.json|{of_variant}(-\d+-of-\d+)?\.safetensors)"
    )

    def is_replaced(name: str, pushed: set[str], *_) -> bool:
        path = PurePosixPath(name)
        return path.parent == PurePosixPath(subfolder or ".") and bool(weights.fullmatch(path.name))

    with tempfile.TemporaryDirectory() as staged:
        staged, inside = Path(staged), Path(staged, subfolder or ".")
        for path in folder.iterdir():
            if path.name == network.config_name or weights.fullmatch(path.name):
                _copy(path, inside / path.name)
        forget_origin(inside / network.config_name)
        if not subfolder:
            text = _network_card(network, repo_id, variant)
            there = _try_again(lambda: _text_there(api, repo_id, CARD), repo_id)
            if there is None or _NETWORK_CARD in there:
                (staged / CARD).write_text(text, "utf-8")
        message = commit_message or "Upload model"
        return _try_again(
            lambda: _commit(api, repo_id, staged, message, None, create_pr, is_replaced), f"the network to {repo_id}"
        )


class PublishedPipelineMixin:
    """Before [`DiffusionPipeline`] in a pipeline's bases: pushes with a card that says something, instead of a form to fill in."""

    def save_pretrained(
        self,
        save_directory: str | os.PathLike,
        safe_serialization: bool = True,
        variant: str | None = None,
        max_shard_size: int | str | None = None,
        push_to_hub: bool = False,
        **kwargs,
    ) -> None:
        """
        Save the pipeline; the arguments are those of [`~DiffusionPipeline.save_pretrained`].

        With `push_to_hub=True` it is pushed as well, as by [`~PublishedPipelineMixin.push_to_hub`], to `repo_id` or the name of
        the folder.
        """
        names = ("repo_id", "commit_message", "private", "token", "create_pr", "revision")
        hub = {name: kwargs.pop(name) for name in names if name in kwargs}
        save = super().save_pretrained
        if push_to_hub:
            _check_format(safe_serialization)
            folder, token = Path(save_directory), hub.get("token")
            repo_id = hub.pop("repo_id", None) or folder.resolve().name
            places = {name: hub[name] for name in ("private", "create_pr") if name in hub}
            repo_id = check_repository(repo_id, token=token, **places)
        save(save_directory, safe_serialization, variant=variant, max_shard_size=max_shard_size, **kwargs)
        if push_to_hub:
            _write_card_for(self, folder, repo_id, variant, token)
            push_folder(folder, repo_id, **hub)

    def push_to_hub(
        self,
        repo_id: str,
        commit_message: str | None = None,
        private: bool | None = None,
        token: str | None = None,
        create_pr: bool = False,
        safe_serialization: bool = True,
        variant: str | None = None,
        max_shard_size: int | str | None = None,
        revision: str | None = None,
    ) -> str:
        """
        Push the pipeline to the Hugging Face Hub, in one commit, with a card.

        If these are the weights that it was loaded with, the card, samples and evaluations of where they come from go with
        them; else the card says what the pipeline itself knows. What a push does with what is there: see [`push_folder`].

        Args:
            repo_id (`str`): `"user/name"`, or `"name"` in one's own namespace. Made if it is not there.
            commit_message (`str`, *optional*): Of the commit.
            private (`bool`, *optional*): Whether nobody else may see it. An existing public repository is refused.
            token (`str`, *optional*): For the Hub; by default that of `hf auth login` or `HF_TOKEN`.
            create_pr (`bool`, *optional*, defaults to `False`): Open a pull request to the main branch instead of committing.
            safe_serialization (`bool`, *optional*, defaults to `True`): Must be `True`: pickles are not pushed.
            variant (`str`, *optional*): Name of the weights, such as `"fp16"`; they are added to those that are there.
            max_shard_size (`int` or `str`, *optional*): Largest file of weights, such as `"5GB"`.
            revision (`str`, *optional*):
                Branch to commit to, made if it is not there; or a pull request, `"refs/pr/1"`.

        Returns:
            `str`: URL of the commit, or of the pull request.

        Raises:
            ValueError: If it may not be written there, or `private` is asked for and it is public.
            [`PushError`]: If the Hub does not answer, also not after a minute of attempts.
        """
        _check_format(safe_serialization)
        repo_id = check_repository(repo_id, private=private, token=token, create_pr=create_pr)
        with tempfile.TemporaryDirectory() as folder:
            folder = Path(folder)
            self.save_pretrained(folder, variant=variant, max_shard_size=max_shard_size)
            _write_card_for(self, folder, repo_id, variant, token)
            return push_folder(
                folder,
                repo_id,
                private=private,
                token=token,
                commit_message=commit_message,
                create_pr=create_pr,
                revision=revision,
            )


def publishes_networks(network_class: type[ModelMixin]) -> type[ModelMixin]:
    """
    Make a network's class push itself by [`push_network`] instead of with Diffusers' form of a card.

    Args:
        network_class (`type[ModelMixin]`): The class; changed in place.

    Returns:
        `type[ModelMixin]`: The class.
    """
    save_only = network_class.save_pretrained

    @wraps(save_only)  # pipelines read its signature
    def save_pretrained(self, save_directory, *args, push_to_hub=False, **kwargs):
        names = ("repo_id", "commit_message", "private", "token", "create_pr")
        hub = {name: kwargs.pop(name) for name in names if name in kwargs}
        save_only(self, save_directory, *args, **kwargs)
        if push_to_hub and kwargs.get("is_main_process", True):
            _check_format(kwargs.get("safe_serialization", True))
            folder = Path(save_directory)
            repo_id = hub.pop("repo_id", None) or folder.resolve().name
            push_network(self, repo_id, folder=folder, variant=kwargs.get("variant"), **hub)

    @wraps(ModelMixin.push_to_hub)
    def push_to_hub(
        self,
        repo_id,
        commit_message=None,
        private=None,
        token=None,
        create_pr=False,
        safe_serialization=True,
        variant=None,
        subfolder=None,
    ):
        _check_format(safe_serialization)
        with tempfile.TemporaryDirectory() as folder:
            save_only(self, folder, variant=variant)
            options = {"private": private, "token": token, "commit_message": commit_message, "create_pr": create_pr}
            return push_network(self, repo_id, folder=Path(folder), subfolder=subfolder, variant=variant, **options)

    network_class.save_pretrained, network_class.push_to_hub = save_pretrained, push_to_hub
    return network_class


# --------------------------------------------------------------------------------------------------------------------
# Cards


def _facts_to_push(folder: Path) -> CardFacts:
    """The facts of a folder, all of it looked at before anything is made on the Hub."""
    check_regular(folder)
    pipeline_paths(folder)
    if (folder / FACTS).exists():
        facts = read_facts(folder)
        check_same_weights(folder, facts)
        if (folder / CARD).is_file() and hashlib.sha256((folder / CARD).read_bytes()).hexdigest() != facts.card_sha256:
            logger.warning(
                f"{folder / CARD} was edited by hand. What is pushed is made from the facts, without these words:"
                " `mcvd-diffusers card --notes FILE` puts them into the card."
            )
    else:
        facts = facts_of_configs(folder)
    measure(folder, facts)
    render_card(folder, facts)
    return facts


def _write_card_for(pipeline, folder: Path, repo_id: str, variant: str | None, token: str | None) -> None:
    """The card of a saved pipeline: that of where it was loaded from, if it is the same; else what the pipeline knows."""
    facts = CardFacts(
        name=repo_id.split("/")[-1],
        tasks=tasks_of_config(pipeline.unet.config),
        num_inference_steps=pipeline.default_num_inference_steps,
    )
    with tempfile.TemporaryDirectory() as download:
        source = _source_of(pipeline, Path(download), token)
        if source is not None:
            try:
                digest = tensors_digest(folder, variant)
                same = [each for each in weight_files(source) if tensors_digest(source, each) == digest]
                if same:
                    facts = _facts_from(source, folder, same, variant, digest)
            except (OSError, ValueError, KeyError, TypeError) as error:
                logger.warning(f"The card of {source} is not taken over: {_first_line(error)}")
    facts.variant, facts.repo_id = variant, None  # a push knows it
    write_card(folder, facts)


def _facts_from(source: Path, folder: Path, same: list[str | None], variant: str | None, digest: str) -> CardFacts:
    """The facts of a pipeline for one set of its weights, with what they show, which is copied."""
    facts = facts_for_weights(source, folder, of_variants=same, digest=digest)
    if list(weight_files(source)) != [variant] and facts.weights is not None:
        saved_as = f'as `variant="{same[0]}"`' if same[0] else "without a variant"
        facts.weights = f"Of the sets of weights that the training saved, these are those {saved_as}."
    return facts


def facts_for_weights(source: Path, folder: Path, *, of_variants: list[str | None], digest: str | None) -> CardFacts:
    """
    The facts of a pipeline's folder for a copy of it with one set of its weights; what they made is copied with them.

    Args:
        source (`Path`): The pipeline's folder, with facts.
        folder (`Path`): The copy; it may be the same folder.
        of_variants (`list`): Under which names the weights lie in `source`; none if they were changed, which made no samples.
        digest (`str`, *optional*): Of the weights' tensors; evaluations of others are left out.

    Returns:
        [`CardFacts`]: To be written into `folder`.
    """
    facts = read_facts(source)
    if facts.variant not in of_variants:  # the others have made them
        facts.samples = {}
    kept = []
    for path in pipeline_paths(source, facts.samples):
        place = path.relative_to(source)
        is_ours = place.as_posix() in (*facts.samples, "LICENSE")
        if place.parts[0] == EVALUATIONS:
            results = json.loads((path.parent / "results.json").read_text("utf-8"))
            is_ours = results["model"]["weights_sha256"] == digest
        if is_ours:
            kept.append(place)
    for place in kept:
        if not (folder / place).exists():  # it may be the same folder
            (folder / place).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / place, folder / place)
    return facts


def _source_of(pipeline, download: Path, token: str | None) -> Path | None:
    """Where a pipeline was loaded from, with its card and what that shows: the folder, or a download."""
    name = pipeline.config.get("_name_or_path")
    if not name:
        return None
    if Path(name).is_dir():
        return Path(name)
    # The network knows where it lies in the cache, and with it the commit.
    parts = Path(str(pipeline.unet.config.get("_name_or_path"))).parts
    commit = parts[parts.index("snapshots") + 1] if "snapshots" in parts[:-1] else None
    try:
        snapshot = snapshot_download(name, revision=commit, token=token, ignore_patterns=NOT_LOADED)
        return regular_files(Path(snapshot), download)
    except Exception as error:  # offline, private, gone
        logger.warning(
            f"{name}, which this pipeline was loaded from, cannot be read for its card: {_first_line(error)}"
        )
        return None


def regular_files(snapshot: Path, folder: Path) -> Path:
    """
    A download, whose files are links into a cache, as a folder of files.

    Args:
        snapshot (`Path`): The download.
        folder (`Path`): Where to.

    Returns:
        `Path`: `folder`.
    """
    for path in snapshot.rglob("*"):
        if path.is_file():
            _copy(path.resolve(), folder / path.relative_to(snapshot))
    return folder


def _copy(path: Path, target: Path) -> None:
    """A file in another place, by a link if possible: gigabytes need not be copied."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(path, target)
    except OSError:  # another disk
        shutil.copyfile(path, target)


def forget_origin(path: Path) -> None:
    """
    Take out of a config where it was loaded from: Diffusers writes that down, often a path of this machine.

    Args:
        path (`Path`): The file. If it is a link, the file that it leads to stays as it is.
    """
    config = json.loads(path.read_text("utf-8"))
    if isinstance(config, dict) and config.pop("_name_or_path", None) is not None:
        path.unlink()  # it may be a link to the user's
        path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", "utf-8")


_NETWORK_CARD = "A network of masked conditional video diffusion ([paper](https://arxiv.org/abs/2205.09853)), alone"


def _network_card(network: ModelMixin, repo_id: str, variant: str | None) -> str:
    config, name = network.config, type(network).__name__
    size = config.sample_size if isinstance(config.sample_size, (list, tuple)) else [config.sample_size] * 2
    frames, tasks, given, variable = None, None, None, "unet"
    needs, citations = "a scheduler beside it", [CITATION]
    system = next((system for system in SYSTEMS if name.startswith(system.replace("-", ""))), None)
    if name.endswith("ContextEncoder"):
        variable, needs = "context_encoder", "the network that it was trained with, and a scheduler"
    else:
        tasks = ", ".join(tasks_of_config(config))
        if getattr(network, "context_widths", ()) or config.get("residual"):
            needs += ", and the context encoder that it was trained with"
    if "num_past_frames" in config:
        frames = f"{config.num_past_frames} past, {config.num_frames} at a time, {config.num_future_frames} future"
        given = config.conditioning
    elif "max_frames" in config:
        frames = f"up to {config.max_frames} at a time"
    if system in CITATIONS:
        citations.append(CITATIONS[system])
    rows = {
        "frames": frames,
        "pixels": f"{size[0]}x{size[-1]}, channels: {config.in_channels}",
        "tasks": tasks,
        "parameters": f"{sum(parameter.numel() for parameter in network.parameters()):,}",
        "given frames": given,
        "trained to predict": config.get("prediction_type"),
    }
    table = "\n".join(f"| {key} | {plain_text(value)} |" for key, value in rows.items() if value is not None)
    which = f', variant="{plain_text(variant)}"' if variant else ""
    return (
        "---\nlibrary_name: diffusers\ntags:\n- mcvd\n- pixel-space\n---\n\n"
        f"# {plain_text(repo_id.split('/')[-1])}: {name}\n\n{_NETWORK_CARD}: to make videos it needs {needs}."
        f" Nothing is stated here about its training.\n\n| | |\n| --- | --- |\n{table}\n\n"
        "With the library `mcvd_diffusers`, an extension of Hugging Face Diffusers:\n\n"
        f'```python\nfrom mcvd_diffusers import {name}\n\n{variable} = {name}.from_pretrained("{repo_id}"{which})\n```\n\n'
        "## Citation\n\n" + "\n\n".join(citations) + "\n"
    )


# --------------------------------------------------------------------------------------------------------------------
# What is there, and the commit


def _join_what_is_there(api: HfApi, repo_id: str, revision: str | None, staged: Path, facts: CardFacts) -> CardFacts:
    """If nothing but a variant is pushed: the rest of the model that is there joins it, and its card goes on."""
    there = api.repo_info(repo_id, revision=revision)
    known = {match[1] for file in there.siblings if (match := WEIGHTS.fullmatch(file.rfilename))}
    ours = set(weight_files(staged))
    if None in ours or known <= ours:
        return facts
    snapshot = Path(snapshot_download(repo_id, revision=there.sha, token=api.token, ignore_patterns=NOT_LOADED))
    there_too = None
    with contextlib.suppress(OSError, ValueError):  # no pipeline
        there_too = network_configs(snapshot)
    if network_configs(staged) != there_too:
        logger.warning(f"The network in {repo_id} is another one: it is replaced by this one, with all its weights.")
        return facts
    facts.variant = None if None in known else facts.variant
    added = ", ".join(f'`variant="{each}"`' for each in sorted(ours))
    with contextlib.suppress(CardError):  # then it only has weights to give
        facts = read_facts(snapshot)
        if not ours <= known:
            facts.weights = "\n\n".join([*filter(None, [facts.weights]), f"Pushed later, beside these: {added}."])
    with tempfile.TemporaryDirectory() as download:
        download = regular_files(snapshot, Path(download))
        for path in pipeline_paths(download, facts.samples):
            place = path.relative_to(download)
            match = WEIGHTS.fullmatch(place.as_posix())
            is_replaced = match is not None and match[1] in ours
            if not is_replaced and place.as_posix() not in (CARD, FACTS) and not (staged / place).exists():
                _copy(path, staged / place)
    return facts


def _text_there(api: HfApi, repo_id: str, name: str) -> str | None:
    if not api.file_exists(repo_id, name):
        return None
    return Path(api.hf_hub_download(repo_id, name)).read_text("utf-8", errors="replace")


def _replaced(name: str, pushed: set[str], formerly: Container[str]) -> bool:
    """Whether a file that is there, and not pushed, belonged to the pipeline that was there."""
    path = PurePosixPath(name)
    components = {each.parts[0] for each in map(PurePosixPath, pushed) if _is_of_component(each)}
    return (
        (_is_of_component(path) and (path.parts[0] in components or path.parts[0] in formerly))
        or (len(path.parts) == 3 and path.parts[0] == EVALUATIONS and path.name in EVALUATION_FILES)
        or name in formerly
        or name == FACTS
    )


def _is_of_component(path: PurePosixPath) -> bool:
    """Whether Diffusers writes files of this name: others in the same folder are somebody else's."""
    return len(path.parts) == 2 and COMPONENT_FILE.fullmatch(path.name) is not None


def _commit(
    api: HfApi,
    repo_id: str,
    staged: Path,
    message: str,
    revision: str | None,
    create_pr: bool,
    is_replaced: Callable[[str, set[str], Container[str]], bool],
) -> str:
    """One commit that makes what is there what is staged; none if it is that already."""
    there = api.repo_info(repo_id, revision=revision)
    names = [file.rfilename for file in there.siblings]
    formerly, card_sha256 = set(), None  # the components and pictures of the pipeline that is there
    if INDEX in names:
        index = Path(api.hf_hub_download(repo_id, INDEX, revision=there.sha))
        with contextlib.suppress(ValueError):  # then nobody knows
            formerly |= {component for component, entry in read_json(index).items() if isinstance(entry, list)}
    if FACTS in names:
        place = Path(api.hf_hub_download(repo_id, FACTS, revision=there.sha)).parent
        with contextlib.suppress(CardError):  # then nobody knows what they were
            facts = read_facts(place)
            formerly, card_sha256 = formerly | set(facts.samples), facts.card_sha256
    operations: list = [
        CommitOperationAdd(path.relative_to(staged).as_posix(), path)
        for path in sorted(staged.rglob("*"))
        if path.is_file()
    ]
    pushed = {operation.path_in_repo for operation in operations}
    gone = [name for name in names if name not in pushed and is_replaced(name, pushed, formerly)]
    if gone:
        logger.warning(f"Of the model that was in {repo_id}, removed: {', '.join(gone)}")
    operations += [CommitOperationDelete(name, is_folder=False) for name in gone]
    if CARD in names and FACTS in pushed:
        text = Path(api.hf_hub_download(repo_id, CARD, revision=there.sha)).read_bytes()
        if hashlib.sha256(text).hexdigest() != card_sha256:
            logger.warning(
                f"{CARD} of {repo_id} was written by hand, or by another program. It is replaced; the old one stays in the"
                f" history, at {there.sha[:7]}. (What is to stay in the card: `mcvd-diffusers card --notes`.)"
            )
    commit = api.create_commit(
        repo_id,
        operations,
        commit_message=message,
        revision=revision,
        create_pr=create_pr,
        parent_commit=there.sha,
    )
    return commit.pr_url or commit.commit_url


# --------------------------------------------------------------------------------------------------------------------
# Again


def _try_again(call: Callable, what: str, waits: tuple[float, ...] | None = None):
    """What a call returns; when the network or the Hub is down, it is repeated, each time after a longer wait."""
    for attempt, wait in enumerate((*(WAITS if waits is None else waits), None), 1):
        try:
            return call()
        except Exception as error:
            failure = _failure_of_the_network(error)
            if failure is None:
                raise
        status = getattr(getattr(failure, "response", None), "status_code", None)
        if status == 401:
            raise ValueError(
                f"The Hub does not know this token: {what}: {_first_line(failure)}. Log in again with `hf auth login`, or set"
                " HF_TOKEN."
            ) from failure
        if status == 403:
            raise ValueError(f"The Hub does not let this token write: {what}: {_first_line(failure)}") from failure
        # 412: somebody else's commit came before this one.
        if status is not None and status < 500 and status not in (408, 412, 429):
            raise PushError(f"The Hub refuses {what}: {_first_line(failure)}") from failure
        if isinstance(failure, OfflineModeIsEnabled):
            raise PushError(
                f"{what}: there is no connection to the Hub, since HF_HUB_OFFLINE is set. Unset it to push."
            ) from failure
        is_unreachable = type(failure).__name__ == "ConnectError"
        if wait is None or (is_unreachable and attempt >= MOST_ATTEMPTS_TO_CONNECT):
            break
        logger.warning(f"{what}: the Hub did not answer ({_first_line(failure)}); again in {wait} s")
        time.sleep(wait)
    raise PushError(f"{what}: the Hub did not answer ({_first_line(failure)}).") from failure


def _failure_of_the_network(error: BaseException | None) -> BaseException | None:
    """What an exception says of the network or the Hub; `None` if it is about something else."""
    while error is not None:
        library = type(error).__module__.split(".")[0]
        # The HTTP library's name depends on the client's version; of the system's errors some are about files.
        is_http = library in ("httpx", "httpx2", "httpcore", "hf_xet")
        if is_http or isinstance(error, (HfHubHTTPError, ConnectionError, TimeoutError, LocalEntryNotFoundError)):
            return error
        error = error.__cause__  # the client wraps what goes wrong while it uploads
    return None


def _first_line(error: BaseException) -> str:
    text = (str(error).strip() or type(error).__name__).split("\n")[0]
    # The client's first line is a heading; the Hub's own words come after it.
    said = " ".join((getattr(error, "server_message", None) or "").split())
    return text if not said or said in text else f"{text.rstrip(':')}: {said}"


def _check_format(safe_serialization: bool) -> None:
    if not safe_serialization:
        raise ValueError("`safe_serialization` must be True: pickled weights are not pushed.")
