"""How memory, files and time grow with classes, hold-out, epochs, ranks and trials: measured, fitted, computed.

    python benchmarks/scaling.py --json scaling.json

Prints the tables of docs/scaling.md. Random scores stand for a network, because TLLM's own part of an epoch (scores
from logits, detector, files, reduction over processes) does not depend on it; forward passes are not in these numbers.
Times are CPU seconds of one thread, the least of `--repeats`, and for the reduction wall-clock seconds. A formula is
fitted to the measured points by least squares of relative errors. `off` is its largest relative error on them;
`largest` is how far the formula of all other points misses the largest point; `21,000` how far it misses the last
point, which is not among them. Processes are gloo's on one machine.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scaling_parts import (
    BYTES_PER_SAMPLE,
    EpochCost,
    RankCost,
    TrialCost,
    checkpoint_cost,
    epoch_cost,
    rank_cost,
    trial_cost,
)
from scipy.optimize import nnls

# Classes, hold-out images per class, epochs; the last one is a check and not fitted.
SIZES = ((10, 25, 60), (100, 25, 60), (100, 25, 240), (300, 26, 100), (1000, 13, 100), (1000, 26, 100), (1000, 26, 300))
CHECK = (21_000, 13, 10)
RANKS = (1, 2, 4)
RANK_SIZES = ((100, 25), (1000, 26), (1000, 130))
TRIALS = (20, 100)
# What is computed: name, C, n, E, R. Hold-outs are 5 % of CIFAR-100, 2 % of the others' training images.
JOBS = (
    ("CIFAR-100", 100, 2_500, 240, 1),
    ("ImageNet, 1 GPU", 1_000, 25_624, 100, 1),
    ("ImageNet, 8 GPUs", 1_000, 25_624, 300, 8),
    ("21,000 classes, 64 GPUs", 21_000, 284_000, 90, 64),
    ("21,000 classes, 64 GPUs", 21_000, 284_000, 300, 64),
)


@dataclass(frozen=True)
class Formula:
    """A quantity as a sum of terms with fitted factors.

    Args:
        name: Of the quantity.
        terms: Text of each term.
        factors: Of each term.
        off: Largest relative error on the points that it was fitted to.
        largest: Relative error at the largest point of a fit to all others.
    """

    name: str
    terms: tuple[str, ...]
    factors: tuple[float, ...]
    off: float
    largest: float

    def __str__(self) -> str:
        told = [f"{factor:.3g} {term}".strip() for factor, term in zip(self.factors, self.terms, strict=True) if factor]
        return " + ".join(told)


def fit(name: str, terms: Sequence[str], rows: Sequence[Sequence[float]], values: Sequence[float]) -> Formula:
    """Fit factors >= 0, so that relative errors are small; `rows` holds the terms' values, the largest point last."""

    def factors(count: int) -> np.ndarray:
        weighted = np.asarray(rows, dtype=float)[:count] / np.asarray(values, dtype=float)[:count, None]
        scale = weighted.max(axis=0)
        return np.asarray(nnls(weighted / scale, np.ones(count))[0] / scale)

    whole, without = factors(len(values)), factors(len(values) - 1)
    errors = np.asarray(rows) @ whole / np.asarray(values) - 1
    largest = float(np.dot(rows[-1], without) / values[-1] - 1)
    return Formula(name, tuple(terms), tuple(whole.tolist()), float(np.abs(errors).max()), largest)


Terms = Callable[[float, float, float], tuple[float, ...]]
# Quantity, terms as text, and their values from C, n, E.
FORMULAS: tuple[tuple[str, tuple[str, ...], Terms], ...] = (
    ("score_seconds", ("n C", "n"), lambda c, n, e: (n * c, n)),
    ("update_seconds", ("n", "C", ""), lambda c, n, e: (n, c, 1)),
    ("curves_seconds", ("3 n E", ""), lambda c, n, e: (BYTES_PER_SAMPLE * n * e, 1)),
    ("flags_seconds", ("C", ""), lambda c, n, e: (c, 1)),
    ("curves_bytes", ("3 n E", "16 n", ""), lambda c, n, e: (BYTES_PER_SAMPLE * n * e, 16 * n, 1)),
    ("flags_bytes", ("C", ""), lambda c, n, e: (c, 1)),
    ("history_bytes", ("3 n E", "16 n"), lambda c, n, e: (BYTES_PER_SAMPLE * n * e, 16 * n)),
    ("state_bytes", ("n", "C"), lambda c, n, e: (n, c)),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", default="", metavar="FILE", help="write the measurements")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, {os.cpu_count()} CPUs, one thread, least of {options.repeats}\n")
    epochs = [epoch_cost(*size, options.repeats) for size in SIZES]
    check = epoch_cost(*CHECK, options.repeats)
    show_epochs([*epochs, check])
    formulas = [
        fit(name, terms, [values(c.classes, c.samples, c.epochs) for c in epochs], [getattr(c, name) for c in epochs])
        for name, terms, values in FORMULAS
    ]
    show_formulas(formulas, check)
    ranks = [rank_cost(count, *size, options.repeats) for size in RANK_SIZES for count in RANKS]
    show_ranks(ranks)
    # No fit: on one machine with fewer cores than processes the time is that of waiting for a core, not of bytes.
    hop = max(item.gather_seconds / (item.ranks - 1) for item in ranks if item.ranks > 1)
    print(f"\nlongest reduction per further rank: {1e3 * hop:.2f} ms")
    trials = [trial_cost(count, kind) for kind in ("sqlite", "journal") for count in TRIALS]
    show_trials(trials)
    checkpoints = checkpoint_cost(4)
    grown = (checkpoints.bytes[-1] - checkpoints.bytes[0]) / (len(checkpoints.bytes) - 1)
    print(
        f"\ncheckpoints of digits: {checkpoints.bytes[0]} bytes, of these {checkpoints.network_bytes} networks and "
        f"momenta; {grown:.0f} more with each epoch, 3 n = {3 * checkpoints.samples}"
    )
    show_jobs(formulas, hop)
    if options.json:
        parts = {"epochs": epochs, "check": [check], "ranks": ranks, "trials": trials, "formulas": formulas}
        content: dict[str, Any] = {name: [asdict(item) for item in items] for name, items in parts.items()}
        content |= {"torch": torch.__version__, "cpus": os.cpu_count(), "checkpoints": asdict(checkpoints)}
        Path(options.json).write_text(json.dumps(content, indent=2) + "\n")


def show_epochs(costs: Sequence[EpochCost]) -> None:
    heading = "| C | n | E | scores | detector | curves.npz | flags.json | curves.npz | flags.json | memory |"
    print(f"{heading}\n{'| --- ' * 10}|")
    for item in costs:
        seconds = item.score_seconds, item.update_seconds, item.curves_seconds, item.flags_seconds
        sizes = item.curves_bytes, item.flags_bytes, item.history_bytes + item.state_bytes
        print(
            f"| {item.classes:,} | {item.samples:,} | {item.epochs} | "
            f"{' | '.join(f'{1e3 * x:.2f} ms' for x in seconds)}"
            f" | {' | '.join(megabytes(x) for x in sizes)} |"
        )


def show_formulas(formulas: Sequence[Formula], check: EpochCost) -> None:
    print("\n| quantity | formula | off | largest | 21,000 |\n| --- | --- | --- | --- | --- |")
    for formula in formulas:
        miss = computed(formula, check.classes, check.samples, check.epochs) / getattr(check, formula.name) - 1
        print(f"| {formula.name} | {formula} | {formula.off:.0%} | {formula.largest:+.0%} | {miss:+.0%} |")


def show_ranks(ranks: Sequence[RankCost]) -> None:
    heading = "| n | R | scores, slowest rank | received per rank | reduction | equal to one process |"
    print(f"\n{heading}\n{'| --- ' * 6}|")
    for item in ranks:
        received = BYTES_PER_SAMPLE * item.samples * (item.ranks - 1) / item.ranks
        print(
            f"| {item.samples:,} | {item.ranks} | {1e3 * item.score_seconds:.1f} ms | {received / 1e3:.0f} kB | "
            f"{1e3 * item.gather_seconds:.2f} ms | {'yes' if item.equal else 'NO'} |"
        )


def show_trials(trials: Sequence[TrialCost]) -> None:
    print("\n| storage | trials | file | per trial | seconds per trial |\n| --- | --- | --- | --- | --- |")
    for item in trials:
        size = f"{item.bytes / 1e3:.0f} kB | {item.bytes / item.trials / 1e3:.1f} kB"
        print(f"| {item.storage} | {item.trials} | {size} | {item.seconds_per_trial:.3f} |")


def show_jobs(formulas: Sequence[Formula], hop: float) -> None:
    by_name = {formula.name: formula for formula in formulas}
    heading = "| job | C | n | E | R | memory | curves.npz | flags.json | written per run | scores | rest of an epoch |"
    print(f"\n{heading}\n{'| --- ' * 11}|")
    for name, classes, samples, epochs, ranks in JOBS:
        found = {key: computed(formula, classes, samples, epochs) for key, formula in by_name.items()}
        # curves.npz is written whole after every epoch.
        halfway = computed(by_name["curves_bytes"], classes, samples, epochs / 2)
        written = epochs * (halfway + found["flags_bytes"])
        rest = found["update_seconds"] + found["curves_seconds"] + found["flags_seconds"] + hop * (ranks - 1)
        sizes = (found["history_bytes"] + found["state_bytes"], found["curves_bytes"], found["flags_bytes"])
        print(
            f"| {name} | {classes:,} | {samples:,} | {epochs} | {ranks} | {' | '.join(map(megabytes, sizes))} | "
            f"{written / 1e9:.1f} GB | {found['score_seconds'] / ranks:.2f} s | {rest:.2f} s |"
        )


def computed(formula: Formula, classes: int, samples: int, epochs: float) -> float:
    """Return what a formula gives."""
    terms = next(values for name, _, values in FORMULAS if name == formula.name)
    return float(np.dot(terms(classes, samples, epochs), formula.factors))


def megabytes(size: float) -> str:
    """Return a size as people read it."""
    return f"{size / 1e6:.2f} MB" if size < 1e7 else f"{size / 1e6:.0f} MB"


if __name__ == "__main__":
    main()
