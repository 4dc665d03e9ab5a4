"""The fast teacher against the plain one: answers, features, changed weights, copies, and failures."""

from __future__ import annotations

import copy
import logging
from typing import Any

import pytest
import torch
from torch import nn

from tests.speed.small import CLASSES, ListedNet, Net, batch
from tllm_plugin.core.outputs import tensors_in
from tllm_plugin.speed import teacher as fast_teacher
from tllm_plugin.speed.networks import inference_copy
from tllm_plugin.speed.replacement import is_replaceable
from tllm_plugin.speed.teacher import FastTeacher, agreement, weights_digest

FEATURES = frozenset({"1.feats.0", "1.feats.1", "1.pooled_feat"})


@torch.no_grad()
def answers(network: nn.Module, rows: int = 8, **how: Any) -> Any:
    return network(batch(rows)["image"], **how)


@pytest.mark.parametrize("kind", ["folded", "bfloat16"])
def test_logits_and_features_are_the_teachers(kind: str) -> None:
    teacher = Net().eval()
    expected = answers(teacher)
    FastTeacher(teacher, kind, FEATURES).put_in()
    found = answers(teacher)
    tolerance = 1e-5 if kind == "folded" else 0.03
    for one, other in zip(tensors_in(expected), tensors_in(found), strict=True):
        assert other.dtype == torch.float32 and other.is_contiguous() and other.shape == one.shape
        torch.testing.assert_close(other, one, rtol=tolerance, atol=tolerance * float(one.abs().max()))
    assert agreement(expected, found, FEATURES).is_close


def test_batch_norm_is_folded() -> None:
    teacher = Net().eval()
    folded = inference_copy(teacher, (batch()["image"],), {})
    assert not any(isinstance(part, nn.BatchNorm2d) for part in folded.modules())
    assert any(isinstance(part, nn.BatchNorm2d) for part in teacher.modules())


def test_batch_norm_that_is_used_otherwise_is_not_folded() -> None:
    class Twice(Net):
        def forward(self, x: torch.Tensor) -> Any:
            before = self.conv1(x)
            return self.fc((self.bn1(before) + before).mean((2, 3))), {}

    teacher = Twice().eval()
    network = inference_copy(teacher, (batch()["image"],), {})
    with torch.no_grad():
        torch.testing.assert_close(network(batch()["image"])[0], answers(teacher)[0])


def test_features_that_nobody_reads_are_computed_when_they_are_read() -> None:
    teacher = Net().eval()
    expected = answers(teacher)
    FastTeacher(teacher, "bfloat16").put_in()
    logits, features = answers(teacher)
    assert features["pooled_feat"].equal(expected[1]["pooled_feat"]), "late features are the plain teacher's"
    assert list(features) == ["feats", "pooled_feat"] and len(features) == 2


def test_features_in_a_list() -> None:
    teacher = ListedNet().eval()
    expected = answers(teacher, is_feat=True)
    FastTeacher(teacher, "bfloat16", frozenset({"0.0", "0.1", "0.2"})).put_in()
    found = answers(teacher, is_feat=True)
    assert isinstance(found[0], list) and len(found[0]) == 3
    assert all(tensor.dtype == torch.float32 for tensor in (*found[0], *found[0][1:], found[0][-1]))
    for one, other in zip(tensors_in(expected), tensors_in(found), strict=True):
        torch.testing.assert_close(other, one, rtol=0.05, atol=0.05 * float(one.abs().max()))


def test_changed_weights_are_noticed(caplog: pytest.LogCaptureFixture) -> None:
    teacher = Net().eval()
    FastTeacher(teacher, "folded").put_in()
    answers(teacher)
    teacher.load_state_dict(Net().state_dict())  # The same weights.
    answers(teacher)
    assert not caplog.records
    with torch.no_grad():
        teacher.fc.bias.add_(1)
    expected = Net().eval()
    expected.load_state_dict(teacher.state_dict())
    assert answers(teacher)[0].equal(answers(expected)[0])
    assert [record.message for record in caplog.records if record.name.startswith("tllm_plugin")] == [
        "the teacher goes on at its usual speed: its weights have changed since it was prepared"
    ]


def test_in_training_mode_and_with_gradients_the_teacher_is_called_as_it_is() -> None:
    teacher, plain = Net().eval(), Net().eval()
    FastTeacher(teacher, "bfloat16").put_in()
    image = batch()["image"].requires_grad_()
    assert teacher(image)[0].equal(plain(image)[0]) and teacher(image)[0].requires_grad
    teacher.train()
    plain.train()
    assert answers(teacher)[0].equal(answers(plain)[0])
    assert teacher.bn1.running_mean.equal(plain.bn1.running_mean)


def test_a_copy_is_called_as_it_is_and_checkpoints_have_the_same_names() -> None:
    teacher = Net().eval()
    names = list(teacher.state_dict())
    FastTeacher(teacher, "bfloat16").put_in()
    answers(teacher)
    copied = copy.deepcopy(teacher)
    with torch.no_grad():
        copied.fc.bias.add_(1)
    torch.testing.assert_close(answers(copied)[0], answers(Net().eval())[0] + 1)
    assert list(teacher.state_dict()) == names and list(copied.state_dict()) == names


def test_hooks_of_the_teacher_act() -> None:
    teacher = Net().eval()
    teacher.register_forward_hook(lambda module, args, output: (output[0] * 0, output[1]))
    FastTeacher(teacher, "bfloat16").put_in()
    assert not answers(teacher)[0].any()


def test_a_network_that_is_looked_into_is_left_alone() -> None:
    teacher = Net()
    assert is_replaceable(teacher)
    teacher.conv1.register_forward_hook(lambda *given: None)
    assert not is_replaceable(teacher)
    compiled = Net()
    compiled.compile()
    assert not is_replaceable(compiled) and not is_replaceable(torch.compile(Net()))  # type: ignore[arg-type]


def test_a_compiler_that_fails_is_one_line(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    calls = [0]

    def compiled(function: Any, *, frozen: bool) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            calls[0] += 1
            if calls[0] == 3:
                raise RuntimeError("the compiler\nhas failed")
            return function(*args, **kwargs)

        return call

    monkeypatch.setattr(fast_teacher, "compiled", compiled)
    teacher = Net().eval()
    FastTeacher(teacher, "compiled").put_in()
    found = [answers(teacher)[0] for _ in range(4)]
    assert [record.message for record in caplog.records if record.name.startswith("tllm_plugin")] == [
        "the teacher goes on at its usual speed: RuntimeError: the compiler has failed"
    ]
    expected = answers(Net().eval())[0]
    assert found[2].equal(expected) and found[3].equal(expected) and calls[0] == 3


def test_no_compiler_is_one_line(caplog: pytest.LogCaptureFixture) -> None:
    from torch._inductor import config, cpp_builder

    torch._dynamo.reset()
    for cached in ("get_cpp_compiler", "_get_cpp_compiler"):
        clear = getattr(getattr(cpp_builder, cached, None), "cache_clear", None)
        if clear is not None:
            clear()
    caplog.set_level(logging.WARNING, logger="tllm_plugin")
    teacher = Net().eval()
    FastTeacher(teacher, "compiled").put_in()
    # PyTorch's own patch: monkeypatch would delete the alias when it restores it.
    with config.patch({"cpp.cxx": ("no-such-compiler",), "force_disable_caches": True}):
        assert answers(teacher)[0].equal(answers(Net().eval())[0])
    said = [record.message for record in caplog.records if record.name.startswith("tllm_plugin")]
    assert len(said) == 1 and "\n" not in said[0] and "goes on at its usual speed" in said[0]
    torch._dynamo.reset()


def test_changing_rows_are_compiled_once() -> None:
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    teacher, plain = Net().eval(), Net().eval()
    FastTeacher(teacher, "compiled").put_in()
    for rows in (8, 5, 7, 3, 6, 8, 2):
        torch.testing.assert_close(answers(teacher, rows)[0], answers(plain, rows)[0], rtol=1e-4, atol=1e-4)
    assert counters["stats"]["unique_graphs"] == 1
    torch._dynamo.reset()


def test_agreement_sees_another_network() -> None:
    logits = torch.eye(CLASSES) * 4
    assert agreement(logits, logits).is_close
    assert agreement(logits, logits).probability_difference == 0
    turned = agreement(logits, logits.roll(1, 0))
    assert turned.same_prediction == 0 and not turned.is_close
    assert not agreement(logits, logits * float("nan")).is_close


def test_digest_is_of_the_weights() -> None:
    assert weights_digest(Net()) == weights_digest(Net()) != weights_digest(Net(seed=1))
