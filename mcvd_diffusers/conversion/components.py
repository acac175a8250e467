"""The network and the scheduler that an original config and its weights agree on."""

import math
from collections.abc import Mapping

import torch
from diffusers import DDIMScheduler, DDPMScheduler

from mcvd_diffusers.models import MCVDUNet2DModel

from .original_config import MAX_NOISE_LEVELS, OriginalConfig
from .original_weights import Architecture
from .untrusted import CheckpointError


def reconcile(original: OriginalConfig, found: Architecture, records: Mapping, raw_model: Mapping, what: str) -> None:
    """
    Fill in what the config leaves to the weights, and refuse what the two say differently.

    Args:
        original ([`OriginalConfig`]): The config; options that it does not state are set.
        found ([`Architecture`]): What the shapes tell.
        records (`Mapping`): The weights that are converted, name -> anything with a `shape`.
        raw_model (`Mapping`): The same of the raw model, which alone has the noise schedule's buffers.
        what (`str`): The weights, for messages.

    Raises:
        CheckpointError: Naming each option, what the config says, what the weights say and where.
    """
    problems = []

    def agree(option: str, in_weights, evidence: str) -> None:
        stated = original[option]
        if option in original.explicit and stated != in_weights:
            problems.append(
                f"`{option}` is {as_yaml(stated)} in the config, and {as_yaml(in_weights)} by the weights ({evidence})"
            )
        original.values[option] = in_weights

    def shape(name: str) -> str:
        return f"{name} has shape {tuple(records[name].shape)}"

    agree("model.ngf", found.ngf, shape("unet.all_modules.0.weight"))
    multiples = [width // found.ngf if width % found.ngf == 0 else width / found.ngf for width in found.widths]
    agree("model.ch_mult", multiples, f"its levels have {list(found.widths)} channels")
    agree("model.num_res_blocks", found.num_res_blocks, "residual blocks of a level on the way down")
    agree("model.spade", found.spade_dim is not None, "normalisations with `mlp_shared`, or without")
    if found.spade_dim is not None:
        agree("model.spade_dim", found.spade_dim, "channels of `mlp_shared`")
    agree("model.cond_emb", found.cond_emb, "an embedding as module 2, or none")

    size = original["data.image_size"]
    sizes = [size >> level for level in range(len(found.widths))]
    attended = [size for size, has_attention in zip(sizes, found.has_attention) if has_attention]
    if size % 2 ** (len(sizes) - 1):
        problems.append(
            f"`data.image_size` {size} cannot be halved {len(sizes) - 1} times, as the {len(sizes)} levels in the weights"
            " need"
        )
    elif "model.attn_resolutions" in original.explicit:
        stated = [size for size in sizes if size in original["model.attn_resolutions"]]
        if stated != attended:
            problems.append(
                f"with `data.image_size: {size}` (levels of {sizes} pixels) and `model.attn_resolutions:"
                f" {original['model.attn_resolutions']}` there is attention at {stated} in the config, and by the weights"
                f" at {attended}"
            )
    original.values["model.attn_resolutions"] = attended

    channels = original["data.channels"]
    block, given = found.block_channels, found.given_channels
    past, future = original["data.num_frames_cond"], original["data.num_frames_future"]
    if block % channels or given % channels:
        problems.append(
            f"`data.channels` is {channels} in the config, but the weights have {block} channels for the frames of a block"
            f" and {given} for those given"
        )
    else:
        agree("data.num_frames", block // channels, f"{block} channels come out")
        if past is None:
            past = original.values["data.num_frames_cond"] = max(given // channels - future, 0)
        if (past + future) * channels != given:
            unstated = (
                "" if "data.num_frames_future" in original.explicit else " (not stated, so none, as in the original)"
            )
            problems.append(
                f"`data.num_frames_cond` {past} and `data.num_frames_future` {future}{unstated} are {past + future} given"
                f" frames in the config, and by the weights {given // channels} ({given} channels of {channels})"
            )
    head = original["model.n_head_channels"]
    widths = {width for width, has in zip(found.widths, found.has_attention) if has} | {found.widths[-1]}
    wrong = sorted(width for width in widths if head != -1 and width >= head and width % head)
    if wrong:
        problems.append(
            f"`model.n_head_channels` is {head} in the config, which does not divide the {wrong[0]} channels of an attention"
            " in the weights"
        )
    shape_of_betas = tuple(raw_model["betas"].shape) if "betas" in raw_model else ()
    if len(shape_of_betas) == 1:
        agree("model.num_classes", shape_of_betas[0], f"betas has shape {shape_of_betas}")
    if (original["sampling.subsample"] or 1) > (original["model.num_classes"] or 1000):
        problems.append(
            f"`sampling.subsample` {original['sampling.subsample']} is more than the {original['model.num_classes'] or 1000}"
            " noise levels of the training"
        )
    if (original["model.num_classes"] or 0) > MAX_NOISE_LEVELS:
        problems.append(f"there are {original['model.num_classes']:,} noise levels, more than {MAX_NOISE_LEVELS:,}")
    if original["model.num_classes"] is None:
        original.values["model.num_classes"] = 1000

    if problems:
        raise CheckpointError(
            f"{original.source} and {what} contradict each other: {'; '.join(problems)}. One of the two belongs to another"
            " model."
        )


def make_unet(original: OriginalConfig, found: Architecture) -> MCVDUNet2DModel:
    """
    The network on the meta device: shapes without memory.

    Raises:
        CheckpointError: If config and weights agree on a network that cannot be.
    """
    head = original["model.n_head_channels"]
    arguments = {
        "sample_size": original["data.image_size"],
        "in_channels": original["data.channels"],
        "num_past_frames": original["data.num_frames_cond"],
        "num_frames": original["data.num_frames"],
        "num_future_frames": original["data.num_frames_future"],
        "conditioning": "concat" if found.spade_dim is None else "spatin",
        "down_block_types": ["AttnDownBlock2D" if has else "DownBlock2D" for has in found.has_attention],
        "block_out_channels": list(found.widths),
        "conv_in_channels": None if found.ngf == found.widths[0] else found.ngf,
        "layers_per_block": found.num_res_blocks,
        "attention_head_dim": None if head == -1 else head,
        "dropout": original["model.dropout"],
        "embed_past_kept": found.cond_emb,
        "drop_past": original["data.prob_mask_cond"],
        "drop_future": original["data.prob_mask_future"],
        "num_train_timesteps": original["model.num_classes"],
        "prediction_type": "epsilon",
    }
    if found.spade_dim is not None:
        arguments["spatin_channels"] = found.spade_dim
    try:
        with torch.device("meta"):
            return MCVDUNet2DModel(**arguments)
    except (ValueError, RuntimeError) as error:  # also sizes beyond what can be counted
        raise CheckpointError(f"{original.source}: the network cannot be made: {error}") from error


def make_scheduler(original: OriginalConfig) -> DDPMScheduler | DDIMScheduler:
    """The original's sampler as one of Diffusers': its noisiest step first, the last one to a noise level of exactly 0."""
    common = {
        "num_train_timesteps": original["model.num_classes"],
        "beta_start": original["model.sigma_end"],
        "beta_end": original["model.sigma_begin"],
        "beta_schedule": "linear" if original["model.sigma_dist"] == "linear" else "squaredcos_cap_v2",
        "clip_sample": original["sampling.clip_before"],
        "clip_sample_range": 1.0,
        "prediction_type": "epsilon",
        "timestep_spacing": "trailing",
    }
    if original["model.version"] == "DDIM":
        return DDIMScheduler(**common, set_alpha_to_one=True, steps_offset=0)
    return DDPMScheduler(**common, variance_type="fixed_small")


def read_schedule(raw_model: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Copies of the schedule's buffers, which only the raw model has."""
    names = {name.removeprefix("module."): name for name in raw_model}
    return {name: raw_model[names[name]].detach().clone() for name in ("betas", "alphas") if name in names}


def check_schedule(
    schedule: Mapping[str, torch.Tensor], scheduler: DDPMScheduler | DDIMScheduler, original: OriginalConfig, what: str
) -> list[str]:
    """Compare the noise schedule with the buffers in the file. The original counts from the noisiest step."""
    # Diffusers keeps a cosine schedule's beta at or below 0.999, where the original lets it reach 1.
    ours = {"betas": (scheduler.betas, 1e-7), "alphas": (scheduler.alphas_cumprod, 1e-6)}
    if original["model.sigma_dist"] == "cosine":
        ours = {"alphas": (scheduler.alphas_cumprod, 1e-5)}
    sentences = []
    for name, (values, tolerance) in ours.items():
        if name not in schedule:
            continue
        expected, theirs = values.flip(0).double(), schedule[name].double()
        difference = float((theirs - expected).abs().max())
        if not difference <= tolerance:
            (first, last), (their_first, their_last) = (
                (float(numbers[0]), float(numbers[-1])) for numbers in (expected, theirs)
            )
            raise CheckpointError(
                f"{original.source} and {what} contradict each other: `model.sigma_dist`, `sigma_begin` and `sigma_end` make"
                f" {name} from {first:.6g} to {last:.6g} in the config, and the file has {name} from {their_first:.6g} to"
                f" {their_last:.6g}."
            )
        equal = "equals" if difference == 0 else f"is within {bound(difference)} of"
        sentences.append(f"The noise schedule {equal} the buffer `{name}` in the file, {len(theirs)} values.")
    return sentences or ["The file has no buffers of the noise schedule, which is the config's word alone."]


def bound(value: float) -> str:
    """The power of ten above a small difference: a statement that does not change with the last bit."""
    return f"1e{math.floor(math.log10(value)) + 1:03d}" if value > 0 else "1e-12"


def as_yaml(value: object) -> str:
    """A value as the config would have it."""
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return text if len(text) <= 200 else text[:197] + "..."
