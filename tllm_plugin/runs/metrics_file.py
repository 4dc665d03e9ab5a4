"""Read and write `metrics.json`: test results per class and the cost of a run."""

from __future__ import annotations

from dataclasses import replace

from pydantic import model_validator
from pydantic.dataclasses import dataclass

from tllm_plugin.core.predictions import Predictions
from tllm_plugin.runs.records import Amount, Count, Flag, Fraction, Inconsistent, List, Record

# Tolerance for hosts that divide in single precision.
_ROUNDING = 1e-6


@dataclass(frozen=True)
class MetricsRecord(Record):
    """Test results after the last trained epoch, and cost of the run.

    Args:
        test_accuracy: Test accuracy of the student after `epochs_done` epochs, a fraction; None before the first test.
        class_correct: (C,) correct test samples per class; empty before the first test.
        class_total: (C,) test samples per class; empty before the first test.
        seconds_per_epoch: Wall-clock time of each trained epoch in seconds.
        peak_memory_bytes: Peak memory use of the process or the device; None if unknown.
        epochs_done: Number of epochs trained so far.
        finished: Whether the run is finished.
    """

    KIND = "metrics"

    test_accuracy: Fraction | None
    class_correct: List[Count]
    class_total: List[Count]
    seconds_per_epoch: List[Amount]
    peak_memory_bytes: Count | None
    epochs_done: Count
    finished: Flag

    @classmethod
    def untested(
        cls,
        *,
        epochs_done: int,
        finished: bool,
        seconds_per_epoch: tuple[float, ...] = (),
        peak_memory_bytes: int | None = None,
    ) -> MetricsRecord:
        """Return the record of a run without test results; `with_results` adds them."""
        return cls(None, (), (), seconds_per_epoch, peak_memory_bytes, epochs_done, finished)

    @property
    def tested(self) -> bool:
        """Whether the record has test results."""
        return sum(self.class_total) > 0

    def with_results(self, predictions: Predictions) -> MetricsRecord:
        """Return the record with the test results of these predictions."""
        correct, total = _counts(predictions)
        return replace(self, test_accuracy=predictions.accuracy, class_correct=correct, class_total=total)

    def agrees_with(self, predictions: Predictions) -> bool:
        """Return whether these predictions give the recorded counts of every class."""
        return (self.class_correct, self.class_total) == _counts(predictions)

    def without_results(self) -> MetricsRecord:
        """Return the record without test results."""
        return replace(self, test_accuracy=None, class_correct=(), class_total=())

    @model_validator(mode="after")
    def _is_consistent(self) -> MetricsRecord:
        if len(self.class_correct) != len(self.class_total):
            expected = f"as long as `class_total` ({len(self.class_total)})"
            raise Inconsistent("class_correct", expected, len(self.class_correct))
        for index, (correct, total) in enumerate(zip(self.class_correct, self.class_total, strict=True)):
            if correct > total:
                raise Inconsistent(f"class_correct[{index}]", f"at most {total}", correct)
        accuracy, tested = self.test_accuracy, sum(self.class_total)
        of_classes = sum(self.class_correct) / tested if tested else None
        if (accuracy is None) != (of_classes is None) or abs((accuracy or 0) - (of_classes or 0)) > _ROUNDING:
            raise Inconsistent("test_accuracy", f"the {of_classes} of all classes together", accuracy)
        return self


def _counts(predictions: Predictions) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return tuple(predictions.class_correct.tolist()), tuple(predictions.class_total.tolist())
