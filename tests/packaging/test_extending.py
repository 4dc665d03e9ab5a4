"""docs/extending.md: what the page shows is run, from the page's own text."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from yacs.config import CfgNode

from tests.hosts.recorded_cases import all_names
from tllm_plugin.cli.main import main
from tllm_plugin.core.curves import Curves
from tllm_plugin.core.detectors import DETECTORS
from tllm_plugin.core.errors import ConfigError
from tllm_plugin.core.options import Option, count_in
from tllm_plugin.core.registry import Registry
from tllm_plugin.hosts.embedded.config import load_config
from tllm_plugin.hosts.embedded.defaults import default_config
from tllm_plugin.hosts.embedded.distillers import distiller_dict
from tllm_plugin.hosts.extensions import load_extensions
from tllm_plugin.hosts.options import table
from tllm_plugin.hosts.run_spec import RunSpec
from tllm_plugin.hosts.tllm_node import build_detector, tllm_node
from tllm_plugin.methods import METHODS
from tllm_plugin.search.space import parse_space

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.M | re.S)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the page's module, and nothing else that could be imported."""
    (code,) = blocks("python")
    (tmp_path / code.splitlines()[0].removeprefix("# ")).write_text(code)
    return tmp_path


def run(folder: Path, *words: str, **variables: str) -> str:
    # As the installed `tllm`, which does not look for modules where it is started.
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **variables}
    script = "import sys; sys.path.remove(''); from tllm_plugin.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", script, *words] if words[0] != "python" else [sys.executable, *words[1:]]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout


def test_the_commands_train_and_show(folder: Path) -> None:
    (commands,) = blocks("sh")
    shown = [run(folder, *shlex.split(line)[1:]) for line in commands.splitlines()]
    assert len(shown) == 3 and "--tllm_hardest_epoch" in shown[2]
    recorded = (folder / "output/digits/features-digits_student-seed0/tllm/config.yaml").read_text()
    assert "HARDEST_CLASSES: 3" in recorded and "FEAT_WEIGHT: 2.0" in recorded
    assert "3 of 10" in shown[1], shown[1]


HOSTS = """
import argparse, sys
from types import SimpleNamespace
sys.modules["models"] = SimpleNamespace(model_dict={"resnet8": object})
import tllm_plugin.hosts.repdistiller as tllm
parser = argparse.ArgumentParser()
parser.add_argument("--dataset", default="cifar100", choices=["cifar100"])
parser.add_argument("--distill", default="kd", choices=["kd"])
for name in ("--path_t", "--model_t", "--model_s"):
    parser.add_argument(name)
assert "features" in tllm.METHODS
options = tllm.parse_student(parser)
print(options.features_feature_weight, options.features_ce_weight, options.tllm_hardest_classes, tllm.suffix(options))
"""


def test_flags_and_the_environment_of_a_hosts_script(folder: Path) -> None:
    (folder / "train.py").write_text(HOSTS)
    (folder / "resnet8_x").mkdir()
    (folder / "resnet8_x" / "last.pth").touch()
    words = "--path_t resnet8_x/last.pth --model_s resnet8 --distill features --features_feature_weight 2"
    words += " --tllm --tllm_detector hardest --tllm_hardest_classes 3"
    said = run(folder, "python", "train.py", *words.split(), TLLM_IMPORT="my_tllm")
    assert said.split() == ["2.0", "1.0", "3", "_ce_weight:1.0_feature_weight:2.0_tllm:hardest"]


def test_entry_points_of_an_installed_package(folder: Path) -> None:
    (toml,) = blocks("toml")
    content = re.sub(r'project\.entry-points\."(.*)"', r"\1", toml).replace('"', "")
    info = folder / "site" / "my_tllm-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-tllm\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(content)
    (folder / "my_tllm.py").rename(folder / "site" / "my_tllm.py")
    (folder / "c.yaml").write_text(
        "TLLM: {DETECTOR: {TYPE: hardest, HARDEST_CLASSES: 5}}\nFEATURES: {LOSS: {CE_WEIGHT: 2}}\n"
    )
    path = os.pathsep.join([str(ROOT), str(folder / "site")])
    assert run(folder, "validate", "c.yaml", PYTHONPATH=path) == "c.yaml: fine\n"
    (info / "entry_points.txt").write_text(content.replace("my_tllm:Hardest", "my_tllm:Hard"))
    environment = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run(
        [sys.executable, "-m", "tllm_plugin", "validate", "c.yaml"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and "Expected the entry point hardest = my_tllm:Hard of tllm_plugin.det" in done.stderr


def test_a_module_that_cannot_be_imported_is_named(capfd: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.delenv("TLLM_IMPORT", raising=False)
    monkeypatch.setenv("PYTHONPATH", os.environ.get("PYTHONPATH", ""))
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setitem(os.environ, "TLLM_IMPORT", "")
    assert main(["search", "--import", "no_such_module", "--cfg", "tllm/embedded/digits.yaml"]) == 2
    assert (
        capfd.readouterr().err
        == "tllm: Expected to import no_such_module, but ModuleNotFoundError: No module named 'no_such_module'\n"
    )
    monkeypatch.setitem(os.environ, "TLLM_IMPORT", "")
    load_extensions.cache_clear()


def own(monkeypatch: pytest.MonkeyPatch, registry: Registry[Any], name: str, *options: Option) -> None:
    for changed in (registry, distiller_dict):
        monkeypatch.setattr(changed, "_items", dict(changed._items))
    registry.register(name)(type(name, (DETECTORS["none"],), {"options": options, "__module__": "elsewhere"}))


def test_two_meanings_of_one_key_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    own(monkeypatch, DETECTORS, "test_shares", *DETECTORS["reference"].options)
    assert table()["TLLM.DETECTOR.ETA"].default == 0.05
    own(monkeypatch, DETECTORS, "test_clashes", Option("eta", 3, None, "something else"))
    with pytest.raises(ConfigError, match="Expected one option for the key `TLLM.DETECTOR.ETA`, but two"):
        table()


def test_a_method_is_no_section_of_the_config(monkeypatch: pytest.MonkeyPatch) -> None:
    own(monkeypatch, METHODS, "SOLVER", Option("eta", 3, None, "something"))
    with pytest.raises(ConfigError, match="names of methods that are not sections of the config, but got SOLVER"):
        default_config()


def test_options_of_a_method_change_runs_with_a_teacher_only(monkeypatch: pytest.MonkeyPatch) -> None:
    own(monkeypatch, METHODS, "MINE", Option("share", 0.5, None, "something"))
    assert default_config().MINE.SHARE == 0.5
    vanilla, taught = ({"DISTILLER.TYPE": kind, "MINE.SHARE": 0.1} for kind in ("NONE", "MINE"))
    assert not RunSpec(vanilla).reads("MINE.SHARE") and RunSpec(taught).reads("MINE.SHARE")


def test_names_of_runs_do_not_depend_on_what_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    before = all_names()["mdistiller"]
    own(monkeypatch, DETECTORS, "test_more", Option("more", 3, None, "something"))
    assert tllm_node().DETECTOR.MORE == 3
    assert all_names()["mdistiller"] == before


def test_what_a_user_declares_is_checked_searched_and_handed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    own(monkeypatch, DETECTORS, "test_more", Option("more", 3, count_in(1), "something"))
    cfg = load_config("tllm/embedded/digits.yaml", ["TLLM.DETECTOR.TYPE", "test_more", "TLLM.DETECTOR.MORE", "5"])
    assert new_detector(cfg).more == 5
    with pytest.raises(ConfigError, match="Expected `TLLM.DETECTOR.MORE` to be at least 1, but got 0"):
        load_config("tllm/embedded/digits.yaml", ["TLLM.DETECTOR.MORE", "0"])
    space, problems = parse_space(["MORE=1,2"], cfg)
    assert problems == [] and space[0].choices == (1, 2)


def new_detector(cfg: CfgNode) -> Any:
    holdout = Curves(torch.arange(10), 10, torch.arange(10))
    names = tuple(map(str, range(10)))
    return build_detector(cfg.TLLM, class_names=names, total_epochs=2, holdout=holdout, has_teacher=True)
