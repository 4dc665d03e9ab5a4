"""SFTN against a reference in plain loops, by hand, and that its branches train the teacher."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests import distiller_cases
from tests.methods.references import OneMap, cross_entropy, divergence
from tllm_plugin.core.errors import ConfigError
from tllm_plugin.hosts.method_options import make_branches
from tllm_plugin.methods import SFTN, Branch
from tllm_plugin.models import create_model


def make(teacher: str, student: str, *, num_classes: int = 4) -> SFTN:
    torch.manual_seed(0)
    networks = [create_model(name, num_classes) for name in (teacher, student)]
    return SFTN(networks[0], make_branches(networks[1], networks[0], student)).train()


def batch(size: int = 32, rows: int = 4) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(1)
    return {"image": torch.randn(rows, 3, size, size, generator=generator), "target": torch.arange(rows) % 4}


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("rows", [4, 1])
def test_losses_of_a_batch(temperature: float, rows: int) -> None:
    stage = make("resnet8", "resnet8").double()
    stage.temperature, stage.ce_weight, stage.kl_weight, stage.branch_ce_weight = temperature, 0.5, 3.0, 2.0
    keywords = batch(rows=rows)
    keywords["image"] = keywords["image"].double()
    logits, losses = stage(**keywords)
    with torch.no_grad():
        teacher, features = stage.student(keywords["image"])
        branches = []
        for branch in stage.branches:
            maps = branch.transform(features["feats"][branch.stage])  # type: ignore[index,operator]
            for part in branch.tail.parts:  # type: ignore[union-attr]
                maps = part(maps)[0]
            branches.append(branch.tail.head(maps.mean((2, 3))).numpy())  # type: ignore[operator,union-attr]
    target = keywords["target"].numpy()
    assert len(branches) == 2
    assert torch.equal(logits, teacher)
    kl = sum(divergence(branch, teacher.numpy(), temperature) for branch in branches) / 2
    ce = sum(cross_entropy(branch, target) for branch in branches) / 2
    assert losses["loss_kd"].item() == pytest.approx(3.0 * kl, rel=1e-9)
    assert losses["loss_ce"].item() == pytest.approx(0.5 * cross_entropy(teacher.numpy(), target) + 2 * ce, rel=1e-9)


def test_by_hand() -> None:
    class Tail(nn.Module):
        def forward(self, maps: Tensor) -> Tensor:
            return math.log(3) * maps.mean((2, 3)) * torch.tensor([1.0, 0.0])

    shapes = {"teacher_channels": 1, "student_channels": 1, "teacher_size": 1, "student_size": 1}
    stage = SFTN(OneMap(), [Branch(0, Tail(), **shapes)], branch_ce_weight=2.0).train()
    nn.init.zeros_(stage.branches[0].transform[1].weight)  # type: ignore[index,union-attr]
    nn.init.ones_(stage.branches[0].transform[2].bias)  # type: ignore[index,union-attr]
    _, losses = stage(image=torch.tensor([[[[5.0]]], [[[7.0]]]]), target=torch.tensor([0, 1]))
    # The branch gives (3/4, 1/4) for both rows, the teacher (1/2, 1/2): KL = 1/2 ln(2/3) + 1/2 ln 2 = 0.143841.
    assert losses["loss_kd"].item() == pytest.approx(3 * 0.143841, abs=1e-5)
    expected = math.log(2) + 2 * (math.log(4 / 3) + math.log(4)) / 2
    assert losses["loss_ce"].item() == pytest.approx(expected, abs=1e-5)


def gradients(stage: SFTN, keywords: dict[str, Any], only: str = "") -> dict[str, Tensor]:
    """Return the gradients of the teacher's parameters."""
    stage.zero_grad(set_to_none=True)
    _, losses = stage(**keywords)
    (losses[only] if only else sum(losses.values())).backward()  # type: ignore[union-attr]
    return {name: p.grad.clone() for name, p in stage.student.named_parameters() if p.grad is not None}


def test_branches_change_the_gradients_of_the_teachers_stages() -> None:
    """A teacher whose branches are detached is a plain teacher; this is what must not happen."""
    keywords = batch()
    stage, plain = make("resnet8", "resnet8"), make("resnet8", "resnet8")
    plain.kl_weight = plain.branch_ce_weight = 0.0
    with_branches, without = gradients(stage, keywords), gradients(plain, keywords)
    assert with_branches.keys() == without.keys()
    # feats[1] and feats[2] carry a branch each; the last stage has none, and the branches' CE does not reach it.
    for name in ("conv1.weight", "layer1.0.conv1.weight", "layer2.0.conv1.weight"):
        change = (with_branches[name] - without[name]).norm() / without[name].norm()
        assert change > 0.05, name
    stage.kl_weight = stage.ce_weight = 0.0
    branch_ce = gradients(stage, keywords, "loss_ce")
    assert bool(branch_ce["layer1.0.conv1.weight"].any()) and bool(branch_ce["layer2.0.conv1.weight"].any())
    assert not branch_ce["layer3.0.conv1.weight"].any() and not branch_ce["fc.weight"].any()
    # The divergence pulls the teacher's own prediction as well: it is not detached either.
    stage.kl_weight = 3.0
    assert bool(gradients(stage, keywords, "loss_kd")["fc.weight"].any())


@pytest.mark.parametrize(
    ("teacher", "student", "branches"),
    [
        ("resnet32x4", "resnet8x4", 2),
        ("resnet56", "resnet20", 2),
        ("wrn_40_2", "wrn_16_2", 2),
        ("wrn_28_4", "wrn_16_2", 2),
        ("ResNet50", "MobileNetV2", 3),
        ("ResNet50", "ShuffleV1", 2),
        ("ResNet50", "vgg8", 3),
        ("resnet32x4", "ShuffleV1", 2),
        ("digits_teacher", "digits_student", 1),
    ],
)
def test_every_pair_of_the_paper_has_branches(teacher: str, student: str, branches: int) -> None:
    stage = make(teacher, student)
    assert len(stage.branches) == branches
    with torch.no_grad():
        _, features = stage.student.eval()(batch(rows=2)["image"])
        _, wanted = create_model(student, 4).eval()(batch(rows=2)["image"])
        for branch in stage.branches.eval():
            maps = branch.transform(features["feats"][branch.stage])  # type: ignore[index,operator]
            assert maps.shape == wanted["feats"][branch.stage].shape  # type: ignore[index]
            assert branch(features["feats"]).shape == (2, 4)


def test_what_is_saved_is_an_ordinary_network() -> None:
    stage = make("resnet8", "ShuffleV1")
    plain = create_model("resnet8", 4)
    plain.load_state_dict(stage.student.state_dict())
    image = batch()["image"]
    with torch.no_grad():
        assert torch.equal(stage.eval()(image=image), plain.eval()(image)[0])
    extra = stage.get_extra_parameters()
    assert extra == sum(p.numel() for p in stage.branches.parameters()) > 0
    assert len({id(p) for p in stage.get_learnable_parameters()}) == len(list(stage.parameters()))


def test_branches_have_weights_of_their_own() -> None:
    first, second = make("resnet8", "resnet8").branches
    assert not torch.equal(first.tail.head.weight, second.tail.head.weight)  # type: ignore[union-attr,arg-type]


def test_sizes_that_do_not_go_together() -> None:
    with pytest.raises(ConfigError, match="divide each other for SFTN, but got 6 and 4 pixels in stage -2"):
        Branch(-2, nn.Identity(), teacher_channels=1, student_channels=1, teacher_size=6, student_size=4)
    with pytest.raises(ConfigError, match="`branches` to be at least one"):
        SFTN(create_model("resnet8", 4), [])


def test_evaluation_runs_no_branch() -> None:
    stage = distiller_cases.build("SFTN").eval()
    stage.branches[0].register_forward_hook(lambda *_: pytest.fail("a branch was called"))  # type: ignore[index,union-attr]
    stage(image=distiller_cases.batch("SFTN")["image"])
