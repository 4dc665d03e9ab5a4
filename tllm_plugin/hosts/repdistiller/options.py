"""The flags that TLLM adds to RepDistiller's scripts, and what they mean in terms of the `TLLM` config node."""

from __future__ import annotations

import argparse
import importlib
import math
import os
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch
from yacs.config import CfgNode

from tllm_plugin.core.detectors import DETECTORS
from tllm_plugin.core.errors import ConfigError, FileFormatError
from tllm_plugin.hosts.config_checks import refuse
from tllm_plugin.hosts.options import INNER, OLD_FLAG, settle_fdr, under
from tllm_plugin.hosts.plain_errors import say_errors_plainly
from tllm_plugin.hosts.repdistiller.flags import add_flags, config_of, name_flags, tllm_options
from tllm_plugin.hosts.repdistiller.images import DATASETS
from tllm_plugin.hosts.repdistiller.method_flags import (
    add_student_flags,
    check_teacher,
    complete_student,
    teacher_options,
    weights_suffix,
)
from tllm_plugin.hosts.repdistiller.networks import PHOTOGRAPH_MODELS, extend_models, start_pretrained
from tllm_plugin.hosts.tllm_node import check_tllm
from tllm_plugin.methods import ContextStudent
from tllm_plugin.runs.reading import check_torch, load_torch


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
    add_flags(parser, tllm_options())
    parser.add_argument(f"--{OLD_FLAG}", type=float, default=None, help="old spelling of 1 - the rate of --tllm_fdr")
    add_student_flags(parser)
    options = parser.parse_args()
    options.tllm = options.tllm or options.tllm_resume
    problems = _settle(options)
    # A stock script has no `model_t` and takes the name from the folder in its own way.
    teacher = getattr(options, "model_t", None) or (_teacher_name(options.path_t, models) if options.path_t else None)
    if hasattr(options, "model_t"):
        options.model_t = teacher
    networks = [name for name in (options.model_s, teacher) if name is not None]
    problems += _image_problems(options, *networks) + complete_student(options, teacher)
    refuse(problems + check_options(options))
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
    parser.add_argument("--sftn", action="store_true", help="train with branches of a student (SFTN's teacher stage)")
    parser.add_argument("--model_s", type=str, default=None, help="for --sftn: the student that is to be taught")
    add_flags(parser, teacher_options())
    _shared(parser)
    options = parser.parse_args()
    refuse(_image_problems(options, options.model) + check_teacher(options))
    return options


def suffix(options: argparse.Namespace) -> str:
    """Return what is added to a run's name, so that a run with what TLLM brings has a folder of its own."""
    if "sftn" in options:
        return f"_sftn:{options.model_s}" if options.sftn else ""
    return weights_suffix(options) + (f"_tllm:{options.tllm_detector}" if options.tllm else "")


def node_of(options: argparse.Namespace) -> CfgNode:
    """Return the `TLLM` config node that the flags describe."""
    return config_of(options, {**under("TLLM", INNER), **tllm_options()}).TLLM


def _settle(options: argparse.Namespace) -> list[str]:
    """Replace the old spelling of the false discovery rate; return what is wrong with it."""
    cfg = config_of(options, tllm_options())
    if options.tllm_confidence is not None:
        cfg.TLLM.DETECTOR["CONFIDENCE"] = options.tllm_confidence
    del options.tllm_confidence
    problems = settle_fdr(cfg.TLLM)
    options.tllm_fdr = cfg.TLLM.DETECTOR.FDR
    return [name_flags(problem, tllm_options()) for problem in problems]


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
    elif damage := _damage_of(options.path_t):
        problems.append(damage)
    elif _predicts_by_context(options.path_t):
        problems.append(
            f"Expected `--path_t` to hold the weights of a network, but {options.path_t} is of a student of CID, which "
            "predicts through a head of its own that the host's networks do not have"
        )
    if not options.tllm:
        given = [o.flag for o in tllm_options().values() if getattr(options, str(o.flag)) != o.default]
        return problems + [f"Expected `--tllm` with `--{flag}`, but got the latter alone" for flag in given]
    node = node_of(options)
    problems += [name_flags(problem, tllm_options()) for problem in check_tllm(CfgNode({"TLLM": node}))]
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
        raise ConfigError(name_flags(str(error), tllm_options())) from None


def _shared(parser: argparse.ArgumentParser) -> list[str]:
    """Add what both scripts get, models and image folders as a data set, and return the models' names."""
    say_errors_plainly()
    models = importlib.import_module("models").model_dict
    extend_models(models)
    for action in parser._actions:
        if action.dest in ("model", "model_s", "model_t"):
            action.choices = list(models)
        elif action.dest == "dataset":
            action.choices = [*(action.choices or ()), *DATASETS]
    parser.add_argument(
        "--data_folder", type=str, default="", help="of the data set: imagefolder (train/ and val/) or CUB_200_2011"
    )
    parser.add_argument(
        "--class_order",
        type=str,
        default=None,
        help="of imagefolder: natural (as timm sorts), or a file of folder names",
    )
    for name, what in (("mean", "mean"), ("std", "standard deviation")):
        parser.add_argument(
            f"--{name}", type=float, nargs=3, default=None, help=f"{what} for imagefolder (default: of its images)"
        )
    parser.add_argument("--pretrained", action="store_true", help="start a tv_... network from torchvision's weights")
    return list(models)


def _teacher_name(path: str, models: list[str]) -> str | None:
    """Return the longest model name that the folder of a checkpoint begins with."""
    folder = os.path.basename(os.path.dirname(os.path.abspath(path)))
    return max((name for name in models if f"{folder}_".startswith(f"{name}_")), key=len, default=None)


def _damage_of(path: str) -> str:
    """Return what is wrong with a file that the host is going to load without looking; empty if nothing is."""
    try:
        check_torch(path, "the teacher's checkpoint")
    except FileFormatError as error:
        return str(error)
    return ""


def _predicts_by_context(path: str) -> bool:
    try:
        state = load_torch(path, "a network's checkpoint")
    except FileFormatError:
        return False  # Of an old version, perhaps. The host reads it in its own way, and says what is wrong.
    weights = state.get("model") if isinstance(state, Mapping) else None
    return isinstance(weights, Mapping) and ContextStudent.is_state(weights)


def _image_problems(options: argparse.Namespace, *names: str) -> list[str]:
    """Return what is wrong with the data set, also for the networks of these names; the first is what is trained."""
    problems = []
    if options.dataset == "imagefolder" and not os.path.isdir(options.data_folder):
        problems.append(
            "Expected `--data_folder` to be a folder that holds train/ and val/ for the data set imagefolder, but got "
            f"{options.data_folder!r}"
        )
    for name in ("class_order", "mean", "std"):
        if getattr(options, name) is not None and options.dataset != "imagefolder":
            problems.append(
                f"Expected `--{name}` with the data set imagefolder only, but got it with {options.dataset}"
            )
    if (options.mean is None) != (options.std is None):
        problems.append("Expected `--mean` and `--std` together, but got one of them alone")
    elif options.std is not None and not all(0 < value < math.inf for value in options.std):
        problems.append(f"Expected `--std` to be 3 numbers above 0, but got {options.std}")
    elif options.mean is not None and not all(math.isfinite(value) for value in options.mean):
        problems.append(f"Expected `--mean` to be 3 finite numbers, but got {options.mean}")
    if options.dataset == "cub200":
        known = ", ".join(PHOTOGRAPH_MODELS)
        problems += [
            f"Expected a network for photographs ({known}) for the data set cub200, but got {name}"
            for name in names
            if name not in PHOTOGRAPH_MODELS
        ]
        if getattr(options, "distill", None) == "crd":
            problems.append("Expected another data set than cub200 for --distill crd, which it has no contrast for")
    if options.pretrained and names[0] not in PHOTOGRAPH_MODELS:
        problems.append(f"Expected `--pretrained` with one of {', '.join(PHOTOGRAPH_MODELS)}, but got {names[0]}")
    elif options.pretrained:
        start_pretrained(importlib.import_module("models").model_dict, names[0])
    return problems
