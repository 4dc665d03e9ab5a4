"""Read yacs configs and report all problems together, each with the full name of the key."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from yacs.config import CfgNode

from tllm_plugin.core.errors import ConfigError, closest, unknown_name
from tllm_plugin.core.escaping import visible
from tllm_plugin.hosts.yaml_text import MOST_CHARACTERS, Written, plain, read_yaml


def merge_file(cfg: CfgNode, path: Path) -> list[str]:
    """Merge a YAML file into `cfg` and return the problems, one sentence each."""
    try:
        loaded = read_file(path)
    except ConfigError as error:
        return [str(error)]
    if loaded is None:
        return []
    if not isinstance(loaded, Mapping):
        return [f"Expected {path} to hold keys and values, but got a {type(plain(loaded)).__name__}"]
    return _merge(cfg, with_switch(loaded), "")


def with_switch(loaded: Any) -> Any:
    """Return the content of a YAML file with the key `TLLM.ON` restored; YAML reads an unquoted ON as true."""
    node = loaded.get("TLLM") if isinstance(loaded, Mapping) else None
    if not isinstance(node, Mapping) or not any(key is True or plain(key) is True for key in node):
        return loaded
    return {**loaded, "TLLM": {"ON" if plain(key) is True else key: value for key, value in node.items()}}


def read_file(path: Path) -> Any:
    """Return the content of a YAML file; see `read_yaml`.

    Raises:
        ConfigError: The file cannot be read, or is not one YAML document.
    """
    try:
        # Read slightly more than is allowed, so that an endless device does not block.
        with path.open("rb") as file:
            data = file.read(4 * MOST_CHARACTERS + 1)
        text = data.decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"Expected {path} to be a readable YAML file, but {error}") from error
    try:
        return read_yaml(text)
    except ConfigError as error:
        raise ConfigError(f"Expected {path} to be a YAML file, but {error}") from error


def check_file(path: Path) -> list[str]:
    """Return the problems of a YAML file that a host reads itself, whose keys are unknown here."""
    try:
        return [
            f"Expected `{key}` in {path} to be in decimal digits, but got {_Unfit('', value, misread=True).got}"
            for key, value in _words(read_file(path))
            if value.misleads
        ]
    except ConfigError as error:
        return [str(error)]


def _words(loaded: Any, name: str = "") -> Iterator[tuple[str, Written]]:
    if isinstance(loaded, Written):
        yield name, loaded
    elif isinstance(loaded, Mapping):
        for key, value in loaded.items():
            yield from _words(value, f"{name}.{key}" if name else str(key))
    elif isinstance(loaded, (list, tuple)):
        for value in loaded:
            yield from _words(value, name)


def merge_options(cfg: CfgNode, options: Iterable[str]) -> list[str]:
    """Merge `KEY VALUE KEY VALUE ...` from a command line and return the problems."""
    items = list(options)
    if len(items) % 2:
        return [f"Expected overrides as pairs KEY VALUE, but got an odd number of words: {' '.join(items)}"]
    problems = []
    for key, text in zip(items[::2], items[1::2], strict=True):
        # Values of text keys are not parsed, because YAML would change paths with `: ` and names such as 007.
        quoted = text.startswith(("'", '"'))
        problems += merge_values(cfg, {key: text if _is_text(cfg, key) and not quoted else _parse(text)})
    return problems


def merge_values(cfg: CfgNode, values: Mapping[str, Any]) -> list[str]:
    """Merge values by dotted key into `cfg` and return the problems, one sentence each."""
    problems = []
    for key, value in values.items():
        nested: Any = value
        for part in reversed(key.split(".")):
            nested = {part: nested}
        problems += _merge(cfg, nested, "")
    return problems


def lookup(cfg: CfgNode, key: str, *default: Any) -> Any:
    """Return the value of a dotted key, or `default`, if given, for a missing key."""
    for part in key.split("."):
        if default and part not in cfg:
            return default[0]
        cfg = cfg[part]
    return cfg


def flat(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted key, value) for every value in nested sections; the value of an empty section is {}.

    >>> list(flat({"SOLVER": {"LR": 0.1}, "KD": {}}))
    [('SOLVER.LR', 0.1), ('KD', {})]
    """
    for name, value in content.items():
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", {} if isinstance(value, Mapping) else value


def refuse(problems: list[str]) -> None:
    """Raise all problems as one error, one line each.

    Raises:
        ConfigError: There are problems.
    """
    if problems:
        raise ConfigError("\n".join(map(visible, problems)))


def _merge(cfg: CfgNode, loaded: Mapping[Any, Any], prefix: str) -> list[str]:
    problems = []
    for key, value in loaded.items():
        name = f"{prefix}{key}"
        if key not in cfg:
            problems.append(_unknown_key(cfg, key, prefix))
        elif isinstance(cfg[key], CfgNode):
            if isinstance(value, Mapping):
                problems += _merge(cfg[key], value, f"{name}.")
            else:
                problems.append(f"Expected `{name}` to hold keys and values, but got {shown(value)}")
        else:
            try:
                cfg[key] = _fit(value, cfg[key])
            except _Unfit as unfit:
                problems.append(f"Expected `{name}` to be {unfit.expected}, but got {unfit.got}")
    return problems


def _unknown_key(cfg: CfgNode, key: Any, prefix: str) -> str:
    """Return the error message for an unknown key, with a suggestion from this section, or from those inside it."""
    message = unknown_name(f"{prefix[:-1] or 'top-level'} key", key, cfg)
    full_names = {full.rpartition(".")[2]: full for full, _ in reversed(list(flat(cfg)))}
    found = None if closest(str(key), cfg) else closest(str(key), full_names)
    return message if found is None else f"{message}; did you mean {prefix}{full_names[found]}?"


class _Unfit(Exception):
    """A value does not fit its key.

    Args:
        expected: Description of the expected value.
        value: Actual value.
        misread: Whether YAML may have read something else than was meant.
    """

    def __init__(self, expected: str, value: Any, *, misread: bool = False) -> None:
        self.expected = expected
        self.got = shown(plain(value))
        if misread and isinstance(value, Written) and value.text:
            read = "nothing" if value.value is None else self.got
            self.got = f"{value.text}, which YAML reads as {read}; put it in quotes to use it as written"


def shown(value: Any) -> str:
    """Return a value as text for an error message, shortened."""
    short = reprlib.Repr()
    short.maxlist = short.maxtuple = short.maxdict = 6
    short.maxstring = short.maxother = short.maxlong = 200
    return short.repr(value)


def _fit(value: Any, default: Any) -> Any:
    """Return `value` converted to the type of `default`.

    Raises:
        _Unfit: The value has another type, or YAML reads it differently from most readers.
    """
    given = plain(value)
    if isinstance(default, bool):
        if not isinstance(given, bool):
            raise _Unfit("true or false", value)
        return given
    if isinstance(default, (int, float)):
        kind = "a whole number" if isinstance(default, int) else "a number"
        if isinstance(value, Written) and value.misleads:
            raise _Unfit(f"{kind} in decimal digits", value, misread=True)
        number = _number(given)
        whole = number is not None and math.isfinite(number) and number == int(number)
        if number is None or (isinstance(default, int) and not whole):
            raise _Unfit(kind, value)
        return type(default)(number)
    if isinstance(default, str):
        # YAML reads `path: 123` as a number, which can be converted back; `007`, `1.10`, `yes` and dates cannot.
        is_whole = type(given) is int and isinstance(value, Written) and _is_as_written(value)
        if not isinstance(given, str) and not is_whole:
            raise _Unfit("text", value, misread=True)
        return str(given)
    if isinstance(default, (list, tuple)):
        if not isinstance(value, (list, tuple)):
            raise _Unfit("a list", value)
        of_numbers = bool(default) and all(isinstance(item, (int, float)) for item in default)
        for item in value:
            if isinstance(item, Written) and (item.misleads or not (of_numbers or _is_as_written(item))):
                raise _Unfit("a list of unambiguous values", item, misread=True)
        return type(default)(given)
    return given


def _is_as_written(value: Written) -> bool:
    """Return whether a value that YAML parsed is written exactly as in the file."""
    return isinstance(value.value, (int, float)) and str(value.value).lower() == value.text.lower()


def _number(value: Any) -> float | int | None:
    """Return a value as a number that can be compared with every float; None if it is not one."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        # YAML 1.1 reads 1e-4 as text. Integers beyond the range of float are not accepted.
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
        return read_yaml(text)
    except ConfigError:
        return text
