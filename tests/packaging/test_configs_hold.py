"""Every config: its opening commands, its values, and that the index of the paper's tables knows it."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from yacs.config import CfgNode

from tllm_plugin.core.errors import ConfigError
from tllm_plugin.hosts.checkouts import locate
from tllm_plugin.hosts.config_checks import merge_file, merge_options
from tllm_plugin.hosts.embedded.config import check_config
from tllm_plugin.hosts.embedded.defaults import default_config

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))
NAMES = [path.relative_to(ROOT).as_posix() for path in CONFIGS]
CIFAR = ROOT / "configs/tllm/cifar100"


def commands(path: Path) -> list[list[str]]:
    """Return the words of the commands that open a config."""
    lines = path.read_text(encoding="utf-8").splitlines()
    found = []
    for line in lines:
        if not line.startswith("# tllm train "):
            break
        found.append(shlex.split(line.removeprefix("# ")))
    return found


def host_of(words: list[str]) -> str:
    return words[words.index("--host") + 1] if "--host" in words else "embedded"


def options_of(words: list[str]) -> list[str]:
    return words[words.index("--cfg") + 2 :]


def use_made_up_paths(cfg: CfgNode, folder: Path) -> None:
    """Let what earlier runs would have written exist, where the config names it."""
    checkpoint = folder / "student_latest"
    checkpoint.touch()
    for node, key, made_up in (
        (cfg.DISTILLER, "TEACHER_CHECKPOINT", checkpoint),
        (cfg.TLLM.DETECTOR, "REFERENCE", folder),
    ):
        if node[key]:
            node[key] = str(made_up)


def test_configs_were_found() -> None:
    assert len(CONFIGS) > 60
    assert {path.parent.name for path in CONFIGS} >= {"embedded", "vanilla", "res32x4_res8x4", "res50_mv1"}


@pytest.mark.parametrize("path", CONFIGS, ids=NAMES)
def test_opens_with_the_command_that_runs_it(path: Path) -> None:
    opening = commands(path)
    assert opening, "expected the first line to be `# tllm train ...`"
    for words in opening:
        assert words[words.index("--cfg") + 1] == path.relative_to(ROOT).as_posix()
    assert len({host_of(words) for words in opening}) == 1


@pytest.mark.parametrize("path", [path for path in CONFIGS if host_of(commands(path)[0]) == "embedded"], ids=str)
def test_holds_in_the_embedded_host(path: Path) -> None:
    for words in commands(path):
        cfg = default_config()
        typed = [str(ROOT) if word.startswith("/path/to/") else word for word in options_of(words)]
        assert merge_file(cfg, path) + merge_options(cfg, typed) + check_config(cfg) == []


@pytest.mark.parametrize("path", [path for path in CONFIGS if "cifar100" in path.parts], ids=str)
def test_configs_of_cifar_hold_in_the_embedded_host_too(path: Path) -> None:
    """With the overrides that the index gives, by which teacher and vanilla student are trained first."""
    first = ["TLLM.DETECTOR.REFERENCE", "", "DISTILLER.TEACHER_CHECKPOINT", "", "DISTILLER.TEACHER_STAGE", "SFTN"]
    for words in commands(path):
        cfg = default_config()
        assert merge_file(cfg, path) + merge_options(cfg, options_of(words) + first) + check_config(cfg) == []


IMAGENET = [path for path in CONFIGS if "imagenet" in path.parts or path.parent.name == "tllm"]


@pytest.mark.parametrize("path", IMAGENET, ids=str)
def test_configs_of_imagenet_hold_in_the_embedded_host_too(path: Path) -> None:
    """With the overrides that the index gives."""
    pair = ["tv_resnet34", "tv_resnet18"] if "res34_res18" in str(path) else ["tv_resnet50", "MobileNetV1"]
    data = ["DATASET.TYPE", "imagefolder", "DATASET.PATH", str(ROOT), "DATASET.IMAGE_SIZE", "224"]
    first = ["TLLM.DETECTOR.REFERENCE", "", "DISTILLER.TEACHER_CHECKPOINT", "", "DISTILLER.TEACHER_STAGE", "SFTN"]
    networks = ["DISTILLER.TEACHER", pair[0], "DISTILLER.STUDENT", pair[1]]
    for words in commands(path):
        cfg = default_config()
        options = [*options_of(words), *data, *networks, *first]
        assert merge_file(cfg, path) + merge_options(cfg, options) + check_config(cfg) == []


def test_twins_of_imagenet_differ_in_place_and_networks_alone() -> None:
    for pair in ("res34_res18", "res50_mv1"):
        one, other = default_config(), default_config()
        assert merge_file(one, ROOT / f"configs/tllm/{pair}.yaml") == []
        assert merge_file(other, ROOT / f"configs/tllm/embedded/imagenet_{pair}.yaml") == []
        assert one.SOLVER == other.SOLVER and one.KD == other.KD and one.TLLM.HOLDOUT == other.TLLM.HOLDOUT
        assert one.DATASET.TEST == other.DATASET.TEST
        networks = [(cfg.DISTILLER.TYPE, cfg.DISTILLER.TEACHER, cfg.DISTILLER.STUDENT) for cfg in (one, other)]
        assert [name.lower() for name in networks[0]] == [name.lower().removeprefix("tv_") for name in networks[1]]


@pytest.fixture(scope="module")
def mdistiller_config() -> Iterator[CfgNode]:
    try:
        root = locate("mdistiller")
    except ConfigError as error:
        pytest.skip(str(error))
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(root))
        from mdistiller.engine.cfg import CFG

        import tllm_plugin.hosts.mdistiller  # noqa: F401 (it registers what TLLM adds)

        yield CFG


@pytest.mark.parametrize("path", [path for path in CONFIGS if host_of(commands(path)[0]) == "mdistiller"], ids=str)
def test_holds_in_mdistiller(path: Path, mdistiller_config: CfgNode, tmp_path: Path) -> None:
    from mdistiller.distillers import distiller_dict
    from mdistiller.models import cifar_model_dict, imagenet_model_dict

    from tllm_plugin.hosts.mdistiller.configuration import check_config as check_mdistiller

    for words in commands(path):
        cfg = mdistiller_config.clone()
        # By the host's own hand: its yacs is stricter about types than ours.
        cfg.merge_from_file(str(path))
        cfg.merge_from_list(options_of(words))
        use_made_up_paths(cfg, tmp_path)
        assert check_mdistiller(cfg) == []
        assert cfg.DISTILLER.TYPE in distiller_dict
        models = imagenet_model_dict if cfg.DATASET.TYPE == "imagenet" else cifar_model_dict
        assert cfg.DISTILLER.STUDENT in models
        assert cfg.DISTILLER.TYPE == "NONE" or cfg.DISTILLER.TEACHER in models
        assert "TEACHER: " not in path.read_text() or cfg.DISTILLER.TYPE != "NONE"


def written_by(path: Path) -> str:
    """Return the folder in which mdistiller logs a config's first command."""
    cfg = default_config()
    merge_file(cfg, path)
    return f"output/{cfg.EXPERIMENT.PROJECT}/{cfg.EXPERIMENT.TAG}"


def test_what_a_config_builds_on_is_what_another_leaves() -> None:
    """A path below output/ is the folder of a config that is here, of the same student or teacher and hold-out."""
    folders = {written_by(path): path for path in CONFIGS if "embedded" not in path.parts}
    assert len(folders) == len([path for path in CONFIGS if "embedded" not in path.parts]), "two runs share a folder"
    checked = 0
    for path in folders.values():
        cfg = default_config()
        merge_file(cfg, path)
        if cfg.TLLM.DETECTOR.REFERENCE:
            other = default_config()
            merge_file(other, folders[cfg.TLLM.DETECTOR.REFERENCE.removesuffix("/tllm")])
            assert (other.DISTILLER.TYPE, other.DISTILLER.STUDENT) == ("NONE", cfg.DISTILLER.STUDENT)
            assert other.TLLM.HOLDOUT == cfg.TLLM.HOLDOUT and other.SOLVER.EPOCHS == cfg.SOLVER.EPOCHS
            checked += 1
        if cfg.DISTILLER.TEACHER_CHECKPOINT:
            other = default_config()
            merge_file(other, folders[cfg.DISTILLER.TEACHER_CHECKPOINT.removesuffix("/student_latest")])
            trained = other.DISTILLER.TEACHER if other.DISTILLER.TYPE == "SFTN" else other.DISTILLER.STUDENT
            assert trained == cfg.DISTILLER.TEACHER and other.TLLM.HOLDOUT == cfg.TLLM.HOLDOUT
            checked += 1
    assert checked > 40


def test_published_options() -> None:
    """What the paper fixes: hold-outs of 5 % and 2 %, smoothing of 0.1, the four fractions of ESKD, CID's weights."""
    for path in CONFIGS:
        if "embedded" in path.parts:
            continue
        cfg = default_config()
        merge_file(cfg, path)
        expected = 0.02 if cfg.DATASET.TYPE == "imagenet" else 0.05
        assert expected == cfg.TLLM.HOLDOUT.FRACTION, path
        assert cfg.TLLM.LABEL_SMOOTHING == 0.1
    fractions = {0.7} | {float(words[-1]) for words in commands(CIFAR / "res50_mv2" / "eskd.yaml")[1:]}
    assert fractions == {0.7, 0.8, 0.9, 0.95}
    for pair, weights in {"wrn40_2_wrn16_2": (1, 65, 1), "res56_res20": (1, 10, 1), "res50_mv2": (1, 33, 0.1)}.items():
        cfg = default_config()
        merge_file(cfg, CIFAR / pair / "cid.yaml")
        assert tuple(cfg.CID.LOSS.values()) == weights and cfg.SOLVER.NESTEROV and cfg.CID.TEMPERATURE == 4.0


def test_the_index_names_every_config_and_every_table() -> None:
    index = (ROOT / "configs/tllm/README.md").read_text(encoding="utf-8")
    linked = set(re.findall(r"\]\(([\w/.]+\.yaml)\)", index))
    present = {path.relative_to(ROOT / "configs/tllm").as_posix() for path in CONFIGS}
    assert linked == present
    for number in range(5, 12):
        assert f"## Table {number}" in index
