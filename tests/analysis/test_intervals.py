"""Intervals against scipy and against their promise: coverage in at least 95 % of all data sets, by enumeration."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binom, binomtest, multinomial

from tllm_plugin.analysis.intervals import clopper_pearson, paired_interval, unpaired_interval


def test_clopper_pearson_against_scipy() -> None:
    trials = np.repeat([1, 7, 50], [2, 8, 51])
    successes = np.concatenate([np.arange(n + 1) for n in (1, 7, 50)])
    for level in (0.9, 0.95, 0.99):
        low, high = clopper_pearson(successes, trials, level)
        for k, n, left, right in zip(successes, trials, low, high, strict=True):
            expected = binomtest(int(k), int(n)).proportion_ci(level, method="exact")
            np.testing.assert_allclose((left, right), (expected.low, expected.high), rtol=0, atol=1e-9)
    assert [float(end) for end in clopper_pearson(0, 0)] == [0.0, 1.0]


@pytest.mark.parametrize("total", [5, 20, 50])
@pytest.mark.parametrize("loss, gain", [(0.0, 0.0), (0.05, 0.05), (0.3, 0.1), (0.5, 0.0), (0.02, 0.4), (0.45, 0.5)])
def test_paired_interval_covers(total: int, loss: float, gain: float) -> None:
    losses, gains = (side.ravel() for side in np.meshgrid(range(total + 1), range(total + 1), indexing="ij"))
    possible = losses + gains <= total
    losses, gains = losses[possible], gains[possible]
    chance = multinomial.pmf(np.stack([losses, gains, total - losses - gains], 1), total, [loss, gain, 1 - loss - gain])
    low, high = paired_interval(losses, gains, np.full_like(losses, total))
    truth = gain - loss
    covered = (low <= truth + 1e-12) & (truth <= high + 1e-12)
    assert chance[covered].sum() >= 0.95 - 1e-9
    observed = (gains - losses) / total
    assert ((low <= observed + 1e-12) & (observed <= high + 1e-12)).all() and (low >= -1).all() and (high <= 1).all()


@pytest.mark.parametrize("before, now", [(0.5, 0.5), (0.9, 0.8), (1.0, 0.6), (0.1, 0.15)])
def test_unpaired_interval_covers_independent_and_nested_answers(before: float, now: float) -> None:
    total = 20
    first, second = (side.ravel() for side in np.meshgrid(range(total + 1), range(total + 1), indexing="ij"))
    low, high = unpaired_interval(first, second, np.full_like(first, total))
    covered = (low <= now - before + 1e-12) & (now - before <= high + 1e-12)
    independent = binom.pmf(first, total, before) * binom.pmf(second, total, now)
    assert independent[covered].sum() >= 0.95
    # What one network recognises, the better one recognises as well.
    small, large = sorted((before, now))
    of_both = np.minimum(first, second) if before <= now else np.minimum(second, first)
    larger = np.maximum(first, second)
    nested = binom.pmf(larger, total, large) * binom.pmf(of_both, larger, small / large if large else 0.0)
    right_way = (first <= second) if before <= now else (second <= first)
    assert nested[right_way].sum() == pytest.approx(1.0)
    assert nested[right_way & covered].sum() >= 0.95


def test_pairing_helps_where_networks_agree() -> None:
    """90 of 100 right before, 80 now, all of those among the 90: surely worse by pairs, unsure by counts."""
    assert paired_interval([10], [0], [100])[1][0] < 0 < unpaired_interval([90], [80], [100])[1][0]


def test_by_hand() -> None:
    """One image, changed for the worse: anything may be true but a sure gain."""
    low, high = paired_interval([1], [0], [1])
    assert low[0] == -1.0 and 0.9 < high[0] < 1.0
