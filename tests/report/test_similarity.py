"""Networks of real runs, run over the test data."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from tllm_plugin.analysis.loaded_run import load_run
from tllm_plugin.analysis.networks import embedded_config, student_network, with_predictions
from tllm_plugin.analysis.representations import linear_cka
from tllm_plugin.analysis.similarity import similarity_of
from tllm_plugin.analysis.study import build_study
from tllm_plugin.cli import main
from tllm_plugin.core.predictions import predict
from tllm_plugin.hosts.embedded.data import load_bundle
from tllm_plugin.hosts.embedded.late_test import batches_of_test_set
from tllm_plugin.models import create_model
from tllm_plugin.runs.atomic import save_torch


def test_predictions_are_those_of_the_run(digits: dict[str, Path]) -> None:
    run = load_run(digits["kd"])
    cfg, device = embedded_config(run), torch.device("cpu")
    bundle = load_bundle(cfg)
    network = student_network(run, bundle, device)
    found, kept = predict(network, batches_of_test_set(bundle, cfg, device), features=True), run.result.predictions
    assert kept is not None and found.features is not None
    assert found.labels.equal(kept.labels) and found.prediction.equal(kept.prediction)
    # What is kept as features is what the last layer reads.
    logits = network.fc(found.features)
    assert (logits.argmax(1) == found.prediction).float().mean() > 0.999


def test_similarity(digits: dict[str, Path]) -> None:
    study = build_study([load_run(path) for path in digits.values()])
    found = similarity_of(study, points=60)
    assert found is not None and found.images == 600
    assert found.teacher_accuracy is not None
    # The teacher as the student met it: wrong on the planted class, unlike the run that trained it.
    assert found.teacher_accuracy[3] < 0.2 < study.teachers["digits_teacher"].result.class_accuracy[3]
    other = np.arange(10) != 3
    np.testing.assert_allclose(
        found.teacher_accuracy[other], study.teachers["digits_teacher"].result.class_accuracy[other], atol=0.25
    )
    run = study.methods[0].runs[0]
    cfg, device = embedded_config(run), torch.device("cpu")
    bundle = load_bundle(cfg)
    features = [
        predict(network, batches_of_test_set(bundle, cfg, device), features=True)
        for network in (
            student_network(load_run(digits["teacher"]), bundle, device),
            student_network(run, bundle, device),
        )
    ]
    of_zero = [one.kept("features")[features[0].labels == 0].numpy() for one in features]
    assert found.cka["KD"][0] == pytest.approx(linear_cka(*of_zero), abs=1e-4)
    assert found.cka["KD"].shape == found.agreement["KD"].shape == (10,)
    assert [picture.title for picture in found.pictures] == ["vanilla", "KD"]
    assert all(np.bincount(picture.labels).tolist() == [6] * 10 for picture in found.pictures)


def test_predictions_of_a_run_that_kept_counts_only(
    digits: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    kept = load_run(digits["vanilla"])
    copy = shutil.copytree(digits["vanilla"], tmp_path / "vanilla")
    (copy / "tllm" / "predictions.npz").unlink()
    assert load_run(copy).result.predictions is None
    (again,) = with_predictions([load_run(copy)])
    assert again.result.predictions is not None and kept.result.predictions is not None
    assert again.result.predictions.prediction.equal(kept.result.predictions.prediction)
    # Weights of another network would compare something else.
    save_torch(copy / "student_latest", {"model": create_model("digits_student", 10, 1).state_dict()})
    (same,) = with_predictions([load_run(copy)])
    assert same.result.predictions is None and "its checkpoint gives" in caplog.text
    shutil.copy(digits["vanilla"] / "student_latest", copy)
    assert main(["compare", str(copy), str(digits["kd"]), "--answers", "--json", str(tmp_path / "out")]) == 0
    assert json.loads((tmp_path / "out").read_text())["methods"][0]["paired_by_image"] is True


def test_nothing_to_run(digits: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    copies = [shutil.copytree(path, tmp_path / name) for name, path in digits.items()]
    (tmp_path / "kd" / "student_latest").unlink()
    assert similarity_of(build_study([load_run(path) for path in copies]), points=0) is None
    assert "networks are not compared: Expected" in caplog.text and "student_latest" in caplog.text
    assert similarity_of(build_study([load_run(digits["vanilla"])])) is None
