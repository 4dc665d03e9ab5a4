"""Read and write `flags.json`: the flagged classes of a run, when they were flagged, and the evidence."""

from __future__ import annotations

from pydantic import model_validator
from pydantic.dataclasses import dataclass

from tllm_plugin.runs.records import Amount, Count, Flag, Fraction, Inconsistent, List, Mapping, Number, Record, Text


@dataclass(frozen=True)
class ClassFlag:
    """Flag of one class, with the evidence.

    Args:
        index: Class index.
        name: Class name.
        flagged: Whether the class counts as undistillable at the end.
        epoch_flagged: Epoch from which the class had no teacher, counted from 1; None if it was never flagged.
        drop: Drop of the score, as a fraction (0.05 = 5 points); None if the detector compares nothing.
        p_value: p-value of the exact paired test of the drop, in [0, 1]; None without a test.
        e_value: Evidence that is valid under any number of looks, at least 0; None without it.
        holdout_count: Hold-out samples of the class.
        holdout_correct: Number of these that the student predicted correctly at the last evaluation.
        probability_of_harm: Posterior probability that the class is behind the reference run, in [0, 1]; None without a
            reference run.
    """

    index: Count
    name: Text
    flagged: Flag
    epoch_flagged: Count | None
    drop: Number | None
    p_value: Fraction | None
    e_value: Amount | None
    holdout_count: Count
    holdout_correct: Count
    probability_of_harm: Fraction | None = None

    @model_validator(mode="after")
    def _is_consistent(self) -> ClassFlag:
        if self.holdout_correct > self.holdout_count:
            raise Inconsistent("holdout_correct", f"at most {self.holdout_count}", self.holdout_correct)
        if self.flagged and self.epoch_flagged is None:
            raise Inconsistent("epoch_flagged", "an epoch, since the class is flagged", None)
        return self


@dataclass(frozen=True)
class DetectorChoice:
    """The detector of a run.

    Args:
        name: Registered name.
        options: Options as JSON values.
    """

    name: Text
    options: Mapping


@dataclass(frozen=True)
class FlagsRecord(Record):
    """Decisions of a run's detector.

    Args:
        detector: Name and options of the detector.
        epochs: Number of epochs that the detector has seen.
        num_classes: C.
        reason: Why nothing was flagged; empty if something was.
        classes: One entry per class, in the order of their indices.
    """

    KIND = "flags"

    detector: DetectorChoice
    epochs: Count
    num_classes: Count
    reason: Text
    classes: List[ClassFlag]

    @property
    def flagged(self) -> tuple[int, ...]:
        """Indices of the flagged classes."""
        return tuple(item.index for item in self.classes if item.flagged)

    @model_validator(mode="after")
    def _is_consistent(self) -> FlagsRecord:
        # The length is checked first, because a damaged `num_classes` may be too large to iterate over.
        if len(self.classes) != self.num_classes:
            raise Inconsistent("classes", f"as long as `num_classes` ({self.num_classes})", len(self.classes))
        for index, item in enumerate(self.classes):
            if item.index != index:
                raise Inconsistent(f"classes[{index}].index", str(index), item.index)
            if (item.epoch_flagged or 0) > self.epochs:
                raise Inconsistent(f"classes[{index}].epoch_flagged", f"at most {self.epochs}", item.epoch_flagged)
        return self
