"""Table at the end of a training: teacher, vanilla student, plain distillation and the run itself."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from rich.table import Table

from tllm_plugin.analysis.loaded_run import VANILLA, LoadedRun, load_run, reference_of
from tllm_plugin.analysis.results import change_between
from tllm_plugin.analysis.teachers import named, planted_names, teacher_run
from tllm_plugin.core.errors import TLLMError
from tllm_plugin.hosts.run_spec import ONE_BEGINNING, Mark
from tllm_plugin.runs.run_folder import RunFolder

# A vanilla run may differ in these keys, although they change the weights or repeat a run.
_OF_TEACHING = {"DISTILLER.TYPE", "DISTILLER.TEACHER_CHECKPOINT"}


def comparison_table(run: LoadedRun) -> Table:
    """Return one row each for the teacher, the vanilla student, plain distillation and the run.

    The vanilla run is the reference of the detector or a run of the same seed in a neighbouring folder; plain
    distillation is the run without a detector in a neighbouring folder. If a run is not found, its row says so.

    Args:
        run: Tested run with a distiller.
    """
    reference = _loaded(reference_of(run), run)
    neighbours = [] if run.folder is None else list(_neighbours(run))
    vanilla = reference or next((other for other in neighbours if _is_vanilla_of(other, run)), None)
    plain = next((other for other in neighbours if _is_plain_of(other, run)), None)
    rows: list[tuple[str, LoadedRun | None]] = [(f"teacher {run.teacher}", _loaded(teacher_run(run), run))]
    rows.append(("vanilla student", vanilla))
    if run.spec.get("TLLM.DETECTOR.TYPE", "none") != "none":
        rows.append((f"{run.spec.get('DISTILLER.TYPE')}, no detector", plain))
    rows.append((f"this run: {run.method}", run))
    planted = planted_names(run)
    title = f"planted in the teacher after its own test: {named(planted)}" if planted else None
    table = Table(title=title, title_justify="left")
    table.add_column("", overflow="fold")
    for heading in ("test\naccuracy", "classes\nbelow vanilla"):
        table.add_column(heading, justify="right", overflow="fold")
    table.add_column("flagged", overflow="fold")
    for label, other in rows:
        table.add_row(label, *_cells(other, vanilla, is_teacher=other is not None and label.startswith("teacher ")))
    return table


def _cells(run: LoadedRun | None, vanilla: LoadedRun | None, *, is_teacher: bool) -> list[str]:
    if run is None:
        return ["not found", "", ""]
    accuracy = f"{run.result.accuracy:.2%}"
    if is_teacher or run is vanilla:
        return [accuracy, "", ""]
    hurt = "" if vanilla is None else f"{change_between(vanilla.result, run.result).hurt.sum()}"
    names = () if run.flags is None else tuple(run.flags.classes[index].name for index in run.flags.flagged)
    count = f"{len(names)} of {len(run.class_names)}"
    flagged = f"{count}: {named(names)}" if names else count
    return [accuracy, f"{hurt} of {len(run.class_names)}" if hurt else "", flagged]


def _neighbours(run: LoadedRun) -> Iterator[LoadedRun]:
    assert run.folder is not None
    for place in sorted(run.folder.log_folder.parent.iterdir()):
        if place != run.folder.log_folder and RunFolder.inside(place).metrics_json.exists():
            other = _loaded(place, run)
            if other is not None and other.student == run.student:
                yield other


def _loaded(place: Path | None, run: LoadedRun) -> LoadedRun | None:
    """Return the finished and tested run at `place` if it has the classes of `run`."""
    try:
        if place is None or not RunFolder.find(place).is_finished():
            return None
        other = load_run(place)
    except (TLLMError, OSError):
        return None
    return other if other.class_names == run.class_names else None


def _is_vanilla_of(other: LoadedRun, run: LoadedRun) -> bool:
    differing = other.spec.differing(run.spec, frozenset({Mark.TRAINING, Mark.REPETITION}))
    return other.method == VANILLA and set(differing) <= _OF_TEACHING


def _is_plain_of(other: LoadedRun, run: LoadedRun) -> bool:
    if other.spec.get("TLLM.DETECTOR.TYPE") != "none" or other.spec.get("TLLM.POLICY"):
        return False
    return all(key.startswith("TLLM.POLICY") for key in other.spec.differing(run.spec, ONE_BEGINNING))
