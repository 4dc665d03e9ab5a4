"""Reading files that may be missing, truncated, foreign, too new or hostile: each is one clear `FileFormatError`."""

from __future__ import annotations

import io
import json
import os
import warnings
import zipfile
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, NoReturn

import numpy as np
import torch

from tllm_plugin.core.errors import FileFormatError

_RUN_AGAIN = "restore it from a copy, or run again what wrote it"


def schema_of(kind: str) -> str:
    """Return the text under `schema` in a file of this kind.

    >>> schema_of("flags")
    'tllm/flags'
    """
    return f"tllm/{kind}"


def read_json(path: str | os.PathLike[str], kind: str, version: int) -> dict[str, Any]:
    """Read a JSON object that carries `"schema": "tllm/<kind>"` and `"version": <version>`, and return all of it.

    Raises:
        FileFormatError: It is missing, truncated, of another kind, or of another schema version.
    """
    path, what = Path(path), f"a TLLM {kind} file"
    data = _read_bytes(path, what)
    try:
        content = json.loads(data, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        _refuse_damaged(path, what, error)
    stamp = content if isinstance(content, dict) else {}
    _check_stamp(path, kind, version, stamp.get("schema"), stamp.get("version"))
    return dict(stamp)


def read_npz(path: str | os.PathLike[str], kind: str, version: int) -> dict[str, np.ndarray]:
    """Read an `.npz` whose 0-d arrays `schema` and `version` say `tllm/<kind>` and `version`; return the other arrays.

    Raises:
        FileFormatError: It is missing, truncated, of another kind, of another schema version, or holds a pickle.
    """
    path, what = Path(path), f"a TLLM {kind} file"
    data = io.BytesIO(_read_bytes(path, what))
    if not zipfile.is_zipfile(data):
        _refuse_damaged(path, what, "not a complete .npz archive")
    data.seek(0)
    # Damaged bytes make zipfile, zlib and numpy raise a dozen unrelated types, hence `Exception`.
    try:
        archive = np.load(data, allow_pickle=False)
        stamp = {name: archive[name] for name in ("schema", "version") if name in archive.files}
    except Exception as error:
        _refuse_damaged(path, what, error)
    _check_stamp(path, kind, version, *(_scalar(stamp.get(name)) for name in ("schema", "version")))
    try:
        arrays = {name: archive[name] for name in archive.files if name not in stamp}
    except Exception as error:
        _refuse_damaged(path, what, error)
    for name, array in arrays.items():
        if not isinstance(array, np.ndarray):
            _refuse_damaged(path, what, f"`{name}` is not an array")
    return arrays


def load_torch(path: str | os.PathLike[str], what: str) -> object:
    """Read a file of `torch.save` onto the CPU without ever running code from it.

    Args:
        what: What the file should be, with its article, for error messages: "a teacher checkpoint".

    Raises:
        FileFormatError: It is missing, truncated, no such file at all, or holds objects other than tensors and plain
            values, which could run code on loading.
    """
    path = Path(path)
    try:
        with path.open("rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Torch comments on strange pickles; the error below says what to do.
            return torch.load(file, map_location="cpu", weights_only=True)
    except OSError as error:
        _refuse_unreadable(path, what, error)
    except UnpicklingError as error:
        raise FileFormatError(
            f"Expected {path} to be {what}, but it is damaged or holds more than tensors and plain values, which is "
            "refused because it could run code; save the state dict alone, or name another file"
        ) from error
    except Exception as error:  # Damaged bytes surface as whatever the parser trips over.
        _refuse_damaged(path, what, error)


def _read_bytes(path: Path, what: str) -> bytes:
    try:
        return path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a NUL character in the path.
        _refuse_unreadable(path, what, error)


def _check_stamp(path: Path, kind: str, version: int, schema: object, found: object) -> None:
    expected = f"Expected {path} to be a TLLM {kind} file"
    if schema != schema_of(kind):
        got = "it carries no TLLM schema" if schema is None else f"its schema is {schema!r}"
        raise FileFormatError(
            f"{expected} (schema {schema_of(kind)!r}), but {got}; name a file that TLLM wrote as such"
        )
    if isinstance(found, int) and not isinstance(found, bool) and found > version:
        raise FileFormatError(
            f"{expected} of schema version {version}, but it is of version {found}, which a newer TLLM wrote; upgrade "
            "tllm-plugin to read it"
        )
    if isinstance(found, bool) or found != version:
        raise FileFormatError(
            f"{expected} of schema version {version}, but its version is {found!r}, which is unknown; run again what "
            "wrote it"
        )


def _scalar(array: np.ndarray | None) -> object:
    return array.item() if isinstance(array, np.ndarray) and array.ndim == 0 else None


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _refuse_unreadable(path: Path, what: str, error: Exception) -> NoReturn:
    if isinstance(error, FileNotFoundError):
        problem, remedy = "there is no such file", "check the path, or run first what writes it"
    else:
        reason = getattr(error, "strerror", None) or error
        problem, remedy = f"it cannot be read ({reason})", "check the path and its permissions"
    raise FileFormatError(f"Expected {path} to be {what}, but {problem}; {remedy}") from error


def _refuse_damaged(path: Path, what: str, reason: Exception | str) -> NoReturn:
    lines = str(reason).splitlines() or [type(reason).__name__]
    cause = reason if isinstance(reason, Exception) else None
    raise FileFormatError(
        f"Expected {path} to be {what}, but it is truncated, damaged or something else ({lines[0]}); {_RUN_AGAIN}"
    ) from cause
