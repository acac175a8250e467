"""A pipeline to give away: one set of a run's weights, rounded if that is wanted, with the card of its training."""

import os
from pathlib import Path

import torch
from safetensors import SafetensorError

from mcvd_diffusers.atomic import check_new_folder, check_writable, new_folder
from mcvd_diffusers.model_card import (
    FACTS,
    CardFacts,
    check_same_weights,
    facts_of_configs,
    read_facts,
    tensors_digest,
    weight_files,
    write_card,
)
from mcvd_diffusers.pipelines import MCVDPipeline
from mcvd_diffusers.publishing import facts_for_weights, forget_origin


DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def export_folder(
    folder: str | os.PathLike, output: str | os.PathLike, *, variant: str | None = None, dtype: str = "float32"
) -> CardFacts:
    """
    Write a pipeline's folder that holds one set of weights and loads without `variant`.

    Of the card all stays that is true of these weights: how they were trained, the command, licences, notes; evaluations and
    samples only if the weights are not rounded, since others made them.

    Args:
        folder (`str` or `os.PathLike`): A pipeline's folder, such as that of a run.
        output (`str` or `os.PathLike`): The folder to make; it must not exist, or be empty.
        variant (`str`, *optional*):
            Which weights: `"ema"`, or `"raw"` for those without a variant. By default those that the card's example loads.
        dtype (`str`, *optional*, defaults to `"float32"`):
            What they are rounded to: `"float32"`, `"float16"` or `"bfloat16"`. Half the bytes, three to four digits.

    Returns:
        [`CardFacts`]: Of what was written.

    Raises:
        ValueError: If the folder holds no pipeline, or not those weights, or values are beyond what `dtype` can hold.
        `FileExistsError`: If there is something at `output`.
    """
    folder, output = Path(folder).expanduser(), Path(output).expanduser().absolute()
    if dtype not in DTYPES:
        raise ValueError(f"`dtype` must be one of {', '.join(DTYPES)}, got {dtype!r}.")
    check_new_folder(output)
    check_writable(output)
    if output.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"`output` {output} lies in {folder}, which is exported: name another place.")
    if (folder / FACTS).exists():
        facts = read_facts(folder)
        check_same_weights(folder, facts)
    else:
        facts = facts_of_configs(folder)
    variants = list(weight_files(folder))
    variant = facts.variant if variant is None else None if variant == "raw" else variant
    if not variants:
        raise ValueError(
            f"{folder} holds no weights of a network: unet/diffusion_pytorch_model.safetensors is not there."
        )
    if variant not in variants:
        names = ", ".join(name or "raw" for name in variants)
        raise ValueError(f"`variant` must be one of those in {folder} ({names}), got {variant!r}.")

    pipeline = MCVDPipeline.from_pretrained(folder, variant=variant)
    networks = [part for part in pipeline.components.values() if isinstance(part, torch.nn.Module)]
    is_rounded = False
    for network in networks:
        for name, tensor in network.state_dict().items():
            if not torch.isfinite(tensor).all():
                raise ValueError(
                    f"{name} in {folder} has values that are NaN or infinite: such a network makes nothing."
                )
            rounded = tensor.to(DTYPES[dtype])
            if not torch.isfinite(rounded).all():
                wider = "bfloat16 or float32" if dtype == "float16" else "float32"
                raise ValueError(f"`dtype` {dtype} cannot hold the largest values of {name}: take {wider}.")
            is_rounded |= not torch.equal(rounded.to(tensor.dtype), tensor)
        torch.nn.Module.to(network, DTYPES[dtype])  # that of Diffusers warns of it, which is what is wanted here

    of_variants, digest = ([], None) if is_rounded else ([variant], tensors_digest(folder, variant))
    with new_folder(output) as partial:
        try:
            pipeline.save_pretrained(partial)
        except SafetensorError as error:  # such as a disk that is full
            raise OSError(f"{output} cannot be written: {error}") from error
        for path in (*partial.glob("*/*.json"), partial / "model_index.json"):
            forget_origin(path)
        if (folder / FACTS).exists():
            facts = facts_for_weights(folder, partial, of_variants=of_variants, digest=digest)
        facts.name, facts.variant, facts.repo_id = output.name, None, None
        facts.weights = _origin(facts.weights, variant, is_trained_here=(folder / FACTS).exists())
        if is_rounded:
            facts.weights += f" They were rounded to {dtype}."
        write_card(partial, facts)
    return facts


def _origin(stated: str | None, variant: str | None, *, is_trained_here: bool) -> str:
    """What the card says of the weights; what it says already, if they were given away before."""
    if stated is not None and variant is None:
        return stated
    if not is_trained_here and variant is None:
        return "Nothing is written down about the training of these weights."
    which = {
        None: "the weights of the last update, not averaged",
        "ema": "the moving average of the weights of the training",
    }
    return f"These are {which.get(variant, f'the weights `{variant}` of the training')}."
