"""Labels of any map-style data set, and the same data set with another transform."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor
from torch.utils.data import ConcatDataset, IterableDataset, Subset, TensorDataset

from tllm_plugin.core.arguments import as_indices
from tllm_plugin.core.errors import ConfigError, DataError
from tllm_plugin.hosts import processes
from tllm_plugin.hosts.random_state import same_random_numbers

# Where data sets of torchvision, timm, the hosts and Hugging Face keep labels, and the parts of an item that is a
# mapping.
_ATTRIBUTES = ("targets", "labels")
_LABELS = ("label", "labels", "target", "targets", "fine_label")
_IMAGES = ("image", "images", "pixel_values", "img")
_NAMES = ("classes", "class_names")


def check_map_style(name: str, dataset: Any) -> None:
    """Check that the samples of a data set have positions.

    Raises:
        ConfigError: It is iterable only, or empty.
    """
    if isinstance(dataset, IterableDataset) or not (hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")):
        raise ConfigError(
            f"Expected `{name}` to be a map-style data set (`__len__` and `__getitem__`), because the hold-out is a "
            f"fixed part of it, but got an iterable {type(dataset).__name__}; if it fits into memory, give `list(...)` "
            "of it"
        )
    if not len(dataset):
        raise ConfigError(f"Expected `{name}` to have samples, but it is empty")


def read_labels(name: str, dataset: Any) -> Tensor:
    """Return the labels of a map-style data set, (N,) int64.

    They are the attribute `targets` or `labels` or the column `label`, of the data set itself or of what a `Subset` or
    `ConcatDataset` is made of. Without one, every sample is read once.

    Args:
        name: Name of the argument, for messages.
        dataset: Its items are `(image, label, ...)`, or mappings with a key such as `label`.

    Raises:
        ConfigError: There are no labels, or they are not class indices.
    """
    found = _kept_labels(dataset)
    if found is None:
        found = _labels_of_items(name, dataset)
    soft = isinstance(found, Tensor) and (found.is_floating_point() or found.dim() > 1)
    if soft or not isinstance(found, Tensor) and len(found) and isinstance(found[0], list | tuple):
        raise ConfigError(
            f"Expected the labels of `{name}` to be class indices, but they are soft (several numbers per sample, or "
            "floats): rows that mix classes belong to no class that could lose its teacher; keep class indices in the "
            "data set and mix in the loop"
        )
    try:
        labels = as_indices(f"labels of {name}", found)
    except ConfigError as error:
        raise ConfigError(f"{error}; map the classes to 0 ... C - 1") from None
    if len(labels) != len(dataset):
        raise ConfigError(
            f"Expected one label for each of the {len(dataset)} samples of `{name}`, but got {len(labels)}"
        )
    return labels


def class_names_of(name: str, dataset: Any, labels: Tensor) -> tuple[str, ...]:
    """Return the names of the classes: those that the data set knows, else "0", "1", ...

    Raises:
        ConfigError: A class has no sample, or a label has no name.
    """
    known = _kept_names(dataset)
    names = tuple(map(str, range(int(labels.max()) + 1) if known is None else known))
    counts = torch.bincount(labels, minlength=len(names))
    missing = (counts == 0).nonzero().flatten().tolist()
    if len(counts) > len(names) or missing:
        problem = f"no sample has {missing[0]}" if missing else f"a sample has {len(counts) - 1}"
        raise ConfigError(
            f"Expected the labels of `{name}` to be 0 to {len(names) - 1}, each of at least one sample, but {problem}; "
            "renumber them, for example with `torch.unique(labels, return_inverse=True)[1]`"
        )
    return names


def with_transform(dataset: Any, transform: Any) -> Any:
    """Return a view of a data set that shares its samples and reads them with another transform.

    Raises:
        ConfigError: The data set has no transform to replace.
    """
    if isinstance(dataset, Subset):
        return Subset(with_transform(dataset.dataset, transform), dataset.indices)
    if isinstance(dataset, ConcatDataset):
        return ConcatDataset([with_transform(part, transform) for part in dataset.datasets])
    if hasattr(dataset, "with_transform"):  # Of Hugging Face.
        return dataset.with_transform(transform)
    if not hasattr(dataset, "transform"):
        raise ConfigError(
            f"Expected a data set with an attribute `transform` for `holdout_transform`, but {type(dataset).__name__} "
            "has none; apply the training transform through such an attribute, or leave `holdout_transform` out if the "
            "data set does not augment"
        )
    view = copy.copy(dataset)
    view.transform = transform
    if getattr(view, "transforms", None) is not None:  # Of torchvision: what it reads with.
        view.transforms = type(view.transforms)(transform, getattr(view, "target_transform", None))
    return view


def image_of(item: Any) -> Any:
    """Return the image of an item.

    Raises:
        DataError: The item has none.
    """
    if isinstance(item, tuple | list) and item:
        return item[0]
    found = [item[name] for name in _IMAGES if name in item] if isinstance(item, Mapping) else []
    if not found:
        raise DataError(
            f"Expected samples `(image, label)` or mappings with one of {', '.join(_IMAGES)}, but got {_shown(item)}"
        )
    return found[0]


def _kept_labels(dataset: Any) -> Any:
    if isinstance(dataset, Subset):
        inner = _kept_labels(dataset.dataset)
        return None if inner is None else [inner[index] for index in dataset.indices]
    if isinstance(dataset, ConcatDataset):
        parts = [_kept_labels(part) for part in dataset.datasets]
        return None if any(part is None for part in parts) else [label for part in parts for label in part]
    if isinstance(dataset, TensorDataset):
        return dataset.tensors[-1] if len(dataset.tensors) > 1 else None
    for name in _ATTRIBUTES:
        found = getattr(dataset, name, None)
        if found is not None and not callable(found):
            return found
    columns = getattr(dataset, "column_names", None)
    named = next((name for name in _LABELS if isinstance(columns, list) and name in columns), None)
    return None if named is None else list(dataset[named])


def _kept_names(dataset: Any) -> Any:
    if isinstance(dataset, Subset):
        return _kept_names(dataset.dataset)
    if isinstance(dataset, ConcatDataset):
        return _kept_names(dataset.datasets[0])
    return next((getattr(dataset, name) for name in _NAMES if hasattr(dataset, name)), None)


def _labels_of_items(name: str, dataset: Any) -> Any:
    first = _label_of(name, dataset, 0)
    shown = track(
        range(1, len(dataset)),
        f"reading the labels of {name}, which has no `targets`",
        console=Console(stderr=True),
        disable=not processes.is_main() or isinstance(dataset, list | tuple),
    )
    # Augmentation must not move the random numbers of the run.
    with same_random_numbers(0):
        labels = [first, *(_label_of(name, dataset, index) for index in shown)]
    return torch.stack(labels) if isinstance(first, Tensor) else labels


def _label_of(name: str, dataset: Any, index: int) -> Any:
    item = dataset[index]
    if isinstance(item, tuple | list) and len(item) > 1:
        return item[1]
    found = [item[key] for key in _LABELS if key in item] if isinstance(item, Mapping) else []
    if not found:
        raise ConfigError(
            f"Expected `{name}` to have labels, as an attribute `targets` or `labels` or in its samples "
            f"`(image, label)`, but sample {index} is {_shown(item)}; pair it with labels, for example by "
            "`TensorDataset(images, labels)`"
        )
    return found[0]


def _shown(item: Any) -> str:
    if isinstance(item, Mapping):
        return f"a mapping with {', '.join(map(str, item)) or 'nothing'}"
    return f"a {type(item).__name__}"
