"""What becomes of every kind of pixel, against NumPy's arithmetic on the numbers that were written."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from PIL import Image

from tllm_plugin.analysis.timm_networks import _Images
from tllm_plugin.core.errors import DataError
from tllm_plugin.data.decode import decode_files, read_rgb
from tllm_plugin.data.folder import scan_part
from tllm_plugin.data.pixels import to_rgb
from tllm_plugin.hosts.photographs import Photographs

Array = np.ndarray[Any, Any]
#: How the EXIF orientations want a stored array shown.
SHOWN: dict[int, Callable[[Array], Array]] = {
    1: lambda stored: stored,
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.swapaxes(0, 1),
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: stored[::-1, ::-1].swapaxes(0, 1),
    8: lambda stored: np.rot90(stored, 1),
}


def reopened(image: Image.Image, kind: str, orientation: int = 1, **options: Any) -> Image.Image:
    """Write an image and open what was written."""
    if orientation != 1:
        exif = Image.Exif()
        exif[0x0112] = orientation
        options["exif"] = exif
    file = io.BytesIO()
    image.save(file, kind, **options)
    return Image.open(io.BytesIO(file.getvalue()))


def rgb(image: Image.Image) -> Array:
    converted = to_rgb(image)
    assert converted.mode == "RGB"
    return np.asarray(converted)


def grey(values: Array) -> Array:
    """(H, W) levels of 0..255 as (H, W, 3)."""
    return np.repeat(values[..., None], 3, axis=2)


def on_white(colours: Array, alpha: Array) -> Array:
    """(H, W, 3) of colours and alpha in 0..255, unrounded."""
    share = alpha[..., None] / 255
    result: Array = colours * share + 255 * (1 - share)
    return result


SIZES = st.tuples(st.integers(1, 6), st.integers(1, 6))
seeded = settings(max_examples=60, deadline=None, derandomize=True)


@seeded
@given(
    stored=npst.arrays(np.uint16, SIZES),
    kind=st.sampled_from(["png", "tiff", "ppm"]),
    order=st.sampled_from("<>"),
    orientation=st.sampled_from(sorted(SHOWN)),
)
def test_sixteen_bits(stored: Array, kind: str, order: str, orientation: int) -> None:
    if kind == "ppm":
        orientation = 1
    image = Image.fromarray(stored.astype(f"{order}u2")) if kind == "tiff" else Image.fromarray(stored)
    expected = SHOWN[orientation](np.rint(stored / 257).astype(np.uint8))
    np.testing.assert_array_equal(rgb(reopened(image, kind, orientation)), grey(expected))


@seeded
@given(stored=npst.arrays(np.float32, SIZES, elements=st.floats(0, 1, width=32)))
def test_floating_point_from_0_to_1(stored: Array) -> None:
    expected = np.floor(stored.astype(np.float64) * 255 + 0.5)
    np.testing.assert_allclose(rgb(reopened(Image.fromarray(stored), "tiff")), grey(expected), atol=1)
    assert rgb(reopened(Image.fromarray(np.float32([[0, 0.5, 1]])), "tiff"))[0, :, 0].tolist() == [0, 128, 255]


@seeded
@given(
    colours=npst.arrays(np.uint8, SIZES.map(lambda size: (*size, 3))),
    alpha=st.integers(0, 255),
    mode=st.sampled_from(["RGBA", "LA", "PA"]),
    orientation=st.sampled_from(sorted(SHOWN)),
)
def test_transparency_is_shown_on_white(colours: Array, alpha: int, mode: str, orientation: int) -> None:
    if mode != "RGBA":
        colours = grey(colours[..., 0])
    levels = np.full(colours.shape[:2], alpha, dtype=np.uint8)
    levels[0, 0] = 255 - alpha
    image = Image.fromarray(np.dstack([colours, levels]))
    if mode == "PA":
        # A palette has no more than 256 colours, each with its own alpha: here, of grey.
        levels[:] = alpha
        image = Image.fromarray(np.dstack([colours, levels])).quantize(256, Image.Quantize.FASTOCTREE)
        colours = np.asarray(image.convert("RGBA"))[..., :3].astype(np.uint8)
        levels = np.asarray(image.convert("RGBA"))[..., 3].astype(np.uint8)
    elif mode == "LA":
        image = image.convert("LA")
    expected = SHOWN[orientation](on_white(colours, levels))
    np.testing.assert_allclose(rgb(reopened(image, "png", orientation)), expected, atol=1)


@pytest.mark.parametrize(
    ("mode", "colour", "other"),
    [("L", 7, 8), ("RGB", (1, 2, 3), (1, 2, 4)), ("I;16", 300, 301), ("P", 0, 1)],
    ids=["L", "RGB", "I;16", "P"],
)
def test_one_transparent_colour_becomes_white(mode: str, colour: Any, other: Any) -> None:
    image = Image.new(mode, (2, 1), colour)
    image.putpixel((1, 0), other)
    if mode == "P":
        image.putpalette([9, 9, 9, 20, 30, 40])
    shown = rgb(reopened(image, "png", transparency=colour))
    expected = {"L": [8] * 3, "RGB": [1, 2, 4], "I;16": [1] * 3, "P": [20, 30, 40]}[mode]
    assert shown.tolist() == [[[255] * 3, expected]]


@seeded
@given(stored=npst.arrays(np.uint8, SIZES.map(lambda size: (*size, 4))), orientation=st.sampled_from(sorted(SHOWN)))
def test_inks(stored: Array, orientation: int) -> None:
    image = Image.fromarray(stored, mode="CMYK")
    light = 255 - stored.astype(np.float64)
    expected = SHOWN[orientation](light[..., :3] * light[..., 3:] / 255)
    np.testing.assert_allclose(rgb(reopened(image, "tiff", orientation)), expected, atol=1)


@seeded
@given(
    stored=npst.arrays(np.uint8, SIZES.map(lambda size: (*size, 3))),
    kind=st.sampled_from(["png", "tiff", "webp"]),
    orientation=st.sampled_from(sorted(SHOWN)),
)
def test_orientation(stored: Array, kind: str, orientation: int) -> None:
    options = {"lossless": True} if kind == "webp" else {}
    image = reopened(Image.fromarray(stored), kind, orientation, **options)
    np.testing.assert_array_equal(rgb(image), SHOWN[orientation](stored))


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB"])
def test_what_has_eight_bits_is_kept(mode: str) -> None:
    stored = np.random.default_rng(0).integers(0, 2, (5, 4)).astype(np.uint8) * (255 if mode == "1" else 204)
    image = Image.fromarray(grey(stored)).convert(mode)
    np.testing.assert_array_equal(rgb(reopened(image, "png")), grey(stored))


def twelve_bits(row: list[int]) -> bytes:
    """A TIFF file of one row of an even number of 12-bit values."""
    packed = b"".join(((a << 12) | b).to_bytes(3, "big") for a, b in zip(row[::2], row[1::2], strict=True))
    tags = [(256, len(row)), (257, 1), (258, 12), (259, 1), (262, 1), (273, 8), (277, 1), (278, 1), (279, len(packed))]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    start = 8 + len(packed) + len(packed) % 2
    data = packed.ljust(start - 8, b"\0")
    return struct.pack("<2sHI", b"II", 42, start) + data + struct.pack("<H", len(tags)) + entries + struct.pack("<I", 0)


def test_twelve_bits_have_a_range_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "x.tiff").write_bytes(twelve_bits([0, 2048, 4095, 16]))
    assert np.asarray(read_rgb(str(tmp_path / "x.tiff")))[0, :, 0].tolist() == [0, 128, 255, 1]


@pytest.mark.parametrize(
    "values",
    [
        np.float32([[0, 255]]),
        np.float32([[-0.1, 1]]),
        np.float32([[np.nan, 1]]),
        np.float32([[np.inf, 1]]),
        np.int32([[0, 70000]]),
        np.int32([[-5, 200]]),
        np.int32([[0, 200]]),
    ],
    ids=["large float", "negative float", "nan", "inf", "large int", "negative int", "small int"],
)
def test_numbers_of_unknown_range_are_refused_by_name(values: Array, tmp_path: Path) -> None:
    file = tmp_path / "odd.tiff"
    Image.fromarray(values).save(file)
    with pytest.raises(DataError, match=r"^Expected `.*odd\.tiff` to be an image, but .* save it with 8 or 16 bits$"):
        read_rgb(str(file))


def test_a_transparent_colour_of_sixteen_bits_is_refused_by_name(tmp_path: Path) -> None:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0))
    colour = struct.pack(">HHH", 1000, 2000, 3000)
    body = chunk(b"tRNS", colour) + chunk(b"IDAT", zlib.compress(b"\0" + colour)) + chunk(b"IEND", b"")
    (tmp_path / "odd.png").write_bytes(b"\x89PNG\r\n\x1a\n" + header + body)
    with pytest.raises(DataError, match=r"odd\.png` to be an image.*transparent colour"):
        read_rgb(str(tmp_path / "odd.png"))


def test_damaged_exif_data_do_not_cost_the_image() -> None:
    stored = np.random.default_rng(0).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    image = reopened(Image.fromarray(stored), "png", exif=b"Exif\0\0nonsense")
    np.testing.assert_array_equal(rgb(image), stored)


def readers(file: Path) -> Iterator[tuple[str, Array]]:
    """Every way from a file to pixels, with its result (H, W, 3)."""

    def kept(image: Image.Image) -> Array:
        return np.asarray(image)

    yield "read_rgb", kept(read_rgb(str(file)))
    size = read_rgb(str(file)).width
    yield "decode_files", decode_files([str(file)], size, resize=False, num_workers=0)[0].permute(1, 2, 0).numpy()
    yield "photographs", Photographs((str(file),), (0,), ("a",), kept, with_index=False)[0][0]
    yield "timm", _Images(scan_part(file.parent.parent), kept)[0][0]  # type: ignore[misc]


@pytest.mark.parametrize("kind", ["turned", "transparent", "sixteen"])
def test_all_readers_agree(kind: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    file = tmp_path / "train" / "cat" / "0.png"
    file.parent.mkdir(parents=True)
    if kind == "sixteen":
        stored = rng.integers(0, 1 << 16, (6, 6)).astype(np.uint16)
        Image.fromarray(stored).save(file)
        expected = grey(np.rint(stored / 257))
    elif kind == "transparent":
        stored = rng.integers(0, 256, (6, 6, 4), dtype=np.uint8)
        Image.fromarray(stored).save(file)
        expected = on_white(stored[..., :3], stored[..., 3])
    else:
        stored = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.fromarray(stored).save(file, exif=exif)
        expected = np.rot90(stored, -1)
    (tmp_path / "train" / "dog").mkdir()
    Image.new("RGB", (6, 6)).save(tmp_path / "train" / "dog" / "0.png")
    for name, found in readers(file):
        np.testing.assert_allclose(found, expected, atol=1, err_msg=name)
