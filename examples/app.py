"""A demo in the browser: choose or drop a clip, move sliders, see truth, samples and their spread side by side.

    pip install -e ".[demo,video]"
    python examples/app.py                                 # the model of this repository, checkpoints/moving-digits
    python examples/app.py runs/mine --variant ema         # any folder or Hub id of an MCVDPipeline, or MCVD_MODEL=...

`docs/app.md` shows it, and puts it on a Hugging Face Space. What a model cannot do is not offered: each task, number of given
frames, length and number of steps is put to the pipeline's own checks first. The upper half of this file knows nothing of the
page; `make_demo` is the page.
"""

import argparse
import contextlib
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import gradio as gr
import torch
from PIL import Image

from mcvd_diffusers import MCVDPipeline
from mcvd_diffusers.data import ClipDataset, MovingDigits, load_digits, open_reader
from mcvd_diffusers.data.video_files import VIDEO_SUFFIXES
from mcvd_diffusers.metrics import blend_linearly, psnr_of_mse, repeat_first_frame, repeat_last_frame, video_mse
from mcvd_diffusers.pipelines.request import Call, read_request
from mcvd_diffusers.visualization import contact_sheet, save_comparison_gif


# The page asks nobody else for anything; gradio reads this when a page is made.
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

FOLDER = Path(__file__).resolve().parent
# Beside this file on a Space, in the folder above in the repository.
SHIPPED = next((x for x in (FOLDER, FOLDER.parent) if (x / "checkpoints").is_dir()), FOLDER.parent)
SHIPPED = SHIPPED / "checkpoints" / "moving-digits"

# Task -> the sides of the made frames that are given.
TASKS = {"predict": ["past"], "reconstruct the past": ["future"], "interpolate": ["past", "future"], "generate": []}
NUM_EXAMPLES, MAX_GIVEN, MAX_LENGTH, MAX_STEPS, MAX_FUTURES = 5, 8, 40, 50, 6
CLIP_FRAMES = MAX_LENGTH + 2 * MAX_GIVEN  # of a clip that are looked at
MILLISECONDS = 150  # that a frame is shown
PICTURE_WIDTH = 710  # pixels, about: there is so much room on a screen of 1280
MOST_SPREAD = 0.5  # that values in [0, 1] can have, and that is shown white


# ----------------------------------------------------------------------------------------------------------------------
# What a model can do


@dataclass(frozen=True)
class Ability:
    """What a model takes for a task: least and most of each; and how many frames it makes at once."""

    given: tuple[int, int]
    length: tuple[int, int]
    steps: tuple[int, int]
    at_once: int
    default_length: int
    takes_guidance: bool


def num_given(pipe: MCVDPipeline, task: str, given: int) -> dict[str, int]:
    """Side -> how many frames are given there: `given`, or as many as the network reads."""
    return {side: min(given, pipe.unet.config.get(f"num_{side}_frames", given)) for side in TASKS[task]}


def find_abilities(pipe: MCVDPipeline) -> dict[str, Ability]:
    """Task -> what the pipeline's own checks let pass; tasks that it cannot do are left out."""

    def accepts(task: str, given: int, **options) -> bool:
        sides = num_given(pipe, task, given)
        frames = {f"{side}_frames": torch.zeros(1, n, *pipe.frame_shape) for side, n in sides.items()}
        frames = {name: to_units(pipe, x) for name, x in frames.items()}
        try:
            return read_request(pipe, Call(output_type="pt", **frames, **options)) is not None
        except ValueError:
            return False

    def ends(numbers: Sequence[int], check: Callable[[int], bool]) -> tuple[int, int] | None:
        """The least and the most that pass; those between are taken to, and the pipeline has the last word."""
        least, most = next(filter(check, numbers), None), next(filter(check, reversed(numbers)), None)
        return None if least is None else (least, most)

    abilities, config = {}, pipe.unet.config
    for task, sides in TASKS.items():
        most = max((config.get(f"num_{side}_frames", MAX_GIVEN) for side in sides), default=0)
        given = ends(range(min(1, len(sides)), min(most, MAX_GIVEN) + 1), lambda n: accepts(task, n))
        if given is None:
            continue
        length = ends(range(1, MAX_LENGTH + 1), lambda n: accepts(task, given[1], num_frames=n))
        numbers = sorted({*range(1, MAX_STEPS + 1), pipe.default_num_inference_steps})
        steps = ends(numbers, lambda n: accepts(task, given[1], num_inference_steps=n))
        if length is None or steps is None:
            continue
        num_beside = sum(num_given(pipe, task, given[1]).values())
        at_once = config["num_frames"] if "num_frames" in config else max(1, config["max_frames"] - num_beside)
        default_length = min(max(at_once if len(sides) == 2 else 2 * at_once, length[0]), length[1])
        takes_guidance = accepts(task, given[1], num_frames=length[1], guidance_scale=2.0)
        abilities[task] = Ability(given, length, steps, at_once, default_length, takes_guidance)
    return abilities


def describe(pipe: MCVDPipeline, name: str, abilities: dict[str, Ability]) -> str:
    """What the model is, in a line."""
    channels, height, width = pipe.frame_shape
    config, millions = pipe.unet.config, sum(x.numel() for x in pipe.unet.parameters()) / 1e6
    colors = {1: "grey", 3: "colour"}.get(channels, f"{channels} channels, of which the first is shown")
    if "max_frames" in config:
        reads = f"windows of {config.max_frames} frames"
    else:
        reads = f"{config.num_frames} frames at a time"
        sides = [f"{config[f'num_{side}_frames']} {side}" for side in ("past", "future")]
        reads += f", from up to {' and '.join(sides)} ones"
        if any(can.given[0] < can.given[1] for can in abilities.values()):
            reads += " (in training all of a side, or none)"
    missing = [task for task in TASKS if task not in abilities]
    told = f"**{name}**: {height}x{width}, {colors}; {reads}; {millions:.1f} million parameters."
    return told + (f" It cannot {' or '.join(missing)}." if missing else "")


# ----------------------------------------------------------------------------------------------------------------------
# Clips: tensors (1, T, C, H, W) in [0, 1]


def to_units(pipe: MCVDPipeline, clip: torch.Tensor) -> torch.Tensor:
    """From `[0, 1]` to the units that the pipeline takes: the inverse of its normalizer's `to_display`."""
    low, high = (torch.tensor(ends)[:, None, None] for ends in (pipe.normalizer.low, pipe.normalizer.high))
    return low + clip * (high - low)


def example_clips(pipe: MCVDPipeline) -> list[torch.Tensor]:
    """Clips of held-out moving digits in the model's size."""
    channels, *size = pipe.frame_shape
    digits = load_digits("mnist-10k", split="validation", size=max(1, min(size) // 2))
    speed = max(1, min(size) // 64)  # as the checkpoint has learned
    clips = MovingDigits(
        digits, num_frames=CLIP_FRAMES, num_clips=NUM_EXAMPLES, canvas_size=tuple(size), max_speed=speed, seed=7
    )
    videos = [(clips[i]["video"] + 1) / 2 for i in range(len(clips))]
    return [video.expand(-1, channels, -1, -1)[None] for video in videos]


def read_clip(pipe: MCVDPipeline, path: str | Path) -> tuple[torch.Tensor, str]:
    """The first frames of a video file as the model takes them, and a line on what was done to them."""
    path = Path(path)
    channels, height, width = pipe.frame_shape
    try:
        reader = open_reader(path)
        info, num_channels = reader.info(0), channels if channels in (1, 3) else 1
        count = min(info.num_frames, CLIP_FRAMES)
        options = {"frame_size": (height, width), "resize": "cover", "num_channels": num_channels, "strict": True}
        clip = ClipDataset(reader, num_frames=count, random_start=False, **options)[0]["video"]
    except (ValueError, OSError) as error:  # where uploads lie on the server is nobody's business
        raise ValueError(str(error).replace(str(path), path.name)) from error
    names = {1: "grey", 3: "colour"}
    done = [f"the first {count} of {info.num_frames} frames" if count < info.num_frames else f"{count} frames"]
    if (info.height, info.width) != (height, width):
        done.append(f"{info.height}x{info.width} scaled and cut to {height}x{width}")
    if info.num_channels != num_channels:
        done.append(f"{names.get(info.num_channels, f'{info.num_channels} channels')} made {names[num_channels]}")
    if channels != num_channels:
        done.append(f"grey repeated in all {channels} channels")
    if not pipe.normalizer.is_unit:
        done.append(f"black and white set to the ends of the model's units ({pipe.normalizer})")
    clip = ((clip + 1) / 2).expand(-1, channels, -1, -1)[None]
    return clip, f"Your clip, {path.name}: {'; '.join(done)}. The model knows only what it was trained on."


# ----------------------------------------------------------------------------------------------------------------------
# Sampling


@dataclass(frozen=True)
class Result:
    """What one press of the button made: columns as `visualization` takes them, RGB; and the numbers, as Markdown."""

    columns: dict[str, torch.Tensor]
    is_given: list[bool]
    numbers: str

    def save(self, path: Path) -> Image.Image:
        """Writes the animation, and returns the still picture of all frames."""
        height = max(64, PICTURE_WIDTH // len(self.columns) - 12)
        looks = {"frame_height": height, "milliseconds": MILLISECONDS, "label_size": 14}
        save_comparison_gif(path, self.columns, self.is_given, **looks)
        return contact_sheet(self.columns, self.is_given, frame_height=64, label_size=18)


def cut(clip: torch.Tensor, sides: dict[str, int], length: int) -> tuple[dict[str, torch.Tensor], torch.Tensor, int]:
    """
    Given frames, and the true frames between or beside them: those that the clip has of `length`, and how many it lacks.

    They are the first of the clip. Where the clip is too short, truth ends early, or, before given frames, begins late.
    """
    past, future, num_frames = sides.get("past", 0), sides.get("future", 0), clip.shape[1]
    least = past + future + (length if past and future else 0)
    if num_frames < least:
        raise ValueError(
            f"The clip has {num_frames} frames, and this asks for {least}: choose fewer, or a longer clip."
        )
    num_known = min(length, num_frames - past - future)
    frames, start = {}, past + num_known
    if past:
        frames["past"] = clip[:, :past]
    if future:
        frames["future"] = clip[:, start : start + future]
    return frames, clip[:, past:start], length - num_known


@torch.no_grad()
def sample(
    pipe: MCVDPipeline,
    clip: torch.Tensor | None,
    *,
    task: str,
    given: int = 0,
    length: int,
    steps: int,
    guidance: float = 1.0,
    futures: int = 1,
    seed: int = 0,
    on_step: Callable[[float, str], object] = lambda share, text: None,
) -> Result:
    """Make videos of a clip in `[0, 1]`, and compare them with what the clip shows; `clip` is not read for "generate"."""
    sides = num_given(pipe, task, given)
    frames, truth, num_unknown = cut(clip, sides, length) if sides else ({}, None, length)
    options = {f"{side}_frames": to_units(pipe, x) for side, x in frames.items()}
    options |= {"num_frames": length, "num_inference_steps": steps, "guidance_scale": guidance}
    options |= {"ensemble_size": futures, "output_type": "pt"}
    num_windows = read_request(pipe, Call(**options)).plan.num_windows

    def tell(pipe: MCVDPipeline, step: int, timestep: torch.Tensor, kwargs: dict) -> dict:
        block, steps = pipe.block_index + 1, pipe.num_timesteps
        share = (block - 1 + (step + 1) / steps) / (num_windows or block + 1)
        on_step(min(1.0, share), f"block {block}/{num_windows or '?'}, step {step + 1}/{steps}")
        return kwargs

    num_calls, started = 0, time.perf_counter()

    def count(*_) -> None:
        nonlocal num_calls
        num_calls += 1

    hook = pipe.unet.register_forward_pre_hook(count)
    try:
        generator = torch.Generator().manual_seed(seed)
        out = pipe(**options, generator=generator, output_uncertainty=futures > 1, callback_on_step_end=tell)
    finally:
        hook.remove()
    seconds = time.perf_counter() - started
    made = pipe.normalizer.to_display(out.frames).cpu()  # (futures, length, C, H, W)

    columns, numbers = {}, ""
    if truth is not None:
        unknown = torch.full_like(made[:1, :num_unknown], 0.5)  # grey
        columns["truth"] = torch.cat([truth, unknown] if "past" in sides else [unknown, truth], dim=1)
        if truth.shape[1]:
            numbers = psnr_table(made, frames, truth)
        if num_unknown:
            numbers += f"The clip does not show {num_unknown} of the {length} frames: grey under truth, and not in the PSNR.  \n"
    columns |= {f"sample {i + 1}": made[i : i + 1] for i in range(futures)}
    columns = {name: as_rgb(between(frames, video)) for name, video in columns.items()}
    if futures > 1:
        low, high = to_units(pipe, torch.zeros(1, 1, 1)), to_units(pipe, torch.ones(1, 1, 1))
        spread = (out.uncertainty.cpu() / (high - low)).nan_to_num(0.0)
        spread = spread.mean(dim=2, keepdim=True)  # (1, length, 1, H, W)
        spread_of_all = between({side: torch.zeros_like(x[:, :, :1]) for side, x in frames.items()}, spread)
        columns["uncertainty"] = as_heat(spread_of_all / MOST_SPREAD)
        numbers += f"Spread of the samples: **{float(spread.mean()):.3f}**, mean over all pixels.  \n"
    numbers += f"**{seconds:.1f} s**, {num_calls} calls of the network with {futures} video{'s' * (futures > 1)} each."
    is_given = [True] * sides.get("past", 0) + [False] * length + [True] * sides.get("future", 0)
    return Result(columns, is_given, numbers)


def between(frames: dict[str, torch.Tensor], video: torch.Tensor) -> torch.Tensor:
    """A video with the given frames before and after it."""
    return torch.cat([frames.get("past", video[:, :0]), video, frames.get("future", video[:, :0])], dim=1)


def as_rgb(video: torch.Tensor) -> torch.Tensor:
    """Colours as they are; of any other number of channels the first."""
    return video if video.shape[2] == 3 else video[:, :, :1].expand(-1, -1, 3, -1, -1)


def as_heat(shares: torch.Tensor) -> torch.Tensor:
    """`(B, T, 1, H, W)` in colours: 0 is black, then red, yellow, and white is 1."""
    return torch.cat([3 * shares - i for i in range(3)], dim=2).clamp(0, 1)


def psnr_table(made: torch.Tensor, frames: dict[str, torch.Tensor], truth: torch.Tensor) -> str:
    """PSNR of each sample, and of what needs no network, over the frames that the clip shows."""
    num_known = truth.shape[1]
    shown = made[:, :num_known] if "past" in frames else made[:, made.shape[1] - num_known :]
    videos = {f"sample {i + 1}": shown[i : i + 1] for i in range(len(shown))}
    if len(frames) == 2:
        videos["*blended ends*"] = blend_linearly(frames["past"], frames["future"], num_known)
    elif "past" in frames:
        videos["*last frame repeated*"] = repeat_last_frame(frames["past"], num_known)
    else:
        videos["*first frame repeated*"] = repeat_first_frame(frames["future"], num_known)
    cells = [f"{float(psnr_of_mse(video_mse(video, truth))):.1f} dB" for video in videos.values()]
    rows = (["PSNR", *videos], ["---"] * (len(videos) + 1), ["against truth", *cells])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n\n"


# ----------------------------------------------------------------------------------------------------------------------
# The page


CSS = """
.hard:not(:has(img)) { min-height: 180px; }
.hard img { width: auto; }
@media (min-width: 768px) { #video img, #clips img { image-rendering: pixelated; } }
#task label { padding: 5px 7px 5px 5px; font-size: 0.85em; gap: 0; }
#task .wrap { gap: 5px; }
#clips .grid-wrap { min-height: 0; padding: 2px; }
#clips .grid-container { grid-template-columns: repeat(6, minmax(0, 1fr)) !important; gap: 6px; }
#clips .grid-container { grid-template-rows: auto !important; }
#clips .thumbnail-item { height: auto; aspect-ratio: 1; }
#file { height: 76px !important; min-height: 0; }
#file .wrap { font-size: 0.85em; line-height: 1.4; padding: 4px; }
#file .icon-wrap { display: none; }
#numbers table { display: block; overflow-x: auto; border: none; }
#numbers th, #numbers td { white-space: nowrap; }
"""
LEGEND = (
    "Truth, samples, uncertainty; below, the same frame by frame. **Green** frames are given, as is all of the truth; **orange**"
    " ones are made. Uncertainty is the standard deviation of the samples at each pixel: from black, 0, by red and yellow to"
    f" white, {MOST_SPREAD}."
)
# Fonts of the system: others would be asked for from elsewhere.
FONTS = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}
THEME = gr.themes.Default(primary_hue="green", spacing_size="sm", **FONTS)
LAUNCH = {"css": CSS, "theme": THEME, "footer_links": []}
SHOW_RESULT = "() => document.getElementById('video').scrollIntoView({behavior: 'smooth', block: 'nearest'})"


@contextlib.contextmanager
def errors_in_the_page() -> Iterator[None]:
    """What cannot be done is told in the page, in the words of the pipeline or the reader."""
    try:
        yield
    except (ValueError, OSError, ImportError) as error:
        raise gr.Error(str(error), duration=30, title="This cannot be done", print_exception=False) from error


def save_thumbnail(clip: torch.Tensor, path: Path) -> str:
    """A clip as a small animation."""
    pixels = clip[0, :20].expand(-1, 3, -1, -1) if clip.shape[2] == 1 else clip[0, :20, :3]
    pixels = pixels.movedim(1, -1).mul(255).round().byte().numpy()
    first, *others = (Image.fromarray(frame).resize((128, 128), Image.Resampling.NEAREST) for frame in pixels)
    first.save(path, save_all=True, append_images=others, duration=MILLISECONDS, loop=0)
    return str(path)


def make_demo(pipe: MCVDPipeline, name: str, folder: Path) -> gr.Blocks:
    """The page of a model; the small pictures of the example clips are put into `folder`."""
    abilities, clips = find_abilities(pipe), example_clips(pipe)
    if not abilities:
        raise ValueError(f"{name} does none of these: {', '.join(TASKS)}.")
    thumbnails = [save_thumbnail(clip, folder / f"digits_{i}.gif") for i, clip in enumerate(clips)]
    hint = (
        "Moving digits, held out of the training of this repository's model. Or drop a video of yours:"
        f" {', '.join(VIDEO_SUFFIXES)}"
    )

    # What a handler puts into the page is read while it waits at `yield`; then its folder may go.
    def take_file(path: str | None):
        if path is None:
            yield gr.Gallery(value=thumbnails, selected_index=0), 0, hint
            return
        with errors_in_the_page(), tempfile.TemporaryDirectory() as place:
            clip, note = read_clip(pipe, path)
            shown = [*thumbnails, save_thumbnail(clip, Path(place) / "own.gif")]
            yield gr.Gallery(value=shown, selected_index=len(thumbnails)), len(thumbnails), note

    def choose(event: gr.SelectData) -> int:
        return event.index

    def run(chosen, path, task, given, length, steps, guidance, futures, seed, progress=gr.Progress()):  # noqa: B008
        with errors_in_the_page(), tempfile.TemporaryDirectory() as place:
            clip = clips[chosen] if chosen < len(clips) else read_clip(pipe, path)[0]
            settings = dict(task=task, given=given, length=length, steps=steps, guidance=guidance)
            settings |= dict(futures=futures, seed=seed, on_step=lambda share, text: progress(share, text))
            result = sample(pipe, clip, **settings)
            path = Path(place) / "comparison.webp"
            sheet = result.save(path)
            yield str(path), sheet, result.numbers

    def controls(task: str) -> dict[str, dict]:
        """What of the controls depends on the task."""
        can, both = abilities[task], len(TASKS[task]) == 2

        def slider(ends: tuple[int, int], value: int, **more) -> dict:  # hidden where there is no choice
            return dict(
                minimum=ends[0], maximum=max(ends[1], ends[0] + 1), value=value, visible=ends[0] < ends[1], **more
            )

        return {
            "clips": dict(visible=bool(TASKS[task])),
            "given": slider(can.given, can.given[1], label="Given frames" + " a side" * both),
            "length": slider(can.length, can.default_length),
            "steps": slider(can.steps, pipe.default_num_inference_steps),
            "guidance": dict(visible=guides(task, can.default_length)),
        }

    def guides(task: str, length: int) -> bool:
        """Where nothing is given, only what later blocks are given guides."""
        return abilities[task].takes_guidance and (bool(TASKS[task]) or length > abilities[task].at_once)

    first, about = controls(next(iter(abilities))), describe(pipe, name, abilities)
    with gr.Blocks(title="mcvd-diffusers", delete_cache=(3600, 3600)) as demo:
        gr.Markdown("## One network predicts, reconstructs, interpolates and generates video\n" + about)
        chosen = gr.State(0)
        with gr.Row():
            with gr.Column(scale=2, min_width=320):
                task = gr.Radio(list(abilities), value=next(iter(abilities)), label="Task", elem_id="task")
                with gr.Column(**first["clips"]) as clips_column:
                    kept = dict(columns=6, allow_preview=False, object_fit="contain", height="auto", buttons=[])
                    gallery = gr.Gallery(thumbnails, selected_index=0, show_label=False, elem_id="clips", **kept)
                    note = gr.Markdown(hint, elem_id="note")
                    file = gr.File(show_label=False, file_types=list(VIDEO_SUFFIXES), elem_id="file")
                with gr.Row():
                    kept = dict(step=1, buttons=[], min_width=180)
                    given = gr.Slider(**first["given"], **kept)
                    length = gr.Slider(label="Frames to make", **first["length"], **kept)
                with gr.Row():
                    futures = gr.Slider(1, MAX_FUTURES, 3, label="Futures (samples)", **kept)
                    steps = gr.Slider(label="Steps a block", **first["steps"], **kept)
                with gr.Row():
                    guided = dict(kept, step=0.1) | first["guidance"]
                    guidance = gr.Slider(0, 5, 1, label="Guidance (1: none)", **guided)
                    seed = gr.Slider(0, 999, 0, label="Seed", **kept)
                button = gr.Button("Make videos", variant="primary")
            with gr.Column(scale=3, min_width=320):
                kept = dict(interactive=False, show_label=False, elem_classes="hard", buttons=[])
                video = gr.Image(elem_id="video", **kept)
                gr.Markdown(LEGEND)
                sheet = gr.Image(format="png", elem_id="sheet", **kept)
                numbers = gr.Markdown("Nothing is made yet: press **Make videos**.", elem_id="numbers")

        gallery.select(choose, None, chosen)
        file.change(take_file, file, [gallery, chosen, note], show_progress="hidden")
        changing = [clips_column, given, length, steps, guidance]
        task.change(lambda x: [gr.update(**changes) for changes in controls(x).values()], task, changing)
        length.change(lambda x, n: gr.Slider(visible=guides(x, n)), [task, length], guidance, show_progress="hidden")
        inputs = [chosen, file, task, given, length, steps, guidance, futures, seed]
        button.click(run, inputs, [video, sheet, numbers], show_progress_on=video)
        button.click(None, js=SHOW_RESULT)
    return demo


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    model = os.environ.get("MCVD_MODEL") or str(SHIPPED)
    parser.add_argument("model", nargs="?", default=model, help="folder or Hub id of a pipeline")
    parser.add_argument("--variant", help="of the weights, such as ema")
    arguments = parser.parse_args()
    model = arguments.model
    pipe = MCVDPipeline.from_pretrained(model, variant=arguments.variant)
    pipe = pipe.to("cuda" if torch.cuda.is_available() else "cpu")
    pipe.set_progress_bar_config(disable=True)
    with tempfile.TemporaryDirectory() as folder:
        name = Path(model).name if Path(model).is_dir() else model
        make_demo(pipe, name, Path(folder)).queue().launch(**LAUNCH)


if __name__ == "__main__":
    main()
