"""Making methods of `METHODS` for a host's networks, SRRL, CID and SFTN among them."""

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

# Of CIFAR, Tiny ImageNet and ImageNet. Some networks of the hosts take images of one size only.
_IMAGE_SIZES = (32, 64, 224)
_Answer = TypeVar("_Answer")


def check_methods(cfg: CfgNode) -> list[str]:
    """Return a sentence for every option of a method that a config has with a value that is refused."""
    return check_options(cfg, {key: item for key, item in table().items() if key.partition(".")[0] in METHODS})


def check_sftn(cfg: CfgNode) -> list[str]:
    """Return the problems of a config as far as it is of SFTN's teacher stage, which has no teacher to take away."""
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
    """Return what a host with yacs configs registers for a method of `METHODS`: (student, teacher, cfg) -> method."""
    return partial(make, name, METHODS[name])


def make(name: str, kind: Any, student: nn.Module, teacher: nn.Module, cfg: CfgNode) -> Any:
    """Make a method for two networks.

    Args:
        name: Of its node in the config; keys that are missing there have their defaults.
        kind: Its class. What its constructor names besides options is told of the networks (`student_dim`, ...).
        student: The host's network. For SFTN it is asked for the shapes of its maps only, and the branches are made of
            TLLM's own network of the name DISTILLER.STUDENT.
        teacher: The same; for SFTN the network to train.
        cfg: The host's config.

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
    """Return which of a student's features is the map that its head pools, and the number of its channels."""
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
    """Return a branch for every stage of the teacher that leaves the student at least one stage, first stage first.

    Stages are paired from the last one backwards, so that networks of different depth go together.
    """
    teacher_shapes, student_shapes = _map_shapes(teacher, student)
    num_classes = head(teacher).out_features
    branches = []
    # A network of ours per branch, of which its tail is kept. Its first entry of `feats` is the stem.
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
    """Return channels and height of the networks' maps, for the smallest usual image that all of them take."""
    return _for_any_size(lambda size: [map_shapes(network, size) for network in networks])


def _for_any_size(ask: Callable[[int], _Answer]) -> _Answer:
    """Return what is answered for the smallest usual image size that does not make PyTorch fail."""
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
