"""Rows -> numbers: a file of results, what it says, and whether it is what was written.

The parquet file holds everything: a row for each video (`scoring.py` has the columns), and in its metadata the protocol, the
model, the sampler and a SHA-256 of both, so that each number can be computed again from the file alone, and a change by
hand is noticed. (It tells accidents and edits, not forgery: whoever can compute a hash can write another.)
"""

import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from mcvd_diffusers.atomic import whole_file
from mcvd_diffusers.metrics import (
    FeatureMoments,
    distance_interval,
    frechet_distance,
    mean_interval,
    normal_interval,
    paired_difference_interval,
    polynomial_mmd,
    psnr_of_mse,
    spread_skill_ratio,
)
from mcvd_diffusers.protocols import Protocol

from .scoring import COLUMNS


FORMAT = 1
# What a file may take in memory: so many bytes, or so many times its size.
MOST_BYTES, MOST_TIMES = 2**26, 64
METADATA_KEY = b"mcvd_diffusers"

# How often a distance is computed for its interval: enough for 95 %, and a minute for 2560 videos of 400 features.
NUM_BLOCKS = 64

NUM_SAMPLES_SHOWN = 4  # as videos, where there is no metric to choose by

HIGHER_IS_BETTER = ("psnr_of_mean_mse", "psnr_of_video_mse", "psnr_frame_mean", "ssim")
UNITS = dict.fromkeys(("psnr_of_mean_mse", "psnr_of_video_mse", "psnr_frame_mean"), "dB")

DEFINITIONS = {
    "mse": "mean squared error over all pixels, channels and frames; values in [0, 1]",
    "psnr_of_mean_mse": "PSNR of the mean squared error over all clips: finite, too, where a clip is met exactly",
    "psnr_of_video_mse": "PSNR of each video's mean squared error, then the mean over clips; values in [0, 1]",
    "psnr_frame_mean": "mean over frames of each frame's PSNR, then over clips; values in [0, 1]",
    "ssim": "SSIM (Gaussian window of 11, sigma 1.5), mean over frames and clips",
    "lpips": "LPIPS, mean over frames and clips",
    "crps": "continuous ranked probability score of the ensemble at each pixel",
    "fair_crps": "CRPS for an ensemble of infinite size (Ferro 2014)",
    "energy_score": "energy score of the ensemble of whole videos",
    "spread_skill_ratio": "root of (M + 1) / M times the mean variance over the mean squared error of the mean",
    "rank_histogram": "share of pixels at which the truth has this rank among the M samples (ranks of equal values are drawn); flat is"
    " 1 / (M + 1)",
    "frechet": "Frechet distance between the features of all made and all true videos",
    "mmd": "100 times the squared MMD, with the kernel (x.y / D)^2, as JEDi, between made and true videos",
}


class ResultsError(ValueError):
    """Results that are not what was written, or that must not be compared."""


@dataclass(frozen=True)
class Number:
    """
    One number, with all that it needs to be understood.

    Args:
        metric (`str`): Such as `"psnr_of_video_mse"`, `"fvd"`.
        made_by (`str`): `"model"`, or the name of a baseline.
        samples (`str`): What counts of several samples: `"best of 10"`, `"mean of 10"`, `"1"`, `"10 together"`.
        value (`float` or `None`): The number; `None` if it cannot be computed, and `note` says why.
        low, high (`float`, *optional*): Its interval of 95 %.
        interval (`str`): How that was made.
        std (`float`, *optional*): Standard deviation over clips (dividing by their number).
        normal_half_width (`float`, *optional*): The 95 % interval as MCVD's code has it: 1.96 standard errors.
        num_clips, num_videos, num_samples (`int`): Clips, different source videos, and made videos that went in.
        protocol (`str`): The protocol's label.
        definition (`str`): What the metric is.
        unit (`str`): Such as `"dB"`; empty for none.
        better (`str`): `"higher"`, `"lower"`, or empty.
        note (`str`): What else has to be known.
    """

    metric: str
    made_by: str
    samples: str
    value: float | None
    low: float | None
    high: float | None
    interval: str
    std: float | None
    normal_half_width: float | None
    num_clips: int
    num_videos: int
    num_samples: int
    protocol: str
    definition: str
    unit: str = ""
    better: str = ""
    note: str = ""

    def shown_interval(self, digits: int = 4, to: str = " to ") -> str:
        """The ends, if there are any; the decibels of an error that may be 0 have no upper one."""
        if self.low is None:
            return ""
        return (
            f"above {self.low:.{digits}g}" if self.high is None else f"{self.low:.{digits}g}{to}{self.high:.{digits}g}"
        )

    def __str__(self) -> str:
        value = f"{self.shown_value()} {self.unit}".strip()
        interval = f" (95 %: {self.shown_interval()})" if self.shown_interval() else ""
        note = f" [{self.note}]" if self.note else ""
        return (
            f"{self.metric} of {self.made_by}, {self.samples}: {value}{interval}, {self.num_clips} clips,"
            f" {self.protocol}{note}"
        )

    def shown_value(self) -> str:
        """The value for people, or why there is none."""
        return "not defined" if self.value is None else f"{self.value:.5g}"


class Results:
    """
    The results of one evaluation. Made by [`~Results.read`] or [`write_results`].

    Args:
        table (`pyarrow.Table`): A row for each video.
        settings (`dict`): Protocol, model, sampler, versions.
    """

    def __init__(self, table, settings: dict) -> None:
        self.table, self.settings = table, settings
        fields = {name: tuple(x) if isinstance(x, list) else x for name, x in settings["protocol"].items()}
        self.protocol = Protocol(**fields)
        self._numbers: list[Number] | None = None

    @classmethod
    def read(cls, path: str | os.PathLike) -> "Results":
        """
        Reads a file, and checks that it is what was written.

        Args:
            path (`str` or `os.PathLike`): A `results.parquet`.

        Returns:
            [`Results`]: What it holds.

        Raises:
            [`ResultsError`]: If it is no such file, or was changed after it was written.
        """
        try:
            path = Path(path).expanduser()
        except RuntimeError as error:
            raise ResultsError(f"{path} does not exist: {error}") from error
        if path.is_dir() and (path / "results.parquet").is_file():
            path = path / "results.parquet"
        if not path.exists() or path.is_dir():
            why = (
                "is a folder without results.parquet: its evaluation has not finished"
                if path.is_dir()
                else "does not exist"
            )
            raise ResultsError(f"{path} {why}.")
        try:
            table = _read_table(path)
            metadata = json.loads((table.schema.metadata or {})[METADATA_KEY])
            settings, digest = metadata["settings"], metadata["sha256"]
            is_as_written = table.schema.remove_metadata().equals(_schema(len(settings["networks"])))
        except KeyError as error:
            raise ResultsError(
                f"{path} has no record of its protocol and of what was written: it is not a file of `mcvd-diffusers evaluate`,"
                " or was changed by a program that drops such records."
            ) from error
        except (OSError, ValueError, TypeError, AttributeError, RecursionError, NotImplementedError) as error:
            raise ResultsError(f"{path} cannot be read as results: {error}") from error
        if metadata.get("format") != FORMAT:
            raise ResultsError(
                f"{path} has format {metadata.get('format')!r}, and this version reads {FORMAT}: use the version that wrote it."
            )
        if not is_as_written or digest_of(table, settings) != digest:
            raise ResultsError(
                f"{path} was changed after it was written: its content does not have the SHA-256 that it states. Evaluate again,"
                " or take the original file."
            )
        return cls(table, settings)

    def column(self, name: str, made_by: str) -> list:
        """
        A column of the rows of one maker, in the order of clips and samples.

        Args:
            name (`str`): Of the column.
            made_by (`str`): As in the file.

        Returns:
            `list`: Plain values.
        """
        import pyarrow.compute as pc

        return self.table.filter(pc.equal(self.table["made_by"], made_by))[name].to_pylist()

    def _matrix(self, name: str, made_by: str) -> np.ndarray:
        """A column of lists of one length, (rows, entries), float64."""
        import pyarrow.compute as pc

        values = self.table.filter(pc.equal(self.table["made_by"], made_by))[name].combine_chunks()
        return values.flatten().to_numpy(zero_copy_only=False).astype(np.float64).reshape(len(values), -1)

    def makers(self) -> list[str]:
        """
        Who made videos that are judged.

        Returns:
            `list[str]`: `"model"`, then the baselines.
        """
        found = dict.fromkeys(self.table["made_by"].to_pylist())
        return [name for name in found if name not in ("truth", "ensemble")]

    def per_sample(self, metric: str, made_by: str) -> np.ndarray:
        """
        A metric of each video.

        Args:
            metric (`str`): One of the protocol's `metrics`.
            made_by (`str`): `"model"`, or a baseline.

        Returns:
            `np.ndarray` of shape `(clips, samples)`, float64: The values; infinite PSNR where a frame is met exactly.
        """
        frames = self.per_frame(metric, made_by)
        if metric == "psnr_of_mean_mse":
            raise ValueError("`psnr_of_mean_mse` is of all clips together: single videos have none.")
        if metric == "psnr_of_video_mse":
            return _decibels(self.per_frame("mse", made_by).mean(axis=2))
        return frames.mean(axis=2)

    def per_frame(self, metric: str, made_by: str) -> np.ndarray:
        """
        A metric of each frame.

        Args:
            metric (`str`): One of the protocol's `metrics`. Both kinds of PSNR are the same for a single frame.
            made_by (`str`): `"model"`, or a baseline.

        Returns:
            `np.ndarray` of shape `(clips, samples, frames)`, float64: The values.
        """
        is_psnr = metric.startswith("psnr")
        values = self._matrix("mse" if is_psnr else metric, made_by)
        values = values.reshape(self._num_clips(), -1, values.shape[-1])
        return _decibels(values) if is_psnr else values

    def per_clip(self, metric: str, samples: str, made_by: str = "model") -> np.ndarray | None:
        """
        A metric for each clip: what a number is the mean of.

        Args:
            metric (`str`): One of the protocol's metrics.
            samples (`str`): Of the number: `"best of 10"`, `"mean of 10"`, ...
            made_by (`str`, *optional*, defaults to `"model"`): Or a baseline.

        Returns:
            `np.ndarray` of shape `(clips,)` or `None`: `None` for what is a number of all clips together only.
        """
        if metric in self.protocol.metrics and metric != "psnr_of_mean_mse":
            values = self.per_sample(metric, made_by)
            if samples.startswith("best"):
                return values.max(axis=1) if metric in HIGHER_IS_BETTER else values.min(axis=1)
            return values.mean(axis=1)
        if metric in ("crps", "fair_crps", "energy_score"):
            values = np.array(self.column(metric, "ensemble"), dtype=np.float64)
            return values if values.ndim == 1 else values.mean(axis=1)
        return None

    def groups(self) -> list[str]:
        """
        The source video of each clip: clips of one video are not independent.

        Returns:
            `list[str]`: A name for each clip.
        """
        first = [sample == 0 for sample in self.column("sample", "model")]
        return [name for name, is_first in zip(self.column("video", "model"), first) if is_first]

    def chosen_videos(self) -> list[dict]:
        """
        The best, the median and the worst video by the first metric of single videos, or, without one, the first samples.

        Returns:
            `list[dict]`: `"file"`, and `"clip"`, `"video"`, `"start"`, `"sample"`, `"metric"`, `"value"` of what it shows;
            the value is `None` where there is no metric, and where it is infinite.
        """
        metric = next((name for name in self.protocol.metrics if name != "psnr_of_mean_mse"), None)
        videos, starts, samples = (self.column(name, "model") for name in ("video", "start", "sample"))
        count = self.protocol.samples_per_clip
        if metric is None:
            names = [f"sample_{clip}.gif" for clip in range(min(NUM_SAMPLES_SHOWN, self._num_clips()))]
            places, values = [clip * count for clip in range(len(names))], None
        else:
            names, values = ["best.gif", "median.gif", "worst.gif"], self.per_sample(metric, "model").ravel()
            order = np.argsort(-values if metric in HIGHER_IS_BETTER else values, kind="stable")
            places = [int(order[place]) for place in (0, len(order) // 2, len(order) - 1)]
        return [
            {
                "file": name,
                "clip": place // count,
                "video": videos[place],
                "start": starts[place],
                "sample": samples[place],
                "metric": metric,
                "value": None if values is None or not math.isfinite(values[place]) else float(values[place]),
            }
            for name, place in zip(names, places)
        ]

    def rank_shares(self) -> np.ndarray:
        """
        The rank histogram.

        Returns:
            `np.ndarray` of shape `(samples + 1,)`: Share of the pixels of all clips at which the truth has each rank.
        """
        counts = np.array(self.column("rank_counts", "ensemble"), dtype=np.float64).sum(axis=0)
        return counts / counts.sum()

    def numbers(self) -> list[Number]:
        """
        Every number of the protocol, computed from the rows.

        Returns:
            `list[Number]`: For the model and each baseline.
        """
        if self._numbers is None:
            self._numbers = [*self._quality(), *self._ensemble(), *self._distances()]
        return self._numbers

    # ------------------------------------------------------------------------------------------------------------

    def _num_clips(self) -> int:
        return len(self.groups())

    def _number(self, metric: str, made_by: str, samples: str, values: np.ndarray, **more) -> Number:
        """The mean of one value for each clip."""
        groups = self.groups()
        common = {
            "metric": metric,
            "made_by": made_by,
            "samples": samples,
            "num_clips": len(groups),
            "num_videos": len(set(groups)),
            "num_samples": len(self.column("sample", made_by)),
            "protocol": self.protocol.label,
            "definition": self._definition(metric),
            "unit": UNITS.get(metric, ""),
            "better": "higher" if metric in HIGHER_IS_BETTER else "lower",
        }
        if not np.isfinite(values).all():
            what = "have a frame" if metric == "psnr_frame_mean" else "have a video"
            note = f"{int((~np.isfinite(values)).sum())} of {len(values)} clips {what} that is met exactly: infinite decibels"
            none = dict.fromkeys(("value", "low", "high", "std", "normal_half_width"))
            return Number(**{**common, **none, "interval": "none", "note": note, **more})
        mean, std, half_width = normal_interval(values)
        low, high, method = _interval(lambda: mean_interval(values, groups))
        return Number(
            **{
                **common,
                "value": mean,
                "low": low,
                "high": high,
                "interval": method,
                "std": std,
                "normal_half_width": half_width,
                **more,
            }
        )

    def _quality(self) -> list[Number]:
        protocol, numbers = self.protocol, []
        for metric in protocol.metrics:
            for made_by in self.makers():
                if metric == "psnr_of_mean_mse":
                    numbers += self._psnr_of_mean_mse(made_by)
                    continue
                values = self.per_sample(metric, made_by)
                count = values.shape[1]
                if count > 1 and protocol.best_of == "each_metric":
                    best = values.max(axis=1) if metric in HIGHER_IS_BETTER else values.min(axis=1)
                    numbers.append(self._number(metric, made_by, f"best of {count}", best))
                with np.errstate(invalid="ignore"):
                    mean = values.mean(axis=1)
                numbers.append(self._number(metric, made_by, "1" if count == 1 else f"mean of {count}", mean))
        return numbers

    def _psnr_of_mean_mse(self, made_by: str) -> list[Number]:
        """The numbers of the mean squared error, in decibels: the mean first, so its ends become ends."""
        values = self.per_sample("mse", made_by)
        count = values.shape[1]
        best = {f"best of {count}": values.min(axis=1)} if self.protocol.best_of == "each_metric" and count > 1 else {}
        numbers = []
        for samples, mse in {**best, "1" if count == 1 else f"mean of {count}": values.mean(axis=1)}.items():
            number = self._number("mse", made_by, samples, mse)
            value, low, high = (
                None if x is None or x <= 0 else float(_decibels(np.array(x)))
                for x in (number.value, number.low, number.high)
            )
            own = {
                "metric": "psnr_of_mean_mse",
                "value": value,
                "low": high,
                "high": low,
                "unit": "dB",
                "better": "higher",
            }
            own |= {"definition": self._definition("psnr_of_mean_mse"), "std": None, "normal_half_width": None}
            own |= {"interval": number.interval} if high is not None else {"interval": "none"}
            own |= {"note": "every video is met exactly"} if value is None else {}
            numbers.append(dataclasses.replace(number, **own))
        return numbers

    def _ensemble(self) -> list[Number]:
        wanted, count, numbers = self.protocol.ensemble_metrics, self.protocol.samples_per_clip, []
        together = f"{count} together"
        for metric in ("crps", "fair_crps", "energy_score"):
            if metric in wanted:
                numbers.append(self._number(metric, "model", together, self.per_clip(metric, together)))
        if "spread_skill_ratio" in wanted:
            variance, error = (
                np.array(self.column(name, "ensemble"), np.float64).mean(axis=1)
                for name in ("variance", "squared_error")
            )
            numbers.append(self._spread_skill(variance, error, count, together))
        if "rank_histogram" in wanted:
            counts = np.array(self.column("rank_counts", "ensemble"), dtype=np.float64)
            shares = counts / counts.sum(axis=1, keepdims=True)  # all clips have as many pixels
            for rank in range(count + 1):
                more = {"note": f"rank {rank}; flat is {1 / (count + 1):.4f}", "better": ""}
                numbers.append(self._number("rank_histogram", "model", together, shares[:, rank], **more))
        return numbers

    def _spread_skill(self, variance: np.ndarray, error: np.ndarray, count: int, together: str) -> Number:
        """Of two means over clips, so its interval is that of a ratio."""
        if not error.any():
            more = {"note": "the mean of the ensemble meets each truth exactly", "better": ""}
            return self._number("spread_skill_ratio", "model", together, np.full(len(error), np.nan), **more)
        groups, factor = self.groups(), (count + 1) / count
        low, high, method = _interval(lambda: mean_interval(variance, groups, weights=error))
        low, high = (None if x is None else math.sqrt(max(0.0, factor * x)) for x in (low, high))
        ratio = spread_skill_ratio(variance, error, num_members=count)
        own = {"value": ratio, "low": low, "high": high, "interval": method, "std": None, "normal_half_width": None}
        more = own | {"better": "", "note": "1 for a calibrated ensemble; below, it is too sure of itself"}
        return self._number("spread_skill_ratio", "model", together, variance, **more)

    def _distances(self) -> list[Number]:
        numbers = []
        for place, network in enumerate(self.settings["networks"]):
            column, distance = f"features_{place}", DISTANCES[network["distance"]]
            real = self._matrix(column, "truth")  # (N, D)
            for made_by in self.makers():
                made = self._matrix(column, made_by).reshape(len(real), -1, real.shape[1])
                numbers += self._distance(network, distance, made_by, real, made)
        return numbers

    def _distance(self, network: dict, distance: Callable, made_by: str, real: np.ndarray, made: np.ndarray):
        """Of all samples together, and, if the protocol asks for it, of each trajectory apart."""
        num_clips, count = made.shape[:2]
        given = "with" if self.protocol.given_frames_in_distances else "without"
        definition = f"{DEFINITIONS[network['distance']]}; network: {network['name']}; {given} the given frames"
        blank = dict.fromkeys(("std", "normal_half_width"))
        more = {"definition": definition, "better": "lower", **blank}
        metric, zeros = self._distance_name(network), np.zeros(num_clips)
        samples = "1" if count == 1 else f"{count} together"
        if (real == real[0]).all():
            none = dict.fromkeys(("value", "low", "high"))
            none |= {
                "interval": "none",
                "note": "all true videos look the same to the network: there is no distribution",
            }
            yield self._number(metric, made_by, samples, zeros, **more, **none)
            return
        value = distance(_moments(real), _moments(made.reshape(-1, made.shape[2])))
        low, high, method = _interval(
            lambda: distance_interval(distance, real, made, self.groups(), num_blocks=NUM_BLOCKS)
        )
        note = f"{num_clips * count} made against {num_clips} true videos; {network['name']}; {given} the given frames"
        if num_clips <= real.shape[1]:
            note += f"; fewer clips than its {real.shape[1]} features: biased upwards, compare at equal numbers only"
        own = {"value": value, "low": low, "high": high, "interval": method, "note": note}
        yield self._number(metric, made_by, samples, zeros, **more | own)
        if self.protocol.distance_per_trajectory and count > 1:
            values = np.array([distance(_moments(real), _moments(made[:, s])) for s in range(count)])
            mean, std, half_width = normal_interval(values)
            own = {"value": mean, "std": std, "normal_half_width": half_width, "note": note}
            own["note"] = note.replace(f"{num_clips * count} made", f"{count} times {num_clips} made")
            own |= {"low": mean - half_width, "high": mean + half_width}
            own["interval"] = f"normal over {count} trajectories, as in the original: not over clips"
            yield self._number(metric, made_by, f"mean over {count} trajectories", zeros, **more | own)

    def _distance_name(self, network: dict) -> str:
        """FVD only over I3D; other networks stand in the name, whole where two are of one kind."""
        if network["is_i3d"]:
            return "fvd"
        names = [other["name"] for other in self.settings["networks"]]
        short = network["name"].split(",")[0]
        is_alone = sum(name.split(",")[0] == short for name in names) == 1
        return f"{network['distance']} over {short if is_alone else network['name']}"

    def _clip_hashes(self) -> list[str]:
        return self.column("clip_sha256", "model")

    def _definition(self, metric: str) -> str:
        definition = DEFINITIONS.get(metric, "")
        if metric == "ssim":
            definition += f"; quantisation {self.protocol.ssim_quantisation}, color {self.protocol.ssim_color}"
        unit = self.settings["ensemble_unit"]
        if unit and metric == "spread_skill_ratio":
            definition += f"; of shares {unit}"
        if metric in ("crps", "fair_crps", "energy_score"):
            definition += f"; in shares {unit}" if unit else "; in the model's units"
        if metric == "lpips":
            definition += f"; {self.settings['lpips']}"
        return definition


DISTANCES = {"frechet": frechet_distance, "mmd": polynomial_mmd}


def compare(first: Results, second: Results) -> list[tuple[Number, Number, "dict"]]:
    """
    Two models on the same clips.

    Args:
        first, second ([`Results`]): Of one protocol, on the same data.

    Returns:
        `list[tuple[Number, Number, dict]]`: For each metric both numbers, and by how much the first exceeds the second:
        `value`, and, where each clip has a number of its own, `low`, `high`, `interval`: clip by clip, so that what is due to
        the clips cancels.

    Raises:
        [`ResultsError`]: If the protocols or the clips differ: such numbers must not be compared.
    """
    if first.protocol.digest != second.protocol.digest:
        labels = [results.protocol.label for results in (first, second)]
        how = f"{labels[0]} and {labels[1]}" if labels[0] != labels[1] else f"two that are both called {labels[0]}"
        raise ResultsError(
            f"These are numbers of different protocols, {how}, and say nothing about each other: evaluate both models by"
            " one."
        )
    if first._clip_hashes() != second._clip_hashes():
        raise ResultsError(
            f"Both were evaluated by {first.protocol.label}, but on different clips, so their numbers do not compare: use the"
            " same data."
        )
    ranges = [results.settings["model"]["value_range"] for results in (first, second)]
    if ranges[0] != ranges[1]:
        raise ResultsError(
            f"The models work in different ranges of values, {ranges[0]} and {ranges[1]}, and errors are measured in shares of"
            " them: these numbers do not compare."
        )
    if [n["name"] for n in first.settings["networks"]] != [n["name"] for n in second.settings["networks"]]:
        raise ResultsError("The distances of the two are over different feature networks, and do not compare.")
    rows = []
    for one, other in zip(first.numbers(), second.numbers()):
        if one.made_by != "model" or one.metric == "rank_histogram" or one.samples.startswith("mean over"):
            continue
        difference = {"value": None, "low": None, "high": None, "interval": "none"}
        if one.value is not None and other.value is not None:
            values = [results.per_clip(one.metric, one.samples) for results in (first, second)]
            difference["value"] = one.value - other.value
            if values[0] is not None:
                ends = _interval(lambda: paired_difference_interval(*values, first.groups()))
                difference |= dict(zip(("low", "high", "interval"), ends))
        rows.append((one, other, difference))
    return rows


def write_results(path: Path, tables: list, settings: dict) -> Results:
    """
    Writes a file of results; the same rows and settings give the same bytes.

    Args:
        path (`Path`): The file; it appears when it is complete.
        tables (`list[pyarrow.Table]`): A row for each video, clip by clip.
        settings (`dict`): Protocol, model, sampler, versions; plain JSON.

    Returns:
        [`Results`]: As read back.

    Raises:
        OSError: If it cannot be written.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.concat_tables(table.replace_schema_metadata(None) for table in tables).combine_chunks()
    record = {"format": FORMAT, "settings": settings, "sha256": digest_of(table, settings)}
    table = table.replace_schema_metadata({METADATA_KEY: json.dumps(record, sort_keys=True).encode()})
    with whole_file(path, is_flushed=True) as partial:
        pq.write_table(table, partial, compression="zstd")
    return Results.read(path)


def _read_table(path: Path):
    """A table; refused before it takes memory if it is many times what its file is, as no table of measurements is."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        metadata, size = file.metadata, path.stat().st_size
        columns = [
            metadata.row_group(i).column(j)
            for i in range(metadata.num_row_groups)
            for j in range(metadata.num_columns)
        ]
        most = max(MOST_BYTES, MOST_TIMES * size)
        num_bytes = max(
            sum(column.total_uncompressed_size for column in columns), sum(column.num_values for column in columns)
        )
        batches = []
        for batch in file.iter_batches(batch_size=256) if num_bytes <= most else ():
            batches.append(batch)
            num_bytes += batch.nbytes
            if num_bytes > most:
                break
        if num_bytes > most:
            raise ValueError(f"its {size:,} bytes say that they hold more than {most:,}")
        return pa.Table.from_batches(batches, file.schema_arrow)


def _schema(num_networks: int):
    """The columns of a file of results."""
    import pyarrow as pa

    kinds = {"int32": pa.int32(), "string": pa.string(), "double": pa.float64()}
    kinds |= {"list<double>": pa.list_(pa.float64()), "list<int64>": pa.list_(pa.int64())}
    columns = {name: kinds[kind] for name, kind in COLUMNS.items()}
    columns |= {f"features_{number}": pa.list_(pa.float32()) for number in range(num_networks)}
    return pa.schema(list(columns.items()))


def make_table(rows: list[dict], *, num_networks: int):
    """
    Rows as a table with all columns, those without values included.

    Args:
        rows (`list[dict]`): Columns -> values.
        num_networks (`int`): How many columns of features there are.

    Returns:
        `pyarrow.Table`: The table.
    """
    import pyarrow as pa

    return pa.Table.from_pylist(rows, schema=_schema(num_networks))


def digest_of(table, settings: dict) -> str:
    """
    SHA-256 of the values of a table and of settings, whatever the file's form.

    Args:
        table (`pyarrow.Table`): The rows.
        settings (`dict`): Plain JSON.

    Returns:
        `str`: Hexadecimal.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for name in table.column_names:
        values = table[name].combine_chunks()
        is_list = pa.types.is_list(values.type)  # whose entries have another name once they were in a file
        kind = f"list of {values.type.value_type}" if is_list else str(values.type)
        digest.update(f"\n{name}: {kind}, {len(values)}\n".encode())
        digest.update(np.ascontiguousarray(pc.is_null(values).to_numpy(zero_copy_only=False)).tobytes())
        if is_list:
            lengths = pc.fill_null(pc.list_value_length(values), -1)
            digest.update(lengths.to_numpy(zero_copy_only=False).astype(np.int64).tobytes())
            values = values.flatten()
            digest.update(np.ascontiguousarray(pc.is_null(values).to_numpy(zero_copy_only=False)).tobytes())
        if pa.types.is_string(values.type):
            digest.update(json.dumps(values.to_pylist()).encode())
        else:
            numbers = pc.fill_null(values, 0).to_numpy(zero_copy_only=False)
            digest.update(np.ascontiguousarray(numbers).tobytes())
    return digest.hexdigest()


def to_json(results: Results, *, cost: dict | None = None) -> dict:
    """
    All numbers, with what they need to be understood.

    Args:
        results ([`Results`]): The results.
        cost (`dict`, *optional*): What the evaluation took.

    Returns:
        `dict`: Plain JSON.
    """
    return {
        "protocol": results.protocol.to_dict() | {"label": results.protocol.label, "sha256": results.protocol.digest},
        "numbers": [asdict(number) for number in results.numbers()],
        "videos": results.chosen_videos(),
        **{name: value for name, value in results.settings.items() if name != "protocol"},
        "cost": cost,
    }


def _interval(make: Callable) -> tuple[float | None, float | None, str]:
    """Ends and method, or why there is none: of clips from a single video nothing can be said."""
    try:
        interval = make()
    except ValueError as error:
        return None, None, f"none: {error}"
    return interval.low, interval.high, interval.method


def _moments(features: np.ndarray) -> FeatureMoments:
    moments = FeatureMoments()
    moments.update(features)
    return moments


def _decibels(mse: np.ndarray) -> np.ndarray:
    return psnr_of_mse(torch.from_numpy(np.asarray(mse, dtype=np.float64))).numpy()
