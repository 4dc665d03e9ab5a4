"""What TLLM adds to mdistiller's registries."""

from __future__ import annotations

import importlib
import re
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn
from yacs.config import CfgNode

from tllm_plugin.core.errors import ConfigError
from tllm_plugin.hosts.adapter import Host, make_distiller_factory, make_trainer_factory
from tllm_plugin.hosts.loader_data import LoaderData
from tllm_plugin.hosts.mdistiller.cub200 import offer_cub200
from tllm_plugin.hosts.options import accept_confidence, as_node, table
from tllm_plugin.hosts.ported_methods import builder
from tllm_plugin.methods import METHODS
from tllm_plugin.models import create_model, load_pretrained

# Models of the paper's tables, and a teacher of CID's, that the host does not have, and those of CIFAR that it lacks
# for its other data sets.
_PHOTOGRAPH_MODELS = ("tv_resnet50", "tv_resnet18", "tv_mobilenet_v2")
_EXTRA_MODELS = ("wrn_28_2", "wrn_16_4", "wrn_28_4", "wrn_40_4", "resnet24_1_1_9")


def register() -> None:
    """Register in the `mdistiller` that can be imported; a second call changes nothing.

    Raises:
        ConfigError: There is no mdistiller, or it fails to import.
    """
    engine, distillers, models, cfg_module = (
        _import(f"mdistiller.{name}") for name in ("engine", "distillers", "models", "engine.cfg")
    )
    cfg, defaults = cfg_module.CFG, as_node(table())
    if "TLLM" not in cfg:
        cfg.TLLM = defaults.TLLM
        accept_confidence(cfg.TLLM)
    if "TEACHER_CHECKPOINT" not in cfg.DISTILLER:
        cfg.DISTILLER.TEACHER_CHECKPOINT = ""  # instead of the file that the host expects for a teacher
    if "NESTEROV" not in cfg.SOLVER:
        cfg.SOLVER.NESTEROV = False  # read by the trainer `tllm`
    for name in METHODS:
        if name not in cfg and name in defaults:
            cfg[name] = defaults[name]
    host = Host(
        trainers=engine.trainer_dict,
        distillers=distillers.distiller_dict,
        special_types=special_types(Path(engine.__file__).parents[2]),
        training_data=_training_data,
        inner_trainer=inner_trainer,
        carries_rng=True,
    )
    engine.trainer_dict.setdefault("tllm", make_trainer_factory(host))
    distillers.distiller_dict.setdefault("TLLM", make_distiller_factory(host))
    for name in METHODS:
        distillers.distiller_dict.setdefault(name, builder(name))
    if "PATH" not in cfg.DATASET:
        cfg.DATASET.PATH = ""  # read for cub200, which the host lacks
    if "PRETRAINED" not in cfg.DISTILLER:
        cfg.DISTILLER.PRETRAINED = False  # students named tv_... start from torchvision's weights
    offer_cub200(_import("mdistiller.dataset"))
    for name in _PHOTOGRAPH_MODELS:
        models.cifar_model_dict.setdefault(name, (partial(_create_for_photographs, cfg, name), None))
    for name in _EXTRA_MODELS:
        models.cifar_model_dict.setdefault(name, (partial(_create, name), None))
    tiny_imagenet = getattr(models, "tiny_imagenet_model_dict", None)
    if tiny_imagenet is not None:
        for name, (create, _) in models.cifar_model_dict.items():
            # A checkpoint of the CIFAR model would not fit the other number of classes.
            tiny_imagenet.setdefault(name, (create, None))


def special_types(root: Path) -> frozenset[str]:
    """Return the distiller types that a host's sources treat by name.

    Args:
        root: The folder that holds `mdistiller/` and, in a checkout, `tools/`.

    A fork that compares `DISTILLER.TYPE` with a name of its own does something for that name only, and a run under
    the type TLLM would silently go without it.
    """
    found = {"NONE", "CRD"}
    for folder in (root / "mdistiller", root / "tools"):
        for path in folder.rglob("*.py"):
            text = path.read_text(encoding="utf-8", errors="replace")
            for compared in re.findall(r"DISTILLER\.TYPE\s*(?:==|!=|in\b|not in\b)\s*([^:\n]+)", text):
                found.update(re.findall(r"""["']([\w-]+)["']""", compared))
    return frozenset(found)


def inner_trainer(cfg: CfgNode) -> str:
    """Return whose loop runs: CRD's data need CRD's own loop, which a config then need not name."""
    if cfg.DISTILLER.TYPE == "CRD" and cfg.TLLM.TRAINER == "base":
        return "crd"
    return str(cfg.TLLM.TRAINER)


def _create(name: str, num_classes: int = 100) -> nn.Module:
    return create_model(name, num_classes=num_classes)


def _create_for_photographs(cfg: CfgNode, name: str, num_classes: int) -> nn.Module:
    network = create_model(name, num_classes=num_classes)
    if cfg.DISTILLER.PRETRAINED and name == cfg.DISTILLER.STUDENT:
        load_pretrained(network)
    return network


def _training_data(train_loader: Any, val_loader: Any, cfg: CfgNode) -> LoaderData:
    return LoaderData(train_loader, val_loader.dataset.transform, val_loader.dataset)


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(
            f"Expected mdistiller to be importable, but {error}: run this from the host's root, put that on "
            "PYTHONPATH, or use `tllm train --host mdistiller`"
        ) from error
