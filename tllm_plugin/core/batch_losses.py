"""Losses of a batch in which some rows have no teacher."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch.nn.functional as F
from torch import Tensor, nn

from tllm_plugin.core.contract import Losses
from tllm_plugin.core.known import ROWS, Known

# Parts of a loss's name, such as `loss_ce` or `cls_loss`, that say that it compares with the labels.
_CROSS_ENTROPY = frozenset({"ce", "cls", "task", "hard", "label"})


def cross_entropy_per_row(logits: Tensor, target: Tensor, label_smoothing: float) -> Tensor:
    """Return the cross-entropy of every row, (n,), for logits (n, C) and class indices (n,)."""
    return F.cross_entropy(logits, target, label_smoothing=label_smoothing, reduction="none")


def of_whole_batch(losses: Losses, rows: Tensor, batch_rows: int, known: Known) -> Losses:
    """Return losses of some rows as losses of the batch to which the other rows contribute nothing.

    Args:
        losses: Means over the rows, or one value per row.
        rows: (n_d,) int64, positions of the rows in the batch.
        batch_rows: n.
        known: Tells which losses have one value per row.
    """
    share = rows.numel() / batch_rows
    return {
        name: loss.new_zeros((batch_rows, *loss.shape[1:])).index_copy(0, rows, loss[: len(rows)])
        if known.is_per_row(name)
        else loss * share
        for name, loss in losses.items()
    }


def zero_losses(logits: Tensor, shapes: Mapping[str, tuple[int, ...]], parameters: Iterable[nn.Parameter]) -> Losses:
    """Return zeros under the names of a distiller's losses, each touching every parameter.

    Some trainers call `backward` on single losses, and DDP waits for the gradient of every parameter.

    Args:
        logits: (n, C) of the batch.
        shapes: Name -> shape of each loss, with `ROWS` in place of n.
        parameters: What the distiller trains.
    """
    zero = logits.new_zeros(())
    for parameter in parameters:
        zero = zero + parameter.sum() * 0
    sizes = {name: [len(logits) if size == ROWS else size for size in shape] for name, shape in shapes.items()}
    return {name: zero.reshape((1,) * len(size)).expand(size) for name, size in sizes.items()}


def cross_entropy_name(losses: Mapping[str, Tensor]) -> str:
    """Return the loss to add a cross-entropy to; trainers may read losses by name, so there is no new one."""
    by_name = (name for name in losses if _CROSS_ENTROPY & set(name.lower().split("_")))
    return next((name for name in ("loss_ce", "ce") if name in losses), next(by_name, next(iter(losses))))


def add_to(losses: Losses, name: str, term: Tensor) -> Losses:
    """Return losses with `term` added to one of them, in the shape of that loss."""
    return {**losses, name: losses[name] + term.reshape(losses[name].shape if term.dim() else ())}
