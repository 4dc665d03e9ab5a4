"""Data of a few samples: as the plugin asks for them, and as a host's loader holds them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from tllm_plugin.core.data_identity import DataIdentity
from tllm_plugin.data.identity import part_of

CLASSES, PER_CLASS = 4, 20
LABELS = torch.arange(CLASSES).repeat(PER_CLASS)
IMAGES = torch.randn(len(LABELS), 1, 8, 8, generator=torch.Generator().manual_seed(0))


class Data:
    """The training data that `HostSession` asks for, in one batch each."""

    labels, class_names = LABELS, ("a", "b", "c", "d")
    identity = DataIdentity(class_names, part_of(LABELS, CLASSES))

    def train_loader(self, indices: Tensor) -> Any:
        return [(IMAGES[indices], LABELS[indices], indices)]

    def holdout_loader(self, indices: Tensor) -> Any:
        return [(IMAGES[indices], LABELS[indices])]


class Rows(Dataset[Any]):
    """As many samples as are wanted, each its own position."""

    def __init__(self, count: int) -> None:
        self.targets = [index % 2 for index in range(count)]
        self.transform = None

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, int, int]:
        return torch.full((1,), float(index)), self.targets[index], index
