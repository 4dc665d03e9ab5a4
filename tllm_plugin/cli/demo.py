"""`tllm demo`: train teacher, baselines and TLLM on scikit-learn's digits, with planted undistillable classes."""

from __future__ import annotations

import argparse
import logging
import shlex
import time
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table
from yacs.config import CfgNode

from tllm_plugin.analysis.results import TestResult, change_between
from tllm_plugin.core.errors import ConfigError, TLLMError
from tllm_plugin.core.escaping import visible
from tllm_plugin.hosts import processes
from tllm_plugin.hosts.console import PlainConsole
from tllm_plugin.hosts.embedded import recipe
from tllm_plugin.hosts.embedded.config import load_config
from tllm_plugin.hosts.embedded.data import load_bundle
from tllm_plugin.report.page import write_report_if_possible
from tllm_plugin.runs.run_folder import RunFolder

CONFIG = "tllm/embedded/digits.yaml"
PLANTED = (3, 8)

logger = logging.getLogger(__name__)


def run(options: argparse.Namespace) -> None:
    """Train the five networks and print one table."""
    processes.refuse_several("the demo", "`tllm train` supports several")
    started = time.perf_counter()
    planted = () if options.no_plant else PLANTED
    project = "demo" if planted else "demo-unplanted"
    base = ["LOG.PREFIX", options.out, "EXPERIMENT.PROJECT", project, *options.opts]
    plant = ["DISTILLER.PLANT.CLASSES", str(list(planted))]
    cfg = load_config(CONFIG, base)
    if planted:
        _check_planted(cfg, planted)
    try:
        runs = _train_all(base, plant)
    except KeyboardInterrupt:
        raise TLLMError("interrupted; start the demo again, which overwrites finished parts") from None
    report = write_report_if_possible([folder.path for folder in runs.values()])
    data = "scikit-learn's digits" if cfg.DATASET.TYPE == "digits" else cfg.DATASET.TYPE
    print_results(runs, data, planted, time.perf_counter() - started, report)


def _check_planted(cfg: CfgNode, planted: Sequence[int]) -> None:
    classes = load_bundle(cfg).num_classes
    if max(planted) >= classes:
        names = " and ".join(map(str, planted))
        raise ConfigError(
            f"Expected data with the classes {names}, which the demo plants, but {cfg.DATASET.TYPE} has {classes} "
            "classes; add --no-plant"
        )


def _train_all(base: Sequence[str], plant: Sequence[str]) -> dict[str, RunFolder]:
    untaught = ["DISTILLER.TYPE", "NONE", "TLLM.DETECTOR.TYPE", "none"]
    runs: dict[str, RunFolder] = {}

    def train(name: str, *options: str) -> None:
        cfg = load_config(CONFIG, [*base, "EXPERIMENT.NAME", name, *options])
        if cfg.LOG.TEST_FREQ < 0:
            raise ConfigError(
                "Expected `LOG.TEST_FREQ` to be at least 0 for the demo, whose table needs test results, but got -1"
            )
        runs[name] = recipe.run(cfg, overwrite=True)

    def checkpoint_of(name: str) -> str:
        return str(runs[name].log_folder / "student_latest")

    teacher = load_config(CONFIG, base).DISTILLER.TEACHER
    train("teacher", *untaught, "DISTILLER.STUDENT", teacher)
    train("vanilla", *untaught)
    train("vanilla-2", *untaught, "EXPERIMENT.SEED", str(load_config(CONFIG, base).EXPERIMENT.SEED + 1))
    taught = ["DISTILLER.TEACHER_CHECKPOINT", checkpoint_of("teacher"), *plant]
    train("kd", *taught, "TLLM.DETECTOR.TYPE", "none")
    train("tllm", *taught, "TLLM.DETECTOR.REFERENCE", str(runs["vanilla"].path))
    return runs


def print_results(
    runs: dict[str, RunFolder], data: str, planted: Sequence[int], seconds: float, report: Path | None = None
) -> None:
    """Print the results, their explanation and the next command."""
    metrics = {name: folder.read_metrics() for name, folder in runs.items()}
    flags = runs["tllm"].read_flags()
    results = {name: TestResult.from_metrics(record) for name, record in metrics.items()}
    hurt = {name: int(change_between(results["vanilla"], result).hurt.sum()) for name, result in results.items()}
    images = sum(metrics["vanilla"].class_total)
    table = Table(title=f"{data}, {images:,} test images", title_justify="left")
    table.add_column("run", overflow="fold")
    table.add_column("test\naccuracy", justify="right", overflow="fold")
    if planted:
        table.add_column("on planted\nclasses", justify="right", overflow="fold")
    table.add_column("undistillable\nclasses (null)", justify="right", overflow="fold")
    table.add_column("flagged\n(after epoch)", overflow="fold")
    names = {
        "teacher": "teacher",
        "vanilla": "vanilla student",
        "vanilla-2": "vanilla, other seed",
        "kd": "KD student",
        "tllm": "TLLM student",
    }
    for name, title in names.items():
        compared = name in ("kd", "tllm")
        flagged = (
            ", ".join(f"{visible(item.name)} ({item.epoch_flagged})" for item in flags.classes if item.flagged)
            or "none"
        )
        cells = [title, f"{metrics[name].test_accuracy:.1%}"]
        if planted:
            chosen = list(planted)
            cells.append(f"{results[name].correct[chosen].sum() / results[name].total[chosen].sum():.1%}")
        cells.append(f"{hurt[name]} ({hurt['vanilla-2']})" if compared else "")
        cells.append(flagged if name == "tllm" else "")
        table.add_row(*cells)
    console = PlainConsole()
    console.print(table)
    console.print(
        "undistillable: the test accuracy of the class is below the vanilla student's (delta acc < 0); null: the same "
        "count for a second vanilla student with another seed, which differs by noise only."
    )
    if planted:
        classes = " and ".join(flags.classes[index].name for index in planted)
        console.print(
            f"Classes {classes} were PLANTED: after its own test above, the teacher was made confidently wrong on them "
            "on purpose, so that the true undistillable classes are known. `make demo PLANT=0` or `tllm demo "
            "--no-plant` uses the teacher as trained."
        )
    if flags.reason:
        console.print(f"Nothing was flagged: {flags.reason}.")
    console.print("Run folders:")
    for folder in runs.values():
        console.print(f"  {folder.log_folder}", soft_wrap=True)
    console.print(f"{seconds:.0f} seconds in all.")
    if report is not None:
        console.print(f"Report: {report}", soft_wrap=True)
    console.print(f"Next: tllm show {shlex.quote(str(runs['tllm'].log_folder))}", soft_wrap=True)
