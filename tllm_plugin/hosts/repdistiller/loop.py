"""Compute the loss of one batch with the host's own epoch function, which is stopped before its optimizer steps.

A method's loss is therefore exactly that of the host, whichever methods a checkout has and however it weighs them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tllm_plugin.core.errors import ConfigError

_active = threading.local()
_patching = threading.Lock()
_inside = 0
_backward = torch.Tensor.backward


class Stepped(BaseException):
    """Raised by the optimizer's `step` to leave the loop; derived from BaseException, so that no loop catches it."""


class NoLossError(ConfigError):
    """The loop ended without a loss, because it skips batches like this one."""


@dataclass(frozen=True)
class EpochCall:
    """The call of the host's epoch function in its train script.

    Args:
        function: The epoch function, usually `train_distill`.
        arguments: Arguments of the script's call.
        loader: The training loader among them.
        modules: The list of modules among them.
        criteria: The list of criteria among them.
        optimizer: The optimizer among them.
        others: Further modules among them.
    """

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    loader: Any
    modules: nn.ModuleList
    criteria: nn.ModuleList
    optimizer: Any
    others: Iterable[nn.Module] = ()

    def loss(
        self,
        batch: Sequence[Any],
        modules: nn.ModuleList,
        criteria: nn.ModuleList,
        others: Iterable[nn.Module] = (),
    ) -> Tensor:
        """Return what the host would call `backward` on for one batch, of shape () or (1,), with its graph.

        Args:
            batch: As the loader yields it.
            modules: Passed instead of the script's list of modules.
            criteria: Passed instead of the script's list of criteria.
            others: Passed instead of the further modules.

        Raises:
            NoLossError: The loop skips this batch.
            ConfigError: The loop does not step after `backward`.
        """
        places: dict[int, Any] = {
            id(self.loader): OneBatch(self.loader, batch),
            id(self.optimizer): _StandIn(self.optimizer),
            id(self.modules): modules,
            id(self.criteria): criteria,
            **{id(mine): given for mine, given in zip(self.others, others, strict=True)},
        }
        with _losses() as losses:
            try:
                self.function(*(places.get(id(argument), argument) for argument in self.arguments))
            except Stepped:
                if losses:
                    return sum(losses[1:], losses[0])
        name = getattr(self.function, "__name__", "the host's loop")
        if not losses:
            raise NoLossError(f"Expected {name} to compute a loss of {len(batch[0])} rows, but it left the batch out")
        raise ConfigError(f"Expected {name} to step its optimizer after every batch, but it did not")


class OneBatch:
    """The host's loader with a single batch; length and other attributes are those of the loader."""

    def __init__(self, loader: Any, batch: Sequence[Any]) -> None:
        self._loader, self._batch = loader, batch

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Any]:
        yield self._batch

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)


class _StandIn:
    """The host's optimizer, whose `zero_grad` does nothing and whose `step` leaves the loop."""

    def __init__(self, optimizer: Any) -> None:
        self._optimizer = optimizer

    def zero_grad(self, *arguments: Any, **keywords: Any) -> None:
        pass

    def step(self, *arguments: Any, **keywords: Any) -> None:
        raise Stepped

    def __getattr__(self, name: str) -> Any:
        return getattr(self._optimizer, name)


@contextmanager
def _losses() -> Iterator[list[Tensor]]:
    """Collect the tensors on which this thread calls `backward` in the block; no gradient is computed."""
    global _inside
    before = getattr(_active, "losses", None)
    found: list[Tensor] = []
    _active.losses = found
    with _patching:
        _inside += 1
        torch.Tensor.backward = _note  # type: ignore[method-assign]
    try:
        yield found
    finally:
        _active.losses = before
        with _patching:
            _inside -= 1
            if not _inside:
                torch.Tensor.backward = _backward  # type: ignore[method-assign]


def _note(self: Tensor, *arguments: Any, **keywords: Any) -> None:
    losses = getattr(_active, "losses", None)
    if losses is None:
        _backward(self, *arguments, **keywords)
    else:
        losses.append(self)
