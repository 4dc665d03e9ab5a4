"""What `tllm export` writes is read by the libraries it is meant for, and gives the answers of the run."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from tllm_plugin.cli import main
from tllm_plugin.data import load_data
from tllm_plugin.models import create_model
from tllm_plugin.runs.run_folder import RunFolder

RECORDED = Path(__file__).resolve().parents[1] / "hosts/recorded/digits"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return RunFolder.inside(shutil.copytree(RECORDED / "kd-digits_student-seed0", tmp_path_factory.mktemp("x") / "kd"))


@pytest.fixture(scope="module")
def images() -> Tensor:
    loader = load_data("digits").eval_loader(None, batch_size=600, device=torch.device("cpu"), split="test")
    return next(iter(loader))[0]  # type: ignore[no-any-return]


def answers(state: dict[str, Tensor], images: Tensor) -> Tensor:
    network = create_model("digits_student", num_classes=10, in_channels=1)
    network.load_state_dict(state)
    with torch.no_grad():
        logits: Tensor = network.eval()(images)[0]
    return logits


def recorded(run: RunFolder, images: Tensor) -> Tensor:
    return answers(torch.load(run.log_folder / "student_latest", weights_only=True)["model"], images)


def check_metadata(found: dict[str, str], run: RunFolder) -> None:
    data = load_data("digits")
    assert json.loads(found["class_names"]) == list(data.class_names)
    assert json.loads(found["mean"]) == pytest.approx(list(data.mean))
    assert json.loads(found["std"]) == pytest.approx(list(data.std))
    assert found["image_size"] == "8" and found["architecture"] == "digits_student" and found["weights"] == "latest"
    assert found["method"] == "TLLM (KD)"


def test_safetensors(run: RunFolder, images: Tensor, tmp_path: Path) -> None:
    path = tmp_path / "student.safetensors"
    assert main(["export", str(run.log_folder), "--out", str(path)]) == 0
    assert torch.equal(answers(safetensors.torch.load_file(path), images), recorded(run, images))
    with safetensors.safe_open(path, framework="pt") as file:
        check_metadata(file.metadata(), run)


def test_state_dict(run: RunFolder, images: Tensor, tmp_path: Path) -> None:
    path = tmp_path / "student.pt"
    assert main(["export", str(run.path), "--out", str(path)]) == 0
    content = torch.load(path, weights_only=True)
    assert torch.equal(answers(content.pop("state_dict"), images), recorded(run, images))
    check_metadata(content, run)


def test_onnx(run: RunFolder, images: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason="the optional extra `onnx` is not installed")
    pytest.importorskip("onnxscript", reason="the optional extra `onnx` is not installed")
    path = tmp_path / "student.onnx"
    assert main(["export", str(run.log_folder), "--out", str(path)]) == 0
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for rows in (1, 2, 600):
        (found,) = session.run(None, {"image": images[:rows].numpy()})
        np.testing.assert_allclose(found, recorded(run, images[:rows]), rtol=1e-4, atol=1e-4)
    check_metadata(session.get_modelmeta().custom_metadata_map, run)


def test_onnx_with_other_answers_is_refused(
    run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason="the optional extra `onnx` is not installed")
    pytest.importorskip("onnxscript", reason="the optional extra `onnx` is not installed")
    whole = onnxruntime.InferenceSession.run
    monkeypatch.setattr(onnxruntime.InferenceSession, "run", lambda *a: [whole(*a)[0] + 0.01])
    assert main(["export", str(run.log_folder), "--out", str(tmp_path / "student.onnx")]) == 1
    assert "Expected ONNX Runtime to give PyTorch's logits, but they differ by 0.01" in capsys.readouterr().err
    assert not (tmp_path / "student.onnx").exists()


def test_exported_weights_are_read_back_with_their_data(
    run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """The answers are those of the checkpoint, and nothing is said about an unknown normalisation."""
    named = f"digits_student@{tmp_path / 'student.safetensors'}"
    assert main(["export", str(run.log_folder), "--out", named.partition("@")[2]]) == 0
    capsys.readouterr()
    other = f"digits_student@{run.log_folder / 'student_latest'}"
    assert main(["compare", named, other, "--data", "digits", "--json", "-"]) == 0
    classes = json.loads(capsys.readouterr().out)["classes"]
    assert len(classes) == 10 and all(item["delta_acc"] == 0 and item["high"] < 0.2 for item in classes)
    assert "does not record its normalisation" not in caplog.text


def test_classes(run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags, metrics = run.read_flags(), run.read_metrics()
    assert main(["export", str(run.log_folder), "--classes", "-"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert (content["schema"], content["version"], content["num_classes"]) == ("tllm/classes", 1, 10)
    assert content["detector"]["name"] == flags.detector.name
    for item, flag in zip(content["classes"], flags.classes, strict=True):
        assert (item["name"], item["flagged"], item["drop"]) == (flag.name, flag.flagged, flag.drop)
        assert (item["p_value"], item["e_value"]) == (flag.p_value, flag.e_value)
        assert item["teaching_weight"] == (0 if flag.flagged else 1)
        assert item["test_count"] == metrics.class_total[flag.index]
    assert main(["export", str(run.log_folder), "--classes", str(tmp_path / "classes.csv")]) == 0
    with open(tmp_path / "classes.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == [flag.name for flag in flags.classes]
    assert {row["teaching_weight"] for row in rows} <= {"0.0", "1.0"}


@pytest.mark.parametrize(
    ("words", "message", "code"),
    [
        ([], "Expected `--out` or `--classes` to name a file, but got neither", 2),
        (["--out", "student.bin"], "ends in one of .safetensors, .pt, .pth, .onnx, but got student.bin", 2),
        (["--out", "x.pt", "--weights", "best_holdout"], "student_best_holdout to be a network's checkpoint, but", 1),
    ],
)
def test_bad_use_is_one_line(
    words: list[str], message: str, code: int, run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = shutil.copytree(run.log_folder, tmp_path / "copy")
    (copy / "tllm/student_best_holdout").unlink()
    assert main(["export", str(copy), *words]) == code
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
