"""Distances between the features of real and of made videos, from statistics that are gathered batch by batch.

References: Heusel et al. (2017), "GANs trained by a two time-scale update rule converge to a local Nash equilibrium"
(Fréchet distance of features, after Dowson and Landau 1982); Luo et al. (2024), "Beyond FVD: enhanced evaluation
metrics for video generation quality", arXiv 2410.05203 (JEDi); Chan et al. (1983), "Algorithms for computing the
sample variance" (merging of moments).

Shapes: `N` feature vectors of `D` features each. All is computed in float64.
"""

import numpy as np


class FeatureMoments:
    """
    Mean and covariance of feature vectors that come in batches, from several processes.

    However the vectors are split into batches and processes, the result is the same to rounding. Moments are kept
    centred, so that features far from 0 lose no digits.
    """

    def __init__(self):
        self._count = 0
        self._mean: np.ndarray | None = None  # (D,), None until the first vector
        self._scatter: np.ndarray | None = None  # (D, D): sum of outer products of the centred vectors

    @property
    def count(self) -> int:
        """`int`: Number of vectors so far."""
        return self._count

    @property
    def mean(self) -> np.ndarray:
        """`np.ndarray` of shape `(D,)`: Mean vector. Raises a `ValueError` if there is no vector."""
        self._check_count(1, "a mean")
        return self._mean.copy()

    @property
    def covariance(self) -> np.ndarray:
        """`np.ndarray` of shape `(D, D)`: Unbiased covariance. Raises a `ValueError` with fewer than two vectors."""
        self._check_count(2, "a covariance")
        return self._scatter / (self._count - 1)

    @property
    def second_moment(self) -> np.ndarray:
        """`np.ndarray` of shape `(D, D)`: Mean of `x x^T`, uncentred. Raises a `ValueError` if there is no vector."""
        self._check_count(1, "a second moment")
        return self._scatter / self._count + np.outer(self._mean, self._mean)

    def update(self, features: np.ndarray) -> None:
        """
        Add a batch.

        Args:
            features (`np.ndarray` of shape `(N, D)`): Vectors; none at all (`N` 0) is fine.

        Raises:
            ValueError: If a shape does not fit, `D` is not that of earlier batches, or a value is not finite.
        """
        features = np.asarray(features, dtype=np.float64)
        if features.ndim != 2 or features.shape[1] == 0:
            raise ValueError(f"`features` must have shape (N, D), got {features.shape}. Put one video in each row.")
        if not np.isfinite(features).all():
            raise ValueError(
                "`features` holds NaN or infinite values, so there are no moments to tell. Check the frames and the"
                " precision that the feature network runs in."
            )
        batch = FeatureMoments()
        batch._count = len(features)
        if batch._count == 0:
            return
        batch._mean = features.mean(axis=0)
        centred = features - batch._mean
        batch._scatter = centred.T @ centred  # exactly symmetric: the product of a matrix with itself
        self.merge(batch)

    def merge(self, other: "FeatureMoments") -> None:
        """
        Add the vectors of other moments to these (Chan et al. 1983).

        Args:
            other ([`FeatureMoments`]): Moments of the same features; stay as they are.

        Raises:
            ValueError: If the number of features differs.
        """
        if other._count == 0:
            return
        if self._count == 0:
            self._count, self._mean, self._scatter = other._count, other._mean.copy(), other._scatter.copy()
            return
        if len(self._mean) != len(other._mean):
            raise ValueError(
                f"`other` must have the {len(self._mean)} features of these moments, got {len(other._mean)}. Take both"
                " from one feature network."
            )
        count = self._count + other._count
        step = other._mean - self._mean
        self._scatter = self._scatter + other._scatter + (self._count * (other._count / count)) * np.outer(step, step)
        self._mean = self._mean + (other._count / count) * step
        self._count = count

    def merged_across_processes(self) -> "FeatureMoments":
        """
        The moments of all processes' vectors together; every process must call it, also one that has no vector.

        Returns:
            [`FeatureMoments`]: The same on every process, to the last bit. These moments themselves if
            `torch.distributed` is not initialised.

        Raises:
            ValueError: If the processes have different numbers of features.
        """
        import torch.distributed

        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            return self
        parts: list[FeatureMoments | None] = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(parts, self)
        merged = FeatureMoments()
        for part in parts:  # in the order of ranks, so that rounding is the same everywhere
            merged.merge(part)
        return merged

    def _check_count(self, least: int, what: str) -> None:
        if self._count < least:
            raise ValueError(
                f"`FeatureMoments` needs at least {least} feature vector{'s' * (least > 1)} for {what}, got"
                f" {self._count}. Call `update` with more."
            )


def frechet_distance(real: FeatureMoments, made: FeatureMoments) -> float:
    """
    Squared Fréchet distance of two Gaussians with these moments (Heusel et al. 2017, eq. 6).

    `|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2))`. FID, FVD and their kin are this number for their networks. It is
    biased: the fewer vectors, the larger, so only numbers of equally many vectors compare.

    Args:
        real ([`FeatureMoments`]): Moments of real videos' features, at least two vectors.
        made ([`FeatureMoments`]): Moments of made videos' features, at least two vectors.

    Returns:
        `float`: The distance, 0 or more, in squared units of the features.

    Raises:
        ValueError: If the numbers of features differ, or one has fewer than two vectors.
    """
    _check_features(real, made)
    # With C = A A^T the trace of (C1 C2)^(1/2) is the sum of the singular values of A1^T A2. They are exact to
    # rounding where roots of the eigenvalues of C1 C2 are off by 1e-8: at 0, of which few vectors give many.
    cross = _root_factor(real.covariance).T @ _root_factor(made.covariance)  # (rank 1, rank 2)
    overlap = np.linalg.svd(cross, compute_uv=False).sum()
    spread = (np.trace(real._scatter) / (real.count - 1)) + (np.trace(made._scatter) / (made.count - 1))
    step = real.mean - made.mean
    # Rounding may leave equal moments below 0.
    return max(0.0, float(step @ step + spread - 2 * overlap))


def polynomial_mmd(real: FeatureMoments, made: FeatureMoments) -> float:
    """
    Squared maximum mean discrepancy with JEDi's kernel `(x . y / D)^2`, times 100 (Luo et al. 2024).

    `100 (mean k(x, x') + mean k(y, y') - 2 mean k(x, y))`, each mean over all pairs including those of a vector with
    itself (a V-statistic), as in JEDi's code. As `(x . y)^2` is the inner product of `x x^T` and `y y^T`, this is
    `100 / D^2` times the squared Frobenius norm of the difference of the second moments, and needs no pairs.

    Args:
        real ([`FeatureMoments`]): Moments of real videos' features.
        made ([`FeatureMoments`]): Moments of made videos' features.

    Returns:
        `float`: The discrepancy, 0 or more.

    Raises:
        ValueError: If the numbers of features differ, or one has no vector.
    """
    _check_features(real, made)
    difference = real.second_moment - made.second_moment
    return float(100 * np.sum((difference / len(difference)) ** 2))


def _check_features(real: FeatureMoments, made: FeatureMoments) -> None:
    num_real, num_made = len(real.mean), len(made.mean)
    if num_real != num_made:
        raise ValueError(
            f"`made` must have the {num_real} features of `real`, got {num_made}. Take both from one feature network."
        )


def _root_factor(covariance: np.ndarray) -> np.ndarray:
    """A matrix `A` of shape `(D, rank)` with `A A^T` the covariance."""
    values, vectors = np.linalg.eigh(covariance)
    # What an eigenvalue of 0 is rounded to. Its root would be 1e-8 rather than 1e-16.
    is_kept = values > max(values[-1], 0.0) * len(values) * np.finfo(np.float64).eps
    return vectors[:, is_kept] * np.sqrt(values[is_kept])
