"""Networks of a run: made as its config says, or loaded from a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from yacs.config import CfgNode

from tllm_plugin.core.data_identity import DataIdentity, normalisation_difference
from tllm_plugin.core.errors import FileFormatError
from tllm_plugin.data import DataBundle
from tllm_plugin.hosts import processes
from tllm_plugin.methods import ContextStudent
from tllm_plugin.models import create_model, load_pretrained
from tllm_plugin.runs.finite import check_finite
from tllm_plugin.runs.reading import load_torch


def make_network(
    cfg: CfgNode, name: str, bundle: DataBundle, device: torch.device, *, pretrained: bool = False
) -> nn.Module:
    """Return a new network for the images and classes of `bundle`, laid out and compiled as the config says.

    Args:
        cfg: Of the run.
        name: Of the model.
        bundle: The data.
        device: Where the network is to be.
        pretrained: Start from torchvision's weights for ImageNet.

    Raises:
        ConfigError: `pretrained` is set for a model that torchvision has no weights for.
    """
    network = create_model(name, num_classes=bundle.num_classes, in_channels=bundle.in_channels)
    if pretrained:
        load_pretrained(network)
    network = network.to(device)
    if cfg.RUNTIME.CHANNELS_LAST:
        network = network.to(memory_format=torch.channels_last)
    if cfg.RUNTIME.COMPILE:
        network.compile()
    return network


def trained_model(cfg: CfgNode) -> str:
    """Return the name of the network that a config trains."""
    return str(cfg.DISTILLER.TEACHER if cfg.DISTILLER.TYPE == "SFTN" else cfg.DISTILLER.STUDENT)


def show_as_recorded(network: nn.Module, recorded: DataIdentity, now: DataIdentity) -> None:
    """Let a network see images normalised as they were when it was trained, whatever loaders do now.

    Args:
        network: Images are its first argument.
        recorded: How it met them; what is not known stays as it is.
        now: How loaders normalise them.
    """
    if not (recorded.mean and now.mean) or len(recorded.mean) != len(now.mean):
        return
    if not normalisation_difference(replace(recorded, image_size=0), now):
        return
    mean, std, new_mean, new_std = (torch.tensor(v) for v in (now.mean, now.std, recorded.mean, recorded.std))
    scale, shift = std / new_std, (mean - new_mean) / new_std

    def renormalised(image: Tensor) -> Tensor:
        factor, offset = (v.to(image.device, image.dtype).view(-1, 1, 1) for v in (scale, shift))
        return image * factor + offset

    def hook(module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        if inputs:
            return (renormalised(inputs[0]), *inputs[1:]), named
        first = next(iter(named))
        return inputs, {**named, first: renormalised(named[first])}

    network.register_forward_pre_hook(hook, with_kwargs=True)


def load_network(network: nn.Module, path: str | Path) -> nn.Module:
    """Load the weights of a checkpoint `{"model": state_dict}`, as the hosts write them.

    Of several processes all have to call it; the main one reads the file.

    Args:
        network: Of the architecture that was trained.
        path: The file.

    Returns:
        The network; or the module around it that predicts, if these are the weights of a student of CID.

    Raises:
        FileFormatError: It is missing, damaged, of another architecture or number of classes, or has weights that are
            not finite.
    """
    state = processes.from_main(lambda: load_torch(path, "a network's checkpoint"))
    if not isinstance(state, Mapping) or not isinstance(state.get("model"), Mapping):
        raise FileFormatError(f"Expected {path} to hold a state_dict under the key `model`, but it does not")
    check_finite(state["model"], path)
    try:
        if ContextStudent.is_state(state["model"]):
            return ContextStudent.restore(network, state["model"])
        network.load_state_dict(state["model"])
    except RuntimeError as error:
        cause = " ".join(str(error).split())
        raise FileFormatError(f"Expected {path} to fit {type(network).__name__}, but {cause[:300]}") from error
    return network
