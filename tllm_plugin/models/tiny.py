"""Teacher and student for scikit-learn's 8x8 digits that train in seconds on a CPU.

Both have a stem at full resolution and two stages that each halve the map (8, 4 and 2 pixels for digits), so that
methods that compare maps, such as AT and FitNet, need no resizing.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from torch import nn

from tllm_plugin.models.features import init_convolutions
from tllm_plugin.models.layered import LayeredNet, Stage
from tllm_plugin.models.registry import MODELS


def _conv_norm(in_channels: int, out_channels: int, stride: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(in_channels, out_channels, kernel_size=3, stride=stride, padding=1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels))


class TinyConvNet(LayeredNet):
    """Plain 3x3 convolutions with BatchNorm and ReLU.

    Args:
        num_classes: Number of logits per image.
        in_channels: Channels of the images; 1 for digits.
        widths: Output channels of the stem and of each stage.
        depth: Number of convolutions per stage.
    """

    def __init__(self, num_classes: int, in_channels: int = 3, *, widths: Sequence[int], depth: int) -> None:
        stages = [
            Stage(_conv_norm(before, width, stride=2), *(_conv_norm(width, width) for _ in range(depth - 1)))
            for before, width in zip(widths[:-1], widths[1:], strict=True)
        ]
        stem = nn.Conv2d(in_channels, widths[0], kernel_size=3, padding=1, bias=False)
        super().__init__(stem, stages, widths)
        self.fc = nn.Linear(widths[-1], num_classes)
        init_convolutions(self)


MODELS.register("digits_teacher")(partial(TinyConvNet, widths=(12, 24, 48), depth=2))
MODELS.register("digits_student")(partial(TinyConvNet, widths=(4, 8, 12), depth=1))
