"""The adapter in a host of the forks' shape: a trainer `ours`, two views per image, a plain `DataLoader`."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from tests.distiller_cases import NUM_CLASSES, TwoView, networks
from tests.hosts.fork_shaped_host import HOST, PER_CLASS, Images, config, one_view, two_views
from tllm_plugin.core.errors import ConfigError, FileFormatError
from tllm_plugin.hosts import processes
from tllm_plugin.hosts.factories import make_distiller_factory, make_trainer_factory
from tllm_plugin.runs.run_folder import RunFolder


def test_two_view_run(tmp_path: Path) -> None:
    torch.manual_seed(0)
    student, teacher = networks()
    taught: list[int] = []
    teacher.register_forward_hook(lambda module, args, output: taught.append(len(args[0])))
    train = DataLoader(Images(two_views), batch_size=24, shuffle=True)
    val = DataLoader(Images(one_view), batch_size=24)
    distiller = nn.DataParallel(TwoView(student, teacher))
    trainer = make_trainer_factory(HOST)("run", distiller, train, val, config(tmp_path))
    taught.clear()
    trainer.train()
    held_out = set(RunFolder.inside(tmp_path / "run").read_split().holdout)
    assert len(held_out) == 10 * NUM_CLASSES
    assert set(trainer.seen) == set(range(len(train.dataset))) - held_out  # type: ignore[arg-type]
    assert trainer.losses == {"loss_ce", "loss_kd"}
    # Both views of the distillable rows in every epoch, and the hold-out once.
    distillable = 3 * 2 * (NUM_CLASSES - 2) * (PER_CLASS - 10)
    assert sum(taught) == distillable + len(held_out)
    record = RunFolder.inside(tmp_path / "run").read_flags()
    assert record.epochs == 3 and record.flagged == (1, 4)


def test_a_script_that_knows_of_no_other_process_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(processes, "joined", nullcontext)
    loaders = [DataLoader(Images(view), batch_size=24) for view in (two_views, one_view)]
    with pytest.raises(ConfigError, match="Expected one process for .*, but a launcher started 2"):
        make_trainer_factory(HOST)("run", nn.DataParallel(TwoView(*networks())), *loaders, config(tmp_path))


def test_a_host_does_not_resume_from_a_damaged_checkpoint(tmp_path: Path) -> None:
    """The host loads it by itself, and PyTorch does not look at the checksums that it wrote."""
    loaders = [DataLoader(Images(view), batch_size=24) for view in (two_views, one_view)]
    distiller = nn.DataParallel(TwoView(*networks()))
    trainer = make_trainer_factory(HOST)("run", distiller, *loaders, config(tmp_path))
    latest = tmp_path / "run" / "latest"
    torch.save({"model": torch.arange(1000.0)}, latest)
    data = bytearray(latest.read_bytes())
    data[len(data) // 2] ^= 1
    latest.write_bytes(data)
    assert not torch.load(latest)["model"].equal(torch.arange(1000.0))
    with pytest.raises(FileFormatError, match="run/latest to be a checkpoint to resume from, but it is .*damaged"):
        trainer.train(resume=True)
    assert not trainer.seen
    trainer.train()
    assert trainer.seen


def test_a_type_that_the_fork_treats_by_name(tmp_path: Path) -> None:
    cfg = config(tmp_path)
    cfg.TLLM.DISTILLER = "MLKD"
    with pytest.raises(ConfigError, match="keep DISTILLER.TYPE 'MLKD' and set SOLVER.TRAINER to 'tllm' instead"):
        make_distiller_factory(HOST)(*networks(), cfg)
