"""Errors of a loader's workers, as PyTorch raises them in the main process, become the line that it says itself."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from tllm_plugin.core.errors import ConfigError, DataError, TLLMError
from tllm_plugin.core.worker_errors import plain_error, plain_errors

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(autouse=True)
def time_limit() -> Iterator[None]:
    """A main process that waits for ever fails."""

    def stop(*_: Any) -> None:
        raise TimeoutError("the main process still waits for its workers")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


class Failing(Dataset[Tensor]):
    """Eight samples of which the sixth does something."""

    def __init__(self, act: Callable[[], Any]) -> None:
        self.act = act

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> Tensor:
        if index == 5:
            self.act()
        return torch.zeros(3)


def plain_of(act: Callable[[], Any]) -> TLLMError | None:
    """Return what is said where a worker does something."""
    try:
        with plain_errors():
            list(DataLoader(Failing(act), batch_size=2, num_workers=1))
    except TLLMError as error:
        # With its traceback it would keep the loader, whose workers are waited for when that is collected in the end.
        return error.with_traceback(None)
    except Exception:
        return None
    raise AssertionError("Expected an error")


def fail(error: Exception) -> Callable[[], None]:
    def act() -> None:
        try:
            raise ValueError("below: ", error)
        except ValueError as cause:
            raise error from cause

    return act


@pytest.mark.parametrize("kind", [DataError, ConfigError])
def test_an_error_of_ours_is_itself_again(kind: type[TLLMError]) -> None:
    line = "Expected `a/0.png` to be an image, but reading it failed: DataError: what?"
    plain = plain_of(fail(kind(line)))
    assert type(plain) is kind and str(plain) == line


def open_a_missing_image() -> None:
    Image.open("/no/such/image.png")


def open_what_is_none() -> None:
    Image.open(__file__)


@pytest.mark.parametrize(
    ("act", "said"),
    [
        (open_a_missing_image, "no/such/image.png"),
        (open_what_is_none, "test_worker_errors.py"),
        (fail(OSError("image file is truncated (3 bytes not processed)")), "image file is truncated"),
    ],
)
def test_an_image_that_cannot_be_read_is_one_line(act: Callable[[], None], said: str) -> None:
    plain = plain_of(act)
    assert isinstance(plain, DataError)
    assert said in str(plain) and "Traceback" not in str(plain) and "\n" not in str(plain)


# PyTorch raises from its handler of SIGCHLD, wherever the main process is: now and then while the loader is collected.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(("number", "said"), [(signal.SIGKILL, "Killed|ended"), (signal.SIGBUS, "/dev/shm")])
def test_a_worker_that_was_killed_is_one_line(number: int, said: str) -> None:
    plain = plain_of(lambda: os.kill(os.getpid(), number))
    assert isinstance(plain, DataError)
    # Which signal it was is not known where the worker leaves while it hands a batch over.
    assert re.search(said, str(plain)) and "NUM_WORKERS" in str(plain) and "\n" not in str(plain)


def test_a_worker_that_leaves_before_it_hands_a_batch_over_is_one_line() -> None:
    """PyTorch fetches a batch from the worker that made it, by a connection of its own."""
    here, there = multiprocessing.Pipe()
    there.close()
    with pytest.raises(EOFError) as caught:
        here.recv()
    plain = plain_error(caught.value)
    assert isinstance(plain, DataError) and "NUM_WORKERS" in str(plain)
    # A data set may have connections, too.
    assert plain_error(ConnectionResetError(104, "Connection reset by peer")) is None


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_worker_that_leaves_is_one_line() -> None:
    plain = plain_of(lambda: os._exit(3))
    assert isinstance(plain, DataError) and "NUM_WORKERS" in str(plain)


@pytest.mark.parametrize(
    "text",
    [
        "unable to allocate shared memory(shm) for file </torch_1_2_0>: No space left on device (28)",
        "unable to write to file </torch_1_2_0>: No space left on device (28)",
        "unable to mmap 512 bytes from file </torch_1_2>: Cannot allocate memory (12)",
    ],
)
@pytest.mark.parametrize("in_worker", [True, False])
def test_no_room_in_shared_memory_is_one_line(text: str, in_worker: bool) -> None:
    error = RuntimeError(text)
    plain = plain_of(fail(error)) if in_worker else plain_error(error)
    assert isinstance(plain, DataError) and "/dev/shm" in str(plain) and "\n" not in str(plain)


@pytest.mark.parametrize(
    "text",
    [
        "unable to open shared memory object </torch_1_2> in read-write mode: Too many open files (24)",
        "Too many open files. Communication with the workers is no longer possible. Please increase the limit",
        "received 0 items of ancdata",
    ],
)
def test_too_many_open_files_are_one_line(text: str) -> None:
    plain = plain_error(RuntimeError(text))
    assert isinstance(plain, DataError) and "ulimit -n" in str(plain)


@pytest.mark.parametrize(
    "error",
    [TypeError("a mistake"), RuntimeError("size mismatch"), RuntimeError("CUDA error: out of shared memory")],
)
@pytest.mark.parametrize("in_worker", [True, False])
def test_other_errors_keep_their_traceback(error: Exception, in_worker: bool) -> None:
    assert (plain_of(fail(error)) if in_worker else plain_error(error)) is None
    with pytest.raises(type(error)) as caught, plain_errors():
        raise error
    assert caught.value is error
