"""Which rows and batches belong to one of several processes that read the same data together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from tllm_plugin.core.errors import ConfigError


@dataclass(frozen=True)
class Shard:
    """One of several equal readers of a data set.

    Args:
        number: Counted from 0.
        count: How many readers there are, at least 1.

    Raises:
        ConfigError: There is no such reader.
    """

    number: int = 0
    count: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.number < self.count:
            raise ConfigError(f"Expected `number` to be from 0 to {self.count - 1}, but got {self.number}")

    def rows_of(self, batches: Sequence[Tensor]) -> list[Tensor]:
        """Return this reader's rows of every batch: a run of them, as long as the others' or one row longer.

        >>> import torch
        >>> [Shard(number, 2).rows_of([torch.arange(5)])[0].tolist() for number in range(2)]
        [[0, 1, 2], [3, 4]]
        """
        return [batch.tensor_split(self.count)[self.number] for batch in batches]

    def batches_of(self, batches: Sequence[Tensor]) -> list[Tensor]:
        """Return this reader's batches, every `count`-th of them: an image stays in the batch that it is in alone."""
        return list(batches[self.number :: self.count])


#: The only reader.
WHOLE = Shard()
