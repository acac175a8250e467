"""Saving and loading of this package's networks: files that are damaged, missing or of another network are refused.

Diffusers loads what it finds: a changed byte is another weight, a missing tensor is drawn at random, and a config that asks
for more memory than there is gets as far as it can. [`checks_weights`] puts checks before its loading, the same for a
folder, the Hub, variants and shards, and leaves the loading itself to Diffusers. It is applied to a class from outside, so
that a network's file needs nothing but torch and Diffusers.
"""

import inspect
import json
import zipfile
from functools import wraps
from pathlib import Path

import torch
from accelerate import init_empty_weights
from diffusers import ModelMixin
from diffusers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFETENSORS_WEIGHTS_NAME, WEIGHTS_INDEX_NAME, WEIGHTS_NAME
from diffusers.utils.hub_utils import _add_variant, _get_model_file

from mcvd_diffusers.json_files import read_json
from mcvd_diffusers.weights import (
    CONFIG_DIGEST,
    WeightsError,
    check_weights,
    config_digest,
    seal_weights,
    tensor_shapes,
    tensor_types,
    weights_metadata,
)


# Arguments of `from_pretrained` that say where a config lies.
_WHERE = ("cache_dir", "force_download", "proxies", "token", "local_files_only", "revision", "subfolder")


def checks_weights(network_class: type[ModelMixin]) -> type[ModelMixin]:
    """
    Make a network's class check what it loads, and write files that can be checked.

    Saved safetensors files carry a digest of their tensors and one of the network's config. Loading refuses, by a
    [`WeightsError`] that names the file: a file whose tensors are not those of its digest; tensors that are missing, left over
    or of another shape than the config says, and a config that is not the one that was saved with the weights (both unless
    `ignore_mismatched_sizes`); a config that the network refuses, or that asks for more weights than the file has, before
    memory is taken. Pickled weights (`safe_serialization=False`) are read only where there are no others, by torch's
    weights-only loading, which runs no code; what was changed in their file shows by its checksums. Loaded weights are copied to memory, so that a network computes the same to the
    last bit, and a file that is replaced does not pull them away.

    Args:
        network_class (`type[ModelMixin]`): The class; changed in place.

    Returns:
        `type[ModelMixin]`: The class.

    Raises:
        ImportError: If the installed Diffusers loads weights in another way.
    """
    if not hasattr(ModelMixin, "_load_pretrained_model"):
        raise ImportError(
            "This version of diffusers has no `ModelMixin._load_pretrained_model`, where mcvd_diffusers checks weights."
            ' Install a version it was made for: pip install "diffusers>=0.42,<0.43".'
        )

    def from_pretrained(cls, pretrained_model_name_or_path, **kwargs):
        folder = Path(pretrained_model_name_or_path) / (kwargs.get("subfolder") or "")
        if kwargs.get("use_safetensors") is None and not kwargs.get("use_flashpack"):
            kwargs["use_safetensors"] = not _has_only_pickles(folder, kwargs.get("variant"))
        network = _without_memory(cls, pretrained_model_name_or_path, folder, kwargs)
        if not folder.is_dir():
            name = _add_variant(SAFE_WEIGHTS_INDEX_NAME, kwargs.get("variant"))
            index = _file_on_the_hub(pretrained_model_name_or_path, name, kwargs)
            if index is not None and kwargs.get("use_safetensors"):
                _read_index(index)
        elif kwargs.get("use_safetensors"):
            files = _weight_files(folder, kwargs.get("variant"))
            if not kwargs.get("ignore_mismatched_sizes") and kwargs.get("quantization_config") is None:
                _check_shapes(network, files, folder)
        loaded = ModelMixin.from_pretrained.__func__(cls, pretrained_model_name_or_path, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded  # a tuple with `output_loading_info=True`
        # Diffusers leaves weights on the CPU where the file is mapped into memory, at any address. Matrix products on some
        # CPUs depend on the address in their last bit.
        for parameter in model.parameters():
            if parameter.device.type == "cpu":
                parameter.data = parameter.data.clone()
        return loaded

    from_pretrained.__doc__ = f"""
        Load a saved network; the arguments are those of [`~ModelMixin.from_pretrained`].

        Weights are read from safetensors files, and checked: see [`checks_weights`].

        Raises:
            [`WeightsError`]: If a file is damaged, missing, or does not fit {network_class.__name__}'s config.
        """

    def _load_pretrained_model(cls, model, state_dict, resolved_model_file, path, loaded_keys, *args, **kwargs):
        files = [Path(file) for file in resolved_model_file if str(file).endswith(".safetensors")]
        if not kwargs.get("ignore_mismatched_sizes") and kwargs.get("hf_quantizer") is None:
            if files:
                _check_shapes(model, files, files[0].parent)
                _check_config_is_theirs(files, files[0].parent / cls.config_name)
            elif wrong := model.state_dict().keys() ^ set(loaded_keys):
                raise WeightsError(
                    f"{resolved_model_file[0]}: {min(wrong)!r} is missing, or is not in the network of the config."
                )
        for file in map(Path, resolved_model_file):
            (check_weights if file in files else _check_pickle)(file)
        return ModelMixin._load_pretrained_model.__func__(
            cls, model, state_dict, resolved_model_file, path, loaded_keys, *args, **kwargs
        )

    @wraps(ModelMixin.save_pretrained)  # pipelines read its signature
    def save_pretrained(self, save_directory, *args, **kwargs):
        ModelMixin.save_pretrained(self, save_directory, *args, **kwargs)
        given = inspect.signature(ModelMixin.save_pretrained).bind(self, save_directory, *args, **kwargs).arguments
        folder, variant = Path(save_directory), given.get("variant")
        config = folder / self.config_name  # not there if another process writes it
        more = {CONFIG_DIGEST: config_digest(_read_json(config))} if config.is_file() else {}
        index = folder / _add_variant(SAFE_WEIGHTS_INDEX_NAME, variant)
        names = set(json.loads(index.read_text("utf-8"))["weight_map"].values()) if index.is_file() else set()
        for name in names | {_add_variant(SAFETENSORS_WEIGHTS_NAME, variant)}:
            if (folder / name).is_file():
                seal_weights(folder / name, **more)

    network_class.from_pretrained = classmethod(from_pretrained)
    network_class._load_pretrained_model = classmethod(_load_pretrained_model)
    network_class.save_pretrained = save_pretrained
    return network_class


def _without_memory(cls: type[ModelMixin], path: str | Path, folder: Path, kwargs: dict) -> torch.nn.Module:
    """The network that a saved config describes, on the meta device."""
    name = folder / cls.config_name
    file = name if folder.is_dir() else _file_on_the_hub(path, cls.config_name, kwargs)
    if file is None or not file.is_file():  # Diffusers says why
        config = cls.load_config(path, **{name: kwargs[name] for name in _WHERE if name in kwargs})
    else:
        config = _read_json(file)
    names = {each.__name__ for each in (*cls.__mro__, *_subclasses(cls))}
    class_name = config.get("_class_name", cls.__name__)
    if not isinstance(class_name, str) or class_name not in names:
        raise WeightsError(f"{name} is of a {class_name!r}, not of {cls.__name__}.")
    if config.get("quantization_config") is not None and kwargs.get("quantization_config") is None:
        # It chooses the code that reads the weights, and which of them are checked.
        raise WeightsError(
            f"{name} asks for a quantization, which is not done because a file says so. If you want it, give"
            " `quantization_config` to from_pretrained; otherwise remove it from the file."
        )
    try:
        with init_empty_weights():
            return cls.from_config(config)
    except (ValueError, TypeError, RuntimeError, OverflowError) as error:
        raise WeightsError(f"{name}: {error}") from error


def _read_json(path: Path) -> dict:
    try:
        return read_json(path, max_bytes=2**26)
    except ValueError as error:
        raise WeightsError(str(error)) from error


def _file_on_the_hub(path: str | Path, name: str, kwargs: dict) -> Path | None:
    """A file of a repository, as Diffusers finds it; `None` if there is none, or no connection."""
    if Path(path).exists():
        return None
    where = {each: kwargs[each] for each in _WHERE if each in kwargs}
    try:
        return Path(_get_model_file(path, weights_name=name, **where))
    except (OSError, ValueError):  # Diffusers says why
        return None


def _check_pickle(path: Path) -> None:
    """Torch's files of today are zip archives, which have checksums that torch itself does not look at."""
    if zipfile.is_zipfile(path):
        try:
            with zipfile.ZipFile(path) as archive:
                wrong = archive.testzip()
        except (zipfile.BadZipFile, OSError, NotImplementedError, RuntimeError) as error:
            wrong = error
        if wrong is not None:
            raise WeightsError(
                f"{path} is damaged: its content does not have its checksum ({wrong}). Get the file again."
            )


def _check_config_is_theirs(files: list[Path], path: Path) -> None:
    """Much in a config shows in no shape: how many of the given frames are past, how wide a head of attention is."""
    if not path.is_file():
        return
    digest = config_digest(_read_json(path))
    for file in files:
        if weights_metadata(file).get(CONFIG_DIGEST, digest) != digest:
            raise WeightsError(
                f"{path} is not the config that {file} was saved with: one of the two is damaged, or was edited. Get the files"
                " again. To change a setting, give it to from_pretrained and save the network anew; to load the weights all the"
                " same, pass `ignore_mismatched_sizes=True`."
            )


def _subclasses(cls: type) -> list[type]:
    return [each for direct in cls.__subclasses__() for each in (direct, *_subclasses(direct))]


def _has_only_pickles(folder: Path, variant: str | None) -> bool:
    names = (SAFETENSORS_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME), (WEIGHTS_NAME, WEIGHTS_INDEX_NAME)
    has_safe, has_pickled = (any((folder / _add_variant(name, variant)).is_file() for name in kind) for kind in names)
    return has_pickled and not has_safe


def _weight_files(folder: Path, variant: str | None) -> list[Path]:
    """The safetensors files of a folder's network, all there."""
    index = folder / _add_variant(SAFE_WEIGHTS_INDEX_NAME, variant)
    if not index.is_file():
        file = folder / _add_variant(SAFETENSORS_WEIGHTS_NAME, variant)
        if not file.is_file():
            there = sorted(path.name for path in folder.glob("*.safetensors"))
            raise WeightsError(
                # Diffusers' words first, since programs look for them.
                f"Error no file named {_add_variant(WEIGHTS_NAME, variant)} found in directory {folder}, and {file} is missing, too,"
                " which is what is loaded here: "
                + (f"there are {', '.join(there)}; `variant` chooses." if there else "there are no safetensors files.")
            )
        return [file]
    weight_map = _read_index(index)
    names = sorted(set(weight_map.values()))
    for name in names:
        if not (folder / name).is_file():
            raise WeightsError(f"{folder / name} is missing: {index.name} says that weights are in it.")
        wrong = tensor_shapes(folder / name).keys() ^ {key for key, file in weight_map.items() if file == name}
        if wrong:
            raise WeightsError(
                f"{index} and {name} do not agree on where {min(wrong)!r} is: one of the two is damaged."
            )
    return [folder / name for name in names]


def _read_index(index: Path) -> dict[str, str]:
    """Tensor -> file, of an index of shards."""
    try:
        content = _read_json(index)
        weight_map = dict(content["weight_map"])
        dict(content["metadata"])  # Diffusers needs it
        names = set(weight_map.values())
        is_right = bool(names) and all(isinstance(name, str) and name.endswith(".safetensors") for name in names)
    except WeightsError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(
            f"{index} is damaged: it is no index of weights ({error!r}). Get the file again."
        ) from error
    if not is_right:
        raise WeightsError(f"{index} is damaged: its weight_map does not name safetensors files.")
    for name in sorted(names):
        if Path(name).name != name or "\\" in name:
            raise WeightsError(f"{index} names {name!r}, which is no plain name of a file beside it.")
    return weight_map


def _check_shapes(network: torch.nn.Module, files: list[Path], folder: Path) -> None:
    """Each tensor of the network is in one of the files, in its shape, and there is no other."""
    state = network.state_dict()
    needed = {name: tuple(x.shape) for name, x in state.items()}
    found: dict[str, tuple[int, ...]] = {}
    for file in files:
        for name, shape in tensor_shapes(file).items():
            if name not in needed:
                raise WeightsError(
                    f"{file} has a tensor {name!r}, which the network of {folder / 'config.json'} has not."
                )
            if name in found:
                raise WeightsError(f"{file} has {name!r} once more, which is in another file as well.")
            if shape != needed[name]:
                raise WeightsError(
                    f"{file} has {name!r} of shape {shape}, but the network of {folder / 'config.json'} needs"
                    f" {needed[name]}: one of the two is damaged, or of another network."
                )
            found[name] = shape
        for name, type_name in tensor_types(file).items():
            # Integers, booleans and complex numbers would be cast without a word.
            if state[name].is_floating_point() and not type_name.startswith(("F", "BF")):
                raise WeightsError(
                    f"{file} has {name!r} as {type_name}, but the network needs floating-point numbers."
                )
    if missing := sorted(needed.keys() - found.keys()):
        raise WeightsError(
            f"{' and '.join(str(file) for file in files[:3])} lack{'s' if len(files) == 1 else ''} {missing[0]!r}"
            f"{f' and {len(missing) - 1} more tensors' if len(missing) > 1 else ''}, which the network of"
            f" {folder / 'config.json'} needs."
        )
