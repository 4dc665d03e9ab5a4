"""SRRL, CID and SFTN in a host with yacs configs: their nodes, rules and builders."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TypeVar

from torch import nn
from yacs.config import CfgNode

from tllm_plugin.core.errors import ConfigError, unknown_name
from tllm_plugin.hosts.config_checks import Rule, at_least, more_than
from tllm_plugin.hosts.switch import is_on
from tllm_plugin.methods import CID, SFTN, SRRL, Branch, find_map
from tllm_plugin.models import FeatureNet, Tail, create_model, head, head_name, is_model, map_shapes, model_names

# Of CIFAR, Tiny ImageNet and ImageNet. Some networks of the hosts take images of one size only.
_IMAGE_SIZES = (32, 64, 224)
_Answer = TypeVar("_Answer")


def ported_nodes() -> dict[str, CfgNode]:
    """Return the nodes with their defaults, which are those of the methods' papers for CIFAR-100."""
    srrl = CfgNode()
    srrl.LOSS = CfgNode({"CE_WEIGHT": 1.0, "FEAT_WEIGHT": 1.0, "REGRESSION_WEIGHT": 1.0})
    cid = CfgNode({"TEMPERATURE": 4.0, "WARMUP_EPOCHS": 20})
    cid.LOSS = CfgNode({"KD_WEIGHT": 1.0, "SAMPLE_WEIGHT": 10.0, "CLASS_WEIGHT": 1.0})
    sftn = CfgNode({"TEMPERATURE": 1.0})
    sftn.LOSS = CfgNode({"CE_WEIGHT": 1.0, "KL_WEIGHT": 3.0, "BRANCH_CE_WEIGHT": 1.0})
    return {"SRRL": srrl, "CID": cid, "SFTN": sftn}


def ported_rules() -> dict[str, Rule]:
    """Return the rules for the values of the nodes."""
    weights = {f"{name}.LOSS.{key}": at_least(0) for name, node in ported_nodes().items() for key in node.LOSS}
    return {
        **weights,
        "CID.TEMPERATURE": more_than(0),
        "CID.WARMUP_EPOCHS": at_least(1),
        "SFTN.TEMPERATURE": more_than(0),
    }


def check_sftn(cfg: CfgNode) -> list[str]:
    """Return the problems of a config as far as it is of SFTN's teacher stage, which has no teacher to take away."""
    problems = []
    if cfg.DISTILLER.TYPE == "SFTN" and is_on(cfg) and cfg.TLLM.DETECTOR.TYPE != "none":
        problems.append(
            "Expected `TLLM.DETECTOR.TYPE` to be none for DISTILLER.TYPE SFTN, which trains a teacher, but got "
            f"{cfg.TLLM.DETECTOR.TYPE!r}"
        )
    if cfg.DISTILLER.TYPE == "SFTN" and not is_model(cfg.DISTILLER.STUDENT):
        problems.append(unknown_name("DISTILLER.STUDENT", cfg.DISTILLER.STUDENT, model_names()) + " for SFTN")
    return problems


def build_srrl(student: nn.Module, teacher: nn.Module, cfg: CfgNode) -> SRRL:
    """Make `SRRL` from the config node of that name."""
    loss = cfg.SRRL.LOSS
    if isinstance(student, FeatureNet):
        student_map, channels = "pooled_map", head(student).in_features
    else:
        student_map, channels = _for_any_size(partial(find_map, student))
    return SRRL(
        student,
        teacher,
        student_channels=channels,
        teacher_dim=head(teacher).in_features,
        teacher_head=head_name(teacher),
        student_map=student_map,
        ce_weight=loss.CE_WEIGHT,
        feature_weight=loss.FEAT_WEIGHT,
        regression_weight=loss.REGRESSION_WEIGHT,
    )


def build_cid(student: nn.Module, teacher: nn.Module, cfg: CfgNode) -> CID:
    """Make `CID` from the config node of that name."""
    loss = cfg.CID.LOSS
    return CID(
        student,
        teacher,
        num_classes=head(student).out_features,
        student_dim=head(student).in_features,
        teacher_dim=head(teacher).in_features,
        temperature=cfg.CID.TEMPERATURE,
        warmup_epochs=cfg.CID.WARMUP_EPOCHS,
        kd_weight=loss.KD_WEIGHT,
        sample_weight=loss.SAMPLE_WEIGHT,
        class_weight=loss.CLASS_WEIGHT,
    )


def build_sftn(student: nn.Module, teacher: nn.Module, cfg: CfgNode) -> SFTN:
    """Make `SFTN` from the config node of that name.

    Args:
        student: The host's network named DISTILLER.STUDENT; asked for the shapes of its maps only. The branches are
            made of TLLM's own network of that name.
        teacher: The network to train.
        cfg: The host's config.

    Raises:
        ConfigError: TLLM has no such student, or the two have fewer than two stages in common.
    """
    loss = cfg.SFTN.LOSS
    return SFTN(
        teacher,
        make_branches(student, teacher, cfg.DISTILLER.STUDENT),
        temperature=cfg.SFTN.TEMPERATURE,
        ce_weight=loss.CE_WEIGHT,
        kl_weight=loss.KL_WEIGHT,
        branch_ce_weight=loss.BRANCH_CE_WEIGHT,
    )


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
