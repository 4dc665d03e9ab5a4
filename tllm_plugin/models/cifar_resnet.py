"""The CIFAR ResNets of both hosts: three stages of basic blocks, named by depth and, for the wide ones, by width."""

from __future__ import annotations

from functools import partial

from tllm_plugin.models.registry import MODELS
from tllm_plugin.models.residual import ResNet

_NARROW = (16, 16, 32, 64)
_WIDE = (32, 64, 128, 256)

# Depth counts the stem, two convolutions per block and the head: 2 + 2 * sum(blocks).
_ARCHITECTURES = {
    "resnet8": ((1, 1, 1), _NARROW),
    "resnet14": ((2, 2, 2), _NARROW),
    "resnet20": ((3, 3, 3), _NARROW),
    "resnet32": ((5, 5, 5), _NARROW),
    "resnet44": ((7, 7, 7), _NARROW),
    "resnet56": ((9, 9, 9), _NARROW),
    "resnet110": ((18, 18, 18), _NARROW),
    "resnet8x4": ((1, 1, 1), _WIDE),
    "resnet32x4": ((5, 5, 5), _WIDE),
    # Student of the TLLM paper's section 2.2, which the hosts lack; its last stage has as many blocks as resnet56's.
    "resnet24_1_1_9": ((1, 1, 9), _NARROW),
}

for _name, (_blocks, _widths) in _ARCHITECTURES.items():
    MODELS.register(_name)(partial(ResNet, blocks=_blocks, widths=_widths))
