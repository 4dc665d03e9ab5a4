"""What makes two runs the same: what an earlier version wrote and answered holds, key by key."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.hosts.digits_runs import make_config
from tests.hosts.recorded_cases import (
    RECORDED,
    all_names,
    answers_of_embedded,
    answers_of_fork,
    embedded_config,
    fork_config,
)
from tllm_plugin.analysis.loaded_run import load_run
from tllm_plugin.analysis.study import build_study
from tllm_plugin.core.errors import ConfigError
from tllm_plugin.hosts import run_spec
from tllm_plugin.hosts.config_checks import flat
from tllm_plugin.hosts.embedded import recipe, trainer
from tllm_plugin.hosts.embedded.defaults import default_config
from tllm_plugin.hosts.repdistiller.checkpoint import read_state
from tllm_plugin.hosts.run_spec import MARKS, ONE_METHOD, ONE_RUN, Mark, RunSpec
from tllm_plugin.methods import METHODS
from tllm_plugin.runs.curves_file import to_state
from tllm_plugin.runs.run_folder import RunFolder

NAMES = json.loads((RECORDED / "names.json").read_text())
KEYS = json.loads((RECORDED / "keys.json").read_text())
#: What is answered otherwise since keys are marked: a vanilla run does not look at the method that others would wrap,
#: and workers of hosts that draw random numbers in them make another beginning (in names they did before).
CHANGED = {
    ("embedded", "TLLM.DISTILLER"): {"reuse vanilla"},
    ("mdistiller", "DATASET.NUM_WORKERS"): {"share"},
}
#: Of the recorded runs.
OPTIONS = (
    *("SOLVER.EPOCHS", "2", "DATASET.NUM_WORKERS", "0", "RUNTIME.DEVICE", "cpu"),
    *("DISTILLER.TEACHER", "digits_student", "TLLM.DETECTOR.CONFIDENCE", "0"),
)
#: Keys of the recorded version that are spelled otherwise by now.
RESPELLED = {"TLLM.DETECTOR.CONFIDENCE": "TLLM.DETECTOR.FDR"}


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    shutil.copytree(RECORDED / "digits", tmp_path / "digits")
    return tmp_path


def test_names_of_runs_and_searches_are_those_of_earlier_versions() -> None:
    assert all_names() == NAMES
    names = [name for host in NAMES.values() for case in host.values() for name in case.values()]
    assert len({name for name in names if name}) > 40


def test_a_recorded_run_goes_on_with_what_was_trained_for_it(recorded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    epochs = []
    original = trainer.BaseTrainer.train_epoch
    monkeypatch.setattr(
        trainer.BaseTrainer,
        "train_epoch",
        lambda self, epoch: (epochs.append((Path(self.log_path).name, epoch)), original(self, epoch))[1],
    )
    before = {path.name for path in (recorded / "digits").iterdir()}
    with pytest.raises(ConfigError, match=r"these keys differ: KD\.TEMPERATURE, RUNTIME\.DEVICE, TLLM\.DETECTOR\.ETA;"):
        other = ("KD.TEMPERATURE", "2.0", "RUNTIME.DEVICE", "auto", "TLLM.DETECTOR.ETA", "0.3")
        recipe.run(make_config(recorded, *OPTIONS, *other), resume=True)
    cfg = make_config(recorded, *OPTIONS, "LOG.TEST_FREQ", "2", "DATASET.NUM_WORKERS", "1", "EXPERIMENT.TAG", "again")
    run = recipe.run(cfg, resume=True)
    assert epochs == [("kd-digits_student-seed0", 2)] and run.is_finished()
    assert {path.name for path in (recorded / "digits").iterdir()} == before, "nothing beside it was trained"


@pytest.mark.parametrize("host, answers", [("embedded", answers_of_embedded), ("mdistiller", answers_of_fork)])
def test_every_key_means_what_it_meant_to_earlier_versions(host: str, answers: Callable[[str], list[str]]) -> None:
    known = set(dict(flat(embedded_config({}) if host == "embedded" else fork_config({}))))
    spelled = {key: RESPELLED.get(key, key) for key in KEYS[host]}
    assert len(KEYS[host]) > 30 and set(spelled.values()) <= known
    found = {key: set(answers(now)) ^ CHANGED.get((host, key), set()) for key, now in spelled.items()}
    assert found == {key: set(recorded) for key, recorded in KEYS[host].items()}


def test_every_key_of_ours_is_marked() -> None:
    """A new key has to say what it does to a run; new keys of these sections do what their section does."""
    whole = {key for key in MARKS if "." not in key and key.isupper()}
    assert whole == {"SOLVER", "RUNTIME", "LOG", "KD", "AT", "FITNET", "SRRL", "CID", "SFTN"}
    unmarked = []
    for key, _ in flat(default_config()):
        parts = key.split(".")
        if not any(".".join(parts[:end]) in MARKS for end in range(1, len(parts) + 1)):
            unmarked.append(key)
    assert unmarked == [], "mark these in hosts/run_spec.py"
    assert {key.partition(".")[0] for key, _ in flat(default_config())} >= {"TLLM", *METHODS, *whole}


def test_marks_are_of_keys_that_there_are() -> None:
    known = {key for key, _ in flat(default_config())} | {"TLLM.ON"}  # That one is mdistiller's.
    for key in MARKS:
        if "." in key or key.isupper():
            assert any(f"{name}.".startswith(f"{key}.") for name in known), key


def test_what_was_not_recorded_is_as_it_was_before_there_was_the_key() -> None:
    old = RunSpec({"DISTILLER.TYPE": "KD", "TLLM.CE_WEIGHT": 2.0})
    assert not old.value("TLLM.BALANCE") and old.value("TLLM.MIN_ROWS") == 4 and old.get("TLLM.MIN_ROWS") is None
    cfg = old.config()
    assert not cfg.TLLM.BALANCE and cfg.TLLM.CE_WEIGHT == 2.0 and set(cfg.TLLM) == set(default_config().TLLM)
    with pytest.raises(ConfigError, match="Expected `TLLM.BALANCE` to be a value"):
        RunSpec.parse("TLLM: {BALANCE: {X: 1}}")


def test_what_nobody_has_marked_changes_the_weights() -> None:
    spec = RunSpec()
    assert {spec.mark(key) for key in ("SOLVER.WARMUP", "DATASET.NEW", "EXPERIMENT.OWN", "distill")} == {Mark.TRAINING}
    # A vanilla run has no method.
    assert spec.mark("MLKD.WEIGHT") is Mark.TEACHING
    assert spec.mark("LOG.OWN") is Mark.LOOK and spec.mark("TLLM.DETECTOR.OWN") is Mark.DETECTION


def test_a_key_at_what_was_done_before_it_is_in_no_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """The way in which a key is added without another name for anything that is there."""
    monkeypatch.setitem(run_spec._YOUNGER, "SOLVER.NEW", 0)
    monkeypatch.setitem(run_spec._YOUNGER, "TLLM.DETECTOR.NEW", 0.0)
    monkeypatch.setitem(run_spec._BEFORE, "SOLVER.NEW", 0)
    old = RunSpec.of(embedded_config({"DISTILLER.TYPE": "KD"}))
    same = RunSpec({**old.values, "SOLVER.NEW": 0, "TLLM.DETECTOR.NEW": 0.0})
    other = RunSpec({**old.values, "SOLVER.NEW": 1, "TLLM.DETECTOR.NEW": 0.5})
    for name in (RunSpec.beginning_digest, RunSpec.trial_digest, lambda spec: spec.prerequisite_digest("resnet8")):
        assert name(old) == name(same) != name(other)


def test_repdistillers_options_are_those_of_a_recorded_run(tmp_path: Path) -> None:
    run = RunFolder.inside(tmp_path).create()
    shutil.copy(RECORDED / "repdistiller" / "config.yaml", run.config_yaml)
    spec, options = RunSpec.read(run), json.loads((RECORDED / "repdistiller" / "options.json").read_text())
    assert not spec.is_embedded and spec.differing(RunSpec.of_options(options), frozenset(ONE_RUN)) == []
    state = dict.fromkeys(("epoch", "best_acc", "seconds", "wrapper", "optimizer"), 0)
    torch.save({**state, "version": 1, "options": options}, run.state)
    now = {**options, "path_t": "elsewhere/last.pth", "print_freq": 7, "tllm_resume": True, "save_folder": "save/x"}
    assert read_state(run, now)["options"] == options
    with pytest.raises(ConfigError, match="but these differ: --num_workers, --tllm_eta, --tllm_seed; resume"):
        read_state(run, {**now, "tllm_eta": 0.1, "tllm_seed": 1, "num_workers": 2})
    seeds = RunSpec.of_options({**spec.values, "tllm_seed": 1, "save_folder": "save/x", "path_t": "y", "trial": "2"})
    assert spec.differing(seeds, ONE_METHOD) == []
    assert spec.differing(RunSpec.of_options({**spec.values, "tllm_eta": 0.1}), ONE_METHOD) == ["tllm_eta"]


def test_recorded_runs_are_grouped_by_compare(recorded: Path) -> None:
    """One run as it is, as another seed on another machine, with another dose, and copied."""
    source = RunFolder.inside(next((recorded / "digits").glob("vanilla-*")))
    text = source.read_config()
    changes: dict[str, dict[str, str]] = {
        "one": {},
        "seed": {"SEED: 0\n  TAG": "SEED: 1\n  TAG", "DEVICE: cpu": "DEVICE: auto", "NUM_WORKERS: 0": "NUM_WORKERS: 4"},
        "dose": {"KD_WEIGHT: 0.9": "KD_WEIGHT: 0.5"},
    }
    runs = []
    for name, changed in changes.items():
        run = RunFolder.inside(recorded / name)
        shutil.copytree(source.log_folder, run.log_folder)
        # With a teacher, so that it is a method.
        new = text.replace("  TYPE: NONE\n", "  TYPE: KD\n")
        for old, instead in changed.items():
            assert old in new
            new = new.replace(old, instead)
        run.write_config(new)
        state = to_state(run.read_curves())
        state["true_prob"] = state["true_prob"] // (1 + len(runs))
        run.write_curves(state)
        runs.append(run)
    shutil.copytree(runs[0].log_folder, recorded / "copy")
    study = build_study([load_run(run.path) for run in (source, *runs, RunFolder.inside(recorded / "copy"))])
    assert [(method.label, [run.name for run in method.runs]) for method in study.methods] == [
        ("KD, KD_WEIGHT 0.9", ["one", "seed"]),
        ("KD, KD_WEIGHT 0.5", ["dose"]),
    ]
    assert [run.seed for run in study.methods[0].runs] == [0, 1] and [run.method for run in study.vanilla] == [
        "vanilla"
    ]
