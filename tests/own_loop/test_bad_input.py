"""What a session refuses: at the call, in one line that says what to do."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from tests.own_loop.digits import FLAGGING, HOLDOUT, kd, optimizer_of, step, student, teacher, train, vanilla
from tllm_plugin import KD, Session
from tllm_plugin.core.errors import ConfigError, FileFormatError, TLLMError


def refused(call: Callable[[], object], message: str, kind: type[TLLMError] = ConfigError) -> None:
    with pytest.raises(kind) as caught:
        call()
    said = str(caught.value)
    assert re.search(message, said), said
    assert "\n" not in said and said.startswith("Expected ") and len(said) < 500, said


def session(train_set: Any, folder: Path, distiller: nn.Module | None = None, **options: Any) -> Session:
    chosen = {"detector": "none", "epochs": 2, **HOLDOUT, **options}
    return Session(distiller or vanilla(), train_set, run=folder, **chosen)


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        yield from ()


class Named(Dataset[Any]):
    """A data set whose labels are given, and nothing else of it is right."""

    def __init__(self, images: Tensor, targets: Any) -> None:
        self.images, self.targets = images, targets

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Any:
        return self.images[index], self.targets[index]


def test_data_sets(train_set: TensorDataset, tmp_path: Path) -> None:
    images, labels = train_set.tensors
    for data, message in (
        (
            Stream(),
            r"`train_set` to be a map-style data set.*got an iterable Stream; .*give `list",
        ),
        ([], "`train_set` to have samples, but it is empty"),
        (list(images), r"`train_set` to have labels.*sample 0 is a Tensor; pair it with labels, for example by"),
        (TensorDataset(images), r"`train_set` to have labels.*sample 0 is a tuple; pair it"),
        ([{"pixel_values": image} for image in images], "sample 0 is a mapping with pixel_values; pair it"),
        (Named(images, labels + 1), r"labels of `train_set` to be 0 to 10, .*no sample has 0; renumber them"),
        (Named(images, labels * 2), r"0 to 18, .*no sample has 1; renumber them, for example with `torch.unique"),
        (Named(images, [str(int(label)) for label in labels]), r"got '0'; map the classes to 0 \.\.\. C - 1"),
        (Named(images, labels - 1), r"to be whole numbers from 0, but got -1 in place \d+; map the classes"),
        (Named(images, nn.functional.one_hot(labels).float()), "class indices, but they are soft .*mix in the loop"),
        (Named(images, labels[:-1]), "one label for each of the 1197 samples of `train_set`, but got 1196"),
    ):
        refused(lambda data=data: session(data, tmp_path), message)
    transformed = {"holdout_transform": lambda image: image}
    refused(lambda: session(train_set, tmp_path, **transformed), "an attribute `transform` for `holdout_transform`")
    assert not list(tmp_path.iterdir()), "nothing is written by a session that is refused"


class Wants(nn.Module):
    """A network for images of one size."""

    def __init__(self, pixels: int, classes: int = 10) -> None:
        super().__init__()
        self.linear = nn.Linear(pixels, classes)

    def forward(self, image: Tensor) -> Tensor:
        logits: Tensor = self.linear(image.flatten(1))
        return logits


class FeaturesFirst(Wants):
    def forward(self, image: Tensor) -> Any:
        return image.flatten(1), super().forward(image)


class Maps(Wants):
    def forward(self, image: Tensor) -> Tensor:
        return image


def test_networks(train_set: TensorDataset, tmp_path: Path) -> None:
    for distiller, message in (
        (KD(student(classes=5), teacher()), "student to return logits of the 10 classes .* got 5; make it with 10"),
        (KD(student(), teacher(classes=20)), "student and teacher to have as many classes, but got 10 and 20; replace"),
        (
            KD(student(), Wants(32 * 32)),
            r"teacher to take the images .*\(1, 8, 8\), but it fails: .*; resize or",
        ),
        (
            KD(Wants(32 * 32), teacher()),
            r"student to take the images .*\(1, 8, 8\), but it fails: .*; resize or",
        ),
        (KD(FeaturesFirst(64), teacher()), "student to return its logits first, .*first tensor has 64 columns"),
        (KD(Maps(64), teacher()), r"student to return logits \(2, C\) for 2 images, but got shape \(2, 1, 8, 8\)"),
        (student(), "distiller to have an attribute `student`, a torch.nn.Module, but LogitsOnly has network"),
    ):
        refused(lambda distiller=distiller: session(train_set, tmp_path, distiller), message)


def test_options(train_set: TensorDataset, reference: Path, tmp_path: Path) -> None:
    for options, message in (
        ({"etta": 0.1}, "`option` to be one of .*eta.* but got 'etta'"),
        ({"eta": 2.0}, r"`eta` to be in \(0, 1\), but got 2"),
        ({"balance": "yes"}, "`balance` to be true or false, but got 'yes'"),
        ({"detector": "refrence"}, "`detector` to be one of .*reference.* but got 'refrence'"),
        ({"detector": "reference"}, "`reference` to be the run folder of a vanilla student, but got none: train one"),
        ({"detector": "imitation"}, "a teacher for `detector` imitation, but the distiller has none"),
        ({"detector": "reference", "reference": "nowhere"}, "`reference` .* nowhere does not exist"),
        (
            {"detector": "reference", "reference": reference, "holdout_seed": 5},
            "`reference` .* to be recorded on the same hold-out, but its samples differ",
        ),
        ({"epochs": 0}, "`epochs` to be a whole number of at least 1, but got 0"),
        ({"holdout_fraction": 0.001}, "0.0.* would do"),
    ):
        refused(lambda options=options: session(train_set, tmp_path, **options), message)
    refused(lambda: session(train_set, tmp_path).loader(batchsize=3), "arguments of .*DataLoader, but .*batchsize")


def test_a_loader_that_is_not_the_sessions(train_set: TensorDataset, tmp_path: Path) -> None:
    made = session(train_set, tmp_path)
    made.loader(batch_size=64)  # Made, and not used.
    refused(
        lambda: train(made, DataLoader(train_set, batch_size=64)),
        r"batches of `session.loader\(...\)`, which leaves the hold-out out, but got others; .*`session.dataset\(\)`",
    )
    train(made, DataLoader(made.dataset(), batch_size=64))
    assert made.epochs_done == 2


def test_epochs(train_set: TensorDataset, test_set: TensorDataset, tmp_path: Path) -> None:
    made = session(train_set, tmp_path)
    optimizer = optimizer_of(made)
    loader = made.loader(batch_size=64)

    def end() -> None:
        made.end_epoch(optimizer=optimizer)

    refused(end, "one `end_epoch` in every epoch of `session.epochs.*, but none has begun")
    refused(lambda: made.finish(test_set), r"all 2 epochs of `session.epochs\(\)` before `finish`, but 0 are done")
    epochs = made.epochs()
    next(epochs)
    refused(end, "epoch 1 to be trained by calls of `session.distiller.*there was none; call it in the place of")
    for image, target in loader:
        step(made, optimizer, image, target)
    end()
    refused(end, "one `end_epoch` in every epoch of .*, but epoch 1 is ended already")
    next(epochs)
    refused(lambda: next(epochs), r"`session.end_epoch\(optimizer=...\)` at the end of epoch 2, before the next one")
    refused(lambda: made.finish(test_set), "but 1 are done")


def test_soft_labels_in_a_step(train_set: TensorDataset, tmp_path: Path) -> None:
    """Also after steps with class indices, and before anything is flagged."""
    made = session(train_set, tmp_path)
    optimizer = optimizer_of(made)
    loader = made.loader(batch_size=64)
    next(made.epochs())
    image, target = next(iter(loader))
    step(made, optimizer, image, target)
    soft = 0.5 * nn.functional.one_hot(target, 10) + 0.05
    refused(
        lambda: step(made, optimizer, image, soft),
        r"class indices, .* got soft labels of shape \(64, 10\): .*Mixup.*; give class indices as `target`",
    )


def test_test_sets(train_set: TensorDataset, test_set: TensorDataset, tmp_path: Path) -> None:
    made = session(train_set, tmp_path, epochs=1)
    train(made)
    refused(lambda: made.finish(Stream()), "`test_set` to be a map-style data set")
    others = TensorDataset(test_set.tensors[0], test_set.tensors[1] + 5)
    refused(lambda: made.finish(others), "`test_set` to have the 10 classes of `train_set`, but got a label 14")


def test_a_run_of_another_session(train_set: TensorDataset, reference: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    train(Session(kd(), train_set, epochs=2, run=folder, reference=reference, **FLAGGING), epochs=1)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    def again(distiller: nn.Module, epochs: int = 2, data: Any = train_set, **options: Any) -> Callable[[], object]:
        chosen = {**FLAGGING, "reference": reference, **options}
        return lambda: train(Session(distiller, data, epochs=epochs, run=folder, **chosen))

    class Other(KD):
        pass

    differ = "arguments that the run in .* was begun with, but these differ: {}; continue with the same ones, or give"
    images, labels = train_set.tensors
    for call, message in (
        (again(KD(student(), teacher(), temperature=2)), differ.format(r"distiller \(KD.TEMPERATURE\)")),
        (again(Other(student(), teacher())), differ.format(r"distiller \(.*DISTILLER.TYPE.*\)")),
        (again(kd(), eta=0.2), differ.format(r"eta \(TLLM.DETECTOR.ETA\)")),
        (again(kd(), epochs=3), differ.format(r"epochs \(SOLVER.EPOCHS\)")),
        (again(vanilla(), detector="none"), differ.format(r"distiller, .*detector.*\(.*\)")),
        (again(kd(), data=TensorDataset(images, labels.flip(0))), "reference.*data"),
        (again(KD(Wants(64), teacher())), differ.format(r"distiller \(.*SESSION.STUDENT_PARAMETERS.*\)")),
    ):
        refused(call, message)
    for file, content in before.items():
        assert file.read_bytes() == content, f"{file} was changed by a session that was refused"
    (folder / "latest").write_bytes(before[folder / "latest"][:-100])
    refused(again(kd()), "latest", FileFormatError)


def test_a_checkpoint_with_another_schedule(train_set: TensorDataset, tmp_path: Path) -> None:
    train(session(train_set, tmp_path), epochs=1)
    made = session(train_set, tmp_path)
    optimizer = optimizer_of(made)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    refused(lambda: next(made.epochs()), "schedule .* written without one, and this process continues with; continue")
    del schedule
    another = torch.optim.Adam(made.distiller.parameters())
    refused(lambda: next(made.epochs()), r"one optimizer .*, but found 2; give `session.epochs\(optimizer=")
    refused(lambda: next(made.epochs(optimizer=another)), "to fit the networks and the optimizer", FileFormatError)
    assert next(made.epochs(optimizer=optimizer)) == 2


def test_a_state_that_could_not_be_read_again(train_set: TensorDataset, tmp_path: Path) -> None:
    made = session(train_set, tmp_path)
    optimizer = optimizer_of(made)
    optimizer.param_groups[0]["lr"] = np.float64(0.05)
    loader = made.loader(batch_size=64)
    next(made.epochs())
    for image, target in loader:
        step(made, optimizer, image, target)
    refused(lambda: made.end_epoch(optimizer=optimizer), r"tensors and plain values \(a NumPy number as `float")


def test_a_run_of_another_host(train_set: TensorDataset, tmp_path: Path) -> None:
    (tmp_path / "tllm").mkdir()
    text = "DISTILLER:\n  TYPE: KD\nTLLM:\n  TRAINER: base\n"
    (tmp_path / "tllm/config.yaml").write_text(text)
    refused(lambda: train(session(train_set, tmp_path)), "a new folder or a run of a session, but .* another host")
    assert (tmp_path / "tllm/config.yaml").read_text() == text
