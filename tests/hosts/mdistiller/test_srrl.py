"""SRRL on the host's networks: it reaches all of the student but its head, and moves nothing while it is built."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests import distiller_cases
from tllm_plugin.models import create_model, head_name

#: Where the features hold the map that the head pools: for the others the pooled features are taken as a map.
MAPS = {
    **{name: "feats" for name in ("resnet8", "resnet8x4", "resnet56", "ResNet18", "ResNet50", "vgg8", "vgg13")},
    **{"ShuffleV1": "feats", "wrn_16_1": "preact_feats", "wrn_16_2": "preact_feats", "wrn_40_2": "preact_feats"},
    **{"MobileNetV2": "pooled_map", "ShuffleV2": "pooled_map"},
    # Ours.
    **{
        "wrn_28_2": "pooled_map",
        "wrn_40_4": "pooled_map",
        "resnet24_1_1_9": "pooled_map",
        "tv_mobilenet_v2": "pooled_map",
    },
}
CHANNELS = {"MobileNetV2": 1280, "tv_mobilenet_v2": 1280, "ShuffleV2": 1024, "wrn_16_2": 128}


def check(student: nn.Module, teacher: nn.Module, name: str, expected: str, image_size: int) -> None:
    from mdistiller.distillers import distiller_dict
    from mdistiller.engine.cfg import CFG

    before = {key: value.clone() for key, value in [*student.state_dict().items(), *teacher.state_dict().items()]}
    distiller: Any = distiller_dict["SRRL"](student, teacher, CFG)
    after = dict([*student.state_dict().items(), *teacher.state_dict().items()])
    assert all(torch.equal(value, after[key]) for key, value in before.items())
    assert distiller.student_map == expected
    # The host's MobileNetV2 for Tiny ImageNet has a convolution for a head, and a BatchNorm after every bias.
    head = "conv2" if hasattr(student, "pre") else head_name(student)
    assert distiller_cases.unreached(distiller, "loss_kd", image_size) == {f"{head}.weight", f"{head}.bias"}
    channels = student.get_submodule(head).weight.shape[1]
    assert distiller.connector[0].in_channels == channels == CHANNELS.get(name, channels)


@pytest.mark.parametrize("name", MAPS)
def test_every_network_for_small_images(imported: Path, name: str) -> None:
    from mdistiller.models import cifar_model_dict

    torch.manual_seed(0)
    student, teacher = (cifar_model_dict[each][0](num_classes=5) for each in (name, "resnet8x4"))
    check(student, teacher, name, MAPS[name], 32)


@pytest.mark.parametrize("name", ["ResNet18", "MobileNetV2", "ShuffleV2"])
def test_every_network_for_tiny_imagenet(imported: Path, name: str) -> None:
    from mdistiller.models import tiny_imagenet_model_dict

    torch.manual_seed(0)
    student = tiny_imagenet_model_dict[name][0](num_classes=5)
    teacher = create_model("resnet8x4", num_classes=5)  # The host's own takes images of 32 pixels only.
    expected, size = ("feats", 64) if name == "MobileNetV2" else (MAPS[name], 32)
    check(student, teacher, name, expected, size)


@pytest.mark.parametrize("name", ["ResNet18", "MobileNetV1"])
def test_every_network_for_imagenet(imported: Path, name: str) -> None:
    from mdistiller.models import imagenet_model_dict

    torch.manual_seed(0)
    student, teacher = (imagenet_model_dict[name](pretrained=False) for _ in range(2))
    check(student, teacher, name, "feats", 224)
