"""What a student is scored by on the hold-out: values in [0, 1] per sample, and one scoring pass per epoch."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tllm_plugin.core.arguments import is_integer
from tllm_plugin.core.errors import ConfigError
from tllm_plugin.core.registry import Registry

MAX_RANK = 255


@dataclass(frozen=True)
class SampleScores:
    """How a network did on each of `n` hold-out samples, on the CPU; checked when it is made.

    Args:
        labels: (n,) int64.
        rank: (n,) uint8, place of the true class among the logits, 1 = predicted; 255 stands for 255 or worse.
        true_prob: (n,) float32, softmax probability of the true class.
        prediction: (n,) int64, the predicted class.
        agree: (n,) bool, prediction equals the teacher's; None where there is no teacher.
    """

    labels: Tensor
    rank: Tensor
    true_prob: Tensor
    prediction: Tensor
    agree: Tensor | None = None

    def __post_init__(self) -> None:
        for name in ("labels", "rank", "true_prob", "prediction", "agree"):
            value = getattr(self, name)
            if value is None and name == "agree":
                continue
            samples = self.labels.numel() if isinstance(self.labels, Tensor) else -1
            if not isinstance(value, Tensor) or value.shape != (samples,):
                got = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
                raise ConfigError(f"Expected `{name}` to be a tensor with one value per sample, but got {got}")

    @property
    def correct(self) -> Tensor:
        """(n,) bool."""
        return self.rank == 1

    def part(self, start: int, stop: int) -> SampleScores:
        """Return the scores of samples `start` to `stop - 1`."""
        rows = slice(start, stop)
        agree = None if self.agree is None else self.agree[rows]
        return SampleScores(self.labels[rows], self.rank[rows], self.true_prob[rows], self.prediction[rows], agree)

    def beside(self, teacher_prediction: Tensor) -> SampleScores:
        """Return these scores with `agree`, where a teacher predicted the classes (n,) int64."""
        return replace(self, agree=self.prediction == teacher_prediction)


Score = Callable[[SampleScores], Tensor]
SCORES: Registry[Score] = Registry("score")


@SCORES.register("accuracy")
def accuracy(samples: SampleScores) -> Tensor:
    """Return (n,) float32: 1 where the prediction is right."""
    return samples.correct.float()


@SCORES.register("reciprocal_rank")
def reciprocal_rank(samples: SampleScores) -> Tensor:
    """Return (n,) float32: 1 / rank of the true class; like accuracy free of confidence, but finer."""
    return samples.rank.float().reciprocal()


@SCORES.register("true_prob")
def true_prob(samples: SampleScores) -> Tensor:
    """Return (n,) float32: probability of the true class. Label smoothing and temperature lower it for all classes."""
    return samples.true_prob


@SCORES.register("agreement")
def agreement(samples: SampleScores) -> Tensor:
    """Return (n,) float32: 1 where student and teacher predict the same class.

    Raises:
        ConfigError: There is no teacher.
    """
    if samples.agree is None:
        raise ConfigError("Expected a teacher for the score `agreement`, but got a distiller without one")
    return samples.agree.float()


def true_class_rank(logits: Tensor, labels: Tensor) -> Tensor:
    """Return (n,) int64, the place of the true class, 1 = best; ties go to the lower class index.

    A true logit that is NaN ranks last, so that a diverged network never looks perfect.

    Args:
        logits: (n, C), unnormalised.
        labels: (n,) int64.

    >>> true_class_rank(torch.tensor([[0.1, 0.7, 0.2], [0.5, 0.5, 0.5]]), torch.tensor([2, 0])).tolist()
    [2, 1]
    """
    true_logit = logits.gather(1, labels[:, None])
    not_below = ~(logits < true_logit)
    later = torch.arange(logits.shape[1], device=logits.device)[None, :] > labels[:, None]
    tied_later = (logits == true_logit) & later
    # Summing into 64 bits would first make a copy of the (n, C) booleans in them.
    return (not_below.sum(1, dtype=torch.int32) - tied_later.sum(1, dtype=torch.int32)).long()


@torch.no_grad()
def score_samples(
    predict: Callable[[Tensor], Tensor],
    batches: Iterable[tuple[Tensor, Tensor]],
    gather: Callable[[Tensor], Tensor] | None = None,
) -> SampleScores:
    """Run `predict` over the hold-out once; everything stays on the device until the end of the pass.

    Args:
        predict: Image batch -> logits (b, C), unnormalised. The caller sees to evaluation mode.
        batches: Yields `(image, label)` in the same order every time; labels (b,) of an integer type.
        gather: Where `batches` hold a part of the samples: from what was found out about this part, one value per
            sample on the CPU, to all n samples in order. None: they hold all.

    Raises:
        ConfigError: `predict` returns something else, labels are no class indices, or there is no batch.
    """
    ranks, probs, labels, predictions = [], [], [], []
    for image, label in batches:
        logits = predict(image)
        _check_batch(logits, label)
        logits = logits.float()
        label = label.to(logits.device, torch.int64)
        rank = true_class_rank(logits, label)
        ranks.append(rank.clamp(max=MAX_RANK).to(torch.uint8))
        probs.append(F.softmax(logits, dim=1).gather(1, label[:, None]).squeeze(1))
        # The true class wins its ties above; the prediction must agree with that.
        predictions.append(torch.where(rank == 1, label, logits.argmax(1)))
        labels.append(label)

    if not labels and gather is None:
        raise ConfigError("Expected `batches` to be at least one, but got none")

    def all_of(parts: list[Tensor], dtype: torch.dtype) -> Tensor:
        # A part may be empty where there are few samples.
        values = torch.cat(parts).cpu() if parts or gather is None else torch.empty(0, dtype=dtype)
        return values if gather is None else gather(values)

    return SampleScores(
        labels=all_of(labels, torch.int64),
        rank=all_of(ranks, torch.uint8),
        true_prob=torch.nan_to_num(all_of(probs, torch.float32), nan=0.0),
        prediction=all_of(predictions, torch.int64),
    )


def _check_batch(logits: Any, label: Any) -> None:
    if not isinstance(label, Tensor) or label.dim() != 1 or not is_integer(label):
        got = f"{label.dtype} of shape {tuple(label.shape)}" if isinstance(label, Tensor) else type(label).__name__
        raise ConfigError(f"Expected labels of a batch to be class indices, (b,) int64, but got {got}")
    if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != len(label):
        got = f"shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
        raise ConfigError(f"Expected `predict` to return logits ({len(label)}, C), but got {got}")


def class_sums(values: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Return (C,) float64: the sum of `values` (n,) over the samples of each class."""
    return torch.zeros(num_classes, dtype=torch.float64).index_add_(0, labels, values.double())


def class_means(values: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Return (C,) float64: the mean of `values` (n,) per class; NaN for a class without samples."""
    return class_sums(values, labels, num_classes) / torch.bincount(labels, minlength=num_classes)
