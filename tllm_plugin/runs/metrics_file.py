"""`metrics.json`: how good the student of a run became, per class, and what that cost."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from tllm_plugin.runs.fields import FieldError, amount, count, field, flag, list_of, optional, share

KIND = "metrics"
VERSION = 1
# Some hosts divide in single precision.
_ROUNDING = 1e-6


@dataclass(frozen=True)
class MetricsRecord:
    """Results on the test data after the last epoch so far, and the cost of the run.

    Args:
        test_accuracy: Of the student after `epochs_done` epochs, a fraction; None before the first test.
        class_correct: (C,) correct test samples per class; empty before the first test.
        class_total: (C,) test samples per class. Two runs' quotients give delta acc.
        seconds_per_epoch: One wall-clock time per epoch done.
        peak_memory_bytes: Highest memory use of the process or the device; None where it is not known.
        epochs_done: Epochs trained so far.
        finished: Whether the run came to its end.
    """

    test_accuracy: float | None
    class_correct: tuple[int, ...]
    class_total: tuple[int, ...]
    seconds_per_epoch: tuple[float, ...]
    peak_memory_bytes: int | None
    epochs_done: int
    finished: bool

    @property
    def tested(self) -> bool:
        """Whether there are results on test data."""
        return sum(self.class_total) > 0

    def without_results(self) -> MetricsRecord:
        """Return the record of such a run that never looked at test data."""
        return replace(self, test_accuracy=None, class_correct=(), class_total=())

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, obj: object) -> MetricsRecord:
        """Rebuild a record from what `to_json` returned.

        Raises:
            FieldError: A field is missing or of the wrong type, a class has more correct samples than samples, or the
                accuracy is not that of the classes together.
        """
        record = cls(
            test_accuracy=field(obj, "test_accuracy", optional(share)),
            class_correct=field(obj, "class_correct", list_of(count)),
            class_total=field(obj, "class_total", list_of(count)),
            seconds_per_epoch=field(obj, "seconds_per_epoch", list_of(amount)),
            peak_memory_bytes=field(obj, "peak_memory_bytes", optional(count)),
            epochs_done=field(obj, "epochs_done", count),
            finished=field(obj, "finished", flag),
        )
        if len(record.class_correct) != len(record.class_total):
            raise FieldError(
                f"as long as `class_total` ({len(record.class_total)})", str(len(record.class_correct)), "class_correct"
            )
        for index, (correct, total) in enumerate(zip(record.class_correct, record.class_total, strict=True)):
            if correct > total:
                raise FieldError(f"at most {total}", str(correct), f"class_correct[{index}]")
        accuracy, tested = record.test_accuracy, sum(record.class_total)
        share_right = sum(record.class_correct) / tested if tested else None
        if (accuracy is None) != (share_right is None) or abs((accuracy or 0) - (share_right or 0)) > _ROUNDING:
            raise FieldError(f"the {share_right} of all classes together", str(accuracy), "test_accuracy")
        return record
