"""p-values against scipy's tests, adjusted ones against the definition of Benjamini-Hochberg."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import binomtest, fisher_exact

from tllm_plugin.analysis.significance import merged_p_value, paired_p_value, q_values, unpaired_p_value
from tllm_plugin.core.evidence import mcnemar_p_value


def test_paired_against_binomtest_and_the_core() -> None:
    losses, gains = (side.ravel() for side in np.meshgrid(range(12), range(12)))
    found = paired_p_value(losses, gains)
    for lost, gained, p_value in zip(losses, gains, found, strict=True):
        total = int(lost + gained)
        expected = binomtest(int(lost), total, 0.5, alternative="greater").pvalue if total else 1.0
        assert p_value == pytest.approx(expected, abs=1e-12)
    np.testing.assert_allclose(found, mcnemar_p_value(torch.tensor(losses), torch.tensor(gains)).numpy(), atol=1e-12)


def test_unpaired_against_fisher() -> None:
    total = 9
    for before in range(total + 1):
        for now in range(total + 1):
            table = [[before, total - before], [now, total - now]]
            expected = fisher_exact(table, alternative="greater").pvalue
            assert unpaired_p_value([before], [now], [total])[0] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("seed", range(10))
def test_adjusted_values_reject_what_benjamini_and_hochberg_reject(seed: int) -> None:
    p_values = np.random.default_rng(seed).beta(0.3, 1.0, size=50)
    # The largest k such that at least k p-values are at most k / n of the level.
    most = max(k for k in range(51) if (p_values <= 0.05 * k / 50).sum() >= k)
    expected = p_values <= 0.05 * most / 50
    assert ((q_values(p_values) <= 0.05) == expected).all() and expected.any()
    assert q_values([]).size == 0


def test_merging() -> None:
    np.testing.assert_allclose(merged_p_value([[0.01, 0.4]]), [0.01, 0.4])
    np.testing.assert_allclose(merged_p_value([[0.01, 0.9], [0.03, 0.7]]), [0.04, 1.0])
    # The worst case that it must survive: the same noise twice gives no p-value that is too small.
    uniform = np.random.default_rng(0).random(10_000)
    assert (merged_p_value([uniform, uniform]) <= 0.05).mean() <= 0.05
