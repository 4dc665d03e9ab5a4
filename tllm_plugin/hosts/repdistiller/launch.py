"""Run a train script of RepDistiller or a descendant with TLLM's calls in it."""

from __future__ import annotations

import logging
import sys
import types
from collections.abc import Sequence
from pathlib import Path

from tllm_plugin.core.errors import ConfigError
from tllm_plugin.hosts.checkouts import patches
from tllm_plugin.hosts.repdistiller.compat import stand_in_for_what_is_gone
from tllm_plugin.hosts.repdistiller.patching import Hunk, apply_hunks, mend, patched_imports, read_patches
from tllm_plugin.hosts.repdistiller.script import Found, add_tllm, is_patched

logger = logging.getLogger(__name__)

STUDENT_SCRIPT = "train_student.py"


def launch(root: Path, arguments: Sequence[str], *, resume: bool = False, script: str = STUDENT_SCRIPT) -> None:
    """Run a script of a checkout in this process, with TLLM's calls and mends for current PyTorch.

    Args:
        root: The checkout.
        arguments: Arguments of the script, TLLM's flags included.
        resume: Add `--tllm_resume`.
        script: Path below `root`. Without a `train_student.py`, the only script with its shape is used.

    Raises:
        ConfigError: The checkout has no such script, or one that lacks what TLLM needs.
    """
    path = find_script(root, script)
    found = prepared(path)
    for note in [*found.notes, *stand_in_for_what_is_gone()]:
        logger.info("%s: %s", path.name, note)
    # Worker processes unpickle data sets by the name of their module, which is not this one.
    module = types.ModuleType("__main__")
    module.__file__ = str(path)
    before, sys.argv = sys.argv, [str(path), *arguments, *(["--tllm_resume"] if resume else [])]
    try:
        with patched_imports(path.parent, read_patches(patches("repdistiller"))):
            exec(compile(found.text, str(path), "exec"), module.__dict__)
    finally:
        sys.argv = before


def find_script(root: Path, script: str = STUDENT_SCRIPT) -> Path:
    """Return a checkout's train script.

    Raises:
        ConfigError: No script fits, or several do; the message says what each lacks.
    """
    path = root / script
    if path.is_file():
        return path
    if script != STUDENT_SCRIPT:
        raise ConfigError(f"Expected {root} to be a checkout of RepDistiller, but it has no {script}")
    scripts = sorted(path for path in root.rglob("*.py") if "parse_args" in _read(path) and "teacher" not in path.name)
    candidates = [path for path in scripts if "student" in path.name] or scripts
    fitting, reasons = [], []
    for candidate in candidates:
        try:
            prepared(candidate)
            fitting.append(candidate)
        except ConfigError as error:
            reasons.append(str(error))
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        names = ", ".join(str(path.relative_to(root)) for path in fitting)
        raise ConfigError(f"Expected {root} to have one train script for students, but got {names}; name it: --script")
    raise ConfigError(
        f"Expected {root} to be a checkout of RepDistiller or a descendant, but it has no {script}"
        + "".join(f"\n{reason}" for reason in reasons)
    )


def prepared(path: Path) -> Found:
    """Return a script with TLLM's calls and, where they fit, our mends in it.

    Raises:
        ConfigError: It lacks something that TLLM needs.
    """
    source, (tllm, mends) = _read(path), patches("repdistiller")
    ours, theirs = (read_patches([patch]).get(path.name, []) for patch in (tllm, mends))
    source, notes = _mended(source, theirs)
    if is_patched(source):
        return Found(source, notes)
    if "teacher" in path.name:
        try:
            return Found(apply_hunks(source, ours, str(path)), notes)
        except ConfigError:
            return Found(
                source, [*notes, "it is not RepDistiller's teacher script: --sftn and image folders are not available"]
            )
    found = add_tllm(source, str(path))
    found.notes += notes
    return found


def _mended(source: str, hunks: Sequence[Hunk]) -> tuple[str, list[str]]:
    """Return a script with all mends; if one of them does not fit, with those of single expressions only."""
    try:
        return mend(apply_hunks(source, hunks, ""), ()), []
    except ConfigError:
        return mend(source, ()), ["it is not RepDistiller's own: mends for current PyTorch are left out of the script"]


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")
