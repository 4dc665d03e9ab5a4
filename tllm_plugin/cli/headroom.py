"""`tllm headroom`: estimate the true effects of a method on classes, and the gain from restoring hurt classes."""

from __future__ import annotations

import argparse

from rich.table import Table

from tllm_plugin.analysis.headroom import HEADING, as_rows, headroom
from tllm_plugin.analysis.named_networks import load_named
from tllm_plugin.analysis.records import headroom_record
from tllm_plugin.analysis.study import build_study
from tllm_plugin.core.errors import ConfigError
from tllm_plugin.hosts.console import PlainConsole, write_json_result

_EXPLANATION = (
    "Points of test accuracy with 95 % intervals. spread of effects: standard deviation of the true effects over "
    "classes, with the noise of training removed. ceiling: gain in mean accuracy if every class below vanilla had its "
    "vanilla accuracy."
)
_ONE_PAIR = (
    "{}: a single pair of runs shows the sampling noise of test images only, not the differences between trainings. "
    "Its spread and ceiling are too large; add runs of other seeds, in particular vanilla runs."
)


def run(options: argparse.Namespace) -> None:
    """Estimate the headroom, print a table and write a file.

    Raises:
        ConfigError: No distilled run has a vanilla run of the same student to compare with.
    """
    study = build_study([found for name in options.runs for found in load_named(name)])
    found = [(method.label, headroom(method.comparison)) for method in study.methods if method.comparison is not None]
    if not found:
        raise ConfigError("Expected vanilla and distilled runs of one student, but no two of the runs can be compared")
    if options.json:
        write_json_result(options.json, {label: headroom_record(item) for label, item in found})
    if options.json == "-":
        return
    console = PlainConsole()
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
