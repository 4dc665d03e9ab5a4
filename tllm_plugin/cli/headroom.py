"""`tllm headroom`: estimate the true effects of a method on classes, and the gain from restoring hurt classes."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from tllm_plugin.analysis.headroom import HEADING, Headroom, as_rows, headroom
from tllm_plugin.analysis.named_networks import load_named
from tllm_plugin.analysis.study import build_study
from tllm_plugin.core.errors import ConfigError
from tllm_plugin.runs.atomic import write_text

_EXPLANATION = (
    "Points of test accuracy, 95 % intervals. The spread is that of the true effects over classes, with the noise of "
    "training removed; the ceiling is what the mean accuracy would gain if every class below vanilla were given its "
    "vanilla accuracy back."
)
_ONE_PAIR = (
    "{}: a single pair of runs cannot show how much two trainings differ, only how much test images scatter. Its "
    "spread and ceiling are too large; add runs of other seeds, vanilla ones above all."
)


def add_parser(commands: Any) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "headroom",
        help="estimate the largest possible gain of a class-wise rule, with noise removed",
        description=(
            "Estimate from runs of several seeds how much the true effects of a method differ between classes, and "
            "how much mean accuracy would gain if every class that it makes worse were restored. Runs whose configs "
            "differ only in the seed count as seeds of one method; LABEL=RUN,RUN groups others."
        ),
        epilog="Example: tllm headroom output/vanilla-seed0 output/vanilla-seed1 output/kd-seed0 output/kd-seed1",
    )
    parser.add_argument(
        "runs", nargs="+", metavar="RUN", help="log folders or tables of answers, vanilla ones among them"
    )
    parser.add_argument("--json", default="", metavar="FILE", help="write the estimates; - is standard output")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Estimate, print and write.

    Raises:
        ConfigError: No distilled run has a vanilla run of the same student to compare with.
    """
    study = build_study([found for name in options.runs for found in load_named(name)])
    found = [(method.label, headroom(method.comparison)) for method in study.methods if method.comparison is not None]
    if not found:
        raise ConfigError("Expected vanilla and distilled runs of one student, but got none that can be compared")
    text = json.dumps({label: _record(item) for label, item in found}, indent=2, allow_nan=False) + "\n"
    if options.json == "-":
        print(text, end="")
        return
    if options.json:
        write_text(options.json, text)
    console = Console(highlight=False, markup=False)
    table = Table(title=f"{len(study.class_names)} classes", title_justify="left")
    for place, name in enumerate(HEADING):
        table.add_column(name, justify="right" if place else "left", overflow="fold")
    for row in as_rows(found):
        table.add_row(*row)
    console.print(table)
    console.print(_EXPLANATION)
    for label, item in found:
        if item.source == "images":
            console.print(_ONE_PAIR.format(label))
    if options.json:
        print(f"written: {options.json}")


def _record(item: Headroom) -> dict[str, Any]:
    record = asdict(item)
    return {**record, "reliability": None if np.isnan(item.reliability) else item.reliability}
