"""Image files to pixels."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import functional as TF

from tllm_plugin.core.errors import DataError

logger = logging.getLogger(__name__)

_FILES_PER_TASK = 256
_SECONDS_BETWEEN_REPORTS = 5.0


def read_rgb(path: str) -> Image.Image:
    """Decode a file to an RGB image of the size that it is stored in.

    Raises:
        DataError: The file cannot be read or decoded; the message names it.
    """
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except Exception as error:
        # Whatever the parser of the format stumbles over: OSError, SyntaxError, ValueError, struct.error, ...
        raise DataError(f"Expected `{path}` to be an image, but reading it failed: {error}") from error


def stored_size(path: str) -> tuple[int, int]:
    """Width and height of an image file in pixels, read from its header.

    Raises:
        DataError: The file is not an image.
    """
    try:
        with Image.open(path) as image:
            return image.size
    except Exception as error:
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
        _Files(paths, image_size, resize),
        batch_size=_FILES_PER_TASK,
        num_workers=min(num_workers, len(paths) // _FILES_PER_TASK),
        collate_fn=stack_or_first_error,
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


class _Files(Dataset["Tensor | DataError"]):
    def __init__(self, paths: Sequence[str], image_size: int, resize: bool) -> None:
        self._paths = paths
        self._size = (image_size, image_size)
        self._resize = resize

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, row: int) -> Tensor | DataError:
        path = self._paths[row]
        try:
            image = read_rgb(path)
        except DataError as error:
            return error
        if image.size != self._size:
            if not self._resize:
                return DataError(
                    f"Expected all images to be {self._size[0]} x {self._size[1]} pixels like the first one, but "
                    f"`{path}` is {image.width} x {image.height}; set an image_size to bring all to one size"
                )
            image = ImageOps.fit(image, self._size, Image.Resampling.BILINEAR)
        return TF.pil_to_tensor(image)
