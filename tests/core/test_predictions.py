"""One pass of a network over a data set, and everything that is counted from it, against loops."""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tllm_plugin import ConfigError, Predictions, predict

CLASSES, SAMPLES = 5, 43
LABELS = torch.arange(SAMPLES) % (CLASSES - 1)  # The last class has no samples.
IMAGES = torch.randn(SAMPLES, 3, generator=torch.Generator().manual_seed(0))


class Network(nn.Module):
    """A linear head after dropout, which shows whether it is in evaluation mode."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.fc = nn.Linear(3, CLASSES)

    def forward(self, x: Tensor) -> Any:
        pooled = nn.functional.dropout(x, 0.5, self.training)
        return self.fc(pooled), {"pooled_feat": pooled}


def batches(size: int = 7) -> list[tuple[Tensor, Tensor]]:
    return list(zip(IMAGES.split(size), LABELS.split(size), strict=True))


def test_everything_is_counted_from_one_record() -> None:
    network = Network().train()
    found = predict(network, batches(), features=True)
    assert not network.training and found.features is not None and torch.equal(found.features, IMAGES)
    logits = network.fc(IMAGES).detach()
    assert found.num_classes == CLASSES and torch.equal(found.labels, LABELS)
    assert torch.equal(found.prediction, logits.argmax(1))
    for label in range(CLASSES):
        right = [bool(p == label) for p, y in zip(logits.argmax(1), LABELS, strict=True) if y == label]
        assert found.class_total[label] == len(right) and found.class_correct[label] == sum(right)
        share = float(found.class_accuracy[label])
        assert share == sum(right) / len(right) if right else math.isnan(share)
    assert found.accuracy == pytest.approx(float((logits.argmax(1) == LABELS).float().mean()))
    part = found.part(10, 20)
    assert torch.equal(part.labels, LABELS[10:20]) and torch.equal(part.kept("rank"), found.kept("rank")[10:20])
    assert part.agree is None and torch.equal(part.kept("features"), IMAGES[10:20])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_label_is_predicted_exactly_where_it_ranks_first(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(2)
    # Few different values, so that there are ties.
    logits = torch.randint(0, 4, (300, 6), generator=generator).to(dtype)
    labels = torch.randint(0, 6, (300,), generator=generator)
    found = predict(lambda image: logits, [(logits, labels)])
    assert torch.equal(found.prediction, logits.argmax(1)), "the first of equal logits"
    assert torch.equal(found.correct, found.kept("rank") == 1)
    logits[torch.rand(logits.shape, generator=generator) < 0.3] = torch.nan
    found = predict(lambda image: logits, [(logits, labels)])
    assert torch.equal(found.correct, found.kept("rank") == 1) and 0 < found.accuracy < 0.5
    assert not found.correct[logits[torch.arange(300), labels].isnan()].any()


def test_images_of_a_keyword_a_device_and_a_precision() -> None:
    entered: list[str] = []

    def autocast() -> Any:
        entered.append("once a batch")
        return torch.autocast("cpu", dtype=torch.bfloat16) if len(entered) > 1 else nullcontext()

    seen: list[Any] = []
    network = Network()

    def distiller(*, image: Tensor) -> Tensor:
        logits: Tensor = network(image)[0]
        seen.append((image.dtype, logits.dtype, logits.requires_grad))
        return logits

    predict(distiller, batches(20), keyword="image", device=torch.device("cpu"), autocast=autocast)
    assert seen == [(torch.float32, kind, False) for kind in (torch.float32, torch.bfloat16, torch.bfloat16)]
    with pytest.raises(ConfigError, match="Expected Linear to return its pooled features, but it does not"):
        predict(network.fc, batches(), features=True)


def test_nothing_of_a_batch_but_its_samples_is_kept() -> None:
    alive: list[weakref.ref[Tensor]] = []
    network = Network()

    def noted(image: Tensor) -> Any:
        logits, features = network(image.clone())
        alive.extend(weakref.ref(tensor) for tensor in (logits, features["pooled_feat"]))
        return logits, features

    def looked_at() -> Iterator[tuple[Tensor, Tensor]]:
        for batch in batches():
            assert not any(reference() is not None for reference in alive), "two batches' outputs in memory"
            yield batch

    predict(noted, looked_at())
    assert len(alive) == 2 * len(batches())


class Shard:
    """The part of one of two processes; what the other one has found is in `others`, in the order of the calls."""

    def __init__(self, own: list[tuple[Tensor, Tensor]], others: list[Tensor] | None = None) -> None:
        self.own, self.others, self.gathered = own, others, list[Tensor]()

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(self.own)

    def gather(self, values: Tensor) -> Tensor:
        self.gathered.append(values)
        assert self.others is None or self.others[len(self.gathered) - 1].dtype == values.dtype
        return values if self.others is None else torch.cat([self.others[len(self.gathered) - 1], values])


def test_the_loader_of_a_shard_puts_the_parts_together() -> None:
    network, rows = Network(), batches()
    whole = predict(network, rows)
    for cut in (3, len(rows)):  # At the end the second process has no batch at all, and yet learns of all classes.
        first, second = Shard(rows[:cut]), Shard(rows[cut:])
        predict(network, first)
        second.others = first.gathered
        found = predict(network, second)
        for name in ("labels", "prediction", "rank", "true_prob", "class_correct"):
            assert torch.equal(getattr(found, name), getattr(whole, name)), name
        assert found.num_classes == CLASSES


def test_what_is_no_record() -> None:
    with pytest.raises(ConfigError, match=r"`prediction` to be .* one value per sample, but got shape \(2,\)"):
        Predictions(LABELS, LABELS[:2], CLASSES)
    with pytest.raises(ConfigError, match=r"`features` to be .* but got shape \(2, 3\)"):
        Predictions(LABELS, LABELS, CLASSES, features=torch.zeros(2, 3))
    with pytest.raises(ConfigError, match="with the `true_prob` of every sample, but got predictions without"):
        Predictions(LABELS, LABELS, CLASSES).kept("true_prob")
