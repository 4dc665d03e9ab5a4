"""Train one epoch of distillation, as the host's `train_distill` does, with a distiller that may be wrapped."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tllm_plugin.hosts.loss_guard import LossGuard
from tllm_plugin.hosts.repdistiller.loop import NoLossError

# Parts of a batch in the order of the host's loaders; `contrastive_index` for crd, the others in forks only.
_BATCH = ("image", "target", "index", "contrastive_index", *(f"part_{place}" for place in range(4, 12)))


@dataclass(frozen=True)
class EpochResult:
    """Results of an epoch that the host logs.

    Args:
        accuracy_percent: Of the student on the training batches, in percent.
        top5_percent: How often the class is among the five highest logits.
        loss: Mean total loss per row.
        data_seconds: Mean time per batch that was spent waiting for it.
    """

    accuracy_percent: float
    top5_percent: float
    loss: float
    data_seconds: float

    def shaped(self, names: Sequence[str]) -> tuple[Any, ...]:
        """Return these values in the order in which the host's own function returns them.

        Args:
            names: The expressions that it returns, as text. Up to two of them are accuracy and loss.
        """
        if len(names) <= 2:
            return self.accuracy_percent, self.loss
        found = [self._named(name.lower(), first=not place) for place, name in enumerate(names)]
        # Of names that say nothing the first is the loss, unless another one is.
        loss = math.nan if any("loss" in name.lower() for name in names) else self.loss
        unknown = found.index(None) if None in found else -1
        return tuple(
            value if value is not None else loss if place == unknown else math.nan for place, value in enumerate(found)
        )

    def _named(self, name: str, *, first: bool) -> float | None:
        if "loss" in name:
            return self.loss
        if "5" in name:
            return self.top5_percent
        if "time" in name:
            return self.data_seconds
        return self.accuracy_percent if first or "top" in name or "acc" in name else None


def train_epoch(
    epoch: int,
    loader: Any,
    distiller: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    print_freq: int = 100,
    guard: LossGuard | None = None,
) -> EpochResult:
    """Train one epoch; around the host's methods, with nothing flagged, every step is the host's, bit for bit.

    Args:
        epoch: Counted from 1.
        loader: Yields `(image, target, index)`; for crd `(image, target, index, contrastive_index)`, for a teacher
            `(image, target)`.
        distiller: With the core's contract: a `TLLMWrapper`, or what it would wrap.
        optimizer: The host's.
        print_freq: Steps between printed lines, as the host prints them. Sums stay on the device in between.
        guard: Looks for losses that are not finite.

    Raises:
        NonFiniteLossError: Found by the guard.
    """
    distiller.train()
    device = next(distiller.parameters()).device
    exact = torch.float32 if device.type == "mps" else torch.float64
    loss_sum = torch.zeros((), dtype=exact, device=device)
    correct = torch.zeros((2,), dtype=torch.int64, device=device)
    rows, waited = 0, 0.0
    start = end = time.time()
    for step, batch in enumerate(loader):
        waited += time.time() - end
        keywords = {
            name: part.to(device, non_blocking=True) if isinstance(part, Tensor) else part
            for name, part in zip(_BATCH, batch, strict=False)
        }
        keywords["image"] = keywords["image"].float()
        try:
            logits, losses = distiller(**keywords, epoch=epoch)
        except NoLossError:
            end = time.time()
            continue  # Without a step, as the host does.
        loss = total(losses)
        if guard is not None:
            parts = {"loss": losses} if isinstance(losses, Tensor) else losses
            means = torch.stack([loss.detach().float().mean() for loss in parts.values()])
            guard.see(epoch, parts, means, keywords.get("index"))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        count = keywords["target"].shape[0]
        loss_sum += loss.detach().to(exact).sum() * count
        correct += _correct(logits.detach(), keywords["target"])
        rows += count
        end = time.time()
        if step % print_freq == 0:
            accuracy = 100 * int(correct[0]) / rows
            print(
                f"Epoch: [{epoch}][{step}/{len(loader)}]\tTime {(time.time() - start) / (step + 1):.3f}\t"
                f"Loss {float(loss.detach()):.4f} ({float(loss_sum) / rows:.4f})\tAcc@1 {accuracy:.3f}"
            )
            sys.stdout.flush()
    if guard is not None:
        guard.flush()
    top1, top5 = (100 * count / max(rows, 1) for count in correct.tolist())
    result = EpochResult(top1, top5, float(loss_sum) / max(rows, 1), waited / max(len(loader), 1))
    print(f" * Acc@1 {result.accuracy_percent:.3f}")
    return result


def _correct(logits: Tensor, target: Tensor) -> Tensor:
    """Return (2,) int64: how many rows are right by the highest logit, and by the five highest."""
    best = logits.topk(min(5, logits.shape[1]), 1).indices == target[:, None]
    return torch.stack([(logits.argmax(1) == target).sum(), best.any(1).sum()])


def total(losses: dict[str, Tensor] | Tensor) -> Tensor:
    """Return the sum in the host's order of adding, shape () or (1,)."""
    if isinstance(losses, Tensor):
        return losses
    first, *others = losses.values()
    for loss in others:
        first = first + loss
    return first
