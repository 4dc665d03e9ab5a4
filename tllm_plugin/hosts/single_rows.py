"""A host's training loader without a last batch of one row, which many a BatchNorm cannot be trained on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch.utils.data import BatchSampler, DataLoader


class _Merged(BatchSampler):
    """The batches of a sampler, a single row at the end being put into the batch before it."""

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
    """Return a loader with its rows in the same order, a single row at the end being put into the batch before it.

    Args:
        loader: With a batch size; it is changed if such a row is left over.
    """
    size, rows = loader.batch_size, len(loader.sampler)  # type: ignore[arg-type]
    if size is not None and rows > size > 1 and rows % size == 1 and not loader.drop_last:
        # PyTorch forbids to set it after the loader is made, and to have it beside a batch size, which hosts read.
        object.__setattr__(loader, "batch_sampler", _Merged(loader.batch_sampler))  # type: ignore[arg-type]
    return loader
