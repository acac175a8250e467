"""From a checkpoint of LGC-VD to a pipeline folder, top to bottom: [`convert_lgcvd`].

Its training saves `model-<milestone>.pt` in the form of [`port_diffusion`]. The diffusion holds two networks: `denoise_fn.`, and
`encoder_fn.`, which remembers the clips before a window.

Names and shapes tell both, but for the channels of an attention head and the frame size. It is said what was assumed.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

from mcvd_diffusers.atomic import new_folder
from mcvd_diffusers.masking import tasks_of_config
from mcvd_diffusers.model_card import CardFacts, write_card
from mcvd_diffusers.models import LGCVDContextEncoder, LGCVDUNet2DModel
from mcvd_diffusers.pipelines import MCVDPipeline

from . import reference_lgcvd
from .conversion import (
    MOST_PIXELS,
    SAMPLERS,
    Conversion,
    card_source,
    card_verification,
    check_count,
    compare_outputs,
    run_comparison,
    sampling_settings,
    save_pipeline,
    sha256_of,
)
from .lgcvd_weights import HEAD_DIM, NUM_CONTEXT_FRAMES, Recognised, convert_lgcvd_weights, recognise
from .port_diffusion import (
    DENOISER,
    check_betas,
    find_weights,
    make_cosine_scheduler,
    num_noise_levels,
    split_state,
)
from .untrusted import CheckpointError, check_storage_bytes, load_checkpoint


ENCODER = "encoder_fn."
MOST_HEAD_CHANNELS = 65_536

# Names that only this system has, however damaged the rest is.
_BEGINNINGS = (ENCODER, "midblock", "finial_conv.")
_LAYER = re.compile(r"(?:downs|ups)\.\d+\.\d+\.(?:GroupNorm|Conv|Dense|NIN)_\d")

_IMAGE_SIZE = 64
_NUM_TIMESTEPS = 1000
_NUM_INFERENCE_STEPS = 100  # of its settings for testing
# What must be the same in both networks, as its code makes them of the same settings.
_IN_BOTH = ("in_channels", "max_frames", "block_out_channels", "attention_levels")


def is_lgcvd(content: object) -> bool:
    """
    Whether an inspected file is a checkpoint of LGC-VD, damaged or not.

    Args:
        content (`object`): As of [`untrusted.inspect_checkpoint`].

    Returns:
        `bool`: By the names in it.
    """
    if not isinstance(content, dict):
        return False
    states = (content, *(content.get(key) for key in ("state_dict", "model", "ema")))
    names = (name for state in states if isinstance(state, dict) for name in state if isinstance(name, str))
    bare = (name.removeprefix("module.").removeprefix(DENOISER) for name in names)
    return any(name.startswith(_BEGINNINGS) or _LAYER.match(name) for name in bare)


def convert_lgcvd(
    checkpoint: Path,
    content: dict,
    output: Path,
    *,
    weights: str | None,
    verify: bool,
    sampler: str | None,
    notes: list[str],
    attention_head_dim: int | None,
    image_size: int | None,
) -> Conversion:
    """
    Convert an inspected checkpoint. The arguments are those of [`convert_checkpoint`], checked for what all systems share.

    Args:
        checkpoint (`Path`): The file.
        content (`dict`): What [`untrusted.inspect_checkpoint`] found in it.
        output (`Path`): Folder to write.
        weights (`str`, *optional*): `"ema"` or `"model"`.
        verify (`bool`): Whether to compare with the second implementation.
        sampler (`str`, *optional*): `"few_steps"` (default) or `"original"`, as of [`convert_checkpoint`].
        notes (`list[str]`): What is to be reported first.
        attention_head_dim, image_size (`int`, *optional*): What no shape tells, if the caller says it.

    Returns:
        [`Conversion`]: What was done.

    Raises:
        CheckpointError: If anything is missing, contradicts something else, is damaged, hostile or not supported.
    """
    check_count("attention_head_dim", attention_head_dim, MOST_HEAD_CHANNELS)
    check_count("image_size", image_size, MOST_PIXELS)
    keys, kind, step = _find_weights(content, weights, checkpoint.name)
    is_stated = keys in (("ema",), ("model",)) or weights is not None
    what = f"{checkpoint.name} ({'averaged' if kind == 'ema' else 'raw'} weights)" if is_stated else checkpoint.name
    records, buffers, is_encoder_raw = _read(content, keys, what)
    denoiser = _recognise(records[DENOISER], "denoiser", what, head_dim=attention_head_dim)
    shared = {"head_dim": attention_head_dim, "in_channels": denoiser.config["in_channels"]}
    found = {DENOISER: denoiser, ENCODER: _recognise(records[ENCODER], "encoder", what, **shared)}
    _check_pair(found, what)
    num_timesteps = num_noise_levels(buffers, _NUM_TIMESTEPS, what)
    unet, encoder = _make_networks(found, image_size or _IMAGE_SIZE, num_timesteps, what)

    loaded, loaded_buffers, _ = _read(load_checkpoint(checkpoint, content), keys, what)
    betas = loaded_buffers["betas"].detach().double().clone() if "betas" in loaded_buffers else None
    used = [(prefix, row) for prefix, each in found.items() for row in each.rows]
    check_storage_bytes(
        checkpoint,
        [records[prefix][row.theirs] for prefix, row in used],
        [loaded[prefix][row.theirs] for prefix, row in used],
    )
    scheduler = make_cosine_scheduler(num_timesteps, unet.config.prediction_type)
    converted = {
        prefix: convert_lgcvd_weights(loaded[prefix], found[prefix].rows, network, what)
        for prefix, network in ((DENOISER, unet), (ENCODER, encoder))
    }
    for prefix, row in used:
        if not converted[prefix][row.ours].isfinite().all():
            raise CheckpointError(f"{what}: {prefix}{row.theirs} has values that are NaN or infinite in float32.")

    sizes = [sum(parameter.numel() for parameter in network.parameters()) for network in (unet, encoder)]
    result = Conversion(
        output=output,
        checkpoint=checkpoint,
        config="no config, which it does not need",
        sha256=sha256_of(checkpoint),
        weights=kind,
        step=step,
        epoch=None,
        num_parameters=sum(sizes),
        tasks=tasks_of_config(unet.config),
        system="lgcvd",
        notes=[*notes, *_notes(kind, is_stated, is_encoder_raw)],
        not_verified=_assumed(attention_head_dim, image_size, betas is not None),
    )
    result.verified.append(
        f"Every one of the {len(used)} weights and biases in the file ({sizes[0]:,} numbers of the denoiser, {sizes[1]:,} of the"
        " encoder) is used exactly once, in its shape; none is missing or left over."
    )
    if betas is not None:
        result.verified.append(check_betas(betas, scheduler, "LGC-VD", what))

    steps = min(num_timesteps, _NUM_INFERENCE_STEPS)
    sampling = sampling_settings(result, sampler or SAMPLERS[0], scheduler, steps)

    with new_folder(output) as folder:
        unet.load_state_dict(converted[DENOISER], strict=True, assign=True)
        encoder.load_state_dict(converted[ENCODER], strict=True, assign=True)
        pipeline = MCVDPipeline(unet=unet.eval(), context_encoder=encoder.eval(), **sampling)
        save_pipeline(pipeline, folder, output)
        del pipeline, unet, encoder, converted
        if verify:
            result.max_difference, sentence = run_comparison(_compare, folder, loaded, found)
            result.verified.append(sentence)
        else:
            result.not_verified.insert(0, "The networks' outputs were not compared; `--verify` does that.")
        write_card(folder, _describe(result, num_timesteps, sampling["num_inference_steps"]))
    return result


# --------------------------------------------------------------------------------------------------------------------
# What the file says


def _find_weights(content: dict, weights: str | None, name: str) -> tuple[tuple[str, ...], str, int | None]:
    """The way to the weights, which they are, and after how many updates."""
    if "model" in content or "ema" in content:
        kind, step = find_weights(content, weights, name)
        return (kind,), kind, step
    return ("state_dict",) if isinstance(content.get("state_dict"), dict) else (), weights or "model", None


def _read(content: dict, keys: tuple[str, ...], what: str) -> tuple[dict[str, dict], dict, bool]:
    """The tensors of both networks, the diffusion's buffers, and whether the encoder is raw where the denoiser is averaged."""

    def split(state: dict) -> tuple[dict[str, dict], dict]:
        return split_state(state, what, prefixes=(DENOISER, ENCODER), title="LGC-VD")

    networks, buffers = split(content[keys[0]] if keys else content)
    is_encoder_raw = ENCODER not in networks and keys == ("ema",) and isinstance(content.get("model"), dict)
    if is_encoder_raw:
        raw, _ = split(content["model"])
        networks |= {prefix: state for prefix, state in raw.items() if prefix == ENCODER}
    for prefix, kind, other in ((DENOISER, "denoiser", "encoder"), (ENCODER, "encoder", "denoiser")):
        if prefix not in networks:
            raise CheckpointError(
                f"{what} has no {kind}: no name in it begins with `{prefix}`. LGC-VD's {other} is of no use without the {kind} that"
                " it was trained with; its training saves both in one file."
            )
    return networks, buffers, is_encoder_raw


def _recognise(state: Mapping, kind: str, what: str, **options) -> Recognised:
    found = recognise(state, f"The {kind} in {what}", **options)
    if found.kind != kind:
        raise CheckpointError(
            f"The {kind} in {what} is none: its names and shapes are those of an {found.kind} of LGC-VD."
        )
    return found


def _check_pair(found: Mapping[str, Recognised], what: str) -> None:
    for name in _IN_BOTH:
        ours, theirs = (found[prefix].config[name] for prefix in (DENOISER, ENCODER))
        if ours != theirs:
            raise CheckpointError(
                f"{what} has a denoiser and an encoder that do not belong together: `{name}` is {ours} in the one and {theirs} in"
                " the other."
            )


# --------------------------------------------------------------------------------------------------------------------
# Networks


def _make_networks(
    found: Mapping[str, Recognised], size: int, num_timesteps: int, what: str
) -> tuple[LGCVDUNet2DModel, LGCVDContextEncoder]:
    """On the meta device: shapes without memory."""
    statements = {"sample_size": size, "num_train_timesteps": num_timesteps}
    try:
        with torch.device("meta"):
            unet = LGCVDUNet2DModel(**found[DENOISER].config | statements)
            return unet, LGCVDContextEncoder(**found[ENCODER].config | {"sample_size": size})
    except (ValueError, RuntimeError) as error:  # also sizes beyond what can be counted
        raise CheckpointError(f"{what}: the networks cannot be made: {error}") from error


# --------------------------------------------------------------------------------------------------------------------
# Proof


@torch.no_grad()
def _compare(
    folder: Path, states: Mapping[str, Mapping[str, torch.Tensor]], found: Mapping[str, Recognised]
) -> tuple[float, str]:
    """Load the folder, and compare each network with the second implementation on the source's own weights."""
    pipeline = MCVDPipeline.from_pretrained(folder)
    unet, encoder = pipeline.unet.eval(), pipeline.context_encoder.eval()
    config, head_dim = unet.config, found[DENOISER].config["attention_head_dim"]
    states = {
        prefix: {row.theirs: states[prefix][row.theirs].float() for row in each.rows} for prefix, each in found.items()
    }
    # The formulas are the same at every size: at this one the coarsest level has 2x2 pixels.
    frames, size = config.max_frames, 2 * unet.size_multiple
    generator = torch.Generator().manual_seed(0)
    shape = (2, frames, config.in_channels, size, size)
    before, clip = (torch.randn(shape, generator=generator) for _ in range(2))
    given = torch.randn(2, NUM_CONTEXT_FRAMES, *shape[2:], generator=generator)
    memory = reference_lgcvd.encoder(states[ENCODER], before.flatten(1, 2), head_dim=head_dim)
    last = config.num_train_timesteps - 1

    def features() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for read in (before, torch.zeros_like(before)):  # grey, with which every video begins
            yield encoder.encode(read), reference_lgcvd.encoder(states[ENCODER], read.flatten(1, 2), head_dim=head_dim)

    def outputs() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        # Prediction, generation, interpolation, and one frame given; positions in the clip, -1 where none is.
        for positions, timesteps in (
            (torch.tensor([[0, 1], [-1, -1]]), torch.tensor([last, last // 2])),
            (torch.tensor([[0, frames - 1], [frames // 2, -1]]), torch.tensor([0, last])),
        ):
            planes = (2 * (positions + 1) / (frames + 1) - 1)[..., None, None, None].expand_as(given[:, :, :1])
            images = torch.where(positions[..., None, None, None] < 0, -1.0, given)
            theirs = reference_lgcvd.denoiser(
                states[DENOISER],
                clip.flatten(1, 2),
                timesteps,
                cond=torch.cat([images, planes], dim=2).flatten(1, 2),
                memory=memory,
                head_dim=head_dim,
            )
            roles = torch.cat([(positions >= 0).long(), torch.full((2, frames), 2)], dim=1)
            indices = torch.cat([positions, torch.arange(frames).expand(2, -1)], dim=1) + 600  # somewhere in a video
            window = torch.cat([given, clip], dim=1)
            ours = unet(window, timesteps, roles, frame_indices=indices, context=(memory,)).sample
            yield ours[:, NUM_CONTEXT_FRAMES:].flatten(1, 2), theirs

    pixels = f"{frames} frames of {size}x{size} pixels, float32"
    of_encoder, first = compare_outputs(features(), f"on noise and on grey, {pixels}", "encoder")
    of_denoiser, second = compare_outputs(outputs(), f"at three noise levels, {pixels}", "denoiser")
    return max(of_encoder, of_denoiser), f"{first} {second}"


# --------------------------------------------------------------------------------------------------------------------
# Words


def _notes(kind: str, is_stated: bool, is_encoder_raw: bool) -> list[str]:
    notes = []
    if not is_stated:
        notes.append(
            "Whether these are averaged weights, the file does not say. They are taken for raw ones; `--weights` says"
            " otherwise."
        )
    if is_encoder_raw:
        notes.append(
            "There is no average of the encoder in the file: its raw weights stand beside the averaged ones of the denoiser, as"
            " in the original's own sampling."
        )
    elif kind == "ema" and is_stated:
        notes.append(
            "Denoiser and encoder are both the average. The original's own sampling reads the clips before a window with the raw"
            " encoder."
        )
    notes.append(
        "As in LGC-VD's code, attention on the way up is counted from the wrong end (`up_attention_levels`), and the groups of"
        " normalisations are its own (`original_quirks`). Given frames are returned as they came; the original returns those"
        " that it made anew, as `overwrite_given=True` does."
    )
    return notes


def _assumed(head_dim: int | None, size: int | None, has_betas: bool) -> list[str]:
    """What rests on a statement, or on nothing but what was published."""
    assumed = []
    if head_dim is None:
        assumed.append(f"heads of attention of {HEAD_DIM} channels, `--attention_head_dim`")
    if size is None:
        assumed.append(f"frames of {_IMAGE_SIZE}x{_IMAGE_SIZE} pixels (BAIR; Cityscapes: 128), `--image_size`")
    if not has_betas:
        assumed.append(f"{_NUM_TIMESTEPS} noise levels")
    sentences = []
    if assumed:
        sentences.append(f"Assumed as published, since nothing in the file tells: {'; '.join(assumed)}.")
    sentences.append(
        "Assumed as published: no frame was given in training with a probability of 0.4, which tells the pipeline what the"
        " network can do; the network predicts the velocity."
    )
    return sentences


def _describe(result: Conversion, num_timesteps: int, num_steps: int) -> CardFacts:
    """The model card's facts, from what is known."""
    setting = {"noise": f"cosine, {num_timesteps} steps", "updates": result.step}
    return CardFacts(
        name=result.system,
        tasks=result.tasks,
        num_inference_steps=num_steps,
        training={name: value for name, value in setting.items() if value is not None},
        source=card_source(result, "LGC-VD ([exisas/LGC-VD](https://github.com/exisas/LGC-VD))", result.config),
        verification=card_verification(result),
    )
