"""Read and write `config.yaml` of a run with a digest, so that a truncated config is detected."""

from __future__ import annotations

import errno
import hashlib
import re
from pathlib import Path

from tllm_plugin.core.errors import FileFormatError
from tllm_plugin.runs.atomic import write_text
from tllm_plugin.runs.reading import read_text

_FIRST_LINE = "# sha256 of the lines below: "
# Last key in files of earlier versions, which have no digest: the last key of the config or of the versions. A host
# may have further nodes after `TLLM`.
_WHOLE = re.compile(r"^(TLLM:\n(?: .*\n)*  TRAINER|versions:\n(?: .*\n)*  python): .+\n", re.MULTILINE)


def write_config(path: Path, text: str) -> None:
    """Write a config with its digest, atomically."""
    write_text(path, f"{_FIRST_LINE}{_digest(text)}\n{text}")


def read_config(path: Path) -> str:
    """Read a config written by `write_config` or by an earlier version.

    Raises:
        FileNotFoundError: The file does not exist.
        FileFormatError: The file cannot be read, is truncated or was changed.
    """
    if not path.exists():
        raise FileNotFoundError(errno.ENOENT, "there is no config of a run", str(path))
    text = read_text(path, "the config of a run")
    first, _, rest = text.partition("\n")
    if first.startswith(_FIRST_LINE):
        if first != f"{_FIRST_LINE}{_digest(rest)}":
            raise FileFormatError(
                f"Expected {path} to be the config of a run, but it lost a part or was changed after it was written; "
                "restore it from a copy, or remove its first line if you changed it on purpose"
            )
        return rest
    if not (text.endswith("\n") and _WHOLE.search(text)):
        raise FileFormatError(
            f"Expected {path} to be the config of a run, but it lost its end: no config of ours ends without a key "
            "`TLLM.TRAINER` or `versions.python`; restore it from a copy"
        )
    return text


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
