"""One run of `train_student.py` with TLLM in it: what the host's script calls, in the order of its calls."""

from __future__ import annotations

import argparse
import platform
import shlex
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
import torchvision
import yaml
from torch import nn

from tllm_plugin.core.predictions import predict
from tllm_plugin.hosts.checkouts import source_of
from tllm_plugin.hosts.contract import writer_in
from tllm_plugin.hosts.host_session import HostSession, cut
from tllm_plugin.hosts.loader_data import LoaderData
from tllm_plugin.hosts.loss_guard import LossGuard
from tllm_plugin.hosts.optimizers import spare_from_decay, use_nesterov
from tllm_plugin.hosts.random_state import RandomState
from tllm_plugin.hosts.repdistiller.checkpoint import STATE_VERSION, plain_options, read_state
from tllm_plugin.hosts.repdistiller.distiller import ListedDistiller
from tllm_plugin.hosts.repdistiller.epoch import train_epoch
from tllm_plugin.hosts.repdistiller.images import DATASETS
from tllm_plugin.hosts.repdistiller.judge import Judge
from tllm_plugin.hosts.repdistiller.loop import EpochCall
from tllm_plugin.hosts.repdistiller.loop_source import returned_names
from tllm_plugin.hosts.repdistiller.options import errors_name_flags, node_of
from tllm_plugin.hosts.repdistiller.probe import check_loop
from tllm_plugin.hosts.repdistiller.watched import watched_validation
from tllm_plugin.hosts.results import peak_memory_bytes, write_results
from tllm_plugin.hosts.same_data import CarriedData, check_named_teacher
from tllm_plugin.hosts.speed import RunSpeed
from tllm_plugin.methods import Distiller
from tllm_plugin.runs.atomic import save_torch
from tllm_plugin.runs.finite import check_finite
from tllm_plugin.runs.metrics_file import MetricsRecord
from tllm_plugin.runs.run_folder import RunFolder
from tllm_plugin.version import __version__


class Run:
    """Hold-out, wrapped distiller, flags and resume around the host's loop; without `--tllm` nothing but that loop
    (and, for a method that the host does not have, our epoch).

    The host's script makes it once its data are loaded, lets it stand in for its own calls from then on, and the loop
    over `epochs` writes a checkpoint each time the host has finished with an epoch.

    Args:
        options: The host's parsed options, from `parse_student`.
        train_loader: The host's, over all training data.
        val_loader: The host's; its transform is used for the hold-out.
    """

    def __init__(self, options: argparse.Namespace, train_loader: Any, val_loader: Any) -> None:
        self.options = options
        #: What is trained on: the host's loader, without the hold-out.
        self.train_loader = train_loader
        self._test_loader = val_loader
        #: Highest test accuracy so far, in percent.
        self.best_acc: float = 0
        self.session: HostSession | None = None
        self._method: nn.Module | None = None
        self._lists: ListedDistiller | None = None
        self._tested_by: tuple[Callable[..., Any], tuple[Any, ...]] | None = None
        self._checked = False
        self._done = 0
        self._seconds: list[float] = []
        if options.tllm or getattr(options, "dataset", "") in DATASETS:
            with errors_name_flags():
                self._data = LoaderData(train_loader, val_loader.dataset.transform, val_loader.dataset)
                check_named_teacher(getattr(options, "path_t", None) or "", self._data.identity)
        if options.tllm:
            with errors_name_flags():
                node = node_of(options)
                device = torch.device("cuda" if torch.cuda.is_available() else "cpu")  # As the host's scripts do.
                self._speed = RunSpeed(node, device, teacher=getattr(options, "path_t", None) or "")
                self.train_loader = self._speed.loader(self._data.train_loader(cut(node, self._data).train))

    def init(self, stage: Callable[..., None], *arguments: Any) -> None:
        """Run the host's init stage, unless the run continues from a checkpoint, which has its result."""
        if not self.options.tllm_resume:
            stage(*arguments)

    def start(
        self,
        module_list: nn.ModuleList,
        criterion_list: nn.ModuleList,
        optimizer: torch.optim.Optimizer,
        logger: Any = None,
    ) -> float:
        """Wrap what the host has built and, to continue a killed run, restore its state.

        Args:
            module_list: Student first, teacher last.
            criterion_list: Cross-entropy, KL divergence, the method's own; from `add_method` the method itself.
            optimizer: Over everything that is trained.
            logger: TensorBoard's `SummaryWriter`, or whatever else the host logs with, which is then not used.

        Returns:
            The highest test accuracy so far.

        Raises:
            ConfigError: Detector, hold-out or checkpoint do not fit the options.
            FileFormatError: The teacher has weights that are not finite.
        """
        check_finite(module_list[-1].state_dict(), getattr(self.options, "path_t", "the teacher"))
        self.optimizer = optimizer
        self.device = next(module_list.parameters()).device
        last = criterion_list[-1]
        self._method = last if isinstance(last, Distiller) else None
        if self._method is not None:
            spare_from_decay(optimizer, self._method)
        if self.options.nesterov is True:
            use_nesterov(optimizer)
        if not self.options.tllm:
            return self.best_acc
        for weight in ("alpha", "beta"):
            if getattr(self.options, weight, 0) is None:
                setattr(self.options, weight, 0.0)  # Left out, it counts as nothing.
        learnable = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        temperature = float(getattr(self.options, "kd_T", 4))
        judge = None if self._tested_by is None else Judge(*self._tested_by, self._test_loader)
        distiller = self._method or ListedDistiller(module_list, criterion_list, learnable, temperature, judge)
        self.writer = writer_in(logger)
        self._lists = distiller if isinstance(distiller, ListedDistiller) else None
        with errors_name_flags():
            self.session = HostSession(node_of(self.options), distiller, self._data, self.options.epochs)
        self.session.wrapper.to(self.device)
        self.session.wrapper.carry("rng", RandomState())
        self.folder = RunFolder.inside(self.options.save_folder)
        self.session.wrapper.carry("data", CarriedData(self.session.data, self.options.save_folder))
        if self.options.tllm_resume:
            self._restore(read_state(self.folder, plain_options(self.options)))
        else:
            self.folder.state.unlink(missing_ok=True)
        self.session.decide()
        self.session.open(self.options.save_folder)
        self._speed.start(
            self.session,
            steps=len(self.train_loader) * self.options.epochs,
            optimizer=optimizer,
            resume=self.options.tllm_resume,
            shared="" if self._method is None else "the method sees the host's networks under another contract",
        )
        self.folder.write_config(_description(self.options))
        return self.best_acc

    def epochs(self, host_epochs: Iterable[int] | None = None) -> Iterator[int]:
        """Yield the epochs that are still to be done.

        Args:
            host_epochs: All epochs of the run, as the host counts them; by default from 1.
        """
        counted = list(host_epochs or range(1, self.options.epochs + 1))
        for epoch in counted[self._done :]:
            yield epoch
            self._done += 1
            if self.session is not None:
                self._save(self.session)
        if self.session is not None:
            print(f"next: tllm show {shlex.quote(self.options.save_folder)}")

    def tested_by(self, host_validate: Callable[..., Any], *arguments: Any) -> None:
        """Say, before `start`, how the script is going to call `validate`."""
        self._tested_by = host_validate, arguments

    def train(self, host_train: Callable[..., Any], *arguments: Any) -> Any:
        """Train an epoch, score the hold-out after it, and return what the host's function would.

        Args:
            host_train: The host's epoch function.
            arguments: The host's: its epoch and loader, the lists that `start` was given, the optimizer, options.

        Raises:
            ConfigError: Before the first step: the host's function cannot be asked for the loss of one batch.
        """
        distiller = self._method if self.session is None else self.session.wrapper
        if distiller is None:
            return host_train(*arguments)
        start, epoch = time.time(), self._done + 1
        loader = next((argument for argument in arguments if argument is self.train_loader), arguments[1])
        if self._lists is not None:
            lists = self._lists
            lists.call = EpochCall(
                host_train, arguments, loader, lists.module_list, lists.criterion_list, self.optimizer
            )
            if not self._checked and self.session is not None:
                classes = len(self.session.class_names)
                check_loop(lists, loader, classes, rows_are_taken=self.options.tllm_detector != "none")
                self._checked = True
        every = max(1, self.options.print_freq)
        guard = LossGuard(every, "--learning_rate")
        result = train_epoch(epoch, loader, distiller, self.optimizer, print_freq=every, guard=guard)
        found = result.shaped(returned_names(host_train))
        if self.session is None:
            return found
        classes = len(self.session.class_names)
        predict_student = partial(
            predict, self.session.wrapper, keyword="image", num_classes=classes, device=self.device
        )
        self.session.catch_up(epoch, predict_student, self.writer)
        self._seconds.append(time.time() - start)
        return found

    def validate(self, host_validate: Callable[..., Any], *arguments: Any) -> Any:
        """Return what the host's `validate` does, and record what the student predicted meanwhile.

        Args:
            host_validate: The host's.
            arguments: The host's: its test loader, the student or the list of modules, a criterion, options.
        """
        if self.session is None:
            return host_validate(*arguments)
        place = next((place for place, argument in enumerate(arguments) if argument is self._test_loader), 0)
        network = next((part for part in arguments if isinstance(part, nn.Module)), self.session.wrapper.student)
        network = network[0] if isinstance(network, nn.ModuleList) else network
        judge = self._lists.judge if self._lists is not None else None
        result, predictions = watched_validation(
            lambda loader: host_validate(*arguments[:place], loader, *arguments[place + 1 :]),
            arguments[place],
            network,
            len(self.session.class_names),
            criterion=None if judge is None else judge.criterion,
        )
        self.best_acc = max(self.best_acc, float(result[0]))
        done = len(self._seconds)
        metrics = MetricsRecord.untested(
            seconds_per_epoch=tuple(self._seconds),
            peak_memory_bytes=peak_memory_bytes(self.device),
            epochs_done=done,
            finished=done == self.options.epochs,
        )
        write_results(self.folder, metrics, predictions)
        return result

    def _save(self, session: HostSession) -> None:
        optimizer = self.optimizer.state_dict()
        for group in optimizer["param_groups"]:
            group["lr"] = float(group["lr"])  # The stock host's is NumPy's, which `weights_only` refuses to read.
        state = {
            "version": STATE_VERSION,
            "epoch": self._done,
            "best_acc": self.best_acc,
            "seconds": self._seconds,
            "options": plain_options(self.options),
            "wrapper": session.wrapper.state_dict(),
            "optimizer": optimizer,
        }
        save_torch(self.folder.state, state)

    def _restore(self, state: Mapping[str, Any]) -> None:
        assert self.session is not None
        self.optimizer.load_state_dict(state["optimizer"])
        self._done, self.best_acc, self._seconds = state["epoch"], state["best_acc"], list(state["seconds"])
        # Last, because it sets the random numbers' state.
        self.session.wrapper.load_state_dict(state["wrapper"])


def _description(options: argparse.Namespace) -> str:
    """Return `config.yaml`: everything needed to run again, with versions."""
    source = source_of("repdistiller")
    content = {
        "host": {"name": source.name, "commit": source.commit},
        "options": plain_options(options),
        "versions": {
            "tllm_plugin": __version__,
            "torch": str(torch.__version__),
            "torchvision": str(torchvision.__version__),
            "python": platform.python_version(),
        },
    }
    return yaml.safe_dump(content, sort_keys=False)
