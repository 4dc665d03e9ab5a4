"""Image folders that are drawn for a test."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

MakeFolder = Callable[..., Path]


@pytest.fixture
def make_folder(tmp_path: Path) -> MakeFolder:
    """Draws `tmp_path/{train,val}/<class>/<number>.png` with noise, each file its own; returns `tmp_path`."""

    def make(
        classes: tuple[str, ...] = ("cat", "dog"),
        parts: tuple[str, ...] = ("train", "val"),
        per_class: int = 3,
        size: tuple[int, int] = (16, 16),
    ) -> Path:
        rng = np.random.default_rng(0)
        for part in parts:
            for name in classes:
                folder = tmp_path / part / name
                folder.mkdir(parents=True)
                for number in range(per_class):
                    pixels = rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
                    Image.fromarray(pixels).save(folder / f"{number}.png")
        return tmp_path

    return make
