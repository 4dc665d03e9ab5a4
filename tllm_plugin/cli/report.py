"""`tllm report`: one HTML page from several runs."""

from __future__ import annotations

import argparse
from typing import Any

from tllm_plugin.analysis.named_networks import load_named
from tllm_plugin.analysis.representations import TSNE_POINTS
from tllm_plugin.core.paths import expanded
from tllm_plugin.hosts.console import say
from tllm_plugin.report.page import write_report


def add_parser(commands: Any) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "report",
        help="write one HTML page on several runs",
        description=(
            "Write one self-contained HTML page: what distillation did to every class, how sure that is, and what to "
            "try next. Vanilla runs and teachers that the runs refer to are read too."
        ),
        epilog="Example: tllm report output/demo/vanilla output/demo/vanilla-2 output/demo/kd output/demo/tllm",
    )
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="RUN",
        help="log folder, or table of answers (.csv, .npz, .parquet); runs that differ in their seed are recognised, "
        "LABEL=RUN,RUN groups others",
    )
    parser.add_argument(
        "--out", type=expanded, default=None, metavar="FILE", help="default: tllm/report.html of the last run"
    )
    parser.add_argument("--no-networks", action="store_true", help="do not run the networks for CKA and t-SNE")
    parser.add_argument("--points", type=int, default=TSNE_POINTS, metavar="N", help="of a t-SNE at most")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Write the page and say where it is."""
    runs = [found for name in options.runs for found in load_named(name)]
    path = write_report(runs, options.out, networks=not options.no_networks, points=options.points)
    say(f"report        {path}")
