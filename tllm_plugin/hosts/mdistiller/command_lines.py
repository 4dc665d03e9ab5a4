"""Find out with which script, config and options a checkout of mdistiller trains each of its methods."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tllm_plugin.core.errors import TLLMError
from tllm_plugin.hosts.yaml_text import read_yaml

#: The host's own script, and where most forks have theirs.
SCRIPTS = ("tools/train.py", "train.py")
# READMEs and shell scripts that show how a method is trained.
_TOLD_IN = ("*.md", "*.sh", "scripts/**/*.sh", "tools/**/*.sh")
_COMMAND = re.compile(r"python[\d.]*\s+(?:-\w+\s+)*(\S+\.py)\s+([^\n`&|;>]*--cfg[^\n`&|;>]*)")
_KEY = re.compile(r"[A-Z][A-Z0-9_]*(\.\w+)+")


@dataclass(frozen=True)
class Command:
    """One way to start a training run.

    Args:
        script: Path of the train script below the checkout.
        config: Path of the config file.
        words: Further options and `KEY VALUE` overrides.
    """

    script: str
    config: Path
    words: tuple[str, ...] = ()


def scripts_of(root: Path) -> list[str]:
    """Return the train scripts of a checkout, the most likely ones first."""
    others = sorted(
        str(path.relative_to(root)) for folder in (root / "tools", root) for path in folder.glob("train*.py")
    )
    return [name for name in dict.fromkeys((*SCRIPTS, *others)) if (root / name).is_file()]


def commands_of(
    root: Path, types: Sequence[str], script: str = "", words: Sequence[str] = ()
) -> Mapping[str, list[Command]]:
    """Return the commands for each distiller type, the most likely ones first.

    Commands from the checkout's READMEs and shell scripts come first, then each script with each config of the type. A
    type without a config gets one config per trainer: that of its name, the base trainer, then the others.

    Args:
        root: The checkout.
        types: Values of `DISTILLER.TYPE`.
        script: Only this script; by default all.
        words: Options for every command, instead of those from READMEs.
    """
    scripts = [script] if script else scripts_of(root)
    by_config: dict[Path, list[Command]] = {}
    for command in _told(root):
        if command.script in scripts and not words:
            by_config.setdefault(command.config, []).append(command)
    configs, by_trainer = configs_of(root)
    found = {}
    for kind in types:
        names = dict.fromkeys((kind.lower(), "base", *by_trainer))
        own = configs.get(kind) or [by_trainer[name] for name in names if name in by_trainer]
        told = [command for config in own for command in by_config.get(config, [])]
        plain = [Command(name, config, tuple(words)) for config in own for name in scripts]
        found[kind] = list(dict.fromkeys([*_one_per_options(told), *plain]))
    return found


def configs_of(root: Path) -> tuple[dict[str, list[Path]], dict[str, Path]]:
    """Return the config files by `DISTILLER.TYPE`, and one config per `SOLVER.TRAINER`.

    Configs for CIFAR-100 and small networks come first.
    """

    def rank(path: Path) -> tuple[bool, bool, bool, str]:
        name = str(path)
        return ("cifar" not in name, "8x4" not in name and path.parent.name != "cifar100", "ablation" in name, name)

    by_type: dict[str, list[Path]] = {}
    by_trainer: dict[str, Path] = {}
    for path in sorted((root / "configs").rglob("*.yaml"), key=rank):
        try:
            values = read_yaml(path.read_text(encoding="utf-8"))
            kind = str(values["DISTILLER"]["TYPE"])
            trainer = str(values.get("SOLVER", {}).get("TRAINER", "base"))
        except (TLLMError, OSError, ValueError, TypeError, KeyError, AttributeError):
            continue
        by_type.setdefault(kind, []).append(path)
        if kind != "NONE":  # Its configs name no teacher.
            by_trainer.setdefault(trainer, path)
    return by_type, by_trainer


def _told(root: Path) -> list[Command]:
    """Return the commands in READMEs and shell scripts that name an existing script and config."""
    found = []
    for path in dict.fromkeys(path for pattern in _TOLD_IN for path in sorted(root.glob(pattern))):
        text = path.read_text(encoding="utf-8", errors="replace").replace("\\\n", " ")
        for script, line in _COMMAND.findall(text):
            try:
                words = shlex.split(line, comments=True)
            except ValueError:  # An unfinished quotation.
                continue
            place = words.index("--cfg") if "--cfg" in words else len(words)
            config = root / words[place + 1] if place + 1 < len(words) else root
            rest = _options([*words[:place], *words[place + 2 :]])
            if config.is_file() and (root / script).is_file() and not any("$" in word for word in rest):
                found.append(Command(script.removeprefix("./"), config, tuple(rest)))
    return found


def _options(words: Sequence[str]) -> list[str]:
    """Return the options and `KEY VALUE` overrides among the words of a command, without results noted beside it."""
    found: list[str] = []
    for place, word in enumerate(words):
        before = words[place - 1] if place else ""
        value_of_option = before.startswith("-") and "=" not in before and not _KEY.fullmatch(word)
        if word.startswith("-") or value_of_option or _KEY.fullmatch(word) or _KEY.fullmatch(before):
            found.append(word)
    return found


def _one_per_options(commands: Sequence[Command]) -> list[Command]:
    """Return the first command for each script and choice of options: other configs of a type differ in networks."""
    first: dict[tuple[str, tuple[str, ...]], Command] = {}
    for command in commands:
        names = tuple(word for word in command.words if word.startswith("-"))
        first.setdefault((command.script, names), command)
    return list(first.values())
