"""metrics/ensembles.py: against scoringrules, closed forms, and what exchangeable members must give."""

import math
import tracemalloc

import numpy as np
import pytest
import scoringrules
from scipy import stats

from mcvd_diffusers.metrics.ensembles import crps, energy_score, rank_histogram, spread_and_error, spread_skill_ratio


def draw(num_members, shape=(3, 4, 5), seed=0, offset=0.0):
    """An ensemble (B, M, ...) and its observation (B, ...)."""
    rng = np.random.default_rng(seed)
    return offset + rng.normal(size=(shape[0], num_members, *shape[1:])), offset + rng.normal(size=shape)


@pytest.mark.parametrize("fair", [False, True])
@pytest.mark.parametrize("num_members", [2, 3, 10, 51])
def test_crps_against_scoringrules(num_members, fair):
    ensemble, observation = draw(num_members)
    expected = scoringrules.crps_ensemble(observation, ensemble, m_axis=1, estimator="fair" if fair else "nrg")
    np.testing.assert_allclose(crps(ensemble, observation, fair=fair), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("fair", [False, True])
@pytest.mark.parametrize("num_members", [2, 3, 10])
def test_energy_score_against_scoringrules(num_members, fair):
    ensemble, observation = draw(num_members)
    expected = scoringrules.es_ensemble(
        observation.reshape(3, -1),
        ensemble.reshape(3, num_members, -1),
        m_axis=1,
        v_axis=2,
        estimator="fair" if fair else "nrg",
    )
    np.testing.assert_allclose(energy_score(ensemble, observation, fair=fair), expected, rtol=0, atol=1e-12)


def test_scores_of_one_member_are_its_error():
    ensemble, observation = draw(1)
    error = ensemble[:, 0] - observation
    np.testing.assert_array_equal(crps(ensemble, observation), np.abs(error))
    np.testing.assert_allclose(energy_score(ensemble, observation), np.linalg.norm(error.reshape(3, -1), axis=1))


def test_energy_score_of_one_pixel_is_the_crps():
    ensemble, observation = draw(7, shape=(4, 1))
    for fair in (False, True):
        np.testing.assert_allclose(
            energy_score(ensemble, observation, fair=fair), crps(ensemble, observation, fair=fair)[:, 0], atol=1e-14
        )


def test_equal_members_score_as_one():
    ensemble, observation = draw(1, offset=1e6)
    for score in (crps, energy_score):
        for fair in (False, True):
            np.testing.assert_allclose(
                score(ensemble.repeat(5, axis=1), observation, fair=fair), score(ensemble, observation), rtol=1e-15
            )


def test_large_offset_costs_no_digits():
    ensemble, observation = draw(10)
    ensemble, observation = np.round(ensemble * 2**20) / 2**20, np.round(observation * 2**20) / 2**20
    for score in (crps, energy_score):
        np.testing.assert_array_equal(score(ensemble + 2**20, observation + 2**20), score(ensemble, observation))


def test_bytes_do_not_wrap():
    ensemble, observation = np.array([[0, 255]], dtype=np.uint8), np.array([10], dtype=np.uint8)
    assert crps(ensemble, observation) == pytest.approx((10 + 245) / 2 - 255 / 4)
    assert energy_score(ensemble, observation) == pytest.approx((10 + 245) / 2 - 255 / 4)


def test_crps_of_many_gaussian_members_is_that_of_the_gaussian():
    # At the quantiles rather than drawn, so that no luck is needed.
    members = stats.norm.ppf((np.arange(20_000) + 0.5) / 20_000)
    observation = np.array([-1.5, 0.0, 0.3, 2.0])
    expected = observation * (2 * stats.norm.cdf(observation) - 1) + 2 * stats.norm.pdf(observation)
    expected -= 1 / math.sqrt(math.pi)
    np.testing.assert_allclose(crps(np.tile(members, (4, 1)), observation), expected, atol=1e-4)


@pytest.mark.parametrize("score, dimensions", [(crps, ()), (energy_score, (3,))])
def test_only_the_fair_score_does_not_depend_on_the_number_of_members(score, dimensions):
    means = {
        fair: [score(*draw(m, shape=(100_000, *dimensions), seed=m), fair=fair).mean() for m in (2, 8)]
        for fair in (False, True)
    }
    assert means[True][0] == pytest.approx(means[True][1], abs=0.015)
    assert means[False][0] > means[False][1] + 0.1


def test_memory_is_a_few_times_that_of_the_ensemble():
    ensemble, observation = draw(100, shape=(2, 2000))
    for score in (crps, energy_score):
        tracemalloc.start()
        score(ensemble, observation)
        assert tracemalloc.get_traced_memory()[1] < 6 * ensemble.nbytes
        tracemalloc.stop()


def test_spread_and_error_of_known_members():
    variance, error = spread_and_error(np.array([[1.0, 2.0, 6.0]]), np.array([5.0]))
    assert variance == pytest.approx(7) and error == pytest.approx(4)


@pytest.mark.parametrize("num_members", [2, 3, 10])
def test_spread_matches_the_error_of_exchangeable_members(num_members):
    ensemble, observation = draw(num_members, shape=(100_000,))
    variance, error = spread_and_error(ensemble, observation)
    assert spread_skill_ratio(variance, error, num_members=num_members) == pytest.approx(1, abs=0.01)
    variance, error = spread_and_error(ensemble / 2, observation)
    expected = 0.5 * math.sqrt((1 + 1 / num_members) / (1 + 0.25 / num_members))
    assert spread_skill_ratio(variance, error, num_members=num_members) == pytest.approx(expected, abs=0.01)


def chi_square_p(counts):
    return stats.chisquare(counts.sum(axis=0)).pvalue


def test_rank_histogram_of_exchangeable_members_is_flat():
    ensemble, observation = draw(5, shape=(60_000,))
    assert chi_square_p(rank_histogram(ensemble, observation, rng=np.random.RandomState(0))) > 0.01


@pytest.mark.parametrize("num_levels", [1, 2, 4])
def test_rank_histogram_is_flat_with_ties(num_levels):
    rng = np.random.default_rng(1)
    everything = rng.integers(num_levels, size=(60, 6, 1000))
    counts = rank_histogram(everything[:, :5], everything[:, 5], rng=np.random.RandomState(0))
    assert counts.shape == (60, 6) and (counts.sum(axis=1) == 1000).all() and counts.dtype == np.int64
    assert chi_square_p(counts) > 0.01


def test_rank_histogram_of_too_little_spread_is_u_shaped():
    ensemble, observation = draw(5, shape=(10, 1000))
    counts = rank_histogram(ensemble / 3, observation, rng=np.random.RandomState(0)).sum(axis=0)
    assert min(counts[0], counts[-1]) > 3 * counts[1:-1].max()
    assert chi_square_p(counts[None]) < 1e-6


def test_rank_is_the_number_of_members_below():
    ensemble = np.array([[1.0, 2.0, 3.0], [3.0, 1.0, 2.0], [1.0, 2.0, 3.0]])
    counts = rank_histogram(ensemble, np.array([0.0, 2.5, 4.0]), rng=np.random.RandomState(0))
    np.testing.assert_array_equal(counts, [[1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])


def test_rank_histogram_of_a_batch_is_that_of_its_clips():
    everything = np.random.default_rng(1).integers(3, size=(6, 4, 5, 5))
    whole = rank_histogram(everything[:, :3], everything[:, 3], rng=np.random.RandomState(0))
    rng = np.random.RandomState(0)
    parts = [rank_histogram(part[:, :3], part[:, 3], rng=rng) for part in np.split(everything, [1, 4])]
    np.testing.assert_array_equal(whole, np.concatenate(parts))


SCORES = [crps, energy_score, spread_and_error, lambda e, o: rank_histogram(e, o, rng=np.random.RandomState(0))]


@pytest.mark.parametrize("score", SCORES, ids=["crps", "energy_score", "spread_and_error", "rank_histogram"])
def test_bad_input_is_named(score):
    ensemble, observation = draw(7)
    with pytest.raises(ValueError, match=r"`ensemble` must have shape \(B, M, ...\).*members on axis 1"):
        score(ensemble.swapaxes(0, 1), observation)
    with pytest.raises(ValueError, match="`ensemble` must have shape"):
        score(np.zeros(3), np.zeros(3))
    with pytest.raises(ValueError, match="none of them empty"):
        score(np.zeros((0, 3)), np.zeros(0))
    with pytest.raises(ValueError, match="`ensemble` must have at least . member"):
        score(ensemble[:, :0], observation)
    for bad in (np.nan, np.inf):
        with pytest.raises(ValueError, match="`ensemble` holds NaN"):
            score(np.where(ensemble == ensemble.max(), bad, ensemble), observation)
        with pytest.raises(ValueError, match="`observation` holds NaN"):
            score(ensemble, np.where(observation == observation.max(), bad, observation))


def test_a_spread_needs_two_members():
    ensemble, observation = draw(1)
    for score in (lambda *a: crps(*a, fair=True), lambda *a: energy_score(*a, fair=True), spread_and_error):
        with pytest.raises(ValueError, match="`ensemble` must have at least 2 members.*got 1"):
            score(ensemble, observation)


def test_ratio_that_cannot_be_computed_raises():
    ones = np.ones((2, 3))
    with pytest.raises(ValueError, match="`squared_error` is 0 everywhere"):
        spread_skill_ratio(ones, 0 * ones, num_members=3)
    with pytest.raises(ValueError, match="`num_members` must be at least 2.*got 1"):
        spread_skill_ratio(ones, ones, num_members=1)
    with pytest.raises(ValueError, match="same shape"):
        spread_skill_ratio(ones, ones[:1], num_members=3)
    with pytest.raises(ValueError, match="at least one value"):
        spread_skill_ratio(ones[:0], ones[:0], num_members=3)
    with pytest.raises(ValueError, match="`variance` must be finite and not negative"):
        spread_skill_ratio(-ones, ones, num_members=3)
    with pytest.raises(ValueError, match="`squared_error` must be finite"):
        spread_skill_ratio(ones, np.nan * ones, num_members=3)
