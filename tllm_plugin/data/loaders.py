"""What a training loop iterates over: the contract, and what all loaders share."""

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

    `image` is (B, C, H, W) float32, normalised; `target` (B,) int64; `index` (B,) int64, the position in the whole
    training set, whatever part of it is trained on. All three are on the loader's device.

    Everything random in an epoch is a function of the seed and the epoch number: the order, and, for each position in
    the training set, its augmentation. Iterating twice without `set_epoch` gives the same batches twice. A loader that
    is `restrict`ed to a shard yields its rows of the same batches. A last batch that is too small for that, or for what
    BatchNorm needs, is put into the one before it.

    Args:
        rows: (N,) int64 on the CPU, positions in the training set. A position that occurs twice is seen twice.
        batch_size: Images per batch, at least 1; of all shards together.
        seed: Any integer.

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
        """Rows of every batch of an epoch, those of all shards together."""
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
            shard: Whose rows.
            least_rows: Rows of a shard below which the last batch is put into the one before it.

        Raises:
            ConfigError: A batch has fewer rows than there are shards.
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
        """Choose the epoch whose batches the next iteration yields; one that is under way is not changed."""
        self._epoch = epoch

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        generator = derived_generator(self._seed, self._epoch, "order")
        sizes = self.batch_rows
        order = torch.randperm(self.num_samples, generator=generator)
        return self._batches(self._shard.rows_of(self._rows[order].split(sizes)), self._epoch)

    @abstractmethod
    def _batches(self, batches: Sequence[Tensor], epoch: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Batches of these rows, in this order, augmented as the seed and `epoch` say."""


class EvalLoader(ABC):
    """Batches `(image, target)` with the test-time transform, in the order of the rows; never shuffled.

    `image` and `target` are as in `TrainLoader`. No rows: no batches. A loader that is `restrict`ed to a shard yields
    some of the batches, as they are without.

    Args:
        rows: (N,) int64 on the CPU, positions in the part that is read.
        batch_size: Images per batch, at least 1; the last batch may be smaller.

    Attributes:
        num_samples: Number of rows of all shards together.
        shard: Whose batches are yielded.
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
        """Return (N, ...) values of all rows in order, the same in every process; each has to call it with its own.

        Args:
            values: (n, ...) on the CPU, of any type but bool, one for each row that is yielded, in order.
        """
        if self.shard.count == 1:
            return values
        # Each place is filled by one process and zero in the others, so that the sum is exact for numbers of any kind.
        everywhere = self.in_place(values)
        dist.all_reduce(everywhere)
        return everywhere

    def in_place(self, values: Tensor) -> Tensor:
        """Return (N, ...) `values` of the rows that are yielded, at their places among all rows, and zeros elsewhere.

        Args:
            values: (n, ...), one for each row that is yielded, in order.
        """
        everywhere = values.new_zeros(self.num_samples, *values.shape[1:])
        own = self._own(torch.arange(self.num_samples))
        if own:
            everywhere[torch.cat(own).to(values.device)] = values
        return everywhere

    def _own(self, rows: Tensor) -> list[Tensor]:
        """Return those batches of all rows that are yielded."""
        return self.shard.batches_of(rows.split(self._batch_size)) if len(rows) else []

    @abstractmethod
    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]: ...
