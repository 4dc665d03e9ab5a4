"""Distillation methods that the hosts lack, written from their equations: SRRL, CID, and SFTN's teacher stage.

They know no host and no config: networks that return `(logits, features)` and flat keyword arguments go in, a module
with the contract of `Distiller` comes out. `features` needs `feats` (maps, the last one included) and `pooled_feat`.
"""

from tllm_plugin.methods.base import Distiller, Losses
from tllm_plugin.methods.cid import CID
from tllm_plugin.methods.context import ContextStudent
from tllm_plugin.methods.kd_loss import kd_loss
from tllm_plugin.methods.sftn import SFTN, Branch
from tllm_plugin.methods.srrl import SRRL

__all__ = ["CID", "SFTN", "SRRL", "Branch", "ContextStudent", "Distiller", "Losses", "kd_loss"]
