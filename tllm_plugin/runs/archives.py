"""Detect damage in zip archives of tensors and arrays before any of their content is used.

`torch.save` and `numpy.savez` write uncompressed archives with a CRC-32 of every entry. `torch.load` never compares
them, and NumPy does not for truncated arrays. Names, sizes and the CRCs themselves have no checksum, so our archives
store a SHA-256 of these in the archive's comment, which other readers ignore. Entries are not hashed as well, because
that would increase the time of writing by half and their CRCs detect damage already.
"""

from __future__ import annotations

import hashlib
import io
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator
from typing import BinaryIO

_SEAL = b"tllm sha256 "
_SEAL_BYTES = len(_SEAL) + 64
_IS_SEAL = re.compile(re.escape(_SEAL) + rb"[0-9a-f]{64}")
_ENTRY, _ENTRY_BYTES, _NAME_LENGTHS = b"PK\3\4", 30, struct.Struct("<26xHH")
_END, _END_BYTES, _MOST_COMMENT_BYTES = b"PK\5\6", 22, 2**16 - 1
_IS_FOLDER = 0x10
_CHUNK_BYTES = 2**20


def seal(archive: io.BytesIO) -> None:
    """Add the digest to a complete archive that has no comment."""
    archive.seek(-2, io.SEEK_END)
    archive.write(struct.pack("<H", _SEAL_BYTES))
    end = archive.tell()
    digest = _digest(archive, end, check_entries=False)
    archive.seek(end)
    archive.write(_SEAL + digest)


def is_archive(file: BinaryIO) -> bool:
    """Return whether a file is a zip archive, possibly truncated."""
    file.seek(0)
    return file.read(len(_ENTRY)) == _ENTRY or zipfile.is_zipfile(file)


def check_archive(file: BinaryIO) -> None:
    """Verify the digest and the entries' checksums of an archive in constant memory.

    Archives of other programs or earlier versions have only the CRCs of their entries.

    Raises:
        ValueError, zipfile.BadZipFile: The archive is damaged or compressed.
    """
    end, comment = _end_of(file)
    if comment and not _IS_SEAL.fullmatch(comment):
        raise ValueError("its comment is not a digest")
    digest = _digest(file, end, check_entries=True)
    if comment and _SEAL + digest != comment:
        raise ValueError("its content does not match its digest")


def _end_of(file: BinaryIO) -> tuple[int, bytes]:
    """Return the offset of an archive's comment, and the comment."""
    size = file.seek(0, io.SEEK_END)
    file.seek(max(0, size - _END_BYTES - _MOST_COMMENT_BYTES))
    tail = file.read()
    record = tail.rfind(_END)
    if record < 0 or len(tail) < record + _END_BYTES:
        raise ValueError("not a complete archive")
    (length,) = struct.unpack_from("<20xH", tail, record)
    comment = tail[record + _END_BYTES :]
    if len(comment) != length:
        raise ValueError("its end is not at the recorded position")
    return size - length, comment


def _digest(file: BinaryIO, end: int, *, check_entries: bool) -> bytes:
    """Return the hexadecimal SHA-256 of the bytes before `end` that belong to no entry's content."""
    with zipfile.ZipFile(file) as archive:
        entries = sorted(archive.infolist(), key=lambda entry: entry.header_offset)
    names = [entry.filename for entry in entries]
    if len(set(names)) != len(names):
        raise ValueError("two entries have one name")
    digest, position = hashlib.sha256(), 0
    for entry in entries:
        # Overlapping entries are used by zip bombs.
        if entry.header_offset < position or (position == 0 and entry.header_offset > 0):
            raise ValueError(f"`{entry.filename}` is not where it should be")
        start = _content_of(file, entry)
        stop = start + entry.file_size
        if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size or stop > end:
            raise ValueError(f"`{entry.filename}` is compressed or incomplete")
        if entry.external_attr & _IS_FOLDER:  # PyTorch would leave the tensor uninitialised.
            raise ValueError(f"`{entry.filename}` is marked as a folder")
        for chunk in _chunks(file, position, start):
            digest.update(chunk)
        if check_entries:
            crc = 0
            for chunk in _chunks(file, start, stop):
                crc = zlib.crc32(chunk, crc)
            if crc != entry.CRC:
                raise ValueError(f"the checksum of `{entry.filename}` is wrong")
        position = stop
    for chunk in _chunks(file, position, end):
        digest.update(chunk)
    return digest.hexdigest().encode()


def _content_of(file: BinaryIO, entry: zipfile.ZipInfo) -> int:
    """Return the offset of an entry's content; check that its header agrees with the archive's directory."""
    file.seek(entry.header_offset)
    header = file.read(_ENTRY_BYTES)
    if len(header) < _ENTRY_BYTES or not header.startswith(_ENTRY):
        raise ValueError(f"`{entry.filename}` is not where it should be")
    name, extra = _NAME_LENGTHS.unpack(header)
    if file.read(name) != entry.orig_filename.encode("utf-8" if entry.flag_bits & 0x800 else "cp437"):
        raise ValueError(f"`{entry.filename}` has another name in its header")
    return int(entry.header_offset + _ENTRY_BYTES + name + extra)


def _chunks(file: BinaryIO, start: int, stop: int) -> Iterator[bytes]:
    file.seek(start)
    while start < stop:
        chunk = file.read(min(_CHUNK_BYTES, stop - start))
        if not chunk:
            raise ValueError("it ends too early")
        yield chunk
        start += len(chunk)
