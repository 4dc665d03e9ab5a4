"""Whether a network knows anything of its data at all."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class AgainstChance:
    """How many answers are right, and how many would be if they had nothing to do with the images.

    Args:
        correct: Right answers.
        count: All of them.
        expected: What the same answers would get right on average if they were dealt out to the images at random.
        p_value: Probability of at least as many right answers by such chance.
    """

    correct: int
    count: int
    expected: float
    p_value: float


def against_chance(labels: Tensor, predictions: Tensor) -> AgainstChance:
    """Compare answers with chance, by an exact one-sided binomial test.

    An answer is right by chance with the probability that a random label equals a random answer: one in C where the
    labels are balanced, and the most frequent class's share for a network that always answers with that.

    Args:
        labels: (n,) int64, n at least 1.
        predictions: (n,) int64.

    >>> found = against_chance(torch.tensor([0, 0, 1, 1]), torch.tensor([0, 0, 1, 0]))
    >>> found.correct, found.expected, round(found.p_value, 4)
    (3, 2.0, 0.3125)
    """
    labels, predictions = labels.cpu(), predictions.cpu()
    count = len(labels)
    correct = int((labels == predictions).sum())
    classes = int(torch.max(labels.max(), predictions.max())) + 1
    label_shares, answer_shares = (
        torch.bincount(values, minlength=classes).double() / count for values in (labels, predictions)
    )
    chance = float(label_shares @ answer_shares)
    return AgainstChance(correct, count, chance * count, binomial_tail(correct, count, chance))


def binomial_tail(successes: int, trials: int, probability: float) -> float:
    """Return the probability of at least so many successes.

    >>> binomial_tail(2, 2, 0.5), binomial_tail(0, 5, 0.1), binomial_tail(3, 3, 1.0), binomial_tail(1, 3, 0.0)
    (0.25, 1.0, 1.0, 0.0)
    """
    if successes <= 0 or probability >= 1.0:
        return 1.0
    if probability <= 0.0:
        return 0.0
    k = torch.arange(successes, trials + 1, dtype=torch.float64)
    n, p = torch.tensor(float(trials), dtype=torch.float64), torch.tensor(probability, dtype=torch.float64)
    ways = torch.lgamma(n + 1) - torch.lgamma(k + 1) - torch.lgamma(n - k + 1)
    return min(1.0, float(torch.logsumexp(ways + k * p.log() + (n - k) * torch.log1p(-p), 0).exp()))
