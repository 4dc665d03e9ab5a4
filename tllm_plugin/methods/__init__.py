"""Distillation methods: KD and the vanilla student for any networks, and SRRL, CID and SFTN's teacher stage.

The last three are written from their equations, because the hosts lack them. No method knows a host or a config:
networks and flat keyword arguments go in, a module with the contract of `Distiller` comes out. SRRL, CID and SFTN take
networks that return `(logits, features)`: `features` needs `feats` (maps) and `pooled_feat`; `pooled_map` is the map
that the latter is the mean of.
"""

from tllm_plugin.methods.base import METHODS, Distiller, Losses
from tllm_plugin.methods.cid import CID
from tllm_plugin.methods.context import ContextStudent
from tllm_plugin.methods.kd import KD
from tllm_plugin.methods.kd_loss import kd_loss
from tllm_plugin.methods.sftn import SFTN, Branch
from tllm_plugin.methods.srrl import SRRL
from tllm_plugin.methods.student_map import find_map
from tllm_plugin.methods.vanilla import Vanilla

__all__ = [
    "CID",
    "KD",
    "METHODS",
    "SFTN",
    "SRRL",
    "Branch",
    "ContextStudent",
    "Distiller",
    "Losses",
    "Vanilla",
    "find_map",
    "kd_loss",
]
