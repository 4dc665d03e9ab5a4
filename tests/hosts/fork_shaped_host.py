"""A host of the forks' shape: a trainer `ours`, two views per image, a plain `DataLoader`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from torch.utils.tensorboard import SummaryWriter
from yacs.config import CfgNode

from tests.distiller_cases import IMAGE_SIZE, NUM_CLASSES, TwoView
from tllm_plugin.hosts.adapter import Host
from tllm_plugin.hosts.loader_data import LoaderData
from tllm_plugin.hosts.tllm_node import tllm_node

PER_CLASS = 40


def two_views(image: Tensor) -> list[Tensor]:
    return [image + 0.1 * torch.randn_like(image), image + torch.randn_like(image)]


def one_view(image: Tensor) -> Tensor:
    return image


class Images(Dataset[Any]):
    """As the data sets of torchvision and of the hosts: labels, a transform, and the index with every sample."""

    def __init__(self, transform: Any) -> None:
        self.targets = list(range(NUM_CLASSES)) * PER_CLASS
        self.transform = transform
        self.images = torch.randn(len(self.targets), 1, IMAGE_SIZE, IMAGE_SIZE)

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> Any:
        return self.transform(self.images[index]), self.targets[index], index


class Ours:
    """The fork's trainer, as far as the contract goes."""

    def __init__(self, name: str, distiller: nn.Module, train_loader: Any, val_loader: Any, cfg: CfgNode) -> None:
        self.distiller, self.train_loader, self.cfg = distiller, train_loader, cfg
        module: Any = distiller.module
        self.optimizer = torch.optim.SGD(module.get_learnable_parameters(), lr=0.05)
        self.log_path = f"{cfg.LOG.PREFIX}/{name}"
        self.tf_writer = SummaryWriter(self.log_path)
        self.seen: list[int] = []
        self.losses: set[str] = set()

    def train(self, resume: bool = False) -> None:
        for epoch in range(1, self.cfg.SOLVER.EPOCHS + 1):
            self.train_epoch(epoch)

    def train_epoch(self, epoch: int) -> None:
        self.distiller.train()
        for (weak, strong), target, index in self.train_loader:
            self.seen += index.tolist()
            self.optimizer.zero_grad()
            logits, losses = self.distiller(image_weak=weak, image_strong=strong, target=target, epoch=epoch)
            assert logits.shape == (len(target), NUM_CLASSES)
            self.losses |= set(losses)
            sum(loss.mean() for loss in losses.values()).backward()
            self.optimizer.step()


HOST = Host(
    trainers={"ours": Ours},
    distillers={"MLKD": lambda student, teacher, cfg: TwoView(student, teacher)},
    special_types=frozenset({"NONE", "MLKD"}),
    training_data=lambda train, val, cfg: LoaderData(train, val.dataset.transform),
)


def config(prefix: Path) -> CfgNode:
    cfg = CfgNode({"SOLVER": CfgNode({"EPOCHS": 3, "TRAINER": "tllm"}), "LOG": CfgNode({"PREFIX": str(prefix)})})
    cfg.TLLM = tllm_node()
    cfg.TLLM.TRAINER = "ours"
    cfg.TLLM.HOLDOUT.FRACTION = 0.25
    cfg.TLLM.DETECTOR.TYPE = "fixed"
    cfg.TLLM.DETECTOR.CLASSES = [1, 4]
    return cfg
