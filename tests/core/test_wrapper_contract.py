"""What the wrapper asks of a distiller: it is enough, and what is less is refused at the first call of all."""

from __future__ import annotations

import copy
import io
import logging
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.distiller_cases import NUM_CLASSES, batch, build, networks
from tests.own_loop_cases import Averaged, FeaturesFirst, Pieces, Promised, TeacherFirst
from tllm_plugin import ConfigError, TLLMWrapper
from tllm_plugin.core.outputs import logits_of
from tllm_plugin.methods import CID

KEYWORDS = {name: value for name, value in batch("KD").items() if name in ("image", "target")}


def flags(*classes: int) -> Tensor:
    return torch.isin(torch.arange(NUM_CLASSES), torch.tensor(classes, dtype=torch.int64))


def wrap(kind: type[nn.Module], *flagged: int, **options: Any) -> TLLMWrapper:
    wrapper = TLLMWrapper(kind(*networks()), NUM_CLASSES, **options).train()
    wrapper.set_undistillable(flags(*flagged))
    return wrapper


# ---- defaults ----


class WithRegressor(Promised):
    """Has a module of its own, a parameter that does not train, and one that two places share."""

    def __init__(self, student: nn.Module, teacher: nn.Module) -> None:
        super().__init__(student, teacher.requires_grad_(True))
        self.teacher.requires_grad_(True)
        self.regressor = nn.Linear(3, 2)
        self.same = self.regressor
        self.constant = nn.Parameter(torch.ones(1), requires_grad=False)


def test_learnable_is_what_requires_gradients_outside_the_teacher_each_once() -> None:
    wrapper = wrap(WithRegressor)
    learnable = wrapper.get_learnable_parameters()
    expected = [*wrapper.student.parameters(), *wrapper.regressor.parameters()]
    assert {id(parameter) for parameter in learnable} == {id(parameter) for parameter in expected}
    assert len(learnable) == len(expected)
    assert wrapper.get_extra_parameters() == 3 * 2 + 2


def test_a_part_that_student_and_teacher_share_is_the_students() -> None:
    class Shared(Promised):
        def __init__(self, student: nn.Module, teacher: nn.Module) -> None:
            super().__init__(student, nn.Sequential(student))
            self.student.requires_grad_(True)

    wrapper = wrap(Shared)
    assert len(wrapper.get_learnable_parameters()) == len(list(wrapper.student.parameters()))


def test_train_and_eval_reach_the_distiller() -> None:
    wrapper = wrap(Promised)
    wrapper.eval()
    assert not wrapper.student.training and not wrapper.teacher.training
    wrapper.train()
    assert wrapper.student.training and not wrapper.teacher.training


@pytest.mark.parametrize("flagged", [(), (1, 4), tuple(range(NUM_CLASSES))])
def test_calls_by_position_are_calls_by_name(flagged: tuple[int, ...]) -> None:
    image, target = KEYWORDS["image"], KEYWORDS["target"]
    for name in ("KD", "own: one tensor"):  # The first takes keywords only.
        by_name, by_position, mixed = (TLLMWrapper(build(name), NUM_CLASSES).train() for _ in range(3))
        results = []
        for wrapper, args, kwargs in (
            (by_name, (), KEYWORDS),
            (by_position, (image, target), {}),
            (mixed, (image,), {"target": target}),
        ):
            wrapper.set_undistillable(flags(*flagged))
            torch.manual_seed(0)
            results.append(wrapper(*args, **kwargs)[0])
        assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


def test_evaluation_by_position_is_evaluation_by_name() -> None:
    wrapper, image = TLLMWrapper(build("KD"), NUM_CLASSES).eval(), KEYWORDS["image"]
    assert torch.equal(wrapper(image), wrapper.distiller(image=image))


def test_one_tensor_comes_back_as_one_tensor_whatever_is_flagged_and_after_a_resume() -> None:
    wrapper = wrap(Promised)
    results = []
    for flagged in ((), (5,), (1, 4), tuple(range(NUM_CLASSES))):
        wrapper.set_undistillable(flags(*flagged))
        results.append(wrapper(**KEYWORDS)[1])
    assert all(isinstance(loss, Tensor) and loss.shape == () and loss.requires_grad for loss in results)
    file = io.BytesIO()
    torch.save(wrapper.state_dict(), file)
    file.seek(0)
    resumed = wrap(Promised)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    assert isinstance(resumed(**KEYWORDS)[1], Tensor)


def test_one_tensor_of_a_distiller_that_is_flagged_from_the_start_is_known_by_its_loss_shapes() -> None:
    class Told(Promised):
        loss_shapes = (1,)

    loss = wrap(Told, *range(NUM_CLASSES))(**KEYWORDS)[1]
    assert isinstance(loss, Tensor) and loss.shape == (1,)


def test_checkpoints_of_earlier_versions_load() -> None:
    wrapper = wrap(Pieces)
    wrapper(**KEYWORDS)
    state = wrapper.state_dict()
    for key in ("one_loss", "logits_at"):
        del state["_extra_state"][key]
    other = wrap(Pieces)
    other.load_state_dict(state)
    assert set(other(**KEYWORDS)[1]) == {"ce", "kd"}


def test_several_teachers_in_a_list_see_the_distillable_rows_only() -> None:
    class Several(Pieces):
        def __init__(self, student: nn.Module, teacher: nn.Module) -> None:
            super().__init__(student, nn.ModuleList([teacher, copy.deepcopy(teacher)]))

        def others(self, image: Tensor) -> list[Tensor]:
            return [logits_of(teacher(image)) for teacher in self.teacher]

    wrapper, inner = wrap(Several, 1, 4), Several(*networks()).train()
    for module in (wrapper, inner):
        for part in module.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.eval()
    keep = ~flags(1, 4)[KEYWORDS["target"]]
    _, losses = wrapper(**KEYWORDS)
    _, expected = inner(**{name: value[keep] for name, value in KEYWORDS.items()})
    torch.testing.assert_close(losses["kd"], expected["kd"] * keep.sum() / len(keep))


def test_a_transform_inside_the_distiller_acts_where_no_row_has_a_teacher_too() -> None:
    wrapper = TLLMWrapper(build("own: transforms images"), NUM_CLASSES).train()
    wrapper.set_undistillable(flags(*range(NUM_CLASSES)))
    reference = build("own: transforms images")
    prepared = reference.prepare(KEYWORDS["image"])  # type: ignore[operator]
    assert torch.equal(wrapper(**KEYWORDS)[0], logits_of(reference.student(prepared)))  # type: ignore[operator]


def test_logits_of_a_student_that_returns_something_of_their_shape_before_them() -> None:
    class Twins(FeaturesFirst):
        class Student(FeaturesFirst.Student):
            def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
                logits = logits_of(self.network(image))
                return logits.cos(), logits

        def __init__(self, student: nn.Module, teacher: nn.Module) -> None:
            super().__init__(student, teacher)
            self.student = self.Student(student)

    wrapper, reference = wrap(Twins), Twins(*networks()).train()
    expected = reference.student(KEYWORDS["image"])[1]
    for flagged in ((), (1, 4), tuple(range(NUM_CLASSES))):
        wrapper.set_undistillable(flags(*flagged))
        assert torch.equal(wrapper(**KEYWORDS)[0], expected)
    # Before the first look there are two readings.
    with pytest.raises(ConfigError, match="to return one tensor of logits"):
        wrap(Twins, *range(NUM_CLASSES))(**KEYWORDS)


def test_copies_made_in_a_step_are_routed_as_what_they_are_copies_of() -> None:
    rows = []

    class Counts(Averaged):
        def others(self, image: Tensor) -> list[Tensor]:
            found = [*super().others(image), logits_of(copy.deepcopy(self.teacher)(image))]
            found.append(logits_of(copy.deepcopy(copy.deepcopy(self.student))(image)))
            rows.extend(len(each) for each in found)
            return found

    wrap(Counts, 1, 4)(**KEYWORDS)
    assert rows == [8] * 4


def test_copies_of_a_wrapped_distiller_are_another_wrappers() -> None:
    first = wrap(Pieces, 0)
    second = TLLMWrapper(copy.deepcopy(first.distiller), NUM_CLASSES).train()
    second.set_undistillable(flags(1, 4))
    assert second(**KEYWORDS)[0].shape == first(**KEYWORDS)[0].shape == (12, NUM_CLASSES)
    both = copy.deepcopy(first)
    assert torch.equal(both(**KEYWORDS)[0], first(**KEYWORDS)[0])


# ---- refusals at the first call ----


class IgnoresItsStudent(Pieces):
    def forward(self, image: Tensor, target: Tensor) -> Any:
        logits = logits_of(self.teacher(image))
        return logits, {"ce": F.cross_entropy(logits.detach().requires_grad_(), target)}


class OtherLogits(Pieces):
    def forward(self, image: Tensor, target: Tensor) -> Any:
        logits, losses = super().forward(image, target)
        return logits / 4, losses


class TeachersLogits(Pieces):
    def forward(self, image: Tensor, target: Tensor) -> Any:
        _, losses = super().forward(image, target)
        return logits_of(self.teacher(image)), losses


class PartOfTheStudent(Pieces):
    def forward(self, image: Tensor, target: Tensor) -> Any:
        logits = logits_of(self.student.forward(image))
        return logits, {"ce": F.cross_entropy(logits, target)}


class PartOfTheTeacher(Pieces):
    def others(self, image: Tensor) -> list[Tensor]:
        return [logits_of(self.teacher.forward(image))]


class Assistant(Pieces):
    def __init__(self, student: nn.Module, teacher: nn.Module) -> None:
        super().__init__(student, teacher)
        self.assistant = nn.Sequential(nn.Flatten(), nn.Linear(64, NUM_CLASSES))

    def others(self, image: Tensor) -> list[Tensor]:
        return [logits_of(self.teacher(image)), self.assistant((image - 0.5) * 2)]


class Taps(Pieces):
    """Looks inside its student by a hook."""

    def __init__(self, student: nn.Module, teacher: nn.Module) -> None:
        super().__init__(student, teacher)
        for network in (student, teacher):
            network.fc.register_forward_hook(self.keep)  # type: ignore[union-attr]

    def keep(self, module: nn.Module, args: Any, output: Tensor) -> None:
        self.seen.append(args[0].mean(1))

    def forward(self, image: Tensor, target: Tensor) -> Any:
        self.seen: list[Tensor] = []
        logits, losses = super().forward(image, target)
        return logits, {**losses, "feature": (self.seen[0] - self.seen[1]).pow(2).mean()}


class TwiceTheRows(Pieces):
    def others(self, image: Tensor) -> list[Tensor]:
        return list(logits_of(self.teacher(torch.cat([image, image.flip(3)]))).chunk(2))


class RowsSecond(Pieces):
    class Student(nn.Module):
        def __init__(self, network: nn.Module) -> None:
            super().__init__()
            self.network = network

        def forward(self, image: Tensor) -> Any:
            logits = logits_of(self.network(image))
            return logits, logits.expand(5, *logits.shape)

    def __init__(self, student: nn.Module, teacher: nn.Module) -> None:
        super().__init__(self.Student(student), teacher)


class OtherNames(Pieces):
    def forward(self, x: Tensor, y: Tensor) -> Any:  # type: ignore[override]
        return super().forward(x, y)


class TransformsAfterTheTeacher(TeacherFirst):
    def forward(self, image: Tensor, target: Tensor) -> Any:
        return super().forward(image * 2, target)


class OnlyLogits(Pieces):
    def forward(self, image: Tensor, target: Tensor) -> Any:
        return super().forward(image, target)[0]


def losses_of(change: Any) -> type[nn.Module]:
    class Changed(Pieces):
        def forward(self, image: Tensor, target: Tensor) -> Any:
            logits, losses = super().forward(image, target)
            return logits, change(losses, logits)

    return Changed


REFUSED: dict[str, tuple[Any, str]] = {
    "no call of the student": (IgnoresItsStudent, "to call `student`"),
    "a part of the student": (PartOfTheStudent, "comes from the images past student and teacher"),
    "other logits": (OtherLogits, "none of the outputs of 1 student calls"),
    "the teacher's logits": (TeachersLogits, "none of the outputs of 1 student calls"),
    "a part of the teacher": (PartOfTheTeacher, "comes from the images past student and teacher"),
    "another network": (Assistant, "comes from the images past student and teacher"),
    "the student's inside": (Taps, "comes from inside the student"),
    "other rows": (TwiceTheRows, "the teacher to be called with the 12 rows of the batch, but got 24"),
    "rows second": (RowsSecond, r"first dimension is the batch of 12 rows, but got one of shape \(5, 12, 6\)"),
    "other keywords": (OtherNames, r"to take image, target as keywords, but its signature is \(x.*y"),
    "other images": (TransformsAfterTheTeacher, "to call `student` before `teacher`"),
    "logits alone": (OnlyLogits, r"\(logits, losses\) in training, but got Tensor"),
    "no losses": (losses_of(lambda losses, logits: {}), "but got an empty one"),
    "a list of losses": (
        losses_of(lambda losses, logits: list(losses.values())),
        "a dictionary of tensors, but got list",
    ),
    "a number": (losses_of(lambda losses, logits: {**losses, "kd": 0.0}), "loss 'kd' to be a tensor, but got float"),
    "a loss per row and class": (
        losses_of(lambda losses, logits: {"kd": logits}),
        r"'kd' to be a mean .* or one value per row, .* but got torch.float32 of shape \(\d+, 6\)",
    ),
    "a whole number": (
        losses_of(lambda losses, logits: {"kd": logits.argmax()}),
        "'kd' to be a mean .* but got torch.int64",
    ),
    "no gradient": (losses_of(lambda losses, logits: losses["kd"].detach()), "none requires a gradient"),
}


@pytest.mark.parametrize("flagged", [(), (5,), (1, 4)], ids=["none", "one", "two"])
@pytest.mark.parametrize("case", REFUSED)
def test_less_is_refused_at_the_first_call(case: str, flagged: tuple[int, ...]) -> None:
    kind, message = REFUSED[case]
    with pytest.raises(ConfigError, match=message) as error:
        wrap(kind, *flagged)(**KEYWORDS)
    assert "\n" not in str(error.value)


def test_a_distiller_that_does_without_its_student_is_refused_where_every_class_is_flagged_from_the_start() -> None:
    class Linear(Pieces):
        def forward(self, image: Tensor, target: Tensor) -> Any:
            logits = image.flatten(1)[:, :NUM_CLASSES] * self.student.fc.weight.sum()  # type: ignore[union-attr, operator]
            return logits, F.cross_entropy(logits, target)

    for flagged in (range(NUM_CLASSES), ()):
        with pytest.raises(ConfigError, match="to call `student`|past student and teacher"):
            wrap(Linear, *flagged)(**KEYWORDS)


def test_other_numbers_of_classes_are_refused_at_the_first_call() -> None:
    with pytest.raises(ConfigError, match=r"logits to be floats of shape \(12, 7\), but got .*\(12, 6\)"):
        TLLMWrapper(Pieces(*networks()), NUM_CLASSES + 1).train()(**KEYWORDS)


def test_a_network_may_have_more_outputs_than_there_are_classes() -> None:
    fewer = {**KEYWORDS, "target": KEYWORDS["target"] % (NUM_CLASSES - 1)}
    expected, _ = Pieces(*networks()).train()(**fewer)
    wrapper = TLLMWrapper(Pieces(*networks()), NUM_CLASSES - 1).train()
    assert torch.equal(wrapper(**fewer)[0], expected)
    wrapper.set_undistillable(torch.arange(NUM_CLASSES - 1) == 0)
    assert wrapper(**fewer)[0].shape == (len(fewer["target"]), NUM_CLASSES)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target": None}, "class indices, .* but got NoneType"),
        ({"target": torch.arange(12) % 6 * 1.0}, "but got torch.float32"),
        ({"target": torch.ones(12, dtype=torch.bool)}, "but got torch.bool"),
        ({"target": torch.ones(12, 6)}, r"of shape \(12, 6\)"),
        ({"target": torch.arange(11) % 6}, r"n = 12, but got torch.int64 of shape \(11,\)"),
        ({"target": torch.arange(12) % 6 - 1}, r"in \[0, 6\), but got -1"),
        ({"target": torch.arange(12) % 7}, r"in \[0, 6\), but got 6"),
        ({"image": None}, "tensors `image` and `target`, but got image, target"),
    ],
)
def test_calls_without_labels_or_images_are_refused_at_the_first_call(change: dict[str, Any], message: str) -> None:
    for flagged in ((), (1, 4)):
        with pytest.raises(ConfigError, match=message):
            wrap(Pieces, *flagged)(**{**KEYWORDS, **change})


def test_a_call_without_labels_is_refused_later_too() -> None:
    wrapper = wrap(Pieces)
    with pytest.raises(ConfigError, match="`image` and `target`, but got image$"):
        wrapper(KEYWORDS["image"])
    wrapper(**KEYWORDS)
    wrapper.set_undistillable(flags(1))
    with pytest.raises(ConfigError, match="to give `target`, but got image"):
        wrapper(KEYWORDS["image"])
    with pytest.raises(ConfigError, match="by position to give image, target, but got 3 values"):
        wrapper(KEYWORDS["image"], KEYWORDS["target"], 1)
    with pytest.raises((IndexError, RuntimeError)):
        wrapper(KEYWORDS["image"], KEYWORDS["target"] - 1)


def test_labels_of_another_integer_type_are_taken() -> None:
    class Converts(Pieces):
        def forward(self, image: Tensor, target: Tensor) -> Any:
            return super().forward(image, target.long())

    expected = wrap(Pieces, 1, 4)(**KEYWORDS)
    for dtype in (torch.uint8, torch.int32):
        found = wrap(Converts, 1, 4)(KEYWORDS["image"], KEYWORDS["target"].to(dtype))
        assert torch.equal(found[1]["ce"], expected[1]["ce"])


def test_networks_that_are_missing_are_refused_when_the_distiller_is_wrapped() -> None:
    student, teacher = networks()
    for attributes, message in (
        ({"model_s": student, "model_t": teacher}, "attribute `student`, .* but Module has model_s, model_t"),
        ({"student": student, "teacher": [teacher]}, "`teacher` .* but got list"),
    ):
        distiller = nn.Module()
        for name, value in attributes.items():
            setattr(distiller, name, value)
        with pytest.raises(ConfigError, match=message):
            TLLMWrapper(distiller, NUM_CLASSES)
    with pytest.raises(ConfigError, match="to be a torch.nn.Module, but got function"):
        TLLMWrapper(lambda image, target: None, NUM_CLASSES)  # type: ignore[arg-type]


def test_a_teacher_under_another_name_is_noticed_at_the_first_call() -> None:
    class Renamed(Pieces):
        def __init__(self, student: nn.Module, teacher: nn.Module) -> None:
            super().__init__(student, teacher)
            del self.teacher
            self.model_t = teacher

        def train(self, mode: bool = True) -> Any:
            return nn.Module.train(self, mode)

        def others(self, image: Tensor) -> list[Tensor]:
            return [logits_of(self.model_t(image))]

    with pytest.raises(ConfigError, match="past student and teacher"):
        wrap(Renamed)(**KEYWORDS)


def test_a_teacher_that_is_left_in_training_mode_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    class Careless(Pieces):
        train = nn.Module.train  # type: ignore[assignment]

    wrapper = wrap(Careless)
    with caplog.at_level(logging.WARNING):
        wrapper(**KEYWORDS)
        wrapper(**KEYWORDS)
    assert len([record for record in caplog.records if "the teacher is in training mode" in record.message]) == 1
    caplog.clear()
    for name in ("KD", "teacher_in_train_mode"):
        TLLMWrapper(build(name), NUM_CLASSES).train()(**batch(name))
    assert not caplog.records


def test_nothing_is_looked_at_after_the_first_call() -> None:
    """Hooks see later calls as nothing but what they are."""
    wrapper = wrap(OtherLogitsLater)
    wrapper(**KEYWORDS)
    wrapper.distiller.later = True  # type: ignore[assignment]
    logits, _ = wrapper(**KEYWORDS)
    assert logits.shape == (12, NUM_CLASSES)


class OtherLogitsLater(Pieces):
    later = False

    def forward(self, image: Tensor, target: Tensor) -> Any:
        logits, losses = super().forward(image, target)
        return (logits * 2 if self.later else logits), losses


@pytest.mark.parametrize(
    "bad", [[0, 1], torch.tensor([1, 0]), torch.zeros(NUM_CLASSES), [True] * 5, ["a"] * NUM_CLASSES, None]
)
def test_flags_that_are_none_are_refused(bad: Any) -> None:
    with pytest.raises(ConfigError, match=r"Expected `flags` to be 6 truth values, one per class, but got"):
        wrap(Pieces).set_undistillable(bad)


def test_flags_are_taken_as_lists_and_arrays() -> None:
    wrapper = wrap(Pieces)
    for given in (flags(1, 4).tolist(), tuple(flags(1, 4).tolist()), flags(1, 4).numpy(), flags(1, 4)):
        wrapper.set_undistillable(flags())
        wrapper.set_undistillable(given)
        assert torch.equal(wrapper.undistillable, flags(1, 4))


def test_cid_keeps_the_context_of_its_student_although_the_network_is_inside() -> None:
    assert isinstance(build("CID"), CID)
    wrapper = TLLMWrapper(build("CID"), NUM_CLASSES).train()
    assert wrapper(**batch("CID"))[0].shape == (12, NUM_CLASSES)
