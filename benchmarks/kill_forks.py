"""Kill a training run of each checkout in the middle of an epoch, resume it, and compare it with a run in one piece.

    python benchmarks/kill_forks.py FOLDER_OF_CHECKOUT [...] [--method NAME]

Each run has three epochs of two steps on random images, in the checkout's own script with half of the classes flagged.
The killed process gets SIGKILL after the first step of the second epoch. Model, optimizer and TLLM's state of the last
checkpoint, and the flags, are compared bit for bit. Where a host finds no checkpoint to resume from, the line that it
prints is shown instead.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook

from tllm_plugin.core.errors import TLLMError
from tllm_plugin.hosts.host_check import commit_of, host_of

_EPOCHS, _KILLED_AFTER = 3, 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkouts", nargs="+", type=Path)
    parser.add_argument("--method", default="", help="method of the host (default: the first that trains)")
    parser.add_argument("--part", choices=("whole", "killed", "resumed"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        raise SystemExit(train(options.checkouts[0], options.folder, options.part, options.method))
    for root in options.checkouts:
        print(f"{root.name} {commit_of(root.resolve())[:12]}: {verdict(root.resolve(), options.method)}", flush=True)


def verdict(root: Path, method: str) -> str:
    """Return what became of the killed run."""
    with tempfile.TemporaryDirectory(prefix="tllm-kill-") as name:
        whole, killed = Path(name) / "whole", Path(name) / "killed"
        done = run(root, whole, "whole", method)
        trained = done.stdout.strip()
        if done.returncode:
            return f"no run in one piece: {last_line(done)}"
        died = run(root, killed, "killed", method)
        if died.returncode != -signal.SIGKILL:
            return f"{trained}: not killed, but {last_line(died)}"
        resumed = run(root, killed, "resumed", method)
        if resumed.returncode:
            return f"{trained}: not resumed, said before training: {last_line(resumed)}"
        states = [state_in(folder) for folder in (whole, killed)]
        if any(state is None for state in states):
            return f"{trained}: resumed, but no checkpoint of the whole run to compare"
        unlike = differing(*states)
        flags = [next(folder.rglob("flags.json")).read_bytes() for folder in (whole, killed)]
        if flags[0] != flags[1]:
            unlike.append("flags.json")
        return f"{trained}: resumed, " + (f"differs in {', '.join(unlike[:3])}" if unlike else "equal bit for bit")


def run(root: Path, folder: Path, part: str, method: str) -> subprocess.CompletedProcess[str]:
    """Train in a process of its own, in the checkout."""
    folder.mkdir(exist_ok=True)
    command = [sys.executable, str(Path(__file__).resolve()), str(root), "--part", part, "--folder", str(folder)]
    paths = os.pathsep.join(filter(None, (str(root), os.environ.get("PYTHONPATH"))))
    env = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "WANDB_MODE": "disabled"}
    command += ["--method", method] if method else []
    return subprocess.run(command, cwd=root, env=env, capture_output=True, text=True, errors="replace")


def last_line(done: subprocess.CompletedProcess[str]) -> str:
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    return lines[-1] if lines else f"exit code {done.returncode}"


def train(root: Path, folder: Path, part: str, method: str) -> int:
    """Train one part in this process; print the method on the real standard output."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    if part == "killed":
        steps = [0]

        def step(*_: Any) -> None:
            steps[0] += 1
            if steps[0] == _KILLED_AFTER:
                os.kill(os.getpid(), signal.SIGKILL)

        register_optimizer_step_post_hook(step)
    trained, problem = HOSTS[host_of(root)](root, folder, part, method)
    print(trained, file=out, flush=True)
    if problem:
        print(problem, file=sys.stderr)
    return int(bool(problem))


def train_mdistiller(root: Path, folder: Path, part: str, method: str) -> tuple[str, str]:
    """Train with the first command that works; return the method and the reason of a failure."""
    from mdistiller.distillers import distiller_dict
    from mdistiller.engine.cfg import CFG

    import tllm_plugin.hosts.mdistiller  # noqa: F401
    from tllm_plugin.hosts.mdistiller.command_lines import commands_of
    from tllm_plugin.hosts.mdistiller.trial import ON, InvariantsSeen, Trial, make_small

    make_small()
    trial, problem = Trial(root, folder, CFG), "no command"
    # The same labels in all processes are flagged by the detector, not by the check.
    flagged = {**ON, "TLLM.DETECTOR.CLASSES": list(range(50))}
    names = [method] if method else [name for name in ("KD", *distiller_dict) if name in distiller_dict]
    # A killed or resumed run is that of the command that trained in one piece.
    chosen = folder.parent / "command"
    wanted = int(chosen.read_text()) if chosen.exists() else None
    commands = [(name, command) for name in names for command in commands_of(root, names)[name][:6]]
    for place, (name, command) in enumerate(commands):
        if wanted in (None, place):
            seen = InvariantsSeen()
            with seen.watching() if wanted is None else InvariantsSeen().watching():
                problem = trial.run(
                    name, command, flagged, network=trial.small_network, epochs=_EPOCHS, resume=part == "resumed"
                )
            if wanted is not None or (not problem and seen.reached):
                chosen.write_text(str(place))
                return name, problem
    return "", problem


def train_repdistiller(root: Path, folder: Path, part: str, method: str) -> tuple[str, str]:
    """Train with the method, or the last one that the script names; return it and the reason of a failure."""
    from tllm_plugin.hosts.repdistiller.compat import stand_in_for_what_is_gone
    from tllm_plugin.hosts.repdistiller.launch import find_script, prepared
    from tllm_plugin.hosts.repdistiller.trial import SOME_FLAGGED, Trial, make_small

    stand_in_for_what_is_gone()
    make_small()
    try:
        path = find_script(root)
        with Trial(path, prepared(path)).inside(folder) as trial:
            name = method or trial.methods()[-1]
            return name, trial.run(
                name, [*SOME_FLAGGED, *(["--tllm_resume"] if part == "resumed" else [])], epochs=_EPOCHS
            )
    except TLLMError as error:
        return method, str(error).replace("\n", "; ")


HOSTS = {"mdistiller": train_mdistiller, "repdistiller": train_repdistiller}


def state_in(folder: Path) -> Any:
    """Return the checkpoint of the whole run that was written last; None without one."""
    for path in sorted(folder.rglob("*"), key=lambda path: path.stat().st_mtime, reverse=True):
        if path.is_file() and path.suffix in ("", ".pth", ".pt") and "teachers" not in path.parts:
            try:
                state = torch.load(path, map_location="cpu", weights_only=False)
            except Exception:  # No checkpoint.
                continue
            if isinstance(state, dict) and any("optim" in str(key) for key in state):
                return state
    return None


def differing(one: Any, other: Any, name: str = "") -> list[str]:
    """Return the names of what differs in two nested states; times, and options such as paths, do not count."""
    if isinstance(one, Tensor):
        same = isinstance(other, Tensor) and one.shape == other.shape and one.dtype == other.dtype
        return [] if same and bool(((one == other) | ((one != one) & (other != other))).all()) else [name]
    if isinstance(one, dict):
        if not isinstance(other, dict) or set(one) != set(other):
            return [name]
        return [
            found
            for key in one
            if key not in ("seconds", "options")
            for found in differing(one[key], other[key], f"{name}/{key}")
        ]
    if isinstance(one, Sequence) and not isinstance(one, str | bytes):
        if len(one) != len(other):
            return [name]
        return [
            found
            for place, pair in enumerate(zip(one, other, strict=True))
            for found in differing(*pair, f"{name}/{place}")
        ]
    return [] if str(one) == str(other) else [name]


if __name__ == "__main__":
    main()
