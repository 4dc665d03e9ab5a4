"""Post-activation ResNets for small images: a 3x3 stem without pooling; every stage after the first halves the map."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from tllm_plugin.core.errors import ConfigError
from tllm_plugin.models.features import init_convolutions
from tllm_plugin.models.layered import LayeredNet, Stage


def _shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
    """Return a 1x1 projection if the block changes the shape, otherwise the identity (an empty sequence)."""
    if stride == 1 and in_channels == out_channels:
        return nn.Sequential()
    conv = nn.Conv2d(in_channels, out_channels, kernel_size=1, stride=stride, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut; returns the sum before its ReLU.

    Args:
        in_channels: Channels of the input.
        width: Output channels of both convolutions.
        stride: Stride of the first convolution and of the shortcut.
        shortcut_name: Attribute that holds the shortcut; it differs between the two ResNet families of the hosts and
            their checkpoints.
    """

    expansion: ClassVar[int] = 1

    def __init__(self, in_channels: int, width: int, stride: int, shortcut_name: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, kernel_size=3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, kernel_size=3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut_name = shortcut_name
        self.add_module(shortcut_name, _shortcut(in_channels, width, stride))

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        total: Tensor = out + self.get_submodule(self.shortcut_name)(x)
        return total


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions with four times `width` output channels, and a shortcut; arguments as `BasicBlock`.

    `stride` is the stride of the 3x3 convolution.
    """

    expansion: ClassVar[int] = 4

    def __init__(self, in_channels: int, width: int, stride: int, shortcut_name: str) -> None:
        super().__init__()
        out_channels = width * self.expansion
        self.conv1 = nn.Conv2d(in_channels, width, kernel_size=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, kernel_size=3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, out_channels, kernel_size=1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.shortcut_name = shortcut_name
        self.add_module(shortcut_name, _shortcut(in_channels, out_channels, stride))

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        total: Tensor = out + self.get_submodule(self.shortcut_name)(x)
        return total


class ResNet(LayeredNet):
    """ResNet of a given type of block, with a given number and width of blocks per stage.

    Args:
        num_classes: Number of logits per image.
        in_channels: Channels of the images.
        block: `BasicBlock` or `Bottleneck`.
        blocks: Number of blocks of each stage.
        widths: Channels of the stem, then width of the blocks of each stage; one entry more than `blocks`.
        shortcut_name: Attribute of a block that holds its shortcut.

    Raises:
        ConfigError: `widths` has the wrong length, or a stage has no block.

    Source: He et al., "Deep residual learning for image recognition", 2016, section 4.2.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int = 3,
        *,
        block: type[BasicBlock] | type[Bottleneck] = BasicBlock,
        blocks: Sequence[int],
        widths: Sequence[int],
        shortcut_name: str = "downsample",
    ) -> None:
        if len(widths) != len(blocks) + 1:
            raise ConfigError(
                f"Expected `widths` to have an entry for the stem and for each of {len(blocks)} stages, "
                f"but got {len(widths)} entries"
            )
        channels = [widths[0], *(width * block.expansion for width in widths[1:])]
        stages = []
        for i, count in enumerate(blocks):
            inputs = [channels[i] if j == 0 else channels[i + 1] for j in range(count)]
            strides = [2 if i > 0 and j == 0 else 1 for j in range(count)]
            pairs = zip(inputs, strides, strict=True)
            stages.append(Stage(*(block(c, widths[i + 1], stride, shortcut_name) for c, stride in pairs)))
        stem = nn.Conv2d(in_channels, widths[0], kernel_size=3, padding=1, bias=False)
        super().__init__(stem, stages, channels)
        self.add_module(self.head_name, nn.Linear(channels[-1], num_classes))
        init_convolutions(self)
