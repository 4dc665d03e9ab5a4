"""The host's own epoch function, asked for the loss of one batch: it is stopped where it would step its optimizer.

So a method's loss is what the host's loop says, whichever methods a checkout has and however it weighs them.
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
    """The loop has called `step` of its optimizer; no error, so that no loop takes it for one."""


class NoLossError(ConfigError):
    """The loop came to its end without a loss: it leaves batches like this one out."""


@dataclass(frozen=True)
class EpochCall:
    """How a train script calls the host's epoch function.

    Args:
        function: The host's, `train_distill` as a rule.
        arguments: As the script gives them.
        loader: The one among them that yields batches.
        modules: The list of modules among them.
        criteria: The list of criteria among them.
        optimizer: The one among them that steps.
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
            NoLossError: The loop leaves this batch out.
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
    """The host's loader, as far as anybody asks for attributes or length, with one batch in it."""

    def __init__(self, loader: Any, batch: Sequence[Any]) -> None:
        self._loader, self._batch = loader, batch

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Any]:
        yield self._batch

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)


class _StandIn:
    """The host's optimizer without its effects."""

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
    """Note, in this thread and for the duration of the block, what `backward` is called on instead of calling it."""
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
