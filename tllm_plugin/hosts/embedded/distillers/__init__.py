"""Distillers of the embedded host by name; `default_config` adds the methods that all hosts share."""

from functools import partial

from tllm_plugin.hosts.embedded.distillers.at import AT
from tllm_plugin.hosts.embedded.distillers.base import distiller_dict
from tllm_plugin.hosts.embedded.distillers.fitnet import FitNet
from tllm_plugin.hosts.method_options import make
from tllm_plugin.methods import KD

#: Classes with `options`, by the name of their config node.
OWN = {"KD": KD, "AT": AT, "FITNET": FitNet}

for _name, _kind in OWN.items():
    distiller_dict.register(_name)(partial(make, _name, _kind))

__all__ = ["AT", "OWN", "FitNet", "distiller_dict"]
