"""Imports point upwards: what each part may import, read from the syntax trees of all modules."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "tllm_plugin"
MODULES = sorted(PACKAGE.rglob("*.py"))

# Part -> parts of ours that it may import, itself and `version` aside. A part is what stands directly in the package.
_BELOW_HOSTS = {"core", "methods", "models", "data", "runs", "speed"}
OURS = {
    "version": set(),
    "core": set(),
    "methods": {"core"},
    "models": {"core"},
    "data": {"core"},
    "runs": {"core"},
    "speed": {"core", "data", "runs"},
    "hosts": _BELOW_HOSTS,
    "analysis": _BELOW_HOSTS | {"hosts"},
    "report": _BELOW_HOSTS | {"hosts", "analysis"},
    "search": _BELOW_HOSTS | {"hosts", "analysis", "report"},
    "cli": _BELOW_HOSTS | {"hosts", "analysis", "report", "search"},
    "__init__": {"core", "methods"},
    "__main__": {"cli"},
}
# Part -> parts of ours that it may import once a function asks for them, or for type checkers.
ON_DEMAND = {"__init__": {"hosts"}}

# Distribution -> the module that it is imported as, where the two differ.
_IMPORTED_AS = {"pillow": "PIL", "pyyaml": "yaml", "scikit-learn": "sklearn"}
_DECLARED = re.search(r"^dependencies = \[(.*?)\]", (ROOT / "pyproject.toml").read_text(), re.M | re.S)
DEPENDENCIES = {_IMPORTED_AS.get(name, name) for name in re.findall(r'"([\w-]+)', _DECLARED[1] if _DECLARED else "")}

# Part -> third parties; a part that is not listed may import every declared dependency.
THIRD_PARTIES = {
    "version": set(),
    "core": {"torch"},
    "methods": {"torch"},
    "models": {"torch", "torchvision"},
    "data": {"torch", "torchvision", "numpy", "sklearn", "PIL"},
    "runs": {"torch", "numpy", "pydantic", "safetensors"},
    "speed": {"torch", "torchvision", "numpy"},
    "__init__": set(),
    "__main__": set(),
}

# Optional extras: only there once a function of that part asks for them.
OPTIONAL = {
    "timm": "models",
    **dict.fromkeys(("wandb", "mlflow"), "hosts"),
    **dict.fromkeys(("onnx", "onnxruntime", "onnxscript", "pyarrow"), "analysis"),
}

# The hosts' own top-level modules: not dependencies, and only there once a function asks for them.
HOST_MODULES = {"mdistiller", "crd", "dataset", "distiller_zoo", "helper", "models", "tensorboard_logger"}


def imports_of(tree: ast.Module, module: str, is_package: bool) -> Iterator[tuple[str, int, bool]]:
    """Yield (absolute name, line, whether inside a function) of every import, `import_module("...")` included."""

    def visit(node: ast.AST, lazy: bool) -> Iterator[tuple[str, int, bool]]:
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno, lazy) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = module.split(".")[: None if is_package and node.level == 1 else -node.level + is_package]
                base = ".".join([*parents, *([base] if base else [])])
            if base == "tllm_plugin":
                yield from ((f"{base}.{alias.name}", node.lineno, lazy) for alias in node.names)
            else:
                yield base, node.lineno, lazy
        elif isinstance(node, ast.Call):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            first = node.args[0] if node.args else None
            if called in ("import_module", "__import__") and isinstance(first, ast.Constant):
                yield str(first.value), node.lineno, lazy
        inside = lazy or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        inside = inside or isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for child in ast.iter_child_nodes(node):
            yield from visit(child, inside)

    yield from visit(tree, lazy=False)


def violations(source: str, path: str) -> list[str]:
    """Return what the module at `path`, relative to the package, imports against the rules."""
    parts = path.removesuffix(".py").split("/")
    part = parts[0]
    is_package = parts[-1] == "__init__"
    module = ".".join(["tllm_plugin", *(parts[:-1] if is_package else parts)])
    if part not in OURS:
        return [f"{path}: the part {part} is not in the table of this test"]
    found = []
    for name, line, lazy in imports_of(ast.parse(source), module, is_package):
        top, _, rest = name.partition(".")
        if top == "tllm_plugin":
            target = rest.split(".")[0]
            allowed = target in {part, "version"} | OURS[part] | (ON_DEMAND.get(part, set()) if lazy else set())
        elif top in HOST_MODULES:
            allowed = part == "hosts" and lazy
        elif top in OPTIONAL:
            allowed = part == OPTIONAL[top] and lazy
        else:
            allowed = top in sys.stdlib_module_names or top in THIRD_PARTIES.get(part, DEPENDENCIES)
        if not allowed:
            found.append(f"{path}:{line}: {part} must not import {name}{'' if lazy else ' at the top level'}")
    return found


def test_imports_point_upwards() -> None:
    assert len(MODULES) > 50, "the modules were not found"
    found = []
    for path in MODULES:
        found += violations(path.read_text(encoding="utf-8"), path.relative_to(PACKAGE).as_posix())
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "path, source",
    [
        ("core/x.py", "import tllm_plugin.hosts.embedded"),
        ("core/x.py", "from tllm_plugin.runs.atomic import write_json"),
        ("core/x.py", "from tllm_plugin import Curves"),
        ("core/x.py", "import tllm_plugin"),
        ("core/x.py", "from .. import hosts"),
        ("core/x.py", "from ..hosts import config_files"),
        ("core/__init__.py", "from ..hosts import config_files"),
        ("core/detectors/x.py", "from ...data import digits"),
        ("core/x.py", "def f():\n    import torchvision"),
        ("core/x.py", "import yacs.config"),
        ("core/x.py", "import numpy as np"),
        ("core/x.py", "import importlib\nimportlib.import_module('tllm_plugin.hosts')"),
        ("core/x.py", "class A:\n    from tllm_plugin.models import registry"),
        ("core/x.py", "if TYPE_CHECKING:\n    from tllm_plugin.models import registry"),
        ("models/x.py", "from tllm_plugin.data import digits"),
        ("models/x.py", "def f():\n    import mdistiller"),
        ("runs/x.py", "from tllm_plugin.hosts.config_files import find_config"),
        ("hosts/x.py", "import mdistiller.engine"),
        ("hosts/x.py", "from tllm_plugin.cli.main import main"),
        ("analysis/x.py", "import not_a_dependency"),
        ("analysis/x.py", "import timm"),
        ("data/x.py", "def f():\n    import timm"),
        ("__init__.py", "from tllm_plugin.hosts import config_files"),
        ("helpers.py", ""),
    ],
)
def test_a_violation_is_caught(path: str, source: str) -> None:
    assert len(violations(source, path)) == 1


@pytest.mark.parametrize(
    "path, source",
    [
        ("core/x.py", "import math, torch\nfrom tllm_plugin.core.errors import TLLMError"),
        ("core/detectors/x.py", "from . import base\nfrom .base import Detector\nfrom ..errors import TLLMError"),
        ("core/detectors/__init__.py", "from .base import Detector\nfrom ..errors import TLLMError"),
        ("core/x.py", "from tllm_plugin.version import __version__"),
        ("hosts/x.py", "def f():\n    import mdistiller\n    import models.util\nimport tllm_plugin.models.registry"),
        ("cli/x.py", "import rich\nfrom tllm_plugin import search"),
        ("__main__.py", "from tllm_plugin.cli import main"),
        ("__init__.py", "def f():\n    from tllm_plugin.hosts.own_loop.session import Session"),
        ("__init__.py", "if TYPE_CHECKING:\n    from tllm_plugin.hosts.own_loop.session import Session"),
    ],
)
def test_what_is_allowed_passes(path: str, source: str) -> None:
    assert violations(source, path) == []


def test_declared_dependencies_were_read() -> None:
    assert {"torch", "yacs", "sklearn"} <= DEPENDENCIES


def test_every_package_folder_says_what_it_holds() -> None:
    for folder in sorted({path.parent for path in MODULES}):
        init = folder / "__init__.py"
        assert init.is_file(), f"{folder} has no __init__.py, so that a wheel leaves it out"
        assert ast.get_docstring(ast.parse(init.read_text(encoding="utf-8"))), f"{init} has no docstring"


def test_importing_the_package_loads_torch_alone() -> None:
    heavy = sorted(DEPENDENCIES - {"torch", "numpy", "yaml"})
    script = f"import sys, tllm_plugin; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"
