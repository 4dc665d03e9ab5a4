"""Our patches: they fit the pinned commit, in memory they do the same as on disk, and what does not fit is refused."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tllm_plugin.cli import main
from tllm_plugin.core.errors import ConfigError
from tllm_plugin.hosts import checkouts
from tllm_plugin.hosts.repdistiller.patching import Hunk, apply_hunks, patched_imports, read_patches

ALL = checkouts.patches("repdistiller")


@pytest.fixture
def pinned(checkout: Path, tmp_path: Path) -> Path:
    """The pinned commit in a clone, whatever state the checkout is in."""
    commit = checkouts.source_of("repdistiller").commit
    found = subprocess.run(["git", "cat-file", "-t", commit], cwd=checkout, capture_output=True, text=True)
    if found.stdout.strip() != "commit":
        pytest.skip(f"{checkout} is not a git checkout that holds commit {commit}")
    root = tmp_path / "pinned"
    subprocess.run(["git", "clone", "-q", "--no-checkout", str(checkout), str(root)], check=True)
    subprocess.run(["git", "checkout", "-q", commit], cwd=root, check=True)
    return root


def git_apply(root: Path, patch: Path, *options: str) -> None:
    done = subprocess.run(["git", "apply", *options, str(patch)], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_there_are_two_patches() -> None:
    assert [path.name[:4] for path in ALL] == ["0001", "0002"]


def test_each_patch_applies_alone_and_in_either_order(pinned: Path) -> None:
    for patch in ALL:
        git_apply(pinned, patch, "--check")
    results = []
    for order in (ALL, ALL[::-1]):
        for patch in order:
            git_apply(pinned, patch, "--check")
            git_apply(pinned, patch)
        diff = subprocess.run(["git", "diff"], cwd=pinned, capture_output=True, text=True, check=True).stdout
        results.append(diff)
        subprocess.run(["git", "checkout", "-q", "."], cwd=pinned, check=True)
    assert results[0] == results[1]


def test_in_memory_is_as_on_disk(pinned: Path) -> None:
    changes = read_patches(ALL)
    stock = {name: (pinned / name).read_text() for name in changes}
    for patch in ALL:
        git_apply(pinned, patch)
    changed = subprocess.run(["git", "diff", "--name-only"], cwd=pinned, capture_output=True, text=True, check=True)
    assert sorted(changes) == sorted(changed.stdout.split())
    for name, source in stock.items():
        patched = (pinned / name).read_text()
        assert apply_hunks(source, changes[name], name) == patched != source
        assert apply_hunks(patched, changes[name], name) == patched


def test_nothing_is_compiled_into_the_checkout(pinned: Path) -> None:
    with patched_imports(pinned, {"crd/memory.py": read_patches(ALL)["crd/memory.py"]}):
        loaded = {name: sys.modules.pop(name) for name in list(sys.modules) if name.split(".")[0] == "crd"}
        try:
            from crd.memory import ContrastMemory

            ContrastMemory(4, 10, 3)
        finally:
            for name in [name for name in sys.modules if name.split(".")[0] == "crd"]:
                del sys.modules[name]
            sys.modules.update(loaded)
    assert not list((pinned / "crd").rglob("memory*.pyc"))


def test_hunks_are_found_by_their_text(tmp_path: Path) -> None:
    patch = tmp_path / "a.patch"
    patch.write_text(
        "Words.\n\ndiff --git a/x.py b/x.py\n--- a/x.py\n+++ b/x.py\n@@ -2,2 +2,3 @@ def f():\n a\n-b\n+c\n+d\n"
        "@@ -9 +10 @@\n-e\n+f\ndiff --git a/y/z.py b/y/z.py\n--- a/y/z.py\n+++ b/y/z.py\n@@ -1 +1 @@\n-g\n+h\n"
    )
    changes = read_patches([patch])
    assert changes == {
        "x.py": [Hunk(2, "a\nb\n", "a\nc\nd\n"), Hunk(9, "e\n", "f\n")],
        "y/z.py": [Hunk(1, "g\n", "h\n")],
    }
    moved = "new\nnew\na\nb\ne\n\n\n\n\ne\n"
    assert apply_hunks(moved, changes["x.py"], "x.py") == "new\nnew\na\nc\nd\ne\n\n\n\n\nf\n"
    with pytest.raises(ConfigError, match=r"Expected x.py to be RepDistiller's .* lacks these lines:\na\nb\n"):
        apply_hunks("a\nother\nb\ne\n", changes["x.py"], "x.py")


def test_install_and_status(
    pinned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TLLM_CACHE_DIR", str(tmp_path / "cache"))
    assert main(["host", "status"]) == 0
    assert "repdistiller: not installed; run: tllm host install repdistiller" in capsys.readouterr().out
    assert main(["host", "install", "repdistiller", "--from", str(pinned)]) == 0
    assert "patches applied: 0001-tllm.patch, 0002-current-pytorch.patch" in capsys.readouterr().out
    assert main(["host", "status"]) == 0
    shown = capsys.readouterr().out
    assert "as installed; can be imported" in shown and str(tmp_path / "cache" / "repdistiller" / "patched") in shown
    (tmp_path / "cache" / "repdistiller" / "patched" / "train_student.py").write_text("")
    assert main(["host", "status"]) == 0
    assert "tracked files were changed since" in capsys.readouterr().out
