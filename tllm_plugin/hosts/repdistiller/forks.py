"""Parse the options of a descendant's train script; its own options have precedence over those that TLLM adds."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from tllm_plugin.core.errors import ConfigError
from tllm_plugin.hosts.repdistiller.images import DATASETS
from tllm_plugin.hosts.repdistiller.method_flags import student_methods
from tllm_plugin.hosts.repdistiller.options import parse_student

_NEEDED = ("distill", "model_s", "path_t", "dataset", "epochs")
#: Prefix of TLLM's methods whose names the host has as well.
_OURS = "tllm_"


def parse_fork(
    parser: argparse.ArgumentParser, *, methods: Sequence[str], images: bool, ours: bool
) -> argparse.Namespace:
    """Parse a student's arguments like `parse_student`, in a script with unknown options.

    Options and methods of the host keep their names; a method of TLLM with the same name is called
    `--distill tllm_<name>`.

    Args:
        parser: The host's parser, with its options.
        methods: Values that the script compares its option `distill` with.
        images: Whether the script can use the data sets that TLLM brings.
        ours: Whether it can use the methods that TLLM brings.

    Raises:
        ConfigError: The host lacks options that TLLM needs; or one line per problem of their values.
    """
    actions = {action.dest: action for action in parser._actions}
    missing = [name for name in _NEEDED if name not in actions]
    if missing:
        lines = "\n".join(f"      parser.add_argument('--{name}', ...)" for name in missing)
        raise ConfigError(f"Expected the script to have options that TLLM needs; to be written:\n{lines}")
    distill, dataset = actions["distill"], actions["dataset"]
    if distill.choices is None:
        distill.choices = list(methods)
    own = tuple(distill.choices)
    add, parse = parser.add_argument, parser.parse_args

    ours_instead: dict[str, Any] = {}  # For options with another meaning in the host.
    theirs: dict[str, Any] = {}

    def add_unless_there(*names: str, **keywords: Any) -> Any:
        taken = [parser._option_string_actions[name] for name in names if name in parser._option_string_actions]
        if not taken:
            return add(*names, **keywords)
        off = False if keywords.get("action") == "store_true" else None
        ours_instead[taken[0].dest] = keywords.get("default", off)
        return taken[0]

    def parse_own_first(*arguments: Any, **keywords: Any) -> Any:
        distill.choices = [*own, *(_ours(name, own) for name in student_methods() if ours)]
        if not images and dataset.choices is not None:
            dataset.choices = [name for name in dataset.choices if name not in DATASETS]
        options = parse(*arguments, **keywords)
        for name, value in ours_instead.items():
            theirs[name] = getattr(options, name)
            setattr(options, name, value)
        if not hasattr(options, "print_freq"):
            options.print_freq = 100
        if options.distill not in own:
            options.distill = options.distill.removeprefix(_OURS)
            for name in ("alpha", "beta"):
                if getattr(options, name, None) == parser.get_default(name) is not None:
                    theirs[name] = parser.get_default(name)  # Not asked for, so it is no mistake.
                    setattr(options, name, None)
        elif options.distill in student_methods():
            options.tllm_host_method = True
            # While ours are checked, which it is none of.
            options.distill = f"the host's {options.distill}"
        return options

    parser.add_argument = add_unless_there  # type: ignore[method-assign]
    parser.parse_args = parse_own_first  # type: ignore[method-assign,assignment]
    options = parse_student(parser)
    vars(options).update(theirs)
    options.distill = options.distill.removeprefix("the host's ")
    return options


def _ours(name: str, own: Sequence[str]) -> str:
    return f"{_OURS}{name}" if name in own else name
