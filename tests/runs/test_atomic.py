"""A file holds its old or its new content, never anything else."""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tllm_plugin.core.errors import TLLMError
from tllm_plugin.runs import atomic

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _raise_full(*_: Any) -> None:
    raise FULL


WRITERS = {
    "bytes": lambda path: atomic.write_bytes(path, b"new"),
    "text": lambda path: atomic.write_text(path, "new"),
    "json": lambda path: atomic.write_json(path, {"new": 1}),
    "npz": lambda path: atomic.write_npz(path, new=np.ones(3)),
    "torch": lambda path: atomic.save_torch(path, {"new": torch.ones(3)}),
}


def test_a_link_is_a_second_name_until_either_is_written_anew(tmp_path: Path) -> None:
    kept, latest = tmp_path / "epoch_1", tmp_path / "latest"
    atomic.write_text(kept, "one")
    atomic.write_text(latest, "zero")
    atomic.write_link(latest, kept)
    atomic.write_link(latest, kept)
    assert latest.samefile(kept) and sorted(path.name for path in tmp_path.iterdir()) == ["epoch_1", "latest"]
    atomic.write_text(latest, "two")
    assert (kept.read_text(), latest.read_text()) == ("one", "two")


def test_where_links_cannot_be_it_is_a_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(atomic.os, "link", refuse)
    atomic.write_text(tmp_path / "epoch_1", "one")
    atomic.write_link(tmp_path / "latest", tmp_path / "epoch_1")
    assert (tmp_path / "latest").read_text() == "one" and not (tmp_path / "latest").samefile(tmp_path / "epoch_1")


def test_a_link_that_cannot_be_made_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    atomic.write_text(tmp_path / "epoch_1", "one")
    atomic.write_text(tmp_path / "latest", "zero")
    monkeypatch.setattr(atomic.os, "replace", _raise_full)
    with pytest.raises(TLLMError, match="Cannot write .*latest: .*what was there before is unchanged"):
        atomic.write_link(tmp_path / "latest", tmp_path / "epoch_1")
    assert (tmp_path / "latest").read_text() == "zero" and len(list(tmp_path.iterdir())) == 2


@pytest.fixture(params=sorted(WRITERS))
def write(request: pytest.FixtureRequest) -> Any:
    return WRITERS[request.param]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_content(
    write: Any, call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    monkeypatch.setattr(os, call, _raise_full)
    with pytest.raises(TLLMError, match=rf"Cannot write {path}: No space left on device; .* unchanged"):
        write(path)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


def test_a_write_replaces_and_leaves_nothing_else(write: Any, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    write(path)
    assert path.read_bytes() != b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_file_is_flushed_before_the_rename_and_the_folder_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    fsync, replace = os.fsync, os.replace

    def spy_fsync(descriptor: int) -> None:
        calls.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        fsync(descriptor)

    def spy_replace(source: Path, target: Path) -> None:
        assert source.parent == target.parent
        assert source.read_bytes() == b"new", "the content must have left Python's buffer"
        calls.append("rename")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", spy_fsync)
    monkeypatch.setattr(os, "replace", spy_replace)
    atomic.write_bytes(tmp_path / "file", b"new")
    assert calls == ["file", "rename", "folder"]


def test_a_folder_that_cannot_be_flushed_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(os, "open", _raise_full)
    with caplog.at_level("WARNING"):
        atomic.write_bytes(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"new"
    assert "may be lost in a power cut" in caplog.text


@pytest.mark.parametrize("error", [RuntimeError("mine"), KeyboardInterrupt()])
def test_other_exceptions_pass_and_leave_the_old_content(error: BaseException, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(type(error)), atomic.atomic_writer(path) as file:
        file.write(b"half")
        raise error
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


def test_missing_folder_is_named(tmp_path: Path) -> None:
    path = tmp_path / "nowhere" / "file"
    with pytest.raises(TLLMError, match=rf"Cannot write {path}: No such file or directory"):
        atomic.write_text(path, "new")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_json_refuses_what_it_has_no_number_for(value: float, tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text("old")
    with pytest.raises(ValueError, match=rf"Expected what is written to {path} to be finite"):
        atomic.write_json(path, {"drop": value})
    assert path.read_text() == "old"


def test_json_keeps_the_order_of_keys_and_has_a_line_for_each_of_them_and_for_each_object_in_a_list(
    tmp_path: Path,
) -> None:
    path = tmp_path / "x.json"
    content = {"b": 1, 'a "quote"': [2, 3], "classes": [{"name": "x", "drop": None}, {"name": "y", "drop": [0.5]}]}
    atomic.write_json(path, content)
    assert path.read_text() == (
        '{\n  "b": 1,\n  "a \\"quote\\"": [2, 3],\n  "classes": [\n'
        '    {"name": "x", "drop": null},\n    {"name": "y", "drop": [0.5]}\n  ]\n}\n'
    )
    assert list(json.loads(path.read_bytes()).items()) == list(content.items())


@pytest.mark.parametrize("content", [{}, [], {"a": []}, {"a": {}}, {"a": [{}]}, [1, {"b": 2}], {3: {"c": (1, 2)}}, "x"])
def test_json_reads_as_what_json_itself_would_write(content: object, tmp_path: Path) -> None:
    atomic.write_json(tmp_path / "x.json", content)
    assert json.loads((tmp_path / "x.json").read_bytes()) == json.loads(json.dumps(content))


def test_json_takes_file_names_that_are_not_utf8(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9")
    atomic.write_json(tmp_path / "x.json", [name])
    assert json.loads((tmp_path / "x.json").read_bytes()) == [name]


def test_npz_is_read_by_numpy_takes_every_name_and_repeats_bit_for_bit(tmp_path: Path) -> None:
    arrays: dict[str, Any] = {
        "file": np.arange(6).reshape(2, 3),
        "allow_pickle": np.asfortranarray(np.eye(3, dtype=np.float32)),
        "path": np.array(["a", "bc"]),
        "none": np.zeros((0, 4), dtype=bool),
        "scalar": np.array(7),
    }
    atomic.write_npz(tmp_path / "a.npz", **arrays)
    atomic.write_npz(tmp_path / "b.npz", **arrays)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    with np.load(tmp_path / "a.npz") as archive:
        assert sorted(archive.files) == sorted(arrays)
        for name, array in arrays.items():
            np.testing.assert_array_equal(archive[name], array, strict=True)


def test_npz_refuses_objects(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Object arrays cannot be saved"):
        atomic.write_npz(tmp_path / "a.npz", x=np.array([{}, None]))
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(os.name == "nt", reason="Windows has no umask")
def test_files_get_the_permissions_of_any_other_new_file(tmp_path: Path) -> None:
    (tmp_path / "ordinary").touch()
    atomic.write_bytes(tmp_path / "ours", b"")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "ordinary").stat().st_mode


def test_remove_temporaries_takes_only_ours(tmp_path: Path) -> None:
    for name in (".flags.json.0a1b2c3d.tllm-tmp", "flags.json", ".other.tmp", "x.tllm-tmp"):
        (tmp_path / name).touch()
    atomic.remove_temporaries(tmp_path)
    assert sorted(os.listdir(tmp_path)) == [".other.tmp", "flags.json", "x.tllm-tmp"]


# Each fills what room there is, tries to replace every file, and prints one line per error.
_OVERFLOW = """
    import resource, sys
    import numpy as np, torch
    from tllm_plugin.core.errors import TLLMError
    from tllm_plugin.runs import atomic

    folder, limit = sys.argv[1], int(sys.argv[2])
    if limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    else:
        for name in ("a.json", "a.npz", "a.pt"):
            atomic.write_text(f"{folder}/{name}", "old")
    big = np.random.default_rng(0).random(200_000)
    for write in (
        lambda: atomic.write_json(f"{folder}/a.json", big.tolist()),
        lambda: atomic.write_npz(f"{folder}/a.npz", big=big),
        lambda: atomic.save_torch(f"{folder}/a.pt", {"big": torch.from_numpy(big)}),
    ):
        try:
            write()
        except TLLMError as error:
            print(error)
    import pathlib
    print(sorted((path.name, path.read_text()) for path in pathlib.Path(folder).iterdir()))
"""
_KEPT = "[('a.json', 'old'), ('a.npz', 'old'), ('a.pt', 'old')]"


@pytest.mark.skipif(os.name == "nt", reason="Windows has no RLIMIT_FSIZE")
def test_a_real_file_size_limit_leaves_the_old_content(tmp_path: Path) -> None:
    for name in ("a.json", "a.npz", "a.pt"):
        (tmp_path / name).write_text("old")
    command = [sys.executable, "-c", textwrap.dedent(_OVERFLOW), str(tmp_path), "100000"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert [line for line in lines if "File too large" in line] == lines[:3] and len(lines) == 4
    assert lines[3] == _KEPT


def test_a_real_full_disk_leaves_the_old_content(tmp_path: Path) -> None:
    if shutil.which("unshare") is None:
        pytest.skip("there is no `unshare`, so that no small file system can be mounted")
    mount = f"mount -t tmpfs -o size=256k none {tmp_path}"
    if subprocess.run(["unshare", "-rm", "sh", "-c", mount], capture_output=True).returncode != 0:
        pytest.skip("this user may not mount a small file system in a namespace of its own")
    script = f'{mount} && exec "$0" -c "$1" {tmp_path} 0'
    command = ["unshare", "-rm", "sh", "-c", script, sys.executable, textwrap.dedent(_OVERFLOW)]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert [line for line in lines if "No space left on device" in line] == lines[:3] and len(lines) == 4
    assert lines[3] == _KEPT
