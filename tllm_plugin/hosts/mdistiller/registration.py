"""What TLLM adds to mdistiller's registries."""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn
from yacs.config import CfgNode

from tllm_plugin.core.errors import ConfigError
from tllm_plugin.hosts.adapter import Host, put_tllm_into
from tllm_plugin.hosts.factories import make_distiller_factory
from tllm_plugin.hosts.loader_data import LoaderData
from tllm_plugin.hosts.mdistiller.cub200 import offer_cub200
from tllm_plugin.hosts.mdistiller.merging import settle_merges
from tllm_plugin.hosts.method_options import builder
from tllm_plugin.hosts.options import accept_confidence, as_node, table
from tllm_plugin.hosts.switch import resolve
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
        cfg.TLLM.ON = False  # the trainer that SOLVER.TRAINER names trains with TLLM
    for node, name, value in (
        (cfg.DISTILLER, "TEACHER_CHECKPOINT", ""),  # instead of the file that the host expects for a teacher
        (cfg.DISTILLER, "PRETRAINED", False),  # students named tv_... start from torchvision's weights
        (cfg.SOLVER, "NESTEROV", False),
        (cfg.DATASET, "PATH", ""),  # read for cub200, which the host lacks
        *((cfg, name, defaults[name]) for name in METHODS if name in defaults),
    ):
        node.setdefault(name, value)
    settle_merges(cfg)
    distiller_dict = distillers.distiller_dict
    trainers = find_trainers()
    host = Host(
        trainers=trainers,
        distillers=distiller_dict,
        special_types=special_types(Path(engine.__file__).parents[2]),
        training_data=_training_data,
        carries_rng=True,
    )
    for trainer in {kind for named in trainers.values() for kind in named.__mro__ if "__init__" in vars(kind)}:
        if trainer.__module__.startswith("mdistiller."):
            put_tllm_into(trainer, host)
    if hasattr(engine, "trainer_dict"):
        # For a config whose trainer was set behind the back of `merge_from_...`.
        engine.trainer_dict.setdefault("tllm", _resolved_trainer)
    distiller_dict.setdefault("TLLM", make_distiller_factory(host))
    for name in METHODS:
        distiller_dict.setdefault(name, builder(name))
    offer_cub200(_import("mdistiller.dataset"))
    tables = model_tables(models)
    small = tables.get("cifar_model_dict", {})
    for name in _PHOTOGRAPH_MODELS if small else ():
        small.setdefault(name, (partial(_create_for_photographs, cfg, name), None))
    for name in _EXTRA_MODELS if small else ():
        small.setdefault(name, (partial(_create, name), None))
    if "tiny_imagenet_model_dict" in tables:
        for name, (create, _) in small.items():
            # A checkpoint of the CIFAR model would not fit the other number of classes.
            tables["tiny_imagenet_model_dict"].setdefault(name, (create, None))


def find_trainers() -> dict[str, type]:
    """Return the trainers of the `mdistiller` that can be imported, by the names that its configs use.

    Where it has no `trainer_dict`, they are by the names of their classes: those that are called with a distiller and
    have `train`.
    """
    engine = importlib.import_module("mdistiller.engine")
    named = getattr(engine, "trainer_dict", None)
    if named is not None:
        return {name: kind for name, kind in named.items() if inspect.isclass(kind)}
    folder = [name for name in sys.modules if name == "mdistiller.engine" or name.startswith("mdistiller.engine.")]
    classes = [kind for name in folder for kind in vars(sys.modules[name]).values() if inspect.isclass(kind)]
    return {
        kind.__name__: kind
        for kind in classes
        if hasattr(kind, "train") and "distiller" in inspect.signature(kind.__init__).parameters
    }


def model_tables(models: Any, ending: str = "_model_dict") -> dict[str, dict[str, Any]]:
    """Return the tables of models, `cifar_model_dict` and the like, of a host's `models` or of its parts."""
    modules = [models, *(module for module in vars(models).values() if inspect.ismodule(module))]
    return {
        name: table
        for module in reversed(modules)
        for name, table in vars(module).items()
        if name.endswith(ending) and isinstance(table, dict)
    }


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
            found.update(re.findall(r"""["']([\w-]+)["']\s*(?:==|!=|in|not in)\s*\w+\.DISTILLER\.TYPE""", text))
    return frozenset(found)


def _resolved_trainer(*given: Any, **named: Any) -> Any:
    """Make the trainer that a config names in the spelling of the first versions."""
    cfg = next(value for value in (*given, *named.values()) if isinstance(value, CfgNode))
    resolve(cfg)
    return find_trainers()[cfg.SOLVER.TRAINER](*given, **named)


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
    except Exception as error:  # A fork's modules raise anything when they are imported.
        reason = error if isinstance(error, ImportError) else f"{type(error).__name__}: {error}"
        raise ConfigError(
            f"Expected mdistiller to be importable, but {reason}: run this from the host's root, put that on "
            "PYTHONPATH, or use `tllm train --host mdistiller`"
        ) from error
