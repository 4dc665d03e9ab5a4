"""The flags of the methods that TLLM brings to RepDistiller: SRRL and CID for students, SFTN for teachers."""

from __future__ import annotations

import argparse
from typing import Any

from yacs.config import CfgNode

from tllm_plugin.core.errors import unknown_name
from tllm_plugin.hosts.config_checks import check, lookup
from tllm_plugin.hosts.ported_methods import ported_nodes, ported_rules
from tllm_plugin.hosts.repdistiller.flags import Flag, name_flags, set_key
from tllm_plugin.models import is_model, model_names

#: Values of --distill that the host does not have.
METHODS = ("srrl", "cid")

STUDENT_FLAGS = (
    # The host's own, which mean for these methods what they mean for the others.
    Flag("gamma", "SRRL.LOSS.CE_WEIGHT", "weight for classification"),
    Flag("kd_T", "CID.TEMPERATURE", "temperature for KD distillation"),
    Flag("srrl_feat_weight", "SRRL.LOSS.FEAT_WEIGHT", "weight of SRRL's feature matching"),
    Flag("srrl_weight", "SRRL.LOSS.REGRESSION_WEIGHT", "weight of SRRL's softmax regression"),
    Flag("cid_a", "CID.LOSS.KD_WEIGHT", "weight of CID's cross-entropy and divergence"),
    Flag("cid_b", "CID.LOSS.SAMPLE_WEIGHT", "weight of CID's loss of samples"),
    Flag("cid_c", "CID.LOSS.CLASS_WEIGHT", "weight of CID's loss of classes"),
    Flag("cid_warmup_epochs", "CID.WARMUP_EPOCHS", "first epochs of CID, which have no context"),
)
TEACHER_FLAGS = (
    Flag("sftn_T", "SFTN.TEMPERATURE", "temperature of SFTN's divergence"),
    Flag("sftn_ce_weight", "SFTN.LOSS.CE_WEIGHT", "weight of the teacher's cross-entropy"),
    Flag("sftn_kl_weight", "SFTN.LOSS.KL_WEIGHT", "weight of the divergence between branches and teacher"),
    Flag("sftn_branch_ce_weight", "SFTN.LOSS.BRANCH_CE_WEIGHT", "weight of the branches' cross-entropy"),
)
_HOSTS = ("gamma", "kd_T")

# (teacher, student) -> b, c of CID's paper; elsewhere the config's defaults.
_CID_WEIGHTS = {
    ("wrn_40_2", "wrn_16_2"): (65.0, 1.0),
    ("wrn_40_4", "wrn_16_2"): (55.0, 0.1),
    ("resnet56", "resnet20"): (10.0, 1.0),
    ("ResNet50", "MobileNetV2"): (33.0, 0.1),
    ("ResNet50", "vgg8"): (8.0, 2.0),
}


def add_student_flags(parser: argparse.ArgumentParser) -> None:
    """Add what SRRL and CID need to the arguments of `train_student.py`."""
    for action in parser._actions:
        if action.dest == "distill" and action.choices is not None:
            action.choices = [*action.choices, *METHODS]
    for flag in STUDENT_FLAGS:
        if flag.name not in _HOSTS:
            default = lookup(_defaults(), flag.key)
            by_pair = ", but the paper's for its pairs" if flag.name in ("cid_b", "cid_c") else ""
            # None for now: what was left out can depend on the pair, and what was not must belong to the method.
            described = f"{flag.help} (default: {default}{by_pair})"
            parser.add_argument(f"--{flag.name}", type=type(default), default=None, help=described)
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
    for flag in STUDENT_FLAGS:
        owner = flag.key.split(".")[0].lower()
        if flag.name in _HOSTS:
            continue
        if owner != method:
            if getattr(options, flag.name) is not None:
                problems.append(f"Expected `--distill {owner}` with `--{flag.name}`, but got --distill {method}")
        elif getattr(options, flag.name) is None:
            default = lookup(_defaults(), flag.key)
            known = {"cid_b": pair[0], "cid_c": pair[1]} if pair else {}
            setattr(options, flag.name, known.get(flag.name, default))
    if method not in METHODS:
        return problems
    for name, letter in (("alpha", "a"), ("beta", "b")):
        if getattr(options, name, None):
            problems.append(_foreign_weight(method, letter, getattr(options, name)))
    if method == "cid" and getattr(options, "gamma", 1) != 1:
        problems.append(_foreign_weight(method, "r", options.gamma))
    rules = {key: rule for key, rule in ported_rules().items() if key.startswith(f"{method.upper()}.")}
    return problems + [name_flags(problem, STUDENT_FLAGS) for problem in check(student_node(options), rules)]


def student_node(options: Any) -> CfgNode:
    """Return the nodes SRRL and CID that complete options describe."""
    return _node(options, STUDENT_FLAGS)


def teacher_node(options: Any) -> CfgNode:
    """Return the node SFTN and the student's name that the options of `train_teacher.py` describe."""
    node = _node(options, TEACHER_FLAGS)
    node.DISTILLER = CfgNode({"STUDENT": options.model_s})
    return node


def check_teacher(options: argparse.Namespace) -> list[str]:
    """Return every problem of SFTN's options, one sentence each."""
    if not options.sftn:
        given = [flag.name for flag in TEACHER_FLAGS if getattr(options, flag.name) != lookup(_defaults(), flag.key)]
        given += [] if options.model_s is None else ["model_s"]
        return [f"Expected `--sftn` with `--{name}`, but got the latter alone" for name in given]
    if options.model_s is None:
        return ["Expected `--model_s` to name the student for --sftn, but got none"]
    node = teacher_node(options)
    rules = {key: rule for key, rule in ported_rules().items() if key.startswith("SFTN.")}
    problems = [name_flags(problem, TEACHER_FLAGS) for problem in check(node, rules)]
    return problems + ([] if is_model(options.model_s) else [unknown_name("--model_s", options.model_s, model_names())])


def weights_suffix(options: argparse.Namespace) -> str:
    """Return what stands in a run's name for the weights of SRRL or CID, as the host's own stand there."""
    names = {"srrl": ("srrl_feat_weight", "srrl_weight"), "cid": ("cid_a", "cid_b", "cid_c")}
    chosen = names.get(getattr(options, "distill", ""), ())
    return "".join(f"_{name.split('_', 1)[1]}:{getattr(options, name)}" for name in chosen)


def _defaults() -> CfgNode:
    return CfgNode(ported_nodes())


def _node(options: Any, flags: tuple[Flag, ...]) -> CfgNode:
    node = _defaults()
    for flag in flags:
        value = getattr(options, flag.name, None)
        if value is not None:
            set_key(node, flag.key, value)
    return node


def _foreign_weight(method: str, letter: str, value: float) -> str:
    own = ", ".join(f"`--{flag.name}`" for flag in STUDENT_FLAGS if flag.name.startswith(f"{method}_"))
    return f"Expected no `-{letter}` with --distill {method}, whose own options are {own}, but got {value}"
