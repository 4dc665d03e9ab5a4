"""Learning-rate schedules, stepped once per batch; their state is a counter."""

from __future__ import annotations

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR
from yacs.config import CfgNode


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
