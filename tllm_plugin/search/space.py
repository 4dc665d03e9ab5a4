"""Parse and enumerate search spaces: config keys with lists or ranges of values."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from yacs.config import CfgNode

from tllm_plugin.core.detectors import DETECTORS, detector_options
from tllm_plugin.core.errors import unknown_name
from tllm_plugin.hosts.config_checks import lookup, merge_options
from tllm_plugin.hosts.options import CONFIDENCE, FDR, accept_confidence, complement, settle_fdr
from tllm_plugin.hosts.run_spec import Mark, RunSpec
from tllm_plugin.hosts.tllm_node import check_tllm

ETA = "TLLM.DETECTOR.ETA"
TYPE = "TLLM.DETECTOR.TYPE"

Values = dict[str, Any]


@dataclass(frozen=True)
class Dimension:
    """One searched key with its values or its range.

    Args:
        key: Full name of the key.
        choices: Values to try; empty for a range.
        low: Lower end of the range, included.
        high: Upper end of the range, included.
        log: Whether the range is sampled on a logarithmic scale.
        whole: Whether the values are integers.
    """

    key: str
    choices: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    whole: bool = False

    @property
    def is_range(self) -> bool:
        """Whether the dimension is a range; a dimension with refused values is neither a range nor a list."""
        return not self.choices and self.low < self.high

    def __str__(self) -> str:
        if self.choices:
            return f"{self.key}={','.join(map(str, self.choices))}"
        return f"{self.key}={self.low:g}:{self.high:g}{':log' if self.log else ''}"


def grid(space: Sequence[Dimension]) -> list[Values]:
    """Return all combinations of the dimensions' choices, ordered so that consecutive trials share many epochs.

    Larger numbers come first: a run with a larger eta flags later, so that more of its epochs can be shared.
    """
    ordered = [
        sorted(item.choices, reverse=True) if all(isinstance(x, int | float) for x in item.choices) else item.choices
        for item in space
    ]
    keys = [item.key for item in space]
    return [dict(zip(keys, values, strict=True)) for values in itertools.product(*ordered)]


def searchable_keys(cfg: CfgNode) -> tuple[str, ...]:
    """Return the full names of the searchable keys: detector options first, then treatment options."""
    spec = RunSpec.of(cfg)
    return tuple(
        key
        for mark in (Mark.DETECTION, Mark.TREATMENT)
        for key, value in spec.values.items()
        if spec.mark(key) is mark and not isinstance(value, list | tuple)
    )


def parse_space(words: Sequence[str], cfg: CfgNode) -> tuple[tuple[Dimension, ...], list[str]]:
    """Read `KEY=low:high`, `KEY=low:high:log` and `KEY=a,b,c`, where KEY is a full name or its last part.

    Args:
        words: One argument per dimension.
        cfg: Config that the trials modify; not changed.

    Returns:
        Dimensions, and problems, one sentence each.
    """
    known = {name: key for key in (*searchable_keys(cfg), CONFIDENCE) for name in (key, key.rpartition(".")[2])}
    dimensions: list[Dimension] = []
    problems: list[str] = []
    for word in words:
        name, equals, content = word.partition("=")
        key = known.get(name.upper())
        if not equals or not content:
            problems.append(f"Expected `--space` as KEY=low:high, KEY=low:high:log or KEY=a,b,c, but got {word!r}")
        elif key is None:
            problems.append(unknown_name("--space key", name, {key.rpartition(".")[2] for key in known}))
        elif any(_of_today(item.key) == _of_today(key) for item in dimensions):
            problems.append(f"Expected `{key}` once in the search space, but got it again: {word!r}")
        else:
            dimension, found = _dimension(key, content, cfg)
            problems += found
            dimensions.append(dimension)
    return tuple(dimensions), problems + _without_effect(dimensions, cfg)


def shown_value(value: Any) -> str:
    """Return a searched value as text, numbers with four significant digits."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def detector_kinds(space: Sequence[Dimension], cfg: CfgNode) -> tuple[str, ...]:
    """Return the detectors that trials may have: the searched ones, otherwise the config's."""
    return next((item.choices for item in space if item.key == TYPE), (cfg.TLLM.DETECTOR.TYPE,))


def with_values(cfg: CfgNode, values: Mapping[str, Any]) -> CfgNode:
    """Return a frozen copy of `cfg` with some keys set."""
    changed = cfg.clone()
    changed.defrost()
    for key, value in values.items():
        parent, _, name = _of_today(key).rpartition(".")
        lookup(changed, parent)[name] = complement(value) if key == CONFIDENCE else value
    changed.freeze()
    return changed


def _of_today(key: str) -> str:
    """Return the key that a search sets; searches that were started with the old spelling keep it."""
    return FDR if key == CONFIDENCE else key


def _dimension(key: str, content: str, cfg: CfgNode) -> tuple[Dimension, list[str]]:
    default = lookup(cfg, _of_today(key))
    is_number = isinstance(default, int | float) and not isinstance(default, bool)
    if ":" not in content or not is_number:
        values, problems = _read(key, content.split(","), cfg)
        if len(set(map(repr, values))) < len(values):
            problems.append(f"Expected the values of `{key}` to differ, but got {content!r}")
        return Dimension(key, choices=tuple(values)), problems
    low, _, rest = content.partition(":")
    high, _, scale = rest.partition(":")
    values, problems = _read(key, [low, high], cfg)
    if scale not in ("", "log"):
        problems.append(f"Expected `{key}` as low:high or low:high:log, but got {content!r}")
    if len(values) == 2:
        if values[0] >= values[1]:
            problems.append(f"Expected the range of `{key}` to ascend, but got {content!r}")
        elif scale == "log" and values[0] <= 0:
            problems.append(f"Expected the range of `{key}` to begin above 0 for `log`, but got {content!r}")
        ends = float(values[0]), float(values[1])
        return Dimension(key, (), *ends, log=scale == "log", whole=isinstance(default, int)), problems
    return Dimension(key), problems


def _read(key: str, texts: Sequence[str], cfg: CfgNode) -> tuple[list[Any], list[str]]:
    """Parse the values in `texts`; return them and the problems of values that the config refuses."""
    values, problems = [], []
    known = set(check_tllm(cfg))
    for text in texts:
        changed = cfg.clone()
        changed.defrost()
        accept_confidence(changed.TLLM)
        found = merge_options(changed, [key, text])
        value = lookup(changed, key)
        found = found or settle_fdr(changed.TLLM)
        found = found or [problem for problem in check_tllm(changed) if problem not in known]
        problems += found
        if not found:
            values.append(value)
    return values, problems


def _without_effect(dimensions: Sequence[Dimension], cfg: CfgNode) -> list[str]:
    """Return a sentence for every dimension that no detector of the search uses."""
    kinds = tuple(kind for kind in detector_kinds(dimensions, cfg) if kind in DETECTORS)
    if not kinds:
        return []  # Reported already.
    problems = []
    for item in dimensions:
        node, _, name = _of_today(item.key).rpartition(".")
        if node == "TLLM.DETECTOR":
            used = name == "TYPE" or any(
                name.lower() in detector_options(kind) or name in {option.key for option in DETECTORS[kind].options}
                for kind in kinds
            )
        else:
            used = kinds != ("none",) and (name != "LABEL_SMOOTHING" or any(DETECTORS[k].smooths_labels for k in kinds))
        if not used:
            problems.append(
                f"Expected keys that the detector `{', '.join(kinds)}` uses, but `{item.key}` has no effect"
            )
    return problems
