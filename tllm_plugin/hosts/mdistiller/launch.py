"""Run mdistiller's own train script, patched or not, with TLLM registered."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

from yacs.config import CfgNode

from tllm_plugin.core.errors import ConfigError
from tllm_plugin.hosts.config_checks import merge_file, merge_options, refuse
from tllm_plugin.hosts.config_files import find_config
from tllm_plugin.hosts.mdistiller.compat import apply_compat
from tllm_plugin.hosts.mdistiller.configuration import check_config, prepare
from tllm_plugin.hosts.mdistiller.merging import settle
from tllm_plugin.hosts.options import settle_fdr
from tllm_plugin.hosts.switch import spelled_at_first

SCRIPT = "tools/train.py"


def launch(root: Path, config: str, words: Sequence[str] = (), *, resume: bool = False, script: str = "") -> None:
    """Run `tools/train.py --cfg config [--resume] words` of a checkout in this process.

    The config is checked before the script starts, because scripts freeze it at different times, or never.

    Args:
        root: The checkout, which can be imported.
        config: A YAML file, or the name of one that comes with TLLM.
        words: `KEY VALUE` overrides and options of the script.
        resume: Continue from the host's checkpoint `latest`.
        script: Path of the train script below `root`.

    Raises:
        ConfigError: The checkout has no such script, or the config is not valid.
    """
    path = root / (script or SCRIPT)
    if not path.is_file():
        there = ", ".join(
            sorted(str(found.relative_to(root)) for part in (root / "tools", root) for found in part.glob("train*.py"))
        )
        remedy = f"; name one with --script: {there}" if there else ""
        raise ConfigError(f"Expected {root} to be a checkout of mdistiller, but it has no {script or SCRIPT}{remedy}")
    config_path = find_config(config)
    apply_compat()
    from mdistiller.engine.cfg import CFG

    options, own = split_words(CFG, words)
    merged, problems = _merged(CFG, config_path, options)
    refuse(problems)
    prepare(merged)
    arguments = [str(path), "--cfg", str(config_path), *(["--resume"] if resume else []), *own, *options]
    before, sys.argv, folders = sys.argv, arguments, list(sys.path)
    # Python does the same for a script.
    sys.path.insert(0, str(path.parent))
    try:
        runpy.run_path(str(path), run_name="__main__")
    finally:
        sys.argv, sys.path[:] = before, folders


def split_words(cfg: CfgNode, words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split the words of a command line into `KEY VALUE` overrides and options of the host's script.

    The options begin at the first word with a leading dash and end before the next key of the config.
    """
    first = next((place for place, word in enumerate(words) if word.startswith("-")), len(words))
    rest = list(words[first:])
    last = next((place for place, word in enumerate(rest) if "." in word and word.partition(".")[0] in cfg), len(rest))
    return [*words[:first], *rest[last:]], rest[:last]


def load_config(config: str, options: Sequence[str] = ()) -> tuple[CfgNode, list[str]]:
    """Return a config of the host as its script receives it, and its problems, without running anything.

    A missing reference is no problem, because a search trains one.

    Args:
        config: A YAML file, or the name of one that comes with TLLM.
        options: `KEY VALUE` overrides, as for the host.
    """
    path = find_config(config)
    apply_compat()
    from mdistiller.engine.cfg import CFG

    cfg, problems = _merged(CFG, path, options)
    if problems:
        return cfg, problems
    problems = settle_fdr(cfg.TLLM) + settle(cfg)
    cfg = spelled_at_first(cfg)
    if cfg.TLLM.DETECTOR.REFERENCE:
        return cfg, problems + check_config(cfg)
    checked = cfg.clone()
    checked.TLLM.DETECTOR.REFERENCE = str(path)  # A file that is there.
    return cfg, problems + check_config(checked)


def _merged(cfg: CfgNode, config: Path, options: Sequence[str]) -> tuple[CfgNode, list[str]]:
    """Return a copy with a config file and overrides merged, and the problems: all of TLLM's, or the host's first.

    Keys that the file adds are not checked if the host's config allows new keys.
    """
    ours, theirs = cfg.clone(), cfg.clone()
    problems = [] if cfg.is_new_allowed() else merge_file(ours, config) + merge_options(ours, options)
    problems = problems or settle_fdr(ours.TLLM)
    if problems:
        return theirs, problems
    try:
        # The host's yacs is stricter: it takes no whole number for a fraction.
        theirs.merge_from_file(str(config))
        theirs.merge_from_list(list(options))
    except (ValueError, KeyError, AssertionError) as error:
        return cfg.clone(), [f"Expected {config} and the overrides to be a config of the host, but {error}"]
    return theirs, []
