"""Create the trainer `tllm` and the distiller `TLLM` that a host registers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn
from yacs.config import CfgNode

from tllm_plugin.core.errors import ConfigError, unknown_name
from tllm_plugin.hosts.adapter import Host, with_tllm
from tllm_plugin.hosts.switch import is_on


def make_trainer_factory(host: Host) -> Callable[..., Any]:
    """Return the factory of the trainer `tllm`, which adds TLLM to the trainer named by `TLLM.TRAINER`."""

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
