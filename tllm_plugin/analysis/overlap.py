"""Overlap of the classes with delta acc < 0 between methods, pairs of networks and students."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import hypergeom

Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Overlap:
    """Overlap of two sets of classes.

    Args:
        jaccard: Jaccard index in [0, 1], size of the intersection divided by size of the union; NaN if both are empty.
        expected: Mean Jaccard index of two random sets of these sizes.
        p_value: Probability that two random sets of these sizes have at least as many classes in common.
    """

    jaccard: float
    expected: float
    p_value: float


def overlap(first: Flags, second: Flags) -> Overlap:
    """Compare two sets of classes, each (C,) bool.

    The p-value is from a permutation test over classes with its exact, hypergeometric distribution. Sets from
    comparisons with the *same* vanilla run share its noise, which alone increases their overlap.

    >>> overlap(np.array([True, True, False, False]), np.array([True, True, False, False])).jaccard
    1.0
    """
    sizes, classes = (int(first.sum()), int(second.sum())), first.size
    common = int((first & second).sum())
    possible = np.arange(max(0, sum(sizes) - classes), min(sizes) + 1)
    chance = hypergeom.pmf(possible, classes, *sizes)
    either = sum(sizes) - possible
    index = np.divide(possible, either, out=np.full(len(possible), np.nan), where=either > 0)
    jaccard = common / (sum(sizes) - common) if sum(sizes) > common else float("nan")
    return Overlap(jaccard, float((chance * index).sum()), float(min(1.0, chance[possible >= common].sum())))


@dataclass(frozen=True)
class Everywhere:
    """Intersection of several sets of classes.

    Args:
        classes: Indices of the classes.
        expected: Mean size of the intersection of independent random sets of the same sizes.
        p_value: Probability of an intersection of at least this size.
    """

    classes: tuple[int, ...]
    expected: float
    p_value: float


def in_every(sets: Sequence[Flags]) -> Everywhere:
    """Return the intersection of `sets`, each (C,) bool, with its expectation by chance.

    Raises:
        ValueError: `sets` is empty.
    """
    if not sets:
        raise ValueError("Expected `sets` to hold at least one set of classes, but got none")
    classes = sets[0].size
    common = np.logical_and.reduce(list(sets))
    # Distribution of the size of the intersection, updated for one random set after another.
    chance = np.zeros(classes + 1)
    chance[int(sets[0].sum())] = 1.0
    sizes = np.arange(classes + 1)
    for flags in sets[1:]:
        following = np.zeros_like(chance)
        for size in np.nonzero(chance)[0]:
            following += chance[size] * hypergeom.pmf(sizes, classes, size, int(flags.sum()))
        chance = following
    return Everywhere(
        classes=tuple(np.nonzero(common)[0].tolist()),
        expected=float((sizes * chance).sum()),
        p_value=float(min(1.0, chance[int(common.sum()) :].sum())),
    )
