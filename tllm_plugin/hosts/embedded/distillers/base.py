"""The contract of an inner distiller, as in mdistiller, and the vanilla one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from tllm_plugin.core.registry import Registry

Losses = dict[str, Tensor]


class Distiller(nn.Module):
    """Student, frozen teacher, and losses between them.

    A subclass implements `losses`. In training `forward(image=, target=, ...)` returns `(logits, losses)`, in
    evaluation `forward(image=)` returns logits.

    Args:
        student: `image -> (logits, features)`; features as `tllm_plugin.models` says.
        teacher: The same; kept in evaluation mode and without gradients.
    """

    def __init__(self, student: nn.Module, teacher: nn.Module) -> None:
        super().__init__()
        self.student = student
        self.teacher = teacher.requires_grad_(False)

    def train(self, mode: bool = True) -> Distiller:
        super().train(mode)
        self.teacher.eval()
        return self

    def get_learnable_parameters(self) -> list[nn.Parameter]:
        """Return what the optimizer trains; a method with modules of its own adds their parameters."""
        return list(self.student.parameters())

    def get_extra_parameters(self) -> int:
        """Return the number of learnable parameters beyond the student's."""
        extra = sum(parameter.numel() for parameter in self.get_learnable_parameters())
        return extra - sum(parameter.numel() for parameter in self.student.parameters())

    def losses(self, image: Tensor, target: Tensor, **batch: Any) -> tuple[Tensor, Losses]:
        """Return logits (n, C) and 0-dim losses; `batch` holds what else the loop passes (`epoch`, `index`)."""
        raise NotImplementedError

    def forward(self, **batch: Any) -> Any:
        return self.losses(**batch) if self.training else self.student(batch["image"])[0]


class Vanilla(nn.Module):
    """The student alone, with cross-entropy: the reference that delta acc is measured against.

    Args:
        student: `image -> (logits, features)`.
    """

    def __init__(self, student: nn.Module) -> None:
        super().__init__()
        self.student = student

    def get_learnable_parameters(self) -> list[nn.Parameter]:
        """Return the student's parameters."""
        return list(self.student.parameters())

    def forward(self, **batch: Any) -> Any:
        logits = self.student(batch["image"])[0]
        return (logits, {"ce": F.cross_entropy(logits, batch["target"])}) if self.training else logits


#: Name -> (student, teacher, cfg) -> distiller, except for NONE, which takes the student alone.
distiller_dict: Registry[Callable[..., nn.Module]] = Registry("distiller")
distiller_dict.register("NONE")(Vanilla)
