"""Intervals of 95 % for means over clips and for distances between feature distributions.

References: Efron and Tibshirani (1993), "An introduction to the bootstrap", chapter 12 (bootstrap-t); Hall (1988),
"Theoretical comparison of bootstrap confidence intervals"; Cochran (1977), "Sampling techniques", chapter 6 (standard
error of a ratio); Abramowitz and Stegun (1964), section 26.7 (Student's t).

Clips of one video resemble each other, so that many clips of few videos tell little. What is resampled is therefore a
group, usually a video, with all that belongs to it. All is computed in float64, in the unit of the values.

Shapes: `N` clips in `G` groups, `S` samples for each clip, `D` features.
"""

import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from .feature_distances import FeatureMoments


# Probability that an interval leaves out the truth on each side.
TAIL = 0.025
# The same quantile of the normal distribution.
NORMAL_QUANTILE = 1.959963984540054
# With fewer groups the resamples are too few and too alike.
MIN_RESAMPLED_GROUPS = 10
# Drawn groups that are held in memory at a time.
BLOCK_SIZE = 2**20


@dataclass(frozen=True)
class Interval:
    """
    An interval that holds the truth with a probability of 95 %.

    Args:
        low (`float`): Lower end.
        high (`float`): Upper end.
        method (`str`): How it was made, for people, e.g. `"bootstrap-t over 256 videos, 10000 resamples"`.
    """

    low: float
    high: float
    method: str


def mean_interval(
    values: np.ndarray,
    groups: Sequence[Hashable] | None,
    *,
    weights: np.ndarray | None = None,
    num_resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """
    95 % interval of the mean of clips' values, for videos drawn at random.

    The bootstrap-t of groups: it keeps its level for skewed values too, where the usual mean plus or minus two
    standard errors misses the truth on one side. With fewer than 10 groups, or so few distinct ones that a resample
    may have no spread, it is Student's t on the same standard error, which assumes groups near to normal.

    Args:
        values (`np.ndarray` of shape `(N,)`): One value for each clip.
        groups (sequence of `N` hashables, or `None`):
            Which video a clip is of. `None` takes each clip for a video of its own.
        weights (`np.ndarray` of shape `(N,)`, above 0, *optional*):
            The interval is then that of a ratio, the sum of `values` over the sum of `weights`.
        num_resamples (`int`, *optional*, defaults to 10000): Number of resamples, at least 1000 for steady ends.
        seed (`int`, *optional*, defaults to 0): Seed of the resampling; the same seed gives the same interval.

    Returns:
        [`Interval`]: Around the mean over clips, so that a video counts by its number of clips.

    Raises:
        ValueError: If a shape does not fit, a value is not finite, there are fewer than two groups, or `num_resamples`
            is below 100.
    """
    values = _checked_values("values", values)
    if num_resamples < 100:
        raise ValueError(f"`num_resamples` must be at least 100 to tell the outer 5 %, got {num_resamples}.")
    group_of, num_groups = _group_numbers(groups, len(values))
    weights = np.ones_like(values) if weights is None else _checked_values("weights", weights)
    if weights.shape != values.shape or weights.min() <= 0:
        raise ValueError(f"`weights` must be one number above 0 for each of the {len(values)} clips.")
    mean = values.sum() / weights.sum()
    if (values == values[0] * weights / weights[0]).all():
        value = float(values[0] / weights[0])
        return Interval(value, value, f"all {len(values)} values are equal")

    sizes = np.bincount(group_of, weights=weights, minlength=num_groups)  # (G,)
    residuals = np.bincount(group_of, weights=values - mean * weights, minlength=num_groups)  # (G,): S_g - mean N_g
    # Standard error of a ratio by linearisation (Cochran 1977, chapter 6).
    scale = math.sqrt(num_groups / (num_groups - 1))
    error = scale * math.sqrt((residuals**2).sum()) / sizes.sum()

    if num_groups >= MIN_RESAMPLED_GROUPS:
        # A resample's standard error is of its own mean, which lies `shift` above that of the values:
        # sum w_g (residual_g - shift N_g)^2, multiplied out so that one product gives all sums of a block.
        terms = np.stack([residuals, sizes, residuals**2, residuals * sizes, sizes**2], axis=1)  # (G, 5)
        studentised = np.empty(num_resamples)
        done = 0
        for counts in _resampled_counts(num_groups, num_resamples, seed):  # (block, G)
            total, count, square, cross, square_count = (counts @ terms).T
            shift = total / count
            own_square = square - 2 * shift * cross + shift**2 * square_count
            # Where a resample holds equal groups only, this is what rounding left of 0.
            own_square[own_square < 1e-12 * square] = 0
            own_error = scale * np.sqrt(own_square) / count
            # A resample without spread is infinitely far off, or at 0 if it has met the mean.
            with np.errstate(divide="ignore", invalid="ignore"):
                studentised[done : done + len(counts)] = np.where(shift == 0, 0, shift / own_error)
            done += len(counts)
        # "weibull" is the (B + 1) p-th in order (Efron and Tibshirani 1993, section 12.5).
        with np.errstate(invalid="ignore"):
            lower, upper = np.quantile(studentised, [TAIL, 1 - TAIL], method="weibull")
        if math.isfinite(lower) and math.isfinite(upper):
            method = f"bootstrap-t over {num_groups} videos, {num_resamples} resamples"
            # The upper quantile makes the lower end: the resampled mean is to the mean as the mean is to the truth.
            return Interval(float(mean - upper * error), float(mean - lower * error), method)

    half_width = student_quantile(num_groups - 1) * error
    reason = "too few" if num_groups < MIN_RESAMPLED_GROUPS else "with too few distinct values"
    method = f"Student's t over {num_groups} videos, {reason} to resample"
    return Interval(float(mean - half_width), float(mean + half_width), method)


def paired_difference_interval(
    first: np.ndarray,
    second: np.ndarray,
    groups: Sequence[Hashable] | None,
    *,
    num_resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """
    95 % interval of how much the first mean exceeds the second, of two models on the same clips.

    Much of a clip's value is due to the clip and cancels in the difference, so that this tells models apart where the
    intervals of their means overlap. They differ if it leaves out 0.

    Args:
        first, second (`np.ndarray` of shape `(N,)`): Values of both models, clip by clip.
        groups (sequence of `N` hashables, or `None`): As for [`mean_interval`].
        num_resamples (`int`, *optional*, defaults to 10000): As there.
        seed (`int`, *optional*, defaults to 0): As there.

    Returns:
        [`Interval`]: Of the mean of `first - second`.

    Raises:
        ValueError: If the shapes differ, and as for [`mean_interval`].
    """
    first, second = _checked_values("first", first), _checked_values("second", second)
    if first.shape != second.shape:
        raise ValueError(
            f"`first` and `second` must have a value for each of the same clips, got {len(first)} and {len(second)}."
        )
    return mean_interval(first - second, groups, num_resamples=num_resamples, seed=seed)


def distance_interval(
    distance: Callable[[FeatureMoments, FeatureMoments], float],
    real: np.ndarray,
    made: np.ndarray,
    groups: Sequence[Hashable] | None,
    *,
    num_blocks: int = 256,
    seed: int = 0,
) -> Interval:
    """
    95 % interval of a squared distance between feature distributions, at this number of clips.

    Distances such as Fréchet's are biased upwards for finitely many clips. What is covered is the expectation of this
    very number over draws of as many clips: what a protocol defines and what others get who repeat it. It is not the
    distance that infinitely many clips would have.

    The standard error is the jackknife's: the distance is computed again without each group in turn. A resample of the
    bootstrap would hold but 63 % of the groups, which adds the bias a second time and makes intervals up to twice as
    wide as they need be; the jackknife changes the number of groups by one. Student's t is laid around the root of the
    distance, since these distances are squares: skewed to the right, the more so the smaller they are.

    Simulated coverage is 93 % to 97 % where real and made features differ by more than the noise. Where they do not,
    or features outnumber clips, it is up to 100 %: the interval is then too wide.

    Args:
        distance (`Callable`):
            Squared distance of the real and the made [`FeatureMoments`], such as [`frechet_distance`] or
            [`polynomial_mmd`].
        real (`np.ndarray` of shape `(N, D)`): Features of the real clips.
        made (`np.ndarray` of shape `(N, S, D)`): Features of the samples made for each of them.
        groups (sequence of `N` hashables, or `None`):
            Which video a clip is of; real and made clips are left out together. `None` takes each clip for a video of
            its own.
        num_blocks (`int`, *optional*, defaults to 256):
            How often the distance is computed again, at most. More groups than that are left out several at a time,
            drawn at random.
        seed (`int`, *optional*, defaults to 0): Seed of that draw; without effect if there are no more groups.

    Returns:
        [`Interval`]: Around the distance.

    Raises:
        ValueError: If a shape does not fit, a value is not finite, there are fewer than 10 groups or blocks, or the
            distance is negative or not finite.
    """
    real, made = np.asarray(real, dtype=np.float64), np.asarray(made, dtype=np.float64)
    if real.ndim != 2 or made.ndim != 3 or made.shape[1] == 0 or made.shape[::2] != real.shape:
        raise ValueError(
            f"`real` must have shape (N, D) and `made` (N, S, D), got {real.shape} and {made.shape}. Give the same"
            " clips in the same order."
        )
    if num_blocks < MIN_RESAMPLED_GROUPS:
        raise ValueError(f"`num_blocks` must be at least {MIN_RESAMPLED_GROUPS}, got {num_blocks}.")
    group_of, num_groups = _group_numbers(groups, len(real))
    if num_groups < MIN_RESAMPLED_GROUPS:
        raise ValueError(
            f"`groups` must have at least {MIN_RESAMPLED_GROUPS} videos for an interval of a distance, got"
            f" {num_groups}. Evaluate more videos, or report the distance alone."
        )
    num_blocks = min(num_blocks, num_groups)
    block_of_group = np.arange(num_groups) % num_blocks  # sizes differ by one at most
    if num_blocks < num_groups:
        # At random, since files often stand class by class.
        block_of_group = _random_state(seed).permutation(block_of_group)
    block_of = block_of_group[group_of]  # (N,)

    def moments(features: np.ndarray) -> FeatureMoments:
        result = FeatureMoments()
        result.update(features.reshape(-1, real.shape[1]))
        return result

    whole = _checked_distance(distance(moments(real), moments(made)))
    left_out = np.array(
        [
            _checked_distance(distance(moments(real[block_of != block]), moments(made[block_of != block])))
            for block in range(num_blocks)
        ]
    )
    # Efron and Tibshirani (1993), eq. 11.5.
    error = math.sqrt((num_blocks - 1) / num_blocks * ((left_out - left_out.mean()) ** 2).sum())
    method = f"jackknife over {num_groups} videos"
    if num_blocks < num_groups:
        method += f" in {num_blocks} blocks"
    half_width = student_quantile(num_blocks - 1) * error
    if whole == 0:  # has no scale of its own, as if real and made features are the same
        return Interval(0.0, half_width, method)
    # The delta method: the standard error of a root is that of its square over twice the root.
    root = math.sqrt(whole)
    half_width /= 2 * root
    return Interval(max(0.0, root - half_width) ** 2, (root + half_width) ** 2, method)


def normal_interval(values: np.ndarray) -> tuple[float, float, float]:
    """
    Mean, standard deviation and half width of the usual 95 % interval, as the code of MCVD reports them.

    To compare with published numbers. It takes clips for independent and values for normal; [`mean_interval`] does
    not.

    Args:
        values (`np.ndarray` of shape `(N,)`): One value for each clip, at least two.

    Returns:
        three `float`: Mean, standard deviation (over `N`), and `1.96 std / sqrt(N - 1)`.

    Raises:
        ValueError: If the shape does not fit, a value is not finite, or there are fewer than two.
    """
    values = _checked_values("values", values)
    if len(values) < 2:
        raise ValueError(f"`values` must have at least two values for a standard error, got {len(values)}.")
    deviation = float(values.std())
    return float(values.mean()), deviation, NORMAL_QUANTILE * deviation / math.sqrt(len(values) - 1)


def student_quantile(num_degrees: int) -> float:
    """
    97.5 % quantile of Student's t: half the width of a two-sided 95 % interval, in standard errors.

    Args:
        num_degrees (`int`): Degrees of freedom, at least 1.

    Returns:
        `float`: The quantile, to 1e-9 relative.

    Raises:
        ValueError: If there is no degree of freedom.
    """
    if num_degrees < 1:
        raise ValueError(f"`num_degrees` must be at least 1, got {num_degrees}.")

    def central_probability(angle: float) -> float:
        """Of `|t| < sqrt(num_degrees) tan(angle)`: Abramowitz and Stegun, eq. 26.7.3 (odd) and 26.7.4 (even)."""
        # Terms 1, 2/3 cos^2, 2 4/(3 5) cos^4, ... if odd, and 1, 1/2 cos^2, 1 3/(2 4) cos^4, ... if even.
        step = np.arange(2 if num_degrees % 2 else 1, num_degrees - 2, 2)
        series = 1 + np.cumprod(math.cos(angle) ** 2 * step / (step + 1)).sum()
        if num_degrees % 2 == 0:
            return math.sin(angle) * series
        return 2 / math.pi * (angle + (math.sin(angle) * math.cos(angle) * series if num_degrees > 1 else 0))

    low, high = 0.0, math.pi / 2
    for _ in range(60):  # bisection, to the last bit
        middle = (low + high) / 2
        low, high = (middle, high) if central_probability(middle) < 1 - 2 * TAIL else (low, middle)
    return math.sqrt(num_degrees) * math.tan(low)


def _random_state(seed: int) -> np.random.RandomState:
    """A stream that NumPy promises never to change, unlike that of its newer generators."""
    return np.random.RandomState(np.random.MT19937(np.random.SeedSequence(seed)))


def _resampled_counts(num_groups: int, num_resamples: int, seed: int) -> Iterator[np.ndarray]:
    """Blocks of shape `(block, G)`: how often each resample, of `G` draws with replacement, has drawn each group."""
    rng = _random_state(seed)
    block = max(1, BLOCK_SIZE // num_groups)
    for start in range(0, num_resamples, block):
        size = min(block, num_resamples - start)
        drawn = rng.randint(0, num_groups, size=(size, num_groups), dtype=np.int64)
        drawn += num_groups * np.arange(size)[:, None]
        yield np.bincount(drawn.ravel(), minlength=size * num_groups).reshape(size, num_groups).astype(np.float64)


def _group_numbers(groups: Sequence[Hashable] | None, num_clips: int) -> tuple[np.ndarray, int]:
    """Number the groups: the number of each clip's, shape `(N,)`, and how many there are."""
    if groups is None:
        groups = range(num_clips)
    if len(groups) != num_clips:
        raise ValueError(f"`groups` must name the video of each of the {num_clips} clips, got {len(groups)} names.")
    number = {}
    group_of = np.array([number.setdefault(group, len(number)) for group in groups], dtype=np.int64)
    if len(number) < 2:
        raise ValueError(
            f"`groups` must have at least two videos, got {len(number)}: there is no interval from one video, as"
            " nothing tells how much videos differ. Evaluate more videos."
        )
    return group_of, len(number)


def _checked_values(name: str, values: np.ndarray) -> np.ndarray:
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or len(values) == 0:
        raise ValueError(f"`{name}` must have shape (N,), one value for each clip, got {values.shape}.")
    if not np.isfinite(values).all():
        raise ValueError(
            f"`{name}` holds NaN or infinite values, so there is no interval. A PSNR is infinite if frames are met"
            " exactly: take errors instead."
        )
    return values


def _checked_distance(value: float) -> float:
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"`distance` must return a finite number of 0 or more, got {value}.")
    return float(value)
