"""A session in a loop of one's own: what it trains on, scores, flags, writes and continues."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset

from tests.hosts.digits_runs import assert_equal
from tests.own_loop.digits import EPOCHS, FLAGGING, HOLDOUT, kd, optimizer_of, step, train, vanilla
from tllm_plugin import Session
from tllm_plugin.analysis.loaded_run import load_run
from tllm_plugin.cli.main import main
from tllm_plugin.core.holdout import split
from tllm_plugin.core.predictions import predict
from tllm_plugin.hosts.options import table
from tllm_plugin.hosts.own_loop.options import keywords, session_node
from tllm_plugin.hosts.tllm_node import tllm_node
from tllm_plugin.runs.run_folder import RunFolder

Capture = pytest.CaptureFixture[str]


def test_the_keywords_are_the_options_with_the_defaults_of_today() -> None:
    keys = set(keywords().values())
    assert keys == {key for key in table() if key.startswith("TLLM.")} - {"TLLM.DISTILLER", "TLLM.TRAINER"}
    assert len(keywords()) == len(keys), "two options under one keyword"
    assert session_node({"detector": "none"}).LABEL_SMOOTHING == tllm_node().LABEL_SMOOTHING
    assert session_node({"detector": "none"}) == {**tllm_node(), "DETECTOR": {**tllm_node().DETECTOR, "TYPE": "none"}}


def test_the_loader_leaves_the_hold_out_out(train_set: TensorDataset, tmp_path: Path) -> None:
    session = Session(vanilla(), train_set, epochs=1, run=tmp_path, detector="none", **HOLDOUT)
    parts = split(train_set.tensors[1], 0.15, seed=0)
    seen = []
    loader = session.loader(batch_size=100, shuffle=True, drop_last=False, num_workers=0, with_index=True)
    for image, target, index in loader:
        assert torch.equal(image, train_set.tensors[0][index]) and torch.equal(target, train_set.tensors[1][index])
        seen += index.tolist()
    assert sorted(seen) == parts.train.tolist()
    assert len(session.dataset()) == len(seen) and len(session.dataset(with_index=True)[0]) == 3


def test_a_run_is_what_the_analysis_reads(
    train_set: TensorDataset,
    test_set: TensorDataset,
    reference: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    session = Session(kd(), train_set, epochs=EPOCHS, run=tmp_path / "kd", reference=reference, **FLAGGING)
    train(session)
    predictions = session.finish(test_set)
    session.distiller.eval()
    # Independent: the student's own answers, asked again.
    with torch.no_grad():
        asked = session.distiller(image=test_set.tensors[0]).argmax(1)
    assert torch.equal(predictions.prediction, asked)
    run = RunFolder.find(tmp_path / "kd")
    assert run.is_finished() and run.has_results() and len(run.read_metrics().seconds_per_epoch) == EPOCHS
    assert run.read_flags().flagged == tuple(session.flags.nonzero().flatten().tolist()) != ()
    assert run.read_data().test.counts == (60,) * 10
    loaded = load_run(tmp_path / "kd")
    assert (loaded.method, loaded.pair) == ("TLLM (KD)", "LogitsOnly/LogitsOnly")
    assert load_run(reference).method == "vanilla"
    for command in (
        ["show", str(tmp_path / "kd")],
        ["compare", str(reference), str(tmp_path / "kd")],
        ["report", str(reference), str(tmp_path / "kd"), "--out", str(tmp_path / "report.html")],
    ):
        assert main(command) == 0, capsys.readouterr().err
    assert "delta acc" in capsys.readouterr().out and (tmp_path / "report.html").stat().st_size > 10**6


def test_headroom_reads_sessions(
    train_set: TensorDataset,
    test_set: TensorDataset,
    reference: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    runs = [str(reference)]
    for name, distiller in (("vanilla", vanilla()), ("kd", kd()), ("kd2", kd())):
        torch.manual_seed(len(runs))
        session = Session(distiller, train_set, epochs=1, run=tmp_path / name, detector="none", **HOLDOUT)
        train(session)
        session.finish(test_set)
        runs.append(str(tmp_path / name))
    assert main(["headroom", *runs]) == 0, capsys.readouterr().err


def test_detector_none_is_the_same_loop_without_a_session(train_set: TensorDataset, tmp_path: Path) -> None:
    """Bit for bit: with no class flagged the session adds nothing to what is trained."""
    session = Session(kd(), train_set, epochs=2, run=tmp_path, detector="none", **HOLDOUT)
    torch.manual_seed(3)
    ours = copy.deepcopy(train(session).state_dict())
    plain = kd()
    optimizer = torch.optim.SGD(plain.get_learnable_parameters(), lr=0.05, momentum=0.9)
    loader = torch.utils.data.DataLoader(
        Subset(train_set, split(train_set.tensors[1], 0.15, seed=0).train.tolist()), batch_size=64, shuffle=True
    )
    torch.manual_seed(3)
    for _ in range(2):
        plain.train()
        for image, target in loader:
            _, losses = plain(image=image, target=target)
            optimizer.zero_grad()
            sum(losses.values()).backward()
            optimizer.step()
    assert_equal(dict(session.distiller.student.state_dict()), dict(plain.student.state_dict()))  # type: ignore[union-attr, operator]
    assert_equal(ours, optimizer.state_dict())


class Augmented(Dataset[Any]):
    """Images with noise from the generators that augmentations use, and labels in the samples only."""

    def __init__(self, tensors: TensorDataset) -> None:
        self.images, self.classes_of = tensors.tensors
        self.transform: Any = lambda image: image + 0.1 * torch.randn_like(image)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = self.images[index]
        return (image if self.transform is None else self.transform(image)), int(self.classes_of[index])


def augmented_run(train_set: TensorDataset, folder: Path, reference: Path, epochs: int | None) -> Session:
    distiller = kd()
    session = Session(distiller, Augmented(train_set), epochs=4, run=folder, detector="none", **HOLDOUT)
    optimizer = optimizer_of(session)
    schedule = torch.optim.lr_scheduler.SequentialLR(
        optimizer,
        [
            torch.optim.lr_scheduler.LinearLR(optimizer, total_iters=2),
            torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 2),
        ],
        milestones=[2],
    )
    loader = session.loader(batch_size=64, shuffle=True, generator=torch.Generator().manual_seed(5))
    for epoch in session.epochs():
        for image, target in loader:
            step(session, optimizer, image, target)
        schedule.step()
        session.end_epoch(optimizer=optimizer, scheduler=schedule)
        if epoch == epochs:
            break
    return session


def test_a_continued_run_is_the_uninterrupted_one(train_set: TensorDataset, reference: Path, tmp_path: Path) -> None:
    """With momentum, a schedule, a generator of the loader's own, augmentation, and another state before."""
    for name, stops in (("whole", (None,)), ("parts", (1, 3, None))):
        for stop in stops:
            torch.manual_seed(0 if stop == stops[0] else 123)
            session = augmented_run(train_set, tmp_path / name, reference, stop)
    assert session.epochs_done == 4 and not list(session.epochs())
    states = [torch.load(tmp_path / name / "latest", weights_only=True) for name in ("whole", "parts")]
    for state in states:
        assert len(state.pop("seconds_per_epoch")) == 4
    assert_equal(states[0], states[1])
    for name in ("curves.npz", "flags.json", "split.json"):
        whole, parts = ((tmp_path / run / "tllm" / name).read_bytes() for run in ("whole", "parts"))
        assert whole == parts, name


def test_the_hold_out_is_read_without_augmentation(train_set: TensorDataset, tmp_path: Path) -> None:
    """`holdout_transform` gives the scores of the plain images; without it the augmentation is the same every time."""
    plain = Augmented(train_set)
    session = Session(
        vanilla(),
        plain,
        epochs=1,
        run=tmp_path / "a",
        detector="none",
        holdout_transform=lambda image: image,
        **HOLDOUT,
    )
    train(session)
    rows = split(train_set.tensors[1], 0.15, seed=0).holdout
    student = session.distiller.get_submodule("distiller.student")
    expected = predict(student, [(train_set.tensors[0][rows], train_set.tensors[1][rows])])
    assert torch.equal(session.curves.samples_at(1).kept("rank"), expected.kept("rank"))
    assert plain.transform is not None, "the training images are still augmented"
    twice = session._data.__class__(plain).holdout_loader(rows)
    first, second = (torch.cat([image for image, _ in twice]) for _ in range(2))
    assert torch.equal(first, second) and not torch.equal(first, train_set.tensors[0][rows])


@pytest.mark.parametrize(
    "wrap",
    [
        lambda data: list(data),
        lambda data: ConcatDataset([Subset(data, range(600)), Subset(data, range(600, len(data)))]),
        lambda data: [{"pixel_values": image, "label": int(label)} for image, label in data],
        Augmented,
    ],
    ids=["sequence", "concatenated subsets", "mappings", "read once"],
)
def test_labels_of_other_data_sets(wrap: Any, train_set: TensorDataset, tmp_path: Path) -> None:
    session = Session(vanilla(), wrap(train_set), epochs=1, run=tmp_path, detector="none", **HOLDOUT)
    assert torch.equal(session._data.labels, train_set.tensors[1])
    assert torch.equal(session.curves.sample_ids, split(train_set.tensors[1], 0.15, seed=0).holdout)


class NamedSamples(list[Any]):
    """Samples whose classes have names that HTML would take for markup."""

    classes = tuple(f"<i>{index}</i>" for index in range(10))


class HeadOfItsOwn(nn.Module):
    """The student returns features; a module of the method makes the logits."""

    def __init__(self) -> None:
        super().__init__()
        self.student = nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.Tanh())
        self.predictor = nn.Linear(12, 10)

    def forward(self, image: Tensor, target: Tensor | None = None, **batch: Any) -> Any:
        logits = self.predictor(self.student(image))
        return (logits, {"ce": nn.functional.cross_entropy(logits, target)}) if self.training else logits


def test_a_method_that_predicts_by_a_module_of_its_own(train_set: TensorDataset, tmp_path: Path) -> None:
    session = Session(HeadOfItsOwn(), train_set, epochs=1, run=tmp_path, detector="none", **HOLDOUT)
    train(session)
    distiller: Any = session.distiller.get_submodule("distiller")
    rows = split(train_set.tensors[1], 0.15, seed=0).holdout
    with torch.no_grad():
        expected = distiller.predictor(distiller.student(train_set.tensors[0][rows])).argmax(1)
    correct = session.curves.samples_at(1).correct
    assert torch.equal(correct, expected == train_set.tensors[1][rows])


def test_a_user_sees_where_a_session_is(train_set: TensorDataset, tmp_path: Path) -> None:
    session = Session(vanilla(), train_set, epochs=2, run=tmp_path, detector="all", **HOLDOUT)
    assert repr(session) == f"Session(run={str(tmp_path)!r}, 0 of 2 epochs, 10 of 10 classes flagged)"


def test_a_notebook_shows_sessions_and_runs(train_set: TensorDataset, tmp_path: Path) -> None:
    session = Session(
        vanilla(), NamedSamples(train_set), epochs=1, run=tmp_path, detector="fixed", classes=["<i>3</i>"], **HOLDOUT
    )
    train(session)
    for shown in (session._repr_html_(), session.run._repr_html_()):
        assert shown.count("<tr>") == 11 and "<i>" not in shown
        assert shown.index("<b>&lt;i&gt;3&lt;/i&gt;</b></td><td>0</td>") < shown.index("&lt;i&gt;0&lt;/i&gt;")
        assert "1 of 10 classes flagged by fixed" in shown
