"""`tllm host`: install and check checkouts of the codebases that TLLM plugs into."""

from __future__ import annotations

import argparse
from typing import Any

from tllm_plugin.core.errors import TLLMError
from tllm_plugin.hosts import checkouts, host_check
from tllm_plugin.hosts.console import say, write_json_result


def run(options: argparse.Namespace) -> None:
    """Run the action."""
    {"install": _install, "status": _status, "check": _check}[options.action](options)


def _install(options: argparse.Namespace) -> None:
    status = checkouts.install(options.name, options.origin, patched=not options.no_patch)
    say(f"{options.name} {checkouts.source_of(options.name).commit[:12]} in {status.root}")
    say(f"patches applied: {', '.join(status.patches) or 'none'}")


def _status(options: argparse.Namespace) -> None:
    found: list[dict[str, Any]] = []
    for name in checkouts.SOURCES:
        for status in filter(None, (checkouts.status_of(name, patched=patched) for patched in (True, False))):
            problem = status.problem or checkouts.import_problem(name, status.root)
            if problem.startswith("ModuleNotFoundError"):
                problem += f"; run: pip install 'tllm-plugin[{name}]'"
            found.append(
                {
                    "host": name,
                    "root": str(status.root),
                    "commit": checkouts.source_of(name).commit,
                    "patches": list(status.patches),
                    "problem": problem,
                }
            )
    if options.json:
        write_json_result(options.json, {"checkouts": found})
        return
    for name in checkouts.SOURCES:
        here = [item for item in found if item["host"] == name]
        if not here:
            say(f"{name}: not installed; run: tllm host install {name}")
        for item in here:
            say(f"{name}: {item['root']}")
            say(f"  commit   {item['commit']}")
            say(f"  patches  {', '.join(item['patches']) or 'none'}")
            say(f"  state    {item['problem'] or 'as installed; can be imported'}")


def _check(options: argparse.Namespace) -> None:
    root = options.path.expanduser().resolve()
    if options.json != "-":
        say(host_check.heading(root))
    result = host_check.check_checkout(
        options.path,
        script=options.script,
        options=[word for word in options.words if word != "--"],
        tell=lambda finding: None if options.json == "-" else say(host_check.line_of(finding)),
    )
    if options.json:
        methods = [method._asdict() for method in result.methods]
        found = {"facts": result.facts, "methods": methods, "problem": result.problem}
        write_json_result(options.json, {"root": str(root), "commit": host_check.commit_of(root), **found})
    if result.problem:
        raise TLLMError(f"no method of {options.path} could be tried")
    if options.json != "-":
        say(host_check.summary(result))
