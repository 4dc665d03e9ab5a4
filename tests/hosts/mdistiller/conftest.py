"""The real mdistiller, where there is one: found like the product finds it, copied so that tests may write into it."""

from __future__ import annotations

import os
import pickle
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.hosts.small_images import make_images
from tllm_plugin.core.errors import ConfigError
from tllm_plugin.hosts.checkouts import locate


@pytest.fixture(scope="session")
def checkout() -> Path:
    try:
        return locate("mdistiller")
    except ConfigError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def imported(checkout: Path) -> Iterator[Path]:
    """The checkout, importable in this process and mended for it."""
    sys.path.insert(0, str(checkout))
    from tllm_plugin.hosts.mdistiller.compat import apply_compat

    apply_compat()
    import tllm_plugin.hosts.mdistiller  # noqa: F401

    yield checkout
    sys.path.remove(str(checkout))


@pytest.fixture
def scratch(checkout: Path, tmp_path: Path) -> Path:
    """A copy of the checkout with a small data set where the host expects Tiny ImageNet."""
    root = tmp_path / "mdistiller"
    for name in ("mdistiller", "tools", "configs"):
        shutil.copytree(checkout / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    make_images(root / "data" / "tiny-imagenet-200")
    return root


def make_cifar100(folder: Path, per_class: int = 10) -> None:
    """Write CIFAR-100 in its official layout, with few random images."""
    random = np.random.default_rng(0)
    root = folder / "cifar-100-python"
    root.mkdir(parents=True)
    labels = list(range(100)) * per_class
    images = random.integers(0, 256, (len(labels), 3 * 32 * 32), dtype=np.uint8)
    for name in ("train", "test"):
        (root / name).write_bytes(pickle.dumps({"data": images, "fine_labels": labels}))
    (root / "meta").write_bytes(pickle.dumps({"fine_label_names": [f"class {label}" for label in range(100)]}))


def environment(root: Path) -> dict[str, str]:
    """Return the environment of a process that is to use this copy."""
    # What was on the path stays there: a work tree of this repository, perhaps, that is not the installed one.
    paths = os.pathsep.join(filter(None, (str(root), os.environ.get("PYTHONPATH"))))
    return {**os.environ, "TLLM_MDISTILLER_ROOT": str(root), "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
