"""`split.json`: which samples of the training data a run never trained on."""

from __future__ import annotations

from pydantic import model_validator
from pydantic.dataclasses import dataclass

from tllm_plugin.runs.records import Count, Fraction, Inconsistent, Integer, List, Record


@dataclass(frozen=True)
class SplitRecord(Record):
    """The hold-outs of a run and what they were drawn with.

    Args:
        holdout: Indices into the training data of the samples that judge classes.
        search_holdout: Likewise for the samples on which eta is chosen; empty without a search.
        seed: Seed of the draw.
        fraction: Share of the training data that was asked for as hold-out, in [0, 1].
        num_classes: C.
    """

    KIND = "split"

    holdout: List[Count]
    search_holdout: List[Count]
    seed: Integer
    fraction: Fraction
    num_classes: Count

    @model_validator(mode="after")
    def _is_consistent(self) -> SplitRecord:
        if len({*self.holdout, *self.search_holdout}) != len(self.holdout) + len(self.search_holdout):
            raise Inconsistent("holdout, search_holdout", "disjoint and without repetition", "an index twice")
        return self
