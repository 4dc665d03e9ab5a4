"""Avoid a last batch of one row in a host's training loader, on which some BatchNorms cannot be trained."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch.utils.data import BatchSampler, DataLoader


class _Merged(BatchSampler):
    """Batch sampler that appends a single remaining row to the batch before it."""

    def __init__(self, batches: BatchSampler) -> None:
        super().__init__(batches.sampler, batches.batch_size, batches.drop_last)

    def __len__(self) -> int:
        return super().__len__() - 1

    def __iter__(self) -> Iterator[list[int]]:
        before: list[int] = []
        for batch in super().__iter__():
            if len(batch) == 1:
                before = before + batch
            else:
                if before:
                    yield before
                before = batch
        yield before


def without_single_row(loader: DataLoader[Any]) -> DataLoader[Any]:
    """Return a loader with the same rows, in which a single remaining row is appended to the batch before it.

    Args:
        loader: Loader with a batch size; changed in place if a single row remains.
    """
    size, rows = loader.batch_size, len(loader.sampler)  # type: ignore[arg-type]
    if size is not None and rows > size > 1 and rows % size == 1 and not loader.drop_last:
        # PyTorch forbids setting it on an existing loader, and together with the batch size, which hosts read.
        object.__setattr__(loader, "batch_sampler", _Merged(loader.batch_sampler))  # type: ignore[arg-type]
    return loader
