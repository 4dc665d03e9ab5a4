"""Checking a config of mdistiller before the host spends time on it."""

from __future__ import annotations

import importlib
import importlib.util
import os

from yacs.config import CfgNode

from tllm_plugin.core.detectors import DETECTORS
from tllm_plugin.hosts import config_files
from tllm_plugin.hosts.config_checks import check_file, refuse
from tllm_plugin.hosts.config_values import check_names, check_values, expand_paths
from tllm_plugin.hosts.mdistiller.registration import inner_trainer
from tllm_plugin.hosts.mdistiller.teachers import choose_teacher
from tllm_plugin.hosts.options import settle_fdr
from tllm_plugin.hosts.plain_errors import say_errors_plainly
from tllm_plugin.hosts.ported_methods import check_methods, check_sftn
from tllm_plugin.hosts.tllm_node import check_tllm


def find_config(name: str) -> str:
    """Return the path of a config that the user names: their own file, or one that comes with TLLM.

    From here on an error of ours ends the host's script with its message instead of a traceback.

    Raises:
        ConfigError: There is none; or a key stands in it twice, or a number that YAML reads otherwise than it looks,
            which the host would take without a word.
    """
    say_errors_plainly()
    path = config_files.find_config(name)
    refuse(check_file(path))
    return str(path)


def prepare(cfg: CfgNode) -> None:
    """Check a merged config that is not frozen yet, and make what it asks for available.

    Raises:
        ConfigError: One line per problem.
    """
    say_errors_plainly()
    if cfg.LOG.WANDB and importlib.util.find_spec("wandb") is None:
        cfg.LOG.WANDB = False  # The host would do so itself, but only once its config is frozen.
    refuse(settle_fdr(cfg.TLLM) + expand_paths(cfg) + check_config(cfg))
    choose_teacher(cfg)


def check_config(cfg: CfgNode) -> list[str]:
    """Return every problem of a config as far as TLLM is concerned, one sentence each."""
    trainers = importlib.import_module("mdistiller.engine").trainer_dict
    distillers = importlib.import_module("mdistiller.distillers").distiller_dict
    problems = []
    for key, value, known in (
        ("DISTILLER.TYPE", cfg.DISTILLER.TYPE, distillers),
        ("SOLVER.TRAINER", cfg.SOLVER.TRAINER, trainers),
    ):
        if value not in known:
            problems.append(f"Expected `{key}` to be one of {', '.join(sorted(known))}, but got {value!r}")
    problems += check_methods(cfg)
    problems += check_names(cfg, ("EXPERIMENT.PROJECT", "EXPERIMENT.NAME", "EXPERIMENT.TAG"))
    problems += check_values(cfg, problems)
    checkpoint = cfg.DISTILLER.TEACHER_CHECKPOINT
    if checkpoint and not os.path.isfile(checkpoint):
        problems.append(f"Expected `DISTILLER.TEACHER_CHECKPOINT` to be a file, but {checkpoint} does not exist")
    if cfg.SOLVER.TRAINER != "tllm":
        return problems
    problems += check_tllm(cfg) + check_sftn(cfg)
    if inner_trainer(cfg) not in trainers or cfg.TLLM.TRAINER == "tllm":
        known = ", ".join(sorted(set(trainers) - {"tllm"}))
        problems.append(f"Expected `TLLM.TRAINER` to be one of {known}, but got {cfg.TLLM.TRAINER!r}")
    detector = DETECTORS.get(cfg.TLLM.DETECTOR.TYPE)
    if detector is not None and detector.needs_reference and not cfg.TLLM.DETECTOR.REFERENCE:
        problems.append(
            "Expected `TLLM.DETECTOR.REFERENCE` to name the run of a vanilla student for the detector "
            f"{cfg.TLLM.DETECTOR.TYPE}, but got none; train one with the same config and the overrides DISTILLER.TYPE "
            "NONE TLLM.DETECTOR.TYPE none"
        )
    return problems
