"""Effects of classes and their posteriors, from simulated runs whose true effects are known."""

from __future__ import annotations

import numpy as np
import pytest

from tests.analysis.test_headroom import simulated
from tllm_plugin.analysis.comparison import Comparison, compare
from tllm_plugin.analysis.effects import class_effects, effect_posterior
from tllm_plugin.analysis.results import TestResult


def counted(correct: list[int], images: int) -> TestResult:
    return TestResult(np.array(correct), np.full(len(correct), images))


@pytest.mark.parametrize("runs", [{"distilled": 4, "vanilla": 4}, {"distilled": 3, "vanilla": 1}], ids=str)
def test_error_is_the_deviation_from_the_true_effect(runs: dict[str, int]) -> None:
    generator = np.random.default_rng(1)
    effects = 0.01 + 0.03 * generator.standard_normal(60)
    ratios, harm, hurt = [], [], []
    for _ in range(30):
        found = simulated(generator, effects=effects, noise=0.04, **runs)
        measured = class_effects(found)
        assert measured.source == "seeds"
        ratios.append(((measured.effects - effects) / measured.errors) ** 2)
        harm.append(effect_posterior(found).harm.numpy())
        hurt.append(effects < 0)
    assert np.mean(ratios) == pytest.approx(1.0, abs=0.15)
    sure = np.concatenate(harm) > 0.9
    assert np.concatenate(hurt)[sure].mean() > 0.85 and sure.sum() > 20


def test_posterior_of_a_single_pair_is_about_its_images() -> None:
    vanilla = counted([50, 50, 50, 50], 100)
    found = compare([(0, vanilla)], [(0, counted([20, 50, 50, 55], 100))])
    measured = class_effects(found)
    assert measured.source == "images"
    # Two independent proportions, by hand: sqrt(0.5 * 0.5 / 102 + 21 / 102 * 81 / 102 / 102).
    assert measured.errors[0] == pytest.approx(0.0636, abs=1e-3)
    harm = effect_posterior(found).harm
    assert harm[0] > 0.99 and 0.1 < harm[1] < 0.9


def test_runs_without_any_difference_are_not_certain() -> None:
    result = counted([5, 6, 7], 10)
    same: Comparison = compare([(0, result), (1, result)], [(0, result), (1, result)])
    assert (class_effects(same).errors >= 0.05).all()
    assert ((effect_posterior(same).harm - 0.5).abs() < 0.01).all()


def test_class_without_images_has_no_effect_of_its_own() -> None:
    vanilla = TestResult(np.array([5, 0, 6, 7]), np.array([10, 0, 10, 10]))
    distilled = TestResult(np.array([6, 0, 6, 6]), np.array([10, 0, 10, 10]))
    found = compare([(0, vanilla)], [(0, distilled)])
    assert class_effects(found).tested.tolist() == [True, False, True, True]
    harm = effect_posterior(found).harm
    assert harm.isfinite().all() and float(effect_posterior(found).std[1]) >= float(effect_posterior(found).std.min())
