"""Networks of a stem and stages `layer1`, `layer2`, ..., in which every block ends in an activation."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from tllm_plugin.core.errors import ConfigError
from tllm_plugin.models.features import FeatureNet, last_norm


class Stage(nn.Sequential):
    """Sequence of blocks that return their output before its activation; the stage applies the activation.

    Raises:
        ConfigError: There is no block.
    """

    def __init__(self, *blocks: nn.Module) -> None:
        if not blocks:
            raise ConfigError("Expected `blocks` to be at least one per stage, but got 0")
        super().__init__(*blocks)

    def activate(self, preact: Tensor) -> Tensor:
        """Apply the activation to the output of a block."""
        return F.relu(preact)

    def forward(self, feat: Tensor) -> tuple[Tensor, Tensor]:
        """Return the last block's output after and before its activation."""
        preact = feat
        for block in self:
            preact = block(feat)
            feat = self.activate(preact)
        return feat, preact


class LayeredNet(FeatureNet):
    """Stem of `conv1`, `bn1` and ReLU, followed by stages; a subclass adds the head and the layers before it.

    Args:
        stem: Convolution of the stem.
        stages: Stages in order; registered as `layer1`, `layer2`, ...
        stage_channels: Output channels of the stem and of each stage.
    """

    def __init__(self, stem: nn.Conv2d, stages: Sequence[Stage], stage_channels: Sequence[int]) -> None:
        super().__init__()
        self.conv1 = stem
        self.bn1 = nn.BatchNorm2d(stem.out_channels)
        for number, stage in enumerate(stages, start=1):
            self.add_module(f"layer{number}", stage)
        self.stage_channels = tuple(stage_channels)

    @property
    def stages(self) -> list[Stage]:
        """The stages, in order."""
        return [child for child in self.children() if isinstance(child, Stage)]

    def extract(self, images: Tensor) -> tuple[list[Tensor], list[Tensor], Tensor]:
        feat = F.relu(self.bn1(self.conv1(images)))
        feats, preacts = [feat], [feat]
        for stage in self.stages:
            feat, preact = stage(feat)
            feats.append(feat)
            preacts.append(preact)
        return feats, preacts, feat

    def modules_after(self, stage: int) -> list[nn.Module]:
        return list(self.stages[stage:])

    def get_feat_modules(self) -> nn.ModuleList:
        return nn.ModuleList([self.conv1, self.bn1, *self.stages])

    def get_bn_before_relu(self) -> list[nn.BatchNorm2d]:
        return [last_norm(stage[-1]) for stage in self.stages]
