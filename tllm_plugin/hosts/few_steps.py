"""End every training epoch of this process after a few steps, to try a host's methods quickly."""

from __future__ import annotations

import itertools
from typing import Any

from torch.utils.data import DataLoader, SequentialSampler

from tllm_plugin.core import holdout


def take_few_steps(steps: int) -> None:
    """Let loaders that shuffle yield `steps` batches, and hold-outs have as little as one sample per class.

    Nothing undoes this: it is for processes that train only to see whether a method works.
    """
    holdout.MIN_PER_CLASS = 1
    iterate, count = DataLoader.__iter__, DataLoader.__len__

    def first_steps(self: Any) -> Any:
        return iterate(self) if isinstance(self.sampler, SequentialSampler) else itertools.islice(iterate(self), steps)

    def few(self: Any) -> int:
        return count(self) if isinstance(self.sampler, SequentialSampler) else min(count(self), steps)

    DataLoader.__iter__ = first_steps  # type: ignore[method-assign, assignment]
    DataLoader.__len__ = few  # type: ignore[method-assign]
