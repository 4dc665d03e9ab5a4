"""Cast what a fast network returns: logits always, features only where the distiller reads them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from tllm_plugin.core.outputs import map_tensors

#: Paths of the features that a distiller reads, such as `1.feats.0` for `output[1]["feats"][0]`.
Paths = frozenset[str]


def plain(tensor: Tensor) -> Tensor:
    """Return a floating-point tensor as contiguous float32, as the host's own network returns it; differentiable."""
    return tensor.to(torch.float32, memory_format=torch.contiguous_format) if tensor.is_floating_point() else tensor


def cast(output: Any) -> Any:
    """Return a network's output as contiguous float32: logits at once, features in dictionaries and lists when read."""
    if isinstance(output, Tensor):
        return plain(output)
    if type(output) is tuple:
        return tuple(plain(item) if isinstance(item, Tensor) else _cast_when_read(item) for item in output)
    return map_tensors(output, plain)  # Nothing is known of how it is read.


def _cast_when_read(value: Any, _: object = None) -> Any:
    if isinstance(value, Tensor):
        return plain(value)
    if type(value) is dict:
        return _ReadDict(value, lambda name, item: _cast_when_read(item))
    if type(value) is list:
        return _ReadList(value, lambda place, item: _cast_when_read(item))
    if type(value) is tuple:
        return tuple(map(_cast_when_read, value))
    return map_tensors(value, plain)


def recorded(output: Any, asked: set[str]) -> Any:
    """Return the output with containers that add the paths of the features that are read from them to `asked`."""

    def record(value: Any, path: str) -> Any:
        if isinstance(value, dict):
            return _ReadDict(value, lambda name, item: record(item, _below(path, name)))
        if isinstance(value, list):
            return _ReadList(value, lambda place, item: record(item, _below(path, place)))
        if isinstance(value, tuple) and not hasattr(value, "_fields"):
            return tuple(record(item, _below(path, place)) for place, item in enumerate(value))
        if isinstance(value, Tensor):
            asked.add(path)
        return value

    if isinstance(output, tuple) and not hasattr(output, "_fields"):
        return tuple(
            item if isinstance(item, Tensor) else record(item, str(place)) for place, item in enumerate(output)
        )
    return output


def features_are_mappings(output: Any) -> bool:
    """Return whether an output is logits, or a tuple of logits and dictionaries, so that features can be left out."""
    if isinstance(output, Tensor):
        return True
    return type(output) is tuple and all(isinstance(item, Tensor) or type(item) is dict for item in output)


def top_level(output: Any) -> tuple[Tensor, ...]:
    """Return the tensors at the top level of an output that `features_are_mappings` accepts."""
    return (output,) if isinstance(output, Tensor) else tuple(item for item in output if isinstance(item, Tensor))


def with_late_features(output: Any, tensors: Iterator[Tensor], compute: Callable[[], Any]) -> Any:
    """Return an output of the form of `output` with new logits, and features that are computed once they are read.

    Args:
        output: Accepted by `features_are_mappings`.
        tensors: Values for its tensors at the top level.
        compute: Returns the complete output.
    """
    if isinstance(output, Tensor):
        return next(tensors)
    return tuple(
        next(tensors) if isinstance(item, Tensor) else LateFeatures(partial(_item, compute, place))
        for place, item in enumerate(output)
    )


class LateFeatures(Mapping[str, Any]):
    """Features that are computed when they are first read.

    Args:
        source: The features, or a function that returns them.
    """

    def __init__(self, source: Mapping[str, Any] | Callable[[], Mapping[str, Any]]) -> None:
        self._source = source

    def _features(self) -> Mapping[str, Any]:
        if callable(self._source):
            self._source = self._source()
        return self._source

    def __getitem__(self, name: str) -> Any:
        return self._features()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._features())

    def __len__(self) -> int:
        return len(self._features())


def _item(compute: Callable[[], Any], place: int) -> Any:
    return compute()[place]


def _below(path: str, name: object) -> str:
    return f"{path}.{name}" if path else str(name)


def _as_it_is(name: object, item: Any) -> Any:
    return item


class _ReadDict(dict[Any, Any]):
    """A dictionary whose items go through a function when they are read."""

    def __init__(self, items: Any = (), read: Callable[[Any, Any], Any] = _as_it_is) -> None:
        super().__init__(items)
        self._read = read

    def __getitem__(self, name: Any) -> Any:
        found = self._read(name, super().__getitem__(name))
        super().__setitem__(name, found)  # So that it is one tensor for everybody, hooks included.
        return found

    def get(self, name: Any, default: Any = None) -> Any:
        return self.__getitem__(name) if name in self.keys() else default

    def pop(self, name: Any, *default: Any) -> Any:
        return self._read(name, super().pop(name, *default))

    def values(self) -> Any:
        return [self[name] for name in self]

    def items(self) -> Any:
        return [(name, self[name]) for name in self]


class _ReadList(list[Any]):
    """A list whose items go through a function when they are read."""

    def __init__(self, items: Any = (), read: Callable[[int, Any], Any] = _as_it_is) -> None:
        super().__init__(items)
        self._read = read

    def __getitem__(self, place: Any) -> Any:
        found = super().__getitem__(place)
        if isinstance(place, slice):
            return [self[index] for index in range(*place.indices(len(self)))]
        found = self._read(place % len(self), found)
        super().__setitem__(place, found)
        return found

    def __iter__(self) -> Iterator[Any]:
        return (self[place] for place in range(len(self)))
