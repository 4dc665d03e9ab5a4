"""Cut hold-outs: class-balanced parts of the training data that are never trained on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tllm_plugin.core.arguments import as_indices, number_in, whole_number
from tllm_plugin.core.errors import ConfigError

MIN_PER_CLASS = 5


@dataclass(frozen=True)
class Split:
    """Disjoint indices into the training data, each ascending int64 on the CPU.

    Args:
        train: Samples to train on.
        holdout: Hold-out on which the detector judges the classes.
        search: Hold-out on which a search compares values of eta; empty unless requested.
    """

    train: Tensor
    holdout: Tensor
    search: Tensor


def split(
    labels: Tensor | Sequence[int] | Any,
    fraction: float = 0.05,
    search_fraction: float = 0.0,
    *,
    seed: int = 0,
    class_names: Sequence[str] | None = None,
) -> Split:
    """Split the training data into a class-balanced hold-out, an optional second one, and the rest.

    Args:
        labels: (N,) class indices of the training data: a tensor, an array or a list of integers. Every class in
            `range(max + 1)` must occur.
        fraction: Fraction of the training data in the hold-out, in (0, 1), or 0 for none. The same number of samples,
            `round(fraction * N / C)`, is taken from every class.
        search_fraction: Fraction of the *remaining* data in the search hold-out, in [0, 1).
        seed: Seed of the random choice of samples.
        class_names: (C,) names, used in error messages.

    Raises:
        ConfigError: The labels are not class indices (floats, bools and names are rejected), or a fraction is out of
            range, gives fewer than 5 samples per class, or leaves a class without training samples. The message names
            the class and a fraction that works.

    Source: appendix B: 5 % (ImageNet 2 %) with the same number of samples per class; for the search "another 5 % of
        the pruned training data".

    >>> parts = split(torch.arange(10).repeat(100), fraction=0.05)
    >>> parts.holdout.numel(), parts.train.numel(), parts.search.numel()
    (50, 950, 0)
    """
    fraction = number_in("fraction", fraction, 0, 1, open_high=True)
    search_fraction = number_in("search_fraction", search_fraction, 0, 1, open_high=True)
    seed = whole_number("seed", seed, -(2**63))
    labels = as_indices("labels", labels)
    if labels.numel() == 0:
        raise ConfigError("Expected `labels` to be of at least one sample, but got none")
    counts = torch.bincount(labels)
    names = class_names if class_names is not None else [str(index) for index in range(counts.numel())]
    if len(names) != counts.numel():
        raise ConfigError(
            f"Expected `class_names` to name the {counts.numel()} classes of the labels, but got {len(names)} names"
        )
    if counts.min() == 0:
        raise ConfigError(f"Expected every class to have samples, but class {names[int(counts.argmin())]!r} has none")
    order = torch.randperm(labels.numel(), generator=torch.Generator().manual_seed(seed))
    rank = _rank_within_class(labels, order)
    holdout_per_class = _per_class("fraction", fraction, counts, names)
    search_per_class = _per_class("search_fraction", search_fraction, counts - holdout_per_class, names)
    in_holdout = rank < holdout_per_class
    in_search = ~in_holdout & (rank < holdout_per_class + search_per_class)
    return Split(
        train=(~in_holdout & ~in_search).nonzero().squeeze(1),
        holdout=in_holdout.nonzero().squeeze(1),
        search=in_search.nonzero().squeeze(1),
    )


def images_per_class(fraction: float, samples: int, classes: int) -> int:
    """Return how many samples of every class a hold-out of a fraction of all samples takes."""
    return round(fraction * samples / classes)


def _rank_within_class(labels: Tensor, order: Tensor) -> Tensor:
    """Return (N,) the position of each sample among the samples of its class when visited in `order`."""
    visited = labels[order]
    by_class = visited.argsort(stable=True)
    starts = torch.bincount(labels).cumsum(0) - torch.bincount(labels)
    rank = torch.empty_like(labels)
    rank[order[by_class]] = torch.arange(labels.numel()) - starts[visited[by_class]]
    return rank


def _per_class(name: str, fraction: float, counts: Tensor, names: Sequence[str]) -> int:
    if fraction == 0.0:
        return 0
    total, classes = int(counts.sum()), counts.numel()
    smallest = int(counts.argmin())
    per_class = images_per_class(fraction, total, classes)
    if per_class < MIN_PER_CLASS:
        raise ConfigError(
            f"Expected hold-out `{name}` to give at least {MIN_PER_CLASS} samples of every class, but {fraction} gives "
            f"{per_class} of class {names[smallest]!r}; {_what_would_do(counts, least=True)}"
        )
    if per_class >= counts[smallest]:
        raise ConfigError(
            f"Expected hold-out `{name}` to leave samples of every class to train on, but {fraction} takes {per_class} "
            f"from class {names[smallest]!r}, which has {int(counts[smallest])}; "
            f"{_what_would_do(counts, least=False)}"
        )
    return per_class


def _what_would_do(counts: Tensor, *, least: bool) -> str:
    """Describe the smallest or the largest fraction that works, with as few digits as possible."""
    smallest, total, classes = int(counts.min()), int(counts.sum()), counts.numel()
    if smallest <= MIN_PER_CLASS:
        return f"no fraction would do: the class needs more than {MIN_PER_CLASS} samples"
    # Rounded to three digits, a fraction of many samples may miss the few numbers that would do.
    for scale in (10**3, 10**6, 10**9):
        exact = (MIN_PER_CLASS if least else smallest - 1) * classes / total * scale
        fraction = (math.ceil(exact) if least else math.floor(exact)) / scale
        if fraction < 1.0 and MIN_PER_CLASS <= images_per_class(fraction, total, classes) < smallest:
            break
    return f"{fraction} would do" if least else f"at most {fraction} would do"
