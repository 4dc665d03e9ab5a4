"""What a loader's workers meet is one line of `tllm train`, whoever iterates over the loader."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from tllm_plugin.cli import main
from tllm_plugin.cli import train as train_command
from tllm_plugin.core.errors import DataError
from tllm_plugin.data import streamed
from tllm_plugin.data.decode import decode_files
from tllm_plugin.hosts.loader_data import LoaderData
from tllm_plugin.hosts.photographs import Photographs
from tllm_plugin.hosts.plain_errors import say_errors_plainly

SIDE = 72


@pytest.fixture(autouse=True)
def time_limit() -> Iterator[None]:
    """A main process that waits for ever fails."""

    def stop(*_: Any) -> None:
        raise TimeoutError("the main process still waits for its workers")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(100)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for part in ("train", "val"):
        for name in ("cat", "dog"):
            below = tmp_path / "images" / part / name
            below.mkdir(parents=True)
            for number in range(8):
                Image.fromarray(rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)).save(below / f"{number}.png")
    return tmp_path / "images"


def no_room(*_: Any, **__: Any) -> None:
    raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1_2_0>: No space left on device (28)")


@pytest.fixture
def full_shared_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """No worker has room for a batch, on whichever way it is sent."""
    for name in ("_share_fd_cpu_", "_new_using_fd_cpu", "_share_filename_cpu_", "_new_using_filename_cpu"):
        monkeypatch.setattr(torch.UntypedStorage, name, no_room)


def train(folder: Path, workers: int, *more: str) -> int:
    options = (
        *("DATASET.TYPE", "imagefolder", "DATASET.PATH", str(folder), "DATASET.IMAGE_SIZE", str(SIDE)),
        *("DATASET.NUM_WORKERS", str(workers), "LOG.PREFIX", str(folder.parent / f"runs-{workers}")),
        *("DISTILLER.TYPE", "NONE", "SOLVER.TRAINER", "base", "SOLVER.EPOCHS", "2", "SOLVER.BATCH_SIZE", "3"),
        *("RUNTIME.DEVICE", "cpu", "TLLM.DETECTOR.TYPE", "none"),
    )
    return main(["train", "--cfg", "tllm/embedded/digits.yaml", *options, *more])


def said(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on standard error that begins with our name."""
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith(("tllm:", "Traceback"))]
    assert len(lines) == 1 and lines[0].startswith("tllm: Expected")
    return lines[0]


def test_a_damaged_image_is_told_as_without_workers(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "train" / "dog" / "3.png").write_bytes(b"no image")
    lines = []
    for workers in (0, 1):
        assert train(folder, workers) == 1
        lines.append(said(capsys))
    assert lines[0] == lines[1] and "dog/3.png" in lines[0]


@pytest.mark.usefixtures("full_shared_memory")
def test_no_room_in_shared_memory(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(folder, 1) == 1
    assert "/dev/shm" in said(capsys)


@pytest.mark.usefixtures("full_shared_memory")
def test_no_room_while_small_images_are_decoded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tllm_plugin.data.decode._FILES_PER_CHUNK", 2)
    files = sorted(map(str, (folder / "train" / "cat").iterdir()))
    with pytest.raises(DataError, match="/dev/shm"):
        decode_files(files, SIDE, resize=False, num_workers=1)


def test_a_worker_that_was_killed(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    main_process = os.getpid()

    def killed(path: str) -> None:
        assert os.getpid() != main_process
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(streamed, "read_rgb", killed)
    assert train(folder, 1) == 1
    assert "Killed" in said(capsys)


def host_loader(folder: Path, workers: int) -> DataLoader[Any]:
    files = tuple(sorted(str(file) for file in (folder / "train").rglob("*.png")))

    def transform(image: Image.Image) -> torch.Tensor:
        return torch.zeros(3)

    data = Photographs(files, (0, 1) * (len(files) // 2), ("cat", "dog"), transform, with_index=True)
    return DataLoader(data, batch_size=4, num_workers=workers)


@pytest.mark.parametrize("damage", ["image", "room"])
def test_a_hosts_own_loop(
    damage: str,
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    if damage == "image":
        (folder / "train" / "dog" / "3.png").write_bytes(b"no image")
    else:
        request.getfixturevalue("full_shared_memory")
    lines = []
    for workers in (1,) if damage == "room" else (0, 1):
        monkeypatch.setattr(train_command, "_run_repdistiller", lambda _, w=workers: list(host_loader(folder, w)))
        assert main(["train", "--host", "repdistiller", "--", "--tllm"]) == 1
        lines.append(said(capsys))
    assert len(set(lines)) == 1
    assert ("dog/3.png" if damage == "image" else "/dev/shm") in lines[0]


def test_a_hosts_own_script(folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "train" / "dog" / "3.png").write_bytes(b"no image")
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    say_errors_plainly()
    try:
        list(host_loader(folder, 1))
    except Exception as error:
        sys.excepthook(type(error), error, error.__traceback__)
    assert "dog/3.png" in said(capsys)


def test_the_holdout_of_a_host(folder: Path) -> None:
    (folder / "train" / "dog" / "3.png").write_bytes(b"no image")
    data = LoaderData(host_loader(folder, 1), lambda image: torch.zeros(3))
    with pytest.raises(DataError, match=r"^Expected `.*dog/3\.png` to be an image, but reading it failed: [^\n]*$"):
        list(data.holdout_loader(torch.arange(16)))
