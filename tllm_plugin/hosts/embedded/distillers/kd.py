"""KD (knowledge distillation): match the softened predictions of the teacher."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tllm_plugin.core.options import at_least, more_than, option
from tllm_plugin.methods.base import Distiller, Losses
from tllm_plugin.methods.kd_loss import kd_loss


class KD(Distiller):
    """Knowledge distillation with softened predictions.

    Args:
        student: See `Distiller`.
        teacher: See `Distiller`.
        options: Values of the options below.
    """

    temperature: float = option(4.0, more_than(0), "temperature of the softened predictions")
    ce_weight: float = option(0.1, at_least(0), "weight of the cross-entropy with the labels", "LOSS.CE_WEIGHT")
    kd_weight: float = option(0.9, at_least(0), "weight of the KL divergence from the teacher", "LOSS.KD_WEIGHT")

    def losses(self, image: Tensor, target: Tensor, **batch: Any) -> tuple[Tensor, Losses]:
        student_logits, _ = self.student(image)
        with torch.no_grad():
            teacher_logits, _ = self.teacher(image)
        return student_logits, {
            "loss_ce": self.ce_weight * F.cross_entropy(student_logits, target),
            "loss_kd": self.kd_weight * kd_loss(student_logits, teacher_logits, self.temperature),
        }
