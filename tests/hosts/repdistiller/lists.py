"""What `train_student.py` builds for each method, written down a second time for the tests."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from tests.distiller_cases import NUM_CLASSES
from tllm_plugin.hosts.repdistiller import add_method
from tllm_plugin.hosts.repdistiller.distiller import ListedDistiller
from tllm_plugin.hosts.repdistiller.loop import EpochCall
from tllm_plugin.methods import Distiller

PORTED = ("srrl", "cid")
KINDS = (
    *("kd", "hint", "attention", "similarity", "correlation", "vid", "crd"),
    *("kdsvd", "fsp", "rkd", "pkt", "abound", "factor", "nst"),
)
SEPARABLE = ("kd", "hint", "attention", "vid", "nst", "kdsvd", "abound", "factor", "fsp")
N_DATA = 200


class OfBatches(ListedDistiller):
    """Is given what a loader yields, whatever else a test's batch holds."""

    def forward(self, image: Tensor, target: Tensor | None = None, *, epoch: int = 0, **batch: Any) -> Any:
        wanted = ("index", "contrastive_index") if self.kind == "crd" else ("index",)
        given = {name: batch[name] for name in wanted if name in batch}
        return super().forward(image, target, epoch=epoch, **given)

    kind = ""


@dataclass
class Lists:
    """Args as the host names them; `trainable` is what its optimizer is given."""

    modules: nn.ModuleList
    criteria: nn.ModuleList
    trainable: nn.ModuleList
    options: SimpleNamespace
    host: SimpleNamespace

    def optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.trainable.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)

    def distiller(self) -> nn.Module:
        if isinstance(self.criteria[-1], Distiller):
            return self.criteria[-1]
        distiller = OfBatches(self.modules, self.criteria, self.trainable.parameters())
        distiller.kind = self.options.distill
        loader, optimizer = object(), object()
        arguments = (1, loader, self.modules, self.criteria, optimizer, self.options)
        distiller.call = EpochCall(self.host.train_distill, arguments, loader, self.modules, self.criteria, optimizer)
        return distiller


def make_options(kind: str, **changes: Any) -> SimpleNamespace:
    fixed = {"hint_layer": 2, "feat_dim": 8, "nce_k": 4, "nce_t": 0.07, "nce_m": 0.5, "n_data": N_DATA, "kd_T": 4}
    loop = {"print_freq": 100, "init_epochs": 1, "learning_rate": 0.05, "momentum": 0.9, "weight_decay": 5e-4}
    weights = {"gamma": 0.7, "alpha": 0.9, "beta": 0.8}
    ported = {"srrl_feat_weight": 0.6, "srrl_weight": 0.5, "cid_a": 0.9, "cid_b": 2.0, "cid_c": 0.4}
    context = {"cid_warmup_epochs": 1, "nesterov": kind == "cid"}
    chosen = {**fixed, **loop, **weights, **ported, **context, **changes}
    return SimpleNamespace(distill=kind, model_s="resnet8", **chosen)


def make_lists(
    host: SimpleNamespace, kind: str, teacher: str = "resnet14", student: str = "resnet8", **changes: Any
) -> Lists:
    """Return new lists; the same for the same state of the random numbers."""
    options = make_options(kind, **changes)
    model_t, model_s = (host.model_dict[name](num_classes=NUM_CLASSES) for name in (teacher, student))
    model_s.eval(), model_t.eval()
    probe = torch.randn(2, 3, 32, 32)
    (feat_t, _), (feat_s, _) = model_t(probe, is_feat=True), model_s(probe, is_feat=True)
    options.s_dim, options.t_dim = feat_s[-1].shape[1], feat_t[-1].shape[1]
    shapes_s, shapes_t = ([f.shape for f in feats[1:-1]] for feats in (feat_s, feat_t))
    between: list[nn.Module] = []
    trained: list[nn.Module] = []
    simple = {
        **{"attention": "Attention", "nst": "NSTLoss", "similarity": "Similarity", "rkd": "RKDLoss", "pkt": "PKT"},
        **{"kdsvd": "KDSVD", "hint": "HintLoss", "correlation": "Correlation", "factor": "FactorTransfer"},
    }
    criterion: Any = getattr(host, simple[kind])() if kind in simple else host.DistillKL(4)
    if kind == "hint":
        between = trained = [host.ConvReg(feat_s[2].shape, feat_t[2].shape)]
    elif kind == "crd":
        criterion = host.CRDLoss(options)
        between = trained = [criterion.embed_s, criterion.embed_t]
    elif kind == "correlation":
        between = trained = [host.LinearEmbed(d, options.feat_dim) for d in (options.s_dim, options.t_dim)]
    elif kind == "vid":
        criterion = nn.ModuleList(host.VIDLoss(s[1], t[1], t[1]) for s, t in zip(shapes_s, shapes_t, strict=True))
        trained = [criterion]
    elif kind == "abound":
        criterion, between = host.ABLoss(len(shapes_s)), [host.Connector(shapes_s, shapes_t)]
    elif kind == "factor":
        between = [host.Translator(shapes_s[-1], shapes_t[-1]), host.Paraphraser(shapes_t[-1])]
        trained = between[:1]
    elif kind == "fsp":
        criterion = host.FSP([f.shape for f in feat_s[:-1]], [f.shape for f in feat_t[:-1]])
    modules, trainable = nn.ModuleList([model_s, *between]), nn.ModuleList([model_s, *trained])
    if kind in PORTED:
        _, criterion = add_method(options, modules, trainable, model_t)
    modules.append(model_t)
    criteria = nn.ModuleList([nn.CrossEntropyLoss(), host.DistillKL(4), criterion])
    return Lists(modules, criteria, trainable, options, host)


def batches(kind: str, steps: int = 2, rows: int = 7, seed: int = 3) -> list[tuple[Tensor, ...]]:
    """Return a loader's worth of batches, as the host's data sets give them."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for step in range(steps):
        image = torch.randn(rows, 3, 32, 32, generator=generator)
        index = torch.arange(rows) + step * rows
        batch = [image, (index * 5) % NUM_CLASSES, index]
        if kind == "crd":
            contrast = torch.randint(N_DATA, (rows, 5), generator=generator)
            contrast[:, 0] = index
            batch.append(contrast)
        found.append(tuple(batch))
    return found
