"""KD: the student matches the teacher's softened predictions."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from yacs.config import CfgNode

from tllm_plugin.hosts.embedded.distillers.base import distiller_dict
from tllm_plugin.methods.base import Distiller, Losses
from tllm_plugin.methods.kd_loss import kd_loss


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
