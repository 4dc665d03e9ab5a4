"""Delta acc against exact fractions."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from tllm_plugin.analysis.results import Change, TestResult, change_between
from tllm_plugin.core.errors import ConfigError
from tllm_plugin.runs.metrics_file import MetricsRecord


def record(correct: list[int], total: list[int]) -> MetricsRecord:
    accuracy = sum(correct) / sum(total) if sum(total) else None
    return MetricsRecord(
        test_accuracy=accuracy,
        class_correct=tuple(correct),
        class_total=tuple(total),
        seconds_per_epoch=(),
        peak_memory_bytes=None,
        epochs_done=1,
        finished=True,
    )


def change(ours: MetricsRecord, theirs: MetricsRecord) -> Change:
    return change_between(TestResult.from_metrics(theirs), TestResult.from_metrics(ours))


def hurt(ours: MetricsRecord, theirs: MetricsRecord) -> tuple[int, int]:
    found = change(ours, theirs)
    return int(found.hurt.sum()), int(found.largely_hurt.sum())


@pytest.mark.parametrize("seed", range(20))
def test_against_fractions(seed: int) -> None:
    generator = np.random.default_rng(seed)
    total = generator.integers(1, 120, size=generator.integers(1, 40)).tolist()
    ours, theirs = ([int(generator.integers(0, n + 1)) for n in total] for _ in range(2))
    expected = [Fraction(a, n) - Fraction(b, n) for a, b, n in zip(ours, theirs, total, strict=True)]
    np.testing.assert_allclose(
        change(record(ours, total), record(theirs, total)).delta, [float(x) for x in expected], rtol=0, atol=1e-15
    )
    counts = sum(x < 0 for x in expected), sum(x < Fraction(-1, 20) for x in expected)
    assert hurt(record(ours, total), record(theirs, total)) == counts


def test_by_hand() -> None:
    distilled, vanilla = record([9, 10, 4, 8], [10, 10, 10, 10]), record([10, 9, 5, 8], [10, 10, 10, 10])
    np.testing.assert_allclose(change(distilled, vanilla).delta, [-0.1, 0.1, -0.1, 0.0])
    assert hurt(distilled, vanilla) == (2, 2)


@pytest.mark.parametrize("total", [20, 60, 100, 140])
def test_exactly_five_points_are_not_more_than_five(total: int) -> None:
    for correct in range(total // 20, total + 1):
        pair = record([correct - total // 20], [total]), record([correct], [total])
        assert hurt(*pair) == (1, 0)
        if correct > total // 20:
            worse = record([correct - total // 20 - 1], [total]), pair[1]
            assert hurt(*worse)[1] == 1


def test_a_run_against_itself() -> None:
    same = record([3, 4], [5, 6])
    assert hurt(same, same) == (0, 0)


@pytest.mark.parametrize(("ours", "theirs"), [([5, 5], [5, 6]), ([5], [5, 5]), ([], [])])
def test_other_test_images(ours: list[int], theirs: list[int]) -> None:
    with pytest.raises(ConfigError, match="two runs tested on the same images, but their numbers per class differ"):
        change(record([0] * len(ours), ours), record([0] * len(theirs), theirs))
