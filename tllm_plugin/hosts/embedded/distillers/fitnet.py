"""FitNet: a regressor on one stage of the student predicts the teacher's features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tllm_plugin.core.errors import ConfigError
from tllm_plugin.core.options import at_least, count_in, option
from tllm_plugin.hosts.embedded.distillers.base import to_smaller_size
from tllm_plugin.methods.base import Distiller, Losses

_LARGEST_PROBE = 1024


def _image_size(value: Sequence[object]) -> str | None:
    fine = len(value) == 2 and all(type(side) is int and 0 < side <= _LARGEST_PROBE for side in value)
    return None if fine else f"two positive whole numbers, at most {_LARGEST_PROBE}"


class FitNet(Distiller):
    """Hints: mean squared error between regressed student features and teacher features of one stage.

    Args:
        student: See `Distiller`.
        teacher: See `Distiller`.
        options: Values of the options below.

    Raises:
        ConfigError: A network has no such stage, or an option is out of range.

    Source: Romero et al., "FitNets: Hints for Thin Deep Nets" (ICLR 2015), equation 3; trained in one stage together
        with the cross-entropy, as both hosts do.

    The regressor is a 1x1 convolution without bias, BatchNorm and ReLU; the larger of two maps is average-pooled to the
    size of the smaller. In the hosts, the convolution has a bias and changes the size of the student's map itself: 3x3
    with stride 2 from twice the size, a transposed 4x4 with stride 2 from half the size, otherwise unpadded with a
    kernel of the difference plus 1; other smaller maps are refused. mdistiller measures the shapes with a random image
    in training mode, which changes the running statistics of BatchNorm in both networks; here they do not change.
    """

    hint_layer: int = option(2, count_in(0), "index of the stage whose features are matched; 0 is the stem")
    input_size: tuple[int, int] = option(
        (32, 32), _image_size, "height and width of the image that measures the shapes"
    )
    ce_weight: float = option(1.0, at_least(0), "weight of the cross-entropy with the labels", "LOSS.CE_WEIGHT")
    feature_weight: float = option(100.0, at_least(0), "weight of the hint loss", "LOSS.FEAT_WEIGHT")

    def __init__(self, student: nn.Module, teacher: nn.Module, **options: Any) -> None:
        super().__init__(student, teacher, **options)
        channels = [_feature_channels(network, self.hint_layer, self.input_size) for network in (student, teacher)]
        self.regressor = nn.Sequential(
            nn.Conv2d(channels[0], channels[1], kernel_size=1, bias=False), nn.BatchNorm2d(channels[1]), nn.ReLU()
        )

    def get_learnable_parameters(self) -> list[nn.Parameter]:
        return super().get_learnable_parameters() + list(self.regressor.parameters())

    def losses(self, image: Tensor, target: Tensor, **batch: Any) -> tuple[Tensor, Losses]:
        logits, features = self.student(image)
        with torch.no_grad():
            _, teacher_features = self.teacher(image)
        hint = self.regressor(features["feats"][self.hint_layer])
        goal = teacher_features["feats"][self.hint_layer]
        hint, goal = to_smaller_size(hint, goal)
        return logits, {
            "loss_ce": self.ce_weight * F.cross_entropy(logits, target),
            "loss_kd": self.feature_weight * F.mse_loss(hint, goal),
        }


@torch.no_grad()
def _feature_channels(network: nn.Module, layer: int, input_size: tuple[int, int]) -> int:
    first = next(parameter for parameter in network.parameters() if parameter.dim() == 4)
    was_training = network.training
    # The measurement uses evaluation mode, which leaves BatchNorm statistics unchanged (the hosts' does not).
    try:
        _, features = network.eval()(first.new_zeros(1, first.shape[1], *input_size))
    except RuntimeError as error:  # The image is too small for the network's strides and kernels.
        raise ConfigError(
            f"Expected `FITNET.INPUT_SIZE` to be a size that {type(network).__name__} accepts, but got {input_size}: "
            f"{str(error).splitlines()[0]}"
        ) from error
    finally:
        network.train(was_training)
    maps = features["feats"]
    if not 0 <= layer < len(maps):
        raise ConfigError(f"Expected `FITNET.HINT_LAYER` to be in [0, {len(maps) - 1}], but got {layer}")
    return int(maps[layer].shape[1])
