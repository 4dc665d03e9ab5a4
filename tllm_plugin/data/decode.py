"""Decode image files to pixels."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from tllm_plugin.core.errors import DataError
from tllm_plugin.core.worker_errors import plain_errors
from tllm_plugin.data.pixels import to_rgb

logger = logging.getLogger(__name__)

_FILES_PER_CHUNK = 256
_SECONDS_BETWEEN_REPORTS = 5.0


def read_rgb(path: str) -> Image.Image:
    """Decode a file to an upright RGB image of its own size; `to_rgb` converts other kinds of pixels.

    Raises:
        DataError: The file cannot be read or decoded; the message names it.
    """
    try:
        with Image.open(path) as image:
            return to_rgb(image)
    except Exception as error:
        # Parsers of image formats raise many types: OSError, SyntaxError, ValueError, struct.error, ...
        raise DataError(f"Expected `{path}` to be an image, but reading it failed: {error}") from error


def decode_files(paths: Sequence[str], image_size: int, *, resize: bool, num_workers: int) -> Tensor:
    """Decode files into one tensor.

    Args:
        paths: Image files.
        image_size: Height and width of the result in pixels.
        resize: Whether to crop images of another size to a centred square and scale them, instead of raising an error.
        num_workers: Number of processes that decode; 0 decodes in the calling process. (Threads are slower, because
            Pillow's parser holds the interpreter lock.)

    Returns:
        (N, 3, image_size, image_size) uint8.

    Raises:
        DataError: A file cannot be decoded or, without `resize`, has another size; the message names it.
    """
    images = torch.empty(len(paths), 3, image_size, image_size, dtype=torch.uint8)
    loader = DataLoader(
        _Chunks(paths, image_size, resize),
        batch_size=None,
        num_workers=min(num_workers, len(paths) // _FILES_PER_CHUNK),
        generator=torch.Generator(),
    )
    start = reported = time.monotonic()
    done = 0
    with plain_errors():
        for chunk in loader:
            if isinstance(chunk, DataError):
                raise chunk
            images[done : done + len(chunk)] = chunk
            done += len(chunk)
            if time.monotonic() - reported > _SECONDS_BETWEEN_REPORTS:
                reported = time.monotonic()
                logger.info("decoded %d of %d images (%d %%)", done, len(paths), 100 * done // len(paths))
    logger.info("decoded %d images in %.1f s", done, time.monotonic() - start)
    return images


def stack_or_first_error(samples: list[Tensor | DataError]) -> Tensor | DataError:
    """Collate images, or return the first error, for data sets that return errors instead of raising them.

    An error raised in a worker process arrives with the worker's traceback as its message; a returned error arrives
    unchanged.
    """
    tensors = []
    for sample in samples:
        if isinstance(sample, DataError):
            return sample
        tensors.append(sample)
    return sent(torch.stack(tensors))


def sent(batch: Tensor) -> Tensor | DataError:
    """Move a worker's batch to shared memory, or return an error if that is full; a no-op in other processes.

    Otherwise PyTorch would move the batch later, when an error can no longer be reported and the main process would
    wait forever.
    """
    if get_worker_info() is None:
        return batch
    try:
        with plain_errors():
            return batch.share_memory_()
    except DataError as error:
        return error


class _Chunks(Dataset["Tensor | DataError"]):
    """Data set of chunks of files, one tensor per chunk, because a tensor per small file would double the time."""

    def __init__(self, paths: Sequence[str], image_size: int, resize: bool) -> None:
        self._paths = paths
        self._side = image_size
        self._resize = resize

    def __len__(self) -> int:
        return -(-len(self._paths) // _FILES_PER_CHUNK)

    def __getitem__(self, chunk: int) -> Tensor | DataError:
        paths = self._paths[chunk * _FILES_PER_CHUNK : (chunk + 1) * _FILES_PER_CHUNK]
        try:
            pixels = bytearray().join(self._pixels(path) for path in paths)
        except DataError as error:
            return error
        images = torch.frombuffer(pixels, dtype=torch.uint8).view(len(paths), self._side, self._side, 3)
        return sent(images.permute(0, 3, 1, 2).contiguous())

    def _pixels(self, path: str) -> bytes:
        image = read_rgb(path)
        size = (self._side, self._side)
        if image.size != size:
            if not self._resize:
                raise DataError(
                    f"Expected all images to be {self._side} x {self._side} pixels like the first one, but "
                    f"`{path}` is {image.width} x {image.height}; set image_size to convert all to one size"
                )
            image = ImageOps.fit(image, size, Image.Resampling.BILINEAR)
        return image.tobytes()
