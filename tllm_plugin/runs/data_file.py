"""`data.json`: what a run was trained on. Checkpoints carry the same as one text."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from tllm_plugin.core.data_identity import DataIdentity, DataPart
from tllm_plugin.core.errors import FileFormatError
from tllm_plugin.runs.fields import FieldError, count, field, list_of, number, text

KIND = "data"
VERSION = 1
#: Under what a checkpoint holds the text.
KEY = "data"


def to_json(identity: DataIdentity) -> dict[str, Any]:
    """Return the fields as JSON values."""
    return asdict(identity)


def from_json(obj: object) -> DataIdentity:
    """Rebuild a record from what `to_json` returned.

    Raises:
        FieldError: A field is missing or of the wrong type, or numbers contradict each other.
    """
    record = DataIdentity(
        class_names=field(obj, "class_names", list_of(text)),
        train=field(obj, "train", _part),
        test=field(obj, "test", _part),
        image_size=field(obj, "image_size", count),
        mean=field(obj, "mean", list_of(number)),
        std=field(obj, "std", list_of(number)),
        class_folders=field(obj, "class_folders", list_of(text)),
    )
    for name, part in (("train", record.train), ("test", record.test)):
        if part.counts and len(part.counts) != len(record.class_names):
            raise FieldError(f"of {len(record.class_names)} classes", f"{len(part.counts)}", f"{name}.counts")
    if record.class_folders and len(record.class_folders) != len(record.class_names):
        raise FieldError(f"of {len(record.class_names)} classes", f"{len(record.class_folders)}", "class_folders")
    if len(record.mean) != len(record.std):
        raise FieldError(f"of {len(record.mean)} channels", f"{len(record.std)}", "std")
    if any(value <= 0 for value in record.std):
        raise FieldError("more than 0", repr(min(record.std)), "std")
    return record


def to_text(identity: DataIdentity) -> str:
    """Return what a checkpoint holds under `KEY`: text, as a class name may be something that torch refuses."""
    return json.dumps(to_json(identity))


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
        return from_json(json.loads(said))
    except (ValueError, RecursionError) as error:
        raise FileFormatError(f"Expected {path} to say what it was trained on, but {error}") from error
    except FieldError as error:
        raise FileFormatError(f"{error} in what {path} was trained on; run again what wrote it") from None


def _part(obj: object) -> DataPart:
    return DataPart(
        counts=field(obj, "counts", list_of(count)),
        labels=field(obj, "labels", text),
        files=field(obj, "files", text),
        contents=field(obj, "contents", text),
    )
