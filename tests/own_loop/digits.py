"""The digits as a user has them: data sets of tensors, and networks that return logits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from tllm_plugin import KD, Session, Vanilla
from tllm_plugin.data import load_data
from tllm_plugin.models import create_model

EPOCHS = 3
#: 18 images per class.
HOLDOUT: dict[str, Any] = {"holdout_fraction": 0.15}
#: The naive rule, which flags soon.
FLAGGING: dict[str, Any] = {**HOLDOUT, "fdr": 1.0, "eta": 0.01, "smoothing": 0.0, "warmup_epochs": 0}


def digits(part: str) -> TensorDataset:
    """Return the normalised images of "train" or "test" with their labels."""
    bundle = load_data("digits")
    labels = bundle.train_labels if part == "train" else bundle.test_labels
    rows = torch.arange(len(labels))
    batches = bundle.eval_loader(rows, batch_size=500, device=torch.device("cpu"), split=part)  # type: ignore[arg-type]
    return TensorDataset(torch.cat([image for image, _ in batches]), labels)


class LogitsOnly(nn.Module):
    """A network as most people write them: the logits alone."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        logits: Tensor = self.network(image)[0]
        return logits


def student(seed: int = 0, classes: int = 10) -> nn.Module:
    torch.manual_seed(seed)
    return LogitsOnly(create_model("digits_student", classes, 1))


def teacher(classes: int = 10) -> nn.Module:
    """Return an untrained teacher: its errors do not matter here."""
    torch.manual_seed(99)
    return LogitsOnly(create_model("digits_teacher", classes, 1))


def kd() -> KD:
    return KD(student(), teacher(), temperature=4)


def vanilla() -> Vanilla:
    return Vanilla(student())


def optimizer_of(session: Session) -> torch.optim.SGD:
    return torch.optim.SGD(session.distiller.get_learnable_parameters(), lr=0.05, momentum=0.9)  # type: ignore[operator]


def step(session: Session, optimizer: torch.optim.Optimizer, image: Tensor, target: Tensor) -> None:
    _, losses = session.distiller(image=image, target=target)
    optimizer.zero_grad()
    sum(losses.values()).backward()
    optimizer.step()


def train(session: Session, loader: Any = None, epochs: int | None = None) -> torch.optim.Optimizer:
    """Train a session, up to a number of epochs in this process."""
    loader = loader or session.loader(batch_size=64, shuffle=True)
    optimizer = optimizer_of(session)
    for epoch in session.epochs():
        for image, target in loader:
            step(session, optimizer, image, target)
        session.end_epoch(optimizer=optimizer)
        if epoch == epochs:
            break
    return optimizer
