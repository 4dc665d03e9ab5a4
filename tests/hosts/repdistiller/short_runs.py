"""Runs of a few epochs in one process, with the stand-in for RepDistiller's networks and loop."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.hosts.repdistiller.lists import Lists, make_lists
from tests.hosts.repdistiller.stand_in import reference_epoch, stand_in
from tllm_plugin.hosts.repdistiller import Run, parse_student, parse_teacher
from tllm_plugin.hosts.repdistiller.flags import tllm_options
from tllm_plugin.hosts.repdistiller.images import FolderImages

CLASSES, PER_CLASS = 6, 12


def to_tensor(image: Any) -> torch.Tensor:
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1).float() / 255


def loaders(kind: str) -> tuple[Any, Any]:
    """Return a training loader with the indices that `kind` wants, and a test loader."""
    targets = np.arange(CLASSES * PER_CLASS) % CLASSES
    images = np.random.default_rng(0).integers(0, 255, (len(targets), 32, 32, 3), dtype=np.uint8)
    names = tuple(f"class {label}" for label in range(CLASSES))
    contrast = 4 if kind == "crd" else 0
    train = FolderImages(images, targets, names, to_tensor, contrast=contrast, with_index=True)
    test = FolderImages(images[:20], targets[:20], names, to_tensor)
    make = torch.utils.data.DataLoader
    return make(train, batch_size=10, shuffle=True), make(test, batch_size=10)


def prepared(folder: Path, kind: str = "crd", **changes: Any) -> tuple[Lists, Any]:
    defaults = {str(option.flag): option.default for option in tllm_options().values()}
    torch.manual_seed(0)
    np.random.seed(0)
    options = {"tllm": True, "tllm_resume": False, "tllm_seed": None, "epochs": 2, "save_folder": str(folder)}
    chosen = {"tllm_detector": "fixed", "tllm_classes": ["class 2", "class 3"], "tllm_holdout": 0.5}
    lists = make_lists(stand_in(), kind, **{**defaults, **options, **chosen, **changes})
    return lists, lists.options


def validate(loader: Any, student: nn.Module) -> tuple[float, float, float]:
    student.eval()
    with torch.no_grad():
        right = [(student(image).argmax(1) == target).float() for image, target in loader]
    return 100 * float(torch.cat(right).mean()), 0.0, 0.0


def train(lists: Lists, options: Any, stop_after: int = 99) -> Run:
    """Do what the patched script does."""
    train_loader, val_loader = loaders(options.distill)
    run = Run(options, train_loader, val_loader)
    optimizer = lists.optimizer()
    run.start(lists.modules, lists.criteria, optimizer)
    for epoch in run.epochs():
        if epoch > stop_after:
            break
        run.train(reference_epoch, epoch, run.train_loader, lists.modules, lists.criteria, optimizer, options)
        run.validate(validate, val_loader, lists.modules[0])
    return run


def parse(monkeypatch: pytest.MonkeyPatch, *words: str, teacher: bool = False) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--dataset", default="cifar100", choices=["cifar100"])
    parser.add_argument("--model" if teacher else "--model_s", default="resnet8", choices=["resnet8"])
    for name in () if teacher else ("--path_t", "--model_t"):
        parser.add_argument(name)
    monkeypatch.setattr(sys, "argv", ["train.py", *words])
    return parse_teacher(parser) if teacher else parse_student(parser)
