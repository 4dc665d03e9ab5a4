"""Runs whose truth is known, written as a host would have written them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.analysis.planted_runs import write_run

RunMaker = Callable[..., Path]


@pytest.fixture
def make_run(tmp_path: Path) -> RunMaker:
    """Write a run below `tmp_path`; see `planted_runs.write_run`."""
    return lambda name, **how: write_run(tmp_path / "runs" / name, **how)
