"""Which weights mdistiller's script finds for a teacher: those of a named checkpoint, or initial ones for SFTN."""

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

from tllm_plugin.core.errors import ConfigError, FileFormatError, unknown_name
from tllm_plugin.hosts.mdistiller.registration import model_tables
from tllm_plugin.runs.atomic import save_torch
from tllm_plugin.runs.finite import check_finite
from tllm_plugin.runs.reading import check_torch, load_torch

# As `get_dataset` has them.
_CLASSES = {"cifar100": 100, "tiny_imagenet": 200, "cub200": 200}


def choose_teacher(cfg: CfgNode) -> None:
    """Put into the host's table of models what its script is to load for DISTILLER.TEACHER.

    The script loads a teacher for every type but NONE. `DISTILLER.TEACHER_CHECKPOINT` takes the place of the file that
    it expects, or of torchvision's weights. For the type SFTN without one, whose teacher is yet to be trained, a
    network with its initial weights does.

    Raises:
        ConfigError: The host has no such model for the data set.
        FileFormatError: The checkpoint, which the script loads without looking, is missing or damaged.
    """
    checkpoint = cfg.DISTILLER.TEACHER_CHECKPOINT
    untrained = cfg.DISTILLER.TYPE == "SFTN" and not checkpoint
    if cfg.DISTILLER.TYPE == "NONE" or not (checkpoint or untrained):
        return
    if checkpoint:
        check_torch(checkpoint, "a network's checkpoint")
    known = models_for(cfg.DATASET.TYPE)
    name = cfg.DISTILLER.TEACHER
    if name not in known:
        raise ConfigError(unknown_name("DISTILLER.TEACHER", name, known))
    if callable(known[name]):
        known[name] = partial(_large_network, known[name], checkpoint)
        return
    builder = known[name][0]
    weights = checkpoint or _initial_weights(builder, _CLASSES[cfg.DATASET.TYPE])
    known[name] = (builder, weights)
    # Some have weights of other trainings in tables of their own.
    for table in model_tables(importlib.import_module("mdistiller.models"), "_weights_dict").values():
        table[name] = weights


def models_for(data: str) -> dict[str, Any]:
    """Return the host's table of models for a data set: of that name, of CIFAR's, or the first there is."""
    tables = model_tables(importlib.import_module("mdistiller.models"))
    wanted = (f"{data}_model_dict", "cifar_model_dict", "cifar100_model_dict", *tables)
    return next((tables[name] for name in wanted if name in tables), {})


def _large_network(builder: Callable[..., nn.Module], checkpoint: str, pretrained: bool = False) -> nn.Module:
    """Stand in for a builder of ImageNet networks: `pretrained` means the checkpoint, if there is one."""
    network = builder(pretrained=False)
    if pretrained and checkpoint:
        state = load_torch(checkpoint, "a network's checkpoint")
        if not isinstance(state, Mapping) or not isinstance(state.get("model"), Mapping):
            raise FileFormatError(f"Expected {checkpoint} to hold a state_dict under the key `model`, but it does not")
        check_finite(state["model"], checkpoint)
        try:
            network.load_state_dict(state["model"])
        except RuntimeError as error:
            cause = " ".join(str(error).split())[:300]
            raise FileFormatError(f"Expected {checkpoint} to fit {type(network).__name__}, but {cause}") from error
    return network


def _initial_weights(builder: Callable[..., nn.Module], num_classes: int) -> str:
    folder = tempfile.mkdtemp(prefix="tllm-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    path = Path(folder) / "initial_weights.pth"
    save_torch(path, {"model": builder(num_classes=num_classes).state_dict()})
    return str(path)
