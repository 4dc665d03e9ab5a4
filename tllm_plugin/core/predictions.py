"""Predict a data set with a network in one pass, and hold the predictions from which all results are computed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tllm_plugin.core.arguments import is_integer
from tllm_plugin.core.errors import ConfigError
from tllm_plugin.core.outputs import logits_of

MAX_RANK = 255


@dataclass(frozen=True, eq=False)
class Predictions:
    """Predictions of one network for `n` samples, in data-set order and on the CPU; validated at construction.

    Args:
        labels: (n,) int64, true classes.
        prediction: (n,) int64, predicted classes; equal to the label exactly where `rank` is 1. -1 stands for a wrong
            prediction whose class was not recorded.
        num_classes: C. Labels are below C; predictions may not be, if the network has more than C outputs.
        rank: (n,) uint8, rank of the true class among the logits, 1 = predicted; 255 stands for 255 or worse. None if
            it was not recorded, as in `predictions.npz`.
        true_prob: (n,) float32, softmax probability of the true class; None if it was not recorded.
        agree: (n,) bool, whether the prediction equals the teacher's; None without a teacher.
        features: (n, D) float32, input of the last layer; None unless requested.

    Raises:
        ConfigError: A field is not a tensor with one value per sample (`features`: one row per sample).
    """

    labels: Tensor
    prediction: Tensor
    num_classes: int
    rank: Tensor | None = None
    true_prob: Tensor | None = None
    agree: Tensor | None = None
    features: Tensor | None = None

    def __post_init__(self) -> None:
        samples = self.labels.numel() if isinstance(self.labels, Tensor) else -1
        for name in ("labels", "prediction", "rank", "true_prob", "agree", "features"):
            value = getattr(self, name)
            if value is None and name not in ("labels", "prediction"):
                continue
            rows = value.shape[:1] if name == "features" else getattr(value, "shape", None)
            if not isinstance(value, Tensor) or rows != (samples,):
                got = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
                raise ConfigError(f"Expected `{name}` to be a tensor with one value per sample, but got {got}")

    @property
    def correct(self) -> Tensor:
        """(n,) bool, whether each prediction is correct."""
        return self.prediction == self.labels

    @property
    def class_correct(self) -> Tensor:
        """(C,) int64, correct predictions per class."""
        return torch.bincount(self.labels[self.correct], minlength=self.num_classes)

    @property
    def class_total(self) -> Tensor:
        """(C,) int64, samples per class."""
        return torch.bincount(self.labels, minlength=self.num_classes)

    @property
    def class_accuracy(self) -> Tensor:
        """(C,) float64 in [0, 1]; NaN for a class without samples."""
        return class_means(self.correct, self.labels, self.num_classes)

    @property
    def accuracy(self) -> float:
        """Fraction of samples predicted correctly, in [0, 1]; divided in single precision, as the hosts do."""
        return float(self.class_correct.sum() / self.class_total.sum())

    def kept(self, name: str) -> Tensor:
        """Return `rank`, `true_prob` or `features`.

        Raises:
            ConfigError: The field was not recorded.
        """
        value: Tensor | None = getattr(self, name)
        if value is None:
            raise ConfigError(f"Expected predictions with the `{name}` of every sample, but got predictions without")
        return value

    def part(self, start: int, stop: int) -> Predictions:
        """Return the predictions for samples `start` to `stop - 1`."""
        parts = {
            name: value[start:stop]
            for name in ("labels", "prediction", "rank", "true_prob", "agree", "features")
            if (value := getattr(self, name)) is not None
        }
        return replace(self, **parts)

    def beside(self, teacher: Tensor) -> Predictions:
        """Return a copy whose `agree` compares these predictions with the teacher's, (n,) int64."""
        return replace(self, agree=self.prediction == teacher)


class Collector:
    """Collect `Predictions` from logits batch by batch, for loops that the host runs itself.

    A few bytes per sample stay on the device, plus the features if they are passed; logits are not kept.

    Args:
        num_classes: C; None takes the number of logits. A network may have more outputs than there are classes.
    """

    def __init__(self, num_classes: int | None = None) -> None:
        self._num_classes = num_classes
        self._parts: dict[str, list[Tensor]] = {
            name: [] for name in ("labels", "prediction", "rank", "true_prob", "outputs", "features")
        }

    def add(self, logits: Tensor, label: Tensor, features: Tensor | None = None) -> None:
        """Add a batch.

        Args:
            logits: (b, C), unnormalised.
            label: (b,) of an integer type, on any device.
            features: (b, D), either in every batch or in none.

        Raises:
            ConfigError: The logits do not have shape (b, C), or the labels are not class indices.
        """
        _check_batch(logits, label)
        logits = logits.detach().float()
        label = label.to(logits.device, torch.int64)
        rank = true_class_rank(logits, label)
        best = logits.argmax(1)
        # A true logit of NaN ranks last, but argmax selects it: then any other class counts as predicted.
        wrong = torch.where(best == label, (label + 1) % logits.shape[1], best)
        batch = {
            "labels": label,
            "prediction": torch.where(rank == 1, label, wrong),
            "rank": rank.clamp(max=MAX_RANK).to(torch.uint8),
            "true_prob": F.softmax(logits, dim=1).gather(1, label[:, None]).squeeze(1),
            "outputs": torch.full_like(label, logits.shape[1]),
        }
        for name, values in batch.items():
            self._parts[name].append(values)
        if features is not None:
            self._parts["features"].append(features.detach().float())

    def predictions(self, gather: Callable[[Tensor], Tensor] | None = None) -> Predictions:
        """Return the predictions for all added batches, in order.

        Args:
            gather: Gathers per-sample values from all ranks into data-set order: takes the (k, ...) CPU values of this
                rank's samples and returns those of all n samples. None if this rank has all samples.

        Raises:
            ConfigError: No batch was added.
        """

        def whole(name: str, dtype: torch.dtype) -> Tensor:
            parts = self._parts[name]
            # With more ranks than batches, a rank may have no samples.
            values = torch.cat(parts).cpu() if parts else torch.empty(0, dtype=dtype)
            return values if gather is None else gather(values)

        labels = whole("labels", torch.int64)
        if not len(labels):
            raise ConfigError("Expected `batches` to be at least one, but got none")
        return Predictions(
            labels=labels,
            prediction=whole("prediction", torch.int64),
            num_classes=self._num_classes or int(whole("outputs", torch.int64).max()),
            rank=whole("rank", torch.uint8),
            true_prob=torch.nan_to_num(whole("true_prob", torch.float32), nan=0.0),
            features=whole("features", torch.float32) if self._parts["features"] else None,
        )


@torch.no_grad()
def predict(
    network: Callable[..., Any],
    batches: Iterable[Sequence[Any]],
    *,
    keyword: str = "",
    num_classes: int | None = None,
    device: torch.device | None = None,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    features: bool = False,
) -> Predictions:
    """Predict a data set in one pass; results stay on the device until the end of the pass.

    Args:
        network: Maps an image batch to unnormalised logits (b, C), alone or with other outputs (see `logits_of`). A
            module is put into evaluation mode and left in it.
        batches: Yields `(image, label, ...)` in a fixed order; labels are (b,) of an integer type. A loader that holds
            only this rank's shard has a method `gather` (see `Collector.predictions`), so that every rank gets the
            predictions for all samples.
        keyword: Name of the argument that takes the images; used for distillers, which take keywords and return logits
            only.
        num_classes: See `Collector`.
        device: Device to move the images to; None if they are on the network's device already.
        autocast: Returns the context manager for each forward pass; it sets the precision.
        features: Whether to keep the pooled features (`pooled_feat` among the outputs beside the logits), which take
            memory.

    Raises:
        ConfigError: The network returns something else, the labels are not class indices, or there is no batch.
    """
    if isinstance(network, nn.Module):
        network.eval()
    collector = Collector(num_classes)
    for image, label, *_ in batches:
        image = image if device is None else image.to(device, non_blocking=True)
        with autocast():
            output = network(**{keyword: image}) if keyword else network(image)
        pooled = _pooled(network, output) if features else None
        collector.add(output if keyword else logits_of(output), label, pooled)
        # The outputs hold feature maps of all stages; kept during the next pass, they would double the memory.
        del output, pooled
    return collector.predictions(getattr(batches, "gather", None))


def _pooled(network: Any, output: Any) -> Tensor:
    extra = output[1] if isinstance(output, tuple) else {}
    if "pooled_feat" not in extra:
        raise ConfigError(f"Expected {type(network).__name__} to return its pooled features, but it does not")
    pooled: Tensor = extra["pooled_feat"]
    return pooled


def _check_batch(logits: Any, label: Any) -> None:
    if not isinstance(label, Tensor) or label.dim() != 1 or not is_integer(label):
        got = f"{label.dtype} of shape {tuple(label.shape)}" if isinstance(label, Tensor) else type(label).__name__
        raise ConfigError(f"Expected labels of a batch to be class indices, (b,) int64, but got {got}")
    if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != len(label):
        got = f"shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
        raise ConfigError(f"Expected the network to return logits ({len(label)}, C), but got {got}")


def true_class_rank(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the rank of the true class, (n,) int64, 1 = best; ties go to the lower class index.

    A NaN logit of the true class ranks last, so that a diverged network never looks perfect.

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
    # Summing into 64 bits would first copy the (n, C) booleans to 64 bits.
    return (not_below.sum(1, dtype=torch.int32) - tied_later.sum(1, dtype=torch.int32)).long()


def class_sums(values: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Return (C,) float64: the sum of `values` (n,) over the samples of each class."""
    return torch.zeros(num_classes, dtype=torch.float64).index_add_(0, labels, values.double())


def class_means(values: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Return (C,) float64: the mean of `values` (n,) per class; NaN for a class without samples."""
    return class_sums(values, labels, num_classes) / torch.bincount(labels, minlength=num_classes)
