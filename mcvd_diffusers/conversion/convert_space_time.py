"""From a checkpoint of RaMViD, FDM or VDM's public port to a pipeline folder, top to bottom: [`convert_space_time`].

| system | what its training saves |
| --- | --- |
| RaMViD | `ema_<rate>_<updates>.pt`, `model<updates>.pt`: a bare state dict |
| FDM | the same names: a dictionary of `state_dict`, `config` (its command line) and `step` |
| VDM's port | `model-<milestone>.pt`: a dictionary of `step`, `model`, `ema`, `scaler`; names begin with `denoise_fn.` |

Names and shapes tell the network. What they do not tell stands in FDM's config, or is as published; it is said what was assumed.
"""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from diffusers import DDPMScheduler

from mcvd_diffusers.atomic import new_folder
from mcvd_diffusers.masking import tasks_of_config
from mcvd_diffusers.model_card import CardFacts, write_card
from mcvd_diffusers.models import SpaceTimeUNetModel
from mcvd_diffusers.pipelines import MCVDPipeline

from . import reference_space_time
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
from .port_diffusion import (
    DENOISER,
    check_betas,
    checked_step,
    find_weights,
    make_cosine_scheduler,
    num_noise_levels,
    split_state,
)
from .space_time_weights import Recognised, convert_space_time_weights, recognise
from .untrusted import CheckpointError, check_storage_bytes, load_checkpoint


MOST_FRAMES = 1_000_000

# Parts of names by which one of the three is known, however damaged the rest is.
_BEGINNINGS = (
    *("input_blocks.", "middle_block.", "output_blocks.", "time_embed."),
    *("downs.", "ups.", "mid_block1.", "mid_block2.", "init_conv.", "init_temporal_attn.", "time_rel_pos_bias."),
)
_FILE_NAME = re.compile(r"(ema_[0-9.]{1,20}_|model)([0-9]{1,12})")

# Published settings that no shape tells: training frames, and how often nothing was given.
_TITLES = {"ramvid": "RaMViD", "fdm": "FDM", "vdm": "VDM's public port"}
_REPOSITORIES = {
    "ramvid": "Tobi-r9/RaMViD",
    "fdm": "plai-group/flexible-video-diffusion-modeling",
    "vdm": "lucidrains/video-diffusion-pytorch",
}
_MAX_FRAMES = {"ramvid": 20, "fdm": 20, "vdm": 16}
_IMAGE_SIZE = 64
_DROP_OBSERVED = {"ramvid": 0.25, "fdm": 0.71, "vdm": 1.0}
_RAMVID_MOST_GIVEN = 4  # frames of a clip in training

# Options of FDM's command line that are read; those of the network itself, its shapes tell.
_FDM_OPTIONS = {
    "image_size": int,
    "max_frames": int,
    "num_heads": int,
    "diffusion_steps": int,
    "noise_schedule": str,
    "predict_xstart": bool,
    "sigma_small": bool,
    "learn_sigma": bool,
    "rescale_timesteps": bool,
    "dataset": str,
    "lr": float,
    "batch_size": int,
    "weight_decay": float,
    "dropout": float,
}


@dataclass(frozen=True)
class _Found:
    """Where in a file the weights stand, and what it says of them."""

    keys: tuple[str, ...]  # the way to them
    weights: str
    step: int | None
    config: Mapping = field(default_factory=dict)
    is_stated: bool = True  # whether they are averages


def is_space_time(content: object) -> bool:
    """
    Whether an inspected file is a checkpoint of RaMViD, FDM or VDM's port, damaged or not.

    Args:
        content (`object`): As of [`untrusted.inspect_checkpoint`].

    Returns:
        `bool`: By the names in it.
    """
    if not isinstance(content, dict):
        return False
    return any(
        _looks_like_one(state) for state in (content, *(content.get(x) for x in ("state_dict", "model", "ema")))
    )


def _looks_like_one(state: object) -> bool:
    names = state if isinstance(state, dict) else ()
    bare = (name.removeprefix("module.").removeprefix(DENOISER) for name in names if isinstance(name, str))
    return any(name.startswith(_BEGINNINGS) for name in bare)


def convert_space_time(
    checkpoint: Path,
    content: dict,
    output: Path,
    *,
    weights: str | None,
    verify: bool,
    sampler: str | None,
    notes: list[str],
    num_heads: int | None,
    image_size: int | None,
    max_frames: int | None,
) -> Conversion:
    """
    Convert an inspected checkpoint. The arguments are those of [`convert_checkpoint`], checked for what all systems share.

    Args:
        checkpoint (`Path`): The file.
        content (`dict`): What [`untrusted.inspect_checkpoint`] found in it.
        output (`Path`): Folder to write.
        weights (`str`, *optional*): `"ema"` or `"model"`.
        verify (`bool`): Whether to compare with the second implementation.
        sampler (`str`, *optional*): `"few_steps"` or `"original"`, as of [`convert_checkpoint`].
        notes (`list[str]`): What is to be reported first.
        num_heads, image_size, max_frames (`int`, *optional*): What no shape tells, if the caller says it.

    Returns:
        [`Conversion`]: What was done.

    Raises:
        CheckpointError: If anything is missing, contradicts something else, is damaged, hostile or not supported.
    """
    for name, value, most in (
        ("num_heads", num_heads, 1024),
        ("image_size", image_size, MOST_PIXELS),
        ("max_frames", max_frames, MOST_FRAMES),
    ):
        check_count(name, value, most)
    found = _find_weights(content, weights, checkpoint.name)
    what = f"{checkpoint.name} ({'averaged' if found.weights == 'ema' else 'raw'} weights)"
    if not found.is_stated:
        what = checkpoint.name
    inspected = _part(content, found.keys)
    records, buffers = _tensors(inspected, what)
    options = _fdm_options(found.config, what)
    heads = _agree("num_heads", num_heads, options, what)
    recognised = recognise(records, what, num_heads=heads)
    system = recognised.system
    if found.config and system != "fdm":
        raise CheckpointError(
            f"{what} has FDM's form, but the names and shapes of {_TITLES[system]}: it is a trap or an edit."
        )
    if system == "vdm" and num_heads not in (None, recognised.config["num_attention_heads"]):
        raise CheckpointError(
            f"`num_heads` is {num_heads}, but {what} has {recognised.config['num_attention_heads']}, as its table of positions"
            " tells. Leave it out."
        )
    if system == "vdm" and sampler == "few_steps":
        raise CheckpointError(
            '`sampler` is "few_steps", but what is given enters VDM\'s frames by replacement and guidance, which those solvers serve badly:'
            " leave it out, and the original's is kept."
        )
    size = _agree("image_size", image_size, options, what)
    frames = _agree("max_frames", max_frames, options, what)
    num_timesteps = num_noise_levels(buffers, options.get("diffusion_steps", 1000), what)
    unet = _make_unet(recognised, size, frames, num_timesteps, options, what)

    loaded = load_checkpoint(checkpoint, content)
    state, loaded_buffers = _tensors(_part(loaded, found.keys), what)
    betas = loaded_buffers["betas"].detach().double().clone() if "betas" in loaded_buffers else None
    used = [row.theirs for row in recognised.rows]
    check_storage_bytes(checkpoint, [records[name] for name in used], [state[name] for name in used])
    del loaded, loaded_buffers
    scheduler = _make_scheduler(system, num_timesteps, options)
    converted = convert_space_time_weights(state, recognised.rows, unet, what)
    for row in recognised.rows:
        if any(not converted[name].isfinite().all() for name in row.ours):
            raise CheckpointError(f"{what}: {row.theirs} has values that are NaN or infinite in float32.")

    result = Conversion(
        output=output,
        checkpoint=checkpoint,
        config="the settings in it" if found.config else "no config, which it does not need",
        sha256=sha256_of(checkpoint),
        weights=found.weights,
        step=found.step,
        epoch=None,
        num_parameters=sum(parameter.numel() for parameter in unet.parameters()),
        tasks=tasks_of_config(unet.config),
        system=system,
        notes=[*notes, *_notes(system, found)],
        not_verified=_assumed(system, options, heads, size, frames, found, betas is not None),
    )
    result.verified.append(
        f"Every one of the {len(used)} weights and biases in the file ({result.num_parameters:,} numbers) is used exactly once,"
        " in its shape; none is missing or left over."
    )
    if betas is not None:
        result.verified.append(check_betas(betas, scheduler, "the port", what))

    sampler = sampler or ("original" if system == "vdm" else SAMPLERS[0])
    sampling = sampling_settings(result, sampler, scheduler, min(num_timesteps, 1000))
    if system == "vdm":
        result.notes.append(
            "It is saved with the original's sampler, DDPM in all steps: what is given enters its frames by replacement and guidance, which"
            " solvers of few steps serve badly. Fewer steps: `num_inference_steps=25, num_resamples=4`."
        )

    with new_folder(output) as folder:
        unet.load_state_dict(converted, strict=True, assign=True)
        pipeline = MCVDPipeline(unet=unet.eval(), **sampling, **_windows(system, unet.config.max_frames))
        save_pipeline(pipeline, folder, output)
        del pipeline, unet, converted
        if verify:
            result.max_difference, sentence = run_comparison(_compare, folder, state, recognised)
            result.verified.append(sentence)
        else:
            result.not_verified.insert(0, "The network's output was not compared; `--verify` does that.")
        write_card(folder, _describe(result, options, num_timesteps, sampling["num_inference_steps"]))
    return result


# --------------------------------------------------------------------------------------------------------------------
# What the file says


def _find_weights(content: dict, weights: str | None, name: str) -> _Found:
    """Which of the three forms a file has, and which of its weights to take."""
    match = _FILE_NAME.fullmatch(Path(name).stem)
    named = None if match is None else "ema" if match[1].startswith("ema") else "model"
    number = None if match is None else int(match[2])
    if "state_dict" in content:  # FDM
        step, config = content.get("step"), content.get("config", {})
        if not isinstance(content["state_dict"], dict) or not isinstance(config, dict):
            raise CheckpointError(
                f"{name} must hold a state dict as `state_dict` and settings as `config`, as FDM's do."
            )
        step = checked_step(number if step is None else step, name)
        keys = ("state_dict",)
    elif "model" in content or "ema" in content:  # the port
        chosen, step = find_weights(content, weights, name)
        return _Found((chosen,), chosen, step)
    else:
        keys, step, config = (), number, {}
    if weights is not None and named not in (None, weights):
        other = "model<updates>.pt" if weights == "model" else "ema_<rate>_<updates>.pt"
        raise CheckpointError(
            f"{name} holds the {'averaged' if named == 'ema' else 'raw'} weights, as its name says. The others are in the file"
            f" {other} beside it."
        )
    return _Found(keys, weights or named or "model", step, config, is_stated=bool(weights or named))


def _part(content, keys: tuple[str, ...]):
    for key in keys:
        content = content[key]
    return content


def _tensors(state: dict, what: str) -> tuple[dict, dict]:
    """The network's tensors by the names that it alone has, and those of the diffusion around it."""
    networks, buffers = split_state(state, what, prefixes=(DENOISER,), title="the port")
    return networks[DENOISER], buffers


def _fdm_options(config: Mapping, what: str) -> dict:
    """The settings that are read, each of its type."""
    options = {}
    for name, kind in _FDM_OPTIONS.items():
        value = config.get(name)
        if value is None:
            continue
        is_number = kind is float and type(value) is int
        if type(value) is not kind and not is_number or kind is float and not math.isfinite(value):
            raise CheckpointError(
                f"{what}: `{name}` of its settings must be a {kind.__name__}, got {str(value)[:80]!r}."
            )
        options[name] = value
    for name, most in (("image_size", MOST_PIXELS), ("max_frames", MOST_FRAMES), ("num_heads", 1024)):
        if not 1 <= options.get(name, 1) <= most:
            raise CheckpointError(f"{what}: `{name}` of its settings must be from 1 to {most:,}, got {options[name]}.")
    if options.get("noise_schedule", "linear") not in ("linear", "cosine"):
        raise CheckpointError(
            f'{what}: `noise_schedule` of its settings must be "linear" or "cosine", got {options["noise_schedule"][:80]!r}.'
        )
    if options.get("learn_sigma"):
        raise CheckpointError(
            f"{what} was trained with `learn_sigma`, which no published model was. It is not converted."
        )
    if options.get("rescale_timesteps") and options.get("diffusion_steps", 1000) != 1000:
        raise CheckpointError(
            f"{what} was trained with `rescale_timesteps` and `diffusion_steps: {options['diffusion_steps']}`: its network is"
            " told other timesteps than the scheduler counts. It is not converted."
        )
    return options


def _agree(name: str, given: int | None, options: dict, what: str) -> int | None:
    """What the caller says, or the file; not both differently."""
    stated = options.get(name)
    if given is not None and stated not in (None, given):
        raise CheckpointError(f"`{name}` is {given}, but the settings in {what} say {stated}. Leave it out.")
    return stated if given is None else given


# --------------------------------------------------------------------------------------------------------------------
# Network, scheduler, pipeline


def _make_unet(
    recognised: Recognised, size: int | None, frames: int | None, num_timesteps: int, options: dict, what: str
) -> SpaceTimeUNetModel:
    """On the meta device: shapes without memory."""
    system = recognised.system
    statements = {
        "sample_size": size or _IMAGE_SIZE,
        "max_frames": frames or _MAX_FRAMES[system],
        "drop_observed": _DROP_OBSERVED[system],
        "num_train_timesteps": num_timesteps,
        "prediction_type": "sample" if options.get("predict_xstart") else "epsilon",
        "dropout": options.get("dropout", 0.0),
    }
    try:
        with torch.device("meta"):
            return SpaceTimeUNetModel(**recognised.config | statements)
    except (ValueError, RuntimeError) as error:  # also sizes beyond what can be counted
        raise CheckpointError(f"{what}: the network cannot be made: {error}") from error


def _make_scheduler(system: str, num_timesteps: int, options: dict) -> DDPMScheduler:
    """The original's ancestral sampler. Fewer steps are spread from the noisiest to the least noisy, both included."""
    if system == "vdm":
        return make_cosine_scheduler(num_timesteps, "epsilon")
    common = {
        "num_train_timesteps": num_timesteps,
        "clip_sample": True,
        "prediction_type": "sample" if options.get("predict_xstart") else "epsilon",
        "timestep_spacing": "linspace",
    }
    if options.get("noise_schedule") == "cosine":
        schedule = {"beta_schedule": "squaredcos_cap_v2"}
    else:
        scale = 1000 / num_timesteps
        schedule = {"beta_schedule": "linear", "beta_start": scale * 1e-4, "beta_end": min(scale * 0.02, 0.999)}
    variance = "fixed_small" if options.get("sigma_small") else "fixed_large"
    return DDPMScheduler(**common, **schedule, variance_type=variance)


def _windows(system: str, max_frames: int) -> dict:
    """How the pipeline makes long videos, as the systems do: what it is given of the frames before, and how."""
    if system == "ramvid":
        return {"frame_schedule": "autoreg", "step": max(1, max_frames - _RAMVID_MOST_GIVEN)}
    if system == "fdm":
        step = max(1, max_frames // 2)
        return {"frame_schedule": "hierarchy-2" if step > 1 else "autoreg", "step": step}
    # Given frames, which its network never saw, enter by replacement and reconstruction guidance.
    sampling = {"frame_schedule": "autoreg", "step": max(1, max_frames // 2)}
    return sampling | {"replacement": "noised", "reconstruction_guidance": 2.0}


# --------------------------------------------------------------------------------------------------------------------
# Proof


@torch.no_grad()
def _compare(folder: Path, state: Mapping[str, torch.Tensor], recognised: Recognised) -> tuple[float, str]:
    """Load the folder, and compare the network with the second implementation on the source's own weights."""
    unet = MCVDPipeline.from_pretrained(folder).unet.eval()
    config, system = unet.config, recognised.system
    state = {row.theirs: state[row.theirs].float() for row in recognised.rows}
    # The formulas are the same at every size: at this one the coarsest level has 2x2 pixels. Positions and roles, too.
    size, frames = 2 * unet.size_multiple, 5
    generator = torch.Generator().manual_seed(0)
    window = torch.randn(2, frames, config.in_channels, size, size, generator=generator)
    roles = torch.tensor([[1, 2, 2, 0, 0], [2, 1, 2, 2, 1]])
    indices = torch.tensor([[0, 3, 4, 50, 7], [20, 1, 2, 3, 300]])
    last = config.num_train_timesteps - 1

    def outputs() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        volume = window.transpose(1, 2)
        for timesteps in (torch.tensor([last, last // 2]), torch.tensor([0, last])):
            if system == "fdm":
                theirs = reference_space_time.fdm(
                    state,
                    window,
                    timesteps,
                    is_observed=roles == 1,
                    is_there=roles != 0,
                    frame_indices=indices,
                    heads=config.num_attention_heads,
                )
                yield unet(window, timesteps, roles, frame_indices=indices).sample, theirs
            elif system == "ramvid":
                theirs = reference_space_time.ramvid(state, volume, timesteps, heads=config.num_attention_heads)
                yield unet(window, timesteps, torch.full_like(roles, 2)).sample, theirs.transpose(1, 2)
            else:
                is_alone = torch.tensor([False, True])
                segments = torch.arange(frames) * is_alone[:, None]
                theirs = reference_space_time.vdm_port(state, volume, timesteps, is_alone=is_alone)
                ours = unet(window, timesteps, torch.full_like(roles, 2), segment_ids=segments).sample
                yield ours, theirs.transpose(1, 2)

    return compare_outputs(outputs(), f"at three noise levels, {frames} frames of {size}x{size} pixels, float32")


# --------------------------------------------------------------------------------------------------------------------
# Words


def _notes(system: str, found: _Found) -> list[str]:
    notes = []
    if not found.is_stated:
        notes.append(
            "Whether these are averaged weights, the file does not say; its name, ema_<rate>_<updates>.pt or"
            " model<updates>.pt, would. They are taken for raw ones; `--weights` says otherwise."
        )
    if system == "fdm":
        notes.append(
            "As in FDM's code, attention among frames reads what stands in padding (`original_quirks`); the pipeline gives it none."
        )
    if system == "vdm":
        notes.append(
            "As in the port, the first attention sees frames of other segments, too (`original_quirks`)."
            " Its network was never given clean frames: prediction and interpolation are by replacement and guidance."
        )
    return notes


def _assumed(
    system: str, options: dict, heads: int | None, size: int | None, frames: int | None, found: _Found, has_betas: bool
) -> list[str]:
    """What rests on a statement, or on nothing but what was published."""
    assumed = []
    if system != "vdm" and heads is None:
        assumed.append("4 heads of attention, `--num_heads`")
    if size is None:
        assumed.append(f"frames of {_IMAGE_SIZE}x{_IMAGE_SIZE} pixels, `--image_size`")
    if frames is None:
        assumed.append(f"windows of {_MAX_FRAMES[system]} frames, `--max_frames`")
    if system == "vdm" and not has_betas:
        assumed.append("1000 noise levels")
    if system != "vdm" and "noise_schedule" not in options:
        assumed.append("1000 noise levels with linear betas from 0.0001 to 0.02")
    if system == "ramvid":
        assumed.append("that time is not halved in the network (`scale_time_dim` 0)")
    sentences = []
    if assumed:
        sentences.append(f"Assumed as published, since nothing in the file tells: {'; '.join(assumed)}.")
    sentences.append(
        "Assumed as published: no frame was given in training with a probability of"
        f" {_DROP_OBSERVED[system]:g}, which tells the pipeline what the network can do; the network predicts"
        f" {'clean frames' if options.get('predict_xstart') else 'the noise'}."
    )
    return sentences


def _describe(result: Conversion, options: dict, num_timesteps: int, num_steps: int) -> CardFacts:
    """The model card's facts, from what is known. No dates and no paths: the same conversion gives the same card."""
    system = result.system
    repository = _REPOSITORIES[system]
    setting = {
        "learning rate": options.get("lr"),
        "batch size": options.get("batch_size"),
        "weight decay": options.get("weight_decay"),
        "noise": f"{'cosine' if system == 'vdm' else options.get('noise_schedule', 'linear')}, {num_timesteps} steps",
        "updates": result.step,
    }
    return CardFacts(
        name=system,
        dataset=options.get("dataset"),
        tasks=result.tasks,
        num_inference_steps=num_steps,
        training={name: value for name, value in setting.items() if value is not None},
        source=card_source(
            result, f"{_TITLES[system]} ([{repository}](https://github.com/{repository}))", result.config
        ),
        verification=card_verification(result),
    )
