"""Create the networks of a run from its config, or load them from a checkpoint."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from yacs.config import CfgNode

from tllm_plugin.core.data_identity import DataIdentity, normalisation_difference
from tllm_plugin.core.predictions import predict
from tllm_plugin.data import ANY_SIZE, DataBundle
from tllm_plugin.hosts import processes
from tllm_plugin.hosts.at_chance import tell_if_at_chance
from tllm_plugin.hosts.class_lists import resolve_classes
from tllm_plugin.hosts.embedded.prerequisites import WITHOUT_TEACHER
from tllm_plugin.hosts.embedded.runtime import autocast
from tllm_plugin.hosts.same_data import check_teacher, data_of_checkpoint, tell_unstated_order
from tllm_plugin.hosts.weights import check_weights, load_weights
from tllm_plugin.models import create_model, input_config, load_pretrained, model_builder
from tllm_plugin.models.planting import PlantedTeacher

#: About as many of the training images show whether a teacher knows anything.
_IMAGES_FOR_A_TEACHER = 500


def make_network(
    cfg: CfgNode, name: str, bundle: DataBundle, device: torch.device, *, pretrained: bool = False
) -> nn.Module:
    """Return a new network for the images and classes of `bundle`, in the config's memory format and compiled if set.

    Args:
        cfg: Config of the run.
        name: Name of the model.
        bundle: Data set.
        device: Device of the network.
        pretrained: Whether to start from torchvision's weights for ImageNet.

    Raises:
        ConfigError: `pretrained` is set for a model without weights in torchvision.
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
    """Add a hook that converts a network's input to the normalisation of its training.

    Args:
        network: Network whose first argument are the images.
        recorded: Normalisation in training; unknown values mean no conversion.
        now: Normalisation of the images that the network will receive.
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


def check_named_checkpoint(cfg: CfgNode) -> None:
    """Check the teacher's checkpoint that a config names, before the data set is read.

    Raises:
        FileFormatError: See `check_weights`.
    """
    name, checkpoint = cfg.DISTILLER.TEACHER, cfg.DISTILLER.TEACHER_CHECKPOINT
    if checkpoint and cfg.DISTILLER.TYPE not in WITHOUT_TEACHER:
        processes.from_main(lambda: check_weights(model_builder(name), checkpoint, name))


def load_teacher(cfg: CfgNode, checkpoint: str | Path, bundle: DataBundle, device: torch.device) -> nn.Module:
    """Return the teacher of a run on the device, in evaluation mode and with the normalisation of its training.

    Args:
        cfg: Config of the run.
        checkpoint: Checkpoint of the teacher.
        bundle: Data of the run.
        device: Device of the teacher.

    Raises:
        FileFormatError: See `load_weights`.
        ConfigError: The teacher was trained on other classes.
    """
    teacher = make_network(cfg, cfg.DISTILLER.TEACHER, bundle, device)
    teacher = load_weights(teacher, checkpoint).to(device)
    recorded = processes.from_main(lambda: data_of_checkpoint(checkpoint))
    wanted = input_config(cfg.DISTILLER.TEACHER)
    if wanted is not None and not recorded.mean and cfg.DATASET.TYPE in ANY_SIZE:
        # A file of the library says nothing; its data config does.
        recorded = replace(recorded, mean=wanted.mean, std=wanted.std)
    if cfg.DISTILLER.TEACHER_CHECKPOINT:  # Otherwise the teacher's run has been compared already.
        check_teacher(checkpoint, recorded, bundle.identity)
        if not (recorded.class_names or bundle.order_stated):
            tell_unstated_order(checkpoint, bundle.class_folders)
    show_as_recorded(teacher, recorded, bundle.identity)
    if cfg.SOLVER.TRAINER != "tllm":  # The trainer `tllm` checks the teacher on the hold-out.
        _tell_if_at_chance(teacher, str(checkpoint), cfg, bundle, device)
    plant = cfg.DISTILLER.PLANT
    if plant.CLASSES:
        planted = resolve_classes("DISTILLER.PLANT.CLASSES", plant.CLASSES, bundle.class_names)
        teacher = PlantedTeacher(teacher, planted, bundle.num_classes, plant.STRENGTH).to(device)
    return teacher.eval()


def _tell_if_at_chance(teacher: nn.Module, name: str, cfg: CfgNode, bundle: DataBundle, device: torch.device) -> None:
    """Warn if the accuracy of a teacher is near chance on training images."""
    rows = torch.arange(0, len(bundle.train_labels), max(1, len(bundle.train_labels) // _IMAGES_FOR_A_TEACHER))
    batches = bundle.eval_loader(rows, batch_size=cfg.DATASET.TEST.BATCH_SIZE, device=device, split="train")
    predictions = predict(teacher, batches, autocast=partial(autocast, cfg, device))
    tell_if_at_chance("teacher", name, predictions, "training images")
