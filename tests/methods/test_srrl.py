"""SRRL against a reference in plain loops, by hand, and with every name that a host gives a head."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests import distiller_cases
from tests.methods.references import OneMap, cross_entropy, norm_relu
from tllm_plugin.methods import SRRL
from tllm_plugin.models import create_model, head_name


def reference(distiller: Any, image: Tensor, target: Tensor) -> tuple[float, float, float]:
    """Return cross-entropy, L_FM and L_SR of a batch, written out row by row."""
    with torch.no_grad():
        student_logits, student = distiller.student(image)
        teacher_logits, teacher = distiller.teacher(image)
    convolution, norm, _ = distiller.connector
    maps = norm_relu(student["feats"][-1].numpy(), convolution.weight.detach().numpy()[:, :, 0, 0], norm.eps)
    fc = distiller.teacher.fc
    weight, bias = fc.weight.detach().numpy(), fc.bias.detach().numpy()
    matching, regression = 0.0, 0.0
    rows, channels = maps.shape[:2]
    for row in range(rows):
        pooled = [float(np.mean(maps[row, channel])) for channel in range(channels)]
        for channel in range(channels):
            matching += (pooled[channel] - float(teacher["pooled_feat"][row, channel])) ** 2
        for label in range(len(bias)):
            logit = sum(float(weight[label, channel]) * pooled[channel] for channel in range(channels))
            regression += (logit + float(bias[label]) - float(teacher_logits[row, label])) ** 2
    labels = cross_entropy(student_logits.numpy(), target.numpy())
    return labels, matching / (rows * channels), regression / (rows * len(bias))


@pytest.mark.parametrize("rows", [12, 1])
def test_losses_of_a_batch(rows: int) -> None:
    distiller, keywords = distiller_cases.build("SRRL").double(), distiller_cases.batch("SRRL", rows)
    keywords["image"] = keywords["image"].double()
    _, losses = distiller(**keywords)
    labels, matching, regression = reference(distiller, keywords["image"], keywords["target"])
    assert losses.keys() == {"loss_ce", "loss_kd"}
    assert losses["loss_ce"].item() == pytest.approx(labels, rel=1e-9)
    assert losses["loss_kd"].item() == pytest.approx(matching + 0.5 * regression, rel=1e-9)


def test_by_hand() -> None:
    student, teacher = OneMap(), OneMap()
    teacher.fc = nn.Linear(1, 2)
    nn.init.constant_(teacher.fc.weight, 3.0)
    nn.init.zeros_(teacher.fc.bias)
    distiller = SRRL(
        student,
        teacher,
        student_channels=1,
        teacher_dim=1,
        teacher_head="fc",
        feature_weight=2.0,
        regression_weight=0.5,
    ).train()
    nn.init.ones_(distiller.connector[0].weight)
    # The map (3, -1) is normalised to (1, -1); ReLU and pooling give 0.5. The teacher has 1 and logits (1, 1):
    # L_FM = (0.5 - 1)^2 = 0.25; both regressed logits are 3 * 0.5 = 1.5: L_SR = (1.5 - 1)^2 = 0.25.
    logits, losses = distiller(image=torch.tensor([[[[3.0, -1.0]]]]), target=torch.tensor([1]))
    assert losses["loss_kd"].item() == pytest.approx(2.0 * 0.25 + 0.5 * 0.25, abs=1e-4)
    assert losses["loss_ce"].item() == pytest.approx(math.log(2), abs=1e-6)
    assert logits.tolist() == [[1.0, 1.0]]


@pytest.mark.parametrize(
    ("name", "expected"),
    [("digits_teacher", "fc"), ("ShuffleV1", "linear"), ("vgg8", "classifier"), ("MobileNetV2", "classifier.0")],
)
def test_every_name_of_a_head(name: str, expected: str) -> None:
    torch.manual_seed(0)
    student = create_model("digits_student", num_classes=3)
    teacher = create_model(name, num_classes=3)
    assert head_name(teacher) == expected
    dim = teacher.get_submodule(expected).in_features
    distiller = SRRL(student, teacher, student_channels=12, teacher_dim=int(dim), teacher_head=expected).train()
    _, losses = distiller(image=torch.randn(4, 3, 16, 16), target=torch.tensor([0, 1, 2, 0]))
    losses["loss_kd"].backward()
    assert all(parameter.grad is None for parameter in teacher.parameters()), "the teacher's head is frozen"
    assert all(bool(parameter.grad.any()) for parameter in distiller.connector.parameters())
    # A replica of the distiller must use the head of its own teacher.
    names = [key for key, _ in distiller.named_parameters(remove_duplicate=False)]
    assert len(names) == len(set(names)) and not any(key.startswith("teacher_head") for key in names)


def test_connector_weights_have_the_spread_of_their_outputs() -> None:
    torch.manual_seed(0)
    student, teacher = OneMap(), OneMap()
    teacher.fc = nn.Linear(256, 2)
    connector = SRRL(student, teacher, student_channels=64, teacher_dim=256, teacher_head="fc").connector
    # 16,384 weights: the standard error of the spread is 0.6 percent.
    assert connector[0].weight.std().item() == pytest.approx(math.sqrt(2 / 256), rel=0.03)
    assert abs(connector[0].weight.mean().item()) < 0.003


def test_the_connector_is_learnable() -> None:
    distiller = distiller_cases.build("SRRL")
    assert distiller.get_extra_parameters() == 12 * 48 + 48 + 48  # type: ignore[operator]
