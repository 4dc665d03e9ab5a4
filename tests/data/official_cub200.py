"""A small folder of the official layout of CUB-200-2011."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("001.Black_footed_Albatross", "002.Laysan_Albatross", "003.Sooty_Albatross")


def make_official(folder: Path, per_class: int = 4) -> Path:
    """Return `folder/CUB_200_2011`: images of different sizes, one of them grey, as in the original.

    Args:
        folder: Exists.
        per_class: Images of each class; the second one is for testing.
    """
    root = folder / "CUB_200_2011"
    lists: dict[str, list[str]] = {"images": [], "image_class_labels": [], "train_test_split": []}
    pixels = np.random.default_rng(0)
    number = 0
    for label, name in enumerate(CLASSES, start=1):
        (root / "images" / name).mkdir(parents=True)
        for index in range(per_class):
            number += 1
            file = f"{name}/Bird_{index:04}_{number}.jpg"
            image = Image.fromarray(pixels.integers(0, 256, (50 + 5 * index, 70, 3), dtype=np.uint8))
            (image.convert("L") if number == 2 else image).save(root / "images" / file)
            lists["images"].append(f"{number} {file}")
            lists["image_class_labels"].append(f"{number} {label}")
            lists["train_test_split"].append(f"{number} {int(index != 1)}")
    lists["classes"] = [f"{label} {name}" for label, name in enumerate(CLASSES, start=1)]
    for key, lines in lists.items():
        (root / f"{key}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return root
