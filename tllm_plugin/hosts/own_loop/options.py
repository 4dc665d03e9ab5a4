"""Options of a session as keyword arguments, derived from the option table."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from yacs.config import CfgNode

from tllm_plugin.core.detectors import DETECTORS
from tllm_plugin.core.errors import ConfigError, unknown_name
from tllm_plugin.hosts.config_checks import merge_values, refuse
from tllm_plugin.hosts.options import INNER, table
from tllm_plugin.hosts.tllm_node import check_tllm, tllm_node

_NOT_HERE = {f"TLLM.{option.key}" for option in INNER}
#: Keys of a run's config that are not options -> the argument of `Session` that they come from.
_ARGUMENTS = {"SOLVER.EPOCHS": "epochs", "TLLM.DETECTOR.TYPE": "detector"}
_KEY = re.compile(r"`?\b(?:TLLM|SOLVER|DISTILLER|SESSION)\.[A-Z_.]*[A-Z_]\b`?")


def keyword_of(key: str) -> str:
    """Return the keyword argument for a config key.

    >>> [keyword_of(key) for key in ("TLLM.DETECTOR.ETA", "TLLM.HOLDOUT.FRACTION", "TLLM.DETECTOR.TYPE")]
    ['eta', 'holdout_fraction', 'detector']
    """
    if key in _ARGUMENTS:
        return _ARGUMENTS[key]
    if not key.startswith("TLLM."):
        return "distiller"
    return key.removeprefix("TLLM.").removeprefix("DETECTOR.").replace(".", "_").lower()


def keywords() -> dict[str, str]:
    """Return the config key of every keyword argument, those of users' own detectors included."""
    return {keyword_of(key): key for key in table() if key.startswith("TLLM.") and key not in _NOT_HERE}


def session_node(options: Mapping[str, Any]) -> CfgNode:
    """Return a checked `TLLM` node with today's defaults and the given options.

    Raises:
        ConfigError: An option is unknown, of a wrong type or out of range; or the detector needs a reference, and none
            is given.
    """
    known = keywords()
    refuse([unknown_name("option", name, known) for name in options if name not in known])
    cfg = CfgNode({"TLLM": tllm_node()})
    given = {known[name]: value for name, value in options.items()}
    with errors_name_keywords():
        refuse(merge_values(cfg, given) or check_tllm(cfg))
    detector = cfg.TLLM.DETECTOR
    if DETECTORS[detector.TYPE].needs_reference and not detector.REFERENCE:
        raise ConfigError(
            "Expected `reference` to be the run folder of a vanilla student, but got none: train one first, with "
            "`Session(Vanilla(student), ..., detector='none')`, or take `detector='imitation'`, which needs none"
        )
    node: CfgNode = cfg.TLLM
    return node


@contextmanager
def errors_name_keywords() -> Iterator[None]:
    """Replace config keys by keyword arguments in the messages of errors that the block raises."""
    try:
        yield
    except ConfigError as error:
        message = _KEY.sub(lambda found: f"`{keyword_of(found[0].strip('`'))}`", str(error))
        raise ConfigError(message) from None
