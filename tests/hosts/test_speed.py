"""`TLLM.SPEED` in runs of the hosts: what is recorded, exact resume, the batches that stay the same, refusals."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from yacs.config import CfgNode

from tests.hosts.conftest import Trained
from tests.hosts.digits_runs import assert_same_run, interrupt_at, make_config, train
from tests.hosts.repdistiller import short_runs
from tllm_plugin.core.errors import ConfigError
from tllm_plugin.hosts.run_spec import ONE_METHOD, ONE_RUN, RunSpec
from tllm_plugin.hosts.tllm_node import check_tllm, tllm_node
from tllm_plugin.runs.run_folder import RunFolder
from tllm_plugin.speed import choice


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Choose bfloat16 without measuring whether it is faster, and remember answers however small the teacher is."""
    monkeypatch.setenv("TLLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("tllm_plugin.speed.steps.choose", _choose)


def _choose(trial: Any, steps: int, measured_on: str) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(choice, "HALF", ("bfloat16",))
        patch.setattr(choice, "SINGLE", ())
        patch.setattr(choice, "STUDENTS", ("bfloat16",))
        patch.setattr(choice, "_MARGIN", 0.0)
        patch.setattr(choice, "_remembering_pays", lambda *given: True)
        return choice.choose(trial, steps, measured_on, share=1e9)


AUTO = ("TLLM.SPEED", "auto")


def test_off_leaves_no_trace(trained: Trained, tmp_path: Path) -> None:
    run = train(tmp_path / "off", *trained.taught, "TLLM.DETECTOR.TYPE", "none")
    assert not run.speed_json.exists()


def test_a_resumed_run_continues_with_its_choice_bit_for_bit(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(tmp_path / "whole", *trained.detecting, *AUTO, "TLLM.MEMORY", "0")
    chosen = whole.read_speed()
    assert (chosen.teacher, chosen.student, chosen.remembers) == ("bfloat16", "bfloat16", True)
    flags = whole.read_flags()
    assert any(item.flagged for item in flags.classes), "without a flag the mixed batches were not tried"
    with monkeypatch.context() as patch:
        interrupt_at(patch, 2, 7)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "parts", *trained.detecting, *AUTO, "TLLM.MEMORY", "0")
    monkeypatch.setattr("tllm_plugin.speed.steps.choose", lambda *given: pytest.fail("it was measured again"))
    parts = train(tmp_path / "parts", *trained.detecting, *AUTO, "TLLM.MEMORY", "0", resume=True)
    assert_same_run(parts, whole)


def test_answers_are_remembered_beside_the_teacher_and_shared(
    trained: Trained, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    options = (*trained.taught, "TLLM.DETECTOR.TYPE", "none", *AUTO, "TLLM.VIEWS", "2")
    one = train(tmp_path / "one", *options)
    files = list(trained.checkpoint.parent.glob("answers-*.bin"))
    assert len(files) == 1
    before = files[0].stat().st_mtime_ns
    two = train(tmp_path / "two", *options)
    assert files[0].stat().st_mtime_ns == before, "the second run had nothing to ask"
    accuracies = [run.read_metrics().test_accuracy for run in (one, two)]
    assert accuracies[0] == accuracies[1]


def test_speed_belongs_to_a_run_and_not_to_its_method() -> None:
    plain, fast, few = (RunSpec.of(make_config("x", *options)) for options in ((), AUTO, (*AUTO, "TLLM.VIEWS", "4")))
    assert plain.differing(fast, ONE_RUN) == ["TLLM.SPEED"] and not plain.differing(fast, ONE_METHOD)
    assert fast.differing(few, ONE_METHOD) == ["TLLM.VIEWS"]
    assert len({spec.prerequisite_digest("resnet8") for spec in (plain, fast, few)}) == 3


def test_options_of_repdistiller_that_an_older_run_lacks_count_as_their_defaults() -> None:
    older, options = RunSpec.of_options({"trial": "0"}), {"trial": "0", "tllm_speed": "off", "tllm_policy": ""}
    assert not older.differing(RunSpec.of_options(options), ONE_RUN)
    assert older.differing(RunSpec.of_options({**options, "tllm_speed": "auto"}), ONE_RUN) == ["tllm_speed"]


def test_views_are_refused_where_images_are_streamed(tmp_path: Path) -> None:
    from tllm_plugin.data.bundle import DataBundle

    assert DataBundle.limited(None, 0) is None  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="Expected images in memory for 3 outcomes"):
        DataBundle.limited(None, 3)  # type: ignore[arg-type]


def test_views_need_batches_that_are_made_on_the_device() -> None:
    cfg = CfgNode({"TLLM": tllm_node()})
    cfg.TLLM.VIEWS = 4
    assert [problem for problem in check_tllm(cfg) if "TLLM.VIEWS" in problem] == [
        "Expected `TLLM.SPEED` exact or auto with `TLLM.VIEWS` 4, because the host's own loader draws all outcomes of "
        "the augmentation, but got off"
    ]
    cfg.TLLM.SPEED = "exact"
    assert not [problem for problem in check_tllm(cfg) if "TLLM.VIEWS" in problem]


def test_repdistiller_with_auto_trains_and_continues(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)

    def run(folder: Path, **how: Any) -> dict[str, torch.Tensor]:
        lists, options = short_runs.prepared(folder, "kd", tllm_speed="auto", tllm_memory=0.0, **how.pop("more", {}))
        short_runs.train(lists, options, **how)
        return {name: value.clone() for name, value in lists.modules[0].state_dict().items()}

    whole = run(tmp_path / "whole")
    found = RunFolder.inside(tmp_path / "whole").read_speed()
    assert (found.teacher, found.student) == ("bfloat16", "bfloat16")
    assert "the host's loader stays: its transforms are" in caplog.text
    run(tmp_path / "parts", stop_after=1)
    parts = run(tmp_path / "parts", more={"tllm_resume": True})
    assert all(value.equal(whole[name]) for name, value in parts.items())


def test_views_are_refused_with_a_loader_that_stays(tmp_path: Path) -> None:
    lists, options = short_runs.prepared(tmp_path, "kd", tllm_speed="auto", tllm_views=4)
    with pytest.raises(ConfigError, match="Expected a stock loader of CIFAR images"):
        short_runs.train(lists, options)
