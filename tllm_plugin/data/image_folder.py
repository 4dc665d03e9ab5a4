"""Any folder of images in torchvision's `ImageFolder` layout."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

from tllm_plugin.core.errors import DataError
from tllm_plugin.data.bundle import DataBundle
from tllm_plugin.data.class_order import ClassOrder, in_order, ordered
from tllm_plugin.data.decode import decode_files, read_rgb
from tllm_plugin.data.folder import find_parts, readable_names
from tllm_plugin.data.image_set import ImageSet
from tllm_plugin.data.in_memory import in_memory_bundle
from tllm_plugin.data.registry import DATA_SETS
from tllm_plugin.data.streamed import StreamedBundle

logger = logging.getLogger(__name__)

LARGEST_IN_MEMORY = 64
"""Height and width, in pixels, up to which images are kept in memory (12 kB each; a million are 12 GB)."""

# ImageNet's, which code for large photographs has in common.
LARGE_IMAGE_MEAN = (0.485, 0.456, 0.406)
LARGE_IMAGE_STD = (0.229, 0.224, 0.225)


@DATA_SETS.register("imagefolder")
def load_image_folder(
    path: str, *, image_size: int = 0, num_workers: int = 2, class_order: ClassOrder = "", **_: object
) -> DataBundle:
    """Images of `path/train/<class>/` and, for testing, `path/val/<class>/` (or `test`), as RGB.

    Small images are decoded once and kept in memory, normalised by their own mean and standard deviation; large ones
    are read from disk in every epoch, normalised by ImageNet's.

    Args:
        path: The folder. A `classes.txt` in it (lines of `folder name`) gives the classes readable names.
        image_size: Height and width for the network, in pixels. Up to 64: in memory; larger: from disk. 0: as stored,
            if all images are square, of one size and at most 64 pixels wide.
        num_workers: Processes that decode.
        class_order: See `ClassOrder`.

    Raises:
        ConfigError: `path` is not a folder, or the class order names other classes.
        DataError: The folder does not hold what is described above; the message names the folder or file.
    """
    train, test = find_parts(path)
    folders = ordered(train.classes, class_order, train.root)
    train, test = in_order(train, folders), in_order(test, folders)
    class_names = readable_names(Path(path).expanduser(), train.classes)
    logger.info(
        "%s: %d classes, %d training images, %d test images (in %s)",
        path,
        len(class_names),
        len(train.files),
        len(test.files),
        test.root,
    )
    if image_size > LARGEST_IN_MEMORY:
        return StreamedBundle(
            class_names=class_names,
            in_channels=3,
            image_size=image_size,
            mean=LARGE_IMAGE_MEAN,
            std=LARGE_IMAGE_STD,
            train_labels=train.labels,
            test_labels=test.labels,
            train_files=train.files,
            test_files=test.files,
            num_workers=num_workers,
            class_folders=folders,
            order_stated=bool(class_order),
        )
    side = image_size or _common_side(train.files[0])
    train_images, test_images = (
        decode_files(part.files, side, resize=image_size > 0, num_workers=num_workers) for part in (train, test)
    )
    bundle = in_memory_bundle(
        class_names,
        train=ImageSet(train_images, train.labels),
        test=ImageSet(test_images, test.labels),
        flip=True,
        train_files=train.files,
        test_files=test.files,
    )
    return replace(bundle, class_folders=folders, order_stated=bool(class_order))


def _common_side(first_file: str) -> int:
    width, height = read_rgb(first_file).size
    if width != height or width > LARGEST_IN_MEMORY:
        raise DataError(
            f"Expected images to be square and at most {LARGEST_IN_MEMORY} pixels wide where no image_size is given, "
            f"but `{first_file}` is {width} x {height}; set an image_size (usual for photographs: 224)"
        )
    return width
