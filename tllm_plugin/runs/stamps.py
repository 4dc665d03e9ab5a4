"""Stamp JSON files with their kind, their schema version and a digest of their content."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

#: Key of the digest. Files of earlier versions have none.
DIGEST = "digest"


def schema_of(kind: str) -> str:
    """Return the value of `schema` in files of this kind.

    >>> schema_of("flags")
    'tllm/flags'
    """
    return f"tllm/{kind}"


def stamped(kind: str, version: int, content: Mapping[str, Any]) -> dict[str, Any]:
    """Add kind, schema version and digest to `content`, ready for `write_json`.

    Raises:
        TypeError: `content` contains a value that JSON cannot represent.
    """
    whole = {"schema": schema_of(kind), "version": version, **content}
    return {**whole, DIGEST: json_digest(whole)}


def json_digest(content: Mapping[str, Any]) -> str:
    """Return the SHA-256 of JSON values with keys in order; independent of white space and line ends.

    >>> json_digest({"epochs": 240}) == json_digest({"epochs": 240})
    True
    >>> json_digest({"epochs": 240}) == json_digest({"epochs": 24})
    False
    """
    text = json.dumps({key: value for key, value in content.items() if key != DIGEST}, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
