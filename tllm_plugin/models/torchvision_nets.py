"""torchvision's ResNets and MobileNetV2 for photographs, with the features that distillers need.

Parameters have torchvision's names, so that torchvision's weights can be loaded. `feats` and `preact_feats` are related
as in the CIFAR families of the same names.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from tllm_plugin.core.errors import ConfigError
from tllm_plugin.models.features import FeatureNet
from tllm_plugin.models.registry import MODELS

# Modules in MobileNetV2's `features` whose outputs are features, as in the CIFAR model of this name.
_MOBILENET_ENDS = (0, 3, 6, 13, 17)


class TorchvisionNet(FeatureNet):
    """Network made of the modules of one of torchvision's networks.

    Args:
        num_classes: Number of logits per image.
        in_channels: Channels of the images.
        build: Function of torchvision that builds the network.
        weights: Weights of torchvision that `load_pretrained` loads.
    """

    weights: Any

    def __init__(
        self, num_classes: int, in_channels: int = 3, *, build: Callable[..., nn.Module], weights: Any
    ) -> None:
        super().__init__()
        self.weights = weights
        for name, module in build(num_classes=num_classes).named_children():
            self.add_module(name, module)
        if in_channels != 3:
            replace_stem(self, in_channels)


def replace_stem(network: nn.Module, in_channels: int) -> None:
    """Replace the first convolution of a network by one for images of another number of channels."""
    name, old = next((name, module) for name, module in network.named_modules() if isinstance(module, nn.Conv2d))
    parent, _, leaf = name.rpartition(".")
    sizes: dict[str, Any] = {"kernel_size": old.kernel_size, "stride": old.stride, "padding": old.padding}
    new = nn.Conv2d(in_channels, old.out_channels, bias=old.bias is not None, **sizes)
    setattr(network.get_submodule(parent), leaf, new)


class TorchvisionResNet(TorchvisionNet):
    """ResNet18, ResNet34 or ResNet50; the first entry of `feats` is the output of the stem before its pooling."""

    def __init__(self, num_classes: int, in_channels: int = 3, **options: Any) -> None:
        super().__init__(num_classes, in_channels, **options)
        last = self.fc.in_features  # type: ignore[union-attr]
        self.stage_channels = (64, last // 8, last // 4, last // 2, last)  # type: ignore[operator, assignment]

    @property
    def layers(self) -> list[nn.Sequential]:
        """The four stages."""
        return [self.layer1, self.layer2, self.layer3, self.layer4]  # type: ignore[list-item]

    def extract(self, images: Tensor) -> tuple[list[Tensor], list[Tensor], Tensor]:
        feat = F.relu(self.bn1(self.conv1(images)))  # type: ignore[operator]
        feats, preacts = [feat], [feat]
        feat = self.maxpool(feat)  # type: ignore[operator]
        for layer in self.layers:
            *blocks, last = layer
            for block in blocks:
                feat = block(feat)
            preact = _before_relu(last, feat)
            feat = F.relu(preact)
            feats.append(feat)
            preacts.append(preact)
        return feats, preacts, feat

    def modules_after(self, stage: int) -> list[nn.Module]:
        return [*([] if stage else [self.maxpool]), *self.layers[stage:]]  # type: ignore[list-item]

    def get_feat_modules(self) -> nn.ModuleList:
        return nn.ModuleList([self.conv1, self.bn1, *self.layers])  # type: ignore[list-item]

    def get_bn_before_relu(self) -> list[nn.BatchNorm2d]:
        lasts: list[Any] = [layer[-1] for layer in self.layers]
        return [last.bn3 if hasattr(last, "bn3") else last.bn2 for last in lasts]


class TorchvisionMobileNetV2(TorchvisionNet):
    """MobileNetV2 at full width; its stages end in a linear projection, so `preact_feats` equal `feats`."""

    head_name: ClassVar[str] = "classifier"
    stage_channels = (32, 24, 32, 96, 320)

    def extract(self, images: Tensor) -> tuple[list[Tensor], list[Tensor], Tensor]:
        feats = []
        feat = images
        for number, block in enumerate(self._blocks):
            feat = block(feat)
            if number in _MOBILENET_ENDS:
                feats.append(feat)
        return feats, list(feats), feat

    @property
    def _blocks(self) -> list[nn.Module]:
        return list(self.features)  # type: ignore[arg-type]

    def modules_after(self, stage: int) -> list[nn.Module]:
        return self._blocks[_MOBILENET_ENDS[stage] + 1 :]

    def get_feat_modules(self) -> nn.ModuleList:
        return nn.ModuleList(self._blocks)

    def get_bn_before_relu(self) -> list[nn.BatchNorm2d]:
        """Return the BatchNorm of the last projection of each stage."""
        return [self._blocks[end].conv[-1] for end in _MOBILENET_ENDS[1:]]  # type: ignore[index, union-attr, misc]


def _before_relu(block: Any, feat: Tensor) -> Tensor:
    """Return the output of a residual block before its last ReLU, which torchvision's blocks do not return."""
    out = F.relu(block.bn1(block.conv1(feat)))
    out = block.bn2(block.conv2(out))
    if hasattr(block, "conv3"):
        out = block.bn3(block.conv3(F.relu(out)))
    shortcut = feat if block.downsample is None else block.downsample(feat)
    total: Tensor = out + shortcut
    return total


def load_pretrained(network: nn.Module) -> None:
    """Load torchvision's ImageNet weights into a network, except into a head for another number of classes.

    torchvision downloads the weights, checks their hash, and keeps them in PyTorch's cache.

    Raises:
        ConfigError: The network is not one of torchvision's, or its stem does not take three channels.
    """
    if not isinstance(network, TorchvisionNet):
        raise ConfigError(
            f"Expected a network with weights of torchvision's (tv_...) to be pretrained, but got a "
            f"{type(network).__name__}"
        )
    state = network.weights.get_state_dict(progress=False, check_hash=True)
    own = network.state_dict()
    misfit = [key for key, value in state.items() if key not in own or own[key].shape != value.shape]
    head = [f"{network.head_name}.weight", f"{network.head_name}.bias", "classifier.1.weight", "classifier.1.bias"]
    if set(misfit) - set(head):
        raise ConfigError(f"Expected weights that fit the network, but these do not: {', '.join(misfit)}")
    network.load_state_dict({**own, **{key: value for key, value in state.items() if key not in misfit}})


_models = torchvision.models
for _name, _class, _weights in (
    ("resnet18", TorchvisionResNet, _models.ResNet18_Weights.IMAGENET1K_V1),
    ("resnet34", TorchvisionResNet, _models.ResNet34_Weights.IMAGENET1K_V1),
    ("resnet50", TorchvisionResNet, _models.ResNet50_Weights.IMAGENET1K_V1),
    ("mobilenet_v2", TorchvisionMobileNetV2, _models.MobileNet_V2_Weights.IMAGENET1K_V1),
):
    MODELS.register(f"tv_{_name}")(partial(_class, build=getattr(_models, _name), weights=_weights))
