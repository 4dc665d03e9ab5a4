"""Read from a config with mdistiller's keys whether the run uses TLLM.

`TLLM.ON True` keeps the host's own trainer in `SOLVER.TRAINER`. The first spelling, with the trainer `tllm` there and
the host's trainer in `TLLM.TRAINER`, is still supported.
"""

from __future__ import annotations

from yacs.config import CfgNode

TRAINER = "tllm"


def is_on(cfg: CfgNode) -> bool:
    """Return whether a config uses TLLM."""
    return "TLLM" in cfg and (bool(cfg.TLLM.get("ON", False)) or cfg.SOLVER.get("TRAINER") == TRAINER)


def named_trainer(cfg: CfgNode) -> str:
    """Return the name of the host's trainer; for the CRD distillers the default is CRD's own trainer."""
    if cfg.SOLVER.get("TRAINER") != TRAINER:
        return str(cfg.SOLVER.get("TRAINER", ""))
    if cfg.DISTILLER.TYPE == "CRD" and cfg.TLLM.TRAINER == "base":
        return "crd"
    return str(cfg.TLLM.TRAINER)


def resolve(cfg: CfgNode) -> None:
    """Convert the first spelling into the present one, also in a frozen config."""
    if cfg.SOLVER.get("TRAINER") != TRAINER:
        return
    frozen = cfg.is_frozen()
    cfg.defrost()
    cfg.SOLVER.TRAINER = named_trainer(cfg)
    cfg.TLLM.ON = True
    if frozen:
        cfg.freeze()


def spelled_at_first(cfg: CfgNode) -> CfgNode:
    """Return a copy in the first spelling, for comparison with recorded configs."""
    copy = cfg.clone()
    if not is_on(copy) or copy.SOLVER.get("TRAINER", TRAINER) == TRAINER:
        return copy
    copy.defrost()
    trainer, copy.SOLVER.TRAINER = named_trainer(copy), TRAINER
    copy.TLLM.pop("ON", None)
    if named_trainer(copy) != trainer:
        copy.TLLM.TRAINER = trainer
    return copy
