"""Read and write `policy.json`: the teaching weights of the classes and the policy that set them."""

from __future__ import annotations

from pydantic import model_validator
from pydantic.dataclasses import dataclass

from tllm_plugin.runs.records import Amount, Count, Fraction, Inconsistent, List, Mapping, Record, Text


@dataclass(frozen=True)
class ClassWeight:
    """Teaching weight of a class.


    Args:
        name: Class name.
        strength: Mean probability of the class in the teacher's predictions for its training images, at the
            temperature.
        weight: Teaching weight.
    """

    name: Text
    strength: Fraction
    weight: Fraction


@dataclass(frozen=True)
class PolicyRecord(Record):
    """Teaching weights of a run; flagged classes have weight 0 in addition.

    Args:
        policy: Name of the policy.
        options: Options as JSON values.
        temperature: Temperature at which strengths are measured and labels are mixed in.
        level: Strength to which weaker classes are raised.
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
