"""The flags that TLLM adds to RepDistiller's scripts, and what they mean in terms of the `TLLM` config node."""

from __future__ import annotations

import argparse
import importlib
import os
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np
import torch
from yacs.config import CfgNode

from tllm_plugin.core.detectors import DETECTORS
from tllm_plugin.core.errors import ConfigError, TLLMError
from tllm_plugin.hosts.config_checks import lookup, refuse
from tllm_plugin.hosts.repdistiller.networks import extend_models
from tllm_plugin.hosts.tllm_node import check_tllm, tllm_node


@dataclass(frozen=True)
class Flag:
    """A flag for one key of the config node.

    Args:
        name: Without the dashes.
        key: Below `TLLM`.
        help: In the host's style.
    """

    name: str
    key: str
    help: str


FLAGS = (
    Flag("tllm_detector", "DETECTOR.TYPE", f"which classes lose their teacher: {', '.join(sorted(DETECTORS))}"),
    Flag("tllm_reference", "DETECTOR.REFERENCE", "run folder of a vanilla student, for the detector reference"),
    Flag("tllm_score", "DETECTOR.SCORE", "what a class is judged by on the hold-out"),
    Flag("tllm_eta", "DETECTOR.ETA", "how far a class may fall behind, as a fraction of accuracy"),
    Flag("tllm_confidence", "DETECTOR.CONFIDENCE", "1 - false discovery rate of the flags; 0 for the naive rule"),
    Flag("tllm_warmup", "DETECTOR.WARMUP_EPOCHS", "epochs before the first flag"),
    Flag("tllm_curve_smoothing", "DETECTOR.SMOOTHING", "smoothing of the teaching curves"),
    Flag("tllm_classes", "DETECTOR.CLASSES", "for the detector fixed: classes by index or name, or a flags.json"),
    Flag("tllm_after", "DETECTOR.AFTER_FRACTION", "for the detector after: share of the epochs that are taught"),
    Flag("tllm_smoothing", "LABEL_SMOOTHING", "label smoothing of undistillable classes"),
    Flag("tllm_ce_weight", "CE_WEIGHT", "weight of the cross-entropy of undistillable classes"),
    Flag("tllm_min_rows", "MIN_ROWS", "fewest rows of a batch that are distilled"),
    Flag("tllm_holdout", "HOLDOUT.FRACTION", "share of the training data in the hold-out"),
    Flag("tllm_search_holdout", "HOLDOUT.SEARCH_FRACTION", "share of the rest in the hold-out for choosing eta"),
    Flag("tllm_holdout_seed", "HOLDOUT.SEED", "chooses the hold-out"),
)
_SWITCHES = ("tllm", "tllm_resume")


def parse_student(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Parse the arguments of `train_student.py`, TLLM's among them, check them, and seed what is random.

    From here on an error of ours ends the script with its message instead of a traceback.

    Raises:
        ConfigError: One line per problem.
    """
    models = _shared(parser)
    parser.add_argument("--tllm", action="store_true", help="find undistillable classes and stop teaching them")
    parser.add_argument("--tllm_resume", action="store_true", help="continue a killed run (implies --tllm)")
    parser.add_argument("--tllm_seed", type=int, default=None, help="seed of weights, order and augmentation")
    defaults = tllm_node()
    for flag in FLAGS:
        default = lookup(defaults, flag.key)
        if isinstance(default, list):
            parser.add_argument(f"--{flag.name}", nargs="+", default=default, help=flag.help)
        else:
            described = f"{flag.help} (default: {default})" if default != "" else flag.help
            parser.add_argument(f"--{flag.name}", type=type(default), default=default, help=described)
    options = parser.parse_args()
    options.tllm = options.tllm or options.tllm_resume
    # A stock script has no `model_t` and takes the name from the folder in its own way.
    if getattr(options, "model_t", "known") is None and options.path_t:
        options.model_t = _teacher_name(options.path_t, models)
    refuse(_image_problems(options) + check_options(options))
    if options.tllm_seed is not None:
        random.seed(options.tllm_seed)
        np.random.seed(options.tllm_seed)
        torch.manual_seed(options.tllm_seed)
    return options


def parse_teacher(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Parse the arguments of `train_teacher.py`, which has TLLM's models and data sets too.

    Raises:
        ConfigError: One line per problem.
    """
    _shared(parser)
    options = parser.parse_args()
    refuse(_image_problems(options))
    return options


def suffix(options: argparse.Namespace) -> str:
    """Return what is added to a run's name, so that a run with TLLM has a folder of its own."""
    return f"_tllm:{options.tllm_detector}" if options.tllm else ""


def node_of(options: argparse.Namespace) -> CfgNode:
    """Return the `TLLM` config node that the flags describe."""
    node = tllm_node()
    for flag in FLAGS:
        *parents, last = flag.key.split(".")
        holder = node
        for name in parents:
            holder = holder[name]
        value = getattr(options, flag.name)
        holder[last] = [_index_or_name(item) for item in value] if isinstance(value, list) else value
    return node


def check_options(options: argparse.Namespace) -> list[str]:
    """Return every problem of a student's options, one sentence each, without reading data or training."""
    problems = []
    if not options.path_t:
        problems.append("Expected `--path_t` to name the teacher's checkpoint, but got none")
    elif not os.path.isfile(options.path_t):
        problems.append(f"Expected `--path_t` to be a file, but {options.path_t} does not exist")
    elif getattr(options, "model_t", "known") is None:
        problems.append(
            "Expected the folder of `--path_t` to begin with the name of a model, or `--model_t` with that name, but "
            f"got {options.path_t!r}"
        )
    if not options.tllm:
        defaults = tllm_node()
        for flag in FLAGS:
            if getattr(options, flag.name) != lookup(defaults, flag.key):
                problems.append(f"Expected `--tllm` with `--{flag.name}`, but got the latter alone")
        return problems
    node = node_of(options)
    problems += [name_flags(problem) for problem in check_tllm(CfgNode({"TLLM": node}))]
    detector = DETECTORS.get(node.DETECTOR.TYPE)
    if detector is not None and detector.needs_reference and not node.DETECTOR.REFERENCE:
        problems.append(
            "Expected `--tllm_reference` to name the run of a vanilla student for the detector "
            f"{node.DETECTOR.TYPE}, but got none; train one with the same flags but --distill kd -r 1 -a 0 -b 0 "
            "--tllm_detector none"
        )
    return problems


@contextmanager
def errors_name_flags() -> Iterator[None]:
    """Let errors of the block that are about config keys be about flags."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(name_flags(str(error))) from None


def name_flags(message: str) -> str:
    """Return a message about config keys as one about flags."""
    for flag in FLAGS:
        message = message.replace(f"`TLLM.{flag.key}`", f"`--{flag.name}`")
    return message


def _shared(parser: argparse.ArgumentParser) -> list[str]:
    """Add what both scripts get, models and image folders as a data set, and return the models' names."""
    sys.excepthook = _say
    models = importlib.import_module("models").model_dict
    extend_models(models)
    for action in parser._actions:
        if action.dest in ("model", "model_s", "model_t"):
            action.choices = list(models)
        elif action.dest == "dataset":
            action.choices = [*(action.choices or ()), "imagefolder"]
    parser.add_argument(
        "--data_folder", type=str, default="", help="for the data set imagefolder: holds train/ and val/"
    )
    return list(models)


def _teacher_name(path: str, models: list[str]) -> str | None:
    """Return the longest model name that the folder of a checkpoint begins with."""
    folder = os.path.basename(os.path.dirname(os.path.abspath(path)))
    return max((name for name in models if f"{folder}_".startswith(f"{name}_")), key=len, default=None)


def _image_problems(options: argparse.Namespace) -> list[str]:
    if options.dataset == "imagefolder" and not os.path.isdir(options.data_folder):
        return [
            "Expected `--data_folder` to be a folder that holds train/ and val/ for the data set imagefolder, but got "
            f"{options.data_folder!r}"
        ]
    return []


def _index_or_name(text: Any) -> Any:
    return int(text) if str(text).isdigit() else text


def _say(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    if isinstance(error, TLLMError):
        print(f"tllm: {error}", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, traceback)
