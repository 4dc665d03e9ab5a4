"""Running finished networks over test images: answers, and the features that their last layer reads."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from yacs.config import CfgNode

from tllm_plugin.analysis.loaded_run import LoadedRun, teacher_of
from tllm_plugin.core.data_identity import training_difference
from tllm_plugin.core.errors import ConfigError
from tllm_plugin.data import DataBundle
from tllm_plugin.hosts.class_lists import resolve_classes
from tllm_plugin.hosts.embedded import job
from tllm_plugin.hosts.embedded.defaults import default_config
from tllm_plugin.hosts.embedded.networks import load_network, show_as_recorded, trained_model
from tllm_plugin.hosts.embedded.planting import PlantedTeacher
from tllm_plugin.hosts.same_data import data_of_checkpoint
from tllm_plugin.models import create_model
from tllm_plugin.runs.run_folder import RunFolder


@dataclass(frozen=True, eq=False)
class Answers:
    """What a network said about `n` test images.

    Args:
        labels: (n,) true classes.
        predictions: (n,) answers.
        features: (n, D) float32, what the last layer reads; (n, 0) where they were not asked for.
    """

    labels: npt.NDArray[np.int64]
    predictions: npt.NDArray[np.int64]
    features: npt.NDArray[np.float32]


@torch.no_grad()
def ask(
    network: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], device: torch.device, *, features: bool
) -> Answers:
    """Run a network over batches `(image, label)`; all results stay on the device until the end.

    Args:
        network: Image batch -> logits, or (logits, a dict with `pooled_feat`). Put into evaluation mode.
        batches: In the order in which results are wanted.
        device: Where the network is.
        features: Whether to keep the pooled features.
    """
    network.eval()
    labels, predictions, pooled = [], [], []
    for image, label in batches:
        output = network(image.to(device, non_blocking=True))
        logits, extra = output if isinstance(output, tuple) else (output, {})
        predictions.append(logits.argmax(1))
        labels.append(label)
        if features:
            if "pooled_feat" not in extra:
                raise ConfigError(f"Expected {type(network).__name__} to return its pooled features, but it does not")
            pooled.append(extra["pooled_feat"].float())
        # Feature maps of all stages: kept during the next pass, they would take memory twice and time as well.
        del output, logits, extra
    stacked = torch.cat(pooled).cpu().numpy() if pooled else np.zeros((sum(map(len, labels)), 0), dtype=np.float32)
    return Answers(torch.cat(labels).cpu().numpy(), torch.cat(predictions).cpu().numpy(), stacked)


def balanced_rows(labels: Tensor, most: int, seed: int = 0) -> Tensor:
    """Return (k,) int64 at most `most` positions, ascending, the same number of every class as far as they go.

    Args:
        labels: (n,) int64.
        most: At least 1.
        seed: Of the choice.
    """
    if len(labels) <= most:
        return torch.arange(len(labels))
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(labels), generator=generator)
    # Place of every image among those of its class, in random order; the first places of all classes come first.
    by_class = order[torch.argsort(labels[order], stable=True)]
    counts = torch.bincount(labels)
    starts = torch.repeat_interleave(counts.cumsum(0) - counts, counts)
    place = torch.arange(len(labels)) - starts
    chosen: Tensor = by_class[torch.argsort(place, stable=True)[:most]].sort().values
    return chosen


def embedded_config(run: LoadedRun) -> CfgNode:
    """Return the config of a run of the embedded host, defaults included.

    Raises:
        ConfigError: The run has none, or that of another host.
    """
    if not run.config:
        raise ConfigError(f"Expected {run.name} to hold a config.yaml of the embedded host, but it has none")
    cfg = default_config()
    try:
        cfg.merge_from_other_cfg(CfgNode(dict(run.config)))
    except (KeyError, ValueError) as error:
        raise ConfigError(f"Expected {run.name} to be a run of the embedded host, but {error}") from error
    cfg.freeze()
    return cfg


def student_network(run: LoadedRun, bundle: DataBundle, device: torch.device) -> nn.Module:
    """Return the student of a run with the weights of its last epoch.

    Raises:
        ConfigError, FileFormatError: It cannot be built.
    """
    cfg = embedded_config(run)
    if run.folder is None:
        raise ConfigError(f"Expected {run.name} to be a run, but it has no folder")
    return _load(trained_model(cfg), run.folder.log_folder / "student_latest", bundle, device)


def teacher_network(run: LoadedRun, checkpoint: Path, bundle: DataBundle, device: torch.device) -> nn.Module:
    """Return the teacher of a run as the student met it: with what was planted in it.

    Args:
        checkpoint: Its weights.

    Raises:
        ConfigError, FileFormatError: It cannot be built.
    """
    cfg = embedded_config(run)
    teacher = _load(cfg.DISTILLER.TEACHER, checkpoint, bundle, device)
    plant = cfg.DISTILLER.PLANT
    if plant.CLASSES:
        planted = resolve_classes("DISTILLER.PLANT.CLASSES", plant.CLASSES, bundle.class_names, recorded=True)
        teacher = PlantedTeacher(teacher, planted, bundle.num_classes, plant.STRENGTH).to(device)
    return teacher


def teacher_checkpoint(run: LoadedRun) -> Path | None:
    """Return where the weights of a run's teacher lie; None where they are not to be found.

    A run whose config names none had its teacher trained first, beside it; a run of a search, beside the search.

    Raises:
        ConfigError: The run is not one of the embedded host.
        FileFormatError: A record of the data that a run was trained on is damaged.
    """
    found = teacher_of(run)
    if found is not None:
        return found / "student_latest"
    cfg = embedded_config(run)
    named = Path(cfg.DISTILLER.TEACHER_CHECKPOINT)
    if cfg.DISTILLER.TEACHER_CHECKPOINT:
        return named if named.is_file() else None
    needed = job.needed_teacher(cfg)
    if run.folder is None or needed is None:
        return None
    # A teacher whose name was taken by one that was trained on other data has more after it.
    name, data = job.log_folder(needed).name, run.folder.read_data()
    beside = (path for folder in list(run.folder.log_folder.parents)[:2] for path in sorted(folder.glob(f"{name}*")))
    for folder in beside:
        checkpoint = folder / "student_latest"
        if checkpoint.is_file() and not training_difference(RunFolder.inside(folder).read_data(), data):
            return checkpoint
    return None


def _load(name: str, checkpoint: Path, bundle: DataBundle, device: torch.device) -> nn.Module:
    network = create_model(name, num_classes=bundle.num_classes, in_channels=bundle.in_channels)
    network = load_network(network, checkpoint)
    show_as_recorded(network, data_of_checkpoint(checkpoint), bundle.identity)
    return network.to(device).eval()
