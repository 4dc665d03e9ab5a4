"""The embedded host's distillers; importing this package registers them."""

from tllm_plugin.hosts.embedded.distillers.at import AT
from tllm_plugin.hosts.embedded.distillers.base import Distiller, Vanilla, distiller_dict
from tllm_plugin.hosts.embedded.distillers.fitnet import FitNet
from tllm_plugin.hosts.embedded.distillers.kd import KD

__all__ = ["AT", "KD", "Distiller", "FitNet", "Vanilla", "distiller_dict"]
