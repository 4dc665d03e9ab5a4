"""Assign rows and batches of shared data to ranks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from tllm_plugin.core.errors import ConfigError


@dataclass(frozen=True)
class Shard:
    """Part of a data set that one of several ranks reads.

    Args:
        number: Index of the shard, from 0.
        count: Number of shards, at least 1.

    Raises:
        ConfigError: `number` is not below `count`.
    """

    number: int = 0
    count: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.number < self.count:
            raise ConfigError(f"Expected `number` to be from 0 to {self.count - 1}, but got {self.number}")

    def rows_of(self, batches: Sequence[Tensor]) -> list[Tensor]:
        """Return the rows of this shard in every batch: contiguous, and equally many per shard or one more.

        >>> import torch
        >>> [Shard(number, 2).rows_of([torch.arange(5)])[0].tolist() for number in range(2)]
        [[0, 1, 2], [3, 4]]
        """
        return [batch.tensor_split(self.count)[self.number] for batch in batches]

    def batches_of(self, batches: Sequence[Tensor]) -> list[Tensor]:
        """Return every `count`-th batch, starting with `number`, so that batches are those of a single process."""
        return list(batches[self.number :: self.count])


#: The only reader.
WHOLE = Shard()
