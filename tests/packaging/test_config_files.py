"""Configs are found by the names that the documentation uses; a wrong name is answered with similar ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from tllm_plugin import ConfigError
from tllm_plugin.hosts.config_files import find_config, list_configs

ROOT = Path(__file__).resolve().parents[2]
DIGITS = "tllm/embedded/digits.yaml"


def test_all_configs_are_listed() -> None:
    expected = sorted(path.relative_to(ROOT / "configs").as_posix() for path in (ROOT / "configs").rglob("*.yaml"))
    assert expected and list_configs() == expected


@pytest.mark.parametrize("spelling", [DIGITS, f"configs/{DIGITS}", f"./configs/{DIGITS}", Path(DIGITS)])
def test_ours_are_found_from_any_folder(spelling: str | Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_config(spelling) == ROOT / "configs" / DIGITS


def test_an_existing_file_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    own = tmp_path / DIGITS
    own.parent.mkdir(parents=True)
    own.touch()
    assert find_config(DIGITS).resolve() == own
    assert find_config(str(own)) == own


@pytest.mark.parametrize(
    "wrong, text",
    [
        ("digit.yaml", rf"there is no such file; configs of a similar name: {DIGITS}"),
        ("digits.yaml", rf"configs of a similar name: {DIGITS}"),
        ("configs/tllm/embeded/digits.yaml", rf"configs of a similar name: {DIGITS}"),
        ("../configs/" + DIGITS, rf"configs of a similar name: {DIGITS}"),
        ("qqq", r"no such file; configs that come with TLLM: tllm/cifar100/ \(\d+\), tllm/embedded/ \(\d+\), .*res50"),
        ("tllm/embedded", rf"there is no such file; in that folder are .*{DIGITS}"),
        ("configs/tllm/embedded/", rf"in that folder are .*{DIGITS}"),
        ("tllm/cifar100/", r"in that folder are tllm/cifar100/res32x4_res8x4/ \(\d+\), "),
        ("", "that is a folder"),
        (".", "that is a folder"),
        ("nul\0.yaml", "there is no such file|it cannot be read"),
        ("long" * 500, "there is no such file|it cannot be read"),
    ],
)
def test_a_wrong_name_is_answered_with_similar_ones(
    wrong: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=rf"^Expected `cfg` to be a YAML file, but got .*: .*({text})"):
        find_config(wrong)


def test_of_many_configs_with_one_name_the_nearest_are_named() -> None:
    with pytest.raises(ConfigError) as caught:
        find_config("tllm/cifar100/res50_mv1/kd.yaml")
    suggested = str(caught.value).split("similar name: ")[1].split(", ")
    assert len(suggested) == 6 and "tllm/cifar100/res50_mv2/kd.yaml" in suggested[:2]
