"""Evidence that a class is hurt: exact paired tests, betting e-values, and false discovery control over classes.

All functions are pure, work on CPU tensors and treat all classes at once.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tllm_plugin.core.predictions import class_means, class_sums

# Stakes between "hardly anything" and "nearly all", as fractions of the largest stake that cannot lose everything.
_STAKES = torch.linspace(0.05, 0.95, 10, dtype=torch.float64)


def mcnemar_p_value(losses: Tensor, gains: Tensor) -> Tensor:
    """Return (C,) float64 one-sided exact p-values of McNemar's test that samples were lost rather than gained.

    Args:
        losses: (C,) int64, samples that were right before and are wrong now.
        gains: (C,) int64, samples that were wrong before and are right now.

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


def betting_e_value(differences: Tensor, labels: Tensor, margin: Tensor) -> Tensor:
    """Return (C,) float64 e-values against "the mean difference of this class is at most its margin".

    A gambler bets on every sample that its difference exceeds the margin; the e-value is the money after all samples,
    averaged over ten sizes of the stake. Under the hypothesis its expectation is at most 1 for samples drawn
    independently, whatever their distribution.

    Args:
        differences: (n,) in [-1, 1], score of the better run minus score of this run, per sample.
        labels: (n,) int64.
        margin: (C,) float64 in [0, 1).

    Source: Waudby-Smith and Ramdas, "Estimating means of bounded random variables by betting" (2024).

    >>> betting_e_value(torch.zeros(20), torch.zeros(20, dtype=torch.long), torch.zeros(1, dtype=torch.float64)).item()
    1.0
    """
    excess = (differences.double() - margin[labels])[:, None]
    stakes = _STAKES[None, :] / (1.0 + margin[labels])[:, None]
    logs = torch.zeros(margin.numel(), _STAKES.numel(), dtype=torch.float64)
    logs.index_add_(0, labels, torch.log1p(stakes * excess))
    return logs.clamp(max=500.0).exp().mean(1)


def e_benjamini_hochberg(e_values: Tensor, level: float) -> Tensor:
    """Return (C,) bool: rejected hypotheses with false discovery rate at most `level`, under any dependence.

    Args:
        e_values: (C,).
        level: In (0, 1).

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
    """Return (C,) float64: the variance of each class's mean of `values` (n,), estimated from its samples.

    >>> sampling_variance(torch.tensor([0.0, 1.0, 1.0, 1.0]), torch.tensor([0, 0, 1, 1]), 2).tolist()
    [0.25, 0.0]
    """
    count = torch.bincount(labels, minlength=num_classes)
    mean = class_means(values, labels, num_classes)
    squares = class_sums((values.double() - mean[labels]) ** 2, labels, num_classes)
    return squares / ((count - 1).clamp(min=1) * count)


def robust_deviation(deviations: Tensor) -> Tensor:
    """Return 1.4826 times the median absolute deviation, 0-dim: of a normal distribution, its standard deviation."""
    return 1.4826 * deviations.abs().median()


def paired_counts(before: Tensor, now: Tensor, labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Return (losses, gains), each (C,) int64, from correctness before and now, (n,) bool each."""
    losses = class_sums(before & ~now, labels, num_classes)
    gains = class_sums(~before & now, labels, num_classes)
    return losses.long(), gains.long()
