"""Write TensorBoard event files in the training thread, so that a full disk is an error of the run."""

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
    """`SummaryWriter` without a background thread, whose errors would not reach the run.

    Events are in the file when a call returns. Every method that writes raises `TLLMError` if the file cannot be
    written.
    """

    def _get_file_writer(self) -> Any:
        writer: Any = self.file_writer
        if writer is None:
            writer = _FileWriter(Path(self.log_dir))
            vars(self).update(file_writer=writer, all_writers={writer.get_logdir(): writer})
            if self.purge_step is not None:  # TensorBoard discards events of older files at this step and later.
                writer.add_event(Event(file_version=_FORMAT), self.purge_step)
                writer.add_event(Event(session_log=SessionLog(status=SessionLog.START)), self.purge_step)
                self.purge_step = None
        return writer


class _FileWriter(FileWriter):
    def __init__(self, folder: Path) -> None:
        self.event_writer = _EventFile(folder)


class _EventFile:
    """Replacement of TensorBoard's `EventFileWriter`; the file is named in the same manner."""

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
        """Do nothing, because nothing is buffered."""

    def close(self) -> None:
        self._records.close()
