"""CID against a reference in plain loops, its context over epochs, and what predicts."""

from __future__ import annotations

import copy
import io
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests import distiller_cases
from tests.distiller_cases import EPOCH, NUM_CLASSES
from tests.methods.references import Array, cross_entropy, divergence, softmax
from tllm_plugin import ConfigError, TLLMWrapper
from tllm_plugin.methods import CID, ContextStudent
from tllm_plugin.methods.cid import class_loss, sample_loss
from tllm_plugin.models import create_model


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def sample_reference(mapped: Array, teacher: Array) -> float:
    rows = []
    for ours, theirs in zip(mapped, teacher, strict=True):
        rows.append(sum((a - b) ** 2 for a, b in zip(ours, theirs, strict=True)) / sum(b**2 for b in theirs))
    return float(sum(rows) / len(rows))


def class_reference(student: Array, teacher: Array, target: list[int]) -> float:
    def cosine(a: Array, b: Array) -> float:
        return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))

    classes = []
    for label in sorted(set(target)):
        rows = [row for row, other in enumerate(target) if other == label]
        if len(rows) < 2:
            continue
        squares = [(cosine(student[i], student[j]) - cosine(teacher[i], teacher[j])) ** 2 for i in rows for j in rows]
        classes.append(sum(squares) / len(squares))
    return sum(classes) / len(classes) if classes else 0.0


def test_sample_loss() -> None:
    mapped, teacher = randn(5, 7, seed=1), randn(5, 7, seed=2)
    assert sample_loss(mapped, teacher).item() == pytest.approx(sample_reference(mapped.numpy(), teacher.numpy()))


def test_sample_loss_by_hand() -> None:
    # |(1, 1) - (3, 4)|^2 / |(3, 4)|^2 = (4 + 9) / 25 and 0 / 1.
    loss = sample_loss(torch.tensor([[1.0, 1.0], [1.0, 0.0]]), torch.tensor([[3.0, 4.0], [1.0, 0.0]]))
    assert loss.item() == pytest.approx(0.26)


@pytest.mark.parametrize(
    "target", [[0, 1, 0, 2, 1, 0, 3], [4] * 7, [0, 0, 1, 1, 2, 2, 3], [0, 1, 2, 3, 4, 5, 0]], ids=str
)
def test_class_loss(target: list[int]) -> None:
    student, teacher = randn(7, 3, seed=1), randn(7, 5, seed=2)
    expected = class_reference(student.numpy(), teacher.numpy(), target)
    assert expected > 0
    assert class_loss(student, teacher, torch.tensor(target)).item() == pytest.approx(expected, rel=1e-10)


def test_class_loss_by_hand() -> None:
    # Two rows of one class: orthogonal to the student, parallel to the teacher. Two of four cosines differ, by 1.
    student, teacher = torch.tensor([[2.0, 0.0], [0.0, 3.0], [1.0, 1.0]]), torch.tensor([[1.0], [4.0], [-1.0]])
    assert class_loss(student, teacher, torch.tensor([5, 5, 2])).item() == pytest.approx(0.5)


def test_class_loss_without_a_class_of_two_is_a_differentiable_zero() -> None:
    student = randn(3, 4).requires_grad_()
    loss = class_loss(student, randn(3, 4, seed=1), torch.tensor([0, 1, 2]))
    loss.backward()
    assert loss.item() == 0.0 and student.grad is not None and not student.grad.any()


def test_dead_features_give_finite_gradients() -> None:
    student = torch.zeros(4, 3, requires_grad=True)
    target = torch.tensor([0, 0, 1, 1])
    (class_loss(student, torch.zeros(4, 5), target) + sample_loss(student, torch.zeros(4, 3))).backward()
    assert student.grad is not None and bool(torch.isfinite(student.grad).all())


@pytest.mark.parametrize("name", ["CID", "CID_warmup"])
@pytest.mark.parametrize("rows", [12, 6, 1])  # Two rows of every class, one of every class, one row.
def test_losses_of_a_batch(name: str, rows: int) -> None:
    distiller: Any = distiller_cases.build(name).double()
    keywords = distiller_cases.batch(name, rows)
    keywords["image"] = keywords["image"].double()
    context = distiller.student.context.clone().numpy()
    logits, losses = distiller(**keywords)
    with torch.no_grad():
        own, features = (output for output in distiller.student.network(keywords["image"]))
        teacher_logits, teacher = distiller.teacher(keywords["image"])
    pooled, teacher_pooled = features["pooled_feat"].numpy(), teacher["pooled_feat"].numpy()
    weight, bias = (tensor.detach().numpy() for tensor in (distiller.regressor.weight, distiller.regressor.bias))
    mapped = np.stack([weight @ row + bias for row in pooled])
    target = keywords["target"].tolist()
    expected = (
        divergence(own.numpy(), teacher_logits.numpy(), 4.0)
        + 2.0 * sample_reference(mapped, teacher_pooled)
        + class_reference(pooled, teacher_pooled, target)
    )
    assert losses["loss_kd"].item() == pytest.approx(expected, rel=1e-9)
    head = distiller.student.context_head
    new = []
    for row, belief in zip(pooled, own.numpy(), strict=True):
        shares = softmax(belief, 4.0)
        seen = sum(shares[label] * context[label] for label in range(NUM_CLASSES))
        new.append(head.weight.detach().numpy() @ np.concatenate([row, seen]) + head.bias.detach().numpy())
    if name == "CID":
        assert losses["loss_ce"].item() == pytest.approx(cross_entropy(np.stack(new), np.array(target)), rel=1e-9)
        np.testing.assert_allclose(logits.detach().numpy(), np.stack(new), rtol=1e-9)
    else:
        assert losses["loss_ce"].item() == 0.0
        assert torch.equal(logits, own)


def test_loss_weights() -> None:
    keywords = distiller_cases.batch("CID")
    parts = []
    for weights in ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0), (2.0, 3.0, 5.0)):
        distiller: Any = distiller_cases.build("CID")
        distiller.kd_weight, distiller.sample_weight, distiller.class_weight = weights
        parts.append(distiller(**keywords)[1])
    assert parts[1]["loss_ce"] == 0 and parts[3]["loss_ce"].item() == pytest.approx(2 * parts[0]["loss_ce"].item())
    total = sum(factor * part["loss_kd"].item() for factor, part in zip((2, 3, 5), parts, strict=False))
    assert parts[3]["loss_kd"].item() == pytest.approx(total, rel=1e-6)


class Bare(nn.Module):
    """A network whose image is its features and its logits."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(()))

    def forward(self, image: Tensor) -> tuple[Tensor, dict[str, Any]]:
        features = image.flatten(1) * self.gain
        return features, {"feats": [image], "pooled_feat": features}


def bare(warmup_epochs: int = 1) -> Any:
    dims = {"num_classes": 3, "student_dim": 3, "teacher_dim": 3}
    return CID(Bare(), Bare(), **dims, temperature=1.0, warmup_epochs=warmup_epochs).train()


def test_context_is_the_weighted_mean_of_the_epoch_before() -> None:
    distiller = bare(warmup_epochs=2)
    epochs = [[randn(4, 3, 1, 1, seed=10 * epoch + step).float() for step in range(2)] for epoch in range(1, 5)]
    target = torch.tensor([0, 0, 1, 0])
    collected: dict[int, Array] = {}
    for epoch, images in enumerate(epochs, start=1):
        for image in images:
            distiller(image=image, target=target, epoch=epoch)
        student = distiller.student
        # Until the first epoch has passed there is nothing, and of class 2 there never is.
        expected = collected.get(epoch - 1, np.zeros((3, 3)))
        np.testing.assert_allclose(student.context.numpy(), expected, rtol=1e-5, atol=1e-7)
        assert bool(student.has_context) == (epoch > 2)
        sums, weights = np.zeros((3, 3)), np.zeros(3)
        for image in images:
            for row, label in zip(image.flatten(1).numpy(), target.tolist(), strict=True):
                weight = softmax(row)[label]
                sums[label] += weight * row
                weights[label] += weight
        collected[epoch] = sums / np.where(weights > 0, weights, 1.0)[:, None]


def test_context_by_hand() -> None:
    distiller = bare()
    # Softmax of (ln 3, 0, -inf) is (3/4, 1/4, 0); of (0, ln 3, ...) it is (1/4, 3/4): weights 3/4 and 1/4 for class 0.
    images = torch.tensor([[math.log(3), 0.0, -100.0], [0.0, math.log(3), -100.0]]).reshape(2, 3, 1, 1)
    distiller(image=images, target=torch.tensor([0, 0]), epoch=1)
    distiller(image=images, target=torch.tensor([0, 0]), epoch=2)
    expected = [0.75 * math.log(3), 0.25 * math.log(3), -100.0]
    torch.testing.assert_close(distiller.student.context[0], torch.tensor(expected))


def test_class_that_was_not_seen_keeps_its_context() -> None:
    distiller = bare()
    image = randn(2, 3, 1, 1).float()
    distiller(image=image, target=torch.tensor([0, 1]), epoch=1)
    distiller(image=2 * image, target=torch.tensor([1, 1]), epoch=2)
    before = distiller.student.context.clone()
    distiller(image=image, target=torch.tensor([0, 1]), epoch=3)
    assert torch.equal(distiller.student.context[0], before[0]) and bool(before[0].any())
    assert not torch.equal(distiller.student.context[1], before[1])


def test_gradients_are_right_although_the_next_step_changes_the_buffers() -> None:
    distiller = bare()
    image, target = randn(3, 3, 1, 1).float(), torch.tensor([0, 1, 2])
    distiller(image=image, target=target, epoch=1)
    _, first = distiller(image=image, target=target, epoch=2)
    distiller(image=-image, target=target, epoch=3)
    first["loss_ce"].backward()
    assert bool(torch.isfinite(distiller.student.context_head.weight.grad).all())


def test_no_gradient_reaches_the_features_through_the_context() -> None:
    distiller = bare()
    image, target = randn(3, 3, 1, 1).float(), torch.tensor([0, 1, 2])
    for epoch in (1, 2):
        distiller(image=image, target=target, epoch=epoch)
    assert not any(buffer.requires_grad for buffer in distiller.buffers())


def test_the_look_up_of_the_context_passes_no_gradient_to_the_own_logits() -> None:
    distiller: Any = distiller_cases.build("CID").double()
    keywords = distiller_cases.batch("CID")
    logits, _ = distiller.student(keywords["image"].double())
    logits.square().sum().backward()
    classifier = distiller.student.network.fc
    assert not classifier.weight.grad.any() and not classifier.bias.grad.any()
    assert bool(distiller.student.context_head.weight.grad.any())


@pytest.mark.parametrize("everything_flagged", [False, True])
@pytest.mark.parametrize("resumed", [False, True])
def test_context_head_is_as_initialised_until_there_is_a_context(everything_flagged: bool, resumed: bool) -> None:
    def make() -> tuple[Any, torch.optim.SGD]:
        torch.manual_seed(0)
        student = create_model("digits_student", num_classes=NUM_CLASSES, in_channels=1)
        teacher = create_model("digits_teacher", num_classes=NUM_CLASSES, in_channels=1)
        dims = {
            "num_classes": NUM_CLASSES,
            "student_dim": student.fc.in_features,
            "teacher_dim": teacher.fc.in_features,
        }
        wrapper = TLLMWrapper(CID(student, teacher, **dims, warmup_epochs=4), NUM_CLASSES).train()
        parameters = wrapper.get_learnable_parameters()
        return wrapper, torch.optim.SGD(parameters, lr=0.05, momentum=0.9, weight_decay=5e-4, nesterov=True)

    wrapper, optimizer = make()
    keywords = distiller_cases.batch("CID")
    head = wrapper.student.context_head
    initial = copy.deepcopy(head.state_dict())
    for epoch in range(1, 7):
        if epoch == 3 and resumed:
            states = copy.deepcopy((wrapper.state_dict(), optimizer.state_dict()))
            wrapper, optimizer = make()
            nn.init.zeros_(wrapper.student.context_head.weight)
            wrapper.load_state_dict(states[0])
            optimizer.load_state_dict(states[1])
            head = wrapper.student.context_head
        # A context appears in epoch 5, made of what epoch 4 has collected; flagged rows collect nothing.
        wrapper.set_undistillable(torch.full((NUM_CLASSES,), everything_flagged and epoch <= 3))
        for _ in range(3):
            optimizer.zero_grad()
            _, losses = wrapper(**{**keywords, "epoch": epoch})
            sum(loss.mean() for loss in losses.values()).backward()
            if epoch <= 4:
                optimizer.step()
                assert all(torch.equal(value, initial[name]) for name, value in head.state_dict().items())
                assert not any(parameter in optimizer.state for parameter in head.parameters())
            else:
                assert bool(wrapper.student.has_context)
                optimizer.step()
    assert all("momentum_buffer" in optimizer.state[parameter] for parameter in head.parameters())
    assert not torch.equal(head.weight, initial["weight"])


def test_a_copy_of_the_student_keeps_its_own_head_as_initialised() -> None:
    original: Any = distiller_cases.build("CID_warmup")
    file = io.BytesIO()
    torch.save(original, file)
    file.seek(0)
    for distiller in (copy.deepcopy(original), torch.load(file, weights_only=False)):
        head = distiller.student.context_head
        before = head.weight.detach().clone()
        optimizer = torch.optim.SGD(distiller.parameters(), lr=0.1, weight_decay=0.1)
        _, losses = distiller(**distiller_cases.batch("CID_warmup"))
        sum(losses.values()).backward()
        optimizer.step()
        assert torch.equal(head.weight, before)
        assert not torch.equal(distiller.student.network.fc.weight, original.student.network.fc.weight)


def test_what_predicts_is_trained_by_undistillable_rows() -> None:
    """TLLM's label smoothing must reach the context head, and in the first epochs the network's own."""
    for name, trained, untouched in (("CID", "context_head", None), ("CID_warmup", "network.fc", "context_head")):
        wrapper = TLLMWrapper(distiller_cases.build(name), NUM_CLASSES).train()
        wrapper.set_undistillable(torch.ones(NUM_CLASSES, dtype=torch.bool))
        keywords = distiller_cases.batch(name)
        logits, losses = wrapper(**keywords)
        torch.testing.assert_close(logits, wrapper.student(keywords["image"])[0])
        losses["loss_ce"].backward()
        assert bool(wrapper.student.get_submodule(trained).weight.grad.any())
        if untouched:
            assert wrapper.student.get_submodule(untouched).weight.grad is None
        # What is returned in evaluation is of the same head.
        wrapper.eval()
        with torch.no_grad():
            evaluated = wrapper(image=keywords["image"])
            torch.testing.assert_close(evaluated, wrapper.student(keywords["image"])[0])
            plain = wrapper.student.network(keywords["image"])[0]
        assert torch.equal(evaluated, plain) == (name == "CID_warmup")


class WarmUp:
    """CID in a loop as hosts have it, with what an optimizer does to the context head."""

    WARMUP_EPOCHS = 6
    STEPS = 5

    def __init__(self, flagged: tuple[int, ...] = (), set_to_none: bool = True) -> None:
        distiller: Any = distiller_cases.build("CID_warmup")
        distiller.warmup_epochs = self.WARMUP_EPOCHS
        distiller.sample_weight = distiller.class_weight = 0.1  # Networks this small diverge otherwise.
        self.flagged = torch.isin(torch.arange(NUM_CLASSES), torch.tensor(flagged, dtype=torch.int64))
        self.set_to_none = set_to_none
        self.start_with(TLLMWrapper(distiller, NUM_CLASSES).train())

    def start_with(self, wrapper: TLLMWrapper) -> None:
        self.wrapper = wrapper
        self.head: list[nn.Parameter] = list(wrapper.student.context_head.parameters())  # type: ignore[operator,union-attr]
        self.initial = [parameter.detach().clone() for parameter in self.head]
        self.optimizer = torch.optim.SGD(
            wrapper.get_learnable_parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4, nesterov=True
        )

    def step(self, epoch: int) -> None:
        self.optimizer.zero_grad(set_to_none=self.set_to_none)
        _, losses = self.wrapper(**{**distiller_cases.batch("CID", seed=epoch), "epoch": epoch})
        torch.stack([loss.mean() for loss in losses.values()]).sum().backward()
        self.optimizer.step()

    def train(self, first: int, last: int) -> None:
        for epoch in range(first, last + 1):
            # Flags come in the middle of the warm-up.
            self.wrapper.set_undistillable(self.flagged & (epoch > 2))
            for _ in range(self.STEPS):
                self.step(epoch)

    def assert_untouched(self) -> None:
        for parameter, initial in zip(self.head, self.initial, strict=True):
            assert parameter.grad is None and parameter not in self.optimizer.state
            assert (parameter.norm() / initial.norm()).item() == 1.0 and torch.equal(parameter, initial)
            assert parameter.requires_grad

    def assert_trained(self) -> None:
        for parameter, initial in zip(self.head, self.initial, strict=True):
            assert parameter.grad is not None and bool(parameter.grad.any())
            assert "momentum_buffer" in self.optimizer.state[parameter] and not torch.equal(parameter, initial)


@pytest.mark.parametrize("set_to_none", [True, False])
@pytest.mark.parametrize("flagged", [(), (1, 4)], ids=str)
def test_the_context_head_is_as_initialised_when_the_first_context_appears(
    flagged: tuple[int, ...], set_to_none: bool
) -> None:
    loop = WarmUp(flagged, set_to_none)
    loop.train(1, loop.WARMUP_EPOCHS)
    loop.assert_untouched()
    others = {id(parameter) for parameter in loop.optimizer.state}
    assert len(others) == len(loop.wrapper.get_learnable_parameters()) - 2, "everything else is trained"
    loop.step(loop.WARMUP_EPOCHS + 1)
    loop.assert_trained()


def test_where_no_row_has_a_teacher_the_context_head_stays_as_initialised() -> None:
    """The wrapper's zero losses reach every learnable parameter, and no context is ever made."""
    loop = WarmUp()
    loop.flagged[:] = True
    loop.train(3, loop.WARMUP_EPOCHS + 3)
    assert not loop.wrapper.student.has_context
    loop.assert_untouched()


@pytest.mark.parametrize("epochs", [3, 7])
def test_a_resumed_run_treats_the_context_head_as_the_run_itself(epochs: int) -> None:
    """In the middle of the warm-up and after it; whatever the distiller has done before its state is loaded."""
    whole, begun, resumed = WarmUp((1,)), WarmUp((1,)), WarmUp((1,))
    last = WarmUp.WARMUP_EPOCHS + 2
    whole.train(1, last)
    begun.train(1, epochs)
    resumed.train(1, last if epochs == 3 else 1)
    resumed.wrapper.zero_grad(set_to_none=True)
    resumed.start_with(resumed.wrapper)  # A new optimizer, as in a new process.
    resumed.wrapper.load_state_dict(begun.wrapper.state_dict())
    resumed.optimizer.load_state_dict(begun.optimizer.state_dict())
    resumed.initial = begun.initial
    if epochs == 3:
        resumed.assert_untouched()
        resumed.train(4, WarmUp.WARMUP_EPOCHS)
        resumed.assert_untouched()
    resumed.train(max(epochs, WarmUp.WARMUP_EPOCHS) + 1, last)
    resumed.assert_trained()
    state = resumed.wrapper.student.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in whole.wrapper.student.state_dict().items())


def test_a_copy_of_the_distiller_holds_its_own_context_head() -> None:
    loop = WarmUp()
    loop.train(1, 2)
    original, loop_initial = loop.head, loop.initial
    loop.start_with(copy.deepcopy(loop.wrapper))
    loop.train(3, loop.WARMUP_EPOCHS)
    loop.assert_untouched()
    loop.step(loop.WARMUP_EPOCHS + 1)
    loop.assert_trained()
    assert all(torch.equal(one, other) for one, other in zip(original, loop_initial, strict=True))


@pytest.mark.parametrize("part", ["student", "network"])
def test_compiled_networks_hold_the_context_head(part: str) -> None:
    loop = WarmUp()
    student: Any = loop.wrapper.student
    (student if part == "student" else student.network).compile(backend="aot_eager")
    loop.train(1, loop.WARMUP_EPOCHS)
    loop.assert_untouched()
    loop.train(loop.WARMUP_EPOCHS + 1, loop.WARMUP_EPOCHS + 2)
    loop.assert_trained()


def test_a_student_that_has_become_a_teacher_can_be_copied() -> None:
    student: Any = distiller_cases.build("CID").student
    frozen = copy.deepcopy(student.requires_grad_(False))
    state = frozen.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in student.state_dict().items())


class Copies(torch.autograd.Function):
    """Parameters for two replicas, whose gradients are added up: as in `DataParallel`, also where there is none."""

    @staticmethod
    def forward(ctx: Any, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(tensor.clone() for _ in range(2) for tensor in tensors)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        half = len(gradients) // 2
        return tuple(one + other for one, other in zip(gradients[:half], gradients[half:], strict=True))


def replicated(module: nn.Module, parameters: dict[int, Tensor], buffers: bool) -> nn.Module:
    """Return a replica as `DataParallel` makes it; the first one has the module's own buffers."""
    replica = module._replicate_for_data_parallel()
    for key, parameter in module._parameters.items():
        setattr(replica, key, None if parameter is None else parameters[id(parameter)])
    replica._buffers = {key: b if buffers or b is None else b.clone() for key, b in module._buffers.items()}
    for key, child in module._modules.items():
        replica._modules[key] = None if child is None else replicated(child, parameters, buffers)
        object.__setattr__(replica, key, replica._modules[key])
    return replica


def test_replicas_hold_the_context_head_of_the_module_they_are_made_of() -> None:
    loop = WarmUp()
    module = loop.wrapper

    def parallel(**keywords: Any) -> Any:
        learnable = [parameter for parameter in module.parameters() if parameter.requires_grad]
        copies = Copies.apply(*learnable)
        outputs = []
        for place in range(2):
            mine = copies[place * len(learnable) : (place + 1) * len(learnable)]
            parameters: dict[int, Tensor] = {id(parameter): parameter for parameter in module.parameters()}
            parameters |= {id(parameter): one for parameter, one in zip(learnable, mine, strict=True)}
            rows = slice(place * 6, (place + 1) * 6)
            half = {**keywords, "image": keywords["image"][rows], "target": keywords["target"][rows]}
            outputs.append(replicated(module, parameters, buffers=place == 0)(**half))
        losses = {key: torch.stack([loss for _, one in outputs for loss in [one[key]]]) for key in outputs[0][1]}
        return torch.cat([logits for logits, _ in outputs]), losses

    loop.wrapper = parallel  # type: ignore[assignment]
    for epoch in range(1, loop.WARMUP_EPOCHS + 1):
        for _ in range(loop.STEPS):
            loop.step(epoch)
    loop.assert_untouched()
    loop.step(loop.WARMUP_EPOCHS + 1)
    loop.assert_trained()
    assert bool(module.student.has_context)


def test_the_device_is_waited_for_once_an_epoch_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    loop, waits = WarmUp(), [0]
    truth = Tensor.__bool__

    def counting(tensor: Tensor) -> bool:
        waits[0] += 1
        return truth(tensor)

    loop.wrapper = loop.wrapper.distiller  # type: ignore[assignment]
    loop.step(1)
    monkeypatch.setattr(Tensor, "__bool__", counting)
    for epoch in range(1, loop.WARMUP_EPOCHS + 4):
        for _ in range(loop.STEPS):
            loop.step(epoch)
    assert waits[0] <= loop.WARMUP_EPOCHS
    monkeypatch.undo()
    loop.assert_trained()


def test_flagged_class_keeps_its_context_under_tllm() -> None:
    distiller: Any = distiller_cases.build("CID")
    wrapper = TLLMWrapper(distiller, NUM_CLASSES).train()
    wrapper.set_undistillable(torch.arange(NUM_CLASSES) == 1)
    keywords = distiller_cases.batch("CID")
    before = distiller.student.context.clone()
    wrapper(**keywords)
    assert distiller.student.context_weight[1] == 0 and int((distiller.student.context_weight > 0).sum()) == 5
    wrapper(**{**keywords, "epoch": EPOCH + 1})
    changed = (distiller.student.context != before).any(1)
    assert changed.tolist() == [True, False, True, True, True, True]


def test_state_travels_and_training_goes_on_the_same() -> None:
    one: Any = distiller_cases.build("CID")
    keywords = distiller_cases.batch("CID")
    one(**keywords)
    file = io.BytesIO()
    torch.save(one.state_dict(), file)
    file.seek(0)
    other: Any = distiller_cases.build("CID_warmup", seed=5)
    other.warmup_epochs = one.warmup_epochs
    other.load_state_dict(torch.load(file, weights_only=True))
    later = {**keywords, "epoch": EPOCH + 1}
    (logits, losses), (other_logits, other_losses) = one(**later), other(**later)
    assert torch.equal(logits, other_logits)
    assert all(torch.equal(losses[key], other_losses[key]) for key in losses)
    state, other_state = one.state_dict(), other.state_dict()
    assert all(torch.equal(state[key], other_state[key]) for key in state)


def test_students_weights_are_refused_by_a_plain_network_and_restored_by_their_own() -> None:
    distiller: Any = distiller_cases.build("CID").eval()
    image = distiller_cases.batch("CID")["image"]
    state = distiller.student.state_dict()
    plain = create_model("digits_student", num_classes=NUM_CLASSES, in_channels=1)
    with pytest.raises(RuntimeError, match="context_head"):
        plain.load_state_dict(state)
    assert ContextStudent.is_state(state) and not ContextStudent.is_state(plain.state_dict())
    restored = ContextStudent.restore(plain, state).eval()
    with torch.no_grad():
        assert torch.equal(restored(image)[0], distiller(image=image))
        assert not torch.equal(restored.network(image)[0], restored(image)[0])


def test_predictions_of_replicas_in_bf16_and_channels_last_use_the_context() -> None:
    distiller: Any = distiller_cases.build("CID").eval()
    image = distiller_cases.batch("CID")["image"]
    with torch.no_grad():
        exact = distiller(image=image)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            torch.testing.assert_close(distiller(image=image).float(), exact, atol=0.05, rtol=0.05)
        other = copy.deepcopy(distiller).to(memory_format=torch.channels_last)
        torch.testing.assert_close(other(image=image.contiguous(memory_format=torch.channels_last)), exact)


def test_without_an_epoch_there_is_no_context_to_speak_of() -> None:
    keywords = distiller_cases.batch("CID")
    del keywords["epoch"]
    with pytest.raises(TypeError, match="Expected the loop to pass `epoch` to CID"):
        distiller_cases.build("CID")(**keywords)


def test_the_first_epoch_has_none_before_it() -> None:
    with pytest.raises(ConfigError, match="`warmup_epochs` to be at least 1, but got 0"):
        bare(warmup_epochs=0)


def test_learnable_and_undecayed_parameters() -> None:
    distiller: Any = distiller_cases.build("CID")
    learnable = {id(parameter) for parameter in distiller.get_learnable_parameters()}
    for module in (distiller.student.network, distiller.student.context_head, distiller.regressor):
        assert {id(parameter) for parameter in module.parameters()} <= learnable
    undecayed = distiller.get_undecayed_parameters()
    assert {id(parameter) for parameter in undecayed} == {id(p) for p in distiller.regressor.parameters()}
    _, losses = distiller(**distiller_cases.batch("CID"))
    sum(losses.values()).backward()
    assert all(parameter.grad is not None for parameter in distiller.get_learnable_parameters())


def test_export_keeps_the_context() -> None:
    distiller: Any = distiller_cases.build("CID").eval()
    image = distiller_cases.batch("CID")["image"]
    with torch.no_grad():
        exported = torch.export.export(distiller.student, (image,)).module()
        torch.testing.assert_close(exported(image)[0], distiller(image=image))
