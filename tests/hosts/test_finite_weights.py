"""Weights that are NaN or infinite are refused when they are loaded, named with their file, wherever they come from."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.hosts.digits_runs import train
from tests.hosts.repdistiller.short_runs import prepared
from tests.hosts.repdistiller.short_runs import train as train_repdistiller
from tests.hosts.tiny_data import Data
from tllm_plugin.analysis.named_networks import EvaluationData, load_named
from tllm_plugin.core.errors import FileFormatError
from tllm_plugin.hosts.host_session import HostSession
from tllm_plugin.hosts.tllm_node import tllm_node
from tllm_plugin.methods import KD
from tllm_plugin.models import create_model
from tllm_plugin.runs.finite import check_finite

BAD = [float("nan"), float("inf"), float("-inf")]


def spoil(path: Path, *keys: str, value: float = float("nan")) -> str:
    """Put a number that is not finite into a checkpoint; return the name of the tensor that has it."""
    state: Any = torch.load(path, weights_only=True)
    found = state
    for key in keys:
        found = found[key]
    tensors = {name: tensor for name, tensor in found.items() if isinstance(tensor, torch.Tensor)}
    name = [name for name, tensor in tensors.items() if tensor.is_floating_point()][-1]
    found[name].view(-1)[-1] = value
    torch.save(state, path)
    return name


def expected(file: Path | str, name: str) -> str:
    return f"^Expected {re.escape(str(file))} to hold finite weights, but `[^`]*{re.escape(name)}` has 1 of "


@pytest.fixture
def teacher(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    path = tmp_path / "teacher.pth"
    torch.save({"model": create_model("digits_teacher", 10, 1).state_dict()}, path)
    return path


@pytest.mark.parametrize("value", BAD)
def test_the_embedded_hosts_teacher(value: float, teacher: Path, tmp_path: Path) -> None:
    name = spoil(teacher, "model", value=value)
    options = ("TLLM.DETECTOR.TYPE", "none", "DISTILLER.TEACHER_CHECKPOINT", str(teacher))
    with pytest.raises(FileFormatError, match=expected(teacher, name)):
        train(tmp_path, *options)


def test_a_checkpoint_that_is_compared(teacher: Path) -> None:
    assert load_named(f"digits_teacher@{teacher}", EvaluationData("digits"))
    name = spoil(teacher, "model")
    with pytest.raises(FileFormatError, match=expected(teacher, name)):
        load_named(f"digits_teacher@{teacher}", EvaluationData("digits"))


def test_a_buffer_counts_too(teacher: Path) -> None:
    state = torch.load(teacher, weights_only=True)
    name = next(name for name in state["model"] if name.endswith("running_var"))
    state["model"][name][0] = float("inf")
    torch.save(state, teacher)
    with pytest.raises(FileFormatError, match=expected(teacher, name)):
        load_named(f"digits_teacher@{teacher}", EvaluationData("digits"))


@pytest.mark.parametrize("keys", [("model",), ("optimizer", "state", 0)], ids=["weights", "momentum"])
def test_a_run_that_is_resumed(keys: tuple[Any, ...], tmp_path: Path) -> None:
    options = ("DISTILLER.TYPE", "NONE", "TLLM.DETECTOR.TYPE", "none", "SOLVER.EPOCHS", "1")
    run = train(tmp_path, *options)
    latest = run.log_folder / "latest"
    name = spoil(latest, *keys)
    with pytest.raises(FileFormatError, match=expected(latest, name)):
        train(tmp_path, *options, resume=True)


@pytest.mark.parametrize("tllm", [True, False])
def test_repdistillers_teacher(tllm: bool, tmp_path: Path) -> None:
    lists, options = prepared(tmp_path, "kd", tllm=tllm, path_t="save/teacher/last.pth")
    name, parameter = list(lists.modules[-1].named_parameters())[-1]
    with torch.no_grad():
        parameter.view(-1)[0] = float("nan")
    with pytest.raises(FileFormatError, match=expected(options.path_t, name)):
        train_repdistiller(lists, options)


def test_repdistillers_run_that_is_resumed(tmp_path: Path) -> None:
    lists, options = prepared(tmp_path, "kd")
    run = train_repdistiller(lists, options, stop_after=1)
    name = spoil(run.folder.state, "wrapper")
    lists, options = prepared(tmp_path, "kd", tllm_resume=True)
    with pytest.raises(FileFormatError, match=expected(run.folder.state, name)):
        train_repdistiller(lists, options)


def test_any_hosts_teacher() -> None:
    """A host that reads its teacher itself hands it over as it is."""
    student, teacher = (create_model(name, 4, 1) for name in ("digits_student", "digits_teacher"))
    node = tllm_node()
    node.HOLDOUT.FRACTION = 0.25
    node.DETECTOR.TYPE = "none"
    distiller = KD(student, teacher, temperature=4.0, ce_weight=0.1, kd_weight=0.9)
    HostSession(node, distiller, Data(), 1)
    with torch.no_grad():
        next(teacher.parameters()).view(-1)[0] = float("nan")
    name = next(name for name, _ in teacher.named_parameters())
    with pytest.raises(FileFormatError, match=expected("the teacher", name)):
        HostSession(node, distiller, Data(), 1)


def test_numbers_that_are_no_weights_may_be_missing() -> None:
    state = {"layer.weight": torch.ones(2), "_extra_state": {"drop": torch.tensor([float("nan")])}, "steps": 3}
    check_finite(state, "x")
    check_finite(nn.BatchNorm1d(3).state_dict(), "x")
    check_finite({"count": torch.tensor([1, 2])}, "x")
    with pytest.raises(
        FileFormatError, match=r"`0\.layer\.weight` has 2 of 2 that are NaN or infinite, and so have 1 "
    ):
        check_finite({"0": {"layer": {"weight": torch.full((2,), float("nan")), "bias": torch.tensor(torch.inf)}}}, "x")
