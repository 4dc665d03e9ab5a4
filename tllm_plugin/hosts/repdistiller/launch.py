"""Running RepDistiller's own scripts with TLLM in them, patched on disk or not, on whatever device there is."""

from __future__ import annotations

import sys
import types
from collections.abc import Sequence
from pathlib import Path

from tllm_plugin.core.errors import ConfigError
from tllm_plugin.hosts.checkouts import patches
from tllm_plugin.hosts.repdistiller.patching import apply_hunks, patched_imports, read_patches

STUDENT_SCRIPT = "train_student.py"


def launch(root: Path, arguments: Sequence[str], *, resume: bool = False, script: str = STUDENT_SCRIPT) -> None:
    """Run a script of a checkout in this process, as if both of our patches were applied.

    Args:
        root: The checkout.
        arguments: The script's own, TLLM's flags among them.
        resume: Add `--tllm_resume`.
        script: Below `root`: `train_student.py`, `train_teacher.py`.

    Raises:
        ConfigError: The checkout has no such script, or one that the patches do not fit.
    """
    path = root / script
    if not path.is_file():
        raise ConfigError(f"Expected {root} to be a checkout of RepDistiller, but it has no {script}")
    changes = read_patches(patches("repdistiller"))
    source = apply_hunks(path.read_text(encoding="utf-8"), changes.get(script, []), str(path))
    # A main module of its own: data sets that worker processes unpickle name their module, not this one.
    module = types.ModuleType("__main__")
    module.__file__ = str(path)
    before, sys.argv = sys.argv, [str(path), *arguments, *(["--tllm_resume"] if resume else [])]
    try:
        with patched_imports(root, changes):
            exec(compile(source, str(path), "exec"), module.__dict__)
    finally:
        sys.argv = before
