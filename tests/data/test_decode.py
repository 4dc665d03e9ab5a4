"""Decoding of files to pixels, against Pillow one file at a time."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tllm_plugin.core.errors import DataError
from tllm_plugin.data.decode import decode_files, read_rgb
from tllm_plugin.data.folder import scan_part

MakeFolder = Callable[..., Path]


def pixels(file: Path | str) -> Tensor:
    """Reference: (3, H, W) uint8."""
    with Image.open(file) as image:
        return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers and several chunks, for as few files as a test draws."""
    monkeypatch.setattr("tllm_plugin.data.decode._FILES_PER_CHUNK", 4)


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("num_workers", [0, 1, 2])
@pytest.mark.parametrize("count", [1, 4, 10])
def test_keeps_every_file_in_its_place(make_folder: MakeFolder, count: int, num_workers: int) -> None:
    files = scan_part(make_folder(per_class=5) / "train").files[:count]
    images = decode_files(files, 16, resize=False, num_workers=num_workers)
    assert images.dtype == torch.uint8
    assert torch.equal(images, torch.stack([pixels(file) for file in files]))


@pytest.mark.parametrize("mode", ["1", "L", "P"])
def test_other_modes_become_rgb(make_folder: MakeFolder, mode: str) -> None:
    file = make_folder() / "train" / "cat" / "0.png"
    Image.new(mode, (16, 16), 1).save(file)
    assert torch.equal(decode_files([str(file)], 16, resize=False, num_workers=0)[0], pixels(file))


@pytest.mark.parametrize("suffix", ["bmp", "jpeg", "ppm", "tiff", "webp"])
def test_other_formats(make_folder: MakeFolder, suffix: str) -> None:
    png = make_folder() / "train" / "cat" / "0.png"
    file = png.with_suffix(f".{suffix}")
    Image.open(png).save(file)
    assert torch.equal(decode_files([str(file)], 16, resize=False, num_workers=0)[0], pixels(file))


def test_scaling_keeps_the_centred_square_in_proportion(tmp_path: Path) -> None:
    # A white square between black quarters: squeezing the whole image would leave half of the result black.
    image = np.zeros((40, 80, 3), dtype=np.uint8)
    image[:, 20:60] = 255
    Image.fromarray(image).save(tmp_path / "wide.png")
    Image.fromarray(image.transpose(1, 0, 2)).save(tmp_path / "tall.png")
    files = [str(tmp_path / "wide.png"), str(tmp_path / "tall.png")]
    wide, tall = decode_files(files, 10, resize=True, num_workers=0)
    # Smoothing lets a little of the black outside bleed into the outermost pixels.
    assert (wide[:, :, 1:-1] == 255).all() and (wide > 200).all()
    assert torch.equal(tall, wide.transpose(1, 2))


def test_an_image_of_the_right_size_is_not_resampled(make_folder: MakeFolder) -> None:
    file = str(make_folder() / "train" / "cat" / "0.png")
    assert torch.equal(decode_files([file], 16, resize=True, num_workers=0)[0], pixels(file))


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("num_workers", [0, 2])
def test_of_several_damaged_files_the_first_is_named(make_folder: MakeFolder, num_workers: int) -> None:
    files = scan_part(make_folder(per_class=6) / "train").files
    for damaged in (files[9], files[5], files[11]):
        Path(damaged).write_text("no image")
    with pytest.raises(DataError, match=f"^Expected `{files[5]}` to be an image, but reading it failed") as caught:
        decode_files(files, 16, resize=False, num_workers=num_workers)
    assert "Traceback" not in str(caught.value)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("suffix", ["bmp", "gif", "jpeg", "png", "ppm", "tiff", "webp"])
def test_damage_of_any_kind_is_a_data_error_or_an_image(tmp_path: Path, suffix: str) -> None:
    rng = random.Random(0)
    file = tmp_path / f"image.{suffix}"
    Image.effect_noise((24, 24), 80).convert("RGB").save(file)
    whole = file.read_bytes()
    for _ in range(60):
        content = bytearray(whole[: rng.randrange(1, len(whole) + 1)])
        for _ in range(rng.choice((0, 1, 8))):
            content[rng.randrange(len(content))] = rng.randrange(256)
        file.write_bytes(content)
        try:
            assert read_rgb(str(file)).mode == "RGB"
        except DataError as error:
            assert str(file) in str(error)


def test_a_file_that_is_gone_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"^Expected `{tmp_path / 'gone.png'}` to be an image, but reading it failed"):
        read_rgb(str(tmp_path / "gone.png"))


@pytest.mark.usefixtures("small_chunks")
def test_logs_how_far_it_is(
    make_folder: MakeFolder, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tllm_plugin.data.decode._SECONDS_BETWEEN_REPORTS", -1.0)
    files = scan_part(make_folder(per_class=4) / "train").files
    with caplog.at_level(logging.INFO, logger="tllm_plugin.data"):
        decode_files(files, 16, resize=False, num_workers=0)
    assert [record.getMessage() for record in caplog.records[:2]] == [
        "decoded 4 of 8 images (50 %)",
        "decoded 8 of 8 images (100 %)",
    ]
    assert caplog.records[-1].getMessage().startswith("decoded 8 images in ")


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("num_workers", [0, 2])
def test_global_random_numbers_are_not_advanced(make_folder: MakeFolder, num_workers: int) -> None:
    files = scan_part(make_folder(per_class=6) / "train").files
    state = torch.get_rng_state()
    decode_files(files, 16, resize=False, num_workers=num_workers)
    assert torch.equal(torch.get_rng_state(), state)
