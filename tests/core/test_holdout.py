from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tllm_plugin import ConfigError, split


def unbalanced_labels() -> torch.Tensor:
    labels = torch.cat([torch.full((count,), index) for index, count in enumerate((40, 120, 200))])
    return labels[torch.randperm(360, generator=torch.Generator().manual_seed(3))]


@pytest.mark.parametrize(("fraction", "search_fraction"), [(0.05, 0.0), (0.1, 0.1), (0.0, 0.06)])
def test_parts_are_disjoint_complete_and_balanced(fraction: float, search_fraction: float) -> None:
    labels = unbalanced_labels()
    parts = split(labels, fraction, search_fraction, seed=4)
    everything = torch.cat([parts.train, parts.holdout, parts.search])
    assert torch.equal(everything.sort().values, torch.arange(360))
    per_class = round(fraction * 360 / 3)
    search_per_class = round(search_fraction * (360 - 3 * per_class) / 3)
    assert torch.bincount(labels[parts.holdout], minlength=3).tolist() == [per_class] * 3
    assert torch.bincount(labels[parts.search], minlength=3).tolist() == [search_per_class] * 3
    for part in (parts.train, parts.holdout, parts.search):
        assert torch.equal(part, part.sort().values)


def test_the_seed_chooses_and_the_search_part_leaves_the_holdout_alone() -> None:
    labels = unbalanced_labels()
    assert torch.equal(split(labels, 0.1, seed=1).holdout, split(labels, 0.1, seed=1).holdout)
    assert not torch.equal(split(labels, 0.1, seed=1).holdout, split(labels, 0.1, seed=2).holdout)
    assert torch.equal(split(labels, 0.1, seed=1).holdout, split(labels, 0.1, 0.1, seed=1).holdout)


def test_the_global_generator_is_left_alone() -> None:
    before = torch.get_rng_state()
    split(unbalanced_labels(), 0.1)
    assert torch.equal(before, torch.get_rng_state())


def test_too_few_names_the_class_and_the_fraction_that_would_do() -> None:
    with pytest.raises(ConfigError, match=r"0.02 gives 2 of class 'cat'; 0.042 would do") as error:
        split(unbalanced_labels(), 0.02, class_names=["cat", "dog", "owl"])
    enough = float(str(error.value).rsplit("; ", 1)[1].split()[0])
    assert split(unbalanced_labels(), enough).holdout.numel() == 15


def test_too_many_names_the_class_and_the_fraction_that_would_do() -> None:
    with pytest.raises(ConfigError, match=r"takes 48 from class 'cat', which has 40; at most 0.325 would do"):
        split(unbalanced_labels(), 0.4, class_names=["cat", "dog", "owl"])
    assert split(unbalanced_labels(), 0.325).holdout.numel() == 3 * 39


def test_a_class_that_is_too_small_for_any_fraction() -> None:
    labels = torch.tensor([0] * 5 + [1] * 50)
    with pytest.raises(ConfigError, match="no fraction would do: the class needs more than 5 samples"):
        split(labels, 0.3)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.integers(1, 400), min_size=1, max_size=6), st.floats(0.0, 0.99), st.booleans())
def test_what_is_recommended_does(counts: list[int], fraction: float, larger: bool) -> None:
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts) * (1000 if larger else 1))
    counts = torch.bincount(labels).tolist()
    try:
        split(labels, fraction)
    except ConfigError as error:
        if "no fraction would do" in str(error):
            assert min(counts) <= 5
        else:
            recommended = float(re.findall(r"([\d.e-]+) would do", str(error))[0])
            assert 5 <= len(split(labels, recommended).holdout) / len(counts) < min(counts)


@pytest.mark.parametrize("fraction", [-0.1, 1.0, float("nan")])
def test_fractions_out_of_range(fraction: float) -> None:
    with pytest.raises(ConfigError, match=r"`fraction` to be in \[0, 1\)"):
        split(unbalanced_labels(), fraction)
    with pytest.raises(ConfigError, match=r"`search_fraction` to be in \[0, 1\)"):
        split(unbalanced_labels(), 0.1, fraction)


def test_missing_classes_and_no_labels() -> None:
    with pytest.raises(ConfigError, match="class '1' has none"):
        split(torch.tensor([0, 2] * 50), 0.2)
    with pytest.raises(ConfigError, match="at least one sample, but got none"):
        split(torch.tensor([], dtype=torch.int64), 0.2)


def test_labels_may_be_a_list_a_tuple_an_array_or_a_tensor_of_any_integer_type() -> None:
    labels = unbalanced_labels()
    expected = split(labels, 0.1, 0.1)
    array = labels.numpy()
    others: list[Any] = [labels.tolist(), tuple(labels.tolist()), list(labels), list(array), array, array[::-1][::-1]]
    others += [array.astype(kind) for kind in ("u1", "i2", "i4", "u8", ">i4", "O")]
    others += [labels.to(kind) for kind in (torch.uint8, torch.int16, torch.int32)]
    read_only = array.copy()
    read_only.setflags(write=False)
    for given_labels in [*others, read_only, np.stack([array, array], 1)[:, 0]]:
        found = split(given_labels, 0.1, 0.1)
        for name in ("train", "holdout", "search"):
            assert torch.equal(getattr(found, name), getattr(expected, name)), type(given_labels)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0.0, 1.0] * 50, "whole numbers from 0, but got 0.0"),
        (torch.zeros(100), "but got float32"),
        (np.zeros(100), "but got float64"),
        (["cat", "dog"] * 50, "but got 'cat'"),
        (np.array(["cat", "dog"] * 50), "but got ndarray of <U3"),
        ([True, False] * 50, "but got True"),
        ([1, False] * 50, "but got False"),
        (torch.ones(100, dtype=torch.bool), "but got bool"),
        (np.ones(100, dtype=bool), "but got bool"),
        ([1, 0, -1], "but got -1 in place 2"),
        (np.array([0, -100]), "but got -100 in place 1"),
        ([1, None], "but got None"),
        ([[0, 1], [1, 0]], r"in one row, of shape \(n,\), but got shape \(2, 2\)"),
        ([[0, 1], [1]], "but got list"),
        ({0, 1}, "but got set"),
        ({0: 1}, "but got dict"),
        (7, r"but got shape \(\)"),
        (None, "but got NoneType"),
        ([2**70], "but got list"),
    ],
    ids=str,
)
def test_labels_that_are_no_class_indices_are_refused_by_name(labels: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=f"Expected `labels` to be .*{message}") as error:
        split(labels, 0.1)
    assert "\n" not in str(error.value)


def test_other_arguments_of_the_wrong_type_are_refused_by_name() -> None:
    for options, message in (
        ({"fraction": "0.1"}, "`fraction` to be in .* but got '0.1'"),
        ({"fraction": None}, "`fraction` to be in .* but got None"),
        ({"seed": 1.5}, "`seed` to be a whole number .* but got 1.5"),
        ({"class_names": ["cat"]}, "`class_names` to name the 3 classes of the labels, but got 1"),
    ):
        with pytest.raises(ConfigError, match=message):
            split(unbalanced_labels(), **{"fraction": 0.1, **options})
