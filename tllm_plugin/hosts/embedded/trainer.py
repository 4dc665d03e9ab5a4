"""Training loop of the embedded host, with the constructor and the methods of mdistiller's `BaseTrainer`."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from itertools import repeat
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from yacs.config import CfgNode

from tllm_plugin.core.data_identity import DataIdentity
from tllm_plugin.core.errors import ConfigError, FileFormatError
from tllm_plugin.core.predictions import Predictions, predict
from tllm_plugin.core.registry import Registry
from tllm_plugin.hosts import processes
from tllm_plugin.hosts.embedded.averaging import StudentAverage
from tllm_plugin.hosts.embedded.distributed import ParallelDistiller, begin_epoch, merge_buffers, single_rows_explained
from tllm_plugin.hosts.embedded.loggers import RunWriter
from tllm_plugin.hosts.embedded.progress import EpochReport, RunProgress
from tllm_plugin.hosts.embedded.run_files import append_epoch, copy_until, read_checkpoint, remove_kept
from tllm_plugin.hosts.embedded.runtime import autocast
from tllm_plugin.hosts.loss_guard import LossGuard
from tllm_plugin.hosts.optimizers import make_optimizer, make_schedule, spare_from_decay
from tllm_plugin.hosts.random_state import set_torch_state, torch_state
from tllm_plugin.hosts.results import peak_memory_bytes, write_checkpoint, write_results
from tllm_plugin.runs import data_file
from tllm_plugin.runs.atomic import remove_temporaries
from tllm_plugin.runs.metrics_file import MetricsRecord
from tllm_plugin.runs.run_folder import RunFolder

logger = logging.getLogger(__name__)

trainer_dict: Registry[Any] = Registry("trainer")


@trainer_dict.register("base")
class BaseTrainer:
    """Train a distiller, test every LOG.TEST_FREQ epochs, and save everything that a resume needs.

    With several ranks, each rank trains on its rows of every batch; only rank 0 writes files.

    Args:
        experiment_name: Folder of the run below `cfg.LOG.PREFIX`.
        distiller: See `distillers.base`; must be on its device.
        train_loader: Yields `(image, target, index)`; has `set_epoch` and, with several ranks, `batch_rows`.
        val_loader: Yields `(image, target)` of the test data, which is reported but never used for a decision.
        cfg: Frozen config.
    """

    def __init__(
        self, experiment_name: str, distiller: nn.Module, train_loader: Any, val_loader: Any, cfg: CfgNode
    ) -> None:
        self.cfg = cfg
        self.distiller = distiller
        self.train_loader = train_loader
        self.val_loader = val_loader
        self.optimizer = self.init_optimizer(cfg)
        self.schedule = make_schedule(cfg.SOLVER, self.optimizer, len(train_loader))
        self.log_path = str(Path(cfg.LOG.PREFIX) / experiment_name)
        self.parallel = ParallelDistiller(distiller)
        student = distiller.get_submodule("student")
        self.average = StudentAverage(student, cfg.SOLVER.EMA_DECAY) if cfg.SOLVER.EMA_DECAY else None
        self.run = RunFolder.inside(self.log_path)
        self.tf_writer: Any = None
        if processes.is_main():
            self.run.create()
            remove_temporaries(self.log_path)  # A killed process may have left a partial checkpoint.
            self.tf_writer = RunWriter(Path(self.log_path) / "train.events", cfg)
        self.device = next(distiller.parameters()).device
        self.guard = LossGuard(check_every=1 if self.device.type == "cpu" else 20)
        self.seconds_per_epoch: list[float] = []
        self.epochs_done = 0
        self.results: Predictions | None = None  # Predictions after the last completed epoch, if it was tested.
        self.progress: RunProgress | None = None
        #: Callback after each epoch; returns whether to keep its checkpoint in addition to LOG.SAVE_CHECKPOINT_FREQ.
        self.keep: Callable[[], bool] = lambda: False
        #: Identity of the training data, stored in the checkpoints.
        self.data = DataIdentity()
        self._config_text = cfg.dump()
        self._saved_at = time.monotonic()

    def init_optimizer(self, cfg: CfgNode) -> torch.optim.Optimizer:
        """Return the config's optimizer over the distiller's learnable parameters."""
        optimizer = make_optimizer(cfg.SOLVER, self.distiller.get_learnable_parameters())  # type: ignore[operator]
        spare_from_decay(optimizer, self.distiller)
        return optimizer

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the context manager that sets the precision of a forward pass."""
        return autocast(self.cfg, self.device)

    def train(self, resume: bool = False) -> None:
        """Train up to the last epoch; with `resume`, continue from the last checkpoint."""
        if resume:
            self.load_checkpoint(Path(self.log_path) / "latest")
        if processes.is_main():
            self.begin_logs()
        title = f"{self.cfg.EXPERIMENT.NAME or self.cfg.DISTILLER.TYPE}"
        shown: AbstractContextManager[RunProgress | None] = nullcontext()
        if processes.is_main():
            shown = RunProgress(title, self.cfg.SOLVER.EPOCHS, len(self.train_loader), self.epochs_done)
        with shown as self.progress:
            for epoch in range(self.epochs_done + 1, self.cfg.SOLVER.EPOCHS + 1):
                self.train_epoch(epoch)
        self.finish()

    def begin_logs(self) -> None:
        """Remove logs and checkpoints of epochs that will be trained again after a resume."""
        folder = Path(self.log_path)
        copy_until(self.epochs_done, folder, folder)
        remove_kept(folder, after=self.epochs_done)
        events = Path(self.tf_writer.log_dir)
        if len(list(events.iterdir())) > 1:
            self.tf_writer.close()
            self.tf_writer = RunWriter(events, self.cfg, purge_step=self.epochs_done + 1)

    def finish(self) -> None:
        """Write the final files of a run; do nothing if the run was finished before."""
        if not processes.from_main(self._was_finished):
            self.write_metrics(finished=True)
        if self.tf_writer is not None:
            self.tf_writer.close()

    def _was_finished(self) -> bool:
        try:
            return self.run.is_finished()
        except FileFormatError:  # What is damaged is written again.
            return False

    def train_epoch(self, epoch: int) -> None:
        """Train one epoch, then log and score it; test and save if due."""
        started = time.perf_counter()
        self.train_loader.set_epoch(epoch)
        self.distiller.train()
        begin_epoch(self.distiller, self.cfg.EXPERIMENT.SEED, epoch)
        # Summed at the end of the epoch: with small networks, a synchronisation in every step would slow down a GPU.
        rows_seen = [0]
        hits = [torch.zeros(0, dtype=torch.bool, device=self.device)]
        loss_means = [torch.zeros((), device=self.device)]
        sizes = self.train_loader.batch_rows if processes.world_size() > 1 else repeat(None)
        for rows, (image, target, index) in zip(sizes, self.train_loader, strict=False):
            self.parallel.begin_batch(rows)
            logits, loss = self.train_iter(image, target, index, epoch)
            rows_seen.append(target.shape[0])
            hits.append(logits.argmax(1) == target)
            loss_means.append(loss)
            if self.progress is not None:
                self.progress.step()
        self.guard.flush()
        # A rank with non-finite losses raises before this point, and the other ranks cannot pass it.
        weights = torch.tensor(rows_seen, dtype=torch.float64)
        loss_sum = (torch.stack(loss_means).cpu().double() * weights).sum()
        right = torch.cat(hits).sum().cpu()
        seen, right, loss_sum = processes.summed(torch.stack([weights.sum(), right.double(), loss_sum])).unbind()
        merge_buffers(self.distiller)
        if self.average is not None and processes.world_size() > 1:
            processes.share_buffers(self.average.averaged)  # Each rank has averaged its own statistics.
        self.epochs_done = epoch
        every = self.cfg.LOG.TEST_FREQ
        self.results = self.test() if every > 0 and epoch % every == 0 else None
        report = EpochReport(
            epoch=epoch,
            train_loss=float(loss_sum / seen),
            train_accuracy=float(right / seen),
            test_accuracy=None if self.results is None else self.results.accuracy,
            learning_rate=float(self.schedule.get_last_lr()[0]),
        )
        self.seconds_per_epoch.append(time.perf_counter() - started)
        self.log(report)
        with self.averaged():
            self.score_holdout(epoch)
        log = self.cfg.LOG
        kept = self.keep() or epoch % log.SAVE_CHECKPOINT_FREQ == 0
        if kept or epoch == self.cfg.SOLVER.EPOCHS or time.monotonic() - self._saved_at >= log.SAVE_SECONDS:
            self.save_epoch(epoch, kept=kept)

    def score_holdout(self, epoch: int) -> None:
        """Hook before a checkpoint is saved, for scores that it should contain; does nothing here."""

    def save_epoch(self, epoch: int, *, kept: bool) -> None:
        """Write all files of the run after an epoch.

        Args:
            epoch: The last trained epoch.
            kept: Whether to keep this checkpoint when the next one is written.
        """
        if self.tf_writer is not None:
            self.tf_writer.flush()
        self.save_checkpoint(kept=kept)
        self.write_metrics(finished=False)
        self._saved_at = time.monotonic()

    def test(self) -> Predictions:
        """Return the student's predictions for the test data."""
        with self.averaged():
            return predict(self.distiller, self.val_loader, keyword="image", autocast=self.autocast)

    def averaged(self) -> AbstractContextManager[Any]:
        """Return a context in which the student has its averaged weights, if the config asks for these."""
        return nullcontext() if self.average is None else self.average.in_place()

    def train_iter(self, image: Tensor, target: Tensor, index: Tensor, epoch: int) -> tuple[Tensor, Tensor]:
        """Make one optimisation step; return logits (n, C) and the 0-dim total loss of this rank's rows, both detached.

        The batch is processed in `SOLVER.ACCUMULATE` micro-batches, whose gradients are accumulated. The sum equals the
        gradient of the whole batch if all losses are means over rows and no layer combines rows (BatchNorm sees one
        micro-batch at a time).
        """
        if self.cfg.RUNTIME.CHANNELS_LAST:
            image = image.contiguous(memory_format=torch.channels_last)
        self.optimizer.zero_grad(set_to_none=True)
        batch_rows = target.shape[0]
        parts = self.parallel.parts(self.cfg.SOLVER.ACCUMULATE, batch_rows)
        outputs: list[Tensor] = []
        totals: list[Tensor] = []
        for images, targets, rows in zip(*(item.tensor_split(parts) for item in (image, target, index)), strict=True):
            part_rows = targets.shape[0]
            with self.parallel.accumulating(last=len(outputs) == parts - 1):
                with self.autocast(), single_rows_explained():
                    logits, losses = self.parallel(image=images, target=targets, index=rows, epoch=epoch)
                means = torch.stack([loss.mean() for loss in losses.values()])
                self.guard.see(epoch, losses, means, rows)
                total = means.sum()
                (total * self.parallel.weight(part_rows, batch_rows)).backward()
            outputs.append(logits.detach())
            totals.append(total.detach() * (part_rows / batch_rows))
        self.parallel.drop_held()
        self.optimizer.step()
        if self.average is not None:
            self.average.update()
        self.schedule.step()
        return torch.cat(outputs), torch.stack(totals).sum()

    def log(self, report: EpochReport) -> None:
        """Write the metrics of an epoch to TensorBoard, `worklog.txt` and the console."""
        if not processes.is_main():
            return
        for name, value in report.scalars().items():
            self.tf_writer.add_scalar(name, value, report.epoch)
        append_epoch(Path(self.log_path), report.epoch, report.scalars())
        if self.progress is not None:
            self.progress.epoch(report)

    def save_checkpoint(self, *, kept: bool) -> None:
        """Write `latest` and `student_latest` (plain weights); if `kept`, also under names that are not overwritten."""
        if not processes.is_main():
            return
        data = {data_file.KEY: data_file.to_text(self.data)}
        state = {
            "epoch": self.epochs_done,
            "config": self._config_text,
            **data,
            "model": self.distiller.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "seconds_per_epoch": self.seconds_per_epoch,
            "rng": torch_state(self.device),
        }
        if self.average is not None:
            state["average"] = self.average.averaged.state_dict()
        with self.averaged():
            weights = self.distiller.student.state_dict()  # type: ignore[union-attr]
            weights = weights if self.average is None else deepcopy(weights)
        student = {"model": weights, **data}
        write_checkpoint(Path(self.log_path), self.epochs_done, state, student, kept=kept)

    def load_checkpoint(self, path: Path) -> None:
        """Continue from a checkpoint of the same config.

        Raises:
            FileFormatError: The checkpoint is missing, damaged or does not fit the networks of this run.
            ConfigError: The checkpoint was written with another config.
        """
        state = processes.from_main(lambda: read_checkpoint(path, self.cfg))
        try:
            self.distiller.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            if self.average is not None:
                self.average.averaged.load_state_dict(state["average"])
        except ConfigError:
            raise
        except (RuntimeError, ValueError, KeyError) as error:
            raise FileFormatError(f"Expected {path} to fit this run's networks, but {error}") from error
        self.schedule.load_state_dict(state["schedule"])
        self.seconds_per_epoch = list(state["seconds_per_epoch"])
        self.epochs_done = int(state["epoch"])
        set_torch_state(state["rng"], self.device)

    def write_metrics(self, *, finished: bool) -> None:
        """Write `metrics.json`; for a finished run also test and write `predictions.npz`, unless tests are off."""
        results = self.results or (self.test() if finished and self.cfg.LOG.TEST_FREQ >= 0 else None)
        if not processes.is_main():
            return
        metrics = MetricsRecord.untested(
            seconds_per_epoch=tuple(self.seconds_per_epoch),
            peak_memory_bytes=peak_memory_bytes(self.device),
            epochs_done=self.epochs_done,
            finished=finished,
        )
        write_results(self.run, metrics, results)
