"""Measure the effect of a method on every class, with its standard error, and compute its posterior.

The effect on a class is its expected delta acc over seeds. With several runs of one method, the noise of training is
estimated from the differences between their seeds. With a single pair of runs only the sampling of the test images is
known: the effect is then that of these two networks on images like the test images.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch

from tllm_plugin.analysis.comparison import Comparison
from tllm_plugin.analysis.results import Change
from tllm_plugin.core.posterior import Posterior, posterior

Vector = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class ClassEffects:
    """Measured effects of a method; all values are fractions of accuracy, and n is the number of tested classes.

    Args:
        tested: (C,) bool, whether the class has test images.
        effects: (n,) mean delta acc over runs.
        errors: (n,) standard errors of `effects`.
        noise: Variance of a class's delta acc in one pair of runs around its effect, the mean over classes.
        freedom: Degrees of freedom of `noise`.
        share: Variance of `effects` due to noise, in units of `noise`.
        source: "seeds" if the noise is estimated from several trainings, "images" if from a single pair of runs.
        paired: Whether each distilled run is compared with a vanilla run of its own.
        partners: Number of vanilla runs that the pairs use.
        distilled: (K, n) accuracies of the distilled runs.
        vanilla: (L, n) accuracies of the vanilla runs.
        deltas: (K, n) delta acc of each pair of runs.
    """

    tested: npt.NDArray[np.bool_]
    effects: Vector
    errors: Vector
    noise: float
    freedom: int
    share: float
    source: str
    paired: bool
    partners: int
    distilled: Vector
    vanilla: Vector
    deltas: Vector


@lru_cache(maxsize=64)
def class_effects(comparison: Comparison) -> ClassEffects:
    """Measure the effects from a method's runs and the vanilla runs that they are compared with."""
    tested = comparison.vanilla[0].total > 0
    partners = len({id(change.vanilla) for change in comparison.changes})
    paired = len(comparison.changes) > 1 and partners == len(comparison.changes)
    distilled = np.stack([change.distilled.class_accuracy[tested] for change in comparison.changes])
    vanilla = np.stack([result.class_accuracy[tested] for result in comparison.vanilla])
    deltas = np.stack([change.delta[tested] for change in comparison.changes])
    variances, freedom, source = _noise(comparison, distilled, vanilla, deltas, tested, paired)
    # Of unpaired runs either side has half of the noise of one pair.
    share = 1.0 / len(deltas) if paired else 0.5 / len(distilled) + 0.5 / len(vanilla)
    images = comparison.vanilla[0].total[tested]
    sampling = _smoothed(comparison.changes[0], tested) if source == "images" else variances
    return ClassEffects(
        tested=tested,
        effects=deltas.mean(0) if paired else distilled.mean(0) - vanilla.mean(0),
        # Networks that agree on every image of a class show no noise, which does not make their effect certain.
        errors=np.maximum(np.sqrt(share * sampling), 0.5 / images),
        noise=float(variances.mean()),
        freedom=freedom,
        share=share,
        source=source,
        paired=paired,
        partners=partners,
        distilled=distilled,
        vanilla=vanilla,
        deltas=deltas,
    )


@lru_cache(maxsize=64)
def effect_posterior(comparison: Comparison) -> Posterior:
    """Compute the posterior of the effect on every class, (C,); a class without test images has the posterior of an
    average class.

    Raises:
        ConfigError: No class has test images.
    """
    found = class_effects(comparison)
    effects, errors = np.full(len(found.tested), np.nan), np.ones(len(found.tested))
    effects[found.tested], errors[found.tested] = found.effects, found.errors
    return posterior(torch.from_numpy(effects), torch.from_numpy(errors))


def _noise(
    comparison: Comparison,
    distilled: Vector,
    vanilla: Vector,
    deltas: Vector,
    tested: npt.NDArray[np.bool_],
    paired: bool,
) -> tuple[Vector, int, str]:
    """Return the (n,) variances of one pair's delta acc around the effect, their degrees of freedom, and the source."""
    classes = deltas.shape[1]
    if paired:
        return np.full(classes, _pooled_variance(deltas)), (len(deltas) - 1) * classes, "seeds"
    sides = [side for side in (distilled, vanilla) if len(side) > 1]
    if sides:
        # A side with one run counts as noisy as the other.
        variance = 2.0 * float(np.mean([_pooled_variance(side) for side in sides]))
        return np.full(classes, variance), sum((len(side) - 1) * classes for side in sides), "seeds"
    change = comparison.changes[0]
    total = change.vanilla.total[tested].astype(np.float64)
    if change.losses is not None and change.gains is not None:
        changed = (change.losses + change.gains)[tested] / total
        return (changed - deltas[0] ** 2) / total, classes, "images"
    shares = np.stack([distilled[0], vanilla[0]])
    return (shares * (1.0 - shares)).sum(0) / total, classes, "images"


def _smoothed(change: Change, tested: npt.NDArray[np.bool_]) -> Vector:
    """Return the (n,) sampling variances of delta acc with half an image added to each of the four outcomes.

    Source: Agresti and Min, "Simple improved confidence intervals for comparing matched proportions" (2005).
    """
    total = change.vanilla.total[tested] + 2.0
    if change.losses is not None and change.gains is not None:
        losses, gains = ((count[tested] + 0.5) / total for count in (change.losses, change.gains))
        return np.asarray((losses + gains - (losses - gains) ** 2) / total)
    shares = np.stack([(result.correct[tested] + 1.0) / total for result in (change.vanilla, change.distilled)])
    return np.asarray((shares * (1.0 - shares)).sum(0) / total)


def _pooled_variance(values: Vector) -> float:
    """Return the mean over classes of the variance over runs of (runs, C) values, after removing each run's mean.

    A run that is better overall shifts its mean, but not the classes relative to each other.
    """
    centred = values - values.mean(1, keepdims=True)
    classes = values.shape[1]
    return float(centred.var(0, ddof=1).mean()) * classes / max(classes - 1, 1)
