"""Run the train script of a descendant of RepDistiller for two steps per epoch on small networks and random images."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import os
import random
import re
import sys
import traceback
import types
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from torch import Tensor, nn

import tllm_plugin.hosts.repdistiller as tllm
from tllm_plugin.core.errors import TLLMError
from tllm_plugin.hosts.checkouts import patches
from tllm_plugin.hosts.few_steps import take_few_steps
from tllm_plugin.hosts.host_session import cut
from tllm_plugin.hosts.loader_data import LoaderData
from tllm_plugin.hosts.repdistiller.options import node_of
from tllm_plugin.hosts.repdistiller.patching import patched_imports, read_patches
from tllm_plugin.hosts.repdistiller.script import Found

# The first of these that the checkout has is both teacher and student.
_NETWORKS = ("resnet8", "resnet8x4", "wrn_16_1", "vgg8")
_BATCH, _STEPS, _TRAIN, _TEST, _CLASSES, _HOLDOUT = 16, 2, 200, 8, 100, 0.5
# Options of every run that the script has.
_OPTIONS = {
    **{"batch_size": _BATCH, "num_workers": 0, "init_epochs": 1, "nce_k": 4, "trial": "check"},
    **{"beta": 0.5, "learning_rate": 0.01, "print_freq": 1000},
}
OFF: tuple[str, ...] = ()
NOTHING_FLAGGED = ("--tllm", "--tllm_detector", "none", "--tllm_holdout", str(_HOLDOUT))
SOME_FLAGGED = ("--tllm", "--tllm_detector", "fixed", "--tllm_holdout", str(_HOLDOUT), "--tllm_classes", "0")


class Trial:
    """Start training runs of a script, one after the other, in this process.

    Args:
        path: The train script.
        found: The script with TLLM's calls.
    """

    def __init__(self, path: Path, found: Found) -> None:
        self.path, self.found = path, found
        self.network = ""
        self._teacher = Path()

    @contextmanager
    def inside(self, folder: Path) -> Iterator[Trial]:
        """Work in a folder; in the block, the checkout's modules are imported with the mends for current PyTorch.

        Raises:
            Exception: The checkout's networks cannot be created.
        """
        before = Path.cwd()
        with patched_imports(self.path.parent, read_patches(patches("repdistiller"))):
            os.chdir(folder)
            try:
                networks = importlib.import_module("models").model_dict
                self.network = next((name for name in _NETWORKS if name in networks), next(iter(networks)))
                # Scripts read the teacher's name from its folder.
                self._teacher = folder / f"{self.network}_vanilla" / "last.pth"
                self._teacher.parent.mkdir(exist_ok=True)
                torch.manual_seed(1)
                state = networks[self.network](num_classes=_CLASSES).state_dict()
                torch.save({"model": state}, self._teacher)
                yield self
            finally:
                os.chdir(before)

    def methods(self) -> tuple[str, ...]:
        """Return the values of `--distill` that the script's parser names, or that the script compares it with."""
        named = re.search(r"""['"]--distill['"].*?choices\s*=\s*\[(.*?)\]""", self.found.text, re.S)
        return tuple(re.findall(r"""['"](\w+)['"]""", named.group(1))) if named else self.found.methods

    def run(self, method: str, words: Sequence[str], *, epochs: int = 1) -> str:
        """Train with a method without output and return why that failed, in one line; empty if it did not.

        Args:
            method: Value of `--distill`.
            words: Further options: `OFF`, `NOTHING_FLAGGED` or `SOME_FLAGGED`, and the script's own.
            epochs: Number of epochs, of two steps each.

        Raises:
            TLLMError: TLLM refuses the method.
        """
        chosen: dict[str, Any] = {**_OPTIONS, "epochs": epochs, "distill": method, "model_s": self.network}
        chosen["path_t"] = str(self._teacher)
        random.seed(0)
        np.random.seed(0)
        torch.manual_seed(0)
        before = sys.argv

        def parse(parser: argparse.ArgumentParser, **keywords: Any) -> argparse.Namespace:
            # Under the names that the script's parser has.
            names = {action.dest: action.option_strings[-1] for action in parser._actions if action.option_strings}
            given = [word for name, value in chosen.items() if name in names for word in (names[name], str(value))]
            sys.argv = [str(self.path), *given, *words]
            return tllm.parse_fork(parser, **keywords)

        plugin = types.ModuleType("tllm")
        plugin.__dict__.update({name: getattr(tllm, name) for name in tllm.__all__}, Run=_Watched, parse_fork=parse)
        module = types.ModuleType("__main__")
        module.__file__ = str(self.path)
        text = self.found.text.replace("import tllm_plugin.hosts.repdistiller as tllm", "tllm = __tllm__")
        module.__dict__["__tllm__"] = plugin
        _Watched.modules = None
        try:
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                exec(compile(text, str(self.path), "exec"), module.__dict__)
        except TLLMError:
            raise
        except (Exception, SystemExit) as error:
            return _line(error)
        finally:
            sys.argv = before
        return "" if _Watched.modules is not None else "the script ended before its loop"

    def weights(self) -> dict[str, Tensor]:
        """Return a copy of all networks' state after the last run."""
        return {name: value.clone() for name, value in _Watched.modules.state_dict().items()}


def make_small() -> None:
    """Replace CIFAR-100 by a few random images, and end every epoch after two steps, in the whole process."""
    torchvision.datasets.CIFAR100 = RandomImages  # type: ignore[misc,assignment]
    take_few_steps(_STEPS)


class RandomImages(torchvision.datasets.VisionDataset):
    """Take the place of torchvision's CIFAR-100 with two random images per class."""

    def __init__(self, root: Any = None, train: bool = True, transform: Any = None, **options: Any) -> None:
        super().__init__(".", transform=transform, target_transform=options.get("target_transform"))
        count = _TRAIN if train else _TEST
        self.train = train
        self.data = np.random.default_rng(count).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
        self.targets = [index % _CLASSES for index in range(count)]
        self.classes = [f"class {label}" for label in range(_CLASSES)]

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> Any:
        image: Any = torchvision.transforms.functional.to_pil_image(self.data[index])
        return (image if self.transform is None else self.transform(image)), self.targets[index]


class _Watched(tllm.Run):
    """A run that keeps its networks for comparison and, without TLLM, trains on the same images as with it."""

    modules: Any = None

    def __init__(self, options: argparse.Namespace, train_loader: Any, val_loader: Any) -> None:
        super().__init__(options, train_loader, val_loader)
        if options.tllm_classes:
            options.tllm_classes = [str(label) for label in range(0, len(self._data.class_names), 3)]
        if not options.tllm:
            node = node_of(options)
            node.HOLDOUT.FRACTION = _HOLDOUT
            data = LoaderData(train_loader, val_loader.dataset.transform)
            self.train_loader = data.train_loader(cut(node, data).train)

    def start(self, module_list: nn.ModuleList, *arguments: Any, **keywords: Any) -> float:
        _Watched.modules = module_list
        return super().start(module_list, *arguments, **keywords)


def _line(error: BaseException) -> str:
    """Return an error in one line, with the line of code that raised it."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    if isinstance(error, SystemExit):
        return f"it refuses its options; exit code {error.code}"
    return f"{type(error).__name__}: {error} ({Path(last.filename).name}:{last.lineno})".replace("\n", " ")
