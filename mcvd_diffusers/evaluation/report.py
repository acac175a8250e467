"""Numbers -> files for people: a table, JSON, plots, and the best, the median and the worst video."""

import contextlib
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import yaml

from mcvd_diffusers.atomic import whole_file
from mcvd_diffusers.metrics import mean_interval, paired_difference_interval
from mcvd_diffusers.visualization import save_comparison_gif

from .results import Number, Results, ResultsError, to_json


COLORS = {"model": "#1f77b4"}  # baselines take greys
BASELINE_COLORS = ("#7f7f7f", "#bcbd22")
NAMES = {"psnr": "PSNR of the mean error (dB)", "ssim": "SSIM", "lpips": "LPIPS"}
ARROWS = {"higher": " \u2191", "lower": " \u2193", "": ""}  # which direction is better


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
        with whole_file(output / name) as partial:
            partial.write_text(text, encoding="utf-8")
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
        interval = number.shown_interval(to=" .. ")
        std = "" if number.std is None else f"{number.std:.2g}"
        clips = f"{number.num_clips} ({number.num_videos})"
        metric = number.metric + (f" ({number.unit})" if number.unit else "") + ARROWS[number.better]
        rows.append((metric, number.made_by, number.samples, number.shown_value(), interval, std, clips))
        reasons = [number.note] if number.note else []
        reasons += [number.interval] if number.low is None and number.interval != "none" else []
        notes += [f"{number.metric} of {number.made_by}: {reason}" for reason in reasons]
    lines = _aligned(rows)
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
    return "\n".join(
        [heading(results), "", *lines, "", *against_baselines(results)]
        + [*_units_of_numbers(results), *intervals, *dict.fromkeys(notes)]
    )


def _units_of_numbers(results: Results) -> list[str]:
    """Which numbers are in which units, if the model's are not those of pictures; `results.md` has it in the definitions."""
    protocol, (lows, highs) = results.protocol, results.settings["model"]["value_range"]
    if {*lows} == {0} and {*highs} == {1}:
        return []
    scores = [x for x in protocol.ensemble_metrics if x in ("crps", "fair_crps", "energy_score")]
    shares = results.settings["ensemble_unit"]
    parts = [f"{', '.join(protocol.metrics)}: of values brought to [0, 1]"] if protocol.metrics else []
    parts += [f"{', '.join(scores)}: in {f'shares {shares}' if shares else 'the units of the data'}"] if scores else []
    return [f"units of {'; '.join(parts)}"] if parts else []


def against_baselines(results: Results) -> list[str]:
    """
    In which metrics the model is better than what needs no network, clip by clip.

    Args:
        results ([`Results`]): What to report.

    Returns:
        `list[str]`: A line for each baseline.
    """
    lines, groups = [], results.groups()
    for baseline in results.makers()[1:]:
        verdicts: dict[str, list[str]] = {}
        for metric in results.protocol.metrics:
            one, other = (
                next(number for number in results.numbers() if (number.metric, number.made_by) == (metric, made_by))
                for made_by in ("model", baseline)
            )
            values = [results.per_clip(metric, x.samples, x.made_by) for x in (one, other)]
            if values[0] is None or None in (one.value, other.value):
                continue
            try:
                interval = paired_difference_interval(*values, groups)
            except ValueError:  # clips of a single video
                continue
            verdict = _verdict(interval.low, interval.high, one.better, "better in", "worse in", "not told apart in")
            verdicts.setdefault(verdict, []).append(f"{metric} ({one.samples})" if one.samples != "1" else metric)
        parts = [f"{verdict} {', '.join(metrics)}" for verdict, metrics in sorted(verdicts.items())]
        if parts:
            lines.append(f"against {baseline}, clip by clip: {'; '.join(parts)}")
    return lines


def _guider(settings: dict) -> str:
    more = [f"{name}={value}" for name, value in settings.items() if name != "name"]
    return f"{settings['name']}({', '.join(more)})"


def _verdict(low: float, high: float, better: str, first: str, second: str, neither: str) -> str:
    """Which of two is better, if the interval of their difference leaves out 0."""
    is_higher, is_lower = low > 0, high < 0
    if not is_higher and not is_lower:
        return neither
    return first if is_higher == (better == "higher") else second


def _aligned(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    return ["  ".join(f"{cell:{width}}" for cell, width in zip(row, widths)).rstrip() for row in rows]


def as_comparison(first: Results, second: Results, rows: list[tuple[Number, Number, dict]]) -> str:
    """
    Two models beside each other, for a terminal.

    Args:
        first, second ([`Results`]): What was compared.
        rows (`list[tuple[Number, Number, dict]]`): Of [`compare`].

    Returns:
        `str`: Lines of text.
    """
    former = heading(first).splitlines()
    lines = ["first:", *former, "", "second, where it differs:"]
    lines += [line for line in heading(second).splitlines() if line not in former] or ["nothing"]
    cells = [("metric", "samples", "first", "second", "first - second", "its 95 % interval, clip by clip", "")]
    for one, other, difference in rows:
        value, low, high = (difference[name] for name in ("value", "low", "high"))
        words = ("first is better", "second is better", "no difference is shown")
        verdict = "" if low is None or value is None else _verdict(low, high, one.better, *words)
        interval = "none: one number for all clips" if low is None else f"{low:+.4g} .. {high:+.4g}"
        shown = "not defined" if value is None else f"{value:+.4g}"
        metric = one.metric + ARROWS[one.better]
        cells.append((metric, one.samples, one.shown_value(), other.shown_value(), shown, interval, verdict))
    return "\n".join([*lines, "", *_aligned(cells)])


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
    if "guider" in sampler:
        sampling += f", guided by {_guider(sampler['guider'])}"
    if "frame_schedule" in sampler:
        sampling += f", longer videos by the frame schedule {sampler['frame_schedule']}"
    if "replacement" in sampler:
        sampling += f", given frames put in {sampler['replacement']}"
    if "reconstruction_guidance" in sampler:
        sampling += f", reconstruction guidance {sampler['reconstruction_guidance']:g}"
    sampling += ", with the original's final denoising call" * sampler["final_denoise"]
    read = [
        f"{model[f'num_{side}_frames_read']} of {getattr(protocol, f'num_{side}_frames')} {side} frames"
        for side in ("past", "future")
        if getattr(protocol, f"num_{side}_frames")
    ]
    num_blocks = -(-protocol.num_frames // model["num_frames_of_a_block"])
    size = model["num_frames_of_a_block"]
    blocks = (
        f"{num_blocks} blocks of {size} frames, each after the other"
        if num_blocks > 1
        else f"one block of {size} frames"
    )
    beyond = data["share_of_values_beyond_range"]
    versions = ", ".join(f"{name} {number}" for name, number in settings["versions"].items())
    skipped = data["num_short_videos_skipped"]
    return "\n".join(
        [
            f"protocol  {protocol.label}: {protocol.title}",
            f"model     {model['name']}, {model['num_parameters']:,} parameters, weights {model['weights_sha256'][:12]},"
            f" {model['dtype']}; units of the data: {model['units']}",
            f"reads     {' and '.join(read) or 'nothing'} that are given; makes {blocks}",
            f"sampler   {sampling}; seed {sampler['seed']}; batches of {sampler['batch_size']}",
            f"data      {data['description']}: {data['num_clips']} clips of {data['num_videos']} videos"
            + (f"; {skipped} too short, left out" if skipped else "")
            + (f"; {beyond:.2%} of the values lie beyond the model's range and are cut off" if beyond else ""),
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
        interval = number.shown_interval(5)
        std = "" if number.std is None else f"{number.std:.4g}"
        value = f"{number.shown_value()}{f' {number.unit}' if number.unit and number.value is not None else ''}"
        metric = number.metric + ARROWS[number.better]
        cells = (metric, number.made_by, number.samples, value, interval, number.interval, std)
        lines.append("| " + " | ".join([*cells, f"{number.num_clips} ({number.num_videos})", number.note]) + " |")
    lines += ["", *(f"{line}." for line in against_baselines(results))]
    definitions = dict.fromkeys(f"- `{number.metric}`: {number.definition}." for number in results.numbers())
    lines += ["", "What the metrics are:", "", *definitions]
    lines += ["- std: standard deviation over clips, dividing by their number.", "", "Videos:", ""]
    for shown in results.chosen_videos():
        value = "" if shown["value"] is None else f", {shown['metric']} {shown['value']:.5g}"
        where = f"clip {shown['clip']} ({shown['video']}, from frame {shown['start']}), sample {shown['sample']}"
        lines.append(f"- `{shown['file']}`: {where}{value}.")
    protocol = yaml.safe_dump(results.protocol.to_dict(), sort_keys=False, allow_unicode=True, width=120)
    lines += [
        "",
        f"The protocol (SHA-256 of what is measured: {results.protocol.digest}):",
        "",
        "```yaml",
        protocol,
        "```",
    ]
    return "\n".join(lines).rstrip() + "\n"


def save_videos(output: Path, results: Results, videos_of: Callable[[int, int], tuple[dict, list[bool]]]) -> list[str]:
    """
    Writes the videos of [`~Results.chosen_videos`] as GIFs.

    Args:
        output (`Path`): An existing folder; what is there already is of the same evaluation, and left.
        results ([`Results`]): What was measured.
        videos_of (`Callable`): Clip, sample -> (label -> video `(1, T, C, H, W)` in `[0, 1]`, which frames were given).

    Returns:
        `list[str]`: Names of the files.
    """
    names = []
    for chosen in results.chosen_videos():
        names.append(chosen["file"])
        if not (output / chosen["file"]).is_file():
            columns, is_given = videos_of(chosen["clip"], chosen["sample"])
            with whole_file(output / chosen["file"]) as partial:
                save_comparison_gif(partial, columns, is_given)
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
    """Each metric against the number of the frame: mean over clips and samples, with its 95 % interval."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    protocol, groups = results.protocol, results.groups()
    is_psnr = any(metric == "mse" or metric.startswith("psnr") for metric in protocol.metrics)
    metrics = ["psnr"] * is_psnr + [metric for metric in ("ssim", "lpips") if metric in protocol.metrics]
    figure = Figure(figsize=(4.4 * len(metrics), 3.8), layout="constrained")
    frames = np.arange(1, protocol.num_frames + 1)
    for axes, metric in zip(figure.subplots(1, len(metrics), squeeze=False)[0], metrics):
        baselines = iter(BASELINE_COLORS)
        for made_by in results.makers():
            values = results.per_frame("mse" if metric == "psnr" else metric, made_by).mean(axis=1)  # (clips, frames)
            curves = [values.mean(axis=0)]
            if len(set(groups)) > 1:
                intervals = [mean_interval(frame, groups, num_resamples=1000) for frame in values.T]
                curves += [np.array([x.low for x in intervals]), np.array([x.high for x in intervals])]
            if metric == "psnr":  # of the mean error, which is finite also where a frame is met exactly
                curves = [-10 * np.log10(np.where(curve > 0, curve, np.nan)) for curve in curves]
            color = COLORS.get(made_by) or next(baselines)
            axes.plot(frames, curves[0], color=color, label=made_by.replace("_", " "), marker=".", markersize=4)
            if len(curves) > 1:
                axes.fill_between(frames, *curves[1:], color=color, alpha=0.2, linewidth=0)
        axes.set_xlabel("predicted frame")
        axes.set_ylabel(NAMES[metric])
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
    figure.axes[0].legend(fontsize="small")
    count = protocol.samples_per_clip
    of = f", mean of {count} samples" if count > 1 else ""
    num_clips = results.settings["data"]["num_clips"]
    figure.suptitle(f"{protocol.label}: {num_clips} clips{of}; bands: 95 % intervals", fontsize="medium")
    return figure


def _rank_figure(results: Results):
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    shares = results.rank_shares()
    figure = Figure(figsize=(4.8, 3.4), layout="constrained")
    axes = figure.subplots()
    axes.bar(range(len(shares)), shares, color=COLORS["model"])
    axes.axhline(1 / len(shares), color="black", linewidth=1, linestyle="--", label="calibrated")
    axes.set_xlabel(f"rank of the truth among {len(shares) - 1} samples (of equal values: drawn)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylabel("share of pixels")
    axes.legend(fontsize="small")
    axes.set_title(results.protocol.label, fontsize="medium")
    return figure


def _save_figure(path: Path, figure) -> None:
    # Without a date or version inside, the same numbers give the same file.
    with whole_file(path) as partial:
        figure.savefig(partial, dpi=120, metadata={"Software": None})


def _without_ranks(results: Results) -> list[Number]:
    return [number for number in results.numbers() if number.metric != "rank_histogram"]


def check_report(results: Results, folder: Path) -> bool:
    """
    Compare `results.json` and `results.md` beside results with what these give.

    Args:
        results ([`Results`]): The results.
        folder (`Path`): Where the two files may lie.

    Returns:
        `bool`: Whether there is a `results.json`.

    Raises:
        [`ResultsError`]: If one of them says something else.
    """
    path = folder / "results.json"
    try:
        stated = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return False
    except (ValueError, RecursionError) as error:
        raise ResultsError(f"{path} does not say what the results are: it is no JSON ({error}).") from error
    stated = stated if isinstance(stated, dict) else {}
    cost = stated.pop("cost", None)  # what it took is not in the results
    computed = json.loads(json.dumps(to_json(results)))
    computed.pop("cost")
    different = [
        f"{place} is {said!r} there, and {ours!r} computed" for place, said, ours in _differences("", stated, computed)
    ]
    if not different and (folder / "results.md").is_file():
        with contextlib.suppress(KeyError, TypeError, ValueError):  # a cost that was changed
            if (folder / "results.md").read_text(encoding="utf-8") != as_markdown(results, cost=cost):
                different = ["results.md beside it is another text than the results give"]
    if different:
        more = f" and {len(different) - 5} more" if len(different) > 5 else ""
        raise ResultsError(
            f"{path} does not say what the results are: {'; '.join(different[:5])}{more}. It was changed, or is of another"
            " evaluation."
        )
    return True


def _differences(place: str, said, computed) -> Iterator[tuple[str, object, object]]:
    """Where two structures of plain JSON differ: the place, and what stands there in each."""
    if isinstance(said, dict) and isinstance(computed, dict):
        for name in sorted({*map(str, said), *computed}):
            yield from _differences(f"{place}.{name}" if place else name, said.get(name), computed.get(name))
    elif isinstance(said, list) and isinstance(computed, list) and len(said) == len(computed):
        for number, (one, other) in enumerate(zip(said, computed)):
            yield from _differences(f"{place}[{number}]", one, other)
    elif not _is_same(said, computed):
        yield place, said, computed


def _is_same(said, computed) -> bool:
    numbers = [isinstance(x, (int, float)) and not isinstance(x, bool) for x in (said, computed)]
    # Another machine's linear algebra rounds distances otherwise.
    return math.isclose(said, computed, rel_tol=1e-6, abs_tol=1e-9) if all(numbers) else said == computed
