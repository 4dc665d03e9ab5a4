"""Installing, finding and judging checkouts of hosts: on a small repository always, on the real one where it is."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tllm_plugin.cli import main
from tllm_plugin.core.errors import ConfigError
from tllm_plugin.hosts import checkouts
from tllm_plugin.hosts.checkouts import HostSource, install, locate, status_of

PATCH = """What it is for.

diff --git a/toy_host/engine.py b/toy_host/engine.py
--- a/toy_host/engine.py
+++ b/toy_host/engine.py
@@ -1 +1,2 @@
 value = 1
+patched = True
"""


def git(folder: Path, *arguments: str) -> str:
    named = ("-c", "user.name=t", "-c", "user.email=t@t", "-c", "commit.gpgsign=false")
    done = subprocess.run(["git", *named, *arguments], cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture
def origin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository whose first commit is the pinned one of a host `toy` with one patch; the cache is empty."""
    repository = tmp_path / "origin"
    package = repository / "toy_host"
    package.mkdir(parents=True)
    git(repository, "init", "--quiet")
    for name, text in (("__init__", ""), ("engine", "value = 1\n"), ("distillers", "")):
        (package / f"{name}.py").write_text(text)
    git(repository, "add", "-A")
    git(repository, "commit", "--quiet", "-m", "pinned")
    commit = git(repository, "rev-parse", "HEAD")
    (package / "engine.py").write_text("value = 2\n")
    git(repository, "commit", "--quiet", "-a", "-m", "later")
    patch = tmp_path / "0001-toy.patch"
    patch.write_text(PATCH)
    source = HostSource("toy", str(repository), commit, "toy_host", "TLLM_TOY_ROOT", ("toy_host.engine",))
    monkeypatch.setitem(checkouts.SOURCES, "toy", source)
    monkeypatch.setattr(checkouts, "patches", lambda name: [patch])
    monkeypatch.setenv("TLLM_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("TLLM_TOY_ROOT", raising=False)
    return repository


def test_installs_the_pinned_commit_with_patches(origin: Path) -> None:
    status = install("toy")
    assert status.patches == ("0001-toy.patch",) and not status.problem
    assert (status.root / "toy_host/engine.py").read_text() == "value = 1\npatched = True\n"
    assert checkouts.import_problem("toy", status.root) == ""
    assert install("toy") == status == status_of("toy")


def test_stock_and_patched_lie_side_by_side(origin: Path) -> None:
    assert status_of("toy") is None
    stock = install("toy", patched=False)
    assert stock.patches == () and (stock.root / "toy_host/engine.py").read_text() == "value = 1\n"
    assert locate("toy") == stock.root
    patched = install("toy")
    assert locate("toy") == patched.root != stock.root
    assert (stock.root / "toy_host/engine.py").read_text() == "value = 1\n"


def change(root: Path) -> None:
    (root / "toy_host/engine.py").write_text("value = 3\n")


def move(root: Path) -> None:
    git(root, "checkout", "--quiet", "--force", checkouts._git(root, "rev-list", "--all").split()[0])


def interrupt(root: Path) -> None:
    root.with_name("patched.sha256").unlink()


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (change, "tracked files were changed since"),
        (move, "its commit is [0-9a-f]{40}, not"),
        (interrupt, "its installation was interrupted"),
    ],
)
def test_a_tree_in_another_state_is_refused(origin: Path, spoil: Callable[[Path], None], reason: str) -> None:
    root = install("toy").root
    spoil(root)
    before = (root / "toy_host/engine.py").read_text()
    with pytest.raises(ConfigError, match=rf"{reason}.*; remove it to start anew"):
        install("toy")
    assert (root / "toy_host/engine.py").read_text() == before
    with pytest.raises(ConfigError, match="tllm host install toy"):
        locate("toy")


def test_an_origin_without_the_commit_is_refused(origin: Path, tmp_path: Path) -> None:
    checkouts.SOURCES["toy"] = replace(checkouts.SOURCES["toy"], commit="0" * 40)
    with pytest.raises(ConfigError, match=f"to hold commit {'0' * 40} of toy, but it does not"):
        install("toy")
    assert status_of("toy") is None


def test_a_checkout_of_the_users_own_comes_first(origin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install("toy")
    monkeypatch.setenv("TLLM_TOY_ROOT", str(origin))
    assert locate("toy") == origin.resolve()
    monkeypatch.setenv("TLLM_TOY_ROOT", str(tmp_path))
    with pytest.raises(ConfigError, match="TLLM_TOY_ROOT to be a checkout of toy"):
        locate("toy")
    monkeypatch.delenv("TLLM_TOY_ROOT")
    monkeypatch.syspath_prepend(str(origin))
    assert locate("toy") == origin.resolve()
    sys.modules.pop("toy_host", None)


def test_command_line(origin: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["host", "status"]) == 0
    assert "toy: not installed; run: tllm host install toy" in capsys.readouterr().out
    assert main(["host", "install", "toy"]) == 0
    assert "patches applied: 0001-toy.patch" in capsys.readouterr().out
    assert main(["host", "status"]) == 0
    assert "as installed; can be imported" in capsys.readouterr().out
    assert main(["host", "install", "toys"]) == 2
    assert "`host` to be one of" in capsys.readouterr().err


def test_patches_are_short_and_say_what_they_are_for() -> None:
    patches = checkouts.patches("mdistiller")
    assert [path.name[:4] for path in patches] == ["0001", "0002"]
    for path in patches:
        header, _, body = path.read_text().partition("\ndiff --git ")
        assert checkouts.source_of("mdistiller").commit[:7] in header and len(header.splitlines()) >= 2
        kept = [line for line in body.splitlines() if line.startswith(" ")]
        assert len(kept) <= 40, "the patch carries more of the host's lines than it needs"


def test_patches_apply_to_the_pinned_commit(tmp_path: Path) -> None:
    try:
        root = locate("mdistiller")
    except ConfigError as error:
        pytest.skip(str(error))
    commit = checkouts.source_of("mdistiller").commit
    top = subprocess.run(["git", "cat-file", "-t", commit], cwd=root, capture_output=True, text=True)
    if top.stdout.strip() != "commit":
        pytest.skip(f"{root} has no history with the pinned commit")
    git(tmp_path, "clone", "--quiet", "--no-checkout", str(root), "clone")
    clone = tmp_path / "clone"
    git(clone, "checkout", "--quiet", commit)
    for patch in checkouts.patches("mdistiller"):
        git(clone, "apply", "--check", str(patch))
        git(clone, "apply", str(patch))
