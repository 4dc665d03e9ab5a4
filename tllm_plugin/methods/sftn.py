"""SFTN: train a student-friendly teacher, with branches of the future student attached to its stages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tllm_plugin.core.errors import ConfigError
from tllm_plugin.core.options import WithOptions, at_least, more_than, option
from tllm_plugin.methods.base import METHODS, Losses
from tllm_plugin.methods.kd_loss import kd_loss


class Branch(nn.Module):
    """The rest of a student, behind one stage of the teacher.

    A 3x3 convolution, BatchNorm and ReLU bring the teacher's map to the shape of the student's; the student's
    remaining stages and its head follow.

    Args:
        stage: Place in the teacher's `feats`; negative ones count from the last.
        tail: (n, student_channels, h, w) -> logits (n, C).
        teacher_channels: Of that map.
        student_channels: Of the student's map in that place.
        teacher_size: Height of the teacher's map.
        student_size: Height of the student's map.

    Raises:
        ConfigError: Neither height divides the other.
    """

    def __init__(
        self,
        stage: int,
        tail: nn.Module,
        *,
        teacher_channels: int,
        student_channels: int,
        teacher_size: int,
        student_size: int,
    ) -> None:
        super().__init__()
        if teacher_size % student_size and student_size % teacher_size:
            raise ConfigError(
                f"Expected the sizes of teacher's and student's maps to divide each other for SFTN, but got "
                f"{teacher_size} and {student_size} pixels in stage {stage}"
            )
        self.stage = stage
        stride = max(1, teacher_size // student_size)
        enlarge = max(1, student_size // teacher_size)
        self.transform = nn.Sequential(
            nn.Upsample(scale_factor=enlarge) if enlarge > 1 else nn.Identity(),
            nn.Conv2d(teacher_channels, student_channels, kernel_size=3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(student_channels),
            nn.ReLU(),
        )
        self.tail = tail

    def forward(self, feats: Sequence[Tensor]) -> Tensor:
        """Return logits (n, C) from the teacher's `feats`."""
        logits: Tensor = self.tail(self.transform(feats[self.stage]))
        return logits


@METHODS.register("SFTN")
class SFTN(WithOptions, nn.Module):
    """Training stage of the teacher; the result is an ordinary network of the teacher's architecture.

    `L_T = ce_weight * CE(z_t, y) + kl_weight * mean_i T^2 KL(z_t, b_i) + branch_ce_weight * mean_i CE(b_i, y)`, with
    `b_i` the logits of branch `i`. Nothing is detached: that the branches' losses reach the teacher's stages, and its
    logits, is the method.

    It has no teacher of its own, so to a host it is a vanilla distiller: the network in training is called `student`,
    because that is what hosts train, evaluate and save under that name.

    Args:
        network: The teacher: `image -> (logits, features)`.
        branches: At least one; not part of what is saved as the network.
        options: Values of the options below; the weights are the paper's l_T, l_KL and l_CE.

    Raises:
        ConfigError: There is no branch, or an option is out of range.

    Source: Park et al., "Learning Student-Friendly Teacher Networks for Knowledge Distillation" (NeurIPS 2021),
        equations 2 to 5; weights (1, 3, 1) and T = 1 for CIFAR-100.
    """

    #: Name -> shape of every loss: without a teacher, the wrapper would expect a `ce` alone.
    loss_shapes: dict[str, tuple[int, ...]] = {"loss_ce": (), "loss_kd": ()}

    temperature: float = option(1.0, more_than(0), "temperature of the KL divergence", flag="sftn_T")
    ce_weight: float = option(1.0, at_least(0), "weight of the cross-entropy of the teacher", "LOSS.CE_WEIGHT")
    kl_weight: float = option(
        3.0, at_least(0), "weight of the KL divergence of the branches from the teacher", "LOSS.KL_WEIGHT"
    )
    branch_ce_weight: float = option(
        1.0, at_least(0), "weight of the cross-entropy of the branches", "LOSS.BRANCH_CE_WEIGHT"
    )

    def __init__(self, network: nn.Module, branches: Sequence[Branch], **options: Any) -> None:
        super().__init__()
        self.set_options(options)
        if not branches:
            raise ConfigError("Expected `branches` to be at least one, but got none")
        self.student = network
        self.branches = nn.ModuleList(branches)

    def get_learnable_parameters(self) -> list[nn.Parameter]:
        """Return the network's and the branches' parameters."""
        return [*self.student.parameters(), *self.branches.parameters()]

    def get_extra_parameters(self) -> int:
        """Return the number of the branches' parameters."""
        return sum(parameter.numel() for parameter in self.branches.parameters())

    def forward(self, **batch: Any) -> Any:
        return self.losses(**batch) if self.training else self.student(batch["image"])[0]

    def losses(self, image: Tensor, target: Tensor, **batch: Any) -> tuple[Tensor, Losses]:
        """Return the network's logits (n, C) and 0-dim losses."""
        logits, features = self.student(image)
        branch_logits = [branch(features["feats"]) for branch in self.branches]
        divergence = torch.stack([kd_loss(branch, logits, self.temperature) for branch in branch_logits]).mean()
        branch_ce = torch.stack([F.cross_entropy(branch, target) for branch in branch_logits]).mean()
        return logits, {
            "loss_ce": self.ce_weight * F.cross_entropy(logits, target) + self.branch_ce_weight * branch_ce,
            "loss_kd": self.kl_weight * divergence,
        }
