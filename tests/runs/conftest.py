"""One record of each kind, with every field away from its default, and a run that holds them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tllm_plugin import Curves, Predictions
from tllm_plugin.runs.flags_file import ClassFlag, DetectorChoice, FlagsRecord
from tllm_plugin.runs.metrics_file import MetricsRecord
from tllm_plugin.runs.run_folder import RunFolder
from tllm_plugin.runs.split_file import SplitRecord


@pytest.fixture
def split_record() -> SplitRecord:
    return SplitRecord(holdout=(3, 1, 40), search_holdout=(2, 7), seed=-5, fraction=0.1, num_classes=3)


@pytest.fixture
def flags_record() -> FlagsRecord:
    classes = (
        ClassFlag(0, "apple", False, None, None, None, None, 0, 0),
        # Folder names need not be UTF-8; Python reads such bytes as lone surrogates.
        ClassFlag(1, "caf\udce9", True, 7, 0.05, 1 / 3, 81.5, 26, 20),
        ClassFlag(2, 'a "b"\n\u2603', False, None, -0.1, 1.0, 0.0, 26, 26),
    )
    return FlagsRecord(DetectorChoice("reference", {"margin": 0.05, "baseline": "a/b"}), 9, 3, "", classes)


@pytest.fixture
def metrics_record() -> MetricsRecord:
    return MetricsRecord(14 / 19, (5, 0, 9), (10, 0, 9), (1.5, 2.25), 2**40, 2, True)


@pytest.fixture
def curves() -> Curves:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(12) % 3
    history = Curves(labels, 3, torch.randperm(100, generator=generator)[:12])
    for epoch in (1, 2, 5):
        rank = torch.randint(1, 4, (12,), generator=generator, dtype=torch.uint8)
        history.append(
            epoch,
            Predictions(
                labels=labels,
                prediction=torch.where(rank == 1, labels, -1),
                num_classes=history.num_classes,
                rank=rank,
                true_prob=torch.rand(12, generator=generator),
                agree=torch.rand(12, generator=generator) < 0.5,
            ),
        )
    return history


@pytest.fixture
def run(
    tmp_path: Path, split_record: SplitRecord, flags_record: FlagsRecord, metrics_record: MetricsRecord, curves: Curves
) -> RunFolder:
    folder = RunFolder.inside(tmp_path / "log").create()
    folder.write_split(split_record)
    folder.write_flags(flags_record)
    folder.write_metrics(metrics_record)
    folder.write_curves(curves.state_dict())
    return folder
