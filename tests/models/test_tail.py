"""The end of a network as a module: the same logits from a stage's map as from the image."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tllm_plugin.core.errors import ConfigError
from tllm_plugin.models import FeatureNet, Tail, create_model, head, head_name, map_shapes
from tllm_plugin.models.features import HEAD_NAMES

NAMES = [
    "resnet8",
    "ResNet18",
    "wrn_10_1",
    "vgg8",
    "MobileNetV1",
    "MobileNetV2",
    "ShuffleV1",
    "ShuffleV2",
    "digits_student",
    "tv_resnet18",
    "tv_mobilenet_v2",
]


def build(name: str) -> FeatureNet:
    torch.manual_seed(0)
    model = create_model(name, num_classes=5)
    assert isinstance(model, FeatureNet)
    return model.eval()


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_tail_continues_from_every_stage(name: str) -> None:
    image = torch.randn(2, 3, 32, 32)
    logits, features = build(name)(image)
    last = len(features["feats"]) - 1
    for stages in range(last):
        tail = Tail(build(name), stages).eval()
        torch.testing.assert_close(tail(features["feats"][last - stages]), logits)


@pytest.mark.parametrize("pixels", [32, 60, 64, 96])
@torch.no_grad()
def test_tail_of_a_vgg_pools_where_the_network_does(pixels: int) -> None:
    logits, features = build("vgg8")(torch.randn(1, 3, pixels, pixels))
    torch.testing.assert_close(Tail(build("vgg8"), 2).eval()(features["feats"][2]), logits)


@pytest.mark.parametrize("stages", [-1, 3, 7])
def test_tail_is_never_the_whole_network(stages: int) -> None:
    with pytest.raises(ConfigError, match=rf"`stages` to be in \[0, 2\], but got {stages}"):
        Tail(build("resnet8"), stages)


def test_map_shapes_moves_nothing() -> None:
    model = build("resnet8").train()
    model.bn1.eval()  # type: ignore[operator,union-attr]
    before = {key: value.clone() for key, value in model.state_dict().items()}
    assert map_shapes(model, 16) == [(16, 16), (16, 16), (32, 8), (64, 4)]
    assert model.training and not model.bn1.training  # type: ignore[union-attr]
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


class Around(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network


@pytest.mark.parametrize(
    ("name", "expected"),
    [("resnet8", "fc"), ("ResNet18", "linear"), ("vgg8", "classifier"), ("MobileNetV2", "classifier.0")],
)
def test_head_has_a_name_in_every_family(name: str, expected: str) -> None:
    model = build(name)
    assert expected.split(".")[0] in HEAD_NAMES
    assert head_name(model) == expected
    assert model.get_submodule(expected) is head(model)
    assert head_name(Around(model)) == f"network.{expected}"
