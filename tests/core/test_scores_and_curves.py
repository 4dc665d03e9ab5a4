from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from tllm_plugin import SCORES, ConfigError, Curves, FileFormatError, Predictions, predict
from tllm_plugin.core.predictions import class_means, true_class_rank

CLASSES = 5


def scored(
    seed: int = 0, n: int = 40, teacher: Tensor | None = None, batch_size: int = 7
) -> tuple[Predictions, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(n, CLASSES, generator=generator)
    labels = torch.arange(n) % CLASSES
    # The "images" are row numbers, the "network" looks the logits up.
    batches = [(torch.arange(n)[i : i + batch_size], labels[i : i + batch_size]) for i in range(0, n, batch_size)]
    samples = predict(lambda rows: logits[rows], batches)
    return samples if teacher is None else samples.beside(teacher), logits, labels


def test_scores_against_a_loop() -> None:
    teacher = torch.randint(CLASSES, (40,), generator=torch.Generator().manual_seed(9))
    samples, logits, labels = scored(teacher=teacher)
    for row in range(40):
        values = logits[row].tolist()
        order = sorted(range(CLASSES), key=lambda c: -values[c])
        rank = order.index(int(labels[row])) + 1
        prob = math.exp(values[labels[row]]) / sum(math.exp(v) for v in values)
        assert SCORES["accuracy"](samples)[row] == (rank == 1)
        assert SCORES["reciprocal_rank"](samples)[row] == pytest.approx(1 / rank)
        assert SCORES["true_prob"](samples)[row] == pytest.approx(prob, rel=1e-5)
        assert SCORES["agreement"](samples)[row] == (order[0] == int(teacher[row]))
    for score in SCORES.values():
        assert float(score(samples).min()) >= 0 and float(score(samples).max()) <= 1


def test_batches_do_not_matter() -> None:
    one, _, _ = scored(batch_size=40)
    many, _, _ = scored(batch_size=3)
    assert torch.equal(one.rank, many.rank) and torch.equal(one.true_prob, many.true_prob)


def test_rank_ties_and_nan() -> None:
    logits = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [math.nan] * 3, [0.0, math.nan, 1.0]])
    assert true_class_rank(logits, torch.tensor([0, 1, 0, 1])).tolist() == [1, 2, 3, 3]


def test_a_diverged_network_is_never_right() -> None:
    samples = predict(lambda rows: torch.full((4, 3), math.nan), [(torch.zeros(4), torch.arange(4) % 3)])
    assert not samples.correct.any()
    assert SCORES["true_prob"](samples).tolist() == [0.0] * 4


def test_many_classes_clip_the_rank() -> None:
    logits = torch.arange(1000.0)[None]
    samples = predict(lambda rows: logits, [(torch.zeros(1), torch.tensor([0]))])
    assert samples.rank.item() == 255


def test_agreement_needs_a_teacher() -> None:
    with pytest.raises(ConfigError, match="Expected a teacher for the score `agreement`"):
        SCORES["agreement"](scored()[0])


def test_class_means_against_numpy() -> None:
    values, labels = torch.rand(30), torch.arange(30) % 4
    expected = [np.mean([v for v, y in zip(values.tolist(), labels.tolist(), strict=True) if y == c]) for c in range(4)]
    result = class_means(values, labels, 5)
    np.testing.assert_allclose(result[:4].numpy(), expected, rtol=1e-6)
    assert math.isnan(result[4])


def history(epochs: int = 3, teacher: bool = True) -> Curves:
    prediction = torch.zeros(40, dtype=torch.int64) if teacher else None
    curves = Curves(torch.arange(40) % CLASSES, CLASSES, torch.arange(100, 140))
    for epoch in range(1, epochs + 1):
        curves.append(epoch, scored(seed=epoch, teacher=prediction)[0])
    return curves


@pytest.mark.parametrize("score", ["accuracy", "reciprocal_rank", "true_prob", "agreement"])
def test_class_curves_are_the_means_of_the_scores(score: str) -> None:
    curves = history()
    for row, epoch in enumerate(curves.epochs):
        samples = scored(seed=epoch, teacher=torch.zeros(40, dtype=torch.int64))[0]
        expected = class_means(SCORES[score](samples), samples.labels, CLASSES)
        torch.testing.assert_close(curves.class_curves(score)[row], expected, atol=0.5 / 255, rtol=0)


@pytest.mark.parametrize("epochs", [0, 3])
@pytest.mark.parametrize("teacher", [True, False])
def test_state_round_trip(epochs: int, teacher: bool) -> None:
    curves = history(epochs, teacher)
    again = Curves(curves.labels, CLASSES, curves.sample_ids)
    again.load_state_dict(curves.state_dict())
    assert again.epochs == curves.epochs
    assert torch.equal(again.class_curves(), curves.class_curves())
    assert all(torch.equal(torch.as_tensor(a), torch.as_tensor(b)) for a, b in _pairs(curves, again))


def _pairs(a: Curves, b: Curves) -> list[tuple[object, object]]:
    left, right = a.state_dict(), b.state_dict()
    assert left.keys() == right.keys()
    return [(left[key], right[key]) for key in left]


def test_a_thousand_classes_cost_megabytes() -> None:
    labels = torch.arange(26_000) % 1000
    curves = Curves(labels, 1000, torch.arange(26_000))
    ranks = torch.ones(26_000, dtype=torch.uint8)
    samples = Predictions(labels, labels, 1000, ranks, torch.ones(26_000), labels > 0)
    curves.append(1, samples)
    per_epoch = sum(curves.state_dict()[key].nbytes for key in ("rank", "true_prob", "agree"))
    assert per_epoch * 300 < 25e6


def test_curves_of_lists_and_arrays() -> None:
    expected = history()
    for kind in (torch.Tensor.tolist, np.asarray):
        curves = Curves(kind(expected.labels), CLASSES, kind(expected.sample_ids))
        assert curves.same_holdout(expected)
        curves.append(1, scored(seed=1)[0])
    for labels, message in (
        ([0.5] * 3, "`labels` .* got 0.5"),
        ([0, 1, 5], "in .0, 5., but got 5"),
        ([0, 1], "one length"),
    ):
        with pytest.raises(ConfigError, match=message):
            Curves(labels, CLASSES, [1, 2, 3])
    with pytest.raises(FileFormatError, match="whose parts fit together, but: .* got 4"):
        Curves.from_state({**expected.state_dict(), "num_classes": 4})


def test_epochs_with_and_without_a_teacher_do_not_mix() -> None:
    curves = history(teacher=True)
    with pytest.raises(ConfigError, match="whether the teacher agrees"):
        curves.append(4, scored(seed=4)[0])


def test_scores_of_the_wrong_form_are_refused_by_name() -> None:
    labels = torch.arange(4) % 3
    good = [(torch.zeros(4), labels)]
    for network, batches, message in (
        (lambda rows: (torch.zeros(4, 3), None), good, r"logits \(4, C\), but got tuple"),
        (lambda rows: torch.zeros(3, 3), good, r"logits \(4, C\), but got shape \(3, 3\)"),
        (lambda rows: torch.zeros(4, 3), [(torch.zeros(4), labels.float())], "but got torch.float32"),
        (lambda rows: torch.zeros(4, 3), [(torch.zeros(4), labels.tolist())], "but got list"),
        (lambda rows: torch.zeros(4, 3), [], "at least one, but got none"),
    ):
        with pytest.raises(ConfigError, match=message):
            predict(lambda image, network=network: network(image), batches, keyword="image")  # type: ignore[misc]
    samples = predict(lambda rows: torch.eye(4, 3), [(torch.zeros(4), labels.to(torch.int32))])
    assert samples.labels.dtype == torch.int64
    with pytest.raises(ConfigError, match=r"`rank` to be a tensor with one value per sample, but got shape \(2,\)"):
        Predictions(labels, labels, 3, labels[:2], labels.float())
    with pytest.raises(ConfigError, match="`agree` .* but got list"):
        Predictions(labels, labels, 3, labels, labels.float(), [True] * 4)  # type: ignore[arg-type]


def test_curves_refuse_what_does_not_belong() -> None:
    curves = history()
    with pytest.raises(ValueError, match="Expected an `epoch` after 3, but got 3"):
        curves.append(3, scored()[0])
    with pytest.raises(ValueError, match="the labels differ"):
        Curves(torch.zeros(40, dtype=torch.int64), CLASSES, torch.arange(40)).append(1, scored()[0])
    with pytest.raises(ConfigError, match=r"recorded \(1 to 3\), but got 9"):
        curves.samples_at(9)
    other = Curves(curves.labels, CLASSES, curves.sample_ids + 1)
    with pytest.raises(ConfigError, match="same hold-out"):
        other.load_state_dict(curves.state_dict())
    state = curves.state_dict()
    with pytest.raises(FileFormatError, match=r"`rank` of the curves to be of shape \(3, 40\)"):
        Curves.from_state({**state, "rank": state["rank"][:2]})
    with pytest.raises(FileFormatError, match="epochs of the curves to ascend"):
        Curves.from_state({**state, "epochs": torch.tensor([1, 3, 2])})
