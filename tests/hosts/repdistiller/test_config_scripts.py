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
from tllm_plugin.hosts.repdistiller.flags import tllm_options
from tllm_plugin.hosts.repdistiller.patching import apply_hunks, patched_imports, read_patches

FOLDER = Path(__file__).resolve().parents[3] / "configs" / "tllm" / "repdistiller"
SCRIPTS = sorted(path for path in FOLDER.glob("*.sh") if path.name != "common.sh")


def commands(script: Path, cwd: Path, **variables: str) -> list[list[str]]:
    """Return the words of every command that a script would run."""
    env = {**os.environ, "DRY_RUN": "1", **variables}
    folder = ["images"] if script.name in ("imagefolder.sh", "table10.sh") else []
    done = subprocess.run(["bash", str(script), *folder], cwd=cwd, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert all(line.startswith("+ tllm train --host repdistiller ") for line in lines)
    return [shlex.split(line)[2:] for line in lines]


def test_the_scripts_of_the_tables_are_there() -> None:
    tables = [f"table{number}" for number in (10, 11, 5, 6, 9)]
    assert [path.stem for path in SCRIPTS] == ["figures", "imagefolder", *tables]


@pytest.mark.parametrize("script", sorted(FOLDER.glob("*.sh")), ids=lambda path: path.name)
def test_syntax_and_the_command_that_runs_it(script: Path) -> None:
    subprocess.run(["bash", "-n", str(script)], check=True)
    if script.name != "common.sh":
        assert script.read_text().splitlines()[1].startswith(f"# bash configs/tllm/repdistiller/{script.name}")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_ours_among_the_flags_exist_and_are_unabbreviated(script: Path, tmp_path: Path) -> None:
    known = {f"--{option.flag}" for option in tllm_options().values()} | {"--tllm", "--tllm_seed", "--tllm_resume"}
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
    folders: set[str] = set()
    teachers: dict[Path, list[str]] = {}
    for words in commands(script, tmp_path):
        options = build_parser().parse_args(words)
        parsed = parse(options.script or "train_student.py", options.opts)
        if options.script == "train_teacher.py":
            assert parsed.model in options.opts
            path = Path(parsed.save_folder) / f"{parsed.model}_last.pth"
            assert teachers.setdefault(path, words) == words, "two commands write one teacher"
            path.touch()
        else:
            # Every teacher's stage comes before its students, and its name tells the host what it is.
            assert Path(parsed.path_t).resolve() in {path.resolve() for path in teachers}
            assert Path(parsed.path_t).name == f"{parsed.model_t}_last.pth"
            assert ("sftn" in parsed.trial) == ("_sftn:" in parsed.path_t)
            assert parsed.save_folder not in folders, "two commands write into one folder"
            folders.add(parsed.save_folder)
            reference = parsed.tllm_reference
            assert (reference != "") == (parsed.tllm_detector == "reference")
            assert not reference or Path(reference).resolve() in {Path(folder).resolve() for folder in folders}
            assert re.search(r"_tllm:\w+$", parsed.save_folder)
    assert len(folders) >= 6


def test_the_figures_have_every_pair_of_the_other_host(tmp_path: Path) -> None:
    """SRRL, CID and SFTN, plain and with TLLM, for each pair of which mdistiller's configs have them."""
    script = FOLDER / "figures.sh"
    short = {"res": "resnet", "shuv1": "ShuffleV1", "mv2": "MobileNetV2", "wrn": "wrn_"}
    pairs = {folder.parent.name for folder in FOLDER.parent.glob("cifar100/*/cid.yaml")}
    runs: dict[tuple[str, str], list[str]] = {}
    for words in commands(script, tmp_path):
        options = dict(zip(words, words[1:], strict=False))
        if "--distill" in options:
            kind = "sftn" if "_sftn:" in options["--path_t"] or "sftn" in options["--trial"] else options["--distill"]
            pair = (options["--model_t"], options["--model_s"])
            runs.setdefault(pair, []).append(f"{kind} {options['--tllm_detector']}")
    wanted = [f"{kind} {detector}" for kind in ("srrl", "cid", "sftn") for detector in ("none", "reference")]
    assert all(sorted(found) == sorted([*wanted, "kd none"]) for found in runs.values())
    named = {tuple(_spelled(part, short) for part in re.split(r"_(?=res|wrn|mv|shu)", name)) for name in pairs}
    assert len(pairs) == 6 and set(runs) == named
    (only,) = {
        words[words.index("--model_s") + 1] for words in commands(script, tmp_path, PAIRS="resnet56,resnet20")[2:]
    }
    assert only == "resnet20"


def _spelled(part: str, short: dict[str, str]) -> str:
    """Return the host's name of a network from a folder's.

    >>> _spelled("res8x4", {"res": "resnet"}), _spelled("res50", {"res": "resnet"})
    ('resnet8x4', 'ResNet50')
    """
    head = next(name for name in short if part.startswith(name))
    name = short[head] + part.removeprefix(head)
    return "ResNet50" if name == "resnet50" else name
