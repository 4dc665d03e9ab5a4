"""`tllm report`: write one HTML page on several runs."""

from __future__ import annotations

import argparse

from tllm_plugin.analysis.named_networks import load_named
from tllm_plugin.hosts.console import say
from tllm_plugin.report.page import write_report


def run(options: argparse.Namespace) -> None:
    """Write the page and print its path."""
    runs = [found for name in options.runs for found in load_named(name)]
    points = {} if options.points is None else {"points": options.points}
    path = write_report(runs, options.out, networks=not options.no_networks, **points)
    say(f"report        {path}")
