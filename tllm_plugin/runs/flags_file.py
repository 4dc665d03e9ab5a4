"""`flags.json`: which classes a run stopped teaching, when, and on what evidence."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tllm_plugin.runs import fields
from tllm_plugin.runs.fields import FieldError, amount, count, flag, list_of, mapping, number, optional, text

KIND = "flags"
VERSION = 1


@dataclass(frozen=True)
class ClassFlag:
    """One class: whether it is flagged, and the evidence.

    Args:
        index: Class index.
        name: Class name.
        flagged: Whether the class counts as undistillable at the end.
        epoch_flagged: Epoch from which it got no teacher, counted from 1; None if it never happened.
        drop: How far its score has fallen, a fraction (0.05 = 5 points); None where the detector compares nothing.
        p_value: Of the exact paired test behind the drop, in [0, 1]; None without a test.
        e_value: Evidence that stays valid however often one looks, at least 0; None without it.
        holdout_count: Hold-out samples of the class.
        holdout_correct: How many of them the student got right at the last look.
    """

    index: int
    name: str
    flagged: bool = False
    epoch_flagged: int | None = None
    drop: float | None = None
    p_value: float | None = None
    e_value: float | None = None
    holdout_count: int = 0
    holdout_correct: int = 0

    @classmethod
    def from_json(cls, obj: object) -> ClassFlag:
        """Rebuild one class from its JSON object.

        Raises:
            FieldError: A field is missing or of the wrong type, more samples are correct than there are, or a class is
                flagged since never.
        """
        record = cls(
            index=fields.field(obj, "index", count),
            name=fields.field(obj, "name", text),
            flagged=fields.field(obj, "flagged", flag),
            epoch_flagged=fields.field(obj, "epoch_flagged", optional(count)),
            drop=fields.field(obj, "drop", optional(number)),
            p_value=fields.field(obj, "p_value", optional(fields.share)),
            e_value=fields.field(obj, "e_value", optional(amount)),
            holdout_count=fields.field(obj, "holdout_count", count),
            holdout_correct=fields.field(obj, "holdout_correct", count),
        )
        if record.holdout_correct > record.holdout_count:
            raise FieldError(f"at most {record.holdout_count}", str(record.holdout_correct), "holdout_correct")
        if record.flagged and record.epoch_flagged is None:
            raise FieldError("an epoch, since the class is flagged", "None", "epoch_flagged")
        return record


@dataclass(frozen=True)
class FlagsRecord:
    """What the detector of a run decided.

    Args:
        detector: Name of the detector.
        epochs: Epochs that the detector has seen.
        num_classes: C.
        classes: One entry per class, in the order of their indices.
        detector_options: Its options, JSON values.
        reason: Why nothing was flagged; empty if something was.
    """

    detector: str
    epochs: int
    num_classes: int
    classes: tuple[ClassFlag, ...]
    detector_options: dict[str, Any] = field(default_factory=dict)
    reason: str = ""

    @property
    def flagged(self) -> tuple[int, ...]:
        """Indices of the flagged classes."""
        return tuple(item.index for item in self.classes if item.flagged)

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return {
            "detector": {"name": self.detector, "options": self.detector_options},
            "epochs": self.epochs,
            "num_classes": self.num_classes,
            "reason": self.reason,
            "classes": [dict(vars(item)) for item in self.classes],
        }

    @classmethod
    def from_json(cls, obj: object) -> FlagsRecord:
        """Rebuild a record from what `to_json` returned.

        Raises:
            FieldError: A field is missing or of the wrong type, the classes are not 0, 1, ..., C - 1, or one was
                flagged after the last epoch.
        """
        detector = fields.field(obj, "detector", _detector)
        record = cls(
            detector=detector[0],
            detector_options=detector[1],
            epochs=fields.field(obj, "epochs", count),
            num_classes=fields.field(obj, "num_classes", count),
            classes=fields.field(obj, "classes", list_of(ClassFlag.from_json)),
            reason=fields.field(obj, "reason", text),
        )
        # The length first: a damaged `num_classes` may be a number that no memory can count up to.
        if len(record.classes) != record.num_classes:
            raise FieldError(f"as long as `num_classes` ({record.num_classes})", str(len(record.classes)), "classes")
        for index, item in enumerate(record.classes):
            if item.index != index:
                raise FieldError(str(index), str(item.index), f"classes[{index}].index")
            if (item.epoch_flagged or 0) > record.epochs:
                raise FieldError(f"at most {record.epochs}", str(item.epoch_flagged), f"classes[{index}].epoch_flagged")
        return record


def _detector(value: object) -> tuple[str, dict[str, Any]]:
    return fields.field(value, "name", text), fields.field(value, "options", mapping)
