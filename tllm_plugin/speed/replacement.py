"""Replace the `forward` of one network object, so that hooks, checkpoints and all other methods stay as they are."""

from __future__ import annotations

import logging
from types import MethodType
from typing import Any

from torch import Tensor, nn

logger = logging.getLogger(__name__)


class Replacement:
    """A faster `forward` of a network; after the first error the network's own is used.

    A subclass implements `applies` and `fast`, or overrides `__call__`.

    It is stored in the attributes of the object, which `nn.Module.__call__` reads. A copy of the network gets its own
    `forward` back.

    Args:
        network: Network without a replacement.
        name: Name of the network in messages.
    """

    def __init__(self, network: nn.Module, name: str) -> None:
        self.network = network
        self.name = name
        self.plain = MethodType(type(network).forward, network)
        self.usable = True

    def put_in(self) -> None:
        """Let the network be called through this object."""
        self.network.__dict__["forward"] = self

    def take_out(self) -> None:
        """Give the network its own `forward` back."""
        self.network.__dict__.pop("forward", None)

    def applies(self) -> bool:
        """Return whether the present call can be made faster."""
        raise NotImplementedError

    def fast(self, *args: Any, **kwargs: Any) -> Any:
        """Return what `forward` returns; any exception leads to the network's own `forward`."""
        raise NotImplementedError

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.usable and self.applies():
            try:
                return self.fast(*args, **kwargs)
            except Exception as error:  # The compiler failed or memory is short; the plain network may still work.
                self.drop(one_line(error))
        return self.plain(*args, **kwargs)

    def drop(self, reason: str) -> None:
        """Use the network's own `forward` from now on, and log why."""
        self.usable = False
        logger.warning("the %s goes on at its usual speed: %s", self.name, reason)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        copied = memo.get(id(self.network), self.network)
        return MethodType(type(copied).forward, copied)


def is_replaceable(network: nn.Module) -> bool:
    """Return whether `forward` is the class's own, and nothing looks into the network by hooks on its parts."""
    if "forward" in vars(network) or hasattr(network, "_orig_mod") or network._compiled_call_impl is not None:
        return False  # It has been replaced or compiled by its owner.
    return not any(
        part._forward_hooks or part._forward_pre_hooks or part._backward_hooks or part._backward_pre_hooks
        for part in network.modules()
        if part is not network
    )


def versions(network: nn.Module) -> list[int]:
    """Return counters that rise when a parameter or buffer is changed in place."""
    return [tensor._version for tensor in _tensors(network)]


def _tensors(network: nn.Module) -> list[Tensor]:
    return [*network.parameters(), *network.buffers()]


def one_line(error: BaseException) -> str:
    """Return an exception in one line of at most 200 characters."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= 200 else f"{text[:197]}..."
