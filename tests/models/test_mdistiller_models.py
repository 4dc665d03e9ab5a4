"""Our models against mdistiller's own: names and shapes of all parameters, and outputs for the same weights.

Needs a checkout of mdistiller, which is not on PyPI: TLLM_MDISTILLER_ROOT=PATH pytest tests/models
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from tllm_plugin.models import create_model

ROOT = os.environ.get("TLLM_MDISTILLER_ROOT", "")
pytestmark = pytest.mark.skipif(not ROOT, reason="TLLM_MDISTILLER_ROOT does not name a checkout of mdistiller")

NAMES = [
    *("resnet8", "resnet14", "resnet20", "resnet32", "resnet44", "resnet56", "resnet110", "resnet8x4", "resnet32x4"),
    *("vgg8", "vgg11", "vgg13", "vgg16", "vgg19"),
    *("wrn_16_1", "wrn_16_2", "wrn_40_1", "wrn_40_2", "wrn_28_4"),
    *("MobileNetV2", "ShuffleV1", "ShuffleV2", "ResNet18", "ResNet50"),
]


@pytest.fixture(scope="module")
def host_model() -> Iterator[Callable[[str], nn.Module]]:
    """Builds a host model by name. The subpackage is loaded on its own: the host's package imports its trainers too."""
    package = "mdistiller_cifar_models"
    folder = Path(ROOT, "mdistiller", "models", "cifar")
    spec = importlib.util.spec_from_file_location(
        package, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None and spec.loader is not None, folder
    module = importlib.util.module_from_spec(spec)
    sys.modules[package] = module
    spec.loader.exec_module(module)

    def build(name: str) -> nn.Module:
        torch.manual_seed(0)
        if name == "wrn_28_4":
            return module.wrn.WideResNet(depth=28, widen_factor=4, num_classes=100)
        return module.cifar_model_dict[name][0](num_classes=100)

    yield build
    for key in [key for key in sys.modules if key == package or key.startswith(f"{package}.")]:
        del sys.modules[key]


def assert_same_scale(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    """Equal up to rounding in a sum: untrained networks without BatchNorm statistics reach values of 1e8."""
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-6 * theirs.abs().max().item())


@pytest.mark.parametrize("name", NAMES)
def test_state_dict_has_the_hosts_names_and_shapes_in_its_order(name: str, host_model) -> None:
    with torch.device("meta"):
        ours, theirs = create_model(name, 100), host_model(name)
    # The order matters to optimizer states, which know parameters by position only.
    assert [key for key, _ in ours.named_parameters()] == [key for key, _ in theirs.named_parameters()]
    shapes = [{key: tuple(value.shape) for key, value in net.state_dict().items()} for net in (ours, theirs)]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("name", NAMES)
def test_outputs_equal_the_hosts_for_the_same_weights(name: str, training: bool, host_model) -> None:
    ours, theirs = create_model(name, 100).train(training), host_model(name).train(training)
    ours.load_state_dict(theirs.state_dict())
    batch = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        logits, features = ours(batch)
        host_logits, host_features = theirs(batch)
    assert_same_scale(logits, host_logits)
    assert_same_scale(features["pooled_feat"], host_features["pooled_feat"])
    # The host's MobileNetV2 has no preact_feats, and none of its networks shows the map that its head pools.
    ours_alone = {"pooled_map"} | ({"preact_feats"} if name == "MobileNetV2" else set())
    assert set(host_features) == set(features) - ours_alone
    for key in set(host_features) - {"pooled_feat"}:
        assert len(features[key]) == len(host_features[key])
        for feat, host_feat in zip(features[key], host_features[key], strict=True):
            assert_same_scale(feat, host_feat)


@pytest.mark.parametrize("name", ["MobileNetV2", "resnet20", "vgg16", "wrn_16_2"])
def test_a_checkpoint_of_ours_loads_into_the_host(name: str, host_model) -> None:
    theirs = host_model(name)
    theirs.load_state_dict(create_model(name, 100).state_dict())


@pytest.mark.parametrize("name", ["resnet20", "resnet32x4", "vgg13", "wrn_40_2", "MobileNetV2", "ResNet50"])
def test_batch_norms_before_relu_are_the_hosts(name: str, host_model) -> None:
    def paths(model: nn.Module) -> list[str]:
        by_id = {id(module): path for path, module in model.named_modules()}
        return [by_id[id(norm)] for norm in model.get_bn_before_relu()]  # type: ignore[operator]

    with torch.device("meta"):
        assert paths(create_model(name, 100)) == paths(host_model(name))


@pytest.mark.parametrize("name", ["resnet20", "vgg13", "wrn_40_2", "MobileNetV2", "ShuffleV2"])
def test_stage_channels_are_the_hosts(name: str, host_model) -> None:
    # Not compared: ShuffleV1, which has none there, and ResNet18/50, whose list there lacks the stem.
    with torch.device("meta"):
        ours, theirs = create_model(name, 100), host_model(name)
    assert ours.get_stage_channels() == list(theirs.get_stage_channels())  # type: ignore[operator]
