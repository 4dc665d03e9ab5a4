"""TLLM in a training loop of the user's own."""

from __future__ import annotations

import logging
import os
import shlex
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.utils.data import DistributedSampler

from tllm_plugin.core import contract
from tllm_plugin.core.arguments import whole_number
from tllm_plugin.core.carried import HasState
from tllm_plugin.core.curves import Curves
from tllm_plugin.core.errors import ConfigError
from tllm_plugin.core.predictions import Predictions, predict
from tllm_plugin.hosts import processes
from tllm_plugin.hosts.contract import Batches, Writer, extras_of
from tllm_plugin.hosts.host_session import HostSession
from tllm_plugin.hosts.own_loop.checkpoint import SessionCheckpoint, find_optimizer, find_scheduler
from tllm_plugin.hosts.own_loop.data import SessionData, SessionLoader, TrainRows, make_loader
from tllm_plugin.hosts.own_loop.description import describe
from tllm_plugin.hosts.own_loop.networks import Predicting, check_networks, device_of
from tllm_plugin.hosts.own_loop.options import errors_name_keywords, session_node
from tllm_plugin.hosts.results import described, peak_memory_bytes, write_results
from tllm_plugin.hosts.run_lock import run_lock
from tllm_plugin.hosts.same_data import CarriedData
from tllm_plugin.hosts.session_records import flags_record
from tllm_plugin.hosts.shown_data import part_shown
from tllm_plugin.runs.metrics_file import MetricsRecord
from tllm_plugin.runs.notebook import flags_html
from tllm_plugin.runs.run_folder import RunFolder

logger = logging.getLogger(__name__)

# Options of `DataLoader` that the hold-out and the test data are read with, too.
_READING = ("num_workers", "pin_memory", "timeout", "multiprocessing_context", "prefetch_factor", "worker_init_fn")


class Session:
    """Train with TLLM in a loop of your own: hold-out, scores, flags, checkpoints and the files of the run.

    The loop calls `session.distiller` instead of the distiller, takes its batches from `session.loader`, and ends every
    epoch with `end_epoch`; see the example in README. Started again after a crash, the same script continues after the
    last epoch that was ended, as if it had not been interrupted.

    With several ranks, initialise the process group first and wrap `session.distiller` (or the distiller before) in
    `DistributedDataParallel`. Every rank makes the same calls; rank 0 writes.

    Args:
        distiller: `student` and `teacher` with `forward(image=, target=) -> (logits, losses)`: `KD(student, teacher)`,
            `Vanilla(student)`, or one of your own; see `TLLMWrapper`. Move it to its device first.
        train_set: Map-style data set of `(image, label, ...)`, or of mappings with keys such as `image` and `label`.
            Labels are class indices 0 to C - 1, in an attribute `targets` or `labels` or read from the samples once.
        epochs: Epochs of the run.
        run: Folder of the run, for its files and checkpoints.
        reference: Run folder of a vanilla student that was trained with the same data and hold-out, for the detector
            `reference`.
        holdout_transform: Test-time transform, with which the hold-out is read instead of `train_set.transform`.
        autocast: Returns the context manager that sets the precision of predictions.
        options: Options of the hold-out, the detector, the policy and the wrapper, by the names that `tllm config keys`
            lists, in lower case: `detector`, `eta`, `fdr`, `classes`, `holdout_fraction`, `ce_weight`, `policy`, ...

    Raises:
        ConfigError: An argument is unknown or out of range; the data set has no labels, or labels that are not 0 to
            C - 1, or no positions; a network does not fit the images or the classes.
    """

    def __init__(
        self,
        distiller: nn.Module,
        train_set: Any,
        *,
        epochs: int,
        run: str | os.PathLike[str],
        reference: str | os.PathLike[str] | None = None,
        holdout_transform: Callable[[Any], Any] | None = None,
        autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
        **options: Any,
    ) -> None:
        if processes.world_size() == 1 and processes.were_started():
            raise ConfigError(
                "Expected a process group, because a launcher started several processes; call "
                "`torch.distributed.init_process_group()` before the session is made"
            )
        self.total_epochs = whole_number("epochs", epochs, 1)
        named = {} if reference is None else {"reference": os.fspath(reference)}
        node = session_node({**options, **named})
        parallel = distiller if isinstance(distiller, nn.DataParallel | DistributedDataParallel) else None
        inner: nn.Module = distiller if parallel is None else parallel.module
        contract.check_networks(inner)
        self._data = SessionData(train_set, holdout_transform)
        check_networks(inner, self._data.example(), len(self._data.class_names))
        with errors_name_keywords():
            self._host = HostSession(node, inner, self._data, self.total_epochs)
        wrapper = self._host.wrapper.to(device_of(inner.get_submodule("student")))
        #: What the loop calls in the place of the distiller: `distiller(image=, target=) -> (logits, losses)`.
        self.distiller: nn.Module = wrapper
        if parallel is not None:
            parallel.module = wrapper
            self.distiller = parallel
        self._folder = Path(run)
        wrapper.carry("data", CarriedData(self._host.data, self._folder))
        wrapper.register_forward_pre_hook(self._note_step)
        self._config = describe(inner, node, self.total_epochs)
        self._checkpoint = SessionCheckpoint(self.run, self._config, wrapper, self._host.data)
        self._autocast = autocast
        self._loaders: list[SessionLoader] = []
        self._seconds: list[float] = []
        self._open_epoch: int | None = None
        self._trains_on_own_rows = False
        self._stepped = False
        #: Epochs that were trained and ended, those of earlier processes included once `epochs` was begun.
        self.epochs_done = 0

    def __repr__(self) -> str:
        flagged, classes = int(self.flags.sum()), len(self.class_names)
        done = f"{self.epochs_done} of {self.total_epochs} epochs"
        return f"Session(run={str(self._folder)!r}, {done}, {flagged} of {classes} classes flagged)"

    def _repr_html_(self) -> str:
        host = self._host
        return flags_html(repr(self), flags_record(host.detector, host.node, self.class_names, self.epochs_done))

    @property
    def class_names(self) -> tuple[str, ...]:
        """(C,) names of the classes."""
        return self._data.class_names

    @property
    def device(self) -> torch.device:
        """Device of the student."""
        return device_of(self._host.wrapper.student)

    @property
    def flags(self) -> Tensor:
        """(C,) bool, True for every class that has lost its teacher."""
        return self._host.detector.flags

    @property
    def curves(self) -> Curves:
        """Hold-out history of the run."""
        return self._host.curves

    @property
    def epochs_left(self) -> int:
        """Epochs that are left to train, for trainers that count them; read from the checkpoint before `epochs`."""
        if self.epochs_done:
            return self.total_epochs - self.epochs_done
        state = self._checkpoint.read()
        return self.total_epochs - (0 if state is None else int(state["epoch"]))

    @property
    def run(self) -> RunFolder:
        """Files of the run."""
        return RunFolder.inside(self._folder)

    def carry(self, name: str, holder: HasState) -> None:
        """Save and load the state of another object of the loop with the checkpoints.

        Args:
            name: A name for it, the same in every process that trains the run.
            holder: For example a gradient scaler, or a moving average of the student. Its state consists of tensors and
                plain values.
        """
        self._host.wrapper.carry(f"loop/{name}", holder)  # The wrapper carries objects of its own.

    def dataset(self, *, with_index: bool = False) -> TrainRows:
        """Return the samples to train on, `train_set` without the hold-outs, for a loader of another library.

        Args:
            with_index: Append to every sample its position in `train_set`.
        """
        self._trains_on_own_rows = True
        return self._rows(with_index)

    def loader(self, *, with_index: bool = False, **options: Any) -> SessionLoader:
        """Return a loader over the samples to train on; the hold-out is read with the same workers.

        With several ranks every rank draws its own samples, and `batch_size` is that of a rank. A last batch of one row
        is put into the batch before it.

        Args:
            with_index: Append to every sample its position in `train_set`.
            options: Keyword arguments of `torch.utils.data.DataLoader`. A sampler of your own draws positions in
                `session.dataset()`.

        Raises:
            ConfigError: PyTorch refuses the options.
        """
        loader = make_loader(self._rows(with_index), self._note_loader, options)
        self._data.reading.update({name: options[name] for name in _READING if name in options})
        if options.get("persistent_workers"):
            logger.warning(
                "workers that persist keep random numbers which no checkpoint has: after a crash, the images of the "
                "epochs to come are augmented otherwise; leave persistent_workers out to continue exactly"
            )
        self._loaders.append(loader)
        return loader

    def epochs(self, *, optimizer: Optimizer | None = None, scheduler: Any = None) -> Iterator[int]:
        """Yield the epochs to train, counted from 1; after a crash, those that are left.

        The checkpoint is loaded into the networks, the optimizer and the scheduler, and the random numbers go on where
        it was written. Only one process (or job of several ranks) can train a run at a time.

        Args:
            optimizer: What the checkpoint's optimizer state is loaded into. By default the only optimizer of this
                process that trains parameters of the distiller.
            scheduler: The same for the learning rate's schedule. By default the only scheduler of that optimizer.

        Raises:
            ConfigError: The folder holds a run with another distiller or other options, another process is training
                it, or an epoch was not ended before the next one.
            FileFormatError: The checkpoint is damaged, or does not fit the networks or the optimizer.
        """
        with run_lock(self._folder.absolute(), wait=False):
            self._begin(optimizer, scheduler)
            for epoch in range(self.epochs_done + 1, self.total_epochs + 1):
                self._begin_epoch(epoch)
                yield epoch
                if self._open_epoch is not None:
                    raise ConfigError(
                        f"Expected `session.end_epoch(optimizer=...)` at the end of epoch {epoch}, before the next one"
                    )

    def end_epoch(self, *, optimizer: Optimizer, scheduler: Any = None, writer: Writer | None = None) -> None:
        """Score the hold-out, update the flags, and write the files and the checkpoint of the run.

        Args:
            optimizer: The optimizer, for the checkpoint.
            scheduler: The schedule of the learning rate, if any: an object with `state_dict` and `load_state_dict`.
            writer: TensorBoard writer for scores and flags.

        Raises:
            ConfigError: No epoch is under way, or nothing was trained in it by `session.distiller`.
        """
        epoch = self._open_epoch
        if epoch is None:
            ended = f"epoch {self.epochs_done} is ended already" if self.epochs_done else "none has begun"
            raise ConfigError(f"Expected one `end_epoch` in every epoch of `session.epochs()`, but {ended}")
        if not self._stepped:
            raise ConfigError(
                f"Expected epoch {epoch} to be trained by calls of `session.distiller(image=..., target=...)`, but "
                "there was none; call it in the place of the distiller"
            )
        self._seconds.append(time.perf_counter() - self._started)
        processes.share_buffers(self._host.wrapper)
        self._host.score(epoch, self._predict, writer)
        self.epochs_done, self._open_epoch = epoch, None
        self._host.write(epoch)
        self._checkpoint.write(epoch, self._seconds, optimizer, scheduler, self._generators)
        self._write_results(None)
        self._host.settle()

    def finish(self, test_set: Any) -> Predictions:
        """Predict the test set and write the results, which `tllm compare`, `report` and `headroom` read.

        Args:
            test_set: Data set like `train_set`, with the test-time transform.

        Returns:
            The student's predictions for the test set, in its order.

        Raises:
            ConfigError: Epochs are left, or the test set has no labels or other classes.
        """
        if self.epochs_done < self.total_epochs:
            raise ConfigError(
                f"Expected all {self.total_epochs} epochs of `session.epochs()` before `finish`, but "
                f"{self.epochs_done} are done"
            )
        batches, labels = self._data.test_batches(test_set)
        predictions = self._predict(batches)
        self._write_results(predictions)
        if self._host.run is not None:
            part = part_shown(test_set, labels, len(self.class_names))
            self._host.run.write_data(replace(self._host.data, test=part))
            logger.info("next: tllm show %s", shlex.quote(str(self._folder)))
        self._host.tell_if_powerless()
        return predictions

    def _rows(self, with_index: bool) -> TrainRows:
        rows: TrainRows = self._host.train_loader
        return TrainRows(rows.dataset, rows.indices, with_index)

    def _note_loader(self) -> None:
        self._trains_on_own_rows = True

    def _note_step(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        if module.training and not self._trains_on_own_rows:
            raise ConfigError(
                "Expected batches of `session.loader(...)`, which leaves the hold-out out, but got others; a loader of "
                "another library can be made of `session.dataset()`"
            )
        self._stepped = self._stepped or module.training

    def _predict(self, batches: Batches) -> Predictions:
        wrapper = self._host.wrapper
        network = wrapper.student if wrapper.predictor is None else Predicting(wrapper)
        classes = len(self.class_names)
        return predict(network, batches, num_classes=classes, device=self.device, autocast=self._autocast)

    def _begin(self, optimizer: Optimizer | None, scheduler: Any) -> None:
        state = self._checkpoint.read()
        run = self._host.open(str(self._folder))
        if processes.is_main():
            run.write_config(described(self._config))
            if state is None:
                run.metrics_json.unlink(missing_ok=True)
        if state is None:
            return
        if state["epoch"] < self.total_epochs:
            optimizer = optimizer or find_optimizer(list(self._host.wrapper.parameters()))
            scheduler = scheduler or find_scheduler(optimizer)
        self._checkpoint.restore(state, optimizer, scheduler, self._generators)
        self.epochs_done, self._seconds = int(state["epoch"]), list(state["seconds_per_epoch"])

    def _begin_epoch(self, epoch: int) -> None:
        for loader in self._loaders:
            if isinstance(loader.sampler, DistributedSampler):
                loader.sampler.set_epoch(epoch)
        self._host.decide()
        self.distiller.train()
        begin = extras_of(self._host.wrapper).begin_epoch
        if begin is not None:
            begin(epoch)
        self._open_epoch, self._stepped, self._started = epoch, False, time.perf_counter()

    @property
    def _generators(self) -> list[Generator]:
        return [loader.generator for loader in self._loaders if loader.generator is not None]

    def _write_results(self, predictions: Predictions | None) -> None:
        if self._host.run is None:
            return
        metrics = MetricsRecord.untested(
            seconds_per_epoch=tuple(self._seconds),
            peak_memory_bytes=peak_memory_bytes(self.device),
            epochs_done=self.epochs_done,
            finished=predictions is not None,
        )
        write_results(self._host.run, metrics, predictions)
