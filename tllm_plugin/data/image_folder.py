"""Load folders of images in the layout of torchvision's `ImageFolder`."""

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

# Statistics of ImageNet, which are commonly used for large photographs.
LARGE_IMAGE_MEAN = (0.485, 0.456, 0.406)
LARGE_IMAGE_STD = (0.229, 0.224, 0.225)


@DATA_SETS.register("imagefolder")
def load_image_folder(
    path: str, *, image_size: int = 0, num_workers: int = 2, class_order: ClassOrder = "", **_: object
) -> DataBundle:
    """Load the RGB images in `path/train/<class>/` and, for testing, `path/val/<class>/` (or `test`).

    `listing.list_images` defines which files are images of a class, and `pixels.to_rgb` converts their pixels. Small
    images are decoded once, kept in memory, and normalised with their own mean and standard deviation; large images are
    read from disk in every epoch and normalised with ImageNet's.

    Args:
        path: Folder of the data. A file `classes.txt` in it (lines of `folder name`) defines readable class names.
        image_size: Height and width of the images in pixels. Images of up to 64 pixels are kept in memory. 0 keeps the
            stored size, which must be square, equal for all images and at most 64.
        num_workers: Number of processes that decode images.
        class_order: See `ClassOrder`.

    Raises:
        ConfigError: `path` is not a folder, or the class order names other classes.
        DataError: The folder does not have this layout; the message names the folder or file.
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
