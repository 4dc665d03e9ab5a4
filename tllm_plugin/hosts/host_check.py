"""Check which methods of a host's checkout work with TLLM (`tllm host check`).

The module `check` of each host's package runs in a separate process inside the checkout, as
`python -m tllm_plugin.hosts.<host>.check RESULT.json [WORDS...]`, and writes a `CheckResult` there.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tllm_plugin.core.errors import ConfigError, TLLMError
from tllm_plugin.core.escaping import visible

#: Verdicts on a method: TLLM trains it; TLLM refuses it before training; it fails with TLLM, our mistake; the host
#: itself does not train it here.
TRAINS, REFUSED, FAILS, BROKEN = "trains", "refused", "fails", "broken"
_MEANING = {
    TRAINS: "train with TLLM",
    REFUSED: "are refused by TLLM",
    FAILS: "fail with TLLM",
    BROKEN: "do not train in the host either",
}


@dataclass(frozen=True)
class MethodCheck:
    """Result for one method.

    Args:
        method: Name of the method in the host's options.
        verdict: One of `TRAINS`, `REFUSED`, `FAILS`, `BROKEN`.
        reason: Reason in one line, or the options with which the method trains.
    """

    method: str
    verdict: str
    reason: str = ""


@dataclass(frozen=True)
class CheckResult:
    """Result of checking a checkout.

    Args:
        facts: Pairs (part of the host, description).
        methods: One entry per method.
        problem: Reason why no method could be tried; empty if one could.
    """

    facts: tuple[tuple[str, str], ...]
    methods: tuple[MethodCheck, ...] = ()
    problem: str = ""

    def counts(self) -> dict[str, int]:
        """Return the number of methods per verdict."""
        found = Counter(method.verdict for method in self.methods)
        return {verdict: found[verdict] for verdict in _MEANING}


def host_of(root: Path) -> str:
    """Return the host that a checkout is a fork of.

    Raises:
        ConfigError: The checkout resembles none of the hosts.
    """
    if (root / "mdistiller").is_dir():
        return "mdistiller"
    if any(root.rglob("helper/loops.py")) or any(root.rglob("*student*.py")):
        return "repdistiller"
    raise ConfigError(
        f"Expected {root} to be a checkout of mdistiller, of RepDistiller or of a descendant, but it has neither a "
        "folder `mdistiller` nor helper/loops.py nor *student*.py"
    )


def check_checkout(root: Path, words: Sequence[str] = ()) -> CheckResult:
    """Check the methods of a checkout in a separate process.

    Args:
        root: Root of the checkout.
        words: Arguments for the host's module `check`.

    Raises:
        ConfigError: `root` is not a checkout of a known host.
        TLLMError: The process ended without a result.
    """
    root = root.expanduser().resolve()
    if not root.is_dir():
        raise ConfigError(f"Expected a checkout's folder, but {root} does not exist")
    host = host_of(root)
    with tempfile.TemporaryDirectory(prefix="tllm-check-") as folder:
        result = Path(folder) / "result.json"
        paths = os.pathsep.join(filter(None, (str(root), os.environ.get("PYTHONPATH"))))
        done = subprocess.run(
            [sys.executable, "-m", f"tllm_plugin.hosts.{host}.check", str(result), *words],
            cwd=root,
            env={**os.environ, "PYTHONPATH": paths, "PYTHONDONTWRITEBYTECODE": "1", "WANDB_MODE": "disabled"},
            capture_output=True,
            text=True,
            errors="replace",
        )
        if not result.exists():
            last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
            raise TLLMError(f"Expected the check of {root} to end with a result, but {last}")
        return read(result)


def write(path: Path, result: CheckResult) -> None:
    """Write a result; called in the separate process."""
    path.write_text(json.dumps(asdict(result)), encoding="utf-8")


def read(path: Path) -> CheckResult:
    """Read a result written by `write`."""
    found = json.loads(path.read_text(encoding="utf-8"))
    return CheckResult(
        facts=tuple((part, text) for part, text in found["facts"]),
        methods=tuple(MethodCheck(**method) for method in found["methods"]),
        problem=found["problem"],
    )


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


def report(root: Path, result: CheckResult) -> str:
    """Return the text that `tllm host check` prints."""
    commit = commit_of(root)
    lines = [f"{root}{f', commit {commit[:12]}' if commit else ''}"]
    width = max((len(part) for part, _ in result.facts), default=0)
    lines += [f"  {part:<{width}}  {text}" for part, text in result.facts]
    if result.problem:
        problem = "\n".join(map(visible, result.problem.splitlines()))
        return "\n".join([*lines, f"no method was tried: {problem}"])
    width = max((len(method.method) for method in result.methods), default=0)
    lines += [
        f"  {method.method:<{width}}  {method.verdict:<7}  {visible(method.reason)}".rstrip()
        for method in result.methods
    ]
    counts = ", ".join(f"{count} {_MEANING[verdict]}" for verdict, count in result.counts().items())
    return "\n".join([*lines, f"of {len(result.methods)} methods: {counts}"])
