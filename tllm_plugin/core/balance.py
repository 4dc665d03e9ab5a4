"""Measure the weight of an inner distiller's losses, so that rows without a teacher can be given the same weight."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_TINY = 1e-12
#: Steps between measurements. The weight drifts slowly, and for tiny networks each measurement costs noticeable time.
EVERY = 4


class Balance:
    """Measure the weight of losses relative to label-smoothed cross-entropy by their gradients at the logits.

    The weight is the ratio of two gradient norms, each summed over the distillable rows: the norms of the inner losses
    and of the cross-entropy on the same rows. For KD it depends on the temperature, the loss weights, the number of
    classes and the distance between student and teacher. Rows trained with cross-entropy times this weight pull on
    the logits as strongly as rows trained with the teacher, so predictions are biased neither towards nor away from
    their classes.

    Args:
        label_smoothing: Label smoothing of the cross-entropy.
    """

    def __init__(self, label_smoothing: float) -> None:
        self.label_smoothing = label_smoothing
        #: 0-dim, the latest measurement.
        self.latest = torch.ones(())
        self.steps = 0
        #: Sums a tensor over all ranks; if set, every rank must call `update` or `skip` in every step.
        self.add_up: Callable[[Tensor], Tensor] | None = None

    def update(self, losses: Mapping[str, Tensor], logits: Tensor, rows: Tensor, target: Tensor) -> Tensor:
        """Return the weight for this step, 0-dim; 1 if the losses do not depend on the logits.

        Args:
            losses: Means over `rows`, which a trainer sums (after averaging those that are not 0-dim). Their autograd
                graph is retained.
            logits: (n, C), logits of the whole batch from which the losses were computed.
            rows: (n_d,) int64, at least one.
            target: (n,) int64.
        """
        if not self._is_due():
            return self.latest.to(logits.device)
        total = torch.stack([_precise(loss).mean() for loss in losses.values()]).sum()
        (taught,) = torch.autograd.grad(total, logits, retain_graph=True, allow_unused=True)
        goal = smoothed_targets(target[rows], logits.shape[1], self.label_smoothing)
        untaught = (_precise(logits.detach()[rows]).softmax(1) - goal).norm(dim=1).sum()
        # The gradient is that of a mean over `rows`; scaled here to the gradient of a sum.
        length = untaught.new_zeros(()) if taught is None else _precise(taught[rows]).norm(dim=1).sum() * rows.numel()
        return self._settle(torch.stack([torch.where(length > 0, length, untaught), untaught]))

    def skip(self, logits: Tensor) -> Tensor:
        """Return the weight for a step without rows to measure, 0-dim: from the other ranks, or the latest one."""
        if not self._is_due():
            return self.latest.to(logits.device)
        return self._settle(_precise(logits.new_zeros(2)))

    def _is_due(self) -> bool:
        self.steps += 1
        return self.steps % EVERY == 1

    def _settle(self, lengths: Tensor) -> Tensor:
        if self.add_up is not None:
            lengths = self.add_up(lengths)
        latest = self.latest.to(lengths.device)
        self.latest = torch.where(lengths[1] > 0, lengths[0] / lengths[1].clamp_min(_TINY), latest)
        return self.latest

    def state_dict(self) -> dict[str, Any]:
        return {"latest": self.latest.cpu(), "steps": self.steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.latest, self.steps = state["latest"], state["steps"]


def _precise(values: Tensor) -> Tensor:
    """Return `values` in at least single precision."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def smoothed_targets(target: Tensor, num_classes: int, label_smoothing: float) -> Tensor:
    """Return the target distributions of label-smoothed cross-entropy, (n, C), for (n,) int64 targets."""
    return F.one_hot(target, num_classes) * (1 - label_smoothing) + label_smoothing / num_classes
