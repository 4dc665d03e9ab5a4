"""Describe a session's run in the sections of a config that the analysis reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml
from torch import nn
from yacs.config import CfgNode

from tllm_plugin.core.contract import teacher_of
from tllm_plugin.core.options import WithOptions

#: Section of a run's config that no host has.
SECTION = "SESSION"


def describe(distiller: nn.Module, node: CfgNode, epochs: int) -> str:
    """Return the config of a session's run as YAML, in the sections that the analysis reads.

    Args:
        distiller: The inner distiller. The options that it declares are recorded.
        node: The `TLLM` node.
        epochs: Epochs of the run.
    """
    student, teacher = distiller.get_submodule("student"), teacher_of(distiller)
    kind = "NONE" if teacher is None else type(distiller).__name__
    networks = {"STUDENT": student} if teacher is None else {"STUDENT": student, "TEACHER": teacher}
    content: dict[str, Any] = {
        "DISTILLER": {"TYPE": kind, **{name: type(network).__name__ for name, network in networks.items()}},
        "SOLVER": {"EPOCHS": epochs},
        "TLLM": _plain(node),
        SECTION: {"DISTILLER": type(distiller).__qualname__}
        | {f"{name}_PARAMETERS": sum(p.numel() for p in network.parameters()) for name, network in networks.items()},
    }
    if isinstance(distiller, WithOptions) and distiller.options:
        content[kind] = {option.name.upper(): getattr(distiller, option.name) for option in distiller.options}
    return yaml.safe_dump(content, sort_keys=False)


def _plain(node: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: _plain(value) if isinstance(value, Mapping) else list(value) if isinstance(value, tuple) else value
        for key, value in node.items()
    }
