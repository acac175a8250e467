"""metrics/intervals.py: by simulation, that intervals of 95 % hold the truth in 95 % of the cases; and their edges."""

import math

import numpy as np
import pytest
from scipy import stats

from mcvd_diffusers.metrics import intervals
from mcvd_diffusers.metrics.feature_distances import FeatureMoments, frechet_distance, polynomial_mmd
from mcvd_diffusers.metrics.intervals import (
    Interval,
    distance_interval,
    mean_interval,
    normal_interval,
    paired_difference_interval,
    student_quantile,
)


def normal(rng, num_videos):
    return rng.normal(30, 4, num_videos), None, 30


def skewed(rng, num_videos):
    """As PSNRs of videos are: a floor, and a long tail of videos in which hardly anything moves."""
    return 20 + rng.exponential(5, num_videos), None, 25


def clustered(rng, num_videos):
    """1 to 7 clips of each video, which share most of their variance; longer videos are worse."""
    num_clips = rng.integers(1, 8, num_videos)
    groups = np.repeat(np.arange(num_videos), num_clips)
    values = (30 + rng.gamma(2, 2, num_videos) - num_clips)[groups] + rng.normal(0, 1, len(groups))
    # Mean of clips over mean of counts: E n (34 - n) / E n with n uniform on 1 to 7.
    return values, groups, 34 - 20 / 4


def coverage(draw, num_videos, num_repetitions, interval=mean_interval, num_resamples=1000):
    """Share of intervals below, around and above the truth."""
    rng = np.random.default_rng(0)
    sides = np.zeros(3)
    for repetition in range(num_repetitions):
        values, groups, truth = draw(rng, num_videos)
        found = interval(values, groups, num_resamples=num_resamples, seed=repetition)
        sides[0 if found.high < truth else 2 if found.low > truth else 1] += 1
    return sides / num_repetitions


# Videos, and the standard deviation of the coverage of 4000 repetitions is 0.34 %.
CASES = [(normal, 30), (skewed, 100), (skewed, 256), (clustered, 60), (clustered, 256), (normal, 5)]


@pytest.mark.slow
@pytest.mark.parametrize("draw, num_videos", CASES)
def test_mean_interval_holds_the_mean_in_95_percent(draw, num_videos):
    below, around, above = coverage(draw, num_videos, 4000, num_resamples=400)
    print(f"{draw.__name__} {num_videos}: {below:.2%} below, {around:.2%} around, {above:.2%} above")
    assert around == pytest.approx(0.95, abs=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("num_videos", [64, 256])
def test_interval_of_a_ratio_holds_it_in_95_percent(num_videos):
    """Of variance over error, as spread and skill: both are skewed, and large in the same clips."""
    rng, inside = np.random.default_rng(1), 0
    for repetition in range(2000):  # standard deviation of the coverage: 0.5 %
        clip = rng.gamma(4, size=num_videos) / 4
        variance, error = (clip * rng.gamma(shape, size=num_videos) / shape for shape in (8, 3))
        found = mean_interval(variance, None, weights=error, num_resamples=400, seed=repetition)
        inside += found.low <= 1 <= found.high
    assert inside / 2000 == pytest.approx(0.95, abs=0.015)


@pytest.mark.parametrize("draw, num_videos", [(normal, 5), (normal, 30), (skewed, 100), (clustered, 60)])
def test_mean_interval_holds_the_mean_in_about_95_percent(draw, num_videos):
    # 500 repetitions: three standard deviations are 2.9 %.
    assert coverage(draw, num_videos, 500, num_resamples=400)[1] == pytest.approx(0.95, abs=0.03)


def test_clips_of_one_video_must_not_count_as_independent():
    def without_groups(values, groups, **options):
        return mean_interval(values, None, **options)

    assert coverage(clustered, 60, 500, interval=without_groups, num_resamples=400)[1] < 0.85


def test_usual_interval_misses_skewed_means_on_one_side():
    """What the bootstrap-t is for: the usual interval misses on both sides unequally, and so do plain quantiles."""

    def usual(values, groups, **options):
        mean, _, half_width = normal_interval(values)
        return Interval(mean - half_width, mean + half_width, "usual")

    below, around, above = coverage(skewed, 30, 2000, interval=usual)
    assert around < 0.935 and below > 5 * above
    below, around, above = coverage(skewed, 30, 1000, num_resamples=400)
    assert around > 0.925 and below < 5 * above


def test_interval_of_groups_of_one_is_that_without_groups():
    values = np.random.default_rng(0).gamma(2, size=40)
    assert mean_interval(values, list("abcdefghij" * 4)) != mean_interval(values, None)
    assert mean_interval(values, [f"video {i}" for i in range(40)]) == mean_interval(values, None)


def test_groups_may_be_any_names_in_any_order():
    rng = np.random.default_rng(0)
    values, groups, _ = clustered(rng, 20)
    named = mean_interval(values, [("video", int(group)) for group in groups])
    numbered = mean_interval(values, groups)
    assert (named.low, named.high) == (numbered.low, numbered.high)
    shuffled = rng.permutation(len(values))
    again = mean_interval(values[shuffled], groups[shuffled], num_resamples=100_000)
    assert again.low == pytest.approx(numbered.low, abs=0.05) and again.high == pytest.approx(numbered.high, abs=0.05)


def test_interval_moves_and_scales_with_the_values():
    values, groups, _ = clustered(np.random.default_rng(0), 30)
    found, moved = mean_interval(values, groups), mean_interval(3 * values + 1e6, groups)
    assert moved.low == pytest.approx(3 * found.low + 1e6, abs=1e-6)
    assert moved.high == pytest.approx(3 * found.high + 1e6, abs=1e-6)
    mirrored = mean_interval(-values, groups)
    assert (-mirrored.high, -mirrored.low) == pytest.approx((found.low, found.high), abs=1e-10)


def test_same_seed_gives_the_same_interval():
    values = np.random.default_rng(0).gamma(2, size=40)
    first, second = mean_interval(values, None), mean_interval(values, None)
    other = mean_interval(values, None, seed=1)
    assert first == second != other
    assert first.low == pytest.approx(other.low, abs=0.1) and first.high == pytest.approx(other.high, abs=0.1)
    assert first.method == "bootstrap-t over 40 videos, 10000 resamples"


def test_blocks_of_resamples_do_not_change_the_interval(monkeypatch):
    values = np.random.default_rng(0).gamma(2, size=40)
    whole = mean_interval(values, None)
    monkeypatch.setattr(intervals, "BLOCK_SIZE", 1000)
    parts = mean_interval(values, None)
    assert (parts.low, parts.high) == pytest.approx((whole.low, whole.high), rel=1e-12)


def test_studentised_sums_against_a_plain_loop():
    values, groups, _ = clustered(np.random.default_rng(0), 15)
    sums, sizes = np.bincount(groups, weights=values), np.bincount(groups)

    def mean_and_error(drawn):
        mean = sums[drawn].sum() / sizes[drawn].sum()
        return mean, math.sqrt(15 / 14 * ((sums - mean * sizes)[drawn] ** 2).sum()) / sizes[drawn].sum()

    mean, error = mean_and_error(np.arange(15))
    rng = np.random.RandomState(np.random.MT19937(np.random.SeedSequence(3)))
    studentised = []
    for _ in range(999):
        own_mean, own_error = mean_and_error(rng.randint(0, 15, size=15))
        studentised.append((own_mean - mean) / own_error)
    studentised.sort()  # of 999, the 25th and the 975th
    found = mean_interval(values, groups, num_resamples=999, seed=3)
    assert found.low == pytest.approx(mean - studentised[974] * error, rel=1e-12)
    assert found.high == pytest.approx(mean - studentised[24] * error, rel=1e-12)


@pytest.mark.parametrize("num_videos", [2, 5, 9])
def test_few_videos_get_students_t(num_videos):
    values = np.random.default_rng(0).normal(size=num_videos)
    found = mean_interval(values, None)
    expected = stats.t.interval(0.95, num_videos - 1, loc=values.mean(), scale=stats.sem(values))
    assert (found.low, found.high) == pytest.approx(expected, rel=1e-12)
    assert found.method == f"Student's t over {num_videos} videos, too few to resample"


@pytest.mark.parametrize("low, high", [(0, 1), (0.1, 0.7), (31.7, 1e-3), (1e6, 1e6 + 1e-3)])
@pytest.mark.parametrize("num_videos", [10, 12, 37])
def test_few_distinct_values_get_students_t(num_videos, low, high):
    # A third of the resamples lacks the one value that differs, and has no spread but for rounding.
    values = np.full(num_videos, float(low))
    values[3] = high
    found = mean_interval(values, None)
    assert found.method == f"Student's t over {num_videos} videos, with too few distinct values to resample"
    expected = stats.t.interval(0.95, num_videos - 1, loc=values.mean(), scale=stats.sem(values))
    assert (found.low, found.high) == pytest.approx(expected, rel=1e-9)


def test_equal_values_have_an_interval_without_width():
    found = mean_interval(np.full(30, 0.1), None)
    assert found.low == found.high == 0.1
    # Groups of equal means, too.
    found = mean_interval(np.tile([1.0, 3.0], 20), np.repeat(np.arange(20), 2))
    assert (found.low, found.high) == (2, 2)


def test_paired_difference_is_narrower_than_its_parts():
    rng = np.random.default_rng(0)
    values, groups, _ = clustered(rng, 60)
    better = values + 0.3 + rng.normal(0, 0.5, len(values))
    found = paired_difference_interval(better, values, groups)
    assert found == mean_interval(better - values, groups)
    assert 0 < found.low < 0.3 < found.high
    single = mean_interval(values, groups)
    assert found.high - found.low < (single.high - single.low) / 4


def test_normal_interval_is_that_of_the_standard_error():
    values = np.random.default_rng(0).normal(size=20)
    mean, deviation, half_width = normal_interval(values)
    low, high = stats.norm.interval(0.95, loc=values.mean(), scale=stats.sem(values))
    assert (mean - half_width, mean + half_width) == pytest.approx((low, high), rel=1e-12)
    assert deviation == pytest.approx(np.std(values))


@pytest.mark.parametrize("num_degrees", [*range(1, 40), 255, 256, 25_599])
def test_student_quantile_against_scipy(num_degrees):
    assert student_quantile(num_degrees) == pytest.approx(stats.t.ppf(0.975, num_degrees), rel=1e-9)


def features_of(rng, num_videos, num_clips=1, shift=0.3, num_samples=2, num_features=4):
    """Features of real clips, and of samples that resemble their clip."""
    shape = (num_videos, num_clips, num_features)
    scales = np.linspace(1, 0.3, num_features)
    video = math.sqrt(0.7) * rng.standard_normal((num_videos, 1, num_features))
    real = (video + math.sqrt(0.3) * rng.standard_normal(shape)) * scales
    made = 0.7 * real[:, :, None] + 0.3 * rng.standard_normal((*shape[:2], num_samples, num_features))
    made[..., 0] += shift
    return real.reshape(-1, num_features), made.reshape(-1, num_samples, num_features)


def distance_of(distance, real, made):
    moments = [FeatureMoments(), FeatureMoments()]
    for own, features in zip(moments, (real, made)):
        own.update(features.reshape(-1, real.shape[-1]))
    return distance(*moments)


def distance_coverage(num_repetitions, num_truth, distance=frechet_distance, num_clips=1, is_grouped=True, **options):
    rng = np.random.default_rng(0)
    num_videos = options.pop("num_videos", 100)
    num_blocks = options.pop("num_blocks", 33)
    groups = np.repeat(np.arange(num_videos), num_clips) if is_grouped else None

    def draw():
        return features_of(rng, num_videos, num_clips, **options)

    truth = np.mean([distance_of(distance, *draw()) for _ in range(num_truth)])
    found = [distance_interval(distance, *draw(), groups, num_blocks=num_blocks) for _ in range(num_repetitions)]
    return np.mean([interval.low <= truth <= interval.high for interval in found])


DISTANCE_CASES = {
    "near": {"num_blocks": 100},  # each video by itself
    "blocks": {},
    "far": {"shift": 1.0},
    "wide": {"num_features": 8},
    "clips": {"num_clips": 3},
    "mmd": {"distance": polynomial_mmd, "shift": 0.6},
}


@pytest.mark.slow
@pytest.mark.parametrize("case", DISTANCE_CASES)
def test_distance_interval_holds_the_expectation_in_95_percent(case):
    # 500 repetitions: the standard deviation is 1 %.
    share = distance_coverage(500, 3000, **DISTANCE_CASES[case])
    print(f"{case}: {share:.2%}")
    assert share == pytest.approx(0.95, abs=0.02)


def test_distance_interval_holds_the_expectation_in_about_95_percent():
    assert distance_coverage(150, 1500) == pytest.approx(0.95, abs=0.055)
    assert distance_coverage(100, 1000, num_blocks=20, num_clips=4, is_grouped=False) < 0.87


def test_distance_interval_of_equal_distributions_errs_on_the_safe_side():
    rng = np.random.default_rng(0)

    def draw():
        return rng.standard_normal((50, 4)), rng.standard_normal((50, 2, 4))

    truth = np.mean([distance_of(frechet_distance, *draw()) for _ in range(2000)])
    found = [distance_interval(frechet_distance, *draw(), None) for _ in range(60)]
    assert np.mean([interval.low <= truth <= interval.high for interval in found]) > 0.9
    assert all(0 <= interval.low < interval.high for interval in found)


def test_distance_interval_is_around_the_distance_and_says_how():
    rng = np.random.default_rng(0)
    real, made = features_of(rng, 40, 2)
    groups = [f"video {i // 2}" for i in range(80)]
    for distance in (frechet_distance, polynomial_mmd):
        found = distance_interval(distance, real, made, groups)
        assert found.low < distance_of(distance, real, made) < found.high
        assert found.method == "jackknife over 40 videos"
    blocks = [distance_interval(frechet_distance, real, made, groups, num_blocks=20, seed=seed) for seed in (0, 0, 1)]
    assert blocks[0] == blocks[1] != blocks[2]
    assert blocks[0].method == "jackknife over 40 videos in 20 blocks"


def test_distance_interval_leaves_out_whole_groups():
    rng = np.random.default_rng(0)
    real, made = features_of(rng, 12, 3)
    groups = np.repeat(np.arange(12), 3)
    left_out = [distance_of(frechet_distance, real[groups != g], made[groups != g]) for g in range(12)]
    error = math.sqrt(11 / 12 * ((left_out - np.mean(left_out)) ** 2).sum())
    root = math.sqrt(distance_of(frechet_distance, real, made))
    half_width = stats.t.ppf(0.975, 11) * error / (2 * root)
    found = distance_interval(frechet_distance, real, made, groups)
    assert (found.low, found.high) == pytest.approx((max(0, root - half_width) ** 2, (root + half_width) ** 2))


def test_distance_interval_of_no_distance_starts_at_0():
    real = np.random.default_rng(0).normal(size=(20, 3))
    found = distance_interval(frechet_distance, real, real[:, None], None)
    assert 0 <= found.low <= found.high < 1e-10
    found = distance_interval(lambda real, made: 0.0, real, real[:, None], None)
    assert (found.low, found.high) == (0, 0)


def test_bad_values_are_named():
    values = np.arange(20.0)
    with pytest.raises(ValueError, match="no interval from one video"):
        mean_interval(values, ["a"] * 20)
    with pytest.raises(ValueError, match="no interval from one video"):
        mean_interval([1.0], None)
    with pytest.raises(ValueError, match="each of the 20 clips, got 3 names"):
        mean_interval(values, ["a", "b", "c"])
    with pytest.raises(ValueError, match=r"`values` must have shape \(N,\)"):
        mean_interval(values[:, None], None)
    with pytest.raises(ValueError, match="`values` holds NaN or infinite"):
        mean_interval(np.append(values, np.inf), None)
    with pytest.raises(ValueError, match="`num_resamples` must be at least 100"):
        mean_interval(values, None, num_resamples=10)
    with pytest.raises(ValueError, match="`first` and `second`.*got 20 and 19"):
        paired_difference_interval(values, values[1:], None)
    with pytest.raises(ValueError, match="`second` holds NaN"):
        paired_difference_interval(values, np.nan * values, None)
    with pytest.raises(ValueError, match="`values` must have at least two values"):
        normal_interval([1.0])
    with pytest.raises(ValueError, match="`num_degrees` must be at least 1"):
        student_quantile(0)


def test_bad_features_are_named():
    real, made = features_of(np.random.default_rng(0), 20)
    for wrong in (made[:-1], made[..., :-1], made[:, 0], made[:, :0]):
        with pytest.raises(ValueError, match=r"`real` must have shape \(N, D\) and `made` \(N, S, D\)"):
            distance_interval(frechet_distance, real, wrong, None)
    with pytest.raises(ValueError, match="`groups` must have at least 10 videos.*got 4"):
        distance_interval(frechet_distance, real, made, np.arange(20) // 5)
    with pytest.raises(ValueError, match="`num_blocks` must be at least 10, got 3"):
        distance_interval(frechet_distance, real, made, None, num_blocks=3)
    with pytest.raises(ValueError, match="`features` holds NaN"):
        distance_interval(frechet_distance, real, np.nan * made, None)
    for wrong in (-1.0, math.nan):
        with pytest.raises(ValueError, match="`distance` must return a finite number of 0 or more"):
            distance_interval(lambda *_: wrong, real, made, None)


def test_interval_of_a_ratio():
    rng = np.random.RandomState(0)
    values, groups = rng.gamma(3, size=60), list(range(30)) * 2
    mean = mean_interval(values, groups)
    half = mean_interval(values, groups, weights=np.full(60, 2.0))
    assert (half.low, half.high) == pytest.approx((mean.low / 2, mean.high / 2))
    # A ratio that is nearly the same in each clip is known far better than its numerator.
    weights = values * rng.uniform(0.99, 1.01, 60)
    ratio = mean_interval(values, groups, weights=weights)
    assert ratio.low < values.sum() / weights.sum() < ratio.high and ratio.high - ratio.low < 0.01
    exact = mean_interval(values, groups, weights=values)
    assert (exact.low, exact.high) == (1, 1)
    for wrong in (weights[:5], weights * 0, weights - 10):
        with pytest.raises(ValueError, match="`weights` must be one number above 0"):
            mean_interval(values, groups, weights=wrong)
