"""Read and check configs of the embedded host."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from yacs.config import CfgNode

from tllm_plugin.core.errors import TLLMError, unknown_name
from tllm_plugin.data import ANY_SIZE
from tllm_plugin.data.class_order import NATURAL
from tllm_plugin.hosts.class_lists import list_problems
from tllm_plugin.hosts.config_checks import merge_file, merge_options, refuse
from tllm_plugin.hosts.config_files import find_config
from tllm_plugin.hosts.config_values import check_names, check_values, expand_paths
from tllm_plugin.hosts.embedded import recipe  # noqa: F401 (it registers the trainer and the distiller of TLLM)
from tllm_plugin.hosts.embedded.defaults import default_config, own_options
from tllm_plugin.hosts.embedded.distillers import distiller_dict
from tllm_plugin.hosts.embedded.networks import trained_model
from tllm_plugin.hosts.embedded.trainer import trainer_dict
from tllm_plugin.hosts.method_options import check_methods, check_sftn
from tllm_plugin.hosts.options import accept_confidence, check_options, settle_fdr
from tllm_plugin.hosts.tllm_node import check_tllm
from tllm_plugin.models import create_model, input_config, is_model

logger = logging.getLogger(__name__)

_NOT_INNER = {"TLLM", "NONE", "SFTN"}
_LARGEST_RATE = 3e38  # Close to the largest float32.
# Made-up data, for which no distiller is refused; a run checks its networks on the real data.
_CLASSES, _CHANNELS, _SIDE, _ROWS = 10, 3, 32, 4


def load_config(path: str | os.PathLike[str], options: Sequence[str] = ()) -> CfgNode:
    """Read a YAML file over the defaults, apply `KEY VALUE` overrides, check everything, and freeze.

    Raises:
        ConfigError: One line per problem.
    """
    cfg = default_config()
    accept_confidence(cfg.TLLM)
    problems = merge_file(cfg, Path(find_config(os.fspath(path)))) + merge_options(cfg, options)
    problems += settle_fdr(cfg.TLLM) + settle_networks(cfg) + expand_paths(cfg)
    refuse(problems + check_config(cfg))
    cfg.freeze()
    return cfg


def settle_networks(cfg: CfgNode) -> list[str]:
    """Split a teacher that is named NAME@FILE, and take over how a network of timm or torchvision wants its images.

    A student of these libraries sets DATASET.IMAGE_SIZE, MEAN and STD for data sets that have no fixed size, unless the
    config does.
    """
    teacher, at, checkpoint = cfg.DISTILLER.TEACHER.partition("@")
    if at and cfg.DISTILLER.TEACHER_CHECKPOINT:
        return [
            f"Expected `DISTILLER.TEACHER_CHECKPOINT` to be empty beside the teacher {cfg.DISTILLER.TEACHER}, but got "
            f"{cfg.DISTILLER.TEACHER_CHECKPOINT!r}"
        ]
    if at:
        cfg.DISTILLER.TEACHER, cfg.DISTILLER.TEACHER_CHECKPOINT = teacher, checkpoint
    trained = trained_model(cfg)
    if cfg.DATASET.TYPE in ANY_SIZE and is_model(trained) and (wanted := input_config(trained)):
        dataset = cfg.DATASET
        dataset.IMAGE_SIZE = dataset.IMAGE_SIZE or wanted.image_size
        if not (dataset.MEAN or dataset.STD):
            dataset.MEAN, dataset.STD = list(wanted.mean), list(wanted.std)
    return []


def check_config(cfg: CfgNode) -> list[str]:
    """Return all problems of a config, one sentence each, without reading data or training."""
    problems = check_options(cfg, own_options()) + check_methods(cfg) + check_tllm(cfg) + check_sftn(cfg)
    if cfg.SOLVER.TRAINER not in trainer_dict:
        problems.append(unknown_name("SOLVER.TRAINER", cfg.SOLVER.TRAINER, trainer_dict))
    stages = cfg.SOLVER.LR_DECAY_STAGES
    if any(isinstance(value, bool) or not isinstance(value, int) or value < 0 for value in stages):
        problems.append(f"Expected `SOLVER.LR_DECAY_STAGES` to be a list of epochs, but got {stages!r}")
    problems += list_problems("DISTILLER.PLANT.CLASSES", cfg.DISTILLER.PLANT.CLASSES)
    problems += _data_problems(cfg.DATASET)
    trained = trained_model(cfg)
    if cfg.DISTILLER.PRETRAINED and not trained.startswith("tv_"):
        problems.append(
            f"Expected a model of torchvision (tv_...) to train with DISTILLER.PRETRAINED, but got {trained!r}"
        )
    if cfg.RUNTIME.SYNC_BATCHNORM and cfg.RUNTIME.COMPILE:
        problems.append(
            "Expected `RUNTIME.COMPILE` to be false with RUNTIME.SYNC_BATCHNORM, whose processes wait for each other "
            "inside the network, but got True"
        )
    if cfg.SOLVER.EMA_DECAY and cfg.DISTILLER.TYPE == "CID":
        problems.append(
            "Expected `SOLVER.EMA_DECAY` to be 0 for CID, whose student holds sums over an epoch, but got "
            f"{cfg.SOLVER.EMA_DECAY}"
        )
    if cfg.SOLVER.NESTEROV and cfg.SOLVER.MOMENTUM == 0:
        problems.append("Expected `SOLVER.MOMENTUM` to be more than 0 with SOLVER.NESTEROV, but got 0")
    if cfg.SOLVER.TRAINER != "tllm" and cfg.DISTILLER.TYPE == "TLLM":
        problems.append(f"Expected `SOLVER.TRAINER` to be tllm for a TLLM distiller, but got {cfg.SOLVER.TRAINER!r}")
    if cfg.TLLM.TRAINER not in trainer_dict or cfg.TLLM.TRAINER == "tllm":
        problems.append(unknown_name("TLLM.TRAINER", cfg.TLLM.TRAINER, set(trainer_dict) - {"tllm"}))
    if cfg.TLLM.DISTILLER not in distiller_dict or cfg.TLLM.DISTILLER in _NOT_INNER:
        problems.append(unknown_name("TLLM.DISTILLER", cfg.TLLM.DISTILLER, set(distiller_dict) - _NOT_INNER))
    checkpoint = cfg.DISTILLER.TEACHER_CHECKPOINT
    if checkpoint and not os.path.isfile(checkpoint):
        problems.append(f"Expected `DISTILLER.TEACHER_CHECKPOINT` to be a file, but {checkpoint} does not exist")
    if not cfg.EXPERIMENT.PROJECT:
        problems.append("Expected `EXPERIMENT.PROJECT` to be the name of a folder below LOG.PREFIX, but got ''")
    problems += check_names(cfg, ("EXPERIMENT.PROJECT", "EXPERIMENT.NAME"))
    problems += check_values(cfg, problems)
    return problems or _rate_problems(cfg.SOLVER) or _buildable(cfg)


def _rate_problems(solver: CfgNode) -> list[str]:
    """Return a sentence if the learning rate would overflow after its last stage."""
    growth = math.log(solver.LR) + max(0.0, math.log(solver.LR_DECAY_RATE)) * len(solver.LR_DECAY_STAGES)
    if solver.SCHEDULE != "step" or growth <= math.log(_LARGEST_RATE):
        return []
    return [
        f"Expected `SOLVER.LR_DECAY_RATE` to keep the learning rate below {_LARGEST_RATE:g} in all "
        f"{len(solver.LR_DECAY_STAGES)} stages, but got {solver.LR_DECAY_RATE:g}"
    ]


def _data_problems(dataset: CfgNode) -> list[str]:
    problems = []
    order = dataset.CLASS_ORDER
    if order not in ("", NATURAL) and not os.path.isfile(os.path.expanduser(order)):
        problems.append(f"Expected `DATASET.CLASS_ORDER` to be '', '{NATURAL}' or a file, but {order!r} does not exist")
    if bool(dataset.MEAN) != bool(dataset.STD):
        problems.append("Expected `DATASET.MEAN` and `DATASET.STD` together, but got one of them alone")
    for name, low in (("MEAN", -math.inf), ("STD", 0.0)):
        values = dataset[name]
        fine = (type(value) in (int, float) and math.isfinite(value) and value > low for value in values)
        if not all(fine):
            kind = "finite numbers" if name == "MEAN" else "numbers above 0"
            problems.append(f"Expected `DATASET.{name}` to be {kind}, one for each channel, but got {values!r}")
    return problems


def _buildable(cfg: CfgNode) -> list[str]:
    """Return the problems that prevent the distiller of a checked config from its first step, such as maps of other
    sizes."""
    if cfg.DISTILLER.TYPE == "NONE":
        return []
    try:
        with torch.device("meta"):
            teacher, student = (
                create_model(name, num_classes=_CLASSES, in_channels=_CHANNELS)
                for name in (cfg.DISTILLER.TEACHER, cfg.DISTILLER.STUDENT)
            )
            distiller = distiller_dict[cfg.DISTILLER.TYPE](student, teacher, cfg)
            side = cfg.DATASET.IMAGE_SIZE or _SIDE
            image, target = torch.zeros(_ROWS, _CHANNELS, side, side), torch.zeros(_ROWS, dtype=torch.int64)
            distiller(image=image, target=target, index=target, epoch=1)
    except TLLMError as error:
        return str(error).splitlines()
    except Exception:  # A user's own network that cannot be built on the meta device is no problem of the config.
        logger.debug("a trial step of %s failed", cfg.DISTILLER.TYPE, exc_info=True)
    return []
