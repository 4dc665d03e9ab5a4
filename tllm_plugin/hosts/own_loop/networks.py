"""Try the networks of a session on two images of the hold-out, before anything is trained."""

from __future__ import annotations

from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from tllm_plugin.core.contract import predictor_of, teacher_of
from tllm_plugin.core.errors import ConfigError
from tllm_plugin.core.outputs import logits_of, possible_logits


def device_of(network: nn.Module) -> torch.device:
    """Return the device of a network's first parameter or buffer; the CPU for one without."""
    first: Tensor | None = next(chain(network.parameters(), network.buffers()), None)
    return torch.device("cpu") if first is None else first.device


class Predicting(nn.Module):
    """Predict with a distiller in evaluation mode, for methods whose logits are not the student's own output.

    Args:
        distiller: `distiller(image=)` returns logits (n, C) in evaluation mode.
    """

    def __init__(self, distiller: nn.Module) -> None:
        super().__init__()
        self.distiller = distiller

    def forward(self, image: Tensor) -> Any:
        return self.distiller(image=image)


def check_networks(distiller: nn.Module, image: Tensor, num_classes: int) -> None:
    """Check that student and teacher predict the classes of the data set from its images.

    Args:
        distiller: Its `student` and its `teacher`, if any, are called in evaluation mode, without gradients.
        image: (b, ...) images.
        num_classes: C.

    Raises:
        ConfigError: A network does not take the images, does not return logits of C classes, or the two differ in
            their number of classes or their device.
    """
    student = distiller.get_submodule("student")
    predicts = student if predictor_of(distiller) is None else Predicting(distiller)
    classes = _classes_of("student", predicts, image, num_classes)
    if classes < num_classes:
        raise ConfigError(
            f"Expected the student to return logits of the {num_classes} classes of `train_set`, but got {classes}; "
            f"make it with {num_classes} outputs"
        )
    teacher = teacher_of(distiller)
    # Several teachers are the distiller's own affair.
    if teacher is None or isinstance(teacher, nn.ModuleList | nn.ModuleDict):
        return
    if device_of(teacher) != device_of(student):
        raise ConfigError(
            f"Expected student and teacher on one device, but got {device_of(student)} and {device_of(teacher)}; move "
            "both with `.to(device)`"
        )
    theirs = _classes_of("teacher", teacher, image, num_classes)
    if theirs != classes:
        raise ConfigError(
            f"Expected student and teacher to have as many classes, but got {classes} and {theirs}; replace the last "
            "layer of one of them, or take a teacher that was trained on these classes"
        )


def _classes_of(role: str, network: nn.Module, image: Tensor, num_classes: int) -> int:
    """Return the number of columns of a network's logits."""
    was_training = {module: module.training for module in network.modules()}
    network.eval()
    try:
        with torch.no_grad():
            output = network(image.to(device_of(network)))
            logits = logits_of(output)
    except (RuntimeError, ValueError, AssertionError, TypeError, IndexError) as error:
        if isinstance(error, ConfigError):
            raise ConfigError(f"Expected the {role} to return logits (n, C), but: {error}") from None
        shape = tuple(image.shape[1:])
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ConfigError(
            f"Expected the {role} to take the images of `train_set`, of shape {shape}, but it fails: {reason}; resize "
            f"or convert them in the transform, or take a {role} for this size"
        ) from None
    finally:
        for module, mode in was_training.items():
            module.training = mode
    if logits.dim() != 2 or len(logits) != len(image):
        raise ConfigError(
            f"Expected the {role} to return logits ({len(image)}, C) for {len(image)} images, but got shape "
            f"{tuple(logits.shape)}"
        )
    others = [other.shape[1] for other in possible_logits(output, len(image), num_classes) if other is not logits]
    if logits.shape[1] != num_classes and num_classes in others:
        raise ConfigError(
            f"Expected the {role} to return its logits first, or as an attribute `logits`, but the first tensor has "
            f"{logits.shape[1]} columns, and another one has {num_classes}, as many as there are classes"
        )
    return int(logits.shape[1])
