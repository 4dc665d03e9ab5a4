"""The teacher's remembered answers: what is known, what is not, and every way in which the file can be wrong."""

from __future__ import annotations

import errno
import logging
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.speed.small import Net, batch
from tllm_plugin.speed import memory as memory_module
from tllm_plugin.speed.memory import MemoryPlace, TeacherMemory, image_hashes
from tllm_plugin.speed.teacher import FastTeacher

CLASSES = 7
DIGEST = "0123456789abcdef" * 4


class Counting:
    """A teacher whose logits depend on the image alone; counts the rows that it is shown."""

    def __init__(self) -> None:
        self.rows: list[int] = []

    def __call__(self, images: Tensor) -> Tensor:
        self.rows.append(len(images))
        return images.flatten(1)[:, :CLASSES] * 3


def images(*seeds: int) -> Tensor:
    return torch.stack([torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in seeds])


def opened(folder: Path, digest: str = DIGEST, limit: int = 10**6) -> TeacherMemory:
    made = MemoryPlace(folder, limit).open(digest, CLASSES)
    assert made is not None
    return made


def expected(shown: Tensor) -> Tensor:
    return Counting()(shown).half().float()


def test_known_images_are_not_asked_for_again(tmp_path: Path) -> None:
    teacher, memory = Counting(), opened(tmp_path)
    first, second = images(0, 1, 2), images(2, 3, 0, 4)
    assert memory.answers(first, teacher).equal(expected(first))
    assert memory.answers(second, teacher).equal(expected(second))
    assert memory.answers(second.flip(0), teacher).equal(expected(second.flip(0)))
    assert teacher.rows == [3, 2] and (memory.asked, memory.known) == (11, 6)
    # Another run with this teacher.
    assert opened(tmp_path).answers(first, teacher).equal(expected(first)) and teacher.rows == [3, 2]


def test_a_single_unknown_image_is_shown_twice_for_the_compilers_sake(tmp_path: Path) -> None:
    teacher, memory = Counting(), opened(tmp_path)
    memory.answers(images(0, 1), teacher)
    assert memory.answers(images(1, 2, 0), teacher).equal(expected(images(1, 2, 0)))
    assert teacher.rows == [2, 2]


def test_any_change_of_an_image_makes_it_unknown(tmp_path: Path) -> None:
    teacher, memory = Counting(), opened(tmp_path)
    shown = images(0)
    memory.answers(shown, teacher)
    changed = shown.clone()
    changed[0, 2, 7, 7] = torch.nextafter(changed[0, 2, 7, 7], torch.tensor(9.0))
    assert memory.answers(changed, teacher).equal(expected(changed))
    assert memory.known == 0


def test_hashes_are_of_the_image_alone_and_hardly_collide() -> None:
    shown = images(*range(50))
    hashes = image_hashes(shown)
    assert (image_hashes(shown[7:9]) == hashes[7:9]).all()
    assert (image_hashes(shown.contiguous(memory_format=torch.channels_last)) == hashes).all()
    # Images that differ in one pixel by whole numbers: 2 ** 16 of them.
    near = torch.zeros(2**16, 1, 2, 2)
    near[:, 0, 0, 0] = torch.arange(2**16)
    assert len({tuple(pair) for pair in image_hashes(near).tolist()}) == 2**16
    # A hand-computed sum, with the factors that the module draws.
    generator = torch.Generator().manual_seed(memory_module._SEED)
    factors = torch.randint(-(2**63), 2**63 - 1, (2, 2), generator=generator).tolist()
    one, two = torch.tensor([[1.5, -2.0]]).view(torch.int32)[0].tolist()
    total = (one * (factors[0][0] | 1) + two * (factors[0][1] | 1)) % 2**64
    assert int(image_hashes(torch.tensor([[1.5, -2.0]]))[0, 0]) == total


@pytest.mark.parametrize("byte", range(32))
def test_a_damaged_record_is_asked_for_again(tmp_path: Path, byte: int) -> None:
    teacher, memory = Counting(), opened(tmp_path)
    shown = images(5)
    memory.answers(shown, teacher)
    content = bytearray(memory.path.read_bytes())
    used = next(place for place in range(4096, len(content)) if content[place]) // 8 * 8
    start = used - (used - 4096) % memory._record.itemsize
    assert memory._record.itemsize == 32, "key, check, 7 values and the padding"
    content[start + byte] ^= 0x10
    memory.path.write_bytes(content)
    again = opened(tmp_path)
    assert again.answers(shown, teacher).equal(expected(shown)) and teacher.rows == [2, 2]
    assert again.answers(shown, teacher).equal(expected(shown)) and len(teacher.rows) == 2


@pytest.mark.parametrize("length", [0, 100, 4096, 5000])
def test_a_file_that_is_cut_off_is_never_wrong(tmp_path: Path, length: int) -> None:
    teacher, memory = Counting(), opened(tmp_path)
    shown = images(*range(20))
    memory.answers(shown, teacher)
    os.truncate(memory.path, length)
    # While it is open, and when it is opened again.
    assert memory.answers(shown, teacher).equal(expected(shown))
    os.truncate(memory.path, length)
    assert opened(tmp_path).answers(shown, teacher).equal(expected(shown))


def test_a_damaged_header_is_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    memory = opened(tmp_path)
    memory.answers(images(0), Counting())
    content = bytearray(memory.path.read_bytes())
    content[3] ^= 1
    memory.path.write_bytes(content)
    teacher = Counting()
    assert opened(tmp_path).answers(images(0), teacher).equal(expected(images(0)))
    assert teacher.rows == [2]
    assert len(caplog.records) == 1 and "is damaged or of another teacher" in caplog.text


def test_another_teacher_has_another_file_and_never_uses_this_one(tmp_path: Path) -> None:
    memory = opened(tmp_path)
    memory.answers(images(0), Counting())
    other = "f" * 64
    path = tmp_path / f"answers-{other[:16]}.bin"
    path.write_bytes(memory.path.read_bytes())  # Even under its name.
    teacher = Counting()
    opened(tmp_path, other).answers(images(0), teacher)
    assert teacher.rows == [2]


def test_a_full_disk_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    memory, teacher = opened(tmp_path), Counting()
    memory.answers(images(0, 1), teacher)

    def full(*args: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    for seed in (2, 3):
        shown = images(0, seed, 1)
        assert memory.answers(shown, teacher).equal(expected(shown))
    assert len(caplog.records) == 1 and "No space left on device" in caplog.text


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    assert MemoryPlace(tmp_path / "file", 10**6).open(DIGEST, CLASSES) is None
    assert len(caplog.records) == 1 and "are not remembered" in caplog.text


def test_the_size_is_bounded(tmp_path: Path) -> None:
    memory, teacher = opened(tmp_path, limit=5000), Counting()
    shown = images(*range(200))
    for _ in range(2):
        assert memory.answers(shown, teacher).equal(expected(shown))
    assert memory.path.stat().st_size <= 5000
    assert 0 < memory.known < 200


def test_logits_beyond_half_precision_are_not_rounded(tmp_path: Path) -> None:
    memory = opened(tmp_path)
    large = images(0, 1)
    for _ in range(2):
        found = memory.answers(large, lambda shown: Counting()(shown) * 1e5)
        assert found.equal(Counting()(large) * 1e5)
    assert memory.known == 0


def test_two_runs_may_write_at_once(tmp_path: Path) -> None:
    one, two, teacher = opened(tmp_path), opened(tmp_path), Counting()
    for seed in range(0, 40, 2):
        for memory in (one, two):
            shown = images(seed, seed + 1)
            assert memory.answers(shown, teacher).equal(expected(shown))
    assert two.known == 40 and one.known == 0


def test_a_teacher_that_remembers_answers_as_before(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    teacher, plain = Net().eval(), Net().eval()
    FastTeacher(teacher, "plain", place=MemoryPlace(tmp_path, 10**6)).put_in()
    with torch.no_grad():
        for seed in (0, 1, 0):
            shown = batch(seed=seed)["image"]
            logits, features = teacher(shown)
            torch.testing.assert_close(logits, plain(shown)[0].half().float(), rtol=1e-3, atol=1e-3)
        assert features["pooled_feat"].equal(plain(shown)[1]["pooled_feat"])
    assert "answers are remembered in" in caplog.text
    assert len(list(tmp_path.glob("answers-*.bin"))) == 1
