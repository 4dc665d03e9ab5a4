"""Teaching curves: the scores of every class and hold-out sample, recorded after each epoch."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tllm_plugin.core.arguments import as_indices, whole_number
from tllm_plugin.core.errors import ConfigError, FileFormatError
from tllm_plugin.core.predictions import Predictions, class_means
from tllm_plugin.core.scores import SCORES

# One byte per sample, epoch and quantity: 1,000 classes x 26 samples x 300 epochs are 16 MB at most.
_PER_SAMPLE = ("rank", "true_prob", "agree")


class Curves:
    """Hold-out history of one run.

    For each sample and epoch it records the rank of the true class (rank 1 means correct), the probability of the true
    class in steps of 1/255, and agreement with the teacher. Per-class curves of any score are derived from these.

    Args:
        labels: (n,) integers, classes of the hold-out samples in scoring order.
        num_classes: C.
        sample_ids: (n,) integers, indices of the samples in the training data; two runs can be paired if these are
            equal.

    Raises:
        ConfigError: The arguments are not index vectors of one length, or a class is not below C.
    """

    def __init__(
        self, labels: Tensor | Sequence[int] | Any, num_classes: int, sample_ids: Tensor | Sequence[int] | Any
    ) -> None:
        num_classes = whole_number("num_classes", num_classes, 1)
        labels, sample_ids = as_indices("labels", labels, num_classes), as_indices("sample_ids", sample_ids)
        if labels.shape != sample_ids.shape:
            raise ConfigError(
                f"Expected `labels` and `sample_ids` to be vectors of one length, but got {tuple(labels.shape)} and "
                f"{tuple(sample_ids.shape)}"
            )
        self.labels = labels
        self.num_classes = num_classes
        self.sample_ids = sample_ids
        self.epochs: list[int] = []
        self._rows: dict[str, list[Tensor]] = {name: [] for name in _PER_SAMPLE}

    def __len__(self) -> int:
        return len(self.epochs)

    @property
    def counts(self) -> Tensor:
        """(C,) int64, hold-out samples per class."""
        return torch.bincount(self.labels, minlength=self.num_classes)

    def append(self, epoch: int, samples: Predictions) -> None:
        """Add one epoch.

        Raises:
            ConfigError: `epoch` is not later than the last recorded one, or the samples are not of this hold-out.
        """
        epoch = whole_number("epoch", epoch, 0)
        if self.epochs and epoch <= self.epochs[-1]:
            raise ConfigError(f"Expected an `epoch` after {self.epochs[-1]}, but got {epoch}")
        if not torch.equal(samples.labels, self.labels):
            raise ConfigError("Expected the scores of the hold-out's samples in their order, but the labels differ")
        if self.epochs and (samples.agree is None) == bool(self._rows["agree"]):
            raise ConfigError("Expected every epoch to say whether the teacher agrees, or none, but this one differs")
        self.epochs.append(epoch)
        self._rows["rank"].append(samples.kept("rank"))
        self._rows["true_prob"].append((samples.kept("true_prob") * 255).round().to(torch.uint8))
        if samples.agree is not None:
            self._rows["agree"].append(samples.agree)

    def samples_at(self, epoch: int) -> Predictions:
        """Return the predictions of `epoch`; wrong predictions are -1, because their class is not recorded.

        Raises:
            ConfigError: The epoch was not recorded.
        """
        if epoch not in self.epochs:
            known = f"{self.epochs[0]} to {self.epochs[-1]}" if self.epochs else "none"
            raise ConfigError(f"Expected an `epoch` that was recorded ({known}), but got {epoch}")
        row = self.epochs.index(epoch)
        rank = self._rows["rank"][row]
        return Predictions(
            labels=self.labels,
            prediction=torch.where(rank == 1, self.labels, -1),
            num_classes=self.num_classes,
            rank=rank,
            true_prob=self._rows["true_prob"][row].float() / 255,
            agree=self._rows["agree"][row] if self._rows["agree"] else None,
        )

    def class_curves(self, score: str = "accuracy") -> Tensor:
        """Return the mean of a score per class, (E, C) float64 in [0, 1], one row per recorded epoch."""
        rows = [
            class_means(SCORES[score](self.samples_at(epoch)), self.labels, self.num_classes) for epoch in self.epochs
        ]
        return torch.stack(rows) if rows else torch.zeros(0, self.num_classes, dtype=torch.float64)

    def mean_accuracy(self, epoch: int) -> float:
        """Return the class-balanced accuracy after `epoch`: the mean over classes that have samples.

        Raises:
            ConfigError: The epoch was not recorded.
        """
        return float(self.samples_at(epoch).class_accuracy.nanmean())

    def same_holdout(self, other: Curves) -> bool:
        """Return whether both histories cover the same samples in the same order."""
        return torch.equal(self.sample_ids, other.sample_ids) and torch.equal(self.labels, other.labels)

    def digest(self) -> Tensor:
        """Return the SHA-256 of all recorded values as (32,) uint8."""
        digest = hashlib.sha256(str(self.num_classes).encode())
        for name, value in self.state_dict().items():
            if isinstance(value, Tensor):
                digest.update(f"{name}{tuple(value.shape)}".encode() + value.contiguous().numpy().tobytes())
        return torch.frombuffer(bytearray(digest.digest()), dtype=torch.uint8)

    def state_dict(self) -> dict[str, Any]:
        """Return tensors and plain values: `rank` and `true_prob` (E, n) uint8, `agree` (E or 0, n) bool, and ids."""
        size = (0, self.labels.numel())
        return {
            "num_classes": self.num_classes,
            "labels": self.labels,
            "sample_ids": self.sample_ids,
            "epochs": torch.tensor(self.epochs, dtype=torch.int64),
            "rank": torch.stack(self._rows["rank"]) if self.epochs else torch.zeros(size, dtype=torch.uint8),
            "true_prob": torch.stack(self._rows["true_prob"]) if self.epochs else torch.zeros(size, dtype=torch.uint8),
            "agree": torch.stack(self._rows["agree"]) if self._rows["agree"] else torch.zeros(size, dtype=torch.bool),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Replace the history.

        Raises:
            ConfigError: The history was recorded on another hold-out.
            FileFormatError: The parts of the history are inconsistent.
        """
        other = Curves.from_state(state)
        if not self.same_holdout(other):
            raise ConfigError(
                "Expected curves of the same hold-out, but got those of another one: the hold-out's fraction, seed or "
                "data set changed"
            )
        self.epochs, self._rows = other.epochs, other._rows

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Curves:
        """Rebuild a history from the result of `state_dict`.

        Raises:
            FileFormatError: The parts of the state are inconsistent.
        """
        try:
            curves = cls(state["labels"], int(state["num_classes"]), state["sample_ids"])
        except ConfigError as error:
            raise FileFormatError(f"Expected curves whose parts fit together, but: {error}") from error
        epochs = state["epochs"].tolist()
        full = (len(epochs), curves.labels.numel())
        for name in _PER_SAMPLE:
            rows = state[name]
            if rows.shape != full and not (name == "agree" and rows.shape[0] == 0):
                raise FileFormatError(f"Expected `{name}` of the curves to be of shape {full}, but got {rows.shape}")
            curves._rows[name] = list(rows.unbind(0))
        if sorted(set(epochs)) != epochs:
            raise FileFormatError("Expected the epochs of the curves to ascend, but they do not")
        curves.epochs = epochs
        return curves
