"""A wheel built from the tree works from any folder, with the configs in it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytest.importorskip("setuptools", "77", reason="building the wheel without a download needs setuptools>=77")

# pytest-xdist sends the tests of a group to one process: the wheel is built once.
pytestmark = pytest.mark.xdist_group("wheel")


def run(*command: object, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | environment
    return subprocess.run([*map(str, command)], cwd=cwd, env=env, capture_output=True, text=True, timeout=300)


def pip(*arguments: object, cwd: Path) -> None:
    done = run(sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments, cwd=cwd)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build from a copy: a build leaves folders in its tree."""
    folder = tmp_path_factory.mktemp("wheel")
    leave_out = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "dist", "output", "data.zip")
    shutil.copytree(ROOT, folder / "tree", ignore=leave_out)
    pip("wheel", ".", "--no-deps", "--no-build-isolation", "-w", folder, cwd=folder / "tree")
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def site(wheel: Path) -> Path:
    """Install the wheel away from everything; its dependencies come from the running Python."""
    pip("install", "--no-deps", "--no-index", "--target", wheel.parent / "site", wheel, cwd=wheel.parent)
    return wheel.parent / "site"


def python(site: Path, cwd: Path, *arguments: str) -> str:
    done = run(sys.executable, *arguments, cwd=cwd, PYTHONPATH=str(site))
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_holds_all_code_and_configs_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    code = {path.relative_to(ROOT).as_posix() for path in (ROOT / "tllm_plugin").rglob("*.py")}
    patterns = ("configs/**/*.yaml", "configs/**/*.sh", "patches/**/*.patch")
    found = [path.relative_to(ROOT).as_posix() for pattern in patterns for path in ROOT.glob(pattern)]
    configs = {f"tllm_plugin/{name}" for name in found}
    page = {path.relative_to(ROOT).as_posix() for path in (ROOT / "tllm_plugin/report/assets").iterdir()}
    assert code and configs and len(page) == 3
    assert names == code | configs | page


def test_the_wheel_states_version_and_licence(wheel: Path, site: Path, tmp_path: Path) -> None:
    version = python(site, tmp_path, "-c", "import tllm_plugin; print(tllm_plugin.__version__)").strip()
    with zipfile.ZipFile(wheel) as archive:
        (metadata,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        lines = archive.read(metadata).decode().splitlines()
        assert any(name.endswith(".dist-info/licenses/LICENSE") for name in archive.namelist())
    assert {f"Version: {version}", "License-Expression: Apache-2.0", "Requires-Python: >=3.10"} <= set(lines)


def test_the_installed_package_is_used_and_finds_its_configs(site: Path, tmp_path: Path) -> None:
    script = (
        "import tllm_plugin\n"
        "from tllm_plugin.hosts.config_files import find_config, list_configs\n"
        "print(tllm_plugin.__file__)\n"
        "print(find_config('tllm/embedded/digits.yaml'))\n"
        "print(find_config('configs/tllm/embedded/digits.yaml'))\n"
        "print(*list_configs())\n"
    )
    package, config, same_config, listed = python(site, tmp_path, "-c", script).splitlines()
    assert Path(package) == site / "tllm_plugin" / "__init__.py"
    assert Path(config) == Path(same_config) == site / "tllm_plugin" / "configs" / "tllm" / "embedded" / "digits.yaml"
    assert Path(config).read_bytes() == (ROOT / "configs" / "tllm" / "embedded" / "digits.yaml").read_bytes()
    assert listed.split() == sorted(
        path.relative_to(ROOT / "configs").as_posix() for path in (ROOT / "configs").rglob("*.yaml")
    )


def test_the_command_runs_from_any_folder(site: Path, tmp_path: Path) -> None:
    assert "demo" in python(site, tmp_path, "-m", "tllm_plugin", "--help")
    (script,) = (site / "bin").glob("tllm*") if os.name != "nt" else (site / "Scripts").glob("tllm*")
    done = run(script, "--help", cwd=tmp_path, PYTHONPATH=str(site))
    assert done.returncode == 0, done.stderr
    assert "demo" in done.stdout


def test_the_commands_of_the_makefile_exist(site: Path, tmp_path: Path) -> None:
    assert "--no-plant" in python(site, tmp_path, "-m", "tllm_plugin", "demo", "--help")
