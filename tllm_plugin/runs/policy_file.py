"""`policy.json`: how much each class is taught, by which policy."""

from __future__ import annotations

from pydantic import model_validator
from pydantic.dataclasses import dataclass

from tllm_plugin.runs.records import Amount, Count, Fraction, Inconsistent, List, Mapping, Record, Text


@dataclass(frozen=True)
class ClassWeight:
    """One class.

    Args:
        name: Class name.
        strength: Mean probability that the teacher gives the class on its training images, at the temperature.
        weight: Teaching weight.
    """

    name: Text
    strength: Fraction
    weight: Fraction


@dataclass(frozen=True)
class PolicyRecord(Record):
    """The teaching weights of a run that the detector's flags come on top of.

    Args:
        policy: Name of the policy.
        options: Its options, JSON values.
        temperature: At which strengths were measured and labels are mixed in.
        level: Strength that classes are raised to.
        num_classes: C.
        classes: One entry per class, in the order of their indices.
    """

    KIND = "policy"

    policy: Text
    options: Mapping
    temperature: Amount
    level: Fraction
    num_classes: Count
    classes: List[ClassWeight]

    @model_validator(mode="after")
    def _is_consistent(self) -> PolicyRecord:
        if len(self.classes) != self.num_classes:
            raise Inconsistent("classes", f"as long as `num_classes` ({self.num_classes})", len(self.classes))
        return self
