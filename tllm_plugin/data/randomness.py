"""Random numbers that depend on named values alone, never on what was drawn before.

A run that is killed and resumed has to see the batches that it would have seen. So nothing here, and nothing that uses
it, reads or advances a global random number generator.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def derived_seed(*key: int | str) -> int:
    """Seed of 63 bits that is a fixed function of `key`, the same on every machine and in every process.

    >>> derived_seed(0, 3, "order") == derived_seed(0, 3, "order") != derived_seed(0, 4, "order")
    True
    """
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def derived_generator(*key: int | str) -> torch.Generator:
    """CPU generator seeded by `derived_seed(*key)`."""
    return torch.Generator().manual_seed(derived_seed(*key))


@contextmanager
def borrowed_cpu_rng(seed: int) -> Iterator[None]:
    """Seed torch's global CPU generator for the block and put its state back afterwards.

    For torchvision's transforms, which draw from the global generator and take no other. `torch.manual_seed` would do
    too much: it also reseeds the accelerators, whose state is not put back here.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield
