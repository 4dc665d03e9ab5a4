"""The flags: they mirror the config node, and everything that is wrong with them is said at once."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.hosts.repdistiller.short_runs import parse
from tllm_plugin.core.errors import ConfigError
from tllm_plugin.hosts.repdistiller import suffix
from tllm_plugin.hosts.repdistiller.flags import tllm_options
from tllm_plugin.hosts.repdistiller.networks import EXTRA_MODELS, PHOTOGRAPH_MODELS, create_listed
from tllm_plugin.hosts.repdistiller.options import errors_name_flags, node_of
from tllm_plugin.hosts.tllm_node import tllm_node
from tllm_plugin.models import create_model


@pytest.fixture(autouse=True)
def host(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A host whose `model_dict` holds one model."""
    models: dict[str, Any] = {"resnet8": object}
    monkeypatch.setitem(sys.modules, "models", SimpleNamespace(model_dict=models))  # type: ignore[misc]
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    return models


@pytest.fixture
def teacher(tmp_path: Path) -> str:
    path = tmp_path / "resnet8_vanilla" / "last.pth"
    path.parent.mkdir()
    path.touch()
    return str(path)


def keys(node: Any, prefix: str = "") -> set[str]:
    nested = {name for name, value in node.items() if isinstance(value, dict)}
    return {f"{prefix}{name}" for name in set(node) - nested}.union(*(keys(node[n], f"{n}.") for n in nested))


def test_every_key_of_the_node_has_a_flag() -> None:
    # The other two choose an inner distiller and a loop, which here are the host's own flags.
    assert set(tllm_options()) == {f"TLLM.{key}" for key in keys(tllm_node()) - {"DISTILLER", "TRAINER"}}


def test_defaults_are_the_nodes(monkeypatch: pytest.MonkeyPatch, teacher: str) -> None:
    options = parse(monkeypatch, "--path_t", teacher)
    assert node_of(options) == tllm_node() and suffix(options) == "" and not options.tllm


def test_values_arrive(monkeypatch: pytest.MonkeyPatch, teacher: str) -> None:
    words = "--tllm --tllm_detector fixed --tllm_classes 3 apple --tllm_eta 0.1 --tllm_smoothing 0.2 --tllm_holdout 0.1"
    options = parse(monkeypatch, "--path_t", teacher, *words.split(), "--tllm_warmup", "7")
    node = node_of(options)
    assert (node.DETECTOR.TYPE, node.DETECTOR.CLASSES, node.DETECTOR.ETA) == ("fixed", ["3", "apple"], 0.1)
    assert (node.LABEL_SMOOTHING, node.HOLDOUT.FRACTION, node.DETECTOR.WARMUP_EPOCHS) == (0.2, 0.1, 7)
    assert suffix(options) == "_tllm:fixed"


def test_resume_implies_tllm_and_the_seed_is_set(monkeypatch: pytest.MonkeyPatch, teacher: str) -> None:
    words = ("--path_t", teacher, "--tllm_resume", "--tllm_detector", "none", "--tllm_seed", "5")
    assert parse(monkeypatch, *words).tllm
    drawn = torch.rand(3)
    parse(monkeypatch, *words)
    assert torch.equal(drawn, torch.rand(3))


def test_all_problems_at_once_by_the_names_of_the_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError) as raised:
        parse(monkeypatch, "--tllm", "--tllm_eta", "2", "--tllm_score", "no", "--dataset", "imagefolder")
    lines = str(raised.value).splitlines()
    for line, text in zip(
        lines,
        (
            "Expected `--data_folder` to be a folder that holds train/ and val/",
            "Expected `--path_t` to name the teacher's checkpoint, but got none",
            "Expected `--tllm_score` to be one of accuracy,",
            "Expected `--tllm_eta` to be in (0, 1), but got 2.0",
            "Expected `--tllm_reference` to name the run of a vanilla student",
        ),
        strict=True,
    ):
        assert line.startswith(text)


def test_tllms_flags_without_tllm(monkeypatch: pytest.MonkeyPatch, teacher: str) -> None:
    with pytest.raises(ConfigError, match="Expected `--tllm` with `--tllm_eta`, but got the latter alone"):
        parse(monkeypatch, "--path_t", teacher, "--tllm_eta", "0.1")


def test_a_teacher_whose_path_does_not_name_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, teacher: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("last.pth").touch()
    with pytest.raises(ConfigError, match="or `--model_t` with that name, but got 'last.pth'"):
        parse(monkeypatch, "--path_t", "last.pth")
    assert parse(monkeypatch, "--path_t", "last.pth", "--model_t", "resnet8").model_t == "resnet8"
    with pytest.raises(ConfigError, match="Expected `--path_t` to be a file, but gone/last.pth does not exist"):
        parse(monkeypatch, "--path_t", "gone/last.pth")


@pytest.mark.parametrize(
    ("folder", "name"),
    [("resnet8_vanilla", "resnet8"), ("wrn_28_2_cifar100_lr_0.05", "wrn_28_2"), ("resnet24_1_1_9", "resnet24_1_1_9")],
)
def test_the_folder_names_the_teacher(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, folder: str, name: str) -> None:
    (tmp_path / folder).mkdir()
    (tmp_path / folder / "last.pth").touch()
    assert parse(monkeypatch, "--path_t", str(tmp_path / folder / "last.pth")).model_t == name


def test_a_damaged_teacher_is_refused(monkeypatch: pytest.MonkeyPatch, teacher: str) -> None:
    """The host loads it by itself, and PyTorch does not look at the checksums that it wrote."""
    torch.save({"model": {"weight": torch.arange(1000.0)}}, teacher)
    whole = Path(teacher).read_bytes()
    assert parse(monkeypatch, "--path_t", teacher).path_t == teacher
    Path(teacher).write_bytes(whole[:2000] + bytes([whole[2000] ^ 1]) + whole[2001:])
    with pytest.raises(ConfigError, match="last.pth to be the teacher's checkpoint, but it is truncated, damaged"):
        parse(monkeypatch, "--path_t", teacher)


def test_our_models_join_the_hosts(monkeypatch: pytest.MonkeyPatch, host: dict[str, Any]) -> None:
    assert parse(monkeypatch, "--model", "wrn_28_2", teacher=True).model == "wrn_28_2"
    assert host["resnet8"] is object and set(host) == {"resnet8", *EXTRA_MODELS, *PHOTOGRAPH_MODELS}
    with pytest.raises(SystemExit):
        parse(monkeypatch, "--model", "wrn_1_1", teacher=True)
    with pytest.raises(ConfigError, match="--data_folder"):
        parse(monkeypatch, "--dataset", "imagefolder", teacher=True)


def test_our_models_answer_as_the_hosts_do() -> None:
    model = create_listed("wrn_10_1", num_classes=7).eval()
    plain = create_model("wrn_10_1", num_classes=7).eval()
    plain.load_state_dict(model.state_dict())
    image = torch.randn(2, 3, 32, 32)
    logits, features = plain(image)
    for preact, name in ((False, "feats"), (True, "preact_feats")):
        listed, again = model(image, is_feat=True, preact=preact)
        assert torch.equal(again, logits) and torch.equal(listed[-1], features["pooled_feat"])
        assert all(torch.equal(a, b) for a, b in zip(listed[:-1], features[name], strict=True))
    assert torch.equal(model(image), logits)


def test_errors_of_ours_are_said_plainly_and_by_the_names_of_flags(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], teacher: str
) -> None:
    with pytest.raises(ConfigError) as raised, errors_name_flags():
        raise ConfigError("Expected `TLLM.DETECTOR.ETA` to be smaller")
    parse(monkeypatch, "--path_t", teacher)
    sys.excepthook(ConfigError, raised.value, None)
    assert capsys.readouterr().err == "tllm: Expected `--tllm_eta` to be smaller\n"
    sys.excepthook(ValueError, ValueError("somebody else's"), None)
    assert capsys.readouterr().err == "ValueError: somebody else's\n"
