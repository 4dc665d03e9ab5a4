"""Scores on the search hold-out, their errors, paired comparisons, and the warnings made of them."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from tllm_plugin.runs.search_file import FlaggedClass, TrialRecord
from tllm_plugin.search.choice import compare, estimate
from tllm_plugin.search.eta_search import choose, warnings_about


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.lists(st.booleans(), min_size=12, max_size=12), st.lists(st.booleans(), min_size=12, max_size=12))
def test_against_a_loop_and_scipy(first: list[bool], second: list[bool]) -> None:
    labels = [0] * 3 + [1] * 4 + [2] * 5
    means, variance = [], 0.0
    for c in range(3):
        values = [float(value) for value, label in zip(first, labels, strict=True) if label == c]
        mean = sum(values) / len(values)
        means.append(mean)
        variance += sum((value - mean) ** 2 for value in values) / (len(values) - 1) / len(values)
    found = estimate(torch.tensor(first), torch.tensor(labels), 3)
    assert found.value == pytest.approx(sum(means) / 3)
    assert found.standard_error == pytest.approx(math.sqrt(variance) / 3)

    paired = compare(torch.tensor(first), torch.tensor(second), torch.tensor(labels), 3)
    other = estimate(torch.tensor(second), torch.tensor(labels), 3)
    assert paired.difference.value == pytest.approx(found.value - other.value)
    better = sum(a and not b for a, b in zip(first, second, strict=True))
    worse = sum(b and not a for a, b in zip(first, second, strict=True))
    expected = binomtest(better, better + worse, 0.5).pvalue if better + worse else 1.0
    assert paired.p_value == pytest.approx(expected)


def test_pairing_is_sharper_than_the_two_errors() -> None:
    labels = torch.arange(10).repeat_interleave(20)
    first = torch.arange(200) % 3 > 0
    second = first & (torch.arange(200) % 13 > 0)
    paired = compare(first, second, labels, 10).difference
    alone = [estimate(right, labels, 10).standard_error for right in (first, second)]
    assert paired.standard_error < 0.6 * math.hypot(*alone)


def trial(number: int, score: float | None = 0.9, p_value: float | None = 0.001, **more: Any) -> TrialRecord:
    flagged = more.pop("flagged", (FlaggedClass(3, "3", number + 1),))
    return TrialRecord(number, f"trial {number}", {}, "", score, p_value=p_value, flagged=flagged, **more)


def test_the_best_score_wins_and_of_equals_the_one_that_teaches_most() -> None:
    assert choose([trial(0, 0.8), trial(1, 0.9), trial(2, None)]) == 1
    assert choose([trial(0, taught_share=0.5), trial(1, taught_share=0.7), trial(2, taught_share=0.7)]) == 1
    assert choose([trial(0, None)]) is None
    assert choose([]) is None


def test_no_warning_where_everything_is_clear() -> None:
    best = trial(0, 0.95, 1.0)
    baseline = TrialRecord(-1, "without detection", {}, "", 0.8, p_value=0.001)
    assert warnings_about(best, [best, trial(1)], [baseline]) == []
    assert warnings_about(None, [], []) == []


def test_a_choice_within_noise_says_so() -> None:
    best = trial(0, 0.95, 1.0)
    (found,) = warnings_about(best, [best, trial(1), trial(2, p_value=0.2)], [])
    assert "within noise" in found and "trial 0 from trial 2 (" in found


def test_trials_that_are_one_run_are_not_noise() -> None:
    best = trial(0, 0.95, 1.0)
    (found,) = warnings_about(best, [best, trial(1, 0.95, 1.0, flagged=best.flagged)], [])
    assert found.startswith("trial 1 flagged the same classes at the same epochs as trial 0")


def test_baselines_that_did_as_well_or_better() -> None:
    best = trial(0, 0.95, 1.0)
    better = TrialRecord(-1, "vanilla", {}, "", 0.96, p_value=0.001)
    luckier = TrialRecord(-1, "vanilla", {}, "", 0.96, p_value=0.5)
    alike = TrialRecord(-1, "without detection", {}, "", 0.94, p_value=0.5)
    found = warnings_about(best, [best], [better, luckier, alike])
    assert found[0] == "`vanilla` did better on the search hold-out than every trial"
    untold = "the images of the search hold-out do not tell trial 0 from"
    assert found[1:] == [f"{untold} `vanilla`, which did better there", f"{untold} `without detection`"]


def test_nothing_flagged_is_said() -> None:
    best = trial(0, 0.95, 1.0, flagged=())
    assert warnings_about(best, [best, trial(1, 0.95, 1.0, flagged=())], []) == [
        "no trial flagged a class, so that all trials are the same run"
    ]
