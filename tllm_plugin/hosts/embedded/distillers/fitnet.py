"""FitNet: a regressor on one of the student's stages predicts the teacher's features there."""

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
        ConfigError: One of the networks has no such layer, or an option is out of range.

    Source: Romero et al., "FitNets: Hints for Thin Deep Nets" (ICLR 2015), equation 3; trained in one stage together
        with the cross-entropy, as both hosts do.

    The regressor is a 1x1 convolution without bias, BatchNorm and ReLU, and of maps of different size the larger one
    is average-pooled to the smaller one. The hosts' convolution has a bias and, where sizes differ, brings the
    student's map to the teacher's size itself: 3x3 with stride 2 from twice that size, a transposed 4x4 with stride 2
    from half of it, otherwise an unpadded one as large as the difference plus 1; other smaller maps they refuse.
    mdistiller finds the maps' shapes with a random image in training mode, which moves the running statistics of
    BatchNorm in the student and in the trained teacher by a tenth towards that image's; here nothing moves.
    """

    hint_layer: int = option(2, count_in(0), "index of the stage whose features are matched; 0 is the stem")
    input_size: tuple[int, int] = option((32, 32), _image_size, "height and width of images to find the layers with")
    ce_weight: float = option(1.0, at_least(0), "weight of the cross-entropy with the labels", "LOSS.CE_WEIGHT")
    feature_weight: float = option(100.0, at_least(0), "weight of the hint", "LOSS.FEAT_WEIGHT")

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
    # In evaluation mode, so that the probe moves no BatchNorm statistics (the hosts' probe does).
    try:
        _, features = network.eval()(first.new_zeros(1, first.shape[1], *input_size))
    except RuntimeError as error:  # Too small for the network's strides and kernels.
        raise ConfigError(
            f"Expected `FITNET.INPUT_SIZE` to be a size that {type(network).__name__} takes, but got {input_size}: "
            f"{str(error).splitlines()[0]}"
        ) from error
    finally:
        network.train(was_training)
    maps = features["feats"]
    if not 0 <= layer < len(maps):
        raise ConfigError(f"Expected `FITNET.HINT_LAYER` to be in [0, {len(maps) - 1}], but got {layer}")
    return int(maps[layer].shape[1])
