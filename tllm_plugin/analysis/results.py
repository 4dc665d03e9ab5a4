"""What one network got right on the test data, and what changed from one network to another."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt

from tllm_plugin.analysis.intervals import paired_interval, unpaired_interval
from tllm_plugin.analysis.significance import paired_p_value, unpaired_p_value
from tllm_plugin.core.errors import ConfigError
from tllm_plugin.runs.predictions_file import PredictionsRecord

Counts = npt.NDArray[np.int64]
Vector = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class TestResult:
    """Test results of one network.

    Args:
        correct: (C,) right answers per class.
        total: (C,) test images per class.
        labels: (n,) true class of every test image, in order; None where only the counts are known.
        predictions: (n,) answers; None likewise.
    """

    __test__ = False  # Not a test, whatever pytest thinks of the name.

    correct: Counts
    total: Counts
    labels: Counts | None = None
    predictions: Counts | None = None

    @classmethod
    def from_predictions(cls, labels: Counts, predictions: Counts, num_classes: int) -> TestResult:
        """Count right answers per class."""
        correct, total = PredictionsRecord(labels, predictions, num_classes).counts()
        return cls(correct, total, labels, predictions)

    @property
    def accuracy(self) -> float:
        """Share of all test images that are recognised."""
        return float(self.correct.sum() / self.total.sum())

    @property
    def class_accuracy(self) -> Vector:
        """(C,) share of each class's test images; NaN for a class without any."""
        return per_image(self.correct, self.total)


@dataclass(frozen=True, eq=False)
class Change:
    """What changed per class from a vanilla network to a distilled one.

    Args:
        vanilla: Results of the vanilla network.
        distilled: Results of the other.
        losses: (C,) images that only the vanilla network gets right; None where only counts are known.
        gains: (C,) images that only the distilled network gets right; None likewise.
    """

    vanilla: TestResult
    distilled: TestResult
    losses: Counts | None = field(default=None)
    gains: Counts | None = field(default=None)

    @property
    def paired(self) -> bool:
        """Whether the two could be compared image by image."""
        return self.losses is not None

    @cached_property
    def delta(self) -> Vector:
        """(C,) delta acc, a fraction; NaN for a class without test images."""
        return per_image(self.distilled.correct - self.vanilla.correct, self.vanilla.total)

    def interval(self, level: float = 0.95) -> tuple[Vector, Vector]:
        """Return (low, high), (C,) each: exact intervals of delta acc; [-1, 1] for a class without test images."""
        if self.losses is None or self.gains is None:
            return unpaired_interval(self.vanilla.correct, self.distilled.correct, self.vanilla.total, level)
        return paired_interval(self.losses, self.gains, self.vanilla.total, level)

    @cached_property
    def p_value(self) -> Vector:
        """(C,) one-sided exact p-values that the class got worse: McNemar's, or Fisher's from counts alone."""
        if self.losses is None or self.gains is None:
            return unpaired_p_value(self.vanilla.correct, self.distilled.correct, self.vanilla.total)
        return paired_p_value(self.losses, self.gains)


def change_between(vanilla: TestResult, distilled: TestResult) -> Change:
    """Return what changed, image by image where both results say which images were right.

    Raises:
        ConfigError: The two were tested on different images.
    """
    if not np.array_equal(vanilla.total, distilled.total) or not vanilla.total.sum():
        raise ConfigError("Expected two runs tested on the same images, but their numbers per class differ")
    if vanilla.labels is None or distilled.labels is None or vanilla.predictions is None:
        return Change(vanilla, distilled)
    if not np.array_equal(vanilla.labels, distilled.labels):
        raise ConfigError("Expected two runs tested on the same images in the same order, but their labels differ")
    labels, classes = vanilla.labels, vanilla.total.size
    before, now = vanilla.predictions == labels, distilled.predictions == labels
    return Change(
        vanilla,
        distilled,
        losses=np.bincount(labels[before & ~now], minlength=classes),
        gains=np.bincount(labels[~before & now], minlength=classes),
    )


def per_image(counts: Counts, total: Counts) -> Vector:
    """Return `counts / total`, both (C,), as fractions; NaN where there is no image."""
    empty = np.full(total.shape, np.nan)
    return np.divide(counts, total, out=empty, where=total > 0)
