"""Running mdistiller's own train script with TLLM registered, patched or not, on whatever device there is."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

from yacs.config import CfgNode

from tllm_plugin.core.errors import ConfigError
from tllm_plugin.hosts.config_checks import merge_file, merge_options, refuse
from tllm_plugin.hosts.config_files import find_config
from tllm_plugin.hosts.config_values import expand_paths
from tllm_plugin.hosts.mdistiller.configuration import check_config, prepare
from tllm_plugin.hosts.mdistiller.mends import apply_mends
from tllm_plugin.hosts.options import settle_fdr

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

    refuse(_problems(CFG, config_path, options))
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


def load_config(config: str, options: Sequence[str] = ()) -> tuple[CfgNode, list[str]]:
    """Return a config of the host's as its script would see it, and what is wrong with it, without running anything.

    A reference that it does not name is no problem: whoever searches trains one.

    Args:
        config: A YAML file, or the name of one that comes with TLLM.
        options: `KEY VALUE` overrides, as for the host.
    """
    path = find_config(config)
    apply_mends()
    from mdistiller.engine.cfg import CFG

    problems = _problems(CFG, path, options)
    cfg = CFG.clone()
    if problems:
        return cfg, problems
    cfg.merge_from_file(str(path))
    cfg.merge_from_list(list(options))
    problems = settle_fdr(cfg.TLLM) + expand_paths(cfg)
    if cfg.TLLM.DETECTOR.REFERENCE:
        return cfg, problems + check_config(cfg)
    checked = cfg.clone()
    checked.TLLM.DETECTOR.REFERENCE = str(path)  # A file that is there.
    return cfg, problems + check_config(checked)


def _problems(cfg: CfgNode, config: Path, options: Sequence[str]) -> list[str]:
    """Return what is wrong with a config file and overrides, all of ours together, then the host's first."""
    ours = cfg.clone()
    problems = merge_file(ours, config) + merge_options(ours, options)
    if not problems:
        problems = settle_fdr(ours.TLLM)
    if problems:
        return problems
    try:
        # The host's yacs is stricter: it takes no whole number for a fraction.
        theirs = cfg.clone()
        theirs.merge_from_file(str(config))
        theirs.merge_from_list(list(options))
    except (ValueError, KeyError, AssertionError) as error:
        return [f"Expected {config} and the overrides to be a config of the host, but {error}"]
    return []
