"""Cut off the end of a network as a module of its own, and measure the shapes of feature maps."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tllm_plugin.core.errors import ConfigError
from tllm_plugin.models.features import FeatureNet, head


class Tail(nn.Module):
    """Last stages, pooling and head of a network; the modules are shared with the network, not copied.

    Args:
        network: Network to take the modules from; it should be discarded afterwards.
        stages: Number of its last stages to keep, at least 0 and fewer than all.

    Raises:
        ConfigError: The network has too few stages.
    """

    def __init__(self, network: FeatureNet, stages: int) -> None:
        super().__init__()
        last = len(network.stage_channels) - 1
        if not 0 <= stages < last:
            raise ConfigError(f"Expected `stages` to be in [0, {last - 1}], but got {stages}")
        self.parts = nn.ModuleList(network.modules_after(last - stages))
        self.head = head(network)

    def forward(self, feat: Tensor) -> Tensor:
        """Return logits (n, C) for the output (n, channels, H, W) of the preceding stage."""
        for part in self.parts:
            result = part(feat)
            feat = result if isinstance(result, Tensor) else result[0]
        logits: Tensor = self.head(F.adaptive_avg_pool2d(feat, 1).flatten(1))
        return logits


@torch.no_grad()
def map_shapes(network: nn.Module, image_size: int) -> list[tuple[int, int]]:
    """Return (channels, height) of every map in `feats`.

    One black image is passed through the network in evaluation mode, so that BatchNorm statistics do not change.

    Args:
        network: Module that maps images to (logits, features), with square kernels and strides.
        image_size: Height and width of the image.

    Raises:
        RuntimeError: The network does not accept images of this size (raised by PyTorch).
    """
    first = next(parameter for parameter in network.parameters() if parameter.dim() == 4)
    modes = {module: module.training for module in network.modules()}
    try:
        _, features = network.eval()(first.new_zeros(1, first.shape[1], image_size, image_size))
    finally:
        for module, mode in modes.items():
            module.training = mode
    return [(int(feat.shape[1]), int(feat.shape[2])) for feat in features["feats"]]
