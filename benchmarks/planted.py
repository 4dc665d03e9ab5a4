"""How well detectors find undistillable classes where the truth is known, because it was planted.

    python benchmarks/planted.py --seeds 20

For every seed this trains a teacher, two vanilla students, a KD student with the teacher as it is, and a KD student
whose teacher is confidently wrong on `--planted` random classes. Every rule then watches the same recorded hold-out
curves of these runs (without acting on them): precision, recall and F1 on the planted run; false flags, as a share of
all classes, on the run with the honest teacher and on the second vanilla student, where the truth is "none". `delta
acc` over all seeds, on the test set, verifies the truth. `--online` adds, for the rules named in `ONLINE`, runs in
which the flags act: F1, test accuracy on the planted classes, and CPU seconds per training image, scoring and writing
included, as a ratio to a plain KD run of the same seed, the runs taking turns. Runs that `--runs` holds already have no
time.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from tllm_plugin.analysis.results import TestResult, change_between
from tllm_plugin.core.curves import Curves
from tllm_plugin.core.detectors import DETECTORS, ImitationDetector, ReferenceDetector, create_detector, options_for
from tllm_plugin.hosts.embedded import recipe
from tllm_plugin.hosts.embedded.config import load_config
from tllm_plugin.hosts.embedded.data import load_bundle
from tllm_plugin.runs.curves_file import to_state
from tllm_plugin.runs.run_folder import RunFolder

SCORES = ("accuracy", "reciprocal_rank", "true_prob", "agreement")


@DETECTORS.register("imitation_plain")
class PlainImitation(ImitationDetector):
    """Without the demand that the share stands out among the classes: hard classes share some errors anyway."""

    spreads = 0.0


@DETECTORS.register("reference_plain")
class PlainReference(ReferenceDetector):
    """Without the demand that the drop stands out among the classes: two runs differ anyway."""

    spreads = 0.0


@dataclass(frozen=True)
class Rule:
    detector: str
    score: str
    fdr: float
    options: tuple[tuple[str, float], ...] = ()

    @property
    def needs_teacher(self) -> bool:
        return DETECTORS[self.detector].needs_teacher or self.score == "agreement"


RULES = [
    *(Rule(detector, score, 0.05) for detector in ("reference", "teaching_curve") for score in SCORES),
    *(Rule("reference_plain", score, 0.05) for score in SCORES),
    *(Rule(detector, "accuracy", 0.05) for detector in ("imitation", "imitation_plain")),
    *(Rule(detector, "accuracy", 1.0) for detector in ("reference", "teaching_curve", "imitation")),
]
ONLINE = [Rule("reference", "accuracy", 0.05), Rule("imitation", "accuracy", 0.05)]


@dataclass
class SeedResult:
    """What one seed gave: flagged classes and epochs by rule and run, test accuracies, times."""

    planted: tuple[int, ...]
    flagged: dict[tuple[Rule, str], tuple[int, ...]] = field(default_factory=dict)
    epochs: dict[Rule, list[int]] = field(default_factory=dict)
    delta: dict[str, np.ndarray] = field(default_factory=dict)
    accuracy: dict[str, float] = field(default_factory=dict)
    planted_accuracy: dict[str, float] = field(default_factory=dict)
    online: dict[Rule, tuple[int, ...]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--planted", type=int, default=2, help="classes with a wrong teacher, k")
    parser.add_argument("--strength", type=float, default=1.0, help="share of the probability that is misplaced")
    parser.add_argument("--holdout", type=float, default=0.2, help="fraction of the training data")
    parser.add_argument("--epochs", type=int, default=50)
    parser.add_argument("--cfg", default="tllm/embedded/digits.yaml", help="config whose data and networks are used")
    parser.add_argument("--online", action="store_true", help="also train with flags that act")
    parser.add_argument("--runs", metavar="FOLDER", help="keep the runs here and use those that are there already")
    parser.add_argument("--jobs", type=int, default=1, help="processes; 1 for times that mean something")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="overrides")
    options = parser.parse_args()
    started = time.perf_counter()
    with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as pool:
        seeds = range(options.first_seed, options.first_seed + options.seeds)
        results = list(pool.map(run_seed, seeds, [options] * options.seeds))
    report(results, options)
    print(f"\n{time.perf_counter() - started:.0f} s, torch {torch.__version__}")


def run_seed(seed: int, options: argparse.Namespace) -> SeedResult:
    """Train the networks of one seed and replay every rule."""
    torch.set_num_threads(1)
    if options.runs:
        return _run_seed(seed, options, Path(options.runs) / f"seed-{seed}")
    with TemporaryDirectory() as folder:
        return _run_seed(seed, options, Path(folder))


def _run_seed(seed: int, options: argparse.Namespace, folder: Path) -> SeedResult:
    base = [
        *("LOG.PREFIX", str(folder), "SOLVER.EPOCHS", str(options.epochs)),
        *("TLLM.HOLDOUT.FRACTION", str(options.holdout), "TLLM.HOLDOUT.SEED", str(seed)),
        *options.opts,
    ]
    untaught = ("DISTILLER.TYPE", "NONE", "TLLM.DETECTOR.TYPE", "none")
    common = load_config(options.cfg, base)
    bundle = load_bundle(common)
    classes = np.random.default_rng(seed).permutation(bundle.num_classes)[: options.planted].tolist()
    result = SeedResult(tuple(sorted(classes)))
    runs: dict[str, RunFolder] = {}

    def train(name: str, *more: str, seed: int = seed) -> RunFolder:
        cfg = load_config(options.cfg, [*base, "EXPERIMENT.NAME", name, "EXPERIMENT.SEED", str(seed), *more])
        # Of this process, which has one thread: other load on the machine does not count.
        start = time.process_time()
        runs[name] = recipe.ensure_trained(cfg, bundle)
        result.seconds[name] = time.process_time() - start
        return runs[name]

    teacher = train("teacher", *untaught, "DISTILLER.STUDENT", common.DISTILLER.TEACHER, seed=seed + 2000)
    checkpoint = ("DISTILLER.TEACHER_CHECKPOINT", str(teacher.log_folder / "student_latest"))
    plant = ("DISTILLER.PLANT.CLASSES", str(classes), "DISTILLER.PLANT.STRENGTH", str(options.strength))
    watched = ("TLLM.DETECTOR.TYPE", "none")
    train("vanilla", *untaught, seed=seed + 1000)
    train("second vanilla", *untaught)
    train("honest", *checkpoint, *watched)
    train("planted", *checkpoint, *plant, *watched)
    vanilla = TestResult.from_metrics(runs["vanilla"].read_metrics())
    curves = {name: Curves.from_state(to_state(run.read_curves())) for name, run in runs.items()}
    for rule in RULES:
        for name in ("planted", "honest", "second vanilla"):
            if rule.needs_teacher and name == "second vanilla":
                continue
            if rule.score == "agreement" and DETECTORS[rule.detector].needs_reference:
                continue  # A vanilla reference has no teacher to agree with.
            flags = replay(rule, curves[name], curves["vanilla"], options.epochs, common)
            result.flagged[rule, name] = tuple(c for c, epoch in flags.items() if epoch >= 0)
            if name == "planted":
                result.epochs[rule] = [epoch for c, epoch in flags.items() if epoch >= 0 and c in classes]
    if options.online:
        # The first training of a process imports and allocates what later ones find.
        warm_up = ("EXPERIMENT.NAME", "warm-up", "SOLVER.EPOCHS", "1", "SOLVER.TRAINER", "base")
        recipe.run(load_config(options.cfg, [*base, *checkpoint, *warm_up]), overwrite=True, bundle=bundle)
        train("plain", *checkpoint, *plant, "SOLVER.TRAINER", "base")
        per_image = {"plain": result.seconds["plain"] / len(bundle.train_labels)}
        for rule in ONLINE:
            name = f"{rule.detector} {rule.score}"
            detector = ("TLLM.DETECTOR.TYPE", rule.detector, "TLLM.DETECTOR.SCORE", rule.score)
            run = train(name, *checkpoint, *plant, *detector, "TLLM.DETECTOR.REFERENCE", str(runs["vanilla"].path))
            result.online[rule] = run.read_flags().flagged
            used = len(bundle.train_labels) - len(run.read_split().holdout)
            per_image[name] = result.seconds[name] / used
        result.seconds |= {f"per image {name}": value for name, value in per_image.items()}
    for name, run in runs.items():
        metrics = run.read_metrics()
        assert metrics.test_accuracy is not None
        result.accuracy[name] = metrics.test_accuracy
        result.delta[name] = change_between(vanilla, TestResult.from_metrics(metrics)).delta
        right = sum(metrics.class_correct[c] for c in classes)
        result.planted_accuracy[name] = right / max(sum(metrics.class_total[c] for c in classes), 1)
    return result


def replay(rule: Rule, curves: Curves, reference: Curves, epochs: int, common: object) -> dict[int, int]:
    """Return class -> epoch of its flag, -1 for none, of a rule that watches a recorded run."""
    node = common.TLLM.DETECTOR  # type: ignore[attr-defined]
    options = {
        "total_epochs": epochs,
        "score": rule.score,
        "fdr": rule.fdr,
        "eta": node.ETA,
        "warmup_epochs": node.WARMUP_EPOCHS,
        "smoothing": node.SMOOTHING,
        "reference": reference,
    }
    options = options_for(rule.detector, {**options, **dict(rule.options)})
    detector = create_detector(rule.detector, curves.num_classes, **options)
    for epoch in curves.epochs:
        detector.update(epoch, curves.samples_at(epoch))
    return dict(enumerate(detector.epoch_flagged.tolist()))


def report(results: Sequence[SeedResult], options: argparse.Namespace) -> None:
    """Print the verified truth and one row per rule."""
    classes = len(results[0].delta["planted"])
    print(
        f"{' '.join([options.cfg, *options.opts])}: {len(results)} seeds from {options.first_seed}, {options.planted} "
        f"of {classes} classes planted, strength {options.strength:g}, hold-out {options.holdout:g}, {options.epochs} "
        "epochs"
    )
    truth = [result.delta["planted"][c] for result in results for c in result.planted]
    others = [d for r in results for c, d in enumerate(r.delta["planted"]) if c not in r.planted]
    null = [d for result in results for d in result.delta["second vanilla"]]
    print("\n| delta acc on the test set | mean | lowest | highest |\n| --- | --- | --- | --- |")
    rows = (
        ("planted classes, KD", truth),
        ("other classes, KD", others),
        ("all classes, vanilla, other seed", null),
    )
    for title, values in rows:
        if values:
            print(f"| {title} | {np.mean(values):+.3f} | {min(values):+.3f} | {max(values):+.3f} |")
    print(
        "\n| detector | score | FDR | precision | recall | F1 | epoch of flag | "
        "false flags, honest teacher (runs with any) | false flags, vanilla (runs with any) |\n"
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |"
    )
    for rule in RULES:
        if (rule, "planted") not in results[0].flagged:
            continue
        found = [quality(result.flagged[rule, "planted"], result.planted) for result in results]
        epochs = [epoch for result in results for epoch in result.epochs[rule]]
        variant = "".join(f" {name} {value:g}" for name, value in rule.options)
        cells = [rule.detector + variant, rule.score, f"{rule.fdr:g}"]
        cells += [spread(column) for column in zip(*found, strict=True)]
        cells.append(f"{statistics.mean(epochs):.0f}" if epochs else "never")
        for name in ("honest", "second vanilla"):
            shares = [len(r.flagged[rule, name]) / classes for r in results if (rule, name) in r.flagged]
            cells.append(f"{np.mean(shares):.1%} ({np.mean([s > 0 for s in shares]):.0%})" if shares else "-")
        print(f"| {' | '.join(cells)} |")
    if not options.online:
        return
    print(
        "\n| run | test accuracy | on planted classes | F1 of its flags | CPU time per image / KD |\n"
        "| --- | --- | --- | --- | --- |"
    )
    for name in results[0].accuracy:
        cells = [name, spread(r.accuracy[name] for r in results), spread(r.planted_accuracy[name] for r in results)]
        rule = next((rule for rule in ONLINE if name == f"{rule.detector} {rule.score}"), None)
        if rule is None:
            cells += ["", ""]
        else:
            cells.append(spread(quality(r.online[rule], r.planted)[2] for r in results))
            cells.append(spread(r.seconds[f"per image {name}"] / r.seconds["per image plain"] for r in results))
        print(f"| {' | '.join(cells)} |")


def quality(flagged: Iterable[int], planted: Iterable[int]) -> tuple[float, float, float]:
    """Return precision, recall and F1; finding nothing where nothing is planted is perfect."""
    found, true = set(flagged), set(planted)
    hits = len(found & true)
    precision = hits / len(found) if found else 1.0
    recall = hits / len(true) if true else 1.0
    return precision, recall, 2 * hits / (len(found) + len(true)) if found or true else 1.0


def spread(values: Iterable[float]) -> str:
    """Return mean +- standard deviation."""
    numbers = list(values)
    return f"{np.mean(numbers):.3f} +- {np.std(numbers, ddof=1) if len(numbers) > 1 else 0.0:.3f}"


if __name__ == "__main__":
    main()
