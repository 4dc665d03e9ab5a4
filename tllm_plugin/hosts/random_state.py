"""Save and restore all random number generators of a process through a checkpoint."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor


class RandomState:
    """State of the generators of Python, NumPy and torch, including every CUDA device.

    The object holds no state: `state_dict` reads the generators and `load_state_dict` sets them. With it, a resume is
    exact in hosts whose checkpoints lack these states.
    """

    def state_dict(self) -> dict[str, Any]:
        """Return tensors and plain numbers only, so that checkpoints can be loaded with `weights_only=True`."""
        version, internal, gauss = random.getstate()
        kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
        return {
            "torch": torch.get_rng_state(),
            "cuda": [torch.cuda.get_rng_state(device) for device in range(torch.cuda.device_count())],
            "python": {"version": version, "internal": torch.tensor(internal, dtype=torch.int64), "gauss": gauss},
            "numpy": {
                "kind": str(kind),
                "keys": torch.from_numpy(np.asarray(keys).astype(np.int64)),
                "position": int(position),
                "has_gauss": int(has_gauss),
                "cached": float(cached),
            },
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Set the generators; states of CUDA devices that this machine lacks are ignored."""
        torch.set_rng_state(state["torch"].cpu())
        for device, cuda in enumerate(state["cuda"][: torch.cuda.device_count()]):
            torch.cuda.set_rng_state(cuda.cpu(), device)
        python = state["python"]
        random.setstate((python["version"], tuple(python["internal"].tolist()), python["gauss"]))
        numpy = state["numpy"]
        keys = numpy["keys"].numpy().astype(np.uint32)
        np.random.set_state((numpy["kind"], keys, numpy["position"], numpy["has_gauss"], numpy["cached"]))


@contextmanager
def same_random_numbers(seed: int) -> Iterator[None]:
    """Seed the generators of Python, NumPy and the CPU for a block, and put their states back afterwards."""
    python, numpy, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(cpu)


def torch_state(device: torch.device) -> dict[str, Tensor]:
    """Return the states of torch's generators on the CPU and on `device`."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_torch_state(state: Mapping[str, Tensor], device: torch.device) -> None:
    """Set the generators from the result of `torch_state`, on the CPU and, if it has one, on `device`."""
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
