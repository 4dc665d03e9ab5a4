"""`tllm tables`: fill the paper's tables with your runs beside the printed numbers."""

from __future__ import annotations

import argparse
import json
from typing import Any

from tllm_plugin.analysis import tables
from tllm_plugin.analysis.table_text import latex, markdown
from tllm_plugin.core.paths import expanded
from tllm_plugin.hosts.console import say, write_out
from tllm_plugin.runs.atomic import write_text


def add_parser(commands: Any) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "tables",
        help="fill the paper's tables with the runs below a folder",
        description=(
            "Fill Tables 5, 6, 8, 9, 10 and 11 of the paper's appendix with the finished runs below a folder, printed "
            "numbers beside yours. Places without a run stay as printed."
        ),
        epilog="Example: tllm tables output --latex tables.tex",
    )
    parser.add_argument("folder", type=expanded, metavar="RUNS_DIR", help="searched with everything below it")
    parser.add_argument(
        "--imagefolder-is", default="", choices=tables.DATA_SETS, help="data set of the runs on image folders"
    )
    for name in ("markdown", "latex", "json"):
        parser.add_argument(
            f"--{name}", type=expanded, default="", metavar="FILE", help=f"write {name}; - is standard output"
        )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Print or write the tables."""
    runs = tables.find_runs(options.folder)
    filled = tables.fill_tables(runs, options.imagefolder_is)
    asked = [
        (options.markdown, lambda: markdown(filled)),
        (options.latex, lambda: latex(filled)),
        (options.json, lambda: json.dumps(tables.tables_record(filled), indent=2, allow_nan=False) + "\n"),
    ]
    if not any(path for path, _ in asked):
        write_out(markdown(filled))
    for path, text in asked:
        if path == "-":
            write_out(text())
        elif path:
            write_text(path, text())
            say(f"written: {path}")
    if "-" not in (path for path, _ in asked):
        places = sum(table.filled for table in filled)
        say(f"{places} places filled from {len(runs)} finished runs below {options.folder}")
