"""Group runs into a study: vanilla runs, seeds of each method, and the comparison of each method with vanilla."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tllm_plugin.analysis.comparison import Comparison, Spread, compare
from tllm_plugin.analysis.loaded_run import VANILLA, LoadedRun
from tllm_plugin.analysis.overlap import Everywhere, Overlap, in_every, overlap
from tllm_plugin.analysis.results import Vector
from tllm_plugin.analysis.same_classes import with_same_classes
from tllm_plugin.hosts.run_spec import ONE_METHOD

logger = logging.getLogger(__name__)

_NAMED_SETTINGS = 3


@dataclass(frozen=True, eq=False)
class Method:
    """Runs that differ only in their seed, and the vanilla runs to compare them with.

    Args:
        label: Display name; includes networks or settings only if there are several.
        runs: Runs of the method, at least one.
        vanilla: Vanilla runs of the same student; may be empty.
        comparison: Comparison with `vanilla`; None without vanilla runs.
    """

    label: str
    runs: tuple[LoadedRun, ...]
    vanilla: tuple[LoadedRun, ...]
    comparison: Comparison | None

    @property
    def flagged(self) -> npt.NDArray[np.bool_]:
        """(C,) flagged by the detector in any of the runs."""
        return self.runs_that_flagged > 0

    @property
    def runs_that_flagged(self) -> npt.NDArray[np.int64]:
        """(C,) number of runs in which the detector flagged the class."""
        counts = np.zeros(len(self.runs[0].class_names), dtype=np.int64)
        for run in self.runs:
            if run.flags is not None:
                counts[list(run.flags.flagged)] += 1
        return counts

    @property
    def flagged_count(self) -> Spread | None:
        """Number of flagged classes per run; None if no run has a detector."""
        counts = [len(run.flags.flagged) for run in self.runs if run.flags is not None]
        return Spread.of(counts) if counts else None


@dataclass(frozen=True, eq=False)
class Study:
    """Several runs, grouped and compared.

    Args:
        class_names: (C,) names.
        vanilla: Runs of vanilla students.
        methods: All other students, in the given order.
        teachers: Runs of networks that are teachers of others, by architecture.
    """

    class_names: tuple[str, ...]
    vanilla: tuple[LoadedRun, ...]
    methods: tuple[Method, ...]
    teachers: dict[str, LoadedRun]

    @property
    def compared(self) -> tuple[Method, ...]:
        """Methods with a vanilla run to compare with."""
        return tuple(method for method in self.methods if method.comparison is not None)

    @property
    def baseline(self) -> str:
        """Name of the runs against which delta acc is measured: "vanilla" or another label."""
        return _baseline([*self.vanilla, *(run for method in self.methods for run in method.vanilla)])

    @property
    def vanilla_accuracy(self) -> Vector:
        """(C,) vanilla accuracy, a fraction: mean over the pairs of all methods.

        If all methods have the same seeds, this plus the delta acc of a method is the accuracy of its students. Without
        comparisons, it is the mean of the vanilla runs.
        """
        return _vanilla_accuracy(self.compared, self.vanilla)

    @property
    def vanilla_students(self) -> dict[str, tuple[LoadedRun, ...]]:
        """Vanilla runs by label: "vanilla", followed by the student's name if there are several students."""
        students = list(dict.fromkeys(run.student for run in self.vanilla))
        return {
            VANILLA if len(students) == 1 else f"{VANILLA} {student}": tuple(
                run for run in self.vanilla if run.student == student
            )
            for student in students
        }

    def accuracy_of(self, vanilla: Sequence[LoadedRun]) -> Vector:
        """Return `vanilla_accuracy` (C,) for the vanilla runs of one student and the methods compared with them."""
        return _vanilla_accuracy([method for method in self.compared if method.vanilla[0] in vanilla], vanilla)

    def overlap_of(self, row: Method, column: Method) -> Overlap:
        """Measure the overlap of the classes that two methods make worse.

        With two vanilla runs, each method is compared with a different one, so that they share no noise; the overlap of
        a method with itself then shows how reproducible its classes are. With one vanilla run, both share its noise.
        """
        return overlap(_hurt_against(row, 0), _hurt_against(column, 1))

    def hurt_in_every(self, methods: Sequence[Method]) -> Everywhere:
        """Return the classes with delta acc < 0 in all of `methods`."""
        return in_every([method.comparison.hurt for method in methods if method.comparison is not None])


def _vanilla_accuracy(compared: Iterable[Method], vanilla: Sequence[LoadedRun]) -> Vector:
    pairs = [change for method in compared if method.comparison for change in method.comparison.changes]
    results = [change.vanilla for change in pairs] or [run.result for run in vanilla]
    return np.asarray(np.mean([result.class_accuracy for result in results], axis=0))


def separate_vanilla(methods: Iterable[Method]) -> bool:
    """Return whether each side of an overlap can be compared with a different vanilla run."""
    return all(len(method.vanilla) > 1 for method in methods)


def build_study(runs: Sequence[LoadedRun]) -> Study:
    """Group runs by their configs.

    Runs without a teacher are vanilla runs; a vanilla run of another run's teacher architecture is its teacher.

    Raises:
        ConfigError: There is no run, or the runs have different classes.
    """
    runs = _without_repetition(with_same_classes(runs))
    taught = [run for run in runs if run.method != VANILLA]
    students, teaching = {run.student for run in taught}, {run.teacher for run in taught if run.teacher}
    plain = [run for run in runs if run.method == VANILLA]
    teachers = [run for run in plain if run.student in teaching and run.student not in students]
    vanilla = [run for run in plain if run not in teachers]
    return Study(
        class_names=runs[0].class_names,
        vanilla=tuple(vanilla),
        methods=_methods(taught, lambda run: [other for other in vanilla if other.student == run.student]),
        teachers={run.student: run for run in reversed(teachers)},
    )


def build_comparison(baseline: Sequence[LoadedRun], others: Sequence[LoadedRun]) -> Study:
    """Compare all runs in `others` with `baseline`, independent of their configs.

    Raises:
        ConfigError: The runs are of different classes.
    """
    named = with_same_classes([*baseline, *others])
    baseline, others = _without_repetition(named[: len(baseline)]), named[len(baseline) :]
    return Study(
        class_names=baseline[0].class_names,
        vanilla=tuple(baseline),
        methods=_methods(_without_repetition(others), lambda run: baseline, baseline=_baseline(baseline)),
        teachers={},
    )


def build_pairs(pairs: Sequence[tuple[Sequence[LoadedRun], Sequence[LoadedRun]]]) -> Study:
    """Compare several students, each with its own vanilla student, as in the paper's Table 7.

    Args:
        pairs: Vanilla and distilled runs of each student, at least one of each.

    Raises:
        ConfigError: The runs are of different classes.
    """
    named = iter(with_same_classes([run for pair in pairs for side in pair for run in side]))
    pairs = [tuple([next(named) for _ in side] for side in pair) for pair in pairs]  # type: ignore[misc]
    kinds = [side[0].method for pair in pairs for side in pair]
    methods = []
    for pair in pairs:
        vanilla, distilled = (_without_repetition(side) for side in pair)
        sides = ([(run.seed, run.result) for run in side] for side in (vanilla, distilled))
        label = _label(distilled[0], with_networks=kinds.count(distilled[0].method) > 1)
        methods.append(Method(label, tuple(distilled), tuple(vanilla), compare(*sides)))
    return Study(pairs[0][0][0].class_names, (), tuple(methods), {})


def _baseline(runs: Iterable[LoadedRun]) -> str:
    # The role of a bare checkpoint follows from its position on the command line.
    kinds = {VANILLA if run.folder is None and not run.grouped else run.method for run in runs}
    return kinds.pop() if len(kinds) == 1 else "baseline"


def _label(run: LoadedRun, *, with_networks: bool) -> str:
    return f"{run.method}, {run.pair}" if with_networks and run.pair else run.method


def _methods(
    runs: Sequence[LoadedRun], vanilla_of: Callable[[LoadedRun], Sequence[LoadedRun]], baseline: str = VANILLA
) -> tuple[Method, ...]:
    """Group runs into methods of equal pair and settings, with labels that differ from the baseline's."""
    kinds: dict[tuple[str, str], list[list[LoadedRun]]] = {}
    for run in runs:
        groups = kinds.setdefault((run.method, run.pair), [])
        same = next((group for group in groups if not group[0].unlike(run)), None)
        if same is None:
            groups.append([run])
        else:
            same.append(run)
    several_pairs = len({pair for _, pair in kinds if pair}) > 1
    methods = []
    for (method, _), groups in kinds.items():
        base = _label(groups[0][0], with_networks=several_pairs or method == baseline)
        for group, label in zip(groups, _labels(base, [group[0] for group in groups]), strict=True):
            vanilla = tuple(vanilla_of(group[0]))
            _warn_of_unlike(vanilla)
            comparison = None
            if vanilla:
                sides = ([(run.seed, run.result) for run in side] for side in (vanilla, group))
                comparison = compare(*sides)
            methods.append(Method(label, tuple(group), vanilla, comparison))
    return tuple(methods)


def _labels(base: str, runs: Sequence[LoadedRun]) -> list[str]:
    """Return one label per setting of a method; differing settings are part of the label."""
    if len(runs) == 1:
        return [base]
    differing = sorted({key for run in runs[1:] for key in runs[0].unlike(run)})
    labels = []
    for place, run in enumerate(runs, start=1):
        told = [f"{key.rpartition('.')[2]} {run.settings.value(key)}" for key in differing[:_NAMED_SETTINGS]]
        labels.append(", ".join([base, *(told or [f"settings {place}"])]))
    # Settings that are not named may differ as well.
    return labels if len(set(labels)) == len(labels) else [f"{label} ({n})" for n, label in enumerate(labels, start=1)]


def _warn_of_unlike(vanilla: Sequence[LoadedRun]) -> None:
    for run in vanilla[1:]:
        unlike = vanilla[0].unlike(run)
        if unlike:
            logger.warning(
                "%s and %s are treated as seeds of one vanilla student, but differ in %s",
                vanilla[0].name,
                run.name,
                ", ".join(unlike[:_NAMED_SETTINGS]),
            )


def _hurt_against(method: Method, place: int) -> npt.NDArray[np.bool_]:
    """Return (C,) classes with delta acc < 0 of a method against one vanilla run, or over all runs if there is one
    only."""
    if method.comparison is None:
        raise ValueError(f"Expected {method.label} to have a vanilla run, but it has none")
    if len(method.vanilla) < 2:
        return method.comparison.hurt
    vanilla = [(None, method.vanilla[place].result)]
    return compare(vanilla, [(None, run.result) for run in method.runs]).hurt


def _without_repetition(runs: Sequence[LoadedRun]) -> list[LoadedRun]:
    """Return each run once, even if it was named twice or copied.

    A repeated run would look like agreement of seeds, and in a null like seeds without differences.
    """
    seen: set[str] = set()
    kept: list[LoadedRun] = []
    for run in runs:
        place = run.name if run.folder is None else str(run.folder.path)
        if place in seen:
            continue
        seen.add(place)
        twin = next((other for other in kept if _same_training(run, other)), None)
        if twin is None:
            kept.append(run)
        else:
            logger.warning("%s is a copy of %s and is left out", place, twin.folder and twin.folder.path)
    return kept


def _same_training(run: LoadedRun, other: LoadedRun) -> bool:
    """Return whether two folders hold the same run: equal method, settings and hold-out history."""
    if run.folder is None or other.folder is None or (run.method, run.pair) != (other.method, other.pair):
        return False
    history, same = run.folder.curves_npz, other.folder.curves_npz
    if run.spec.differing(other.spec, ONE_METHOD) or run.curves is None or other.curves is None:
        return False
    return history.stat().st_size == same.stat().st_size and history.read_bytes() == same.read_bytes()
