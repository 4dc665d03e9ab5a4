"""Null counts against enumeration and simulation."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from tllm_plugin.analysis import nulls
from tllm_plugin.analysis.significance import LEVEL, paired_p_value, q_values


def test_paired_chance_by_enumeration() -> None:
    for losses, gains in itertools.product(range(5), range(5)):
        signs = list(itertools.product((-1, 1), repeat=losses + gains))
        for margin in (0.0, 1.0, 1.5, 2.0):
            expected = sum(sum(sign) < -margin for sign in signs) / len(signs)
            assert nulls.paired_chance([losses], [gains], margin)[0] == pytest.approx(expected)


def test_unpaired_chance_by_enumeration() -> None:
    total = 4
    for before, now in itertools.product(range(total + 1), repeat=2):
        deals = [sum(i < total for i in right) for right in itertools.combinations(range(2 * total), before + now)]
        for margin in (0.0, 1.0, 1.5, 2.0):
            expected = sum(first - (before + now - first) > margin for first in deals) / len(deals)
            assert nulls.unpaired_chance([before], [now], [total], margin)[0] == pytest.approx(expected)


def test_a_class_without_images_has_no_chance_to_be_hurt() -> None:
    assert nulls.paired_chance([0, 3], [0, 2])[0] == 0.0
    assert nulls.unpaired_chance([0, 2], [0, 1], [0, 4])[0] == 0.0


def test_count_against_simulation() -> None:
    generator = np.random.default_rng(0)
    losses, gains = generator.integers(0, 9, size=(2, 40))
    chances = nulls.paired_chance(losses, gains)
    lost = generator.binomial(losses + gains, 0.5, size=(20_000, 40))
    counts = (lost > losses + gains - lost).sum(1)
    null = nulls.null_count(chances)
    assert null.mean == pytest.approx(counts.mean(), abs=0.15) and null.std == pytest.approx(counts.std(), abs=0.1)
    for count in (10, 18, 25):
        assert nulls.count_p_value(count, chances) == pytest.approx((counts >= count).mean(), abs=0.02)
    assert nulls.count_distribution(chances).sum() == pytest.approx(1.0)
    assert nulls.count_p_value(0, chances) == pytest.approx(1.0) and nulls.count_p_value(41, chances) == 0.0


def test_survivors_of_the_permutation_null() -> None:
    generator = np.random.default_rng(1)
    losses, gains = generator.integers(0, 15, size=(2, 60))
    null = nulls.permuted_survivors(losses, gains, draws=400)
    counts = []
    for _ in range(400):
        lost = np.array([(generator.random(n) < 0.5).sum() for n in losses + gains])
        counts.append((q_values(paired_p_value(lost, losses + gains - lost)) <= LEVEL).sum())
    assert null.mean == pytest.approx(np.mean(counts), abs=0.1)
    # By its promise, the chance of a single false discovery is at most 5 %.
    assert np.mean(np.array(counts) > 0) <= LEVEL + 0.03
    before, now, total = np.full(30, 12), np.full(30, 10), np.full(30, 20)
    assert nulls.permuted_survivors_unpaired(before, now, total).mean < 0.5
