"""The real RepDistiller, where there is one, found like the product finds it; small images for its scripts."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.hosts.repdistiller.stand_in import stand_in
from tests.hosts.small_images import make_images
from tllm_plugin.core.errors import ConfigError
from tllm_plugin.hosts.checkouts import locate, patches
from tllm_plugin.hosts.repdistiller.patching import patched_imports, read_patches

ZOO = (
    *("Attention", "Correlation", "DistillKL", "HintLoss", "Similarity", "VIDLoss", "RKDLoss"),
    *("PKT", "ABLoss", "FactorTransfer", "KDSVD", "FSP", "NSTLoss"),
)
MODULES = ("ConvReg", "LinearEmbed", "Connector", "Translator", "Paraphraser")


@pytest.fixture(scope="session")
def checkout() -> Path:
    try:
        return locate("repdistiller")
    except ConfigError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def real(checkout: Path) -> Iterator[SimpleNamespace]:
    """What the checkout's train script imports, by name."""
    with patched_imports(checkout, read_patches(patches("repdistiller"))):
        import distiller_zoo
        from crd.criterion import CRDLoss
        from helper.loops import train_distill
        from helper.pretrain import init
        from models import model_dict
        from models import util as modules

        yield SimpleNamespace(
            **{name: getattr(distiller_zoo, name) for name in ZOO},
            **{name: getattr(modules, name) for name in MODULES},
            CRDLoss=CRDLoss,
            model_dict=model_dict,
            train_distill=train_distill,
            init=init,
            root=checkout,
        )


@pytest.fixture(params=["stand-in", "real"])
def host(request: pytest.FixtureRequest) -> SimpleNamespace:
    """The stand-in always, the real host where it is there."""
    if request.param == "stand-in":
        return stand_in()
    found: SimpleNamespace = request.getfixturevalue("real")
    return found


@pytest.fixture
def scratch(checkout: Path, tmp_path: Path) -> Path:
    """A copy of the checkout as it is, with a folder of small images beside it."""
    root = tmp_path / "RepDistiller"
    shutil.copytree(checkout, root, ignore=shutil.ignore_patterns("__pycache__", ".git", "save", "data"))
    make_images(tmp_path / "images")
    return root


def environment(root: Path) -> dict[str, str]:
    """Return the environment of a process that is to use this copy."""
    return {**os.environ, "TLLM_REPDISTILLER_ROOT": str(root), "OMP_NUM_THREADS": "1"}
