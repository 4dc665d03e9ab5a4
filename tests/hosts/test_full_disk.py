"""A disk that takes no more: one line that names the file and exit code 1, whoever writes; never a traceback."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.analysis.planted_runs import write_run
from tests.hosts.digits_runs import BASE, CONFIG
from tllm_plugin.core.errors import TLLMError
from tllm_plugin.hosts.embedded.events import EventWriter
from tllm_plugin.hosts.embedded.run_files import append_epoch
from tllm_plugin.runs import atomic

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows has neither RLIMIT_FSIZE nor /dev/full")

LIMITED = """
import resource, sys
limit = int(sys.argv.pop(1))
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
"""
TLLM = "from tllm_plugin.cli import main\nsys.exit(main(sys.argv[1:]))"


def limited(limit: int, code: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Run code in a process that can write no file larger than `limit` bytes."""
    command = [sys.executable, "-c", LIMITED + textwrap.dedent(code), str(limit), *words]
    return subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=240)


def full(*_: object) -> int:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


# Event files, the log, the record of the split, checkpoints: whichever is too large first.
@pytest.mark.parametrize("limit", [0, 100, 900, 20_000])
def test_a_training_ends_with_one_line(limit: int, tmp_path: Path) -> None:
    words = ["train", "--cfg", str(CONFIG), *BASE, "DISTILLER.TYPE", "NONE", "TLLM.DETECTOR.TYPE", "none"]
    done = limited(limit, TLLM, *words, "LOG.PREFIX", str(tmp_path), "DATASET.NUM_WORKERS", "0")
    assert done.returncode == 1, done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"tllm: Cannot write {tmp_path}") and "File too large" in last
    for text in ("Traceback", "Exception", 'File "'):
        assert text not in done.stderr


def test_event_files_are_named_and_there_is_no_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = threading.active_count()
    writer = EventWriter(str(tmp_path / "events"))
    writer.add_scalar("a", 1.0, 1)
    (path,) = (tmp_path / "events").iterdir()
    with monkeypatch.context() as patch:
        patch.setattr(atomic.os, "write", full)
        for write in (lambda: writer.add_scalar("a", 2.0, 2), lambda: EventWriter(str(tmp_path / "others"))):
            with pytest.raises(TLLMError, match=r"Cannot write .*events\.out\.tfevents.*: No space left"):
                write()
    assert threading.active_count() == before
    writer.add_scalar("a", 3.0, 3)
    writer.close()
    writer.close()
    events = EventAccumulator(str(tmp_path / "events"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("a")] == [(1, 1.0), (3, 3.0)]
    again = EventWriter(str(tmp_path / "events"), purge_step=2)
    again.add_scalar("a", 4.0, 2)
    again.close()
    assert len(list((tmp_path / "events").iterdir())) == 2 and path.exists()
    events = EventAccumulator(str(tmp_path / "events"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("a")] == [(1, 1.0), (2, 4.0)]


def test_a_folder_for_events_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(TLLMError, match="Cannot make the folder .*file/events: Not a directory"):
        EventWriter(str(tmp_path / "file" / "events"))


def test_the_log_keeps_its_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    append_epoch(tmp_path, 1, {"loss": 0.5})
    write, half = os.write, []

    def half_then_full(descriptor: int, data: memoryview) -> int:
        if half:
            return full()
        half.append(True)
        return write(descriptor, data[:5])

    with monkeypatch.context() as patch:
        patch.setattr(atomic.os, "write", half_then_full)
        with pytest.raises(TLLMError, match=r"Cannot write .*worklog\.txt: No space left"):
            append_epoch(tmp_path, 2, {"loss": 0.4})
    append_epoch(tmp_path, 2, {"loss": 0.4})
    assert (tmp_path / "worklog.txt").read_text() == "epoch: 1\nloss: 0.5000\nepoch: 2\nloss: 0.4000\n"


@pytest.mark.parametrize("storage", ["journal:{}", "sqlite:///{}"])
def test_a_storage_that_takes_no_more_is_named(storage: str, tmp_path: Path) -> None:
    words = ["search", "--cfg", str(CONFIG), *BASE, "LOG.PREFIX", str(tmp_path), "--eta", "0.1"]
    done = limited(200, TLLM, *words, "--storage", storage.format(tmp_path / "store"))
    last = done.stderr.splitlines()[-1]
    assert done.returncode in (1, 2) and last.startswith("tllm: ") and str(tmp_path / "store") in last, done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", ["show", "tables", "validate", "compare"])
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_standard_output_that_is_full_is_named(command: str, unbuffered: str, tmp_path: Path) -> None:
    environment = {**ENVIRONMENT, "PYTHONUNBUFFERED": unbuffered}
    run = write_run(tmp_path / "run")
    words = {"show": [str(run)], "tables": [str(tmp_path)], "validate": [str(CONFIG)]}.get(command)
    words = words or [str(run), str(write_run(tmp_path / "kd", method="KD"))]
    with open("/dev/full", "w") as out:
        done = subprocess.run(
            [sys.executable, "-m", "tllm_plugin", command, *words],
            stdout=out,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
    assert (done.returncode, done.stderr) == (1, "tllm: No space left on device: standard output\n")


def test_a_device_or_a_pipe_is_written_to_as_it_is(tmp_path: Path) -> None:
    runs = [str(write_run(tmp_path / "v")), str(write_run(tmp_path / "kd", method="KD"))]
    command = [sys.executable, "-m", "tllm_plugin", "compare", *runs, "--csv"]
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with subprocess.Popen([*command, str(pipe)], stdout=subprocess.DEVNULL, env=ENVIRONMENT) as process:
        lines = pipe.read_text().splitlines()
    assert process.returncode == 0 and len(lines) == 1 + 12
    link = tmp_path / "full"
    link.symlink_to("/dev/full")
    done = subprocess.run([*command, str(link)], capture_output=True, text=True, env=ENVIRONMENT)
    assert (done.returncode, done.stderr) == (1, f"tllm: Cannot write {link}: No space left on device\n")
    assert link.is_symlink() and pipe.is_fifo()


THREADED = """
from pathlib import Path
from tllm_plugin.hosts.plain_errors import say_errors_plainly
say_errors_plainly()
{0}
for step in range(100_000):
    writer.add_scalar("a", 1.0, step)
    writer.flush()
print("never")
"""


@pytest.mark.parametrize("module", ["tensorboardX", "torch.utils.tensorboard"])
def test_the_thread_of_a_host_s_writer_ends_the_process(module: str, tmp_path: Path) -> None:
    made = f"from {module} import SummaryWriter; writer = SummaryWriter({str(tmp_path)!r})"
    done = limited(5000, THREADED.format(made))
    assert done.returncode == 1 and done.stdout == "", done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"tllm: Cannot write {tmp_path}/events.out.tfevents") and line.endswith("File too large")
