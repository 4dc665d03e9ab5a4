"""Overlap against scikit-learn and against real permutations."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from sklearn.metrics import jaccard_score

from tllm_plugin.analysis.overlap import in_every, overlap


@pytest.mark.parametrize("seed", range(5))
def test_against_scikit_learn_and_permutations(seed: int) -> None:
    generator = np.random.default_rng(seed)
    first, second = generator.random((2, 30)) < generator.uniform(0.2, 0.8, size=(2, 1))
    second[:4] = first[:4] = True
    found = overlap(first, second)
    assert found.jaccard == pytest.approx(jaccard_score(first, second))
    permuted = [generator.permutation(second) for _ in range(5_000)]
    common = np.array([(first & other).sum() for other in permuted])
    jaccard = common / (first.sum() + second.sum() - common)
    assert found.p_value == pytest.approx((common >= (first & second).sum()).mean(), abs=0.03)
    assert found.expected == pytest.approx(jaccard.mean(), abs=0.01)
    assert overlap(second, first).p_value == pytest.approx(found.p_value)


def test_edges() -> None:
    none, every = np.zeros(6, dtype=bool), np.ones(6, dtype=bool)
    assert np.isnan(overlap(none, none).jaccard) and overlap(none, none).p_value == 1.0
    assert overlap(none, every).jaccard == 0.0
    assert overlap(every, every).jaccard == 1.0 and overlap(every, every).p_value == pytest.approx(1.0)


def test_a_p_value_is_a_probability() -> None:
    """Sets with as little in common as their sizes allow are what any two sets have at least in common."""
    for size, other in itertools.product(range(8), repeat=2):
        least = overlap(np.arange(7) < size, np.arange(7) >= 7 - other).p_value
        assert least <= 1.0 and least == pytest.approx(1.0), (size, other)


def test_in_every_by_enumeration() -> None:
    sets = [np.isin(np.arange(5), members) for members in ([0, 1, 2], [1, 2], [1, 2, 4])]
    found = in_every(sets)
    assert found.classes == (1, 2)
    combinations = [list(itertools.combinations(range(5), int(flags.sum()))) for flags in sets]
    sizes = [len(set(a) & set(b) & set(c)) for a, b, c in itertools.product(*combinations)]
    assert found.expected == pytest.approx(np.mean(sizes))
    assert found.p_value == pytest.approx(np.mean(np.array(sizes) >= 2))
    with pytest.raises(ValueError, match="at least one set of classes"):
        in_every([])
