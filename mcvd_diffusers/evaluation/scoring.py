"""Videos -> rows: what is measured on each video, frame by frame, before anything is averaged.

One row for each video that was judged:

| column | is |
| --- | --- |
| `clip`, `video`, `start`, `clip_sha256` | which clip, from which frame of which video; its frames' hash |
| `made_by` | `"model"`, a baseline, `"truth"`, or `"ensemble"`: all samples of the clip together |
| `sample` | number of the sample, from 0 |
| `mse`, `ssim`, `lpips` | of each frame that was made, values in `[0, 1]` |
| `crps`, `fair_crps`, `variance`, `squared_error` | of each frame, of the ensemble, in the model's units (of channels in different units: in shares of each one's range) |
| `energy_score` | of the ensemble, in the same units |
| `rank_counts` | pixels in whose ensemble the truth has rank 0, 1, ... |
| `features_0`, `features_1`, ... | what the first, second, ... feature network makes of the video |

Shapes: K clips, S samples, T frames that are made, C channels, H height, W width.
"""

from dataclasses import dataclass, field

import numpy as np
import torch

from mcvd_diffusers.metrics import (
    LPIPS,
    FeatureNetwork,
    crps,
    energy_score,
    frame_mse,
    frame_ssim,
    rank_histogram,
    spread_and_error,
)
from mcvd_diffusers.normalization import FrameNormalizer
from mcvd_diffusers.protocols import Protocol
from mcvd_diffusers.randomness import keyed_seed

from .clips import EvaluationClip


# Column -> kind of its values; those of the feature networks come after them.
COLUMNS = {
    "clip": "int32",
    "video": "string",
    "start": "int32",
    "clip_sha256": "string",
    "made_by": "string",
    "sample": "int32",
    "mse": "list<double>",
    "ssim": "list<double>",
    "lpips": "list<double>",
    "crps": "list<double>",
    "fair_crps": "list<double>",
    "variance": "list<double>",
    "squared_error": "list<double>",
    "energy_score": "double",
    "rank_counts": "list<int64>",
}


@dataclass
class Scorer:
    """
    Measures videos as a protocol says.

    Args:
        protocol ([`Protocol`]): What is measured.
        normalizer ([`FrameNormalizer`]): Of the model: its units, and their range.
        networks (`list[FeatureNetwork]`, *optional*): One for each of the protocol's `feature_networks`.
        lpips ([`LPIPS`], *optional*): If the protocol asks for it.
        seed (`int`, *optional*, defaults to 0): For ranks among equal values.
    """

    protocol: Protocol
    normalizer: FrameNormalizer
    networks: list[FeatureNetwork] = field(default_factory=list)
    lpips: LPIPS | None = None
    seed: int = 0

    def rows(
        self,
        clips: list[EvaluationClip],
        truth: torch.Tensor,
        samples: torch.Tensor,
        baselines: dict[str, torch.Tensor],
        given: tuple[torch.Tensor, torch.Tensor],
    ) -> list[dict]:
        """
        Rows of some clips.

        Args:
            clips (`list[EvaluationClip]`): Which.
            truth (`torch.Tensor` of shape `(K, T, C, H, W)`): True frames, in the model's units.
            samples (`torch.Tensor` of shape `(K, S, T, C, H, W)`): What the model made.
            baselines (`dict[str, torch.Tensor]`): Name -> frames of the shape of `truth`.
            given (`tuple[torch.Tensor, torch.Tensor]`): Frames before and after, `(K, T', C, H, W)`.

        Returns:
            `list[dict]`: A dictionary of columns for each video, clip by clip.

        Raises:
            ValueError: If something cannot be computed.
        """
        for place, clip in enumerate(clips):
            if not torch.isfinite(samples[place]).all():
                raise ValueError(
                    f"The samples of clip {clip.index} hold NaN or infinite values, so nothing can be computed of them."
                )
        num_samples = samples.shape[1]
        shown = self.normalizer.to_display
        videos = {"truth": truth[:, None]} if self.networks else {}
        videos |= {"model": samples, **{name: frames[:, None] for name, frames in baselines.items()}}
        rows = [[] for _ in clips]
        for made_by, made in videos.items():
            columns = {}
            if made_by != "truth":
                columns |= self._quality(shown(made.flatten(0, 1)), shown(truth.repeat_interleave(made.shape[1], 0)))
            columns |= self._features(made, given)
            for place, clip in enumerate(clips):
                for sample in range(made.shape[1]):
                    number = place * made.shape[1] + sample
                    row = {name: values[number] for name, values in columns.items()}
                    rows[place].append(_identity(clip) | {"made_by": made_by, "sample": sample} | row)
        if self.protocol.ensemble_metrics:
            for place, clip in enumerate(clips):
                scores = self._ensemble(samples[place].double().numpy(), truth[place].double().numpy(), clip)
                rows[place].append(_identity(clip) | {"made_by": "ensemble", "sample": num_samples} | scores)
        return [row for of_clip in rows for row in of_clip]

    def _quality(self, made: torch.Tensor, truth: torch.Tensor) -> dict[str, list]:
        """Of videos (N, T, C, H, W) in [0, 1], frame by frame."""
        protocol, columns = self.protocol, {}
        if any(metric == "mse" or metric.startswith("psnr") for metric in protocol.metrics):
            columns["mse"] = frame_mse(made, truth).tolist()
        if "ssim" in protocol.metrics:
            options = {"quantisation": protocol.ssim_quantisation, "color": protocol.ssim_color}
            columns["ssim"] = frame_ssim(made, truth, **options).tolist()
        if "lpips" in protocol.metrics:
            columns["lpips"] = self.lpips.distances(made, truth).tolist()
        return columns

    def _features(self, made: torch.Tensor, given: tuple[torch.Tensor, torch.Tensor]) -> dict[str, list]:
        if not self.networks:
            return {}
        videos = made.flatten(0, 1)  # (K*S, T, C, H, W)
        if self.protocol.given_frames_in_distances:
            before, after = (frames.repeat_interleave(made.shape[1], dim=0) for frames in given)
            videos = torch.cat([before, videos, after], dim=1)
        videos = self.normalizer.to_display(videos)
        return {
            f"features_{number}": network.features(videos).tolist() for number, network in enumerate(self.networks)
        }

    def _ensemble(self, samples: np.ndarray, truth: np.ndarray, clip: EvaluationClip) -> dict:
        """Of all samples (S, T, C, H, W) of a clip, frame by frame where there is a choice."""
        if ensemble_unit(self.normalizer):  # channels of different units cannot be averaged
            low, high = (np.array(ends)[:, None, None] for ends in (self.normalizer.low, self.normalizer.high))
            samples, truth = ((x - low) / (high - low) for x in (samples, truth))
        wanted, members, truth = self.protocol.ensemble_metrics, samples[None], truth[None]
        scores = {}
        for name, is_fair in (("crps", False), ("fair_crps", True)):
            if name in wanted:
                scores[name] = crps(members, truth, fair=is_fair)[0].mean(axis=(1, 2, 3)).tolist()
        if "energy_score" in wanted:
            scores["energy_score"] = float(energy_score(members, truth)[0])
        if "spread_skill_ratio" in wanted:
            variance, error = spread_and_error(members, truth)
            scores["variance"] = variance[0].mean(axis=(1, 2, 3)).tolist()
            scores["squared_error"] = error[0].mean(axis=(1, 2, 3)).tolist()
        if "rank_histogram" in wanted:
            seed = keyed_seed(self.seed, clip.index)
            rng = np.random.RandomState(np.random.MT19937(np.random.SeedSequence(seed)))
            scores["rank_counts"] = rank_histogram(members, truth, rng=rng)[0].tolist()
        return scores


def ensemble_unit(normalizer: FrameNormalizer) -> str:
    """
    What scores of ensembles are in, where it is not the model's units.

    Args:
        normalizer ([`FrameNormalizer`]): Of the model.

    Returns:
        `str`: Empty: the model's units, if all channels have the same range; otherwise shares of each channel's range.
    """
    is_one_range = len(set(zip(normalizer.low, normalizer.high))) == 1
    return "" if is_one_range else "of each channel's range"


def _identity(clip: EvaluationClip) -> dict:
    return {"clip": clip.index, "video": clip.video, "start": clip.start, "clip_sha256": clip.sha256}
