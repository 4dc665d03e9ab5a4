"""What the tests of sessions share: the digits, and a vanilla run."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch.utils.data import TensorDataset

from tests.own_loop.digits import EPOCHS, HOLDOUT, digits, train, vanilla
from tllm_plugin import Session


@pytest.fixture(scope="session")
def train_set() -> TensorDataset:
    return digits("train")


@pytest.fixture(scope="session")
def test_set() -> TensorDataset:
    return digits("test")


@pytest.fixture(scope="session")
def reference(train_set: TensorDataset, test_set: TensorDataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished vanilla run."""
    folder = tmp_path_factory.mktemp("runs") / "vanilla"
    session = Session(vanilla(), train_set, epochs=EPOCHS, run=folder, detector="none", **HOLDOUT)
    train(session)
    session.finish(test_set)
    return folder
