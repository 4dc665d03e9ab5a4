"""Comparisons on answers whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tllm_plugin.analysis.comparison import compare
from tllm_plugin.analysis.results import TestResult, change_between
from tllm_plugin.core.errors import ConfigError
from tllm_plugin.core.predictions import Predictions

CLASSES, PER_CLASS = 40, 100
PLANTED = (3, 17, 30)
LABELS = np.repeat(np.arange(CLASSES), PER_CLASS)


def result_of(labels: np.ndarray, predicted: np.ndarray) -> TestResult:
    return TestResult.from_predictions(Predictions(*map(torch.tensor, (labels, predicted)), CLASSES))


def answers(seed: int, accuracy: np.ndarray) -> TestResult:
    """Networks that agree, but for some noise, on how hard an image is: right where that is below the accuracy."""
    difficulty = np.random.default_rng(99).random(LABELS.size)
    noise = np.random.default_rng(seed).normal(0.0, 0.1, size=LABELS.size)
    right = difficulty + noise < accuracy[LABELS]
    return result_of(LABELS, np.where(right, LABELS, (LABELS + 1) % CLASSES))


def level(drop: float = 0.0) -> np.ndarray:
    accuracy = np.full(CLASSES, 0.7)
    accuracy[list(PLANTED)] -= drop
    return accuracy


def predicted(result: TestResult) -> np.ndarray:
    assert result.predictions is not None
    return result.predictions.prediction.numpy()


def counts_only(result: TestResult) -> TestResult:
    return TestResult(result.correct, result.total)


def test_change_by_loops() -> None:
    before, now = answers(0, level()), answers(1, level(0.3))
    change = change_between(before, now)
    losses, gains = np.zeros(CLASSES, dtype=int), np.zeros(CLASSES, dtype=int)
    for label, first, second in zip(LABELS, predicted(before), predicted(now), strict=True):
        losses[label] += first == label and second != label
        gains[label] += first != label and second == label
    np.testing.assert_array_equal(change.losses, losses)
    np.testing.assert_array_equal(change.gains, gains)
    np.testing.assert_allclose(change.delta, (gains - losses) / PER_CLASS)
    np.testing.assert_allclose(change.delta, now.class_accuracy - before.class_accuracy)
    assert before.accuracy == pytest.approx((predicted(before) == LABELS).mean())


@pytest.mark.parametrize("known", [answers, lambda *given: counts_only(answers(*given))])
def test_planted_classes_are_found_and_no_others(known: object) -> None:
    found = compare([(0, known(0, level()))], [(0, known(1, level(0.3)))])
    assert tuple(np.nonzero(found.significantly_worse)[0]) == PLANTED
    low, high = found.interval
    assert (high[list(PLANTED)] < 0).all() and ((low <= found.delta) & (found.delta <= high)).all()
    # Unpaired intervals are wider, and the raw count is no evidence: about half of the other classes are "hurt" too.
    assert found.hurt_count.found.mean == found.hurt.sum() > 10
    null = found.hurt_count.null
    assert null.source == "permutation" and abs(null.mean - found.hurt.sum()) < 4 * null.std
    assert found.significantly_worse_count.null.mean < 0.5
    large = found.largely_hurt_count
    assert large.found.mean == (found.delta < -0.05 - 1e-9).sum() and large.found.mean < found.hurt_count.found.mean
    # Chance loses fewer classes by 5 points than it loses at all; the planted ones are not chance's.
    assert null.mean > large.null.mean > 0 and large.null.source == "permutation"
    assert large.null.mean <= large.found.mean - len(PLANTED) + 4 * large.null.std


def test_nothing_is_found_where_nothing_is() -> None:
    false = [
        compare([(0, answers(2 * seed, level()))], [(0, answers(2 * seed + 1, level()))]).significantly_worse.any()
        for seed in range(40)
    ]
    assert np.mean(false) <= 0.1


@pytest.mark.parametrize(("lost", "found"), [(5, False), (6, True)])
def test_the_false_discovery_rate_is_five_percent(lost: int, found: bool) -> None:
    """By hand: the first of two classes loses `lost` images and gains none: p = 2 ** -lost, and q = 2 p."""
    labels = np.repeat([0, 1], 10)
    now = labels.copy()
    now[:lost] = 1
    before, after = (
        TestResult.from_predictions(Predictions(*map(torch.tensor, (labels, p)), 2)) for p in (labels, now)
    )
    change = compare([(0, before)], [(0, after)])
    assert change.q_value == pytest.approx([2 * 0.5**lost, 1.0])
    assert change.significantly_worse.tolist() == [found, False]
    assert change.significantly_worse_count.found.mean == found


def test_seeds() -> None:
    vanilla = [(seed, answers(seed, level())) for seed in (0, 1, 2)]
    distilled = [(seed, answers(10 + seed, level(0.3))) for seed in (2, 0, 7)]
    found = compare(vanilla, distilled)
    # By seed where there is one, in turn otherwise.
    partners = [vanilla[2][1], vanilla[0][1], vanilla[2][1]]
    assert [change.vanilla for change in found.changes] == partners
    deltas = [r.class_accuracy - p.class_accuracy for (_, r), p in zip(distilled, partners, strict=True)]
    np.testing.assert_allclose(found.delta, np.mean(deltas, 0))
    np.testing.assert_allclose(found.delta_std, np.std(deltas, 0, ddof=1))
    accuracies = [result.accuracy for _, result in distilled]
    assert (found.accuracy.mean, found.accuracy.n) == (pytest.approx(np.mean(accuracies)), 3)
    assert found.accuracy.std == pytest.approx(np.std(accuracies, ddof=1))
    null = found.hurt_count.null
    by_hand = [
        ((a.class_accuracy - b.class_accuracy) < 0).sum()
        for i, (_, b) in enumerate(vanilla)
        for j, (_, a) in enumerate(vanilla)
        if i != j
    ]
    assert (null.source, null.pairs, null.mean) == ("vanilla", 6, pytest.approx(np.mean(by_hand)))
    large = [
        ((a.class_accuracy - b.class_accuracy) < -0.05 - 1e-9).sum()
        for i, (_, b) in enumerate(vanilla)
        for j, (_, a) in enumerate(vanilla)
        if i != j
    ]
    assert found.largely_hurt_count.null.mean == pytest.approx(np.mean(large))
    assert tuple(np.nonzero(found.significantly_worse)[0]) == PLANTED
    assert np.isnan(compare(vanilla[:1], distilled[:1]).delta_std).all()


def test_a_class_without_test_images() -> None:
    kept = LABELS != 5
    first, second = (result_of(LABELS[kept], predicted(r)[kept]) for r in (answers(0, level()), answers(1, level(0.3))))
    found = compare([(None, first)], [(None, second)])
    assert np.isnan(found.delta[5]) and not found.hurt[5] and not found.significantly_worse[5]
    assert (found.interval[0][5], found.interval[1][5]) == (-1.0, 1.0)
    assert found.significantly_worse[3]


def test_other_images() -> None:
    one = answers(0, level())
    with pytest.raises(ConfigError, match="same images, but their numbers per class differ"):
        change_between(one, result_of(LABELS[1:], LABELS[1:]))
    with pytest.raises(ConfigError, match="in the same order, but their labels differ"):
        change_between(one, result_of(LABELS[::-1].copy(), LABELS[::-1].copy()))
    with pytest.raises(ValueError, match="at least one vanilla and one distilled run"):
        compare([], [(0, one)])
