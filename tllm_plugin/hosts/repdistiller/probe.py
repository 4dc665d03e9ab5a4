"""A host's epoch function tried on a few rows before anything is trained, on copies that are then thrown away."""

from __future__ import annotations

import contextlib
import copy
import io
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from tllm_plugin.core.errors import ConfigError
from tllm_plugin.core.outputs import tensors_in
from tllm_plugin.core.worker_errors import plain_errors
from tllm_plugin.hosts.random_state import RandomState
from tllm_plugin.hosts.repdistiller.distiller import ListedDistiller
from tllm_plugin.hosts.repdistiller.loop import NoLossError, OneBatch
from tllm_plugin.hosts.repdistiller.loop_source import lost_when_cut

_ROWS = 4


def check_loop(distiller: ListedDistiller, loader: Any, *, rows_are_taken: bool) -> None:
    """Check that the host's epoch function can be asked for the loss of one batch, and of a part of one.

    Args:
        distiller: With its `call` set.
        loader: The host's.
        rows_are_taken: Whether classes may lose their teacher, so that the host sees a part of a batch.

    Raises:
        ConfigError: It does more than that to train, or leaves out batches that rows have been taken from.
    """
    assert distiller.call is not None
    name = getattr(distiller.call.function, "__name__", "the host's loop")
    lost = lost_when_cut(distiller.call.function)
    if lost:
        raise ConfigError(
            f"Expected {name} to compute a loss, call `backward` and step, but it does more, which training under TLLM "
            f"would leave out: {'; '.join(lost)}"
        )
    if not rows_are_taken or (loader.batch_size or 0) <= _ROWS:
        return
    before = RandomState().state_dict()
    try:
        with plain_errors(), torch.enable_grad():
            batch = loader.collate_fn([loader.dataset[place] for place in range(min(_ROWS, len(loader.dataset)))])
            device = next(distiller.parameters()).device
            moved = [part.to(device) if isinstance(part, torch.Tensor) else part for part in batch]
            parts = {f"part_{place}": part for place, part in enumerate(moved[2:])}
            # Not of the call, which holds the data.
            probe = copy.deepcopy(distiller, {id(distiller.call): distiller.call})
            probe.train()(image=moved[0].float(), target=moved[1], **parts)
    except NoLossError as error:
        raise ConfigError(
            f"{error}; this method needs batches of a fixed size, and TLLM takes rows out of them: only "
            "--tllm_detector none trains it"
        ) from None
    finally:
        RandomState().load_state_dict(before)


def check_predictor(
    student: nn.Module, host_validate: Callable[..., Any], arguments: Sequence[Any], *, loader: Any
) -> None:
    """Check that the student's own logits are what the host's `validate` judges.

    Args:
        student: The host's.
        host_validate: Called with a few test images.
        arguments: Its arguments: the test loader, networks, a criterion, options.
        loader: The test loader.

    Raises:
        ConfigError: It judges something else, such as what a projector makes of the student's features.
    """
    criteria = [part for part in arguments if isinstance(part, nn.Module) and not list(part.parameters())]
    if not criteria:
        return  # It cannot be watched.
    before = RandomState().state_dict()
    images = [loader.dataset[place] for place in range(min(_ROWS, len(loader.dataset)))]
    batch = loader.collate_fn(images)
    judged: list[Any] = []
    returned: list[Any] = []
    hooks = [
        criteria[0].register_forward_pre_hook(lambda module, given: judged.append(given[0])),
        student.register_forward_hook(lambda module, given, output: returned.extend(tensors_in(output))),
    ]
    try:
        with plain_errors(), contextlib.redirect_stdout(io.StringIO()):
            host_validate(*(OneBatch(loader, batch) if part is loader else part for part in arguments))
    finally:
        for hook in hooks:
            hook.remove()
        RandomState().load_state_dict(before)
    if judged and not any(judged[0] is tensor for tensor in returned):
        raise ConfigError(
            f"Expected {host_validate.__name__} to judge the logits that the student returns, but this method predicts "
            "by other means, such as a projector of its own: TLLM would teach and judge the wrong logits"
        )
