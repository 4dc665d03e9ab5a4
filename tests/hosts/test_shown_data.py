"""What the hosts' data sets show of themselves, and that a run of theirs is held against it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

from tests.distiller_cases import TwoView, networks
from tests.hosts.fork_shaped_host import HOST, Images, config, one_view, two_views
from tests.hosts.repdistiller.short_runs import loaders, prepared
from tests.hosts.repdistiller.short_runs import train as train_repdistiller
from tests.hosts.small_images import CLASSES, TRAIN, make_images
from tests.search.miniature_host import Saving
from tllm_plugin.core.data_identity import DataIdentity, training_difference
from tllm_plugin.core.errors import ConfigError
from tllm_plugin.data import load_data
from tllm_plugin.hosts.factories import make_trainer_factory
from tllm_plugin.hosts.loader_data import LoaderData
from tllm_plugin.hosts.repdistiller import load_images
from tllm_plugin.hosts.shown_data import shown_identity
from tllm_plugin.runs.atomic import save_torch
from tllm_plugin.runs.data_file import KEY, to_text
from tllm_plugin.runs.run_folder import RunFolder

NORMALISED = transforms.Compose(
    [
        transforms.Resize(40),
        transforms.CenterCrop(32),
        transforms.ToTensor(),
        transforms.Normalize([0.5] * 3, [0.25] * 3),
    ]
)


def folder_identity(images: Path) -> DataIdentity:
    train, test = (datasets.ImageFolder(str(images / part), NORMALISED) for part in ("train", "val"))
    return LoaderData(DataLoader(train, batch_size=4), NORMALISED, test).identity


def test_an_image_folder_of_torchvisions(tmp_path: Path) -> None:
    make_images(tmp_path)
    before = folder_identity(tmp_path)
    assert (before.class_names[1], before.train.counts) == ("n1", (TRAIN,) * CLASSES)
    assert (before.image_size, before.mean, before.std) == (32, (0.5,) * 3, (0.25,) * 3)
    ours = load_data("imagefolder", str(tmp_path), num_workers=0).identity
    assert before.train.files == ours.train.files and before.test.files == ours.test.files, "one record in every host"
    (tmp_path / "train" / "n0" / "000.png").rename(tmp_path / "train" / "n0" / "zzz.png")
    assert training_difference(before, folder_identity(tmp_path)) == "names or sizes of training files are others"
    for part in ("train", "val"):
        (tmp_path / part / "n0").rename(tmp_path / part / "z")
    assert training_difference(before, folder_identity(tmp_path)) == "class 'n0' is now 'z'"


def test_arrays() -> None:
    images = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), dtype=np.uint8)
    names = ("a", "b")

    def shown(pixels: Any, labels: Any) -> DataIdentity:
        return shown_identity(SimpleNamespace(data=pixels, targets=labels), None, names, NORMALISED)

    before = shown(images, [0, 1] * 4)
    changed = images.copy()
    changed[3, 0, 0, 0] ^= 1
    assert training_difference(before, shown(images, torch.tensor([0, 1] * 4))) == ""
    assert training_difference(before, shown(changed, [0, 1] * 4)) == "the training images are others"
    assert training_difference(before, shown(images, [1, 0] * 4)) == "the labels of training images are others"


@pytest.mark.parametrize(
    "dataset",
    [
        SimpleNamespace(targets=[0, 1], samples=[("no such file", 0), ("nor this", 1)]),
        SimpleNamespace(targets=[0, 1], samples=[b"x", b"y"], files={"a": 1}, data="somewhere"),
        SimpleNamespace(labels=[0, 1], imgs=[]),
        SimpleNamespace(targets=[0, 1], data=[np.zeros(3), np.zeros(3)]),
    ],
)
def test_what_is_not_shown_is_not_known(dataset: Any) -> None:
    found = shown_identity(dataset, object(), ("a", "b"), None)
    assert found.train.counts == (1, 1) and not found.train.files and not found.train.contents
    assert not found.test.counts and not found.mean and not found.image_size


class Named(Images):
    def __init__(self, transform: Any, first: str = "first") -> None:
        super().__init__(transform)
        self.classes = [first, *(f"class {label}" for label in range(1, max(self.targets) + 1))]


def forked(folder: Path, first: str, teacher: str = "", *, resume: bool = False, epochs: int = 1) -> None:
    torch.manual_seed(0)
    cfg = config(folder)
    cfg.SOLVER.EPOCHS = epochs
    cfg.DISTILLER = type(cfg)({"TEACHER_CHECKPOINT": teacher})
    host = replace(HOST, trainers={"ours": Saving}, carries_rng=True)
    train, val = DataLoader(Named(two_views, first), batch_size=24, shuffle=True), DataLoader(Named(one_view, first))
    distiller = nn.DataParallel(TwoView(*networks()))
    make_trainer_factory(host)("run", distiller, train, val, cfg).train(resume=resume)


def test_resume_in_a_host_of_mdistillers_shape(tmp_path: Path) -> None:
    forked(tmp_path, "first")
    assert RunFolder.inside(tmp_path / "run").read_data().class_names[0] == "first"
    forked(tmp_path, "first", resume=True, epochs=2)
    with pytest.raises(ConfigError, match="trained on, but class 'first' is now 'renamed'"):
        forked(tmp_path, "renamed", resume=True, epochs=3)


def test_teachers_in_a_host_of_mdistillers_shape(tmp_path: Path) -> None:
    forked(tmp_path, "first")
    best = tmp_path / "run" / "tllm" / "student_best_holdout"
    forked(tmp_path / "second", "first", str(best))
    # The host's own checkpoint says nothing; the run that it lies in does.
    for checkpoint in (best, tmp_path / "run" / "latest"):
        with pytest.raises(ConfigError, match="Expected the classes .*, but class 'first' is now 'renamed'"):
            forked(tmp_path / "third", "renamed", str(checkpoint))


def test_resume_in_repdistiller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train_repdistiller(*prepared(tmp_path), stop_after=1)
    before = RunFolder.inside(tmp_path).state.read_bytes()

    def with_another_name(kind: str) -> Any:
        found = loaders(kind)
        for loader in found:
            loader.dataset.classes = ("renamed", *loader.dataset.classes[1:])
        return found

    with monkeypatch.context() as patch:
        patch.setattr("tests.hosts.repdistiller.short_runs.loaders", with_another_name)
        with pytest.raises(ConfigError, match="class 'class 0' is now 'renamed'"):
            train_repdistiller(*prepared(tmp_path, tllm_resume=True))
    assert RunFolder.inside(tmp_path).state.read_bytes() == before
    train_repdistiller(*prepared(tmp_path, tllm_resume=True))


def test_teachers_in_repdistiller(tmp_path: Path) -> None:
    images = tmp_path / "images"
    make_images(images)
    teacher = tmp_path / "teacher"
    common = {"dataset": "imagefolder", "data_folder": str(images), "batch_size": 8, "num_workers": 0}
    load_images(SimpleNamespace(**common, save_folder=str(teacher)))  # As `train_teacher.py` does.
    recorded = RunFolder.inside(teacher).read_data()
    assert recorded.class_folders[0] == "n0" and len(recorded.mean) == 3 and recorded.train.files
    save_torch(teacher / "resnet14_best.pth", {"model": {}})
    save_torch(tmp_path / "alone.pth", {"model": {}, KEY: to_text(recorded)})

    def student(path: Path) -> None:
        options = SimpleNamespace(**common, distill="kd")
        _, chosen = prepared(tmp_path / "student", "kd", path_t=str(path), dataset="imagefolder", tllm=False)
        train, test, *_ = load_images(options)
        train_repdistiller_run(chosen, train, test)

    for path in (teacher / "resnet14_best.pth", tmp_path / "alone.pth"):
        student(path)
    for part in ("train", "val"):
        (images / part / "n0").rename(images / part / "z")
    for path in (teacher / "resnet14_best.pth", tmp_path / "alone.pth"):
        with pytest.raises(ConfigError, match="class 'n0' is now 'z'"):
            student(path)


def train_repdistiller_run(options: Any, train: Any, test: Any) -> None:
    from tllm_plugin.hosts.repdistiller import Run

    Run(options, train, test)


def test_order_and_normalisation_in_repdistiller(tmp_path: Path) -> None:
    make_images(tmp_path)
    for part in ("train", "val"):
        for name in range(CLASSES):
            (tmp_path / part / f"n{name}").rename(tmp_path / part / f"{name + 7}")
    common = {
        "dataset": "imagefolder",
        "data_folder": str(tmp_path),
        "batch_size": 8,
        "num_workers": 0,
        "distill": "kd",
    }
    plain, *_ = load_images(SimpleNamespace(**common))
    stated, *_ = load_images(
        SimpleNamespace(**common, class_order="natural", mean=[0.1, 0.2, 0.3], std=[0.5, 0.5, 0.5])
    )
    assert plain.dataset.classes == ("10", "11", "12", "7", "8", "9")
    assert stated.dataset.classes == ("7", "8", "9", "10", "11", "12")
    for name in ("7", "12"):
        of_class = [
            loader.dataset.data[np.asarray(loader.dataset.targets) == loader.dataset.classes.index(name)]
            for loader in (plain, stated)
        ]
        assert np.array_equal(*of_class)
    assert LoaderData(stated, stated.dataset.transform).identity.mean == (0.1, 0.2, 0.3)
