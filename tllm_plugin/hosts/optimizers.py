"""Schedules of the learning rate, and changes to a host's optimizer that some methods need."""

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

from tllm_plugin.hosts.contract import extras_of


def spare_from_decay(optimizer: Optimizer, distiller: nn.Module) -> None:
    """Move the undecayed parameters of a distiller into parameter groups without weight decay.

    Args:
        optimizer: Optimizer to change in place; other options are kept, and a second call has no effect.
        distiller: Distiller; without `get_undecayed_parameters()`, or if that is empty, nothing is changed.
    """
    named = extras_of(distiller).get_undecayed_parameters
    known = {id(parameter) for parameter in named()} if named is not None else set()
    for group in list(optimizer.param_groups):
        spared = [parameter for parameter in group["params"] if id(parameter) in known]
        if spared and group.get("weight_decay"):
            group["params"] = [parameter for parameter in group["params"] if id(parameter) not in known]
            optimizer.add_param_group({**group, "params": spared, "weight_decay": 0.0})


def use_nesterov(optimizer: Optimizer) -> None:
    """Enable Nesterov momentum, for hosts without a config key for it."""
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
    """Return the learning-rate schedule of `cfg.SOLVER`.

    `step` multiplies the rate by LR_DECAY_RATE after each epoch in LR_DECAY_STAGES, as both hosts do; `one_cycle`
    increases it to LR during WARMUP_FRACTION of all steps and then decreases it to nearly 0 (Smith and Topin, 2018);
    `cosine` increases it linearly to LR during WARMUP_EPOCHS and then decreases it to LEAST_LR along a cosine.
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
