"""The `config.yml` of an original MCVD run: what it says, what it leaves to defaults, and what is refused.

Source: the original code's configs and the places that read them (voletiv/mcvd-pytorch@451da2e). The names of its
options occur in this folder and in `presets.py` only. Its sections are `data`, `model`, `sampling`, `training` and `optim`;
`test` and `fast_fid` concern neither the network nor a sample.
"""

import difflib
import reprlib
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from mcvd_diffusers.presets import ORIGINAL_NAMES, PRESETS, preset

from .original_weights import Architecture
from .untrusted import CheckpointError


MAX_CONFIG_BYTES = 2**16  # the original's have 2,000
MAX_IMAGE_SIZE = 2**14
MAX_NOISE_LEVELS = 100_000

REQUIRED = object()  # neither the weights nor a default of the original tell
FROM_WEIGHTS = None  # the weights tell; what the config says is compared with them


def _integer(least: int, most: int = 2**31 - 1) -> Callable[[Any], int]:
    def read(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            limit = f"of {least} or more" if most == 2**31 - 1 else f"from {least} to {most}"
            raise ValueError(f"an integer {limit}")
        return value

    return read


_count, _positive = _integer(0), _integer(1)


def _head_channels(value: Any) -> int:
    if type(value) is int and value == -1:
        return value
    try:
        return _positive(value)
    except ValueError as error:
        raise ValueError("an integer of 1 or more, or -1 for one head") from error


def _positives(value: Any) -> list[int]:
    try:
        return [_positive(item) for item in value]
    except (TypeError, ValueError) as error:
        raise ValueError("a list of integers of 1 or more") from error


def _number(value: Any) -> float:
    if isinstance(value, str):  # YAML takes 2e-4 for text
        try:
            value = float(value)
        except ValueError:
            value = None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < 1e18:
        raise ValueError("a number")
    return float(value)


def _probability(value: Any) -> float:
    value = _number(value)
    if not 0 <= value <= 1:
        raise ValueError("a number in [0, 1]")
    return value


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("true or false")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str) or len(value) > 200 or not value.isprintable():
        raise ValueError("a short text")
    return value


# Option -> how it is read, and what holds when the config does not say. The defaults are those with which the original's
# code reads older configs.
OPTIONS: dict[str, tuple[Callable[[Any], Any], Any]] = {
    "data.dataset": (_text, "unknown"),
    "data.channels": (_positive, REQUIRED),
    "data.image_size": (_integer(1, MAX_IMAGE_SIZE), REQUIRED),
    "data.num_frames": (_positive, FROM_WEIGHTS),
    "data.num_frames_cond": (_count, FROM_WEIGHTS),
    "data.num_frames_future": (_count, 0),
    "data.prob_mask_cond": (_probability, 0.0),
    "data.prob_mask_future": (_probability, 0.0),
    "data.prob_mask_sync": (_flag, False),
    "model.arch": (_text, "unetmore"),
    "model.version": (_text, "DDPM"),
    "model.ngf": (_positive, FROM_WEIGHTS),
    "model.ch_mult": (_positives, FROM_WEIGHTS),
    "model.num_res_blocks": (_positive, FROM_WEIGHTS),
    "model.attn_resolutions": (_positives, FROM_WEIGHTS),
    "model.n_head_channels": (_head_channels, REQUIRED),
    "model.spade": (_flag, FROM_WEIGHTS),
    "model.spade_dim": (_positive, FROM_WEIGHTS),
    "model.cond_emb": (_flag, FROM_WEIGHTS),
    "model.dropout": (_probability, 0.0),
    "model.time_conditional": (_flag, True),
    "model.noise_in_cond": (_flag, False),
    "model.output_all_frames": (_flag, False),
    "model.gamma": (_flag, False),
    "model.num_classes": (_integer(1, MAX_NOISE_LEVELS), FROM_WEIGHTS),
    "model.sigma_dist": (_text, "linear"),
    "model.sigma_begin": (_number, 0.02),
    "model.sigma_end": (_number, 0.0001),
    "model.ema": (_flag, None),
    "model.ema_rate": (_number, None),
    "sampling.subsample": (_positive, None),
    "sampling.denoise": (_flag, True),
    "sampling.clip_before": (_flag, True),
    "sampling.num_frames_pred": (_count, None),
    "sampling.init_prev_t": (_number, -1.0),
    "sampling.one_frame_at_a_time": (_flag, False),
    "sampling.data_init": (_flag, False),
    "training.batch_size": (_positive, None),
    "training.L1": (_flag, False),
    "optim.optimizer": (_text, None),
    "optim.lr": (_number, None),
    "optim.warmup": (_number, None),
    "optim.grad_clip": (_number, None),
}

# Options that change neither the weights' meaning nor a sample: data loading, logging, and what the 2D network ignores.
IGNORED = {
    "data": "logit_transform uniform_dequantization gaussian_dequantization random_flip rescaled num_workers num_digits"
    " step_length color_jitter",
    "model": "type depth conditional nonlinearity normalization spec_norm",
    "sampling": "batch_size ckpt_id consistent fid final_only fvd inpainting interpolation max_data_iter n_interpolations"
    " n_steps_each num_samples4fid num_samples4fvd preds_per_test ssim step_lr train",
    "training": "log_all_sigmas log_freq n_epochs n_iters sample_freq snapshot_freq snapshot_sampling val_freq",
    "optim": "amsgrad beta1 eps weight_decay",
    "test": None,
    "fast_fid": None,
}

NOT_SUPPORTED = {
    "model.gamma": (False, "Gamma noise, which the paper does not use and Diffusers' schedulers do not have"),
    "model.output_all_frames": (False, "an option that was broken in the original: it cannot have been trained"),
    "model.noise_in_cond": (False, "noise on the given frames at every step, which no published model uses"),
    "model.time_conditional": (True, "a network that is not told the noise level, which no published model is"),
}


@dataclass
class OriginalConfig:
    """
    An original config, checked.

    Args:
        source (`str`): Where it comes from, for messages: the file's name, or the preset's.
        values (`dict[str, Any]`): Every option of `OPTIONS`, as `"section.name"`; `None` where only the weights tell.
        explicit (`set[str]`): The options that the config itself states.
        stray (`list[str]`): Options that are not known, and ignored.
        preset (`str`, *optional*), published_steps (`int`, *optional*):
            The preset that it was made of, and the updates of that published checkpoint.
    """

    source: str
    values: dict[str, Any]
    explicit: set[str] = field(default_factory=set)
    stray: list[str] = field(default_factory=list)
    preset: str | None = None
    published_steps: int | None = None

    def __getitem__(self, option: str) -> Any:
        return self.values[option]


def read_config(path: Path) -> OriginalConfig:
    """
    Read a `config.yml`.

    Args:
        path (`Path`): The file; its tags are never executed.

    Returns:
        [`OriginalConfig`]: Checked, with the original's defaults for what is missing.

    Raises:
        CheckpointError: If the file is no such config, or asks for what is not supported.
    """
    path = Path(path)
    if path.is_dir() and (path / "config.yml").is_file():
        path = path / "config.yml"
    try:
        if not path.is_file():
            raise CheckpointError(f"{path} {'is no file' if path.exists() else 'does not exist'}.")
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise CheckpointError(f"{path} is too large for a config: {path.stat().st_size:,} bytes.")
        content = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except RecursionError as error:
        raise CheckpointError(f"{path} is no config: it is nested too deeply.") from error
    except CheckpointError:
        raise
    except Exception as error:  # PyYAML's own constructors raise many kinds on values that are none
        raise CheckpointError(
            f"{path} cannot be read as plain YAML (tags that would call something are not executed): {str(error)[:500]}"
        ) from error
    if not isinstance(content, dict) or not {"data", "model"} <= content.keys():
        raise CheckpointError(
            f"{path} is no config of the original: it must have sections `data` and `model`. (`args.yml` beside it is"
            " another file.)"
        )
    return check_config(path.name, content)


def config_of_preset(name: str) -> OriginalConfig:
    """
    The config of a published model, for a checkpoint whose own is lost.

    Args:
        name (`str`): A key or a value of `presets.ORIGINAL_NAMES`: our name, or that of the original's script.

    Returns:
        [`OriginalConfig`]: What the original's training script says.

    Raises:
        CheckpointError: If there is no such preset.
    """
    name = {original: ours for ours, original in ORIGINAL_NAMES.items()}.get(name, name)
    if name in PRESETS and name not in ORIGINAL_NAMES:
        raise CheckpointError(
            f"`--preset` must be one of MCVD's published models, got {name!r}, a preset for training of another method."
            " Checkpoints of RaMViD, FDM and VDM's port need none, since the names and shapes of their weights tell what the"
            " network is: leave it out."
        )
    if name not in ORIGINAL_NAMES:
        close = difflib.get_close_matches(name, [*ORIGINAL_NAMES, *ORIGINAL_NAMES.values()])
        hint = f" Did you mean {' or '.join(close)}?" if close else ""
        raise CheckpointError(
            f"There is no preset {name!r}.{hint} There are, with the original's names:"
            f" {', '.join(f'{ours} ({theirs})' for ours, theirs in ORIGINAL_NAMES.items())}."
        )
    settings = preset(name)
    widths, size = settings["block_out_channels"], settings["resolution"][0]
    is_spatin = settings["conditioning"] == "spatin"
    model = {
        "ngf": widths[0],
        "ch_mult": [width // widths[0] for width in widths],
        "num_res_blocks": settings["layers_per_block"],
        "attn_resolutions": [
            size >> level for level, kind in enumerate(settings["down_block_types"]) if kind == "AttnDownBlock2D"
        ],
        "n_head_channels": settings["attention_head_dim"],
        "spade": is_spatin,
        "dropout": settings["dropout"],
        "ema": True,
        "ema_rate": settings["ema_decay"],
        **({"spade_dim": settings["spatin_channels"]} if is_spatin else {}),
    }
    data = {
        "dataset": name.split("-")[0],
        "channels": settings["in_channels"],
        "image_size": size,
        "num_frames": settings["num_frames"],
        "num_frames_cond": settings["num_past_frames"],
        "num_frames_future": settings["num_future_frames"],
        "prob_mask_cond": settings["drop_past"],
        "prob_mask_future": settings["drop_future"],
    }
    published_steps = settings.get("max_train_steps")
    optim = {"optimizer": "Adam", "lr": settings["learning_rate"], "warmup": settings["lr_warmup_steps"]}
    training = {"batch_size": settings["train_batch_size"]}
    content = {"data": data, "model": model, "optim": optim, "training": training, "sampling": {"subsample": 100}}
    config = check_config(f"preset {name}", content)
    config.preset, config.published_steps = name, published_steps
    return config


def architecture_of(config: OriginalConfig) -> Architecture:
    """The shapes that a config which states everything asks for, such as a preset's."""
    sizes = [config["data.image_size"] >> level for level in range(len(config["model.ch_mult"]))]
    channels, given = config["data.channels"], config["data.num_frames_cond"] + config["data.num_frames_future"]
    return Architecture(
        ngf=config["model.ngf"],
        widths=tuple(config["model.ngf"] * multiple for multiple in config["model.ch_mult"]),
        num_res_blocks=config["model.num_res_blocks"],
        has_attention=tuple(size in config["model.attn_resolutions"] for size in sizes),
        spade_dim=config["model.spade_dim"] if config["model.spade"] else None,
        cond_emb=bool(config["model.cond_emb"]),
        block_channels=channels * config["data.num_frames"],
        given_channels=channels * given,
    )


def presets_that_fit(found: Architecture) -> list[str]:
    """The published models whose weights have these shapes."""
    return [name for name in ORIGINAL_NAMES if architecture_of(config_of_preset(name)) == found]


def check_config(source: str, content: dict) -> OriginalConfig:
    """Check the content of a config: what `read_config` does once it has read the file."""
    config = OriginalConfig(source, {option: default for option, (_, default) in OPTIONS.items()})
    for section, entries in content.items():
        if (
            not isinstance(section, str)
            or section not in IGNORED
            or (entries is not None and not isinstance(entries, dict))
        ):
            config.stray.append(_shorten(section))
            continue
        if IGNORED[section] is None:
            continue
        for name, value in (entries or {}).items():
            option = f"{section}.{name if isinstance(name, str) else _shorten(name)}"
            if option not in OPTIONS:
                if not isinstance(name, str) or name not in IGNORED[section].split():
                    config.stray.append(_shorten(option))
            elif value is not None:
                try:
                    config.values[option] = OPTIONS[option][0](value)
                except ValueError as error:
                    raise CheckpointError(f"{source}: `{option}` must be {error}, got {_show(value)}.") from error
                config.explicit.add(option)
    missing = [option for option, value in config.values.items() if value is REQUIRED]
    if missing:
        raise CheckpointError(
            f"{source} does not say {_list(missing)}, which neither the weights nor a default of the original tell. Add"
            " it to a copy of the config (`--config`); for a published model the original's script knows it, and"
            " `--preset` has that."
        )
    _refuse_unsupported(config)
    return config


def _refuse_unsupported(config: OriginalConfig) -> None:
    source, arch, version = config.source, config["model.arch"], config["model.version"]
    if arch in ("unetmore3d", "unetmorepseudo3d"):
        raise CheckpointError(
            f"{source}: `model.arch` is {arch}, one of the original's 3D variants, which the paper does not use. They"
            " are not converted."
        )
    if arch != "unetmore":
        raise CheckpointError(f"{source}: `model.arch` is {arch!r}; only the paper's network, unetmore, is converted.")
    for option, (supported, reason) in NOT_SUPPORTED.items():
        if config[option] is not supported:
            raise CheckpointError(
                f"{source}: `{option}` is {str(config[option]).lower()}: {reason}. It is not converted."
            )
    if version == "FPNDM":
        raise CheckpointError(
            f"{source}: `model.version` is FPNDM, a sampler that is broken in the original's release. The weights do not"
            " depend on it: set it to DDPM or DDIM in a copy of the config, and pass that (`--config`)."
        )
    if version not in ("DDPM", "DDIM"):
        raise CheckpointError(f"{source}: `model.version` is {version!r}; only DDPM and DDIM are converted.")
    if config["model.sigma_dist"] not in ("linear", "cosine"):
        raise CheckpointError(
            f"{source}: `model.sigma_dist` is {config['model.sigma_dist']!r}; only linear and cosine are converted."
        )
    masks = config["data.prob_mask_cond"], config["data.prob_mask_future"]
    if config["data.prob_mask_sync"] and (masks[0] != masks[1] or not masks[0]):
        raise CheckpointError(
            f"{source} contradicts itself: `data.prob_mask_sync` masks past and future together, but"
            f" `data.prob_mask_cond` is {masks[0]:g} and `data.prob_mask_future` {masks[1]:g}. The original asks for the same"
            " probability above 0."
        )
    begin, end = config["model.sigma_begin"], config["model.sigma_end"]
    if not 0 < end < begin < 1:
        raise CheckpointError(
            f"{source}: `model.sigma_begin` ({begin}) and `model.sigma_end` ({end}) must be betas in (0, 1), the first the"
            " larger: the original counts from the noisiest step."
        )
    if config["model.dropout"] == 1:
        raise CheckpointError(f"{source}: `model.dropout` must be less than 1.")


class _Loader(yaml.SafeLoader):
    """Plain YAML: no tags that call something, no merge keys (which can grow without bound), no key twice."""

    def flatten_mapping(self, node):
        for key, _ in node.value:
            if key.tag == "tag:yaml.org,2002:merge":
                raise ValueError("merge keys (<<) are not supported")

    def construct_mapping(self, node, deep=False):
        names = [key.value for key, _ in node.value if isinstance(key.value, str)]
        twice = sorted(name for name, count in Counter(names).items() if count > 1)
        if twice:
            raise ValueError(f"{_list(map(_shorten, twice))} occurs more than once")
        return super().construct_mapping(node, deep)


def _list(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _show(value: Any) -> str:
    try:
        return _shorten(reprlib.repr(value))
    except ValueError:  # numbers of thousands of digits
        return f"a {type(value).__name__}"


def _shorten(value: Any) -> str:
    text = value if isinstance(value, str) else str(type(value).__name__)
    text = "".join(character if character.isprintable() else "?" for character in text)
    return text if len(text) <= 80 else text[:77] + "..."
