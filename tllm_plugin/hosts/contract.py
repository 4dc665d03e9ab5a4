"""Interface that TLLM requires of a host's trainer, distiller and logger, with its optional parts.

The protocols describe the parts; `methods_of`, `attributes_of` and `extras_of` read an actual object into a frozen
record, and nothing else in `hosts` looks for these names.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

from torch import Tensor, nn
from torch.optim import Optimizer

from tllm_plugin.core.data_identity import DataIdentity

T = TypeVar("T")
Batches = Iterable[tuple[Tensor, Tensor]]


class TrainingData(Protocol):
    """A host's training data, for cutting the hold-outs out of it and scoring them.

    Args:
        labels: (N,) int64 on the CPU.
        class_names: (C,) names.
        identity: What is stored with the run, to recognise the data by.
    """

    @property
    def labels(self) -> Tensor: ...

    @property
    def class_names(self) -> tuple[str, ...]: ...

    @property
    def identity(self) -> DataIdentity: ...

    def train_loader(self, indices: Tensor) -> Any:
        """Return the host's own loader, restricted to `indices`."""

    def holdout_loader(self, indices: Tensor) -> Batches:
        """Return batches `(image, label)` of `indices` in order, with the test-time transform."""


class Trainer(Protocol):
    """Required part of a trainer, besides a constructor with a distiller, two loaders and a config (see `TrainerCall`).

    It also has one of the two loops, `EpochLoop` or `StepLoop`; without one, TLLM refuses the trainer, because it
    cannot tell the epochs apart.
    """

    def train(self, *given: Any, **named: Any) -> Any:
        """Train up to the last epoch; a keyword or first argument `resume` that is true continues a run."""


@runtime_checkable
class EpochLoop(Protocol):
    """Loop that calls a method once per epoch, counted from 1: the hold-out is scored when the method returns."""

    def train_epoch(self, epoch: int) -> Any:
        """Train one epoch; the result is passed on. The epoch is the parameter `epoch`, otherwise the first one."""


@runtime_checkable
class StepLoop(Protocol):
    """Loop that passes the epoch, counted from 1, with every batch: an epoch is scored before the first batch of the
    next one, and the last one after `train`."""

    def train_iter(self, data: Any, epoch: int) -> Any:
        """Make one step; the result is passed on. The parameter `epoch` is found by its name."""


class TrainerMethods(Protocol):
    """Optional methods of a trainer's class."""

    def init_optimizer(self, *given: Any, **named: Any) -> Optimizer:
        """Return the optimizer, called by the constructor.

        Without: `TrainerAttributes.optimizer` is adapted after the constructor.
        """

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the context manager that sets the precision of a forward pass.

        Without: the hold-out and the test data are predicted in full precision.
        """

    def write_metrics(self, *, finished: bool) -> None:
        """Test the student and write `metrics.json`, `predictions.npz` and `config.yaml` of the run.

        Without: TLLM writes them, after a test of its own. A host with this method calls `score_holdout(epoch)` before
        it saves a checkpoint, `save_epoch(epoch, kept=)` to save it, and `finish()` at the end; TLLM extends the three.
        """


class TrainerAttributes(Protocol):
    """Optional attributes of a trainer after its constructor."""

    #: What the loop trains. Without: the distiller that the constructor was given, wrapped.
    distiller: nn.Module
    #: Where methods keep parameters from weight decay, and `SOLVER.NESTEROV` acts. Without: they have no effect.
    optimizer: Optimizer
    #: Folder of the run. Without: `LOG.PREFIX` of the config.
    log_path: str
    #: May be replaced at any time. Without: nothing is logged to TensorBoard.
    tf_writer: Writer


class DistillerExtras(Protocol):
    """Optional methods of a distiller that hosts call; those that the wrapper calls are described in `TLLMWrapper`."""

    def get_undecayed_parameters(self) -> Iterable[nn.Parameter]:
        """Return parameters without weight decay. Without this method, the host's optimizer decides on weight decay."""

    def begin_epoch(self, epoch: int) -> None:
        """Called by the embedded host before the first step of an epoch. Without: nothing is called."""


@runtime_checkable
class HoldsBack(Protocol):
    """Module of a distiller with parameters that are not trained yet. Without: all of them get their gradients."""

    def held_parameters(self) -> Iterable[nn.Parameter]:
        """Return the parameters that are left without a gradient in this step."""


@runtime_checkable
class SumsRows(Protocol):
    """Module of a distiller with buffers that are sums over the rows it has seen.

    With several ranks, the embedded host adds them up after each epoch. Without: every rank keeps its own.
    """

    #: Names of the buffers.
    row_sums: Iterable[str]


@runtime_checkable
class Writer(Protocol):
    """TensorBoard writer of torch or tensorboardX."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None: ...

    def add_histogram(self, tag: str, values: Any, global_step: int, bins: Any) -> None: ...

    def add_image(self, tag: str, img_tensor: Any, global_step: int, dataformats: str) -> None: ...


@dataclass(frozen=True)
class FoundMethods:
    """Methods that a trainer's class has.

    Args:
        loop: `EpochLoop` or `StepLoop`; None if the class has neither. With both, the epochs are those of `EpochLoop`.
        sets_precision: It has `autocast`.
        writes_results: It has `write_metrics`.
    """

    loop: type[Any] | None
    sets_precision: bool
    writes_results: bool


@dataclass(frozen=True)
class FoundAttributes:
    """Attributes of a constructed trainer; None if an attribute is missing, empty or of another type."""

    distiller: nn.Module | None
    optimizer: Optimizer | None
    log_path: Path | None
    tf_writer: Writer | None


@dataclass(frozen=True)
class FoundExtras:
    """Optional methods of a distiller; None for missing ones."""

    get_undecayed_parameters: Callable[[], Iterable[nn.Parameter]] | None
    begin_epoch: Callable[[int], None] | None


def methods_of(trainer: type[Any]) -> FoundMethods:
    """Return which methods a host's trainer class has."""
    loop: type[Any] | None = None
    if issubclass(trainer, EpochLoop):
        loop = EpochLoop
    elif issubclass(trainer, StepLoop) and "epoch" in inspect.signature(trainer.train_iter).parameters:
        loop = StepLoop
    return FoundMethods(
        loop=loop,
        sets_precision=hasattr(trainer, TrainerMethods.autocast.__name__),
        writes_results=hasattr(trainer, TrainerMethods.write_metrics.__name__),
    )


def attributes_of(trainer: object) -> FoundAttributes:
    """Return which attributes a trainer has now; some hosts set them on rank 0 only, or replace them during a run."""
    path = getattr(trainer, "log_path", None)
    return FoundAttributes(
        distiller=_of_type(trainer, "distiller", nn.Module),
        optimizer=_of_type(trainer, "optimizer", Optimizer),
        log_path=Path(path) if path else None,
        tf_writer=writer_in(getattr(trainer, "tf_writer", None)),
    )


def extras_of(distiller: nn.Module) -> FoundExtras:
    """Return the optional methods of a distiller; a wrapper has the methods of its inner distiller."""
    return FoundExtras(
        get_undecayed_parameters=getattr(distiller, DistillerExtras.get_undecayed_parameters.__name__, None),
        begin_epoch=getattr(distiller, DistillerExtras.begin_epoch.__name__, None),
    )


def writer_in(logger: object) -> Writer | None:
    """Return the logger if it is a TensorBoard writer; None for a logger of another library, or for none."""
    return logger if isinstance(logger, Writer) else None


def _of_type(holder: object, name: str, kind: type[T]) -> T | None:
    value = getattr(holder, name, None)
    return value if isinstance(value, kind) else None
