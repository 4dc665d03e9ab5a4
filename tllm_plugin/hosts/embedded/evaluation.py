"""Test results per class, and what a run cost in memory."""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from yacs.config import CfgNode

from tllm_plugin.data import DataBundle
from tllm_plugin.data.loaders import EvalLoader
from tllm_plugin.hosts import processes
from tllm_plugin.hosts.at_chance import tell_if_at_chance
from tllm_plugin.runs.metrics_file import MetricsRecord
from tllm_plugin.runs.predictions_file import PredictionsRecord


@dataclass(frozen=True)
class ClassResults:
    """How many test images of each class there are and are recognised.

    Args:
        class_correct: (C,) int64 on the CPU.
        class_total: (C,) int64 on the CPU.
        labels: (n,) int64 on the CPU, in the order of the test data.
        predictions: (n,) int64 on the CPU.
    """

    class_correct: Tensor
    class_total: Tensor
    labels: Tensor
    predictions: Tensor

    @property
    def accuracy(self) -> float:
        """Share of all test images that are recognised."""
        return float(self.class_correct.sum() / self.class_total.sum())

    def added_to(self, metrics: MetricsRecord) -> MetricsRecord:
        """Return the metrics of a run with these results."""
        correct, total = (tuple(counts.tolist()) for counts in (self.class_correct, self.class_total))
        return replace(metrics, test_accuracy=self.accuracy, class_correct=correct, class_total=total)

    def tell_if_at_chance(self, name: str) -> None:
        """Warn if the network `name` cannot be told from chance."""
        tell_if_at_chance("trained", name, self.labels, self.predictions, "test images")

    def answers(self) -> PredictionsRecord:
        """Return what belongs into `predictions.npz`."""
        return PredictionsRecord(self.labels.numpy(), self.predictions.numpy(), len(self.class_total))


def batches_of_test_set(
    bundle: DataBundle, cfg: CfgNode, device: torch.device, rows: Tensor | None = None
) -> EvalLoader:
    """Return this process's batches `(image, label)` of the test data, in order.

    Args:
        bundle: The data.
        cfg: Says how large a batch is.
        device: Where to.
        rows: (K,) int64 positions in the test data; all of them for None.
    """
    size = cfg.DATASET.TEST.BATCH_SIZE
    return bundle.eval_loader(rows, batch_size=size, device=device, split="test", shard=processes.shard())


@torch.no_grad()
def score_test_set(
    distiller: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    autocast: Callable[[], AbstractContextManager[Any]],
) -> ClassResults:
    """Run the student over the test set; the distiller is left in evaluation mode.

    Of several processes each runs it over the batches that its loader yields; all get the results on all images.

    Args:
        distiller: `distiller(image=...)` returns logits (n, C) in evaluation mode.
        batches: Yields `(image, label)`.
        autocast: Makes the context of a forward pass.
    """
    distiller.eval()
    labels, predictions, num_classes = [], [], 0
    for image, label in batches:
        with autocast():
            logits = distiller(image=image)
        num_classes = logits.shape[1]
        labels.append(label)
        predictions.append(logits.argmax(1))
    gather = processes.gatherer(batches) or (lambda values: values)
    num_classes = processes.largest(num_classes)
    all_labels, all_predictions = (
        # There may be more processes than batches.
        gather(torch.cat(parts).cpu() if parts else torch.empty(0, dtype=torch.int64))
        for parts in (labels, predictions)
    )
    right = all_labels == all_predictions
    return ClassResults(
        class_correct=torch.bincount(all_labels[right], minlength=num_classes),
        class_total=torch.bincount(all_labels, minlength=num_classes),
        labels=all_labels,
        predictions=all_predictions,
    )


def peak_memory_bytes(device: torch.device) -> int:
    """Return the highest memory use so far: of the CUDA device's allocator, or else of this whole process."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak) if sys.platform == "darwin" else int(peak) * 1024
