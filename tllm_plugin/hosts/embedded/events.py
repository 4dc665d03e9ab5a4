"""TensorBoard's event files, written by the thread that trains: what the disk refuses is an error of the run."""

from __future__ import annotations

import os
import socket
import time
from itertools import count
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard import FileWriter, SummaryWriter

from tllm_plugin.core.errors import TLLMError
from tllm_plugin.runs.atomic import Appending

_FORMAT = "brain.Event:2"
_numbers = count()


class EventWriter(SummaryWriter):
    """A `SummaryWriter` without a thread, which would print a traceback of its own and leave the run without a word.

    Everything is in the file when a call returns; there are few events in an epoch. Where the system refuses to write,
    every method that writes raises a `TLLMError`.
    """

    def _get_file_writer(self) -> Any:
        writer: Any = self.file_writer
        if writer is None:
            writer = _FileWriter(Path(self.log_dir))
            vars(self).update(file_writer=writer, all_writers={writer.get_logdir(): writer})
            if self.purge_step is not None:  # TensorBoard forgets what older files say of this step and later ones.
                writer.add_event(Event(file_version=_FORMAT), self.purge_step)
                writer.add_event(Event(session_log=SessionLog(status=SessionLog.START)), self.purge_step)
                self.purge_step = None
        return writer


class _FileWriter(FileWriter):
    def __init__(self, folder: Path) -> None:
        self.event_writer = _EventFile(folder)


class _EventFile:
    """What a `FileWriter` writes through; the file is named as TensorBoard names its own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise TLLMError(f"Cannot make the folder {folder}: {error.strerror or error}") from error
        name = f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}.{next(_numbers)}"
        self._records = RecordWriter(Appending(folder / name))
        self.add_event(Event(wall_time=time.time(), file_version=_FORMAT))

    def get_logdir(self) -> str:
        return str(self._folder)

    def add_event(self, event: Any) -> None:
        self._records.write(event.SerializeToString())

    def flush(self) -> None:
        """Do nothing: nothing waits."""

    def close(self) -> None:
        self._records.close()
