"""Test results of a network, and the changes between two networks."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt

from tllm_plugin.analysis.intervals import paired_interval, unpaired_interval
from tllm_plugin.analysis.significance import paired_p_value, unpaired_p_value
from tllm_plugin.core.errors import ConfigError
from tllm_plugin.core.predictions import Predictions
from tllm_plugin.runs.metrics_file import MetricsRecord

Counts = npt.NDArray[np.int64]
Vector = npt.NDArray[np.float64]

#: A drop that is worth a column of its own: 5 points.
LARGE = 0.05
#: Far less than one image, so that a drop of exactly 5 points does not hang on the last bit of a division.
SLACK = 1e-9


@dataclass(frozen=True, eq=False)
class TestResult:
    """Test results of one network.

    Args:
        correct: (C,) correct predictions per class.
        total: (C,) test images per class.
        predictions: Predictions for the test images, in order; None if only counts are known.
        images: (n,) names of these images, sorted; None if they are in the order of the data set.
    """

    __test__ = False  # Tells pytest that this class is not a test.

    correct: Counts
    total: Counts
    predictions: Predictions | None = None
    images: tuple[str, ...] | None = None

    @classmethod
    def from_predictions(cls, predictions: Predictions, images: tuple[str, ...] | None = None) -> TestResult:
        """Count correct predictions per class."""
        return cls(predictions.class_correct.numpy(), predictions.class_total.numpy(), predictions, images)

    @classmethod
    def from_metrics(cls, metrics: MetricsRecord) -> TestResult:
        """Create the results from the recorded counts of a run."""
        return cls(np.asarray(metrics.class_correct), np.asarray(metrics.class_total))

    @property
    def accuracy(self) -> float:
        """Share of correct predictions."""
        return float(self.correct.sum() / self.total.sum())

    @property
    def class_accuracy(self) -> Vector:
        """(C,) share of each class's test images; NaN for a class without any."""
        return per_image(self.correct, self.total)


@dataclass(frozen=True, eq=False)
class Change:
    """Changes per class from a vanilla to a distilled network.

    Args:
        vanilla: Results of the vanilla network.
        distilled: Results of the distilled network.
        losses: (C,) images that only the vanilla network predicts correctly; None if only counts are known.
        gains: (C,) images that only the distilled network predicts correctly; None if only counts are known.
    """

    vanilla: TestResult
    distilled: TestResult
    losses: Counts | None = field(default=None)
    gains: Counts | None = field(default=None)

    @property
    def paired(self) -> bool:
        """Whether the networks are compared image by image."""
        return self.losses is not None

    @cached_property
    def delta(self) -> Vector:
        """(C,) delta acc, a fraction; NaN for a class without test images."""
        return per_image(self.distilled.correct - self.vanilla.correct, self.vanilla.total)

    @property
    def hurt(self) -> npt.NDArray[np.bool_]:
        """(C,) delta acc < 0, as the paper counts.

        The count alone means little: of two vanilla runs with different seeds, each is worse on about half of the
        classes.
        """
        return np.asarray(self.delta < -SLACK)

    @property
    def largely_hurt(self) -> npt.NDArray[np.bool_]:
        """(C,) delta acc < -`LARGE`."""
        return np.asarray(self.delta < -LARGE - SLACK)

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
    """Return the changes between two networks, image by image if both have predictions.

    Raises:
        ConfigError: The two were tested on different images.
    """
    if not np.array_equal(vanilla.total, distilled.total) or not vanilla.total.sum():
        raise ConfigError("Expected two runs tested on the same images, but their numbers per class differ")
    if vanilla.predictions is None or distilled.predictions is None:
        return Change(vanilla, distilled)
    if (vanilla.images is None) != (distilled.images is None):
        return Change(vanilla, distilled)  # Which image is which is known of one of them only.
    if vanilla.images != distilled.images:
        only = sorted({*vanilla.images} ^ {*distilled.images})  # type: ignore[misc]
        raise ConfigError(f"Expected two runs tested on the same images, but only one of them has {only[0]!r}")
    labels = vanilla.predictions.labels
    if not labels.equal(distilled.predictions.labels):
        raise ConfigError("Expected two runs tested on the same images in the same order, but their labels differ")
    before, now = vanilla.predictions.correct, distilled.predictions.correct
    losses, gains = (labels[rows].bincount(minlength=vanilla.total.size) for rows in (before & ~now, ~before & now))
    return Change(vanilla, distilled, losses=losses.numpy(), gains=gains.numpy())


def per_image(counts: Counts, total: Counts) -> Vector:
    """Return `counts / total`, both (C,), as fractions; NaN for classes without images."""
    empty = np.full(total.shape, np.nan)
    return np.divide(counts, total, out=empty, where=total > 0)
