"""`tllm test`: compute test results for finished runs that have none."""

from __future__ import annotations

import argparse
import sys

from tllm_plugin.core.errors import ConfigError, TLLMError
from tllm_plugin.data import DataBundle
from tllm_plugin.hosts import processes
from tllm_plugin.hosts.console import say
from tllm_plugin.hosts.embedded.data import load_bundle
from tllm_plugin.hosts.embedded.late_test import ensure_tested
from tllm_plugin.hosts.run_spec import RunSpec
from tllm_plugin.runs.metrics_file import MetricsRecord
from tllm_plugin.runs.run_folder import RunFolder
from tllm_plugin.search.space import with_values


def run(options: argparse.Namespace) -> None:
    """Test all runs and print their test accuracies.

    Raises:
        TLLMError: A run cannot be tested; the other runs are tested first, and the last error is raised.
    """
    processes.refuse_several("`tllm test`", "start it without a launcher")
    problems: list[TLLMError] = []
    bundles: dict[str, DataBundle] = {}
    for name in options.runs:
        try:
            folder = RunFolder.find(name)
            metrics = _tested(folder, options, bundles)
            say(f"test accuracy {metrics.test_accuracy:.2%} after {metrics.epochs_done} epochs: {folder.log_folder}")
        except TLLMError as error:
            problems.append(error)
    for problem in problems[:-1]:
        say(f"tllm: {problem}", file=sys.stderr)
    if problems:
        raise problems[-1]


def _tested(folder: RunFolder, options: argparse.Namespace, bundles: dict[str, DataBundle]) -> MetricsRecord:
    metrics = folder.read_metrics()
    if folder.has_results():
        return metrics
    spec = RunSpec.read(folder)
    if not spec.is_embedded:
        if metrics.tested:
            return metrics  # Runs of some hosts have only numbers per class.
        raise ConfigError(
            f"Expected {folder.log_folder} to be a run of the embedded host, but it has no config.yaml of that"
        )
    given = {"DATASET.PATH": options.path, "RUNTIME.DEVICE": options.device}
    cfg = with_values(spec.config(), {key: value for key, value in given.items() if value})
    # Key of the data set and of the images that are drawn from it.
    recorded = folder.read_data()
    key = f"{cfg.DATASET} {cfg.EXPERIMENT.SEED} {recorded.digest()}"
    if key not in bundles:
        bundles[key] = load_bundle(cfg, recorded)
    return ensure_tested(folder, cfg, bundles[key])
