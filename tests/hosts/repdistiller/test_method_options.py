"""The flags of SRRL, CID and SFTN: defaults by pair, and every flag that would have no effect is refused."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tllm_plugin.core.errors import ConfigError
from tllm_plugin.hosts.options import as_node, table
from tllm_plugin.hosts.repdistiller import METHODS, parse_student, parse_teacher, suffix
from tllm_plugin.hosts.repdistiller.checkpoint import plain_options, read_state
from tllm_plugin.hosts.repdistiller.method_flags import (
    _CID_WEIGHTS,
    student_node,
    student_options,
    teacher_node,
    teacher_options,
)
from tllm_plugin.hosts.repdistiller.networks import extend_models
from tllm_plugin.methods import ContextStudent
from tllm_plugin.runs.run_folder import RunFolder

MODELS = ("resnet8", "resnet20", "resnet56", "wrn_40_2", "wrn_40_4", "wrn_16_2", "ResNet50", "MobileNetV2", "vgg8")


@pytest.fixture(autouse=True)
def host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "models", SimpleNamespace(model_dict=dict.fromkeys(MODELS, object)))  # type: ignore[misc]
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)


@pytest.fixture
def parse(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    def student(*words: str, teacher: str = "resnet56") -> argparse.Namespace:
        checkpoint = tmp_path / f"{teacher}_cifar100" / "last.pth"
        checkpoint.parent.mkdir(exist_ok=True)
        checkpoint.exists() or checkpoint.touch()
        parser = argparse.ArgumentParser()
        parser.add_argument("--dataset", default="cifar100", choices=["cifar100"])
        parser.add_argument("--distill", default="kd", choices=["kd"])
        for name in ("--path_t", "--model_t", "--model_s"):
            parser.add_argument(name)
        for letter, name, default in (("r", "gamma", 1), ("a", "alpha", 0), ("b", "beta", 0), ("k", "kd_T", 4)):
            parser.add_argument(f"-{letter}", f"--{name}", type=float, default=default)
        monkeypatch.setattr(sys, "argv", ["train.py", "--path_t", str(checkpoint), "--model_s", "resnet20", *words])
        return parse_student(parser)

    return student


@pytest.fixture
def parse_stage(monkeypatch: pytest.MonkeyPatch) -> Any:
    def teacher(*words: str) -> argparse.Namespace:
        parser = argparse.ArgumentParser()
        parser.add_argument("--dataset", default="cifar100", choices=["cifar100"])
        parser.add_argument("--model", default="resnet56", choices=["resnet56"])
        monkeypatch.setattr(sys, "argv", ["train.py", *words])
        return parse_teacher(parser)

    return teacher


def keys(node: Any, prefix: str = "") -> set[str]:
    nested = {name for name, value in node.items() if isinstance(value, dict)}
    return {f"{prefix}{name}" for name in set(node) - nested}.union(*(keys(node[n], f"{n}.") for n in nested))


def test_every_key_of_the_nodes_has_a_flag(parse: Any, parse_stage: Any) -> None:
    options, defaults = {**student_options(), **teacher_options()}, as_node(table())
    nodes = {name: defaults[name] for name in ("SRRL", "CID", "SFTN")}
    assert set(options) == {f"{name}.{key}" for name, node in nodes.items() for key in keys(node)}
    assert len({option.flag for option in options.values()}) == len(options)
    for method in METHODS:
        assert student_node(parse("--distill", method)) == {name: nodes[name] for name in ("SRRL", "CID")}
    assert nodes["SFTN"] == teacher_node(parse_stage("--sftn", "--model_s", "resnet20")).SFTN


@pytest.mark.parametrize(
    ("teacher", "student", "weights"),
    [
        ("wrn_40_2", "wrn_16_2", (1.0, 65.0, 1.0)),
        ("wrn_40_4", "wrn_16_2", (1.0, 55.0, 0.1)),
        ("resnet56", "resnet20", (1.0, 10.0, 1.0)),
        ("ResNet50", "MobileNetV2", (1.0, 33.0, 0.1)),
        ("ResNet50", "vgg8", (1.0, 8.0, 2.0)),
        ("ResNet50", "resnet8", (1.0, 10.0, 1.0)),
    ],
)
def test_weights_of_cid_are_its_papers(
    parse: Any, teacher: str, student: str, weights: tuple[float, float, float]
) -> None:
    options = parse("--distill", "cid", "--model_s", student, teacher=teacher)
    assert (options.cid_a, options.cid_b, options.cid_c) == weights
    assert (options.cid_warmup_epochs, options.nesterov, student_node(options).CID.TEMPERATURE) == (20, True, 4.0)
    assert suffix(options) == "_a:{}_b:{}_c:{}".format(*weights)
    assert parse("--distill", "cid", "--cid_b", "7", teacher=teacher).cid_b == 7.0


def test_the_host_has_every_pair_of_cids_paper(real: SimpleNamespace) -> None:
    models = dict(real.model_dict)
    extend_models(models)
    assert len(_CID_WEIGHTS) == 5 and {name for pair in _CID_WEIGHTS for name in pair} <= models.keys()


def test_values_arrive(parse: Any, parse_stage: Any) -> None:
    words = "--distill cid --kd_T 3 --cid_a 2 --cid_b 3 --cid_c 4 --cid_warmup_epochs 5 --no-nesterov --tllm"
    options = parse(*words.split(), "--tllm_detector", "all")
    node = student_node(options).CID
    assert node.LOSS == {"KD_WEIGHT": 2.0, "SAMPLE_WEIGHT": 3.0, "CLASS_WEIGHT": 4.0}
    assert (node.TEMPERATURE, node.WARMUP_EPOCHS, options.nesterov) == (3.0, 5, False)
    assert suffix(options) == "_a:2.0_b:3.0_c:4.0_tllm:all"
    options = parse(*["--distill", "srrl", "-r", "0.5", "--srrl_feat_weight", "2", "--srrl_weight", "3"])
    assert student_node(options).SRRL.LOSS == {"CE_WEIGHT": 0.5, "FEAT_WEIGHT": 2.0, "REGRESSION_WEIGHT": 3.0}
    assert suffix(options) == "_feat_weight:2.0_weight:3.0" and not options.nesterov
    assert parse("--distill", "kd", "--nesterov").nesterov and suffix(parse("--distill", "kd", "-b", "2")) == ""
    words = "--sftn --model_s resnet20 --sftn_T 2 --sftn_ce_weight 3 --sftn_kl_weight 4 --sftn_branch_ce_weight 5"
    stage = parse_stage(*words.split())
    assert teacher_node(stage).SFTN.LOSS == {"CE_WEIGHT": 3.0, "KL_WEIGHT": 4.0, "BRANCH_CE_WEIGHT": 5.0}
    assert teacher_node(stage).SFTN.TEMPERATURE == 2.0 and suffix(stage) == "_sftn:resnet20"
    assert suffix(parse_stage()) == ""


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--distill kd --cid_b 3", "Expected `--distill cid` with `--cid_b`, but got --distill kd"),
        ("--distill cid --srrl_weight 1", "Expected `--distill srrl` with `--srrl_weight`, but got --distill cid"),
        (
            "--distill cid -b 65",
            "Expected no `-b` with --distill cid, whose own options are `--cid_a`, `--cid_b`, .*65.0",
        ),
        ("--distill cid -r 2", "Expected no `-r` with --distill cid, .*, but got 2.0"),
        ("--distill srrl -a 0.9", "Expected no `-a` with --distill srrl, whose own options are `--srrl_feat_weight`"),
        ("--distill srrl --srrl_weight -1", "Expected `--srrl_weight` to be at least 0, but got -1.0"),
        ("--distill cid --cid_warmup_epochs 0", "Expected `--cid_warmup_epochs` to be at least 1, but got 0"),
        ("--distill cid --kd_T 0", "Expected `--kd_T` to be more than 0, but got 0.0"),
    ],
)
def test_what_would_have_no_effect_or_no_sense_is_refused(parse: Any, words: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(*words.split())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--sftn", "Expected `--model_s` to name the student for --sftn, but got none"),
        ("--model_s resnet20", "Expected `--sftn` with `--model_s`, but got the latter alone"),
        ("--sftn_kl_weight 2", "Expected `--sftn` with `--sftn_kl_weight`, but got the latter alone"),
        ("--sftn --model_s resnet20 --sftn_T 0", "Expected `--sftn_T` to be more than 0, but got 0.0"),
    ],
)
def test_options_of_the_teacher_stage(parse_stage: Any, words: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_stage(*words.split())


def test_a_student_of_cid_is_refused_as_a_teacher(parse: Any, tmp_path: Path) -> None:
    network = torch.nn.Linear(2, 3)
    state = ContextStudent(network, feature_dim=2, num_classes=3, temperature=4.0).state_dict()
    (tmp_path / "resnet8_cid").mkdir()
    path = tmp_path / "resnet8_cid" / "best.pth"
    torch.save({"model": state}, path)
    with pytest.raises(
        ConfigError, match=r"`--path_t` to hold the weights of a network, but .*best.pth is of a student of CID"
    ):
        parse("--path_t", str(path))
    torch.save({"model": network.state_dict()}, path)
    assert parse("--path_t", str(path)).model_t == "resnet8"


def test_a_checkpoint_from_before_an_option_existed_can_be_resumed(parse: Any, tmp_path: Path) -> None:
    options = plain_options(parse("--distill", "kd"))
    old = {name: value for name, value in options.items() if not name.startswith(("srrl", "cid", "nesterov"))}
    state = dict.fromkeys(("epoch", "best_acc", "seconds", "wrapper", "optimizer"), 0)
    folder = RunFolder.inside(tmp_path).create()
    torch.save({**state, "version": 1, "options": old}, folder.state)
    assert read_state(folder, options)["options"] == old
    with pytest.raises(ConfigError, match="but these differ: --nesterov"):
        read_state(folder, {**options, "nesterov": True})
