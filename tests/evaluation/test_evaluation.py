"""An evaluation: the numbers are those of its videos, a file says all of them again, and whatever stops it costs nothing."""

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from diffusers import ClassifierFreeGuidance, DDIMScheduler, DPMSolverMultistepScheduler, HeunDiscreteScheduler
from PIL import Image

from context_pipelines import context_pipeline, move
from mcvd_diffusers import MCVDPipeline, MCVDUNet2DModel
from mcvd_diffusers.data import ClipReader, VideoInfo, open_reader
from mcvd_diffusers.evaluation import (
    Results,
    ResultsError,
    Sampler,
    choose_clips,
    compare,
    draw_digits,
    evaluate,
)
from mcvd_diffusers.evaluation.clips import EvaluationClip
from mcvd_diffusers.evaluation.evaluate import make_videos
from mcvd_diffusers.evaluation.report import _verdict, against_baselines, as_comparison, as_table
from mcvd_diffusers.evaluation.scoring import Scorer
from mcvd_diffusers.folder_lock import LOCK_NAME
from mcvd_diffusers.metrics import (
    FeatureMoments,
    crps,
    frame_mse,
    frame_ssim,
    frechet_distance,
    mean_interval,
    psnr_of_mse,
    repeat_last_frame,
    video_mse,
)
from mcvd_diffusers.normalization import FrameNormalizer
from mcvd_diffusers.protocols import Protocol, load_protocol
from mcvd_diffusers.randomness import keyed_seed
from mcvd_diffusers.weights import networks_digest


FAST = Sampler(num_inference_steps=2)


class Moments:
    """A feature network of one's own: brightness and contrast of each frame."""

    name, min_frames = "brightness and contrast", 2

    def features(self, videos):
        frames = videos.flatten(2)
        return torch.cat([frames.mean(dim=2), frames.std(dim=2)], dim=1)


def clips_of(videos, protocol, normalizer=FrameNormalizer()):
    reader = open_reader(videos, axes="NTCHW")
    return choose_clips(reader, protocol, normalizer=normalizer, num_channels=1, description="squares")


def run(pipeline, videos, protocol, output, **options):
    networks = [Moments()] * len(protocol.feature_networks)
    changes = {name: options.pop(name) for name in ("seed", "batch_size") if name in options}
    sampler = dataclasses.replace(options.pop("sampler", FAST), **{"batch_size": 6, **changes})
    options = {"model": "tiny", "sampler": sampler, "networks": networks, **options}
    return evaluate(pipeline, clips_of(videos, protocol), protocol, output, **options)


def number(results, metric, made_by="model", samples=None):
    (found,) = (
        n for n in results.numbers() if (n.metric, n.made_by) == (metric, made_by) and samples in (None, n.samples)
    )
    return found


def test_numbers_are_those_of_the_videos(pipeline, videos, protocol, tmp_path):
    results = run(pipeline, videos, protocol, tmp_path / "out")
    clips = clips_of(videos, protocol)
    batch = [clips[i] for i in range(12)]
    truth, (past, _), samples, _ = make_videos(pipeline, batch, protocol, FAST)
    mse = torch.stack([video_mse(samples[:, s], truth) for s in range(3)], dim=1)  # (12, 3)
    psnr = psnr_of_mse(mse)
    names = [clip.video for clip in batch]
    assert number(results, "mse", samples="best of 3").value == pytest.approx(float(mse.min(dim=1).values.mean()))
    best = number(results, "psnr_of_video_mse", samples="best of 3")
    assert best.value == pytest.approx(float(psnr.max(dim=1).values.mean()), rel=1e-6)
    interval = mean_interval(psnr.max(dim=1).values.numpy(), names)
    assert (best.low, best.high) == pytest.approx((interval.low, interval.high), rel=1e-6)
    mean = number(results, "psnr_of_video_mse", samples="mean of 3")
    assert mean.value == pytest.approx(float(psnr.mean()), rel=1e-6)
    frames = torch.stack([psnr_of_mse(frame_mse(samples[:, s], truth)).mean(dim=1) for s in range(3)], dim=1)
    found = number(results, "psnr_frame_mean", samples="best of 3")
    assert found.value == pytest.approx(float(frames.max(dim=1).values.mean()), rel=1e-6)
    ssim = torch.stack([frame_ssim(samples[:, s], truth).mean(dim=1) for s in range(3)], dim=1)
    assert number(results, "ssim", samples="best of 3").value == pytest.approx(float(ssim.max(dim=1).values.mean()))
    baseline = video_mse(repeat_last_frame(past, 5), truth).mean()
    assert number(results, "mse", "repeat_last_frame").value == pytest.approx(float(baseline))

    members, observed = samples.double().numpy(), truth.double().numpy()
    spread = np.abs(members[:, :, None] - members[:, None]).mean(axis=(1, 2)) / 2
    crps = (np.abs(members - observed[:, None]).mean(axis=1) - spread).mean()
    assert number(results, "crps").value == pytest.approx(crps)
    ratio = 4 / 3 * members.var(axis=1, ddof=1).mean() / ((members.mean(axis=1) - observed) ** 2).mean()
    skill = number(results, "spread_skill_ratio")
    assert skill.value == pytest.approx(ratio**0.5) and skill.low < skill.value < skill.high
    ranks = [n.value for n in results.numbers() if n.metric == "rank_histogram"]
    assert len(ranks) == 4 and sum(ranks) == pytest.approx(1) and ranks == pytest.approx(results.rank_shares())


def test_every_number_carries_its_protocol(pipeline, videos, protocol, tmp_path):
    protocol = protocol.changed(feature_networks=["transnetv2"], distance_per_trajectory=True)
    results = run(pipeline, videos, protocol, tmp_path / "out")
    stated = json.loads((tmp_path / "out" / "results.json").read_text())
    label = "squares v1 (feature_networks=transnetv2, distance_per_trajectory=True)"
    assert stated["protocol"]["label"] == label
    for entry in stated["numbers"]:
        assert entry["protocol"] == label and entry["definition"]
        assert entry["num_clips"] == 12 and entry["num_videos"] == 12 and entry["num_samples"] in (12, 36)
        assert entry["low"] <= entry["value"] <= entry["high"] and entry["interval"]
    frechet = [entry for entry in stated["numbers"] if entry["metric"] == "frechet over brightness and contrast"]
    assert [entry["samples"] for entry in frechet] == ["3 together", "mean over 3 trajectories", "1"]
    assert all("brightness and contrast" in entry["definition"] for entry in frechet)
    assert not any(entry["metric"] == "fvd" for entry in stated["numbers"])  # only over I3D
    for name in ("sampler", "versions", "model", "data", "device"):
        assert stated[name] not in (None, {}), name
    assert stated["cost"]["num_videos"] == 36 and stated["cost"]["network_calls"] == 36 * 2 * 2
    for text in (as_table(results), (tmp_path / "out" / "results.md").read_text(), *map(str, results.numbers())):
        assert label in text
    for name in ("best.gif", "median.gif", "worst.gif"):
        with Image.open(tmp_path / "out" / name) as animation:
            assert animation.n_frames == 7
    for name in ("quality_by_frame.png", "rank_histogram.png"):
        with Image.open(tmp_path / "out" / name) as picture:
            assert min(picture.size) > 200
    assert not (tmp_path / "out" / "parts").exists()


def test_two_runs_write_the_same_file(pipeline, videos, protocol, tmp_path):
    for name in ("one", "two"):
        run(pipeline, videos, protocol, tmp_path / name)
    one, two = ((tmp_path / name / "results.parquet").read_bytes() for name in ("one", "two"))
    assert one == two
    run(pipeline, videos, protocol, tmp_path / "seed", seed=1)
    assert (tmp_path / "seed" / "results.parquet").read_bytes() != one


def test_samples_do_not_depend_on_the_batch(pipeline, videos, protocol, tmp_path):
    one = run(pipeline, videos, protocol, tmp_path / "one", batch_size=3)
    two = run(pipeline, videos, protocol, tmp_path / "two", batch_size=36)
    np.testing.assert_allclose(one.per_sample("mse", "model"), two.per_sample("mse", "model"), rtol=1e-4)


def test_an_interrupted_evaluation_ends_with_the_same_file(pipeline, videos, protocol, tmp_path):
    run(pipeline, videos, protocol, tmp_path / "whole")

    def stop_after_two(items, label):
        for count, item in enumerate(items):
            if count == 2:
                raise KeyboardInterrupt
            yield item

    with pytest.raises(KeyboardInterrupt):
        run(pipeline, videos, protocol, tmp_path / "out", progress=stop_after_two)
    parts = sorted((tmp_path / "out" / "parts").iterdir())
    assert len(parts) == 2 and not (tmp_path / "out" / "results.parquet").exists()
    before = [part.stat().st_mtime_ns for part in parts]
    parts[1].write_bytes(parts[1].read_bytes()[:100])  # a machine that lost power
    with pytest.raises(KeyboardInterrupt):
        run(pipeline, videos, protocol, tmp_path / "out", progress=stop_after_two)
    assert parts[0].stat().st_mtime_ns == before[0]  # made once
    run(pipeline, videos, protocol, tmp_path / "out")
    same = (tmp_path / "whole" / "results.parquet").read_bytes()
    assert (tmp_path / "out" / "results.parquet").read_bytes() == same
    again = run(pipeline, videos, protocol, tmp_path / "out")  # nothing is left to be done
    assert (tmp_path / "out" / "results.parquet").read_bytes() == same
    assert json.loads((tmp_path / "out" / "results.json").read_text())["cost"]["num_videos"] == 36
    assert again.numbers() == Results.read(tmp_path / "out").numbers()


def test_a_folder_of_another_evaluation_is_left_alone(pipeline, videos, protocol, tmp_path):
    run(pipeline, videos, protocol, tmp_path / "out")

    def times():
        return {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir() if path.name != LOCK_NAME}

    before = times()
    with pytest.raises(ResultsError, match="holds another evaluation .sampler.seed: 0 then, 1 now"):
        run(pipeline, videos, protocol, tmp_path / "out", seed=1)
    with pytest.raises(ResultsError, match=r"sampler.num_inference_steps: 2 then, 3 now"):
        run(pipeline, videos, protocol, tmp_path / "out", sampler=Sampler(num_inference_steps=3))
    assert times() == before
    with pytest.raises(ValueError, match="`num_inference_steps` must be at most 1000"):
        run(pipeline, videos, protocol, tmp_path / "new", sampler=Sampler(num_inference_steps=2000))
    run(pipeline, videos, protocol, tmp_path / "new")  # nothing was made, so nothing is in the way
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("hello")
    with pytest.raises(ResultsError, match="holds something else. Nothing is overwritten"):
        run(pipeline, videos, protocol, tmp_path / "mine")


@pytest.mark.parametrize("column", ["mse", "sample", "video", "rank_counts", "energy_score"])
def test_a_value_that_was_changed_by_hand_is_noticed(pipeline, videos, protocol, tmp_path, column):
    run(pipeline, videos, protocol, tmp_path / "out")
    path = tmp_path / "out" / "results.parquet"
    table = pq.read_table(path)
    values = table[column].to_pylist()
    place = next(i for i, value in enumerate(values) if value is not None)
    old = values[place]
    changes = {
        list: lambda: [old[0] * 2, *old[1:]],
        str: lambda: old + "x",
        int: lambda: old + 1,
        float: lambda: old / 2,
    }
    values[place] = changes[type(old)]()
    index = table.schema.get_field_index(column)
    field = table.schema.field(index)
    import pyarrow as pa

    changed = table.set_column(index, field, pa.array(values, field.type))  # keeps the metadata
    pq.write_table(changed, path)
    with pytest.raises(ResultsError, match="was changed after it was written"):
        Results.read(path)


@pytest.mark.parametrize("kind", ["rows", "lists", "texts", "one text"])
def test_a_file_that_is_many_times_what_it_says_is_not_read(pipeline, videos, protocol, tmp_path, kind, monkeypatch):
    table = run(pipeline, videos, protocol, tmp_path / "out").table
    path = tmp_path / "out" / "results.parquet"
    monkeypatch.setattr("mcvd_diffusers.evaluation.results.MOST_BYTES", 2**20)
    assert Results.read(path).table.equals(table)
    rows = table.slice(0, 1).to_pylist()
    if kind == "rows":
        large = pa.concat_tables([table] * 10_000)
    elif kind == "lists":
        name = next(field.name for field in table.schema if pa.types.is_list(field.type))
        large = pa.Table.from_pylist([rows[0] | {name: [0.0] * 10**7}], table.schema)
    else:
        name = next(field.name for field in table.schema if pa.types.is_string(field.type))
        row = rows[0] | {name: "x" * (10**4 if kind == "texts" else 10**8)}
        large = pa.Table.from_pylist([row] * (10**4 if kind == "texts" else 1), table.schema)
    pq.write_table(large, path, compression="zstd")
    assert path.stat().st_size < 2**20
    with pytest.raises(ResultsError, match=f"{re.escape(str(path))} cannot be read as results: its .* bytes say"):
        Results.read(path)


def test_settings_that_were_changed_by_hand_are_noticed(pipeline, videos, protocol, tmp_path):
    run(pipeline, videos, protocol, tmp_path / "out")
    path = tmp_path / "out" / "results.parquet"
    table = pq.read_table(path)
    record = json.loads(table.schema.metadata[b"mcvd_diffusers"])
    record["settings"]["protocol"]["samples_per_clip"] = 1
    pq.write_table(table.replace_schema_metadata({b"mcvd_diffusers": json.dumps(record)}), path)
    with pytest.raises(ResultsError, match="was changed after it was written"):
        Results.read(path)
    pq.write_table(table.replace_schema_metadata({}), path)
    with pytest.raises(ResultsError, match="no record of its protocol"):
        Results.read(path)
    path.write_bytes(b"PAR1")
    with pytest.raises(ResultsError, match="cannot be read as results"):
        Results.read(path)


def test_numbers_of_different_protocols_are_not_compared(pipeline, videos, protocol, tmp_path):
    one = run(pipeline, videos, protocol, tmp_path / "one")
    two = run(pipeline, videos, protocol, tmp_path / "two", seed=5)
    rows = compare(one, two)
    metrics = [(row[0].metric, row[0].samples) for row in rows]
    assert metrics[:3] == [
        ("psnr_of_video_mse", "best of 3"),
        ("psnr_of_video_mse", "mean of 3"),
        ("psnr_frame_mean", "best of 3"),
    ]
    assert ("crps", "3 together") in metrics and ("spread_skill_ratio", "3 together") in metrics
    for first, second, difference in rows:
        assert difference["value"] == pytest.approx(first.value - second.value)
        if first.metric != "spread_skill_ratio":
            assert difference["low"] <= difference["value"] <= difference["high"]
    text = as_comparison(one, two, rows)
    assert "squares v1" in text and "no difference is shown" in text
    assert "seed 5" in text.split("second, where it differs:")[1]

    fewer = run(pipeline, videos, protocol.changed(num_clips=4), tmp_path / "fewer")
    with pytest.raises(ResultsError, match=r"different protocols, squares v1 and squares v1 \(num_clips=4\)"):
        compare(one, fewer)
    renamed = run(pipeline, videos, dataclasses.replace(protocol, clip_seed=3), tmp_path / "seed")
    with pytest.raises(ResultsError, match="two that are both called squares v1"):
        compare(one, renamed)


def test_numbers_on_different_clips_are_not_compared(pipeline, videos, protocol, tmp_path):
    (tmp_path / "others").mkdir()
    np.save(tmp_path / "others" / "squares.npy", np.load(videos / "squares.npy")[::-1])
    one = run(pipeline, videos, protocol, tmp_path / "one")
    two = run(pipeline, tmp_path / "others", protocol, tmp_path / "two")
    with pytest.raises(ResultsError, match="on different clips"):
        compare(one, two)


@pytest.mark.parametrize("task", ["interpolation", "past_prediction", "generation"])
def test_other_tasks(pipeline, videos, protocol, tmp_path, task):
    given = {"interpolation": (2, 3, 1), "past_prediction": (0, 3, 1), "generation": (0, 4, 0)}[task]
    changes = dict(zip(("num_past_frames", "num_frames", "num_future_frames"), given))
    changes |= {
        "feature_networks": ("own",),
        "ensemble_metrics": (),
        "metrics": () if task == "generation" else ("mse",),
    }
    protocol = dataclasses.replace(protocol, task=task, **changes)
    results = run(pipeline, videos, protocol, tmp_path / "out")
    baseline = {"interpolation": "blend_linearly", "past_prediction": "repeat_first_frame"}.get(task)
    assert results.makers() == ["model", *([baseline] if baseline else [])]
    pictures = {path.name for path in (tmp_path / "out").glob("*.gif")}
    few = {f"sample_{clip}.gif" for clip in range(4)}
    assert pictures == (few if task == "generation" else {"best.gif", "median.gif", "worst.gif"})
    assert number(results, "frechet over brightness and contrast", samples="3 together").value > 0


def test_infinite_psnr_is_no_number(pipeline, tmp_path, protocol):
    still = np.random.RandomState(0).randint(0, 255, (12, 1, 1, 16, 16)).astype(np.uint8).repeat(10, axis=1)
    np.save(tmp_path / "still.npy", still)
    results = run(pipeline, tmp_path / "still.npy", protocol, tmp_path / "out")
    exact = number(results, "psnr_of_video_mse", "repeat_last_frame")
    assert exact.value is None and "12 of 12 clips have a video that is met exactly" in exact.note
    assert "not defined" in str(exact) and number(results, "mse", "repeat_last_frame").value == 0
    json.loads((tmp_path / "out" / "results.json").read_text(), parse_constant=pytest.fail)  # no Infinity in it


def test_models_in_other_units(tmp_path, model_folder, videos, protocol):
    pipe = MCVDPipeline.from_pretrained(model_folder)
    pipe = MCVDPipeline(
        pipe.unet, pipe.scheduler, normalization=FrameNormalizer.from_range(200, 320, nan_fill=250).to_config()
    )
    kelvin = np.load(videos / "squares.npy").astype(np.float32) / 255 * 120 + 200
    np.save(tmp_path / "kelvin.npy", kelvin)
    clips = clips_of(tmp_path / "kelvin.npy", protocol, pipe.normalizer)
    pipe.set_progress_bar_config(disable=True)
    results = evaluate(pipe, clips, protocol, tmp_path / "out", model="kelvin", sampler=FAST)
    metrics = "psnr_of_video_mse, psnr_frame_mean, ssim, mse: of values brought to [0, 1]"
    assert f"units of {metrics}; crps, fair_crps, energy_score: in the units of the data" in as_table(results)
    # Scores of ensembles are in kelvin; what papers compare is in [0, 1].
    unit = evaluate(
        MCVDPipeline.from_pretrained(model_folder),
        clips_of(videos, protocol),
        protocol,
        tmp_path / "unit",
        model="unit",
        sampler=FAST,
    )
    assert "units of psnr" not in as_table(unit)
    assert number(results, "crps").value == pytest.approx(120 * number(unit, "crps").value, rel=1e-3)
    assert number(results, "mse", samples="best of 3").value == pytest.approx(
        number(unit, "mse", samples="best of 3").value, rel=1e-3
    )
    kelvin[3, 5:, 0, :4] = np.nan
    np.save(tmp_path / "kelvin.npy", kelvin)
    filled = dataclasses.replace(protocol, missing_values="fill", clip_choice="first")
    assert torch.isfinite(clips_of(tmp_path / "kelvin.npy", filled, pipe.normalizer)[3].frames).all()


# --------------------------------------------------------------------------------------------------------------------
# Which clips


class Lengths(ClipReader):
    """Videos of given lengths, black."""

    def __init__(self, lengths):
        self.lengths = lengths

    def __len__(self):
        return len(self.lengths)

    def name(self, video):
        return f"video {video}"

    def info(self, video):
        return VideoInfo(self.lengths[video], 1, 16, 16, "uint8")

    def _read(self, video, frames):
        value = np.array(list(frames), dtype=np.uint8).reshape(-1, 1, 1, 1)
        return np.broadcast_to(value, (len(frames), 1, 16, 16))


def places(lengths, protocol):
    options = {"normalizer": FrameNormalizer(), "num_channels": 1, "description": ""}
    clips = choose_clips(Lengths(lengths), protocol, **options)
    found = [clips[i] for i in range(len(clips))]
    for clip in found:  # the frames are those of the place that is stated
        expected = torch.arange(clip.start, clip.start + protocol.num_clip_frames * protocol.frame_stride)
        shown = (clip.frames[:, 0, 0, 0] * 255).round()
        assert torch.equal(shown, expected[:: protocol.frame_stride].float())
    return [(int(clip.video.split()[1]), clip.start) for clip in found]


def test_first_frames(protocol):
    first = dataclasses.replace(protocol, clip_choice="first")
    assert places([20] * 12, first) == [(video, 0) for video in range(12)]
    assert places([9, 30] * 2, first.changed(num_clips=None)) == [(0, 0), (1, 0), (2, 0), (3, 0)]
    assert [video for video, _ in places([20] * 100, first.changed(num_clips=3))] == [0, 50, 99]  # spread


def test_random_starts_use_every_start_and_mcvd_all_but_the_last(protocol):
    many = dataclasses.replace(protocol, num_clips=300)
    assert {start for _, start in places([12] * 60, many)} == set(range(6))  # 12 - 7 + 1 starts
    original = dataclasses.replace(many, clip_choice="mcvd")
    assert {start for _, start in places([12] * 75, original)} == set(range(5))
    assert places([12] * 60, many) == places([12] * 60, many)
    assert places([12] * 60, many) != places([12] * 60, dataclasses.replace(many, clip_seed=1))
    strided = dataclasses.replace(many, frame_stride=2, num_clips=20)
    assert max(start for _, start in places([14] * 20, strided)) <= 1


def test_clips_of_one_video_are_one_group(pipeline, protocol, tmp_path):
    options = {"normalizer": FrameNormalizer(), "num_channels": 1, "description": ""}
    clips = choose_clips(Lengths([30, 40, 50]), protocol, **options)
    results = evaluate(pipeline, clips, protocol, tmp_path / "out", model="tiny", sampler=FAST)
    found = number(results, "mse", samples="best of 3")
    assert (found.num_clips, found.num_videos) == (12, 3) and "over 3 videos" in found.interval


def test_moving_digits_of_a_protocol():
    protocol = load_protocol("mcvd-smmnist-5-10")
    protocol = protocol.changed(num_clips=3, moving_digits=protocol.moving_digits | {"source": "sklearn"})
    assert "source=sklearn" in protocol.label  # other digits, other numbers
    clips = draw_digits(protocol, num_channels=1)
    assert len(clips) == 3 and clips[0].frames.shape == (15, 1, 64, 64)
    assert clips[0].sha256 == draw_digits(protocol, num_channels=1)[0].sha256 != clips[1].sha256


# --------------------------------------------------------------------------------------------------------------------
# Bad input


def test_too_few_clips(videos, protocol):
    with pytest.raises(ValueError, match=r"judges 13 clips, and the data have 12 \(one a video\)"):
        clips_of(videos, dataclasses.replace(protocol, num_clips=13, clip_choice="first"))
    with pytest.raises(ValueError, match=r"judges 100 clips, and the data have 48 \(counting each start"):
        clips_of(videos, dataclasses.replace(protocol, num_clips=100))


def test_clips_shorter_than_the_horizon(protocol):
    options = {"normalizer": FrameNormalizer(), "num_channels": 1, "description": ""}
    with pytest.raises(
        ValueError, match=r"2 of 13 videos have fewer than the 7 frames.*video 1 \(6\), video 12 \(3\)"
    ):
        choose_clips(Lengths([9, 6, *[9] * 10, 3]), protocol, **options)
    skipping = dataclasses.replace(protocol, short_videos="skip")
    clips = choose_clips(Lengths([9, 6, *[9] * 10, 3]), skipping, **options)
    assert clips.num_skipped == 2 and {clip[1] for clip in clips._places} == {f"video {i}" for i in range(12)} - {
        "video 1"
    }
    with pytest.raises(ValueError, match="3 of 3 videos have fewer"):
        choose_clips(Lengths([1, 2, 3]), skipping, **options)


def test_mismatched_channels(pipeline, videos, protocol, tmp_path):
    with pytest.raises(ValueError, match=r"frames of 1 channel\(s\), and squares v1 judges frames of 3"):
        clips_of(videos, dataclasses.replace(protocol, num_channels=3))
    np.save(tmp_path / "five.npy", np.zeros((12, 10, 5, 16, 16), np.uint8))
    with pytest.raises(ValueError, match="frames of 5 channels where 1 are asked for"):
        clips_of(tmp_path / "five.npy", protocol)


def test_missing_values(tmp_path, videos, protocol):
    video = np.load(videos / "squares.npy").astype(np.float32) / 255
    video[5, 3:] = np.nan
    np.save(tmp_path / "nan.npy", video)
    with pytest.raises(ValueError, match="missing values"):
        clips = clips_of(tmp_path / "nan.npy", dataclasses.replace(protocol, clip_choice="first"))
        [clips[i] for i in range(12)]


def test_networks_that_cannot_see_the_videos(pipeline, videos, protocol, tmp_path):
    class Long(Moments):
        min_frames = 10

    asking = dataclasses.replace(protocol, feature_networks=("own",))
    with pytest.raises(ValueError, match="needs videos of at least 10 frames, and squares v1 has 5: leave it out"):
        run(pipeline, videos, asking, tmp_path / "out", networks=[Long()])
    with pytest.raises(ValueError, match="asks for the feature networks own, got 0"):
        run(pipeline, videos, asking, tmp_path / "out", networks=[])
    with pytest.raises(ValueError, match="asks for LPIPS"):
        run(pipeline, videos, dataclasses.replace(protocol, metrics=("lpips",)), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_model_that_reads_no_future_does_not_interpolate(videos, protocol, tmp_path):
    unet = MCVDUNet2DModel(
        sample_size=16,
        in_channels=1,
        num_past_frames=2,
        num_frames=3,
        block_out_channels=(4,),
        down_block_types=("DownBlock2D",),
        layers_per_block=1,
    )
    between = dataclasses.replace(protocol, task="interpolation", num_future_frames=1, num_frames=3)
    with pytest.raises(ValueError, match="gives future frames, and this model reads none"):
        run(MCVDPipeline(unet, DDIMScheduler()), videos, between, tmp_path / "out")


# --------------------------------------------------------------------------------------------------------------------
# Processes


def command(model_folder, videos, output, protocol, *more):
    words = [model_folder, "--data", videos, "--axes", "NTCHW", "--protocol", protocol, "--output", output]
    words += ["--num_inference_steps", 2, "--batch_size", 3, *more]
    return ["-m", "mcvd_diffusers.cli", "evaluate", *map(str, words)]


@pytest.fixture
def protocol_file(protocol, tmp_path):
    fields = {name: value for name, value in protocol.to_dict().items() if name != "changes"}
    path = tmp_path / "squares.yaml"
    path.write_text(json.dumps(fields))  # JSON is YAML
    return path


@pytest.mark.slow
def test_two_processes_write_the_file_of_one_and_a_killed_one_goes_on(model_folder, videos, protocol_file, tmp_path):
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}

    def launch(output, *launcher):
        words = [sys.executable, *launcher, *command(model_folder, videos, tmp_path / output, protocol_file)]
        return subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    one = launch("one")
    assert one.wait(300) == 0, one.stdout.read()
    two = launch("two", "-m", "torch.distributed.run", "--nproc_per_node=2")
    text, _ = two.communicate(timeout=400)
    assert two.returncode == 0, text
    assert text.count("protocol  squares v1") == text.count("written to") == 1  # one table, not two
    same = (tmp_path / "one" / "results.parquet").read_bytes()
    assert (tmp_path / "two" / "results.parquet").read_bytes() == same
    assert json.loads((tmp_path / "two" / "results.json").read_text())["cost"]["num_processes"] == 2

    killed = launch("killed")
    parts, deadline = tmp_path / "killed" / "parts", time.monotonic() + 300
    while len(list(parts.glob("part-*.parquet"))) < 3:
        assert killed.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert not (tmp_path / "killed" / "results.parquet").exists()
    again = launch("killed")
    assert again.wait(300) == 0, again.stdout.read()
    assert (tmp_path / "killed" / "results.parquet").read_bytes() == same


# --------------------------------------------------------------------------------------------------------------------
# What must not go wrong silently


def test_a_protocol_with_everything_gives_what_its_words_say(tmp_path):
    """Colour, 8 bits and luma, given frames in distances, trajectories, more given frames than the model reads."""
    rng = np.random.RandomState(0)
    np.save(tmp_path / "colour.npy", rng.randint(0, 256, (6, 9, 3, 16, 16)).astype(np.uint8))
    unet = MCVDUNet2DModel(
        sample_size=16,
        in_channels=3,
        num_past_frames=2,
        num_frames=2,
        block_out_channels=(4,),
        down_block_types=("DownBlock2D",),
        layers_per_block=1,
    )
    pipe = MCVDPipeline(unet, DDIMScheduler())
    pipe.set_progress_bar_config(disable=True)
    protocol = Protocol(
        name="all",
        version=1,
        title="all",
        source="here",
        task="prediction",
        num_past_frames=4,
        num_frames=3,
        num_clips=6,
        samples_per_clip=2,
        best_of="each_metric",
        metrics=("mse", "psnr_of_mean_mse", "ssim"),
        ssim_quantisation="floor_8bit",
        ssim_color="luma",
        feature_networks=("own",),
        given_frames_in_distances=True,
        distance_per_trajectory=True,
    )
    clips = choose_clips(
        open_reader(tmp_path / "colour.npy", axes="NTCHW"),
        protocol,
        normalizer=FrameNormalizer(),
        num_channels=3,
        description="noise",
    )
    options = {"model": "tiny", "sampler": FAST, "networks": [Moments()]}
    results = evaluate(pipe, clips, protocol, tmp_path / "out", **options)
    video = torch.stack([clips[i].frames for i in range(6)])
    past, truth = video.split([4, 3], dim=1)
    generators = [torch.Generator().manual_seed(keyed_seed(0, i)) for i in range(6)]
    samples = pipe(
        past_frames=past[:, -2:],  # the model reads two, the nearest
        num_frames=3,
        ensemble_size=2,
        num_inference_steps=2,
        generator=generators,
        output_type="pt",
    ).frames.unflatten(0, (6, 2))
    assert "reads     2 of 4 past frames that are given; makes 2 blocks of 2 frames" in as_table(results)

    options = {"quantisation": "floor_8bit", "color": "luma"}
    ssim = torch.stack([frame_ssim(samples[:, s], truth, **options).mean(dim=1) for s in range(2)], dim=1)
    assert number(results, "ssim", samples="best of 2").value == pytest.approx(
        float(ssim.max(1).values.mean()), abs=1e-5
    )
    plain = torch.stack([frame_ssim(samples[:, s], truth).mean(dim=1) for s in range(2)], dim=1)
    assert not torch.allclose(ssim, plain, atol=1e-3)
    mse = torch.stack([video_mse(samples[:, s], truth) for s in range(2)], dim=1)
    found = number(results, "psnr_of_mean_mse", samples="mean of 2")
    assert (
        found.value == pytest.approx(float(psnr_of_mse(mse.mean())), rel=1e-5) and found.low < found.value < found.high
    )

    def features(frames):
        moments = FeatureMoments()
        moments.update(Moments().features(frames).double().numpy())
        return moments

    real = features(video)  # each clip once
    whole = [torch.cat([past, samples[:, s]], dim=1) for s in range(2)]
    name = "frechet over brightness and contrast"
    expected = frechet_distance(real, features(torch.cat(whole)))
    assert number(results, name, samples="2 together").value == pytest.approx(expected, rel=1e-4)
    apart = [frechet_distance(real, features(frames)) for frames in whole]
    found = number(results, name, samples="mean over 2 trajectories")
    assert found.value == pytest.approx(np.mean(apart), rel=1e-4) and found.std == pytest.approx(
        np.std(apart), rel=1e-3
    )
    assert "12 made against 6 true videos" in number(results, name, samples="2 together").note
    baseline = torch.cat([past, repeat_last_frame(past, 3)], dim=1)
    assert number(results, name, "repeat_last_frame").value == pytest.approx(
        frechet_distance(real, features(baseline)), rel=1e-4
    )

    best, median, worst = results.chosen_videos()
    flat = results.per_sample("mse", "model").ravel()
    assert (best["value"], worst["value"]) == (flat.min(), flat.max()) and best["value"] < median["value"] < worst[
        "value"
    ]
    assert results.per_sample("mse", "model")[worst["clip"], worst["sample"]] == worst["value"]


def test_given_future_frames_are_part_of_distances(pipeline, videos, protocol, tmp_path):
    between = dataclasses.replace(
        protocol,
        task="interpolation",
        num_frames=3,
        num_future_frames=1,
        samples_per_clip=1,
        ensemble_metrics=(),
        feature_networks=("own",),
        given_frames_in_distances=True,
    )
    results = run(pipeline, videos, between, tmp_path / "out")
    clips = clips_of(videos, between)
    whole = torch.stack([clips[i].frames for i in range(12)])
    expected = Moments().features(whole)
    np.testing.assert_allclose(results._matrix("features_0", "truth"), expected.numpy(), rtol=1e-5)
    assert results._matrix("features_0", "model").shape == (12, 12)  # brightness and contrast of 2 + 3 + 1 frames


def test_the_better_model_is_called_so(pipeline, videos, protocol, tmp_path):
    results = run(pipeline, videos, protocol, tmp_path / "out")
    # An untrained network is far worse than a still picture, in each metric and both directions.
    (line,) = against_baselines(results)
    assert line.startswith("against repeat_last_frame, clip by clip: ") and "worse in psnr_of_video_mse" in line
    assert "mse (best of 3)" in line and "better in" not in line
    assert [_verdict(*ends, "higher", "first", "second", "-") for ends in ((1, 2), (-2, -1), (-1, 1))] == [
        "first",
        "second",
        "-",
    ]
    assert [_verdict(*ends, "lower", "first", "second", "-") for ends in ((1, 2), (-2, -1), (-1, 1))] == [
        "second",
        "first",
        "-",
    ]


def test_other_data_of_the_same_name_are_not_mixed_in(pipeline, videos, protocol, tmp_path):
    (tmp_path / "other").mkdir()
    np.save(tmp_path / "other" / "squares.npy", np.load(videos / "squares.npy")[:, ::-1].copy())
    run(pipeline, videos, protocol, tmp_path / "out")
    with pytest.raises(ResultsError, match="holds another evaluation .data.clips_sha256"):
        run(pipeline, tmp_path / "other", protocol, tmp_path / "out")


def test_a_part_of_another_evaluation_is_made_again(pipeline, videos, protocol, tmp_path):
    def stop(items, label):
        for count, item in enumerate(items):
            if count == 3:
                raise KeyboardInterrupt
            yield item

    run(pipeline, videos, protocol, tmp_path / "whole")
    for name, seed in (("out", 0), ("other", 1)):
        with pytest.raises(KeyboardInterrupt):
            run(pipeline, videos, protocol, tmp_path / name, seed=seed, progress=stop)
    parts = [tmp_path / name / "parts" / "part-000001.parquet" for name in ("out", "other")]
    parts[0].write_bytes(parts[1].read_bytes())
    first = tmp_path / "out" / "parts" / "part-000000.parquet"
    (tmp_path / "out" / "parts" / "part-000002.parquet").write_bytes(first.read_bytes())  # a number twice
    (tmp_path / "out" / "parts" / ".part-000003.partial.parquet").write_bytes(b"of a process that was killed")
    run(pipeline, videos, protocol, tmp_path / "out")
    same = (tmp_path / "whole" / "results.parquet").read_bytes()
    assert (tmp_path / "out" / "results.parquet").read_bytes() == same
    assert not (tmp_path / "out" / "parts").exists()


def test_a_folder_that_only_has_a_lock_is_a_new_one(pipeline, videos, protocol, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / LOCK_NAME).touch()  # killed before the first word was written
    assert run(pipeline, videos, protocol, tmp_path / "out") is not None


def test_files_of_others_are_left_alone(pipeline, videos, protocol, tmp_path):
    for text in ('{"my": "notes"}', "[]", "{"):
        (tmp_path / "out").mkdir(exist_ok=True)
        (tmp_path / "out" / "evaluation.json").write_text(text)
        (tmp_path / "out" / "results.md").write_text("precious")
        with pytest.raises(ResultsError, match="holds something else|no JSON any more|not what an evaluation writes"):
            run(pipeline, videos, protocol, tmp_path / "out")
        assert (tmp_path / "out" / "evaluation.json").read_text() == text
        assert (tmp_path / "out" / "results.md").read_text() == "precious"


def test_results_of_another_evaluation_in_a_finished_folder_are_noticed(pipeline, videos, protocol, tmp_path):
    run(pipeline, videos, protocol, tmp_path / "one")
    run(pipeline, videos, protocol, tmp_path / "two", seed=1)
    (tmp_path / "one" / "results.parquet").write_bytes((tmp_path / "two" / "results.parquet").read_bytes())
    with pytest.raises(ResultsError, match="is of another evaluation than"):
        run(pipeline, videos, protocol, tmp_path / "one")


def test_a_results_json_that_was_changed_does_not_stop_a_finished_evaluation(pipeline, videos, protocol, tmp_path):
    run(pipeline, videos, protocol, tmp_path / "out")
    for text in ("[]", "NaN", "[" * 10_000):
        (tmp_path / "out" / "results.json").write_text(text)
        assert run(pipeline, videos, protocol, tmp_path / "out") is not None
        assert json.loads((tmp_path / "out" / "results.json").read_text())["numbers"]


def test_nothing_is_computed_of_samples_that_are_not_finite(protocol):
    clip = EvaluationClip(0, "video", 0, torch.rand(7, 1, 16, 16), "hash")
    samples = torch.rand(1, 3, 5, 1, 16, 16)
    samples[0, 1, 2, 0, 3, 3] = torch.nan
    given = clip.frames[None, :2], clip.frames[None, 7:]
    with pytest.raises(ValueError, match="The samples of clip 0 hold NaN or infinite values"):
        Scorer(protocol, FrameNormalizer()).rows([clip], clip.frames[None, 2:], samples, {}, given)


def test_a_model_that_says_what_is_missing_needs_a_protocol_that_fills(videos, protocol, tmp_path):
    unet = MCVDUNet2DModel(
        sample_size=16,
        in_channels=2,
        num_past_frames=2,
        num_frames=5,
        block_out_channels=(4,),
        down_block_types=("DownBlock2D",),
        layers_per_block=1,
    )
    units = FrameNormalizer.from_range(0, 10, nan_fill=0, has_mask_channel=True)
    pipe = MCVDPipeline(unet, DDIMScheduler(), normalization=units.to_config())
    pipe.set_progress_bar_config(disable=True)
    rain = np.random.RandomState(0).gamma(1, 2, (12, 8, 1, 16, 16)).astype(np.float32)
    rain[:, :, :, :3] = np.nan
    np.save(tmp_path / "rain.npy", rain)
    with pytest.raises(ValueError, match="missing values"):
        run_of(pipe, tmp_path / "rain.npy", protocol, tmp_path / "out")
    filled = dataclasses.replace(protocol, missing_values="fill")
    results = run_of(pipe, tmp_path / "rain.npy", filled, tmp_path / "out")
    assert all(number.value is not None for number in results.numbers())
    assert 0 < results.settings["data"]["share_of_values_beyond_range"] < 0.1  # heavy rain is cut off at 10
    assert "lie beyond the model's range and are cut off" in as_table(results)


def run_of(pipe, videos, protocol, output):
    return evaluate(pipe, clips_of(videos, protocol, pipe.normalizer), protocol, output, model="tiny", sampler=FAST)


def test_scores_of_channels_in_different_units_are_shares_of_their_ranges():
    units = FrameNormalizer.from_range([0, 200], [1, 300])
    protocol = Protocol(
        name="two",
        version=1,
        title="two",
        source="here",
        task="prediction",
        num_past_frames=1,
        num_frames=2,
        samples_per_clip=2,
        ensemble_metrics=("crps",),
    )
    clip = EvaluationClip(0, "video", 0, units.decode(torch.rand(3, 2, 4, 4) * 2 - 1), "hash")
    samples = units.decode(torch.rand(1, 2, 2, 2, 4, 4) * 2 - 1)
    given = clip.frames[None, :1], clip.frames[None, 3:]
    (row,) = (
        row
        for row in Scorer(protocol, units).rows([clip], clip.frames[None, 1:], samples, {}, given)
        if row["made_by"] == "ensemble"
    )
    shares, truth = units.to_display(samples).double().numpy(), units.to_display(clip.frames[1:]).double().numpy()
    np.testing.assert_allclose(row["crps"], crps(shares, truth[None])[0].mean(axis=(1, 2, 3)), rtol=1e-4)


def test_the_network_is_counted_whatever_the_scheduler_and_guidance(pipeline, videos, protocol, tmp_path):
    few = dataclasses.replace(protocol, num_clips=2, samples_per_clip=2, num_frames=3)
    run(pipeline, videos, few, tmp_path / "plain")
    run(pipeline, videos, few, tmp_path / "guided", sampler=Sampler(num_inference_steps=2, guidance_scale=2))
    pipeline.scheduler = HeunDiscreteScheduler.from_config(pipeline.scheduler.config)
    run(pipeline, videos, few, tmp_path / "heun")
    calls = [
        json.loads((tmp_path / name / "results.json").read_text())["cost"]["network_calls"]
        for name in ("plain", "guided", "heun")
    ]
    assert calls == [4 * 2, 2 * 4 * 2, 4 * 3]


def test_a_guider_stands_beside_the_numbers(pipeline, videos, protocol, tmp_path):
    few = dataclasses.replace(protocol, num_clips=2, samples_per_clip=2, num_frames=3)
    plain = run(pipeline, videos, few, tmp_path / "plain")
    pipeline.guider = ClassifierFreeGuidance(3.0)
    guided = run(pipeline, videos, few, tmp_path / "guided")
    assert "guider" not in plain.settings["sampler"]
    assert (
        guided.settings["sampler"]["guider"].items() >= {"name": "ClassifierFreeGuidance", "guidance_scale": 3}.items()
    )
    assert re.search(
        r"guided by ClassifierFreeGuidance\(.*guidance_scale=3", (tmp_path / "guided/results.md").read_text()
    )
    values = [number(results, "mse", samples="best of 2").value for results in (plain, guided)]
    assert values[0] != values[1]


def test_schedulers_with_infinite_settings(pipeline, videos, protocol, tmp_path):
    pipeline.scheduler = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config)
    results = run(pipeline, videos, protocol, tmp_path / "out")
    assert results.settings["sampler"]["scheduler_config"]["lambda_min_clipped"] == "-Infinity"


def test_models_of_other_ranges_are_not_compared(model_folder, videos, protocol, tmp_path):
    pipe = MCVDPipeline.from_pretrained(model_folder)
    np.save(tmp_path / "floats.npy", (np.load(videos / "squares.npy") > 100).astype(np.float32))  # the same in both
    results = []
    for high in (1, 10):
        pipe = MCVDPipeline(pipe.unet, pipe.scheduler, normalization=FrameNormalizer.from_range(0, high).to_config())
        pipe.set_progress_bar_config(disable=True)
        results.append(run_of(pipe, tmp_path / "floats.npy", protocol, tmp_path / f"out{high}"))
    with pytest.raises(ResultsError, match="different ranges of values"):
        compare(*results)


def test_distances_over_other_networks_are_not_compared(pipeline, videos, protocol, tmp_path):
    class Others(Moments):
        name = "others"

    asking = dataclasses.replace(protocol, feature_networks=("own",))
    one = run(pipeline, videos, asking, tmp_path / "one")
    two = run(pipeline, videos, asking, tmp_path / "two", networks=[Others()])
    with pytest.raises(ResultsError, match="different feature networks"):
        compare(one, two)


def test_networks_that_fail_do_so_before_sampling(pipeline, videos, protocol, tmp_path):
    asking = dataclasses.replace(protocol, feature_networks=("own",))

    class Broken(Moments):
        def features(self, videos):
            raise TypeError("forward() expected at most 2 arguments")

    class Empty(Moments):
        def features(self, videos):
            return torch.zeros(len(videos), 0)

    for network, message in (
        (Broken(), "cannot read these videos: forward"),
        (Empty(), r"must make a tensor \(2, D\)"),
    ):
        with pytest.raises(ValueError, match=message):
            run(pipeline, videos, asking, tmp_path / "out", networks=[network])
    assert not (tmp_path / "out").exists()


def test_a_distance_between_equal_videos_is_no_number(pipeline, protocol, tmp_path):
    np.save(tmp_path / "black.npy", np.zeros((12, 10, 1, 16, 16), np.uint8))
    results = run(
        pipeline, tmp_path / "black.npy", dataclasses.replace(protocol, feature_networks=("own",)), tmp_path / "out"
    )
    found = number(results, "frechet over brightness and contrast")
    assert found.value is None and "all true videos look the same" in found.note
    assert number(results, "mse", samples="best of 3").value > 0  # the others are


@pytest.mark.parametrize("change", ["extra column", "null in a list", "rows in another order"])
def test_other_changes_by_hand_are_noticed(pipeline, videos, protocol, tmp_path, change):
    import pyarrow as pa

    run(pipeline, videos, protocol, tmp_path / "out")
    path = tmp_path / "out" / "results.parquet"
    table = pq.read_table(path)
    if change == "extra column":
        table = table.append_column("more", pa.array([{"a": 1}] * len(table)))
    elif change == "rows in another order":
        table = table.take(list(range(len(table)))[::-1])
    else:
        values = table["rank_counts"].to_pylist()
        place = next(i for i, value in enumerate(values) if value is not None and 0 in value)
        values[place] = [x or None for x in values[place]]
        index = table.schema.get_field_index("rank_counts")
        table = table.set_column(index, table.schema.field(index), pa.array(values, table.schema.field(index).type))
    pq.write_table(table, path)
    with pytest.raises(ResultsError, match="was changed after it was written"):
        Results.read(path)


# --------------------------------------------------------------------------------------------------------------------
# A network with a context encoder


def small_videos(folder):
    folder.mkdir()
    np.save(folder / "noise.npy", np.random.RandomState(0).randint(0, 255, (3, 20, 1, 8, 8)).astype(np.uint8))
    return folder


def small_protocol(protocol, **changes):
    shape = {
        "num_past_frames": 2,
        "num_frames": 5,
        "num_clips": 3,
        "samples_per_clip": 2,
        "ensemble_metrics": ["crps"],
    }
    return protocol.changed(**{**shape, "metrics": ["mse"], **changes})


@pytest.mark.parametrize("kind", ["lgcvd", "rvd", "memory", "residual"])
def test_results_are_of_network_and_encoder(kind, protocol, tmp_path):
    pipe, videos, protocol = context_pipeline(kind), small_videos(tmp_path / "videos"), small_protocol(protocol)
    before = run(pipe, videos, protocol, tmp_path / "before")
    model = before.settings["model"]
    networks = (pipe.unet, pipe.context_encoder)
    assert model["num_parameters"] == sum(x.numel() for network in networks for x in network.parameters())
    assert model["dtype"] == "float32"
    digest = networks_digest({"unet": networks[0].state_dict(), "context_encoder": networks[1].state_dict()})
    assert model["weights_sha256"] == digest
    move(pipe.context_encoder)
    after = run(pipe, videos, protocol, tmp_path / "after")
    assert after.settings["model"]["weights_sha256"] != digest
    # A memory of clips has read none yet, but is not the same before.
    values = [number(results, "mse", samples="mean of 2").value for results in (before, after)]
    assert values[0] != values[1]
    with pytest.raises(ResultsError, match="weights_sha256"):
        run(pipe, videos, protocol, tmp_path / "before")


@pytest.mark.parametrize(
    ("kind", "past", "frames", "num_read", "size"),
    [
        ("lgcvd", 2, 2, 2, 2),  # one window
        ("lgcvd", 3, 4, 2, 2),
        ("lgcvd", 4, 4, 4, 2),  # a clip
        ("lgcvd", 7, 4, 6, 2),  # and one two frames earlier
        ("rvd", 7, 4, 7, 1),
        ("memory", 3, 4, 2, 2),
        ("memory", 5, 4, 4, 2),
        ("residual", 7, 4, 2, 2),
    ],
)
def test_what_a_context_encoder_reads_is_stated(kind, past, frames, num_read, size, protocol, tmp_path):
    """Of the given frames, those that are said to be read change what is made, and no others."""
    pipe, videos = context_pipeline(kind), small_videos(tmp_path / "videos")
    protocol = small_protocol(
        protocol, num_past_frames=past, num_frames=frames, samples_per_clip=1, ensemble_metrics=[]
    )
    model = run(pipe, videos, protocol, tmp_path / "out").settings["model"]
    assert (model["num_past_frames_read"], model["num_future_frames_read"]) == (num_read, 0)
    assert model["num_frames_of_a_block"] == size
    clip = clips_of(videos, protocol)[0]
    made = make_videos(pipe, [clip], protocol, FAST)[2]
    for position in range(past):
        clip.frames[position] = 1 - clip.frames[position]
        other = make_videos(pipe, [clip], protocol, FAST)[2]
        clip.frames[position] = 1 - clip.frames[position]
        assert torch.equal(other, made) == (position < past - num_read), position


def test_what_a_recurrent_network_cannot_read_is_refused_before(protocol, tmp_path):
    pipe, videos = context_pipeline("rvd"), small_videos(tmp_path / "videos")
    protocol = small_protocol(protocol, task="interpolation", num_future_frames=1)
    with pytest.raises(ValueError, match="gives future frames, and this model reads none .*num_context_frames"):
        run(pipe, videos, protocol, tmp_path / "out")
    run(context_pipeline("lgcvd"), videos, protocol, tmp_path / "out")


def test_decibels_of_an_error_that_may_be_zero_have_no_upper_end(pipeline, protocol, tmp_path):
    """Two clips stand still and one does not: the interval of their mean error reaches below 0, and the tables say what is known."""
    video = np.zeros((3, 7, 1, 16, 16), np.uint8)
    video[2, 3:] = 255
    np.save(tmp_path / "videos.npy", video)
    few = dataclasses.replace(protocol, metrics=("psnr_of_mean_mse",), num_clips=3)
    results = run(pipeline, tmp_path / "videos.npy", few, tmp_path / "out")
    found = number(results, "psnr_of_mean_mse", "repeat_last_frame")
    assert found.high is None and found.low < found.value and found.shown_interval().startswith("above ")
    for text in (as_table(results), (tmp_path / "out" / "results.md").read_text(), str(found)):
        assert "above " in text
