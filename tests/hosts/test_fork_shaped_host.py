"""The adapter in a host of the forks' shape: a trainer `ours`, two views per image, a plain `DataLoader`."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torch.utils.tensorboard import SummaryWriter
from yacs.config import CfgNode

from tests.distiller_cases import IMAGE_SIZE, NUM_CLASSES, TwoView, networks
from tllm_plugin.core.errors import ConfigError, FileFormatError
from tllm_plugin.hosts import processes
from tllm_plugin.hosts.adapter import Host, make_distiller_factory, make_trainer_factory
from tllm_plugin.hosts.loader_data import LoaderData
from tllm_plugin.hosts.tllm_node import tllm_node
from tllm_plugin.runs.run_folder import RunFolder

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


def test_two_view_run(tmp_path: Path) -> None:
    torch.manual_seed(0)
    student, teacher = networks()
    taught: list[int] = []
    teacher.register_forward_hook(lambda module, args, output: taught.append(len(args[0])))
    train = DataLoader(Images(two_views), batch_size=24, shuffle=True)
    val = DataLoader(Images(one_view), batch_size=24)
    distiller = nn.DataParallel(TwoView(student, teacher))
    trainer = make_trainer_factory(HOST)("run", distiller, train, val, config(tmp_path))
    taught.clear()
    trainer.train()
    held_out = set(RunFolder.inside(tmp_path / "run").read_split().holdout)
    assert len(held_out) == 10 * NUM_CLASSES
    assert set(trainer.seen) == set(range(len(train.dataset))) - held_out  # type: ignore[arg-type]
    assert trainer.losses == {"loss_ce", "loss_kd"}
    # Both views of the distillable rows in every epoch, and the hold-out once.
    distillable = 3 * 2 * (NUM_CLASSES - 2) * (PER_CLASS - 10)
    assert sum(taught) == distillable + len(held_out)
    record = RunFolder.inside(tmp_path / "run").read_flags()
    assert record.epochs == 3 and record.flagged == (1, 4)


def test_a_script_that_knows_of_no_other_process_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(processes, "joined", nullcontext)
    loaders = [DataLoader(Images(view), batch_size=24) for view in (two_views, one_view)]
    with pytest.raises(ConfigError, match="Expected one process for .*, but a launcher started 2"):
        make_trainer_factory(HOST)("run", nn.DataParallel(TwoView(*networks())), *loaders, config(tmp_path))


def test_a_host_does_not_resume_from_a_damaged_checkpoint(tmp_path: Path) -> None:
    """The host loads it by itself, and PyTorch does not look at the checksums that it wrote."""
    loaders = [DataLoader(Images(view), batch_size=24) for view in (two_views, one_view)]
    distiller = nn.DataParallel(TwoView(*networks()))
    trainer = make_trainer_factory(HOST)("run", distiller, *loaders, config(tmp_path))
    latest = tmp_path / "run" / "latest"
    torch.save({"model": torch.arange(1000.0)}, latest)
    data = bytearray(latest.read_bytes())
    data[len(data) // 2] ^= 1
    latest.write_bytes(data)
    assert not torch.load(latest)["model"].equal(torch.arange(1000.0))
    with pytest.raises(FileFormatError, match="run/latest to be a checkpoint to resume from, but it is .*damaged"):
        trainer.train(resume=True)
    assert not trainer.seen
    trainer.train()
    assert trainer.seen


def test_a_type_that_the_fork_treats_by_name(tmp_path: Path) -> None:
    cfg = config(tmp_path)
    cfg.TLLM.DISTILLER = "MLKD"
    with pytest.raises(ConfigError, match="keep DISTILLER.TYPE 'MLKD' and set SOLVER.TRAINER to 'tllm' instead"):
        make_distiller_factory(HOST)(*networks(), cfg)
