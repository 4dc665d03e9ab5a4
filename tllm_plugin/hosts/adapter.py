"""Registers TLLM in a host with the contract of mdistiller: a config node, the trainer `tllm`, the distiller `TLLM`.

The trainer is the host's own (`TLLM.TRAINER`), subclassed at the time of the call: its loop, logging and checkpoints
run as they are, around a wrapped distiller and without the hold-out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn
from yacs.config import CfgNode

from tllm_plugin.core.errors import ConfigError, unknown_name
from tllm_plugin.core.predictions import Predictions, predict
from tllm_plugin.hosts.config_checks import refuse
from tllm_plugin.hosts.optimizers import spare_from_decay, use_nesterov
from tllm_plugin.hosts.options import settle_fdr
from tllm_plugin.hosts.random_state import RandomState
from tllm_plugin.hosts.results import write_results
from tllm_plugin.hosts.same_data import CarriedData, check_named_teacher
from tllm_plugin.hosts.teaching import Batches, Teaching, TrainingData
from tllm_plugin.runs.metrics_file import MetricsRecord
from tllm_plugin.runs.reading import check_torch


@dataclass(frozen=True)
class Host:
    """What the adapter needs to know of a host.

    Args:
        trainers: Name -> class with the signature of mdistiller's `BaseTrainer`.
        distillers: Name -> `(student, teacher, cfg) -> distiller`.
        special_types: Distiller types that the host itself treats by name.
        training_data: `(train_loader, val_loader, cfg) -> TrainingData`.
        inner_trainer: `cfg ->` name of the trainer whose loop is used.
        carries_rng: Whether the host's checkpoint lacks the random numbers' state, and what the run was trained on, so
            that the wrapper brings them.
    """

    trainers: Mapping[str, Any]
    distillers: Mapping[str, Any]
    special_types: frozenset[str]
    training_data: Callable[[Any, Any, CfgNode], TrainingData]
    inner_trainer: Callable[[CfgNode], str] = lambda cfg: str(cfg.TLLM.TRAINER)
    carries_rng: bool = False


def make_trainer_factory(host: Host) -> Callable[..., Any]:
    """Return what a host registers as the trainer `tllm`."""

    def tllm_trainer(
        experiment_name: str, distiller: nn.Module, train_loader: Any, val_loader: Any, cfg: CfgNode
    ) -> Any:
        refuse(settle_fdr(cfg.TLLM))
        name = host.inner_trainer(cfg)
        if name not in host.trainers or name == "tllm":
            known = sorted(set(host.trainers) - {"tllm"})
            raise ConfigError(f"Expected `TLLM.TRAINER` to be one of {', '.join(known)}, but got {name!r}")
        trainer = type("TLLMTrainer", (_TLLMTrainer, host.trainers[name]), {"carries_rng": host.carries_rng})
        data = host.training_data(train_loader, val_loader, cfg)
        return trainer(experiment_name, distiller, data, val_loader, cfg)

    return tllm_trainer


def make_distiller_factory(host: Host) -> Callable[..., nn.Module]:
    """Return what a host registers as the distiller `TLLM`: the inner one, which the trainer `tllm` then wraps."""

    def tllm_distiller(student: nn.Module, teacher: nn.Module, cfg: CfgNode) -> nn.Module:
        inner = cfg.TLLM.DISTILLER
        if inner not in host.distillers:
            raise ConfigError(unknown_name("TLLM.DISTILLER", inner, set(host.distillers) - {"TLLM"}))
        if inner in host.special_types or inner == "TLLM":
            raise ConfigError(
                f"Expected `TLLM.DISTILLER` to be a type that the host does not treat by name, but got {inner!r}: keep "
                f"DISTILLER.TYPE {inner!r} and set SOLVER.TRAINER to 'tllm' instead"
            )
        if cfg.SOLVER.TRAINER != "tllm":
            raise ConfigError(
                f"Expected `SOLVER.TRAINER` to be 'tllm' for DISTILLER.TYPE 'TLLM', but got {cfg.SOLVER.TRAINER!r}"
            )
        distiller: nn.Module = host.distillers[inner](student, teacher, cfg)
        return distiller

    return tllm_distiller


class _TLLMTrainer:
    """Mixed in before a host's trainer; touches only what every trainer of that contract has."""

    distiller: nn.Module
    log_path: str
    tf_writer: Any
    cfg: CfgNode
    carries_rng = False

    def __init__(
        self, experiment_name: str, distiller: nn.Module, data: TrainingData, val_loader: Any, cfg: CfgNode
    ) -> None:
        parallel = distiller if isinstance(distiller, nn.DataParallel) else None
        inner: nn.Module = distiller if parallel is None else parallel.module
        self.teaching = Teaching(cfg.TLLM, inner, data, cfg.SOLVER.EPOCHS)
        wrapped: nn.Module = self.teaching.wrapper
        self.tllm_device = next(inner.parameters()).device
        wrapped.to(self.tllm_device)
        if self.carries_rng:
            self.teaching.wrapper.carry("rng", RandomState())
            folder = Path(cfg.LOG.PREFIX) / experiment_name
            self.teaching.wrapper.carry("data", CarriedData(self.teaching.data, folder))
            check_named_teacher(cfg.get("DISTILLER", {}).get("TEACHER_CHECKPOINT", ""), self.teaching.data)
        if parallel is not None:
            wrapped = nn.DataParallel(wrapped, device_ids=parallel.device_ids)
        super().__init__(experiment_name, wrapped, self.teaching.train_loader, val_loader, cfg)  # type: ignore[call-arg]
        self.test_batches = val_loader
        run = self.teaching.open(self.log_path)
        # A host that has such a method tests and describes its runs itself.
        self.writes_results = hasattr(self, "write_metrics")
        if not self.writes_results:
            run.metrics_json.unlink(missing_ok=True)  # Of an earlier run in this folder.
            run.write_config(cfg.dump())

    def init_optimizer(self, cfg: CfgNode) -> Any:
        optimizer = super().init_optimizer(cfg)  # type: ignore[misc]
        spare_from_decay(optimizer, self.teaching.wrapper)
        if cfg.SOLVER.get("NESTEROV", False):
            use_nesterov(optimizer)
        return optimizer

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the precision to score in; a host's trainer that has its own overrides this."""
        parent = getattr(super(), "autocast", nullcontext)
        context: AbstractContextManager[Any] = parent()
        return context

    def train_epoch(self, epoch: int) -> None:
        self.teaching.decide()
        self._catch_up(epoch - 1)
        super().train_epoch(epoch)  # type: ignore[misc]
        self._catch_up(epoch)

    def train(self, resume: bool = False) -> None:
        latest = Path(self.log_path) / "latest"
        if resume and not self.writes_results and latest.exists():
            check_torch(latest, "a checkpoint to resume from")  # The host loads it without looking.
        super().train(resume=resume)  # type: ignore[misc]
        self._catch_up(self.cfg.SOLVER.EPOCHS)
        if not self.writes_results and self.teaching.run is not None:
            metrics = MetricsRecord(
                test_accuracy=None,
                class_correct=(),
                class_total=(),
                seconds_per_epoch=(),
                peak_memory_bytes=None,
                epochs_done=self.cfg.SOLVER.EPOCHS,
                finished=True,
            )
            write_results(self.teaching.run, metrics, self._predict(self.test_batches))

    def score_holdout(self, epoch: int) -> None:
        # A host that has such a method calls it before it saves; then its checkpoints hold the scores.
        self.teaching.score(epoch, self._predict, self.tf_writer)

    def save_epoch(self, epoch: int, *, kept: bool) -> None:
        # A host that has such a method calls it when files are to be written.
        self.teaching.write(epoch, kept=kept)
        super().save_epoch(epoch, kept=kept)  # type: ignore[misc]
        self.teaching.settle()

    def finish(self) -> None:
        # A host that has such a method calls it before it declares the run finished.
        self._catch_up(self.cfg.SOLVER.EPOCHS)
        if self.teaching.written != self.cfg.SOLVER.EPOCHS:
            # A run that was resumed after its last epoch may have a checkpoint and no other files.
            self.teaching.write(self.cfg.SOLVER.EPOCHS)
        super().finish()  # type: ignore[misc]
        if self.cfg.LOG.get("TEST_FREQ", 0) < 0:  # Otherwise the test data have said it.
            self.teaching.tell_if_at_chance(self.log_path)

    def _catch_up(self, epoch: int) -> None:
        self.teaching.catch_up(epoch, self._predict, self.tf_writer)

    def _predict(self, batches: Batches) -> Predictions:
        return predict(self.distiller, batches, keyword="image", device=self.tllm_device, autocast=self.autocast)
