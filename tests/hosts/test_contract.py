"""What is read from a host's trainer, distiller and logger: what is there, and what is not."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.tensorboard import SummaryWriter

from tllm_plugin.core.wrapper import TLLMWrapper
from tllm_plugin.hosts.contract import (
    EpochLoop,
    FoundAttributes,
    FoundMethods,
    StepLoop,
    attributes_of,
    extras_of,
    methods_of,
    writer_in,
)
from tllm_plugin.hosts.embedded.trainer import BaseTrainer


class ByEpoch:
    def train_epoch(self, epoch: int) -> None: ...


class BySteps:
    def train_iter(self, data: Any, epoch: int) -> None: ...

    def autocast(self) -> Any: ...


class Both(ByEpoch, BySteps):
    """The loop of mdistiller's stock trainers: an epoch is found by the method that trains one."""


class WithoutEpoch:
    def train_iter(self, data: Any) -> None: ...


@pytest.mark.parametrize(
    "trainer, expected",
    [
        (ByEpoch, FoundMethods(EpochLoop, sets_precision=False, writes_results=False)),
        (BySteps, FoundMethods(StepLoop, sets_precision=True, writes_results=False)),
        (Both, FoundMethods(EpochLoop, sets_precision=True, writes_results=False)),
        (WithoutEpoch, FoundMethods(None, sets_precision=False, writes_results=False)),
        (BaseTrainer, FoundMethods(EpochLoop, sets_precision=True, writes_results=True)),
    ],
)
def test_methods(trainer: type[Any], expected: FoundMethods) -> None:
    assert methods_of(trainer) == expected


def test_attributes(tmp_path: Path) -> None:
    assert attributes_of(SimpleNamespace()) == FoundAttributes(None, None, None, None)
    # A fork may use the names for something else, or leave them empty on ranks other than 0.
    others = SimpleNamespace(distiller="KD", optimizer={}, log_path="", tf_writer=None)
    assert attributes_of(others) == FoundAttributes(None, None, None, None)
    network = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(network.parameters(), lr=1.0)
    with SummaryWriter(str(tmp_path)) as writer:
        trainer = SimpleNamespace(distiller=network, optimizer=optimizer, log_path="logs/run", tf_writer=writer)
        assert attributes_of(trainer) == FoundAttributes(network, optimizer, Path("logs/run"), writer)


def test_a_logger_of_another_library_is_no_writer() -> None:
    # RepDistiller's `tensorboard_logger` has `log_value` only.
    assert writer_in(SimpleNamespace(log_value=print)) is None
    assert writer_in(None) is None


def test_a_wrapper_has_the_extras_of_its_distiller() -> None:
    class Distiller(nn.Module):
        student = nn.Linear(1, 2)

        def begin_epoch(self, epoch: int) -> None:
            self.begun = epoch

    distiller = Distiller()
    extras = extras_of(TLLMWrapper(distiller, 2))
    assert extras.begin_epoch is not None and extras.get_undecayed_parameters is None
    extras.begin_epoch(3)
    assert distiller.begun == 3
