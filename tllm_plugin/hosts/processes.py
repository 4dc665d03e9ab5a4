"""Several processes that train one network together, started by `torchrun`. Alone, nothing here does anything.

The main process, number 0, is the only one that reads and writes run folders; the others are told what it has read.
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
# Keys that the processes' common store holds once something has gone wrong.
_CLAIMED, _TOLD = "tllm/failed", "tllm/told"
_LONGEST_WAIT = timedelta(seconds=10)


def were_started() -> bool:
    """Return whether a launcher started this process as one of several (it need not have joined them yet)."""
    return "RANK" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


def rank() -> int:
    """Return which of the processes this one is; 0 is the main one."""
    return dist.get_rank() if _are_joined() else 0


def world_size() -> int:
    """Return how many processes train together."""
    return dist.get_world_size() if _are_joined() else 1


def is_main() -> bool:
    """Return whether this process is the one that writes."""
    return rank() == 0


def shard() -> Shard:
    """Return what this process reads of the data."""
    return Shard(rank(), world_size())


def local_rank() -> int:
    """Return which of the processes of its machine this one is."""
    return int(os.environ.get("LOCAL_RANK", rank()))


def refuse_several(what: str, instead: str) -> None:
    """Refuse to be one of several processes.

    Raises:
        ConfigError: A launcher has started several.
    """
    if were_started():
        started = os.environ["WORLD_SIZE"]
        with joined():  # So that one of them says so.
            raise ConfigError(f"Expected one process for {what}, but a launcher started {started}; {instead}")


@contextmanager
def joined() -> Iterator[None]:
    """Meet the other processes that the launcher started, and part from them in the end.

    An error in one process is the end of all: it leaves with its error, and the launcher stops the others. What fails
    in these because of that, or in the same way, is not shown.
    """
    if not were_started() or _are_joined():
        yield
        return
    # Some builds of PyTorch come without it.
    from torch.distributed.rendezvous import rendezvous

    store, rank, world_size = next(rendezvous("env://"))
    # Gradients of GPUs go through NCCL. Everything else is small and on the CPU.
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
        # The launcher stops all when the first one is gone, perhaps before another one has printed its message.
        with suppress(RuntimeError):
            store.wait([_TOLD], _LONGEST_WAIT)
        _leave()
    dist.destroy_process_group()


def _is_first(store: Any) -> bool:
    """Return whether no other process has failed before."""
    try:
        return bool(store.add(_CLAIMED, 1) == 1)
    except RuntimeError:  # The launcher is gone.
        return True


def _leave() -> NoReturn:
    """End this process at once, without Python's own end.

    PyTorch's threads, which still wait for the process that is gone, sometimes make an abort of that.
    """
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(_FAILED)


def _tell(store: Any) -> None:
    with suppress(RuntimeError):
        store.set(_TOLD, "")


def from_main(read: Callable[[], T]) -> T:
    """Return what `read` returns in the main process, where alone it is called.

    Raises:
        TLLMError, OSError: `read` raised it; it is raised in every process.
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
    """Return `load()`, which one process of each machine calls before the others do: it may download something."""
    if world_size() == 1:
        return load()
    loaded = load() if local_rank() == 0 else None
    summed(torch.zeros(1))  # Nobody gets past this before all are here.
    return load() if loaded is None else loaded


def summed(values: Tensor) -> Tensor:
    """Return the sum of the `values` of all processes; the same in each, exact for integers."""
    if world_size() == 1:
        return values
    total = values.detach().clone()
    dist.all_reduce(total, group=_group())
    return total


def check_same(what: str, values: Tensor) -> None:
    """Make sure that all processes have come to the same values.

    Args:
        what: For the message.
        values: On the CPU, of one shape in all processes, any dtype but bool.

    Raises:
        TLLMError: They have not.
    """
    if world_size() == 1:
        return
    low, high = values.clone(), values.clone()
    dist.all_reduce(low, dist.ReduceOp.MIN, group=_group())
    dist.all_reduce(high, dist.ReduceOp.MAX, group=_group())
    if not torch.equal(low, high):
        raise TLLMError(f"Expected {what} to be the same in all {world_size()} processes, but they differ")


def share_buffers(network: nn.Module) -> None:
    """Give every process the main one's buffers, as DDP does before a step: statistics of BatchNorm, for example."""
    if world_size() > 1:
        for buffer in network.buffers():
            dist.broadcast(buffer, src=0)


@cache
def _group() -> Any:
    """Return the group for what is on the CPU; None, the common one, unless a host's script made that for GPUs only."""
    return None if "gloo" in str(dist.get_backend_config()) else dist.new_group(backend="gloo")


def _are_joined() -> bool:
    return dist.is_available() and dist.is_initialized()
