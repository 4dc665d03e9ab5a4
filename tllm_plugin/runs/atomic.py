"""Write files atomically: a file always holds either its old or its new content."""

from __future__ import annotations

import io
import json
import logging
import os
import secrets
import stat
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import torch
from numpy.typing import ArrayLike

from tllm_plugin.core.errors import TLLMError
from tllm_plugin.runs.archives import seal

_logger = logging.getLogger(__name__)

_TEMPORARY = ".tllm-tmp"


@contextmanager
def atomic_writer(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Open a temporary file that replaces `path` when the block ends, and is removed if the block fails.

    The content goes to a temporary file in the same folder, is flushed to disk and renamed. A killed process leaves the
    temporary file behind; `remove_temporaries` removes it. Pipes and devices, such as /dev/stdout, are written to
    directly.

    Raises:
        TLLMError: The system failed to write (full disk, missing folder, no permission); `path` is unchanged. Other
            exceptions of the block pass through.
    """
    target = Path(path)
    if _is_stream(target):
        with Appending(target) as stream:
            yield cast(BinaryIO, stream)
        return
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}{_TEMPORARY}")
    try:
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError):
            cause = error.strerror or str(error)
            raise TLLMError(f"Cannot write {target}: {cause}; what was there before is unchanged") from error
        raise
    _flush_folder(target)


class Appending(io.RawIOBase):
    """Unbuffered file opened for appending: each call writes all of its data or raises.

    Args:
        path: Path of the file, which is created if it is missing.

    Raises:
        TLLMError: The system failed to write; a part of the data may be in the file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with self._named():
            self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666)

    def write(self, data: Any) -> int:
        """Write all of `data`."""
        left = memoryview(data).cast("B")
        size = len(left)
        with self._named():
            while left:
                left = left[os.write(self._descriptor, left) :]
        return size

    def fileno(self) -> int:
        """Return the descriptor."""
        return self._descriptor

    def writable(self) -> bool:
        """Return True."""
        return True

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        if not self.closed and hasattr(self, "_descriptor"):
            with self._named():
                os.close(self._descriptor)
        super().close()

    @contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise TLLMError(f"Cannot write {self._path}: {error.strerror or error}") from error


def append_text(path: str | os.PathLike[str], text: str) -> None:
    """Add `text` to a file as UTF-8.

    Raises:
        TLLMError: The system failed to write. The file is restored to its previous content if possible.
    """
    with Appending(Path(path)) as file:
        size = os.fstat(file.fileno()).st_size
        try:
            file.write(text.encode("utf-8", "surrogateescape"))
        except TLLMError:
            with suppress(OSError):
                os.truncate(path, size)
            raise


def _is_stream(path: Path) -> bool:
    try:
        mode = path.stat().st_mode
    except OSError:
        return False
    return stat.S_ISCHR(mode) or stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)


def write_bytes(path: str | os.PathLike[str], data: bytes | memoryview) -> None:
    """Write `data` atomically; see `atomic_writer` for the errors that are raised."""
    with atomic_writer(path) as file:
        file.write(data)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write `text` as UTF-8 atomically; see `atomic_writer` for the errors that are raised.

    Surrogates that stand for non-UTF-8 bytes of file names are written as these bytes.
    """
    write_bytes(path, text.encode("utf-8", "surrogateescape"))


def write_json(path: str | os.PathLike[str], obj: object) -> None:
    """Write `obj` as JSON atomically, with keys in their order; see `atomic_writer` for further errors.

    Each key of the outermost object, and each object in a list below it, is on its own line, which is readable and
    faster than full indentation (a second for 20,000 classes).

    Raises:
        ValueError: `obj` contains NaN or infinity, which JSON cannot represent. The caller must choose a replacement
            (null, a string); silently writing null would lose the distinction.
        TypeError: `obj` contains a value of a type that JSON cannot represent.
    """
    try:
        # ASCII only, because class names from folders may contain bytes that are not UTF-8 and cannot be encoded.
        text = _lines(obj)
    except ValueError as error:
        raise ValueError(f"Expected what is written to {path} to be finite, but got: {error}") from error
    write_text(path, text + "\n")


def _lines(obj: object) -> str:
    if not isinstance(obj, dict):
        return json.dumps(obj, allow_nan=False)
    # Encode each key within an object, so that `json` converts keys that are not strings.
    entries = [f"  {json.dumps({key: 0})[1:-2]}{_value(value)}" for key, value in obj.items()]
    return "{\n" + ",\n".join(entries) + "\n}" if entries else "{}"


def _value(value: object) -> str:
    if not (isinstance(value, (list, tuple)) and value and all(isinstance(item, dict) for item in value)):
        return json.dumps(value, allow_nan=False)
    items = [f"    {json.dumps(item, allow_nan=False)}" for item in value]
    return "[\n" + ",\n".join(items) + "\n  ]"


def write_npz(path: str | os.PathLike[str], /, **arrays: ArrayLike) -> None:
    """Write arrays as an uncompressed `.npz` with a digest, atomically; see `atomic_writer` for further errors.

    Unlike `numpy.savez`, it accepts every name, writes equal bytes for equal arrays, and refuses objects.

    Raises:
        ValueError: An array holds Python objects, which only a pickle could store.
    """
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, array in arrays.items():
            # A ZipInfo created from a name has no time stamp, so that equal arrays give equal files.
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asanyarray(array), allow_pickle=False)
    seal(buffer)
    write_bytes(path, buffer.getbuffer())


def save_torch(path: str | os.PathLike[str], obj: object) -> None:
    """Write `obj` with `torch.save` and a digest atomically; see `atomic_writer` for the errors that are raised.

    The object is serialised in memory first, because the archive writer of `torch.save` would replace the cause of a
    failed write ("No space left on device") by an internal error.
    """
    buffer = io.BytesIO()
    with _checksums():
        torch.save(obj, buffer)
    seal(buffer)
    write_bytes(path, buffer.getbuffer())


@contextmanager
def _checksums() -> Iterator[None]:
    """Make `torch.save` compute CRCs in the block, regardless of the process's settings."""
    wanted = getattr(torch.serialization, "get_crc32_options", lambda: True)()
    if wanted:
        yield
        return
    torch.serialization.set_crc32_options(True)
    try:
        yield
    finally:
        torch.serialization.set_crc32_options(False)


def write_link(path: str | os.PathLike[str], source: str | os.PathLike[str]) -> None:
    """Link `path` to the file `source` atomically; copy if links are impossible, for example between disks.

    All writers replace files instead of changing them, so each name keeps its content if the other is rewritten. See
    `atomic_writer` for the errors that are raised.
    """
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}{_TEMPORARY}")
    try:
        os.link(source, temporary)
    except OSError:  # The file system has no hard links.
        write_bytes(target, Path(source).read_bytes())
        return
    try:
        os.replace(temporary, target)
    except OSError as error:
        cause = error.strerror or str(error)
        raise TLLMError(f"Cannot write {target}: {cause}; what was there before is unchanged") from error
    finally:
        # Renaming between two names of the same file is a no-op and leaves both.
        with suppress(OSError):
            temporary.unlink()
    _flush_folder(target)


def remove_temporaries(folder: str | os.PathLike[str]) -> None:
    """Remove temporary files of killed writers from `folder`; only for the process that owns the run in it."""
    for leftover in Path(folder).glob(f".*{_TEMPORARY}"):
        with suppress(OSError):
            leftover.unlink()


def _flush_folder(target: Path) -> None:
    """Flush the folder so that the rename is durable; a failure is no error, because the new content is in place."""
    if os.name == "nt":  # Windows cannot open folders.
        return
    try:
        descriptor = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        _logger.warning("%s is written, but may be lost in a power cut: %s", target, error)
