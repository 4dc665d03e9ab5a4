"""Test whether a network's predictions are better than chance."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class AgainstChance:
    """Number of correct predictions, and the number expected under the null that they are independent of the images.

    Args:
        correct: Number of correct predictions.
        count: Number of predictions.
        expected: Mean number correct if the same predictions were assigned to the images at random.
        p_value: Probability of at least `correct` correct predictions under the null.
    """

    correct: int
    count: int
    expected: float
    p_value: float


def against_chance(labels: Tensor, predictions: Tensor) -> AgainstChance:
    """Compare predictions with chance by a one-sided exact binomial test.

    The probability of a correct prediction by chance is the probability that a random label equals a random
    prediction: 1 / C for balanced labels, and the frequency of the most frequent class for a network that always
    predicts this class.

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
    """Return the probability of at least `successes` successes in `trials` trials.

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
