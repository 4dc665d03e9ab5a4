"""Checkpoint of a session: the wrapper, optimizer, schedule and random numbers after an epoch."""

from __future__ import annotations

import gc
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import yaml
from torch import Tensor, nn
from torch.optim import Optimizer
from yacs.config import CfgNode

from tllm_plugin.core.contract import teacher_of
from tllm_plugin.core.errors import ConfigError, FileFormatError
from tllm_plugin.core.options import WithOptions
from tllm_plugin.hosts.own_loop.options import keyword_of
from tllm_plugin.hosts.run_spec import ONE_RUN, RunSpec
from tllm_plugin.runs.finite import check_finite
from tllm_plugin.runs.reading import load_torch
from tllm_plugin.runs.run_folder import RunFolder

#: Section of a run's config that no host has.
SECTION = "SESSION"
_PARTS = {"epoch", "config", "model", "optimizer", "scheduler", "seconds_per_epoch", "rng", "generators"}
_REMEDY = "continue with the same ones, or give another `run`"


def describe(distiller: nn.Module, node: CfgNode, epochs: int) -> str:
    """Return the config of a session's run as YAML, in the sections that the analysis reads.

    Args:
        distiller: The inner distiller. The options that it declares are recorded.
        node: The `TLLM` node.
        epochs: Epochs of the run.
    """
    student, teacher = distiller.get_submodule("student"), teacher_of(distiller)
    kind = "NONE" if teacher is None else type(distiller).__name__
    networks = {"STUDENT": student} if teacher is None else {"STUDENT": student, "TEACHER": teacher}
    content: dict[str, Any] = {
        "DISTILLER": {"TYPE": kind, **{name: type(network).__name__ for name, network in networks.items()}},
        "SOLVER": {"EPOCHS": epochs},
        "TLLM": _plain(node),
        SECTION: {"DISTILLER": type(distiller).__qualname__}
        | {f"{name}_PARAMETERS": sum(p.numel() for p in network.parameters()) for name, network in networks.items()},
    }
    if isinstance(distiller, WithOptions) and distiller.options:
        content[kind] = {option.name.upper(): getattr(distiller, option.name) for option in distiller.options}
    return yaml.safe_dump(content, sort_keys=False)


def _plain(node: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: _plain(value) if isinstance(value, Mapping) else list(value) if isinstance(value, tuple) else value
        for key, value in node.items()
    }


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


def restore(
    state: Mapping[str, Any], path: Path, wrapper: nn.Module, optimizer: Optimizer | None, scheduler: Any
) -> None:
    """Load a checkpoint into the objects of a session; without an optimizer, into the networks only.

    Raises:
        FileFormatError: It does not fit the networks or the optimizer.
        ConfigError: It was written with a schedule, and there is none, or the other way round.
    """
    if optimizer is not None and (scheduler is None) != (state["scheduler"] is None):
        written, here = ("with", "without") if scheduler is None else ("without", "with")
        raise ConfigError(
            f"Expected the learning rate's schedule that the run was begun with, but the checkpoint {path} was written "
            f"{written} one, and this process continues {here}; {_REMEDY}"
        )
    try:
        wrapper.load_state_dict(state["model"])
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
