"""Check the methods of a checkout of mdistiller: `python -m tllm_plugin.hosts.mdistiller.check`, in the checkout.

Each method trains for two steps with TLLM, by the checkout's own script, and the wrapper's invariants are checked on a
batch. A method that fails is tried without TLLM, so that the checkout's own failures are told from ours.
"""

from __future__ import annotations

import inspect
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tllm_plugin.hosts.host_check import BROKEN, FAILS, REFUSED, TRAINS, Fact, MethodCheck, Tell, answer
from tllm_plugin.hosts.mdistiller import registration
from tllm_plugin.hosts.mdistiller.command_lines import Command, commands_of, scripts_of
from tllm_plugin.hosts.mdistiller.trial import ON, InvariantsSeen, Trial, make_small
from tllm_plugin.methods import METHODS

# At most so many commands are tried per method, until one reaches a training step.
_COMMANDS = 12


def check(root: Path, script: str, options: Sequence[str], tell: Tell) -> None:
    """Check a checkout; see `answer` for the arguments."""
    from mdistiller.distillers import distiller_dict
    from mdistiller.engine.cfg import CFG

    trainers = registration.find_trainers()
    loops = [name for name, trainer in trainers.items() if hasattr(trainer, "train_epoch")]
    tell(Fact("scripts", script or ", ".join(scripts_of(root)) or "none"))
    tell(Fact("trainers", ", ".join(trainers) or "none"))
    tell(Fact("loop", f"train_epoch of {', '.join(loops)}" if loops else "train_iter only"))
    tell(Fact("models", ", ".join(registration.model_tables(sys.modules["mdistiller.models"])) or "none"))
    tell(Fact("by name", ", ".join(sorted(registration.special_types(root)))))
    make_small()
    ours = {"TLLM", *METHODS}
    methods = [name for name, build in distiller_dict.items() if name not in ours or inspect.isclass(build)]
    resumes = ""
    with tempfile.TemporaryDirectory(prefix="tllm-check-") as folder:
        trial = Trial(root, Path(folder), CFG)
        for method, commands in commands_of(root, methods, script, options).items():
            verdict, command, network = _check_method(trial, method, commands)
            tell(verdict)
            if verdict.verdict == TRAINS and command is not None and not resumes:
                resumes = trial.resume(method, command, network)
                tell(Fact("resume", resumes))
    if not resumes:
        tell(Fact("resume", "not tried: no method trains"))


def _check_method(trial: Trial, method: str, commands: Sequence[Command]) -> tuple[MethodCheck, Command | None, str]:
    """Return the verdict on a method, with the command and the network that it trained with."""
    failed: list[tuple[Command, str, str]] = []
    told = set()
    small = trial.small_network()
    for command, network in [(command, network) for command in commands[:_COMMANDS] for network in {small: 0, "": 0}]:
        seen = InvariantsSeen()
        with seen.watching():
            problem = trial.run(method, command, ON, network=network)
        if not problem and seen.reached:
            if seen.problem:
                return MethodCheck(method, FAILS, seen.problem), command, network
            return MethodCheck(method, TRAINS, _described(trial.root, command)), command, network
        problem = problem or f"{command.script} ends without a training step of a trainer that TLLM knows"
        failed.append((command, network, problem))
        # Another config would not help where the method itself fails, nor where it fails in the same way again.
        if (seen.reached and not network) or (same := (command.script, command.words, problem)) in told:
            break
        told.add(same)
    alone = "no config file names a DISTILLER.TYPE"
    for command, network, problem in reversed(failed):
        alone = trial.run(method, command, network=network)
        if not alone:
            return MethodCheck(method, REFUSED if problem.startswith("ConfigError") else FAILS, problem), command, ""
    return MethodCheck(method, BROKEN, alone), None, ""


def _described(root: Path, command: Command) -> str:
    return " ".join((command.script, "--cfg", str(command.config.relative_to(root)), *command.words))


if __name__ == "__main__":
    answer(check)
