"""With nothing flagged, our epoch is the host's: losses, weights, buffers, momentum and random numbers, bit for bit."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.distiller_cases import NUM_CLASSES
from tests.hosts.digits_runs import assert_equal
from tests.hosts.repdistiller.lists import KINDS, batches, make_lists
from tllm_plugin.core.errors import ConfigError, NonFiniteLossError
from tllm_plugin.core.wrapper import TLLMWrapper
from tllm_plugin.hosts.loss_guard import LossGuard
from tllm_plugin.hosts.repdistiller.distiller import ListedDistiller
from tllm_plugin.hosts.repdistiller.epoch import train_epoch


def initialised(host: SimpleNamespace, kind: str, **pair: str) -> Any:
    """Return lists after the host's own init stage, where the method has one and the host is the real one."""
    torch.manual_seed(0)
    lists = make_lists(host, kind, **pair)
    if kind in ("abound", "factor", "fsp") and host.init is not None:
        student, *between, teacher = lists.modules
        stage: dict[str, Any] = {
            "abound": lambda: (torch.nn.ModuleList([between[0], student.get_feat_modules()]), lists.criteria[2]),
            "factor": lambda: (torch.nn.ModuleList([between[1]]), torch.nn.MSELoss()),
            "fsp": lambda: (torch.nn.ModuleList([student.get_feat_modules()]), lists.criteria[2]),
        }
        trained, criterion = stage[kind]()
        logger = SimpleNamespace(log_value=lambda *values: None)
        host.init(student, teacher, trained, criterion, batches(kind), logger, lists.options)
    return lists


@pytest.mark.parametrize("kind", KINDS)
def test_two_epochs_equal_the_hosts(host: SimpleNamespace, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any, **keywords: Any) -> None:
        raise AssertionError("`.cuda()` was called on a CPU")

    monkeypatch.setattr(torch.Tensor, "cuda", refuse)
    monkeypatch.setattr(torch.nn.Module, "cuda", refuse)
    compare_two_epochs(host, kind, monkeypatch)


def test_features_before_the_activation_are_asked_for_where_the_host_does(
    real: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Only of wide ResNets the buffers show it: asked that way, the host runs three BatchNorms twice.
    compare_two_epochs(real, "abound", monkeypatch, teacher="wrn_16_1", student="wrn_16_1")


def compare_two_epochs(host: SimpleNamespace, kind: str, monkeypatch: pytest.MonkeyPatch, **pair: str) -> None:
    # The host would move to a GPU, where its sums come in any order.
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    results = []
    for ours in (False, True):
        lists = initialised(host, kind, **pair)
        optimizer = lists.optimizer()
        wrapper = TLLMWrapper(lists.distiller(), NUM_CLASSES) if ours else None
        losses = []
        for epoch in (1, 2):
            data = batches(kind, seed=epoch)
            if wrapper is None:
                _, loss = host.train_distill(epoch, data, lists.modules, lists.criteria, optimizer, lists.options)
            else:
                loss = train_epoch(epoch, data, wrapper, optimizer).loss
            losses.append(loss)
        state = {"modules": lists.modules.state_dict(), "criteria": lists.criteria.state_dict()}
        results.append((losses, state, optimizer.state_dict(), torch.get_rng_state()))
    assert all(value == value for value in results[0][0])
    assert_equal(results[0], results[1])


def test_every_method_of_the_host_is_tried(real: SimpleNamespace) -> None:
    script = (real.root / "train_student.py").read_text()
    (choices,) = re.findall(r"'--distill'.*?choices=\[(.*?)\]", script, re.S)
    assert sorted(KINDS) == sorted(re.findall(r"'(\w+)'", choices))


@pytest.mark.parametrize("kind", KINDS)
def test_parts_and_learnable_parameters(host: SimpleNamespace, kind: str) -> None:
    torch.manual_seed(0)
    lists = make_lists(host, kind)
    distiller = lists.distiller()
    assert distiller.student is lists.modules[0] and distiller.teacher is lists.modules[-1]
    learnable = {id(parameter) for parameter in distiller.get_learnable_parameters()}
    assert learnable == {id(parameter) for parameter in lists.trainable.parameters()}
    student = sum(parameter.numel() for parameter in distiller.student.parameters())
    assert distiller.get_extra_parameters() == sum(p.numel() for p in lists.trainable.parameters()) - student
    distiller.train()
    assert [module.training for module in (distiller.student, distiller.teacher)] == [True, False]
    names = ("image", "target", "index", "contrastive_index")
    _, loss = distiller(**dict(zip(names, batches(kind)[0], strict=False)))
    assert tuple(loss.shape) == ((1,) if kind in ("similarity", "crd") else ())
    still = {"abound": [1], "factor": [2]}.get(kind, [])
    modes = [module.training for module in lists.modules[:-1]]
    assert [place for place, training in enumerate(modes) if not training] == still
    image = batches(kind)[0][0]
    logits = distiller.eval()(image=image)
    assert torch.equal(logits, distiller.student(image))


def test_what_does_not_fit_is_refused(host: SimpleNamespace) -> None:
    lists = make_lists(host, "kd")
    foreign = [torch.nn.Parameter(torch.zeros(1))]
    with pytest.raises(ConfigError, match="1 of its 1 are in none"):
        ListedDistiller(lists.modules, lists.criteria, foreign)
    unnamed = ListedDistiller(lists.modules, lists.criteria, lists.trainable.parameters()).train()
    with pytest.raises(ConfigError, match="Expected the host's epoch function to be named before the first batch"):
        unnamed(image=torch.zeros(2, 3, 32, 32), target=torch.zeros(2, dtype=torch.int64))


def test_a_loss_that_is_not_finite_stops_the_epoch(host: SimpleNamespace) -> None:
    torch.manual_seed(0)
    lists = make_lists(host, "kd", alpha=float("inf"))
    wrapper = TLLMWrapper(lists.distiller(), NUM_CLASSES)
    with pytest.raises(NonFiniteLossError, match=r"loss = (inf|nan) in epoch 4, step 1 .*lower --learning_rate"):
        train_epoch(4, batches("kd"), wrapper, lists.optimizer(), guard=LossGuard(1, "--learning_rate"))
