"""Make the training steps of a wrapped distiller faster, from its first training call on."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from tllm_plugin.core.contract import by_name, teacher_of
from tllm_plugin.core.wrapper import TLLMWrapper
from tllm_plugin.runs.speed_file import SpeedRecord
from tllm_plugin.speed.choice import SHARE, choose, look_on
from tllm_plugin.speed.machine import describe, remember, remembered
from tllm_plugin.speed.memory import MemoryPlace
from tllm_plugin.speed.replacement import Replacement, is_replaceable, one_line
from tllm_plugin.speed.student import FastStudent
from tllm_plugin.speed.teacher import PLAIN, FastTeacher
from tllm_plugin.speed.trial import Trial

logger = logging.getLogger(__name__)


class FirstStep(Replacement):
    """Chooses fast forward passes at a wrapper's first training call, puts them in, and is gone.

    Args:
        wrapper: Around the distiller.
        steps: Steps of the run.
        optimizer: Its state follows the memory format of the student's weights; None if it is not known.
        recorded: What the run used before it was interrupted; None to choose.
        write: Is given the choice.
        place: See `FastTeacher`.
    """

    def __init__(
        self,
        wrapper: TLLMWrapper,
        steps: int,
        *,
        optimizer: torch.optim.Optimizer | None = None,
        recorded: SpeedRecord | None = None,
        write: Callable[[SpeedRecord], None] = lambda record: None,
        place: MemoryPlace | None = None,
    ) -> None:
        super().__init__(wrapper, "run")
        self.wrapper = wrapper
        self.steps = steps
        self.optimizer = optimizer
        self.recorded = recorded
        self.write = write
        self.place = place

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.wrapper.training:
            self.take_out()
            self._prepare(args, kwargs)
        return self.plain(*args, **kwargs)

    def _prepare(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        distiller = self.wrapper.distiller
        try:
            named = by_name(distiller, args, kwargs) if args else kwargs
            record = self.recorded or self._choose(distiller, named)
        except Exception as error:  # Whatever the distiller raises, it raises again in the step itself.
            logger.warning("speed: the run goes on at its usual speed: %s", one_line(error))
            return
        put_in(distiller, record, self.place)
        if self.optimizer is not None:
            align_state(self.optimizer)
        if self.recorded is None:
            self.write(record)
        gain = record.plain_seconds / record.seconds if record.seconds else 1.0
        logger.info(
            "speed: teacher %s, student %s: %.2f times as fast (%.3f -> %.3f s per step), %s",
            *(record.teacher, record.student, gain, record.plain_seconds, record.seconds),
            "as before" if self.recorded is not None else f"measured in {record.cost_seconds:.0f} s",
        )

    def _choose(self, distiller: nn.Module, named: dict[str, Any]) -> SpeedRecord:
        measured_on = describe(distiller, named)
        known = remembered(measured_on)
        # What took long to compile does not pay in a much shorter run.
        trial = Trial(distiller, named)
        pays = known is not None and known.cost_seconds <= SHARE * self.steps * known.plain_seconds
        # Options of a method may decide which features it reads.
        if known is not None and pays and known.teacher_features == tuple(sorted(look_on(trial).teacher)):
            return known
        record = choose(trial, self.steps, measured_on)
        if known is None or record.cost_seconds >= known.cost_seconds:
            remember(record)
        return record


def put_in(distiller: nn.Module, record: SpeedRecord, place: MemoryPlace | None = None) -> None:
    """Replace the forward passes of a distiller's networks by the chosen ones."""
    teacher: Any = teacher_of(distiller)
    student: Any = distiller.student
    place = place if record.remembers else None
    wanted = record.teacher != PLAIN or place is not None
    if teacher is not None and wanted and is_replaceable(teacher):
        FastTeacher(teacher, record.teacher, frozenset(record.teacher_features), place).put_in()
    if record.student != PLAIN and is_replaceable(student):
        FastStudent(student, record.student).put_in()


def align_state(optimizer: torch.optim.Optimizer) -> None:
    """Give the tensors of an optimizer's state the memory format of their parameters."""
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            same_shape = isinstance(value, torch.Tensor) and value.shape == parameter.shape
            if same_shape and value.stride() != parameter.stride():
                state[name] = torch.empty_like(parameter).copy_(value)
