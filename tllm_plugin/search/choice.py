"""Estimate and compare the accuracy of students on the search hold-out, with standard errors and p-values."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from tllm_plugin.core.evidence import mcnemar_p_value, sampling_variance
from tllm_plugin.core.predictions import class_means

#: Significance level; a difference with a two-sided p-value of at least this is within noise.
NOISE_LEVEL = 0.05


@dataclass(frozen=True)
class Estimate:
    """Class-balanced mean over samples and its standard error.

    Args:
        value: Mean, in [0, 1], or in [-1, 1] for a difference.
        standard_error: Standard error from the variance within classes; does not cover other training seeds.
    """

    value: float
    standard_error: float


@dataclass(frozen=True)
class Comparison:
    """Comparison of two students on the same samples.

    Args:
        difference: Class-balanced accuracy of the first student minus that of the second.
        p_value: Exact two-sided McNemar p-value, in [0, 1].
    """

    difference: Estimate
    p_value: float


def estimate(values: Tensor, labels: Tensor, num_classes: int) -> Estimate:
    """Return the class-balanced mean of per-sample values and its stratified standard error.

    Args:
        values: (n,), for instance correctness.
        labels: (n,) int64, at least 2 samples of every class.
        num_classes: C.

    >>> import torch
    >>> estimate(torch.tensor([1, 1, 1, 0]), torch.tensor([0, 0, 1, 1]), 2)
    Estimate(value=0.75, standard_error=0.25)
    """
    values = values.double()
    means = class_means(values, labels, num_classes)
    variances = sampling_variance(values, labels, num_classes)
    return Estimate(float(means.mean()), float(variances.sum().sqrt()) / num_classes)


def compare(first: Tensor, second: Tensor, labels: Tensor, num_classes: int) -> Comparison:
    """Compare the correctness of two students sample by sample.

    Args:
        first: (n,) bool.
        second: (n,) bool, of the same samples in the same order.
        labels: (n,) int64, at least 2 samples of every class.
        num_classes: C.

    >>> import torch
    >>> right = torch.tensor([True] * 6)
    >>> round(compare(right, ~right, torch.tensor([0, 0, 0, 1, 1, 1]), 2).p_value, 5)
    0.03125
    """
    difference = estimate(first.double() - second.double(), labels, num_classes)
    better, worse = (first & ~second).sum().reshape(1), (~first & second).sum().reshape(1)
    one_sided = min(float(mcnemar_p_value(better, worse)), float(mcnemar_p_value(worse, better)))
    return Comparison(difference, min(1.0, 2.0 * one_sided))
