"""A folder of small images that the hosts' scripts can train on in seconds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

CLASSES, TRAIN, VAL = 6, 20, 5


def make_images(folder: Path) -> None:
    """Write train/ and val/ with one folder per class; the classes differ in brightness."""
    random = np.random.default_rng(0)
    for part, count in (("train", TRAIN), ("val", VAL)):
        for label in range(CLASSES):
            target = folder / part / f"n{label}"
            target.mkdir(parents=True)
            for index in range(count):
                pixels = random.integers(0, 60, (32, 32, 3)) + 35 * label
                Image.fromarray(pixels.astype(np.uint8)).save(target / f"{index:03}.png")
