"""Detect classes during training by comparison with a recorded vanilla run, TLLM's definition (delta acc)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tllm_plugin.core.curves import Curves
from tllm_plugin.core.detectors.base import DETECTORS, Evidence
from tllm_plugin.core.detectors.sequential import SequentialDetector
from tllm_plugin.core.errors import ConfigError
from tllm_plugin.core.evidence import sampling_variance
from tllm_plugin.core.options import INSIDE, option
from tllm_plugin.core.posterior import Posterior, posterior
from tllm_plugin.core.predictions import Predictions, class_means


@DETECTORS.register("reference")
class ReferenceDetector(SequentialDetector):
    """Flag classes whose curve is more than eta below the vanilla run's curve at the same epoch.

    The paper's appendix defines undistillable classes by delta acc but does not state an online rule; this rule is
    ours (see `sequential`).

    Args:
        num_classes: C.
        reference: Curves of a vanilla run with the same hold-out, the same schedule and at least as many epochs.
        total_epochs: Epochs of the run.
        options: Options of `SequentialDetector`.

    Raises:
        ConfigError: The reference does not match the run, or an option is out of range.
    """

    needs_reference = True
    reference: Curves

    def __init__(self, num_classes: int, *, reference: Curves, total_epochs: int, **options: Any) -> None:
        super().__init__(num_classes, total_epochs=total_epochs, **options)
        if not isinstance(reference, Curves):
            raise ConfigError(f"Expected `reference` to be Curves of a vanilla run, but got {type(reference).__name__}")
        if reference.num_classes != num_classes:
            raise ConfigError(
                f"Expected the reference run to have {num_classes} classes, but got {reference.num_classes}"
            )
        missing = sorted(set(range(1, total_epochs + 1)) - set(reference.epochs))
        if missing:
            raise ConfigError(
                f"Expected the reference run to have recorded all {total_epochs} epochs, but epoch {missing[0]} is "
                "missing"
            )
        self.reference = reference
        # Computed once: hashing a long history takes time, and every checkpoint stores the digest.
        self._digest = reference.digest()

    def judge(self, epoch: int, samples: Predictions) -> tuple[Tensor, Evidence]:
        if not samples.labels.equal(self.reference.labels):
            raise ConfigError("Expected the reference run to be scored on the same hold-out, but the samples differ")
        vanilla = self.reference.samples_at(epoch)
        behind = self.smooth("behind", self.scores(vanilla) - self.scores(samples))
        flags, evidence = self.weigh(epoch, behind, vanilla.correct, samples)
        effects = self.effects(behind, samples.labels)
        return self.decide(epoch, flags, effects), replace(evidence, harm=effects.harm)

    def decide(self, epoch: int, flags: Tensor, effects: Posterior) -> Tensor:
        """Return the classes to flag, (C,) bool: here those whose e-values suffice.

        Args:
            epoch: Epoch, counted from 1.
            flags: (C,) bool, classes whose e-values suffice.
            effects: Posterior of the effect on every class.
        """
        return flags

    def effects(self, behind: Tensor, labels: Tensor) -> Posterior:
        """Return the posterior of the effect on every class, in units of the score.

        Args:
            behind: (n,) smoothed differences, the score in the reference run minus the score in this run.
            labels: (n,) int64.
        """
        count = torch.bincount(labels, minlength=self.num_classes)
        # Differences that are all equal show no sampling error, which does not make the effect certain.
        error = sampling_variance(behind, labels, self.num_classes).sqrt().maximum(0.5 / count.clamp(min=1))
        return posterior(-class_means(behind, labels, self.num_classes), error)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "reference": self._digest}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if "reference" in state and not state["reference"].equal(self._digest):
            raise ConfigError("Expected the reference run that this run began with, but its curves differ")
        super().load_state_dict(state)


@DETECTORS.register("posterior")
class PosteriorDetector(ReferenceDetector):
    """Flag classes that are behind the vanilla run by more than eta with at least a given probability.

    The probability is that of the posterior of the current epoch, which uses all classes together. Unlike the e-values
    of `reference` it comes with no guarantee over repeated looks: expect more flags, and more false ones.

    Args:
        num_classes: C.
        reference: Curves of a vanilla run, as for `reference`.
        total_epochs: Epochs of the run.
        options: Options of `SequentialDetector`, of which `fdr` has no effect, and `probability`.

    Raises:
        ConfigError: The reference does not match the run, or an option is out of range.
    """

    probability: float = option(0.95, INSIDE, "posterior probability of harm from which a class is flagged")

    def decide(self, epoch: int, flags: Tensor, effects: Posterior) -> Tensor:
        return (effects.below(-self.eta) >= self.probability) & (epoch > self.warmup_epochs)

    def reason(self) -> str:
        likeliest = float(self.evidence.harm.nan_to_num(0.0).max())
        return (
            f"no class fell more than eta = {self.eta:g} behind with probability {self.probability:g} (the largest "
            f"probability that a class is behind at all is {likeliest:.2f})"
        )
