"""Contract and common base of the loaders that a training loop iterates over."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from tllm_plugin.core.errors import ConfigError
from tllm_plugin.data.randomness import derived_generator
from tllm_plugin.data.shards import WHOLE, Shard


class TrainLoader(ABC):
    """Shuffled, augmented batches `(image, target, index)`; each iteration is one epoch.

    `image` is (B, C, H, W) float32, normalised; `target` is (B,) int64; `index` is (B,) int64, the position in the
    whole training set. All three are on the loader's device.

    Order and augmentation of an epoch depend only on the seed, the epoch number and the position in the training set,
    so that iterating twice without `set_epoch` yields the same batches twice. After `restrict`, a loader yields its
    shard's rows of the same batches. A last batch that is too small for all shards, or for BatchNorm, is merged into
    the batch before it.

    Args:
        rows: (N,) int64 on the CPU, positions in the training set; a repeated position is used repeatedly.
        batch_size: Number of images per batch over all shards, at least 1.
        seed: Seed of order and augmentation.

    Attributes:
        num_samples: Number of rows of all shards together.

    Raises:
        ConfigError: There are no rows.
    """

    def __init__(self, rows: Tensor, *, batch_size: int, seed: int) -> None:
        self.num_samples = len(rows)
        self._rows = rows
        self._batch_size = batch_size
        self._seed = seed
        self._epoch = 0
        self._shard = WHOLE
        self._least_rows = 1
        if self.num_samples == 0:
            raise ConfigError("Expected `indices` to name at least one training image, but got none")

    def __len__(self) -> int:
        return len(self.batch_rows)

    @property
    def batch_rows(self) -> list[int]:
        """Number of rows of every batch of an epoch, over all shards."""
        full, rest = divmod(self.num_samples, self._batch_size)
        sizes = [self._batch_size] * full
        if rest:
            if full and rest < self._least_rows:
                sizes[-1] += rest
            else:
                sizes.append(rest)
        return sizes

    def restrict(self, shard: Shard, least_rows: int = 1) -> None:
        """Yield only the rows of one shard from now on.

        Args:
            shard: Shard whose rows to yield.
            least_rows: A last batch with fewer rows per shard is merged into the batch before it.

        Raises:
            ConfigError: A batch has fewer rows than shards.
        """
        self._least_rows = least_rows * shard.count
        smallest = min(self.batch_rows)
        if smallest < shard.count:
            raise ConfigError(
                f"Expected `batch_size` to leave at least {shard.count} rows, one for each process, in every batch, "
                f"but with {self._batch_size} one of {self.num_samples} training images has {smallest}; choose a "
                "larger batch size or fewer processes"
            )
        self._shard = shard

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next iteration; a running iteration is not affected."""
        self._epoch = epoch

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        generator = derived_generator(self._seed, self._epoch, "order")
        sizes = self.batch_rows
        order = torch.randperm(self.num_samples, generator=generator)
        return self._batches(self._shard.rows_of(self._rows[order].split(sizes)), self._epoch)

    @abstractmethod
    def _batches(self, batches: Sequence[Tensor], epoch: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Return batches of these rows in this order, with the augmentation of `epoch`."""


class EvalLoader(ABC):
    """Batches `(image, target)` with the test-time transform, in the order of the rows.

    `image` and `target` are as in `TrainLoader`; without rows there are no batches. After `restrict`, a loader yields
    some of the batches, unchanged.

    Args:
        rows: (N,) int64 on the CPU, positions in the part.
        batch_size: Number of images per batch, at least 1; the last batch may be smaller.

    Attributes:
        num_samples: Number of rows of all shards together.
        shard: Shard whose batches are yielded.
    """

    def __init__(self, rows: Tensor, *, batch_size: int) -> None:
        self.num_samples = len(rows)
        self.shard = WHOLE
        self._rows = rows
        self._batch_size = batch_size

    def __len__(self) -> int:
        return len(self._own(self._rows))

    def restrict(self, shard: Shard) -> None:
        """Yield only the batches of one shard from now on."""
        self.shard = shard

    def gather(self, values: Tensor) -> Tensor:
        """Gather (N, ...) values of all rows from all ranks, in order; every rank must call it with its own values.

        Args:
            values: (n, ...) on the CPU, of any dtype except bool, one per row that this loader yields, in order.
        """
        if self.shard.count == 1:
            return values
        # Each entry is set on one rank and zero on the others, so that the sum is exact for all dtypes.
        everywhere = self.in_place(values)
        dist.all_reduce(everywhere)
        return everywhere

    def in_place(self, values: Tensor) -> Tensor:
        """Return (N, ...) with `values` at the positions of the yielded rows and zeros elsewhere.

        Args:
            values: (n, ...), one per row that this loader yields, in order.
        """
        everywhere = values.new_zeros(self.num_samples, *values.shape[1:])
        own = self._own(torch.arange(self.num_samples))
        if own:
            everywhere[torch.cat(own).to(values.device)] = values
        return everywhere

    def _own(self, rows: Tensor) -> list[Tensor]:
        """Return the batches of all rows that this loader yields."""
        return self.shard.batches_of(rows.split(self._batch_size)) if len(rows) else []

    @abstractmethod
    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]: ...
