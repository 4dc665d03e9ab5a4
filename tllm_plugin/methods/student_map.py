"""Find the feature map that a student's head pools, among its features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

#: Names of features that `read_map` takes.
MAPS = ("pooled_map", "feats", "preact_feats")


def read_map(features: Mapping[str, Any], name: str) -> Tensor:
    """Return a map (n, channels, H, W) from the features that a network returned.

    Args:
        features: With the entry `name`; where `pooled_map` is missing, the pooled features are taken as a map of one
            pixel.
        name: `pooled_map`, `feats` for the last of these maps, `preact_feats` for the last of these after a ReLU.
    """
    if name == "pooled_map":
        found: Tensor = features[name] if name in features else features["pooled_feat"].flatten(1)[:, :, None, None]
    elif name == "feats":
        found = features["feats"][-1]
    else:
        found = F.relu(features["preact_feats"][-1])
    return found


@torch.enable_grad()
def find_map(network: nn.Module, image_size: int) -> tuple[str, int]:
    """Return the name, as `read_map` takes it, and the channels of the map that a network's head pools.

    Third-party networks return `feats`, but not which of these the head pools, nor whether layers come in between.
    The map is therefore found by test: its mean over pixels must equal `pooled_feat`, and gradients from the map must
    reach every parameter that gradients from `pooled_feat` reach. If no feature passes, `pooled_map` is returned, which
    stands for the pooled features.

    Two random images are put through the network in evaluation mode, so that no BatchNorm statistics move; modes and
    gradients stay as they are, and no global random numbers are drawn.

    Args:
        network: `image -> (logits, features)`.
        image_size: Height and width of the images.

    Raises:
        RuntimeError: PyTorch's own, where the network does not take images of this size.
    """
    first = next(parameter for parameter in network.parameters() if parameter.dim() == 4)
    shape = (2, first.shape[1], image_size, image_size)
    images = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(first)
    modes = {module: module.training for module in network.modules()}
    try:
        _, features = network.eval()(images)
    finally:
        for module, mode in modes.items():
            module.training = mode
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    pooled = features["pooled_feat"].flatten(1)
    reached = _reached(pooled, parameters)
    for name in ("feats", "preact_feats"):
        if "pooled_map" in features or not features.get(name):
            continue
        candidate = read_map(features, name)
        if _is_mean(pooled, candidate) and _reached(candidate, parameters) == reached:
            return name, pooled.shape[1]
    return "pooled_map", pooled.shape[1]


def _is_mean(pooled: Tensor, candidate: Tensor) -> bool:
    if candidate.dim() != 4 or candidate.shape[:2] != pooled.shape:
        return False
    return torch.allclose(candidate.mean((2, 3)), pooled, rtol=1e-3, atol=1e-5 * float(pooled.detach().abs().max()))


def _reached(output: Tensor, parameters: Sequence[nn.Parameter]) -> list[bool]:
    """Return for each parameter whether a gradient from `output` reaches it."""
    if not parameters or not output.requires_grad:
        return [False] * len(parameters)
    gradients = torch.autograd.grad(output.sum(), parameters, retain_graph=True, allow_unused=True)
    return [gradient is not None for gradient in gradients]
