"""VGG with BatchNorm for small images: five groups of 3x3 convolutions, max-pooling between them, a linear head."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from tllm_plugin.models.features import FeatureNet, init_convolutions, last_norm
from tllm_plugin.models.registry import MODELS

_WIDTHS = (64, 128, 256, 512, 512)

# Convolutions in each of the five groups. The number in a name also counts the three linear layers of the original
# networks; these networks have one.
_ARCHITECTURES = {
    "vgg8": (1, 1, 1, 1, 1),
    "vgg11": (1, 1, 2, 2, 2),
    "vgg13": (2, 2, 2, 2, 2),
    "vgg16": (2, 2, 3, 3, 3),
    "vgg19": (2, 2, 4, 4, 4),
}


def _group(in_channels: int, width: int, depth: int) -> nn.Sequential:
    """Return `depth` times convolution, BatchNorm and ReLU, without the last ReLU."""
    layers: list[nn.Module] = []
    for i in range(depth):
        conv = nn.Conv2d(in_channels if i == 0 else width, width, kernel_size=3, padding=1)
        layers += [conv, nn.BatchNorm2d(width), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class _PoolLarge(nn.Module):
    """Max-pooling before the fifth group, applied to maps of at least 8 pixels (images of at least 64 pixels)."""

    def forward(self, feat: Tensor) -> Tensor:
        return F.max_pool2d(feat, 2) if feat.shape[2] >= 8 else feat


class VGG(FeatureNet):
    """VGG with a given number of convolutions in each of its five groups; the first group is the stem.

    The map is halved after each of the first three groups, and after the fourth if images have at least 64 pixels (in
    the hosts: exactly 64).

    Args:
        num_classes: Number of logits per image.
        in_channels: Channels of the images, which must be at least 8 pixels high and wide.
        depths: Number of convolutions in each of the five groups.

    Source: Simonyan and Zisserman, "Very deep convolutional networks", 2015, table 1.
    """

    head_name: ClassVar[str] = "classifier"

    def __init__(self, num_classes: int, in_channels: int = 3, *, depths: Sequence[int]) -> None:
        super().__init__()
        channels = (in_channels, *_WIDTHS)
        for i, depth in enumerate(depths):
            self.add_module(f"block{i}", _group(channels[i], channels[i + 1], depth))
        self.classifier = nn.Linear(channels[-1], num_classes)
        self.stage_channels = _WIDTHS
        init_convolutions(self)
        nn.init.normal_(self.classifier.weight, std=0.01)
        nn.init.zeros_(self.classifier.bias)

    @property
    def groups(self) -> list[nn.Module]:
        """Groups of convolutions, in order."""
        return [child for child in self.children() if isinstance(child, nn.Sequential)]

    def extract(self, images: Tensor) -> tuple[list[Tensor], list[Tensor], Tensor]:
        stem, *groups = self.groups
        feat = F.relu(stem(images))
        feats, preacts = [feat], [feat]
        for number, group in enumerate(groups, start=1):
            pooled = F.max_pool2d(feat, 2) if number <= 3 or images.shape[2] >= 64 else feat
            preact = group(pooled)
            feat = F.relu(preact)
            feats.append(feat)
            preacts.append(preact)
        return feats, preacts, feat

    def modules_after(self, stage: int) -> list[nn.Module]:
        modules: list[nn.Module] = []
        for number, group in enumerate(self.groups[stage + 1 :], start=stage + 1):
            modules += [nn.MaxPool2d(2) if number <= 3 else _PoolLarge(), group, nn.ReLU()]
        return modules

    def get_feat_modules(self) -> nn.ModuleList:
        return nn.ModuleList(self.groups)

    def get_bn_before_relu(self) -> list[nn.BatchNorm2d]:
        return [last_norm(group) for group in self.groups[1:]]


for _name, _depths in _ARCHITECTURES.items():
    MODELS.register(_name)(partial(VGG, depths=_depths))
