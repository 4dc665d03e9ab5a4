"""TLLM's models under RepDistiller's contract, for those that the host lacks."""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from functools import partial

from torch import nn

from tllm_plugin.hosts.repdistiller.contracts import as_listed
from tllm_plugin.models import create_model, load_pretrained

#: Teachers of Table 6, the ResNet-24 of section 2.2, and the teacher of a pair that CID's authors give weights for.
EXTRA_MODELS = ("wrn_28_2", "wrn_16_4", "wrn_28_4", "wrn_40_4", "resnet24_1_1_9")
#: Networks for photographs; the host's own are for images of 32 pixels.
PHOTOGRAPH_MODELS = ("tv_resnet50", "tv_resnet18", "tv_mobilenet_v2")


def extend_models(models: MutableMapping[str, Callable[..., nn.Module]]) -> None:
    """Add the models that a host's `model_dict` lacks; what is there is left alone."""
    for name in (*EXTRA_MODELS, *PHOTOGRAPH_MODELS):
        models.setdefault(name, partial(create_listed, name))


def create_listed(name: str, num_classes: int = 100) -> nn.Module:
    """Return one of TLLM's models that answers as RepDistiller's do; parameter names are unchanged.

    Args:
        name: As `tllm_plugin.models.create_model` takes it.
        num_classes: Logits per image.

    Returns:
        A network: `network(x)` is logits (n, C); `network(x, is_feat=True)` is `([f0, ..., fn, pooled], logits)`, with
        `preact=True` the maps before their activation.
    """
    return as_listed(create_model(name, num_classes=num_classes))


def start_pretrained(models: MutableMapping[str, Callable[..., nn.Module]], name: str) -> None:
    """Let a model of the `model_dict` start from torchvision's weights, its head aside.

    Raises:
        ConfigError: On building: it is none of torchvision's.
    """
    build = models[name]

    def pretrained(num_classes: int = 100) -> nn.Module:
        network = build(num_classes=num_classes)
        load_pretrained(network)
        return network

    models[name] = pretrained
