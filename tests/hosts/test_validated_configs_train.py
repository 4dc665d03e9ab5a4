"""What `tllm validate` accepts `tllm train` can begin with; what either refuses is one line for each problem."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from tests.hosts.digits_runs import CONFIG
from tllm_plugin.core.data_identity import DataIdentity
from tllm_plugin.core.errors import ConfigError, DataError, NonFiniteLossError, TLLMError
from tllm_plugin.data import load_data
from tllm_plugin.hosts import tllm_node
from tllm_plugin.hosts.config_checks import flat, lookup
from tllm_plugin.hosts.embedded import networks, recipe
from tllm_plugin.hosts.embedded.config import check_config, load_config
from tllm_plugin.hosts.embedded.defaults import default_config
from tllm_plugin.hosts.embedded.prerequisites import log_folder, named_reference, needed_teacher
from tllm_plugin.hosts.run_spec import ONE_RUN, RunSpec
from tllm_plugin.runs.run_folder import RunFolder

#: What nobody knows before the data are read; a refusal names one of them.
OF_THE_DATA = (
    "DATASET",
    "DISTILLER.PLANT.CLASSES",
    "TLLM.DETECTOR.CLASSES",
    "HOLDOUT",
    "fraction",
    "batch_size",
    "the reference run",
)
NETWORKS = ["digits_student", "digits_teacher", "resnet8x4", "ShuffleV1", "nonsense"]
WILD: list[Any] = [
    *(0, 1, -1, 2, 7, 10**6, 2**31, 2**53 + 1, 2**63 - 1, 2**63, -(2**63) - 1, 10**30, 10**400),
    *(0.0, 0.5, 1.0, 1e-3, 1e-30, 1e-320, 3e38, 1e39, 1e300, -1.0, float("inf"), float("nan")),
    *("", "x", "a/b", "a/../b", "..", ".", "/abs", "a//b", "a/", "~", "~/x", "~nobody/x", "x" * 300, "\u00e9" * 150),
    *("nul\0", "line\nline", "tab\t", "\x1b[31m", "\x85", "\u2028", "\u202e", "\u4e2d", "yes", "007", "'", "[", "${x}"),
    *(True, False, None, [], [0], [1, 2], [10**30], [-1], [1.5], ["a\0"], ["3"], [[1]], [8, 8], [0, 8], [3000, 8]),
    {"A": 1},
]


CHOICES = {
    "DISTILLER.TYPE": ["NONE", "KD", "AT", "FITNET", "SRRL", "CID", "SFTN", "TLLM", "kd"],
    "DISTILLER.STUDENT": NETWORKS,
    "DISTILLER.TEACHER": NETWORKS,
    "DISTILLER.TEACHER_STAGE": ["", "SFTN"],
    "DISTILLER.PLANT.CLASSES": [[], [3, 8], [10], [-1]],
    "SOLVER.TRAINER": ["base", "tllm"],
    "SOLVER.SCHEDULE": ["step", "one_cycle"],
    "TLLM.DISTILLER": ["KD", "AT", "FITNET", "CID"],
    "TLLM.DETECTOR.TYPE": ["none", "all", "after", "fixed", "reference", "imitation", "teaching_curve"],
    "TLLM.DETECTOR.SCORE": ["accuracy", "agreement", "true_prob", "reciprocal_rank"],
    "TLLM.DETECTOR.CLASSES": [[3], ["3", "8"], [11], ["no.json"]],
    "FITNET.HINT_LAYER": [0, 1, 2, 3, 4, 5, 9],
    "RUNTIME.DEVICE": ["cpu", "gpu"],
}
#: Fixed, so that the test needs neither files nor another device.
FIXED = ("DATASET.TYPE", "DATASET.PATH", "DATASET.DOWNLOAD", "RUNTIME.DEVICE", "RUNTIME.COMPILE", "LOG.PREFIX")
KEYS = [key for key in dict(flat(default_config())) if key not in FIXED]


@st.composite
def changes(draw: st.DrawFn) -> dict[str, Any]:
    """Keys with values that fit, or with wild ones."""
    # Not the reference, whose curves are not there.
    found: dict[str, Any] = {"TLLM.DETECTOR.TYPE": "imitation"}
    for key in draw(st.sets(st.sampled_from(list(CHOICES)), max_size=3)):
        found[key] = draw(st.sampled_from(CHOICES[key]))
    for key in draw(st.sets(st.sampled_from(KEYS), max_size=2)):
        found[key] = draw(st.sampled_from(WILD))
    return found


def written(content: dict[str, Any], path: Path) -> Path:
    nested: dict[str, Any] = yaml.safe_load(CONFIG.read_text())
    for key, value in content.items():
        *parents, last = key.split(".")
        node = nested
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    path.write_text(yaml.safe_dump(nested, allow_unicode=True), encoding="utf-8")
    return path


@pytest.fixture
def prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The preparation of a run, but for what other runs would leave behind: a teacher's weights, a reference."""
    bundle = load_data("digits")
    monkeypatch.setattr(recipe, "ensure_trained", lambda cfg, bundle: RunFolder.inside(tmp_path))
    monkeypatch.setattr(networks, "load_weights", lambda network, path: network)
    monkeypatch.setattr(networks, "data_of_checkpoint", lambda path: DataIdentity())
    monkeypatch.setattr(tllm_node, "read_reference", lambda path, holdout, data: holdout)

    def prepare(cfg: Any) -> nn.Module:
        return recipe.prepare(cfg, bundle, resume=False, overwrite=True)

    return prepare


@settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(content=changes())
def test_what_is_accepted_can_be_begun(content: dict[str, Any], prepared: Any, tmp_path: Path) -> None:
    path = written(content, tmp_path / "c.yaml")
    prefix = tmp_path / "output"
    try:
        cfg = load_config(path, ["LOG.PREFIX", str(prefix), "RUNTIME.DEVICE", "cpu"])
    except ConfigError as error:
        for line in str(error).splitlines():
            assert line.startswith("Expected ") and "\x1b" not in line and len(line) < 3000
        return
    # What is written down is what is read again, by this and every later command.
    assert not RunSpec.parse(cfg.dump()).differing(RunSpec.of(cfg), ONE_RUN)
    assert log_folder(cfg).resolve().is_relative_to(prefix.resolve() / "") and log_folder(cfg) != prefix
    needed = [needed_teacher(cfg), named_reference(cfg)[1]]
    for other in filter(None, needed):
        assert check_config(other) == []
        assert log_folder(other).resolve().is_relative_to(prefix.resolve())
    try:
        trainer = prepared(cfg)
        if max(cfg.SOLVER.BATCH_SIZE, cfg.DISTILLER.STUDENT != "ShuffleV1") < 100:
            image, target, index = next(iter(trainer.train_loader))
            trainer.distiller.train()
            trainer.train_iter(image, target, index, 1)
        trainer.tf_writer.close()
    except NonFiniteLossError:
        pass  # It is begun, and what comes of it is a result.
    except (ConfigError, DataError) as error:
        assert any(word in str(error) for word in OF_THE_DATA), error
        assert "\n" not in str(error)
    except TLLMError as error:
        assert "no.json" in str(error) and "\n" not in str(error)


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("SOLVER.EPOCHS", 10**30, "in [1, 1000000]"),
        ("SOLVER.BATCH_SIZE", 2**63, "in [1, 2147483647]"),
        ("DATASET.NUM_WORKERS", 10**6, "in [0, 1024]"),
        ("EXPERIMENT.SEED", 2**63, "at most 9223372036854775807"),
        ("SOLVER.LR", 1e39, "at most 3.4e+38"),
        ("KD.LOSS.KD_WEIGHT", 1e300, "at most 3.4e+38"),
        ("SOLVER.LR_DECAY_STAGES", [10**30], "at most 9223372036854775807"),
        ("SOLVER.LR_DECAY_RATE", 1e20, "to keep the learning rate below"),
        ("EXPERIMENT.NAME", "a\0b", "text without control characters"),
        ("EXPERIMENT.TAG", "a\x1b[31m", "text without control characters"),
        ("DATASET.PATH", "a\nb", "text without control characters"),
        ("TLLM.DETECTOR.CLASSES", ["a\x07"], "a list of text without control characters"),
        ("EXPERIMENT.NAME", "../../elsewhere", "the name of a folder below LOG.PREFIX"),
        ("EXPERIMENT.NAME", "a/../../b", "the name of a folder below LOG.PREFIX"),
        ("EXPERIMENT.NAME", "/tmp/x", "the name of a folder below LOG.PREFIX"),
        ("EXPERIMENT.PROJECT", "..", "the name of a folder below LOG.PREFIX"),
        ("EXPERIMENT.PROJECT", "/tmp", "the name of a folder below LOG.PREFIX"),
        ("EXPERIMENT.PROJECT", "", "the name of a folder below LOG.PREFIX"),
        ("EXPERIMENT.NAME", "x" * 300, "at most 200 bytes"),
        ("DATASET.PATH", "~nobody-of-that-name/x", "the home of a user"),
        ("LOG.PREFIX", "~nobody-of-that-name/x", "the home of a user"),
    ],
)
def test_what_training_would_fail_on_is_refused_before(key: str, value: Any, told: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(written({"SOLVER.SCHEDULE": "step", key: value}, tmp_path / "c.yaml"))
    (line,) = str(caught.value).splitlines()
    assert f"`{key}` " in line and told in line


@pytest.mark.parametrize(("key", "value"), [("FITNET.HINT_LAYER", 9), ("FITNET.INPUT_SIZE", [1, 1])])
def test_layers_that_a_distiller_needs_are_looked_for(key: str, value: Any, tmp_path: Path) -> None:
    networks = {"DISTILLER.TYPE": "FITNET", "DISTILLER.STUDENT": "vgg8", "DISTILLER.TEACHER": "vgg13"}
    load_config(written(networks, tmp_path / "c.yaml"))
    before = torch.get_rng_state()
    with pytest.raises(ConfigError, match=f"Expected `{key}` to be "):
        load_config(written({**networks, key: value}, tmp_path / "c.yaml"))
    assert torch.equal(torch.get_rng_state(), before), "nothing is drawn for it"


@pytest.mark.parametrize("key", ["LOG.PREFIX", "DISTILLER.TEACHER_CHECKPOINT", "TLLM.DETECTOR.REFERENCE"])
def test_homes_are_expanded(key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "file").touch()
    for cfg in (load_config(written({key: "~/file"}, tmp_path / "c.yaml")), load_config("~/c.yaml", [key, "~/file"])):
        assert lookup(cfg, key) == str(tmp_path / "file")
