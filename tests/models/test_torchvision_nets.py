"""torchvision's networks with features: the same predictions, its weights, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torchvision
from torch import nn

from tllm_plugin.core.errors import ConfigError
from tllm_plugin.models import create_model, head_name, load_pretrained

NAMES = ("resnet18", "resnet34", "resnet50", "mobilenet_v2")


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_predicts_as_torchvisions_own(name: str) -> None:
    torch.manual_seed(0)
    theirs = getattr(torchvision.models, name)(num_classes=6).eval()
    ours = create_model(f"tv_{name}", 6).eval()
    ours.load_state_dict(theirs.state_dict())
    image = torch.randn(2, 3, 64, 64)
    logits, features = ours(image)
    torch.testing.assert_close(logits, theirs(image))
    assert head_name(ours) == ("classifier.1" if name == "mobilenet_v2" else "fc")
    shapes = [tuple(feat.shape[1:3]) for feat in features["feats"]]
    channels = ours.get_stage_channels()  # type: ignore[operator]
    assert shapes == list(zip(channels, [32, 16, 8, 4, 2], strict=True))
    assert [norm.num_features for norm in ours.get_bn_before_relu()] == channels[1:]  # type: ignore[operator]


class Weights:
    """Stands in for torchvision's; nothing is downloaded."""

    def __init__(self, state: dict[str, Any]) -> None:
        self.state = state

    def get_state_dict(self, *, progress: bool, check_hash: bool) -> dict[str, Any]:
        assert check_hash and not progress
        return self.state


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
def test_pretrained_weights_go_everywhere_but_into_the_head(name: str) -> None:
    theirs = getattr(torchvision.models, name)(num_classes=1000).state_dict()
    for num_classes in (6, 1000):
        ours: Any = create_model(f"tv_{name}", num_classes)
        before = {key: value.clone() for key, value in ours.state_dict().items()}
        ours.weights = Weights(theirs)
        load_pretrained(ours)
        for key, value in ours.state_dict().items():
            kept = num_classes == 6 and key.rpartition(".")[0] == head_name(ours)
            assert torch.equal(value, before[key] if kept else theirs[key]), key


def test_what_cannot_be_pretrained() -> None:
    with pytest.raises(ConfigError, match=r"weights of torchvision's \(tv_...\) to be pretrained, but got a ResNet"):
        load_pretrained(create_model("resnet8", 6))
    ours: Any = create_model("tv_resnet18", 6, in_channels=1)
    ours.weights = Weights(torchvision.models.resnet18().state_dict())
    with pytest.raises(ConfigError, match="but these do not: conv1.weight"):
        load_pretrained(ours)
    assert isinstance(ours.conv1, nn.Conv2d) and ours.conv1.in_channels == 1
