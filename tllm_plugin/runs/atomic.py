"""Write files atomically: a file holds either its old or its new content, whatever happens."""

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
        path: Created if it is missing.

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
    """Write `data` atomically; see `atomic_writer` for what is raised."""
    with atomic_writer(path) as file:
        file.write(data)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write `text` as UTF-8, atomically; see `atomic_writer` for what is raised.

    Surrogates that stand for non-UTF-8 bytes of file names are written as these bytes.
    """
    write_bytes(path, text.encode("utf-8", "surrogateescape"))


def write_json(path: str | os.PathLike[str], obj: object) -> None:
    """Write `obj` as JSON, atomically, with the keys in their order; see `atomic_writer` for what else is raised.

    A key of the outermost object has a line of its own, and so has an object in a list below it: lines are what people
    read and compare, and the encoder that indents everything takes a second for 20,000 classes.

    Raises:
        ValueError: `obj` contains NaN or infinity, which JSON cannot represent. The caller must choose a replacement
            (null, a string); silently writing null would lose the distinction.
        TypeError: `obj` contains a value of a type that JSON cannot represent.
    """
    try:
        # ASCII only: class names taken from folders may hold bytes that are not UTF-8 and would fail to encode.
        text = _lines(obj)
    except ValueError as error:
        raise ValueError(f"Expected what is written to {path} to be finite, but got: {error}") from error
    write_text(path, text + "\n")


def _lines(obj: object) -> str:
    if not isinstance(obj, dict):
        return json.dumps(obj, allow_nan=False)
    # Each key as one of an object, so that keys that are no strings become what `json` makes of them.
    entries = [f"  {json.dumps({key: 0})[1:-2]}{_value(value)}" for key, value in obj.items()]
    return "{\n" + ",\n".join(entries) + "\n}" if entries else "{}"


def _value(value: object) -> str:
    if not (isinstance(value, (list, tuple)) and value and all(isinstance(item, dict) for item in value)):
        return json.dumps(value, allow_nan=False)
    items = [f"    {json.dumps(item, allow_nan=False)}" for item in value]
    return "[\n" + ",\n".join(items) + "\n  ]"


def write_npz(path: str | os.PathLike[str], /, **arrays: ArrayLike) -> None:
    """Write arrays as an uncompressed `.npz` with a digest, atomically; see `atomic_writer` for what else is raised.

    Unlike `numpy.savez` it takes every name, writes equal bytes for equal arrays, and refuses objects.

    Raises:
        ValueError: An array holds Python objects, which only a pickle could store.
    """
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, array in arrays.items():
            # A ZipInfo made from the name alone carries no time of day, so that equal runs give equal files.
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asanyarray(array), allow_pickle=False)
    seal(buffer)
    write_bytes(path, buffer.getbuffer())


def save_torch(path: str | os.PathLike[str], obj: object) -> None:
    """Write `obj` with `torch.save` and a digest that it ignores, atomically; see `atomic_writer` for what is raised.

    It is serialised in memory first: when a write fails under `torch.save`, its C++ archive writer replaces the cause
    ("No space left on device") by an internal error of its own.
    """
    buffer = io.BytesIO()
    with _checksums():
        torch.save(obj, buffer)
    seal(buffer)
    write_bytes(path, buffer.getbuffer())


@contextmanager
def _checksums() -> Iterator[None]:
    """Let `torch.save` compute the CRCs of its entries for the duration of the block, whatever the process has set."""
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

    Since every writer here replaces files instead of changing them, either name keeps its content when the other gets
    a new one. See `atomic_writer` for what is raised.
    """
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}{_TEMPORARY}")
    try:
        os.link(source, temporary)
    except OSError:  # A file system without links.
        write_bytes(target, Path(source).read_bytes())
        return
    try:
        os.replace(temporary, target)
    except OSError as error:
        cause = error.strerror or str(error)
        raise TLLMError(f"Cannot write {target}: {cause}; what was there before is unchanged") from error
    finally:
        # Renaming one name of a file to another one of the same file does nothing and leaves both.
        with suppress(OSError):
            temporary.unlink()
    _flush_folder(target)


def remove_temporaries(folder: str | os.PathLike[str]) -> None:
    """Remove temporary files of killed writers from `folder`; only for the process that owns the run in it."""
    for leftover in Path(folder).glob(f".*{_TEMPORARY}"):
        with suppress(OSError):
            leftover.unlink()


def _flush_folder(target: Path) -> None:
    """Flush the folder so that the rename is durable; failure is not an error, since the new content is in place."""
    if os.name == "nt":  # Windows opens no folders.
        return
    try:
        descriptor = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        _logger.warning("%s is written, but a power cut could still undo that: %s", target, error)
