"""`tllm host check`: what is recognised, what is reported of it, and what is said where nothing can be tried."""

from __future__ import annotations

from pathlib import Path

import pytest

from tllm_plugin.core.errors import ConfigError
from tllm_plugin.hosts.host_check import BROKEN, REFUSED, TRAINS, CheckResult, MethodCheck, host_of, read, report, write

RESULT = CheckResult(
    facts=(("trainers", "base"), ("loop", "train_epoch")),
    methods=(MethodCheck("KD", TRAINS), MethodCheck("X", REFUSED, "no\nstudent"), MethodCheck("Y", BROKEN, "KeyError")),
)


def test_a_result_is_read_as_it_was_written(tmp_path: Path) -> None:
    write(tmp_path / "result.json", RESULT)
    assert read(tmp_path / "result.json") == RESULT


def test_the_report_counts_and_stays_in_its_lines(tmp_path: Path) -> None:
    text = report(tmp_path, RESULT)
    assert text.splitlines()[-1] == (
        "of 3 methods: 1 train with TLLM, 1 are refused by TLLM, 0 fail with TLLM, 1 do not train in the host either"
    )
    assert len(text.splitlines()) == 1 + 2 + 3 + 1
    assert "no method was tried: no torch" in report(tmp_path, CheckResult((), problem="no torch"))


def test_hosts_are_told_apart_by_what_they_hold(tmp_path: Path) -> None:
    for name, held in (("mdistiller", "mdistiller/x.py"), ("repdistiller", "train_student_cifar.py")):
        path = tmp_path / name / held
        path.parent.mkdir(parents=True)
        path.touch()
        assert host_of(tmp_path / name) == name
    (tmp_path / "none").mkdir()
    with pytest.raises(ConfigError, match="to be a checkout of mdistiller, of RepDistiller or of a descendant"):
        host_of(tmp_path / "none")
