"""Small networks and distillers with the interfaces of both hosts."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CLASSES = 7


class Net(nn.Module):
    """Two convolutions with BatchNorm, returning `(logits, features)` as mdistiller's networks do."""

    def __init__(self, width: int = 16, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.conv1, self.bn1 = nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, stride=2, padding=1), nn.BatchNorm2d(width)
        self.fc = nn.Linear(width, CLASSES)
        for norm in (self.bn1, self.bn2):  # Statistics that show if BatchNorm is left out.
            nn.init.uniform_(norm.weight, 0.5, 2)
            nn.init.normal_(norm.bias)
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 3)

    def maps(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        first = self.bn1(self.conv1(x)).relu()
        second = self.bn2(self.conv2(first)).relu()
        return [first, second], second.mean((2, 3))

    def forward(self, x: Tensor) -> Any:
        feats, pooled = self.maps(x)
        return self.fc(pooled), {"feats": feats, "pooled_feat": pooled}


class ListedNet(Net):
    """The same under RepDistiller's contract."""

    def forward(self, x: Tensor, is_feat: bool = False) -> Any:
        feats, pooled = self.maps(x)
        logits = self.fc(pooled)
        return ([*feats, pooled], logits) if is_feat else logits


class KD(nn.Module):
    """Cross-entropy and divergence of the logits."""

    def __init__(self, student: nn.Module, teacher: nn.Module) -> None:
        super().__init__()
        self.student, self.teacher = student, teacher

    def get_learnable_parameters(self) -> list[nn.Parameter]:
        return list(self.student.parameters())

    def train(self, mode: bool = True) -> KD:
        super().train(mode)
        self.teacher.eval()
        return self

    def extra(self, features: Any, taught: Any) -> Tensor:
        return torch.zeros(())

    def forward(self, image: Tensor, target: Tensor | None = None, **_: Any) -> Any:
        logits, features = self.student(image)
        if not self.training:
            return logits
        with torch.no_grad():
            teacher_logits, taught = self.teacher(image)
        loss = F.kl_div(logits.log_softmax(1), teacher_logits.softmax(1), reduction="batchmean")
        return logits, {
            "loss_ce": F.cross_entropy(logits, target),
            "loss_kd": loss + self.extra(features, taught),
        }


class Hint(KD):
    """KD with the squared difference of the last maps."""

    def extra(self, features: Any, taught: Any) -> Tensor:
        return F.mse_loss(features["feats"][-1], taught["feats"][-1])


class Distances(KD):
    """KD with the distances between the features of the rows."""

    def extra(self, features: Any, taught: Any) -> Tensor:
        last = features["feats"][-1]
        return (last - last.roll(1, 0)).square().mean()


class FarNet(Net):
    """Features that are nearly equal, compared with their size, so that bfloat16 does not resolve their distances."""

    def maps(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        feats, pooled = super().maps(x)
        return [feats[0], feats[1] + 4000], pooled


def batch(rows: int = 8, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "image": torch.randn(rows, 3, 16, 16, generator=generator),
        "target": torch.randint(0, CLASSES, (rows,), generator=generator),
    }
