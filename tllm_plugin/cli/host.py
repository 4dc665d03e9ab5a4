"""`tllm host`: install and check checkouts of the codebases that TLLM plugs into."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from tllm_plugin.core.errors import TLLMError
from tllm_plugin.hosts import checkouts, host_check
from tllm_plugin.hosts.console import say


def add_parser(commands: Any) -> None:
    """Add the subcommand and its nested subcommands."""
    parser = commands.add_parser(
        "host",
        help="install a host at its pinned commit, or show and check checkouts",
        description="Checkouts of the hosts, in a folder of the user's cache (TLLM_CACHE_DIR).",
        epilog="Example: tllm host install mdistiller",
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    install = actions.add_parser(
        "install",
        help="clone the pinned commit and apply our patches",
        description="Clone the pinned commit of a host and apply our patches in a work tree of its own.",
        epilog="Example: tllm host install mdistiller --no-patch",
    )
    install.add_argument("name", metavar="HOST", help=f"one of {', '.join(checkouts.SOURCES)}")
    install.add_argument("--from", dest="origin", default="", metavar="GIT_URL_OR_PATH", help="clone from there")
    install.add_argument("--no-patch", action="store_true", help="leave the host as its authors left it")
    install.set_defaults(run=run_install)
    status = actions.add_parser(
        "status",
        help="show what is installed, patched and importable",
        description="Show which hosts are installed, which patches are applied, and whether the host imports.",
        epilog="Example: tllm host status",
    )
    status.set_defaults(run=run_status)
    check = actions.add_parser(
        "check",
        help="check which methods of any checkout, including forks and edited ones, work with TLLM",
        description="Train every method of a checkout of mdistiller, RepDistiller or a descendant for two steps on "
        "random images, in a process of its own, and print what works with TLLM, what does not, and why. Nothing in "
        "the checkout is changed.",
        epilog="Example: tllm host check ~/code/my-fork",
    )
    check.add_argument("path", metavar="PATH", type=Path, help="root of the checkout")
    check.add_argument("--script", default="", metavar="FILE", help="train script below PATH (default: likely ones)")
    check.add_argument("words", nargs="*", metavar="OPTION", help="after --: options of that script")
    check.set_defaults(run=run_check)


def run_install(options: argparse.Namespace) -> None:
    """Install one host and say where it is."""
    status = checkouts.install(options.name, options.origin, patched=not options.no_patch)
    say(f"{options.name} {checkouts.source_of(options.name).commit[:12]} in {status.root}")
    say(f"patches applied: {', '.join(status.patches) or 'none'}")


def run_status(options: argparse.Namespace) -> None:
    """Print the state of every host's installation."""
    for name in checkouts.SOURCES:
        found = [status for patched in (True, False) if (status := checkouts.status_of(name, patched=patched))]
        if not found:
            say(f"{name}: not installed; tllm host install {name}")
        for status in found:
            problem = status.problem or checkouts.import_problem(name, status.root)
            if problem.startswith("ModuleNotFoundError"):
                problem += f"; pip install 'tllm-plugin[{name}]' brings what it needs"
            say(f"{name}: {status.root}")
            say(f"  commit   {checkouts.source_of(name).commit}")
            say(f"  patches  {', '.join(status.patches) or 'none'}")
            say(f"  state    {problem or 'as installed, imports'}")


def run_check(options: argparse.Namespace) -> None:
    """Print which methods of a checkout work, one line at a time; fail if none could be tried."""
    say(host_check.heading(options.path.expanduser().resolve()))
    result = host_check.check_checkout(
        options.path,
        script=options.script,
        options=[word for word in options.words if word != "--"],
        tell=lambda finding: say(host_check.line_of(finding)),
    )
    if result.problem:
        raise TLLMError(f"no method of {options.path} could be tried")
    say(host_check.summary(result))
