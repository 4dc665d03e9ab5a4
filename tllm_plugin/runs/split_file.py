"""Read and write `split.json`: the training samples that a run holds out."""

from __future__ import annotations

from pydantic import model_validator
from pydantic.dataclasses import dataclass

from tllm_plugin.runs.records import Count, Fraction, Inconsistent, Integer, List, Record


@dataclass(frozen=True)
class SplitRecord(Record):
    """Hold-outs of a run and the arguments with which they were drawn.

    Args:
        holdout: Indices into the training data of the samples on which the detector judges classes.
        search_holdout: Indices of the samples on which a search compares students; empty without a search.
        seed: Seed of the draw.
        fraction: Requested fraction of the training data in the hold-out, in [0, 1].
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
