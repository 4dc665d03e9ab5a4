"""Compute test results for a finished run that has none, because it was not tested or its results were lost."""

from __future__ import annotations

from functools import partial

from yacs.config import CfgNode

from tllm_plugin.core.data_identity import DataIdentity, difference_in_test
from tllm_plugin.core.errors import ConfigError
from tllm_plugin.core.predictions import Predictions, predict
from tllm_plugin.data import DataBundle
from tllm_plugin.hosts import processes
from tllm_plugin.hosts.embedded.data import batches_of_test_set
from tllm_plugin.hosts.embedded.networks import make_network, trained_model
from tllm_plugin.hosts.embedded.runtime import autocast, choose_device, reproducible
from tllm_plugin.hosts.results import write_results
from tllm_plugin.hosts.run_lock import run_lock
from tllm_plugin.hosts.same_data import check_classes, tell_once
from tllm_plugin.hosts.weights import load_weights
from tllm_plugin.runs.metrics_file import MetricsRecord
from tllm_plugin.runs.run_folder import RunFolder


def predict_test_set(run: RunFolder, cfg: CfgNode, bundle: DataBundle) -> Predictions:
    """Return the predictions of a run's student for the test data, bit for bit as in the run's own test.

    Bitwise equality holds on the device of the run. All ranks must call this function.

    Args:
        run: Run of the embedded host.
        cfg: Config of the run.
        bundle: Data of the run; images are normalised as the run recorded.

    Raises:
        FileFormatError: The student's checkpoint is missing or damaged.
    """
    with reproducible(cfg):
        recorded = processes.from_main(run.read_data)
        bundle = bundle.normalised(recorded.mean, recorded.std)
        device = choose_device(cfg)
        network = make_network(cfg, trained_model(cfg), bundle, device)
        student = load_weights(network, run.log_folder / "student_latest").to(device)
        return predict(student, batches_of_test_set(bundle, cfg, device), autocast=partial(autocast, cfg, device))


def ensure_tested(run: RunFolder, cfg: CfgNode, bundle: DataBundle) -> MetricsRecord:
    """Return the metrics of a finished run with test results; test the student if results are missing.

    Other files of the run are not changed. All ranks must call this function.

    Args:
        run: Run of the embedded host.
        cfg: Config of the run.
        bundle: Data of the run.

    Raises:
        FileFormatError: `metrics.json` or the student's checkpoint is missing or damaged.
        ConfigError: The run is not finished, or `bundle` has other classes or images of another size.
        TLLMError: The results cannot be written.
    """
    metrics = processes.from_main(run.read_metrics)
    if not metrics.finished:
        raise ConfigError(f"Expected {run.log_folder} to be finished, but it has trained {metrics.epochs_done} epochs")
    with run_lock(run.log_folder, wait=True):
        metrics = processes.from_main(run.read_metrics)
        if processes.from_main(run.has_results):  # Another command may have tested the run in the meantime.
            return metrics
        recorded = processes.from_main(run.read_data)
        processes.from_main(lambda: _check_classes(run, recorded, bundle))
        predictions = predict_test_set(run, cfg, bundle)
        return processes.from_main(lambda: write_results(run, metrics, predictions))


def _check_classes(run: RunFolder, recorded: DataIdentity, bundle: DataBundle) -> None:
    remedy = "set DATASET.PATH (`tllm test --path`) to their folder"
    check_classes(run.log_folder, recorded, bundle.identity, remedy)
    if recorded.image_size and recorded.image_size != bundle.image_size:
        raise ConfigError(
            f"Expected images of {recorded.image_size} pixels, as {run.log_folder} was trained on, but got "
            f"{bundle.image_size}; {remedy}"
        )
    if difference := difference_in_test(recorded, bundle.identity):
        tell_once(f"{run.log_folder}: its test data are others by now: {difference}")
    if run.flags_json.exists():
        names = tuple(item.name for item in run.read_flags().classes)
        if names not in (recorded.class_names, tuple(bundle.class_names)):
            raise ConfigError(
                f"Expected the data to have the classes that {run.flags_json} names, but they are others; {remedy}"
            )
