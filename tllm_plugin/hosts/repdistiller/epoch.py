"""One epoch of distillation: the host's `train_distill` around a distiller, wrapped or not."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tllm_plugin.hosts.embedded.loss_guard import LossGuard

# What a batch of the host's loaders holds, in order; the last only for crd.
_BATCH = ("image", "target", "index", "contrastive_index")


@dataclass(frozen=True)
class EpochResult:
    """What the host logs of an epoch.

    Args:
        accuracy_percent: Of the student on the training batches, in percent.
        loss: Mean total loss per row.
    """

    accuracy_percent: float
    loss: float


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
    correct = torch.zeros((), dtype=torch.int64, device=device)
    rows, start = 0, time.time()
    for step, batch in enumerate(loader):
        keywords = {name: part.to(device, non_blocking=True) for name, part in zip(_BATCH, batch, strict=False)}
        keywords["image"] = keywords["image"].float()
        logits, losses = distiller(**keywords, epoch=epoch)
        loss = total(losses)
        if guard is not None:
            means = torch.stack([loss.detach().float().mean() for loss in losses.values()])
            guard.see(epoch, losses, means, keywords.get("index"))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        count = keywords["target"].shape[0]
        loss_sum += loss.detach().to(exact).sum() * count
        correct += (logits.detach().argmax(1) == keywords["target"]).sum()
        rows += count
        if step % print_freq == 0:
            print(
                f"Epoch: [{epoch}][{step}/{len(loader)}]\tTime {(time.time() - start) / (step + 1):.3f}\t"
                f"Loss {float(loss.detach()):.4f} ({float(loss_sum) / rows:.4f})\tAcc@1 {100 * int(correct) / rows:.3f}"
            )
            sys.stdout.flush()
    if guard is not None:
        guard.flush()
    result = EpochResult(100 * int(correct) / max(rows, 1), float(loss_sum) / max(rows, 1))
    print(f" * Acc@1 {result.accuracy_percent:.3f}")
    return result


def total(losses: dict[str, Tensor]) -> Tensor:
    """Return the sum in the host's order of adding, shape () or (1,)."""
    first, *others = losses.values()
    for loss in others:
        first = first + loss
    return first
