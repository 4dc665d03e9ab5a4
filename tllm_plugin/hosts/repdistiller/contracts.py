"""One network under two contracts: RepDistiller's, and that of the methods that TLLM brings along.

The host calls `network(x)` for logits and `network(x, is_feat=True)` for `([f0, ..., fn, pooled], logits)`; the methods
call `network(x)` for `(logits, features)`. What these functions return is the same network a second time: parameters,
buffers, hooks and mode are one, names in a checkpoint too.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


def as_featured(network: nn.Module) -> nn.Module:
    """Return a network of the host's under the contract of the methods.

    Its features are `feats` (the stem and each stage, n maps) and `pooled_feat` (n, D); the methods use no others.
    """
    return _again(network, _Featured)


def as_listed(network: nn.Module) -> nn.Module:
    """Return a network with `(logits, features)` under the contract of the host; `preact` if it has `preact_feats`."""
    return _again(network, _Listed)


def _again(network: nn.Module, contract: type[nn.Module]) -> nn.Module:
    kind = type(network)
    name = f"{contract.__name__.strip('_')}{kind.__name__}"
    again: nn.Module = object.__new__(type(name, (contract, kind), {}))
    # Shared, not copied: a module that held the other one would put its own name before every key of a state_dict.
    again.__dict__ = network.__dict__
    return again


class _Featured(nn.Module):
    def forward(self, x: Tensor) -> Any:
        (*maps, pooled), logits = super().forward(x, is_feat=True)  # type: ignore[misc]
        return logits, {"feats": maps, "pooled_feat": pooled}


class _Listed(nn.Module):
    def forward(self, x: Tensor, is_feat: bool = False, preact: bool = False) -> Any:
        logits, features = super().forward(x)  # type: ignore[misc]
        if not is_feat:
            return logits
        maps = features["preact_feats" if preact else "feats"]
        return [*maps, features["pooled_feat"]], logits
