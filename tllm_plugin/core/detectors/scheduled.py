"""Detectors that ignore predictions: the paper's baselines, so that one code path trains all methods."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tllm_plugin.core.arguments import as_indices, whole_number
from tllm_plugin.core.detectors.base import DETECTORS, Detector, Evidence
from tllm_plugin.core.options import number_in, option
from tllm_plugin.core.predictions import Predictions


class _Scheduled(Detector):
    def judge(self, epoch: int, samples: Predictions) -> tuple[Tensor, Evidence]:
        return self.due(epoch), Evidence.none(self.num_classes)

    def due(self, epoch: int) -> Tensor:
        """Return the classes that are flagged after `epoch` (0 means before training), (C,) bool."""
        return torch.zeros(self.num_classes, dtype=torch.bool)


@DETECTORS.register("none")
class NoneDetector(_Scheduled):
    """Flag no class: train the inner distiller unchanged and record its curves."""

    def reason(self) -> str:
        return "the detector `none` never flags a class"


@DETECTORS.register("all")
class AllDetector(_Scheduled):
    """Flag every class from the first epoch on: the label-smoothing baseline.

    Source: appendix F.2, Table 9.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self._flag(torch.ones(num_classes, dtype=torch.bool), epoch=0)


@DETECTORS.register("after")
class AfterDetector(_Scheduled):
    """Flag every class after a fraction of the epochs, without label smoothing: early-stopped KD.

    Args:
        num_classes: C.
        total_epochs: Epochs of the run.
        options: Values of the options below; the paper searches 0.7, 0.8, 0.9, 0.95.

    Source: appendix F.4, Table 11 (stopping *during* distillation).
    """

    smooths_labels = False
    after_fraction: float = option(
        0.8, number_in(0, 1), "for after: fraction of the epochs with a teacher", flag="tllm_after"
    )

    def __init__(self, num_classes: int, *, total_epochs: int, **options: Any) -> None:
        super().__init__(num_classes, **options)
        total_epochs = whole_number("total_epochs", total_epochs, 1)
        self.last_taught_epoch = math.floor(self.after_fraction * total_epochs + 0.5)
        self._flag(self.due(0), epoch=0)

    def due(self, epoch: int) -> Tensor:
        return torch.full((self.num_classes,), epoch >= self.last_taught_epoch)

    def reason(self) -> str:
        return f"teaching ends after epoch {self.last_taught_epoch}"


@DETECTORS.register("fixed")
class FixedDetector(_Scheduled):
    """Flag a given list of classes from the first epoch on: for ablations and for flags of an earlier run.

    Args:
        num_classes: C.
        classes: Class indices: a list, an array or a tensor of integers.

    Raises:
        ConfigError: The values are not class indices below C; bool flags are rejected.
    """

    def __init__(self, num_classes: int, *, classes: Sequence[int] | Tensor | Any) -> None:
        super().__init__(num_classes)
        flags = torch.zeros(num_classes, dtype=torch.bool)
        flags[as_indices("classes", classes, num_classes)] = True
        self._flag(flags, epoch=0)

    def reason(self) -> str:
        return "the class is not in the fixed list"
