"""A small `mdistiller` of our own on disk, and the ways in which forks differ from it, one by one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

CFG = """
from yacs.config import CfgNode as CN
CFG = CN()
CFG.EXPERIMENT = CN({"PROJECT": "p", "NAME": "", "TAG": "run"})
CFG.DATASET = CN({"TYPE": "random", "NUM_WORKERS": 0, "TEST": CN({"BATCH_SIZE": 20})})
CFG.DISTILLER = CN({"TYPE": "NONE", "TEACHER": "wide", "STUDENT": "narrow"})
CFG.SOLVER = CN({"TRAINER": "base", "BATCH_SIZE": 20, "EPOCHS": 2, "LR": 0.05})
CFG.LOG = CN({"PREFIX": "./output", "WANDB": True})
"""

TRAINER = """
import os, torch
from torch.utils.tensorboard import SummaryWriter

class BaseTrainer:
    def __init__(self, experiment_name, distiller, train_loader, val_loader, cfg):
        self.cfg, self.distiller, self.train_loader, self.val_loader = cfg, distiller, train_loader, val_loader
        self.optimizer = torch.optim.SGD(distiller.module.get_learnable_parameters(), lr=cfg.SOLVER.LR)
        self.log_path = os.path.join(cfg.LOG.PREFIX, experiment_name)
        os.makedirs(self.log_path, exist_ok=True)
        self.tf_writer = SummaryWriter(self.log_path)

    def train(self, resume=False):
        epoch = 1
        if resume:
            state = torch.load(os.path.join(self.log_path, "latest"), weights_only=True)
            self.distiller.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            epoch = state["epoch"] + 1
        for epoch in range(epoch, self.cfg.SOLVER.EPOCHS + 1):
            self.train_epoch(epoch)

    def train_epoch(self, epoch):
        self.distiller.train()
        for data in self.train_loader:
            self.train_iter(data, epoch)
        self.save(epoch)
        if os.environ.get("KILLED_AFTER") == str(epoch):
            os._exit(9)

    def save(self, epoch):
        state = {"epoch": epoch, "model": self.distiller.state_dict(), "optimizer": self.optimizer.state_dict()}
        torch.save(state, os.path.join(self.log_path, "latest"))

    def train_iter(self, data, epoch):
        image, target, index = data
        self.optimizer.zero_grad()
        logits, losses = self.distiller(image=image, target=target, epoch=epoch)
        sum(loss.mean() for loss in losses.values()).backward()
        self.optimizer.step()
"""

ENGINE = """
from .trainer import BaseTrainer
trainer_dict = {"base": BaseTrainer}
"""

DISTILLERS = """
import torch, torch.nn as nn, torch.nn.functional as F

class Distiller(nn.Module):
    def __init__(self, student, teacher=None, cfg=None):
        super().__init__()
        self.student, self.teacher, self.cfg = student, teacher, cfg

    def train(self, mode=True):
        super().train(mode)
        if self.teacher is not None:
            self.teacher.eval()
        return self

    def get_learnable_parameters(self):
        return list(self.student.parameters())

    def get_extra_parameters(self):
        return 0

    def forward(self, **kwargs):
        return self.forward_train(**kwargs) if self.training else self.student(kwargs["image"])[0]

class Vanilla(Distiller):
    def forward_train(self, image, target, **kwargs):
        logits, _ = self.student(image)
        return logits, {"ce": F.cross_entropy(logits, target)}

class KD(Distiller):
    def forward_train(self, image, target, **kwargs):
        logits, _ = self.student(image)
        with torch.no_grad():
            taught, _ = self.teacher(image)
        return logits, self.losses(logits, taught, target)

    def losses(self, logits, taught, target):
        return {"loss_ce": F.cross_entropy(logits, target), "loss_kd": F.mse_loss(logits, taught)}

distiller_dict = {"NONE": Vanilla, "KD": KD}
"""

MODELS = """
import torch.nn as nn

class Net(nn.Module):
    def __init__(self, width, num_classes=100):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(1, width, 3), nn.Linear(width, num_classes)

    def forward(self, x):
        f = self.conv(x).relu()
        p = f.mean((2, 3))
        return self.fc(p), {"feats": [f], "pooled_feat": p}

def wide(num_classes=100): return Net(8, num_classes)
def narrow(num_classes=100): return Net(4, num_classes)

cifar_model_dict = {"wide": (wide, None), "narrow": (narrow, None)}
"""

DATASET = """
import torch
from torch.utils.data import DataLoader, Dataset

class Images(Dataset):
    def __init__(self, train):
        self.targets, self.transform, self.train = list(range(4)) * 20, None, train
        self.images = torch.randn(80, 1, 8, 8, generator=torch.Generator().manual_seed(int(train)))

    def __len__(self):
        return 80

    def __getitem__(self, index):
        found = self.images[index], self.targets[index]
        return (*found, index) if self.train else found

def get_dataset(cfg):
    sizes = cfg.SOLVER.BATCH_SIZE, cfg.DATASET.TEST.BATCH_SIZE
    loaders = [DataLoader(Images(size is sizes[0]), batch_size=size, shuffle=False) for size in sizes]
    return (*loaders, 80, 4)
"""

SCRIPT = """
import argparse, numpy, os, random, torch
from mdistiller.engine.cfg import CFG as cfg
from mdistiller.engine import trainer_dict
from mdistiller.distillers import distiller_dict
from mdistiller.models import cifar_model_dict
from mdistiller.dataset import get_dataset

def build(cfg):
    names = cfg.DISTILLER.STUDENT, cfg.DISTILLER.TEACHER
    student, teacher = [cifar_model_dict[name][0](num_classes=4) for name in names]
    return distiller_dict[cfg.DISTILLER.TYPE](student, *([] if cfg.DISTILLER.TYPE == "NONE" else [teacher, cfg]))

def main(cfg, args):
    torch.manual_seed(0); random.seed(0); numpy.random.seed(0)
    train_loader, val_loader, num_data, num_classes = get_dataset(cfg)
    distiller = torch.nn.DataParallel(build(cfg))
    name = os.path.join(cfg.EXPERIMENT.PROJECT, cfg.EXPERIMENT.TAG)
    trainer_dict[cfg.SOLVER.TRAINER](name, distiller, train_loader, val_loader, cfg).train(args.resume)

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--cfg")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("opts", nargs=argparse.REMAINDER)
    args = parser.parse_args()
    cfg.merge_from_file(args.cfg)
    cfg.merge_from_list(args.opts)
    cfg.freeze()
    main(cfg, args)
"""

FILES = {
    "mdistiller/__init__.py": "",
    "mdistiller/engine/__init__.py": ENGINE,
    "mdistiller/engine/cfg.py": CFG,
    "mdistiller/engine/trainer.py": TRAINER,
    "mdistiller/distillers/__init__.py": DISTILLERS,
    "mdistiller/models/__init__.py": MODELS,
    "mdistiller/dataset/__init__.py": DATASET,
    "tools/train.py": SCRIPT,
}

CONFIG = """
DISTILLER: {TYPE: KD}
TLLM: {ON: true, HOLDOUT: {FRACTION: 0.25}, DETECTOR: {TYPE: fixed, CLASSES: [1, 3]}}
"""


def write_host(root: Path, edits: dict[str, list[tuple[str, str]]] | None = None, config: str = CONFIG) -> Path:
    """Write the host with some texts replaced, file by file, and a config that is for it; return its root."""
    for name, text in FILES.items():
        for old, new in (edits or {}).get(name, []):
            assert old in text, f"{old!r} is not in {name}"
            text = text.replace(old, new)
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (root / "run.yaml").write_text(config)
    return root


def train(root: Path, *words: str, start: tuple[str, ...] = (), **variables: str) -> subprocess.CompletedProcess[str]:
    """Run `tllm train --host mdistiller` in the host."""
    command = [*(start or (sys.executable,)), "-m", "tllm_plugin", "train", "--host", "mdistiller", "--cfg", "run.yaml"]
    paths = os.pathsep.join(filter(None, (str(root), os.environ.get("PYTHONPATH"))))
    env = {**os.environ, "TLLM_MDISTILLER_ROOT": str(root), "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", **variables}
    return subprocess.run([*command, *words], cwd=root, env=env, capture_output=True, text=True)
