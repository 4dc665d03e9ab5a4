"""Run the train script of a checkout of mdistiller for two steps per epoch on small networks and random images."""

from __future__ import annotations

import copy
import os
import socket
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property, reduce
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import yaml
from torch import nn
from torchvision.datasets import CIFAR100
from yacs.config import CfgNode

from tllm_plugin.core import contract
from tllm_plugin.core.errors import TLLMError
from tllm_plugin.core.wrapper import TLLMWrapper
from tllm_plugin.hosts.few_steps import take_few_steps
from tllm_plugin.hosts.mdistiller.command_lines import Command
from tllm_plugin.hosts.mdistiller.invariants import check_invariants
from tllm_plugin.hosts.yaml_text import plain, read_yaml
from tllm_plugin.runs.run_folder import RunFolder

CLASSES = 100
_PER_CLASS, _TESTED, _STEPS = 2, 20, 2
# The first of these that the checkout has is both teacher and student, unless a method needs the config's networks.
_NETWORKS = ("resnet8", "resnet8x4", "wrn_16_1", "resnet20", "vgg8")
OFF: dict[str, Any] = {"TLLM.ON": False}
ON: dict[str, Any] = {
    "TLLM.ON": True,
    "TLLM.HOLDOUT.FRACTION": 0.5,
    "TLLM.DETECTOR.TYPE": "fixed",
    "TLLM.DETECTOR.CLASSES": [0],
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


class Trial:
    """Start training runs of a checkout, one after the other, in this process.

    Args:
        root: The checkout.
        folder: Folder for the runs.
        cfg: The host's config, which is restored after each run.
    """

    def __init__(self, root: Path, folder: Path, cfg: CfgNode) -> None:
        self.root = root
        self.folder = folder
        self.cfg = cfg
        self.before = copy.deepcopy(dict(cfg))

    @cached_property
    def small_network(self) -> str:
        """Name of a small network that the checkout can create, or an empty string."""
        return next((name for name in _NETWORKS if self._create(name) is not None), "")

    def run(
        self,
        method: str,
        command: Command,
        more: Mapping[str, Any] = OFF,
        *,
        network: str = "",
        epochs: int = 1,
        resume: bool = False,
    ) -> str:
        """Train with a method and return why that failed, in one line; an empty string if it did not.

        Args:
            method: Value of `DISTILLER.TYPE`.
            command: Script, config and options.
            more: Values of the config by key, `ON` or `OFF`.
            network: Name of teacher and student; those of the config by default.
            epochs: Number of epochs, of two steps each.
            resume: Continue the run before.
        """
        from tllm_plugin.hosts.mdistiller.launch import launch

        self._restore()
        torch.manual_seed(0)
        values: Any = read_yaml(command.config.read_text(encoding="utf-8"))
        given = {"SOLVER.EPOCHS": epochs, "DISTILLER.TYPE": method, "LOG.PREFIX": str(self.folder), **_SMALL, **more}
        if network:
            given |= {"DISTILLER.TEACHER": network, "DISTILLER.STUDENT": network}
        if method != "NONE":
            teacher = network or values["DISTILLER"].get("TEACHER", self.cfg.DISTILLER.TEACHER)
            given["DISTILLER.TEACHER_CHECKPOINT"] = self._teacher(teacher)
        # In the file, because scripts name runs after what is overridden on the command line.
        for key, value in given.items():
            if _has(self.cfg, key):
                *nodes, last = key.split(".")
                reduce(lambda node, part: node.setdefault(part, {}), nodes, values)[last] = value
        path = self.folder / "config.yaml"
        path.write_text(yaml.safe_dump(plain(values)), encoding="utf-8")
        try:
            launch(self.root, str(path), command.words, resume=resume, script=command.script)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # Scripts raise anything, SystemExit too.
            return _line(error, self.root)
        finally:
            self._restore()
            if dist.is_initialized():
                dist.destroy_process_group()
        return ""

    def resume(self, method: str, command: Command, network: str) -> str:
        """Return whether a run with TLLM that is stopped after its first epoch can be resumed, or why it cannot."""
        folder, self.folder = self.folder, self.folder / "resumed"
        self.folder.mkdir()
        try:
            with _stopped_after_an_epoch():
                problem = self.run(method, command, ON, network=network, epochs=2)
            if "Stopped" not in problem:
                return f"not tried: {problem or 'the run did not stop after its first epoch'}"
            problem = self.run(method, command, ON, network=network, epochs=2, resume=True)
            if problem:
                return f"no: {problem}"
            epochs = [RunFolder(path.parent).read_flags().epochs for path in self.folder.rglob("flags.json")]
            return "yes" if epochs == [2] else "no: the script starts anew, in another folder"
        finally:
            self.folder = folder

    def _teacher(self, name: str) -> str:
        """Return the path of a checkpoint with random weights for a teacher; empty if it cannot be created."""
        path = self.folder / "teachers" / f"{name}.pth"
        if not path.exists():
            network = self._create(name)
            if network is None:
                return ""
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.save({"model": network.state_dict()}, path)
        return str(path)

    def _create(self, name: str) -> nn.Module | None:
        from tllm_plugin.hosts.mdistiller.teachers import models_for

        found = models_for("cifar100").get(name)
        if found is None:
            return None
        builder: Callable[..., nn.Module] = found[0] if isinstance(found, tuple) else found
        try:
            return builder(num_classes=CLASSES)
        except Exception:  # A script that needs this network reports what is wrong with it.
            return None

    def _restore(self) -> None:
        self.cfg.defrost()
        self.cfg.clear()
        self.cfg.update(copy.deepcopy(self.before))


class InvariantsSeen:
    """Flag half of the classes in the first training batch, check the invariants on it, and train with these flags.

    Attributes:
        reached: Whether a wrapper was called in training.
        problem: The invariant that did not hold, or an empty string.
    """

    def __init__(self) -> None:
        self.reached = False
        self.problem = ""

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch all wrappers for the duration of the block."""
        forward = TLLMWrapper.forward
        watcher = self

        def watched(self: TLLMWrapper, *args: Any, **kwargs: Any) -> Any:
            if self.training and not watcher.reached:
                watcher.reached = True
                given = contract.by_name(self.distiller, args, kwargs)
                ours = {theirs: name for name, theirs in contract.other_names(given).items()}
                target = next(value for name, value in given.items() if ours.get(name, name) == "target").long()
                flags = torch.zeros(self.num_classes, dtype=torch.bool, device=target.device)
                flags[target.unique()[::2]] = True
                watcher.problem = check_invariants(self, given, target, flags)
                self.set_undistillable(flags)
            return forward(self, *args, **kwargs)

        TLLMWrapper.forward = watched  # type: ignore[method-assign]
        try:
            yield
        finally:
            TLLMWrapper.forward = forward  # type: ignore[method-assign]


class _Stopped(Exception):
    """Takes the place of a kill."""


@contextmanager
def _stopped_after_an_epoch() -> Iterator[None]:
    """Stop a run with TLLM before the first step of its second epoch."""
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


def make_small() -> None:
    """Replace CIFAR-100 by a few random images, and end every epoch after two steps, in the whole process.

    Scripts for several processes find themselves alone under torchrun.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    os.environ.update(alone, MASTER_PORT=str(port))
    CIFAR100.__init__ = _random_images  # type: ignore[method-assign, assignment]
    take_few_steps(_STEPS)


def _random_images(
    self: Any, root: Any = "", train: bool = True, transform: Any = None, target_transform: Any = None, **_: Any
) -> None:
    random = np.random.default_rng(int(train))
    self.root, self.train = root, train
    self.transform, self.target_transform = transform, target_transform
    self.targets = list(range(CLASSES)) * _PER_CLASS if train else list(range(_TESTED))
    self.data = random.integers(0, 256, (len(self.targets), 32, 32, 3), dtype=np.uint8)
    self.classes = [f"class {index}" for index in range(CLASSES)]
    self.class_to_idx = {name: index for index, name in enumerate(self.classes)}


def _has(cfg: CfgNode, key: str) -> bool:
    node: Any = cfg
    for name in key.split("."):
        if not isinstance(node, dict) or name not in node:
            return False
        node = node[name]
    return True


def _line(error: BaseException, root: Path) -> str:
    """Return an error in one line, with the host's line that raised it."""
    text = " ".join(str(error).split())[:300]
    if isinstance(error, TLLMError):
        return f"{type(error).__name__}: {text}"
    places = [
        frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename.startswith(f"{root}{os.sep}")
    ]
    where = f" ({Path(places[-1].filename).relative_to(root)}, line {places[-1].lineno})" if places else ""
    return f"{type(error).__name__}: {text}{where}"
