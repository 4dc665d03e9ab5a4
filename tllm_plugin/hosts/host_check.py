"""Check a checkout of any host: what was found in it, and which of its methods work with TLLM.

A host's package has a module `check`. It runs in a process of its own, in the checkout, and writes its findings to
standard output, one JSON object per line, so that each can be shown at once.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from tllm_plugin.core.errors import ConfigError, TLLMError
from tllm_plugin.core.escaping import visible

#: Verdicts on a method: it trains with TLLM; TLLM refuses it before training; it fails with TLLM, which is a bug of
#: ours; it does not train here without TLLM either.
TRAINS, REFUSED, FAILS, BROKEN = "trains", "refused", "fails", "broken"
_MEANING = {
    TRAINS: "train with TLLM",
    REFUSED: "are refused by TLLM",
    FAILS: "fail with TLLM",
    BROKEN: "do not train in the host either",
}
_WIDTH = 14
# Prefix in the last line of a traceback.
_OUR_ERRORS = f"{ConfigError.__module__}.{ConfigError.__name__}: "


class Fact(NamedTuple):
    """A finding about a part of the checkout.

    Args:
        part: Name of the part, such as `trainers`.
        text: What was found.
    """

    part: str
    text: str


class MethodCheck(NamedTuple):
    """The verdict on one method.

    Args:
        method: Name of the method in the host's options.
        verdict: One of `TRAINS`, `REFUSED`, `FAILS`, `BROKEN`.
        reason: The reason, in one line, or the command with which it trains.
    """

    method: str
    verdict: str
    reason: str = ""


class Problem(NamedTuple):
    """The reason why no method could be tried.

    Args:
        text: One or several lines.
    """

    text: str


Finding = Fact | MethodCheck | Problem
#: Callback with each finding.
Tell = Callable[[Finding], None]
_KINDS: dict[str, type[Finding]] = {kind.__name__: kind for kind in (Fact, MethodCheck, Problem)}


@dataclass(frozen=True)
class CheckResult:
    """All findings about a checkout, in the order in which they came."""

    findings: tuple[Finding, ...]

    @property
    def facts(self) -> dict[str, str]:
        """Findings about parts, by part."""
        return dict(finding for finding in self.findings if isinstance(finding, Fact))

    @property
    def methods(self) -> tuple[MethodCheck, ...]:
        """Verdicts, one per method."""
        return tuple(finding for finding in self.findings if isinstance(finding, MethodCheck))

    @property
    def problem(self) -> str:
        """Reason why no method could be tried, or an empty string."""
        return "\n".join(finding.text for finding in self.findings if isinstance(finding, Problem))

    def counts(self) -> dict[str, int]:
        """Return the number of methods by verdict."""
        found = Counter(method.verdict for method in self.methods)
        return {verdict: found[verdict] for verdict in _MEANING}


def host_of(root: Path) -> str:
    """Return the name of the host that a checkout descends from.

    Raises:
        ConfigError: The folder is no checkout of a known host.
    """
    if (root / "mdistiller").is_dir():
        return "mdistiller"
    if any(root.rglob("helper/loops.py")) or any(root.rglob("*student*.py")):
        return "repdistiller"
    raise ConfigError(
        f"Expected {root} to be a checkout of mdistiller, of RepDistiller or of a descendant, but it has neither a "
        "folder `mdistiller` nor helper/loops.py nor *student*.py"
    )


def check_checkout(
    root: Path, *, script: str = "", options: Sequence[str] = (), tell: Tell = lambda finding: None
) -> CheckResult:
    """Check in a process of its own which methods of a checkout work with TLLM.

    Args:
        root: The checkout.
        script: Train script below `root`; by default the likely ones.
        options: Options of that script.
        tell: Callback with each finding as soon as it is there.

    Raises:
        ConfigError: `root` is no checkout of a known host.
        TLLMError: The process ended early.
    """
    root = root.expanduser().resolve()
    if not root.is_dir():
        raise ConfigError(f"Expected a checkout's folder, but {root} does not exist")
    command = [sys.executable, "-m", f"tllm_plugin.hosts.{host_of(root)}.check", "--script", script, "--", *options]
    paths = os.pathsep.join(filter(None, (str(root), os.environ.get("PYTHONPATH"))))
    # Tensors are too small for several threads.
    ours = {"PYTHONPATH": paths, "PYTHONDONTWRITEBYTECODE": "1", "WANDB_MODE": "disabled", "OMP_NUM_THREADS": "1"}
    env = {**os.environ, **ours}
    findings = []
    with tempfile.TemporaryFile("w+", errors="replace") as printed:
        process = subprocess.Popen(
            command, cwd=root, env=env, stdout=subprocess.PIPE, stderr=printed, text=True, encoding="utf-8"
        )
        assert process.stdout is not None
        try:
            for line in process.stdout:
                kind, values = json.loads(line)
                findings.append(_KINDS[kind](*values))
                tell(findings[-1])
            code = process.wait()
        finally:
            process.kill()
            process.stdout.close()
        if code:
            printed.seek(0)
            last = ([line for line in printed.read().splitlines() if line.strip()] or [f"exit code {code}"])[-1]
            raise TLLMError(f"no method of {root} could be tried: {last.removeprefix(_OUR_ERRORS)}")
    return CheckResult(tuple(findings))


def answer(check: Callable[[Path, str, Sequence[str], Tell], None]) -> None:
    """Run a host's check in the process that `check_checkout` starts, with the working directory as the checkout.

    Args:
        check: Called with the checkout, the script (empty for the likely ones), options of the script and a callback
            that takes the findings.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("--script", default="")
    parser.add_argument("options", nargs="*")
    given = parser.parse_args()
    # The host's scripts print; only findings go to the parent.
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as out:
        os.dup2(2, 1)

        def tell(finding: Finding) -> None:
            print(json.dumps((type(finding).__name__, finding)), file=out, flush=True)

        check(Path.cwd(), given.script, given.options, tell)


def commit_of(root: Path) -> str:
    """Return the commit of a checkout, followed by `+` if tracked files were changed; empty without git."""
    options = {"cwd": root, "capture_output": True, "text": True}
    try:
        top = subprocess.run(["git", "rev-parse", "--show-toplevel", "HEAD"], **options)  # type: ignore[call-overload]
        changed = subprocess.run(["git", "diff", "--quiet", "HEAD"], **options)  # type: ignore[call-overload]
    except FileNotFoundError:
        return ""
    folder, _, commit = top.stdout.strip().partition("\n")
    if top.returncode or Path(folder).resolve() != root.resolve():
        return ""
    return commit + ("+" if changed.returncode else "")


def heading(root: Path) -> str:
    """Return the first line of a report: folder and commit."""
    commit = commit_of(root)
    return f"{root}{f', commit {commit[:12]}' if commit else ''}"


def line_of(finding: Finding) -> str:
    """Return the line, or lines, of a report about one finding."""
    if isinstance(finding, Fact):
        return f"  {finding.part:<{_WIDTH}}  {visible(finding.text)}"
    if isinstance(finding, MethodCheck):
        return f"  {finding.method:<{_WIDTH}}  {finding.verdict:<7}  {visible(finding.reason)}".rstrip()
    return "no method was tried: " + "\n".join(map(visible, finding.text.splitlines()))


def summary(result: CheckResult) -> str:
    """Return the last line of a report: how many methods got which verdict."""
    counts = ", ".join(f"{count} {_MEANING[verdict]}" for verdict, count in result.counts().items())
    return f"of {len(result.methods)} methods: {counts}"
