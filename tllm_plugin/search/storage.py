"""Open the storage that the workers of a search share: an Optuna journal or database; other files are rejected."""

from __future__ import annotations

import json
import os
import re
import sqlite3
import stat
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any
from urllib.parse import quote

from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

from tllm_plugin.core.errors import ConfigError, TLLMError
from tllm_plugin.core.paths import expanded
from tllm_plugin.runs.locks import held

_JOURNAL = "journal:"
#: Where a search of an earlier version has its study.
_OLD_DATABASE = "study.db"
# Beginning of every line that Optuna writes.
_BEGINNING = b'{"op_code":'
_SQLITE = re.compile(r"sqlite(\+\w+)?:///(?P<path>[^?]+)")
_IS_LEFT = "and is left as it is; name another file"


def open_storage(address: str, folder: Path) -> BaseStorage:
    """Return the storage at an address; see `SharedStudy`.

    Raises:
        ConfigError: The storage cannot be opened.
    """
    try:
        if not address and (folder / _OLD_DATABASE).exists():
            return RDBStorage(f"sqlite:///{(folder / _OLD_DATABASE).resolve()}")
        if not address or address.startswith(_JOURNAL):
            return open_journal(Path(expanded(address.removeprefix(_JOURNAL))) if address else folder / "study.journal")
        address = _with_home(address)
        _check_database(address)
        return RDBStorage(address)
    except Exception as error:  # SQLAlchemy raises many types, besides OSError and errors of missing drivers.
        cause = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(
            "Expected `--storage` to be journal:FILE, sqlite:///FILE or another database address, but got "
            f"{repr(address) if address else 'none, that is, a journal in the folder of the search'}: {cause}"
        ) from error


def open_journal(path: Path) -> JournalStorage:
    """Open a journal.

    Raises:
        OSError: The file cannot be opened.
        ValueError: The file is damaged or not a journal; file and folder are left unchanged.
    """
    _check_journal(path)
    try:
        return JournalStorage(_Journal(str(path), _JournalLock(path)))
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from error


def _check_journal(path: Path) -> None:
    """Reject files that are not journals: Optuna would append to them and remove what looks like a partial line."""
    if not _is_regular_file(path):
        return
    with path.open("rb") as file:
        beginning = file.read(len(_BEGINNING))
        file.seek(0)
        # Checked before a line is read, because a foreign file may consist of one huge line.
        if beginning and not (beginning == _BEGINNING and all(map(_is_operation, file))):
            raise ValueError(f"{path} is damaged or not a journal of Optuna, {_IS_LEFT}")


def _is_operation(line: bytes) -> bool:
    """Return whether Optuna wrote a line; a partial last line, left by a killed worker, is accepted."""
    try:
        content = json.loads(line)
    except ValueError:
        return not line.endswith(b"\n")
    return isinstance(content, dict) and {"op_code", "worker_id"} <= set(content)


def _with_home(address: str) -> str:
    found = _SQLITE.match(address)
    if found is None:
        return address
    return f"{address[: found.start('path')]}{expanded(found['path'])}{address[found.end('path') :]}"


def _check_database(address: str) -> None:
    """Reject SQLite files of other programs: Optuna would add its tables to them."""
    found = _SQLITE.match(address)
    if found is None or found["path"] == ":memory:" or found["path"].startswith("file:"):
        return
    path = Path(found["path"])
    if not _is_regular_file(path) or not path.stat().st_size:
        return
    # Read without locking and repair: SQLite itself repairs what a dead worker left half written.
    with closing(sqlite3.connect(f"file:{quote(os.path.abspath(path))}?immutable=1", uri=True)) as database:
        tables = {row[0] for row in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if tables and not tables >= {"studies", "trials", "version_info"}:
        raise ValueError(f"{path} is a database of another program, {_IS_LEFT}")


def _is_regular_file(path: Path) -> bool:
    """Return whether the file exists.

    Raises:
        ValueError: The path is a folder, a pipe or a device.
    """
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return False
    if not stat.S_ISREG(mode):
        raise ValueError(f"{path} is not a regular file")
    return True


class _Journal(JournalFileBackend):
    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        try:
            super().append_logs(logs)
        except OSError as error:
            raise TLLMError(f"Cannot write {self._file_path}: {error.strerror or error}") from error


class _JournalLock(JournalFileOpenLock):
    """Lock that the system releases when its process dies; Optuna's own would block others for half a minute.

    Args:
        journal: Journal file; a partial last line, left by a killed worker or a full disk, is removed on locking.
    """

    def __init__(self, journal: Path) -> None:
        super().__init__(str(journal))
        self._journal = journal
        self._held = ExitStack()

    def acquire(self) -> bool:
        with ExitStack() as stack:
            stack.enter_context(held(self._journal.with_name(f"{self._journal.name}.lock")))
            _remove_half_a_line(self._journal)
            self._held = stack.pop_all()
        return True

    def release(self) -> None:
        self._held.close()


def _remove_half_a_line(journal: Path) -> None:
    """Remove a partial last line: Optuna would append to it, and then reject the whole file."""
    with journal.open("rb+") as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(max(0, end - 1))
        if end and file.read() != b"\n":
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)
