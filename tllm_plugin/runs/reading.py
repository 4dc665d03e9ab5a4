"""Read files that may be missing, damaged, foreign, too new or malicious; each problem is a clear `FileFormatError`.

The package reads all files of runs through this module. Digests are verified before content is used, only regular
files are opened, and declared sizes are checked before memory is allocated.
"""

from __future__ import annotations

import argparse
import errno
import io
import json
import logging
import math
import os
import stat
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, BinaryIO, NoReturn

import numpy as np
import torch

from tllm_plugin.core.errors import FileFormatError
from tllm_plugin.runs.archives import check_archive, is_archive
from tllm_plugin.runs.stamps import DIGEST, json_digest, schema_of

_logger = logging.getLogger(__name__)

_RUN_AGAIN = "restore it from a copy, or run again what wrote it"
# Ten times the records of 20,000 classes; Python objects need up to twenty times as much memory.
_MOST_TEXT_BYTES = 2**27
_SUFFIX = ".npy"


def open_file(path: str | os.PathLike[str], what: str) -> BinaryIO:
    """Open a regular file or a link to one; pipes and devices could block or never end.

    Args:
        path: Path of the file.
        what: Description of the expected file with its article, for error messages.

    Raises:
        FileFormatError: The file is missing, not a regular file, or not readable.
    """
    path = Path(path)
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, "pipes, sockets and devices are not read")
        return path.open("rb")
    except (OSError, ValueError) as error:  # ValueError is raised for a NUL character in the path.
        _refuse_unreadable(path, what, error)


def read_text(path: str | os.PathLike[str], what: str) -> str:
    """Read a file of UTF-8 text.

    Raises:
        FileFormatError: The file is missing, too large, or not UTF-8 text.
    """
    path = Path(path)
    with _refusing(path, what):
        return _read_bytes(path, what).decode()


def read_json(path: str | os.PathLike[str], kind: str, version: int) -> dict[str, Any]:
    """Read a JSON object with `"schema": "tllm/<kind>"` and `"version": <version>`.

    Raises:
        FileFormatError: The file is missing, truncated, of another kind or schema version, or does not match its digest
            (files of earlier versions have none).
    """
    path, what = Path(path), f"a TLLM {kind} file"
    with _refusing(path, what):
        content = json.loads(_read_bytes(path, what), parse_constant=_refuse_constant)
    stamp = content if isinstance(content, dict) else {}
    _check_stamp(path, kind, version, stamp.get("schema"), stamp.get("version"))
    if DIGEST in stamp and stamp[DIGEST] != json_digest(stamp):
        raise FileFormatError(
            f"Expected {path} to be {what}, but its content does not match its digest: it is damaged or was edited; "
            f"{_RUN_AGAIN}, or remove its `{DIGEST}` if you have edited it"
        )
    return {name: value for name, value in stamp.items() if name != DIGEST}


def read_npz(path: str | os.PathLike[str], kind: str, version: int) -> dict[str, np.ndarray]:
    """Read an `.npz` with the 0-d arrays `schema` (`tllm/<kind>`) and `version`; return the other arrays.

    Raises:
        FileFormatError: The file is missing, truncated, of another kind or schema version, or contains a pickle.
    """
    path, what = Path(path), f"a TLLM {kind} file"
    with _refusing(path, what), open_file(path, what) as file:
        check_archive(file)
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
            stamp = [f"{name}{_SUFFIX}" for name in ("schema", "version")]
            found = [_scalar(_read_array(archive, name)) if name in names else None for name in stamp]
            _check_stamp(path, kind, version, *found)
            arrays = {name: _read_array(archive, name) for name in names if name not in stamp}
    return {name.removesuffix(_SUFFIX): array for name, array in arrays.items()}


def read_arrays(path: str | os.PathLike[str], what: str) -> dict[str, np.ndarray]:
    """Read all arrays of an `.npz` of any program.

    Raises:
        FileFormatError: It is missing, truncated, no such file, or holds a pickle.
    """
    path = Path(path)
    with _refusing(path, what), open_file(path, what) as file:
        check_archive(file)
        with zipfile.ZipFile(file) as archive:
            return {name.removesuffix(_SUFFIX): _read_array(archive, name) for name in archive.namelist()}


def _read_array(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    """Return an array of a checked `.npz`; its shape is compared with its size in bytes before memory is allocated."""
    if not name.endswith(_SUFFIX):
        raise ValueError(f"`{name}` is not an array")
    data = io.BytesIO(archive.read(name))
    read_header = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }.get(np.lib.format.read_magic(data))
    if read_header is None:
        raise ValueError(f"`{name}` is of an unknown format")
    shape, _, dtype = read_header(data)
    size = len(data.getbuffer()) - data.tell()
    if not dtype.hasobject and (dtype.itemsize == 0 or math.prod(shape) * dtype.itemsize != size):
        raise ValueError(f"`{name}` is declared as {dtype} of shape {shape} but has {size} bytes")
    data.seek(0)
    array: np.ndarray = np.lib.format.read_array(data, allow_pickle=False)
    return array


def load_torch(path: str | os.PathLike[str], what: str) -> object:
    """Read a file of `torch.save` onto the CPU without executing code from it.

    Args:
        what: Description of the expected file with its article, for error messages: "a teacher checkpoint".

    Raises:
        FileFormatError: The file is missing, damaged, not a file of `torch.save`, or contains objects other than
            tensors and plain values, which could execute code. Damage is detected in all archives, also of hosts; for
            the format of PyTorch before 1.6, which has no checksums, a warning is logged.
    """
    path = Path(path)
    with _refusing(path, what), open_file(path, what) as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Suppress torch's warnings about pickles; the error below is more helpful.
        checked = is_archive(file)
        if checked:
            check_archive(file)
        file.seek(0)
        try:
            # Scripts put their parsed options beside the weights; a Namespace does nothing but hold values.
            with torch.serialization.safe_globals([argparse.Namespace]):
                content: object = torch.load(file, map_location="cpu", weights_only=True)
        except UnpicklingError as error:
            raise FileFormatError(
                f"Expected {path} to be {what}, but it is damaged or holds more than tensors and plain values, which "
                "is refused because it could run code; save the state dict alone, or name another file"
            ) from error
    if not checked:
        _logger.warning(
            "%s is in the format of PyTorch before 1.6, which has no checksums, so that damage to it goes unnoticed; "
            "torch.save writes it anew with them",
            path,
        )
    return content


def check_torch(path: str | os.PathLike[str], what: str) -> None:
    """Check a file of `torch.save` that a host will load itself; see `load_torch`.

    Raises:
        FileFormatError: The file is missing or does not match its checksums.
    """
    path = Path(path)
    with _refusing(path, what), open_file(path, what) as file:
        if is_archive(file):
            check_archive(file)


@contextmanager
def _refusing(path: Path, what: str) -> Iterator[None]:
    """Convert all errors of reading a file to `FileFormatError`.

    For damaged files, zipfile, zlib, NumPy and PyTorch raise many unrelated types, hence `Exception`.
    """
    try:
        yield
    except FileFormatError:
        raise
    except OSError as error:
        _refuse_unreadable(path, what, error)
    except Exception as error:
        _refuse_damaged(path, what, error)


def _read_bytes(path: Path, what: str) -> bytes:
    with _refusing(path, what), open_file(path, what) as file:
        data = file.read(_MOST_TEXT_BYTES + 1)
    if len(data) > _MOST_TEXT_BYTES:
        _refuse_damaged(path, what, f"it has more than {_MOST_TEXT_BYTES} bytes")
    return data


def _check_stamp(path: Path, kind: str, version: int, schema: object, found: object) -> None:
    expected = f"Expected {path} to be a TLLM {kind} file"
    if schema != schema_of(kind):
        got = "it has no TLLM schema" if schema is None else f"its schema is {schema!r}"
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


def _scalar(array: np.ndarray) -> object:
    return array.item() if array.ndim == 0 else None


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
