"""MobileNetV1 for images of ImageNet's size, with the parameter names of mdistiller's model.

Unlike mdistiller's, this model includes the stem in `feats`, as all models of this package do.

Source: Howard et al., "MobileNets", 2017, table 1.
"""

from __future__ import annotations

from itertools import pairwise
from typing import cast

from torch import Tensor, nn
from torch.nn import functional as F

from tllm_plugin.models.features import FeatureNet, conv_norm_relu, last_norm
from tllm_plugin.models.registry import MODELS

# Output channels of the stem and of each separable convolution, and the strides of the separable convolutions.
_CHANNELS = (32, 64, 128, 128, 256, 256, 512, 512, 512, 512, 512, 512, 1024, 1024)
_STRIDES = (1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1)
# Blocks whose outputs are features.
_ENDS = (0, 3, 5, 11, 13)


class MobileNetV1(FeatureNet):
    """MobileNetV1: a stem and thirteen depthwise separable convolutions.

    Args:
        num_classes: Number of logits per image.
        in_channels: Channels of the images, which must be at least 32 pixels high and wide.
    """

    def __init__(self, num_classes: int, in_channels: int = 3) -> None:
        super().__init__()
        blocks = [nn.Sequential(*conv_norm_relu(in_channels, _CHANNELS[0], 3, 2, 1))]
        for (before, after), stride in zip(pairwise(_CHANNELS), _STRIDES, strict=True):
            depthwise = conv_norm_relu(before, before, 3, stride, before)
            blocks.append(nn.Sequential(*depthwise, *conv_norm_relu(before, after, 1, 1, 1)))
        self.model = nn.Sequential(*blocks)
        self.fc = nn.Linear(_CHANNELS[-1], num_classes)
        self.stage_channels = tuple(_CHANNELS[end] for end in _ENDS)

    def extract(self, images: Tensor) -> tuple[list[Tensor], list[Tensor], Tensor]:
        feats: list[Tensor] = []
        preacts: list[Tensor] = []
        feat = images
        for number, block in enumerate(self.model):
            # The last ReLU is applied in `extract`.
            preact = cast(nn.Sequential, block)[:-1](feat)
            feat = F.relu(preact)
            if number in _ENDS:
                feats.append(feat)
                preacts.append(preact if number else feat)
        return feats, preacts, feat

    def modules_after(self, stage: int) -> list[nn.Module]:
        return list(self.model[_ENDS[stage] + 1 :])

    def get_feat_modules(self) -> nn.ModuleList:
        return nn.ModuleList(self.model)

    def get_bn_before_relu(self) -> list[nn.BatchNorm2d]:
        return [last_norm(self.model[end]) for end in _ENDS[1:]]


MODELS.register("MobileNetV1")(MobileNetV1)
