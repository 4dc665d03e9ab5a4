"""Running mdistiller's own train script with TLLM registered, patched or not, on whatever device there is."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

from tllm_plugin.core.errors import ConfigError
from tllm_plugin.hosts.config_checks import merge_file, merge_options, refuse
from tllm_plugin.hosts.config_files import find_config
from tllm_plugin.hosts.mdistiller.configuration import prepare
from tllm_plugin.hosts.mdistiller.mends import apply_mends

SCRIPT = "tools/train.py"


def launch(root: Path, config: str, options: Sequence[str] = (), *, resume: bool = False, script: str = SCRIPT) -> None:
    """Run `tools/train.py --cfg config [--resume] options` of a checkout in this process.

    Args:
        root: The checkout; importable already.
        config: A YAML file, or the name of one that comes with TLLM.
        options: `KEY VALUE` overrides, as for the host.
        resume: Continue from the host's checkpoint `latest`.
        script: The train script below `root`; some forks have several.

    Raises:
        ConfigError: The checkout has no such script, or the config does not hold.
    """
    path = root / script
    if not path.is_file():
        raise ConfigError(f"Expected {root} to be a checkout of mdistiller, but it has no {script}")
    config_path = find_config(config)
    apply_mends()
    from mdistiller.engine.cfg import CFG

    merged = CFG.clone()
    refuse(merge_file(merged, config_path) + merge_options(merged, options))
    freeze = type(CFG).freeze

    def freeze_checked(node: object) -> None:
        if node is CFG:
            prepare(CFG)
        freeze(node)  # type: ignore[arg-type]

    arguments = [str(path), "--cfg", str(config_path), *(["--resume"] if resume else []), *options]
    before, sys.argv = sys.argv, arguments
    type(CFG).freeze = freeze_checked  # type: ignore[method-assign]
    try:
        runpy.run_path(str(path), run_name="__main__")
    finally:
        sys.argv = before
        type(CFG).freeze = freeze  # type: ignore[method-assign]
