"""The guard that looks at several steps at once: it names the first one that is not finite."""

from __future__ import annotations

import math

import pytest
import torch

from tllm_plugin.core.errors import NonFiniteLossError
from tllm_plugin.hosts.loss_guard import LossGuard


def see(guard: LossGuard, count: int, bad: dict[int, float]) -> None:
    """Show steps whose losses change in number and precision, as those of a flagged batch may."""
    for step in range(1, count + 1):
        values = [0.5, bad.get(step, 1.0), 2.0][: 2 + step % 2]
        dtype = torch.float64 if step % 3 == 0 else torch.float32
        names = ("loss_ce", "loss_kd", "loss_tllm")[: len(values)]
        guard.see(1 + step // 8, names, torch.tensor(values, dtype=dtype), torch.arange(step, step + 9))


@pytest.mark.parametrize("check_every", [1, 5, 7, 20])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_the_first_bad_step_is_named(check_every: int, value: float) -> None:
    guard = LossGuard(check_every)
    with pytest.raises(NonFiniteLossError) as caught:
        see(guard, 12, {7: value, 9: math.nan})
        guard.flush()
    assert f"got loss_ce = 0.5, loss_kd = {value:g}, loss_tllm = 2 in epoch 1, step 7 of" in str(caught.value)
    assert "on training rows 7, 8, 9, 10, 11, 12, 13, 14 and 1 more" in str(caught.value)
    looked_at = -(-7 // check_every) * check_every
    assert guard.step == min(looked_at, 12)


def test_finite_steps_are_forgotten() -> None:
    guard = LossGuard(5)
    see(guard, 12, {})
    guard.flush()
    guard.flush()
    with pytest.raises(NonFiniteLossError, match="got loss_ce = nan in epoch 3, step 13 of this process; try a lower"):
        guard.see(3, ["loss_ce"], torch.tensor([math.nan]), None)
        guard.flush()
