"""ShuffleNetV1 and ShuffleNetV2 for small images: a 1x1 stem and three stages that each halve the map.

Source: Zhang et al., "ShuffleNet", 2018; Ma et al., "ShuffleNet V2", 2018; channels and depths as in the hosts.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tllm_plugin.core.errors import ConfigError
from tllm_plugin.models.layered import LayeredNet, Stage
from tllm_plugin.models.registry import MODELS

_STEM_WIDTH = 24
_V1_GROUPS = 3
_V1_BLOCKS = (4, 8, 4)
_V1_CHANNELS = (_STEM_WIDTH, 240, 480, 960)
_V2_BLOCKS = (4, 8, 4)
_V2_CHANNELS = (_STEM_WIDTH, 116, 232, 464)
_V2_LAST_WIDTH = 1024


def _depthwise(channels: int, stride: int) -> nn.Conv2d:
    return nn.Conv2d(channels, channels, kernel_size=3, stride=stride, padding=1, groups=channels, bias=False)


def _pointwise(in_channels: int, out_channels: int, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, kernel_size=1, groups=groups, bias=False)


class GroupedBottleneck(nn.Module):
    """ShuffleNetV1's block: grouped 1x1, shuffle, depthwise 3x3, grouped 1x1; returns its output before the ReLU.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output. A block of stride 2 concatenates its pooled input with the output of its
            convolutions, which therefore have `out_channels - in_channels` channels.
        stride: 1 or 2.
        first: Whether the input is the output of the stem; the first convolution is then not grouped.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, first: bool = False) -> None:
        super().__init__()
        computed = out_channels - in_channels if stride == 2 else out_channels
        width = computed // 4
        self.groups = 1 if first else _V1_GROUPS
        self.stride = stride
        self.conv1 = _pointwise(in_channels, width, self.groups)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = _depthwise(width, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = _pointwise(width, computed, _V1_GROUPS)
        self.bn3 = nn.BatchNorm2d(computed)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.channel_shuffle(out, self.groups)
        out = F.relu(self.bn2(self.conv2(out)))
        computed: Tensor = self.bn3(self.conv3(out))
        if self.stride == 1:
            return computed + x
        return torch.cat([computed, F.avg_pool2d(x, 3, stride=2, padding=1)], dim=1)


class ShuffleNetV1(LayeredNet):
    """ShuffleNetV1 with three groups per convolution.

    Args:
        num_classes: Logits per image.
        in_channels: Channels of the images.
    """

    head_name: ClassVar[str] = "linear"

    def __init__(self, num_classes: int, in_channels: int = 3) -> None:
        stages = []
        for i, count in enumerate(_V1_BLOCKS):
            before, after = _V1_CHANNELS[i : i + 2]
            down = GroupedBottleneck(before, after, stride=2, first=i == 0)
            stages.append(Stage(down, *(GroupedBottleneck(after, after, stride=1) for _ in range(count - 1))))
        super().__init__(_pointwise(in_channels, _STEM_WIDTH), stages, _V1_CHANNELS)
        self.linear = nn.Linear(_V1_CHANNELS[-1], num_classes)


class ShuffleStage(Stage):
    """Stage of ShuffleNetV2, in which every block ends in ReLU and a channel shuffle."""

    def activate(self, preact: Tensor) -> Tensor:
        return F.channel_shuffle(F.relu(preact), 2)


class SplitBlock(nn.Module):
    """ShuffleNetV2's block of stride 1: half of the channels pass through, the others are convolved.

    Returns both halves before ReLU and shuffle. ReLU does not change the first half, which is the output of a ReLU.

    Args:
        channels: Channels of input and output; even.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.conv1 = _pointwise(half, half)
        self.bn1 = nn.BatchNorm2d(half)
        self.conv2 = _depthwise(half, stride=1)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = _pointwise(half, half)
        self.bn3 = nn.BatchNorm2d(half)

    def forward(self, x: Tensor) -> Tensor:
        kept, out = x.chunk(2, dim=1)
        out = F.relu(self.bn1(self.conv1(out)))
        out = self.bn2(self.conv2(out))
        out = self.bn3(self.conv3(out))
        return torch.cat([kept, out], dim=1)


class DownBlock(nn.Module):
    """ShuffleNetV2's block of stride 2: two convolved branches; returns both before ReLU and shuffle.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output; even.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        half = out_channels // 2
        self.conv1 = _depthwise(in_channels, stride=2)
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv2 = _pointwise(in_channels, half)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = _pointwise(in_channels, half)
        self.bn3 = nn.BatchNorm2d(half)
        self.conv4 = _depthwise(half, stride=2)
        self.bn4 = nn.BatchNorm2d(half)
        self.conv5 = _pointwise(half, half)
        self.bn5 = nn.BatchNorm2d(half)

    def forward(self, x: Tensor) -> Tensor:
        left = self.bn2(self.conv2(self.bn1(self.conv1(x))))
        right = F.relu(self.bn3(self.conv3(x)))
        right = self.bn5(self.conv5(self.bn4(self.conv4(right))))
        return torch.cat([left, right], dim=1)


class ShuffleNetV2(LayeredNet):
    """ShuffleNetV2 with width factor 1.

    `feats[i]` is `preact_feats[i]` after ReLU and a channel shuffle. As in the hosts, the channels of `preact_feats`
    are in the order before the shuffle.

    Args:
        num_classes: Logits per image.
        in_channels: Channels of the images.
    """

    head_name: ClassVar[str] = "linear"

    def __init__(self, num_classes: int, in_channels: int = 3) -> None:
        stages = []
        for i, count in enumerate(_V2_BLOCKS):
            before, after = _V2_CHANNELS[i : i + 2]
            stages.append(ShuffleStage(DownBlock(before, after), *(SplitBlock(after) for _ in range(count - 1))))
        super().__init__(_pointwise(in_channels, _STEM_WIDTH), stages, _V2_CHANNELS)
        self.conv2 = _pointwise(_V2_CHANNELS[-1], _V2_LAST_WIDTH)
        self.bn2 = nn.BatchNorm2d(_V2_LAST_WIDTH)
        self.linear = nn.Linear(_V2_LAST_WIDTH, num_classes)

    def extract(self, images: Tensor) -> tuple[list[Tensor], list[Tensor], Tensor]:
        feats, preacts, last_map = super().extract(images)
        return feats, preacts, F.relu(self.bn2(self.conv2(last_map)))

    def modules_after(self, stage: int) -> list[nn.Module]:
        return [*super().modules_after(stage), self.conv2, self.bn2, nn.ReLU()]

    def get_bn_before_relu(self) -> list[nn.BatchNorm2d]:
        raise ConfigError(
            "Expected a model whose stages each end in one BatchNorm (needed by OFD of its teacher), but got "
            "ShuffleV2, whose stages pass half of their channels through"
        )


MODELS.register("ShuffleV1")(ShuffleNetV1)
MODELS.register("ShuffleV2")(ShuffleNetV2)
