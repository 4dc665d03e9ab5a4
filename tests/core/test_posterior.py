"""The posterior against numerical integration with SciPy, and its probabilities against simulated truth."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import cauchy, norm
from scipy.stats import t as student_t
from torch import Tensor

from tllm_plugin.core.errors import ConfigError
from tllm_plugin.core.posterior import posterior


def integrated(x: np.ndarray, s: np.ndarray, index: int) -> tuple[float, float]:
    """Return posterior mean and probability of harm of one class by brute force over centre, scale and effect."""
    effects = np.linspace(-25, 25, 501)
    centres = np.linspace(-10, 10, 61)
    top = 4 * max(x.std(), 0.25 * np.median(s))
    scales = np.linspace(0, top, 42)[1:]
    density = np.zeros_like(effects)
    inner = np.array([norm.pdf(x[i], effects, s[i]) for i in range(len(x))])  # (classes, effects)
    for scale in scales:
        prior = student_t.pdf((effects[None] - centres[:, None]) / scale, 4) / scale  # (centres, effects)
        prior /= prior.sum(1, keepdims=True)
        each = prior @ inner.T  # (centres, classes)
        others = np.delete(each, index, axis=1).prod(1)
        density += cauchy.pdf(scale, 0, np.sort(s)[(len(s) - 1) // 2]) * (others @ (prior * inner[index]))
    density /= density.sum()
    return float((density * effects).sum()), float(density[effects < 0].sum() + 0.5 * density[effects == 0].sum())


@pytest.mark.parametrize(
    ("x", "s"),
    [
        ([1.0, 2.0, -0.5, 0.2], [1.0, 1.0, 1.0, 1.0]),
        ([1.0, 1.5, 0.5, -9.0], [0.7, 1.0, 1.5, 1.0]),
        ([3.0, -2.0, 6.0, 0.0, -1.0], [0.5, 0.5, 2.0, 1.0, 1.0]),
    ],
)
def test_integration_by_brute_force(x: list[float], s: list[float]) -> None:
    found = posterior(torch.tensor(x), torch.tensor(s))
    for index in range(len(x)):
        mean, harm = integrated(np.array(x), np.array(s), index)
        # Six normals stand for the t distribution, and the grids differ.
        assert float(found.mean[index]) == pytest.approx(mean, abs=0.12)
        assert float(found.harm[index]) == pytest.approx(harm, abs=0.03)


@pytest.mark.parametrize(("classes", "scale"), [(8, 1.0), (8, 3.0), (100, 0.5), (100, 1.0), (100, 3.0)])
def test_probabilities_are_frequencies(classes: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(classes)
    harm, hurt, covered = [], [], []
    for _ in range(1600 // classes + 30):
        truth = 0.5 + scale * torch.randn(classes, generator=generator, dtype=torch.float64)
        error = 0.5 + torch.rand(classes, generator=generator, dtype=torch.float64)
        found = posterior(truth + error * torch.randn(classes, generator=generator, dtype=torch.float64), error)
        harm.append(found.harm)
        hurt.append(truth < 0)
        covered.append((found.quantile(0.025) < truth) & (truth < found.quantile(0.975)))
    probability, truth = torch.cat(harm), torch.cat(hurt).double()
    assert float(torch.cat(covered).double().mean()) == pytest.approx(0.95, abs=0.04)
    for low, high in ((0.0, 0.2), (0.2, 0.5), (0.5, 0.8), (0.8, 1.01)):
        chosen = (probability >= low) & (probability < high)
        count = int(chosen.sum())
        expected, frequency = float(probability[chosen].mean()), float(truth[chosen].mean())
        # Four standard errors, and the model's t distribution where the truth is normal.
        assert abs(frequency - expected) < 4 * (expected * (1 - expected) / count) ** 0.5 + 0.07


def signals_help(informative: bool) -> tuple[float, float]:
    """Return mean squared errors with and without signals, over studies of 100 classes."""
    generator = torch.Generator().manual_seed(3)
    with_signals, without = [], []
    for _ in range(30):
        signal = torch.randn(100, 2, generator=generator, dtype=torch.float64)
        told = signal[:, 0] if informative else torch.randn(100, generator=generator, dtype=torch.float64)
        truth = 1.0 + 0.8 * told + 0.6 * torch.randn(100, generator=generator, dtype=torch.float64)
        x = truth + 2.0 * torch.randn(100, generator=generator, dtype=torch.float64)
        errors = torch.full((100,), 2.0)
        # Units of the signals do not matter.
        scaled = signal * torch.tensor([100.0, 0.01]) + 7.0
        with_signals.append(float((posterior(x, errors, scaled).mean - truth).square().mean()))
        without.append(float((posterior(x, errors).mean - truth).square().mean()))
    return float(np.mean(with_signals)), float(np.mean(without))


def test_signals_that_predict_effects_make_the_estimate_better() -> None:
    better, without = signals_help(informative=True)
    assert better < 0.7 * without
    useless, without = signals_help(informative=False)
    assert useless < 1.08 * without


def test_units_and_order_do_not_matter() -> None:
    generator = torch.Generator().manual_seed(0)
    x, s = torch.randn(12, generator=generator, dtype=torch.float64), torch.rand(12, generator=generator) + 0.5
    found, scaled = posterior(x, s), posterior(0.01 * x, 0.01 * s)
    torch.testing.assert_close(scaled.harm, found.harm, atol=1e-4, rtol=0)
    torch.testing.assert_close(scaled.mean, 0.01 * found.mean, atol=1e-6, rtol=1e-3)
    torch.testing.assert_close(posterior(-x, s).harm, 1 - found.harm, atol=1e-9, rtol=0)
    order = torch.randperm(12, generator=generator)
    torch.testing.assert_close(posterior(x[order], s[order]).mean, found.mean[order])
    torch.testing.assert_close(found.false_sign_rate, torch.minimum(found.harm, 1 - found.harm))
    assert (found.quantile(0.1) < found.quantile(0.9)).all()


def test_unmeasured_classes_have_the_populations_distribution() -> None:
    x = torch.tensor([1.0, 2.0, 1.5, torch.nan, 0.5])
    found = posterior(x, torch.tensor([0.5, 0.5, 0.5, 1.0, 0.5]))
    assert float(found.mean[3]) == pytest.approx(found.centre, abs=0.05)
    assert (found.std[3] > found.std[[0, 1, 2, 4]]).all()
    alone = posterior(torch.tensor([2.0]), torch.tensor([1.0]))
    assert float(alone.harm) == pytest.approx(norm.cdf(-2.0), abs=0.05)


@pytest.mark.parametrize(
    ("effects", "errors", "signals", "message"),
    [
        (torch.zeros(3), torch.ones(2), None, "vectors of one length"),
        (torch.full((3,), torch.nan), torch.ones(3), None, "at least one class"),
        (torch.zeros(3), torch.tensor([1.0, 0.0, 1.0]), None, "positive"),
        (torch.zeros(3), torch.ones(3), torch.zeros(2, 1), r"of shape \(3, k\)"),
        (torch.zeros(3), torch.ones(3), torch.full((3, 1), torch.nan), "finite"),
    ],
)
def test_bad_input(effects: Tensor, errors: Tensor, signals: Tensor | None, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        posterior(effects, errors, signals)
