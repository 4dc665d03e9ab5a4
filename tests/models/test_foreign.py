"""Networks of timm and torchvision: same weights, same logits, and features that hooks of the test's own see, too."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

from tllm_plugin.core.errors import ConfigError
from tllm_plugin.models import create_model, head, input_config, is_model, model_problem

timm = pytest.importorskip("timm", reason="the optional extra `timm` is not installed")

TIMM = {
    "test_resnet": ["act1", "layer1", "layer2", "layer3", "layer4"],
    "test_efficientnet": ["blocks.0", "blocks.1", "blocks.2", "blocks.3", "blocks.4"],
    "test_convnext": ["stages.0", "stages.1", "stages.2", "stages.3"],
    "test_mambaout": ["stages.0", "stages.1", "stages.2", "stages.3"],
    "test_vit": [],
}
TORCHVISION = {
    "resnet18": ["relu", "layer1", "layer2", "layer3", "layer4"],
    "mobilenet_v3_small": ["features.0", "features.1", "features.3", "features.8", "features.12"],
}


def images(side: int = 160, channels: int = 3) -> Tensor:
    return torch.randn(2, channels, side, side, generator=torch.Generator().manual_seed(0))


def plain(name: str, num_classes: int = 7) -> nn.Module:
    library, _, bare = name.partition(":")
    if library == "timm":
        made: nn.Module = timm.create_model(bare, num_classes=num_classes)
        return made
    made = torchvision.models.get_model(bare, num_classes=num_classes)
    return made


@pytest.mark.parametrize(
    ("name", "stages"),
    [*((f"timm:{k}", v) for k, v in TIMM.items()), *((f"torchvision:{k}", v) for k, v in TORCHVISION.items())],
)
def test_logits_weights_and_features_are_the_librarys(name: str, stages: list[str]) -> None:
    torch.manual_seed(0)
    ours, theirs = create_model(name, num_classes=7), plain(name)
    ours.load_state_dict(theirs.state_dict())
    seen: dict[str, Tensor] = {}

    def keep(module: nn.Module, inputs: Any, output: Tensor) -> None:
        seen[next(key for key, value in theirs.named_modules() if value is module)] = output

    for stage in stages:
        theirs.get_submodule(stage).register_forward_hook(keep)
    # In training mode, too: dropout and stochastic depth draw the same numbers.
    for mode in (True, False):
        ours.train(mode), theirs.train(mode)
        torch.manual_seed(1)
        expected = theirs(images())
        torch.manual_seed(1)
        logits, features = ours(images())
        assert torch.equal(logits, expected)
        if stages:
            assert len(features["feats"]) == len(stages)
            for found, stage in zip(features["feats"], stages, strict=True):
                wanted = seen[stage]
                moved = wanted.permute(0, 3, 1, 2) if found.shape != wanted.shape else wanted
                assert torch.equal(found, moved) and found.shape[-1] == found.shape[-2]
        torch.testing.assert_close(head(ours)(features["pooled_feat"]), logits)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    copy = deepcopy(ours)
    assert torch.equal(copy(images())[0], ours(images())[0])
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in ours.modules())


def test_a_network_without_maps_says_so() -> None:
    _, features = create_model("timm:test_vit", num_classes=3)(images())
    with pytest.raises(ConfigError, match="a network that returns `feats` for this method, but its library has no"):
        features["feats"]


@pytest.mark.parametrize("name", ["timm:test_resnet", "torchvision:resnet18"])
def test_other_channels_and_classes(name: str) -> None:
    logits, _ = create_model(name, num_classes=4, in_channels=1).eval()(images(64, 1))
    assert logits.shape == (2, 4)


def test_names() -> None:
    assert is_model("timm:resnet18") and is_model("torchvision:resnet18") and not is_model("timm:resnt18")
    assert "similar names: resnet18" in str(model_problem("timm:resnt18"))
    assert "similar names: resnet18" in str(model_problem("torchvision:resnet_18"))
    assert "timm:<name>" in str(model_problem("resnt18"))
    with pytest.raises(ConfigError, match="a network of timm, but got 'resnt18'"):
        create_model("timm:resnt18", num_classes=2)


def test_input_configs_are_the_librarys() -> None:
    found = input_config("timm:test_vit")
    expected = timm.data.resolve_model_data_config(timm.create_model("test_vit"))
    assert found is not None and (found.image_size, found.mean, found.std) == (
        expected["input_size"][1],
        tuple(expected["mean"]),
        tuple(expected["std"]),
    )
    found = input_config("torchvision:efficientnet_b3")
    transforms = torchvision.models.EfficientNet_B3_Weights.IMAGENET1K_V1.transforms()
    assert found is not None and found.image_size == transforms.crop_size[0] and found.mean == tuple(transforms.mean)
    assert input_config("resnet8") is None
