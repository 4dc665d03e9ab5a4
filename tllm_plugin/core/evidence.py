"""Test whether classes got worse: exact paired tests, betting e-values, and false discovery control over classes.

All functions are pure, work on CPU tensors and treat all classes at once.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tllm_plugin.core.predictions import class_means, class_sums

# Ten stakes between 0 and 1, as fractions of the largest stake that cannot lose everything.
_STAKES = torch.linspace(0.05, 0.95, 10, dtype=torch.float64)


def mcnemar_p_value(losses: Tensor, gains: Tensor) -> Tensor:
    """Return exact one-sided p-values of McNemar's test for more losses than gains, (C,) float64.

    Args:
        losses: (C,) int64, samples that were correct before and are wrong now.
        gains: (C,) int64, samples that were wrong before and are correct now.

    Source: McNemar (1947), exact binomial form: P(X >= losses) for X ~ Binomial(losses + gains, 1/2).

    >>> mcnemar_p_value(torch.tensor([5, 0]), torch.tensor([0, 0])).tolist()
    [0.03125, 1.0]
    """
    total = (losses + gains).double()
    k = torch.arange(int(total.max()) + 1 if total.numel() else 1, dtype=torch.float64)[None, :]
    n = total[:, None]
    log_pmf = torch.lgamma(n + 1) - torch.lgamma(k + 1) - torch.lgamma((n - k).clamp(min=0) + 1)
    log_pmf = log_pmf - n * torch.log(torch.tensor(2.0, dtype=torch.float64))
    in_tail = (k >= losses[:, None]) & (k <= n)
    return (log_pmf.exp() * in_tail).sum(1).clamp(max=1.0)


def betting_e_value(differences: Tensor, labels: Tensor, margin: Tensor, multiplicity: Tensor | None = None) -> Tensor:
    """Return e-values against the null hypothesis that a class's mean difference is at most its margin, (C,) float64.

    A gambler bets on every sample that its difference exceeds the margin. The e-value is the gambler's wealth after all
    samples, averaged over ten stakes. Under the null hypothesis its expectation is at most 1 for independent samples of
    any distribution.

    Args:
        differences: (n,) in [-1, 1], per sample the score of the comparison minus the score of this run.
        labels: (n,) int64.
        margin: (C,) float64 in [0, 1).
        multiplicity: (n,) how many equal samples each entry stands for; None for one each.

    Source: Waudby-Smith and Ramdas, "Estimating means of bounded random variables by betting" (2024).

    >>> betting_e_value(torch.zeros(20), torch.zeros(20, dtype=torch.long), torch.zeros(1, dtype=torch.float64)).item()
    1.0
    """
    excess = (differences.double() - margin[labels])[:, None]
    stakes = _STAKES[None, :] / (1.0 + margin[labels])[:, None]
    logs = torch.zeros(margin.numel(), _STAKES.numel(), dtype=torch.float64)
    terms = torch.log1p(stakes * excess)
    logs.index_add_(0, labels, terms if multiplicity is None else terms * multiplicity.double()[:, None])
    return logs.clamp(max=500.0).exp().mean(1)


def e_benjamini_hochberg(e_values: Tensor, level: float) -> Tensor:
    """Reject hypotheses at false discovery rate `level` under any dependence (e-BH); return (C,) bool.

    Args:
        e_values: (C,), one per hypothesis.
        level: False discovery rate, in (0, 1).

    Source: Wang and Ramdas, "False discovery rate control with e-values" (2022).

    >>> e_benjamini_hochberg(torch.tensor([100.0, 45.0, 1.0, 0.0]), level=0.05).tolist()
    [True, True, False, False]
    """
    classes = e_values.numel()
    descending = e_values.sort(descending=True).values
    place = torch.arange(1, classes + 1)
    passed = descending >= classes / (level * place)
    count = int((place * passed).max()) if classes else 0
    return e_values >= descending[count - 1] if count else torch.zeros(classes, dtype=torch.bool)


def sampling_variance(values: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Estimate the sampling variance of each class's mean of `values` (n,); return (C,) float64.

    >>> sampling_variance(torch.tensor([0.0, 1.0, 1.0, 1.0]), torch.tensor([0, 0, 1, 1]), 2).tolist()
    [0.25, 0.0]
    """
    count = torch.bincount(labels, minlength=num_classes)
    mean = class_means(values, labels, num_classes)
    squares = class_sums((values.double() - mean[labels]) ** 2, labels, num_classes)
    return squares / ((count - 1).clamp(min=1) * count)


def robust_deviation(deviations: Tensor) -> Tensor:
    """Return 1.4826 times the median absolute deviation; estimates the standard deviation of normal data.

    Args:
        deviations: (..., k).

    Returns:
        (...), of the same type.
    """
    return 1.4826 * deviations.abs().median(dim=-1).values


def paired_counts(before: Tensor, now: Tensor, labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Count per class the samples that became wrong and correct: (losses, gains), (C,) int64 each, from (n,) bool."""
    losses = class_sums(before & ~now, labels, num_classes)
    gains = class_sums(~before & now, labels, num_classes)
    return losses.long(), gains.long()
