"""Load the networks of finished runs and compute their predictions for test images."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from yacs.config import CfgNode

from tllm_plugin.analysis.loaded_run import LoadedRun, teacher_of
from tllm_plugin.analysis.results import TestResult
from tllm_plugin.core.data_identity import difference_in_test, training_difference
from tllm_plugin.core.errors import ConfigError, TLLMError
from tllm_plugin.data import DataBundle
from tllm_plugin.hosts.class_lists import resolve_classes
from tllm_plugin.hosts.embedded.data import load_bundle
from tllm_plugin.hosts.embedded.late_test import predict_test_set
from tllm_plugin.hosts.embedded.networks import show_as_recorded, trained_model
from tllm_plugin.hosts.embedded.prerequisites import log_folder, needed_teacher
from tllm_plugin.hosts.same_data import data_of_checkpoint
from tllm_plugin.hosts.weights import load_weights
from tllm_plugin.models import create_model
from tllm_plugin.models.planting import PlantedTeacher
from tllm_plugin.runs.run_folder import RunFolder

logger = logging.getLogger(__name__)


def with_predictions(runs: Sequence[LoadedRun]) -> list[LoadedRun]:
    """Return the runs with predictions; students of runs without predictions are run on their test data.

    A run is returned unchanged, with a warning, if this is impossible or if its checkpoint does not reproduce exactly
    the recorded accuracies.
    """
    bundles: dict[str, DataBundle] = {}
    result = []
    for run in runs:
        if run.result.predictions is None:
            try:
                run = replace(run, result=_predict_again(run, bundles))
            except (TLLMError, OSError) as error:
                logger.info("%s is compared by its counts per class: %s", run.name, error)
        result.append(run)
    return result


def _predict_again(run: LoadedRun, bundles: dict[str, DataBundle]) -> TestResult:
    cfg = embedded_config(run)
    if run.folder is None:
        raise ConfigError(f"Expected {run.name} to be a run, but it has no folder")
    recorded = run.folder.read_data()
    key = f"{cfg.DATASET} {cfg.EXPERIMENT.SEED} {recorded.digest()}"
    if key not in bundles:
        bundles[key] = load_bundle(cfg, recorded)
    difference = difference_in_test(recorded, bundles[key].identity)
    if difference:
        raise ConfigError(f"the test data are others by now: {difference}")
    found = TestResult.from_predictions(predict_test_set(run.folder, cfg, bundles[key]))
    if not np.array_equal(found.total, run.result.total):
        raise ConfigError("the test data are others by now")
    if not np.array_equal(found.correct, run.result.correct):
        raise ConfigError(
            f"its checkpoint gives {found.accuracy:.2%} test accuracy, but the run reported {run.result.accuracy:.2%}, "
            "with other weights or on another device"
        )
    return found


def balanced_rows(labels: Tensor, most: int) -> Tensor:
    """Select at most `most` positions, balanced over classes; return them (k,) int64 in ascending order.

    Args:
        labels: (n,) int64, labels to select from.
        most: Largest number of positions, at least 1.
    """
    if len(labels) <= most:
        return torch.arange(len(labels))
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(len(labels), generator=generator)
    # Rank of every image within its class in random order; low ranks of all classes are selected first.
    by_class = order[torch.argsort(labels[order], stable=True)]
    counts = torch.bincount(labels)
    starts = torch.repeat_interleave(counts.cumsum(0) - counts, counts)
    place = torch.arange(len(labels)) - starts
    chosen: Tensor = by_class[torch.argsort(place, stable=True)[:most]].sort().values
    return chosen


def embedded_config(run: LoadedRun) -> CfgNode:
    """Return the full config of a run of the embedded host.

    Raises:
        ConfigError: The run has no config of the embedded host.
    """
    if not run.spec.is_embedded:
        raise ConfigError(f"Expected {run.name} to hold a config.yaml of the embedded host, but it has none")
    return run.spec.config()


def student_network(run: LoadedRun, bundle: DataBundle, device: torch.device) -> nn.Module:
    """Return the student of a run with the weights of its last epoch.

    Raises:
        ConfigError, FileFormatError: The network cannot be created.
    """
    cfg = embedded_config(run)
    if run.folder is None:
        raise ConfigError(f"Expected {run.name} to be a run, but it has no folder")
    return _load(trained_model(cfg), run.folder.log_folder / "student_latest", bundle, device)


def teacher_network(run: LoadedRun, checkpoint: Path, bundle: DataBundle, device: torch.device) -> nn.Module:
    """Return the teacher of a run, including planted classes.

    Args:
        checkpoint: Checkpoint of the teacher.

    Raises:
        ConfigError, FileFormatError: The network cannot be created.
    """
    cfg = embedded_config(run)
    teacher = _load(cfg.DISTILLER.TEACHER, checkpoint, bundle, device)
    plant = cfg.DISTILLER.PLANT
    if plant.CLASSES:
        planted = resolve_classes("DISTILLER.PLANT.CLASSES", plant.CLASSES, bundle.class_names, recorded=True)
        teacher = PlantedTeacher(teacher, planted, bundle.num_classes, plant.STRENGTH).to(device)
    return teacher


def teacher_checkpoint(run: LoadedRun) -> Path | None:
    """Return the path of the checkpoint of a run's teacher; None if it is not found.

    If the config names no checkpoint, the teacher was trained in a neighbouring folder of the run or of the search.

    Raises:
        ConfigError: The run is not of the embedded host.
        FileFormatError: A data record is damaged.
    """
    found = teacher_of(run)
    if found is not None:
        return found / "student_latest"
    cfg = embedded_config(run)
    named = Path(cfg.DISTILLER.TEACHER_CHECKPOINT)
    if cfg.DISTILLER.TEACHER_CHECKPOINT:
        return named if named.is_file() else None
    needed = needed_teacher(cfg)
    if run.folder is None or needed is None:
        return None
    # The name has a suffix if a teacher trained on other data had the name already.
    name, data = log_folder(needed).name, run.folder.read_data()
    beside = (path for folder in list(run.folder.log_folder.parents)[:2] for path in sorted(folder.glob(f"{name}*")))
    for folder in beside:
        checkpoint = folder / "student_latest"
        if checkpoint.is_file() and not training_difference(RunFolder.inside(folder).read_data(), data):
            return checkpoint
    return None


def _load(name: str, checkpoint: Path, bundle: DataBundle, device: torch.device) -> nn.Module:
    network = create_model(name, num_classes=bundle.num_classes, in_channels=bundle.in_channels)
    network = load_weights(network, checkpoint)
    show_as_recorded(network, data_of_checkpoint(checkpoint), bundle.identity)
    return network.to(device).eval()
