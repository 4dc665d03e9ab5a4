"""Create the methods of `METHODS` (SRRL, CID, SFTN and users' own) for the networks of a host."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache, partial
from typing import Any, TypeVar

from torch import nn
from yacs.config import CfgNode

from tllm_plugin.core.errors import ConfigError, unknown_name
from tllm_plugin.hosts.options import arguments, check_options, table
from tllm_plugin.hosts.switch import is_on
from tllm_plugin.methods import METHODS, SFTN, Branch, find_map
from tllm_plugin.models import FeatureNet, Tail, create_model, head, head_name, is_model, map_shapes, model_names

# Image sizes of CIFAR, Tiny ImageNet and ImageNet; some networks accept one size only.
_IMAGE_SIZES = (32, 64, 224)
_Answer = TypeVar("_Answer")


def check_methods(cfg: CfgNode) -> list[str]:
    """Return a sentence for every option of a method with an invalid value."""
    return check_options(cfg, {key: item for key, item in table().items() if key.partition(".")[0] in METHODS})


def check_sftn(cfg: CfgNode) -> list[str]:
    """Return the problems of a config of SFTN's teacher stage, which has no teacher and hence no detection."""
    problems = []
    if cfg.DISTILLER.TYPE == "SFTN" and is_on(cfg) and cfg.TLLM.DETECTOR.TYPE != "none":
        problems.append(
            "Expected `TLLM.DETECTOR.TYPE` to be none for DISTILLER.TYPE SFTN, which trains a teacher, but got "
            f"{cfg.TLLM.DETECTOR.TYPE!r}"
        )
    if cfg.DISTILLER.TYPE == "SFTN" and not is_model(cfg.DISTILLER.STUDENT):
        problems.append(unknown_name("DISTILLER.STUDENT", cfg.DISTILLER.STUDENT, model_names()))
    return problems


@cache
def builder(name: str) -> Callable[..., nn.Module]:
    """Return the factory `(student, teacher, cfg) -> method` that a host with yacs configs registers for a method."""
    return partial(make, name, METHODS[name])


def make(name: str, kind: Any, student: nn.Module, teacher: nn.Module, cfg: CfgNode) -> Any:
    """Create a method for two networks.

    Args:
        name: Name of its config node; missing keys have their defaults.
        kind: Class of the method. Constructor arguments that are not options are measured on the networks
            (`student_dim`, ...).
        student: Student of the host. SFTN only measures the shapes of its maps; its branches are made of TLLM's
            network with the name DISTILLER.STUDENT.
        teacher: Teacher of the host; for SFTN the network to train.
        cfg: Config of the host.

    Raises:
        ConfigError: An option is out of range or the networks do not fit.
    """
    options = arguments(kind.options, cfg.get(name, CfgNode()))
    if kind is SFTN:
        return SFTN(teacher, make_branches(student, teacher, cfg.DISTILLER.STUDENT), **options)
    wanted = inspect.signature(kind).parameters
    told = {fact: tell(student, teacher) for fact, tell in _FACTS.items() if fact in wanted}
    return kind(student, teacher, **told, **options)


def _pooled_map(student: nn.Module) -> tuple[str, int]:
    """Return the name of the student's feature map that its head pools, and its number of channels."""
    if isinstance(student, FeatureNet):
        return "pooled_map", head(student).in_features
    return _for_any_size(partial(find_map, student))


#: What a method can ask to be told of the networks, as arguments of its constructor.
_FACTS: dict[str, Callable[[nn.Module, nn.Module], Any]] = {
    "num_classes": lambda student, teacher: head(student).out_features,
    "student_dim": lambda student, teacher: head(student).in_features,
    "teacher_dim": lambda student, teacher: head(teacher).in_features,
    "teacher_head": lambda student, teacher: head_name(teacher),
    "student_map": lambda student, teacher: _pooled_map(student)[0],
    "student_channels": lambda student, teacher: _pooled_map(student)[1],
}


def make_branches(student: nn.Module, teacher: nn.Module, student_name: str) -> list[Branch]:
    """Return one branch per stage of the teacher, in order, as long as one stage of the student is left.

    Stages are paired from the last one backwards, so that networks of different depth can be combined.
    """
    teacher_shapes, student_shapes = _map_shapes(teacher, student)
    num_classes = head(teacher).out_features
    branches = []
    # The tail of one of our networks per branch; the first entry of its `feats` is the stem.
    source = _own_network(student_name, num_classes)
    common = min(len(teacher_shapes), len(source.stage_channels)) - 1
    for remaining in range(common - 1, 0, -1):
        place = -1 - remaining
        branches.append(
            Branch(
                place,
                Tail(_own_network(student_name, num_classes), remaining),
                teacher_channels=teacher_shapes[place][0],
                student_channels=student_shapes[place][0],
                teacher_size=teacher_shapes[place][1],
                student_size=student_shapes[place][1],
            )
        )
    return branches


def _map_shapes(*networks: nn.Module) -> list[list[tuple[int, int]]]:
    """Return (channels, height) of the networks' maps for the smallest common image size that all accept."""
    return _for_any_size(lambda size: [map_shapes(network, size) for network in networks])


def _for_any_size(ask: Callable[[int], _Answer]) -> _Answer:
    """Return the result for the smallest common image size for which PyTorch raises no error."""
    for size in _IMAGE_SIZES:
        try:
            return ask(size)
        except RuntimeError as error:
            refusal = error
    sizes = ", ".join(map(str, _IMAGE_SIZES))
    raise ConfigError(f"Expected networks for images of {sizes} pixels, but {refusal}") from refusal


def _own_network(name: str, num_classes: int) -> FeatureNet:
    network = create_model(name, num_classes)
    if not isinstance(network, FeatureNet):
        raise ConfigError(
            f"Expected `DISTILLER.STUDENT` to be a model with stages for SFTN, but got {name!r}, a "
            f"{type(network).__name__}"
        )
    return network
