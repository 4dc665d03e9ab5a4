"""Checking a config of mdistiller before the host spends time on it."""

from __future__ import annotations

import importlib
import os

from yacs.config import CfgNode

from tllm_plugin.core.detectors import DETECTORS
from tllm_plugin.hosts import config_files
from tllm_plugin.hosts.config_checks import check_file, refuse
from tllm_plugin.hosts.config_values import check_names, check_values
from tllm_plugin.hosts.mdistiller.merging import settle
from tllm_plugin.hosts.mdistiller.registration import find_trainers
from tllm_plugin.hosts.mdistiller.teachers import choose_teacher
from tllm_plugin.hosts.method_options import check_methods, check_sftn
from tllm_plugin.hosts.options import settle_fdr
from tllm_plugin.hosts.plain_errors import say_errors_plainly
from tllm_plugin.hosts.switch import is_on, named_trainer
from tllm_plugin.hosts.tllm_node import check_tllm


def find_config(name: str) -> str:
    """Return the path of a config: a file of the user, or a config that comes with TLLM.

    From now on, an error of TLLM ends the host's script with its message instead of a traceback.

    Raises:
        ConfigError: There is no such config; or it has a key twice, or a number that YAML reads differently from how it
            looks, which the host would accept silently.
    """
    say_errors_plainly()
    path = config_files.find_config(name)
    refuse(check_file(path))
    return str(path)


def prepare(cfg: CfgNode) -> None:
    """Check a merged config that is not frozen, and provide the teacher that it names.

    Raises:
        ConfigError: One line per problem.
    """
    say_errors_plainly()
    refuse(settle_fdr(cfg.TLLM) + settle(cfg) + check_config(cfg) + _missing_images(cfg))
    choose_teacher(cfg)


def check_config(cfg: CfgNode) -> list[str]:
    """Return every problem of a config that concerns TLLM, one sentence each."""
    trainers = find_trainers()
    distillers = importlib.import_module("mdistiller.distillers").distiller_dict
    problems = []
    trainer = named_trainer(cfg)
    if cfg.DISTILLER.TYPE not in distillers:
        known = ", ".join(sorted(distillers))
        problems.append(f"Expected `DISTILLER.TYPE` to be one of {known}, but got {cfg.DISTILLER.TYPE!r}")
    by_name = hasattr(importlib.import_module("mdistiller.engine"), "trainer_dict")
    if by_name and trainer not in trainers:
        known, key = ", ".join(sorted(trainers)), "SOLVER.TRAINER"
        if is_on(cfg) and trainer == cfg.TLLM.TRAINER:
            key = "TLLM.TRAINER"
        problems.append(f"Expected `{key}` to be one of {known}, but got {trainer!r}")
    problems += check_methods(cfg)
    problems += check_names(cfg, ("EXPERIMENT.PROJECT", "EXPERIMENT.NAME", "EXPERIMENT.TAG"))
    problems += check_values(cfg, problems)
    checkpoint = cfg.DISTILLER.TEACHER_CHECKPOINT
    if checkpoint and not os.path.isfile(checkpoint):
        problems.append(f"Expected `DISTILLER.TEACHER_CHECKPOINT` to be a file, but {checkpoint} does not exist")
    if not is_on(cfg):
        return problems
    problems += check_tllm(cfg) + check_sftn(cfg)
    detector = DETECTORS.get(cfg.TLLM.DETECTOR.TYPE)
    if detector is not None and detector.needs_reference and not cfg.TLLM.DETECTOR.REFERENCE:
        problems.append(
            "Expected `TLLM.DETECTOR.REFERENCE` to name the run of a vanilla student for the detector "
            f"{cfg.TLLM.DETECTOR.TYPE}, but got none; train one with the same config and the overrides DISTILLER.TYPE "
            "NONE TLLM.DETECTOR.TYPE none"
        )
    return problems


def _missing_images(cfg: CfgNode) -> list[str]:
    """Return a problem if a data set that the host does not download is missing in its folder."""
    try:
        module = importlib.import_module(f"mdistiller.dataset.{cfg.DATASET.TYPE}")
    except ImportError:
        return []
    folder = getattr(module, "data_folder", None)
    if not isinstance(folder, str) or os.path.isdir(folder):
        return []
    return [
        f"Expected the images of `DATASET.TYPE` {cfg.DATASET.TYPE} in {os.path.normpath(folder)}, but there is no such "
        "folder: put them there, or a link to them"
    ]
