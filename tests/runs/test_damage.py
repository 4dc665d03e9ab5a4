"""A damaged file is refused in one line or gives what the undamaged one gave, whichever of its bytes are damaged."""

from __future__ import annotations

import io
import logging
import os
import re
import shutil
import socket
import struct
import time
import tracemalloc
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.runs.contents import plain
from tllm_plugin import FileFormatError
from tllm_plugin.core.data_identity import DataIdentity, DataPart
from tllm_plugin.runs.atomic import save_torch, write_npz
from tllm_plugin.runs.curves_file import to_state
from tllm_plugin.runs.flags_file import FlagsRecord
from tllm_plugin.runs.reading import check_torch, load_torch, read_json, read_npz, read_text
from tllm_plugin.runs.run_folder import RunFolder
from tllm_plugin.runs.search_file import SearchRecord
from tllm_plugin.search.forking import read_fork, write_fork

EARLIER = Path(__file__).parent / "earlier"
# File in the log folder -> how it is read.
READERS: dict[str, Callable[[RunFolder], Any]] = {
    "tllm/split.json": RunFolder.read_split,
    "tllm/flags.json": RunFolder.read_flags,
    "tllm/metrics.json": RunFolder.read_metrics,
    "tllm/data.json": RunFolder.read_data,
    "tllm/fork.json": lambda run: [str(item) for item in read_fork(run)],
    "search-0.json": lambda run: SearchRecord.read(run.log_folder / "search-0.json"),
    "tllm/curves.npz": RunFolder.read_curves,
    "tllm/predictions.npz": lambda run: vars(run.read_predictions()),
    "latest": lambda run: load_torch(run.log_folder / "latest", "a checkpoint"),
}
ARCHIVES = [name for name in READERS if not name.endswith(".json")]


@pytest.fixture
def earlier(tmp_path: Path) -> RunFolder:
    """A run that the last version without digests wrote."""
    shutil.copytree(EARLIER, tmp_path / "earlier")
    return RunFolder.inside(tmp_path / "earlier")


@pytest.fixture
def written(earlier: RunFolder, tmp_path: Path) -> RunFolder:
    """The same run as it is written today."""
    run = RunFolder.inside(tmp_path / "written").create()
    run.write_split(earlier.read_split())
    run.write_flags(earlier.read_flags())
    run.write_metrics(earlier.read_metrics())
    part = DataPart(counts=(20, 20, 20), labels="0a" * 32, files="1b" * 32)
    run.write_data(DataIdentity(("apple", "caf\udce9", "pear"), part, part, 32, (0.5, 0.25, 0.125), (0.25, 0.5, 1.0)))
    run.write_curves(to_state(earlier.read_curves()))
    run.write_predictions(earlier.read_predictions())
    epochs, parent = read_fork(earlier)
    assert parent is not None
    write_fork(run, parent, epochs)
    READERS["search-0.json"](earlier).write(run.log_folder / "search-0.json")
    save_torch(run.log_folder / "latest", READERS["latest"](earlier))
    return run


@st.composite
def damaged(draw: st.DrawFn, whole: bytes) -> bytes:
    """Draw a copy of a file with one byte changed, cut short, longer, or with a block of zeros or of another place."""
    size = len(whole)
    start, other = (draw(st.integers(0, size - 1)) for _ in range(2))
    length = draw(st.integers(1, min(512, size - start)))
    kind = draw(
        st.sampled_from(["bit", "bit", "bit", "sign", "sign", "sign", "cut", "longer", "zeros", "copy", "less"])
    )
    instead = {
        "bit": bytes([whole[start] ^ (1 << length % 8)]),
        # Another printable character: what is left of a JSON file is JSON more often.
        "sign": bytes([32 + length % 95]),
        "zeros": bytes(length),
        "copy": whole[other : other + length],
    }
    if kind in instead:
        return whole[:start] + instead[kind] + whole[start + len(instead[kind]) :]
    if kind == "longer":
        return whole + draw(st.binary(min_size=1, max_size=30))
    return whole[:start] if kind == "cut" else whole[:start] + whole[start + 1 + length % 20 :]


def read(run: RunFolder, name: str) -> Any:
    """Return what a file holds, or None if it is refused as files are refused."""
    try:
        return plain(READERS[name](run))
    except FileFormatError as error:
        assert re.fullmatch(r"Expected .*", str(error)) and str(run.log_folder / name) in str(error), error
        return None


def outcomes(run: RunFolder, name: str, *, may_change: bool = False) -> Counter[str]:
    """Count what becomes of damaged copies of a file, none of which may be believed unless `may_change`."""
    path = run.log_folder / name
    whole, content = path.read_bytes(), read(run, name)
    assert content is not None
    found: Counter[str] = Counter()

    @settings(max_examples=400, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(data=damaged(whole))
    def try_one(data: bytes) -> None:
        path.write_bytes(data)
        got = read(run, name)
        found["refused" if got is None else "equal" if got == content else "changed"] += 1
        assert got is None or got == content or may_change

    try_one()
    return found


@pytest.mark.parametrize("name", READERS)
def test_no_damage_is_believed(name: str, written: RunFolder) -> None:
    found = outcomes(written, name)
    assert found["refused"] > 0.8 * sum(found.values()), found


@pytest.mark.parametrize("name", [name for name in READERS if (EARLIER / name).exists()])
def test_files_of_earlier_versions(name: str, earlier: RunFolder) -> None:
    """Archives have had checksums always; in JSON without a digest a digit may change, but nothing worse happens."""
    found = outcomes(earlier, name, may_change=name not in ARCHIVES)
    assert found["refused"] > 0.5 * sum(found.values()), found


def test_every_byte_of_a_small_checkpoint(tmp_path: Path) -> None:
    """Of ours none may change; of one that another tool wrote only those that say nothing.

    In the directory of the latter, where nothing but the reader's care helps, every bit is changed.
    """
    content = {"model": {"weight": torch.arange(3.0)}}
    ours, foreign = tmp_path / "ours", tmp_path / "foreign"
    save_torch(ours, content)
    torch.save(content, foreign)
    for path in (ours, foreign):
        whole, refused = path.read_bytes(), 0
        wanted = plain(load_torch(path, "a checkpoint"))
        places = [8 * byte + byte % 8 for byte in range(len(whole))]
        if path == foreign:
            with zipfile.ZipFile(path) as archive:
                places += range(8 * archive.start_dir, 8 * len(whole))
        for place in places:
            data = bytearray(whole)
            data[place // 8] ^= 1 << place % 8
            path.write_bytes(data)
            try:
                assert plain(load_torch(path, "a checkpoint")) == wanted, f"bit {place} of {path.name}"
            except FileFormatError:
                refused += 1
        assert refused == len(places) or path == foreign


def test_what_earlier_versions_wrote_is_read(earlier: RunFolder, caplog: pytest.LogCaptureFixture) -> None:
    with zipfile.ZipFile(earlier.log_folder / "latest") as archive:
        assert not archive.comment, "the fixture has been written anew"
    assert earlier.read_split().holdout == (3, 1, 40, 12, 25, 33)
    assert [item.name for item in earlier.read_flags().classes] == ["apple", "caf\udce9", "pear"]
    assert earlier.has_results() and earlier.read_metrics().seconds_per_epoch == (1.5, 2.25, 2.0)
    assert earlier.read_curves()["epochs"].tolist() == [1, 2, 3]
    assert READERS["search-0.json"](earlier).chosen.score == 0.75
    assert read_fork(earlier)[0] == 2
    state = READERS["latest"](earlier)
    assert state["epoch"] == 3 and not caplog.records
    old = load_torch(earlier.log_folder / "before_1_6.pth", "a checkpoint")
    assert plain(old) == plain({"model": dict(state["model"])})
    assert "before 1.6, which has no checksums" in caplog.text


def test_others_read_what_we_write(written: RunFolder) -> None:
    path = written.log_folder / "latest"
    content = plain(READERS["latest"](written))
    for options in ({}, {"mmap": True}):
        assert plain(torch.load(path, weights_only=True, **options)) == content  # type: ignore[arg-type]
    with np.load(written.curves_npz) as archive:
        assert plain({name: archive[name] for name in written.read_curves()}) == plain(written.read_curves())
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None


def test_a_checkpoint_is_sealed_whatever_the_process_has_set(tmp_path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        save_torch(tmp_path / "file", {"weight": torch.ones(5)})
        assert not torch.serialization.get_crc32_options()
    finally:
        torch.serialization.set_crc32_options(True)
    assert plain(load_torch(tmp_path / "file", "a checkpoint")) == plain({"weight": torch.ones(5)})


def test_json_may_be_laid_out_anew_but_not_changed(written: RunFolder) -> None:
    path, text = written.flags_json, written.flags_json.read_text()
    record = written.read_flags()
    path.write_text(re.sub(r"\n\s*", "\r\n\t", text))
    assert written.read_flags() == record
    path.write_text(text.replace("apple", "maple"))
    with pytest.raises(FileFormatError, match="does not match its digest: it is damaged or was edited; .*remove its"):
        written.read_flags()
    path.write_text(re.sub(r',\s*"digest": "\w+"', "", text.replace("apple", "maple")))
    assert written.read_flags().classes[0].name == "maple"


SPECIAL = {"pipe": os.mkfifo, "socket": lambda path: socket.socket(socket.AF_UNIX).bind(str(path)), "folder": os.mkdir}


@pytest.mark.parametrize("kind", [*SPECIAL, "device"])
@pytest.mark.parametrize("linked", [False, True])
def test_what_is_no_file_is_not_opened(kind: str, linked: bool, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)  # The path of a socket has to be short.
    path = Path("/dev/zero" if kind == "device" else "special")
    if kind != "device":
        SPECIAL[kind](path)
    if linked:
        Path("link").symlink_to(path)
        path = Path("link")
    for reader in (
        lambda: load_torch(path, "a checkpoint"),
        lambda: check_torch(path, "a checkpoint"),
        lambda: read_json(path, "flags", 1),
        lambda: read_npz(path, "curves", 1),
        lambda: read_text(path, "a config"),
        lambda: FlagsRecord.read(path),
    ):
        with pytest.raises(FileFormatError, match=rf"^Expected {path} to be a .*, but it cannot be read \(.*\); check"):
            reader()


def test_links_are_followed(written: RunFolder, tmp_path: Path) -> None:
    for name in ("tllm/flags.json", "tllm/curves.npz", "latest"):
        (tmp_path / "links" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "links" / name).symlink_to(written.log_folder / name)
    for name in ("tllm/flags.json", "tllm/curves.npz", "latest"):
        assert read(RunFolder.inside(tmp_path / "links"), name) == read(written, name)


def entry(shape: tuple[int, ...]) -> bytes:
    """Return an `.npy` that says it has so many bytes, and has 8."""
    header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + bytes(8)


def archive_of(entries: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def bombs() -> dict[str, bytes]:
    zeros = bytes(2**26)
    small = io.BytesIO()
    torch.save({"weight": torch.ones(5)}, small)
    with zipfile.ZipFile(small) as archive:
        parts = {info.filename: archive.read(info) for info in archive.infolist()}
    weights = next(name for name in parts if name.endswith("data/0"))
    stamp = io.BytesIO()
    np.lib.format.write_array(stamp, np.array("tllm/curves"))
    return {
        "shape": archive_of({"schema.npy": stamp.getvalue(), "version.npy": entry((2**40,))}),
        "negative": archive_of({"schema.npy": entry((-(2**40), -(2**40)))}),
        "compressed": archive_of({"schema.npy": stamp.getvalue(), "version.npy": zeros}, zipfile.ZIP_DEFLATED),
        "compressed weights": archive_of({**parts, weights: zeros}, zipfile.ZIP_DEFLATED),
    }


@pytest.mark.parametrize("kind", ["shape", "negative", "compressed", "compressed weights"])
def test_small_files_that_say_they_are_large(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "file.npz"
    path.write_bytes(bombs()[kind])
    tracemalloc.start()
    try:
        with pytest.raises(FileFormatError):
            read_npz(path, "curves", 1)
        if kind == "compressed weights":
            with pytest.raises(FileFormatError):
                load_torch(path, "a checkpoint")
        assert tracemalloc.get_traced_memory()[1] < 2**24
    finally:
        tracemalloc.stop()


def test_entries_that_share_their_bytes(tmp_path: Path) -> None:
    """A directory that names one entry a thousand times is how an archive becomes a thousand times as large."""
    path = tmp_path / "file"
    data = archive_of({"aa": bytes(1000), "ab": bytes(1000)})
    second = data.rindex(b"PK\1\2")
    data = bytearray(data)
    data[second + 42 : second + 46] = struct.pack("<I", 0)
    data[second + 47 : second + 48] = b"c"
    path.write_bytes(data)
    with pytest.raises(FileFormatError, match="not where it should be"):
        check_torch(path, "a checkpoint")


@pytest.mark.parametrize("name", READERS)
def test_huge_files_of_nothing(name: str, written: RunFolder) -> None:
    """A disk that was full, or a copy that went wrong, leaves files full of zeros."""
    os.truncate(written.log_folder / name, 2**33)
    start = time.perf_counter()
    assert read(written, name) is None
    assert time.perf_counter() - start < 30


def test_a_compressed_entry_or_a_comment_of_others(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_npz(path, schema="tllm/test", version=1, a=np.arange(3))
    assert read_npz(path, "test", 1)["a"].tolist() == [0, 1, 2]
    with zipfile.ZipFile(path, "a") as archive:
        archive.comment = b"mine"
    with pytest.raises(FileFormatError, match="its comment is not a digest"):
        read_npz(path, "test", 1)


def test_curves_of_another_hold_out(written: RunFolder) -> None:
    arrays = written.read_curves()
    for name, value in (
        ("sample_ids", arrays["sample_ids"][1:]),
        ("labels", arrays["labels"] + 2),
        ("epochs", arrays["epochs"][::-1]),
        ("rank", arrays["rank"][1:]),
        ("true_prob", arrays["true_prob"][:, 1:]),
        ("agree", arrays["agree"][1:]),
    ):
        written.write_curves({**to_state(arrays), name: torch.from_numpy(value.copy())})
        with pytest.raises(FileFormatError, match=f"curves.npz to be curves of .*, but `{name}` is not of these"):
            written.read_curves()


def test_a_foreign_checkpoint_is_read_without_a_word(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    torch.save({"weight": torch.ones(5)}, tmp_path / "foreign")
    with caplog.at_level(logging.INFO):
        load_torch(tmp_path / "foreign", "a checkpoint")
    assert not caplog.records
