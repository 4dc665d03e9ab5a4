"""`tllm test`: test results for finished runs that never looked at test data."""

from __future__ import annotations

import argparse
from typing import Any

from tllm_plugin.core.errors import ConfigError
from tllm_plugin.hosts import processes
from tllm_plugin.hosts.embedded import job
from tllm_plugin.hosts.embedded.late_test import ensure_tested
from tllm_plugin.hosts.embedded.same_run import config_of
from tllm_plugin.runs.metrics_file import MetricsRecord
from tllm_plugin.runs.run_folder import RunFolder


def add_parser(commands: Any) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "test",
        help="run students over the test data whose runs never looked at it",
        description=(
            "Run the students of finished runs of the embedded host over the test data where that was never done: by "
            "LOG.TEST_FREQ -1, as in the runs of a search. Nothing is trained; runs that were tested stay as they are."
        ),
        epilog="Example: tllm test output/digits/kd-digits_student-seed0",
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="log folder of a run, or its tllm/ folder")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Test every run, and print what came out."""
    processes.refuse_several("`tllm test`", "start it without")
    for name in options.runs:
        folder = RunFolder.find(name)
        metrics = folder.read_metrics()
        if not metrics.tested:
            metrics = _tested(folder)
        print(f"test accuracy {metrics.test_accuracy:.2%} after {metrics.epochs_done} epochs: {folder.log_folder}")


def _tested(folder: RunFolder) -> MetricsRecord:
    if not folder.config_yaml.exists():
        raise ConfigError(f"Expected {folder.log_folder} to be a run of the embedded host, but it has no config.yaml")
    cfg = config_of(folder)
    return ensure_tested(folder, cfg, job.load_bundle(cfg))
