"""Fill the paper's tables with the user's runs beside the printed numbers."""

from __future__ import annotations

import logging
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tllm_plugin.analysis.comparison import Spread, compare
from tllm_plugin.analysis.loaded_run import LoadedRun, load_run
from tllm_plugin.analysis.published import DIFFERENCE, TABLES, UNDISTILLABLE, Cell, PublishedTable
from tllm_plugin.core.errors import ConfigError, TLLMError
from tllm_plugin.runs.run_folder import NAME, RunFolder

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FilledCell:
    """One cell of a filled table.

    Args:
        published: Printed number, or the difference of printed numbers; None if nothing is printed.
        ours: Result of the user's runs, in percent; None without a run.
        runs: Names of these runs.
    """

    published: float | None
    ours: Spread | None
    runs: tuple[str, ...] = ()


@dataclass(frozen=True)
class FilledTable:
    """A table with the printed numbers and the user's results."""

    table: PublishedTable
    rows: tuple[tuple[str, tuple[FilledCell, ...]], ...]

    @property
    def filled(self) -> int:
        """Number of cells filled by the user's runs."""
        return sum(cell.ours is not None for _, cells in self.rows for cell in cells)


def find_runs(folder: str | os.PathLike[str]) -> list[LoadedRun]:
    """Return all finished runs below `folder`, except unreadable ones and runs of a search, which are logged.

    Raises:
        ConfigError: `folder` is not a folder.
    """
    root = Path(folder)
    if not root.is_dir():
        raise ConfigError(f"Expected `{root}` to be a folder of runs, but it is not a folder")
    runs, left_out = [], 0
    for path in sorted(root.rglob(f"{NAME}/metrics.json")):
        try:
            metrics = RunFolder(path.parent).read_metrics()
            if not metrics.finished:
                continue
            run = load_run(path.parent) if metrics.tested else None
            # Trials of a search and other runs with a search hold-out are not seeds of a method, as they have less
            # data.
            if run is None or run.spec.get("TLLM.HOLDOUT.SEARCH_FRACTION"):
                left_out += 1
            else:
                runs.append(run)
        except TLLMError as error:
            logger.warning("left out: %s", error)
    if left_out:
        logger.warning("left out: %d finished runs without test results or with a search hold-out", left_out)
    return runs


def fill_tables(runs: Sequence[LoadedRun], image_folder: str = "") -> list[FilledTable]:
    """Assign runs to the cells of the tables.

    Args:
        runs: Runs from `find_runs`.
        image_folder: Name in `published.DATA_SETS` of the data set of runs on image folders; empty for none.
    """
    return [_fill(table, runs, image_folder) for table in TABLES]


def _fill(table: PublishedTable, runs: Sequence[LoadedRun], image_folder: str) -> FilledTable:
    rows = []
    for label, cells in table.rows:
        filled: list[FilledCell] = []
        for cell in cells:
            if isinstance(cell, Cell):
                filled.append(_fill_cell(cell, runs, image_folder))
            elif cell == DIFFERENCE:
                filled.append(_difference(*filled[-2:]))
            else:
                filled.append(FilledCell(None, None))
        rows.append((label, tuple(filled)))
    return FilledTable(table, tuple(rows))


def _fill_cell(cell: Cell, runs: Sequence[LoadedRun], image_folder: str) -> FilledCell:
    here = [run for run in runs if data_set_of(run, image_folder) == cell.data_set]
    matching = [run for run in here if _is_of(run, cell)]
    groups: list[list[LoadedRun]] = []
    for run in matching:
        same = next((group for group in groups if not group[0].unlike(run)), None)
        if same is None:
            groups.append([run])
        else:
            same.append(run)
    vanilla = [run for run in here if run.method == "vanilla" and same_network(run.student, cell.student)]
    found = [(spread, group) for group in groups if (spread := _measure(cell, group, vanilla)) is not None]
    if not found:
        return FilledCell(cell.published, None)
    # Of several settings the best is used, as in the paper; the names identify the runs.
    best = min if cell.measure == UNDISTILLABLE else max
    spread, group = best(found, key=lambda item: item[0].mean)
    return FilledCell(cell.published, spread, tuple(run.name for run in group))


def _measure(cell: Cell, group: Sequence[LoadedRun], vanilla: Sequence[LoadedRun]) -> Spread | None:
    if cell.measure != UNDISTILLABLE:
        return Spread.of([100.0 * run.result.accuracy for run in group])
    if not vanilla:
        return None
    found = compare(*([(run.seed, run.result) for run in side] for side in (vanilla, group)))
    classes = len(group[0].class_names)
    count = found.hurt_count.found
    return Spread(100.0 * count.mean / classes, 100.0 * count.std / classes, count.n)


def _difference(first: FilledCell, second: FilledCell) -> FilledCell:
    published = None
    if first.published is not None and second.published is not None:
        published = round(second.published - first.published, 2)
    if first.ours is None or second.ours is None:
        return FilledCell(published, None)
    # Variances of independent groups add up; n of a difference is the smaller one.
    std = math.hypot(first.ours.std, second.ours.std)
    return FilledCell(published, Spread(second.ours.mean - first.ours.mean, std, min(first.ours.n, second.ours.n)))


def _is_of(run: LoadedRun, cell: Cell) -> bool:
    if run.method.casefold() != cell.method.casefold() or not same_network(run.student, cell.student):
        return False
    return not cell.teacher or same_network(run.teacher, cell.teacher)


def data_set_of(run: LoadedRun, image_folder: str = "") -> str:
    """Return the name of a run's data set as in the paper's tables; the config's name for other data sets."""
    kind = _plain(str(run.spec.get("DATASET.TYPE", "")))
    if kind == "imagefolder":
        return image_folder or kind
    return "cub200" if kind.startswith("cub") else kind


def same_network(ours: str, theirs: str) -> bool:
    """Return whether two spellings name the same architecture.

    >>> same_network("wrn_16_2", "WRN-16-2"), same_network("ShuffleV1", "ShuffleNetV1")
    (True, True)
    """
    return _plain(ours) == _plain(theirs) != ""


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.casefold()).replace("shufflenet", "shuffle")


def tables_record(tables: Sequence[FilledTable]) -> dict[str, Any]:
    """Return the tables as JSON values."""

    def cell(value: FilledCell) -> dict[str, Any]:
        ours = value.ours
        spread = None if ours is None else {"mean": ours.mean, "std": None if math.isnan(ours.std) else ours.std}
        return {
            "published": value.published,
            "ours": None if ours is None or spread is None else {**spread, "n": ours.n},
            "runs": list(value.runs),
        }

    return {
        "schema": "tllm/tables",
        "version": 1,
        "tables": [
            {
                "table": filled.table.number,
                "title": filled.table.title,
                "columns": list(filled.table.columns),
                "rows": [{"label": label, "cells": [cell(value) for value in cells]} for label, cells in filled.rows],
            }
            for filled in tables
        ],
    }
