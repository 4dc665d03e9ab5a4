"""Run folders made without training: networks whose accuracy per class is chosen, with all the files of a real run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from tllm_plugin import Curves, Predictions
from tllm_plugin.runs.flags_file import ClassFlag, DetectorChoice, FlagsRecord
from tllm_plugin.runs.metrics_file import MetricsRecord
from tllm_plugin.runs.run_folder import RunFolder

HOLDOUT_PER_CLASS = 20


def write_run(
    log_folder: Path,
    *,
    method: str = "NONE",
    detector: str = "none",
    student: str = "resnet8",
    teacher: str = "resnet20",
    seed: int = 0,
    classes: int = 12,
    per_class: int = 50,
    accuracy: float = 0.7,
    hurt: Sequence[int] = (),
    drop: float = 0.4,
    flagged: Sequence[int] = (),
    epochs: int = 12,
    answers: bool = True,
    tested: bool = True,
    reference: Path | None = None,
    teacher_checkpoint: Path | None = None,
    data_set: str = "imagefolder",
    names: Sequence[str] = (),
    settings: Mapping[str, Any] | None = None,
) -> Path:
    """Write a run whose student has `accuracy` on every class but loses `drop` on those in `hurt`.

    Which images are hard is the same for all runs; `seed` and the method add noise of their own.
    """
    generator = np.random.default_rng([seed, *map(ord, method + detector + student)])
    level = np.clip(accuracy + np.random.default_rng(7).normal(0, 0.1, classes), 0.05, 0.98)
    level[list(hurt)] -= drop
    labels = np.tile(np.arange(classes), per_class)
    difficulty = np.random.default_rng(8).random(labels.size)
    right = difficulty + generator.normal(0, 0.1, labels.size) < level[labels]
    predictions = np.where(right, labels, (labels + 1) % classes)

    folder = RunFolder.inside(log_folder).create()
    correct, total = np.bincount(labels[right], minlength=classes), np.bincount(labels, minlength=classes)
    share = float(right.mean())
    results = (share, tuple(correct.tolist()), tuple(total.tolist())) if tested else (None, (), ())
    folder.write_metrics(MetricsRecord(*results, (1.0,), None, epochs, True))
    if answers and tested:
        folder.write_predictions(Predictions(torch.from_numpy(labels), torch.from_numpy(predictions), classes))
    names = names or [f"class {index:04d}" for index in range(classes)]
    evidence = [
        ClassFlag(i, name, i in flagged, epochs // 2 if i in flagged else None, 0.1, 0.02, 30.0, HOLDOUT_PER_CLASS, 12)
        for i, name in enumerate(names)
    ]
    reason = "" if len(flagged) else "no class had evidence enough"
    folder.write_flags(FlagsRecord(DetectorChoice(detector, {"ETA": 0.05}), epochs, classes, reason, tuple(evidence)))
    folder.write_curves(_curves(generator, level, epochs, method != "NONE").state_dict())
    config: dict[str, Any] = {
        "DATASET": {"TYPE": data_set},
        "DISTILLER": {
            "TYPE": method,
            "STUDENT": student,
            "TEACHER": teacher,
            "TEACHER_CHECKPOINT": str(teacher_checkpoint or ""),
        },
        "EXPERIMENT": {"SEED": seed, "NAME": log_folder.name},
        "TLLM": {"DETECTOR": {"TYPE": detector, "REFERENCE": str(reference or "")}},
    }
    for key, value in (settings or {}).items():
        *sections, last = key.split(".")
        node: dict[str, Any] = config
        for section in sections:
            node = node.setdefault(section, {})
        node[last] = value
    folder.write_config(yaml.safe_dump(config))
    return log_folder


def _curves(generator: np.random.Generator, level: np.ndarray, epochs: int, taught: bool) -> Curves:
    labels = torch.arange(len(level)).repeat_interleave(HOLDOUT_PER_CLASS)
    curves = Curves(labels, len(level), torch.arange(len(labels)))
    for epoch in range(1, epochs + 1):
        grown = 0.2 + (level - 0.2) * epoch / epochs
        right = torch.from_numpy(generator.random(len(labels)) < grown[labels.numpy()])
        curves.append(
            epoch,
            Predictions(
                labels=labels,
                prediction=torch.where(right, labels, -1),
                num_classes=curves.num_classes,
                rank=torch.where(right, 1, 3).to(torch.uint8),
                true_prob=torch.where(right, 0.8, 0.1),
                agree=right if taught else None,
            ),
        )
    return curves
