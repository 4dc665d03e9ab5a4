"""Digests of labels, files and images, for `DataIdentity`."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from tllm_plugin.core.data_identity import DataPart
from tllm_plugin.core.errors import DataError

# Number of files whose sizes one thread reads at a time; each takes a millisecond on a network file system.
_FILES_PER_TASK = 4096
_THREADS = 16
# Number of images that are copied at a time if their memory layout is not the digested one.
_ROWS_TOGETHER = 4096


def part_of(
    labels: Tensor, num_classes: int, *, files: Sequence[str] = (), images: Tensor | np.ndarray | None = None
) -> DataPart:
    """Return the record of one part of a data set.

    Args:
        labels: (N,) int64 on the CPU.
        num_classes: C.
        files: One file per label; empty if images have no files.
        images: (N, H, W, C) images on the CPU; None if they are not in memory.

    Raises:
        DataError: A file is missing.
    """
    return DataPart(
        counts=tuple(torch.bincount(labels, minlength=num_classes).tolist()),
        labels=_digest_of_array(labels.numpy()),
        files=_digest_of_files(files) if files else "",
        contents="" if images is None else _digest_of_array(np.asarray(images)),
    )


def _digest_of_array(array: np.ndarray) -> str:
    digest = hashlib.sha256(f"{array.dtype.str} {array.shape}\n".encode())
    for start in range(0, len(array), _ROWS_TOGETHER):
        digest.update(np.ascontiguousarray(array[start : start + _ROWS_TOGETHER]).data)
    return digest.hexdigest()


def _digest_of_files(files: Sequence[str]) -> str:
    # The common prefix of the first and last path in order is common to all.
    root = os.path.commonpath([os.path.dirname(min(files)), os.path.dirname(max(files))])
    digest = hashlib.sha256()
    for file, size in zip(files, _sizes(files), strict=True):
        name = os.path.relpath(file, root) if not file.startswith(root) else file[len(root) :].lstrip(os.sep)
        digest.update(os.fsencode(name.replace(os.sep, "/")) + b"\0%d\n" % size)
    return digest.hexdigest()


def _sizes(files: Sequence[str]) -> list[int]:
    def ask(start: int) -> list[int]:
        return [os.path.getsize(file) for file in files[start : start + _FILES_PER_TASK]]

    try:
        with ThreadPoolExecutor(_THREADS) as pool:
            return [size for sizes in pool.map(ask, range(0, len(files), _FILES_PER_TASK)) for size in sizes]
    except OSError as error:
        raise DataError(f"Expected `{error.filename}` to be an image, but {error.strerror}") from error
