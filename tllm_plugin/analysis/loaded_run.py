"""Load a finished run from its folder: networks, method, settings and results."""

from __future__ import annotations

import logging
import os
import shlex
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from tllm_plugin.analysis.results import TestResult
from tllm_plugin.core.curves import Curves
from tllm_plugin.core.errors import ConfigError, FileFormatError
from tllm_plugin.hosts.run_spec import ONE_METHOD, RunSpec
from tllm_plugin.runs.curves_file import to_state
from tllm_plugin.runs.flags_file import FlagsRecord
from tllm_plugin.runs.run_folder import RunFolder

logger = logging.getLogger(__name__)

VANILLA = "vanilla"
_BY_DETECTOR = {"none": "{}", "all": "LS", "after": "ESKD ({})", "fixed": "{}, fixed classes"}
_TEACHERLESS = {"none": VANILLA, "all": "LS"}


@dataclass(frozen=True, eq=False)
class LoadedRun:
    """One network with its test results, and the run that trained it, if any.

    Args:
        name: Distinguishing name.
        method: "vanilla", "KD", "TLLM (KD)", "ESKD (KD)", "LS", or a label given by the user.
        student: Architecture; empty if unknown.
        teacher: Architecture of the teacher; empty without one.
        seed: Seed of the run; None if unknown.
        class_names: (C,) names.
        result: Results on the test data.
        flags: Flags of the detector; None without a detector.
        folder: Folder of the run; None for a bare checkpoint.
        spec: Settings of the run; empty if unknown.
        grouped: Whether the user named the method; runs of the same name are then its seeds, regardless of their
            configs.
        indexed: Whether classes are in the order of the logits; not so for answers that know their names alone.
    """

    name: str
    method: str
    student: str
    teacher: str
    seed: int | None
    class_names: tuple[str, ...]
    result: TestResult
    flags: FlagsRecord | None = None
    folder: RunFolder | None = None
    spec: RunSpec = field(default_factory=RunSpec)
    grouped: bool = False
    indexed: bool = True

    @property
    def pair(self) -> str:
        """Teacher and student as the field writes them, "resnet56/resnet20"; the student alone without a teacher."""
        return f"{self.teacher}/{self.student}" if self.teacher else self.student

    @property
    def settings(self) -> RunSpec:
        """Settings that distinguish methods; empty if the user named the method."""
        return RunSpec() if self.grouped else self.spec

    def unlike(self, other: LoadedRun) -> list[str]:
        """Return the keys in which two runs differ although seeds of one method must agree in them."""
        return self.settings.differing(other.settings, ONE_METHOD)

    @cached_property
    def curves(self) -> Curves | None:
        """Hold-out history, or None without one."""
        return None if self.folder is None else load_curves(self.folder)


def load_curves(folder: RunFolder) -> Curves | None:
    """Return the hold-out history of a run; None without one.

    Raises:
        FileFormatError: The file is damaged.
    """
    if not folder.curves_npz.exists():
        return None
    curves = Curves.from_state(to_state(folder.read_curves()))
    return curves if len(curves) and curves.labels.numel() else None


def load_run(path: str | os.PathLike[str]) -> LoadedRun:
    """Read a run.

    Args:
        path: Log folder of the run, its `tllm/` folder, or a file in that.

    Raises:
        FileFormatError: There is no run, or a file of it is missing or damaged.
        ConfigError: The run has not been tested yet.

    """
    folder = RunFolder.find(path)
    spec = RunSpec.read(folder)
    flags = folder.read_flags() if folder.flags_json.exists() else None
    result = read_result(folder)
    names = tuple(item.name for item in flags.classes) if flags else tuple(map(str, range(result.total.size)))
    if len(names) != result.total.size:
        raise FileFormatError(
            f"Expected flags.json and metrics.json in {folder.path} to be of as many classes, but got {len(names)} and "
            f"{result.total.size}; run again what wrote them"
        )
    taught = spec.get("DISTILLER.TYPE", "NONE") != "NONE"
    return LoadedRun(
        name=folder.log_folder.name,
        method=method_of(spec) or folder.log_folder.name,
        student=str(spec.get("DISTILLER.STUDENT", "")),
        teacher=str(spec.get("DISTILLER.TEACHER", "")) if taught else "",
        seed=spec.get("EXPERIMENT.SEED"),
        class_names=names,
        result=result,
        flags=flags,
        folder=folder,
        spec=spec,
    )


def read_result(folder: RunFolder) -> TestResult:
    """Read test results: predictions per image if the run recorded them, otherwise counts per class.

    Raises:
        FileFormatError: A file is missing or damaged, or the two disagree.
        ConfigError: The run has not been tested yet.
    """
    metrics = folder.read_metrics()
    if not metrics.tested:
        how = f"; `{shlex.join(['tllm', 'test', str(folder.log_folder)])}` tests it" if metrics.finished else " yet"
        raise ConfigError(f"Expected {folder.log_folder} to be a run that was tested, but it has no test results{how}")
    if not metrics.finished:
        logger.warning("%s: not finished; its results are those after epoch %d", folder.path, metrics.epochs_done)
    if not (metrics.finished and folder.predictions_npz.exists()):
        return TestResult.from_metrics(metrics)
    predictions = folder.read_predictions()
    if not metrics.agrees_with(predictions):
        raise FileFormatError(
            f"Expected predictions.npz and metrics.json in {folder.path} to agree, but they do not; run again what "
            "wrote them"
        )
    return TestResult.from_predictions(predictions)


def method_of(spec: RunSpec) -> str:
    """Return the usual name of the method that a run trained; empty if unknown.

    >>> method_of(RunSpec({"DISTILLER.TYPE": "KD", "TLLM.DETECTOR.TYPE": "reference"}))
    'TLLM (KD)'
    """
    kind = spec.get("DISTILLER.TYPE", "")
    kind = spec.get("TLLM.DISTILLER", kind) if kind == "TLLM" else kind
    detector = spec.get("TLLM.DETECTOR.TYPE", "none")
    if kind in ("", "NONE"):
        return _TEACHERLESS.get(detector, "LS, some classes") if kind else ""
    return _BY_DETECTOR.get(detector, "TLLM ({})").format(kind)


def reference_of(run: LoadedRun) -> Path | None:
    """Return the path of the vanilla run that is the reference of a run's detector; None if it is not found.

    A reference that was moved together with the run is found next to it.
    """
    named = run.spec.get("TLLM.DETECTOR.REFERENCE")
    return _moved(run, Path(named)) if named else None


def teacher_of(run: LoadedRun) -> Path | None:
    """Return the path of the run that trained a run's teacher, from the teacher's checkpoint; None if not found."""
    named = run.spec.get("DISTILLER.TEACHER_CHECKPOINT")
    return _moved(run, Path(named).parent) if named and run.teacher else None


def _moved(run: LoadedRun, named: Path) -> Path | None:
    places = [named]
    if run.folder is not None:
        log_folder = named.parent if named.name == run.folder.path.name or named.is_file() else named
        places.append(run.folder.log_folder.parent / log_folder.name)
    for place in places:
        try:
            if RunFolder.find(place).metrics_json.exists():
                return place
        except FileFormatError:
            continue
    return None
