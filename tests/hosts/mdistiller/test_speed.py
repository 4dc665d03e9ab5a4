"""`TLLM.SPEED` in the real mdistiller: the exact batches of its own loader, and a faster run that can be resumed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.hosts.digits_runs import assert_equal
from tests.hosts.mdistiller.conftest import make_cifar100
from tests.hosts.mdistiller.processes import seeded, train
from tllm_plugin.models import create_model
from tllm_plugin.runs.run_folder import RunFolder


def prepare(root: Path) -> None:
    seeded(root)
    make_cifar100(root / "data")
    script = root / "tools" / "train.py"
    # The files do not have the checksums of the official ones.
    patch = "import torchvision.datasets.cifar as cifar; cifar.check_integrity = lambda *given: True\n"
    script.write_text(patch + script.read_text())
    torch.manual_seed(1)
    torch.save({"model": create_model("resnet20", num_classes=100).state_dict()}, root / "teacher.pth")


def student(root: Path, *options: str, name: str) -> dict[str, torch.Tensor]:
    common = (
        *("DATASET.TYPE", "cifar100", "SOLVER.BATCH_SIZE", "64", "SOLVER.EPOCHS", "1"),
        *("TLLM.HOLDOUT.FRACTION", "0.5", "TLLM.DETECTOR.TYPE", "none"),
        *("DISTILLER.TEACHER_CHECKPOINT", str(root / "teacher.pth"), "EXPERIMENT.NAME", name),
    )
    train(root, *common, *options)
    (path,) = (path for path in (root / "output").rglob("student_latest") if name in str(path))
    found: dict[str, torch.Tensor] = torch.load(path, weights_only=False)["model"]
    return found


@pytest.mark.parametrize("workers", ["0", "2"])
def test_exact_trains_the_same_student_bit_for_bit(scratch: Path, workers: str) -> None:
    prepare(scratch)
    options = ("DATASET.NUM_WORKERS", workers)
    off = student(scratch, *options, name="slow")
    exact = student(scratch, *options, "TLLM.SPEED", "exact", name="same")
    assert_equal(exact, off)


def test_auto_trains_and_says_what_it_has_chosen(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TLLM_CACHE", str(scratch / "cache"))
    prepare(scratch)
    student(scratch, "TLLM.SPEED", "auto", name="fast")
    (path,) = (scratch / "output").rglob("speed.json")
    found = RunFolder(path.parent).read_speed()
    assert found.teacher and found.student and "batch 64x3x32x32" in found.measured_on
