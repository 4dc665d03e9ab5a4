"""What some methods want of the optimizer that a host made."""

from __future__ import annotations

from torch import nn
from torch.optim import Optimizer


def spare_from_decay(optimizer: Optimizer, distiller: nn.Module) -> None:
    """Move the parameters that a distiller wants undecayed into groups of their own, without weight decay.

    Args:
        optimizer: Its other options stay; a second call changes nothing.
        distiller: May have `get_undecayed_parameters()`; nothing changes for one that has not, or names none.
    """
    named = getattr(distiller, "get_undecayed_parameters", None)
    known = {id(parameter) for parameter in named()} if named is not None else set()
    for group in list(optimizer.param_groups):
        spared = [parameter for parameter in group["params"] if id(parameter) in known]
        if spared and group.get("weight_decay"):
            group["params"] = [parameter for parameter in group["params"] if id(parameter) not in known]
            optimizer.add_param_group({**group, "params": spared, "weight_decay": 0.0})


def use_nesterov(optimizer: Optimizer) -> None:
    """Turn Nesterov's momentum on, for hosts whose configs cannot ask for it."""
    for group in optimizer.param_groups:
        if "nesterov" in group:
            group["nesterov"] = True
