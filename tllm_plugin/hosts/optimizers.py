"""What is done to an optimizer: schedules of the learning rate, and what some methods want of one that a host made."""

from __future__ import annotations

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR
from yacs.config import CfgNode

from tllm_plugin.hosts.contract import extras_of


def spare_from_decay(optimizer: Optimizer, distiller: nn.Module) -> None:
    """Move the parameters that a distiller wants undecayed into groups of their own, without weight decay.

    Args:
        optimizer: Its other options stay; a second call changes nothing.
        distiller: May have `get_undecayed_parameters()`; nothing changes for one that has not, or names none.
    """
    named = extras_of(distiller).get_undecayed_parameters
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


def make_schedule(solver: CfgNode, optimizer: Optimizer, steps_per_epoch: int) -> LRScheduler:
    """Return the schedule that `cfg.SOLVER` names.

    `step` multiplies the rate by LR_DECAY_RATE after each epoch in LR_DECAY_STAGES, as both hosts do; `one_cycle`
    climbs to LR during WARMUP_FRACTION of all steps and falls to nearly zero (Smith and Topin, 2018).
    """
    if solver.SCHEDULE == "one_cycle":
        return OneCycleLR(
            optimizer,
            max_lr=solver.LR,
            total_steps=solver.EPOCHS * steps_per_epoch + 1,
            pct_start=solver.WARMUP_FRACTION,
            cycle_momentum=False,
        )
    stages = [stage * steps_per_epoch for stage in solver.LR_DECAY_STAGES]
    return LambdaLR(optimizer, lambda step: solver.LR_DECAY_RATE ** sum(step >= stage for stage in stages))
