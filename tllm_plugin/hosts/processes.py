"""Data-parallel training with `torchrun`: process group, ranks and collectives; no-ops in a single process.

Only rank 0 reads and writes run folders; it sends what it has read to the other ranks.
"""

from __future__ import annotations

import atexit
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import cache
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from tllm_plugin.core.errors import ConfigError, TLLMError
from tllm_plugin.data.shards import Shard

T = TypeVar("T")

_FAILED = 1
# Keys that the ranks' common store holds once an error has occurred.
_CLAIMED, _TOLD = "tllm/failed", "tllm/told"
_LONGEST_WAIT = timedelta(seconds=10)


def were_started() -> bool:
    """Return whether a launcher started this process as one of several, with or without a process group yet."""
    return "RANK" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


def rank() -> int:
    """Return the rank of this process; 0 is the main process."""
    return dist.get_rank() if _are_joined() else 0


def world_size() -> int:
    """Return the number of processes that train together."""
    return dist.get_world_size() if _are_joined() else 1


def is_main() -> bool:
    """Return whether this process has rank 0, which writes all files."""
    return rank() == 0


def shard() -> Shard:
    """Return the shard of the data that this rank reads."""
    return Shard(rank(), world_size())


def local_rank() -> int:
    """Return the rank of this process among the processes of its machine."""
    return int(os.environ.get("LOCAL_RANK", rank()))


def refuse_several(what: str, instead: str) -> None:
    """Raise an error if a launcher started several processes.

    Raises:
        ConfigError: A launcher started several processes.
    """
    if were_started():
        started = os.environ["WORLD_SIZE"]
        with joined():  # Inside `joined` only one rank prints the message.
            raise ConfigError(f"Expected one process for {what}, but a launcher started {started}; {instead}")


@contextmanager
def joined() -> Iterator[None]:
    """Initialise the process group and destroy it on exit.

    An error on one rank ends all: that rank exits with its error, and the launcher stops the others. Errors on other
    ranks that follow from it, or repeat it, are not shown.
    """
    if not were_started() or _are_joined():
        yield
        return
    # Some builds of PyTorch come without torch.distributed.
    from torch.distributed.rendezvous import rendezvous

    store, rank, world_size = next(rendezvous("env://"))
    # NCCL reduces the gradients on GPUs; everything else is small and on the CPU.
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=world_size)
    if rank:
        logging.getLogger("tllm_plugin").setLevel(logging.WARNING)
    try:
        yield
    except BaseException:
        if _is_first(store):
            atexit.register(_tell, store)
            raise
        # The launcher stops all ranks when the first one exits, perhaps before another rank has printed its message.
        with suppress(RuntimeError):
            store.wait([_TOLD], _LONGEST_WAIT)
        _leave()
    dist.destroy_process_group()


def _is_first(store: Any) -> bool:
    """Return whether this rank is the first that failed."""
    try:
        return bool(store.add(_CLAIMED, 1) == 1)
    except RuntimeError:  # The launcher is gone.
        return True


def _leave() -> NoReturn:
    """Exit immediately, without Python's shutdown.

    PyTorch threads that still wait for the failed rank sometimes turn a regular shutdown into an abort.
    """
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(_FAILED)


def _tell(store: Any) -> None:
    with suppress(RuntimeError):
        store.set(_TOLD, "")


def from_main(read: Callable[[], T]) -> T:
    """Call `read` on rank 0 only and broadcast its result.

    Raises:
        TLLMError, OSError: `read` raised it on rank 0; it is raised on every rank.
    """
    if world_size() == 1:
        return read()
    outcome: list[Any] = [None]
    if is_main():
        try:
            outcome = [(read(), None)]
        except (TLLMError, OSError) as error:
            outcome = [(None, error)]
    dist.broadcast_object_list(outcome, src=0, group=_group(), device=torch.device("cpu"))
    result, problem = outcome[0]
    if problem is not None:
        raise problem
    returned: T = result
    return returned


def one_per_machine_first(load: Callable[[], T]) -> T:
    """Return `load()`, called on one rank per machine before the others, because it may download files."""
    if world_size() == 1:
        return load()
    loaded = load() if local_rank() == 0 else None
    summed(torch.zeros(1))  # Barrier: waits for all ranks.
    return load() if loaded is None else loaded


def summed(values: Tensor) -> Tensor:
    """Return the sum of `values` over all ranks; equal on every rank, exact for integers."""
    if world_size() == 1:
        return values
    total = values.detach().clone()
    dist.all_reduce(total, group=_group())
    return total


def gathered(value: T) -> list[T]:
    """Return the values of all ranks in their order, on every rank; they must be picklable."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value, group=_group())
    return values


def check_same(what: str, values: Tensor) -> None:
    """Check that all ranks have the same values.

    Args:
        what: Name of the values, for the message.
        values: CPU tensor of the same shape on all ranks, any dtype except bool.

    Raises:
        TLLMError: The values differ.
    """
    if world_size() == 1:
        return
    low, high = values.clone(), values.clone()
    dist.all_reduce(low, dist.ReduceOp.MIN, group=_group())
    dist.all_reduce(high, dist.ReduceOp.MAX, group=_group())
    if not torch.equal(low, high):
        raise TLLMError(f"Expected {what} to be the same in all {world_size()} processes, but they differ")


def share_buffers(network: nn.Module) -> None:
    """Broadcast the buffers of rank 0, such as BatchNorm statistics, to all ranks, as DDP does before a step."""
    if world_size() > 1:
        for buffer in network.buffers():
            dist.broadcast(buffer, src=0)


@cache
def _group() -> Any:
    """Return the process group for CPU tensors: None (the default group), unless a host's script made it GPU-only."""
    return None if "gloo" in str(dist.get_backend_config()) else dist.new_group(backend="gloo")


def _are_joined() -> bool:
    return dist.is_available() and dist.is_initialized()
