"""SRRL against a reference in plain loops, by hand, and with every name that a host gives a head."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from yacs.config import CfgNode

from tests import distiller_cases
from tests.methods.references import OneMap, cross_entropy, norm_relu
from tllm_plugin.core.errors import ConfigError
from tllm_plugin.hosts.method_options import builder
from tllm_plugin.methods import SRRL, find_map
from tllm_plugin.methods.student_map import read_map
from tllm_plugin.models import create_model, head_name


def reference(distiller: Any, image: Tensor, target: Tensor) -> tuple[float, float, float]:
    """Return cross-entropy, L_FM and L_SR of a batch, written out row by row."""
    with torch.no_grad():
        student_logits, student = distiller.student(image)
        teacher_logits, teacher = distiller.teacher(image)
    convolution, norm, _ = distiller.connector
    maps = norm_relu(student["pooled_map"].numpy(), convolution.weight.detach().numpy()[:, :, 0, 0], norm.eps)
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


MODELS = (
    *("resnet20", "resnet8x4", "resnet24_1_1_9", "wrn_16_2", "vgg8", "ResNet18", "MobileNetV1", "MobileNetV2"),
    *("ShuffleV1", "ShuffleV2", "tv_resnet18", "tv_resnet50", "tv_mobilenet_v2", "digits_student", "digits_teacher"),
)
CHANNELS = {"MobileNetV2": 1280, "tv_mobilenet_v2": 1280, "ShuffleV2": 1024, "wrn_16_2": 128, "resnet20": 64}


def srrl(student: nn.Module) -> Any:
    """Return SRRL with a teacher of 48 features, made as hosts make it."""
    teacher = create_model("digits_teacher", num_classes=3)
    return builder("SRRL")(student, teacher, CfgNode())


@pytest.mark.parametrize("name", MODELS)
def test_the_method_reaches_all_of_the_student_but_its_head(name: str) -> None:
    torch.manual_seed(0)
    student = create_model(name, num_classes=3)
    distiller = srrl(student)
    head = head_name(student)
    assert distiller_cases.unreached(distiller, "loss_kd") == {f"{head}.weight", f"{head}.bias"}
    channels = student.get_submodule(head).in_features
    assert distiller.connector[0].weight.shape == (48, channels, 1, 1) and channels == CHANNELS.get(name, channels)


@pytest.mark.parametrize("name", MODELS)
def test_the_students_map_is_what_its_head_pools(name: str) -> None:
    torch.manual_seed(0)
    network = create_model(name, num_classes=3).eval()
    with torch.no_grad():
        _, features = network(torch.randn(2, 3, 64, 64))
    pooled_map = read_map(features, "pooled_map")
    torch.testing.assert_close(pooled_map.mean((2, 3)), features["pooled_feat"])
    assert bool((pooled_map >= 0).all()) and pooled_map.shape[2:] == features["feats"][-1].shape[2:] != (1, 1)


class OtherPeoples(nn.Module):
    """A network that says nothing of the map that its head pools, with layers between its last stage and its head."""

    def __init__(self, ending: str) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3)
        self.stage = nn.Conv2d(6, 6, 3)
        self.norm = nn.BatchNorm2d(6)
        self.last = nn.Conv2d(6, 9 if ending == "convolution" else 6, 1)
        self.fc = nn.Linear(9 if ending == "convolution" else 6, 3)
        self.ending = ending
        self.calls: list[bool] = []

    def forward(self, image: Tensor) -> tuple[Tensor, dict[str, Any]]:
        self.calls.append(self.training)
        stem = self.stem(image).relu()
        stage = self.stage(stem) if self.ending == "activation" else self.stage(stem).relu()
        pooled_map = {
            "nothing": lambda: stage,
            "maximum": lambda: stage,
            "activation": lambda: self.norm(stage).relu(),
            # As yet the identity but for a part in 200,000, which only its parameters tell from nothing.
            "norm": lambda: self.norm(stage),
            "convolution": lambda: self.last(stage).relu(),
        }[self.ending]()
        pooled = pooled_map.amax((2, 3)) if self.ending == "maximum" else pooled_map.mean((2, 3))
        features = {"feats": [stem, stage], "pooled_feat": pooled}
        if self.ending == "activation":
            features["preact_feats"] = [stem, self.norm(stage)]
        return self.fc(pooled), features


@pytest.mark.parametrize(
    ("ending", "expected"),
    [
        *(("nothing", "feats"), ("activation", "preact_feats"), ("norm", "pooled_map")),
        *(("convolution", "pooled_map"), ("maximum", "pooled_map")),
    ],
)
def test_the_map_of_other_peoples_networks_is_found(ending: str, expected: str) -> None:
    torch.manual_seed(0)
    network = OtherPeoples(ending).train()
    network.norm.eval()
    network.fc.bias.requires_grad_(False)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    random = torch.get_rng_state()
    with torch.no_grad():
        assert find_map(network, 16) == (expected, network.fc.in_features)
    assert torch.equal(torch.get_rng_state(), random) and network.calls == [False]
    assert network.training and not network.norm.training
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())
    distiller = srrl(network)
    assert distiller.student_map == expected
    used = {"activation": "norm", "norm": "norm", "convolution": "last"}.get(ending)
    idle = {f"{name}.{part}" for name in {"norm", "last"} - {used} for part in ("weight", "bias")}
    assert distiller_cases.unreached(distiller, "loss_kd") == idle | {"fc.weight", "fc.bias"}


def test_one_row_without_a_map_takes_the_statistics_of_the_steps_before() -> None:
    torch.manual_seed(0)
    distiller = srrl(OtherPeoples("convolution")).train()
    image, target = torch.randn(5, 3, 16, 16), torch.arange(5) % 3
    distiller(image=image, target=target)
    norm = distiller.connector[1]
    mean = norm.running_mean.clone()
    assert bool(mean.any())
    losses = distiller(image=image[:1], target=target[:1])[1]
    losses["loss_kd"].backward()
    assert torch.equal(norm.running_mean, mean)
    with torch.no_grad():
        pooled = distiller.student(image[:1])[1]["pooled_feat"]
        connected = distiller.eval().connector(pooled[:, :, None, None]).flatten(1)
        logits, features = distiller.teacher(image[:1])
        expected = (connected - features["pooled_feat"]).square().mean()
        expected += (distiller.teacher.fc(connected) - logits).square().mean()
    assert losses["loss_kd"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_name_that_is_none_of_a_map_is_refused() -> None:
    with pytest.raises(ConfigError, match="`student_map` to be one of pooled_map, feats, preact_feats, but got 'last'"):
        SRRL(OneMap(), OneMap(), student_channels=1, teacher_dim=1, teacher_head="fc", student_map="last")


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
