"""Exponential moving average of the student's weights, which takes their place where the student is scored or saved."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


class StudentAverage:
    """PyTorch's `AveragedModel` of a student, buffers included.

    Args:
        student: The network that is trained; changes in place.
        decay: Share of the average that a step keeps, in (0, 1).
    """

    def __init__(self, student: nn.Module, decay: float) -> None:
        self.student = student
        self.averaged = AveragedModel(student, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)
        self.averaged.requires_grad_(False)

    def update(self) -> None:
        """Include the weights after a step; the first step's are the beginning."""
        self.averaged.update_parameters(self.student)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Exchange the student's weights with the average for the duration of the block; nested blocks do nothing."""
        if getattr(self, "_exchanged", False):
            yield
            return
        self._exchange()
        self._exchanged = True
        try:
            yield
        finally:
            self._exchange()
            self._exchanged = False

    @torch.no_grad()
    def _exchange(self) -> None:
        for own, mean in zip(_tensors(self.student), _tensors(self.averaged.module), strict=True):
            kept = own.detach().clone()
            own.copy_(mean)
            mean.copy_(kept)


def _tensors(network: nn.Module) -> list[Tensor]:
    return [*network.parameters(), *network.buffers()]
