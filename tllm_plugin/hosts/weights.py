"""Load weight files of other programs into a network; the tensors of a file are matched by names and shapes.

Training scripts save a state_dict alone or under a key of their own (`state_dict`, `model`, `net`, `student`), and what
surrounded the network while it was trained (`DataParallel`, `torch.compile`, a Lightning module, a distiller) is a
prefix of its names. Keys and prefixes are treated alike here: each tensor of a file gets one dotted name, and the
network's own names are looked for at the ends of these names.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from os import PathLike

import torch
from torch import Tensor, nn

from tllm_plugin.core.errors import FileFormatError
from tllm_plugin.hosts import processes
from tllm_plugin.methods import ContextStudent
from tllm_plugin.runs.finite import check_finite
from tllm_plugin.runs.weights_file import read_weights

logger = logging.getLogger(__name__)

# Parts of a name that PyTorch's wrappers add, at any place of it.
_WRAPPERS = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
# Entries that a file may have or lack, because they do not change what a network in evaluation mode returns: counters
# of BatchNorm and of weight averaging, and what profilers leave.
_COUNTERS = ("num_batches_tracked", "n_averaged", "total_ops", "total_params")
# Where several sets of weights fit, the set with the lowest rank is taken.
_STUDENT, _UNNAMED, _AVERAGED, _TEACHER = range(4)
_CONTEXT_HEAD, _CONTEXT_NETWORK = "context_head.weight", "network."
_MOST_SHOWN = 3

#: Shape of a tensor; None stands for a size that depends on the data (classes, channels of the images).
Shape = tuple[int | None, ...]


@dataclass(frozen=True)
class Found:
    """Weights of a file that fit a network.

    Args:
        place: Keys and prefix of the weights in the file, dotted; empty for a bare state_dict.
        state: Under the names of the network; of CID's student if `is_context`.
        is_context: Whether these are the weights of a student of CID, which predicts through its context head.
        others: Places of further sets of weights that fit as well.
    """

    place: str
    state: Mapping[str, Tensor]
    is_context: bool
    others: tuple[str, ...]


def load_weights(network: nn.Module, path: str | PathLike[str], name: str = "") -> nn.Module:
    """Load the weights of a file into a network, in the network's precision, and log which entries were used.

    Of several processes all have to call it; the main one reads the file.

    Args:
        network: Of the architecture that was trained.
        path: A file of `torch.save` or a safetensors file; see `find_weights`.
        name: Of the network, for error messages; its class for an empty one.

    Returns:
        The network; or the module around it that predicts, if these are the weights of a student of CID.

    Raises:
        FileFormatError: It is missing, damaged, of another architecture or number of classes, or has weights that are
            not finite.
    """
    name, shapes = name or type(network).__name__, shapes_of(network)
    found = processes.from_main(lambda: find_weights(shapes, path, name))
    try:
        if found.is_context:
            return ContextStudent.restore(network, found.state)
        network.load_state_dict(found.state)
    except RuntimeError as error:
        cause = " ".join(str(error).split())
        raise FileFormatError(f"Expected {path} to fit {name}, but {cause[:300]}") from error
    return network


def check_weights(build: Callable[[int, int], nn.Module], path: str | PathLike[str], name: str) -> None:
    """Check that a file holds weights of an architecture, for any number of classes and image channels.

    This needs no data, so that it can be done before any image is read. Where a network cannot be built without memory
    for its weights, the file is only read.

    Args:
        build: Returns a network for `(num_classes, in_channels)`; it is called on the device `meta`.
        path: The file.
        name: Of the network, for error messages.

    Raises:
        FileFormatError: See `load_weights`.
    """
    try:
        with torch.device("meta"):
            one, other = shapes_of(build(2, 1)), shapes_of(build(3, 3))
    except Exception:  # A user's own network may raise any error.
        logger.debug("%s cannot be built without memory", name, exc_info=True)
        read_weights(path)
        return
    shapes: dict[str, Shape] = {
        key: tuple(size if size == same else None for size, same in zip(shape, other[key], strict=True))
        for key, shape in one.items()
    }
    find_weights(shapes, path, name)


def shapes_of(network: nn.Module) -> dict[str, Shape]:
    """Return the shape of each tensor in the state_dict of a network."""
    state = network.state_dict()
    return {key: tuple(value.shape) for key, value in state.items() if isinstance(value, Tensor)}


def find_weights(shapes: Mapping[str, Shape], path: str | PathLike[str], name: str) -> Found:
    """Return the weights in a file that fit a network: all of its names, with their shapes, and no others beside them.

    Of several, the student's are taken rather than those without such a name, these rather than an average of them
    (`ema`), and a teacher's last.

    Args:
        shapes: See `shapes_of`.
        path: The file.
        name: Of the network, for error messages.

    Raises:
        FileFormatError: None fit, several of the same rank do and differ, or they are not finite.
    """
    tensors = dict(_flattened(read_weights(path)))
    known = {_unwrapped(key): tensor for key, tensor in tensors.items()}
    written = {_unwrapped(key): key for key in tensors}
    wanted = {_unwrapped(key): key for key in shapes}
    places = _places(known, wanted)
    fitting = [place for place in places if not _misfit(known, wanted, shapes, place)]
    if not fitting:
        raise FileFormatError(f"Expected {path} to fit {name}, but {_explained(known, wanted, shapes, places)}")
    fitting.sort(key=lambda place: (_rank(place), place.count("."), place))
    taken, *others = fitting
    rivals = [place for place in others if _rank(place) == _rank(taken) and not _same(known, wanted, taken, place)]
    if rivals:
        raise FileFormatError(
            f"Expected {path} to hold one set of weights for {name}, but {_shown([taken, *rivals])} fit and differ; "
            "save one of them alone"
        )
    around = taken.removesuffix(_CONTEXT_NETWORK)
    is_context = around != taken and f"{around}{_CONTEXT_HEAD}" in known
    if is_context:
        state = {key.removeprefix(around): value for key, value in known.items() if key.startswith(around)}
    else:
        state = {key: known[f"{taken}{bare}"] for bare, key in wanted.items() if f"{taken}{bare}" in known}
    check_finite(state, path)
    first = next(bare for bare in wanted if f"{taken}{bare}" in known)
    place = written[f"{taken}{first}"].removesuffix(wanted[first]).rstrip(".")
    found = Found(place, state, is_context, tuple(other.rstrip(".") or "the top level" for other in others))
    _tell(path, found)
    return found


def _tell(path: str | PathLike[str], found: Found) -> None:
    kinds = {str(value.dtype).removeprefix("torch.") for value in found.state.values() if value.is_floating_point()}
    told = [f"taken from `{found.place}`" if found.place else "taken from its top level"]
    told += [f"stored as {', '.join(sorted(kinds))}"] if kinds != {"float32"} else []
    told += [f"not {_shown(found.others)}, which also fit"] if found.others else []
    # Where this package and the hosts put them, there is nothing to tell.
    level = logging.DEBUG if found.place == "model" and len(told) == 1 else logging.INFO
    logger.log(level, "weights of %s: %s", path, "; ".join(told))


def _flattened(content: object, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yield every tensor in nested mappings under its dotted name."""
    if isinstance(content, Tensor):
        yield prefix, content
    elif isinstance(content, Mapping):
        for key, value in content.items():
            yield from _flattened(value, f"{prefix}.{key}" if prefix else str(key))


def _unwrapped(key: str) -> str:
    parts = key.split(".")
    return ".".join([part for part in parts[:-1] if part not in _WRAPPERS] + parts[-1:])


def _places(known: Mapping[str, Tensor], wanted: Mapping[str, str]) -> list[str]:
    """Return the prefixes with at least one of the wanted names, in the order of the file."""
    needed = [bare for bare in wanted if not bare.endswith(_COUNTERS)] or list(wanted)
    ends = {bare.rpartition(".")[2] for bare in needed}
    # The name that the fewest others end in: a prefix that lacks it lacks a layer.
    telling = max(needed, key=len)
    exact = [key.removesuffix(telling) for key in known if key == telling or key.endswith(f".{telling}")]
    if exact:
        return list(dict.fromkeys(exact))
    near = (
        key.removesuffix(bare)
        for key in known
        if key.rpartition(".")[2] in ends
        for bare in needed
        if key == bare or key.endswith(f".{bare}")
    )
    return list(dict.fromkeys(near))


def _misfit(
    known: Mapping[str, Tensor], wanted: Mapping[str, str], shapes: Mapping[str, Shape], place: str
) -> list[str]:
    """Return why the tensors under `place` do not fit a network: missing or surplus names, other shapes."""
    missing = [bare for bare in wanted if f"{place}{bare}" not in known and not bare.endswith(_COUNTERS)]
    extra = [
        key.removeprefix(place)
        for key in known
        if key.startswith(place) and key.removeprefix(place) not in wanted and not key.endswith(_COUNTERS)
    ]
    other = [
        f"`{bare}` is {tuple(known[f'{place}{bare}'].shape)} there and {_spelled(shapes[key])} in the network"
        for bare, key in wanted.items()
        if f"{place}{bare}" in known and not _alike(known[f"{place}{bare}"].shape, shapes[key])
    ]
    told = [f"{len(missing)} of {len(wanted)} tensors are missing ({_shown(missing)})"] if missing else []
    told += [f"{len(extra)} are left over ({_shown(extra)})"] if extra else []
    return told + other[:1] + ([f"{len(other) - 1} more have another shape"] if len(other) > 1 else [])


def _explained(
    known: Mapping[str, Tensor], wanted: Mapping[str, str], shapes: Mapping[str, Shape], places: list[str]
) -> str:
    if not known:
        return "it holds no tensor under any name"
    if not places:
        return f"none of its tensors ({_shown(list(known))}) has a name of the network ({_shown(list(wanted))})"
    nearest = max(places, key=lambda place: sum(f"{place}{bare}" in known for bare in wanted))
    under = f"under `{nearest.rstrip('.')}` " if nearest else ""
    return under + "; ".join(_misfit(known, wanted, shapes, nearest))


def _alike(shape: torch.Size, wanted: Shape) -> bool:
    return len(shape) == len(wanted) and all(size in (have, None) for have, size in zip(shape, wanted, strict=True))


def _spelled(shape: Shape) -> str:
    return f"({', '.join('any' if size is None else str(size) for size in shape)}{',' if len(shape) == 1 else ''})"


def _same(known: Mapping[str, Tensor], wanted: Mapping[str, str], one: str, other: str) -> bool:
    pairs = ((known.get(f"{one}{bare}"), known.get(f"{other}{bare}")) for bare in wanted)
    return all(a is b or (a is not None and b is not None and torch.equal(a, b)) for a, b in pairs)


def _rank(place: str) -> int:
    words = set(place.lower().replace("_", ".").split("."))
    if "teacher" in words:
        return _TEACHER
    if words & {"ema", "averaged", "swa"}:
        return _AVERAGED
    return _STUDENT if "student" in words else _UNNAMED


def _shown(names: list[str] | tuple[str, ...]) -> str:
    more = len(names) - _MOST_SHOWN
    return ", ".join(f"`{name.rstrip('.')}`" for name in names[:_MOST_SHOWN]) + (
        f" and {more} more" if more > 0 else ""
    )
