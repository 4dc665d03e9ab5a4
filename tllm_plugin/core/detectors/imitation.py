"""Comparison with the teacher's own errors: needs no second run."""

from __future__ import annotations

from torch import Tensor

from tllm_plugin.core.detectors.base import DETECTORS, Evidence
from tllm_plugin.core.detectors.sequential import SequentialDetector
from tllm_plugin.core.errors import ConfigError
from tllm_plugin.core.evidence import robust_deviation
from tllm_plugin.core.predictions import Predictions


@DETECTORS.register("imitation")
class ImitationDetector(SequentialDetector):
    """Flags a class on whose hold-out samples the student repeats wrong answers of the teacher, more than elsewhere.

    The drop of a class is the share of its hold-out samples on which student and teacher give the same wrong answer.
    Classes that are hard for everybody share some errors, too; so the drop must exceed what the unflagged classes
    share by eta *and* by three robust standard deviations over these classes, chance included. It sees one cause
    only: a teacher that is wrong. A class that a right teacher makes worse is found by `reference` alone. Ours, not
    the paper's.

    Args:
        num_classes: C.
        options: As `SequentialDetector`; `score` has no effect.

    Raises:
        ConfigError: An option is out of range.
    """

    needs_teacher = True
    spreads = 3.0
    offence = "repeated the teacher's errors more than eta = {eta:g} oftener than the others"

    def spread(self, deviations: Tensor, variance: Tensor) -> Tensor:
        return robust_deviation(deviations)

    def judge(self, epoch: int, samples: Predictions) -> tuple[Tensor, Evidence]:
        if samples.agree is None:
            raise ConfigError("Expected a teacher for the detector `imitation`, but got a distiller without one")
        repeated = self.smooth("repeated", (samples.agree & ~samples.correct).float())
        # McNemar's pair: with the teacher and wrong, against the teacher and right.
        return self.weigh(epoch, repeated, samples.agree, samples)
