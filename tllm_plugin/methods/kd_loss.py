"""The divergence between softened predictions, which most methods use."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


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
