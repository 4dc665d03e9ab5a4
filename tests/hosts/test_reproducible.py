"""What is asked of PyTorch where there is a GPU, and that it is taken back. `test_resume` shows what it does there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.hosts.digits_runs import make_config
from tllm_plugin.hosts.embedded import job
from tllm_plugin.hosts.embedded.reproducible import reproducible

_CUBLAS = "CUBLAS_WORKSPACE_CONFIG"


def asked() -> tuple[Any, ...]:
    memory: Any = torch.utils.deterministic
    return (
        torch.get_deterministic_debug_mode(),
        torch.backends.cudnn.benchmark,
        memory.fill_uninitialized_memory,
    )


@pytest.fixture
def as_with_a_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.delenv(_CUBLAS, raising=False)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    yield
    os.environ.pop(_CUBLAS, None)


def test_asked_for_and_taken_back(as_with_a_gpu: None) -> None:
    before = asked()
    assert before == (0, True, True)
    with pytest.raises(ZeroDivisionError), reproducible(make_config("unused")):
        # A warning, not an error, for an operation that has no reproducible algorithm.
        assert asked() == (1, False, False) and os.environ[_CUBLAS] == ":4096:8"
        with reproducible(make_config("unused")):  # A teacher that is trained first.
            assert asked() == (1, False, False)
        assert asked() == (1, False, False)
        raise ZeroDivisionError
    assert asked() == before


def test_what_a_user_has_set_for_cublas_stays(as_with_a_gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(_CUBLAS, ":16:8")
    with reproducible(make_config("unused")):
        assert os.environ[_CUBLAS] == ":16:8"


def test_not_asked_for_where_the_config_says_so(as_with_a_gpu: None) -> None:
    with reproducible(make_config("unused", "RUNTIME.DETERMINISTIC", "False")):
        assert asked() == (0, True, True) and _CUBLAS not in os.environ


@pytest.mark.skipif(torch.cuda.is_available(), reason="of machines without a GPU")
def test_nothing_is_asked_for_without_a_gpu() -> None:
    before = asked()
    with reproducible(make_config("unused")):
        assert asked() == before and _CUBLAS not in os.environ


def test_runs_that_were_trained_before_there_was_a_choice_are_found(tmp_path: Path) -> None:
    names = {
        value: job.prerequisite(make_config(tmp_path, *options), "digits_student", 1, "vanilla").EXPERIMENT.NAME
        for value, options in {
            "default": (),
            "True": ("RUNTIME.DETERMINISTIC", "True"),
            "False": ("RUNTIME.DETERMINISTIC", "False"),
        }.items()
    }
    # As the version before named it.
    assert names["default"] == names["True"] == "vanilla-digits_student-77497e73" != names["False"]
