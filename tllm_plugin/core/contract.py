"""Check what the wrapper requires of a distiller and its calls, once and without extra computation."""

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
#: Name under which the wrapper keeps a single loss.
ONE_LOSS = "loss_ce"
_LABELS = ("label", "labels", "targets", "gt", "y")
_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def check_networks(distiller: nn.Module) -> None:
    """Check that a distiller has a student, and that its teacher, if any, is a module.

    Raises:
        ConfigError: The student is missing, or student or teacher is not a module.
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
    """Return a distiller's teacher, or None without one; an `nn.Identity` counts as none."""
    teacher: nn.Module | None = getattr(distiller, "teacher", None)
    return None if isinstance(teacher, nn.Identity) else teacher


def predictor_of(distiller: nn.Module) -> nn.Module | None:
    """Return the module that makes the logits from the student's output; None if the student makes them itself."""
    predictor: nn.Module | None = getattr(distiller, "predictor", None)
    return predictor


def by_name(distiller: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Convert positional arguments of a call to keywords: `(image, target)`, or the parameter names of `forward`.

    Raises:
        ConfigError: There are more positional arguments than names, or an argument is passed twice.
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
    """Return name and value of the keyword to whose images the logits belong: `image`, or the first that begins so."""
    names = ["image", *(name for name in kwargs if name.startswith("image"))]
    return next((name, kwargs[name]) for name in names if name in kwargs)


def other_names(kwargs: Mapping[str, Any]) -> dict[str, str]:
    """Map our keyword names to those of a training call that names its labels or views differently.

    A keyword `label`, `labels` or similar holds the labels. Without a keyword that begins with `image`, all float
    tensors of three or more dimensions are views.
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
        kwargs: Keywords of the call, under our names.
        num_classes: C.
        spelled: Result of `other_names`.

    Raises:
        ConfigError: `forward(image=, target=)` does not accept the keywords, or the labels are not class indices.
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


def refuse_soft_labels(target: Any) -> None:
    """Refuse labels with several numbers per row, as Mixup and CutMix make them; looks at type and shape only.

    Raises:
        ConfigError: `target` is a float tensor of two or more dimensions.
    """
    if isinstance(target, Tensor) and target.is_floating_point() and target.dim() > 1:
        raise ConfigError(
            "Expected `target` to be class indices, (n,) int64, but got soft labels of shape "
            f"{tuple(target.shape)}: a row that mixes classes (Mixup, CutMix) belongs to no class that could lose its "
            "teacher; give class indices as `target` and the soft labels under another keyword"
        )


def check_target(target: Any, rows: int | None, num_classes: int) -> None:
    """Check labels: (rows,) class indices of an integer type, in [0, num_classes).

    Raises:
        ConfigError: Shape, type or range of the labels is wrong.
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
    """Check the result of a training call of the distiller: `(logits (rows, at least C), losses)`.

    A network may have more outputs than classes, as the hosts' networks have for a subset of a data set.

    Args:
        result: Result of the call.
        rows: Number of rows that the distiller saw.
        num_classes: C.
        trains: Whether the losses must require gradients.

    Raises:
        ConfigError: The result has another form.
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
        per_row = loss.dim() > 0 and len(loss) == loss.numel() == rows
        if not loss.is_floating_point() or not (loss.numel() == 1 or per_row):
            raise ConfigError(
                f"Expected the distiller's {called} to be a mean over rows, a float of shape () or (1,), or one value "
                f"per row, of shape ({rows},) or ({rows}, 1), but got {loss.dtype} of shape {tuple(loss.shape)}"
            )
    if trains and not any(loss.requires_grad for loss in named_losses(losses).values()):
        raise ConfigError("Expected the distiller's losses to depend on parameters, but none requires a gradient")


def student_not_called(distiller: nn.Module) -> ConfigError:
    """Return the error for a distiller that does not call its student."""
    return ConfigError(
        f"Expected `forward` of {type(distiller).__name__} to call `student` (as a whole, not its `forward` or parts "
        "of it), but it did not"
    )


def image_of_student(
    student: nn.Module, kwargs: Mapping[str, Any], given: Iterable[Tensor], after_others: bool
) -> str | None:
    """Return the keyword whose images the student received unchanged; None if the distiller changed them first.

    In a batch in which no row has a teacher, the distiller runs only up to the call of its student. If it calls another
    network before that, the wrapper has to call the student directly.

    Args:
        student: The student.
        kwargs: Keywords of the call.
        given: Tensors that the student received.
        after_others: Whether a teacher or a copy of a network was called before.

    Raises:
        ConfigError: The student cannot be called directly.
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
    """Return losses by name; a single tensor is named `loss_ce`."""
    return {ONE_LOSS: losses} if isinstance(losses, Tensor) else dict(losses)


def trained_parameters(distiller: nn.Module) -> list[nn.Parameter]:
    """Return all parameters that require gradients, without duplicates and without the teacher's own."""
    teacher = getattr(distiller, "teacher", None)
    own = {id(parameter) for parameter in distiller.student.parameters()}  # type: ignore[operator, union-attr]
    frozen = set() if teacher is None else {id(parameter) for parameter in teacher.parameters()} - own
    return [
        parameter for parameter in distiller.parameters() if parameter.requires_grad and id(parameter) not in frozen
    ]


def extra_parameters(learnable: Iterable[nn.Parameter], student: nn.Module) -> int:
    """Return the number of learnable parameters (scalars) outside the student."""
    own = {id(parameter) for parameter in student.parameters()}
    return sum(parameter.numel() for parameter in {id(p): p for p in learnable}.values() if id(parameter) not in own)


def tell_of_training_teacher(distiller: nn.Module) -> None:
    """Warn if the teacher is in training mode without the distiller having chosen so."""
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
