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
        label: "teacher resnet56", with a note on classes that were planted afterwards.
        accuracy: Test accuracy before planting, over the runs that trained the teacher; None if these are not known.
        planted: Names of the classes that were planted before distillation.
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
    except ConfigError:  # The config was edited by hand; its entries are shown, so that planting is never hidden.
        return tuple(map(str, classes))
    return tuple(run.class_names[index] for index in indices)


def named(classes: Sequence[str]) -> str:
    """Return the first class names, separated by commas, and the number of the others."""
    more = len(classes) - _NAMED
    return listed(classes[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def teacher_rows(study: Study) -> list[TeacherRow]:
    """Return one row per teacher and set of planted classes, in the order of the methods.

    Accuracies are taken from the teachers' runs in the study or named in the methods' configs.
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
            f"teacher {name}" + (f", before planting {named(planted)}" if planted else ""),
            Spread.of(list(accuracies.values())) if accuracies else None,
            planted,
            tuple(students),
        )
        for (name, planted), (accuracies, students) in found.items()
    ]


def teacher_run(run: LoadedRun) -> Path | None:
    """Return the path of the run that trained a run's teacher, named in the config or not; None if not found.

    Raises:
        FileFormatError: The data record of the run or of its teacher is damaged.
    """
    place = teacher_of(run)
    if place is not None or not run.teacher:
        return place
    try:
        checkpoint = teacher_checkpoint(run)
    except ConfigError:  # The run is of another host.
        return None
    try:
        return None if checkpoint is None else RunFolder.find(checkpoint.parent).log_folder
    except TLLMError:  # The checkpoint was trained elsewhere.
        return None


def _trained(run: LoadedRun) -> LoadedRun | None:
    """Return the run that trained a run's teacher, if it is found and has the same classes."""
    place = teacher_run(run)
    if place is None:
        return None
    try:
        trained = load_run(place)
    except (TLLMError, OSError):
        return None
    return trained if trained.class_names == run.class_names else None
