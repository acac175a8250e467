"""A model that a command line names, loaded."""

from pathlib import Path
from typing import TYPE_CHECKING

from .printing import one_line


if TYPE_CHECKING:
    # The networks are imported where they are needed: `--help` does without.
    from mcvd_diffusers.pipelines import MCVDPipeline


def load_pipeline(
    model: str, *, variant: str | None = None, scheduler: str | None = None, **options
) -> "MCVDPipeline":
    """
    Load a pipeline.

    Args:
        model (`str`): Folder, or id on the Hub.
        variant (`str`, *optional*): Which weights.
        scheduler (`str`, *optional*): Name of one of Diffusers' schedulers, in the place of the pipeline's own.
        **options: As `from_pretrained` takes them, such as `dtype`.

    Returns:
        [`MCVDPipeline`]: The pipeline.

    Raises:
        `ValueError`: If there is none, it is damaged, or there is no such scheduler.
    """
    import diffusers

    from mcvd_diffusers.pipelines import MCVDPipeline

    try:
        pipeline = MCVDPipeline.from_pretrained(model, variant=variant, **options)
    except (OSError, ValueError) as error:
        where = "" if Path(model).is_dir() else " is no folder here, and"
        raise ValueError(
            f"MODEL {model}{where} cannot be loaded as a pipeline{f' with --variant {variant}' if variant else ''}:"
            f" {one_line(str(error))}"
        ) from error
    if scheduler is not None:
        scheduler_class = getattr(diffusers, scheduler, None)
        if not isinstance(scheduler_class, type) or not hasattr(scheduler_class, "set_timesteps"):
            raise ValueError(
                f"--scheduler must be one of Diffusers' schedulers, such as DDIMScheduler, got {scheduler!r}."
            )
        pipeline.scheduler = scheduler_class.from_config(pipeline.scheduler.config)
    return pipeline


def has_average(model: str) -> bool:
    """Whether a folder has averaged weights beside the raw ones; of the Hub's nothing is known."""
    return any(Path(model).expanduser().glob("unet/diffusion_pytorch_model.ema*.safetensors"))
