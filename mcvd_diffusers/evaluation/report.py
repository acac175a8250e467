"""Numbers -> files for people: a table, JSON, plots, and the best, the median and the worst video."""

import json
import math
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from mcvd_diffusers.visualization import save_comparison_gif

from .results import HIGHER_IS_BETTER, Number, Results, to_json


COLORS = {"model": "#1f77b4"}  # baselines take greys
BASELINE_COLORS = ("#7f7f7f", "#bcbd22")
NAMES = {
    "psnr_of_video_mse": "PSNR (dB)",
    "psnr_frame_mean": "PSNR (dB)",
    "ssim": "SSIM",
    "lpips": "LPIPS",
    "mse": "MSE",
}
NUM_GENERATED = 4  # videos in the picture of a task without a truth


def save_report(output: Path, results: Results, *, cost: dict | None = None) -> list[str]:
    """
    Writes `results.json`, `results.md`, and, where matplotlib is installed, plots.

    Args:
        output (`Path`): An existing folder; files of the same names are replaced as a whole.
        results ([`Results`]): What to report.
        cost (`dict`, *optional*): What the evaluation took.

    Returns:
        `list[str]`: Names of the files.

    Raises:
        OSError: If a file cannot be written.
    """
    texts = {
        "results.json": json.dumps(to_json(results, cost=cost), indent=2, allow_nan=False) + "\n",
        "results.md": as_markdown(results, cost=cost),
    }
    for name, text in texts.items():
        _replace(output / name, lambda partial: partial.write_text(text, encoding="utf-8"))
    return [*texts, *_save_plots(output, results)]


def as_table(results: Results) -> str:
    """
    The numbers for a terminal; each line of them stands under its protocol.

    Args:
        results ([`Results`]): What to report.

    Returns:
        `str`: Lines of text.
    """
    rows = [("metric", "of", "samples", "value", "95 % interval", "std", "clips (videos)")]
    notes = []
    for number in _without_ranks(results):
        interval = "" if number.low is None else f"{number.low:.5g} .. {number.high:.5g}"
        unit = f" {number.unit}" * bool(number.unit and number.value is not None)
        arrow = {"higher": " (higher is better)", "lower": " (lower is better)"}.get(number.better, "")
        std = "" if number.std is None else f"{number.std:.3g}"
        clips = f"{number.num_clips} ({number.num_videos})"
        value = number.shown_value() + unit
        rows.append((number.metric + arrow, number.made_by, number.samples, value, interval, std, clips))
        note = f"{number.metric}: {number.note}" if number.note else ""
        if number.low is None:
            note = f"{number.metric} of {number.made_by}: {number.note or number.interval}"
        if note and note not in notes:
            notes.append(note)
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    lines = ["  ".join(f"{cell:{width}}" for cell, width in zip(row, widths)).rstrip() for row in rows]
    lines.insert(1, "-" * len(max(lines, key=len)))
    methods: dict[str, list[str]] = {}
    for number in _without_ranks(results):
        if number.low is not None:
            names = methods.setdefault(number.interval, [])
            names += [number.metric] if number.metric not in names else []
    most = max(methods.values(), key=len, default=[])
    intervals = [
        f"intervals{'' if names is most else ' of ' + ', '.join(names)}: {method}" for method, names in methods.items()
    ]
    return "\n".join([heading(results), "", *lines, "", *intervals, *notes])


def as_comparison(first: Results, second: Results, rows: list[tuple[Number, Number, dict]]) -> str:
    """
    Two models beside each other, for a terminal.

    Args:
        first, second ([`Results`]): What was compared.
        rows (`list[tuple[Number, Number, dict]]`): Of [`compare`].

    Returns:
        `str`: Lines of text.
    """
    lines = [heading(first), "", "against", "", heading(second), ""]
    cells = [("metric", "samples", "first", "second", "first - second, clip by clip", "95 % interval", "")]
    for one, other, difference in rows:
        value, low, high = (difference[name] for name in ("value", "low", "high"))
        interval = "" if low is None else f"{low:+.4g} .. {high:+.4g}"
        verdict = ""
        if low is not None and value is not None:
            is_first = (low > 0) if one.better == "higher" else (high < 0)
            is_second = (high < 0) if one.better == "higher" else (low > 0)
            verdict = "first is better" if is_first else "second is better" if is_second else "no difference is shown"
        shown = "not defined" if value is None else f"{value:+.4g}"
        cells.append((one.metric, one.samples, one.shown_value(), other.shown_value(), shown, interval, verdict))
    widths = [max(len(row[place]) for row in cells) for place in range(len(cells[0]))]
    lines += ["  ".join(f"{cell:{width}}" for cell, width in zip(row, widths)).rstrip() for row in cells]
    return "\n".join(lines)


def heading(results: Results) -> str:
    """
    Protocol, model, sampler, data, seed: what stands above each table.

    Args:
        results ([`Results`]): What to report.

    Returns:
        `str`: Lines of text.
    """
    settings, protocol = results.settings, results.protocol
    sampler, model, data = settings["sampler"], settings["model"], settings["data"]
    sampling = f"{sampler['scheduler']}, {sampler['num_inference_steps']} steps a block"
    sampling += f", eta {sampler['eta']:g}" * bool(sampler["eta"])
    sampling += f", guidance {sampler['guidance_scale']:g}" * (sampler["guidance_scale"] != 1)
    sampling += ", with the original's final denoising call" * sampler["final_denoise"]
    versions = ", ".join(f"{name} {number}" for name, number in settings["versions"].items())
    skipped = data["num_short_videos_skipped"]
    return "\n".join(
        [
            f"protocol  {protocol.label}: {protocol.title}",
            f"model     {model['name']}, {model['num_parameters']:,} parameters, weights {model['weights_sha256'][:12]},"
            f" {model['dtype']}, values {model['units']}",
            f"sampler   {sampling}; seed {settings['seed']}; batches of {settings['batch_size']}",
            f"data      {data['description']}: {data['num_clips']} clips of {data['num_videos']} videos"
            + (f"; {skipped} too short, left out" if skipped else ""),
            f"made on   {settings['device']}; {versions}",
        ]
    )


def as_markdown(results: Results, *, cost: dict | None = None) -> str:
    """
    The numbers for a paper's appendix or a model card.

    Args:
        results ([`Results`]): What to report.
        cost (`dict`, *optional*): What the evaluation took.

    Returns:
        `str`: Markdown.
    """
    lines = [f"# {results.protocol.label}", "", results.protocol.title + ".", "", "```", heading(results)]
    if cost is not None:
        lines.append(
            f"cost      {cost['num_videos']:,} videos, {cost['network_calls']:,} network calls (one a video and step),"
            f" {cost['seconds_of_sampling']:,} s of sampling in {cost['num_processes']}"
            f" process{'' if cost['num_processes'] == 1 else 'es'},"
            f" {cost['seconds_per_video']} s a video"
        )
    lines += ["```", "", "| metric | of | samples | value | 95 % interval | how | std | clips (videos) | note |"]
    lines += ["|---|---|---|---|---|---|---|---|---|"]
    for number in _without_ranks(results):
        interval = "" if number.low is None else f"{number.low:.5g} to {number.high:.5g}"
        std = "" if number.std is None else f"{number.std:.4g}"
        value = f"{number.shown_value()} {number.unit}".strip()
        cells = (number.metric, number.made_by, number.samples, value, interval, number.interval, std)
        lines.append("| " + " | ".join([*cells, f"{number.num_clips} ({number.num_videos})", number.note]) + " |")
    definitions = dict.fromkeys(f"- `{number.metric}`: {number.definition}." for number in results.numbers())
    lines += ["", "What the metrics are:", "", *definitions, "", f"Source of the protocol: {results.protocol.source}."]
    lines += ["", *(f"- {note}" for note in results.protocol.notes)]
    return "\n".join(lines).rstrip() + "\n"


def save_videos(output: Path, results: Results, videos_of: Callable[[int], tuple[dict, list[bool]]]) -> list[str]:
    """
    Writes the best, the median and the worst video by the first metric as GIFs; of what is generated, some.

    Args:
        output (`Path`): An existing folder.
        results ([`Results`]): What was measured.
        videos_of (`Callable`): Number of a clip -> (label -> its videos `(S or 1, T, C, H, W)` in `[0, 1]`, is_given).

    Returns:
        `list[str]`: Names of the files.
    """
    metrics = results.protocol.metrics
    names = ["best.gif", "median.gif", "worst.gif"] if metrics else ["generated.gif"]
    if all((output / name).is_file() for name in names):  # of a run before; to make them again costs as much
        return names
    if not metrics:
        if results.protocol.task != "generation":
            return []
        made = [videos_of(clip) for clip in range(min(NUM_GENERATED, results.settings["data"]["num_clips"]))]
        columns = {name: torch.cat([videos[name][:1] for videos, _ in made]) for name in made[0][0]}
        _replace(output / "generated.gif", lambda partial: save_comparison_gif(partial, columns, made[0][1]))
        return ["generated.gif"]
    values = results.per_sample(metrics[0], "model")
    order = np.argsort(values, axis=None, kind="stable")
    order = order[::-1] if metrics[0] in HIGHER_IS_BETTER else order
    for name, place in zip(names, (0, len(order) // 2, len(order) - 1)):
        clip, sample = divmod(int(order[place]), values.shape[1])
        columns, is_given = videos_of(clip)
        columns = {label: videos[[sample if label == "sample" else 0]] for label, videos in columns.items()}
        _replace(output / name, lambda partial: save_comparison_gif(partial, columns, is_given))
    return names


def can_plot() -> bool:
    """
    Whether plots will be made.

    Returns:
        `bool`: Whether matplotlib is installed.
    """
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        return False
    return True


def _save_plots(output: Path, results: Results) -> list[str]:
    if not can_plot():
        return []
    names = []
    if results.protocol.metrics and results.protocol.num_frames > 1:
        _save_figure(output / "quality_by_frame.png", _quality_figure(results))
        names.append("quality_by_frame.png")
    if "rank_histogram" in results.protocol.ensemble_metrics:
        _save_figure(output / "rank_histogram.png", _rank_figure(results))
        names.append("rank_histogram.png")
    return names


def _quality_figure(results: Results):
    """Each metric against the number of the frame: mean over clips and samples, with its normal 95 % band."""
    from matplotlib.figure import Figure

    protocol = results.protocol
    metrics = [metric for metric in protocol.metrics if metric not in ("mse", "psnr_frame_mean")] or protocol.metrics[
        :1
    ]
    figure = Figure(figsize=(4.2 * len(metrics), 3.6), layout="constrained")
    frames = np.arange(1, protocol.num_frames + 1)
    for axes, metric in zip(figure.subplots(1, len(metrics), squeeze=False)[0], metrics):
        baselines = iter(BASELINE_COLORS)
        for made_by in results.makers():
            values = results.per_frame(metric, made_by)
            # A frame that is met exactly has infinite decibels: the mean is then that of the mean error.
            if metric.startswith("psnr") and not np.isfinite(values).all():
                mse = results.per_frame("mse", made_by).mean(axis=(0, 1))
                means, half_widths = -10 * np.log10(np.where(mse > 0, mse, np.nan)), np.zeros_like(mse)
            else:
                means = values.mean(axis=(0, 1))
                half_widths = 1.96 * values.mean(axis=1).std(axis=0) / math.sqrt(max(1, len(values) - 1))
            color = COLORS.get(made_by) or next(baselines)
            axes.plot(frames, means, color=color, label=made_by.replace("_", " "), marker=".", markersize=4)
            axes.fill_between(frames, means - half_widths, means + half_widths, color=color, alpha=0.2, linewidth=0)
        axes.set_xlabel("frame that is made")
        axes.set_ylabel(NAMES[metric])
        axes.grid(alpha=0.3)
    figure.axes[0].legend(fontsize="small")
    count = protocol.samples_per_clip
    of = f", mean of {count} samples" if count > 1 else ""
    figure.suptitle(f"{protocol.label}: {results.settings['data']['num_clips']} clips{of}", fontsize="medium")
    return figure


def _rank_figure(results: Results):
    from matplotlib.figure import Figure

    shares = results.rank_shares()
    figure = Figure(figsize=(4.8, 3.4), layout="constrained")
    axes = figure.subplots()
    axes.bar(range(len(shares)), shares, color=COLORS["model"])
    axes.axhline(1 / len(shares), color="black", linewidth=1, linestyle="--", label="calibrated")
    axes.set_xlabel(f"rank of the truth among {len(shares) - 1} samples")
    axes.set_ylabel("share of pixels")
    axes.legend(fontsize="small")
    axes.set_title(results.protocol.label, fontsize="medium")
    return figure


def _save_figure(path: Path, figure) -> None:
    # Without a date or version inside, the same numbers give the same file.
    _replace(path, lambda partial: figure.savefig(partial, dpi=120, metadata={"Software": None}))


def _without_ranks(results: Results) -> list[Number]:
    return [number for number in results.numbers() if number.metric != "rank_histogram"]


def _replace(path: Path, save: Callable[[Path], object]) -> None:
    """Write a file under another name first, so that under its own it is always whole."""
    partial = path.with_name(f".{path.stem}.partial{path.suffix}")
    try:
        save(partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
