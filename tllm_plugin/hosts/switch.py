"""How a config of mdistiller's shape says that TLLM is at work.

`TLLM.ON True` leaves the host's own trainer where the host reads it, in `SOLVER.TRAINER`. The spelling of the first
versions, the trainer `tllm` there and the host's in `TLLM.TRAINER`, still works.
"""

from __future__ import annotations

from yacs.config import CfgNode

TRAINER = "tllm"


def is_on(cfg: CfgNode) -> bool:
    """Return whether TLLM is at work in a run."""
    return "TLLM" in cfg and (bool(cfg.TLLM.get("ON", False)) or cfg.SOLVER.get("TRAINER") == TRAINER)


def named_trainer(cfg: CfgNode) -> str:
    """Return the host's trainer that a config names; CRD's data need CRD's own, which `TLLM.TRAINER` need not name."""
    if cfg.SOLVER.get("TRAINER") != TRAINER:
        return str(cfg.SOLVER.get("TRAINER", ""))
    if cfg.DISTILLER.TYPE == "CRD" and cfg.TLLM.TRAINER == "base":
        return "crd"
    return str(cfg.TLLM.TRAINER)


def resolve(cfg: CfgNode) -> None:
    """Turn the spelling of the first versions into the present one, in a config that may be frozen."""
    if cfg.SOLVER.get("TRAINER") != TRAINER:
        return
    frozen = cfg.is_frozen()
    cfg.defrost()
    cfg.SOLVER.TRAINER = named_trainer(cfg)
    cfg.TLLM.ON = True
    if frozen:
        cfg.freeze()


def spelled_at_first(cfg: CfgNode) -> CfgNode:
    """Return a copy in the spelling of the first versions, so that what they recorded can be compared with it."""
    copy = cfg.clone()
    if not is_on(copy) or copy.SOLVER.get("TRAINER", TRAINER) == TRAINER:
        return copy
    copy.defrost()
    trainer, copy.SOLVER.TRAINER = named_trainer(copy), TRAINER
    copy.TLLM.pop("ON", None)
    if named_trainer(copy) != trainer:
        copy.TLLM.TRAINER = trainer
    return copy
