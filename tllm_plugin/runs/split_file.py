"""`split.json`: which samples of the training data a run never trained on."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from tllm_plugin.runs.fields import FieldError, count, field, integer, list_of, share

KIND = "split"
VERSION = 1


@dataclass(frozen=True)
class SplitRecord:
    """The hold-outs of a run and what they were drawn with.

    Args:
        holdout: Indices into the training data of the samples that judge classes.
        search_holdout: Likewise for the samples on which eta is chosen; empty without a search.
        seed: Seed of the draw.
        fraction: Share of the training data that was asked for as hold-out, in [0, 1].
        num_classes: C.
    """

    holdout: tuple[int, ...]
    search_holdout: tuple[int, ...]
    seed: int
    fraction: float
    num_classes: int

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, obj: object) -> SplitRecord:
        """Rebuild a record from what `to_json` returned.

        Raises:
            FieldError: A field is missing or of the wrong type, or an index occurs twice.
        """
        record = cls(
            holdout=field(obj, "holdout", list_of(count)),
            search_holdout=field(obj, "search_holdout", list_of(count)),
            seed=field(obj, "seed", integer),
            fraction=field(obj, "fraction", share),
            num_classes=field(obj, "num_classes", count),
        )
        if len({*record.holdout, *record.search_holdout}) != len(record.holdout) + len(record.search_holdout):
            raise FieldError("disjoint and without repetition", "an index twice", "holdout, search_holdout")
        return record
