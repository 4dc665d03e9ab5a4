"""Data-parallel training with the same step as a single process: synchronised BatchNorm, row-weighted gradients."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from inspect import signature
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from tllm_plugin.core.errors import ConfigError
from tllm_plugin.data.randomness import derived_seed
from tllm_plugin.hosts import processes
from tllm_plugin.hosts.contract import HoldsBack, SumsRows, extras_of


class _Total(torch.autograd.Function):
    """Differentiable all-reduce: sums a tensor over all ranks, and its gradient likewise."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        total = values.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone()
        dist.all_reduce(total)
        return total


class CrossProcessBatchNorm(_BatchNorm):
    """Synchronised BatchNorm that also runs on a CPU, with the state and parameters of BatchNorm.

    All ranks must run it equally often; otherwise a step never ends. TLLM's wrapper runs the student exactly once per
    step, but the distiller's own modules see only distillable rows and do not run without any.
    """

    def _check_input_dim(self, input: Tensor) -> None:  # noqa: A002 (PyTorch's name)
        if input.dim() < 2:
            raise ValueError(f"Expected `input` to have at least 2 dimensions, but got {input.dim()}")

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (PyTorch's name)
        if not self.training:
            return super().forward(input)
        self._check_input_dim(input)
        across = [0, *range(2, input.dim())]
        shape = [1, -1, *(1 for _ in across[1:])]
        # Double precision makes the order of the sum over ranks irrelevant after rounding to float.
        wide = input.double()
        count = processes.summed(torch.tensor(float(input.numel() // input.shape[1]), dtype=torch.float64))
        mean = _Total.apply(wide.sum(across)) / count
        centred = wide - mean.view(shape)
        variance = _Total.apply(centred.square().sum(across)) / count
        self._keep(mean.detach(), variance.detach(), float(count))
        scaled = centred * (variance + self.eps).rsqrt().view(shape)
        if self.weight is not None:
            scaled = scaled * self.weight.view(shape) + self.bias.view(shape)
        return scaled.to(input.dtype)

    @torch.no_grad()
    def _keep(self, mean: Tensor, variance: Tensor, count: float) -> None:
        """Update the running statistics with those of a batch, using the unbiased variance."""
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        step = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), step)
        self.running_var.lerp_((variance * (count / max(count - 1, 1))).to(self.running_var.dtype), step)


#: These see the rows of all ranks, so that their running statistics are equal on all ranks.
SYNCHRONISED = (nn.SyncBatchNorm, CrossProcessBatchNorm)


def synchronise_batch_norm(network: nn.Module, device: torch.device) -> nn.Module:
    """Replace every BatchNorm of a network by one that is synchronised over all ranks; a no-op in a single process.

    Args:
        network: Modules are replaced in place; parameters and buffers stay the same objects.
        device: Device of the network.

    Returns:
        The network, or its replacement if the network itself is a BatchNorm.
    """
    if processes.world_size() == 1:
        return network
    if device.type != "cpu":
        converted: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(network)
        return converted
    if isinstance(network, _BatchNorm) and not isinstance(network, SYNCHRONISED):
        new = CrossProcessBatchNorm(
            network.num_features, network.eps, network.momentum, network.affine, network.track_running_stats
        )
        new._parameters, new._buffers = network._parameters, network._buffers
        new.training = network.training
        return new
    for name, child in network.named_children():
        replacement = synchronise_batch_norm(child, device)
        if replacement is not child:
            setattr(network, name, replacement)
    return network


def least_rows(distiller: nn.Module) -> int:
    """Return the number of rows that a training pass needs on a rank: 2 with an unsynchronised BatchNorm, else 1.

    On a map of one pixel BatchNorm gets one value per row, and a single value has no variance.
    """
    was_training = distiller.training
    distiller.train()  # The teacher stays in evaluation mode, unless its distiller wants it otherwise.
    trained = (module for module in distiller.modules() if isinstance(module, _BatchNorm) and module.training)
    needed = 2 if any(not isinstance(module, SYNCHRONISED) for module in trained) else 1
    distiller.train(was_training)
    return needed


@contextmanager
def single_rows_explained() -> Iterator[None]:
    """Replace PyTorch's error for a BatchNorm with a single value per channel by one that names the keys to change.

    Raises:
        ConfigError: A BatchNorm was trained on a single value.
    """
    try:
        yield
    except ValueError as error:
        if not str(error).startswith("Expected more than 1 value per channel"):
            raise
        raise ConfigError(
            "Expected at least two rows for a BatchNorm whose map has one pixel, but it got one; set a larger "
            "SOLVER.BATCH_SIZE or TLLM.MIN_ROWS, a smaller SOLVER.ACCUMULATE, or start fewer processes"
        ) from error


# Buffers are merged at the end of an epoch instead of being overwritten by those of rank 0 in every step. Recent
# versions of PyTorch have another name for the option.
_SYNCS_BUFFERS = "forward_sync_buffers"
_KEEPS_BUFFERS: dict[str, Any] = {
    _SYNCS_BUFFERS if _SYNCS_BUFFERS in signature(DistributedDataParallel).parameters else "broadcast_buffers": False
}


class ParallelDistiller:
    """Run the training pass of a distiller data-parallel; in a single process, call the distiller directly.

    Each rank has some rows of every batch. DDP averages gradients over ranks, so a loss that is a mean over this
    rank's rows is weighted by their number: see `weight`. Losses that relate rows to each other see only the rows of
    one rank.

    Args:
        distiller: Distiller on its device. Every learnable parameter must get a gradient in every pass, even if zero.
    """

    def __init__(self, distiller: nn.Module) -> None:
        self.batch_rows: int | None = None
        self._least_rows = least_rows(distiller)
        self._module = distiller
        self._holding: list[HoldsBack] = [module for module in distiller.modules() if isinstance(module, HoldsBack)]
        if processes.world_size() > 1:
            self._module = DistributedDataParallel(distiller, **_KEEPS_BUFFERS)

    def begin_batch(self, rows: int | None) -> None:
        """Set the size of the current batch.

        Args:
            rows: Number of rows of the batch over all ranks; None if this process has the whole batch.
        """
        self.batch_rows = rows

    def parts(self, wanted: int, rows: int) -> int:
        """Return the number of micro-batches for `rows`: `wanted`, capped so that no rank gets an empty one.

        If BatchNorm is trained on this rank's rows alone, every micro-batch gets at least two rows.
        """
        return max(1, min(wanted, (self.batch_rows or rows) // processes.world_size() // self._least_rows))

    def weight(self, rows: int, rows_here: int) -> float:
        """Return the factor by which to multiply a loss that is a mean over some rows.

        Args:
            rows: Number of rows over which the loss is a mean.
            rows_here: Number of rows of the batch on this rank.
        """
        return rows * processes.world_size() / (self.batch_rows or rows_here)

    def accumulating(self, *, last: bool) -> AbstractContextManager[Any]:
        """Return the context manager for a micro-batch; gradients are averaged over ranks only with the `last` one."""
        if isinstance(self._module, DistributedDataParallel) and not last:
            return self._module.no_sync()
        return nullcontext()

    def drop_held(self) -> None:
        """Before a step, remove gradients of parameters that modules hold back; DDP writes zeros there."""
        if isinstance(self._module, DistributedDataParallel):
            for module in self._holding:
                for parameter in module.held_parameters():
                    parameter.grad = None

    def __call__(self, **batch: Any) -> Any:
        return self._module(**batch)


def begin_epoch(distiller: nn.Module, seed: int, epoch: int) -> None:
    """Call the distiller's `begin_epoch`, if it has one, and seed the random numbers of ranks other than 0.

    The distiller is called even if no row on this rank has a teacher. Rank 0 continues with its random numbers as a
    single process would; those of other ranks depend only on seed and epoch, so that checkpoints need not hold them.
    """
    begin = extras_of(distiller).begin_epoch
    if begin is not None:
        begin(epoch)
    if not processes.is_main():
        torch.manual_seed(derived_seed(seed, epoch, "process", processes.rank()))


@torch.no_grad()
def merge_buffers(distiller: nn.Module) -> None:
    """Merge the buffers of all ranks after an epoch, so that they are equal on every rank.

    BatchNorm's running statistics become their mean over ranks and its counter the maximum. Buffers that a module
    names in `row_sums` are summed. Teacher buffers are unchanged, because the teacher is in evaluation mode.
    """
    if processes.world_size() == 1:
        return
    means: list[Tensor] = []
    sums: list[Tensor] = []
    counters: list[Tensor] = []
    for module in distiller.modules():
        named = module.row_sums if isinstance(module, SumsRows) else ()
        own = dict(module.named_buffers(recurse=False))
        sums += [own[name] for name in named]
        if isinstance(module, _BatchNorm) and not isinstance(module, SYNCHRONISED) and module.training:
            means += [buffer for buffer in own.values() if buffer.is_floating_point()]
            counters += [buffer for buffer in own.values() if not buffer.is_floating_point()]
    _reduce(sums, dist.ReduceOp.SUM)
    _reduce(counters, dist.ReduceOp.MAX)
    _reduce(means, dist.ReduceOp.SUM)
    for buffer in means:
        buffer.div_(processes.world_size())


def _reduce(buffers: list[Tensor], operation: Any) -> None:
    """All-reduce buffers by sum or maximum, in one operation."""
    if not buffers:
        return
    flat = torch.cat([buffer.flatten() for buffer in buffers])
    dist.all_reduce(flat, operation)
    for buffer, reduced in zip(buffers, flat.split([buffer.numel() for buffer in buffers]), strict=True):
        buffer.copy_(reduced.view_as(buffer))
