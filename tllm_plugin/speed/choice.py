"""Choose the fastest forward passes of teacher and student that keep their numbers, by timing them on a real batch."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from tllm_plugin.core.contract import teacher_of
from tllm_plugin.runs.speed_file import SpeedRecord
from tllm_plugin.speed.memory import image_hashes
from tllm_plugin.speed.outputs import Paths, recorded
from tllm_plugin.speed.replacement import is_replaceable, one_line
from tllm_plugin.speed.student import COMPILED_STUDENTS, STUDENTS, FastStudent
from tllm_plugin.speed.teacher import HALF, PLAIN, SINGLE, FastTeacher, agreement
from tllm_plugin.speed.trial import Step, Trial

logger = logging.getLogger(__name__)

#: What measuring may cost, as a share of the run.
SHARE = 0.02
#: A candidate must be so much faster than what is chosen without it, as a factor.
_MARGIN = 1.03
#: Each candidate is timed so often, in turn with the plain network; the shortest time counts.
_ROUNDS = 3
#: What compiling a network is assumed to take before one has been compiled.
_COMPILING_SECONDS = 60.0
#: Largest `Step.difference` of a student's candidate: rounding to bfloat16 stays below a third of it.
_LARGEST_DIFFERENCE = 0.05


@dataclass
class Budget:
    """Time for measuring.

    Args:
        seconds: Allowed in all.
        compiling: Expected duration of a compilation.
    """

    seconds: float
    compiling: float = _COMPILING_SECONDS

    def __post_init__(self) -> None:
        self._started = time.perf_counter()

    @property
    def spent(self) -> float:
        return time.perf_counter() - self._started

    def allows(self, kind: str, step_seconds: float) -> bool:
        """Return whether a candidate can be built and timed in the time that is left."""
        expected = 2 * _ROUNDS * step_seconds + (self.compiling if "compiled" in kind else 0)
        return self.spent + expected <= self.seconds


def choose(trial: Trial, steps: int, measured_on: str, *, share: float = SHARE) -> SpeedRecord:
    """Time the candidates on one batch and return the choice; nothing is changed in the distiller.

    Args:
        trial: Of the distiller and a real batch.
        steps: Steps of the run.
        measured_on: For the record.
        share: What measuring may cost, as a share of the run.
    """
    started = time.perf_counter()
    student, teacher = trial.distiller.student, teacher_of(trial.distiller)
    seen = look_on(trial)
    reference = trial.step()
    budget = Budget(share * steps * reference.seconds)
    kind, student_kind, after, remembers = PLAIN, PLAIN, reference, False
    if budget.seconds < 4 * _ROUNDS * reference.seconds:
        logger.info("speed: the run of %d steps is too short to measure anything", steps)
    else:
        if teacher is not None and seen.call is not None:
            kind, teacher_seconds = _best_teacher(trial, teacher, seen, budget)
            remembers = not seen.teacher and _remembering_pays(trial, seen.call[0], teacher_seconds)
        with _in_place(FastTeacher(teacher, kind, seen.teacher) if kind != PLAIN and teacher is not None else None):
            student_kind, after = _best_student(trial, student, reference, budget)
    return SpeedRecord(
        teacher=kind,
        student=student_kind,
        teacher_features=tuple(sorted(seen.teacher)),
        remembers=remembers,
        plain_seconds=reference.seconds,
        seconds=after.seconds,
        cost_seconds=time.perf_counter() - started,
        measured_on=measured_on,
    )


@dataclass(frozen=True)
class Seen:
    """What a step showed: the teacher's features that are read, and the arguments of its call."""

    teacher: Paths
    call: tuple[tuple[Any, ...], dict[str, Any]] | None


def look_on(trial: Trial) -> Seen:
    """Make a step with the plain networks and record what the distiller reads of the teacher's output."""
    asked: set[str] = set()
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    teacher = teacher_of(trial.distiller)
    if teacher is None or not is_replaceable(teacher):
        return Seen(frozenset(), None)
    forward = teacher.forward

    def watched(*args: Any, **kwargs: Any) -> Any:
        if not teacher.training and not torch.is_grad_enabled():
            calls.append((args, kwargs))
        return recorded(forward(*args, **kwargs), asked)

    teacher.__dict__["forward"] = watched
    try:
        trial.step()
    finally:
        del teacher.__dict__["forward"]
    return Seen(frozenset(asked), calls[0] if calls else None)


def _best_teacher(trial: Trial, teacher: nn.Module, seen: Seen, budget: Budget) -> tuple[str, float]:
    assert seen.call is not None
    args, kwargs = seen.call
    best, shortest = PLAIN, float("inf")
    with torch.no_grad():
        expected = teacher.forward(*args, **kwargs)
        plain = min(trial.seconds_of(lambda: teacher.forward(*args, **kwargs)) for _ in range(_ROUNDS))
        for kind in (*HALF, *SINGLE):
            if kind in SINGLE and best in HALF:
                break
            if not budget.allows(kind, plain):
                logger.info("speed: no time to try the %s teacher", kind)
                continue
            candidate = FastTeacher(teacher, kind, seen.teacher)
            call = partial(candidate.fast, *args, **kwargs)
            began = budget.spent
            try:
                found = call()
                if "compiled" in kind:
                    budget.compiling = budget.spent - began
                close = agreement(expected, found, seen.teacher)
                if not close.is_close:
                    logger.info("speed: the %s teacher is left out: %s", kind, close)
                    continue
                seconds = []
                for _ in range(_ROUNDS):
                    plain = min(plain, trial.seconds_of(lambda: teacher.forward(*args, **kwargs)))
                    seconds.append(trial.seconds_of(call))
            except Exception as error:  # Of a compiler, or for want of memory.
                logger.info("speed: the %s teacher is left out: %s", kind, one_line(error))
                continue
            if min(seconds) * _MARGIN < min(plain, shortest):
                best, shortest = kind, min(seconds)
    return best, min(plain, shortest)


def _remembering_pays(trial: Trial, args: tuple[Any, ...], teacher_seconds: float) -> bool:
    """Return whether looking answers up is much faster than asking the teacher; on a GPU each step would wait."""
    if trial.device.type != "cpu" or len(args) != 1 or args[0].dtype != torch.float32:
        return False
    seconds = min(trial.seconds_of(partial(image_hashes, args[0])) for _ in range(_ROUNDS))
    # Reading, writing and comparing records takes about five times as long as hashing the images.
    return 10 * seconds < teacher_seconds


def _best_student(trial: Trial, student: nn.Module, reference: Step, budget: Budget) -> tuple[str, Step]:
    after = min((trial.step() for _ in range(_ROUNDS)), key=lambda step: step.seconds)
    best, shortest = PLAIN, after
    kinds = STUDENTS if trial.device.type == "cpu" else (*STUDENTS, *COMPILED_STUDENTS)
    for kind in kinds if is_replaceable(student) else ():
        if not budget.allows(kind, after.seconds):
            logger.info("speed: no time to try the %s student", kind)
            continue
        candidate = FastStudent(student, kind)
        began = budget.spent
        with _in_place(candidate):
            first = trial.step()
            if "compiled" in kind:
                budget.compiling = budget.spent - began
            steps = [first, *(trial.step() for _ in range(_ROUNDS))] if candidate.usable else []
        if not steps:
            continue  # It has said why.
        difference = reference.difference(first)
        if difference > _LARGEST_DIFFERENCE:
            logger.info("speed: the %s student is left out: its step differs by %.1f %%", kind, 100 * difference)
            continue
        step = min(steps[1:], key=lambda step: step.seconds)
        if step.seconds * _MARGIN < shortest.seconds:
            best, shortest = kind, step
    return best, shortest


class _in_place:
    """Put a replacement in for the duration of a block."""

    def __init__(self, replacement: FastTeacher | FastStudent | None) -> None:
        self.replacement = replacement

    def __enter__(self) -> None:
        if self.replacement is not None:
            self.replacement.put_in()

    def __exit__(self, *error: object) -> None:
        if self.replacement is not None:
            self.replacement.take_out()
