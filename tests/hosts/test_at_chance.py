"""A network that has learned nothing is told in one line, in every host that scores; one that has is not."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from tests.hosts.digits_runs import make_config, train
from tests.hosts.repdistiller.short_runs import CLASSES, PER_CLASS, prepared, validate
from tests.hosts.repdistiller.short_runs import train as train_repdistiller
from tests.hosts.tiny_data import Rows
from tllm_plugin.core.errors import DataError
from tllm_plugin.core.predictions import predict
from tllm_plugin.data import DataBundle, ImageSet
from tllm_plugin.data.in_memory import in_memory_bundle
from tllm_plugin.hosts.embedded.data import load_bundle
from tllm_plugin.hosts.embedded.late_test import ensure_tested
from tllm_plugin.hosts.loader_data import LoaderData
from tllm_plugin.hosts.repdistiller import TeacherStage
from tllm_plugin.hosts.results import write_results
from tllm_plugin.models import create_model
from tllm_plugin.runs.metrics_file import MetricsRecord
from tllm_plugin.runs.run_folder import RunFolder

#: A learning rate at which nothing is learned.
ASLEEP = ("SOLVER.LR", "1e-9", "SOLVER.EPOCHS", "1", "DISTILLER.TYPE", "NONE", "TLLM.DETECTOR.TYPE", "none")


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the warnings of this kind."""
    return [
        record.getMessage()
        for record in caplog.records
        if record.levelno >= logging.WARNING and "CHANCE" in record.getMessage()
    ]


@pytest.mark.parametrize("trainer", ["tllm", "base"])
def test_a_student_that_learned_nothing(trainer: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    train(tmp_path, *ASLEEP, "SOLVER.TRAINER", trainer)
    (line,) = told(caplog)
    assert "of 600 test images correctly" in line and "expected by chance" in line and "digits" in line
    caplog.clear()
    train(tmp_path, *ASLEEP, "SOLVER.TRAINER", trainer, resume=True)
    assert len(told(caplog)) <= 1


def test_a_student_that_is_never_tested(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = train(tmp_path, *ASLEEP, "LOG.TEST_FREQ", "-1")
    (line,) = told(caplog)
    assert "hold-out images correctly" in line
    caplog.clear()
    cfg = make_config(tmp_path, *ASLEEP)
    ensure_tested(run, cfg, load_bundle(cfg))
    (line,) = told(caplog)
    assert "test images correctly" in line


@pytest.mark.parametrize("trainer", ["tllm", "base"])
def test_a_teacher_that_knows_nothing(
    trainer: str, tmp_path: Path, trained: Any, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoint = tmp_path / "untrained.pth"
    torch.manual_seed(0)
    torch.save({"model": create_model("digits_teacher", 10, 1).state_dict()}, checkpoint)
    options = ("DISTILLER.TYPE", "KD", "TLLM.DETECTOR.TYPE", "none", "SOLVER.TRAINER", trainer)
    train(tmp_path, *options, "KD.LOSS.CE_WEIGHT", "1.0", "DISTILLER.TEACHER_CHECKPOINT", str(checkpoint))
    assert sum("teacher" in line or "untrained.pth" in line for line in told(caplog)) == 1
    caplog.clear()
    # Its classes in another order: as wrong as can be.
    state = torch.load(trained.checkpoint, weights_only=True)
    for name in ("fc.weight", "fc.bias"):
        state["model"][name] = state["model"][name].roll(1, 0)
    torch.save(state, checkpoint)
    options += ("EXPERIMENT.NAME", "shifted")
    train(tmp_path, *options, "KD.LOSS.CE_WEIGHT", "1.0", "DISTILLER.TEACHER_CHECKPOINT", str(checkpoint))
    assert "class order" in told(caplog)[0]


@pytest.mark.parametrize("trainer", ["tllm", "base"])
def test_nothing_is_said_of_networks_that_have_learned(
    trainer: str, tmp_path: Path, trained: Any, caplog: pytest.LogCaptureFixture
) -> None:
    train(tmp_path, "TLLM.DETECTOR.TYPE", "none", "SOLVER.TRAINER", trainer, *trained.taught)
    assert not told(caplog)


@pytest.mark.parametrize("knows", [True, False])
def test_a_host_whose_results_are_written_for_it(knows: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    labels = torch.arange(4).repeat(25)

    def network(image: Tensor) -> Tensor:
        return nn.functional.one_hot(image.long() if knows else torch.zeros_like(image).long(), 4).float()

    run = RunFolder.inside(tmp_path).create()
    metrics = MetricsRecord(None, (), (), (), None, epochs_done=1, finished=True)
    write_results(run, metrics, predict(network, [(labels.float(), labels)]))
    assert len(told(caplog)) == (not knows)


def test_repdistillers_student(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    lists, options = prepared(tmp_path, "kd", learning_rate=1e-9)
    with torch.no_grad():
        for parameter in lists.modules[0].parameters():
            parameter.zero_()  # Answers alike whatever it sees.
    for group in (optimizer := lists.optimizer()).param_groups:
        group["lr"] = 0.0
    lists.optimizer = lambda: optimizer  # type: ignore[method-assign]
    train_repdistiller(lists, options)
    lines = [line for line in told(caplog) if "test images" in line]
    assert len(lines) == 1 and str(tmp_path) in lines[0]


@pytest.mark.parametrize("knows", [True, False])
def test_repdistillers_teacher(knows: bool, caplog: pytest.LogCaptureFixture) -> None:
    class Network(nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            seen = image.long() if knows else torch.zeros_like(image).long()
            return nn.functional.one_hot(seen, CLASSES).float()

    labels = torch.arange(CLASSES).repeat(PER_CLASS)
    stage = TeacherStage(SimpleNamespace(sftn=False), network := Network())
    options = SimpleNamespace(epochs=2, save_folder="save/models/x")
    loader = [(labels.float(), labels)]
    for epoch in (1, 2):
        assert stage.train(lambda *given: given[0], epoch, loader, network, None, None, options) == epoch
        assert stage.validate(lambda *arguments: validate(*arguments[:2]), loader, network, None, options)[0] >= 0
        assert len(told(caplog)) == (epoch == 2 and not knows)


def bundle_of(labels: Tensor) -> DataBundle:
    images = torch.randint(0, 256, (len(labels), 1, 8, 8), generator=torch.Generator().manual_seed(0)).byte()
    return in_memory_bundle(("a", "b"), ImageSet(images, labels), ImageSet(images, labels), flip=False)


def test_images_of_one_class_are_refused() -> None:
    assert bundle_of(torch.tensor([0, 1, 1])).num_classes == 2
    with pytest.raises(DataError, match="of at least two classes, but all 3 are of class 1$"):
        bundle_of(torch.tensor([1, 1, 1]))


def test_a_hosts_images_of_one_class_are_refused() -> None:
    data = Rows(6)
    assert LoaderData(DataLoader(data, batch_size=2), None).class_names == ("0", "1")
    data.targets = [0] * 6
    with pytest.raises(DataError, match="of at least two classes, but all 6 are of class 0$"):
        LoaderData(DataLoader(data, batch_size=2), None)
