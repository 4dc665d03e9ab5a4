"""Detect classes by repetition of the teacher's errors; needs no second run."""

from __future__ import annotations

from torch import Tensor

from tllm_plugin.core.detectors.base import DETECTORS, Evidence
from tllm_plugin.core.detectors.sequential import SequentialDetector
from tllm_plugin.core.errors import ConfigError
from tllm_plugin.core.evidence import robust_deviation
from tllm_plugin.core.predictions import Predictions


@DETECTORS.register("imitation")
class ImitationDetector(SequentialDetector):
    """Flag classes on which the student repeats the teacher's errors more often than on other classes.

    The drop of a class is the fraction of its hold-out samples on which student and teacher make the same wrong
    prediction. Student and teacher share some errors on every hard class, so the drop must exceed the level common to
    the unflagged classes by eta *and* by three robust standard deviations over these classes, sampling noise included.
    This detector sees only one cause, a teacher that is wrong; a class that a correct teacher makes worse is found
    only by `reference`. The rule is ours, not the paper's.

    Args:
        num_classes: C.
        options: Options of `SequentialDetector`; `score` has no effect.

    Raises:
        ConfigError: An option is out of range.
    """

    needs_teacher = True
    spreads = 3.0
    offence = "repeated the teacher's errors more often than the others by over eta = {eta:g}"

    def spread(self, deviations: Tensor, variance: Tensor) -> Tensor:
        return robust_deviation(deviations)

    def judge(self, epoch: int, samples: Predictions) -> tuple[Tensor, Evidence]:
        if samples.agree is None:
            raise ConfigError("Expected a teacher for the detector `imitation`, but got a distiller without one")
        repeated = self.smooth("repeated", (samples.agree & ~samples.correct).float())
        # McNemar pairs: agreeing and wrong count as losses, disagreeing and correct as gains.
        return self.weigh(epoch, repeated, samples.agree, samples)
