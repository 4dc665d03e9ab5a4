"""What a network answered to a loader's batches, class by class, while somebody else's loop ran over them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from tllm_plugin.core.outputs import logits_of
from tllm_plugin.hosts.at_chance import tell_if_at_chance


class WatchedLoader:
    """A loader that notes the labels it hands out and, as a hook, the network's answers to them."""

    def __init__(self, loader: Any) -> None:
        self.loader = loader
        self.labels: list[Tensor] = []
        self.predictions: list[Tensor] = []
        self.num_classes = 0

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        for batch in self.loader:
            self.labels.append(batch[1])
            yield batch

    def see(self, module: nn.Module, inputs: Any, output: Any) -> None:
        logits = logits_of(output)
        self.num_classes = logits.shape[1]
        self.predictions.append(logits.argmax(1))

    def tell_if_at_chance(self, role: str, name: str) -> None:
        """Warn if the answers cannot be told from chance; see `tllm_plugin.hosts.at_chance`."""
        tell_if_at_chance(role, name, torch.cat(self.labels), torch.cat(self.predictions).cpu(), "test images")

    def per_class(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return correct and all images of each class."""
        labels, predictions = torch.cat(self.labels), torch.cat(self.predictions).cpu()
        correct = torch.bincount(labels[predictions == labels], minlength=self.num_classes)
        return tuple(correct.tolist()), tuple(torch.bincount(labels, minlength=self.num_classes).tolist())


def watched_validation(
    host_validate: Callable[..., Any], loader: Any, network: nn.Module, *arguments: Any
) -> tuple[Any, WatchedLoader]:
    """Return what the host's `validate` does, and the loader that has watched it."""
    watched = WatchedLoader(loader)
    hook = network.register_forward_hook(watched.see)
    try:
        return host_validate(watched, network, *arguments), watched
    finally:
        hook.remove()
