"""metrics/feature_distances.py: closed forms, direct computations, and that no split into batches changes a number."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics.pairwise import polynomial_kernel

from mcvd_diffusers.metrics.feature_distances import FeatureMoments, frechet_distance, polynomial_mmd


def moments_of(*batches):
    moments = FeatureMoments()
    for batch in batches:
        moments.update(batch)
    return moments


def vectors_with(mean, covariance, seed=0, num_vectors=50):
    """Vectors whose sample mean and covariance (N - 1) are exactly those given."""
    mean, covariance = np.atleast_1d(mean), np.atleast_2d(covariance)
    noise = np.random.default_rng(seed).normal(size=(num_vectors, len(mean)))
    noise -= noise.mean(axis=0)
    orthonormal = np.linalg.svd(noise, full_matrices=False)[0]  # columns have mean 0, as those of `noise`
    return mean + np.sqrt(num_vectors - 1) * orthonormal @ scipy.linalg.sqrtm(covariance).real


def draw(num_vectors, num_features, seed=0):
    """Correlated vectors far from 0."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(num_vectors, num_features)) @ rng.normal(size=(num_features, num_features)) + 5


def test_moments_are_those_of_numpy():
    features = draw(30, 7)
    moments = moments_of(features)
    assert moments.count == 30
    np.testing.assert_allclose(moments.mean, features.mean(axis=0), rtol=1e-13)
    np.testing.assert_allclose(moments.covariance, np.cov(features.T), rtol=1e-12)
    np.testing.assert_allclose(moments.second_moment, features.T @ features / 30, rtol=1e-12)
    np.testing.assert_array_equal(moments.covariance, moments.covariance.T)


def test_features_far_from_0_lose_no_digits():
    features = np.round(draw(40, 3) * 1024) / 1024
    near, far = moments_of(*np.split(features, 4)), moments_of(*np.split(features + 2**30, 4))
    np.testing.assert_allclose(far.covariance, near.covariance, rtol=1e-6)


def assert_same(left, right, rtol=1e-9):
    assert left.count == right.count
    for name in ("mean", "covariance", "second_moment"):
        expected = getattr(right, name)
        np.testing.assert_allclose(getattr(left, name), expected, rtol=0, atol=rtol * np.abs(expected).max())


def assert_same_distances(left, right, other, rtol=1e-9):
    assert_same(left, right, rtol)
    for distance in (frechet_distance, polynomial_mmd):
        assert distance(left, other) == pytest.approx(distance(right, other), rel=rtol)
        assert distance(other, left) == pytest.approx(distance(right, other), rel=rtol)


@settings(deadline=None, max_examples=60)
@given(
    # 6 vectors of 8 features have a singular covariance.
    num_vectors=st.sampled_from([6, 20]),
    cuts=st.lists(st.integers(0, 20), max_size=6),
    is_merged=st.booleans(),
    seed=st.integers(0, 100),
)
def test_any_split_gives_the_same_moments_and_distances(num_vectors, cuts, is_merged, seed):
    features, other = draw(num_vectors, 8, seed), moments_of(draw(30, 8, seed + 1) + 1)
    parts = np.split(features, sorted(min(cut, num_vectors) for cut in cuts))
    split = FeatureMoments()
    for part in parts:
        if is_merged:
            split.merge(moments_of(part))
        else:
            split.update(part)
    assert_same_distances(split, moments_of(features), other)


@pytest.mark.parametrize("num_chunks", [1, 2, 5])
@pytest.mark.parametrize("num_vectors, num_features", [(500, 16), (60, 100)])
def test_chunks_give_the_same_moments_and_distances(num_chunks, num_vectors, num_features):
    features, other = draw(num_vectors, num_features), moments_of(draw(300, num_features, seed=1) + 1)
    split = moments_of(*np.array_split(features, num_chunks))
    assert_same_distances(split, moments_of(features), other)


def test_merging_leaves_the_other_as_it_was():
    first, second = moments_of(draw(5, 3)), moments_of(draw(6, 3, seed=1))
    mean, covariance = second.mean, second.covariance
    empty = FeatureMoments()
    empty.merge(second)
    first.merge(second)
    empty.update(draw(3, 3))
    assert second.count == 6
    np.testing.assert_array_equal(second.mean, mean)
    np.testing.assert_array_equal(second.covariance, covariance)


def test_frechet_distance_of_known_gaussians():
    variances = np.array([[1.0, 4.0, 9.0], [4.0, 0.25, 1.0]])
    expected = 14 + ((variances[0] ** 0.5 - variances[1] ** 0.5) ** 2).sum()  # commuting covariances
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    for rotation in (np.eye(3), turn):
        real = vectors_with(np.zeros(3), rotation @ np.diag(variances[0]) @ rotation.T)
        made = vectors_with(rotation @ [1.0, 2.0, 3.0], rotation @ np.diag(variances[1]) @ rotation.T, seed=1)
        assert frechet_distance(moments_of(real), moments_of(made)) == pytest.approx(expected, rel=1e-11)


def test_frechet_distance_in_two_dimensions():
    # Not commuting: tr (C1 C2)^(1/2) = sqrt(tr(C1 C2) + 2 sqrt(det C1 det C2)).
    first, second = np.array([[2.0, 1.0], [1.0, 3.0]]), np.array([[1.0, -0.4], [-0.4, 0.5]])
    root_trace = np.sqrt(np.trace(first @ second) + 2 * np.sqrt(np.linalg.det(first) * np.linalg.det(second)))
    expected = 2 + np.trace(first + second) - 2 * root_trace
    real, made = moments_of(vectors_with([0, 0], first)), moments_of(vectors_with([1, 1], second, seed=1))
    assert frechet_distance(real, made) == pytest.approx(expected, rel=1e-11)


def test_frechet_distance_in_one_dimension():
    real, made = moments_of(vectors_with(1.0, 4.0)), moments_of(vectors_with(-2.0, 25.0))
    assert frechet_distance(real, made) == pytest.approx(9 + 9, rel=1e-12)


@pytest.mark.parametrize("num_vectors", [3, 20, 100])
def test_frechet_distance_of_equal_moments_is_0(num_vectors):
    moments = moments_of(draw(num_vectors, 20))
    scale = np.trace(moments.covariance)
    assert 0 <= frechet_distance(moments, moments) < 1e-12 * scale
    again = moments_of(*np.array_split(draw(num_vectors, 20)[::-1], 3))
    assert 0 <= frechet_distance(moments, again) < 1e-12 * scale


def test_frechet_distance_of_singular_covariances():
    # On orthogonal halves of the features, C1 C2 is 0 and has 20 roots of 0.
    features = np.zeros((2, 12, 20))
    features[0, :, :10], features[1, :, 10:] = draw(12, 10), draw(12, 10, seed=1)
    real, made = map(moments_of, features)
    expected = ((real.mean - made.mean) ** 2).sum() + np.trace(real.covariance + made.covariance)
    assert frechet_distance(real, made) == pytest.approx(expected, rel=1e-13)
    # Fewer vectors than features, one set within the span of the other: a rotation of 7-dimensional Gaussians.
    span = np.linalg.qr(np.random.default_rng(2).normal(size=(50, 7)))[0]
    small = [draw(8, 7), draw(9, 7, seed=1)]
    embedded = [moments_of(vectors @ span.T) for vectors in small]
    assert frechet_distance(*embedded) == pytest.approx(frechet_distance(*map(moments_of, small)), rel=1e-12)


@pytest.mark.parametrize("num_vectors", [12, 200])
def test_frechet_distance_against_the_square_root_of_scipy(num_vectors):
    real, made = moments_of(draw(num_vectors, 20)), moments_of(draw(num_vectors, 20, seed=1))
    root = scipy.linalg.sqrtm(real.covariance)
    trace = np.trace(scipy.linalg.sqrtm(root @ made.covariance @ root)).real
    expected = ((real.mean - made.mean) ** 2).sum() + np.trace(real.covariance + made.covariance) - 2 * trace
    # scipy's roots of singular matrices are good to 1e-8 of the largest at best.
    assert frechet_distance(real, made) == pytest.approx(expected, rel=1e-10 if num_vectors > 20 else 1e-5)


@pytest.mark.parametrize("num_vectors", [5, 40])
def test_polynomial_mmd_against_the_kernel(num_vectors):
    real, made = draw(num_vectors, 12), draw(2 * num_vectors, 12, seed=1)
    # sklearn's defaults of this degree are JEDi's: gamma 1 / D.
    within = sum(polynomial_kernel(x, x, degree=2, coef0=0).mean() for x in (real, made))
    expected = 100 * (within - 2 * polynomial_kernel(real, made, degree=2, coef0=0).mean())
    assert polynomial_mmd(moments_of(real), moments_of(made)) == pytest.approx(expected, rel=1e-11)


def test_polynomial_mmd_of_known_vectors():
    # Single vectors of one feature: 100 (x^2 - y^2)^2. Opposite vectors have the same second moment.
    assert polynomial_mmd(moments_of([[2.0]]), moments_of([[3.0]])) == pytest.approx(2500)
    features = draw(10, 4)
    assert polynomial_mmd(moments_of(features), moments_of(-features)) == pytest.approx(0, abs=1e-20)
    assert polynomial_mmd(moments_of(np.eye(4)), moments_of(np.zeros((3, 4)))) == pytest.approx(
        100 * 4 * (1 / 16) ** 2
    )


def test_alone_the_moments_of_all_processes_are_ones_own():
    moments = moments_of(draw(5, 3))
    assert moments.merged_across_processes() is moments


SCRIPT = """
import pickle
import numpy as np
import torch.distributed as dist
from mcvd_diffusers.metrics.feature_distances import FeatureMoments

dist.init_process_group("gloo")
moments = []
for name in ("features", "other"):
    moments.append(FeatureMoments())
    moments[-1].update(np.load(f"{name}{dist.get_rank()}.npy"))
merged = [own.merged_across_processes() for own in moments]
with open(f"merged{dist.get_rank()}.pkl", "wb") as file:
    pickle.dump(merged, file)
try:
    wrong = FeatureMoments()
    wrong.update(np.ones((2, 3 + dist.get_rank())))
    wrong.merged_across_processes()
except ValueError as error:
    with open(f"refused{dist.get_rank()}.txt", "w") as file:  # printed lines of two processes may run into each other
        file.write(str(error))
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path):
    features, other = draw(61, 20), draw(100, 20, seed=1)
    for name, parts in (("features", np.split(features, [37])), ("other", np.split(other, [100]))):
        for rank, part in enumerate(parts):
            np.save(tmp_path / f"{name}{rank}.npy", part)
    (tmp_path / "script.py").write_text(SCRIPT)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone", "script.py"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    run = subprocess.run(launcher, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    for rank in range(2):
        message = (tmp_path / f"refused{rank}.txt").read_text()
        assert "`other` must have the 3 features of these moments, got 4." in message
    merged = [pickle.loads((tmp_path / f"merged{rank}.pkl").read_bytes()) for rank in range(2)]
    # The second process has none of `other`.
    assert_same_distances(merged[0][0], moments_of(features), merged[0][1])
    assert_same(merged[0][1], moments_of(other))
    for first, second in zip(*merged):  # to the last bit
        np.testing.assert_array_equal(first.mean, second.mean)
        np.testing.assert_array_equal(first.covariance, second.covariance)


def test_bad_features_are_named():
    moments = moments_of(draw(5, 3))
    for bad in (np.nan, np.inf):
        with pytest.raises(ValueError, match="`features` holds NaN"):
            moments.update(np.full((2, 3), bad))
    with pytest.raises(ValueError, match=r"`features` must have shape \(N, D\), got \(3,\)"):
        moments.update(np.ones(3))
    with pytest.raises(ValueError, match="`other` must have the 3 features of these moments, got 4"):
        moments.update(np.ones((2, 4)))
    with pytest.raises(ValueError, match="`other` must have the 3 features"):
        moments.merge(moments_of(draw(5, 4)))
    assert moments.count == 5


def test_moments_that_cannot_be_computed_raise():
    empty, one, many = FeatureMoments(), moments_of(np.ones((1, 3))), moments_of(draw(5, 3))
    for name in ("mean", "covariance", "second_moment"):
        with pytest.raises(ValueError, match="needs at least . feature vector.*got 0"):
            getattr(empty, name)
    with pytest.raises(ValueError, match="needs at least 2 feature vectors for a covariance, got 1"):
        one.covariance
    for distance in (frechet_distance, polynomial_mmd):
        with pytest.raises(ValueError, match="got 0"):
            distance(empty, many)
        with pytest.raises(ValueError, match="`made` must have the 3 features of `real`, got 4"):
            distance(many, moments_of(draw(5, 4)))
    with pytest.raises(ValueError, match="at least 2 feature vectors"):
        frechet_distance(many, one)
