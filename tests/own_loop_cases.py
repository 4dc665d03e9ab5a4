"""Distillers as people write them for loops of their own: no more than README asks for, and habits of this field."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tllm_plugin.core.outputs import logits_of


class Promised(nn.Module):
    """`student`, `teacher`, `forward(image=, target=) -> (logits, one loss)`, and nothing else."""

    def __init__(self, student: nn.Module, teacher: nn.Module) -> None:
        super().__init__()
        self.student = student
        self.teacher = teacher.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Promised:
        super().train(mode)
        self.teacher.eval()
        return self

    def forward(self, image: Tensor, target: Tensor, **others: Any) -> Any:
        logits = logits_of(self.student(image))
        with torch.no_grad():
            teacher_logits = logits_of(self.teacher(image))
        return logits, F.cross_entropy(logits, target) + (logits - teacher_logits).pow(2).mean()


class OneElement(Promised):
    """One loss of shape (1,)."""

    def forward(self, image: Tensor, target: Tensor, **others: Any) -> Any:
        logits, loss = super().forward(image, target)
        return logits, loss.reshape(1)


class Pieces(Promised):
    """Gives its losses in a dictionary; subclasses say where other logits to learn from come from."""

    def others(self, image: Tensor) -> list[Tensor]:
        return [logits_of(self.teacher(image))]

    def forward(self, image: Tensor, target: Tensor, **others: Any) -> Any:
        logits = logits_of(self.student(image))
        with torch.no_grad():
            taught = self.others(image)
        return logits, self.losses(logits, taught, target)

    def losses(self, logits: Tensor, taught: list[Tensor], target: Tensor) -> dict[str, Tensor]:
        distances = [(logits - other).pow(2).mean() for other in taught]
        return {"ce": F.cross_entropy(logits, target), "kd": torch.stack(distances).sum()}


class CopiesInStep(Pieces):
    """Copies both networks in every step, as methods with a look-ahead do."""

    def others(self, image: Tensor) -> list[Tensor]:
        copies = [copy.deepcopy(network) for network in (self.teacher, self.student)]
        return [logits_of(self.teacher(image)), *(logits_of(network(image)) for network in copies)]


class Averaged(Pieces):
    """Learns from a running mean of its student as well, which is copied when it is made."""

    def __init__(self, student: nn.Module, teacher: nn.Module) -> None:
        super().__init__(student, teacher)
        self.ema = copy.deepcopy(student).requires_grad_(False)

    def others(self, image: Tensor) -> list[Tensor]:
        for mean, now in zip(self.averaged.parameters(), self.student.parameters(), strict=True):
            mean.lerp_(now.detach(), 0.5)
        return [logits_of(self.teacher(image)), logits_of(self.averaged(image))]

    @property
    def averaged(self) -> nn.Module:
        return self.ema


class HiddenAverage(Averaged):
    """Keeps the running mean out of its checkpoints, by a list."""

    def __init__(self, student: nn.Module, teacher: nn.Module) -> None:
        super().__init__(student, teacher)
        self.hidden = [self.ema.eval()]
        del self.ema

    @property
    def averaged(self) -> nn.Module:
        return self.hidden[0]


class LazyAverage(Pieces):
    """Copies its student in the first step, and keeps that."""

    def others(self, image: Tensor) -> list[Tensor]:
        if not hasattr(self, "first"):
            self.first = copy.deepcopy(self.student).requires_grad_(False)
        return [logits_of(self.teacher(image)), logits_of(self.first(image))]


class TransformsImages(Pieces):
    """Normalises images on the device, for both networks."""

    def __init__(self, student: nn.Module, teacher: nn.Module) -> None:
        super().__init__(student, teacher)
        self.register_buffer("mean", torch.tensor(0.3))

    def prepare(self, image: Tensor) -> Tensor:
        return (image - self.mean) / 0.5

    def forward(self, image: Tensor, target: Tensor, **others: Any) -> Any:
        return super().forward(self.prepare(image), target)


class TeacherFirst(Pieces):
    """Calls its teacher, then its student."""

    def forward(self, image: Tensor, target: Tensor, **others: Any) -> Any:
        with torch.no_grad():
            taught = self.others(image)
        logits = logits_of(self.student(image))
        return logits, self.losses(logits, taught, target)


class FeaturesFirst(Pieces):
    """Its student returns `(features, logits)`, both tensors."""

    class Student(nn.Module):
        def __init__(self, network: nn.Module) -> None:
            super().__init__()
            self.network = network

        def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
            logits, features = self.network(image)
            return features["pooled_feat"], logits

    def __init__(self, student: nn.Module, teacher: nn.Module) -> None:
        super().__init__(self.Student(student), teacher)

    def forward(self, image: Tensor, target: Tensor, **others: Any) -> Any:
        features, logits = self.student(image)
        with torch.no_grad():
            taught = self.others(image)
        losses = self.losses(logits, taught, target)
        return logits, {**losses, "feature": features.pow(2).mean()}

    def pick(self, output: tuple[Tensor, Tensor]) -> Tensor:
        return output[1]


@dataclass
class Output:
    hidden: dict[str, Tensor]
    logits: Tensor


class NamedOutput(Pieces):
    """Its student returns an object with names."""

    class Student(FeaturesFirst.Student):
        def forward(self, image: Tensor) -> Output:  # type: ignore[override]
            logits, features = self.network(image)
            return Output({"pooled": features["pooled_feat"]}, logits)

    def __init__(self, student: nn.Module, teacher: nn.Module) -> None:
        super().__init__(self.Student(student), teacher)

    def forward(self, image: Tensor, target: Tensor, **others: Any) -> Any:
        output = self.student(image)
        with torch.no_grad():
            taught = self.others(image)
        return output.logits, self.losses(output.logits, taught, target)

    def pick(self, output: Output) -> Tensor:
        return output.logits


class ReturnsACopy(Pieces):
    """Returns its logits detached and in single precision, for measuring."""

    def forward(self, image: Tensor, target: Tensor, **others: Any) -> Any:
        logits, losses = super().forward(image, target)
        return logits.float().clone(), losses


OWN_LOOP_BUILDERS: dict[str, Any] = {
    "own: one tensor": Promised,
    "own: one element": OneElement,
    "own: copies in every step": CopiesInStep,
    "own: running mean": Averaged,
    "own: hidden running mean": HiddenAverage,
    "own: copy of the first step": LazyAverage,
    "own: transforms images": TransformsImages,
    "own: teacher first": TeacherFirst,
    "own: features first": FeaturesFirst,
    "own: named output": NamedOutput,
    "own: returns a copy": ReturnsACopy,
}
