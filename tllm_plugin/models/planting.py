"""Plant undistillable classes: make a teacher confidently wrong on chosen classes, to know the ground truth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tllm_plugin.core.errors import ConfigError


class PlantedTeacher(nn.Module):
    """Teacher that predicts another class wherever it would predict a planted class.

    Where the teacher predicts planted class `c`, the logits of `c` and of a fixed wrong class are exchanged: the
    teacher is wrong with unchanged confidence. Features are unchanged, so that only methods that use logits are misled.
    This class serves demonstrations and measurements of detectors only.

    Args:
        teacher: Module that maps images to (logits (n, C), features).
        classes: Indices of the planted classes.
        num_classes: C.
        strength: Share of the probability that is exchanged, in (0, 1]; 1 exchanges the logits themselves.

    Raises:
        ConfigError: A class or the strength is out of range, or there is only one class.
    """

    wrong_class: Tensor

    def __init__(self, teacher: nn.Module, classes: Sequence[int], num_classes: int, strength: float = 1.0) -> None:
        super().__init__()
        outside = sorted(index for index in classes if not 0 <= index < num_classes)
        if outside:
            raise ConfigError(f"Expected `DISTILLER.PLANT.CLASSES` to be in [0, {num_classes}), but got {outside}")
        if not 0.0 < strength <= 1.0:
            raise ConfigError(f"Expected `DISTILLER.PLANT.STRENGTH` to be in (0, 1], but got {strength}")
        if num_classes < 2:
            raise ConfigError(f"Expected at least 2 classes to plant a wrong answer, but got {num_classes}")
        self.teacher = teacher
        self.strength = strength
        self.register_buffer("wrong_class", wrong_classes(classes, num_classes), persistent=False)

    def forward(self, image: Tensor) -> tuple[Tensor, Any]:
        logits, features = self.teacher(image)
        predicted = logits.argmax(1, keepdim=True)
        wrong = self.wrong_class[predicted]
        swapped = logits.scatter(1, predicted, logits.gather(1, wrong)).scatter(1, wrong, logits.gather(1, predicted))
        if self.strength == 1.0:
            return swapped, features
        mixed = (1 - self.strength) * logits.softmax(1) + self.strength * swapped.softmax(1)
        # Small enough to leave softened losses unchanged; keeps the logarithm finite, in half precision too.
        return mixed.clamp(min=1e-7).log(), features


def wrong_classes(classes: Sequence[int], num_classes: int) -> Tensor:
    """Return (C,) int64: the wrong class of each planted class, and every other class itself.

    The wrong class is the next class (cyclically) that is not planted; if all classes are planted, the next class.

    >>> wrong_classes([3, 4], 6).tolist()
    [0, 1, 2, 5, 5, 5]
    """
    planted = set(classes)
    wrong = torch.arange(num_classes)
    for index in planted:
        following = [(index + step) % num_classes for step in range(1, num_classes)]
        wrong[index] = next((other for other in following if other not in planted), following[0])
    return wrong
