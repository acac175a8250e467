"""What command lines name, a model or data: the flags that say which and how, in one place for all commands."""

import argparse
import fnmatch
import re
from pathlib import Path
from typing import TYPE_CHECKING

from .printing import integer_from, one_line


if TYPE_CHECKING:
    # The networks are imported where they are needed: `--help` does without.
    from mcvd_diffusers.pipelines import MCVDPipeline

MOST_SEED = 2**64 - 1  # of PyTorch
READING_OPTIONS = ("axes", "variables", "video_column", "dataset_split")
AVERAGED = "ema"  # the name of the averaged weights
AVERAGED_NOTE = "the model's averaged weights are used; --variant raw takes the others"
# What arguments of the library are called on a command line.
FLAG_OF_ARGUMENT = {
    "axes": "--axes",
    "variables": "--variables",
    "column": "--video_column",
    "split": "--dataset_split",
    "name": "--video",
    "names": "--video",
    "variant": "--variant",
    "dtype": "--dtype",
}


def add_reading_options(parser) -> None:
    """Adds the flags that say how data at a path are read, to a parser or a group."""
    parser.add_argument("--axes", help="arrays: what each axis is, letters of N (videos), T, C, H, W, such as THWC")
    parser.add_argument("--variables", nargs="+", metavar="NAME", help="arrays and fields that become the channels")
    parser.add_argument("--video_column", metavar="NAME", help="Hugging Face and LeRobot data: where the videos are")
    parser.add_argument("--dataset_split", metavar="NAME", help="Hugging Face data: which split (default: train)")


def reading_options(arguments: argparse.Namespace) -> dict:
    """What `open_reader` and `open_video` take of those flags."""
    return {
        "axes": arguments.axes,
        "variables": arguments.variables,
        "column": arguments.video_column,
        "split": arguments.dataset_split,
    }


def given_reading_options(arguments: argparse.Namespace) -> dict:
    """Those of the flags that were given, by their names."""
    return {name: value for name in READING_OPTIONS if (value := getattr(arguments, name)) is not None}


def in_flags(text: str, *, path: str = "the path") -> str:
    """A message in the words of a command line: "`axes` must ..." becomes "--axes must ..."; `path` is what that is called."""
    flags = FLAG_OF_ARGUMENT | {"path": path}
    return re.sub(r"`(\w+)`", lambda match: flags.get(match[1], match[0]), text)


def add_model_options(parser) -> None:
    """Adds the flags that say which weights of a model are sampled, to a parser or a group."""
    parser.add_argument(
        "--variant",
        metavar="NAME",
        help='which weights: "ema", the average that train_mcvd.py writes, or "raw", those without (default: ema where there is'
        " one)",
    )


def add_sampling_options(parser) -> None:
    """Adds the flags that say how any model is sampled, to a parser or a group."""
    parser.add_argument(
        "--num_inference_steps",
        type=integer_from(1),
        metavar="N",
        help="denoising steps of a block: fewer are faster (default: the model's, or 100)",
    )
    parser.add_argument(
        "--guidance_scale",
        type=float,
        default=1.0,
        metavar="W",
        help="above 1 what is given weighs more, at twice the cost (default: 1)",
    )
    parser.add_argument(
        "--scheduler", metavar="CLASS", help="one of Diffusers', such as DDIMScheduler (default: the model's)"
    )
    parser.add_argument(
        "--seed",
        type=integer_from(0, MOST_SEED),
        default=0,
        metavar="N",
        help="the same seed, the same videos (default: 0)",
    )
    parser.add_argument(
        "--batch_size",
        type=integer_from(1),
        default=16,
        metavar="N",
        help="videos that are made at a time; changes nothing but memory and time (default: 16)",
    )


def load_pipeline(
    model: str, *, variant: str | None = None, scheduler: str | None = None, **options
) -> tuple["MCVDPipeline", str | None]:
    """
    Load a pipeline.

    Args:
        model (`str`): Folder, or id on the Hub.
        variant (`str`, *optional*):
            Which weights; `"raw"` are those without a name. By default the averaged ones where there are any, else the raw.
        scheduler (`str`, *optional*): Name of one of Diffusers' schedulers, in the place of the pipeline's own.
        **options: As `from_pretrained` takes them, such as `dtype`.

    Returns:
        `tuple[MCVDPipeline, str | None]`: The pipeline, and which weights it has: `None` for those without a name.

    Raises:
        `ValueError`: If there is none, it is damaged, or there is no such scheduler.
    """
    import diffusers

    from mcvd_diffusers.pipelines import MCVDPipeline

    folder = Path(model).expanduser()
    model = str(folder) if folder.is_dir() else model
    chosen = AVERAGED if variant is None and has_average(model) else None if variant == "raw" else variant
    try:
        pipeline = MCVDPipeline.from_pretrained(model, variant=chosen, **options)
    except (OSError, ValueError, RuntimeError) as error:
        with_variant = f" with --variant {chosen}" if chosen else ""
        raise ValueError(
            f"MODEL {model} cannot be loaded as a pipeline{with_variant}: {one_line(str(error))}"
        ) from error
    if scheduler is not None:
        scheduler_class = getattr(diffusers, scheduler, None)
        if not isinstance(scheduler_class, type) or not hasattr(scheduler_class, "set_timesteps"):
            raise ValueError(
                f"--scheduler must be one of Diffusers' schedulers, such as DDIMScheduler, got {scheduler!r}."
            )
        try:
            pipeline.scheduler = scheduler_class.from_config(pipeline.scheduler.config)
        except (TypeError, ValueError, ImportError, NotImplementedError) as error:
            raise ValueError(
                f"--scheduler {scheduler} does not fit MODEL {model}: {one_line(str(error))} Choose another, or leave it out."
            ) from error
    return pipeline, chosen


def has_average(model: str) -> bool:
    """Whether a folder, or a repository of the Hub that can be asked, has averaged weights beside the raw ones."""
    from huggingface_hub import list_repo_files

    pattern = f"unet/diffusion_pytorch_model.{AVERAGED}*.safetensors"
    folder = Path(model).expanduser()
    if folder.is_dir():
        return any(folder.glob(pattern))
    try:
        return bool(fnmatch.filter(list_repo_files(model), pattern))
    except (OSError, ValueError):  # offline, or no such repository, which loading says better
        return False
