"""Policies in runs of the embedded host: decided once, recorded, resumed, shown, and the same in every process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.hosts.digits_runs import assert_same_run, load_latest, make_config, train
from tllm_plugin.cli import main
from tllm_plugin.core.errors import ConfigError
from tllm_plugin.core.outputs import logits_of
from tllm_plugin.core.predictions import class_means
from tllm_plugin.hosts.embedded.data import load_bundle
from tllm_plugin.hosts.embedded.networks import load_teacher
from tllm_plugin.hosts.embedded.trainer import BaseTrainer
from tllm_plugin.hosts.host_session import HostSession
from tllm_plugin.runs.run_folder import RunFolder
from tllm_plugin.search.shared_prefix import run_sharing

DETECTOR = ("TLLM.DETECTOR.TYPE", "none")
POLICY = (*DETECTOR, "TLLM.POLICY", "equal_strength", "TLLM.POLICY_OPTIONS.LEVEL", "max", "EXPERIMENT.NAME", "policy")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("policies")


@pytest.fixture(scope="module")
def run(folder: Path) -> RunFolder:
    return train(folder, *POLICY)


def options_of(folder: Path) -> tuple[str, str]:
    """Return the option that names the teacher that `run` has trained."""
    return "DISTILLER.TEACHER_CHECKPOINT", str(next((folder / "digits").glob("teacher-*")) / "student_latest")


def test_weights_are_those_of_the_teacher_on_training_images(run: RunFolder, folder: Path) -> None:
    record = run.read_policy()
    cfg = make_config(folder, *POLICY)
    bundle, cpu = load_bundle(cfg), torch.device("cpu")
    teacher = load_teacher(cfg, options_of(folder)[1], bundle, cpu)
    held = set(run.read_split().holdout)
    rows = torch.tensor([index for index in range(len(bundle.train_labels)) if index not in held])
    batches = list(bundle.eval_loader(rows, batch_size=500, device=cpu, split="train"))
    with torch.no_grad():
        logits = torch.cat([logits_of(teacher(image)) for image, _ in batches])
    labels = torch.cat([label for _, label in batches])
    own = (logits / cfg.KD.TEMPERATURE).softmax(1).gather(1, labels[:, None]).squeeze(1)
    strengths = class_means(own, labels, 10)
    assert record.temperature == cfg.KD.TEMPERATURE and record.options == {"level": "max", "seed": 0}
    assert [item.name for item in record.classes] == list(bundle.class_names)
    torch.testing.assert_close(torch.tensor([item.strength for item in record.classes]), strengths.float())
    weights = torch.tensor([item.weight for item in record.classes])
    torch.testing.assert_close(weights, ((1 - strengths.max()) / (1 - strengths)).float())
    assert torch.equal(load_latest(run)["model"]["teaching_weights"], weights)
    assert run.read_config().count("POLICY: equal_strength") == 1


@pytest.mark.parametrize("policy", ["", "withdrawal"])
def test_without_a_policy_there_is_no_record(policy: str, run: RunFolder, folder: Path) -> None:
    name = f"kd-{policy}"
    plain = train(folder, *DETECTOR, *options_of(folder), "TLLM.POLICY", policy, "EXPERIMENT.NAME", name)
    assert not plain.policy_json.exists()
    state = load_latest(plain)["model"]
    assert torch.equal(state["teaching_weights"], torch.ones(10)) and "policy" not in state["_extra_state"]["carried"]


def test_a_resumed_run_is_the_same_and_asks_the_teacher_once(
    run: RunFolder, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    original, train_iter = HostSession._ask_teacher, BaseTrainer.train_iter

    def counted(self: HostSession, loader: Any, temperature: float = 1.0) -> Any:
        asked.append(temperature)
        return original(self, loader, temperature)

    def cut(self: BaseTrainer, image: Any, target: Any, index: Any, epoch: int) -> Any:
        if epoch == 3:
            raise KeyboardInterrupt
        return train_iter(self, image, target, index, epoch)

    monkeypatch.setattr(HostSession, "_ask_teacher", counted)
    with monkeypatch.context() as interrupted, pytest.raises(KeyboardInterrupt):
        interrupted.setattr(BaseTrainer, "train_iter", cut)
        train(folder / "again", *POLICY, *options_of(folder), "LOG.SAVE_SECONDS", "0")
    assert asked == [4.0, 1.0]
    resumed = train(folder / "again", *POLICY, *options_of(folder), "LOG.SAVE_SECONDS", "0", resume=True)
    assert asked == [4.0, 1.0, 1.0]
    assert_same_run(run, resumed)
    assert resumed.policy_json.read_bytes() == run.policy_json.read_bytes()
    again = train(folder / "again", *POLICY, *options_of(folder), overwrite=True)
    assert_same_run(run, again)


def test_flags_come_on_top_and_a_fork_keeps_the_weights(run: RunFolder, folder: Path) -> None:
    late = ("TLLM.DETECTOR.TYPE", "after", "TLLM.DETECTOR.AFTER_FRACTION", "0.7", "EXPERIMENT.NAME", "policy-after")
    options = (*POLICY, *late, *options_of(folder))
    alone = train(folder / "alone", *options)
    state = load_latest(alone)["model"]["teaching_weights"]
    assert torch.equal(state, torch.zeros(10))
    assert alone.policy_json.read_bytes() == run.policy_json.read_bytes()

    kept = train(folder / "shared", *POLICY, *options_of(folder), "LOG.SAVE_CHECKPOINT_FREQ", "1")
    cfg = make_config(folder / "shared", *options, "LOG.SAVE_CHECKPOINT_FREQ", "1")
    shared = run_sharing([kept], cfg, load_bundle(cfg))
    assert torch.equal(load_latest(shared)["model"]["teaching_weights"], torch.zeros(10))
    assert_same_run(alone, shared)
    assert shared.policy_json.read_bytes() == alone.policy_json.read_bytes()


def test_a_policy_needs_a_teacher_and_options_are_checked(tmp_path: Path) -> None:
    for options, message in (
        (
            ("DISTILLER.TYPE", "NONE"),
            "Expected a teacher for `TLLM.POLICY` equal_strength, but `DISTILLER.TYPE` is NONE",
        ),
        (
            ("TLLM.POLICY", "equal"),
            "Expected `TLLM.POLICY` to be one of , constant, equal_strength, permuted, withdrawal",
        ),
        (("TLLM.POLICY_OPTIONS.LEVEL", "1.5"), r"Expected `TLLM.POLICY_OPTIONS.LEVEL` to be mean, max or a number in"),
        (("TLLM.POLICY_OPTIONS.SEED", "-1"), "Expected `TLLM.POLICY_OPTIONS.SEED` to be at least 0, but got -1"),
    ):
        with pytest.raises(ConfigError, match=message):
            make_config(tmp_path, *POLICY, *options)
    with pytest.raises(ConfigError, match="Expected a teacher for `TLLM.POLICY` constant, but the distiller has none"):
        train(tmp_path, *DETECTOR, "DISTILLER.TYPE", "SFTN", "TLLM.POLICY", "constant")


def test_show_prints_strengths_and_weights(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", str(run.log_folder)]) == 0
    shown = capsys.readouterr().out
    record = run.read_policy()
    first = record.classes[0]
    line = next(line for line in shown.splitlines() if f"{first.strength:.3f}" in line)
    assert line.split()[1] == first.name and f"{first.weight:.3f}" in line
    less = sum(item.weight < 1 for item in record.classes)
    assert f"policy `equal_strength`: {less} of 10 classes are taught less" in " ".join(shown.split())
