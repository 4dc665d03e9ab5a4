"""What is done to an optimizer: schedules of the learning rate, and what some methods want of one that a host made."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    LambdaLR,
    LinearLR,
    LRScheduler,
    OneCycleLR,
    SequentialLR,
)
from yacs.config import CfgNode


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


def make_optimizer(solver: CfgNode, parameters: Iterable[nn.Parameter]) -> Optimizer:
    """Return the optimizer that `cfg.SOLVER` names."""
    common = {"lr": solver.LR, "weight_decay": solver.WEIGHT_DECAY}
    if solver.TYPE == "AdamW":
        return AdamW(parameters, betas=tuple(solver.BETAS), **common)
    return SGD(parameters, momentum=solver.MOMENTUM, nesterov=solver.NESTEROV, **common)


def make_schedule(solver: CfgNode, optimizer: Optimizer, steps_per_epoch: int) -> LRScheduler:
    """Return the schedule that `cfg.SOLVER` names.

    `step` multiplies the rate by LR_DECAY_RATE after each epoch in LR_DECAY_STAGES, as both hosts do; `one_cycle`
    climbs to LR during WARMUP_FRACTION of all steps and falls to nearly zero (Smith and Topin, 2018); `cosine` climbs
    linearly during the steps of WARMUP_EPOCHS, from LR over their number on, and falls to LEAST_LR along a cosine.
    """
    if solver.SCHEDULE == "cosine":
        climbing = min(solver.WARMUP_EPOCHS, solver.EPOCHS) * steps_per_epoch
        falling = max(1, solver.EPOCHS * steps_per_epoch - climbing)
        cosine = CosineAnnealingLR(optimizer, T_max=falling, eta_min=solver.LEAST_LR)
        if not climbing:
            return cosine
        climb = LinearLR(optimizer, start_factor=1.0 / (climbing + 1), total_iters=climbing)
        return SequentialLR(optimizer, [climb, cosine], milestones=[climbing])
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
