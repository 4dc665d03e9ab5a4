"""Losses written out in NumPy and plain loops, shared by the tests of the methods."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

Array = npt.NDArray[np.float64]


class OneMap(nn.Module):
    """A network whose only feature map is its image; its logits are twice the pooled image."""

    fc: nn.Linear

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, 1, 1, 1))

    def forward(self, image: Tensor) -> tuple[Tensor, dict[str, Any]]:
        maps = image * self.weight
        pooled = maps.mean((2, 3))
        return pooled.repeat(1, 2), {"feats": [maps], "pooled_map": maps, "pooled_feat": pooled}


def softmax(row: Array, temperature: float = 1.0) -> list[float]:
    scaled = [float(value) / temperature for value in row]
    powers = [math.exp(value - max(scaled)) for value in scaled]
    return [power / sum(powers) for power in powers]


def cross_entropy(logits: Array, target: Array) -> float:
    return float(np.mean([-math.log(softmax(row)[label]) for row, label in zip(logits, target, strict=True)]))


def divergence(student: Array, teacher: Array, temperature: float) -> float:
    """Return the batch mean of T^2 KL(teacher || student)."""
    total = 0.0
    for ours, theirs in zip(student, teacher, strict=True):
        p, q = softmax(theirs, temperature), softmax(ours, temperature)
        total += sum(p[c] * (math.log(p[c]) - math.log(q[c])) for c in range(len(p)))
    return temperature**2 * total / len(student)


def norm_relu(maps: Array, weight: Array, eps: float) -> Array:
    """Return a 1x1 convolution, BatchNorm with the batch's statistics and ReLU of (n, channels, H, W)."""
    mixed = np.einsum("oc,nchw->nohw", weight, maps)
    mean, variance = mixed.mean((0, 2, 3), keepdims=True), mixed.var((0, 2, 3), keepdims=True)
    return np.asarray(np.maximum((mixed - mean) / np.sqrt(variance + eps), 0.0))
