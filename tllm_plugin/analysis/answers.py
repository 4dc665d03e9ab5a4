"""Answers per image of runs that kept counts only, from their checkpoints: so that they can be compared in pairs."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from tllm_plugin.analysis.loaded_run import LoadedRun
from tllm_plugin.analysis.networks import ask, embedded_config, student_network
from tllm_plugin.analysis.results import TestResult
from tllm_plugin.core.data_identity import DataIdentity, difference_in_test
from tllm_plugin.core.errors import ConfigError, TLLMError
from tllm_plugin.data import DataBundle
from tllm_plugin.hosts.embedded import job
from tllm_plugin.hosts.embedded.device import choose_device
from tllm_plugin.hosts.embedded.evaluation import batches_of_test_set

logger = logging.getLogger(__name__)


def with_answers(runs: Sequence[LoadedRun]) -> list[LoadedRun]:
    """Run the students of runs without answers over their test data, and return all runs with answers.

    A run for which that is not possible, or whose checkpoint does not give the accuracies that the run reported, is
    returned as it is; the log says why.
    """
    bundles: dict[str, DataBundle] = {}
    result = []
    for run in runs:
        if run.result.predictions is not None:
            result.append(run)
            continue
        try:
            result.append(replace(run, result=_ask_again(run, bundles)))
        except (TLLMError, OSError) as error:
            logger.info("%s is compared by its counts per class: %s", run.name, error)
            result.append(run)
    return result


def _ask_again(run: LoadedRun, bundles: dict[str, DataBundle]) -> TestResult:
    cfg = embedded_config(run)
    recorded = run.folder.read_data() if run.folder is not None else DataIdentity()
    key = f"{cfg.DATASET} {recorded.digest()}"
    if key not in bundles:
        bundles[key] = job.load_bundle(cfg, recorded)
    bundle, device = bundles[key], choose_device(cfg)
    difference = difference_in_test(recorded, bundle.identity)
    if difference:
        raise ConfigError(f"the test data are others by now: {difference}")
    network = student_network(run, bundle, device)
    answers = ask(network, batches_of_test_set(bundle, cfg, device), device, features=False)
    found = TestResult.from_predictions(answers.labels, answers.predictions, bundle.num_classes)
    if not np.array_equal(found.total, run.result.total):
        raise ConfigError("the test data are others by now")
    # In another precision or on another device a few answers differ; another network differs in more.
    if np.abs(found.correct - run.result.correct).sum() > 0.01 * found.total.sum():
        raise ConfigError(
            f"its checkpoint gives {found.accuracy:.1%} test accuracy, but the run reported {run.result.accuracy:.1%}"
        )
    return found
