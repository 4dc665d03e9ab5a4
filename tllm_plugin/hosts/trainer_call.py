"""Identify the arguments of a host's trainer by name or type."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn
from torch.utils.data import DataLoader
from yacs.config import CfgNode


class TrainerCall:
    """Arguments of a trainer's constructor, with `distiller`, `train_loader`, `val_loader` and `cfg` identified.

    They are identified by parameter name, otherwise by type: a module, two loaders in this order, a config. All other
    arguments are passed through.
    """

    def __init__(self, bound: inspect.BoundArguments, names: dict[str, str]) -> None:
        self.bound = bound
        self.names = names

    @classmethod
    def of(cls, begin: Callable[..., None], given: tuple[Any, ...], named: Mapping[str, Any]) -> TrainerCall | None:
        """Return the call; None if one of the four is missing or the signature does not accept the arguments."""
        try:
            bound = inspect.signature(begin).bind(*given, **named)
        except TypeError:
            return None
        names: dict[str, str] = {}
        for part, words, kind in (
            ("distiller", ("distiller",), nn.Module),
            ("cfg", ("cfg", "config"), CfgNode),
            ("train_loader", ("train",), DataLoader),
            ("val_loader", ("val", "test"), DataLoader),
        ):
            free = {name: value for name, value in bound.arguments.items() if name not in names.values()}
            by_name = (name for name in free if any(word in name.lower() for word in words) and _fits(free[name], kind))
            by_kind = (name for name in free if isinstance(free[name], kind))
            found = next(by_name, None) or next(by_kind, None)
            if found is None:
                return None
            names[part] = found
        return cls(bound, names)

    def __getitem__(self, part: str) -> Any:
        return self.bound.arguments[self.names[part]]

    def __setitem__(self, part: str, value: Any) -> None:
        self.bound.arguments[self.names[part]] = value


def _fits(value: Any, kind: type) -> bool:
    # Loaders of other libraries share no base class.
    return isinstance(value, kind) if kind is not DataLoader else not isinstance(value, str | bool | int | float)
