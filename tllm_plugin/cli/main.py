"""Parse the arguments of `tllm`, run a subcommand, and map errors to messages and exit codes.

The parsers of all subcommands are in two light modules. The module of a subcommand, which imports torch, is imported
when the subcommand runs.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any, NoReturn

from tllm_plugin.cli import result_parsers, training_parsers
from tllm_plugin.core.errors import ConfigError, TLLMError, did_you_mean
from tllm_plugin.version import __version__

DONE, FAILED, BAD_USAGE = 0, 1, 2
#: Functions that add the parser of a subcommand, in the order of `tllm --help`.
_PARSERS = (
    *(training_parsers.train, training_parsers.test, training_parsers.search, training_parsers.demo),
    *(training_parsers.validate, training_parsers.power, training_parsers.config),
    *(result_parsers.show, result_parsers.compare, result_parsers.headroom, result_parsers.report),
    *(result_parsers.tables, result_parsers.export, result_parsers.host),
)
#: Subcommands that read configs, which may name detectors and methods of the user's own.
_IMPORTING = ("train", "test", "search", "validate", "power", "config")
_INVALID_CHOICE = re.compile(r"invalid choice: '(.*)' \(choose from (.*)\)")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Print usage and message, with a suggestion if a choice is unknown, and exit."""
        found = _INVALID_CHOICE.search(message)
        if found:
            message += did_you_mean(found[1], [choice.strip("'") for choice in found[2].split(", ")])
        super().error(message)


def build_parser() -> argparse.ArgumentParser:
    """Return the argument parser with all subcommands."""
    parser = _Parser(
        prog="tllm",
        description="Class-wise knowledge distillation: find the classes that a teacher hurts, and stop teaching them.",
        epilog="Example: tllm train --cfg configs/tllm/embedded/digits.yaml SOLVER.EPOCHS 30",
    )
    parser.add_argument("--version", action="version", version=f"tllm-plugin {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for add in _PARSERS:
        _complete(add(commands), importing=add.__name__ in _IMPORTING)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand.

    Returns:
        0 done, 1 failed or interrupted, 2 bad usage or config.
    """
    try:
        options = _parse(sys.argv[1:] if arguments is None else arguments)
    except SystemExit as leaving:
        return int(leaving.code or 0)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # The encoding of a terminal may lack characters of names.
    try:
        return _run(options)
    except KeyboardInterrupt:
        print("tllm: interrupted", file=sys.stderr)
        return FAILED


def _run(options: argparse.Namespace) -> int:
    from tllm_plugin.hosts.console import say, start_logging, writing_output

    start_logging(quiet=options.quiet)
    try:
        if getattr(options, "imports", []):
            import_module("tllm_plugin.hosts.extensions").request_import(options.imports)
        import_module(f"tllm_plugin.cli.{options.command}").run(options)
        with writing_output():
            sys.stdout.flush()  # An error in the flush at Python's exit would have no exit code of ours.
    except SystemExit as leaving:  # Raised by our parser or by a host's script.
        return leaving.code if isinstance(leaving.code, int) else DONE if leaving.code is None else FAILED
    except BrokenPipeError:  # The reader, for example `head`, has closed the pipe.
        return FAILED
    except Exception as error:
        line = _line(error)
        if line is None:
            raise
        say(f"tllm: {line}", file=sys.stderr)
        return BAD_USAGE if isinstance(error, ConfigError) else FAILED
    return DONE


def _line(error: Exception) -> str | None:
    """Return the message of an error that is no programming error; None for all others."""
    from tllm_plugin.core.worker_errors import plain_error

    error = plain_error(error) or error
    if isinstance(error, TLLMError):
        return str(error)
    if isinstance(error, OSError):
        return f"{error.strerror or error}: {error.filename or 'no file named'}"
    return None


def _complete(parser: argparse.ArgumentParser, *, importing: bool) -> None:
    """Add what subcommands have in common; errors are printed with the usage of the subcommand."""
    if importing:
        parser.add_argument(
            "--import",
            action="append",
            default=[],
            dest="imports",
            metavar="MODULE",
            help="module to import first, which registers detectors or methods of your own; may be repeated",
        )
    for leaf in _leaves(parser):
        leaf.add_argument("--quiet", action="store_true", help="print results, warnings and errors only")
        leaf.set_defaults(parser=leaf)


def _leaves(parser: argparse.ArgumentParser) -> list[Any]:
    """Return the parsers of the actions of a subcommand, or the parser itself if it has no actions."""
    nested = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return [leaf for action in nested for leaf in action.choices.values()] or [parser]


def _parse(words: Sequence[str]) -> argparse.Namespace:
    options, rest = build_parser().parse_known_args(list(words))
    # Overrides may be on both sides of an option; argparse takes only the first of them.
    flags = [word for word in rest if word.startswith("--")]
    if rest and (not hasattr(options, "opts") or flags):
        hint = next(filter(None, (did_you_mean(word, options.parser._option_string_actions) for word in flags)), "")
        options.parser.error(f"unrecognized arguments: {' '.join(rest)}{hint}")
    if rest:
        options.opts = [*options.opts, *rest]
    return options
