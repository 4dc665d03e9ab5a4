"""Files that are missing, truncated, foreign, too new or hostile are refused with a text that says what to do."""

from __future__ import annotations

import io
import json
import os
import pickle
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.runs.contents import plain
from tllm_plugin import Curves, FileFormatError
from tllm_plugin.runs.atomic import save_torch, write_npz
from tllm_plugin.runs.curves_file import read_curves, to_state
from tllm_plugin.runs.reading import load_torch, read_npz
from tllm_plugin.runs.run_folder import RunFolder

READERS: dict[str, Callable[[RunFolder], Any]] = {
    "split.json": RunFolder.read_split,
    "flags.json": RunFolder.read_flags,
    "metrics.json": RunFolder.read_metrics,
    "curves.npz": RunFolder.read_curves,
    "state.pt": lambda run: load_torch(run.state, "the state of a run"),
}


@pytest.fixture
def full_run(run: RunFolder) -> RunFolder:
    save_torch(run.state, {"weights": torch.arange(300.0), "names": ["a", "b"], "epoch": 3})
    return run


def outcome(read: Callable[[], Any]) -> Any:
    """Return what was read, or None for the one error that is allowed."""
    try:
        return plain(read())
    except FileFormatError as error:
        assert re.search(r"^Expected .* to be .*, but .*; ", str(error)), error
        return None


@pytest.mark.parametrize("name", READERS)
def test_truncation_is_noticed(name: str, full_run: RunFolder) -> None:
    path, rng = full_run.path / name, np.random.default_rng(0)
    whole, content = path.read_bytes(), plain(READERS[name](full_run))
    lengths = {0, 1, 2, 3, 4, 7, 8, *range(len(whole) - 30, len(whole)), *rng.integers(0, len(whole), 150).tolist()}
    refused = 0
    for length in sorted(lengths):
        path.write_bytes(whole[:length])
        got = outcome(lambda: READERS[name](full_run))
        assert got is None or got == content, f"{length} of {len(whole)} bytes"
        refused += got is None
    # A JSON file may lack its last line feed; nothing else is complete without its last byte.
    assert refused >= len(lengths) - (1 if name.endswith(".json") else 0)


def test_changed_bits_of_curves_are_noticed(full_run: RunFolder) -> None:
    """An `.npz` has checksums, so that not only its length is checked."""
    rng, whole, content = np.random.default_rng(1), full_run.curves_npz.read_bytes(), plain(full_run.read_curves())
    refused = 0
    for position in rng.integers(0, len(whole), 300):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << int(rng.integers(8))
        full_run.curves_npz.write_bytes(damaged)
        got = outcome(full_run.read_curves)
        assert got is None or got == content, f"byte {position}"
        refused += got is None
    assert refused > 200


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize(
    "foreign",
    [b"\x89PNG\r\n\x1a\n" + bytes(range(256)), b"epoch,loss\n1,0.5\n", b"[" * 100_000, b"null", b'{"a": NaN}'],
    ids=["png", "csv", "nested", "null", "nan"],
)
def test_something_else_is_refused(name: str, foreign: bytes, full_run: RunFolder) -> None:
    (full_run.path / name).write_bytes(foreign)
    assert outcome(lambda: READERS[name](full_run)) is None


@pytest.mark.parametrize("name", READERS)
def test_missing_files_and_folders_are_named(name: str, full_run: RunFolder) -> None:
    path = full_run.path / name
    what = "the state of a run" if name == "state.pt" else f"a TLLM {path.stem} file"
    path.unlink()
    text = f"Expected {path} to be {what}, but there is no such file; check the path, or run first what writes it"
    with pytest.raises(FileFormatError, match=f"^{re.escape(text)}$"):
        READERS[name](full_run)
    path.mkdir()
    text = f"Expected {path} to be {what}, but it cannot be read (Is a directory); check the path and its permissions"
    with pytest.raises(FileFormatError, match=f"^{re.escape(text)}$"):
        READERS[name](full_run)


def restamp(path: Path, **stamp: Any) -> None:
    if path.suffix == ".json":
        path.write_text(json.dumps({**json.loads(path.read_bytes()), **stamp}))
        return
    with np.load(path) as archive:
        arrays: dict[str, Any] = {name: archive[name] for name in archive.files}
    write_npz(path, **{**arrays, **stamp})


STAMPED = [name for name in READERS if name != "state.pt"]


@pytest.mark.parametrize("name", STAMPED)
def test_versions_and_schemas(name: str, run: RunFolder) -> None:
    path = run.path / name
    kind, start = path.stem, f"Expected {path} to be a TLLM {path.stem} file"

    def refused() -> str:
        with pytest.raises(FileFormatError) as caught:
            READERS[name](run)
        return str(caught.value)

    restamp(path, version=2)
    assert refused() == (
        f"{start} of schema version 1, but it is of version 2, which a newer TLLM wrote; upgrade tllm-plugin to read it"
    )
    for version in (0, -1, True, "1"):
        restamp(path, version=version)
        assert refused() == (
            f"{start} of schema version 1, but its version is {version!r}, which is unknown; run again what wrote it"
        )
    restamp(path, version=1, schema="tllm/other")
    assert refused() == (
        f"{start} (schema 'tllm/{kind}'), but its schema is 'tllm/other'; name a file that TLLM wrote as such"
    )


def test_files_without_a_schema(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    text = "(schema 'tllm/{}'), but it has no TLLM schema; name a file that TLLM wrote as such"
    for content in ("{}", "[]", "3", '"x"', '{"schema": null}'):
        run.flags_json.write_text(content)
        with pytest.raises(FileFormatError, match=re.escape(text.format("flags"))):
            run.read_flags()
    np.savez(run.curves_npz, rank=np.zeros(3))
    with pytest.raises(FileFormatError, match=re.escape(text.format("curves"))):
        run.read_curves()


@pytest.mark.parametrize(
    "name, value, got",
    [
        ("rank", None, "integers in 2 dimensions, but got nothing"),
        ("rank", np.zeros((2, 3), np.float32), "integers in 2 dimensions, but got float32 of shape (2, 3)"),
        ("labels", np.zeros((2, 3), np.int64), "integers in 1 dimensions, but got int64 of shape (2, 3)"),
        ("true_prob", np.zeros((2, 3), np.int8), "unsigned integers in 2 dimensions, but got int8 of shape (2, 3)"),
        ("agree", np.zeros((2, 3), np.uint8), "booleans in 2 dimensions, but got uint8 of shape (2, 3)"),
        ("num_classes", np.array("3"), "integers in 0 dimensions, but got <U1 of shape ()"),
    ],
)
def test_arrays_of_curves_are_checked(name: str, value: Any, got: str, run: RunFolder) -> None:
    arrays = {key: item for key, item in run.read_curves().items() if key != name}
    if value is not None:
        arrays[name] = value
    write_npz(run.curves_npz, schema="tllm/curves", version=1, **arrays)
    with pytest.raises(FileFormatError) as caught:
        run.read_curves()
    assert str(caught.value) == f"Expected `{name}` in {run.curves_npz} to be {got}; run again what wrote it"


def test_curves_that_do_not_fit_together(run: RunFolder) -> None:
    arrays = run.read_curves()
    with pytest.raises(FileFormatError, match=r"Expected `rank` of the curves to be of shape \(3, 12\), but got"):
        Curves.from_state(to_state({**arrays, "rank": arrays["rank"][:2]}))


class Hostile:
    """Runs a command when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch '{self.mark}'",)


def hostile_files(mark: Path) -> dict[str, bytes]:
    bait, files = {"weights": torch.zeros(2), "extra": Hostile(mark)}, {}
    for name, options in {"zip": {}, "legacy": {"_use_new_zipfile_serialization": False}}.items():
        buffer = io.BytesIO()
        torch.save(bait, buffer, **options)
        files[name] = buffer.getvalue()
    buffer = io.BytesIO()
    np.savez(buffer, schema="tllm/curves", version=1, rank=np.array([Hostile(mark)], dtype=object))
    return {**files, "npz": buffer.getvalue(), "pickle": pickle.dumps(Hostile(mark))}


@pytest.mark.parametrize("form", ["zip", "legacy", "npz", "pickle"])
def test_code_in_files_does_not_run(form: str, tmp_path: Path) -> None:
    mark, path = tmp_path / "ran", tmp_path / "file"
    path.write_bytes(hostile_files(mark)[form])
    for read in (lambda: load_torch(path, "a teacher checkpoint"), lambda: read_curves(path)):
        with pytest.raises(FileFormatError, match=f"^Expected {path} to be a "):
            read()
    if form != "npz":
        text = "is damaged or holds more than tensors and plain values, which is refused because it could run code"
        with pytest.raises(FileFormatError, match=f"to be a teacher checkpoint, but it {text}; save the state dict"):
            load_torch(path, "a teacher checkpoint")
    assert not mark.exists()


def test_the_bait_works(tmp_path: Path) -> None:
    """Without this, the test above would pass on files that harm nobody."""
    mark = tmp_path / "ran"
    pickle.loads(hostile_files(mark)["pickle"])
    assert mark.exists()


def test_hostile_members_beside_good_ones(run: RunFolder, tmp_path: Path) -> None:
    """All that is required is there and in order; only an extra array holds a pickle."""
    arrays: dict[str, Any] = {"schema": "tllm/curves", "version": 1, **run.read_curves()}
    with run.curves_npz.open("wb") as file:
        np.savez(file, **arrays, extra=np.array([Hostile(tmp_path / "ran")], dtype=object))
    with pytest.raises(FileFormatError, match="Object arrays cannot be loaded"):
        run.read_curves()
    assert not (tmp_path / "ran").exists()


def test_members_that_are_no_arrays(tmp_path: Path) -> None:
    write_npz(tmp_path / "file", schema="tllm/test", version=1, a=np.arange(3))
    with zipfile.ZipFile(tmp_path / "file", "a") as archive:
        archive.writestr("notes.txt", "hello")
        archive.comment = b""  # The digest of what was there before.
    with pytest.raises(FileFormatError, match="`notes.txt` is not an array"):
        read_npz(tmp_path / "file", "test", 1)
