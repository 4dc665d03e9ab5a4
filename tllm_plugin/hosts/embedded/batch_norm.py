"""BatchNorm over the rows of all processes: PyTorch's own on GPUs, and the same thing on CPUs, which it refuses."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from tllm_plugin.core.errors import ConfigError
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
    if processes.count() == 1:
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
