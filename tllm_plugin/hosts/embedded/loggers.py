"""Send the scalars of a run to the loggers of LOG.TO: TensorBoard, Weights & Biases, MLflow.

A logger never stops a run: if it is not installed, does not start or fails later, one line says so, and the run goes on
without it. Only TensorBoard, whose files are part of the run folder, raises errors.
"""

from __future__ import annotations

import logging
import netrc
import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from yacs.config import CfgNode

from tllm_plugin.hosts.embedded.events import EventWriter
from tllm_plugin.hosts.yaml_text import plain

logger = logging.getLogger(__name__)

TENSORBOARD, WANDB, MLFLOW = "tensorboard", "wandb", "mlflow"


class Sink(Protocol):
    """A logger beside TensorBoard."""

    def log(self, name: str, value: float, epoch: int) -> None:
        """Record a scalar."""

    def close(self) -> None:
        """Finish the record."""


class _Wandb:
    """A run of Weights & Biases in the run folder; without a key or WANDB_MODE it is kept offline."""

    def __init__(self, cfg: CfgNode, folder: Path) -> None:
        import wandb

        mode: Any = os.environ.get("WANDB_MODE") or ("online" if _has_wandb_key() else "offline")
        self._run = wandb.init(
            project=cfg.EXPERIMENT.PROJECT.replace("/", "-"),
            name=folder.name,
            dir=str(folder),
            config=dict(plain(cfg)),
            mode=mode,
            settings=wandb.Settings(silent=True),
        )

    def log(self, name: str, value: float, epoch: int) -> None:
        self._run.log({name: value, "epoch": epoch}, step=epoch)

    def close(self) -> None:
        self._run.finish()


def _has_wandb_key() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:  # Where `wandb login` puts it.
        return netrc.netrc().authenticators("api.wandb.ai") is not None
    except (OSError, netrc.NetrcParseError):
        return False


class _Mlflow:
    """A run of MLflow at MLFLOW_TRACKING_URI, or without it in `mlruns` below LOG.PREFIX."""

    def __init__(self, cfg: CfgNode, folder: Path) -> None:
        import mlflow

        place = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{Path(cfg.LOG.PREFIX).resolve() / 'mlflow.db'}"
        self._client = mlflow.MlflowClient(tracking_uri=place)
        project = cfg.EXPERIMENT.PROJECT
        known = self._client.get_experiment_by_name(project)
        number = known.experiment_id if known is not None else self._client.create_experiment(project)
        self._run = self._client.create_run(number, run_name=folder.name).info.run_id
        for key, value in _flat(plain(cfg)):
            self._client.log_param(self._run, key, str(value)[:500])

    def log(self, name: str, value: float, epoch: int) -> None:
        self._client.log_metric(self._run, name, value, step=epoch)

    def close(self) -> None:
        self._client.set_terminated(self._run)


SINKS: dict[str, Callable[[CfgNode, Path], Sink]] = {WANDB: _Wandb, MLFLOW: _Mlflow}
LOGGERS = (TENSORBOARD, *SINKS)


class RunWriter(EventWriter):
    """TensorBoard writer of a run that passes scalars on to the other loggers of LOG.TO.

    Args:
        folder: Folder of the event files; the loggers know the run by the name of the folder above.
        cfg: Config of the run.
        purge_step: First step that a resumed run writes again.
    """

    def __init__(self, folder: Path, cfg: CfgNode, purge_step: int | None = None) -> None:
        self._writes_events = TENSORBOARD in cfg.LOG.TO
        super().__init__(str(folder), purge_step=purge_step)
        folder.mkdir(parents=True, exist_ok=True)
        self._sinks: dict[str, Sink] = {}
        for name in cfg.LOG.TO:
            if name != TENSORBOARD:
                self._softly(name, partial(self._start, name, cfg, folder.parent))

    def add_scalar(self, tag: str, scalar_value: Any, global_step: int | None = None, *rest: Any, **how: Any) -> None:
        """Record a scalar in every logger."""
        super().add_scalar(tag, scalar_value, global_step, *rest, **how)
        for name, sink in list(self._sinks.items()):
            self._softly(name, partial(sink.log, tag, float(scalar_value), global_step or 0))

    def close(self) -> None:
        """Close all loggers; a second call does nothing."""
        super().close()
        for name, sink in list(self._sinks.items()):
            self._softly(name, sink.close)
        self._sinks.clear()

    def _start(self, name: str, cfg: CfgNode, folder: Path) -> None:
        self._sinks[name] = SINKS[name](cfg, folder)

    def _get_file_writer(self) -> Any:
        return super()._get_file_writer() if self._writes_events else _Nowhere()

    def _softly(self, name: str, act: Callable[[], Any]) -> None:
        try:
            act()
        except Exception as error:  # Whatever a library, its server or its disk raises.
            cause = (" ".join(str(error).split()) or type(error).__name__)[:200]
            logger.warning("the logger %s fails (%s); the run goes on without it", name, cause)
            self._sinks.pop(name, None)


class _Nowhere:
    """Discards events."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *arguments, **how: None


def _flat(content: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for key, value in content.items():
        found += _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else [(f"{prefix}{key}", value)]
    return found
