"""One network under two contracts: RepDistiller's, and that of the methods that TLLM brings along.

The host calls `network(x)` for logits and `network(x, is_feat=True)` for `([f0, ..., fn, pooled], logits)`; the methods
call `network(x)` for `(logits, features)`. What these functions return is the same network a second time: parameters,
buffers, hooks and mode are one, names in a checkpoint too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn


def as_featured(network: nn.Module) -> nn.Module:
    """Return a network of the host's under the contract of the methods.

    Its features are `feats` (the stem and each stage, n maps) and `pooled_feat` (n, D); a network of ours that
    `as_listed` made has all that it had before.
    """
    kind = type(network)
    if hasattr(kind, "featured_forward"):
        return _again(network, "Featured", kind.featured_forward)

    def forward(self: nn.Module, x: Tensor) -> Any:
        (*maps, pooled), logits = kind.forward(self, x, is_feat=True)
        return logits, {"feats": maps, "pooled_feat": pooled}

    return _again(network, "Featured", forward)


def as_listed(network: nn.Module) -> nn.Module:
    """Return a network with `(logits, features)` under the contract of the host; `preact` if it has `preact_feats`."""
    kind = type(network)

    def forward(self: nn.Module, x: Tensor, is_feat: bool = False, preact: bool = False) -> Any:
        logits, features = kind.forward(self, x)
        if not is_feat:
            return logits
        maps = features["preact_feats" if preact else "feats"]
        return [*maps, features["pooled_feat"]], logits

    return _again(network, "Listed", forward, featured_forward=kind.forward)


def _again(network: nn.Module, contract: str, forward: Callable[..., Any], **more: Any) -> nn.Module:
    kind = type(network)
    again: nn.Module = object.__new__(type(f"{contract}{kind.__name__}", (kind,), {"forward": forward, **more}))
    # Shared, not copied: a module that held the other one would put its own name before every key of a state_dict.
    again.__dict__ = network.__dict__
    return again
