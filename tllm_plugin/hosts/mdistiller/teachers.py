"""Provide the teacher's weights to mdistiller's script: those of a checkpoint, or initial weights for SFTN."""

from __future__ import annotations

import atexit
import importlib
import shutil
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn
from yacs.config import CfgNode

from tllm_plugin.core.errors import ConfigError, unknown_name
from tllm_plugin.data.cub200 import read_cub200
from tllm_plugin.hosts.mdistiller import cub200
from tllm_plugin.hosts.mdistiller.registration import model_tables
from tllm_plugin.hosts.weights import find_weights, load_weights, shapes_of
from tllm_plugin.runs.atomic import save_torch
from tllm_plugin.runs.weights_file import read_weights

# Numbers of classes, as in the host's `get_dataset`.
_CLASSES = {"cifar100": 100, "tiny_imagenet": 200, "cub200": 200}


def choose_teacher(cfg: CfgNode) -> None:
    """Set in the host's table of models which weights its script loads for DISTILLER.TEACHER.

    The script loads a teacher for every type but NONE. `DISTILLER.TEACHER_CHECKPOINT` replaces the file that it
    expects, or torchvision's weights. For the type SFTN without a checkpoint, the teacher is still to be trained, and
    the script receives initial weights.

    Raises:
        ConfigError: The host has no such model for the data set.
        FileFormatError: The checkpoint is missing or damaged; the script itself does not check it.
    """
    checkpoint = cfg.DISTILLER.TEACHER_CHECKPOINT
    untrained = cfg.DISTILLER.TYPE == "SFTN" and not checkpoint
    if cfg.DISTILLER.TYPE == "NONE" or not (checkpoint or untrained):
        return
    if checkpoint:
        read_weights(checkpoint)  # Damage is found before the script reads its data.
    known = models_for(cfg.DATASET.TYPE)
    name = cfg.DISTILLER.TEACHER
    if name not in known:
        raise ConfigError(unknown_name("DISTILLER.TEACHER", name, known))
    if callable(known[name]):
        known[name] = partial(_large_network, known[name], checkpoint)
        return
    builder = known[name][0]
    if not checkpoint:
        weights = _as_file(builder(num_classes=_CLASSES[cfg.DATASET.TYPE]).state_dict())
    elif cfg.DATASET.TYPE in _CLASSES:
        weights = _as_script_reads(builder(num_classes=_num_classes(cfg)), checkpoint)
    else:
        weights = checkpoint
    known[name] = (builder, weights)
    # Some forks keep paths of weights in separate tables.
    for table in model_tables(importlib.import_module("mdistiller.models"), "_weights_dict").values():
        table[name] = weights


def _num_classes(cfg: CfgNode) -> int:
    if cfg.DATASET.TYPE == cub200.TYPE:  # Ours, so that a part of it can be used.
        return len(read_cub200(cfg.DATASET.PATH).class_names)
    return _CLASSES[cfg.DATASET.TYPE]


def models_for(data: str) -> dict[str, Any]:
    """Return the host's table of models for a data set: the table of that name, that for CIFAR, or the first."""
    tables = model_tables(importlib.import_module("mdistiller.models"))
    wanted = (f"{data}_model_dict", "cifar_model_dict", "cifar100_model_dict", *tables)
    return next((tables[name] for name in wanted if name in tables), {})


def _large_network(builder: Callable[..., nn.Module], checkpoint: str, pretrained: bool = False) -> nn.Module:
    """Build an ImageNet network; with `pretrained`, load the checkpoint if there is one."""
    network = builder(pretrained=False)
    if pretrained and checkpoint:
        return load_weights(network, checkpoint)
    return network


def _as_script_reads(network: nn.Module, checkpoint: str) -> str:
    """Return a file that holds the weights under the key `model`: the checkpoint itself, if it does."""
    found = find_weights(shapes_of(network), checkpoint, type(network).__name__)
    return checkpoint if found.place == "model" or found.is_context else _as_file(found.state)


def _as_file(state: Mapping[str, Any]) -> str:
    folder = tempfile.mkdtemp(prefix="tllm-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    path = Path(folder) / "weights.pth"
    save_torch(path, {"model": dict(state)})
    return str(path)
