"""Correlate the teacher's accuracy per class with delta acc: are hard classes the undistillable ones?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import spearmanr

from tllm_plugin.analysis.results import Vector
from tllm_plugin.analysis.study import Study
from tllm_plugin.analysis.wording import listed

#: Significance level over all methods together (Bonferroni).
LEVEL = 0.05


@dataclass(frozen=True)
class Correlation:
    """Spearman's rank correlation of the teacher's accuracy with a method's delta acc, over classes.

    Args:
        label: Label of the method.
        rho: Correlation in [-1, 1]; if positive, classes that are hard for the teacher lose more.
        p_value: Two-sided p-value.
    """

    label: str
    rho: float
    p_value: float

    def __str__(self) -> str:
        return f"{self.label} {self.rho:+.2f} (p = {self.p_value:.2g})".replace("-0.", "\u22120.").replace(
            "-1.", "\u22121."
        )


def correlations(study: Study, accuracy: Vector) -> list[Correlation]:
    """Return the correlation for every compared method for which it is defined.

    Args:
        study: Study whose compared methods are used.
        accuracy: (C,) accuracy of the teacher, a fraction.
    """
    found = []
    for method in study.compared:
        assert method.comparison is not None
        delta = method.comparison.delta
        known = np.isfinite(accuracy) & np.isfinite(delta)
        if known.sum() > 2 and np.ptp(accuracy[known]) > 0 and np.ptp(delta[known]) > 0:
            result = spearmanr(accuracy[known], delta[known])
            found.append(Correlation(method.label, float(result.statistic), float(result.pvalue)))
    return found


def heading(found: Sequence[Correlation]) -> str:
    """Return a heading that states which correlations are significant."""
    if not found:
        return "Are classes that are hard for the teacher the undistillable ones?"
    clear = [one for one in found if one.p_value * len(found) <= LEVEL]
    more = [one.label for one in clear if one.rho > 0]
    less = [one.label for one in clear if one.rho < 0]
    if not clear:
        return "Hard for the teacher or undistillable: no significant correlation"

    def under(labels: Sequence[str]) -> str:
        return "" if len(labels) == len(found) else f" under {listed(labels)}"

    parts = [f"lose {how}{under(labels)}" for how, labels in (("more", more), ("less", less)) if labels]
    return f"Classes that are hard for the teacher {', and '.join(parts)}"
