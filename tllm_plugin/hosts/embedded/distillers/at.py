"""AT (attention transfer): match the attention maps of student and teacher."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tllm_plugin.core.options import at_least, option
from tllm_plugin.hosts.embedded.distillers.base import to_smaller_size
from tllm_plugin.methods.base import Distiller, Losses


def attention_map(features: Tensor, power: float) -> Tensor:
    """Return attention maps (n, H * W): channel mean of `|features|^power`, normalised to length 1 per sample.

    Args:
        features: (n, channels, H, W) feature maps.
        power: Exponent, at least 1.
    """
    return F.normalize(features.abs().pow(power).mean(1).flatten(1))


def attention_loss(student_features: Sequence[Tensor], teacher_features: Sequence[Tensor], power: float) -> Tensor:
    """Return the sum over stages of the mean squared difference of attention maps, 0-dim.

    Stages are paired in order; surplus stages of the deeper network are ignored, as in mdistiller and RepDistiller.

    Args:
        student_features: Feature maps of each stage, (n, channels, H, W).
        teacher_features: The same for the teacher; the larger map of a pair is average-pooled to the size of the
            smaller.
        power: Exponent of the attention maps.

    Source: Zagoruyko and Komodakis, "Paying More Attention to Attention" (ICLR 2017), equation 2.
    """
    total = student_features[0].new_zeros(())
    for student, teacher in zip(student_features, teacher_features, strict=False):
        student, teacher = to_smaller_size(student, teacher)
        difference = attention_map(student, power) - attention_map(teacher, power)
        total = total + difference.pow(2).mean()
    return total


class AT(Distiller):
    """Attention transfer at every stage after the stem.

    Args:
        student: See `Distiller`.
        teacher: See `Distiller`.
        options: Values of the options below.
    """

    power: float = option(2.0, at_least(1), "power of the attention maps", "P")
    ce_weight: float = option(1.0, at_least(0), "weight of the cross-entropy with the labels", "LOSS.CE_WEIGHT")
    feature_weight: float = option(1000.0, at_least(0), "weight of the attention loss", "LOSS.FEAT_WEIGHT")

    def losses(self, image: Tensor, target: Tensor, **batch: Any) -> tuple[Tensor, Losses]:
        logits, features = self.student(image)
        with torch.no_grad():
            _, teacher_features = self.teacher(image)
        transfer = attention_loss(features["feats"][1:], teacher_features["feats"][1:], self.power)
        return logits, {
            "loss_ce": self.ce_weight * F.cross_entropy(logits, target),
            "loss_kd": self.feature_weight * transfer,
        }
