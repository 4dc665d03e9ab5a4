"""Check the methods of a checkout of mdistiller: `python -m tllm_plugin.hosts.mdistiller.check`, in the checkout.

Each method trains for two steps with TLLM, by the checkout's own script, and the wrapper's invariants are checked on a
batch. A method that fails is tried without TLLM, so that the checkout's own failures are told from ours.
"""

from __future__ import annotations

import inspect
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from tllm_plugin.hosts.contract import EpochLoop, methods_of
from tllm_plugin.hosts.host_check import BROKEN, FAILS, REFUSED, TRAINS, Fact, MethodCheck, Tell, answer
from tllm_plugin.hosts.mdistiller import registration
from tllm_plugin.hosts.mdistiller.command_lines import Command, commands_of, scripts_of
from tllm_plugin.hosts.mdistiller.trial import ON, InvariantsSeen, Trial, make_small
from tllm_plugin.methods import METHODS

# Number of commands tried per method until one reaches a training step.
_COMMANDS = 12
# A script that failed in the same way with so many other configs is not tried again.
_ALIKE = 2


def check(root: Path, script: str, options: Sequence[str], tell: Tell) -> None:
    """Check a checkout; see `answer` for the arguments."""
    from mdistiller.distillers import distiller_dict
    from mdistiller.engine.cfg import CFG

    trainers = registration.find_trainers()
    loops = [name for name, trainer in trainers.items() if methods_of(trainer).loop is EpochLoop]
    tell(Fact("scripts", script or ", ".join(scripts_of(root)) or "none"))
    tell(Fact("trainers", ", ".join(trainers) or "none"))
    tell(Fact("loop", f"train_epoch of {', '.join(loops)}" if loops else "train_iter only"))
    tell(Fact("models", ", ".join(registration.model_tables(sys.modules["mdistiller.models"])) or "none"))
    tell(Fact("by name", ", ".join(sorted(registration.special_types(root)))))
    make_small()
    ours = {"TLLM", *METHODS}
    methods = [name for name, build in distiller_dict.items() if name not in ours or inspect.isclass(build)]
    with tempfile.TemporaryDirectory(prefix="tllm-check-") as folder:
        checked = _Checked(Trial(root, Path(folder), CFG))
        for method, commands in commands_of(root, methods, script, options).items():
            tell(checked.method(method, commands))
            if checked.worked and not checked.resumes:
                checked.resumes = checked.trial.resume(method, *checked.worked[0])
                tell(Fact("resume", checked.resumes))
    if not checked.resumes:
        tell(Fact("resume", "not tried: no method trains"))


@dataclass
class _Checked:
    """What earlier methods showed about the checkout.

    Args:
        trial: The means to run it.
        worked: Commands with which methods trained, and their networks.
        resumes: Result of the resume.
    """

    trial: Trial
    worked: list[tuple[Command, str]] = field(default_factory=list)
    resumes: str = ""

    def method(self, method: str, commands: Sequence[Command]) -> MethodCheck:
        """Return the verdict on a method."""
        failed: list[tuple[Command, str, str]] = []
        hopeless: set[tuple[str, tuple[str, ...]]] = set()
        tried = 0
        for command in self._likeliest_first(commands):
            if (command.script, command.words) in hopeless:
                continue
            tried += 1
            if tried > _COMMANDS:
                break
            for network in dict.fromkeys((self.trial.small_network, "")):
                seen = InvariantsSeen()
                with seen.watching():
                    problem = self.trial.run(method, command, ON, network=network)
                if not problem and seen.reached:
                    if seen.problem:
                        return MethodCheck(method, FAILS, seen.problem)
                    self.worked.append((command, network))
                    return MethodCheck(method, TRAINS, _described(self.trial.root, command))
                if not problem:
                    hopeless.add((command.script, command.words))  # It trains elsewhere, or not at all.
                    break
                same = [other for other, size, earlier in failed if (size, earlier) == (network, problem)]
                if not network and sum(other.script == command.script for other in same) >= _ALIKE:
                    hopeless.add((command.script, command.words))
                failed.append((command, network, problem))
            if failed and seen.reached:
                break  # Another config would not help.
        return self._without_tllm(method, failed)

    def _without_tllm(self, method: str, failed: Sequence[tuple[Command, str, str]]) -> MethodCheck:
        alone = "no script reaches a training step in this process"
        for command, network, problem in reversed(failed):
            alone = self.trial.run(method, command, network=network)
            if not alone:
                return MethodCheck(method, REFUSED if problem.startswith("ConfigError") else FAILS, problem)
        return MethodCheck(method, BROKEN, alone)

    def _likeliest_first(self, commands: Sequence[Command]) -> list[Command]:
        """Return the commands, those of scripts that worked first, also with the options that worked."""
        scripts = {command.script: command.words for command, _ in self.worked}
        again = [replace(command, words=scripts[command.script]) for command in commands if command.script in scripts]
        told = [command for command in commands if command.words]
        return list(dict.fromkeys([*told, *again, *commands]))


def _described(root: Path, command: Command) -> str:
    return " ".join((command.script, "--cfg", str(command.config.relative_to(root)), *command.words))


if __name__ == "__main__":
    answer(check)
