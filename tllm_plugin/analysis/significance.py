"""Tests that a class got worse, for all classes at once, and the false discovery rate over classes."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.stats import binom, false_discovery_control, hypergeom

Vector = npt.NDArray[np.float64]

#: False discovery rate at which classes are called hurt.
LEVEL = 0.05


def paired_p_value(losses: npt.ArrayLike, gains: npt.ArrayLike) -> Vector:
    """Return (C,) one-sided p-values of McNemar's exact test that more images were lost than gained.

    >>> paired_p_value([5, 0], [0, 0]).tolist()
    [0.03125, 1.0]
    """
    lost, gained = np.asarray(losses), np.asarray(gains)
    return np.asarray(np.minimum(binom.sf(lost - 1, lost + gained, 0.5), 1.0))


def unpaired_p_value(before: npt.ArrayLike, now: npt.ArrayLike, total: npt.ArrayLike) -> Vector:
    """Return (C,) one-sided p-values of Fisher's exact test that the second count is lower than the first.

    For two networks on the same images the test is conservative if they tend to be correct on the same ones.

    Args:
        before: (C,) correct predictions of the first network.
        now: (C,) correct predictions of the second network.
        total: (C,) images, the same number for both.
    """
    first, second, n = (np.asarray(values) for values in (before, now, total))
    return np.asarray(np.minimum(hypergeom.cdf(second, 2 * n, first + second, n), 1.0))


def q_values(p_values: npt.ArrayLike) -> Vector:
    """Return (C,) Benjamini-Hochberg adjusted p-values: rejecting all up to `LEVEL` keeps the false discovery rate.

    Source: Benjamini and Hochberg (1995).
    """
    values = np.asarray(p_values, dtype=np.float64)
    return np.asarray(false_discovery_control(values, method="bh")) if values.size else values


def merged_p_value(p_values: npt.ArrayLike) -> Vector:
    """Merge (K, C) p-values of K pairs of runs into (C,), valid under any dependence.

    Source: Vovk and Wang, "Combining p-values via averaging" (2020): twice the mean.
    """
    values = np.asarray(p_values, dtype=np.float64)
    if len(values) == 1:
        return np.asarray(values[0])
    return np.asarray(np.minimum(2.0 * values.mean(0), 1.0))
