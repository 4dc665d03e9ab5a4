"""Table of all options of TLLM and its methods by config key; nodes, checks, flags and arguments derive from it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from copy import deepcopy
from dataclasses import replace
from decimal import Decimal
from typing import Any

from yacs.config import CfgNode

from tllm_plugin.core.detectors import DETECTORS
from tllm_plugin.core.errors import ConfigError
from tllm_plugin.core.options import INSIDE, SHARE, Option, at_least, count_in, one_of, rejected
from tllm_plugin.core.policies import POLICIES, is_level
from tllm_plugin.hosts.config_checks import lookup, shown
from tllm_plugin.hosts.extensions import load_extensions
from tllm_plugin.methods import METHODS

#: Options of `TLLMWrapper`: the treatment of flagged classes.
WRAPPER = (
    Option("label_smoothing", 0.1, SHARE, "label smoothing of undistillable classes", flag="tllm_smoothing"),
    Option("ce_weight", 1.0, at_least(0), "weight of the cross-entropy of undistillable classes"),
    Option("balance", True, None, "scale ce_weight by the gradient of the distillation losses at the logits"),
    Option("min_rows", 4, count_in(1), "smallest number of distillable rows per batch that are distilled"),
)
#: Policy that sets no weights, so that only the detector acts.
WITHDRAWAL = "withdrawal"
#: Options of policies.
POLICY = (
    Option(
        "policy",
        "",
        lambda value: one_of(["", WITHDRAWAL, *POLICIES])(value),
        f"policy that sets teaching weights from the teacher alone: {', '.join(POLICIES)}",
        flag="tllm_policy",
    ),
    Option(
        "level",
        "mean",
        lambda value: None if is_level(value) else "mean, max or a number in (0, 1)",
        "target strength of the policy equal_strength: mean, max or a number",
        "POLICY_OPTIONS.LEVEL",
        "tllm_policy_level",
    ),
    Option("seed", 0, at_least(0), "seed of the policy permuted", "POLICY_OPTIONS.SEED", "tllm_policy_seed"),
)
#: Options of `split`.
HOLDOUT = (
    Option(
        "fraction",
        0.05,
        INSIDE,
        "fraction of the training data in the hold-out of the detector",
        "HOLDOUT.FRACTION",
        "tllm_holdout",
    ),
    Option(
        "search_fraction",
        0.0,
        SHARE,
        "fraction of the remaining data in the hold-out of `tllm search`",
        key="HOLDOUT.SEARCH_FRACTION",
        flag="tllm_search_holdout",
    ),
    Option("seed", 0, None, "seed of the choice of the hold-outs", "HOLDOUT.SEED", "tllm_holdout_seed"),
)
#: Of `hosts/speed.py`: how fast a run is computed.
SPEED = (
    Option(
        "speed",
        "off",
        one_of(["off", "exact", "auto"]),
        "off: as the host computes; exact: the same numbers faster; auto: the fastest that keeps its numbers",
        flag="tllm_speed",
    ),
    Option(
        "views",
        0,
        count_in(0),
        "outcomes of the augmentation per image, which changes the augmentation; 0: all",
        flag="tllm_views",
    ),
    Option(
        "memory",
        2.0,
        at_least(0),
        "with auto: gigabytes of the disk for a teacher's remembered answers, which all its runs share; 0: none",
        flag="tllm_memory",
    ),
)
FDR, CONFIDENCE = "TLLM.DETECTOR.FDR", "TLLM.DETECTOR.CONFIDENCE"
OLD_FLAG = "tllm_confidence"


def table() -> dict[str, Option]:
    """Return every option of TLLM, the registered detectors and the registered methods, by its full key.

    Raises:
        ConfigError: Two different options have the same key.
    """
    load_extensions()
    found: dict[str, Option] = {}
    for prefix, options, _ in _declared():
        for key, option in under(prefix, options).items():
            if found.setdefault(key, option) != option:
                raise ConfigError(
                    f"Expected one option for the key `{key}`, but two detectors or methods declare it differently: "
                    "give one of them another name, or derive one class from the other"
                )
    return found


def under(prefix: str, options: Iterable[Option]) -> dict[str, Option]:
    """Return options by full key, with full key and flag filled in.

    Args:
        prefix: Key of the node that the options belong to.
        options: Options with keys and flags as their owner declares them.
    """
    owner = prefix.partition(".")[0].lower()
    return {
        f"{prefix}.{option.key}": replace(
            option, flag=option.flag if option.flag or option.flag is None else f"{owner}_{option.name}"
        )
        for option in options
    }


def as_node(options: Mapping[str, Option]) -> CfgNode:
    """Return a config node with the defaults of options given by full key."""
    root = CfgNode()
    for key, option in options.items():
        *parents, last = key.split(".")
        node = root
        for name in parents:
            node = node.setdefault(name, CfgNode())
        node[last] = deepcopy(option.default)
    return root


def check_options(cfg: CfgNode, options: Mapping[str, Option]) -> list[str]:
    """Check a config's values; return an error message for every option whose check rejects its value."""
    problems = []
    for key, option in options.items():
        value = lookup(cfg, key, option.default)
        expected = option.check(value) if option.check is not None else None
        if expected is not None:
            problems.append(rejected(key, expected, value, shown(value)))
    return problems


def arguments(options: Iterable[Option], node: CfgNode) -> dict[str, Any]:
    """Read the values of options from their node; return them by constructor argument."""
    return {option.name: lookup(node, option.key, option.default) for option in options}


def complement(value: Any) -> Any:
    """Return 1 minus a number, computed in decimal; other values are returned unchanged.

    >>> complement(0.95), 1 - 0.95
    (0.05, 0.050000000000000044)
    """
    return float(1 - Decimal(repr(value))) if isinstance(value, int | float) else value


_FDR: Option = under("TLLM.DETECTOR", DETECTORS["reference"].options)[FDR]
_OLD_DEFAULT = complement(_FDR.default)


def accept_confidence(tllm: CfgNode) -> None:
    """Make a `TLLM` node accept the old spelling of the false discovery rate until `settle_fdr` is called."""
    tllm.DETECTOR["FDR"], tllm.DETECTOR["CONFIDENCE"] = _FDR.default, _OLD_DEFAULT


def settle_fdr(tllm: CfgNode) -> list[str]:
    """Replace the old spelling, CONFIDENCE = 1 - FDR, in a merged `TLLM` node; return error messages."""
    detector = tllm.DETECTOR
    confidence = detector.pop("CONFIDENCE", _OLD_DEFAULT)
    # Object identity distinguishes the default from an equal value in the user's config.
    if confidence is _OLD_DEFAULT:
        return []
    if expected := SHARE(confidence):
        return [f"Expected `{CONFIDENCE}` to be {expected}, but got {shown(confidence)}"]
    if detector.FDR is not _FDR.default and complement(confidence) != detector.FDR:
        return [
            f"Expected `{CONFIDENCE}`, the old spelling of 1 - FDR, to agree with `{FDR}`, but got {confidence:g} and "
            f"{detector.FDR:g}; leave one of them out"
        ]
    detector["FDR"] = complement(confidence)
    return []


def renamed(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config recorded by any host's run, with old key names replaced by the current ones."""
    known = dict(config)
    for name in ("TLLM", "DETECTOR", "options"):
        if isinstance(known.get(name), Mapping):
            known[name] = renamed(known[name])
    for old, new in (("CONFIDENCE", "FDR"), (OLD_FLAG, _FDR.flag)):
        if old in known:
            known.setdefault(str(new), complement(known.pop(old)))
    return known


def first_spelling(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values by full key in their first spelling, so that runs named by older versions are found.

    Options of users' own detectors and methods are omitted at their defaults, so that installing a package does not
    rename a run.
    """
    ours = {key for prefix, options, is_ours in _declared() if is_ours for key in under(prefix, options)}
    of_users = {key: option.default for key, option in table().items() if key not in ours}
    spelled = {}
    for key, value in values.items():
        if key == FDR:
            spelled[CONFIDENCE] = complement(value)
        elif not (key in of_users and of_users[key] == value) and not (key in METHODS and not value):
            spelled[key] = value
    return spelled


#: In RepDistiller these are flags of the host's own.
INNER = (
    Option("distiller", "KD", None, "inner distiller if DISTILLER.TYPE is TLLM", flag=None),
    Option("trainer", "base", None, "trainer of the host whose loop is used", flag=None),
)
_REFERENCE = Option(
    "reference", "", None, "run folder of a vanilla student for the detector reference; empty: train one first"
)
_CLASSES = Option("classes", [], None, "classes of the detector fixed: class indices, class names, or a flags.json")


def _declared() -> Iterator[tuple[str, Iterable[Option], bool]]:
    """Yield nodes with their options and whether the options are part of TLLM."""
    kinds = f"detector of undistillable classes: {', '.join(DETECTORS)}"
    kind = Option("type", "reference", one_of(DETECTORS), kinds, flag="tllm_detector")
    yield "TLLM", (*INNER, *WRAPPER, *POLICY, *HOLDOUT, *SPEED), True
    yield "TLLM.DETECTOR", (kind, _REFERENCE, _CLASSES), True
    for detector in DETECTORS.values():
        yield "TLLM.DETECTOR", detector.options, detector.__module__.startswith("tllm_plugin.")
    for name, method in METHODS.items():
        yield name, method.options, method.__module__.startswith("tllm_plugin.")
