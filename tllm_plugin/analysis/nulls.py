"""What chance alone would give: counts of hurt classes if it made no difference which of two networks is which."""

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
    """A count of classes under a null hypothesis.

    Args:
        mean: Expected count.
        std: Its standard deviation; NaN where one pair of runs is all there is.
        source: "permutation", or "vanilla" for vanilla runs compared with each other.
        pairs: Pairs of runs that were compared; 0 for a permutation.
    """

    mean: float
    std: float
    source: str
    pairs: int = 0


def paired_chance(losses: npt.ArrayLike, gains: npt.ArrayLike, margin: npt.ArrayLike = 0.0) -> Vector:
    """Return (C,) probabilities of delta acc < 0 if every changed answer were a loss or a gain with equal chance.

    Args:
        losses: (C,) images.
        gains: (C,) images.
        margin: (C,) or one number: more images than that must be lost on balance.
    """
    changed = np.asarray(losses) + np.asarray(gains)
    return np.asarray(binom.sf(np.floor((changed + np.asarray(margin)) / 2), changed, 0.5))


def unpaired_chance(
    before: npt.ArrayLike, now: npt.ArrayLike, total: npt.ArrayLike, margin: npt.ArrayLike = 0.0
) -> Vector:
    """Return (C,) probabilities of delta acc < 0 if the right answers were dealt to both networks at random.

    Args:
        before: (C,) right answers of the vanilla network.
        now: (C,) right answers of the other.
        total: (C,) images.
        margin: As in `paired_chance`.
    """
    both, n = np.asarray(before) + np.asarray(now), np.asarray(total)
    # Of a class without images nothing can be drawn; scipy has no distribution over nothing.
    return np.asarray(hypergeom.sf(np.floor((both + np.asarray(margin)) / 2), np.maximum(2 * n, 1), both, n))


def count_distribution(chances: npt.ArrayLike) -> Vector:
    """Return (C + 1,) probabilities of each number of hurt classes, classes being independent (Poisson binomial).

    >>> count_distribution([0.5, 0.5]).tolist()
    [0.25, 0.5, 0.25]
    """
    result = np.ones(1)
    for chance in np.asarray(chances, dtype=np.float64):
        result = np.convolve(result, [1.0 - chance, chance])
    return result


def null_count(chances: npt.ArrayLike) -> NullCount:
    """Return mean and standard deviation of the number of hurt classes under the permutation null."""
    values = np.asarray(chances, dtype=np.float64)
    return NullCount(float(values.sum()), float(np.sqrt((values * (1.0 - values)).sum())), "permutation")


def count_p_value(count: int, chances: npt.ArrayLike) -> float:
    """Return the probability that chance alone hurts at least `count` classes."""
    return float(min(1.0, count_distribution(chances)[count:].sum()))


def permuted_survivors(losses: npt.ArrayLike, gains: npt.ArrayLike, *, draws: int = _DRAWS) -> NullCount:
    """Return the null of the number of classes that survive Benjamini-Hochberg, from paired counts.

    Args:
        losses: (C,).
        gains: (C,).
        draws: Permutations.
    """
    changed = np.asarray(losses) + np.asarray(gains)
    lost = np.random.default_rng(0).binomial(changed, 0.5, size=(draws, changed.size))
    return _survivors(paired_p_value(lost, changed - lost))


def permuted_survivors_unpaired(
    before: npt.ArrayLike, now: npt.ArrayLike, total: npt.ArrayLike, *, draws: int = _DRAWS
) -> NullCount:
    """Return the same from counts of right answers alone; see `unpaired_chance`."""
    both, n = np.asarray(before) + np.asarray(now), np.asarray(total)
    first = np.random.default_rng(0).hypergeometric(n, n, both, size=(draws, both.size))
    return _survivors(unpaired_p_value(first, both - first, n))


def _survivors(p_values: Vector) -> NullCount:
    counts = np.array([(q_values(row) <= LEVEL).sum() for row in p_values], dtype=np.float64)
    return NullCount(float(counts.mean()), float(counts.std(ddof=1)), "permutation")
