"""Null distributions of the number of classes with delta acc < 0, if the two networks were exchangeable."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import binom, hypergeom

from tllm_plugin.analysis.significance import LEVEL, paired_p_value, q_values, unpaired_p_value

Vector = npt.NDArray[np.float64]

_DRAWS = 200


@dataclass(frozen=True)
class NullCount:
    """Number of classes expected under a null hypothesis.

    Args:
        mean: Expected count.
        std: Standard deviation of the count; NaN for a single pair of runs.
        source: "permutation", or "vanilla" for vanilla runs compared with each other.
        pairs: Number of pairs of runs; 0 for a permutation.
    """

    mean: float
    std: float
    source: str
    pairs: int = 0


def paired_chance(losses: npt.ArrayLike, gains: npt.ArrayLike, margin: npt.ArrayLike = 0.0) -> Vector:
    """Return (C,) probabilities of delta acc < 0 if every changed prediction is equally likely a loss or a gain.

    Args:
        losses: (C,) numbers of lost images.
        gains: (C,) numbers of gained images.
        margin: (C,) or a number; the net loss must exceed this number of images.
    """
    changed = np.asarray(losses) + np.asarray(gains)
    return np.asarray(binom.sf(np.floor((changed + np.asarray(margin)) / 2), changed, 0.5))


def unpaired_chance(
    before: npt.ArrayLike, now: npt.ArrayLike, total: npt.ArrayLike, margin: npt.ArrayLike = 0.0
) -> Vector:
    """Return (C,) probabilities of delta acc < 0 if correct predictions are assigned to the two networks at random.

    Args:
        before: (C,) numbers of correct predictions of the vanilla network.
        now: (C,) numbers of correct predictions of the other network.
        total: (C,) numbers of images.
        margin: See `paired_chance`.
    """
    both, n = np.asarray(before) + np.asarray(now), np.asarray(total)
    # scipy's distribution is not defined for classes without images.
    return np.asarray(hypergeom.sf(np.floor((both + np.asarray(margin)) / 2), np.maximum(2 * n, 1), both, n))


def count_distribution(chances: npt.ArrayLike) -> Vector:
    """Return (C + 1,) probabilities of the number of classes, which are independent (Poisson binomial distribution).

    >>> count_distribution([0.5, 0.5]).tolist()
    [0.25, 0.5, 0.25]
    """
    result = np.ones(1)
    for chance in np.asarray(chances, dtype=np.float64):
        result = np.convolve(result, [1.0 - chance, chance])
    return result


def null_count(chances: npt.ArrayLike) -> NullCount:
    """Return mean and standard deviation of the number of classes under the permutation null."""
    values = np.asarray(chances, dtype=np.float64)
    return NullCount(float(values.sum()), float(np.sqrt((values * (1.0 - values)).sum())), "permutation")


def count_p_value(count: int, chances: npt.ArrayLike) -> float:
    """Return the probability of at least `count` classes under the null."""
    return float(min(1.0, count_distribution(chances)[count:].sum()))


def permuted_survivors(losses: npt.ArrayLike, gains: npt.ArrayLike, *, draws: int = _DRAWS) -> NullCount:
    """Return the null of the number of significantly worse classes (Benjamini-Hochberg), from paired counts.

    Args:
        losses: (C,) numbers of lost images.
        gains: (C,) numbers of gained images.
        draws: Number of permutations.
    """
    changed = np.asarray(losses) + np.asarray(gains)
    lost = np.random.default_rng(0).binomial(changed, 0.5, size=(draws, changed.size))
    return _survivors(paired_p_value(lost, changed - lost))


def permuted_survivors_unpaired(
    before: npt.ArrayLike, now: npt.ArrayLike, total: npt.ArrayLike, *, draws: int = _DRAWS
) -> NullCount:
    """Return the same from numbers of correct predictions only; see `unpaired_chance`."""
    both, n = np.asarray(before) + np.asarray(now), np.asarray(total)
    first = np.random.default_rng(0).hypergeometric(n, n, both, size=(draws, both.size))
    return _survivors(unpaired_p_value(first, both - first, n))


def _survivors(p_values: Vector) -> NullCount:
    counts = np.array([(q_values(row) <= LEVEL).sum() for row in p_values], dtype=np.float64)
    return NullCount(float(counts.mean()), float(counts.std(ddof=1)), "permutation")
