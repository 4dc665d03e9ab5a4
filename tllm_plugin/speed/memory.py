"""Remember a teacher's logits of the images that it has been shown, in a file that all runs with this teacher share.

An image is known by a hash of its pixels as the teacher receives them. So it does not matter which host augments it and
how, and an image set that has changed is simply not known. Every record carries a check of its content: what is damaged
or half-written counts as not known.
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

logger = logging.getLogger(__name__)

_HEADER_BYTES = 4096
_VERSION = 1
#: Records that one hash may go to.
_BUCKET = 8
_SEED = 0x7E11
_LARGEST = float(np.finfo(np.float16).max)


def image_hashes(images: Tensor) -> np.ndarray:
    """Return two 64-bit hashes of each image of (n, ...) float32: (n, 2) uint64, the first never 0.

    Sums of the 32-bit words times random odd numbers, modulo 2**64: exact, so that neither the device nor the batch
    matters.
    """
    words = images.detach().contiguous().flatten(1).view(torch.int32).to(torch.int64)
    generator = torch.Generator().manual_seed(_SEED)
    factors = torch.randint(-(2**63), 2**63 - 1, (2, words.shape[1]), generator=generator).to(words.device) | 1
    found = torch.stack([(words * factor).sum(1) for factor in factors], 1).cpu().numpy().view(np.uint64)
    found[:, 0] |= np.uint64(found[:, 0] == 0)
    return found


class TeacherMemory:
    """Logits of a teacher, as float16, in one file of records; reads and writes go by `pread` and `pwrite`.

    Args:
        path: The file. It is created if there is none, and replaced if it is damaged or of another teacher.
        digest: Of the teacher and of the kind of its forward pass.
        classes: C.
        limit_bytes: Size that a new file may grow to.

    Raises:
        OSError: The file can be neither read nor created.
    """

    def __init__(self, path: Path, digest: str, classes: int, limit_bytes: int) -> None:
        self.path = path
        padded = -(-classes // 4) * 4
        self._record = np.dtype([("key", "<u8"), ("check", "<u8"), ("values", "<f2", (padded,))])
        self._bucket_bytes = self._record.itemsize * _BUCKET
        self.classes = classes
        #: Rows that were looked up, and rows that were known.
        self.asked = self.known = 0
        self._full = False
        header = {"teacher": digest, "classes": classes, "version": _VERSION}
        buckets = max(1, (limit_bytes - _HEADER_BYTES) // self._bucket_bytes)
        self._buckets = self._open(header, buckets)

    def answers(self, images: Tensor, ask: Callable[[Tensor], Tensor]) -> Tensor:
        """Return the teacher's logits, rounded to float16, whether they are known or not.

        Args:
            images: (n, ...) float32.
            ask: Returns the teacher's logits (m, C) of some of the images.

        Returns:
            (n, C) float32 on the device of the images.
        """
        hashes = image_hashes(images)
        values, known, places = self._look_up(hashes)
        self.asked += len(known)
        self.known += int(known.sum())
        if known.all():
            return torch.from_numpy(values.astype(np.float32)).to(images.device)
        missing = np.flatnonzero(~known)
        rows = torch.from_numpy(missing).to(images.device)
        if len(missing) == 1:  # A compiled teacher would be compiled once more for a single row.
            rows = rows.expand(2)
        shown = images if len(missing) == len(known) > 1 else images.index_select(0, rows)
        logits = ask(shown).detach()[: len(missing)]
        exact = logits.float().cpu().numpy()
        fits = np.isfinite(exact).all(1) & (np.abs(exact) <= _LARGEST).all(1)
        rounded = np.where(fits[:, None], exact, 0).astype(np.float16)
        self._store(hashes[missing[fits]], rounded[fits], places[missing[fits]])
        full = values.astype(np.float32)
        full[missing] = np.where(fits[:, None], rounded.astype(np.float32), exact)
        return torch.from_numpy(full).to(images.device)

    def _look_up(self, hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return values (n, C) float16, which of them are known, and where each is or can be stored (-1: nowhere)."""
        buckets = (hashes[:, 0] >> np.uint64(8)) % np.uint64(self._buckets)
        read = b"".join(self._read_bucket(int(bucket)) for bucket in buckets)
        records = np.frombuffer(read, self._record).reshape(len(hashes), _BUCKET)
        same = records["key"] == hashes[:, :1]
        free = records["key"] == 0
        slot = np.where(same.any(1), same.argmax(1), np.where(free.any(1), free.argmax(1), -1))
        rows = np.arange(len(hashes))
        values = records["values"][rows, slot]
        known = same.any(1) & (records["check"][rows, slot] == self._checks(hashes, values))
        places = np.where(slot < 0, -1, buckets.astype(np.int64) * _BUCKET + slot)
        return values[:, : self.classes].copy(), known, places

    def _read_bucket(self, bucket: int) -> bytes:
        read = os.pread(self._file, self._bucket_bytes, _HEADER_BYTES + bucket * self._bucket_bytes)
        return read.ljust(self._bucket_bytes, b"\0")

    def _checks(self, hashes: np.ndarray, values: np.ndarray) -> np.ndarray:
        """Return what ties values (n, padded) to an image: its second hash, and a hash of the values."""
        words = np.ascontiguousarray(values).view("<u8").reshape(len(values), -1)
        factors = np.random.default_rng(_SEED).integers(0, 2**64, words.shape[1], dtype=np.uint64) | np.uint64(1)
        return hashes[:, 1] ^ (words * factors).sum(1, dtype=np.uint64)

    def _store(self, hashes: np.ndarray, values: np.ndarray, places: np.ndarray) -> None:
        if self._full or not len(values):
            return
        records = np.zeros(len(values), self._record)
        records["key"] = hashes[:, 0]
        records["values"][:, : self.classes] = values
        records["check"] = self._checks(hashes, records["values"])
        try:
            for record, place in zip(records, places.tolist(), strict=True):
                if place >= 0:
                    os.pwrite(self._file, record.tobytes(), _HEADER_BYTES + place * self._record.itemsize)
        except OSError as error:
            self._full = True
            logger.warning("speed: no more of the teacher's answers are remembered: %s: %s", self.path, error.strerror)

    def _open(self, header: dict[str, object], buckets: int) -> int:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.exists():
            self._file = os.open(self.path, os.O_RDWR)
            found = self._header()
            if found is not None and {name: found.get(name) for name in header} == header:
                return int(found["buckets"])
            os.close(self._file)
            logger.warning("speed: %s is damaged or of another teacher; its answers are asked for again", self.path)
        text = json.dumps({**header, "buckets": buckets})
        number, temporary = tempfile.mkstemp(dir=self.path.parent, prefix=f".{self.path.name}-")
        try:
            os.write(number, text.encode().ljust(_HEADER_BYTES, b" "))
            os.replace(temporary, self.path)
        except OSError:
            os.close(number)
            os.unlink(temporary)
            raise
        self._file = number
        return buckets

    def _header(self) -> dict[str, int] | None:
        try:
            found = json.loads(os.pread(self._file, _HEADER_BYTES, 0))
        except ValueError:
            return None
        valid = isinstance(found, dict) and type(found.get("buckets")) is int and found["buckets"] > 0
        return found if valid else None

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            os.close(self._file)


@dataclass(frozen=True)
class MemoryPlace:
    """Where the answers of teachers are remembered.

    Args:
        folder: Folder of the files, one for each teacher and kind of its forward pass.
        limit_bytes: Size that a file may grow to.
    """

    folder: Path
    limit_bytes: int

    def open(self, digest: str, classes: int) -> TeacherMemory | None:
        """Open the memory of a teacher; log why and return None if that is not possible."""
        path = self.folder / f"answers-{digest[:16]}.bin"
        try:
            memory = TeacherMemory(path, digest, classes, self.limit_bytes)
        except OSError as error:
            logger.warning("speed: the teacher's answers are not remembered: %s: %s", path, error.strerror)
            return None
        logger.info("speed: the teacher's answers are remembered in %s", path)
        return memory
