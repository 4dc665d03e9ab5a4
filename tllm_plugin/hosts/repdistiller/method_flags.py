"""The flags of the methods that TLLM brings to RepDistiller: SRRL and CID for students, SFTN for teachers."""

from __future__ import annotations

import argparse
from typing import Any

from yacs.config import CfgNode

from tllm_plugin.core.errors import unknown_name
from tllm_plugin.core.options import Option
from tllm_plugin.hosts.extensions import load_extensions
from tllm_plugin.hosts.options import check_options, table, under
from tllm_plugin.hosts.repdistiller.flags import config_of, name_flags
from tllm_plugin.methods import METHODS, SFTN, Distiller
from tllm_plugin.models import is_model, model_names

# Of the host itself; they mean for these methods what they mean for the others.
_HOSTS = ("gamma", "kd_T")

# (teacher, student) -> b, c of CID's paper; elsewhere the config's defaults.
_CID_WEIGHTS = {
    ("wrn_40_2", "wrn_16_2"): (65.0, 1.0),
    ("wrn_40_4", "wrn_16_2"): (55.0, 0.1),
    ("resnet56", "resnet20"): (10.0, 1.0),
    ("ResNet50", "MobileNetV2"): (33.0, 0.1),
    ("ResNet50", "vgg8"): (8.0, 2.0),
}


def student_methods() -> dict[str, str]:
    """Return values of --distill that the host does not have, with the methods' names."""
    load_extensions()
    return {name.lower(): name for name, kind in METHODS.items() if issubclass(kind, Distiller)}


def student_options() -> dict[str, Option]:
    """Return the options of the methods for students, by full key."""
    names = student_methods().values()
    return {key: option for key, option in table().items() if key.partition(".")[0] in names}


def teacher_options() -> dict[str, Option]:
    """Return the options of SFTN's teacher stage, by full key."""
    return under("SFTN", SFTN.options)


def add_student_flags(parser: argparse.ArgumentParser) -> None:
    """Add what SRRL and CID need to the arguments of `train_student.py`."""
    for action in parser._actions:
        if action.dest == "distill" and action.choices is not None:
            action.choices = [*action.choices, *student_methods()]
    for option in student_options().values():
        if option.flag not in _HOSTS:
            by_pair = ", but the paper's for its pairs" if option.flag in ("cid_b", "cid_c") else ""
            # None for now: what was left out can depend on the pair, and what was not must belong to the method.
            described = f"{option.help} (default: {option.default}{by_pair})"
            parser.add_argument(f"--{option.flag}", type=type(option.default), default=None, help=described)
    parser.add_argument(
        "--nesterov",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="Nesterov's momentum (default: for cid, as in its paper)",
    )


def complete_student(options: argparse.Namespace, teacher: str | None) -> list[str]:
    """Fill in what was left out, and return every problem of SRRL's and CID's options, one sentence each.

    Args:
        options: Parsed; changed in place.
        teacher: Name of the teacher's model, where it is known.
    """
    problems = []
    method = getattr(options, "distill", None)
    if options.nesterov is None:
        options.nesterov = method == "cid"
    pair = _CID_WEIGHTS.get((teacher or "", getattr(options, "model_s", "") or ""))
    for key, option in student_options().items():
        owner, flag = key.split(".")[0].lower(), str(option.flag)
        if flag in _HOSTS:
            continue
        if owner != method:
            if getattr(options, flag) is not None:
                problems.append(f"Expected `--distill {owner}` with `--{flag}`, but got --distill {method}")
        elif getattr(options, flag) is None:
            known = {"cid_b": pair[0], "cid_c": pair[1]} if pair else {}
            setattr(options, flag, known.get(flag, option.default))
    if method not in student_methods():
        return problems
    for name, letter in (("alpha", "a"), ("beta", "b")):
        if getattr(options, name, None):
            problems.append(_foreign_weight(method, letter, getattr(options, name)))
    if method == "cid" and getattr(options, "gamma", 1) != 1:
        problems.append(_foreign_weight(method, "r", options.gamma))
    own = {key: option for key, option in student_options().items() if key.partition(".")[0].lower() == method}
    return problems + [name_flags(problem, own) for problem in check_options(student_node(options), own)]


def student_node(options: Any) -> CfgNode:
    """Return the nodes of the methods for students that complete options describe."""
    return config_of(options, student_options())


def teacher_node(options: Any) -> CfgNode:
    """Return the node SFTN and the student's name that the options of `train_teacher.py` describe."""
    node = config_of(options, teacher_options())
    node.DISTILLER = CfgNode({"STUDENT": options.model_s})
    return node


def check_teacher(options: argparse.Namespace) -> list[str]:
    """Return every problem of SFTN's options, one sentence each."""
    if not options.sftn:
        own = teacher_options().values()
        given = [str(option.flag) for option in own if getattr(options, str(option.flag)) != option.default]
        given += [] if options.model_s is None else ["model_s"]
        return [f"Expected `--sftn` with `--{name}`, but got the latter alone" for name in given]
    if options.model_s is None:
        return ["Expected `--model_s` to name the student for --sftn, but got none"]
    node = teacher_node(options)
    problems = [name_flags(problem, teacher_options()) for problem in check_options(node, teacher_options())]
    return problems + ([] if is_model(options.model_s) else [unknown_name("--model_s", options.model_s, model_names())])


def is_ours(options: Any) -> bool:
    """Return whether the chosen method is one that TLLM brings, and not the host's of that name."""
    return getattr(options, "distill", "") in student_methods() and not getattr(options, "tllm_host_method", False)


def weights_suffix(options: argparse.Namespace) -> str:
    """Return what stands in a run's name for the weights of a method of ours, as the host's own stand there."""
    if not is_ours(options):
        return ""
    return "".join(
        f"_{str(option.flag).split('_', 1)[1]}:{getattr(options, str(option.flag))}"
        for option in _own_options(getattr(options, "distill", ""))
        if option.name.endswith("_weight")
    )


def _own_options(method: str) -> list[Option]:
    """Return the options of a method whose flags the host does not have."""
    known = student_options().items()
    return [option for key, option in known if key.partition(".")[0].lower() == method and option.flag not in _HOSTS]


def _foreign_weight(method: str, letter: str, value: float) -> str:
    own = ", ".join(f"`--{option.flag}`" for option in _own_options(method))
    return f"Expected no `-{letter}` with --distill {method}, whose own options are {own}, but got {value}"
