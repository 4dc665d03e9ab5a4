"""Read and write `data.json`: the identity of a run's data. Checkpoints contain the same record as text."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict

from pydantic import model_validator
from pydantic.dataclasses import dataclass

from tllm_plugin.core.data_identity import DataIdentity, DataPart
from tllm_plugin.core.errors import FileFormatError
from tllm_plugin.runs.records import Count, Inconsistent, List, Number, Record, Text, validated

#: Key of the text in a checkpoint.
KEY = "data"


@dataclass(frozen=True)
class _Part:
    counts: List[Count]
    labels: Text
    files: Text
    contents: Text


@dataclass(frozen=True)
class DataRecord(Record):
    """`DataIdentity` with the field types of its file."""

    KIND = "data"

    class_names: List[Text]
    train: _Part
    test: _Part
    image_size: Count
    mean: List[Number]
    std: List[Number]
    class_folders: List[Text]

    @property
    def identity(self) -> DataIdentity:
        """The data set."""
        fields = dict(vars(self))
        return DataIdentity(**{**fields, "train": DataPart(**vars(self.train)), "test": DataPart(**vars(self.test))})

    @model_validator(mode="after")
    def _is_consistent(self) -> DataRecord:
        classes = len(self.class_names)
        for name, values in (
            ("train.counts", self.train.counts),
            ("test.counts", self.test.counts),
            ("class_folders", self.class_folders),
        ):
            if values and len(values) != classes:
                raise Inconsistent(name, f"of {classes} classes", len(values))
        if len(self.mean) != len(self.std):
            raise Inconsistent("std", f"of {len(self.mean)} channels", len(self.std))
        if any(value <= 0 for value in self.std):
            raise Inconsistent("std", "more than 0", min(self.std))
        return self


def record_of(identity: DataIdentity) -> DataRecord:
    """Convert the identity of a data set to a record."""
    return validated(DataRecord, asdict(identity), "of the data")


def to_text(identity: DataIdentity) -> str:
    """Serialise an identity for a checkpoint; text, because torch may reject some class names."""
    return json.dumps(asdict(identity))


def from_checkpoint(content: object, path: object) -> DataIdentity | None:
    """Return the data identity stored in a checkpoint; None if there is none.

    Args:
        content: Result of `load_torch`.
        path: Path of the checkpoint, for error messages.

    Raises:
        FileFormatError: The stored text is not a valid record.
    """
    said = content.get(KEY) if isinstance(content, Mapping) else None
    if not isinstance(said, str):
        return None
    try:
        record = json.loads(said)
    except (ValueError, RecursionError) as error:
        raise FileFormatError(f"Expected {path} to record its training data, but {error}") from error
    return validated(DataRecord, record, f"in what {path} was trained on").identity
