"""SRRL: train the student's features to give the teacher's predictions through the teacher's own classifier."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tllm_plugin.core.errors import ConfigError
from tllm_plugin.core.options import at_least, option
from tllm_plugin.methods.base import METHODS, Distiller, Losses
from tllm_plugin.methods.student_map import MAPS, read_map


@METHODS.register("SRRL")
class SRRL(Distiller):
    """Softmax regression representation learning.

    With `r` a 1x1 convolution, BatchNorm and ReLU on the map that the student's head pools, and `h_t` the teacher's
    frozen head:
    `L = CE(z_s, y) + feature_weight * MSE(pool(r(F_s)), f_t) + regression_weight * MSE(h_t(pool(r(F_s))), z_t)`, where
    MSE is the mean over rows and entries. All losses are means over rows: under TLLM they are separable.

    Args:
        student: See `Distiller`.
        teacher: See `Distiller`.
        student_channels: Channels of the student's map, which are the entries of its `pooled_feat`.
        teacher_dim: Entries of the teacher's `pooled_feat`.
        teacher_head: Name of the teacher's linear head, as in `teacher.get_submodule(...)`: fc, linear, classifier,
            classifier.0, ... A name and not the module, which a replica of this distiller must look up in its own
            teacher.
        student_map: What of the student's features is the map that its head pools: `pooled_map`, an entry of that name
            or, where there is none, the pooled features as a map of one pixel; `feats`, the last of these;
            `preact_feats`, the last of these after a ReLU. For other people's networks `find_map` tells.
        options: Values of the options below. `regression_weight` is the paper's w.

    Raises:
        ConfigError: `student_map` is none of these, or an option is out of range.

    Source: Yang et al., "Knowledge distillation via softmax regression representation learning" (ICLR 2021),
        equations 4 and 6.
    """

    ce_weight: float = option(
        1.0, at_least(0), "weight of the cross-entropy with the labels", "LOSS.CE_WEIGHT", "gamma"
    )
    feature_weight: float = option(
        1.0, at_least(0), "weight of the feature matching loss", "LOSS.FEAT_WEIGHT", "srrl_feat_weight"
    )
    regression_weight: float = option(
        1.0, at_least(0), "weight of the softmax regression loss", "LOSS.REGRESSION_WEIGHT", "srrl_weight"
    )

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        *,
        student_channels: int,
        teacher_dim: int,
        teacher_head: str,
        student_map: str = "pooled_map",
        **options: Any,
    ) -> None:
        if student_map not in MAPS:
            raise ConfigError(f"Expected `student_map` to be one of {', '.join(MAPS)}, but got {student_map!r}")
        super().__init__(student, teacher, **options)
        self.student_map = student_map
        self.teacher_head = teacher_head
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
        connected = F.adaptive_avg_pool2d(self._connect(read_map(features, self.student_map)), 1).flatten(1)
        regressed = self.teacher.get_submodule(self.teacher_head)(connected)
        matching = F.mse_loss(connected, teacher_features["pooled_feat"])
        regression = F.mse_loss(regressed, teacher_logits)
        return logits, {
            "loss_ce": self.ce_weight * F.cross_entropy(logits, target),
            "loss_kd": self.feature_weight * matching + self.regression_weight * regression,
        }

    def _connect(self, maps: Tensor) -> Tensor:
        """Return the connector's output; a single value per channel is normalised by the steps before."""
        if maps[:, 0].numel() > 1:
            connected: Tensor = self.connector(maps)
            return connected
        convolution, norm, _ = self.connector
        mean, variance, weight, bias = norm.running_mean, norm.running_var, norm.weight, norm.bias
        return F.batch_norm(convolution(maps), mean, variance, weight, bias, eps=norm.eps).relu()  # type: ignore[arg-type]
