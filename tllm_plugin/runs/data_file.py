"""`data.json`: what a run was trained on. Checkpoints carry the same as one text."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict

from pydantic import model_validator
from pydantic.dataclasses import dataclass

from tllm_plugin.core.data_identity import DataIdentity, DataPart
from tllm_plugin.core.errors import FileFormatError
from tllm_plugin.runs.records import Count, Inconsistent, List, Number, Record, Text, validated

#: Under what a checkpoint holds the text.
KEY = "data"


@dataclass(frozen=True)
class _Part:
    counts: List[Count]
    labels: Text
    files: Text
    contents: Text


@dataclass(frozen=True)
class DataRecord(Record):
    """A `DataIdentity` with the types that its file has to have."""

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
    """Return the record of a data set."""
    return validated(DataRecord, asdict(identity), "of the data")


def to_text(identity: DataIdentity) -> str:
    """Return what a checkpoint holds under `KEY`: text, as a class name may be something that torch refuses."""
    return json.dumps(asdict(identity))


def from_checkpoint(content: object, path: object) -> DataIdentity | None:
    """Return what a checkpoint's content says of its data; None where it says nothing.

    Args:
        content: What `load_torch` returned.
        path: Of the file, for the error.

    Raises:
        FileFormatError: It says something that is not such a record.
    """
    said = content.get(KEY) if isinstance(content, Mapping) else None
    if not isinstance(said, str):
        return None
    try:
        record = json.loads(said)
    except (ValueError, RecursionError) as error:
        raise FileFormatError(f"Expected {path} to say what it was trained on, but {error}") from error
    return validated(DataRecord, record, f"in what {path} was trained on").identity
