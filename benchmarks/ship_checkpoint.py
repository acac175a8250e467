"""From a finished run of moving digits to the checkpoint that ships: one set of weights, pictures, numbers, its card.

    python benchmarks/ship_checkpoint.py runs/moving-digits checkpoints/moving-digits --evaluations runs/shipped

Rounds the averaged weights to half precision, evaluates them by the three protocols below (those that exist are gone on with), makes
the pictures of the documentation, and writes all of it into the card. `--num_clips 8` is for trying it out.
"""

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

import matplotlib
import torch
import yaml

from mcvd_diffusers import MCVDPipeline
from mcvd_diffusers.data import MovingDigits, load_digits
from mcvd_diffusers.export import export_folder
from mcvd_diffusers.metrics import blend_linearly, repeat_last_frame
from mcvd_diffusers.model_card import add_evaluation, read_facts, write_card
from mcvd_diffusers.visualization import contact_sheet, save_comparison_gif


matplotlib.use("Agg")

ROOT = Path(__file__).resolve().parents[1]
IMAGES = ROOT / "docs" / "images"
CONFIG = ROOT / "examples" / "configs" / "moving_digits_64.yaml"
PROTOCOLS = {
    "prediction-20": [ROOT / "examples" / "protocols" / "moving-digits-5-20.yaml"],
    "interpolation-5": [ROOT / "examples" / "protocols" / "moving-digits-5-5-5.yaml"],
    "prediction-10": [ROOT / "examples" / "protocols" / "moving-digits-5-10.yaml"],
}
TASKS = {"prediction-20": "5 to 20", "prediction-10": "5 to 10", "interpolation-5": "5 + 5 to 5"}
METRICS = {
    "psnr_of_video_mse": "PSNR, dB",
    "ssim": "SSIM",
    "mse": "squared error",
    "crps": "CRPS",
    "frechet over transnetv2": "distance",
}
COLUMNS = [("model", "mean of 10"), ("model", "best of 10"), ("repeat_last_frame", "1"), ("blend_linearly", "1")]
PAGE = ROOT / "docs" / "checkpoint.md"
BEGIN, END = "<!-- numbers: written by benchmarks/ship_checkpoint.py -->", "<!-- end of the numbers -->"


def clips(num_clips: int, num_frames: int) -> torch.Tensor:
    """Clips of digits that the training has not seen, `(B, T, 1, 64, 64)` in `[0, 1]`."""
    settings = yaml.safe_load(CONFIG.read_text())
    digits = load_digits(settings["digits"], split="validation", size=settings["digit_size"])
    options = {"num_digits": settings["num_digits"], "max_speed": settings["max_speed"], "seed": 11}
    drawn = MovingDigits(digits, num_frames=num_frames, num_clips=num_clips, **options)
    return (torch.stack([drawn[i]["video"] for i in range(num_clips)]) + 1) / 2


@torch.no_grad()
def draw(folder: Path) -> dict[str, str]:
    """The pictures of the pages, of which two also go into the folder, for its card: name -> what it shows."""
    pipe = MCVDPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    options = {"generator": torch.Generator().manual_seed(0), "output_type": "pt"}
    video = clips(6, 25)
    past, truth = video[:, :5], video[:, 5:]
    samples = pipe(past_frames=past, num_frames=20, ensemble_size=3, **options).frames.unflatten(0, (6, 3))
    columns = {"truth": truth, **{f"sample {i + 1}": samples[:, i] for i in range(3)}}
    columns["repeat last"] = repeat_last_frame(past, 20)
    columns = {name: torch.cat([past, frames], dim=1) for name, frames in columns.items()}
    is_given = [True] * 5 + [False] * 20
    short = {name: columns[name] for name in ("truth", "sample 1", "sample 2")}
    save_comparison_gif(folder / "prediction.gif", {name: x[:4] for name, x in short.items()}, is_given)
    shutil.copyfile(folder / "prediction.gif", IMAGES / "prediction.gif")
    some = [0, 2, 4, *range(5, 25, 2)]  # not all of 25 frames fit on a page
    contact_sheet({name: x[:4, some] for name, x in columns.items()}, [is_given[i] for i in some]).save(
        IMAGES / "checkpoint_prediction.png"
    )

    gap, future = video[:, 5:10], video[:, 10:15]
    between = pipe(past_frames=past, future_frames=future, ensemble_size=2, **options).frames.unflatten(0, (6, 2))
    columns = {
        "truth": gap,
        "sample 1": between[:, 0],
        "sample 2": between[:, 1],
        "blend": blend_linearly(past, future, 5),
    }
    columns = {name: torch.cat([past, frames, future], dim=1) for name, frames in columns.items()}
    is_given = [True] * 5 + [False] * 5 + [True] * 5
    save_comparison_gif(folder / "interpolation.gif", {name: x[:4] for name, x in columns.items()}, is_given)
    contact_sheet({name: x[:4, 3:12] for name, x in columns.items()}, is_given[3:12]).save(
        IMAGES / "checkpoint_interpolation.png"
    )

    made = pipe(num_frames=20, batch_size=6, **options).frames
    contact_sheet({"generated": made[:, ::2]}, [False] * 10).save(IMAGES / "checkpoint_generation.png")
    return {
        "prediction.gif": "twenty predicted frames of held-out digits, two futures of each",
        "interpolation.gif": "five frames between five and five",
    }


def draw_loss(run: Path, picture: Path) -> None:
    """The curve of the training, from what it told TensorBoard."""
    from matplotlib import pyplot
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    points = {}
    for file in sorted(run.glob("logs/**/events*")):
        events = EventAccumulator(str(file))
        events.Reload()
        if "loss" in events.Tags()["scalars"]:
            points |= {
                event.step: event.value for event in events.Scalars("loss")
            }  # the last start says how it went on
    figure, axes = pyplot.subplots(figsize=(6, 3))
    axes.plot(list(points), list(points.values()), color="teal")
    axes.set(
        xlabel="updates", ylabel="loss", yscale="log", title="mean squared error of clean frames, all noise levels"
    )
    axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(picture, dpi=100)


def evaluate(folder: Path, name: str, output: Path, num_clips: int | None) -> Path:
    """By one of the protocols."""
    protocol, *flags = map(str, PROTOCOLS[name])
    if num_clips is not None:
        flags += ["--num_clips", str(num_clips)]
    words = [
        sys.executable,
        "-m",
        "mcvd_diffusers.cli",
        "evaluate",
        folder,
        "--protocol",
        protocol,
        "--output",
        output / name,
    ]
    subprocess.run([*map(str, words), *flags], check=True)
    return output / name


def numbers_table(folder: Path) -> str:
    """The numbers of the documentation's page, from the evaluations beside the checkpoint, as Markdown."""
    lines = [
        "| task | metric | network, mean of 10 | network, best of 10 | repeating the last frame | linear blending |"
    ]
    lines.append("| --- " * 6 + "|")
    for name, task in TASKS.items():
        numbers = json.loads((folder / "evaluation" / name / "results.json").read_text())["numbers"]
        found = {(one["metric"], one["made_by"], one["samples"]): one for one in numbers}
        for metric, label in METRICS.items():
            cells = [
                _cell(found.get((metric, made_by, samples)) or found.get((metric, made_by, "10 together")))
                for made_by, samples in COLUMNS
            ]
            if metric in ("crps", "frechet over transnetv2"):
                cells[1] = ""  # of all samples together
            if any(cells):
                lines.append(f"| {task} | {label} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(number: dict | None) -> str:
    """A value with its interval, if it has one."""
    if number is None:
        return ""
    digits = 2 if number["value"] >= 1 else 4
    interval = "" if number["low"] is None else f" ({number['low']:.{digits}f} to {number['high']:.{digits}f})"
    return f"{number['value']:.{digits}f}{interval}"


def write_page(folder: Path) -> None:
    """The table, into its place in the documentation."""
    before, rest = PAGE.read_text().split(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n\n{numbers_table(folder)}\n\n{END}{rest.split(END)[1]}")


def main() -> None:
    """Export, measure, draw, write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run", type=Path, help="folder of the run")
    parser.add_argument("output", type=Path, help="folder to make")
    parser.add_argument("--evaluations", type=Path, required=True, help="folder for the evaluations")
    parser.add_argument("--num_clips", type=int, help="fewer clips, to try it out")
    arguments = parser.parse_args()
    folder = arguments.output
    export_folder(arguments.run, folder, variant="ema", dtype="float16")
    samples = draw(folder)
    draw_loss(arguments.run, folder / "loss.png")
    facts = read_facts(folder)
    facts.samples = samples | {"loss.png": "the loss of the training"}
    facts.model_license = "apache-2.0"
    write_card(folder, facts)
    for name in PROTOCOLS:
        found = evaluate(folder, name, arguments.evaluations, arguments.num_clips)
        add_evaluation(folder, found, name)
    write_card(folder, read_facts(folder))
    write_page(folder)


if __name__ == "__main__":
    main()
