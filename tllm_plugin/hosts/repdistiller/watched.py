"""What a network predicts for a loader's batches while the host's own function runs over them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn

from tllm_plugin.core.outputs import logits_of
from tllm_plugin.core.predictions import Collector, Predictions


def watched_validation(
    validate: Callable[[Any], Any],
    loader: Any,
    network: nn.Module,
    num_classes: int | None = None,
    *,
    criterion: nn.Module | None = None,
) -> tuple[Any, Predictions]:
    """Return the result of the host's `validate` and the network's predictions during its call.

    Args:
        validate: Calls the host's function with the loader that it receives; that function calls the network on every
            batch.
        loader: Yields `(image, label, ...)`.
        network: The host's network, whose output has the logits.
        num_classes: See `Collector`.
        criterion: If given, the logits are the first argument of its calls instead.
    """
    watched = _WatchedLoader(loader, Collector(num_classes))
    if criterion is None:
        hook = network.register_forward_hook(watched.see)
    else:
        hook = criterion.register_forward_hook(lambda module, given, output: watched.see(module, given, given[0]))
    try:
        result = validate(watched)
    finally:
        hook.remove()
    return result, watched.collector.predictions()


class _WatchedLoader:
    """A loader that pairs the labels it hands out with the network's outputs, which a forward hook shows it."""

    def __init__(self, loader: Any, collector: Collector) -> None:
        self.loader = loader
        self.collector = collector
        self._logits: Tensor | None = None

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        for batch in self.loader:
            yield batch
            # Once the host has come back for the next batch, the last thing the network returned is for this one.
            self.collector.add(self._logits, batch[1])  # type: ignore[arg-type]

    def see(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self._logits = logits_of(output)
