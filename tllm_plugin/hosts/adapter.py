"""Add TLLM to the trainers of a host with mdistiller's interface, and register the distiller `TLLM` there.

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

from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.utils.data import DataLoader
from yacs.config import CfgNode

from tllm_plugin.core.errors import ConfigError, TLLMError, unknown_name
from tllm_plugin.core.predictions import Predictions, predict
from tllm_plugin.hosts import processes
from tllm_plugin.hosts.config_checks import refuse
from tllm_plugin.hosts.loader_data import whole
from tllm_plugin.hosts.optimizers import spare_from_decay, use_nesterov
from tllm_plugin.hosts.options import settle_fdr
from tllm_plugin.hosts.random_state import RandomState
from tllm_plugin.hosts.results import write_results
from tllm_plugin.hosts.same_data import CarriedData, check_named_teacher
from tllm_plugin.hosts.switch import is_on, spelled_at_first
from tllm_plugin.hosts.teaching import Batches, Teaching, TrainingData
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


def make_trainer_factory(host: Host) -> Callable[..., Any]:
    """Return the factory that a host registers as trainer `tllm`: its trainer named by `TLLM.TRAINER`, with TLLM."""

    def tllm_trainer(
        experiment_name: str, distiller: nn.Module, train_loader: Any, val_loader: Any, cfg: CfgNode
    ) -> Any:
        name = str(cfg.TLLM.TRAINER)
        if name not in host.trainers or name == "tllm":
            known = sorted(set(host.trainers) - {"tllm"})
            raise ConfigError(f"Expected `TLLM.TRAINER` to be one of {', '.join(known)}, but got {name!r}")
        trainer = with_tllm(host.trainers[name], host)
        return trainer(experiment_name, distiller, train_loader, val_loader, cfg)

    return tllm_trainer


def make_distiller_factory(host: Host) -> Callable[..., nn.Module]:
    """Return the factory that a host registers as distiller `TLLM`; it makes the inner distiller for the trainer."""

    def tllm_distiller(student: nn.Module, teacher: nn.Module, cfg: CfgNode) -> nn.Module:
        inner = cfg.TLLM.DISTILLER
        if inner not in host.distillers:
            raise ConfigError(unknown_name("TLLM.DISTILLER", inner, set(host.distillers) - {"TLLM"}))
        if inner in host.special_types or inner == "TLLM":
            raise ConfigError(
                f"Expected `TLLM.DISTILLER` to be a type that the host does not treat by name, but got {inner!r}: keep "
                f"DISTILLER.TYPE {inner!r} and set SOLVER.TRAINER to 'tllm' instead"
            )
        if not is_on(cfg):
            raise ConfigError(
                f"Expected `SOLVER.TRAINER` to be 'tllm' for DISTILLER.TYPE 'TLLM', but got {cfg.SOLVER.TRAINER!r}"
            )
        distiller: nn.Module = host.distillers[inner](student, teacher, cfg)
        return distiller

    return tllm_distiller


def with_tllm(trainer: type, host: Host) -> type[Any]:
    """Return a subclass of a host's trainer that trains with TLLM.

    Raises:
        ConfigError: The trainer has neither `train_epoch(epoch)` nor `train_iter(..., epoch, ...)`.
    """
    epochs = _TLLMTrainer
    if not hasattr(trainer, "train_epoch"):
        if not hasattr(trainer, "train_iter") or "epoch" not in inspect.signature(trainer.train_iter).parameters:
            raise ConfigError(
                f"Expected the host's trainer to have `train_epoch(epoch)` or `train_iter(..., epoch, ...)`, but "
                f"{trainer.__name__} has neither, so that TLLM cannot tell its epochs apart"
            )
        epochs = _ByIterations
    return type("TLLMTrainer", (epochs, trainer), {"tllm_host": host})


def put_tllm_into(trainer: type[Any], host: Host) -> None:
    """Make a trainer class and its subclasses train with TLLM if their config sets `TLLM.ON`.

    This works however a script obtains the class and whatever it passes. Only `__init__` is replaced, and without
    `TLLM.ON` it behaves as before.
    """
    original = trainer.__init__
    if hasattr(original, "put_in_by_tllm"):
        return

    @wraps(original)
    def init(self: Any, *given: Any, **named: Any) -> None:
        begin = partial(original, self)
        if not isinstance(self, _TLLMTrainer):
            call = _Call.of(begin, given, named)
            # An `__init__` that only forwards its arguments is handled in its base class.
            if call is not None and is_on(call["cfg"]):
                self.__class__ = with_tllm(type(self), host)
                self.begin(begin, call)
                return
        begin(*given, **named)

    init.put_in_by_tllm = True  # type: ignore[attr-defined]
    trainer.__init__ = init


class _Call:
    """Arguments of a trainer's constructor, with `distiller`, `train_loader`, `val_loader` and `cfg` identified.

    They are identified by parameter name, otherwise by type: a module, two loaders in this order, a config. All other
    arguments are passed through.
    """

    def __init__(self, bound: inspect.BoundArguments, names: dict[str, str]) -> None:
        self.bound = bound
        self.names = names

    @classmethod
    def of(cls, begin: Callable[..., None], given: tuple[Any, ...], named: Mapping[str, Any]) -> _Call | None:
        """Return the call; None if one of the four is missing or the signature does not accept the arguments."""
        try:
            bound = inspect.signature(begin).bind(*given, **named)
        except TypeError:
            return None
        names: dict[str, str] = {}
        for part, words, kind in (
            ("distiller", ("distiller",), nn.Module),
            ("cfg", ("cfg", "config"), CfgNode),
            ("train_loader", ("train",), DataLoader),
            ("val_loader", ("val", "test"), DataLoader),
        ):
            free = {name: value for name, value in bound.arguments.items() if name not in names.values()}
            by_name = (name for name in free if any(word in name.lower() for word in words) and _fits(free[name], kind))
            by_kind = (name for name in free if isinstance(free[name], kind))
            found = next(by_name, None) or next(by_kind, None)
            if found is None:
                return None
            names[part] = found
        return cls(bound, names)

    def __getitem__(self, part: str) -> Any:
        return self.bound.arguments[self.names[part]]

    def __setitem__(self, part: str, value: Any) -> None:
        self.bound.arguments[self.names[part]] = value


def _fits(value: Any, kind: type) -> bool:
    # Loaders of other libraries share no base class.
    return isinstance(value, kind) if kind is not DataLoader else not isinstance(value, str | bool | int | float)


class _TLLMTrainer:
    """Mixin before a host's trainer; uses only attributes that every trainer with mdistiller's interface has."""

    tllm_host: Host
    cfg: CfgNode

    def __init__(self, *given: Any, **named: Any) -> None:
        begin = super().__init__
        call = _Call.of(begin, given, named)
        if call is None:
            raise ConfigError(
                "Expected the host's trainer to be called with a distiller, two loaders and a config, but its "
                f"signature is {inspect.signature(begin)}"
            )
        self.begin(begin, call)

    def begin(self, init: Callable[..., None], call: _Call) -> None:
        """Wrap the distiller, cut the hold-out, and call the host's `__init__` with the results."""
        distiller, cfg, val_loader = call["distiller"], call["cfg"], call["val_loader"]
        parallel = distiller if isinstance(distiller, nn.DataParallel | DistributedDataParallel) else None
        inner: nn.Module = distiller if parallel is None else parallel.module
        refuse(settle_fdr(cfg.TLLM))
        if processes.world_size() == 1:  # Otherwise the script has joined them, and its trainer is made for that.
            processes.refuse_several("a script that does not make a process group", "start it without")
        data = self.tllm_host.training_data(call["train_loader"], val_loader, cfg)
        self.teaching = Teaching(cfg.TLLM, inner, data, cfg.SOLVER.EPOCHS)
        wrapped: nn.Module = self.teaching.wrapper
        self.tllm_device = next(inner.parameters()).device
        self.tllm_cfg = cfg
        wrapped.to(self.tllm_device)
        carried = CarriedData(self.teaching.data, cfg.LOG.PREFIX)
        if self.tllm_host.carries_rng:
            self.teaching.wrapper.carry("rng", RandomState())
            self.teaching.wrapper.carry("data", carried)
            check_named_teacher(cfg.get("DISTILLER", {}).get("TEACHER_CHECKPOINT", ""), self.teaching.data)
        if parallel is None:
            call["distiller"] = wrapped
        else:
            parallel.module = wrapped
        self.tllm_several = isinstance(parallel, DistributedDataParallel)
        call["train_loader"] = self.teaching.train_loader
        self.tllm_optimizer: Any = None
        init(*call.bound.args, **call.bound.kwargs)
        if self.tllm_optimizer is None:  # A trainer that makes it elsewhere.
            self._adapt(getattr(self, "optimizer", None))
        # Of several processes each predicts by itself, where DDP would wait for the others.
        self.tllm_network: nn.Module = wrapped if self.tllm_several else getattr(self, "distiller", call["distiller"])
        self.test_batches = val_loader
        # Some trainers have a folder on rank 0 only.
        self.tllm_folder = Path(getattr(self, "log_path", None) or cfg.LOG.PREFIX)
        carried.where = self.tllm_folder
        run = self.teaching.open(str(self.tllm_folder))
        # A host with this method tests and describes its runs itself.
        self.writes_results = hasattr(self, "write_metrics")
        if not self.writes_results and processes.is_main():
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
            spare_from_decay(optimizer, self.teaching.wrapper)
            if self.tllm_cfg.SOLVER.get("NESTEROV", False):
                use_nesterov(optimizer)

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the context manager that sets the precision of scoring; hosts' trainers may override it."""
        parent = getattr(super(), "autocast", nullcontext)
        context: AbstractContextManager[Any] = parent()
        return context

    def train_epoch(self, *given: Any, **named: Any) -> Any:
        step = super().train_epoch  # type: ignore[misc]
        epoch = _epoch_in(step, given, named)
        self.teaching.decide()
        self._catch_up(epoch - 1)
        self.tllm_epoch = epoch
        result = step(*given, **named)
        self._catch_up(epoch)
        return result

    def train(self, *given: Any, **named: Any) -> Any:
        resume = bool(named.get("resume", given[0] if given else False))
        latest = self.tllm_folder / "latest"
        if resume and not self.writes_results and latest.exists():
            check_torch(latest, "a checkpoint to resume from")  # The host loads it without looking.
        try:
            result = super().train(*given, **named)  # type: ignore[misc]
        except FileNotFoundError as error:
            if not resume or self.writes_results or self.tllm_epoch is not None:
                raise
            raise TLLMError(self._why_not_resumed(error)) from error
        last = self.tllm_cfg.SOLVER.EPOCHS if self.tllm_epoch is None else self.tllm_epoch
        self._catch_up(last)
        if not self.writes_results and self.teaching.run is not None:
            metrics = MetricsRecord(
                *(None, (), ()),  # Test results: see `write_results`.
                seconds_per_epoch=(),
                peak_memory_bytes=None,
                epochs_done=last,
                finished=True,
            )
            write_results(self.teaching.run, metrics, self._predict(whole(self.test_batches)))
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
        self.teaching.score(epoch, self._predict, self._writer())

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
            self.teaching.tell_if_at_chance(str(self.tllm_folder))
        self.teaching.tell_if_powerless()

    def _writer(self) -> Any:
        return getattr(self, "tf_writer", None)

    def _catch_up(self, epoch: int) -> None:
        if self.tllm_several and epoch and epoch not in self.teaching.curves.epochs:
            processes.share_buffers(self.tllm_network)
        self.teaching.catch_up(epoch, self._predict, self._writer())

    def _predict(self, batches: Batches) -> Predictions:
        return predict(
            self.tllm_network,
            batches,
            keyword="image",
            num_classes=len(self.teaching.class_names),
            device=self.tllm_device,
            autocast=self.autocast,
        )


class _ByIterations(_TLLMTrainer):
    """Mixin for trainers with a single loop over epochs and batches, which pass the epoch only with each batch."""

    def train_iter(self, *given: Any, **named: Any) -> Any:
        step = super().train_iter  # type: ignore[misc]
        epoch = _epoch_in(step, given, named)
        if epoch != self.tllm_epoch:
            self.teaching.decide()
            self._catch_up(epoch - 1)
            self.tllm_epoch = epoch
            self.tllm_network.train()
        return step(*given, **named)


def _epoch_in(step: Callable[..., Any], given: tuple[Any, ...], named: Mapping[str, Any]) -> int:
    """Return the epoch, counted from 1, from the arguments of a loop's step."""
    arguments = inspect.signature(step).bind(*given, **named).arguments
    return int(arguments["epoch"] if "epoch" in arguments else next(iter(arguments.values())))
