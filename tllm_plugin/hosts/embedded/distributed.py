"""Several processes that make the step that one would make: BatchNorm over all rows, gradients weighted by rows."""

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


class _Total(torch.autograd.Function):
    """The sum of a tensor over all processes; its gradient is the sum of theirs."""

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
    """What `nn.SyncBatchNorm` does, on a CPU. State and parameters are those of BatchNorm.

    All processes must run it equally often: a step that runs its network in one process and not in another never ends.
    TLLM's wrapper runs the student once in every step; modules of the distiller see distillable rows only, and are not
    run where there are none.
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
        # In double precision, so that the order in which processes add up does not matter to a float.
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
        """Move the running statistics towards those of a batch, its variance without bias."""
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        step = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), step)
        self.running_var.lerp_((variance * (count / max(count - 1, 1))).to(self.running_var.dtype), step)


#: They see the rows of all processes, which therefore have the same running statistics.
SYNCHRONISED = (nn.SyncBatchNorm, CrossProcessBatchNorm)


def synchronise_batch_norm(network: nn.Module, device: torch.device) -> nn.Module:
    """Let every BatchNorm of a network see the rows of all processes; alone, it does already.

    Args:
        network: Its modules are replaced, its parameters and buffers stay the same.
        device: That it is on.

    Returns:
        The network; something else only if it is a BatchNorm itself.
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
    """Return how many rows a training pass needs in a process: 2 where a BatchNorm is trained on these rows alone.

    A map of one pixel gives a BatchNorm one value per row, and of a single value there is no variance.
    """
    was_training = distiller.training
    distiller.train()  # The teacher stays in evaluation mode, unless its distiller wants it otherwise.
    trained = (module for module in distiller.modules() if isinstance(module, _BatchNorm) and module.training)
    needed = 2 if any(not isinstance(module, SYNCHRONISED) for module in trained) else 1
    distiller.train(was_training)
    return needed


@contextmanager
def single_rows_explained() -> Iterator[None]:
    """Say what to change where a BatchNorm is trained on a single value after all.

    Raises:
        ConfigError: That has happened.
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


# Buffers are merged at the end of an epoch instead of being overwritten by those of process 0 in every step. Recent
# versions of PyTorch have another name for the option.
_SYNCS_BUFFERS = "forward_sync_buffers"
_KEEPS_BUFFERS: dict[str, Any] = {
    _SYNCS_BUFFERS if _SYNCS_BUFFERS in signature(DistributedDataParallel).parameters else "broadcast_buffers": False
}


class ParallelDistiller:
    """The training pass of a distiller in this process; alone, the distiller itself.

    Each process has some rows of every batch. Gradients are averaged over processes, so a loss that is a mean over
    the rows here is weighted by how many these are: see `weight`. Losses that relate rows to each other relate those
    of one process.

    Args:
        distiller: On its device. Every learnable parameter must get a gradient in every pass, be it zero.
    """

    def __init__(self, distiller: nn.Module) -> None:
        self.batch_rows: int | None = None
        self._least_rows = least_rows(distiller)
        self._module = distiller
        self._holding: list[Any] = [module for module in distiller.modules() if hasattr(module, "held_parameters")]
        if processes.world_size() > 1:
            self._module = DistributedDataParallel(distiller, **_KEEPS_BUFFERS)

    def begin_batch(self, rows: int | None) -> None:
        """Take note of a batch's size.

        Args:
            rows: Of the whole batch, all processes together; None: this process has all of it.
        """
        self.batch_rows = rows

    def parts(self, wanted: int, rows: int) -> int:
        """Return in how many parts to put `rows` through the networks.

        As many as are `wanted`, if every process has rows for them: two for each where BatchNorm is trained.
        """
        return max(1, min(wanted, (self.batch_rows or rows) // processes.world_size() // self._least_rows))

    def weight(self, rows: int, rows_here: int) -> float:
        """Return the weight of a loss that is a mean over some rows.

        Args:
            rows: That it is a mean over.
            rows_here: Of the batch in this process.
        """
        return rows * processes.world_size() / (self.batch_rows or rows_here)

    def accumulating(self, *, last: bool) -> AbstractContextManager[Any]:
        """Return the context of one part's passes; gradients are averaged over processes with the `last` one only."""
        if isinstance(self._module, DistributedDataParallel) and not last:
            return self._module.no_sync()
        return nullcontext()

    def drop_held(self) -> None:
        """Drop gradients of parameters that their modules hold back, before a step: DDP has put zeros there."""
        if isinstance(self._module, DistributedDataParallel):
            for module in self._holding:
                for parameter in module.held_parameters():
                    parameter.grad = None

    def __call__(self, **batch: Any) -> Any:
        return self._module(**batch)


def begin_epoch(distiller: nn.Module, seed: int, epoch: int) -> None:
    """Tell a distiller that wants to know, even if none of its rows here has a teacher, and set the random numbers.

    Those of the main process go on as in a run of one process. The others' depend on seed and epoch alone, so that no
    checkpoint need hold them.
    """
    begin = getattr(distiller, "begin_epoch", None)
    if begin is not None:
        begin(epoch)
    if not processes.is_main():
        torch.manual_seed(derived_seed(seed, epoch, "process", processes.rank()))


@torch.no_grad()
def merge_buffers(distiller: nn.Module) -> None:
    """Make what the processes have collected in buffers over an epoch the same in all of them.

    The running statistics of BatchNorm become their mean over processes, its counter the highest. Buffers that a module
    names in `row_sums` are added up. The teacher, which is in evaluation mode, is left alone.
    """
    if processes.world_size() == 1:
        return
    means: list[Tensor] = []
    sums: list[Tensor] = []
    counters: list[Tensor] = []
    for module in distiller.modules():
        named = getattr(module, "row_sums", ())
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
    """Replace buffers by their sums or maxima over processes, all at once."""
    if not buffers:
        return
    flat = torch.cat([buffer.flatten() for buffer in buffers])
    dist.all_reduce(flat, operation)
    for buffer, reduced in zip(buffers, flat.split([buffer.numel() for buffer in buffers]), strict=True):
        buffer.copy_(reduced.view_as(buffer))
