"""Contract that all models share: what a model returns, and which methods distillers call.

`feats` and `preact_feats` have one entry for the stem and one for each stage. They equal those of the hosts' models
for the same weights, which fixes three details:

- `preact_feats[0]` is the stem's output after its activation, as `feats[0]` is;
- for post-activation families (ResNet, VGG, ShuffleNetV1) `feats[i] == relu(preact_feats[i])`;
- for the other families, their docstring states how the two are related.

Source: mdistiller, `mdistiller/models/cifar` at commit a08d46f.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, TypedDict

from torch import Tensor, nn
from torch.nn import functional as F

from tllm_plugin.core.errors import ConfigError

HEAD_NAMES = ("fc", "linear", "classifier")


class Features(TypedDict):
    """The second value that a model returns.

    feats: outputs of stem and stages, each (N, C_i, H_i, W_i).
    preact_feats: the same before the last activation.
    pooled_map: (N, D, H, W), the map that is pooled for the head: the last entry of `feats`, or the output of further
    layers on it.
    pooled_feat: (N, D), mean of `pooled_map` over its pixels; the input of the head.
    """

    feats: list[Tensor]
    preact_feats: list[Tensor]
    pooled_map: Tensor
    pooled_feat: Tensor


class FeatureNet(nn.Module, ABC):
    """Base of all families: features, global average pooling, linear head.

    A subclass sets `head_name` (the attribute that holds the head) and `stage_channels` (one entry per entry of
    `feats`), and implements `extract`. Pooling is global, so that one model accepts 8x8 digits and 64x64 photographs.
    """

    head_name: ClassVar[str] = "fc"
    stage_channels: tuple[int, ...]

    @abstractmethod
    def extract(self, images: Tensor) -> tuple[list[Tensor], list[Tensor], Tensor]:
        """Return `feats`, `preact_feats` and the map that is pooled for the head."""

    @abstractmethod
    def modules_after(self, stage: int) -> list[nn.Module]:
        """Return the modules between `feats[stage]` and the map that is pooled for the head, in order.

        If a module returns several tensors, the next module receives the first one.

        Args:
            stage: Index of the entry of `feats`, in [0, number of stages]; 0 is the stem.
        """

    @abstractmethod
    def get_feat_modules(self) -> nn.ModuleList:
        """Return the modules that compute the features, in order, without the head."""

    @abstractmethod
    def get_bn_before_relu(self) -> list[nn.BatchNorm2d]:
        """Return for each stage (not the stem) the BatchNorm that ends its `preact_feats` entry.

        Raises:
            ConfigError: No single BatchNorm covers the stage's channels.
        """

    def get_stage_channels(self) -> list[int]:
        """Return the number of channels of each entry of `feats`."""
        return list(self.stage_channels)

    def forward(self, images: Tensor) -> tuple[Tensor, Features]:
        """Return unnormalised logits (N, num_classes) and the features of `images` (N, in_channels, H, W)."""
        feats, preacts, pooled_map = self.extract(images)
        pooled = F.adaptive_avg_pool2d(pooled_map, 1).flatten(1)
        logits: Tensor = getattr(self, self.head_name)(pooled)
        return logits, Features(feats=feats, preact_feats=preacts, pooled_map=pooled_map, pooled_feat=pooled)


def head_name(model: nn.Module) -> str:
    """Return the name, as in `model.get_submodule(name)`, of the linear layer that turns `pooled_feat` into logits.

    Args:
        model: Any model with a linear layer named `fc`, `linear` or `classifier`, or a `classifier` that is a
            sequence with exactly one linear layer in it; or a module around one such model and nothing else.

    Raises:
        ConfigError: There is no such layer.
    """
    inner, prefix = model, ""
    while True:
        # Networks of timm and torchvision know theirs.
        if known := getattr(inner, "classifier_name", ""):
            return f"{prefix}{known}"
        for name in HEAD_NAMES:
            module = getattr(inner, name, None)
            if isinstance(module, nn.Linear):
                return prefix + name
            if isinstance(module, nn.Sequential):
                layers = [key for key, layer in module.named_children() if isinstance(layer, nn.Linear)]
                if len(layers) == 1:
                    return f"{prefix}{name}.{layers[0]}"
        children = list(inner.named_children())
        if len(children) != 1:
            break
        inner, prefix = children[0][1], f"{prefix}{children[0][0]}."
    raise ConfigError(
        f"Expected `model` to have one linear layer named {', '.join(HEAD_NAMES)} or inside classifier, "
        f"but got {type(model).__name__}"
    )


def head(model: nn.Module) -> nn.Linear:
    """Return the linear layer that `head_name` names.

    Raises:
        ConfigError: There is no such layer.
    """
    layer = model.get_submodule(head_name(model))
    assert isinstance(layer, nn.Linear)
    return layer


def last_norm(module: nn.Module) -> nn.BatchNorm2d:
    """Return the last BatchNorm among the direct children of a block; those of a shortcut are nested deeper."""
    return [child for child in module.children() if isinstance(child, nn.BatchNorm2d)][-1]


def conv_norm_relu(
    in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, groups: int = 1
) -> list[nn.Module]:
    """Return a padded convolution without bias, BatchNorm and ReLU."""
    padding = kernel_size // 2
    conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(out_channels), nn.ReLU()]


def init_convolutions(model: nn.Module) -> None:
    """Draw convolution weights from a normal distribution of variance 2 / fan-out; biases become 0.

    Source: He et al., "Delving deep into rectifiers", 2015, eq. 14; the initialisation of the hosts' ResNets, WRNs,
    VGGs and MobileNets.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
