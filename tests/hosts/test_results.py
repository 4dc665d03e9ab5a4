"""Test results of a host that writes none of its own: they are there afterwards, and the analysis reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.tensorboard import SummaryWriter
from yacs.config import CfgNode

from tests.hosts.tiny_data import CLASSES, IMAGES, LABELS, PER_CLASS, Data
from tllm_plugin.analysis.loaded_run import load_run
from tllm_plugin.hosts.adapter import Host
from tllm_plugin.hosts.factories import make_trainer_factory
from tllm_plugin.hosts.tllm_node import tllm_node
from tllm_plugin.methods import KD
from tllm_plugin.models import create_model


class PlainTrainer:
    """The least that mdistiller's trainers have in common."""

    def __init__(self, name: str, distiller: nn.Module, train_loader: Any, val_loader: Any, cfg: CfgNode) -> None:
        self.distiller, self.train_loader, self.cfg = distiller, train_loader, cfg
        self.log_path = f"{cfg.LOG.PREFIX}/{name}"
        self.tf_writer = SummaryWriter(self.log_path)

    def train(self, resume: bool = False) -> None:
        for epoch in range(1, self.cfg.SOLVER.EPOCHS + 1):
            self.train_epoch(epoch)

    def train_epoch(self, epoch: int) -> None:
        self.distiller.train()
        for image, target, _ in self.train_loader:
            self.distiller(image=image, target=target, epoch=epoch)


@pytest.mark.parametrize("outputs", [CLASSES, 300])
def test_results_are_written(outputs: int, tmp_path: Path) -> None:
    """Also where the network has more outputs than there are classes, as a host's has for a part of its data set."""
    torch.manual_seed(0)
    cfg = CfgNode({"SOLVER": CfgNode({"EPOCHS": 2, "TRAINER": "tllm"}), "LOG": CfgNode({"PREFIX": str(tmp_path)})})
    cfg.DISTILLER = CfgNode({"TYPE": "KD", "TEACHER": "digits_teacher", "STUDENT": "digits_student"})
    cfg.TLLM = tllm_node()
    cfg.TLLM.HOLDOUT.FRACTION = 0.25
    cfg.TLLM.DETECTOR.TYPE = "none"
    student, teacher = (create_model(name, outputs, 1) for name in ("digits_student", "digits_teacher"))
    distiller = KD(student, teacher, temperature=4.0, ce_weight=0.1, kd_weight=0.9)
    tests = [(IMAGES[rows], LABELS[rows]) for rows in torch.arange(len(LABELS)).split(24)]
    host = Host({"base": PlainTrainer}, {}, frozenset({"NONE"}), lambda train, val, cfg: Data())
    for _ in range(2):  # Once more into the same folder: results of the first run must not pass for the second's.
        trainer = make_trainer_factory(host)("run", distiller, None, tests, cfg)
        assert not trainer.tllm_session.run.metrics_json.exists()
        trainer.train()
        trainer.tf_writer.close()
    run = load_run(tmp_path / "run")
    with torch.no_grad():
        expected = torch.cat([student.eval()(image)[0].argmax(1) for image, _ in tests]).numpy()
    assert run.result.predictions is not None
    np.testing.assert_array_equal(run.result.predictions.prediction, expected)
    assert run.result.accuracy == pytest.approx((expected == LABELS.numpy()).mean())
    assert run.result.total.tolist() == [PER_CLASS] * CLASSES
    assert bool(expected.max() >= CLASSES) is (outputs > CLASSES), "some are predicted to be of no class at all"
    assert (run.method, run.pair, run.class_names) == ("KD", "digits_teacher/digits_student", Data.class_names)
    assert run.flags is not None and run.curves is not None and run.curves.epochs == [1, 2]
