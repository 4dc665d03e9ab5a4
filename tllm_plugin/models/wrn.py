"""Wide residual networks: pre-activation blocks, depth 6n + 4, any width.

Stages end in a sum without an activation. `feats[i]` is that sum, and `preact_feats[i]` is the sum after the next
BatchNorm, that is, the input of the next ReLU. Both are as in the hosts, except that the hosts evaluate that BatchNorm
twice per forward pass and thus update its running statistics twice per step; here it is evaluated once.

Source: Zagoruyko and Komodakis, "Wide residual networks", 2016.
"""

from __future__ import annotations

import re
from functools import partial
from typing import cast

from torch import Tensor, nn
from torch.nn import functional as F

from tllm_plugin.core.errors import ConfigError
from tllm_plugin.models.features import FeatureNet, init_convolutions
from tllm_plugin.models.registry import FAMILIES, ModelBuilder


def _blocks_per_stage(depth: int, width: int) -> int:
    if depth < 10 or (depth - 4) % 6:
        raise ConfigError(
            f"Expected `depth` of a wide ResNet to be 6n + 4 (10, 16, 22, 28, 34, 40, ...), but got {depth}"
        )
    if width < 1:
        raise ConfigError(f"Expected `width` of a wide ResNet to be at least 1, but got {width}")
    return (depth - 4) // 6


class PreactBlock(nn.Module):
    """Block of twice BatchNorm, ReLU and 3x3 convolution, plus a shortcut.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output. If they differ from `in_channels`, the shortcut is a 1x1 convolution of
            the activated input, otherwise the input itself.
        stride: Stride of the first convolution and of the shortcut.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, kernel_size=3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, kernel_size=3, padding=1, bias=False)
        self.convShortcut = (
            None
            if in_channels == out_channels
            else nn.Conv2d(in_channels, out_channels, kernel_size=1, stride=stride, bias=False)
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the sum of the two paths, and the input after the first BatchNorm."""
        normed = self.bn1(x)
        active = F.relu(normed)
        shortcut = x if self.convShortcut is None else self.convShortcut(active)
        out = self.conv2(F.relu(self.bn2(self.conv1(active))))
        return shortcut + out, normed


class PreactStage(nn.Module):
    """Sequence of blocks of one width; the first block may change the shape."""

    def __init__(self, blocks: int, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        first = PreactBlock(in_channels, out_channels, stride)
        rest = (PreactBlock(out_channels, out_channels, stride=1) for _ in range(blocks - 1))
        self.layer = nn.Sequential(first, *rest)

    def first_norm(self) -> nn.BatchNorm2d:
        """Return the BatchNorm that is applied to the input of the stage."""
        return cast(PreactBlock, self.layer[0]).bn1

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the sum of the last block, and the input of the stage after the first BatchNorm."""
        first, *rest = self.layer
        x, normed = first(x)
        for block in rest:
            x, _ = block(x)
        return x, normed


class WideResNet(FeatureNet):
    """Wide ResNet for small images.

    Args:
        num_classes: Number of logits per image.
        in_channels: Channels of the images.
        depth: Depth 6n + 4, at least 10; each stage has n blocks.
        width: Factor for the 16, 32 and 64 channels of the stages, at least 1.

    Raises:
        ConfigError: `depth` or `width` is not valid.
    """

    def __init__(self, num_classes: int, in_channels: int = 3, *, depth: int, width: int) -> None:
        blocks = _blocks_per_stage(depth, width)
        super().__init__()
        self.stage_channels = (16, 16 * width, 32 * width, 64 * width)
        c0, c1, c2, c3 = self.stage_channels
        self.conv1 = nn.Conv2d(in_channels, c0, kernel_size=3, padding=1, bias=False)
        self.block1 = PreactStage(blocks, c0, c1, stride=1)
        self.block2 = PreactStage(blocks, c1, c2, stride=2)
        self.block3 = PreactStage(blocks, c2, c3, stride=2)
        self.bn1 = nn.BatchNorm2d(c3)
        self.fc = nn.Linear(c3, num_classes)
        init_convolutions(self)
        nn.init.zeros_(self.fc.bias)

    def extract(self, images: Tensor) -> tuple[list[Tensor], list[Tensor], Tensor]:
        stem = self.conv1(images)
        feat1, _ = self.block1(stem)
        feat2, preact1 = self.block2(feat1)
        feat3, preact2 = self.block3(feat2)
        preact3 = self.bn1(feat3)
        return [stem, feat1, feat2, feat3], [stem, preact1, preact2, preact3], F.relu(preact3)

    def modules_after(self, stage: int) -> list[nn.Module]:
        return [*(self.block1, self.block2, self.block3)[stage:], self.bn1, nn.ReLU()]

    def get_feat_modules(self) -> nn.ModuleList:
        return nn.ModuleList([self.conv1, self.block1, self.block2, self.block3])

    def get_bn_before_relu(self) -> list[nn.BatchNorm2d]:
        return [self.block2.first_norm(), self.block3.first_norm(), self.bn1]


@FAMILIES.register("wrn_<depth>_<width>")
def _wide_resnet(name: str) -> ModelBuilder | None:
    match = re.fullmatch(r"wrn_(0|[1-9][0-9]{0,3})_(0|[1-9][0-9]{0,3})", name)
    if match is None:
        return None
    depth, width = int(match[1]), int(match[2])
    try:
        _blocks_per_stage(depth, width)
    except ConfigError as error:
        raise ConfigError(f"{error} in `model` {name!r}") from error
    return partial(WideResNet, depth=depth, width=width)
