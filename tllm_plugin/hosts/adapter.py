"""Add TLLM to the trainers of a host with mdistiller's interface.

The host's own trainer is subclassed when it is requested. Its loop, logging and checkpoints run unchanged, with the
distiller wrapped and the hold-out removed from the training data.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial, wraps
from pathlib import Path
from typing import Any
from weakref import WeakSet

from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from yacs.config import CfgNode

from tllm_plugin.core.errors import ConfigError, TLLMError
from tllm_plugin.core.predictions import Predictions, predict
from tllm_plugin.hosts import processes
from tllm_plugin.hosts.config_checks import refuse
from tllm_plugin.hosts.contract import Batches, EpochLoop, FoundMethods, TrainingData, attributes_of, methods_of
from tllm_plugin.hosts.host_session import HostSession
from tllm_plugin.hosts.loader_data import whole
from tllm_plugin.hosts.optimizers import spare_from_decay, use_nesterov
from tllm_plugin.hosts.options import settle_fdr
from tllm_plugin.hosts.random_state import RandomState
from tllm_plugin.hosts.results import write_results
from tllm_plugin.hosts.same_data import CarriedData, check_named_teacher
from tllm_plugin.hosts.speed import RunSpeed
from tllm_plugin.hosts.switch import is_on, spelled_at_first
from tllm_plugin.hosts.trainer_call import TrainerCall
from tllm_plugin.runs.metrics_file import MetricsRecord
from tllm_plugin.runs.reading import check_torch


@dataclass(frozen=True)
class Host:
    """Description of a host for the adapter.

    Args:
        trainers: Name -> trainer class.
        distillers: Name -> `(student, teacher, cfg) -> distiller`.
        special_types: Distiller types that the host handles specially by name.
        training_data: `(train_loader, val_loader, cfg) -> TrainingData`.
        carries_rng: Whether the wrapper must save the RNG states and the data identity, because the host's checkpoint
            lacks them.
    """

    trainers: Mapping[str, Any]
    distillers: Mapping[str, Any]
    special_types: frozenset[str]
    training_data: Callable[[Any, Any, CfgNode], TrainingData]
    carries_rng: bool = False


def with_tllm(trainer: type, host: Host) -> type[Any]:
    """Return a subclass of a host's trainer that trains with TLLM.

    Raises:
        ConfigError: The trainer has neither `train_epoch(epoch)` nor `train_iter(..., epoch, ...)`.
    """
    methods = methods_of(trainer)
    if methods.loop is None:
        raise ConfigError(
            f"Expected the host's trainer to have `train_epoch(epoch)` or `train_iter(..., epoch, ...)`, but "
            f"{trainer.__name__} has neither, so that TLLM cannot tell its epochs apart"
        )
    epochs = _TLLMTrainer if methods.loop is EpochLoop else _ByIterations
    return type("TLLMTrainer", (epochs, trainer), {"tllm_host": host, "tllm_methods": methods})


#: The constructors that `put_tllm_into` has made.
_ours: WeakSet[Callable[..., None]] = WeakSet()


def put_tllm_into(trainer: type[Any], host: Host) -> None:
    """Make a trainer class and its subclasses train with TLLM if their config sets `TLLM.ON`.

    This works however a script obtains the class and whatever it passes. Only `__init__` is replaced, and without
    `TLLM.ON` it behaves as before.
    """
    original = trainer.__init__
    if original in _ours:
        return

    @wraps(original)
    def init(self: Any, *given: Any, **named: Any) -> None:
        begin = partial(original, self)
        if not isinstance(self, _TLLMTrainer):
            call = TrainerCall.of(begin, given, named)
            # An `__init__` that only forwards its arguments is handled in its base class.
            if call is not None and is_on(call["cfg"]):
                self.__class__ = with_tllm(type(self), host)
                self.begin(begin, call)
                return
        begin(*given, **named)

    _ours.add(init)
    trainer.__init__ = init


class _TLLMTrainer:
    """Mixin before a host's trainer; `contract` says which attributes of it are used."""

    tllm_host: Host
    tllm_methods: FoundMethods
    cfg: CfgNode

    def __init__(self, *given: Any, **named: Any) -> None:
        begin = super().__init__
        call = TrainerCall.of(begin, given, named)
        if call is None:
            raise ConfigError(
                "Expected the host's trainer to be called with a distiller, two loaders and a config, but its "
                f"signature is {inspect.signature(begin)}"
            )
        self.begin(begin, call)

    def begin(self, init: Callable[..., None], call: TrainerCall) -> None:
        """Wrap the distiller, cut the hold-out, and call the host's `__init__` with the results."""
        distiller, cfg, val_loader = call["distiller"], call["cfg"], call["val_loader"]
        parallel = distiller if isinstance(distiller, nn.DataParallel | DistributedDataParallel) else None
        inner: nn.Module = distiller if parallel is None else parallel.module
        refuse(settle_fdr(cfg.TLLM))
        if processes.world_size() == 1:  # Otherwise the script has joined them, and its trainer is made for that.
            processes.refuse_several("a script that does not make a process group", "start it without")
        data = self.tllm_host.training_data(call["train_loader"], val_loader, cfg)
        self.tllm_session = HostSession(cfg.TLLM, inner, data, cfg.SOLVER.EPOCHS)
        wrapped: nn.Module = self.tllm_session.wrapper
        self.tllm_device = next(inner.parameters()).device
        self.tllm_cfg = cfg
        wrapped.to(self.tllm_device)
        carried = CarriedData(self.tllm_session.data, cfg.LOG.PREFIX)
        checkpoint = cfg.get("DISTILLER", {}).get("TEACHER_CHECKPOINT", "")
        if self.tllm_host.carries_rng:
            self.tllm_session.wrapper.carry("rng", RandomState())
            self.tllm_session.wrapper.carry("data", carried)
            check_named_teacher(checkpoint, self.tllm_session.data)
        if parallel is None:
            call["distiller"] = wrapped
        else:
            parallel.module = wrapped
        self.tllm_several = isinstance(parallel, DistributedDataParallel)
        replicas = isinstance(parallel, nn.DataParallel) and len(parallel.device_ids) > 1
        several = self.tllm_several or replicas
        self.tllm_speed = RunSpeed(cfg.TLLM, self.tllm_device, teacher=checkpoint, several=several)
        call["train_loader"] = self.tllm_speed.loader(self.tllm_session.train_loader)
        self.tllm_optimizer: Any = None
        init(*call.bound.args, **call.bound.kwargs)
        if self.tllm_optimizer is None:  # A trainer that makes it elsewhere.
            self._adapt(attributes_of(self).optimizer)
        # Of several processes each predicts by itself, where DDP would wait for the others.
        found = attributes_of(self)
        self.tllm_network: nn.Module = wrapped if self.tllm_several else found.distiller or call["distiller"]
        self.test_batches = val_loader
        # Some trainers have a folder on rank 0 only.
        self.tllm_folder = found.log_path or Path(cfg.LOG.PREFIX)
        carried.where = self.tllm_folder
        run = self.tllm_session.open(str(self.tllm_folder))
        if not self.tllm_methods.writes_results and processes.is_main():
            run.metrics_json.unlink(missing_ok=True)  # Of an earlier run in this folder.
            run.write_config(spelled_at_first(cfg).dump())
        #: The last epoch that this process has trained, or has begun to train; None before the first.
        self.tllm_epoch: int | None = None

    def init_optimizer(self, *given: Any, **named: Any) -> Any:
        optimizer = super().init_optimizer(*given, **named)  # type: ignore[misc]
        self._adapt(optimizer)
        return optimizer

    def _adapt(self, optimizer: Any) -> None:
        if isinstance(optimizer, Optimizer):
            self.tllm_optimizer = optimizer
            spare_from_decay(optimizer, self.tllm_session.wrapper)
            if self.tllm_cfg.SOLVER.get("NESTEROV", False):
                use_nesterov(optimizer)

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the context manager that sets the precision of scoring; hosts' trainers may override it."""
        if not self.tllm_methods.sets_precision:
            return nullcontext()
        context: AbstractContextManager[Any] = super().autocast()  # type: ignore[misc]
        return context

    def train_epoch(self, *given: Any, **named: Any) -> Any:
        step = super().train_epoch  # type: ignore[misc]
        epoch = _epoch_in(step, given, named)
        self.tllm_session.decide()
        self._catch_up(epoch - 1)
        self.tllm_epoch = epoch
        result = step(*given, **named)
        self._catch_up(epoch)
        return result

    def train(self, *given: Any, **named: Any) -> Any:
        resume = bool(named.get("resume", given[0] if given else False))
        latest = self.tllm_folder / "latest"
        if resume and not self.tllm_methods.writes_results and latest.exists():
            check_torch(latest, "a checkpoint to resume from")  # The host loads it without looking.
        steps = len(self.tllm_session.train_loader) * self.tllm_cfg.SOLVER.EPOCHS
        self.tllm_speed.start(self.tllm_session, steps=steps, optimizer=self.tllm_optimizer, resume=resume)
        try:
            result = super().train(*given, **named)  # type: ignore[misc]
        except FileNotFoundError as error:
            if not resume or self.tllm_methods.writes_results or self.tllm_epoch is not None:
                raise
            raise TLLMError(self._why_not_resumed(error)) from error
        last = self.tllm_cfg.SOLVER.EPOCHS if self.tllm_epoch is None else self.tllm_epoch
        self._catch_up(last)
        if not self.tllm_methods.writes_results and self.tllm_session.run is not None:
            metrics = MetricsRecord.untested(
                epochs_done=last,
                finished=True,
            )
            write_results(self.tllm_session.run, metrics, self._predict(whole(self.test_batches)))
        return result

    def _why_not_resumed(self, error: FileNotFoundError) -> str:
        there = sorted(path.name for path in self.tllm_folder.iterdir() if path.is_file())
        return (
            f"Expected {error.filename}, from which the host's trainer resumes, to exist, but it does not; "
            f"{self.tllm_folder} has {', '.join(there) or 'no file'}: copy a checkpoint of the whole run to the place "
            "that it looks at, or start anew without --resume"
        )

    def score_holdout(self, epoch: int) -> None:
        # A host that has such a method calls it before it saves; then its checkpoints hold the scores.
        self.tllm_session.score(epoch, self._predict, attributes_of(self).tf_writer)

    def save_epoch(self, epoch: int, *, kept: bool) -> None:
        # A host that has such a method calls it when files are to be written.
        self.tllm_session.write(epoch, kept=kept)
        super().save_epoch(epoch, kept=kept)  # type: ignore[misc]
        self.tllm_session.settle()

    def finish(self) -> None:
        # A host that has such a method calls it before it declares the run finished.
        self._catch_up(self.cfg.SOLVER.EPOCHS)
        if self.tllm_session.written != self.cfg.SOLVER.EPOCHS:
            # A run that was resumed after its last epoch may have a checkpoint and no other files.
            self.tllm_session.write(self.cfg.SOLVER.EPOCHS)
        super().finish()  # type: ignore[misc]
        if self.cfg.LOG.get("TEST_FREQ", 0) < 0:  # Otherwise the test data have said it.
            self.tllm_session.tell_if_at_chance(str(self.tllm_folder))
        self.tllm_session.tell_if_powerless()

    def _catch_up(self, epoch: int) -> None:
        if self.tllm_several and epoch and epoch not in self.tllm_session.curves.epochs:
            processes.share_buffers(self.tllm_network)
        self.tllm_session.catch_up(epoch, self._predict, attributes_of(self).tf_writer)

    def _predict(self, batches: Batches) -> Predictions:
        return predict(
            self.tllm_network,
            batches,
            keyword="image",
            num_classes=len(self.tllm_session.class_names),
            device=self.tllm_device,
            autocast=self.autocast,
        )


class _ByIterations(_TLLMTrainer):
    """Mixin for trainers with a single loop over epochs and batches, which pass the epoch only with each batch."""

    def train_iter(self, *given: Any, **named: Any) -> Any:
        step = super().train_iter  # type: ignore[misc]
        epoch = _epoch_in(step, given, named)
        if epoch != self.tllm_epoch:
            self.tllm_session.decide()
            self._catch_up(epoch - 1)
            self.tllm_epoch = epoch
            self.tllm_network.train()
        return step(*given, **named)


def _epoch_in(step: Callable[..., Any], given: tuple[Any, ...], named: Mapping[str, Any]) -> int:
    """Return the epoch, counted from 1, from the arguments of a loop's step."""
    arguments = inspect.signature(step).bind(*given, **named).arguments
    return int(arguments["epoch"] if "epoch" in arguments else next(iter(arguments.values())))
