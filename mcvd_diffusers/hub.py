"""Registration with Diffusers, so that its loaders know this package's classes; and checks of what a checkpoint names.

Since Diffusers 0.42 a component of another library is recorded under the module path of its file, and a pipeline that
was saved so cannot be loaded back from the Hub. A library that stands in `LOADABLE_CLASSES` is recorded as
`["mcvd_diffusers", "MCVDUNet2DModel"]` and found in a folder and on the Hub; no code of a repository is ever run. The
loader looks the base classes up as attributes of the package, so `mcvd_diffusers/__init__.py` exports them too.
`DiffusionPipeline` and `AutoModel` look a class up as an attribute of `diffusers`: ours are put there. All this leans on
Diffusers' internals, so [`register_with_diffusers`] tries it out, and says which version to install when it does not hold.

`model_index.json` and the settings of schedulers and guiders come from strangers. [`CheckedPipelineMixin`] reads them
before Diffusers acts on them: classes are those that the pipeline's signature allows and that are here already, nothing is
imported because a file names it, values have their types and sizes, and whatever is refused is refused by a `ValueError`
that names the file. (Networks and their weights: `models/weight_files.py`.)
"""

import inspect
import json
import math
import os
import reprlib
import sys
from collections.abc import Callable
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import diffusers
import torch
from diffusers import DiffusionPipeline, ModelMixin, SchedulerMixin
from diffusers.configuration_utils import ConfigMixin
from diffusers.pipelines import pipeline_loading_utils
from diffusers.utils import DummyObject
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from mcvd_diffusers.json_files import read_json


LIBRARY = "mcvd_diffusers"
WAY_OUT = 'Install a version it was made for: pip install "diffusers>=0.42,<0.43".'

# Far above what any checkpoint needs, far below what exhausts a machine.
MOST_TIMESTEPS = 1_000_000
# Bounds that pixels are clipped to.
POSITIVE = ("clip_sample_range", "sample_max_value", "dynamic_thresholding_ratio")


def register_with_diffusers(*classes: type) -> None:
    """
    Make this package one that Diffusers loads from.

    Args:
        classes (`type`):
            Networks and pipelines of this package. They become attributes of `diffusers`, where
            `DiffusionPipeline.from_pretrained` and `AutoModel.from_pretrained` look; a name that Diffusers has itself
            stays Diffusers'.

    Raises:
        ImportError: If the installed Diffusers keeps its table of libraries elsewhere, in another form, or does not ask it.
    """
    table = getattr(pipeline_loading_utils, "LOADABLE_CLASSES", None)
    where = "`pipelines.pipeline_loading_utils.LOADABLE_CLASSES`"
    if table is None:
        raise ImportError(
            f"This version of diffusers has no {where}, where mcvd_diffusers registers itself. {WAY_OUT}"
        )
    if not isinstance(table, dict) or not all(isinstance(row, dict) for row in table.values()):
        raise ImportError(
            f"In this version of diffusers {where} is no dictionary of dictionaries, where mcvd_diffusers registers"
            f" itself. {WAY_OUT}"
        )
    methods = ["save_pretrained", "from_pretrained"]
    table.setdefault(LIBRARY, dict.fromkeys(("ModelMixin", "SchedulerMixin", "DiffusionPipeline"), methods))
    for each in classes:
        try:
            recorded = pipeline_loading_utils._fetch_class_library_tuple(each)
        except Exception as error:  # whatever another version raises
            recorded = error
        if recorded != (LIBRARY, each.__name__):
            raise ImportError(
                f"This version of diffusers would save a {each.__name__} as {recorded!r} instead of"
                f" {(LIBRARY, each.__name__)}: it does not ask {where}, where mcvd_diffusers registers itself. {WAY_OUT}"
            )
        if not hasattr(diffusers, each.__name__):
            setattr(diffusers, each.__name__, each)


class CheckedPipelineMixin:
    """
    Checks of the files that a pipeline is put together from; stands before `DiffusionPipeline` among a class's bases.

    A folder and a download go through the same checks. Loading by `DiffusionPipeline.from_pretrained` checks
    `model_index.json` alone, since Diffusers reads the files before it knows the class.
    """

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, **kwargs):
        """
        Load a saved pipeline; the arguments are those of [`~DiffusionPipeline.from_pretrained`].

        No code of the checkpoint is run, and nothing that it names is imported.

        Raises:
            `ValueError`: If `model_index.json`, or a file that it leads to, is damaged or asks for what this pipeline is not.
            `FileNotFoundError`: If the folder of a component is missing, a `Path` is no folder, or the folder is that of a run that
                has ended before it saved its pipeline. (A string may be an id on the Hub.)
            `OSError`: If a string is no folder, and the Hub does not have it, or cannot be asked.
        """
        folder = Path(pretrained_model_name_or_path)
        if isinstance(pretrained_model_name_or_path, os.PathLike) and not folder.is_dir():
            raise FileNotFoundError(
                f"`pretrained_model_name_or_path` must be the folder of a pipeline, and {folder} is no folder. A model on the Hub is"
                ' named by a string: "user/name".'
            )
        path = folder / cls.config_name
        if not folder.is_dir():
            return cls._from_hub(pretrained_model_name_or_path, **kwargs)
        if not path.is_file():
            saved = [each.parent for each in folder.glob(f"checkpoint-*/{cls.config_name}")]
            saved = [each for each in saved if each.name.removeprefix("checkpoint-").isdecimal()]
            if saved:
                newest = max(saved, key=lambda each: int(each.name.removeprefix("checkpoint-")))
                raise FileNotFoundError(
                    f"{folder} has no {cls.config_name}: it is the folder of a training that has not come to its end. Load the newest of"
                    f' its checkpoints, from_pretrained("{newest}"), or go on with the training.'
                )
        else:
            index = cls._dict_from_json_file(path)
            for name in cls._get_signature_keys(cls)[0]:
                if name in kwargs:
                    continue
                library = index.get(name, [None])[0]
                if library is None and name not in cls._optional_components:
                    raise ValueError(
                        f"{path} must name `{name}`, which {cls.__name__} needs, and does not. Get the file again, or give"
                        f" the component: from_pretrained(..., {name}=...)."
                    )
                if library is not None and not (folder / name).is_dir():
                    raise FileNotFoundError(
                        f"{folder / name} is missing: {cls.config_name} says that `{name}` is in it. Get the folder again,"
                        f" or give the component: from_pretrained(..., {name}=...)."
                    )
        return super().from_pretrained(pretrained_model_name_or_path, **kwargs)

    @classmethod
    def _from_hub(cls, name: str, **kwargs):
        """What is no folder: as Diffusers loads it from the Hub; what fails is told with both places that it was looked for."""
        here = f"There is no folder {name} here (working directory {Path.cwd()})"
        try:
            validate_repo_id(name)
        except HFValidationError as error:
            raise ValueError(f"{here}, and it is no id on the Hub, which would be user/name.") from error
        try:
            return super().from_pretrained(name, **kwargs)
        except OSError as error:
            reason = error.__cause__
            if type(error) is not OSError or reason is None:  # what else may be wrong with a model that is there
                raise
            status = getattr(getattr(reason, "response", None), "status_code", None)
            if status in (401, 403, 404):
                raise OSError(
                    f"{here}, and the Hub has no model of this name, or none that may be read without logging in."
                ) from error
            first_line = str(reason).strip().split("\n")[0]
            raise OSError(f"{here}, and the Hub cannot be asked for a model of this name ({first_line}).") from error

    @classmethod
    def check_options(cls, options: dict[str, Any]) -> None:
        """
        Refuse values that a saved pipeline cannot have; for classes that know more than an option's type.

        Args:
            options (`dict[str, Any]`): What `model_index.json` says besides the components.

        Raises:
            `ValueError`: If a value is none that this pipeline takes.
        """

    @classmethod
    def _dict_from_json_file(
        cls, json_file
    ):  # how Diffusers reads `model_index.json`: in a folder and when downloading
        path = Path(json_file)
        index = read_json(path)
        for name, found in cls._check_index(index, path).items():
            # Networks check theirs themselves. While a pipeline is being downloaded the files are not there yet.
            if issubclass(found, ConfigMixin) and not issubclass(found, ModelMixin):
                # Diffusers looks beside the index for what has no folder.
                folder = path.parent / name if (path.parent / name).is_dir() else path.parent
                if (folder / found.config_name).is_file():
                    _check_settings(folder / found.config_name, found)
        return index

    @classmethod
    def extract_init_dict(cls, config_dict, **kwargs):
        """As in Diffusers; an index that was read by another class, for `DiffusionPipeline.from_pretrained`, is checked."""
        cls._check_index(config_dict, Path(cls.config_name))
        return super().extract_init_dict(config_dict, **kwargs)

    @classmethod
    def _check_index(cls, index: dict[str, Any], path: Path) -> dict[str, type]:
        """The classes of the components that `model_index.json` names, all of them allowed."""
        _check_class_name(cls, index.get("_class_name"), path)
        components, options = cls._get_signature_keys(cls)
        types = _annotated_types(cls.__init__)
        found = {}
        for name, value in index.items():
            if not isinstance(name, str) or "/" in name or "\\" in name or name in (".", ".."):
                raise ValueError(f"{path} has an entry {_shown(name)}; names must be plain, without a path in them.")
            if name == "_class_name":
                continue
            if name in components:
                each = _component_class(cls, name, value, types.get(name, ()), path)
                if each is not None:
                    found[name] = each
            elif isinstance(value, (list, tuple)) or name in ("_ignore_files", "_use_default_values"):
                raise ValueError(
                    f"{path} has {name!r}: {_shown(value)}, but {cls.__name__} has no such component; it has"
                    f" {', '.join(components)}."
                )
            elif name in options and not _fits(value, types.get(name, ())):
                raise ValueError(f"{path}: `{name}` must be {_names(types[name])}, got {_shown(value)}.")
        try:
            cls.check_options({name: index[name] for name in options if name in index})
        except (ValueError, TypeError, OverflowError) as error:
            raise ValueError(f"{path}: {error}") from error
        return found


def _check_class_name(cls: type, name: Any, path: Path) -> None:
    """The pipeline's name in its index: a subclass's, its own, or a base's, since these load one another."""
    if isinstance(name, (list, tuple)):
        raise ValueError(
            f"{path}: `_class_name` must be the name of a class, got {_shown(name)}, which is code in the checkpoint's"
            " folder. This package never runs code of a checkpoint."
        )
    bases = [each for each in cls.__mro__ if issubclass(each, DiffusionPipeline) and each is not DiffusionPipeline]
    names = {each.__name__ for each in (*bases, *_subclasses(cls))}
    if not isinstance(name, str) or name not in names:
        raise ValueError(
            f"{path} must be of a {cls.__name__} (`_class_name`), got {_shown(name)}. Load it with the class that saved it."
        )


def _component_class(cls: type, name: str, entry: Any, allowed: tuple[type, ...], path: Path) -> type | None:
    """The class that an entry names; `None` for a component that there is none of."""
    is_pair = isinstance(entry, (list, tuple)) and len(entry) == 2
    if is_pair and entry[0] is None and entry[1] is None and name in cls._optional_components:
        return None
    if not is_pair or not all(isinstance(part, str) for part in entry):
        raise ValueError(
            f"{path}: `{name}` must be a library and a class, as {_example(allowed)}"
            f"{', or [null, null]' * (name in cls._optional_components)}, got {_shown(entry)}."
        )
    library, class_name = entry
    # An importing lookup is left to Diffusers' own table of its classes; elsewhere it is what stands in the module now.
    if library == "diffusers":
        each = getattr(diffusers, class_name, None) if class_name.isidentifier() else None
    elif library in sys.modules:
        each = getattr(sys.modules[library], "__dict__", {}).get(class_name)
    else:
        raise ValueError(
            f"{path}: `{name}` must be of diffusers, {LIBRARY} or a module that is imported, got {_shown(entry)}. Nothing is"
            f" imported because a file names it: if it is your own module, import it before; or give the component:"
            f" from_pretrained(..., {name}=...)."
        )
    # Diffusers' stand-in for a class that needs another package; it says which when it is loaded.
    is_stand_in = isinstance(each, type) and type(each) is DummyObject and library == "diffusers"
    if is_stand_in:
        return None
    if not isinstance(each, type) or (allowed and not issubclass(each, allowed)):
        raise ValueError(
            f"{path}: `{name}` must be {_names(allowed) or 'a class'}, as {_example(allowed)}, got {_shown(entry)}"
            f"{', which is none' if each is not None else ', which is not there'}."
        )
    code = path.parent / name / f"{library}.py"
    if code.exists():  # Diffusers would take this file for the component's library
        raise ValueError(
            f"{code} must not be there: it is code in the place of {library}. This package never runs code of a"
            " checkpoint. Remove the file."
        )
    return each


def _check_settings(path: Path, of: type) -> None:
    """The settings of a scheduler or guider: of the class that the index says, and such that it can be made."""
    settings = read_json(path)
    if settings.get("_class_name") != of.__name__:
        raise ValueError(
            f"{path} must be of a {of.__name__}, as model_index.json says (`_class_name`), got"
            f" {_shown(settings.get('_class_name'))}. Get both files again."
        )
    if "num_train_timesteps" in settings:
        count = settings["num_train_timesteps"]
        if type(count) is not int or not 1 <= count <= MOST_TIMESTEPS:
            raise ValueError(
                f"{path}: `num_train_timesteps` must be an integer from 1 to {MOST_TIMESTEPS:,}, got {_shown(count)}."
            )
    betas = settings.get("trained_betas")
    if betas is not None:
        is_right = isinstance(betas, list) and all(type(x) in (int, float) and math.isfinite(x) for x in betas)
        if not is_right or not betas:
            raise ValueError(f"{path}: `trained_betas` must be a list of finite numbers, got {_shown(betas)}.")
        if len(betas) != settings.get("num_train_timesteps", len(betas)):
            raise ValueError(
                f"{path}: `trained_betas` must be {settings['num_train_timesteps']:,} numbers, one for each of"
                f" `num_train_timesteps`, got {len(betas):,}."
            )
    parameters, types = inspect.signature(of.__init__).parameters, _annotated_types(of.__init__)
    for name, value in settings.items():
        # What another scheduler left here (`from_config`) is not read: there is no default to tell it by, and infinities are no sizes.
        default = parameters[name].default if name in parameters else -math.inf
        for number in value if isinstance(value, list) else [value]:
            # Some are sizes; and some defaults are infinite. (Infinity and NaN are no JSON, but Python reads and writes them.)
            if type(number) in (int, float) and not abs(number) <= MOST_TIMESTEPS and number != default:
                raise ValueError(f"{path}: `{name}` must be at most {MOST_TIMESTEPS:,}, got {_shown(value)}.")
        if name in POSITIVE and type(value) in (int, float) and value <= 0:
            raise ValueError(f"{path}: `{name}` must be above 0, got {_shown(value)}: every video would be the same.")
        # Only plain types: where Diffusers annotates more, it takes more than it says.
        plain = set(types.get(name, ())) <= {bool, int, float, str, type(None)}
        if name in parameters and plain and type(value) is not type(parameters[name].default):
            if not _fits(value, types.get(name, ())):
                raise ValueError(f"{path}: `{name}` must be {_names(types[name])}, got {_shown(value)}.")
    try:
        made = of(**{name: value for name, value in settings.items() if name in parameters})
    except ImportError:  # what has to be installed for it
        raise
    except Exception as error:
        raise ValueError(f"{path} is no configuration of a {of.__name__}: {error}") from error
    kept = getattr(made, "alphas_cumprod", None)
    # With `rescale_betas_zero_snr` solvers replace the last value, which is 0, by 2**-24.
    if torch.is_tensor(kept) and not (((0 <= kept) & (kept <= 1)).all() and (kept.diff() <= 2**-24).all()):
        raise ValueError(
            f"{path}: `beta_start`, `beta_end` and `trained_betas` must lie between 0 and 1, so that the signal fades; with"
            f" {_shown(settings.get('beta_start'))}, {_shown(settings.get('beta_end'))} and {_shown(betas)} it does not."
        )


def _annotated_types(function: Callable) -> dict[str, tuple[type, ...]]:
    """Parameter -> the classes that its annotation allows. Those with other annotations are left out."""
    try:
        hints = get_type_hints(function)
    except Exception:  # annotations as strings, of a class that is not there
        return {}

    def of(hint: Any) -> tuple:
        if get_origin(hint) is Literal:
            return tuple(type(value) for value in get_args(hint))
        return sum(map(of, get_args(hint)), ()) if get_origin(hint) in (Union, UnionType) else (hint,)

    types = {name: tuple(dict.fromkeys(of(hint))) for name, hint in hints.items()}
    return {name: each for name, each in types.items() if all(isinstance(one, type) for one in each)}


def _fits(value: Any, types: tuple[type, ...]) -> bool:
    if not types:
        return True
    if isinstance(value, bool):  # an int in Python
        return bool in types
    return isinstance(value, types) or (isinstance(value, int) and float in types)


def _subclasses(cls: type) -> list[type]:
    return [each for direct in cls.__subclasses__() for each in (direct, *_subclasses(direct))]


def _names(types: tuple[type, ...]) -> str:
    names = ["None" if each is type(None) else each.__name__ for each in types]
    return f"a {' or '.join(names)}" if names else ""


def _example(allowed: tuple[type, ...]) -> str:
    known = next((each for each in allowed if each is not type(None)), SchedulerMixin)
    if known is SchedulerMixin:
        return '["diffusers", "DDIMScheduler"]'
    return json.dumps([known.__module__.split(".")[0], known.__name__])


def _shown(value: Any) -> str:
    return reprlib.repr(value)
