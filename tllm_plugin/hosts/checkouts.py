"""Install and locate checkouts of the hosts: pinned commits in the user's cache, our patches in a separate work tree.

Checkouts are changed by `git` only. A checkout that was changed after its installation is refused, not overwritten.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from tllm_plugin.core.errors import ConfigError, TLLMError, unknown_name
from tllm_plugin.runs.atomic import write_text

_PACKAGE = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class HostSource:
    """Source of a host.

    Args:
        name: Name on the command line.
        url: URL of its git repository.
        commit: Full hash of the commit that patches and tests are pinned to.
        module: Module or package at the root of the checkout.
        variable: Environment variable with the path of the user's own checkout.
        imports: Modules that can be imported in a working checkout; empty for `distillers` and `engine` of `module`.
    """

    name: str
    url: str
    commit: str
    module: str
    variable: str
    imports: tuple[str, ...] = ()


SOURCES = {
    "mdistiller": HostSource(
        "mdistiller",
        "https://github.com/megvii-research/mdistiller",
        "a08d46f10d6102bd6e3f258ca5ac880b020ea259",
        "mdistiller",
        "TLLM_MDISTILLER_ROOT",
    ),
    "repdistiller": HostSource(
        "repdistiller",
        "https://github.com/HobbitLong/RepDistiller",
        "b84f547c5db6a35318d4671d7d5c4de74c822403",
        "distiller_zoo",
        "TLLM_REPDISTILLER_ROOT",
        ("models", "dataset.cifar100", "distiller_zoo", "crd.criterion", "helper.loops", "helper.pretrain"),
    ),
}


@dataclass(frozen=True)
class CheckoutStatus:
    """State of an installed checkout.

    Args:
        root: Work tree.
        patches: Names of the applied patches.
        problem: Reason why it must not be used; empty if there is none.
    """

    root: Path
    patches: tuple[str, ...]
    problem: str


def source_of(name: str) -> HostSource:
    """Return the source of a host.

    Raises:
        ConfigError: The host is unknown.
    """
    if name not in SOURCES:
        raise ConfigError(unknown_name("host", name, SOURCES))
    return SOURCES[name]


def install(name: str, origin: str = "", *, patched: bool = True) -> CheckoutStatus:
    """Clone the pinned commit of a host and apply our patches to a work tree.

    Args:
        name: Name of the host.
        origin: Git URL or path to clone instead of the host's own.
        patched: Whether to apply the patches.

    Raises:
        ConfigError: The origin lacks the commit, or an existing work tree was changed.
        TLLMError: git failed.
    """
    source = source_of(name)
    repository = cache_folder() / name / "repository"
    root = _tree(name, patched)
    if not repository.exists():
        repository.parent.mkdir(parents=True, exist_ok=True)
        _git(None, "clone", "--quiet", "--no-checkout", origin or source.url, str(repository))
    if _git(repository, "cat-file", "-t", source.commit, check=False).strip() != "commit":
        raise ConfigError(
            f"Expected {origin or repository} to hold commit {source.commit} of {name}, but it does not; remove "
            f"{repository.parent} to start anew"
        )
    if not root.exists():
        _git(repository, "worktree", "prune")
        _git(repository, "worktree", "add", "--quiet", "--detach", str(root), source.commit)
        for patch in patches(name) if patched else ():
            _git(root, "apply", str(patch))
        write_text(_record(root), _changes(root))
    status = status_of(name, patched=patched)
    assert status is not None
    if status.problem:
        raise ConfigError(f"Expected {root} to be as it was installed, but {status.problem}; remove it to start anew")
    return status


def status_of(name: str, *, patched: bool = True) -> CheckoutStatus | None:
    """Return the state of the work tree that `install` created; None if there is none."""
    source, root = source_of(name), _tree(name, patched)
    if not root.exists():
        return None
    head = _git(root, "rev-parse", "HEAD", check=False).strip()
    record = _record(root)
    problem = ""
    if head != source.commit:
        problem = f"its commit is {head or 'none'}, not {source.commit}"
    elif not record.exists():
        problem = "its installation was interrupted"
    elif record.read_text(encoding="utf-8") != _changes(root):
        problem = "tracked files were changed since"
    applied = tuple(patch.name for patch in patches(name) if _is_applied(root, patch))
    return CheckoutStatus(root, applied, problem)


def locate(name: str) -> Path:
    """Return the root of a host's checkout: the user's own, an importable or the installed one.

    Raises:
        ConfigError: There is no checkout.
    """
    source = source_of(name)
    named = os.environ.get(source.variable)
    if named:
        root = Path(named).expanduser().resolve()
        # Forks of RepDistiller have other file layouts.
        descends = name == "repdistiller" and any(root.rglob("*student*.py"))
        if not (root / source.module).is_dir() and not descends:
            raise ConfigError(f"Expected {source.variable} to be a checkout of {name}, but got {named}")
        return root
    spec = importlib.util.find_spec(source.module)
    if spec is not None and spec.origin:
        return Path(spec.origin).resolve().parents[1]
    for patched in (True, False):
        status = status_of(name, patched=patched)
        if status is not None and not status.problem:
            return status.root
    raise ConfigError(
        f"Expected a checkout of {name}, but found none: run `tllm host install {name}`, or set {source.variable}"
    )


def make_importable(root: Path) -> Path:
    """Put `root` first on the import path of this process and return it."""
    if str(root) not in sys.path:
        sys.path.insert(0, str(root))
    return root


def import_problem(name: str, root: Path) -> str:
    """Return the error of importing the host in a new process; empty if there is none."""
    source = source_of(name)
    modules = source.imports or (f"{source.module}.distillers", f"{source.module}.engine")
    command = [sys.executable, "-c", f"import {', '.join(modules)}"]
    done = subprocess.run(
        command, cwd=root, env={**os.environ, "PYTHONPATH": str(root)}, capture_output=True, text=True
    )
    return (
        ""
        if done.returncode == 0
        else (done.stderr.strip().splitlines() or ["the import failed without a message"])[-1]
    )


def patches(name: str) -> list[Path]:
    """Return our patches for a host in the order of application."""
    packaged = _PACKAGE / "patches"
    folder = packaged if packaged.is_dir() else _PACKAGE.parent / "patches"
    return sorted((folder / name).glob("*.patch"))


def cache_folder() -> Path:
    """Return the folder of all checkouts: `TLLM_CACHE_DIR`, or a folder in the user's cache."""
    named = os.environ.get("TLLM_CACHE_DIR")
    return Path(named) if named else Path(platformdirs.user_cache_dir("tllm-plugin")) / "hosts"


def _tree(name: str, patched: bool) -> Path:
    return cache_folder() / name / ("patched" if patched else "stock")


def _record(root: Path) -> Path:
    return root.with_name(f"{root.name}.sha256")


def _changes(root: Path) -> str:
    """Return a digest of the differences between tracked files and the commit."""
    return hashlib.sha256(_git(root, "diff", "HEAD").encode()).hexdigest() + "\n"


def _is_applied(root: Path, patch: Path) -> bool:
    command = ["git", "apply", "--check", "--reverse", str(patch)]
    return subprocess.run(command, cwd=root, capture_output=True).returncode == 0


def _git(folder: Path | None, *arguments: str, check: bool = True) -> str:
    try:
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True)
    except FileNotFoundError:
        raise TLLMError("Expected `git` to be installed, but there is no such command") from None
    if check and done.returncode:
        raise TLLMError(f"git {' '.join(arguments[:2])} failed: {done.stderr.strip() or done.returncode}")
    return done.stdout
