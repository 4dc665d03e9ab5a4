"""Loggers of LOG.TO: what the libraries themselves read back offline, and failures that are one line."""

from __future__ import annotations

import importlib
import logging
import struct
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.hosts.digits_runs import make_config
from tllm_plugin.core.errors import ConfigError
from tllm_plugin.hosts.embedded import loggers
from tllm_plugin.hosts.embedded.loggers import RunWriter

VALUES = [("test_acc", 0.5, 1), ("train_loss", 2.25, 1), ("test_acc", 0.75, 2)]


def log(folder: Path, *names: str) -> Path:
    """Log `VALUES` to the named loggers, and return the folder of the run."""
    run = folder / "embedded" / "kd"
    cfg = make_config(folder, "LOG.TO", str(list(names)))
    writer = RunWriter(run / "train.events", cfg)
    for name, value, epoch in VALUES:
        writer.add_scalar(name, value, epoch)
    writer.close()
    writer.close()
    return run


def in_tensorboard(run: Path) -> list[tuple[str, float, int]]:
    events = EventAccumulator(str(run / "train.events"))
    events.Reload()
    return [(tag, event.value, event.step) for tag in events.Tags()["scalars"] for event in events.Scalars(tag)]


def test_tensorboard_alone_is_the_default(tmp_path: Path) -> None:
    assert make_config(tmp_path).LOG.TO == ["tensorboard"]
    assert sorted(in_tensorboard(log(tmp_path, "tensorboard"))) == sorted(VALUES)


def test_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow", reason="the optional extra `mlflow` is not installed")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    run = log(tmp_path, "tensorboard", "mlflow")
    assert sorted(in_tensorboard(run)) == sorted(VALUES)
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'mlflow.db'}")
    (found,) = client.search_runs([client.get_experiment_by_name("digits").experiment_id])
    assert found.info.run_name == "kd" and found.info.status == "FINISHED"
    assert found.data.params["DISTILLER.TYPE"] == make_config(tmp_path).DISTILLER.TYPE
    metrics = [client.get_metric_history(found.info.run_id, key) for key in ("test_acc", "train_loss")]
    history = [(metric.key, metric.value, metric.step) for found in metrics for metric in found]
    assert sorted(history) == sorted(VALUES)


def chunks(data: bytes) -> Iterator[bytes]:
    """Yield the records of a log in LevelDB's format, which has a header of 7 bytes and blocks of 32 KiB."""
    place, whole = 7, b""
    while place + 7 <= len(data):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        size, kind = struct.unpack("<HB", data[place + 4 : place + 7])
        whole += data[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # A whole record, or the last part of one.
            yield whole
            whole = b""


def test_wandb_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="the optional extra `wandb` is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    run = log(tmp_path, "wandb")
    assert not list((run / "train.events").iterdir())
    (record,) = run.glob("wandb/offline-run-*/*.wandb")
    pb = importlib.import_module("wandb.proto.wandb_internal_pb2")
    kinds, found = {""}, []
    for _ in range(300):  # The library's own process may write the last records after the run is finished.
        records = [pb.Record.FromString(data) for data in chunks(record.read_bytes())]
        kinds = {content.WhichOneof("record_type") for content in records}
        if "exit" in kinds:
            break
        time.sleep(0.1)
    assert "exit" in kinds
    for content in records:
        if content.WhichOneof("record_type") == "history":
            row = {(item.key or item.nested_key[0]): float(item.value_json) for item in content.history.item}
            found += [(name, row[name], int(row["epoch"])) for name in ("test_acc", "train_loss") if name in row]
    assert sorted(found) == sorted(VALUES)


class Broken:
    """A logger that starts and then loses its server."""

    def __init__(self, cfg: Any, folder: Path) -> None:
        self.calls = 0

    def log(self, name: str, value: float, epoch: int) -> None:
        raise ConnectionError("server\nis gone")

    def close(self) -> None:
        raise AssertionError("a logger that failed is not asked again")


def test_failures_are_one_line_and_tensorboard_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(loggers.SINKS, "wandb", Broken)
    monkeypatch.setitem(sys.modules, "mlflow", None)  # Not installed.
    with caplog.at_level(logging.WARNING):
        run = log(tmp_path, "tensorboard", "wandb", "mlflow")
    assert sorted(in_tensorboard(run)) == sorted(VALUES)
    # Earlier tests may have lowered the level of other libraries.
    told = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(told) == 2 and "mlflow fails (" in told[0]
    assert told[1] == "the logger wandb fails (server is gone); the run goes on without it"


def test_unknown_loggers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="`LOG.TO` to be a list of tensorboard, wandb, mlflow, but got"):
        make_config(tmp_path, "LOG.TO", "[comet]")
