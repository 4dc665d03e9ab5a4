"""A storage that is something else is refused, and left exactly as it is."""

from __future__ import annotations

import json
import os
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from tests.hosts.digits_runs import CONFIG
from tllm_plugin.cli import main
from tllm_plugin.core.errors import ConfigError
from tllm_plugin.search.optuna_study import SharedStudy
from tllm_plugin.search.space import Dimension

GRID = (Dimension("TLLM.DETECTOR.ETA", (0.02, 0.1)),)
FOREIGN = {
    "json": b'{"schema": "tllm/flags", "version": 1}',
    "json in lines": b'{\n  "schema": "tllm/flags",\n  "version": 1\n}\n',
    "one line": b'{"op_code": 1}\n',
    "one line without its end": b'{"op_code": 1}',
    "half of another line": b'{"op_name": 1',
    "a brace": b"{",
    "text": b"my notes, without a line's end",
    "text that ends": b"my notes\n",
    "binary": bytes(range(256)) * 100,
    "a journal and more": b'{"op_code":0,"worker_id":"a","study_name":"b","directions":[2]}\nmy notes\n',
}


def listing(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("content", FOREIGN.values(), ids=FOREIGN)
def test_a_file_that_is_no_journal_is_left_as_it_is(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    path = tmp_path / "files" / "mine.json"
    path.write_bytes(content)
    before = listing(path.parent)
    with pytest.raises(ConfigError, match=r"mine\.json is damaged or not a journal of Optuna") as caught:
        SharedStudy(f"journal:{path}", tmp_path / "search", GRID)
    assert listing(path.parent) == before and "\n" not in str(caught.value)


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(min_size=1, max_size=60) | st.dictionaries(st.text(max_size=9), st.integers()).map(json.dumps))
def test_whatever_is_no_journal_is_left_as_it_is(content: bytes | str, tmp_path: Path) -> None:
    data = content if isinstance(content, bytes) else content.encode()
    assume(not data.startswith(b'{"op_code":'))
    (tmp_path / "files").mkdir(exist_ok=True)
    path = tmp_path / "files" / "mine"
    path.write_bytes(data)
    before = listing(path.parent)
    with pytest.raises(ConfigError):
        SharedStudy(f"journal:{path}", tmp_path / "search", GRID)
    assert listing(path.parent) == before


def test_the_command_leaves_it_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "results.json"
    path.write_text('{"accuracy": 0.71}')
    words = ["search", "--cfg", str(CONFIG), "--eta", "0.1", "--storage", f"journal:{path}"]
    assert main([*words, "LOG.PREFIX", str(tmp_path / "output"), "SOLVER.EPOCHS", "1"]) == 2
    error = capsys.readouterr().err
    assert str(path) in error and len(error.splitlines()) == 1
    assert path.read_text() == '{"accuracy": 0.71}' and not list(tmp_path.glob("*.lock"))


@pytest.mark.parametrize("address", ["journal:{}", "sqlite:///{}"])
@pytest.mark.parametrize("kind", ["folder", "pipe", "device"])
def test_what_is_no_regular_file_is_refused(address: str, kind: str, tmp_path: Path) -> None:
    path = tmp_path / "x"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/null")
    with pytest.raises(ConfigError, match="is not a regular file"):
        SharedStudy(address.format(path), tmp_path / "search", GRID)
    assert {entry.name for entry in tmp_path.iterdir()} == {"x", "search"}


def test_a_database_of_something_else_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    path = tmp_path / "files" / "mine.db"
    with closing(sqlite3.connect(path)) as database:
        database.execute("CREATE TABLE results (accuracy REAL)")
        database.commit()
    before = listing(path.parent)
    with pytest.raises(ConfigError, match=r"mine\.db is a database of another program"):
        SharedStudy(f"sqlite:///{path}", tmp_path / "search", GRID)
    assert listing(path.parent) == before
    path.write_text("no database at all, but a file of some length, longer than a header of SQLite's")
    before = listing(path.parent)
    with pytest.raises(ConfigError, match="--storage"):
        SharedStudy(f"sqlite:///{path}", tmp_path / "search", GRID)
    assert listing(path.parent) == before


def test_empty_files_and_half_a_first_line_are_begun(tmp_path: Path) -> None:
    for name, content in (("empty", b""), ("half", b'{"op_code":0,"worker')):
        path = tmp_path / name
        path.write_bytes(content)
        study = SharedStudy(f"journal:{path}", tmp_path / f"search {name}", GRID)
        study.work(lambda values, trial: values["TLLM.DETECTOR.ETA"])
        assert len(study.finished()) == 2
    (tmp_path / "empty.db").touch()
    study = SharedStudy(f"sqlite:///{tmp_path / 'empty.db'}", tmp_path / "search db", GRID)
    study.work(lambda values, trial: values["TLLM.DETECTOR.ETA"])
    assert len(study.finished()) == 2
