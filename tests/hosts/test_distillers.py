"""The embedded host's losses against references written out in NumPy, and what a distiller must leave alone."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn

from tests import distiller_cases
from tllm_plugin.core.errors import ConfigError
from tllm_plugin.hosts.embedded.distillers.at import attention_loss
from tllm_plugin.hosts.embedded.distillers.base import to_smaller_size
from tllm_plugin.hosts.embedded.distillers.fitnet import FitNet
from tllm_plugin.methods import kd_loss

Array = npt.NDArray[np.float64]


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def softmax(row: Array) -> Array:
    powers = np.exp(row - row.max())
    return np.asarray(powers / powers.sum())


def cross_entropy(logits: Array, target: Array) -> float:
    return float(np.mean([-math.log(softmax(row)[label]) for row, label in zip(logits, target, strict=True)]))


def kd_reference(student: Array, teacher: Array, temperature: float) -> float:
    rows = []
    for ours, theirs in zip(student, teacher, strict=True):
        p, q = softmax(theirs / temperature), softmax(ours / temperature)
        rows.append(sum(p[c] * (math.log(p[c]) - math.log(q[c])) for c in range(len(p))))
    return temperature**2 * sum(rows) / len(rows)


def pooled(maps: Array, height: int, width: int) -> Array:
    """Average non-overlapping windows; sizes divide each other."""
    n, channels, high, wide = maps.shape
    return maps.reshape(n, channels, height, high // height, width, wide // width).mean((3, 5))


def at_reference(student: list[Array], teacher: list[Array], power: float) -> float:
    total = 0.0
    for ours, theirs in zip(student, teacher, strict=True):
        size = (min(ours.shape[2], theirs.shape[2]), min(ours.shape[3], theirs.shape[3]))
        maps = []
        for features in (pooled(ours, *size), pooled(theirs, *size)):
            rows = [(np.abs(sample) ** power).mean(0).ravel() for sample in features]
            maps.append(np.stack([row / np.linalg.norm(row) for row in rows]))
        total += float(((maps[0] - maps[1]) ** 2).mean())
    return total


@pytest.mark.parametrize("temperature", [1.0, 4.0, 0.5])
def test_kd_loss(temperature: float) -> None:
    student, teacher = randn(7, 5, seed=1) * 3, randn(7, 5, seed=2) * 3
    expected = kd_reference(student.numpy(), teacher.numpy(), temperature)
    assert kd_loss(student, teacher, temperature).item() == pytest.approx(expected, rel=1e-10)


def test_kd_loss_by_hand() -> None:
    # Teacher (3/4, 1/4), student (1/2, 1/2): KL = 3/4 ln(3/2) + 1/4 ln(1/2) at T = 1.
    teacher = torch.tensor([[math.log(3.0), 0.0]])
    assert kd_loss(torch.zeros(1, 2), teacher, 1.0).item() == pytest.approx(0.130812, abs=1e-6)
    # The same distributions at T = 2 come from logits twice as large; the loss is 4 times as large.
    assert kd_loss(torch.zeros(1, 2), 2 * teacher, 2.0).item() == pytest.approx(4 * 0.130812, abs=1e-5)


def test_kd_loss_at_the_edges() -> None:
    logits = randn(3, 4)
    assert kd_loss(logits, logits, 4.0).item() == pytest.approx(0.0, abs=1e-12)
    assert kd_loss(logits[:1], randn(1, 4, seed=5), 4.0).item() > 0
    sure = torch.tensor([[1e4, -1e4]])
    assert math.isfinite(kd_loss(sure, -sure, 1.0).item())


@pytest.mark.parametrize("sizes", [((8, 8), (8, 8)), ((8, 8), (4, 4)), ((12, 8), (4, 4)), ((7, 7), (4, 4))])
def test_maps_of_one_size(sizes: tuple[tuple[int, int], tuple[int, int]], monkeypatch: pytest.MonkeyPatch) -> None:
    maps = [torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0)) for size in sizes]
    expected = [torch.nn.functional.adaptive_avg_pool2d(item, sizes[1]) for item in maps]
    if sizes[0][0] % sizes[1][0] == 0:
        monkeypatch.setattr(torch.nn.functional, "adaptive_avg_pool2d", None)
    for found, wanted in zip(to_smaller_size(*maps), expected, strict=True):
        torch.testing.assert_close(found, wanted)
    for found, wanted in zip(to_smaller_size(*maps[::-1]), expected[::-1], strict=True):
        torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("power", [1.0, 2.0, 3.5])
def test_attention_loss(power: float) -> None:
    student = [randn(3, 4, 8, 8, seed=1), randn(3, 6, 4, 4, seed=2)]
    teacher = [randn(3, 5, 4, 4, seed=3), randn(3, 7, 8, 4, seed=4)]
    expected = at_reference([maps.numpy() for maps in student], [maps.numpy() for maps in teacher], power)
    assert attention_loss(student, teacher, power).item() == pytest.approx(expected, rel=1e-10)


def test_attention_loss_by_hand() -> None:
    # One channel, two pixels: (1, 0) against (0, 1) after normalisation: mean of (1, 1).
    student = [torch.tensor([[[[2.0, 0.0]]]])]
    teacher = [torch.tensor([[[[0.0, -5.0]]]])]
    assert attention_loss(student, teacher, 2.0).item() == pytest.approx(1.0)
    # (1, 0) against (1, 1) / sqrt(2): ((1 - 0.70711)^2 + 0.70711^2) / 2 = 0.29289.
    assert attention_loss(student, [torch.ones(1, 1, 1, 2)], 2.0).item() == pytest.approx(1 - math.sqrt(0.5), abs=1e-6)


def test_attention_loss_compares_the_stages_that_both_networks_have() -> None:
    student, teacher = [randn(1, 1, 2, 2)], [randn(1, 1, 2, 2), randn(1, 1, 2, 2)]
    assert torch.equal(attention_loss(student, teacher, 2.0), attention_loss(student, teacher[:1], 2.0))
    assert torch.equal(attention_loss(teacher, student, 2.0), attention_loss(teacher[:1], student, 2.0))


def test_attention_loss_of_a_dead_map_has_finite_gradients() -> None:
    dead = torch.zeros(2, 3, 4, 4, requires_grad=True)
    attention_loss([dead], [torch.ones(2, 3, 4, 4)], 2.0).backward()
    assert dead.grad is not None and torch.isfinite(dead.grad).all()


def outputs(distiller: nn.Module, image: Tensor) -> tuple[Any, Any]:
    """Return (logits, features) of the student as trained and of the teacher as frozen."""
    with torch.no_grad():
        return distiller.student(image), distiller.teacher.eval()(image)  # type: ignore[operator,union-attr]


@pytest.mark.parametrize("name", ["KD", "AT", "FITNET"])
def test_losses_of_a_batch(name: str) -> None:
    distiller, keywords = distiller_cases.build(name).double(), distiller_cases.batch(name)
    keywords["image"] = keywords["image"].double()
    logits, losses = distiller(**keywords)
    (student_logits, student), (teacher_logits, teacher) = outputs(distiller, keywords["image"])
    assert torch.equal(logits, student_logits)
    target = keywords["target"].numpy()
    ce_weight = {"KD": 0.1, "AT": 1.0, "FITNET": 1.0}[name]
    ours, theirs = student_logits.numpy(), teacher_logits.numpy()
    if name == "KD":
        expected = 0.9 * kd_reference(ours, theirs, 4.0)
    elif name == "AT":
        maps = [[stage.numpy() for stage in features["feats"][1:]] for features in (student, teacher)]
        expected = 100.0 * at_reference(*maps, 2.0)
    else:
        expected = 10.0 * hint_reference(distiller, student["feats"][1].numpy(), teacher["feats"][1].numpy())
    assert losses.keys() == {"loss_ce", "loss_kd"}
    assert losses["loss_ce"].item() == pytest.approx(ce_weight * cross_entropy(ours, target), rel=1e-9)
    assert losses["loss_kd"].item() == pytest.approx(expected, rel=1e-9)
    assert all(loss.shape == () for loss in losses.values())


def hint_reference(distiller: Any, student: Array, teacher: Array) -> float:
    """FitNet's hint, written out: 1x1 convolution, batch normalisation with batch statistics, ReLU, MSE."""
    convolution, norm, _ = distiller.regressor
    mixed = np.einsum("oc,nchw->nohw", convolution.weight.detach().numpy()[:, :, 0, 0], student)
    mean, variance = mixed.mean((0, 2, 3), keepdims=True), mixed.var((0, 2, 3), keepdims=True)
    scaled = (mixed - mean) / np.sqrt(variance + norm.eps)
    return float(((np.maximum(scaled, 0.0) - teacher) ** 2).mean())


class OneMap(nn.Module):
    """A network whose only feature map is its image."""

    def __init__(self, channels: int = 1) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, channels, 1, 1))

    def forward(self, image: Tensor) -> tuple[Tensor, dict[str, Any]]:
        maps = image * self.weight
        return maps.mean((2, 3)).repeat(1, 2), {"feats": [maps]}


def test_fitnet_by_hand() -> None:
    options: dict[str, Any] = {"input_size": (1, 2), "ce_weight": 1.0, "feature_weight": 3.0}
    distiller = FitNet(OneMap(), OneMap(), hint_layer=0, **options).train()
    nn.init.ones_(distiller.regressor[0].weight)
    _, losses = distiller(image=torch.tensor([[[[2.0, -2.0]]]]), target=torch.tensor([0]))
    # Normalised to (1, -1), ReLU gives (1, 0); the teacher has (2, -2): 3 * (1 + 4) / 2. Equal logits: ln 2.
    assert losses["loss_kd"].item() == pytest.approx(7.5, abs=1e-4)
    assert losses["loss_ce"].item() == pytest.approx(math.log(2), abs=1e-6)


@pytest.mark.parametrize(
    ("layer", "message"),
    [(3, r"`FITNET.HINT_LAYER` to be in \[0, 2\], but got 3"), (-1, "at least 0, but got -1")],
)
def test_fitnet_names_a_layer_that_is_not_there(layer: int, message: str) -> None:
    student, teacher = distiller_cases.networks()
    with pytest.raises(ConfigError, match=message):
        FitNet(student, teacher, hint_layer=layer, input_size=(8, 8), ce_weight=1.0, feature_weight=1.0)


@pytest.mark.parametrize("training", [True, False])
def test_fitnet_probe_moves_no_statistics(training: bool) -> None:
    networks = distiller_cases.networks()
    before = [{name: value.clone() for name, value in network.state_dict().items()} for network in networks]
    for network in networks:
        network.train(training)
    FitNet(*networks, hint_layer=1, input_size=(8, 8), ce_weight=1.0, feature_weight=1.0)
    for network, state in zip(networks, before, strict=True):
        assert network.training is training
        for name, value in network.state_dict().items():
            assert torch.equal(value, state[name]), name


def test_fitnet_trains_its_regressor() -> None:
    distiller = distiller_cases.build("FITNET")
    learnable = {id(parameter) for parameter in distiller.get_learnable_parameters()}  # type: ignore[operator]
    assert {id(parameter) for parameter in distiller.regressor.parameters()} < learnable  # type: ignore[union-attr]
    assert distiller.get_extra_parameters() == 8 * 24 + 24 + 24  # type: ignore[operator]


@pytest.mark.parametrize("name", ["KD", "AT", "FITNET"])
def test_teacher_is_frozen(name: str) -> None:
    distiller = distiller_cases.build(name)
    teacher: Any = distiller.teacher
    before = {key: value.clone() for key, value in teacher.state_dict().items()}
    distiller.train()
    assert distiller.training and distiller.student.training  # type: ignore[union-attr]
    assert not any(module.training for module in teacher.modules())
    _, losses = distiller(**distiller_cases.batch(name))
    sum(losses.values()).backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    learnable: Any = distiller.get_learnable_parameters()  # type: ignore[operator]
    assert all(parameter.grad is not None for parameter in learnable)
    assert not {id(parameter) for parameter in learnable} & {id(parameter) for parameter in teacher.parameters()}
    for key, value in teacher.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_evaluation_returns_the_students_logits_and_asks_no_teacher() -> None:
    distiller = distiller_cases.build("KD").eval()
    distiller.teacher.register_forward_hook(lambda *_: pytest.fail("the teacher was called"))  # type: ignore[union-attr]
    image = distiller_cases.batch("KD")["image"]
    assert torch.equal(distiller(image=image), distiller.student(image)[0])  # type: ignore[operator]
