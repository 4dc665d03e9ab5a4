"""Checkpoint of a session: the wrapper, optimizer, schedule and random numbers after an epoch."""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from torch import Generator, Tensor
from torch.optim import Optimizer

from tllm_plugin.core.data_identity import DataIdentity
from tllm_plugin.core.errors import ConfigError, FileFormatError
from tllm_plugin.core.wrapper import TLLMWrapper
from tllm_plugin.hosts import processes
from tllm_plugin.hosts.own_loop.description import SECTION
from tllm_plugin.hosts.own_loop.options import keyword_of
from tllm_plugin.hosts.random_state import RandomState
from tllm_plugin.hosts.results import write_checkpoint
from tllm_plugin.hosts.run_spec import ONE_RUN, RunSpec
from tllm_plugin.runs import data_file
from tllm_plugin.runs.finite import check_finite
from tllm_plugin.runs.reading import load_torch
from tllm_plugin.runs.run_folder import RunFolder

_PARTS = {"epoch", "config", "model", "optimizer", "scheduler", "seconds_per_epoch", "rng", "generators"}
_REMEDY = "continue with the same ones, or give another `run`"


def read_checkpoint(run: RunFolder, config: str) -> Mapping[str, Any] | None:
    """Read the checkpoint of a run; None if the run is new.

    Args:
        run: Folder of the run.
        config: Result of `describe` for the session that wants to continue.

    Raises:
        ConfigError: The folder holds a run of a host, or of a session with other arguments.
        FileFormatError: The checkpoint is damaged or not a session's.
    """
    latest = run.log_folder / "latest"
    if run.config_yaml.exists():
        recorded = RunSpec.read(run)
        if not any(key.startswith(f"{SECTION}.") for key in recorded.values):
            raise ConfigError(
                f"Expected `run` to be a new folder or a run of a session, but {run.log_folder} holds a run of another "
                "host; give another `run`"
            )
        changed = recorded.differing(RunSpec.parse(config), ONE_RUN)
        if changed:
            names = dict.fromkeys(keyword_of(key) for key in changed)
            raise ConfigError(
                f"Expected the arguments that the run in {run.log_folder} was begun with, but these differ: "
                f"{', '.join(names)} ({', '.join(changed)}); {_REMEDY}"
            )
    if not latest.exists():
        return None
    state = load_torch(latest, "a checkpoint to continue from")
    if not isinstance(state, Mapping) or not set(state) >= _PARTS:
        raise FileFormatError(f"Expected {latest} to be a checkpoint of a session, but parts are missing; {_REMEDY}")
    check_finite({name: state[name] for name in ("model", "optimizer")}, latest)
    return state


class SessionCheckpoint:
    """The files `latest` and `student_latest` of a session's run.

    Args:
        run: Folder of the run.
        config: Result of `describe`.
        wrapper: The session's wrapper.
        data: Identity of the training data.
    """

    def __init__(self, run: RunFolder, config: str, wrapper: TLLMWrapper, data: DataIdentity) -> None:
        self._run = run
        self._config = config
        self._wrapper = wrapper
        self._data = data
        self._is_readable = False

    def read(self) -> Mapping[str, Any] | None:
        """Return what rank 0 reads as the last checkpoint; None if the run is new; see `read_checkpoint` for errors."""
        return processes.from_main(lambda: read_checkpoint(self._run, self._config))

    def write(
        self, epoch: int, seconds: Sequence[float], optimizer: Optimizer, scheduler: Any, generators: list[Generator]
    ) -> None:
        """Write everything that an exact continuation needs, on rank 0.

        Args:
            epoch: The last epoch.
            seconds: Wall-clock time of each epoch.
            optimizer: The optimizer.
            scheduler: The schedule of the learning rate; None without one.
            generators: Generators of the session's loaders.

        Raises:
            ConfigError: A state holds something other than tensors and plain values.
        """
        rng = processes.gathered(RandomState().state_dict())
        if not processes.is_main():
            return
        data = {data_file.KEY: data_file.to_text(self._data)}
        state = {
            "epoch": epoch,
            "config": self._config,
            **data,
            "model": self._wrapper.state_dict(),
            "optimizer": optimizer.state_dict(),
            "scheduler": None if scheduler is None else scheduler.state_dict(),
            "seconds_per_epoch": list(seconds),
            "rng": rng,
            "generators": [generator.get_state() for generator in generators],
        }
        write_checkpoint(self._run.log_folder, epoch, state, {"model": self._wrapper.student.state_dict(), **data})
        self._check_readable()

    def _check_readable(self) -> None:
        """Read the first checkpoint back: what only pickle can read is refused now, and not after a crash.

        Raises:
            ConfigError: A state holds something other than tensors and plain values.
        """
        if self._is_readable:
            return
        try:
            load_torch(self._run.log_folder / "latest", "the checkpoint that was just written")
        except FileFormatError as error:
            raise ConfigError(
                "Expected the states of optimizer, scheduler and what the distiller carries to be tensors and plain "
                f"values (a NumPy number as `float(...)`), but {' '.join(str(error).split())[:300]}"
            ) from error
        self._is_readable = True

    def restore(
        self, state: Mapping[str, Any], optimizer: Optimizer | None, scheduler: Any, generators: list[Generator]
    ) -> None:
        """Load the result of `read`; without an optimizer, into the networks only.

        Raises:
            FileFormatError: It does not fit the networks or the optimizer.
            ConfigError: It was written with a schedule, and there is none, or the other way round.
        """
        path = self._run.log_folder / "latest"
        if optimizer is not None and (scheduler is None) != (state["scheduler"] is None):
            written, here = ("with", "without") if scheduler is None else ("without", "with")
            raise ConfigError(
                f"Expected the learning rate's schedule that the run was begun with, but the checkpoint {path} was "
                f"written {written} one, and this process continues {here}; {_REMEDY}"
            )
        try:
            self._wrapper.load_state_dict(state["model"])
            if optimizer is not None:
                optimizer.load_state_dict(state["optimizer"])
            if optimizer is not None and scheduler is not None:
                scheduler.load_state_dict(state["scheduler"])
        except ConfigError:
            raise
        except (RuntimeError, ValueError, KeyError, TypeError) as error:
            reason = " ".join(str(error).split())[:300]
            raise FileFormatError(
                f"Expected {path} to fit the networks and the optimizer, but {reason}; {_REMEDY}"
            ) from error
        for generator, kept in zip(generators, state["generators"], strict=False):
            generator.set_state(kept.cpu())
        if processes.rank() < len(state["rng"]):
            RandomState().load_state_dict(state["rng"][processes.rank()])


def find_optimizer(parameters: list[Tensor]) -> Optimizer:
    """Return the optimizer of this process that trains some of these parameters.

    Raises:
        ConfigError: There is none, or there are several.
    """
    trained = {id(parameter) for parameter in parameters}
    found = [
        optimizer
        for optimizer in _alive(Optimizer)
        if any(id(parameter) in trained for group in optimizer.param_groups for parameter in group["params"])
    ]
    if len(found) != 1:
        raise ConfigError(
            f"Expected one optimizer over the distiller's parameters to continue with, but found {len(found)}; give "
            "`session.epochs(optimizer=..., scheduler=...)`"
        )
    return found[0]


def find_scheduler(optimizer: Optimizer) -> Any:
    """Return the learning-rate scheduler of an optimizer, PyTorch's or timm's; None without one.

    Raises:
        ConfigError: There are several, and none of them holds the others.
    """
    found = [
        scheduler
        for scheduler in _alive(_Scheduler)
        if getattr(scheduler, "__dict__", {}).get("optimizer") is optimizer
    ]
    held = {id(inner) for scheduler in found for inner in getattr(scheduler, "_schedulers", ())}
    outer = [scheduler for scheduler in found if id(scheduler) not in held]
    if len(outer) > 1:
        raise ConfigError(
            f"Expected one scheduler of the optimizer to continue with, but found {len(outer)}; give "
            "`session.epochs(optimizer=..., scheduler=...)`"
        )
    return outer[0] if outer else None


@runtime_checkable
class _Scheduler(Protocol):
    def step(self, epoch: Any = None) -> None: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Any) -> None: ...


def _alive(kind: type[Any]) -> list[Any]:
    """Return the objects of a class that the process still uses."""
    gc.collect()
    return [found for found in gc.get_objects() if issubclass(type(found), kind)]
