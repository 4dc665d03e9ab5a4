"""Try a host's epoch function on a batch before training, on copies that are discarded."""

from __future__ import annotations

import copy
import logging
from typing import Any

import torch
from torch import Tensor

from tllm_plugin.core.errors import ConfigError
from tllm_plugin.core.worker_errors import plain_errors
from tllm_plugin.core.wrapper import TLLMWrapper
from tllm_plugin.hosts.random_state import RandomState
from tllm_plugin.hosts.repdistiller.distiller import ListedDistiller
from tllm_plugin.hosts.repdistiller.loop_source import lost_when_cut

logger = logging.getLogger(__name__)

# A batch with fewer rows shows nothing about flagged classes.
_ROWS = 8


def check_loop(distiller: ListedDistiller, loader: Any, num_classes: int, *, rows_are_taken: bool) -> None:
    """Check that the host's epoch function computes the loss of one batch, also of a part of its rows.

    A method that needs batches of one size is found out: its `fixed_rows` is set.

    Args:
        distiller: The distiller, with its `call` set.
        loader: The host's training loader.
        num_classes: C.
        rows_are_taken: Whether classes may be flagged, so that the host receives a part of a batch.

    Raises:
        ConfigError: The function does more than compute a loss and step, or it cannot train on a part of a batch.
    """
    assert distiller.call is not None
    name = getattr(distiller.call.function, "__name__", "the host's loop")
    lost = lost_when_cut(distiller.call.function)
    if lost:
        raise ConfigError(
            f"Expected {name} to compute a loss, call `backward` and step, but it does more, which training under TLLM "
            f"would leave out: {'; '.join(lost)}"
        )
    rows = min(loader.batch_size or 0, len(loader.dataset))
    if not rows_are_taken or rows < _ROWS:
        return
    before = RandomState().state_dict()
    try:
        with plain_errors():
            device = next(distiller.parameters()).device
            batch = loader.collate_fn([loader.dataset[place] for place in range(rows)])
            moved = [part.to(device) if isinstance(part, Tensor) else part for part in batch]
        try:
            _train_on_a_part(distiller, moved, num_classes)
        except Exception:
            distiller.fixed_rows = True
            try:
                _train_on_a_part(distiller, moved, num_classes)
            except Exception:
                distiller.fixed_rows = False
            if not distiller.fixed_rows:
                raise
            logger.info(
                "%s needs batches of one size: where rows of a batch have no teacher, the others are repeated", name
            )
    finally:
        RandomState().load_state_dict(before)


def _train_on_a_part(distiller: ListedDistiller, batch: list[Any], num_classes: int) -> None:
    """Compute the loss of a batch in which about half of the classes are flagged."""
    # The host's own objects are not copied: they hold the data.
    kept = {id(part): part for part in (distiller.call, distiller.judge) if part is not None}
    wrapper = TLLMWrapper(copy.deepcopy(distiller, dict(kept)), num_classes, min_rows=1).train()
    wrapper.to(batch[1].device)
    flags = torch.zeros(num_classes, dtype=torch.bool)
    flags[batch[1].unique().cpu()[1::2]] = True
    wrapper.set_undistillable(flags)
    parts = {f"part_{place}": part for place, part in enumerate(batch[2:])}
    with torch.enable_grad():
        wrapper(image=batch[0].float(), target=batch[1], **parts)
