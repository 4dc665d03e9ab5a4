"""Register objects under the names that configs use; registering a name twice is an error."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

from tllm_plugin.core.errors import ConfigError, unknown_name

T = TypeVar("T")


class Registry(Mapping[str, T]):
    """A read-only mapping of names to objects that is filled by a decorator.

    Args:
        kind: Singular noun for the registered objects, used in error messages.

    >>> scores: Registry[type] = Registry("score")
    >>> @scores.register("accuracy")
    ... class Accuracy: ...
    >>> scores["accuracy"] is Accuracy
    True
    >>> scores["loss"]
    Traceback (most recent call last):
    tllm_plugin.core.errors.ConfigError: Expected `score` to be one of accuracy, but got 'loss'
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._items: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Return a decorator that registers its argument under `name`.

        Raises:
            ValueError: The name is taken by another object. Registering the same object again does nothing.
        """

        def decorate(item: T) -> T:
            if self._items.setdefault(name, item) is not item:
                raise ValueError(f"Expected a new {self.kind} name, but got {name!r}, which is taken")
            return item

        return decorate

    def __getitem__(self, name: str) -> T:
        if name not in self._items:
            raise ConfigError(unknown_name(self.kind, name, self._items))
        return self._items[name]

    def __contains__(self, name: object) -> bool:
        return name in self._items

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._items))

    def __len__(self) -> int:
        return len(self._items)
