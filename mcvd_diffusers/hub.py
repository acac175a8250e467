"""Registration with Diffusers, so that its loader knows this package's classes by the package's name.

Since Diffusers 0.42 a component of another library is recorded under the module path of its file, and a pipeline that
was saved so cannot be loaded back from the Hub. A library that stands in `LOADABLE_CLASSES` is recorded as
`["mcvd_diffusers", "MCVDUNet2DModel"]` and found in a folder and on the Hub; no code of a repository is ever run. The
loader looks the base classes up as attributes of the package, so `mcvd_diffusers/__init__.py` exports them too.
"""

from diffusers.pipelines import pipeline_loading_utils


LIBRARY = "mcvd_diffusers"


def register_with_diffusers() -> None:
    """
    Make this package one that Diffusers loads components from.

    Raises:
        ImportError: If the installed Diffusers keeps its table of libraries elsewhere.
    """
    try:
        table = pipeline_loading_utils.LOADABLE_CLASSES
    except AttributeError as error:
        raise ImportError(
            "This version of diffusers has no `pipelines.pipeline_loading_utils.LOADABLE_CLASSES`, where mcvd_diffusers"
            ' registers itself. Install a version it was made for: pip install "diffusers>=0.42,<0.43".'
        ) from error
    methods = ["save_pretrained", "from_pretrained"]
    table.setdefault(LIBRARY, dict.fromkeys(("ModelMixin", "SchedulerMixin", "DiffusionPipeline"), methods))
