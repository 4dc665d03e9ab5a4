"""Configs: every problem is named, all of them at once, and nothing but a ConfigError comes out."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from yacs.config import CfgNode

from tests.hosts.digits_runs import CONFIG
from tllm_plugin.core.errors import ConfigError
from tllm_plugin.hosts.config_checks import lookup
from tllm_plugin.hosts.embedded.config import load_config
from tllm_plugin.hosts.embedded.defaults import default_config

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = sorted((ROOT / "configs/tllm/embedded").rglob("*.yaml"))  # all configs: tests/packaging/test_configs_hold.py


def problems_of(path: Path | str, *options: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_config(path, options)
    return str(caught.value).splitlines()


def test_configs_are_found() -> None:
    assert CONFIG in CONFIGS


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_config_loads_and_opens_with_its_command(path: Path) -> None:
    load_config(path)
    first_line = path.read_text(encoding="utf-8").splitlines()[0]
    assert first_line.startswith("#") and path.relative_to(ROOT).as_posix() in first_line


def test_importing_the_config_alone_is_enough() -> None:
    code = f"from tllm_plugin.hosts.embedded.config import load_config; load_config({str(CONFIG)!r})"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("TLLM.ETTA", "0.1", "Expected `TLLM key` to be one of BALANCE, CE_WEIGHT, DETECTOR, DISTILLER,"),
        ("TLLM.DETECTOR.ETTA", "0.1", "Expected `TLLM.DETECTOR key` to be one of AFTER_FRACTION, CLASSES,"),
        ("SOLVR.LR", "0.1", "Expected `top-level key` to be one of AT, CID, DATASET, DISTILLER, EXPERIMENT,"),
        ("SOLVER.LRR", "0.1", "Expected `SOLVER key` to be one of ACCUMULATE, BATCH_SIZE, EPOCHS, LR,"),
        ("SOLVER.LR.X", "0.1", "Expected `SOLVER.LR` to be a number, but got {'X': 0.1}"),
        ("SOLVER", "3", "Expected `SOLVER` to hold keys and values, but got 3"),
        ("TLLM.DETECTOR.ETA", "0", "Expected `TLLM.DETECTOR.ETA` to be in (0, 1), but got 0.0"),
        ("TLLM.DETECTOR.ETA", "1", "Expected `TLLM.DETECTOR.ETA` to be in (0, 1), but got 1.0"),
        ("TLLM.DETECTOR.ETA", "-0.1", "Expected `TLLM.DETECTOR.ETA` to be in (0, 1), but got -0.1"),
        ("TLLM.DETECTOR.ETA", ".nan", "Expected `TLLM.DETECTOR.ETA` to be in (0, 1), but got nan"),
        ("TLLM.DETECTOR.ETA", "five", "Expected `TLLM.DETECTOR.ETA` to be a number, but got 'five'"),
        ("TLLM.DETECTOR.ETA", "true", "Expected `TLLM.DETECTOR.ETA` to be a number, but got True"),
        ("TLLM.DETECTOR.ETA", "9" * 400, "Expected `TLLM.DETECTOR.ETA` to be a number, but got 999"),
        ("TLLM.DETECTOR.CONFIDENCE", "1", "Expected `TLLM.DETECTOR.CONFIDENCE` to be in [0, 1), but got 1.0"),
        ("TLLM.DETECTOR.CONFIDENCE", "high", "Expected `TLLM.DETECTOR.CONFIDENCE` to be a number, but got 'high'"),
        ("TLLM.DETECTOR.FDR", "0", "Expected `TLLM.DETECTOR.FDR` to be in (0, 1], but got 0.0"),
        ("TLLM.HOLDOUT.FRACTION", "0", "Expected `TLLM.HOLDOUT.FRACTION` to be in (0, 1), but got 0.0"),
        ("TLLM.MIN_ROWS", "0", "Expected `TLLM.MIN_ROWS` to be at least 1, but got 0"),
        (
            "DISTILLER.TYPE",
            "DK",
            "Expected `DISTILLER.TYPE` to be one of AT, CID, FITNET, KD, NONE, SFTN, SRRL, TLLM, but got 'DK'",
        ),
        (
            "TLLM.DETECTOR.TYPE",
            "refrence",
            "Expected `TLLM.DETECTOR.TYPE` to be one of after, all, fixed, imitation, none, posterior, reference, ",
        ),
        (
            "TLLM.DETECTOR.SCORE",
            "acc",
            "Expected `TLLM.DETECTOR.SCORE` to be one of accuracy, agreement, reciprocal_rank, true_prob, but",
        ),
        ("DISTILLER.STUDENT", "resnet9", "Expected `DISTILLER.STUDENT` to be one of "),
        ("DISTILLER.TEACHER", "wrn_41_2", "Expected `DISTILLER.TEACHER` to be one of "),
        (
            "DATASET.TYPE",
            "cifar",
            "Expected `DATASET.TYPE` to be one of cifar100, cub200, digits, imagefolder, but got 'cifar'",
        ),
        ("SOLVER.TRAINER", "crd", "Expected `SOLVER.TRAINER` to be one of base, tllm, but got 'crd'"),
        ("TLLM.TRAINER", "tllm", "Expected `TLLM.TRAINER` to be one of base, but got 'tllm'"),
        ("TLLM.DISTILLER", "NONE", "Expected `TLLM.DISTILLER` to be one of AT, CID, FITNET, KD, SRRL, but got 'NONE'"),
        ("SOLVER.EPOCHS", "1.5", "Expected `SOLVER.EPOCHS` to be a whole number, but got 1.5"),
        ("SOLVER.EPOCHS", ".inf", "Expected `SOLVER.EPOCHS` to be a whole number, but got inf"),
        ("LOG.TEST_FREQ", "-2", "Expected `LOG.TEST_FREQ` to be at least -1, but got -2"),
        ("SOLVER.EPOCHS", "0", "Expected `SOLVER.EPOCHS` to be in [1, 1000000], but got 0"),
        ("SOLVER.LR", ".inf", "Expected `SOLVER.LR` to be more than 0, but got inf"),
        ("SOLVER.NESTEROV", "1", "Expected `SOLVER.NESTEROV` to be true or false, but got 1"),
        ("SOLVER.LR_DECAY_STAGES", "3", "Expected `SOLVER.LR_DECAY_STAGES` to be a list, but got 3"),
        ("SOLVER.LR_DECAY_STAGES", "[a]", "Expected `SOLVER.LR_DECAY_STAGES` to be a list of epochs, but got ['a']"),
        ("FITNET.INPUT_SIZE", "[true, 8]", "Expected `FITNET.INPUT_SIZE` to be two positive whole numbers"),
        ("RUNTIME.DEVICE", "gpu", "Expected `RUNTIME.DEVICE` to be auto, cpu, mps, cuda or cuda:N, but got 'gpu'"),
        ("RUNTIME.DEVICE", "cuda:²", "Expected `RUNTIME.DEVICE` to be auto, cpu, mps, cuda or cuda:N, but got"),
        ("TLLM.DETECTOR.TYPE", "fixed", "Expected `TLLM.DETECTOR.CLASSES` to name classes for the detector `fixed`"),
        (
            "TLLM.DETECTOR.SCORE",
            "agreement",
            "to be one that a vanilla run has, too, for `reference`, but got 'agreement'",
        ),
        ("TLLM.DETECTOR.REFERENCE", "no/such", "to be a run folder or curves.npz, but no/such does not exist"),
        ("TLLM.DETECTOR.REFERENCE", "x" * 5000, "does not exist"),
        ("DISTILLER.TEACHER_CHECKPOINT", "x\0y", "Expected `DISTILLER.TEACHER_CHECKPOINT` to be a file, but"),
        ("DISTILLER.TEACHER_CHECKPOINT", "/", "Expected `DISTILLER.TEACHER_CHECKPOINT` to be a file, but"),
    ],
)
def test_one_problem(key: str, value: str, expected: str) -> None:
    (problem,) = problems_of(CONFIG, key, value)
    assert expected in problem


def test_synchronised_batch_norm_is_not_compiled() -> None:
    (problem,) = problems_of(CONFIG, "RUNTIME.SYNC_BATCHNORM", "True", "RUNTIME.COMPILE", "True")
    assert "Expected `RUNTIME.COMPILE` to be false with RUNTIME.SYNC_BATCHNORM" in problem


def test_odd_overrides() -> None:
    (problem,) = problems_of(CONFIG, "SOLVER.LR", "0.1", "SOLVER.EPOCHS")
    assert problem == (
        "Expected overrides as pairs KEY VALUE, but got an odd number of words: SOLVER.LR 0.1 SOLVER.EPOCHS"
    )


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("a: [1", "to be a YAML file, but"),
        ("SOLVER: {LR: 0.1", "to be a YAML file, but"),
        ("- 1\n- 2\n", "to hold keys and values, but got a list"),
        ("just text", "to hold keys and values, but got a str"),
        ("EXPERIMENT: {TAG: 2024-99-99}", "to be a YAML file, but"),
        ("SOLVER: {EPOCHS: " + "9" * 5000 + "}", "to be a YAML file, but"),
        ("[" * 5000, "to be a YAML file, but"),
        ("a: !!python/object:os.system {}", "to be a YAML file, but"),
    ],
)
def test_not_yaml(content: str, expected: str, tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(content)
    (problem,) = problems_of(path)
    assert str(path) in problem and expected in problem


@pytest.mark.parametrize(
    ("content", "key", "lines"),
    [
        ("SOLVER: {LR: 0.1}\nKD: {TEMPERATURE: 2}\nSOLVER: {EPOCHS: 3}\n", "SOLVER", (1, 3)),
        ("SOLVER:\n  LR: 0.1\n  EPOCHS: 3\n  LR: 0.2\n", "LR", (2, 4)),
        ("TLLM:\n  DETECTOR:\n    ETA: 0.1\n    'ETA': 0.1\n", "ETA", (3, 4)),
        ("x: &x {LR: 0.1}\nSOLVER:\n  <<: *x\n  EPOCHS: 1\n  EPOCHS: 2\n", "EPOCHS", (4, 5)),
        ("1: a\n0x1: b\n", "0x1", (1, 2)),
    ],
)
def test_a_key_that_stands_twice_is_refused_with_both_lines(
    content: str, key: str, lines: tuple[int, int], tmp_path: Path
) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(content)
    (problem,) = problems_of(path)
    assert str(path) in problem and f"`{key}`" in problem
    assert f"line {lines[0]} " in problem and f"line {lines[1]};" in problem


def test_what_is_merged_into_a_mapping_may_be_overridden(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(
        "KD: &base\n  TEMPERATURE: 2\n  LOSS: &loss {CE_WEIGHT: 0.3}\nAT:\n  LOSS: {<<: *loss, CE_WEIGHT: 0.7}\n"
    )
    cfg = load_config(path)
    assert (cfg.KD.TEMPERATURE, cfg.KD.LOSS.CE_WEIGHT, cfg.AT.LOSS.CE_WEIGHT) == (2, 0.3, 0.7)
    twice = "SOLVER: &s {LR: 0.1}\n"
    path.write_text(f"{twice}KD: {{LOSS: {{<<: [*s, *s]}}}}\n")
    assert "`KD.LOSS key`" in problems_of(path)[0], "what is merged is checked as if it stood there"


@pytest.mark.parametrize(
    ("key", "word", "read"),
    [
        ("SOLVER.EPOCHS", "010", "8"),
        ("SOLVER.EPOCHS", "12:30", "750"),
        ("SOLVER.EPOCHS", "0x10", "16"),
        ("SOLVER.EPOCHS", "0b11", "3"),
        ("SOLVER.EPOCHS", "1_000", "1000"),
        ("EXPERIMENT.SEED", "-010", "-8"),
        ("SOLVER.LR", "010", "8"),
        ("SOLVER.LR", "1:30.5", "90.5"),
        ("SOLVER.LR_DECAY_STAGES", "[010, 20]", "8"),
        ("FITNET.INPUT_SIZE", "[010, 010]", "8"),
        ("TLLM.DETECTOR.CLASSES", "[007]", "7"),
        ("TLLM.DETECTOR.CLASSES", "[no, cat]", "False"),
        ("TLLM.DETECTOR.CLASSES", "[1.10]", "1.1"),
        ("TLLM.DETECTOR.CLASSES", "[2024-01-02]", "datetime"),
    ],
)
def test_numbers_that_look_like_others_are_refused(key: str, word: str, read: str, tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    node, _, name = key.rpartition(".")
    content = f"{{{name}: {word}}}"
    for part in reversed(node.split(".")):
        content = f"{{{part}: {content}}}"
    path.write_text(content)
    for problem in (*problems_of(path), *problems_of(CONFIG, key, word)):
        first = word.strip("[]").split(",")[0]
        assert (
            f"`{key}`" in problem and f"but got {first}, which YAML reads as {read}" in problem and "quotes" in problem
        )
    if word == "010":
        assert lookup(load_config(CONFIG, [key, "'010'"]), key) == 10, "in quotes it is what it looks like"


@pytest.mark.parametrize("word", ["007", "0x10", "1_000", "12:30", "1.10", "yes", "off", "null", "~", "2024-01-02"])
def test_words_that_are_no_text_to_yaml_are_refused_where_text_is_expected(word: str, tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(f"EXPERIMENT: {{NAME: {word}}}\n")
    (problem,) = problems_of(path)
    assert (
        f"Expected `EXPERIMENT.NAME` to be text, but got {word}, which YAML reads as" in problem and "quotes" in problem
    )
    path.write_text(f"EXPERIMENT: {{NAME: '{word}'}}\n")
    assert word == load_config(path).EXPERIMENT.NAME
    if word != "~":
        assert word == load_config(CONFIG, ["EXPERIMENT.NAME", word]).EXPERIMENT.NAME, "as typed on a command line"


@pytest.mark.parametrize(("word", "value"), [("1e3", "1e3"), ("123", "123"), ("-5", "-5"), ("0o10", "0o10")])
def test_words_that_are_as_they_look_need_no_quotes(word: str, value: str, tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(f"EXPERIMENT: {{NAME: {word}}}\n")
    assert value == load_config(path).EXPERIMENT.NAME


_NINE = ",".join(["*a{}"] * 9)
BOMBS = {
    "aliases": "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [{_NINE.replace('{}', str(i - 1))}]\n" for i in range(1, 30)),
    "merged": "a0: &a0 {x: 1}\n"
    + "".join(f"a{i}: &a{i} {{<<: [{_NINE.replace('{}', str(i - 1))}]}}\n" for i in range(1, 30)),
    "itself": "SOLVER: &a {LR: *a}\n",
    "flow": "[" * 900_000,
    "keys": "{? " * 300_000,
    "block": "- " * 400_000,
    "steps": "\n".join(" " * i + "a:" for i in range(1400)),
    "levels": "SOLVER: " + "{LR: " * 60 + "1" + "}" * 60,
    "escapes": '{"\\ud800": ' * 3000,
    "long": "x: " + "y" * 5_000_000,
}


@pytest.mark.parametrize("content", BOMBS.values(), ids=BOMBS)
def test_bombs_end_soon_and_small(content: str, tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(content)
    tracemalloc.start()
    started = time.process_time()
    (problem,) = problems_of(path)
    seconds, (_, peak) = time.process_time() - started, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(problem) < 1000 + len(str(path)) and "to be a YAML file, but" in problem
    assert seconds < 1 and peak < 100e6


def test_a_tag_that_yaml_trips_over_is_a_problem(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    for tag in ("!!bool x", "!!timestamp x", "!!int x", "!!float ''", "!!python/name:os.system ''", "!!binary é"):
        path.write_text(f"SOLVER: {{LR: {tag}}}\n", encoding="utf-8")
        assert str(path) in problems_of(path)[0], tag


def test_not_text(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_bytes(b"\xff\xfe\x00\x80")
    (problem,) = problems_of(path)
    assert f"Expected {path} to be a readable YAML file, but" in problem


def test_no_such_file_and_a_folder(tmp_path: Path) -> None:
    assert "there is no such file" in problems_of(tmp_path / "nothing.yaml")[0]
    assert "that is a folder" in problems_of(tmp_path)[0]


def test_all_problems_are_reported_together(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("TLLM: {ETA: 0.1, DETECTOR: {ETA: 2}}\nSOLVER: {LR: fast}\nDATASET: {TYPE: dogs}\n")
    problems = problems_of(path, "KD.TEMPERATURE", "0", "NO.SUCH", "1")
    keys = ("`TLLM key`", "`SOLVER.LR`", "`top-level key`", "`DATASET.TYPE`", "`KD.TEMPERATURE`", "`TLLM.DETECTOR.ETA`")
    assert len(problems) == len(keys)
    for key in keys:
        assert sum(key in problem for problem in problems) == 1, key


@pytest.mark.parametrize(
    ("key", "typed", "value"),
    [
        ("SOLVER.LR", "1e-4", 1e-4),
        ("SOLVER.LR", "1", 1.0),
        ("SOLVER.EPOCHS", "1e2", 100),
        ("SOLVER.LR_DECAY_STAGES", "[3, 4]", [3, 4]),
        ("FITNET.INPUT_SIZE", "[8, 8]", (8, 8)),
        ("SOLVER.NESTEROV", "true", True),
        ("EXPERIMENT.NAME", "007", "007"),
        ("EXPERIMENT.NAME", "yes", "yes"),
        ("EXPERIMENT.NAME", "", ""),
        ("EXPERIMENT.NAME", "'1.5'", "1.5"),
        ("LOG.PREFIX", "/tmp/a: b #c", "/tmp/a: b #c"),
        ("TLLM.DETECTOR.CLASSES", "[3, cat]", [3, "cat"]),
    ],
)
def test_override_as_typed(key: str, typed: str, value: Any) -> None:
    found = lookup(load_config(CONFIG, [key, typed]), key)
    assert found == value and type(found) is type(value)


def test_result_is_frozen() -> None:
    with pytest.raises(AttributeError):
        load_config(CONFIG).SOLVER.LR = 1.0


def test_empty_file_is_all_defaults(tmp_path: Path) -> None:
    path = tmp_path / "empty.yaml"
    path.write_text("")
    expected = default_config()
    expected.freeze()
    assert load_config(path) == expected


SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(["KD", "digits", "reference", "resnet8", "wrn_16_2", "1e-3", "cuda:1", "10" * 200, "/", "\0", "²"]),
    st.integers(min_value=10**300, max_value=10**310),
    st.binary(max_size=4),
    st.dates(),
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2)
)


def like(node: CfgNode) -> st.SearchStrategy[dict[Any, Any]]:
    """Nested configs with the keys of `node` (any value behind them, a fitting one or not) and junk keys."""
    known = {
        key: like(value) | VALUES if isinstance(value, CfgNode) else VALUES | st.just(value)
        for key, value in node.items()
    }
    real = st.fixed_dictionaries({}, optional=known)
    junk = st.dictionaries(st.text(max_size=4) | st.integers() | st.none() | st.booleans(), VALUES, max_size=1)
    return st.tuples(real, junk).map(lambda parts: {**parts[1], **parts[0]})


@settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(content=like(default_config()))
def test_any_content_loads_or_is_a_config_error(content: dict[Any, Any], tmp_path: Path) -> None:
    path = tmp_path / "fuzz.yaml"
    path.write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")
    try:
        cfg = load_config(path)
    except ConfigError as error:
        assert str(error)
    else:
        assert cfg.is_frozen()


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    words=st.lists(
        st.sampled_from(
            ["SOLVER.LR", "TLLM", "TLLM.DETECTOR.CLASSES", "", ".", "SOLVER..LR", "LOG.PREFIX", "0.1", "[1"]
        )
        | st.text(max_size=6),
        max_size=4,
    )
)
def test_any_overrides_load_or_are_a_config_error(words: list[str]) -> None:
    try:
        load_config(CONFIG, words)
    except ConfigError as error:
        assert str(error)
