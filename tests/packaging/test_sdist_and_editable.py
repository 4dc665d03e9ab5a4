"""An sdist gives the same wheel as the tree; an editable install copies nothing and still finds the configs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("setup.py", "pyproject.toml", "README.md", "LICENSE", "tllm_plugin", "configs", "patches")
CONFIGS = sorted(
    path.relative_to(ROOT).as_posix()
    for pattern in ("configs/**/*.yaml", "configs/**/*.sh", "patches/**/*.patch")
    for path in ROOT.glob(pattern)
)
MODULES = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "tllm_plugin").rglob("*.py"))

pytest.importorskip("setuptools", "77", reason="building without a download needs setuptools>=77")


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """A copy of what distributions are built from, so that no build folder is left in the checkout."""
    target = tmp_path / "sources"
    target.mkdir()
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, target / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, target)
    return target


def python(script: str, cwd: Path, *options: str) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, *options, "-c", script], cwd=cwd, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def build(kind: str, sources: Path, *arguments: object) -> Path:
    """Call setuptools' build hook of this kind, which needs no network, and return what it built."""
    target = sources.with_name(f"{sources.name}-{kind}")
    listed = ", ".join(repr(argument) for argument in (str(target), *arguments))
    python(f"from setuptools import build_meta; build_meta.build_{kind}({listed})", sources)
    (built,) = target.iterdir()
    return built


def test_an_sdist_gives_a_wheel_with_all_modules_and_configs(sources: Path, tmp_path: Path) -> None:
    shutil.unpack_archive(build("sdist", sources), tmp_path / "unpacked")
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    with zipfile.ZipFile(build("wheel", unpacked)) as archive:
        names = [name for name in archive.namelist() if ".dist-info/" not in name]
    page = [path.relative_to(ROOT).as_posix() for path in (ROOT / "tllm_plugin/report/assets").iterdir()]
    assert MODULES and CONFIGS and page
    assert sorted(names) == sorted([*MODULES, *page, *(f"tllm_plugin/{name}" for name in CONFIGS)])


@pytest.mark.parametrize("mode", ["lenient", "strict"])
def test_an_editable_install_finds_the_configs_of_its_checkout(mode: str, sources: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(build("editable", sources, {"editable_mode": mode})) as archive:
        archive.extractall(tmp_path / "site")
    assert not (sources / "tllm_plugin" / "configs").exists()
    # Without `site` and its .pth files (-S), an editable install of this very checkout stays out of sight.
    script = f"""
import json, site, sys
sys.path.insert(0, {str(tmp_path / "site")!r})
sys.path.append({sysconfig.get_path("purelib")!r})
site.addsitedir({str(tmp_path / "site")!r})
import tllm_plugin
from tllm_plugin.hosts.config_files import find_config, list_configs
print(json.dumps([tllm_plugin.__file__, [str(find_config(name)) for name in list_configs()]]))
"""
    package, found = json.loads(python(script, tmp_path, "-S"))
    assert Path(package).resolve() == sources / "tllm_plugin" / "__init__.py"
    assert [Path(path).resolve() for path in found] == [sources / name for name in CONFIGS if name.endswith(".yaml")]
