"""Runs that the tests of the search build on, and a record of what is trained."""

from __future__ import annotations

import pytest

from tests.hosts.conftest import trained  # noqa: F401 (a fixture)
from tllm_plugin.hosts.embedded.trainer import BaseTrainer


@pytest.fixture
def epochs_trained(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Every epoch that is trained from now on."""
    epochs: list[int] = []
    original = BaseTrainer.train_epoch
    monkeypatch.setattr(
        BaseTrainer, "train_epoch", lambda self, epoch: (epochs.append(epoch), original(self, epoch))[1]
    )
    return epochs
