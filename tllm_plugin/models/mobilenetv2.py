"""MobileNetV2 for small images, with half the channels, as in the hosts.

Blocks end in a linear projection without an activation, so `preact_feats` (which the hosts' model lacks) equal `feats`.

Source: Sandler et al., "MobileNetV2", 2018, table 2; strides as in the hosts.
"""

from __future__ import annotations

from functools import partial
from typing import ClassVar, cast

from torch import Tensor, nn

from tllm_plugin.models.features import FeatureNet, conv_norm_relu, init_convolutions, last_norm
from tllm_plugin.models.registry import MODELS

# Expansion, output channels at full width, number of blocks, stride of the first block.
_GROUPS = ((1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
# Groups whose outputs are features; each stage ends with one of them.
_STAGE_ENDS = (1, 2, 4, 6)
_STEM_WIDTH = 32
_LAST_WIDTH = 1280


class InvertedResidual(nn.Module):
    """Expanding 1x1, depthwise 3x3 and projecting 1x1 convolution, with a shortcut if the shape is unchanged.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        stride: Stride of the depthwise convolution.
        expansion: Number of hidden channels per input channel.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = in_channels * expansion
        self.conv = nn.Sequential(
            *conv_norm_relu(in_channels, hidden, 1),
            *conv_norm_relu(hidden, hidden, 3, stride, groups=hidden),
            *conv_norm_relu(hidden, out_channels, 1)[:-1],
        )
        self.has_shortcut = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(x)
        return x + out if self.has_shortcut else out


class MobileNetV2(FeatureNet):
    """MobileNetV2 with channels scaled by `width`; if `width` < 1, the last 1x1 convolution keeps its 1280 channels.

    Args:
        num_classes: Number of logits per image.
        in_channels: Channels of the images.
        width: Factor for the number of channels, above 0.
    """

    head_name: ClassVar[str] = "classifier"

    def __init__(self, num_classes: int, in_channels: int = 3, *, width: float) -> None:
        super().__init__()
        channels = int(_STEM_WIDTH * width)
        self.stage_channels = (channels, *(int(_GROUPS[end][1] * width) for end in _STAGE_ENDS))
        self.conv1 = nn.Sequential(*conv_norm_relu(in_channels, channels, 3, stride=2))
        self.blocks = nn.ModuleList()
        for expansion, full_width, count, stride in _GROUPS:
            out_channels = int(full_width * width)
            shapes = [(channels, stride)] + [(out_channels, 1)] * (count - 1)
            self.blocks.append(nn.Sequential(*(InvertedResidual(c, out_channels, s, expansion) for c, s in shapes)))
            channels = out_channels
        last_width = int(_LAST_WIDTH * max(width, 1.0))
        self.conv2 = nn.Sequential(*conv_norm_relu(channels, last_width, 1))
        # A sequence of one layer, because the head is "classifier.0" in the hosts' checkpoints.
        linear = nn.Linear(last_width, num_classes)
        self.classifier = nn.Sequential(linear)
        init_convolutions(self)
        nn.init.normal_(linear.weight, std=0.01)
        nn.init.zeros_(linear.bias)

    def extract(self, images: Tensor) -> tuple[list[Tensor], list[Tensor], Tensor]:
        feat = self.conv1(images)
        feats = [feat]
        for number, group in enumerate(self.blocks):
            feat = group(feat)
            if number in _STAGE_ENDS:
                feats.append(feat)
        return feats, list(feats), self.conv2(feat)

    def modules_after(self, stage: int) -> list[nn.Module]:
        begin = _STAGE_ENDS[stage - 1] + 1 if stage else 0
        return [*self.blocks[begin:], self.conv2]

    def get_feat_modules(self) -> nn.ModuleList:
        return nn.ModuleList([self.conv1, self.blocks])

    def get_bn_before_relu(self) -> list[nn.BatchNorm2d]:
        """Return the BatchNorm of the last projection of each stage."""
        groups = [cast(nn.Sequential, self.blocks[end]) for end in _STAGE_ENDS]
        return [last_norm(cast(InvertedResidual, group[-1]).conv) for group in groups]


MODELS.register("MobileNetV2")(partial(MobileNetV2, width=0.5))
