"""TLLM inside mdistiller. Importing this registers everything; the host's own files stay as they are.

    import tllm_plugin.hosts.mdistiller

Added: the node `TLLM` and the key `DISTILLER.TEACHER_CHECKPOINT` in `CFG`, the trainer `tllm`, the distiller `TLLM`,
and the models that the host lacks. What is there already under such a name is left alone.
"""

from tllm_plugin.hosts.mdistiller.configuration import find_config, prepare
from tllm_plugin.hosts.mdistiller.registration import register

__all__ = ["find_config", "prepare", "register"]

register()
