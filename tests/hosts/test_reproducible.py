"""What is asked of PyTorch where there is a GPU, and that it is taken back. `test_resume` shows what it does there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.hosts.conftest import Trained
from tests.hosts.digits_runs import make_config
from tllm_plugin.hosts.embedded import late_test, recipe, runtime
from tllm_plugin.hosts.embedded.data import load_bundle
from tllm_plugin.hosts.embedded.prerequisites import prerequisite
from tllm_plugin.hosts.embedded.runtime import reproducible
from tllm_plugin.hosts.embedded.trainer import BaseTrainer
from tllm_plugin.search.embedded import EmbeddedSearch
from tllm_plugin.search.space import parse_space

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
    monkeypatch.setattr(runtime, "choose_device", lambda cfg: torch.device("cuda"))
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


def test_runs_in_threads(as_with_a_gpu: None) -> None:
    first, second = (reproducible(make_config("unused")) for _ in range(2))
    before = asked()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert asked() == (1, False, False), "the second one goes on"
    second.__exit__(None, None, None)
    assert asked() == before


def test_a_stricter_mode_comes_back(as_with_a_gpu: None) -> None:
    torch.use_deterministic_algorithms(True)
    try:
        with reproducible(make_config("unused")):
            assert asked()[0] == 1
        assert asked()[0] == 2
    finally:
        torch.use_deterministic_algorithms(False)


def test_runs_are_trained_and_tested_so(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, as_with_a_gpu: None
) -> None:
    """On a CPU, which is taken for a GPU only where PyTorch is asked."""
    seen: dict[str, set[int]] = {"train": set(), "test": set()}

    def noted(name: str, original: Any) -> Any:
        def call(*arguments: Any, **keywords: Any) -> Any:
            seen[name].add(torch.get_deterministic_debug_mode())
            return original(*arguments, **keywords)

        return call

    monkeypatch.setattr(BaseTrainer, "train_iter", noted("train", BaseTrainer.train_iter))
    monkeypatch.setattr(late_test, "predict", noted("test", late_test.predict))
    options = (*trained.taught, "RUNTIME.DEVICE", "cpu", "TLLM.DETECTOR.TYPE", "none", "SOLVER.EPOCHS", "1")
    cfg = make_config(tmp_path, *options, "LOG.TEST_FREQ", "-1")
    run = recipe.run(cfg)
    assert not run.has_results() and seen == {"train": {1}, "test": set()} and asked()[0] == 0
    late_test.ensure_tested(run, cfg, load_bundle(cfg))
    assert run.has_results() and seen["test"] == {1} and asked()[0] == 0


def test_what_a_user_has_set_for_cublas_stays(as_with_a_gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(_CUBLAS, ":16:8")
    with reproducible(make_config("unused")):
        assert os.environ[_CUBLAS] == ":16:8"


def test_not_asked_for_where_the_config_says_so(as_with_a_gpu: None) -> None:
    with reproducible(make_config("unused", "RUNTIME.DETERMINISTIC", "False")):
        assert asked() == (0, True, True) and _CUBLAS not in os.environ


def test_nothing_is_asked_for_on_a_cpu() -> None:
    before = asked()
    with reproducible(make_config("unused", "RUNTIME.DEVICE", "cpu")):
        assert asked() == before and _CUBLAS not in os.environ


def test_runs_that_were_trained_before_there_was_a_choice_are_found(tmp_path: Path) -> None:
    names = {
        value: prerequisite(make_config(tmp_path, *options), "digits_student", 1, "vanilla").EXPERIMENT.NAME
        for value, options in {
            "default": (),
            "True": ("RUNTIME.DETERMINISTIC", "True"),
            "False": ("RUNTIME.DETERMINISTIC", "False"),
        }.items()
    }
    # As the version before named it.
    assert names["default"] == names["True"] == "vanilla-digits_student-77497e73" != names["False"]


def test_a_search_from_before_there_was_a_choice_is_found(tmp_path: Path) -> None:
    names = []
    for options in ((), ("RUNTIME.DETERMINISTIC", "False")):
        cfg = make_config(tmp_path, "TLLM.HOLDOUT.SEARCH_FRACTION", "0.1", *options)
        space, _ = parse_space(["ETA=0.1,0.2"], cfg)
        names.append(EmbeddedSearch(cfg, space).folder.name)
    # As the version before named it.
    assert names[0] == "kd-digits_student-seed0-search-fa45fca6" != names[1]
