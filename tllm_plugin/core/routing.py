"""Row routing: an inner distiller sees only the distillable rows while its student runs once on the whole batch.

Teaching weights between 0 and 1 are also applied here, to the outputs of teacher and student.

Forward hooks, registered once per network, read a thread-local route that is active only inside the wrapper's
`forward`. Hooks that are added and removed per call would be shared by `DataParallel` replicas, whose modules have one
hook dictionary in common.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from tllm_plugin.core.contract import predictor_of
from tllm_plugin.core.errors import ConfigError
from tllm_plugin.core.mixing import RowWeights
from tllm_plugin.core.outputs import has_rows, map_tensors, slice_rows, tensors_in
from tllm_plugin.core.watch import Watch

_active = threading.local()


class Cut(BaseException):
    """End a call of the inner distiller early; derived from BaseException, so that no distiller catches it as an error.

    Args:
        output: Output of the student; None if a teacher was about to be called before the student.
    """

    def __init__(self, output: Any = None) -> None:
        super().__init__()
        self.output = output


@dataclass
class Route:
    """Rows of the batch that the inner distiller receives in this call, and the student's output for all rows.

    Args:
        owner: Identifies the wrapper (and its replicas) whose hooks follow this route.
        student: The student; deep copies follow the route as well, but their outputs are not recorded.
        batch_rows: n, the rows of the whole batch.
        rows: (n_d,) int64, the distillable rows in ascending order; None for all rows, without slicing.
        weights: Teaching weights of these rows; None if all are 1.
        watch: Checks that the distiller combines only tensors with the same rows.
        cut: Index (from 0) of the student call with which to end the distiller's call. Without `rows`, no teacher may
            be called before.
        predictor: Module that makes the logits from the student's output; its calls count as calls of the student.
    """

    owner: str
    student: nn.Module
    batch_rows: int
    rows: Tensor | None = None
    weights: RowWeights | None = None
    watch: Watch | None = None
    cut: int | None = None
    predictor: nn.Module | None = None
    #: (output that the distiller received, output of the network), one pair per call of student or predictor.
    student_outputs: list[tuple[Any, Any]] = field(default_factory=list)

    def slice(self, value: Any) -> Any:
        """Select from a value of the whole batch the rows that the distiller or a teacher receives."""
        return value if self.rows is None else slice_rows(value, self.rows, self.batch_rows)

    def row_counts(self) -> set[int]:
        """Return the possible row counts of a batched tensor in this call."""
        return {self.batch_rows} if self.rows is None else {self.batch_rows, self.rows.numel()}

    def whole(self, value: Any) -> Any:
        """Replace what the distiller received from the student in a value by the student's outputs for all rows."""
        pairs = [pair for both in self.student_outputs for pair in zip(*map(tensors_in, both), strict=True)]
        return map_tensors(value, lambda tensor: next((all_of for part, all_of in pairs if part is tensor), tensor))

    def place_of(self, returned: Tensor) -> tuple[int, int]:
        """Return the origin of `returned`: the index of the student call, and of the tensor in its output.

        Args:
            returned: (n_d, C) logits from the inner distiller: a student output, or a view or copy of one.

        Raises:
            ConfigError: The tensor is not an output of the student.
        """
        places = [
            (call, leaf, given)
            for call, (output, _) in enumerate(self.student_outputs)
            for leaf, given in enumerate(tensors_in(output))
            if given.shape == returned.shape
        ]
        for same in (_same_memory, _same_values):
            for call, leaf, given in places:
                if same(given, returned):
                    return call, leaf
        raise ConfigError(
            "Expected `forward` of the distiller to return logits that its student returned, but got a tensor of shape "
            f"{tuple(returned.shape)} that is none of the outputs of {len(self.student_outputs)} student calls: a "
            "method that predicts by other means than its network's head puts these into its student"
        )

    def full_logits(self, returned: Tensor) -> Tensor:
        """Return the (n, C) logits whose distillable rows are `returned`; see `place_of`."""
        call, leaf = self.place_of(returned)
        return list(tensors_in(self.student_outputs[call][1]))[leaf]


def _same_memory(given: Tensor, returned: Tensor) -> bool:
    return given is returned or (given.data_ptr() == returned.data_ptr() and given.stride() == returned.stride())


def _same_values(given: Tensor, returned: Tensor) -> bool:
    given = given.to(returned.dtype)
    return bool(((given == returned) | (given.isnan() & returned.isnan())).all())


@contextmanager
def routed(route: Route) -> Iterator[Route]:
    """Activate `route` in this thread for the duration of the block."""
    previous = getattr(_active, "route", None)
    _active.route = route
    try:
        yield route
    finally:
        _active.route = previous


def attach_hooks(owner: str, distiller: nn.Module) -> None:
    """Register the routing hooks on student, teacher and the copies of them that `distiller` holds.

    Copies of a network that the distiller makes later inherit its hooks and their owner.

    Args:
        owner: Identifier shared by all hooks of a wrapper.
        distiller: Distiller with `student` and optionally `teacher`.
    """
    student: Any = distiller.student
    teacher = getattr(distiller, "teacher", None)
    students = [student, *_copies(distiller, student)]
    # Lists are not called, but their elements are.
    teachers = [*_called(teacher), *_copies(distiller, teacher)] if isinstance(teacher, nn.Module) else []
    known = {id(network) for network in students}
    for network in students:
        network.register_forward_pre_hook(_Before(owner, "student"), with_kwargs=True)
        network.register_forward_hook(_StudentHook(owner))
    predictor = predictor_of(distiller)
    if predictor is not None:
        predictor.register_forward_pre_hook(_Before(owner, "predictor"), with_kwargs=True)
        predictor.register_forward_hook(_StudentHook(owner))
    for network in teachers:
        if id(network) not in known:
            known.add(id(network))
            network.register_forward_pre_hook(_Before(owner, "teacher"), with_kwargs=True)
            network.register_forward_hook(_TeacherHook(owner))


def _called(network: nn.Module) -> Iterator[nn.Module]:
    if isinstance(network, (nn.ModuleList, nn.ModuleDict)):
        for part in network.children():
            yield from _called(part)
    else:
        yield network


def _copies(distiller: nn.Module, network: Any) -> list[nn.Module]:
    """Return the modules of `distiller` outside student and teacher that have the same structure as `network`."""
    own = {
        id(part)
        for name in ("student", "teacher")
        for part in getattr(getattr(distiller, name, None), "modules", tuple)()
    }
    kind, shapes = _build_of(network)
    if not shapes:
        return []
    return [
        module
        for module in _modules_of(distiller)
        if id(module) not in own and type(module) is kind and _build_of(module)[1] == shapes
    ]


def _build_of(network: nn.Module) -> tuple[type, dict[str, Any]]:
    plain: nn.Module = getattr(network, "_orig_mod", network)  # Of a compiled network.
    named = [*plain.named_parameters(), *plain.named_buffers()]
    return type(plain), {name: tensor.shape for name, tensor in named}


def _modules_of(distiller: nn.Module) -> Iterator[nn.Module]:
    """Yield the modules of a distiller, including those that it hides from its checkpoint in a list or dictionary."""
    seen: set[int] = set()
    hidden = [
        item
        for value in vars(distiller).values()
        for item in (value if isinstance(value, (list, tuple)) else value.values() if type(value) is dict else (value,))
        if isinstance(item, nn.Module)
    ]
    for root in (distiller, *hidden):
        for module in root.modules():
            if id(module) not in seen:
                seen.add(id(module))
                yield module


class _Hook:
    """Picklable hook that is active only under a route of its own wrapper, because two wrappers may share a network."""

    def __init__(self, owner: str) -> None:
        # A copy of the network has a copy of the hook: equal owners are the same owner.
        self.owner = owner

    def route(self) -> Route | None:
        route: Route | None = getattr(_active, "route", None)
        return route if route is not None and route.owner == self.owner else None


class _Before(_Hook):
    def __init__(self, owner: str, network: str) -> None:
        super().__init__(owner)
        self.network = network

    def __call__(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        route = self.route()
        if route is None:
            return None
        own = module is route.student
        if route.cut is not None and not own and route.rows is None:
            raise Cut
        if route.watch is not None:
            route.watch.enter(self.network, own=own, given=tensors_in((args, kwargs)))
        if self.network == "predictor":
            return route.whole(args), route.whole(kwargs)
        if self.network == "student":
            return None
        counts = route.row_counts()
        given = [tensor for tensor in tensors_in((args, kwargs)) if tensor.dim()]
        if given and not any(tensor.shape[0] in counts for tensor in given):
            raise _other_rows("teacher", route.batch_rows, given[0].shape[0])
        return route.slice(args), route.slice(kwargs)


class _StudentHook(_Hook):
    def __call__(self, module: nn.Module, args: Any, output: Any) -> Any:
        route = self.route()
        if route is None:
            return None
        own = module is route.student or module is route.predictor
        if own:
            _check_rows(output, route.batch_rows)
            if route.cut == len(route.student_outputs):
                raise Cut(output)
        given = route.slice(output)
        if own:
            if route.weights is not None:
                given = route.weights.scale(given)
            route.student_outputs.append((given, output))
        if route.watch is not None:
            route.watch.leave(tensors_in(given))
        return given


class _TeacherHook(_Hook):
    def __call__(self, module: nn.Module, args: Any, output: Any) -> Any:
        route = self.route()
        if route is None:
            return None
        given = output if route.weights is None else route.weights.mix(output)
        if route.watch is not None:
            route.watch.leave(tensors_in(given))
        return given


def _check_rows(output: Any, batch_rows: int) -> None:
    tensors = [tensor for tensor in tensors_in(output) if tensor.dim()]
    if tensors and not any(has_rows(tensor, batch_rows) for tensor in tensors):
        raise _other_rows("student", batch_rows, tensors[0].shape[0])
    for tensor in tensors:
        if tensor.dim() > 2 and tensor.shape[0] != batch_rows and tensor.shape[1] == batch_rows:
            raise ConfigError(
                f"Expected the student to return tensors whose first dimension is the batch of {batch_rows} rows, but "
                f"got one of shape {tuple(tensor.shape)}"
            )


def _other_rows(network: str, expected: int, found: int) -> ConfigError:
    return ConfigError(
        f"Expected the {network} to be called with the {expected} rows of the batch, but got {found} rows"
    )
