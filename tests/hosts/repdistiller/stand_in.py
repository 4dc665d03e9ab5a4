"""A host of RepDistiller's shape with equations of its own: networks, modules, criteria and an epoch of training."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tllm_plugin.hosts.repdistiller.networks import create_listed


def _flat(feature: Tensor) -> Tensor:
    """(N, D), a map's mean over its positions."""
    return feature.reshape(*feature.shape[:2], -1).mean(2)


class KL(nn.Module):
    def __init__(self, temperature: float) -> None:
        super().__init__()
        self.temperature = temperature

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        wanted = F.softmax(teacher / self.temperature, 1)
        return -(wanted * F.log_softmax(student / self.temperature, 1)).sum() / len(student)


class Distance(nn.Module):
    """One number for two tensors."""

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        return (student.mean(1) - teacher.mean(1)).pow(2).mean()


class Distances(nn.Module):
    """A list of numbers for two lists, of shape () or (1,)."""

    def __init__(self, shape: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, student: list[Tensor], teacher: list[Tensor]) -> list[Tensor]:
        return [
            (s.mean((1, 2, 3)) - t.mean((1, 2, 3))).pow(2).mean().reshape(self.shape)
            for s, t in zip(student, teacher, strict=True)
        ]


class Neighbours(nn.Module):
    """Products of adjacent rows' differences: depends on which rows are in a batch and on their order."""

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        difference = (student - teacher).abs()
        return (difference[:-1] * difference[1:]).sum(1).mean()


class Learned(nn.Module):
    """A criterion with weights, for one pair of maps."""

    def __init__(self, student_channels: int, middle: int, teacher_channels: int) -> None:
        super().__init__()
        self.regressor = nn.Linear(student_channels, teacher_channels)

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        return (self.regressor(_flat(student)) - _flat(teacher)).pow(2).mean()


class Memory(nn.Module):
    """A criterion that remembers embeddings by sample index; changes with every call."""

    def __init__(self, options: Any) -> None:
        super().__init__()
        self.embed_s = nn.Linear(options.s_dim, options.feat_dim)
        self.embed_t = nn.Linear(options.t_dim, options.feat_dim)
        self.register_buffer("memory", torch.randn(options.n_data, options.feat_dim))

    def forward(self, student: Tensor, teacher: Tensor, index: Tensor, contrast: Tensor) -> Tensor:
        s, t = self.embed_s(student), self.embed_t(teacher)
        loss = ((s + t).unsqueeze(1) * self.memory[contrast]).sum(2).tanh().mean().reshape(1)
        with torch.no_grad():
            self.memory.index_copy_(0, index, s.detach())
        return loss


class Regress(nn.Module):
    def __init__(self, student_shape: Any, teacher_shape: Any) -> None:
        super().__init__()
        self.conv = nn.Conv2d(student_shape[1], teacher_shape[1], 1)
        self.norm = nn.BatchNorm2d(teacher_shape[1])

    def forward(self, feature: Tensor) -> Tensor:
        return self.norm(self.conv(feature))


class Paraphraser(nn.Module):
    def __init__(self, shape: Any) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(shape[1], 8, 1), nn.BatchNorm2d(8))

    def forward(self, feature: Tensor, is_factor: bool = False) -> Any:
        assert is_factor and not self.training
        return self.encoder(feature)


class Connector(nn.Module):
    def __init__(self, student_shapes: Any, teacher_shapes: Any) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.BatchNorm2d(shape[1]) for shape in student_shapes)


def reference_epoch(epoch: int, loader: Any, modules: Any, criteria: Any, optimizer: Any, options: Any) -> Any:
    """Train one epoch the plain way, method by method; an independent reference for the table of methods."""
    for module in modules:
        module.train()
    modules[-1].eval()
    kind = options.distill
    if kind in ("abound", "factor"):
        modules[{"abound": 1, "factor": 2}[kind]].eval()
    summed, rows = 0.0, 0
    for batch in loader:
        image, target = batch[0], batch[1]
        preact = kind == "abound"
        s, logits = modules[0](image, is_feat=True, preact=preact)
        with torch.no_grad():
            t, teacher_logits = modules[-1](image, is_feat=True, preact=preact)
        loss = options.gamma * criteria[0](logits, target) + options.alpha * criteria[1](logits, teacher_logits)
        last = criteria[2]
        if kind == "hint":
            loss = loss + options.beta * last(modules[1](s[options.hint_layer]), t[options.hint_layer])
        elif kind in ("attention", "nst", "kdsvd"):
            loss = loss + options.beta * sum(last(s[1:-1], t[1:-1]))
        elif kind == "similarity":
            loss = loss + options.beta * sum(last([s[-2]], [t[-2]]))
        elif kind in ("rkd", "pkt"):
            loss = loss + options.beta * last(s[-1], t[-1])
        elif kind == "correlation":
            loss = loss + options.beta * last(modules[1](s[-1]), modules[2](t[-1]))
        elif kind == "vid":
            loss = loss + options.beta * sum(one(a, b) for one, a, b in zip(last, s[1:-1], t[1:-1], strict=True))
        elif kind == "crd":
            loss = loss + options.beta * last(s[-1], t[-1], batch[2], batch[3])
        elif kind == "factor":
            loss = loss + options.beta * last(modules[1](s[-2]), modules[2](t[-2], is_factor=True))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        summed, rows = summed + loss.item() * len(target), rows + len(target)
    return None, summed / rows


def stand_in() -> SimpleNamespace:
    """Return it under the names that the real host's train script imports."""
    pooled = {name: Distance for name in ("RKDLoss", "PKT")}
    return SimpleNamespace(
        **pooled,
        **{name: Distances for name in ("Attention", "NSTLoss", "KDSVD")},
        Similarity=partial(Distances, (1,)),
        DistillKL=KL,
        HintLoss=nn.MSELoss,
        FactorTransfer=Distance,
        Correlation=Neighbours,
        VIDLoss=Learned,
        CRDLoss=Memory,
        FSP=lambda student, teacher: nn.Identity(),
        ABLoss=lambda count: nn.Identity(),
        ConvReg=Regress,
        LinearEmbed=nn.Linear,
        Connector=Connector,
        Paraphraser=Paraphraser,
        Translator=lambda student, teacher: nn.Sequential(nn.Conv2d(student[1], 8, 1), nn.BatchNorm2d(8)),
        model_dict={name: partial(create_listed, name) for name in ("resnet8", "resnet14")},
        train_distill=reference_epoch,
        init=None,
        root=None,
    )
