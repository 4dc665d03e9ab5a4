"""ResNet18 and ResNet50: the four-stage ImageNet architectures with a stem for small images."""

from __future__ import annotations

from functools import partial
from typing import ClassVar

from tllm_plugin.models.registry import MODELS
from tllm_plugin.models.residual import BasicBlock, Bottleneck, ResNet


class FourStageResNet(ResNet):
    """`ResNet` whose head and shortcuts are named as in the hosts' `resnetv2`."""

    head_name: ClassVar[str] = "linear"


_four_stage = partial(FourStageResNet, widths=(64, 64, 128, 256, 512), shortcut_name="shortcut")

MODELS.register("ResNet18")(partial(_four_stage, block=BasicBlock, blocks=(2, 2, 2, 2)))
MODELS.register("ResNet50")(partial(_four_stage, block=Bottleneck, blocks=(3, 4, 6, 3)))
