"""A field that is missing or of the wrong type is named with its file, its place and what was there."""

from __future__ import annotations

import json
import math
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tllm_plugin import FileFormatError
from tllm_plugin.runs import records
from tllm_plugin.runs.records import validated
from tllm_plugin.runs.run_folder import RunFolder
from tllm_plugin.runs.split_file import SplitRecord

READERS: dict[str, Callable[[RunFolder], object]] = {
    "split.json": RunFolder.read_split,
    "flags.json": RunFolder.read_flags,
    "metrics.json": RunFolder.read_metrics,
}
MISSING = object()


def change(path: Path, where: tuple[str | int, ...], value: object) -> None:
    """Change a file as a person may who removes its digest."""
    content = json.loads(path.read_bytes())
    content.pop("digest", None)
    parent = content
    for step in where[:-1]:
        parent = parent[step]
    if value is MISSING:
        del parent[where[-1]]
    else:
        parent[where[-1]] = value
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    "name, where, value, text",
    [
        ("split.json", ("seed",), MISSING, "`seed` to be present, but got nothing"),
        ("split.json", ("seed",), 1.5, "`seed` to be an integer, but got 1.5"),
        ("split.json", ("seed",), None, "`seed` to be an integer, but got None"),
        ("split.json", ("fraction",), 1.01, "`fraction` to be less than or equal to 1, but got 1.01"),
        ("split.json", ("holdout",), 3, "`holdout` to be a list, but got 3"),
        ("split.json", ("holdout", 1), -1, "`holdout[1]` to be greater than or equal to 0, but got -1"),
        ("split.json", ("holdout", 1), True, "`holdout[1]` to be an integer, but got True"),
        (
            "split.json",
            ("search_holdout", 0),
            3,
            "`holdout, search_holdout` to be disjoint and without repetition, but got an index twice",
        ),
        ("flags.json", ("detector",), "none", "`detector` to be an object, but got 'none'"),
        ("flags.json", ("detector", "name"), MISSING, "`detector.name` to be present, but got nothing"),
        ("flags.json", ("classes", 1), [], "`classes[1]` to be an object, but got []"),
        ("flags.json", ("classes", 1, "flagged"), 1, "`classes[1].flagged` to be true or false, but got 1"),
        ("flags.json", ("classes", 1, "name"), MISSING, "`classes[1].name` to be present, but got nothing"),
        ("flags.json", ("classes", 1, "name"), None, "`classes[1].name` to be a string, but got None"),
        ("flags.json", ("classes", 1, "drop"), "x", "`classes[1].drop` to be a finite number, but got 'x'"),
        (
            "flags.json",
            ("classes", 2, "p_value"),
            2,
            "`classes[2].p_value` to be less than or equal to 1, but got 2",
        ),
        (
            "flags.json",
            ("classes", 1, "holdout_correct"),
            27,
            "`classes[1].holdout_correct` to be at most 26, but got 27",
        ),
        ("flags.json", ("classes", 1, "index"), 2, "`classes[1].index` to be 1, but got 2"),
        ("flags.json", ("num_classes",), 2, "`classes` to be as long as `num_classes` (2), but got 3"),
        # Counting that far would take all memory.
        ("flags.json", ("num_classes",), 10**18, f"`classes` to be as long as `num_classes` ({10**18}), but got 3"),
        ("flags.json", ("classes", 1, "epoch_flagged"), 10, "`classes[1].epoch_flagged` to be at most 9, but got 10"),
        (
            "flags.json",
            ("classes", 1, "epoch_flagged"),
            None,
            "`classes[1].epoch_flagged` to be an epoch, since the class is flagged, but got None",
        ),
        (
            "flags.json",
            ("classes", 1, "e_value"),
            -1,
            "`classes[1].e_value` to be greater than or equal to 0, but got -1",
        ),
        (
            "metrics.json",
            ("class_correct", 0),
            6,
            f"`test_accuracy` to be the {15 / 19} of all classes together, but got {14 / 19}",
        ),
        (
            "metrics.json",
            ("test_accuracy",),
            None,
            f"`test_accuracy` to be the {14 / 19} of all classes together, but got None",
        ),
        ("metrics.json", ("finished",), "yes", "`finished` to be true or false, but got 'yes'"),
        ("metrics.json", ("test_accuracy",), 40.7, "`test_accuracy` to be less than or equal to 1, but got 40.7"),
        (
            "metrics.json",
            ("peak_memory_bytes",),
            -1,
            "`peak_memory_bytes` to be greater than or equal to 0, but got -1",
        ),
        ("metrics.json", ("class_total",), [1], "`class_correct` to be as long as `class_total` (1), but got 3"),
        ("metrics.json", ("class_correct", 2), 10, "`class_correct[2]` to be at most 9, but got 10"),
        (
            "metrics.json",
            ("seconds_per_epoch", 0),
            "x" * 100,
            f"`seconds_per_epoch[0]` to be a finite number, but got '{'x' * 12}...{'x' * 13}'",
        ),
    ],
)
def test_a_bad_field_is_named(
    name: str, where: tuple[str | int, ...], value: object, text: str, run: RunFolder
) -> None:
    path = run.path / name
    change(path, where, value)
    with pytest.raises(FileFormatError) as caught:
        READERS[name](run)
    assert str(caught.value) == f"Expected {text} in {path}; run again what wrote it"


@pytest.mark.parametrize("name", READERS)
def test_every_field_is_needed_and_typed(name: str, run: RunFolder) -> None:
    path = run.path / name
    whole = path.read_bytes()
    names = json.loads(whole).keys() - {"schema", "version", "digest"}
    assert names
    for field in names:
        for value in (MISSING, {"a": [math.pi]}):
            path.write_bytes(whole)
            change(path, (field,), value)
            with pytest.raises(FileFormatError, match=rf"^Expected `{field}[^`]*` to be .* in {path}; "):
                READERS[name](run)


def test_every_field_of_a_class_is_needed_and_typed(run: RunFolder) -> None:
    whole = run.flags_json.read_bytes()
    for field in json.loads(whole)["classes"][0]:
        # Earlier versions did not write the probability.
        for value in ([math.pi],) if field == "probability_of_harm" else (MISSING, [math.pi]):
            run.flags_json.write_bytes(whole)
            change(run.flags_json, ("classes", 2, field), value)
            with pytest.raises(FileFormatError, match=rf"^Expected `classes\[2\]\.{field}` to be "):
                run.read_flags()


def test_unknown_fields_of_a_later_writer_are_ignored(run: RunFolder) -> None:
    before = run.read_metrics()
    change(run.metrics_json, ("hostname",), "x")
    assert run.read_metrics() == before


@pytest.mark.parametrize(
    "kind, good, bad",
    [
        (records.Integer, [0, -3, 10**30], [1.0, True, "1", None]),
        (records.Count, [0, 10**30], [-1, 1.0, False]),
        (records.Number, [0, -1.5, 2**900], [math.inf, -math.inf, math.nan, 10**400, True, "1"]),
        (records.Amount, [0, 1.5, 2**900], [-1e-9, math.inf, math.nan, 10**400, False, "1"]),
        (records.Fraction, [0, 1, 0.5], [-1e-9, 1.0001, math.nan, True]),
        (records.Flag, [True, False], [0, 1, None, "true"]),
        (records.Text, ["", "x", "caf\udce9"], [None, 1, b"x"]),
        (records.Mapping, [{}, {"caf\udce9": [1]}], [None, [], "x"]),
        (records.Count | None, [None, 3], [-1, "x"]),
        (records.List[records.Count], [[], [1, 2]], ["12", None, {}, [1, -1]]),
    ],
)
def test_types_of_fields(kind: Any, good: list[object], bad: list[object]) -> None:
    for value in good:
        assert validated(kind, value, "") == (tuple(value) if isinstance(value, list) else value)
    for value in bad:
        with pytest.raises(FileFormatError, match="^Expected the content to be |^Expected `\\[1\\]` to be "):
            validated(kind, value, "")


def test_millions_of_wrong_items_are_one_error() -> None:
    items = ["x"] * 3_000_000
    tracemalloc.start()
    try:
        with pytest.raises(
            FileFormatError, match=r"^Expected `\[0\]` to be an integer, but got 'x' in FILE; run again"
        ):
            validated(records.List[records.Count], items, "in FILE")
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_a_record_is_checked_before_it_is_written(split_record: SplitRecord) -> None:
    with pytest.raises(ValueError, match="seed"):
        replace(split_record, seed=1.5)  # type: ignore[arg-type]
