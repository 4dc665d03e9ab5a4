"""What a JSON file of ours says of itself: its kind, its schema version, and a digest of everything it holds."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

#: Key of the digest. Files of earlier versions have none.
DIGEST = "digest"


def schema_of(kind: str) -> str:
    """Return the text under `schema` in a file of this kind.

    >>> schema_of("flags")
    'tllm/flags'
    """
    return f"tllm/{kind}"


def stamped(kind: str, version: int, content: Mapping[str, Any]) -> dict[str, Any]:
    """Return `content` between its kind and version and the digest of all of it, ready for `write_json`.

    Raises:
        TypeError: It holds something that JSON has no form for.
    """
    whole = {"schema": schema_of(kind), "version": version, **content}
    return {**whole, DIGEST: json_digest(whole)}


def json_digest(content: Mapping[str, Any]) -> str:
    """Return the SHA-256 of JSON values, keys in their order; white space and line ends of a file do not matter.

    >>> json_digest({"epochs": 240}) == json_digest({"epochs": 240})
    True
    >>> json_digest({"epochs": 240}) == json_digest({"epochs": 24})
    False
    """
    text = json.dumps({key: value for key, value in content.items() if key != DIGEST}, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
