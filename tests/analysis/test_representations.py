"""CKA, agreement and t-SNE against brute force and on features whose relation is known."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from scipy.stats import ortho_group
from sklearn.manifold import trustworthiness

from tllm_plugin.analysis.networks import balanced_rows
from tllm_plugin.analysis.representations import class_cka, linear_cka, tsne
from tllm_plugin.core.predictions import Predictions, class_means


def hsic_over_quadruples(first: np.ndarray, second: np.ndarray) -> float:
    """HSIC by its definition as a mean over quadruples of distinct images (Song et al. 2012, eq. 3)."""
    k, m = first @ first.T, second @ second.T
    values = [
        k[i, j] * (m[i, j] + m[q, r] - 2 * m[i, q]) for i, j, q, r in itertools.permutations(range(len(first)), 4)
    ]
    return float(np.mean(values))


@pytest.mark.parametrize("images", [4, 7])
def test_cka_by_its_definition(images: int) -> None:
    generator = np.random.default_rng(images)
    first = generator.normal(size=(images, 3))
    second = first[:, :2] + generator.normal(size=(images, 2))
    first, second = first - first.mean(0), second - second.mean(0)
    expected = hsic_over_quadruples(first, second) / np.sqrt(
        hsic_over_quadruples(first, first) * hsic_over_quadruples(second, second)
    )
    assert linear_cka(first + 5.0, second) == pytest.approx(expected)


def test_cka_of_known_relations() -> None:
    generator = np.random.default_rng(0)
    features = generator.normal(size=(60, 16))
    turned = 3.0 * features @ ortho_group.rvs(16, random_state=1) + 7.0
    assert linear_cka(features, turned) == pytest.approx(1.0)
    # Many features, few images: where the usual estimator is far above zero for unrelated networks.
    unrelated = [linear_cka(*generator.normal(size=(2, 20, 64))) for _ in range(200)]
    assert abs(np.mean(unrelated)) < 0.02
    noisy = linear_cka(features, features + generator.normal(size=features.shape))
    assert 0.2 < noisy < 0.9
    assert np.isnan(linear_cka(features[:3], features[:3])) and np.isnan(linear_cka(np.ones((9, 2)), features[:9]))


def test_per_class() -> None:
    generator = np.random.default_rng(1)
    labels = generator.permutation(np.repeat([0, 1, 3], [10, 12, 2]))
    first, second = generator.normal(size=(24, 5)), generator.normal(size=(24, 6))
    second[labels == 1, :5] = first[labels == 1]
    found = class_cka(first, second, labels, 4)
    for index in (0, 1):
        assert found[index] == pytest.approx(linear_cka(first[labels == index], second[labels == index]))
    assert found[1] > 0.7 > found[0] and np.isnan(found[2]) and np.isnan(found[3])
    answers = generator.integers(0, 4, size=(2, 24))
    agree = Predictions(*map(torch.from_numpy, (labels, answers[0])), 4).beside(torch.from_numpy(answers[1])).agree
    assert agree is not None
    agreed = class_means(agree, torch.from_numpy(labels), 4)
    for index in (0, 1, 3):
        assert agreed[index] == pytest.approx((answers[0] == answers[1])[labels == index].mean())
    assert agreed[2].isnan()


def test_tsne_keeps_neighbours() -> None:
    generator = np.random.default_rng(2)
    centres = generator.normal(size=(5, 40)) * 6
    features = np.repeat(centres, 20, 0) + generator.normal(size=(100, 40))
    placed = tsne(features)
    assert placed.shape == (100, 2) and np.isfinite(placed).all()
    assert trustworthiness(features, placed, n_neighbors=5) > 0.85
    np.testing.assert_array_equal(placed, tsne(features))
    assert tsne(features[:4]).shape == (4, 2)


@pytest.mark.parametrize("most", [1, 7, 30, 46, 47, 1000])
def test_balanced_rows(most: int) -> None:
    labels = torch.tensor([0] * 30 + [2] * 5 + [1] * 12)[torch.randperm(47, generator=torch.Generator().manual_seed(0))]
    rows = balanced_rows(labels, most)
    assert len(rows) == min(most, 47) and rows.unique().tolist() == rows.tolist()
    counts = torch.bincount(labels[rows], minlength=3)
    whole = torch.tensor([30, 12, 5])
    # No class is short by more than one while another one with images left has more.
    assert all(counts[c] == whole[c] or counts.max() - counts[c] <= 1 for c in range(3))
