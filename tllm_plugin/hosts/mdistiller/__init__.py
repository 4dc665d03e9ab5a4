"""Register TLLM in mdistiller when this package is imported; the host's files are not changed.

    import tllm_plugin.hosts.mdistiller

This adds the node `TLLM` and the key `DISTILLER.TEACHER_CHECKPOINT` to `CFG`, the trainer `tllm`, the distiller `TLLM`,
and models that the host lacks. Existing entries of these names are kept.
"""

from tllm_plugin.hosts.mdistiller.configuration import find_config, prepare
from tllm_plugin.hosts.mdistiller.registration import register

__all__ = ["find_config", "prepare", "register"]

register()
