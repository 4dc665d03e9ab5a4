"""Writing so that a file holds either its old or its new content, whatever happens in between."""

from __future__ import annotations

import io
import json
import logging
import os
import secrets
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from numpy.typing import ArrayLike

from tllm_plugin.core.errors import TLLMError
from tllm_plugin.runs.archives import seal

_logger = logging.getLogger(__name__)

_TEMPORARY = ".tllm-tmp"


@contextmanager
def atomic_writer(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Open a file that replaces `path` when the block ends, and vanishes when the block fails.

    The content goes to a temporary file in the same folder, is flushed to the disk and renamed. A process that is
    killed on the way leaves the temporary file behind; `remove_temporaries` clears those away.

    Raises:
        TLLMError: The system refused to write (full disk, missing folder, no permission). `path` is as it was before.
            Any other exception of the block passes through unchanged.
    """
    target = Path(path)
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


def write_bytes(path: str | os.PathLike[str], data: bytes | memoryview) -> None:
    """Write `data` atomically; see `atomic_writer` for what is raised."""
    with atomic_writer(path) as file:
        file.write(data)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write `text` as UTF-8, atomically; see `atomic_writer` for what is raised."""
    write_bytes(path, text.encode())


def write_json(path: str | os.PathLike[str], obj: object) -> None:
    """Write `obj` as JSON, atomically, with the keys in their order; see `atomic_writer` for what else is raised.

    A key of the outermost object has a line of its own, and so has an object in a list below it: lines are what people
    read and compare, and the encoder that indents everything takes a second for 20,000 classes.

    Raises:
        ValueError: It holds a NaN or an infinity, for which JSON has no number. The caller decides what they mean
            (null, a string); silently writing null would lose which of them it was.
        TypeError: It holds something that JSON has no form for.
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
    """Give the file `source` the further name `path`, atomically; a copy where links cannot be, as between disks.

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
    """Remove what writers that were killed left in `folder`. Only for the process that owns the run in it."""
    for leftover in Path(folder).glob(f".*{_TEMPORARY}"):
        with suppress(OSError):
            leftover.unlink()


def _flush_folder(target: Path) -> None:
    """Make the renaming itself durable; not an error where it cannot be done, since the new content is in place."""
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
