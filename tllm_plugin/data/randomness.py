"""Random numbers that depend only on given keys, not on earlier draws.

A resumed run must get the same batches as an uninterrupted one. Therefore these functions and their callers neither
read nor advance a global random number generator.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def derived_seed(*key: int | str) -> int:
    """Return a 63-bit seed that is a fixed function of `key`, equal on every machine and in every process.

    >>> derived_seed(0, 3, "order") == derived_seed(0, 3, "order") != derived_seed(0, 4, "order")
    True
    """
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def derived_generator(*key: int | str) -> torch.Generator:
    """Return a CPU generator with the seed `derived_seed(*key)`."""
    return torch.Generator().manual_seed(derived_seed(*key))


@contextmanager
def borrowed_cpu_rng(seed: int) -> Iterator[None]:
    """Seed torch's global CPU generator for the block and restore its state afterwards.

    torchvision's transforms can only draw from the global generator. `torch.manual_seed` is not used, because it also
    reseeds accelerators, whose state is not restored here.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield
