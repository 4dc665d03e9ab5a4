"""The embedded host's registry of distillers, and the vanilla one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import nn

from tllm_plugin.core.registry import Registry


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
