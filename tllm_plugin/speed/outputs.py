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


def cast(output: Any, asked: Paths) -> Any:
    """Return a network's output with its logits and the features under `asked` as contiguous float32.

    Tensors at the top level are logits. Other features keep their precision and memory format.
    """
    return _walk(output, "", lambda tensor, path: plain(tensor) if path.count(".") < 1 or path in asked else tensor)


def recorded(output: Any, asked: set[str]) -> Any:
    """Return the output with containers that add the paths of the features that are read from them to `asked`."""

    def record(value: Any, path: str) -> Any:
        if isinstance(value, dict):
            return _RecordingDict(value, path, asked, record)
        if isinstance(value, list):
            return _RecordingList(value, path, asked, record)
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


def _walk(value: Any, path: str, change: Callable[[Tensor, str], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return change(value, path)
    if type(value) is dict:
        return {name: _walk(item, _below(path, name), change) for name, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_walk(item, _below(path, place), change) for place, item in enumerate(value))
    return map_tensors(value, plain)  # Of a type of the host's own: nothing is known of how it is read.


class _RecordingDict(dict[Any, Any]):
    def __init__(self, items: Mapping[Any, Any], path: str, asked: set[str], record: Callable[[Any, str], Any]) -> None:
        super().__init__(items)
        self._read = lambda name, item: record(item, _below(path, name))

    def __getitem__(self, name: Any) -> Any:
        return self._read(name, super().__getitem__(name))

    def get(self, name: Any, default: Any = None) -> Any:
        return self._read(name, super().get(name, default))

    def pop(self, name: Any, *default: Any) -> Any:
        return self._read(name, super().pop(name, *default))

    def values(self) -> Any:
        return [self[name] for name in self]

    def items(self) -> Any:
        return [(name, self[name]) for name in self]


class _RecordingList(list[Any]):
    def __init__(self, items: list[Any], path: str, asked: set[str], record: Callable[[Any, str], Any]) -> None:
        super().__init__(items)
        self._read = lambda place, item: record(item, _below(path, place))

    def __getitem__(self, place: Any) -> Any:
        found = super().__getitem__(place)
        if isinstance(place, slice):
            places = range(*place.indices(len(self)))
            return [self._read(index, item) for index, item in zip(places, found, strict=True)]
        return self._read(place % len(self), found)

    def __iter__(self) -> Iterator[Any]:
        return (self[place] for place in range(len(self)))
