"""SRRL: the student's features, put through the teacher's own classifier, must give the teacher's predictions."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tllm_plugin.methods.base import Distiller, Losses


class SRRL(Distiller):
    """Softmax regression representation learning.

    With `r` a 1x1 convolution, BatchNorm and ReLU on the student's last map, and `h_t` the teacher's frozen head:
    `L = CE(z_s, y) + feature_weight * MSE(pool(r(F_s)), f_t) + regression_weight * MSE(h_t(pool(r(F_s))), z_t)`, where
    MSE is the mean over rows and entries. All losses are means over rows: under TLLM they are separable.

    Args:
        student: See `Distiller`.
        teacher: See `Distiller`.
        student_channels: Channels of the student's last map, `feats[-1]`.
        teacher_dim: Entries of the teacher's `pooled_feat`.
        teacher_head: Name of the teacher's linear head, as in `teacher.get_submodule(...)`: fc, linear, classifier,
            classifier.0, ... A name and not the module, which a replica of this distiller must look up in its own
            teacher.
        ce_weight: Weight of the cross-entropy with the labels.
        feature_weight: Weight of the feature matching.
        regression_weight: w, the weight of the softmax regression.

    Source: Yang et al., "Knowledge distillation via softmax regression representation learning" (ICLR 2021),
        equations 4 and 6.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        *,
        student_channels: int,
        teacher_dim: int,
        teacher_head: str,
        ce_weight: float = 1.0,
        feature_weight: float = 1.0,
        regression_weight: float = 1.0,
    ) -> None:
        super().__init__(student, teacher)
        self.teacher_head = teacher_head
        self.ce_weight = ce_weight
        self.feature_weight = feature_weight
        self.regression_weight = regression_weight
        convolution = nn.Conv2d(student_channels, teacher_dim, kernel_size=1, bias=False)
        # N(0, sqrt(2 / out_channels)), as in the authors' code.
        nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
        self.connector = nn.Sequential(convolution, nn.BatchNorm2d(teacher_dim), nn.ReLU())

    def get_learnable_parameters(self) -> list[nn.Parameter]:
        return super().get_learnable_parameters() + list(self.connector.parameters())

    def losses(self, image: Tensor, target: Tensor, **batch: Any) -> tuple[Tensor, Losses]:
        logits, features = self.student(image)
        with torch.no_grad():
            teacher_logits, teacher_features = self.teacher(image)
        connected = F.adaptive_avg_pool2d(self.connector(features["feats"][-1]), 1).flatten(1)
        regressed = self.teacher.get_submodule(self.teacher_head)(connected)
        matching = F.mse_loss(connected, teacher_features["pooled_feat"])
        regression = F.mse_loss(regressed, teacher_logits)
        return logits, {
            "loss_ce": self.ce_weight * F.cross_entropy(logits, target),
            "loss_kd": self.feature_weight * matching + self.regression_weight * regression,
        }
