"""Evaluate models of timm on a folder of validation images; timm is an optional extra."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from tllm_plugin.analysis.loaded_run import LoadedRun
from tllm_plugin.analysis.results import TestResult
from tllm_plugin.core.errors import ConfigError
from tllm_plugin.core.predictions import predict
from tllm_plugin.data.class_order import in_order, ordered
from tllm_plugin.data.decode import read_rgb
from tllm_plugin.data.folder import TEST_FOLDERS, FolderPart, readable_names, scan_part
from tllm_plugin.hosts.same_data import tell_unstated_order
from tllm_plugin.hosts.weights import load_weights
from tllm_plugin.models import import_timm

PREFIX = "timm:"
_BATCH_SIZE = 64
_WORKERS = 2


class _Images(Dataset[tuple[Tensor, int]]):
    """Data set of image files with the transform of a model."""

    def __init__(self, part: FolderPart, transform: Any) -> None:
        self.part = part
        self.transform = transform

    def __len__(self) -> int:
        return len(self.part.files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(read_rgb(self.part.files[index])), int(self.part.labels[index])


def score_timm(
    name: str,
    data: str,
    workers: int = _WORKERS,
    *,
    class_order: str = "",
    image_size: int = 0,
    mean: Sequence[float] = (),
    std: Sequence[float] = (),
) -> LoadedRun:
    """Evaluate a model of timm on validation images, with the model's own transform.

    Args:
        name: `timm:NAME` for weights that timm downloads, `timm:NAME@CHECKPOINT` for a checkpoint file.
        data: `imagefolder=PATH`; `PATH`, `PATH/val` or `PATH/test` contains one folder per class.
        workers: Number of loader processes.
        class_order: Order of the class folders; see `load_data`.
        image_size: Height and width of the images in pixels; 0 uses timm's value for the model.
        mean: Mean per channel; empty uses timm's value for the model.
        std: Standard deviation per channel; empty uses timm's value for the model.

    Raises:
        ConfigError: timm, the model, its weights or the data are missing, or the numbers of classes differ.
        FileFormatError: The checkpoint cannot be read or does not fit.
    """
    timm = import_timm(name)
    model, _, checkpoint = name.removeprefix(PREFIX).partition("@")
    part, class_names = _validation_part(name, data, class_order)
    network = _network(timm, model, checkpoint, len(part.classes))
    config = timm.data.resolve_model_data_config(network)
    if image_size:
        config["input_size"] = (config["input_size"][0], image_size, image_size)
    config.update({key: tuple(values) for key, values in (("mean", mean), ("std", std)) if values})
    images = _Images(part, timm.data.create_transform(**config, is_training=False))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    batches = DataLoader(images, batch_size=_BATCH_SIZE, num_workers=workers, pin_memory=device.type == "cuda")
    predictions = predict(network.to(device), batches, num_classes=len(part.classes), device=device)
    return LoadedRun(
        name=name,
        method=f"{model}@{Path(checkpoint).name}" if checkpoint else model,
        student=model,
        teacher="",
        seed=None,
        class_names=class_names,
        result=TestResult.from_predictions(predictions),
    )


def _validation_part(name: str, data: str, class_order: str) -> tuple[FolderPart, tuple[str, ...]]:
    kind, _, path = data.partition("=")
    root = Path(path).expanduser()
    if kind != "imagefolder" or not path or not root.is_dir():
        raise ConfigError(
            f"Expected `--data` to name a folder of validation images for {name}, as in imagefolder=/path/to/val, "
            f"but got "
            f"{data!r}"
        )
    part = scan_part(next((root / below for below in TEST_FOLDERS if (root / below).is_dir()), root))
    if not class_order:
        tell_unstated_order(name, part.classes)
    part = in_order(part, ordered(part.classes, class_order, part.root))
    return part, readable_names(root, part.classes)


def _network(timm: Any, model: str, checkpoint: str, num_classes: int) -> nn.Module:
    if model not in timm.list_models() and not timm.is_model(model):
        near = difflib.get_close_matches(model, timm.list_models(), n=5)
        raise ConfigError(
            f"Expected a model of timm {timm.__version__}, but got {model!r}; similar names: "
            f"{', '.join(near) or 'none'}"
        )
    if checkpoint:
        network: nn.Module = timm.create_model(model, pretrained=False, num_classes=num_classes)
        return load_weights(network, checkpoint, model)
    try:
        network = timm.create_model(model, pretrained=True)
    except Exception as error:  # The hub and the network raise errors of many types.
        cause = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigError(
            f"Expected the weights of {model} to be downloadable, but {cause}; download them elsewhere and name the "
            f"file: "
            f"{PREFIX}{model}@FILE"
        ) from error
    if getattr(network, "num_classes", num_classes) != num_classes:
        raise ConfigError(
            f"Expected as many class folders as {model} has classes ({network.num_classes}), but got {num_classes}"
        )
    return network
