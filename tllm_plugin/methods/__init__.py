"""Distillation methods that the hosts lack, written from their equations: SRRL, CID, and SFTN's teacher stage.

They know no host and no config: networks that return `(logits, features)` and flat keyword arguments go in, a module
with the contract of `Distiller` comes out. `features` needs `feats` (maps) and `pooled_feat`; `pooled_map` is the map
that the latter is the mean of.
"""

from tllm_plugin.methods.base import METHODS, Distiller, Losses
from tllm_plugin.methods.cid import CID
from tllm_plugin.methods.context import ContextStudent
from tllm_plugin.methods.kd_loss import kd_loss
from tllm_plugin.methods.sftn import SFTN, Branch
from tllm_plugin.methods.srrl import SRRL
from tllm_plugin.methods.student_map import find_map

__all__ = ["CID", "METHODS", "SFTN", "SRRL", "Branch", "ContextStudent", "Distiller", "Losses", "find_map", "kd_loss"]
