"""Create models by name: single architectures, and families whose names contain numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from torch import nn

from tllm_plugin.core.errors import ConfigError, unknown_name
from tllm_plugin.core.registry import Registry


class ModelBuilder(Protocol):
    """Registered callable that builds a newly initialised model."""

    def __call__(self, *, num_classes: int, in_channels: int = 3) -> nn.Module: ...


MODELS: Registry[ModelBuilder] = Registry("model")

# Keys are the displayed names, with <...> for numbers. A value returns None for a name outside the family, and raises
# ConfigError for a name inside it with invalid numbers.
FAMILIES: Registry[Callable[[str], ModelBuilder | None]] = Registry("model family")


def create_model(name: str, num_classes: int, in_channels: int = 3) -> nn.Module:
    """Return a newly initialised model.

    Args:
        name: Name as listed by `model_names`.
        num_classes: Number of logits per image, at least 1.
        in_channels: Channels of the images, at least 1.

    Raises:
        ConfigError: The name is unknown (the known ones are listed), or a number is out of range.

    >>> sum(p.numel() for p in create_model("resnet8", num_classes=100).parameters())
    83892
    """
    for key, value in (("num_classes", num_classes), ("in_channels", in_channels)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ConfigError(f"Expected `{key}` to be an integer of at least 1, but got {value!r}")
    builder = _find(name)
    if builder is None:
        raise ConfigError(unknown_name("model", name, model_names()))
    return builder(num_classes=num_classes, in_channels=in_channels)


def model_builder(name: str) -> Callable[[int, int], nn.Module]:
    """Return a function that builds the model of a name for `(num_classes, in_channels)`."""
    return lambda num_classes, in_channels: create_model(name, num_classes=num_classes, in_channels=in_channels)


def model_names() -> list[str]:
    """Return the known names, sorted; a name with <...> is a family, such as wrn_<depth>_<width>."""
    return sorted([*MODELS, *FAMILIES])


def is_model(name: object) -> bool:
    """Return whether `create_model` accepts this name."""
    try:
        return _find(name) is not None
    except ConfigError:
        return False


def model_problem(name: object) -> str | None:
    """Return what a name should be for `create_model` to take it, as the end of a sentence; None if it does."""
    try:
        if _find(name) is not None:
            return None
    except ConfigError as error:
        if ":" in str(name):  # The library has too many networks to list them.
            return f"a network that can be built ({error})"
    return f"one of {', '.join(model_names())}"


def _find(name: object) -> ModelBuilder | None:
    if not isinstance(name, str):
        return None
    if name in MODELS:
        return MODELS[name]
    found = (resolve(name) for resolve in FAMILIES.values())
    return next((builder for builder in found if builder is not None), None)
