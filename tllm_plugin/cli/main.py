"""Parse arguments of `tllm` and map errors to messages and exit codes; each subcommand has its own module."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from importlib import import_module

from rich.logging import RichHandler

from tllm_plugin.core.errors import ConfigError, TLLMError
from tllm_plugin.core.worker_errors import plain_error
from tllm_plugin.hosts.console import PlainConsole, PlainFormatter, say, writing_output
from tllm_plugin.hosts.extensions import request_import
from tllm_plugin.version import __version__

DONE, FAILED, BAD_USAGE = 0, 1, 2
#: Modules of this package, in the order of `tllm --help`.
COMMANDS = (
    *("train", "test", "search", "demo", "validate", "power", "config"),
    *("show", "compare", "headroom", "report", "tables", "export", "host"),
)
#: Those that read configs, in which users' own detectors and methods may stand.
IMPORTING = ("train", "test", "search", "validate", "power", "config")


def build_parser(commands_wanted: Sequence[str] = COMMANDS) -> argparse.ArgumentParser:
    """Return the argument parser with the given subcommands."""
    parser = argparse.ArgumentParser(
        prog="tllm",
        description="Class-wise knowledge distillation: find the classes that a teacher hurts, and stop teaching them.",
        epilog="Example: tllm train --cfg configs/tllm/embedded/digits.yaml SOLVER.EPOCHS 30",
    )
    parser.add_argument("--version", action="version", version=f"tllm-plugin {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in commands_wanted:
        import_module(f"tllm_plugin.cli.{name}").add_parser(commands)
        # An error in a command's words is shown with its usage.
        commands.choices[name].set_defaults(parser=commands.choices[name])
        if name in IMPORTING:
            _add_import(commands.choices[name])
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        0 done, 1 failed or interrupted, 2 bad usage or config.
    """
    try:
        options = _parse(sys.argv[1:] if arguments is None else arguments)
    except SystemExit as leaving:
        return int(leaving.code or 0)
    except KeyboardInterrupt:  # While a command's modules are imported.
        return _interrupted()
    except ConfigError as error:  # Of a module of the user's own, which parsers that list its options import.
        print(f"tllm: {error}", file=sys.stderr)
        return BAD_USAGE
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # A terminal may have fewer signs than names do.
    handler = RichHandler(console=PlainConsole(stderr=True), show_path=False, show_level=False, markup=False)
    handler.setFormatter(PlainFormatter("%(message)s", "%H:%M:%S"))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    try:
        options.run(options)
        with writing_output():
            sys.stdout.flush()  # Not when Python ends, whose complaint has no exit code.
    except KeyboardInterrupt:
        return _interrupted()
    except SystemExit as leaving:  # A parser's: ours or a host's script's.
        return leaving.code if isinstance(leaving.code, int) else DONE if leaving.code is None else FAILED
    except BrokenPipeError:  # Whoever reads has seen enough, as `head` has.
        return FAILED
    except Exception as error:
        line = _line(plain_error(error) or error)
        if line is None:
            raise
        say(f"tllm: {line}", file=sys.stderr)
        return BAD_USAGE if isinstance(error, ConfigError) else FAILED
    return DONE


def _add_import(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--import",
        action="append",
        default=[],
        dest="imports",
        metavar="MODULE",
        help="import a module first, which registers detectors or methods of your own; may be repeated",
    )


def _line(error: Exception) -> str | None:
    """Return what is said of an error that is no mistake in a program."""
    if isinstance(error, TLLMError):
        return str(error)
    if isinstance(error, OSError):
        return f"{error.strerror or error}: {error.filename or 'no file named'}"
    return None


def _parse(words: Sequence[str]) -> argparse.Namespace:
    # Before the parsers are made: their help lists what can be set.
    before = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    _add_import(before)
    words = list(words)
    own = words[: words.index("--")] if "--" in words else words
    if own[:1] and own[0] in IMPORTING:
        request_import(before.parse_known_args(own)[0].imports)
    # What the other commands import takes seconds.
    parser = build_parser([name for name in COMMANDS if name in words[:1]] or COMMANDS)
    options, rest = parser.parse_known_args(words)
    # Overrides may stand on both sides of an option; argparse takes the first of them only.
    if rest and (not hasattr(options, "opts") or any(word.startswith("--") for word in rest)):
        options.parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        options.opts = [*options.opts, *rest]
    return options


def _interrupted() -> int:
    print("tllm: interrupted", file=sys.stderr)
    return FAILED
