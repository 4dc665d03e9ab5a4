"""`tllm tables`: fill the paper's tables with your runs beside the printed numbers."""

from __future__ import annotations

import argparse

from tllm_plugin.analysis import tables
from tllm_plugin.analysis.table_text import latex, markdown
from tllm_plugin.hosts.console import say, write_json_result, write_result


def run(options: argparse.Namespace) -> None:
    """Print or write the tables."""
    runs = tables.find_runs(options.folder)
    filled = tables.fill_tables(runs, options.imagefolder_is)
    files = (options.markdown, options.latex, options.json)
    if options.markdown or not any(files):
        write_result(options.markdown or "-", markdown(filled))
    if options.latex:
        write_result(options.latex, latex(filled))
    if options.json:
        write_json_result(options.json, tables.tables_record(filled))
    if "-" not in files:
        cells = sum(table.filled for table in filled)
        say(f"{cells} cells filled from {len(runs)} finished runs below {options.folder}")
