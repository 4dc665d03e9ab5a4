"""The logic of the Makefile, on a copy of it and without installing anything."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="there is no `make`")


def make(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    # `make test` may be what runs this: its own flags must not reach the inner one.
    environment = {name: value for name, value in os.environ.items() if name not in ("PLANT", "PYTHON", "JOBS")}
    for name in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS", "MAKEOVERRIDES"):
        environment.pop(name, None)
    return subprocess.run(["make", *arguments], cwd=folder, env=environment, capture_output=True, text=True)


@pytest.fixture
def fresh(tmp_path: Path) -> Path:
    """A checkout in which nothing was installed yet."""
    for name in ("Makefile", "setup.py", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


@pytest.fixture
def installed(fresh: Path) -> Path:
    """A checkout in which everything was."""
    (fresh / ".venv" / "bin").mkdir(parents=True)
    for name in ("bin/pip", ".runtime-installed", ".test-installed"):
        (fresh / ".venv" / name).touch()
    return fresh


def commands(folder: Path, *arguments: str) -> list[str]:
    done = make(folder, "-n", *arguments)
    assert done.returncode == 0, done.stderr
    return [line.strip() for line in done.stdout.splitlines() if re.match(r"\S*(\.venv/|python3? |OMP)", line)]


def test_make_alone_lists_the_targets(fresh: Path) -> None:
    printed = make(fresh).stdout
    for target in ("demo", "test", "lint", "venv", "clean"):
        assert re.search(rf"^  make {target} +\w", printed, re.M)


def test_demo_on_a_fresh_checkout_installs_the_runtime_alone(fresh: Path) -> None:
    install, demo = [line for line in commands(fresh, "demo") if line.startswith(".venv")]
    assert install == ".venv/bin/python -m pip install --editable ."
    assert demo == ".venv/bin/tllm demo"
    assert "-m venv .venv" in make(fresh, "-n", "demo").stdout


def test_test_installs_the_extra_and_ends_with_pytest(fresh: Path) -> None:
    lines = [line for line in commands(fresh, "test") if "python -m" in line or "bin/" in line]
    assert lines == [
        ".venv/bin/python -m pip install --editable '.[test]'",
        ".venv/bin/ruff check .",
        ".venv/bin/ruff format --check .",
        ".venv/bin/mypy",
        "OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n 2 --dist loadgroup",
    ]


def test_nothing_is_installed_twice(installed: Path) -> None:
    assert commands(installed, "demo") == [".venv/bin/tllm demo"]
    assert not any("pip" in line for line in commands(installed, "test"))


@pytest.mark.parametrize("changed", ["setup.py", "pyproject.toml"])
def test_a_change_of_the_package_installs_again(changed: str, installed: Path) -> None:
    later = (installed / ".venv" / ".test-installed").stat().st_mtime + 10
    os.utime(installed / changed, (later, later))
    assert any("pip install" in line for line in commands(installed, "demo"))
    assert any("pip install" in line for line in commands(installed, "test"))


def test_plant(installed: Path) -> None:
    assert commands(installed, "demo", "PLANT=1") == [".venv/bin/tllm demo"]
    assert commands(installed, "demo", "PLANT=0") == [".venv/bin/tllm demo --no-plant"]
    for value in ("2", "", "yes", "0 1", "0 yes"):
        done = make(installed, "-n", "demo", f"PLANT={value}")
        assert done.returncode == 2 and f"Expected PLANT to be 0 or 1, but got '{value}'" in done.stderr


def test_an_unfit_python_is_named(fresh: Path) -> None:
    done = make(fresh, "venv", "PYTHON=no-such-python")
    assert done.returncode == 2 and "version 3.10 or later, but there is no 'no-such-python'" in done.stderr
    old = fresh / "old-python"
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && { echo Python 3.8.1; exit; }\nexit 1\n')
    old.chmod(0o755)
    done = make(fresh, "venv", f"PYTHON={old}")
    assert done.returncode == 2 and "version 3.10 or later, but got Python 3.8.1" in done.stderr
    assert not (fresh / ".venv").exists()
    assert "-m venv" in make(fresh, "-n", "venv", f"PYTHON={sys.executable}").stdout


def test_ci_runs_make_test_and_nothing_names_a_registry() -> None:
    run = ROOT / ".ci" / "run"
    assert os.access(run, os.X_OK)
    assert "set -euo pipefail" in run.read_text() and run.read_text().rstrip().endswith("exec make test")
    for name in ("Makefile", ".ci/run", "pyproject.toml", "setup.py"):
        assert not re.search(r"https?://|pypi\.org|index-url|find-links", (ROOT / name).read_text()), name
