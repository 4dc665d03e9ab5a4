"""Check the methods of a descendant of RepDistiller: `python -m tllm_plugin.hosts.repdistiller.check`, in the checkout.

Its own train script runs three times for each `--distill`, for two steps on random images: without TLLM, with TLLM and
nothing flagged, which must give the same weights bit for bit, and with a third of the classes flagged.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import os
import random
import re
import sys
import tempfile
import traceback
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from torch import nn

import tllm_plugin.hosts.repdistiller as tllm
from tllm_plugin.core.errors import ConfigError, TLLMError
from tllm_plugin.hosts.checkouts import patches
from tllm_plugin.hosts.few_steps import take_few_steps
from tllm_plugin.hosts.host_check import BROKEN, FAILS, REFUSED, TRAINS, Fact, MethodCheck, Problem, Tell, answer
from tllm_plugin.hosts.host_session import cut
from tllm_plugin.hosts.loader_data import LoaderData
from tllm_plugin.hosts.repdistiller.compat import stand_in_for_what_is_gone
from tllm_plugin.hosts.repdistiller.launch import STUDENT_SCRIPT, find_script, prepared
from tllm_plugin.hosts.repdistiller.options import node_of
from tllm_plugin.hosts.repdistiller.patching import patched_imports, read_patches
from tllm_plugin.hosts.repdistiller.script import Found

_NETWORKS = ("resnet8", "resnet8x4", "wrn_16_1", "vgg8")
_BATCH, _STEPS, _TRAIN, _TEST, _CLASSES, _HOLDOUT = 16, 2, 200, 8, 100, 0.5
# Options of every run that the script has.
_OPTIONS = {
    **{"batch_size": _BATCH, "num_workers": 0, "epochs": 1, "init_epochs": 1, "nce_k": 4, "trial": "check"},
    **{"beta": 0.5, "learning_rate": 0.01, "print_freq": 1000},
}
_OFF: tuple[str, ...] = ()
_NOTHING = ("--tllm", "--tllm_detector", "none", "--tllm_holdout", str(_HOLDOUT))
_FLAGGED = ("--tllm", "--tllm_detector", "fixed", "--tllm_holdout", str(_HOLDOUT), "--tllm_classes", "0")


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


def check(root: Path, script: str, options: Sequence[str], tell: Tell) -> None:
    """Check a checkout; see `answer` for the arguments."""
    try:
        path = find_script(root, script or STUDENT_SCRIPT)
        found = prepared(path)
    except ConfigError as error:
        tell(Problem(str(error)))
        return
    tell(Fact("script", str(path.relative_to(root))))
    for part, text in found.parts:
        tell(Fact(part, text))
    for note in [*found.notes, *stand_in_for_what_is_gone()]:
        tell(Fact("note", note))
    torchvision.datasets.CIFAR100 = RandomImages  # type: ignore[misc,assignment]
    take_few_steps(_STEPS)
    with tempfile.TemporaryDirectory() as folder, patched_imports(path.parent, read_patches(patches("repdistiller"))):
        work = Path(folder) / "work"
        work.mkdir()
        os.chdir(work)
        try:
            network, teacher = _teacher(work)
        except Exception as error:  # Modules of the host raise anything when they are imported.
            tell(Problem(f"its networks cannot be created: {_said(error)}"))
            return
        finally:
            os.chdir(root)
        tell(Fact("networks", f"student and teacher are {network}"))
        os.chdir(work)
        for method in _choices(found) or found.methods:
            tell(_check_method(path, found, {"distill": method, "model_s": network, "path_t": str(teacher)}, options))
        os.chdir(root)


def _choices(found: Found) -> tuple[str, ...]:
    """Return the values of --distill that the host's parser names, in its order."""
    named = re.search(r"""['"]--distill['"].*?choices\s*=\s*\[(.*?)\]""", found.text, re.S)
    return tuple(re.findall(r"""['"](\w+)['"]""", named.group(1))) if named else ()


def _teacher(folder: Path) -> tuple[str, Path]:
    networks = importlib.import_module("models").model_dict
    name = next((name for name in _NETWORKS if name in networks), next(iter(networks)))
    path = folder / f"{name}_vanilla" / "last.pth"
    path.parent.mkdir()
    torch.manual_seed(1)
    torch.save({"model": networks[name](num_classes=_CLASSES).state_dict()}, path)
    return name, path


def _check_method(path: Path, found: Found, chosen: dict[str, str], options: Sequence[str]) -> MethodCheck:
    """Return the verdict on a method after the three runs."""
    method, states = chosen["distill"], []
    for words, verdict in ((_OFF, BROKEN), (_NOTHING, REFUSED), (_FLAGGED, REFUSED)):
        try:
            _Watched.modules = None
            _run(path, found, {**_OPTIONS, **chosen}, [*words, *options])
        except (Exception, SystemExit) as error:
            failed = FAILS if verdict == REFUSED and not isinstance(error, ConfigError) else verdict
            return MethodCheck(method, failed, _said(error))
        if _Watched.modules is None:
            return MethodCheck(method, BROKEN, "the script ended before its loop")
        states.append({name: value.clone() for name, value in _Watched.modules.state_dict().items()})
    off, nothing, _ = states
    other = [name for name, value in off.items() if not torch.equal(value, nothing[name])]
    if other:
        return MethodCheck(method, FAILS, f"with nothing flagged, other weights than without TLLM: {other[0]}")
    return MethodCheck(method, TRAINS)


def _run(path: Path, found: Found, chosen: dict[str, Any], words: Sequence[str]) -> None:
    """Run the script once without output, with the chosen options under the names of the script's parser."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    before = sys.argv

    def parse(parser: argparse.ArgumentParser, **keywords: Any) -> argparse.Namespace:
        names = {action.dest: action.option_strings[-1] for action in parser._actions if action.option_strings}
        given = [word for name, value in chosen.items() if name in names for word in (names[name], str(value))]
        sys.argv = [str(path), *given, *words]
        return tllm.parse_fork(parser, **keywords)

    plugin = types.ModuleType("tllm")
    plugin.__dict__.update({name: getattr(tllm, name) for name in tllm.__all__}, Run=_Watched, parse_fork=parse)
    module = types.ModuleType("__main__")
    module.__file__ = str(path)
    text = found.text.replace("import tllm_plugin.hosts.repdistiller as tllm", "tllm = __tllm__")
    module.__dict__["__tllm__"] = plugin
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            exec(compile(text, str(path), "exec"), module.__dict__)
    finally:
        sys.argv = before


def _said(error: BaseException) -> str:
    if isinstance(error, TLLMError):
        return str(error).replace("\n", "; ")
    last = traceback.extract_tb(error.__traceback__)[-1]
    if isinstance(error, SystemExit):
        return f"it refuses its options; exit code {error.code}"
    return f"{type(error).__name__}: {error} ({Path(last.filename).name}:{last.lineno})".replace("\n", " ")


if __name__ == "__main__":
    answer(check)
