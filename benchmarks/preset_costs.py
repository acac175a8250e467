"""What each preset and each example config costs, counted and not measured: parameters, arithmetic of a call, of a video, of the training.

    python benchmarks/preset_costs.py [--only smmnist-concat-p5k5 himawari ...]

Networks are made as `train_mcvd.py` makes them, on the meta device, where nothing is computed, so no GPU and little memory is
needed; all of it takes about a minute of a core. Counted are the multiply-adds of convolutions, matrix products and attention of one
clip, by torch's `FlopCounterMode`; normalisations and activations are not.

    parameters      of all that is trained, context encoders included
    a call          10^9 multiply-adds of one call of the network in sampling, for one video
    once a window   what comes before the first call: SPATIN's scales and shifts, LGC-VD's memory, RVD's recurrent networks
    the video       frames given + made, as the paper (or, of examples, one block), and in how many windows
    calls           of the network for that video: with 15 steps, and with the steps that were published
    10^12           multiply-adds for that video, with 15 steps and with the published ones
    training        FLOPs (two for a multiply-add, three forward passes for an update) of one clip x clips of an update x updates
"""

import argparse
import sys
import tempfile
from pathlib import Path


ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from torch.nn.attention import SDPBackend, sdpa_kernel  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

from mcvd_diffusers import FrameRole, frame_schedule  # noqa: E402
from mcvd_diffusers.cost import training_flops  # noqa: E402
from mcvd_diffusers.methods import make_method  # noqa: E402
from mcvd_diffusers.presets import PRESETS, preset  # noqa: E402
from mcvd_diffusers.train_settings import Settings, parse_args  # noqa: E402


CONFIGS = ROOT / "examples" / "configs"
EXAMPLES = tuple(sorted(path.stem for path in CONFIGS.glob("*.yaml")))

# Height and width of data that keep their size, as the files say.
SIZES = {"traffic": [495, 436], "weather": [161, 241]}

# Frames given and made of the longest video that is published for a data set. (MCVD's models that were trained to interpolate make a block.)
VIDEOS = {
    "smmnist": (5, 10),
    "kth": (10, 40),
    "bair": (2, 28),
    "cityscapes": (2, 28),
    "ucf101": (4, 16),
    "ramvid-bair": (1, 15),
    "ramvid-k600": (5, 11),
    "ramvid-ucf101": (0, 16),
    "fdm-gqn-mazes": (36, 264),
    "fdm-minerl": (36, 464),
    "fdm-carla": (36, 964),
    "vdm-64": (0, 16),
    "lgcvd-bair": (2, 28),
    "lgcvd-cityscapes": (2, 28),
    "rvd-bair": (4, 16),
    "rvd-kth": (4, 12),
    "rvd-cityscapes": (4, 16),
    "rvd-simulation": (4, 16),
}
# Steps of a window; MCVD's have one more call in the end.
PUBLISHED_STEPS = {"mcvd": 101, "ramvid": 1000, "fdm": 1000, "vdm": 1000, "lgcvd": 100, "rvd": 1600}

# Clips of a published update beyond those of the preset, which are of one process: GPUs, where they are known.
NUM_GPUS = {"ramvid-bair": 8, "ramvid-k600": 8, "fdm-carla": 4}

HEAD = (
    *("", "parameters", "a call", "once a window", "frames of the video", "windows"),
    *("calls, 15 steps", "calls, published", "10^12, 15 steps", "10^12, published"),
    *("clips x updates", "training, FLOPs"),
)


def settings_of(name: str) -> Settings:
    """Those of a preset or an example."""
    with tempfile.TemporaryDirectory() as folder:  # data are named, and not read
        data = Path(folder) / "data"
        data.mkdir()
        source = ["--preset", name] if name in PRESETS else [str(CONFIGS / f"{name}.yaml")]
        settings = parse_args([*source, "--output_dir", f"{folder}/run", *_data_flags(name, data)])
    if settings.model.resolution is None:
        settings.model.resolution = SIZES[name]
    return settings


def _data_flags(name: str, data: Path) -> list[str]:
    """Moving digits need no folder."""
    has_digits = (
        "digits" in preset(name)
        if name in PRESETS
        else name.endswith("digits") or name in ("demo", "moving_digits_64")
    )
    return [] if has_digits else ["--train_data_dir", str(data)]


def num_windows(name: str, settings: Settings) -> tuple[int, int, int]:
    """Frames that are given and made, and windows of the network."""
    model = settings.model
    method = make_method(settings)
    step = method.pipeline_settings().get("step") or model.max_frames
    if model.method == "mcvd":
        past, block = model.num_past_frames, model.num_frames
        _, made = VIDEOS.get(name.split("-")[0], (0, block))
        if name.endswith("interpolation") or name not in PRESETS:
            return past + (model.num_future_frames if name in PRESETS else 0), block, 1
        return past, made, -(-made // block)
    if model.method == "rvd":
        given, made = VIDEOS.get(name, (2, 1))
        return given, made, made
    if model.method == "lgcvd":
        given, made = VIDEOS.get(name, (2, model.max_frames - 2))
        return given, made, -(-made // (model.max_frames - 2))
    given, made = VIDEOS.get(name, (model.max_frames - step, step))
    if given + made <= model.max_frames:
        return given, made, 1
    windows = frame_schedule(
        method.pipeline_settings()["frame_schedule"],
        given + made,
        observed=range(given),
        max_frames=model.max_frames,
        step=step,
    )
    return given, made, len(list(windows))


def multiply_adds(function) -> float:
    """10^9 of a call of a function."""
    # The counter does not know every kernel of attention; written out it is plain matrix products.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops() / 2e9


def sampling(components: torch.nn.ModuleDict, settings: Settings, num_frames: int) -> tuple[float, float]:
    """10^9 multiply-adds of a call for one video, and of what comes once a window."""
    unet, model = components["unet"].eval(), settings.model
    encoder = components["context_encoder"].eval() if "context_encoder" in components else None
    if model.method == "mcvd":
        past, future = model.num_past_frames, model.num_future_frames
        count = past + model.num_frames + future
        is_made = [past <= i < past + model.num_frames for i in range(count)]
    else:
        context = unet.config.get("num_context_frames", 0)  # slots before the window of LGC-VD, which is always whole
        count = (
            1
            if model.method == "rvd"
            else context + (model.max_frames if context else min(num_frames, model.max_frames))
        )
        is_made = [True] * count
    # MCVD's network puts roles beside the frames. Others ask whether frames are ABSENT, which nobody can tell on the meta device.
    device = "meta" if model.method == "mcvd" else "cpu"
    roles = torch.tensor([[FrameRole.LATENT if made else FrameRole.OBSERVED for made in is_made]], device=device)
    with torch.device("meta"):
        sample = torch.zeros(1, count, unet.config.in_channels, *settings.size)
        step = torch.zeros(1, dtype=torch.long)
        told, once = {}, 0.0
        if model.method == "mcvd":
            once = multiply_adds(lambda: told.update(conditioning=unet.encode_conditioning(sample, roles)))
        elif encoder is not None:
            read = sample[:, :1] if encoder.clip_frames is None else sample[:, : encoder.clip_frames]
            options = {} if encoder.clip_frames is None else {"averages": False}
            once = multiply_adds(lambda: told.update(context=encoder(read, **options).features))
        return multiply_adds(lambda: unet(sample, step, roles, **told)), once


def number(value: float) -> str:
    """With three digits, and all of those before the point."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def row(name: str) -> tuple[str, ...]:
    """A line of the table."""
    settings = settings_of(name)
    method, training = make_method(settings), settings.training
    with torch.device("meta"):
        components = method.make_components()
    given, made, windows = num_windows(name, settings)
    call, once = sampling(components, settings, given + made)
    is_published = name in PRESETS
    calls = [windows * steps for steps in (15, PUBLISHED_STEPS[settings.model.method])]
    totals = [(count * call + windows * once) / 1e3 for count in calls]
    height, width = settings.size
    clips = training.train_batch_size * training.gradient_accumulation_steps * NUM_GPUS.get(name, 1)
    updates = training.max_train_steps
    is_known = not is_published or "max_train_steps" in preset(name)
    if settings.model.method == "mcvd":  # whose training computes what comes once a window in each call
        flops = method.num_stages * 3 * 2e9 * (call + once)
    else:
        flops = method.num_stages * training_flops(
            components["unet"],
            height=height,
            width=width,
            num_frames=method.num_seen_frames,
            context_encoder=dict(components.items()).get("context_encoder"),
        )
    return (
        name,
        f"{sum(parameter.numel() for parameter in components.parameters()):,}",
        number(call),
        number(once) if once >= 0.005 else "-",
        f"{given} + {made}",
        f"{windows}",
        f"{calls[0]:,}",
        f"{calls[1]:,}" if is_published else "-",
        number(totals[0]),
        number(totals[1]) if is_published else "-",
        f"{clips} x {updates:,}" if is_known else f"{clips} x not stated",
        f"{flops * clips * updates:.2e}" if is_known else f"{flops * clips:.2e} an update",
    )


def main(arguments: list[str] | None = None) -> None:
    """Count and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    names = (*PRESETS, *EXAMPLES)
    parser.add_argument(
        "--only", nargs="+", choices=names, default=names, metavar="NAME", help="a preset or an example"
    )
    args = parser.parse_args(arguments)
    print(f"| {' | '.join(HEAD)} |\n|{' --- |' * len(HEAD)}")
    for name in args.only:
        print(f"| {' | '.join(row(name))} |", flush=True)


if __name__ == "__main__":
    main()
