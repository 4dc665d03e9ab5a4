"""Call a distiller with some rows of a batch, and learn from its calls what it can be called without."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from tllm_plugin.core import contract
from tllm_plugin.core.known import Known
from tllm_plugin.core.mixing import RowWeights
from tllm_plugin.core.outputs import find_logits, tensors_in
from tllm_plugin.core.routing import Cut, Route, attach_hooks, routed
from tllm_plugin.core.watch import Watch, can_watch


class InnerDistiller(nn.Module):
    """A distiller with hooks on its networks, so that its teacher and its losses can be given some rows only.

    Args:
        distiller: See `TLLMWrapper`.
        num_classes: C.

    Raises:
        ConfigError: The distiller has no student, or its teacher is not a module.
    """

    def __init__(self, distiller: nn.Module, num_classes: int) -> None:
        super().__init__()
        contract.check_networks(distiller)
        self.distiller = distiller
        self.num_classes = num_classes
        self._known = Known.told_by(distiller)
        self._spelled: dict[str, str] = {}
        self._owner = uuid.uuid4().hex
        attach_hooks(self._owner, distiller)

    @property
    def student(self) -> nn.Module:
        """Student of the inner distiller; registered only there, so that a checkpoint holds it once."""
        return self.distiller.student  # type: ignore[return-value]

    @property
    def teacher(self) -> nn.Module | None:
        """Teacher of the inner distiller, or None without one."""
        return contract.teacher_of(self.distiller)

    @property
    def predictor(self) -> nn.Module | None:
        """Module of the distiller that makes the logits from the student's output; None if the student does."""
        return contract.predictor_of(self.distiller)

    @property
    def few_rows_steps(self) -> int:
        """Number of steps on this rank that had fewer than `min_rows` distillable rows, which got cross-entropy."""
        return self._known.few_rows_steps

    def __getattr__(self, name: str) -> Any:
        # Trainers of hosts and their forks read attributes that only the inner distiller has.
        try:
            return super().__getattr__(name)
        except AttributeError:
            inner = self.__dict__.get("_modules", {}).get("distiller")
            if inner is None or not hasattr(inner, name):
                raise
            found = getattr(inner, name)
            # Some distillers are their own `module`, for loops that expect a DataParallel around them.
            return self if found is inner else found

    def get_learnable_parameters(self) -> list[nn.Parameter]:
        """Return the parameters to optimise: the distiller's choice, or all trainable ones outside the teacher."""
        choose = getattr(self.distiller, "get_learnable_parameters", None)
        return contract.trained_parameters(self.distiller) if choose is None else list(choose())

    def get_extra_parameters(self) -> int:
        """Return the number of parameters that the inner distiller adds to the student."""
        count = getattr(self.distiller, "get_extra_parameters", None)
        if count is not None:
            return int(count())
        return contract.extra_parameters(self.get_learnable_parameters(), self.student)

    def _call(self, kwargs: Mapping[str, Any]) -> Any:
        """Call the inner distiller under the keyword names of the original call."""
        return self.distiller(**{self._spelled.get(name, name): value for name, value in kwargs.items()})

    def _inner(
        self, kwargs: Mapping[str, Any], rows: Tensor | None = None, weights: RowWeights | None = None
    ) -> tuple[Any, Route]:
        """Call the inner distiller; return its result and the route, which holds the student's outputs.

        Args:
            kwargs: Keywords of the call, under our names.
            rows: (n_d,) int64, the rows that it sees; None for all.
            weights: Teaching weights of these rows; None if all are 1.
        """
        route = Route(self._owner, self.student, len(kwargs["target"]), rows, weights, predictor=self.predictor)
        # The student needs every image; the teacher's hook slices them for the teacher.
        given = {name: value if name.startswith("image") else route.slice(value) for name, value in kwargs.items()}
        if self._known.checked:
            with routed(route):
                return self._call(given), route
        if can_watch(self.distiller):
            images = [
                tensor for name, value in given.items() if name.startswith("image") for tensor in tensors_in(value)
            ]
            batched = [
                tensor for name, value in given.items() if not name.startswith("image") for tensor in tensors_in(value)
            ]
            route.watch = Watch(images, batched, route.row_counts())
        with routed(route), route.watch or nullcontext():
            result = self._call(given)
        self._learn(kwargs, result, route)
        return result, route

    def _learn(self, kwargs: Mapping[str, Any], result: Any, route: Route) -> None:
        """Check the first call of the inner distiller and record what later calls need."""
        known = self._known
        if not route.student_outputs:
            raise contract.student_not_called(self.distiller)
        rows = route.batch_rows if route.rows is None else route.rows.numel()
        trains = torch.is_grad_enabled() and any(parameter.requires_grad for parameter in self.student.parameters())
        contract.check_result(result, rows, self.num_classes, trains=trains)
        known.call, known.leaf = route.place_of(result[0])
        known.columns = result[0].shape[1]
        if route.watch is not None and self.predictor is None:
            known.image = contract.image_of_student(self.student, kwargs, *route.watch.student_calls[known.call])
        contract.tell_of_training_teacher(self.distiller)
        known.remember(result[1], rows)
        known.checked = True

    def _student_logits(self, kwargs: dict[str, Any]) -> Tensor:
        """Return the student's logits for the whole batch, (n, C), from the call that the inner distiller makes."""
        known, rows = self._known, kwargs["target"].shape[0]
        # A predictor may be called after a teacher, which then receives no rows.
        none = None if self.predictor is None else kwargs["target"].new_zeros((0,), dtype=torch.int64)
        call = known.call if known.leaf is not None or none is None else 1
        route = Route(self._owner, self.student, rows, none, cut=call, predictor=self.predictor)
        given = {name: value if name.startswith("image") else route.slice(value) for name, value in kwargs.items()}
        try:
            with routed(route):
                self._call(given)
        except Cut as cut:
            if cut.output is not None:
                if known.leaf is not None:
                    return list(tensors_in(cut.output))[known.leaf]
                return find_logits(cut.output, rows, self.num_classes)
        else:
            raise contract.student_not_called(self.distiller)
        # The distiller calls a teacher before its student.
        image = contract.first_images(kwargs)[1] if known.image is None else kwargs[known.image]
        return find_logits(self.student(image), rows, self.num_classes)
