"""Gradient accumulation: a batch in several parts gives the step that it gives in one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.hosts.digits_runs import make_config
from tllm_plugin.core.errors import ConfigError
from tllm_plugin.core.wrapper import TLLMWrapper
from tllm_plugin.hosts.embedded.distillers import distiller_dict
from tllm_plugin.hosts.embedded.prerequisites import prerequisite
from tllm_plugin.hosts.embedded.trainer import BaseTrainer
from tllm_plugin.hosts.run_spec import ONE_RUN, RunSpec

ROWS = 23  # Not divisible: parts of 6, 6, 6 and 5.


class Network(nn.Module):
    """No BatchNorm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.Tanh(), nn.Linear(width, 10))
        self.rows: list[int] = []

    def forward(self, image: Tensor) -> tuple[Tensor, dict[str, Any]]:
        self.rows.append(image.shape[0])
        return self.layers(image), {}


def step(tmp_path: Path, parts: int, flagged: tuple[int, ...]) -> tuple[dict[str, Tensor], Tensor, Tensor, list[int]]:
    """Make three steps with momentum; return the weights, the last logits and loss, and the rows of every forward."""
    cfg = make_config(tmp_path / str(parts), "SOLVER.ACCUMULATE", str(parts))
    torch.manual_seed(0)
    student, teacher = Network(8), Network(16).eval()
    wrapper = TLLMWrapper(distiller_dict["KD"](student, teacher, cfg), 10, ce_weight=2.0, min_rows=1)
    wrapper.set_undistillable(torch.isin(torch.arange(10), torch.tensor(flagged)))
    trainer = BaseTrainer("x/y", wrapper, [0] * 3, [], cfg)
    wrapper.train()
    generator = torch.Generator().manual_seed(1)
    for _ in range(3):
        image = torch.randn(ROWS, 1, 8, 8, generator=generator)
        target = torch.randint(10, (ROWS,), generator=generator)
        logits, loss = trainer.train_iter(image, target, torch.arange(ROWS), 1)
    trainer.tf_writer.close()
    return dict(student.state_dict()), logits, loss, student.rows


@pytest.mark.parametrize("flagged", [(), (3, 8), tuple(range(10))])
def test_equals_the_whole_batch(flagged: tuple[int, ...], tmp_path: Path) -> None:
    whole, accumulated = (step(tmp_path, parts, flagged) for parts in (1, 4))
    assert whole[3] == [23] * 3 and accumulated[3] == [6, 6, 6, 5] * 3
    for name, weights in whole[0].items():
        torch.testing.assert_close(accumulated[0][name], weights, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(accumulated[1], whole[1], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(accumulated[2], whole[2], rtol=1e-5, atol=1e-6)


def test_more_parts_than_rows(tmp_path: Path) -> None:
    assert step(tmp_path, 1000, ())[3] == [1] * (3 * ROWS)


def test_zero_parts_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="`SOLVER.ACCUMULATE` to be in .1, 2147483647., but got 0"):
        make_config(tmp_path, "SOLVER.ACCUMULATE", "0")


def test_older_runs_are_continued_and_found(tmp_path: Path) -> None:
    now = make_config(tmp_path).dump()
    older = RunSpec.parse(now.replace("  ACCUMULATE: 1\n", ""))
    assert "ACCUMULATE" in now
    assert older.differing(RunSpec.parse(now), ONE_RUN) == []
    parts = RunSpec.parse(make_config(tmp_path, "SOLVER.ACCUMULATE", "2").dump())
    assert older.differing(parts, ONE_RUN) == ["SOLVER.ACCUMULATE"]
    names = [
        prerequisite(make_config(tmp_path, "SOLVER.ACCUMULATE", parts), "digits_student", 3, "vanilla")
        for parts in ("1", "2")
    ]
    assert names[0].EXPERIMENT.NAME != names[1].EXPERIMENT.NAME
