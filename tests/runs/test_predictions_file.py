"""Predictions per image: what is written comes back, and what does not fit together is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tllm_plugin.core.errors import ConfigError, FileFormatError
from tllm_plugin.core.predictions import Predictions
from tllm_plugin.core.scores import SCORES
from tllm_plugin.runs.atomic import write_npz
from tllm_plugin.runs.run_folder import RunFolder


@pytest.mark.parametrize("classes", [1, 10, 256, 257, 100_000])
def test_round_trip(classes: int, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(classes)
    written = Predictions(*torch.randint(classes, (2, 50), generator=generator), classes)
    folder = RunFolder(tmp_path)
    folder.write_predictions(written)
    back = folder.read_predictions()
    assert back.num_classes == classes and back.labels.dtype == back.prediction.dtype == torch.int64
    assert back.labels.equal(written.labels) and back.prediction.equal(written.prediction)
    assert back.class_correct.equal(written.class_correct)
    with pytest.raises(ConfigError, match="with the `rank` of every sample, but got predictions without"):
        SCORES["reciprocal_rank"](back)


def test_predictions_of_more_outputs_than_classes(tmp_path: Path) -> None:
    written = Predictions(torch.tensor([0, 1, 2]), torch.tensor([0, 700, 2]), 3)
    folder = RunFolder(tmp_path)
    folder.write_predictions(written)
    back = folder.read_predictions()
    assert back.prediction.equal(written.prediction) and back.num_classes == 3
    assert back.class_correct.tolist() == [1, 0, 1] and back.class_total.tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    "arrays, message",
    [
        ({"labels": [0, 1], "predictions": [0]}, "as many predictions as labels"),
        ({"labels": [0, 3], "predictions": [0, 1]}, "`labels` in .* to be from 0 to 2"),
        ({"labels": [0, 1], "predictions": [0, -1]}, "`predictions` in .* to be from 0 to 2"),
        ({"labels": [0.0, 1.0], "predictions": [0, 1]}, "`labels` in .* to be integers in 1 dimensions"),
        ({"labels": [0, 1]}, "`predictions` in .* to be integers"),
    ],
)
def test_what_does_not_fit(arrays: dict[str, list[float]], message: str, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    write_npz(folder.predictions_npz, schema="tllm/predictions", version=1, num_classes=3, **arrays)
    with pytest.raises(FileFormatError, match=message):
        folder.read_predictions()
