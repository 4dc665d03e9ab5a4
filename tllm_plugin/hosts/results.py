"""Test results of a run whose host keeps none that can be read back: accuracy per class, and every answer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from tllm_plugin.hosts.at_chance import tell_if_at_chance
from tllm_plugin.runs.metrics_file import MetricsRecord
from tllm_plugin.runs.predictions_file import PredictionsRecord
from tllm_plugin.runs.run_folder import RunFolder


@torch.no_grad()
def write_test_results(
    run: RunFolder,
    predict: Callable[[Tensor], Tensor],
    batches: Iterable[Sequence[Any]],
    *,
    num_classes: int,
    epochs_done: int,
    seconds_per_epoch: Sequence[float] = (),
) -> None:
    """Run the student over the test data once and write `metrics.json` and `predictions.npz`; warn if it is at chance.

    Args:
        run: Where to.
        predict: Image batch -> logits (n, C); puts the student into evaluation mode and the images onto its device.
        batches: The host's test loader: `(image, label, ...)`, in the same order for every run.
        num_classes: C.
        epochs_done: Epochs trained.
        seconds_per_epoch: What they cost, where it is known.
    """
    labels, answers = [], []
    for image, label, *_ in batches:
        answers.append(predict(image).argmax(1).cpu())
        labels.append(label.cpu())
    label, answer = torch.cat(labels), torch.cat(answers)
    total = torch.bincount(label, minlength=num_classes)
    correct = torch.bincount(label[label == answer], minlength=num_classes)
    tell_if_at_chance("trained", str(run.log_folder), label, answer, "test images")
    run.write_predictions(PredictionsRecord(label.numpy(), answer.numpy(), num_classes))
    run.write_metrics(
        MetricsRecord(
            test_accuracy=float(correct.sum() / total.sum()),
            class_correct=tuple(correct.tolist()),
            class_total=tuple(total.tolist()),
            seconds_per_epoch=tuple(seconds_per_epoch),
            peak_memory_bytes=None,
            epochs_done=epochs_done,
            finished=True,
        )
    )
