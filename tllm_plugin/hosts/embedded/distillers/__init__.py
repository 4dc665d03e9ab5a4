"""The embedded host's distillers; importing this package registers them."""

from tllm_plugin.hosts.embedded.distillers import ported  # noqa: F401 (it registers the ported methods)
from tllm_plugin.hosts.embedded.distillers.at import AT
from tllm_plugin.hosts.embedded.distillers.base import Vanilla, distiller_dict
from tllm_plugin.hosts.embedded.distillers.fitnet import FitNet
from tllm_plugin.hosts.embedded.distillers.kd import KD
from tllm_plugin.methods.base import Distiller

__all__ = ["AT", "KD", "Distiller", "FitNet", "Vanilla", "distiller_dict"]
