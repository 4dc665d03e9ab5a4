"""Search spaces as typed on a command line."""

from __future__ import annotations

import pytest

from tllm_plugin.hosts.embedded.config import load_config
from tllm_plugin.search.eta_search import check_space
from tllm_plugin.search.space import Dimension, grid, parse_space, searchable_keys, with_values

CFG = load_config("tllm/embedded/digits.yaml")


def test_lists_and_ranges() -> None:
    words = ["ETA=0.02,0.05,0.1", "tllm.ce_weight=0.5:8:log", "Label_Smoothing=0:0.2", "WARMUP_EPOCHS=0:9"]
    words += ["TYPE=reference,imitation"]
    space, problems = parse_space(words, CFG)
    assert problems == []
    assert space == (
        Dimension("TLLM.DETECTOR.ETA", (0.02, 0.05, 0.1)),
        Dimension("TLLM.CE_WEIGHT", (), 0.5, 8.0, log=True),
        Dimension("TLLM.LABEL_SMOOTHING", (), 0.0, 0.2),
        Dimension("TLLM.DETECTOR.WARMUP_EPOCHS", (), 0.0, 9.0, whole=True),
        Dimension("TLLM.DETECTOR.TYPE", ("reference", "imitation")),
    )
    assert list(map(str, space))[:2] == ["TLLM.DETECTOR.ETA=0.02,0.05,0.1", "TLLM.CE_WEIGHT=0.5:8:log"]


def test_the_grid_is_every_combination_and_begins_with_the_largest() -> None:
    space, _ = parse_space(["ETA=0.02,0.1", "SCORE=accuracy,reciprocal_rank"], CFG)
    found = [tuple(values.values()) for values in grid(space)]
    assert found == [(eta, score) for eta in (0.1, 0.02) for score in ("accuracy", "reciprocal_rank")]


def test_every_problem_is_found_at_once() -> None:
    words = ["ETA=0.1,7", "CONFIDENCE=high", "SOLVER.LR=1,2", "CE_WEIGHT", "SMOOTHING=0.9:0.1", "WARMUP_EPOCHS=1:2:lin"]
    words += ["LABEL_SMOOTHING=0:0.2:log", "SCORE=accuracy,luck", "MIN_ROWS=4,4", "eta=0.3", "AFTER_FRACTION=0.7,0.8"]
    _, problems = parse_space(words, CFG)
    expected = (
        "`TLLM.DETECTOR.ETA` to be in (0, 1), but got 7.0",
        "`TLLM.DETECTOR.CONFIDENCE` to be a number, but got 'high'",
        "`--space key` to be one of AFTER_FRACTION, BALANCE, CE_WEIGHT, CONFIDENCE, ETA",
        "KEY=low:high, KEY=low:high:log or KEY=a,b,c, but got 'CE_WEIGHT'",
        "the range of `TLLM.DETECTOR.SMOOTHING` to ascend, but got '0.9:0.1'",
        "`TLLM.DETECTOR.WARMUP_EPOCHS` as low:high or low:high:log, but got '1:2:lin'",
        "the range of `TLLM.LABEL_SMOOTHING` to begin above 0 for `log`, but got '0:0.2:log'",
        "`TLLM.DETECTOR.SCORE` to be one of",
        "the values of `TLLM.MIN_ROWS` to differ, but got '4,4'",
        "`TLLM.DETECTOR.ETA` once in the search space, but got it again: 'eta=0.3'",
        "`TLLM.DETECTOR.AFTER_FRACTION` has no effect",
    )
    assert len(problems) == len(expected)
    assert parse_space(["BALANCE=False:True"], CFG)[1] == [
        "Expected `TLLM.BALANCE` to be true or false, but got 'False:True'"
    ]
    assert check_space([Dimension("TLLM.DETECTOR.ETA")], None) == [], "its values were refused; it was no range"
    for problem, part in zip(problems, expected, strict=True):
        assert problem.startswith("Expected ") and part in problem


@pytest.mark.parametrize(
    "word, detector, useless",
    [
        ("AFTER_FRACTION=0.7,0.8", "after", False),
        ("ETA=0.1,0.2", "after", True),
        ("LABEL_SMOOTHING=0.1,0.2", "after", True),
        ("CE_WEIGHT=1,2", "after", False),
        ("CE_WEIGHT=1,2", "none", True),
        ("ETA=0.1,0.2", "imitation", False),
        ("SMOOTHING=0.1,0.2", "all", True),
    ],
)
def test_what_the_detector_does_not_look_at_is_refused(word: str, detector: str, useless: bool) -> None:
    cfg = with_values(CFG, {"TLLM.DETECTOR.TYPE": detector})
    assert bool(parse_space([word], cfg)[1]) is useless


def test_keys_and_values() -> None:
    keys = searchable_keys(CFG)
    assert {"TLLM.DETECTOR.ETA", "TLLM.LABEL_SMOOTHING", "TLLM.CE_WEIGHT"} <= set(keys)
    assert not {"TLLM.DETECTOR.REFERENCE", "TLLM.DETECTOR.CLASSES"} & set(keys)
    changed = with_values(CFG, {"TLLM.DETECTOR.ETA": 0.3})
    assert (changed.TLLM.DETECTOR.ETA, CFG.TLLM.DETECTOR.ETA) == (0.3, 0.05)
