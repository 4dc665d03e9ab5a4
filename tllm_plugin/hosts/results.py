"""Write test results and checkpoints of a run, for several hosts, and measure its memory use."""

from __future__ import annotations

import platform
import resource
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torchvision

from tllm_plugin.core.predictions import Predictions
from tllm_plugin.hosts import processes
from tllm_plugin.hosts.at_chance import tell_if_at_chance
from tllm_plugin.runs.atomic import save_torch, write_link
from tllm_plugin.runs.metrics_file import MetricsRecord
from tllm_plugin.runs.run_folder import RunFolder
from tllm_plugin.version import __version__


def write_results(run: RunFolder, metrics: MetricsRecord, predictions: Predictions | None) -> MetricsRecord:
    """Write `metrics.json` and, for a finished run, `predictions.npz`; warn if a finished run is at chance level.

    Args:
        run: Run folder.
        metrics: Epochs and cost of the run; without predictions, its test results are kept.
        predictions: Predictions of the student for the test data; None if it was not tested.

    Returns:
        Written metrics.
    """
    if predictions is not None:
        metrics = metrics.with_results(predictions)
        if metrics.finished:
            tell_if_at_chance("trained", str(run.log_folder), predictions, "test images")
            run.write_predictions(predictions)
    run.write_metrics(metrics)
    return metrics


def peak_memory_bytes(device: torch.device) -> int:
    """Return the peak memory use in bytes: of the CUDA allocator, or without CUDA of the whole process."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak) if sys.platform == "darwin" else int(peak) * 1024


def described(dumped: str) -> str:
    """Return `config.yaml`, everything needed to run again, with versions, from what a config dumps."""
    versions = {
        "tllm-plugin": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "processes": processes.world_size(),
    }
    header = "".join(f"# {name} {version}\n" for name, version in versions.items())
    return header + dumped


def write_checkpoint(
    folder: Path, epoch: int, state: Mapping[str, Any], student: Mapping[str, Any], *, kept: bool = False
) -> None:
    """Write `latest` and `student_latest`.

    Args:
        folder: Log folder of the run.
        epoch: The last trained epoch.
        state: Everything that a resume needs.
        student: Plain weights of the student, with the identity of the data.
        kept: Whether to write them under names that are not overwritten, too.
    """
    # The student is written first, so that a reader who finds `latest` also finds its student.
    for latest, name, content in (
        ("student_latest", f"student_{epoch}", student),
        ("latest", f"epoch_{epoch}", state),
    ):
        if kept:
            save_torch(folder / name, content)
            write_link(folder / latest, folder / name)
        else:
            save_torch(folder / latest, content)
