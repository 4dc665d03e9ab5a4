"""Arguments, exit codes and messages of `tllm`; each subcommand has a file of its own."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from importlib import import_module

from rich.console import Console
from rich.logging import RichHandler

from tllm_plugin.core.errors import ConfigError, TLLMError
from tllm_plugin.version import __version__

DONE, FAILED, BAD_USAGE = 0, 1, 2
#: Modules of this package, in the order of `tllm --help`.
COMMANDS = ("train", "test", "search", "demo", "validate", "show", "compare", "headroom", "report", "tables", "host")


def build_parser(commands_wanted: Sequence[str] = COMMANDS) -> argparse.ArgumentParser:
    """Return the parser of some subcommands."""
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
    handler = RichHandler(console=Console(stderr=True), show_path=False, show_level=False, markup=False)
    logging.basicConfig(level=logging.INFO, format="%(message)s", datefmt="%H:%M:%S", handlers=[handler], force=True)
    try:
        options.run(options)
    except TLLMError as error:
        print(f"tllm: {error}", file=sys.stderr)
        return BAD_USAGE if isinstance(error, ConfigError) else FAILED
    except KeyboardInterrupt:
        return _interrupted()
    except SystemExit as leaving:  # A parser's: ours or a host's script's.
        return leaving.code if isinstance(leaving.code, int) else DONE if leaving.code is None else FAILED
    except OSError as error:
        print(f"tllm: {error.strerror or error}: {error.filename or 'no file named'}", file=sys.stderr)
        return FAILED
    return DONE


def _parse(words: Sequence[str]) -> argparse.Namespace:
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
