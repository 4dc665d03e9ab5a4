"""Handle inputs and outputs of networks: tensors in nested containers, and the logits among them."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import Any

from torch import Tensor

from tllm_plugin.core.errors import ConfigError


def map_tensors(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Apply `change` to every tensor in `value`; containers keep their type, other values are unchanged."""
    if isinstance(value, Tensor):
        return change(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):  # Before mappings: ModelOutput is both.
        fields = [field.name for field in dataclasses.fields(value) if field.init]
        return dataclasses.replace(value, **{name: map_tensors(getattr(value, name), change) for name in fields})
    if isinstance(value, Mapping):
        changed = {key: map_tensors(item, change) for key, item in value.items()}
        if type(value) is dict:
            return changed
        if not isinstance(value, MutableMapping):
            return type(value)(changed)  # type: ignore[call-arg]
        # Not every mapping type can be constructed from a dictionary; defaultdict, for example, cannot.
        same_kind = copy.copy(value)
        same_kind.update(changed)
        return same_kind
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(map_tensors(item, change) for item in value))
    if isinstance(value, (tuple, list)):
        return type(value)(map_tensors(item, change) for item in value)
    return value


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Yield every tensor in `value`, a tensor or nested containers of tensors, in order."""
    found: list[Tensor] = []

    def note(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    map_tensors(value, note)
    return iter(found)


def slice_rows(value: Any, rows: Tensor, batch_rows: int) -> Any:
    """Select `rows` from every tensor in `value` whose first dimension is the batch; other values are unchanged.

    Args:
        value: A tensor, nested tuples, lists, mappings and dataclasses of tensors, or any other value.
        rows: (n_d,) int64.
        batch_rows: n; tensors whose first dimension differs are not batched.
    """
    return map_tensors(value, lambda tensor: tensor.index_select(0, rows) if has_rows(tensor, batch_rows) else tensor)


def has_rows(tensor: Tensor, rows: int) -> bool:
    return tensor.dim() > 0 and tensor.shape[0] == rows


def logits_of(output: Any) -> Tensor:
    """Return the logits of a network's output: the output itself, its attribute `logits`, or its first tensor.

    Features are in a list or mapping, so that `(logits, features)` and `(features, logits)` both work.

    Raises:
        ConfigError: The output contains no tensor at the top level.
    """
    if isinstance(output, Tensor):
        return output
    named = getattr(output, "logits", None)
    if isinstance(named, Tensor):
        return named
    items = output.values() if isinstance(output, Mapping) else output if isinstance(output, (tuple, list)) else ()
    logits = next((item for item in items if isinstance(item, Tensor)), None)
    if logits is None:
        raise ConfigError(
            f"Expected a network to return logits, alone or with other things, but got {type(output).__name__}"
        )
    return logits


def named_logits(output: Any) -> Iterator[Tensor]:
    """Yield the tensors in mappings of `output` whose key ends in `logits`."""
    if isinstance(output, Mapping):
        for name, item in output.items():
            if isinstance(item, Tensor) and str(name).endswith("logits"):
                yield item
            else:
                yield from named_logits(item)
    elif isinstance(output, (tuple, list)):
        for item in output:
            yield from named_logits(item)


def possible_logits(output: Any, rows: int, num_classes: int, columns: int | None = None) -> list[Tensor]:
    """Return the tensors of a network's output that may be its logits; if several match, prefer unnested ones.

    Args:
        output: Output of the network.
        rows: n.
        num_classes: C. Without a tensor of shape (n, C), tensors with more columns qualify: a network may have more
            outputs than classes.
        columns: Number of columns of the logits, if known.
    """
    tensors = [tensor for tensor in tensors_in(output) if tensor.dim() == 2 and tensor.shape[0] == rows]
    found = [tensor for tensor in tensors if tensor.shape[1] == (num_classes if columns is None else columns)]
    if columns is None and not found:
        found = [tensor for tensor in tensors if tensor.shape[1] > num_classes]
    if len(found) > 1 and isinstance(output, (tuple, list, Mapping)):
        items = {id(item) for item in (output.values() if isinstance(output, Mapping) else output)}
        found = [tensor for tensor in found if id(tensor) in items] or found
    return found


def find_logits(
    output: Any, rows: int, num_classes: int, *, network: str = "student", columns: int | None = None
) -> Tensor:
    """Return the logits of a network's output by their shape; see `possible_logits`.

    Raises:
        ConfigError: No tensor in `output` qualifies, or several do.
    """
    found = possible_logits(output, rows, num_classes, columns)
    if len(found) != 1:
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in tensors_in(output)) or "no tensor"
        raise ConfigError(
            f"Expected the {network} to return one tensor of logits, of shape ({rows}, {columns or num_classes}), but "
            f"got {shapes}"
        )
    return found[0]
