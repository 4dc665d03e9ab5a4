from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from tllm_plugin.core.evidence import (
    betting_e_value,
    e_benjamini_hochberg,
    mcnemar_p_value,
    paired_counts,
    robust_deviation,
    sampling_variance,
)


def test_mcnemar_against_scipy() -> None:
    losses, gains = torch.meshgrid(torch.arange(12), torch.arange(12), indexing="ij")
    result = mcnemar_p_value(losses.flatten(), gains.flatten())
    for p_value, b, c in zip(result.tolist(), losses.flatten().tolist(), gains.flatten().tolist(), strict=True):
        expected = stats.binomtest(b, b + c, 0.5, alternative="greater").pvalue if b + c else 1.0
        assert p_value == pytest.approx(expected, rel=1e-9)


def test_mcnemar_large_counts_stay_finite() -> None:
    result = mcnemar_p_value(torch.tensor([3000]), torch.tensor([2500]))
    assert result.item() == pytest.approx(stats.binomtest(3000, 5500, 0.5, alternative="greater").pvalue, rel=1e-6)


def test_paired_counts_against_a_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    before, now = (torch.rand(60, generator=generator) < 0.5 for _ in range(2))
    labels = torch.arange(60) % 4
    losses, gains = paired_counts(before, now, labels, 4)
    for c in range(4):
        rows = [i for i in range(60) if labels[i] == c]
        assert losses[c] == sum(bool(before[i]) and not bool(now[i]) for i in rows)
        assert gains[c] == sum(not bool(before[i]) and bool(now[i]) for i in rows)


def test_betting_e_value_against_a_loop() -> None:
    generator = torch.Generator().manual_seed(1)
    differences = torch.rand(50, generator=generator) * 2 - 1
    labels = torch.arange(50) % 3
    margin = torch.tensor([0.0, 0.1, 0.5], dtype=torch.float64)
    result = betting_e_value(differences, labels, margin)
    for c in range(3):
        money = []
        for stake in np.linspace(0.05, 0.95, 10):
            product = 1.0
            for i in range(50):
                if labels[i] == c:
                    product *= 1 + stake / (1 + margin[c].item()) * (differences[i].item() - margin[c].item())
            money.append(product)
        assert result[c].item() == pytest.approx(np.mean(money), rel=1e-5)


@pytest.mark.parametrize("mean", [0.0, 0.1])
def test_betting_e_value_has_expectation_at_most_one_under_the_hypothesis(mean: float) -> None:
    classes, per_class = 20_000, 10
    generator = torch.Generator().manual_seed(2)
    uniform = torch.rand(classes * per_class, generator=generator)
    # -1, 0 or 1 with the given mean: the hardest case, on the edge of the hypothesis.
    differences = (uniform < 0.2 + mean / 2).float() - (uniform > 0.8 + mean / 2).float()
    labels = torch.arange(classes).repeat_interleave(per_class)
    e_values = betting_e_value(differences, labels, torch.full((classes,), mean, dtype=torch.float64))
    error = e_values.std() / classes**0.5
    assert abs(e_values.mean() - 1.0) < 4 * error
    assert (e_values >= 20).double().mean() <= 0.05


def test_betting_e_value_grows_with_evidence_and_never_overflows() -> None:
    margin = torch.full((1,), 0.05, dtype=torch.float64)
    money = [betting_e_value(torch.ones(n), torch.zeros(n, dtype=torch.int64), margin).item() for n in (5, 20, 9000)]
    assert money[0] < money[1] < money[2] < float("inf")


@pytest.mark.parametrize("seed", range(20))
def test_e_benjamini_hochberg_against_the_definition(seed: int) -> None:
    e_values = np.exp(np.random.default_rng(seed).normal(2, 3, size=30))
    # The largest k such that at least k e-values reach n / (k * level).
    most = max([k for k in range(1, 31) if (e_values >= 30 / (k * 0.1)).sum() >= k], default=0)
    expected = e_values >= 30 / (most * 0.1) if most else np.zeros(30, dtype=bool)
    assert e_benjamini_hochberg(torch.from_numpy(e_values), 0.1).numpy().tolist() == expected.tolist()


def test_nothing_to_reject() -> None:
    assert e_benjamini_hochberg(torch.ones(4), 0.05).tolist() == [False] * 4


def test_sampling_variance_against_numpy() -> None:
    generator = torch.Generator().manual_seed(0)
    values, labels = torch.randn(50, generator=generator), torch.arange(50) % 3
    result = sampling_variance(values, labels, 4)
    for c in range(3):
        rows = values[labels == c].double().numpy()
        assert result[c].item() == pytest.approx(np.var(rows, ddof=1) / len(rows), rel=1e-6)
    assert result[3].isnan()  # A class without samples.
    assert sampling_variance(torch.ones(1), torch.zeros(1, dtype=torch.int64), 1).item() == 0.0


def test_robust_deviation_against_scipy() -> None:
    values = torch.randn(999, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    values[:50] = 1e6  # It does not look at outliers.
    expected = stats.median_abs_deviation(values.numpy(), center=lambda x, axis: 0.0, scale="normal")
    assert robust_deviation(values).item() == pytest.approx(expected, rel=1e-4)
