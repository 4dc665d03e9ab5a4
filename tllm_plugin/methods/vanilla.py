"""The student alone, with cross-entropy: the reference that delta acc is measured against."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import nn

from tllm_plugin.core.outputs import logits_of


class Vanilla(nn.Module):
    """Train a student without a teacher.

    Args:
        student: `image -> logits` (n, C), a tuple that begins with them, or an object with an attribute `logits`.
    """

    def __init__(self, student: nn.Module) -> None:
        super().__init__()
        self.student = student

    def get_learnable_parameters(self) -> list[nn.Parameter]:
        """Return the student's parameters."""
        return list(self.student.parameters())

    def forward(self, **batch: Any) -> Any:
        logits = logits_of(self.student(batch["image"]))
        return (logits, {"ce": F.cross_entropy(logits, batch["target"])}) if self.training else logits
