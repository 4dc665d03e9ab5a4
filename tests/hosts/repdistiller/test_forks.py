"""Descendants of RepDistiller, by a stand-in that does what they do otherwise."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.hosts.repdistiller import fork
from tests.hosts.repdistiller.processes import LAUNCHER, assert_same_results, kill_when, python, state_of
from tllm_plugin.core.errors import ConfigError
from tllm_plugin.hosts.host_check import BROKEN, REFUSED, TRAINS, check_checkout
from tllm_plugin.hosts.repdistiller.launch import find_script
from tllm_plugin.hosts.repdistiller.script import add_tllm, is_patched
from tllm_plugin.runs.run_folder import RunFolder


def test_check_says_of_every_method_what_becomes_of_it(tmp_path: Path) -> None:
    root = fork.write_fork(tmp_path)
    before = sorted((path, path.read_bytes()) for path in root.rglob("*") if path.is_file())
    result = check_checkout(root)
    assert not result.problem
    verdicts = {method.method: (method.verdict, method.reason) for method in result.methods}
    assert set(verdicts) == set(fork.METHODS)
    trains = {name for name, (verdict, _) in verdicts.items() if verdict == TRAINS}
    assert trains == {"kd", "mine", "srrl", "coupled", "fixed", "projector"}, verdicts
    assert verdicts["rescaled"][0] == REFUSED and verdicts["fails"][0] == BROKEN
    assert "to judge logits that the student or a module of the method returns" in verdicts["rescaled"][1]
    assert "no_such_loss" in verdicts["fails"][1]
    facts = result.facts
    assert facts["script"] == "distil/train_student_small.py" and "train(epoch, train_loader" in facts["epoch"]
    assert sorted((path, path.read_bytes()) for path in root.rglob("*") if path.is_file()) == before


def test_a_loop_that_clips_gradients_is_refused_before_training(tmp_path: Path) -> None:
    result = check_checkout(fork.write_fork(tmp_path, loop="train_clipped"))
    (reason,) = {method.reason for method in result.methods if method.method in ("kd", "mine")}
    assert "Expected train_clipped to compute a loss, call `backward` and step, but it does more" in reason
    assert "torch.nn.utils.clip_grad_norm_(module_list[0].parameters(), 0.1)" in reason


@pytest.fixture
def launched(tmp_path: Path) -> tuple[dict[str, str], list[str]]:
    """The environment of the launcher, and words for a run."""
    root = fork.write_fork(tmp_path / "fork", script="train_student.py")
    path = tmp_path / "tiny_vanilla" / "last.pth"
    path.parent.mkdir()
    namespace: dict[str, object] = {}
    exec(fork.MODELS, namespace)
    torch.manual_seed(3)
    torch.save({"model": namespace["Tiny"]().state_dict()}, path)  # type: ignore[operator]
    env = {**os.environ, "TLLM_REPDISTILLER_ROOT": str(root), "OMP_NUM_THREADS": "1"}
    words = ["--path-t", str(path), "--model_s", "tiny", "--epochs", "3", "--tllm_seed", "0"]
    return env, words


FLAGGED = (
    *("--tllm", "--tllm_detector", "fixed", "--tllm_holdout", "0.84"),
    *("--tllm_classes", *map(str, range(0, 100, 3))),
)


def test_a_killed_run_continues_exactly(launched: tuple[dict[str, str], list[str]], tmp_path: Path) -> None:
    env, words = launched
    words = [*LAUNCHER, *words, "--distill", "mine", *FLAGGED]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert "trained 2 True True True" in python(whole, env, *words).stdout
    kill_when("trained 2", killed, env, *words)
    runs = [RunFolder.inside(next((folder / "save").iterdir())) for folder in (whole, killed)]
    assert state_of(runs[1])["epoch"] == 2
    python(killed, env, *words, "--tllm_resume")
    assert_same_results(*runs)
    assert len(runs[1].read_flags().flagged) == 34


def test_a_projector_is_scored_by_what_it_predicts(launched: tuple[dict[str, str], list[str]], tmp_path: Path) -> None:
    env, words = launched
    python(tmp_path / "run", env, *LAUNCHER, *words, "--distill", "projector", *FLAGGED)
    run = RunFolder.inside(next((tmp_path / "run" / "save").iterdir()))
    best = torch.load(run.student_best_holdout, weights_only=True)
    namespace: dict[str, Any] = {}
    exec(fork.MODELS + fork.DATA, namespace)
    student, projector = namespace["Tiny"]().eval(), namespace["Projector"]()
    student.load_state_dict(best["model"])
    projector.load_state_dict(best["predictor"])
    data = namespace["Small"](600, namespace["scaled"])
    held_out = run.read_split().holdout
    image = torch.stack([data[place][0] for place in held_out])
    label = torch.tensor([data[place][1] for place in held_out])
    with torch.no_grad():
        features, own = student(image, is_feat=True)
        right = (projector(features[-1]).argmax(1) == label).float()
    by_class = torch.stack([right[label == place].mean() for place in range(100)])
    assert float(by_class.mean()) == pytest.approx(best["holdout_accuracy"], abs=1e-6)
    assert not torch.equal(own.argmax(1), projector(features[-1]).argmax(1))
    assert run.read_metrics().tested


def test_own_options_and_methods_come_first(launched: tuple[dict[str, str], list[str]], tmp_path: Path) -> None:
    env, words = launched
    python(tmp_path / "a", env, *LAUNCHER, *words, "--distill", "srrl", "--pretrained", "yes")
    python(tmp_path / "b", env, *LAUNCHER, *words, "--distill", "tllm_srrl")
    names = [[path.name for path in (tmp_path / run / "save").iterdir()] for run in "ab"]
    assert names == [["S:tiny_srrl"], ["S:tiny_srrl_feat_weight:1.0_weight:1.0"]]
    unknown = python(tmp_path / "c", env, *LAUNCHER, *words, "--distill", "no_such", check=False)
    assert unknown.returncode == 2 and "invalid choice: 'no_such'" in unknown.stderr
    assert "'mine'" in unknown.stderr and "Traceback" not in unknown.stderr


def test_all_that_is_missing_is_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        add_tllm("import torch\nfor batch in loader:\n    loss.backward()\n", "x.py")
    text = str(caught.value)
    for line in ("run.train(train, epoch, train_loader", "tllm.parse_fork(parser)"):
        assert line in text
    assert "Expected x.py to have the shape of RepDistiller's train_student.py, but it lacks:" in text
    lacking = fork.SCRIPT.replace("validate_distill( val_loader", "validate_distill( held_out").replace(
        "opt.model_name", "opt.title"
    )
    with pytest.raises(ConfigError) as caught:
        add_tllm(lacking, "y.py")
    assert "run.validate(validate, val_loader" in str(caught.value) and "opt.model_name +=" in str(caught.value)
    assert "run.train(" not in str(caught.value)


def test_harmless_edits_do_not_matter() -> None:
    plain = add_tllm(fork.SCRIPT, "x.py").text
    edited = fork.SCRIPT.replace("optimizer, opt)   # c", "optimizer,  opt)  ").replace('"kd":', "'kd':   # first")
    assert edited != fork.SCRIPT
    changed = add_tllm(edited, "x.py").text
    assert is_patched(plain) and plain.count("tllm.") == changed.count("tllm.")
    compile(changed, "x.py", "exec")


def test_the_script_is_found_or_named(tmp_path: Path) -> None:
    root = fork.write_fork(tmp_path)
    assert find_script(root) == root / "distil" / "train_student_small.py"
    fork.write_fork(tmp_path, script="distil/train_student_large.py")
    with pytest.raises(ConfigError, match="but got distil/train_student_large.py, distil/train_student_small.py; name"):
        find_script(root)
    assert find_script(root, "distil/train_student_large.py").name == "train_student_large.py"
    with pytest.raises(ConfigError, match="but it has no gone.py"):
        find_script(root, "gone.py")
