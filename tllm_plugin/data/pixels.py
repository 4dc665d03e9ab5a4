"""Convert opened images of any kind to upright, opaque 8-bit RGB."""

from __future__ import annotations

from contextlib import suppress

import numpy as np
from PIL import Image, ImageOps

# Formats that Pillow scales to 16 bits and stores in 32; in other formats, the range of 32 bits is undefined.
_SIXTEEN_BITS_IN_I = ("PPM", "PNG")
_BITS_PER_SAMPLE = 258  # Tag of TIFF.


def to_rgb(image: Image.Image) -> Image.Image:
    """Return an opened image rotated by its EXIF orientation, with transparency blended onto white.

    16-bit integers (12-bit in TIFF) are scaled to [0, 255] and rounded, floating-point values from [0, 1]. Colour
    profiles are not applied.

    Args:
        image: Result of `Image.open`; it is loaded and may be changed.

    Returns:
        Image of mode RGB.

    Raises:
        ValueError: The range of the values is unknown, or Pillow cannot convert the mode.
    """
    image.load()
    # With a damaged EXIF block, the image is not rotated.
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
    """Return (H, W) uint8 for an image with one channel of more than 8 bits.

    Raises:
        ValueError: The range of the values is unknown.
    """
    values = np.asarray(image)
    if image.mode == "F":
        # Both comparisons are false for NaN.
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
