"""Common base of the curve detectors: smoothed paired differences, and evidence that stays valid at every epoch.

Let `x_i` in [-1, 1] be how much worse sample `i` of a class is predicted than in the comparison. Averaged over the
last epochs (exponentially) and over the samples of the class, this is the *drop* of the class. The null hypothesis for
a class is that its drop is at most the sum of eta, the drop common to all unflagged classes, and one and a half times
the spread of their drops. The spread is needed because two runs differ from class to class by more than the sampling
of a hold-out explains, above all while the learning rate is high. Every epoch yields one e-value against the null
hypothesis. The evidence is the running sum of these e-values divided by the number of epochs of the run. It never
falls and its expectation at the end is at most 1, so by Markov's inequality it exceeds 1/alpha at *any* epoch with
probability at most alpha, however strongly the epochs depend on each other. Across classes, e-BH controls the false
discovery rate.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tllm_plugin.core.arguments import whole_number
from tllm_plugin.core.detectors.base import Detector, Evidence
from tllm_plugin.core.evidence import (
    betting_e_value,
    e_benjamini_hochberg,
    mcnemar_p_value,
    paired_counts,
    robust_deviation,
    sampling_variance,
)
from tllm_plugin.core.options import INSIDE, SHARE, count_in, number_in, one_of, option
from tllm_plugin.core.predictions import Predictions, class_means
from tllm_plugin.core.scores import SCORES

_MAX_MARGIN = 0.95


class SequentialDetector(Detector):
    """Base class of the detectors that judge curves.

    Args:
        num_classes: C.
        total_epochs: Epochs of the run.
        options: Values of the options below. With `fdr` 1 no evidence is required: every class whose smoothed drop
            exceeds the common drop by more than eta is flagged (the naive rule, which flags nearly every class sooner
            or later).

    Raises:
        ConfigError: An option is out of range.
    """

    #: Multiple of the unflagged classes' `spread` by which a drop must stand out, in addition to eta.
    spreads = 1.5
    #: Predicate of the sentence that `reason` returns.
    offence = "fell more than eta = {eta:g} behind"

    score: str = option("accuracy", one_of(SCORES), "score of a class on the hold-out")
    eta: float = option(0.05, INSIDE, "threshold of the drop, as a fraction of accuracy")
    fdr: float = option(
        0.05, number_in(0, 1, open_low=True), "false discovery rate of the flags; 1 uses the naive rule"
    )
    warmup_epochs: int = option(10, count_in(0), "number of epochs before the first flag", flag="tllm_warmup")
    smoothing: float = option(
        0.6, SHARE, "exponential smoothing of the teaching curves, in [0, 1)", flag="tllm_curve_smoothing"
    )

    def __init__(self, num_classes: int, *, total_epochs: int, **options: Any) -> None:
        super().__init__(num_classes, **options)
        self.total_epochs = whole_number("total_epochs", total_epochs, 1)

    def scores(self, samples: Predictions) -> Tensor:
        """Return the configured score of every sample, (n,) float32."""
        return SCORES[self.score](samples)

    def smooth(self, name: str, value: Tensor) -> Tensor:
        """Return the exponential moving average of `value` over the epochs so far and store it under `name`."""
        past = self.memory.get(name)
        mean = value if past is None else self.smoothing * past + (1.0 - self.smoothing) * value
        self.memory[name] = mean
        return mean

    def weigh(
        self,
        epoch: int,
        differences: Tensor,
        before: Tensor,
        samples: Predictions,
        *,
        choices: int = 1,
    ) -> tuple[Tensor, Evidence]:
        """Turn the paired differences of one epoch into flags and evidence.

        Args:
            epoch: Epoch, counted from 1.
            differences: (n,) in [-1, 1], how much worse each sample is predicted than in the comparison.
            before: (n,) bool, whether the sample was correct in the comparison.
            samples: Predictions of this epoch.
            choices: Number of candidates from which the comparison was chosen using the same data; the epoch's e-value
                is divided by it.
        """
        labels = samples.labels
        drop = class_means(differences, labels, self.num_classes)
        open_classes = ~self.flags
        if not open_classes.any():
            open_classes = torch.ones_like(open_classes)  # Nothing is left to judge.
        variance = sampling_variance(differences, labels, self.num_classes)
        shared, least = self.margin(drop[open_classes], variance[open_classes])
        margin = least.expand(self.num_classes)
        total = self.memory.get("e_value", torch.zeros(self.num_classes, dtype=torch.float64))
        if self.warmup_epochs < epoch <= self.total_epochs:
            looks = self.total_epochs - self.warmup_epochs
            total = total + betting_e_value(differences, labels, margin) / (choices * looks)
        self.memory["e_value"] = total
        p_value = mcnemar_p_value(*paired_counts(before, samples.correct, labels, self.num_classes))
        unknown = torch.full_like(drop, torch.nan)
        evidence = Evidence(drop=drop - shared, p_value=p_value, e_value=total, harm=unknown)
        if epoch <= self.warmup_epochs:
            return torch.zeros(self.num_classes, dtype=torch.bool), evidence
        if self.fdr == 1.0:
            return drop > self.eta + shared, evidence
        return e_benjamini_hochberg(total, self.fdr), evidence

    def margin(self, drop: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
        """Return the drop that the unflagged classes share, and the drop that a class must exceed, (...) each.

        Args:
            drop: (..., k) float64, drops of the unflagged classes.
            variance: (..., k) float64, sampling variance of each drop.
        """
        shared = drop.median(dim=-1).values.clamp(min=0.0)
        spread = self.spread(drop - shared.unsqueeze(-1), variance)
        return shared, (self.eta + shared + self.spreads * spread).clamp(max=_MAX_MARGIN)

    def spread(self, deviations: Tensor, variance: Tensor) -> Tensor:
        """Return the spread of the unflagged classes' drops beyond the sampling error of the hold-out, (...).

        Args:
            deviations: (..., k) float64, deviations of these drops from the drop that they have in common.
            variance: (..., k) float64, sampling variance of each drop.
        """
        unexplained: Tensor = robust_deviation(deviations) ** 2 - variance.median(dim=-1).values
        return unexplained.clamp(min=0.0).sqrt()

    def reason(self) -> str:
        offence = f"no class {self.offence.format(eta=self.eta)}"
        if self.fdr == 1.0:
            return offence
        strongest = float(self.evidence.e_value.nan_to_num(0.0).max())
        return (
            f"{offence} with evidence that holds at a false discovery rate of {self.fdr:g} (the strongest e-value is "
            f"{strongest:.3g}, {self.num_classes / self.fdr:,.0f} is needed for a single class)"
        )
