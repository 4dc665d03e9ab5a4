"""Benchmarks are run by hand and now and then: a name that was moved must not go unnoticed until then."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.mark.parametrize("path", sorted(BENCHMARKS.glob("*.py")), ids=lambda path: path.stem)
def test_every_benchmark_can_be_imported(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    module = importlib.import_module(path.stem)
    assert module.__file__ == str(path)
    assert callable(getattr(module, "main", None)) or path.stem.endswith("_parts")


def test_what_pays_goes_on_after_half_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    what_pays = importlib.import_module("what_pays")
    words = ["--data", "digits", "--image-size", "0", "--cfg", "tllm/embedded/digits.yaml", "--out", str(tmp_path)]
    words += ["--seeds", "2", "--arms", "vanilla", "kd", "kd+permuted", "--report"]
    options = what_pays.parsed(words)
    for arm, seed, right in (("vanilla", 0, 5), ("vanilla", 1, 6), ("kd", 0, 7), ("kd", 1, 7)):
        settings = what_pays.digest_of(what_pays.config_of(options, arm, seed))
        row = {"arm": arm, "seed": seed, "settings": settings, "test_accuracy": right / 10, "seconds_per_epoch": 1.0}
        row |= {"class_correct": [right] * 4, "class_total": [10] * 4, "teacher": "a", "student": "b"}
        what_pays.append_row(options.results, row)
        with options.results.open("a") as file:
            file.write('{"arm": "kd", "se')
    what_pays.main(words)
    table = capsys.readouterr().out
    # 20 and 10 points; the t interval of two seeds is 12.7 standard errors wide on each side.
    assert "| vanilla | 2 | 55.00 +- 7.07 |" in table
    assert "| kd | 2 | 70.00 +- 0.00 | +15.00 (-48.53 to +78.53) |" in table
    assert "| kd+permuted | 0 |" in table
    assert what_pays.digest_of(what_pays.config_of(options, "kd", 0)) != what_pays.digest_of(
        what_pays.config_of(what_pays.parsed([*words, "--opts", "SOLVER.LR", "0.1"]), "kd", 0)
    )
