"""Scores of several samples for one clip: how far the samples are from the truth, and how well they spread around it.

References: Gneiting and Raftery (2007), "Strictly proper scoring rules, prediction, and estimation"; Ferro (2014),
"Fair scores for ensemble forecasts"; Fortin et al. (2014), "Why should ensemble spread match the RMSE of the ensemble
mean?"; Hamill (2001), "Interpretation of rank histograms for verifying ensemble forecasts".

Shapes: `B` clips, `M` members (samples for one clip) on axis 1, then any axes, such as `T, C, H, W`; their elements
are called pixels. All is computed in float64, in the unit and range of the values.
"""

import math

import numpy as np


def crps(ensemble: np.ndarray, observation: np.ndarray, *, fair: bool = False) -> np.ndarray:
    """
    Continuous ranked probability score of each pixel: `E|X - y| - E|X - X'| / 2` (Gneiting and Raftery 2007, eq. 21).

    It is 0 for a perfect forecast, smaller is better, and it is the absolute error if there is one member. The
    standard score takes the members for the whole distribution, and so depends on how many there are. The fair score
    (Ferro 2014) estimates without bias what infinitely many members would score, and can be negative.

    Args:
        ensemble (`np.ndarray` of shape `(B, M, ...)`): Members.
        observation (`np.ndarray` of shape `(B, ...)`): The truth.
        fair (`bool`, *optional*, defaults to `False`): Whether the score is the fair one; needs two members.

    Returns:
        `np.ndarray` of shape `(B, ...)`, float64: The scores.

    Raises:
        ValueError: If the shapes do not fit, there are too few members, or a value is not finite.
    """
    ensemble, observation = _checked(ensemble, observation, least=2 if fair else 1)
    num_members = ensemble.shape[1]
    # Relative to the observation, so that a large offset of all values costs no digits.
    error = ensemble - observation[:, None]  # (B, M, ...)
    error.sort(axis=1)
    # The gap between the k-th and the next member lies between k (M - k) of the pairs. All terms are 0 or more, and
    # equal members give exactly 0.
    num_below = np.arange(1, num_members)
    pair_sum = np.einsum(
        "m,bm...->b...", (num_below * (num_members - num_below)).astype(np.float64), np.diff(error, axis=1)
    )
    return np.abs(error, out=error).mean(axis=1) - pair_sum / _num_ordered_pairs(num_members, fair)


def energy_score(ensemble: np.ndarray, observation: np.ndarray, *, fair: bool = False) -> np.ndarray:
    """
    Energy score of each clip as one vector: the CRPS with the Euclidean norm (Gneiting and Raftery 2007, eq. 22).

    Unlike the mean of the pixels' CRPS it also judges how the pixels depend on each other. It grows as the root of the
    number of pixels.

    Args:
        ensemble (`np.ndarray` of shape `(B, M, ...)`): Members.
        observation (`np.ndarray` of shape `(B, ...)`): The truth.
        fair (`bool`, *optional*, defaults to `False`): As for [`crps`].

    Returns:
        `np.ndarray` of shape `(B,)`, float64: The scores.

    Raises:
        ValueError: If the shapes do not fit, there are too few members, or a value is not finite.
    """
    ensemble, observation = _checked(ensemble, observation, least=2 if fair else 1)
    batch_size, num_members = ensemble.shape[:2]
    # Relative to the observation; a copy, so that the differences below may be of any layout.
    error = (ensemble - observation[:, None]).reshape(batch_size, num_members, -1)  # (B, M, D)
    # Differences rather than inner products: the latter cancel where members are nearly equal. One member against the
    # later ones at a time, so that no more memory is needed than for the ensemble.
    pair_sum = sum(
        (_norm(error[:, i + 1 :] - error[:, i : i + 1]).sum(axis=1) for i in range(num_members - 1)),
        np.zeros(batch_size),
    )
    return _norm(error).mean(axis=1) - pair_sum / _num_ordered_pairs(num_members, fair)


def spread_and_error(ensemble: np.ndarray, observation: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """
    Variance of the members, and squared error of their mean, of each pixel. [`spread_skill_ratio`] compares the two.

    Args:
        ensemble (`np.ndarray` of shape `(B, M, ...)`): Members, at least two.
        observation (`np.ndarray` of shape `(B, ...)`): The truth.

    Returns:
        two `np.ndarray` of shape `(B, ...)`, float64: The unbiased variance (over `M - 1`), and the squared error.

    Raises:
        ValueError: If the shapes do not fit, there are too few members, or a value is not finite.
    """
    ensemble, observation = _checked(ensemble, observation, least=2)
    return ensemble.var(axis=1, ddof=1), (ensemble.mean(axis=1) - observation) ** 2


def spread_skill_ratio(variance: np.ndarray, squared_error: np.ndarray, *, num_members: int) -> float:
    """
    Spread of the members over the error of their mean (Fortin et al. 2014).

    It is 1 in expectation if the truth could be one more member; below 1 the samples differ too little, above 1 too
    much. The factor `(M + 1) / M` is due to the mean of `M` members being uncertain itself. Means are taken before the
    ratio and the root, as the mean of the pixels' ratios would not be 1.

    Args:
        variance (`np.ndarray`): Unbiased variances from [`spread_and_error`], of any number of clips and pixels.
        squared_error (`np.ndarray` of the same shape): Squared errors from there.
        num_members (`int`): Number of members `M`, at least two.

    Returns:
        `float`: The ratio, 0 or more.

    Raises:
        ValueError: If the shapes differ, a value is negative or not finite, there are too few members, or no error at
            all to compare with.
    """
    variance, squared_error = np.asarray(variance, dtype=np.float64), np.asarray(squared_error, dtype=np.float64)
    if variance.shape != squared_error.shape or variance.size == 0:
        raise ValueError(
            "`variance` and `squared_error` must have the same shape and at least one value, got"
            f" {variance.shape} and {squared_error.shape}. Pass both results of `spread_and_error`."
        )
    if num_members < 2:
        raise ValueError(f"`num_members` must be at least 2 for a spread, got {num_members}. Sample more per clip.")
    for name, values in (("variance", variance), ("squared_error", squared_error)):
        if not (np.isfinite(values) & (values >= 0)).all():
            raise ValueError(
                f"`{name}` must be finite and not negative. Pass what `spread_and_error` returns for finite frames."
            )
    if not squared_error.any():
        raise ValueError(
            "`squared_error` is 0 everywhere, so there is no error for the spread to match. Leave out the ratio, or"
            " the frames that were given to the model."
        )
    return math.sqrt((num_members + 1) / num_members * variance.mean() / squared_error.mean())


def rank_histogram(ensemble: np.ndarray, observation: np.ndarray, *, rng: np.random.RandomState) -> np.ndarray:
    """
    How often the truth is the smallest, second smallest, ... of itself and the members (Hamill 2001).

    The histogram of many clips is flat if the truth could be one more member, U-shaped if the samples differ too
    little, and leans to a side if they are too bright or too dark. The pixels of a clip depend on each other, so that
    its counts scatter far more than those of independent draws.

    Args:
        ensemble (`np.ndarray` of shape `(B, M, ...)`): Members.
        observation (`np.ndarray` of shape `(B, ...)`): The truth.
        rng (`np.random.RandomState`):
            Breaks ties: among members that equal the truth its place is drawn uniformly, as video has large areas of
            equal values. Each pixel takes one number, so that the result does not depend on the batch size.

    Returns:
        `np.ndarray` of shape `(B, M + 1)`, int64: Pixels of each clip by the number of members below the truth.

    Raises:
        ValueError: If the shapes do not fit, there is no member, or a value is not finite.
    """
    ensemble, observation = _checked(ensemble, observation, least=1)
    batch_size, num_members = ensemble.shape[:2]
    num_below = (ensemble < observation[:, None]).sum(axis=1)  # (B, ...)
    num_equal = (ensemble == observation[:, None]).sum(axis=1)
    rank = num_below + (rng.random_sample(observation.shape) * (num_equal + 1)).astype(np.int64)
    bins = rank.reshape(batch_size, -1) + (num_members + 1) * np.arange(batch_size)[:, None]
    counts = np.bincount(bins.ravel(), minlength=batch_size * (num_members + 1))
    return counts.reshape(batch_size, num_members + 1).astype(np.int64)


def _checked(ensemble: np.ndarray, observation: np.ndarray, *, least: int) -> tuple[np.ndarray, np.ndarray]:
    """Both in float64 (differences of uint8 would wrap), after a look at shapes and values."""
    ensemble, observation = np.asarray(ensemble, dtype=np.float64), np.asarray(observation, dtype=np.float64)
    if ensemble.ndim < 2 or ensemble.shape[:1] + ensemble.shape[2:] != observation.shape or observation.size == 0:
        raise ValueError(
            "`ensemble` must have shape (B, M, ...) and `observation` (B, ...), none of them empty, got"
            f" {ensemble.shape} and {observation.shape}. Put the members on axis 1."
        )
    if ensemble.shape[1] < least:
        raise ValueError(
            f"`ensemble` must have at least {least} member{'s' * (least > 1)} on axis 1, got {ensemble.shape[1]}."
            " Sample more per clip."
        )
    for name, values in (("ensemble", ensemble), ("observation", observation)):
        if not np.isfinite(values).all():
            raise ValueError(
                f"`{name}` holds NaN or infinite values, so there is no score to tell. Find out where they come from."
            )
    return ensemble, observation


def _num_ordered_pairs(num_members: int, fair: bool) -> int:
    """What the sum over pairs `i < j` is divided by to give half the mean distance of two members."""
    return num_members * (num_members - 1 if fair else num_members)


def _norm(vectors: np.ndarray) -> np.ndarray:
    """Euclidean norm along the last axis, without a copy of the squares."""
    return np.sqrt(np.einsum("...d,...d->...", vectors, vectors))
