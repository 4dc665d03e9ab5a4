"""Read weight files written by `torch.save` or as safetensors."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from tllm_plugin.core.errors import FileFormatError
from tllm_plugin.runs.atomic import atomic_writer
from tllm_plugin.runs.reading import load_torch, open_file

SUFFIX = ".safetensors"


def read_weights(path: str | os.PathLike[str], what: str = "a network's checkpoint") -> Mapping[str, object]:
    """Read a file of weights onto the CPU without ever running code from it.

    Args:
        path: A file of `torch.save`, or a safetensors file, which is recognised by its content.
        what: What the file should be, with its article, for error messages.

    Returns:
        The content of the file. Tensors and metadata of a safetensors file stand beside each other.

    Raises:
        FileFormatError: It is missing, damaged, holds no mapping, or holds objects that could run code on loading.
    """
    path = Path(path)
    if not _is_safetensors(path, what):
        content = load_torch(path, what)
        if not isinstance(content, Mapping):
            raise FileFormatError(
                f"Expected {path} to hold a state_dict, alone or under a key, but it holds a {type(content).__name__}"
            )
        return content
    try:
        with safe_open(path, framework="pt") as file:
            return {**(file.metadata() or {}), **{name: file.get_tensor(name) for name in file.keys()}}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        cause = " ".join(str(error).split())
        raise FileFormatError(
            f"Expected {path} to be {what}, but it is a truncated or damaged safetensors file ({cause})"
        ) from error


def write_safetensors(path: str | os.PathLike[str], state: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a state_dict as safetensors, atomically.

    Args:
        path: Where to write it.
        state: Tensors by name; those that share memory are written separately.
        metadata: Text by key.

    Raises:
        TLLMError: The system refused to write.
    """
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}
    data = safetensors.torch.save(tensors, metadata={"format": "pt", **metadata})
    with atomic_writer(path) as file:
        file.write(data)


def _is_safetensors(path: Path, what: str) -> bool:
    """Return whether a file begins as a safetensors file does: the length of a JSON object, and the object."""
    with open_file(path, what) as file:
        start = file.read(9)
    length = int.from_bytes(start[:8], "little")
    return len(start) == 9 and start[8:] == b"{" and length < path.stat().st_size or path.suffix == SUFFIX
