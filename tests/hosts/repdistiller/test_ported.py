"""SRRL and CID on the host's networks: against plain loops, in whole runs, and what their checkpoints hold."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.distiller_cases import NUM_CLASSES, give_context, unreached
from tests.hosts.repdistiller.lists import batches, make_lists
from tests.hosts.repdistiller.short_runs import CLASSES, loaders, prepared, train
from tllm_plugin.hosts.repdistiller import Run, restore
from tllm_plugin.hosts.repdistiller.contracts import as_featured, as_listed
from tllm_plugin.hosts.repdistiller.networks import create_listed
from tllm_plugin.hosts.weights import load_weights
from tllm_plugin.methods import CID, ContextStudent
from tllm_plugin.methods.student_map import read_map
from tllm_plugin.models import create_model, head_name
from tllm_plugin.runs.run_folder import RunFolder

# One of each way in which the host names its heads and orders its maps.
STUDENTS = ("resnet8", "wrn_16_1", "vgg8", "MobileNetV2", "ShuffleV1", "ShuffleV2")


def answers(network: nn.Module, image: Tensor) -> tuple[list[Tensor], Tensor, Tensor]:
    """Return maps, pooled features and logits, asked for in the host's way."""
    (*maps, pooled), logits = network(image, is_feat=True)
    return maps, pooled, logits


def test_both_contracts_are_of_one_network(host: SimpleNamespace) -> None:
    network = host.model_dict["resnet8"](num_classes=4).eval()
    featured = as_featured(network)
    image = torch.randn(2, 3, 32, 32)
    maps, pooled, logits = answers(network, image)
    again, features = featured(image)
    assert torch.equal(logits, again) and torch.equal(pooled, features["pooled_feat"])
    assert all(torch.equal(one, other) for one, other in zip(maps, features["feats"], strict=True))
    assert network.state_dict().keys() == featured.state_dict().keys()
    assert list(map(id, network.parameters())) == list(map(id, featured.parameters()))
    featured.train()
    assert network.training and network.bn1.training
    assert torch.equal(as_listed(featured.eval())(image), logits)


def test_srrl_is_its_equation_on_the_hosts_answers(host: SimpleNamespace) -> None:
    torch.manual_seed(0)
    lists = make_lists(host, "srrl", gamma=0.7, srrl_feat_weight=0.6, srrl_weight=0.5)
    student, connector, teacher = lists.modules
    image, target, index = batches("srrl")[0]
    _, losses = lists.distiller().train()(image=image, target=target, index=index, epoch=1)
    with torch.no_grad():
        maps, _, logits = answers(student.train(), image)
        _, pooled, teacher_logits = answers(teacher.eval(), image)
        connected = connector.train()(maps[-1]).mean((2, 3))
        regressed = connected @ teacher.fc.weight.T + teacher.fc.bias
    rows, dim = pooled.shape
    matching = sum(float(connected[n, d] - pooled[n, d]) ** 2 for n in range(rows) for d in range(dim)) / rows / dim
    regression = sum(
        float(regressed[n, c] - teacher_logits[n, c]) ** 2 for n in range(rows) for c in range(NUM_CLASSES)
    ) / (rows * NUM_CLASSES)
    assert losses["loss_kd"].item() == pytest.approx(0.6 * matching + 0.5 * regression, rel=1e-4)
    assert losses["loss_ce"].item() == pytest.approx(0.7 * F.cross_entropy(logits, target).item(), rel=1e-5)
    assert {id(p) for p in lists.trainable.parameters()} == {
        id(p) for module in (student, connector) for p in module.parameters()
    }


def test_cids_student_predicts_through_the_context(host: SimpleNamespace) -> None:
    torch.manual_seed(0)
    lists = make_lists(host, "cid")
    method: Any = lists.distiller()
    assert isinstance(method, CID) and (method.kd_weight, method.sample_weight, method.class_weight) == (0.9, 2.0, 0.4)
    give_context(method)
    student = lists.modules[0]
    assert lists.trainable[0] is student and isinstance(student, ContextStudent)
    image = batches("cid")[0][0]
    maps, pooled, predicted = answers(student.eval(), image)
    _, own_pooled, own = answers(as_listed(student.network), image)
    expected = torch.stack(
        [
            student.context_head(torch.cat([pooled[n], (own[n] / 4).softmax(0) @ student.context]))
            for n in range(len(image))
        ]
    )
    torch.testing.assert_close(predicted, expected)
    assert torch.equal(pooled, own_pooled) and not torch.allclose(predicted, own)
    assert torch.equal(student(image), predicted), "what the host's validate() is given"


@pytest.mark.parametrize("student", STUDENTS)
@pytest.mark.parametrize("kind", ["srrl", "cid"])
def test_students_of_every_form(real: SimpleNamespace, kind: str, student: str) -> None:
    torch.manual_seed(0)
    lists = make_lists(real, kind, "vgg8" if student == "resnet8" else "wrn_16_1", student)
    method: Any = lists.distiller()
    image, target, _ = batches(kind, rows=4)[0]
    _, losses = method.train()(image=image, target=target, epoch=1)
    sum(losses.values()).backward()
    # In its first epochs CID's context head predicts nothing yet.
    idle = {"student.context_head.weight", "student.context_head.bias"} if kind == "cid" else set()
    without = {
        name
        for name, parameter in method.named_parameters()
        if parameter.requires_grad and (parameter.grad is None or not bool(parameter.grad.isfinite().all()))
    }
    assert without <= idle


@pytest.mark.parametrize("student", [*STUDENTS, "ResNet50", "wrn_16_2", "resnet8x4"])
def test_srrl_reaches_all_of_the_student_but_its_head(real: SimpleNamespace, student: str) -> None:
    torch.manual_seed(0)
    method: Any = make_lists(real, "srrl", "vgg8", student).distiller()
    network = real.model_dict[student](num_classes=NUM_CLASSES)
    head = head_name(network)
    assert unreached(method, "loss_kd") == {f"{head}.weight", f"{head}.bias"}
    # What the host's lists do not hold, the pooled features stand for.
    hidden = {"wrn_16_1": 64, "wrn_16_2": 128, "MobileNetV2": 1280, "ShuffleV2": 1024}
    assert method.student_map == ("pooled_map" if student in hidden else "feats")
    assert method.connector[0].in_channels == hidden.get(student, network.get_submodule(head).in_features)


@pytest.mark.parametrize("student", ["wrn_28_2", "resnet24_1_1_9", "tv_mobilenet_v2"])
def test_srrl_has_the_map_that_the_head_pools_of_tllms_own_networks(student: str) -> None:
    torch.manual_seed(0)
    host = SimpleNamespace(model_dict={name: partial(create_listed, name) for name in ("vgg8", student)})
    host.DistillKL = nn.Identity
    method: Any = make_lists(host, "srrl", "vgg8", student).distiller()
    head = head_name(method.student)
    assert unreached(method, "loss_kd") == {f"{head}.weight", f"{head}.bias"}
    with torch.no_grad():
        _, features = method.student(torch.randn(2, 3, 64, 64))
    assert read_map(features, method.student_map).shape[2:] != (1, 1)


def optimizer_of(folder: Path, **changes: Any) -> tuple[Any, Any, Run]:
    lists, options = prepared(folder, "cid", **changes)
    run, optimizer = Run(options, *loaders("cid")), lists.optimizer()
    run.start(lists.modules, lists.criteria, optimizer)
    return lists.distiller(), optimizer, run


@pytest.mark.parametrize("tllm", [False, True])
def test_the_map_of_cid_has_no_weight_decay_and_momentum_is_nesterovs(tmp_path: Path, tllm: bool) -> None:
    method, optimizer, _ = optimizer_of(tmp_path, tllm=tllm)
    spared = {id(p) for p in method.regressor.parameters()}
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert decay == {id(p): 0.0 if id(p) in spared else 5e-4 for p in method.get_learnable_parameters()}
    assert [group["nesterov"] for group in optimizer.param_groups] == [True, True]


@pytest.mark.parametrize("kind", ["srrl", "cid"])
def test_without_tllm_the_method_trains_and_nothing_of_ours_is_written(tmp_path: Path, kind: str) -> None:
    lists, options = prepared(tmp_path, kind, tllm=False)
    before = {name: value.clone() for name, value in lists.modules.state_dict().items()}
    of_method = "1.weight" if kind == "cid" else "1.0.weight"
    run = train(lists, options)
    after = lists.modules.state_dict()
    assert not torch.equal(before[of_method], after[of_method])
    # The last module is the teacher.
    assert all(torch.equal(value, after[name]) for name, value in before.items() if name.startswith("2."))
    assert len(run.train_loader.dataset) == CLASSES * 12 and list(tmp_path.iterdir()) == []
    if kind == "cid":
        assert after["0.has_context"] and after["0.context_epoch"] == 2 and bool(after["0.context"].any(1).all())


@pytest.mark.parametrize("tllm", [False, True])
def test_the_context_head_is_as_initialised_when_the_first_context_appears(tmp_path: Path, tllm: bool) -> None:
    heads = []
    for epochs in (0, 2, 3):
        lists, options = prepared(tmp_path, "cid", tllm=tllm, epochs=3, cid_warmup_epochs=2)
        run = train(lists, options, stop_after=epochs)
        heads.append(lists.modules[0].context_head)
        held = [parameter for parameter in heads[-1].parameters() if parameter not in run.optimizer.state]
        assert len(held) == (0 if epochs == 3 else 2)
    assert torch.equal(heads[0].weight, heads[1].weight) and not torch.equal(heads[1].weight, heads[2].weight)


def test_a_flagged_class_keeps_its_context_and_the_record_is_of_the_head_that_predicts(tmp_path: Path) -> None:
    lists, options = prepared(tmp_path, "cid", epochs=3)
    train(lists, options)
    student, folder = lists.modules[0], RunFolder.inside(tmp_path)
    # Classes 2 and 3 were flagged from the start: nothing was ever collected for them.
    assert [bool(row.any()) for row in student.context] == [True, True, False, False, True, True]
    _, val_loader = loaders("cid")
    images = torch.stack([image for image, _ in val_loader.dataset])
    targets = torch.tensor(val_loader.dataset.targets)
    with torch.no_grad():
        right = student.eval()(images).argmax(1) == targets
    assert sum(folder.read_metrics().class_correct) == int(right.sum())
    best = torch.load(folder.student_best_holdout, weights_only=True)["model"]
    assert best.keys() == student.state_dict().keys()


def test_plain_networks_refuse_weights_of_cid_and_ours_restore_them(host: SimpleNamespace, tmp_path: Path) -> None:
    torch.manual_seed(0)
    lists = make_lists(host, "cid")
    give_context(lists.distiller())
    student, image = lists.modules[0].eval(), batches("cid")[0][0]
    state = student.state_dict()
    assert {name.removeprefix("network.") for name in state if name.startswith("network.")} == set(
        host.model_dict["resnet8"](num_classes=NUM_CLASSES).state_dict()
    )
    with pytest.raises(RuntimeError, match="context_head"):
        host.model_dict["resnet8"](num_classes=NUM_CLASSES).load_state_dict(state)
    again = restore(host.model_dict["resnet8"](num_classes=NUM_CLASSES), state).eval()
    assert torch.equal(again(image), student(image))
    assert torch.equal(again(image, is_feat=True)[0][-1], student(image, is_feat=True)[0][-1])
    # TLLM's own network takes them as well: that is how reports read a run.
    torch.save({"model": state}, tmp_path / "best.pth")
    ours = load_weights(create_model("resnet8", NUM_CLASSES), tmp_path / "best.pth").eval()
    torch.testing.assert_close(ours(image)[0], student(image))
    plain = host.model_dict["resnet8"](num_classes=NUM_CLASSES)
    assert restore(plain, plain.state_dict()) is plain
