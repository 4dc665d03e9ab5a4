"""What `tllm host check` finds out about a checkout, whichever host it descends from.

Each host has a module `check` of its own package, which is run in a process of its own, in the checkout, as
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
    """What became of one method.

    Args:
        method: As the host's options call it.
        verdict: One of `TRAINS`, `REFUSED`, `FAILS`, `BROKEN`.
        reason: Why, in one line; or with which options it trains.
    """

    method: str
    verdict: str
    reason: str = ""


@dataclass(frozen=True)
class CheckResult:
    """What was found in a checkout.

    Args:
        facts: What was found of the host's parts: (part, description).
        methods: One entry per method.
        problem: Why nothing can be said of its methods; empty if something can.
    """

    facts: tuple[tuple[str, str], ...]
    methods: tuple[MethodCheck, ...] = ()
    problem: str = ""

    def counts(self) -> dict[str, int]:
        """Return how many methods got each verdict."""
        found = Counter(method.verdict for method in self.methods)
        return {verdict: found[verdict] for verdict in _MEANING}


def host_of(root: Path) -> str:
    """Return the host that a checkout descends from.

    Raises:
        ConfigError: It is none of the hosts that are known.
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
    """Find out, in a process of its own, what of a checkout works with TLLM.

    Args:
        root: The checkout.
        words: Options of the host's own check.

    Raises:
        ConfigError: `root` is no checkout of a known host.
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
    """Write a result for `read`; called in the process that checks."""
    path.write_text(json.dumps(asdict(result)), encoding="utf-8")


def read(path: Path) -> CheckResult:
    """Read what `write` wrote."""
    found = json.loads(path.read_text(encoding="utf-8"))
    return CheckResult(
        facts=tuple((part, text) for part, text in found["facts"]),
        methods=tuple(MethodCheck(**method) for method in found["methods"]),
        problem=found["problem"],
    )


def commit_of(root: Path) -> str:
    """Return a checkout's commit, with `+` if tracked files were changed; empty where git knows none."""
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
    """Return what `tllm host check` prints."""
    commit = commit_of(root)
    lines = [f"{root}{f', commit {commit[:12]}' if commit else ''}"]
    width = max((len(part) for part, _ in result.facts), default=0)
    lines += [f"  {part:<{width}}  {text}" for part, text in result.facts]
    if result.problem:
        problem = "\n".join(map(visible, result.problem.splitlines()))
        return "\n".join([*lines, f"nothing of it was tried: {problem}"])
    width = max((len(method.method) for method in result.methods), default=0)
    lines += [
        f"  {method.method:<{width}}  {method.verdict:<7}  {visible(method.reason)}".rstrip()
        for method in result.methods
    ]
    counts = ", ".join(f"{count} {_MEANING[verdict]}" for verdict, count in result.counts().items())
    return "\n".join([*lines, f"of {len(result.methods)} methods: {counts}"])
