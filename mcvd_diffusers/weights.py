"""Safetensors files that know what is in them: a digest of their tensors stands in their header.

Safetensors checks sizes, not contents: a byte that a disk or a copy has changed is another weight, and nobody notices. Files
that this package writes carry a SHA-256 of their tensors, which loading compares. It travels with the file, through
renaming, sharding and the Hub, and does not depend on how the file is laid out.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file


# Where the digests stand in a file's metadata: of its tensors, and of the config of the network whose they are.
DIGEST = "tensors_sha256"
CONFIG_DIGEST = "config_sha256"

# From so many on, threads are worth their while.
_MANY_BYTES = 32 << 20


class WeightsError(OSError, ValueError):
    """A file of weights that is damaged, missing, or not what its neighbours say."""


def weights_digest(tensors: Mapping[str, torch.Tensor]) -> str:
    """
    A digest of tensors: of their names, types, shapes and bytes.

    Args:
        tensors (`Mapping[str, torch.Tensor]`): Name -> tensor, on any device.

    Returns:
        `str`: A SHA-256, 64 hexadecimal digits.
    """
    names = sorted(tensors)

    def line(name: str) -> str:
        x = tensors[name].detach().cpu().contiguous()
        content = hashlib.sha256(x.reshape(-1).view(torch.uint8).numpy()).hexdigest()
        return f"{name} {x.dtype} {list(x.shape)} {content}\n"

    # A large network has gigabytes: hashing lets go of Python's lock, so the cores share it.
    if sum(x.numel() * x.element_size() for x in tensors.values()) > _MANY_BYTES:
        with contextlib.suppress(RuntimeError), ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            return hashlib.sha256("".join(pool.map(line, names)).encode()).hexdigest()
    # Little to do, or no memory for threads.
    return hashlib.sha256("".join(map(line, names)).encode()).hexdigest()


def networks_digest(networks: Mapping[str, Mapping[str, torch.Tensor]]) -> str:
    """
    A digest of all networks of a pipeline, by their values: weights in half precision have that of the same weights as float32,
    which is what they become when they are loaded.

    Args:
        networks (`Mapping[str, Mapping[str, torch.Tensor]]`): Name of a component -> name -> tensor.

    Returns:
        `str`: A SHA-256, 64 hexadecimal digits. Of `"unet"` alone, in float32, it is [`weights_digest`].
    """
    tensors = {}
    for component, named in networks.items():
        for name, x in named.items():
            x = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
            tensors[name if component == "unet" else f"{component}/{name}"] = x
    return weights_digest(tensors)


def config_digest(config: Mapping) -> str:
    """
    A digest of a network's config.

    Args:
        config (`Mapping`): As its `config.json` has it. Entries that begin with an underscore, of Diffusers' own, do not count.

    Returns:
        `str`: A SHA-256, 64 hexadecimal digits.
    """
    entries = {name: value for name, value in config.items() if not name.startswith("_")}
    return hashlib.sha256(json.dumps(entries, sort_keys=True).encode()).hexdigest()


def save_weights(tensors: Mapping[str, torch.Tensor], path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """
    Write a safetensors file with the digest of its tensors. The same tensors give the same bytes.

    Args:
        tensors (`Mapping[str, torch.Tensor]`): Name -> tensor, contiguous.
        path (`Path`): The file.
        metadata (`Mapping[str, str]`, *optional*): What else is to stand in its header.

    Raises:
        `OSError`: If the disk is full, or something else is in the way.
    """
    try:
        save_file(tensors, path, metadata={**(metadata or {}), "format": "pt", DIGEST: weights_digest(tensors)})
    except SafetensorError as error:  # what the operating system said, in other words
        raise OSError(str(error)) from error
    # Safetensors keeps metadata in an order that differs from run to run.
    with open(path, "r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        ordered = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        if len(ordered) <= size:  # the same text in another order, unless a name has characters to be escaped
            file.seek(8)
            file.write(ordered.ljust(size))


def seal_weights(path: Path, **more: str) -> None:
    """
    Write the digest of its tensors into a file's header. What else stands there stays.

    Args:
        path (`Path`): A safetensors file; replaced whole. One that has a digest is left alone.
        more (`str`): What else is to stand in its header.
    """
    metadata, tensors = _read(path)
    if DIGEST in metadata:
        return
    metadata.update(more)
    partial = path.with_name(f".{path.name}.partial")
    try:
        save_weights(tensors, partial, metadata)
        partial.chmod(path.stat().st_mode & 0o777)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def check_weights(path: Path) -> str | None:
    """
    Compare a file's tensors with the digest in its header.

    Args:
        path (`Path`): A safetensors file.

    Returns:
        `str`, *optional*: The digest; `None` if the file has none, being written by others.

    Raises:
        [`WeightsError`]: If the file is damaged.
    """
    metadata, tensors = _read(path)
    stated = metadata.get(DIGEST)
    if stated is not None and stated != weights_digest(tensors):
        raise WeightsError(
            f"{path} is damaged: its tensors are not those that were saved (their SHA-256 is not the one in its header)."
            " Get the file again."
        )
    return stated


def weights_metadata(path: Path) -> dict[str, str]:
    """
    What stands in a file's header besides its tensors.

    Args:
        path (`Path`): A safetensors file.

    Returns:
        `dict[str, str]`: Name -> text.

    Raises:
        [`WeightsError`]: If it is none.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise _unreadable(path, error) from error


def load_weights(path: Path) -> dict[str, torch.Tensor]:
    """
    The tensors of a file.

    Args:
        path (`Path`): A safetensors file.

    Returns:
        `dict[str, torch.Tensor]`: Name -> tensor, mapped from the file.

    Raises:
        [`WeightsError`]: If it is none.
    """
    return _read(path)[1]


def tensor_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """
    What a file's header says of its tensors. No tensor is read.

    Args:
        path (`Path`): A safetensors file.

    Returns:
        `dict[str, tuple[int, ...]]`: Name -> shape.

    Raises:
        [`WeightsError`]: If it is none.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}
    except (SafetensorError, OSError) as error:
        raise _unreadable(path, error) from error


def tensor_types(path: Path) -> dict[str, str]:
    """
    What a file's header says of its tensors' types. No tensor is read.

    Args:
        path (`Path`): A safetensors file.

    Returns:
        `dict[str, str]`: Name -> type, in safetensors' words: `"F32"`, `"BF16"`, `"F8_E4M3"`, `"I64"`, ...

    Raises:
        [`WeightsError`]: If it is none.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_slice(name).get_dtype() for name in file.keys()}
    except (SafetensorError, OSError) as error:
        raise _unreadable(path, error) from error


def _read(path: Path) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
    """A file's metadata and tensors; these are mapped, not read."""
    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {}), {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, OSError) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> WeightsError:
    return WeightsError(f"{path} is damaged, or is no safetensors file: {error}. Get the file again.")
