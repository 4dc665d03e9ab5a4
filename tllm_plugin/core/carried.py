"""Save the state of other objects with a module's checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol


class HasState(Protocol):
    """Object whose state is saved in the wrapper's checkpoint; it consists of tensors and plain Python values."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any]) -> Any: ...


class Carried:
    """Objects by name; state that is loaded for an object that is not there yet waits for it."""

    def __init__(self) -> None:
        self._holders: dict[str, HasState] = {}
        self._waiting: dict[str, Mapping[str, Any]] = {}

    def add(self, name: str, holder: HasState) -> None:
        """Save and load the state of `holder` from now on; it receives state that waits under its name."""
        self._holders[name] = holder
        if name in self._waiting:
            holder.load_state_dict(self._waiting.pop(name))

    def state_dict(self) -> dict[str, Any]:
        """Return the state of every object by its name."""
        return {name: holder.state_dict() for name, holder in self._holders.items()}

    def load_state_dict(self, state: Mapping[str, Mapping[str, Any]]) -> None:
        """Load the state of every object; what no object is there for waits."""
        for name, carried in state.items():
            if name in self._holders:
                self._holders[name].load_state_dict(carried)
            else:
                self._waiting[name] = carried
