"""What the documentation says of the difference between the host's FitNet and the embedded host's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tllm_plugin.hosts.embedded.distillers import FitNet
from tllm_plugin.models import create_model


def pair(student: str, teacher: str, host: bool) -> Any:
    """Return a FitNet and the teacher's state from before it was made."""
    from mdistiller.distillers import distiller_dict
    from mdistiller.engine.cfg import CFG

    torch.manual_seed(0)
    networks = [create_model(name, num_classes=5).train() for name in (student, teacher)]
    before = {key: value.clone() for key, value in networks[1].state_dict().items()}
    if host:
        cfg = CFG.clone()
        cfg.FITNET.INPUT_SIZE = (64, 64)
        return distiller_dict["FITNET"](*networks, cfg), before
    return FitNet(*networks, hint_layer=2, input_size=(64, 64), ce_weight=1.0, feature_weight=100.0), before


def test_only_the_hosts_moves_the_teachers_statistics(imported: Path) -> None:
    for host in (True, False):
        distiller, before = pair("resnet8", "resnet20", host)
        after = distiller.teacher.state_dict()
        moved = {key for key, value in after.items() if not torch.equal(value, before[key])}
        assert moved == {key for key in before if host and ("running_" in key or "num_batches" in key)}
        assert after["bn1.num_batches_tracked"] == int(host)


@pytest.mark.parametrize(
    ("student", "teacher", "kind", "kernel"),
    [
        ("resnet8", "resnet20", nn.Conv2d, (1, 1)),
        ("MobileNetV2", "ResNet50", nn.ConvTranspose2d, (4, 4)),
        ("resnet8", "MobileNetV2", nn.Conv2d, (3, 3)),
        ("resnet8", "MobileNetV1", nn.Conv2d, (25, 25)),
    ],
)
def test_the_hosts_regressor_brings_the_students_map_to_the_teachers_size(
    imported: Path, student: str, teacher: str, kind: type[nn.Module], kernel: tuple[int, int]
) -> None:
    convolution = pair(student, teacher, host=True)[0].conv_reg.conv
    assert type(convolution) is kind and convolution.kernel_size == kernel and convolution.bias is not None
    ours = pair(student, teacher, host=False)[0].regressor[0]
    assert type(ours) is nn.Conv2d and ours.kernel_size == (1, 1) and ours.bias is None
