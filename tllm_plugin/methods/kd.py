"""KD (knowledge distillation): match the teacher's softened predictions, for any two networks that return logits."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tllm_plugin.core.options import at_least, more_than, option
from tllm_plugin.core.outputs import logits_of
from tllm_plugin.methods.base import Distiller, Losses
from tllm_plugin.methods.kd_loss import kd_loss


class KD(Distiller):
    """Knowledge distillation with softened predictions.

    Args:
        student: `image -> logits` (n, C), a tuple that begins with them, or an object with an attribute `logits`.
        teacher: The same; kept in evaluation mode and without gradients.
        options: Values of the options below.

    Raises:
        ConfigError: An option is unknown or out of range.

    Source: Hinton et al., "Distilling the Knowledge in a Neural Network" (2015).
    """

    temperature: float = option(4.0, more_than(0), "temperature of the softened predictions")
    ce_weight: float = option(0.1, at_least(0), "weight of the cross-entropy with the labels", "LOSS.CE_WEIGHT")
    kd_weight: float = option(0.9, at_least(0), "weight of the KL divergence from the teacher", "LOSS.KD_WEIGHT")

    def losses(self, image: Tensor, target: Tensor, **batch: Any) -> tuple[Tensor, Losses]:
        student_logits = logits_of(self.student(image))
        with torch.no_grad():
            teacher_logits = logits_of(self.teacher(image))
        return student_logits, {
            "loss_ce": self.ce_weight * F.cross_entropy(student_logits, target),
            "loss_kd": self.kd_weight * kd_loss(student_logits, teacher_logits, self.temperature),
        }
