"""The ported methods under the embedded host's names."""

from tllm_plugin.hosts.embedded.distillers.base import distiller_dict
from tllm_plugin.hosts.ported_methods import build_cid, build_sftn, build_srrl

distiller_dict.register("SRRL")(build_srrl)
distiller_dict.register("CID")(build_cid)
distiller_dict.register("SFTN")(build_sftn)
