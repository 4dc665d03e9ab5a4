"""KD: the student matches the teacher's softened predictions."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from yacs.config import CfgNode

from tllm_plugin.hosts.embedded.distillers.base import Distiller, Losses, distiller_dict


def kd_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """Return the batch mean of `T^2 * KL(teacher_T || student_T)`, 0-dim.

    Args:
        student_logits: (n, C), unnormalised.
        teacher_logits: (n, C), unnormalised.
        temperature: T > 0.

    Source: Hinton et al., "Distilling the Knowledge in a Neural Network" (2015), section 2.
    """
    student = F.log_softmax(student_logits / temperature, dim=1)
    teacher = F.log_softmax(teacher_logits / temperature, dim=1)
    return F.kl_div(student, teacher, reduction="batchmean", log_target=True) * temperature**2


class KD(Distiller):
    """Knowledge distillation with softened predictions.

    Args:
        student: See `Distiller`.
        teacher: See `Distiller`.
        temperature: T > 0.
        ce_weight: Weight of the cross-entropy with the labels.
        kd_weight: Weight of `kd_loss`.
    """

    def __init__(
        self, student: nn.Module, teacher: nn.Module, *, temperature: float, ce_weight: float, kd_weight: float
    ) -> None:
        super().__init__(student, teacher)
        self.temperature = temperature
        self.ce_weight = ce_weight
        self.kd_weight = kd_weight

    def losses(self, image: Tensor, target: Tensor, **batch: Any) -> tuple[Tensor, Losses]:
        student_logits, _ = self.student(image)
        with torch.no_grad():
            teacher_logits, _ = self.teacher(image)
        return student_logits, {
            "loss_ce": self.ce_weight * F.cross_entropy(student_logits, target),
            "loss_kd": self.kd_weight * kd_loss(student_logits, teacher_logits, self.temperature),
        }


@distiller_dict.register("KD")
def build_kd(student: nn.Module, teacher: nn.Module, cfg: CfgNode) -> KD:
    """Make `KD` from the config node of that name."""
    node = cfg.KD
    return KD(
        student,
        teacher,
        temperature=node.TEMPERATURE,
        ce_weight=node.LOSS.CE_WEIGHT,
        kd_weight=node.LOSS.KD_WEIGHT,
    )
