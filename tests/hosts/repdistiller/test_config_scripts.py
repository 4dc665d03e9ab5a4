"""The ready scripts: shell syntax, every flag known, every reference made by a command before it."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tllm_plugin.cli.main import build_parser
from tllm_plugin.hosts.checkouts import patches
from tllm_plugin.hosts.repdistiller.options import FLAGS
from tllm_plugin.hosts.repdistiller.patching import apply_hunks, patched_imports, read_patches

FOLDER = Path(__file__).resolve().parents[3] / "configs" / "tllm" / "repdistiller"
SCRIPTS = sorted(path for path in FOLDER.glob("*.sh") if path.name != "common.sh")


def commands(script: Path, cwd: Path, **variables: str) -> list[list[str]]:
    """Return the words of every command that a script would run."""
    env = {**os.environ, "DRY_RUN": "1", **variables}
    folder = ["images"] if script.name == "imagefolder.sh" else []
    done = subprocess.run(["bash", str(script), *folder], cwd=cwd, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert all(line.startswith("+ tllm train --host repdistiller ") for line in lines)
    return [shlex.split(line)[2:] for line in lines]


def test_the_scripts_of_the_tables_are_there() -> None:
    assert [path.stem for path in SCRIPTS] == ["imagefolder", "table11", "table5", "table6", "table9"]


@pytest.mark.parametrize("script", sorted(FOLDER.glob("*.sh")), ids=lambda path: path.name)
def test_syntax_and_the_command_that_runs_it(script: Path) -> None:
    subprocess.run(["bash", "-n", str(script)], check=True)
    if script.name != "common.sh":
        assert script.read_text().splitlines()[1].startswith(f"# bash configs/tllm/repdistiller/{script.name}")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_ours_among_the_flags_exist_and_are_unabbreviated(script: Path, tmp_path: Path) -> None:
    known = {f"--{flag.name}" for flag in FLAGS} | {"--tllm", "--tllm_seed", "--tllm_resume"}
    found = commands(script, tmp_path)
    used = {word for words in found for word in words if word.startswith("--tllm")}
    assert {"--tllm", "--tllm_reference"} <= used <= known
    for words in found:
        assert build_parser().parse_args(words).host == "repdistiller"
    assert len(commands(script, tmp_path, SEEDS="0 1")) > len(found)
    longer = commands(script, tmp_path, OPTIONS="--num_workers 2", EPOCHS="3")
    assert all(words[words.index("--num_workers") + 1] == "2" for words in longer)
    assert all(words[words.index("--epochs") + 1] == "3" for words in longer)
    warm = commands(script, tmp_path, TLLM_OPTIONS="--tllm_warmup 2")
    assert all(("--tllm_warmup" in words) == ("--tllm" in words) for words in warm)


@pytest.fixture
def parse(checkout: Path) -> Iterator[Any]:
    """The host's patched `parse_option`, by script."""
    changes = read_patches(patches("repdistiller"))

    def run(script: str, words: list[str]) -> Any:
        source = apply_hunks((checkout / script).read_text(), changes[script], script)
        module: dict[str, Any] = {"__name__": "not main"}
        exec(compile(source, script, "exec"), module)
        sys.argv = [script, *words]
        return module["parse_option"]()

    before, hook = sys.argv, sys.excepthook
    with patched_imports(checkout, changes):
        yield run
    sys.argv, sys.excepthook = before, hook


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_the_patched_host_takes_every_command(
    script: Path, parse: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("images").mkdir()
    # The commands of teachers first: a command finds its teacher and its reference only if one before it makes them.
    folders = set()
    for words in commands(script, tmp_path):
        options = build_parser().parse_args(words)
        parsed = parse(options.script, options.opts)
        if options.script == "train_teacher.py":
            assert parsed.model in options.opts
            (Path(parsed.save_folder) / f"{parsed.model}_last.pth").touch()
        else:
            assert parsed.save_folder not in folders, "two commands write into one folder"
            folders.add(parsed.save_folder)
            reference = parsed.tllm_reference
            assert (reference != "") == (parsed.tllm_detector == "reference")
            assert not reference or Path(reference).resolve() in {Path(folder).resolve() for folder in folders}
            assert re.search(r"_tllm:\w+$", parsed.save_folder)
    assert len(folders) >= 6
