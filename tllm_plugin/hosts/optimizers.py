"""What some methods want of the optimizer that a host made."""

from __future__ import annotations

from torch import nn
from torch.optim import Optimizer


def spare_from_decay(optimizer: Optimizer, distiller: nn.Module) -> None:
    """Move the parameters that a distiller wants undecayed into a group of their own, without weight decay.

    Args:
        optimizer: Fresh; its other options stay.
        distiller: May have `get_undecayed_parameters()`; nothing changes for one that has not, or names none.
    """
    named = getattr(distiller, "get_undecayed_parameters", None)
    spared = list(named()) if named is not None else []
    if not spared:
        return
    known = {id(parameter) for parameter in spared}
    (group,) = optimizer.param_groups
    group["params"] = [parameter for parameter in group["params"] if id(parameter) not in known]
    optimizer.add_param_group({**group, "params": spared, "weight_decay": 0.0})
