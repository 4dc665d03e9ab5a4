"""Compare two kinds of students over one or several seeds: per class, and in counts with their null."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from tllm_plugin.analysis import nulls
from tllm_plugin.analysis.nulls import NullCount
from tllm_plugin.analysis.results import LARGE, SLACK, Change, TestResult, change_between
from tllm_plugin.analysis.significance import LEVEL, merged_p_value, q_values

Vector = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation over several runs.

    Args:
        mean: Mean over runs.
        std: Sample standard deviation; NaN for one run.
        n: Number of runs.
    """

    mean: float
    std: float
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Summarise at least one value."""
        std = float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")
        return cls(float(np.mean(values)), std, len(values))


@dataclass(frozen=True)
class Count:
    """Number of classes, with the number expected under the null.

    Args:
        found: Count over the pairs of runs.
        null: The same count under the null hypothesis.
        p_value: Probability of at least this count under the null; NaN if several pairs were averaged.
    """

    found: Spread
    null: NullCount
    p_value: float = float("nan")


@dataclass(frozen=True, eq=False)
class Comparison:
    """Distilled runs of one kind against vanilla runs of the same student.

    Args:
        vanilla: Results of the vanilla runs, at least one.
        distilled: Results of the distilled runs, at least one.
        changes: Per-class changes of each pair of runs; runs with the same seed are paired if the seeds are known.
    """

    vanilla: tuple[TestResult, ...]
    distilled: tuple[TestResult, ...]
    changes: tuple[Change, ...]

    @property
    def accuracy(self) -> Spread:
        """Test accuracy of the distilled runs, a fraction."""
        return Spread.of([result.accuracy for result in self.distilled])

    @property
    def paired(self) -> bool:
        """Whether intervals and tests compare image by image."""
        return all(change.paired for change in self.changes)

    @cached_property
    def delta(self) -> Vector:
        """(C,) delta acc, a fraction, the mean over pairs."""
        return np.asarray(np.mean([change.delta for change in self.changes], axis=0))

    @cached_property
    def delta_std(self) -> Vector:
        """(C,) standard deviation of delta acc over pairs; NaN for one pair."""
        if len(self.changes) == 1:
            return np.full_like(self.delta, np.nan)
        return np.asarray(np.std([change.delta for change in self.changes], axis=0, ddof=1))

    @cached_property
    def interval(self) -> tuple[Vector, Vector]:
        """(low, high), (C,) each: 95 % intervals of `delta` for these networks, over test images like these.

        Each of K pairs gets an interval at level 1 - 0.05 / K, so that the mean of the intervals covers the mean at 95
        %.
        """
        ends = [change.interval(1.0 - 0.05 / len(self.changes)) for change in self.changes]
        low, high = np.mean(ends, axis=0)
        return np.asarray(low), np.asarray(high)

    @cached_property
    def p_value(self) -> Vector:
        """(C,) p-values that the class got worse."""
        return merged_p_value([change.p_value for change in self.changes])

    @cached_property
    def q_value(self) -> Vector:
        """(C,) Benjamini-Hochberg adjusted p-values; at most 0.05 means significantly worse (FDR 5 %)."""
        return q_values(self.p_value)

    @property
    def hurt(self) -> npt.NDArray[np.bool_]:
        """(C,) delta acc < 0, the paper's undistillable classes."""
        return np.asarray(self.delta < -SLACK)

    @property
    def significantly_worse(self) -> npt.NDArray[np.bool_]:
        """(C,) classes that are significantly worse (FDR 5 % over classes)."""
        return np.asarray(self.q_value <= LEVEL)

    @cached_property
    def hurt_count(self) -> Count:
        """Classes with delta acc < 0."""
        found = Spread.of([_hurt(change) for change in self.changes])
        null = _vanilla_null(self.vanilla, _hurt)
        if len(self.changes) > 1 and null is not None:
            return Count(found, null)
        chances = [_chance(change) for change in self.changes]
        p_value = nulls.count_p_value(int(found.mean), chances[0]) if len(chances) == 1 else float("nan")
        return Count(found, null or _mean_null([nulls.null_count(chance) for chance in chances]), p_value)

    @cached_property
    def significantly_worse_count(self) -> Count:
        """Classes that are significantly worse (Benjamini-Hochberg, FDR 5 %)."""
        found = Spread.of([_significantly_worse(change) for change in self.changes])
        null = _vanilla_null(self.vanilla, _significantly_worse)
        return Count(found, null or _mean_null([_permuted_survivors(change) for change in self.changes]))

    @cached_property
    def largely_hurt_count(self) -> Count:
        """Classes with delta acc < -5 points."""
        found = Spread.of([_largely_hurt(change) for change in self.changes])
        null = _vanilla_null(self.vanilla, _largely_hurt)
        return Count(found, null or _mean_null([nulls.null_count(_chance(x, LARGE + SLACK)) for x in self.changes]))


def compare(
    vanilla: Sequence[tuple[int | None, TestResult]], distilled: Sequence[tuple[int | None, TestResult]]
) -> Comparison:
    """Compare distilled runs with vanilla runs of the same student.

    A distilled run is paired with the vanilla run of the same seed; without one, vanilla runs are used in turn.

    Args:
        vanilla: (seed or None, results), at least one.
        distilled: (seed or None, results), at least one.

    Raises:
        ConfigError: The runs were tested on different images.
        ValueError: One side is empty.
    """
    if not vanilla or not distilled:
        raise ValueError("Expected at least one vanilla and one distilled run, but got none of one of them")
    by_seed = {seed: result for seed, result in reversed(vanilla) if seed is not None}
    changes = []
    for place, (seed, result) in enumerate(distilled):
        partner = by_seed.get(seed) if seed is not None else None
        changes.append(change_between(partner or vanilla[place % len(vanilla)][1], result))
    return Comparison(
        vanilla=tuple(result for _, result in vanilla),
        distilled=tuple(result for _, result in distilled),
        changes=tuple(changes),
    )


def _hurt(change: Change) -> int:
    return int(change.hurt.sum())


def _largely_hurt(change: Change) -> int:
    return int(change.largely_hurt.sum())


def _significantly_worse(change: Change) -> int:
    return int((q_values(change.p_value) <= LEVEL).sum())


def _chance(change: Change, drop: float = 0.0) -> Vector:
    """Return the probability of delta acc < -`drop` under the null, (C,)."""
    margin = drop * change.vanilla.total
    if change.losses is None or change.gains is None:
        return nulls.unpaired_chance(change.vanilla.correct, change.distilled.correct, change.vanilla.total, margin)
    return nulls.paired_chance(change.losses, change.gains, margin)


def _permuted_survivors(change: Change) -> NullCount:
    if change.losses is None or change.gains is None:
        counts = (change.vanilla.correct, change.distilled.correct, change.vanilla.total)
        return nulls.permuted_survivors_unpaired(*counts)
    return nulls.permuted_survivors(change.losses, change.gains)


def _vanilla_null(results: Sequence[TestResult], count: Callable[[Change], int]) -> NullCount | None:
    """Return the count over all ordered pairs of vanilla runs, or None if there is only one run."""
    if len(results) < 2:
        return None
    pairs = list(itertools.permutations(results, 2))
    spread = Spread.of([count(change_between(first, second)) for first, second in pairs])
    return NullCount(spread.mean, spread.std, "vanilla", len(pairs))


def _mean_null(found: Sequence[NullCount]) -> NullCount:
    return NullCount(
        float(np.mean([null.mean for null in found])), float(np.mean([null.std for null in found])), "permutation"
    )
