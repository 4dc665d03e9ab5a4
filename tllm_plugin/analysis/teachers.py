"""Describe the teachers of a study: their accuracy, and the classes planted in them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tllm_plugin.analysis.comparison import Spread
from tllm_plugin.analysis.loaded_run import LoadedRun, load_run, teacher_of
from tllm_plugin.analysis.networks import teacher_checkpoint
from tllm_plugin.analysis.study import Study
from tllm_plugin.analysis.wording import listed
from tllm_plugin.core.errors import ConfigError, TLLMError
from tllm_plugin.hosts.class_lists import resolve_classes
from tllm_plugin.runs.run_folder import RunFolder

_NAMED = 5


@dataclass(frozen=True)
class TeacherRow:
    """Table row about a teacher.

    Args:
        label: "teacher resnet56"; says so where classes were planted in it afterwards.
        accuracy: Test accuracy as trained, over the runs that trained it; None where these are not known.
        planted: Names of the classes that it was made wrong on before a student met it.
        students: Labels of the methods that learned from it.
    """

    label: str
    accuracy: Spread | None
    planted: tuple[str, ...]
    students: tuple[str, ...]


def planted_names(run: LoadedRun) -> tuple[str, ...]:
    """Return the names of the classes on which a run's teacher was made wrong (`DISTILLER.PLANT`)."""
    classes = run.spec.get("DISTILLER.PLANT.CLASSES") if run.teacher else None
    if not isinstance(classes, list):
        return ()
    try:
        indices = resolve_classes("DISTILLER.PLANT.CLASSES", classes, run.class_names, recorded=True)
    except ConfigError:  # A config that was edited by hand. That something was planted is not to be kept quiet.
        return tuple(map(str, classes))
    return tuple(run.class_names[index] for index in indices)


def named(classes: Sequence[str]) -> str:
    """Return the first class names, separated by commas, and the number of the others."""
    more = len(classes) - _NAMED
    return listed(classes[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def teacher_rows(study: Study) -> list[TeacherRow]:
    """Return one row per teacher, those with planted classes by themselves, in the order of the methods.

    The runs that trained them are those of the study, or else those that the configs of its methods name.
    """
    found: dict[tuple[str, tuple[str, ...]], tuple[dict[str, float], dict[str, None]]] = {}
    for method in study.methods:
        for run in method.runs:
            if not run.teacher:
                continue
            accuracies, students = found.setdefault((run.teacher, planted_names(run)), ({}, {}))
            students[method.label] = None
            trained = _trained(run) or study.teachers.get(run.teacher)
            if trained is not None:
                accuracies[str(trained.folder.path.resolve()) if trained.folder else trained.name] = (
                    trained.result.accuracy
                )
    return [
        TeacherRow(
            f"teacher {name}"
            + (f", as trained; its students met it made wrong on {named(planted)}" if planted else ""),
            Spread.of(list(accuracies.values())) if accuracies else None,
            planted,
            tuple(students),
        )
        for (name, planted), (accuracies, students) in found.items()
    ]


def teacher_run(run: LoadedRun) -> Path | None:
    """Return the path of the run that trained a run's teacher, whether the config names it or not; None if not found.

    Raises:
        FileFormatError: The data record of the run or of its teacher is damaged.
    """
    place = teacher_of(run)
    if place is not None or not run.teacher:
        return place
    try:
        checkpoint = teacher_checkpoint(run)
    except ConfigError:  # Of another host.
        return None
    try:
        return None if checkpoint is None else RunFolder.find(checkpoint.parent).log_folder
    except TLLMError:  # A checkpoint from elsewhere.
        return None


def _trained(run: LoadedRun) -> LoadedRun | None:
    """Return the run that trained a run's teacher, if it is to be found and of the same classes."""
    place = teacher_run(run)
    if place is None:
        return None
    try:
        trained = load_run(place)
    except (TLLMError, OSError):
        return None
    return trained if trained.class_names == run.class_names else None
