"""Image files to pixels."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from tllm_plugin.core.errors import DataError
from tllm_plugin.data.pixels import to_rgb

logger = logging.getLogger(__name__)

_FILES_PER_CHUNK = 256
_SECONDS_BETWEEN_REPORTS = 5.0


def read_rgb(path: str) -> Image.Image:
    """Decode a file to an upright RGB image in its own size; see `to_rgb` for what becomes of other kinds of pixels.

    Raises:
        DataError: The file cannot be read or decoded; the message names it.
    """
    try:
        with Image.open(path) as image:
            return to_rgb(image)
    except Exception as error:
        # Whatever the parser of the format stumbles over: OSError, SyntaxError, ValueError, struct.error, ...
        raise DataError(f"Expected `{path}` to be an image, but reading it failed: {error}") from error


def decode_files(paths: Sequence[str], image_size: int, *, resize: bool, num_workers: int) -> Tensor:
    """Decode files into one tensor.

    Args:
        paths: Image files.
        image_size: Height and width of the result in pixels.
        resize: Whether images of another size are cut to a centred square and scaled; an error otherwise.
        num_workers: Processes that decode, 0 for this one alone. (Threads make it slower: of a small image's time,
            most goes to Pillow's parser, which holds the interpreter lock.)

    Returns:
        (N, 3, image_size, image_size) uint8.

    Raises:
        DataError: A file that cannot be decoded or, without `resize`, is of another size; the message names it.
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
    """Collate function for data sets that return their errors.

    An error raised in a worker process arrives with the worker's traceback as its message; one that is returned
    arrives as it is.
    """
    tensors = []
    for sample in samples:
        if isinstance(sample, DataError):
            return sample
        tensors.append(sample)
    return torch.stack(tensors)


class _Chunks(Dataset["Tensor | DataError"]):
    """Runs of files as one tensor each: half of a small file's time would go to a tensor of its own."""

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
        return images.permute(0, 3, 1, 2).contiguous()

    def _pixels(self, path: str) -> bytes:
        image = read_rgb(path)
        size = (self._side, self._side)
        if image.size != size:
            if not self._resize:
                raise DataError(
                    f"Expected all images to be {self._side} x {self._side} pixels like the first one, but "
                    f"`{path}` is {image.width} x {image.height}; set an image_size to bring all to one size"
                )
            image = ImageOps.fit(image, size, Image.Resampling.BILINEAR)
        return image.tobytes()
