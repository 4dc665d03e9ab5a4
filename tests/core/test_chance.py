"""Whether answers can be told from chance, against SciPy and against answers that were shuffled."""

from __future__ import annotations

import pytest
import torch
from scipy.stats import binomtest

from tllm_plugin.core.chance import against_chance, binomial_tail


@pytest.mark.parametrize(
    ("successes", "trials", "probability"),
    [(0, 10, 0.1), (1, 10, 0.1), (10, 10, 0.1), (63, 600, 0.1), (95, 600, 0.1), (700, 50000, 0.01), (5, 7, 0.999)],
)
def test_the_tail_is_that_of_scipy(successes: int, trials: int, probability: float) -> None:
    expected = binomtest(successes, trials, probability, alternative="greater").pvalue
    assert binomial_tail(successes, trials, probability) == pytest.approx(expected, rel=1e-6, abs=1e-12)


def test_chance_is_what_shuffled_answers_get_right() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.multinomial(torch.tensor([0.7, 0.2, 0.1]), 300, replacement=True, generator=generator)
    answers = torch.multinomial(torch.tensor([0.5, 0.1, 0.4]), 300, replacement=True, generator=generator)
    shuffled = [int((answers[torch.randperm(300, generator=generator)] == labels).sum()) for _ in range(2000)]
    assert against_chance(labels, answers).expected == pytest.approx(sum(shuffled) / 2000, abs=1.0)


@pytest.mark.parametrize("classes", [2, 10, 100])
def test_balanced_labels_make_it_one_in_as_many_as_there_are_classes(classes: int) -> None:
    labels = torch.arange(classes).repeat(20)
    for answers in (labels, labels.roll(1), torch.zeros_like(labels)):
        assert against_chance(labels, answers).expected == pytest.approx(20.0)


def test_always_the_most_frequent_class_is_chance() -> None:
    labels = torch.tensor([0] * 90 + [1] * 10)
    found = against_chance(labels, torch.zeros(100, dtype=torch.int64))
    assert (found.correct, found.expected) == (90, pytest.approx(90.0)) and found.p_value > 0.4


def test_networks_that_know_nothing_pass_as_seldom_as_the_level_says() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(10).repeat(30)
    passed = sum(
        against_chance(labels, torch.randint(10, (300,), generator=generator)).p_value <= 0.05 for _ in range(400)
    )
    assert passed <= 400 * 0.05 + 3 * (400 * 0.05 * 0.95) ** 0.5
