"""SFTN's teacher stage on the host's networks: what its losses reach, what it trains, and what is left of it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.distiller_cases import NUM_CLASSES
from tests.hosts.repdistiller.lists import batches
from tests.hosts.repdistiller.stand_in import stand_in
from tllm_plugin.core.errors import NonFiniteLossError
from tllm_plugin.hosts.repdistiller import TeacherStage
from tllm_plugin.hosts.repdistiller.contracts import as_featured
from tllm_plugin.hosts.repdistiller.method_flags import teacher_options


def sftn_options(**changes: Any) -> SimpleNamespace:
    defaults = {"sftn_T": 1.0, "sftn_ce_weight": 1.0, "sftn_kl_weight": 3.0, "sftn_branch_ce_weight": 1.0}
    assert set(defaults) == {option.flag for option in teacher_options().values()}
    return SimpleNamespace(**{"sftn": True, "model_s": "resnet8", "print_freq": 100, **defaults, **changes})


def test_the_branches_losses_reach_the_teachers_stages(host: SimpleNamespace) -> None:
    """The teacher's own cross-entropy weighs nothing, so gradients of its stages can only come through the branches."""
    torch.manual_seed(0)
    teacher = host.model_dict["resnet14"](num_classes=NUM_CLASSES)
    stage = TeacherStage(sftn_options(sftn_ce_weight=0.0, sftn_kl_weight=0.0), teacher)
    image, target, _ = batches("kd")[0]
    assert stage.method is not None and len(stage.method.branches) == 2
    _, losses = stage.method.train()(image=image, target=target)
    sum(losses.values()).backward()
    reached = {name for name, p in teacher.named_parameters() if p.grad is not None and bool(p.grad.any())}
    # Nothing hangs off the last stage: the branch behind the second has a last stage of its own.
    unreached = ("layer3", "fc")
    assert reached == {name for name, _ in teacher.named_parameters() if not name.startswith(unreached)}
    teacher.zero_grad()
    stage.method.kl_weight, stage.method.branch_ce_weight = 3.0, 0.0
    _, losses = stage.method(image=image, target=target)
    sum(losses.values()).backward()
    assert all(bool(p.grad.any()) for p in teacher.parameters()), "the divergence reaches the teacher's logits, too"


def test_the_stage_trains_branches_and_teacher_and_leaves_the_teacher(host: SimpleNamespace) -> None:
    torch.manual_seed(0)
    teacher = host.model_dict["resnet14"](num_classes=NUM_CLASSES)
    names = set(teacher.state_dict())
    options = sftn_options()
    stage = TeacherStage(options, teacher)
    before = [p.detach().clone() for p in stage.parameters()]
    own = {id(p) for p in teacher.parameters()}
    assert own < {id(p) for p in stage.parameters()} and len({id(p) for p in stage.parameters()}) == len(before)
    optimizer = torch.optim.SGD(stage.parameters(), lr=0.05)
    data = [batch[:2] for batch in batches("kd")]
    accuracy, loss = stage.train(None, 1, data, teacher, nn.CrossEntropyLoss(), optimizer, options)  # type: ignore[arg-type]
    assert 0 <= accuracy <= 100 and loss > 0
    assert all(not torch.equal(p, old) for p, old in zip(stage.parameters(), before, strict=True))
    assert set(teacher.state_dict()) == names and isinstance(teacher(data[0][0]), Tensor)


def test_a_loss_that_is_not_finite_stops_the_stage() -> None:
    """The host's loader for teachers does not say which rows a batch holds."""
    torch.manual_seed(0)
    teacher = stand_in().model_dict["resnet14"](num_classes=NUM_CLASSES)
    options = sftn_options(sftn_ce_weight=1e39)
    stage = TeacherStage(options, teacher)
    rest = (nn.CrossEntropyLoss(), torch.optim.SGD(stage.parameters(), lr=0.05), options)
    with pytest.raises(NonFiniteLossError, match=r"loss_ce = inf.* in epoch 2, step 1 of this process; try a lower"):
        stage.train(None, 2, [batch[:2] for batch in batches("kd")], teacher, *rest)  # type: ignore[arg-type]


def test_without_sftn_the_hosts_function_trains_the_network_alone() -> None:
    teacher = stand_in().model_dict["resnet14"](num_classes=3)
    stage = TeacherStage(sftn_options(sftn=False, model_s=None), teacher)
    assert list(map(id, stage.parameters())) == list(map(id, teacher.parameters()))
    assert stage.train(lambda *given: given, 1, "loader", teacher, 2, 3, 4) == (1, "loader", teacher, 2, 3, 4)


@pytest.mark.parametrize(
    ("teacher", "student"),
    [("resnet32x4", "resnet8x4"), ("wrn_40_2", "wrn_16_2"), ("ResNet50", "MobileNetV2"), ("resnet32x4", "ShuffleV1")],
)
def test_branches_for_the_pairs_of_the_paper(real: SimpleNamespace, teacher: str, student: str) -> None:
    network = real.model_dict[teacher](num_classes=3)
    stage = TeacherStage(sftn_options(model_s=student), network)
    method: Any = stage.method
    with torch.no_grad():
        method.eval()
        _, features = as_featured(network)(torch.randn(2, 3, 32, 32))
        for branch in method.branches:
            assert branch(features["feats"]).shape == (2, 3)
