"""CID: match sample and class representations of the teacher, and predict with the context of the classes."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tllm_plugin.core.options import at_least, count_in, more_than, option
from tllm_plugin.methods.base import METHODS, Distiller, Losses
from tllm_plugin.methods.context import ContextStudent
from tllm_plugin.methods.kd_loss import kd_loss

# Below any length that a feature vector has; keeps a dead one from dividing by zero.
_SMALLEST_LENGTH = 1e-8


def sample_loss(mapped: Tensor, teacher_features: Tensor) -> Tensor:
    """Return the batch mean of `|mapped - f_t|^2 / |f_t|^2`, 0-dim.

    Args:
        mapped: (n, D), the student's features brought to the teacher's dimension.
        teacher_features: (n, D).
    """
    mapped, teacher_features = _precise(mapped), _precise(teacher_features)
    length = teacher_features.square().sum(1).clamp(min=_SMALLEST_LENGTH)
    return ((mapped - teacher_features).square().sum(1) / length).mean()


def class_loss(student_features: Tensor, teacher_features: Tensor, target: Tensor) -> Tensor:
    """Return how differently both networks see the rows of one class, 0-dim.

    The mean, over the classes with at least two rows in the batch, of the mean squared difference of the two matrices
    of cosines between the class's rows (diagonal included). Without such a class: a differentiable zero.

    Args:
        student_features: (n, D_s).
        teacher_features: (n, D_t).
        target: (n,) int64.
    """
    difference = (_cosines(student_features) - _cosines(teacher_features)).square()
    together = target.unsqueeze(1) == target
    rows_of_class = together.sum(1).to(difference.dtype)
    counts = rows_of_class >= 2
    # Each row carries its share of its class, so that rows add up to classes without a loop over them.
    per_row = (difference * together).sum(1) / rows_of_class.square()
    classes = (counts / rows_of_class).sum()
    return (per_row * counts).sum() / classes.clamp(min=1.0)


def _cosines(features: Tensor) -> Tensor:
    # Autocast would round the products to bf16, where cosines near 1 all look alike.
    with torch.autocast(features.device.type, enabled=False):
        directions = F.normalize(_precise(features), dim=1)
        return directions @ directions.T


def _precise(features: Tensor) -> Tensor:
    return features.to(torch.promote_types(features.dtype, torch.float32))


@METHODS.register("CID")
class CID(Distiller):
    """Comprehensive, interventional distillation.

    `L = kd_weight * (CE(z_new, y) + T^2 KL(z_t, z_s)) + sample_weight * L_sample + class_weight * L_class`, with
    `z_new` from `ContextStudent`, `L_sample` of the pooled features through a linear map `r`, and `L_class` of the
    pooled features as they are. The context of a class is the mean of its rows' student features, weighted by the
    teacher's softened probability of the true class, over the epoch before; in the first `warmup_epochs` there is
    none, and so no cross-entropy (`loss_ce` is a differentiable zero then).

    Under TLLM: `L_class` is about relations between rows, so CID is batch-coupled, and relations are those among
    distillable rows. A flagged class keeps the context that it had when it was flagged: its rows have no teacher any
    more, hence no weight, and nothing is added. It is not removed, because the other rows' predictions are made with
    it (their softmax reaches every class), and it is not refreshed with weights of one's own choosing, because `g`
    needs of a context vector only that it is the same in training and at inference, which a fixed one is. The
    undistillable rows' label-smoothed cross-entropy trains `z_new`, which is what predicts; before there is a context
    it trains the network's own head, which predicts until then.

    Args:
        student: A plain network; `self.student` is a `ContextStudent` around it.
        teacher: See `Distiller`.
        num_classes: C.
        student_dim: Entries of the student's `pooled_feat`.
        teacher_dim: Entries of the teacher's `pooled_feat`.
        options: Values of the options below. The temperature is that of the divergence, of the context's weights and
            of its look-up; the weights are the paper's a, b and c.

    Raises:
        ConfigError: An option is out of range.

    Source: Deng and Zhang, "Comprehensive Knowledge Distillation with Causal Intervention" (NeurIPS 2021), section 3.
        There `r` has no weight decay and the optimizer is Nesterov's.
    """

    temperature: float = option(4.0, more_than(0), "temperature of the softened predictions", flag="kd_T")
    kd_weight: float = option(1.0, at_least(0), "weight of cross-entropy and KL divergence", "LOSS.KD_WEIGHT", "cid_a")
    sample_weight: float = option(
        10.0, at_least(0), "weight of the sample representation loss", "LOSS.SAMPLE_WEIGHT", "cid_b"
    )
    class_weight: float = option(
        1.0, at_least(0), "weight of the class representation loss", "LOSS.CLASS_WEIGHT", "cid_c"
    )
    # At least one: the first epoch has no context before it.
    warmup_epochs: int = option(20, count_in(1), "number of first epochs without class context")
    student: ContextStudent

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        *,
        num_classes: int,
        student_dim: int,
        teacher_dim: int,
        **options: Any,
    ) -> None:
        super().__init__(student, teacher, **options)
        self.student = ContextStudent(
            student, feature_dim=student_dim, num_classes=num_classes, temperature=self.temperature
        )
        self.regressor = nn.Linear(student_dim, teacher_dim)

    def get_learnable_parameters(self) -> list[nn.Parameter]:
        return super().get_learnable_parameters() + list(self.regressor.parameters())

    def get_undecayed_parameters(self) -> list[nn.Parameter]:
        return list(self.regressor.parameters())

    def begin_epoch(self, epoch: int) -> None:
        """Make the context of an epoch, if it is a new one; every step does, a loop may do it before the first one."""
        self.student.begin_epoch(epoch, warmup_epochs=self.warmup_epochs)

    def losses(self, image: Tensor, target: Tensor, **batch: Any) -> tuple[Tensor, Losses]:
        if "epoch" not in batch:
            raise TypeError("Expected the loop to pass `epoch` to CID, whose context changes with it, but got none")
        self.begin_epoch(batch["epoch"])
        logits, features = self.student(image)
        with torch.no_grad():
            teacher_logits, teacher_features = self.teacher(image)
            softened = (_precise(teacher_logits) / self.temperature).softmax(1)
            weight = softened.gather(1, target.unsqueeze(1)).squeeze(1)
        pooled, teacher_pooled = features["pooled_feat"], teacher_features["pooled_feat"]
        self.student.collect(pooled, target, weight)
        divergence = kd_loss(features["own_logits"], teacher_logits, self.temperature)
        by_sample = sample_loss(self.regressor(pooled), teacher_pooled)
        by_class = class_loss(pooled, teacher_pooled, target)
        # `*` and not a branch in Python, as in the student; the zero reaches every parameter that predicts.
        cross_entropy = F.cross_entropy(logits, target) * self.student.has_context.to(logits.dtype)
        return logits, {
            "loss_ce": self.kd_weight * cross_entropy,
            "loss_kd": self.kd_weight * divergence + self.sample_weight * by_sample + self.class_weight * by_class,
        }
