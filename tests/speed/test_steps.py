"""What is chosen at a wrapper's first training call, on which grounds, and that nothing else of the run changes."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.speed.small import CLASSES, KD, Distances, FarNet, Hint, Net, batch
from tllm_plugin import TLLMWrapper
from tllm_plugin.core.errors import FileFormatError
from tllm_plugin.runs.speed_file import SpeedRecord
from tllm_plugin.speed import choice
from tllm_plugin.speed.machine import describe, remember, remembered
from tllm_plugin.speed.steps import FirstStep
from tllm_plugin.speed.student import FastStudent
from tllm_plugin.speed.trial import Trial

MANY = 10**9
FEATURES = ("1.feats.1",)


def record(**given: Any) -> SpeedRecord:
    fields: dict[str, Any] = {
        "teacher": "bfloat16",
        "student": "bfloat16",
        "teacher_features": (),
        "remembers": False,
        "plain_seconds": 1.0,
        "seconds": 0.5,
        "cost_seconds": 1.0,
        "measured_on": "here",
    }
    return SpeedRecord(**{**fields, **given})


def distiller(kind: type[KD] = KD) -> KD:
    return kind(Net(seed=1), Net(seed=2)).train()


def only(monkeypatch: pytest.MonkeyPatch, *, teachers: tuple[str, ...] = (), students: tuple[str, ...] = ()) -> None:
    monkeypatch.setattr(choice, "HALF", teachers)
    monkeypatch.setattr(choice, "SINGLE", ())
    monkeypatch.setattr(choice, "STUDENTS", students)
    monkeypatch.setattr(choice, "_MARGIN", 0.0)  # However fast it is.


def test_steps_of_a_trial_leave_no_trace() -> None:
    made = distiller()
    made.counted = 0  # type: ignore[assignment]
    made.register_forward_hook(lambda module, args, output: setattr(module, "counted", module.counted + 1))
    before = {name: value.clone() for name, value in made.state_dict().items()}
    gradient = torch.ones_like(made.student.fc.bias)  # type: ignore[union-attr]
    made.student.fc.bias.grad = gradient  # type: ignore[union-attr]
    random = torch.get_rng_state()
    steps = [Trial(made, batch()).step() for _ in range(2)]
    assert steps[0].loss == steps[1].loss and steps[0].gradient.equal(steps[1].gradient)
    assert all(value.equal(before[name]) for name, value in made.state_dict().items())
    assert made.student.fc.bias.grad is gradient and made.counted == 0  # type: ignore[union-attr]
    assert torch.get_rng_state().equal(random)


def test_difference_of_steps_is_that_of_gradients() -> None:
    made = distiller()
    one = Trial(made, batch()).step()
    assert one.difference(one) < 1e-6
    assert one.difference(Trial(made, batch(seed=1)).step()) > 0.05


@pytest.mark.parametrize("kind, features", [(KD, ()), (Hint, FEATURES)])
def test_features_that_are_read_are_recorded(
    kind: type[KD], features: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    only(monkeypatch, teachers=("bfloat16",), students=("bfloat16",))
    found = choice.choose(Trial(distiller(kind), batch()), MANY, "here")
    assert found.teacher_features == features
    assert (found.teacher, found.student) == ("bfloat16", "bfloat16")


def test_a_student_that_loses_its_numbers_is_left_out(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    only(monkeypatch, students=("bfloat16",))
    found = choice.choose(Trial(Distances(FarNet(), Net()).train(), batch()), MANY, "here")
    assert found.student == "plain"
    assert "bfloat16 student is left out: its step differs" in caplog.text


def test_a_teacher_that_loses_its_numbers_is_left_out(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    only(monkeypatch, teachers=("bfloat16",))
    made = distiller()
    with torch.no_grad():
        made.teacher.fc.bias.add_(300)  # type: ignore[union-attr]
    assert choice.choose(Trial(made, batch()), MANY, "here").teacher == "plain"
    assert "bfloat16 teacher is left out" in caplog.text


def test_what_does_not_work_is_left_out_in_one_line(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_memory(*args: Any, **kwargs: Any) -> Any:
        raise torch.OutOfMemoryError("there is\nno memory")

    caplog.set_level(logging.INFO)
    only(monkeypatch, teachers=("bfloat16",), students=("bfloat16",))
    # A device without bfloat16 and one without memory fail in this way.
    monkeypatch.setattr("tllm_plugin.speed.teacher.to_bfloat16", no_memory)
    monkeypatch.setattr(torch, "autocast", no_memory)
    found = choice.choose(Trial(distiller(), batch()), MANY, "here")
    assert (found.teacher, found.student) == ("plain", "plain")
    lines = [entry.message for entry in caplog.records if entry.name.startswith("tllm_plugin")]
    assert len(lines) == 2 and all("OutOfMemoryError: there is no memory" in line for line in lines)


def test_a_short_run_measures_nothing(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    only(monkeypatch, teachers=("bfloat16",), students=("bfloat16",))
    found = choice.choose(Trial(distiller(), batch()), 10, "here")
    assert (found.teacher, found.student) == ("plain", "plain")
    assert "too short to measure" in caplog.text


def train(made: KD, steps: int, first: FirstStep | None = None) -> tuple[TLLMWrapper, torch.optim.SGD]:
    wrapper = TLLMWrapper(made, CLASSES).train()
    optimizer = torch.optim.SGD(wrapper.get_learnable_parameters(), lr=0.05, momentum=0.9)
    for step in range(steps):
        _, losses = wrapper(**batch(seed=step))
        optimizer.zero_grad()
        sum(losses.values()).backward()  # type: ignore[union-attr]
        optimizer.step()
    return wrapper, optimizer


def test_the_choice_is_made_in_the_first_step_and_written(monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, teachers=("bfloat16",), students=("bfloat16",))
    wrapper = TLLMWrapper(distiller(), CLASSES).train()
    written: list[SpeedRecord] = []
    FirstStep(wrapper, MANY, write=written.append).put_in()
    wrapper.eval()
    wrapper(image=batch()["image"])
    assert not written
    wrapper.train()
    logits, losses = wrapper(**batch())
    assert [item.student for item in written] == ["bfloat16"]
    assert "forward" not in vars(wrapper) and "forward" in vars(wrapper.student) and "forward" in vars(wrapper.teacher)
    plain_logits, plain_losses = TLLMWrapper(distiller(), CLASSES).train()(**batch())
    torch.testing.assert_close(logits, plain_logits, rtol=0.05, atol=0.1)
    assert logits.dtype == torch.float32
    assert {name: loss.shape for name, loss in losses.items()} == {n: loss.shape for n, loss in plain_losses.items()}


def test_an_evaluated_student_is_called_as_it_is() -> None:
    student, plain = Net().eval(), Net().eval()
    FastStudent(student, "bfloat16").put_in()
    torch.testing.assert_close(student(batch()["image"])[0], plain(batch()["image"])[0], rtol=1e-5, atol=1e-5)


def test_mixed_batches_train_like_plain_ones() -> None:
    def gradients(fast: bool) -> torch.Tensor:
        made = distiller(Hint)
        wrapper = TLLMWrapper(made, CLASSES).train()
        wrapper(**batch())
        wrapper.set_undistillable([index % 2 == 0 for index in range(CLASSES)])
        if fast:
            from tllm_plugin.speed.steps import put_in

            put_in(made, record(teacher_features=FEATURES))
        _, losses = wrapper(**batch(16, seed=3))
        sum(losses.values()).backward()
        return torch.cat([parameter.grad.flatten() for parameter in made.student.parameters()])  # type: ignore[union-attr]

    one, other = gradients(False), gradients(True)
    assert float(torch.nn.functional.cosine_similarity(one, other, dim=0)) > 0.999


def test_the_optimizers_state_follows_the_memory_format() -> None:
    wrapper, optimizer = train(distiller(), 2)
    before = {id(key): state["momentum_buffer"].clone() for key, state in optimizer.state.items()}
    FirstStep(wrapper, MANY, optimizer=optimizer, recorded=record()).put_in()
    wrapper(**batch())
    weight = wrapper.student.conv2.weight
    assert weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()
    for key, state in optimizer.state.items():
        assert state["momentum_buffer"].stride() == key.stride()
        assert state["momentum_buffer"].equal(before[id(key)])


def test_a_recorded_choice_is_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("it was measured again")

    monkeypatch.setattr("tllm_plugin.speed.steps.choose", never)
    runs = []
    for _ in range(2):
        wrapper = TLLMWrapper(distiller(), CLASSES).train()
        FirstStep(wrapper, MANY, recorded=record()).put_in()
        runs.append(wrapper(**batch())[0])
    assert runs[0].equal(runs[1])


def test_a_choice_is_remembered_per_machine_and_damage_is_told(cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert remembered("here") is None
    remember(record())
    assert remembered("here") == record() and remembered("elsewhere") is None
    path = next((cache / "speed").iterdir())
    path.write_bytes(path.read_bytes()[:-20])
    assert remembered("here") is None
    told = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(told) == 1 and "\n" not in told[0].getMessage()
    with pytest.raises(FileFormatError):
        SpeedRecord.read(path)


def test_a_remembered_choice_is_not_used_where_other_features_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    made = distiller(Hint)
    remember(record(measured_on=describe(made, batch())))
    chosen = record(teacher_features=FEATURES)
    monkeypatch.setattr("tllm_plugin.speed.steps.choose", lambda *given: chosen)
    written: list[SpeedRecord] = []
    wrapper = TLLMWrapper(made, CLASSES).train()
    FirstStep(wrapper, MANY, write=written.append).put_in()
    wrapper(**batch())
    assert written == [chosen]


def test_a_choice_holds_for_networks_batch_and_threads() -> None:
    known = describe(distiller(), batch())
    assert known == describe(distiller(), batch(seed=1))
    others = [
        describe(distiller(), batch(9)),
        describe(distiller(Hint), batch()),
        describe(KD(Net(width=8), Net()), batch()),
    ]
    assert known not in others and f"{torch.get_num_threads()} threads" in known


def test_the_student_is_compiled_once_for_all_sizes_of_a_batch() -> None:
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    student = Net().train()
    FastStudent(student, "compiled").put_in()
    for rows in (8, 5, 8, 3):
        student(batch(rows)["image"])[0].sum().backward()
    assert counters["stats"]["unique_graphs"] == 1
    assert isinstance(student, nn.Module)
    torch._dynamo.reset()
