"""From a checkpoint of the original MCVD code to a pipeline folder, top to bottom: [`convert_checkpoint`].

Checkpoints of RaMViD, FDM and VDM's public port go their own way from there: [`convert_space_time`]; LGC-VD's, too:
[`convert_lgcvd`].

What a `.pt` file and its `config.yml` say is believed only as far as the two agree and fit the paper's network. The
weights pass through a table of keys ([`original_weights`]); nothing is guessed, nothing is left over.
"""

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

from mcvd_diffusers.atomic import check_new_folder, new_folder
from mcvd_diffusers.masking import trained_tasks
from mcvd_diffusers.model_card import CardFacts, plain_text, write_card
from mcvd_diffusers.models import MCVDUNet2DModel
from mcvd_diffusers.pipelines import MCVDPipeline

from . import reference_network
from .components import as_yaml, check_schedule, make_scheduler, make_unet, read_schedule, reconcile
from .conversion import (
    SAMPLERS,
    Conversion,
    card_source,
    card_verification,
    compare_outputs,
    run_comparison,
    sampling_settings,
    save_pipeline,
    sha256_of,
)
from .convert_lgcvd import convert_lgcvd, is_lgcvd
from .convert_space_time import convert_space_time, is_space_time
from .original_config import OriginalConfig, config_of_preset, presets_that_fit, read_config
from .original_weights import (
    BUFFERS,
    Architecture,
    check_table,
    convert_state_dict,
    key_table,
    read_architecture,
    with_current_names,
    without_module_prefix,
)
from .untrusted import CheckpointError, TensorRecord, check_storage_bytes, inspect_checkpoint, load_checkpoint


VERIFY_SIZE = 128


def convert_checkpoint(
    checkpoint: str | os.PathLike,
    output: str | os.PathLike,
    *,
    config: str | os.PathLike | None = None,
    preset: str | None = None,
    weights: str | None = None,
    verify: bool = False,
    sampler: str | None = None,
    num_heads: int | None = None,
    image_size: int | None = None,
    max_frames: int | None = None,
    attention_head_dim: int | None = None,
) -> Conversion:
    """
    Convert a checkpoint of the original code (voletiv/mcvd-pytorch), or of RaMViD, FDM, VDM's public port or LGC-VD, into a
    folder for [`~DiffusionPipeline.from_pretrained`]: networks, scheduler, model card. Which of them it is, its names tell.

    The file is read as untrusted: see [`untrusted`]. The folder appears when it is complete, or not at all. Converting
    again gives the same bytes.

    Args:
        checkpoint (`str` or `os.PathLike`):
            A `.pt` file of the original, or the folder in which it lies beside its `config.yml` (also the folder above,
            whose `logs` that is). Of several in a folder, the one after the most updates. Those of RaMViD, FDM,
            VDM's port and LGC-VD need no config.
        output (`str` or `os.PathLike`): Folder to write; must not exist, or be empty.
        config (`str` or `os.PathLike`, *optional*): The run's `config.yml`, if it does not lie beside the checkpoint.
        preset (`str`, *optional*):
            A published model, by its name in `presets.ORIGINAL_NAMES` or that of the original's script, in place of a
            config that is lost.
        weights (`str`, *optional*):
            `"ema"` or `"model"`: averaged or raw weights. By default what the original samples with: the average, if
            the config says that there is one.
        verify (`bool`, *optional*, defaults to `False`):
            Load the folder again, and compare the network's output with a second implementation, which runs on the
            original's state dict. A difference ends the conversion.
        sampler (`str`, *optional*):
            What the pipeline is saved with: `"few_steps"`, 15 steps of DPM-Solver++ ([`samplers.make_sampler`]), which is the
            default; or `"original"`, the original's scheduler, steps and last call. VDM's port always has the original's, since what
            is given enters its frames by guidance.
        num_heads (`int`, *optional*): Of RaMViD's and FDM's attention, if not the published 4.
        image_size (`int`, *optional*): Height and width of frames, where no config says it; by default 64.
        max_frames (`int`, *optional*): Frames of a window, where no config and no shape says it; by default those published.
        attention_head_dim (`int`, *optional*): Channels of a head of LGC-VD's attention, if not the published 128.

    Returns:
        [`Conversion`]: What was done.

    Raises:
        CheckpointError: If anything is missing, contradicts something else, is damaged, hostile or not supported.
        FileExistsError: If the output folder is taken.
    """
    if weights not in (None, "ema", "model"):
        raise CheckpointError(f'`weights` must be "ema" or "model", got {weights!r}.')
    if sampler not in (None, *SAMPLERS):
        raise CheckpointError(f'`sampler` must be "few_steps" or "original", got {sampler!r}.')
    output = _path("OUT", output)
    check_new_folder(output)
    if config is not None and preset is not None:
        raise CheckpointError("`--config` and `--preset` both say what the network is: pass one of them.")
    checkpoint, num_checkpoints = _find_checkpoint(_path("CHECKPOINT", checkpoint), weights)
    # What the file declares. Nothing is loaded yet.
    content = inspect_checkpoint(checkpoint)
    asked = {
        "num_heads": num_heads,
        "image_size": image_size,
        "max_frames": max_frames,
        "attention_head_dim": attention_head_dim,
    }
    system = "lgcvd" if is_lgcvd(content) else "space_time" if is_space_time(content) else "mcvd"
    given = {"--config": config, "--preset": preset} | asked
    _check_options([name for name, value in given.items() if value is not None], system, checkpoint.name)
    if system != "mcvd":
        chosen = f"Of {num_checkpoints} checkpoints in the folder, {checkpoint.name} was chosen."
        notes = [chosen] if num_checkpoints > 1 else []
        convert_other = convert_lgcvd if system == "lgcvd" else convert_space_time
        asked = {name: value for name, value in asked.items() if system in _OPTIONS[name][1]}
        shared = {"weights": weights, "verify": verify, "sampler": sampler, "notes": notes}
        return convert_other(checkpoint, content, output, **shared, **asked)
    sampler = sampler or SAMPLERS[0]
    if preset is not None:
        original = config_of_preset(preset)
    else:
        original = read_config(_path("--config", config) if config is not None else _find_config(checkpoint))

    item, weights = _choose_weights(content, weights, original, checkpoint.name)
    names = {0: f"{checkpoint.name} (raw weights)", 4: f"{checkpoint.name} (averaged weights)"}
    what = names[item]
    # The raw model is read in any case: it alone has the buffers, and an average must be one of it.
    states = {number: _tensors(content[number], names[number]) for number in {0, item}}
    raw_model, records = states[0], states[item]
    architecture = read_architecture(records, what)
    if read_architecture(raw_model, names[0]) != architecture:
        raise CheckpointError(f"{checkpoint.name}: its raw and its averaged weights are those of two networks.")
    fitting = presets_that_fit(architecture) if preset is not None else []
    try:
        reconcile(original, architecture, records, raw_model, what)
    except CheckpointError as error:
        if preset is None:
            raise
        raise CheckpointError(f"{error} Presets whose shapes fit: {', '.join(fitting) or 'none'}.") from error
    unet = make_unet(original, architecture)
    for number, state in states.items():
        check_table(unet, state, names[number], buffers=BUFFERS if number == 0 else ())
    used = [row.theirs for row in key_table(unet)]

    loaded = load_checkpoint(checkpoint, content)
    schedule = read_schedule(loaded[0])
    state = with_current_names(without_module_prefix(loaded[item], what))
    state = {name: tensor for name, tensor in state.items() if name not in BUFFERS}
    check_storage_bytes(checkpoint, [records[name] for name in used], [state[name] for name in used])
    del loaded
    scheduler = make_scheduler(original)
    result = Conversion(
        output=output,
        checkpoint=checkpoint,
        config=original.source,
        sha256=sha256_of(checkpoint),
        weights=weights,
        step=content[3],
        epoch=content[2],
        num_parameters=sum(parameter.numel() for parameter in unet.parameters()),
        tasks=_tasks(original, unet),
        stray=original.stray,
        notes=_notes(original, content, weights, unet, sampler),
        not_verified=_not_verified(original, content, fitting),
    )
    if num_checkpoints > 1:
        result.notes.insert(0, f"Of {num_checkpoints} checkpoints in the folder, {checkpoint.name} is the latest.")
    result.verified.append(
        f"Every one of the {len(used)} {'averaged' if weights == 'ema' else 'raw'} weights and biases in the file"
        f" ({result.num_parameters:,} numbers) is used exactly once, in its shape; none is missing or left over."
    )
    result.verified += check_schedule(schedule, scheduler, original, what)

    steps = original["sampling.subsample"] or unet.config.num_train_timesteps
    sampling = sampling_settings(result, sampler, scheduler, steps, final_denoise=original["sampling.denoise"])

    with new_folder(output) as folder:
        # `assign` puts the weights, mapped from the file, in place of those on the meta device.
        unet.load_state_dict(convert_state_dict(unet, state), strict=True, assign=True)
        pipeline = MCVDPipeline(unet.eval(), **sampling)
        save_pipeline(pipeline, folder, output)
        del pipeline, unet
        if verify:
            result.max_difference, sentence = run_comparison(_compare, folder, state, original, architecture)
            result.verified.append(sentence)
        else:
            result.not_verified.insert(0, "The network's output was not compared; `--verify` does that.")
        write_card(folder, _describe(result, original, folder, sampler, sampling["num_inference_steps"]))
    return result


# Whose checkpoints an option is for: in words, and by which way they go.
_SPACE_TIME = "checkpoints of RaMViD, FDM and VDM's port"
_OPTIONS = {
    "--config": ("MCVD's checkpoints", ("mcvd",)),
    "--preset": ("MCVD's checkpoints", ("mcvd",)),
    "num_heads": (_SPACE_TIME, ("space_time",)),
    "image_size": (f"{_SPACE_TIME}, and of LGC-VD", ("space_time", "lgcvd")),
    "max_frames": (_SPACE_TIME, ("space_time",)),
    "attention_head_dim": ("checkpoints of LGC-VD", ("lgcvd",)),
}


def _check_options(given: list[str], system: str, name: str) -> None:
    """Refuse what is for checkpoints of other systems."""
    for option in given:
        words, systems = _OPTIONS[option]
        if system not in systems:
            raise CheckpointError(
                f"`{option}` is for {words}; "
                + (
                    "for this one, its config says it."
                    if system == "mcvd"
                    else f"{name} is one of another system, whose names and shapes tell what its network is."
                )
            )


# --------------------------------------------------------------------------------------------------------------------
# Files


def _path(argument: str, path: str | os.PathLike) -> Path:
    """An absolute path without `..`."""
    if not str(path):
        raise CheckpointError(f"{argument} is empty: name a file or folder.")
    try:
        return Path(os.path.abspath(Path(path).expanduser()))
    except (RuntimeError, ValueError, OSError) as error:  # an unknown user's home, a zero byte, a folder that is gone
        raise CheckpointError(f"{argument} {str(path)!r} is no path: {error}") from error


# What RaMViD, FDM, VDM's port and LGC-VD save, with the number of updates (the last two: of their milestones).
_OF_OTHERS = re.compile(r"(ema_[0-9.]{1,20}_|model-?)(\d{1,12})")


def _find_checkpoint(path: Path, weights: str | None) -> tuple[Path, int]:
    """The `.pt` file at a path, and among how many it was chosen."""
    if not path.exists():
        raise CheckpointError(f"{path} does not exist.")
    if not path.is_dir():
        return path, 1
    folders = [folder for folder in (path, path / "logs") if folder.is_dir()]
    found = [file for folder in folders for file in folder.glob("checkpoint*.pt")]
    # The original writes checkpoint.pt every 1000 updates, and checkpoint_<updates>.pt now and then and at the end.
    numbered = {int(file.stem[11:]): file for file in found if re.fullmatch(r"checkpoint_\d{1,12}", file.stem)}
    candidates = [numbered[max(numbered)]] if numbered else []
    candidates += [file for file in found if file.name == "checkpoint.pt"]
    if not candidates:
        if len(found) == 1:
            return found[0], 1
        others = [(match, file) for file in path.glob("*.pt") if (match := _OF_OTHERS.fullmatch(file.stem))]
        kinds = [match[1].startswith("ema") for match, _ in others]
        # An average, if there is one, unless the raw weights are asked for.
        is_wanted = any(kinds) and (weights != "model" or all(kinds))
        others = [(int(match[2]), file) for (match, file), is_ema in zip(others, kinds) if is_ema == is_wanted]
        if not found and others:
            return max(others)[1], len(others)
        looked = " or ".join(map(str, folders))
        raise CheckpointError(
            f"There is {'no' if not found else 'more than one'} checkpoint*.pt in {looked}. Name the file, or the folder of"
            " the experiment."
        )
    if len(candidates) == 1:
        return candidates[0], len(found)
    return max(candidates, key=lambda file: _num_updates(inspect_checkpoint(file))), len(found)


def _num_updates(content) -> int:
    is_original = isinstance(content, list) and len(content) in (4, 5) and type(content[3]) is int
    return content[3] if is_original else -1


def _find_config(checkpoint: Path) -> Path:
    for name in ("config.yml", "config.yaml"):
        file = checkpoint.with_name(name)
        if file.is_file():
            return file
    raise CheckpointError(
        f"There is no config.yml beside {checkpoint}. Pass it with `--config`; if it is lost, and the model is one of those"
        " published, name it with `--preset`. (It is taken for one of MCVD's: the names of its weights are not those of"
        " RaMViD, FDM, VDM's port or LGC-VD, whose checkpoints need no config.)"
    )


# --------------------------------------------------------------------------------------------------------------------
# What the file and the config say


def _choose_weights(content, weights: str | None, original: OriginalConfig, name: str) -> tuple[int, str]:
    """Which item of the file to convert: `(index, "ema" or "model")`."""
    form = "[model, optimizer, epoch, step], or [model, optimizer, epoch, step, averaged weights]"
    if not isinstance(content, list) or len(content) not in (4, 5):
        got = f"a list of {len(content)}" if isinstance(content, (list, tuple)) else "something else"
        got = f"a dictionary with {len(content)} entries" if isinstance(content, dict) else got
        raise CheckpointError(
            f"{name} must hold the original's list {form}; it holds {got}. If all that is left is a state dict, save it as"
            " torch.save([state_dict, {}, 0, 0], ...) and convert that with `--weights model`."
        )
    is_progress = all(type(number) is int and number >= 0 for number in content[2:4])
    if not isinstance(content[0], dict) or not is_progress:
        raise CheckpointError(
            f"{name} must hold the original's list {form}; it holds [{', '.join(_kind_of(item) for item in content)}]."
        )
    has_ema = len(content) == 5 and isinstance(content[4], dict)
    if weights is None:
        stated = original["model.ema"]
        if stated is not None and stated != has_ema:
            raise CheckpointError(
                f"{original.source} says `model.ema: {str(stated).lower()}`, but {name} has {'an' if has_ema else 'no'}"
                " average of the weights. Say which weights are meant: `--weights model`"
                + (" or `--weights ema`." if has_ema else ".")
            )
        weights = "ema" if has_ema else "model"
    if weights == "ema" and not has_ema:
        raise CheckpointError(f"{name} has no average of the weights: take the raw ones, `--weights model`.")
    return (4, "ema") if weights == "ema" else (0, "model")


def _kind_of(item) -> str:
    """An item of the file, in few words."""
    if isinstance(item, (dict, list)):
        return f"a {'dictionary' if isinstance(item, dict) else 'list'} of {len(item)}"
    return str(item) if type(item) is int else type(item).__name__


def _tensors(item: dict, what: str) -> dict[str, TensorRecord]:
    """A state dict under the original's names of today."""
    for name, value in item.items():
        if not isinstance(name, str) or not isinstance(value, TensorRecord):
            raise CheckpointError(f"{what} must map names to tensors; {str(name)[:80]!r} is a {type(value).__name__}.")
    return with_current_names(without_module_prefix(item, what))


# --------------------------------------------------------------------------------------------------------------------
# Proof


@torch.no_grad()
def _compare(
    folder: Path, state: Mapping[str, torch.Tensor], original: OriginalConfig, found: Architecture
) -> tuple[float, str]:
    """Load the folder, and compare the network with the second implementation on the source's own weights."""
    unet = MCVDPipeline.from_pretrained(folder).unet.eval()
    config = unet.config
    # The formulas are the same at every size, and the cost is not: a multiple of what the levels need, 128 at most or so.
    size = original["data.image_size"]
    if size > VERIFY_SIZE:
        size = max(VERIFY_SIZE // unet.size_multiple, 1) * unet.size_multiple
    past, current = config.num_past_frames, config.num_frames
    generator = torch.Generator().manual_seed(0)
    window = torch.randn(1, unet.num_window_frames, config.in_channels, size, size, generator=generator)
    state = {name: weight.float() for name, weight in state.items()}
    last = config.num_train_timesteps - 1

    def outputs() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        # Both ends and the middle of the noise, with all given frames and without any.
        for timestep, is_given in ((last, True), (last // 2, False), (0, True)):
            roles = torch.full((1, unet.num_window_frames), 1 if is_given else 0)
            roles[:, past : past + current] = 2
            ours = unet(window, timestep, roles).sample[:, past : past + current].flatten(1, 2)
            cond = torch.cat([window[:, :past], window[:, past + current :]], dim=1).flatten(1, 2)
            theirs = reference_network.forward(
                state,
                window[:, past : past + current].flatten(1, 2),
                torch.tensor([last - timestep]),
                cond if is_given else torch.zeros_like(cond),
                torch.tensor([is_given and past > 0]),
                ngf=found.ngf,
                num_levels=len(found.widths),
                num_res_blocks=found.num_res_blocks,
                attn_levels=[level for level, has in enumerate(found.has_attention) if has],
                n_head_channels=original["model.n_head_channels"],
                spade=found.spade_dim is not None,
                cond_emb=found.cond_emb,
            )
            yield ours, theirs

    how = f"at three noise levels, with and without given frames ({size}x{size} pixels, float32)"
    return compare_outputs(outputs(), how)


# --------------------------------------------------------------------------------------------------------------------
# Words


def _tasks(original: OriginalConfig, unet: MCVDUNet2DModel) -> list[str]:
    config = unet.config
    return trained_tasks(
        num_past_frames=config.num_past_frames,
        num_future_frames=config.num_future_frames,
        drop_past=config.drop_past,
        drop_future=config.drop_future,
        is_dropped_together=original["data.prob_mask_sync"],
    )


def _notes(original: OriginalConfig, content: list, weights: str, unet: MCVDUNet2DModel, sampler: str) -> list[str]:
    """What a reader would otherwise not expect."""
    notes = []
    if weights == "model" and len(content) == 5 and isinstance(content[4], dict):
        notes.append("These are the raw weights; the original samples with their average, which the file has too.")
    if original["model.sigma_dist"] == "cosine":
        notes.append("Diffusers keeps a cosine schedule's beta at or below 0.999; the noisiest step differs by that.")
    if original["data.prob_mask_sync"]:
        notes.append(
            "Past and future were always masked together in training, so the network never saw only one of them."
        )
    if unet.config.embed_past_kept:
        notes.append(
            "The network is told whether the past is there. The original's samplers always said yes, so without past frames"
            " this pipeline differs from them, on purpose; to repeat theirs, give past frames of mid-grey, 0.5."
        )
    subsample = original["sampling.subsample"]
    total = unet.config.num_train_timesteps
    if sampler == "original" and subsample and total % subsample:
        stride = total // subsample
        notes.append(
            f"For `subsample: {subsample}` the original takes one noise level in {stride}, {-(-total // stride)} steps;"
            f" Diffusers takes {subsample}. "
            + (
                f"Its steps are `timesteps=list({_odd_timesteps(original)})`."
                if _odd_timesteps(original)
                else f"DDIM cannot take those; a number of steps that divides {total} is the same in both."
            )
        )
    for option, harmless in (
        ("sampling.init_prev_t", lambda x: x <= 0),
        ("sampling.one_frame_at_a_time", lambda x: not x),
        ("sampling.data_init", lambda x: not x),
    ):
        if not harmless(original[option]):
            notes.append(
                f"The config's `{option}: {as_yaml(original[option])}` is not converted: it is no part of the model."
            )
    return notes


def _odd_timesteps(original: OriginalConfig) -> range | None:
    """The original's steps, where they are not those that Diffusers takes for the same number."""
    subsample, total = original["sampling.subsample"], original["model.num_classes"]
    if original["model.version"] != "DDPM" or not subsample or total % subsample == 0:
        return None
    return range(total - 1, -1, -(total // subsample))


def _not_verified(original: OriginalConfig, content: list, fitting: list[str]) -> list[str]:
    """What rests on the config alone; two implementations that read the same config agree on it, right or wrong."""
    sentences = [
        f"Taken from {original.source} alone, since the weights cannot confirm it: how the given frames divide into past and"
        " future, the channels of an attention head, the frame size, the probabilities of the masks and so the tasks, the"
        " name of the data set."
    ]
    if original.preset is not None:
        sentences.append("The settings of the training are the preset's too; the file does not state them.")
        others = [name for name in fitting if name != original.preset]
        if others:
            sentences.append(
                f"Other presets have the same shapes: {', '.join(others)}. The name of the download decides."
            )
        if original.published_steps not in (None, content[3]):
            sentences.append(
                f"The published checkpoint of this preset was made after {original.published_steps:,} updates, this file"
                f" after {content[3]:,}."
            )
    return sentences


def _describe(result: Conversion, original: OriginalConfig, folder: Path, sampler: str, num_steps: int) -> CardFacts:
    """The model card's facts, from what is known. No dates and no paths: the same conversion gives the same card."""
    unet = MCVDUNet2DModel.load_config(folder / "unet")
    dataset = original["data.dataset"]
    setting = {
        "optimizer": original["optim.optimizer"],
        "learning rate": original["optim.lr"],
        "warm-up, updates": original["optim.warmup"],
        "batch size": original["training.batch_size"],
        "gradient norm clipped at": original["optim.grad_clip"],
        "loss": "absolute error, summed" if original["training.L1"] else "half the squared error, summed over pixels",
        "dropout": original["model.dropout"],
        "decay of the weights' average": original["model.ema_rate"] if result.weights == "ema" else None,
        "probability of an absent past": original["data.prob_mask_cond"],
        "probability of an absent future": original["data.prob_mask_future"] if unet["num_future_frames"] else None,
        "masks of past and future": "drawn together" if original["data.prob_mask_sync"] else None,
        "noise": f"{original['model.sigma_dist']}, {unet['num_train_timesteps']} steps",
        "updates": result.step,
        "epochs": result.epoch,
    }
    steps_of_original = _odd_timesteps(original) if sampler == "original" else None
    return CardFacts(
        name=f"mcvd-{'spatin' if unet['conditioning'] == 'spatin' else 'concat'}",  # the same wherever it is written
        dataset=str(dataset),
        tasks=result.tasks,
        num_inference_steps=num_steps,
        timesteps=steps_of_original and [steps_of_original.start, steps_of_original.stop, steps_of_original.step],
        num_predicted_frames=original["sampling.num_frames_pred"],
        training={name: value for name, value in setting.items() if value is not None},
        source=card_source(
            result,
            "the original code ([voletiv/mcvd-pytorch](https://github.com/voletiv/mcvd-pytorch))",
            f"`{plain_text(result.config)}`",
        ),
        verification=card_verification(result),
    )
