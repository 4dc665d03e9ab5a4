"""A distiller that several processes train together, so that they make the step that one process would make."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from inspect import signature
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from tllm_plugin.data.randomness import derived_seed
from tllm_plugin.hosts import processes
from tllm_plugin.hosts.embedded.batch_norm import SYNCHRONISED, least_rows

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
        if processes.count() > 1:
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
        return max(1, min(wanted, (self.batch_rows or rows) // processes.count() // self._least_rows))

    def weight(self, rows: int, rows_here: int) -> float:
        """Return the weight of a loss that is a mean over some rows.

        Args:
            rows: That it is a mean over.
            rows_here: Of the batch in this process.
        """
        return rows * processes.count() / (self.batch_rows or rows_here)

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
        torch.manual_seed(derived_seed(seed, epoch, "process", processes.number()))


@torch.no_grad()
def merge_buffers(distiller: nn.Module) -> None:
    """Make what the processes have collected in buffers over an epoch the same in all of them.

    The running statistics of BatchNorm become their mean over processes, its counter the highest. Buffers that a module
    names in `row_sums` are added up. The teacher, which is in evaluation mode, is left alone.
    """
    if processes.count() == 1:
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
        buffer.div_(processes.count())


def _reduce(buffers: list[Tensor], operation: Any) -> None:
    """Replace buffers by their sums or maxima over processes, all at once."""
    if not buffers:
        return
    flat = torch.cat([buffer.flatten() for buffer in buffers])
    dist.all_reduce(flat, operation)
    for buffer, reduced in zip(buffers, flat.split([buffer.numel() for buffer in buffers]), strict=True):
        buffer.copy_(reduced.view_as(buffer))
