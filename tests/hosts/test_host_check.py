"""`tllm host check` on stand-ins: what is recognised, tried and reported."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.hosts.mdistiller_stand_in import write_host
from tllm_plugin.cli import main
from tllm_plugin.core.errors import ConfigError
from tllm_plugin.hosts.host_check import (
    BROKEN,
    FAILS,
    REFUSED,
    TRAINS,
    CheckResult,
    Fact,
    MethodCheck,
    Problem,
    check_checkout,
    host_of,
    line_of,
    summary,
)

DISTILLERS, SCRIPT = "mdistiller/distillers/__init__.py", "tools/train.py"


def test_the_report_counts_and_keeps_to_its_lines() -> None:
    methods = (
        MethodCheck("KD", TRAINS),
        MethodCheck("X", REFUSED, "no\nstudent"),
        MethodCheck("Y", BROKEN, "KeyError"),
    )
    result = CheckResult((Fact("trainers", "base"), *methods))
    assert summary(result) == (
        "of 3 methods: 1 train with TLLM, 1 are refused by TLLM, 0 fail with TLLM, 1 do not train in the host either"
    )
    assert result.facts == {"trainers": "base"} and result.methods == methods and not result.problem
    assert all("\n" not in line_of(finding) for finding in result.findings)
    assert line_of(Problem("no torch\nat all")) == "no method was tried: no torch\nat all"


def test_hosts_are_told_apart_by_what_they_hold(tmp_path: Path) -> None:
    for name, held in (("mdistiller", "mdistiller/x.py"), ("repdistiller", "train_student_cifar.py")):
        path = tmp_path / name / held
        path.parent.mkdir(parents=True)
        path.touch()
        assert host_of(tmp_path / name) == name
    (tmp_path / "none").mkdir()
    with pytest.raises(ConfigError, match="to be a checkout of mdistiller, of RepDistiller or of a descendant"):
        host_of(tmp_path / "none")


# A method for each verdict, in a script whose option `--M` one of them needs.
METHODS = """

class Scaled(KD):
    def forward_train(self, image, target, **kwargs):
        logits, losses = super().forward_train(image, target)
        return logits * 2, losses

class NeedsM(KD):
    def __init__(self, student, teacher, cfg):
        super().__init__(student, teacher, cfg)
        assert cfg.M == "[1,2]", "ERROR M"

class Typo(KD):
    def forward_train(self, image, target, **kwargs):
        return self.studnet(image)

class PerRow(KD):
    def losses(self, logits, taught, target):
        return {"task": F.cross_entropy(logits, target), "kd": (logits - taught).pow(2).mean(1, keepdim=True)}

distiller_dict.update(SCALED=Scaled, NEEDS_M=NeedsM, TYPO=Typo, PER_ROW=PerRow)
"""
TABLE = 'distiller_dict = {"NONE": Vanilla, "KD": KD}'
PARSER = '    parser.add_argument("opts"'
EDITS = {
    DISTILLERS: [(TABLE, TABLE + METHODS)],
    SCRIPT: [
        (PARSER, f'    parser.add_argument("--M", default="none")\n{PARSER}'),
        ("    cfg.freeze()\n", "    cfg.M = args.M\n    cfg.freeze()\n"),
    ],
}


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = write_host(tmp_path_factory.mktemp("host"), EDITS)
    for name in ("KD", "NEEDS_M"):
        path = root / "configs" / f"{name}.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"DISTILLER: {{TYPE: {name}}}\nSOLVER: {{BATCH_SIZE: 20}}\n")
    (root / "README.md").write_text("Run\n```\npython tools/train.py --cfg configs/NEEDS_M.yaml \\\n  --M [1,2]\n```\n")
    return root


def test_every_method_gets_its_verdict(host: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted((path, path.read_bytes()) for path in host.rglob("*") if path.is_file())
    assert main(["host", "check", str(host)]) == 0
    lines = [line.split(maxsplit=2) for line in capsys.readouterr().out.splitlines()[1:-1]]
    found = {name: (verdict, *reason) for name, verdict, *reason in lines}
    assert {name: verdict for name, (verdict, *_) in found.items() if verdict in (TRAINS, REFUSED, FAILS, BROKEN)} == {
        **{"NONE": TRAINS, "KD": TRAINS, "SCALED": REFUSED, "NEEDS_M": TRAINS, "TYPO": BROKEN, "PER_ROW": TRAINS}
    }
    assert "logits" in found["SCALED"][1] and "has no attribute 'studnet'" in found["TYPO"][1]
    # The options with which the README trains it.
    assert found["NEEDS_M"][1] == "tools/train.py --cfg configs/NEEDS_M.yaml --M [1,2]"
    assert found["resume"] == ("yes",)
    assert sorted((path, path.read_bytes()) for path in host.rglob("*") if path.is_file()) == before


def test_findings_come_one_by_one_and_options_reach_the_script(host: Path) -> None:
    told: list[str] = []
    with pytest.raises(RuntimeError, match="enough"):

        def tell(finding: object) -> None:
            told.append(str(finding))
            if isinstance(finding, MethodCheck):
                raise RuntimeError("enough")

        check_checkout(host, tell=tell)
    assert any("trainers" in line for line in told) and sum("MethodCheck" in line for line in told) == 1
    result = check_checkout(host, script="tools/train.py", options=["--M", "[1,2]"])
    assert {method.method: method.verdict for method in result.methods}["NEEDS_M"] == TRAINS
    other = check_checkout(host, options=["--M", "[1]"])
    assert {method.method: method.verdict for method in other.methods}["NEEDS_M"] == BROKEN


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("import no_such_module", "Expected mdistiller to be importable, but No module named 'no_such_module'"),
        ("x: function = 1", "Expected mdistiller to be importable, but NameError: name 'function' is not defined"),
        ("import os; os._exit(3)", "exit code 3"),
    ],
)
def test_a_host_that_cannot_be_imported_is_one_line(
    line: str, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_host(tmp_path, {DISTILLERS: [("import torch,", f"{line}\nimport torch,")]})
    assert main(["host", "check", str(root)]) == 1
    message = " ".join(capsys.readouterr().err.split())
    assert message.startswith(f"tllm: no method of {root} could be tried: {told}") and "Traceback" not in message
