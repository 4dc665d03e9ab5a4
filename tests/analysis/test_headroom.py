"""Headroom against simulated students whose true effects are known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import norm

from tllm_plugin.analysis.comparison import Comparison, compare
from tllm_plugin.analysis.headroom import Headroom, headroom, restored_gain
from tllm_plugin.analysis.results import TestResult
from tllm_plugin.core.errors import ConfigError

#: So many images that counting adds no noise of its own.
_IMAGES = 10**7


def simulated(
    generator: np.random.Generator,
    *,
    effects: np.ndarray,
    noise: float,
    distilled: int,
    vanilla: int,
    same_seeds: bool = True,
    shift_of_runs: float = 0.0,
) -> Comparison:
    """Return runs whose class accuracies are 0.5, plus an effect where distilled, plus normal noise of each run."""

    def result(level: np.ndarray) -> TestResult:
        shift = shift_of_runs * generator.standard_normal()
        accuracy = 0.5 + level + shift + noise / math.sqrt(2) * generator.standard_normal(effects.size)
        correct = np.rint(np.clip(accuracy, 0, 1) * _IMAGES).astype(np.int64)
        return TestResult(correct, np.full(effects.size, _IMAGES))

    first = 0 if same_seeds else 100
    return compare(
        [(seed, result(0 * effects)) for seed in range(vanilla)],
        [(first + seed, result(effects)) for seed in range(distilled)],
    )


def estimated(seed: int, *, mean: float, spread: float, **options: float) -> Headroom:
    generator = np.random.default_rng(seed)
    effects = mean + spread * generator.standard_normal(100)
    settings = {"noise": 0.04, "distilled": 4, "vanilla": 4, **options}
    return headroom(simulated(generator, effects=effects, **settings))  # type: ignore[arg-type]


@pytest.mark.parametrize(("mean", "spread"), [(0.01, 0.03), (-0.02, 0.01), (0.0, 0.05)])
def test_gain_of_restoring_is_the_integral(mean: float, spread: float) -> None:
    expected, _ = quad(lambda x: max(0.0, -x) * norm.pdf(x, mean, spread), -0.5, 0.5, points=[0.0, mean])
    assert float(restored_gain(mean, spread)) == pytest.approx(expected, rel=1e-6)
    assert restored_gain([0.01, -0.02], 0.0).tolist() == [0.0, 0.02]


@pytest.mark.parametrize(
    "runs",
    [
        {"distilled": 4, "vanilla": 4},
        {"distilled": 6, "vanilla": 3, "same_seeds": False},
        {"distilled": 3, "vanilla": 1},
        {"distilled": 1, "vanilla": 4},
        {"distilled": 1, "vanilla": 2},
    ],
    ids=str,
)
def test_spread_and_ceiling_are_found_again(runs: dict[str, int]) -> None:
    mean, spread = 0.01, 0.04
    truth = float(restored_gain(mean, spread))
    found = [estimated(seed, mean=mean, spread=spread, **runs) for seed in range(40)]
    assert all(item.source == "seeds" for item in found)
    assert np.mean([item.spread.value for item in found]) == pytest.approx(spread, rel=0.1)
    assert np.mean([item.ceiling.value for item in found]) == pytest.approx(truth, rel=0.1)
    # The standard error of a coverage of 95 % over 40 studies is 3.4 %.
    for name, value in (("mean", mean), ("spread", spread), ("ceiling", truth)):
        covered = [getattr(item, name).low <= value <= getattr(item, name).high for item in found]
        assert np.mean(covered) >= 0.85, name


def test_classes_that_do_not_differ_have_no_spread() -> None:
    found = [estimated(seed, mean=0.02, spread=0.0) for seed in range(40)]
    assert np.median([item.spread.value for item in found]) < 0.01
    assert np.mean([item.spread.low == 0.0 for item in found]) >= 0.9
    # The raw numbers look like harm all the same: noise puts a third of the classes below vanilla.
    raw = np.mean([item.below for item in found])
    assert raw == pytest.approx(100 * norm.cdf(-0.02 / 0.04), rel=0.1)
    assert np.mean([item.below_by_shift for item in found]) == pytest.approx(raw, rel=0.1)
    assert np.mean([item.ceiling.value for item in found]) < 0.001
    assert abs(np.mean([item.reliability for item in found])) < 0.1


def test_reliability_is_the_correlation_of_two_halves() -> None:
    spread, noise, runs = 0.04, 0.04, 4
    expected = spread**2 / (spread**2 + noise**2 / (runs / 2))
    found = [estimated(seed, mean=0.0, spread=spread, noise=noise).reliability for seed in range(40)]
    assert np.mean(found) == pytest.approx(expected, abs=0.05)


def test_runs_that_are_better_on_the_whole_add_no_noise_between_classes() -> None:
    plain = [estimated(seed, mean=0.01, spread=0.03).noise for seed in range(20)]
    shifted = [estimated(seed, mean=0.01, spread=0.03, shift_of_runs=0.05).noise for seed in range(20)]
    assert np.mean(shifted) == pytest.approx(np.mean(plain), rel=0.05)


def test_one_pair_says_that_it_knows_the_noise_of_images_only() -> None:
    generator = np.random.default_rng(0)
    effects = 0.03 * generator.standard_normal(50)
    found = headroom(simulated(generator, effects=effects, noise=0.02, distilled=1, vanilla=1))
    assert found.source == "images" and math.isnan(found.reliability)
    assert (found.distilled_runs, found.vanilla_runs, found.classes) == (1, 1, 50)
    # Of two independent binomials of 100 images each; classes are equal, so all of what differs is noise.
    counts = [generator.binomial(100, 0.5, size=400) for _ in range(2)]
    total = np.full(400, 100)
    images = headroom(compare([(0, TestResult(counts[0], total))], [(0, TestResult(counts[1], total))]))
    assert images.noise == pytest.approx(math.sqrt(2 * 0.25 / 100), rel=0.05)
    assert images.spread.low == 0.0


def test_too_few_classes_are_refused() -> None:
    result = TestResult(np.array([5, 5, 0]), np.array([10, 10, 0]))
    with pytest.raises(ConfigError, match="at least 3 classes with test images for the headroom, but got 2"):
        headroom(compare([(0, result)], [(0, result)]))


def test_the_same_numbers_every_time() -> None:
    assert estimated(3, mean=0.01, spread=0.03) == estimated(3, mean=0.01, spread=0.03)
