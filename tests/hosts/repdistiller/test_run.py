"""What a run does in one process: without `--tllm` nothing, with it hold-out, flags, files, and checked checkpoints."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.hosts.repdistiller.short_runs import CLASSES, PER_CLASS, loaders, prepared, train, validate
from tests.hosts.repdistiller.stand_in import reference_epoch
from tllm_plugin.analysis.loaded_run import load_run
from tllm_plugin.analysis.results import change_between
from tllm_plugin.cli import main
from tllm_plugin.core.errors import ConfigError, FileFormatError
from tllm_plugin.hosts.repdistiller import Run
from tllm_plugin.hosts.repdistiller.images import FolderImages
from tllm_plugin.runs.run_folder import RunFolder


def test_without_tllm_the_hosts_functions_run_and_nothing_is_written(tmp_path: Path) -> None:
    lists, options = prepared(tmp_path, "kd", tllm=False)
    run = train(lists, options)
    mine = {name: value.clone() for name, value in lists.modules.state_dict().items()}
    lists, options = prepared(tmp_path, "kd", tllm=False)
    loader, val_loader = loaders("kd")
    assert len(run.train_loader.dataset) == CLASSES * PER_CLASS
    optimizer = lists.optimizer()
    for epoch in (1, 2):
        reference_epoch(epoch, loader, lists.modules, lists.criteria, optimizer, options)
        validate(val_loader, lists.modules[0])
    assert all(torch.equal(value, mine[name]) for name, value in lists.modules.state_dict().items())
    assert list(tmp_path.iterdir()) == []


def test_the_hold_out_is_trained_on_by_nobody(tmp_path: Path) -> None:
    lists, options = prepared(tmp_path)
    train_loader, val_loader = loaders("crd")
    run = Run(options, train_loader, val_loader)
    seen = [batch[2:] for batch in run.train_loader]
    index = torch.cat([part[0] for part in seen])
    contrast = torch.cat([part[1] for part in seen])
    train(lists, options)
    record = RunFolder.inside(tmp_path).read_split()
    held = torch.tensor(record.holdout)
    assert len(held) == CLASSES * PER_CLASS // 2 and len(index) == CLASSES * PER_CLASS - len(held)
    assert not torch.isin(index, held).any() and not torch.isin(contrast, held).any()


def test_what_a_run_leaves_behind(tmp_path: Path) -> None:
    lists, options = prepared(tmp_path)
    run = train(lists, options)
    folder = RunFolder.inside(tmp_path)
    flags, metrics = folder.read_flags(), folder.read_metrics()
    assert [item.name for item in flags.classes if item.flagged] == ["class 2", "class 3"]
    assert flags.epochs == 2 and metrics.epochs_done == 2 and metrics.finished
    _, val_loader = loaders("crd")
    images = torch.stack([image for image, _ in val_loader.dataset])
    targets = torch.tensor(val_loader.dataset.targets)
    right = lists.modules[0].eval()(images).argmax(1) == targets
    assert metrics.class_correct == tuple(int(right[targets == label].sum()) for label in range(CLASSES))
    assert metrics.class_total == tuple(int((targets == label).sum()) for label in range(CLASSES))
    assert run.best_acc >= 100 * metrics.test_accuracy
    state = torch.load(folder.state, weights_only=True)
    assert state["epoch"] == 2 and state["options"]["distill"] == "crd"
    best = torch.load(folder.student_best_holdout, weights_only=True)
    assert set(best["model"]) == set(lists.modules[0].state_dict())
    assert "tllm_detector: fixed" in folder.config_yaml.read_text()


def test_a_policy_sets_the_weights_before_the_first_epoch(tmp_path: Path) -> None:
    chosen = {"tllm_detector": "none", "tllm_policy": "equal_strength", "tllm_policy_level": "max", "kd_T": 3}
    lists, options = prepared(tmp_path, "kd", **chosen)
    train_loader, val_loader = loaders("kd")
    run = Run(options, train_loader, val_loader)
    run.start(lists.modules, lists.criteria, lists.optimizer())
    wrapper = run.session.wrapper
    weights = wrapper.teaching_weights.clone()
    assert wrapper.mixing_temperature == 3.0 and int((weights == 1).sum()) == 1 and bool((weights > 0).all())
    lists, options = prepared(tmp_path, "kd", **chosen)
    train(lists, options)
    record = RunFolder.inside(tmp_path).read_policy()
    assert torch.equal(torch.tensor([item.weight for item in record.classes]), weights)
    assert (record.policy, record.temperature, record.num_classes) == ("equal_strength", 3.0, CLASSES)
    state = torch.load(RunFolder.inside(tmp_path).state, weights_only=True)["wrapper"]
    assert torch.equal(state["teaching_weights"], weights)


def test_every_prediction_is_kept_and_runs_are_compared_image_by_image(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("vanilla", "kd")]
    for folder, alpha in zip(folders, (0.0, 0.9), strict=True):
        lists, options = prepared(folder, "kd", alpha=alpha)
        train(lists, options, stop_after=1)
        run = RunFolder.inside(folder)
        assert not run.read_metrics().finished and not run.predictions_npz.exists()
        lists, options = prepared(folder, "kd", alpha=alpha, tllm_resume=True)
        train(lists, options)
        _, val_loader = loaders("kd")
        with torch.no_grad():
            expected = torch.cat([lists.modules[0].eval()(image).argmax(1) for image, _ in val_loader])
        found = run.read_predictions()
        assert found.prediction.equal(expected) and found.labels.tolist() == val_loader.dataset.targets
        assert run.has_results() and found.num_classes == CLASSES
    vanilla, kd = (load_run(folder).result for folder in folders)
    assert change_between(vanilla, kd).paired
    shown = tmp_path / "compared.json"
    assert main(["compare", *map(str, folders), "--json", str(shown)]) == 0
    assert json.loads(shown.read_text())["methods"][0]["paired_by_image"] is True


def test_a_learning_rate_of_numpys_does_not_get_into_the_checkpoint(tmp_path: Path) -> None:
    lists, options = prepared(tmp_path, "kd", epochs=1)
    optimizer = lists.optimizer()
    optimizer.param_groups[0]["lr"] = np.float64(0.01)
    train_loader, val_loader = loaders("kd")
    run = Run(options, train_loader, val_loader)
    run.start(lists.modules, lists.criteria, optimizer)
    list(run.epochs())
    assert type(torch.load(RunFolder.inside(tmp_path).state)["optimizer"]["param_groups"][0]["lr"]) is float


def test_resuming_is_refused_where_it_cannot_be_exact(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no epoch was finished under these options; start without it"):
        train(*prepared(tmp_path, tllm_resume=True))
    train(*prepared(tmp_path), stop_after=1)
    with pytest.raises(ConfigError, match="but these differ: --alpha, --epochs; resume with the same ones"):
        train(*prepared(tmp_path, tllm_resume=True, epochs=3, alpha=0.1))
    state = RunFolder.inside(tmp_path).state
    whole = state.read_bytes()
    state.write_bytes(whole[:-100])
    with pytest.raises(FileFormatError, match="a checkpoint to resume from, but it is"):
        train(*prepared(tmp_path, tllm_resume=True))
    state.write_bytes(whole[: len(whole) // 2] + bytes([whole[len(whole) // 2] ^ 1]) + whole[len(whole) // 2 + 1 :])
    with pytest.raises(FileFormatError, match="a checkpoint to resume from, but it is"):
        train(*prepared(tmp_path, tllm_resume=True))
    torch.save({"version": 1}, state)
    with pytest.raises(FileFormatError, match="version 1, but it is something else"):
        train(*prepared(tmp_path, tllm_resume=True))
    state.write_bytes(whole)
    assert train(*prepared(tmp_path, tllm_resume=True)).best_acc > 0


def test_a_new_run_forgets_the_checkpoint_of_an_old_one(tmp_path: Path) -> None:
    train(*prepared(tmp_path))
    lists, options = prepared(tmp_path)
    Run(options, *loaders("crd")).start(lists.modules, lists.criteria, lists.optimizer())
    assert not RunFolder.inside(tmp_path).state.exists()


def test_weights_that_are_left_out_count_as_nothing(tmp_path: Path) -> None:
    for name, weight in (("left out", None), ("zero", 0.0)):
        (tmp_path / name).mkdir()
        train(*prepared(tmp_path / name, "kd", epochs=1, alpha=weight, beta=weight))
    left_out, zero = (torch.load(RunFolder.inside(tmp_path / name).state)["wrapper"] for name in ("left out", "zero"))
    weights = [name for name, value in zero.items() if isinstance(value, torch.Tensor)]
    assert weights and all(torch.equal(left_out[name], zero[name]) for name in weights)


def test_errors_of_detector_and_hold_out_are_about_flags(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Expected `--tllm_classes` to be one of class 0, .*, but got 'no'"):
        train(*prepared(tmp_path, tllm_classes=["no"]))
    with pytest.raises(ConfigError, match="0.1 gives 1 of class 'class 0'; 0.417 would do"):
        train(*prepared(tmp_path, tllm_holdout=0.1))


def test_the_teacher_is_shown_the_hold_out_on_its_own_device(tmp_path: Path) -> None:
    """A parameter on the device `meta` stands for one on a GPU; the images come from the CPU."""
    seen: set[str] = set()

    class Elsewhere(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1, device="meta"))

        def forward(self, image: torch.Tensor) -> Any:
            seen.add(image.device.type)
            return torch.zeros(len(image), CLASSES)

    lists, options = prepared(tmp_path, "kd")
    run = Run(options, *loaders("kd"))
    run.start(lists.modules, lists.criteria, lists.optimizer())
    assert run.session is not None
    lists.modules[-1] = Elsewhere()
    run.session._teacher_predictions()
    assert seen == {"meta"}


def test_init_stages_run_once(tmp_path: Path) -> None:
    calls: list[Any] = []
    for resume in (False, True):
        _, options = prepared(tmp_path, tllm_resume=resume)
        Run(options, *loaders("crd")).init(calls.append, resume)
    assert calls == [False]


def test_random_contrast_is_of_other_classes() -> None:
    loader, _ = loaders("crd")
    for _, target, index, contrast in loader:
        assert contrast.shape == (len(target), 5) and torch.equal(contrast[:, 0], index)
        assert (contrast[:, 1:] % CLASSES != target[:, None]).all()
    relaxed = SimpleNamespace(**vars(loader.dataset))
    relaxed.mode = "relax"
    positives = {int(FolderImages._contrast(relaxed, 3, 3)[0]) for _ in range(50)}  # type: ignore[arg-type]
    assert len(positives) > 3 and {value % CLASSES for value in positives} == {3}
