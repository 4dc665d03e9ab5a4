"""Reading yacs configs so that *all* problems are reported together, each with the key's full name."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from yacs.config import CfgNode

from tllm_plugin.core.errors import ConfigError, unknown_name

#: A rule returns what was expected, or None where the value is fine.
Rule = Callable[[Any], str | None]


def merge_file(cfg: CfgNode, path: Path) -> list[str]:
    """Merge a YAML file into `cfg` and return the problems, one sentence each."""
    try:
        loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        return [f"Expected {path} to be a readable YAML file, but {error}"]
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        return [f"Expected {path} to be a YAML file, but {' '.join(str(error).split())}"]
    if loaded is None:
        return []
    if not isinstance(loaded, Mapping):
        return [f"Expected {path} to hold keys and values, but got a {type(loaded).__name__}"]
    return _merge(cfg, loaded, "")


def merge_options(cfg: CfgNode, options: Iterable[str]) -> list[str]:
    """Merge `KEY VALUE KEY VALUE ...` as typed on a command line and return the problems."""
    items = list(options)
    if len(items) % 2:
        return [f"Expected overrides as pairs KEY VALUE, but got an odd number of words: {' '.join(items)}"]
    problems = []
    for key, text in zip(items[::2], items[1::2], strict=True):
        # Text is taken as typed: to YAML, a path with `: ` in it or a name like 007 would be something else.
        quoted = text.startswith(("'", '"'))
        nested: Any = text if _is_text(cfg, key) and not quoted else _parse(text)
        for part in reversed(key.split(".")):
            nested = {part: nested}
        problems += _merge(cfg, nested, "")
    return problems


def check(cfg: CfgNode, rules: Mapping[str, Rule]) -> list[str]:
    """Return a sentence for every key of `rules` whose value its rule refuses."""
    problems = []
    for key, rule in rules.items():
        value = lookup(cfg, key)
        expected = rule(value)
        if expected is not None:
            problems.append(f"Expected `{key}` to be {expected}, but got {value!r}")
    return problems


def lookup(cfg: CfgNode, key: str) -> Any:
    """Return the value of a dotted key."""
    for part in key.split("."):
        cfg = cfg[part]
    return cfg


def refuse(problems: list[str]) -> None:
    """Raise all problems as one error.

    Raises:
        ConfigError: There are problems.
    """
    if problems:
        raise ConfigError("\n".join(problems))


def number_in(low: float, high: float, *, open_low: bool = False, open_high: bool = False) -> Rule:
    """Return a rule for numbers in an interval; infinite ends are left out of the message."""

    def rule(value: Any) -> str | None:
        above = value > low if open_low else value >= low
        below = value < high if open_high else value <= high
        if above and below and not math.isnan(value):
            return None
        if math.isinf(high):
            return f"{'more than' if open_low else 'at least'} {low:g}"
        return f"in {'(' if open_low else '['}{low:g}, {high:g}{')' if open_high else ']'}"

    return rule


def at_least(low: float) -> Rule:
    """Return a rule for finite numbers not below `low`."""
    return number_in(low, math.inf, open_high=True)


def more_than(low: float) -> Rule:
    """Return a rule for finite numbers above `low`."""
    return number_in(low, math.inf, open_low=True, open_high=True)


def one_of(known: Iterable[str]) -> Rule:
    """Return a rule for names; the message lists the known ones."""
    names = sorted(known)
    return lambda value: None if value in names else f"one of {', '.join(names)}"


def _merge(cfg: CfgNode, loaded: Mapping[Any, Any], prefix: str) -> list[str]:
    problems = []
    for key, value in loaded.items():
        name = f"{prefix}{key}"
        if key not in cfg:
            problems.append(unknown_name(f"{prefix[:-1] or 'top-level'} key", key, cfg))
        elif isinstance(cfg[key], CfgNode):
            if isinstance(value, Mapping):
                problems += _merge(cfg[key], value, f"{name}.")
            else:
                problems.append(f"Expected `{name}` to hold keys and values, but got {value!r}")
        else:
            fitted, expected = _fit(value, cfg[key])
            if expected is None:
                cfg[key] = fitted
            else:
                problems.append(f"Expected `{name}` to be {expected}, but got {value!r}")
    return problems


def _fit(value: Any, default: Any) -> tuple[Any, str | None]:
    """Return `value` as the type of `default`, and what was expected where it does not fit."""
    if isinstance(default, bool):
        return value, None if isinstance(value, bool) else "true or false"
    if isinstance(default, (int, float)):
        number = _number(value)
        whole = isinstance(default, int)
        if number is None or (whole and not (math.isfinite(number) and number == int(number))):
            return value, "a whole number" if whole else "a number"
        return type(default)(number), None
    if isinstance(default, str):
        # `path: 123` is a number to YAML, but a name to its writer.
        return (str(value), None) if isinstance(value, (str, int)) and not isinstance(value, bool) else (value, "text")
    if isinstance(default, (list, tuple)):
        return (type(default)(value), None) if isinstance(value, (list, tuple)) else (value, "a list")
    return value, None


def _number(value: Any) -> float | int | None:
    """Return a value that stands for a number as one that every float can be compared with, or None."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        # YAML 1.1 reads 1e-4 as text. An integer that no float can hold overflows here and is no number to us.
        as_float = float(value)
    except (ValueError, OverflowError):
        return None
    return as_float if isinstance(value, str) else value


def _is_text(cfg: CfgNode, key: str) -> bool:
    found: Any = cfg
    for part in key.split("."):
        if not isinstance(found, CfgNode) or part not in found:
            return False
        found = found[part]
    return isinstance(found, str)


def _parse(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        return text
