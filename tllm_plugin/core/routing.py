"""Row routing: an inner distiller sees only the distillable rows while its student runs once on the whole batch.

Two forward hooks, registered once per network, read a thread-local route that is active only inside the wrapper's
`forward`. Hooks that are added and removed per call would be shared by `DataParallel` replicas, whose modules have one
hook dictionary in common.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

_active = threading.local()


@dataclass
class Route:
    """Which rows of the batch the inner distiller sees in this call, and what its student returned for all rows.

    Args:
        owner: Identifies the wrapper (and all of its replicas) whose hooks obey this route.
        rows: (n_d,) int64, the distillable rows in ascending order.
        batch_rows: n, the rows of the whole batch.
    """

    owner: object
    rows: Tensor
    batch_rows: int
    student_logits: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def full_logits(self, returned: Tensor) -> Tensor:
        """Return the (n, C) logits whose distillable rows are `returned`.

        Args:
            returned: (n_d, C), what the inner distiller gave back: a student output or a view of one.

        Raises:
            RuntimeError: The student ran several times and `returned` is none of its outputs.
        """
        for sliced, full in self.student_logits:
            if returned is sliced or (returned.data_ptr() == sliced.data_ptr() and returned.shape == sliced.shape):
                return full
        if len(self.student_logits) == 1:
            return self.student_logits[0][1]
        raise RuntimeError(
            "Expected the inner distiller to return the logits of one of its student calls, but got a tensor that is "
            f"none of the {len(self.student_logits)} outputs"
        )


@contextmanager
def routed(route: Route) -> Iterator[Route]:
    """Make `route` the active one of this thread for the duration of the block."""
    previous = getattr(_active, "route", None)
    _active.route = route
    try:
        yield route
    finally:
        _active.route = previous


def slice_rows(value: Any, rows: Tensor, batch_rows: int) -> Any:
    """Select `rows` from every tensor in `value` whose first dimension is the batch; leave everything else alone.

    Args:
        value: A tensor, or tuples, lists and mappings of them at any depth, or anything else.
        rows: (n_d,) int64.
        batch_rows: n; tensors with another first dimension are not batched.
    """
    if isinstance(value, Tensor):
        return value.index_select(0, rows) if value.dim() > 0 and value.shape[0] == batch_rows else value
    if isinstance(value, Mapping):
        return type(value)({key: slice_rows(item, rows, batch_rows) for key, item in value.items()})  # type: ignore[call-arg]
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(slice_rows(item, rows, batch_rows) for item in value))
    if isinstance(value, (tuple, list)):
        return type(value)(slice_rows(item, rows, batch_rows) for item in value)
    return value


def logits_of(output: Any) -> Tensor:
    """Return the logits of a network's output: the output itself, or the first tensor among its items.

    Features come in a list or mapping, so that `(logits, features)` and `(features, logits)` both do.
    """
    if isinstance(output, Tensor):
        return output
    logits: Tensor = next(item for item in output if isinstance(item, Tensor))
    return logits


def attach_hooks(owner: object, student: nn.Module, teacher: nn.Module | None) -> None:
    """Register the routing hooks on both networks, once for the life of the wrapper."""
    student.register_forward_hook(_StudentHook(owner))
    if teacher is not None:
        teacher.register_forward_pre_hook(_TeacherHook(owner), with_kwargs=True)


class _Hook:
    """A picklable hook that acts only under a route of its own wrapper (two wrappers may share a network)."""

    def __init__(self, owner: object) -> None:
        self.owner = owner

    def route(self) -> Route | None:
        route: Route | None = getattr(_active, "route", None)
        return route if route is not None and route.owner is self.owner else None


class _StudentHook(_Hook):
    def __call__(self, module: nn.Module, args: Any, output: Any) -> Any:
        route = self.route()
        if route is None:
            return None
        full = logits_of(output)
        if full.shape[0] != route.batch_rows:
            raise RuntimeError(
                f"Expected the student to be called with the {route.batch_rows} rows of the batch, but got "
                f"{full.shape[0]} rows"
            )
        sliced = slice_rows(output, route.rows, route.batch_rows)
        route.student_logits.append((logits_of(sliced), full))
        return sliced


class _TeacherHook(_Hook):
    def __call__(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        route = self.route()
        if route is None:
            return None
        return slice_rows(args, route.rows, route.batch_rows), slice_rows(kwargs, route.rows, route.batch_rows)
