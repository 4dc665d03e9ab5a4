"""Estimate the headroom: the spread of distillation's effects over classes, and the possible gain of a class-wise rule.

The effect on a class is its expected delta acc over seeds. A single pair of runs shows the effect plus the noise of two
trainings, so the raw counts and sums of a comparison grow with the noise. Here the noise is estimated from runs of one
method that differ in their seed, and removed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import norm

from tllm_plugin.analysis.comparison import Comparison
from tllm_plugin.analysis.effects import ClassEffects, class_effects
from tllm_plugin.core.errors import ConfigError

Vector = npt.NDArray[np.float64]

_DRAWS = 4000
_HALVES = 200


@dataclass(frozen=True)
class Estimate:
    """Estimate with its 95 % interval.

    Args:
        value: Point estimate.
        low: Lower end of the interval.
        high: Upper end of the interval.
    """

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Headroom:
    """True effects of a method on classes, with training noise removed; all values are fractions of accuracy.

    Args:
        classes: C.
        distilled_runs: K.
        vanilla_runs: L, the number of vanilla runs that the estimate uses.
        mean: Mean effect over classes.
        spread: Standard deviation of the true effects over classes.
        ceiling: Mean over classes of `max(0, -effect)`: the gain in mean accuracy if every class below vanilla had its
            vanilla accuracy. No rule that only restores classes can gain more.
        noise: Standard deviation of a class's delta acc in one pair of runs around its effect.
        reliability: Correlation over classes between the effects in two halves of the runs; NaN if either kind has a
            single run.
        below: Number of classes with delta acc < 0, the mean over pairs of runs.
        below_by_shift: The count expected if every class had the mean effect and differed only by noise.
        source: "seeds" if the noise is estimated from several trainings; "images" if a single pair of runs only shows
            the sampling of test images, which is smaller, so that `spread` and `ceiling` are too large.
    """

    classes: int
    distilled_runs: int
    vanilla_runs: int
    mean: Estimate
    spread: Estimate
    ceiling: Estimate
    noise: float
    reliability: float
    below: float
    below_by_shift: float
    source: str


def restored_gain(mean: npt.ArrayLike, spread: npt.ArrayLike) -> Vector:
    """Return the expected `max(0, -x)` of a normal x with this mean and standard deviation.

    >>> round(float(restored_gain(0.0, 1.0)), 4)
    0.3989
    """
    mean, spread = np.asarray(mean, dtype=np.float64), np.asarray(spread, dtype=np.float64)
    scaled = mean / np.where(spread > 0, spread, 1.0)
    uncertain = spread * norm.pdf(scaled) - mean * norm.cdf(-scaled)
    return np.asarray(np.where(spread > 0, uncertain, np.maximum(-mean, 0.0)))


def headroom(comparison: Comparison) -> Headroom:
    """Estimate the headroom of a method from its runs and the vanilla runs that they are compared with.

    The variance of the true effects is the variance over classes of the mean effect, minus the variance of this mean
    due to noise (a random-effects model, fitted by moments). Intervals are generalised confidence intervals: mean,
    total variance and noise are drawn from their distributions under normal effects and normal noise.

    Args:
        comparison: Comparison of at least three classes with test images.

    Raises:
        ConfigError: Fewer than three classes can be compared.
    """
    found = class_effects(comparison)
    classes = int(found.tested.sum())
    if classes < 3:
        raise ConfigError(f"Expected at least 3 classes with test images for the headroom, but got {classes}")
    mean, total = float(found.effects.mean()), float(found.effects.var(ddof=1))
    noise, freedom, share = found.noise, found.freedom, found.share
    spread = float(np.sqrt(max(0.0, total - share * noise)))

    generator = np.random.default_rng(0)
    totals = total * (classes - 1) / generator.chisquare(classes - 1, _DRAWS)
    noises = noise * freedom / generator.chisquare(freedom, _DRAWS)
    spreads = np.sqrt(np.maximum(0.0, totals - share * noises))
    means = mean + np.sqrt(totals / classes) * generator.standard_normal(_DRAWS)
    noise_of_pair = float(np.sqrt(noise))
    return Headroom(
        classes=classes,
        distilled_runs=len(found.distilled),
        vanilla_runs=found.partners if found.paired else len(found.vanilla),
        mean=_estimate(mean, means),
        spread=_estimate(spread, spreads),
        ceiling=_estimate(float(restored_gain(mean, spread)), restored_gain(means, spreads)),
        noise=noise_of_pair,
        reliability=_reliability(found, generator),
        below=comparison.hurt_count.found.mean,
        below_by_shift=classes * float(norm.cdf(-mean / noise_of_pair)) if noise else float(classes * (mean < 0)),
        source=found.source,
    )


def headroom_of(comparison: Comparison) -> Headroom | None:
    """Estimate the headroom, or return None if fewer than three classes have test images."""
    return headroom(comparison) if int((comparison.vanilla[0].total > 0).sum()) >= 3 else None


def _reliability(effects: ClassEffects, generator: np.random.Generator) -> float:
    if min(len(effects.distilled), len(effects.deltas) if effects.paired else len(effects.vanilla)) < 2:
        return float("nan")
    found = []
    for _ in range(_HALVES):
        if effects.paired:
            first, second = _halves(effects.deltas, generator)
        else:
            taught, plain = _halves(effects.distilled, generator), _halves(effects.vanilla, generator)
            first, second = (one - other for one, other in zip(taught, plain, strict=True))
        if first.std() > 0 and second.std() > 0:
            found.append(np.corrcoef(first, second)[0, 1])
    return float(np.mean(found)) if found else float("nan")


def _halves(values: Vector, generator: np.random.Generator) -> tuple[Vector, Vector]:
    order = generator.permutation(len(values))
    middle = len(values) // 2
    return values[order[:middle]].mean(0), values[order[middle:]].mean(0)


def _estimate(value: float, draws: Vector) -> Estimate:
    low, high = np.quantile(draws, [0.025, 0.975])
    return Estimate(value, float(low), float(high))


def as_rows(found: Sequence[tuple[str, Headroom]]) -> list[tuple[str, ...]]:
    """Return one row of text per method for a table headed by `HEADING`, in points of accuracy."""
    return [
        (
            label,
            f"{item.distilled_runs} / {item.vanilla_runs}",
            _points(item.mean, signed=True),
            _points(item.spread),
            "" if np.isnan(item.reliability) else f"{item.reliability:.2f}",
            _points(item.ceiling),
            f"{item.below:g} of {item.classes}",
            f"{item.below_by_shift:.0f} of {item.classes}",
        )
        for label, item in found
    ]


HEADING = (
    "method",
    "runs / baseline",
    "mean effect",
    "spread of effects",
    "split-half r",
    "ceiling",
    "classes below baseline",
    "by mean and noise alone",
)


def _points(estimate: Estimate, *, signed: bool = False) -> str:
    sign = "+" if signed else ""
    ends = f"{100 * estimate.low:{sign}.1f} to {100 * estimate.high:{sign}.1f}"
    return f"{100 * estimate.value:{sign}.1f} ({ends})"
