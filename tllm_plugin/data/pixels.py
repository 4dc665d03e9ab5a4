"""From whatever an image file holds to upright, opaque RGB of 8 bits: one rule for every reader of images."""

from __future__ import annotations

from contextlib import suppress

import numpy as np
from PIL import Image, ImageOps

# What Pillow scales to 16 bits and then keeps in 32; in other formats 32 bits have no range that anybody states.
_SIXTEEN_BITS_IN_I = ("PPM", "PNG")
_BITS_PER_SAMPLE = 258  # A tag of TIFF.


def to_rgb(image: Image.Image) -> Image.Image:
    """Return an opened image as a person sees it: turned as its EXIF data say, on white where it is transparent.

    Whole numbers of 16 bits (of 12 in TIFF) are scaled from their range to 0..255 and rounded, floating point from
    0..1. Colour profiles are not applied.

    Args:
        image: As `Image.open` returns it; it is loaded and may be changed.

    Returns:
        Mode RGB.

    Raises:
        ValueError: Numbers whose range is unknown, or a mode that Pillow does not convert.
    """
    image.load()
    # A damaged EXIF block says nothing about the pixels. Whatever its parser stumbles over, the image stays as it is.
    with suppress(Exception):
        ImageOps.exif_transpose(image, in_place=True)
    if image.mode == "F" or image.mode == "I" or image.mode.startswith("I;"):
        return Image.fromarray(_scaled(image)).convert("RGB")
    transparent = image.info.get("transparency")
    if isinstance(transparent, tuple) and max(transparent) > 255:
        raise ValueError(f"the transparent colour {transparent} has 16 bits; save it with an alpha channel")
    if image.has_transparency_data:
        coloured = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), coloured).convert("RGB")
    return image.convert("RGB")


def _scaled(image: Image.Image) -> np.ndarray:
    """Return (H, W) uint8 of an image with more than 8 bits in its one channel.

    Raises:
        ValueError: Its range is unknown.
    """
    values = np.asarray(image)
    if image.mode == "F":
        # Not a number compares as neither.
        if not bool(((values >= 0) & (values <= 1)).all()):
            raise ValueError(
                f"floating point is read as 0 to 1, but its values are {_extremes(values)}; save it with 8 or 16 bits"
            )
        return np.rint(values * 255.0).astype(np.uint8)
    if image.mode == "I" and image.format not in _SIXTEEN_BITS_IN_I:
        raise ValueError(f"32-bit numbers ({_extremes(values)}) have no known range; save it with 8 or 16 bits")
    bits = getattr(image, "tag_v2", {}).get(_BITS_PER_SAMPLE, (16,))[0]
    peak = (1 << min(int(bits), 16)) - 1
    scaled = (values.astype(np.int64) * 255 + peak // 2) // peak
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        scaled[values == transparent] = 255
    return scaled.astype(np.uint8)


def _extremes(values: np.ndarray) -> str:
    return f"{values.min():g} to {values.max():g}"
