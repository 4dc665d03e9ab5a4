"""What pays: the dose of distillation, a class-wise policy, or only as much label as the policy mixes in.

    python benchmarks/what_pays.py --data imagefolder=FOLDER --seeds 4 --jobs 2

One teacher (seed 0) and one hold-out; per seed a student of every arm, with the same initial weights and the same order
of data. `kd` has the config's temperature and weights, `kd_dose` those of `--dose`; behind a plus is a policy:
`equal_strength`, or one of its controls, `constant` (as much label for every class) and `permuted` (the same weights on
permuted classes, other ones for every seed). No class is withdrawn.

A run is added to `--results`, one JSON object per line, as soon as it is finished, and a run that is there is not
trained again: the command can be stopped and started again, with more seeds or arms, and goes on from the last
checkpoint of a run that it left. In the end, or with `--report` at once, it prints a table of all runs with the same
settings: differences between runs of one seed, their mean with its 95 % interval (Student's t over seeds), and the harm
that is left against vanilla, noise removed (`tllm headroom`).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import math
import os
import statistics
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import t as student_t
from yacs.config import CfgNode

from tllm_plugin.analysis.comparison import compare
from tllm_plugin.analysis.headroom import Estimate, headroom
from tllm_plugin.analysis.results import TestResult
from tllm_plugin.data import DataBundle
from tllm_plugin.hosts.config_checks import flat
from tllm_plugin.hosts.embedded import recipe
from tllm_plugin.hosts.embedded.config import load_config
from tllm_plugin.hosts.embedded.data import load_bundle
from tllm_plugin.hosts.embedded.prerequisites import log_folder, needed_teacher

CONTROLS = ("constant", "permuted")
POLICIES = ("", "equal_strength", *CONTROLS)
#: Arms that an arm is compared with; behind a plus, those of its own dose.
_OTHERS = ("vanilla", "kd", "kd_dose", "+constant", "+permuted")
ARMS = ("vanilla", *(f"{dose}+{policy}".rstrip("+") for dose in ("kd", "kd_dose") for policy in POLICIES))
#: What does not change what a run learns.
_PLACES = ("EXPERIMENT.NAME", "LOG", "DATASET.PATH", "DATASET.NUM_WORKERS", "DISTILLER.TEACHER_CHECKPOINT")


def main(words: Sequence[str] | None = None) -> None:
    options = parsed(words)
    log()
    rows = read_rows(options.results)
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    configs = {(arm, seed): config_of(options, arm, seed) for seed in seeds for arm in options.arms}
    missing = [key for key, cfg in configs.items() if (*key, digest_of(cfg)) not in rows]
    if missing and not options.report:
        teacher = teacher_config(options)
        recipe.ensure_trained(teacher, bundle_of(options, 0))
        spawn, parent = get_context("spawn"), (os.getpid(),)
        with ProcessPoolExecutor(options.jobs, mp_context=spawn, initializer=begin_worker, initargs=parent) as pool:
            waiting = [pool.submit(train, options, *key) for key in missing]
            for done in as_completed(waiting):
                append_row(options.results, done.result())
        rows = read_rows(options.results)
    keys = {(arm, seed): (arm, seed, digest_of(cfg)) for (arm, seed), cfg in configs.items()}
    found = {key: rows[full] for key, full in keys.items() if full in rows}
    print_table(found, options)


def parsed(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, metavar="TYPE[=PATH]", help="imagefolder=FOLDER, digits, ...")
    parser.add_argument("--image-size", type=int, default=16, metavar="PIXELS", help="0: as stored")
    parser.add_argument("--cfg", default="tllm/embedded/imagefolder_res20_res8.yaml")
    parser.add_argument("--teacher", default="", metavar="MODEL", help="instead of the config's")
    parser.add_argument("--student", default="", metavar="MODEL", help="instead of the config's")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--teacher-epochs", type=int, default=0, help="0: as many as the student")
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--first-seed", type=int, default=0, help="100 for the confirming runs of docs/protocol.md")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--level", default="mean", help="TLLM.POLICY_OPTIONS.LEVEL: mean, max or a number")
    parser.add_argument(
        "--dose", nargs=3, type=float, default=[2.0, 1.0, 1.8], metavar=("T", "CE", "KD"), help="of kd_dose"
    )
    parser.add_argument("--out", default="output/what_pays", metavar="FOLDER", help="where the runs are")
    parser.add_argument("--results", metavar="FILE", help="default: results.jsonl in --out")
    parser.add_argument("--jobs", type=int, default=1, help="runs at once, one thread each if several")
    parser.add_argument("--report", action="store_true", help="train nothing")
    parser.add_argument("--opts", nargs="*", default=[], metavar="KEY VALUE", help="overrides, of the teacher as well")
    options = parser.parse_args(words)
    options.results = Path(options.results or f"{options.out}/results.jsonl")
    return options


def log() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")


def begin_worker(parent: int) -> None:
    """Log, and end with the process that started this one, even if that is killed."""
    log()
    threading.Thread(target=end_without, args=(parent,), daemon=True).start()


def end_without(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def base_options(options: argparse.Namespace, seed: int) -> list[str]:
    """Return the overrides that all runs of a seed have in common."""
    kind, _, path = options.data.partition("=")
    given = {
        "DATASET.TYPE": kind,
        "DATASET.PATH": path,
        "DATASET.IMAGE_SIZE": options.image_size,
        "DATASET.NUM_WORKERS": 0,  # Small images are decoded sooner than processes for it have started.
        "DISTILLER.TEACHER_EPOCHS": options.teacher_epochs,
        "SOLVER.EPOCHS": options.epochs,
        "EXPERIMENT.PROJECT": "what_pays",
        "SOLVER.TRAINER": "tllm",
        "EXPERIMENT.SEED": seed,
        "TLLM.DETECTOR.TYPE": "none",
        "LOG.PREFIX": options.out,
        "LOG.TEST_FREQ": 0,
        "LOG.SAVE_SECONDS": 60,
    }
    given |= {f"DISTILLER.{role.upper()}": name for role in ("teacher", "student") if (name := getattr(options, role))}
    return [*(str(word) for pair in given.items() for word in pair), *options.opts]


def teacher_config(options: argparse.Namespace) -> CfgNode:
    """Return the config of the teacher that all students have."""
    cfg = needed_teacher(load_config(options.cfg, base_options(options, 0)))
    if cfg is None:
        raise SystemExit(f"Expected {options.cfg} to distil from a teacher that is trained first, but it does not")
    return cfg


def config_of(options: argparse.Namespace, arm: str, seed: int) -> CfgNode:
    """Return the config of a student; its teacher need not be there yet."""
    dose, _, policy = arm.partition("+")
    more: dict[str, object] = {"TLLM.POLICY": policy, "EXPERIMENT.NAME": f"{arm}-seed{seed}"}
    if dose == "vanilla":
        more |= {"DISTILLER.TYPE": "NONE"}
    if dose == "kd_dose":
        more |= dict(zip(("KD.TEMPERATURE", "KD.LOSS.CE_WEIGHT", "KD.LOSS.KD_WEIGHT"), options.dose, strict=True))
    if policy:
        more |= {"TLLM.POLICY_OPTIONS.LEVEL": options.level}
    if policy == "permuted":
        more |= {"TLLM.POLICY_OPTIONS.SEED": seed}
    cfg = load_config(
        options.cfg, [*base_options(options, seed), *(str(word) for pair in more.items() for word in pair)]
    )
    cfg.defrost()
    if dose != "vanilla":
        cfg.DISTILLER.TEACHER_CHECKPOINT = str(log_folder(teacher_config(options)) / "student_latest")
    cfg.EXPERIMENT.NAME += f"-{digest_of(cfg)}"  # Runs with other settings lie beside it.
    cfg.freeze()
    return cfg


def digest_of(cfg: CfgNode) -> str:
    """Return a digest of the settings of a run: of its config, the teacher's included, but not of places."""
    settings = {key: value for key, value in flat(cfg) if not key.startswith(_PLACES)}
    settings["teacher"] = Path(cfg.DISTILLER.TEACHER_CHECKPOINT).parent.name  # It has a digest of its config in it.
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]


def bundle_of(options: argparse.Namespace, seed: int) -> DataBundle:
    """Return the data of a seed, which are decoded once per process."""
    return _bundle(options.cfg, tuple(base_options(options, seed)))


@lru_cache(maxsize=1)
def _bundle(cfg: str, words: tuple[str, ...]) -> DataBundle:
    return load_bundle(load_config(cfg, list(words)))


def train(options: argparse.Namespace, arm: str, seed: int) -> dict[str, Any]:
    """Return what a finished run came to; train it, or continue it, if it is not there."""
    if options.jobs > 1:
        torch.set_num_threads(1)
    cfg = config_of(options, arm, seed)
    run = recipe.ensure_trained(cfg, bundle_of(options, seed))
    metrics = run.read_metrics()
    weights = [item.weight for item in run.read_policy().classes] if run.policy_json.exists() else []
    return {
        "arm": arm,
        "seed": seed,
        "settings": digest_of(cfg),
        "teacher": cfg.DISTILLER.TEACHER,
        "student": cfg.DISTILLER.STUDENT,
        "epochs": cfg.SOLVER.EPOCHS,
        "opts": options.opts,
        "test_accuracy": metrics.test_accuracy,
        "class_correct": list(metrics.class_correct),
        "class_total": list(metrics.class_total),
        "teaching_weights": weights,
        "seconds_per_epoch": statistics.median(metrics.seconds_per_epoch),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def append_row(path: Path, row: dict[str, Any]) -> None:
    """Write a line; it is on the disk when this returns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":  # Half a line of a process that was killed.
                file.write(b"\n")
        file.write((json.dumps(row) + "\n").encode())
        file.flush()
        os.fsync(file.fileno())
    logging.info("%s, seed %d: %.2f %%", row["arm"], row["seed"], 100 * row["test_accuracy"])


def read_rows(path: Path) -> dict[tuple[str, int, str], dict[str, Any]]:
    """Return the runs of a file by arm, seed and settings."""
    rows = {}
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:  # Half a line.
            continue
        rows[row["arm"], row["seed"], row["settings"]] = row
    return rows


def print_table(found: dict[tuple[str, int], dict[str, Any]], options: argparse.Namespace) -> None:
    """Print a row per arm: accuracy, paired differences with vanilla and the two plain arms, and the harm left."""
    results = {
        key: TestResult(np.asarray(row["class_correct"]), np.asarray(row["class_total"])) for key, row in found.items()
    }
    by_arm = {arm: {seed: results[arm, seed] for a, seed in results if a == arm} for arm in options.arms}
    one = next(iter(found.values()), {"class_total": [], "teacher": "?", "student": "?"})
    print(
        f"\n{options.data}, {one['teacher']} -> {one['student']}, {options.epochs} epochs {' '.join(options.opts)}: "
        f"{len(one['class_total'])} classes, {sum(one['class_total'])} test images, torch {torch.__version__}; points "
        "of test accuracy, 95 % intervals over seeds"
    )
    heading = ("arm", "n", "test accuracy", *(f"- {other}" for other in _OTHERS), "harm left", "10 worst", "s / epoch")
    print(f"\n| {' | '.join(heading)} |\n|{' --- |' * len(heading)}")
    for arm, runs in by_arm.items():
        if not runs:
            print(f"| {arm} | 0 |{' |' * (len(heading) - 2)}")
            continue
        cells = [arm, str(len(runs)), mean_and_deviation([100 * run.accuracy for run in runs.values()])]
        dose, _, policy = arm.partition("+")
        # A policy is to be read against its controls at the same dose.
        others = [f"{dose}{other}" if other.startswith("+") else other for other in _OTHERS]
        shown = [other != arm and not ("+" in other and policy in CONTROLS + ("",)) for other in others]
        differences = [paired_difference(runs, by_arm.get(other, {})) for other in others]
        cells += [text if show else "" for text, show in zip(differences, shown, strict=True)]
        cells.append(harm_left(by_arm.get("vanilla", {}), runs) if arm != "vanilla" else "")
        worst = [100 * float(np.sort(run.class_accuracy)[:10].mean()) for run in runs.values()]
        cells += [f"{statistics.mean(worst):.1f}"]
        cells += [f"{statistics.median(found[arm, seed]['seconds_per_epoch'] for seed in runs):.1f}"]
        print(f"| {' | '.join(cells)} |")


def mean_and_deviation(values: Sequence[float]) -> str:
    deviation = f" +- {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{deviation}"


def paired_difference(runs: dict[int, TestResult], others: dict[int, TestResult]) -> str:
    """Return the mean difference between runs of one seed with its interval, in points."""
    differences = [100 * (runs[seed].accuracy - others[seed].accuracy) for seed in runs if seed in others]
    if not differences:
        return ""
    mean, n = statistics.mean(differences), len(differences)
    if n == 1:
        return f"{mean:+.2f} (n 1)"
    half = float(student_t.ppf(0.975, n - 1)) * statistics.stdev(differences) / math.sqrt(n)
    return f"{mean:+.2f} ({mean - half:+.2f} to {mean + half:+.2f})"


def harm_left(vanilla: dict[int, TestResult], runs: dict[int, TestResult]) -> str:
    """Return the mean over classes of what they lose against vanilla, noise removed, in points."""
    shared = [seed for seed in runs if seed in vanilla]
    if not shared:
        return ""
    found: Estimate = headroom(
        compare([(seed, vanilla[seed]) for seed in shared], [(seed, runs[seed]) for seed in shared])
    ).ceiling
    alone = " (one pair: too large)" if len(shared) == 1 else ""
    return f"{100 * found.value:.2f} ({100 * found.low:.2f} to {100 * found.high:.2f}){alone}"


if __name__ == "__main__":
    main()
