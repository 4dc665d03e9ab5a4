"""A detector whose flags are known beforehand, shared by the tests of the search."""

from __future__ import annotations

import torch
from torch import Tensor

from tllm_plugin.core.detectors import DETECTORS, Detector, Evidence
from tllm_plugin.core.predictions import Predictions

SAVING = ("LOG.SAVE_CHECKPOINT_FREQ", "1")


@DETECTORS.register("staged_for_tests")
class StagedDetector(Detector):
    """Flags class 3 after epoch 1, and class 8 after epoch 10 * eta."""

    def __init__(self, num_classes: int, *, eta: float) -> None:
        super().__init__(num_classes)
        self.second = round(10 * eta)

    def judge(self, epoch: int, samples: Predictions) -> tuple[Tensor, Evidence]:
        flags = torch.zeros(self.num_classes, dtype=torch.bool)
        flags[3], flags[8] = epoch >= 1, epoch >= self.second
        return flags, Evidence.none(self.num_classes)
