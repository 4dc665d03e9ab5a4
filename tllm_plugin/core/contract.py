"""What the wrapper asks of a distiller and of a call, checked once and without computing anything of its own."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from tllm_plugin.core.arguments import is_integer
from tllm_plugin.core.errors import ConfigError

logger = logging.getLogger(__name__)

Losses = dict[str, Tensor]
#: What a single loss is called among ours.
ONE_LOSS = "loss_ce"
_LABELS = ("label", "labels", "targets", "gt", "y")
_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def check_networks(distiller: nn.Module) -> None:
    """Check that a distiller has a student and, if it has a teacher, that this is a module.

    Raises:
        ConfigError: It has not.
    """
    kind = type(distiller).__name__
    if not isinstance(distiller, nn.Module):
        raise ConfigError(f"Expected the distiller to be a torch.nn.Module, but got {kind}")
    student, teacher = getattr(distiller, "student", None), getattr(distiller, "teacher", None)
    if not isinstance(student, nn.Module):
        has = ", ".join(name for name, _ in distiller.named_children()) or "no modules"
        raise ConfigError(
            f"Expected the distiller to have an attribute `student`, a torch.nn.Module, but {kind} has {has}"
        )
    if teacher is not None and not isinstance(teacher, nn.Module):
        raise ConfigError(
            f"Expected `teacher` of the distiller to be a torch.nn.Module (several: nn.ModuleList), but got "
            f"{type(teacher).__name__}"
        )


def teacher_of(distiller: nn.Module) -> nn.Module | None:
    """Return a distiller's teacher; None where it has none, or an `nn.Identity` in its place."""
    teacher: nn.Module | None = getattr(distiller, "teacher", None)
    return None if isinstance(teacher, nn.Identity) else teacher


def by_name(distiller: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keyword arguments of a call that names some by position: `(image, target)`, or as `forward` has it.

    Raises:
        ConfigError: There are more of them than names, or one is given twice.
    """
    parameters = inspect.signature(distiller.forward).parameters.values()
    names = [parameter.name for parameter in parameters if parameter.kind in _POSITIONAL] or ["image", "target"]
    twice = [name for name in names[: len(args)] if name in kwargs]
    if len(args) > len(names) or twice:
        raise ConfigError(
            f"Expected a call by position to give {', '.join(names)}, but got {len(args)} values"
            + (f" and {', '.join(twice)} by name, too" if twice else "")
        )
    return {**dict(zip(names, args, strict=False)), **kwargs}


def first_images(kwargs: Mapping[str, Any]) -> tuple[str, Any]:
    """Return the keyword whose images the returned logits belong to, `image` or the first such, and its value."""
    names = ["image", *(name for name in kwargs if name.startswith("image"))]
    return next((name, kwargs[name]) for name in names if name in kwargs)


def other_names(kwargs: Mapping[str, Any]) -> dict[str, str]:
    """Return what a training call calls its labels and views, by the names of ours, where it has not these names.

    Labels are what is called `label`, `labels` or the like; without a keyword that begins with `image`, all float
    tensors of three dimensions or more are views.
    """
    found: dict[str, str] = {}
    if "target" not in kwargs:
        labels = [name for name in _LABELS if isinstance(kwargs.get(name), Tensor)]
        found = {"target": labels[0]} if labels else {}
    if not any(name.startswith("image") for name in kwargs):
        views = [
            name
            for name, value in kwargs.items()
            if isinstance(value, Tensor) and value.is_floating_point() and value.dim() > 2
        ]
        found |= {f"image_{name}" if len(views) > 1 else "image": name for name in views}
    return found


def check_call(
    distiller: nn.Module, kwargs: Mapping[str, Any], num_classes: int, spelled: Mapping[str, str] | None = None
) -> None:
    """Check the keywords of a training call.

    Args:
        distiller: The distiller.
        kwargs: Under our names.
        num_classes: C.
        spelled: See `other_names`.

    Raises:
        ConfigError: They are not what `forward(image=, target=)` takes, or labels are no class indices.
    """
    given = ", ".join(kwargs) or "nothing"
    image = next((value for name, value in kwargs.items() if name.startswith("image")), None)
    if "target" not in kwargs or not isinstance(image, Tensor):
        raise ConfigError(f"Expected a training call to give tensors `image` and `target`, but got {given}")
    try:
        inspect.signature(distiller.forward).bind(**{(spelled or {}).get(name, name): kwargs[name] for name in kwargs})
    except TypeError as error:
        raise ConfigError(
            f"Expected `forward` of {type(distiller).__name__} to take {given} as keywords, but its signature is "
            f"{inspect.signature(distiller.forward)}: {error}"
        ) from None
    check_target(kwargs["target"], image.shape[0] if image.dim() else None, num_classes)


def check_target(target: Any, rows: int | None, num_classes: int) -> None:
    """Check labels: (rows,) class indices of an integer type, in [0, num_classes).

    Raises:
        ConfigError: They are not.
    """
    wanted = f"Expected `target` to be class indices, (n,) int64 for (n, ...) images with n = {rows}"
    if not isinstance(target, Tensor):
        raise ConfigError(f"{wanted}, but got {type(target).__name__}")
    if not is_integer(target) or target.shape != (rows,):
        raise ConfigError(f"{wanted}, but got {target.dtype} of shape {tuple(target.shape)}")
    if target.numel():
        for value in (int(target.min()), int(target.max())):
            if not 0 <= value < num_classes:
                raise ConfigError(f"Expected `target` to be in [0, {num_classes}), but got {value}")


def check_result(result: Any, rows: int, num_classes: int, *, trains: bool) -> None:
    """Check what a training call of the distiller returned: `(logits (rows, at least C), losses)`.

    A network may have more outputs than there are classes, as the hosts' networks have for a part of a data set.

    Args:
        result: Of the call.
        rows: That the distiller saw.
        num_classes: C.
        trains: Whether a gradient is wanted.

    Raises:
        ConfigError: It is something else.
    """
    if not isinstance(result, (tuple, list)) or len(result) != 2:
        got = f"{len(result)} values" if isinstance(result, (tuple, list)) else type(result).__name__
        raise ConfigError(f"Expected `forward` of the distiller to return (logits, losses) in training, but got {got}")
    logits, losses = result
    shape = f"{logits.dtype} of shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
    fits = isinstance(logits, Tensor) and logits.dim() == 2 and len(logits) == rows and logits.shape[1] >= num_classes
    if not fits or not logits.is_floating_point():
        raise ConfigError(
            f"Expected the distiller's logits to be floats of shape ({rows}, {num_classes}), but got {shape}"
        )
    if not isinstance(losses, (Tensor, Mapping)) or (isinstance(losses, Mapping) and not losses):
        raise ConfigError(
            "Expected the distiller's losses to be a tensor or a dictionary of tensors, but got "
            + ("an empty one" if isinstance(losses, Mapping) else type(losses).__name__)
        )
    for name, loss in named_losses(losses).items():
        called = f"loss {name!r}" if isinstance(losses, Mapping) else "loss"
        if not isinstance(loss, Tensor):
            raise ConfigError(f"Expected the distiller's {called} to be a tensor, but got {type(loss).__name__}")
        if not loss.is_floating_point() or loss.numel() != 1:
            raise ConfigError(
                f"Expected the distiller's {called} to be a mean over rows, a float of shape () or (1,), but got "
                f"{loss.dtype} of shape {tuple(loss.shape)}"
            )
    if trains and not any(loss.requires_grad for loss in named_losses(losses).values()):
        raise ConfigError("Expected the distiller's losses to depend on what is trained, but none requires a gradient")


def student_not_called(distiller: nn.Module) -> ConfigError:
    """Return the error for a distiller that does without its student."""
    return ConfigError(
        f"Expected `forward` of {type(distiller).__name__} to call `student` (as a whole, not its `forward` or parts "
        "of it), but it did not"
    )


def image_of_student(
    student: nn.Module, kwargs: Mapping[str, Any], given: Iterable[Tensor], after_others: bool
) -> str | None:
    """Return the keyword that the student was given; None if it was given something that was made of it.

    Where no row has a teacher, the distiller is called up to its student's call. If it calls another network before
    that, the student has to be called by itself.

    Args:
        student: The student.
        kwargs: Of the call.
        given: Tensors that the student was given.
        after_others: Whether a teacher, or a copy, was called before.

    Raises:
        ConfigError: The student cannot be called by itself.
    """
    first = next(iter(given), None)
    name = next((name for name, value in kwargs.items() if name.startswith("image") and value is first), None)
    if not after_others:
        return name
    alone = "Expected `forward` to call `student` before `teacher` and before copies of either, or "
    if name is None:
        raise ConfigError(f"{alone}to give it the images as they are, but it gives it something made of them")
    try:
        inspect.signature(student.forward).bind(first)
    except TypeError as error:
        raise ConfigError(f"{alone}`student(image)` to be possible, but {error}") from None
    return name


def named_losses(losses: Tensor | Mapping[str, Tensor]) -> Losses:
    """Return losses by name; a single one is called `loss_ce`."""
    return {ONE_LOSS: losses} if isinstance(losses, Tensor) else dict(losses)


def trained_parameters(distiller: nn.Module) -> list[nn.Parameter]:
    """Return the parameters that require gradients, each once, without those that only the teacher has."""
    teacher = getattr(distiller, "teacher", None)
    own = {id(parameter) for parameter in distiller.student.parameters()}  # type: ignore[operator, union-attr]
    frozen = set() if teacher is None else {id(parameter) for parameter in teacher.parameters()} - own
    return [
        parameter for parameter in distiller.parameters() if parameter.requires_grad and id(parameter) not in frozen
    ]


def extra_parameters(learnable: Iterable[nn.Parameter], student: nn.Module) -> int:
    """Return how many of the learnable numbers are not the student's."""
    own = {id(parameter) for parameter in student.parameters()}
    return sum(parameter.numel() for parameter in {id(p): p for p in learnable}.values() if id(parameter) not in own)


def tell_of_training_teacher(distiller: nn.Module) -> None:
    """Warn of a teacher in training mode that nobody seems to have put there on purpose."""
    teacher = getattr(distiller, "teacher", None)
    if teacher is None or not teacher.training or type(distiller).train is not nn.Module.train:
        return
    moving = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)
    if any(isinstance(module, moving) for module in teacher.modules()):
        logger.warning(
            "the teacher is in training mode: its BatchNorm statistics move with the batches that it sees, and dropout "
            "acts on it; where that is not meant, override `train` of %s so that it calls `self.teacher.eval()`",
            type(distiller).__name__,
        )
