"""Try the methods of a checkout of mdistiller: `python -m tllm_plugin.hosts.mdistiller.check RESULT.json [WORDS...]`.

Every method is trained for an epoch with TLLM, by the checkout's own script, on a few random images in place of
CIFAR-100, and the wrapper's invariants are checked on a batch. What fails is tried without TLLM, too.
"""

from __future__ import annotations

import argparse
import copy
import inspect
import os
import sys
import tempfile
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torchvision.datasets import CIFAR100
from yacs.config import CfgNode

from tllm_plugin.core import holdout
from tllm_plugin.core.errors import TLLMError
from tllm_plugin.core.wrapper import TLLMWrapper
from tllm_plugin.hosts.contract import EpochLoop, methods_of
from tllm_plugin.hosts.host_check import BROKEN, FAILS, REFUSED, TRAINS, CheckResult, MethodCheck, write
from tllm_plugin.hosts.mdistiller.invariants import check_invariants
from tllm_plugin.hosts.yaml_text import plain, read_yaml
from tllm_plugin.methods import METHODS
from tllm_plugin.runs.run_folder import RunFolder

_CLASSES, _PER_CLASS, _TESTED = 100, 2, 20
# As many of a method's config files are tried at most, until one gets as far as to a training step.
_CONFIGS = 12
_OFF: dict[str, Any] = {"TLLM.ON": False}
_ON: dict[str, Any] = {
    "TLLM.ON": True,
    "TLLM.HOLDOUT.FRACTION": 0.5,
    "TLLM.DETECTOR.TYPE": "fixed",
    "TLLM.DETECTOR.CLASSES": list(range(_CLASSES // 2)),
}
_SMALL: dict[str, Any] = {
    "SOLVER.BATCH_SIZE": 20,
    "DATASET.TYPE": "cifar100",
    "DATASET.NUM_WORKERS": 0,
    "DATASET.TEST.BATCH_SIZE": 50,
    "LOG.WANDB": False,
    "LOG.SAVE_CHECKPOINT_FREQ": 1,
    "CRD.NCE.K": 16,
}


class Tried:
    """What is needed to try one method after the other.

    Args:
        root: The checkout.
        folder: Where the runs go.
        scripts: Below `root`, the likeliest first.
        words: Options of the script.
    """

    def __init__(self, root: Path, folder: Path, scripts: Sequence[str], words: Sequence[str]) -> None:
        from mdistiller.engine.cfg import CFG

        self.root = root
        self.folder = folder
        self.scripts = list(scripts)
        self.words = tuple(words)
        self.cfg: CfgNode = CFG
        self.before = copy.deepcopy(dict(CFG))
        self.configs = configs_of(root)
        self.resumes = ""

    def method(self, name: str) -> MethodCheck:
        """Train with a method; what fails with TLLM is tried in the host alone."""
        own = self.configs.get(name, [])
        configs = own or self.configs.get("KD", []) or self.configs.get("NONE", [])
        failed = []
        for config, script in [(config, script) for config in configs[:_CONFIGS] for script in self.scripts]:
            seen = _Invariants()
            with seen.watching():
                problem = self.run(name, config, script, _ON)
            if not problem and not seen.reached:
                failed.append((config, script, f"{script} ends without a training step of a trainer that TLLM knows"))
                continue
            if not problem:
                self.scripts.sort(key=lambda other: other != script)
                if seen.problem or not seen.done:
                    return MethodCheck(
                        name, FAILS, seen.problem or "the wrapper was given no batch with flagged classes"
                    )
                if not self.resumes:
                    self.resumes = self.resume(name, config, script)
                where = f", {script}" if script != _SCRIPTS[0] else ""
                return MethodCheck(name, TRAINS, f"{config.relative_to(self.root)}{where}")
            failed.append((config, script, problem))
            if seen.reached:  # Another config file would not help.
                break
        alone = "no config file names a DISTILLER.TYPE"
        for config, script, problem in failed:
            alone = self.run(name, config, script)
            if not alone:
                return MethodCheck(name, REFUSED if problem.startswith("ConfigError") else FAILS, problem)
        return MethodCheck(name, BROKEN, alone + ("" if own else "; no config file is for it"))

    def run(
        self,
        name: str,
        config: Path,
        script: str,
        more: Mapping[str, Any] = _OFF,
        *,
        epochs: int = 1,
        resume: bool = False,
    ) -> str:
        """Run the script for an epoch; return why it failed, in one line, or an empty text."""
        from tllm_plugin.hosts.mdistiller.launch import launch

        self.restore()
        torch.manual_seed(0)
        # Hosts make names of what is overridden on a command line.
        values: Any = read_yaml(config.read_text(encoding="utf-8"))
        given = {"SOLVER.EPOCHS": epochs, "DISTILLER.TYPE": name, "LOG.PREFIX": str(self.folder), **_SMALL, **more}
        if name != "NONE":
            teacher = values["DISTILLER"].get("TEACHER", self.cfg.DISTILLER.TEACHER)
            given["DISTILLER.TEACHER_CHECKPOINT"] = self.teacher(teacher)
        for key, value in given.items():
            if has(self.cfg, key):
                *nodes, last = key.split(".")
                reduce(lambda node, part: node.setdefault(part, {}), nodes, values)[last] = value
        path = self.folder / "config.yaml"
        path.write_text(yaml.safe_dump(plain(values)), encoding="utf-8")
        try:
            launch(self.root, str(path), self.words, resume=resume, script=script)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # The script's, whatever it is.
            return _line(error, self.root)
        finally:
            self.restore()
        return ""

    def resume(self, name: str, config: Path, script: str) -> str:
        """Return what becomes of a run with TLLM that is stopped after its first epoch and resumed."""
        folder = self.folder
        self.folder = folder / "resumed"
        self.folder.mkdir()
        try:
            return self._resume_in_new_folder(name, config, script)
        finally:
            self.folder = folder

    def _resume_in_new_folder(self, name: str, config: Path, script: str) -> str:
        with _stopped_after_an_epoch():
            problem = self.run(name, config, script, _ON, epochs=2)
        if "Stopped" not in problem:
            return f"not tried: {problem or 'the run did not stop after its first epoch'}"
        problem = self.run(name, config, script, _ON, epochs=2, resume=True)
        if problem:
            return f"no: {problem}"
        epochs = [RunFolder(path.parent).read_flags().epochs for path in self.folder.rglob("flags.json")]
        return "yes" if epochs == [2] else f"no: it starts anew, in a folder of its own ({len(epochs)} folders)"

    def teacher(self, name: str) -> str:
        """Return the path of a checkpoint of random weights for a teacher."""
        from tllm_plugin.hosts.mdistiller.teachers import models_for

        path = self.folder / "teachers" / f"{name}.pth"
        if not path.exists():
            found = models_for("cifar100").get(name)
            if found is None:
                return ""
            path.parent.mkdir(parents=True, exist_ok=True)
            builder = found[0] if isinstance(found, tuple) else found
            try:
                network = builder(num_classes=_CLASSES)
            except Exception:  # The script says what is wrong with it.
                return ""
            torch.save({"model": network.state_dict()}, path)
        return str(path)

    def restore(self) -> None:
        """Put the host's config back to what it was."""
        self.cfg.defrost()
        self.cfg.clear()
        self.cfg.update(copy.deepcopy(self.before))


class _Invariants:
    """The invariants of the first mixed batch that a wrapper is given."""

    def __init__(self) -> None:
        self.reached = self.done = False
        self.problem = ""

    @contextmanager
    def watching(self) -> Iterator[None]:
        forward = TLLMWrapper.forward
        watcher = self

        def watched(self: TLLMWrapper, *args: Any, **kwargs: Any) -> Any:
            watcher.reached = True
            if self.training and not watcher.done and not args and "target" in kwargs:
                flagged = int(self.undistillable[kwargs["target"].long()].sum())
                if self.min_rows <= len(kwargs["target"]) - flagged < len(kwargs["target"]):
                    watcher.done = True
                    watcher.problem = check_invariants(self, kwargs)
            return forward(self, *args, **kwargs)

        TLLMWrapper.forward = watched  # type: ignore[method-assign]
        try:
            yield
        finally:
            TLLMWrapper.forward = forward  # type: ignore[method-assign]


class _Stopped(Exception):
    """Stands in for a kill."""


@contextmanager
def _stopped_after_an_epoch() -> Iterator[None]:
    """Stop a run with TLLM as its second epoch begins to be trained."""
    from tllm_plugin.hosts.adapter import _TLLMTrainer

    catch_up = _TLLMTrainer._catch_up

    def stop(self: Any, epoch: int) -> None:
        catch_up(self, epoch)
        if epoch == 1:
            raise _Stopped("Stopped")

    _TLLMTrainer._catch_up = stop  # type: ignore[method-assign]
    try:
        yield
    finally:
        _TLLMTrainer._catch_up = catch_up  # type: ignore[method-assign]


_SCRIPTS = ("tools/train.py", "train.py")


def scripts_of(root: Path) -> list[str]:
    """Return the train scripts of a checkout, the likeliest first."""
    others = sorted(
        str(path.relative_to(root)) for folder in (root / "tools", root) for path in folder.glob("train*.py")
    )
    return [name for name in dict.fromkeys((*_SCRIPTS, *others)) if (root / name).is_file()]


def configs_of(root: Path) -> dict[str, list[Path]]:
    """Return the config files by `DISTILLER.TYPE`, those for CIFAR-100 and small networks first."""

    def rank(path: Path) -> tuple[bool, bool, bool, str]:
        name = str(path)
        return ("cifar" not in name, "8x4" not in name and path.parent.name != "cifar100", "ablation" in name, name)

    found: dict[str, list[Path]] = {}
    for path in sorted((root / "configs").rglob("*.yaml"), key=rank):
        try:
            kind = read_yaml(path.read_text(encoding="utf-8"))["DISTILLER"]["TYPE"]
        except (TLLMError, OSError, ValueError, TypeError, KeyError):
            continue
        found.setdefault(str(kind), []).append(path)
    return found


def has(cfg: CfgNode, key: str) -> bool:
    """Return whether a config has a key."""
    node: Any = cfg
    for name in key.split("."):
        if not isinstance(node, dict) or name not in node:
            return False
        node = node[name]
    return True


def show_random_images() -> None:
    """Put a few random images in place of CIFAR-100, whatever the host makes of them."""

    def init(
        self: Any, root: Any = "", train: bool = True, transform: Any = None, target_transform: Any = None, **_: Any
    ) -> None:
        random = np.random.default_rng(int(train))
        self.root, self.train = root, train
        self.transform, self.target_transform = transform, target_transform
        self.targets = list(range(_CLASSES)) * _PER_CLASS if train else list(range(_TESTED))
        self.data = random.integers(0, 256, (len(self.targets), 32, 32, 3), dtype=np.uint8)
        self.classes = [f"class {index}" for index in range(_CLASSES)]
        self.class_to_idx = {name: index for index, name in enumerate(self.classes)}

    CIFAR100.__init__ = init  # type: ignore[method-assign, assignment]


def _line(error: BaseException, root: Path) -> str:
    """Return an error in one line, with the host's line that it came from."""
    text = " ".join(str(error).split())[:300]
    if isinstance(error, TLLMError):
        return f"{type(error).__name__}: {text}"
    places = [
        frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename.startswith(f"{root}{os.sep}")
    ]
    where = f" ({Path(places[-1].filename).relative_to(root)}, line {places[-1].lineno})" if places else ""
    return f"{type(error).__name__}: {text}{where}"


def check(words: Sequence[str]) -> CheckResult:
    """Return what was found in the checkout that is the working directory."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--script")
    options, own = parser.parse_known_args(list(words))
    root = Path.cwd()
    try:
        from tllm_plugin.hosts.mdistiller import registration
    except TLLMError as error:
        return CheckResult(facts=(), problem=str(error))
    from mdistiller.distillers import distiller_dict

    show_random_images()
    holdout.MIN_PER_CLASS = 1  # So that a run takes seconds; nothing is judged by it here.
    scripts = [options.script] if options.script else scripts_of(root)
    trainers = registration.find_trainers()
    loops = [name for name, trainer in trainers.items() if methods_of(trainer).loop is EpochLoop]
    facts = [
        ("scripts", ", ".join(scripts) or "none"),
        ("trainers", ", ".join(trainers) or "none"),
        ("loop", f"train_epoch of {', '.join(loops)}" if loops else "train_iter only"),
        ("models", ", ".join(registration.model_tables(sys.modules["mdistiller.models"])) or "none"),
        ("by name", ", ".join(sorted(registration.special_types(root)))),
    ]
    ours = {"TLLM", *METHODS}
    names = [name for name, build in distiller_dict.items() if name not in ours or inspect.isclass(build)]
    with tempfile.TemporaryDirectory(prefix="tllm-check-") as folder:
        tried = Tried(root, Path(folder), scripts, own)
        methods = tuple(tried.method(name) for name in names)
    facts.append(("resume", tried.resumes or "not tried: no method trains"))
    return CheckResult(facts=tuple(facts), methods=methods)


if __name__ == "__main__":
    write(Path(sys.argv[1]), check(sys.argv[2:]))
