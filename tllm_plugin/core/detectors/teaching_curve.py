"""Detect classes by comparison with their own best epoch; needs no second run."""

from __future__ import annotations

import torch
from torch import Tensor

from tllm_plugin.core.detectors.base import DETECTORS, Evidence
from tllm_plugin.core.detectors.sequential import SequentialDetector
from tllm_plugin.core.predictions import Predictions, class_means


@DETECTORS.register("teaching_curve")
class TeachingCurveDetector(SequentialDetector):
    """Flag classes whose smoothed hold-out curve has fallen more than eta below its own best.

    It detects classes that distillation makes worse *over time*. A class that never learns has no best epoch to fall
    from; only `reference` finds it. Choosing the best epoch so far exaggerates the drop, so the e-value is divided by
    the number of epochs seen. As a consequence small hold-outs rarely give enough evidence at a low false discovery
    rate.
    """

    def judge(self, epoch: int, samples: Predictions) -> tuple[Tensor, Evidence]:
        smoothed = self.smooth("smoothed", self.scores(samples))
        curve = class_means(smoothed, samples.labels, self.num_classes)
        best = self.memory.get("best", torch.full((self.num_classes,), -1.0, dtype=torch.float64))
        improved = curve > best
        self.memory["best"] = torch.where(improved, curve, best)
        renew = improved[samples.labels]
        for name, value in (
            ("best_samples", smoothed),
            ("best_correct", samples.correct),
        ):
            self.memory[name] = torch.where(renew, value, self.memory.get(name, value))
        fallen = self.memory["best_samples"] - smoothed
        return self.weigh(epoch, fallen, self.memory["best_correct"], samples, choices=epoch)
